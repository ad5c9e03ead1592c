//! The fast kernels, one picture at a time, generic over [`Vector`]. Layout is NHWC throughout.
//!
//! A convolution becomes a *correlation* over a padded copy of its input: `kw * cin` input values of one kernel row are
//! contiguous, so each output pixel is a dot product of `kh` contiguous runs with the rows of the weights, vectorised over
//! output channels. A block of pixels times one or two vectors of channels stays in registers. The gradient with
//! respect to the data is a correlation too, one for each phase of the stride; the gradient with respect to the weights
//! is an outer product of the same contiguous runs with the output gradient.

use super::vector::Vector;

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
        let mut start = [V::splat(0.0); N];
        if !bias.is_null() {
            for (n, s) in start.iter_mut().enumerate() {
                *s = if PART { V::load_part(bias, part) } else { V::load(bias.add(n * V::LANES)) };
            }
        }
        let mut acc = [start; P];
        for ky in 0..c.kh {
            let mut xr = x.add(ky * c.x_row);
            let mut wr = w.add(ky * c.klen * c.cout);
            for _ in 0..c.klen {
                let mut wv = [V::splat(0.0); N];
                for (n, v) in wv.iter_mut().enumerate() {
                    *v = if PART { V::load_part(wr, part) } else { V::load(wr.add(n * V::LANES)) };
                }
                for (p, row) in acc.iter_mut().enumerate() {
                    let xv = V::splat(*xr.add(p * x_pix));
                    for n in 0..N {
                        row[n] = xv.mul_add(wv[n], row[n]);
                    }
                }
                xr = xr.add(1);
                wr = wr.add(c.cout);
            }
        }
        for (p, row) in acc.iter().enumerate() {
            for (n, v) in row.iter().enumerate() {
                let to = y.add(p * c.y_pix + n * V::LANES);
                if PART { v.store_part(to, part) } else { v.store(to) }
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
/// `x`, `w` (`[kh * klen][cout]`), `bias` (null or `[cout]`) and `y` are valid for everything `c` reaches; `y` does not
/// overlap the others; the instruction set of `V` exists.
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
    let mut o = 0;
    // SAFETY: `o` plus the channels of a block stays within `cout`; the rest is the caller's promise.
    unsafe {
        while o + 2 * V::LANES <= c.cout {
            for oy in 0..c.oh {
                row::<V, X, P2, 2, false>(c, x.add(oy * c.x_step), w.add(oy * c.w_step + o), at(o), y.add(oy * c.y_row + o), 0);
            }
            o += 2 * V::LANES;
        }
        while o + V::LANES <= c.cout {
            for oy in 0..c.oh {
                row::<V, X, P1, 1, false>(c, x.add(oy * c.x_step), w.add(oy * c.w_step + o), at(o), y.add(oy * c.y_row + o), 0);
            }
            o += V::LANES;
        }
        if o < c.cout {
            let part = c.cout - o;
            for oy in 0..c.oh {
                row::<V, X, P1, 1, true>(c, x.add(oy * c.x_step), w.add(oy * c.w_step + o), at(o), y.add(oy * c.y_row + o), part);
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
                    *v = if PART { V::load_part(yr, part) } else { V::load(yr.add(n * V::LANES)) };
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
                if PART { v.add(V::load_part(to, part)).store_part(to, part) } else { v.add(V::load(to)).store(to) }
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

/// Runs `$full` on whole vectors of the `c` channels of every pixel and `$part` on what is left of them.
macro_rules! by_channel {
    ($c:expr, $v:ident, $i:ident, $full:block, $n:ident, $part:block) => {{
        let mut $i = 0;
        while $i + $v::LANES <= $c {
            $full
            $i += $v::LANES;
        }
        if $i < $c {
            let $n = $c - $i;
            $part
        }
    }};
}

/// `to[i] = leaky(x[i] * scale[c] + shift[c])` over `n` pixels of `c` channels.
///
/// # Safety
/// `x` and `to` hold `n * c` elements and are equal or disjoint; `scale`, `shift` hold `c`; the instruction set exists.
#[inline(always)]
pub(crate) unsafe fn affine<V: Vector>(
    n: usize,
    c: usize,
    x: *const f32,
    scale: *const f32,
    shift: *const f32,
    slope: f32,
    to: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let slope = V::splat(slope);
        by_channel!(
            c,
            V,
            i,
            {
                let (a, b) = (V::load(scale.add(i)), V::load(shift.add(i)));
                for p in 0..n {
                    let z = V::load(x.add(p * c + i)).mul_add(a, b);
                    z.where_positive(z, z.mul(slope)).store(to.add(p * c + i));
                }
            },
            k,
            {
                let (a, b) = (V::load_part(scale.add(i), k), V::load_part(shift.add(i), k));
                for p in 0..n {
                    let z = V::load_part(x.add(p * c + i), k).mul_add(a, b);
                    z.where_positive(z, z.mul(slope)).store_part(to.add(p * c + i), k);
                }
            }
        );
    }
}

/// Adds `add` (null: nothing) to `y`, and the sums of `y` and `y * y` by channel to `sums` (null: none; `[2 * c]`).
///
/// # Safety
/// `y` and `add` hold `n * c` elements, `sums` holds `2 * c`; no overlap; the instruction set exists.
#[inline(always)]
pub(crate) unsafe fn finish<V: Vector>(n: usize, c: usize, y: *mut f32, add: *const f32, sums: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        by_channel!(
            c,
            V,
            i,
            {
                let (mut s, mut q) = (V::splat(0.0), V::splat(0.0));
                for p in 0..n {
                    let mut v = V::load(y.add(p * c + i));
                    if !add.is_null() {
                        v = v.add(V::load(add.add(p * c + i)));
                        v.store(y.add(p * c + i));
                    }
                    s = s.add(v);
                    q = v.mul_add(v, q);
                }
                if !sums.is_null() {
                    s.store(sums.add(i));
                    q.store(sums.add(c + i));
                }
            },
            k,
            {
                let (mut s, mut q) = (V::splat(0.0), V::splat(0.0));
                for p in 0..n {
                    let mut v = V::load_part(y.add(p * c + i), k);
                    if !add.is_null() {
                        v = v.add(V::load_part(add.add(p * c + i), k));
                        v.store_part(y.add(p * c + i), k);
                    }
                    s = s.add(v);
                    q = v.mul_add(v, q);
                }
                if !sums.is_null() {
                    s.store_part(sums.add(i), k);
                    q.store_part(sums.add(c + i), k);
                }
            }
        );
    }
}

/// One row of an output gradient on its way in: `to = k1 * dy + k2 * x + k3` by channel (`x` null: `to = dy`); adds the
/// sums of `to` by channel to `sums`.
///
/// # Safety
/// `dy`, `x`, `to` hold `n * c` elements, `k` holds `[3][c]`, `sums` `[c]`; no overlap; the instruction set exists.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn grad_in<V: Vector>(
    n: usize,
    c: usize,
    dy: *const f32,
    x: *const f32,
    k: *const f32,
    to: *mut f32,
    sums: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        by_channel!(
            c,
            V,
            i,
            {
                let mut s = V::load(sums.add(i));
                if x.is_null() {
                    for p in 0..n {
                        let v = V::load(dy.add(p * c + i));
                        v.store(to.add(p * c + i));
                        s = s.add(v);
                    }
                } else {
                    let (k1, k2, k3) = (V::load(k.add(i)), V::load(k.add(c + i)), V::load(k.add(2 * c + i)));
                    for p in 0..n {
                        let v = V::load(dy.add(p * c + i)).mul_add(k1, V::load(x.add(p * c + i)).mul_add(k2, k3));
                        v.store(to.add(p * c + i));
                        s = s.add(v);
                    }
                }
                s.store(sums.add(i));
            },
            m,
            {
                let mut s = V::load_part(sums.add(i), m);
                for p in 0..n {
                    let mut v = V::load_part(dy.add(p * c + i), m);
                    if !x.is_null() {
                        let (k1, k2) = (V::load_part(k.add(i), m), V::load_part(k.add(c + i), m));
                        let k3 = V::load_part(k.add(2 * c + i), m);
                        v = v.mul_add(k1, V::load_part(x.add(p * c + i), m).mul_add(k2, k3));
                    }
                    v.store_part(to.add(p * c + i), m);
                    s = s.add(v);
                }
                s.store_part(sums.add(i), m);
            }
        );
    }
}

/// An input gradient on its way out: `dz = dz * leaky'(x * scale + shift) + add`, then the sums of `dz` and `dz * x` by
/// channel into `sums`. `add`, `scale` (with `shift`) and `sums` may be null; without `scale` there are no sums.
///
/// # Safety
/// `dz`, `add`, `x` hold `n * c` elements, `scale`, `shift` hold `c`, `sums` `[2 * c]`; no overlap; the instruction set
/// exists.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn grad_out<V: Vector>(
    n: usize,
    c: usize,
    dz: *mut f32,
    add: *const f32,
    x: *const f32,
    scale: *const f32,
    shift: *const f32,
    slope: f32,
    sums: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let (one, slope) = (V::splat(1.0), V::splat(slope));
        by_channel!(
            c,
            V,
            i,
            {
                let (mut s, mut q) = (V::splat(0.0), V::splat(0.0));
                let (a, b) = if scale.is_null() { (one, one) } else { (V::load(scale.add(i)), V::load(shift.add(i))) };
                for p in 0..n {
                    let at = p * c + i;
                    let mut d = V::load(dz.add(at));
                    let t = if add.is_null() { V::splat(0.0) } else { V::load(add.add(at)) };
                    if scale.is_null() {
                        d = d.add(t);
                    } else {
                        let x = V::load(x.add(at));
                        d = d.mul_add(x.mul_add(a, b).where_positive(one, slope), t);
                        s = s.add(d);
                        q = d.mul_add(x, q);
                    }
                    d.store(dz.add(at));
                }
                if !sums.is_null() {
                    s.store(sums.add(i));
                    q.store(sums.add(c + i));
                }
            },
            k,
            {
                let (mut s, mut q) = (V::splat(0.0), V::splat(0.0));
                for p in 0..n {
                    let at = p * c + i;
                    let mut d = V::load_part(dz.add(at), k);
                    let t = if add.is_null() { V::splat(0.0) } else { V::load_part(add.add(at), k) };
                    if scale.is_null() {
                        d = d.add(t);
                    } else {
                        let x = V::load_part(x.add(at), k);
                        let z = x.mul_add(V::load_part(scale.add(i), k), V::load_part(shift.add(i), k));
                        d = d.mul_add(z.where_positive(one, slope), t);
                        s = s.add(d);
                        q = d.mul_add(x, q);
                    }
                    d.store_part(dz.add(at), k);
                }
                if !sums.is_null() {
                    s.store_part(sums.add(i), k);
                    q.store_part(sums.add(c + i), k);
                }
            }
        );
    }
}

