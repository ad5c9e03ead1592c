//! The whole chain on one data set: plant, train, trap, replace, audit, purify, with the control beside it.

use crate::audit::{self, Audit, Prior, witness};
use crate::config::RunConfig;
use crate::course::guarded;
use crate::defend::{Defended, EXAMINED, Evidence, Frozen, Replacement, Sharpening, packed_stem, replace, write};
use crate::engine::{CpuEngine, Device, Engine as _};
use crate::error::Failure;
use crate::evaluate::{Alarms, Evaluation};
use crate::prepare::{Prepared, prepare};
use crate::purify::{self, Purification, Watch, purify};
use crate::run::RunDir;
use crate::trap::{Event, Trained, train};
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

/// A defended model's figures.
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
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The undefended model.
    pub baseline: Figures,
    /// The trapped model with its own head.
    pub trapped: Figures,
    /// A head replaced on the undefended stem.
    pub control: Figures,
    /// The head replaced on the trapped stem: without a guard, the two published stages alone.
    pub replaced: DefendedFigures,
    /// Its tripwire, as it stays.
    pub tripwire: Option<Alarms>,
    /// The audit of the suspects.
    pub audit: audit::Summary,
    /// The purified model: the end of the chain.
    pub defended: DefendedFigures,
    /// Its tripwire.
    pub defended_tripwire: Watch,
    /// Wall-clock seconds of everything.
    pub seconds: f64,
}

/// What the chain tells while it runs.
pub enum Told<'a> {
    /// A training stage begins or goes on.
    Training(&'static str, Event<'a>),
    /// A head is being replaced.
    Replacing(&'static str, Progress),
    /// Pictures gone through, of so many: by the audit, or by what `cl` perturbs with.
    Pictures(&'static str, usize, usize),
}

/// What comes after the trap.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The head replaced on the trapped stem.
    pub replaced: Evaluation,
    /// Its tripwire, as it stays; `None` where it is of another build than the runtime's heads.
    pub tripwire: Option<Alarms>,
    /// The audit.
    pub audit: audit::Summary,
    /// The purified model.
    pub purified: Evaluation,
    /// Its tripwire.
    pub watch: Watch,
}

/// What a tripwire says of the test pictures.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Tripwires {
    /// With the trapped head.
    pub trapped_head: Option<Alarms>,
    /// What made the choice, where another witness was taught.
    pub sharpening: Option<Sharpening>,
    /// With the witness that stays.
    pub alarms: Option<Alarms>,
}

/// A model whose head was replaced and whose suspects were audited.
pub struct Examined {
    /// The head replaced on its stem.
    pub replaced: Evaluation,
    /// The tripwire beside it; none on an undefended model, or where the head is of another build than the runtime's heads.
    pub tripwires: Tripwires,
    /// The audit.
    pub found: Audit,
}

