//! One optimiser step of the trap on WideResNet-16-1 with its decoder, batch 256. The throughput is in pictures a second.

use criterion::{BenchmarkId, Criterion, Throughput};
use stemguard_benches::{PICTURE, batch, labels, run, trap_engine, uniform};
use stemguard_runtime::kernels::simd::Simd;
use stemguard_trainer::engine::Lesson;

fn trap(c: &mut Criterion) {
    let n = batch(256, 8);
    let (x, y) = (uniform(n * PICTURE.len()), labels(n));
    let mut group = c.benchmark_group("trap_step");
    group.sample_size(10).throughput(Throughput::Elements(n as u64));
    for threads in [1, 2] {
        let mut engine = trap_engine(Simd::new(threads)).expect("the default architecture");
        group.bench_function(BenchmarkId::from_parameter(threads), |b| {
            b.iter(|| engine.step(x.clone(), Lesson::learn(&y), 1e-3).expect("a step"));
        });
    }
    group.finish();
}

fn main() {
    run(trap);
}
