//! The decision by numbers, and a device whose holdout is bad: it must not get worse.

use super::*;
use crate::artifact::{HeadKind, head_params};
use crate::head::HeadModel;
use crate::head::linear::Linear;
use crate::kernels::reference::Reference;
use crate::net::Span;
use crate::net::tests::cases;
use crate::replace::{FeatureBank, Settings, fit, memory_len};
use crate::rng::Rng;
use crate::shape::Shape;
use crate::slots::tests::flash::Flash;
use crate::slots::{Boot, HeadStore, Layout, StemId};
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

const SHAPE: Shape = Shape::new(2, 2, 6);
const CLASSES: usize = 4;

#[test]
fn a_head_must_be_shown_to_be_as_good() {
    let all = |n, cases, lost, gained| decide(&vec![Paired { cases, lost, gained }; n], MARGIN);
    assert_eq!(decide(&[], 1.0), Verdict::Reject);
    assert_eq!(all(4, 0, 0, 0), Verdict::Reject);
    // As told in the documentation.
    for (n, enough) in [(4, 22), (10, 13), (43, 6)] {
        assert_eq!(
            (all(n, enough - 1, 0, 0), all(n, enough, 0, 0)),
            (Verdict::Reject, Verdict::Confirm),
            "{n} classes"
        );
    }
    assert_eq!((all(4, 100, 5, 0), all(4, 100, 5, 5), all(4, 100, 5, 10)), {
        (Verdict::Reject, Verdict::Confirm, Verdict::Confirm)
    });
    // One class lost out of ten, nine pictures in a thousand.
    let mut rare = vec![Paired { cases: 110, lost: 0, gained: 0 }; 10];
    rare[3] = Paired { cases: 9, lost: 9, gained: 0 };
    assert_eq!((decide(&rare, MARGIN), decide(&rare, 0.2)), (Verdict::Reject, Verdict::Confirm));
    // A class that was never kept.
    rare[3] = Paired::default();
    assert_eq!(decide(&rare, MARGIN), Verdict::Reject);
}

#[test]
fn heads_and_pictures_that_do_not_fit_are_refused() {
    let of = |kind, features, classes| {
        let len = head_params(kind, features, classes);
        (HeadSpec { kind, features, classes, span: Span { at: 0, len: len as u32 } }, vec![0.0; len])
    };
    let new = of(HeadKind::Linear, SHAPE, 4);
    let new = (&new.0, &new.1[..]);
    let mut counts = [Paired { cases: 9, lost: 9, gained: 9 }; 4];
    for bad in [of(HeadKind::Linear, SHAPE, 3), of(HeadKind::Linear, Shape::new(2, 2, 5), 4)] {
        let refused = SelfTest::new(Some((&bad.0, &bad.1)), new, &mut counts).err();
        assert_eq!(refused, Some(Error::HeadDoesNotFit));
    }
    let refused = SelfTest::new(None, new, &mut counts[1..]).err();
    assert_eq!(refused, Some(Error::WrongLength { needed: 4, given: 3 }));

    // The old head knows class 0 alone, and its parameters may be of another kind; the new one answers with NaN.
    let old = of(HeadKind::Residual, SHAPE, 4);
    let mut broken = new.1.to_vec();
    broken[0] = f32::NAN;
    let mut test = SelfTest::new(Some((&old.0, &old.1)), (new.0, &broken), &mut counts).unwrap();
    let (x, mut logits) = (vec![1.0; SHAPE.len()], [0.0; 8]);
    let mut scratch = vec![0.0; head::inference_len(&old.0, 1).unwrap()];
    assert_eq!(test.picture(&Reference, &x, 0, &mut scratch, &mut logits), Ok(()));
    assert_eq!(test.picture(&Reference, &x, 1, &mut scratch, &mut logits), Ok(()));
    // The old head's logits, then the new one's.
    assert!(logits[..4].iter().all(|v| v.is_finite()) && logits[4].is_nan(), "{logits:?}");
    let error = Error::LabelOutOfRange { label: 4, classes: 4 };
    assert_eq!(test.picture(&Reference, &x, 4, &mut scratch, &mut logits), Err(error));
    let nan = vec![f32::NAN; SHAPE.len()];
    assert_eq!(test.picture(&Reference, &nan, 0, &mut scratch, &mut logits), Err(Error::NotFinite));
    assert!(matches!(test.picture(&Reference, &x, 0, &mut [], &mut logits), Err(Error::WrongLength { .. })));
    assert!(matches!(test.picture(&Reference, &x, 0, &mut scratch, &mut []), Err(Error::WrongLength { .. })));
    assert_eq!(test.verdict(MARGIN), Verdict::Reject);
    let count = |cases, lost| Paired { cases, lost, gained: 0 };
    assert_eq!(counts, [count(1, 1), count(1, 0), count(0, 0), count(0, 0)]);

    // Without an old head there is nothing to lose.
    let mut test = SelfTest::new(None, new, &mut counts).unwrap();
    for i in 0..100 {
        test.picture(&Reference, &x, i % 4, &mut scratch, &mut logits).unwrap();
    }
    assert_eq!(test.verdict(MARGIN), Verdict::Confirm);
    assert_eq!(counts[..2], [Paired { cases: 25, lost: 0, gained: 25 }, count(25, 0)]);
}

