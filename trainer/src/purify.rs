//! Purification: the accused are unlearned, dropped or relabelled, from the trapped stem on, with a fresh head.
//!
//! ```text
//! trapped model -> audit -> accused -> purify (a course of a few epochs) -> audit again -> ... -> purified model
//! ```
//!
//! A round trains on the suspects and the clean holdout together, and on copies that wear what the accused have in common
//! ([`crate::imprint`]) with the labels they had: the accused are unlearned, and the trigger becomes something to look past. After
//! it a new head on the purified stem is asked again: the accused whose given label it would give too are readmitted, the doubtful
//! whose label it would not give are accused. Rounds end when verdicts settle.

mod material;
mod rounds;

pub use rounds::admits;

use crate::audit::{Audit, DOUBT, Verdict};
use crate::config::RunConfig;
use crate::course::{Course, Event};
use crate::defend::{Defended, Evidence, Frozen, Replacement, packed_onnx, packed_stem, put_models, replace};
use crate::engine::{CpuEngine, Device, Engine, State};
use crate::error::Failure;
use crate::evaluate::{Alarms, Evaluation};
use crate::export;
use crate::prepare::Prepared;
use crate::run::{Exchange, RunDir, StageResult};
use crate::trap::{Site, engine, fingerprint};
use material::{Opinion, material};
use serde::{Deserialize, Serialize};
use std::time::Instant;
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::replace::Progress;

/// What happens to the accused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Their given label is unlearned: the loss is `-log(1 - p)`.
    Unlearn,
    /// They are left out.
    Drop,
    /// They are unlearned in the first round; later ones give them the label that a new head on the stem so cleaned gives them.
    Relabel,
}

impl Mode {
    /// The fewest rounds that do what it says.
    pub fn least_rounds(self) -> u32 {
        if self == Self::Relabel { 2 } else { 1 }
    }

    /// Most rounds, where nobody says how many.
    pub fn default_rounds(self) -> u32 {
        Purification::default().rounds.max(self.least_rounds())
    }
}

/// Rounds are no more.
const MOST_ROUNDS: u32 = 3;

/// How a run is purified.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Purification {
    /// What happens to the accused.
    pub mode: Mode,
    /// Passes over the data of one round.
    pub epochs: u32,
    /// Most rounds.
    pub rounds: u32,
    /// Pictures copied with the trigger that the accused show, as a share of those trusted, 0..=1.
    pub inoculate: f32,
}

impl Default for Purification {
    fn default() -> Self {
        Self { mode: Mode::Unlearn, epochs: 6, rounds: 1, inoculate: 1.0 }
    }
}

impl Purification {
    /// Checks ranges that types do not.
    ///
    /// # Errors
    /// A sentence that names the setting.
    pub fn check(&self) -> Result<(), String> {
        match self {
            p if !(1..=1000).contains(&p.epochs) => Err("--purify-epochs is not within 1..1000".into()),
            p if !(1..=MOST_ROUNDS).contains(&p.rounds) => Err("--rounds is not within 1..3".into()),
            p if p.rounds < p.mode.least_rounds() => {
                Err("--rounds 1 is too few for mode relabel: the first cleans the model that gives the labels".into())
            }
            p if !(0.0..=1.0).contains(&p.inoculate) => Err("--inoculate is not within 0..1".into()),
            _ => Ok(()),
        }
    }
}

/// What one round did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// Pictures accused while it trained.
    pub accused: usize,
    /// Pictures left out of it: not accused, but not trusted.
    pub doubtful: usize,
    /// Copies that wore what the accused have in common.
    pub inoculated: usize,
    /// Doubtful pictures accused after it.
    pub newly_accused: usize,
    /// Pictures readmitted after it.
    pub readmitted: usize,
    /// Figures of its model with its own head.
    pub evaluation: Evaluation,
    /// Seconds it took, the audit after it included.
    pub seconds: f64,
}

