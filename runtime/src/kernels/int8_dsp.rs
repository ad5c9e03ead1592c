//! The 8-bit convolution for Cortex-M4 and M7: two products an instruction, one pixel and four output channels at a time.
//!
//! Four bytes are loaded as one word; `SXTB16` widens bytes 0 and 2, then 1 and 3, of inputs and weights alike, and `SMLAD`
//! multiplies and adds two pairs (ARMv7-M Architecture Reference Manual, A7.7). Sums are those of [`super::int8`], in another
//! order: the same bits. Elsewhere the instructions are spelled out, so that every host can test the kernel around them.

use super::int8;
use crate::net::int8::{ConvArgs, Int8Kernels};
use crate::slices::{rows, rows_mut};

/// The DSP kernels; convolutions in groups take the scalar ones.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dsp;

impl Int8Kernels for Dsp {
    fn conv(&mut self, _: usize, args: &ConvArgs<'_>, x: &[i8], y: &mut [i8]) {
        if args.groups == 1 {
            conv(args, x, y);
        } else {
            int8::conv(args, x, y);
        }
    }
}

/// A convolution without groups. `x`: `[h][w][cin]`, `y`: `[h'][w'][cout]`.
pub fn conv(args: &ConvArgs<'_>, x: &[i8], y: &mut [i8]) {
    let (width, cout) = ((args.y.w as usize).max(1), args.y.c as usize);
    let fan = (args.window.kernel[0] as usize * args.window.kernel[1] as usize * args.x.c as usize).max(1);
    for (number, y) in rows_mut(y, cout).enumerate() {
        let reach = Reach::new(args, number / width, number % width);
        let x = x.get(reach.x..).unwrap_or(&[]);
        let (fours, ones) = y.as_chunks_mut::<4>();
        let (records, of_ones) = args.channels.as_chunks::<4>();
        let last = args.weight.get(fours.len() * 4 * fan..).unwrap_or(&[]);
        for ((y, records), weights) in fours.iter_mut().zip(records).zip(rows(args.weight, 4 * fan)) {
            let mut sums = [0; 4];
            if !reach.is_inside {
                reach.padding(args.pad, weights, fan, &mut sums);
            }
            let weights = weights.get(reach.w..).unwrap_or(&[]);
            quads(&reach, x, weights, fan, &mut sums);
            reach.tails(x, weights, fan, &mut sums);
            finish(args, y, records, sums);
        }
        for ((y, record), weights) in ones.iter_mut().zip(of_ones).zip(rows(last, fan)) {
            let mut sums = [0];
            reach.padding(args.pad, weights, fan, &mut sums);
            let weights = weights.get(reach.w..).unwrap_or(&[]);
            sums.iter_mut().for_each(|sum| reach.words(x, weights, sum));
            reach.tails(x, weights, fan, &mut sums);
            finish(args, core::array::from_mut(y), core::array::from_ref(record), sums);
        }
    }
}

/// From sums without bias to outputs.
#[inline(always)]
fn finish<const C: usize>(args: &ConvArgs<'_>, y: &mut [i8; C], records: &[[i32; 3]; C], sums: [i32; C]) {
    for ((y, &[bias, multiplier, shift]), sum) in y.iter_mut().zip(records).zip(sums) {
        *y = args.finish.apply(bias.wrapping_add(sum), multiplier, shift);
    }
}

/// The part of an output pixel's window that lies on the input: `rows` runs of `len` elements, next to one another in the
/// input and in the weights.
struct Reach {
    rows: usize,
    len: usize,
    /// Where the first run begins, and how far it is to the next, in the input and in a row of weights.
    x: usize,
    x_step: usize,
    w: usize,
    w_step: usize,
    /// No part on padding.
    is_inside: bool,
}

/// The rows or columns of a window that lie on the input, `from..to`, and where on the input the first of them lies.
struct Span {
    from: usize,
    to: usize,
    at: usize,
}

/// A window of `kernel` rows or columns, the first at `first` of an input of `side` with `before` of padding in front.
#[inline(always)]
fn span(kernel: usize, first: usize, before: usize, side: usize) -> Span {
    let from = before.saturating_sub(first).min(kernel);
    let to = (side + before).saturating_sub(first).min(kernel).max(from);
    Span { from, to, at: (first + from).saturating_sub(before) }
}

impl Reach {
    #[inline(always)]
    fn new(args: &ConvArgs<'_>, row: usize, column: usize) -> Self {
        let [kernel_h, kernel_w] = args.window.kernel.map(|side| side as usize);
        let [stride_h, stride_w] = args.window.stride.map(|step| step as usize);
        let [top, left, _, _] = args.window.pad.map(|pad| pad as usize);
        let (h, w, c) = (args.x.h as usize, args.x.w as usize, args.x.c as usize);
        let (rows, columns) = (span(kernel_h, row * stride_h, top, h), span(kernel_w, column * stride_w, left, w));
        Self {
            rows: rows.to - rows.from,
            len: (columns.to - columns.from) * c,
            x: (rows.at * w + columns.at) * c,
            x_step: w * c,
            w: (rows.from * kernel_w + columns.from) * c,
            w_step: kernel_w * c,
            is_inside: (rows.from, columns.from, rows.to, columns.to) == (0, 0, kernel_h, kernel_w),
        }
    }

