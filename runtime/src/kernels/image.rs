//! The convolutions among the fast kernels, one picture at a time, generic over [`Vector`]. Layout is NHWC throughout.
//!
//! A convolution becomes a *correlation* over a padded copy of its input: `kw * cin` input values of one kernel row are
//! contiguous, so each output pixel is a dot product of `kh` contiguous runs with the rows of the weights, vectorised over
//! output channels. A block of pixels times one or two vectors of channels stays in registers. The gradient with
//! respect to the data is a correlation too, one for each phase of the stride; the gradient with respect to the weights
//! is an outer product of the same contiguous runs with the output gradient. A depthwise convolution has a kernel of its own,
//! vectorised over the channels that go straight through.
//!
//! A correlation reads its weights by blocks of columns ([`Blocks`]): out of a wide matrix each row of a block would come
//! from another page, and where `cout` is a round number all rows from a few sets of the cache.

use super::vector::{Vector, by_channel, load, store};
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
/// Bytes of a block of columns that a core's nearest caches keep while all pixels pass by; larger ones go kernel row by kernel
/// row.
const NEAR: usize = 192 << 10;
/// Bytes of weights that a core's own cache does not keep from one picture to the next.
const FAR: usize = 512 << 10;

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

/// One block of columns, over some kernel rows.
#[derive(Clone, Copy)]
struct Column {
    w: *const f32,
    /// Null: zeros.
    bias: *const f32,
    /// Lanes of the last vector, where it is partial.
    part: usize,
    /// The sums of kernel rows before these lie in the output.
    goes_on: bool,
    /// None: the sums of kernel rows behind these are to come.
    exit: Option<Exit>,
    /// The weights that come next, and the end of them: fetched while these are at work, a line for each value of the input.
    ahead: [*const f32; 2],
}

/// Elements of a cache line.
const LINE: usize = 16;

/// Vector `n` of `N`; the last of them is partial where `PART` is.
#[inline(always)]
unsafe fn load_of<V: Vector, const N: usize, const PART: bool>(n: usize, p: *const f32, part: usize) -> V {
    // SAFETY: the caller's promise.
    unsafe { if PART && n + 1 == N { V::load_part(p, part) } else { V::load(p) } }
}

/// `P` pixels times `N` vectors of output channels, held in registers.
#[inline(always)]
unsafe fn tile<V: Vector, const X: usize, const P: usize, const N: usize, const PART: bool>(
    c: &Correlation,
    x: *const f32,
    k: &Column,
    y: *mut f32,
) {
    let x_pix = if X == 0 { c.x_pix } else { X };
    // SAFETY: the caller of `correlate` vouches for every element the strides of `c` reach; of a partial vector only the first
    // `part` lanes are touched.
    unsafe {
        let width = if PART { (N - 1) * V::LANES + k.part } else { N * V::LANES };
        let (mut ahead, step) = if k.ahead[0] < k.ahead[1] { (k.ahead[0], LINE) } else { (k.w, 0) };
        let mut acc = [[V::splat(0.0); N]; P];
        if k.goes_on {
            for (p, row) in acc.iter_mut().enumerate() {
                for (n, v) in row.iter_mut().enumerate() {
                    *v = load_of::<V, N, PART>(n, y.add(p * c.y_pix + n * V::LANES), k.part);
                }
            }
        } else if !k.bias.is_null() {
            let mut start = [V::splat(0.0); N];
            for (n, s) in start.iter_mut().enumerate() {
                *s = load_of::<V, N, PART>(n, k.bias.add(n * V::LANES), k.part);
            }
            acc = [start; P];
        }
        for ky in 0..c.kh {
            let mut xr = x.add(ky * c.x_row);
            let mut wr = k.w.add(ky * c.klen * width);
            for _ in 0..c.klen {
                let mut wv = [V::splat(0.0); N];
                for (n, v) in wv.iter_mut().enumerate() {
                    *v = load_of::<V, N, PART>(n, wr.add(n * V::LANES), k.part);
                }
                for (p, row) in acc.iter_mut().enumerate() {
                    let xv = V::splat(*xr.add(p * x_pix));
                    for n in 0..N {
                        row[n] = xv.mul_add(wv[n], row[n]);
                    }
                }
                if N >= 3 {
                    V::fetch(ahead);
                    ahead = ahead.wrapping_add(step);
                }
                xr = xr.add(1);
                wr = wr.add(width);
            }
        }
        if let Some(exit) = k.exit.filter(|e| !e.is_plain()) {
            for (p, row) in acc.iter_mut().enumerate() {
                for (n, v) in row.iter_mut().enumerate() {
                    let at = p * c.y_pix + n * V::LANES;
                    *v = if PART && n + 1 == N {
                        exit.apply::<V, true>(*v, at, k.part)
                    } else {
                        exit.apply::<V, false>(*v, at, 0)
                    };
                }
            }
        }
        for (p, row) in acc.iter().enumerate() {
            for (n, v) in row.iter().enumerate() {
                let to = y.add(p * c.y_pix + n * V::LANES);
                if PART && n + 1 == N { v.store_part(to, k.part) } else { v.store(to) }
            }
        }
    }
}

