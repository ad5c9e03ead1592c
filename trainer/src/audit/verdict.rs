//! From signals to a verdict: which class is the target, if any, and which of its pictures are poisoned.
//!
//! A class names itself in two ways, each held against the other classes (median and median absolute deviation), so that without
//! poison none stands out, and a third bears witness beside them:
//!
//! - *discord*: on clean data, what is easy is easy for both heads; within a class the trapped head's confidence in the given label
//!   and the new head's probability of it rank the pictures nearly alike. Poison is what the trapped head is surest of and the new
//!   head, which never saw the trigger, doubts: in a target class the agreement breaks;
//! - *split*: within a clean class, how early, how well and how steadily pictures are fitted is spread around one middle. Poison is
//!   fitted in its own way: the class falls into two groups, and more of the variance lies between them (Otsu's measure).
//!   This holds even where the new head agrees with the poison because the backdoor sits in the stem;
//! - *excess*: pictures given a target's label swell its class, against its share of the clean holdout. Suspects and holdout may
//!   have been drawn differently, so that excess alone names nobody: it speaks where one of the others hints at the same class.
//!
//! In a class that the first two name, Otsu's threshold on the signals that named it, weighted by how much they stand out, splits
//! the pictures; where it took the excess, as many of them as the class has too many are set apart, those least like the pictures
//! of the classes not named. Two Gaussians over all signals, started there, refine the split. Poison is the group that is less
//! like the pictures of the classes not named: as a rule it is fitted harder than they are, but where an attack is too weak to be
//! learnt, its pictures are nothing but mislabelled, fitted worse than any, and it is the clean ones of their class that stand
//! above them. Where the accused were fitted worse than the pictures of the classes not named, how they were fitted tells little: what
//! the two heads make of the given label splits them.

use super::Signals;
use super::mixture::{Cluster, Point, otsu, split};
use serde::{Deserialize, Serialize};

/// How far below the others a target class's agreement lies at least, in Fisher's transform.
pub const LEAST_DISCORD: f64 = 0.5;
/// Largest probability, over all classes together, of naming one by chance, where clean classes lie no farther apart than the least
/// spread that they are taken to have. A robust deviation of few others is itself uncertain, so that it is more where they lie farther
/// apart: of classes spread normally with 1.67 times that, one in 40 draws of ten names somebody, one in 100 of four.
pub const SIGNIFICANCE: f64 = 1e-3;
/// How much more of a target class's variance lies between two groups at least, as a share.
pub const LEAST_SPLIT: f64 = 0.05;
/// Least spread between clean classes of the agreement, in Fisher's transform, of the split, and of the logarithm of the excess.
const LEAST_SPREAD: [f64; 3] = [0.08, 0.012, 0.02];
/// Largest probability of standing out so far by chance that counts as a hint at a class, beside its excess.
pub const HINT: f64 = 0.05;
/// Signals weigh in where they stand out by this many robust standard deviations.
const LEAST_WEIGHT: f64 = 4.0;
/// A class with fewer pictures is not judged.
pub const LEAST_PICTURES: usize = 30;
/// Nor is one beside fewer others: they do not tell how far clean classes lie apart.
pub const LEAST_OTHERS: usize = 3;
/// The median deviation of so many others is taken as it is; that of fewer says less, and counts for more.
const ENOUGH_OTHERS: usize = 9;

/// What was found about one class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassVerdict {
    /// The class.
    pub class: u32,
    /// Pictures labelled as it.
    pub pictures: usize,
    /// Rank correlation of the two heads' views of the given label, -1..=1.
    pub agreement: f64,
    /// How far it lies below that of the other classes, in robust standard deviations.
    pub discord: f64,
    /// How far the share of variance between two groups lies above that of the other classes, in robust standard deviations, for
    /// confidence, early, late and swing.
    pub split: [f64; 4],
    /// How far its share of the suspects, over that of the holdout, lies above that of the other classes, in robust standard
    /// deviations; 0 without a holdout.
    #[serde(default)]
    pub excess: f64,
    /// Probability that a clean class stands out so far, times the number of classes and tests (Bonferroni), at most 1.
    pub p_value: f64,
    /// Whether it is a target class.
    pub suspected: bool,
    /// Pictures accused.
    pub accused: usize,
}

