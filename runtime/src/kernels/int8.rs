//! The 8-bit kernels: one picture, NHWC, integers only. This is the oracle: the fast ones give the same bits, and targets
//! without one run it. `spec/artifact.md` tells the arithmetic.
//!
//! Nothing here can panic: slices that are shorter than their arguments tell cut the work short.

use crate::net::int8::{ConvArgs, Finish, MeanArgs, Rescale, mean_shift};
use crate::net::{Window, cells_on_map};
use crate::shape::Shape;
use crate::slices::{rows, rows_mut};

/// `v * multiplier / 2^(32 + shift)`, to the nearest integer, halves up. At most 2^29 in magnitude for a multiplier of at least
/// 0 and a shift of at least 1.
///
/// The upper word of the product is rounded alone: the bits below it cannot change the answer, as the half that is added lies
/// in the upper word.
#[inline(always)]
pub const fn rescale(v: i32, multiplier: i32, shift: i32) -> i32 {
    let upper = ((v as i64 * multiplier as i64) >> 32) as i32;
    // Equal to dividing by 2^shift and rounding; neither step overflows for a shift within 1..=30.
    upper.wrapping_add(1i32.wrapping_shl(shift as u32 - 1)).wrapping_shr(shift as u32)
}

impl Finish {
    /// The 8-bit value of a sum: the slope below zero, the factor, the zero point, the clamp.
    #[inline(always)]
    pub fn apply(&self, sum: i32, multiplier: i32, shift: i32) -> i8 {
        let sum = if sum < 0 && self.slope != Self::NO_SLOPE {
            ((sum as i64 * self.slope as i32 as i64 + (1 << 15)) >> 16) as i32
        } else {
            sum
        };
        let q = rescale(sum, multiplier, shift).wrapping_add(self.zero.into());
        q.max(self.low.into()).min(self.high.into()) as i8
    }

    /// No slope, no clamp.
    pub(crate) const fn plain(zero: i8) -> Self {
        Self { slope: Self::NO_SLOPE, zero, low: -128, high: 127 }
    }
}

/// Number of pixel `(row, column)`, `None` on padding.
#[inline(always)]
fn pixel(shape: Shape, window: &Window, at: [usize; 2], tap: [usize; 2]) -> Option<usize> {
    let row = (at[0] * window.stride[0] as usize + tap[0]).checked_sub(window.pad[0] as usize)?;
    let column = (at[1] * window.stride[1] as usize + tap[1]).checked_sub(window.pad[1] as usize)?;
    (row < shape.h as usize && column < shape.w as usize).then(|| row * shape.w as usize + column)
}

/// Sum of products.
#[inline(always)]
fn dot(sum: i32, x: &[i8], w: &[i8]) -> i32 {
    x.iter().zip(w).fold(sum, |sum, (&x, &w)| sum.wrapping_add(i32::from(x) * i32::from(w)))
}

/// A convolution. `x`: `[h][w][cin]`, `y`: `[h'][w'][cout]`.
pub fn conv(args: &ConvArgs<'_>, x: &[i8], y: &mut [i8]) {
    let (cin, cout, groups) = (args.x.c as usize, (args.y.c as usize).max(1), (args.groups as usize).max(1));
    // Channels of one group, in and out.
    let (group_in, group_out) = ((cin / groups).max(1), (cout / groups).max(1));
    let [high, wide] = args.window.kernel.map(|side| (side as usize).max(1));
    let width = (args.y.w as usize).max(1);
    for (number, y) in rows_mut(y, cout).enumerate() {
        let at = [number / width, number % width];
        let weights = rows(args.weight, high * wide * group_in);
        for (o, ((y, weights), &[bias, multiplier, shift])) in y.iter_mut().zip(weights).zip(args.channels).enumerate()
        {
            let from = o / group_out.max(1) * group_in;
            let mut sum = bias;
            for (tap, w) in rows(weights, group_in).enumerate() {
                sum = match pixel(args.x, &args.window, at, [tap / wide.max(1), tap % wide.max(1)]) {
                    Some(pixel) => dot(sum, x.get(pixel * cin + from..).unwrap_or(&[]), w),
                    None => w.iter().fold(sum, |sum, &w| sum.wrapping_add(i32::from(args.pad) * i32::from(w))),
                };
            }
            *y = args.finish.apply(sum, multiplier, shift);
        }
    }
}

/// A weight by channel. `x` and `y`: `[pixels][c]`.
pub fn affine(weight: &[i8], channels: &[[i32; 3]], finish: &Finish, x: &[i8], y: &mut [i8]) {
    let c = weight.len().max(1);
    for (x, y) in rows(x, c).zip(rows_mut(y, c)) {
        for (((y, &x), &w), &[bias, multiplier, shift]) in y.iter_mut().zip(x).zip(weight).zip(channels) {
            *y = finish.apply(bias.wrapping_add(i32::from(x) * i32::from(w)), multiplier, shift);
        }
    }
}

/// `a * factors[0] + b * factors[1] + bias`, equal lengths.
pub fn add(factors: [i32; 2], bias: i32, by: Rescale, finish: &Finish, a: &[i8], b: &[i8], y: &mut [i8]) {
    for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
        let sum = bias
            .wrapping_add(i32::from(a).wrapping_mul(factors[0]))
            .wrapping_add(i32::from(b).wrapping_mul(factors[1]));
        *y = finish.apply(sum, by.multiplier, by.shift.into());
    }
}

