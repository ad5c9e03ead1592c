//! The check at the door of an 8-bit net: the walk every net passes, and the numbers that keep sums within 32 bits.

use super::{Finish, Int8Net, Int8Op, Int8Spec, MAX_BIAS, MAX_CELLS, MAX_FACTOR, Quant, RECORD, Rescale};
use crate::error::{Error, OpFault, Result};
use crate::net::check::{Frame, Operation, added, channels, convolved, exact, joined, multiplied, pooled, walk};
use crate::net::{Slot, Span};
use crate::shape::Shape;

type Verdict<T = ()> = core::result::Result<T, OpFault>;

impl<'a> Int8Net<'a> {
    /// Checks a stored net over its weights, `words`, whose bytes the spans count.
    ///
    /// Proves what [`crate::net::Net::new_checked`] proves, and that no sum leaves 32 bits: at most 65,536 products or cells a
    /// sum, biases below 2^30, shifts within 1..=30, multipliers at least 0, slopes within 0..=2^16.
    ///
    /// Errors: [`Error::BadOperation`], [`Error::BadManifest`] (undecodable or trailing bytes), [`Error::WrongLength`]
    /// (the arena), [`Error::NotFinite`] (scales), [`Error::Capacity`] (more than 64 values in the arena at once).
    pub fn new_checked(spec: Int8Spec<'a>, words: &'a [i32]) -> Result<Self> {
        let net = Self { spec, words };
        let Int8Spec { input, output, arena_len, op_count, ops, .. } = spec;
        let frame = Frame { input, output, arena_len: arena_len as usize, op_count, ops };
        walk(frame, |op: &Int8Op| net.numbers(op))?;
        let real = |q: Quant| q.scale.is_finite() && q.scale > 0.0;
        if real(spec.input_quant) && real(spec.output_quant) { Ok(net) } else { Err(Error::NotFinite) }
    }

    /// Spans lie inside the weights, and every number is within its bounds.
    fn numbers(&self, op: &Int8Op) -> Verdict {
        let bytes = 4 * self.words.len() as u64;
        let inside = |s: Span| u64::from(s.at) + u64::from(s.len) <= bytes;
        let [weight, records] = op.spans();
        if !weight.is_none_or(inside) || !records.is_none_or(|s| inside(s) && s.at.is_multiple_of(4)) {
            return Err(OpFault::Span);
        }
        let sane = |r: Rescale| r.multiplier >= 0 && (1..=30).contains(&r.shift);
        let bias = |bias: i32| bias.unsigned_abs() < MAX_BIAS.unsigned_abs();
        let record =
            |&[start, multiplier, shift]: &[i32; 3]| bias(start) && multiplier >= 0 && (1..=30).contains(&shift);
        let finish = |f: Finish| f.slope <= Finish::NO_SLOPE && f.low <= f.high;
        let sums = match *op {
            Int8Op::Add { factors, bias: start, .. } => {
                bias(start) && factors.iter().all(|f| (0..=MAX_FACTOR).contains(f))
            }
            _ => records.is_none_or(|span| self.channels(span).iter().all(record)),
        };
        let rescales = op.rescales().into_iter().flatten().all(sane);
        if sums && rescales && op.finish().is_none_or(finish) { Ok(()) } else { Err(OpFault::Number) }
    }
}

/// One sum or mean runs over at most [`MAX_CELLS`].
fn bounded<const N: usize>(sides: [u32; N]) -> Verdict {
    let product = sides.into_iter().try_fold(1u64, |n, side| n.checked_mul(u64::from(side)));
    if product.is_some_and(|n| n <= MAX_CELLS) { Ok(()) } else { Err(OpFault::Number) }
}

/// A record for each channel.
fn records(span: Span, channels: u32) -> Verdict {
    exact(span.len, [channels, RECORD])
}

impl Operation for Int8Op {
    fn inputs(&self) -> (Slot, Option<Slot>) {
        self.inputs()
    }

    fn output(&self) -> Slot {
        self.output()
    }

    fn infer(&self) -> Verdict<Shape> {
        let (first, second) = self.inputs();
        if !first.shape.is_valid() || !second.is_none_or(|s| s.shape.is_valid()) {
            return Err(OpFault::Dimension);
        }
        let shape = match *self {
            Self::Conv { x, y, window, groups, weight, channels, .. } => {
                let (shape, [rows, columns, depth]) = convolved(x.shape, y, window, groups)?;
                bounded([rows, columns, depth])?;
                exact(weight.len, [shape.c, rows, columns, depth])?;
                records(channels, shape.c)?;
                shape
            }
            Self::Affine { x, weight, channels, .. } => {
                exact(weight.len, [x.shape.c])?;
                records(channels, x.shape.c)?;
                x.shape
            }
            Self::Add { a, b, .. } => added(a.shape, b.shape)?,
            Self::Mul { a, b, .. } => multiplied(a.shape, b.shape)?,
            Self::Concat { a, b, .. } => joined(a.shape, b.shape)?,
            Self::MaxPool { x, window, .. } => pooled(x.shape, window)?,
            Self::AvgPool { x, window, .. } => {
                let shape = pooled(x.shape, window)?;
                bounded(window.kernel)?;
                shape
            }
            Self::GlobalAvgPool { x, .. } => {
                bounded([x.shape.h, x.shape.w])?;
                Shape::new(1, 1, x.shape.c)
            }
            Self::Linear { x, y, weight, channels: of, .. } => {
                let out = channels(y)?;
                bounded([x.shape.h, x.shape.w, x.shape.c])?;
                exact(weight.len, [out, x.shape.len() as u32])?;
                records(of, out)?;
                Shape::new(1, 1, out)
            }
            Self::Table { x, table, .. } => {
                exact(table.len, [256])?;
                x.shape
            }
        };
        if shape.is_valid() { Ok(shape) } else { Err(OpFault::Dimension) }
    }
}
