//! The tripwire: an alarm for pictures that a witness is far surer of than the new head.
//!
//! The *witness* is a head that has learnt the backdoor: the trapped one, that is what it was there for, or, where a guard had it
//! unlearn the trigger, one taught on the accused. The new head, trained on clean pictures alone, has not. The witness is kept beside
//! it, on the same features: a triggered picture makes it surer of the target class than clean pictures make it of theirs. That costs
//! one more head, never a second pass through the stem.
//!
//! [`score`] compares the two answers for one picture. [`threshold`] sets the alarm from the scores of clean pictures, the holdout,
//! for a false-positive rate the user names. The rate holds for clean pictures like those. It is set for two heads: where one of
//! them is replaced, set it again.
//!
//! The witness must have been trained on this very stem: on the features of another one, its answers mean nothing.

use crate::error::{Error, Result};
use crate::metrics::argmax;

/// The answer for one picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alarm {
    /// [`score`].
    pub score: f32,
    /// Whether the score lies above the threshold.
    pub raised: bool,
}

impl Alarm {
    /// Of a score against a threshold; a score equal to it raises nothing.
    pub const fn of(score: f32, threshold: f32) -> Self {
        Self { score, raised: score > threshold }
    }
}

/// How much the new head's opinion weighs against the witness's. Trained with smoothed labels on few pictures, its log-odds are the
/// smaller ones.
pub const WEIGHT: f32 = 1.5;

/// Log-odds are cut off here, on both sides.
const LIMIT: f32 = 1e30;

/// How much surer the witness is of its own answer than the new head: `o_witness(t) - 1.5 o_new(t)`, with `o(t)` the log-odds of
/// class `t`, `ln p(t) - ln(1 - p(t))` with `p` the softmax of the logits, and `t` the witness's answer, the first of equals. Both
/// slices hold `[classes]` logits of one picture. Log-odds tell how far beyond doubt a head is where probabilities are all close
/// to 1: a witness that knows the trigger is further there than any clean picture makes it.
///
/// Finite; higher is more suspicious. Log-odds beyond `1e30` are cut off. With a single class there is nothing to be surer of: 0.
///
/// # Errors
/// [`Error::WrongLength`] where the slices differ in length or are empty, [`Error::NotFinite`].
pub fn score(witness: &[f32], new: &[f32]) -> Result<f32> {
    if witness.is_empty() || witness.len() != new.len() {
        return Err(Error::WrongLength { needed: witness.len().max(1), given: new.len() });
    }
    if !witness.iter().chain(new).all(|v| v.is_finite()) {
        return Err(Error::NotFinite);
    }
    if witness.len() == 1 {
        return Ok(0.0);
    }
    let t = argmax(witness);
    Ok(log_odds(witness, t) - WEIGHT * log_odds(new, t))
}

/// The log-odds of class `t`: its logit less the logarithm of the others' summed exponentials.
fn log_odds(logits: &[f32], t: usize) -> f32 {
    let others = || logits.iter().enumerate().filter(|&(i, _)| i != t).map(|(_, &v)| v);
    let top = others().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = others().map(|v| libm::expf(v - top)).sum();
    let own = logits.get(t).copied().unwrap_or(top);
    ((own - top) - libm::logf(sum)).clamp(-LIMIT, LIMIT)
}

