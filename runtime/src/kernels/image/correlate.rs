//! The correlation itself: blocks of pixels by blocks of channels, in registers.

use super::{Blocks, Correlation, Exit};
use crate::kernels::vector::Vector;
use core::ptr::null;

/// Bytes of a block of columns that a core's nearest caches keep while all pixels pass by; larger ones go kernel row by kernel
/// row.
const NEAR: usize = 192 << 10;
/// Bytes of weights that a core's own cache does not keep from one picture to the next.
const FAR: usize = 512 << 10;

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
