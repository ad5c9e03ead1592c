//! The tail of a classifier: batch norm, leaky ReLU, global average pool, linear layer.

use super::SLOPE;
use super::norm::{self, NormGrads, NormParams, NormState};
use crate::kernels::Kernels;
use crate::shape::Shape;

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
    k.pool_forward(c, pixels, &x[..n * s.len()], &NormState::new(state).prologue(SLOPE), &mut pooled[..n * c]);
    let classes = p.bias.len();
    for (pooled, logits) in pooled.chunks_exact(c).zip(logits.chunks_exact_mut(classes)).take(n) {
        logits.copy_from_slice(p.bias);
        for (&v, w) in pooled.iter().zip(p.weight.chunks_exact(classes)) {
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
    let (dpooled, coefficients) = scratch.split_at_mut(n * c);
    grads.weight.fill(0.0);
    grads.bias.fill(0.0);
    for ((pooled, dlogits), dpooled) in
        pooled.chunks_exact(c).zip(dlogits.chunks_exact(classes)).zip(dpooled.chunks_exact_mut(c)).take(n)
    {
        for (b, &d) in grads.bias.iter_mut().zip(dlogits) {
            *b += d;
        }
        for ((&v, dp), (w, dw)) in
            pooled.iter().zip(dpooled).zip(p.weight.chunks_exact(classes).zip(grads.weight.chunks_exact_mut(classes)))
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
    let (x, dx, sums) = (&x[..n * s.len()], &mut dx[..n * s.len()], &mut sums[..2 * c]);
    k.pool_backward(c, pixels, x, &state.prologue(SLOPE), dpooled, dx, sums);
    let coefficients = &mut coefficients[..3 * c];
    norm::backward(state, sums, n * pixels, grads.norm, coefficients);
    k.norm_gradient(c, dx, x, coefficients, None);
}