    /// Run number `i` of a slice that begins with the first run.
    fn run<'s>(&self, of: &'s [i8], step: usize, i: usize) -> &'s [i8] {
        of.get(i * step..).and_then(|of| of.get(..self.len)).unwrap_or(&[])
    }

    /// Adds the products of padding with whole rows of weights: all that is not reached.
    #[inline(never)]
    fn padding<const C: usize>(&self, pad: i8, weights: &[i8], fan: usize, sums: &mut [i32; C]) {
        let pair = u32::from(pad as i16 as u16) * 0x1_0001;
        let add = |sum: &mut i32, w: &[i8]| {
            let (words, rest) = w.as_chunks::<4>();
            *sum = words.iter().fold(*sum, |sum, &w| four([pair, pair], w, sum));
            *sum = rest.iter().fold(*sum, |sum, &w| sum.wrapping_add(i32::from(pad) * i32::from(w)));
        };
        for (sum, weights) in sums.iter_mut().zip(rows(weights, fan)) {
            let mut done = 0;
            for i in 0..self.rows {
                let from = self.w + i * self.w_step;
                add(sum, weights.get(done..from).unwrap_or(&[]));
                done = from + self.len;
            }
            add(sum, weights.get(done..).unwrap_or(&[]));
        }
    }

    /// Adds the products of the whole words of each run with one row of weights.
    fn words(&self, x: &[i8], weights: &[i8], sum: &mut i32) {
        for i in 0..self.rows {
            let (x, w) = (self.run(x, self.x_step, i), self.run(weights, self.w_step, i));
            let words = x.as_chunks::<4>().0.iter().zip(w.as_chunks::<4>().0);
            *sum = words.fold(*sum, |sum, (&x, &w)| four([sxtb16(word(x)), sxtb16_ror8(word(x))], w, sum));
        }
    }

    /// Adds the products of what is left of each run behind its whole words.
    #[inline(always)]
    fn tails<const C: usize>(&self, x: &[i8], weights: &[i8], fan: usize, sums: &mut [i32; C]) {
        if self.len.is_multiple_of(4) {
            return;
        }
        for i in 0..self.rows {
            let x = self.run(x, self.x_step, i).as_chunks::<4>().1;
            for (c, sum) in sums.iter_mut().enumerate() {
                let w = self.run(weights.get(c * fan..).unwrap_or(&[]), self.w_step, i).as_chunks::<4>().1;
                *sum = x.iter().zip(w).fold(*sum, |sum, (&x, &w)| sum.wrapping_add(i32::from(x) * i32::from(w)));
            }
        }
    }
}

/// `sum` plus the products of four inputs, widened, with four weights.
#[inline(always)]
fn four([even, odd]: [u32; 2], w: [i8; 4], sum: i32) -> i32 {
    let w = word(w);
    smlad(odd, sxtb16_ror8(w), smlad(even, sxtb16(w), sum))
}

/// Four bytes as one word.
#[inline(always)]
const fn word([a, b, c, d]: [i8; 4]) -> u32 {
    u32::from_le_bytes([a as u8, b as u8, c as u8, d as u8])
}

#[cfg(cortex_m_dsp)]
use arm::{quads, smlad, sxtb16, sxtb16_ror8};
#[cfg(not(cortex_m_dsp))]
use spelled_out::{quads, smlad, sxtb16, sxtb16_ror8};

#[cfg(cortex_m_dsp)]
mod arm {
    use super::Reach;
    use core::arch::asm;

    /// Bytes 0 and 2, sign-extended to 16 bits.
    #[inline(always)]
    pub(super) fn sxtb16(x: u32) -> u32 {
        let y;
        // SAFETY: an ARMv7E-M instruction (checked by the build script) that touches the registers named only.
        unsafe { asm!("sxtb16 {0}, {1}", lateout(reg) y, in(reg) x, options(pure, nomem, nostack, preserves_flags)) };
        y
    }

    /// Bytes 1 and 3, sign-extended to 16 bits.
    #[inline(always)]
    pub(super) fn sxtb16_ror8(x: u32) -> u32 {
        let y;
        // SAFETY: as above.
        unsafe {
            asm!("sxtb16 {0}, {1}, ror #8", lateout(reg) y, in(reg) x, options(pure, nomem, nostack, preserves_flags));
        }
        y
    }

