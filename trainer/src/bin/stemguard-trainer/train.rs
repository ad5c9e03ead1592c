//! `train` and `trap`.

use crate::options::{Data, Output, Recipe, config};
use crate::ui;
use std::path::PathBuf;
use stemguard_trainer::error::Failure;
use stemguard_trainer::run::prepare;
use stemguard_trainer::trap::{Event, train};

/// Options of `train` and `trap`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    data: Data,
    #[command(flatten)]
    recipe: Recipe,
    /// Run directory to write.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Go on where this run was interrupted; the result has the same bits as an unbroken run.
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    output: Output,
}

/// Trains, telling every epoch.
pub(crate) fn run(args: &Args, trap: bool) -> Result<(), Failure> {
    let config = config(&args.data, &args.recipe, trap)?;
    let kernels = args.output.kernels();
    let data = prepare(&config, &kernels, Some(&args.out))?;
    let bar = ui::bar(0, "epoch 1");
    let mut trouble = None;
    let trained = train(&config, &data, &args.out, args.resume, &kernels, &mut |event| match event {
        Event::Step { epoch, done, of, losses } => {
            bar.set_length(of as u64);
            bar.set_position(done as u64);
            bar.set_message(format!("epoch {epoch}/{} loss {:.3}", config.epochs, losses.total));
        }
        Event::Epoch(line) => bar.suspend(|| {
            let told = if args.output.json {
                ui::json(line)
            } else {
                let percent = |v: Option<f64>| v.map_or(String::new(), |v| format!("{:5.1}", 100.0 * v));
                ui::say(&format!(
                    "epoch {:3}  loss {:.4} (ce {:.4} mse {:.5} tv {:.5})  {:.0} pictures/s  ACC {}  ASR {}",
                    line.epoch,
                    line.losses.total,
                    line.losses.ce,
                    line.losses.mse,
                    line.losses.tv,
                    line.pictures_per_second,
                    percent(line.acc),
                    percent(line.asr)
                ))
            };
            if let Err(e) = told {
                trouble = Some(e);
            }
        }),
    })?;
    bar.finish_and_clear();
    if let Some(e) = trouble {
        return Err(e);
    }
    let e = &trained.evaluation;
    if args.output.json {
        ui::json(&serde_json::json!({ "run": args.out, "acc": e.acc, "asr": e.asr, "ra": e.ra, "chance": e.chance }))
    } else {
        ui::say(&format!("{}: ACC {:.1} %, ASR {:.1} %", args.out.display(), 100.0 * e.acc, 100.0 * e.asr))
    }
}
