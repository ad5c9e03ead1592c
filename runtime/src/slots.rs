//! Heads in flash: two slots, so that a power cut at any moment leaves the old head or the new one, whole.
//!
//! ```text
//! store -> written -> boot -> on trial -> confirm -> confirmed
//!                                      -> reject, or a second boot -> rejected: the old head is back
//! ```
//!
//! A new head goes to the slot that is not in use. The next [`HeadStore::boot`] hands it out on trial, once: the device tests
//! itself ([`crate::replace::trial`]) and confirms or rejects it. If it does neither, because it hangs or loses power, the boot
//! after that rejects it. Each step is one write of one word that was erased, so flash with an error-correcting code, where a
//! word can be written only once, will do. An update erases one slot, and confirmed updates alternate between the two.
//!
//! ```
//! use embedded_storage::nor_flash::NorFlash;
//! use stemguard_runtime::replace::trial::Verdict;
//! use stemguard_runtime::slots::{Boot, HeadStore, StoreError};
//!
//! /// Loads the head to run; false for the artifact's own. `params` and `spare` hold one head each.
//! fn boot<F: NorFlash>(
//!     store: &mut HeadStore<F>,
//!     params: &mut [f32],
//!     spare: &mut [f32],
//!     self_test: impl Fn(&[f32], Option<&[f32]>) -> Verdict,
//! ) -> Result<bool, StoreError> {
//!     match store.boot()? {
//!         Boot::Factory => Ok(false),
//!         Boot::Confirmed(head) => store.load(&head, params).map(|()| true),
//!         Boot::Trial { new, old } => {
//!             store.load(&new, params)?;
//!             if let Some(old) = old {
//!                 store.load(&old, spare)?;
//!             }
//!             match self_test(params, old.map(|_| &*spare)) {
//!                 Verdict::Confirm => store.confirm().map(|_| true),
//!                 Verdict::Reject => {
//!                     params.copy_from_slice(spare);
//!                     Ok(store.reject()?.is_some())
//!                 }
//!             }
//!         }
//!     }
//! }
//! ```
//!
//! A record is bound to its stem by the SHA-256 of the stem's artifact: heads of another stem are never handed out.
//! [`Counter`] keeps the lowest model version that a device still accepts. `spec/flash.md` tells every byte.

mod counter;
mod error;
mod nor;
mod record;
#[cfg(all(test, feature = "std"))]
pub(crate) mod tests;
mod writer;

pub use counter::{Counter, counter_len};
pub use error::StoreError;
pub use record::StoredHead;
pub use writer::Writer;

use crate::artifact::{Artifact, HeadKind, digest};
use crate::error::Error;
use crate::shape::Shape;
use embedded_storage::nor_flash::NorFlash;
use nor::{Mark, Nor};
use record::{Header, Marks, Step, params_at, record_len};

/// Where the two slots lie in the flash, in bytes: whole sectors that do not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Where each slot begins.
    pub slots: [u32; 2],
    /// Bytes of a slot, at least [`slot_len`].
    pub len: u32,
}

/// Bytes of a slot for heads of up to `params` parameters ([`crate::artifact::head_params`]), in whole sectors of `erase_size`
/// bytes, on a flash written in words of `write_size` bytes.
///
/// # Panics
/// Where either size is 0.
pub const fn slot_len(params: usize, write_size: usize, erase_size: usize) -> usize {
    record_len(params, write_size).div_ceil(erase_size).saturating_mul(erase_size)
}

/// The stem a head belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StemId {
    /// SHA-256 of the stem's artifact, a trailer not included ([`crate::artifact::digest`]).
    pub digest: [u8; 32],
    /// Shape of the stem's output.
    pub features: Shape,
}

impl StemId {
    /// The identity of an artifact's stem. Errors: those of [`Artifact::new_checked`].
    pub fn of(artifact: &[u8]) -> Result<Self, Error> {
        let features = Artifact::new_checked(artifact)?.stem().output();
        Ok(Self { digest: digest(artifact), features })
    }
}

/// What to run after a boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boot {
    /// No head of this stem is stored: the artifact's own, if it has one.
    Factory,
    /// The confirmed head.
    Confirmed(StoredHead),
    /// A new head, to be tested now against the old one, and confirmed or rejected.
    Trial {
        /// The new head.
        new: StoredHead,
        /// The confirmed head, if there is one.
        old: Option<StoredHead>,
    },
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// No whole record: erased, or cut short.
    Empty,
    /// A head of another stem.
    Foreign,
    /// A head that awaits its trial.
    Written(StoredHead),
    /// A head whose trial has begun.
    OnTrial(StoredHead),
    /// A head that passed its trial.
    Confirmed(StoredHead),
    /// A head that did not.
    Rejected(StoredHead),
}

