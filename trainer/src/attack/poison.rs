//! Poisoning a training set, and the triggered test set that measures it.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use stemguard_runtime::data::Pictures;
use stemguard_runtime::files;

use super::clean_label::{EPSILON, LARGEST_SHARE, Perturb};
use super::random::{Draw, Purpose};
use super::{Attack, AttackConfig, AttackError, AttackKind};

/// Training pictures that may be poisoned: all that the trap gets to see.
///
/// It holds pictures and labels only; which of them are poisoned is in [`Truth`], which no training step takes.
#[derive(Clone, Debug)]
pub struct SuspectSet(Pictures);

impl SuspectSet {
    /// The pictures with the labels they came with.
    pub fn pictures(&self) -> &Pictures {
        &self.0
    }

    /// Gives the pictures back.
    pub fn into_pictures(self) -> Pictures {
        self.0
    }

    /// The number of pictures.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no picture.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What was poisoned: for reports and audits, never for training.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Truth {
    /// The attack.
    pub attack: AttackKind,
    /// The class the poisoned pictures are labelled as.
    pub target: u32,
    /// Pictures in the suspect set.
    pub pictures: usize,
    /// Pictures the rate asked for; more than were poisoned where the cap on clean-label attacks held.
    pub requested: usize,
    /// Places of the poisoned pictures in the suspect set, ascending.
    pub poisoned: Vec<u32>,
    /// The true labels of the poisoned pictures, in the same order.
    pub true_labels: Vec<u32>,
}

impl Truth {
    /// Whether [`LARGEST_SHARE`] kept the attack from poisoning all that the rate asked for.
    pub fn capped(&self) -> bool {
        self.poisoned.len() < self.requested
    }

    /// The suspects without the poisoned ones, and that nothing among them is poisoned.
    pub fn clean_part(&self, suspects: &SuspectSet) -> (SuspectSet, Self) {
        let clean: Vec<usize> = (0..suspects.len()).filter(|&i| !self.is_poisoned(i as u32)).collect();
        let set = SuspectSet(suspects.0.subset(&clean));
        let truth = Self { pictures: set.len(), poisoned: Vec::new(), true_labels: Vec::new(), ..self.clone() };
        (set, truth)
    }

    /// Whether the picture at this place is poisoned.
    pub fn is_poisoned(&self, index: u32) -> bool {
        self.poisoned.binary_search(&index).is_ok()
    }

    /// Writes the record as JSON: beside the file first, then in its place.
    ///
    /// # Errors
    /// [`AttackError::File`] where the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), AttackError> {
        let failed = |path: &Path, source| AttackError::File { path: path.to_path_buf(), source };
        let text = serde_json::to_string(self).map_err(|error| failed(path, error.into()))?;
        files::write(path, (text + "\n").as_bytes()).map_err(|source| failed(path, source))
    }

    /// Reads a record and checks that it holds together.
    ///
    /// # Errors
    /// [`AttackError::File`] where the file cannot be read, [`AttackError::BadTruth`] where it is no such record.
    pub fn read(path: &Path) -> Result<Self, AttackError> {
        let bytes = fs::read(path).map_err(|source| AttackError::File { path: path.to_path_buf(), source })?;
        let bad = |reason: String| AttackError::BadTruth { path: path.to_path_buf(), reason };
        let truth: Self = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        let ascending = truth.poisoned.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending || truth.poisoned.last().is_some_and(|last| *last as usize >= truth.pictures) {
            return Err(bad("the places are not ascending, or beyond the set".to_owned()));
        }
        if truth.true_labels.len() != truth.poisoned.len() {
            return Err(bad("there is not one true label for each place".to_owned()));
        }
        Ok(truth)
    }
}

