//! A team of threads that share the operations of one picture.
//!
//! A picture is some twenty operations of about ten microseconds each, which is what waking a thread takes. So helpers wait for
//! the next job with their eyes open: they look at one word, first in a spin, then yielding their core, and sleep only when nothing
//! has come for a while. A job is a number of parts. Whoever is free claims the next one, the leader from the front and helpers from
//! the back, so that from one operation to the next everyone stays with the rows that its own cache holds. The leader waits only
//! for parts that somebody has begun: where no helper comes, it does all of the work, and nothing depends on how many there are.

use core::ops::Range;
use std::prelude::v1::*;

#[cfg(feature = "parallel")]
pub(crate) use threads::Team;

/// Fewest multiply-adds that are worth a part: about half a microsecond of work, where handing over a part takes about a quarter.
pub(super) const LEAST: usize = 1 << 16;
/// Multiply-adds that one element of a pass without any counts for: it waits for memory.
pub(crate) const ELEMENT: usize = 16;
/// Parts for each thread of a job that is large enough: a late helper then finds something left.
const SHARES: usize = 2;

/// Most parts of a job.
#[cfg(feature = "parallel")]
pub(super) const MOST_PARTS: usize = (1 << 16) - 1;

/// The calling thread as leader of a team, or alone.
pub(crate) struct Lead<'t> {
    #[cfg(feature = "parallel")]
    team: Option<threads::Leader<'t>>,
    #[cfg(not(feature = "parallel"))]
    team: core::marker::PhantomData<&'t ()>,
    /// Fewest multiply-adds in a part.
    least: usize,
}

impl<'t> Lead<'t> {
    /// Without helpers.
    pub(crate) fn alone() -> Self {
        Self { team: Default::default(), least: LEAST }
    }

    /// Leads `team`; alone if somebody else does. No part has fewer than `least` multiply-adds.
    #[cfg(feature = "parallel")]
    pub(super) fn of(team: &'t Team, least: usize) -> Self {
        Self { team: team.leader(), least }
    }

    /// Threads that take part, if all come.
    pub(super) fn threads(&self) -> usize {
        #[cfg(feature = "parallel")]
        return self.team.as_ref().map_or(1, threads::Leader::threads);
        #[cfg(not(feature = "parallel"))]
        1
    }

    /// Into how many parts to cut a job of this many multiply-adds: for each thread the same number, or fewer parts than threads.
    pub(super) fn parts(&self, work: usize) -> usize {
        let threads = self.threads();
        if threads == 1 {
            return 1;
        }
        let most = (work / self.least).clamp(1, threads * SHARES);
        if most < threads { most } else { most - most % threads }
    }

    /// Runs `f` on every number below `parts`, on all threads of the team.
    ///
    /// A panic in `f` comes out of here, as soon as no part runs any more.
    pub(super) fn run<F: Fn(usize) + Sync>(&mut self, parts: usize, f: F) {
        #[cfg(feature = "parallel")]
        if let Some(team) = self.team.as_mut().filter(|_| parts > 1) {
            team.run(parts, &f);
            return;
        }
        (0..parts).for_each(f);
    }

    /// Cuts `y`, whole `unit`s and perhaps a shorter one at the end, into parts for a job of `work` multiply-adds. `f` gets the
    /// number of its first unit and its part of `y`.
    pub(crate) fn split(&mut self, y: &mut [f32], unit: usize, work: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
        let (len, units) = (y.len(), y.len().div_ceil(unit));
        let parts = self.parts(work).min(units.max(1));
        let y = Shared(y.as_mut_ptr());
        self.run(parts, |part| {
            let units = share(units, part, parts);
            let elements = units.start * unit..(units.end * unit).min(len);
            // SAFETY: the shares of different parts are disjoint, lie inside `y`, which is borrowed until all parts have run,
            // and each part runs once.
            f(units.start, unsafe { y.slice(elements) });
        });
    }
}

/// The units, out of `units`, of part `part` of `parts`.
pub(super) fn share(units: usize, part: usize, parts: usize) -> Range<usize> {
    units * part / parts..units * (part + 1) / parts
}

/// A buffer that several threads write, each its own elements.
#[derive(Clone, Copy)]
pub(super) struct Shared(pub(super) *mut f32);