/// Two slots for heads of one stem.
#[derive(Debug)]
pub struct HeadStore<F> {
    flash: Nor<F>,
    layout: Layout,
    stem: StemId,
}

/// What both slots hold: where each begins, its record if there is a whole one, its state.
struct Survey([(u32, Option<StoredHead>, SlotState); 2]);

impl Survey {
    /// The confirmed head, the later one of two.
    fn in_use(&self) -> Option<StoredHead> {
        self.latest(|state| matches!(state, SlotState::Confirmed(_)))
    }

    /// A head later than the one in use that is neither confirmed nor rejected.
    fn candidate(&self) -> Option<StoredHead> {
        let head = self.latest(|state| matches!(state, SlotState::Written(_) | SlotState::OnTrial(_)))?;
        self.in_use().is_none_or(|old| old.sequence() < head.sequence()).then_some(head)
    }

    /// The candidate, where its trial has begun.
    fn on_trial(&self) -> Option<StoredHead> {
        self.candidate().filter(|&head| self.0.iter().any(|slot| slot.2 == SlotState::OnTrial(head)))
    }

    fn latest(&self, wanted: fn(&SlotState) -> bool) -> Option<StoredHead> {
        let found = self.0.iter().filter(|slot| wanted(&slot.2)).filter_map(|slot| slot.1);
        found.max_by_key(StoredHead::sequence)
    }

    /// Where the next head goes: not to the slot in use; then to a candidate's, an empty one, that of the earlier record.
    fn target(&self) -> u32 {
        let [(a, first, _), (b, second, _)] = self.0;
        let sequence = |head: Option<StoredHead>| head.map_or(0, |head| head.sequence());
        match (self.in_use(), self.candidate()) {
            (Some(used), _) => {
                if used.slot_at == a {
                    b
                } else {
                    a
                }
            }
            (None, Some(replaced)) => replaced.slot_at,
            (None, None) => {
                if sequence(second) < sequence(first) {
                    b
                } else {
                    a
                }
            }
        }
    }

    /// The largest sequence number in either slot.
    fn sequence(&self) -> u32 {
        self.0.iter().filter_map(|slot| slot.1).map(|head| head.sequence()).max().unwrap_or(0)
    }
}

impl<F: NorFlash> HeadStore<F> {
    /// A store over the slots of `layout` for heads of `stem`. Nothing is read or written yet.
    ///
    /// # Errors
    /// [`StoreError::BadLayout`]: slots that are not whole sectors within the flash, overlap, or are too small for any head;
    /// words that are no power of two or of more than 256 bytes, or do not go with what is read or erased at a time.
    pub fn new_checked(flash: F, layout: Layout, stem: StemId) -> Result<Self, StoreError> {
        let flash = Nor::new_checked(flash)?;
        let [a, b] = layout.slots;
        let fail = |what| Err(StoreError::BadLayout(what));
        if !(flash.holds_sectors(a, layout.len) && flash.holds_sectors(b, layout.len)) {
            return fail("slots must be whole sectors within the flash");
        }
        if a.abs_diff(b) < layout.len {
            return fail("the slots overlap");
        }
        if (layout.len as usize) < record_len(1, Nor::<F>::WORD) {
            return fail("the slots are too small for any head");
        }
        Ok(Self { flash, layout, stem })
    }

    /// What to run. To be called once a boot, before anything else: a head that awaits its trial begins it, one whose trial
    /// was begun at an earlier boot is rejected.
    ///
    /// # Errors
    /// Those of the flash; [`HeadStore::in_use`] then still tells which head is sound. A slot that cannot be read counts as
    /// empty.
    pub fn boot(&mut self) -> Result<Boot, StoreError> {
        let survey = self.survey();
        let old = survey.in_use();
        if let Some(failed) = survey.on_trial() {
            self.flash.take(Step::Rejected, &failed)?;
        } else if let Some(new) = survey.candidate() {
            self.flash.take(Step::Trial, &new)?;
            return Ok(Boot::Trial { new, old });
        }
        Ok(old.map_or(Boot::Factory, Boot::Confirmed))
    }

    /// The confirmed head, if there is one. Writes nothing.
    pub fn in_use(&mut self) -> Option<StoredHead> {
        self.survey().in_use()
    }

    /// Stores a new head for its trial at the next boot.
    ///
    /// # Errors
    /// Those of [`HeadStore::begin`], [`Writer::push`] and [`Writer::finish`].
    pub fn store(&mut self, kind: HeadKind, classes: u32, params: &[f32]) -> Result<StoredHead, StoreError> {
        let mut writer = self.begin(kind, classes)?;
        writer.push(params)?;
        writer.finish()
    }

