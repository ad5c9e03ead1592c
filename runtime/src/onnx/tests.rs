//! Lowered nets, tract and re-exported files against each other and against PyTorch's answers.

mod hostile;
mod operations;
mod refused;

use super::export::export_net;
use super::{Model, OnnxBuilder, OnnxError, TractModel, lower, merged};
use crate::net::{Activation, OwnedNet, Scalar};
use crate::shape::Shape;
use std::path::PathBuf;
use std::prelude::v1::*;

/// The largest relative difference allowed between two ways of computing one value: max |a - b| / max |b|.
const TOLERANCE: f32 = 1e-4;

/// The small models of `make_onnx.py`.
const MODELS: [&str; 5] = ["mobile", "concat", "gemm", "resnet", "shapes"];

fn testdata(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata")).join(name)
}

fn model(name: &str) -> Model {
    Model::from_file(testdata(&format!("{name}.onnx"))).unwrap()
}

/// One `f32` array of an uncompressed `.npz`: its dimensions and elements.
fn npz(file: &str, name: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = std::fs::read(testdata(file)).unwrap();
    let entry = format!("{name}.npy");
    let find = |from: usize, what: &[u8]| bytes[from..].windows(what.len()).position(|w| w == what).map(|at| from + at);
    let at = find(find(0, entry.as_bytes()).unwrap(), b"\x93NUMPY").unwrap();
    let header_len = usize::from(u16::from_le_bytes([bytes[at + 8], bytes[at + 9]]));
    let header = std::str::from_utf8(&bytes[at + 10..at + 10 + header_len]).unwrap();
    assert!(header.contains("'<f4'") && header.contains("'fortran_order': False"), "{header}");
    let shape = header.split_once('(').unwrap().1.split_once(')').unwrap().0;
    let dims: Vec<usize> = shape.split(',').filter_map(|d| d.trim().parse().ok()).collect();
    let data = bytes[at + 10 + header_len..].chunks_exact(4).take(dims.iter().product());
    (dims, data.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

/// `[c][h][w]` to `[h][w][c]`.
fn to_hwc(shape: Shape, chw: &[f32]) -> Vec<f32> {
    let (area, c) = ((shape.h * shape.w) as usize, shape.c as usize);
    (0..area).flat_map(|p| (0..c).map(move |i| chw[i * area + p])).collect()
}

/// `[h][w][c]` to `[c][h][w]`.
fn to_chw(shape: Shape, hwc: &[f32]) -> Vec<f32> {
    let (area, c) = ((shape.h * shape.w) as usize, shape.c as usize);
    (0..c).flat_map(|i| (0..area).map(move |p| hwc[p * c + i])).collect()
}

/// max |a - b| / max |b|; infinite for a NaN on either side or different lengths.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    if a.len() != b.len() || a.iter().chain(b).any(|v| !v.is_finite()) {
        return f32::INFINITY;
    }
    let off = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    off / b.iter().map(|b| b.abs()).fold(1e-6, f32::max)
}

#[track_caller]
fn near(what: &str, a: &[f32], b: &[f32]) -> f32 {
    let d = difference(a, b);
    assert!(d <= TOLERANCE, "{what}: {d} apart ({} and {} values)", a.len(), b.len());
    d
}

/// Runs a net on a picture in `[c][h][w]`; the output in `[c][h][w]`.
fn run_net(net: &OwnedNet, chw: &[f32]) -> Vec<f32> {
    let net = net.as_net();
    let (mut arena, mut out) = (vec![0.0; net.arena_len()], vec![0.0; net.output().len()]);
    net.run(&mut Scalar, &to_hwc(net.input(), chw), &mut arena, &mut out).unwrap();
    to_chw(net.output(), &out)
}

fn run_tract(model: &TractModel, chw: &[f32]) -> Vec<f32> {
    let mut out = Vec::new();
    model.run(chw, &mut out).unwrap();
    out
}

/// A picture of reproducible noise in 0..1.
fn noise(shape: Shape) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32
    };
    (0..shape.len()).map(|_| next()).collect()
}

/// A net written as a file and read again.
fn exported(net: &OwnedNet) -> Model {
    let mut builder = OnnxBuilder::new();
    builder.input("images", net.as_net().input());
    let (name, dims) = export_net(&net.as_net(), &mut builder, "images").unwrap();
    builder.rename(&name, "output");
    builder.output("output", &dims);
    Model::from_bytes(&builder.finish().unwrap()).unwrap()
}