/// One output row for one block of columns: blocks of `P` pixels, then what is left, by a block that overlaps the one before, where
/// nothing is added to what that has written.
#[inline(always)]
unsafe fn row<V: Vector, const X: usize, const P: usize, const N: usize, const PART: bool>(
    c: &Correlation,
    x: *const f32,
    k: &mut Column,
    y: *mut f32,
) {
    let again = !k.goes_on && k.exit.is_some();
    let mut ox = 0;
    // SAFETY: `ox` stays within the row; the rest is the caller's promise.
    unsafe {
        macro_rules! tile {
            ($pixels:expr, $at:expr) => {{
                let (at, x, y) = ($at, x.add($at * c.x_pix), y.add($at * c.y_pix));
                let exit = k.exit.map(|e| e.at(at * c.y_pix));
                tile::<V, X, { $pixels }, N, PART>(c, x, &Column { exit, ..*k }, y);
                k.ahead[0] = k.ahead[0].wrapping_add(c.kh * c.klen * LINE);
                ox = at + $pixels;
            }};
        }
        while ox + P <= c.ow {
            tile!(P, ox);
        }
        while ox < c.ow {
            let left = c.ow - ox;
            if P > 8 && left > 4 && (left >= 8 || again && c.ow >= 8) {
                tile!(8, ox.min(c.ow - 8));
            } else if P > 4 && P <= 8 && left > 4 && again && c.ow >= P {
                tile!(P, c.ow - P);
            } else if P >= 4 && (left >= 4 || again && c.ow >= 4) {
                tile!(4, ox.min(c.ow - 4));
            } else {
                tile!(1, ox);
            }
        }
    }
}

/// All output rows for one block of columns.
#[inline(always)]
unsafe fn column<V: Vector, const X: usize, const P: usize, const N: usize, const PART: bool>(
    c: &Correlation,
    x: *const f32,
    k: &Column,
    y: *mut f32,
) {
    // SAFETY: the caller's promise; kernel rows one at a time are all kernel rows, in the same order.
    unsafe {
        let width = if PART { (N - 1) * V::LANES + k.part } else { N * V::LANES };
        let rows = c.kh * c.klen * width;
        let apart = N > 1 && c.kh > 1 && rows * size_of::<f32>() > NEAR && c.oh * c.ow > P;
        let (times, one) = if apart { (c.kh, Correlation { kh: 1, ..*c }) } else { (1, *c) };
        let matrices = if c.w_step > 0 { c.oh } else { 1 };
        let far = N >= 3 && c.kh * c.klen * c.cout * matrices * size_of::<f32>() > FAR;
        for ky in 0..times {
            let (x, w) = (x.add(ky * c.x_row), k.w.add(ky * c.klen * width));
            let (goes_on, exit) = (ky > 0, k.exit.filter(|_| ky + 1 == times));
            let mut part = Column { w, goes_on, exit, ..*k };
            for oy in 0..c.oh {
                part.w = w.wrapping_add(oy * c.w_step);
                if far && (oy == 0 || c.w_step > 0) {
                    // While the first pixels pass by, these weights themselves come.
                    let next = part.w.wrapping_add(if c.w_step > 0 { c.w_step } else { rows / times });
                    part.ahead = [next.wrapping_sub(one.kh * c.klen * LINE), next.wrapping_add(rows / times)];
                }
                part.exit = exit.map(|e| e.at(oy * c.y_row));
                row::<V, X, P, N, PART>(&one, x.add(oy * c.x_step), &mut part, y.add(oy * c.y_row));
            }
        }
    }
}

