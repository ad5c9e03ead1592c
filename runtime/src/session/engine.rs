//! A stem with what it needs to run fast: weights prepared once, for either precision.

use crate::error::Result;
use crate::kernels::int8_host::{HostInt8, WideWeights};
use crate::kernels::picture::PreparedConv;
use crate::kernels::simd::Simd;
use crate::kernels::{ConvShape, scalar};
use crate::net::int8::Int8Net;
use crate::net::{Activation, AffineArgs, ConvArgs, Net, NetKernels, Op};
use crate::shape::Shape;
use crate::stem::Stem;
use std::vec;
use std::vec::Vec;

/// A stem, ready to run.
#[derive(Debug)]
pub(super) enum Engine<'a> {
    F32(Net<'a>, Prepared),
    Int8(Int8Net<'a>, WideWeights),
}

impl<'a> Engine<'a> {
    pub(super) fn new(stem: Stem<'a>, kernels: &Simd) -> Self {
        match stem {
            Stem::F32(net) => Self::F32(net, Prepared::new(&net, kernels)),
            Stem::Int8(net) => Self::Int8(net, WideWeights::new(&net, kernels.isa())),
        }
    }

    /// Shape of one picture.
    pub(super) const fn input(&self) -> Shape {
        match self {
            Self::F32(net, _) => net.input(),
            Self::Int8(net, _) => net.input(),
        }
    }

    /// Shape of one picture's features.
    pub(super) const fn output(&self) -> Shape {
        match self {
            Self::F32(net, _) => net.output(),
            Self::Int8(net, _) => net.output(),
        }
    }

    /// Features (`[n][output]`) of pictures (`[n][input]`), on the calling thread.
    pub(super) fn run(&self, kernels: &Simd, x: &[f32], out: &mut [f32]) -> Result<()> {
        let pictures = x.chunks_exact(self.input().len()).zip(out.chunks_exact_mut(self.output().len()));
        match self {
            Self::F32(net, prepared) => {
                let mut arena = vec![0.0; net.arena_len()];
                for (x, out) in pictures {
                    net.run(&mut prepared.kernels(kernels), x, &mut arena, out)?;
                }
            }
            Self::Int8(net, weights) => {
                let mut fast = HostInt8::new(weights);
                let (mut arena, mut picture) = (vec![0; net.arena_len()], vec![0; net.input().len()]);
                let mut features = vec![0; net.output().len()];
                let (from, to) = (net.input_quant(), net.output_quant());
                for (x, out) in pictures {
                    picture.iter_mut().zip(x).for_each(|(q, &x)| *q = from.quantise(x));
                    net.run(&mut fast, &picture, &mut arena, &mut features)?;
                    out.iter_mut().zip(&features).for_each(|(x, &q)| *x = to.dequantise(q));
                }
            }
        }
        Ok(())
    }
}

/// The convolutions of a net that the fast kernels take, by the operation's number.
#[derive(Debug)]
pub(crate) struct Prepared(Vec<Option<PreparedConv>>);

impl Prepared {
    /// Prepares every convolution without groups, or depthwise.
    pub(crate) fn new(net: &Net<'_>, kernels: &Simd) -> Self {
        let prepared = |op: Op| match op {
            Op::Conv { x, y, window, groups, weight, .. } => {
                let depthwise = groups > 1 && groups == x.shape.c && groups == y.shape.c;
                let shape = ConvShape { x: x.shape, y: y.shape, window };
                (groups == 1 || depthwise).then(|| PreparedConv::new(kernels, shape, depthwise, net.span(weight)))
            }
            _ => None,
        };
        Self(net.ops().map(prepared).collect())
    }

    /// The fast kernels for the net these were prepared from.
    pub(crate) fn kernels<'s>(&'s self, kernels: &'s Simd) -> impl NetKernels + use<'s> {
        Fast(kernels, &self.0)
    }
}

/// The fast kernels, as a net calls them: one picture, the calling thread, convolutions prepared by the operation's number.
struct Fast<'s>(&'s Simd, &'s [Option<PreparedConv>]);

impl NetKernels for Fast<'_> {
    fn conv(&mut self, op: usize, a: &ConvArgs<'_>, x: &[f32], y: &mut [f32]) {
        let Some(conv) = self.1.get(op).and_then(Option::as_ref) else {
            scalar::conv(a, x, y);
            return;
        };
        self.0.conv_picture(conv, x, a.weight, a.bias, y);
        activate(a.act, y);
    }

    fn affine(&mut self, _: usize, a: &AffineArgs<'_>, x: &[f32], y: &mut [f32]) {
        let fast = match (a.scale, a.shift) {
            (Some(scale), Some(shift)) => self.0.affine_picture(x, scale, shift, a.act, y),
            _ => false,
        };
        if !fast {
            scalar::affine(a, x, y);
        }
    }
}

fn activate(act: Activation, y: &mut [f32]) {
    match act {
        Activation::None => {}
        Activation::Relu => y.iter_mut().for_each(|v| *v = v.max(0.0)),
        Activation::Relu6 => y.iter_mut().for_each(|v| *v = v.clamp(0.0, 6.0)),
        Activation::Leaky(s) => y.iter_mut().for_each(|v| *v = if *v > 0.0 { *v } else { *v * s }),
        other => y.iter_mut().for_each(|v| *v = other.apply(*v)),
    }
}
