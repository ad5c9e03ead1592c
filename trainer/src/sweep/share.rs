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

/// Brings what other cells below `out` have trained, and this one would train alike, into the directory of this one.
///
/// # Errors
/// [`Failure::Input`] naming the file.
pub(super) fn take_over(cell: &Cell, all: &[Cell], out: &Path) -> Result<(), Failure> {
    let own = out.join(&cell.name);
    let runs = |c: &Cell| {
        let trap = RunConfig { trap: true, ..c.config.clone() };
        [("baseline", "trained", c.config.undefended()), ("trap", "trapped", trap)]
    };
    for (part, stage, config) in runs(cell) {
        let to = own.join(part);
        if to.exists() {
            continue;
        }
        let mut alike = all.iter().filter(|c| runs(c).iter().any(|(p, _, c)| *p == part && *c == config));
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
