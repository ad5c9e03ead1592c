//! `sign`: a signature behind an artifact.

use crate::artifact::ArtifactFile;
use crate::fail::Fail;
use crate::files;
use crate::keys::{hex, read_private};
use crate::ui::{self, Common};
use serde::Serialize;
use std::path::PathBuf;
use stemguard_runtime::artifact::{digest, sign};

/// Sign a .sgm artifact.
///
/// A trailer of 88 bytes goes behind the artifact: the model version, the key's id, an Ed25519 signature over both and the
/// artifact. A signature that is there already is replaced. Every command reads a signed artifact as it reads any other; only
/// `stemguard verify`, and devices that hold the public key, check the signature.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    stemguard sign stem.sgm --key model.key --model-version 3\n  \
    stemguard sign stem.sgm --key model.key --model-version 3 --out signed.sgm")]
pub(crate) struct Args {
    /// The artifact, .sgm
    model: PathBuf,
    /// The private key, as `stemguard keygen` writes it
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The version of the model: larger with each release, so that devices can refuse older ones
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    model_version: u32,
    /// Where the signed artifact goes [default: in place of the model]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    out: String,
    bytes: usize,
    model_version: u32,
    key_id: String,
    /// Of the artifact, without the trailer.
    sha256: String,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<(), Fail> {
    let out = args.out.as_ref().unwrap_or(&args.model);
    files::check_apart(out, &[(&args.key, "the key")])?;
    let file = ArtifactFile::open(&args.model)?;
    let key = read_private(&args.key)?;
    let trailer = sign::sign(file.artifact(), &key, args.model_version).map_err(|e| Fail::at(&args.model, e))?;
    let bytes = [file.artifact(), &trailer].concat();
    files::write(out, &bytes)?;
    let report = Report {
        out: out.display().to_string(),
        bytes: bytes.len(),
        model_version: args.model_version,
        key_id: hex(&key.public().id()),
        sha256: hex(&digest(file.artifact())),
    };
    if args.common.json {
        return ui::json(&report);
    }
    ui::line(format_args!(
        "{}: {} bytes, model version {}, signed by key {}",
        report.out,
        ui::grouped(report.bytes as u64),
        report.model_version,
        report.key_id
    ))
}
