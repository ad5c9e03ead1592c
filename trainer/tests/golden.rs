//! Parity with PyTorch: forward, each loss part, every gradient and three Adam steps, against golden vectors
//! (`testdata/step.npz`, made by `scripts/peer/torch_trap.py golden`).

use dfdx::prelude::*;
use npyz::npz::NpzArchive;
use std::collections::BTreeMap;
use std::path::Path;
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::shape::Shape;
use stemguard_trainer::engine::{CpuEngine, Engine, Lesson, Objective, Optimizer, State};
use stemguard_trainer::model::{Architecture, TrapNet};
use stemguard_trainer::nn::loss::Reconstruction;
use stemguard_trainer::nn::{Param, Visit};

/// Relative to the largest value of a tensor: outputs and gradients of the first step.
const FIRST_STEP: f32 = 1e-4;
/// Weights after three Adam steps, absolute: each step moves a weight by about 1e-3 whatever the size of its gradient, so that
/// gradients near zero, rounded otherwise, show here.
const THREE_STEPS: f32 = 2e-4;

/// All arrays of the file: shape and values.
fn golden() -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/step.npz");
    let mut archive = NpzArchive::open(path).expect("testdata/step.npz");
    let names: Vec<String> = archive.array_names().map(str::to_owned).collect();
    let mut all = BTreeMap::new();
    for name in names {
        let file = archive.by_name(&name).expect("readable").expect("present");
        let shape: Vec<usize> = file.shape().iter().map(|&d| d as usize).collect();
        let values: Vec<f32> = match file.dtype().descr().trim_matches('\'') {
            "<f4" => file.into_vec::<f32>().expect("f32"),
            "<f8" => file.into_vec::<f64>().expect("f64").into_iter().map(|v| v as f32).collect(),
            _ => file.into_vec::<i64>().expect("i64").into_iter().map(|v| v as f32).collect(),
        };
        all.insert(name, (shape, values));
    }
    all
}

/// PyTorch's layout to ours: convolutions `[cout][cin][kh][kw]` to `[kh][kw][cin][cout]` (transposed ones come as
/// `[in][out][kh][kw]`, which is the same rule), linear `[out][in]` to `[in][out]`, maps NCHW to NHWC.
fn ours(name: &str, shape: &[usize], v: &[f32]) -> Vec<f32> {
    let mut out = Vec::with_capacity(v.len());
    match *shape {
        [a, b, h, w] if name.contains("weight") => {
            for k in 0..h * w {
                for i in 0..b {
                    for o in 0..a {
                        out.push(v[(o * b + i) * h * w + k]);
                    }
                }
            }
        }
        [n, c, h, w] => {
            for p in 0..n {
                for k in 0..h * w {
                    for i in 0..c {
                        out.push(v[(p * c + i) * h * w + k]);
                    }
                }
            }
        }
        [a, b] if name.contains("fc.weight") => {
            for i in 0..b {
                for o in 0..a {
                    out.push(v[o * b + i]);
                }
            }
        }
        _ => out.extend_from_slice(v),
    }
    out
}

/// Our name of a parameter to PyTorch's.
fn theirs(name: &str) -> String {
    let name =
        name.replace("head.unit0.", "head.unit.").replace("head.tail.", "head.").replace("decoder.1.", "decoder.2.");
    let name = name.replace(".gamma", ".weight").replace(".beta", ".bias");
    name.replace(".mean", ".running_mean").replace(".var", ".running_var")
}

fn largest_difference(what: &str, a: &[f32], b: &[f32]) -> (f32, f32) {
    assert_eq!(a.len(), b.len(), "{what}: lengths");
    let mut most = 0.0f32;
    for (&a, &b) in a.iter().zip(b) {
        assert!(a.is_finite() && b.is_finite(), "{what}: not finite");
        most = most.max((a - b).abs());
    }
    (most, b.iter().fold(1e-12, |m: f32, v| m.max(v.abs())))
}

fn close(what: &str, a: &[f32], b: &[f32]) {
    let (most, top) = largest_difference(what, a, b);
    assert!(most <= FIRST_STEP * top, "{what}: differs by {most}, largest value {top}");
}

