//! A picture shared by threads has the bits of one on a single thread, however it is cut.

use super::{Cut, End, Pair, PreparedConv, inside};
use crate::kernels::ConvShape;
use crate::kernels::isa::Isa;
use crate::kernels::scalar;
use crate::kernels::simd::Simd;
use crate::kernels::team::Lead;
use crate::kernels::tests::{cases, noise, shape};
use crate::net::{Activation, ConvArgs};
use crate::shape::Shape;
use std::prelude::v1::*;
use std::{format, vec};

/// Beside the common cases: one row, one pixel, fewer rows than threads, last rows of tiles that are cut off, a last block of
/// channels that is not full.
fn pictures() -> Vec<ConvShape> {
    let square = |h, w, c, o, k, s, p| shape([h, w, c], o, [k, k], [s, s], [p; 4]);
    let mut all = cases();
    all.extend([
        square(1, 40, 16, 16, 1, 1, 0),
        square(1, 1, 64, 100, 1, 1, 0),
        square(2, 33, 32, 64, 3, 1, 1),
        square(6, 6, 64, 160, 3, 1, 1),
        square(5, 4, 128, 96, 3, 2, 1),
        square(13, 21, 16, 48, 3, 1, 1),
        shape([3, 8, 8], 16, [3, 3], [2, 1], [2, 1, 2, 1]),
    ]);
    all
}

#[test]
fn a_shared_picture_has_the_bits_of_one_thread() {
    // Jobs by cut: rows, columns.
    let mut cuts = [0; 2];
    for isa in Isa::available() {
        let teams: Vec<_> = (1..=4).map(|threads| Simd::with_isa(isa, threads).expect("available")).collect();
        for (at, g) in pictures().into_iter().enumerate() {
            for depthwise in [false, true] {
                let g = if depthwise { ConvShape { y: Shape { c: g.x.c, ..g.y }, ..g } } else { g };
                let groups = if depthwise { g.x.c as usize } else { 1 };
                let (x, w) = (noise(g.x.len(), 1), noise(g.weights() / groups, 2));
                let bias = noise(g.y.c as usize, 3);
                for (bias, act) in [(None, Activation::Leaky(0.1)), (Some(&bias[..]), Activation::None)] {
                    let conv = PreparedConv::new(&teams[0], g, depthwise, &w);
                    let mut want = vec![f32::NAN; g.y.len()];
                    teams[0].conv_shared(&mut Lead::alone(), &conv, &x, &w, bias, None, act, &mut want);
                    for k in &teams {
                        let mut lead = k.lead_parts(1);
                        match conv.cut(&lead) {
                            Cut::Rows(parts) => cuts[0] += usize::from(parts > 1),
                            Cut::Columns(parts) => cuts[1] += usize::from(parts > 1),
                        }
                        for _ in 0..10 {
                            let mut got = vec![f32::NAN; g.y.len()];
                            k.conv_shared(&mut lead, &conv, &x, &w, bias, None, act, &mut got);
                            let same = got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits());
                            assert!(same, "{} case {at}, {groups} groups, {k:?}", isa.name());
                        }
                    }
                }
            }
        }
    }
    #[cfg(feature = "parallel")]
    assert!(cuts.iter().all(|&n| n > 50), "{cuts:?}");
}

/// Rounding differs with the order of the sums: relative to the largest value of the result.
const TOLERANCE: f32 = 2e-5;

fn close(what: &str, got: &[f32], want: &[f32]) {
    let top = want.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= TOLERANCE * top, "{what}[{i}]: {g} where the oracle has {w}");
    }
}

fn oracle(g: &ConvShape, groups: u32, x: &[f32], w: &[f32], bias: Option<&[f32]>, act: Activation) -> Vec<f32> {
    let mut y = vec![0.0; g.y.len()];
    scalar::conv(&ConvArgs { x: g.x, y: g.y, window: g.window, groups, weight: w, bias, act }, x, &mut y);
    y
}

const ACTIVATIONS: [Activation; 5] =
    [Activation::None, Activation::Relu, Activation::Relu6, Activation::Leaky(0.1), Activation::HardSwish];

