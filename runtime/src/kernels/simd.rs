//! The training kernels with vectors and threads.
//!
//! A batch is cut into parts of whole pictures; the cut depends on the batch size alone, and partial sums are added in the
//! order of the parts, so results do not depend on the number of threads. Within a part each picture's input is copied once into
//! a padded buffer (the prologue applied on the way), where every kernel then reads without bounds to check.

use super::image::Correlation;
use super::isa::{Isa, Table, table};
use super::simd_join;
use super::{ConvShape, Kernels, OutputGradient, Prologue, Skip};
use crate::net::{Activation, Window};
use crate::shape::Shape;
use core::cell::RefCell;
use core::ptr::{null, null_mut};
use std::prelude::v1::*;
use std::vec;

/// Most parts a batch is cut into.
pub(super) const PARTS: usize = 16;
/// Most elements all parts' partial weight gradients may hold together.
const PARTIAL_WEIGHTS: usize = 16 << 20;

/// The fast kernels: an instruction set and a number of threads.
#[derive(Clone)]
pub struct Simd {
    isa: Isa,
    table: &'static Table,
    #[cfg(feature = "parallel")]
    pool: Option<std::sync::Arc<rayon::ThreadPool>>,
}

impl core::fmt::Debug for Simd {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Simd").field("isa", &self.isa).field("threads", &self.threads()).finish()
    }
}

/// A heap buffer that starts on a cache line.
pub(crate) struct Aligned {
    store: Vec<f32>,
    skip: usize,
    len: usize,
}

impl Aligned {
    const fn new() -> Self {
        Self { store: Vec::new(), skip: 0, len: 0 }
    }

    fn zeroed(len: usize) -> Self {
        let mut a = Self::new();
        a.grow(len);
        a
    }

    /// At least `len` elements; contents are kept only if nothing grows.
    fn grow(&mut self, len: usize) {
        if self.len < len {
            self.store = vec![0.0; len + 16];
            self.skip = self.store.as_ptr().align_offset(64).min(16);
            self.len = len;
        }
    }

    fn get(&mut self) -> &mut [f32] {
        &mut self.store[self.skip..self.skip + self.len]
    }
}

std::thread_local! {
    static SCRATCH: RefCell<[Aligned; 2]> = const { RefCell::new([Aligned::new(), Aligned::new()]) };
}

/// Two scratch buffers of this thread, at least `a` and `b` long.
fn scratch<R>(a: usize, b: usize, f: impl FnOnce(&mut [f32], &mut [f32]) -> R) -> R {
    SCRATCH.with_borrow_mut(|[x, y]| {
        x.grow(a);
        y.grow(b);
        f(&mut x.get()[..a], &mut y.get()[..b])
    })
}

fn ptr(x: Option<&[f32]>) -> *const f32 {
    x.map_or(null(), <[f32]>::as_ptr)
}

/// Padding of a picture: rows above, columns left, rows below, columns right.
type Pad = [usize; 4];

fn padded_len(s: &Shape, pad: Pad) -> usize {
    (s.h as usize + pad[0] + pad[2]) * (s.w as usize + pad[1] + pad[3]) * s.c as usize
}

fn window_pad(w: &Window) -> Pad {
    w.pad.map(|p| p as usize)
}

/// Zeroes the border of a padded picture and hands each interior row to `fill(row number, row)`.
fn pad_rows(s: &Shape, pad: Pad, to: &mut [f32], mut fill: impl FnMut(usize, &mut [f32])) {
    let (h, w, c) = (s.h as usize, s.w as usize, s.c as usize);
    let row = (w + pad[1] + pad[3]) * c;
    to[..pad[0] * row].fill(0.0);
    to[(pad[0] + h) * row..(pad[0] + h + pad[2]) * row].fill(0.0);
    for (y, r) in to[pad[0] * row..(pad[0] + h) * row].chunks_exact_mut(row).enumerate() {
        r[..pad[1] * c].fill(0.0);
        r[(pad[1] + w) * c..].fill(0.0);
        fill(y, &mut r[pad[1] * c..(pad[1] + w) * c]);
    }
}

