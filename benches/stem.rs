//! Inference of a stem: the native net beside tract, same model, pictures and threads. The throughput is in pictures a second.

use criterion::{BenchmarkId, Criterion, Throughput};
use std::hint::black_box;
use stemguard_benches::{batch, run, uniform};
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::onnx::{Model, TractModel, TractState, lower};
use stemguard_runtime::session::Session;

/// WideResNet-16-1 up to the first unit of group 3.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/stem.onnx");

fn stem(c: &mut Criterion) {
    let model = Model::from_file(MODEL).expect("testdata/stem.onnx");
    let net = lower(&model, None).expect("a stem that lowers");
    let plan = TractModel::new(&model, None).expect("a stem that tract takes");
    let mut group = c.benchmark_group("stem");
    for n in [1, batch(64, 4)] {
        let (len, to) = (net.as_net().input().len(), net.as_net().output().len());
        let (x, mut y) = (uniform(n * len), vec![0.0; n * to]);
        group.throughput(Throughput::Elements(n as u64));
        for threads in [1, 2] {
            let kernels = Simd::new(threads);
            let session = Session::of_net(net.as_net(), kernels.clone());
            group.bench_function(BenchmarkId::new(format!("native-{threads}-threads"), n), |b| {
                b.iter(|| session.features(black_box(&x), &mut y).expect("matching lengths"));
            });

            // Tract runs one picture at a time on each thread, in `[c][h][w]`; on random values the order makes no difference.
            let mut states: Vec<TractState> = (0..threads).map(|_| plan.state().expect("a state")).collect();
            let share = n.div_ceil(threads);
            group.bench_function(BenchmarkId::new(format!("tract-{threads}-threads"), n), |b| {
                b.iter(|| {
                    let parts = black_box(&x).chunks(share * len).zip(y.chunks_mut(share * to)).zip(&mut states);
                    kernels.for_each(parts.collect(), |((x, y), state)| {
                        for (x, y) in x.chunks_exact(len).zip(y.chunks_exact_mut(to)) {
                            state.run(x, y).expect("matching lengths");
                        }
                    });
                });
            });
        }
    }
    group.finish();
}

fn main() {
    run(stem);
}
