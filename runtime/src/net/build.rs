//! Building a net: values and operations added one at a time, shapes computed, memory planned.
//!
//! ```
//! use stemguard_runtime::net::{Activation, NetBuilder, Scalar, Window};
//! use stemguard_runtime::shape::Shape;
//!
//! let mut b = NetBuilder::new();
//! let x = b.input(Shape::new(2, 2, 1));
//! let window = Window { kernel: [2, 2], stride: [1, 1], pad: [0, 0, 0, 0] };
//! let y = b.conv(x, window, 1, vec![1.0; 4], Some(vec![-20.0]), Activation::Relu)?;
//! let net = b.finish(y)?;
//!
//! let (mut arena, mut output) = ([0.0; 0], [0.0; 1]);
//! net.as_net().run(&mut Scalar, &[1.0, 2.0, 3.0, 15.0], &mut arena, &mut output)?;
//! assert_eq!(output, [1.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use super::check::infer;
use super::plan::{Step, arena};
use super::{Activation, Net, Op, Place, Slot, Span, Window};
use crate::error::{Error, OpFault};
use crate::shape::Shape;
use core::fmt;
use std::vec::Vec;

/// Spans begin at multiples of this many `f32` elements: 64 bytes.
const ALIGN: usize = 16;

/// A value of the builder that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value(u32);

/// Why an operation was refused, and which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildError {
    /// Number of the operation, counted from 0 in the order of the calls.
    pub op: u32,
    /// Its kind: `conv`, `affine`, ... or `net` for the whole.
    pub kind: &'static str,
    /// What is wrong.
    pub error: Error,
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.error {
            Error::BadOperation { why, .. } => write!(f, "{} (operation {}): {why}", self.kind, self.op),
            error => write!(f, "{} (operation {}): {error}", self.kind, self.op),
        }
    }
}

impl core::error::Error for BuildError {}

impl From<BuildError> for Error {
    fn from(e: BuildError) -> Self {
        e.error
    }
}

type Result<T> = core::result::Result<T, BuildError>;

/// What a value comes from. Until [`NetBuilder::finish`], `Place::Arena(n)` stands for value `n` and `Span::at` for a blob.
#[derive(Clone, Copy, Debug)]
enum Node {
    Input(Shape),
    Op { op: Op, number: u32 },
}

/// Collects operations over values and turns them into an [`OwnedNet`].
#[derive(Clone, Debug, Default)]
pub struct NetBuilder {
    nodes: Vec<Node>,
    blobs: Vec<Vec<f32>>,
    ops: u32,
}

impl NetBuilder {
    /// No values yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The input picture. A net has exactly one: [`NetBuilder::finish`] refuses any other number.
    pub fn input(&mut self, shape: Shape) -> Value {
        self.nodes.push(Node::Input(shape));
        Value(self.nodes.len() as u32 - 1)
    }

    /// The shape of a value; `None` for a value of another builder.
    pub fn shape(&self, value: Value) -> Option<Shape> {
        self.nodes.get(value.0 as usize).map(|node| match node {
            Node::Input(shape) => *shape,
            Node::Op { op, .. } => op.output().shape,
        })
    }

    /// Convolution. `weight`: `[ky][kx][cin / groups][cout]`, `bias`: `[cout]`; `cout` follows from the length of `weight`.
    pub fn conv(
        &mut self,
        x: Value,
        window: Window,
        groups: u32,
        weight: Vec<f32>,
        bias: Option<Vec<f32>>,
        act: Activation,
    ) -> Result<Value> {
        let x = self.slot("conv", x)?;
        let one = [window.kernel[0], window.kernel[1], x.shape.c.checked_div(groups).unwrap_or(0)];
        let y = self.vector("conv", weight.len(), one.into_iter().map(u64::from).try_fold(1, u64::checked_mul))?;
        let (weight, bias) = (self.blob("conv", weight)?, self.maybe("conv", bias)?);
        self.push(Op::Conv { x, y, window, groups, weight, bias, act })
    }

    /// Scale and shift by channel, each `[c]` or missing.
    pub fn affine(
        &mut self,
        x: Value,
        scale: Option<Vec<f32>>,
        shift: Option<Vec<f32>>,
        act: Activation,
    ) -> Result<Value> {
        let x = self.slot("affine", x)?;
        let (scale, shift) = (self.maybe("affine", scale)?, self.maybe("affine", shift)?);
        self.push(Op::Affine { x, y: x, scale, shift, act })
    }

    /// An activation by itself: merged into the operation before it where that has none and no other reader.
    pub fn activation(&mut self, x: Value, act: Activation) -> Result<Value> {
        self.affine(x, None, None, act)
    }

