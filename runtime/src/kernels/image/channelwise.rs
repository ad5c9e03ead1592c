//! What goes channel by channel, or column by column: depthwise correlations, the maxima of windows, linear layers.

use super::{Correlation, Exit};
use crate::kernels::vector::{Vector, by_channel, load, store};

/// Steps between the taps of a window that goes channel by channel. They count elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taps {
    /// From one kernel column to the next, in the input.
    pub(crate) x_col: usize,
    /// From one kernel row, column to the next, in the weights.
    pub(crate) w_row: usize,
    pub(crate) w_col: usize,
}

/// Depthwise correlation of one picture: `y[oy][ox][ch] = bias[ch] + sum over ky, kx of x[...][ch] * w[ky][kx][ch]`, with
/// the strides of `c`, where `klen` counts kernel columns and `cout` channels (`x_pix` is the step between output pixels).
///
/// # Safety
/// As for [`correlate`], with `w` as it is.
#[inline(always)]
pub(crate) unsafe fn depthwise<V: Vector>(
    c: &Correlation,
    t: &Taps,
    x: *const f32,
    w: *const f32,
    bias: *const f32,
    exit: &Exit,
    y: *mut f32,
) {
    // SAFETY: the caller's promise; blocks of pixels stay within the row.
    unsafe {
        for oy in 0..c.oh {
            let mut ox = 0;
            while ox < c.ow {
                let (xr, to) = (x.add(oy * c.x_step + ox * c.x_pix), oy * c.y_row + ox * c.y_pix);
                ox += match c.ow - ox {
                    8.. => pixels::<V, 8>(c, t, xr, w, bias, &exit.at(to), y.add(to)),
                    7 => pixels::<V, 7>(c, t, xr, w, bias, &exit.at(to), y.add(to)),
                    4.. => pixels::<V, 4>(c, t, xr, w, bias, &exit.at(to), y.add(to)),
                    _ => pixels::<V, 1>(c, t, xr, w, bias, &exit.at(to), y.add(to)),
                };
            }
        }
    }
}

/// `P` pixels side by side of [`depthwise`], all channels: each weight is loaded once. Returns `P`.
#[inline(always)]
unsafe fn pixels<V: Vector, const P: usize>(
    c: &Correlation,
    t: &Taps,
    x: *const f32,
    w: *const f32,
    bias: *const f32,
    exit: &Exit,
    y: *mut f32,
) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        by_channel!(V, c.cout, |i, PART, k| {
            let mut acc = [if bias.is_null() { V::splat(0.0) } else { load::<V, PART>(bias.add(i), k) }; P];
            for ky in 0..c.kh {
                for kx in 0..c.klen {
                    let from = x.add(ky * c.x_row + kx * t.x_col + i);
                    let wv = load::<V, PART>(w.add(ky * t.w_row + kx * t.w_col + i), k);
                    for (p, acc) in acc.iter_mut().enumerate() {
                        *acc = load::<V, PART>(from.add(p * c.x_pix), k).mul_add(wv, *acc);
                    }
                }
            }
            for (p, acc) in acc.into_iter().enumerate() {
                let at = p * c.y_pix + i;
                store::<V, PART>(exit.apply::<V, PART>(acc, at, k), y.add(at), k);
            }
        });
    }
    P
}

/// The largest value in each window, channel by channel, with the strides of `c` as in [`depthwise`], `x_col` elements between kernel
/// columns.
///
/// # Safety
/// As for [`depthwise`].
#[inline(always)]
pub(crate) unsafe fn largest<V: Vector>(c: &Correlation, x_col: usize, x: *const f32, y: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        for oy in 0..c.oh {
            for ox in 0..c.ow {
                let (xr, to) = (x.add(oy * c.x_step + ox * c.x_pix), y.add(oy * c.y_row + ox * c.y_pix));
                by_channel!(V, c.cout, |i, PART, k| {
                    let mut most = V::splat(f32::NEG_INFINITY);
                    for ky in 0..c.kh {
                        for kx in 0..c.klen {
                            most = load::<V, PART>(xr.add(ky * c.x_row + kx * x_col + i), k).max(most);
                        }
                    }
                    store::<V, PART>(most, to.add(i), k);
                });
            }
        }
    }
}

/// `y[o] += sum over i of x[i] * w[i][o]` for `columns` columns of a matrix of `n` rows, `w_row` elements apart, then the exit: `y`
/// holds the bias. It waits for the weights, which are read in the order in which they lie, a few rows side by side.
///
/// # Safety
/// As for [`correlate`], with `w` as it is.
#[inline(always)]
pub(crate) unsafe fn linear<V: Vector>(
    n: usize,
    columns: usize,
    x: *const f32,
    w: *const f32,
    w_row: usize,
    exit: &Exit,
    y: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut i = 0;
        while i < n {
            let count = if n - i >= ROWS { ROWS } else { 1 };
            let last = i + count == n;
            let (x, w) = (x.add(i), w.add(i * w_row));
            by_channel!(V, columns, |o, PART, k| {
                let mut acc = load::<V, PART>(y.add(o), k);
                if count == ROWS {
                    for r in 0..ROWS {
                        acc = V::splat(*x.add(r)).mul_add(load::<V, PART>(w.add(r * w_row + o), k), acc);
                    }
                } else {
                    acc = V::splat(*x).mul_add(load::<V, PART>(w.add(o), k), acc);
                }
                if last {
                    acc = exit.apply::<V, PART>(acc, o, k);
                }
                store::<V, PART>(acc, y.add(o), k);
            });
            i += count;
        }
    }
}

/// Rows of a linear layer's weights that are read side by side.
const ROWS: usize = 4;
