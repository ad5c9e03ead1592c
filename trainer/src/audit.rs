//! The audit: the trapped head, kept as a witness, names the poisoned pictures.
//!
//! ```text
//! trapped model, new head (from the clean holdout), fitting by epoch -> Signals -> judge -> Verdict (classes, accused)
//!                                                                                    |
//!                                                        Truth, where it is known -> Measures
//! ```
//!
//! Two heads stand on one stem: the trapped one saw the poison, the new one did not. What they know together
//! ([`signals`](Signals)) is turned into a verdict without the truth ([`judge`]); on clean data it accuses nobody.

mod mixture;
mod sheet;
mod signals;
mod verdict;
mod witnesses;

pub use signals::Signals;
pub use verdict::{
    ClassVerdict, DOUBT, HINT, LEAST_DISCORD, LEAST_OTHERS, LEAST_PICTURES, LEAST_SPLIT, Prior, SIGNIFICANCE, Verdict,
    judge, judged,
};

use crate::attack::Truth;
use crate::config::RunConfig;
use crate::engine::{CpuEngine, Device};
use crate::error::Failure;
use crate::history::History;
use crate::prepare::Prepared;
use crate::run::{Exchange, RunDir};
use crate::trap::fingerprint;
use serde::{Deserialize, Serialize};
use stemguard_runtime::data::Pictures;
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::session::NewHead;
use witnesses::Witnesses;

/// An audit of a set of suspects.
#[derive(Clone, Debug)]
pub struct Audit {
    /// What the heads know.
    pub signals: Signals,
    /// What follows.
    pub verdict: Verdict,
}

/// Audits `suspects` with a trapped model, how well they were fitted, and a head trained on the clean holdout; both heads answer on
/// `device`.
///
/// # Errors
/// [`Failure`] where the parts do not belong together, or the device cannot be used.
#[allow(clippy::too_many_arguments)]
pub fn audit(
    trapped: &mut CpuEngine,
    new: &NewHead,
    history: &History,
    prior: Option<Prior<'_>>,
    data: &Prepared,
    seed: u64,
    device: Device,
    kernels: &Simd,
    tell: &mut dyn FnMut(usize),
) -> Result<Audit, Failure> {
    let (suspects, clean) = (data.suspect.pictures(), data.holdout.pictures());
    let mut witnesses = Witnesses::open(device, trapped, new, kernels)?;
    let signals = Signals::gather(&mut witnesses, suspects, clean, history, seed, tell)?;
    let verdict = judge(&signals, &suspects.labels, data.proportions(), suspects.classes.len(), prior);
    Ok(Audit { signals, verdict })
}

/// The files of an audit: who is accused and why, picture by picture, and the most suspicious of them to look at.
pub const FILES: [&str; 3] = ["audit.json", "audit.csv", "audit.png"];

/// Audits a run with its trapped model and a `new` head on the same stem. `tell` hears of pictures done, of so many.
///
/// # Errors
/// [`Failure`] naming the run's file, or what the device lacks.
#[allow(clippy::too_many_arguments)]
pub fn witness(
    dir: &RunDir,
    c: &RunConfig,
    data: &Prepared,
    trapped: &mut CpuEngine,
    new: &NewHead,
    prior: Option<Prior<'_>>,
    device: Device,
    kernels: &Simd,
    tell: &mut dyn FnMut(usize, usize),
) -> Result<Audit, Failure> {
    let suspects = data.suspect.pictures();
    let history = History::read(&dir.file("fitting.npy"), suspects.len(), c.epochs as usize)?;
    let told = &mut |done| tell(done, suspects.len());
    audit(trapped, new, &history, prior, data, c.seed, device, kernels, told)
}

/// How well a signal, or the verdict, tells poison from clean: known only where the truth is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// Its name.
    pub name: String,
    /// Probability that a poisoned picture ranks above a clean one.
    pub auc: f64,
    /// Share of the poisoned pictures above the threshold that 1 % of the clean ones exceed.
    pub recall_at_1_percent: f64,
}

/// The audit against the truth.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measures {
    /// Signal by signal, then the score of the verdict.
    pub signals: Vec<Measure>,
    /// Share of the poisoned pictures accused.
    pub recall: f64,
    /// Share of the clean pictures accused.
    pub false_positives: f64,
}

/// What `audit.json` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Pictures audited.
    pub pictures: usize,
    /// Pictures accused.
    pub accused: usize,
    /// Class by class.
    pub classes: Vec<ClassVerdict>,
    /// Against the truth, where some pictures are poisoned.
    pub measures: Option<Measures>,
    /// Places of the accused among the suspects, the most suspicious first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accused_pictures: Vec<u32>,
}

/// Probability that a positive ranks above a negative (ties count half), and recall at a false-positive rate of 1 %.
fn measure(name: &str, values: &[f32], positive: &[bool]) -> Measure {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    let positives = positive.iter().filter(|&&p| p).count();
    let negatives = positive.len() - positives;
    let allowed = negatives / 100;
    let (mut above, mut wrong, mut area, mut recall, mut at) = (0usize, 0usize, 0.0f64, 0usize, 0);
    while at < order.len() {
        let equal = order[at..].iter().take_while(|&&i| values[i] == values[order[at]]).count().max(1);
        let hits = order[at..at + equal].iter().filter(|&&i| positive[i]).count();
        area += (equal - hits) as f64 * (above as f64 + hits as f64 / 2.0);
        above += hits;
        wrong += equal - hits;
        if wrong <= allowed {
            recall = above;
        }
        at += equal;
    }
    let share = |n: f64, of: usize| if of == 0 { 0.0 } else { n / of as f64 };
    Measure {
        name: name.into(),
        auc: share(share(area, positives), negatives),
        recall_at_1_percent: share(recall as f64, positives),
    }
}