/// How many classes have pictures enough to be judged; none where these are too few to be held against each other.
pub fn judged(classes: &[ClassVerdict]) -> usize {
    let enough = classes.iter().filter(|c| c.pictures >= LEAST_PICTURES).count();
    if enough > LEAST_OTHERS { enough } else { 0 }
}

/// A picture that is not accused but likelier poisoned than this is neither trusted nor unlearned: it is left out.
pub const DOUBT: f32 = 0.05;

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

impl Verdict {
    /// Whether picture `i` is neither accused nor doubtful. It is for `i` below the number of pictures only.
    pub fn trusts(&self, i: usize) -> bool {
        !self.accused[i] && self.score[i] <= DOUBT
    }
}

/// Ranks, ties sharing their mean.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut at = 0;
    while at < order.len() {
        let equal = order[at..].iter().take_while(|&&i| values[i] == values[order[at]]).count().max(1);
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

/// By how much each value stands out above the others', and how far in robust standard deviations; `sampling` is each value's own
/// uncertainty. Values that are `None` do not take part; beside fewer than [`LEAST_OTHERS`] nothing stands out.
fn stand_out(values: &[Option<f64>], least_spread: f64, sampling: impl Fn(usize) -> f64) -> Vec<(f64, f64)> {
    let one = |i: usize| {
        let others: Vec<f64> = (0..values.len()).filter(|&j| j != i).filter_map(|j| values[j]).collect();
        let value = values[i].filter(|_| others.len() >= LEAST_OTHERS)?;
        let middle = median(&others);
        let deviations: Vec<f64> = others.iter().map(|v| (v - middle).abs()).collect();
        let doubt = |others: usize| 1.0 + 4.0 / others as f64;
        let few = doubt(others.len().min(ENOUGH_OTHERS)) / doubt(ENOUGH_OTHERS);
        let spread = (few * (1.4826 * median(&deviations)).max(least_spread)).hypot(sampling(i));
        Some((value - middle, (value - middle) / spread))
    };
    (0..values.len()).map(|i| one(i).unwrap_or((0.0, 0.0))).collect()
}

/// The members' values.
fn of(values: &[f32], members: &[usize]) -> Vec<f64> {
    members.iter().map(|&i| f64::from(values[i])).collect()
}

/// How each class's share of the suspects exceeds its share of the clean holdout, as a logarithm, against the other classes: by how
/// much, and in robust standard deviations. Nothing stands out without a holdout.
fn excess(members: &[Vec<usize>], clean: &[u32]) -> Vec<(f64, f64)> {
    let mut counts = vec![0usize; members.len()];
    clean.iter().for_each(|&l| counts[l as usize] += 1);
    let both = |c: usize| (members[c].len() as f64 + 0.5, counts[c] as f64 + 0.5);
    let judged = |c: usize| !clean.is_empty() && members[c].len() >= LEAST_PICTURES;
    let ratio: Vec<Option<f64>> =
        (0..members.len()).map(|c| Some(both(c)).filter(|_| judged(c)).map(|(s, h)| (s / h).ln())).collect();
    // The uncertainty of the logarithm of a ratio of two counts.
    stand_out(&ratio, LEAST_SPREAD[2], |c| (1.0 / both(c).0 + 1.0 / both(c).1).sqrt())
}

/// The probability that two independent tests give a product of theirs so small by chance (Fisher 1925), twice because one of the
/// two could have been enough.
fn together(a: f64, b: f64) -> f64 {
    let product = (a * b).max(f64::MIN_POSITIVE);
    2.0 * product * (1.0 - product.ln())
}

/// The probability that one of so many clean classes stands out so far in discord or a split, at most 1; what does not lie far enough
/// from the other classes to matter counts for nothing.
fn chance<const N: usize>(discord: (f64, f64), splits: [(f64, f64); N], classes: f64) -> f64 {
    let each = std::iter::once((discord, LEAST_DISCORD)).chain(splits.map(|s| (s, LEAST_SPLIT)));
    let best = each.filter(|((by, _), least)| by >= least).map(|((_, z), _)| z).fold(0.0, f64::max);
    if best > 0.0 { (upper_tail(best) * classes * (1 + N) as f64).min(1.0) } else { 1.0 }
}

/// Every class against the others, and what named it.
fn compare(signals: &Signals, members: &[Vec<usize>], clean: &[u32]) -> (Vec<ClassVerdict>, Vec<Option<Named>>) {
    let size = |c: usize| members[c].len() as f64;
    let judged = |members: &Vec<usize>| members.len() >= LEAST_PICTURES;
    let agreement: Vec<f64> = members
        .iter()
        .map(|m| rank_correlation(&of(&signals.confidence, m), &of(&signals.new_probability, m)))
        .collect();
    let below: Vec<Option<f64>> =
        members.iter().zip(&agreement).map(|(m, a)| judged(m).then(|| -a.clamp(-0.999, 0.999).atanh())).collect();
    // The uncertainty of a rank correlation (Fieller, Hartley and Pearson 1957), and, by simulation, of Otsu's share.
    let discord = stand_out(&below, LEAST_SPREAD[0], |c| 1.06 / (size(c) - 3.0).max(1.0).sqrt());
    let fits = [&signals.confidence, &signals.early, &signals.late, &signals.swing];
    let splits = fits.map(|s| {
        let share: Vec<Option<f64>> = members.iter().map(|m| judged(m).then(|| otsu(&of(s, m)).1)).collect();
        stand_out(&share, LEAST_SPREAD[1], |c| 0.25 / size(c).max(1.0).sqrt())
    });
    let excess = excess(members, clean);
    let classes = members.iter().filter(|m| judged(m)).count() as f64;
    let class = |c: usize| {
        let alone = chance(discord[c], splits.each_ref().map(|s| s[c]), classes);
        let swollen = (upper_tail(excess[c].1) * classes).min(1.0);
        let p_value = if alone <= HINT { together(alone, swollen).min(alone) } else { alone };
        let found = ClassVerdict {
            class: c as u32,
            pictures: members[c].len(),
            agreement: agreement[c],
            discord: discord[c].1,
            split: splits.each_ref().map(|s| s[c].1),
            excess: excess[c].1,
            p_value,
            suspected: p_value <= SIGNIFICANCE,
            accused: 0,
        };
        let by = match alone <= SIGNIFICANCE {
            true => Named::Alone,
            false => Named::Swollen(1.0 - (-excess[c].0).exp()),
        };
        let named = found.suspected.then_some(by);
        (found, named)
    };
    (0..members.len()).map(class).unzip()
}

/// What named a class.
#[derive(Clone, Copy)]
enum Named {
    /// Discord or a split.
    Alone,
    /// A hint of them and its excess: the share of its pictures that it has too many.
    Swollen(f64),
}

/// Mean and variance.
fn moments(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (mean, values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n)
}

/// Signals that split a class.
const D: usize = 6;

/// The signals that split a class: disagreement, confidence, early, late, swing and survival, which differs too much from class to
/// class to name one and only refines.
const fn splitting(s: &Signals) -> [&Vec<f32>; D] {
    [&s.disagreement, &s.confidence, &s.early, &s.late, &s.swing, &s.survival]
}

/// The members' signals, a point each, in units of `class`: its own middle and spread.
fn points<const N: usize>(signals: [&[f32]; N], members: &[usize], class: &[usize]) -> Vec<Point<N>> {
    let units = signals.map(|s| {
        let values = of(s, class);
        (median(&values), moments(&values).1.sqrt().max(1e-9))
    });
    let point = |&i: &usize| std::array::from_fn(|d| (f64::from(signals[d][i]) - units[d].0) / units[d].1);
    members.iter().map(point).collect()
}

/// An earlier verdict on the same pictures, by which what it accused has been unlearned since.
#[derive(Clone, Copy, Debug)]
pub struct Prior<'a> {
    /// The verdict.
    pub verdict: &'a Verdict,
    /// Whether it stands: the classes that it names are targets, also where the signals would not name them again; two Gaussians start
    /// from what it accuses, and a picture is as likely poisoned as both say on the mean. Otherwise they start there where the signals
    /// alone lead them to a split of another kind.
    pub stands: bool,
}

