//! One case suite over every instruction set this machine has, against the scalar oracle.

use super::isa::Isa;
use super::picture::PreparedConv;
use super::reference::Reference;
use super::simd::Simd;
use super::{ConvShape, Kernels, OutputGradient, Prologue, Skip, scalar};
use crate::net::{Activation, ConvArgs, Window};
use crate::shape::Shape;
use rand_core::Rng;
use std::prelude::v1::*;
use std::vec;

/// Rounding differs with the order of the sums: relative to the largest value of the result.
const TOLERANCE: f64 = 2e-5;

pub(crate) fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = rand_pcg::Pcg32::new(seed, 7);
    (0..len).map(|_| rng.next_u32() as f32 / u32::MAX as f32 * 2.0 - 1.0).collect()
}

/// Length first, NaN fails on either side, then the largest difference over the largest value.
fn close<T: Copy + Into<f64>>(what: &str, a: &[T], b: &[T]) {
    assert_eq!(a.len(), b.len(), "{what}: lengths");
    let top = b.iter().fold(1e-6f64, |m, &v| m.max(v.into().abs()));
    for (i, (&a, &b)) in a.iter().zip(b).enumerate() {
        let (a, b): (f64, f64) = (a.into(), b.into());
        assert!((a - b).abs() <= TOLERANCE * top, "{what}[{i}]: {a} where the oracle has {b} (top {top})");
    }
}

pub(super) fn shape(x: [u32; 3], cout: u32, kernel: [u32; 2], stride: [u32; 2], pad: [u32; 4]) -> ConvShape {
    let side = |i: usize| (x[i] + pad[i] + pad[i + 2] - kernel[i]) / stride[i] + 1;
    ConvShape {
        x: Shape::new(x[0], x[1], x[2]),
        y: Shape::new(side(0), side(1), cout),
        window: Window { kernel, stride, pad },
    }
}

/// Odd sizes, one pixel, one channel, channels that fill no vector, strides with holes, padding, large windows.
pub(super) fn cases() -> Vec<ConvShape> {
    let square = |h, w, c, o, k, s, p| shape([h, w, c], o, [k, k], [s, s], [p; 4]);
    vec![
        square(32, 32, 3, 16, 3, 1, 1),
        square(32, 32, 16, 16, 3, 1, 1),
        square(16, 16, 16, 32, 3, 2, 1),
        square(16, 16, 16, 32, 1, 2, 0),
        square(8, 8, 64, 64, 3, 1, 1),
        square(10, 7, 16, 32, 3, 1, 1),
        square(4, 5, 48, 16, 3, 1, 1),
        square(3, 9, 16, 16, 3, 1, 1),
        square(16, 16, 32, 64, 4, 2, 1),
        square(32, 32, 3, 32, 4, 2, 1),
        square(1, 1, 1, 1, 1, 1, 0),
        square(1, 1, 5, 7, 3, 1, 1),
        square(5, 7, 3, 10, 3, 2, 1),
        square(7, 5, 17, 33, 3, 1, 1),
        square(9, 9, 2, 19, 5, 3, 2),
        square(6, 6, 4, 8, 1, 3, 0),
        square(15, 13, 3, 24, 7, 2, 3),
        square(4, 4, 48, 40, 2, 2, 0),
        shape([6, 9, 5], 12, [3, 2], [1, 2], [1, 0, 1, 1]),
        shape([9, 6, 3], 20, [1, 3], [2, 1], [0, 1, 0, 1]),
    ]
}

fn engines() -> Vec<(&'static str, Simd)> {
    let mut all = Vec::new();
    for isa in Isa::available() {
        for threads in [1, 2] {
            all.push((isa.name(), Simd::with_isa(isa, threads).expect("available")));
        }
    }
    all
}

