//! The basic block of a ResNet (He et al., arXiv 1512.03385): two 3x3 convolutions, each with a batch norm behind it, and a
//! skip; ReLU after the first norm and after the sum. Convolutions have no bias.

use super::norm::{self, NormGrads, NormParams, NormState};
use crate::error::Result;
use crate::kernels::{ConvShape, Kernels, OutputGradient, Prologue, Skip};
use crate::shape::Shape;

/// Slope of a ReLU below zero.
pub(super) const RELU: f32 = 0.0;

/// A convolution without bias and the batch norm behind it.
#[derive(Clone, Copy, Debug)]
pub struct NormedConv<'a> {
    /// `[ky][kx][cin][cout]`
    pub weight: &'a [f32],
    /// Over the convolution's output.
    pub norm: NormParams<'a>,
}

/// Their gradients.
#[derive(Debug)]
pub struct NormedConvGrads<'a> {
    /// As the weights.
    pub weight: &'a mut [f32],
    /// As the norm.
    pub norm: NormGrads<'a>,
}

/// Pixels of `n` pictures.
pub(super) const fn pixels(s: &Shape, n: usize) -> usize {
    n * s.h as usize * s.w as usize
}

impl NormedConv<'_> {
    /// `h = conv(prologue(x))`, and the norm's state from `h` where there is room for its sums (`[2 * cout]`).
    #[allow(clippy::too_many_arguments)]
    pub(super) fn forward<K: Kernels + ?Sized>(
        &self,
        k: &K,
        g: &ConvShape,
        n: usize,
        x: &[f32],
        pre: Option<&Prologue<'_>>,
        sums: Option<&mut [f64]>,
        state: &mut [f32],
        h: &mut [f32],
    ) {
        match sums {
            Some(sums) => {
                let sums = &mut sums[..2 * g.y.c as usize];
                k.conv_forward(g, n, x, pre, self.weight, None, None, h, Some(&mut *sums));
                norm::from_batch(self.norm, sums, pixels(&g.y, n), state);
            }
            None => k.conv_forward(g, n, x, pre, self.weight, None, None, h, None),
        }
    }
}

/// Shapes of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BasicShape {
    /// 3x3, strided.
    pub conv1: ConvShape,
    /// 3x3.
    pub conv2: ConvShape,
    /// 1x1, strided, where the shape changes.
    pub short: Option<ConvShape>,
}

impl BasicShape {
    /// A block from `x` to `cout` channels.
    ///
    /// # Errors
    /// As [`ConvShape::square`].
    pub fn new(x: Shape, cout: u32, stride: u32) -> Result<Self> {
        let conv1 = ConvShape::square(x, cout, 3, stride, 1)?;
        let same = x.c == cout && stride == 1;
        Ok(Self {
            conv1,
            conv2: ConvShape::square(conv1.y, cout, 3, 1, 1)?,
            short: if same { None } else { Some(ConvShape::square(x, cout, 1, stride, 0)?) },
        })
    }

    /// Input of one picture.
    pub const fn x(&self) -> Shape {
        self.conv1.x
    }

    /// Output of one picture.
    pub const fn y(&self) -> Shape {
        self.conv2.y
    }

    /// The norms: 2, or 3 with a shortcut.
    const fn norms(&self) -> usize {
        if self.short.is_some() { 3 } else { 2 }
    }

    /// Values of the norms' states: first, second, shortcut.
    pub const fn state_len(&self) -> usize {
        self.norms() * norm::state_len(self.conv2.y.c as usize)
    }

    /// Values of the maps that the forward pass leaves for `n` pictures: outputs of the first and the second convolution and of
    /// the shortcut.
    pub const fn maps_len(&self, n: usize) -> usize {
        self.norms() * n * self.conv2.y.len()
    }

    /// Sums that either pass takes scratch for, in `f64`.
    pub const fn sums_len(&self) -> usize {
        4 * self.conv2.y.c as usize
    }

    /// Values of scratch the backward pass takes for `n` pictures: gradients of the hidden map and through the shortcut, norm
    /// coefficients, bias gradients nobody wants.
    pub const fn backward_len(&self, n: usize) -> usize {
        let skip = if self.short.is_some() { n * self.conv1.x.len() } else { 0 };
        n * self.conv1.y.len() + skip + 7 * self.conv2.y.c as usize
    }
}

/// Parameters of one block.
#[derive(Clone, Copy, Debug)]
pub struct BasicParams<'a> {
    /// First convolution.
    pub first: NormedConv<'a>,
    /// Second convolution.
    pub second: NormedConv<'a>,
    /// The skip, where the shape changes.
    pub short: Option<NormedConv<'a>>,
}

/// Gradients of one block's parameters.
#[derive(Debug)]
pub struct BasicGrads<'a> {
    /// First convolution.
    pub first: NormedConvGrads<'a>,
    /// Second convolution.
    pub second: NormedConvGrads<'a>,
    /// As [`BasicParams::short`].
    pub short: Option<NormedConvGrads<'a>>,
}

