//! Winograd's minimal filtering for 3x3 kernels, F(4x4, 3x3) (Lavin and Gray 2016, arXiv 1509.09308): 36 multiplications
//! where the definition has 144.
//!
//! A picture is cut into tiles of 4x4 output pixels. Each tile's 6x6 inputs are transformed (`B^T d B`) channel by channel, so
//! are the weights (`G g G^T`); the convolution is then, for each of the 36 positions, one small matrix product over channels,
//! which [`super::image::correlate`] computes; the results are transformed back (`A^T m A`). The weight gradient goes the same
//! way: `A dy A^T` instead of the weights, outer products, and `G^T du G` at the end.
//!
//! Buffers of transformed values hold 36 *planes*, one for each position, of `[tiles][channels]`.

mod transform;

pub(crate) use transform::{
    Grid, filter, filter_gradient, filter_small, gradient, input, input_small, output, output_small,
};

use super::ConvShape;
use super::image::{Correlation, Exit};
use super::isa::Table;
use core::ops::Range;

/// Side of a tile of outputs, of its inputs, and the number of positions.
pub(super) const OUT: usize = 4;
const IN: usize = 6;
pub(super) const PLANES: usize = IN * IN;
/// Tiles times channels (in and out) that one block of tiles should hold: about 300 KB of transformed values.
const BLOCK: usize = 2048;
/// Bytes of transformed weights that a core's cache does not keep, and tiles of a picture that are too few to fetch so many for.
const FAR: usize = 4 << 20;
const FEW: usize = 4;
/// Tiles of 2x2 that are enough to fetch such weights for.
const ENOUGH: usize = 32;
/// Bytes of transformed weights that stay in a core's own cache from one block of tiles to the next. Others come from further away
/// each time: then a block has up to [`MANY`] tiles, whatever their channels.
const NEAR: usize = 1 << 20;
const MANY: usize = 64;
/// Elements between the end of one plane and the start of the next: planes of a round size would share cache sets.
const GAP: usize = 16;

/// How a convolution of 3x3, stride 1, padding 1 is cut into tiles.
#[derive(Clone, Copy, Debug)]
pub(super) struct Winograd {
    cin: usize,
    cout: usize,
    /// The first output channel; their number is `y.c`.
    first: usize,
    /// Tiles of the padded input, and of the output.
    x: Grid,
    y: Grid,
    /// Tiles in one block.
    block: usize,
    /// Whether blocks of columns may be four vectors wide.
    four: bool,
}

impl Winograd {
    /// A plan in tiles of 4x4, where this way pays: `lanes` is the vectors' width.
    pub(super) fn plan(g: &ConvShape, lanes: usize) -> Option<Self> {
        let plan = Self::tiles_of(g, lanes, OUT)?;
        // Transformed weights are four times as many bytes as weights. Beyond a core's cache they come anew for each block of
        // tiles, and with few tiles to use them on that takes as long as all the multiplications they save: 37 MB for a
        // picture of 512 channels at 7x7.
        let far = plan.weights() * size_of::<f32>() > FAR && plan.x.across * plan.x.down <= FEW;
        (!far).then_some(plan)
    }

    /// A plan for one picture at a time: where weights that were transformed for tiles of 4x4 leave the cache, tiles of 2x2 take less
    /// than half of them; none where even those are used on too few tiles.
    pub(super) fn plan_picture(g: &ConvShape, lanes: usize) -> Option<Self> {
        let plan = Self::tiles_of(g, lanes, OUT)?;
        if plan.weights() * size_of::<f32>() <= FAR {
            return Some(plan);
        }
        let small = Self::tiles_of(g, lanes, 2)?;
        (small.x.across * small.x.down >= ENOUGH).then_some(small)
    }

