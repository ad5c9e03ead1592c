//! Checks in front of tract operations that index a shape unchecked.
//!
//! Tract 0.23 reads the channel and spatial axes of convolutions, poolings and batch norms without a bounds check, so a
//! file that hands them a tensor of lower rank makes it read outside its memory. Their shape rules and their translation
//! are wrapped here: the rank is checked first.

use core::fmt;
use std::prelude::v1::*;
use std::sync::OnceLock;
use tract_onnx::Onnx;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

/// The operations wrapped.
const WRAPPED: [&str; 7] =
    ["AveragePool", "BatchNormalization", "Conv", "ConvInteger", "ConvTranspose", "MaxPool", "QLinearConv"];

/// Tract's ONNX reader with the checks in place.
pub(super) fn framework() -> Onnx {
    let mut framework = tract_onnx::onnx().with_ignore_value_info(true);
    for op in WRAPPED {
        framework.op_register.insert(op, build);
    }
    framework
}

/// Builds tract's own operation and wraps it.
fn build(context: &ParsingContext, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    static ORIGINAL: OnceLock<Onnx> = OnceLock::new();
    let original = ORIGINAL.get_or_init(tract_onnx::onnx).op_register.0.get(&node.op_type);
    let (op, closures) = original.with_context(|| format!("no operation {}", node.op_type))?(context, node)?;
    let inner = op.as_op().downcast_ref::<Box<dyn Expansion>>();
    let inner = inner.with_context(|| format!("{} is no expansion", node.op_type))?.clone();
    let sides = ["kernel_shape", "strides", "dilations"].into_iter().find_map(|name| super::node::ints(node, name));
    let rank = match &*node.op_type {
        "BatchNormalization" => Rank::AtLeast(2),
        _ => sides.map_or(Rank::AtLeast(3), |sides| Rank::Exactly(sides.len() + 2)),
    };
    Ok((expand(Guarded { inner, rank }), closures))
}

/// The rank an operation's first input must have.
#[derive(Clone, Copy, Debug)]
enum Rank {
    AtLeast(usize),
    Exactly(usize),
}

impl Rank {
    fn check(self, rank: usize) -> TractResult<()> {
        match self {
            Self::AtLeast(least) if rank < least => bail!("an input of rank {rank} where at least {least} is needed"),
            Self::Exactly(only) if rank != only => bail!("an input of rank {rank} where {only} is needed"),
            _ => Ok(()),
        }
    }
}

#[derive(Clone)]
struct Guarded {
    inner: Box<dyn Expansion>,
    rank: Rank,
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl Guarded {
    fn check(&self, model: &TypedModel, inputs: &[OutletId]) -> TractResult<()> {
        let first = inputs.first().context("no input")?;
        self.rank.check(model.outlet_fact(*first)?.rank())
    }
}

impl Expansion for Guarded {
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
        self.check(model, inputs)?;
        self.inner.wire(prefix, model, inputs)
    }

    fn wire_with_inference_model_and_node(
        &self,
        prefix: &str,
        model: &InferenceModel,
        node: &InferenceNode,
        typed: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        self.check(typed, inputs)?;
        self.inner.wire_with_inference_model_and_node(prefix, model, node, typed, inputs)
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        let first = inputs.first().context("no input")?;
        // The solver applies rules in order: this one runs before any that reads the shape.
        solver.given(&first.rank, move |_, rank| self.rank.check(usize::try_from(rank).unwrap_or(0)))?;
        self.inner.rules(solver, inputs, outputs)
    }

    fn runs_out_of_plan(&self) -> bool {
        self.inner.runs_out_of_plan()
    }
}
