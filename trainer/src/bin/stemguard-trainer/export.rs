//! `export`: a run's models as ONNX.

use crate::options::Output;
use crate::ui;
use std::path::PathBuf;
use stemguard_trainer::checkpoint::write_whole;
use stemguard_trainer::error::Failure;
use stemguard_trainer::prepare::reopen;
use stemguard_trainer::run::RunDir;
use stemguard_trainer::{export, trap};

/// Options of `export`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run directory that `train` or `trap` wrote; it may be unfinished.
    run: PathBuf,
    /// Where to write the stem [default: RUN/stem.onnx].
    #[arg(long, value_name = "FILE")]
    stem: Option<PathBuf>,
    /// Where to write stem and trained head together [default: RUN/trapped.onnx or RUN/trained.onnx].
    #[arg(long, value_name = "FILE")]
    classifier: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

/// Writes both files from the run's last checkpoint.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let (dir, record) = RunDir::open(&args.run)?;
    let stem = args.stem.clone().unwrap_or_else(|| dir.file("stem.onnx"));
    let name = if record.config.trap { "trapped.onnx" } else { "trained.onnx" };
    let classifier = args.classifier.clone().unwrap_or_else(|| dir.file(name));
    dir.check_output(&stem, "stem.onnx")?;
    dir.check_output(&classifier, name)?;
    if stem == classifier {
        return Err(Failure::input("--stem and --classifier", "name the same file"));
    }
    let kernels = args.output.kernels();
    let data = reopen(&dir, &record, &kernels)?;
    let (engine, epochs) = trap::restore(&dir, &record, &data, &kernels)?;
    write_whole(&stem, &export::stem(&engine.net)?)?;
    write_whole(&classifier, &export::classifier(&engine.net)?)?;
    if args.output.json {
        return ui::json(
            &serde_json::json!({ "stem": ui::shown(&stem), "classifier": ui::shown(&classifier), "epochs": epochs }),
        );
    }
    ui::say(&format!("after {epochs} epochs: {}, {}", stem.display(), classifier.display()))
}
