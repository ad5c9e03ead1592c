//! Runs the stem and heads in memory of fixed size.

use crate::assets::{self, PICTURE_LEN};
use crate::bank::{Bank, CHANNELS};
use crate::lesson::Taught;
use bytemuck::try_cast_slice_mut;
use stemguard_runtime::artifact::HeadSpec;
use stemguard_runtime::error::{Error, Result};
use stemguard_runtime::head;
use stemguard_runtime::kernels::reference::Reference;
use stemguard_runtime::net::int8::{Int8Net, Quant};
use stemguard_runtime::replace::trial::Paired;
use stemguard_runtime::shape::Shape;
use stemguard_runtime::stem::Stem;

#[cfg(all(target_arch = "arm", target_os = "none"))]
use stemguard_runtime::kernels::int8_dsp::Dsp as Kernels;
#[cfg(not(all(target_arch = "arm", target_os = "none")))]
use stemguard_runtime::net::int8::ScalarInt8 as Kernels;

/// Classes of the model.
pub const CLASSES: usize = 10;
/// The stem's output.
pub const FEATURES: Shape = Shape::new(8, 8, CHANNELS as u32);
/// `f32` values of the working memory: the stem's arena, then a feature map and a residual head's scratch, then the memory of
/// training; never two of them at once. [`crate::scenario`] compares it with what the core asks for.
pub const WORK: usize = 13_120;
/// Parameters of a linear head.
pub const PARAMS: usize = 1_546;

/// The stem's and heads' memory.
#[derive(Debug)]
pub struct Engine {
    /// Arena; or map and scratch; or training.
    pub work: [f32; WORK],
    /// The picture, `[32][32][3]`.
    picture: [i8; PICTURE_LEN],
    /// Its features, `[8][8][64]`.
    pub map: [i8; FEATURES.len()],
}

/// All memory of the device, static.
#[derive(Debug)]
pub struct Memory {
    /// Inference; training works in the same place.
    pub engine: Engine,
    /// The feature bank.
    pub bank: Bank,
    /// Order of pictures in training.
    pub order: [u32; 2 * crate::bank::CAPACITY],
    /// The new head.
    pub params: [f32; PARAMS],
    /// The old head.
    pub spare: [f32; PARAMS],
    /// The self-test's counts.
    pub counts: [Paired; CLASSES],
    /// What is taught of the bank.
    pub taught: Taught,
    /// Heads that were taught badly.
    pub others: [[f32; PARAMS]; OTHERS],
    /// Their self-tests' counts.
    pub other_counts: [[Paired; CLASSES]; OTHERS],
}

/// Heads that are tried side by side.
pub const OTHERS: usize = 3;

/// No counts yet.
const UNCOUNTED: [Paired; CLASSES] = [Paired { cases: 0, lost: 0, gained: 0 }; CLASSES];

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// All zeros.
    pub const fn new() -> Self {
        Self {
            engine: Engine::new(),
            bank: Bank::new(),
            order: [0; 2 * crate::bank::CAPACITY],
            params: [0.0; PARAMS],
            spare: [0.0; PARAMS],
            counts: UNCOUNTED,
            taught: Taught::new(),
            others: [[0.0; PARAMS]; OTHERS],
            other_counts: [UNCOUNTED; OTHERS],
        }
    }
}

/// The stem, if it is one that this device has the memory for.
pub fn stem_of(stem: Stem<'static>) -> Result<Int8Net<'static>> {
    let net = stem.int8().ok_or(Error::BadSetting("the stem must be in 8 bits"))?;
    let fits = net.input().len() == PICTURE_LEN && net.output() == FEATURES && net.input_quant() == Quant::PICTURE;
    if fits { Ok(net) } else { Err(Error::BadSetting("picture or feature shape")) }
}

/// A byte as the stem takes it ([`Quant::PICTURE`]).
const fn quantised(byte: u8) -> i8 {
    (byte ^ 0x80) as i8
}

impl Default for Engine {
    fn default() -> Self {
        Self::new()
    }
}

impl Engine {
    /// All zeros.
    pub const fn new() -> Self {
        Self { work: [0.0; WORK], picture: [0; PICTURE_LEN], map: [0; FEATURES.len()] }
    }

    /// Runs the stem on a picture, the attacker's trigger put on it or not; the features are in [`Engine::map`].
    pub fn features(&mut self, net: &Int8Net<'_>, picture: &[u8], triggered: bool) -> Result<()> {
        let given = picture.len();
        if given != PICTURE_LEN {
            return Err(Error::WrongLength { needed: PICTURE_LEN, given });
        }
        self.picture.iter_mut().zip(picture).for_each(|(to, &byte)| *to = quantised(byte));
        if triggered {
            for (at, byte) in assets::trigger() {
                self.picture.get_mut(at..at + 3).unwrap_or_default().fill(quantised(byte));
            }
        }
        let arena = try_cast_slice_mut(&mut self.work).map_err(|_| Error::Misaligned)?;
        net.run(&mut Kernels, &self.picture, arena, &mut self.map)
    }

    /// The features as a head takes them, and the memory left for its scratch. What was in [`Engine::work`] is gone.
    pub fn dequantised(&mut self, quant: Quant) -> (&[f32], &mut [f32]) {
        let (x, scratch) = self.work.split_at_mut(FEATURES.len());
        x.iter_mut().zip(&self.map).for_each(|(x, &q)| *x = quant.dequantise(q));
        (x, scratch)
    }

    /// A head's logits for the features in [`Engine::map`].
    pub fn logits(&mut self, quant: Quant, head: (&HeadSpec, &[f32])) -> Result<[f32; CLASSES]> {
        let mut logits = [0.0; CLASSES];
        let (x, scratch) = self.dequantised(quant);
        head::infer(&Reference, head.0, head.1, 1, x, scratch, &mut logits)?;
        Ok(logits)
    }
}
