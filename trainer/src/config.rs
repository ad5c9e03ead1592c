//! What a run is: every setting, written beside its results and enough to repeat it.

use crate::attack::AttackConfig;
use crate::engine::{Objective, Optimizer};
use crate::model::Architecture;
use crate::nn::loss::Reconstruction;
use serde::{Deserialize, Serialize};
use stemguard_runtime::data::Spec;

/// How the learning rate moves over the epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Half a cosine from the full rate to 0, a value an epoch.
    Cosine,
    /// A tenth after half of the epochs, a hundredth after three quarters.
    Step,
}

impl Schedule {
    /// The factor of `epoch` (from 0) of `epochs`.
    pub fn factor(self, epoch: u32, epochs: u32) -> f64 {
        let share = f64::from(epoch) / f64::from(epochs.max(1));
        match self {
            Self::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * share).cos()),
            Self::Step if share >= 0.75 => 0.01,
            Self::Step if share >= 0.5 => 0.1,
            Self::Step => 1.0,
        }
    }
}

/// How training pictures are varied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Crop {
    /// A random crop of the picture padded by `shift` pixels.
    Shift,
    /// A random part of 8 to 100 % of the area, sides 3:4 to 4:3, resized to the full size (random resized crop).
    Resized,
    /// The picture as it is.
    None,
}

/// What a trap minimises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Loss {
    /// The published loss; once a guard has judged the suspects by how they were fitted, those it accuses are unlearned: their loss
    /// is `-log(1 - p)` of the given label. It judges again after every epoch.
    #[default]
    Guarded,
    /// The published loss to the end.
    Published,
}

impl Loss {
    /// After how many of `epochs` the guard judges first: `after`, or a third of them, at least 3. None for the published loss, and where
    /// no epoch would be left.
    ///
    /// # Errors
    /// A sentence where the published loss is given a guard.
    pub fn guard(self, after: Option<u32>, epochs: u32) -> Result<Option<u32>, String> {
        match (self, after) {
            (Self::Published, Some(_)) => Err("the published loss has no guard".into()),
            (Self::Published, None) => Ok(None),
            (Self::Guarded, Some(after)) => Ok(Some(after)),
            (Self::Guarded, None) => Ok(Some(epochs.div_ceil(3).max(3)).filter(|&after| after < epochs)),
        }
    }
}

/// Every setting of a `train` or `trap` run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Data set, as `stemguard_runtime::data::Spec` reads it.
    pub data: String,
    /// Picture size, rows and columns; none: as the data set has it.
    pub size: Option<(usize, usize)>,
    /// The attack planted.
    pub attack: AttackConfig,
    /// Share of the training pictures held out as clean, 0..1.
    pub holdout: f64,
    /// Where the holdout comes from instead: pictures known to be clean, of the same classes, told by name. The training pictures are
    /// all suspect then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holdout_data: Option<String>,
    /// The network.
    pub architecture: Architecture,
    /// Whether the reconstruction decoder is trained too: the trap. Without it the run is the undefended baseline.
    pub trap: bool,
    /// Passes over the data, at least 1.
    pub epochs: u32,
    /// Pictures a step, at least 2.
    pub batch: usize,
    /// Learning rate at the start.
    pub rate: f64,
    /// L2 weight decay.
    pub decay: f64,
    /// Optimiser.
    pub optimizer: Optimizer,
    /// Learning-rate schedule.
    pub schedule: Schedule,
    /// Weight of the mean squared error of the reconstruction.
    pub mse: f32,
    /// Weight of its total variation.
    pub tv: f32,
    /// How pictures are cropped.
    pub crop: Crop,
    /// Padding of the crop, in pixels.
    pub shift: usize,
    /// Whether half of the pictures are mirrored.
    pub flip: bool,
    /// Seed of everything random.
    pub seed: u64,
    /// ACC and ASR are measured every so many epochs, and after the last.
    pub every: u32,
    /// After so many epochs the guard judges the suspects for the first time; none: the published loss to the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<u32>,
    /// Whether the poisoned pictures are left out, as only an experiment can: the ceiling of what a defence reaches. Baselines only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oracle: bool,
}