#[test]
fn golden_features_and_logits() {
    let (dims, x) = npz("inference_small.npz", "x");
    assert_eq!(dims, [8, 3, 32, 32]);
    for (file, cut, answer) in [
        ("stem", None, "features"),
        ("stem", Some("features"), "features"),
        ("full", Some("/stem/stem.5/Add_output_0"), "features"),
        ("full", None, "logits"),
    ] {
        let model = model(file);
        let (dims, wanted) = npz("inference_small.npz", answer);
        let len = dims[1..].iter().product();
        let net = lower(&model, cut).unwrap();
        let tract = TractModel::new(&model, cut).unwrap();
        assert_eq!(tract.output_shape(), Some(net.as_net().output()));
        let mut worst = [0f32; 2];
        for (x, wanted) in x.chunks_exact(3 * 32 * 32).zip(wanted.chunks_exact(len)) {
            worst[0] = worst[0].max(near("lowered", &run_net(&net, x), wanted));
            worst[1] = worst[1].max(near("tract", &run_tract(&tract, x), wanted));
        }
        std::println!("{file} {cut:?}: lowered {:.1e}, tract {:.1e}", worst[0], worst[1]);
    }
}

#[test]
fn small_models_agree_with_pytorch() {
    for name in MODELS {
        let model = model(name);
        let (net, tract) = (lower(&model, None).unwrap(), TractModel::new(&model, None).unwrap());
        let again = TractModel::new(&exported(&net), None).unwrap();
        let (_, x) = npz("answers.npz", &format!("{name}.x"));
        let (_, y) = npz("answers.npz", &format!("{name}.y"));
        assert_eq!(x.len(), 2 * model.input_shape().len());
        let mut worst = [0f32; 4];
        for (x, y) in x.chunks_exact(model.input_shape().len()).zip(y.chunks_exact(7)) {
            let (lowered, through_tract, back) = (run_net(&net, x), run_tract(&tract, x), run_tract(&again, x));
            for (worst, (what, a, b)) in worst.iter_mut().zip([
                ("lowered, PyTorch", &lowered[..], y),
                ("tract, PyTorch", &through_tract, y),
                ("lowered, tract", &lowered, &through_tract),
                ("exported again, tract", &back, &through_tract),
            ]) {
                *worst = worst.max(near(&format!("{name}: {what}"), a, b));
            }
        }
        std::println!(
            "{name}: lowered {:.1e}, tract {:.1e}, between {:.1e}, exported again {:.1e}",
            worst[0],
            worst[1],
            worst[2],
            worst[3]
        );
    }
}

/// Tract refuses the `If` that PyTorch writes for a squeeze, since its branches differ in rank.
#[test]
fn control_flow_over_shapes_is_lowered() {
    let model = model("squeeze");
    assert!(matches!(TractModel::new(&model, None), Err(OnnxError::Tract(_))));
    let net = lower(&model, None).unwrap();
    let again = TractModel::new(&exported(&net), None).unwrap();
    let (_, x) = npz("answers.npz", "squeeze.x");
    let (_, y) = npz("answers.npz", "squeeze.y");
    for (x, y) in x.chunks_exact(model.input_shape().len()).zip(y.chunks_exact(7)) {
        let (a, b) = (near("lowered", &run_net(&net, x), y), near("exported again", &run_tract(&again, x), y));
        std::println!("squeeze: lowered {a:.1e}, exported again {b:.1e}");
    }
}

#[test]
fn every_cut_agrees_with_tract() {
    for name in MODELS {
        let model = model(name);
        let x = noise(model.input_shape());
        let (mut lowered, mut worst) = (0, 0f32);
        for cut in model.tensor_names() {
            let Ok(net) = lower(&model, Some(cut)) else { continue };
            let tract = TractModel::new(&model, Some(cut)).unwrap();
            worst = worst.max(near(&format!("{name} at {cut}"), &run_net(&net, &x), &run_tract(&tract, &x)));
            let again = TractModel::new(&exported(&net), None).unwrap();
            near(&format!("{name} at {cut}, exported"), &run_tract(&again, &x), &run_tract(&tract, &x));
            lowered += 1;
        }
        std::println!("{name}: {lowered} cuts, {worst:.1e}");
        assert!(lowered >= 8, "{name}: only {lowered} cuts lowered");
    }
}