proptest! {
    #![proptest_config(cases(500))]

    /// A loss less never harms, a wider margin never rejects what a narrower one confirms, and nothing is confirmed that was
    /// counted as worse by more than the margin.
    #[test]
    fn the_decision_is_monotone(
        counts in prop::collection::vec((0u32..200, 0u32..200, 0u32..200), 1..20),
        which: prop::sample::Index,
        margin in 0.0f32..0.5,
    ) {
        let paired = |&(both, lost, gained): &(u32, u32, u32)| Paired { cases: both + lost + gained, lost, gained };
        let classes: Vec<Paired> = counts.iter().map(paired).collect();
        let i = which.index(classes.len());
        if decide(&classes, margin) == Verdict::Confirm {
            prop_assert_eq!(decide(&classes, margin + 0.1), Verdict::Confirm);
            let mut better = classes.clone();
            if better[i].lost > 0 {
                better[i].lost -= 1;
                prop_assert_eq!(decide(&better, margin), Verdict::Confirm);
            }
        }
        let mean: f64 = classes.iter()
            .map(|c| (f64::from(c.gained) - f64::from(c.lost)) / (f64::from(c.cases) + 2.0))
            .sum::<f64>() / classes.len() as f64;
        prop_assert!(mean >= -f64::from(margin) - 1e-6 || decide(&classes, margin) == Verdict::Reject);
    }
}

/// Labelled features.
#[derive(Clone, Default)]
struct Set {
    x: Vec<f32>,
    labels: Vec<u32>,
}

impl Set {
    /// `counts[k]` pictures of each class: a pattern of the class, and noise.
    fn draw(rng: &mut Rng, counts: [usize; CLASSES]) -> Self {
        let mut patterns = Rng::new(77, 0);
        let patterns: Vec<f32> = (0..CLASSES * SHAPE.c as usize).map(|_| 0.6 * patterns.normal()).collect();
        let mut set = Self::default();
        for (class, pattern) in patterns.chunks_exact(SHAPE.c as usize).enumerate() {
            for _ in 0..counts[class] {
                set.x.extend((0..SHAPE.len()).map(|i| pattern[i % pattern.len()] + 0.8 * rng.normal()));
                set.labels.push(class as u32);
            }
        }
        set
    }

    fn even(rng: &mut Rng, n: usize) -> Self {
        Self::draw(rng, [n; CLASSES])
    }

    fn repeated(self, times: usize) -> Self {
        Self { x: self.x.repeat(times), labels: self.labels.repeat(times) }
    }