    /// act(a + b), same shapes.
    pub fn add(&mut self, a: Value, b: Value, act: Activation) -> Result<Value> {
        let (a, b) = (self.slot("add", a)?, self.slot("add", b)?);
        self.push(Op::Add { a, b, y: a, act })
    }

    /// act(a * b); `b` has the shape of `a`, or is `1 x 1 x c` and scales channels.
    pub fn mul(&mut self, a: Value, b: Value, act: Activation) -> Result<Value> {
        let (a, b) = (self.slot("mul", a)?, self.slot("mul", b)?);
        self.push(Op::Mul { a, b, y: a, act })
    }

    /// `a` and `b` side by side along channels.
    pub fn concat(&mut self, a: Value, b: Value) -> Result<Value> {
        let (a, b) = (self.slot("concat", a)?, self.slot("concat", b)?);
        self.push(Op::Concat { a, b, y: a })
    }

    /// The largest value in each window; padding never wins.
    pub fn max_pool(&mut self, x: Value, window: Window) -> Result<Value> {
        let x = self.slot("max_pool", x)?;
        self.push(Op::MaxPool { x, y: x, window })
    }

    /// The mean of each window; `count_pad`: padding counts in the divisor.
    pub fn avg_pool(&mut self, x: Value, window: Window, count_pad: bool) -> Result<Value> {
        let x = self.slot("avg_pool", x)?;
        self.push(Op::AvgPool { x, y: x, window, count_pad })
    }

    /// The mean over all rows and columns: `1 x 1 x c`.
    pub fn global_avg_pool(&mut self, x: Value) -> Result<Value> {
        let x = self.slot("global_avg_pool", x)?;
        self.push(Op::GlobalAvgPool { x, y: x })
    }

    /// Linear layer over the input flattened as `[h][w][c]`. `weight`: `[in][out]`, `bias`: `[out]`; `out` follows from the
    /// length of `weight`.
    pub fn linear(&mut self, x: Value, weight: Vec<f32>, bias: Option<Vec<f32>>, act: Activation) -> Result<Value> {
        let x = self.slot("linear", x)?;
        let y = self.vector("linear", weight.len(), Some(x.shape.len() as u64))?;
        let (weight, bias) = (self.blob("linear", weight)?, self.maybe("linear", bias)?);
        self.push(Op::Linear { x, y, weight, bias, act })
    }

    /// The net that computes `output`. Operations that do not reach it are dropped, pure activations are merged and scales
    /// folded into the convolution or linear layer before them, and the arena is planned. The result has passed
    /// [`Net::new_checked`].
    pub fn finish(mut self, output: Value) -> Result<OwnedNet> {
        let whole = |error| BuildError { op: 0, kind: "net", error };
        let no_slot = whole(Error::BadOperation { op: 0, why: OpFault::Slot });
        let mut inputs = self.nodes.iter().filter_map(|n| if let Node::Input(shape) = n { Some(*shape) } else { None });
        let (Some(input), None) = (inputs.next(), inputs.next()) else { return Err(no_slot) };
        if output.0 as usize >= self.nodes.len() {
            return Err(no_slot);
        }
        let mut output = Value(self.fuse(output.0)?);
        if let Node::Input(_) = self.nodes[output.0 as usize] {
            output = self.affine(output, None, None, Activation::None)?;
        }
        let net = self.emit(input, output.0).map_err(whole)?;
        let OwnedNet { input, output, arena_len, op_count, ops, weights } = &net;
        Net::new_checked(*input, *output, *arena_len, *op_count, ops, weights).map_err(whole)?;
        Ok(net)
    }

    /// Error of the operation now being added.
    fn refuse(&self, kind: &'static str, error: Error) -> BuildError {
        BuildError { op: self.ops, kind, error }
    }

    fn fault(&self, kind: &'static str, why: OpFault) -> BuildError {
        self.refuse(kind, Error::BadOperation { op: self.ops, why })
    }

    fn slot(&self, kind: &'static str, value: Value) -> Result<Slot> {
        let shape = self.shape(value).ok_or_else(|| self.fault(kind, OpFault::Slot))?;
        Ok(Slot { place: Place::Arena(value.0), shape })
    }

    /// The output of an operation whose weights hold `len` elements, `each` of them for an output channel.
    fn vector(&self, kind: &'static str, len: usize, each: Option<u64>) -> Result<Slot> {
        let channels = each.filter(|&each| each > 0 && (len as u64).is_multiple_of(each)).map(|each| len as u64 / each);
        let c = channels.and_then(|c| u32::try_from(c).ok()).ok_or_else(|| self.fault(kind, OpFault::Span))?;
        Ok(Slot { place: Place::Output, shape: Shape::new(1, 1, c) })
    }

