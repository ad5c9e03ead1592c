//! The backward passes of convolutions, with vectors and threads.
//!
//! A part of the batch goes through in groups of pictures (one, or as many as fill a block of Winograd tiles). The input enters
//! padded buffers through the prologue, the output gradient through the backward pass of the norm that follows, where there is
//! one. Both gradients read these copies: the weight gradient is their outer product, the data gradient a correlation over the
//! second. The data gradient leaves through the derivative of the prologue, which also gives the sums that the norm in front
//! needs. Partial weight gradients stay with their part until all are done.

use super::buffer::{Aligned, partial, scratch};
use super::image::{Correlation, Exit};
use super::simd::{Simd, add_f64, check_prologue, reduce};
use super::transposed::{Pad, Transposed, forward_correlation, pad_rows, padded_len, window_pad};
use super::winograd::Winograd;
use super::{ConvShape, OutputGradient, Prologue};
use core::ops::Range;
use core::ptr::{null, null_mut};
use std::prelude::v1::*;
use std::vec;

/// Cuts a buffer into parts of `step` elements; without one, as many times nothing.
fn cut(to: Option<&mut [f32]>, len: usize, step: usize) -> Vec<Option<&mut [f32]>> {
    match to {
        Some(to) => to[..len].chunks_mut(step).map(Some).collect(),
        None => (0..len.div_ceil(step)).map(|_| None).collect(),
    }
}

/// What all pictures of one backward pass share.
struct Backward<'a> {
    k: &'a Simd,
    g: &'a ConvShape,
    x: &'a [f32],
    pre: Option<&'a Prologue<'a>>,
    dy: OutputGradient<'a>,
    add: Option<&'a [f32]>,
    back: Transposed,
    /// The tiles of the weight gradient and of the data gradient, where they pay.
    tiled: Option<(Winograd, Winograd)>,
    /// Packed weights of the data gradient.
    weights: Aligned,
    /// Padding of the copies of inputs and of output gradients.
    x_pad: Pad,
    dy_pad: Pad,
    /// Pictures in a group.
    group: usize,
}

