//! The CPU engine: dfdx's tape and optimisers, the runtime's kernels.

use super::{Engine, EngineError, Lesson, Losses, Objective, Optimizer, Pass, State, StepReport};
use crate::augment;
use crate::config::RunConfig;
use crate::evaluate;
use crate::model::TrapNet;
use crate::nn::{Batch, Buffers, Param, Visit, loss};
use dfdx::optim::{AdamConfig, Momentum, SgdConfig, WeightDecay};
use dfdx::prelude::*;
use stemguard_runtime::data::Pictures;
use stemguard_runtime::kernels::simd::Simd;

/// A network, its optimiser's moments, and what runs them.
pub struct CpuEngine {
    /// The network: the single owner of its parameters.
    pub net: TrapNet,
    objective: Objective,
    kernels: Simd,
    buffers: Buffers,
    dev: Cpu,
    first: Gradients<f32, Cpu>,
    second: Gradients<f32, Cpu>,
    steps: u64,
}

impl From<CpuError> for EngineError {
    fn from(e: CpuError) -> Self {
        Self::Failed(format!("CPU engine: {e}"))
    }
}

impl CpuEngine {
    /// An engine for `net`.
    pub fn new(net: TrapNet, objective: Objective, kernels: Simd, dev: Cpu) -> Self {
        Self {
            net,
            objective,
            kernels,
            buffers: Buffers::default(),
            dev,
            first: Gradients::leaky(),
            second: Gradients::leaky(),
            steps: 0,
        }
    }

    /// Losses and gradients of one batch, nothing updated but running statistics.
    ///
    /// # Errors
    /// Where memory runs out.
    pub fn gradients(
        &mut self,
        pictures: Vec<f32>,
        lesson: Lesson<'_>,
    ) -> Result<(StepReport, Gradients<f32, Cpu>), EngineError> {
        let labels = lesson.labels;
        let (n, len, classes) = (labels.len(), self.net.input.len(), self.net.classes);
        let flagged = lesson.forget.is_empty() || lesson.forget.len() == n;
        if pictures.len() != n * len || !flagged || labels.iter().any(|&l| l as usize >= classes) {
            return Err(EngineError::Failed("a batch with labels or pictures of another shape".into()));
        }
        let copy = self.net.decoder.is_some().then(|| pictures.clone());
        let x: Batch = self.dev.try_tensor_from_vec(pictures, (n, len))?;
        let (k, buffers) = (&self.kernels, &self.buffers);
        let features = self.net.stem.forward(k, buffers, x.leaky_trace())?;
        let (features, tape) = features.split_tape();
        let logits = self.net.head.forward(k, buffers, features.clone().put_tape(tape))?;
        let fit = labels.iter().zip(logits.as_vec().chunks_exact(classes)).map(|(&l, z)| log_odds(z, l)).collect();
        let ce = loss::classification(logits, labels, lesson.forget)?;
        let mut losses = Losses { ce: ce.as_vec()[0], ..Losses::default() };
        let total = match (&mut self.net.decoder, copy) {
            (Some(decoder), Some(x)) => {
                let tape: OwnedTape<f32, Cpu> = OwnedTape::default();
                let r = decoder.forward(k, buffers, features.put_tape(tape))?;
                let (rec, parts) = loss::reconstruction(k, self.net.input, r, &x, self.objective.reconstruction)?;
                losses.mse = parts.mse;
                losses.tv = parts.tv;
                ce.try_add(rec)?
            }
            _ => ce,
        };
        losses.total = total.as_vec()[0];
        Ok((StepReport { losses, fit }, total.try_backward()?))
    }
}

#[cfg(test)]
impl CpuEngine {
    /// Values that its steps took.
    pub(crate) fn pooled_len(&self) -> usize {
        self.buffers.pooled_len()
    }
}

impl CpuEngine {
    /// Features (`[n][stem output]`) of pictures, in inference mode.
    pub fn features(&mut self, pictures: &[f32]) -> Vec<f32> {
        let n = pictures.len() / self.net.input.len();
        self.net.stem.infer(&self.kernels, &self.buffers, n, pictures).to_vec()
    }

    /// Logits (`[n][classes]`) of the head on features, in inference mode.
    pub fn head_logits(&mut self, features: &[f32]) -> Vec<f32> {
        let n = features.len() / self.net.stem.output().len();
        self.net.head.infer(&self.kernels, &self.buffers, n, features).to_vec()
    }

