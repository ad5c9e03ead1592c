//! The layers of a ResNet: front, basic block, pool and linear layer.

use super::Saved;
use super::params::{Conv, ConvNorm, Grads, PlainNormed};
use crate::nn::{Buffers, Visit};
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::layers::basic::{self, BasicGrads, BasicParams, BasicShape};
use stemguard_runtime::layers::front::{self, FrontShape};
use stemguard_runtime::layers::norm;
use stemguard_runtime::layers::pool_linear::{self, PoolLinearShape};
use stemguard_runtime::shape::Shape;

fn pixels(s: Shape, n: usize) -> usize {
    n * s.h as usize * s.w as usize
}

/// The front: convolution, batch norm, ReLU, max pool where the picture is large.
#[derive(Clone, Debug)]
pub struct Front {
    /// Shapes.
    pub shape: FrontShape,
    /// Its convolution.
    pub conv: ConvNorm,
}

impl Front {
    pub(super) fn visit(&mut self, name: &str, v: &mut dyn Visit) {
        self.conv.visit(&format!("{name}.conv1"), &format!("{name}.bn1"), v);
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn forward(
        &mut self,
        k: &Simd,
        buffers: &Buffers,
        n: usize,
        x: &[f32],
        training: bool,
        y: &mut [f32],
    ) -> Saved {
        let (s, plain) = (&self.shape, self.conv.plain());
        let mut state = vec![0.0; s.state_len()];
        let mut sums = training.then(|| vec![0.0; s.sums_len()]);
        if !training {
            self.conv.running(&plain, &mut state);
        }
        let mut h = buffers.take(n * s.conv.y.len());
        let mut index = vec![0; s.index_len(n)];
        front::forward(k, s, n, &plain.params(), x, sums.as_deref_mut(), &mut state, &mut h, &mut index, y);
        if training {
            self.conv.norm.learn(&state, pixels(s.conv.y, n));
        }
        Saved { h: Some(h), state, index, ..Saved::default() }
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn backward(
        &self,
        k: &Simd,
        buffers: &Buffers,
        n: usize,
        x: &[f32],
        saved: &Saved,
        dy: &mut [f32],
        dx: Option<&mut [f32]>,
    ) -> Vec<Grads> {
        let (s, plain, mut grads) = (&self.shape, self.conv.plain(), self.conv.grads());
        let mut scratch = buffers.take(s.backward_len(n));
        let mut sums = vec![0.0; s.sums_len()];
        let (h, index) = (saved.h.as_deref().unwrap_or(&[]), &saved.index);
        let (p, g) = (plain.params(), grads.normed());
        front::backward(k, s, n, &p, x, h, index, &saved.state, dy, dx, g, &mut scratch, &mut sums);
        vec![grads]
    }
}

/// A basic block.
#[derive(Clone, Debug)]
pub struct Basic {
    /// Shapes.
    pub shape: BasicShape,
    /// First convolution.
    pub first: ConvNorm,
    /// Second convolution.
    pub second: ConvNorm,
    /// The skip, where the shape changes.
    pub short: Option<ConvNorm>,
}

impl Basic {
    pub(super) fn visit(&mut self, name: &str, v: &mut dyn Visit) {
        self.first.visit(&format!("{name}.conv1"), &format!("{name}.bn1"), v);
        self.second.visit(&format!("{name}.conv2"), &format!("{name}.bn2"), v);
        if let Some(short) = &mut self.short {
            short.visit(&format!("{name}.short"), &format!("{name}.bn_short"), v);
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn forward(
        &mut self,
        k: &Simd,
        buffers: &Buffers,
        n: usize,
        x: &[f32],
        training: bool,
        y: &mut [f32],
    ) -> Saved {
        let s = &self.shape;
        let (first, second, short) =
            (self.first.plain(), self.second.plain(), self.short.as_ref().map(ConvNorm::plain));
        let params = BasicParams {
            first: first.params(),
            second: second.params(),
            short: short.as_ref().map(PlainNormed::params),
        };
        let each = norm::state_len(s.y().c as usize);
        let mut state = vec![0.0; s.state_len()];
        let mut sums = training.then(|| vec![0.0; s.sums_len()]);
        if !training {
            let plain = [Some(&first), Some(&second), short.as_ref()];
            let convs = [Some(&self.first), Some(&self.second), self.short.as_ref()];
            for ((plain, conv), state) in plain.iter().zip(convs).zip(state.chunks_mut(each)) {
                if let (Some(plain), Some(conv)) = (plain, conv) {
                    conv.running(plain, state);
                }
            }
        }
        let mut maps = buffers.take(s.maps_len(n));
        basic::forward(k, s, n, &params, x, sums.as_deref_mut(), &mut state, &mut maps, y);
        if training {
            let count = pixels(s.y(), n);
            let convs = [Some(&mut self.first), Some(&mut self.second), self.short.as_mut()];
            for (conv, state) in convs.into_iter().flatten().zip(state.chunks(each)) {
                conv.norm.learn(state, count);
            }
        }
        Saved { h: Some(maps), state, ..Saved::default() }
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn backward(
        &self,
        k: &Simd,
        buffers: &Buffers,
        n: usize,
        x: &[f32],
        saved: &Saved,
        dy: &mut [f32],
        dx: Option<&mut [f32]>,
    ) -> Vec<Grads> {
        let s = &self.shape;
        let (first, second, short) =
            (self.first.plain(), self.second.plain(), self.short.as_ref().map(ConvNorm::plain));
        let params = BasicParams {
            first: first.params(),
            second: second.params(),
            short: short.as_ref().map(PlainNormed::params),
        };
        let (mut g1, mut g2) = (self.first.grads(), self.second.grads());
        let mut gs = self.short.as_ref().map(ConvNorm::grads);
        let grads = BasicGrads { first: g1.normed(), second: g2.normed(), short: gs.as_mut().map(Grads::normed) };
        let mut scratch = buffers.take(s.backward_len(n));
        let mut sums = vec![0.0; s.sums_len()];
        let maps = saved.h.as_deref().unwrap_or(&[]);
        basic::backward(k, s, n, &params, x, maps, &saved.state, dy, dx, grads, &mut scratch, &mut sums);
        [g1, g2].into_iter().chain(gs).collect()
    }
}

/// Global average pool of an activated map, then a linear layer.
#[derive(Clone, Debug)]
pub struct PoolLinear {
    /// Shapes.
    pub shape: PoolLinearShape,
    /// `[c][classes]` and `[classes]`
    pub linear: Conv,
}

impl PoolLinear {
    pub(super) fn visit(&mut self, name: &str, v: &mut dyn Visit) {
        self.linear.visit(&format!("{name}.fc"), v);
    }

    pub(super) fn forward(&mut self, k: &Simd, n: usize, x: &[f32], y: &mut [f32]) -> Saved {
        let (s, plain) = (&self.shape, self.linear.plain());
        let mut identity = vec![0.0; s.identity_len()];
        pool_linear::identity(&mut identity);
        let mut pooled = vec![0.0; n * s.x.c as usize];
        pool_linear::forward(k, s, n, plain.conv(), x, &identity, &mut pooled, y);
        Saved { state: identity, pooled, ..Saved::default() }
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn backward(
        &self,
        k: &Simd,
        n: usize,
        x: &[f32],
        saved: &Saved,
        dy: &[f32],
        dx: &mut [f32],
    ) -> Vec<Grads> {
        let (s, plain, mut grads) = (&self.shape, self.linear.plain(), self.linear.grads());
        let c = s.x.c as usize;
        let (mut dpooled, mut sums) = (vec![0.0; n * c], vec![0.0; 2 * c]);
        let (identity, pooled) = (&saved.state, &saved.pooled);
        let (p, g) = (plain.conv(), grads.conv());
        pool_linear::backward(k, s, n, p, x, identity, pooled, dy, dx, g, &mut dpooled, &mut sums);
        vec![grads]
    }
}
