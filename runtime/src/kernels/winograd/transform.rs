//! The transforms of tiles: of inputs, weights and output gradients to planes, and of products back, channel by channel.

use super::{IN, OUT};
use crate::kernels::image::Exit;
use crate::kernels::vector::Vector;

/// One linear map of a row or column of a tile.
trait Line<V, const I: usize, const O: usize> {
    unsafe fn apply(x: [V; I]) -> [V; O];
}

/// `k * x + y`
#[inline(always)]
unsafe fn fma<V: Vector>(k: f32, x: V, y: V) -> V {
    // SAFETY: the caller vouches for the instruction set.
    unsafe { V::splat(k).mul_add(x, y) }
}

/// `B^T`: inputs.
struct Input;
impl<V: Vector> Line<V, 6, 6> for Input {
    #[inline(always)]
    unsafe fn apply([d0, d1, d2, d3, d4, d5]: [V; 6]) -> [V; 6] {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let (a, b) = (fma(-4.0, d2, d4), fma(-4.0, d1, d3));
            let (c, e) = (d4.sub(d2), d3.sub(d1));
            [
                fma(4.0, d0, fma(-5.0, d2, d4)),
                a.add(b),
                a.sub(b),
                fma(2.0, e, c),
                fma(-2.0, e, c),
                fma(4.0, d1, fma(-5.0, d3, d5)),
            ]
        }
    }
}

/// `A^T`: results.
struct Output;
impl<V: Vector> Line<V, 6, 4> for Output {
    #[inline(always)]
    unsafe fn apply([m0, m1, m2, m3, m4, m5]: [V; 6]) -> [V; 4] {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let (p, q, r, s) = (m1.add(m2), m1.sub(m2), m3.add(m4), m3.sub(m4));
            [m0.add(p).add(r), fma(2.0, s, q), fma(4.0, r, p), fma(8.0, s, q).add(m5)]
        }
    }
}

/// `A`: gradients with respect to results.
struct Gradient;
impl<V: Vector> Line<V, 4, 6> for Gradient {
    #[inline(always)]
    unsafe fn apply([y0, y1, y2, y3]: [V; 4]) -> [V; 6] {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let (e, o) = (y0.add(y2), y1.add(y3));
            let (f, p) = (fma(4.0, y2, y0), fma(8.0, y3, y1.add(y1)));
            [y0, e.add(o), e.sub(o), f.add(p), f.sub(p), y3]
        }
    }
}

/// `G`: weights.
struct Filter;
impl<V: Vector> Line<V, 3, 6> for Filter {
    #[inline(always)]
    unsafe fn apply([g0, g1, g2]: [V; 3]) -> [V; 6] {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let (e, o) = (g0.add(g2).mul(V::splat(-1.0 / 6.0)), g1.mul(V::splat(1.0 / 6.0)));
            let (f, p) = (fma(1.0 / 6.0, g2, g0.mul(V::splat(1.0 / 24.0))), g1.mul(V::splat(1.0 / 12.0)));
            [g0.mul(V::splat(0.25)), e.sub(o), e.add(o), f.add(p), f.sub(p), g2]
        }
    }
}

/// `G^T`: gradients with respect to transformed weights.
struct FilterGradient;
impl<V: Vector> Line<V, 6, 3> for FilterGradient {
    #[inline(always)]
    unsafe fn apply([u0, u1, u2, u3, u4, u5]: [V; 6]) -> [V; 3] {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let (p, q, r, s) = (u1.add(u2), u2.sub(u1), u3.add(u4), u3.sub(u4));
            [
                fma(0.25, u0, fma(-1.0 / 6.0, p, r.mul(V::splat(1.0 / 24.0)))),
                fma(1.0 / 6.0, q, s.mul(V::splat(1.0 / 12.0))),
                fma(1.0 / 6.0, r.sub(p), u5),
            ]
        }
    }
}

/// The same three maps of F(2x2, 3x3), section 4.1 there.
struct InputSmall;
impl<V: Vector> Line<V, 4, 4> for InputSmall {
    #[inline(always)]
    unsafe fn apply([d0, d1, d2, d3]: [V; 4]) -> [V; 4] {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { [d0.sub(d2), d1.add(d2), d2.sub(d1), d1.sub(d3)] }
    }
}

struct OutputSmall;
impl<V: Vector> Line<V, 4, 2> for OutputSmall {
    #[inline(always)]
    unsafe fn apply([m0, m1, m2, m3]: [V; 4]) -> [V; 2] {
        // SAFETY: the caller vouches for the instruction set.
        unsafe { [m0.add(m1).add(m2), m1.sub(m2).sub(m3)] }
    }
}

