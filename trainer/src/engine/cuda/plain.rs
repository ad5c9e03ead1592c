//! Launches of convolutions in f32 (kernels/conv.cu, kernels/weights.cu).

use super::args::{ConvArgs, Divisor, Weighing, WeightArgs};
use super::axis::{Axis, block_width};
use super::backend::Kernel;
use super::builder::{Builder, Map, Product, pixels};
use crate::engine::EngineError;
use stemguard_runtime::kernels::ConvShape;

/// Outputs of a block of a convolution, entries of a block of a weight gradient.
const CONV_BLOCK: usize = 4096;
const WEIGHT_BLOCK: usize = 2304;
/// Blocks that a weight gradient is spread over, about. A constant: what is added in which order does not depend on the device.
const WEIGHT_BLOCKS: usize = 1024;
/// Least pixels of one of its stretches.
const WEIGHT_STRETCH: usize = 64;

impl Builder<'_> {
    /// [`Builder::product`] in f32.
    pub(super) fn plain_product(&mut self, p: &Product<'_>) -> Result<Map, EngineError> {
        let (from, to) = p.shapes();
        let window = &p.g.window;
        let [kh, kw] = window.kernel.map(|v| v as usize);
        let (stride, pad) = (window.stride[0] as usize, window.pad[0] as usize);
        let step = if p.gradient { stride } else { 1 };
        let along = |len: u32, kernel: usize| Axis::of(p.gradient, len as usize, kernel, stride, pad);
        let (down, across) = (along(to.h, kh), along(to.w, kw));
        let [rows, columns, taps_x] = [down.count, across.count, across.taps].map(|v| v.map(Divisor::new));
        let oc = to.c as usize;
        let side = block_width(oc);
        let largest = self.n * rows[0].value as usize * columns[0].value as usize;
        let grid = [largest.div_ceil(CONV_BLOCK / side), oc.div_ceil(side), step * step];
        let (y, passing) = self.passing(p, grid[0] * grid[2])?;
        let args = ConvArgs {
            passing,
            w: self.param(p.weight),
            channels: Divisor::new(from.c as usize),
            taps_x,
            rows,
            columns,
            kh: kh as i32,
            kw: kw as i32,
            stride: stride as i32,
            pad: pad as i32,
        };
        let kernel = match (p.gradient, side) {
            (false, 16) => Kernel::Conv16,
            (false, 32) => Kernel::Conv32,
            (false, _) => Kernel::Conv64,
            (true, 16) => Kernel::Gradient16,
            (true, 32) => Kernel::Gradient32,
            (true, _) => Kernel::Gradient64,
        };
        self.launch(kernel, grid, &args);
        Ok(y)
    }

    /// [`Builder::weights`] in f32, `len` values into `to`.
    pub(super) fn plain_weights(
        &mut self,
        g: &ConvShape,
        weighing: Weighing,
        to: u64,
        len: usize,
    ) -> Result<(), EngineError> {
        let (oc, depth) = (g.y.c as usize, g.weights() / g.y.c as usize);
        let side = block_width(oc);
        let tall = WEIGHT_BLOCK / side;
        let tiles = depth.div_ceil(tall) * oc.div_ceil(side);
        let all = self.n * pixels(g.y);
        let stretch = all.div_ceil((WEIGHT_BLOCKS / tiles).max(1)).max(WEIGHT_STRETCH).next_multiple_of(16);
        let splits = all.div_ceil(stretch);
        let args = WeightArgs {
            weighing: Weighing { partial: self.reduce(to, splits, len)?, ..weighing },
            channels: Divisor::new(g.x.c as usize),
            taps_x: Divisor::new(g.window.kernel[1] as usize),
            rows: Divisor::new(g.y.h as usize),
            columns: Divisor::new(g.y.w as usize),
            stride: g.window.stride[0] as i32,
            pad: g.window.pad[0] as i32,
            stretch: stretch as i32,
            _end: 0,
        };
        let kernel = match side {
            16 => Kernel::Weights16,
            32 => Kernel::Weights32,
            _ => Kernel::Weights64,
        };
        self.launch(kernel, [depth.div_ceil(tall), oc.div_ceil(side), splits], &args);
        Ok(())
    }
}
