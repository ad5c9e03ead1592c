//! The check at the door: one walk over the operations that proves the net can run.

use super::{Activation, Net, Op, Place, Slot, Window};
use crate::error::{Error, OpFault, Result};
use crate::shape::Shape;
use serde::de::DeserializeOwned;

/// Values that may lie in the arena side by side.
const LIVE: usize = 64;

/// An operation as the walk at the door sees it.
pub(super) trait Operation: DeserializeOwned {
    /// The values read: one or two.
    fn inputs(&self) -> (Slot, Option<Slot>);
    /// The value written.
    fn output(&self) -> Slot;
    /// The output shape that follows from the inputs and spans.
    fn infer(&self) -> core::result::Result<Shape, OpFault>;
}

impl Operation for Op {
    fn inputs(&self) -> (Slot, Option<Slot>) {
        self.inputs()
    }

    fn output(&self) -> Slot {
        self.output()
    }

    fn infer(&self) -> core::result::Result<Shape, OpFault> {
        infer(self)
    }
}

/// The frame of a net: what its operations are checked against.
#[derive(Clone, Copy)]
pub(super) struct Frame<'a> {
    pub(super) input: Shape,
    pub(super) output: Shape,
    /// In elements of one value.
    pub(super) arena_len: usize,
    pub(super) op_count: u32,
    pub(super) ops: &'a [u8],
}

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
        walk(Frame { input, output, arena_len, op_count, ops }, |op: &Op| {
            let inside = |s: super::Span| u64::from(s.at) + u64::from(s.len) <= weights.len() as u64;
            if op.spans().into_iter().flatten().all(inside) { Ok(()) } else { Err(OpFault::Span) }
        })?;
        if !weights.iter().all(|w| w.is_finite()) {
            return Err(Error::NotFinite);
        }
        Ok(Self { input, output, arena_len, op_count, ops, weights })
    }
}

/// Decodes the operations in order and proves that their shapes follow from one another, that `numbers` accepts what else
/// each of them holds, and that memory is written before it is read and not overwritten in between.
pub(super) fn walk<O: Operation>(
    frame: Frame<'_>,
    mut numbers: impl FnMut(&O) -> core::result::Result<(), OpFault>,
) -> Result<()> {
    let Frame { input, output, arena_len, op_count, ops } = frame;
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
        let (op, tail) = postcard::take_from_bytes::<O>(rest).map_err(|_| Error::BadManifest)?;
        rest = tail;
        let y = op.output();
        if op.infer().map_err(fault)? != y.shape {
            return Err(fault(OpFault::Shape));
        }
        numbers(&op).map_err(fault)?;
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
    Ok(())
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
            let (shape, fan) = convolved(x.shape, y, window, groups)?;
            let [rows, columns, channels] = fan;
            exact(weight.len, [rows, columns, channels, shape.c])?;
            bias.map_or(Ok(()), |b| exact(b.len, [shape.c]))?;
            shape
        }
        Op::Affine { x, scale, shift, .. } => {
            scale.map_or(Ok(()), |s| exact(s.len, [x.shape.c]))?;
            shift.map_or(Ok(()), |s| exact(s.len, [x.shape.c]))?;
            x.shape
        }
        Op::Add { a, b, .. } => added(a.shape, b.shape)?,
        Op::Mul { a, b, .. } => multiplied(a.shape, b.shape)?,
        Op::Concat { a, b, .. } => joined(a.shape, b.shape)?,
        Op::MaxPool { x, window, .. } | Op::AvgPool { x, window, .. } => pooled(x.shape, window)?,
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

/// The output shape of a convolution, and rows, columns and input channels of what one of its sums runs over.
pub(super) fn convolved(
    x: Shape,
    y: Slot,
    window: Window,
    groups: u32,
) -> core::result::Result<(Shape, [u32; 3]), OpFault> {
    let [h, w] = window.output(x.h, x.w).ok_or(OpFault::Window)?;
    let (cin, cout) = (x.c, channels(y)?);
    if groups == 0 || cin % groups != 0 || cout % groups != 0 {
        return Err(OpFault::Window);
    }
    let [rows, columns] = window.kernel;
    Ok((Shape::new(h, w, cout), [rows, columns, cin / groups]))
}

/// The output shape of a pooling.
pub(super) fn pooled(x: Shape, window: Window) -> core::result::Result<Shape, OpFault> {
    let [h, w] = window.output(x.h, x.w).ok_or(OpFault::Window)?;
    Ok(Shape::new(h, w, x.c))
}

/// The output shape of a sum.
pub(super) fn added(a: Shape, b: Shape) -> core::result::Result<Shape, OpFault> {
    if a == b { Ok(a) } else { Err(OpFault::Shape) }
}

/// The output shape of a product, element by element or by channel.
pub(super) fn multiplied(a: Shape, b: Shape) -> core::result::Result<Shape, OpFault> {
    if a == b || b == Shape::new(1, 1, a.c) { Ok(a) } else { Err(OpFault::Shape) }
}

/// The output shape of two values side by side.
pub(super) fn joined(a: Shape, b: Shape) -> core::result::Result<Shape, OpFault> {
    if a.h == b.h && a.w == b.w { Ok(Shape::new(a.h, a.w, a.c + b.c)) } else { Err(OpFault::Shape) }
}

/// The output channels, within bounds.
pub(super) fn channels(y: Slot) -> core::result::Result<u32, OpFault> {
    if (1..=Shape::MAX_SIDE).contains(&y.shape.c) { Ok(y.shape.c) } else { Err(OpFault::Dimension) }
}

/// A span must hold exactly the product of `sides`.
pub(super) fn exact<const N: usize>(len: u32, sides: [u32; N]) -> core::result::Result<(), OpFault> {
    let product = sides.into_iter().try_fold(1u64, |n, side| n.checked_mul(u64::from(side)));
    if product == Some(u64::from(len)) { Ok(()) } else { Err(OpFault::Span) }
}
