//! The convolutions among the fast kernels, one picture at a time, generic over [`Vector`]. Layout is NHWC throughout.
//!
//! A convolution becomes a *correlation* over a padded copy of its input: `kw * cin` input values of one kernel row are
//! contiguous, so each output pixel is a dot product of `kh` contiguous runs with the rows of the weights, vectorised over
//! output channels. A block of pixels times up to four vectors of channels stays in registers. The gradient with
//! respect to the data is a correlation too, one for each phase of the stride; the gradient with respect to the weights
//! is an outer product of the same contiguous runs with the output gradient ([`outer_product`]). Depthwise convolutions, maxima of
//! windows and linear layers have kernels of their own (`channelwise`), vectorised over channels that go straight through.
//!
//! A correlation reads its weights by blocks of columns ([`Blocks`]): out of a wide matrix each row of a block would come
//! from another page, and where `cout` is a round number all rows from a few sets of the cache.

mod channelwise;
mod correlate;
mod outer;

pub(crate) use channelwise::{Taps, depthwise, largest, linear};
pub(crate) use correlate::correlate;
pub(crate) use outer::outer_product;

use super::vector::{Vector, load};
use crate::net::Activation;
use core::ptr::null;

/// A correlation: `y[oy][ox][o] = bias[o] + sum over ky, k of x[oy*x_step + ky*x_row + ox*x_pix + k] * w[oy][ky*klen + k][o]`.
/// All strides count `f32` elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Correlation {
    /// Kernel rows.
    pub(crate) kh: usize,
    /// Contiguous input values a kernel row covers.
    pub(crate) klen: usize,
    /// From one kernel row to the next, in the input.
    pub(crate) x_row: usize,
    /// From one output row to the next, in the input.
    pub(crate) x_step: usize,
    /// From one output pixel to the next, in the input.
    pub(crate) x_pix: usize,
    /// Output channels.
    pub(crate) cout: usize,
    /// Output rows and columns.
    pub(crate) oh: usize,
    pub(crate) ow: usize,
    /// From one output row, pixel to the next, in the output.
    pub(crate) y_row: usize,
    pub(crate) y_pix: usize,
    /// From one output row to the next, in the weights: 0 in a convolution; each row its own matrix elsewhere. Not for gradients.
    pub(crate) w_step: usize,
    /// [`Blocks::four`] of the weights. Not for gradients.
    pub(crate) four: bool,
}

/// What happens to a result on its way out: something is added, then an activation: `min(high, max(low, v))`, or, where the slope
/// is not 1, `v > 0 ? v : slope * v`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exit {
    /// Laid out as the output; null: nothing.
    pub(crate) add: *const f32,
    pub(crate) slope: f32,
    pub(crate) low: f32,
    pub(crate) high: f32,
}

impl Exit {
    /// Results as they are.
    pub(crate) const PLAIN: Self = Self { add: null(), slope: 1.0, low: f32::NEG_INFINITY, high: f32::INFINITY };

    /// With this activation and nothing added; `None` for one that is not a bend or a bound.
    pub(crate) const fn of(act: Activation) -> Option<Self> {
        match act {
            Activation::None => Some(Self::PLAIN),
            Activation::Relu => Some(Self { low: 0.0, ..Self::PLAIN }),
            Activation::Relu6 => Some(Self { low: 0.0, high: 6.0, ..Self::PLAIN }),
            Activation::Leaky(slope) => Some(Self { slope, ..Self::PLAIN }),
            _ => None,
        }
    }

    /// The same for results that start `n` elements further on.
    pub(crate) fn at(&self, n: usize) -> Self {
        Self { add: if self.add.is_null() { self.add } else { self.add.wrapping_add(n) }, ..*self }
    }

    fn is_plain(&self) -> bool {
        self.add.is_null() && self.slope == 1.0 && self.low == f32::NEG_INFINITY && self.high == f32::INFINITY
    }

    /// One vector of results, which lies `n` elements behind the first.
    ///
    /// # Safety
    /// `add` is null or holds what is read; the instruction set of `V` exists.
    #[inline(always)]
    pub(super) unsafe fn apply<V: Vector, const PART: bool>(&self, mut v: V, n: usize, part: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe {
            if !self.add.is_null() {
                v = v.add(load::<V, PART>(self.add.add(n), part));
            }
            if self.slope == 1.0 {
                V::splat(self.high).min(V::splat(self.low).max(v))
            } else {
                v.where_positive(v, v.mul(V::splat(self.slope)))
            }
        }
    }
}

/// Vectors of output channels that go together.
const WIDE: usize = 3;
/// How the columns of weights lie in blocks for [`correlate`]: a block is three vectors wide, so that registers hold it for as many
/// pixels as there are. Of the last ones, `3 n + 1` vectors, four go together, or two and two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocks {
    /// Values of a vector.
    pub(crate) lanes: usize,
    /// Whether there are blocks of four vectors: faster, but nothing that threads could share.
    pub(crate) four: bool,
}

impl Blocks {
    /// Columns of the block that starts at column `o` of `cout`; the last vector may be partial.
    #[inline(always)]
    fn width(self, cout: usize, o: usize) -> usize {
        let left = cout - o;
        let vectors = match left.div_ceil(self.lanes) {
            few @ 0..=WIDE => few,
            4 if self.four => 4,
            4 => 2,
            _ => WIDE,
        };
        left.min(vectors * self.lanes)
    }

    /// Blocks in a matrix of `cout` columns.
    pub(super) fn count(self, cout: usize) -> usize {
        let vectors = cout.div_ceil(self.lanes);
        if self.four && vectors > 1 && vectors % WIDE == 1 { vectors / WIDE } else { vectors.div_ceil(WIDE) }
    }

    /// The first column of block `number`, of `cout` columns; `cout` behind the last.
    pub(super) fn start(self, cout: usize, number: usize) -> usize {
        let vectors = cout.div_ceil(self.lanes);
        // Of three vectors each, in front of others.
        let threes = match vectors % WIDE {
            1 if vectors > 1 => vectors / WIDE - 1,
            _ => vectors / WIDE,
        };
        let start = match number.checked_sub(threes + 1) {
            None => WIDE * number,
            Some(_) if self.four => vectors,
            Some(behind) => WIDE * threes + 2 * (behind + 1),
        };
        cout.min(start * self.lanes)
    }

    /// Whether a matrix of `cout` columns is one block: [`Self::copy`] would not change it.
    pub(super) fn is_one(self, cout: usize) -> bool {
        self.width(cout, 0) == cout
    }

    /// Copies matrices, each `[rows][cout]`, block by block of columns, each `[rows][columns of the block]`: the block that starts at
    /// column `o` starts at element `o * rows`.
    pub(super) fn copy(self, rows: usize, cout: usize, from: &[f32], to: &mut [f32]) {
        for (from, to) in from.chunks_exact(rows * cout).zip(to.chunks_exact_mut(rows * cout)) {
            let mut o = 0;
            while o < cout {
                let width = self.width(cout, o);
                for (from, to) in from.chunks_exact(cout).zip(to[o * rows..].chunks_exact_mut(width)) {
                    to.copy_from_slice(&from[o..o + width]);
                }
                o += width;
            }
        }
    }
}
