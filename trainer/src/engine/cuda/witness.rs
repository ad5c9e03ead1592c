//! Two heads on one frozen stem, on the device: what the audit asks of them.
//!
//! ```text
//! pictures -> stem -+-> new head -> logits
//!                   +-> trapped head -> logits
//! ```

use super::args::Control;
use super::backend::{Backend, Region};
use super::builder::{Builder, Homes};
use super::driver;
use super::head::{Values, place};
use super::network::{self, Ends};
use super::plan::{Cut, Source, bring};
use crate::engine::{EngineError, Precision};
use crate::model::TrapNet;
use bytemuck::Zeroable;
use stemguard_runtime::head::HeadModel as _;
use stemguard_runtime::head::residual::Residual;
use stemguard_runtime::layers::unit::UnitShape;

/// Pictures asked about together.
const TOGETHER: usize = 250;

/// A network's stem and head, and a residual head beside it, on a device.
pub struct CudaWitnesses {
    device: Box<dyn Backend>,
    /// Values of a picture.
    input: usize,
    classes: usize,
    batch: usize,
    source: Source,
    /// Of the trapped and the new head, `[batch][classes]`.
    logits: [Region; 2],
    program: usize,
}

impl CudaWitnesses {
    /// Stem and head of `net`, and a new residual head on the same stem (its parameters as in the runtime), on a GPU.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`] where there is no GPU that can be used, or a shape is not for it.
    pub fn open(gpu: usize, net: &TrapNet, new: &[f32], precision: Precision) -> Result<Self, EngineError> {
        Self::on(Box::new(driver::Driver::open(gpu, precision)?), net, new, TOGETHER)
    }

    fn on(mut device: Box<dyn Backend>, net: &TrapNet, new: &[f32], batch: usize) -> Result<Self, EngineError> {
        let (features, classes) = (net.stem.output(), net.classes);
        let wrong = |e: stemguard_runtime::error::Error| EngineError::Failed(format!("head: {e}"));
        let head = Residual::new(features, classes).map_err(wrong)?;
        let shape = UnitShape::new(features, features.c, 1, true).map_err(wrong)?;
        let mut values = Values::default();
        let mut net = net.clone();
        net.stem.visit("stem", &mut values);
        net.head.visit("head", &mut values);
        let Values { mut layout, mut params, mut statistics } = values;
        place(&mut layout, features.c as usize, classes);
        if new.len() != head.params() {
            return Err(EngineError::Failed("a new head of other parameters than the runtime's".into()));
        }
        let (trained, running) = new.split_at(head.trained());
        params.extend(trained);
        statistics.extend(running);
        if layout.lens() != (params.len(), statistics.len()) {
            return Err(EngineError::Failed("head: other parameters than the runtime's".into()));
        }

        let mut take = |len: usize| device.allocate(4 * len.max(1));
        // Nothing is learned: there are no gradients to keep.
        let homes = Homes { params: take(params.len())?, grads: take(1)?, statistics: take(statistics.len())? };
        let (control, answers) = (take(size_of::<Control>() / 4)?, take(batch)?);
        let pixels = device.allocate(batch * net.input.len())?;
        let source = Source { pixels, control, order: None, cut: Cut::Whole, flip: false };
        device.write(homes.params, bytemuck::cast_slice(&params))?;
        device.write(homes.statistics, bytemuck::cast_slice(&statistics))?;

        let b = &mut Builder::new(&mut *device, &layout, homes, batch);
        let x = bring(b, &source, net.input)?;
        let ends = Ends { control: control.address, answers: answers.address, ..Ends::default() };
        let (features, _) = network::forward(b, "stem", &net.stem, x, false, &ends)?;
        // The last to read the features gives their room back.
        let (y, _) = network::unit(b, "new.unit".into(), &shape, features, false)?;
        let (new, _) = network::tail(b, "new.tail".into(), shape.y(), classes, true, y, false, &ends)?;
        let (trapped, _) = network::forward(b, "head", &net.head, features, false, &ends)?;
        let launches = b.finish()?;
        // SAFETY: the builder fills in each kernel's own structure, with regions of this device that it sized by the same shapes
        // that the kernels are told; no kernel of a forward pass touches the gradients.
        let program = unsafe { device.program(launches) }?;
        let (input, logits) = (net.input.len(), [trapped.region, new.region]);
        Ok(Self { device, input, classes, batch, source, logits, program })
    }

    /// As [`CudaWitnesses::open`], somewhere; none where there is no such device.
    #[cfg(all(test, target_os = "linux", target_env = "gnu"))]
    pub(crate) fn at(
        place: super::Place,
        net: &TrapNet,
        new: &[f32],
        precision: Precision,
        batch: usize,
    ) -> Option<Self> {
        Some(Self::on(place.device(precision)?, net, new, batch).expect("witnesses"))
    }

