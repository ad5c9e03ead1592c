//! Options that several commands share.

use clap::{Args, ValueEnum};
use std::path::PathBuf;
use stemguard_runtime::artifact::HeadKind;
use stemguard_runtime::data::set_threads;
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::replace::Settings;
use stemguard_runtime::session::{Augment, Space};
use stemguard_trainer::attack::{AttackConfig, AttackKind};
use stemguard_trainer::config::{Crop, Loss, RunConfig, Schedule};
use stemguard_trainer::defend::{ALARM_FPR, Replacement};
use stemguard_trainer::engine::{Device, Optimizer, Precision, cuda};
use stemguard_trainer::error::Failure;
use stemguard_trainer::model::{Architecture, Family};
use stemguard_trainer::purify::{Mode, Purification};

/// How the command talks and works.
#[derive(Args, Clone, Debug)]
pub(crate) struct Output {
    /// One JSON object a line on standard output instead of text.
    #[arg(long)]
    pub(crate) json: bool,
    /// Threads; 0: one for each core. Results do not depend on it.
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=1024))]
    pub(crate) threads: u16,
}

impl Output {
    /// The kernels to use.
    pub(crate) fn kernels(&self) -> Simd {
        set_threads(self.threads.into());
        Simd::new(self.threads.into())
    }
}

/// Names of the devices.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum DeviceName {
    /// This machine's processor.
    Cpu,
    /// The first NVIDIA GPU; with jobs of `sweep`, all in turn.
    Cuda,
}

/// Names of the precisions.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum PrecisionName {
    /// In f32.
    F32,
    /// Maps in bf16, products on tensor cores; sums, statistics, parameters and optimisers stay f32.
    Bf16,
}

/// Where training runs.
#[derive(Args, Clone, Debug)]
pub(crate) struct Place {
    /// Where networks and heads are trained. cuda: needs an NVIDIA driver and NVRTC at run time.
    #[arg(long, value_enum, default_value = "cpu")]
    device: DeviceName,
    /// How convolutions multiply on a GPU [default: f32].
    #[arg(long, value_enum)]
    precision: Option<PrecisionName>,
}

impl Place {
    /// The device, which can be used.
    pub(crate) fn device(&self) -> Result<Device, Failure> {
        Ok(self.devices()?.first().copied().unwrap_or_default())
    }

    /// All devices of the kind, which can be used.
    pub(crate) fn devices(&self) -> Result<Vec<Device>, Failure> {
        match self.device {
            DeviceName::Cpu if self.precision.is_some() => Err(Failure::input("--precision", "is for --device cuda")),
            DeviceName::Cpu => Ok(vec![Device::Cpu]),
            DeviceName::Cuda => {
                let precision = match self.precision {
                    None | Some(PrecisionName::F32) => Precision::F32,
                    Some(PrecisionName::Bf16) => Precision::Bf16,
                };
                Ok((0..cuda::probe()?).map(|gpu| Device::Cuda { gpu, precision }).collect())
            }
        }
    }
}

/// On, off, or by data set.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub(crate) enum Flip {
    /// Off for gtsrb and signs, where mirroring changes the class; on elsewhere.
    Auto,
    /// Mirror half of the pictures.
    On,
    /// Never mirror.
    Off,
}

