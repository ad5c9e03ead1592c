//! One picture at a time, for a net that runs: convolutions whose weights were prepared once, each shared by a team of threads.
//!
//! A convolution is cut by rows of its output (of tiles, where it goes tile by tile): everyone copies the padded rows that its own
//! part reads into a buffer of its own, so that a part waits for nothing inside an operation. Where there are too few rows, or where
//! weights are what takes time to fetch, it is cut by blocks of output channels instead. The sums of one output value are the
//! same either way, so results do not depend on the cut.

use super::ConvShape;
use super::buffer::{Aligned, scratch};
use super::image::{Correlation, is_one_block};
use super::simd::{Simd, ptr};
use super::team::{Lead, Shared, share};
use super::transposed::{Pad, forward_correlation, pad_rows, padded_len, window_pad};
use super::winograd::{self, Winograd};
use crate::net::Activation;
use crate::shape::Shape;
use core::ops::Range;

/// Tiles in one part: fewer do not fill the registers, and each part reads all weights.
const TILES: core::ops::RangeInclusive<usize> = 4..=8;
/// Weights that outnumber a padded picture so many times are shared, rather than the picture's rows.
const HEAVY: usize = 4;

/// How a convolution is computed.
#[derive(Debug)]
enum Way {
    /// As a correlation over packed weights; none where packing would not change them.
    Direct(Correlation, Option<Aligned>),
    /// As a correlation channel by channel, over the weights as they are.
    Depthwise(Correlation),
    /// Tile by tile, over transformed weights.
    Tiled(Winograd, Aligned),
}

/// A convolution, ready to run on pictures.
#[derive(Debug)]
pub struct PreparedConv {
    g: ConvShape,
    way: Way,
    pad: Pad,
    /// Output channels that cannot be parted.
    columns: usize,
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
    /// `w` as in [`crate::net::Op::Conv`]; another length panics.
    pub fn new(k: &Simd, g: ConvShape, depthwise: bool, w: &[f32]) -> Self {
        let (correlation, pad) = (forward_correlation(&g), window_pad(&g.window));
        let (lanes, cout) = (k.isa().lanes(), correlation.cout);
        if depthwise {
            let klen = g.window.kernel[1] as usize;
            let fits = g.x.c == g.y.c && w.len() == correlation.kh * klen * cout;
            assert!(fits, "weights of another shape");
            return Self { g, way: Way::Depthwise(Correlation { klen, ..correlation }), pad, columns: cout };
        }
        assert_eq!(w.len(), g.weights(), "weights of another shape");
        let columns = 2 * lanes;
        match Winograd::plan(&g, lanes) {
            Some(t) => Self { g, way: Way::Tiled(t, k.pack(Some(&t), cout, w)), pad: t.pad(), columns },
            None => {
                let packed = (!is_one_block(lanes, cout)).then(|| k.pack(None, cout, w));
                Self { g, way: Way::Direct(correlation, packed), pad, columns }
            }
        }
    }

    /// Rows of the output that cannot be parted.
    fn rows(&self) -> usize {
        if matches!(self.way, Way::Tiled(..)) { winograd::OUT } else { 1 }
    }

    /// The cut for a team.
    fn cut(&self, lead: &Lead<'_>) -> Cut {
        let (cells, cin) = ((self.g.window.kernel[0] * self.g.window.kernel[1]) as usize, self.g.x.c as usize);
        let (threads, pixels) = (lead.threads(), (self.g.y.h * self.g.y.w) as usize);
        let (depth, weights, rows) = match &self.way {
            Way::Depthwise(_) => (cells, 0, self.g.y.h as usize),
            Way::Direct(..) => (cells * cin, self.g.weights(), self.g.y.h as usize),
            Way::Tiled(t, u) => {
                let [across, down] = t.tiles();
                let few = (across * down / threads).clamp(*TILES.start(), *TILES.end());
                // A quarter of the multiplications.
                (cells * cin / 4, u.get().len(), (across * down / few).clamp(1, down))
            }
        };
        let parts = lead.parts(pixels * depth * self.g.y.c as usize);
        let columns = (self.g.y.c as usize).div_ceil(self.columns);
        let heavy = weights > HEAVY * padded_len(&self.g.x, self.pad) && columns >= threads;
        if columns > 1 && (heavy || rows < threads.min(parts)) {
            Cut::Columns(parts.min(columns))
        } else {
            Cut::Rows(parts.min(rows))
        }
    }

