//! The residual unit: two 3x3 convolutions behind batch norm and leaky ReLU, and a skip.
//!
//! Same width in and out: pre-activation, identity skip. Where the width changes, the input feeds both the first convolution and
//! a 1x1 skip: the raw input, or, with `preact` (first group), the normed and activated one (wiring of the
//! published code of arXiv 2210.06428).

use super::SLOPE;
use super::norm::{self, NormGrads, NormParams, NormState};
use crate::error::Result;
use crate::kernels::{ConvShape, Kernels, OutputGradient, Prologue};
use crate::shape::Shape;
use crate::slices::{split, split_mut, start, start_mut};

/// Shapes and wiring of one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitShape {
    /// 3x3, strided.
    pub conv1: ConvShape,
    /// 3x3.
    pub conv2: ConvShape,
    /// 1x1, strided, where the width changes.
    pub short: Option<ConvShape>,
    /// Whether norm and activation stand before the first convolution.
    pub preact: bool,
}

impl UnitShape {
    /// A unit from `x` to `cout` channels; `first_group` asks for pre-activation even where the width changes.
    ///
    /// # Errors
    /// As [`ConvShape::square`].
    pub fn new(x: Shape, cout: u32, stride: u32, first_group: bool) -> Result<Self> {
        let conv1 = ConvShape::square(x, cout, 3, stride, 1)?;
        let same = x.c == cout && stride == 1;
        Ok(Self {
            conv1,
            conv2: ConvShape::square(conv1.y, cout, 3, 1, 1)?,
            short: if same { None } else { Some(ConvShape::square(x, cout, 1, stride, 0)?) },
            preact: same || first_group,
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

    /// Values of the norms' states.
    pub const fn state_len(&self) -> usize {
        norm::state_len(self.conv1.x.c as usize) + norm::state_len(self.conv1.y.c as usize)
    }
}

/// A convolution's weights and bias.
#[derive(Clone, Copy, Debug)]
pub struct ConvParams<'a> {
    /// `[ky][kx][cin][cout]`
    pub weight: &'a [f32],
    /// `[cout]`
    pub bias: &'a [f32],
}

/// Their gradients.
#[derive(Debug)]
pub struct ConvGrads<'a> {
    /// As the weights.
    pub weight: &'a mut [f32],
    /// As the bias.
    pub bias: &'a mut [f32],
}

/// Parameters of one unit.
#[derive(Clone, Copy, Debug)]
pub struct UnitParams<'a> {
    /// Before the first convolution; present with `preact`.
    pub norm1: Option<NormParams<'a>>,
    /// First convolution.
    pub conv1: ConvParams<'a>,
    /// Before the second convolution.
    pub norm2: NormParams<'a>,
    /// Second convolution.
    pub conv2: ConvParams<'a>,
    /// The skip, where the width changes.
    pub short: Option<ConvParams<'a>>,
}

/// Gradients of one unit's parameters.
#[derive(Debug)]
pub struct UnitGrads<'a> {
    /// As [`UnitParams::norm1`].
    pub norm1: Option<NormGrads<'a>>,
    /// First convolution.
    pub conv1: ConvGrads<'a>,
    /// Before the second convolution.
    pub norm2: NormGrads<'a>,
    /// Second convolution.
    pub conv2: ConvGrads<'a>,
    /// As [`UnitParams::short`].
    pub short: Option<ConvGrads<'a>>,
}

/// How the norms get their statistics.
#[derive(Debug)]
pub enum Statistics<'a> {
    /// From the batch; the sums of `x` and `x * x` by channel are given (`[2 * cin]`, only read with `preact`), and `sums` is
    /// room for those of the hidden map (`[2 * cmid]`).
    Batch {
        /// Sums of the input.
        x: &'a [f64],
        /// Room.
        sums: &'a mut [f64],
    },
    /// Already in `state` ([`norm::from_running`]).
    Given,
}

fn prologues<'s>(s: &UnitShape, state: &'s [f32]) -> (Option<NormState<'s>>, NormState<'s>) {
    let (one, two) = split(state, norm::state_len(s.conv1.x.c as usize));
    (s.preact.then(|| NormState::new(one)), NormState::new(two))
}

