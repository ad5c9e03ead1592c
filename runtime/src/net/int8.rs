//! A net in 8-bit integers: the operations of [`crate::net`], with every number that turns sums into 8-bit values.
//!
//! A value `q` stands for the real number `(q - zero) * scale`; scale and zero point belong to the whole value, weights have
//! a scale for each output channel. Sums are 32-bit, and each becomes an 8-bit value again by integer rules alone
//! ([`Rescale`], [`Finish`]; `spec/artifact.md` tells them bit by bit): the same result on every machine. Offsets and lengths
//! count bytes.

#[cfg(feature = "std")]
pub(crate) mod build;
mod check;
mod run;
#[cfg(all(test, feature = "std"))]
mod tests;

#[cfg(feature = "std")]
pub use build::OwnedInt8Net;
pub use run::{ConvArgs, Int8Kernels, MeanArgs, ScalarInt8};

use super::{Ops, Slot, Span, Window};
use crate::shape::Shape;
use serde::{Deserialize, Serialize};

/// What a value's 8 bits stand for: `real = (q - zero) * scale`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quant {
    /// Real numbers from one `q` to the next; finite, above 0.
    pub scale: f32,
    /// The `q` that stands for 0.
    pub zero: i8,
}

impl Quant {
    /// Pictures of 0..=1: a byte `b` becomes `b - 128`, nothing is lost.
    pub const PICTURE: Self = Self { scale: 1.0 / 255.0, zero: -128 };

    /// The nearest 8-bit value: `x / scale` in `f32`, to the nearest integer, ties to even, plus `zero`, saturated. NaN gives
    /// `zero`.
    pub fn quantise(self, x: f32) -> i8 {
        let steps = libm::rintf(x / self.scale) as i32;
        steps.saturating_add(self.zero.into()).clamp(-128, 127) as i8
    }

    /// The real number: `(q - zero) * scale` in `f32`.
    pub fn dequantise(self, q: i8) -> f32 {
        (i32::from(q) - i32::from(self.zero)) as f32 * self.scale
    }
}

/// A factor `multiplier / 2^(32 + shift)`, below 1/4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rescale {
    /// At least 0.
    pub multiplier: i32,
    /// 1..=30
    pub shift: u8,
}

/// How a sum, rescaled, becomes an 8-bit value: `clamp(zero + rescaled, low, high)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finish {
    /// A sum below 0 is first multiplied by `slope / 2^16`; 0..=65536, where 65536 leaves it as it is.
    pub slope: u32,
    /// The output's zero point.
    pub zero: i8,
    /// The smallest output; not above `high`.
    pub low: i8,
    /// The largest output.
    pub high: i8,
}

impl Finish {
    /// The slope that changes nothing.
    pub const NO_SLOPE: u32 = 1 << 16;
}

