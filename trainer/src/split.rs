//! The clean holdout: set aside from the training pictures before anything is poisoned.

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};
use stemguard_runtime::data::Pictures;

use crate::attack::random::{Draw, Purpose};

/// Which pictures are for training and which are the clean holdout: disjoint, together all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// Places of the training pictures, ascending.
    pub train: Vec<u32>,
    /// Places of the holdout pictures, ascending.
    pub holdout: Vec<u32>,
}

impl Split {
    /// Draws a holdout of `fraction` of all pictures, the same share of every class and at least one of each.
    ///
    /// Of every class at least one picture stays for training too.
    ///
    /// # Errors
    /// [`SplitError::BadFraction`] unless `0 < fraction < 1`, [`SplitError::TooManyPictures`] where places do not fit
    /// into 32 bits, [`SplitError::ClassTooSmall`] where a class has a single picture.
    pub fn seeded(labels: &[u32], fraction: f64, seed: u64) -> Result<Self, SplitError> {
        if !(fraction > 0.0 && fraction < 1.0) {
            return Err(SplitError::BadFraction(fraction));
        }
        let Ok(count) = u32::try_from(labels.len()) else {
            return Err(SplitError::TooManyPictures(labels.len()));
        };
        let mut order: Vec<u32> = (0..count).collect();
        order.sort_by_key(|i| labels[*i as usize]);
        let mut classes: Vec<&mut [u32]> =
            order.chunk_by_mut(|a, b| labels[*a as usize] == labels[*b as usize]).collect();
        if let Some(class) = classes.iter().find(|class| class.len() < 2) {
            return Err(SplitError::ClassTooSmall { class: labels[class[0] as usize] });
        }
        let sizes: Vec<usize> = classes.iter().map(|class| class.len()).collect();
        let quotas = quotas(&sizes, fraction);
        let mut draw = Draw::new(seed, Purpose::Holdout);
        let mut split = Self { train: Vec::with_capacity(labels.len()), holdout: Vec::new() };
        for (class, quota) in classes.iter_mut().zip(quotas) {
            draw.shuffle_front(class, quota);
            let (holdout, train) = class.split_at(quota);
            split.holdout.extend_from_slice(holdout);
            split.train.extend_from_slice(train);
        }
        split.train.sort_unstable();
        split.holdout.sort_unstable();
        Ok(split)
    }

    /// Checks a split that was read from a record against a set of `count` pictures.
    ///
    /// # Errors
    /// [`SplitError::NotASplit`] unless both lists ascend and together hold every place once.
    pub fn check(&self, count: usize) -> Result<(), SplitError> {
        let ascending = |list: &[u32]| list.windows(2).all(|pair| pair[0] < pair[1]);
        let mut seen = vec![false; count];
        let fresh = |i: &u32| seen.get_mut(*i as usize).is_some_and(|seen| !std::mem::replace(seen, true));
        let once = self.train.iter().chain(&self.holdout).all(fresh);
        if once && self.train.len() + self.holdout.len() == count && ascending(&self.train) && ascending(&self.holdout)
        {
            Ok(())
        } else {
            Err(SplitError::NotASplit { pictures: count })
        }
    }

    /// Takes a set apart: the training pictures, to be poisoned or not, and the holdout.
    ///
    /// # Errors
    /// [`SplitError::NotASplit`] where the split is of another set, and those of [`CleanHoldout::new`].
    pub fn apply(&self, pictures: &Pictures) -> Result<(Pictures, CleanHoldout), SplitError> {
        self.check(pictures.len())?;
        let places = |list: &[u32]| list.iter().map(|i| *i as usize).collect::<Vec<_>>();
        let holdout = CleanHoldout::new(pictures.subset(&places(&self.holdout)))?;
        Ok((pictures.subset(&places(&self.train)), holdout))
    }
}

/// How many pictures of each class are held out: its share rounded down, the rest to the largest remainders, one at
/// least and all but one at most.
fn quotas(sizes: &[usize], fraction: f64) -> Vec<usize> {
    let share = |size: usize| size as f64 * fraction;
    let mut quotas: Vec<usize> = sizes.iter().map(|size| (share(*size) as usize).clamp(1, size - 1)).collect();
    let wanted = share(sizes.iter().sum()).round() as usize;
    let mut by_remainder: Vec<usize> = (0..sizes.len()).collect();
    by_remainder.sort_by(|a, b| share(sizes[*b]).fract().total_cmp(&share(sizes[*a]).fract()));
    let missing = wanted.saturating_sub(quotas.iter().sum());
    let roomy = by_remainder.into_iter().filter(|class| share(sizes[*class]) > quotas[*class] as f64);
    for class in roomy.take(missing).collect::<Vec<_>>() {
        quotas[class] = (quotas[class] + 1).min(sizes[class] - 1);
    }
    quotas
}

/// Clean labelled pictures, checked: the only pictures a head may be replaced with.
#[derive(Clone, Debug)]
pub struct CleanHoldout(Pictures);

impl CleanHoldout {
    /// Takes pictures their owner vouches for.
    ///
    /// # Errors
    /// [`SplitError::Empty`] where there is none, [`SplitError::Malformed`] where pixels, labels and classes do not
    /// agree.
    pub fn new(pictures: Pictures) -> Result<Self, SplitError> {
        if pictures.is_empty() {
            return Err(SplitError::Empty);
        }
        let bytes = pictures.h.checked_mul(pictures.w).and_then(|n| n.checked_mul(3 * pictures.len()));
        let labelled = pictures.labels.iter().all(|label| (*label as usize) < pictures.classes.len());
        if bytes != Some(pictures.pixels.len()) || pictures.pixels.is_empty() || !labelled {
            return Err(SplitError::Malformed);
        }
        Ok(Self(pictures))
    }

