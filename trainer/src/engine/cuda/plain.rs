//! Launches of convolutions in f32 (kernels/conv.cu, kernels/weights.cu).

use super::args::{ConvArgs, Divisor, Entry, WeightArgs};
use super::backend::Kernel;
use super::builder::{Builder, Map, Product, pixels};
use super::layout::Span;
use crate::engine::EngineError;
use stemguard_runtime::kernels::ConvShape;

/// Outputs of a block of a convolution, entries of a block of a weight gradient.
const CONV_BLOCK: usize = 4096;
const WEIGHT_BLOCK: usize = 2304;
/// Blocks that a weight gradient is spread over, about. A constant: what is added in which order does not depend on the device.
const WEIGHT_BLOCKS: usize = 1024;
/// Least pixels of one of its stretches.
const WEIGHT_STRETCH: usize = 64;

fn wide(c: usize) -> usize {
    if c <= 16 {
        16
    } else if c <= 32 {
        32
    } else {
        64
    }
}

impl Builder<'_> {
    /// [`Builder::product`] in f32.
    pub(super) fn plain_product(&mut self, p: &Product<'_>) -> Result<Map, EngineError> {
        let (from, to) = if p.gradient { (p.g.y, p.g.x) } else { (p.g.x, p.g.y) };
        let (window, mut y) = (&p.g.window, self.map(to)?);
        let [kh, kw] = window.kernel.map(|v| v as usize);
        let (stride, pad) = (window.stride[0] as usize, window.pad[0] as usize);
        let step = if p.gradient { stride } else { 1 };
        // Of phase i: rows or columns of the output, taps.
        let along = |len: u32| [0, 1].map(|i| Divisor::new((len as usize + step - 1 - i.min(step - 1)) / step));
        let taps = [0, 1].map(|i| {
            let first = if p.gradient { (i + pad) % step } else { 0 };
            Divisor::new((kw + step - 1 - first) / step)
        });
        let (rows, columns) = (along(to.h), along(to.w));
        let (oc, side) = (to.c as usize, wide(to.c as usize));
        let largest = self.n * rows[0].value as usize * columns[0].value as usize;
        let grid = [largest.div_ceil(CONV_BLOCK / side), oc.div_ceil(side), step * step];
        let blocks = grid[0] * grid[2];
        y.sums = if p.sums { Some(self.sums(oc, blocks)?) } else { None };
        let (entry_kind, entry, other) = p.entry.parts();
        let (gate_kind, gate, gate_norm) = p.gate.parts();
        let args = ConvArgs {
            x: p.x,
            entry,
            other,
            w: self.param(p.weight),
            bias: p.bias.map_or(0, |b| self.param(b)),
            gate,
            gate_norm,
            add: p.add,
            y: y.at(),
            sums: y.sums.map_or(0, |s| s.region.address),
            channels: Divisor::new(from.c as usize),
            taps_x: taps,
            rows,
            columns,
            n: self.n as i32,
            ih: from.h as i32,
            iw: from.w as i32,
            oh: to.h as i32,
            ow: to.w as i32,
            oc: oc as i32,
            kh: kh as i32,
            kw: kw as i32,
            stride: stride as i32,
            pad: pad as i32,
            entry_kind,
            gate_kind,
            squash: p.squash,
            blocks: blocks as i32,
            slope: p.entry.slope().or(p.gate.slope()).unwrap_or_default(),
            _end: 0,
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

    /// [`Builder::weights`] in f32; `len` with the bias.
    pub(super) fn plain_weights(
        &mut self,
        g: &ConvShape,
        (x, x_entry): (u64, Entry),
        (dy, dy_entry): (u64, Entry),
        weight: Span,
        len: usize,
    ) -> Result<(), EngineError> {
        let (oc, depth) = (g.y.c as usize, weight.len / g.y.c as usize);
        let side = wide(oc);
        let tall = WEIGHT_BLOCK / side;
        let tiles = depth.div_ceil(tall) * oc.div_ceil(side);
        let all = self.n * pixels(g.y);
        let stretch = all.div_ceil((WEIGHT_BLOCKS / tiles).max(1)).max(WEIGHT_STRETCH).next_multiple_of(16);
        let splits = all.div_ceil(stretch);
        let partial = self.take(splits * len)?;
        let slope = x_entry.slope().unwrap_or_default();
        let (x_kind, x_entry, _) = x_entry.parts();
        let (dy_kind, dy_entry, dy_other) = dy_entry.parts();
        let args = WeightArgs {
            x,
            x_entry,
            dy,
            dy_entry,
            dy_other,
            partial: partial.address,
            channels: Divisor::new(g.x.c as usize),
            taps_x: Divisor::new(g.window.kernel[1] as usize),
            rows: Divisor::new(g.y.h as usize),
            columns: Divisor::new(g.y.w as usize),
            n: self.n as i32,
            ih: g.x.h as i32,
            iw: g.x.w as i32,
            oc: oc as i32,
            kh: g.window.kernel[0] as i32,
            stride: g.window.stride[0] as i32,
            pad: g.window.pad[0] as i32,
            x_kind,
            dy_kind,
            bias: i32::from(len > weight.len),
            stretch: stretch as i32,
            slope,
        };
        let kernel = match side {
            16 => Kernel::Weights16,
            32 => Kernel::Weights32,
            _ => Kernel::Weights64,
        };
        self.launch(kernel, [depth.div_ceil(tall), oc.div_ceil(side), splits], &args);
        let to = self.grad(weight);
        self.reduce(partial, to, splits, len);
        Ok(())
    }
}
