//! A new head trained on a GPU: the runtime's own loop draws, the device does the steps.

use super::Replacement;
use crate::engine::Precision;
use crate::engine::cuda::{CudaHead, Drawn, Sizes};
use crate::error::Failure;
use crate::model::TrapNet;
use stemguard_runtime::artifact::HeadKind;
use stemguard_runtime::replace::{Learner, Progress, check, draw_box, teach};
use stemguard_runtime::rng::Rng;
use stemguard_runtime::session::{NewHead, Space, Varied};

/// A head on a device, and what is drawn for it.
pub(super) struct Remote<'s> {
    head: CudaHead,
    varied: Varied<'s>,
    space: Space,
    classes: usize,
    drawn: Drawn,
    /// With mixed passes: of each batch in the bank the share that stays, and the state of the random numbers behind it.
    batches: Vec<(f32, Rng)>,
    plan: Plan,
    /// The next batch of the round.
    next: usize,
    room: Vec<f32>,
}

/// What a space asks of the bank.
pub(super) struct Plan {
    sizes: Sizes,
    /// Batches mixed before the stem in one round through the bank.
    round: usize,
    /// Epochs until the same batches come again.
    passes: u32,
}

impl Plan {
    fn new(space: Space, pictures: usize, batch: usize) -> Self {
        let steps = pictures / batch.max(1);
        let plan = |rows, rounded, round, passes| Self { sizes: Sizes { rows, steps, rounded }, round, passes };
        match space {
            Space::Features { views } => plan(views * pictures, true, steps, u32::MAX),
            Space::Mixed { views } => plan(views.max(1) * steps * batch, true, views.max(1) * steps, views as u32),
            Space::Pictures => plan(steps * batch, false, steps, u32::MAX),
        }
    }
}

impl<'s> Remote<'s> {
    /// Over a fresh head; fills its bank where features are cached.
    pub(super) fn new(
        mut head: CudaHead,
        varied: Varied<'s>,
        classes: usize,
        how: &Replacement,
        plan: Plan,
    ) -> Result<Self, Failure> {
        let n = varied.labels().len();
        if let Space::Features { views } = how.space {
            for view in 0..views {
                varied.view(view, how.settings.seed, |first, pictures| head.fill(view * n + first, pictures))?;
            }
        }
        let (space, drawn) = (how.space, Drawn::default());
        Ok(Self { head, varied, space, classes, drawn, batches: Vec::new(), plan, next: 0, room: Vec::new() })
    }

    /// Trains, and gives the head's parameters.
    pub(super) fn train(
        mut self,
        how: &Replacement,
        progress: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<NewHead, Failure> {
        let passes = self.plan.passes;
        let mut order = vec![0; 2 * self.varied.labels().len()];
        teach(&how.settings, passes, &mut order, &mut self, progress)?;
        Ok(NewHead { kind: HeadKind::Residual, classes: self.classes as u32, params: self.head.params()? })
    }

    /// The share that stays of a batch mixed before the stem, whose features are then in the bank, in the place of this batch.
    fn mixed(&mut self, batch: &[u32], partners: Option<&[u32]>, rng: &mut Rng) -> Result<f32, Failure> {
        let repeated = self.plan.passes < u32::MAX && self.batches.len() == self.plan.round;
        if !repeated {
            let keep = self.varied.batch(batch, partners, rng, &mut self.room);
            self.head.fill(self.next * batch.len(), &self.room)?;
            self.batches.truncate(self.next);
            self.batches.push((keep, rng.clone()));
        }
        let (keep, after) = &self.batches[self.next];
        rng.clone_from(after);
        Ok(*keep)
    }
}

impl Learner for Remote<'_> {
    type Error = Failure;

    fn step(&mut self, batch: &[u32], partners: Option<&[u32]>, rng: &mut Rng, rate: f32) -> Result<(), Failure> {
        let n = self.varied.labels().len();
        let mate = |i: usize| partners.and_then(|p| p.get(i)).copied();
        let (area, keep) = match self.space {
            Space::Features { views } => {
                let drawn = draw_box(self.head.features(), partners.is_some(), rng);
                for (i, &picture) in batch.iter().enumerate() {
                    let mut row = |picture: u32| (rng.below(views) * n) as u32 + picture;
                    let own = row(picture);
                    self.drawn.own.push(own);
                    self.drawn.mates.push(mate(i).map_or(own, row));
                }
                drawn
            }
            Space::Mixed { .. } | Space::Pictures => {
                let keep = self.mixed(batch, partners, rng)?;
                let first = (self.next * batch.len()) as u32;
                let rows = first..first + batch.len() as u32;
                self.drawn.own.extend(rows.clone());
                self.drawn.mates.extend(rows);
                self.next = (self.next + 1) % self.plan.round;
                ([0; 4], keep)
            }
        };
        let labels = self.varied.labels();
        for (i, &picture) in batch.iter().enumerate() {
            self.drawn.labels[0].push(labels[picture as usize]);
            self.drawn.labels[1].push(labels[mate(i).unwrap_or(picture) as usize]);
        }
        self.drawn.boxes.extend(area.map(|v| v as u32));
        self.drawn.keep.push(keep);
        self.drawn.rate = rate;
        Ok(())
    }

