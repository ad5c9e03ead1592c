//! The front of a ResNet: convolution without bias, batch norm, ReLU, and a max pool where the picture is large.

use super::basic::{NormedConv, NormedConvGrads, RELU, pixels};
use super::norm::{self, NormState};
use crate::error::Result;
use crate::kernels::{ConvShape, Kernels, OutputGradient};
use crate::shape::Shape;

/// Shapes of the front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontShape {
    /// The convolution.
    pub conv: ConvShape,
    /// The windows of the max pool: as many channels out as in.
    pub pool: Option<ConvShape>,
}

impl FrontShape {
    /// Smallest side of a picture that the standard front takes.
    pub const LARGE: u32 = 64;

    /// 7x7, stride 2, and a 3x3 max pool of stride 2; for pictures with a side under [`FrontShape::LARGE`] 3x3, stride 1,
    /// without pool.
    ///
    /// # Errors
    /// As [`ConvShape::square`].
    pub fn new(x: Shape, cout: u32) -> Result<Self> {
        if x.h.min(x.w) < Self::LARGE {
            return Ok(Self { conv: ConvShape::square(x, cout, 3, 1, 1)?, pool: None });
        }
        let conv = ConvShape::square(x, cout, 7, 2, 3)?;
        Ok(Self { conv, pool: Some(ConvShape::square(conv.y, cout, 3, 2, 1)?) })
    }

    /// Output of one picture.
    pub fn y(&self) -> Shape {
        self.pool.map_or(self.conv.y, |p| p.y)
    }

    /// Values of the norm's state.
    pub const fn state_len(&self) -> usize {
        norm::state_len(self.conv.y.c as usize)
    }

    /// Places that the max pool leaves for `n` pictures.
    pub fn index_len(&self, n: usize) -> usize {
        self.pool.map_or(0, |p| n * p.y.len())
    }

    /// Sums that either pass takes scratch for, in `f64`.
    pub const fn sums_len(&self) -> usize {
        2 * self.conv.y.c as usize
    }

    /// Values of scratch the backward pass takes for `n` pictures: the gradient in front of the pool, norm coefficients, bias
    /// gradients nobody wants.
    pub const fn backward_len(&self, n: usize) -> usize {
        let map = if self.pool.is_some() { n * self.conv.y.len() } else { 0 };
        map + 4 * self.conv.y.c as usize
    }
}

/// `y = pool(relu(norm(conv(x))))` over `n` pictures.
///
/// `sums` is room for batch statistics; without it `state` holds running ones. `state`, `h` (`[n][conv.y]`) and `index` are
/// what the backward pass needs.
#[allow(clippy::too_many_arguments)]
pub fn forward<K: Kernels + ?Sized>(
    k: &K,
    s: &FrontShape,
    n: usize,
    p: &NormedConv<'_>,
    x: &[f32],
    sums: Option<&mut [f64]>,
    state: &mut [f32],
    h: &mut [f32],
    index: &mut [u32],
    y: &mut [f32],
) {
    p.forward(k, &s.conv, n, x, None, sums, state, h);
    let pre = NormState::new(state).prologue(RELU);
    match &s.pool {
        Some(pool) => k.max_pool_forward(pool, n, h, Some(&pre), y, index),
        None => k.join_forward(s.conv.y.c as usize, h, &pre, None, &mut y[..n * s.conv.y.len()]),
    }
}

/// The backward pass: `dx` (`[n][conv.x]`, where asked for) and the parameters' gradients from `dy` (`[n][y]`, overwritten) and
/// what [`forward`] left.
#[allow(clippy::too_many_arguments)]
pub fn backward<K: Kernels + ?Sized>(
    k: &K,
    s: &FrontShape,
    n: usize,
    p: &NormedConv<'_>,
    x: &[f32],
    h: &[f32],
    index: &[u32],
    state: &[f32],
    dy: &mut [f32],
    dx: Option<&mut [f32]>,
    grads: NormedConvGrads<'_>,
    scratch: &mut [f32],
    sums: &mut [f64],
) {
    let (c, len) = (s.conv.y.c as usize, n * s.conv.y.len());
    let state = NormState::new(state);
    let (map, rest) = scratch.split_at_mut(if s.pool.is_some() { len } else { 0 });
    let (coefficient, rest) = rest.split_at_mut(3 * c);
    let dz = match &s.pool {
        Some(pool) => {
            k.max_pool_backward(pool, n, dy, index, map);
            map
        }
        None => &mut dy[..len],
    };
    let sums = &mut sums[..2 * c];
    k.join_backward(c, h, &state.prologue(RELU), None, dz, sums);
    norm::backward(state, sums, pixels(&s.conv.y, n), grads.norm, coefficient);
    let dz = OutputGradient { dy: dz, norm: Some((h, coefficient)) };
    k.conv_backward(&s.conv, n, x, None, p.weight, dz, None, dx, grads.weight, &mut rest[..c], None);
}
