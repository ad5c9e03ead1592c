//! A net: a short list of operations over numbered values, parsed once, checked at the door, then trusted.
//!
//! Every operation names where its inputs and its output live (`Slot`: a place and a shape), so executing it needs no
//! table. The list stays encoded (postcard) in the artifact and is decoded one operation at a time: no capacity limit, no
//! allocation. [`Net::new_checked`] proves, before anything runs, that shapes follow from one another, that spans lie
//! inside the weights, and that no slot is read before it is written or overwritten while in use.

#[cfg(feature = "std")]
pub mod build;
mod check;
pub mod int8;
#[cfg(feature = "std")]
pub(crate) mod plan;
mod run;
#[cfg(all(test, feature = "std"))]
pub(crate) mod tests;

#[cfg(feature = "std")]
pub use build::{BuildError, NetBuilder, OwnedNet, Value};
#[cfg(feature = "std")]
pub(crate) use run::Readable;
pub use run::{AffineArgs, ConvArgs, LinearArgs, MulArgs, NetKernels, PoolArgs, Scalar};

use crate::shape::Shape;
use core::marker::PhantomData;
use core::ops::Range;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Where a value lives. Offsets count `f32` elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// The caller's input picture.
    Input,
    /// The caller's output buffer.
    Output,
    /// The arena, from this offset on.
    Arena(u32),
}

/// A value: its place and its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Where it lives.
    pub place: Place,
    /// Its shape.
    pub shape: Shape,
}

/// A range of the weights, in `f32` elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// First element.
    pub at: u32,
    /// Number of elements.
    pub len: u32,
}

/// An activation, applied to each element.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Activation {
    /// x
    None,
    /// max(x, 0)
    Relu,
    /// min(max(x, 0), 6)
    Relu6,
    /// x if x > 0, else slope * x
    Leaky(f32),
    /// x * clamp(x / 6 + 1/2, 0, 1)
    HardSwish,
    /// clamp(x / 6 + 1/2, 0, 1)
    HardSigmoid,
    /// 1 / (1 + exp(-x))
    Sigmoid,
}

/// A sliding window over rows and columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Kernel rows and columns.
    pub kernel: [u32; 2],
    /// Step down and across.
    pub stride: [u32; 2],
    /// Rows above, columns left, rows below, columns right.
    pub pad: [u32; 4],
}

/// One operation. Weight layouts: convolution `[ky][kx][cin / groups][cout]`, linear `[in][out]`, the input flattened as
/// it is stored (`[h][w][c]`).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Op {
    /// act(sum over the window of x * weight + bias); output channel `o` reads the input channels of group
    /// `o / (cout / groups)`.
    Conv {
        /// Input.
        x: Slot,
        /// Output.
        y: Slot,
        /// Kernel, stride and padding (with zeros).
        window: Window,
        /// Groups; `groups == cin == cout` is depthwise.
        groups: u32,
        /// `[ky][kx][cin / groups][cout]`
        weight: Span,
        /// `[cout]`
        bias: Option<Span>,
        /// Activation of the result.
        act: Activation,
    },
    /// act(x * scale + shift), by channel; a missing scale is 1, a missing shift 0.
    Affine {
        /// Input.
        x: Slot,
        /// Output, of the same shape.
        y: Slot,
        /// `[c]`
        scale: Option<Span>,
        /// `[c]`
        shift: Option<Span>,
        /// Activation of the result.
        act: Activation,
    },
    /// act(a + b), same shapes.
    Add {
        /// First input.
        a: Slot,
        /// Second input.
        b: Slot,
        /// Output.
        y: Slot,
        /// Activation of the result.
        act: Activation,
    },
    /// act(a * b); `b` has the shape of `a`, or is `1 x 1 x c` and scales channels.
    Mul {
        /// First input.
        a: Slot,
        /// Second input.
        b: Slot,
        /// Output, of the shape of `a`.
        y: Slot,
        /// Activation of the result.
        act: Activation,
    },
    /// `a` and `b` side by side along channels.
    Concat {
        /// First input.
        a: Slot,
        /// Second input.
        b: Slot,
        /// Output.
        y: Slot,
    },
    /// The largest value in each window; padding never wins.
    MaxPool {
        /// Input.
        x: Slot,
        /// Output.
        y: Slot,
        /// Window.
        window: Window,
    },
    /// The mean of each window.
    AvgPool {
        /// Input.
        x: Slot,
        /// Output.
        y: Slot,
        /// Window.
        window: Window,
        /// Whether padding counts in the divisor.
        count_pad: bool,
    },
    /// The mean over all rows and columns: `1 x 1 x c`.
    GlobalAvgPool {
        /// Input.
        x: Slot,
        /// Output.
        y: Slot,
    },
    /// act(x^T weight + bias) of the flattened input.
    Linear {
        /// Input, flattened in stored order.
        x: Slot,
        /// Output, `1 x 1 x out`.
        y: Slot,
        /// `[in][out]`
        weight: Span,
        /// `[out]`
        bias: Option<Span>,
        /// Activation of the result.
        act: Activation,
    },
}

