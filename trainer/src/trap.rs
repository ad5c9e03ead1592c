//! Training on suspect data: the trap stage, and the undefended baseline (the same without a decoder).
//!
//! One [`Course`] over a [`SuspectSet`](crate::attack::SuspectSet), which sees nothing of what is poisoned in it.

use crate::checkpoint::{self, CHECKPOINT, write_whole};
use crate::config::RunConfig;
pub use crate::course::Event;
use crate::course::{self, Course};
use crate::engine::cuda::CudaEngine;
use crate::engine::{CpuEngine, Device, Engine, Precision, room};
use crate::error::Failure;
use crate::evaluate::{Evaluation, TestSet};
use crate::export;
use crate::model::TrapNet;
use crate::prepare::Prepared;
use crate::run::{CUDA, Claim, Record, RunDir, StageResult};
use dfdx::prelude::Cpu;
use std::path::Path;
use std::time::Instant;
use stemguard_runtime::data::Pictures;
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::shape::Shape;

/// A trained model.
pub struct Trained {
    /// The engine that holds it.
    pub engine: CpuEngine,
    /// Its own figures.
    pub evaluation: Evaluation,
    /// Where it is.
    pub dir: RunDir,
    /// Nobody else writes there meanwhile.
    pub claim: Claim,
}

/// What a run's record calls that which decides its bits beside the seed: instruction set, or device and precision.
pub fn kernels_name(device: Device, k: &Simd) -> String {
    match device {
        // Partial sums are cut by batch size, not by thread: threads do not change the bits.
        Device::Cpu => k.isa().name().to_owned(),
        Device::Cuda { precision: Precision::F32, .. } => CUDA.to_owned(),
        Device::Cuda { precision: Precision::Bf16, .. } => format!("{CUDA} bf16"),
    }
}

/// The fingerprint of what a checkpoint belongs to.
pub(crate) fn fingerprint(of: &impl serde::Serialize) -> String {
    let text = serde_json::to_string(of).unwrap_or_default();
    format!(
        "{:016x}",
        text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
    )
}

/// The network of a configuration for such pictures, freshly initialised.
///
/// # Errors
/// [`Failure::Input`] where the architecture does not fit the pictures.
pub(crate) fn network(c: &RunConfig, pictures: &Pictures, decoder: bool, dev: &Cpu) -> Result<TrapNet, Failure> {
    let (shape, classes) = (pictures.shape(), pictures.classes.len());
    TrapNet::new(c.architecture, shape, classes, decoder, c.seed, dev)
        .map_err(|e| Failure::input(format!("{} for pictures of {}x{}", c.architecture, shape.h, shape.w), e))
}

/// An engine with the network of a configuration, freshly initialised.
///
/// # Errors
/// [`Failure::Input`] where the architecture does not fit the pictures.
pub fn engine(c: &RunConfig, data: &Prepared, kernels: &Simd) -> Result<CpuEngine, Failure> {
    let dev = Cpu::default();
    let pictures = data.suspect.pictures();
    let net = network(c, pictures, c.trap, &dev)?;
    Ok(CpuEngine::new(net, c.objective(), kernels.clone(), dev))
}

/// Whether a run's network can be built for the picture size that it asks for, and this machine has the memory of a step where it trains
/// on the CPU; asked before pictures of that size are made. Where the data set has a size of its own, nothing.
///
/// # Errors
/// [`Failure::Input`] naming the option, or where this machine lacks the memory.
pub fn rehearse(c: &RunConfig, device: Device) -> Result<(), Failure> {
    let Some((h, w)) = c.size else { return Ok(()) };
    let shape = Shape::new(h as u32, w as u32, 3);
    // Classes are not known yet; they take the least of it.
    let net = TrapNet::new(c.architecture, shape, 2, c.trap, c.seed, &Cpu::default())
        .map_err(|e| Failure::input(format!("--size: {} for pictures of {h}x{w}", c.architecture), e))?;
    match device {
        Device::Cpu => Ok(room::check(&net, c.batch)?),
        Device::Cuda { .. } => Ok(()),
    }
}