/// The correlation that a convolution is over its padded input.
fn forward_correlation(g: &ConvShape) -> Correlation {
    let pad = window_pad(&g.window);
    let (cin, cout) = (g.x.c as usize, g.y.c as usize);
    let x_row = (g.x.w as usize + pad[1] + pad[3]) * cin;
    Correlation {
        kh: g.window.kernel[0] as usize,
        klen: g.window.kernel[1] as usize * cin,
        x_row,
        x_step: g.window.stride[0] as usize * x_row,
        x_pix: g.window.stride[1] as usize * cin,
        cout,
        oh: g.y.h as usize,
        ow: g.y.w as usize,
        y_row: g.y.w as usize * cout,
        y_pix: cout,
    }
}

/// One phase of the stride, along one axis, of a data gradient: input positions `first, first + s, ...` (`count` of them) see
/// kernel cells `cell, cell + s, ...` (`taps` of them).
#[derive(Clone, Copy, Default)]
struct Phase {
    cell: usize,
    taps: usize,
    first: usize,
    count: usize,
    /// Output position `q` of the first input position.
    q: usize,
}

/// The phases along one axis, and how many output positions they reach before the first and behind the last.
fn phases(len: usize, out: usize, k: usize, s: usize, p: usize) -> (Vec<Phase>, usize, usize) {
    let (mut all, mut before, mut behind) = (Vec::new(), 0, 0);
    for r in 0..s {
        let taps = if r < k { (k - r).div_ceil(s) } else { 0 };
        let q = if p > r { (p - r).div_ceil(s) } else { 0 };
        let first = s * q + r - p;
        if taps == 0 || first >= len {
            continue;
        }
        let count = (len - 1 - first) / s + 1;
        before = before.max((taps - 1).saturating_sub(q));
        behind = behind.max((q + count).saturating_sub(out));
        all.push(Phase { cell: r, taps, first, count, q });
    }
    (all, before, behind)
}

/// The data gradient of a convolution as correlations over a padded copy of the output gradient.
struct Transposed {
    /// One correlation a phase: where it starts in the padded gradient, in the transposed weights, in the result.
    parts: Vec<(Correlation, usize, usize, usize)>,
    pad: Pad,
    weights: Aligned,
    /// Some input positions see no output at all: zero them first.
    holes: bool,
}

impl Transposed {
    fn new(g: &ConvShape, w: &[f32]) -> Self {
        let (cin, cout) = (g.x.c as usize, g.y.c as usize);
        let [kh, kw] = g.window.kernel.map(|k| k as usize);
        let [sh, sw] = g.window.stride.map(|s| s as usize);
        let (rows, top, bottom) = phases(g.x.h as usize, g.y.h as usize, kh, sh, g.window.pad[0] as usize);
        let (columns, left, right) = phases(g.x.w as usize, g.y.w as usize, kw, sw, g.window.pad[1] as usize);
        let row = (g.y.w as usize + left + right) * cout;
        let mut weights = Aligned::zeroed(kh * kw * cin * cout);
        let (mut parts, mut at) = (Vec::new(), 0);
        for r in &rows {
            for c in &columns {
                let start = (r.q + 1 + top - r.taps) * row + (c.q + 1 + left - c.taps) * cout;
                let corr = Correlation {
                    kh: r.taps,
                    klen: c.taps * cout,
                    x_row: row,
                    x_step: row,
                    x_pix: cout,
                    cout: cin,
                    oh: r.count,
                    ow: c.count,
                    y_row: sh * g.x.w as usize * cin,
                    y_pix: sw * cin,
                };
                parts.push((corr, start, at, (r.first * g.x.w as usize + c.first) * cin));
                let to = weights.get();
                for ty in 0..r.taps {
                    for tx in 0..c.taps {
                        let (ky, kx) = (r.cell + sh * (r.taps - 1 - ty), c.cell + sw * (c.taps - 1 - tx));
                        let from = &w[(ky * kw + kx) * cin * cout..][..cin * cout];
                        for o in 0..cout {
                            for i in 0..cin {
                                to[at + o * cin + i] = from[i * cout + o];
                            }
                        }
                        at += cin * cout;
                    }
                }
            }
        }
        let holes = rows.len() < sh.min(g.x.h as usize) || columns.len() < sw.min(g.x.w as usize);
        Self { parts, pad: [top, left, bottom, right], weights, holes }
    }