#[test]
fn merged_file_computes_features_then_logits() {
    let stem = model("stem");
    let net = lower(&stem, None).unwrap();
    let weight: Vec<f32> = noise(Shape::new(1, 10, 64)).iter().map(|v| v - 0.5).collect();
    let bytes = merged(&net.as_net(), |b, features| {
        let x = b.batch_norm(features, &[1.5; 64], &[0.1; 64], &[0.2; 64], &[2.0; 64], 1e-5);
        let x = b.activation(&x, Activation::Leaky(0.1));
        let x = b.global_average_pool(&x);
        let x = b.flatten(&x);
        (b.gemm(&x, &weight, 10, Some(&[0.25; 10])), 10)
    })
    .unwrap();
    let file = tempfile::tempdir().unwrap();
    let path = file.path().join("merged.onnx");
    crate::files::write(&path, b"old").unwrap();
    crate::files::write(&path, &bytes).unwrap();
    assert_eq!(std::fs::read_dir(file.path()).unwrap().count(), 1);

    let whole = Model::from_file(&path).unwrap();
    assert_eq!((whole.input_name(), whole.output_names(), whole.opset()), ("images", &["logits".to_string()][..], 17));
    let x = noise(whole.input_shape());
    let features = run_tract(&TractModel::new(&whole, Some("features")).unwrap(), &x);
    near("features", &features, &run_net(&net, &x));
    let logits = run_tract(&TractModel::new(&whole, None).unwrap(), &x);
    near("logits", &run_net(&lower(&whole, None).unwrap(), &x), &logits);
    let wanted: Vec<f32> = (weight.chunks_exact(64))
        .map(|row| {
            let pooled = features.chunks_exact(64).map(|channel| {
                let leaky = |v: f32| if v > 0.0 { v } else { 0.1 * v };
                channel.iter().map(|v| leaky((v - 0.2) / 2.00001f32.sqrt() * 1.5 + 0.1)).sum::<f32>() / 64.0
            });
            pooled.zip(row).map(|(a, b)| a * b).sum::<f32>() + 0.25
        })
        .collect();
    near("logits by hand", &logits, &wanted);
}

#[test]
fn threads_share_a_plan() {
    let model = model("mobile");
    let tract = TractModel::new(&model, None).unwrap();
    let x = noise(model.input_shape());
    let wanted = run_tract(&tract, &x);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut state = tract.state().unwrap();
                let mut out = vec![0.0; 7];
                for _ in 0..3 {
                    state.run(&x, &mut out).unwrap();
                    assert_eq!(out, wanted);
                }
                assert!(matches!(state.run(&x[1..], &mut out), Err(OnnxError::Tract(_))));
                assert!(matches!(state.run(&x, &mut out[1..]), Err(OnnxError::Tract(_))));
            });
        }
    });
}

#[test]
fn a_model_tells_about_itself() {
    let stem = model("stem");
    assert_eq!(stem.input_shape(), Shape::new(32, 32, 3));
    assert_eq!(stem.output_names(), ["features"]);
    assert_eq!((stem.opset(), stem.producer_name()), (17, "pytorch"));
    assert!(stem.tensor_names().any(|name| name == "/3/Add_output_0"));
}

/// Writes the re-exported files for a look with other runtimes: `STEMGUARD_WRITE=DIR cargo test ... -- --ignored`.
#[test]
#[ignore = "writes files for onnxruntime"]
fn write_exported() {
    let Some(out) = std::env::var_os("STEMGUARD_WRITE") else { return };
    for name in MODELS.into_iter().chain(["squeeze", "stem", "full"]) {
        let net = lower(&model(name), None).unwrap();
        let mut builder = OnnxBuilder::new();
        builder.input("images", net.as_net().input());
        let (last, dims) = export_net(&net.as_net(), &mut builder, "images").unwrap();
        builder.rename(&last, "output");
        builder.output("output", &dims);
        crate::files::write(&PathBuf::from(&out).join(format!("{name}.onnx")), &builder.finish().unwrap()).unwrap();
    }
}
