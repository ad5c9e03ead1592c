//! One picture at a time, for a net that runs: convolutions whose weights were prepared once.

use super::ConvShape;
use super::buffer::{Aligned, scratch};
use super::image::{Correlation, is_one_block};
use super::simd::{Simd, ptr};
use super::transposed::{Pad, forward_correlation, pad_rows, padded_len, window_pad};
use super::winograd::Winograd;
use crate::net::Activation;

/// How a convolution is computed.
#[derive(Debug)]
enum Way {
    /// As a correlation over packed weights; none where packing would not change them.
    Direct(Correlation, Option<Aligned>),
    /// As a correlation channel by channel, over the weights as they are.
    Depthwise(Correlation),
    /// Tile by tile, over transformed weights.
    Tiled(Winograd, Aligned),
}

/// A convolution, ready to run on pictures.
#[derive(Debug)]
pub struct PreparedConv {
    g: ConvShape,
    way: Way,
    pad: Pad,
}

impl PreparedConv {
    /// Chooses how to compute a convolution, `groups` 1 or depthwise, and packs or transforms its weights where that pays.
    ///
    /// `w` as in [`crate::net::Op::Conv`]; another length panics.
    pub fn new(k: &Simd, g: ConvShape, depthwise: bool, w: &[f32]) -> Self {
        let (correlation, pad) = (forward_correlation(&g), window_pad(&g.window));
        if depthwise {
            let klen = g.window.kernel[1] as usize;
            let fits = g.x.c == g.y.c && w.len() == correlation.kh * klen * correlation.cout;
            assert!(fits, "weights of another shape");
            return Self { g, way: Way::Depthwise(Correlation { klen, ..correlation }), pad };
        }
        assert_eq!(w.len(), g.weights(), "weights of another shape");
        let cout = correlation.cout;
        match Winograd::plan(&g, k.isa().lanes()) {
            Some(t) => Self { g, way: Way::Tiled(t, k.pack(Some(&t), cout, w)), pad: t.pad() },
            None => {
                let packed = (!is_one_block(k.isa().lanes(), cout)).then(|| k.pack(None, cout, w));
                Self { g, way: Way::Direct(correlation, packed), pad }
            }
        }
    }
}

impl Simd {
    /// One picture's convolution on the calling thread: `y = conv(x) + bias`.
    ///
    /// `w` are the weights that `conv` was prepared from. Slices must have the lengths of its shape; shorter ones panic.
    pub fn conv_picture(&self, conv: &PreparedConv, x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
        let g = &conv.g;
        let (x, y) = (&x[..g.x.len()], &mut y[..g.y.len()]);
        let cells = (g.window.kernel[0] * g.window.kernel[1]) as usize;
        let needed = if matches!(conv.way, Way::Depthwise(_)) { cells * g.y.c as usize } else { g.weights() };
        assert!(w.len() == needed && bias.is_none_or(|b| b.len() == g.y.c as usize), "weights of another shape");
        let run = |from: &[f32], work: &mut [f32], y: &mut [f32]| {
            let (from, y) = (from.as_ptr(), y.as_mut_ptr());
            // SAFETY: every window lies inside the padded copy (the picture itself without padding); lengths were checked
            // above; weights were packed for this way, `work` has the plan's length.
            unsafe {
                match &conv.way {
                    Way::Direct(c, packed) => {
                        let w = packed.as_ref().map_or(w, Aligned::get);
                        (self.table.correlate)(c, from, w.as_ptr(), ptr(bias), y);
                    }
                    Way::Depthwise(c) => (self.table.depthwise)(c, from, w.as_ptr(), ptr(bias), y),
                    Way::Tiled(t, u) => {
                        t.convolve(self.table, 1, from, u.get().as_ptr(), ptr(bias), work.as_mut_ptr(), y);
                    }
                }
            }
        };
        if conv.pad == [0; 4] {
            run(x, &mut [], y);
            return;
        }
        let work = if let Way::Tiled(t, _) = &conv.way { t.work() } else { 0 };
        scratch([padded_len(&g.x, conv.pad), work, 0, 0], |[to, work, ..]| {
            let row = g.x.w as usize * g.x.c as usize;
            pad_rows(&g.x, conv.pad, to, |r, to| to.copy_from_slice(&x[r * row..][..row]));
            run(to, work, y);
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
}
