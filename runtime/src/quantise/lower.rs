//! Operations from `f32` to 8 bits, one after the other.

use super::observe::{Calibration, Seen, on_sums};
use super::range::covering;
use super::{QuantiseError, Why};
use crate::error::{Error, OpFault};
use crate::net::int8::build::Int8Builder;
use crate::net::int8::{
    CONCAT_SHIFT, Finish, Int8Op, MAX_BIAS, MAX_CELLS, MAX_FACTOR, MUL_SHIFT, OwnedInt8Net, Quant, Rescale, mean_shift,
};
use crate::net::{Activation, Net, Op, Place, Slot, Span};
use std::vec::Vec;

type Result<T> = core::result::Result<T, Why>;

/// The largest factor that [`Rescale`] holds.
const MAX_RESCALE: f64 = 0.25;

/// The 8-bit form of a net, by what its values were on the calibration pictures. Pictures are taken to hold 0..=1.
///
/// # Errors
/// [`Why::TooManyTerms`], [`Why::Core`]: the operation is named.
pub fn quantise(net: &Net<'_>, calibration: &Calibration) -> core::result::Result<OwnedInt8Net, QuantiseError> {
    let (out, _) = lower(net, calibration)?;
    out.finish().map_err(|e| QuantiseError { op: None, kind: "net", why: Why::Core(e) })
}

/// The 8-bit operations, and which value each `f32` operation's output is now.
pub(super) fn lower(
    net: &Net<'_>,
    calibration: &Calibration,
) -> core::result::Result<(Int8Builder, Vec<u32>), QuantiseError> {
    let mut lowering = Lowering { net, out: Int8Builder::new(net.input(), Quant::PICTURE), homes: Vec::new() };
    let (none, mut values) = (Seen::default(), Vec::new());
    for (number, op) in net.ops().enumerate() {
        let seen = calibration.seen.get(number).unwrap_or(&none);
        let lowered = lowering.operation(&op, seen);
        values.push(lowered.map_err(|why| QuantiseError { op: Some(number as u32), kind: op.name(), why })?);
    }
    Ok((lowering.out, values))
}

struct Lowering<'n, 'a> {
    net: &'n Net<'a>,
    out: Int8Builder,
    /// Where each value of the `f32` arena lies, and its number now.
    homes: Vec<(u32, u32)>,
}

impl Lowering<'_, '_> {
    /// The value a slot of the `f32` net names.
    fn read(&self, slot: Slot) -> Result<(Slot, Quant)> {
        let value = match slot.place {
            Place::Input => Some(0),
            Place::Output => None,
            Place::Arena(at) => self.homes.iter().find(|home| home.0 == at).map(|home| home.1),
        };
        value.map(|v| self.out.value(v)).ok_or(Why::Core(Error::BadOperation { op: 0, why: OpFault::Slot }))
    }

    /// Adds one operation, and a table behind it where its activation needs one; the value of its output.
    fn operation(&mut self, op: &Op, seen: &Seen) -> Result<u32> {
        let act = op.activation().unwrap_or(Activation::None);
        let range = seen.output.range();
        let value = match *op {
            Op::Affine { x, scale: None, shift: None, .. } => {
                let (x, from) = self.read(x)?;
                self.table(x, from, act, covering(range, 0.0))
            }
            _ if on_sums(act) => self.sums(op, act, range)?,
            _ => {
                let sums = self.sums(op, Activation::None, seen.before.range())?;
                let (x, from) = self.out.value(sums);
                self.table(x, from, act, covering(range, 0.0))
            }
        };
        if let Place::Arena(at) = op.output().place {
            self.homes.retain(|home| home.0 != at);
            self.homes.push((at, value));
        }
        Ok(value)
    }

    /// A function of one element.
    fn table(&mut self, x: Slot, from: Quant, act: Activation, to: Quant) -> u32 {
        let table: Vec<i8> = (-128..=127).map(|q| to.quantise(act.apply(from.dequantise(q)))).collect();
        let (y, table) = (self.out.next(x.shape), self.out.weights(&table));
        self.out.push(Int8Op::Table { x, y, table }, to)
    }

