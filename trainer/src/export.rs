//! A trained network as ONNX: inference mode, NCHW, batch norm as its own nodes. What the runtime packs, and what any other
//! engine runs.

use crate::error::Failure;
use crate::model::TrapNet;
use crate::nn::layer::{Conv, ConvNorm, Norm, Squash};
use crate::nn::{Layer, Sequence};
use stemguard_runtime::artifact::{HeadKind, head_params};
use stemguard_runtime::kernels::ConvShape;
use stemguard_runtime::layers::{SLOPE, norm};
use stemguard_runtime::net::{Activation, Window};
use stemguard_runtime::onnx::OnnxBuilder;
use stemguard_runtime::session::NewHead;
use stemguard_runtime::shape::Shape;

/// `[ky][kx][cin][cout]` to `[cout][cin][ky][kx]`.
fn kernel_first(s: &ConvShape, w: &[f32]) -> Vec<f32> {
    let (area, cin, cout) = ((s.window.kernel[0] * s.window.kernel[1]) as usize, s.x.c as usize, s.y.c as usize);
    let mut out = Vec::with_capacity(w.len());
    for o in 0..cout {
        for i in 0..cin {
            out.extend((0..area).map(|k| w[(k * cin + i) * cout + o]));
        }
    }
    out
}

fn dims(s: &ConvShape) -> [usize; 4] {
    [s.y.c as usize, s.x.c as usize, s.window.kernel[0] as usize, s.window.kernel[1] as usize]
}

fn conv(b: &mut OnnxBuilder, x: &str, s: &ConvShape, c: &Conv) -> String {
    b.conv(x, &kernel_first(s, &c.weight_values()), dims(s), Some(&c.bias_values()), s.window, 1)
}

fn normed(b: &mut OnnxBuilder, x: &str, n: &Norm, act: Activation) -> String {
    let (gamma, beta) = n.values();
    let z = b.batch_norm(x, &gamma, &beta, &n.mean, &n.var, norm::EPS);
    b.activation(&z, act)
}

/// A convolution without bias, its norm and an activation.
fn conv_norm(b: &mut OnnxBuilder, x: &str, s: &ConvShape, c: &ConvNorm, act: Activation) -> String {
    let h = b.conv(x, &kernel_first(s, &c.weight_values()), dims(s), None, s.window, 1);
    normed(b, &h, &c.norm, act)
}

fn layer(b: &mut OnnxBuilder, x: &str, layer: &Layer) -> String {
    let leaky = Activation::Leaky(SLOPE);
    match layer {
        Layer::Conv { shape, conv: c } => conv(b, x, shape, c),
        Layer::Unit { shape, norm1, conv1, norm2, conv2, short } => {
            let a = norm1.as_ref().map_or_else(|| x.to_owned(), |n| normed(b, x, n, leaky));
            let h = conv(b, &a, &shape.conv1, conv1);
            let h = normed(b, &h, norm2, leaky);
            let y = conv(b, &h, &shape.conv2, conv2);
            let skip = match (&shape.short, short) {
                (Some(shape), Some(short)) => conv(b, &a, shape, short),
                _ => x.to_owned(),
            };
            b.add(&skip, &y)
        }
        Layer::Tail { norm, weight, bias, .. } => {
            let a = normed(b, x, norm, leaky);
            let pooled = b.global_average_pool(&a);
            let flat = b.flatten(&pooled);
            linear(b, &flat, &weight.as_vec(), &bias.as_vec())
        }
        Layer::Deconv { shape, conv, squash } => {
            // Transposed: `[in][out][kh][kw]`, and `in` is what the convolution puts out.
            let window = Window { ..shape.window };
            let (w, bias) = (kernel_first(shape, &conv.weight_values()), conv.bias_values());
            let z = b.conv_transpose(x, &w, dims(shape), Some(&bias), window, [0, 0]);
            let act = if *squash == Squash::Relu { Activation::Relu } else { Activation::Sigmoid };
            b.activation(&z, act)
        }
        Layer::Front(l) => {
            let a = conv_norm(b, x, &l.shape.conv, &l.conv, Activation::Relu);
            l.shape.pool.map_or_else(|| a.clone(), |pool| b.max_pool(&a, pool.window))
        }
        Layer::Basic(l) => {
            let h = conv_norm(b, x, &l.shape.conv1, &l.first, Activation::Relu);
            let h = conv_norm(b, &h, &l.shape.conv2, &l.second, Activation::None);
            let skip = match (&l.shape.short, &l.short) {
                (Some(shape), Some(short)) => conv_norm(b, x, shape, short, Activation::None),
                _ => x.to_owned(),
            };
            let sum = b.add(&h, &skip);
            b.activation(&sum, Activation::Relu)
        }
        Layer::PoolLinear(l) => {
            let pooled = b.global_average_pool(x);
            let flat = b.flatten(&pooled);
            linear(b, &flat, &l.linear.weight_values(), &l.linear.bias_values())
        }
    }
}

