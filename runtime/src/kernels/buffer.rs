//! Buffers of the fast kernels: on cache lines, and kept by each thread from one call to the next.

use core::cell::RefCell;
use std::prelude::v1::*;
use std::vec;

/// A heap buffer that starts on a cache line.
pub(crate) struct Aligned {
    store: Vec<f32>,
    skip: usize,
    len: usize,
}

impl core::fmt::Debug for Aligned {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Aligned").field("len", &self.len).finish()
    }
}

impl Aligned {
    const fn new() -> Self {
        Self { store: Vec::new(), skip: 0, len: 0 }
    }

    pub(crate) fn zeroed(len: usize) -> Self {
        let mut a = Self::new();
        a.grow(len);
        a
    }

    /// At least `len` elements; contents are kept only if nothing grows.
    fn grow(&mut self, len: usize) {
        if self.len < len {
            self.store = vec![0.0; len + 16];
            self.skip = self.store.as_ptr().align_offset(64).min(16);
            self.len = len;
        }
    }

    pub(crate) fn get(&self) -> &[f32] {
        &self.store[self.skip..self.skip + self.len]
    }

    pub(crate) fn get_mut(&mut self) -> &mut [f32] {
        &mut self.store[self.skip..self.skip + self.len]
    }
}

/// Scratch buffers of one thread.
const BUFFERS: usize = 4;

std::thread_local! {
    static SCRATCH: RefCell<[Aligned; BUFFERS]> = const { RefCell::new([const { Aligned::new() }; BUFFERS]) };
    static PARTIAL: RefCell<Aligned> = const { RefCell::new(Aligned::new()) };
}

/// Room for what the parts of a job leave for the thread that began it, kept from one call to the next, as [`scratch`] is: pages that
/// are new at every call cost more than what is written to them.
pub(super) fn partial<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    PARTIAL.with_borrow_mut(|buffer| {
        buffer.grow(len);
        f(&mut buffer.get_mut()[..len])
    })
}

/// Scratch buffers of this thread, of the lengths asked for; their content is whatever the last call left.
pub(super) fn scratch<R>(lens: [usize; BUFFERS], f: impl FnOnce([&mut [f32]; BUFFERS]) -> R) -> R {
    SCRATCH.with_borrow_mut(|buffers| {
        let mut lens = lens.into_iter();
        f(buffers.each_mut().map(|b| {
            let len = lens.next().unwrap_or(0);
            b.grow(len);
            &mut b.get_mut()[..len]
        }))
    })
}
