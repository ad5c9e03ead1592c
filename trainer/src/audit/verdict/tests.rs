//! The verdict on signals made up for it.

use super::*;
use stemguard_runtime::rng::Rng;

#[test]
fn ties_share_their_mean_and_what_is_no_number_has_some_rank() {
    assert_eq!(ranks(&[2.0, 1.0, 2.0, 3.0]), [1.5, 0.0, 1.5, 3.0]);
    let mut odd = ranks(&[f64::NAN, 1.0, f64::NAN]);
    odd.sort_by(f64::total_cmp);
    assert_eq!(odd, [0.0, 1.0, 2.0]);
}

/// Pictures of ten classes whose heads agree as those of a clean run do; of the first `poisoned` of class 3 the trapped head is
/// sure and the new one is not.
fn suspects(n: usize, poisoned: usize, seed: u64) -> (Signals, Vec<u32>) {
    let mut rng = Rng::new(seed, 0);
    let mut s = Signals::default();
    let labels: Vec<u32> = (0..n).map(|i| if i < poisoned { 3 } else { (i % 10) as u32 }).collect();
    let share = |z: f32| 1.0 / (1.0 + (-z).exp());
    for (i, &label) in labels.iter().enumerate() {
        let ease = 1.5 * rng.normal() + 1.0;
        let (sure, known, soon) = if i < poisoned { (6.0, -2.5, 2.0) } else { (ease + 1.0, ease, ease - 2.0) };
        let confidence = sure + 0.6 * rng.normal();
        let new = share(known + 0.8 * rng.normal());
        s.confidence.push(confidence);
        s.new_probability.push(new);
        s.disagreement.push(share(confidence) - new);
        s.early.push(soon + 0.5 * rng.normal());
        s.late.push(soon + 2.0 + 0.5 * rng.normal());
        s.swing.push(1.0 + 0.3 * rng.normal());
        s.survival.push(share(if i < poisoned { 3.0 } else { 1.5 * rng.normal() - 1.5 }));
        s.new_label.push(label);
    }
    (s, labels)
}

/// Labels of a holdout of `n` pictures, spread evenly over ten classes.
fn even(n: u32) -> Vec<u32> {
    (0..n).map(|i| i % 10).collect()
}

/// The classes named.
fn named(v: &Verdict) -> Vec<u32> {
    v.classes.iter().filter(|c| c.suspected).map(|c| c.class).collect()
}

#[test]
fn clean_suspects_are_not_accused() {
    for seed in 0..20 {
        let (s, labels) = suspects(3000, 0, seed);
        let v = judge(&s, &labels, &even(250), 10, None);
        assert!(v.classes.iter().all(|c| !c.suspected), "{:?}", v.classes);
        assert!(v.accused.iter().all(|&a| !a));
    }
}

#[test]
fn poison_names_its_class_and_itself() {
    for (poisoned, seed) in [(300, 1), (120, 2), (60, 3)] {
        let (s, labels) = suspects(3000, poisoned, seed);
        let v = judge(&s, &labels, &even(250), 10, None);
        assert_eq!(named(&v), [3], "{:?}", v.classes);
        let caught = v.accused[..poisoned].iter().filter(|&&a| a).count();
        let wrong = v.accused[poisoned..].iter().filter(|&&a| a).count();
        assert!(caught * 100 >= poisoned * 95 && wrong <= 30, "{caught} of {poisoned}, {wrong} wrong");
    }
}

#[test]
fn poison_that_was_not_learnt_is_told_from_the_clean_pictures_above_it() {
    for seed in 0..5 {
        let (mut s, labels) = suspects(3000, 300, seed);
        for i in 0..300 {
            // Mislabelled and no more: both heads doubt the label alike, at no time was it fitted.
            s.confidence[i] -= 9.0;
            s.new_probability[i] *= 0.1;
            s.disagreement[i] = 1.0 / (1.0 + (-s.confidence[i]).exp()) - s.new_probability[i];
            s.early[i] -= 5.0;
            s.late[i] -= 7.0;
        }
        let v = judge(&s, &labels, &even(250), 10, None);
        assert_eq!(named(&v), [3], "{:?}", v.classes);
        let caught = v.accused[..300].iter().filter(|&&a| a).count();
        let wrong = v.accused[300..].iter().filter(|&&a| a).count();
        assert!(caught >= 285 && wrong <= 30, "{caught} of 300, {wrong} wrong");
        assert_eq!(v.classes[3].accused, caught + wrong);
    }
}

