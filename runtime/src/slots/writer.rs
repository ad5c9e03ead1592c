//! Writing a head, its parameters in as many pieces as they come.

use super::nor::{CHUNK, Mark, Nor};
use super::record::{CRC_LEN, HEADER_LEN, StoredHead};
use super::{HeadStore, StoreError};
use crate::artifact::CRC;
use crate::error::Error;
use embedded_storage::nor_flash::NorFlash;

/// A head being written. Dropped before [`Writer::finish`], it leaves a slot that counts as empty.
pub struct Writer<'s, F> {
    flash: &'s mut Nor<F>,
    head: StoredHead,
    crc: crc::Digest<'static, u32>,
    /// Where the buffer goes, in bytes of the flash.
    at: u32,
    buffer: [u8; CHUNK],
    filled: usize,
    /// Parameters still to come.
    left: usize,
    failed: Option<StoreError>,
}

impl<'s, F: NorFlash> Writer<'s, F> {
    /// Erases the slot and writes the header.
    pub(super) fn begin(store: &'s mut HeadStore<F>, head: StoredHead) -> Result<Self, StoreError> {
        let len = store.layout.len;
        let flash = &mut store.flash;
        flash.erase(head.slot_at, len)?;
        let marks = flash.marks(head.slot_at);
        if [marks.trial, marks.confirmed, marks.rejected] != [Mark::Clear; 3] {
            return Err(StoreError::Verify);
        }
        let header = head.header.encode();
        let mut padded = [0xff; CHUNK];
        let words = padded.get_mut(..HEADER_LEN.next_multiple_of(Nor::<F>::WORD)).ok_or(StoreError::Verify)?;
        words.iter_mut().zip(header).for_each(|(to, byte)| *to = byte);
        flash.write(head.slot_at, words)?;
        let mut crc = CRC.digest();
        crc.update(&header);
        let left = head.header.params();
        Ok(Self { flash, head, crc, at: head.params_at, buffer: [0xff; CHUNK], filled: 0, left, failed: None })
    }

    /// Writes the next parameters.
    ///
    /// # Errors
    /// [`Error::WrongLength`] where more come than the head has, [`Error::NotFinite`] (nothing of `params` is taken then), and
    /// those of the flash, after which no more can be written.
    pub fn push(&mut self, params: &[f32]) -> Result<(), StoreError> {
        if params.len() > self.left {
            return Err(Error::WrongLength { needed: self.left, given: params.len() }.into());
        }
        if !params.iter().all(|value| value.is_finite()) {
            return Err(Error::NotFinite.into());
        }
        self.left -= params.len();
        params.iter().try_for_each(|value| {
            let bytes = value.to_le_bytes();
            self.crc.update(&bytes);
            self.append(bytes)
        })
    }

    /// Writes the checksum: from now on the head is whole, and gets one boot on trial.
    ///
    /// # Errors
    /// [`Error::WrongLength`] where parameters are missing, and those of the flash, earlier ones too.
    pub fn finish(mut self) -> Result<StoredHead, StoreError> {
        if self.left > 0 {
            let needed = self.head.header.params();
            return Err(Error::WrongLength { needed, given: needed - self.left }.into());
        }
        let crc = self.crc.clone().finalize();
        self.append(crc.to_le_bytes())?;
        self.flush(self.filled.next_multiple_of(Nor::<F>::WORD))?;
        Ok(self.head)
    }

    fn append(&mut self, bytes: [u8; CRC_LEN]) -> Result<(), StoreError> {
        if let Some(to) = self.buffer.get_mut(self.filled..self.filled + CRC_LEN) {
            to.copy_from_slice(&bytes);
            self.filled += CRC_LEN;
        }
        if self.filled == CHUNK { self.flush(CHUNK) } else { self.failed.map_or(Ok(()), Err) }
    }

    /// Writes the first `len` bytes of the buffer, ones where nothing was put. After a failure nothing is written any more.
    fn flush(&mut self, len: usize) -> Result<(), StoreError> {
        let words = self.buffer.get(..len).unwrap_or_default();
        if self.failed.is_none() && !words.is_empty() {
            self.failed = self.flash.write(self.at, words).err();
        }
        self.at += len as u32;
        self.buffer = [0xff; CHUNK];
        self.filled = 0;
        self.failed.map_or(Ok(()), Err)
    }
}