struct FilterSmall;
impl<V: Vector> Line<V, 3, 4> for FilterSmall {
    #[inline(always)]
    unsafe fn apply([g0, g1, g2]: [V; 3]) -> [V; 4] {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let (e, o) = (g0.add(g2).mul(V::splat(0.5)), g1.mul(V::splat(0.5)));
            [g0, e.add(o), e.sub(o), g2]
        }
    }
}

/// `L x L^T`
#[inline(always)]
unsafe fn both<V: Vector, L: Line<V, I, O>, const I: usize, const O: usize>(x: &[[V; I]; I]) -> [[V; O]; O] {
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        let mut half = [[V::splat(0.0); I]; O];
        for j in 0..I {
            let mut column = [V::splat(0.0); I];
            for i in 0..I {
                column[i] = x[i][j];
            }
            let column = L::apply(column);
            for o in 0..O {
                half[o][j] = column[o];
            }
        }
        let mut y = [[V::splat(0.0); O]; O];
        for (to, from) in y.iter_mut().zip(half) {
            *to = L::apply(from);
        }
        y
    }
}

/// Where tiles lie in a run of pictures, one behind the other. Strides count elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    /// Tiles side by side, and rows of them, in one picture.
    pub(super) across: usize,
    pub(super) down: usize,
    /// From one row of pixels to the next, and from one picture to the next.
    pub(super) row: usize,
    pub(super) picture: usize,
    /// From one pixel to the next: all channels.
    pub(super) pixel: usize,
    /// Side of a tile of outputs.
    pub(super) out: usize,
    /// Channels worked on; tiles have no others.
    pub(super) c: usize,
    /// Pixels of a picture that exist.
    pub(super) h: usize,
    pub(super) w: usize,
}

impl Grid {
    /// The first pixel of a tile, and how many of its rows and columns exist.
    #[inline(always)]
    fn place(&self, tile: usize) -> (usize, usize, usize) {
        let (line, tx) = (tile / self.across, tile % self.across);
        let (picture, ty) = (line / self.down, line % self.down);
        let at = picture * self.picture + self.out * ty * self.row + self.out * tx * self.pixel;
        (at, (self.h - self.out * ty).min(self.out), (self.w - self.out * tx).min(self.out))
    }
}

/// Squares of `I x I` pixels to planes.
///
/// # Safety
/// The squares of the tiles `first..first + count` lie inside `x` whole; `to` holds `N x N` planes of `plane` elements; the channels
/// are whole vectors; the instruction set exists.
#[inline(always)]
unsafe fn to_planes<V: Vector, L: Line<V, I, N>, const I: usize, const N: usize>(
    g: &Grid,
    [first, count, plane]: [usize; 3],
    x: *const f32,
    to: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        for t in 0..count {
            let (at, _, _) = g.place(first + t);
            for c in (0..g.c).step_by(V::LANES) {
                let mut d = [[V::splat(0.0); I]; I];
                for (i, line) in d.iter_mut().enumerate() {
                    for (j, d) in line.iter_mut().enumerate() {
                        *d = V::load(x.add(at + i * g.row + j * g.pixel + c));
                    }
                }
                let v = both::<V, L, I, N>(&d);
                for (i, v) in v.as_flattened().iter().enumerate() {
                    v.store(to.add(i * plane + t * g.c + c));
                }
            }
        }
    }
}

/// Transforms the inputs of `count` tiles, from a padded picture on: `x` points at the first tile's first input.
///
/// # Safety
/// 6x6 pixels from each tile's first on lie inside `x`; `to` holds 36 planes; the channels are whole vectors; the
/// instruction set exists.
#[inline(always)]
pub(crate) unsafe fn input<V: Vector>(g: &Grid, part: [usize; 3], x: *const f32, to: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe { to_planes::<V, Input, IN, IN>(g, part, x, to) }
}

/// Transforms the output gradients of `count` tiles; pixels that do not exist are zeros in `x`.
///
/// # Safety
/// As for [`input`], of 4x4 pixels.
#[inline(always)]
pub(crate) unsafe fn gradient<V: Vector>(g: &Grid, part: [usize; 3], x: *const f32, to: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe { to_planes::<V, Gradient, OUT, IN>(g, part, x, to) }
}

/// [`input`] of F(2x2, 3x3).
///
/// # Safety
/// As for [`input`], of 4x4 pixels and 16 planes.
#[inline(always)]
pub(crate) unsafe fn input_small<V: Vector>(g: &Grid, part: [usize; 3], x: *const f32, to: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe { to_planes::<V, InputSmall, 4, 4>(g, part, x, to) }
}

