//! The transforms, their blocks and their rounding, against the definition in `f64`.

use super::{Grid, IN, OUT, PLANES, Winograd};
use crate::kernels::ConvShape;
use crate::kernels::buffer::Aligned;
use crate::kernels::image::Exit;
use crate::kernels::isa::{Isa, Table, table};
use crate::kernels::simd::Simd;
use crate::kernels::tests::{noise, shape};
use crate::kernels::transposed::{pad_rows, padded_len};
use core::ptr::null;
use std::prelude::v1::*;
use std::{format, vec};

/// Largest error of one transform, relative to its largest value.
const TRANSFORM: f64 = 5e-7;
/// Largest error of a convolution or a weight gradient, relative to its largest value.
const ROUNDING: f64 = 1e-5;

type Matrix = Vec<Vec<f64>>;

fn matrix(rows: &[&[f64]], divisor: f64) -> Matrix {
    rows.iter().map(|row| row.iter().map(|v| v / divisor).collect()).collect()
}

fn transposed(m: &Matrix) -> Matrix {
    (0..m[0].len()).map(|j| m.iter().map(|row| row[j]).collect()).collect()
}

fn product(a: &Matrix, b: &Matrix) -> Matrix {
    let dot = |row: &[f64], j: usize| row.iter().zip(b).map(|(x, y)| x * y[j]).sum();
    a.iter().map(|row| (0..b[0].len()).map(|j| dot(row, j)).collect()).collect()
}

/// `l x l^T`
fn both(l: &Matrix, x: &Matrix) -> Matrix {
    product(&product(l, x), &transposed(l))
}

/// `B^T`, `G` and `A^T` of F(4x4, 3x3), arXiv 1509.09308, section 4.3.
fn input() -> Matrix {
    let rows: [&[f64]; 6] = [
        &[4.0, 0.0, -5.0, 0.0, 1.0, 0.0],
        &[0.0, -4.0, -4.0, 1.0, 1.0, 0.0],
        &[0.0, 4.0, -4.0, -1.0, 1.0, 0.0],
        &[0.0, -2.0, -1.0, 2.0, 1.0, 0.0],
        &[0.0, 2.0, -1.0, -2.0, 1.0, 0.0],
        &[0.0, 4.0, 0.0, -5.0, 0.0, 1.0],
    ];
    matrix(&rows, 1.0)
}

fn filter() -> Matrix {
    let rows: [&[f64]; 6] = [
        &[6.0, 0.0, 0.0],
        &[-4.0, -4.0, -4.0],
        &[-4.0, 4.0, -4.0],
        &[1.0, 2.0, 4.0],
        &[1.0, -2.0, 4.0],
        &[0.0, 0.0, 24.0],
    ];
    matrix(&rows, 24.0)
}

fn output() -> Matrix {
    let rows: [&[f64]; 4] = [
        &[1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
        &[0.0, 1.0, -1.0, 2.0, -2.0, 0.0],
        &[0.0, 1.0, 1.0, 4.0, 4.0, 0.0],
        &[0.0, 1.0, -1.0, 8.0, -8.0, 1.0],
    ];
    matrix(&rows, 1.0)
}

/// A square of `side` whose values lie `row` and `pixel` apart.
fn square(x: &[f32], side: usize, row: usize, pixel: usize) -> Matrix {
    (0..side).map(|i| (0..side).map(|j| f64::from(x[i * row + j * pixel])).collect()).collect()
}

/// The largest difference over the largest value; infinite where a value is missing or not a number.
fn error(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len(), "lengths");
    let top = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let worst = got.iter().zip(want).fold(0.0f64, |m, (&g, &w)| {
        let d = (f64::from(g) - w).abs();
        if d.is_nan() { f64::INFINITY } else { m.max(d) }
    });
    worst / top
}

fn small(what: &str, bound: f64, got: &[f32], want: &[f64]) {
    let e = error(got, want);
    assert!(e <= bound, "{what}: error {e:e}");
}

fn tables() -> impl Iterator<Item = (&'static str, &'static Table)> {
    Isa::available().map(|isa| (isa.name(), table(isa)))
}