    /// Where the gradient itself starts in its padded copy, and the copy's row length.
    fn interior(&self, g: &ConvShape) -> (usize, usize) {
        let row = (g.y.w as usize + self.pad[1] + self.pad[3]) * g.y.c as usize;
        (self.pad[0] * row + self.pad[1] * g.y.c as usize, row)
    }
}

fn add_f64(to: &mut [f64], from: &[f32]) {
    for (t, &f) in to.iter_mut().zip(from) {
        *t += f64::from(f);
    }
}

/// Sums equal-length partial results in order.
pub(super) fn reduce<T: Copy + core::ops::AddAssign>(parts: &[T], to: &mut [T]) {
    let len = to.len();
    to.copy_from_slice(&parts[..len]);
    for part in parts[len..].chunks_exact(len) {
        for (t, &p) in to.iter_mut().zip(part) {
            *t += p;
        }
    }
}

impl Simd {
    /// The best instruction set of this processor, on `threads` threads (0: one for each core).
    pub fn new(threads: usize) -> Self {
        Self::build(Isa::detect(), threads)
    }

    /// A chosen instruction set; `None` where this processor does not have it.
    pub fn with_isa(isa: Isa, threads: usize) -> Option<Self> {
        Isa::available().any(|i| i == isa).then(|| Self::build(isa, threads))
    }