impl Backward<'_> {
    /// The pictures of one part. Writes `dw` and adds to `sums` (of `dz`, `dz * x` and the output gradient: `[2 * cin + cout]`);
    /// `dz` holds these pictures alone.
    fn part(&self, pictures: Range<usize>, mut dz: Option<&mut [f32]>, dw: &mut [f32], sums: &mut [f64]) {
        let (cin, cout, xl) = (self.g.x.c as usize, self.g.y.c as usize, self.g.x.len());
        let direct = self.pre.is_none() && self.x_pad == [0; 4];
        let x_len = if direct { 0 } else { padded_len(&self.g.x, self.x_pad) };
        let dy_len = padded_len(&self.g.y, self.dy_pad);
        let work_len = self.tiled.map_or(0, |(t, b)| t.work().max(b.work()));
        let du_len = self.tiled.map_or(0, |(t, _)| t.gradients());
        let (sums, bias_sums) = sums.split_at_mut(2 * cin);
        let lens = [self.group * x_len, self.group * dy_len, work_len, du_len + 2 * cin + cout];
        scratch(lens, |[xpad, dpad, work, rest]| {
            let (du, image_sums) = rest.split_at_mut(du_len);
            let (image_sums, image_bias) = image_sums.split_at_mut(2 * cin);
            du.fill(0.0);
            if self.tiled.is_none() {
                dw.fill(0.0);
            }
            for first in pictures.clone().step_by(self.group) {
                let group = first..(first + self.group).min(pictures.end);
                let mut from = self.x[first * xl..].as_ptr();
                if !direct {
                    for (b, to) in group.clone().zip(xpad.chunks_exact_mut(x_len)) {
                        self.k.enter(&self.g.x, self.x_pad, &self.x[b * xl..][..xl], self.pre, to);
                    }
                    from = xpad.as_ptr();
                }
                image_bias.fill(0.0);
                for (b, to) in group.clone().zip(dpad.chunks_exact_mut(dy_len)) {
                    self.enter_gradient(b, to, image_bias);
                }
                add_f64(bias_sums, image_bias);
                // SAFETY: the group was copied, padded as the plan asks (a direct group is one picture as it is); `work` and
                // `du` have the plan's lengths.
                unsafe { self.weight_gradient(group.len(), from, dpad, work, du, dw) };
                let Some(dz) = dz.as_deref_mut() else { continue };
                let dz = &mut dz[(first - pictures.start) * xl..][..group.len() * xl];
                // SAFETY: as above; `dz` takes the group.
                unsafe { self.data_gradient(group.len(), dpad, work, dz) };
                self.leave(group, dz, image_sums, sums);
            }
            if let Some((t, _)) = &self.tiled {
                let (plane, table) = (t.gradient_plane(), self.k.table);
                // SAFETY: both have the weights' number of cells; the plan's channels are whole vectors.
                unsafe { (table.winograd_filter_gradient)(cin * cout, plane, du.as_ptr(), dw.as_mut_ptr()) };
            }
        });
    }

    /// Copies one picture's output gradient into a padded buffer, through the backward pass of a norm where there is one, and
    /// adds its sums by channel to `sums`.
    fn enter_gradient(&self, picture: usize, to: &mut [f32], sums: &mut [f32]) {
        let y = &self.g.y;
        let (cout, row) = (y.c as usize, y.w as usize * y.c as usize);
        pad_rows(y, self.dy_pad, to, |r, to| {
            let at = picture * y.len() + r * row;
            let d = &self.dy.dy[at..][..row];
            let (h, k) = self.dy.norm.map_or((null(), null()), |(h, k)| (h[at..][..row].as_ptr(), k.as_ptr()));
            // SAFETY: one row of the gradient, of the norm's input and of the copy; sums by channel.
            unsafe {
                (self.k.table.grad_in)(row / cout, cout, d.as_ptr(), h, k, to.as_mut_ptr(), sums.as_mut_ptr());
            }
        });
    }

    /// Adds the weight gradient of `count` pictures to `dw`, or tile by tile to `du`.
    ///
    /// # Safety
    /// `x` and `dpad` hold the pictures, padded by `x_pad` and `dy_pad`; `work` and `du` have the lengths of the plan.
    unsafe fn weight_gradient(
        &self,
        count: usize,
        x: *const f32,
        dpad: &[f32],
        work: &mut [f32],
        du: &mut [f32],
        dw: &mut [f32],
    ) {
        let (g, pad, cout) = (self.g, self.dy_pad, self.g.y.c as usize);
        let row = (g.y.w as usize + pad[1] + pad[3]) * cout;
        let d = dpad[pad[0] * row + pad[1] * cout..].as_ptr();
        // SAFETY: `outer` reaches the windows inside the padded input and the interior of the padded gradient; tiles lie inside
        // the padded copies, zeros behind the last pixels.
        unsafe {
            match &self.tiled {
                None => {
                    let outer = Correlation { y_row: row, ..forward_correlation(g) };
                    (self.k.table.outer_product)(&outer, x, d, dw.as_mut_ptr());
                }
                Some((t, _)) => {
                    let dy = (d, row, padded_len(&g.y, pad));
                    t.weight_gradient(self.k.table, count, x, dy, work.as_mut_ptr(), du.as_mut_ptr());
                }
            }
        }
    }

    /// The gradient with respect to the convolution's input, of `count` pictures.
    ///
    /// # Safety
    /// As for [`Self::weight_gradient`]; `dz` takes the pictures.
    unsafe fn data_gradient(&self, count: usize, dpad: &[f32], work: &mut [f32], dz: &mut [f32]) {
        let (d, w) = (dpad.as_ptr(), self.weights.get().as_ptr());
        // SAFETY: as in `transpose`; `weights` were packed for the plan.
        unsafe {
            match &self.tiled {
                None => self.k.transpose(&self.back, w, d, null(), dz),
                Some((_, t)) => {
                    t.convolve(self.k.table, count, d, w, null(), &Exit::PLAIN, work.as_mut_ptr(), dz.as_mut_ptr());
                }
            }
        }
    }

    /// Takes the data gradient of some pictures through the prologue, adds `add`, and adds the sums to `sums`.
    fn leave(&self, pictures: Range<usize>, dz: &mut [f32], image_sums: &mut [f32], sums: &mut [f64]) {
        let (cin, xl) = (self.g.x.c as usize, self.g.x.len());
        if self.pre.is_none() && self.add.is_none() {
            return;
        }
        for (b, dz) in pictures.zip(dz.chunks_exact_mut(xl)) {
            let add = self.add.map_or(null(), |a| a[b * xl..][..xl].as_ptr());
            let (a, s, slope) =
                self.pre.map_or((null(), null(), 1.0), |p| (p.scale.as_ptr(), p.shift.as_ptr(), p.slope));
            let to = if self.pre.is_some() { image_sums.as_mut_ptr() } else { null_mut() };
            let x = self.x[b * xl..][..xl].as_ptr();
            // SAFETY: one picture of each; sums by channel.
            unsafe { (self.k.table.grad_out)(xl / cin, cin, dz.as_mut_ptr(), add, x, a, s, slope, to) };
            if self.pre.is_some() {
                add_f64(sums, image_sums);
            }
        }
    }
}

