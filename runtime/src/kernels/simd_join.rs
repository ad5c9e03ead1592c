//! Joins and max pooling with threads: plain loops over the channels of a pixel, which the compiler turns into vectors. They
//! wait for memory, not for arithmetic, and give the oracle's values bit by bit; only sums are added in another order.

use super::simd::{PARTS, Simd, check_prologue, reduce};
use super::{ConvShape, Prologue, Skip};
use std::prelude::v1::*;
use std::vec;

/// Pixels whose sums are added in `f32` before they go to `f64`.
const BLOCK: usize = 256;

/// `to = x * scale + shift` by channel: one pixel.
fn affine(x: &[f32], pre: &Prologue<'_>, to: &mut [f32]) {
    for ((to, &x), (&a, &b)) in to.iter_mut().zip(x).zip(pre.scale.iter().zip(pre.shift)) {
        *to = x * a + b;
    }
}

/// The sum that a join activates: one pixel, which starts at element `at`.
fn joined(at: usize, h: &[f32], pre: &Prologue<'_>, skip: Option<Skip<'_>>, z: &mut [f32]) {
    let c = z.len();
    affine(&h[at..at + c], pre, z);
    let Some(skip) = skip else { return };
    let x = &skip.x[at..at + c];
    match skip.pre {
        None => z.iter_mut().zip(x).for_each(|(z, &x)| *z += x),
        Some(p) => {
            for ((z, &x), (&a, &b)) in z.iter_mut().zip(x).zip(p.scale.iter().zip(p.shift)) {
                *z += x * a + b;
            }
        }
    }
}

fn leaky(z: &mut [f32], slope: f32) {
    z.iter_mut().for_each(|z| *z = if *z > 0.0 { *z } else { *z * slope });
}

/// Elements of one part: whole pixels.
fn part_len(len: usize, c: usize) -> usize {
    (len / c).div_ceil(PARTS).max(1) * c
}

fn check(len: usize, c: usize, h: &[f32], pre: &Prologue<'_>, skip: Option<Skip<'_>>) {
    check_prologue(Some(pre), c);
    check_prologue(skip.and_then(|s| s.pre), c);
    assert!(len.is_multiple_of(c) && h.len() >= len && skip.is_none_or(|s| s.x.len() >= len), "lengths differ");
}

/// [`super::Kernels::join_forward`].
pub(super) fn forward(k: &Simd, c: usize, h: &[f32], pre: &Prologue<'_>, skip: Option<Skip<'_>>, y: &mut [f32]) {
    check(y.len(), c, h, pre, skip);
    let len = part_len(y.len(), c);
    k.for_each(y.chunks_mut(len).enumerate().collect(), |(part, y)| {
        for (i, y) in y.chunks_exact_mut(c).enumerate() {
            joined(part * len + i * c, h, pre, skip, y);
            leaky(y, pre.slope);
        }
    });
}

/// [`super::Kernels::join_backward`].
pub(super) fn backward(
    k: &Simd,
    c: usize,
    h: &[f32],
    pre: &Prologue<'_>,
    skip: Option<Skip<'_>>,
    dz: &mut [f32],
    sums: &mut [f64],
) {
    check(dz.len(), c, h, pre, skip);
    let normed = skip.filter(|s| s.pre.is_some());
    let len = part_len(dz.len(), c);
    // Sums of dz, dz * h, dz * skip.
    let mut partial = vec![0.0f64; dz.len().div_ceil(len).max(1) * 3 * c];
    let items: Vec<_> = dz.chunks_mut(len).zip(partial.chunks_mut(3 * c)).enumerate().collect();
    k.for_each(items, |(part, (dz, total))| {
        let (mut z, mut block) = (vec![0.0f32; c], vec![0.0f32; 3 * c]);
        for (i, dz) in dz.chunks_mut(BLOCK * c).enumerate() {
            block.fill(0.0);
            let (sum, products) = block.split_at_mut(c);
            let (product, skips) = products.split_at_mut(c);
            for (j, d) in dz.chunks_exact_mut(c).enumerate() {
                let at = part * len + (i * BLOCK + j) * c;
                joined(at, h, pre, skip, &mut z);
                let sums = sum.iter_mut().zip(&mut *product);
                for (((d, &z), &h), (sum, product)) in d.iter_mut().zip(&z).zip(&h[at..at + c]).zip(sums) {
                    *d = if z > 0.0 { *d } else { *d * pre.slope };
                    *sum += *d;
                    *product += *d * h;
                }
                if let Some(skip) = normed {
                    for ((to, &d), &x) in skips.iter_mut().zip(&*d).zip(&skip.x[at..at + c]) {
                        *to += d * x;
                    }
                }
            }
            total.iter_mut().zip(&block).for_each(|(t, &b)| *t += f64::from(b));
        }
    });
    let mut total = vec![0.0f64; 3 * c];
    reduce(&partial, &mut total);
    sums[..2 * c].copy_from_slice(&total[..2 * c]);
    if normed.is_some() {
        sums[2 * c..3 * c].copy_from_slice(&total[..c]);
        sums[3 * c..4 * c].copy_from_slice(&total[2 * c..]);
    }
}