/// A purified model.
pub struct Purified {
    /// The engine that holds it.
    pub engine: CpuEngine,
    /// Its figures, with its own head.
    pub evaluation: Evaluation,
    /// Round by round.
    pub rounds: Vec<Round>,
    /// Its tripwire.
    pub tripwire: Watch,
}

/// The tripwire of a purified model. It has no head that learnt the backdoor: its witness is taught on what was accused, on the
/// features of the purified stem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Watch {
    /// Share of the accused that the witness was not taught which it finds, 0..=1; below a half it is not kept. `None` where too few
    /// were accused, or the head is of another build than the runtime's heads.
    pub found: Option<f64>,
    /// What it says of the test pictures, where it is kept.
    pub alarms: Option<Alarms>,
}

impl std::fmt::Display for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.alarms, self.found) {
            (Some(alarms), _) => alarms.fmt(f),
            (None, Some(found)) => {
                let found = 100.0 * found;
                write!(f, "none; a witness taught on the accused finds {found:.1} % of those it was not taught")
            }
            (None, None) => {
                f.write_str("none; too few are accused to teach a witness, or the head is not the runtime's")
            }
        }
    }
}

/// What purification tells while it runs.
pub enum Told<'a> {
    /// A round (from 1) trains.
    Training(u32, Event<'a>),
    /// A new head judges again.
    Replacing(Progress),
}

/// A model to start from: stem and decoder as they were, the head drawn anew from `seed`, no optimiser moments.
fn fresh_head(c: &RunConfig, data: &Prepared, from: &State, seed: u64, kernels: &Simd) -> Result<CpuEngine, Failure> {
    let mut engine = engine(&RunConfig { seed, ..c.clone() }, data, kernels)?;
    let mut state = engine.state()?;
    for (name, values) in &mut state.tensors {
        let kept = name.starts_with("stem.") || name.starts_with("decoder.");
        if let Some(old) = from.tensors.get(name).filter(|_| kept) {
            values.clone_from(old);
        }
    }
    engine.restore(&state)?;
    Ok(engine)
}

/// Readmits the accused whose given label a head that never saw the trigger would give too, and trusts them from then on (their
/// score is 0); accuses the doubtful whose label it would not give. How many of each: newly accused, readmitted.
fn reconsider(accused: &mut [bool], score: &mut [f32], labels: &[u32], new_label: &[u32]) -> (usize, usize) {
    let (mut anew, mut readmitted) = (0, 0);
    for (i, accused) in accused.iter_mut().enumerate() {
        let same = new_label[i] == labels[i];
        if *accused && same {
            *accused = false;
            score[i] = 0.0;
            readmitted += 1;
        } else if !*accused && !same && score[i] > DOUBT {
            *accused = true;
            anew += 1;
        }
    }
    (anew, readmitted)
}

/// How a run was purified, and of whom: what [`purify`] records.
pub const PURIFIED: &str = "purify.json";

/// The purified stem.
const STEM: &str = "purified-stem.onnx";

/// Stream of the seed for a round's head and order.
const ROUND: u64 = 0x7075_7269;

/// The purified network as files of the run, and its tripwire. Its stem goes the way every stem goes; a head of another build than the
/// runtime's stays in ONNX.
fn put(
    files: &mut Exchange<'_>,
    dir: &RunDir,
    c: &RunConfig,
    evidence: &Evidence<'_>,
    evaluation: &Evaluation,
    tell: &mut dyn FnMut(Progress),
) -> Result<Watch, Failure> {
    let stem_bytes = export::stem(evidence.net)?;
    let mut watch = Watch::default();
    match export::residual_head(evidence.net) {
        Some(head) => {
            let (stem, evaluation, seconds) = (packed_onnx(&dir.file(STEM), &stem_bytes)?, evaluation.clone(), 0.0);
            let mut model = Defended { stem, head, evaluation, tripwire: None, seconds };
            watch.found = model.watch(evidence, &mut |e| {
                tell(e);
                true
            })?;
            watch.alarms = model.tripwire.as_ref().map(|t| t.alarms);
            let Defended { stem, head, tripwire, .. } = &model;
            let (name, classes) = (c.architecture.to_string(), &evidence.holdout.classes);
            put_models(files, "purified", &name, classes, stem, head, tripwire.as_ref())?;
        }
        None => files.put("purified.onnx", &export::classifier(evidence.net)?)?,
    }
    files.put(STEM, &stem_bytes)?;
    Ok(watch)
}

