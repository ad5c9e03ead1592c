//! Engines: what runs training steps. The CPU engine is dfdx's tape over the runtime's kernels, and the oracle of the CUDA engine.

mod cpu;
#[allow(unsafe_code)]
pub mod cuda;
pub(crate) mod room;

pub use cpu::CpuEngine;
pub(crate) use cpu::{log_odds, probability};

use crate::config::RunConfig;
use crate::nn::loss::Reconstruction;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use stemguard_runtime::data::Pictures;

/// Where training steps run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// [`CpuEngine`].
    #[default]
    Cpu,
    /// [`cuda::CudaEngine`].
    Cuda {
        /// Which GPU, from 0.
        gpu: usize,
        /// How it multiplies.
        precision: Precision,
    },
}

/// How a GPU keeps maps and multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// In `f32`.
    F32,
    /// Maps are kept in bf16 and multiplied on the tensor cores; sums, statistics, parameters and optimisers stay `f32`.
    Bf16,
}

impl Precision {
    /// Bytes of a value of a map.
    pub const fn cell(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// Which optimiser, with L2 weight decay in the gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// Adam, betas 0.9 and 0.999.
    Adam,
    /// SGD with momentum 0.9.
    Sgd,
}

/// What stays fixed during a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// Weights of the reconstruction losses; without a decoder they are not used.
    pub reconstruction: Reconstruction,
    /// Optimiser.
    pub optimizer: Optimizer,
    /// L2 weight decay.
    pub decay: f64,
}

/// The losses of one step, unweighted but for the total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Losses {
    /// What was minimised.
    pub total: f32,
    /// Cross-entropy.
    pub ce: f32,
    /// Mean squared error of the reconstruction.
    pub mse: f32,
    /// Total variation of the reconstruction.
    pub tv: f32,
}

/// What a step is to teach.
#[derive(Clone, Copy, Debug)]
pub struct Lesson<'a> {
    /// The label of each picture.
    pub labels: &'a [u32],
    /// Whether to unlearn it instead; empty: nothing is unlearned.
    pub forget: &'a [bool],
}

impl<'a> Lesson<'a> {
    /// Every label is to be learned.
    pub fn learn(labels: &'a [u32]) -> Self {
        Self { labels, forget: &[] }
    }
}

/// What a step tells.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepReport {
    /// Mean losses of the batch.
    pub losses: Losses,
    /// Log-odds of each picture's given label, as the step saw it.
    pub fit: Vec<f32>,
}

/// Everything a run needs to go on: named flat tensors.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Parameters, running statistics and optimiser moments by name.
    pub tensors: BTreeMap<String, Vec<f32>>,
    /// Optimiser steps done.
    pub steps: u64,
}

/// Why an engine failed.
#[derive(Debug)]
pub enum EngineError {
    /// What was asked for cannot be had here: a device, a setting.
    Unavailable(String),
    /// Anything else.
    Failed(String),
}

impl std::fmt::Display for EngineError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unavailable(m) | Self::Failed(m) => f.write_str(m),
        }
    }
}

impl std::error::Error for EngineError {}

/// One pass over a course's pictures.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// Batch, crop, flip and seed.
    pub config: &'a RunConfig,
    /// What is learned.
    pub pictures: &'a Pictures,
    /// Whether a picture's label is unlearned instead; empty: none is.
    pub forget: &'a [bool],
    /// From 0.
    pub epoch: u32,
    /// Learning rate.
    pub rate: f64,
}

/// A training engine. Its state goes from one to another.
pub trait Engine {
    /// Takes up the pictures that its passes are over: once, before the first.
    ///
    /// # Errors
    /// Where memory runs out or a setting is not for this engine.
    fn hold(&mut self, c: &RunConfig, pictures: &Pictures) -> Result<(), EngineError>;

    /// An optimiser step on each whole batch of `order`, places of all or some of the pictures held; `tell` gets the pictures and the
    /// report of each, in order, and ends the pass with `false`.
    ///
    /// # Errors
    /// Where memory runs out or the device fails.
    fn pass(
        &mut self,
        pass: &Pass<'_>,
        order: &[u32],
        tell: &mut dyn FnMut(&[u32], &StepReport) -> bool,
    ) -> Result<(), EngineError>;

    /// The class given to each picture in inference mode.
    ///
    /// # Errors
    /// As [`Engine::pass`].
    fn answers(&mut self, pictures: &Pictures) -> Result<Vec<u32>, EngineError>;

    /// Everything needed to go on.
    ///
    /// # Errors
    /// As [`Engine::pass`].
    fn state(&mut self) -> Result<State, EngineError>;

    /// Goes on from a state.
    ///
    /// # Errors
    /// Where a tensor is missing or has another length.
    fn restore(&mut self, state: &State) -> Result<(), EngineError>;
}
