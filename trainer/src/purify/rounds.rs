//! The folder of a run's rounds, `RUN/purify`. From the first epoch on it holds hours of training: until the last round is done it says
//! how they were begun (`begun.json`), and neither replaces them nor goes on with them in another way.

use super::{MOST_ROUNDS, Purification};
use crate::checkpoint::{self, CHECKPOINT};
use crate::defend::Replacement;
use crate::error::Failure;
use crate::run::RunDir;
use serde_json::{Value, json};
use std::path::PathBuf;
use stemguard_runtime::files;

/// The folder's name in a run's directory.
const FOLDER: &str = "purify";
/// How the rounds in it were begun, until the last is done.
const BEGUN: &str = "begun.json";

/// The folder of a round.
fn round(rounds: &RunDir, number: u32) -> PathBuf {
    rounds.file(&format!("round-{number}"))
}

/// What decides of a round but the run itself; how many may follow does not.
fn settings(p: &Purification, how: &Replacement) -> Result<Value, Failure> {
    let other = |e: serde_json::Error| Failure::Other(e.to_string());
    let mut purification = serde_json::to_value(p).map_err(other)?;
    purification.as_object_mut().map(|settings| settings.remove("rounds"));
    Ok(json!({ "purification": purification, "replacement": serde_json::to_value(how).map_err(other)? }))
}

/// Where two such records differ: `purification.inoculate 1, now 0.5`.
fn differences(name: &str, old: &Value, new: &Value, all: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(a), Value::Object(b)) if a.keys().eq(b.keys()) => {
            let below = |inner: &str| if name.is_empty() { inner.to_owned() } else { format!("{name}.{inner}") };
            a.iter().zip(b.values()).for_each(|((inner, a), b)| differences(&below(inner), a, b, all));
        }
        _ if old != new => {
            // They were `f32`.
            let shown = |v: &Value| match v.as_f64().filter(|_| v.is_f64()) {
                Some(number) => (number as f32).to_string(),
                None => v.to_string(),
            };
            all.push(format!("{name} {}, now {}", shown(old), shown(new)));
        }
        _ => {}
    }
}

/// Whether a run can be purified so, its rounds begun anew, or with `resume` gone on with. Nothing is changed.
///
/// # Errors
/// [`Failure::Input`] where rounds that were interrupted are there: without `resume`, or begun with other settings.
pub fn admits(dir: &RunDir, p: &Purification, how: &Replacement, resume: bool) -> Result<(), Failure> {
    let rounds = RunDir { path: dir.file(FOLDER) };
    let trained = (1..=MOST_ROUNDS).any(|number| round(&rounds, number).join(CHECKPOINT).exists());
    if !trained || !rounds.file(BEGUN).exists() {
        return Ok(());
    }
    let refuse = |why: &str| Err(Failure::file(&rounds.path, format!("{why}; to begin anew, remove that folder")));
    if !resume {
        return refuse("holds an interrupted purification; --resume goes on with it");
    }
    let mut changed = Vec::new();
    match rounds.read_json(BEGUN) {
        Ok(old) => differences("", &old, &settings(p, how)?, &mut changed),
        Err(e) => return refuse(&e.to_string()),
    }
    if changed.is_empty() {
        return Ok(());
    }
    refuse(&format!("holds an interrupted purification with other settings ({})", changed.join("; ")))
}

/// Makes the folder: anew, or with `resume` as it is.
///
/// # Errors
/// Those of [`admits`], and [`Failure::Input`] naming what cannot be written.
pub(super) fn begin(dir: &RunDir, p: &Purification, how: &Replacement, resume: bool) -> Result<RunDir, Failure> {
    admits(dir, p, how, resume)?;
    let rounds = RunDir { path: dir.file(FOLDER) };
    let failed = |why: &str, e: std::io::Error| Failure::file(&rounds.path, format!("cannot be {why}: {e}"));
    if rounds.path.exists() && !resume {
        std::fs::remove_dir_all(&rounds.path).map_err(|e| failed("replaced", e))?;
    }
    std::fs::create_dir_all(&rounds.path).map_err(|e| failed("made", e))?;
    rounds.write_json(BEGUN, &settings(p, how)?)?;
    Ok(rounds)
}

/// The folder of a round whose lesson has this `mark`. Another verdict, as another device may come to, is another lesson: what was trained
/// on it, and all rounds behind it, begin anew, the last first.
///
/// # Errors
/// [`Failure::Input`] naming what cannot be replaced or made.
pub(super) fn make(rounds: &RunDir, number: u32, mark: &str) -> Result<RunDir, Failure> {
    let path = round(rounds, number);
    if checkpoint::is_of_another(&path.join(CHECKPOINT), mark) {
        let later = (number..=MOST_ROUNDS).rev().map(|n| round(rounds, n));
        for later in later.filter(|later| later.exists()) {
            std::fs::remove_dir_all(&later).map_err(|e| Failure::file(&later, format!("cannot be replaced: {e}")))?;
        }
    }
    std::fs::create_dir_all(&path).map_err(|e| Failure::file(&path, format!("cannot be made: {e}")))?;
    files::clear_cut_short(&path);
    Ok(RunDir { path })
}

/// The last round is done, and what came of it is written.
pub(super) fn end(rounds: &RunDir) {
    // Where it stays, the next one is asked to go on, which takes no training.
    let _ = std::fs::remove_file(rounds.file(BEGUN));
}

#[cfg(test)]
mod tests {
    use super::*;
    use stemguard_runtime::session::Space;

    #[test]
    fn an_interrupted_purification_is_gone_on_with_or_left_alone() {
        let home = tempfile::tempdir().expect("a directory");
        let dir = RunDir { path: home.path().to_owned() };
        let (p, how) = (Purification::default(), Replacement::cached(true, 0));
        // Nothing is trained yet: nothing is lost.
        for other in [0.1, p.inoculate] {
            begin(&dir, &Purification { inoculate: other, ..p }, &how, false).expect("begun");
        }
        let rounds = RunDir { path: dir.file(FOLDER) };
        let trained = round(&rounds, 1).join(CHECKPOINT);
        let train = || {
            std::fs::create_dir_all(round(&rounds, 1)).expect("made");
            std::fs::write(&trained, "epochs").expect("written");
        };
        train();
        let refused = |p: &Purification, how: &Replacement, resume| {
            let why = admits(&dir, p, how, resume).expect_err("refused").to_string();
            assert!(begin(&dir, p, how, resume).is_err() && trained.exists(), "{why}");
            why
        };
        assert!(refused(&p, &how, false).contains("--resume goes on with it"));
        let other = refused(&Purification { inoculate: 0.5, ..p }, &how, true);
        assert!(other.contains("with other settings (purification.inoculate 1, now 0.5); to begin anew"), "{other}");
        let views = Replacement { space: Space::Features { views: 32 }, ..how };
        assert!(refused(&p, &views, true).contains("(replacement.space.features.views 8, now 32)"));
        begin(&dir, &p, &how, true).expect("gone on with");
        begin(&dir, &Purification { rounds: 2, ..p }, &how, true).expect("one more round");
        std::fs::write(rounds.file(BEGUN), "{").expect("written");
        assert!(refused(&p, &how, true).contains("begun.json"));
        // One that is done is replaced, as a head is, or taken as it is.
        end(&rounds);
        begin(&dir, &p, &views, true).expect("taken");
        assert!(trained.exists());
        end(&rounds);
        begin(&dir, &p, &how, false).expect("begun");
        assert!(!trained.exists());
    }
}
