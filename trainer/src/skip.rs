//! Tests that lack something say so where it is seen, and fail where it was promised.

use std::io::Write as _;

/// Tells that a test is skipped, past the harness, which keeps what tests print. `STEMGUARD_REQUIRE` lists, with commas between, what a
/// machine has been given (`g++`, `nvrtc`, `gpu`): its lack is then a failure.
pub(crate) fn skipped(lacks: &str, why: &str) {
    let promised = std::env::var("STEMGUARD_REQUIRE").unwrap_or_default();
    assert!(promised.split(',').all(|name| name != lacks), "{lacks} is required, but {why}");
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}