#[test]
fn the_matrices_of_the_paper_give_a_convolution() {
    let (d, g) = (square(&noise(36, 1), 6, 6, 1), square(&noise(9, 2), 3, 3, 1));
    let (u, v) = (both(&filter(), &g), both(&input(), &d));
    let m = u.iter().zip(&v).map(|(u, v)| u.iter().zip(v).map(|(u, v)| u * v).collect()).collect();
    for (i, row) in both(&output(), &m).iter().enumerate() {
        for (j, &y) in row.iter().enumerate() {
            let want: f64 = (0..9).map(|k| d[i + k / 3][j + k % 3] * g[k / 3][k % 3]).sum();
            assert!((y - want).abs() < 1e-12, "{y} where the definition gives {want}");
        }
    }
}

#[test]
fn weight_transforms_agree_with_the_matrices() {
    let n = 32;
    let (w, du) = (noise(9 * n, 1), noise(PLANES * n, 2));
    let (mut u, mut dw) = (vec![0.0; PLANES * n], vec![0.0; 9 * n]);
    for i in 0..n {
        for (k, v) in both(&filter(), &square(&w[i..], 3, 3 * n, n)).concat().into_iter().enumerate() {
            u[k * n + i] = v;
        }
        let back = both(&transposed(&filter()), &square(&du[i..], IN, IN * n, n));
        for (k, v) in back.concat().into_iter().enumerate() {
            dw[k * n + i] = v;
        }
    }
    for (name, t) in tables() {
        let (mut to, mut back) = (vec![f32::NAN; u.len()], vec![f32::NAN; dw.len()]);
        // SAFETY: the lengths are those of `n` elements a cell, whole vectors of any table.
        unsafe {
            (t.winograd_filter)(n, w.as_ptr(), to.as_mut_ptr());
            (t.winograd_filter_gradient)(n, n, du.as_ptr(), back.as_mut_ptr());
        }
        small(&format!("{name} weights"), TRANSFORM, &to, &u);
        small(&format!("{name} gradient of weights"), TRANSFORM, &back, &dw);
    }
}

/// Two by two tiles a picture, the last ones cut; five tiles from the fourth on, so that two pictures take part.
#[test]
fn tile_transforms_agree_with_the_matrices() {
    let (h, w, c, first, count) = (6, 7, 32, 3, 5);
    let plane = count * c + 3;
    let (side, whole) = (2 * OUT + 2, 2 * OUT);
    let padded = Grid { across: 2, down: 2, row: side * c, picture: side * side * c, pixel: c, out: OUT, c, h, w };
    let gradient = Grid { row: whole * c, picture: whole * whole * c, ..padded };
    let cut = Grid { row: w * c, picture: h * w * c, ..padded };
    let (x, dy) = (noise(2 * padded.picture, 1), noise(2 * gradient.picture, 2));
    let (m, bias) = (noise(PLANES * plane, 3), noise(c, 4));
    for (name, t) in tables() {
        let (mut v, mut d) = (vec![f32::NAN; PLANES * plane], vec![f32::NAN; PLANES * plane]);
        let mut y = vec![f32::NAN; 2 * cut.picture];
        // SAFETY: the grids' pictures, whole tiles of them where they are read, and planes of `plane` elements; 32 channels are
        // whole vectors of any table.
        unsafe {
            (t.winograd_input)(&padded, [first, count, plane], x.as_ptr(), v.as_mut_ptr());
            (t.winograd_gradient)(&gradient, [first, count, plane], dy.as_ptr(), d.as_mut_ptr());
            (t.winograd_output)(&cut, [first, count, plane], m.as_ptr(), bias.as_ptr(), &Exit::PLAIN, y.as_mut_ptr());
        }
        let mut written = 0;
        for tile in first..first + count {
            let (picture, top, left) = (tile / 4, tile % 4 / 2 * OUT, tile % 2 * OUT);
            for ch in 0..c {
                let of = |g: &Grid| picture * g.picture + top * g.row + left * c + ch;
                let planes =
                    |p: &[f32]| -> Vec<f32> { (0..PLANES).map(|k| p[k * plane + (tile - first) * c + ch]).collect() };
                let want = both(&input(), &square(&x[of(&padded)..], IN, padded.row, c)).concat();
                small(&format!("{name} input"), TRANSFORM, &planes(&v), &want);
                let want = both(&transposed(&output()), &square(&dy[of(&gradient)..], OUT, gradient.row, c)).concat();
                small(&format!("{name} gradient"), TRANSFORM, &planes(&d), &want);
                let want = both(&output(), &square(&planes(&m), IN, IN, 1));
                for (i, row) in want.iter().enumerate().take(h - top) {
                    let row: Vec<f64> = row.iter().take(w - left).map(|v| v + f64::from(bias[ch])).collect();
                    let got: Vec<f32> = (0..row.len()).map(|j| y[of(&cut) + i * cut.row + j * c]).collect();
                    // Of one row: a quarter of the values that the error is relative to.
                    small(&format!("{name} output"), 4.0 * TRANSFORM, &got, &row);
                    written += got.len();
                }
            }
        }
        assert_eq!(y.iter().filter(|v| !v.is_nan()).count(), written, "{name}: pixels of other tiles");
    }
}