    /// `sum` plus the products of both halves; the Q flag tells an overflow.
    #[inline(always)]
    pub(super) fn smlad(x: u32, w: u32, sum: i32) -> i32 {
        let y;
        // SAFETY: as above, and the flags.
        unsafe {
            asm!("smlad {0}, {1}, {2}, {3}", lateout(reg) y, in(reg) x, in(reg) w, in(reg) sum,
                options(pure, nomem, nostack));
        }
        y
    }

    /// Adds the products of the whole words of each run with four rows of weights that begin `fan` elements apart.
    #[inline(always)]
    pub(super) fn quads(reach: &Reach, x: &[i8], weights: &[i8], fan: usize, sums: &mut [i32; 4]) {
        let (words, last) = (reach.len / 4, reach.rows.saturating_sub(1));
        let end = |step: usize| last.saturating_mul(step).saturating_add(reach.len);
        if reach.rows == 0
            || x.len() < end(reach.x_step)
            || weights.len() < fan.saturating_mul(3).saturating_add(end(reach.w_step))
        {
            return;
        }
        let [mut a, mut b, mut c, mut d] = *sums;
        let (mut x, mut w) = (x.as_ptr(), weights.as_ptr());
        for _ in 0..reach.rows {
            for _ in 0..words {
                // SAFETY: ARMv7E-M instructions that read one word at `x` and one in each of four rows, all within the slices by
                // the lengths above; unaligned words may be loaded. Both pointers move on by a word, at most to the run's end.
                unsafe {
                    asm!(
                        "ldr {even}, [{x}], #4",
                        "ldr {v}, [{w}, {fan}]",
                        "sxtb16 {odd}, {even}, ror #8",
                        "sxtb16 {even}, {even}",
                        "sxtb16 {u}, {v}, ror #8",
                        "sxtb16 {v}, {v}",
                        "smlad {b}, {odd}, {u}, {b}",
                        "smlad {b}, {even}, {v}, {b}",
                        "add {v}, {w}, {fan}, lsl #1",
                        "ldr {v}, [{v}]",
                        "sxtb16 {u}, {v}, ror #8",
                        "sxtb16 {v}, {v}",
                        "smlad {c}, {odd}, {u}, {c}",
                        "smlad {c}, {even}, {v}, {c}",
                        "add {v}, {w}, {fan}, lsl #1",
                        "ldr {v}, [{v}, {fan}]",
                        "sxtb16 {u}, {v}, ror #8",
                        "sxtb16 {v}, {v}",
                        "smlad {d}, {odd}, {u}, {d}",
                        "smlad {d}, {even}, {v}, {d}",
                        "ldr {v}, [{w}], #4",
                        "sxtb16 {u}, {v}, ror #8",
                        "sxtb16 {v}, {v}",
                        "smlad {a}, {odd}, {u}, {a}",
                        "smlad {a}, {even}, {v}, {a}",
                        x = inout(reg) x, w = inout(reg) w, fan = in(reg) fan,
                        a = inout(reg) a, b = inout(reg) b, c = inout(reg) c, d = inout(reg) d,
                        even = out(reg) _, odd = out(reg) _, u = out(reg) _, v = out(reg) _,
                        options(pure, readonly, nostack)
                    );
                }
            }
            x = x.wrapping_add(reach.x_step.wrapping_sub(4 * words));
            w = w.wrapping_add(reach.w_step.wrapping_sub(4 * words));
        }
        *sums = [a, b, c, d];
    }
}

#[cfg(not(cortex_m_dsp))]
mod spelled_out {
    use super::Reach;

    /// Adds the products of the whole words of each run with four rows of weights that begin `fan` elements apart.
    pub(super) fn quads(reach: &Reach, x: &[i8], weights: &[i8], fan: usize, sums: &mut [i32; 4]) {
        for (c, sum) in sums.iter_mut().enumerate() {
            reach.words(x, weights.get(c * fan..).unwrap_or(&[]), sum);
        }
    }

    /// Bytes 0 and 2, sign-extended to 16 bits.
    #[inline(always)]
    pub(super) const fn sxtb16(x: u32) -> u32 {
        (x as i8 as i16 as u16 as u32) | ((x >> 16) as i8 as i16 as u16 as u32) << 16
    }

    /// Bytes 1 and 3, sign-extended to 16 bits.
    #[inline(always)]
    pub(super) const fn sxtb16_ror8(x: u32) -> u32 {
        sxtb16(x.rotate_right(8))
    }

    /// `sum` plus the products of both halves.
    #[inline(always)]
    pub(super) const fn smlad(x: u32, w: u32, sum: i32) -> i32 {
        let low = x as i16 as i32 * (w as i16 as i32);
        let high = (x >> 16) as i16 as i32 * ((w >> 16) as i16 as i32);
        sum.wrapping_add(low).wrapping_add(high)
    }
}
