//! The record in a slot: header, marks, parameters, checksum. `spec/flash.md` tells every byte.

use super::nor::{CHUNK, Mark, Nor};
use super::{StemId, StoreError};
use crate::artifact::{CRC, HeadKind, HeadSpec, head_params};
use crate::net::Span;
use crate::shape::Shape;
use embedded_storage::nor_flash::NorFlash;

/// The first bytes of a record.
const MAGIC: [u8; 4] = *b"\x93SGH";
/// The version this build writes and reads.
const VERSION: u16 = 1;
/// Bytes of the header.
pub(super) const HEADER_LEN: usize = 64;
/// Bytes of the checksum.
pub(super) const CRC_LEN: usize = 4;
/// Parameters begin at a multiple of this, so that memory-mapped flash can be read in place.
const PARAMS_ALIGN: usize = 16;

/// Offset of mark number `i` in a slot.
const fn mark_at(i: usize, word: usize) -> usize {
    HEADER_LEN.next_multiple_of(word) + i * word
}

/// Bytes of a threshold: its value and the bitwise complement.
const THRESHOLD_LEN: usize = 8;

/// Offset of the threshold in a slot.
const fn threshold_at(word: usize) -> usize {
    mark_at(3, word)
}

/// Offset of the parameters in a slot.
pub(super) const fn params_at(word: usize) -> usize {
    let behind = threshold_at(word) + THRESHOLD_LEN.next_multiple_of(word);
    behind.next_multiple_of(if word > PARAMS_ALIGN { word } else { PARAMS_ALIGN })
}

/// Bytes of a record with `params` parameters.
pub(super) const fn record_len(params: usize, word: usize) -> usize {
    params_at(word)
        .saturating_add(params.saturating_mul(4).saturating_add(CRC_LEN).saturating_add(word - 1) / word * word)
}

/// A mark of a record.
#[derive(Clone, Copy)]
pub(super) enum Step {
    /// Its one boot has begun.
    Trial = 0,
    /// It passed.
    Confirmed = 1,
    /// It did not.
    Rejected = 2,
}

/// The header, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) sequence: u32,
    pub(super) kind: HeadKind,
    pub(super) classes: u32,
    pub(super) stem: StemId,
}

impl Header {
    pub(super) const fn params(&self) -> usize {
        head_params(self.kind, self.stem.features, self.classes)
    }

    pub(super) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let (words, digest) = bytes.split_at_mut(HEADER_LEN - 32);
        let kind = match self.kind {
            HeadKind::Linear => 0u32,
            HeadKind::Residual => 1,
        };
        let Shape { h, w, c } = self.stem.features;
        let version_and_kind = u32::from(VERSION) | kind << 16;
        let fields = [
            u32::from_le_bytes(MAGIC),
            version_and_kind,
            self.sequence,
            self.classes,
            h,
            w,
            c,
            // Fits: what is stored was checked to fit a slot.
            self.params() as u32,
        ];
        for (word, field) in words.chunks_exact_mut(4).zip(fields) {
            word.copy_from_slice(&field.to_le_bytes());
        }
        digest.copy_from_slice(&self.stem.digest);
        bytes
    }

    /// A header that is one, of a head that makes sense.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (bytes, _) = bytes.split_first_chunk::<HEADER_LEN>()?;
        let (words, digest) = bytes.split_last_chunk::<32>()?;
        let mut fields = [0; 8];
        for (field, word) in fields.iter_mut().zip(words.chunks_exact(4)) {
            *field = word.try_into().map(u32::from_le_bytes).ok()?;
        }
        let [_, version_and_kind, sequence, classes, h, w, c, _] = fields;
        let kind = match version_and_kind >> 16 {
            0 => HeadKind::Linear,
            1 => HeadKind::Residual,
            _ => return None,
        };
        let features = Shape { h, w, c };
        let header = Self { sequence, kind, classes, stem: StemId { digest: *digest, features } };
        // Everything else in the header follows from these fields.
        let sound = features.is_valid() && (1..=Shape::MAX_SIDE).contains(&classes) && header.encode() == *bytes;
        sound.then_some(header)
    }
}

/// A whole head in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredHead {
    pub(super) header: Header,
    pub(super) slot_at: u32,
    pub(super) params_at: u32,
}

impl StoredHead {
    /// Number of the update that stored it, from 1.
    pub const fn sequence(&self) -> u32 {
        self.header.sequence
    }

