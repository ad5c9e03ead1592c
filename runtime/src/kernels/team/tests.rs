//! Every part once, whoever comes; panics; one leader at a time.

use super::{Lead, SHARES, share};
use crate::kernels::simd::Simd;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::prelude::v1::*;
use std::sync::Barrier;
use std::{thread, vec};

#[test]
fn every_part_runs_once() {
    for threads in 1..=4 {
        let k = Simd::new(threads);
        let mut lead = k.lead_parts(1);
        assert_eq!(lead.threads(), threads);
        for job in 0..2000 {
            let parts = job % 11;
            let runs: Vec<_> = (0..11).map(|_| AtomicUsize::new(0)).collect();
            lead.run(parts, |part| {
                runs[part].fetch_add(1, Ordering::Relaxed);
            });
            let runs: Vec<_> = runs.into_iter().map(AtomicUsize::into_inner).collect();
            let want: Vec<_> = (0..11).map(|part| usize::from(part < parts)).collect();
            assert_eq!(runs, want, "{threads} threads");
        }
    }
}

/// Each part waits until all threads have one: helpers come, out of a spin and out of sleep.
#[test]
fn helpers_come() {
    for threads in [2, 3] {
        let k = Simd::new(threads);
        for round in 0..20 {
            if round % 4 == 0 {
                thread::sleep(Duration::from_millis(5));
            }
            let (all, arrived) = (Barrier::new(threads), AtomicUsize::new(0));
            k.lead_parts(1).run(threads, |_| {
                arrived.fetch_add(1, Ordering::Relaxed);
                all.wait();
            });
            assert_eq!(arrived.into_inner(), threads);
        }
    }
}

/// Each job reads what other threads wrote in the one before: the values are those of one thread.
#[test]
fn a_job_sees_the_one_before() {
    for threads in 1..=4 {
        let k = Simd::new(threads);
        let mut lead = k.lead_parts(1);
        let (mut x, mut y) = (vec![0.0f32; 103], vec![f32::NAN; 103]);
        for _ in 0..2000 {
            lead.split(&mut y, 4, usize::MAX, |first, y| {
                for (i, y) in y.iter_mut().enumerate() {
                    *y = x[102 - (4 * first + i)] + 1.0;
                }
            });
            core::mem::swap(&mut x, &mut y);
        }
        assert_eq!(x, [2000.0; 103], "{threads} threads");
    }
}

#[test]
fn shares_cover_all_units_in_order() {
    for (units, parts) in [(0, 1), (1, 1), (7, 2), (7, 7), (100, 8), (9, 4)] {
        let all: Vec<_> = (0..parts).flat_map(|part| share(units, part, parts)).collect();
        assert_eq!(all, (0..units).collect::<Vec<_>>());
    }
}

#[test]
fn parts_are_as_many_as_the_work_is_worth() {
    let k = Simd::new(4);
    let lead = k.lead_parts(10);
    for (work, parts) in
        [(0, 1), (9, 1), (19, 1), (39, 3), (40, 4), (79, 4), (80, 4 * SHARES), (usize::MAX, 4 * SHARES)]
    {
        assert_eq!(lead.parts(work), parts, "{work}");
    }
    assert_eq!(Lead::alone().parts(usize::MAX), 1);
}

fn message(f: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(f)).expect_err("a panic");
    panic.downcast_ref::<&str>().expect("a message").to_string()
}

/// A panic of either side comes out of the job, when no part runs any more, and the team works on.
#[test]
fn panics_come_out() {
    let k = Simd::new(2);
    for culprit in [0, 1] {
        let (both, running) = (Barrier::new(2), AtomicUsize::new(0));
        let found = message(|| {
            k.lead_parts(1).run(2, |part| {
                running.fetch_add(1, Ordering::SeqCst);
                both.wait();
                if part == culprit {
                    running.fetch_sub(1, Ordering::SeqCst);
                    panic_any(["leader's", "helper's"][part]);
                }
                thread::sleep(Duration::from_millis(5));
                running.fetch_sub(1, Ordering::SeqCst);
            });
        });
        assert_eq!((found.as_str(), running.into_inner()), (["leader's", "helper's"][culprit], 0));
        let sum = AtomicUsize::new(0);
        let mut lead = k.lead_parts(1);
        assert_eq!(lead.threads(), 2);
        lead.run(5, |part| {
            sum.fetch_add(part, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 10);
    }
}

#[test]
fn one_leads_and_others_work_alone() {
    let k = Simd::new(2);
    let first = k.lead_parts(1);
    let mut second = k.lead_parts(1);
    assert_eq!((first.threads(), second.threads()), (2, 1));
    let mut sum = AtomicUsize::new(0);
    second.run(3, |part| {
        sum.fetch_add(part, Ordering::Relaxed);
    });
    assert_eq!(*sum.get_mut(), 3);
    drop(first);
    assert_eq!(k.lead_parts(1).threads(), 2);
    // A leader that dies gives the lead back.
    let other = k.clone();
    let died = thread::spawn(move || {
        let _lead = other.lead_parts(1);
        panic_any("on purpose");
    });
    assert!(died.join().is_err());
    assert_eq!(k.lead_parts(1).threads(), 2);
}
