//! A number that never falls: the lowest model version a device still accepts.

use super::StoreError;
use super::nor::{CHUNK, Nor};
use embedded_storage::nor_flash::NorFlash;

/// Bytes of the value in an entry: twice the value and its complement, u32, little-endian. A write or an erasure that was cut
/// short leaves bits of a pair equal, so that it is always seen.
const VALUE_LEN: usize = 16;

/// Bytes of flash a counter takes: two sectors.
pub const fn counter_len(erase_size: usize) -> usize {
    2 * erase_size
}

/// A counter in two sectors of NOR flash. Entries are appended to one sector; when it is full, the other is erased and the next
/// entry goes there. The value is the largest of all whole entries, so a power cut leaves the old value or the new one, and the
/// two sectors wear evenly.
#[derive(Debug)]
pub struct Counter<F> {
    flash: Nor<F>,
    sectors: [u32; 2],
}

/// What a sector holds.
struct Sector {
    at: u32,
    /// The largest value of a whole entry.
    value: Option<u32>,
    /// Entries up to the last that is not erased.
    used: u32,
    /// Entries that could be read.
    readable: u32,
}

impl<F: NorFlash> Counter<F> {
    /// Bytes from one entry to the next.
    const STRIDE: usize = if F::WRITE_SIZE > VALUE_LEN { F::WRITE_SIZE } else { VALUE_LEN };
    /// Entries of a sector.
    const ENTRIES: u32 = (F::ERASE_SIZE / Self::STRIDE) as u32;

    /// The counter in the two sectors from `at`, in bytes. Nothing is read or written yet.
    ///
    /// # Errors
    /// [`StoreError::BadLayout`]: not two whole sectors within the flash; words or sectors as for
    /// [`HeadStore::new_checked`](super::HeadStore::new_checked).
    pub fn new_checked(flash: F, at: u32) -> Result<Self, StoreError> {
        let flash = Nor::new_checked(flash)?;
        let sector = F::ERASE_SIZE as u32;
        if Self::ENTRIES == 0 || !flash.holds_sectors(at, counter_len(F::ERASE_SIZE) as u32) {
            return Err(StoreError::BadLayout("a counter takes two whole sectors within the flash"));
        }
        Ok(Self { flash, sectors: [at, at + sector] })
    }

    /// The value; 0 before the first [`Counter::advance`].
    ///
    /// # Errors
    /// [`StoreError::Flash`] where nothing at all can be read.
    pub fn value(&mut self) -> Result<u32, StoreError> {
        let [first, second] = self.look()?;
        Ok(first.value.max(second.value).unwrap_or(0))
    }

    /// Raises the value to `to`; does nothing where it is there already.
    ///
    /// # Errors
    /// Those of the flash; the value is then the old or the new one.
    pub fn advance(&mut self, to: u32) -> Result<(), StoreError> {
        let [first, second] = self.look()?;
        if first.value.max(second.value).unwrap_or(0) >= to {
            return Ok(());
        }
        let (active, other) = if second.value > first.value { (second, first) } else { (first, second) };
        let mut at = active.at + active.used * Self::STRIDE as u32;
        if active.used >= Self::ENTRIES {
            // As long as there is no whole entry, all happens in one sector: the other one stays readable, and tells torn from dead.
            at = if active.value.is_some() { other.at } else { active.at };
            self.flash.erase(at, F::ERASE_SIZE as u32)?;
        }
        let mut entry = [0xff; CHUNK];
        entry.iter_mut().zip(encode(to)).for_each(|(byte, value)| *byte = value);
        self.flash.write(at, entry.get(..Self::STRIDE).unwrap_or_default())
    }

    /// Gives the flash back.
    pub fn release(self) -> F {
        self.flash.0
    }

    fn look(&mut self) -> Result<[Sector; 2], StoreError> {
        let [first, second] = self.sectors;
        let sectors = [self.sector(first), self.sector(second)];
        if sectors.iter().all(|sector| sector.readable == 0) {
            // Dead, rather than torn: tell how.
            self.flash.read(first, [0; CHUNK].get_mut(..Self::STRIDE).unwrap_or_default())?;
        }
        Ok(sectors)
    }

    fn sector(&mut self, at: u32) -> Sector {
        let mut found = Sector { at, value: None, used: 0, readable: 0 };
        let mut buffer = [0; CHUNK];
        let Some(entry) = buffer.get_mut(..Self::STRIDE) else { return found };
        for i in 0..Self::ENTRIES {
            let read = self.flash.read(at + i * Self::STRIDE as u32, entry);
            found.readable += u32::from(read.is_ok());
            if read.is_err() || entry.iter().any(|&byte| byte != 0xff) {
                found.used = i + 1;
            }
            if read.is_ok() {
                found.value = found.value.max(decode(entry));
            }
        }
        found
    }
}

fn encode(value: u32) -> [u8; VALUE_LEN] {
    let pair = u64::from(value) | u64::from(!value) << 32;
    (u128::from(pair) | u128::from(pair) << 64).to_le_bytes()
}

fn decode(entry: &[u8]) -> Option<u32> {
    let (bytes, padding) = entry.split_first_chunk::<VALUE_LEN>()?;
    let value = u128::from_le_bytes(*bytes) as u32;
    (encode(value) == *bytes && padding.iter().all(|&byte| byte == 0xff)).then_some(value)
}
