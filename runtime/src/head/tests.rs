//! Heads: gradients against finite differences, training that learns, inference that agrees over kernels.

use super::linear::Linear;
use super::residual::Residual;
use super::{Dropout, HeadModel};
use crate::artifact::{HeadKind, head_params};
use crate::kernels::reference::Reference;
use crate::kernels::simd::Simd;
use crate::replace::{Bf16, FeatureBank, Settings, Stored, fit, memory_len};
use crate::rng::Rng;
use crate::shape::Shape;
use std::prelude::v1::*;
use std::vec;

const SHAPE: Shape = Shape::new(4, 4, 6);
const CLASSES: usize = 3;

fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed, 0);
    (0..len).map(|_| rng.normal()).collect()
}

fn one_hot(labels: &[u32]) -> Vec<f32> {
    let mut t = vec![0.0; labels.len() * CLASSES];
    for (row, &l) in t.chunks_exact_mut(CLASSES).zip(labels) {
        row[l as usize] = 1.0;
    }
    t
}

fn initial<H: HeadModel>(head: &H) -> Vec<f32> {
    let mut params = vec![0.0; head.params()];
    head.initialise(&mut Rng::new(1, 2), &mut params);
    // Away from symmetric starts.
    for (p, n) in params[..head.trained()].iter_mut().zip(noise(head.trained(), 3)) {
        *p += 0.1 * n;
    }
    params
}

fn loss<H: HeadModel>(head: &H, params: &[f32], x: &[f32], targets: &[f32], n: usize, grads: &mut [f32]) -> f32 {
    let dropout = Dropout { rate: 0.25, seed: 5, stream: 6 };
    let (mut p, mut x) = (params.to_vec(), x.to_vec());
    let mut scratch = vec![0.0; head.training_len(n)];
    let mut sums = vec![0.0; head.training_sums()];
    head.gradient(&Reference, n, &mut p, &mut x, targets, dropout, grads, &mut scratch, &mut sums)
}