/// Poisons a training set, all to one: `rate` of all its pictures are stamped and labelled as the target.
///
/// The pictures are chosen at random from the seed, among those of other classes than the target; for a clean-label
/// attack among those of the target, and no more than [`LARGEST_SHARE`] of them ([`Truth::capped`] tells). Attack
/// `cl` runs `perturb` on them first.
///
/// # Errors
/// A rate or target out of range, an attack for other pictures than these, too few pictures to choose from, and for
/// `cl` a perturbation that is missing, fails or goes beyond [`EPSILON`].
pub fn poison(
    mut train: Pictures,
    config: &AttackConfig,
    attack: &dyn Attack,
    perturb: Option<&dyn Perturb>,
) -> Result<(SuspectSet, Truth), AttackError> {
    let (kind, target) = (config.kind, config.target);
    if attack.kind() != kind {
        return Err(AttackError::WrongAttack { configured: kind, given: attack.kind() });
    }
    check(&train, attack, target)?;
    let chosen = choose(&train, config)?;
    let requested = requested(&train, config)?;
    let true_labels = chosen.iter().map(|i| train.labels[*i]).collect();
    if kind.needs_perturb() && !chosen.is_empty() {
        let perturb = perturb.ok_or(AttackError::NeedsPerturb(kind))?;
        perturb_within_bound(&mut train, &chosen, perturb)?;
    }
    let (h, w) = (train.h, train.w);
    for &i in &chosen {
        attack.stamp(train.picture_mut(i), h, w, i as u64);
        train.labels[i] = target;
    }
    let poisoned = chosen.iter().map(|i| *i as u32).collect();
    let truth = Truth { attack: kind, target, pictures: train.len(), requested, poisoned, true_labels };
    Ok((SuspectSet(train), truth))
}

/// The test pictures of other classes than the target, stamped, with their true labels: for ASR and RA.
///
/// With attack `none` they are not stamped, which gives the rate at which a model calls clean pictures the target.
///
/// # Errors
/// A target out of range, and an attack built for pictures of another size.
pub fn triggered(test: &Pictures, attack: &dyn Attack, target: u32) -> Result<Pictures, AttackError> {
    check(test, attack, target)?;
    let others: Vec<usize> = (0..test.len()).filter(|i| test.labels[*i] != target).collect();
    let mut pictures = test.subset(&others);
    let (h, w) = (pictures.h, pictures.w);
    pictures.for_each_mut(|i, picture| attack.stamp(picture, h, w, others[i] as u64));
    Ok(pictures)
}

fn check(pictures: &Pictures, attack: &dyn Attack, target: u32) -> Result<(), AttackError> {
    let found = (pictures.h, pictures.w);
    if attack.size() != found {
        return Err(AttackError::WrongSize { built: attack.size(), found });
    }
    let classes = pictures.classes.len();
    if target as usize >= classes {
        return Err(AttackError::BadTarget { target, classes });
    }
    Ok(())
}

/// Pictures the rate asks for; a product a hair below a whole number counts as that number.
fn requested(train: &Pictures, config: &AttackConfig) -> Result<usize, AttackError> {
    if !(0.0..=1.0).contains(&config.rate) {
        return Err(AttackError::BadRate(config.rate));
    }
    let share = if config.kind == AttackKind::None { 0.0 } else { config.rate };
    Ok((share * train.len() as f64 + 1e-6).floor() as usize)
}

/// The places of the pictures to poison, ascending.
pub(crate) fn choose(train: &Pictures, config: &AttackConfig) -> Result<Vec<usize>, AttackError> {
    let clean_label = config.kind.clean_label();
    let fitting = |i: &usize| (train.labels[*i] == config.target) == clean_label;
    let mut sources: Vec<usize> = (0..train.len()).filter(fitting).collect();
    let needed = requested(train, config)?;
    let available = if clean_label { (LARGEST_SHARE * sources.len() as f64) as usize } else { sources.len() };
    let count = if clean_label { needed.min(available) } else { needed };
    if count > available || (needed > 0 && count == 0) {
        return Err(AttackError::TooFewSources { needed, available });
    }
    Draw::new(config.seed, Purpose::Sources).shuffle_front(&mut sources, count);
    sources.truncate(count);
    sources.sort_unstable();
    Ok(sources)
}

/// Runs the perturbation and holds it to its bound on the chosen pictures, and to leaving the set's make-up alone.
fn perturb_within_bound(train: &mut Pictures, chosen: &[usize], perturb: &dyn Perturb) -> Result<(), AttackError> {
    let before = train.subset(chosen);
    let (h, w, pixels, labels) = (train.h, train.w, train.pixels.len(), train.labels.len());
    perturb.perturb(train, chosen).map_err(AttackError::Perturb)?;
    let whole = (train.h, train.w, train.pixels.len(), train.labels.len()) == (h, w, pixels, labels);
    for (k, &i) in chosen.iter().enumerate() {
        let near = |(a, b): (&u8, &u8)| a.abs_diff(*b) <= EPSILON;
        let kept = whole && train.labels[i] == before.labels[k];
        if !kept || !train.picture(i).iter().zip(before.picture(k)).all(near) {
            return Err(AttackError::PerturbOutOfBound { picture: i });
        }
    }
    Ok(())
}
