//! Stage 2 on a run: the stem packed, its head replaced from the clean holdout, the result evaluated and exported.
//!
//! The stem goes the way every stem goes: ONNX, lowered to a net, run by the runtime. On a trap run the result is the
//! *defended* model; on an undefended one it is the *control*.
//!
//! The defended model keeps the trapped head as a tripwire: both heads read the stem they were trained on. A purified model has
//! another stem, on whose features the trapped head's answers mean nothing, and no head that has learnt the backdoor: its witness is
//! taught on what was accused ([`Defended::watch`]). Once guard or audit has accused, the defended model's tripwire is sharpened in the same
//! way ([`Defended::sharpen`]).

mod device;
mod sharpen;

pub use sharpen::{Evidence, Sharpening};

use crate::audit;
use crate::checkpoint::write_whole;
use crate::config::RunConfig;
use crate::engine::Device;
use crate::error::Failure;
use crate::evaluate::{Alarms, Evaluation, Logits, TestSet, answers, evaluate};
use crate::export;
use crate::model::TrapNet;
use crate::packed;
use crate::run::{Exchange, RunDir, StageResult};
use serde::Serialize;
use std::path::Path;
use std::time::Instant;
use stemguard_runtime::artifact::{self, ArtifactParts, HeadKind, TripwireParts};
use stemguard_runtime::data::Pictures;
use stemguard_runtime::error::Error;
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::net::OwnedNet;
use stemguard_runtime::onnx::{self, Model};
use stemguard_runtime::replace::{Progress, Settings};
use stemguard_runtime::session::{self, Augment, NewHead, Session, Space, replace_head, set_tripwire};

/// How the head of a run is replaced.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Replacement {
    /// Kind of the new head.
    pub kind: HeadKind,
    /// Where augmentation happens.
    pub space: Space,
    /// How pictures are varied.
    pub augment: Augment,
    /// How the head is trained.
    pub settings: Settings,
    /// Share of the clean holdout that may raise the alarm of the tripwire, 0..=1.
    pub alarm_fpr: f32,
}

/// The false-positive rate a tripwire is set for by default.
pub const ALARM_FPR: f32 = 0.01;

impl Replacement {
    /// Whether a head can be trained so on a holdout: asked before minutes or hours are spent on what comes first.
    ///
    /// # Errors
    /// [`Failure::Input`] naming the setting, or what the holdout lacks.
    pub fn check(&self, holdout: &Pictures) -> Result<(), Failure> {
        stemguard_runtime::replace::check(&self.settings, &holdout.labels, holdout.classes.len()).map_err(|e| match e {
            Error::HoldoutTooSmall { .. } => {
                Failure::input("the new head", format!("{e}; it takes a smaller --replace-batch, or more pictures"))
            }
            e => Failure::input("the new head", e),
        })
    }

    /// Cached views in feature space, the published settings otherwise; mirrored or not as the run's training was.
    pub fn cached(flip: bool, seed: u64) -> Self {
        Self {
            kind: HeadKind::Residual,
            space: Space::Features { views: 8 },
            augment: Augment { flip, ..Augment::PUBLISHED },
            settings: Settings { seed, ..Settings::CACHED },
            alarm_fpr: ALARM_FPR,
        }
    }
}

/// A defended model.
pub struct Defended {
    /// The packed stem.
    pub stem: OwnedNet,
    /// The new head.
    pub head: NewHead,
    /// Its figures.
    pub evaluation: Evaluation,
    /// The witness beside it, where there is one.
    pub tripwire: Option<Tripwire>,
    /// Seconds the replacement took, without evaluation.
    pub seconds: f64,
}

/// A head kept as a witness: the trapped one, or one taught on the accused.
pub struct Tripwire {
    /// The head.
    pub witness: NewHead,
    /// When it raises an alarm, and how often it did on the test pictures.
    pub alarms: Alarms,
}

impl Tripwire {
    /// As an artifact takes it.
    fn parts(&self) -> TripwireParts<'_> {
        let Alarms { rate: false_positive_rate, threshold, .. } = self.alarms;
        TripwireParts { witness: self.witness.parts(), threshold, false_positive_rate }
    }
}

/// Lowers the bytes of a stem's file.
///
/// # Errors
/// [`Failure::Input`] naming the file.
pub fn packed_onnx(path: &Path, bytes: &[u8]) -> Result<OwnedNet, Failure> {
    let model = Model::from_bytes(bytes).map_err(|e| Failure::file(path, e))?;
    onnx::lower(&model, None).map_err(|e| Failure::file(path, e))
}

