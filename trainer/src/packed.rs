//! A packed model on a run's test pictures: any `.sgm`, its stem in `f32` or in 8 bits, signed or not.

use crate::error::Failure;
use crate::evaluate::{Alarms, Evaluation, TestSet, evaluate, in_batches};
use std::path::Path;
use stemguard_runtime::artifact::{AlignedBytes, Artifact, TripwireParts, declared_len, sign};
use stemguard_runtime::data::Pictures;
use stemguard_runtime::error::Error;
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::metrics::Rate;
use stemguard_runtime::session::{Session, bounds};
use stemguard_runtime::tripwire::{self, Alarm};

/// What a packed model answers.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Precision of its stem: `f32` or `int8`.
    pub precision: &'static str,
    /// Its figures.
    pub evaluation: Evaluation,
    /// Those of its tripwire, where it has one.
    pub tripwire: Option<Alarms>,
}

/// Runs a model over the test pictures.
///
/// # Errors
/// [`Failure::Input`] naming the file: no artifact, no head, or not made for these pictures and classes.
pub fn measure(path: &Path, test: &TestSet, kernels: &Simd) -> Result<Measured, Failure> {
    let refuse = |why: &dyn std::fmt::Display| Failure::file(path, why);
    let bytes = AlignedBytes::from_file(path).map_err(|e| refuse(&e))?;
    let artifact = Artifact::new_checked(unsigned(&bytes).map_err(|e| refuse(&e))?).map_err(|e| refuse(&e))?;
    let parts = artifact.parts();
    bounds::check(&parts).map_err(|e| refuse(&e))?;
    let (input, pictures) = (parts.stem.input(), test.clean.shape());
    if input != pictures {
        let [a, b] = [input, pictures].map(|s| format!("{} x {} x {}", s.h, s.w, s.c));
        return Err(refuse(&format!("takes pictures of {a}, the run's are {b}")));
    }
    let (classes, known) = (parts.head.map(|head| head.classes), test.clean.classes.len());
    match classes {
        None => return Err(refuse(&"a stem without head: `stemguard replace` adds one")),
        Some(n) if n as usize != known => {
            return Err(refuse(&format!("a head of {n} classes, the run has {known}")));
        }
        Some(_) => {}
    }
    let renumbered = numbered_as(test, parts.labels()).map_err(|e| refuse(&e))?;
    let test = renumbered.as_ref().unwrap_or(test);
    let session = Session::of_artifact(&parts, kernels.clone()).map_err(|e| refuse(&e))?;
    let tripwire = parts.tripwire.map(|set| alarms(&session, &set, test)).transpose()?;
    Ok(Measured { precision: parts.stem.precision(), evaluation: figures(&session, test)?, tripwire })
}

/// The test set with its classes numbered as a model's labels are, where both have names and in another order.
fn numbered_as<'n>(test: &TestSet, names: impl Iterator<Item = &'n str>) -> Result<Option<TestSet>, String> {
    let names: Vec<&str> = names.collect();
    if names.is_empty() || test.clean.classes.iter().map(String::as_str).eq(names.iter().copied()) {
        return Ok(None);
    }
    // The target goes along as a picture's label would.
    let mut target =
        Pictures { labels: vec![test.target], pixels: Vec::new(), files: Vec::new(), ..test.clean.clone() };
    let mut turned = test.clone();
    for part in [&mut turned.clean, &mut turned.triggered, &mut target] {
        if !part.number_as(&names, "the model")? {
            return Ok(None);
        }
    }
    turned.target = target.labels[0];
    Ok(Some(turned))
}

/// The artifact in a file's bytes, without the trailer of a signature, which is not verified.
fn unsigned(bytes: &[u8]) -> Result<&[u8], Error> {
    match usize::try_from(declared_len(bytes)?) {
        Ok(len) if len < bytes.len() => sign::claim(bytes).map(|_| &bytes[..len]),
        _ => Ok(bytes),
    }
}

/// Every figure of a session with a head.
pub(crate) fn figures(session: &Session<'_>, test: &TestSet) -> Result<Evaluation, Failure> {
    evaluate(test, &mut |x| logits(session, x))
}

/// Logits `[n][classes]` of pictures `[n][h][w][3]`.
pub(crate) fn logits(session: &Session<'_>, x: &[f32]) -> Result<Vec<f32>, Failure> {
    let mut logits = vec![0.0; x.len() / session.input().len() * session.output().len()];
    session.infer(x, &mut logits)?;
    Ok(logits)
}

/// What the tripwire of a session makes of each picture.
pub(crate) fn scores(session: &Session<'_>, pictures: &Pictures) -> Result<Vec<f32>, Failure> {
    let mut all = Vec::with_capacity(pictures.len());
    in_batches(pictures, |x, n| {
        let mut scores = vec![0.0; n];
        session.infer_watched(x, &mut vec![0.0; n * session.output().len()], &mut scores)?;
        all.extend(scores);
        Ok(())
    })?;
    Ok(all)
}

/// The share of the scores that raise the alarm at a threshold.
pub(crate) fn above(scores: &[f32], threshold: f32) -> f64 {
    let mut raised = Rate::default();
    scores.iter().for_each(|&score| raised.count(Alarm::of(score, threshold).raised));
    raised.fraction()
}

/// How often a session with this tripwire raises the alarm.
pub(crate) fn alarms(session: &Session<'_>, set: &TripwireParts<'_>, test: &TestSet) -> Result<Alarms, Failure> {
    let (triggered, clean) = (scores(session, &test.triggered)?, scores(session, &test.clean)?);
    let (rate, threshold) = (set.false_positive_rate, set.threshold);
    // Without clean pictures there is nothing to set it on.
    let exact = (!clean.is_empty()).then(|| tripwire::threshold(&clean, rate)).transpose()?;
    Ok(Alarms {
        rate,
        threshold,
        true_positives: above(&triggered, threshold),
        false_positives: above(&clean, threshold),
        at_rate: exact.map(|exact| above(&triggered, exact)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(labels: &[u32]) -> Pictures {
        let classes = ["up", "10", "2"].map(String::from).to_vec();
        Pictures { h: 1, w: 1, pixels: vec![0; 3 * labels.len()], labels: labels.to_vec(), classes, files: Vec::new() }
    }

    #[test]
    fn classes_are_the_models_by_name() {
        let test = TestSet { clean: set(&[0, 1, 2]), triggered: set(&[1, 2]), target: 0 };
        let as_of = |names: &[&str]| numbered_as(&test, names.iter().copied());
        // Nothing to do: the same order, or no names.
        assert!(as_of(&["up", "10", "2"]).expect("the same").is_none() && as_of(&[]).expect("none").is_none());
        let turned = as_of(&["10", "2", "up"]).expect("the same classes").expect("another order");
        assert_eq!((turned.clean.labels, turned.triggered.labels, turned.target), (vec![2, 0, 1], vec![0, 1], 2));
        assert!(as_of(&["10", "2", "down"]).expect_err("another class").contains("`up`"));
    }
}