    fn loss(&mut self) -> Result<f32, Failure> {
        let loss = self.head.learn(&std::mem::take(&mut self.drawn), self.classes)?;
        if !loss.is_finite() {
            return Err(super::diverged());
        }
        Ok(loss)
    }
}

/// Trains a new head over the stem of `net` on a GPU.
///
/// # Errors
/// [`Failure::Input`] where the holdout, the head or the GPU does not do.
#[allow(clippy::too_many_arguments)]
pub(super) fn replace_head(
    gpu: usize,
    precision: Precision,
    net: &TrapNet,
    pictures: &[f32],
    labels: &[u32],
    how: &Replacement,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<NewHead, Failure> {
    if how.kind != HeadKind::Residual {
        return Err(Failure::input("--device cuda", "a linear head is trained on the CPU only"));
    }
    let wrong = |e| Failure::input("holdout", e);
    check(&how.settings, labels, net.classes).map_err(wrong)?;
    let varied = Varied::new(net.input, pictures, labels, how.augment).map_err(wrong)?;
    let plan = Plan::new(how.space, labels.len(), how.settings.batch);
    let head = CudaHead::open(gpu, net, &how.settings, plan.sizes, precision)?;
    Remote::new(head, varied, net.classes, how, plan)?.train(how, progress)
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;
    use crate::engine::cuda::Place;
    use crate::export;
    use crate::model::Architecture;
    use stemguard_runtime::kernels::simd::Simd;
    use stemguard_runtime::onnx::{self, Model};
    use stemguard_runtime::replace::Settings;
    use stemguard_runtime::session::{self, Augment, Session};
    use stemguard_runtime::shape::Shape;

    /// Between parameters after six steps: the length of the difference, relative to theirs. Adam's first steps make a whole step of
    /// any gradient, and a bias in front of a norm has none but rounding.
    const APART: f64 = 5e-3;

    /// Between losses in bf16 and on the CPU, relative.
    const ROUGHLY: f32 = 0.03;

    /// The same draws, features and steps as on the CPU, in every space; on any order of threads the same bits.
    #[test]
    fn a_head_learns_on_the_device_as_on_the_cpu() {
        Place::ALL.into_iter().for_each(learns_at);
    }

    fn learns_at(place: Place) {
        let (input, n, classes) = (Shape::new(8, 8, 3), 14, 3);
        let net = TrapNet::new(Architecture::default(), input, classes, false, 5, &dfdx::prelude::Cpu::default());
        let net = net.expect("a network");
        let model = Model::from_bytes(&export::stem(&net).expect("a stem")).expect("ONNX");
        let packed = onnx::lower(&model, None).expect("a net");
        let session = Session::of_net(packed.as_net(), Simd::new(1));
        let mut rng = Rng::new(1, 1);
        let pictures: Vec<f32> = (0..n * input.len()).map(|_| rng.uniform()).collect();
        let labels: Vec<u32> = (0..n as u32).map(|i| i % classes as u32).collect();
        for space in [Space::Features { views: 2 }, Space::Mixed { views: 1 }, Space::Pictures] {
            let settings = Settings { batch: 6, epochs: 3, seed: 9, ..Settings::CACHED };
            let augment = Augment { shift: 2, flip: true };
            let how = Replacement { space, augment, settings, ..Replacement::cached(true, settings.seed) };
            let mut losses = Vec::new();
            let there = |precision, place, losses: &mut Vec<f32>| {
                let plan = Plan::new(space, n, settings.batch);
                let head = CudaHead::at(place, &net, &settings, plan.sizes, precision)?;
                let varied = Varied::new(input, &pictures, &labels, augment).expect("pictures");
                let remote = Remote::new(head, varied, classes, &how, plan).expect("a bank");
                let head = remote.train(&how, &mut |p| {
                    losses.push(p.loss);
                    true
                });
                Some(head.expect("a head").params)
            };
            let Some(new) = there(Precision::F32, place, &mut losses) else { return };
            let mut expected = Vec::new();
            let (kind, labels) = (HeadKind::Residual, &labels[..]);
            let old = session::replace_head(
                &session,
                kind,
                classes,
                &pictures,
                labels,
                space,
                augment,
                &settings,
                &mut |p| {
                    expected.push(p.loss);
                    true
                },
            )
            .expect("a head")
            .params;
            assert_eq!(new.len(), old.len());
            let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
            let apart = square(&mut new.iter().zip(&old).map(|(a, b)| a - b)) / square(&mut old.iter().copied());
            eprintln!("{space:?}: parameters {:.1e} apart; losses {losses:?}, {expected:?}", apart.sqrt());
            assert!(apart.sqrt() <= APART, "{space:?}");
            assert_eq!(losses.len(), 3);
            for (a, b) in losses.iter().zip(&expected) {
                assert!((a - b).abs() <= 1e-3 * b, "{space:?}: {losses:?} where the CPU has {expected:?}");
            }
            let mut rough = Vec::new();
            there(Precision::Bf16, place, &mut rough).expect("in bf16");
            eprintln!("{space:?}, bf16: losses {rough:?}");
            assert!(rough.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= ROUGHLY * b), "{space:?}: {rough:?}");
            assert_eq!(there(Precision::F32, place.again(), &mut rough).expect("again"), new, "{space:?}");
        }
    }
}