    fn tiles_of(g: &ConvShape, lanes: usize, out: usize) -> Option<Self> {
        let (cin, cout) = (g.x.c as usize, g.y.c as usize);
        let (h, w) = (g.y.h as usize, g.y.w as usize);
        let fits = g.window.kernel == [3, 3] && g.window.stride == [1, 1] && g.window.pad == [1; 4];
        if !fits || !cin.is_multiple_of(lanes) || !cout.is_multiple_of(lanes) || h.min(w) < OUT {
            return None;
        }
        let (across, down) = (w.div_ceil(out), h.div_ceil(out));
        let row = (out * across + 2) * cin;
        let x = Grid { across, down, row, picture: (out * down + 2) * row, pixel: cin, out, c: cin, h, w };
        let y = Grid { row: w * cout, picture: h * w * cout, pixel: cout, c: cout, ..x };
        let mut plan = Self { cin, cout, first: 0, x, y, block: 0, four: true };
        plan.block = if plan.weights() * size_of::<f32>() <= NEAR {
            (BLOCK / (cin + cout)).max(8)
        } else {
            let tiles = across * down;
            tiles.div_ceil(tiles.div_ceil(MANY))
        };
        Some(plan)
    }

    /// The same plan over weights with blocks of columns of up to four vectors, or without.
    pub(super) const fn in_blocks(self, four: bool) -> Self {
        Self { four, ..self }
    }

    /// Tiles side by side, and rows of them.
    pub(super) fn tiles(&self) -> [usize; 2] {
        [self.x.across, self.x.down]
    }

    /// Side of a tile of outputs.
    pub(super) fn out(&self) -> usize {
        self.x.out
    }

    /// Positions of a tile, each a plane.
    fn planes(&self) -> usize {
        (self.x.out + 2) * (self.x.out + 2)
    }

    /// The plan for some rows of one picture's tiles and some of its output channels, which start at a block of columns. Its input
    /// starts at the first of these rows, and so does its output, with all channels.
    pub(super) fn part(&self, rows: Range<usize>, columns: Range<usize>) -> Self {
        let out = self.x.out;
        let (down, h) = (rows.len(), (self.y.h - out * rows.start).min(out * rows.len()));
        let (first, c) = (columns.start, columns.len());
        Self { first, x: Grid { down, h, ..self.x }, y: Grid { down, h, c, ..self.y }, ..*self }
    }

    /// Padding of the copy of a picture that tiles are read from: rows above, columns left, rows below, columns right.
    pub(super) fn pad(&self) -> [usize; 4] {
        let out = self.x.out;
        [1, 1, out * self.x.down + 1 - self.x.h, out * self.x.across + 1 - self.x.w]
    }

    /// Pictures that fill a block of tiles.
    pub(super) fn pictures(&self) -> usize {
        (self.block / (self.x.across * self.x.down)).max(1)
    }

    /// Elements of the transformed weights, a matrix `[cin][cout]` for each position, in blocks of columns where
    /// [`Self::convolve`] reads it.
    pub(super) fn weights(&self) -> usize {
        self.planes() * self.cin * self.cout
    }

    /// Transforms weights that lie in blocks of columns, `n` elements a kernel cell.
    ///
    /// # Safety
    /// `w` holds 9 cells, `to` [`Self::weights`] elements; `table` is of an instruction set that exists.
    pub(super) unsafe fn filter(&self, table: &Table, n: usize, w: *const f32, to: *mut f32) {
        // SAFETY: the caller's promise; the plan's channels are whole vectors.
        unsafe {
            if self.x.out == OUT { (table.winograd_filter)(n, w, to) } else { (table.winograd_filter_small)(n, w, to) }
        }
    }

    fn plane(&self, c: usize) -> usize {
        self.block * c + GAP
    }

    /// Elements of scratch that [`Self::convolve`] and [`Self::weight_gradient`] take.
    pub(super) fn work(&self) -> usize {
        self.planes() * (self.plane(self.cin) + self.plane(self.cout))
    }

