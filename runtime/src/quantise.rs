//! From `f32` to 8 bits: a net is run on calibration pictures, and what its values were decides what 8 bits stand for.
//!
//! ```text
//! Net + pictures -> calibrate -> Calibration -> quantise -> OwnedInt8Net
//! ```
//!
//! Weights have a scale for each output channel, values one scale and a zero point. Activations other than ReLU, ReLU6 and
//! leaky become operations of their own: a table of 256 answers.

mod lower;
mod observe;
mod range;
#[cfg(test)]
mod tests;

pub use lower::quantise;
pub use observe::{Calibration, calibrate};

use crate::error::Error;
use core::fmt;

/// Why a net has no 8-bit form, and which operation is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantiseError {
    /// Number of the operation; none for the whole net.
    pub op: Option<u32>,
    /// Its kind: `conv`, `affine`, ...
    pub kind: &'static str,
    /// What is wrong.
    pub why: Why,
}

/// What is wrong with an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// There is no calibration picture.
    NoPictures,
    /// Its output became NaN or infinite on a calibration picture.
    NotFinite,
    /// One sum or mean runs over so many elements; 65,536 are the most.
    TooManyTerms(u64),
    /// The core refuses the result.
    Core(Error),
}

impl fmt::Display for QuantiseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(op) = self.op {
            write!(f, "{} (operation {op}): ", self.kind)?;
        }
        match self.why {
            Why::NoPictures => f.write_str("no picture to calibrate on"),
            Why::NotFinite => f.write_str("its output on the calibration pictures is not finite"),
            Why::TooManyTerms(n) => write!(f, "each output sums {n} elements; at most 65536 fit 8-bit arithmetic"),
            Why::Core(error) => write!(f, "{error}"),
        }
    }
}

impl core::error::Error for QuantiseError {}
