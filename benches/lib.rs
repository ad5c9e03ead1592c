//! Shared set-up of the criterion benches.
//!
//! `cargo bench -p stemguard-benches` measures; `cargo test -p stemguard-benches --benches` runs each case once, on small
//! batches.

#![forbid(unsafe_code)]

use criterion::Criterion;
use dfdx::prelude::Cpu;
use stemguard_runtime::error::Error;
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::rng::Rng;
use stemguard_runtime::shape::Shape;
use stemguard_trainer::engine::{CpuEngine, Objective, Optimizer};
use stemguard_trainer::model::{Architecture, TrapNet};
use stemguard_trainer::nn::loss::Reconstruction;

/// Side, side and channels of a CIFAR-10 picture.
pub const PICTURE: Shape = Shape::new(32, 32, 3);
/// Classes of CIFAR-10.
pub const CLASSES: usize = 10;

/// Runs the benches of one file: what `criterion_main!` writes.
pub fn run(bench: impl Fn(&mut Criterion)) {
    let mut criterion = Criterion::default().configure_from_args();
    bench(&mut criterion);
    criterion.final_summary();
}

/// `full` where times are measured, `small` where the benches run as tests.
pub fn batch(full: usize, small: usize) -> usize {
    if std::env::args().any(|arg| arg == "--bench") { full } else { small }
}

/// `len` values, uniform in 0..1.
pub fn uniform(len: usize) -> Vec<f32> {
    let mut rng = Rng::new(0, 0);
    (0..len).map(|_| rng.uniform()).collect()
}

/// `n` labels, every class in turn.
pub fn labels(n: usize) -> Vec<u32> {
    (0..n).map(|i| (i % CLASSES) as u32).collect()
}

/// A network with its decoder and the published objective: what a trap step trains.
///
/// # Errors
/// None in practice: the architectures are fixed.
pub fn trap_engine(kernels: Simd, architecture: Architecture, picture: Shape) -> Result<CpuEngine, Error> {
    let dev = Cpu::default();
    let net = TrapNet::new(architecture, picture, CLASSES, true, 0, &dev)?;
    let reconstruction = Reconstruction { mse: 10.0, tv: 1.0 };
    let objective = Objective { reconstruction, optimizer: Optimizer::Adam, decay: 5e-4 };
    Ok(CpuEngine::new(net, objective, kernels, dev))
}
