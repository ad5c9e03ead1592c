//! What can go wrong with a head or a counter in flash.

use crate::error::Error;
use core::fmt;
use embedded_storage::nor_flash::NorFlashErrorKind;

/// Why flash storage refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreError {
    /// The flash driver failed.
    Flash(NorFlashErrorKind),
    /// What was written does not read back.
    Verify,
    /// The places asked for do not suit the flash.
    BadLayout(&'static str),
    /// The record is longer than a slot.
    SlotTooSmall {
        /// Bytes the record takes.
        needed: usize,
        /// Bytes of a slot.
        given: usize,
    },
    /// A head is on trial: confirm or reject it first.
    OnTrial,
    /// No head is on trial.
    NotOnTrial,
    /// The head itself is refused.
    Head(Error),
    /// Sequence numbers are used up.
    Exhausted,
}

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        Self::Head(error)
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Flash(kind) => write!(f, "flash: {kind}"),
            Self::Verify => f.write_str("flash: what was written does not read back"),
            Self::BadLayout(what) => write!(f, "flash layout: {what}"),
            Self::SlotTooSmall { needed, given } => write!(f, "a slot of {given} bytes where {needed} are needed"),
            Self::OnTrial => f.write_str("a head is on trial: confirm or reject it first"),
            Self::NotOnTrial => f.write_str("no head is on trial"),
            Self::Head(error) => error.fmt(f),
            Self::Exhausted => f.write_str("sequence numbers are used up"),
        }
    }
}

impl core::error::Error for StoreError {}