/// `y = relu(norm2(conv2(relu(norm1(conv1(x))))) + skip)` over `n` pictures, where `skip` is `x` or `norm_s(conv_s(x))`.
///
/// `sums` is room for batch statistics ([`BasicShape::sums_len`]); without it `state` holds running ones. `state` and `maps`
/// ([`BasicShape::maps_len`]) are what the backward pass needs.
#[allow(clippy::too_many_arguments)]
pub fn forward<K: Kernels + ?Sized>(
    k: &K,
    s: &BasicShape,
    n: usize,
    p: &BasicParams<'_>,
    x: &[f32],
    mut sums: Option<&mut [f64]>,
    state: &mut [f32],
    maps: &mut [f32],
    y: &mut [f32],
) {
    let (c, len) = (s.y().c as usize, n * s.y().len());
    let (state1, rest) = state.split_at_mut(norm::state_len(c));
    let (state2, state3) = rest.split_at_mut(norm::state_len(c));
    let (h1, rest) = maps.split_at_mut(len);
    let (h2, h3) = rest.split_at_mut(len);
    p.first.forward(k, &s.conv1, n, x, None, sums.as_deref_mut(), state1, h1);
    let pre1 = NormState::new(state1).prologue(RELU);
    p.second.forward(k, &s.conv2, n, h1, Some(&pre1), sums.as_deref_mut(), state2, h2);
    if let (Some(shape), Some(short)) = (&s.short, &p.short) {
        short.forward(k, shape, n, x, None, sums, state3, &mut h3[..len]);
    }
    let pre3 = s.short.map(|_| NormState::new(state3).prologue(RELU));
    let skip = Skip { x: if s.short.is_some() { h3 } else { x }, pre: pre3.as_ref() };
    k.join_forward(c, h2, &NormState::new(state2).prologue(RELU), Some(skip), &mut y[..len]);
}

/// The backward pass: `dx` (`[n][x]`, where asked for) and the parameters' gradients from `dy` (`[n][y]`, overwritten) and what
/// [`forward`] left.
#[allow(clippy::too_many_arguments)]
pub fn backward<K: Kernels + ?Sized>(
    k: &K,
    s: &BasicShape,
    n: usize,
    p: &BasicParams<'_>,
    x: &[f32],
    maps: &[f32],
    state: &[f32],
    dy: &mut [f32],
    dx: Option<&mut [f32]>,
    grads: BasicGrads<'_>,
    scratch: &mut [f32],
    sums: &mut [f64],
) {
    let (c, len, count) = (s.y().c as usize, n * s.y().len(), pixels(&s.y(), n));
    let (state1, rest) = state.split_at(norm::state_len(c));
    let (state2, state3) = rest.split_at(norm::state_len(c));
    let (state1, state2) = (NormState::new(state1), NormState::new(state2));
    let state3 = s.short.map(|_| NormState::new(state3));
    let (h1, rest) = maps.split_at(len);
    let (h2, h3) = rest.split_at(len);
    let (pre1, pre2, pre3) = (state1.prologue(RELU), state2.prologue(RELU), state3.map(|s| s.prologue(RELU)));
    let (dh, rest) = scratch.split_at_mut(len);
    let (dskip, rest) = rest.split_at_mut(if s.short.is_some() && dx.is_some() { n * s.x().len() } else { 0 });
    let (coefficient, rest) = rest.split_at_mut(3 * c);
    let (coefficient3, rest) = rest.split_at_mut(3 * c);
    let db = &mut rest[..c];

    let dz = &mut dy[..len];
    let skip = Skip { x: if s.short.is_some() { h3 } else { x }, pre: pre3.as_ref() };
    k.join_backward(c, h2, &pre2, Some(skip), dz, &mut sums[..if s.short.is_some() { 4 * c } else { 2 * c }]);
    let dz = &*dz;
    norm::backward(state2, &sums[..2 * c], count, grads.second.norm, coefficient);
    let mut add = Some(dz);
    if let (Some(shape), Some(short), Some(g), Some(state)) = (&s.short, &p.short, grads.short, state3) {
        norm::backward(state, &sums[2 * c..4 * c], count, g.norm, coefficient3);
        let dz = OutputGradient { dy: dz, norm: Some((h3, coefficient3)) };
        let to = dx.is_some().then_some(&mut *dskip);
        k.conv_backward(shape, n, x, None, short.weight, dz, None, to, g.weight, db, None);
        add = dx.is_some().then_some(&*dskip);
    }

    let (dz, g) = (OutputGradient { dy: dz, norm: Some((h2, coefficient)) }, grads.second.weight);
    let h1_sums = &mut sums[..2 * c];
    k.conv_backward(
        &s.conv2,
        n,
        h1,
        Some(&pre1),
        p.second.weight,
        dz,
        None,
        Some(&mut *dh),
        g,
        db,
        Some(&mut *h1_sums),
    );
    norm::backward(state1, h1_sums, count, grads.first.norm, coefficient);
    let dh = OutputGradient { dy: dh, norm: Some((h1, coefficient)) };
    k.conv_backward(&s.conv1, n, x, None, p.first.weight, dh, add, dx, grads.first.weight, db, None);
}