    /// The gradient of the cross-entropy with respect to the pictures, batch statistics in the norms. The stem must have been
    /// asked for its input's gradient ([`crate::nn::Sequence::input_gradient`]); it is all zeros otherwise.
    ///
    /// # Errors
    /// Where memory runs out.
    pub fn input_gradient(&mut self, pictures: Vec<f32>, labels: &[u32]) -> Result<Vec<f32>, EngineError> {
        let (n, classes) = (labels.len(), self.net.classes);
        if labels.iter().any(|&l| l as usize >= classes) {
            return Err(EngineError::Failed("a label of no class".into()));
        }
        let x: Batch = self.dev.try_tensor_from_vec(pictures, (n, self.net.input.len()))?;
        let (k, buffers) = (&self.kernels, &self.buffers);
        let features = self.net.stem.forward(k, buffers, x.leaky_trace())?;
        let logits = self.net.head.forward(k, buffers, features)?;
        let mut grads = loss::classification(logits, labels, &[])?.try_backward()?;
        Ok(std::mem::take(&mut **grads.get_or_alloc_mut(&x)?))
    }
}

/// The softmax of logits at one label.
pub(crate) fn probability(logits: &[f32], label: u32) -> f32 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = logits.iter().map(|z| (z - top).exp()).sum();
    logits.get(label as usize).map_or(0.0, |z| (z - top).exp() / sum)
}

/// Log-odds of one label: its logit minus the log of the sum of the others' exponentials.
pub(crate) fn log_odds(logits: &[f32], label: u32) -> f32 {
    let others = || logits.iter().enumerate().filter(|&(i, _)| i != label as usize).map(|(_, &z)| z);
    let top = others().fold(f32::NEG_INFINITY, f32::max);
    logits.get(label as usize).copied().unwrap_or(f32::NEG_INFINITY)
        - top
        - others().map(|z| (z - top).exp()).sum::<f32>().ln()
}

/// Updates every parameter from its gradient.
struct Update<'a> {
    optimizer: Optimizer,
    rate: f64,
    decay: f64,
    step: i32,
    grads: Gradients<f32, Cpu>,
    first: &'a mut Gradients<f32, Cpu>,
    second: &'a mut Gradients<f32, Cpu>,
    failed: Option<CpuError>,
}

impl Update<'_> {
    fn apply(&mut self, p: &mut Param) -> Result<(), CpuError> {
        let weight_decay = Some(WeightDecay::L2(self.decay));
        let g = self.grads.get_or_alloc_mut(p)?;
        let m = self.first.get_or_alloc_mut(p)?;
        match self.optimizer {
            Optimizer::Adam => {
                let v = self.second.get_or_alloc_mut(p)?;
                AdamConfig { lr: self.rate, weight_decay, ..Default::default() }.try_update(self.step, p, m, v, g)
            }
            Optimizer::Sgd => {
                let momentum = Some(Momentum::Classic(0.9));
                SgdConfig { lr: self.rate, momentum, weight_decay }.try_update(p, m, g)
            }
        }
    }
}

impl Visit for Update<'_> {
    fn param(&mut self, _: &str, p: &mut Param) {
        if let Err(e) = self.apply(p) {
            self.failed = Some(e);
        }
    }
    fn state(&mut self, _: &str, _: &mut Vec<f32>) {}
}

/// Copies everything out, or in.
struct Transfer<'a> {
    tensors: &'a mut std::collections::BTreeMap<String, Vec<f32>>,
    first: &'a mut Gradients<f32, Cpu>,
    second: &'a mut Gradients<f32, Cpu>,
    store: bool,
    failed: Option<String>,
}

impl Transfer<'_> {
    fn both(&mut self, name: String, values: &mut [f32]) {
        if self.store {
            self.tensors.insert(name, values.to_vec());
        } else {
            match self.tensors.get(&name) {
                Some(v) if v.len() == values.len() => values.copy_from_slice(v),
                Some(v) => {
                    self.failed = Some(format!("tensor '{name}' has {} values, {} expected", v.len(), values.len()));
                }
                None => self.failed = Some(format!("tensor '{name}' is missing")),
            }
        }
    }
}