/// Replaces the head of a model, audits with both heads, and sharpens the tripwire with what was found; then writes all of it.
///
/// # Errors
/// Those of the stages.
#[allow(clippy::too_many_arguments)]
pub fn examine(
    dir: &RunDir,
    c: &RunConfig,
    data: &Prepared,
    trapped: &mut CpuEngine,
    how: &Replacement,
    device: Device,
    kernels: &Simd,
    tell: &mut dyn FnMut(Told<'_>),
) -> Result<Examined, Failure> {
    let holdout = data.holdout.pictures();
    let stem = Frozen { packed: packed_stem(dir, &trapped.net)?, device, net: &trapped.net };
    let mut new = replace(stem, holdout, &data.test, how, kernels, &mut |p| {
        tell(Told::Replacing("replace", p));
        true
    })?;
    if c.trap {
        new.keep_trapped(&trapped.net, holdout, &data.test, how.alarm_fpr, kernels)?;
    }
    let trapped_head = new.tripwire.as_ref().map(|t| t.alarms);
    let told = &mut |done, of| tell(Told::Pictures("audit", done, of));
    let judged = guarded(c, dir, c.epochs, data.suspect.pictures(), data.proportions())?;
    let prior = judged.as_ref().map(|verdict| Prior { verdict, stands: true });
    let found = witness(dir, c, data, trapped, &new.head, prior, device, kernels, told)?;
    let (net, suspects, verdict, test) = (&trapped.net, data.suspect.pictures(), &found.verdict, &data.test);
    let evidence = Evidence { device, net, suspects, verdict, holdout, test, how, kernels };
    let sharpening = new.sharpen(&evidence, &mut |p| {
        tell(Told::Replacing("tripwire", p));
        true
    })?;
    let tripwires = Tripwires { trapped_head, sharpening, alarms: new.tripwire.as_ref().map(|t| t.alarms) };
    write(dir, c, &data.test.clean.classes, &new, how, |files| {
        found.put(files, data)?;
        files.put_json(EXAMINED, &tripwires)
    })?;
    Ok(Examined { replaced: new.evaluation, tripwires, found })
}

/// Replaces, audits and purifies a trapped model.
///
/// # Errors
/// Those of the stages.
#[allow(clippy::too_many_arguments)]
pub fn finish(
    dir: &RunDir,
    c: &RunConfig,
    data: &Prepared,
    trapped: &mut CpuEngine,
    how: &Replacement,
    p: &Purification,
    resume: bool,
    device: Device,
    kernels: &Simd,
    tell: &mut dyn FnMut(Told<'_>),
) -> Result<Outcome, Failure> {
    // The audit replaces what is there.
    purify::admits(dir, p, how, resume)?;
    let Examined { replaced, tripwires, found } = examine(dir, c, data, trapped, how, device, kernels, tell)?;
    let purified =
        purify(dir, c, data, &trapped.state()?, &found, how, p, resume, device, kernels, &mut |told| match told {
            purify::Told::Training(_, e) => tell(Told::Training("purify", e)),
            purify::Told::Replacing(p) => tell(Told::Replacing("witness", p)),
        })?;
    // The list of pictures stays in audit.json.
    let audit = audit::Summary { accused_pictures: Vec::new(), ..found.summary(Some(&data.truth)) };
    let (watch, purified) = (purified.tripwire, purified.evaluation);
    Ok(Outcome { replaced, tripwire: tripwires.alarms, audit, purified, watch })
}

/// What is trained before the head of the trapped model is replaced.
pub struct Begun {
    /// The data of both runs.
    pub data: Prepared,
    /// The undefended model.
    pub baseline: Trained,
    /// A head replaced on its stem.
    pub control: Defended,
    /// The trapped model.
    pub trapped: Trained,
}

/// Trains baseline and trap into `out/baseline` and `out/trap`, and the control beside the baseline; networks and heads train on
/// `device`, figures of what is shipped come from the CPU.
///
/// # Errors
/// Those of the stages.
pub fn begin(
    c: &RunConfig,
    how: &Replacement,
    out: &Path,
    resume: bool,
    device: Device,
    kernels: &Simd,
    tell: &mut dyn FnMut(Told<'_>),
) -> Result<Begun, Failure> {
    let (plain, c) = (c.undefended(), c.trapped());
    RunDir::admits(&out.join("baseline"), &plain, resume)?;
    RunDir::admits(&out.join("trap"), &c, resume)?;
    let data = prepare(&c, kernels, Some(out), &mut |done, of| tell(Told::Pictures("perturb", done, of)))?;
    how.check(data.holdout.pictures())?;
    let baseline = train(&plain, &data, &out.join("baseline"), resume, device, kernels, &mut |e| {
        tell(Told::Training("baseline", e))
    })?;
    let stem = Frozen { packed: packed_stem(&baseline.dir, &baseline.engine.net)?, device, net: &baseline.engine.net };
    let control = replace(stem, data.holdout.pictures(), &data.test, how, kernels, &mut |p| {
        tell(Told::Replacing("control", p));
        true
    })?;
    write(&baseline.dir, &plain, &data.test.clean.classes, &control, how, |_| Ok(()))?;
    let trapped =
        train(&c, &data, &out.join("trap"), resume, device, kernels, &mut |e| tell(Told::Training("trap", e)))?;
    Ok(Begun { data, baseline, control, trapped })
}

/// Runs the whole chain below `out`: [`begin`], then [`finish`], where the heads testify on `device`, too.
///
/// # Errors
/// Those of the stages.
#[allow(clippy::too_many_arguments)]
pub fn run(
    c: &RunConfig,
    how: &Replacement,
    p: &Purification,
    out: &Path,
    resume: bool,
    device: Device,
    kernels: &Simd,
    tell: &mut dyn FnMut(Told<'_>),
) -> Result<Summary, Failure> {
    let started = Instant::now();
    purify::admits(&RunDir { path: out.join("trap") }, p, how, resume)?;
    let Begun { data, baseline, control, mut trapped } = begin(c, how, out, resume, device, kernels, tell)?;
    let c = c.trapped();
    let end = finish(&trapped.dir, &c, &data, &mut trapped.engine, how, p, resume, device, kernels, tell)?;
    let before = &baseline.evaluation;
    let figures = |e: &Evaluation| Figures { acc: e.acc, asr: e.asr };
    let defended = |e: &Evaluation| DefendedFigures {
        acc: e.acc,
        asr: e.asr,
        ra: e.ra,
        der: der(before.acc, before.asr, e.acc, e.asr),
        chance: e.chance,
    };
    Ok(Summary {
        baseline: figures(before),
        trapped: figures(&trapped.evaluation),
        control: figures(&control.evaluation),
        replaced: defended(&end.replaced),
        tripwire: end.tripwire,
        audit: end.audit,
        defended: defended(&end.purified),
        defended_tripwire: end.watch,
        seconds: started.elapsed().as_secs_f64(),
    })
}
