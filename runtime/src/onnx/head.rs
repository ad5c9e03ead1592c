//! A head as ONNX nodes behind its stem: one file for any ONNX runtime.

use super::export::{export_net, int, ints};
use super::{OnnxBuilder, OnnxError};
use crate::artifact::{ArtifactParts, HeadKind, HeadParts, head_params};
use crate::head::HeadModel;
use crate::head::linear::Linear;
use crate::head::residual::Residual;
use crate::layers::SLOPE;
use crate::layers::norm::{EPS, NormParams};
use crate::layers::unit::ConvParams;
use crate::net::{Activation, Window};
use crate::shape::Shape;
use crate::stem::Stem;
use crate::tripwire::WEIGHT;
use std::prelude::v1::*;

/// A logit that counts for nothing beside others.
const LEAST: f32 = -1e30;

/// One file of a whole artifact: input `images`, the stem's output `features`, and the head's `logits`. Without a head the
/// stem's output is the file's. With a tripwire there is a second output, `alarm` (`[N]`): the
/// [`score`](crate::tripwire::score); the threshold is not in the file.
///
/// # Errors
/// The stem is in 8 bits, or the head does not fit it; those of [`export_net`] and [`OnnxBuilder::finish`].
pub fn defended(parts: &ArtifactParts<'_>) -> Result<Vec<u8>, OnnxError> {
    let Stem::F32(stem) = &parts.stem else {
        return Err(OnnxError::Graph(
            "an int8 stem has no ONNX form here; the f32 artifact it was made from has".into(),
        ));
    };
    let mut b = OnnxBuilder::new();
    b.input("images", stem.input());
    let (last, dims) = export_net(stem, &mut b, "images")?;
    b.rename(&last, "features");
    match &parts.head {
        None => b.output("features", &dims),
        Some(head) => {
            let map = if dims.len() == 1 { b.unflatten("features") } else { "features".into() };
            let logits = add_head(&mut b, head, parts.stem.output(), &map)?;
            b.rename(&logits, "logits");
            b.output("logits", &[head.classes as usize]);
            if let Some(tripwire) = &parts.tripwire {
                if tripwire.witness.classes != head.classes {
                    return Err(OnnxError::Graph("the tripwire does not fit the head".into()));
                }
                let witness = add_head(&mut b, &tripwire.witness, parts.stem.output(), &map)?;
                let alarm = add_alarm(&mut b, &witness, "logits", head.classes as usize);
                b.rename(&alarm, "alarm");
                b.output("alarm", &[]);
            }
        }
    }
    b.finish()
}

/// Adds a head that reads the map `x` of shape `features`; the name of its logits, `[N, classes]`.
fn add_head(b: &mut OnnxBuilder, head: &HeadParts<'_>, features: Shape, x: &str) -> Result<String, OnnxError> {
    let classes = head.classes as usize;
    let unfit = |why: &dyn core::fmt::Display| OnnxError::Graph(format!("the head does not fit the stem: {why}"));
    if head.params.len() != head_params(head.kind, features, head.classes) {
        return Err(unfit(&"it has the wrong number of parameters"));
    }
    match head.kind {
        HeadKind::Linear => {
            let sizes = Linear::new(features, classes).map_err(|e| unfit(&e))?;
            Ok(add_linear(b, &sizes, head.params, classes, x))
        }
        HeadKind::Residual => {
            let sizes = Residual::new(features, classes).map_err(|e| unfit(&e))?;
            Ok(add_residual(b, &sizes, head.params, features.c as usize, classes, x))
        }
    }
}

