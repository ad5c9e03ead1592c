//! What a device is taught: its bank as it is, or as it may come out in the field.

use crate::bank::{Bank, CAPACITY};
use crate::engine::CLASSES;
use heapless::Vec;

/// A holdout, sound or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lesson {
    /// All of the bank.
    Sound,
    /// Every label is that of the class after its own.
    AllWrong,
    /// Every tenth label is.
    TenthWrong,
    /// One class has a single picture.
    ClassRare,
    /// Three pictures a class, over and over.
    Copies,
    /// One class has none.
    ClassMissing,
}

impl Lesson {
    /// The lesson in a few words, for a line of output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sound => "sound",
            Self::AllWrong => "all labels wrong",
            Self::TenthWrong => "a tenth of the labels wrong",
            Self::ClassRare => "one picture of a class",
            Self::Copies => "three pictures a class, copied",
            Self::ClassMissing => "a class missing",
        }
    }
}

/// The class that [`Lesson::ClassRare`] and [`Lesson::ClassMissing`] take pictures from.
const CLASS: u32 = 3;

/// Pictures of a bank, by number, with the labels they are taught with.
#[derive(Debug)]
pub struct Taught {
    pub(crate) pictures: Vec<u32, CAPACITY>,
    pub(crate) labels: Vec<u32, CAPACITY>,
}

impl Default for Taught {
    fn default() -> Self {
        Self::new()
    }
}

impl Taught {
    /// Nothing.
    pub const fn new() -> Self {
        Self { pictures: Vec::new(), labels: Vec::new() }
    }

    /// Takes a lesson from a bank.
    pub fn take(&mut self, bank: &Bank, lesson: Lesson) {
        self.pictures.clear();
        self.labels.clear();
        let mut seen = [0u32; CLASSES];
        for (i, &label) in (0u32..).zip(bank.labels()) {
            let before = seen.get_mut(label as usize).map_or(0, |n| core::mem::replace(n, *n + 1));
            let held = match lesson {
                Lesson::Sound | Lesson::AllWrong | Lesson::TenthWrong => true,
                Lesson::ClassRare => label != CLASS || before == 0,
                Lesson::ClassMissing => label != CLASS,
                Lesson::Copies => before < 3,
            };
            let wrong = lesson == Lesson::AllWrong || lesson == Lesson::TenthWrong && i % 10 == 0;
            if held {
                self.push(i, if wrong { (label + 1) % CLASSES as u32 } else { label });
            }
        }
        let once = self.len();
        if lesson == Lesson::Copies {
            for i in 0..bank.len().saturating_sub(once) {
                let of = |all: &[u32]| all.get(i).copied().unwrap_or_default();
                self.push(of(&self.pictures), of(&self.labels));
            }
        }
    }

    fn push(&mut self, picture: u32, label: u32) {
        let _ = (self.pictures.push(picture), self.labels.push(label));
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stemguard_runtime::net::int8::Quant;
    use stemguard_runtime::rng::Rng;

    #[test]
    fn lessons_are_what_they_say() {
        let (mut bank, mut rng, mut taught) = (Bank::new(), Rng::new(1, 0), Taught::new());
        for label in 0..100 {
            bank.take(&[0; 4096], Quant { scale: 1.0, zero: 0 }, label % 10, &mut rng);
        }
        let mut of = |lesson| {
            taught.take(&bank, lesson);
            let own = |i: u32| i % 10;
            let wrong = taught.pictures.iter().zip(&taught.labels).filter(|&(&i, &label)| own(i) != label).count();
            let mut rare = taught.pictures.iter().filter(|&&i| own(i) == CLASS);
            let distinct: std::collections::BTreeSet<_> = taught.pictures.iter().collect();
            (taught.len(), wrong, rare.by_ref().count(), distinct.len())
        };
        assert_eq!(of(Lesson::Sound), (100, 0, 10, 100));
        assert_eq!(of(Lesson::AllWrong), (100, 100, 10, 100));
        assert_eq!(of(Lesson::TenthWrong), (100, 10, 10, 100));
        assert_eq!(of(Lesson::ClassRare), (91, 0, 1, 91));
        assert_eq!(of(Lesson::ClassMissing), (90, 0, 0, 90));
        assert_eq!(of(Lesson::Copies), (100, 0, 10, 30));
    }
}
