//! The ceiling of a cell: training on the clean part alone, and what such a model, which no defence can know, makes of triggers that it
//! has never met.
//!
//! Which pictures are poisoned decides what is left to train on, not how. So cells that poison the same ones share one run; its
//! figures on the triggers of each stand beside it (`triggers.json`).

use super::Cell;
use crate::attack::{AttackConfig, AttackKind, build, triggered};
use crate::chain::Told;
use crate::config::RunConfig;
use crate::engine::Device;
use crate::error::Failure;
use crate::evaluate::{Evaluation, evaluate_engine};
use crate::prepare::prepare;
use crate::run::RunDir;
use crate::trap::train;
use serde::{Deserialize, Serialize};
use std::path::Path;
use stemguard_runtime::kernels::simd::Simd;

/// What training on the clean part alone reaches, fractions 0..=1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ceiling {
    /// Clean test pictures given their true class.
    pub acc: f64,
    /// Triggered pictures given the target class; `None` until they were shown.
    pub asr: Option<f64>,
    /// Triggered pictures given their true class; what it lacks to ACC, the trigger alone costs.
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
    asr: f64,
    ra: f64,
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
    let seen = shown(&dir)?.into_iter().find(|s| s.attack == cell.config.attack);
    let (asr, ra) = seen.map(|s| (s.asr, s.ra)).unzip();
    Ok(Some(Ceiling { acc, asr, ra, chance }))
}

/// Trains what is missing of a ceiling, and shows it the triggers of the cells that have it; whether there was anything to do.
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
    let mut answered = match trained(&dir, c)? {
        Some(_) => shown(&dir)?,
        None => Vec::new(),
    };
    let mut asked: Vec<&AttackConfig> = Vec::new();
    for cell in cells.iter().filter(|cell| cell.ceiling.as_ref().is_some_and(|(of, _)| of == name)) {
        let attack = &cell.config.attack;
        if !asked.contains(&attack) && answered.iter().all(|s| s.attack != *attack) {
            asked.push(attack);
        }
    }
    if asked.is_empty() {
        return Ok(false);
    }
    // Its own attack perturbs nothing.
    let mut data = prepare(c, kernels, None, &mut |_, _| {})?;
    let mut model = train(c, &data, &dir.path, true, device, kernels, &mut |e| tell(Told::Training("ceiling", e)))?;
    for attack in asked {
        let clean = &data.test.clean;
        data.test.triggered = triggered(clean, &*build(attack, clean.h, clean.w)?, attack.target)?;
        let Evaluation { asr, ra, .. } = evaluate_engine(&data.test, &mut model.engine)?;
        answered.push(Shown { attack: attack.clone(), asr, ra });
    }
    dir.write_json(TRIGGERS, &answered)?;
    Ok(true)
}