#[test]
fn forward_agrees_with_the_oracle() {
    for (at, g) in cases().into_iter().enumerate() {
        let (n, cin, cout) = (3, g.x.c as usize, g.y.c as usize);
        let (x, w, bias) = (noise(n * g.x.len(), 1), noise(g.weights(), 2), noise(cout, 3));
        let (scale, shift, add) = (noise(cin, 4), noise(cin, 5), noise(n * g.y.len(), 6));
        for with in [false, true] {
            let pre = Prologue { scale: &scale, shift: &shift, slope: 0.1 };
            let (pre, bias, add) =
                if with { (Some(&pre), Some(&bias[..]), Some(&add[..])) } else { (None, None, None) };
            let mut want = (vec![0.0; n * g.y.len()], vec![0.0; 2 * cout]);
            Reference.conv_forward(&g, n, &x, pre, &w, bias, add, &mut want.0, Some(&mut want.1));
            for (name, k) in engines() {
                let mut got = (vec![f32::NAN; n * g.y.len()], vec![f64::NAN; 2 * cout]);
                k.conv_forward(&g, n, &x, pre, &w, bias, add, &mut got.0, Some(&mut got.1));
                close(&format!("{name} case {at} y"), &got.0, &want.0);
                close(&format!("{name} case {at} sums"), &got.1, &want.1);
            }
        }
    }
}

#[test]
fn one_picture_agrees_with_the_oracle() {
    for (at, g) in cases().into_iter().enumerate() {
        for depthwise in [false, true] {
            let g = if depthwise { ConvShape { y: Shape { c: g.x.c, ..g.y }, ..g } } else { g };
            let groups = if depthwise { g.x.c } else { 1 };
            let (x, w) = (noise(g.x.len(), 1), noise(g.weights() / groups as usize, 2));
            let bias = noise(g.y.c as usize, 3);
            for bias in [None, Some(&bias[..])] {
                let mut want = vec![0.0; g.y.len()];
                let act = Activation::None;
                let args = ConvArgs { x: g.x, y: g.y, window: g.window, groups, weight: &w, bias, act };
                scalar::conv(&args, &x, &mut want);
                for (name, k) in engines() {
                    let mut got = vec![f32::NAN; g.y.len()];
                    let conv = PreparedConv::new(&k, g, depthwise, &w);
                    k.conv_picture(&conv, &x, &w, bias, &mut got);
                    close(&format!("{name} case {at}, {groups} groups"), &got, &want);
                }
            }
        }
    }
}

#[test]
fn backward_agrees_with_the_oracle() {
    for (at, g) in cases().into_iter().enumerate() {
        let (n, cin, cout) = (3, g.x.c as usize, g.y.c as usize);
        let (x, w, dy) = (noise(n * g.x.len(), 1), noise(g.weights(), 2), noise(n * g.y.len(), 3));
        let (scale, shift, add) = (noise(cin, 4), noise(cin, 5), noise(n * g.x.len(), 6));
        let (h, k) = (noise(n * g.y.len(), 7), noise(3 * cout, 8));
        for with in [false, true] {
            let pre = Prologue { scale: &scale, shift: &shift, slope: 0.1 };
            let (pre, add, norm) =
                if with { (Some(&pre), Some(&add[..]), Some((&h[..], &k[..]))) } else { (None, None, None) };
            let dy = OutputGradient { dy: &dy, norm };
            let run = |k: &dyn Kernels| {
                let (mut dz, mut dw, mut db) =
                    (vec![f32::NAN; n * g.x.len()], vec![f32::NAN; w.len()], vec![f32::NAN; cout]);
                let mut sums = vec![0.0f64; 2 * cin];
                k.conv_backward(&g, n, &x, pre, &w, dy, add, Some(&mut dz), &mut dw, &mut db, Some(&mut sums));
                (dz, dw, db, sums)
            };
            let want = run(&Reference);
            for (name, k) in engines() {
                let got = run(&k);
                close(&format!("{name} case {at} dz"), &got.0, &want.0);
                close(&format!("{name} case {at} dw"), &got.1, &want.1);
                close(&format!("{name} case {at} db"), &got.2, &want.2);
                if with {
                    close(&format!("{name} case {at} sums"), &got.3, &want.3);
                }
            }
        }
    }
}

