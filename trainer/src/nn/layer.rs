//! The layers: parameters, forward pass, backward pass.

mod params;
mod resnet;

pub use params::{Conv, ConvNorm, Norm};
pub use resnet::{Basic, Front, PoolLinear};

use super::{Buffer, Buffers, Param, Visit};
use dfdx::prelude::*;
use params::{Grads, Plain};
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::kernels::{ConvShape, Kernels, OutputGradient};
use stemguard_runtime::layers::norm;
use stemguard_runtime::layers::tail::{self, TailGrads, TailParams};
use stemguard_runtime::layers::unit::{self, Statistics, UnitGrads, UnitParams, UnitShape};
use stemguard_runtime::shape::Shape;

/// What follows a transposed convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Squash {
    /// max(x, 0)
    Relu,
    /// 1 / (1 + exp(-x))
    Sigmoid,
}

/// One layer.
#[derive(Clone, Debug)]
pub enum Layer {
    /// A convolution with bias.
    Conv {
        /// Shapes.
        shape: ConvShape,
        /// Parameters.
        conv: Conv,
    },
    /// A pre-activation residual unit.
    Unit {
        /// Shapes and wiring.
        shape: UnitShape,
        /// Before the first convolution.
        norm1: Option<Norm>,
        /// First convolution.
        conv1: Conv,
        /// Before the second convolution.
        norm2: Norm,
        /// Second convolution.
        conv2: Conv,
        /// Where the width changes.
        short: Option<Conv>,
    },
    /// Batch norm, leaky ReLU, global average pool, linear layer.
    Tail {
        /// The map it pools.
        shape: Shape,
        /// Norm.
        norm: Norm,
        /// `[c][classes]`
        weight: Param,
        /// `[classes]`
        bias: Param,
    },
    /// A transposed convolution and an activation. `shape` is the convolution it transposes: `shape.y` is the input here.
    Deconv {
        /// Shapes.
        shape: ConvShape,
        /// Parameters; the bias is `[shape.x.c]`.
        conv: Conv,
        /// Activation.
        squash: Squash,
    },
    /// The front of a ResNet.
    Front(Front),
    /// A basic block.
    Basic(Basic),
    /// Global average pool of an activated map, linear layer.
    PoolLinear(PoolLinear),
}

/// What a layer's forward pass leaves for its backward pass.
#[derive(Debug, Default)]
pub(crate) struct Saved {
    /// Hidden maps of a unit, block or front, or the output of a squashed layer.
    h: Option<Buffer>,
    /// States of the norms.
    state: Vec<f32>,
    /// Pooled features of a tail.
    pooled: Vec<f32>,
    /// Places that a max pool took.
    index: Vec<u32>,
}

fn pixels(s: Shape) -> usize {
    s.h as usize * s.w as usize
}

impl Layer {
    /// Values of one input.
    pub fn input_len(&self) -> usize {
        match self {
            Self::Conv { shape, .. } => shape.x.len(),
            Self::Unit { shape, .. } => shape.x().len(),
            Self::Tail { shape, .. } => shape.len(),
            Self::Deconv { shape, .. } => shape.y.len(),
            Self::Front(l) => l.shape.conv.x.len(),
            Self::Basic(l) => l.shape.x().len(),
            Self::PoolLinear(l) => l.shape.x.len(),
        }
    }

    /// Values that the forward pass of one input leaves for the backward pass, the input among them.
    pub fn kept_len(&self) -> usize {
        self.input_len()
            + match self {
                Self::Conv { .. } | Self::Tail { .. } | Self::PoolLinear(_) => 0,
                Self::Unit { shape, .. } => shape.conv1.y.len(),
                Self::Deconv { shape, .. } => shape.x.len(),
                Self::Front(l) => l.shape.conv.y.len(),
                Self::Basic(l) => l.shape.maps_len(1),
            }
    }

    /// Shape of one output.
    pub fn output(&self) -> Shape {
        match self {
            Self::Conv { shape, .. } => shape.y,
            Self::Unit { shape, .. } => shape.y(),
            Self::Tail { bias, .. } => Shape::new(1, 1, bias.shape().0 as u32),
            Self::Deconv { shape, .. } => shape.x,
            Self::Front(l) => l.shape.y(),
            Self::Basic(l) => l.shape.y(),
            Self::PoolLinear(l) => l.shape.linear.y,
        }
    }

