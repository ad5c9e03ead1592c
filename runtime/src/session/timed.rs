//! Where the time of a net goes, operation by operation.

use crate::net::{Activation, AffineArgs, ConvArgs, LinearArgs, MulArgs, NetKernels, PoolArgs};
use std::time::Instant;
use std::vec::Vec;

/// Kernels that keep the seconds of each operation, run after run.
pub(super) struct Timed<K> {
    kernels: K,
    /// By the operation's number.
    pub(super) seconds: Vec<Vec<f64>>,
}

impl<K: NetKernels> Timed<K> {
    /// Over `kernels`, for a net of so many operations.
    pub(super) fn new(kernels: K, operations: usize) -> Self {
        Self { kernels, seconds: (0..operations).map(|_| Vec::new()).collect() }
    }

    fn time(&mut self, op: usize, f: impl FnOnce(&mut K)) {
        let start = Instant::now();
        f(&mut self.kernels);
        if let Some(seconds) = self.seconds.get_mut(op) {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
}

impl<K: NetKernels> NetKernels for Timed<K> {
    fn conv(&mut self, op: usize, args: &ConvArgs<'_>, x: &[f32], y: &mut [f32]) {
        self.time(op, |k| k.conv(op, args, x, y));
    }

    fn affine(&mut self, op: usize, args: &AffineArgs<'_>, x: &[f32], y: &mut [f32]) {
        self.time(op, |k| k.affine(op, args, x, y));
    }

    fn add(&mut self, op: usize, act: Activation, a: &[f32], b: &[f32], y: &mut [f32]) {
        self.time(op, |k| k.add(op, act, a, b, y));
    }

    fn mul(&mut self, op: usize, args: &MulArgs, a: &[f32], b: &[f32], y: &mut [f32]) {
        self.time(op, |k| k.mul(op, args, a, b, y));
    }

    fn concat(&mut self, op: usize, channels: [usize; 2], a: &[f32], b: &[f32], y: &mut [f32]) {
        self.time(op, |k| k.concat(op, channels, a, b, y));
    }

    fn max_pool(&mut self, op: usize, args: &PoolArgs, x: &[f32], y: &mut [f32]) {
        self.time(op, |k| k.max_pool(op, args, x, y));
    }

    fn avg_pool(&mut self, op: usize, args: &PoolArgs, count_pad: bool, x: &[f32], y: &mut [f32]) {
        self.time(op, |k| k.avg_pool(op, args, count_pad, x, y));
    }

    fn global_avg_pool(&mut self, op: usize, x: &[f32], y: &mut [f32]) {
        self.time(op, |k| k.global_avg_pool(op, x, y));
    }

    fn linear(&mut self, op: usize, args: &LinearArgs<'_>, x: &[f32], y: &mut [f32]) {
        self.time(op, |k| k.linear(op, args, x, y));
    }
}
