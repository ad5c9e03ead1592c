//! Training a head on 8x8x64 features: the gradient of one batch of 64, and a whole training of one epoch of ten steps, what comes
//! before the first step (a look at all features) included. The throughput is in pictures a second.

use criterion::{BenchmarkId, Criterion, Throughput};
use std::hint::black_box;
use stemguard_benches::{CLASSES, batch, labels, run, uniform};
use stemguard_runtime::head::linear::Linear;
use stemguard_runtime::head::residual::Residual;
use stemguard_runtime::head::{Dropout, HeadModel};
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::replace::{FeatureBank, Settings, fit, memory_len};
use stemguard_runtime::rng::Rng;
use stemguard_runtime::shape::Shape;

/// What the stem of WideResNet-16-1 gives.
const FEATURES: Shape = Shape::new(8, 8, 64);
/// Steps of an epoch.
const STEPS: usize = 10;

fn head<H: HeadModel>(c: &mut Criterion, name: &str, settings: Settings) {
    let head = H::new(FEATURES, CLASSES).expect("a head of 10 classes");
    let n = batch(settings.batch, 16);
    let settings = Settings { epochs: 1, batch: n, ..settings };
    let mut params = vec![0.0; head.params()];
    let mut sums = vec![0.0; head.training_sums()];

    let mut group = c.benchmark_group(format!("{name}_gradient"));
    group.throughput(Throughput::Elements(n as u64));
    let (features, mut x) = (uniform(n * FEATURES.len()), vec![0.0; n * FEATURES.len()]);
    let mut targets = vec![0.0; n * CLASSES];
    for (row, label) in targets.chunks_exact_mut(CLASSES).zip(labels(n)) {
        row[label as usize] = 1.0;
    }
    let (mut grads, mut scratch) = (vec![0.0; head.trained()], vec![0.0; head.training_len(n)]);
    head.initialise(&mut Rng::new(0, 0), &mut params);
    head.observe(&features, n, 0, &mut params);
    for threads in [1, 2] {
        let kernels = Simd::new(threads);
        let dropout = Dropout { rate: settings.dropout, seed: 0, stream: 0 };
        group.bench_function(BenchmarkId::from_parameter(threads), |b| {
            b.iter(|| {
                x.copy_from_slice(black_box(&features));
                head.gradient(&kernels, n, &mut params, &mut x, &targets, dropout, &mut grads, &mut scratch, &mut sums)
            });
        });
    }
    group.finish();

    let mut group = c.benchmark_group(format!("{name}_epoch"));
    let all = STEPS * n;
    group.throughput(Throughput::Elements(all as u64));
    let (features, labels) = (uniform(all * FEATURES.len()), labels(all));
    let mut memory = vec![0.0; memory_len(&head, n)];
    let mut order = vec![0; 2 * all];
    for threads in [1, 2] {
        let kernels = Simd::new(threads);
        group.bench_function(BenchmarkId::from_parameter(threads), |b| {
            b.iter(|| {
                let mut bank = FeatureBank::new(&features, &labels, FEATURES, 1).expect("finite features");
                fit(
                    &kernels,
                    &head,
                    &settings,
                    &mut bank,
                    &mut params,
                    &mut memory,
                    &mut sums,
                    &mut order,
                    &mut |_| true,
                )
                .expect("finite losses");
            });
        });
    }
    group.finish();
}

fn main() {
    run(|c| {
        head::<Residual>(c, "residual", Settings::CACHED);
        head::<Linear>(c, "linear", Settings::LINEAR);
    });
}