    /// Logits of the trapped and of the new head on pictures (`[n][h][w][3]`, bytes), `[n][classes]` each.
    ///
    /// # Errors
    /// [`EngineError::Failed`] where the pictures are of another size, or the device fails.
    pub fn logits(&mut self, pictures: &[u8]) -> Result<[Vec<f32>; 2], EngineError> {
        if !pictures.len().is_multiple_of(self.input) {
            return Err(EngineError::Failed("CUDA engine: pictures of another shape".into()));
        }
        let mut found = [Vec::new(), Vec::new()];
        for part in pictures.chunks(self.batch * self.input) {
            let n = part.len() / self.input;
            let control = Control { step: u32::MAX, pictures: n as u32, ..Control::zeroed() };
            self.device.write(self.source.control, bytemuck::bytes_of(&control))?;
            self.device.write(self.source.pixels, part)?;
            self.device.run(self.program)?;
            for (found, &region) in found.iter_mut().zip(&self.logits) {
                let first = found.len();
                found.resize(first + n * self.classes, 0.0);
                self.device.read(region, 0, bytemuck::cast_slice_mut(&mut found[first..]))?;
            }
        }
        Ok(found)
    }
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;
    use crate::engine::cuda::Place;
    use crate::engine::{CpuEngine, Objective, Optimizer};
    use crate::model::Architecture;
    use crate::nn::loss::Reconstruction;
    use dfdx::prelude::Cpu;
    use stemguard_runtime::artifact::HeadSpec;
    use stemguard_runtime::head;
    use stemguard_runtime::kernels::simd::Simd;
    use stemguard_runtime::net::Span;
    use stemguard_runtime::rng::Rng;
    use stemguard_runtime::session::to_f32;
    use stemguard_runtime::shape::Shape;

    /// Both heads answer as on the CPU, whole batches and the rest of one.
    #[test]
    fn both_heads_answer_as_on_the_cpu() {
        Place::ALL.into_iter().for_each(answers_at);
    }

    fn answers_at(place: Place) {
        let (input, classes, n) = (Shape::new(16, 16, 3), 4, 5);
        for split in [4, 5] {
            let (architecture, dev) = (Architecture { split, ..Architecture::default() }, Cpu::default());
            let net = TrapNet::new(architecture, input, classes, true, 3, &dev).expect("a network");
            let features = net.stem.output();
            let model = Residual::new(features, classes).expect("a head");
            let mut rng = Rng::new(2, split.into());
            // Running variances, the second half of each pair of statistics, stay positive.
            let params: Vec<f32> = (0..model.params()).map(|_| 0.05 + 0.2 * rng.uniform()).collect();
            let pictures: Vec<u8> = (0..n * input.len()).map(|_| rng.below(256) as u8).collect();

            let mut x = vec![0.0; pictures.len()];
            to_f32(&pictures, &mut x);
            let weights = Reconstruction { mse: 1.0, tv: 1.0 };
            let objective = Objective { reconstruction: weights, optimizer: Optimizer::Adam, decay: 0.0 };
            let mut cpu = CpuEngine::new(net, objective, Simd::new(1), dev);
            let on = cpu.features(&x);
            let span = Span { at: 0, len: params.len() as u32 };
            let spec = HeadSpec { kind: stemguard_runtime::artifact::HeadKind::Residual, features, classes: 4, span };
            let mut scratch = vec![0.0; head::inference_len(&spec, n).expect("a length")];
            let mut new = vec![0.0; n * classes];
            head::infer(&Simd::new(1), &spec, &params, n, &on, &mut scratch, &mut new).expect("logits");
            let expected = [cpu.head_logits(&on), new];

            for (precision, least) in [(Precision::F32, 1e-4), (Precision::Bf16, 0.05)] {
                let Some(mut device) = CudaWitnesses::at(place, &cpu.net, &params, precision, 3) else { return };
                let found = device.logits(&pictures).expect("logits");
                for (found, expected) in found.iter().zip(&expected) {
                    assert_eq!(found.len(), n * classes);
                    assert!(found.iter().all(|v| v.is_finite()), "{found:?}");
                    let top = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                    let apart = found.iter().zip(expected).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / top;
                    eprintln!("{place:?}, split {split}, {precision:?}: logits {apart:.1e} apart");
                    assert!(apart <= least, "{found:?} where the CPU has {expected:?}");
                }
                let two = device.logits(&pictures[..2 * input.len()]).expect("two");
                assert!(two.iter().zip(&found).all(|(two, all)| two[..] == all[..2 * classes]));
                assert!(device.logits(&pictures[1..]).is_err(), "part of a picture");
            }
        }
    }
}
