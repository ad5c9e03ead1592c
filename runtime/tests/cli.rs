//! The `stemguard` command, run as a user runs it: the whole way from an ONNX stem to a defended model, and every kind of bad
//! input, which must give one clear line, exit code 2 and no output file.
//!
//! The environment's `STEMGUARD_COMMAND` names another binary to run than the one built beside the tests: a lean one.

#![cfg(feature = "cli")]

#[cfg(all(feature = "onnx", feature = "data"))]
#[path = "cli/bad_data.rs"]
mod bad_data;
#[cfg(all(feature = "onnx", feature = "data"))]
#[path = "cli/bad_models.rs"]
mod bad_models;
#[cfg(all(feature = "onnx", feature = "data"))]
#[path = "cli/good.rs"]
mod good;
#[cfg(all(feature = "onnx", feature = "data"))]
#[path = "cli/int8.rs"]
mod int8;
#[path = "cli/lean.rs"]
mod lean;
#[path = "cli/sign.rs"]
mod sign;
#[path = "cli/support.rs"]
mod support;
#[cfg(all(feature = "onnx", feature = "data"))]
#[path = "cli/tripwire.rs"]
mod tripwire;