    /// An operation by its sums.
    fn sums(&mut self, op: &Op, act: Activation, range: (f64, f64)) -> Result<u32> {
        let shape = op.output().shape;
        let y = self.out.next(shape);
        let net = self.net;
        let [first, second] = op.spans().map(|span| span.map(|span| net.span(span)));
        let at = |of: Option<&[f32]>, i: usize, missing: f32| f64::from(of.map_or(missing, |of| of[i]));
        Ok(match *op {
            Op::Conv { x, window, groups, .. } => {
                let (x, from) = self.read(x)?;
                let (cout, terms) =
                    (shape.c as usize, (window.kernel[0] * window.kernel[1] * (x.shape.c / groups)) as usize);
                few(terms as u64)?;
                let rows = (0..cout).map(|o| {
                    let row = (0..terms).map(|i| at(first, i * cout + o, 0.0)).collect();
                    (row, at(second, o, 0.0))
                });
                let (weight, channels, finish, quant) = self.channels(rows, from, range, act);
                let pad = from.zero;
                self.out.push(Int8Op::Conv { x, y, window, groups, pad, weight, channels, finish }, quant)
            }
            Op::Linear { x, .. } => {
                let (x, from) = self.read(x)?;
                let (out, terms) = (shape.c as usize, x.shape.len());
                few(terms as u64)?;
                let rows = (0..out).map(|o| {
                    let row = (0..terms).map(|i| at(first, i * out + o, 0.0)).collect();
                    (row, at(second, o, 0.0))
                });
                let (weight, channels, finish, quant) = self.channels(rows, from, range, act);
                self.out.push(Int8Op::Linear { x, y, weight, channels, finish }, quant)
            }
            Op::Affine { x, .. } => {
                let (x, from) = self.read(x)?;
                let rows = (0..shape.c as usize).map(|c| (Vec::from([at(first, c, 1.0)]), at(second, c, 0.0)));
                let (weight, channels, finish, quant) = self.channels(rows, from, range, act);
                self.out.push(Int8Op::Affine { x, y, weight, channels, finish }, quant)
            }
            Op::Add { a, b, .. } => {
                let ((a, from_a), (b, from_b)) = (self.read(a)?, self.read(b)?);
                let scales = [from_a, from_b].map(|q| f64::from(q.scale));
                let unit = scales[0].max(scales[1]) / f64::from(MAX_FACTOR);
                let factors = scales.map(|s| (s / unit).round() as i32);
                let bias = -(i32::from(from_a.zero) * factors[0] + i32::from(from_b.zero) * factors[1]);
                let quant = covering(range, unit / MAX_RESCALE);
                let (rescale, finish) = (rescale(unit / f64::from(quant.scale)), finish(act, quant));
                self.out.push(Int8Op::Add { a, b, y, factors, bias, rescale, finish }, quant)
            }
            Op::Mul { a, b, .. } => {
                let ((a, from_a), (b, from_b)) = (self.read(a)?, self.read(b)?);
                let unit = f64::from(from_a.scale) * f64::from(from_b.scale) / f64::from(1 << MUL_SHIFT);
                let quant = covering(range, unit / MAX_RESCALE);
                let (rescale, finish) = (rescale(unit / f64::from(quant.scale)), finish(act, quant));
                let zeros = [from_a.zero, from_b.zero];
                self.out.push(Int8Op::Mul { a, b, y, zeros, rescale, finish }, quant)
            }
            Op::Concat { a, b, .. } => {
                let ((a, from_a), (b, from_b)) = (self.read(a)?, self.read(b)?);
                let units = [from_a, from_b].map(|q| f64::from(q.scale) / f64::from(1 << CONCAT_SHIFT));
                let quant = covering(range, units[0].max(units[1]) / MAX_RESCALE);
                let rescales = units.map(|unit| rescale(unit / f64::from(quant.scale)));
                let zeros = [from_a.zero, from_b.zero];
                self.out.push(Int8Op::Concat { a, b, y, zeros, rescales, zero: quant.zero }, quant)
            }
            Op::MaxPool { x, window, .. } => {
                let (x, from) = self.read(x)?;
                self.out.push(Int8Op::MaxPool { x, y, window }, from)
            }
            Op::AvgPool { x, window, count_pad, .. } => {
                let (x, from) = self.read(x)?;
                let (zeros, rescale, quant) = mean(from, range, window.kernel)?;
                self.out.push(Int8Op::AvgPool { x, y, window, count_pad, zeros, rescale }, quant)
            }
            Op::GlobalAvgPool { x, .. } => {
                let (x, from) = self.read(x)?;
                let (zeros, rescale, quant) = mean(from, range, [x.shape.h, x.shape.w])?;
                self.out.push(Int8Op::GlobalAvgPool { x, y, zeros, rescale }, quant)
            }
        })
    }

