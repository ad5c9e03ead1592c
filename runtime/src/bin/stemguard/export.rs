//! `export`: from an artifact to one ONNX file.

use crate::fail::Fail;
use crate::ui::Common;
use std::path::PathBuf;

/// Write stem and head as one ONNX file.
///
/// Input `images` [N, C, H, W], output `logits` [N, classes]; opset 17. An artifact without a head gives the stem alone,
/// output `features`. One with a tripwire gives a second output, `alarm` (`[N]`): the score of each picture. The threshold above which
/// it is an alarm is printed, it is not in the file.
#[derive(clap::Args)]
#[cfg_attr(not(feature = "onnx"), allow(dead_code))]
#[command(after_help = "Example:\n  stemguard export defended.sgm --out defended.onnx")]
pub(crate) struct Args {
    /// The artifact, .sgm
    model: PathBuf,
    /// Where the ONNX file goes
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
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
    use crate::model::{Loaded, onnx_fail};
    use crate::{files, ui};

    /// What `--json` prints.
    #[derive(serde::Serialize)]
    struct Report {
        out: String,
        bytes: usize,
        output: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        alarm_threshold: Option<f32>,
    }

    files::check_apart(&args.out, &[(&args.model, "the model")])?;
    let model = Loaded::open(&args.model, None)?;
    if model.onnx().is_some() {
        return Err(Fail::at(&args.model, "is an ONNX file already"));
    }
    let parts = model.parts()?;
    let bytes = stemguard_runtime::onnx::defended(&parts).map_err(|e| onnx_fail(&args.model, &e))?;
    files::write(&args.out, &bytes)?;
    let output = if parts.head.is_some() { "logits" } else { "features" };
    let (out, bytes) = (args.out.display().to_string(), bytes.len());
    let alarm_threshold = parts.tripwire.map(|tripwire| tripwire.threshold);
    if args.common.json {
        return ui::json(&Report { out, bytes, output, alarm_threshold });
    }
    let alarm = alarm_threshold.map(|t| format!(", and `alarm`, raised above {t}")).unwrap_or_default();
    ui::line(format_args!("{out}: {} bytes, input `images`, output `{output}`{alarm}", ui::grouped(bytes as u64)))
}