    /// Gives some labels at random: a share in tenths.
    fn mislabelled(mut self, rng: &mut Rng, tenths: usize) -> Self {
        for label in &mut self.labels {
            if rng.below(10) < tenths {
                *label = (*label + 1 + rng.below(CLASSES - 1) as u32) % CLASSES as u32;
            }
        }
        self
    }

    fn pictures(&self) -> impl Iterator<Item = (&[f32], u32)> {
        self.x.chunks_exact(SHAPE.len()).zip(self.labels.iter().copied())
    }
}

fn train(set: &Set, seed: u64) -> Result<Vec<f32>> {
    let head = Linear::new(SHAPE, CLASSES)?;
    let settings = Settings { epochs: 30, batch: 16, seed, ..Settings::LINEAR };
    let mut params = vec![0.0; head.params()];
    let mut memory = vec![0.0; memory_len(&head, settings.batch)];
    let mut order = vec![0; 2 * set.labels.len()];
    let mut bank = FeatureBank::new(&set.x, &set.labels, SHAPE, 1)?;
    let mut go_on = |_| true;
    fit(&Reference, &head, &settings, &mut bank, &mut params, &mut memory, &mut [], &mut order, &mut go_on)?;
    Ok(params)
}

fn accuracy(head: Head<'_>, set: &Set) -> f64 {
    let (mut scratch, mut logits) = (vec![0.0; head::inference_len(head.0, 1).unwrap()], [0.0; CLASSES]);
    let right = set.pictures().filter(|&(x, label)| {
        head::infer(&Reference, head.0, head.1, 1, x, &mut scratch, &mut logits).unwrap();
        argmax(&logits) == label as usize
    });
    right.count() as f64 / set.labels.len() as f64
}

/// What is wrong with a holdout.
const FAULTS: [&str; 8] = [
    "nothing",
    "10 % wrong labels",
    "60 % wrong labels",
    "two classes swapped",
    "a missing class",
    "a near-empty class",
    "a near-empty class, 10 % wrong labels",
    "three pictures a class, over and over",
];

fn holdout(fault: usize, rng: &mut Rng) -> Set {
    let few = [40, 40, 1, 40];
    match fault {
        0 => Set::even(rng, 40),
        1 => Set::even(rng, 40).mislabelled(rng, 1),
        2 => Set::even(rng, 40).mislabelled(rng, 6),
        3 => {
            let mut set = Set::even(rng, 40);
            set.labels.iter_mut().for_each(|label| *label = [0, 2, 1, 3][*label as usize]);
            set
        }
        4 => Set::draw(rng, [40, 40, 0, 40]),
        5 => Set::draw(rng, few),
        6 => {
            let clean = Set::draw(rng, [0, 0, 1, 0]);
            let rest = Set::draw(rng, [40, 40, 0, 40]).mislabelled(rng, 1);
            Set { x: [clean.x, rest.x].concat(), labels: [clean.labels, rest.labels].concat() }
        }
        _ => Set::even(rng, 3).repeated(14),
    }
}

