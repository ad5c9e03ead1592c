//! Where parameters and running statistics stand: each kind in one flat stretch, in the order of the network's visit.

use crate::engine::{EngineError, State};
use crate::model::TrapNet;
use crate::nn::{Param, Visit};
use dfdx::prelude::*;
use std::collections::BTreeMap;

/// A tensor's place in its stretch: first value, number of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) first: usize,
    pub(super) len: usize,
}

/// All places by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Layout {
    params: BTreeMap<String, Span>,
    statistics: BTreeMap<String, Span>,
    params_len: usize,
    statistics_len: usize,
}

impl Visit for Layout {
    fn param(&mut self, name: &str, p: &mut Param) {
        self.add_param(name, p.shape().0);
    }
    fn state(&mut self, name: &str, values: &mut Vec<f32>) {
        self.add_statistic(name, values.len());
    }
}

/// The four stretches that make a state.
#[derive(Clone, Debug, Default)]
pub(super) struct Stretches {
    pub(super) params: Vec<f32>,
    pub(super) first: Vec<f32>,
    pub(super) second: Vec<f32>,
    pub(super) statistics: Vec<f32>,
}

impl Layout {
    /// Of a network.
    pub(super) fn of(net: &mut TrapNet) -> Self {
        let mut layout = Self::default();
        net.visit(&mut layout);
        layout
    }

    /// Gives a parameter the next place.
    pub(super) fn add_param(&mut self, name: &str, len: usize) {
        self.params.insert(name.to_owned(), Span { first: self.params_len, len });
        self.params_len += len;
    }

    /// Gives a running statistic the next place.
    pub(super) fn add_statistic(&mut self, name: &str, len: usize) {
        self.statistics.insert(name.to_owned(), Span { first: self.statistics_len, len });
        self.statistics_len += len;
    }

    /// Values of all parameters, and of all running statistics.
    pub(super) fn lens(&self) -> (usize, usize) {
        (self.params_len, self.statistics_len)
    }

    /// The place of a parameter.
    pub(super) fn param(&self, name: &str) -> Result<Span, EngineError> {
        self.params.get(name).copied().ok_or_else(|| EngineError::Failed(format!("no parameter '{name}'")))
    }

    /// The place of a running statistic.
    pub(super) fn statistic(&self, name: &str) -> Result<Span, EngineError> {
        self.statistics.get(name).copied().ok_or_else(|| EngineError::Failed(format!("no statistic '{name}'")))
    }

    /// What is where, with the prefix of its name in a [`State`].
    fn places(&self) -> impl Iterator<Item = (String, usize, Span)> {
        let params = self.params.iter().flat_map(|(name, &span)| {
            ["", "first.", "second."]
                .into_iter()
                .enumerate()
                .map(move |(i, prefix)| (format!("{prefix}{name}"), i, span))
        });
        params.chain(self.statistics.iter().map(|(name, &span)| (name.clone(), 3, span)))
    }

    /// Stretches as a state.
    pub(super) fn state(&self, s: &Stretches, steps: u64) -> State {
        let from = [&s.params, &s.first, &s.second, &s.statistics];
        let tensors = self.places().map(|(name, i, span)| (name, from[i][span.first..][..span.len].to_vec())).collect();
        State { tensors, steps }
    }

    /// A state as stretches.
    pub(super) fn stretches(&self, state: &State) -> Result<Stretches, EngineError> {
        let mut s = [self.params_len, self.params_len, self.params_len, self.statistics_len].map(|len| vec![0.0; len]);
        for (name, i, span) in self.places() {
            let Some(v) = state.tensors.get(&name) else {
                return Err(EngineError::Failed(format!("tensor '{name}' is missing")));
            };
            if v.len() != span.len {
                return Err(EngineError::Failed(format!(
                    "tensor '{name}' has {} values, {} expected",
                    v.len(),
                    span.len
                )));
            }
            s[i][span.first..][..span.len].copy_from_slice(v);
        }
        let [params, first, second, statistics] = s;
        Ok(Stretches { params, first, second, statistics })
    }
}
