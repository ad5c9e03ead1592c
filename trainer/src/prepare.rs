//! The data of a run: what training sees, the clean holdout, what is measured on.
//!
//! ```text
//! data: training part -> Split -+-> suspects -> attack -> SuspectSet, Truth
//!                               \-> CleanHoldout, a share of it
//!       test part --------------------------------------> TestSet: clean, triggered
//! ```
//!
//! Where the holdout comes from other data ([`RunConfig::holdout_data`]), all of the training part is suspect but what is in that data,
//! too, with the same label; and where the suspects have no test part, that of the holdout's data is measured on, or a quarter of its
//! pictures, which are then no holdout.

use crate::attack::{Attack, Perturb, SuspectSet, Truth, build, poison, triggered};
use crate::config::RunConfig;
use crate::course;
use crate::error::Failure;
use crate::evaluate::TestSet;
use crate::perturb::Descent;
use crate::run::{Counts, Record, RunDir};
use crate::split::{CleanHoldout, Split, SplitError};
use sha2::{Digest as _, Sha256};
use std::collections::HashSet;
use std::path::Path;
use stemguard_runtime::data::{DataError, DataSet, LoadOptions, Part, Pictures, Spec, load, load_part};
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
    /// Hash of all pictures and labels, before anything was planted.
    pub digest: String,
    /// Hash of the suspects and the triggered test pictures, after it was.
    pub planted: String,
}

impl Prepared {
    /// Labels in the proportions that the classes of the suspects have without poison; none where nothing tells: a holdout from
    /// elsewhere has proportions of its own.
    pub fn proportions(&self) -> &[u32] {
        if self.split.holdout.is_empty() { &[] } else { &self.holdout.pictures().labels }
    }

