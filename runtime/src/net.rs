//! A net: a short list of operations over numbered values, parsed once, checked at the door, then trusted.
//!
//! Every operation names where its inputs and its output live (`Slot`: a place and a shape), so executing it needs no
//! table. The list stays encoded (postcard) in the artifact and is decoded one operation at a time: no capacity limit, no
//! allocation. [`Net::new_checked`] proves, before anything runs, that shapes follow from one another, that spans lie
//! inside the weights, and that no slot is read before it is written or overwritten while in use.

use crate::shape::Shape;
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
