//! Bytes on a 16-byte boundary, as the weights of an artifact need them.

use super::ALIGN;
use core::ops::{Deref, DerefMut};
use std::vec::Vec;

/// Owns bytes that begin on a 16-byte boundary, so that [`super::Artifact::new_checked`] can read them in place.
#[derive(Debug)]
pub struct AlignedBytes {
    /// One block more than the bytes fill: where `u128` is aligned to 8, the start moves up by half a block.
    blocks: Vec<u128>,
    start: usize,
    len: usize,
}

impl AlignedBytes {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let blocks = std::vec![0u128; len.div_ceil(ALIGN) + 1];
        // Stays true when the vector moves: its heap block does not.
        let start = bytemuck::cast_slice::<u128, u8>(&blocks).as_ptr().align_offset(ALIGN).min(ALIGN);
        Self { blocks, start, len }
    }

    /// Reads a whole file. Errors: those of the file system.
    pub fn from_file(path: impl AsRef<std::path::Path>) -> std::io::Result<Self> {
        std::fs::read(path).map(|bytes| Self::from(&bytes[..]))
    }
}

impl From<&[u8]> for AlignedBytes {
    fn from(bytes: &[u8]) -> Self {
        let mut aligned = Self::zeroed(bytes.len());
        aligned.copy_from_slice(bytes);
        aligned
    }
}

impl Clone for AlignedBytes {
    fn clone(&self) -> Self {
        Self::from(&self[..])
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.blocks)[self.start..][..self.len]
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.blocks)[self.start..][..self.len]
    }
}
