//! Convolutions as correlations over padded copies: forward, and the data gradient, one correlation for each phase of the
//! stride.

use super::ConvShape;
use super::buffer::Aligned;
use super::image::Correlation;
use crate::net::Window;
use crate::shape::Shape;
use std::prelude::v1::*;

/// Padding of a picture: rows above, columns left, rows below, columns right.
pub(super) type Pad = [usize; 4];

pub(super) fn padded_len(s: &Shape, pad: Pad) -> usize {
    // On 32 bits more than there is: asking for it fails, where a length that wrapped would be too short.
    let rows = s.h as usize + pad[0] + pad[2];
    rows.saturating_mul(s.w as usize + pad[1] + pad[3]).saturating_mul(s.c as usize)
}

pub(super) fn window_pad(w: &Window) -> Pad {
    w.pad.map(|p| p as usize)
}

/// Zeroes the border of a padded picture and hands each interior row to `fill(row number, row)`.
pub(super) fn pad_rows(s: &Shape, pad: Pad, to: &mut [f32], mut fill: impl FnMut(usize, &mut [f32])) {
    let (h, w, c) = (s.h as usize, s.w as usize, s.c as usize);
    let row = (w + pad[1] + pad[3]) * c;
    to[..pad[0] * row].fill(0.0);
    to[(pad[0] + h) * row..(pad[0] + h + pad[2]) * row].fill(0.0);
    for (y, r) in to[pad[0] * row..(pad[0] + h) * row].chunks_exact_mut(row).enumerate() {
        r[..pad[1] * c].fill(0.0);
        r[(pad[1] + w) * c..].fill(0.0);
        fill(y, &mut r[pad[1] * c..(pad[1] + w) * c]);
    }
}

/// The correlation that a convolution is over its padded input.
pub(super) fn forward_correlation(g: &ConvShape) -> Correlation {
    let pad = window_pad(&g.window);
    let (cin, cout) = (g.x.c as usize, g.y.c as usize);
    let x_row = (g.x.w as usize + pad[1] + pad[3]) * cin;
    Correlation {
        kh: g.window.kernel[0] as usize,
        klen: g.window.kernel[1] as usize * cin,
        x_row,
        x_step: g.window.stride[0] as usize * x_row,
        x_pix: g.window.stride[1] as usize * cin,
        cout,
        oh: g.y.h as usize,
        ow: g.y.w as usize,
        y_row: g.y.w as usize * cout,
        y_pix: cout,
        w_step: 0,
        four: true,
    }
}

/// One phase of the stride, along one axis, of a data gradient: input positions `first, first + s, ...` (`count` of them) see
/// kernel cells `cell, cell + s, ...` (`taps` of them).
#[derive(Clone, Copy, Default)]
struct Phase {
    cell: usize,
    taps: usize,
    first: usize,
    count: usize,
    /// Output position `q` of the first input position.
    q: usize,
}

/// The phases along one axis, and how many output positions they reach before the first and behind the last.
fn phases(len: usize, out: usize, k: usize, s: usize, p: usize) -> (Vec<Phase>, usize, usize) {
    let (mut all, mut before, mut behind) = (Vec::new(), 0, 0);
    for r in 0..s {
        let taps = if r < k { (k - r).div_ceil(s) } else { 0 };
        let q = if p > r { (p - r).div_ceil(s) } else { 0 };
        let first = s * q + r - p;
        if taps == 0 || first >= len {
            continue;
        }
        let count = (len - 1 - first) / s + 1;
        before = before.max((taps - 1).saturating_sub(q));
        behind = behind.max((q + count).saturating_sub(out));
        all.push(Phase { cell: r, taps, first, count, q });
    }
    (all, before, behind)
}

/// The data gradient of a convolution as correlations over a padded copy of the output gradient.
pub(super) struct Transposed {
    /// One correlation a phase: where it starts in the padded gradient, in the transposed weights, in the result.
    pub(super) parts: Vec<(Correlation, usize, usize, usize)>,
    pub(super) pad: Pad,
    /// `[tap][cout][cin]`
    pub(super) weights: Aligned,
    /// Some input positions see no output at all: zero them first.
    pub(super) holes: bool,
}

impl Transposed {
    pub(super) fn new(g: &ConvShape, w: &[f32]) -> Self {
        let (cin, cout) = (g.x.c as usize, g.y.c as usize);
        let [kh, kw] = g.window.kernel.map(|k| k as usize);
        let [sh, sw] = g.window.stride.map(|s| s as usize);
        let (rows, top, bottom) = phases(g.x.h as usize, g.y.h as usize, kh, sh, g.window.pad[0] as usize);
        let (columns, left, right) = phases(g.x.w as usize, g.y.w as usize, kw, sw, g.window.pad[1] as usize);
        let row = (g.y.w as usize + left + right) * cout;
        let mut weights = Aligned::zeroed(kh * kw * cin * cout);
        let (mut parts, mut at) = (Vec::new(), 0);
        for r in &rows {
            for c in &columns {
                let start = (r.q + 1 + top - r.taps) * row + (c.q + 1 + left - c.taps) * cout;
                let corr = Correlation {
                    kh: r.taps,
                    klen: c.taps * cout,
                    x_row: row,
                    x_step: row,
                    x_pix: cout,
                    cout: cin,
                    oh: r.count,
                    ow: c.count,
                    y_row: sh * g.x.w as usize * cin,
                    y_pix: sw * cin,
                    w_step: 0,
                    four: true,
                };
                parts.push((corr, start, at, (r.first * g.x.w as usize + c.first) * cin));
                let to = weights.get_mut();
                for ty in 0..r.taps {
                    for tx in 0..c.taps {
                        let (ky, kx) = (r.cell + sh * (r.taps - 1 - ty), c.cell + sw * (c.taps - 1 - tx));
                        let from = &w[(ky * kw + kx) * cin * cout..][..cin * cout];
                        for o in 0..cout {
                            for i in 0..cin {
                                to[at + o * cin + i] = from[i * cout + o];
                            }
                        }
                        at += cin * cout;
                    }
                }
            }
        }
        let holes = rows.len() < sh.min(g.x.h as usize) || columns.len() < sw.min(g.x.w as usize);
        Self { parts, pad: [top, left, bottom, right], weights, holes }
    }
}
