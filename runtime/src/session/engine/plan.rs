//! How a net runs on a host: operations that touch the same values go together, and the arena is planned anew without what then
//! lies between them.
//!
//! A convolution and the sum behind it are one step, and so are a convolution of single pixels and the depthwise one behind it.

use super::Fast;
use crate::error::{Error, OpFault, Result};
use crate::kernels::picture::{End, Pair, PreparedConv};
use crate::net::plan::{self, arena};
use crate::net::{Activation, Net, Op, Place, Readable, Slot};
use std::vec::Vec;

/// Longer nets run as they are: a plan takes time that grows with the square of their length.
const MOST: u32 = 4096;

/// What goes with an operation.
#[derive(Clone, Copy, Debug)]
enum With {
    Nothing,
    /// A map that is added to the result, before the activation.
    Add(Slot),
    /// The depthwise convolution of this number behind it; its input is not kept.
    Depthwise(usize, Op),
}

/// One step: an operation by its number, its slots placed anew, and what goes with it.
#[derive(Clone, Copy, Debug)]
struct Step {
    number: usize,
    op: Op,
    with: With,
}

/// The steps of a net.
#[derive(Debug)]
pub(super) struct Plan {
    steps: Vec<Step>,
    arena_len: usize,
}

/// Operations and the values they read, each by the number of the operation that writes it; none for the picture.
struct Graph {
    ops: Vec<Op>,
    reads: Vec<[Option<usize>; 2]>,
    readers: Vec<usize>,
}

impl Graph {
    fn new(net: &Net<'_>) -> Self {
        let ops: Vec<Op> = net.ops().collect();
        let (mut reads, mut readers) = (Vec::with_capacity(ops.len()), std::vec![0; ops.len()]);
        for (now, op) in ops.iter().enumerate() {
            // The check at the door has proved that the last one to write this value wrote what is read.
            let writer = |slot: Slot| match slot.place {
                Place::Input | Place::Output => None,
                Place::Arena(_) => ops[..now].iter().rposition(|o| o.output() == slot),
            };
            let (first, second) = op.inputs();
            let read = [writer(first), second.and_then(writer)];
            read.into_iter().flatten().for_each(|writer| readers[writer] += 1);
            reads.push(read);
        }
        Self { ops, reads, readers }
    }

    /// The map that the operation behind a convolution without activation adds to its result alone, and the sum's activation.
    fn sum(&self, at: usize) -> Option<(Slot, Option<usize>, Slot, Activation)> {
        let Op::Conv { act: Activation::None, .. } = self.ops[at] else { return None };
        let Op::Add { a, b, y, act } = *self.ops.get(at + 1)? else { return None };
        let [first, second] = self.reads[at + 1];
        match (self.readers[at], first == Some(at)) {
            (1, true) => Some((b, second, y, act)),
            (1, false) if second == Some(at) => Some((a, first, y, act)),
            _ => None,
        }
    }

    /// The depthwise convolution behind a convolution that alone reads its result.
    fn pair(&self, at: usize, convs: &[Option<PreparedConv>]) -> Option<Op> {
        let (Op::Conv { act, .. }, second) = (self.ops[at], *self.ops.get(at + 1)?) else { return None };
        let alone = self.readers[at] == 1 && self.reads[at + 1] == [Some(at), None];
        let [first, behind] = [at, at + 1].map(|i| convs.get(i).and_then(Option::as_ref));
        (alone && Pair::new(first?, behind?, act).is_some()).then_some(second)
    }
}

