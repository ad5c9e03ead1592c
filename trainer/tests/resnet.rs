//! ResNet-34: parity with PyTorch (`testdata/resnet34.npz`, made by `scripts/peer/make_resnet_golden.py`), training, export; and the
//! WideResNets and splits that the other tests leave out.

use dfdx::prelude::*;
use npyz::npz::NpzArchive;
use std::collections::BTreeMap;
use std::path::Path;
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::onnx::{Model, TractModel, lower};
use stemguard_runtime::rng::Rng;
use stemguard_runtime::session::Session;
use stemguard_runtime::shape::Shape;
use stemguard_trainer::engine::{CpuEngine, Lesson, Objective, Optimizer};
use stemguard_trainer::export;
use stemguard_trainer::model::{Architecture, TrapNet};
use stemguard_trainer::nn::loss::Reconstruction;
use stemguard_trainer::nn::{Batch, Buffers, Param, Visit};

/// Losses and logits, relative to the largest value, and the norms of the stem's, the head's and the decoder's whole gradient.
const PARITY: f64 = 1e-3;
/// The norm of one tensor's gradient. A value that rounding carries across a ReLU's kink moves the gradient of its channel, and which
/// values those are differs between instruction sets: PyTorch in `f32` is itself up to 1.5e-3 in norm, and 4.6e-3 in single
/// entries, away from the golden values, which it computed in `f64`.
const TENSOR: f64 = 1e-2;
/// Single entries of a gradient, relative to its largest; see [`TENSOR`].
const ENTRY: f64 = 3e-2;
/// Inference in another engine, relative to the largest logit.
const EXPORTED: f64 = 1e-4;

fn resnet(split: u32) -> Architecture {
    Architecture { split, ..Architecture::RESNET34 }
}

fn engine(a: Architecture, side: u32, classes: usize) -> CpuEngine {
    let dev = Cpu::default();
    let net = TrapNet::new(a, Shape::new(side, side, 3), classes, true, 1, &dev).expect("architecture");
    let objective =
        Objective { reconstruction: Reconstruction { mse: 10.0, tv: 1.0 }, optimizer: Optimizer::Adam, decay: 5e-4 };
    CpuEngine::new(net, objective, Simd::new(2), dev)
}

fn pictures(len: usize) -> Vec<f32> {
    let mut rng = Rng::new(3, 4);
    (0..len).map(|_| rng.uniform()).collect()
}

/// Uniform values in 0..1 from a name and a place, as in the script.
fn hashed(name: &str, count: usize) -> Vec<f64> {
    let seed = name.bytes().fold(2_166_136_261u32, |h, b| (h ^ u32::from(b)).wrapping_mul(16_777_619));
    let value = |i: u32| {
        let mut h = i.wrapping_add(seed);
        for _ in 0..2 {
            h = (h ^ (h >> 16)).wrapping_mul(0x045d_9f3b);
        }
        f64::from(h ^ (h >> 16)) / 4_294_967_296.0
    };
    (0..count as u32).map(value).collect()
}

/// Gives every parameter the script's values. `outputs` of a convolution's weight is the length of the norm or bias that
/// follows it.
struct Fill {
    outputs: BTreeMap<String, usize>,
    kernel: usize,
}

/// The name of what tells a weight's outputs: its bias, or the norm behind it.
fn partner(name: &str) -> String {
    let base = name.trim_end_matches(".weight");
    if base.starts_with("decoder") || base.ends_with(".fc") {
        return format!("{base}.bias");
    }
    format!("{}.gamma", base.replace(".conv", ".bn").replace(".short", ".bn_short"))
}

impl Visit for Fill {
    fn param(&mut self, name: &str, p: &mut Param) {
        let len = p.shape().0;
        let outputs = if name.ends_with(".weight") { self.outputs[&partner(name)] as f64 } else { 0.0 };
        let area = match name {
            n if n.ends_with(".short.weight") => 1.0,
            "stem.0.conv1.weight" => (self.kernel * self.kernel) as f64,
            _ => 9.0,
        };
        let scale = |u: f64| match name {
            n if n.starts_with("decoder") && n.ends_with(".weight") => (u - 0.5) * 2.0 / (16.0 * outputs).sqrt(),
            n if n.ends_with(".gamma") => 1.0 + 0.2 * (u - 0.5),
            n if n.ends_with(".fc.weight") => (u - 0.5) * 0.2,
            n if n.ends_with(".weight") => (u - 0.5) * (24.0 / (area * outputs)).sqrt(),
            _ => 0.2 * (u - 0.5),
        };
        let values: Vec<f32> = hashed(name, len).into_iter().map(|u| scale(u) as f32).collect();
        p.copy_from(&values);
    }
    fn state(&mut self, _: &str, _: &mut Vec<f32>) {}
}

/// Lengths of all parameters.
struct Lengths(BTreeMap<String, usize>);

impl Visit for Lengths {
    fn param(&mut self, name: &str, p: &mut Param) {
        self.0.insert(name.to_owned(), p.shape().0);
    }
    fn state(&mut self, _: &str, _: &mut Vec<f32>) {}
}

