//! The pixel-wise kernels: affine maps, norms and their gradients, each over `n` pixels of `c` channels, one after the other.
//!
//! A vector of channels goes down all pixels, its constants and sums in registers. They wait for memory: what can be done in one
//! pass (map, residual sum, sums for a norm) is.

use super::image::Exit;
use super::vector::{Vector, by_channel, load, store};

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
        by_channel!(V, c, |i, PART, k| {
            let (a, b) = (load::<V, PART>(scale.add(i), k), load::<V, PART>(shift.add(i), k));
            for p in 0..n {
                let z = load::<V, PART>(x.add(p * c + i), k).mul_add(a, b);
                store::<V, PART>(z.where_positive(z, z.mul(slope)), to.add(p * c + i), k);
            }
        });
    }
}

/// Adds `add` (null: nothing) to `y`, and puts the sums of `y` and `y * y` by channel into `sums` (null: none; `[2 * c]`).
///
/// # Safety
/// `y` and `add` hold `n * c` elements, `sums` holds `2 * c`; no overlap; the instruction set exists.
#[inline(always)]
pub(crate) unsafe fn finish<V: Vector>(n: usize, c: usize, y: *mut f32, add: *const f32, sums: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        by_channel!(V, c, |i, PART, k| {
            let (mut s, mut q) = (V::splat(0.0), V::splat(0.0));
            for p in 0..n {
                let mut v = load::<V, PART>(y.add(p * c + i), k);
                if !add.is_null() {
                    v = v.add(load::<V, PART>(add.add(p * c + i), k));
                    store::<V, PART>(v, y.add(p * c + i), k);
                }
                s = s.add(v);
                q = v.mul_add(v, q);
            }
            if !sums.is_null() {
                store::<V, PART>(s, sums.add(i), k);
                store::<V, PART>(q, sums.add(c + i), k);
            }
        });
    }
}

/// One row of an output gradient on its way in: `to = k1 * dy + k2 * x + k3` by channel (`x` null: `to = dy`); adds the
/// sums of `to` by channel to `sums`.
///
/// # Safety
/// `dy`, `x`, `to` hold `n * c` elements, `k` holds `[3][c]`, `sums` `[c]`; no overlap; the instruction set exists.
#[inline(always)]
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
        by_channel!(V, c, |i, PART, m| {
            let mut s = load::<V, PART>(sums.add(i), m);
            if x.is_null() {
                for p in 0..n {
                    let v = load::<V, PART>(dy.add(p * c + i), m);
                    store::<V, PART>(v, to.add(p * c + i), m);
                    s = s.add(v);
                }
            } else {
                let (k1, k2) = (load::<V, PART>(k.add(i), m), load::<V, PART>(k.add(c + i), m));
                let k3 = load::<V, PART>(k.add(2 * c + i), m);
                for p in 0..n {
                    let z = load::<V, PART>(x.add(p * c + i), m).mul_add(k2, k3);
                    let v = load::<V, PART>(dy.add(p * c + i), m).mul_add(k1, z);
                    store::<V, PART>(v, to.add(p * c + i), m);
                    s = s.add(v);
                }
            }
            store::<V, PART>(s, sums.add(i), m);
        });
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
        by_channel!(V, c, |i, PART, k| {
            let (mut s, mut q) = (V::splat(0.0), V::splat(0.0));
            let (mut a, mut b) = (one, one);
            if !scale.is_null() {
                (a, b) = (load::<V, PART>(scale.add(i), k), load::<V, PART>(shift.add(i), k));
            }
            for p in 0..n {
                let at = p * c + i;
                let mut d = load::<V, PART>(dz.add(at), k);
                let t = if add.is_null() { V::splat(0.0) } else { load::<V, PART>(add.add(at), k) };
                if scale.is_null() {
                    d = d.add(t);
                } else {
                    let x = load::<V, PART>(x.add(at), k);
                    d = d.mul_add(x.mul_add(a, b).where_positive(one, slope), t);
                    s = s.add(d);
                    q = d.mul_add(x, q);
                }
                store::<V, PART>(d, dz.add(at), k);
            }
            if !sums.is_null() {
                store::<V, PART>(s, sums.add(i), k);
                store::<V, PART>(q, sums.add(c + i), k);
            }
        });
    }
}

/// `dx = k1 * dz + k2 * x + k3 + add` by channel; `add` may be null.
///
/// # Safety
/// `dz`, `x`, `add`, `dx` hold `n * c` elements, `k` holds `[3][c]`; `dx` is `dz` or overlaps nothing; the instruction set
/// exists.
#[inline(always)]
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
        by_channel!(V, c, |i, PART, m| {
            let (k1, k2) = (load::<V, PART>(k.add(i), m), load::<V, PART>(k.add(c + i), m));
            let k3 = load::<V, PART>(k.add(2 * c + i), m);
            for p in 0..n {
                let at = p * c + i;
                let z = load::<V, PART>(x.add(at), m).mul_add(k2, k3);
                let mut v = load::<V, PART>(dz.add(at), m).mul_add(k1, z);
                if !add.is_null() {
                    v = v.add(load::<V, PART>(add.add(at), m));
                }
                store::<V, PART>(v, dx.add(at), m);
            }
        });
    }
}

/// `y = exit(a)` over `n` elements: a sum of two maps, activated.
///
/// # Safety
/// `a`, `y` and what the exit adds hold `n` elements; `y` overlaps nothing; the instruction set exists.
#[inline(always)]
pub(crate) unsafe fn add<V: Vector>(n: usize, a: *const f32, exit: &Exit, y: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        by_channel!(V, n, |i, PART, k| {
            store::<V, PART>(exit.apply::<V, PART>(load::<V, PART>(a.add(i), k), i, k), y.add(i), k);
        });
    }
}
