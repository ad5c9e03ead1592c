//! From signals to a verdict: which class is the target, if any, and which of its pictures are poisoned.
//!
//! A class names itself by a *contradiction*. On clean data, what is fitted well is easy, and both heads agree on it: within a
//! class, disagreement falls as fit rises. Poison is fitted best of all while a head that never saw the trigger calls it
//! something else: disagreement rises with fit. The rank correlation of the two, class by class, is below zero without poison
//! and above it with, and its significance follows from the number of pictures alone (Fisher's transform).
//!
//! In a class so named, Otsu's threshold on the sum of the two splits the pictures, and two Gaussians over all signals, started
//! there, refine the split.

use super::Signals;
use super::mixture::{D, Point, otsu, split};
use serde::{Deserialize, Serialize};

/// Least rank correlation of a target class: chance and unusual classes stay below.
pub const LEAST_CORRELATION: f64 = 0.15;
/// Largest probability, over all classes together, of naming one by chance.
pub const SIGNIFICANCE: f64 = 1e-3;
/// A class with fewer pictures is not judged.
pub const LEAST_PICTURES: usize = 30;

/// What was found about one class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassVerdict {
    /// The class.
    pub class: u32,
    /// Pictures labelled as it.
    pub pictures: usize,
    /// Rank correlation of disagreement with the best of the measures of fit, -1..=1.
    pub contradiction: f64,
    /// Probability of such a correlation without any, times the number of classes and measures (Bonferroni), at most 1.
    pub p_value: f64,
    /// Whether it is a target class.
    pub suspected: bool,
    /// Pictures accused.
    pub accused: usize,
}

/// The verdict on a set of suspects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// Class by class.
    pub classes: Vec<ClassVerdict>,
    /// Probability of being poisoned, by picture, 0..=1; 0 outside suspected classes.
    pub score: Vec<f32>,
    /// Whether a picture is accused.
    pub accused: Vec<bool>,
}

/// Ranks, ties sharing their mean.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut at = 0;
    while at < order.len() {
        let equal = order[at..].iter().take_while(|&&i| values[i] == values[order[at]]).count();
        for &i in &order[at..at + equal] {
            ranks[i] = at as f64 + (equal - 1) as f64 / 2.0;
        }
        at += equal;
    }
    ranks
}

/// Spearman's rank correlation; 0 where one side does not vary.
fn rank_correlation(a: &[f64], b: &[f64]) -> f64 {
    let (a, b) = (ranks(a), ranks(b));
    let mean = (a.len() as f64 - 1.0) / 2.0;
    let sum = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum::<f64>();
    let scale = (sum(&a, &a) * sum(&b, &b)).sqrt();
    if scale > 0.0 { sum(&a, &b) / scale } else { 0.0 }
}

/// The upper tail of the normal distribution (Abramowitz and Stegun 7.1.26 for small `z`, the leading term beyond).
fn upper_tail(z: f64) -> f64 {
    if z < 0.0 {
        return 1.0 - upper_tail(-z);
    }
    if z > 5.0 {
        return (-z * z / 2.0).exp() / (z * (2.0 * std::f64::consts::PI).sqrt());
    }
    let x = z / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let poly = t * (0.254_829_592
        + t * (-0.284_496_736 + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    0.5 * poly * (-x * x).exp()
}

/// The probability of a rank correlation of at least `r` over `n` pairs that have none (Fisher's transform; Fieller, Hartley and
/// Pearson 1957 for ranks).
fn chance(r: f64, n: usize) -> f64 {
    upper_tail(r.clamp(-0.999_999, 0.999_999).atanh() * ((n as f64 - 3.0) / 1.06).sqrt())
}

fn logit(p: f64) -> f64 {
    let p = p.clamp(0.004, 0.996);
    (p / (1.0 - p)).ln()
}

/// Subtracts the median and divides by the spread (standard deviation).
fn standardise(values: &mut [f64]) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let spread = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt().max(1e-9);
    values.iter_mut().for_each(|v| *v = (*v - median) / spread);
}

/// The verdict on pictures with these labels.
pub fn judge(signals: &Signals, labels: &[u32], classes: usize) -> Verdict {
    let mut verdict = Verdict { classes: Vec::new(), score: vec![0.0; labels.len()], accused: vec![false; labels.len()] };
    for class in 0..classes as u32 {
        let members: Vec<usize> = (0..labels.len()).filter(|&i| labels[i] == class).collect();
        let mut found = ClassVerdict {
            class,
            pictures: members.len(),
            contradiction: 0.0,
            p_value: 1.0,
            suspected: false,
            accused: 0,
        };
        if members.len() >= LEAST_PICTURES {
            let of = |values: &[f32]| -> Vec<f64> { members.iter().map(|&i| f64::from(values[i])).collect() };
            let disagreement = of(&signals.disagreement);
            let fits = [of(&signals.early), of(&signals.late), of(&signals.confidence)];
            let correlations = fits.each_ref().map(|f| rank_correlation(&disagreement, f));
            let best = (0..fits.len()).fold(0, |b, i| if correlations[i] > correlations[b] { i } else { b });
            found.contradiction = correlations[best];
            let tests = (classes * fits.len()) as f64;
            found.p_value = (chance(found.contradiction, members.len()) * tests).min(1.0);
            found.suspected = found.contradiction >= LEAST_CORRELATION && found.p_value <= SIGNIFICANCE;
            if found.suspected {
                let [early, late, confidence] = fits;
                let odds = |v: Vec<f64>| v.into_iter().map(logit).collect::<Vec<_>>();
                accuse(&members, [disagreement, odds(early), odds(late), confidence], 1 + best, &mut verdict);
                found.accused = members.iter().filter(|&&i| verdict.accused[i]).count();
            }
        }
        verdict.classes.push(found);
    }
    verdict
}

/// Least overlap (intersection over union) of the refined split with the one it started from; below it the Gaussians have found
/// something else, and the start stands.
const LEAST_OVERLAP: f64 = 0.5;

/// Splits a suspected class and accuses what is both fitted well, by signal number `fit`, and contradicted, by signal 0.
fn accuse(members: &[usize], mut signals: [Vec<f64>; D], fit: usize, verdict: &mut Verdict) {
    signals.iter_mut().for_each(|s| standardise(s));
    let sum: Vec<f64> = signals[0].iter().zip(&signals[fit]).map(|(a, b)| a + b).collect();
    let (threshold, _) = otsu(&sum);
    let start: Vec<bool> = sum.iter().map(|&v| v > threshold).collect();
    let points: Vec<Point> = (0..members.len()).map(|i| std::array::from_fn(|d| signals[d][i])).collect();
    let refined = split(&points, &start).filter(|likely| {
        let count = |f: fn(bool, bool) -> bool| start.iter().zip(likely).filter(|&(&s, &p)| f(s, p > 0.5)).count();
        count(|s, p| s && p) as f64 >= LEAST_OVERLAP * count(|s, p| s || p) as f64
    });
    let likely = refined.unwrap_or_else(|| start.iter().map(|&s| f64::from(u8::from(s))).collect());
    for (&i, &p) in members.iter().zip(&likely) {
        verdict.score[i] = p as f32;
        verdict.accused[i] = p > 0.5;
    }
}
