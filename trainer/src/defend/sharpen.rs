//! The tripwire sharpened: once the audit, or the guard, has accused, its witness is taught anew from what was found.
//!
//! The trapped head learnt the trigger beside everything else, as one sign among many; where a picture shows it poorly, it goes by
//! the picture. A head taught on the accused and on twice as many trusted pictures, on the features of the same trapped stem, each
//! with its given label, goes by the trigger. Pictures are neither shifted nor mirrored for it: a trigger at the border would leave
//! the picture, its label would stay. It is taught twice, once with copies of the trusted pictures that wear what the accused have in
//! common ([`crate::imprint`]) and have the label of the accused, so that of two pictures that differ in the trigger alone one is the
//! target class. Where that is not the trigger (WaNet leaves none to read off), such copies teach the wrong thing; of the two, the
//! one stays that finds more of those accused that neither was taught (they have their part in what all accused have in common). The
//! threshold is set again on the clean holdout: what the audit got wrong costs alarms that are missed, not false ones. It takes the
//! trapped head's place where it finds more of the unseen accused, each head with its own threshold; the trapped head was trained on
//! these, so that the doubt is on its side.
//!
//! A purified model is given a witness in the same way ([`Defended::watch`]): its head has unlearnt the trigger, its stem still tells
//! it. Purification trained that head on the holdout, too, so that a threshold from there lets more of other clean pictures through.
//! The unseen accused tell how far it may rise: halfway to the lowest of those found.

use super::{Defended, NewHead, Replacement, Tripwire, to_f32, train_head};
use crate::audit::Verdict;
use crate::engine::Device;
use crate::error::Failure;
use crate::evaluate::TestSet;
use crate::imprint::{Imprint, stamp_all};
use crate::model::TrapNet;
use crate::packed::above;
use serde::Serialize;
use stemguard_runtime::artifact::{HeadKind, TripwireParts};
use stemguard_runtime::data::Pictures;
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::replace::{Progress, Settings, check_holdout};
use stemguard_runtime::rng::Rng;
use stemguard_runtime::session::{Augment, Space};
use stemguard_runtime::tripwire::Alarm;

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
/// Steps it takes, about.
const STEPS: usize = 2000;
/// Most passes over its pictures: after more, few pictures are learnt one by one.
const PASSES: usize = 20;
/// Pictures as they are.
const AS_IS: Augment = Augment { shift: 0, flip: false };

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
    accused: Vec<usize>,
    trusted: Vec<usize>,
    judges: Vec<usize>,
}

impl Lesson {
    /// What a verdict on pictures of so many values each has to teach; `None` where too few are accused.
    fn of(verdict: &Verdict, values: usize, seed: u64) -> Option<Self> {
        let mut rng = Rng::new(seed ^ CHOICE, 0);
        let mut pick = |mut from: Vec<usize>, most: usize| {
            rng.shuffle(&mut from);
            from.truncate(most);
            from
        };
        let places = 0..verdict.accused.len();
        // The trusted count twice, as they are and with the trigger.
        let most = ACCUSED.min(ROOM / (1 + 2 * TRUSTED) / values.max(1));
        let mut accused = pick(places.clone().filter(|&i| verdict.accused[i]).collect(), most);
        if accused.len() < LEAST_ACCUSED {
            return None;
        }
        let judges = accused.split_off(accused.len() - accused.len() / JUDGE);
        let trusted = pick(places.filter(|&i| verdict.trusts(i)).collect(), TRUSTED * accused.len());
        Some(Self { accused, trusted, judges })
    }

    /// Its pictures, and the trusted ones again with these imprints on them and the labels that go with those.
    fn pictures(&self, suspects: &Pictures, imprints: &[(u32, Imprint)]) -> Result<Pictures, Failure> {
        let seen = suspects.subset(&[&self.accused[..], &self.trusted[..]].concat());
        if imprints.is_empty() {
            return Ok(seen);
        }
        let mut stamped = suspects.subset(&self.trusted);
        stamped.labels = stamp_all(imprints, &mut stamped);
        seen.concat(&stamped).map_err(|e| Failure::Other(e.to_string()))
    }
}