/// `dx = k1 * dz + k2 * x + k3 + add` by channel; `add` may be null.
///
/// # Safety
/// `dz`, `x`, `add`, `dx` hold `n * c` elements, `k` holds `[3][c]`; `dx` is `dz` or overlaps nothing; the instruction set
/// exists.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn norm_grad<V: Vector>(
    n: usize,
    c: usize,
    dz: *const f32,
    x: *const f32,
    k: *const f32,
    add: *const f32,
    dx: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        by_channel!(
            c,
            V,
            i,
            {
                let (k1, k2, k3) = (V::load(k.add(i)), V::load(k.add(c + i)), V::load(k.add(2 * c + i)));
                for p in 0..n {
                    let at = p * c + i;
                    let mut v = V::load(dz.add(at)).mul_add(k1, V::load(x.add(at)).mul_add(k2, k3));
                    if !add.is_null() {
                        v = v.add(V::load(add.add(at)));
                    }
                    v.store(dx.add(at));
                }
            },
            m,
            {
                let (k1, k2) = (V::load_part(k.add(i), m), V::load_part(k.add(c + i), m));
                let k3 = V::load_part(k.add(2 * c + i), m);
                for p in 0..n {
                    let at = p * c + i;
                    let mut v = V::load_part(dz.add(at), m).mul_add(k1, V::load_part(x.add(at), m).mul_add(k2, k3));
                    if !add.is_null() {
                        v = v.add(V::load_part(add.add(at), m));
                    }
                    v.store_part(dx.add(at), m);
                }
            }
        );
    }
}