/// The cells of a kernel, along one axis, that lie on the map and not on its padding, where its output is at `at`: a kernel may be far
/// larger than the map. Cell `k` is at `at * stride + k - pad`.
pub(crate) fn cells_on_map(at: usize, kernel: u32, stride: u32, pad: u32, side: u32) -> Range<usize> {
    let (start, pad) = (at * stride as usize, pad as usize);
    pad.saturating_sub(start)..(kernel as usize).min((side as usize + pad).saturating_sub(start))
}

impl Window {
    /// Rows and columns of the output over an input of `h` rows and `w` columns: `(side + pads - kernel) / stride + 1`.
    /// `None` unless kernels and strides are within `1..=MAX_SIDE`, every pad is below its kernel, and the kernel fits.
    pub fn output(&self, h: u32, w: u32) -> Option<[u32; 2]> {
        let [top, left, bottom, right] = self.pad;
        let side = |side: u32, kernel: u32, stride: u32, before: u32, after: u32| {
            let sane = |n: u32| (1..=Shape::MAX_SIDE).contains(&n);
            if !sane(side) || !sane(kernel) || !sane(stride) || before >= kernel || after >= kernel {
                return None;
            }
            Some((side + before + after).checked_sub(kernel)? / stride + 1)
        };
        Some([
            side(h, self.kernel[0], self.stride[0], top, bottom)?,
            side(w, self.kernel[1], self.stride[1], left, right)?,
        ])
    }
}

