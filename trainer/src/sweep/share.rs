//! What cells of a sweep share. A run comes to what its configuration says, whichever cell it belongs to: a cell whose baseline or trap
//! another one has trained takes that over, and goes on behind it. A guard that never accuses changes nothing: the trap that it watched
//! is also the one without it, to the bit.

use super::Cell;
use crate::checkpoint::{self, CHECKPOINT, write_whole};
use crate::config::RunConfig;
use crate::error::Failure;
use crate::perturb;
use crate::run::{EpochLine, Record, Results, RunDir, StageResult};
use crate::trap::fingerprint;
use std::path::Path;

/// Files that training leaves in a run directory, whether with a guard or without, beside its results, record, metrics and checkpoint.
const TRAINED: [&str; 4] = ["split.json", "truth.json", "holdout.npz", "fitting.npy"];
/// What is copied beside them where the configuration is the same.
const ALIKE: [&str; 4] = ["run.json", "metrics.jsonl", "guard.json", CHECKPOINT];

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
pub(super) struct Run {
    /// Its directory in the cell's.
    pub(super) part: &'static str,
    /// The stage that its results have once it is trained.
    pub(super) stage: &'static str,
    pub(super) config: RunConfig,
}

/// Baseline and trap of a cell.
pub(super) fn runs(cell: &Cell) -> [Run; 2] {
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

/// The record of a whole run of this cell's part and its figures, if there is one whose bits are made by these `kernels`. What cannot be
/// read is none.
fn trained(cell: &Cell, place: usize, out: &Path, kernels: &str) -> Option<(RunDir, Record, StageResult)> {
    let Run { part, stage, config } = runs(cell).into_iter().nth(place)?;
    let dir = RunDir { path: out.join(&cell.name).join(part) };
    let done = dir.results().ok()?.stages.into_iter().find(|s| s.name == stage)?;
    let (dir, record) = RunDir::open(&dir.path).ok()?;
    let whole = [&TRAINED[..], &[CHECKPOINT, "metrics.jsonl"]].concat().iter().all(|name| dir.file(name).is_file());
    (whole && record.config == config && record.kernels == kernels).then_some((dir, record, done))
}

/// Whether a run's record says of every epoch of its guard that nobody was unlearned.
fn idle(dir: &RunDir, c: &RunConfig) -> bool {
    let Ok(lines) = dir.metrics() else { return false };
    let first = c.guard.unwrap_or(c.epochs);
    lines.len() == c.epochs as usize && lines.iter().all(|l| l.unlearned == (l.epoch > first).then_some(0))
}

/// Writes a run without its guard, which never accused, as what it also is: one that had none.
fn unwatched(from: &RunDir, old: Record, config: &RunConfig, to: &RunDir) -> Result<(), Failure> {
    let (state, epochs) = checkpoint::read(&from.file(CHECKPOINT), &fingerprint(&(&old.config, old.counts)))?;
    let record = Record { config: config.clone(), ..old };
    checkpoint::write(&to.file(CHECKPOINT), &state, epochs, &fingerprint(&(&record.config, record.counts)))?;
    to.write_metrics(&from.metrics()?.into_iter().map(|l| EpochLine { unlearned: None, ..l }).collect::<Vec<_>>())?;
    to.write_json("run.json", &record)
}

/// Brings what other cells below `out` have trained, and this one would train alike, into the directory of this one; `kernels` are what
/// its record would name ([`crate::trap::kernels_name`]).
///
/// # Errors
/// [`Failure::Input`] naming the file.
pub(super) fn take_over(cell: &Cell, all: &[Cell], out: &Path, kernels: &str) -> Result<(), Failure> {
    let own = out.join(&cell.name);
    for (place, Run { part, config, .. }) in runs(cell).into_iter().enumerate() {
        let to = own.join(part);
        if to.exists() {
            continue;
        }
        let done = || all.iter().filter_map(|other| trained(other, place, out, kernels));
        let unwatched_by = |(dir, record, _): &(RunDir, Record, StageResult)| {
            unguarded(&config, &record.config) && idle(dir, &record.config)
        };
        let found = done().find(|(_, record, _)| record.config == config).or_else(|| done().find(unwatched_by));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Losses, State};
    use crate::evaluate::Evaluation;
    use crate::run::Counts;
    use crate::sweep::Plan;

    /// A guarded cell, and the same with the published loss.
    fn cells(home: &Path) -> Vec<Cell> {
        let file = home.join("plan.toml");
        let plan = "data = 'signs:400'\nattacks = ['badnet-grid']\n[base]\nepochs = 3\n[settings.a]\nguard = 2\n\
                    [settings.b]\nloss = 'published'\n";
        std::fs::write(&file, plan).expect("written");
        Plan::read(&file).and_then(|p| p.cells()).expect("cells")
    }

    /// A trap of the first cell that is whole; what its guard unlearned in the last epoch.
    fn trap(cells: &[Cell], out: &Path, unlearned: Option<usize>) {
        let dir = RunDir { path: out.join(&cells[0].name).join("trap") };
        std::fs::create_dir_all(&dir.path).expect("made");
        let config = cells[0].config.trapped();
        let record = Record {
            config,
            counts: Counts::default(),
            version: "1".into(),
            data: None,
            planted: None,
            kernels: "avx2".into(),
        };
        let line = |epoch| EpochLine {
            epoch,
            losses: Losses::default(),
            rate: 0.1,
            pictures_per_second: 1.0,
            unlearned: unlearned.filter(|_| epoch > 2),
            acc: None,
            asr: None,
        };
        dir.write_metrics(&[1, 2, 3].map(line)).expect("written");
        TRAINED.iter().for_each(|name| std::fs::write(dir.file(name), name).expect("written"));
        let mark = fingerprint(&(&record.config, record.counts));
        checkpoint::write(&dir.file(CHECKPOINT), &State::default(), 3, &mark).expect("written");
        dir.write_json("run.json", &record).expect("written");
        let evaluation = Evaluation::default();
        let stage = StageResult { name: "trapped".into(), evaluation, tripwire: None, seconds: 1.0 };
        dir.record_stage(stage).expect("written");
    }

    /// The record of the second cell's trap, once it was looked for on a machine with these kernels.
    fn taken(unlearned: Option<usize>, kernels: &str) -> Option<Record> {
        let home = tempfile::tempdir().expect("a directory");
        let cells = cells(home.path());
        trap(&cells, home.path(), unlearned);
        let first = trained(&cells[0], 1, home.path(), "avx2");
        assert!(first.is_some(), "the first cell is whole");
        take_over(&cells[1], &cells, home.path(), kernels).expect("looked for");
        let dir = RunDir { path: home.path().join(&cells[1].name).join("trap") };
        let record = dir.path.exists().then(|| RunDir::open(&dir.path).expect("a run").1);
        if let Some(record) = &record {
            assert_eq!(record.config, cells[1].config.trapped());
            assert!(dir.metrics().expect("lines").iter().all(|l| l.unlearned.is_none()));
            let mark = fingerprint(&(&record.config, record.counts));
            assert_eq!(checkpoint::read(&dir.file(CHECKPOINT), &mark).expect("its own").1, 3);
        }
        record
    }

    #[test]
    fn a_trap_is_taken_over_where_its_guard_unlearned_nobody_on_record() {
        assert!(taken(Some(0), "avx2").is_some());
        assert!(taken(Some(1), "avx2").is_none(), "its guard accused");
        assert!(taken(None, "avx2").is_none(), "of an older version, which did not record it");
        assert!(taken(Some(0), "avx512").is_none(), "other bits");
    }

    #[test]
    fn a_guarded_trap_is_not_taken_from_one_without() {
        let home = tempfile::tempdir().expect("a directory");
        let cells = cells(home.path());
        assert!(may_take(&cells[1], &cells[0]));
        let traps = [0, 1].map(|i| cells[i].config.trapped());
        assert!(unguarded(&traps[1], &traps[0]) && !unguarded(&traps[0], &traps[1]));
        assert!(!unguarded(&traps[1], &RunConfig { epochs: 4, ..traps[0].clone() }));
    }
}