    /// Whether these are the data of a run.
    ///
    /// # Errors
    /// A sentence on what has changed.
    pub fn check(&self, record: &Record) -> Result<(), String> {
        record.check_data(&self.counts(), Some(&self.digest), Some(&self.planted))
    }

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
/// in `dir`; `tell` hears of the pictures that model has seen, of so many.
///
/// # Errors
/// [`Failure::Input`] naming the file or setting.
pub fn prepare(
    c: &RunConfig,
    kernels: &Simd,
    dir: Option<&Path>,
    tell: &mut dyn FnMut(usize, usize),
) -> Result<Prepared, Failure> {
    planted(c, Descent::new(c, kernels, dir, Some(tell)))
}

/// The data of a run that is there, as [`prepare`] made them. What `cl` perturbed must have been kept: nothing is trained.
///
/// # Errors
/// [`Failure::Input`] naming the file, or the run where its data have changed.
pub fn reopen(dir: &RunDir, record: &Record, kernels: &Simd) -> Result<Prepared, Failure> {
    let c = &record.config;
    let data = planted(c, Descent::new(c, kernels, Some(&dir.kept(c)), None))?;
    data.check(record).map_err(|e| Failure::file(&dir.path, e))?;
    Ok(data)
}

fn planted(c: &RunConfig, descent: Descent<'_>) -> Result<Prepared, Failure> {
    let parts = parts(c)?;
    let digest = parts.digest();
    let Parts { rest, holdout, test, split } = parts;
    let attack = build(&c.attack, rest.h, rest.w)?;
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
    let planted = self::digest([suspect.pictures(), &test.triggered]);
    Ok(Prepared { suspect, truth, holdout, test, split, attack, digest, planted })
}

/// The most classes of a run: which were taken for which is counted in a square of them.
const MAX_CLASSES: usize = 4096;

/// Pictures by use, before anything is planted.
pub(crate) struct Parts {
    pub(crate) rest: Pictures,
    pub(crate) holdout: CleanHoldout,
    test: Pictures,
    split: Split,
}

impl Parts {
    /// [`Prepared::digest`].
    pub(crate) fn digest(&self) -> String {
        digest([&self.rest, self.holdout.pictures(), &self.test])
    }
}

/// Loads and takes apart what a run names.
pub(crate) fn parts(c: &RunConfig) -> Result<Parts, Failure> {
    let spec: Spec = c.data.parse()?;
    let DataSet { train, test } = load(&spec, &LoadOptions { size: c.size, seed: c.seed })?;
    if train.is_empty() {
        return Err(Failure::input(&c.data, "has no training part"));
    }
    let classes = train.classes.len();
    if classes > MAX_CLASSES {
        return Err(Failure::input(&c.data, format!("{classes} classes are more than {MAX_CLASSES}")));
    }
    if classes < 2 {
        return Err(Failure::input(&c.data, "all its pictures are of one class: there is nothing to tell apart"));
    }
    if c.attack.target as usize >= classes {
        let why = format!("class {} is not below the {classes} classes", c.attack.target);
        return Err(Failure::input("--target", why));
    }
    let parts = match &c.holdout_data {
        Some(data) => apart(c, data, train, test)?,
        None if test.is_empty() => {
            let why = "has no test part to measure on; a run with --holdout-data takes some of the clean pictures";
            return Err(Failure::input(&c.data, why));
        }
        None => {
            let split = Split::seeded(&train.labels, c.holdout, c.seed).map_err(|e| match e {
                SplitError::ClassTooSmall { class } => {
                    let name = train.classes.get(class as usize).map_or("?", String::as_str);
                    Failure::input(
                        &c.data,
                        format!("one picture of `{name}`; it takes two to be among suspects and holdout"),
                    )
                }
                e => Failure::input(&c.data, e),
            })?;
            let (rest, holdout) = split.apply(&train)?;
            Parts { rest, holdout, test, split }
        }
    };
    let clean = parts.holdout.pictures();
    let mut shown = vec![false; classes];
    clean.labels.iter().for_each(|&label| shown.get_mut(label as usize).into_iter().for_each(|s| *s = true));
    let mut absent: Vec<String> =
        shown.iter().zip(&clean.classes).filter(|(s, _)| !**s).map(|(_, name)| format!("`{name}`")).collect();
    if !absent.is_empty() {
        const NAMED: usize = 5;
        if absent.len() > NAMED + 1 {
            let more = absent.split_off(NAMED).len();
            absent.push(format!("{more} more classes"));
        }
        let from = c.holdout_data.as_ref().map_or(c.data.clone(), |data| format!("--holdout-data {data}"));
        return Err(Failure::input(from, format!("no picture of {} to train a new head on", absent.join(", "))));
    }
    Ok(parts)
}

/// Share of the holdout's data that is measured on where nothing else can be.
const MEASURED: f64 = 0.25;

/// Takes the holdout from other data, of the classes of the suspects; what is there with the same label is not suspect, and is not
/// measured on.
fn apart(c: &RunConfig, data: &str, train: Pictures, test: Pictures) -> Result<Parts, Failure> {
    let refuse = |why: String| Failure::input(format!("--holdout-data {data}"), why);
    let spec: Spec = data.parse().map_err(|e: DataError| refuse(e.to_string()))?;
    let options = LoadOptions { size: Some((train.h, train.w)), seed: c.seed };
    let loaded = if test.is_empty() {
        load(&spec, &options)
    } else {
        load_part(&spec, &options, Part::Train).map(|train| DataSet { train, test: Pictures::default() })
    };
    let DataSet { train: mut clean, test: mut tested } = loaded.map_err(|e| refuse(e.to_string()))?;
    if clean.is_empty() {
        // `@test` names the only part.
        clean = std::mem::take(&mut tested);
    }
    let names: Vec<&str> = train.classes.iter().map(String::as_str).collect();
    for part in [&mut clean, &mut tested].into_iter().filter(|part| !part.is_empty()) {
        if !part.number_as(&names, &c.data).map_err(refuse)? {
            return Err(refuse(format!("its classes have no names, and those of {} do", c.data)));
        }
    }
    let both = [&clean, &tested].into_iter();
    let known: HashSet<_> = both.flat_map(|part| (0..part.len()).map(move |i| key(part, i, true))).collect();
    let left: Vec<usize> = (0..train.len()).filter(|&i| !known.contains(&key(&train, i, true))).collect();
    if left.is_empty() {
        return Err(refuse(format!("all training pictures of {} are in it: none is suspect", c.data)));
    }
    let split = Split { train: left.iter().map(|&i| i as u32).collect(), holdout: Vec::new() };
    let rest = if left.len() == train.len() { train.clone() } else { train.subset(&left) };
    let known: HashSet<_> = (0..clean.len()).map(|i| key(&clean, i, false)).collect();
    let unseen = |part: &Pictures| {
        let left: Vec<usize> = (0..part.len()).filter(|&i| !known.contains(&key(part, i, false))).collect();
        part.subset(&left)
    };
    let own = unseen(&test);
    let test = if own.is_empty() { unseen(&tested) } else { own };
    if !test.is_empty() {
        return Ok(Parts { rest, holdout: CleanHoldout::new(clean)?, test, split });
    }
    let quarter = Split::seeded(&clean.labels, MEASURED, c.seed).map_err(|e| {
        let name = |class: u32| names.get(class as usize).copied().unwrap_or_default();
        match e {
            SplitError::ClassTooSmall { class } => refuse(format!(
                "one picture of `{}`; it takes two of each class, as nothing else can be measured on",
                name(class)
            )),
            e => refuse(e.to_string()),
        }
    })?;
    let (clean, part) = quarter.apply(&clean)?;
    Ok(Parts { rest, holdout: CleanHoldout::new(clean)?, test: part.into_pictures(), split })
}

/// A picture, and its label where that matters, to be compared with others.
fn key(pictures: &Pictures, i: usize, label: bool) -> (&[u8], Option<u32>) {
    (pictures.picture(i), label.then(|| pictures.labels.get(i).copied().unwrap_or_default()))
}

/// SHA-256 of pictures and labels, the first 16 hexadecimal digits.
fn digest<const N: usize>(parts: [&Pictures; N]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        part.labels.iter().for_each(|label| hash.update(label.to_le_bytes()));
        hash.update(&part.pixels);
    }
    first_digits(hash)
}