/// Purifies a trapped run in `RUN/purify`; writes `purified-stem.onnx`, `purified.onnx` and, where its head is one of the runtime's,
/// `purified.sgm`.
///
/// # Errors
/// [`Failure`] naming what went wrong; whole rounds stay and are gone on from with `resume`.
#[allow(clippy::too_many_arguments)]
pub fn purify(
    dir: &RunDir,
    c: &RunConfig,
    data: &Prepared,
    trapped: &State,
    found: &Audit,
    how: &Replacement,
    p: &Purification,
    resume: bool,
    device: Device,
    kernels: &Simd,
    tell: &mut dyn FnMut(Told<'_>),
) -> Result<Purified, Failure> {
    p.check().map_err(Failure::Input)?;
    let started = Instant::now();
    let work = rounds::begin(dir, p, how, resume)?;
    let (suspects, holdout) = (data.suspect.pictures(), data.holdout.pictures());
    let mut accused = found.verdict.accused.clone();
    let mut score = found.verdict.score.clone();
    let mut new_label = found.signals.new_label.clone();
    let mut from = trapped.clone();
    let mut rounds: Vec<Round> = Vec::new();
    let (mut last, mut before) = (None, 0.0);
    // Of all rounds so far.
    let mut mark = String::new();
    for number in 1..=p.rounds {
        let clock = Instant::now();
        let config =
            RunConfig { epochs: p.epochs, seed: c.seed ^ (ROUND << number), every: p.epochs, guard: None, ..c.clone() };
        let opinion = Opinion { accused: &accused, score: &score, new_label: &new_label };
        let mode = if number < p.mode.least_rounds() { Mode::Unlearn } else { p.mode };
        let m = material(suspects, &opinion, holdout, &Purification { mode, ..*p }, config.seed)?;
        // Whether more rounds follow does not change this one.
        let lesson = Purification { rounds: 1, ..*p };
        let doubted: Vec<bool> = score.iter().map(|&s| s > DOUBT).collect();
        mark = fingerprint(&(&config, lesson, (&accused, &doubted), (&m.pictures.labels, &m.forget), &mark));
        let round = rounds::make(&work, number, &mark)?;
        let (pictures, forget) = (&m.pictures, &m.forget);
        let course = Course { config: &config, pictures, forget, clean: &[], dir: &round, fingerprint: &mark };
        let mut engine = fresh_head(&config, data, &from, config.seed, kernels)?;
        let done = course.resume(&mut engine)?;
        let earlier = course.seconds(done)?;
        let mut site = Site::open(device, &config, &engine)?;
        let told = &mut |e: Event<'_>| tell(Told::Training(number, e));
        let evaluation = site.run(&course, &mut engine, done, &data.test, told)?;
        let mut result = Round {
            accused: accused.iter().filter(|&&a| a).count(),
            doubtful: m.doubtful,
            inoculated: m.inoculated,
            newly_accused: 0,
            readmitted: 0,
            evaluation,
            seconds: 0.0,
        };
        if number < p.rounds {
            let stem = Frozen { packed: packed_stem(&round, &engine.net)?, device, net: &engine.net };
            let new = replace(stem, holdout, &data.test, how, kernels, &mut |e| {
                tell(Told::Replacing(e));
                true
            })?;
            new_label = new.answers(suspects, kernels)?;
            (result.newly_accused, result.readmitted) =
                reconsider(&mut accused, &mut score, &suspects.labels, &new_label);
            from = engine.state()?;
        }
        result.seconds = earlier + clock.elapsed().as_secs_f64();
        before += earlier;
        let settled = result.newly_accused + result.readmitted == 0 && number >= p.mode.least_rounds();
        last = Some((engine, result.evaluation.clone()));
        rounds.push(result);
        if settled {
            break;
        }
    }
    let Some((engine, evaluation)) = last else { return Err(Failure::input("--rounds", "is 0")) };
    let mut files = Exchange::new(dir);
    let (net, test) = (&engine.net, &data.test);
    let verdict = &Verdict { classes: found.verdict.classes.clone(), score, accused };
    let evidence = Evidence { device, net, suspects, verdict, holdout, test, how, kernels };
    let tripwire = put(&mut files, dir, c, &evidence, &evaluation, &mut |e| tell(Told::Replacing(e)))?;
    files.put_json(
        PURIFIED,
        &serde_json::json!({ "purification": p, "rounds": rounds, "tripwire": tripwire, "audit": found.summary(None).mark() }),
    )?;
    files.make(StageResult {
        name: "purified".into(),
        evaluation: evaluation.clone(),
        tripwire: tripwire.alarms,
        seconds: before + started.elapsed().as_secs_f64(),
    })?;
    rounds::end(&work);
    Ok(Purified { engine, evaluation, rounds, tripwire })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_accused_and_the_doubtful_are_reconsidered() {
        let mut accused = [true, true, false, false, false];
        let mut score = [0.9, 0.6, 0.3, 0.3, 0.0];
        let counts = reconsider(&mut accused, &mut score, &[1, 1, 1, 1, 1], &[1, 0, 0, 1, 0]);
        assert_eq!((counts, accused), ((1, 1), [false, true, true, false, false]));
        // Who is readmitted is trained on again.
        assert!(score[0] < DOUBT && score[1] > DOUBT);
    }

    #[test]
    fn a_round_keeps_stem_and_decoder_and_draws_a_head_of_its_own() {
        let (c, kernels) = (RunConfig { holdout: 0.2, ..RunConfig::published("signs:100".into()) }, Simd::new(1));
        let data = crate::prepare::prepare(&c, &kernels, None, &mut |_, _| {}).expect("data");
        let mut trapped = engine(&c, &data, &kernels).expect("an engine").state().expect("a state");
        // As after training: nothing is where it was drawn, and there are moments and steps.
        trapped.tensors.values_mut().flatten().for_each(|v| *v += 0.5);
        trapped.steps = 7;
        let round = |seed| fresh_head(&c, &data, &trapped, seed, &kernels).and_then(|mut e| Ok(e.state()?));
        let [one, same, other] = [3, 3, 4].map(|seed| round(seed).expect("an engine"));
        assert!(one.tensors == same.tensors && one.steps == 0);
        assert!(one.tensors.keys().eq(trapped.tensors.keys()));
        let moments = |name: &str| name.starts_with("first.") || name.starts_with("second.");
        assert!(one.tensors.iter().filter(|(name, _)| moments(name)).all(|(_, m)| m.iter().all(|&v| v == 0.0)));
        let mut kept = [0, 0];
        for (name, values) in &one.tensors {
            let whole = name.starts_with("stem.") || name.starts_with("decoder.");
            assert_eq!(values == &trapped.tensors[name], whole, "{name}");
            kept[usize::from(whole)] += 1;
        }
        assert!(kept.iter().all(|&n| n > 0), "{kept:?}");
        let drawn = |name: &&String| name.starts_with("head.") && one.tensors[*name] != other.tensors[*name];
        assert!(one.tensors.keys().any(|name| drawn(&name)), "the seed draws the head");
    }

    #[test]
    fn settings_out_of_range_are_named() {
        for (p, word) in [
            (Purification { epochs: 0, ..Purification::default() }, "--purify-epochs"),
            (Purification { rounds: 4, ..Purification::default() }, "--rounds"),
            (Purification { mode: Mode::Relabel, ..Purification::default() }, "mode relabel"),
            (Purification { inoculate: f32::NAN, ..Purification::default() }, "--inoculate"),
        ] {
            assert!(p.check().expect_err("refused").contains(word));
        }
        assert_eq!(Purification::default().check(), Ok(()));
    }
}