/// The tripwire's score of `[N, classes]` logits each, `[N]`: the log-odds of class `t` by the witness less those by the new head
/// times [`WEIGHT`], `t` the place of the largest of the witness, the first of equals.
fn add_alarm(b: &mut OnnxBuilder, witness: &str, new: &str, classes: usize) -> String {
    let t = b.node("ArgMax", vec![witness.into()], vec![int("axis", 1), int("keepdims", 1)]);
    let places = b.integers(&[1, classes], &(0..classes as i64).collect::<Vec<_>>());
    let (own, nothing) = (b.node("Equal", vec![places, t.clone()], vec![]), b.constant(&[1, 1], &[LEAST]));
    let odds = |b: &mut OnnxBuilder, logits: &str| {
        let z = b.node("GatherElements", vec![logits.into(), t.clone()], vec![int("axis", 1)]);
        let others = b.node("Where", vec![own.clone(), nothing.clone(), logits.into()], vec![]);
        // The logarithm of summed exponentials: the largest less its log-softmax.
        let log = b.node("LogSoftmax", vec![others.clone()], vec![int("axis", 1)]);
        let [top, log] =
            [others, log].map(|x| b.node("ReduceMax", vec![x], vec![ints("axes", [1]), int("keepdims", 1)]));
        let sum = b.node("Sub", vec![top, log], vec![]);
        b.node("Sub", vec![z, sum], vec![])
    };
    let (witness, new) = (odds(b, witness), odds(b, new));
    let weight = b.constant(&[1, 1], &[if classes > 1 { WEIGHT } else { 1.0 }]);
    let weighed = b.mul(&new, &weight);
    let score = b.node("Sub", vec![witness, weighed], vec![]);
    let axes = b.integers(&[1], &[1]);
    b.node("Squeeze", vec![score, axes], vec![])
}

/// Means of the positive and of the negative part, standardised, and a linear layer.
fn add_linear(b: &mut OnnxBuilder, head: &Linear, params: &[f32], classes: usize, x: &str) -> String {
    let width = head.width();
    let (trained, statistics) = params.split_at(head.trained());
    let (weight, bias) = trained.split_at(width * classes);
    let (mean, inverse) = statistics.split_at(width);

    let minus = b.constant(&[1, 1, 1], &[-1.0]);
    let negated = b.mul(x, &minus);
    let halves = [x, &negated].map(|x| {
        let part = b.activation(x, Activation::Relu);
        b.global_average_pool(&part)
    });
    let pooled = b.concat(&[&halves[0], &halves[1]]);
    let pooled = b.flatten(&pooled);
    let minus_mean: Vec<f32> = mean.iter().map(|m| -m).collect();
    let (minus_mean, inverse) = (b.constant(&[width], &minus_mean), b.constant(&[width], inverse));
    let centred = b.add(&pooled, &minus_mean);
    let standard = b.mul(&centred, &inverse);
    b.gemm(&standard, &columns(weight, classes), classes, Some(bias))
}

/// The residual unit, batch norm, leaky ReLU, mean over the map, and a linear layer.
fn add_residual(b: &mut OnnxBuilder, head: &Residual, params: &[f32], c: usize, classes: usize, x: &str) -> String {
    let p = head.split(params);
    let [mean1, var1, mean2, var2, mean, var] = p.running;
    let mut y = x.to_string();
    if let Some(norm) = p.unit.norm1 {
        y = add_norm(b, &y, norm, mean1, var1);
    }
    y = add_conv(b, &y, p.unit.conv1, c);
    y = add_norm(b, &y, p.unit.norm2, mean2, var2);
    y = add_conv(b, &y, p.unit.conv2, c);
    y = b.add(&y, x);
    y = add_norm(b, &y, p.tail.norm, mean, var);
    y = b.global_average_pool(&y);
    y = b.flatten(&y);
    b.gemm(&y, &columns(p.tail.weight, classes), classes, Some(p.tail.bias))
}

/// A batch norm on running statistics, and the leaky ReLU behind it.
fn add_norm(b: &mut OnnxBuilder, x: &str, norm: NormParams<'_>, mean: &[f32], var: &[f32]) -> String {
    let y = b.batch_norm(x, norm.gamma, norm.beta, mean, var, EPS);
    b.activation(&y, Activation::Leaky(SLOPE))
}

