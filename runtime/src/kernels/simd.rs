//! The training kernels with vectors and threads.
//!
//! A batch is cut into parts of whole pictures; the cut depends on the batch size alone, and partial sums are added in the
//! order of the parts, so results do not depend on the number of threads. Within a part each picture's input is copied once into
//! a padded buffer (the prologue applied on the way), where every kernel then reads without bounds to check.
//!
//! Here are the parts and threads, the forward passes, norms and pooling; the backward passes of convolutions have a room of
//! their own, `simd_gradient`, and so have joins and max pooling, `simd_join`.

use super::buffer::{Aligned, scratch};
use super::image::{Blocks, Exit};
use super::isa::{Isa, Table, table};
#[cfg(feature = "parallel")]
use super::team::MOST_PARTS;
#[cfg(feature = "parallel")]
use super::team::Team;
use super::team::{LEAST, Lead};
use super::transposed::{Pad, Transposed, forward_correlation, pad_rows, padded_len, window_pad};
use super::winograd::Winograd;
use super::{ConvShape, Kernels, OutputGradient, Prologue, Skip};
use super::{simd_gradient, simd_join};
use crate::shape::Shape;
use core::ptr::null;
use std::prelude::v1::*;
#[cfg(feature = "parallel")]
use std::sync::{Mutex, PoisonError};
use std::vec;

/// Most parts a batch is cut into.
pub(super) const PARTS: usize = 16;
/// Fewest pictures of a part that keeps gradients of weights, where there are so many.
const PICTURES: usize = 8;
/// Most elements all parts' partial weight gradients may hold together.
const PARTIAL_WEIGHTS: usize = 16 << 20;

/// The fast kernels: an instruction set and a number of threads.
#[derive(Clone)]
pub struct Simd {
    isa: Isa,
    pub(super) table: &'static Table,
    #[cfg(feature = "parallel")]
    threads: Option<std::sync::Arc<Threads>>,
}

/// The threads: a team, from the first time one is asked for, and a pool for who finds it taken.
#[cfg(feature = "parallel")]
struct Threads {
    pool: rayon::ThreadPool,
    team: std::sync::OnceLock<Team>,
}

impl core::fmt::Debug for Simd {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Simd").field("isa", &self.isa).field("threads", &self.threads()).finish()
    }
}

pub(super) fn ptr(x: Option<&[f32]>) -> *const f32 {
    x.map_or(null(), <[f32]>::as_ptr)
}

pub(super) fn add_f64(to: &mut [f64], from: &[f32]) {
    for (t, &f) in to.iter_mut().zip(from) {
        *t += f64::from(f);
    }
}

/// Sums equal-length partial results in order.
pub(super) fn reduce<T: Copy + core::ops::AddAssign>(parts: &[T], to: &mut [T]) {
    reduce_some(parts, to.len(), 0, to);
}

/// The same of partial results of `len` elements each, those from element `first` on alone.
fn reduce_some<T: Copy + core::ops::AddAssign>(parts: &[T], len: usize, first: usize, to: &mut [T]) {
    let span = first..first + to.len();
    to.copy_from_slice(&parts[span.clone()]);
    for part in parts[len..].chunks_exact(len) {
        for (t, &p) in to.iter_mut().zip(&part[span.clone()]) {
            *t += p;
        }
    }
}

/// Fewest sums of a part of [`Simd::reduce`].
const LEAST_SUMS: usize = 4096;

