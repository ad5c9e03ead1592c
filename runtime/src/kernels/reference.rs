//! The training kernels, scalar: written to be read and to check the fast ones against. They need no memory of their own.

use super::{ConvShape, Kernels, OutputGradient, Prologue, Skip};
use crate::slices::{at, piece, piece_mut, rows, rows_mut, split_mut, start, start_mut};

/// The scalar training kernels.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

/// Every (output position, input position, kernel position) triple of one picture that does not fall on padding, as
/// offsets of pixels and kernel cells.
fn for_each_tap(g: &ConvShape, mut f: impl FnMut(usize, usize, usize)) {
    let [kh, kw] = g.window.kernel;
    for oy in 0..g.y.h {
        for ox in 0..g.y.w {
            for ky in 0..kh {
                for kx in 0..kw {
                    let iy = (oy * g.window.stride[0] + ky).wrapping_sub(g.window.pad[0]);
                    let ix = (ox * g.window.stride[1] + kx).wrapping_sub(g.window.pad[1]);
                    if iy < g.x.h && ix < g.x.w {
                        f((oy * g.y.w + ox) as usize, (iy * g.x.w + ix) as usize, (ky * kw + kx) as usize);
                    }
                }
            }
        }
    }
}

fn leaky(z: f32, slope: f32) -> f32 {
    if z > 0.0 { z } else { z * slope }
}

fn entering(pre: Option<&Prologue<'_>>, x: f32, c: usize) -> f32 {
    pre.map_or(x, |p| leaky(x * at(p.scale, c) + at(p.shift, c), p.slope))
}

fn arriving(dy: &OutputGradient<'_>, i: usize, c: usize, cout: usize) -> f32 {
    let d = at(dy.dy, i);
    dy.norm.map_or(d, |(x, k)| at(k, c) * d + at(k, cout + c) * at(x, i) + at(k, 2 * cout + c))
}

/// The sum that a join activates, at element `i`.
fn joined(i: usize, c: usize, h: &[f32], pre: &Prologue<'_>, skip: Option<Skip<'_>>) -> f32 {
    let z = h[i] * pre.scale[c] + pre.shift[c];
    z + skip.map_or(0.0, |s| s.pre.map_or(s.x[i], |p| s.x[i] * p.scale[c] + p.shift[c]))
}

impl Kernels for Reference {
    fn conv_forward(
        &self,
        g: &ConvShape,
        n: usize,
        x: &[f32],
        pre: Option<&Prologue<'_>>,
        w: &[f32],
        bias: Option<&[f32]>,
        add: Option<&[f32]>,
        y: &mut [f32],
        sums: Option<&mut [f64]>,
    ) {
        let (cin, cout) = (g.x.c as usize, g.y.c as usize);
        for b in 0..n {
            let (x, y) = (piece(x, b * g.x.len(), g.x.len()), piece_mut(y, b * g.y.len(), g.y.len()));
            for (pixel, y) in rows_mut(y, cout).enumerate() {
                for (co, v) in y.iter_mut().enumerate() {
                    let i = b * g.y.len() + pixel * cout + co;
                    *v = bias.map_or(0.0, |bias| at(bias, co)) + add.map_or(0.0, |a| at(a, i));
                }
            }
            for_each_tap(g, |o, i, k| {
                let (x, y) = (piece(x, i * cin, cin), piece_mut(y, o * cout, cout));
                for (ci, (&x, w)) in x.iter().zip(rows(piece(w, k * cin * cout, cin * cout), cout)).enumerate() {
                    let v = entering(pre, x, ci);
                    y.iter_mut().zip(w).for_each(|(y, &w)| *y += v * w);
                }
            });
        }
        if let Some(sums) = sums {
            self.channel_sums(cout, start(y, n * g.y.len()), sums);
        }
    }

