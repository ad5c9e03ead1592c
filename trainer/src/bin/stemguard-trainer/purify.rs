//! `purify`: audit, then unlearn, drop or relabel the accused.

use crate::audit::examine;
use crate::options::{Output, Place, PurifyOptions, ReplaceOptions};
use crate::ui;
use std::path::PathBuf;
use stemguard_trainer::engine::Engine;
use stemguard_trainer::error::Failure;
use stemguard_trainer::purify::{Told, admits, purify};
use stemguard_trainer::run::RunDir;
use stemguard_trainer::trap::Event;

/// Options of `purify`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run directory, of `trap` or of `train`.
    run: PathBuf,
    #[command(flatten)]
    purify: PurifyOptions,
    #[command(flatten)]
    how: ReplaceOptions,
    /// Go on where this purification was interrupted, with the settings it was begun with. Without this an interrupted one is refused;
    /// where RUN/purify is removed, it begins anew.
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

/// Audits and purifies.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let how = args.purify.purification()?;
    let device = args.place.device()?;
    // Before minutes are spent on the audit, and what it replaces.
    let (dir, record) = RunDir::open(&args.run)?;
    admits(&dir, &how, &args.how.replacement(record.config.flip, record.config.seed)?, args.resume)?;
    let mut e = examine(&args.run, &args.how, device, &args.output)?;
    let state = e.engine.state()?;
    let bar = ui::bar(0, "purify");
    let purified = purify(
        &e.dir,
        &e.record.config,
        &e.data,
        &state,
        &e.found,
        &e.how,
        &how,
        args.resume,
        device,
        &e.kernels,
        &mut |told| match told {
            Told::Training(round, Event::Step { epoch, done, of, losses }) => {
                ui::stands(
                    &bar,
                    done,
                    of,
                    format!("round {round}: epoch {epoch}/{} loss {:.3}", how.epochs, losses.total),
                );
            }
            Told::Training(..) => {}
            Told::Replacing(p) => {
                ui::learns(&bar, "replace", &p);
            }
        },
    )?;
    bar.finish_and_clear();
    for (number, r) in purified.rounds.iter().enumerate() {
        let e = &r.evaluation;
        if args.output.json {
            ui::json(&serde_json::json!({ "round": number + 1, "accused": r.accused, "doubtful": r.doubtful,
                "inoculated": r.inoculated, "newly_accused": r.newly_accused,
                "readmitted": r.readmitted, "acc": e.acc, "asr": e.asr, "ra": e.ra, "chance": e.chance,
                "seconds": r.seconds }))?;
        } else {
            ui::say(&format!(
                "round {}: {} accused, {} left out, {} inoculated ({} more accused after it, {} readmitted): ACC {:.1} %, ASR {:.1} % (chance {:.1}), RA {:.1} %, {:.0} s",
                number + 1,
                r.accused,
                r.doubtful,
                r.inoculated,
                r.newly_accused,
                r.readmitted,
                100.0 * e.acc,
                100.0 * e.asr,
                100.0 * e.chance,
                100.0 * e.ra,
                r.seconds
            ))?;
        }
    }
    if args.output.json {
        return ui::json(&serde_json::json!({ "tripwire": purified.tripwire }));
    }
    if purified.rounds.iter().all(|round| round.accused == 0) {
        ui::say(ui::NOBODY)?;
    }
    ui::say(&format!("tripwire: {}", purified.tripwire))
}
