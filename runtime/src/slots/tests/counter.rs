//! The counter: it never falls, whatever is cut.

use super::flash::{Flash, Tear};
use crate::net::tests::cases;
use crate::slots::{Counter, StoreError, counter_len};
use embedded_storage::nor_flash::NorFlash;
use proptest::prelude::*;

fn value<F: NorFlash>(flash: F) -> u32 {
    Counter::new_checked(flash, 0).unwrap().value().unwrap()
}

fn advance<F: NorFlash>(flash: F, to: u32) -> Result<(), StoreError> {
    Counter::new_checked(flash, 0).unwrap().advance(to)
}

#[test]
fn it_rises_and_never_falls() {
    type Small = Flash<1, 4, 64>;
    let mut flash = Small::new(2, false, 0);
    assert_eq!(value(&mut flash), 0);
    for to in [1, 2, 5, 5, 3, 0, 100, 101, 102, 103, 104, u32::MAX] {
        let before = value(&mut flash);
        advance(&mut flash, to).unwrap();
        assert_eq!(value(&mut flash), before.max(to));
    }
    // Nine values, four a sector: each sector held a first one twice at most.
    assert_eq!(flash.erasures, [1, 1]);
    let refused = |flash: Small, at| Counter::new_checked(flash, at).err();
    assert_eq!(counter_len(64), 128);
    for (sectors, at) in [(1, 0), (2, 64), (3, 32), (2, u32::MAX - 63)] {
        let error = refused(Small::new(sectors, false, 0), at);
        assert!(matches!(error, Some(StoreError::BadLayout(_))), "{sectors} sectors, {at}");
    }
    let mut dead = Small::new(2, false, 0);
    dead.on = false;
    assert!(matches!(Counter::new_checked(dead, 0).unwrap().value(), Err(StoreError::Flash(_))));
}

/// Every step of a run through three sectors, torn in every way.
fn all<const W: usize, const E: usize>(ecc: bool) {
    let (mut survived, mut tried) = (0, 0);
    let values: std::vec::Vec<u32> = (1..=3 * (E / W.max(16)) as u32 + 1).map(|n| n * n).collect();
    for tear in Tear::ALL {
        for step in 0.. {
            let mut flash = Flash::<W, W, E>::new(2, ecc, u64::from(step));
            flash.cut_after(step, tear);
            let failed = values.iter().position(|&to| advance(&mut flash, to).is_err());
            let Some(failed) = failed else { break };
            tried += 1;
            flash.restart();
            let (before, to) = (if failed == 0 { 0 } else { values[failed - 1] }, values[failed]);
            let now = value(&mut flash);
            advance(&mut flash, to + 1).unwrap();
            survived += u32::from((now == before || now == to) && value(&mut flash) == to + 1);
        }
    }
    assert!(tried >= 8 * values.len());
    assert_eq!(survived as usize, tried, "{survived} of {tried} cut points survived");
    std::println!("counter, words of {W} bytes, ecc {ecc}: {survived} of {tried} cut points survived");
}

#[test]
fn every_cut_leaves_the_old_value_or_the_new() {
    all::<1, 64>(false);
    all::<4, 64>(false);
    all::<8, 128>(true);
    all::<32, 128>(true);
}

/// Power goes at every write and every erasure before the first value is whole: it stays 0, and can be raised in the end.
#[test]
fn a_counter_that_never_held_a_value_survives_any_number_of_cuts() {
    for seed in 0..64 {
        for tear in Tear::ALL {
            let mut flash = Flash::<4, 8, 64>::new(2, true, seed);
            for attempt in 0..40 {
                flash.cut_after(attempt % 2, tear);
                let done = advance(&mut flash, 1).is_ok();
                flash.restart();
                if done || value(&mut flash) == 1 {
                    break;
                }
                assert_eq!(value(&mut flash), 0);
            }
            advance(&mut flash, 7).unwrap();
            assert_eq!(value(&mut flash), 7);
        }
    }
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn any_run_of_values_and_cuts_rises(
        seed: u64,
        ecc: bool,
        rises in prop::collection::vec((0u32..1000, 0u32..9, 0usize..8), 1..60),
    ) {
        let mut flash = Flash::<4, 8, 64>::new(2, ecc, seed);
        let mut now = 0;
        for (rise, step, tear) in rises {
            let to = now + rise;
            flash.cut_after(step, Tear::ALL[tear]);
            let done = advance(&mut flash, to).is_ok();
            flash.restart();
            let after = value(&mut flash);
            prop_assert!(after == to || !done && after == now, "{} after {} to {}", after, now, to);
            now = after;
        }
    }
}