    /// Kind and sizes; the span counts from the first parameter.
    pub const fn spec(&self) -> HeadSpec {
        let Header { kind, classes, stem, .. } = self.header;
        HeadSpec { kind, features: stem.features, classes, span: Span { at: 0, len: self.header.params() as u32 } }
    }

    /// Where its parameters lie in the flash: `f32`, little-endian, on a 16-byte boundary of the slot.
    pub const fn params_at(&self) -> u32 {
        self.params_at
    }
}

/// How far a record has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Marks {
    pub(super) trial: Mark,
    pub(super) confirmed: Mark,
    pub(super) rejected: Mark,
}

impl<F: NorFlash> Nor<F> {
    pub(super) fn marks(&mut self, slot_at: u32) -> Marks {
        let mut read = |step: Step| self.mark(slot_at + mark_at(step as usize, Self::WORD) as u32);
        Marks { trial: read(Step::Trial), confirmed: read(Step::Confirmed), rejected: read(Step::Rejected) }
    }

    pub(super) fn take(&mut self, step: Step, head: &StoredHead) -> Result<(), StoreError> {
        self.set(head.slot_at + mark_at(step as usize, Self::WORD) as u32)
    }

    /// Keeps a threshold beside a head that has none yet, or this one: words are written once.
    pub(super) fn keep_threshold(&mut self, head: &StoredHead, threshold: f32) -> Result<(), StoreError> {
        if self.threshold(head) == Some(threshold) {
            return Ok(());
        }
        let mut buffer = [0xff; CHUNK];
        let value = threshold.to_bits();
        let both = u64::from(value) | u64::from(!value) << 32;
        buffer.iter_mut().zip(both.to_le_bytes()).for_each(|(to, byte)| *to = byte);
        let words = buffer.get(..THRESHOLD_LEN.next_multiple_of(Self::WORD)).ok_or(StoreError::Verify)?;
        self.write(head.slot_at + threshold_at(Self::WORD) as u32, words)
    }

    /// The threshold beside a head; none where none was written, or not whole.
    pub(super) fn threshold(&mut self, head: &StoredHead) -> Option<f32> {
        let mut buffer = [0; CHUNK];
        let words = buffer.get_mut(..THRESHOLD_LEN.next_multiple_of(Self::WORD))?;
        self.read(head.slot_at + threshold_at(Self::WORD) as u32, words).ok()?;
        let both = u64::from_le_bytes(*words.first_chunk()?);
        let (value, complement) = (both as u32, (both >> 32) as u32);
        let threshold = f32::from_bits(value);
        (value == !complement && threshold.is_finite()).then_some(threshold)
    }

    /// The record at `slot_at`, if it is whole: header, checksum, finite parameters.
    pub(super) fn find(&mut self, slot_at: u32, slot_len: u32) -> Option<StoredHead> {
        let mut buffer = [0; CHUNK];
        let bytes = buffer.get_mut(..HEADER_LEN.next_multiple_of(Self::WORD))?;
        self.read(slot_at, bytes).ok()?;
        let header = Header::decode(bytes)?;
        if record_len(header.params(), Self::WORD) > slot_len as usize {
            return None;
        }
        let head = StoredHead { header, slot_at, params_at: slot_at + params_at(Self::WORD) as u32 };
        let mut finite = true;
        let whole = self.pass(&head, |piece| {
            for value in piece.chunks_exact(4) {
                let value = value.try_into().map(f32::from_le_bytes);
                finite &= value.is_ok_and(f32::is_finite);
            }
        });
        (whole == Ok(true) && finite).then_some(head)
    }

    /// Hands the bytes of the parameters over piece by piece; whether the checksum agrees with them and the header.
    pub(super) fn pass(&mut self, head: &StoredHead, mut take: impl FnMut(&[u8])) -> Result<bool, StoreError> {
        let mut crc = CRC.digest();
        crc.update(&head.header.encode());
        let mut buffer = [0; CHUNK];
        let (mut at, mut left) = (head.params_at, 4 * head.header.params());
        loop {
            // CHUNK and what is left are multiples of 4: the checksum lies in one piece.
            let len = CHUNK.min((left + CRC_LEN).next_multiple_of(Self::WORD));
            let piece = buffer.get_mut(..len).ok_or(StoreError::Verify)?;
            self.read(at, piece)?;
            let (values, rest) = piece.split_at(left.min(len));
            crc.update(values);
            take(values);
            if let Some((stored, _)) = rest.split_first_chunk::<CRC_LEN>() {
                return Ok(crc.finalize() == u32::from_le_bytes(*stored));
            }
            left -= values.len();
            at += len as u32;
        }
    }
}
