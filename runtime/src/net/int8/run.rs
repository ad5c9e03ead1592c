//! Running an 8-bit net: one picture, one pass over the operations.

use super::{Finish, Int8Net, Int8Op, Rescale};
use crate::error::{Error, OpFault, Result};
use crate::kernels::int8;
use crate::net::Window;
use crate::net::run::{Readable, exact};
use crate::shape::Shape;

/// A convolution, ready to run. A linear layer is one whose kernel covers the whole input.
#[derive(Clone, Copy, Debug)]
pub struct ConvArgs<'a> {
    /// Input shape.
    pub x: Shape,
    /// Output shape.
    pub y: Shape,
    /// Kernel, stride and padding.
    pub window: Window,
    /// Groups; they divide both channel counts.
    pub groups: u32,
    /// What padding holds.
    pub pad: i8,
    /// `[cout][ky][kx][cin / groups]`
    pub weight: &'a [i8],
    /// `[cout]`: bias, multiplier, shift.
    pub channels: &'a [[i32; 3]],
    /// From sums to outputs.
    pub finish: Finish,
}

/// A mean over windows or over all pixels, ready to run.
#[derive(Clone, Copy, Debug)]
pub struct MeanArgs {
    /// Input shape.
    pub x: Shape,
    /// Output shape.
    pub y: Shape,
    /// Kernel, stride and padding; of a mean over all pixels not read.
    pub window: Window,
    /// Zero points of input and output.
    pub zeros: [i8; 2],
    /// The factor of the mean.
    pub rescale: Rescale,
}

/// What runs the sums of an 8-bit net; the rest is the same everywhere. Every implementation gives the same bits.
pub trait Int8Kernels {
    /// A convolution or a linear layer, of one picture. `op` is the operation's number, so that an implementation may keep
    /// repacked weights by number; slices have the exact lengths the arguments tell.
    fn conv(&mut self, op: usize, args: &ConvArgs<'_>, x: &[i8], y: &mut [i8]);
}

/// The scalar kernels: the oracle.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScalarInt8;

impl Int8Kernels for ScalarInt8 {
    fn conv(&mut self, _: usize, args: &ConvArgs<'_>, x: &[i8], y: &mut [i8]) {
        int8::conv(args, x, y);
    }
}

impl Int8Net<'_> {
    /// Runs one picture: `input` of the input shape, NHWC, in [`Int8Net::input_quant`]; `arena` of at least
    /// [`Int8Net::arena_len`] bytes, its content is overwritten; `output` of the output shape, in
    /// [`Int8Net::output_quant`]. Errors: [`Error::WrongLength`].
    pub fn run(
        &self,
        kernels: &mut (impl Int8Kernels + ?Sized),
        input: &[i8],
        arena: &mut [i8],
        output: &mut [i8],
    ) -> Result<()> {
        exact(self.input().len(), input.len())?;
        exact(self.output().len(), output.len())?;
        let (needed, given) = (self.arena_len(), arena.len());
        let arena = arena.get_mut(..needed).ok_or(Error::WrongLength { needed, given })?;
        for (number, op) in self.ops().enumerate() {
            self.step(kernels, number, &op, input, arena, output)
                .ok_or(Error::BadOperation { op: number as u32, why: OpFault::Slot })?;
        }
        Ok(())
    }

    /// Runs one operation. `None` if a slot is out of range, which the check at the door excludes.
    fn step(
        &self,
        kernels: &mut (impl Int8Kernels + ?Sized),
        number: usize,
        op: &Int8Op,
        input: &[i8],
        arena: &mut [i8],
        output: &mut [i8],
    ) -> Option<()> {
        let (from, out) = Readable::split(op.output(), input, arena, output)?;
        match *op {
            Int8Op::Conv { x, y, window, groups, pad, weight, channels, finish } => {
                let (weight, channels) = (self.weights(weight), self.channels(channels));
                let args = ConvArgs { x: x.shape, y: y.shape, window, groups, pad, weight, channels, finish };
                kernels.conv(number, &args, from.get(x)?, out);
            }
            Int8Op::Linear { x, y, weight, channels, finish } => {
                let (weight, channels) = (self.weights(weight), self.channels(channels));
                let args = ConvArgs {
                    x: x.shape,
                    y: y.shape,
                    window: whole(x.shape),
                    groups: 1,
                    pad: 0,
                    weight,
                    channels,
                    finish,
                };
                kernels.conv(number, &args, from.get(x)?, out);
            }
            Int8Op::Affine { x, weight, channels, finish, .. } => {
                int8::affine(self.weights(weight), self.channels(channels), &finish, from.get(x)?, out);
            }
            Int8Op::Add { a, b, factors, bias, rescale, finish, .. } => {
                int8::add(factors, bias, rescale, &finish, from.get(a)?, from.get(b)?, out);
            }
            Int8Op::Mul { a, b, zeros, rescale, finish, .. } => {
                int8::mul(a.shape.c as usize, zeros, rescale, &finish, from.get(a)?, from.get(b)?, out);
            }
            Int8Op::Concat { a, b, zeros, rescales, zero, .. } => {
                let c = [a.shape.c as usize, b.shape.c as usize];
                int8::concat(c, zeros, rescales, zero, from.get(a)?, from.get(b)?, out);
            }
            Int8Op::MaxPool { x, y, window } => int8::max_pool(x.shape, y.shape, &window, from.get(x)?, out),
            Int8Op::AvgPool { x, y, window, count_pad, zeros, rescale } => {
                let args = MeanArgs { x: x.shape, y: y.shape, window, zeros, rescale };
                int8::avg_pool(&args, count_pad, from.get(x)?, out);
            }
            Int8Op::GlobalAvgPool { x, y, zeros, rescale } => {
                let args = MeanArgs { x: x.shape, y: y.shape, window: whole(x.shape), zeros, rescale };
                int8::global_avg_pool(&args, from.get(x)?, out);
            }
            Int8Op::Table { x, table, .. } => int8::table(self.weights(table), from.get(x)?, out),
        }
        Some(())
    }
}

/// The window that covers a whole input.
const fn whole(x: Shape) -> Window {
    Window { kernel: [x.h, x.w], stride: [1, 1], pad: [0; 4] }
}