/// Poison that is mislabelled and no more, in signals as those of WaNet on CIFAR-10: fitted somewhat worse than other pictures, and
/// doubted by the new head alone.
#[test]
fn poison_that_only_the_new_head_doubts_is_found_by_its_doubt() {
    for seed in 0..5 {
        let (mut s, labels) = suspects(3000, 300, seed);
        let mut rng = Rng::new(seed, 2);
        let share = |z: f32| 1.0 / (1.0 + (-z).exp());
        for i in 0..300 {
            let fit = 1.8 * rng.normal();
            s.confidence[i] = fit + 1.2;
            s.new_probability[i] = share(0.8 * rng.normal() - 3.5);
            s.disagreement[i] = share(s.confidence[i]) - s.new_probability[i];
            s.early[i] = fit - 2.0 + 0.5 * rng.normal();
            s.late[i] = fit + 0.5 * rng.normal();
            s.survival[i] = share(1.5 * rng.normal() - 1.5);
        }
        let v = judge(&s, &labels, &even(250), 10, None);
        assert_eq!(named(&v), [3], "{:?}", v.classes);
        let caught = v.accused[..300].iter().filter(|&&a| a).count();
        let wrong = v.accused[300..].iter().filter(|&&a| a).count();
        assert!(caught >= 285 && wrong <= 20, "{caught} of 300, {wrong} wrong");
    }
}

/// Classes whose heads agree more or less, and poison that the new head half believes in.
fn weakly_poisoned(seed: u64) -> (Signals, Vec<u32>) {
    let (mut s, labels) = suspects(3000, 500, seed);
    let share = |z: f32| 1.0 / (1.0 + (-z).exp());
    let mut rng = Rng::new(seed, 1);
    for (i, &label) in labels.iter().enumerate() {
        let ease = 1.5 * rng.normal() + 1.0;
        let poison = if i < 500 { 1.0 } else { 0.0 };
        let noise = 0.5 + 0.15 * label as f32;
        s.confidence[i] = ease + 1.0 + 2.0 * poison + 0.6 * rng.normal();
        s.new_probability[i] = share(ease - 3.5 * poison + noise * rng.normal());
        s.disagreement[i] = share(s.confidence[i]) - s.new_probability[i];
        s.early[i] = ease - 2.0 + 2.0 * poison + 0.5 * rng.normal();
        s.late[i] = ease + 0.5 * rng.normal();
    }
    (s, labels)
}

#[test]
fn a_hint_and_too_many_pictures_name_a_class_together() {
    // Of the first seeds those whose agreement is low enough to hint at the class, and not to name it.
    for seed in [0, 2, 5] {
        let (s, labels) = weakly_poisoned(seed);
        let without = judge(&s, &labels, &[], 10, None);
        assert!(named(&without).is_empty() && without.classes[3].p_value <= HINT, "{:?}", without.classes);
        assert!(without.accused.iter().all(|&a| !a) && without.classes.iter().all(|c| c.excess == 0.0));
        let v = judge(&s, &labels, &even(250), 10, None);
        assert_eq!(named(&v), [3], "{:?}", v.classes);
        let caught = v.accused[..500].iter().filter(|&&a| a).count();
        let wrong = v.accused[500..].iter().filter(|&&a| a).count();
        assert!(caught >= 475 && wrong <= 10, "{caught} of 500, {wrong} wrong");
    }
}

/// Whether the first `poisoned` are accused, and who else is: shares of the former, and a count.
fn caught(v: &Verdict, poisoned: usize) -> (f64, usize) {
    let count = |of: &[bool]| of.iter().filter(|&&a| a).count();
    (count(&v.accused[..poisoned]) as f64 / poisoned as f64, count(&v.accused[poisoned..]))
}

