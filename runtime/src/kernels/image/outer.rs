//! The gradient with respect to a convolution's weights: input values times vectors of channels, summed over pixels in registers.

use super::Correlation;
use crate::kernels::vector::{Vector, load, store};

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
