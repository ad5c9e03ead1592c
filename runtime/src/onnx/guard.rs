//! Checks in front of tract's operations, for files that come from strangers.
//!
//! Tract 0.23 evaluates what is constant while it reads a model, so a few bytes that ask for a tensor of terabytes get
//! it; and it reads the channel and spatial axes of convolutions, poolings and batch norms without a bounds check, so a
//! tensor of lower rank makes it read outside its memory. Neither can be caught afterwards. Here every operation that
//! tract expands while reading is wrapped: ranks are checked before its rules see a shape, and the sizes of what it is
//! about to compute before it computes them.

use crate::shape::Shape;
use core::fmt;
use std::prelude::v1::*;
use std::sync::OnceLock;
use tract_onnx::Onnx;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

/// The most elements of a value computed from constants alone.
const MAX_CONSTANT: u64 = 1 << 24;
/// The most elements of a value that depends on the picture.
const MAX_VALUE: u64 = Shape::MAX_LEN;

/// Tract's ONNX reader with the checks in place.
pub(super) fn framework() -> Onnx {
    let mut framework = tract_onnx::onnx().with_ignore_value_info(true);
    framework.op_register.0.values_mut().for_each(|builder| *builder = build);
    framework
}

/// The number of elements of a shape; `None` while it is open.
pub(super) fn volume(shape: &ShapeFact) -> Option<u64> {
    Some(shape.as_concrete()?.iter().fold(1u64, |n, &d| n.saturating_mul(d as u64)))
}

/// Builds tract's own operation and wraps it.
fn build(context: &ParsingContext, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    static ORIGINAL: OnceLock<Onnx> = OnceLock::new();
    let original = ORIGINAL.get_or_init(tract_onnx::onnx).op_register.0.get(&node.op_type);
    let (op, closures) = original.with_context(|| format!("no operation {}", node.op_type))?(context, node)?;
    // The others are element by element, or hold what they were given.
    let Some(inner) = op.as_op().downcast_ref::<Box<dyn Expansion>>() else { return Ok((op, closures)) };
    let wrapped = Wrapped { inner: inner.clone(), rank: Rank::of(node), maker: Maker::of(node) };
    Ok((expand(wrapped), closures))
}

/// The rank an operation's first input must have.
#[derive(Clone, Copy)]
enum Rank {
    AtLeast(usize),
    Exactly(usize),
}

impl Rank {
    fn of(node: &NodeProto) -> Self {
        let sides = ["kernel_shape", "strides", "dilations"].into_iter().find_map(|name| super::node::ints(node, name));
        match &*node.op_type {
            "BatchNormalization" => Self::AtLeast(2),
            "Transpose" => super::node::ints(node, "perm").map_or(Self::AtLeast(0), |perm| Self::Exactly(perm.len())),
            "AveragePool" | "Conv" | "ConvInteger" | "ConvTranspose" | "MaxPool" | "QLinearConv" => {
                sides.map_or(Self::AtLeast(3), |sides| Self::Exactly(sides.len() + 2))
            }
            _ => Self::AtLeast(0),
        }
    }

    fn check(self, rank: usize) -> TractResult<()> {
        match self {
            Self::AtLeast(least) if rank < least => bail!("an input of rank {rank} where at least {least} is needed"),
            Self::Exactly(only) if rank != only => bail!("an input of rank {rank} where {only} is needed"),
            _ => Ok(()),
        }
    }
}

/// How the size of an operation's output follows from anything but the sizes of its inputs.
#[derive(Clone, Copy)]
enum Maker {
    /// It does not.
    None,
    /// Attributes set it; over a constant that is never needed.
    Windows,
    /// The values of its inputs set it.
    Values,
    /// The values of its inputs, or attributes of this product, multiply the size of the first.
    Multiples(u64),
}

impl Maker {
    fn of(node: &NodeProto) -> Self {
        let pads = super::node::ints(node, "pads").unwrap_or(&[]);
        match &*node.op_type {
            "AveragePool" | "Conv" | "ConvInteger" | "ConvTranspose" | "MaxPool" | "QLinearConv" => Self::Windows,
            "ConstantOfShape" | "Expand" | "EyeLike" | "Range" => Self::Values,
            "DepthToSpace" | "OneHot" | "Pad" | "Resize" | "SpaceToDepth" | "Tile" | "Upsample" => {
                Self::Multiples(pads.iter().fold(1, |n, v| n.saturating_mul(v.unsigned_abs().max(1))))
            }
            _ => Self::None,
        }
    }