/// The whole correlation of one picture. `P1` pixels go with one vector of channels, `P2` with two, and so on.
///
/// # Safety
/// `x`, `w` (`[kh * klen][cout]` in [`Blocks`]), `bias` (null or `[cout]`), `exit` and `y` are valid for everything `c`
/// reaches; `y` does not overlap the others; the instruction set of `V` exists.
#[inline(always)]
pub(crate) unsafe fn correlate<V: Vector, const P1: usize, const P2: usize, const P3: usize, const P4: usize>(
    c: &Correlation,
    x: *const f32,
    w: *const f32,
    bias: *const f32,
    exit: &Exit,
    y: *mut f32,
) {
    let (rows, blocks) = (c.kh * c.klen, Blocks { lanes: V::LANES, four: c.four });
    let mut o = 0;
    while o < c.cout {
        let width = blocks.width(c.cout, o);
        let k = Column {
            w: w.wrapping_add(o * rows),
            bias: if bias.is_null() { bias } else { bias.wrapping_add(o) },
            part: width % V::LANES,
            goes_on: false,
            exit: Some(exit.at(o)),
            ahead: [null(); 2],
        };
        // SAFETY: `o` plus the channels of a block stays within `cout`; the rest is the caller's promise.
        unsafe {
            let y = y.add(o);
            match (width.div_ceil(V::LANES), k.part > 0) {
                (4, false) => column::<V, 0, P4, 4, false>(c, x, &k, y),
                (4, true) => column::<V, 0, P4, 4, true>(c, x, &k, y),
                // 7 pixels fill rows of 7, 14 and 28.
                (3, false) if P3 == 8 && c.ow.is_multiple_of(7) && !c.ow.is_multiple_of(8) => {
                    column::<V, 0, 7, 3, false>(c, x, &k, y);
                }
                (3, false) => column::<V, 0, P3, 3, false>(c, x, &k, y),
                (3, true) => column::<V, 0, P3, 3, true>(c, x, &k, y),
                (2, false) => column::<V, 0, P2, 2, false>(c, x, &k, y),
                (2, true) => column::<V, 0, P2, 2, true>(c, x, &k, y),
                (_, true) => column::<V, 0, P2, 1, true>(c, x, &k, y),
                // A step between pixels that is known while compiling becomes part of the load instructions; kept in registers,
                // the addresses of many pixels would spill.
                (_, false) => match c.x_pix {
                    3 => column::<V, 3, P1, 1, false>(c, x, &k, y),
                    6 => column::<V, 6, P1, 1, false>(c, x, &k, y),
                    16 => column::<V, 16, P1, 1, false>(c, x, &k, y),
                    32 => column::<V, 32, P1, 1, false>(c, x, &k, y),
                    64 => column::<V, 64, P1, 1, false>(c, x, &k, y),
                    _ => column::<V, 0, P2, 1, false>(c, x, &k, y),
                },
            }
        }
        o += width;
    }
}

/// `R` input values of a kernel row times `N` vectors of output channels, summed over all pixels of one picture.
#[inline(always)]
unsafe fn outer<V: Vector, const R: usize, const N: usize, const PART: bool>(
    c: &Correlation,
    x: *const f32,
    dy: *const f32,
    dw: *mut f32,
    part: usize,
) {
    // SAFETY: as for `tile`; `dw` has `R` rows of `cout` from here on.
    unsafe {
        let mut acc = [[V::splat(0.0); N]; R];
        for oy in 0..c.oh {
            let mut xr = x.add(oy * c.x_step);
            let mut yr = dy.add(oy * c.y_row);
            for _ in 0..c.ow {
                let mut g = [V::splat(0.0); N];
                for (n, v) in g.iter_mut().enumerate() {
                    *v = load::<V, PART>(yr.add(n * V::LANES), part);
                }
                for (r, row) in acc.iter_mut().enumerate() {
                    let xv = V::splat(*xr.add(r));
                    for n in 0..N {
                        row[n] = xv.mul_add(g[n], row[n]);
                    }
                }
                xr = xr.add(c.x_pix);
                yr = yr.add(c.y_pix);
            }
        }
        for (r, row) in acc.iter().enumerate() {
            for (n, v) in row.iter().enumerate() {
                let to = dw.add(r * c.cout + n * V::LANES);
                store::<V, PART>(v.add(load::<V, PART>(to, part)), to, part);
            }
        }
    }
}

