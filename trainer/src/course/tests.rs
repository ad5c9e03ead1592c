//! A course over a scripted engine: what the guard asks of it.

use super::*;
use crate::engine::{EngineError, State, StepReport};
use stemguard_runtime::rng::Rng;

/// Pictures of each of so many classes; the first of class 0 are fitted as poison is.
const EACH: usize = 200;
const CLASSES: usize = 5;
const POISONED: usize = 100;
const EPOCHS: u32 = 6;
const GUARD: u32 = 3;

/// Reports a fit by rule, and keeps what it was asked for.
#[derive(Default)]
struct Scripted {
    poisoned: usize,
    /// By epoch: what was seen, and whose label was unlearned.
    asked: Vec<(u32, Vec<u32>, Vec<bool>)>,
}

impl Engine for Scripted {
    fn hold(&mut self, _: &RunConfig, _: &Pictures) -> Result<(), EngineError> {
        Ok(())
    }

    fn pass(
        &mut self,
        pass: &Pass<'_>,
        order: &[u32],
        tell: &mut dyn FnMut(&[u32], &StepReport) -> bool,
    ) -> Result<(), EngineError> {
        self.asked.push((pass.epoch, order.to_vec(), pass.forget.to_vec()));
        for chosen in order.chunks_exact(pass.config.batch) {
            let fit = |&i: &u32| {
                let noise = Rng::new(7, u64::from(i) << 8 | u64::from(pass.epoch)).uniform() - 0.5;
                if (i as usize) < self.poisoned { 7.0 + noise } else { pass.epoch as f32 - 0.5 + 4.0 * noise }
            };
            let report = StepReport { losses: Losses::default(), fit: chosen.iter().map(fit).collect() };
            if !tell(chosen, &report) {
                break;
            }
        }
        Ok(())
    }

    fn answers(&mut self, pictures: &Pictures) -> Result<Vec<u32>, EngineError> {
        Ok(vec![0; pictures.len()])
    }

    fn state(&mut self) -> Result<State, EngineError> {
        Ok(State::default())
    }

    fn restore(&mut self, _: &State) -> Result<(), EngineError> {
        Ok(())
    }
}

fn pictures() -> Pictures {
    let n = EACH * CLASSES;
    Pictures {
        h: 1,
        w: 1,
        pixels: vec![0; 3 * n],
        labels: (0..n).map(|i| (i / EACH) as u32).collect(),
        classes: (0..CLASSES).map(|c| c.to_string()).collect(),
        files: Vec::new(),
    }
}

/// Runs a course from `done` epochs on in `dir`, and what it asked of its engine.
fn run(c: &RunConfig, poisoned: usize, dir: &RunDir, done: u32) -> Result<Scripted, Failure> {
    let (p, mut engine) = (pictures(), Scripted { poisoned, ..Scripted::default() });
    let clean: Vec<u32> = (0..CLASSES as u32).flat_map(|c| [c; 20]).collect();
    let test = TestSet { clean: p.subset(&[0]), triggered: p.subset(&[0]), target: 0 };
    let course = Course { config: c, pictures: &p, forget: &[], clean: &clean, dir, fingerprint: "x" };
    course.run(&mut engine, done, &test, &mut |_| {})?;
    Ok(engine)
}

fn guarded(mode: GuardMode) -> RunConfig {
    let recipe = RunConfig::published("signs".into());
    RunConfig { epochs: EPOCHS, batch: 50, every: EPOCHS, guard: Some(GUARD), guard_mode: mode, ..recipe }
}

#[test]
fn the_guard_turns_against_those_it_accuses_also_when_resumed() {
    for mode in [GuardMode::Unlearn, GuardMode::Drop] {
        let home = tempfile::tempdir().expect("a directory");
        let dir = RunDir { path: home.path().to_owned() };
        let whole = run(&guarded(mode), POISONED, &dir, 0).expect("a run");
        let resumed = run(&guarded(mode), POISONED, &dir, GUARD + 1).expect("the rest of it");
        assert_eq!(resumed.asked, whole.asked[GUARD as usize + 1..]);
        assert_eq!(whole.asked.len(), EPOCHS as usize);
        for (epoch, order, forget) in &whole.asked {
            let poison = |&&i: &&u32| (i as usize) < POISONED;
            let (before, seen) = (*epoch < GUARD, order.iter().filter(poison).count());
            assert_eq!(order.iter().filter(|i| !poison(i)).count(), EACH * CLASSES - POISONED, "{mode:?}, {epoch}");
            assert_eq!(seen, if before || mode == GuardMode::Unlearn { POISONED } else { 0 }, "{mode:?}, {epoch}");
            let expected: Vec<bool> = match mode {
                GuardMode::Unlearn if !before => (0..EACH * CLASSES).map(|i| i < POISONED).collect(),
                _ => Vec::new(),
            };
            assert_eq!(*forget, expected, "{mode:?}, {epoch}");
        }
        assert!(dir.file("guard.json").is_file());
    }
}

#[test]
fn a_guard_that_accuses_nobody_changes_nothing() {
    let home = tempfile::tempdir().expect("a directory");
    let dir = RunDir { path: home.path().to_owned() };
    let done = run(&guarded(GuardMode::Drop), 0, &dir, 0).expect("a run");
    assert!(done.asked.iter().all(|(_, order, forget)| order.len() == EACH * CLASSES && forget.is_empty()));
}

#[test]
fn too_few_pictures_left_are_no_run() {
    let home = tempfile::tempdir().expect("a directory");
    let dir = RunDir { path: home.path().to_owned() };
    let c = RunConfig { batch: EACH * CLASSES - POISONED / 2, ..guarded(GuardMode::Drop) };
    let e = run(&c, POISONED, &dir, 0).map(|_| ()).expect_err("a batch more than are left").to_string();
    assert!(e.contains("--batch") && e.contains("left by the guard"), "{e}");
    // The epochs before the guard stay.
    assert_eq!(dir.metrics().expect("lines").len(), GUARD as usize);
}
