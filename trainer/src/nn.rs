//! Layers as operations on dfdx's tape, over the runtime's kernels.
//!
//! ```text
//! Sequence::forward(x) -> y, and on the tape: dy -> dx + gradients of its parameters
//! ```
//!
//! A whole sequence (stem, head or decoder) is one operation on the tape: between its layers activations stay in pooled
//! buffers, norms and activations are applied on the fly by the convolutions on either side, and dfdx sees only the ends.
//! Parameters are dfdx tensors, one-dimensional; layouts are the runtime's (`[ky][kx][cin][cout]`), values NHWC.
//!
//! The layers do not implement dfdx's `TensorCollection`: it wants the number of tensors at compile time, and a network's
//! depth here is a setting. [`Sequence::visit`] takes its place.

mod buffer;
pub mod layer;
pub mod loss;
mod sequence;

pub use buffer::{Buffer, Buffers};
pub use layer::Layer;
pub use sequence::Sequence;

use dfdx::prelude::*;

/// A trained parameter: a flat tensor.
pub type Param = Tensor<(usize,), f32, Cpu>;
/// A batch of `n` values of a fixed length: pictures, feature maps or logits.
pub type Batch<T = NoneTape> = Tensor<(usize, usize), f32, Cpu, T>;

/// The convolution and affine weights of a parameter on a device.
pub(crate) fn param(dev: &Cpu, values: Vec<f32>) -> Param {
    let len = values.len();
    dev.tensor_from_vec(values, (len,))
}

/// What a parameter is to its optimiser and its file: a name and the tensor.
pub trait Visit {
    /// Called for every trained parameter.
    fn param(&mut self, name: &str, param: &mut Param);
    /// Called for every running statistic: state that is kept but not trained.
    fn state(&mut self, name: &str, values: &mut Vec<f32>);
}