/// One column of channels of the weight gradient: all rows of all kernel rows.
#[inline(always)]
unsafe fn outer_column<V: Vector, const R: usize, const N: usize, const PART: bool>(
    c: &Correlation,
    x: *const f32,
    dy: *const f32,
    dw: *mut f32,
    part: usize,
) {
    // SAFETY: `k` stays within `klen`; the rest is the caller's promise.
    unsafe {
        for ky in 0..c.kh {
            let x = x.add(ky * c.x_row);
            let dw = dw.add(ky * c.klen * c.cout);
            let mut k = 0;
            while k + R <= c.klen {
                outer::<V, R, N, PART>(c, x.add(k), dy, dw.add(k * c.cout), part);
                k += R;
            }
            if R > 8 && k + 8 <= c.klen {
                outer::<V, 8, N, PART>(c, x.add(k), dy, dw.add(k * c.cout), part);
                k += 8;
            }
            if R > 4 && k + 4 <= c.klen {
                outer::<V, 4, N, PART>(c, x.add(k), dy, dw.add(k * c.cout), part);
                k += 4;
            }
            while k < c.klen {
                outer::<V, 1, N, PART>(c, x.add(k), dy, dw.add(k * c.cout), part);
                k += 1;
            }
        }
    }
}

/// Adds one picture's weight gradient to `dw` (`[kh * klen][cout]`): `dw[ky*klen + k][o] += sum over pixels of
/// x[...] * dy[...]`, with the strides of `c` (`y_*` for `dy`).
///
/// # Safety
/// As for [`correlate`], with `dy` read and `dw` written.
#[inline(always)]
pub(crate) unsafe fn outer_product<V: Vector, const P1: usize, const P2: usize>(
    c: &Correlation,
    x: *const f32,
    dy: *const f32,
    dw: *mut f32,
) {
    let mut o = 0;
    // SAFETY: `o` plus the channels of a block stays within `cout`; the rest is the caller's promise.
    unsafe {
        while o + 2 * V::LANES <= c.cout {
            outer_column::<V, P2, 2, false>(c, x, dy.add(o), dw.add(o), 0);
            o += 2 * V::LANES;
        }
        while o + V::LANES <= c.cout {
            outer_column::<V, P1, 1, false>(c, x, dy.add(o), dw.add(o), 0);
            o += V::LANES;
        }
        if o < c.cout {
            outer_column::<V, P1, 1, true>(c, x, dy.add(o), dw.add(o), c.cout - o);
        }
    }
}

/// Steps between the taps of a window that goes channel by channel. They count elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taps {
    /// From one kernel column to the next, in the input.
    pub(crate) x_col: usize,
    /// From one kernel row, column to the next, in the weights.
    pub(crate) w_row: usize,
    pub(crate) w_col: usize,
}

/// Depthwise correlation of one picture: `y[oy][ox][ch] = bias[ch] + sum over ky, kx of x[...][ch] * w[ky][kx][ch]`, with
/// the strides of `c`, where `klen` counts kernel columns and `cout` channels (`x_pix` is the step between output pixels).
///
/// # Safety
/// As for [`correlate`], with `w` as it is.
#[inline(always)]
pub(crate) unsafe fn depthwise<V: Vector>(
    c: &Correlation,
    t: &Taps,
    x: *const f32,
    w: *const f32,
    bias: *const f32,
    exit: &Exit,
    y: *mut f32,
) {
    // SAFETY: the caller's promise; blocks of pixels stay within the row.
    unsafe {
        for oy in 0..c.oh {
            let mut ox = 0;
            while ox < c.ow {
                let (xr, to) = (x.add(oy * c.x_step + ox * c.x_pix), oy * c.y_row + ox * c.y_pix);
                ox += match c.ow - ox {
                    8.. => pixels::<V, 8>(c, t, xr, w, bias, &exit.at(to), y.add(to)),
                    7 => pixels::<V, 7>(c, t, xr, w, bias, &exit.at(to), y.add(to)),
                    4.. => pixels::<V, 4>(c, t, xr, w, bias, &exit.at(to), y.add(to)),
                    _ => pixels::<V, 1>(c, t, xr, w, bias, &exit.at(to), y.add(to)),
                };
            }
        }
    }
}

