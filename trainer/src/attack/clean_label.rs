//! What clean-label attacks need: a perturbation that makes the true class hard to see, and the waves of SIG.

use std::error::Error;
use std::f64::consts::TAU;

use stemguard_runtime::data::Pictures;

/// Bound of the perturbation, in bytes, on every value (arXiv 1912.02771: L-infinity 16/255).
pub const EPSILON: u8 = 16;

/// Largest share of the target class a clean-label attack may poison.
///
/// Published code takes the whole class at a rate of 0.1, which leaves no clean picture to learn the class from.
pub const LARGEST_SHARE: f64 = 0.5;

/// Amplitude of the published SIG wave, in bytes (arXiv 1902.11237).
pub const SIG_AMPLITUDE: f64 = 40.0;
/// Cycles of the published SIG wave across the picture (arXiv 1902.11237).
pub const SIG_CYCLES: f64 = 6.0;

/// Makes pictures hard to classify within [`EPSILON`], so that a model leans on the trigger to learn them.
///
/// `cl` (arXiv 1912.02771) asks for projected gradient descent against a model trained on clean data.
pub trait Perturb {
    /// Perturbs `pictures` at `indices` in place, no value by more than [`EPSILON`], and nothing else.
    ///
    /// # Errors
    /// Whatever keeps the perturbation from being computed.
    fn perturb(&self, pictures: &mut Pictures, indices: &[usize]) -> Result<(), Box<dyn Error + Send + Sync>>;
}

/// The four-cycle wave of the `sig` trigger, one value a column, in bytes.
///
/// It is `20 sin(0.8 j)` cut to a whole number, negative values wrapped to bytes: nearly a square wave.
pub(crate) fn sig_wave(w: usize) -> Vec<f32> {
    let step = 0.8 * 32.0 / w as f64;
    (0..w).map(|j| f32::from((20.0 * (step * j as f64).sin()) as i8 as u8)).collect()
}

/// The wave of SIG as published, `40 sin(2 pi 6 j / w)`, one signed value a column.
pub(crate) fn sig_published_wave(w: usize) -> Vec<f32> {
    (0..w).map(|j| (SIG_AMPLITUDE * (TAU * SIG_CYCLES * j as f64 / w as f64).sin()) as f32).collect()
}
