//! What two heads on one stem know of every suspect picture.

use super::witnesses::Witnesses;
use crate::engine::{log_odds, probability};
use crate::error::Failure;
use crate::history::History;
use stemguard_runtime::data::Pictures;
use stemguard_runtime::metrics::argmax;
use stemguard_runtime::rng::Rng;

/// Pictures scored together.
const BATCH: usize = 250;
/// Clean pictures that each suspect one is mixed with.
const MIXES: usize = 2;
/// Stream of the seed for the choice of them.
const MIX: u64 = 0x6d69_7865;

/// The signals of some pictures, `[n]` each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Signals {
    /// Trapped head's log-odds of the given label: poison is fitted harder than anything else.
    pub confidence: Vec<f32>,
    /// Trapped minus new head's probability of the given label, -1..=1: the new head never saw the trigger.
    pub disagreement: Vec<f32>,
    /// Mean log-odds of the given label over the first half of the epochs, as training saw it: how soon it was fitted.
    pub early: Vec<f32>,
    /// The same over the second half.
    pub late: Vec<f32>,
    /// Standard deviation of the log-odds over all epochs: high where augmentation hides a trigger now and then.
    pub swing: Vec<f32>,
    /// New head's probability of the given label, 0..=1.
    pub new_probability: Vec<f32>,
    /// The new head's answer.
    pub new_label: Vec<u32>,
    /// Trapped head's mean probability of the given label on mixtures with clean pictures of other classes, 0..=1: a trigger
    /// survives what the picture does not (after STRIP, arXiv 1902.06531).
    pub survival: Vec<f32>,
}

impl Signals {
    /// What the course of training alone tells: early, late and swing. The other signals are level.
    pub fn of_history(history: &History) -> Self {
        let (half, all, n) = (history.epochs() / 2, history.epochs(), history.pictures());
        Self {
            confidence: vec![0.0; n],
            disagreement: vec![0.0; n],
            early: history.log_odds(0..half.max(1)).0,
            late: history.log_odds(half..all).0,
            swing: history.log_odds(0..all).1,
            new_probability: vec![0.0; n],
            new_label: Vec::new(),
            survival: vec![0.0; n],
        }
    }

    /// What `witnesses` know of `pictures`, which were fitted as `history` (of at least one epoch) tells; mixtures are made with
    /// pictures of `clean`, chosen from `seed`. `tell` hears of pictures done.
    ///
    /// # Errors
    /// [`Failure`] where a head does not fit the stem, or the history is of other pictures.
    pub(super) fn gather(
        witnesses: &mut Witnesses<'_>,
        pictures: &Pictures,
        clean: &Pictures,
        history: &History,
        seed: u64,
        tell: &mut dyn FnMut(usize),
    ) -> Result<Self, Failure> {
        let (len, classes) = (pictures.shape().len(), pictures.classes.len());
        if history.epochs() == 0 || history.pictures() != pictures.len() {
            return Err(Failure::input("fitting.npy", "is not of the pictures audited"));
        }
        let mut s = Self {
            confidence: Vec::new(),
            disagreement: Vec::new(),
            new_probability: Vec::new(),
            survival: Vec::new(),
            ..Self::of_history(history)
        };
        for first in (0..pictures.len()).step_by(BATCH) {
            let labels = &pictures.labels[first..(first + BATCH).min(pictures.len())];
            let n = labels.len();
            let pixels = &pictures.pixels[first * len..(first + n) * len];
            let [old, new] = witnesses.both(pixels)?;
            for ((&y, old), new) in labels.iter().zip(old.chunks_exact(classes)).zip(new.chunks_exact(classes)) {
                s.confidence.push(log_odds(old, y));
                s.new_label.push(argmax(new) as u32);
                s.disagreement.push(probability(old, y) - probability(new, y));
                s.new_probability.push(probability(new, y));
            }
            let mut survival = vec![0.0f32; n];
            for k in 0..MIXES {
                let mut mixed = pixels.to_vec();
                for (i, mixed) in mixed.chunks_exact_mut(len).enumerate() {
                    let other = partner(clean, labels[i], seed, (first + i) * MIXES + k);
                    mixed.iter_mut().zip(clean.picture(other)).for_each(|(to, &b)| *to = to.saturating_add(b));
                }
                let logits = witnesses.trapped(&mixed)?;
                for ((p, logits), &y) in survival.iter_mut().zip(logits.chunks_exact(classes)).zip(labels) {
                    *p += probability(logits, y) / MIXES as f32;
                }
            }
            s.survival.extend(survival);
            tell(first + n);
        }
        Ok(s)
    }
}

/// A clean picture of another class than `label` (any, where there is no other).
fn partner(clean: &Pictures, label: u32, seed: u64, stream: usize) -> usize {
    let mut rng = Rng::new(seed ^ MIX, stream as u64);
    let start = rng.below(clean.len());
    (0..clean.len()).map(|i| (start + i) % clean.len()).find(|&i| clean.labels[i] != label).unwrap_or(start)
}