/// Planes to tiles of `O x O` results.
///
/// # Safety
/// As for [`output`], of `N x N` planes.
#[inline(always)]
unsafe fn from_planes<V: Vector, L: Line<V, N, O>, const N: usize, const O: usize>(
    g: &Grid,
    [first, count, plane]: [usize; 3],
    m: *const f32,
    bias: *const f32,
    exit: &Exit,
    y: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        for t in 0..count {
            let (at, rows, columns) = g.place(first + t);
            for c in (0..g.c).step_by(V::LANES) {
                let b = if bias.is_null() { V::splat(0.0) } else { V::load(bias.add(c)) };
                let mut d = [[V::splat(0.0); N]; N];
                for (i, d) in d.as_flattened_mut().iter_mut().enumerate() {
                    *d = V::load(m.add(i * plane + t * g.c + c));
                }
                let v = both::<V, L, N, O>(&d);
                for (i, line) in v.iter().enumerate().take(rows) {
                    for (j, v) in line.iter().enumerate().take(columns) {
                        let to = at + i * g.row + j * g.pixel + c;
                        exit.apply::<V, false>(v.add(b), to, 0).store(y.add(to));
                    }
                }
            }
        }
    }
}

/// Transforms `count` tiles of results back, adds `bias` (null: nothing), and writes the pixels that exist through `exit`.
///
/// # Safety
/// `m` holds 36 planes, `bias` a value a channel, `y` and what the exit adds the pictures; the channels are whole vectors; the
/// instruction set exists.
#[inline(always)]
pub(crate) unsafe fn output<V: Vector>(
    g: &Grid,
    part: [usize; 3],
    m: *const f32,
    bias: *const f32,
    exit: &Exit,
    y: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe { from_planes::<V, Output, IN, OUT>(g, part, m, bias, exit, y) }
}

/// [`output`] of F(2x2, 3x3).
///
/// # Safety
/// As for [`output`], of 16 planes.
#[inline(always)]
pub(crate) unsafe fn output_small<V: Vector>(
    g: &Grid,
    part: [usize; 3],
    m: *const f32,
    bias: *const f32,
    exit: &Exit,
    y: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe { from_planes::<V, OutputSmall, 4, 2>(g, part, m, bias, exit, y) }
}

/// Transforms weights: `n` elements a kernel cell, `[9][n]` to `[N * N][n]`.
///
/// # Safety
/// Lengths as told, `n` whole vectors; the instruction set exists.
#[inline(always)]
unsafe fn filter_by<V: Vector, L: Line<V, 3, N>, const N: usize>(n: usize, w: *const f32, to: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        for i in (0..n).step_by(V::LANES) {
            let mut g = [[V::splat(0.0); 3]; 3];
            for (k, g) in g.as_flattened_mut().iter_mut().enumerate() {
                *g = V::load(w.add(k * n + i));
            }
            for (k, u) in both::<V, L, 3, N>(&g).as_flattened().iter().enumerate() {
                u.store(to.add(k * n + i));
            }
        }
    }
}

/// Transforms weights, `[9][n]` to `[36][n]`.
///
/// # Safety
/// Lengths as told, `n` whole vectors; the instruction set exists.
#[inline(always)]
pub(crate) unsafe fn filter<V: Vector>(n: usize, w: *const f32, to: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe { filter_by::<V, Filter, IN>(n, w, to) }
}

/// [`filter`] of F(2x2, 3x3), `[9][n]` to `[16][n]`.
///
/// # Safety
/// As for [`filter`].
#[inline(always)]
pub(crate) unsafe fn filter_small<V: Vector>(n: usize, w: *const f32, to: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe { filter_by::<V, FilterSmall, 4>(n, w, to) }
}

/// The gradient with respect to weights from that with respect to transformed ones: 36 planes of `plane` elements, `n` of which are
/// used, to `[9][n]`.
///
/// # Safety
/// As for [`filter`].
#[inline(always)]
pub(crate) unsafe fn filter_gradient<V: Vector>(n: usize, plane: usize, du: *const f32, dw: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        for i in (0..n).step_by(V::LANES) {
            let mut u = [[V::splat(0.0); IN]; IN];
            for (k, u) in u.as_flattened_mut().iter_mut().enumerate() {
                *u = V::load(du.add(k * plane + i));
            }
            for (k, g) in both::<V, FilterGradient, IN, 3>(&u).as_flattened().iter().enumerate() {
                g.store(dw.add(k * n + i));
            }
        }
    }
}