    fn build(isa: Isa, threads: usize) -> Self {
        #[cfg(not(feature = "parallel"))]
        let _ = threads;
        #[cfg(feature = "parallel")]
        let threads = if threads == 0 { std::thread::available_parallelism().map_or(1, |n| n.get()) } else { threads };
        Self {
            isa,
            table: table(isa),
            // A pool that cannot be started leaves the work to the calling thread.
            #[cfg(feature = "parallel")]
            pool: (threads > 1)
                .then(|| rayon::ThreadPoolBuilder::new().num_threads(threads).build().ok())
                .flatten()
                .map(std::sync::Arc::new),
        }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The number of threads in use.
    pub fn threads(&self) -> usize {
        #[cfg(feature = "parallel")]
        return self.pool.as_ref().map_or(1, |p| p.current_num_threads());
        #[cfg(not(feature = "parallel"))]
        1
    }

    /// Runs `f` on every item, spread over the threads.
    pub fn for_each<T: Send>(&self, items: Vec<T>, f: impl Fn(T) + Send + Sync) {
        #[cfg(feature = "parallel")]
        if let Some(pool) = &self.pool {
            use rayon::prelude::*;
            pool.install(|| items.into_par_iter().with_max_len(1).for_each(&f));
            return;
        }
        items.into_iter().for_each(f);
    }

    /// One picture's convolution, `groups` 1 or depthwise, on the calling thread: `y = conv(x) + bias`.
    ///
    /// `w` as in [`crate::net::Op::Conv`]. Slices must have the lengths of `g`; shorter ones panic.
    pub fn conv_picture(
        &self,
        g: &ConvShape,
        depthwise: bool,
        x: &[f32],
        w: &[f32],
        bias: Option<&[f32]>,
        y: &mut [f32],
    ) {
        let pad = window_pad(&g.window);
        let (x, y) = (&x[..g.x.len()], &mut y[..g.y.len()]);
        let mut c = forward_correlation(g);
        if depthwise {
            c.klen = g.window.kernel[1] as usize;
            assert!(g.x.c == g.y.c && w.len() == c.kh * c.klen * c.cout, "weights of another shape");
        } else {
            assert_eq!(w.len(), g.weights(), "weights of another shape");
        }
        assert!(bias.is_none_or(|b| b.len() == c.cout), "bias of another length");
        let kernel = if depthwise { self.table.depthwise } else { self.table.correlate };
        if pad == [0; 4] {
            // SAFETY: without padding the windows lie inside `x`, as `g` is consistent; lengths were checked above.
            unsafe { kernel(&c, x.as_ptr(), w.as_ptr(), ptr(bias), y.as_mut_ptr()) }
            return;
        }
        scratch(padded_len(&g.x, pad), 0, |to, _| {
            let row = g.x.w as usize * g.x.c as usize;
            pad_rows(&g.x, pad, to, |r, to| to.copy_from_slice(&x[r * row..][..row]));
            // SAFETY: every window lies inside the padded copy; lengths were checked above.
            unsafe { kernel(&c, to.as_ptr(), w.as_ptr(), ptr(bias), y.as_mut_ptr()) }
        });
    }

    /// `to = act(x * scale + shift)` by channel, on the calling thread, where `act` is none, ReLU or leaky; false (and nothing
    /// done) for any other.
    pub fn affine_picture(&self, x: &[f32], scale: &[f32], shift: &[f32], act: Activation, to: &mut [f32]) -> bool {
        let slope = match act {
            Activation::None => 1.0,
            Activation::Relu => 0.0,
            Activation::Leaky(s) => s,
            _ => return false,
        };
        let c = scale.len();
        assert!(shift.len() == c && to.len() == x.len() && x.len().is_multiple_of(c), "lengths differ");
        // SAFETY: lengths were checked; `to` is exclusive.
        unsafe {
            (self.table.affine)(x.len() / c, c, x.as_ptr(), scale.as_ptr(), shift.as_ptr(), slope, to.as_mut_ptr())
        }
        true
    }

    /// Copies one picture into a padded buffer through the prologue.
    fn enter(&self, s: &Shape, pad: Pad, x: &[f32], pre: Option<&Prologue<'_>>, to: &mut [f32]) {
        let (w, c) = (s.w as usize, s.c as usize);
        pad_rows(s, pad, to, |r, to| {
            let x = &x[r * w * c..][..w * c];
            match pre {
                None => to.copy_from_slice(x),
                // SAFETY: `x` and `to` hold one row, the prologue's slices one value a channel (asserted by callers).
                Some(p) => unsafe {
                    (self.table.affine)(w, c, x.as_ptr(), p.scale.as_ptr(), p.shift.as_ptr(), p.slope, to.as_mut_ptr());
                },
            }
        });
    }

    /// Cuts a batch into parts: pictures in each.
    pub(super) fn chunk(n: usize, weights: usize) -> usize {
        let parts = PARTS.min(PARTIAL_WEIGHTS / weights.max(1)).max(2);
        n.div_ceil(parts).max(1)
    }
}

pub(super) fn check_prologue(pre: Option<&Prologue<'_>>, c: usize) {
    assert!(pre.is_none_or(|p| p.scale.len() == c && p.shift.len() == c), "prologue of another length");
}

impl Kernels for Simd {
    fn conv_forward(
        &self,
        g: &ConvShape,
        n: usize,
        x: &[f32],
        pre: Option<&Prologue<'_>>,
        w: &[f32],
        bias: Option<&[f32]>,
        add: Option<&[f32]>,
        y: &mut [f32],
        sums: Option<&mut [f64]>,
    ) {
        let (cin, cout, xl, yl) = (g.x.c as usize, g.y.c as usize, g.x.len(), g.y.len());
        let (x, y, add) = (&x[..n * xl], &mut y[..n * yl], add.map(|a| &a[..n * yl]));
        check_prologue(pre, cin);
        assert!(w.len() == g.weights() && bias.is_none_or(|b| b.len() == cout), "weights of another shape");
        let mut packed = Aligned::zeroed(w.len());
        packed.get().copy_from_slice(w);
        let w = &*packed.get();
        let (c, pad) = (forward_correlation(g), window_pad(&g.window));
        let direct = pre.is_none() && pad == [0; 4];
        let chunk = Self::chunk(n, 0);
        let mut partial = vec![0.0f64; n.div_ceil(chunk) * 2 * cout];
        let items: Vec<_> = y.chunks_mut(chunk * yl).zip(partial.chunks_mut(2 * cout)).enumerate().collect();
        self.for_each(items, |(part, (y, partial))| {
            scratch(if direct { 0 } else { padded_len(&g.x, pad) }, 2 * cout, |to, image_sums| {
                for (i, y) in y.chunks_exact_mut(yl).enumerate() {
                    let b = part * chunk + i;
                    let x = &x[b * xl..][..xl];
                    let from = if direct {
                        x.as_ptr()
                    } else {
                        self.enter(&g.x, pad, x, pre, to);
                        to.as_ptr()
                    };
                    let add = add.map_or(null(), |a| a[b * yl..][..yl].as_ptr());
                    // SAFETY: windows lie inside the padded copy (or the picture, without padding); `y`, `add` and
                    // `image_sums` have the lengths of one picture.
                    unsafe {
                        (self.table.correlate)(&c, from, w.as_ptr(), ptr(bias), y.as_mut_ptr());
                        (self.table.finish)(yl / cout, cout, y.as_mut_ptr(), add, image_sums.as_mut_ptr());
                    }
                    add_f64(partial, image_sums);
                }
            });
        });
        if let Some(sums) = sums {
            reduce(&partial, &mut sums[..2 * cout]);
        }
    }