/// `conv(x) + bias` of `n` pictures, window 3x3, stride 1, padding 1.
fn convolution(g: &ConvShape, n: usize, x: &[f32], w: &[f32], bias: &[f32]) -> Vec<f64> {
    let cout = g.y.c as usize;
    let mut y: Vec<f64> = bias.iter().map(|&b| f64::from(b)).cycle().take(n * g.y.len()).collect();
    taps(g, n, |from, cell, to| {
        for (&x, w) in x[from].iter().zip(w[cell].chunks_exact(cout)) {
            y[to.clone()].iter_mut().zip(w).for_each(|(y, &w)| *y += f64::from(x) * f64::from(w));
        }
    });
    y
}

/// The gradient of the same with respect to its weights.
fn weight_gradient(g: &ConvShape, n: usize, x: &[f32], dy: &[f32]) -> Vec<f64> {
    let mut dw = vec![0.0; g.weights()];
    taps(g, n, |from, cell, to| {
        for (&x, dw) in x[from].iter().zip(dw[cell].chunks_exact_mut(g.y.c as usize)) {
            dw.iter_mut().zip(&dy[to.clone()]).for_each(|(dw, &d)| *dw += f64::from(x) * f64::from(d));
        }
    });
    dw
}

/// Every pair of an input and an output pixel that a kernel cell joins: the places of all three.
fn taps(g: &ConvShape, n: usize, mut f: impl FnMut(Span, Span, Span)) {
    let (h, w, cin, cout) = (g.x.h as usize, g.x.w as usize, g.x.c as usize, g.y.c as usize);
    for at in 0..n * h * w {
        let (picture, oy, ox) = (at / (h * w), at / w % h, at % w);
        for k in 0..9 {
            let (iy, ix) = ((oy + k / 3).wrapping_sub(1), (ox + k % 3).wrapping_sub(1));
            if iy < h && ix < w {
                let from = ((picture * h + iy) * w + ix) * cin;
                f(from..from + cin, k * cin * cout..(k + 1) * cin * cout, at * cout..(at + 1) * cout);
            }
        }
    }
}

type Span = core::ops::Range<usize>;

/// Pictures one after the other, each padded.
fn padded(s: &crate::shape::Shape, pad: [usize; 4], n: usize, x: &[f32]) -> Aligned {
    let (len, row) = (padded_len(s, pad), s.w as usize * s.c as usize);
    let mut to = Aligned::zeroed(n * len);
    for (x, to) in x.chunks_exact(s.len()).zip(to.get_mut().chunks_exact_mut(len)) {
        pad_rows(s, pad, to, |r, to| to.copy_from_slice(&x[r * row..][..row]));
    }
    to
}

