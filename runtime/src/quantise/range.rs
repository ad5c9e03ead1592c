//! Which real numbers 8 bits should reach: the range with the least squared error on what was seen.

use crate::net::int8::Quant;
use std::vec;
use std::vec::Vec;

/// Bins between the extremes.
const BINS: usize = 2048;
/// How many shorter ranges are tried on each side of zero.
const TRIES: usize = 128;

/// The distribution of numbers: their extremes (and 0), and, once [`Histogram::open`], counts in bins between them.
#[derive(Clone, Debug, Default)]
pub(super) struct Histogram {
    low: f32,
    high: f32,
    broken: bool,
    bins: Vec<u64>,
}

impl Histogram {
    /// Takes notice of numbers: of their extremes before [`Histogram::open`], of their distribution after.
    pub(super) fn note(&mut self, x: &[f32]) {
        if self.bins.is_empty() {
            for &x in x {
                self.low = self.low.min(x);
                self.high = self.high.max(x);
                self.broken |= !x.is_finite();
            }
        } else {
            let (low, per) = (f64::from(self.low), BINS as f64 / self.width());
            for &x in x {
                let bin = ((f64::from(x) - low) * per) as usize;
                self.bins[bin.min(BINS - 1)] += 1;
            }
        }
    }

    /// Adds what another one, opened as this one, took notice of.
    pub(super) fn merge(&mut self, other: &Self) {
        self.low = self.low.min(other.low);
        self.high = self.high.max(other.high);
        self.broken |= other.broken;
        self.bins.iter_mut().zip(&other.bins).for_each(|(a, b)| *a += b);
    }

    /// From extremes to counts.
    pub(super) fn open(&mut self) {
        self.bins = vec![0; BINS];
    }

    /// Whether all numbers were finite, and so is the way from the lowest to the highest.
    pub(super) fn is_finite(&self) -> bool {
        !self.broken && (self.high - self.low).is_finite()
    }

    /// The way from the lowest to the highest number, above 0.
    fn width(&self) -> f64 {
        (f64::from(self.high) - f64::from(self.low)).max(f64::MIN_POSITIVE)
    }

    /// The range, 0 within it, that 255 steps describe with the least squared error: numbers inside are off by up to half a
    /// step, evenly spread, numbers outside by their distance.
    pub(super) fn range(&self) -> (f64, f64) {
        let (low, high) = (f64::from(self.low), f64::from(self.high));
        let step = self.width() / BINS as f64;
        // Count, sum and sum of squares of the bins before each.
        let mut before = vec![[0.0f64; 3]];
        for (i, &n) in self.bins.iter().enumerate() {
            let (n, x) = (n as f64, low + (i as f64 + 0.5) * step);
            let [a, b, c] = before[i];
            before.push([a + n, b + n * x, c + n * x * x]);
        }
        let all = before[self.bins.len()];
        let at = |x: f64| before[(((x - low) / step).round().max(0.0) as usize).min(self.bins.len())];
        let off = |[n, sum, squares]: [f64; 3], edge: f64| squares - 2.0 * edge * sum + edge * edge * n;
        let (mut best, mut least) = ((low, high), f64::INFINITY);
        let shorter = |end: f64| (0..TRIES).map(move |i| end * (TRIES - i) as f64 / TRIES as f64);
        for from in shorter(low).take(if low < 0.0 { TRIES } else { 1 }) {
            for to in shorter(high).take(if high > 0.0 { TRIES } else { 1 }) {
                let (under, upto) = (at(from), at(to));
                let over = [0, 1, 2].map(|k| all[k] - upto[k]);
                let inside = (upto[0] - under[0]).max(0.0);
                let noise = ((to - from) / 255.0).powi(2) / 12.0;
                let error = off(under, from) + off(over, to) + inside * noise;
                if error < least {
                    (best, least) = ((from, to), error);
                }
            }
        }
        best
    }
}

/// The parameters that reach from `low` (at most 0) to `high` (at least 0) in 255 steps of at least `least`.
pub(super) fn covering((low, high): (f64, f64), least: f64) -> Quant {
    let scale = ((high - low) / 255.0).max(least);
    let scale = if scale > f64::from(f32::MIN_POSITIVE) { scale as f32 } else { 1.0 };
    let zero = (-128.0 - low / f64::from(scale)).round().clamp(-128.0, 127.0) as i8;
    Quant { scale, zero }
}
