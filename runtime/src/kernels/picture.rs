//! One picture at a time, for a net that runs: convolutions whose weights were prepared once, each shared by a team of threads.
//!
//! A convolution is cut by rows of its output (of tiles, where it goes tile by tile): everyone copies the padded rows that its own
//! part reads into a buffer of its own, so that a part waits for nothing inside an operation. Where there are too few rows, or where
//! weights are what takes time to fetch, it is cut by blocks of output channels instead. The sums of one output value are the
//! same either way, so results do not depend on the cut.

use super::ConvShape;
use super::buffer::{Aligned, scratch};
use super::image::{Blocks, Correlation, Exit};
use super::isa::Isa;
use super::scalar::activate;
use super::simd::{Simd, ptr};
use super::team::{ELEMENT, Lead, Shared, share};
use super::transposed::{Pad, forward_correlation, pad_rows, padded_len, window_pad};
use super::window::{self, Cells, Field, Results};
use super::winograd::Winograd;
use crate::net::{Activation, LinearArgs, PoolArgs};
use crate::shape::Shape;
use core::ops::Range;

mod pair;
pub(crate) use pair::{End, Pair};

/// Tiles in one part: fewer do not fill the registers, and each part reads all weights.
const TILES: core::ops::RangeInclusive<usize> = 4..=8;
/// Weights that outnumber a padded picture so many times are shared, rather than the picture's rows.
const HEAVY: usize = 4;
/// Pixels of an output that are few.
const SMALL: u32 = 64;
/// Rows of weights that are not many.
const DEEP: usize = 128;

/// How a convolution is computed.
#[derive(Debug)]
enum Way {
    /// As a correlation over packed weights; none where packing would not change them.
    Direct(Correlation, Option<Aligned>),
    /// Channel by channel, over the picture and the weights as they are.
    Depthwise,
    /// Tile by tile, over transformed weights.
    Tiled(Winograd, Aligned),
}

/// A convolution, ready to run on pictures.
#[derive(Debug)]
pub struct PreparedConv {
    g: ConvShape,
    /// Whose vectors its weights are packed for.
    isa: Isa,
    way: Way,
    pad: Pad,
    /// How its columns lie.
    blocks: Blocks,
}

/// How a convolution is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// Into so many parts, by rows.
    Rows(usize),
    /// Into so many parts, by output channels.
    Columns(usize),
}

impl PreparedConv {
    /// Chooses how to compute a convolution, `groups` 1 or depthwise, and packs or transforms its weights where that pays.
    ///
    /// `w` as in [`crate::net::Op::Conv`]; another length panics, and so does an output that is not the window's.
    pub fn new(k: &Simd, g: ConvShape, depthwise: bool, w: &[f32]) -> Self {
        assert!(g.fits(), "a convolution whose output is not what its window gives");
        let (correlation, pad, isa) = (forward_correlation(&g), window_pad(&g.window), k.isa());
        let (lanes, cout) = (k.isa().lanes(), correlation.cout);
        // Few pixels are shared by columns; and the nearest cache keeps a block of four vectors of so many rows.
        let four = g.y.h * g.y.w > SMALL && (g.weights() / cout <= DEEP || Winograd::plan_picture(&g, lanes).is_some());
        let blocks = Blocks { lanes, four };
        if depthwise {
            let cells = (g.window.kernel[0] * g.window.kernel[1]) as usize;
            assert!(g.x.c == g.y.c && w.len() == cells * cout, "weights of another shape");
            return Self { g, isa, way: Way::Depthwise, pad: [0; 4], blocks };
        }
        assert_eq!(w.len(), g.weights(), "weights of another shape");
        let tiled = Winograd::plan_picture(&g, lanes).map(|t| t.in_blocks(blocks.four));
        if let Some(t) = tiled {
            return Self { g, isa, way: Way::Tiled(t, k.pack(Some(&t), blocks.four, cout, w)), pad: t.pad(), blocks };
        }
        let packed = (!blocks.is_one(cout)).then(|| k.pack(None, blocks.four, cout, w));
        Self { g, isa, way: Way::Direct(Correlation { four: blocks.four, ..correlation }, packed), pad, blocks }
    }