/// `[in][out]` to a Gemm of `[out][in]`.
fn linear(b: &mut OnnxBuilder, x: &str, weight: &[f32], bias: &[f32]) -> String {
    let (outputs, inputs) = (bias.len(), weight.len() / bias.len().max(1));
    let mut turned = Vec::with_capacity(weight.len());
    for o in 0..outputs {
        turned.extend((0..inputs).map(|i| weight[i * outputs + o]));
    }
    b.gemm(x, &turned, outputs, Some(bias))
}

fn sequence(b: &mut OnnxBuilder, x: &str, s: &Sequence) -> String {
    s.layers.iter().fold(x.to_owned(), |x, l| layer(b, &x, l))
}

fn finish(b: OnnxBuilder) -> Result<Vec<u8>, Failure> {
    b.finish().map_err(|e| Failure::Other(format!("ONNX export: {e}")))
}

/// The stem: `images` (`[N, 3, H, W]`, 0..=1) to `features`.
///
/// # Errors
/// [`Failure::Other`] where the file would be too large.
pub fn stem(net: &TrapNet) -> Result<Vec<u8>, Failure> {
    let mut b = OnnxBuilder::new();
    b.input("images", net.input);
    let y = sequence(&mut b, "images", &net.stem);
    b.rename(&y, "features");
    let Shape { h, w, c } = net.stem.output();
    b.output("features", &[c as usize, h as usize, w as usize]);
    finish(b)
}

/// Stem and trained head: `images` to `logits`; the stem's output is called `features`.
///
/// # Errors
/// As [`stem`].
pub fn classifier(net: &TrapNet) -> Result<Vec<u8>, Failure> {
    let mut b = OnnxBuilder::new();
    b.input("images", net.input);
    let y = sequence(&mut b, "images", &net.stem);
    b.rename(&y, "features");
    let logits = sequence(&mut b, "features", &net.head);
    b.rename(&logits, "logits");
    b.output("logits", &[net.classes]);
    finish(b)
}

/// A trained head as the runtime's residual head; `None` where it is of another build (splits other than 5, ResNet).
pub fn residual_head(net: &TrapNet) -> Option<NewHead> {
    let [
        Layer::Unit { norm1: Some(norm1), conv1, norm2, conv2, short: None, .. },
        Layer::Tail { norm, weight, bias, .. },
    ] = &net.head.layers[..]
    else {
        return None;
    };
    let mut params = Vec::new();
    for (norm, conv) in [(norm1, conv1), (norm2, conv2)] {
        let (gamma, beta) = norm.values();
        params.extend([gamma, beta, conv.weight_values(), conv.bias_values()].concat());
    }
    let (gamma, beta) = norm.values();
    params.extend([gamma, beta, weight.as_vec(), bias.as_vec()].concat());
    for n in [norm1, norm2, norm] {
        params.extend([&n.mean[..], &n.var[..]].concat());
    }
    let classes = net.classes as u32;
    let fits = params.len() == head_params(HeadKind::Residual, net.stem.output(), classes);
    fits.then_some(NewHead { kind: HeadKind::Residual, classes, params })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{CpuEngine, Objective, Optimizer};
    use crate::model::Architecture;
    use crate::nn::loss::Reconstruction;
    use stemguard_runtime::artifact::HeadSpec;
    use stemguard_runtime::kernels::simd::Simd;
    use stemguard_runtime::net::Span;
    use stemguard_runtime::rng::Rng;

    #[test]
    fn a_trained_head_answers_alike_in_the_runtime() {
        let (dev, kernels) = (dfdx::prelude::Cpu::default(), Simd::new(1));
        let net = |split| {
            let a = Architecture { split, ..Architecture::default() };
            TrapNet::new(a, Shape::new(16, 16, 3), 5, true, 7, &dev).expect("valid")
        };
        let objective =
            Objective { reconstruction: Reconstruction { mse: 1.0, tv: 1.0 }, optimizer: Optimizer::Adam, decay: 0.0 };
        let mut engine = CpuEngine::new(net(5), objective, kernels.clone(), dev.clone());
        let mut rng = Rng::new(1, 1);
        let x: Vec<f32> = (0..6 * 16 * 16 * 3).map(|_| rng.uniform()).collect();
        // A step, so that running statistics are not the initial ones.
        engine.step(x.clone(), crate::engine::Lesson::learn(&[0, 1, 2, 3, 4, 0]), 0.01).expect("a step");
        let features = engine.features(&x);
        let want = engine.head_logits(&features);
        let head = residual_head(&engine.net).expect("the published head");
        let span = Span { at: 0, len: head.params.len() as u32 };
        let spec = HeadSpec { kind: head.kind, features: engine.net.stem.output(), classes: head.classes, span };
        let mut scratch = vec![0.0; stemguard_runtime::head::inference_len(&spec, 6).expect("fits")];
        let mut got = vec![0.0; want.len()];
        stemguard_runtime::head::infer(&kernels, &spec, &head.params, 6, &features, &mut scratch, &mut got)
            .expect("runs");
        for (a, b) in got.iter().zip(&want) {
            assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{a} and {b}");
        }
        assert!(residual_head(&net(4)).is_none() && residual_head(&net(6)).is_none());
    }
}
