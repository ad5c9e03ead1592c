//! `audit`: which classes are targets, which pictures are poisoned.

use crate::options::{Output, Place, ReplaceOptions};
use crate::ui;
use std::path::{Path, PathBuf};
use stemguard_runtime::kernels::simd::Simd;
use stemguard_trainer::audit::{Audit, LEAST_OTHERS, LEAST_PICTURES, Summary, judged};
use stemguard_trainer::chain::{self, Tripwires};
use stemguard_trainer::defend::Replacement;
use stemguard_trainer::engine::{CpuEngine, Device};
use stemguard_trainer::error::Failure;
use stemguard_trainer::prepare::{Prepared, reopen};
use stemguard_trainer::run::{Claim, Record, RunDir};
use stemguard_trainer::trap::restore;

/// Options of `audit`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run directory, of `trap` or of `train`.
    run: PathBuf,
    #[command(flatten)]
    how: ReplaceOptions,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

/// A run under examination: its model, its data, what the audit found.
pub(crate) struct Examined {
    pub(crate) dir: RunDir,
    pub(crate) record: Record,
    pub(crate) data: Prepared,
    pub(crate) engine: CpuEngine,
    pub(crate) how: Replacement,
    pub(crate) found: Audit,
    pub(crate) tripwires: Tripwires,
    pub(crate) kernels: Simd,
    /// Nobody else writes to the run meanwhile.
    _claim: Claim,
}

/// Whether a run is trained to its end: only then is its stem written.
pub(crate) fn finished(dir: &RunDir, record: &Record, done: u32) -> Result<(), Failure> {
    let of = record.config.epochs;
    if done < of {
        return Err(Failure::file(&dir.path, format!("is unfinished ({done} of {of} epochs); --resume it first")));
    }
    Ok(())
}

/// Restores a run, replaces its head (as `replace` does), and audits with both heads.
pub(crate) fn examine(run: &Path, how: &ReplaceOptions, device: Device, output: &Output) -> Result<Examined, Failure> {
    let (dir, record) = RunDir::open(run)?;
    let claim = dir.claim()?;
    let kernels = output.kernels();
    let data = reopen(&dir, &record, &kernels)?;
    let (mut engine, done) = restore(&dir, &record, &data, &kernels)?;
    finished(&dir, &record, done)?;
    let how = how.replacement(record.config.flip, record.config.seed)?;
    let bar = ui::bar(u64::from(how.settings.epochs), "replace");
    let chain::Examined { tripwires, found, .. } =
        chain::examine(&dir, &record.config, &data, &mut engine, &how, device, &kernels, &mut |told| match told {
            chain::Told::Replacing(stage, p) => {
                ui::learns(&bar, stage, &p);
            }
            chain::Told::Pictures(what, done, of) => {
                ui::stands(&bar, done, of, what);
            }
            chain::Told::Training(..) => {}
        })?;
    bar.finish_and_clear();
    Ok(Examined { dir, record, data, engine, how, found, tripwires, kernels, _claim: claim })
}

/// What `--json` prints.
#[derive(serde::Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    summary: &'a Summary,
    tripwire: Tripwires,
}

/// Audits and tells.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let e = examine(&args.run, &args.how, args.place.device()?, &args.output)?;
    let summary = e.found.summary(Some(&e.data.truth));
    if args.output.json {
        return ui::json(&Told { summary: &summary, tripwire: e.tripwires });
    }
    let classes = &e.data.suspect.pictures().classes;
    for c in &summary.classes {
        let note = if c.suspected { format!("target: {} accused", c.accused) } else { String::new() };
        ui::say(&format!(
            "{:<24} {:6} pictures  agreement {:+.2}  discord {:5.1}  split {:5.1}  excess {:5.1}  p {:.0e}  {note}",
            classes[c.class as usize],
            c.pictures,
            c.agreement,
            c.discord,
            c.split.iter().copied().fold(f64::MIN, f64::max),
            c.excess,
            c.p_value
        ))?;
    }
    let judged = judged(&summary.classes);
    if judged < summary.classes.len() {
        ui::say(&format!(
            "{judged} of {} classes could be judged: it takes {LEAST_PICTURES} pictures of a class, and {LEAST_OTHERS} other such classes",
            summary.classes.len()
        ))?;
    }
    ui::say(&format!(
        "{} of {} pictures accused; {}",
        summary.accused,
        summary.pictures,
        e.dir.file("audit.csv").display()
    ))?;
    let Tripwires { trapped_head, sharpening, alarms } = e.tripwires;
    if let Some(alarms) = trapped_head {
        ui::say(&format!("tripwire, trapped head: {alarms}"))?;
    }
    if let Some(s) = sharpening {
        let [before, after] = [s.trapped_head, s.taught].map(|v| 100.0 * v);
        ui::say(&format!(
            "a witness taught on the accused finds {after:.1} % of those it was not taught, the trapped head {before:.1} %"
        ))?;
        if let Some(alarms) = alarms.filter(|_| s.taken()) {
            ui::say(&format!("tripwire, sharpened: {alarms}"))?;
        }
    }
    if let Some(m) = &summary.measures {
        ui::say("against the truth:")?;
        for s in &m.signals {
            let recall = 100.0 * s.recall_at_1_percent;
            ui::say(&format!("{:<14} AUC {:.4}  recall at 1 % false positives {recall:.1} %", s.name, s.auc))?;
        }
        ui::say(&format!(
            "accused: {:.1} % of the poisoned, {:.2} % of the clean",
            100.0 * m.recall,
            100.0 * m.false_positives
        ))?;
    }
    Ok(())
}
