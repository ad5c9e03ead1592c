//! Two heads on one stem, and what runs them: the CPU's engine and the runtime's head, or a GPU with both.

use crate::engine::cuda::CudaWitnesses;
use crate::engine::{CpuEngine, Device};
use crate::error::Failure;
use stemguard_runtime::artifact::{HeadKind, HeadSpec};
use stemguard_runtime::head;
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::net::Span;
use stemguard_runtime::session::{NewHead, to_f32};

/// The trapped head, which saw the poison, and the new one, which was trained on the clean holdout.
pub(super) enum Witnesses<'a> {
    /// On the CPU.
    Cpu {
        /// Stem and trapped head.
        trapped: &'a mut CpuEngine,
        /// The new head.
        new: &'a NewHead,
        /// What runs it.
        kernels: &'a Simd,
    },
    /// Both on a GPU.
    Gpu(CudaWitnesses),
}

impl<'a> Witnesses<'a> {
    /// Both heads on the stem of `trapped`, where `device` says.
    ///
    /// # Errors
    /// [`Failure`] where the device cannot be used, or not for such a head.
    pub(super) fn open(
        device: Device,
        trapped: &'a mut CpuEngine,
        new: &'a NewHead,
        kernels: &'a Simd,
    ) -> Result<Self, Failure> {
        match device {
            Device::Cpu => Ok(Self::Cpu { trapped, new, kernels }),
            Device::Cuda { .. } if new.kind != HeadKind::Residual => {
                Err(Failure::input("--device cuda", "a linear head runs on the CPU only"))
            }
            Device::Cuda { gpu, precision } => {
                Ok(Self::Gpu(CudaWitnesses::open(gpu, &trapped.net, &new.params, precision)?))
            }
        }
    }

    /// Logits of the trapped and of the new head on pictures (`[n][h][w][3]`, bytes), `[n][classes]` each, all finite.
    ///
    /// # Errors
    /// [`Failure`] where a head does not fit the stem, answers with no number, or the device fails.
    pub(super) fn both(&mut self, pictures: &[u8]) -> Result<[Vec<f32>; 2], Failure> {
        let [trapped, new] = match self {
            Self::Cpu { trapped, new, kernels } => {
                let features = features(trapped, pictures);
                let n = features.len() / trapped.net.stem.output().len();
                [trapped.head_logits(&features), new_logits(trapped, new, kernels, n, &features)?]
            }
            Self::Gpu(both) => both.logits(pictures)?,
        };
        Ok([finite(trapped)?, finite(new)?])
    }

    /// Those of the trapped head alone.
    ///
    /// # Errors
    /// As [`Witnesses::both`].
    pub(super) fn trapped(&mut self, pictures: &[u8]) -> Result<Vec<f32>, Failure> {
        match self {
            Self::Cpu { trapped, .. } => {
                let features = features(trapped, pictures);
                finite(trapped.head_logits(&features))
            }
            Self::Gpu(both) => {
                let [trapped, _] = both.logits(pictures)?;
                finite(trapped)
            }
        }
    }
}

fn features(trapped: &mut CpuEngine, pictures: &[u8]) -> Vec<f32> {
    let mut x = vec![0.0; pictures.len()];
    to_f32(pictures, &mut x);
    trapped.features(&x)
}

fn new_logits(
    trapped: &CpuEngine,
    new: &NewHead,
    kernels: &Simd,
    n: usize,
    features: &[f32],
) -> Result<Vec<f32>, Failure> {
    let span = Span { at: 0, len: new.params.len() as u32 };
    let spec = HeadSpec { kind: new.kind, features: trapped.net.stem.output(), classes: new.classes, span };
    let mut scratch = vec![0.0; head::inference_len(&spec, n)?];
    let mut logits = vec![0.0; n * new.classes as usize];
    head::infer(kernels, &spec, &new.params, n, features, &mut scratch, &mut logits)?;
    Ok(logits)
}

/// Logits as they are, none of them an infinity or no number.
fn finite(logits: Vec<f32>) -> Result<Vec<f32>, Failure> {
    if logits.iter().all(|v| v.is_finite()) {
        return Ok(logits);
    }
    Err(Failure::input("checkpoint.safetensors", "holds a network whose answers are not finite"))
}