/// Reads the gradient of every parameter.
struct Read<'a>(&'a Gradients<f32, Cpu>, BTreeMap<String, Vec<f32>>);

impl Visit for Read<'_> {
    fn param(&mut self, name: &str, p: &mut Param) {
        self.1.insert(name.to_owned(), self.0.get(p).as_vec());
    }
    fn state(&mut self, _: &str, _: &mut Vec<f32>) {}
}

#[test]
fn three_steps_agree_with_pytorch() {
    let golden = golden();
    let get = |name: &str| {
        let (shape, values) = golden.get(name).unwrap_or_else(|| panic!("{name} in step.npz"));
        ours(name, shape, values)
    };
    let dev = Cpu::default();
    let net = TrapNet::new(Architecture::default(), Shape::new(32, 32, 3), 10, true, 0, &dev).expect("architecture");
    let objective =
        Objective { reconstruction: Reconstruction { mse: 10.0, tv: 1.0 }, optimizer: Optimizer::Adam, decay: 5e-4 };
    let mut engine = CpuEngine::new(net, objective, Simd::new(2), dev);
    let mut state = engine.state().expect("a state");
    for (name, values) in &mut state.tensors {
        if name.starts_with("first.") || name.starts_with("second.") {
            values.fill(0.0);
        } else {
            *values = get(&format!("init.{}", theirs(name)));
        }
    }
    engine.restore(&State { steps: 0, ..state }).expect("same shapes");
    let x = get("x");
    let labels: Vec<u32> = get("y").iter().map(|&v| v as u32).collect();

    let before = engine.state().expect("a state");
    let (report, grads) = engine.gradients(x.clone(), Lesson::learn(&labels)).expect("gradients");
    let losses = report.losses;
    let mut read = Read(&grads, BTreeMap::new());
    engine.net.visit(&mut read);
    for (name, grad) in read.1 {
        let their = format!("grad.{}", theirs(&name));
        let want = get(&their);
        // Biases in front of a batch norm have no gradient but rounding.
        if want.iter().all(|v| v.abs() < 1e-6) {
            assert!(grad.iter().all(|v| v.abs() < 1e-6), "{name}: not zero");
        } else {
            close(&their, &grad, &want);
        }
    }
    let want = get("loss0");
    close("loss0", &[losses.total, losses.ce, losses.mse, losses.tv], &want);

    engine.restore(&before).expect("same shapes");
    for step in 0..3 {
        let losses = engine.step(x.clone(), Lesson::learn(&labels), 1e-3).expect("step").losses;
        let want = get(&format!("loss{step}"));
        let (most, _) = largest_difference("loss", &[losses.total, losses.ce, losses.mse, losses.tv], &want);
        assert!(most < 1e-3, "loss of step {step} differs by {most}");
    }
    for (name, values) in &engine.state().expect("a state").tensors {
        if name.starts_with("first.") || name.starts_with("second.") {
            continue;
        }
        let want = get(&format!("after.{}", theirs(name)));
        // A bias in front of a batch norm drifts with the sign of rounding errors: it has no effect.
        let idle = want.len() == values.len() && name.ends_with(".bias") && {
            let grad = golden.get(&format!("grad.{}", theirs(name)));
            grad.is_some_and(|(_, g)| g.iter().all(|v| v.abs() < 1e-6))
        };
        let (most, _) = largest_difference(name, values, &want);
        let limit = if name.ends_with("var") { 1e-3 } else { THREE_STEPS };
        assert!(idle || most <= limit, "{name} after three steps differs by {most}");
    }
    let logits = engine.logits(&x);
    let (most, top) = largest_difference("eval.logits", &logits, &get("eval.logits"));
    assert!(most <= 2e-3 * top, "logits after three steps differ by {most} of {top}");
    let rec = engine.reconstruct(&x).expect("a decoder");
    let (most, top) = largest_difference("eval.rec", &rec, &get("eval.rec"));
    assert!(most <= 2e-3 * top, "reconstruction after three steps differs by {most} of {top}");
}
