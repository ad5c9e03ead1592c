//! Running a net: one picture, one pass over the operations, every kernel behind a trait.

use super::{Activation, Net, Op, Place, Slot, Window};
use crate::error::{Error, OpFault, Result};
use crate::kernels::scalar;
use crate::shape::Shape;

/// A convolution, ready to run.
#[derive(Clone, Copy, Debug)]
pub struct ConvArgs<'a> {
    /// Input shape.
    pub x: Shape,
    /// Output shape.
    pub y: Shape,
    /// Kernel, stride and padding (with zeros).
    pub window: Window,
    /// Groups; they divide both channel counts.
    pub groups: u32,
    /// `[ky][kx][cin / groups][cout]`
    pub weight: &'a [f32],
    /// `[cout]`
    pub bias: Option<&'a [f32]>,
    /// Activation of the result.
    pub act: Activation,
}

/// A scale and shift by channel, ready to run.
#[derive(Clone, Copy, Debug)]
pub struct AffineArgs<'a> {
    /// Channels: the innermost side of `x` and `y`.
    pub channels: usize,
    /// `[channels]`; missing: 1.
    pub scale: Option<&'a [f32]>,
    /// `[channels]`; missing: 0.
    pub shift: Option<&'a [f32]>,
    /// Activation of the result.
    pub act: Activation,
}

/// A product, ready to run.
#[derive(Clone, Copy, Debug)]
pub struct MulArgs {
    /// Channels: the innermost side of `a` and `y`.
    pub channels: usize,
    /// `b` is `[channels]` and scales every pixel of `a`; otherwise it has the length of `a`.
    pub by_channel: bool,
    /// Activation of the result.
    pub act: Activation,
}

/// A pooling, ready to run.
#[derive(Clone, Copy, Debug)]
pub struct PoolArgs {
    /// Input shape.
    pub x: Shape,
    /// Output shape.
    pub y: Shape,
    /// Kernel, stride and padding.
    pub window: Window,
}

/// A linear layer, ready to run.
#[derive(Clone, Copy, Debug)]
pub struct LinearArgs<'a> {
    /// `[in][out]`
    pub weight: &'a [f32],
    /// `[out]`
    pub bias: Option<&'a [f32]>,
    /// Activation of the result.
    pub act: Activation,
}

/// The kernels a net runs on: one method a kind of operation, on one picture, NHWC. `op` is the operation's number, so that
/// an implementation may keep repacked weights by number. Every method defaults to the scalar reference; slices have the
/// exact lengths the arguments tell.
pub trait NetKernels {
    /// act(x * weight + bias), a convolution.
    fn conv(&mut self, op: usize, args: &ConvArgs<'_>, x: &[f32], y: &mut [f32]) {
        let _ = op;
        scalar::conv(args, x, y);
    }

    /// act(x * scale + shift), by channel.
    fn affine(&mut self, op: usize, args: &AffineArgs<'_>, x: &[f32], y: &mut [f32]) {
        let _ = op;
        scalar::affine(args, x, y);
    }

    /// act(a + b), equal lengths.
    fn add(&mut self, op: usize, act: Activation, a: &[f32], b: &[f32], y: &mut [f32]) {
        let _ = op;
        scalar::add(act, a, b, y);
    }

    /// act(a * b).
    fn mul(&mut self, op: usize, args: &MulArgs, a: &[f32], b: &[f32], y: &mut [f32]) {
        let _ = op;
        scalar::mul(args, a, b, y);
    }

    /// `a` and `b` side by side, of `channels[0]` and `channels[1]` channels.
    fn concat(&mut self, op: usize, channels: [usize; 2], a: &[f32], b: &[f32], y: &mut [f32]) {
        let _ = op;
        scalar::concat(channels, a, b, y);
    }

    /// The largest value in each window.
    fn max_pool(&mut self, op: usize, args: &PoolArgs, x: &[f32], y: &mut [f32]) {
        let _ = op;
        scalar::max_pool(args, x, y);
    }

    /// The mean of each window; `count_pad`: padding counts in the divisor.
    fn avg_pool(&mut self, op: usize, args: &PoolArgs, count_pad: bool, x: &[f32], y: &mut [f32]) {
        let _ = op;
        scalar::avg_pool(args, count_pad, x, y);
    }

    /// The mean over all pixels; `y` is `[channels]`.
    fn global_avg_pool(&mut self, op: usize, x: &[f32], y: &mut [f32]) {
        let _ = op;
        scalar::global_avg_pool(x, y);
    }

    /// act(x^T weight + bias).
    fn linear(&mut self, op: usize, args: &LinearArgs<'_>, x: &[f32], y: &mut [f32]) {
        let _ = op;
        scalar::linear(args, x, y);
    }
}

/// The scalar reference kernels.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scalar;

impl NetKernels for Scalar {}

