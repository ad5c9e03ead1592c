//! What cells of a sweep share. A run comes to what its configuration says, whichever cell it belongs to: a cell whose baseline or trap
//! another one has trained takes that over, and goes on behind it. A guard that never accuses changes nothing: the trap that it watched
//! is also the one without it, to the bit.

use super::Cell;
use crate::checkpoint::{self, write_whole};
use crate::config::RunConfig;
use crate::course::ever_accused;
use crate::error::Failure;
use crate::perturb;
use crate::run::{EpochLine, Record, Results, RunDir, StageResult, prepare};
use crate::trap::fingerprint;
use std::path::Path;
use stemguard_runtime::kernels::simd::Simd;

/// Files that training leaves in a run directory, whether with a guard or without, beside its results, record, metrics and checkpoint.
const TRAINED: [&str; 4] = ["split.json", "truth.json", "holdout.npz", "fitting.npy"];
/// What is copied beside them where the configuration is the same.
const ALIKE: [&str; 4] = ["run.json", "metrics.jsonl", "guard.json", CHECKPOINT];
/// What training goes on from.
const CHECKPOINT: &str = "checkpoint.safetensors";

/// Copies what exists of `files` from one directory to another.
fn copy(files: &[&str], from: &Path, to: &Path) -> Result<(), Failure> {
    for name in files {
        let path = from.join(name);
        if path.exists() {
            let bytes = std::fs::read(&path).map_err(|e| Failure::file(&path, format!("cannot be read: {e}")))?;
            write_whole(&to.join(name), &bytes)?;
        }
    }
    Ok(())
}

/// One of the two runs that a cell trains.
struct Run {
    /// Its directory in the cell's.
    part: &'static str,
    /// The stage that its results have once it is trained.
    stage: &'static str,
    config: RunConfig,
}

/// Baseline and trap of a cell.
fn runs(cell: &Cell) -> [Run; 2] {
    let (baseline, trap) = (cell.config.undefended(), cell.config.trapped());
    [Run { part: "baseline", stage: "trained", config: baseline }, Run { part: "trap", stage: "trapped", config: trap }]
}

/// Whether a run is another one without its guard.
fn unguarded(run: &RunConfig, other: &RunConfig) -> bool {
    run.guard.is_none() && other.guard.is_some() && *run == RunConfig { guard: None, ..other.clone() }
}

/// Whether the first cell may be able to take over what the other trains.
pub(super) fn may_take(a: &Cell, b: &Cell) -> bool {
    runs(a).iter().zip(&runs(b)).any(|(a, b)| a.config == b.config || unguarded(&a.config, &b.config))
}

/// The record of a whole run of this cell's part and its figures, if there is one.
fn trained(cell: &Cell, place: usize, out: &Path) -> Option<(RunDir, Record, StageResult)> {
    let Run { part, stage, config } = runs(cell).into_iter().nth(place)?;
    let dir = RunDir { path: out.join(&cell.name).join(part) };
    let done = dir.results().ok()?.stages.into_iter().find(|s| s.name == stage)?;
    let (dir, record) = RunDir::open(&dir.path).ok()?;
    (record.config == config).then_some((dir, record, done))
}

/// Whether the guard of a whole run never accused.
fn idle(dir: &RunDir, c: &RunConfig, kernels: &Simd) -> Result<bool, Failure> {
    let data = prepare(c, kernels, Some(&dir.kept(c)))?;
    Ok(!ever_accused(c, dir, data.suspect.pictures(), &data.holdout.pictures().labels)?)
}

/// Writes a run without its guard, which never accused, as what it also is: one that had none.
fn unwatched(from: &RunDir, old: Record, config: &RunConfig, to: &RunDir) -> Result<(), Failure> {
    let (state, epochs) = checkpoint::read(&from.file(CHECKPOINT), &fingerprint(&(&old.config, old.counts)))?;
    let record = Record { config: config.clone(), ..old };
    checkpoint::write(&to.file(CHECKPOINT), &state, epochs, &fingerprint(&(&record.config, record.counts)))?;
    to.write_metrics(&from.metrics()?.into_iter().map(|l| EpochLine { unlearned: None, ..l }).collect::<Vec<_>>())?;
    to.write_json("run.json", &record)
}

/// Brings what other cells below `out` have trained, and this one would train alike, into the directory of this one.
///
/// # Errors
/// [`Failure::Input`] naming the file.
pub(super) fn take_over(cell: &Cell, all: &[Cell], out: &Path, kernels: &Simd) -> Result<(), Failure> {
    let own = out.join(&cell.name);
    for (place, Run { part, config, .. }) in runs(cell).into_iter().enumerate() {
        let to = own.join(part);
        if to.exists() {
            continue;
        }
        let done = || all.iter().filter_map(|other| trained(other, place, out));
        let mut found = done().find(|(_, record, _)| record.config == config);
        for (from, record, stage) in done().filter(|(_, record, _)| unguarded(&config, &record.config)) {
            if found.is_none() && idle(&from, &record.config, kernels)? {
                found = Some((from, record, stage));
            }
        }
        let Some((from, record, done)) = found else { continue };
        // Beside its place: a copy that is cut short is no run.
        let beside = RunDir { path: own.join(format!(".{part}")) };
        let failed = |e: std::io::Error| Failure::file(&beside.path, format!("cannot be made: {e}"));
        if beside.path.exists() {
            std::fs::remove_dir_all(&beside.path).map_err(failed)?;
        }
        std::fs::create_dir_all(&beside.path).map_err(failed)?;
        copy(&TRAINED, &from.path, &beside.path)?;
        if record.config == config {
            copy(&ALIKE, &from.path, &beside.path)?;
        } else {
            unwatched(&from, record, &config, &beside)?;
        }
        beside.write_json("results.json", &Results { stages: vec![done] })?;
        if let Some(folder) = from.path.parent().filter(|_| config.attack.kind.needs_perturb()) {
            copy(&[&perturb::kept_as(&config)], folder, &own)?;
        }
        std::fs::rename(&beside.path, &to).map_err(failed)?;
    }
    Ok(())
}
