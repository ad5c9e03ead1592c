//! A course of training: epochs over one set of pictures, in a directory that always holds what is needed to go on to the same
//! bits. The trap, the undefended baseline and each round of purification are courses.

mod guard;

use crate::audit::Verdict;
use crate::augment;
use crate::checkpoint::{self, CHECKPOINT};
use crate::config::RunConfig;
use crate::engine::{Engine, Losses, Pass};
use crate::error::Failure;
use crate::evaluate::{Evaluation, TestSet, evaluate_engine};
use crate::history::History;
use crate::run::{EpochLine, RunDir};
use guard::Guard;
use stemguard_runtime::data::Pictures;

/// What a course tells while it runs.
pub enum Event<'a> {
    /// So many pictures of so many, in this epoch (from 1).
    Step {
        /// Epoch, from 1.
        epoch: u32,
        /// Pictures seen in this epoch.
        done: usize,
        /// Pictures of an epoch.
        of: usize,
        /// Losses of the step.
        losses: Losses,
    },
    /// An epoch is over.
    Epoch(&'a EpochLine),
    /// The guard has judged for the first time, or names other classes than it did.
    Guard(&'a Verdict),
}

/// What is learned, and where it is recorded.
pub struct Course<'a> {
    /// Epochs, batch, rates, augmentation, seed.
    pub config: &'a RunConfig,
    /// What is learned.
    pub pictures: &'a Pictures,
    /// Whether a picture's label is unlearned instead; empty: none is.
    pub forget: &'a [bool],
    /// Labels of the clean holdout, which the guard holds those of the suspects against; empty: it does without.
    pub clean: &'a [u32],
    /// Where checkpoint, metrics and fitting are kept.
    pub dir: &'a RunDir,
    /// What the checkpoint belongs to.
    pub fingerprint: &'a str,
}

/// Whether there is enough to train on.
///
/// # Errors
/// [`Failure::Input`] where the pictures do not fill a batch.
pub fn check(c: &RunConfig, pictures: &Pictures) -> Result<(), Failure> {
    if pictures.len() < c.batch {
        let why = format!("{} pictures are fewer than one batch of {}", pictures.len(), c.batch);
        return Err(Failure::input("--batch", why));
    }
    Ok(())
}

/// What the guard makes of the suspects after `done` epochs of the course in `dir`; `None` without a guard, or before it judges.
///
/// # Errors
/// [`Failure::Input`] where the record of how they were fitted is missing, damaged or of others.
pub fn guarded(
    c: &RunConfig,
    dir: &RunDir,
    done: u32,
    suspects: &Pictures,
    clean: &[u32],
) -> Result<Option<Verdict>, Failure> {
    if c.guard.is_none_or(|first| done < first) {
        return Ok(None);
    }
    let history = History::read(&dir.file("fitting.npy"), suspects.len(), done as usize)?;
    let mut guard = Guard::new(&suspects.labels, clean, suspects.classes.len());
    Ok(Some(guard.judge(&history, done as usize)))
}

fn diverged(c: &RunConfig, epoch: u32) -> Failure {
    Failure::Other(format!("training diverged in epoch {}: a run with a lower --lr than {} may not", epoch + 1, c.rate))
}