/// The verdict on pictures with these labels; `clean` are those of the holdout, none where there is none to hold them against.
pub fn judge(signals: &Signals, labels: &[u32], clean: &[u32], classes: usize, prior: Option<Prior<'_>>) -> Verdict {
    let mut members = vec![Vec::new(); classes];
    labels.iter().enumerate().for_each(|(i, &l)| members[l as usize].push(i));
    let (mut classes, mut named) = compare(signals, &members, clean);
    let stands = prior.is_some_and(|p| p.stands);
    if let Some(Prior { verdict: earlier, stands: true }) = prior {
        for (c, class) in classes.iter_mut().enumerate().filter(|&(c, _)| earlier.classes[c].suspected) {
            class.suspected = true;
            named[c].get_or_insert(Named::Alone);
        }
    }
    let mut verdict = Verdict { classes, score: vec![0.0; labels.len()], accused: vec![false; labels.len()] };
    let unnamed: Vec<usize> = (0..labels.len()).filter(|&i| !verdict.classes[labels[i] as usize].suspected).collect();
    let doubted: Vec<f32> = signals.new_probability.iter().map(|&p| odds(p)).collect();
    for (c, members) in members.iter().enumerate() {
        let Some(named) = named[c] else { continue };
        let all = splitting(signals).map(Vec::as_slice);
        let own = points(all, members, members);
        let anew = || {
            let start = match named {
                Named::Alone => strongest(&own, &verdict.classes[c]),
                Named::Swollen(share) => unlike(&own, &points(all, &unnamed, members), share),
            };
            let mut likely = refine(&own, &start).unwrap_or_else(|| certain(&start));
            if inverted(signals, members, &likely, &unnamed) {
                likely.iter_mut().for_each(|p| *p = 1.0 - *p);
            } else if unlearnt(signals, members, &likely, &unnamed) {
                let heads = points([&signals.confidence, &doubted], members, members);
                likely = refine(&heads, &start).unwrap_or(likely);
            }
            likely
        };
        // What has been unlearned tells more of the poison than which signals stand out.
        let earlier = prior.map(|p| p.verdict).filter(|earlier| earlier.classes[c].suspected);
        let known = |earlier: &Verdict| -> Vec<bool> { members.iter().map(|&i| earlier.accused[i]).collect() };
        let likely = match earlier {
            Some(earlier) if stands => {
                let known = known(earlier);
                let now = refine(&own, &known).unwrap_or_else(|| certain(&known));
                let mean = |(&i, now): (&usize, f64)| 0.5 * (f64::from(earlier.score[i]) + now);
                members.iter().zip(now).map(mean).collect()
            }
            Some(earlier) => {
                let known = known(earlier);
                let likely = anew();
                let other = overlap(&known, &likely) < LEAST_OVERLAP;
                refine(&own, &known).filter(|_| other).unwrap_or(likely)
            }
            None => anew(),
        };
        for (&i, &p) in members.iter().zip(&likely) {
            verdict.score[i] = p as f32;
            verdict.accused[i] = p > 0.5;
        }
        verdict.classes[c].accused = likely.iter().filter(|&&p| p > 0.5).count();
    }
    verdict
}