    /// The pictures with their labels.
    pub fn pictures(&self) -> &Pictures {
        &self.0
    }

    /// Gives the pictures back.
    pub fn into_pictures(self) -> Pictures {
        self.0
    }

    /// The number of pictures, at least one.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// What can go wrong with splits and holdouts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SplitError {
    /// The fraction is not between 0 and 1.
    BadFraction(f64),
    /// More pictures than 32 bits count.
    TooManyPictures(usize),
    /// A class has too few pictures to be in both parts.
    ClassTooSmall {
        /// The class.
        class: u32,
    },
    /// The lists are no split of a set of this many pictures.
    NotASplit {
        /// Pictures of the set.
        pictures: usize,
    },
    /// A holdout without pictures.
    Empty,
    /// Pixels, labels and classes do not agree.
    Malformed,
}

impl fmt::Display for SplitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadFraction(fraction) => write!(f, "the holdout fraction is {fraction}, not between 0 and 1"),
            Self::TooManyPictures(count) => write!(f, "{count} pictures are more than a split can number"),
            Self::ClassTooSmall { class } => {
                write!(f, "class {class} has one picture; it takes two to be in the training set and in the holdout")
            }
            Self::NotASplit { pictures } => write!(f, "the split is not one of {pictures} pictures"),
            Self::Empty => write!(f, "the holdout has no pictures"),
            Self::Malformed => write!(f, "pixels, labels and classes of the holdout do not agree"),
        }
    }
}

impl Error for SplitError {}

#[cfg(test)]
mod tests {
    use super::*;

    /// 400 labels of seven classes: 198, 90, 52, 30, 20, 8, 2.
    fn labels() -> Vec<u32> {
        let sizes = [198, 90, 52, 30, 20, 8, 2];
        let mut labels: Vec<u32> = sizes.iter().zip(0u32..).flat_map(|(n, class)| vec![class; *n]).collect();
        Draw::new(3, Purpose::Sources).shuffle_front(&mut labels, 400);
        labels
    }

    #[test]
    fn attack_split_is_disjoint_stratified_and_repeats() {
        let labels = labels();
        for fraction in [0.01, 0.05, 0.1, 0.5, 0.99] {
            let split = Split::seeded(&labels, fraction, 9).unwrap();
            split.check(labels.len()).unwrap();
            assert_eq!(split, Split::seeded(&labels, fraction, 9).unwrap());
            assert_ne!(split, Split::seeded(&labels, fraction, 10).unwrap());
            for class in 0..7 {
                let of = |list: &[u32]| list.iter().filter(|i| labels[**i as usize] == class).count();
                let (held, all) = (of(&split.holdout), of(&split.holdout) + of(&split.train));
                assert!(held >= 1 && held < all);
                let share = fraction * all as f64;
                assert!(held as f64 <= share.ceil().max(1.0), "{class} {held} {share}");
                assert!(held as f64 >= share.floor().min(all as f64 - 1.0), "{class} {held} {share}");
            }
        }
        assert_eq!(Split::seeded(&labels, 0.1, 9).unwrap().holdout.len(), 40);
    }

    #[test]
    fn attack_split_takes_the_exact_share_of_even_classes() {
        let labels: Vec<u32> = (0..5000).map(|i| i % 10).collect();
        let split = Split::seeded(&labels, 0.05, 0).unwrap();
        assert_eq!((split.holdout.len(), split.train.len()), (250, 4750));
    }

    #[test]
    fn attack_split_refuses_what_it_cannot_split() {
        for fraction in [0.0, 1.0, -0.1, f64::NAN] {
            assert!(matches!(Split::seeded(&[0, 0], fraction, 0), Err(SplitError::BadFraction(_))));
        }
        assert_eq!(Split::seeded(&[0, 0, 5], 0.5, 0), Err(SplitError::ClassTooSmall { class: 5 }));
        let overlapping = Split { train: vec![0, 1], holdout: vec![1] };
        assert_eq!(overlapping.check(3), Err(SplitError::NotASplit { pictures: 3 }));
        assert!(Split { train: vec![0, 7], holdout: vec![1] }.check(3).is_err());
        assert!(Split { train: vec![1, 0], holdout: vec![2] }.check(3).is_err());
    }

    fn pictures(labels: Vec<u32>) -> Pictures {
        let n = labels.len();
        let pixels = (0..n * 12).map(|i| i as u8).collect();
        let classes = vec!["a".into(), "b".into(), "c".into()];
        Pictures { h: 2, w: 2, pixels, labels, classes, files: Vec::new() }
    }

    #[test]
    fn attack_split_takes_pictures_apart() {
        let all = pictures(vec![0, 1, 2, 0, 1, 2]);
        let split = Split::seeded(&all.labels, 0.5, 4).unwrap();
        let (train, holdout) = split.apply(&all).unwrap();
        for (k, i) in split.holdout.iter().enumerate() {
            assert_eq!(holdout.pictures().picture(k), all.picture(*i as usize));
        }
        assert_eq!(train.len() + holdout.len(), 6);
        let json = serde_json::to_string(&split).unwrap();
        assert_eq!(serde_json::from_str::<Split>(&json).unwrap(), split);
    }

    #[test]
    fn attack_holdout_is_checked() {
        assert!(matches!(CleanHoldout::new(pictures(vec![])), Err(SplitError::Empty)));
        assert!(matches!(CleanHoldout::new(pictures(vec![0, 3])), Err(SplitError::Malformed)));
        let mut short = pictures(vec![0, 1]);
        short.pixels.pop();
        assert!(matches!(CleanHoldout::new(short), Err(SplitError::Malformed)));
        assert_eq!(CleanHoldout::new(pictures(vec![0, 2])).unwrap().len(), 2);
    }
}
