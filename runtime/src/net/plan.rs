//! Where values lie in the arena: two values that are alive at the same time never share an element.

use std::vec::Vec;

/// Offsets are multiples of this many elements: 64 bytes of `f32`.
const ALIGN: usize = 16;

/// A value of `len` elements, written by operation `first` and last read by operation `last`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    pub(super) first: usize,
    pub(super) last: usize,
    pub(super) len: usize,
}

/// An offset for every value, in elements. The largest values are placed first, each into the smallest gap that
/// holds it among the values alive at the same time.
pub(super) fn place(lives: &[Life]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..lives.len()).collect();
    order.sort_by_key(|&i| (core::cmp::Reverse(lives[i].len), lives[i].first));
    let mut offsets = std::vec![0; lives.len()];
    let mut placed: Vec<usize> = Vec::with_capacity(lives.len());
    for &i in &order {
        let meets = |j: &&usize| lives[**j].first <= lives[i].last && lives[i].first <= lives[**j].last;
        let mut taken: Vec<(usize, usize)> = placed
            .iter()
            .filter(meets)
            .map(|&j| (offsets[j], (offsets[j] + lives[j].len).next_multiple_of(ALIGN)))
            .collect();
        taken.sort_unstable();
        // Start of the free room, and the smallest gap so far as (room, start).
        let (mut free, mut best) = (0, None);
        for (start, end) in taken {
            let room = start.saturating_sub(free);
            if room >= lives[i].len && best.is_none_or(|(smallest, _)| room < smallest) {
                best = Some((room, free));
            }
            free = free.max(end);
        }
        offsets[i] = best.map_or(free, |(_, start)| start);
        placed.push(i);
    }
    offsets
}

/// One step of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// Elements it writes.
    pub(crate) len: usize,
    /// The steps whose output it reads; none for the picture.
    pub(crate) reads: [Option<usize>; 2],
}

/// An offset for the output of every step but the last, whose output lies in the caller's buffer, and the length of the arena.
pub(crate) fn arena(steps: &[Step]) -> (Vec<usize>, usize) {
    let mut lives: Vec<Life> = Vec::with_capacity(steps.len());
    for (now, step) in steps.iter().enumerate() {
        lives.push(Life { first: now, last: now, len: step.len });
        for read in step.reads.into_iter().flatten() {
            lives[read].last = now;
        }
    }
    lives.pop();
    let offsets = place(&lives);
    let len = lives.iter().zip(&offsets).map(|(life, at)| at + life.len).max().unwrap_or(0);
    (offsets, len)
}