/// The engine of a run as its last checkpoint left it, and the epochs done.
///
/// # Errors
/// [`Failure::Input`] where there is no checkpoint, it does not belong to the run, or the data are others.
pub fn restore(dir: &RunDir, record: &Record, data: &Prepared, kernels: &Simd) -> Result<(CpuEngine, u32), Failure> {
    data.check(record).map_err(|e| Failure::file(&dir.path, e))?;
    let point = dir.file(CHECKPOINT);
    let (state, epochs) = checkpoint::read(&point, &fingerprint(&(&record.config, record.counts)))?;
    let mut engine = engine(&record.config, data, kernels)?;
    engine.restore(&state).map_err(|e| Failure::file(&point, e))?;
    Ok((engine, epochs))
}

/// Where a course runs: on the CPU's engine, or on a GPU that takes its state and gives it back.
pub(crate) struct Site {
    gpu: Option<CudaEngine>,
}

impl Site {
    /// For courses of such a configuration on `engine`'s network.
    ///
    /// # Errors
    /// Where the device cannot be used.
    pub(crate) fn open(device: Device, c: &RunConfig, engine: &CpuEngine) -> Result<Self, Failure> {
        let gpu = match device {
            Device::Cpu => {
                room::check(&engine.net, c.batch)?;
                None
            }
            Device::Cuda { gpu, precision } => Some(CudaEngine::open(gpu, &engine.net, c.objective(), precision)?),
        };
        Ok(Self { gpu })
    }

    /// Runs a course that has done so many epochs, as [`Course::run`] does; `engine` has its state afterwards.
    ///
    /// # Errors
    /// Those of [`Course::run`].
    pub(crate) fn run(
        &mut self,
        course: &Course<'_>,
        engine: &mut CpuEngine,
        done: u32,
        test: &TestSet,
        tell: &mut dyn FnMut(Event<'_>),
    ) -> Result<Evaluation, Failure> {
        let Some(gpu) = &mut self.gpu else { return course.run(engine, done, test, tell) };
        gpu.restore(&engine.state()?)?;
        let last = course.run(gpu, done, test, tell)?;
        engine.restore(&gpu.state()?)?;
        Ok(last)
    }
}

/// Trains a run from its start or its last checkpoint to its last epoch. Whichever device trains, the engine returned is the
/// CPU's: it owns what is exported, audited and defended.
///
/// # Errors
/// [`Failure`] naming what went wrong; the checkpoint of the last whole epoch stays.
#[allow(clippy::too_many_arguments)]
pub fn train(
    c: &RunConfig,
    data: &Prepared,
    out: &Path,
    resume: bool,
    device: Device,
    kernels: &Simd,
    tell: &mut dyn FnMut(Event<'_>),
) -> Result<Trained, Failure> {
    c.check().map_err(Failure::Input)?;
    let pictures = data.suspect.pictures();
    course::check(c, pictures)?;
    let record = Record {
        config: c.clone(),
        counts: data.counts(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        data: Some(data.digest.clone()),
        planted: Some(data.planted.clone()),
        kernels: kernels_name(device, kernels),
    };
    let mut engine = engine(c, data, kernels)?;
    let mut site = Site::open(device, c, &engine)?;
    let (dir, claim) = RunDir::create(out, &record, resume)?;
    let fingerprint = fingerprint(&(&record.config, record.counts));
    let clean = data.proportions();
    let course = Course { config: c, pictures, forget: &[], clean, dir: &dir, fingerprint: &fingerprint };
    let done = course.resume(&mut engine)?;
    // Also where it goes on: what has become of them is not asked.
    dir.write_json("split.json", &data.split)?;
    data.truth.write(&dir.file("truth.json"))?;
    stemguard_runtime::data::write_npz(&dir.file("holdout.npz"), data.holdout.pictures())?;
    let (started, earlier) = (Instant::now(), course.seconds(done)?);
    let evaluation = site.run(&course, &mut engine, done, &data.test, tell)?;
    write_whole(&dir.file("stem.onnx"), &export::stem(&engine.net)?)?;
    write_whole(&dir.file(if c.trap { "trapped.onnx" } else { "trained.onnx" }), &export::classifier(&engine.net)?)?;
    let name = match (c.trap, c.oracle) {
        (true, _) => "trapped",
        (false, true) => "ceiling",
        (false, false) => "trained",
    };
    if done < c.epochs || dir.results()?.stages.iter().all(|s| s.name != name) {
        let seconds = earlier + started.elapsed().as_secs_f64();
        dir.record_stage(StageResult { name: name.into(), evaluation: evaluation.clone(), tripwire: None, seconds })?;
    }
    Ok(Trained { engine, evaluation, dir, claim })
}