impl Op {
    /// The kind, in lower case: `conv`, `affine`, ...
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Conv { .. } => "conv",
            Self::Affine { .. } => "affine",
            Self::Add { .. } => "add",
            Self::Mul { .. } => "mul",
            Self::Concat { .. } => "concat",
            Self::MaxPool { .. } => "max_pool",
            Self::AvgPool { .. } => "avg_pool",
            Self::GlobalAvgPool { .. } => "global_avg_pool",
            Self::Linear { .. } => "linear",
        }
    }

    /// The values read: one or two.
    pub const fn inputs(&self) -> (Slot, Option<Slot>) {
        match *self {
            Self::Conv { x, .. }
            | Self::Affine { x, .. }
            | Self::MaxPool { x, .. }
            | Self::AvgPool { x, .. }
            | Self::GlobalAvgPool { x, .. }
            | Self::Linear { x, .. } => (x, None),
            Self::Add { a, b, .. } | Self::Mul { a, b, .. } | Self::Concat { a, b, .. } => (a, Some(b)),
        }
    }

    /// The value written.
    pub const fn output(&self) -> Slot {
        match *self {
            Self::Conv { y, .. }
            | Self::Affine { y, .. }
            | Self::Add { y, .. }
            | Self::Mul { y, .. }
            | Self::Concat { y, .. }
            | Self::MaxPool { y, .. }
            | Self::AvgPool { y, .. }
            | Self::GlobalAvgPool { y, .. }
            | Self::Linear { y, .. } => y,
        }
    }

    /// The weights read: weight and bias, or scale and shift.
    pub const fn spans(&self) -> [Option<Span>; 2] {
        match *self {
            Self::Conv { weight, bias, .. } | Self::Linear { weight, bias, .. } => [Some(weight), bias],
            Self::Affine { scale, shift, .. } => [scale, shift],
            _ => [None, None],
        }
    }

    /// Multiply-adds for one picture: of a convolution or a linear layer.
    pub fn multiply_adds(&self) -> u64 {
        match self {
            Self::Conv { weight, y, .. } => u64::from(weight.len) * u64::from(y.shape.h) * u64::from(y.shape.w),
            Self::Linear { weight, .. } => u64::from(weight.len),
            _ => 0,
        }
    }

    /// The fused activation; `None` for operations that have no place for one.
    pub const fn activation(&self) -> Option<Activation> {
        match *self {
            Self::Conv { act, .. }
            | Self::Affine { act, .. }
            | Self::Add { act, .. }
            | Self::Mul { act, .. }
            | Self::Linear { act, .. } => Some(act),
            _ => None,
        }
    }
}

/// A checked net: borrows its encoded operations and its weights. Built only by [`Net::new_checked`] and by the builder,
/// so that holding one means it can run.
#[derive(Clone, Copy, Debug)]
pub struct Net<'a> {
    input: Shape,
    output: Shape,
    arena_len: usize,
    op_count: u32,
    ops: &'a [u8],
    weights: &'a [f32],
}

impl<'a> Net<'a> {
    /// Shape of the input picture.
    pub const fn input(&self) -> Shape {
        self.input
    }

    /// Shape of the output.
    pub const fn output(&self) -> Shape {
        self.output
    }

    /// Length of the arena one run needs, in `f32` elements.
    pub const fn arena_len(&self) -> usize {
        self.arena_len
    }

    /// Number of operations, at least 1.
    pub const fn op_count(&self) -> u32 {
        self.op_count
    }

    /// The operations as they are stored: postcard, one after the other.
    pub const fn op_bytes(&self) -> &'a [u8] {
        self.ops
    }

    /// All weights; spans index into them.
    pub const fn weights(&self) -> &'a [f32] {
        self.weights
    }

    /// The operations in order, decoded one at a time.
    pub const fn ops(&self) -> Ops<'a> {
        Ops::new(self.ops, self.op_count)
    }

    /// The weights of a span; empty for a span that is not of this net.
    pub fn span(&self, span: Span) -> &'a [f32] {
        let at = span.at as usize;
        at.checked_add(span.len as usize).and_then(|end| self.weights.get(at..end)).unwrap_or(&[])
    }

    /// Multiply-adds of the convolutions and linear layers for one picture.
    pub fn multiply_adds(&self) -> u64 {
        self.ops().map(|op| op.multiply_adds()).fold(0, u64::saturating_add)
    }
}

/// Iterator over the operations of a net, in order of execution.
#[derive(Clone, Debug)]
pub struct Ops<'a, O = Op> {
    bytes: &'a [u8],
    left: u32,
    of: PhantomData<O>,
}

impl<'a, O> Ops<'a, O> {
    const fn new(bytes: &'a [u8], count: u32) -> Self {
        Self { bytes, left: count, of: PhantomData }
    }
}

impl<O: DeserializeOwned> Iterator for Ops<'_, O> {
    type Item = O;

    fn next(&mut self) -> Option<O> {
        self.left = self.left.checked_sub(1)?;
        let (op, rest) = postcard::take_from_bytes(self.bytes).ok()?;
        self.bytes = rest;
        Some(op)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.left as usize))
    }
}
