//! Winograd's minimal filtering for 3x3 kernels, F(4x4, 3x3) (Lavin and Gray 2016, arXiv 1509.09308): 36 multiplications
//! where the definition has 144.
//!
//! A picture is cut into tiles of 4x4 output pixels. Each tile's 6x6 inputs are transformed (`B^T d B`) channel by channel, so
//! are the weights (`G g G^T`); the convolution is then, for each of the 36 positions, one small matrix product over channels,
//! which [`super::image::correlate`] computes; the results are transformed back (`A^T m A`). The weight gradient goes the same
//! way: `A dy A^T` instead of the weights, outer products, and `G^T du G` at the end.
//!
//! Buffers of transformed values hold 36 *planes*, one for each position, of `[tiles][channels]`.

use super::ConvShape;
use super::image::{Correlation, Exit};
use super::isa::Table;
use super::vector::Vector;
use core::ops::Range;

/// Side of a tile of outputs, of its inputs, and the number of positions.
pub(super) const OUT: usize = 4;
const IN: usize = 6;
pub(super) const PLANES: usize = IN * IN;
/// Tiles times channels (in and out) that one block of tiles should hold: about 300 KB of transformed values.
const BLOCK: usize = 2048;
/// Bytes of transformed weights that a core's cache does not keep, and tiles of a picture that are too few to fetch so many for.
const FAR: usize = 4 << 20;
const FEW: usize = 4;
/// Tiles of 2x2 that are enough to fetch such weights for.
const ENOUGH: usize = 32;
/// Bytes of transformed weights that stay in a core's own cache from one block of tiles to the next. Others come from further away
/// each time: then a block has up to [`MANY`] tiles, whatever their channels.
const NEAR: usize = 1 << 20;
const MANY: usize = 64;
/// Elements between the end of one plane and the start of the next: planes of a round size would share cache sets.
const GAP: usize = 16;

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
    across: usize,
    down: usize,
    /// From one row of pixels to the next, and from one picture to the next.
    row: usize,
    picture: usize,
    /// From one pixel to the next: all channels.
    pixel: usize,
    /// Side of a tile of outputs.
    out: usize,
    /// Channels worked on; tiles have no others.
    c: usize,
    /// Pixels of a picture that exist.
    h: usize,
    w: usize,
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

/// How a convolution of 3x3, stride 1, padding 1 is cut into tiles.
#[derive(Clone, Copy, Debug)]
pub(super) struct Winograd {
    cin: usize,
    cout: usize,
    /// The first output channel; their number is `y.c`.
    first: usize,
    /// Tiles of the padded input, and of the output.
    x: Grid,
    y: Grid,
    /// Tiles in one block.
    block: usize,
    /// Whether blocks of columns may be four vectors wide.
    four: bool,
}

impl Winograd {
    /// A plan in tiles of 4x4, where this way pays: `lanes` is the vectors' width.
    pub(super) fn plan(g: &ConvShape, lanes: usize) -> Option<Self> {
        let plan = Self::tiles_of(g, lanes, OUT)?;
        // Transformed weights are four times as many bytes as weights. Beyond a core's cache they come anew for each block of
        // tiles, and with few tiles to use them on that takes as long as all the multiplications they save: 37 MB for a
        // picture of 512 channels at 7x7.
        let far = plan.weights() * size_of::<f32>() > FAR && plan.x.across * plan.x.down <= FEW;
        (!far).then_some(plan)
    }

    /// A plan for one picture at a time: where weights that were transformed for tiles of 4x4 leave the cache, tiles of 2x2 take less
    /// than half of them; none where even those are used on too few tiles.
    pub(super) fn plan_picture(g: &ConvShape, lanes: usize) -> Option<Self> {
        let plan = Self::tiles_of(g, lanes, OUT)?;
        if plan.weights() * size_of::<f32>() <= FAR {
            return Some(plan);
        }
        let small = Self::tiles_of(g, lanes, 2)?;
        (small.x.across * small.x.down >= ENOUGH).then_some(small)
    }

