//! Convolutions forward and backward, on one thread, with every instruction set this processor has. The throughput is in
//! multiply-adds a second.

use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, measurement::WallTime};
use std::hint::black_box;
use stemguard_benches::{batch, run, uniform};
use stemguard_runtime::error::Result;
use stemguard_runtime::kernels::isa::Isa;
use stemguard_runtime::kernels::picture::PreparedConv;
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::kernels::{ConvShape, Kernels, OutputGradient, Prologue};
use stemguard_runtime::shape::Shape;

/// The convolutions of WideResNet-16-1: input, output channels, kernel, stride, padding.
const CONVOLUTIONS: [(Shape, u32, u32, u32, u32); 8] = [
    (Shape::new(32, 32, 3), 16, 3, 1, 1),
    (Shape::new(32, 32, 16), 16, 3, 1, 1),
    (Shape::new(32, 32, 16), 32, 3, 2, 1),
    (Shape::new(32, 32, 16), 32, 1, 2, 0),
    (Shape::new(16, 16, 32), 32, 3, 1, 1),
    (Shape::new(16, 16, 32), 64, 3, 2, 1),
    (Shape::new(16, 16, 32), 64, 1, 2, 0),
    (Shape::new(8, 8, 64), 64, 3, 1, 1),
];

/// The decoder's transposed convolutions, as the convolutions they turn round: output, input channels.
const TRANSPOSED: [(Shape, u32); 2] = [(Shape::new(16, 16, 32), 64), (Shape::new(32, 32, 3), 32)];

/// Depthwise convolutions of the same sizes: input, stride.
const DEPTHWISE: [(Shape, u32); 3] =
    [(Shape::new(32, 32, 16), 1), (Shape::new(16, 16, 32), 1), (Shape::new(16, 16, 32), 2)];

fn name(g: &ConvShape) -> String {
    let (x, y, k) = (g.x, g.y, g.window.kernel[0]);
    format!("{}x{}x{}-{}x{}x{}-{k}x{k}", x.h, x.w, x.c, y.h, y.w, y.c)
}

/// Multiply-adds of one picture.
fn work(g: &ConvShape) -> usize {
    g.weights() * (g.y.h * g.y.w) as usize
}

/// A case for each instruction set.
fn each_isa(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, multiply_adds: usize, mut case: impl FnMut(&Simd)) {
    group.throughput(Throughput::Elements(multiply_adds as u64));
    for kernels in Isa::available().filter_map(|isa| Simd::with_isa(isa, 1)) {
        group.bench_function(BenchmarkId::new(name, kernels.isa().name()), |b| b.iter(|| case(&kernels)));
    }
}

fn convolutions(c: &mut Criterion, n: usize) -> Result<()> {
    for (number, (x, cout, k, s, p)) in CONVOLUTIONS.into_iter().enumerate() {
        let g = ConvShape::square(x, cout, k, s, p)?;
        let (w, bias) = (uniform(g.weights()), uniform(cout as usize));
        let (x, dy) = (uniform(n * g.x.len()), uniform(n * g.y.len()));
        let (scale, shift) = (uniform(g.x.c as usize), uniform(g.x.c as usize));
        // As in training: batch norm and activation on the way in, and no gradient for the picture itself.
        let inner = number > 0;
        let pre = Prologue { scale: &scale, shift: &shift, slope: 0.1 };
        let pre = inner.then_some(&pre);

        let mut y = vec![0.0; n * g.y.len()];
        let mut sums = vec![0.0; 2 * cout as usize];
        each_isa(&mut c.benchmark_group("conv_forward"), &name(&g), n * work(&g), |k| {
            k.conv_forward(&g, n, black_box(&x), pre, &w, Some(&bias), None, &mut y, Some(&mut sums));
        });

        let mut dz = vec![0.0; n * g.x.len()];
        let (mut dw, mut db) = (vec![0.0; w.len()], vec![0.0; bias.len()]);
        let mut sums = vec![0.0; 2 * g.x.c as usize];
        let products = if inner { 2 } else { 1 };
        each_isa(&mut c.benchmark_group("conv_backward"), &name(&g), products * n * work(&g), |k| {
            let dy = OutputGradient { dy: black_box(&dy), norm: None };
            let (dz, sums) = if inner { (Some(&mut dz[..]), Some(&mut sums[..])) } else { (None, None) };
            k.conv_backward(&g, n, &x, pre, &w, dy, None, dz, &mut dw, &mut db, sums);
        });
    }
    Ok(())
}

fn transposed(c: &mut Criterion, n: usize) -> Result<()> {
    for (y, cin) in TRANSPOSED {
        let g = ConvShape::square(y, cin, 4, 2, 1)?;
        let name = name(&ConvShape { x: g.y, y: g.x, window: g.window });
        let (w, bias) = (uniform(g.weights()), uniform(g.x.c as usize));
        let (x, dy) = (uniform(n * g.y.len()), uniform(n * g.x.len()));
        let mut y = vec![0.0; n * g.x.len()];
        each_isa(&mut c.benchmark_group("deconv_forward"), &name, n * work(&g), |k| {
            k.deconv_forward(&g, n, black_box(&x), &w, &bias, &mut y);
        });
        let (mut dx, mut dw, mut db) = (vec![0.0; x.len()], vec![0.0; w.len()], vec![0.0; bias.len()]);
        each_isa(&mut c.benchmark_group("deconv_backward"), &name, 2 * n * work(&g), |k| {
            k.deconv_backward(&g, n, &x, &w, black_box(&dy), Some(&mut dx), &mut dw, &mut db);
        });
    }
    Ok(())
}

fn depthwise(c: &mut Criterion, n: usize) -> Result<()> {
    for (x, stride) in DEPTHWISE {
        let g = ConvShape::square(x, x.c, 3, stride, 1)?;
        let (w, bias) = (uniform(9 * x.c as usize), uniform(x.c as usize));
        let (x, mut y) = (uniform(n * g.x.len()), vec![0.0; n * g.y.len()]);
        let multiply_adds = n * 9 * g.y.len();
        each_isa(&mut c.benchmark_group("depthwise_forward"), &name(&g), multiply_adds, |k| {
            let conv = PreparedConv::new(k, g, true, &w);
            for (x, y) in black_box(&x).chunks_exact(g.x.len()).zip(y.chunks_exact_mut(g.y.len())) {
                k.conv_picture(&conv, x, &w, Some(&bias), y);
            }
        });
    }
    Ok(())
}

fn main() {
    let n = batch(64, 2);
    run(|c| {
        convolutions(c, n).expect("shapes of WideResNet-16-1");
        transposed(c, n).expect("shapes of its decoder");
        depthwise(c, n).expect("3x3 windows");
    });
}