// SAFETY: only a pointer; what is done with it is promised where it is done.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Some of its elements.
    ///
    /// # Safety
    /// They lie inside the buffer, which lives for `'a`, and nobody else reads or writes them meanwhile.
    pub(super) unsafe fn slice<'a>(self, elements: Range<usize>) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { core::slice::from_raw_parts_mut(self.0.add(elements.start), elements.len()) }
    }
}

#[cfg(feature = "parallel")]
mod threads {
    use core::any::Any;
    use core::cell::UnsafeCell;
    use core::ptr::null;
    use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::prelude::v1::*;
    use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
    use std::thread::{self, JoinHandle};

    /// How often a thread that waits looks again at once, and then how often after yielding its core: together about 100
    /// microseconds where every core has one thread. Then a helper sleeps; the leader goes on yielding.
    const SPINS: u32 = 1000;
    const YIELDS: u32 = 100;

    /// A word on cache lines of its own (processors fetch them in pairs).
    #[repr(align(128))]
    struct Line<T>(T);

    /// A closure by its address, and how to call it.
    #[derive(Clone, Copy)]
    struct Job {
        data: *const (),
        call: unsafe fn(*const (), usize),
    }

    /// Calls the closure behind `data`.
    ///
    /// # Safety
    /// `data` points to an `F` that lives until the call returns.
    unsafe fn call<F: Fn(usize)>(data: *const (), part: usize) {
        // SAFETY: the caller's promise.
        unsafe { (*data.cast::<F>())(part) }
    }

    /// What leader and helpers share.
    struct State {
        /// A job's number (32 bits), its first part that nobody has claimed, and the one behind its last (16 bits each).
        ///
        /// A claim is one exchange of this word, so it holds for the job whose number stands there, however long ago a helper
        /// looked; all else about the job is read after it.
        ticket: Line<AtomicU64>,
        /// Parts of the job that helpers have run.
        done: Line<AtomicUsize>,
        /// Written by the leader while no part is unclaimed or running, read by who has claimed a part.
        job: UnsafeCell<Job>,
        /// What a helper's part panicked with.
        panic: Mutex<Option<Box<dyn Any + Send>>>,
        asleep: AtomicUsize,
        over: AtomicBool,
    }

    // SAFETY: `job` is written and read as told there, in an order that `ticket` and `done` establish; its closure is `Sync`.
    unsafe impl Send for State {}
    // SAFETY: as above.
    unsafe impl Sync for State {}

    const LOW: u64 = 1 << 16;

    impl State {
        /// Claims a part, the first or the last that is left; none if none is.
        fn claim(&self, first: bool) -> Option<usize> {
            let mut ticket = self.ticket.0.load(Ordering::Relaxed);
            loop {
                let (low, high) = (ticket / LOW % LOW, ticket % LOW);
                if low == high {
                    return None;
                }
                let (rest, part) = if first { (ticket + LOW, low) } else { (ticket - 1, high - 1) };
                // Acquire: the job was published by a release, and every claim since continues that.
                match self.ticket.0.compare_exchange_weak(ticket, rest, Ordering::Acquire, Ordering::Relaxed) {
                    Ok(_) => return Some(part as usize),
                    Err(now) => ticket = now,
                }
            }
        }

        /// A helper's life.
        fn help(&self) {
            let mut idle = 0;
            while !self.over.load(Ordering::Relaxed) {
                if let Some(part) = self.claim(false) {
                    // SAFETY: a claimed part's job stays, and its closure lives, until `done` has counted the part.
                    let ran = catch_unwind(AssertUnwindSafe(|| unsafe {
                        let job = *self.job.get();
                        (job.call)(job.data, part);
                    }));
                    if let Err(panic) = ran {
                        *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
                    }
                    self.done.0.fetch_add(1, Ordering::Release);
                    idle = 0;
                } else if idle < SPINS + YIELDS {
                    pause(idle);
                    idle += 1;
                } else {
                    self.sleep();
                    idle = 0;
                }
            }
        }

