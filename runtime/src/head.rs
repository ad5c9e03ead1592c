//! The head: what is replaced. Two kinds, both trained and run here, on any stem's features.
//!
//! [`residual`] is the published light head (arXiv 2210.06428, section 3.3): a residual unit, batch norm, leaky ReLU, global
//! average pool, a linear layer. [`linear`] is for microcontrollers: pooled features, standardised, and a linear layer.
//! Parameters are one flat slice, trained ones first, running statistics behind them; the slice is what an artifact stores.

pub mod linear;
pub mod residual;

#[cfg(all(test, feature = "std"))]
mod tests;

use crate::artifact::{HeadKind, HeadSpec};
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::rng::Rng;
use crate::shape::Shape;
use crate::slices::{rows, rows_mut};

/// The most parameters of a head: their bytes are no more than a slice can have.
const MOST_PARAMS: usize = isize::MAX as usize / 4;

/// A trainable head: its sizes, one training step, inference.
pub trait HeadModel {
    /// The head for features of shape `features` and `classes` classes.
    ///
    /// # Errors
    /// [`Error::BadSetting`] where a shape, the number of classes or that of parameters is out of range.
    fn new(features: Shape, classes: usize) -> Result<Self>
    where
        Self: Sized;

    /// Shape of the features it takes.
    fn features(&self) -> Shape;
    /// Number of classes.
    fn classes(&self) -> usize;
    /// Values of all parameters.
    fn params(&self) -> usize;
    /// How many of them, from the first, are trained.
    fn trained(&self) -> usize;
    /// Values of scratch that [`HeadModel::gradient`] takes for a batch of `n`.
    fn training_len(&self, n: usize) -> usize;
    /// Sums (`f64`) that [`HeadModel::gradient`] takes.
    fn training_sums(&self) -> usize;
    /// Values of scratch that [`HeadModel::infer`] takes for a batch of `n`.
    fn inference_len(&self, n: usize) -> usize;

    /// Draws initial parameters.
    fn initialise(&self, rng: &mut Rng, params: &mut [f32]);

    /// Learns what it needs to know of the features before training; called with batches of all of them.
    fn observe(&self, x: &[f32], n: usize, seen: usize, params: &mut [f32]);

    /// The loss of one batch and its gradient (`[trained]`) with respect to the parameters; running statistics in `params`
    /// are updated. `x` is `[n][features]` and may be overwritten, `targets` is `[n][classes]`, each row summing to 1.
    #[allow(clippy::too_many_arguments)]
    fn gradient<K: Kernels + ?Sized>(
        &self,
        k: &K,
        n: usize,
        params: &mut [f32],
        x: &mut [f32],
        targets: &[f32],
        dropout: Dropout,
        grads: &mut [f32],
        scratch: &mut [f32],
        sums: &mut [f64],
    ) -> f32;

    /// Logits `[n][classes]` of features `x`.
    fn infer<K: Kernels + ?Sized>(
        &self,
        k: &K,
        n: usize,
        params: &[f32],
        x: &[f32],
        scratch: &mut [f32],
        logits: &mut [f32],
    );
}

/// Dropout of one batch: which share of the values, and from which stream.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// Share of values dropped, 0..1; a multiple of 1/256 is used.
    pub rate: f32,
    /// Seed of the mask.
    pub seed: u64,
    /// Stream of the mask.
    pub stream: u64,
}

impl Dropout {
    /// None at all.
    pub const NONE: Self = Self { rate: 0.0, seed: 0, stream: 0 };

    /// Random bytes below the first drop a value, and what the others are multiplied by; none: nothing is dropped.
    pub fn cut(&self) -> Option<(u8, f32)> {
        let cut = (self.rate * 256.0) as u8;
        (cut > 0).then(|| (cut, 256.0 / (256 - u32::from(cut)) as f32))
    }

    /// Drops values in place and scales the rest; the same call on a gradient is the backward pass.
    pub fn apply(&self, x: &mut [f32]) {
        let Some((cut, keep)) = self.cut() else { return };
        let mut rng = Rng::new(self.seed, self.stream);
        for four in x.chunks_mut(4) {
            // Without branches: what chance decides no processor foresees.
            let kept = rng.bits().to_le_bytes().map(|byte| 0u32.wrapping_sub(u32::from(byte >= cut)));
            if let Ok(four) = <&mut [f32; 4]>::try_from(&mut *four) {
                *four = core::array::from_fn(|i| f32::from_bits((four[i] * keep).to_bits() & kept[i]));
            } else {
                four.iter_mut().zip(kept).for_each(|(v, kept)| *v = f32::from_bits((*v * keep).to_bits() & kept));
            }
        }
    }
}

/// Mean cross-entropy of `n` rows of `logits` against `targets`; the logits become their own gradient.
pub fn cross_entropy(classes: usize, logits: &mut [f32], targets: &[f32]) -> f32 {
    let n = logits.len() / classes.max(1);
    let mut loss = 0.0f64;
    for (row, target) in rows_mut(logits, classes).zip(rows(targets, classes)) {
        let top = row.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
        let sum: f32 = row.iter().map(|&v| libm::expf(v - top)).sum();
        let log_sum = top + libm::logf(sum);
        for (v, &t) in row.iter_mut().zip(target) {
            loss += f64::from(t * (log_sum - *v));
            *v = (libm::expf(*v - log_sum) - t) / n as f32;
        }
    }
    // Not in `f64`: a microcontroller would carry a division of its own for it.
    loss as f32 / n as f32
}

/// Logits of a stored head.
///
/// # Errors
/// [`Error::WrongLength`] where a buffer is too short ([`inference_len`]), and those of [`HeadModel::new`].
pub fn infer<K: Kernels + ?Sized>(
    k: &K,
    spec: &HeadSpec,
    params: &[f32],
    n: usize,
    x: &[f32],
    scratch: &mut [f32],
    logits: &mut [f32],
) -> Result<()> {
    fn run<H: HeadModel, K: Kernels + ?Sized>(
        k: &K,
        spec: &HeadSpec,
        params: &[f32],
        n: usize,
        x: &[f32],
        scratch: &mut [f32],
        logits: &mut [f32],
    ) -> Result<()> {
        let head = H::new(spec.features, spec.classes as usize)?;
        let check = |needed: usize, given: usize| {
            if given < needed { Err(Error::WrongLength { needed, given }) } else { Ok(()) }
        };
        check(head.params(), params.len())?;
        check(n * spec.features.len(), x.len())?;
        check(head.inference_len(n), scratch.len())?;
        check(n * spec.classes as usize, logits.len())?;
        head.infer(k, n, params, x, scratch, logits);
        Ok(())
    }
    match spec.kind {
        HeadKind::Linear => run::<linear::Linear, K>(k, spec, params, n, x, scratch, logits),
        HeadKind::Residual => run::<residual::Residual, K>(k, spec, params, n, x, scratch, logits),
    }
}

/// Values of scratch [`infer`] takes for a batch of `n`.
///
/// # Errors
/// As [`HeadModel::new`].
pub fn inference_len(spec: &HeadSpec, n: usize) -> Result<usize> {
    let classes = spec.classes as usize;
    Ok(match spec.kind {
        HeadKind::Linear => linear::Linear::new(spec.features, classes)?.inference_len(n),
        HeadKind::Residual => residual::Residual::new(spec.features, classes)?.inference_len(n),
    })
}