/// Reads the gradient of every parameter.
struct Read<'a>(&'a Gradients<f32, Cpu>, BTreeMap<String, Vec<f32>>);

impl Visit for Read<'_> {
    fn param(&mut self, name: &str, p: &mut Param) {
        self.1.insert(name.to_owned(), self.0.get(p).as_vec());
    }
    fn state(&mut self, _: &str, _: &mut Vec<f32>) {}
}

/// The largest difference over `top`; NaN fails.
fn difference(what: &str, a: &[f32], b: &[f32], top: f64) -> f64 {
    assert_eq!(a.len(), b.len(), "{what}: lengths");
    a.iter().zip(b).fold(0.0, |most: f64, (&a, &b)| {
        assert!(a.is_finite() && b.is_finite(), "{what}: not finite");
        most.max(f64::from((a - b).abs()) / top)
    })
}

fn largest(v: &[f32]) -> f64 {
    v.iter().fold(1e-12, |m: f64, v| m.max(f64::from(v.abs())))
}

fn parity(case: &str, side: u32, split: u32) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/resnet34.npz");
    let mut archive = NpzArchive::open(path).expect("testdata/resnet34.npz");
    let mut get = |name: &str| -> Vec<f32> {
        archive.by_name(&format!("{case}.{name}")).expect("readable").expect("present").into_vec().expect("f32")
    };
    let (n, classes) = (8, 10);
    let mut engine = engine(resnet(split), side, classes);
    let mut lengths = Lengths(BTreeMap::new());
    engine.net.visit(&mut lengths);
    engine.net.visit(&mut Fill { outputs: lengths.0, kernel: if side < 64 { 3 } else { 7 } });
    let len = engine.net.input.len();
    let x: Vec<f32> = hashed("pictures", n * len).into_iter().map(|v| v as f32).collect();
    let labels: Vec<u32> = hashed("labels", n).into_iter().map(|v| (v * classes as f64) as u32).collect();
    let (report, grads) = engine.gradients(x.clone(), Lesson::learn(&labels)).expect("gradients");
    let losses = report.losses;

    let want = get("loss");
    let got = [losses.total, losses.ce, losses.mse, losses.tv];
    for (i, part) in ["total", "cross-entropy", "MSE", "TV"].into_iter().enumerate() {
        let error = difference(part, &got[i..=i], &want[i..=i], largest(&want[i..=i]));
        assert!(error <= PARITY, "{case} {part}: {} where PyTorch has {}", got[i], want[i]);
    }
    let want = get("inference");
    let error = difference("logits", &engine.logits(&x), &want, largest(&want));
    assert!(error <= PARITY, "{case}: logits in inference mode differ by {error}");
    eprintln!("{case}: inference logits within {error:.1e}");
    let (want, k, buffers) = (get("logits"), Simd::new(2), Buffers::default());
    let batch: Batch = Cpu::default().tensor_from_vec(x, (n, len));
    let features = engine.net.stem.forward(&k, &buffers, batch).expect("forward");
    let logits = engine.net.head.forward(&k, &buffers, features).expect("forward").as_vec();
    let error = difference("logits", &logits, &want, largest(&want));
    assert!(error <= PARITY, "{case}: logits in training mode differ by {error}");
    eprintln!("{case}: training logits within {error:.1e}");

    let mut read = Read(&grads, BTreeMap::new());
    engine.net.visit(&mut read);
    let want = get("grads");
    assert_eq!(want.len(), 10 * read.1.len(), "one row a parameter");
    let (mut norms, mut entries) = (0.0f64, 0.0f64);
    let mut whole: BTreeMap<&str, [f64; 2]> = BTreeMap::new();
    for ((name, g), want) in read.1.iter().zip(want.chunks_exact(10)) {
        let square = g.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
        let part = whole.entry(name.split('.').next().expect("a prefix")).or_default();
        *part = [part[0] + square, part[1] + f64::from(want[0]).powi(2)];
        let error = (square.sqrt() / f64::from(want[0]) - 1.0).abs();
        assert!(error <= TENSOR, "{case} {name}: gradient of norm {}, PyTorch has {}", square.sqrt(), want[0]);
        norms = norms.max(error);
        let some: Vec<f32> = (0..8).map(|j| g[j * g.len() / 8]).collect();
        let error = difference(name, &some, &want[2..], f64::from(want[1]));
        assert!(error <= ENTRY, "{case} {name}: entries of the gradient differ by {error}");
        entries = entries.max(error);
    }
    eprintln!("{case}: norms of tensors within {norms:.1e}, entries within {entries:.1e}");
    for (part, [ours, theirs]) in whole {
        let error = ((ours / theirs).sqrt() - 1.0).abs();
        assert!(error <= PARITY, "{case}: gradient of the {part} is off by {error}");
        eprintln!("{case}: gradient of the {part} within {error:.1e}");
    }
}

#[test]
fn the_small_front_agrees_with_pytorch() {
    parity("small", 32, 3);
}