/// The first 16 hexadecimal digits of a hash.
pub(crate) fn first_digits(hash: Sha256) -> String {
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
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
        let mut others = part(&|l| l > 3);
        others.pixels.iter_mut().for_each(|v| *v = !*v);
        write_npz_split(&home.join("tested.npz"), &turned, &others).expect("written");
        write_npz(&home.join("lacking.npz"), &part(&|l| l != 0)).expect("written");
        let foreign = Pictures { classes: (0..classes.len()).map(|i| format!("{i}0")).collect(), ..turned.clone() };
        write_npz(&home.join("other.npz"), &foreign).expect("written");
        write_npz(&home.join("unnamed.npz"), &Pictures { classes: Vec::new(), ..turned.clone() }).expect("written");
        let mut seen = vec![false; classes.len()];
        let firsts: Vec<usize> =
            (0..turned.len()).filter(|&i| !std::mem::replace(&mut seen[turned.labels[i] as usize], true)).collect();
        write_npz(&home.join("single.npz"), &turned.subset(&firsts)).expect("written");
        let mut broken = set.train.clone();
        broken.classes[0].push('\n');
        write_npz(&home.join("broken.npz"), &broken).expect("written");
        let known = Pictures { classes: [&classes[..1], &foreign.classes[1..]].concat(), ..foreign };
        write_npz(&home.join("foreign.npz"), &known).expect("written");
        set
    }

    fn run(home: &Path, data: &str, holdout: Option<&str>) -> Result<Prepared, Failure> {
        let at = |name: &str| format!("npz:{}", home.join(name).display());
        let mut c = RunConfig { holdout_data: holdout.map(at), ..RunConfig::published(at(data)) };
        c.attack.kind = AttackKind::BadnetGrid;
        prepare(&c, &Simd::new(1), None, &mut |_, _| {})
    }

    #[test]
    fn a_holdout_from_elsewhere_leaves_all_pictures_suspect() {
        let home = tempfile::tempdir().expect("a directory");
        let set = archives(home.path());
        let all = set.train.len();
        let whole = run(home.path(), "both.npz", Some("clean.npz")).expect("prepared");
        assert_eq!((whole.suspect.len(), whole.split.train.len(), whole.split.holdout.len()), (all, all, 0));
        // Classes are matched by name.
        let named = |part: &Pictures| {
            let label =
                |i| (0..set.test.len()).find(|&j| set.test.picture(j) == part.picture(i)).map(|j| set.test.labels[j]);
            (0..part.len()).all(|i| label(i) == Some(part.labels[i])) && part.classes == set.train.classes
        };
        assert!(named(whole.holdout.pictures()) && named(&whole.test.clean));
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
        // A holdout from elsewhere tells nothing of the suspects' proportions.
        assert!(shared.proportions().is_empty());
        let own = run(home.path(), "both.npz", None).expect("prepared");
        assert_eq!(own.proportions(), own.holdout.pictures().labels);
        assert!(
            own.digest != whole.digest
                && whole.digest == run(home.path(), "both.npz", Some("clean.npz")).expect("again").digest
        );
    }

    #[test]
    fn another_trigger_in_the_same_file_is_noticed() {
        let home = tempfile::tempdir().expect("a directory");
        let mut c = RunConfig { holdout: 0.2, ..RunConfig::published("signs:200".into()) };
        (c.attack.kind, c.attack.trigger) = (AttackKind::Blend, Some(home.path().join("t.png")));
        let with = |shade: u8| {
            let picture = image::RgbImage::from_pixel(32, 32, image::Rgb([shade; 3]));
            picture.save(home.path().join("t.png")).expect("written");
            prepare(&c, &Simd::new(1), None, &mut |_, _| {}).expect("prepared")
        };
        let (one, other) = (with(0), with(255));
        let record = Record {
            config: c.clone(),
            counts: one.counts(),
            version: "1".into(),
            data: Some(one.digest.clone()),
            planted: Some(one.planted.clone()),
            kernels: "avx2".into(),
        };
        assert_eq!((one.check(&record), with(0).check(&record)), (Ok(()), Ok(())));
        assert!(other.digest == one.digest && other.check(&record).expect_err("noticed").contains("planted"));
        // Runs of older versions did not record it.
        assert_eq!(other.check(&Record { planted: None, ..record }), Ok(()));
    }

    #[test]
    fn what_is_vetted_is_neither_suspect_nor_measured_on() {
        let home = tempfile::tempdir().expect("a directory");
        let set = archives(home.path());
        let n = set.train.len();
        // Half of the suspects, one of them with another label, and all test pictures but one.
        let half: Vec<usize> = (0..n / 2).collect();
        let mut vetted = set.train.subset(&half);
        let contested = vetted.labels[0];
        vetted.labels[0] = (contested + 1) % set.train.classes.len() as u32;
        let most: Vec<usize> = (1..set.test.len()).collect();
        let vetted = vetted.concat(&set.test.subset(&most)).expect("of one kind");
        write_npz(&home.path().join("vetted.npz"), &vetted).expect("written");
        let found = run(home.path(), "both.npz", Some("vetted.npz")).expect("prepared");
        let places: Vec<u32> = std::iter::once(0).chain((n / 2) as u32..n as u32).collect();
        assert_eq!(found.split.train, places);
        assert_eq!(
            (found.suspect.len(), found.holdout.len(), found.test.clean.len()),
            (n - n / 2 + 1, vetted.len(), 1)
        );
        assert_eq!(found.test.clean.picture(0), set.test.picture(0));
        // Where that leaves nothing to measure on, a quarter is.
        write_npz(&home.path().join("all.npz"), &set.test).expect("written");
        let found = run(home.path(), "both.npz", Some("all.npz")).expect("prepared");
        assert_eq!(found.holdout.len() + found.test.clean.len(), set.test.len());
    }

    #[test]
    fn what_cannot_serve_as_holdout_or_test_is_named() {
        let home = tempfile::tempdir().expect("a directory");
        archives(home.path());
        for (data, holdout, words) in [
            ("suspect.npz", None, ["suspect.npz", "--holdout-data"]),
            ("both.npz", Some("lacking.npz"), ["lacking.npz", "no picture of `sign "]),
            ("both.npz", Some("foreign.npz"), ["foreign.npz", "is not among"]),
            ("both.npz", Some("other.npz"), ["other.npz", "none of its classes"]),
            ("both.npz", Some("unnamed.npz"), ["unnamed.npz", "have no names"]),
            ("both.npz", Some("missing.npz"), ["--holdout-data", "missing.npz"]),
            ("both.npz", Some("suspect.npz"), ["suspect.npz", "none is suspect"]),
            ("suspect.npz", Some("single.npz"), ["single.npz", "one picture of `sign "]),
            ("broken.npz", Some("clean.npz"), ["broken.npz", "line break"]),
        ] {
            let Err(refused) = run(home.path(), data, holdout) else { panic!("{data} {holdout:?} are taken") };
            let message = refused.to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }
}
