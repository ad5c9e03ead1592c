//! `run`: a model on an array of pictures.

use crate::fail::Fail;
use crate::model::Loaded;
use crate::runner::{Backend, Layout, Runner};
use crate::ui::{self, Common};
use crate::{files, npy};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;
use stemguard_runtime::data::MAX_BYTES;
use stemguard_runtime::shape::Shape;

/// Run a model on an array of pictures.
///
/// The input is a .npy file of float32, [N, C, H, W], N free, of the model's size. The output is [N, C, H, W], or
/// [N, classes] where the model gives a vector: logits with a head, features without.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    stemguard run defended.sgm --input x.npy --output logits.npy\n  \
    stemguard run model.onnx --at features --input x.npy --output features.npy --backend tract")]
pub(crate) struct Args {
    /// The model: .sgm or .onnx
    model: PathBuf,
    /// Pictures, .npy
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where the outputs go, .npy
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Cut an ONNX model at this tensor
    #[arg(long, value_name = "TENSOR")]
    at: Option<String>,
    /// What runs it [default: native where the model lowers to a native net, else tract]
    #[arg(long, value_enum)]
    backend: Option<Backend>,
    #[command(flatten)]
    common: Common,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    backend: &'static str,
    pictures: usize,
    shape: Vec<usize>,
    seconds: f64,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<(), Fail> {
    files::check_apart(&args.output, &[(&args.model, "the model"), (&args.input, "the input")])?;
    let model = Loaded::open(&args.model, args.at.as_deref())?;
    let kernels = args.common.kernels();
    let runner = match args.backend {
        Some(backend) => Runner::on(backend, &model, &kernels)?,
        None => Runner::best(&model, &kernels)?,
    };
    let Shape { h, w, c } = runner.input();
    let (shape, x) = npy::read(&args.input, |shape| match *shape {
        [0, ..] => Err("it holds no pictures".into()),
        [_, x, y, z] if [x, y, z] == [c, h, w].map(|side| side as usize) => Ok(()),
        [_, _, _, _] => Err(format!("shape {shape:?} where the model takes [N, {c}, {h}, {w}]")),
        _ => Err(format!("rank {} where the model takes rank 4, [N, {c}, {h}, {w}]", shape.len())),
    })?;
    let n = shape[0];
    let len = n.checked_mul(runner.output().len()).filter(|&len| 4 * len as u64 <= MAX_BYTES);
    let len = len.ok_or_else(|| Fail::at(&args.input, "the outputs of so many pictures are larger than 8 GiB"))?;
    if args.backend.is_none() {
        runner.tell_fallback(&model);
        if runner.backend() == Backend::Native {
            ui::note("backend native: the model is a native net");
        }
    }
    let mut y = vec![0.0; len];
    let start = Instant::now();
    runner.run_as(Layout::Chw, &x, &mut y)?;
    let seconds = start.elapsed().as_secs_f64();
    if let Some(at) = y.iter().position(|v| !v.is_finite()) {
        let picture = at / runner.output().len();
        return Err(Fail::at(&args.model, format!("the output for picture {picture} is not finite")));
    }
    let Shape { h, w, c } = runner.output();
    let shape = match runner.classes() {
        Some(classes) => vec![n, classes],
        None => vec![n, c as usize, h as usize, w as usize],
    };
    files::write(&args.output, &npy::encode(&shape, &y)?)?;
    let backend = runner.backend().name();
    if args.common.json {
        return ui::json(&Report { backend, pictures: n, shape, seconds });
    }
    ui::line(format_args!("{n} pictures, {backend}, {seconds:.3} s: {} {shape:?}", args.output.display()))
}