#[test]
fn an_earlier_verdict_stands_where_it_is_to() {
    let (s, labels) = weakly_poisoned(0);
    let earlier = judge(&s, &labels, &even(250), 10, None);
    let with = |stands| judge(&s, &labels, &[], 10, Some(Prior { verdict: &earlier, stands }));
    assert_eq!((named(&earlier), named(&with(false)), named(&with(true))), (vec![3], vec![], vec![3]));
    let (share, wrong) = caught(&with(true), 500);
    assert!(share >= 0.95 && wrong <= 10, "{share}, {wrong} wrong");
}

/// Poison that was fitted soonest, and unlearned since: what speaks for it early speaks against it late, no sum of the two tells it,
/// and the class falls into two groups in another way, too.
#[test]
fn an_earlier_verdict_leads_to_what_has_been_unlearned_since() {
    let (s, labels) = suspects(3000, 300, 1);
    let history = |shift: f32| {
        let mut rng = Rng::new(2, 0);
        let level = vec![0.0; 3000];
        let fits = |sign: f32, rng: &mut Rng| -> Vec<f32> {
            (0..3000).map(|i| rng.normal() + if i < 300 { sign * shift } else { 0.0 }).collect()
        };
        let (early, late) = (fits(1.0, &mut rng), fits(-1.0, &mut rng));
        let flat = || level.clone();
        let signals = Signals {
            confidence: flat(),
            disagreement: flat(),
            new_probability: flat(),
            survival: flat(),
            ..s.clone()
        };
        let swing = (0..3000).map(|i| rng.normal() + if labels[i] == 3 && i % 2 == 0 { shift } else { 0.0 }).collect();
        Signals { early, late, swing, ..signals }
    };
    let unlearnt = history(4.0);
    let alone = judge(&unlearnt, &labels, &even(250), 10, None);
    let (share, _) = caught(&alone, 300);
    assert!(named(&alone) == [3] && share < 0.8, "it would do alone: {share}");
    // An earlier verdict, wrong about a tenth of each group, and sure of nothing.
    let mut earlier = alone;
    let class = earlier.classes[3].class;
    for (i, accused) in earlier.accused.iter_mut().enumerate() {
        *accused = labels[i] == class && ((i < 300) != (i % 10 == 0));
        earlier.score[i] = if *accused { 0.75 } else { 0.25 };
    }
    for stands in [false, true] {
        let v = judge(&unlearnt, &labels, &even(250), 10, Some(Prior { verdict: &earlier, stands }));
        let (share, wrong) = caught(&v, 300);
        assert!(share >= 0.98 && wrong <= 10, "{share}, {wrong} wrong");
        // Not accused before, beyond doubt now.
        let mean = if stands { 0.625 } else { 1.0 };
        assert!((v.score[0] - mean).abs() < 0.01, "{}", v.score[0]);
    }
}

#[test]
fn too_many_pictures_alone_name_no_class() {
    for seed in 0..20 {
        let (s, mut labels) = suspects(3000, 0, seed);
        // A class three times as large as in the holdout, of pictures like any other.
        labels.iter_mut().filter(|l| **l == 4 || **l == 5).for_each(|l| *l = 3);
        let v = judge(&s, &labels, &even(250), 10, None);
        assert!(v.classes[3].excess > 4.0 && named(&v).is_empty(), "{:?}", v.classes);
    }
}

#[test]
fn small_single_and_empty_classes_are_left_alone() {
    let (s, labels) = suspects(200, 0, 4);
    assert!(judge(&s, &labels, &even(90), 12, None).classes.iter().all(|c| !c.suspected));
    let one = vec![0; 200];
    assert!(judge(&s, &one, &[0; 20], 1, None).classes.iter().all(|c| !c.suspected));
    assert!(judge(&Signals::default(), &[], &[2], 3, None).accused.is_empty());
}

