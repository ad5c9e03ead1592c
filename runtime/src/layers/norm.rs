//! Batch norm: statistics of a batch, the affine map they amount to, and the backward pass.
//!
//! For `z = gamma * (x - mean) / sqrt(var + eps) + beta` (Ioffe and Szegedy, arXiv 1502.03167) the forward pass is one affine map
//! by channel, which convolutions apply to their input on the fly, and the input gradient is `k1 * dz + k2 * x + k3` by
//! channel, which they apply to their output gradient on the fly.

use crate::kernels::Prologue;
use crate::slices::{at, copy, cut, piece, split};

/// Added to the variance.
pub const EPS: f32 = 1e-5;
/// Weight of the newest batch in the running statistics.
pub const MOMENTUM: f32 = 0.1;

/// The trained parameters of one batch norm.
#[derive(Clone, Copy, Debug)]
pub struct NormParams<'a> {
    /// `[c]`
    pub gamma: &'a [f32],
    /// `[c]`
    pub beta: &'a [f32],
}

/// Their gradients.
#[derive(Debug)]
pub struct NormGrads<'a> {
    /// `[c]`
    pub gamma: &'a mut [f32],
    /// `[c]`
    pub beta: &'a mut [f32],
}

/// What a forward pass leaves behind, in `4 * c` values: mean, biased variance, scale, shift.
#[derive(Clone, Copy, Debug)]
pub struct NormState<'a>(&'a [f32]);

/// Values a [`NormState`] takes for `c` channels.
pub const fn state_len(c: usize) -> usize {
    4 * c
}

impl<'a> NormState<'a> {
    /// Reads a state that [`from_batch`] or [`from_running`] wrote.
    pub fn new(state: &'a [f32]) -> Self {
        Self(state)
    }

    fn part(&self, i: usize) -> &'a [f32] {
        let c = self.0.len() / 4;
        piece(self.0, i * c, c)
    }

    /// Batch mean, `[c]`.
    pub fn mean(&self) -> &'a [f32] {
        self.part(0)
    }

    /// Biased batch variance, `[c]`.
    pub fn var(&self) -> &'a [f32] {
        self.part(1)
    }

    /// The norm as a prologue, a leaky ReLU of slope `slope` behind it.
    pub fn prologue(&self, slope: f32) -> Prologue<'a> {
        Prologue { scale: self.part(2), shift: self.part(3), slope }
    }
}

/// Statistics from the sums of `x` and `x * x` over `count` pixels (`[2 * c]`), and the affine map they amount to.
pub fn from_batch(p: NormParams<'_>, sums: &[f64], count: usize, state: &mut [f32]) {
    let c = p.gamma.len();
    let (sums, squares) = split(sums, c);
    let rest = &mut &mut state[..];
    let (means, vars) = (cut(rest, c), cut(rest, c));
    for ((m, v), (&sum, &square)) in means.iter_mut().zip(vars).zip(sums.iter().zip(squares)) {
        let mean = sum / count as f64;
        *m = mean as f32;
        *v = (square / count as f64 - mean * mean).max(0.0) as f32;
    }
    finish(p, state);
}

/// The affine map of running statistics: inference.
pub fn from_running(p: NormParams<'_>, mean: &[f32], var: &[f32], state: &mut [f32]) {
    let c = p.gamma.len();
    let rest = &mut &mut state[..];
    copy(mean, cut(rest, c));
    copy(var, cut(rest, c));
    finish(p, state);
}

fn finish(p: NormParams<'_>, state: &mut [f32]) {
    let (c, rest) = (p.gamma.len(), &mut &mut state[..]);
    let (means, vars, scales, shifts) = (cut(rest, c), cut(rest, c), cut(rest, c), cut(rest, c));
    let statistics = means.iter().zip(&*vars).zip(p.gamma.iter().zip(p.beta));
    for (((&mean, &var), (&gamma, &beta)), (scale, shift)) in statistics.zip(scales.iter_mut().zip(shifts)) {
        *scale = gamma / libm::sqrtf(var + EPS);
        *shift = beta - mean * *scale;
    }
}

/// Moves running statistics towards those of a batch of `count` pixels; the variance unbiased, as is customary.
pub fn update_running(state: NormState<'_>, count: usize, mean: &mut [f32], var: &mut [f32]) {
    let unbias = count as f32 / (count.max(2) - 1) as f32;
    for ((m, v), (&mean, &var)) in mean.iter_mut().zip(var).zip(state.mean().iter().zip(state.var())) {
        *m += MOMENTUM * (mean - *m);
        *v += MOMENTUM * (var * unbias - *v);
    }
}

/// The backward pass: from the sums of `dz` and `dz * x` over `count` pixels (`[2 * c]`) to the parameters' gradients and
/// the coefficients `k` (`[3][c]`) of the input gradient `k1 * dz + k2 * x + k3`.
pub fn backward(state: NormState<'_>, sums: &[f64], count: usize, grads: NormGrads<'_>, k: &mut [f32]) {
    let (c, n) = (grads.gamma.len(), count as f64);
    let (sums, products) = split(sums, c);
    let rest = &mut &mut k[..];
    let (k1, k2, k3) = (cut(rest, c), cut(rest, c), cut(rest, c));
    let coefficients = k1.iter_mut().zip(k2).zip(k3);
    for (i, ((dg, db), ((k1, k2), k3))) in grads.gamma.iter_mut().zip(grads.beta).zip(coefficients).enumerate() {
        let (mean, scale) = (f64::from(at(state.mean(), i)), at(state.part(2), i));
        let rstd = 1.0 / libm::sqrt(f64::from(at(state.var(), i)) + f64::from(EPS));
        let dbeta = at(sums, i);
        let dgamma = rstd * (at(products, i) - mean * dbeta);
        (*dg, *db) = (dgamma as f32, dbeta as f32);
        let s = f64::from(scale);
        *k1 = scale;
        *k2 = (-s * rstd * dgamma / n) as f32;
        *k3 = (s * (mean * rstd * dgamma - dbeta) / n) as f32;
    }
}
