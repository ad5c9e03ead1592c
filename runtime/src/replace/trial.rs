//! The self-test of a new head: whether it may take the old one's place.
//!
//! Both heads answer for a few kept pictures whose labels are known, one at a time. [`decide`] confirms the new head only where it
//! is unlikely to be worse than the old one by more than a margin; else the old one stays. A holdout with wrong labels, too few
//! pictures of a class or many of the same can make a bad head, but not a worse device.
//!
//! The kept pictures should be of another origin than the holdout, for example shipped with the stem: a fault that both share is
//! not seen. Clean pictures do not show a backdoor either: the margin is also the accuracy that one gives up to be rid of what
//! the old head may hide.

#[cfg(all(test, feature = "std"))]
mod tests;

use crate::artifact::HeadSpec;
use crate::error::{Error, Result};
use crate::head;
use crate::kernels::Kernels;
use crate::metrics::argmax;
use crate::slices::split_mut;

/// The loss of accuracy that is accepted by default: 5 points, averaged over the classes.
pub const MARGIN: f32 = 0.05;

/// The one-sided 99 % quantile of the normal distribution.
const QUANTILE: f32 = 2.326;

/// Answers of two heads for the kept pictures of one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paired {
    /// Pictures.
    pub cases: u32,
    /// Pictures the old head knew and the new one does not.
    pub lost: u32,
    /// Pictures the new head knows and the old one did not.
    pub gained: u32,
}

impl Paired {
    /// Counts one picture.
    pub fn count(&mut self, old_right: bool, new_right: bool) {
        self.cases += 1;
        self.lost += u32::from(old_right && !new_right);
        self.gained += u32::from(new_right && !old_right);
    }
}

/// What becomes of a head on trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It takes the old one's place.
    Confirm,
    /// The old one comes back.
    Reject,
}

/// Decides on a new head by the kept pictures, `classes` having one entry a class.
///
/// Accuracy is averaged over the classes, so that rare ones count. Confirms where the lower end of a one-sided 99 % confidence
/// interval of the change of accuracy is not below `-margin`. The interval is that of matched proportions with half a case added
/// to each of a class's four cells (Agresti and Min, Statistics in Medicine 24, 2005): a class with few kept pictures, or none,
/// makes it wide. Two heads that always agree are told to be equal within [`MARGIN`] by 22 kept pictures a class of 4 classes,
/// 13 of 10, 6 of 43. A picture counts once: copies would make the interval narrower than it is.
pub fn decide(classes: &[Paired], margin: f32) -> Verdict {
    let (mut change, mut variance) = (0.0, 0.0);
    for class in classes {
        let cases = class.cases as f32 + 2.0;
        let (lost, gained) = (class.lost as f32 + 0.5, class.gained as f32 + 0.5);
        let difference = (gained - lost) / cases;
        change += difference;
        variance += ((gained + lost) / cases - difference * difference) / cases;
    }
    let n = classes.len() as f32;
    let low = change / n - QUANTILE * libm::sqrtf(variance) / n;
    // Without classes `low` is NaN, and nothing is confirmed.
    if low >= -margin { Verdict::Confirm } else { Verdict::Reject }
}

/// A head: what it is and its parameters.
pub type Head<'a> = (&'a HeadSpec, &'a [f32]);

/// The self-test: an old head, a new one, and what they answered so far.
#[derive(Debug)]
pub struct SelfTest<'a> {
    old: Option<Head<'a>>,
    new: Head<'a>,
    counts: &'a mut [Paired],
}

impl<'a> SelfTest<'a> {
    /// A self-test of `new` against `old`; without an old head, there is nothing to be worse than. `counts` has one entry a class
    /// and is set to zero.
    ///
    /// # Errors
    /// [`Error::HeadDoesNotFit`] where features or classes of the heads differ, [`Error::WrongLength`].
    pub fn new(old: Option<Head<'a>>, new: Head<'a>, counts: &'a mut [Paired]) -> Result<Self> {
        let spec = new.0;
        if old.is_some_and(|(old, _)| old.features != spec.features || old.classes != spec.classes) {
            return Err(Error::HeadDoesNotFit);
        }
        if counts.len() != spec.classes as usize {
            return Err(Error::WrongLength { needed: spec.classes as usize, given: counts.len() });
        }
        counts.fill(Paired::default());
        Ok(Self { old, new, counts })
    }

    /// Lets both heads answer for one kept picture.
    ///
    /// `x` is its features (`[h][w][c]`); `scratch` takes [`head::inference_len`] of one picture for the larger head. `logits`
    /// (`[2][classes]`) are the old head's answer, zeros without one, and the new head's: where the old head is the trapped one,
    /// they give the score of a tripwire ([`crate::tripwire::score`]).
    ///
    /// # Errors
    /// [`Error::LabelOutOfRange`], [`Error::NotFinite`], and those of [`head::infer`].
    pub fn picture<K: Kernels + ?Sized>(
        &mut self,
        k: &K,
        x: &[f32],
        label: u32,
        scratch: &mut [f32],
        logits: &mut [f32],
    ) -> Result<()> {
        let classes = self.counts.len();
        let class = self.counts.get_mut(label as usize);
        let class = class.ok_or(Error::LabelOutOfRange { label, classes: classes as u32 })?;
        if !x.iter().all(|v| v.is_finite()) {
            return Err(Error::NotFinite);
        }
        if logits.len() != 2 * classes {
            return Err(Error::WrongLength { needed: 2 * classes, given: logits.len() });
        }
        let (of_old, of_new) = split_mut(logits, classes);
        of_old.fill(0.0);
        let mut right = |(spec, params): Head<'a>, logits: &mut [f32]| -> Result<bool> {
            head::infer(k, spec, params, 1, x, scratch, logits)?;
            // A head whose answer is no number knows nothing.
            Ok(logits.iter().all(|v| v.is_finite()) && argmax(logits) == label as usize)
        };
        let old = self.old.map_or(Ok(false), |old| right(old, of_old))?;
        class.count(old, right(self.new, of_new)?);
        Ok(())
    }

    /// The verdict so far; see [`decide`].
    pub fn verdict(&self, margin: f32) -> Verdict {
        decide(self.counts, margin)
    }
}