/// One operation. A convolution, an affine map and a linear layer keep, for each output channel, a record of three `i32`
/// (`[bias, multiplier, shift]`): the sum starts at the bias, and `multiplier / 2^(32 + shift)` rescales it. Zero points of
/// inputs are folded into the biases.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Int8Op {
    /// sum over the window of x * weight; output channel `o` reads the input channels of group `o / (cout / groups)`.
    Conv {
        /// Input.
        x: Slot,
        /// Output.
        y: Slot,
        /// Kernel, stride and padding.
        window: Window,
        /// Groups; `groups == cin == cout` is depthwise.
        groups: u32,
        /// What padding holds: the input's zero point.
        pad: i8,
        /// `[cout][ky][kx][cin / groups]`, `i8`
        weight: Span,
        /// `[cout][3]`, `i32`
        channels: Span,
        /// From sums to outputs.
        finish: Finish,
    },
    /// x * weight, by channel.
    Affine {
        /// Input.
        x: Slot,
        /// Output, of the same shape.
        y: Slot,
        /// `[c]`, `i8`
        weight: Span,
        /// `[c][3]`, `i32`
        channels: Span,
        /// From sums to outputs.
        finish: Finish,
    },
    /// `a * factors[0] + b * factors[1] + bias`, same shapes.
    Add {
        /// First input.
        a: Slot,
        /// Second input.
        b: Slot,
        /// Output.
        y: Slot,
        /// 0..=2^20 each.
        factors: [i32; 2],
        /// Below 2^30 in magnitude.
        bias: i32,
        /// The same for all elements.
        rescale: Rescale,
        /// From sums to outputs.
        finish: Finish,
    },
    /// `(a - zeros[0]) * (b - zeros[1]) * 2^12`; `b` has the shape of `a`, or is `1 x 1 x c` and scales channels.
    Mul {
        /// First input.
        a: Slot,
        /// Second input.
        b: Slot,
        /// Output, of the shape of `a`.
        y: Slot,
        /// Zero points of the inputs.
        zeros: [i8; 2],
        /// The same for all elements.
        rescale: Rescale,
        /// From sums to outputs.
        finish: Finish,
    },
    /// `(a - zeros[0]) * 2^20` and `(b - zeros[1]) * 2^20` side by side along channels, each with its own factor.
    Concat {
        /// First input.
        a: Slot,
        /// Second input.
        b: Slot,
        /// Output.
        y: Slot,
        /// Zero points of the inputs.
        zeros: [i8; 2],
        /// Of `a` and of `b`.
        rescales: [Rescale; 2],
        /// The output's zero point.
        zero: i8,
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
    /// The mean of `x - zeros[0]` over each window, times `2^mean_shift` ([`mean_shift`]).
    AvgPool {
        /// Input.
        x: Slot,
        /// Output.
        y: Slot,
        /// Window, of at most 65,536 cells.
        window: Window,
        /// Whether padding counts in the divisor.
        count_pad: bool,
        /// Zero points of input and output.
        zeros: [i8; 2],
        /// The same for all elements.
        rescale: Rescale,
    },
    /// The mean of `x - zeros[0]` over all rows and columns, at most 65,536 of them, times `2^mean_shift`: `1 x 1 x c`.
    GlobalAvgPool {
        /// Input.
        x: Slot,
        /// Output.
        y: Slot,
        /// Zero points of input and output.
        zeros: [i8; 2],
        /// The same for all elements.
        rescale: Rescale,
    },
    /// x^T weight of the flattened input.
    Linear {
        /// Input, flattened in stored order.
        x: Slot,
        /// Output, `1 x 1 x out`.
        y: Slot,
        /// `[out][in]`, `i8`
        weight: Span,
        /// `[out][3]`, `i32`
        channels: Span,
        /// From sums to outputs.
        finish: Finish,
    },
    /// table[x + 128]: any function of one element.
    Table {
        /// Input.
        x: Slot,
        /// Output, of the same shape.
        y: Slot,
        /// `[256]`, `i8`
        table: Span,
    },
}

/// Bytes of one channel's record.
pub(crate) const RECORD: u32 = 12;
/// The most products of one sum, and cells of one mean.
pub(crate) const MAX_CELLS: u64 = 1 << 16;
/// Every bias is below this in magnitude; with [`MAX_CELLS`] products of 8-bit numbers a sum stays within 32 bits.
pub(crate) const MAX_BIAS: i32 = 1 << 30;
/// Factors of [`Int8Op::Add`] are at most this.
pub(crate) const MAX_FACTOR: i32 = 1 << 20;
/// Products of [`Int8Op::Mul`] are shifted left by so many bits.
pub(crate) const MUL_SHIFT: u32 = 12;
/// Inputs of [`Int8Op::Concat`] are shifted left by so many bits.
pub(crate) const CONCAT_SHIFT: u32 = 20;

/// A sum over up to `cells` cells (1..=65536) is shifted left by so many bits before it is divided: as far as 30 bits allow,
/// `22 - ceil(log2(cells))`.
pub const fn mean_shift(cells: u32) -> u32 {
    22 - cells.next_power_of_two().trailing_zeros()
}

