//! A NOR flash in memory: words of 4 bytes that can be written once after an erasure, sectors of 4 KiB, and a power supply that
//! can be cut at any word written and any sector erased.

use embedded_storage::nor_flash::{
    ErrorType, NorFlash, NorFlashError, NorFlashErrorKind, ReadNorFlash, check_erase, check_read, check_write,
};
use stemguard_runtime::artifact::{HeadKind, head_params};
use stemguard_runtime::shape::Shape;
use stemguard_runtime::slots::{Layout, counter_len, slot_len};

/// Bytes of a word.
pub const WORD: usize = 4;
/// Bytes of a sector.
pub const SECTOR: usize = 4096;
/// Where the counter begins.
pub const COUNTER_AT: u32 = 0;
/// Bytes of a slot: a linear head of ten classes on 64 channels.
const SLOT: usize = slot_len(head_params(HeadKind::Linear, Shape::new(8, 8, 64), 10), WORD, SECTOR);
/// Bytes of the whole flash: the counter and two slots.
pub const FLASH_LEN: usize = counter_len(SECTOR) + 2 * SLOT;
/// Where the slots lie.
pub const LAYOUT: Layout =
    Layout { slots: [counter_len(SECTOR) as u32, (counter_len(SECTOR) + SLOT) as u32], len: SLOT as u32 };

/// What a cut leaves of the word or sector in work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tear {
    /// What was there before.
    Untouched,
    /// The first half done.
    Half,
    /// All of it done.
    Whole,
}

/// The flash refused: power is off, or the rules of NOR flash were broken.
#[derive(Clone, Copy, Debug)]
pub struct Refused(NorFlashErrorKind);

impl NorFlashError for Refused {
    fn kind(&self) -> NorFlashErrorKind {
        self.0
    }
}

/// A flash over the caller's bytes.
#[derive(Debug)]
pub struct Nor<'a> {
    bytes: &'a mut [u8],
    steps: u32,
    cut: Option<(u32, Tear)>,
    on: bool,
}

impl<'a> Nor<'a> {
    /// A flash that holds `bytes`, in whole sectors.
    pub fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, steps: 0, cut: None, on: true }
    }

    /// Words written and sectors erased so far.
    pub const fn steps(&self) -> u32 {
        self.steps
    }

    /// Cuts the power at the step after `steps` more.
    pub fn cut_after(&mut self, steps: u32, tear: Tear) {
        self.cut = Some((self.steps + steps, tear));
    }

    /// Whether power is on.
    pub const fn is_on(&self) -> bool {
        self.on
    }

    /// Does one step: how much of `len` bytes gets done.
    fn step(&mut self, len: usize) -> Result<usize, Refused> {
        if !self.on {
            return Err(Refused(NorFlashErrorKind::Other));
        }
        let tear = self.cut.filter(|cut| cut.0 == self.steps).map(|cut| cut.1);
        self.steps += 1;
        self.on = tear.is_none();
        Ok(match tear {
            Some(Tear::Untouched) => 0,
            Some(Tear::Half) => len / 2,
            Some(Tear::Whole) | None => len,
        })
    }

    fn is_cut(&self) -> Result<(), Refused> {
        if self.on { Ok(()) } else { Err(Refused(NorFlashErrorKind::Other)) }
    }
}

impl ErrorType for Nor<'_> {
    type Error = Refused;
}

impl ReadNorFlash for Nor<'_> {
    const READ_SIZE: usize = 1;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), Refused> {
        check_read(self, offset, bytes.len()).map_err(Refused)?;
        self.is_cut()?;
        let at = offset as usize;
        let from = self.bytes.get(at..at + bytes.len()).ok_or(Refused(NorFlashErrorKind::OutOfBounds))?;
        bytes.iter_mut().zip(from).for_each(|(to, &from)| *to = from);
        Ok(())
    }

    fn capacity(&self) -> usize {
        self.bytes.len()
    }
}

impl NorFlash for Nor<'_> {
    const WRITE_SIZE: usize = WORD;
    const ERASE_SIZE: usize = SECTOR;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), Refused> {
        check_erase(self, from, to).map_err(Refused)?;
        for at in (from as usize..to as usize).step_by(SECTOR) {
            let done = self.step(SECTOR)?;
            self.bytes.get_mut(at..at + done).unwrap_or_default().fill(0xff);
        }
        self.is_cut()
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Refused> {
        check_write(self, offset, bytes.len()).map_err(Refused)?;
        for (i, word) in bytes.chunks_exact(WORD).enumerate() {
            let at = offset as usize + i * WORD;
            let done = self.step(WORD)?;
            let to = self.bytes.get_mut(at..at + WORD).ok_or(Refused(NorFlashErrorKind::OutOfBounds))?;
            if to.iter().any(|&byte| byte != 0xff) {
                return Err(Refused(NorFlashErrorKind::Other));
            }
            to.iter_mut().zip(word).take(done).for_each(|(to, &from)| *to = from);
        }
        self.is_cut()
    }
}