impl Course<'_> {
    /// Epochs that the directory's checkpoint has behind it, none without one; brings the engine there.
    ///
    /// # Errors
    /// [`Failure::Input`] where the checkpoint is damaged or belongs to another course.
    pub fn resume(&self, engine: &mut dyn Engine) -> Result<u32, Failure> {
        let point = self.dir.file(CHECKPOINT);
        if !point.exists() {
            return Ok(0);
        }
        let (state, epochs) = checkpoint::read(&point, self.fingerprint)?;
        engine.restore(&state).map_err(|e| Failure::file(&point, e))?;
        Ok(epochs)
    }

    /// Seconds that training took for the first `done` epochs, evaluation apart.
    ///
    /// # Errors
    /// [`Failure::Input`] where their record is damaged.
    pub fn seconds(&self, done: u32) -> Result<f64, Failure> {
        let pictures = (self.pictures.len() / self.config.batch * self.config.batch) as f64;
        let lines = self.dir.metrics()?;
        Ok(lines.iter().filter(|l| l.epoch <= done).map(|l| pictures / l.pictures_per_second).sum())
    }

    /// Trains from `done` epochs on to the last; the figures after it, measured by the same engine where none was left to train.
    ///
    /// # Errors
    /// [`Failure`] naming what went wrong; the checkpoint of the last whole epoch stays.
    pub fn run(
        &self,
        engine: &mut dyn Engine,
        done: u32,
        test: &TestSet,
        tell: &mut dyn FnMut(Event<'_>),
    ) -> Result<Evaluation, Failure> {
        let (c, pictures) = (self.config, self.pictures);
        check(c, pictures)?;
        let fitting = self.dir.file("fitting.npy");
        let mut history = match done {
            0 => History::new(pictures.len()),
            _ => History::read(&fitting, pictures.len(), done as usize)?,
        };
        let mut lines = self.dir.metrics()?;
        lines.retain(|l| l.epoch <= done);
        engine.hold(c, pictures)?;
        let mut last = None;
        let mut guard = Guard::new(&pictures.labels, self.clean, pictures.classes.len());
        let (mut forget, mut named) = (self.forget.to_vec(), None);
        for epoch in done..c.epochs {
            if c.guard.is_some_and(|first| epoch >= first) {
                let verdict = guard.judge(&history, epoch as usize);
                self.dir.write_json("guard.json", &verdict.classes)?;
                let names: Vec<bool> = verdict.classes.iter().map(|class| class.suspected).collect();
                if named.as_ref() != Some(&names) {
                    tell(Event::Guard(&verdict));
                    named = Some(names);
                }
                forget = if verdict.accused.contains(&true) { verdict.accused } else { self.forget.to_vec() };
            }
            history.begin_epoch();
            let order = augment::order(c.seed, epoch, pictures.len());
            let mut line = self.epoch(engine, epoch, &order, &forget, &mut history, tell)?;
            if c.guard.is_some_and(|first| epoch >= first) {
                line.unlearned = Some(forget.iter().filter(|&&f| f).count());
            }
            if (epoch + 1).is_multiple_of(c.every) || epoch + 1 == c.epochs {
                let e = evaluate_engine(test, engine)?;
                (line.acc, line.asr) = (Some(e.acc), Some(e.asr));
                last = Some(e);
            }
            let state = engine.state()?;
            // Statistics can be beyond all numbers while losses still are numbers.
            if state.tensors.values().flatten().any(|v| !v.is_finite()) {
                return Err(diverged(c, epoch));
            }
            lines.push(line);
            self.dir.write_metrics(&lines)?;
            history.write(&fitting)?;
            checkpoint::write(&self.dir.file(CHECKPOINT), &state, epoch + 1, self.fingerprint)?;
            tell(Event::Epoch(&line));
        }
        last.map_or_else(|| evaluate_engine(test, engine), Ok)
    }

    fn epoch(
        &self,
        engine: &mut dyn Engine,
        epoch: u32,
        order: &[u32],
        forget: &[bool],
        history: &mut History,
        tell: &mut dyn FnMut(Event<'_>),
    ) -> Result<EpochLine, Failure> {
        let (c, pictures) = (self.config, self.pictures);
        let rate = c.rate * c.schedule.factor(epoch, c.epochs);
        let (mut sum, mut steps) = ([0.0f64; 4], 0u32);
        let clock = std::time::Instant::now();
        let mut finite = true;
        let pass = Pass { config: c, pictures, forget, epoch, rate };
        engine.pass(&pass, order, &mut |chosen, report| {
            let losses = report.losses;
            history.record(chosen, &report.fit);
            finite = losses.total.is_finite();
            for (s, v) in sum.iter_mut().zip([losses.total, losses.ce, losses.mse, losses.tv]) {
                *s += f64::from(v);
            }
            steps += 1;
            tell(Event::Step { epoch: epoch + 1, done: steps as usize * c.batch, of: order.len(), losses });
            finite
        })?;
        if !finite {
            return Err(diverged(c, epoch));
        }
        // No clock is so coarse that a speed must be infinite.
        let seconds = clock.elapsed().as_secs_f64().max(1e-9);
        let mean = |i: usize| (sum[i] / f64::from(steps)) as f32;
        Ok(EpochLine {
            epoch: epoch + 1,
            losses: Losses { total: mean(0), ce: mean(1), mse: mean(2), tv: mean(3) },
            rate,
            pictures_per_second: f64::from(steps) * c.batch as f64 / seconds,
            unlearned: None,
            acc: None,
            asr: None,
        })
    }
}

#[cfg(test)]
mod tests;
