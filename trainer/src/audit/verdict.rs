//! From signals to a verdict: which class is the target, if any, and which of its pictures are poisoned.
//!
//! A class names itself by *discord*. On clean data, what is easy is easy for both heads: within a class, the trapped head's
//! confidence in the given label and the new head's probability of it rank the pictures nearly alike. Poison is what the trapped
//! head is surest of and the new head, which never saw the trigger, doubts: in a target class the agreement breaks. The rank
//! correlation of the two, class by class (in Fisher's transform), is held against that of the other classes (median and median
//! absolute deviation): without poison no class stands out.
//!
//! In a class so named, Otsu's threshold on the sum of disagreement and the measure of fit that contradicts it most splits the
//! pictures, and two Gaussians over all signals, started there, refine the split.

use super::Signals;
use super::mixture::{D, Point, otsu, split};
use serde::{Deserialize, Serialize};

/// How far below the others a target class's agreement lies at least, in Fisher's transform.
pub const LEAST_DISCORD: f64 = 0.5;
/// Largest probability, over all classes together, of naming one by chance.
pub const SIGNIFICANCE: f64 = 1e-3;
/// Least spread of the agreement between clean classes, in Fisher's transform.
const LEAST_SPREAD: f64 = 0.08;
/// A class with fewer pictures is not judged.
pub const LEAST_PICTURES: usize = 30;

