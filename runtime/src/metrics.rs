//! Counts of right and wrong answers, divided once.
//!
//! - ACC: clean test pictures given their true class.
//! - ASR, attack success rate: triggered pictures, not of the target class, given the target class.
//! - RA, robust accuracy: the same pictures given their true class.
//! - chance: the same pictures without trigger given the target class; what ASR falls to when nothing is left of the backdoor.
//! - DER, defence effectiveness rating: `(max(0, dASR) - max(0, dACC) + 1) / 2`, drops from the undefended model (Zhu et al.,
//!   arXiv 2305.06599).

/// Right answers out of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Hits.
    pub hits: u64,
    /// Cases.
    pub cases: u64,
}

impl Rate {
    /// Counts one case.
    pub fn count(&mut self, hit: bool) {
        self.hits += u64::from(hit);
        self.cases += 1;
    }

    /// Hits over cases, 0..=1; 0 without cases.
    pub fn fraction(&self) -> f64 {
        if self.cases == 0 { 0.0 } else { self.hits as f64 / self.cases as f64 }
    }
}

/// The index of the largest value, the first of equals; NaN never wins; 0 for an empty slice, and where all are NaN.
pub fn argmax(values: &[f32]) -> usize {
    let mut best = (0, f32::NAN);
    for (i, &v) in values.iter().enumerate() {
        if v > best.1 || (best.1.is_nan() && !v.is_nan()) {
            best = (i, v);
        }
    }
    best.0
}

/// Turns logits into probabilities, in place.
pub fn softmax(logits: &mut [f32]) {
    let top = logits.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
    let mut sum = 0.0;
    for v in logits.iter_mut() {
        *v = libm::expf(*v - top);
        sum += *v;
    }
    for v in logits.iter_mut() {
        *v /= sum;
    }
}

/// Defence effectiveness rating, 0..=1, from ACC and ASR before and after.
pub fn der(acc_before: f64, asr_before: f64, acc_after: f64, asr_after: f64) -> f64 {
    ((asr_before - asr_after).max(0.0) - (acc_before - acc_after).max(0.0) + 1.0) / 2.0
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;

    #[test]
    fn der_rewards_a_lower_asr_and_charges_a_lower_acc() {
        assert_eq!(der(0.9, 1.0, 0.9, 0.0), 1.0);
        assert_eq!(der(0.9, 1.0, 0.9, 1.0), 0.5);
        assert!((der(0.9, 1.0, 0.8, 0.0) - 0.95).abs() < 1e-12);
        assert_eq!(der(0.5, 0.2, 0.9, 0.4), 0.5);
    }

    #[test]
    fn argmax_takes_the_first_and_never_nan() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), 1);
        assert_eq!(argmax(&[f32::NAN, -1.0, f32::NAN]), 1);
        assert_eq!(argmax(&[]), 0);
    }

    #[test]
    fn softmax_sums_to_one_even_for_large_logits() {
        let mut v = [1000.0, 1001.0, 0.0];
        softmax(&mut v);
        assert!((v.iter().sum::<f32>() - 1.0).abs() < 1e-6 && v[1] > v[0] && v[2] == 0.0);
    }
}
