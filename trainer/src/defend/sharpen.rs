//! The tripwire sharpened: once the audit, or the guard, has accused, its witness is taught anew from what was found.
//!
//! The trapped head learnt the trigger beside everything else, as one sign among many; where a picture shows it poorly, it goes by
//! the picture. A head taught on the accused and on twice as many trusted pictures, on the features of the same trapped stem, each
//! with its given label, goes by the trigger. The threshold is set again on the clean holdout: what the audit got wrong costs alarms
//! that are missed, not false ones. It takes the trapped head's place where it finds more of those accused that it was not taught,
//! each head with its own threshold; the trapped head was trained on these, so that the doubt is on its side.
//!
//! A purified model is given a witness in the same way ([`Defended::watch`]): its head has unlearnt the trigger, its stem still tells it.

use super::{Defended, Replacement, Tripwire, to_f32, train_head};
use crate::audit::Verdict;
use crate::engine::Device;
use crate::error::Failure;
use crate::evaluate::TestSet;
use crate::model::TrapNet;
use serde::Serialize;
use stemguard_runtime::artifact::HeadKind;
use stemguard_runtime::data::Pictures;
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::replace::{Progress, Settings, check_holdout};
use stemguard_runtime::rng::Rng;
use stemguard_runtime::session::{NewHead, Space};

/// A tripwire that finds fewer of the accused that it was not taught is none.
const LEAST_FOUND: f64 = 0.5;
/// Most of the accused that a witness is taught on.
const ACCUSED: usize = 4500;
/// Trusted pictures for each of them.
const TRUSTED: usize = 2;
/// Of so many accused, one is not taught but found or missed.
const JUDGE: usize = 5;
/// Most values of all these pictures together.
const ROOM: usize = 1 << 28;
/// Fewer accused teach nothing.
const LEAST_ACCUSED: usize = 30;
/// Stream of the seed for the choice of pictures.
const CHOICE: u64 = 0x7769_746e;
/// How it is taught: neither smoothed nor mixed, for it may be as sure as it can.
const SETTINGS: Settings = Settings { rate: 0.003, smoothing: 0.0, cutmix: false, dropout: 0.0, ..Settings::CACHED };
/// Steps it takes, about: more than that, and it goes by the pictures, too.
const STEPS: usize = 700;
/// Views of each picture.
const VIEWS: usize = 2;

/// What the two witnesses find of the accused that the taught one was not taught on, 0..=1; the trapped head was trained on them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sharpening {
    /// The trapped head.
    pub trapped_head: f64,
    /// The one taught on the other accused.
    pub taught: f64,
}

impl Sharpening {
    /// Whether the taught one took the trapped head's place.
    pub fn taken(&self) -> bool {
        self.taught > self.trapped_head
    }
}

/// Places of the pictures that a witness is taught on, and of those accused that judge it.
struct Lesson {
    taught: Vec<usize>,
    judges: Vec<usize>,
}

/// What a verdict on pictures of so many values each has to teach; `None` where too few are accused.
fn lesson(verdict: &Verdict, values: usize, seed: u64) -> Option<Lesson> {
    let mut rng = Rng::new(seed ^ CHOICE, 0);
    let mut pick = |mut from: Vec<usize>, most: usize| {
        rng.shuffle(&mut from);
        from.truncate(most);
        from
    };
    let places = 0..verdict.accused.len();
    let most = ACCUSED.min(ROOM / (1 + TRUSTED) / values.max(1));
    let mut taught = pick(places.clone().filter(|&i| verdict.accused[i]).collect(), most);
    if taught.len() < LEAST_ACCUSED {
        return None;
    }
    let judges = taught.split_off(taught.len() - taught.len() / JUDGE);
    taught.extend(pick(places.filter(|&i| verdict.trusts(i)).collect(), TRUSTED * taught.len()));
    Some(Lesson { taught, judges })
}

/// What a witness is taught from.
#[derive(Clone, Copy)]
pub struct Evidence<'a> {
    /// Where it is taught.
    pub device: Device,
    /// The network that the model's stem was packed from.
    pub net: &'a TrapNet,
    /// What it was trained on.
    pub suspects: &'a Pictures,
    /// What the audit made of them.
    pub verdict: &'a Verdict,
    /// Clean pictures, which set the threshold.
    pub holdout: &'a Pictures,
    /// What alarms are counted on.
    pub test: &'a TestSet,
    /// Views, seed, and the false-positive rate.
    pub how: &'a Replacement,
    /// Threads.
    pub kernels: &'a Simd,
}

/// A taught witness, and the accused that it was not taught.
struct Taught {
    witness: NewHead,
    unseen: TestSet,
}