/// A witness that was taught, with the threshold that the holdout asks for.
struct Taught {
    witness: NewHead,
    threshold: f32,
    /// Places of the accused that it was not taught, and its scores of them.
    judges: Vec<usize>,
    scores: Vec<f32>,
}

impl Taught {
    /// The share of them that it finds.
    fn found(&self) -> f64 {
        above(&self.scores, self.threshold)
    }

    /// The lowest score of those found.
    fn lowest(&self) -> Option<f32> {
        let found = self.scores.iter().copied().filter(|&score| Alarm::of(score, self.threshold).raised);
        found.min_by(f32::total_cmp)
    }
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

impl Evidence<'_> {
    /// What is taught, in turn: pictures with the trigger stamped on trusted ones, where the accused show one; pictures as they are.
    fn lessons(&self, lesson: &Lesson) -> Result<Vec<Pictures>, Failure> {
        let imprints = Imprint::of_all(self.suspects, &self.verdict.accused);
        let mut all = vec![lesson.pictures(self.suspects, &[])?];
        if !imprints.is_empty() {
            all.insert(0, lesson.pictures(self.suspects, &imprints)?);
        }
        Ok(all)
    }

    /// Teaches witnesses on the features of the model's stem; the one that finds most of the accused that it was not taught. None with
    /// fewer than 30 accused, or where some class has no picture to teach it on.
    fn teach(&self, model: &Defended, progress: &mut dyn FnMut(Progress) -> bool) -> Result<Option<Taught>, Failure> {
        let Self { device, net, suspects, verdict, holdout, how, kernels, .. } = *self;
        let lesson = Lesson::of(verdict, suspects.shape().len(), how.settings.seed);
        let Some(lesson) = lesson else { return Ok(None) };
        let unseen = suspects.subset(&lesson.judges);
        let (quiet, mut best) = (to_f32(holdout), None::<Taught>);
        for pictures in self.lessons(&lesson)? {
            if check_holdout(&pictures.labels, pictures.classes.len(), SETTINGS.batch).is_err() {
                return Ok(None);
            }
            let epochs = (STEPS * SETTINGS.batch / pictures.len()).clamp(1, PASSES) as u32;
            let settings = Settings { epochs, seed: how.settings.seed ^ CHOICE, ..SETTINGS };
            let (kind, space) = (HeadKind::Residual, Space::Features { views: 1 });
            let how = Replacement { kind, space, augment: AS_IS, settings, ..*how };
            let witness = train_head(&model.stem, device, net, &pictures, &how, kernels, progress)?;
            let set = model.set(&witness, &quiet, how.alarm_fpr, kernels)?;
            let (threshold, scores) = (set.threshold, model.scores(set, &unseen, kernels)?);
            let taught = Taught { witness, threshold, judges: lesson.judges.clone(), scores };
            if best.as_ref().is_none_or(|best| taught.found() > best.found()) {
                best = Some(taught);
            }
        }
        Ok(best)
    }
}

impl Defended {
    /// The tripwire with a taught witness, its alarms counted on the test pictures.
    fn tripwire_of(&self, taught: Taught, evidence: &Evidence<'_>) -> Result<Tripwire, Failure> {
        let Taught { witness, threshold, .. } = taught;
        let set = TripwireParts { witness: witness.parts(), threshold, false_positive_rate: evidence.how.alarm_fpr };
        let alarms = self.count(set, evidence.test, evidence.kernels)?;
        Ok(Tripwire { witness, alarms })
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
        let Some(trapped) = &self.tripwire else { return Ok(None) };
        let Some(taught) = evidence.teach(self, progress)? else { return Ok(None) };
        let scores = self.scores(trapped.parts(), &evidence.suspects.subset(&taught.judges), evidence.kernels)?;
        let trapped_head = above(&scores, trapped.alarms.threshold);
        let sharpening = Sharpening { trapped_head, taught: taught.found() };
        if sharpening.taken() {
            self.tripwire = Some(self.tripwire_of(taught, evidence)?);
        }
        Ok(Some(sharpening))
    }