#[test]
fn the_standard_front_agrees_with_pytorch() {
    parity("large", 64, 2);
}

#[test]
fn losses_fall() {
    for (a, side, n, steps) in [(resnet(41), 32, 4, 4), (resnet(3), 64, 2, 2)] {
        let mut engine = engine(a, side, 5);
        let x = pictures(n * engine.net.input.len());
        let labels: Vec<u32> = (0..n as u32).collect();
        let losses: Vec<f32> = (0..steps)
            .map(|_| engine.step(x.clone(), Lesson::learn(&labels), 1e-3).expect("step").losses.total)
            .collect();
        assert!(losses.iter().all(|l| l.is_finite()) && losses[steps - 1] < losses[0], "{a}: {losses:?}");
        assert!(engine.logits(&x).iter().all(|v| v.is_finite()), "{a}");
    }
}

#[test]
fn every_split_has_its_shapes() {
    let dev = Cpu::default();
    let wide = |split| Architecture { depth: 28, width: 2, split };
    let cases = [
        (resnet(1), 32, [32, 32, 64], 4),
        (resnet(2), 32, [16, 16, 128], 8),
        (resnet(3), 224, [14, 14, 256], 14),
        (resnet(41), 32, [4, 4, 512], 15),
        (resnet(42), 64, [2, 2, 512], 16),
        (resnet(4), 224, [7, 7, 512], 17),
        (wide(4), 32, [16, 16, 64], 9),
        (wide(5), 32, [8, 8, 128], 10),
        (wide(6), 32, [8, 8, 128], 13),
    ];
    for (a, side, [h, w, c], layers) in cases {
        let input = Shape::new(side, side, 3);
        let net = TrapNet::new(a, input, 7, true, 0, &dev).expect("architecture");
        assert_eq!(net.stem.output(), Shape::new(h, w, c), "{a}");
        assert_eq!(net.stem.layers.len(), layers, "{a}");
        assert_eq!(net.head.output(), Shape::new(1, 1, 7), "{a}");
        assert_eq!(net.decoder.expect("asked for").output(), input, "{a}");
    }
}

#[test]
fn sizes_and_splits_that_do_not_fit_are_refused() {
    let dev = Cpu::default();
    let refused =
        |a: Architecture, h: u32, w: u32, why: &str| match TrapNet::new(a, Shape::new(h, w, 3), 7, true, 0, &dev) {
            Err(e) => assert!(e.to_string().contains(why), "{a}: {e}"),
            Ok(_) => panic!("{a} takes {h}x{w}"),
        };
    refused(resnet(3), 34, 32, "multiples");
    refused(resnet(4), 224, 240, "multiples");
    refused(resnet(5), 32, 32, "split");
    refused(Architecture { width: 2, ..resnet(3) }, 32, 32, "width");
    refused(Architecture { split: 3, ..Architecture::default() }, 32, 32, "split");
}

#[test]
fn wide_resnets_train_at_every_split() {
    for split in [4, 5, 6] {
        let mut engine = engine(Architecture { depth: 28, width: 2, split }, 16, 5);
        let x = pictures(4 * engine.net.input.len());
        let first = engine.step(x.clone(), Lesson::learn(&[0, 1, 2, 3]), 1e-3).expect("step").losses.total;
        let second = engine.step(x.clone(), Lesson::learn(&[0, 1, 2, 3]), 1e-3).expect("step").losses.total;
        assert!(first.is_finite() && second < first, "split {split}: {first}, {second}");
        let r = engine.reconstruct(&x).expect("a decoder");
        assert!(r.len() == x.len() && r.iter().all(|v| (0.0..=1.0).contains(v)));
    }
}

#[test]
fn a_resnet_leaves_as_onnx() {
    let side = 64;
    let mut engine = engine(resnet(2), side, 5);
    let x = pictures(2 * engine.net.input.len());
    // Running statistics of a batch, so that the export has something to fold.
    engine.gradients(x.clone(), Lesson::learn(&[0, 1])).expect("gradients");
    let want = engine.logits(&x);
    let model = Model::from_bytes(&export::classifier(&engine.net).expect("export")).expect("valid");
    let len = engine.net.input.len();

    let net = lower(&model, None).expect("expressible");
    let session = Session::of_net(net.as_net(), Simd::new(1));
    let mut got = vec![0.0; want.len()];
    session.features(&x, &mut got).expect("runs");
    let error = difference("lowered", &got, &want, largest(&want));
    assert!(error <= EXPORTED, "the runtime's logits differ by {error}");

    let mut state = TractModel::new(&model, None).expect("tract").state().expect("tract");
    for (x, got) in x.chunks(len).zip(got.chunks_mut(5)) {
        let planes: Vec<f32> = (0..3).flat_map(|c| x.iter().skip(c).step_by(3).copied()).collect();
        state.run(&planes, got).expect("runs");
    }
    let error = difference("tract", &got, &want, largest(&want));
    assert!(error <= EXPORTED, "tract's logits differ by {error}");
}
