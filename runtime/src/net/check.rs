//! The check at the door: one walk over the operations that proves the net can run.

use super::{Activation, Net, Op, Place, Slot};
use crate::error::{Error, OpFault, Result};
use crate::shape::Shape;

/// Values that may lie in the arena side by side.
const LIVE: usize = 64;

impl<'a> Net<'a> {
    /// Checks `op_count` operations (postcard, one after the other) over `weights` and returns the net.
    ///
    /// Proves that every shape follows from the inputs, windows and groups are sane, spans lie inside the weights and
    /// have the exact length, all numbers are finite, every value is written before it is read and not overwritten in
    /// between, no operation writes over its own input, the last one and only it writes the output, `arena_len` (`f32`
    /// elements) is exactly what is used, and no byte follows the last operation.
    ///
    /// Errors: [`Error::BadOperation`], [`Error::BadManifest`] (undecodable or trailing bytes), [`Error::WrongLength`]
    /// (the arena), [`Error::NotFinite`], [`Error::Capacity`] (more than 64 values in the arena at once).
    pub fn new_checked(
        input: Shape,
        output: Shape,
        arena_len: usize,
        op_count: u32,
        ops: &'a [u8],
        weights: &'a [f32],
    ) -> Result<Self> {
        if !input.is_valid() || !output.is_valid() {
            return Err(Error::BadOperation { op: 0, why: OpFault::Dimension });
        }
        if op_count == 0 {
            return Err(Error::BadOperation { op: 0, why: OpFault::Slot });
        }
        let mut live: heapless::Vec<(u32, Shape), LIVE> = heapless::Vec::new();
        let mut extent = 0;
        let mut rest = ops;
        for number in 0..op_count {
            let fault = |why| Error::BadOperation { op: number, why };
            let (op, tail) = postcard::take_from_bytes::<Op>(rest).map_err(|_| Error::BadManifest)?;
            rest = tail;
            let y = op.output();
            if infer(&op).map_err(fault)? != y.shape {
                return Err(fault(OpFault::Shape));
            }
            let inside = |s: super::Span| u64::from(s.at) + u64::from(s.len) <= weights.len() as u64;
            if !op.spans().into_iter().flatten().all(inside) {
                return Err(fault(OpFault::Span));
            }
            let (first, second) = op.inputs();
            let readable = |slot: Slot| match slot.place {
                Place::Input => slot.shape == input,
                Place::Output => false,
                Place::Arena(at) => live.contains(&(at, slot.shape)) && !overlap(slot, y),
            };
            if !readable(first) || !second.is_none_or(readable) {
                return Err(fault(OpFault::Slot));
            }
            let last = number + 1 == op_count;
            match y.place {
                Place::Output if last && y.shape == output => {}
                Place::Output if last => return Err(fault(OpFault::Shape)),
                Place::Arena(at) if !last => {
                    let end = u64::from(at) + y.shape.len() as u64;
                    if end > arena_len as u64 {
                        return Err(fault(OpFault::Slot));
                    }
                    extent = extent.max(end as usize);
                    live.retain(|&(at, shape)| !overlap(Slot { place: Place::Arena(at), shape }, y));
                    live.push((at, y.shape)).map_err(|_| Error::Capacity)?;
                }
                _ => return Err(fault(OpFault::Slot)),
            }
        }
        if !rest.is_empty() {
            return Err(Error::BadManifest);
        }
        if extent != arena_len {
            return Err(Error::WrongLength { needed: extent, given: arena_len });
        }
        if !weights.iter().all(|w| w.is_finite()) {
            return Err(Error::NotFinite);
        }
        Ok(Self { input, output, arena_len, op_count, ops, weights })
    }
}

/// Whether two slots share an element of the arena.
fn overlap(a: Slot, b: Slot) -> bool {
    let range = |s: Slot| match s.place {
        Place::Arena(at) => Some((u64::from(at), u64::from(at) + s.shape.len() as u64)),
        _ => None,
    };
    match (range(a), range(b)) {
        (Some(a), Some(b)) => a.0 < b.1 && b.0 < a.1,
        _ => false,
    }
}

/// The output shape that follows from the inputs and spans; of `y` only the channels of a convolution or a linear layer
/// are read.
pub(super) fn infer(op: &Op) -> core::result::Result<Shape, OpFault> {
    let (first, second) = op.inputs();
    if !first.shape.is_valid() || !second.is_none_or(|s| s.shape.is_valid()) {
        return Err(OpFault::Dimension);
    }
    if let Some(Activation::Leaky(slope)) = op.activation()
        && !slope.is_finite()
    {
        return Err(OpFault::Activation);
    }
    let shape = match *op {
        Op::Conv { x, y, window, groups, weight, bias, .. } => {
            let [h, w] = window.output(x.shape.h, x.shape.w).ok_or(OpFault::Window)?;
            let (cin, cout) = (x.shape.c, channels(y)?);
            if groups == 0 || cin % groups != 0 || cout % groups != 0 {
                return Err(OpFault::Window);
            }
            let [rows, columns] = window.kernel;
            exact(weight.len, [rows, columns, cin / groups, cout])?;
            bias.map_or(Ok(()), |b| exact(b.len, [cout]))?;
            Shape::new(h, w, cout)
        }
        Op::Affine { x, scale, shift, .. } => {
            scale.map_or(Ok(()), |s| exact(s.len, [x.shape.c]))?;
            shift.map_or(Ok(()), |s| exact(s.len, [x.shape.c]))?;
            x.shape
        }
        Op::Add { a, b, .. } if a.shape == b.shape => a.shape,
        Op::Mul { a, b, .. } if a.shape == b.shape || b.shape == Shape::new(1, 1, a.shape.c) => a.shape,
        Op::Concat { a, b, .. } if a.shape.h == b.shape.h && a.shape.w == b.shape.w => {
            Shape::new(a.shape.h, a.shape.w, a.shape.c + b.shape.c)
        }
        Op::Add { .. } | Op::Mul { .. } | Op::Concat { .. } => return Err(OpFault::Shape),
        Op::MaxPool { x, window, .. } | Op::AvgPool { x, window, .. } => {
            let [h, w] = window.output(x.shape.h, x.shape.w).ok_or(OpFault::Window)?;
            Shape::new(h, w, x.shape.c)
        }
        Op::GlobalAvgPool { x, .. } => Shape::new(1, 1, x.shape.c),
        Op::Linear { x, y, weight, bias, .. } => {
            let out = channels(y)?;
            exact(weight.len, [x.shape.len() as u32, out])?;
            bias.map_or(Ok(()), |b| exact(b.len, [out]))?;
            Shape::new(1, 1, out)
        }
    };
    if shape.is_valid() { Ok(shape) } else { Err(OpFault::Dimension) }
}

/// The output channels, within bounds.
fn channels(y: Slot) -> core::result::Result<u32, OpFault> {
    if (1..=Shape::MAX_SIDE).contains(&y.shape.c) { Ok(y.shape.c) } else { Err(OpFault::Dimension) }
}

/// A span must hold exactly the product of `sides`.
fn exact<const N: usize>(len: u32, sides: [u32; N]) -> core::result::Result<(), OpFault> {
    let product = sides.into_iter().try_fold(1u64, |n, side| n.checked_mul(u64::from(side)));
    if product == Some(u64::from(len)) { Ok(()) } else { Err(OpFault::Span) }
}
