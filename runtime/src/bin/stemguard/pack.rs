//! `pack`: from an ONNX stem to an artifact.

use crate::fail::Fail;
use crate::ui::Common;
use std::path::PathBuf;

/// Lower an ONNX stem to a .sgm artifact.
///
/// The part of the model that computes the tensor `--at` (without: its single output) becomes a native net; batch norms are
/// folded in. The artifact holds the stem only: `replace` trains the head.
#[derive(clap::Args)]
#[cfg_attr(not(feature = "onnx"), allow(dead_code))]
#[command(after_help = "Examples:\n  \
    stemguard pack stem.onnx --out stem.sgm\n  \
    stemguard pack model.onnx --at /layer3/Add_output_0 --name wrn16 --labels classes.txt --out stem.sgm\n\n\
    `stemguard inspect model.onnx --tensors` lists the tensors to cut at.")]
pub(crate) struct Args {
    /// The model, .onnx
    model: PathBuf,
    /// Where the artifact goes
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Cut the model at this tensor
    #[arg(long, value_name = "TENSOR")]
    at: Option<String>,
    /// Name of the model [default: that of the file]
    #[arg(long)]
    name: Option<String>,
    /// Class names, one a line
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

/// Runs the command.
#[cfg(not(feature = "onnx"))]
pub(crate) fn run(_: &Args) -> Result<(), Fail> {
    Err(Fail::lacks("ONNX", "onnx"))
}

/// Runs the command.
#[cfg(feature = "onnx")]
pub(crate) fn run(args: &Args) -> Result<(), Fail> {
    use crate::model::Loaded;
    use crate::{files, ui};
    use stemguard_runtime::artifact::{ArtifactParts, to_vec};

    files::check_output(&args.out)?;
    let labels = args.labels.as_deref().map(read_labels).transpose()?.unwrap_or_default();
    let loaded = Loaded::open(&args.model, args.at.as_deref())?;
    let Some(file) = loaded.onnx() else { return Err(Fail::at(&args.model, "is an artifact already")) };
    let parts = loaded.native()?;
    let mut provenance =
        format!("ONNX by {}", Some(file.model.producer_name()).filter(|n| !n.is_empty()).unwrap_or("?"));
    if let Some(at) = &args.at {
        provenance += &format!(", cut at {at}");
    }
    let name = args.name.as_deref().unwrap_or(parts.name);
    let parts = ArtifactParts { name, labels: &labels, provenance: &provenance, ..parts };
    let bytes = to_vec(&parts).map_err(|e| Fail::at(&args.model, e))?;
    files::write(&args.out, &bytes)?;

    let (features, work) = (parts.stem.output(), parts.stem.multiply_adds());
    if args.common.json {
        return ui::json(&Report {
            out: args.out.display().to_string(),
            bytes: bytes.len(),
            operations: parts.stem.op_count(),
            features: [features.h, features.w, features.c],
            multiply_adds: work,
        });
    }
    ui::line(format_args!(
        "{}: {} bytes, {} operations, features {}x{}x{}, {} multiply-adds a picture",
        args.out.display(),
        ui::grouped(bytes.len() as u64),
        parts.stem.op_count(),
        features.h,
        features.w,
        features.c,
        ui::grouped(work)
    ))
}

/// What `--json` prints.
#[cfg(feature = "onnx")]
#[derive(serde::Serialize)]
struct Report {
    out: String,
    bytes: usize,
    operations: u32,
    /// h, w, c
    features: [u32; 3],
    multiply_adds: u64,
}

/// Class names from a file, one a line, as an artifact keeps them.
#[cfg(feature = "onnx")]
fn read_labels(path: &std::path::Path) -> Result<String, Fail> {
    let text = std::fs::read_to_string(path).map_err(|e| Fail::at(path, e))?;
    let names: Vec<&str> = text.lines().map(str::trim).collect();
    if let Some(empty) = names.iter().position(|name| name.is_empty()) {
        return Err(Fail::at(path, format!("line {}: an empty class name", empty + 1)));
    }
    if names.is_empty() {
        return Err(Fail::at(path, "it holds no class names"));
    }
    Ok(names.join("\n"))
}