    fn conv_backward(
        &self,
        g: &ConvShape,
        n: usize,
        x: &[f32],
        pre: Option<&Prologue<'_>>,
        w: &[f32],
        dy: OutputGradient<'_>,
        add: Option<&[f32]>,
        mut dz: Option<&mut [f32]>,
        dw: &mut [f32],
        db: &mut [f32],
        sums: Option<&mut [f64]>,
    ) {
        let (cin, cout) = (g.x.c as usize, g.y.c as usize);
        dw.fill(0.0);
        db.fill(0.0);
        if let Some(dz) = dz.as_deref_mut() {
            start_mut(dz, n * g.x.len()).fill(0.0);
        }
        for b in 0..n {
            let (xb, yb) = (b * g.x.len(), b * g.y.len());
            for pixel in 0..(g.y.h * g.y.w) as usize {
                for (co, db) in db.iter_mut().enumerate() {
                    *db += arriving(&dy, yb + pixel * cout + co, co, cout);
                }
            }
            for_each_tap(g, |o, i, k| {
                let x = piece(x, xb + i * cin, cin);
                let (w, dw) = (piece(w, k * cin * cout, cin * cout), piece_mut(dw, k * cin * cout, cin * cout));
                let mut dz = dz.as_deref_mut().map(|dz| piece_mut(dz, xb + i * cin, cin));
                for co in 0..cout {
                    let d = arriving(&dy, yb + o * cout + co, co, cout);
                    for (ci, (&x, dw)) in x.iter().zip(rows_mut(dw, cout)).enumerate() {
                        if let Some(dw) = dw.get_mut(co) {
                            *dw += entering(pre, x, ci) * d;
                        }
                    }
                    if let Some(dz) = &mut dz {
                        dz.iter_mut().zip(rows(w, cout)).for_each(|(dz, w)| *dz += at(w, co) * d);
                    }
                }
            });
        }
        let Some(dz) = dz else { return };
        let dz = start_mut(dz, n * g.x.len());
        for (pixel, (dz, x)) in rows_mut(dz, cin).zip(rows(x, cin)).enumerate() {
            for (c, (d, &x)) in dz.iter_mut().zip(x).enumerate() {
                if let Some(p) = pre {
                    *d *= if x * at(p.scale, c) + at(p.shift, c) > 0.0 { 1.0 } else { p.slope };
                }
                *d += add.map_or(0.0, |a| at(a, pixel * cin + c));
            }
        }
        if let (Some(sums), Some(_)) = (sums, pre) {
            sums.fill(0.0);
            let (sum, product) = split_mut(sums, cin);
            for (dz, x) in rows(dz, cin).zip(rows(x, cin)) {
                for ((&d, &x), (s, p)) in dz.iter().zip(x).zip(sum.iter_mut().zip(&mut *product)) {
                    *s += f64::from(d);
                    *p += f64::from(d) * f64::from(x);
                }
            }
        }
    }

    fn deconv_forward(&self, g: &ConvShape, n: usize, x: &[f32], w: &[f32], bias: &[f32], y: &mut [f32]) {
        let (cin, cout) = (g.x.c as usize, g.y.c as usize);
        for b in 0..n {
            let (x, y) = (&x[b * g.y.len()..], &mut y[b * g.x.len()..][..g.x.len()]);
            for (i, v) in y.iter_mut().enumerate() {
                *v = bias[i % cin];
            }
            for_each_tap(g, |o, i, k| {
                for ci in 0..cin {
                    for co in 0..cout {
                        y[i * cin + ci] += x[o * cout + co] * w[(k * cin + ci) * cout + co];
                    }
                }
            });
        }
    }

    fn deconv_backward(
        &self,
        g: &ConvShape,
        n: usize,
        x: &[f32],
        w: &[f32],
        dy: &[f32],
        mut dx: Option<&mut [f32]>,
        dw: &mut [f32],
        db: &mut [f32],
    ) {
        let (cin, cout) = (g.x.c as usize, g.y.c as usize);
        dw.fill(0.0);
        db.fill(0.0);
        if let Some(dx) = dx.as_deref_mut() {
            dx[..n * g.y.len()].fill(0.0);
        }
        for b in 0..n {
            let (yb, xb) = (b * g.x.len(), b * g.y.len());
            for i in 0..g.x.len() {
                db[i % cin] += dy[yb + i];
            }
            for_each_tap(g, |o, i, k| {
                for ci in 0..cin {
                    let d = dy[yb + i * cin + ci];
                    for co in 0..cout {
                        let at = xb + o * cout + co;
                        dw[(k * cin + ci) * cout + co] += x[at] * d;
                        if let Some(dx) = dx.as_deref_mut() {
                            dx[at] += w[(k * cin + ci) * cout + co] * d;
                        }
                    }
                }
            });
        }
    }

    fn channel_sums(&self, c: usize, x: &[f32], sums: &mut [f64]) {
        sums.fill(0.0);
        let (sum, square) = split_mut(sums, c);
        for x in rows(x, c) {
            for (&v, (s, q)) in x.iter().zip(sum.iter_mut().zip(&mut *square)) {
                *s += f64::from(v);
                *q += f64::from(v) * f64::from(v);
            }
        }
    }

    fn norm_gradient(&self, c: usize, dz: &mut [f32], x: &[f32], k: &[f32], add: Option<&[f32]>) {
        for (pixel, (dz, x)) in rows_mut(dz, c).zip(rows(x, c)).enumerate() {
            for (ch, (d, &x)) in dz.iter_mut().zip(x).enumerate() {
                let add = add.map_or(0.0, |a| at(a, pixel * c + ch));
                *d = at(k, ch) * *d + at(k, c + ch) * x + at(k, 2 * c + ch) + add;
            }
        }
    }

