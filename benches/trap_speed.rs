//! Speed of the trap's training step, as one line of JSON: what `scripts/bench_peers.py` sets beside PyTorch.

use clap::Parser;
use std::time::Instant;
use stemguard_benches::{PICTURE, labels, trap_engine, uniform};
use stemguard_runtime::kernels::simd::Simd;
use stemguard_trainer::engine::Lesson;

/// Time optimiser steps of WideResNet-16-1 with its decoder on random pictures, on the CPU.
#[derive(Parser)]
struct Args {
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

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    let (n, reps, inner) = (args.batch.max(1), args.reps.max(1), args.inner.max(1));
    let kernels = Simd::new(args.threads);
    let (isa, threads) = (kernels.isa().name(), kernels.threads());
    let mut engine = trap_engine(kernels)?;
    let (x, y) = (uniform(n * PICTURE.len()), labels(n));
    for _ in 0..2 {
        engine.step(x.clone(), Lesson::learn(&y), 1e-3)?;
    }
    let mut seconds = Vec::with_capacity(reps);
    for _ in 0..reps {
        let start = Instant::now();
        for _ in 0..inner {
            engine.step(x.clone(), Lesson::learn(&y), 1e-3)?;
        }
        seconds.push(start.elapsed().as_secs_f64() / inner as f64);
    }
    seconds.sort_by(f64::total_cmp);
    let median = (seconds[(reps - 1) / 2] + seconds[reps / 2]) / 2.0;
    let line = serde_json::json!({
        "bench": "stage1", "device": "cpu", "isa": isa, "threads": threads, "batch": n, "img_s": n as f64 / median,
    });
    println!("{line}");
    Ok(())
}