    fn blob(&mut self, kind: &'static str, blob: Vec<f32>) -> Result<Span> {
        if !blob.iter().all(|w| w.is_finite()) {
            return Err(self.refuse(kind, Error::NotFinite));
        }
        let len = u32::try_from(blob.len()).map_err(|_| self.refuse(kind, Error::Capacity))?;
        self.blobs.push(blob);
        Ok(Span { at: self.blobs.len() as u32 - 1, len })
    }

    fn maybe(&mut self, kind: &'static str, blob: Option<Vec<f32>>) -> Result<Option<Span>> {
        blob.map(|blob| self.blob(kind, blob)).transpose()
    }

    /// Adds an operation whose inputs and spans are set; its output follows.
    fn push(&mut self, mut op: Op) -> Result<Value> {
        let shape = infer(&op).map_err(|why| self.fault(op.name(), why))?;
        let id = u32::try_from(self.nodes.len()).map_err(|_| self.refuse(op.name(), Error::Capacity))?;
        op.each_slot(|slot, written| {
            if written {
                *slot = Slot { place: Place::Arena(id), shape };
            }
        });
        self.nodes.push(Node::Op { op, number: self.ops });
        self.ops += 1;
        Ok(Value(id))
    }

    /// How often each value is read on the way to `output`, which counts as read once; 0: it does not reach the output.
    fn readers(&self, output: u32) -> Vec<usize> {
        let mut readers = std::vec![0; self.nodes.len()];
        readers[output as usize] = 1;
        for (id, node) in self.nodes.iter().enumerate().rev() {
            if let Node::Op { op, .. } = node
                && readers[id] > 0
            {
                each_input(op, |value| readers[value] += 1);
            }
        }
        readers
    }

    /// Merges activations and folds scales into the operation before them; returns where `output` is now.
    fn fuse(&mut self, output: u32) -> Result<u32> {
        let mut readers = self.readers(output);
        // Where the content of each value is found now.
        let mut moved: Vec<u32> = (0..self.nodes.len() as u32).collect();
        for id in 0..self.nodes.len() {
            let Node::Op { op, number } = &mut self.nodes[id] else { continue };
            let number = *number;
            op.each_slot(|slot, written| {
                if let (Place::Arena(value), false) = (&mut slot.place, written) {
                    *value = moved[*value as usize];
                }
            });
            let Op::Affine { x: Slot { place: Place::Arena(before), .. }, scale, shift, act, .. } = *op else {
                continue;
            };
            let source = before as usize;
            if readers[id] == 0 {
                continue;
            }
            if (scale, shift, act) == (None, None, Activation::None) {
                readers[source] += readers[id] - 1;
                moved[id] = before;
            } else if readers[source] == 1 && self.merge(source, scale, shift, act) {
                let finite =
                    self.nodes[source].spans().all(|s| self.blobs[s.at as usize].iter().all(|w| w.is_finite()));
                if !finite {
                    return Err(BuildError { op: number, kind: "affine", error: Error::NotFinite });
                }
                readers[source] = readers[id];
                moved[id] = before;
            }
        }
        Ok(moved[output as usize])
    }

    /// Lets the operation behind `source` do the work of the affine after it; false if it cannot.
    fn merge(&mut self, source: usize, scale: Option<Span>, shift: Option<Span>, act: Activation) -> bool {
        let Node::Op { op, .. } = &mut self.nodes[source] else { return false };
        if op.activation() != Some(Activation::None) {
            return false;
        }
        if scale.is_some() || shift.is_some() {
            let (Op::Conv { y, weight, bias, .. } | Op::Linear { y, weight, bias, .. }) = op else { return false };
            let channels = y.shape.c as usize;
            if let Some(scale) = scale {
                let scale = self.blobs[scale.at as usize].clone();
                let of_bias = bias.map(|bias| bias.at as usize);
                for blob in [Some(weight.at as usize), of_bias].into_iter().flatten() {
                    let rows = self.blobs[blob].chunks_exact_mut(channels);
                    rows.for_each(|row| row.iter_mut().zip(&scale).for_each(|(w, s)| *w *= s));
                }
            }
            if let Some(shift) = shift {
                match *bias {
                    None => *bias = Some(shift),
                    Some(bias) => {
                        let shift = self.blobs[shift.at as usize].clone();
                        self.blobs[bias.at as usize].iter_mut().zip(&shift).for_each(|(b, s)| *b += s);
                    }
                }
            }
        }
        match op {
            Op::Conv { act: of, .. }
            | Op::Affine { act: of, .. }
            | Op::Add { act: of, .. }
            | Op::Mul { act: of, .. }
            | Op::Linear { act: of, .. } => *of = act,
            _ => return false,
        }
        true
    }