    fn pool_forward(&self, c: usize, pixels: usize, x: &[f32], pre: &Prologue<'_>, pooled: &mut [f32]) {
        for (x, pooled) in rows(x, pixels * c).zip(rows_mut(pooled, c)) {
            pool_picture(c, x, pre, pooled);
        }
    }

    fn pool_backward(
        &self,
        c: usize,
        pixels: usize,
        x: &[f32],
        pre: &Prologue<'_>,
        dpooled: &[f32],
        dz: &mut [f32],
        sums: &mut [f64],
    ) {
        sums.fill(0.0);
        let pictures = rows(x, pixels * c).zip(rows_mut(dz, pixels * c));
        for ((x, dz), d) in pictures.zip(rows(dpooled, c)) {
            pool_picture_backward(c, x, pre, d, dz, sums);
        }
    }

    fn join_forward(&self, c: usize, h: &[f32], pre: &Prologue<'_>, skip: Option<Skip<'_>>, y: &mut [f32]) {
        for (i, y) in y.iter_mut().enumerate() {
            *y = leaky(joined(i, i % c, h, pre, skip), pre.slope);
        }
    }

    fn join_backward(
        &self,
        c: usize,
        h: &[f32],
        pre: &Prologue<'_>,
        skip: Option<Skip<'_>>,
        dz: &mut [f32],
        sums: &mut [f64],
    ) {
        sums.fill(0.0);
        let normed = skip.filter(|s| s.pre.is_some());
        for (i, d) in dz.iter_mut().enumerate() {
            let ch = i % c;
            *d *= if joined(i, ch, h, pre, skip) > 0.0 { 1.0 } else { pre.slope };
            sums[ch] += f64::from(*d);
            sums[c + ch] += f64::from(*d) * f64::from(h[i]);
            if let Some(skip) = normed {
                sums[2 * c + ch] += f64::from(*d);
                sums[3 * c + ch] += f64::from(*d) * f64::from(skip.x[i]);
            }
        }
    }

    fn max_pool_forward(
        &self,
        g: &ConvShape,
        n: usize,
        x: &[f32],
        pre: Option<&Prologue<'_>>,
        y: &mut [f32],
        index: &mut [u32],
    ) {
        let c = g.y.c as usize;
        y[..n * g.y.len()].fill(f32::NEG_INFINITY);
        index[..n * g.y.len()].fill(u32::MAX);
        for b in 0..n {
            let (x, at) = (&x[b * g.x.len()..], b * g.y.len());
            for_each_tap(g, |o, i, _| {
                for ch in 0..c {
                    let (v, to) = (entering(pre, x[i * c + ch], ch), at + o * c + ch);
                    if index[to] == u32::MAX || v > y[to] {
                        y[to] = v;
                        index[to] = (i * c + ch) as u32;
                    }
                }
            });
        }
    }

    fn max_pool_backward(&self, g: &ConvShape, n: usize, dy: &[f32], index: &[u32], da: &mut [f32]) {
        da[..n * g.x.len()].fill(0.0);
        for b in 0..n {
            for i in b * g.y.len()..(b + 1) * g.y.len() {
                da[b * g.x.len() + index[i] as usize] += dy[i];
            }
        }
    }
}

/// One picture of [`Kernels::pool_forward`].
pub(crate) fn pool_picture(c: usize, x: &[f32], pre: &Prologue<'_>, pooled: &mut [f32]) {
    pooled.fill(0.0);
    for x in rows(x, c) {
        for ((p, &v), (&a, &b)) in pooled.iter_mut().zip(x).zip(pre.scale.iter().zip(pre.shift)) {
            *p += leaky(v * a + b, pre.slope);
        }
    }
    let pixels = (x.len() / c.max(1)) as f32;
    pooled.iter_mut().for_each(|p| *p /= pixels);
}

/// One picture of [`Kernels::pool_backward`]; adds to `sums`.
pub(crate) fn pool_picture_backward(
    c: usize,
    x: &[f32],
    pre: &Prologue<'_>,
    dpooled: &[f32],
    dz: &mut [f32],
    sums: &mut [f64],
) {
    let (sum, product) = split_mut(sums, c);
    for (i, (sum, product)) in sum.iter_mut().zip(product).enumerate() {
        let (scale, shift, d) = (at(pre.scale, i), at(pre.shift, i), at(dpooled, i));
        let (mut s, mut q) = (0.0f32, 0.0f32);
        for (x, dz) in rows(x, c).zip(rows_mut(dz, c)) {
            let (Some(&x), Some(dz)) = (x.get(i), dz.get_mut(i)) else { continue };
            *dz = if x * scale + shift > 0.0 { d } else { d * pre.slope };
            s += *dz;
            q += *dz * x;
        }
        *sum += f64::from(s);
        *product += f64::from(q);
    }
}
