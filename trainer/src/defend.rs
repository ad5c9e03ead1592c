//! Stage 2 on a run: the stem packed, its head replaced from the clean holdout, the result evaluated and exported.
//!
//! The stem goes the way every stem goes: ONNX, lowered to a net, run by the runtime. On a trap run the result is the
//! *defended* model; on an undefended one it is the *control*.

use crate::checkpoint::write_whole;
use crate::error::Failure;
use crate::evaluate::{Evaluation, Logits, TestSet, answers, evaluate};
use crate::run::{RunDir, StageResult};
use std::path::Path;
use std::time::Instant;
use stemguard_runtime::artifact::{self, ArtifactParts, HeadKind, HeadParts};
use stemguard_runtime::data::Pictures;
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::net::OwnedNet;
use stemguard_runtime::onnx::{self, Model};
use stemguard_runtime::replace::{Progress, Settings};
use stemguard_runtime::session::{self, Augment, NewHead, Session, Space, replace_head};

/// How the head of a run is replaced.
#[derive(Clone, Copy, Debug)]
pub struct Replacement {
    /// Kind of the new head.
    pub kind: HeadKind,
    /// Where augmentation happens.
    pub space: Space,
    /// How pictures are varied.
    pub augment: Augment,
    /// How the head is trained.
    pub settings: Settings,
}

impl Replacement {
    /// Cached views in feature space, the published settings otherwise; mirrored or not as the run's training was.
    pub fn cached(flip: bool, seed: u64) -> Self {
        Self {
            kind: HeadKind::Residual,
            space: Space::Features { views: 8 },
            augment: Augment { flip, ..Augment::PUBLISHED },
            settings: Settings { seed, ..Settings::CACHED },
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
    /// Seconds the replacement took, without evaluation.
    pub seconds: f64,
}

/// Reads and lowers a stem.
///
/// # Errors
/// [`Failure::Input`] naming the file.
pub fn packed(path: &Path) -> Result<OwnedNet, Failure> {
    let model = Model::from_file(path).map_err(|e| Failure::file(path, e))?;
    onnx::lower(&model, None).map_err(|e| Failure::file(path, e))
}

/// Reads and lowers a run's stem.
///
/// # Errors
/// As [`packed`].
pub fn packed_stem(dir: &RunDir) -> Result<OwnedNet, Failure> {
    packed(&dir.file("stem.onnx"))
}

/// All pictures as `[n][h][w][3]`, 0..=1.
pub fn to_f32(pictures: &Pictures) -> Vec<f32> {
    let mut x = vec![0.0; pictures.pixels.len()];
    session::to_f32(&pictures.pixels, &mut x);
    x
}

/// Replaces the head on a packed stem and evaluates the result.
///
/// # Errors
/// [`Failure::Input`] where the holdout does not do.
pub fn replace(
    stem: OwnedNet,
    holdout: &Pictures,
    test: &TestSet,
    how: &Replacement,
    kernels: &Simd,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<Defended, Failure> {
    let started = Instant::now();
    let session = Session::of_net(stem.as_net(), kernels.clone());
    let classes = holdout.classes.len();
    let head = replace_head(
        &session,
        how.kind,
        classes,
        &to_f32(holdout),
        &holdout.labels,
        how.space,
        how.augment,
        &how.settings,
        progress,
    )
    .map_err(|e| Failure::input("holdout", e))?;
    let seconds = started.elapsed().as_secs_f64();
    let mut defended = Defended { stem, head, evaluation: Evaluation::default(), seconds };
    defended.evaluation = defended.with_logits(kernels, |logits| evaluate(test, logits))?;
    Ok(defended)
}

impl Defended {
    /// The class it gives each picture.
    ///
    /// # Errors
    /// [`Failure`] where the pictures do not fit the stem.
    pub fn answers(&self, pictures: &Pictures, kernels: &Simd) -> Result<Vec<u32>, Failure> {
        self.with_logits(kernels, |logits| answers(pictures, logits))
    }

    /// What `f` makes of the model's logits.
    fn with_logits<T>(
        &self,
        kernels: &Simd,
        f: impl FnOnce(&mut Logits<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let session = Session::of_artifact(&parts("", "", "", &self.stem, Some(&self.head)), kernels.clone())?;
        f(&mut |x| {
            let mut logits = vec![0.0; x.len() / session.input().len() * self.head.classes as usize];
            session.infer(x, &mut logits)?;
            Ok(logits)
        })
    }
}

fn parts<'a>(
    name: &'a str,
    labels: &'a str,
    provenance: &'a str,
    stem: &'a OwnedNet,
    head: Option<&'a NewHead>,
) -> ArtifactParts<'a> {
    let head = head.map(|h| HeadParts { kind: h.kind, classes: h.classes, params: &h.params });
    ArtifactParts { name, labels, provenance, stem: stem.as_net().into(), head }
}

/// Writes a stem with a head as `FILE.sgm` and `FILE.onnx`.
///
/// # Errors
/// [`Failure`] naming the file.
pub fn write_models(
    dir: &RunDir,
    file: &str,
    name: &str,
    classes: &[String],
    stem: &OwnedNet,
    head: &NewHead,
) -> Result<(), Failure> {
    let labels = classes.join("\n");
    let provenance = format!("stemguard-trainer {} {file}", env!("CARGO_PKG_VERSION"));
    let parts = parts(name, &labels, &provenance, stem, Some(head));
    let bytes = artifact::to_vec(&parts).map_err(|e| Failure::Other(format!("artifact: {e}")))?;
    write_whole(&dir.file(&format!("{file}.sgm")), &bytes)?;
    let merged = onnx::defended(&parts).map_err(|e| Failure::Other(format!("ONNX export: {e}")))?;
    write_whole(&dir.file(&format!("{file}.onnx")), &merged)
}

/// Writes `defended.sgm` and `defended.onnx` and records the stage (`defended`, or `control` without a trap).
///
/// # Errors
/// [`Failure`] naming the file.
pub fn write(dir: &RunDir, name: &str, classes: &[String], trap: bool, defended: &Defended) -> Result<(), Failure> {
    write_models(dir, "defended", name, classes, &defended.stem, &defended.head)?;
    dir.record_stage(StageResult {
        name: if trap { "defended" } else { "control" }.into(),
        evaluation: defended.evaluation.clone(),
        seconds: defended.seconds,
    })
}
