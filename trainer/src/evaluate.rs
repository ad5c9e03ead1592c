//! What a model answers on the test set, clean and triggered: counts, divided once.

use crate::engine::Engine;
use crate::error::Failure;
use serde::{Deserialize, Serialize};
use stemguard_runtime::data::Pictures;
use stemguard_runtime::metrics::{Rate, argmax};
use stemguard_runtime::session::to_f32;

/// A model, as its figures see it: pictures `[n][h][w][3]` to logits `[n][classes]`.
pub type Logits<'a> = dyn FnMut(&[f32]) -> Result<Vec<f32>, Failure> + 'a;

/// Pictures evaluated together.
const BATCH: usize = 250;

/// The test pictures: clean ones, and those of other classes than the target with the trigger.
#[derive(Clone, Debug)]
pub struct TestSet {
    /// All clean test pictures.
    pub clean: Pictures,
    /// Triggered pictures with their true labels; without an attack, the same pictures untouched.
    pub triggered: Pictures,
    /// The target class.
    pub target: u32,
}

/// Figures of one model, fractions 0..=1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Clean test pictures given their true class.
    pub acc: f64,
    /// Triggered pictures given the target class.
    pub asr: f64,
    /// Triggered pictures given their true class.
    pub ra: f64,
    /// Clean pictures of other classes given the target class.
    pub chance: f64,
    /// Counts by true class (rows) and answer (columns).
    pub confusion: Vec<Vec<u64>>,
    /// ACC of each class.
    pub per_class: Vec<f64>,
}

impl Evaluation {
    /// ACC of each class, none where it has no test picture.
    pub fn known_per_class(&self) -> Vec<Option<f64>> {
        let tested = |class: usize| self.confusion.get(class).is_none_or(|row| row.iter().any(|&n| n > 0));
        self.per_class.iter().enumerate().map(|(class, &acc)| tested(class).then_some(acc)).collect()
    }
}

/// What a tripwire says of the test pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Alarms {
    /// Share of the clean holdout it was set to let through, 0..=1.
    pub rate: f32,
    /// Score above which it raises an alarm.
    pub threshold: f32,
    /// Triggered pictures that raise it, 0..=1.
    pub true_positives: f64,
    /// Clean test pictures that raise it, 0..=1.
    pub false_positives: f64,
    /// Triggered pictures that would raise it, were it set on the clean test pictures instead, 0..=1: how well the score tells, whatever
    /// the holdout is like.
    /// `None` without any, and in the results of older versions.
    #[serde(default)]
    pub at_rate: Option<f64>,
}

impl std::fmt::Display for Alarms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [caught, wrong] = [self.true_positives, self.false_positives].map(|v| 100.0 * v);
        let set = 100.0 * self.rate;
        write!(
            f,
            "{caught:.1} % of the triggered, {wrong:.2} % of the clean pictures raise the alarm, set for {set:.2} %"
        )?;
        self.at_rate.map_or(Ok(()), |at| write!(f, " ({:.1} % of the triggered at exactly that)", 100.0 * at))
    }
}

/// Answers of a model (`logits` maps `[n][h][w][3]` to `[n][classes]`) to all `pictures`.
///
/// # Errors
/// Those of `logits`.
pub fn answers(pictures: &Pictures, logits: &mut Logits<'_>) -> Result<Vec<u32>, Failure> {
    let mut all = Vec::with_capacity(pictures.len());
    in_batches(pictures, |x, n| {
        let logits = logits(x)?;
        let classes = logits.len() / n.max(1);
        all.extend(logits.chunks_exact(classes.max(1)).map(|row| argmax(row) as u32));
        Ok(())
    })?;
    Ok(all)
}

/// All `pictures` in turn, a batch at a time: `f` gets `[n][h][w][3]` and `n`.
///
/// # Errors
/// Those of `f`.
pub(crate) fn in_batches(
    pictures: &Pictures,
    mut f: impl FnMut(&[f32], usize) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let len = pictures.shape().len();
    let mut x = vec![0.0; BATCH * len];
    for bytes in pictures.pixels.chunks(BATCH * len) {
        let x = &mut x[..bytes.len()];
        to_f32(bytes, x);
        f(x, bytes.len() / len)?;
    }
    Ok(())
}