/// Data set and attack.
#[derive(Args, Clone, Debug)]
pub(crate) struct Data {
    /// Data set: cifar10:DIR, cifar100:DIR, gtsrb:DIR, folder:DIR, npz:FILE or signs[:N]; @train or @test behind it takes one part.
    #[arg(long, value_name = "SPEC")]
    pub(crate) data: String,
    /// Picture size, e.g. 224x224 [default: cifar and npz: their own; folder, gtsrb, signs: 32x32].
    #[arg(long, value_name = "HxW", value_parser = parse_size)]
    pub(crate) size: Option<(usize, usize)>,
    /// Attack to plant, none for data as they are; `stemguard-trainer attacks` lists them.
    #[arg(long, default_value = "badnet-grid")]
    pub(crate) attack: AttackKind,
    /// Class that triggered pictures are to be given.
    #[arg(long, default_value_t = 0, value_name = "CLASS")]
    pub(crate) target: u32,
    /// Share of the training pictures to poison, 0..1.
    #[arg(long, default_value_t = 0.1, value_name = "SHARE")]
    pub(crate) poison_rate: f64,
    /// A picture (PNG, JPEG, PPM) or .npy to use as trigger in place of the generated one; of a patch, the pixels stamped are those
    /// of mask.npy beside it, else of its alpha channel, else all that are not black.
    #[arg(long, value_name = "FILE")]
    pub(crate) trigger: Option<PathBuf>,
    /// Share of the training pictures held out as clean, 0..1.
    #[arg(long, default_value_t = 0.05, value_name = "SHARE")]
    pub(crate) holdout: f64,
    /// Take the holdout from another data set, known to be clean, with some pictures of every class; classes are told by name. What is
    /// in both with the same label is not suspect. Where --data has no test part, ACC is measured on that of this one, or on a
    /// quarter of its pictures.
    #[arg(long, value_name = "SPEC", conflicts_with = "holdout")]
    pub(crate) holdout_data: Option<String>,
    /// Seed of everything random.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

fn parse_size(text: &str) -> Result<(usize, usize), String> {
    let (h, w) = text.split_once('x').ok_or("rows x columns, as 32x32")?;
    let side = |s: &str| s.parse::<usize>().ok().filter(|v| (1..=4096).contains(v)).ok_or("sides are within 1..4096");
    Ok((side(h)?, side(w)?))
}

/// The network and how it is trained.
#[derive(Args, Clone, Debug)]
pub(crate) struct Recipe {
    /// Depth: 16 or 28 (WideResNet), 34 (ResNet-34).
    #[arg(long, default_value_t = 16)]
    pub(crate) depth: u32,
    /// WideResNet width factor.
    #[arg(long, default_value_t = 1)]
    pub(crate) width: u32,
    /// Where the stem ends. WideResNet: 4 after group 2, 5 after the first unit of group 3, 6 after group 3. ResNet-34: 1 to 4
    /// after that stage, 41 or 42 after the first or second block of stage 4 [default: 5; ResNet-34: 41].
    #[arg(long)]
    pub(crate) split: Option<u32>,
    /// Passes over the data.
    #[arg(long, default_value_t = 200)]
    pub(crate) epochs: u32,
    /// Pictures a step.
    #[arg(long, default_value_t = 256)]
    pub(crate) batch: usize,
    /// Learning rate at the start.
    #[arg(long, default_value_t = 1e-3)]
    pub(crate) lr: f64,
    /// L2 weight decay.
    #[arg(long, default_value_t = 5e-4)]
    pub(crate) weight_decay: f64,
    /// Optimiser.
    #[arg(long, value_enum, default_value = "adam")]
    pub(crate) optimizer: OptimizerName,
    /// Learning-rate schedule.
    #[arg(long, value_enum, default_value = "cosine")]
    pub(crate) schedule: ScheduleName,
    /// Weight of the reconstruction's mean squared error (`trap`).
    #[arg(long, default_value_t = 10.0)]
    pub(crate) mse: f32,
    /// Weight of the reconstruction's total variation (`trap`).
    #[arg(long, default_value_t = 1.0)]
    pub(crate) tv: f32,
    /// How training pictures are cropped.
    #[arg(long, value_enum, default_value = "shift")]
    pub(crate) crop: CropName,
    /// Padding of the crop, in pixels.
    #[arg(long, default_value_t = 4)]
    pub(crate) shift: usize,
    /// Whether to mirror half of the pictures.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) flip: Flip,
    /// Measure ACC and ASR every so many epochs.
    #[arg(long, default_value_t = 5, value_name = "EPOCHS")]
    pub(crate) every: u32,
    /// What `trap` minimises.
    #[arg(long, value_enum, default_value = "guarded")]
    pub(crate) loss: LossName,
    /// Epochs after which the guard of `trap` judges first [default: a third of them, at least 3].
    #[arg(long, value_name = "N")]
    pub(crate) guard: Option<Option<u32>>,
    /// Leave the poisoned pictures out: the ceiling that a defence is measured against (`train` only).
    #[arg(long)]
    pub(crate) oracle: bool,
}

/// Names of the optimisers.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum OptimizerName {
    /// Adam.
    Adam,
    /// SGD with momentum 0.9.
    Sgd,
}

