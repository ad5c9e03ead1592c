//! What cells of a sweep share. A run comes to what its configuration says, whichever cell it belongs to: a cell whose baseline or trap
//! another one has trained takes that over, and goes on behind it.

use super::Cell;
use crate::checkpoint::write_whole;
use crate::config::RunConfig;
use crate::error::Failure;
use crate::perturb;
use crate::run::{Results, RunDir};
use std::path::Path;

/// Files that training leaves in a run directory, beside its results.
const TRAINED: [&str; 8] = [
    "run.json",
    "split.json",
    "truth.json",
    "holdout.npz",
    "metrics.jsonl",
    "fitting.npy",
    "guard.json",
    "checkpoint.safetensors",
];

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

/// Whether one cell can take over what the other trains.
pub(super) fn alike(a: &Cell, b: &Cell) -> bool {
    runs(a).iter().zip(&runs(b)).any(|(a, b)| a.config == b.config)
}

/// Brings what other cells below `out` have trained, and this one would train alike, into the directory of this one.
///
/// # Errors
/// [`Failure::Input`] naming the file.
pub(super) fn take_over(cell: &Cell, all: &[Cell], out: &Path) -> Result<(), Failure> {
    let own = out.join(&cell.name);
    for (place, Run { part, stage, config }) in runs(cell).into_iter().enumerate() {
        let to = own.join(part);
        if to.exists() {
            continue;
        }
        let mut alike = all.iter().filter(|other| runs(other)[place].config == config);
        let found = alike.find_map(|other| {
            let from = RunDir { path: out.join(&other.name).join(part) };
            let done = from.results().ok()?.stages.into_iter().find(|s| s.name == stage)?;
            Some((from.path, done))
        });
        let Some((from, done)) = found else { continue };
        // Beside its place: a copy that is cut short is no run.
        let beside = own.join(format!(".{part}"));
        let failed = |e: std::io::Error| Failure::file(&beside, format!("cannot be made: {e}"));
        if beside.exists() {
            std::fs::remove_dir_all(&beside).map_err(failed)?;
        }
        std::fs::create_dir_all(&beside).map_err(failed)?;
        copy(&TRAINED, &from, &beside)?;
        RunDir { path: beside.clone() }.write_json("results.json", &Results { stages: vec![done] })?;
        if let Some(folder) = from.parent().filter(|_| config.attack.kind.needs_perturb()) {
            copy(&[&perturb::kept_as(&config)], folder, &own)?;
        }
        std::fs::rename(&beside, &to).map_err(failed)?;
    }
    Ok(())
}
