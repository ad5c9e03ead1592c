//! Power cuts: at every word written and every sector erased, torn in every way, on flashes of several geometries.

use super::flash::{Flash, Tear};
use super::*;
use crate::net::tests::cases;
use proptest::prelude::*;

/// What becomes of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Confirm,
    Reject,
    /// No answer: the boot after the trial decides.
    Hang,
}

/// How far an update came before power went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Stage {
    Storing,
    Booting,
    Settling,
    Done,
}

/// Stores head `n`, boots into its trial, settles it.
fn update<F: NorFlash>(flash: &mut F, n: u64, end: End) -> Stage {
    let mut store = open(flash);
    if store.store(HeadKind::Linear, CLASSES, &params(n)).is_err() {
        return Stage::Storing;
    }
    if store.boot().is_err() {
        return Stage::Booting;
    }
    let settled = match end {
        End::Confirm => store.confirm_watched(n as f32).is_ok(),
        End::Reject => store.reject().is_ok(),
        End::Hang => store.boot().is_ok(),
    };
    if settled { Stage::Done } else { Stage::Settling }
}

/// What a device runs after a boot: a head's number (0: the artifact's own), and whether it is on trial. The head must be whole, and
/// have its threshold if it is confirmed.
fn boot<F: NorFlash>(flash: &mut F, known: &[u64]) -> (u64, bool) {
    let mut store = open(flash);
    let (head, on_trial) = match store.boot().expect("power is on") {
        Boot::Factory => return (0, false),
        Boot::Confirmed(head) => (head, false),
        Boot::Trial { new, .. } => (new, true),
    };
    let held = load(&mut store, head);
    let n = *known.iter().find(|&&n| params(n) == held).expect("the head is one that was stored");
    assert_eq!(store.threshold(&head), (!on_trial).then_some(n as f32), "the threshold of head {n}");
    (n, on_trial)
}

/// Heads that may run after an update that came to `stage`: confirmed or not, and on trial or not.
fn allowed(stage: Stage, end: End, old: u64, new: u64) -> Vec<(u64, bool)> {
    match (stage, end) {
        // The last word may have been written whole.
        (Stage::Storing, _) | (Stage::Booting, _) => vec![(old, false), (new, true)],
        (Stage::Settling, End::Confirm) => vec![(old, false), (new, false)],
        (Stage::Settling, _) | (Stage::Done, End::Reject | End::Hang) => vec![(old, false)],
        (Stage::Done, End::Confirm) => vec![(new, false)],
    }
}

/// Cuts an update short at every step, in every way: the cut points tried, and those after which the device ran the old or the
/// new head, whole, and took a following update.
fn survive<const R: usize, const W: usize, const E: usize>(ecc: bool, before: u64, end: End) -> (u32, u32) {
    let mut start = Flash::<R, W, E>::new(sectors::<Flash<R, W, E>>(), ecc, 1);
    for n in 1..=before {
        assert_eq!(update(&mut start, n, End::Confirm), Stage::Done);
    }
    let mut whole = start.clone();
    assert_eq!(update(&mut whole, 9, end), Stage::Done);
    let (mut survived, mut tried) = (0, 0);
    for step in 0..whole.steps - start.steps {
        for tear in Tear::ALL {
            tried += 1;
            let mut flash = start.clone();
            flash.cut_after(step, tear);
            let stage = update(&mut flash, 9, end);
            assert!(stage < Stage::Done && !flash.on, "step {step}, {tear:?}: power did not go");
            flash.restart();
            let (runs, on_trial) = boot(&mut flash, &[before, 9]);
            let sound = allowed(stage, end, before, 9).contains(&(runs, on_trial));
            // A head on trial that nobody confirms is gone at the next boot; any other stays.
            let then = if on_trial { (before, false) } else { (runs, false) };
            let stays = boot(&mut flash, &[before, 9]) == then && boot(&mut flash, &[before, 9]) == then;
            let goes_on = update(&mut flash, 10, End::Confirm) == Stage::Done && boot(&mut flash, &[10]) == (10, false);
            survived += u32::from(sound && stays && goes_on);
        }
    }
    (survived, tried)
}

/// All ends, with no head stored before and with one or two.
fn all<const R: usize, const W: usize, const E: usize>(ecc: bool) {
    let (mut survived, mut tried) = (0, 0);
    for end in [End::Confirm, End::Reject, End::Hang] {
        for before in 0..3 {
            let (good, cuts) = survive::<R, W, E>(ecc, before, end);
            survived += good;
            tried += cuts;
        }
    }
    let geometry = std::format!("words of {W} bytes, sectors of {E}, ecc {ecc}");
    assert!(tried >= 9 * 8 * 4, "{geometry}: only {tried} cut points");
    assert_eq!(survived, tried, "{geometry}: {survived} of {tried} cut points survived");
    std::println!("{geometry}: {survived} of {tried} cut points survived");
}

#[test]
fn every_cut_of_an_update_leaves_the_old_head_or_the_new() {
    all::<1, 4, 4096>(false);
    all::<4, 8, 4096>(false);
    all::<1, 1, 256>(false);
}

#[test]
fn so_it_does_where_torn_words_cannot_be_read() {
    all::<8, 8, 256>(true);
    all::<1, 32, 128>(true);
}

proptest! {
    #![proptest_config(cases(200))]

    /// Updates one after the other, each cut anywhere or not at all, the boots after them cut as well.
    #[test]
    fn any_run_of_updates_and_cuts_leaves_a_whole_head(
        seed: u64,
        ecc: bool,
        updates in prop::collection::vec((0usize..3, 0u32..140, 0usize..8, 0u32..3, 0usize..8), 1..12),
    ) {
        let mut flash = Flash::<1, 8, 256>::new(sectors::<Flash<1, 8, 256>>(), ecc, seed);
        let mut runs = 0;
        for (i, (end, step, tear, again, tear_again)) in updates.into_iter().enumerate() {
            let (new, end) = (100 + i as u64, [End::Confirm, End::Reject, End::Hang][end]);
            flash.cut_after(step, Tear::ALL[tear]);
            let stage = update(&mut flash, new, end);
            let mut allowed = allowed(stage, end, runs, new);
            flash.restart();
            flash.cut_after(again, Tear::ALL[tear_again]);
            if open(&mut flash).boot().is_err() || allowed.contains(&(new, true)) {
                // The trial may be over before it began.
                allowed.push((runs, false));
            }
            flash.restart();
            let (head, on_trial) = boot(&mut flash, &[runs, new]);
            prop_assert!(allowed.contains(&(head, on_trial)), "{:?}: {} {}", stage, head, on_trial);
            if !on_trial {
                runs = head;
            }
            prop_assert_eq!(boot(&mut flash, &[runs, new]), (runs, false));
        }
    }
}