    /// Shows every parameter and state to `v`, under `name`.
    pub fn visit(&mut self, name: &str, v: &mut dyn Visit) {
        match self {
            Self::Conv { conv, .. } | Self::Deconv { conv, .. } => conv.visit(name, v),
            Self::Unit { norm1, conv1, norm2, conv2, short, .. } => {
                if let Some(norm1) = norm1 {
                    norm1.visit(&format!("{name}.bn1"), v);
                }
                conv1.visit(&format!("{name}.conv1"), v);
                norm2.visit(&format!("{name}.bn2"), v);
                conv2.visit(&format!("{name}.conv2"), v);
                if let Some(short) = short {
                    short.visit(&format!("{name}.short"), v);
                }
            }
            Self::Tail { norm, weight, bias, .. } => {
                norm.visit(&format!("{name}.bn"), v);
                v.param(&format!("{name}.fc.weight"), weight);
                v.param(&format!("{name}.fc.bias"), bias);
            }
            Self::Front(l) => l.visit(name, v),
            Self::Basic(l) => l.visit(name, v),
            Self::PoolLinear(l) => l.visit(name, v),
        }
    }

    /// Runs `n` inputs `x` through the layer into `y`. In training, batch statistics are used and running ones updated; `sums`
    /// holds those of `x` on entry and of `y` on return (empty where nobody computed them).
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn forward(
        &mut self,
        k: &Simd,
        buffers: &Buffers,
        n: usize,
        x: &[f32],
        training: bool,
        sums: &mut Vec<f64>,
        y: &mut [f32],
    ) -> Saved {
        let mut saved = Saved::default();
        let mut y_sums = Vec::new();
        let needed = |c: u32, sums: &mut Vec<f64>| {
            if sums.is_empty() {
                sums.resize(2 * c as usize, 0.0);
                k.channel_sums(c as usize, x, sums);
            }
        };
        match self {
            Self::Conv { shape, conv } => {
                let p = conv.plain();
                y_sums.resize(2 * shape.y.c as usize, 0.0);
                k.conv_forward(shape, n, x, None, &p.weight, Some(&p.bias), None, y, Some(&mut y_sums));
            }
            Self::Unit { shape, norm1, conv1, norm2, conv2, short } => {
                let (p1, p2) = (norm1.as_ref().map(Norm::plain), norm2.plain());
                let (c1, c2, cs) = (conv1.plain(), conv2.plain(), short.as_ref().map(Conv::plain));
                let params = UnitParams {
                    norm1: p1.as_ref().map(Plain::norm),
                    conv1: c1.conv(),
                    norm2: p2.norm(),
                    conv2: c2.conv(),
                    short: cs.as_ref().map(Plain::conv),
                };
                let first = norm::state_len(shape.x().c as usize);
                saved.state.resize(shape.state_len(), 0.0);
                let mut room = vec![0.0; 2 * shape.conv1.y.c as usize];
                let statistics = if training {
                    if shape.preact {
                        needed(shape.x().c, sums);
                    }
                    Statistics::Batch { x: sums, sums: &mut room }
                } else {
                    if let (Some(norm1), Some(p1)) = (&norm1, &p1) {
                        norm1.running(p1, &mut saved.state[..first]);
                    }
                    norm2.running(&p2, &mut saved.state[first..]);
                    Statistics::Given
                };
                let mut h = buffers.take(n * shape.conv1.y.len());
                let mut skip = buffers.take(if short.is_some() { n * shape.y().len() } else { 0 });
                y_sums.resize(2 * shape.y().c as usize, 0.0);
                unit::forward(k, shape, n, &params, x, statistics, &mut saved.state, &mut h, &mut skip, y, &mut y_sums);
                if training {
                    if let Some(norm1) = norm1 {
                        norm1.learn(&saved.state[..first], n * pixels(shape.x()));
                    }
                    norm2.learn(&saved.state[first..], n * pixels(shape.conv1.y));
                }
                saved.h = Some(h);
            }
            Self::Tail { shape, norm, weight, bias } => {
                let p = norm.plain();
                let (weight, bias) = (weight.as_vec(), bias.as_vec());
                let c = shape.c as usize;
                saved.state.resize(norm::state_len(c), 0.0);
                saved.pooled.resize(n * c, 0.0);
                if training {
                    needed(shape.c, sums);
                } else {
                    norm.running(&p, &mut saved.state);
                }
                let params = TailParams { norm: p.norm(), weight: &weight, bias: &bias };
                let given = training.then_some(&sums[..]);
                tail::forward(k, *shape, n, &params, x, given, &mut saved.state, &mut saved.pooled, y);
                if training {
                    norm.learn(&saved.state, n * pixels(*shape));
                }
            }
            Self::Deconv { shape, conv, squash } => {
                let p = conv.plain();
                k.deconv_forward(shape, n, x, &p.weight, &p.bias, y);
                let len = shape.x.len();
                let mut h = buffers.take(n * len);
                let squash = *squash;
                k.for_each(y[..n * len].chunks_mut(len).zip(h.chunks_mut(len)).collect(), |(y, h)| {
                    match squash {
                        Squash::Relu => y.iter_mut().for_each(|v| *v = v.max(0.0)),
                        Squash::Sigmoid => y.iter_mut().for_each(|v| *v = 1.0 / (1.0 + (-*v).exp())),
                    }
                    h.copy_from_slice(y);
                });
                saved.h = Some(h);
            }
            Self::Front(l) => saved = l.forward(k, buffers, n, x, training, y),
            Self::Basic(l) => saved = l.forward(k, buffers, n, x, training, y),
            Self::PoolLinear(l) => saved = l.forward(k, n, x, y),
        }
        *sums = y_sums;
        saved
    }