/// In how many of `draws` somebody is named, of clean classes of 400 pictures whose discord and splits are spread normally, by
/// `spread` times the least spread, beside what sampling adds.
fn named_by_chance(classes: usize, spread: f64, draws: usize) -> usize {
    let mut rng = Rng::new(9, classes as u64);
    let sampling = [1.06 / 397f64.sqrt(), 0.25 / 20.0];
    let mut test = |least: f64, sampling: f64| {
        let mut normal = |deviation: f64| f64::from(rng.normal()) * deviation;
        let values: Vec<Option<f64>> = (0..classes).map(|_| Some(normal(spread * least) + normal(sampling))).collect();
        stand_out(&values, least, |_| sampling)
    };
    let mut draw = || {
        let discord = test(LEAST_SPREAD[0], sampling[0]);
        let splits: [_; 4] = std::array::from_fn(|_| test(LEAST_SPREAD[1], sampling[1]));
        (0..classes).any(|c| chance(discord[c], splits.each_ref().map(|s| s[c]), classes as f64) <= SIGNIFICANCE)
    };
    (0..draws).filter(|_| draw()).count()
}

#[test]
fn clean_classes_are_named_as_rarely_as_the_significance_says() {
    // At the significance a thousandth of the draws; one half more is beyond what so many would miss it by.
    for (classes, draws, most) in [(4, 20_000, 30), (5, 20_000, 30), (10, 20_000, 30), (43, 3_000, 7)] {
        let named = named_by_chance(classes, 1.0, draws);
        assert!(named <= most, "{classes} classes: {named} of {draws}");
    }
    // Farther apart than that it is not kept, as its documentation says.
    let named = [4, 10].map(|classes| named_by_chance(classes, 1.67, 20_000));
    assert!((100..=300).contains(&named[0]) && (300..=800).contains(&named[1]), "{named:?}");
}

#[test]
fn a_deviation_of_few_others_counts_for_more_and_of_two_for_nothing() {
    let values: Vec<Option<f64>> = [0.1, 0.9, 0.5].map(Some).to_vec();
    for n in 1..=3 {
        assert!(stand_out(&values[..n], 0.012, |_| 0.002).iter().all(|&s| s == (0.0, 0.0)), "{n} classes tell nothing");
    }
    // Nine others or more: the robust deviation as it is.
    let ten: Vec<Option<f64>> = (0..10).map(|i| Some(f64::from(i))).collect();
    let (by, z) = stand_out(&ten, 0.0, |_| 0.0)[9];
    assert!((by - 5.0).abs() < 1e-12 && (z - 5.0 / (2.0 * 1.4826)).abs() < 1e-9, "{by} {z}");
    let five: Vec<Option<f64>> = ten[..5].to_vec();
    let (_, z) = stand_out(&five, 0.0, |_| 0.0)[4];
    assert!((z - 2.0 / (1.4826 * 2.0 / (13.0 / 9.0))).abs() < 1e-9, "{z}");
}

#[test]
fn ranks_and_tails_are_the_known_ones() {
    assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [2.5, 0.0, 2.5, 1.0]);
    assert!((rank_correlation(&[1.0, 2.0, 3.0], &[10.0, 30.0, 20.0]) - 0.5).abs() < 1e-12);
    assert_eq!(rank_correlation(&[1.0, 1.0], &[1.0, 2.0]), 0.0);
    // Standard normal table.
    for (z, p) in [(0.0, 0.5), (1.0, 0.158_655), (1.96, 0.024_998), (3.0, 0.001_349_9), (6.0, 9.866e-10)] {
        assert!((upper_tail(z) - p).abs() <= 0.03 * p, "{z}: {}", upper_tail(z));
    }
    assert!((upper_tail(-1.0) - 0.841_345).abs() < 1e-5);
    // Chi squared with four degrees of freedom, of -2 ln(0.05 * 0.05), and a product that is 0.
    assert!((together(0.05, 0.05) - 2.0 * 0.017_478_7).abs() < 1e-6);
    assert!(together(0.05, 0.0) < 1e-100);
}