    /// Refuses what would be computed at once, from constants, and is too large.
    fn check(self, facts: &[&TypedFact]) -> TractResult<()> {
        let constants: Vec<_> = facts.iter().filter_map(|fact| fact.konst.as_ref()).collect();
        if constants.len() < facts.len() {
            return Ok(());
        }
        let size = facts.first().and_then(|fact| volume(&fact.shape)).unwrap_or(1).max(1);
        let asked = match self {
            Self::None => return Ok(()),
            Self::Windows => bail!("a window over a constant"),
            Self::Values => constants.iter().fold(1, |n, t| asked(t).saturating_mul(n)),
            Self::Multiples(fixed) => {
                constants.iter().skip(1).fold(size.saturating_mul(fixed), |n, t| asked(t).saturating_mul(n))
            }
        };
        match asked > MAX_CONSTANT {
            true => bail!("it asks for a tensor that is too large"),
            false => Ok(()),
        }
    }
}

/// The product of a short constant's values: what it can ask for as a shape, repetition, padding or range.
fn asked(tensor: &Tensor) -> u64 {
    if tensor.volume() > 32 {
        return 1;
    }
    let Ok(values) = tensor.cast_to::<f64>() else { return 1 };
    let Ok(plain) = values.try_as_plain_ram() else { return 1 };
    let values = plain.as_slice::<f64>().unwrap_or(&[]);
    // A small step asks for as much as a large end.
    values.iter().filter(|v| **v != 0.0).fold(1.0f64, |n, v| n * v.abs().max(1.0 / v.abs())).min(1e18) as u64
}

/// One of tract's operations behind the checks.
#[derive(Clone)]
struct Wrapped {
    inner: Box<dyn Expansion>,
    rank: Rank,
    maker: Maker,
}

impl fmt::Debug for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl Wrapped {
    /// Runs a translation between the checks. Returns what it returns.
    fn guard(
        &self,
        model: &mut TypedModel,
        inputs: &[OutletId],
        wire: impl FnOnce(&mut TypedModel) -> TractResult<TVec<OutletId>>,
    ) -> TractResult<TVec<OutletId>> {
        let facts = inputs.iter().map(|&input| model.outlet_fact(input)).collect::<TractResult<Vec<_>>>()?;
        if let Some(first) = facts.first() {
            self.rank.check(first.rank())?;
        }
        self.maker.check(&facts)?;
        let constant = facts.iter().all(|fact| fact.konst.is_some());
        let before = model.nodes().len();
        let outputs = wire(model)?;
        let limit = if constant { MAX_CONSTANT } else { MAX_VALUE };
        for outlet in model.nodes().iter().skip(before).flat_map(|node| &node.outputs) {
            if volume(&outlet.fact.shape).is_some_and(|n| n > limit) {
                bail!("a value of {:?} is too large", outlet.fact.shape);
            }
        }
        Ok(outputs)
    }
}

impl Expansion for Wrapped {
    fn name(&self) -> StaticName {
        self.inner.name()
    }

    fn validation(&self) -> Validation {
        self.inner.validation()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        self.inner.info()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Expansion::nboutputs(&*self.inner)
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        self.guard(model, inputs, |model| self.inner.wire(prefix, model, inputs))
    }

    fn wire_with_inference_model_and_node(
        &self,
        prefix: &str,
        model: &InferenceModel,
        node: &InferenceNode,
        typed: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        self.guard(typed, inputs, |typed| {
            self.inner.wire_with_inference_model_and_node(prefix, model, node, typed, inputs)
        })
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        if let Some(first) = inputs.first() {
            // The solver applies rules in order: this one runs before any that reads the shape.
            solver.given(&first.rank, move |_, rank| self.rank.check(usize::try_from(rank).unwrap_or(0)))?;
        }
        self.inner.rules(solver, inputs, outputs)
    }

    fn runs_out_of_plan(&self) -> bool {
        self.inner.runs_out_of_plan()
    }
}
