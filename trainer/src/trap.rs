//! Training on suspect data: the trap stage, and the undefended baseline (the same without a decoder).
//!
//! The loop sees a [`SuspectSet`](crate::attack::SuspectSet) and nothing of what is poisoned in it. After every epoch the run
//! directory holds a checkpoint from which the run goes on to the same bits.

use crate::augment;
use crate::checkpoint::{self, write_whole};
use crate::config::RunConfig;
use crate::engine::{CpuEngine, Engine, Losses, StepReport};
use crate::error::Failure;
use crate::evaluate::{Evaluation, evaluate};
use crate::export;
use crate::history::History;
use crate::model::TrapNet;
use crate::run::{EpochLine, Prepared, Record, RunDir, StageResult};
use dfdx::prelude::Cpu;
use std::path::Path;
use std::time::Instant;
use stemguard_runtime::kernels::simd::Simd;

/// What the loop tells while it runs.
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
}

/// A trained model.
pub struct Trained {
    /// The engine that holds it.
    pub engine: CpuEngine,
    /// Its own figures.
    pub evaluation: Evaluation,
    /// Where it is.
    pub dir: RunDir,
}

/// What names the instruction set and the threads.
pub fn kernels_name(k: &Simd) -> String {
    // Partial sums are cut by batch size, not by thread: threads do not change the bits.
    k.isa().name().to_owned()
}

/// The fingerprint of a configuration: what a checkpoint belongs to.
fn fingerprint(record: &Record) -> String {
    let text = serde_json::to_string(&(&record.config, record.counts)).unwrap_or_default();
    format!(
        "{:016x}",
        text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
    )
}

/// An engine with the network of a configuration, freshly initialised.
///
/// # Errors
/// [`Failure::Input`] where the architecture does not fit the pictures.
pub fn engine(c: &RunConfig, data: &Prepared, kernels: &Simd) -> Result<CpuEngine, Failure> {
    let dev = Cpu::default();
    let pictures = data.suspect.pictures();
    let net = TrapNet::new(c.architecture, pictures.shape(), pictures.classes.len(), c.trap, c.seed, &dev)?;
    Ok(CpuEngine::new(net, c.objective(), kernels.clone(), dev))
}

/// The engine of a run as its last checkpoint left it, and the epochs done.
///
/// # Errors
/// [`Failure::Input`] where there is no checkpoint or it does not belong to the run.
pub fn restore(dir: &RunDir, record: &Record, data: &Prepared, kernels: &Simd) -> Result<(CpuEngine, u32), Failure> {
    let point = dir.file("checkpoint.safetensors");
    let (state, epochs) = checkpoint::read(&point, &fingerprint(record))?;
    let mut engine = engine(&record.config, data, kernels)?;
    engine.restore(&state).map_err(|e| Failure::file(&point, e))?;
    Ok((engine, epochs))
}

/// Trains a run from its start or its last checkpoint to its last epoch.
///
/// # Errors
/// [`Failure`] naming what went wrong; the checkpoint of the last whole epoch stays.
pub fn train(
    c: &RunConfig,
    data: &Prepared,
    out: &Path,
    resume: bool,
    kernels: &Simd,
    tell: &mut dyn FnMut(Event<'_>),
) -> Result<Trained, Failure> {
    c.check().map_err(Failure::Input)?;
    let pictures = data.suspect.pictures();
    if pictures.len() < c.batch {
        return Err(Failure::input(
            "--batch",
            format!("{} pictures are fewer than one batch of {}", pictures.len(), c.batch),
        ));
    }
    let record = Record {
        config: c.clone(),
        counts: data.counts(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernels: kernels_name(kernels),
    };
    let mut engine = engine(c, data, kernels)?;
    let dir = RunDir::create(out, &record, resume)?;
    let fingerprint = fingerprint(&record);
    let point = dir.file("checkpoint.safetensors");
    let mut done = 0;
    let fitting = dir.file("fitting.npy");
    let mut history = History::new(pictures.len());
    if point.exists() {
        let (state, epochs) = checkpoint::read(&point, &fingerprint)?;
        engine.restore(&state).map_err(|e| Failure::file(&point, e))?;
        done = epochs;
        history = History::read(&fitting, pictures.len(), done as usize)?;
    } else {
        dir.write_json("split.json", &data.split)?;
        data.truth.write(&dir.file("truth.json"))?;
        stemguard_runtime::data::write_npz(&dir.file("holdout.npz"), data.holdout.pictures())?;
    }
    let mut lines = dir.metrics()?;
    lines.retain(|l| l.epoch <= done);
    let started = Instant::now();
    let mut last = None;
    for epoch in done..c.epochs {
        let rate = c.rate * c.schedule.factor(epoch, c.epochs);
        history.begin_epoch();
        let order = augment::order(c.seed, epoch, pictures.len());
        let (mut sum, mut steps) = ([0.0f64; 4], 0u32);
        let clock = Instant::now();
        for chosen in order.chunks_exact(c.batch) {
            let x = augment::batch(kernels, c, pictures, epoch, chosen);
            let labels: Vec<u32> = chosen.iter().map(|&i| pictures.labels[i as usize]).collect();
            let StepReport { losses, fit } = engine.step(x, &labels, rate)?;
            history.record(chosen, &fit);
            if !losses.total.is_finite() {
                return Err(Failure::Other(format!("training diverged in epoch {}: lower --lr", epoch + 1)));
            }
            for (s, v) in sum.iter_mut().zip([losses.total, losses.ce, losses.mse, losses.tv]) {
                *s += f64::from(v);
            }
            steps += 1;
            tell(Event::Step { epoch: epoch + 1, done: steps as usize * c.batch, of: pictures.len(), losses });
        }
        let seconds = clock.elapsed().as_secs_f64();
        let mean = |i: usize| (sum[i] / f64::from(steps)) as f32;
        let mut line = EpochLine {
            epoch: epoch + 1,
            losses: Losses { total: mean(0), ce: mean(1), mse: mean(2), tv: mean(3) },
            rate,
            pictures_per_second: f64::from(steps) * c.batch as f64 / seconds,
            acc: None,
            asr: None,
        };
        if (epoch + 1).is_multiple_of(c.every) || epoch + 1 == c.epochs {
            let e = evaluate(&data.test, &mut |x| engine.logits(x).map_err(Failure::from))?;
            (line.acc, line.asr) = (Some(e.acc), Some(e.asr));
            last = Some(e);
        }
        lines.push(line);
        dir.write_metrics(&lines)?;
        history.write(&fitting)?;
        checkpoint::write(&point, &engine.state(), epoch + 1, &fingerprint)?;
        tell(Event::Epoch(&line));
    }
    write_whole(&dir.file("stem.onnx"), &export::stem(&engine.net)?)?;
    write_whole(&dir.file(if c.trap { "trapped.onnx" } else { "trained.onnx" }), &export::classifier(&engine.net)?)?;
    let evaluation = match last {
        Some(e) if done < c.epochs => e,
        _ => evaluate(&data.test, &mut |x| engine.logits(x).map_err(Failure::from))?,
    };
    let name = if c.trap { "trapped" } else { "trained" };
    if done < c.epochs || dir.results()?.stages.iter().all(|s| s.name != name) {
        let seconds = started.elapsed().as_secs_f64();
        dir.record_stage(StageResult { name: name.into(), evaluation: evaluation.clone(), seconds })?;
    }
    Ok(Trained { engine, evaluation, dir })
}