    fn conv_backward(
        &self,
        g: &ConvShape,
        n: usize,
        x: &[f32],
        pre: Option<&Prologue<'_>>,
        w: &[f32],
        dy: OutputGradient<'_>,
        add: Option<&[f32]>,
        dz: Option<&mut [f32]>,
        dw: &mut [f32],
        db: &mut [f32],
        sums: Option<&mut [f64]>,
    ) {
        let (cin, cout, xl, yl) = (g.x.c as usize, g.y.c as usize, g.x.len(), g.y.len());
        let (x, add) = (&x[..n * xl], add.map(|a| &a[..n * xl]));
        let grad = &dy.dy[..n * yl];
        let norm = dy.norm.map(|(h, k)| (&h[..n * yl], &k[..3 * cout]));
        check_prologue(pre, cin);
        assert!(w.len() == g.weights() && dw.len() == w.len() && db.len() == cout, "weights of another shape");
        let mut back = Transposed::new(g, w);
        let (inside, dy_row) = back.interior(g);
        let weights = back.weights.get().as_ptr() as usize;
        let (parts, dy_pad, holes) = (&back.parts, back.pad, back.holes);
        let (c, pad) = (forward_correlation(g), window_pad(&g.window));
        let outer = Correlation { y_row: dy_row, ..c };
        let direct = pre.is_none() && pad == [0; 4];
        let chunk = Self::chunk(n, w.len());
        let count = n.div_ceil(chunk);
        let mut dw_parts = vec![0.0f32; count * w.len()];
        let mut sum_parts = vec![0.0f64; count * (2 * cin + cout)];
        let mut dz_parts: Vec<Option<&mut [f32]>> = match dz {
            Some(dz) => dz[..n * xl].chunks_mut(chunk * xl).map(Some).collect(),
            None => (0..count).map(|_| None).collect(),
        };
        let items: Vec<_> = dz_parts
            .drain(..)
            .zip(dw_parts.chunks_mut(w.len()))
            .zip(sum_parts.chunks_mut(2 * cin + cout))
            .enumerate()
            .collect();
        let (x_len, dy_len) = (if direct { 0 } else { padded_len(&g.x, pad) }, padded_len(&g.y, dy_pad));
        self.for_each(items, |(part, ((mut dz, dw), sums))| {
            let (sums, bias_sums) = sums.split_at_mut(2 * cin);
            scratch(x_len, dy_len + 2 * cin + cout, |xpad, rest| {
                let (dpad, image_sums) = rest.split_at_mut(dy_len);
                let (image_sums, image_bias) = image_sums.split_at_mut(2 * cin);
                for b in part * chunk..(part * chunk + chunk).min(n) {
                    let x = &x[b * xl..][..xl];
                    let from = if direct {
                        x.as_ptr()
                    } else {
                        self.enter(&g.x, pad, x, pre, xpad);
                        xpad.as_ptr()
                    };
                    image_bias.fill(0.0);
                    let row = g.y.w as usize * cout;
                    pad_rows(&g.y, dy_pad, dpad, |r, to| {
                        let at = b * yl + r * row;
                        let d = &grad[at..][..row];
                        let (h, k) = norm.map_or((null(), null()), |(h, k)| (h[at..][..row].as_ptr(), k.as_ptr()));
                        // SAFETY: one row of the gradient, of the norm's input and of the copy; sums by channel.
                        unsafe {
                            (self.table.grad_in)(
                                row / cout,
                                cout,
                                d.as_ptr(),
                                h,
                                k,
                                to.as_mut_ptr(),
                                image_bias.as_mut_ptr(),
                            );
                        }
                    });
                    add_f64(bias_sums, image_bias);
                    // SAFETY: `outer` reaches the windows inside the padded input and the interior of the padded gradient.
                    unsafe { (self.table.outer_product)(&outer, from, dpad.as_ptr().add(inside), dw.as_mut_ptr()) };
                    let Some(dz) = dz.as_deref_mut() else { continue };
                    let dz = &mut dz[(b - part * chunk) * xl..][..xl];
                    if holes {
                        dz.fill(0.0);
                    }
                    for (c, start, at, to) in parts {
                        // SAFETY: `Transposed` built the strides so that every tap lies inside the padded gradient and every
                        // result inside the picture.
                        unsafe {
                            let w = (weights as *const f32).add(*at);
                            (self.table.correlate)(c, dpad.as_ptr().add(*start), w, null(), dz.as_mut_ptr().add(*to));
                        }
                    }
                    if pre.is_some() || add.is_some() {
                        let add = add.map_or(null(), |a| a[b * xl..][..xl].as_ptr());
                        let (a, s, slope) =
                            pre.map_or((null(), null(), 1.0), |p| (p.scale.as_ptr(), p.shift.as_ptr(), p.slope));
                        let to = if pre.is_some() { image_sums.as_mut_ptr() } else { null_mut() };
                        // SAFETY: one picture of each; sums by channel.
                        unsafe {
                            (self.table.grad_out)(xl / cin, cin, dz.as_mut_ptr(), add, x.as_ptr(), a, s, slope, to);
                        }
                        if pre.is_some() {
                            add_f64(sums, image_sums);
                        }
                    }
                }
            });
        });
        reduce(&dw_parts, dw);
        let mut total = vec![0.0f64; 2 * cin + cout];
        reduce(&sum_parts, &mut total);
        for (d, &s) in db.iter_mut().zip(&total[2 * cin..]) {
            *d = s as f32;
        }
        if let Some(sums) = sums {
            sums[..2 * cin].copy_from_slice(&total[..2 * cin]);
        }
    }