/// `y = skip + conv2(act(norm2(conv1(a))))` over `n` pictures.
///
/// `h` (`[n][conv1.y]`) and `state` are what the backward pass needs; `skip` is room for the 1x1 branch (`[n][y]`, empty
/// without one); `y_sums` takes the output's sums (`[2 * cout]`; empty: not wanted).
#[allow(clippy::too_many_arguments)]
pub fn forward<K: Kernels + ?Sized>(
    k: &K,
    s: &UnitShape,
    n: usize,
    p: &UnitParams<'_>,
    x: &[f32],
    statistics: Statistics<'_>,
    state: &mut [f32],
    h: &mut [f32],
    skip: &mut [f32],
    y: &mut [f32],
    y_sums: &mut [f64],
) {
    let first = norm::state_len(s.conv1.x.c as usize);
    let mut h_sums = None;
    if let Statistics::Batch { x, sums } = statistics {
        if let Some(norm1) = p.norm1 {
            norm::from_batch(norm1, x, n * s.x().h as usize * s.x().w as usize, start_mut(state, first));
        }
        h_sums = Some(sums);
    }
    let pre1: Option<Prologue<'_>> = s.preact.then(|| NormState::new(start(state, first)).prologue(SLOPE));
    let conv1 = p.conv1;
    match h_sums {
        Some(sums) => {
            k.conv_forward(&s.conv1, n, x, pre1.as_ref(), conv1.weight, Some(conv1.bias), None, h, Some(sums));
            let pixels = n * s.conv1.y.h as usize * s.conv1.y.w as usize;
            norm::from_batch(p.norm2, sums, pixels, split_mut(state, first).1);
        }
        None => k.conv_forward(&s.conv1, n, x, pre1.as_ref(), conv1.weight, Some(conv1.bias), None, h, None),
    }
    let (norm1, norm2) = prologues(s, state);
    let (pre1, pre2) = (norm1.map(|s| s.prologue(SLOPE)), norm2.prologue(SLOPE));
    let add: &[f32] = match (&s.short, p.short) {
        (Some(shape), Some(short)) => {
            k.conv_forward(shape, n, x, pre1.as_ref(), short.weight, Some(short.bias), None, skip, None);
            skip
        }
        _ => x,
    };
    let conv2 = p.conv2;
    let y_sums = if y_sums.is_empty() { None } else { Some(y_sums) };
    k.conv_forward(&s.conv2, n, h, Some(&pre2), conv2.weight, Some(conv2.bias), Some(add), y, y_sums);
}

/// Values of scratch the backward pass takes in `f32` for a batch of `n`: the hidden gradient, the skip's gradient, norm
/// coefficients.
pub const fn backward_len(s: &UnitShape, n: usize) -> usize {
    let skip = if s.short.is_some() { n * s.conv1.x.len() } else { 0 };
    n * s.conv1.y.len() + skip + coefficients(s)
}

/// Room for the coefficients of either norm.
const fn coefficients(s: &UnitShape) -> usize {
    let (a, b) = (s.conv1.x.c as usize, s.conv1.y.c as usize);
    3 * if a > b { a } else { b }
}

/// Sums the backward pass takes scratch for, in `f64`.
pub const fn backward_sums(s: &UnitShape) -> usize {
    let (a, b) = (s.conv1.x.c as usize, s.conv1.y.c as usize);
    2 * if a > b { a } else { b }
}

/// The backward pass: `dx` (`[n][x]`) and the parameters' gradients from `dy` (`[n][y]`) and what [`forward`] left.
#[allow(clippy::too_many_arguments)]
pub fn backward<K: Kernels + ?Sized>(
    k: &K,
    s: &UnitShape,
    n: usize,
    p: &UnitParams<'_>,
    x: &[f32],
    h: &[f32],
    state: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    grads: UnitGrads<'_>,
    scratch: &mut [f32],
    sums: &mut [f64],
) {
    let (cin, cmid) = (s.conv1.x.c as usize, s.conv1.y.c as usize);
    let (norm1, norm2) = prologues(s, state);
    let (pre1, pre2) = (norm1.map(|s| s.prologue(SLOPE)), norm2.prologue(SLOPE));
    let (dh, rest) = split_mut(scratch, n * s.conv1.y.len());
    let (dskip, coefficient) = split_mut(rest, if s.short.is_some() { n * s.conv1.x.len() } else { 0 });
    let plain = OutputGradient { dy, norm: None };

    let g = grads.conv2;
    let h_sums = start_mut(sums, 2 * cmid);
    let w2 = p.conv2.weight;
    k.conv_backward(&s.conv2, n, h, Some(&pre2), w2, plain, None, Some(dh), g.weight, g.bias, Some(h_sums));
    let pixels = n * s.conv1.y.h as usize * s.conv1.y.w as usize;
    let k2 = start_mut(coefficient, 3 * cmid);
    norm::backward(norm2, h_sums, pixels, grads.norm2, k2);

    let mut add = None;
    if let (Some(shape), Some(short), Some(g)) = (&s.short, p.short, grads.short) {
        k.conv_backward(shape, n, x, pre1.as_ref(), short.weight, plain, None, Some(dskip), g.weight, g.bias, None);
        add = Some(&*dskip);
    }
    let g = grads.conv1;
    let dh = OutputGradient { dy: dh, norm: Some((h, k2)) };
    let x_sums = start_mut(sums, 2 * cin);
    k.conv_backward(&s.conv1, n, x, pre1.as_ref(), p.conv1.weight, dh, add, Some(dx), g.weight, g.bias, Some(x_sums));
    let dx = start_mut(dx, n * s.x().len());
    if let (Some(state), Some(g)) = (norm1, grads.norm1) {
        let k1 = start_mut(coefficient, 3 * cin);
        norm::backward(state, x_sums, n * s.x().h as usize * s.x().w as usize, g, k1);
        k.norm_gradient(cin, dx, x, k1, if s.short.is_none() { Some(dy) } else { None });
    }
}