/// [`super::Kernels::conv_backward`].
#[allow(clippy::too_many_arguments)]
pub(super) fn conv_backward(
    k: &Simd,
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
    let norm = dy.norm.map(|(h, k)| (&h[..n * yl], &k[..3 * cout]));
    let dy = OutputGradient { dy: &dy.dy[..n * yl], norm };
    check_prologue(pre, cin);
    assert!(g.fits() && w.len() == g.weights() && dw.len() == w.len() && db.len() == cout, "weights of another shape");
    let back = Transposed::new(g, w);
    let plan = |g: &ConvShape| Winograd::plan(g, k.isa().lanes());
    let tiled = plan(g).zip(plan(&ConvShape { x: g.y, y: g.x, ..*g }));
    let weights = match &tiled {
        None => k.pack_phases(&back),
        Some((_, t)) => k.pack(Some(t), true, cin, back.weights.get()),
    };
    let (x_pad, dy_pad) = tiled.map_or((window_pad(&g.window), back.pad), |(t, b)| (t.pad(), b.pad()));
    let (chunk, small) = (Simd::chunk(n, w.len()), 2 * cin + cout);
    let group = tiled.map_or(1, |(t, b)| t.pictures().min(b.pictures())).min(chunk);
    let pass = Backward { k, g, x, pre, dy, add, back, tiled, weights, x_pad, dy_pad, group };
    let mut sum_parts = vec![0.0f64; n.div_ceil(chunk) * small];
    let dz_parts = cut(dz, n * xl, chunk * xl).into_iter();
    partial(n.div_ceil(chunk) * w.len(), |dw_parts| {
        let items = dz_parts.zip(dw_parts.chunks_mut(w.len())).zip(sum_parts.chunks_mut(small)).enumerate();
        k.for_each(items.collect(), |(part, ((dz, dw), sums))| {
            pass.part(part * chunk..(part * chunk + chunk).min(n), dz, dw, sums);
        });
        k.reduce(dw_parts, dw);
    });
    let mut total = vec![0.0f64; small];
    reduce(&sum_parts, &mut total);
    for (d, &s) in db.iter_mut().zip(&total[2 * cin..]) {
        *d = s as f32;
    }
    if let Some(sums) = sums {
        sums[..2 * cin].copy_from_slice(&total[..2 * cin]);
    }
}

/// [`super::Kernels::deconv_backward`].
#[allow(clippy::too_many_arguments)]
pub(super) fn deconv_backward(
    k: &Simd,
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
    assert!(g.fits() && w.len() == g.weights() && dw.len() == w.len() && db.len() == cin, "weights of another shape");
    let (c, pad) = (forward_correlation(g), window_pad(&g.window));
    let packed = k.pack(None, c.four, c.cout, w);
    let chunk = Simd::chunk(n, w.len());
    let mut sum_parts = vec![0.0f64; n.div_ceil(chunk) * 2 * cin];
    let dx_parts = cut(dx, n * yl, chunk * yl).into_iter();
    let one = |part: usize, mut dx: Option<&mut [f32]>, dw: &mut [f32], sums: &mut [f64]| {
        dw.fill(0.0);
        scratch([padded_len(&g.x, pad), 2 * cin, 0, 0], |[to, image_sums, ..]| {
            for b in part * chunk..(part * chunk + chunk).min(n) {
                let dy = &dy[b * xl..][..xl];
                k.enter(&g.x, pad, dy, None, to);
                // SAFETY: the padded gradient holds every window; `x` is one picture of `g.y`; `finish` only reads `dy` when
                // nothing is added.
                unsafe {
                    (k.table.finish)(xl / cin, cin, dy.as_ptr().cast_mut(), null(), image_sums.as_mut_ptr());
                    (k.table.outer_product)(&c, to.as_ptr(), x[b * yl..][..yl].as_ptr(), dw.as_mut_ptr());
                }
                add_f64(sums, image_sums);
                if let Some(dx) = dx.as_deref_mut() {
                    let dx = &mut dx[(b - part * chunk) * yl..][..yl];
                    // SAFETY: as for a forward convolution.
                    unsafe {
                        (k.table.correlate)(
                            &c,
                            to.as_ptr(),
                            packed.get().as_ptr(),
                            null(),
                            &Exit::PLAIN,
                            dx.as_mut_ptr(),
                        )
                    };
                }
            }
        });
    };
    partial(n.div_ceil(chunk) * w.len(), |dw_parts| {
        let items = dx_parts.zip(dw_parts.chunks_mut(w.len())).zip(sum_parts.chunks_mut(2 * cin)).enumerate();
        k.for_each(items.collect(), |(part, ((dx, dw), sums))| one(part, dx, dw, sums));
        k.reduce(dw_parts, dw);
    });
    let mut total = vec![0.0f64; 2 * cin];
    reduce(&sum_parts, &mut total);
    for (d, &s) in db.iter_mut().zip(&total) {
        *d = s as f32;
    }
}