/// Everything an operation may read: the input, and the arena on both sides of the value being written.
pub(crate) struct Readable<'r, T> {
    input: &'r [T],
    below: &'r [T],
    above: &'r [T],
    above_at: usize,
}

impl<'r, T> Readable<'r, T> {
    /// The memory an operation reads and the memory it writes. `None` if the value written lies in neither arena nor output.
    pub(crate) fn split(
        written: Slot,
        input: &'r [T],
        arena: &'r mut [T],
        output: &'r mut [T],
    ) -> Option<(Self, &'r mut [T])> {
        let len = written.shape.len();
        match written.place {
            Place::Input => None,
            Place::Output => {
                Some((Self { input, below: arena, above: &[], above_at: usize::MAX }, output.get_mut(..len)?))
            }
            Place::Arena(at) => {
                let (below, rest) = arena.split_at_mut_checked(at as usize)?;
                let (y, above) = rest.split_at_mut_checked(len)?;
                Some((Self { input, below, above, above_at: at as usize + len }, y))
            }
        }
    }

    /// The elements of a value. `None` if they lie outside, or in what is being written.
    pub(crate) fn get(&self, slot: Slot) -> Option<&'r [T]> {
        let len = slot.shape.len();
        match slot.place {
            Place::Input => self.input.get(..len),
            Place::Output => None,
            Place::Arena(at) => match (at as usize).checked_sub(self.above_at) {
                Some(at) => self.above.get(at..)?.get(..len),
                None => self.below.get(at as usize..)?.get(..len),
            },
        }
    }
}

impl Net<'_> {
    /// Runs one picture: `input` of the input shape, NHWC; `arena` of at least [`Net::arena_len`] elements, its content
    /// is overwritten; `output` of the output shape. Errors: [`Error::WrongLength`].
    pub fn run(
        &self,
        kernels: &mut (impl NetKernels + ?Sized),
        input: &[f32],
        arena: &mut [f32],
        output: &mut [f32],
    ) -> Result<()> {
        exact(self.input.len(), input.len())?;
        exact(self.output.len(), output.len())?;
        let given = arena.len();
        let arena = arena.get_mut(..self.arena_len).ok_or(Error::WrongLength { needed: self.arena_len, given })?;
        for (number, op) in self.ops().enumerate() {
            self.step(kernels, number, &op, input, arena, output)
                .ok_or(Error::BadOperation { op: number as u32, why: OpFault::Slot })?;
        }
        Ok(())
    }

    /// Runs one operation. `None` if a slot is out of range, which the check at the door excludes.
    pub(crate) fn step(
        &self,
        kernels: &mut (impl NetKernels + ?Sized),
        number: usize,
        op: &Op,
        input: &[f32],
        arena: &mut [f32],
        output: &mut [f32],
    ) -> Option<()> {
        let (from, y) = Readable::split(op.output(), input, arena, output)?;
        let span = |span| self.span(span);
        match *op {
            Op::Conv { x, y: out, window, groups, weight, bias, act } => {
                let (weight, bias) = (span(weight), bias.map(span));
                let args = ConvArgs { x: x.shape, y: out.shape, window, groups, weight, bias, act };
                kernels.conv(number, &args, from.get(x)?, y);
            }
            Op::Affine { x, scale, shift, act, .. } => {
                let channels = x.shape.c as usize;
                let args = AffineArgs { channels, scale: scale.map(span), shift: shift.map(span), act };
                kernels.affine(number, &args, from.get(x)?, y);
            }
            Op::Add { a, b, act, .. } => kernels.add(number, act, from.get(a)?, from.get(b)?, y),
            Op::Mul { a, b, act, .. } => {
                let args = MulArgs { channels: a.shape.c as usize, by_channel: a.shape != b.shape, act };
                kernels.mul(number, &args, from.get(a)?, from.get(b)?, y);
            }
            Op::Concat { a, b, .. } => {
                let channels = [a.shape.c as usize, b.shape.c as usize];
                kernels.concat(number, channels, from.get(a)?, from.get(b)?, y);
            }
            Op::MaxPool { x, y: out, window } => {
                kernels.max_pool(number, &PoolArgs { x: x.shape, y: out.shape, window }, from.get(x)?, y);
            }
            Op::AvgPool { x, y: out, window, count_pad } => {
                kernels.avg_pool(number, &PoolArgs { x: x.shape, y: out.shape, window }, count_pad, from.get(x)?, y);
            }
            Op::GlobalAvgPool { x, .. } => kernels.global_avg_pool(number, from.get(x)?, y),
            Op::Linear { x, weight, bias, act, .. } => {
                let args = LinearArgs { weight: span(weight), bias: bias.map(span), act };
                kernels.linear(number, &args, from.get(x)?, y);
            }
        }
        Some(())
    }
}

/// A buffer must have exactly the length the net asks for.
pub(super) fn exact(needed: usize, given: usize) -> Result<()> {
    if needed == given { Ok(()) } else { Err(Error::WrongLength { needed, given }) }
}
