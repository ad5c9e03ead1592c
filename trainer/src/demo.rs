//! The whole chain on one data set, for a first look: plant, train, trap, replace, with the control beside it.

use crate::config::RunConfig;
use crate::defend::{Replacement, packed_stem, replace, write};
use crate::error::Failure;
use crate::run::{Prepared, RunDir, prepare};
use crate::trap::{Event, train};
use serde::Serialize;
use std::path::Path;
use std::time::Instant;
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::metrics::der;
use stemguard_runtime::replace::Progress;

/// ACC and ASR, fractions 0..=1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Clean test pictures given their true class.
    pub acc: f64,
    /// Triggered pictures given the target class.
    pub asr: f64,
}

/// The defended model's figures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DefendedFigures {
    /// As [`Figures::acc`].
    pub acc: f64,
    /// As [`Figures::asr`].
    pub asr: f64,
    /// Triggered pictures given their true class.
    pub ra: f64,
    /// Defence effectiveness rating.
    pub der: f64,
    /// Clean pictures of other classes given the target class: what ASR falls to without a backdoor.
    pub chance: f64,
}

/// What `demo --json` ends with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The undefended model.
    pub baseline: Figures,
    /// The trapped model with its own head.
    pub trapped: Figures,
    /// A head replaced on the undefended stem.
    pub control: Figures,
    /// The head replaced on the trapped stem.
    pub defended: DefendedFigures,
    /// Wall-clock seconds of everything.
    pub seconds: f64,
}

/// What the demo tells while it runs.
pub enum Told<'a> {
    /// A training stage begins or goes on.
    Training(&'static str, Event<'a>),
    /// A head is being replaced.
    Replacing(&'static str, Progress),
}

/// Runs the chain into `out/baseline` and `out/trap`.
///
/// # Errors
/// Those of the stages.
pub fn run(
    c: &RunConfig,
    how: &Replacement,
    out: &Path,
    resume: bool,
    kernels: &Simd,
    tell: &mut dyn FnMut(Told<'_>),
) -> Result<Summary, Failure> {
    let started = Instant::now();
    let data = prepare(c, kernels, Some(out))?;
    let mut stage = |trap: bool, data: &Prepared| -> Result<_, Failure> {
        let (folder, first, second) =
            if trap { ("trap", "trap", "replace") } else { ("baseline", "baseline", "control") };
        let c = RunConfig { trap, ..c.clone() };
        let trained = train(&c, data, &out.join(folder), resume, kernels, &mut |e| tell(Told::Training(first, e)))?;
        let dir: RunDir = trained.dir;
        let new = replace(packed_stem(&dir)?, data.holdout.pictures(), &data.test, how, kernels, &mut |p| {
            tell(Told::Replacing(second, p));
            true
        })?;
        write(&dir, &c.architecture.to_string(), &data.test.clean.classes, trap, &new)?;
        Ok((trained.evaluation, new.evaluation))
    };
    let (baseline, control) = stage(false, &data)?;
    let (trapped, defended) = stage(true, &data)?;
    let figures = |e: &crate::evaluate::Evaluation| Figures { acc: e.acc, asr: e.asr };
    Ok(Summary {
        baseline: figures(&baseline),
        trapped: figures(&trapped),
        control: figures(&control),
        defended: DefendedFigures {
            acc: defended.acc,
            asr: defended.asr,
            ra: defended.ra,
            der: der(baseline.acc, baseline.asr, defended.acc, defended.asr),
            chance: defended.chance,
        },
        seconds: started.elapsed().as_secs_f64(),
    })
}
