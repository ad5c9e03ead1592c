//! Batch norm: statistics of a batch, the affine map they amount to, and the backward pass.
//!
//! For `z = gamma * (x - mean) / sqrt(var + eps) + beta` (Ioffe and Szegedy, arXiv 1502.03167) the forward pass is one affine map
//! by channel, which convolutions apply to their input on the fly, and the input gradient is `k1 * dz + k2 * x + k3` by
//! channel, which they apply to their output gradient on the fly.

use crate::kernels::Prologue;

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
        &self.0[i * c..][..c]
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
    for i in 0..c {
        let mean = sums[i] / count as f64;
        state[i] = mean as f32;
        state[c + i] = (sums[c + i] / count as f64 - mean * mean).max(0.0) as f32;
    }
    finish(p, state);
}

/// The affine map of running statistics: inference.
pub fn from_running(p: NormParams<'_>, mean: &[f32], var: &[f32], state: &mut [f32]) {
    let c = p.gamma.len();
    state[..c].copy_from_slice(mean);
    state[c..2 * c].copy_from_slice(var);
    finish(p, state);
}

fn finish(p: NormParams<'_>, state: &mut [f32]) {
    let c = p.gamma.len();
    for i in 0..c {
        let scale = p.gamma[i] / libm::sqrtf(state[c + i] + EPS);
        state[2 * c + i] = scale;
        state[3 * c + i] = p.beta[i] - state[i] * scale;
    }
}

/// Moves running statistics towards those of a batch of `count` pixels; the variance unbiased, as is customary.
pub fn update_running(state: NormState<'_>, count: usize, mean: &mut [f32], var: &mut [f32]) {
    let unbias = count as f32 / (count.max(2) - 1) as f32;
    for (i, (m, v)) in mean.iter_mut().zip(var).enumerate() {
        *m += MOMENTUM * (state.mean()[i] - *m);
        *v += MOMENTUM * (state.var()[i] * unbias - *v);
    }
}

/// The backward pass: from the sums of `dz` and `dz * x` over `count` pixels (`[2 * c]`) to the parameters' gradients and
/// the coefficients `k` (`[3][c]`) of the input gradient `k1 * dz + k2 * x + k3`.
pub fn backward(state: NormState<'_>, sums: &[f64], count: usize, grads: NormGrads<'_>, k: &mut [f32]) {
    let c = grads.gamma.len();
    let scale = state.part(2);
    for i in 0..c {
        let (mean, n) = (f64::from(state.mean()[i]), count as f64);
        let rstd = 1.0 / libm::sqrt(f64::from(state.var()[i]) + f64::from(EPS));
        let dgamma = rstd * (sums[c + i] - mean * sums[i]);
        let dbeta = sums[i];
        grads.gamma[i] = dgamma as f32;
        grads.beta[i] = dbeta as f32;
        let s = f64::from(scale[i]);
        k[i] = scale[i];
        k[c + i] = (-s * rstd * dgamma / n) as f32;
        k[2 * c + i] = (s * (mean * rstd * dgamma - dbeta) / n) as f32;
    }
}