        /// Sleeps until the leader has a job.
        fn sleep(&self) {
            self.asleep.fetch_add(1, Ordering::SeqCst);
            // The leader looks for sleepers after it has published a job: either it sees this one, or this one sees the job.
            let ticket = self.ticket.0.load(Ordering::SeqCst);
            if ticket / LOW % LOW == ticket % LOW && !self.over.load(Ordering::SeqCst) {
                thread::park();
            }
            self.asleep.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Lets time pass for one who has looked `times` times in vain.
    fn pause(times: u32) {
        if times < SPINS {
            core::hint::spin_loop();
        } else {
            thread::yield_now();
        }
    }

    /// Helpers, and the right to lead them.
    pub(crate) struct Team {
        state: Arc<State>,
        helpers: Vec<JoinHandle<()>>,
        lead: Mutex<()>,
    }

    impl Team {
        /// Starts `helpers` threads; as many as the system gives.
        pub(crate) fn new(helpers: usize) -> Self {
            let state = Arc::new(State {
                ticket: Line(AtomicU64::new(0)),
                done: Line(AtomicUsize::new(0)),
                job: UnsafeCell::new(Job { data: null(), call: call::<fn(usize)> }),
                panic: Mutex::new(None),
                asleep: AtomicUsize::new(0),
                over: AtomicBool::new(false),
            });
            let start = |_| {
                let state = state.clone();
                thread::Builder::new().name("stemguard helper".into()).spawn(move || state.help()).ok()
            };
            let helpers = (0..helpers).map_while(start).collect();
            Self { state, helpers, lead: Mutex::new(()) }
        }

        /// Takes the lead; none if somebody else has it.
        pub(super) fn leader(&self) -> Option<Leader<'_>> {
            match self.lead.try_lock() {
                // A job is over before a panic in it gets out, so a leader's panic leaves nothing half done.
                Ok(guard) => Some(Leader { team: self, _lead: guard }),
                Err(TryLockError::Poisoned(poisoned)) => Some(Leader { team: self, _lead: poisoned.into_inner() }),
                Err(TryLockError::WouldBlock) => None,
            }
        }
    }

    impl Drop for Team {
        fn drop(&mut self) {
            self.state.over.store(true, Ordering::SeqCst);
            for helper in self.helpers.drain(..) {
                helper.thread().unpark();
                // Panics of parts are caught; there is no other.
                let _ = helper.join();
            }
        }
    }

    /// The one thread that may give a team jobs.
    pub(super) struct Leader<'t> {
        team: &'t Team,
        _lead: MutexGuard<'t, ()>,
    }

    impl Leader<'_> {
        pub(super) fn threads(&self) -> usize {
            self.team.helpers.len() + 1
        }

        /// Runs `f` on every number below `parts`, at most 65,535.
        pub(super) fn run<F: Fn(usize) + Sync>(&mut self, parts: usize, f: &F) {
            assert!((1..=super::MOST_PARTS).contains(&parts), "too many parts");
            let state = &*self.team.state;
            // SAFETY: the last job's parts have all been run (`Open` saw to it), so nobody reads the job.
            unsafe { *state.job.get() = Job { data: core::ptr::from_ref(f).cast(), call: call::<F> } };
            state.done.0.store(0, Ordering::Relaxed);
            let number = (state.ticket.0.load(Ordering::Relaxed) / (LOW * LOW)).wrapping_add(1);
            let mut open = Open { state, others: parts };
            // The first part is the leader's.
            state.ticket.0.store(number.wrapping_mul(LOW * LOW) + LOW + parts as u64, Ordering::SeqCst);
            if state.asleep.load(Ordering::SeqCst) > 0 {
                self.team.helpers.iter().for_each(|h| h.thread().unpark());
            }
            let mut next = Some(0);
            while let Some(part) = next {
                open.others -= 1;
                f(part);
                next = state.claim(true);
            }
            let panic = open.close();
            core::mem::forget(open);
            if let Some(panic) = panic {
                resume_unwind(panic);
            }
        }
    }

    /// A job that helpers may be at work on: whatever happens, it is closed before its closure goes.
    struct Open<'s> {
        state: &'s State,
        /// Parts that the leader has not claimed.
        others: usize,
    }

    impl Open<'_> {
        /// Claims what is left, and waits for what was begun; what a helper panicked with.
        fn close(&mut self) -> Option<Box<dyn Any + Send>> {
            while self.state.claim(true).is_some() {
                self.others -= 1;
            }
            let mut times = 0;
            while self.state.done.0.load(Ordering::Acquire) != self.others {
                pause(times);
                times = times.saturating_add(1);
            }
            self.state.panic.lock().unwrap_or_else(PoisonError::into_inner).take()
        }
    }

    impl Drop for Open<'_> {
        fn drop(&mut self) {
            drop(self.close());
        }
    }
}

#[cfg(all(test, feature = "parallel"))]
mod tests;
