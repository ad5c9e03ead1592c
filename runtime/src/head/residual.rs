//! The published light head: residual unit (same width), dropout, batch norm, leaky ReLU, global average pool, linear layer.
//!
//! Parameters, in order: `bn1.gamma, bn1.beta, conv1.weight, conv1.bias, bn2.gamma, bn2.beta, conv2.weight, conv2.bias, bn.gamma,
//! bn.beta, fc.weight [c][classes], fc.bias`; then the running `mean, var` of bn1, bn2, bn.

use super::{Dropout, HeadModel, MOST_PARAMS, cross_entropy};
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::layers::norm::{self, NormGrads, NormParams, NormState};
use crate::layers::tail::{self, TailGrads, TailParams};
use crate::layers::unit::{self, ConvGrads, ConvParams, Statistics, UnitGrads, UnitParams, UnitShape};
use crate::rng::Rng;
use crate::shape::Shape;
use crate::slices::{cut, part, split, split_mut, start, start_mut};

/// A residual head.
#[derive(Clone, Copy, Debug)]
pub struct Residual {
    unit: UnitShape,
    classes: usize,
}

/// A head's parameters, named.
pub struct ResidualParams<'a> {
    /// The residual unit.
    pub unit: UnitParams<'a>,
    /// Norm, pool, linear layer.
    pub tail: TailParams<'a>,
    /// Running mean and variance of bn1, bn2 and bn, `[c]` each.
    pub running: [&'a [f32]; 6],
}

impl Residual {
    fn c(&self) -> usize {
        self.unit.x().c as usize
    }

    fn map(&self) -> usize {
        self.unit.x().len()
    }

    fn pixels(&self) -> usize {
        self.unit.x().h as usize * self.unit.x().w as usize
    }

    fn states(&self) -> usize {
        self.unit.state_len() + norm::state_len(self.c())
    }

    /// Names the parts of the flat parameters ([`HeadModel::params`] values).
    pub fn split<'a>(&self, params: &'a [f32]) -> ResidualParams<'a> {
        let (c, classes, rest) = (self.c(), self.classes, &mut &params[..]);
        let norm1 = NormParams { gamma: part(rest, c), beta: part(rest, c) };
        let conv1 = ConvParams { weight: part(rest, 9 * c * c), bias: part(rest, c) };
        let norm2 = NormParams { gamma: part(rest, c), beta: part(rest, c) };
        let conv2 = ConvParams { weight: part(rest, 9 * c * c), bias: part(rest, c) };
        let norm = NormParams { gamma: part(rest, c), beta: part(rest, c) };
        let (weight, bias) = (part(rest, c * classes), part(rest, classes));
        ResidualParams {
            unit: UnitParams { norm1: Some(norm1), conv1, norm2, conv2, short: None },
            tail: TailParams { norm, weight, bias },
            running: core::array::from_fn(|_| part(rest, c)),
        }
    }
}

impl HeadModel for Residual {
    fn new(features: Shape, classes: usize) -> Result<Self> {
        if classes == 0 || classes > Shape::MAX_SIDE as usize || !features.is_valid() {
            return Err(Error::BadSetting("number of classes"));
        }
        // At least as many as there are (`artifact::head_params`).
        let c = features.c as usize;
        if (18 * c + 14 + classes).checked_mul(c + 1).is_none_or(|most| most > MOST_PARAMS) {
            return Err(Error::BadSetting("number of the head's parameters"));
        }
        Ok(Self { unit: UnitShape::new(features, features.c, 1, true)?, classes })
    }

    fn features(&self) -> Shape {
        self.unit.x()
    }

    fn classes(&self) -> usize {
        self.classes
    }

    fn params(&self) -> usize {
        self.trained() + 6 * self.c()
    }

    fn trained(&self) -> usize {
        let c = self.c();
        6 * c + 2 * (9 * c * c + c) + c * self.classes + self.classes
    }

    fn training_len(&self, n: usize) -> usize {
        let (c, map) = (self.c(), n * self.map());
        // h, y, dy, dx; states; pooled, logits; the larger scratch of the two backward passes.
        4 * map
            + self.states()
            + n * (c + self.classes)
            + unit::backward_len(&self.unit, n).max(tail::backward_len(c, n))
    }

    fn training_sums(&self) -> usize {
        // Of x, of the hidden map, of y, and the backward passes'.
        3 * 2 * self.c() + unit::backward_sums(&self.unit)
    }

    fn inference_len(&self, n: usize) -> usize {
        2 * n * self.map() + self.states() + n * self.c()
    }