    /// Rows and channels of the output that are part `part` of a cut.
    fn area(&self, cut: Cut, part: usize) -> (Range<usize>, Range<usize>) {
        let whole = |unit: usize, len: usize, parts: usize| {
            let units = share(len.div_ceil(unit), part, parts);
            units.start * unit..(units.end * unit).min(len)
        };
        let (h, cout) = (self.g.y.h as usize, self.g.y.c as usize);
        match cut {
            Cut::Rows(parts) => (whole(self.rows(), h, parts), 0..cout),
            Cut::Columns(parts) => (0..h, whole(self.columns, cout, parts)),
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
    act: Activation,
    y: Shared,
}

impl Work<'_> {
    /// Some rows and channels of the output, on the calling thread.
    ///
    /// # Safety
    /// Nobody else reads or writes them meanwhile. Rows start at whole [`PreparedConv::rows`], channels at whole
    /// [`PreparedConv::columns`]; both lie inside the output.
    unsafe fn part(&self, rows: Range<usize>, columns: Range<usize>) {
        let (g, pad) = (&self.conv.g, self.conv.pad);
        let (cout, row) = (g.y.c as usize, g.x.w as usize * g.x.c as usize);
        // The rows of the padded picture that these read.
        let (needed, work) = match &self.conv.way {
            Way::Tiled(t, _) => (rows.start..rows.end.next_multiple_of(winograd::OUT) + 2, t.work()),
            Way::Direct(c, _) | Way::Depthwise(c) => {
                let stride = g.window.stride[0] as usize;
                (stride * rows.start..stride * (rows.end - 1) + c.kh, 0)
            }
        };
        // SAFETY: windows lie inside the rows needed of the padded copy, or of the picture itself without padding; lengths
        // were checked by `conv_shared`; weights were packed for this way, and a block of columns starts at as many elements as the
        // columns before it have; `work` has the plan's length; the rest is the caller's promise.
        let run = |from: &[f32], work: &mut [f32]| unsafe {
            let (from, y) = (from.as_ptr(), self.y.0.add(rows.start * g.y.w as usize * cout));
            let part = |c: &Correlation| Correlation { oh: rows.len(), cout: columns.len(), ..*c };
            let bias = self.bias.map(|b| &b[columns.clone()]);
            match &self.conv.way {
                Way::Direct(c, packed) => {
                    let w = packed.as_ref().map_or(self.w, Aligned::get)[columns.start * c.kh * c.klen..].as_ptr();
                    (self.k.table.correlate)(&part(c), from, w, ptr(bias), y.add(columns.start));
                }
                // Cut by rows only: its weights count columns one by one.
                Way::Depthwise(c) => (self.k.table.depthwise)(&part(c), from, self.w.as_ptr(), ptr(bias), y),
                Way::Tiled(t, u) => {
                    let tiles = rows.start / winograd::OUT..rows.end.div_ceil(winograd::OUT);
                    let t = t.part(tiles, columns.clone());
                    t.convolve(self.k.table, 1, from, u.get().as_ptr(), ptr(self.bias), work.as_mut_ptr(), y);
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
        if self.act == Activation::None {
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
    /// `w` are the weights that `conv` was prepared from. Slices must have the lengths of its shape; shorter ones panic.
    pub fn conv_picture(&self, conv: &PreparedConv, x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
        self.conv_shared(&mut Lead::alone(), conv, x, w, bias, Activation::None, y);
    }

    /// The same, activated, on all threads of a team.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn conv_shared(
        &self,
        lead: &mut Lead<'_>,
        conv: &PreparedConv,
        x: &[f32],
        w: &[f32],
        bias: Option<&[f32]>,
        act: Activation,
        y: &mut [f32],
    ) {
        let g = &conv.g;
        let (x, y) = (&x[..g.x.len()], &mut y[..g.y.len()]);
        let cout = g.y.c as usize;
        let cells = (g.window.kernel[0] * g.window.kernel[1]) as usize;
        let needed = if matches!(conv.way, Way::Depthwise(_)) { cells * cout } else { g.weights() };
        assert!(w.len() == needed && bias.is_none_or(|b| b.len() == cout), "weights of another shape");
        let work = Work { k: self, conv, x, w, bias, act, y: Shared(y.as_mut_ptr()) };
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
}

fn activate(act: Activation, y: &mut [f32]) {
    match act {
        Activation::None => {}
        Activation::Relu => y.iter_mut().for_each(|v| *v = v.max(0.0)),
        Activation::Relu6 => y.iter_mut().for_each(|v| *v = v.clamp(0.0, 6.0)),
        Activation::Leaky(s) => y.iter_mut().for_each(|v| *v = if *v > 0.0 { *v } else { *v * s }),
        other => y.iter_mut().for_each(|v| *v = other.apply(*v)),
    }
}

#[cfg(test)]
mod tests;
