//! The end of a ResNet: global average pool of an activated map, then a linear layer.

use super::unit::{ConvGrads, ConvParams};
use crate::error::Result;
use crate::kernels::{ConvShape, Kernels, OutputGradient, Prologue};
use crate::shape::Shape;

/// Shapes: the map it pools, and the linear layer as a convolution of one pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolLinearShape {
    /// One map.
    pub x: Shape,
    /// `[c] -> [classes]`
    pub linear: ConvShape,
}

impl PoolLinearShape {
    /// From maps of shape `x` to `classes` logits.
    ///
    /// # Errors
    /// As [`ConvShape::square`].
    pub fn new(x: Shape, classes: u32) -> Result<Self> {
        Ok(Self { x, linear: ConvShape::square(Shape::new(1, 1, x.c), classes, 1, 1, 0)? })
    }

    /// Values of [`identity`].
    pub const fn identity_len(&self) -> usize {
        2 * self.x.c as usize
    }

    fn pixels(&self) -> usize {
        self.x.h as usize * self.x.w as usize
    }
}

/// Fills `room` ([`PoolLinearShape::identity_len`]) with the norm that changes nothing; both passes read it.
pub fn identity(room: &mut [f32]) {
    let half = room.len() / 2;
    room[..half].fill(1.0);
    room[half..].fill(0.0);
}

fn unchanged(identity: &[f32]) -> Prologue<'_> {
    let (scale, shift) = identity.split_at(identity.len() / 2);
    Prologue { scale, shift, slope: 1.0 }
}

/// Logits (`[n][classes]`) of `n` maps `x`; `pooled` (`[n][c]`) is what the backward pass needs.
#[allow(clippy::too_many_arguments)]
pub fn forward<K: Kernels + ?Sized>(
    k: &K,
    s: &PoolLinearShape,
    n: usize,
    p: ConvParams<'_>,
    x: &[f32],
    identity: &[f32],
    pooled: &mut [f32],
    logits: &mut [f32],
) {
    let c = s.x.c as usize;
    k.pool_forward(c, s.pixels(), &x[..n * s.x.len()], &unchanged(identity), &mut pooled[..n * c]);
    k.conv_forward(&s.linear, n, pooled, None, p.weight, Some(p.bias), None, logits, None);
}

/// The backward pass: `dx` (`[n][x]`) and the parameters' gradients from `dlogits` (`[n][classes]`). `dpooled` is room for
/// `[n][c]`, `sums` for `[2 * c]`.
#[allow(clippy::too_many_arguments)]
pub fn backward<K: Kernels + ?Sized>(
    k: &K,
    s: &PoolLinearShape,
    n: usize,
    p: ConvParams<'_>,
    x: &[f32],
    identity: &[f32],
    pooled: &[f32],
    dlogits: &[f32],
    dx: &mut [f32],
    grads: ConvGrads<'_>,
    dpooled: &mut [f32],
    sums: &mut [f64],
) {
    let (c, dpooled) = (s.x.c as usize, &mut dpooled[..n * s.x.c as usize]);
    let dy = OutputGradient { dy: dlogits, norm: None };
    let to = Some(&mut *dpooled);
    k.conv_backward(&s.linear, n, pooled, None, p.weight, dy, None, to, grads.weight, grads.bias, None);
    let share = 1.0 / s.pixels() as f32;
    dpooled.iter_mut().for_each(|d| *d *= share);
    let (x, dx) = (&x[..n * s.x.len()], &mut dx[..n * s.x.len()]);
    k.pool_backward(c, s.pixels(), x, &unchanged(identity), dpooled, dx, &mut sums[..2 * c]);
}
