//! The data of a run: what training sees, the clean holdout, what is measured on.
//!
//! ```text
//! data: training part -> Split -+-> suspects -> attack -> SuspectSet, Truth
//!                               \-> CleanHoldout, a share of it
//!       test part --------------------------------------> TestSet: clean, triggered
//! ```
//!
//! Where the holdout comes from other data ([`RunConfig::holdout_data`]), all of the training part is suspect; and where the suspects
//! have no test part, that of the holdout's data is measured on, or a quarter of its pictures, which are then no holdout.

use crate::attack::{Attack, Perturb, SuspectSet, Truth, build, poison, triggered};
use crate::config::RunConfig;
use crate::course;
use crate::error::Failure;
use crate::evaluate::TestSet;
use crate::perturb::Descent;
use crate::run::Counts;
use crate::split::{CleanHoldout, Split};
use std::path::Path;
use stemguard_runtime::data::{DataSet, LoadOptions, Pictures, Spec, load};
use stemguard_runtime::kernels::simd::Simd;

/// The data of a run, after the split and the attack.
pub struct Prepared {
    /// What training sees.
    pub suspect: SuspectSet,
    /// What it does not.
    pub truth: Truth,
    /// Clean pictures, set aside before the attack.
    pub holdout: CleanHoldout,
    /// For evaluation.
    pub test: TestSet,
    /// Which pictures of the training part went where.
    pub split: Split,
    /// The trigger.
    pub attack: Box<dyn Attack>,
}

impl Prepared {
    /// Pictures by use.
    pub fn counts(&self) -> Counts {
        Counts {
            train: self.suspect.len(),
            poisoned: self.truth.poisoned.len(),
            holdout: self.holdout.len(),
            test: self.test.clean.len(),
            triggered: self.test.triggered.len(),
        }
    }
}

/// Loads a run's data, sets the holdout aside and plants the attack. `cl` trains a model for it first, and keeps the pictures it made
/// in `dir`.
///
/// # Errors
/// [`Failure::Input`] naming the file or setting.
pub fn prepare(c: &RunConfig, kernels: &Simd, dir: Option<&Path>) -> Result<Prepared, Failure> {
    let Parts { rest, holdout, test, split } = parts(c)?;
    let attack = build(&c.attack, rest.h, rest.w)?;
    let descent = Descent::new(c, kernels, dir);
    let perturb: Option<&dyn Perturb> = if c.attack.kind.needs_perturb() {
        // Before minutes are spent on it.
        course::check(c, &rest)?;
        Some(&descent)
    } else {
        None
    };
    let (mut suspect, mut truth) = poison(rest, &c.attack, &*attack, perturb)?;
    if c.oracle {
        (suspect, truth) = truth.clean_part(&suspect);
    }
    let stamped = triggered(&test, &*attack, c.attack.target)?;
    let test = TestSet { clean: test, triggered: stamped, target: c.attack.target };
    Ok(Prepared { suspect, truth, holdout, test, split, attack })
}

/// The most classes of a run: which were taken for which is counted in a square of them.
const MAX_CLASSES: usize = 4096;

/// Pictures by use, before anything is planted.
struct Parts {
    rest: Pictures,
    holdout: CleanHoldout,
    test: Pictures,
    split: Split,
}

/// Loads and takes apart what a run names.
fn parts(c: &RunConfig) -> Result<Parts, Failure> {
    let spec: Spec = c.data.parse()?;
    let DataSet { train, test } = load(&spec, &LoadOptions { size: c.size, seed: c.seed })?;
    if train.is_empty() {
        return Err(Failure::input(&c.data, "has no training part"));
    }
    let classes = train.classes.len();
    if classes > MAX_CLASSES {
        return Err(Failure::input(&c.data, format!("{classes} classes are more than {MAX_CLASSES}")));
    }
    if c.attack.target as usize >= classes {
        let why = format!("class {} is not below the {classes} classes", c.attack.target);
        return Err(Failure::input("--target", why));
    }
    if let Some(data) = &c.holdout_data {
        let (holdout, clean_test) = elsewhere(c, data, &train, test.is_empty())?;
        let split = Split { train: (0..train.len() as u32).collect(), holdout: Vec::new() };
        return Ok(Parts { rest: train, holdout, test: clean_test.unwrap_or(test), split });
    }
    if test.is_empty() {
        let why = "has no test part to measure on; --holdout-data names clean pictures, some of which can serve";
        return Err(Failure::input(&c.data, why));
    }
    let split = Split::seeded(&train.labels, c.holdout, c.seed)?;
    let (rest, holdout) = split.apply(&train)?;
    Ok(Parts { rest, holdout, test, split })
}

/// Share of the holdout's data that is measured on where nothing else can be.
const MEASURED: f64 = 0.25;