/// [`Winograd::convolve`] of `n` pictures.
fn tiled(t: &Winograd, k: &Simd, g: &ConvShape, n: usize, x: &[f32], w: &[f32], bias: &[f32]) -> Vec<f32> {
    let (u, mut work) = (k.pack(Some(t), true, t.cout, w), vec![f32::NAN; t.work()]);
    let (x, mut y) = (padded(&g.x, t.pad(), n, x), vec![f32::NAN; n * g.y.len()]);
    let bias = if bias.is_empty() { null() } else { bias.as_ptr() };
    // SAFETY: lengths as the plan tells them; the plan was made for these kernels.
    unsafe {
        let u = u.get().as_ptr();
        t.convolve(k.table, n, x.get().as_ptr(), u, bias, &Exit::PLAIN, work.as_mut_ptr(), y.as_mut_ptr());
    }
    y
}

/// Sizes that no tile divides; blocks that end inside a picture, and a last one that is not full.
#[test]
fn blocks_and_pictures_agree_with_the_definition() {
    for (h, w, cin, cout, n) in [(10, 7, 16, 112, 5), (9, 9, 64, 64, 4), (33, 30, 16, 16, 2)] {
        let g = shape([h, w, cin], cout, [3, 3], [1, 1], [1; 4]);
        let (x, weights, bias) = (noise(n * g.x.len(), 1), noise(g.weights(), 2), noise(cout as usize, 3));
        let dy = noise(n * g.y.len(), 4);
        let want = convolution(&g, n, &x, &weights, &bias);
        let want_dw = weight_gradient(&g, n, &x, &dy);
        for isa in Isa::available() {
            let k = Simd::with_isa(isa, 1).expect("available");
            let (table, name) = (k.table, isa.name());
            let t = Winograd::plan(&g, isa.lanes()).expect("whole vectors of channels");
            let tiles = t.x.across * t.x.down;
            assert!(n * tiles > t.block && !(n * tiles).is_multiple_of(t.block) && !t.block.is_multiple_of(tiles));
            let y = tiled(&t, &k, &g, n, &x, &weights, &bias);
            small(&format!("{name} {h}x{w} y"), ROUNDING, &y, &want);

            let (down, across) = (OUT * t.y.down, OUT * t.y.across);
            let (x, row) = (padded(&g.x, t.pad(), n, &x), across * t.cout);
            let d = padded(&g.y, [0, 0, down - h as usize, across - w as usize], n, &dy);
            let (mut work, mut du, mut dw) =
                (vec![f32::NAN; t.work()], vec![0.0; t.gradients()], vec![f32::NAN; want_dw.len()]);
            // SAFETY: lengths as the plan tells them, whole tiles of gradients; the plan was made for this table.
            unsafe {
                let (dy, du) = ((d.get().as_ptr(), row, down * row), du.as_mut_ptr());
                t.weight_gradient(table, n, x.get().as_ptr(), dy, work.as_mut_ptr(), du);
                (table.winograd_filter_gradient)(dw.len() / 9, t.gradient_plane(), du, dw.as_mut_ptr());
            }
            small(&format!("{name} {h}x{w} dw"), ROUNDING, &dw, &want_dw);
        }
    }
}

#[test]
fn rounding_over_64_channels_is_bounded() {
    let g = shape([16, 16, 64], 64, [3, 3], [1, 1], [1; 4]);
    let (x, w) = (noise(g.x.len(), 1), noise(g.weights(), 2));
    let want = convolution(&g, 1, &x, &w, &[0.0; 64]);
    for isa in Isa::available() {
        let t = Winograd::plan(&g, isa.lanes()).expect("whole vectors of channels");
        let k = Simd::with_isa(isa, 1).expect("available");
        small(isa.name(), ROUNDING, &tiled(&t, &k, &g, 1, &x, &w, &[]), &want);
    }
}

#[test]
fn few_tiles_of_many_channels_go_the_direct_way() {
    let cases = [
        (7, 512, 512, false),
        (9, 512, 512, true),
        (8, 128, 240, false),
        (8, 128, 224, true),
        (4, 192, 192, false),
        (4, 64, 64, true),
    ];
    for (side, cin, cout, tiled) in cases {
        let g = shape([side, side, cin], cout, [3, 3], [1, 1], [1; 4]);
        let back = ConvShape { x: g.y, y: g.x, ..g };
        let plans = [g, back].map(|g| Winograd::plan(&g, 16).is_some());
        assert_eq!(plans, [tiled; 2], "{side}x{side}, {cin} to {cout} channels");
    }
}
