//! The convolutions among the fast kernels, one picture at a time, generic over [`Vector`]. Layout is NHWC throughout.
//!
//! A convolution becomes a *correlation* over a padded copy of its input: `kw * cin` input values of one kernel row are
//! contiguous, so each output pixel is a dot product of `kh` contiguous runs with the rows of the weights, vectorised over
//! output channels. A block of pixels times one or two vectors of channels stays in registers. The gradient with
//! respect to the data is a correlation too, one for each phase of the stride; the gradient with respect to the weights
//! is an outer product of the same contiguous runs with the output gradient. A depthwise convolution has a kernel of its own,
//! vectorised over the channels that go straight through.
//!
//! A correlation reads its weights by blocks of columns ([`column_blocks`]): out of a wide matrix each row of a block would come
//! from another page, and where `cout` is a round number all rows from a few sets of the cache.

use super::vector::{Vector, by_channel, load, store};

/// A correlation: `y[oy][ox][o] = bias[o] + sum over ky, k of x[oy*x_step + ky*x_row + ox*x_pix + k] * w[oy][ky*klen + k][o]`.
/// All strides count `f32` elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Correlation {
    /// Kernel rows.
    pub(crate) kh: usize,
    /// Contiguous input values a kernel row covers.
    pub(crate) klen: usize,
    /// From one kernel row to the next, in the input.
    pub(crate) x_row: usize,
    /// From one output row to the next, in the input.
    pub(crate) x_step: usize,
    /// From one output pixel to the next, in the input.
    pub(crate) x_pix: usize,
    /// Output channels.
    pub(crate) cout: usize,
    /// Output rows and columns.
    pub(crate) oh: usize,
    pub(crate) ow: usize,
    /// From one output row, pixel to the next, in the output.
    pub(crate) y_row: usize,
    pub(crate) y_pix: usize,
    /// From one output row to the next, in the weights: 0 in a convolution; each row its own matrix elsewhere. Not for gradients.
    pub(crate) w_step: usize,
}

/// Columns of the block that starts at column `o` of `cout`: two vectors, one, or what is left.
fn block(lanes: usize, cout: usize, o: usize) -> usize {
    let left = cout - o;
    if left >= 2 * lanes { 2 * lanes } else { left.min(lanes) }
}

/// Whether a matrix of `cout` columns is one block: [`column_blocks`] would not change it.
pub(super) fn is_one_block(lanes: usize, cout: usize) -> bool {
    block(lanes, cout, 0) == cout
}

/// Copies matrices, each `[rows][cout]`, block by block of columns, each `[rows][columns of the block]`: the order in which
/// [`correlate`] reads weights with vectors of `lanes`. The block that starts at column `o` starts at element `o * rows`.
pub(super) fn column_blocks(lanes: usize, rows: usize, cout: usize, from: &[f32], to: &mut [f32]) {
    for (from, to) in from.chunks_exact(rows * cout).zip(to.chunks_exact_mut(rows * cout)) {
        let mut o = 0;
        while o < cout {
            let width = block(lanes, cout, o);
            for (from, to) in from.chunks_exact(cout).zip(to[o * rows..].chunks_exact_mut(width)) {
                to.copy_from_slice(&from[o..o + width]);
            }
            o += width;
        }
    }
}

/// `P` pixels times `N` vectors of output channels, held in registers.
#[inline(always)]
unsafe fn tile<V: Vector, const X: usize, const P: usize, const N: usize, const PART: bool>(
    c: &Correlation,
    x: *const f32,
    w: *const f32,
    bias: *const f32,
    y: *mut f32,
    part: usize,
) {
    let x_pix = if X == 0 { c.x_pix } else { X };
    // SAFETY: the caller of `correlate` vouches for every element the strides of `c` reach; a partial tile touches
    // only the first `part` channels.
    unsafe {
        let width = if PART { part } else { N * V::LANES };
        let mut start = [V::splat(0.0); N];
        if !bias.is_null() {
            for (n, s) in start.iter_mut().enumerate() {
                *s = load::<V, PART>(bias.add(n * V::LANES), part);
            }
        }
        let mut acc = [start; P];
        for ky in 0..c.kh {
            let mut xr = x.add(ky * c.x_row);
            let mut wr = w.add(ky * c.klen * width);
            for _ in 0..c.klen {
                let mut wv = [V::splat(0.0); N];
                for (n, v) in wv.iter_mut().enumerate() {
                    *v = load::<V, PART>(wr.add(n * V::LANES), part);
                }
                for (p, row) in acc.iter_mut().enumerate() {
                    let xv = V::splat(*xr.add(p * x_pix));
                    for n in 0..N {
                        row[n] = xv.mul_add(wv[n], row[n]);
                    }
                }
                xr = xr.add(1);
                wr = wr.add(width);
            }
        }
        for (p, row) in acc.iter().enumerate() {
            for (n, v) in row.iter().enumerate() {
                store::<V, PART>(*v, y.add(p * c.y_pix + n * V::LANES), part);
            }
        }
    }
}

