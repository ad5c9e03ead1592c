//! `verify`: whether a signed artifact is what its signer released.

use crate::artifact::ArtifactFile;
use crate::fail::Fail;
use crate::keys::{hex, read_public};
use crate::ui::{self, Common};
use serde::Serialize;
use std::path::PathBuf;
use stemguard_runtime::artifact::sign;

/// Verify a signed .sgm artifact.
///
/// Refuses, with exit code 2, what is unsigned, altered, signed with another key, or older than a given version. Only then are the
/// artifact's own checks made, as a device makes them.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    stemguard verify signed.sgm --key model.key.pub\n  \
    stemguard verify signed.sgm --key model.key.pub --minimum-version 3 --json")]
pub(crate) struct Args {
    /// The signed artifact, .sgm
    model: PathBuf,
    /// The public key, as `stemguard keygen` writes it
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The least model version to accept
    #[arg(long, value_name = "N", default_value_t = 0)]
    minimum_version: u32,
    #[command(flatten)]
    common: Common,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    model: String,
    name: &'a str,
    model_version: u32,
    key_id: String,
    /// Of the artifact, without the trailer.
    sha256: String,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<(), Fail> {
    let key = read_public(&args.key)?;
    let file = ArtifactFile::open(&args.model)?;
    let verified = sign::verify(file.whole(), &key, args.minimum_version).map_err(|e| Fail::at(&args.model, e))?;
    let report = Report {
        model: args.model.display().to_string(),
        name: verified.artifact().name(),
        model_version: verified.model_version(),
        key_id: hex(&key.id()),
        sha256: hex(&verified.digest()),
    };
    if args.common.json {
        return ui::json(&report);
    }
    ui::line(format_args!("{}: good, model version {}, key {}", report.model, report.model_version, report.key_id))?;
    ui::line(format_args!("sha256 {}", report.sha256))
}