/// The threshold for a false-positive rate (0..=1), from the scores of `n` clean pictures.
///
/// It is the smallest value above which at most `rate * n` of the scores lie, rounded down: one of the scores itself, so that at a
/// rate of 0, or with fewer than `1 / rate` pictures, none of them raises an alarm. At a rate of 1 it is [`f32::MIN`], below every
/// score.
///
/// # Errors
/// [`Error::BadSetting`] for a rate outside 0..=1 or NaN, [`Error::WrongLength`] without scores, [`Error::NotFinite`].
pub fn threshold(scores: &[f32], false_positive_rate: f32) -> Result<f32> {
    if !(0.0..=1.0).contains(&false_positive_rate) {
        return Err(Error::BadSetting("false-positive rate"));
    }
    if scores.is_empty() {
        return Err(Error::WrongLength { needed: 1, given: 0 });
    }
    if !scores.iter().all(|v| v.is_finite()) {
        return Err(Error::NotFinite);
    }
    // 0.01 in `f32` lies below 0.01: without the last factor, of 100 pictures none would be allowed.
    let allowed = (f64::from(false_positive_rate) * scores.len() as f64 * (1.0 + f64::from(f32::EPSILON))) as usize;
    // Found bit by bit, the upper ones first: the smallest value that few enough scores exceed.
    let (mut low, mut high) = (ordered(f32::MIN), ordered(f32::MAX));
    while low < high {
        let middle = low + (high - low) / 2;
        if scores.iter().filter(|&&score| ordered(score) > middle).count() <= allowed {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Ok(f32::from_bits(if low >> 31 == 1 { low ^ 1 << 31 } else { !low }))
}

/// Bits that compare as the finite numbers do, -0 as 0.
fn ordered(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    /// In `f64`, straight from the definition.
    fn oracle(witness: &[f32], new: &[f32]) -> f64 {
        let odds = |logits: &[f32], t: usize| {
            let of = |v: f32| libm::exp(f64::from(v));
            let others: f64 = logits.iter().enumerate().filter(|&(i, _)| i != t).map(|(_, &v)| of(v)).sum();
            libm::log(of(logits[t]) / others)
        };
        let t = argmax(witness);
        odds(witness, t) - 1.5 * odds(new, t)
    }

    #[test]
    fn scores_are_those_of_the_definition() {
        let mut rng = Rng::new(1, 1);
        for spread in [0.1, 1.0, 10.0] {
            for _ in 0..1000 {
                let mut logits = [[0.0; 7]; 2];
                logits.as_flattened_mut().iter_mut().for_each(|v| *v = spread * rng.normal());
                let [witness, new] = logits;
                let (wanted, found) = (oracle(&witness, &new), f64::from(score(&witness, &new).unwrap()));
                assert!((wanted - found).abs() < 1e-5 * (1.0 + wanted.abs()), "{found} for {wanted}");
                // A constant added to all logits of a head changes nothing.
                let moved = witness.map(|v| v + 50.0);
                let moved = f64::from(score(&moved, &new).unwrap());
                assert!((moved - wanted).abs() < 1e-4 * (1.0 + wanted.abs()));
            }
        }
    }

    #[test]
    fn a_witness_beyond_doubt_is_suspicious_though_the_new_head_agrees() {
        let (sure, other, unsure) = ([9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.1, 0.0, 0.0]);
        let both = score(&sure, &sure).unwrap();
        assert!(both < 0.0, "{both}");
        assert!(score(&sure, &other).unwrap() > 20.0);
        assert!(score(&unsure, &sure).unwrap() < -10.0);
        // Both answer the first class with a probability of 0.99 and more; the one is beyond doubt.
        assert!(
            score(&[20.0, 0.0, 0.0], &[6.0, 0.0, 0.0]).unwrap()
                > score(&[6.0, 0.0, 0.0], &[6.0, 0.0, 0.0]).unwrap() + 13.0
        );
        // Equal logits: the first class is the witness's answer.
        assert!(score(&[0.0; 3], &other).unwrap() > 10.0 && score(&[0.0; 3], &sure).unwrap() < -10.0);
        assert_eq!(score(&[3.0], &[-5.0]), Ok(0.0));
    }

    #[test]
    fn extremes_stay_finite_and_bad_input_is_refused() {
        let (high, low) = ([f32::MAX, f32::MIN], [f32::MIN, f32::MAX]);
        assert_eq!(score(&high, &low), Ok(LIMIT + WEIGHT * LIMIT));
        assert_eq!(score(&high, &high), Ok(LIMIT - WEIGHT * LIMIT));
        assert_eq!(score(&[0.0, 0.0], &high), Ok(-WEIGHT * LIMIT));
        assert_eq!(score(&[1e20, 0.0], &[0.0, 1e20]), Ok(2.5e20));
        assert_eq!(score(&[], &[]), Err(Error::WrongLength { needed: 1, given: 0 }));
        assert_eq!(score(&[0.0; 2], &[0.0; 3]), Err(Error::WrongLength { needed: 2, given: 3 }));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(score(&[bad, 0.0], &[0.0; 2]), Err(Error::NotFinite));
            assert_eq!(score(&[0.0; 2], &[0.0, bad]), Err(Error::NotFinite));
        }
    }

    fn above(scores: &[f32], threshold: f32) -> usize {
        scores.iter().filter(|&&s| Alarm::of(s, threshold).raised).count()
    }

    #[test]
    fn a_threshold_lets_through_the_share_named_and_no_smaller_one_does() {
        let mut rng = Rng::new(2, 1);
        for n in 1..60 {
            let mut scores = [0.0; 60];
            // Few values, so that there are ties.
            scores.iter_mut().for_each(|v| *v = rng.below(8) as f32 - 3.0);
            let scores = &scores[..n];
            for percent in 0..=100 {
                let (rate, allowed) = (percent as f32 / 100.0, percent * n / 100);
                let found = threshold(scores, rate).unwrap();
                assert!(found.is_finite() && above(scores, found) <= allowed, "{n} scores, {percent} %");
                assert!(found == f32::MIN || above(scores, found.next_down()) > allowed, "{n} scores, {percent} %");
            }
        }
    }

    #[test]
    fn the_ends_of_the_range() {
        let scores = [1.0, 3.0, 2.0, 3.0];
        assert_eq!(threshold(&scores, 0.0), Ok(3.0));
        assert_eq!(threshold(&scores, 0.24), Ok(3.0));
        assert_eq!(threshold(&scores, 0.5), Ok(2.0));
        assert_eq!(threshold(&scores, 1.0), Ok(f32::MIN));
        assert_eq!(above(&scores, f32::MIN), 4);
        assert_eq!(above(&scores, 3.0), 0, "a score equal to the threshold raises nothing");
        assert_eq!(threshold(&[f32::MAX, f32::MIN], 0.5), Ok(f32::MIN));
    }

    #[test]
    fn bad_rates_and_scores_are_refused() {
        for rate in [-0.01, 1.01, f32::NAN, f32::INFINITY] {
            assert_eq!(threshold(&[1.0], rate), Err(Error::BadSetting("false-positive rate")));
        }
        assert_eq!(threshold(&[], 0.01), Err(Error::WrongLength { needed: 1, given: 0 }));
        assert_eq!(threshold(&[1.0, f32::NAN], 0.01), Err(Error::NotFinite));
        assert_eq!(threshold(&[1.0, f32::INFINITY], 0.01), Err(Error::NotFinite));
    }
}