impl Summary {
    /// Who is accused, as a hash: purification records of whom it was.
    pub fn mark(&self) -> String {
        let mut places = self.accused_pictures.clone();
        places.sort_unstable();
        fingerprint(&places)
    }
}

impl Audit {
    /// The figures, with the truth beside them where it is known and not empty.
    pub fn summary(&self, truth: Option<&Truth>) -> Summary {
        let n = self.verdict.accused.len();
        let measures = truth.filter(|t| !t.poisoned.is_empty()).map(|t| {
            let poisoned: Vec<bool> = (0..n).map(|i| t.is_poisoned(i as u32)).collect();
            let share = |of: bool| {
                let all = poisoned.iter().filter(|&&p| p == of).count().max(1);
                let hit = poisoned.iter().zip(&self.verdict.accused).filter(|&(&p, &a)| p == of && a).count();
                hit as f64 / all as f64
            };
            let s = &self.signals;
            let named = [
                ("disagreement", &s.disagreement),
                ("confidence", &s.confidence),
                ("early", &s.early),
                ("late", &s.late),
                ("swing", &s.swing),
                ("survival", &s.survival),
                ("verdict", &self.verdict.score),
            ];
            Measures {
                signals: named.iter().map(|(name, v)| measure(name, v, &poisoned)).collect(),
                recall: share(true),
                false_positives: share(false),
            }
        });
        let accused_pictures = self.worst_first();
        let accused = accused_pictures.len();
        Summary { pictures: n, accused, classes: self.verdict.classes.clone(), measures, accused_pictures }
    }

    /// Places of the accused, the most suspicious first.
    fn worst_first(&self) -> Vec<u32> {
        let mut worst: Vec<u32> =
            (0u32..).zip(&self.verdict.accused).filter(|(_, accused)| **accused).map(|(i, _)| i).collect();
        let suspicion = |i: u32| self.signals.disagreement[i as usize] + self.verdict.score[i as usize];
        worst.sort_by(|&a, &b| suspicion(b).total_cmp(&suspicion(a)));
        worst
    }

    /// Its [`FILES`], with what it says against the truth, where that is known.
    ///
    /// # Errors
    /// [`Failure`] naming the file.
    pub fn put(&self, into: &mut Exchange<'_>, data: &Prepared) -> Result<(), Failure> {
        let [json, csv, png] = FILES;
        let suspects = data.suspect.pictures();
        into.put_json(json, &self.summary(Some(&data.truth)))?;
        into.put(csv, self.csv(suspects, &data.split.train).as_bytes())?;
        into.put(png, &sheet::png(self, suspects)?)
    }

    /// One line a picture: its place among the suspects and in the data set's training part (`training`, as long as the suspects; else
    /// left empty), file, given label, the new head's label, signals, score, verdict.
    pub fn csv(&self, suspects: &Pictures, training: &[u32]) -> String {
        use std::fmt::Write as _;
        let mut text = String::from(
            "index,training_index,file,label,new_label,disagreement,confidence,early,late,swing,survival,score,verdict\n",
        );
        let s = &self.signals;
        for (i, &label) in suspects.labels.iter().enumerate() {
            let place = training.get(i).filter(|_| training.len() == suspects.len());
            let place = place.map_or(String::new(), u32::to_string);
            let file = suspects.files.get(i).map_or("", String::as_str);
            let quoted = if file.contains([',', '"', '\n']) {
                format!("\"{}\"", file.replace('"', "\"\""))
            } else {
                file.into()
            };
            let _ = writeln!(
                text,
                "{i},{place},{quoted},{label},{},{:.4},{:.3},{:.3},{:.3},{:.3},{:.4},{:.4},{}",
                s.new_label[i],
                s.disagreement[i],
                s.confidence[i],
                s.early[i],
                s.late[i],
                s.swing[i],
                s.survival[i],
                self.verdict.score[i],
                if self.verdict.accused[i] { "accused" } else { "kept" }
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_count_pairs() {
        let positive: Vec<bool> = (0..200).map(|i| i < 100).collect();
        let perfect: Vec<f32> = (0..200).map(|i| if i < 100 { 2.0 } else { 1.0 }).collect();
        let m = measure("perfect", &perfect, &positive);
        assert_eq!((m.auc, m.recall_at_1_percent), (1.0, 1.0));
        let none = measure("none", &[0.5; 200], &positive);
        assert_eq!((none.auc, none.recall_at_1_percent), (0.5, 0.0));
        // One clean picture above all others is 1 % of a hundred.
        let mut one = perfect;
        one[199] = 3.0;
        let m = measure("one", &one, &positive);
        assert!((m.auc - 0.99).abs() < 1e-12 && m.recall_at_1_percent == 1.0, "{m:?}");
        one[198] = 3.0;
        assert_eq!(measure("two", &one, &positive).recall_at_1_percent, 0.0);
    }
}