    fn deconv_forward(&self, g: &ConvShape, n: usize, x: &[f32], w: &[f32], bias: &[f32], y: &mut [f32]) {
        let (cin, xl, yl) = (g.x.c as usize, g.x.len(), g.y.len());
        let (x, y) = (&x[..n * yl], &mut y[..n * xl]);
        assert!(w.len() == g.weights() && bias.len() == cin, "weights of another shape");
        let mut back = Transposed::new(g, w);
        let weights = back.weights.get().as_ptr() as usize;
        let (parts, pad, holes) = (&back.parts, back.pad, back.holes);
        let chunk = Self::chunk(n, 0);
        self.for_each(y.chunks_mut(chunk * xl).enumerate().collect(), |(part, y)| {
            scratch(padded_len(&g.y, pad), 0, |to, _| {
                for (i, y) in y.chunks_exact_mut(xl).enumerate() {
                    self.enter(&g.y, pad, &x[(part * chunk + i) * yl..][..yl], None, to);
                    if holes {
                        y.chunks_exact_mut(cin).for_each(|y| y.copy_from_slice(bias));
                    }
                    for (c, start, at, out) in parts {
                        // SAFETY: as in `conv_backward`.
                        unsafe {
                            let w = (weights as *const f32).add(*at);
                            let (from, y) = (to.as_ptr().add(*start), y.as_mut_ptr().add(*out));
                            (self.table.correlate)(c, from, w, bias.as_ptr(), y);
                        }
                    }
                }
            });
        });
    }

