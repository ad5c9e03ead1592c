//! `replace`: a new head on a run's frozen stem.

use crate::audit::finished;
use crate::options::{Output, Place, ReplaceOptions};
use crate::ui;
use std::path::PathBuf;
use stemguard_trainer::course::guarded;
use stemguard_trainer::defend::{Evidence, Frozen, packed_stem, replace, write};
use stemguard_trainer::error::Failure;
use stemguard_trainer::prepare::reopen;
use stemguard_trainer::run::RunDir;
use stemguard_trainer::trap::restore;

/// Options of `replace`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run directory that `train` or `trap` wrote.
    run: PathBuf,
    #[command(flatten)]
    how: ReplaceOptions,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

/// Replaces, evaluates, writes `defended.sgm` and `defended.onnx`; on a trap run the trapped head stays in them as a tripwire,
/// or a witness taught on what the run's guard accused, where that finds more of it.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let device = args.place.device()?;
    let (dir, record) = RunDir::open(&args.run)?;
    let _claim = dir.claim()?;
    let kernels = args.output.kernels();
    let data = reopen(&dir, &record, &kernels)?;
    let how = args.how.replacement(record.config.flip, record.config.seed)?;
    let (trained, done) = restore(&dir, &record, &data, &kernels)?;
    finished(&dir, &record, done)?;
    let stem = Frozen { packed: packed_stem(&dir, &trained.net)?, device, net: &trained.net };
    let bar = ui::bar(u64::from(how.settings.epochs), "replace");
    let mut new = replace(stem, data.holdout.pictures(), &data.test, &how, &kernels, &mut |p| {
        ui::learns(&bar, "replace", &p);
        true
    })?;
    let (c, net, suspects, holdout) = (&record.config, &trained.net, data.suspect.pictures(), data.holdout.pictures());
    if c.trap {
        new.keep_trapped(net, holdout, &data.test, how.alarm_fpr, &kernels)?;
    }
    // A guarded head has unlearnt the trigger: what the guard accused teaches another witness.
    if let Some(verdict) = &guarded(c, &dir, done, suspects, data.proportions())? {
        let evidence =
            Evidence { device, net, suspects, verdict, holdout, test: &data.test, how: &how, kernels: &kernels };
        new.sharpen(&evidence, &mut |p| {
            ui::learns(&bar, "tripwire", &p);
            true
        })?;
    }
    bar.finish_and_clear();
    write(&dir, c, &data.test.clean.classes, &new, &how, |_| Ok(()))?;
    let (e, tripwire) = (&new.evaluation, new.tripwire.as_ref().map(|t| t.alarms));
    if args.output.json {
        let pictures = u64::from(how.settings.epochs) as f64 * data.holdout.len() as f64;
        return ui::json(&serde_json::json!({ "run": ui::shown(&args.run), "acc": e.acc, "asr": e.asr, "ra": e.ra,
            "chance": e.chance, "tripwire": tripwire, "seconds": new.seconds, "pictures_per_second": pictures / new.seconds }));
    }
    ui::say(&format!(
        "{}: ACC {:.1} %, ASR {:.1} % (chance {:.1}), RA {:.1} %, {:.0} s",
        dir.file("defended.sgm").display(),
        100.0 * e.acc,
        100.0 * e.asr,
        100.0 * e.chance,
        100.0 * e.ra,
        new.seconds
    ))?;
    tripwire.map_or(Ok(()), |alarms| ui::say(&format!("tripwire: {alarms}")))
}