    /// `n` pictures: padded copies `x`, packed and transformed weights `u`, to `y` through `exit`.
    ///
    /// # Safety
    /// `x` holds `n` pictures padded by [`Self::pad`], `u` has [`Self::weights`] elements, `bias` is null or a value a channel,
    /// `work` has [`Self::work`] elements, `y` and what the exit adds take `n` pictures; `table` is of an instruction set that
    /// exists.
    #[allow(clippy::too_many_arguments)]
    pub(super) unsafe fn convolve(
        &self,
        table: &Table,
        n: usize,
        x: *const f32,
        u: *const f32,
        bias: *const f32,
        exit: &Exit,
        work: *mut f32,
        y: *mut f32,
    ) {
        let (from, to, planes) = (self.plane(self.cin), self.plane(self.cout), self.planes());
        let tiles = n * self.x.across * self.x.down;
        let (input, output) = if self.x.out == OUT {
            (table.winograd_input, table.winograd_output)
        } else {
            (table.winograd_input_small, table.winograd_output_small)
        };
        for first in (0..tiles).step_by(self.block) {
            let count = self.block.min(tiles - first);
            let product = Correlation {
                kh: 1,
                klen: self.cin,
                x_row: 0,
                x_step: from,
                x_pix: self.cin,
                cout: self.y.c,
                oh: planes,
                ow: count,
                y_row: to,
                y_pix: self.y.c,
                w_step: self.cin * self.cout,
                four: self.four,
            };
            // SAFETY: tiles are those of `n` pictures; planes hold a block of tiles; the columns of a part start at a block of
            // them; the rest is the caller's promise.
            unsafe {
                let m = work.add(planes * from);
                let bias = if bias.is_null() { bias } else { bias.add(self.first) };
                let u = u.add(self.first * self.cin);
                input(&self.x, [first, count, from], x, work);
                (table.correlate)(&product, work, u, core::ptr::null(), &Exit::PLAIN, m);
                output(&self.y, [first, count, to], m, bias, &exit.at(self.first), y.add(self.first));
            }
        }
    }

    /// Elements from one position to the next in gradients with respect to transformed weights: not a round number.
    pub(super) fn gradient_plane(&self) -> usize {
        self.cin * self.cout + GAP
    }

    /// Elements of the gradients with respect to transformed weights.
    pub(super) fn gradients(&self) -> usize {
        self.planes() * self.gradient_plane()
    }

    /// Adds the gradient with respect to the transformed weights, over `n` pictures, to `du` ([`Self::gradients`]). `dy` points at
    /// the first pixel of the first padded gradient, whose rows and pictures are `dy_row` and `dy_picture` elements apart.
    ///
    /// # Safety
    /// `x` and `work` as for [`Self::convolve`]; whole tiles of `dy` can be read, zeros where there is no pixel.
    pub(super) unsafe fn weight_gradient(
        &self,
        table: &Table,
        n: usize,
        x: *const f32,
        (dy, dy_row, dy_picture): (*const f32, usize, usize),
        work: *mut f32,
        du: *mut f32,
    ) {
        let (from, to) = (self.plane(self.cin), self.plane(self.cout));
        let tiles = n * self.x.across * self.x.down;
        let y = Grid { row: dy_row, picture: dy_picture, ..self.y };
        for first in (0..tiles).step_by(self.block) {
            let count = self.block.min(tiles - first);
            let product = Correlation {
                kh: 1,
                klen: self.cin,
                x_row: 0,
                x_step: 0,
                x_pix: self.cin,
                cout: self.cout,
                oh: 1,
                ow: count,
                y_row: 0,
                y_pix: self.cout,
                w_step: 0,
                four: true,
            };
            // SAFETY: as in `convolve`.
            unsafe {
                let d = work.add(PLANES * from);
                (table.winograd_input)(&self.x, [first, count, from], x, work);
                (table.winograd_gradient)(&y, [first, count, to], dy, d);
                for i in 0..PLANES {
                    let du = du.add(i * self.gradient_plane());
                    (table.outer_product)(&product, work.add(i * from), d.add(i * to), du);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