/// The input positions that one output position's window covers along one axis.
fn covered(out: usize, axis: usize, g: &ConvShape, len: u32) -> core::ops::Range<usize> {
    let start = out * g.window.stride[axis] as usize;
    let (pad, end) = (g.window.pad[axis] as usize, start + g.window.kernel[axis] as usize);
    start.saturating_sub(pad)..end.saturating_sub(pad).min(len as usize)
}

/// [`super::Kernels::max_pool_forward`].
pub(super) fn max_pool(
    k: &Simd,
    g: &ConvShape,
    n: usize,
    x: &[f32],
    pre: Option<&Prologue<'_>>,
    y: &mut [f32],
    index: &mut [u32],
) {
    let (c, xl, yl) = (g.y.c as usize, g.x.len(), g.y.len());
    check_prologue(pre, c);
    let (x, y, index) = (&x[..n * xl], &mut y[..n * yl], &mut index[..n * yl]);
    let chunk = Simd::chunk(n, 0);
    let items: Vec<_> = y.chunks_mut(chunk * yl).zip(index.chunks_mut(chunk * yl)).enumerate().collect();
    k.for_each(items, |(part, (y, index))| {
        let mut entered = vec![0.0f32; if pre.is_some() { xl } else { 0 }];
        for (i, (y, index)) in y.chunks_exact_mut(yl).zip(index.chunks_exact_mut(yl)).enumerate() {
            let mut x = &x[(part * chunk + i) * xl..][..xl];
            if let Some(pre) = pre {
                for (x, to) in x.chunks_exact(c).zip(entered.chunks_exact_mut(c)) {
                    affine(x, pre, to);
                    leaky(to, pre.slope);
                }
                x = &entered;
            }
            let pixels = y.chunks_exact_mut(c).zip(index.chunks_exact_mut(c));
            for (o, (y, index)) in pixels.enumerate() {
                let (oy, ox) = (o / g.y.w as usize, o % g.y.w as usize);
                index.fill(u32::MAX);
                for iy in covered(oy, 0, g, g.x.h) {
                    for ix in covered(ox, 1, g, g.x.w) {
                        let at = (iy * g.x.w as usize + ix) * c;
                        largest(&x[at..at + c], at as u32, y, index);
                    }
                }
            }
        }
    });
}

/// Takes the pixel `x`, which starts at element `at`, into the running maximum.
fn largest(x: &[f32], at: u32, y: &mut [f32], index: &mut [u32]) {
    for ((&x, i), (y, index)) in x.iter().zip(at..).zip(y.iter_mut().zip(index)) {
        let better = (*index == u32::MAX) | (x > *y);
        *y = if better { x } else { *y };
        *index = if better { i } else { *index };
    }
}

/// [`super::Kernels::max_pool_backward`].
pub(super) fn max_pool_backward(k: &Simd, g: &ConvShape, n: usize, dy: &[f32], index: &[u32], da: &mut [f32]) {
    let (xl, yl) = (g.x.len(), g.y.len());
    let pictures = da[..n * xl].chunks_mut(xl).zip(dy[..n * yl].chunks(yl)).zip(index[..n * yl].chunks(yl));
    k.for_each(pictures.collect(), |((da, dy), index)| {
        da.fill(0.0);
        for (&i, &d) in index.iter().zip(dy) {
            da[i as usize] += d;
        }
    });
}
