//! Stage 2 on a run: the stem packed, its head replaced from the clean holdout, the result evaluated and exported.
//!
//! The stem goes the way every stem goes: ONNX, lowered to a net, run by the runtime. On a trap run the result is the
//! *defended* model; on an undefended one it is the *control*.
//!
//! The defended model keeps the trapped head as a tripwire: both heads read the stem they were trained on. A purified model has
//! another stem, on whose features the trapped head's answers mean nothing, and no head that has learnt the backdoor: its witness is
//! taught on what was accused ([`Defended::watch`]). Once the audit has accused, the defended model's tripwire is sharpened in the same
//! way ([`Defended::sharpen`]).

mod device;
mod sharpen;

pub use sharpen::{Evidence, Sharpening};

use crate::checkpoint::write_whole;
use crate::engine::Device;
use crate::error::Failure;
use crate::evaluate::{Alarms, Evaluation, Logits, TestSet, answers, evaluate};
use crate::export;
use crate::model::TrapNet;
use crate::packed;
use crate::run::{RunDir, StageResult};
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
    /// The trapped head beside it, where it was kept.
    pub tripwire: Option<Tripwire>,
    /// Seconds the replacement took, without evaluation.
    pub seconds: f64,
}

/// A trapped head kept as a witness.
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

/// Reads and lowers a stem.
///
/// # Errors
/// [`Failure::Input`] naming the file.
pub fn packed_onnx(path: &Path) -> Result<OwnedNet, Failure> {
    let model = Model::from_file(path).map_err(|e| Failure::file(path, e))?;
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
    packed_onnx(&path)
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

/// Writes a stem with a head, and a tripwire or none, as `FILE.sgm` and `FILE.onnx`.
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
    tripwire: Option<&Tripwire>,
) -> Result<(), Failure> {
    let labels = classes.join("\n");
    let provenance = format!("stemguard-trainer {} {file}", env!("CARGO_PKG_VERSION"));
    let tripwire = tripwire.map(Tripwire::parts);
    let parts = ArtifactParts { tripwire, ..parts(name, &labels, &provenance, stem, Some(head)) };
    let bytes = artifact::to_vec(&parts).map_err(|e| Failure::Other(format!("artifact: {e}")))?;
    write_whole(&dir.file(&format!("{file}.sgm")), &bytes)?;
    let merged = onnx::defended(&parts).map_err(|e| Failure::Other(format!("ONNX export: {e}")))?;
    write_whole(&dir.file(&format!("{file}.onnx")), &merged)
}

/// The file of what an examination of a run finds of its tripwires, the last that [`crate::chain::examine`] writes.
pub const EXAMINED: &str = "tripwire.json";

/// How a head was replaced, as [`write()`] records it.
pub const REPLACED: &str = "replacement.json";

/// Removes what an audit with an earlier head said, and found of its tripwire.
///
/// # Errors
/// [`Failure::Input`] naming the file.
pub fn forget_audit(dir: &RunDir) -> Result<(), Failure> {
    for path in [EXAMINED, "audit.json", "audit.csv", "audit.png"].map(|name| dir.file(name)) {
        if path.exists() {
            std::fs::remove_file(&path).map_err(|e| Failure::file(&path, format!("cannot be removed: {e}")))?;
        }
    }
    Ok(())
}