    fn deconv_backward(
        &self,
        g: &ConvShape,
        n: usize,
        x: &[f32],
        w: &[f32],
        dy: &[f32],
        dx: Option<&mut [f32]>,
        dw: &mut [f32],
        db: &mut [f32],
    ) {
        let (cin, xl, yl) = (g.x.c as usize, g.x.len(), g.y.len());
        let (x, dy) = (&x[..n * yl], &dy[..n * xl]);
        assert!(w.len() == g.weights() && dw.len() == w.len() && db.len() == cin, "weights of another shape");
        let (c, pad) = (forward_correlation(g), window_pad(&g.window));
        let chunk = Self::chunk(n, w.len());
        let count = n.div_ceil(chunk);
        let mut dw_parts = vec![0.0f32; count * w.len()];
        let mut sum_parts = vec![0.0f64; count * 2 * cin];
        let dx_parts: Vec<Option<&mut [f32]>> = match dx {
            Some(dx) => dx[..n * yl].chunks_mut(chunk * yl).map(Some).collect(),
            None => (0..count).map(|_| None).collect(),
        };
        let items: Vec<_> = dx_parts
            .into_iter()
            .zip(dw_parts.chunks_mut(w.len()))
            .zip(sum_parts.chunks_mut(2 * cin))
            .enumerate()
            .collect();
        self.for_each(items, |(part, ((mut dx, dw), sums))| {
            scratch(padded_len(&g.x, pad), 2 * cin, |to, image_sums| {
                for b in part * chunk..(part * chunk + chunk).min(n) {
                    let dy = &dy[b * xl..][..xl];
                    self.enter(&g.x, pad, dy, None, to);
                    // SAFETY: the padded gradient holds every window; `x` is one picture of `g.y`; `finish` only reads `dy`
                    // when nothing is added.
                    unsafe {
                        (self.table.finish)(xl / cin, cin, dy.as_ptr().cast_mut(), null(), image_sums.as_mut_ptr());
                        (self.table.outer_product)(&c, to.as_ptr(), x[b * yl..][..yl].as_ptr(), dw.as_mut_ptr());
                    }
                    add_f64(sums, image_sums);
                    if let Some(dx) = dx.as_deref_mut() {
                        let dx = &mut dx[(b - part * chunk) * yl..][..yl];
                        // SAFETY: as for a forward convolution.
                        unsafe { (self.table.correlate)(&c, to.as_ptr(), w.as_ptr(), null(), dx.as_mut_ptr()) };
                    }
                }
            });
        });
        reduce(&dw_parts, dw);
        let mut total = vec![0.0f64; 2 * cin];
        reduce(&sum_parts, &mut total);
        for (d, &s) in db.iter_mut().zip(&total) {
            *d = s as f32;
        }
    }

    fn channel_sums(&self, c: usize, x: &[f32], sums: &mut [f64]) {
        let pixels = x.len() / c;
        let chunk = pixels.div_ceil(PARTS).max(1);
        let mut partial = vec![0.0f64; pixels.div_ceil(chunk).max(1) * 2 * c];
        let items: Vec<_> = x.chunks(chunk * c).zip(partial.chunks_mut(2 * c)).collect();
        self.for_each(items, |(x, partial)| {
            scratch(0, 2 * c, |_, image_sums| {
                for x in x.chunks(1024 * c) {
                    // SAFETY: `finish` only reads `x` when nothing is added.
                    unsafe {
                        (self.table.finish)(x.len() / c, c, x.as_ptr().cast_mut(), null(), image_sums.as_mut_ptr());
                    }
                    add_f64(partial, image_sums);
                }
            });
        });
        reduce(&partial, &mut sums[..2 * c]);
    }

    fn norm_gradient(&self, c: usize, dz: &mut [f32], x: &[f32], k: &[f32], add: Option<&[f32]>) {
        let (x, k, add) = (&x[..dz.len()], &k[..3 * c], add.map(|a| &a[..dz.len()]));
        let chunk = (dz.len() / c).div_ceil(PARTS).max(1) * c;
        self.for_each(dz.chunks_mut(chunk).enumerate().collect(), |(part, dz)| {
            let x = &x[part * chunk..][..dz.len()];
            let add = add.map_or(null(), |a| a[part * chunk..][..dz.len()].as_ptr());
            let d = dz.as_mut_ptr();
            // SAFETY: whole pixels of each; the gradient is read and written element by element at the same place.
            unsafe { (self.table.norm_grad)(dz.len() / c, c, d, x.as_ptr(), k.as_ptr(), add, d) };
        });
    }