/// What is added and activated on the way out, of every way to compute a convolution: among the cases those of `pictures`, more
/// channels than one block, and tiles of 2x2.
#[test]
fn sums_and_activations_agree_with_the_oracle() {
    let square = |h, w, c, o, k, s, p| shape([h, w, c], o, [k, k], [s, s], [p; 4]);
    let mut all = pictures();
    all.extend([square(14, 14, 192, 192, 3, 1, 1), square(7, 7, 48, 200, 1, 1, 0), square(12, 15, 17, 61, 1, 1, 0)]);
    for isa in Isa::available() {
        let k = Simd::with_isa(isa, 1).expect("available");
        for (at, g) in all.iter().enumerate() {
            // Activations in turn: each way meets each of them.
            let act = ACTIVATIONS[at % ACTIVATIONS.len()];
            for depthwise in [false, true] {
                let g = if depthwise { ConvShape { y: Shape { c: g.x.c, ..g.y }, ..*g } } else { *g };
                let groups = if depthwise { g.x.c } else { 1 };
                let (x, w) = (noise(g.x.len(), 1), noise(g.weights() / groups as usize, 2));
                let (bias, add) = (noise(g.y.c as usize, 3), noise(g.y.len(), 4));
                let mut want = oracle(&g, groups, &x, &w, Some(&bias), Activation::None);
                // The same scale for all, so that bounds of 0 and 6 mean something and the tolerance too.
                want.iter_mut().zip(&add).for_each(|(y, a)| *y = act.apply(*y + a));
                let conv = PreparedConv::new(&k, g, depthwise, &w);
                let mut got = vec![f32::NAN; g.y.len()];
                k.conv_shared(&mut Lead::alone(), &conv, &x, &w, Some(&bias), Some(&add), act, &mut got);
                if act == Activation::HardSwish || act == Activation::Relu6 {
                    // Their results are small where sums are large.
                    let top = want.iter().chain(&got).fold(1.0f32, |m, v| m.max(v.abs()));
                    assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() <= 20.0 * TOLERANCE * top), "case {at}");
                } else {
                    close(&format!("{} case {at}, {groups} groups", isa.name()), &got, &want);
                }
            }
        }
    }
}

/// A convolution of single pixels and the depthwise one behind it, as one operation and as two; on teams, bit by bit.
#[test]
fn pairs_agree_with_the_oracle() {
    let first = [
        (9, 7, 5, 40),
        (28, 28, 8, 48),
        (30, 30, 16, 96),
        (7, 7, 20, 130),
        (1, 1, 3, 7),
        (14, 14, 24, 64),
        (60, 50, 3, 33),
    ];
    for (h, w, cin, wide) in first {
        let one = shape([h, w, cin], wide, [1, 1], [1, 1], [0; 4]);
        for (kernel, stride, pad) in
            [([3, 3], [1, 1], [1; 4]), ([3, 3], [2, 2], [1; 4]), ([5, 3], [2, 1], [2, 1, 1, 0])]
        {
            if h + pad[0] + pad[2] < kernel[0] {
                continue;
            }
            let two = shape([h, w, wide], wide, kernel, stride, pad);
            let (x, w1, w2) = (noise(one.x.len(), 1), noise(one.weights(), 2), noise(two.weights() / wide as usize, 3));
            let (b1, b2) = (noise(wide as usize, 4), noise(wide as usize, 5));
            let ends =
                [End { bias: Some(&b1), act: Activation::Relu6 }, End { bias: Some(&b2), act: Activation::Leaky(0.1) }];
            let between = oracle(&one, 1, &x, &w1, ends[0].bias, ends[0].act);
            let want = oracle(&two, wide, &between, &w2, ends[1].bias, ends[1].act);
            for isa in Isa::available() {
                let mut alone = Vec::new();
                for threads in 1..=3 {
                    let k = Simd::with_isa(isa, threads).expect("available");
                    let (a, b) = (PreparedConv::new(&k, one, false, &w1), PreparedConv::new(&k, two, true, &w2));
                    let pair = Pair::new(&a, &b, ends[0].act).expect("single pixels, then channel by channel");
                    let mut got = vec![f32::NAN; two.y.len()];
                    k.pair_shared(&mut k.lead_parts(1), pair, &x, [&w1, &w2], ends, &mut got);
                    close(&format!("{} {h}x{w}x{cin} to {wide}", isa.name()), &got, &want);
                    if threads == 1 {
                        alone.clone_from(&got);
                    }
                    assert!(got.iter().zip(&alone).all(|(a, b)| a.to_bits() == b.to_bits()), "{threads} threads");
                }
            }
        }
    }
}

#[test]
fn rows_of_a_padded_picture() {
    // A picture of 5 rows with 2 rows of zeros above: padded rows 2..7 are its own.
    for (padded, inner, above) in
        [(0..4, 0..2, 2), (0..9, 0..5, 2), (1..3, 0..1, 1), (2..4, 0..2, 0), (5..8, 3..5, 0), (8..9, 5..5, 0)]
    {
        assert_eq!(inside(padded.clone(), 2, 5), (inner, above), "{padded:?}");
    }
}
