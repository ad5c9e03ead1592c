//! A picture shared by threads has the bits of one on a single thread, however it is cut.

use super::{Cut, PreparedConv, inside};
use crate::kernels::ConvShape;
use crate::kernels::isa::Isa;
use crate::kernels::simd::Simd;
use crate::kernels::team::Lead;
use crate::kernels::tests::{cases, noise, shape};
use crate::net::Activation;
use crate::shape::Shape;
use std::prelude::v1::*;
use std::vec;

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

#[test]
fn rows_of_a_padded_picture() {
    // A picture of 5 rows with 2 rows of zeros above: padded rows 2..7 are its own.
    for (padded, inner, above) in
        [(0..4, 0..2, 2), (0..9, 0..5, 2), (1..3, 0..1, 1), (2..4, 0..2, 0), (5..8, 3..5, 0), (8..9, 5..5, 0)]
    {
        assert_eq!(inside(padded.clone(), 2, 5), (inner, above), "{padded:?}");
    }
}
