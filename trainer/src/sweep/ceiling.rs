//! The ceiling of a cell: training on the clean part alone, and what such a model, which no defence can know, makes of triggers that it
//! has never met.
//!
//! Which pictures are poisoned decides what is left to train on, not how. So cells that poison the same ones share one run; its
//! figures on the triggers of each stand beside it (`triggers.json`).

use super::Cell;
use crate::attack::{AttackConfig, AttackKind, build, triggered};
use crate::chain::Told;
use crate::checkpoint::CHECKPOINT;
use crate::config::RunConfig;
use crate::engine::{Device, Engine as _};
use crate::error::Failure;
use crate::evaluate::{Evaluation, on_triggered};
use crate::prepare::{first_digits, prepare};
use crate::run::RunDir;
use crate::trap::{Event, restore, train};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::path::Path;
use stemguard_runtime::kernels::simd::Simd;

/// What training on the clean part alone reaches, fractions 0..=1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ceiling {
    /// Clean test pictures given their true class.
    pub acc: f64,
    /// Triggered pictures given the target class; `None` until they were shown.
    pub asr: Option<f64>,
    /// Triggered pictures given their true class; what it lacks to ACC, about so much the trigger alone costs.
    pub ra: Option<f64>,
    /// Clean pictures of other classes given the target class.
    pub chance: f64,
}

impl Ceiling {
    /// Of a model that was shown the cell's own triggers.
    pub(super) fn of(e: &Evaluation) -> Self {
        Self { acc: e.acc, asr: Some(e.asr), ra: Some(e.ra), chance: e.chance }
    }
}

/// The file of a ceiling's run with its answers to triggers.
const TRIGGERS: &str = "triggers.json";

/// What triggered pictures of one attack are taken for, fractions 0..=1.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Shown {
    attack: AttackConfig,
    /// Hash of the file that the trigger came from, where it came from one.
    file: Option<String>,
    asr: f64,
    ra: f64,
}

impl Shown {
    /// Whether it is of this attack, its trigger as it is now; of a file that is gone, as it was.
    fn is_of(&self, attack: &AttackConfig) -> bool {
        self.attack == *attack && hash(attack).is_none_or(|now| self.file.as_ref() == Some(&now))
    }
}

/// SHA-256 of a trigger's file, the first 16 hexadecimal digits.
fn hash(attack: &AttackConfig) -> Option<String> {
    let bytes = std::fs::read(attack.trigger.as_ref()?).ok()?;
    Some(first_digits(Sha256::new_with_prefix(bytes)))
}

fn shown(dir: &RunDir) -> Result<Vec<Shown>, Failure> {
    if dir.file(TRIGGERS).exists() { dir.read_json(TRIGGERS) } else { Ok(Vec::new()) }
}

fn trained(dir: &RunDir, c: &RunConfig) -> Result<Option<Evaluation>, Failure> {
    RunDir::admits(&dir.path, c, true)?;
    Ok(dir.results()?.stages.into_iter().find(|s| s.name == "ceiling").map(|s| s.evaluation))
}

/// The run that trains on the clean part alone, and its name; none without an attack. The kind of attack stands for all that poison
/// the same pictures.
pub(super) fn run(c: &RunConfig, setting: &str) -> Option<(String, RunConfig)> {
    let (of, kind) = match c.attack.kind {
        AttackKind::None => return None,
        kind if kind.clean_label() => ("ceiling-clean-label", AttackKind::Sig),
        _ => ("ceiling", AttackKind::BadnetGrid),
    };
    let mut c = RunConfig { oracle: true, ..c.undefended() };
    (c.attack.kind, c.attack.trigger) = (kind, None);
    Some((format!("{of}-{}-{setting}-{}", c.attack.rate, c.seed), c))
}

/// The figures of a cell's ceiling, if it is trained.
pub(super) fn figures(cell: &Cell, out: &Path) -> Result<Option<Ceiling>, Failure> {
    let Some((name, c)) = &cell.ceiling else { return Ok(None) };
    let dir = RunDir { path: out.join(name) };
    let Some(Evaluation { acc, chance, .. }) = trained(&dir, c)? else { return Ok(None) };
    let seen = shown(&dir)?.into_iter().find(|s| s.is_of(&cell.config.attack));
    let (asr, ra) = seen.map(|s| (s.asr, s.ra)).unzip();
    Ok(Some(Ceiling { acc, asr, ra, chance }))
}

/// Trains a ceiling where it is not, and shows it the triggers of the cells that have it, all but those it was shown before; whether there
/// was anything to do. A trained one that has no checkpoint any more is left as it is.
pub(super) fn complete(
    name: &str,
    c: &RunConfig,
    cells: &[Cell],
    out: &Path,
    device: Device,
    kernels: &Simd,
    tell: &mut dyn FnMut(Told<'_>),
) -> Result<bool, Failure> {
    let dir = RunDir { path: out.join(name) };
    let is_trained = trained(&dir, c)?.is_some();
    let mut asked: Vec<&AttackConfig> = Vec::new();
    for cell in cells.iter().filter(|cell| cell.ceiling.as_ref().is_some_and(|(of, _)| of == name)) {
        let attack = &cell.config.attack;
        if !asked.contains(&attack) {
            asked.push(attack);
        }
    }
    let missing = |answered: &[Shown]| -> Vec<&AttackConfig> {
        asked.iter().filter(|attack| answered.iter().all(|s| !s.is_of(attack))).copied().collect()
    };
    if is_trained && (missing(&shown(&dir)?).is_empty() || !dir.file(CHECKPOINT).exists()) {
        return Ok(false);
    }
    // Its own attack perturbs nothing.
    let data = prepare(c, kernels, None, &mut |_, _| {})?;
    // Nobody else writes there from here on.
    let (mut engine, _claim) = if is_trained {
        let claim = dir.claim()?;
        let (_, record) = RunDir::open(&dir.path)?;
        (restore(&dir, &record, &data, kernels)?.0, claim)
    } else {
        let mut training = |e: Event<'_>| tell(Told::Training("ceiling", e));
        let done = train(c, &data, &dir.path, true, device, kernels, &mut training)?;
        (done.engine, done.claim)
    };
    // What an earlier training was shown is not of this one.
    let mut answered = if is_trained { shown(&dir)? } else { Vec::new() };
    let asked = missing(&answered);
    for (i, &attack) in asked.iter().enumerate() {
        tell(Told::Pictures("triggers", i, asked.len()));
        let (clean, target) = (&data.test.clean, attack.target);
        let pictures = triggered(clean, &*build(attack, clean.h, clean.w)?, target)?;
        let answers = engine.answers(&pictures)?;
        let [asr, ra] = on_triggered(&pictures.labels, target, &answers);
        answered.retain(|s| s.attack != *attack);
        answered.push(Shown { attack: attack.clone(), file: hash(attack), asr, ra });
        dir.write_json(TRIGGERS, &answered)?;
    }
    Ok(true)
}