/// One output row for one column of channels: blocks of `P` pixels, then what is left.
#[inline(always)]
unsafe fn row<V: Vector, const X: usize, const P: usize, const N: usize, const PART: bool>(
    c: &Correlation,
    x: *const f32,
    w: *const f32,
    bias: *const f32,
    y: *mut f32,
    part: usize,
) {
    let mut ox = 0;
    // SAFETY: `ox` stays within the row; the rest is the caller's promise.
    unsafe {
        while ox + P <= c.ow {
            tile::<V, X, P, N, PART>(c, x.add(ox * c.x_pix), w, bias, y.add(ox * c.y_pix), part);
            ox += P;
        }
        if P > 8 && ox + 8 <= c.ow {
            tile::<V, X, 8, N, PART>(c, x.add(ox * c.x_pix), w, bias, y.add(ox * c.y_pix), part);
            ox += 8;
        }
        if P > 4 && ox + 4 <= c.ow {
            tile::<V, X, 4, N, PART>(c, x.add(ox * c.x_pix), w, bias, y.add(ox * c.y_pix), part);
            ox += 4;
        }
        while ox < c.ow {
            tile::<V, X, 1, N, PART>(c, x.add(ox * c.x_pix), w, bias, y.add(ox * c.y_pix), part);
            ox += 1;
        }
    }
}

/// The whole correlation of one picture. `P1` pixels go with one vector of channels, `P2` with two.
///
/// # Safety
/// `x`, `w` (`[kh * klen][cout]` in [`column_blocks`]), `bias` (null or `[cout]`) and `y` are valid for everything `c` reaches;
/// `y` does not overlap the others; the instruction set of `V` exists.
#[inline(always)]
pub(crate) unsafe fn correlate<V: Vector, const P1: usize, const P2: usize>(
    c: &Correlation,
    x: *const f32,
    w: *const f32,
    bias: *const f32,
    y: *mut f32,
) {
    // A step between pixels that is known while compiling becomes part of the load instructions; kept in registers, the
    // addresses of a block's pixels would spill.
    // SAFETY: the caller's promise.
    unsafe {
        match c.x_pix {
            3 => correlate_step::<V, 3, P1, P2>(c, x, w, bias, y),
            6 => correlate_step::<V, 6, P1, P2>(c, x, w, bias, y),
            16 => correlate_step::<V, 16, P1, P2>(c, x, w, bias, y),
            32 => correlate_step::<V, 32, P1, P2>(c, x, w, bias, y),
            64 => correlate_step::<V, 64, P1, P2>(c, x, w, bias, y),
            128 => correlate_step::<V, 128, P1, P2>(c, x, w, bias, y),
            256 => correlate_step::<V, 256, P1, P2>(c, x, w, bias, y),
            512 => correlate_step::<V, 512, P1, P2>(c, x, w, bias, y),
            _ => correlate_step::<V, 0, P1, P2>(c, x, w, bias, y),
        }
    }
}

/// [`correlate`] with the step between pixels known while compiling (`X`; 0: read from `c`).
#[inline(always)]
unsafe fn correlate_step<V: Vector, const X: usize, const P1: usize, const P2: usize>(
    c: &Correlation,
    x: *const f32,
    w: *const f32,
    bias: *const f32,
    y: *mut f32,
) {
    let at = |o: usize| if bias.is_null() { bias } else { bias.wrapping_add(o) };
    let rows = c.kh * c.klen;
    let mut o = 0;
    // SAFETY: `o` plus the channels of a block stays within `cout`; the rest is the caller's promise.
    unsafe {
        while o + 2 * V::LANES <= c.cout {
            for oy in 0..c.oh {
                row::<V, X, P2, 2, false>(
                    c,
                    x.add(oy * c.x_step),
                    w.add(oy * c.w_step + o * rows),
                    at(o),
                    y.add(oy * c.y_row + o),
                    0,
                );
            }
            o += 2 * V::LANES;
        }
        while o + V::LANES <= c.cout {
            for oy in 0..c.oh {
                row::<V, X, P1, 1, false>(
                    c,
                    x.add(oy * c.x_step),
                    w.add(oy * c.w_step + o * rows),
                    at(o),
                    y.add(oy * c.y_row + o),
                    0,
                );
            }
            o += V::LANES;
        }
        if o < c.cout {
            let part = c.cout - o;
            for oy in 0..c.oh {
                row::<V, X, P1, 1, true>(
                    c,
                    x.add(oy * c.x_step),
                    w.add(oy * c.w_step + o * rows),
                    at(o),
                    y.add(oy * c.y_row + o),
                    part,
                );
            }
        }
    }
}