/// `(a - zeros[0]) * (b - zeros[1]) * 2^12`. `a` and `y`: `[pixels][c]`; `b`: the same, or `[c]`, each pixel anew.
pub fn mul(c: usize, zeros: [i8; 2], by: Rescale, finish: &Finish, a: &[i8], b: &[i8], y: &mut [i8]) {
    let c = c.max(1);
    for ((a, y), b) in rows(a, c).zip(rows_mut(y, c)).zip(rows(b, c).cycle()) {
        for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
            let product = (i32::from(a) - i32::from(zeros[0])) * (i32::from(b) - i32::from(zeros[1]));
            *y = finish.apply(product << crate::net::int8::MUL_SHIFT, by.multiplier, by.shift.into());
        }
    }
}

/// `a` and `b` side by side. `a`: `[pixels][c[0]]`, `b`: `[pixels][c[1]]`.
pub fn concat(c: [usize; 2], zeros: [i8; 2], by: [Rescale; 2], zero: i8, a: &[i8], b: &[i8], y: &mut [i8]) {
    let finish = Finish::plain(zero);
    let move_over = |x: &[i8], y: &mut [i8], zero: i8, by: Rescale| {
        for (y, &x) in y.iter_mut().zip(x) {
            let v = (i32::from(x) - i32::from(zero)) << crate::net::int8::CONCAT_SHIFT;
            *y = finish.apply(v, by.multiplier, by.shift.into());
        }
    };
    let pixels = rows(a, c[0]).zip(rows(b, c[1]));
    for (y, (a, b)) in rows_mut(y, c[0] + c[1]).zip(pixels) {
        if let Some((left, right)) = y.split_at_mut_checked(c[0]) {
            move_over(a, left, zeros[0], by[0]);
            move_over(b, right, zeros[1], by[1]);
        }
    }
}

/// The largest value in each window; padding never wins. `x`: `[h][w][c]`, `y`: `[h'][w'][c]`.
pub fn max_pool(shape: Shape, to: Shape, window: &Window, x: &[i8], y: &mut [i8]) {
    let (c, width) = ((shape.c as usize).max(1), (to.w as usize).max(1));
    for (number, y) in rows_mut(y, c).enumerate() {
        y.fill(i8::MIN);
        let cells = |axis: usize, at: usize, side: u32| {
            cells_on_map(at, window.kernel[axis], window.stride[axis], window.pad[axis], side)
        };
        let (rows, columns) = (cells(0, number / width, shape.h), cells(1, number % width, shape.w));
        for ky in rows {
            for kx in columns.clone() {
                let Some(pixel) = pixel(shape, window, [number / width, number % width], [ky, kx]) else { continue };
                let x = x.get(pixel * c..).unwrap_or(&[]);
                y.iter_mut().zip(x).for_each(|(y, &x)| *y = (*y).max(x));
            }
        }
    }
}

/// The mean of each window, by `mean`. `x`: `[h][w][c]`, `y`: `[h'][w'][c]`.
pub fn avg_pool(args: &MeanArgs, count_pad: bool, x: &[i8], y: &mut [i8]) {
    let (c, width) = ((args.x.c as usize).max(1), (args.y.w as usize).max(1));
    let [rows, columns] = args.window.kernel;
    let area = rows * columns;
    for (number, y) in rows_mut(y, c).enumerate() {
        let cells = || {
            let taps = (0..rows as usize).flat_map(|ky| (0..columns as usize).map(move |kx| [ky, kx]));
            taps.filter_map(|tap| pixel(args.x, &args.window, [number / width, number % width], tap))
        };
        let count = if count_pad { area } else { cells().count() as u32 };
        for (channel, y) in y.iter_mut().enumerate() {
            let of = cells().filter_map(|pixel| x.get(pixel * c + channel));
            *y = mean(args, area, count, of);
        }
    }
}

/// The mean over all pixels, by `mean`. `x`: `[pixels][c]`, `y`: `[c]`.
pub fn global_avg_pool(args: &MeanArgs, x: &[i8], y: &mut [i8]) {
    let area = args.x.h * args.x.w;
    for (channel, y) in y.iter_mut().enumerate() {
        *y = mean(args, area, area, x.iter().skip(channel).step_by((args.x.c as usize).max(1)));
    }
}

/// The sum of `x - zero`, shifted left by [`mean_shift`] of the `area`, divided by `count` to the nearest integer (halves up),
/// rescaled.
#[inline(always)]
fn mean<'x>(args: &MeanArgs, area: u32, count: u32, x: impl Iterator<Item = &'x i8>) -> i8 {
    let sum = x.fold(0i32, |sum, &x| sum.wrapping_add(i32::from(x) - i32::from(args.zeros[0])));
    let count = count.clamp(1, 1 << 16) as i32;
    let mean = sum.wrapping_shl(mean_shift(area)).wrapping_add(count / 2).div_euclid(count);
    Finish::plain(args.zeros[1]).apply(mean, args.rescale.multiplier, args.rescale.shift.into())
}

/// table[x + 128], equal lengths; `table`: `[256]`.
pub fn table(table: &[i8], x: &[i8], y: &mut [i8]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = table.get((i32::from(x) + 128) as usize).copied().unwrap_or(0);
    }
}