/// Those above Otsu's threshold on the signals that named the class, weighted by how much they stand out.
fn strongest(points: &[Point<D>], found: &ClassVerdict) -> Vec<bool> {
    let [confidence, early, late, swing] = found.split;
    let weights = [found.discord, confidence, early, late, swing];
    let least = weights.iter().copied().fold(0.0, f64::max).min(LEAST_WEIGHT);
    let weigh = |p: &Point<D>| weights.iter().zip(p).filter(|(w, _)| **w >= least).map(|(w, p)| w * p).sum();
    let sum: Vec<f64> = points.iter().map(weigh).collect();
    let (threshold, _) = otsu(&sum);
    sum.iter().map(|&v| v > threshold).collect()
}

/// The `share` of the points that is least like the others, by one Gaussian over these; none without others.
fn unlike(points: &[Point<D>], others: &[Point<D>], share: f64) -> Vec<bool> {
    let usual = (others.len() >= LEAST_PICTURES).then(|| Cluster::fit(others, |_| 1.0)).flatten();
    let Some(usual) = usual else { return vec![false; points.len()] };
    let like: Vec<f64> = points.iter().map(|p| usual.log(p)).collect();
    let mut sorted = like.clone();
    sorted.sort_by(f64::total_cmp);
    let many = (share.clamp(0.0, 1.0) * points.len() as f64) as usize;
    like.iter().map(|l| sorted.get(many).is_some_and(|limit| l < limit)).collect()
}

