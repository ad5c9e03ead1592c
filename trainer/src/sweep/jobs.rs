//! What a sweep runs, several at a time.
//!
//! A job is the chain of one cell, or a ceiling that cells share, so that none writes where another does. Workers, each with threads
//! and a device of its own, take them in order, but for cells whose training another worker is busy with: they come later, when they
//! can take it over. Where a job fails, those that run are finished, and no other is begun.

use super::{AFTER, Cell, ceiling, share, stages};
use crate::chain::{self, Begun};
use crate::checkpoint::write_whole;
use crate::config::RunConfig;
use crate::engine::Device;
use crate::error::Failure;
use crate::trap::kernels_name;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;
use stemguard_runtime::kernels::simd::Simd;

/// Something to run.
#[derive(Clone, Copy, Debug)]
pub enum Job<'a> {
    /// The chain of a cell, one of these.
    Cell(&'a Cell, &'a [Cell]),
    /// Training on the clean part alone: the name of its directory, the run, and the grid.
    Ceiling(&'a str, &'a RunConfig, &'a [Cell]),
}

/// What a sweep tells of a job.
pub enum Told<'a> {
    /// A stage goes on.
    Stage(chain::Told<'a>),
    /// It is done, after so many seconds; not told of a job that was done before.
    Done(f64),
}

/// The jobs of a grid, in its order: each ceiling once, behind the first cell that has it.
pub fn jobs(cells: &[Cell]) -> Vec<Job<'_>> {
    let mut ceilings = BTreeSet::new();
    let mut jobs = Vec::new();
    for cell in cells {
        jobs.push(Job::Cell(cell, cells));
        if let Some((name, c)) = cell.ceiling.as_ref().filter(|(name, _)| ceilings.insert(name)) {
            jobs.push(Job::Ceiling(name, c, cells));
        }
    }
    jobs
}

impl Job<'_> {
    /// Name of its directory.
    pub fn name(&self) -> &str {
        match self {
            Self::Cell(cell, _) => &cell.name,
            Self::Ceiling(name, ..) => name,
        }
    }

    /// Whether another one trains what this one could take over.
    fn awaits(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Cell(a, _), Self::Cell(b, _)) if share::may_take(a, b))
    }

    /// Passes over the data of its longest stage.
    pub fn epochs(&self) -> u32 {
        match self {
            Self::Cell(cell, _) => cell.config.epochs,
            Self::Ceiling(_, c, _) => c.epochs,
        }
    }

    /// Runs what is missing of it, below `out`.
    ///
    /// # Errors
    /// Those of the stages.
    pub fn run(&self, out: &Path, worker: &Worker, tell: &mut dyn FnMut(Told<'_>)) -> Result<(), Failure> {
        let Worker { device, kernels } = worker;
        let started = Instant::now();
        let mut stage = |told: chain::Told<'_>| tell(Told::Stage(told));
        match self {
            Self::Cell(cell, all) => {
                if stages(cell, out)?.is_some() {
                    return Ok(());
                }
                let own = out.join(&cell.name);
                std::fs::create_dir_all(&own).map_err(|e| Failure::file(&own, format!("cannot be made: {e}")))?;
                write_whole(&own.join(AFTER), cell.after()?.as_bytes())?;
                share::take_over(cell, all, out, &kernels_name(*device, kernels))?;
                let (c, how, tell) = (&cell.config, &cell.replacement, &mut stage);
                let Begun { data, mut trapped, .. } = chain::begin(c, how, &own, true, *device, kernels, tell)?;
                let (dir, engine, c) = (&trapped.dir, &mut trapped.engine, &c.trapped());
                match &cell.purification {
                    Some(p) => drop(chain::finish(dir, c, &data, engine, how, p, true, *device, kernels, tell)?),
                    None => drop(chain::examine(dir, c, &data, engine, how, *device, kernels, tell)?),
                }
            }
            Self::Ceiling(name, c, cells) => {
                if !ceiling::complete(name, c, cells, out, *device, kernels, &mut stage)? {
                    return Ok(());
                }
            }
        }
        tell(Told::Done(started.elapsed().as_secs_f64()));
        Ok(())
    }
}

/// Where jobs run, one after the other.
#[derive(Clone, Debug)]
pub struct Worker {
    /// Where networks are trained.
    pub device: Device,
    /// Threads.
    pub kernels: Simd,
}

/// Runs all jobs, as many at a time as there are workers; `tell` is told which worker is at which job.
///
/// # Errors
/// The first failure, when the jobs that had begun are done.
pub fn run(
    jobs: &[Job<'_>],
    out: &Path,
    workers: &[Worker],
    tell: &(dyn Fn(usize, usize, Told<'_>) + Sync),
) -> Result<(), Failure> {
    // What waits, in order, and what each worker is at.
    let queue = Mutex::new(((0..jobs.len()).collect::<Vec<usize>>(), vec![None; workers.len()]));
    let failure = Mutex::new(None);
    let failed = || failure.lock().unwrap_or_else(PoisonError::into_inner);
    let next = |w: usize| -> Option<usize> {
        let (waiting, busy) = &mut *queue.lock().unwrap_or_else(PoisonError::into_inner);
        busy[w] = None;
        let free = |&j: &usize| !busy.iter().flatten().any(|&b: &usize| jobs[j].awaits(&jobs[b]));
        let place = waiting.iter().position(free).or((!waiting.is_empty()).then_some(0))?;
        busy[w] = Some(waiting.remove(place));
        busy[w]
    };
    let work = |(w, worker): (usize, &Worker)| {
        while failed().is_none() {
            let Some(j) = next(w) else { break };
            if let Err(e) = jobs[j].run(out, worker, &mut |told| tell(w, j, told)) {
                failed().get_or_insert(e);
            }
        }
    };
    std::thread::scope(|scope| {
        let work = &work;
        // The first works here, so that one worker needs no other thread.
        for other in workers.iter().enumerate().skip(1) {
            scope.spawn(move || work(other));
        }
        workers.iter().enumerate().take(1).for_each(work);
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}
