//! The published head trained on the device, where there are megabytes of memory: the same core, one boot.
//!
//! ```text
//! model -> stem -> maps of clean pictures, whole and in 8 bits -> replace (residual head) -> ACC, ASR -> flash slot -> read again
//! ```
//!
//! Fewer pictures and epochs than a host would take: 270 million instructions go into one picture of a training step.

use crate::assets;
use crate::engine::{CLASSES, Engine, FEATURES, stem_of};
use crate::flash::{SECTOR, WORD};
use crate::json::Line;
use crate::scenario::{CRC, Fault, Platform, evaluate, measured, sum_up};
use core::mem::size_of;
use embedded_storage::nor_flash::NorFlash;
use heapless::Vec;
use stemguard_runtime::artifact::{Artifact, HeadKind, HeadSpec, digest, head_params};
use stemguard_runtime::head::HeadModel;
use stemguard_runtime::head::residual::Residual;
use stemguard_runtime::kernels::reference::Reference;
use stemguard_runtime::net::int8::Quant;
use stemguard_runtime::replace::{Settings, Source, fit, memory_len};
use stemguard_runtime::rng::Rng;
use stemguard_runtime::shape::Shape;
use stemguard_runtime::slots::{Boot, HeadStore, Layout, StemId, slot_len};

/// How the device trains.
pub const SETTINGS: Settings = Settings { batch: 8, epochs: 3, cutmix: false, dropout: 0.0, ..Settings::CACHED };
/// Pictures banked.
pub const BANKED: usize = 64;
/// Parameters of the head.
pub const PARAMS: usize = head_params(HeadKind::Residual, FEATURES, CLASSES as u32);
/// `f32` values of training memory; [`boot`] compares it with what the core asks for.
const TRAINING: usize = 422_910;
/// Sums of a training step; compared likewise.
const SUMS: usize = 512;
/// Bytes of a slot.
const SLOT: usize = slot_len(PARAMS, WORD, SECTOR);
/// Where the slots lie.
pub const LAYOUT: Layout = Layout { slots: [0, SLOT as u32], len: SLOT as u32 };
/// Bytes of the whole flash.
pub const FLASH_LEN: usize = 2 * SLOT;

/// All memory of the device, static.
#[derive(Debug)]
pub struct Memory {
    engine: Engine,
    maps: Maps,
    order: [u32; 2 * BANKED],
    training: [f32; TRAINING],
    sums: [f64; SUMS],
    params: [f32; PARAMS],
}

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
            maps: Maps { maps: Vec::new(), labels: Vec::new() },
            order: [0; 2 * BANKED],
            training: [0.0; TRAINING],
            sums: [0.0; SUMS],
            params: [0.0; PARAMS],
        }
    }
}

/// Whole feature maps and labels.
#[derive(Debug)]
struct Maps {
    maps: Vec<[i8; FEATURES.len()], BANKED>,
    labels: Vec<u32, BANKED>,
}

/// The maps as training features.
struct MapSource<'a> {
    bank: &'a Maps,
    quant: Quant,
}

impl MapSource<'_> {
    fn fill(&self, picture: usize, x: &mut [f32]) {
        if let Some(map) = self.bank.maps.get(picture) {
            x.iter_mut().zip(map).for_each(|(x, &q)| *x = self.quant.dequantise(q));
        }
    }
}

impl Source for MapSource<'_> {
    fn shape(&self) -> Shape {
        FEATURES
    }

    fn labels(&self) -> &[u32] {
        &self.bank.labels
    }

    fn plain(&mut self, first: usize, n: usize, x: &mut [f32]) {
        x.chunks_exact_mut(FEATURES.len()).take(n).enumerate().for_each(|(i, x)| self.fill(first + i, x));
    }

    fn batch(&mut self, batch: &[u32], _: Option<&[u32]>, _: &mut Rng, x: &mut [f32]) -> f32 {
        x.chunks_exact_mut(FEATURES.len()).zip(batch).for_each(|(x, &picture)| self.fill(picture as usize, x));
        1.0
    }
}

/// One boot. Errors: what the device could not do, or did otherwise than it must.
pub fn boot<P: Platform, F: NorFlash>(platform: &mut P, memory: &mut Memory, flash: &mut F) -> Result<(), Fault> {
    let bytes = assets::unsigned();
    let artifact = Artifact::new_checked(bytes)?;
    let (net, id) = (stem_of(artifact.stem())?, StemId { digest: digest(bytes), features: FEATURES });
    let head = Residual::new(FEATURES, CLASSES)?;
    let training = memory_len(&head, SETTINGS.batch);
    if (training, head.training_sums()) != (TRAINING, SUMS) {
        return Err(Fault::Unexpected("static buffers are not what the core asks for"));
    }
    let mut line = Line::new("stage", "memory");
    line.number("maps", (BANKED * (FEATURES.len() + size_of::<u32>())) as u64);
    platform.line(line.number("training", 4 * training as u64).number("parameters", 4 * PARAMS as u64).end());
    if platform.instructions().is_some() {
        platform.line(Line::new("measured", "static memory").number("bytes", size_of::<Memory>() as u64).end());
    }

    let Memory { engine, maps, order, training, sums, params } = memory;
    maps.maps.clear();
    maps.labels.clear();
    let mut banked = CRC.digest();
    for (picture, label) in assets::streamed().iter().take(BANKED) {
        engine.features(&net, picture, false)?;
        banked.update(bytemuck::try_cast_slice(&engine.map).unwrap_or_default());
        let _ = (maps.maps.push(engine.map), maps.labels.push(label));
    }
    let mut line = Line::new("stage", "bank");
    line.number("banked", maps.labels.len() as u64);
    platform.line(line.digest("maps", banked.finalize()).end());

    let (steps, mut loss) = (SETTINGS.epochs as u64 * (BANKED / SETTINGS.batch) as u64, 0.0);
    let (start, mut source) = (platform.instructions(), MapSource { bank: maps, quant: net.output_quant() });
    fit(&Reference, &head, &SETTINGS, &mut source, params, training, sums, order, &mut |p| {
        loss = p.loss;
        true
    })?;
    measured(platform, "training step", start, steps);
    let mut trained = CRC.digest();
    sum_up(&mut trained, params);
    let mut line = Line::new("stage", "train");
    line.number("pictures", BANKED as u64).number("steps", steps);
    let trained = trained.finalize();
    platform.line(line.digest("loss", loss.to_bits()).digest("parameters", trained).end());

    let mut store = HeadStore::new_checked(flash, LAYOUT, id)?;
    store.store(HeadKind::Residual, CLASSES as u32, params)?;
    let Boot::Trial { new, .. } = store.boot()? else { return Err(Fault::Unexpected("the head is not on trial")) };
    params.fill(0.0);
    store.load(&new, params)?;
    let mut read = CRC.digest();
    sum_up(&mut read, params);
    if read.finalize() != trained {
        return Err(Fault::Unexpected("another head came back from flash"));
    }
    let spec: HeadSpec = new.spec();
    evaluate(platform, engine, &net, (&spec, params), None, "residual").map(|_| ())
}