    fn tiles_of(g: &ConvShape, lanes: usize, out: usize) -> Option<Self> {
        let (cin, cout) = (g.x.c as usize, g.y.c as usize);
        let (h, w) = (g.y.h as usize, g.y.w as usize);
        let fits = g.window.kernel == [3, 3] && g.window.stride == [1, 1] && g.window.pad == [1; 4];
        if !fits || !cin.is_multiple_of(lanes) || !cout.is_multiple_of(lanes) || h.min(w) < OUT {
            return None;
        }
        let (across, down) = (w.div_ceil(out), h.div_ceil(out));
        let row = (out * across + 2) * cin;
        let x = Grid { across, down, row, picture: (out * down + 2) * row, pixel: cin, out, c: cin, h, w };
        let y = Grid { row: w * cout, picture: h * w * cout, pixel: cout, c: cout, ..x };
        let mut plan = Self { cin, cout, first: 0, x, y, block: 0, four: true };
        plan.block = if plan.weights() * size_of::<f32>() <= NEAR {
            (BLOCK / (cin + cout)).max(8)
        } else {
            let tiles = across * down;
            tiles.div_ceil(tiles.div_ceil(MANY))
        };
        Some(plan)
    }

    /// The same plan over weights with blocks of columns of up to four vectors, or without.
    pub(super) const fn in_blocks(self, four: bool) -> Self {
        Self { four, ..self }
    }

    /// Tiles side by side, and rows of them.
    pub(super) fn tiles(&self) -> [usize; 2] {
        [self.x.across, self.x.down]
    }

    /// Side of a tile of outputs.
    pub(super) fn out(&self) -> usize {
        self.x.out
    }

    /// Positions of a tile, each a plane.
    fn planes(&self) -> usize {
        (self.x.out + 2) * (self.x.out + 2)
    }

    /// The plan for some rows of one picture's tiles and some of its output channels, which start at a block of columns. Its input
    /// starts at the first of these rows, and so does its output, with all channels.
    pub(super) fn part(&self, rows: Range<usize>, columns: Range<usize>) -> Self {
        let out = self.x.out;
        let (down, h) = (rows.len(), (self.y.h - out * rows.start).min(out * rows.len()));
        let (first, c) = (columns.start, columns.len());
        Self { first, x: Grid { down, h, ..self.x }, y: Grid { down, h, c, ..self.y }, ..*self }
    }

    /// Padding of the copy of a picture that tiles are read from: rows above, columns left, rows below, columns right.
    pub(super) fn pad(&self) -> [usize; 4] {
        let out = self.x.out;
        [1, 1, out * self.x.down + 1 - self.x.h, out * self.x.across + 1 - self.x.w]
    }

    /// Pictures that fill a block of tiles.
    pub(super) fn pictures(&self) -> usize {
        (self.block / (self.x.across * self.x.down)).max(1)
    }

    /// Elements of the transformed weights, a matrix `[cin][cout]` for each position, in blocks of columns where
    /// [`Self::convolve`] reads it.
    pub(super) fn weights(&self) -> usize {
        self.planes() * self.cin * self.cout
    }

    /// Transforms weights that lie in blocks of columns, `n` elements a kernel cell.
    ///
    /// # Safety
    /// `w` holds 9 cells, `to` [`Self::weights`] elements; `table` is of an instruction set that exists.
    pub(super) unsafe fn filter(&self, table: &Table, n: usize, w: *const f32, to: *mut f32) {
        // SAFETY: the caller's promise; the plan's channels are whole vectors.
        unsafe {
            if self.x.out == OUT { (table.winograd_filter)(n, w, to) } else { (table.winograd_filter_small)(n, w, to) }
        }
    }

    fn plane(&self, c: usize) -> usize {
        self.block * c + GAP
    }

    /// Elements of scratch that [`Self::convolve`] and [`Self::weight_gradient`] take.
    pub(super) fn work(&self) -> usize {
        self.planes() * (self.plane(self.cin) + self.plane(self.cout))
    }

