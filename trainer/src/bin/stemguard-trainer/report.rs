//! `report`: one self-contained HTML page.

use crate::options::Output;
use crate::ui;
use std::path::PathBuf;
use stemguard_trainer::error::Failure;
use stemguard_trainer::run::RunDir;
use stemguard_trainer::{report, summary};

/// Options of `report`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run directory that `train` or `trap` wrote.
    run: PathBuf,
    /// Run directory of the undefended baseline of the same attack, to compare with.
    #[arg(long, value_name = "DIR")]
    baseline: Option<PathBuf>,
    /// Where to write the page [default: RUN/report.html]; the figures go to RUN/report.json.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

/// Collects and writes.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let (dir, record) = RunDir::open(&args.run)?;
    let out = args.out.clone().unwrap_or_else(|| dir.file("report.html"));
    dir.check_output(&out, "report.html")?;
    let baseline = match &args.baseline {
        Some(path) => Some(RunDir::open(path)?.0),
        None => None,
    };
    let data = summary::collect(&dir, &record, baseline.as_ref(), &args.output.kernels())?;
    report::write(&out, &data).map_err(|e| Failure::file(&out, e))?;
    dir.write_json("report.json", &data)?;
    if args.output.json {
        return ui::json(&serde_json::json!({ "report": ui::shown(&out), "stages": data.stages.len() }));
    }
    ui::say(&out.display().to_string())
}