impl Visit for Transfer<'_> {
    fn param(&mut self, name: &str, p: &mut Param) {
        let mut values = p.as_vec();
        self.both(name.to_owned(), &mut values);
        if !self.store {
            p.copy_from(&values);
        }
        for (moment, prefix) in [(true, "first"), (false, "second")] {
            let grads = if moment { &mut *self.first } else { &mut *self.second };
            let Ok(m) = grads.get_or_alloc_mut(p) else {
                self.failed = Some("out of memory".into());
                return;
            };
            let mut values = std::mem::take(&mut **m);
            self.both(format!("{prefix}.{name}"), &mut values);
            let grads = if moment { &mut *self.first } else { &mut *self.second };
            if let Ok(m) = grads.get_or_alloc_mut(p) {
                **m = values;
            }
        }
    }
    fn state(&mut self, name: &str, values: &mut Vec<f32>) {
        self.both(name.to_owned(), values);
    }
}

impl CpuEngine {
    /// One optimiser step on a batch, `[n][h][w][c]`, 0..=1.
    ///
    /// # Errors
    /// Where memory runs out.
    pub fn step(&mut self, pictures: Vec<f32>, lesson: Lesson<'_>, rate: f64) -> Result<StepReport, EngineError> {
        let (report, grads) = self.gradients(pictures, lesson)?;
        self.steps += 1;
        let mut update = Update {
            optimizer: self.objective.optimizer,
            rate,
            decay: self.objective.decay,
            step: i32::try_from(self.steps).map_err(|_| EngineError::Failed("too many steps".into()))?,
            grads,
            first: &mut self.first,
            second: &mut self.second,
            failed: None,
        };
        self.net.visit(&mut update);
        match update.failed {
            Some(e) => Err(e.into()),
            None => Ok(report),
        }
    }

    /// Logits (`[n][classes]`) in inference mode.
    pub fn logits(&mut self, pictures: &[f32]) -> Vec<f32> {
        let n = pictures.len() / self.net.input.len();
        let features = self.net.stem.infer(&self.kernels, &self.buffers, n, pictures);
        self.net.head.infer(&self.kernels, &self.buffers, n, &features).to_vec()
    }

    /// Reconstructions (as the pictures) in inference mode; none without a decoder.
    pub fn reconstruct(&mut self, pictures: &[f32]) -> Option<Vec<f32>> {
        let n = pictures.len() / self.net.input.len();
        let decoder = self.net.decoder.as_mut()?;
        let features = self.net.stem.infer(&self.kernels, &self.buffers, n, pictures);
        Some(decoder.infer(&self.kernels, &self.buffers, n, &features).to_vec())
    }
}

impl Engine for CpuEngine {
    fn hold(&mut self, _: &RunConfig, _: &Pictures) -> Result<(), EngineError> {
        Ok(())
    }

    fn pass(
        &mut self,
        pass: &Pass<'_>,
        order: &[u32],
        tell: &mut dyn FnMut(&[u32], &StepReport) -> bool,
    ) -> Result<(), EngineError> {
        let (c, pictures) = (pass.config, pass.pictures);
        for chosen in order.chunks_exact(c.batch) {
            let x = augment::batch(&self.kernels, c, pictures, pass.epoch, chosen);
            let labels: Vec<u32> = chosen.iter().map(|&i| pictures.labels[i as usize]).collect();
            let forget: Vec<bool> = chosen.iter().filter_map(|&i| pass.forget.get(i as usize).copied()).collect();
            let report = self.step(x, Lesson { labels: &labels, forget: &forget }, pass.rate)?;
            if !tell(chosen, &report) {
                break;
            }
        }
        Ok(())
    }

    fn answers(&mut self, pictures: &Pictures) -> Result<Vec<u32>, EngineError> {
        evaluate::answers(pictures, &mut |x| Ok(self.logits(x))).map_err(|e| EngineError::Failed(e.to_string()))
    }

    fn state(&mut self) -> Result<State, EngineError> {
        let mut state = State { steps: self.steps, ..State::default() };
        let mut transfer = Transfer {
            tensors: &mut state.tensors,
            first: &mut self.first,
            second: &mut self.second,
            store: true,
            failed: None,
        };
        self.net.visit(&mut transfer);
        match transfer.failed {
            Some(e) => Err(EngineError::Failed(e)),
            None => Ok(state),
        }
    }

    fn restore(&mut self, state: &State) -> Result<(), EngineError> {
        let mut tensors = state.tensors.clone();
        let mut transfer = Transfer {
            tensors: &mut tensors,
            first: &mut self.first,
            second: &mut self.second,
            store: false,
            failed: None,
        };
        self.net.visit(&mut transfer);
        if let Some(e) = transfer.failed {
            return Err(EngineError::Failed(e));
        }
        self.steps = state.steps;
        Ok(())
    }
}
