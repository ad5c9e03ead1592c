//! `pack`: from an ONNX stem to an artifact, in `f32` or in 8 bits.

use crate::fail::Fail;
use crate::ui::Common;
use std::path::PathBuf;

/// Lower an ONNX stem to a .sgm artifact.
///
/// The part of the model that computes the tensor `--at` (without: its single output) becomes a native net; batch norms are
/// folded in. The artifact holds the stem only: `replace` trains the head.
///
/// With --int8 the stem is quantised: 8-bit weights with a scale for each output channel, 8-bit values whose ranges are chosen
/// on the calibration pictures, integer arithmetic alone. An artifact with an f32 stem may then take the place of the ONNX
/// file; its head and class names stay.
#[derive(clap::Args)]
#[cfg_attr(not(feature = "onnx"), allow(dead_code))]
#[command(after_help = "Examples:\n  \
    stemguard pack stem.onnx --out stem.sgm\n  \
    stemguard pack model.onnx --at /layer3/Add_output_0 --name wrn16 --labels classes.txt --out stem.sgm\n  \
    stemguard pack stem.onnx --int8 --calibrate folder:clean --out small.sgm\n\n\
    `stemguard inspect model.onnx --tensors` lists the tensors to cut at. Data sets: cifar10:DIR, cifar100:DIR, gtsrb:DIR, \
    folder:DIR, npz:FILE, signs[:N]; @train or @test behind one picks a part.")]
pub(crate) struct Args {
    /// The model: .onnx, or with --int8 also .sgm
    model: PathBuf,
    /// Where the artifact goes
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Cut the model at this tensor
    #[arg(long, value_name = "TENSOR")]
    at: Option<String>,
    /// Name of the model [default: that of the file]
    #[arg(long)]
    name: Option<String>,
    /// Class names, one a line
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Quantise the stem to 8-bit integers
    #[arg(long, requires = "calibrate")]
    int8: bool,
    /// Pictures that tell the ranges of values; labels are not looked at
    #[arg(long, value_name = "SPEC", requires = "int8")]
    pub(crate) calibrate: Option<String>,
    /// How many of them, picked by a fixed seed
    #[arg(long, value_name = "N", default_value_t = 512, requires = "int8",
          value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(crate) calibrate_count: u32,
    #[command(flatten)]
    pub(crate) common: Common,
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
    use crate::{files, int8};
    use stemguard_runtime::artifact::ArtifactParts;

    let calibration = args.calibrate.as_deref().map(int8::parse).transpose()?;
    let mut inputs = vec![(args.model.as_path(), "the model")];
    inputs.extend(args.labels.as_deref().map(|path| (path, "the list of class names")));
    inputs.extend(calibration.as_ref().and_then(|spec| spec.source.path()).map(|path| (path, "the pictures")));
    files::check_apart(&args.out, &inputs)?;
    let named = args.labels.as_deref().map(read_labels).transpose()?;
    let loaded = Loaded::open(&args.model, args.at.as_deref())?;
    let parts = loaded.native()?;
    let provenance = match loaded.onnx() {
        None if !args.int8 => return Err(Fail::at(&args.model, "is an artifact already")),
        None => parts.provenance.to_string(),
        Some(file) => {
            let producer = Some(file.model.producer_name()).filter(|name| !name.is_empty()).unwrap_or("?");
            let cut = args.at.as_deref().map(|at| format!(", cut at {at}")).unwrap_or_default();
            format!("ONNX by {producer}{cut}")
        }
    };
    if let (Some(names), Some(head)) = (&named, parts.head)
        && names.lines().count() != head.classes as usize
    {
        let why = format!("{} class names for a head of {} classes", names.lines().count(), head.classes);
        return Err(Fail::input(format!("--labels: {why}")));
    }
    if args.name.as_ref().is_some_and(|name| name.contains(char::is_control)) {
        return Err(Fail::input("--name: control characters"));
    }
    let name = args.name.as_deref().unwrap_or(parts.name);
    let labels = named.as_deref().unwrap_or(parts.labels);
    let parts = ArtifactParts { name, labels, provenance: &provenance, ..parts };
    match calibration {
        None => write(args, &parts, None)?,
        Some(spec) => int8::pack(args, &args.model, &parts, &spec)?,
    }
    loaded.tell_whole();
    Ok(())
}

/// Writes the artifact and tells about it.
#[cfg(feature = "onnx")]
pub(crate) fn write(
    args: &Args,
    parts: &stemguard_runtime::artifact::ArtifactParts<'_>,
    calibrated: Option<Calibrated>,
) -> Result<(), Fail> {
    use crate::{files, ui};

    let bytes = stemguard_runtime::artifact::to_vec(parts).map_err(|e| Fail::at(&args.model, e))?;
    files::write(&args.out, &bytes)?;
    let (stem, features) = (parts.stem, parts.stem.output());
    let (out, work) = (args.out.display().to_string(), stem.multiply_adds());
    if args.common.json {
        return ui::json(&Report {
            out,
            bytes: bytes.len(),
            precision: stem.precision(),
            operations: stem.op_count(),
            features: [features.h, features.w, features.c],
            multiply_adds: work,
            weight_bytes: stem.weights().len(),
            arena_bytes: stem.arena_bytes(),
            calibrated,
        });
    }
    ui::line(format_args!(
        "{out}: {} bytes, {} operations, features {}x{}x{}, {} multiply-adds a picture",
        ui::grouped(bytes.len() as u64),
        stem.op_count(),
        features.h,
        features.w,
        features.c,
        ui::grouped(work)
    ))?;
    calibrated.map_or(Ok(()), |c| {
        ui::line(format_args!(
            "int8: weights {} bytes, arena {} bytes; features {:.1} dB above their error on {} calibration pictures",
            ui::grouped(stem.weights().len() as u64),
            ui::grouped(stem.arena_bytes() as u64),
            c.signal_to_error_db,
            c.pictures
        ))
    })
}

/// What `--json` prints.
#[cfg(feature = "onnx")]
#[derive(serde::Serialize)]
struct Report {
    out: String,
    bytes: usize,
    precision: &'static str,
    operations: u32,
    /// h, w, c
    features: [u32; 3],
    multiply_adds: u64,
    weight_bytes: usize,
    arena_bytes: usize,
    #[serde(flatten)]
    calibrated: Option<Calibrated>,
}

/// How near the quantised stem comes.
#[cfg(feature = "onnx")]
#[derive(serde::Serialize)]
pub(crate) struct Calibrated {
    /// Calibration pictures.
    #[serde(rename = "calibration_pictures")]
    pub(crate) pictures: usize,
    /// Energy of the f32 features over that of their difference from the int8 ones, in decibels.
    pub(crate) signal_to_error_db: f64,
}

/// Class names from a file, one a line, as an artifact keeps them.
#[cfg(feature = "onnx")]
fn read_labels(path: &std::path::Path) -> Result<String, Fail> {
    let text = std::fs::read_to_string(path).map_err(|e| Fail::at(path, e))?;
    let names: Vec<&str> = text.lines().map(str::trim).collect();
    if let Some(empty) = names.iter().position(|name| name.is_empty()) {
        return Err(Fail::at(path, format!("line {}: an empty class name", empty + 1)));
    }
    if let Some(odd) = names.iter().position(|name| name.contains(char::is_control)) {
        return Err(Fail::at(path, format!("line {}: a class name with control characters", odd + 1)));
    }
    if names.is_empty() {
        return Err(Fail::at(path, "it holds no class names"));
    }
    Ok(names.join("\n"))
}