impl Evidence<'_> {
    /// Teaches a witness on the features of the model's stem. None with fewer than 30 accused, or where some class has no picture
    /// to teach it on.
    fn teach(&self, model: &Defended, progress: &mut dyn FnMut(Progress) -> bool) -> Result<Option<Taught>, Failure> {
        let Self { device, net, suspects, verdict, how, .. } = *self;
        let lesson = lesson(verdict, suspects.shape().len(), how.settings.seed);
        let Some(Lesson { taught, judges }) = lesson else { return Ok(None) };
        let pictures = suspects.subset(&taught);
        if check_holdout(&pictures.labels, pictures.classes.len(), SETTINGS.batch).is_err() {
            return Ok(None);
        }
        let epochs = (STEPS * SETTINGS.batch / taught.len()).max(1) as u32;
        let settings = Settings { epochs, seed: how.settings.seed ^ CHOICE, ..SETTINGS };
        let how = Replacement { kind: HeadKind::Residual, space: Space::Features { views: VIEWS }, settings, ..*how };
        let witness = train_head(&model.stem, device, net, &pictures, &how, self.kernels, progress)?;
        // Only the accused are asked for.
        let (clean, triggered) = (suspects.subset(&[]), suspects.subset(&judges));
        Ok(Some(Taught { witness, unseen: TestSet { clean, triggered, target: self.test.target } }))
    }
}

impl Defended {
    /// Teaches a witness. It becomes the tripwire's where `stays` says so of the share it finds of the accused that it was not taught,
    /// and of these; that share, where one could be taught.
    fn teach(
        &mut self,
        evidence: &Evidence<'_>,
        progress: &mut dyn FnMut(Progress) -> bool,
        stays: impl FnOnce(&Self, f64, &TestSet) -> Result<bool, Failure>,
    ) -> Result<Option<f64>, Failure> {
        let Evidence { holdout, test, how, kernels, .. } = *evidence;
        let Some(Taught { witness, unseen }) = evidence.teach(self, progress)? else { return Ok(None) };
        let set = self.set(&witness, &to_f32(holdout), how.alarm_fpr, kernels)?;
        let found = self.count(set, &unseen, kernels)?.true_positives;
        if stays(self, found, &unseen)? {
            let alarms = self.count(set, test, kernels)?;
            self.tripwire = Some(Tripwire { witness, alarms });
        }
        Ok(Some(found))
    }

    /// Teaches the tripwire a new witness from the verdict on the suspects that its stem was trained on; it takes the trapped head's
    /// place if it is the better one. None is taught without a tripwire, with fewer than 30 accused, or where some class has no
    /// picture to teach it on.
    ///
    /// # Errors
    /// [`Failure`] where the parts do not belong together, or a device is not there.
    pub fn sharpen(
        &mut self,
        evidence: &Evidence<'_>,
        progress: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<Option<Sharpening>, Failure> {
        // Its threshold was set when it was kept.
        let Some(trapped) = self.tripwire.take() else { return Ok(None) };
        let mut trapped_head = 0.0;
        let taught = self.teach(evidence, progress, |model, taught, unseen| {
            trapped_head = model.count(trapped.parts(), unseen, evidence.kernels)?.true_positives;
            Ok(Sharpening { trapped_head, taught }.taken())
        });
        self.tripwire.get_or_insert(trapped);
        Ok(taught?.map(|taught| Sharpening { trapped_head, taught }))
    }

    /// Gives a model without a trapped head, a purified one, a tripwire whose witness is taught on the features of its own stem. It
    /// stays where it finds at least half of the accused that it was not taught. That share, where a witness could be taught.
    ///
    /// # Errors
    /// As [`Defended::sharpen`].
    pub fn watch(
        &mut self,
        evidence: &Evidence<'_>,
        progress: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<Option<f64>, Failure> {
        self.teach(evidence, progress, |_, found, _| Ok(found >= LEAST_FOUND))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lesson_takes_the_accused_and_twice_as_many_trusted() {
        let verdict = |accused: usize, doubtful: usize, n: usize| Verdict {
            classes: Vec::new(),
            score: (0..n)
                .map(|i| if i < accused { 1.0 } else { 0.2 * f32::from(u8::from(i < accused + doubtful)) })
                .collect(),
            accused: (0..n).map(|i| i < accused).collect(),
        };
        let v = verdict(40, 30, 400);
        let Lesson { taught, judges } = lesson(&v, 3072, 1).expect("enough");
        assert_eq!((taught.len(), judges.len()), (96, 8));
        assert_eq!(taught.iter().filter(|&&i| v.accused[i]).count(), 32);
        assert!(judges.iter().all(|&i| v.accused[i] && !taught.contains(&i)));
        assert!(taught.iter().all(|&i| !(40..70).contains(&i)), "the doubtful are left out");
        assert_eq!(lesson(&v, 3072, 1).expect("the same").taught, taught);
        assert!(lesson(&verdict(29, 0, 400), 3072, 1).is_none());
        let sizes = |v: &Verdict, values| lesson(v, values, 1).map(|l| (l.taught.len(), l.judges.len()));
        assert_eq!(sizes(&verdict(5000, 0, 20_000), 3072), Some((10_800, 900)));
        assert_eq!(sizes(&verdict(5000, 0, 20_000), 1 << 20), Some((204, 17)));
        // Everybody accused: nobody is left to trust.
        assert_eq!(sizes(&verdict(50, 0, 50), 3072), Some((40, 10)));
    }
}
