//! Speed of the trap's training step, as one line of JSON: what `scripts/bench_peers.py` sets beside PyTorch.
//!
//! On the CPU a step is timed alone. On a GPU whole passes are, as a run makes them: pictures chosen, shifted and mirrored there, and
//! losses and fitting read at the end.

use clap::{Parser, ValueEnum};
use std::process::ExitCode;
use std::time::Instant;
use stemguard_benches::{labels, trap_engine, uniform};
use stemguard_runtime::data::Pictures;
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::shape::Shape;
use stemguard_trainer::augment;
use stemguard_trainer::config::RunConfig;
use stemguard_trainer::engine::cuda::CudaEngine;
use stemguard_trainer::engine::{CpuEngine, Engine as _, Lesson, Pass, Precision};
use stemguard_trainer::model::Architecture;

/// Time optimiser steps of a network with its decoder on random pictures.
#[derive(Parser)]
struct Args {
    /// Where
    #[arg(long, value_enum, default_value = "cpu")]
    device: Device,
    /// Network and size of its pictures
    #[arg(long, value_enum, default_value = "wrn-16-1")]
    network: Network,
    /// Threads; 0 for one a core
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Pictures a step
    #[arg(long, default_value_t = 256)]
    batch: usize,
    /// Timed repetitions; the median counts
    #[arg(long, default_value_t = 5)]
    reps: usize,
    /// Steps a repetition
    #[arg(long, default_value_t = 3)]
    inner: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Device {
    Cpu,
    /// The first GPU, maps in f32
    Cuda,
    /// The first GPU, maps in bf16
    CudaBf16,
}

#[derive(Clone, Copy, ValueEnum)]
enum Network {
    /// WideResNet-16-1, 32 x 32
    #[value(name = "wrn-16-1")]
    WideResNet,
    /// ResNet-34, 224 x 224
    #[value(name = "resnet-34")]
    ResNet,
}

type Anything<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    match measure(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("trap_speed: {e}");
            ExitCode::from(2)
        }
    }
}

fn measure(args: &Args) -> Anything<()> {
    let (n, reps, inner) = (args.batch.max(1), args.reps.max(1), args.inner.max(1));
    let (network, picture, architecture) = match args.network {
        Network::WideResNet => ("WRN-16-1", Shape::new(32, 32, 3), Architecture::default()),
        Network::ResNet => ("ResNet-34", Shape::new(224, 224, 3), Architecture::RESNET34),
    };
    let kernels = Simd::new(args.threads);
    let (isa, threads) = (kernels.isa().name(), kernels.threads());
    let mut engine = trap_engine(kernels, architecture, picture)?;
    let (device, mut pass): (_, Box<dyn FnMut() -> Anything<()>>) = match args.device {
        Device::Cpu => ("cpu", Box::new(steps(engine, picture, n, inner))),
        Device::Cuda => ("cuda", Box::new(passes(&mut engine, Precision::F32, picture, n, inner)?)),
        Device::CudaBf16 => ("cuda-bf16", Box::new(passes(&mut engine, Precision::Bf16, picture, n, inner)?)),
    };
    pass()?;
    let mut seconds = Vec::with_capacity(reps);
    for _ in 0..reps {
        let start = Instant::now();
        pass()?;
        seconds.push(start.elapsed().as_secs_f64() / inner as f64);
    }
    seconds.sort_by(f64::total_cmp);
    let median = (seconds[(reps - 1) / 2] + seconds[reps / 2]) / 2.0;
    let line = serde_json::json!({
        "bench": "stage1", "network": network, "device": device, "isa": isa, "threads": threads, "batch": n,
        "img_s": n as f64 / median,
    });
    println!("{line}");
    Ok(())
}

/// Steps on one batch.
fn steps(mut engine: CpuEngine, picture: Shape, n: usize, inner: usize) -> impl FnMut() -> Anything<()> {
    let (x, y) = (uniform(n * picture.len()), labels(n));
    move || {
        for _ in 0..inner {
            engine.step(x.clone(), Lesson::learn(&y), 1e-3)?;
        }
        Ok(())
    }
}

/// Passes over as many pictures as make `inner` steps, from the state of `engine`.
fn passes(
    engine: &mut CpuEngine,
    precision: Precision,
    picture: Shape,
    batch: usize,
    inner: usize,
) -> Anything<impl FnMut() -> Anything<()> + use<>> {
    let config = RunConfig { batch, ..RunConfig::published("random".into()) };
    let (n, [h, w]) = (batch * inner, [picture.h as usize, picture.w as usize]);
    let pictures = Pictures {
        h,
        w,
        pixels: uniform(n * picture.len()).iter().map(|v| (v * 255.0) as u8).collect(),
        labels: labels(n),
        ..Pictures::default()
    };
    let mut gpu = CudaEngine::open(0, &engine.net, config.objective(), precision)?;
    gpu.restore(&engine.state()?)?;
    gpu.hold(&config, &pictures)?;
    let mut epoch = 0;
    Ok(move || {
        let order = augment::order(config.seed, epoch, n);
        let pass = Pass { config: &config, pictures: &pictures, forget: &[], epoch, rate: config.rate };
        let mut done = 0;
        gpu.pass(&pass, &order, &mut |_, report| {
            done += usize::from(report.losses.total.is_finite());
            true
        })?;
        epoch += 1;
        if done == inner { Ok(()) } else { Err(format!("{done} of {inner} steps have a finite loss").into()) }
    })
}
