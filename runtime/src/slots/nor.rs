//! NOR flash as the stores use it: aligned, verified, every word written at most once between two erasures.

use super::StoreError;
use embedded_storage::nor_flash::{NorFlash, NorFlashError};

/// Bytes that pass through the stack at once, and the largest word supported.
pub(super) const CHUNK: usize = 256;

/// A word that is erased, or was written to tell that something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// All ones: not written.
    Clear,
    /// All zeros: written.
    Set,
    /// Anything else, or unreadable: power went while it was written or erased.
    Torn,
}

/// A flash, checked to be one the stores can use.
#[derive(Debug)]
pub(super) struct Nor<F>(pub(super) F);

impl<F: NorFlash> Nor<F> {
    /// Bytes of one word, the least that is written.
    pub(super) const WORD: usize = F::WRITE_SIZE;

    pub(super) fn new_checked(flash: F) -> Result<Self, StoreError> {
        let suits = F::WRITE_SIZE.is_power_of_two()
            && F::WRITE_SIZE <= CHUNK
            && F::READ_SIZE != 0
            && F::WRITE_SIZE.is_multiple_of(F::READ_SIZE)
            && F::ERASE_SIZE != 0
            && F::ERASE_SIZE.is_multiple_of(F::WRITE_SIZE);
        if suits { Ok(Self(flash)) } else { Err(StoreError::BadLayout("word, read or sector size not supported")) }
    }

    /// Whether `at..at + len` lies in the flash and consists of whole sectors.
    pub(super) fn holds_sectors(&self, at: u32, len: u32) -> bool {
        let sector = F::ERASE_SIZE as u64;
        let (at, len) = (u64::from(at), u64::from(len));
        let end = (self.0.capacity() as u64).min(u64::from(u32::MAX));
        at.is_multiple_of(sector) && len.is_multiple_of(sector) && len > 0 && at + len <= end
    }

    /// Reads whole words.
    pub(super) fn read(&mut self, at: u32, bytes: &mut [u8]) -> Result<(), StoreError> {
        self.0.read(at, bytes).map_err(|e| StoreError::Flash(e.kind()))
    }

    /// Writes whole words, at most [`CHUNK`] bytes, and reads them back.
    pub(super) fn write(&mut self, at: u32, bytes: &[u8]) -> Result<(), StoreError> {
        self.0.write(at, bytes).map_err(|e| StoreError::Flash(e.kind()))?;
        let mut buffer = [0; CHUNK];
        let back = buffer.get_mut(..bytes.len()).ok_or(StoreError::Verify)?;
        self.read(at, back)?;
        if back == bytes { Ok(()) } else { Err(StoreError::Verify) }
    }

    /// Erases whole sectors.
    pub(super) fn erase(&mut self, at: u32, len: u32) -> Result<(), StoreError> {
        self.0.erase(at, at + len).map_err(|e| StoreError::Flash(e.kind()))
    }

    /// Reads one word as a mark.
    pub(super) fn mark(&mut self, at: u32) -> Mark {
        let mut buffer = [0; CHUNK];
        let Some(word) = buffer.get_mut(..Self::WORD) else { return Mark::Torn };
        match self.read(at, word) {
            Ok(()) if word.iter().all(|&b| b == 0xff) => Mark::Clear,
            Ok(()) if word.iter().all(|&b| b == 0) => Mark::Set,
            _ => Mark::Torn,
        }
    }

    /// Sets a mark that is clear: all bits of one word to zero, in one write.
    pub(super) fn set(&mut self, at: u32) -> Result<(), StoreError> {
        self.write(at, [0; CHUNK].get(..Self::WORD).unwrap_or_default())
    }
}