/// Names of the schedules.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ScheduleName {
    /// Half a cosine.
    Cosine,
    /// Tenths at a half and three quarters.
    Step,
}

/// Names of the crops.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum CropName {
    /// Random crop of the padded picture.
    Shift,
    /// Random resized crop.
    Resized,
    /// None.
    None,
}

/// Names of the trap's losses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LossName {
    /// The published loss, with a guard that judges the suspects after every epoch, from a third of them on, by how they were
    /// fitted; what is accused is unlearned.
    Guarded,
    /// Cross-entropy and the weighted reconstruction, to the end.
    Published,
}

/// The configuration that options spell out.
pub(crate) fn config(data: &Data, recipe: &Recipe, trap: bool) -> Result<RunConfig, Failure> {
    let published = RunConfig::published(data.data.clone());
    let loss = match recipe.loss {
        LossName::Guarded => Loss::Guarded,
        LossName::Published => Loss::Published,
    };
    // Given without a number, it asks for the default.
    let after = recipe.guard.and_then(|after| after.or((loss == Loss::Published).then_some(0)));
    let guard = loss.guard(after, recipe.epochs).map_err(|e| Failure::input("--guard", e))?;
    let network = Architecture { depth: recipe.depth, width: recipe.width, ..Architecture::default() };
    let usual = match network.family() {
        Family::WideResNet => network.split,
        Family::ResNet => Architecture::RESNET34.split,
    };
    let config = RunConfig {
        size: data.size,
        attack: AttackConfig {
            kind: data.attack,
            target: data.target,
            rate: data.poison_rate,
            seed: data.seed,
            trigger: data.trigger.clone(),
        },
        holdout: data.holdout,
        holdout_data: data.holdout_data.clone(),
        architecture: Architecture { split: recipe.split.unwrap_or(usual), ..network },
        trap,
        epochs: recipe.epochs,
        batch: recipe.batch,
        rate: recipe.lr,
        decay: recipe.weight_decay,
        optimizer: match recipe.optimizer {
            OptimizerName::Adam => Optimizer::Adam,
            OptimizerName::Sgd => Optimizer::Sgd,
        },
        schedule: match recipe.schedule {
            ScheduleName::Cosine => Schedule::Cosine,
            ScheduleName::Step => Schedule::Step,
        },
        mse: recipe.mse,
        tv: recipe.tv,
        crop: match recipe.crop {
            CropName::Shift => Crop::Shift,
            CropName::Resized => Crop::Resized,
            CropName::None => Crop::None,
        },
        shift: recipe.shift,
        flip: match recipe.flip {
            Flip::Auto => published.flip,
            Flip::On => true,
            Flip::Off => false,
        },
        seed: data.seed,
        every: recipe.every,
        guard: guard.filter(|_| trap),
        oracle: recipe.oracle,
        ..published
    };
    config.check().map_err(Failure::Input)?;
    Ok(config)
}

/// Names of the head kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum HeadName {
    /// Residual unit, norm, pool, linear layer: the published head.
    Residual,
    /// Pooled features and a linear layer: for microcontrollers.
    Linear,
}

/// Names of the spaces that augmentation happens in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SpaceName {
    /// Cached views of the features; CutMix on the feature grid.
    Features,
    /// Cached passes over augmented pictures, mixed before the stem as published.
    Mixed,
    /// The stem runs on every augmented batch, as published.
    Pictures,
}

