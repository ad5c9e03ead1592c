//! Windows over a picture without padding: where a window hangs over the edge, its taps that fall on padding are left out.

use super::image::{Correlation, Exit, Taps};
use super::isa::Table;
use crate::net::Window;
use crate::shape::Shape;
use core::ops::Range;

/// Output positions along one axis whose windows lose the same taps at the edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: usize,
    pub(super) count: usize,
    /// The taps that fall on the picture.
    pub(super) taps: Range<usize>,
    /// Where the first of these taps falls, for the first position.
    pub(super) from: usize,
}

/// The runs of `outputs`, in order, along axis `axis` of a picture of `len` rows or columns.
pub(super) fn runs(w: &Window, axis: usize, len: usize, outputs: Range<usize>) -> impl Iterator<Item = Run> {
    let (kernel, stride, before) = (w.kernel[axis] as usize, w.stride[axis] as usize, w.pad[axis] as usize);
    // Windows that lie inside whole.
    let first = before.div_ceil(stride);
    let end = (len + before).checked_sub(kernel).map_or(0, |last| last / stride + 1);
    let mut next = outputs.start;
    core::iter::from_fn(move || {
        let at = next;
        if at >= outputs.end {
            return None;
        }
        let count = if (first..end).contains(&at) { end.min(outputs.end) - at } else { 1 };
        next += count;
        let start = at * stride;
        let taps = before.saturating_sub(start)..kernel.min(len + before - start);
        Some(Run { first: at, count, from: start + taps.start - before, taps })
    })
}

/// Rows and columns of a picture in memory.
#[derive(Clone, Copy)]
pub(super) struct Field {
    /// The first element of row `first`.
    pub(super) x: *const f32,
    /// The first row that is there.
    pub(super) first: usize,
    /// From one row, pixel to the next.
    pub(super) row: usize,
    pub(super) pixel: usize,
}

/// Results in memory.
#[derive(Clone, Copy)]
pub(super) struct Results {
    /// The first element of row `first`.
    pub(super) y: *mut f32,
    pub(super) first: usize,
    pub(super) row: usize,
    pub(super) pixel: usize,
}

/// Calls `f` for each rectangle of outputs whose windows lose the same taps: the correlation over it, the first taps, and where input
/// and results start.
fn rectangles(
    w: &Window,
    x: Shape,
    y: Shape,
    rows: Range<usize>,
    (from, to): (Field, Results),
    channels: usize,
    mut f: impl FnMut(&Correlation, [usize; 2], *const f32, usize),
) {
    let [stride_h, stride_w] = w.stride.map(|s| s as usize);
    for r in runs(w, 0, x.h as usize, rows) {
        for q in runs(w, 1, x.w as usize, 0..y.w as usize) {
            let c = Correlation {
                kh: r.taps.len(),
                klen: q.taps.len(),
                x_row: from.row,
                x_step: stride_h * from.row,
                x_pix: stride_w * from.pixel,
                cout: channels,
                oh: r.count,
                ow: q.count,
                y_row: to.row,
                y_pix: to.pixel,
                w_step: 0,
                four: true,
            };
            let start = from.x.wrapping_add((r.from - from.first) * from.row + q.from * from.pixel);
            f(&c, [r.taps.start, q.taps.start], start, (r.first - to.first) * to.row + q.first * to.pixel);
        }
    }
}

/// Weights of some channels of a depthwise convolution, out of `all`.
#[derive(Clone, Copy)]
pub(super) struct Cells {
    /// `[ky][kx][all]`, from the first of the channels on.
    pub(super) w: *const f32,
    /// Null: zeros.
    pub(super) bias: *const f32,
    pub(super) all: usize,
}

/// Rows of a depthwise convolution of `channels` channels, `x` to `y` through `window`.
///
/// # Safety
/// `from` holds the rows of `x` that these windows touch, `to` and what `exit` adds (which starts where `to` does) take the rows,
/// weights and bias have a value a channel; `table` is of an instruction set that exists.
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn depthwise(
    table: &Table,
    window: &Window,
    (x, y): (Shape, Shape),
    rows: Range<usize>,
    channels: usize,
    from: Field,
    cells: Cells,
    exit: &Exit,
    to: Results,
) {
    let w_row = window.kernel[1] as usize * cells.all;
    let taps = Taps { x_col: from.pixel, w_row, w_col: cells.all };
    rectangles(window, x, y, rows, (from, to), channels, |c, [ky, kx], start, at| {
        // SAFETY: the taps of these windows fall on the picture; the rest is the caller's promise.
        unsafe {
            let w = cells.w.add(ky * w_row + kx * cells.all);
            (table.depthwise)(c, &taps, start, w, cells.bias, &exit.at(at), to.y.add(at));
        }
    });
}

/// Rows of a max pool, `x` to `y` through `window`.
///
/// # Safety
/// As for [`depthwise`].
pub(super) unsafe fn max_pool(
    table: &Table,
    window: &Window,
    (x, y): (Shape, Shape),
    rows: Range<usize>,
    from: Field,
    to: Results,
) {
    rectangles(window, x, y, rows, (from, to), y.c as usize, |c, _, start, at| {
        // SAFETY: as in `depthwise`.
        unsafe { (table.largest)(c, from.pixel, start, to.y.add(at)) };
    });
}

#[cfg(test)]
mod tests {
    use super::{Run, runs};
    use crate::net::Window;
    use std::prelude::v1::*;

    fn along(kernel: u32, stride: u32, before: u32, len: usize, outputs: usize) -> Vec<Run> {
        let w = Window { kernel: [1, kernel], stride: [1, stride], pad: [0, before, 0, 0] };
        runs(&w, 1, len, 0..outputs).collect()
    }

    #[test]
    fn taps_on_padding_are_left_out() {
        for (kernel, stride, before, after, len) in [
            (3, 1, 1, 1, 7),
            (3, 2, 1, 1, 8),
            (3, 2, 1, 1, 7),
            (7, 2, 3, 3, 4),
            (1, 3, 0, 0, 9),
            (5, 1, 4, 2, 2),
            (3, 1, 1, 1, 1),
        ] {
            let outputs = (len + before + after - kernel) / stride + 1;
            let mut next = 0;
            for run in along(kernel as u32, stride as u32, before as u32, len, outputs) {
                assert_eq!(run.first, next);
                for i in 0..run.count {
                    let start = (run.first + i) * stride;
                    let inside: Vec<_> =
                        (0..kernel).filter(|k| (before..before + len).contains(&(start + k))).collect();
                    assert_eq!(inside, run.taps.clone().collect::<Vec<_>>(), "{kernel} {stride} {before} {len}");
                    assert_eq!(run.from + i * stride, start + inside[0] - before);
                }
                next += run.count;
            }
            assert_eq!(next, outputs);
        }
    }
}