    /// Rows of the output that cannot be parted.
    fn rows(&self) -> usize {
        if let Way::Tiled(t, _) = &self.way { t.out() } else { 1 }
    }

    /// Whether windows are single pixels, side by side: all rows are one.
    fn is_flat(&self) -> bool {
        let w = &self.g.window;
        (w.kernel, w.stride, w.pad) == ([1, 1], [1, 1], [0; 4])
    }

    /// The cut for a team.
    fn cut(&self, lead: &Lead<'_>) -> Cut {
        let (cells, cin) = ((self.g.window.kernel[0] * self.g.window.kernel[1]) as usize, self.g.x.c as usize);
        let (threads, pixels) = (lead.threads(), (self.g.y.h * self.g.y.w) as usize);
        let (depth, weights, rows) = match &self.way {
            Way::Depthwise => (cells, 0, self.g.y.h as usize),
            Way::Direct(..) => (cells * cin, self.g.weights(), self.g.y.h as usize),
            Way::Tiled(t, u) => {
                let [across, down] = t.tiles();
                let few = (across * down / threads).clamp(*TILES.start(), *TILES.end());
                // Of the multiplications that the definition has.
                let saved = if t.out() == 2 { 2 } else { 4 };
                (cells * cin / saved, u.get().len(), (across * down / few).clamp(1, down))
            }
        };
        let parts = lead.parts(pixels * depth.max(ELEMENT) * self.g.y.c as usize);
        let columns = self.blocks.count(self.g.y.c as usize);
        let heavy = weights > HEAVY * padded_len(&self.g.x, self.pad) && columns >= threads;
        if columns > 1 && (heavy || rows < threads.min(parts)) {
            Cut::Columns(parts.min(columns))
        } else {
            Cut::Rows(parts.min(rows))
        }
    }

    /// Rows and channels of the output that are part `part` of a cut.
    fn area(&self, cut: Cut, part: usize) -> (Range<usize>, Range<usize>) {
        let (h, cout) = (self.g.y.h as usize, self.g.y.c as usize);
        match cut {
            Cut::Rows(parts) => {
                let units = share(h.div_ceil(self.rows()), part, parts);
                (units.start * self.rows()..(units.end * self.rows()).min(h), 0..cout)
            }
            Cut::Columns(parts) => {
                let units = share(self.blocks.count(cout), part, parts);
                let [start, end] = [units.start, units.end].map(|n| self.blocks.start(cout, n));
                (0..h, start..end)
            }
        }
    }
}

/// The rows of a picture of `h` rows that lie in `padded` rows of its copy with `top` rows of zeros above, and how many of those
/// rows are zeros above them.
pub(crate) fn inside(padded: Range<usize>, top: usize, h: usize) -> (Range<usize>, usize) {
    let first = padded.start.saturating_sub(top).min(h);
    let end = padded.end.saturating_sub(top).clamp(first, h);
    (first..end, top.saturating_sub(padded.start))
}

/// A convolution of one picture, at work.
struct Work<'a> {
    k: &'a Simd,
    conv: &'a PreparedConv,
    x: &'a [f32],
    w: &'a [f32],
    bias: Option<&'a [f32]>,
    add: Option<&'a [f32]>,
    act: Activation,
    y: Shared,
}

