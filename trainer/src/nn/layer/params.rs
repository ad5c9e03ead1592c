//! Parameters of the layers: dfdx tensors, their plain copies, their gradients.

use crate::nn::{Param, Visit, param};
use dfdx::prelude::*;
use stemguard_runtime::layers::basic::{NormedConv, NormedConvGrads};
use stemguard_runtime::layers::norm::{self, NormGrads, NormParams, NormState};
use stemguard_runtime::layers::unit::{ConvGrads, ConvParams};

/// A convolution's weights and bias.
#[derive(Clone, Debug)]
pub struct Conv {
    /// `[ky][kx][cin][cout]`
    pub weight: Param,
    /// `[cout]`
    pub bias: Param,
}

/// A batch norm's parameters and running statistics.
#[derive(Clone, Debug)]
pub struct Norm {
    /// `[c]`
    pub gamma: Param,
    /// `[c]`
    pub beta: Param,
    /// Running mean, `[c]`.
    pub mean: Vec<f32>,
    /// Running variance, `[c]`.
    pub var: Vec<f32>,
}

/// A convolution without bias and the batch norm behind it.
#[derive(Clone, Debug)]
pub struct ConvNorm {
    /// `[ky][kx][cin][cout]`
    pub weight: Param,
    /// Over its output.
    pub norm: Norm,
}

/// Parameters as plain slices.
pub(super) struct Plain {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

impl Plain {
    pub(super) fn conv(&self) -> ConvParams<'_> {
        ConvParams { weight: &self.weight, bias: &self.bias }
    }
    pub(super) fn norm(&self) -> NormParams<'_> {
        NormParams { gamma: &self.weight, beta: &self.bias }
    }
}

/// Gradients of one convolution's, norm's or linear layer's parameters, and whose they are.
pub(crate) struct Grads {
    pub(crate) params: Vec<Param>,
    pub(crate) grads: Vec<Vec<f32>>,
}

impl Grads {
    pub(super) fn of(params: &[&Param]) -> Self {
        Self {
            grads: params.iter().map(|p| vec![0.0; p.shape().0]).collect(),
            params: params.iter().map(|&p| p.clone()).collect(),
        }
    }
    /// Weight and bias; of two parameters.
    pub(super) fn conv(&mut self) -> ConvGrads<'_> {
        let (weight, bias) = self.grads.split_at_mut(1);
        ConvGrads { weight: &mut weight[0], bias: &mut bias[0] }
    }
    /// Gamma and beta; of two parameters.
    pub(super) fn norm(&mut self) -> NormGrads<'_> {
        let (gamma, beta) = self.grads.split_at_mut(1);
        NormGrads { gamma: &mut gamma[0], beta: &mut beta[0] }
    }
    /// Weight, gamma and beta; of three parameters.
    pub(super) fn normed(&mut self) -> NormedConvGrads<'_> {
        let (weight, rest) = self.grads.split_at_mut(1);
        let (gamma, beta) = rest.split_at_mut(1);
        NormedConvGrads { weight: &mut weight[0], norm: NormGrads { gamma: &mut gamma[0], beta: &mut beta[0] } }
    }
}

impl Conv {
    /// Wraps weights and bias.
    pub fn new(dev: &Cpu, weight: Vec<f32>, bias: Vec<f32>) -> Self {
        Self { weight: param(dev, weight), bias: param(dev, bias) }
    }
    /// A copy of the weights, `[ky][kx][cin][cout]`.
    pub fn weight_values(&self) -> Vec<f32> {
        self.weight.as_vec()
    }
    /// A copy of the bias.
    pub fn bias_values(&self) -> Vec<f32> {
        self.bias.as_vec()
    }
    pub(super) fn plain(&self) -> Plain {
        Plain { weight: self.weight.as_vec(), bias: self.bias.as_vec() }
    }
    pub(super) fn grads(&self) -> Grads {
        Grads::of(&[&self.weight, &self.bias])
    }
    pub(super) fn visit(&mut self, name: &str, v: &mut dyn Visit) {
        v.param(&format!("{name}.weight"), &mut self.weight);
        v.param(&format!("{name}.bias"), &mut self.bias);
    }
}

impl Norm {
    /// The identity: gamma 1, beta 0, running mean 0 and variance 1.
    pub fn new(dev: &Cpu, c: usize) -> Self {
        Self { gamma: param(dev, vec![1.0; c]), beta: param(dev, vec![0.0; c]), mean: vec![0.0; c], var: vec![1.0; c] }
    }
    /// Copies of gamma and beta.
    pub fn values(&self) -> (Vec<f32>, Vec<f32>) {
        (self.gamma.as_vec(), self.beta.as_vec())
    }
    pub(super) fn plain(&self) -> Plain {
        Plain { weight: self.gamma.as_vec(), bias: self.beta.as_vec() }
    }
    pub(super) fn grads(&self) -> Grads {
        Grads::of(&[&self.gamma, &self.beta])
    }
    pub(super) fn running(&self, p: &Plain, state: &mut [f32]) {
        norm::from_running(p.norm(), &self.mean, &self.var, state);
    }
    pub(super) fn learn(&mut self, state: &[f32], count: usize) {
        norm::update_running(NormState::new(state), count, &mut self.mean, &mut self.var);
    }
    pub(super) fn visit(&mut self, name: &str, v: &mut dyn Visit) {
        v.param(&format!("{name}.gamma"), &mut self.gamma);
        v.param(&format!("{name}.beta"), &mut self.beta);
        v.state(&format!("{name}.mean"), &mut self.mean);
        v.state(&format!("{name}.var"), &mut self.var);
    }
}

/// A [`ConvNorm`]'s parameters as plain slices.
pub(super) struct PlainNormed {
    weight: Vec<f32>,
    norm: Plain,
}

impl PlainNormed {
    pub(super) fn params(&self) -> NormedConv<'_> {
        NormedConv { weight: &self.weight, norm: self.norm.norm() }
    }
}

impl ConvNorm {
    /// Wraps weights for `c` outputs; the norm starts as the identity.
    pub fn new(dev: &Cpu, weight: Vec<f32>, c: usize) -> Self {
        Self { weight: param(dev, weight), norm: Norm::new(dev, c) }
    }
    /// A copy of the weights, `[ky][kx][cin][cout]`.
    pub fn weight_values(&self) -> Vec<f32> {
        self.weight.as_vec()
    }
    pub(super) fn plain(&self) -> PlainNormed {
        PlainNormed { weight: self.weight.as_vec(), norm: self.norm.plain() }
    }
    pub(super) fn grads(&self) -> Grads {
        Grads::of(&[&self.weight, &self.norm.gamma, &self.norm.beta])
    }
    pub(super) fn running(&self, p: &PlainNormed, state: &mut [f32]) {
        self.norm.running(&p.norm, state);
    }
    pub(super) fn visit(&mut self, conv: &str, norm: &str, v: &mut dyn Visit) {
        v.param(&format!("{conv}.weight"), &mut self.weight);
        self.norm.visit(norm, v);
    }
}