    /// Plans the arena, collects the weights and encodes what reaches `output`, which is the value of an operation.
    fn emit(&self, input: Shape, output: u32) -> core::result::Result<OwnedNet, Error> {
        let readers = self.readers(output);
        let is_op = |id: &usize| readers[*id] > 0 && matches!(self.nodes[*id], Node::Op { .. });
        let order: Vec<usize> = (0..self.nodes.len()).filter(is_op).collect();
        // The step that writes each value.
        let mut step = std::vec![None; self.nodes.len()];
        let mut steps: Vec<Step> = Vec::with_capacity(order.len());
        for (now, &id) in order.iter().enumerate() {
            step[id] = Some(now);
            if let Node::Op { op, .. } = &self.nodes[id] {
                let (first, second) = op.inputs();
                let writer = |slot: Slot| if let Place::Arena(v) = slot.place { step[v as usize] } else { None };
                steps.push(Step { len: op.output().shape.len(), reads: [writer(first), second.and_then(writer)] });
            }
        }
        let (offsets, arena_len) = arena(&steps);
        u32::try_from(arena_len).map_err(|_| Error::Capacity)?;

        let (mut ops, mut weights) = (Vec::new(), Vec::new());
        let mut shape = input;
        for &id in &order {
            let Node::Op { mut op, .. } = self.nodes[id] else { continue };
            op.each_slot(|slot, _| {
                let Place::Arena(value) = slot.place else { return };
                slot.place = match step[value as usize] {
                    None => Place::Input,
                    Some(step) => offsets.get(step).map_or(Place::Output, |&at| Place::Arena(at as u32)),
                };
            });
            op.each_span(|span| {
                let blob = &self.blobs[span.at as usize];
                span.at = weights.len() as u32;
                weights.extend_from_slice(blob);
                weights.resize(weights.len().next_multiple_of(ALIGN), 0.0);
            });
            u32::try_from(weights.len()).map_err(|_| Error::Capacity)?;
            shape = op.output().shape;
            ops = postcard::to_extend(&op, ops).map_err(|_| Error::Capacity)?;
        }
        Ok(OwnedNet { input, output: shape, arena_len, op_count: order.len() as u32, ops, weights })
    }
}

/// The values an operation of the builder reads, with repetition.
fn each_input(op: &Op, mut each: impl FnMut(usize)) {
    let (first, second) = op.inputs();
    for slot in core::iter::once(first).chain(second) {
        if let Place::Arena(value) = slot.place {
            each(value as usize);
        }
    }
}

impl Node {
    fn spans(&self) -> impl Iterator<Item = Span> + use<> {
        let spans = if let Self::Op { op, .. } = self { op.spans() } else { [None, None] };
        spans.into_iter().flatten()
    }
}

impl Op {
    /// Calls `each` with every slot, the inputs first, and whether it is the one written.
    pub(crate) fn each_slot(&mut self, mut each: impl FnMut(&mut Slot, bool)) {
        match self {
            Self::Conv { x, y, .. }
            | Self::Affine { x, y, .. }
            | Self::MaxPool { x, y, .. }
            | Self::AvgPool { x, y, .. }
            | Self::GlobalAvgPool { x, y, .. }
            | Self::Linear { x, y, .. } => {
                each(x, false);
                each(y, true);
            }
            Self::Add { a, b, y, .. } | Self::Mul { a, b, y, .. } | Self::Concat { a, b, y, .. } => {
                each(a, false);
                each(b, false);
                each(y, true);
            }
        }
    }

    /// Calls `each` with every span.
    fn each_span(&mut self, mut each: impl FnMut(&mut Span)) {
        match self {
            Self::Conv { weight, bias, .. } | Self::Linear { weight, bias, .. } => {
                each(weight);
                bias.iter_mut().for_each(each);
            }
            Self::Affine { scale, shift, .. } => scale.iter_mut().chain(shift).for_each(each),
            _ => {}
        }
    }
}

/// A net that owns its operations and weights.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnedNet {
    input: Shape,
    output: Shape,
    arena_len: usize,
    op_count: u32,
    ops: Vec<u8>,
    weights: Vec<f32>,
}

impl OwnedNet {
    /// The net, borrowed.
    pub fn as_net(&self) -> Net<'_> {
        let Self { input, output, arena_len, op_count, .. } = *self;
        Net { input, output, arena_len, op_count, ops: &self.ops, weights: &self.weights }
    }
}

impl From<Net<'_>> for OwnedNet {
    fn from(net: Net<'_>) -> Self {
        let Net { input, output, arena_len, op_count, ops, weights } = net;
        Self { input, output, arena_len, op_count, ops: ops.to_vec(), weights: weights.to_vec() }
    }
}
