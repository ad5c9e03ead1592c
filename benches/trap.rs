//! One optimiser step of the trap on WideResNet-16-1 with its decoder, batch 256, and the making of its batch: bytes to shifted,
//! mirrored floats. The throughput is in pictures a second.

use criterion::{BenchmarkId, Criterion, Throughput};
use stemguard_benches::{PICTURE, batch, labels, run, trap_engine, uniform};
use stemguard_runtime::data::Pictures;
use stemguard_runtime::kernels::simd::Simd;
use stemguard_trainer::augment;
use stemguard_trainer::config::RunConfig;
use stemguard_trainer::engine::Lesson;
use stemguard_trainer::model::Architecture;

fn trap(c: &mut Criterion) {
    let n = batch(256, 8);
    let (x, y) = (uniform(n * PICTURE.len()), labels(n));
    let mut group = c.benchmark_group("trap_step");
    group.sample_size(10).throughput(Throughput::Elements(n as u64));
    for threads in [1, 2] {
        let mut engine =
            trap_engine(Simd::new(threads), Architecture::default(), PICTURE).expect("the default architecture");
        group.bench_function(BenchmarkId::from_parameter(threads), |b| {
            b.iter(|| engine.step(x.clone(), Lesson::learn(&y), 1e-3).expect("a step"));
        });
    }
    group.finish();
}

fn batches(c: &mut Criterion) {
    let n = batch(256, 8);
    let pictures = Pictures {
        h: PICTURE.h as usize,
        w: PICTURE.w as usize,
        pixels: (0..n * PICTURE.len()).map(|i| (i * 31 % 251) as u8).collect(),
        labels: labels(n),
        ..Pictures::default()
    };
    let config = RunConfig::published("cifar10:".into());
    let chosen = augment::order(0, 0, n);
    let mut group = c.benchmark_group("trap_batch");
    group.throughput(Throughput::Elements(n as u64));
    for threads in [1, 2] {
        let kernels = Simd::new(threads);
        group.bench_function(BenchmarkId::from_parameter(threads), |b| {
            b.iter(|| augment::batch(&kernels, &config, &pictures, 0, &chosen));
        });
    }
    group.finish();
}

fn main() {
    run(|c| {
        trap(c);
        batches(c);
    });
}