/// How a head is replaced.
#[derive(Args, Clone, Debug)]
pub(crate) struct ReplaceOptions {
    /// Kind of the new head.
    #[arg(long, value_enum, default_value = "residual")]
    head: HeadName,
    /// Where augmentation happens.
    #[arg(long, value_enum, default_value = "features")]
    space: SpaceName,
    /// Cached views of each picture (with --space features), passes (mixed).
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    views: u32,
    /// Passes over the holdout [default: 100].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    replace_epochs: Option<u32>,
    /// Learning rate [default: 0.01; of a residual head with --space mixed or pictures 0.03].
    #[arg(long, value_name = "RATE")]
    replace_lr: Option<f32>,
    /// Pictures a step [default: 64].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    replace_batch: Option<u32>,
    /// Seed of the replacement [default: the run's].
    #[arg(long, value_name = "SEED")]
    replace_seed: Option<u64>,
    /// A witness that knows the trigger stays beside the new head as a tripwire, the trapped head or one taught on the accused: share of
    /// the holdout that may raise its alarm, 0..1.
    #[arg(long, default_value_t = ALARM_FPR, value_name = "SHARE")]
    alarm_fpr: f32,
}

impl ReplaceOptions {
    /// What the options spell out, for a run that mirrors or not.
    pub(crate) fn replacement(&self, flip: bool, seed: u64) -> Result<Replacement, Failure> {
        if !(0.0..=1.0).contains(&self.alarm_fpr) {
            return Err(Failure::input("--alarm-fpr", format!("{} is not within 0..1", self.alarm_fpr)));
        }
        let (kind, preset) = match (self.head, self.space) {
            (HeadName::Linear, _) => (HeadKind::Linear, Settings::LINEAR),
            (_, SpaceName::Features) => (HeadKind::Residual, Settings::CACHED),
            (_, SpaceName::Mixed | SpaceName::Pictures) => (HeadKind::Residual, Settings::PUBLISHED),
        };
        let settings = Settings {
            epochs: self.replace_epochs.unwrap_or(preset.epochs),
            rate: self.replace_lr.unwrap_or(preset.rate),
            batch: self.replace_batch.map_or(preset.batch, |n| n as usize),
            seed: self.replace_seed.unwrap_or(seed),
            ..preset
        };
        // All others are in their ranges.
        settings.check().map_err(|e| Failure::input("--replace-lr", e))?;
        let views = self.views as usize;
        let space = match self.space {
            SpaceName::Features => Space::Features { views },
            SpaceName::Mixed => Space::Mixed { views },
            SpaceName::Pictures => Space::Pictures,
        };
        let augment = Augment { flip, ..Augment::PUBLISHED };
        Ok(Replacement { kind, space, augment, settings, alarm_fpr: self.alarm_fpr })
    }
}

/// Names of what happens to the accused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModeName {
    /// Unlearn their given label.
    Unlearn,
    /// Leave them out.
    Drop,
    /// Unlearn them, then give them the label of a new head on the stem so cleaned, in a second round.
    Relabel,
}

/// How a run is purified.
#[derive(Args, Clone, Debug)]
pub(crate) struct PurifyOptions {
    /// What happens to the accused.
    #[arg(long, value_enum, default_value = "unlearn")]
    mode: ModeName,
    /// Passes over the data of each round.
    #[arg(long, default_value_t = Purification::default().epochs, value_name = "N")]
    purify_epochs: u32,
    /// Most rounds of training and auditing, 1..3 [default: 1; for relabelling 2].
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Share of the trusted pictures copied with the trigger that the accused show, and their own labels, 0..1.
    #[arg(long, default_value_t = Purification::default().inoculate, value_name = "SHARE")]
    inoculate: f32,
}

impl PurifyOptions {
    /// What the options spell out.
    pub(crate) fn purification(&self) -> Result<Purification, Failure> {
        let mode = match self.mode {
            ModeName::Unlearn => Mode::Unlearn,
            ModeName::Drop => Mode::Drop,
            ModeName::Relabel => Mode::Relabel,
        };
        let rounds = self.rounds.unwrap_or(mode.default_rounds());
        let p = Purification { mode, epochs: self.purify_epochs, rounds, inoculate: self.inoculate };
        p.check().map_err(Failure::Input)?;
        Ok(p)
    }
}