impl Simd {
    /// [`reduce`] on all threads, each with some of the sums.
    pub(super) fn reduce(&self, parts: &[f32], to: &mut [f32]) {
        let len = to.len();
        let piece = len.div_ceil(2 * self.threads()).max(LEAST_SUMS);
        self.for_each(to.chunks_mut(piece).enumerate().collect(), |(i, to)| reduce_some(parts, len, i * piece, to));
    }

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
            threads: (threads > 1)
                .then(|| rayon::ThreadPoolBuilder::new().num_threads(threads).build().ok())
                .flatten()
                .map(|pool| std::sync::Arc::new(Threads { pool, team: std::sync::OnceLock::new() })),
        }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The number of threads in use.
    pub fn threads(&self) -> usize {
        #[cfg(feature = "parallel")]
        return self.threads.as_ref().map_or(1, |t| t.pool.current_num_threads());
        #[cfg(not(feature = "parallel"))]
        1
    }

    /// All threads as a team for the operations of one picture, with the calling thread as its leader; that one alone where there
    /// are no more, or while another thread leads them.
    pub(crate) fn lead(&self) -> Lead<'_> {
        self.lead_parts(LEAST)
    }

    /// The same, where a part of `least` multiply-adds is worth its while.
    pub(crate) fn lead_parts(&self, least: usize) -> Lead<'_> {
        #[cfg(feature = "parallel")]
        if let Some(threads) = &self.threads {
            let helpers = threads.pool.current_num_threads() - 1;
            return Lead::of(threads.team.get_or_init(|| Team::new(helpers)), least);
        }
        let _ = least;
        Lead::alone()
    }

    /// Runs `f` on every item, spread over the threads; a single one on the calling thread.
    ///
    /// The team does it, whose helpers are awake between two calls; where another thread leads that, the pool.
    pub fn for_each<T: Send>(&self, items: Vec<T>, f: impl Fn(T) + Send + Sync) {
        #[cfg(feature = "parallel")]
        if let Some(threads) = self.threads.as_ref().filter(|_| items.len() > 1) {
            use rayon::prelude::*;
            let mut lead = self.lead();
            if lead.threads() == 1 || items.len() > MOST_PARTS {
                threads.pool.install(|| items.into_par_iter().with_max_len(1).for_each(&f));
                return;
            }
            let items: Vec<_> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
            lead.run(items.len(), |i| {
                let item = items[i].lock().unwrap_or_else(PoisonError::into_inner).take();
                item.into_iter().for_each(&f);
            });
            return;
        }
        items.into_iter().for_each(f);
    }

    /// Copies one picture into a padded buffer through the prologue.
    pub(super) fn enter(&self, s: &Shape, pad: Pad, x: &[f32], pre: Option<&Prologue<'_>>, to: &mut [f32]) {
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

    /// One picture's data gradient, from a padded copy of its output gradient.
    ///
    /// # Safety
    /// `w` are from [`Self::pack_phases`]; `from` is padded as `back` asks; `bias` is null or a value a channel; `y` is
    /// one picture.
    pub(super) unsafe fn transpose(
        &self,
        back: &Transposed,
        w: *const f32,
        from: *const f32,
        bias: *const f32,
        y: &mut [f32],
    ) {
        if back.holes && bias.is_null() {
            y.fill(0.0);
        }
        for (c, start, at, to) in &back.parts {
            // SAFETY: `Transposed` built the strides so that every tap lies inside the padded gradient and every result
            // inside the picture.
            unsafe {
                (self.table.correlate)(c, from.add(*start), w.add(*at), bias, &Exit::PLAIN, y.as_mut_ptr().add(*to))
            };
        }
    }

    /// A convolution's weights for `cout` channels as [`super::image::correlate`] reads them, on cache lines: one matrix, or, for
    /// `tiled`, one for each position of a
    /// tile. `four`: see [`Blocks`].
    pub(super) fn pack(&self, tiled: Option<&Winograd>, four: bool, cout: usize, w: &[f32]) -> Aligned {
        let blocks = Blocks { lanes: self.isa.lanes(), four };
        let mut packed = Aligned::zeroed(tiled.map_or(w.len(), Winograd::weights));
        let to = packed.get_mut();
        let Some(tiled) = tiled else {
            blocks.copy(w.len() / cout, cout, w, to);
            return packed;
        };
        let (n, one) = (w.len() / 9, blocks.is_one(cout));
        scratch([if one { 0 } else { w.len() }, 0, 0, 0], |[packed, ..]| {
            blocks.copy(n / cout, cout, w, packed);
            let from = if one { w } else { packed };
            // SAFETY: `w` has 9 cells, and `to` the plan's length.
            unsafe { tiled.filter(self.table, n, from.as_ptr(), to.as_mut_ptr()) };
        });
        packed
    }

    /// The same of a data gradient that is not tiled: a matrix for each phase of the stride.
    pub(super) fn pack_phases(&self, back: &Transposed) -> Aligned {
        let mut packed = Aligned::zeroed(back.weights.get().len());
        for (c, _, at, _) in &back.parts {
            let rows = c.kh * c.klen;
            let span = *at..at + rows * c.cout;
            let from = &back.weights.get()[span.clone()];
            Blocks { lanes: self.isa.lanes(), four: c.four }.copy(rows, c.cout, from, &mut packed.get_mut()[span]);
        }
        packed
    }

    /// Cuts a batch into parts: pictures in each. With gradients of `weights`, which each part keeps until all are done, a part has
    /// some pictures to use them on.
    pub(super) fn chunk(n: usize, weights: usize) -> usize {
        let parts = PARTS.min(PARTIAL_WEIGHTS / weights.max(1)).max(2);
        let least = if weights > 0 { n.div_ceil(2).min(PICTURES) } else { 1 };
        n.div_ceil(parts).max(least).max(1)
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
        assert!(g.fits() && w.len() == g.weights() && bias.is_none_or(|b| b.len() == cout), "another shape");
        let tiled = Winograd::plan(g, self.isa.lanes());
        let packed = self.pack(tiled.as_ref(), true, cout, w);
        let w = packed.get();
        let (c, pad) = (forward_correlation(g), tiled.map_or_else(|| window_pad(&g.window), |t| t.pad()));
        let direct = pre.is_none() && pad == [0; 4];
        let chunk = Self::chunk(n, 0);
        let group = tiled.map_or(1, |t| t.pictures()).min(chunk);
        let x_len = if direct { 0 } else { padded_len(&g.x, pad) };
        let work_len = tiled.map_or(0, |t| t.work());
        let mut partial = vec![0.0f64; n.div_ceil(chunk) * 2 * cout];
        let items: Vec<_> = y.chunks_mut(chunk * yl).zip(partial.chunks_mut(2 * cout)).enumerate().collect();
        self.for_each(items, |(part, (y, partial))| {
            scratch([group * x_len, work_len, 2 * cout, 0], |[xpad, work, image_sums, _]| {
                for (i, y) in y.chunks_mut(group * yl).enumerate() {
                    let (first, count) = (part * chunk + i * group, y.len() / yl);
                    let mut from = x[first * xl..].as_ptr();
                    if !direct {
                        for (x, to) in x[first * xl..].chunks_exact(xl).zip(xpad.chunks_exact_mut(x_len)).take(count) {
                            self.enter(&g.x, pad, x, pre, to);
                        }
                        from = xpad.as_ptr();
                    }
                    // SAFETY: windows lie inside the padded copies (or the picture, without padding, when a group is one
                    // picture); `y` takes the group; `w` was packed for the plan.
                    unsafe {
                        let exit = &Exit::PLAIN;
                        match &tiled {
                            None => (self.table.correlate)(&c, from, w.as_ptr(), ptr(bias), exit, y.as_mut_ptr()),
                            Some(t) => {
                                let work = work.as_mut_ptr();
                                t.convolve(self.table, count, from, w.as_ptr(), ptr(bias), exit, work, y.as_mut_ptr());
                            }
                        }
                    }
                    for (j, y) in y.chunks_exact_mut(yl).enumerate() {
                        let add = add.map_or(null(), |a| a[(first + j) * yl..][..yl].as_ptr());
                        // SAFETY: `y`, `add` and `image_sums` have the lengths of one picture.
                        unsafe { (self.table.finish)(yl / cout, cout, y.as_mut_ptr(), add, image_sums.as_mut_ptr()) };
                        add_f64(partial, image_sums);
                    }
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
        simd_gradient::conv_backward(self, g, n, x, pre, w, dy, add, dz, dw, db, sums);
    }

    fn deconv_forward(&self, g: &ConvShape, n: usize, x: &[f32], w: &[f32], bias: &[f32], y: &mut [f32]) {
        let (cin, xl, yl) = (g.x.c as usize, g.x.len(), g.y.len());
        let (x, y) = (&x[..n * yl], &mut y[..n * xl]);
        assert!(g.fits() && w.len() == g.weights() && bias.len() == cin, "another shape");
        let back = Transposed::new(g, w);
        let w = self.pack_phases(&back);
        let chunk = Self::chunk(n, 0);
        self.for_each(y.chunks_mut(chunk * xl).enumerate().collect(), |(part, y)| {
            scratch([padded_len(&g.y, back.pad), 0, 0, 0], |[to, ..]| {
                for (i, y) in y.chunks_exact_mut(xl).enumerate() {
                    self.enter(&g.y, back.pad, &x[(part * chunk + i) * yl..][..yl], None, to);
                    if back.holes {
                        y.chunks_exact_mut(cin).for_each(|y| y.copy_from_slice(bias));
                    }
                    // SAFETY: `to` is the padded copy that `back` asks for; `bias` has a value a channel.
                    unsafe { self.transpose(&back, w.get().as_ptr(), to.as_ptr(), bias.as_ptr(), y) };
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
        simd_gradient::deconv_backward(self, g, n, x, w, dy, dx, dw, db);
    }

    fn channel_sums(&self, c: usize, x: &[f32], sums: &mut [f64]) {
        let pixels = x.len() / c;
        let chunk = pixels.div_ceil(PARTS).max(1);
        let mut partial = vec![0.0f64; pixels.div_ceil(chunk).max(1) * 2 * c];
        let items: Vec<_> = x.chunks(chunk * c).zip(partial.chunks_mut(2 * c)).collect();
        self.for_each(items, |(x, partial)| {
            scratch([2 * c, 0, 0, 0], |[image_sums, ..]| {
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
            scratch([pixels * c, 2 * c, 0, 0], |[a, image_sums, ..]| {
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
            scratch([2 * c, 0, 0, 0], |[image_sums, ..]| {
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