/// `R` input values of a kernel row times `N` vectors of output channels, summed over all pixels of one picture.
#[inline(always)]
unsafe fn outer<V: Vector, const R: usize, const N: usize, const PART: bool>(
    c: &Correlation,
    x: *const f32,
    dy: *const f32,
    dw: *mut f32,
    part: usize,
) {
    // SAFETY: as for `tile`; `dw` has `R` rows of `cout` from here on.
    unsafe {
        let mut acc = [[V::splat(0.0); N]; R];
        for oy in 0..c.oh {
            let mut xr = x.add(oy * c.x_step);
            let mut yr = dy.add(oy * c.y_row);
            for _ in 0..c.ow {
                let mut g = [V::splat(0.0); N];
                for (n, v) in g.iter_mut().enumerate() {
                    *v = load::<V, PART>(yr.add(n * V::LANES), part);
                }
                for (r, row) in acc.iter_mut().enumerate() {
                    let xv = V::splat(*xr.add(r));
                    for n in 0..N {
                        row[n] = xv.mul_add(g[n], row[n]);
                    }
                }
                xr = xr.add(c.x_pix);
                yr = yr.add(c.y_pix);
            }
        }
        for (r, row) in acc.iter().enumerate() {
            for (n, v) in row.iter().enumerate() {
                let to = dw.add(r * c.cout + n * V::LANES);
                store::<V, PART>(v.add(load::<V, PART>(to, part)), to, part);
            }
        }
    }
}

/// One column of channels of the weight gradient: all rows of all kernel rows.
#[inline(always)]
unsafe fn outer_column<V: Vector, const R: usize, const N: usize, const PART: bool>(
    c: &Correlation,
    x: *const f32,
    dy: *const f32,
    dw: *mut f32,
    part: usize,
) {
    // SAFETY: `k` stays within `klen`; the rest is the caller's promise.
    unsafe {
        for ky in 0..c.kh {
            let x = x.add(ky * c.x_row);
            let dw = dw.add(ky * c.klen * c.cout);
            let mut k = 0;
            while k + R <= c.klen {
                outer::<V, R, N, PART>(c, x.add(k), dy, dw.add(k * c.cout), part);
                k += R;
            }
            if R > 8 && k + 8 <= c.klen {
                outer::<V, 8, N, PART>(c, x.add(k), dy, dw.add(k * c.cout), part);
                k += 8;
            }
            if R > 4 && k + 4 <= c.klen {
                outer::<V, 4, N, PART>(c, x.add(k), dy, dw.add(k * c.cout), part);
                k += 4;
            }
            while k < c.klen {
                outer::<V, 1, N, PART>(c, x.add(k), dy, dw.add(k * c.cout), part);
                k += 1;
            }
        }
    }
}

/// Adds one picture's weight gradient to `dw` (`[kh * klen][cout]`): `dw[ky*klen + k][o] += sum over pixels of
/// x[...] * dy[...]`, with the strides of `c` (`y_*` for `dy`).
///
/// # Safety
/// As for [`correlate`], with `dy` read and `dw` written.
#[inline(always)]
pub(crate) unsafe fn outer_product<V: Vector, const P1: usize, const P2: usize>(
    c: &Correlation,
    x: *const f32,
    dy: *const f32,
    dw: *mut f32,
) {
    let mut o = 0;
    // SAFETY: `o` plus the channels of a block stays within `cout`; the rest is the caller's promise.
    unsafe {
        while o + 2 * V::LANES <= c.cout {
            outer_column::<V, P2, 2, false>(c, x, dy.add(o), dw.add(o), 0);
            o += 2 * V::LANES;
        }
        while o + V::LANES <= c.cout {
            outer_column::<V, P1, 1, false>(c, x, dy.add(o), dw.add(o), 0);
            o += V::LANES;
        }
        if o < c.cout {
            outer_column::<V, P1, 1, true>(c, x, dy.add(o), dw.add(o), c.cout - o);
        }
    }
}

/// Depthwise correlation of one picture: `y[oy][ox][ch] = bias[ch] + sum over ky, kx of x[...][ch] * w[ky][kx][ch]`, with
/// the strides of `c`, where `klen` counts kernel columns and `cout` channels (`x_pix` is the step between output pixels,
/// `w_pix` that between kernel columns).
///
/// # Safety
/// As for [`correlate`], with `w` as it is.
#[inline(always)]
pub(crate) unsafe fn depthwise<V: Vector>(
    c: &Correlation,
    x: *const f32,
    w: *const f32,
    bias: *const f32,
    y: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        by_channel!(V, c.cout, |i, PART, k| {
            let start = if bias.is_null() { V::splat(0.0) } else { load::<V, PART>(bias.add(i), k) };
            for oy in 0..c.oh {
                for ox in 0..c.ow {
                    let mut acc = start;
                    for ky in 0..c.kh {
                        let xr = x.add(oy * c.x_step + ky * c.x_row + ox * c.x_pix + i);
                        for kx in 0..c.klen {
                            let wv = load::<V, PART>(w.add((ky * c.klen + kx) * c.cout + i), k);
                            acc = load::<V, PART>(xr.add(kx * c.cout), k).mul_add(wv, acc);
                        }
                    }
                    store::<V, PART>(acc, y.add(oy * c.y_row + ox * c.y_pix + i), k);
                }
            }
        });
    }
}