    /// `n` pictures: padded copies `x`, packed and transformed weights `u`, to `y` through `exit`.
    ///
    /// # Safety
    /// `x` holds `n` pictures padded by [`Self::pad`], `u` has [`Self::weights`] elements, `bias` is null or a value a channel,
    /// `work` has [`Self::work`] elements, `y` and what the exit adds take `n` pictures; `table` is of an instruction set that
    /// exists.
    #[allow(clippy::too_many_arguments)]
    pub(super) unsafe fn convolve(
        &self,
        table: &Table,
        n: usize,
        x: *const f32,
        u: *const f32,
        bias: *const f32,
        exit: &Exit,
        work: *mut f32,
        y: *mut f32,
    ) {
        let (from, to, planes) = (self.plane(self.cin), self.plane(self.cout), self.planes());
        let tiles = n * self.x.across * self.x.down;
        let (input, output) = if self.x.out == OUT {
            (table.winograd_input, table.winograd_output)
        } else {
            (table.winograd_input_small, table.winograd_output_small)
        };
        for first in (0..tiles).step_by(self.block) {
            let count = self.block.min(tiles - first);
            let product = Correlation {
                kh: 1,
                klen: self.cin,
                x_row: 0,
                x_step: from,
                x_pix: self.cin,
                cout: self.y.c,
                oh: planes,
                ow: count,
                y_row: to,
                y_pix: self.y.c,
                w_step: self.cin * self.cout,
                four: self.four,
            };
            // SAFETY: tiles are those of `n` pictures; planes hold a block of tiles; the columns of a part start at a block of
            // them; the rest is the caller's promise.
            unsafe {
                let m = work.add(planes * from);
                let bias = if bias.is_null() { bias } else { bias.add(self.first) };
                let u = u.add(self.first * self.cin);
                input(&self.x, [first, count, from], x, work);
                (table.correlate)(&product, work, u, core::ptr::null(), &Exit::PLAIN, m);
                output(&self.y, [first, count, to], m, bias, &exit.at(self.first), y.add(self.first));
            }
        }
    }

    /// Elements from one position to the next in gradients with respect to transformed weights: not a round number.
    pub(super) fn gradient_plane(&self) -> usize {
        self.cin * self.cout + GAP
    }

    /// Elements of the gradients with respect to transformed weights.
    pub(super) fn gradients(&self) -> usize {
        self.planes() * self.gradient_plane()
    }

    /// Adds the gradient with respect to the transformed weights, over `n` pictures, to `du` ([`Self::gradients`]). `dy` points at
    /// the first pixel of the first padded gradient, whose rows and pictures are `dy_row` and `dy_picture` elements apart.
    ///
    /// # Safety
    /// `x` and `work` as for [`Self::convolve`]; whole tiles of `dy` can be read, zeros where there is no pixel.
    pub(super) unsafe fn weight_gradient(
        &self,
        table: &Table,
        n: usize,
        x: *const f32,
        (dy, dy_row, dy_picture): (*const f32, usize, usize),
        work: *mut f32,
        du: *mut f32,
    ) {
        let (from, to) = (self.plane(self.cin), self.plane(self.cout));
        let tiles = n * self.x.across * self.x.down;
        let y = Grid { row: dy_row, picture: dy_picture, ..self.y };
        for first in (0..tiles).step_by(self.block) {
            let count = self.block.min(tiles - first);
            let product = Correlation {
                kh: 1,
                klen: self.cin,
                x_row: 0,
                x_step: 0,
                x_pix: self.cin,
                cout: self.cout,
                oh: 1,
                ow: count,
                y_row: 0,
                y_pix: self.cout,
                w_step: 0,
                four: true,
            };
            // SAFETY: as in `convolve`.
            unsafe {
                let d = work.add(PLANES * from);
                (table.winograd_input)(&self.x, [first, count, from], x, work);
                (table.winograd_gradient)(&y, [first, count, to], dy, d);
                for i in 0..PLANES {
                    let du = du.add(i * self.gradient_plane());
                    (table.outer_product)(&product, work.add(i * from), d.add(i * to), du);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
