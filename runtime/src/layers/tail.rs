//! The tail of a classifier: batch norm, leaky ReLU, global average pool, linear layer.

use super::SLOPE;
use super::norm::{self, NormGrads, NormParams, NormState};
use crate::kernels::Kernels;
use crate::shape::Shape;
use crate::slices::{copy, rows, rows_mut, split_mut, start, start_mut};

/// Parameters of the tail.
#[derive(Clone, Copy, Debug)]
pub struct TailParams<'a> {
    /// Norm over the map's channels.
    pub norm: NormParams<'a>,
    /// `[c][classes]`
    pub weight: &'a [f32],
    /// `[classes]`
    pub bias: &'a [f32],
}

/// Their gradients.
#[derive(Debug)]
pub struct TailGrads<'a> {
    /// Norm.
    pub norm: NormGrads<'a>,
    /// `[c][classes]`
    pub weight: &'a mut [f32],
    /// `[classes]`
    pub bias: &'a mut [f32],
}

/// Logits (`[n][classes]`) of `n` maps `x` of shape `s`. `sums` are those of `x` for batch statistics, or none where
/// `state` holds running ones; `pooled` (`[n][c]`) and `state` (`4 * c`) are what the backward pass needs.
#[allow(clippy::too_many_arguments)]
pub fn forward<K: Kernels + ?Sized>(
    k: &K,
    s: Shape,
    n: usize,
    p: &TailParams<'_>,
    x: &[f32],
    sums: Option<&[f64]>,
    state: &mut [f32],
    pooled: &mut [f32],
    logits: &mut [f32],
) {
    let c = s.c as usize;
    let pixels = (s.h * s.w) as usize;
    if let Some(sums) = sums {
        norm::from_batch(p.norm, sums, n * pixels, state);
    }
    k.pool_forward(c, pixels, start(x, n * s.len()), &NormState::new(state).prologue(SLOPE), start_mut(pooled, n * c));
    let classes = p.bias.len();
    for (pooled, logits) in rows(pooled, c).zip(rows_mut(logits, classes)).take(n) {
        copy(p.bias, logits);
        for (&v, w) in pooled.iter().zip(rows(p.weight, classes)) {
            for (l, &w) in logits.iter_mut().zip(w) {
                *l += v * w;
            }
        }
    }
}

/// Values of scratch the backward pass takes in `f32` for a batch of `n` maps of `c` channels.
pub const fn backward_len(c: usize, n: usize) -> usize {
    n * c + 3 * c
}

/// The backward pass: `dx` (`[n][s]`) and the parameters' gradients from `dlogits` (`[n][classes]`).
#[allow(clippy::too_many_arguments)]
pub fn backward<K: Kernels + ?Sized>(
    k: &K,
    s: Shape,
    n: usize,
    p: &TailParams<'_>,
    x: &[f32],
    state: &[f32],
    pooled: &[f32],
    dlogits: &[f32],
    dx: &mut [f32],
    grads: TailGrads<'_>,
    scratch: &mut [f32],
    sums: &mut [f64],
) {
    let (c, classes) = (s.c as usize, p.bias.len());
    let pixels = (s.h * s.w) as usize;
    let (dpooled, coefficients) = split_mut(scratch, n * c);
    grads.weight.fill(0.0);
    grads.bias.fill(0.0);
    for ((pooled, dlogits), dpooled) in rows(pooled, c).zip(rows(dlogits, classes)).zip(rows_mut(dpooled, c)).take(n) {
        for (b, &d) in grads.bias.iter_mut().zip(dlogits) {
            *b += d;
        }
        for ((&v, dp), (w, dw)) in
            pooled.iter().zip(dpooled).zip(rows(p.weight, classes).zip(rows_mut(grads.weight, classes)))
        {
            let mut sum = 0.0;
            for ((&d, &w), dw) in dlogits.iter().zip(w).zip(dw) {
                *dw += v * d;
                sum += w * d;
            }
            *dp = sum / pixels as f32;
        }
    }
    let state = NormState::new(state);
    let (x, dx, sums) = (start(x, n * s.len()), start_mut(dx, n * s.len()), start_mut(sums, 2 * c));
    k.pool_backward(c, pixels, x, &state.prologue(SLOPE), dpooled, dx, sums);
    let coefficients = start_mut(coefficients, 3 * c);
    norm::backward(state, sums, n * pixels, grads.norm, coefficients);
    k.norm_gradient(c, dx, x, coefficients, None);
}