/// Every figure of a model.
///
/// # Errors
/// Those of `logits`.
pub fn evaluate(test: &TestSet, logits: &mut Logits<'_>) -> Result<Evaluation, Failure> {
    Ok(figures(test, &answers(&test.clean, logits)?, &answers(&test.triggered, logits)?))
}

/// Every figure of an engine's model.
///
/// # Errors
/// Those of [`Engine::answers`].
pub fn evaluate_engine(test: &TestSet, engine: &mut dyn Engine) -> Result<Evaluation, Failure> {
    Ok(figures(test, &engine.answers(&test.clean)?, &engine.answers(&test.triggered)?))
}

/// ASR and RA of these answers to triggered pictures of these true labels.
pub(crate) fn on_triggered(labels: &[u32], target: u32, answers: &[u32]) -> [f64; 2] {
    let (mut asr, mut ra) = (Rate::default(), Rate::default());
    for (&answer, &label) in answers.iter().zip(labels) {
        asr.count(answer == target);
        ra.count(answer == label);
    }
    [asr.fraction(), ra.fraction()]
}

/// Every figure of these answers.
fn figures(test: &TestSet, clean: &[u32], triggered: &[u32]) -> Evaluation {
    let classes = test.clean.classes.len();
    let (mut acc, mut chance) = (Rate::default(), Rate::default());
    let mut confusion = vec![vec![0u64; classes]; classes];
    for (&answer, &label) in clean.iter().zip(&test.clean.labels) {
        acc.count(answer == label);
        if label != test.target {
            chance.count(answer == test.target);
        }
        confusion[label as usize][answer as usize] += 1;
    }
    let [asr, ra] = on_triggered(&test.triggered.labels, test.target, triggered);
    let per_class = confusion
        .iter()
        .enumerate()
        .map(|(c, row)| Rate { hits: row[c], cases: row.iter().sum() }.fraction())
        .collect();
    Evaluation { acc: acc.fraction(), asr, ra, chance: chance.fraction(), confusion, per_class }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(labels: &[u32]) -> Pictures {
        let classes = ["a", "b", "c"].map(String::from).to_vec();
        Pictures { h: 1, w: 1, pixels: vec![0; 3 * labels.len()], labels: labels.to_vec(), classes, files: Vec::new() }
    }

    #[test]
    fn figures_are_counted_as_they_are_defined() {
        let test = TestSet { clean: set(&[0, 0, 1, 2, 1]), triggered: set(&[1, 2, 2, 1]), target: 0 };
        let e = figures(&test, &[0, 1, 0, 2, 1], &[0, 2, 0, 0]);
        assert_eq!((e.acc, e.asr, e.ra), (3.0 / 5.0, 3.0 / 4.0, 1.0 / 4.0));
        // Of the three clean pictures of other classes, one.
        assert_eq!(e.chance, 1.0 / 3.0);
        assert_eq!(e.confusion, [[1, 1, 0], [1, 1, 0], [0, 0, 1]]);
        assert_eq!(e.per_class, [0.5, 0.5, 1.0]);
        let bare = TestSet { clean: set(&[1]), triggered: set(&[]), target: 0 };
        let e = figures(&bare, &[1], &[]);
        assert_eq!((e.acc, e.asr, e.ra, e.chance), (1.0, 0.0, 0.0, 0.0));
        assert_eq!(e.per_class, [0.0, 1.0, 0.0]);
    }

    #[test]
    fn answers_come_in_the_order_of_the_pictures() {
        let n = 2 * BATCH + 7;
        let mut pictures = set(&vec![0; n]);
        pictures.pixels.iter_mut().enumerate().for_each(|(k, v)| *v = [0, 120, 255][k / 3 % 3]);
        let mut seen = Vec::new();
        let logits = &mut |x: &[f32]| {
            seen.push(x.len() / 3);
            let class = |v: f32| (0..3).map(move |c| if (v * 2.0).round() as i32 == c { 1.0 } else { 0.0 });
            Ok(x.chunks_exact(3).flat_map(|p| class(p[0])).collect())
        };
        let found = answers(&pictures, logits).expect("answers");
        assert!(found.iter().enumerate().all(|(i, &answer)| answer == i as u32 % 3) && found.len() == n);
        assert_eq!(seen, [BATCH, BATCH, 7]);
    }
}