    /// The weights and records of an operation's output channels, each given as its weights and its bias.
    fn channels(
        &mut self,
        rows: impl Iterator<Item = (Vec<f64>, f64)>,
        from: Quant,
        range: (f64, f64),
        act: Activation,
    ) -> (Span, Span, Finish, Quant) {
        let rows: Vec<Channel> = rows.map(|(row, bias)| Channel::new(&row, bias, from)).collect();
        let least = rows.iter().map(|row| row.unit).fold(0.0, f64::max) / MAX_RESCALE;
        let quant = covering(range, least);
        let record = |row: &Channel| {
            let by = rescale(row.unit / f64::from(quant.scale));
            [row.bias, by.multiplier, by.shift.into()]
        };
        let weights: Vec<i8> = rows.iter().flat_map(|row| row.weights.iter().copied()).collect();
        let channels: Vec<[i32; 3]> = rows.iter().map(record).collect();
        (self.out.weights(&weights), self.out.channels(&channels), finish(act, quant), quant)
    }
}

/// One output channel in integers.
struct Channel {
    weights: Vec<i8>,
    bias: i32,
    /// What 1 in a sum stands for.
    unit: f64,
}

impl Channel {
    /// Symmetric weights of at most 127. The scale grows beyond what the weights ask for where a bias would not fit.
    fn new(row: &[f64], bias: f64, from: Quant) -> Self {
        let largest = row.iter().fold(0.0, |m: f64, w| m.max(w.abs()));
        let x = f64::from(from.scale);
        let most = f64::from(MAX_BIAS - 1);
        let mut scale = (largest / 127.0).max(bias.abs() / (x * most / 2.0)).max(f64::from(f32::MIN_POSITIVE));
        loop {
            let weights: Vec<i8> = row.iter().map(|w| (w / scale).round().clamp(-127.0, 127.0) as i8).collect();
            let sum: f64 = weights.iter().map(|&w| f64::from(w)).sum();
            let start = (bias / (x * scale)).round() - f64::from(from.zero) * sum;
            if start.abs() <= most {
                return Self { weights, bias: start as i32, unit: x * scale };
            }
            scale *= 2.0;
        }
    }
}

/// At most 65,536 products or cells a sum.
fn few(terms: u64) -> Result<()> {
    if terms <= MAX_CELLS { Ok(()) } else { Err(Why::TooManyTerms(terms)) }
}

/// A factor below 1/4, as near as 31 bits come.
fn rescale(factor: f64) -> Rescale {
    let exponent = -factor.log2().floor();
    // The shift that puts the multiplier within 2^30..2^31.
    let shift = (exponent - 2.0).clamp(1.0, 30.0);
    let multiplier = (factor * (32.0 + shift).exp2()).round().clamp(0.0, f64::from(i32::MAX));
    Rescale { multiplier: multiplier as i32, shift: shift as u8 }
}

/// How sums end.
pub(super) fn finish(act: Activation, to: Quant) -> Finish {
    let plain = Finish::plain(to.zero);
    match act {
        Activation::Relu => Finish { low: to.zero, ..plain },
        Activation::Relu6 => Finish { low: to.zero, high: to.quantise(6.0), ..plain },
        Activation::Leaky(slope) => Finish { slope: (slope * Finish::NO_SLOPE as f32).round() as u32, ..plain },
        _ => plain,
    }
}

/// The numbers of a mean over `sides`.
fn mean(from: Quant, range: (f64, f64), sides: [u32; 2]) -> Result<([i8; 2], Rescale, Quant)> {
    let cells = u64::from(sides[0]) * u64::from(sides[1]);
    few(cells)?;
    let unit = f64::from(from.scale) / f64::from(1u32 << mean_shift(cells as u32));
    let quant = covering(range, unit / MAX_RESCALE);
    Ok(([from.zero, quant.zero], rescale(unit / f64::from(quant.scale)), quant))
}