    fn initialise(&self, rng: &mut Rng, params: &mut [f32]) {
        let (c, classes, rest) = (self.c(), self.classes, &mut &mut params[..]);
        // Kaiming normal, fan-out; PyTorch's default for biases.
        let (deviation, bound) = (libm::sqrtf(2.0 / (9 * c) as f32), 1.0 / libm::sqrtf((9 * c) as f32));
        for _ in 0..2 {
            cut(rest, c).fill(1.0);
            cut(rest, c).fill(0.0);
            cut(rest, 9 * c * c).iter_mut().for_each(|w| *w = rng.normal() * deviation);
            cut(rest, c).iter_mut().for_each(|b| *b = (2.0 * rng.uniform() - 1.0) * bound);
        }
        cut(rest, c).fill(1.0);
        cut(rest, c).fill(0.0);
        // Xavier normal.
        let deviation = libm::sqrtf(2.0 / (c + classes) as f32);
        cut(rest, c * classes).iter_mut().for_each(|w| *w = rng.normal() * deviation);
        cut(rest, classes).fill(0.0);
        for _ in 0..3 {
            cut(rest, c).fill(0.0);
            cut(rest, c).fill(1.0);
        }
    }

    fn observe(&self, _: &[f32], _: usize, _: usize, _: &mut [f32]) {}

    fn gradient<K: Kernels + ?Sized>(
        &self,
        k: &K,
        n: usize,
        params: &mut [f32],
        x: &mut [f32],
        targets: &[f32],
        dropout: Dropout,
        grads: &mut [f32],
        scratch: &mut [f32],
        sums: &mut [f64],
    ) -> f32 {
        let (c, classes, map) = (self.c(), self.classes, n * self.map());
        let x = start(x, map);
        let rest = &mut &mut scratch[..];
        let (h, y, dy, dx) = (cut(rest, map), cut(rest, map), cut(rest, map), cut(rest, map));
        let (state, tail_state) = (cut(rest, self.unit.state_len()), cut(rest, norm::state_len(c)));
        let (pooled, logits) = (cut(rest, n * c), cut(rest, n * classes));
        let sums = &mut &mut sums[..];
        let (x_sums, room, y_sums) = (cut(sums, 2 * c), cut(sums, 2 * c), cut(sums, 2 * c));

        let p = self.split(params);
        k.channel_sums(c, x, x_sums);
        let statistics = Statistics::Batch { x: x_sums, sums: room };
        unit::forward(k, &self.unit, n, &p.unit, x, statistics, state, h, &mut [], y, y_sums);
        if dropout.rate > 0.0 {
            dropout.apply(y);
            k.channel_sums(c, y, y_sums);
        }
        tail::forward(k, self.unit.y(), n, &p.tail, y, Some(y_sums), tail_state, pooled, logits);
        let loss = cross_entropy(classes, logits, start(targets, n * classes));

        let g = &mut &mut grads[..];
        let norm1 = NormGrads { gamma: cut(g, c), beta: cut(g, c) };
        let conv1 = ConvGrads { weight: cut(g, 9 * c * c), bias: cut(g, c) };
        let norm2 = NormGrads { gamma: cut(g, c), beta: cut(g, c) };
        let conv2 = ConvGrads { weight: cut(g, 9 * c * c), bias: cut(g, c) };
        let norm = NormGrads { gamma: cut(g, c), beta: cut(g, c) };
        let tail_grads = TailGrads { norm, weight: cut(g, c * classes), bias: cut(g, classes) };
        let unit_grads = UnitGrads { norm1: Some(norm1), conv1, norm2, conv2, short: None };
        tail::backward(k, self.unit.y(), n, &p.tail, y, tail_state, pooled, logits, dy, tail_grads, rest, sums);
        dropout.apply(dy);
        unit::backward(k, &self.unit, n, &p.unit, x, h, state, dy, dx, unit_grads, rest, sums);

        let (one, two) = split(state, norm::state_len(c));
        let running = &mut split_mut(params, self.trained()).1;
        for state in [one, two, tail_state] {
            let (mean, var) = (cut(running, c), cut(running, c));
            norm::update_running(NormState::new(state), n * self.pixels(), mean, var);
        }
        loss
    }

    fn infer<K: Kernels + ?Sized>(
        &self,
        k: &K,
        n: usize,
        params: &[f32],
        x: &[f32],
        scratch: &mut [f32],
        logits: &mut [f32],
    ) {
        let (c, map) = (self.c(), n * self.map());
        let rest = &mut &mut scratch[..];
        let (h, y) = (cut(rest, map), cut(rest, map));
        let (state, tail_state) = (cut(rest, self.unit.state_len()), cut(rest, norm::state_len(c)));
        let pooled = cut(rest, n * c);
        let p = self.split(params);
        let (one, two) = split_mut(state, norm::state_len(c));
        if let Some(norm1) = p.unit.norm1 {
            norm::from_running(norm1, p.running[0], p.running[1], one);
        }
        norm::from_running(p.unit.norm2, p.running[2], p.running[3], two);
        norm::from_running(p.tail.norm, p.running[4], p.running[5], tail_state);
        unit::forward(k, &self.unit, n, &p.unit, start(x, map), Statistics::Given, state, h, &mut [], y, &mut []);
        tail::forward(k, self.unit.y(), n, &p.tail, y, None, tail_state, pooled, start_mut(logits, n * self.classes));
    }
}
