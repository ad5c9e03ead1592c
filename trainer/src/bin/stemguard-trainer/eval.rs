//! `eval`: a packed model on a run's test pictures, clean and triggered.

use crate::options::Output;
use crate::ui;
use std::path::PathBuf;
use stemguard_trainer::error::Failure;
use stemguard_trainer::packed::measure;
use stemguard_trainer::prepare::reopen;
use stemguard_trainer::run::RunDir;

/// Options of `eval`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run directory that `train` or `trap` wrote; nothing in it is changed.
    run: PathBuf,
    /// The model: a .sgm with a head, its stem in f32 or in 8 bits [default: RUN/defended.sgm].
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

/// Evaluates and prints.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let (dir, record) = RunDir::open(&args.run)?;
    let model = args.model.clone().unwrap_or_else(|| dir.file("defended.sgm"));
    let kernels = args.output.kernels();
    let data = reopen(&dir, &record, &kernels)?;
    let found = measure(&model, &data.test, &kernels)?;
    let (e, counts) = (&found.evaluation, data.counts());
    if args.output.json {
        return ui::json(
            &serde_json::json!({ "run": ui::shown(&args.run), "model": ui::shown(&model), "precision": found.precision,
            "acc": e.acc, "asr": e.asr, "ra": e.ra, "chance": e.chance, "tripwire": found.tripwire,
            "test": counts.test, "triggered": counts.triggered, "per_class": e.known_per_class() }),
        );
    }
    ui::say(&format!(
        "{} ({}): ACC {:.2} %, ASR {:.2} % (chance {:.2}), RA {:.2} %; {} test pictures, {} triggered",
        model.display(),
        found.precision,
        100.0 * e.acc,
        100.0 * e.asr,
        100.0 * e.chance,
        100.0 * e.ra,
        counts.test,
        counts.triggered
    ))?;
    found.tripwire.map_or(Ok(()), |alarms| ui::say(&format!("tripwire: {alarms}")))
}
