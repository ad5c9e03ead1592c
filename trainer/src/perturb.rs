//! The perturbation of the clean-label attack `cl` (arXiv 1912.02771): projected gradient descent against a model trained on the
//! clean pictures, so that what is left to learn the class from is the trigger.

use crate::attack::{EPSILON, Perturb};
use crate::augment;
use crate::config::RunConfig;
use crate::engine::{CpuEngine, Lesson};
use crate::error::Failure;
use crate::trap::{fingerprint, network};
use dfdx::prelude::Cpu;
use std::cell::RefCell;
use std::error::Error;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use stemguard_runtime::data::{LoadOptions, Part, Pictures, Source, Spec, load_part, write_npz};
use stemguard_runtime::files::{self, Together};
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::session::to_f32;

/// Epochs of the model the perturbation is made against.
pub const EPOCHS: u32 = 8;
/// Steps of the descent.
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
    tell: Option<RefCell<Tell<'a>>>,
}

/// Hears of pictures, of so many.
type Tell<'a> = &'a mut dyn FnMut(usize, usize);

impl<'a> Descent<'a> {
    /// For a run; with a directory, the perturbed pictures are kept there, as [`kept_as`] names the file. `tell` hears how far the model
    /// is trained; without it none is, and the file must be there.
    pub fn new(config: &'a RunConfig, kernels: &'a Simd, dir: Option<&Path>, tell: Option<Tell<'a>>) -> Self {
        Self { config, kernels, kept: dir.map(|d| d.join(kept_as(config))), tell: tell.map(RefCell::new) }
    }