/// What was found about one class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassVerdict {
    /// The class.
    pub class: u32,
    /// Pictures labelled as it.
    pub pictures: usize,
    /// Rank correlation of the two heads' views of the given label, -1..=1.
    pub agreement: f64,
    /// How far it lies below the other classes, in robust standard deviations.
    pub discord: f64,
    /// Probability that a clean class lies so far below, times the number of classes (Bonferroni), at most 1.
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
    let poly =
        t * (0.254_829_592 + t * (-0.284_496_736 + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    0.5 * poly * (-x * x).exp()
}

/// The middle value; 0 of none.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// Sets each class against the others: fills in discord and p-value, and names the targets.
fn compare(classes: &mut [ClassVerdict]) {
    let judged = |c: &ClassVerdict| c.pictures >= LEAST_PICTURES;
    let transformed: Vec<f64> = classes.iter().map(|c| c.agreement.clamp(-0.999, 0.999).atanh()).collect();
    let count = classes.iter().filter(|c| judged(c)).count() as f64;
    for i in (0..classes.len()).filter(|&i| judged(&classes[i])).collect::<Vec<_>>() {
        let others: Vec<f64> =
            (0..classes.len()).filter(|&j| j != i && judged(&classes[j])).map(|j| transformed[j]).collect();
        if others.is_empty() {
            continue;
        }
        let middle = median(&others);
        let deviations: Vec<f64> = others.iter().map(|v| (v - middle).abs()).collect();
        let sampling = 1.06 / (classes[i].pictures as f64 - 3.0).sqrt();
        let spread = (1.4826 * median(&deviations)).max(LEAST_SPREAD).hypot(sampling);
        let below = middle - transformed[i];
        let c = &mut classes[i];
        c.discord = below / spread;
        c.p_value = (upper_tail(c.discord) * count).min(1.0);
        c.suspected = below >= LEAST_DISCORD && c.p_value <= SIGNIFICANCE;
    }
}

fn logit(p: f64) -> f64 {
    let p = p.clamp(0.004, 0.996);
    (p / (1.0 - p)).ln()
}

/// Subtracts the median and divides by the spread (standard deviation).
fn standardise(values: &mut [f64]) {
    let middle = median(values);
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let spread = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt().max(1e-9);
    values.iter_mut().for_each(|v| *v = (*v - middle) / spread);
}

/// The verdict on pictures with these labels.
pub fn judge(signals: &Signals, labels: &[u32], classes: usize) -> Verdict {
    let mut members = vec![Vec::new(); classes];
    labels.iter().enumerate().for_each(|(i, &l)| members[l as usize].push(i));
    let of =
        |values: &[f32], members: &[usize]| -> Vec<f64> { members.iter().map(|&i| f64::from(values[i])).collect() };
    let mut found: Vec<ClassVerdict> = members
        .iter()
        .zip(0..)
        .map(|(members, class)| ClassVerdict {
            class,
            pictures: members.len(),
            agreement: rank_correlation(&of(&signals.confidence, members), &of(&signals.new_probability, members)),
            discord: 0.0,
            p_value: 1.0,
            suspected: false,
            accused: 0,
        })
        .collect();
    compare(&mut found);
    let mut verdict = Verdict { classes: found, score: vec![0.0; labels.len()], accused: vec![false; labels.len()] };
    for (class, members) in
        members.iter().enumerate().filter(|&(c, _)| verdict.classes[c].suspected).collect::<Vec<_>>()
    {
        let disagreement = of(&signals.disagreement, members);
        let fits = [&signals.early, &signals.late, &signals.confidence].map(|s| of(s, members));
        let correlations = fits.each_ref().map(|f| rank_correlation(&disagreement, f));
        let best = (0..fits.len()).fold(0, |b, i| if correlations[i] > correlations[b] { i } else { b });
        let [early, late, confidence] = fits;
        let odds = |v: Vec<f64>| v.into_iter().map(logit).collect::<Vec<_>>();
        accuse(members, [disagreement, odds(early), odds(late), confidence], 1 + best, &mut verdict);
        verdict.classes[class].accused = members.iter().filter(|&&i| verdict.accused[i]).count();
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

#[cfg(test)]
mod tests {
    use super::*;
    use stemguard_runtime::rng::Rng;

    /// Pictures of ten classes whose heads agree as those of a clean run do; of the first `poisoned` of class 3 the trapped head is
    /// sure and the new one is not.
    fn suspects(n: usize, poisoned: usize, seed: u64) -> (Signals, Vec<u32>) {
        let mut rng = Rng::new(seed, 0);
        let mut s = Signals::default();
        let labels: Vec<u32> = (0..n).map(|i| if i < poisoned { 3 } else { (i % 10) as u32 }).collect();
        let share = |z: f32| 1.0 / (1.0 + (-z).exp());
        for i in 0..n {
            let ease = 1.5 * rng.normal() + 1.0;
            let (sure, known, soon) = if i < poisoned { (6.0, -2.5, 2.0) } else { (ease + 1.0, ease, ease - 2.0) };
            let confidence = sure + 0.6 * rng.normal();
            let new = share(known + 0.8 * rng.normal());
            s.confidence.push(confidence);
            s.new_probability.push(new);
            s.disagreement.push(share(confidence) - new);
            s.early.push(share(soon + 0.5 * rng.normal()));
            s.late.push(share(soon + 2.0 + 0.5 * rng.normal()));
            s.survival.push(0.5);
            s.new_label.push(labels[i]);
        }
        (s, labels)
    }

    #[test]
    fn clean_suspects_are_not_accused() {
        for seed in 0..20 {
            let (s, labels) = suspects(3000, 0, seed);
            let v = judge(&s, &labels, 10);
            assert!(v.classes.iter().all(|c| !c.suspected), "{:?}", v.classes);
            assert!(v.accused.iter().all(|&a| !a));
        }
    }

    #[test]
    fn poison_names_its_class_and_itself() {
        for (poisoned, seed) in [(300, 1), (120, 2), (60, 3)] {
            let (s, labels) = suspects(3000, poisoned, seed);
            let v = judge(&s, &labels, 10);
            let named: Vec<u32> = v.classes.iter().filter(|c| c.suspected).map(|c| c.class).collect();
            assert_eq!(named, [3], "{:?}", v.classes);
            let caught = v.accused[..poisoned].iter().filter(|&&a| a).count();
            let wrong = v.accused[poisoned..].iter().filter(|&&a| a).count();
            assert!(caught * 100 >= poisoned * 95 && wrong <= 30, "{caught} of {poisoned}, {wrong} wrong");
        }
    }

    #[test]
    fn small_single_and_empty_classes_are_left_alone() {
        let (s, labels) = suspects(200, 0, 4);
        assert!(judge(&s, &labels, 12).classes.iter().all(|c| !c.suspected));
        let one = vec![0; 200];
        assert!(judge(&s, &one, 1).classes.iter().all(|c| !c.suspected));
        assert!(judge(&Signals::default(), &[], 3).accused.is_empty());
    }

    #[test]
    fn ranks_and_tails_are_the_known_ones() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [2.5, 0.0, 2.5, 1.0]);
        assert!((rank_correlation(&[1.0, 2.0, 3.0], &[10.0, 30.0, 20.0]) - 0.5).abs() < 1e-12);
        assert_eq!(rank_correlation(&[1.0, 1.0], &[1.0, 2.0]), 0.0);
        // Standard normal table.
        for (z, p) in [(0.0, 0.5), (1.0, 0.158_655), (1.96, 0.024_998), (3.0, 0.001_349_9), (6.0, 9.866e-10)] {
            assert!((upper_tail(z) - p).abs() <= 0.03 * p, "{z}: {}", upper_tail(z));
        }
        assert!((upper_tail(-1.0) - 0.841_345).abs() < 1e-5);
    }
}
