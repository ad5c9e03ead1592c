//! The 8-bit convolution on a host: patches and weights widened to 16 bits, so that the compiler's vectors multiply pairs of
//! them into 32-bit sums. Integers: the bits of [`super::int8`].

use super::int8;
use super::isa::Isa;
use crate::net::int8::{ConvArgs, Int8Kernels, Int8Net, Int8Op};
use crate::shape::Shape;
use std::vec::Vec;

/// Rows of weights, and patches, are filled with zeros up to a multiple of this many elements.
const LANES: usize = 32;
/// Output channels that are computed together.
const CHANNELS: usize = 4;

/// The weights of a net's convolutions and linear layers without groups, by the operation's number.
#[derive(Clone, Debug)]
pub(crate) struct WideWeights {
    isa: Isa,
    rows: Vec<Option<Vec<i16>>>,
}

impl WideWeights {
    /// Widens the weights of a net, for an instruction set that this processor has.
    pub(crate) fn new(net: &Int8Net<'_>, isa: Isa) -> Self {
        let wide = |op: Int8Op| {
            let (weight, channels) = match op {
                Int8Op::Conv { groups: 1, weight, y, .. } | Int8Op::Linear { weight, y, .. } => (weight, y.shape.c),
                _ => return None,
            };
            let weights = net.weights(weight);
            let terms = weights.len() / channels as usize;
            let mut rows = Vec::with_capacity(channels as usize * terms.next_multiple_of(LANES));
            for row in weights.chunks_exact(terms) {
                rows.extend(row.iter().map(|&w| i16::from(w)));
                rows.resize(rows.len().next_multiple_of(LANES), 0);
            }
            Some(rows)
        };
        Self { isa, rows: net.ops().map(wide).collect() }
    }
}

/// The fast kernels of one thread.
#[derive(Debug)]
pub(crate) struct HostInt8<'w> {
    weights: &'w WideWeights,
    patch: Vec<i16>,
}

impl<'w> HostInt8<'w> {
    /// Over the weights of the net that is to run.
    pub(crate) const fn new(weights: &'w WideWeights) -> Self {
        Self { weights, patch: Vec::new() }
    }
}

impl Int8Kernels for HostInt8<'_> {
    fn conv(&mut self, op: usize, args: &ConvArgs<'_>, x: &[i8], y: &mut [i8]) {
        let Some(rows) = self.weights.rows.get(op).and_then(Option::as_ref) else {
            int8::conv(args, x, y);
            return;
        };
        match self.weights.isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: this processor has AVX2: an `Isa` is detected, or asked for and then checked.
            Isa::Avx512 | Isa::Avx2 => unsafe { conv_avx2(args, rows, &mut self.patch, x, y) },
            _ => conv(args, rows, &mut self.patch, x, y),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn conv_avx2(args: &ConvArgs<'_>, rows: &[i16], patch: &mut Vec<i16>, x: &[i8], y: &mut [i8]) {
    conv(args, rows, patch, x, y);
}

/// One patch after the other, `CHANNELS` output channels at a time.
#[inline(always)]
fn conv(args: &ConvArgs<'_>, rows: &[i16], patch: &mut Vec<i16>, x: &[i8], y: &mut [i8]) {
    let (cout, width) = (args.y.c as usize, args.y.w as usize);
    let len = rows.len() / cout;
    patch.clear();
    patch.resize(len, 0);
    for (number, y) in y.chunks_exact_mut(cout).enumerate() {
        fill(args, [number / width, number % width], x, patch);
        let channels = args.channels.chunks(CHANNELS).zip(rows.chunks(CHANNELS * len));
        for (y, (channels, rows)) in y.chunks_mut(CHANNELS).zip(channels) {
            let sums = dots(patch, rows);
            for ((y, &[bias, multiplier, shift]), sum) in y.iter_mut().zip(channels).zip(sums) {
                *y = args.finish.apply(bias.wrapping_add(sum), multiplier, shift);
            }
        }
    }
}

/// The inputs under the window of one output pixel, `[ky][kx][cin]`.
#[inline(always)]
fn fill(args: &ConvArgs<'_>, at: [usize; 2], x: &[i8], patch: &mut [i16]) {
    let Shape { h, w, c } = args.x;
    let (h, w, c) = (h as usize, w as usize, c as usize);
    let [rows, columns] = args.window.kernel.map(|side| side as usize);
    let [down, across] = args.window.stride.map(|step| step as usize);
    let [top, left, ..] = args.window.pad.map(|pad| pad as usize);
    let (first, pad) = (at[1] * across, i16::from(args.pad));
    // Columns of the window that lie in the picture.
    let from = left.saturating_sub(first).min(columns);
    let to = (w + left).saturating_sub(first).clamp(from, columns);
    for (ky, row) in patch[..rows * columns * c].chunks_exact_mut(columns * c).enumerate() {
        let Some(i) = (at[0] * down + ky).checked_sub(top).filter(|&i| i < h) else {
            row.fill(pad);
            continue;
        };
        row[..from * c].fill(pad);
        row[to * c..].fill(pad);
        let inside = &mut row[from * c..to * c];
        if !inside.is_empty() {
            let x = &x[(i * w + first + from - left) * c..][..inside.len()];
            inside.iter_mut().zip(x).for_each(|(to, &x)| *to = x.into());
        }
    }
}

/// The products of a patch with up to `CHANNELS` rows of weights, summed.
#[inline(always)]
fn dots(x: &[i16], rows: &[i16]) -> [i32; CHANNELS] {
    let mut rows = rows.chunks_exact(x.len());
    let mut next = || {
        let row = rows.next().unwrap_or(&[]);
        x.iter().zip(row).fold(0i32, |sum, (&x, &w)| sum.wrapping_add(i32::from(x) * i32::from(w)))
    };
    [next(), next(), next(), next()]
}