#[test]
fn transposed_agrees_with_the_oracle() {
    for (at, g) in cases().into_iter().enumerate() {
        let (n, cin) = (2, g.x.c as usize);
        let (x, w, dy, bias) = (noise(n * g.y.len(), 1), noise(g.weights(), 2), noise(n * g.x.len(), 3), noise(cin, 4));
        let run = |k: &dyn Kernels| {
            let (mut y, mut dx) = (vec![f32::NAN; n * g.x.len()], vec![f32::NAN; n * g.y.len()]);
            let (mut dw, mut db) = (vec![f32::NAN; w.len()], vec![f32::NAN; cin]);
            k.deconv_forward(&g, n, &x, &w, &bias, &mut y);
            k.deconv_backward(&g, n, &x, &w, &dy, Some(&mut dx), &mut dw, &mut db);
            (y, dx, dw, db)
        };
        let want = run(&Reference);
        for (name, k) in engines() {
            let got = run(&k);
            close(&format!("{name} case {at} y"), &got.0, &want.0);
            close(&format!("{name} case {at} dx"), &got.1, &want.1);
            close(&format!("{name} case {at} dw"), &got.2, &want.2);
            close(&format!("{name} case {at} db"), &got.3, &want.3);
        }
    }
}

#[test]
fn norm_pieces_agree_with_the_oracle() {
    for c in [1, 3, 16, 17, 40] {
        let (x, dz, k, add) = (noise(50 * c, 1), noise(50 * c, 2), noise(3 * c, 3), noise(50 * c, 4));
        let (mut want, mut sums) = (dz.clone(), vec![0.0; 2 * c]);
        Reference.norm_gradient(c, &mut want, &x, &k, Some(&add));
        Reference.channel_sums(c, &x, &mut sums);
        for (name, kernels) in engines() {
            let (mut got, mut got_sums) = (dz.clone(), vec![f64::NAN; 2 * c]);
            kernels.norm_gradient(c, &mut got, &x, &k, Some(&add));
            kernels.channel_sums(c, &x, &mut got_sums);
            close(&format!("{name} dx"), &got, &want);
            close(&format!("{name} sums"), &got_sums, &sums);
        }
    }
}

#[test]
fn results_depend_neither_on_threads_nor_on_the_place_in_the_batch() {
    for g in [shape([9, 9, 7], 21, [3, 3], [1, 1], [1; 4]), shape([6, 9, 16], 32, [3, 3], [1, 1], [1; 4])] {
        independent(g);
    }
}

fn independent(g: ConvShape) {
    let (x, w, dy) = (noise(5 * g.x.len(), 1), noise(g.weights(), 2), noise(5 * g.y.len(), 3));
    let run = |threads: usize| {
        let k = Simd::new(threads);
        let (mut y, mut dz) = (vec![0.0; 5 * g.y.len()], vec![0.0; 5 * g.x.len()]);
        let (mut dw, mut db) = (vec![0.0; w.len()], vec![0.0; g.y.c as usize]);
        k.conv_forward(&g, 5, &x, None, &w, None, None, &mut y, None);
        let dy = OutputGradient { dy: &dy, norm: None };
        k.conv_backward(&g, 5, &x, None, &w, dy, None, Some(&mut dz), &mut dw, &mut db, None);
        (y, dz, dw, db)
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(3));
    let mut alone = vec![0.0; g.y.len()];
    Simd::new(1).conv_forward(&g, 1, &x[3 * g.x.len()..], None, &w, None, None, &mut alone, None);
    assert_eq!(alone, one.0[3 * g.y.len()..4 * g.y.len()]);
}