impl Int8Op {
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
            Self::Table { .. } => "table",
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
            | Self::Linear { x, .. }
            | Self::Table { x, .. } => (x, None),
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
            | Self::Linear { y, .. }
            | Self::Table { y, .. } => y,
        }
    }

    /// The weights read: 8-bit weights (or a table), and channel records.
    pub const fn spans(&self) -> [Option<Span>; 2] {
        match *self {
            Self::Conv { weight, channels, .. }
            | Self::Affine { weight, channels, .. }
            | Self::Linear { weight, channels, .. } => [Some(weight), Some(channels)],
            Self::Table { table, .. } => [Some(table), None],
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

    /// The numbers that rescale whole values.
    const fn rescales(&self) -> [Option<Rescale>; 2] {
        match *self {
            Self::Add { rescale, .. }
            | Self::Mul { rescale, .. }
            | Self::AvgPool { rescale, .. }
            | Self::GlobalAvgPool { rescale, .. } => [Some(rescale), None],
            Self::Concat { rescales: [a, b], .. } => [Some(a), Some(b)],
            _ => [None, None],
        }
    }

    /// From sums to outputs, where there is more than a zero point to it.
    const fn finish(&self) -> Option<Finish> {
        match *self {
            Self::Conv { finish, .. }
            | Self::Affine { finish, .. }
            | Self::Add { finish, .. }
            | Self::Mul { finish, .. }
            | Self::Linear { finish, .. } => Some(finish),
            _ => None,
        }
    }
}

/// An 8-bit net as it is stored, not yet checked.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Int8Spec<'a> {
    /// Shape of the picture.
    pub input: Shape,
    /// Shape of the output.
    pub output: Shape,
    /// What the picture's values stand for.
    pub input_quant: Quant,
    /// What the output's values stand for.
    pub output_quant: Quant,
    /// Bytes of working memory one run needs.
    pub arena_len: u32,
    /// Number of operations, at least 1.
    pub op_count: u32,
    /// The operations: postcard, one after the other.
    #[serde(borrow)]
    pub ops: &'a [u8],
}

/// A checked 8-bit net: borrows its encoded operations and its weights. Built only by [`Int8Net::new_checked`] and by the
/// quantiser.
#[derive(Clone, Copy, Debug)]
pub struct Int8Net<'a> {
    spec: Int8Spec<'a>,
    /// Weights, biases and tables; spans count its bytes.
    words: &'a [i32],
}

impl<'a> Int8Net<'a> {
    /// Shape of the input picture.
    pub const fn input(&self) -> Shape {
        self.spec.input
    }

    /// Shape of the output.
    pub const fn output(&self) -> Shape {
        self.spec.output
    }

    /// What the picture's values stand for.
    pub const fn input_quant(&self) -> Quant {
        self.spec.input_quant
    }

    /// What the output's values stand for.
    pub const fn output_quant(&self) -> Quant {
        self.spec.output_quant
    }

    /// Length of the arena one run needs, in bytes.
    pub const fn arena_len(&self) -> usize {
        self.spec.arena_len as usize
    }

    /// Number of operations, at least 1.
    pub const fn op_count(&self) -> u32 {
        self.spec.op_count
    }

    /// The net as it is stored.
    pub const fn spec(&self) -> Int8Spec<'a> {
        self.spec
    }

    /// All weights; spans count their bytes.
    pub const fn words(&self) -> &'a [i32] {
        self.words
    }

    /// The operations in order, decoded one at a time.
    pub const fn ops(&self) -> Ops<'a, Int8Op> {
        Ops::new(self.spec.ops, self.spec.op_count)
    }

    /// The 8-bit weights of a span; empty for a span that is not of this net.
    pub fn weights(&self, span: Span) -> &'a [i8] {
        let bytes: &[i8] = bytemuck::cast_slice(self.words);
        let at = span.at as usize;
        at.checked_add(span.len as usize).and_then(|end| bytes.get(at..end)).unwrap_or(&[])
    }

    /// The channel records of a span, `[bias, multiplier, shift]` each; empty for a span that is not of this net.
    pub fn channels(&self, span: Span) -> &'a [[i32; 3]] {
        let at = span.at as usize / 4;
        let end = at.checked_add(span.len as usize / 4);
        let words = end.and_then(|end| self.words.get(at..end)).unwrap_or(&[]);
        bytemuck::try_cast_slice(words).unwrap_or(&[])
    }

    /// Multiply-adds of the convolutions and linear layers for one picture.
    pub fn multiply_adds(&self) -> u64 {
        self.ops().map(|op| op.multiply_adds()).fold(0, u64::saturating_add)
    }
}