    /// Gives a model without a trapped head, a purified one, a tripwire whose witness is taught on the features of its own stem, its
    /// threshold halfway between what the holdout asks for and the lowest of the accused so found. It stays where it finds at least half
    /// of the accused that it was not taught. That share, where a witness could be taught.
    ///
    /// # Errors
    /// As [`Defended::sharpen`].
    pub fn watch(
        &mut self,
        evidence: &Evidence<'_>,
        progress: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<Option<f64>, Failure> {
        let Some(mut taught) = evidence.teach(self, progress)? else { return Ok(None) };
        let found = taught.found();
        if found >= LEAST_FOUND {
            taught.threshold =
                taught.lowest().map_or(taught.threshold, |lowest| f32::midpoint(taught.threshold, lowest));
            self.tripwire = Some(self.tripwire_of(taught, evidence)?);
        }
        Ok(Some(found))
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
        let Lesson { accused, trusted, judges } = Lesson::of(&v, 3072, 1).expect("enough");
        assert_eq!((accused.len(), trusted.len(), judges.len()), (32, 64, 8));
        assert!(accused.iter().chain(&judges).all(|&i| v.accused[i]));
        assert!(judges.iter().all(|i| !accused.contains(i)));
        assert!(trusted.iter().all(|&i| i >= 70), "the doubtful are left out");
        assert_eq!(Lesson::of(&v, 3072, 1).expect("the same").trusted, trusted);
        assert!(Lesson::of(&verdict(29, 0, 400), 3072, 1).is_none());
        let sizes =
            |v: &Verdict, values| Lesson::of(v, values, 1).map(|l| [&l.accused, &l.trusted, &l.judges].map(Vec::len));
        assert_eq!(sizes(&verdict(5000, 0, 20_000), 3072), Some([3600, 7200, 900]));
        assert_eq!(sizes(&verdict(5000, 0, 20_000), 1 << 20), Some([41, 82, 10]));
        // Everybody accused: nobody is left to trust.
        assert_eq!(sizes(&verdict(50, 0, 50), 3072), Some([40, 0, 10]));
    }

    #[test]
    fn trusted_pictures_are_shown_again_with_the_trigger() {
        let n = 300;
        let labels: Vec<u32> = (0..n).map(|i| if i < 50 { 1 } else { i % 3 }).collect();
        let pixels = (0..n).flat_map(|i| if i < 50 { [250; 3] } else { [(i % 90) as u8; 3] }).collect();
        let classes = ["a", "b", "c"].map(String::from).to_vec();
        let suspects = Pictures { h: 1, w: 1, pixels, labels, classes, files: vec![] };
        let accused: Vec<bool> = (0..n).map(|i| i < 50).collect();
        let score = accused.iter().map(|&a| f32::from(u8::from(a))).collect();
        let lesson =
            Lesson::of(&Verdict { classes: Vec::new(), score, accused: accused.clone() }, 3, 1).expect("enough");
        let plain = lesson.pictures(&suspects, &[]).expect("pictures");
        let both = lesson.pictures(&suspects, &Imprint::of_all(&suspects, &accused)).expect("pictures");
        assert_eq!((plain.len(), both.len()), (40 + 80, 40 + 80 + 80));
        assert_eq!((&both.labels[..120], &both.pixels[..360]), (&plain.labels[..], &plain.pixels[..]));
        assert!(both.labels[120..].iter().all(|&l| l == 1) && both.pixels[360..].iter().all(|&v| v >= 240));
        assert!(plain.pixels[120..].iter().all(|&v| v < 90));
    }
}
