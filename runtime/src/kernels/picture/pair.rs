//! A convolution of single pixels and the depthwise one behind it, as one operation: what lies between is several times as large as
//! what goes in, so it is made for one block of channels and a few rows at a time, and never leaves the cache.

use super::{Cut, PreparedConv, Way, activate};
use crate::kernels::ConvShape;
use crate::kernels::buffer::scratch;
use crate::kernels::image::{Correlation, Exit};
use crate::kernels::simd::{Simd, ptr};
use crate::kernels::team::{ELEMENT, Lead, Shared, share};
use crate::kernels::window::{self, Cells, Field, Results, runs};
use crate::net::{Activation, Window};
use crate::shape::Shape;
use core::ops::Range;

/// Bytes of what lies between that are made at a time.
const BETWEEN: usize = 256 << 10;
/// Rows of the output from which on they are what is shared: fewer would make too many rows twice.
const ROWS: usize = 24;

/// Both convolutions, borrowed; the first goes directly over packed weights.
#[derive(Clone, Copy)]
pub(crate) struct Pair<'a> {
    first: &'a PreparedConv,
    second: &'a PreparedConv,
}

/// Bias and activation of one of the two.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End<'a> {
    /// `[channels]`
    pub(crate) bias: Option<&'a [f32]>,
    /// Of the first one, as [`Pair::new`] takes it; of the second one, any.
    pub(crate) act: Activation,
}

impl End<'_> {
    fn exit(&self) -> Exit {
        Exit::of(self.act).unwrap_or(Exit::PLAIN)
    }
}

impl<'a> Pair<'a> {
    /// The two as one, where they can go together: single pixels with activation `act`, then channel by channel.
    pub(crate) fn new(first: &'a PreparedConv, second: &'a PreparedConv, act: Activation) -> Option<Self> {
        let fits = first.is_flat() && matches!((&first.way, &second.way), (Way::Direct(..), Way::Depthwise));
        (fits && first.g.y == second.g.x && Exit::of(act).is_some()).then_some(Self { first, second })
    }

    fn cut(&self, lead: &Lead<'_>) -> Cut {
        let (x, y) = (self.first.g.x, self.first.g.y);
        let (rows, columns) = (self.second.g.y.h as usize, self.first.blocks.count(y.c as usize));
        let parts = lead.parts(y.len() * (x.c as usize).max(ELEMENT));
        if rows < ROWS && columns >= lead.threads() {
            Cut::Columns(parts.min(columns))
        } else {
            Cut::Rows(parts.min(rows))
        }
    }
}