    /// Begins to store a new head whose parameters come piece by piece: erases the slot that is not in use.
    ///
    /// # Errors
    /// [`StoreError::OnTrial`], [`StoreError::SlotTooSmall`], [`Error::HeadDoesNotFit`], [`StoreError::Exhausted`], and those of
    /// the flash.
    pub fn begin(&mut self, kind: HeadKind, classes: u32) -> Result<Writer<'_, F>, StoreError> {
        if !(1..=Shape::MAX_SIDE).contains(&classes) || !self.stem.features.is_valid() {
            return Err(Error::HeadDoesNotFit.into());
        }
        let mut header = Header { sequence: 0, kind, classes, stem: self.stem };
        let (needed, given) = (record_len(header.params(), Nor::<F>::WORD), self.layout.len as usize);
        if needed > given {
            return Err(StoreError::SlotTooSmall { needed, given });
        }
        let survey = self.survey();
        if survey.on_trial().is_some() {
            return Err(StoreError::OnTrial);
        }
        header.sequence = survey.sequence().checked_add(1).ok_or(StoreError::Exhausted)?;
        let slot_at = survey.target();
        let params_at = slot_at + params_at(Nor::<F>::WORD) as u32;
        Writer::begin(self, StoredHead { header, slot_at, params_at })
    }

    /// Confirms the head on trial: from now on it is the one in use.
    ///
    /// # Errors
    /// [`StoreError::NotOnTrial`], and those of the flash: the next boot then settles which head it is.
    pub fn confirm(&mut self) -> Result<StoredHead, StoreError> {
        let head = self.survey().on_trial().ok_or(StoreError::NotOnTrial)?;
        self.flash.take(Step::Confirmed, &head)?;
        Ok(head)
    }

    /// As [`HeadStore::confirm`], and keeps beside the head the threshold of the tripwire that was set for it
    /// ([`crate::tripwire::threshold`]): it becomes the head in use with its threshold, or not at all.
    ///
    /// # Errors
    /// [`Error::NotFinite`], and those of [`HeadStore::confirm`].
    pub fn confirm_watched(&mut self, threshold: f32) -> Result<StoredHead, StoreError> {
        if !threshold.is_finite() {
            return Err(Error::NotFinite.into());
        }
        let head = self.survey().on_trial().ok_or(StoreError::NotOnTrial)?;
        self.flash.keep_threshold(&head, threshold)?;
        self.flash.take(Step::Confirmed, &head)?;
        Ok(head)
    }

    /// The threshold kept beside a head; none where none was ever written for it.
    pub fn threshold(&mut self, head: &StoredHead) -> Option<f32> {
        self.flash.threshold(head)
    }

    /// Rejects the head on trial; the head to go back to, none for the artifact's own.
    ///
    /// # Errors
    /// [`StoreError::NotOnTrial`], and those of the flash: the next boot rejects it in any case.
    pub fn reject(&mut self) -> Result<Option<StoredHead>, StoreError> {
        let survey = self.survey();
        let head = survey.on_trial().ok_or(StoreError::NotOnTrial)?;
        self.flash.take(Step::Rejected, &head)?;
        Ok(survey.in_use())
    }

    /// Reads a head's parameters and checks them again.
    ///
    /// # Errors
    /// [`Error::WrongLength`], [`Error::Corrupt`], and those of the flash.
    pub fn load(&mut self, head: &StoredHead, params: &mut [f32]) -> Result<(), StoreError> {
        let needed = head.header.params();
        if params.len() != needed {
            return Err(Error::WrongLength { needed, given: params.len() }.into());
        }
        let mut to = params.iter_mut();
        let whole = self.flash.pass(head, |piece| {
            for (bytes, to) in piece.chunks_exact(4).zip(&mut to) {
                *to = bytes.try_into().map_or(f32::NAN, f32::from_le_bytes);
            }
        })?;
        if whole { Ok(()) } else { Err(Error::Corrupt.into()) }
    }

    /// What the slots hold, in the layout's order.
    pub fn slots(&mut self) -> [SlotState; 2] {
        self.survey().0.map(|(_, _, state)| state)
    }

    /// Gives the flash back.
    pub fn release(self) -> F {
        self.flash.0
    }

    fn survey(&mut self) -> Survey {
        Survey(self.layout.slots.map(|at| {
            let found = self.flash.find(at, self.layout.len);
            (at, found, found.map_or(SlotState::Empty, |head| self.state(head)))
        }))
    }

    /// A torn mark counts as what is safe: a trial as begun, a rejection as given, a confirmation as not.
    fn state(&mut self, head: StoredHead) -> SlotState {
        match self.flash.marks(head.slot_at) {
            _ if head.header.stem != self.stem => SlotState::Foreign,
            Marks { rejected: Mark::Set | Mark::Torn, .. } => SlotState::Rejected(head),
            Marks { confirmed: Mark::Set, .. } => SlotState::Confirmed(head),
            Marks { trial: Mark::Clear, confirmed: Mark::Clear, .. } => SlotState::Written(head),
            _ => SlotState::OnTrial(head),
        }
    }
}