    /// Makes sure of the place for the file before minutes are spent on what it will hold.
    fn make_room(&self) -> Result<(), Failure> {
        let Some(path) = &self.kept else { return Ok(()) };
        let refused = |e: std::io::Error| Failure::file(path, format!("cannot be written: {e}"));
        std::fs::create_dir_all(files::folder(path)).map_err(refused)?;
        Together::default().add(path, &[]).map_err(refused)
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

    /// The model that the perturbation is made against, trained on `pictures` as they are.
    fn model(&self, pictures: &Pictures) -> Result<CpuEngine, Failure> {
        let c = RunConfig { trap: false, epochs: EPOCHS, ..self.config.clone() };
        let dev = Cpu::default();
        let mut net = network(&c, pictures, false, &dev)?;
        net.stem.input_gradient = true;
        let mut engine = CpuEngine::new(net, c.objective(), self.kernels.clone(), dev);
        let (mut seen, all) = (0, c.epochs as usize * (pictures.len() / c.batch * c.batch));
        for epoch in 0..c.epochs {
            let rate = c.rate * c.schedule.factor(epoch, c.epochs);
            let order = augment::order(c.seed, epoch, pictures.len());
            for chosen in order.chunks_exact(c.batch) {
                let labels: Vec<u32> = chosen.iter().map(|&i| pictures.labels[i as usize]).collect();
                engine.step(augment::batch(self.kernels, &c, pictures, epoch, chosen), Lesson::learn(&labels), rate)?;
                seen += chosen.len();
                self.tell.iter().for_each(|tell| tell.borrow_mut()(seen, all));
            }
        }
        Ok(engine)
    }
}

/// Moves every picture up the loss of its label, in steps along the gradient's sign, within the bound.
fn ascend(engine: &mut CpuEngine, pictures: &mut Pictures) -> Result<(), Failure> {
    let len = pictures.shape().len();
    let bound = f32::from(EPSILON) / 255.0;
    for first in (0..pictures.len()).step_by(BATCH) {
        let last = (first + BATCH).min(pictures.len());
        let mut plain = vec![0.0; (last - first) * len];
        to_f32(&pictures.pixels[first * len..last * len], &mut plain);
        let labels = &pictures.labels[first..last];
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
        for (byte, v) in pictures.pixels[first * len..last * len].iter_mut().zip(&x) {
            *byte = (v * 255.0).round() as u8;
        }
    }
    Ok(())
}

impl Perturb for Descent<'_> {
    fn perturb(&self, pictures: &mut Pictures, indices: &[usize]) -> Result<(), Box<dyn Error + Send + Sync>> {
        let made = match self.load(pictures, indices.len())? {
            Some(kept) => kept,
            None if self.tell.is_none() => {
                let path = self.kept.as_deref().unwrap_or(Path::new(KEPT));
                let why = "not found, nor beside the run: the pictures that `cl` perturbed. The command that trained the run makes them \
                           again with --resume";
                return Err(Failure::file(path, why).into());
            }
            None => {
                self.make_room()?;
                let mut made = pictures.subset(indices);
                ascend(&mut self.model(pictures)?, &mut made)?;
                if let Some(path) = &self.kept {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TrapNet;
    use stemguard_runtime::rng::Rng;

    /// A network with its first weights, asked for the gradient of its input, and pictures of noise for it.
    fn untrained(pictures: usize) -> (CpuEngine, Pictures) {
        let (h, w, mut rng) = (8, 8, Rng::new(5, 0));
        let pixels = (0..pictures * h * w * 3).map(|_| rng.below(256) as u8).collect();
        let labels = (0..pictures as u32).map(|i| i % 3).collect();
        let classes = ["a", "b", "c"].map(String::from).to_vec();
        let made = Pictures { h, w, pixels, labels, classes, files: vec![] };
        let c = RunConfig::published("signs".into());
        let dev = Cpu::default();
        let mut net = TrapNet::new(c.architecture, made.shape(), 3, false, 1, &dev).expect("a network");
        net.stem.input_gradient = true;
        (CpuEngine::new(net, c.objective(), Simd::new(1), dev), made)
    }

    fn values(pictures: &Pictures) -> Vec<f32> {
        let mut x = vec![0.0; pictures.pixels.len()];
        to_f32(&pictures.pixels, &mut x);
        x
    }

    fn loss(engine: &mut CpuEngine, x: Vec<f32>, labels: &[u32]) -> f64 {
        let (report, _) = engine.gradients(x, Lesson::learn(labels)).expect("losses");
        f64::from(report.losses.ce)
    }

    #[test]
    fn the_gradient_of_the_pictures_agrees_with_finite_differences() {
        let (mut engine, pictures) = untrained(6);
        let (x, len) = (values(&pictures), pictures.shape().len());
        let gradient = engine.input_gradient(x.clone(), &pictures.labels).expect("a gradient");
        let h = 2e-4;
        // Along the gradient's signs, picture by picture and channel by channel.
        for i in 0..pictures.len() {
            for channel in 0..3 {
                let moved = |by: f32| -> Vec<f32> {
                    let mut x = x.clone();
                    for at in (i * len + channel..(i + 1) * len).step_by(3) {
                        x[at] += by * gradient[at].signum();
                    }
                    x
                };
                let rise =
                    loss(&mut engine, moved(h), &pictures.labels) - loss(&mut engine, moved(-h), &pictures.labels);
                let numeric = rise / (2.0 * f64::from(h));
                let analytic: f64 =
                    (i * len + channel..(i + 1) * len).step_by(3).map(|at| f64::from(gradient[at].abs())).sum();
                assert!(
                    analytic > 0.0 && (numeric - analytic).abs() <= 0.01 * analytic,
                    "{i} {channel}: {numeric} {analytic}"
                );
            }
        }
    }

    #[test]
    fn the_ascent_raises_the_loss_and_keeps_to_its_bound() {
        let (mut engine, pictures) = untrained(6);
        let mut made = pictures.clone();
        ascend(&mut engine, &mut made).expect("perturbed");
        let [before, after] = [&pictures, &made].map(|p| loss(&mut engine, values(p), &p.labels));
        assert!(after > 1.5 * before, "{before} to {after}");
        let moved: Vec<u8> = pictures.pixels.iter().zip(&made.pixels).map(|(a, b)| a.abs_diff(*b)).collect();
        let most = moved.iter().filter(|&&m| m == EPSILON).count();
        assert!(
            moved.iter().all(|&m| m <= EPSILON) && most * 2 > moved.len(),
            "{most} of {} at the bound",
            moved.len()
        );
        assert_eq!(made.labels, pictures.labels);
    }

    #[test]
    fn what_was_perturbed_is_kept_for_the_run_and_for_no_other() {
        let dir = tempfile::tempdir().expect("a directory");
        let (_, pictures) = untrained(40);
        let c = RunConfig { batch: 20, ..RunConfig::published("signs".into()) };
        let kernels = Simd::new(1);
        let perturbed = |c: &RunConfig, indices: &[usize]| {
            let mut made = pictures.clone();
            let mut heard = (0, 0);
            let mut tell = |seen, all| heard = (seen, all);
            Descent::new(c, &kernels, Some(dir.path()), Some(&mut tell)).perturb(&mut made, indices)?;
            // To the last step, or of none where a file was taken.
            assert!(heard.0 == heard.1, "{heard:?}");
            Ok::<_, Box<dyn Error + Send + Sync>>(made)
        };
        // Nothing is trained where nobody asks for it.
        let asked = Descent::new(&c, &kernels, Some(dir.path()), None).perturb(&mut pictures.clone(), &[1, 4]);
        assert!(asked.expect_err("not kept").to_string().contains("the pictures that `cl` perturbed"));
        let made = perturbed(&c, &[1, 4]).expect("perturbed");
        for i in 0..pictures.len() {
            assert_eq!(made.picture(i) != pictures.picture(i), [1, 4].contains(&i), "{i}");
        }
        // Taken from the file: what is in it is what comes out.
        let path = dir.path().join(kept_as(&c));
        let mut kept = pictures.subset(&[1, 4]);
        kept.pixels.fill(7);
        write_npz(&path, &kept).expect("written");
        assert_eq!(perturbed(&c, &[1, 4]).expect("kept").picture(4), kept.picture(0));
        // Of other pictures it is refused, of another seed it is not looked for.
        let refused = perturbed(&c, &[1]).expect_err("another count").to_string();
        assert!(refused.contains("does not belong to this run"), "{refused}");
        Descent::new(&c, &kernels, Some(dir.path()), None).perturb(&mut pictures.clone(), &[1, 4]).expect("kept");
        // Nor is anything trained where it could not be kept.
        let c = RunConfig { seed: 2, ..c };
        std::fs::create_dir(dir.path().join(kept_as(&c))).expect("made");
        let mut steps = 0;
        let mut tell = |_, _| steps += 1;
        let blocked =
            Descent::new(&c, &kernels, Some(dir.path()), Some(&mut tell)).perturb(&mut pictures.clone(), &[1]);
        assert!(blocked.expect_err("no room").to_string().contains("cannot be written") && steps == 0);
        let other = perturbed(&RunConfig { seed: 1, ..c }, &[1]).expect("perturbed anew");
        assert!(other.picture(1) != kept.picture(0) && other.picture(1) != made.picture(1));
    }
}