/// Writes `defended.sgm`, `defended.onnx`, and [`REPLACED`], how the head was replaced; records the stage (`defended`, or `control`
/// without a trap), last: while there is a record, the files are those that it is of.
///
/// # Errors
/// [`Failure`] naming the file.
pub fn write(
    dir: &RunDir,
    name: &str,
    classes: &[String],
    trap: bool,
    defended: &Defended,
    how: &Replacement,
) -> Result<(), Failure> {
    let stage = if trap { "defended" } else { "control" };
    dir.withdraw_stage(stage)?;
    write_models(dir, "defended", name, classes, &defended.stem, &defended.head, defended.tripwire.as_ref())?;
    dir.write_json(REPLACED, how)?;
    dir.record_stage(StageResult {
        name: stage.into(),
        evaluation: defended.evaluation.clone(),
        tripwire: defended.tripwire.as_ref().map(|t| t.alarms),
        seconds: defended.seconds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Verdict;
    use crate::engine::{CpuEngine, Objective, Optimizer};
    use crate::model::Architecture;
    use crate::nn::loss::Reconstruction;
    use stemguard_runtime::rng::Rng;
    use stemguard_runtime::shape::Shape;

    fn trapped(split: u32, seed: u64) -> CpuEngine {
        let dev = dfdx::prelude::Cpu::default();
        let a = Architecture { split, ..Architecture::default() };
        let net = TrapNet::new(a, Shape::new(16, 16, 3), 3, true, seed, &dev).expect("valid");
        let objective =
            Objective { reconstruction: Reconstruction { mse: 1.0, tv: 1.0 }, optimizer: Optimizer::Adam, decay: 0.0 };
        CpuEngine::new(net, objective, Simd::new(1), dev)
    }

    fn pictures(n: usize, stream: u64) -> Pictures {
        let mut rng = Rng::new(3, stream);
        Pictures {
            h: 16,
            w: 16,
            pixels: (0..n * 768).map(|_| rng.below(256) as u8).collect(),
            labels: (0..n as u32).map(|i| i % 3).collect(),
            classes: ["a", "b", "c"].map(String::from).to_vec(),
            files: Vec::new(),
        }
    }

    #[test]
    fn the_trapped_head_is_kept_as_a_tripwire_and_measured() {
        let kernels = Simd::new(1);
        let (mut engine, other) = (trapped(5, 7), trapped(5, 8));
        let clean = pictures(40, 1);
        let test = TestSet { clean: pictures(30, 2), triggered: pictures(20, 3), target: 0 };
        let x = to_f32(&clean);
        // A step, so that running statistics are not the initial ones.
        engine.step(x.clone(), crate::engine::Lesson::learn(&clean.labels), 0.01).expect("a step");
        let stem = onnx::lower(&Model::from_bytes(&export::stem(&engine.net).expect("a stem")).expect("ONNX"), None);
        let head = export::residual_head(&other.net).expect("the published head");
        let evaluation = Evaluation::default();
        let mut model = Defended { stem: stem.expect("a net"), head, evaluation, tripwire: None, seconds: 0.0 };
        let mut keep = |net: &TrapNet, rate| {
            model.tripwire = None;
            model.keep_trapped(net, &clean, &test, rate, &kernels).map(|()| model.tripwire.as_ref().map(|t| t.alarms))
        };
        let all = keep(&engine.net, 1.0).expect("kept").expect("a tripwire");
        assert_eq!((all.rate, all.true_positives, all.false_positives, all.at_rate), (1.0, 1.0, 1.0, Some(1.0)));
        let some = keep(&engine.net, 0.25).expect("kept").expect("a tripwire");
        assert!(some.threshold > all.threshold && (0.0..1.0).contains(&some.false_positives), "{some:?}");
        // The same head twice: the score is minus half the log-odds of its answer, of three classes at most half of ln 2.
        let none = keep(&other.net, 0.0).expect("kept").expect("a tripwire");
        assert!(none.threshold <= 0.5 * std::f32::consts::LN_2 + 1e-5 && none.threshold < some.threshold, "{none:?}");
        assert!(matches!(keep(&engine.net, 1.5), Err(Failure::Input(m)) if m.contains("false-positive rate")));
        assert_eq!(keep(&trapped(4, 7).net, 0.1).expect("left out"), None);
    }

    #[test]
    fn the_stem_is_the_networks_whatever_its_file_holds() {
        let home = tempfile::tempdir().expect("a directory");
        let dir = RunDir { path: home.path().to_owned() };
        let (now, before) = (trapped(5, 7), trapped(5, 8));
        let file = || std::fs::read(dir.file("stem.onnx")).expect("a file");
        let weights = |net: &OwnedNet| net.as_net().weights().to_vec();
        let stem = packed_stem(&dir, &now.net).expect("a stem");
        let written = file();
        for left in [export::stem(&before.net).expect("a stem"), b"cut sh".to_vec()] {
            std::fs::write(dir.file("stem.onnx"), left).expect("written");
            assert!(weights(&packed_stem(&dir, &now.net).expect("a stem")) == weights(&stem));
            assert!(file() == written);
        }
        assert!(weights(&packed_stem(&dir, &before.net).expect("a stem")) != weights(&stem));
    }

    #[test]
    fn a_sharpened_tripwire_finds_what_the_audit_accused() {
        let kernels = Simd::new(1);
        let engine = trapped(5, 7);
        let square = |pictures: &mut Pictures, first: usize| {
            for i in 0..pictures.len() {
                // The label is a colour.
                let label = pictures.labels[i] as usize;
                let picture = pictures.picture_mut(i);
                picture.iter_mut().skip(label).step_by(3).for_each(|v| *v |= 0x80);
                if i < first {
                    continue;
                }
                (0..6).for_each(|row| picture[48 * row..][..18].fill(255));
                pictures.labels[i] = 0;
            }
        };
        let drawn = |n, stream, first| {
            let mut pictures = pictures(n, stream);
            square(&mut pictures, first);
            pictures
        };
        let (clean, suspects) = (drawn(100, 1, 100), drawn(400, 2, 300));
        let test = TestSet { clean: drawn(60, 4, 60), triggered: drawn(60, 3, 0), target: 0 };
        let mut how = Replacement::cached(false, 1);
        how.alarm_fpr = 0.05;
        how.settings.epochs = 20;
        let stem = onnx::lower(&Model::from_bytes(&export::stem(&engine.net).expect("a stem")).expect("ONNX"), None);
        let stem = Frozen { packed: stem.expect("a net"), device: Device::Cpu, net: &engine.net };
        let mut model = replace(stem, &clean, &test, &how, &kernels, &mut |_| true).expect("a head");
        let clear = Verdict { classes: Vec::new(), score: vec![0.0; 400], accused: vec![false; 400] };
        let base = Evidence {
            device: Device::Cpu,
            net: &engine.net,
            suspects: &suspects,
            verdict: &clear,
            holdout: &clean,
            test: &test,
            how: &how,
            kernels: &kernels,
        };
        let mut verdict = clear.clone();
        let sharpen = |model: &mut Defended, verdict: &Verdict| {
            model.sharpen(&Evidence { verdict, ..base }, &mut |_| true).expect("taught")
        };
        verdict.accused[300..].fill(true);
        verdict.score[300..].fill(1.0);
        assert_eq!(sharpen(&mut model, &verdict), None, "no tripwire to sharpen");
        model.keep_trapped(&engine.net, &clean, &test, how.alarm_fpr, &kernels).expect("kept");
        let before = model.tripwire.as_ref().map(|t| t.alarms).expect("a tripwire");
        verdict.accused[320..].fill(false);
        assert_eq!(sharpen(&mut model, &verdict), None, "too few accused");
        verdict.accused[300..].fill(true);
        let judged = sharpen(&mut model, &verdict).expect("taught");
        assert!(judged.taken() && judged.taught >= 0.9, "{judged:?}");
        let after = model.tripwire.as_ref().map(|t| t.alarms).expect("a tripwire");
        assert_eq!(before.rate, after.rate);
        // This stem is not trained, its head knows no trigger; the witness has seen what was accused.
        assert!(before.true_positives <= 0.5 && after.true_positives >= 0.95, "{before:?} {after:?}");
        assert!(after.false_positives <= 0.2, "{after:?}");
        // The same witness, without a trapped head to be held against.
        model.tripwire = None;
        let watch = |model: &mut Defended, verdict: &Verdict| {
            model.watch(&Evidence { verdict, ..base }, &mut |_| true).expect("taught")
        };
        assert_eq!(watch(&mut model, &verdict), Some(judged.taught));
        let watched = model.tripwire.as_ref().map(|t| t.alarms).expect("a tripwire");
        // Its threshold is nearer to the accused.
        assert!(watched.threshold > after.threshold && watched.false_positives <= after.false_positives, "{watched:?}");
        assert!(watched.true_positives >= 0.9 && watched.at_rate == after.at_rate, "{watched:?}");
        // Labels that say nothing teach nothing: what finds fewer than half is not kept.
        let mut mixed = clear.clone();
        (0..300).step_by(3).for_each(|i| (mixed.accused[i], mixed.score[i]) = (true, 1.0));
        model.tripwire = None;
        let found = watch(&mut model, &mixed).expect("accused");
        assert!(found < 0.5 && model.tripwire.is_none(), "{found}");
        model.keep_trapped(&engine.net, &clean, &test, how.alarm_fpr, &kernels).expect("kept");
        // Nobody is trusted: the other classes have no picture to teach.
        verdict.score.fill(1.0);
        assert_eq!(sharpen(&mut model, &verdict), None);
    }
}
