//! Running a model through tract: whatever the net cannot express.

use super::{Model, OnnxError};
use crate::shape::Shape;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::prelude::v1::*;
use std::sync::{Arc, Once};
use tract_onnx::prelude::*;

/// The most elements all values of a model may hold together.
const MAX_TOTAL: u64 = 1 << 31;

/// An optimised plan for one picture at a time. Threads share it; each runs with a [`TractState`] of its own.
#[derive(Clone, Debug)]
pub struct TractModel {
    plan: Arc<TypedRunnableModel>,
    input: Shape,
    output: Vec<usize>,
}

/// What one thread needs to run a [`TractModel`]. It keeps tract's buffers between pictures.
#[derive(Debug)]
pub struct TractState {
    state: TypedSimpleState,
    input: Shape,
    output: usize,
}

impl TractModel {
    /// Plans the part of a model that computes the tensor `cut`; without a cut, the single output, or the answer
    /// of a model with a tripwire.
    ///
    /// # Errors
    /// The tensor is unknown, or tract refuses the model.
    pub fn new(model: &Model, cut: Option<&str>) -> Result<Self, OnnxError> {
        let proto = model.subgraph(cut)?;
        let (plan, output) = guarded(|| {
            let framework = super::guard::framework();
            let typed = framework.model_for_proto_model(&proto)?.into_typed()?;
            let mut total = 0u64;
            for fact in typed.nodes().iter().flat_map(|node| &node.outputs).map(|outlet| &outlet.fact) {
                let Some(len) = super::guard::volume(&fact.shape) else { continue };
                total = total.saturating_add(len);
                if len > Shape::MAX_LEN || total > MAX_TOTAL {
                    return Err(anyhow::anyhow!("a value of {:?} is too large", fact.shape));
                }
            }
            let plan = typed.into_optimized()?.into_runnable()?;
            let fact = plan.model().output_fact(0)?;
            let dims = fact.shape.as_concrete().map(<[usize]>::to_vec);
            match dims {
                Some(dims) if fact.datum_type == f32::datum_type() => Ok((plan, dims)),
                _ => Err(anyhow::anyhow!("the output is not an f32 tensor of fixed shape: {fact:?}")),
            }
        })?;
        Ok(Self { plan, input: model.input_shape(), output })
    }

    /// The input's shape, without the batch.
    pub fn input_shape(&self) -> Shape {
        self.input
    }

    /// The output's dimensions for one picture, in the file's order (`[1, C, H, W]` or `[1, C]`).
    pub fn output_dims(&self) -> &[usize] {
        &self.output
    }

    /// The output's shape for one picture; `None` if it is neither `[1, C, H, W]` nor `[1, C]`.
    pub fn output_shape(&self) -> Option<Shape> {
        let shape = match *self.output {
            [1, c] => Shape::new(1, 1, u32::try_from(c).ok()?),
            [1, c, h, w] => Shape::new(u32::try_from(h).ok()?, u32::try_from(w).ok()?, u32::try_from(c).ok()?),
            _ => return None,
        };
        shape.is_valid().then_some(shape)
    }

    /// A state for one thread.
    ///
    /// # Errors
    /// Tract refuses.
    pub fn state(&self) -> Result<TractState, OnnxError> {
        let state = guarded(|| self.plan.spawn())?;
        Ok(TractState { state, input: self.input, output: self.output.iter().product() })
    }

    /// Runs one picture, `[C][H][W]`, and replaces `out` by the output, flat, in the file's order. Returns its dimensions.
    ///
    /// Spawns a state for the call; keep one ([`TractModel::state`]) to run many pictures.
    ///
    /// # Errors
    /// The picture has the wrong length, or tract fails.
    pub fn run(&self, picture: &[f32], out: &mut Vec<f32>) -> Result<&[usize], OnnxError> {
        out.resize(self.output.iter().product(), 0.0);
        self.state()?.run(picture, out)?;
        Ok(&self.output)
    }
}

impl TractState {
    /// Runs one picture, `[C][H][W]`, into `out`: the output, flat, in the file's order.
    ///
    /// # Errors
    /// A buffer has the wrong length, or tract fails; the state stays usable.
    pub fn run(&mut self, picture: &[f32], out: &mut [f32]) -> Result<(), OnnxError> {
        let wrong =
            |what, given, needed| Err(OnnxError::Tract(format!("{what} of {given} values where {needed} are needed")));
        let Shape { h, w, c } = self.input;
        if picture.len() != self.input.len() {
            return wrong("a picture", picture.len(), self.input.len());
        }
        if out.len() != self.output {
            return wrong("an output", out.len(), self.output);
        }
        let ran = guarded(|| {
            let input = Tensor::from_shape(&[1, c as usize, h as usize, w as usize], picture)?;
            let outputs = self.state.run(tvec!(input.into_tvalue()))?;
            let value = outputs.first().ok_or_else(|| anyhow::anyhow!("no output"))?;
            let plain = value.try_as_plain_ram()?;
            let flat = plain.as_slice::<f32>()?;
            match flat.len() == out.len() {
                true => out.copy_from_slice(flat),
                false => return Err(anyhow::anyhow!("{} values where {} were planned", flat.len(), out.len())),
            }
            Ok(())
        });
        if ran.is_err() {
            // A run that failed half-way leaves values behind.
            let _ = guarded(|| self.state.reset_turn());
        }
        ran
    }
}

std::thread_local! {
    /// Whether this thread's panics are caught and reported as errors.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs tract code. An error or a panic becomes an [`OnnxError::Tract`]; a panic's message is not printed.
fn guarded<T>(run: impl FnOnce() -> TractResult<T>) -> Result<T, OnnxError> {
    static HOOK: Once = Once::new();
    if !std::thread::panicking() {
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                if !GUARDED.try_with(Cell::get).unwrap_or(false) {
                    before(info);
                }
            }));
        });
    }
    let was = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(run));
    GUARDED.set(was);
    match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(OnnxError::Tract(format!("{error:#}"))),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(OnnxError::Tract(format!("panicked: {text}")))
        }
    }
}