impl Work<'_> {
    /// Some rows and channels of the output, on the calling thread.
    ///
    /// # Safety
    /// Nobody else reads or writes them meanwhile. Rows start at whole [`PreparedConv::rows`], channels at a block of columns; both
    /// lie inside the output.
    unsafe fn part(&self, rows: Range<usize>, columns: Range<usize>) {
        let (g, pad) = (&self.conv.g, self.conv.pad);
        let (cout, row, y_row) = (g.y.c as usize, (g.x.w * g.x.c) as usize, (g.y.w * g.y.c) as usize);
        // The rows of the padded picture that these read.
        let (needed, work) = match &self.conv.way {
            Way::Tiled(t, _) => (rows.start..rows.end.next_multiple_of(t.out()) + 2, t.work()),
            Way::Direct(c, _) => {
                let stride = g.window.stride[0] as usize;
                (stride * rows.start..stride * (rows.end - 1) + c.kh, 0)
            }
            Way::Depthwise => (0..0, 0),
        };
        let fused = Exit::of(self.act);
        let at = rows.start * y_row;
        let exit = Exit { add: ptr(self.add), ..fused.unwrap_or(Exit::PLAIN) }.at(at);
        // SAFETY: windows lie inside the rows needed of the padded copy, or of the picture itself without padding; lengths
        // were checked by `conv_shared`; weights were packed for this way, and a block of columns starts at as many elements as the
        // columns before it have; `work` has the plan's length; the rest is the caller's promise.
        let run = |from: &[f32], work: &mut [f32]| unsafe {
            let (from, y) = (from.as_ptr(), self.y.0.add(at));
            let bias = self.bias.map(|b| &b[columns.clone()]);
            match &self.conv.way {
                Way::Direct(c, packed) => {
                    let w = packed.as_ref().map_or(self.w, Aligned::get)[columns.start * c.kh * c.klen..].as_ptr();
                    let mut c = Correlation { oh: rows.len(), cout: columns.len(), ..*c };
                    if self.conv.is_flat() {
                        (c.oh, c.ow) = (1, c.oh * c.ow);
                    }
                    (self.k.table.correlate)(&c, from, w, ptr(bias), &exit.at(columns.start), y.add(columns.start));
                }
                Way::Depthwise => {
                    let field = Field { x: from.add(columns.start), first: 0, row, pixel: g.x.c as usize };
                    let cells = Cells { w: self.w[columns.start..].as_ptr(), bias: ptr(bias), all: cout };
                    let to = Results { y: y.add(columns.start), first: rows.start, row: y_row, pixel: cout };
                    let (channels, exit) = (columns.len(), exit.at(columns.start));
                    let (table, rows) = (self.k.table, rows.clone());
                    window::depthwise(table, &g.window, (g.x, g.y), rows, channels, field, cells, &exit, to);
                }
                Way::Tiled(t, u) => {
                    let tiles = rows.start / t.out()..rows.end.div_ceil(t.out());
                    let t = t.part(tiles, columns.clone());
                    t.convolve(self.k.table, 1, from, u.get().as_ptr(), ptr(self.bias), &exit, work.as_mut_ptr(), y);
                }
            }
        };
        if pad == [0; 4] {
            run(&self.x[needed.start * row..], &mut []);
        } else {
            let (inner, above) = inside(needed.clone(), pad[0], g.x.h as usize);
            let s = Shape { h: inner.len() as u32, ..g.x };
            let pad = [above, pad[1], needed.len() - above - inner.len(), pad[3]];
            scratch([padded_len(&s, pad), work, 0, 0], |[to, work, ..]| {
                pad_rows(&s, pad, to, |r, to| to.copy_from_slice(&self.x[(inner.start + r) * row..][..row]));
                run(to, work);
            });
        }
        if fused.is_some() {
            return;
        }
        let pixels = rows.start * g.y.w as usize..rows.end * g.y.w as usize;
        // SAFETY: the caller's promise.
        unsafe {
            if columns.len() == cout {
                activate(self.act, self.y.slice(pixels.start * cout..pixels.end * cout));
            } else {
                for p in pixels {
                    activate(self.act, self.y.slice(p * cout + columns.start..p * cout + columns.end));
                }
            }
        }
    }
}

impl Simd {
    /// One picture's convolution on the calling thread: `y = conv(x) + bias`.
    ///
    /// `w` are the weights that `conv` was prepared from, for the instruction set of these kernels: others panic. Slices must have the
    /// lengths of its shape; shorter ones panic.
    pub fn conv_picture(&self, conv: &PreparedConv, x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
        self.conv_shared(&mut Lead::alone(), conv, x, w, bias, None, Activation::None, y);
    }