    /// The backward pass of a training [`Layer::forward`]: `dx` (empty: not wanted) and the parameters' gradients.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn backward(
        &self,
        k: &Simd,
        buffers: &Buffers,
        n: usize,
        x: &[f32],
        saved: &Saved,
        dy: &mut [f32],
        dx: &mut [f32],
    ) -> Vec<Grads> {
        let wanted = !dx.is_empty();
        let h: &[f32] = saved.h.as_deref().unwrap_or(&[]);
        match self {
            Self::Conv { shape, conv } => {
                let mut pair = conv.grads();
                let p = conv.plain();
                let g = pair.conv();
                let (dy, dx) = (OutputGradient { dy, norm: None }, wanted.then_some(dx));
                k.conv_backward(shape, n, x, None, &p.weight, dy, None, dx, g.weight, g.bias, None);
                vec![pair]
            }
            Self::Unit { shape, norm1, conv1, norm2, conv2, short } => {
                let (p1, p2) = (norm1.as_ref().map(Norm::plain), norm2.plain());
                let (c1, c2, cs) = (conv1.plain(), conv2.plain(), short.as_ref().map(Conv::plain));
                let params = UnitParams {
                    norm1: p1.as_ref().map(Plain::norm),
                    conv1: c1.conv(),
                    norm2: p2.norm(),
                    conv2: c2.conv(),
                    short: cs.as_ref().map(Plain::conv),
                };
                let (mut g1, mut gs) = (norm1.as_ref().map(Norm::grads), short.as_ref().map(Conv::grads));
                let (mut gc1, mut g2, mut gc2) = (conv1.grads(), norm2.grads(), conv2.grads());
                let grads = UnitGrads {
                    norm1: g1.as_mut().map(Grads::norm),
                    conv1: gc1.conv(),
                    norm2: g2.norm(),
                    conv2: gc2.conv(),
                    short: gs.as_mut().map(Grads::conv),
                };
                let mut scratch = buffers.take(unit::backward_len(shape, n));
                let mut sums = vec![0.0; unit::backward_sums(shape)];
                unit::backward(k, shape, n, &params, x, h, &saved.state, dy, dx, grads, &mut scratch, &mut sums);
                g1.into_iter().chain([gc1, g2, gc2]).chain(gs).collect()
            }
            Self::Tail { shape, norm, weight, bias } => {
                let (p, mut gn, mut gl) = (norm.plain(), norm.grads(), Grads::of(&[weight, bias]));
                let (w, b) = (weight.as_vec(), bias.as_vec());
                let params = TailParams { norm: p.norm(), weight: &w, bias: &b };
                let linear = gl.conv();
                let grads = TailGrads { norm: gn.norm(), weight: linear.weight, bias: linear.bias };
                let c = shape.c as usize;
                let mut scratch = vec![0.0; tail::backward_len(c, n)];
                let mut sums = vec![0.0; 2 * c];
                tail::backward(
                    k,
                    *shape,
                    n,
                    &params,
                    x,
                    &saved.state,
                    &saved.pooled,
                    dy,
                    dx,
                    grads,
                    &mut scratch,
                    &mut sums,
                );
                vec![gn, gl]
            }
            Self::Deconv { shape, conv, squash } => {
                let mut pair = conv.grads();
                let p = conv.plain();
                let (len, squash) = (shape.x.len(), *squash);
                k.for_each(dy[..n * len].chunks_mut(len).zip(h.chunks(len)).collect(), |(dy, y)| match squash {
                    Squash::Relu => dy.iter_mut().zip(y).for_each(|(d, &y)| *d = if y > 0.0 { *d } else { 0.0 }),
                    Squash::Sigmoid => dy.iter_mut().zip(y).for_each(|(d, &y)| *d *= y * (1.0 - y)),
                });
                let g = pair.conv();
                k.deconv_backward(shape, n, x, &p.weight, dy, wanted.then_some(dx), g.weight, g.bias);
                vec![pair]
            }
            Self::Front(l) => l.backward(k, buffers, n, x, saved, dy, wanted.then_some(dx)),
            Self::Basic(l) => l.backward(k, buffers, n, x, saved, dy, wanted.then_some(dx)),
            Self::PoolLinear(l) => l.backward(k, n, x, saved, dy, dx),
        }
    }
}