/// A device as firmware drives it: boots, trains on what it was given, stores, boots into the trial, decides; and what it runs
/// from then on, after one more boot.
fn update(flash: &mut Flash<1, 4, 1024>, holdout: &Set, kept: &Set, seed: u64) -> (Vec<f32>, Option<Verdict>) {
    let layout = Layout { slots: [0, 1024], len: 1024 };
    let stem = StemId { digest: [3; 32], features: SHAPE };
    let mut store = HeadStore::new_checked(flash, layout, stem).unwrap();
    let mut verdict = None;
    if let Ok(params) = train(holdout, seed) {
        store.store(HeadKind::Linear, CLASSES as u32, &params).unwrap();
        let Ok(Boot::Trial { new, old }) = store.boot() else { panic!("no trial") };
        let mut load = |head| {
            let mut params = vec![0.0; params.len()];
            store.load(&head, &mut params).unwrap();
            (head.spec(), params)
        };
        let (new, old) = (load(new), old.map(&mut load));
        let mut counts = [Paired::default(); CLASSES];
        let old = old.as_ref().map(|(spec, params)| (spec, &params[..]));
        let mut test = SelfTest::new(old, (&new.0, &new.1), &mut counts).unwrap();
        let mut scratch = vec![0.0; head::inference_len(&new.0, 1).unwrap()];
        for (x, label) in kept.pictures() {
            test.picture(&Reference, x, label, &mut scratch, &mut [0.0; 2 * CLASSES]).unwrap();
        }
        verdict = Some(test.verdict(MARGIN));
        match test.verdict(MARGIN) {
            Verdict::Confirm => store.confirm().map(Some).unwrap(),
            Verdict::Reject => store.reject().unwrap(),
        };
    }
    let Ok(Boot::Confirmed(head)) = store.boot() else { panic!("no confirmed head") };
    let mut params = vec![0.0; head.spec().span.len as usize];
    store.load(&head, &mut params).unwrap();
    (params, verdict)
}

#[test]
fn a_bad_holdout_does_not_make_a_worse_device() {
    let (mut confirmed, mut rejected, mut refused) = ([0; FAULTS.len()], [0; FAULTS.len()], [0; FAULTS.len()]);
    let (mut worst, mut worst_untested) = (0.0f64, 0.0f64);
    let span = Span { at: 0, len: head_params(HeadKind::Linear, SHAPE, CLASSES as u32) as u32 };
    let spec = HeadSpec { kind: HeadKind::Linear, features: SHAPE, classes: CLASSES as u32, span };
    let rounds = 16;
    for seed in 0..rounds {
        let mut rng = Rng::new(seed, 5);
        let test = Set::even(&mut rng, 500);
        let factory = Set::even(&mut rng, 40);
        // Kept pictures: sound, or labelled as badly as the holdout may be.
        let sound = Set::even(&mut rng, 40);
        let faulty = Set::even(&mut rng, 30).mislabelled(&mut rng, 1);
        for (fault, name) in FAULTS.iter().enumerate() {
            let holdout = holdout(fault, &mut rng);
            for kept in [&sound, &faulty] {
                let mut flash = Flash::new(2, false, seed);
                let (before, first) = update(&mut flash, &factory, &sound, seed);
                assert_eq!(first, Some(Verdict::Confirm));
                let (after, verdict) = update(&mut flash, &holdout, kept, seed);
                *match verdict {
                    Some(Verdict::Confirm) => &mut confirmed[fault],
                    Some(Verdict::Reject) => &mut rejected[fault],
                    None => &mut refused[fault],
                } += 1;
                assert!(verdict == Some(Verdict::Confirm) || after == before, "{name}: the old head is not back");
                let acc = accuracy((&spec, &before), &test);
                let change = accuracy((&spec, &after), &test) - acc;
                worst = worst.min(change);
                assert!(change >= -f64::from(MARGIN), "{name}, seed {seed}: {change:.3} after {verdict:?}");
                if let Ok(params) = train(&holdout, seed) {
                    worst_untested = worst_untested.min(accuracy((&spec, &params), &test) - acc);
                }
            }
        }
    }
    std::println!("worst change {worst:.3}; without the decision {worst_untested:.3}");
    for (i, name) in FAULTS.iter().enumerate() {
        std::println!("{name}: {} confirmed, {} rejected, {} refused", confirmed[i], rejected[i], refused[i]);
    }
    let of = 2 * rounds as usize;
    assert!(worst_untested < -0.2, "no holdout here is bad: {worst_untested:.3}");
    assert!(confirmed[0] * 2 > of && confirmed[1] > 0, "good heads are rejected: {confirmed:?} of {of}");
    assert_eq!((rejected[2], rejected[3], refused[4]), (of, of, of));
}