    fn pool_forward(&self, c: usize, pixels: usize, x: &[f32], pre: &Prologue<'_>, pooled: &mut [f32]) {
        check_prologue(Some(pre), c);
        let n = pooled.len() / c;
        let (x, chunk) = (&x[..n * pixels * c], Self::chunk(n, 0));
        self.for_each(pooled.chunks_mut(chunk * c).zip(x.chunks(chunk * pixels * c)).collect(), |(pooled, x)| {
            scratch(pixels * c, 2 * c, |a, image_sums| {
                for (x, pooled) in x.chunks_exact(pixels * c).zip(pooled.chunks_exact_mut(c)) {
                    let (scale, shift) = (pre.scale.as_ptr(), pre.shift.as_ptr());
                    // SAFETY: one picture in, one picture of scratch out, sums by channel; lengths were checked above.
                    unsafe {
                        (self.table.affine)(pixels, c, x.as_ptr(), scale, shift, pre.slope, a.as_mut_ptr());
                        (self.table.finish)(pixels, c, a.as_mut_ptr(), null(), image_sums.as_mut_ptr());
                    }
                    for (p, &s) in pooled.iter_mut().zip(&*image_sums) {
                        *p = s / pixels as f32;
                    }
                }
            });
        });
    }

    fn pool_backward(
        &self,
        c: usize,
        pixels: usize,
        x: &[f32],
        pre: &Prologue<'_>,
        dpooled: &[f32],
        dz: &mut [f32],
        sums: &mut [f64],
    ) {
        check_prologue(Some(pre), c);
        let n = dpooled.len() / c;
        let (x, dz, chunk) = (&x[..n * pixels * c], &mut dz[..n * pixels * c], Self::chunk(n, 0));
        let mut partial = vec![0.0f64; n.div_ceil(chunk) * 2 * c];
        let items: Vec<_> = dz.chunks_mut(chunk * pixels * c).zip(partial.chunks_mut(2 * c)).enumerate().collect();
        self.for_each(items, |(part, (dz, sums))| {
            scratch(0, 2 * c, |_, image_sums| {
                for (i, dz) in dz.chunks_exact_mut(pixels * c).enumerate() {
                    let b = part * chunk + i;
                    let x = &x[b * pixels * c..][..pixels * c];
                    dz.chunks_exact_mut(c).for_each(|dz| dz.copy_from_slice(&dpooled[b * c..][..c]));
                    let (d, scale, shift) = (dz.as_mut_ptr(), pre.scale.as_ptr(), pre.shift.as_ptr());
                    // SAFETY: one picture of each, sums by channel; lengths were checked above.
                    unsafe {
                        let to = image_sums.as_mut_ptr();
                        (self.table.grad_out)(pixels, c, d, null(), x.as_ptr(), scale, shift, pre.slope, to);
                    }
                    add_f64(sums, image_sums);
                }
            });
        });
        reduce(&partial, &mut sums[..2 * c]);
    }

    fn join_forward(&self, c: usize, h: &[f32], pre: &Prologue<'_>, skip: Option<Skip<'_>>, y: &mut [f32]) {
        simd_join::forward(self, c, h, pre, skip, y);
    }

    fn join_backward(
        &self,
        c: usize,
        h: &[f32],
        pre: &Prologue<'_>,
        skip: Option<Skip<'_>>,
        dz: &mut [f32],
        sums: &mut [f64],
    ) {
        simd_join::backward(self, c, h, pre, skip, dz, sums);
    }

    fn max_pool_forward(
        &self,
        g: &ConvShape,
        n: usize,
        x: &[f32],
        pre: Option<&Prologue<'_>>,
        y: &mut [f32],
        index: &mut [u32],
    ) {
        simd_join::max_pool(self, g, n, x, pre, y, index);
    }

    fn max_pool_backward(&self, g: &ConvShape, n: usize, dy: &[f32], index: &[u32], da: &mut [f32]) {
        simd_join::max_pool_backward(self, g, n, dy, index, da);
    }
}