/// One picture at work.
struct Work<'a> {
    k: &'a Simd,
    pair: Pair<'a>,
    x: &'a [f32],
    w: [&'a [f32]; 2],
    ends: [End<'a>; 2],
    y: Shared,
}

impl Work<'_> {
    /// Some rows of the output and some blocks of channels.
    ///
    /// # Safety
    /// Nobody else reads or writes them meanwhile; they lie inside the output.
    unsafe fn part(&self, rows: Range<usize>, columns: Range<usize>) {
        let (first, second, blocks) = (&self.pair.first.g, &self.pair.second.g, self.pair.first.blocks);
        let weights = match &self.pair.first.way {
            Way::Direct(_, Some(packed)) => packed.get(),
            _ => self.w[0],
        };
        let (cin, wide, w) = (first.x.c as usize, second.x.c as usize, second.x.w as usize);
        let (window, y_row) = (&second.window, (second.y.w * second.y.c) as usize);
        let whole = Window { pad: [window.pad[0], 0, window.pad[2], 0], ..*window };
        for block in columns {
            let [start, end] = [block, block + 1].map(|n| blocks.start(wide, n));
            let channels = end - start;
            // Zeros left and right, so that no window loses taps there.
            let [_, left, _, right] = window.pad.map(|p| p as usize);
            let row = (left + w + right) * channels;
            let (kernel, stride) = (window.kernel[0] as usize, window.stride[0] as usize);
            let fit = BETWEEN / (row * size_of::<f32>());
            let strip = if fit > kernel { (fit - kernel) / stride + 1 } else { 1 };
            let part = |bias: Option<&[f32]>| ptr(bias.map(|b| &b[start..end]));
            for first_row in rows.clone().step_by(strip) {
                let rows = first_row..(first_row + strip).min(rows.end);
                let needed = rows_read(second, &rows);
                let between = Correlation {
                    kh: 1,
                    klen: cin,
                    x_row: 0,
                    x_step: w * cin,
                    x_pix: cin,
                    cout: channels,
                    oh: needed.len(),
                    ow: w,
                    y_row: row,
                    y_pix: channels,
                    w_step: 0,
                    four: blocks.four,
                };
                scratch([needed.len() * row, 0, 0, 0], |[buffer, ..]| {
                    for r in buffer.chunks_exact_mut(row) {
                        r[..left * channels].fill(0.0);
                        r[(left + w) * channels..].fill(0.0);
                    }
                    let x = self.x[needed.start * w * cin..needed.end * w * cin].as_ptr();
                    let packed = weights[start * cin..end * cin].as_ptr();
                    let cells = Cells { w: self.w[1][start..].as_ptr(), bias: part(self.ends[1].bias), all: wide };
                    let field = Field { x: buffer.as_ptr(), first: needed.start, row, pixel: channels };
                    let padded = Shape { w: (left + w + right) as u32, ..second.x };
                    let (shapes, exits) = ((padded, second.y), self.ends.map(|e| e.exit()));
                    // SAFETY: the rows needed are there, `buffer` takes them; lengths were checked by `pair_shared`; the block's
                    // weights start at as many elements as the columns before it have; the rest is the caller's promise.
                    unsafe {
                        let y = self.y.0.add(first_row * y_row + start);
                        let to = Results { y, first: first_row, row: y_row, pixel: wide };
                        let (bias, inner) = (part(self.ends[0].bias), buffer[left * channels..].as_mut_ptr());
                        (self.k.table.correlate)(&between, x, packed, bias, &exits[0], inner);
                        window::depthwise(self.k.table, &whole, shapes, rows, channels, field, cells, &exits[1], to);
                    }
                });
            }
        }
    }
}

/// The rows of its input that some rows of a convolution's output read.
fn rows_read(g: &ConvShape, rows: &Range<usize>) -> Range<usize> {
    let h = g.x.h as usize;
    let mut all = runs(&g.window, 0, h, rows.clone());
    let start = all.next().map_or(0, |r| r.from);
    let last = runs(&g.window, 0, h, rows.end - 1..rows.end).next();
    start..last.map_or(start, |r| r.from + r.taps.len())
}

impl Simd {
    /// `act(depthwise(act(conv(x) + bias)) + bias)` on all threads of a team; `w` are the weights of both, `ends` what follows each.
    pub(crate) fn pair_shared(
        &self,
        lead: &mut Lead<'_>,
        pair: Pair<'_>,
        x: &[f32],
        w: [&[f32]; 2],
        ends: [End<'_>; 2],
        y: &mut [f32],
    ) {
        let (first, second) = (&pair.first.g, &pair.second.g);
        let (x, y) = (&x[..first.x.len()], &mut y[..second.y.len()]);
        let (cells, wide) = (second.window.kernel[0] * second.window.kernel[1], second.y.c as usize);
        let fits = w[0].len() == first.weights() && w[1].len() == cells as usize * wide;
        assert!(fits && ends.iter().all(|e| e.bias.is_none_or(|b| b.len() == wide)), "weights of another shape");
        let work = Work { k: self, pair, x, w, ends, y: Shared(y.as_mut_ptr()) };
        let cut = pair.cut(lead);
        let (Cut::Rows(parts) | Cut::Columns(parts)) = cut;
        let (rows, columns) = (second.y.h as usize, pair.first.blocks.count(wide));
        lead.run(parts, |part| {
            let (rows, columns) = match cut {
                Cut::Rows(parts) => (share(rows, part, parts), 0..columns),
                Cut::Columns(parts) => (0..rows, share(columns, part, parts)),
            };
            // SAFETY: parts are disjoint and lie inside; `y` is borrowed until all have run.
            unsafe { work.part(rows, columns) };
        });
        if Exit::of(ends[1].act).is_none() {
            activate(ends[1].act, y);
        }
    }
}