/// `P` pixels side by side of [`depthwise`], all channels: each weight is loaded once. Returns `P`.
#[inline(always)]
unsafe fn pixels<V: Vector, const P: usize>(
    c: &Correlation,
    t: &Taps,
    x: *const f32,
    w: *const f32,
    bias: *const f32,
    exit: &Exit,
    y: *mut f32,
) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        by_channel!(V, c.cout, |i, PART, k| {
            let mut acc = [if bias.is_null() { V::splat(0.0) } else { load::<V, PART>(bias.add(i), k) }; P];
            for ky in 0..c.kh {
                for kx in 0..c.klen {
                    let from = x.add(ky * c.x_row + kx * t.x_col + i);
                    let wv = load::<V, PART>(w.add(ky * t.w_row + kx * t.w_col + i), k);
                    for (p, acc) in acc.iter_mut().enumerate() {
                        *acc = load::<V, PART>(from.add(p * c.x_pix), k).mul_add(wv, *acc);
                    }
                }
            }
            for (p, acc) in acc.into_iter().enumerate() {
                let at = p * c.y_pix + i;
                store::<V, PART>(exit.apply::<V, PART>(acc, at, k), y.add(at), k);
            }
        });
    }
    P
}

/// The largest value in each window, channel by channel, with the strides of `c` as in [`depthwise`], `x_col` elements between kernel
/// columns.
///
/// # Safety
/// As for [`depthwise`].
#[inline(always)]
pub(crate) unsafe fn largest<V: Vector>(c: &Correlation, x_col: usize, x: *const f32, y: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        for oy in 0..c.oh {
            for ox in 0..c.ow {
                let (xr, to) = (x.add(oy * c.x_step + ox * c.x_pix), y.add(oy * c.y_row + ox * c.y_pix));
                by_channel!(V, c.cout, |i, PART, k| {
                    let mut most = V::splat(f32::NEG_INFINITY);
                    for ky in 0..c.kh {
                        for kx in 0..c.klen {
                            most = load::<V, PART>(xr.add(ky * c.x_row + kx * x_col + i), k).max(most);
                        }
                    }
                    store::<V, PART>(most, to.add(i), k);
                });
            }
        }
    }
}

/// `y[o] += sum over i of x[i] * w[i][o]` for `columns` columns of a matrix of `n` rows, `w_row` elements apart, then the exit: `y`
/// holds the bias. It waits for the weights, which are read in the order in which they lie, a few rows side by side.
///
/// # Safety
/// As for [`correlate`], with `w` as it is.
#[inline(always)]
pub(crate) unsafe fn linear<V: Vector>(
    n: usize,
    columns: usize,
    x: *const f32,
    w: *const f32,
    w_row: usize,
    exit: &Exit,
    y: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut i = 0;
        while i < n {
            let count = if n - i >= ROWS { ROWS } else { 1 };
            let last = i + count == n;
            let (x, w) = (x.add(i), w.add(i * w_row));
            by_channel!(V, columns, |o, PART, k| {
                let mut acc = load::<V, PART>(y.add(o), k);
                if count == ROWS {
                    for r in 0..ROWS {
                        acc = V::splat(*x.add(r)).mul_add(load::<V, PART>(w.add(r * w_row + o), k), acc);
                    }
                } else {
                    acc = V::splat(*x).mul_add(load::<V, PART>(w.add(o), k), acc);
                }
                if last {
                    acc = exit.apply::<V, PART>(acc, o, k);
                }
                store::<V, PART>(acc, y.add(o), k);
            });
            i += count;
        }
    }
}

/// Rows of a linear layer's weights that are read side by side.
const ROWS: usize = 4;