/// The stem of a run's network, lowered as every stem is: through ONNX, as which the run's `stem.onnx` then holds it. What that file
/// held of another epoch is replaced.
///
/// # Errors
/// [`Failure::Input`] naming the file.
pub fn packed_stem(dir: &RunDir, net: &TrapNet) -> Result<OwnedNet, Failure> {
    let (path, bytes) = (dir.file("stem.onnx"), export::stem(net)?);
    if std::fs::read(&path).ok().as_ref() != Some(&bytes) {
        write_whole(&path, &bytes)?;
    }
    packed_onnx(&path, &bytes)
}

/// All pictures as `[n][h][w][3]`, 0..=1.
pub fn to_f32(pictures: &Pictures) -> Vec<f32> {
    let mut x = vec![0.0; pictures.pixels.len()];
    session::to_f32(&pictures.pixels, &mut x);
    x
}

/// A frozen stem: as it is packed, and the network it was packed from, which is what a GPU runs.
pub struct Frozen<'a> {
    /// Packed; what is evaluated and shipped.
    pub packed: OwnedNet,
    /// Where heads are trained.
    pub device: Device,
    /// The network.
    pub net: &'a TrapNet,
}

/// Replaces the head on a frozen stem and evaluates the result, which runs on the CPU.
///
/// # Errors
/// [`Failure::Input`] where the holdout does not do, or a device is not there.
pub fn replace(
    stem: Frozen<'_>,
    holdout: &Pictures,
    test: &TestSet,
    how: &Replacement,
    kernels: &Simd,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<Defended, Failure> {
    how.check(holdout)?;
    let started = Instant::now();
    let Frozen { packed: stem, device, net } = stem;
    let head = train_head(&stem, device, net, holdout, how, kernels, progress)?;
    let seconds = started.elapsed().as_secs_f64();
    let mut defended = Defended { stem, head, evaluation: Evaluation::default(), tripwire: None, seconds };
    defended.evaluation = defended.with_logits(kernels, |logits| evaluate(test, logits))?;
    Ok(defended)
}

/// Trains a head on pictures over a frozen stem: the packed one on the CPU, the network it was packed from on a GPU.
fn train_head(
    stem: &OwnedNet,
    device: Device,
    net: &TrapNet,
    pictures: &Pictures,
    how: &Replacement,
    kernels: &Simd,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<NewHead, Failure> {
    let (x, labels, classes) = (to_f32(pictures), &pictures.labels, pictures.classes.len());
    match device {
        Device::Cpu => {
            let session = Session::of_net(stem.as_net(), kernels.clone());
            let (kind, space, augment, settings) = (how.kind, how.space, how.augment, &how.settings);
            replace_head(&session, kind, classes, &x, labels, space, augment, settings, progress).map_err(|e| match e {
                // Pictures are bytes, and the stem's features of them were evaluated.
                Error::NotFinite => diverged(),
                e => Failure::input("holdout", e),
            })
        }
        Device::Cuda { gpu, precision } => device::replace_head(gpu, precision, net, &x, labels, how, progress),
    }
}

/// What is told where the training of a head ends in no number.
fn diverged() -> Failure {
    Failure::input(
        "the new head",
        "its training diverged, or the stem's features are not finite: a lower --replace-lr may do",
    )
}

impl Defended {
    /// The class it gives each picture.
    ///
    /// # Errors
    /// [`Failure`] where the pictures do not fit the stem.
    pub fn answers(&self, pictures: &Pictures, kernels: &Simd) -> Result<Vec<u32>, Failure> {
        self.with_logits(kernels, |logits| answers(pictures, logits))
    }

    /// Keeps the trapped head of `net`, whose stem this is, as a tripwire: its threshold set on the holdout, measured on the test
    /// pictures. A head of another build than the runtime's (splits other than 5, ResNet) is not kept.
    ///
    /// # Errors
    /// [`Failure::Input`] where the rate is outside 0..=1 or logits are not finite.
    pub fn keep_trapped(
        &mut self,
        net: &TrapNet,
        holdout: &Pictures,
        test: &TestSet,
        rate: f32,
        kernels: &Simd,
    ) -> Result<(), Failure> {
        let Some(witness) = export::residual_head(net) else { return Ok(()) };
        let alarms = self.count(self.set(&witness, &to_f32(holdout), rate, kernels)?, test, kernels)?;
        self.tripwire = Some(Tripwire { witness, alarms });
        Ok(())
    }

    /// A tripwire with this witness, set on the clean pictures.
    fn set<'a>(
        &'a self,
        witness: &'a NewHead,
        clean: &[f32],
        rate: f32,
        kernels: &Simd,
    ) -> Result<TripwireParts<'a>, Failure> {
        set_tripwire(self.stem.as_net().into(), self.head.parts(), witness.parts(), clean, rate, kernels)
            .map_err(|e| Failure::input("the tripwire", e))
    }

    /// Counts the alarms of a tripwire on the test pictures.
    fn count(&self, set: TripwireParts<'_>, test: &TestSet, kernels: &Simd) -> Result<Alarms, Failure> {
        packed::alarms(&self.watched(set, kernels)?, &set, test)
    }

    /// What a tripwire makes of each picture.
    fn scores(&self, set: TripwireParts<'_>, pictures: &Pictures, kernels: &Simd) -> Result<Vec<f32>, Failure> {
        packed::scores(&self.watched(set, kernels)?, pictures)
    }

    /// The model with a tripwire.
    fn watched<'a>(&'a self, set: TripwireParts<'a>, kernels: &Simd) -> Result<Session<'a>, Failure> {
        let parts = ArtifactParts { tripwire: Some(set), ..parts("", "", "", &self.stem, Some(&self.head)) };
        Ok(Session::of_artifact(&parts, kernels.clone())?)
    }

    /// What `f` makes of the model's logits.
    fn with_logits<T>(
        &self,
        kernels: &Simd,
        f: impl FnOnce(&mut Logits<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let session = Session::of_artifact(&parts("", "", "", &self.stem, Some(&self.head)), kernels.clone())?;
        f(&mut |x| packed::logits(&session, x))
    }
}

fn parts<'a>(
    name: &'a str,
    labels: &'a str,
    provenance: &'a str,
    stem: &'a OwnedNet,
    head: Option<&'a NewHead>,
) -> ArtifactParts<'a> {
    let head = head.map(NewHead::parts);
    ArtifactParts { name, labels, provenance, stem: stem.as_net().into(), head, tripwire: None }
}