fn gradient_agrees_with_finite_differences<H: HeadModel>() {
    let n = 5;
    let head = H::new(SHAPE, CLASSES).expect("shape");
    let params = initial(&head);
    let (x, targets) = (noise(n * SHAPE.len(), 4), one_hot(&[0, 1, 2, 0, 1]));
    let mut grads = vec![0.0; head.trained()];
    loss(&head, &params, &x, &targets, n, &mut grads);
    let top = grads.iter().fold(0.0f32, |m, g| m.max(g.abs()));
    let mut ignored = vec![0.0; head.trained()];
    for (i, &grad) in grads.iter().enumerate() {
        let mut at = |step: f32| {
            let mut p = params.clone();
            p[i] += step;
            f64::from(loss(&head, &p, &x, &targets, n, &mut ignored))
        };
        // A step may cross a leaky ReLU's kink; one to the other side does not, or a shorter one, until rounding counts.
        let here = at(0.0);
        let mut apart = |step: f32| {
            let (up, down, long) = (at(step), at(-step), f64::from(step));
            let slopes = [(up - down) / (2.0 * long), (up - here) / long, (here - down) / long];
            slopes.map(|slope| (slope - f64::from(grad)).abs()).into_iter().fold(f64::MAX, f64::min)
        };
        let least = [4e-3, 2e-3, 1e-3, 5e-4].map(&mut apart).into_iter().fold(f64::MAX, f64::min);
        let allowed = 0.02 * f64::from(grad.abs().max(0.1 * top));
        assert!(least <= allowed, "parameter {i}: {least} apart, {allowed} allowed, of {grad}");
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    gradient_agrees_with_finite_differences::<Residual>();
    gradient_agrees_with_finite_differences::<Linear>();
}

#[test]
fn parameter_counts_are_the_artifacts() {
    for shape in [SHAPE, Shape::new(8, 8, 64), Shape::new(1, 1, 3)] {
        let residual = Residual::new(shape, CLASSES).expect("shape");
        let linear = Linear::new(shape, CLASSES).expect("shape");
        assert_eq!(residual.params(), head_params(HeadKind::Residual, shape, CLASSES as u32));
        assert_eq!(linear.params(), head_params(HeadKind::Linear, shape, CLASSES as u32));
    }
}

/// Features whose class shows in one channel.
fn separable(n: usize) -> (Vec<f32>, Vec<u32>) {
    let labels: Vec<u32> = (0..n as u32).map(|i| i % CLASSES as u32).collect();
    let mut x = noise(n * SHAPE.len(), 9);
    for (x, &l) in x.chunks_exact_mut(SHAPE.len()).zip(&labels) {
        x.iter_mut().skip(l as usize).step_by(SHAPE.c as usize).for_each(|v| *v += 1.5);
    }
    (x, labels)
}

fn learns<H: HeadModel>(settings: &Settings) {
    let head = H::new(SHAPE, CLASSES).expect("shape");
    let (x, labels) = separable(240);
    let train = |kernels: &dyn crate::kernels::Kernels| {
        let mut bank = FeatureBank::new(&x, &labels, SHAPE, 1).expect("bank");
        let mut params = vec![0.0; head.params()];
        let mut memory = vec![0.0; memory_len(&head, settings.batch)];
        let (mut sums, mut order) = (vec![0.0; head.training_sums()], vec![0; 2 * labels.len()]);
        let (memory, order) = (&mut memory, &mut order);
        fit(kernels, &head, settings, &mut bank, &mut params, memory, &mut sums, order, &mut |_| true).expect("fit");
        params
    };
    let params = train(&Reference);
    let (fresh, labels) = separable(240);
    for kernels in [&Reference as &dyn crate::kernels::Kernels, &Simd::new(2)] {
        let mut scratch = vec![0.0; head.inference_len(240)];
        let mut logits = vec![0.0; 240 * CLASSES];
        head.infer(kernels, 240, &params, &fresh, &mut scratch, &mut logits);
        let right =
            logits.chunks_exact(CLASSES).zip(&labels).filter(|(row, l)| crate::metrics::argmax(row) == **l as usize);
        assert!(right.count() > 220);
    }
    assert_eq!(train(&Simd::new(1)), train(&Simd::new(2)), "threads change the bits");
}

#[test]
fn features_of_another_shape_are_refused() {
    let (x, labels) = separable(240);
    let settings = Settings { epochs: 1, batch: 32, ..Settings::CACHED };
    // As many values, other channels.
    let turned = Shape::new(SHAPE.c, SHAPE.h, SHAPE.w);
    assert!(turned != SHAPE && turned.len() == SHAPE.len());
    let mut bank = FeatureBank::new(&x, &labels, turned, 1).expect("bank");
    let head = Residual::new(SHAPE, CLASSES).expect("shape");
    let (mut params, mut memory) = (vec![7.0; head.params()], vec![0.0; memory_len(&head, settings.batch)]);
    let (mut sums, mut order) = (vec![0.0; head.training_sums()], vec![0; 2 * labels.len()]);
    let (p, m) = (&mut params, &mut memory);
    let refused = fit(&Reference, &head, &settings, &mut bank, p, m, &mut sums, &mut order, &mut |_| true);
    assert_eq!(refused, Err(crate::error::Error::HeadDoesNotFit));
    assert!(params.iter().all(|&p| p == 7.0));
}

#[test]
fn both_heads_learn_and_threads_do_not_matter() {
    learns::<Residual>(&Settings { epochs: 12, batch: 16, ..Settings::CACHED });
    learns::<Linear>(&Settings { epochs: 30, batch: 16, ..Settings::LINEAR });
}

/// Every upper half of a number comes back as it is; others are rounded to the nearer one, to the even one between two.
#[test]
fn stored_halves_are_the_nearest() {
    for half in 0..=u16::MAX {
        let x = f32::from_bits(u32::from(half) << 16);
        let back = f32::from(Bf16::from(x));
        assert!(back.to_bits() == x.to_bits() || x.is_nan() && back.is_nan(), "{x}");
    }
    for (x, want) in [
        (1.0 + 1.0 / 256.0, 1.0),
        (1.0 + 3.0 / 256.0, 1.015625),
        (1.003, 1.0),
        (1.005, 1.0078125),
        (-1.005, -1.0078125),
    ] {
        assert_eq!(f32::from(Bf16::from(x)), want);
    }
    assert!(!Bf16::from(f32::MAX).is_finite() && !Bf16::from(f32::NAN).is_finite());
    let mut x = [0.0; 2];
    Bf16::load(&[2.5.into(), (-3.0).into()], &mut x);
    assert_eq!(x, [2.5, -3.0]);
}