/// Windows of max pools: as many channels out as in.
fn pools() -> Vec<ConvShape> {
    vec![
        shape([8, 8, 16], 16, [3, 3], [2, 2], [1; 4]),
        shape([7, 9, 5], 5, [3, 3], [2, 2], [1; 4]),
        shape([6, 6, 17], 17, [2, 2], [2, 2], [0; 4]),
        shape([5, 4, 1], 1, [3, 2], [1, 1], [1, 0, 1, 1]),
        shape([1, 1, 3], 3, [3, 3], [1, 1], [1; 4]),
    ]
}

#[test]
fn joins_agree_with_the_oracle() {
    for (c, pixels) in [(1, 7), (3, 50), (16, 700), (17, 33), (64, 5000)] {
        let len = c * pixels;
        let (h, x, dy) = (noise(len, 1), noise(len, 2), noise(len, 3));
        let affine: Vec<Vec<f32>> = (4..8).map(|seed| noise(c, seed)).collect();
        let pre = Prologue { scale: &affine[0], shift: &affine[1], slope: 0.1 };
        let other = Prologue { scale: &affine[2], shift: &affine[3], slope: 1.0 };
        for skip in [None, Some(Skip { x: &x, pre: None }), Some(Skip { x: &x, pre: Some(&other) })] {
            let sums = if skip.is_some_and(|s| s.pre.is_some()) { 4 * c } else { 2 * c };
            let run = |k: &dyn Kernels| {
                let (mut y, mut dz, mut sums) = (vec![f32::NAN; len], dy.clone(), vec![f64::NAN; sums]);
                k.join_forward(c, &h, &pre, skip, &mut y);
                k.join_backward(c, &h, &pre, skip, &mut dz, &mut sums);
                (y, dz, sums)
            };
            let want = run(&Reference);
            let one = run(&Simd::new(1));
            for (name, k) in engines() {
                let got = run(&k);
                close(&format!("{name} y of {c} channels"), &got.0, &want.0);
                close(&format!("{name} dz of {c} channels"), &got.1, &want.1);
                close(&format!("{name} sums of {c} channels"), &got.2, &want.2);
                assert_eq!(got, one, "threads change the result");
            }
        }
    }
}

#[test]
fn max_pools_agree_with_the_oracle() {
    for g in pools() {
        let (n, c) = (3, g.x.c as usize);
        let (x, dy, scale, shift) = (noise(n * g.x.len(), 1), noise(n * g.y.len(), 2), noise(c, 3), noise(c, 4));
        let pre = Prologue { scale: &scale, shift: &shift, slope: 0.0 };
        for pre in [None, Some(&pre)] {
            let run = |k: &dyn Kernels| {
                let (mut y, mut index) = (vec![f32::NAN; n * g.y.len()], vec![7; n * g.y.len()]);
                let mut da = vec![f32::NAN; n * g.x.len()];
                k.max_pool_forward(&g, n, &x, pre, &mut y, &mut index);
                k.max_pool_backward(&g, n, &dy, &index, &mut da);
                (y, index, da)
            };
            let want = run(&Reference);
            for (name, k) in engines() {
                assert_eq!(run(&k), want, "{name}, {g:?}");
            }
        }
    }
}

#[test]
fn of_equal_values_a_max_pool_takes_the_first() {
    let g = shape([2, 2, 1], 1, [2, 2], [1, 1], [0; 4]);
    for k in [&Reference as &dyn Kernels, &Simd::new(1)] {
        for (x, want) in [([1.0, 1.0, 1.0, 1.0], 0), ([0.0, 2.0, 2.0, 1.0], 1), ([-3.0, -4.0, -3.0, -5.0], 0)] {
            let (mut y, mut index) = ([0.0], [9]);
            k.max_pool_forward(&g, 1, &x, None, &mut y, &mut index);
            assert_eq!((y[0], index[0]), (x[want], want as u32));
        }
    }
}
