//! The perturbation of the clean-label attack `cl` (arXiv 1912.02771): projected gradient descent against a model trained on the
//! clean pictures, so that what is left to learn the class from is the trigger.

use crate::attack::{EPSILON, Perturb};
use crate::augment;
use crate::config::RunConfig;
use crate::engine::{CpuEngine, Lesson};
use crate::error::Failure;
use crate::model::TrapNet;
use crate::trap::fingerprint;
use dfdx::prelude::Cpu;
use std::error::Error;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use stemguard_runtime::data::{LoadOptions, Part, Pictures, Source, Spec, load_part, write_npz};
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::session::to_f32;

/// Epochs of the model the perturbation is made against.
pub const EPOCHS: u32 = 8;
/// Steps of the descent, and the size of each in bytes.
pub const STEPS: usize = 10;
/// Size of a step in bytes; the steps together can cross the whole range of the bound.
pub const STEP: f32 = 4.0;
/// Pictures perturbed together.
const BATCH: usize = 100;

/// The name of the file that keeps a run's pictures: `perturbed-FINGERPRINT.npz`, of the settings that they come from.
pub fn kept_as(c: &RunConfig) -> String {
    let c = RunConfig { oracle: false, epochs: EPOCHS, every: 1, mse: 0.0, tv: 0.0, ..c.undefended() };
    format!("{KEPT}{}.npz", fingerprint(&c))
}

/// Whether a file has such a name.
pub fn is_kept(name: &OsStr) -> bool {
    name.to_str().is_some_and(|n| n.starts_with(KEPT) && n.ends_with(".npz"))
}

/// What such names begin with.
const KEPT: &str = "perturbed-";

/// Perturbs by descent, or takes what an earlier call of the same run left in a file.
pub struct Descent<'a> {
    config: &'a RunConfig,
    kernels: &'a Simd,
    kept: Option<PathBuf>,
}

impl<'a> Descent<'a> {
    /// For a run; with a directory, the perturbed pictures are kept there, as [`kept_as`] names the file.
    pub fn new(config: &'a RunConfig, kernels: &'a Simd, dir: Option<&Path>) -> Self {
        Self { config, kernels, kept: dir.map(|d| d.join(kept_as(config))) }
    }

    /// What an earlier call left, if it fits.
    fn load(&self, pictures: &Pictures, count: usize) -> Result<Option<Pictures>, Failure> {
        let Some(path) = self.kept.as_ref().filter(|p| p.is_file()) else { return Ok(None) };
        let spec = Spec { source: Source::Npz(path.clone()), part: None };
        let kept = load_part(&spec, &LoadOptions::default(), Part::Train)?;
        if kept.len() != count || (kept.h, kept.w) != (pictures.h, pictures.w) {
            return Err(Failure::file(path, "does not belong to this run"));
        }
        Ok(Some(kept))
    }

    /// Trains the model, then moves each chosen picture up its loss, within the bound.
    fn make(&self, pictures: &Pictures, indices: &[usize]) -> Result<Pictures, Failure> {
        let c = RunConfig { trap: false, epochs: EPOCHS, ..self.config.clone() };
        let dev = Cpu::default();
        let mut net = TrapNet::new(c.architecture, pictures.shape(), pictures.classes.len(), false, c.seed, &dev)?;
        net.stem.input_gradient = true;
        let mut engine = CpuEngine::new(net, c.objective(), self.kernels.clone(), dev);
        for epoch in 0..c.epochs {
            let rate = c.rate * c.schedule.factor(epoch, c.epochs);
            let order = augment::order(c.seed, epoch, pictures.len());
            for chosen in order.chunks_exact(c.batch) {
                let labels: Vec<u32> = chosen.iter().map(|&i| pictures.labels[i as usize]).collect();
                engine.step(augment::batch(self.kernels, &c, pictures, epoch, chosen), Lesson::learn(&labels), rate)?;
            }
        }
        let mut made = pictures.subset(indices);
        let len = pictures.shape().len();
        let bound = f32::from(EPSILON) / 255.0;
        for first in (0..made.len()).step_by(BATCH) {
            let last = (first + BATCH).min(made.len());
            let mut plain = vec![0.0; (last - first) * len];
            to_f32(&made.pixels[first * len..last * len], &mut plain);
            let labels = &made.labels[first..last];
            let mut x = plain.clone();
            for _ in 0..STEPS {
                let gradient = engine.input_gradient(x.clone(), labels)?;
                for ((x, &p), &g) in x.iter_mut().zip(&plain).zip(&gradient) {
                    let step = if g > 0.0 {
                        STEP
                    } else if g < 0.0 {
                        -STEP
                    } else {
                        0.0
                    };
                    *x = (*x + step / 255.0).clamp(p - bound, p + bound).clamp(0.0, 1.0);
                }
            }
            for (byte, v) in made.pixels[first * len..last * len].iter_mut().zip(&x) {
                *byte = (v * 255.0).round() as u8;
            }
        }
        Ok(made)
    }
}

impl Perturb for Descent<'_> {
    fn perturb(&self, pictures: &mut Pictures, indices: &[usize]) -> Result<(), Box<dyn Error + Send + Sync>> {
        let made = match self.load(pictures, indices.len())? {
            Some(kept) => kept,
            None => {
                let made = self.make(pictures, indices)?;
                if let Some(path) = &self.kept {
                    if let Some(dir) = path.parent() {
                        std::fs::create_dir_all(dir).map_err(|e| Failure::file(dir, e))?;
                    }
                    write_npz(path, &made)?;
                }
                made
            }
        };
        for (place, &i) in indices.iter().enumerate() {
            pictures.picture_mut(i).copy_from_slice(made.picture(place));
        }
        Ok(())
    }
}