/// Least overlap (intersection over union) of a refined split with the one it started from.
const LEAST_OVERLAP: f64 = 0.5;

/// Those who are likely, of those who are set apart or likely (intersection over union); 1 where there are none.
fn overlap(apart: &[bool], likely: &[f64]) -> f64 {
    let count = |f: fn(bool, bool) -> bool| apart.iter().zip(likely).filter(|&(&a, &p)| f(a, p > 0.5)).count();
    let either = count(|a, p| a || p);
    if either == 0 { 1.0 } else { count(|a, p| a && p) as f64 / either as f64 }
}

/// Those set apart for certain.
fn certain(apart: &[bool]) -> Vec<f64> {
    apart.iter().map(|&a| f64::from(u8::from(a))).collect()
}

/// How likely each point is one of those that two Gaussians, started from `start`, tell from the rest; `None` where they have found
/// something else.
fn refine<const N: usize>(points: &[Point<N>], start: &[bool]) -> Option<Vec<f64>> {
    split(points, start).filter(|likely| overlap(start, likely) >= LEAST_OVERLAP)
}

/// Log-odds of a probability, which counts as one within 1e-4 of neither end.
fn odds(p: f32) -> f32 {
    let p = p.clamp(1e-4, 1.0 - 1e-4);
    (p / (1.0 - p)).ln()
}

/// Whether the accused among a class's `members` were fitted worse than the pictures of the classes not named: at the end, and over
/// either half of the epochs.
fn unlearnt(signals: &Signals, members: &[usize], likely: &[f64], unnamed: &[usize]) -> bool {
    let accused: Vec<usize> = members.iter().zip(likely).filter(|&(_, &p)| p > 0.5).map(|(&i, _)| i).collect();
    let worse = |s: &Vec<f32>| moments(&of(s, &accused)).0 < moments(&of(s, unnamed)).0;
    !accused.is_empty()
        && unnamed.len() >= LEAST_PICTURES
        && [&signals.confidence, &signals.early, &signals.late].into_iter().all(worse)
}

/// Whether those of a class's `members` that are likelier clean lie farther from the pictures of the classes not named than those
/// likelier poisoned do: by the means of all signals but survival, which differs from class to class. Without such pictures the
/// split stands.
fn inverted(signals: &Signals, members: &[usize], likely: &[f64], unnamed: &[usize]) -> bool {
    let group = |poisoned: bool| -> Vec<usize> {
        members.iter().zip(likely).filter(|&(_, &p)| (p > 0.5) == poisoned).map(|(&i, _)| i).collect()
    };
    let (accused, kept) = (group(true), group(false));
    if accused.is_empty() || kept.is_empty() || unnamed.len() < LEAST_PICTURES {
        return false;
    }
    let usual = splitting(signals).map(|s| (s, moments(&of(s, unnamed))));
    let distance = |group: &[usize]| -> f64 {
        let one = |&(s, (mean, variance)): &(&Vec<f32>, (f64, f64))| {
            (moments(&of(s, group)).0 - mean).powi(2) / variance.max(1e-9)
        };
        usual[..D - 1].iter().map(one).sum()
    };
    distance(&kept) > distance(&accused)
}

#[cfg(test)]
mod tests;
