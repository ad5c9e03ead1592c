//! Engines: what runs a training step. The CPU engine is dfdx's tape over the runtime's kernels, and the oracle of any other.

mod cpu;

pub use cpu::CpuEngine;
pub(crate) use cpu::{log_odds, probability};

use crate::nn::loss::Reconstruction;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
pub struct EngineError(pub String);

impl std::fmt::Display for EngineError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for EngineError {}

/// A training engine. Pictures are `[n][h][w][c]`, f32, 0..=1.
pub trait Engine {
    /// One optimiser step on a batch.
    ///
    /// # Errors
    /// Where memory runs out or the device fails.
    fn step(&mut self, pictures: Vec<f32>, lesson: Lesson<'_>, rate: f64) -> Result<StepReport, EngineError>;

    /// Logits (`[n][classes]`) in inference mode.
    ///
    /// # Errors
    /// As [`Engine::step`].
    fn logits(&mut self, pictures: &[f32]) -> Result<Vec<f32>, EngineError>;

    /// Reconstructions (as the pictures) in inference mode; none without a decoder.
    ///
    /// # Errors
    /// As [`Engine::step`].
    fn reconstruct(&mut self, pictures: &[f32]) -> Result<Option<Vec<f32>>, EngineError>;

    /// Everything needed to go on.
    fn state(&mut self) -> State;

    /// Goes on from a state.
    ///
    /// # Errors
    /// Where a tensor is missing or has another length.
    fn restore(&mut self, state: &State) -> Result<(), EngineError>;
}