/// A stem with a head, and a tripwire or none, as `FILE.sgm` and `FILE.onnx`.
///
/// # Errors
/// [`Failure`] naming the file.
pub fn put_models(
    into: &mut Exchange<'_>,
    file: &str,
    name: &str,
    classes: &[String],
    stem: &OwnedNet,
    head: &NewHead,
    tripwire: Option<&Tripwire>,
) -> Result<(), Failure> {
    let labels = classes.join("\n");
    let provenance = format!("stemguard-trainer {} {file}", env!("CARGO_PKG_VERSION"));
    let tripwire = tripwire.map(Tripwire::parts);
    let parts = ArtifactParts { tripwire, ..parts(name, &labels, &provenance, stem, Some(head)) };
    let bytes = artifact::to_vec(&parts).map_err(|e| Failure::Other(format!("artifact: {e}")))?;
    into.put(&format!("{file}.sgm"), &bytes)?;
    let merged = onnx::defended(&parts).map_err(|e| Failure::Other(format!("ONNX export: {e}")))?;
    into.put(&format!("{file}.onnx"), &merged)
}

/// The file of what an examination of a run finds of its tripwires.
pub const EXAMINED: &str = "tripwire.json";

/// How a head was replaced, as [`write()`] records it.
pub const REPLACED: &str = "replacement.json";

/// Writes a model with a new head, `defended.sgm`, `defended.onnx`, and [`REPLACED`], how the head was replaced, and records its stage:
/// `defended`, or `control` without a trap. What an audit said of the one before goes; `more` may bring what one says of this one.
///
/// # Errors
/// [`Failure`] naming the file. What was there stays until all is written; after that a run without the stage's figures may be left.
pub fn write(
    dir: &RunDir,
    c: &RunConfig,
    classes: &[String],
    new: &Defended,
    how: &Replacement,
    more: impl FnOnce(&mut Exchange<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut files = Exchange::new(dir);
    let name = c.architecture.to_string();
    put_models(&mut files, "defended", &name, classes, &new.stem, &new.head, new.tripwire.as_ref())?;
    files.put_json(REPLACED, how)?;
    audit::FILES.iter().chain([&EXAMINED]).for_each(|name| files.remove(name));
    more(&mut files)?;
    files.make(StageResult {
        name: if c.trap { "defended" } else { "control" }.into(),
        evaluation: new.evaluation.clone(),
        tripwire: new.tripwire.as_ref().map(|t| t.alarms),
        seconds: new.seconds,
    })
}

#[cfg(test)]
mod tests;
