//! Layers one after the other, as one operation on the tape.

use super::layer::Saved;
use super::{Batch, Buffer, Buffers, Layer, Visit};
use dfdx::prelude::*;
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::shape::Shape;

/// Layers one after the other: a stem, a head or a decoder.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// The layers' names, as in parameter names.
    pub names: Vec<String>,
    /// The layers.
    pub layers: Vec<Layer>,
    /// Whether the gradient with respect to the input is wanted.
    pub input_gradient: bool,
}

/// Everything the backward pass needs: inputs of each layer and what its forward pass left.
struct Trace {
    inputs: Vec<Buffer>,
    saved: Vec<Saved>,
    output: Buffer,
}

impl Sequence {
    /// Shape of one output; a sequence has at least one layer.
    pub fn output(&self) -> Shape {
        self.layers.last().map_or(Shape::new(1, 1, 1), Layer::output)
    }

    /// Values that the forward pass of one input leaves for the backward pass, and its output.
    pub fn kept_len(&self) -> usize {
        self.layers.iter().map(Layer::kept_len).sum::<usize>() + self.output().len()
    }

    /// Shows every parameter and state to `v`, under `prefix`.
    pub fn visit(&mut self, prefix: &str, v: &mut dyn Visit) {
        for (name, layer) in self.names.iter().zip(&mut self.layers) {
            layer.visit(&format!("{prefix}.{name}"), v);
        }
    }

    fn run(&mut self, k: &Simd, buffers: &Buffers, n: usize, x: Buffer, training: bool) -> Trace {
        let mut current = x;
        let (mut inputs, mut all, mut sums) = (Vec::new(), Vec::new(), Vec::new());
        for layer in &mut self.layers {
            let mut y = buffers.take(n * layer.output().len());
            let saved = layer.forward(k, buffers, n, &current, training, &mut sums, &mut y);
            let input = std::mem::replace(&mut current, y);
            if training {
                inputs.push(input);
                all.push(saved);
            }
        }
        Trace { inputs, saved: all, output: current }
    }

    /// Inference: `n` inputs through the sequence with running statistics.
    pub fn infer(&mut self, k: &Simd, buffers: &Buffers, n: usize, x: &[f32]) -> Buffer {
        let mut input = buffers.take(x.len());
        input.copy_from_slice(x);
        self.run(k, buffers, n, input, false).output
    }

    /// Training: batch statistics, running ones updated, the backward pass put on the tape.
    ///
    /// # Errors
    /// dfdx's, when memory runs out.
    pub fn forward<T: Tape<f32, Cpu>>(
        &mut self,
        k: &Simd,
        buffers: &Buffers,
        x: Batch<T>,
    ) -> Result<Batch<T>, CpuError> {
        let (n, len) = *x.shape();
        let (x, mut tape) = x.split_tape();
        let mut input = buffers.take(n * len);
        x.copy_into(&mut input);
        let trace = self.run(k, buffers, n, input, true);
        let y = x.device().try_tensor_from_vec(trace.output.to_vec(), (n, self.output().len()))?;
        let (ghost, input) = (y.ghost(), x.ghost());
        let (layers, wanted) = (self.layers.clone(), self.input_gradient);
        let (k, buffers) = (k.clone(), buffers.clone());
        tape.add_backward_op(move |grads| {
            let Trace { mut inputs, mut saved, output } = trace;
            let mut dy = output;
            dy.copy_from_slice(grads.get_or_alloc_mut(&ghost)?);
            for (i, layer) in layers.iter().enumerate().rev() {
                let (Some(x), Some(left)) = (inputs.pop(), saved.pop()) else { break };
                let mut dx = buffers.take(if i > 0 || wanted { x.len() } else { 0 });
                for pair in layer.backward(&k, &buffers, n, &x, &left, &mut dy, &mut dx) {
                    for (param, values) in pair.params.iter().zip(pair.grads) {
                        **grads.get_or_alloc_mut(param)? = values;
                    }
                }
                dy = dx;
            }
            if wanted {
                for (g, d) in grads.get_or_alloc_mut(&input)?.iter_mut().zip(dy.iter()) {
                    *g += d;
                }
            }
            Ok(())
        });
        Ok(y.put_tape(tape))
    }
}
