//! Building an 8-bit net: operations and weights collected in order, memory planned.

use super::{Int8Net, Int8Op, Int8Spec, Quant};
use crate::error::{Error, Result};
use crate::net::plan::{Step, arena};
use crate::net::{Place, Slot, Span};
use crate::shape::Shape;
use std::vec::Vec;

/// Spans begin at multiples of this many bytes.
const ALIGN: usize = 16;

/// All weights together fill a multiple of this many bytes, as an artifact's head wants it.
const PART: usize = 64;

/// Collects the operations of an 8-bit net. Until [`Int8Builder::finish`], `Place::Arena(n)` stands for value `n`: 0 is the
/// picture, `n` the output of the `n`th operation.
#[derive(Clone, Debug)]
pub(crate) struct Int8Builder {
    /// Shape and meaning of each value.
    values: Vec<(Shape, Quant)>,
    ops: Vec<Int8Op>,
    bytes: Vec<u8>,
}

impl Int8Builder {
    /// A picture and no operation yet.
    pub(crate) fn new(input: Shape, quant: Quant) -> Self {
        Self { values: std::vec![(input, quant)], ops: Vec::new(), bytes: Vec::new() }
    }

    /// A value as an operation names it, and what it stands for.
    pub(crate) fn value(&self, n: u32) -> (Slot, Quant) {
        let (shape, quant) = self.values[n as usize];
        (Slot { place: Place::Arena(n), shape }, quant)
    }

    /// The slot of the next operation's output.
    pub(crate) fn next(&self, shape: Shape) -> Slot {
        Slot { place: Place::Arena(self.values.len() as u32), shape }
    }

    /// Adds an operation that writes [`Int8Builder::next`]; the number of its output.
    pub(crate) fn push(&mut self, op: Int8Op, quant: Quant) -> u32 {
        self.values.push((op.output().shape, quant));
        self.ops.push(op);
        self.values.len() as u32 - 1
    }

    /// Keeps 8-bit weights or a table.
    pub(crate) fn weights(&mut self, weights: &[i8]) -> Span {
        self.keep(bytemuck::cast_slice(weights))
    }

    /// Keeps channel records.
    pub(crate) fn channels(&mut self, channels: &[[i32; 3]]) -> Span {
        self.keep(bytemuck::cast_slice(channels))
    }

    fn keep(&mut self, bytes: &[u8]) -> Span {
        let span = Span { at: self.bytes.len() as u32, len: bytes.len() as u32 };
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        span
    }

    /// The operations so far.
    #[cfg(test)]
    pub(crate) fn ops(&self) -> &[Int8Op] {
        &self.ops
    }

    /// The first `n` operations, at least one.
    #[cfg(test)]
    pub(crate) fn first(&self, n: usize) -> Self {
        let (values, ops) = (self.values[..=n].to_vec(), self.ops[..n].to_vec());
        Self { values, ops, bytes: self.bytes.clone() }
    }

    /// The weights and the channel records of an operation.
    #[cfg(test)]
    pub(crate) fn numbers(&self, weights: Span, channels: Span) -> (Vec<i8>, Vec<[i32; 3]>) {
        let of = |span: Span| self.bytes[span.at as usize..][..span.len as usize].to_vec();
        let word = |b: &[u8]| i32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let records = of(channels).chunks(12).map(|r| [word(r), word(&r[4..]), word(&r[8..])]).collect();
        (of(weights).iter().map(|&w| w as i8).collect(), records)
    }

    /// The net whose output is that of the last operation; it has passed [`Int8Net::new_checked`].
    pub(crate) fn finish(self) -> Result<OwnedInt8Net> {
        let writer = |slot: Slot| match slot.place {
            Place::Arena(value) => (value as usize).checked_sub(1),
            _ => None,
        };
        let step = |op: &Int8Op| {
            let (first, second) = op.inputs();
            Step { len: op.output().shape.len(), reads: [writer(first), second.and_then(writer)] }
        };
        let (offsets, arena_len) = arena(&self.ops.iter().map(step).collect::<Vec<_>>());
        let mut ops = Vec::new();
        for mut op in self.ops.iter().copied() {
            op.each_slot(|slot| {
                slot.place = match writer(*slot) {
                    None => Place::Input,
                    Some(step) => offsets.get(step).map_or(Place::Output, |&at| Place::Arena(at as u32)),
                }
            });
            ops = postcard::to_extend(&op, ops).map_err(|_| Error::Capacity)?;
        }
        let mut bytes = self.bytes;
        bytes.resize(bytes.len().next_multiple_of(PART), 0);
        let fits = |n: usize| u32::try_from(n).map_err(|_| Error::Capacity);
        fits(bytes.len())?;
        let ends = [self.values.first(), self.values.last()];
        let [Some(&(input, input_quant)), Some(&(output, output_quant))] = ends else { return Err(Error::Capacity) };
        let net = OwnedInt8Net {
            input,
            output,
            input_quant,
            output_quant,
            arena_len: fits(arena_len)?,
            op_count: fits(self.ops.len())?,
            ops,
            words: bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        };
        Int8Net::new_checked(net.spec(), &net.words)?;
        Ok(net)
    }
}

impl Int8Op {
    /// Calls `each` with every slot.
    fn each_slot(&mut self, mut each: impl FnMut(&mut Slot)) {
        match self {
            Self::Conv { x, y, .. }
            | Self::Affine { x, y, .. }
            | Self::MaxPool { x, y, .. }
            | Self::AvgPool { x, y, .. }
            | Self::GlobalAvgPool { x, y, .. }
            | Self::Linear { x, y, .. }
            | Self::Table { x, y, .. } => [x, y].into_iter().for_each(each),
            Self::Add { a, b, y, .. } | Self::Mul { a, b, y, .. } | Self::Concat { a, b, y, .. } => {
                [a, b, y].into_iter().for_each(&mut each);
            }
        }
    }
}

/// An 8-bit net that owns its operations and weights.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnedInt8Net {
    input: Shape,
    output: Shape,
    input_quant: Quant,
    output_quant: Quant,
    arena_len: u32,
    op_count: u32,
    ops: Vec<u8>,
    words: Vec<i32>,
}

impl OwnedInt8Net {
    fn spec(&self) -> Int8Spec<'_> {
        let Self { input, output, input_quant, output_quant, arena_len, op_count, ref ops, .. } = *self;
        Int8Spec { input, output, input_quant, output_quant, arena_len, op_count, ops }
    }

    /// The net, borrowed.
    pub fn as_net(&self) -> Int8Net<'_> {
        Int8Net { spec: self.spec(), words: &self.words }
    }
}

impl From<Int8Net<'_>> for OwnedInt8Net {
    fn from(net: Int8Net<'_>) -> Self {
        let Int8Spec { input, output, input_quant, output_quant, arena_len, op_count, ops } = net.spec;
        let (ops, words) = (ops.to_vec(), net.words.to_vec());
        Self { input, output, input_quant, output_quant, arena_len, op_count, ops, words }
    }
}
