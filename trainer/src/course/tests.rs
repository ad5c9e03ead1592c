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

/// Late pictures of the first class, poisoned as well: fitted as clean ones are, until their trigger is unlearned.
const LATE: usize = 10;

/// Reports a fit by rule, and keeps what it was asked for.
struct Scripted {
    poisoned: usize,
    late: usize,
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
                let usual = pass.epoch as f32 - 0.5 + 4.0 * noise;
                match i as usize {
                    i if i < self.poisoned + self.late && pass.forget.contains(&true) => -6.0 + 4.0 * noise,
                    i if i < self.poisoned => 7.0 + 2.0 * noise,
                    _ => usual,
                }
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
fn run(c: &RunConfig, [poisoned, late]: [usize; 2], dir: &RunDir, done: u32) -> Result<Scripted, Failure> {
    let (p, mut engine) = (pictures(), Scripted { poisoned, late, asked: Vec::new() });
    let clean: Vec<u32> = (0..CLASSES as u32).flat_map(|c| [c; 20]).collect();
    let test = TestSet { clean: p.subset(&[0]), triggered: p.subset(&[0]), target: 0 };
    let course = Course { config: c, pictures: &p, forget: &[], clean: &clean, dir, fingerprint: "x" };
    course.run(&mut engine, done, &test, &mut |_| {})?;
    Ok(engine)
}

fn config() -> RunConfig {
    let recipe = RunConfig::published("signs".into());
    RunConfig { epochs: EPOCHS, batch: 50, every: EPOCHS, guard: Some(GUARD), ..recipe }
}

#[test]
fn the_guard_turns_against_those_it_accuses_also_when_resumed() {
    let home = tempfile::tempdir().expect("a directory");
    let dir = RunDir { path: home.path().to_owned() };
    let whole = run(&config(), [POISONED, 0], &dir, 0).expect("a run");
    for done in [GUARD, GUARD + 2] {
        let resumed = run(&config(), [POISONED, 0], &dir, done).expect("the rest of it");
        assert_eq!(resumed.asked, whole.asked[done as usize..]);
    }
    assert_eq!(whole.asked.len(), EPOCHS as usize);
    for (epoch, order, forget) in &whole.asked {
        assert_eq!(order.len(), EACH * CLASSES, "{epoch}");
        let accused: Vec<bool> = (0..EACH * CLASSES).map(|i| i < POISONED).collect();
        assert_eq!(*forget, if *epoch < GUARD { Vec::new() } else { accused }, "{epoch}");
    }
    let unlearned: Vec<_> = dir.metrics().expect("lines").iter().map(|l| l.unlearned).collect();
    let (none, some) = (vec![None; GUARD as usize], vec![Some(POISONED); (EPOCHS - GUARD) as usize]);
    assert_eq!(unlearned, [none, some].concat());
    assert!(dir.file("guard.json").is_file());
    // Asked again in the end, it accuses the same.
    let (p, clean) = (pictures(), Vec::from_iter((0..CLASSES as u32).flat_map(|c| [c; 20])));
    let asked = |c: &RunConfig| guarded(c, &dir, EPOCHS, &p, &clean).expect("a record").map(|v| v.accused);
    assert_eq!(asked(&config()), whole.asked.last().map(|(.., forget)| forget.clone()));
    assert_eq!(asked(&RunConfig { guard: None, ..config() }), None);
}

#[test]
fn what_falls_with_the_accused_is_accused_in_its_turn() {
    let home = tempfile::tempdir().expect("a directory");
    let dir = RunDir { path: home.path().to_owned() };
    let c = RunConfig { epochs: 16, ..config() };
    let done = run(&c, [POISONED, LATE], &dir, 0).expect("a run");
    let of = |epoch: usize, range: std::ops::Range<usize>| done.asked[epoch].2[range].iter().filter(|&&f| f).count();
    assert_eq!((of(3, 0..POISONED), of(3, POISONED..EACH * CLASSES)), (POISONED, 0));
    assert_eq!((of(15, 0..POISONED + LATE), of(15, POISONED + LATE..EACH * CLASSES)), (POISONED + LATE, 0));
}

#[test]
fn a_guard_that_accuses_nobody_changes_nothing() {
    let home = tempfile::tempdir().expect("a directory");
    let dir = RunDir { path: home.path().to_owned() };
    let done = run(&config(), [0, 0], &dir, 0).expect("a run");
    assert!(done.asked.iter().all(|(_, order, forget)| order.len() == EACH * CLASSES && forget.is_empty()));
    let unlearned: Vec<_> = dir.metrics().expect("lines").iter().map(|l| l.unlearned).collect();
    assert_eq!(unlearned, [None, None, None, Some(0), Some(0), Some(0)]);
}