impl Plan {
    /// The steps of `net`, whose convolutions `convs` were prepared, by number.
    pub(super) fn new(net: &Net<'_>, convs: &[Option<PreparedConv>]) -> Self {
        if net.op_count() > MOST {
            let steps = net.ops().enumerate().map(|(number, op)| Step { number, op, with: With::Nothing }).collect();
            return Self { steps, arena_len: net.arena_len() };
        }
        let graph = Graph::new(net);
        let (mut steps, mut lives): (Vec<Step>, Vec<plan::Step>) = (Vec::new(), Vec::new());
        // The step that writes each value.
        let mut step_of = std::vec![0; graph.ops.len()];
        let mut number = 0;
        while number < graph.ops.len() {
            let mut op = graph.ops[number];
            let (mut with, mut reads, mut last) = (With::Nothing, graph.reads[number], number);
            let prepared = convs.get(number).is_some_and(Option::is_some);
            if let Some((slot, writer, sum, activation)) = graph.sum(number).filter(|_| prepared) {
                if let Op::Conv { y, act, .. } = &mut op {
                    (*y, *act) = (sum, activation);
                }
                (with, last) = (With::Add(slot), number + 1);
                reads[1] = writer;
            } else if let Some(second) = graph.pair(number, convs) {
                (with, last) = (With::Depthwise(number + 1, second), number + 1);
            }
            step_of[number..=last].fill(steps.len());
            let y = if let With::Depthwise(_, second) = with { second.output() } else { op.output() };
            let reads = reads.map(|read| read.map(|writer| step_of[writer]));
            lives.push(plan::Step { len: y.shape.len(), reads });
            steps.push(Step { number, op, with });
            number = last + 1;
        }
        let (offsets, arena_len) = arena(&lives);
        let placed = |step: usize| offsets.get(step).map_or(Place::Output, |&at| Place::Arena(at as u32));
        for (now, (step, life)) in steps.iter_mut().zip(&lives).enumerate() {
            let mut reads = life.reads.into_iter();
            let mut read = || reads.next().flatten().map_or(Place::Input, placed);
            let mut place = |slot: &mut Slot, written: bool| {
                slot.place = if written { placed(now) } else { read() };
            };
            step.op.each_slot(&mut place);
            match &mut step.with {
                With::Nothing => {}
                With::Add(slot) => place(slot, false),
                With::Depthwise(_, second) => second.each_slot(|slot, written| {
                    // Its input lies nowhere.
                    if written {
                        slot.place = placed(now);
                    }
                }),
            }
        }
        Self { steps, arena_len }
    }

    /// How many steps there are.
    #[cfg(test)]
    pub(super) fn steps(&self) -> usize {
        self.steps.len()
    }

    /// Elements of arena that a run takes.
    pub(super) const fn arena_len(&self) -> usize {
        self.arena_len
    }

    /// Runs one picture; lengths are those of `net`, the one this was made for, and of [`Self::arena_len`].
    ///
    /// # Errors
    /// [`Error::BadOperation`], which the check at the door excludes.
    pub(super) fn run(
        &self,
        net: &Net<'_>,
        fast: &mut Fast<'_>,
        x: &[f32],
        arena: &mut [f32],
        out: &mut [f32],
    ) -> Result<()> {
        for step in &self.steps {
            let done = match step.with {
                With::Nothing => net.step(fast, step.number, &step.op, x, arena, out),
                _ => step.run(net, fast, x, arena, out),
            };
            done.ok_or(Error::BadOperation { op: step.number as u32, why: OpFault::Slot })?;
        }
        Ok(())
    }
}

impl Step {
    /// Runs a convolution and what goes with it. `None` if a slot is out of range or something was not prepared.
    fn run(&self, net: &Net<'_>, fast: &mut Fast<'_>, x: &[f32], arena: &mut [f32], out: &mut [f32]) -> Option<()> {
        let Op::Conv { x: read, y, weight, bias, act, .. } = self.op else { return None };
        let conv = |number: usize| fast.convs.get(number).and_then(Option::as_ref);
        let (first, w, bias) = (conv(self.number)?, net.span(weight), bias.map(|b| net.span(b)));
        match self.with {
            With::Nothing => None,
            With::Add(slot) => {
                let (from, y) = Readable::split(y, x, arena, out)?;
                let (x, add) = (from.get(read)?, Some(from.get(slot)?));
                fast.kernels.conv_shared(&mut fast.lead, first, x, w, bias, add, act, y);
                Some(())
            }
            With::Depthwise(number, Op::Conv { y, weight, bias: second_bias, act: second_act, .. }) => {
                let pair = Pair::new(first, conv(number)?, act)?;
                let (from, y) = Readable::split(y, x, arena, out)?;
                let ends = [End { bias, act }, End { bias: second_bias.map(|b| net.span(b)), act: second_act }];
                fast.kernels.pair_shared(&mut fast.lead, pair, from.get(read)?, [w, net.span(weight)], ends, y);
                Some(())
            }
            With::Depthwise(..) => None,
        }
    }
}
