//! The guard of a course: judges the suspects by how they were fitted, epoch after epoch, and tells whose label is unlearned.
//!
//! A *look* is the audit's verdict on the epochs so far, from the course of training alone. One look is a poor witness: another epoch
//! more or less moves hundreds of pictures. So the looks of the second half of the epochs vote. A class is a target where half of
//! them name it; of its pictures those are accused whose probability, on the mean of the looks that name the class, is above a half.
//!
//! Unlearning asks a question of its own: what falls with the accused shows the trigger as well, accused or not, and what does not
//! fall was accused falsely. The looks of later epochs see that, and correct the first verdict.

use crate::audit::{Prior, Signals, Verdict, judge};
use crate::history::History;
use std::collections::BTreeMap;

/// Epochs that the first look needs.
const LEAST: usize = 2;

/// The suspects' labels, what they are held against, and the looks taken.
pub(super) struct Guard<'a> {
    labels: &'a [u32],
    clean: &'a [u32],
    classes: usize,
    looks: BTreeMap<usize, Verdict>,
}

impl<'a> Guard<'a> {
    /// Over suspects with these labels; `clean` are those of the holdout.
    pub(super) fn new(labels: &'a [u32], clean: &'a [u32], classes: usize) -> Self {
        Self { labels, clean, classes, looks: BTreeMap::new() }
    }

    /// The verdict after so many epochs of the history: the vote of the looks. They are taken one after the other, each from what
    /// the one before accused.
    pub(super) fn judge(&mut self, history: &History, epochs: usize) -> Verdict {
        let next = self.looks.last_key_value().map_or(LEAST.min(epochs), |(&last, _)| last + 1);
        for at in next..=epochs {
            let signals = Signals::of_history(&history.until(at));
            let prior = self.looks.last_key_value().map(|(_, verdict)| Prior { verdict, stands: false });
            self.looks.insert(at, judge(&signals, self.labels, self.clean, self.classes, prior));
        }
        self.looks = self.looks.split_off(&epochs.div_ceil(2).min(epochs));
        vote(self.looks.values().collect(), self.labels)
    }
}

/// What the looks, the last of which comes last, agree on.
fn vote(looks: Vec<&Verdict>, labels: &[u32]) -> Verdict {
    let mut verdict = looks.last().map_or_else(Verdict::default, |&last| last.clone());
    let naming: Vec<Vec<&Verdict>> = (0..verdict.classes.len())
        .map(|c| looks.iter().copied().filter(|look| look.classes[c].suspected).collect())
        .collect();
    for class in &mut verdict.classes {
        class.suspected = 2 * naming[class.class as usize].len() >= looks.len();
        class.accused = 0;
    }
    for (i, &label) in labels.iter().enumerate() {
        let (class, naming) = (&mut verdict.classes[label as usize], &naming[label as usize]);
        let mean = || naming.iter().map(|look| look.score[i]).sum::<f32>() / naming.len() as f32;
        verdict.score[i] = if class.suspected { mean() } else { 0.0 };
        verdict.accused[i] = verdict.score[i] > 0.5;
        class.accused += usize::from(verdict.accused[i]);
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::ClassVerdict;

    fn look(suspected: bool, score: [f32; 4]) -> Verdict {
        let class = |class: u32, suspected: bool| ClassVerdict {
            class,
            pictures: 2,
            agreement: 0.0,
            discord: 0.0,
            split: [0.0; 4],
            excess: 0.0,
            p_value: 1.0,
            suspected,
            accused: 0,
        };
        let accused = score.iter().map(|&s| s > 0.5).collect();
        Verdict { classes: vec![class(0, suspected), class(1, false)], score: score.to_vec(), accused }
    }

    #[test]
    fn looks_that_name_a_class_vote_on_its_pictures() {
        let labels = [0, 1, 0, 1];
        let of = |looks: &[Verdict]| {
            let verdict = vote(looks.iter().collect(), &labels);
            (verdict.classes[0].suspected, verdict.classes[0].accused, verdict.accused)
        };
        let (yes, no) = (look(true, [1.0, 0.0, 0.2, 0.0]), look(false, [0.0; 4]));
        // Half of the looks name the class; those that do not have no say in its pictures.
        assert_eq!(of(&[yes.clone(), no.clone()]), (true, 1, vec![true, false, false, false]));
        assert_eq!(of(&[yes.clone(), no.clone(), no.clone()]), (false, 0, vec![false; 4]));
        // A look that took the class the wrong way round is outvoted.
        let wrong = look(true, [0.0, 0.0, 1.0, 0.0]);
        let most = [yes.clone(), yes.clone(), wrong];
        assert_eq!(of(&most), (true, 1, vec![true, false, false, false]));
        assert_eq!(of(&[no]), (false, 0, vec![false; 4]));
    }
}