/// The holdout from other data, of the classes of the suspects; with `measured`, pictures to measure on beside it.
fn elsewhere(
    c: &RunConfig,
    data: &str,
    suspects: &Pictures,
    measured: bool,
) -> Result<(CleanHoldout, Option<Pictures>), Failure> {
    let refuse = |why: String| Failure::input(format!("--holdout-data {data}"), why);
    let spec: Spec = data.parse().map_err(|e: stemguard_runtime::data::DataError| refuse(e.to_string()))?;
    let options = LoadOptions { size: Some((suspects.h, suspects.w)), seed: c.seed };
    let mut set = load(&spec, &options).map_err(|e| refuse(e.to_string()))?;
    if set.train.is_empty() {
        // The part that `@test` names.
        set.train = std::mem::take(&mut set.test);
    }
    let names: Vec<&str> = suspects.classes.iter().map(String::as_str).collect();
    for part in [&mut set.train, &mut set.test] {
        let foreign = |class| refuse(format!("class `{class}` is not among those of {}", c.data));
        let by_name = part.number_as(&names).map_err(foreign)?;
        let by_place = !by_name && !part.is_empty();
        if by_place && !part.numbered() && !suspects.numbered() {
            return Err(refuse(format!("none of its classes is among those of {}", c.data)));
        }
        let (own, all) = (part.classes.len(), names.len());
        if by_place && own > all {
            return Err(refuse(format!("{own} classes are more than the {all} of {}", c.data)));
        }
        part.classes.clone_from(&suspects.classes);
    }
    let absent = |class: &u32| suspects.labels.contains(class) && !set.train.labels.contains(class);
    if let Some(class) = (0..names.len() as u32).find(absent) {
        return Err(refuse(format!("no picture of class {class} (`{}`)", names.get(class as usize).unwrap_or(&""))));
    }
    if measured && set.test.is_empty() {
        let split = Split::seeded(&set.train.labels, MEASURED, c.seed)?;
        let (rest, part) = split.apply(&set.train)?;
        return Ok((CleanHoldout::new(rest)?, Some(part.into_pictures())));
    }
    Ok((CleanHoldout::new(set.train)?, measured.then_some(set.test)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attack::AttackKind;
    use stemguard_runtime::data::{write_npz, write_npz_split};

    /// Signs as archives: `suspect.npz` (training part alone), `both.npz`, and `clean.npz`, whose classes come in another order.
    fn archives(home: &Path) -> DataSet {
        let mut set = load(&"signs:200".parse().expect("a name"), &LoadOptions::default()).expect("signs");
        for part in [&mut set.train, &mut set.test] {
            part.classes.iter_mut().for_each(|name| name.insert_str(0, "sign "));
        }
        let (classes, last) = (set.train.classes.clone(), set.train.classes.len() as u32 - 1);
        let turned = Pictures {
            labels: set.test.labels.iter().map(|l| last - l).collect(),
            classes: classes.iter().rev().cloned().collect(),
            ..set.test.clone()
        };
        let part = |keep: &dyn Fn(u32) -> bool| {
            turned.subset(&(0..turned.len()).filter(|&i| keep(turned.labels[i])).collect::<Vec<_>>())
        };
        write_npz(&home.join("suspect.npz"), &set.train).expect("written");
        write_npz_split(&home.join("both.npz"), &set.train, &set.test).expect("written");
        write_npz(&home.join("clean.npz"), &turned).expect("written");
        write_npz_split(&home.join("tested.npz"), &turned, &part(&|l| l > 3)).expect("written");
        write_npz(&home.join("lacking.npz"), &part(&|l| l != 0)).expect("written");
        let foreign = Pictures { classes: (0..classes.len()).map(|i| format!("{i}0")).collect(), ..turned.clone() };
        write_npz(&home.join("other.npz"), &foreign).expect("written");
        let known = Pictures { classes: [&classes[..1], &foreign.classes[1..]].concat(), ..foreign };
        write_npz(&home.join("foreign.npz"), &known).expect("written");
        set
    }

    fn run(home: &Path, data: &str, holdout: Option<&str>) -> Result<Prepared, Failure> {
        let at = |name: &str| format!("npz:{}", home.join(name).display());
        let mut c = RunConfig { holdout_data: holdout.map(at), ..RunConfig::published(at(data)) };
        c.attack.kind = AttackKind::BadnetGrid;
        prepare(&c, &Simd::new(1), None)
    }

    #[test]
    fn a_holdout_from_elsewhere_leaves_all_pictures_suspect() {
        let home = tempfile::tempdir().expect("a directory");
        let set = archives(home.path());
        let all = set.train.len();
        let whole = run(home.path(), "both.npz", Some("clean.npz")).expect("prepared");
        assert_eq!((whole.suspect.len(), whole.split.train.len(), whole.split.holdout.len()), (all, all, 0));
        // Classes are matched by name.
        assert_eq!(whole.holdout.pictures().labels, set.test.labels);
        assert_eq!(whole.holdout.pictures().classes, set.train.classes);
        assert_eq!(whole.test.clean.labels, set.test.labels);
        assert_eq!(whole.truth.poisoned.len(), all / 10);
        // Without a test part: that of the holdout's data, else a quarter of it.
        let tested = run(home.path(), "suspect.npz", Some("tested.npz")).expect("prepared");
        let last = set.train.classes.len() as u32 - 1;
        assert!(tested.test.clean.labels.iter().all(|l| last - l > 3) && tested.holdout.len() == set.test.len());
        let shared = run(home.path(), "suspect.npz", Some("clean.npz")).expect("prepared");
        let counts = (shared.holdout.len(), shared.test.clean.len());
        assert_eq!(counts.0 + counts.1, set.test.len());
        assert!(counts.1 >= set.train.classes.len() && counts.0 > counts.1, "{counts:?}");
        let one = shared.holdout.pictures().picture(0);
        assert!((0..counts.1).all(|i| shared.test.clean.picture(i) != one));
    }

    #[test]
    fn what_cannot_serve_as_holdout_or_test_is_named() {
        let home = tempfile::tempdir().expect("a directory");
        archives(home.path());
        let last = "no picture of class";
        for (data, holdout, words) in [
            ("suspect.npz", None, ["suspect.npz", "--holdout-data"]),
            ("both.npz", Some("lacking.npz"), ["lacking.npz", last]),
            ("both.npz", Some("foreign.npz"), ["foreign.npz", "is not among"]),
            ("both.npz", Some("other.npz"), ["other.npz", "none of its classes"]),
            ("both.npz", Some("missing.npz"), ["--holdout-data", "missing.npz"]),
        ] {
            let Err(refused) = run(home.path(), data, holdout) else { panic!("{data} {holdout:?} are taken") };
            let message = refused.to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }
}
