//! What the values of a net are on calibration pictures.

use super::range::Histogram;
use super::{QuantiseError, Why};
use crate::error::Error;
use crate::kernels::simd::Simd;
use crate::kernels::team::Lead;
use crate::net::{Activation, AffineArgs, ConvArgs, LinearArgs, MulArgs, Net, NetKernels, PoolArgs};
use crate::session::Prepared;
use std::sync::{Mutex, PoisonError};
use std::vec;
use std::vec::Vec;

/// Pictures that one thread takes at a time.
const PART: usize = 16;

/// What one operation gave.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Before an activation that becomes a table; otherwise empty.
    pub(super) before: Histogram,
    /// The output.
    pub(super) output: Histogram,
}

/// The distribution of every value of a net over calibration pictures.
#[derive(Clone, Debug)]
pub struct Calibration {
    pub(super) seen: Vec<Seen>,
}

/// Whether an activation is computed on sums; any other becomes a table.
pub(super) fn on_sums(act: Activation) -> bool {
    match act {
        Activation::None | Activation::Relu | Activation::Relu6 => true,
        Activation::Leaky(slope) => (0.0..=1.0).contains(&slope),
        _ => false,
    }
}

/// Runs a net on pictures (`[n][input]`, NHWC) twice: for the extremes of every value, then for its distribution between them.
///
/// # Errors
/// [`Why::NoPictures`]; [`Why::NotFinite`]; [`Why::Core`] with [`Error::WrongLength`] for a part of a picture.
pub fn calibrate(net: &Net<'_>, kernels: &Simd, pictures: &[f32]) -> Result<Calibration, QuantiseError> {
    let whole = |why| QuantiseError { op: None, kind: "net", why };
    let len = net.input().len();
    if pictures.is_empty() {
        return Err(whole(Why::NoPictures));
    }
    if !pictures.len().is_multiple_of(len) {
        let needed = pictures.len().next_multiple_of(len);
        return Err(whole(Why::Core(Error::WrongLength { needed, given: pictures.len() })));
    }
    let prepared = Prepared::new(net, kernels);
    let mut seen = vec![Seen::default(); net.op_count() as usize];
    for pass in 0..2 {
        let all = Mutex::new((seen.clone(), None));
        kernels.for_each(pictures.chunks(PART * len).collect(), |pictures| {
            let mut observer = Observer { fast: prepared.kernels(kernels, Lead::alone()), seen: seen.clone() };
            let mut arena = vec![0.0; net.arena_len()];
            let mut output = vec![0.0; net.output().len()];
            let ran = pictures.chunks_exact(len).try_for_each(|x| net.run(&mut observer, x, &mut arena, &mut output));
            let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
            for (all, one) in all.0.iter_mut().zip(&observer.seen) {
                all.before.merge(&one.before);
                all.output.merge(&one.output);
            }
            all.1 = all.1.or(ran.err());
        });
        let (merged, failed) = all.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = failed {
            return Err(whole(Why::Core(error)));
        }
        seen = merged;
        for (number, (seen, op)) in seen.iter_mut().zip(net.ops()).enumerate() {
            if !seen.output.is_finite() || !seen.before.is_finite() {
                return Err(QuantiseError { op: Some(number as u32), kind: op.name(), why: Why::NotFinite });
            }
            if pass == 0 {
                seen.before.open();
                seen.output.open();
            }
        }
    }
    Ok(Calibration { seen })
}

/// The fast kernels, and notes about what they give.
struct Observer<K> {
    fast: K,
    seen: Vec<Seen>,
}

impl<K> Observer<K> {
    /// Notes an output as it is.
    fn note(&mut self, op: usize, y: &[f32]) {
        if let Some(seen) = self.seen.get_mut(op) {
            seen.output.note(y);
        }
    }

    /// The activation left to the kernels.
    fn ours(act: Activation) -> Activation {
        if on_sums(act) { act } else { Activation::None }
    }

    /// Notes an output, with what it was before an activation that becomes a table.
    fn finish(&mut self, op: usize, act: Activation, y: &mut [f32]) {
        if !on_sums(act) {
            if let Some(seen) = self.seen.get_mut(op) {
                seen.before.note(y);
            }
            y.iter_mut().for_each(|y| *y = act.apply(*y));
        }
        self.note(op, y);
    }
}

impl<K: NetKernels> NetKernels for Observer<K> {
    fn conv(&mut self, op: usize, args: &ConvArgs<'_>, x: &[f32], y: &mut [f32]) {
        self.fast.conv(op, &ConvArgs { act: Self::ours(args.act), ..*args }, x, y);
        self.finish(op, args.act, y);
    }

    fn affine(&mut self, op: usize, args: &AffineArgs<'_>, x: &[f32], y: &mut [f32]) {
        self.fast.affine(op, &AffineArgs { act: Self::ours(args.act), ..*args }, x, y);
        self.finish(op, args.act, y);
    }

    fn add(&mut self, op: usize, act: Activation, a: &[f32], b: &[f32], y: &mut [f32]) {
        self.fast.add(op, Self::ours(act), a, b, y);
        self.finish(op, act, y);
    }

    fn mul(&mut self, op: usize, args: &MulArgs, a: &[f32], b: &[f32], y: &mut [f32]) {
        self.fast.mul(op, &MulArgs { act: Self::ours(args.act), ..*args }, a, b, y);
        self.finish(op, args.act, y);
    }

    fn concat(&mut self, op: usize, channels: [usize; 2], a: &[f32], b: &[f32], y: &mut [f32]) {
        self.fast.concat(op, channels, a, b, y);
        self.note(op, y);
    }

    fn max_pool(&mut self, op: usize, args: &PoolArgs, x: &[f32], y: &mut [f32]) {
        self.fast.max_pool(op, args, x, y);
        self.note(op, y);
    }

    fn avg_pool(&mut self, op: usize, args: &PoolArgs, count_pad: bool, x: &[f32], y: &mut [f32]) {
        self.fast.avg_pool(op, args, count_pad, x, y);
        self.note(op, y);
    }

    fn global_avg_pool(&mut self, op: usize, x: &[f32], y: &mut [f32]) {
        self.fast.global_avg_pool(op, x, y);
        self.note(op, y);
    }

    fn linear(&mut self, op: usize, args: &LinearArgs<'_>, x: &[f32], y: &mut [f32]) {
        self.fast.linear(op, &LinearArgs { act: Self::ours(args.act), ..*args }, x, y);
        self.finish(op, args.act, y);
    }
}