    /// `act(conv(x) + bias + add)` on all threads of a team; `add` is laid out as `y`.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn conv_shared(
        &self,
        lead: &mut Lead<'_>,
        conv: &PreparedConv,
        x: &[f32],
        w: &[f32],
        bias: Option<&[f32]>,
        add: Option<&[f32]>,
        act: Activation,
        y: &mut [f32],
    ) {
        let g = &conv.g;
        assert_eq!(self.isa(), conv.isa, "prepared for another instruction set");
        let (x, y, add) = (&x[..g.x.len()], &mut y[..g.y.len()], add.map(|a| &a[..g.y.len()]));
        let cout = g.y.c as usize;
        let cells = (g.window.kernel[0] * g.window.kernel[1]) as usize;
        let needed = if matches!(conv.way, Way::Depthwise) { cells * cout } else { g.weights() };
        assert!(w.len() == needed && bias.is_none_or(|b| b.len() == cout), "weights of another shape");
        let work = Work { k: self, conv, x, w, bias, add, act, y: Shared(y.as_mut_ptr()) };
        let cut = conv.cut(lead);
        let (Cut::Rows(parts) | Cut::Columns(parts)) = cut;
        lead.run(parts, |part| {
            let (rows, columns) = conv.area(cut, part);
            // SAFETY: areas are disjoint and start as they must; `y` is borrowed until all parts have run.
            unsafe { work.part(rows, columns) };
        });
    }

    /// `to = act(x * scale + shift)` by channel, on the calling thread, where `act` is none, ReLU or leaky; false (and nothing
    /// done) for any other.
    pub fn affine_picture(&self, x: &[f32], scale: &[f32], shift: &[f32], act: Activation, to: &mut [f32]) -> bool {
        let slope = match act {
            Activation::None => 1.0,
            Activation::Relu => 0.0,
            Activation::Leaky(s) => s,
            _ => return false,
        };
        let c = scale.len();
        assert!(shift.len() == c && to.len() == x.len() && x.len().is_multiple_of(c), "lengths differ");
        // SAFETY: lengths were checked; `to` is exclusive.
        unsafe {
            (self.table.affine)(x.len() / c, c, x.as_ptr(), scale.as_ptr(), shift.as_ptr(), slope, to.as_mut_ptr())
        }
        true
    }

    /// `y = act(a + b)`, on the calling thread.
    pub(crate) fn add_picture(&self, act: Activation, a: &[f32], b: &[f32], y: &mut [f32]) {
        let fused = Exit::of(act);
        let (a, b) = (&a[..y.len()], &b[..y.len()]);
        let exit = Exit { add: b.as_ptr(), ..fused.unwrap_or(Exit::PLAIN) };
        // SAFETY: all three have the length of `y`, which is exclusive.
        unsafe { (self.table.add)(y.len(), a.as_ptr(), &exit, y.as_mut_ptr()) };
        if fused.is_none() {
            activate(act, y);
        }
    }

    /// The largest value in each window of some rows of the output: `y` takes whole rows, the first of which is row `first`.
    pub(crate) fn max_pool_rows(&self, a: &PoolArgs, first: usize, x: &[f32], y: &mut [f32]) {
        let (row, pixel) = ((a.y.w * a.y.c) as usize, a.x.c as usize);
        let (x, rows) = (&x[..a.x.len()], first..first + y.len() / row);
        assert!(a.x.c == a.y.c && rows.end <= a.y.h as usize, "rows of another output");
        let from = Field { x: x.as_ptr(), first: 0, row: a.x.w as usize * pixel, pixel };
        let to = Results { y: y.as_mut_ptr(), first, row, pixel };
        // SAFETY: the picture is there whole, and `y` takes these rows.
        unsafe { window::max_pool(self.table, &a.window, (a.x, a.y), rows, from, to) };
    }

    /// Some outputs of a linear layer, from output `first` on: `y = act(x^T weight + bias)`.
    pub(crate) fn linear_columns(&self, a: &LinearArgs<'_>, all: usize, first: usize, x: &[f32], y: &mut [f32]) {
        match a.bias {
            Some(bias) => y.copy_from_slice(&bias[first..first + y.len()]),
            None => y.fill(0.0),
        }
        assert!(a.weight.len() == x.len() * all && first + y.len() <= all, "weights of another shape");
        let fused = Exit::of(a.act);
        let (w, exit) = (a.weight[first..].as_ptr(), fused.unwrap_or(Exit::PLAIN));
        // SAFETY: the weights are `[x.len()][all]`, and the columns lie inside.
        unsafe { (self.table.linear)(x.len(), y.len(), x.as_ptr(), w, all, &exit, y.as_mut_ptr()) };
        if fused.is_none() {
            activate(a.act, y);
        }
    }
}

#[cfg(test)]
mod tests;
