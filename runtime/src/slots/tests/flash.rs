//! A NOR flash in memory that keeps the rules of one and can lose power at any write or erasure.

use crate::rng::Rng;
use embedded_storage::nor_flash::{
    ErrorType, NorFlash, NorFlashError, NorFlashErrorKind, ReadNorFlash, check_erase, check_read, check_write,
};
use std::vec;
use std::vec::Vec;

/// What power leaves of the word being written, or of the sector being erased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tear {
    /// What was there before.
    Untouched,
    /// All of it done.
    Whole,
    /// The front done, the rest as before.
    Front,
    /// The back done, the rest as before.
    Back,
    /// Some of the bits done.
    Bits,
    /// A word with one bit done; a sector with some words done.
    Sparse,
    /// All zeros: flash that programs a sector before it erases it.
    Zeros,
    /// Anything.
    Noise,
}

impl Tear {
    pub(crate) const ALL: [Self; 8] =
        [Self::Untouched, Self::Whole, Self::Front, Self::Back, Self::Bits, Self::Sparse, Self::Zeros, Self::Noise];
}

/// The flash: read, write and erase sizes in bytes.
#[derive(Clone, Debug)]
pub(crate) struct Flash<const READ: usize, const WRITE: usize, const ERASE: usize> {
    pub(crate) bytes: Vec<u8>,
    /// Words written since their sector was erased.
    written: Vec<bool>,
    /// Words an error-correcting code cannot read.
    unreadable: Vec<bool>,
    /// How often each sector was erased.
    pub(crate) erasures: Vec<u32>,
    /// Whether torn words are unreadable.
    ecc: bool,
    /// Words written and sectors erased so far.
    pub(crate) steps: u32,
    cut: Option<(u32, Tear)>,
    /// Whether power is on.
    pub(crate) on: bool,
    dice: Rng,
}

/// Power is off, or a word cannot be read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lost(NorFlashErrorKind);

impl NorFlashError for Lost {
    fn kind(&self) -> NorFlashErrorKind {
        self.0
    }
}

impl<const READ: usize, const WRITE: usize, const ERASE: usize> Flash<READ, WRITE, ERASE> {
    /// Erased sectors.
    pub(crate) fn new(sectors: usize, ecc: bool, seed: u64) -> Self {
        let (len, words) = (sectors * ERASE, sectors * ERASE / WRITE);
        Self {
            bytes: vec![0xff; len],
            written: vec![false; words],
            unreadable: vec![false; words],
            erasures: vec![0; sectors],
            ecc,
            steps: 0,
            cut: None,
            on: true,
            dice: Rng::new(seed, 0),
        }
    }

    /// Lets power go at the step after `steps` more.
    pub(crate) fn cut_after(&mut self, steps: u32, tear: Tear) {
        self.cut = Some((self.steps + steps, tear));
    }

    /// Power is back, and stays.
    pub(crate) fn restart(&mut self) {
        self.on = true;
        self.cut = None;
    }

    /// Counts a step; how it is torn, if power goes now.
    fn step(&mut self) -> Option<Tear> {
        let tear = self.cut.filter(|cut| cut.0 == self.steps).map(|cut| cut.1);
        self.steps += 1;
        self.on = tear.is_none();
        tear
    }

    /// Leaves `at..at + goal.len()` between what is there and `goal`.
    fn tear(&mut self, at: usize, goal: &[u8], tear: Tear) {
        let before = self.bytes[at..at + goal.len()].to_vec();
        let split = 1 + self.dice.below(goal.len().max(2) - 1);
        let dice = &mut self.dice;
        let bit = dice.below(8 * goal.len());
        let words: Vec<bool> = (0..goal.len() / WRITE).map(|_| dice.bits() & 1 == 1).collect();
        for (i, byte) in self.bytes[at..at + goal.len()].iter_mut().enumerate() {
            let mixed = |mask: u8| before[i] & !mask | goal[i] & mask;
            *byte = match tear {
                Tear::Untouched => before[i],
                Tear::Whole => goal[i],
                Tear::Front => mixed(if i < split { 0xff } else { 0 }),
                Tear::Back => mixed(if i < split { 0 } else { 0xff }),
                Tear::Bits => mixed(dice.bits() as u8),
                Tear::Sparse if goal.len() == WRITE => mixed(if i == bit / 8 { 1 << (bit % 8) } else { 0 }),
                Tear::Sparse => mixed(if words[i / WRITE] { 0xff } else { 0 }),
                Tear::Zeros => 0,
                Tear::Noise => dice.bits() as u8,
            };
        }
        for (i, word) in (at / WRITE..(at + goal.len()) / WRITE).enumerate() {
            let range = i * WRITE..(i + 1) * WRITE;
            let now = &self.bytes[at..][range.clone()];
            let torn = now != &before[range.clone()] && now != &goal[range];
            self.unreadable[word] = self.ecc && (torn || self.unreadable[word] && tear != Tear::Whole);
            self.written[word] = now.iter().any(|&byte| byte != 0xff);
        }
    }
}

impl<const READ: usize, const WRITE: usize, const ERASE: usize> ErrorType for Flash<READ, WRITE, ERASE> {
    type Error = Lost;
}

impl<const READ: usize, const WRITE: usize, const ERASE: usize> ReadNorFlash for Flash<READ, WRITE, ERASE> {
    const READ_SIZE: usize = READ;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), Lost> {
        check_read(self, offset, bytes.len()).expect("a read keeps to the flash");
        let at = offset as usize;
        let words = at / WRITE..(at + bytes.len()).div_ceil(WRITE);
        if !self.on || self.unreadable[words].contains(&true) {
            return Err(Lost(NorFlashErrorKind::Other));
        }
        bytes.copy_from_slice(&self.bytes[at..at + bytes.len()]);
        Ok(())
    }

    fn capacity(&self) -> usize {
        self.bytes.len()
    }
}

impl<const READ: usize, const WRITE: usize, const ERASE: usize> NorFlash for Flash<READ, WRITE, ERASE> {
    const WRITE_SIZE: usize = WRITE;
    const ERASE_SIZE: usize = ERASE;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), Lost> {
        check_erase(self, from, to).expect("an erasure keeps to the sectors");
        for at in (from as usize..to as usize).step_by(ERASE) {
            if !self.on {
                return Err(Lost(NorFlashErrorKind::Other));
            }
            self.erasures[at / ERASE] += 1;
            let tear = self.step();
            self.tear(at, &[0xff; ERASE], tear.unwrap_or(Tear::Whole));
        }
        if self.on { Ok(()) } else { Err(Lost(NorFlashErrorKind::Other)) }
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Lost> {
        check_write(self, offset, bytes.len()).expect("a write keeps to the words");
        for (i, word) in bytes.chunks_exact(WRITE).enumerate() {
            if !self.on {
                return Err(Lost(NorFlashErrorKind::Other));
            }
            let at = offset as usize + i * WRITE;
            assert!(!self.written[at / WRITE], "the word at {at} is written twice");
            let tear = self.step();
            self.tear(at, word, tear.unwrap_or(Tear::Whole));
        }
        if self.on { Ok(()) } else { Err(Lost(NorFlashErrorKind::Other)) }
    }
}