/// Depthwise correlation of one picture: `y[oy][ox][ch] = bias[ch] + sum over ky, kx of x[...][ch] * w[ky][kx][ch]`, with
/// the strides of `c`, where `klen` counts kernel columns and `cout` channels (`x_pix` is the step between output pixels,
/// `w_pix` that between kernel columns).
///
/// # Safety
/// As for [`correlate`].
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
        by_channel!(
            c.cout,
            V,
            i,
            {
                let start = if bias.is_null() { V::splat(0.0) } else { V::load(bias.add(i)) };
                for oy in 0..c.oh {
                    for ox in 0..c.ow {
                        let mut acc = start;
                        for ky in 0..c.kh {
                            let xr = x.add(oy * c.x_step + ky * c.x_row + ox * c.x_pix + i);
                            for kx in 0..c.klen {
                                let wv = V::load(w.add((ky * c.klen + kx) * c.cout + i));
                                acc = V::load(xr.add(kx * c.cout)).mul_add(wv, acc);
                            }
                        }
                        acc.store(y.add(oy * c.y_row + ox * c.y_pix + i));
                    }
                }
            },
            k,
            {
                let start = if bias.is_null() { V::splat(0.0) } else { V::load_part(bias.add(i), k) };
                for oy in 0..c.oh {
                    for ox in 0..c.ow {
                        let mut acc = start;
                        for ky in 0..c.kh {
                            let xr = x.add(oy * c.x_step + ky * c.x_row + ox * c.x_pix + i);
                            for kx in 0..c.klen {
                                let wv = V::load_part(w.add((ky * c.klen + kx) * c.cout + i), k);
                                acc = V::load_part(xr.add(kx * c.cout), k).mul_add(wv, acc);
                            }
                        }
                        acc.store_part(y.add(oy * c.y_row + ox * c.y_pix + i), k);
                    }
                }
            }
        );
    }
}