/// A 3x3 convolution from `c` to `c` channels, padding 1.
fn add_conv(b: &mut OnnxBuilder, x: &str, conv: ConvParams<'_>, c: usize) -> String {
    let window = Window { kernel: [3, 3], stride: [1, 1], pad: [1; 4] };
    // [cell][cin][cout] to [cout][cin][cell].
    let mut turned = Vec::with_capacity(conv.weight.len());
    for to in 0..c {
        for from in 0..c {
            turned.extend((0..9).map(|cell| conv.weight[(cell * c + from) * c + to]));
        }
    }
    b.conv(x, &turned, [c, c, 3, 3], Some(conv.bias), window, 1)
}

/// `[in][out]` to `[out][in]`.
fn columns(weight: &[f32], out: usize) -> Vec<f32> {
    (0..out).flat_map(|o| weight.iter().skip(o).step_by(out).copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::TripwireParts;
    use crate::kernels::simd::Simd;
    use crate::net::NetBuilder;
    use crate::onnx::{Model, TractModel};
    use crate::rng::Rng;
    use crate::session::Session;

    /// The largest difference from the session's logits, relative to the largest logit.
    const TOLERANCE: f32 = 1e-4;

    fn random(n: usize, stream: u64) -> Vec<f32> {
        let mut rng = Rng::new(7, stream);
        (0..n).map(|_| rng.normal()).collect()
    }

    /// Parameters far from their initial values: norms that move, statistics that differ by channel.
    fn params(kind: HeadKind, features: Shape, classes: usize) -> Vec<f32> {
        let n = head_params(kind, features, classes as u32);
        let mut rng = Rng::new(3, 0);
        let mut params = vec![0.0; n];
        let statistics = match kind {
            HeadKind::Linear => Linear::new(features, classes).unwrap().trained(),
            HeadKind::Residual => Residual::new(features, classes).unwrap().trained(),
        };
        for (i, p) in params.iter_mut().enumerate() {
            *p = if i < statistics { 0.3 * rng.normal() } else { 0.5 + rng.uniform() };
        }
        params
    }

    #[test]
    fn tract_gives_the_logits_of_the_session() {
        let mut b = NetBuilder::new();
        let x = b.input(Shape::new(7, 6, 3));
        let window = Window { kernel: [3, 3], stride: [1, 1], pad: [1; 4] };
        let y = b.conv(x, window, 1, random(9 * 3 * 8, 1), Some(random(8, 2)), Activation::Leaky(0.1)).unwrap();
        let map = b.finish(y).unwrap();
        let mut b = NetBuilder::new();
        let x = b.input(Shape::new(7, 6, 3));
        let y = b.linear(x, random(126 * 5, 3), None, Activation::None).unwrap();
        let vector = b.finish(y).unwrap();

        for (net, kind) in
            [&map, &vector].into_iter().flat_map(|n| [HeadKind::Linear, HeadKind::Residual].map(|k| (n, k)))
        {
            let (stem, classes) = (net.as_net(), 4);
            let params = params(kind, stem.output(), classes);
            let head = Some(HeadParts { kind, classes: classes as u32, params: &params });
            let parts =
                ArtifactParts { name: "t", labels: "", provenance: "", stem: stem.into(), head, tripwire: None };
            let file = Model::from_bytes(&defended(&parts).unwrap()).unwrap();
            let tract = TractModel::new(&file, None).unwrap();
            let session = Session::of_artifact(&parts, Simd::new(1)).unwrap();
            let hwc = random(126, 4);
            let chw: Vec<f32> = (0..3).flat_map(|c| hwc.iter().skip(c).step_by(3).copied()).collect();
            let (mut wanted, mut found) = (vec![0.0; classes], Vec::new());
            session.infer(&hwc, &mut wanted).unwrap();
            tract.run(&chw, &mut found).unwrap();
            let largest = wanted.iter().fold(0f32, |m, v| m.max(v.abs()));
            assert_eq!(found.len(), wanted.len());
            for (a, b) in found.iter().zip(&wanted) {
                assert!((a - b).abs() <= TOLERANCE * largest, "{kind:?}: {found:?} {wanted:?}");
            }
            assert!(largest.is_finite() && largest > 0.0);
        }
    }

    #[test]
    fn the_second_output_is_the_tripwires_score() {
        let mut b = NetBuilder::new();
        let x = b.input(Shape::new(5, 4, 3));
        let window = Window { kernel: [3, 3], stride: [1, 1], pad: [1; 4] };
        let y = b.conv(x, window, 1, random(9 * 3 * 6, 1), None, Activation::Leaky(0.1)).unwrap();
        let net = b.finish(y).unwrap();
        let stem = net.as_net();
        let kinds = [HeadKind::Linear, HeadKind::Residual];
        let params = kinds.map(|kind| params(kind, stem.output(), 4));
        let heads = [0, 1].map(|i| HeadParts { kind: kinds[i], classes: 4, params: &params[i] });
        for (head, witness) in [(heads[0], heads[1]), (heads[1], heads[0])] {
            let tripwire = Some(TripwireParts { witness, threshold: 0.5, false_positive_rate: 0.01 });
            let (name, labels, provenance, stem) = ("t", "", "", stem.into());
            let parts = ArtifactParts { name, labels, provenance, stem, head: Some(head), tripwire };
            let file = Model::from_bytes(&defended(&parts).unwrap()).unwrap();
            assert_eq!(file.output_names(), ["logits", "alarm"]);
            let [logits, alarm] = ["logits", "alarm"].map(|cut| TractModel::new(&file, Some(cut)).unwrap());
            // Without a cut the answer is meant.
            assert_eq!(TractModel::new(&file, None).unwrap().output_dims(), logits.output_dims());
            assert_eq!(alarm.output_dims(), [1]);
            let session = Session::of_artifact(&parts, Simd::new(1)).unwrap();
            let hwc: Vec<f32> = (0..5).flat_map(|i| random(60, 10 + i)).collect();
            let (mut wanted, mut scores) = ([0.0; 5 * 4], [0.0; 5]);
            session.infer_watched(&hwc, &mut wanted, &mut scores).unwrap();
            for (i, hwc) in hwc.chunks_exact(60).enumerate() {
                let chw: Vec<f32> = (0..3).flat_map(|c| hwc.iter().skip(c).step_by(3).copied()).collect();
                let (mut found, mut score) = (Vec::new(), Vec::new());
                logits.run(&chw, &mut found).unwrap();
                alarm.run(&chw, &mut score).unwrap();
                assert_eq!((found.len(), score.len()), (4, 1));
                let largest = wanted.iter().fold(1f32, |m, v| m.max(v.abs()));
                for (a, b) in found.iter().zip(&wanted[4 * i..]).chain([(&score[0], &scores[i])]) {
                    assert!((a - b).abs() <= 2.0 * TOLERANCE * largest, "{found:?} {score:?}: {wanted:?} {scores:?}");
                }
            }
            let short = HeadParts { classes: 3, ..witness };
            let tripwire = tripwire.map(|t| TripwireParts { witness: short, ..t });
            assert!(matches!(defended(&ArtifactParts { tripwire, ..parts }), Err(OnnxError::Graph(_))));
        }
    }

    #[test]
    fn a_stem_alone_ends_in_features_and_an_unfit_head_is_refused() {
        let mut b = NetBuilder::new();
        let x = b.input(Shape::new(4, 4, 3));
        let y = b.activation(x, Activation::Relu).unwrap();
        let net = b.finish(y).unwrap();
        let parts = ArtifactParts {
            name: "",
            labels: "",
            provenance: "",
            stem: net.as_net().into(),
            head: None,
            tripwire: None,
        };
        let file = Model::from_bytes(&defended(&parts).unwrap()).unwrap();
        assert_eq!(file.output_names(), ["features"]);
        let head = Some(HeadParts { kind: HeadKind::Linear, classes: 2, params: &[0.0; 3] });
        assert!(matches!(defended(&ArtifactParts { head, ..parts }), Err(OnnxError::Graph(_))));
    }
}
