//! The trained layers: residual unit, batch norm, pooling tail; front, basic block and end of a ResNet. Explicit forward and
//! backward passes over [`Kernels`](crate::kernels::Kernels); no tape, no allocation: the caller owns every buffer.
//!
//! The residual head is made of them here, and the trainer wraps the same functions as operations on its tape.

pub mod basic;
pub mod front;
pub mod norm;
pub mod pool_linear;
pub mod tail;
pub mod unit;

/// Slope of every leaky ReLU of the published networks.
pub const SLOPE: f32 = 0.1;