impl RunConfig {
    /// The published recipe on a data set, without an attack: 200 epochs, Adam 1e-3, batch 256, CE + 10 MSE + TV.
    pub fn published(data: String) -> Self {
        // Mirroring changes the class of many signs.
        let flip = !(data.starts_with("gtsrb") || data.starts_with("signs"));
        Self {
            data,
            size: None,
            attack: AttackConfig::default(),
            holdout: 0.05,
            holdout_data: None,
            architecture: Architecture::default(),
            trap: true,
            epochs: 200,
            batch: 256,
            rate: 1e-3,
            decay: 5e-4,
            optimizer: Optimizer::Adam,
            schedule: Schedule::Cosine,
            mse: 10.0,
            tv: 1.0,
            crop: Crop::Shift,
            shift: 4,
            flip,
            seed: 0,
            every: 5,
            guard: None,
            oracle: false,
        }
    }

    /// The undefended run beside this one: neither trap nor guard.
    pub fn undefended(&self) -> Self {
        Self { trap: false, guard: None, ..self.clone() }
    }

    /// This run with its trap.
    pub fn trapped(&self) -> Self {
        Self { trap: true, ..self.clone() }
    }

    /// What the engine minimises.
    pub fn objective(&self) -> Objective {
        Objective {
            reconstruction: Reconstruction { mse: self.mse, tv: self.tv },
            optimizer: self.optimizer,
            decay: self.decay,
        }
    }

    /// Checks ranges that types do not.
    ///
    /// # Errors
    /// A sentence that names the setting as the command line spells it.
    pub fn check(&self) -> Result<(), String> {
        let fail = |m: String| Err(m);
        match self {
            c if c.epochs == 0 => fail("--epochs must be at least 1".into()),
            c if c.batch < 2 => fail("--batch must be at least 2".into()),
            c if c.guard.is_some_and(|g| g < 2 || g >= c.epochs) => {
                fail(format!("--guard {} is not at least 2 and below the epochs", c.guard.unwrap_or(0)))
            }
            c if c.oracle && c.trap => {
                fail("--oracle is for baselines: a trap is shown what is poisoned by nobody".into())
            }
            c if c.every == 0 => fail("--every must be at least 1".into()),
            c if !(c.rate > 0.0 && c.rate <= 10.0) => fail(format!("--lr {} is not within 0..10", c.rate)),
            c if !(0.0..=1.0).contains(&c.attack.rate) => {
                fail(format!("--poison-rate {} is not within 0..1", c.attack.rate))
            }
            c if !(0.0..=1.0).contains(&c.decay) => fail(format!("--weight-decay {} is not within 0..1", c.decay)),
            c if !(c.holdout > 0.0 && c.holdout < 1.0) => fail(format!("--holdout {} is not within 0..1", c.holdout)),
            c if !(0.0..=1e6).contains(&c.mse) => fail(format!("--mse {} is not within 0..1e6", c.mse)),
            c if !(0.0..=1e6).contains(&c.tv) => fail(format!("--tv {} is not within 0..1e6", c.tv)),
            c if c.shift > 1024 => fail(format!("--shift {} is over 1024", c.shift)),
            c => {
                let holdout = c.holdout_data.as_deref().unwrap_or("signs");
                holdout.parse::<Spec>().map_err(|e| format!("--holdout-data {holdout}: {e}"))?;
                c.architecture.check().map_err(str::to_owned)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_judges_after_a_third_where_an_epoch_is_left() {
        let after = |epochs| Loss::Guarded.guard(None, epochs).expect("a guard");
        assert_eq!([1, 3, 4, 9, 10, 24, 200].map(after), [None, None, Some(3), Some(3), Some(4), Some(8), Some(67)]);
        assert_eq!(Loss::Guarded.guard(Some(2), 4), Ok(Some(2)));
        assert_eq!(Loss::Published.guard(None, 24), Ok(None));
        assert!(Loss::Published.guard(Some(8), 24).is_err());
    }

    #[test]
    fn schedules_fall_from_one() {
        assert_eq!(Schedule::Cosine.factor(0, 10), 1.0);
        assert!((Schedule::Cosine.factor(5, 10) - 0.5).abs() < 1e-12);
        assert!(Schedule::Cosine.factor(9, 10) > 0.0);
        let steps: Vec<f64> = [0, 49, 50, 74, 75, 99].map(|e| Schedule::Step.factor(e, 100)).to_vec();
        assert_eq!(steps, [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]);
    }
}
