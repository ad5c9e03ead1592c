//! A stem with what it needs to run fast: weights prepared once, for either precision.

use crate::error::Result;
use crate::kernels::buffer::Aligned;
use crate::kernels::int8_host::{HostInt8, WideWeights};
use crate::kernels::picture::{PreparedConv, inside};
use crate::kernels::simd::Simd;
use crate::kernels::team::{ELEMENT, Lead};
use crate::kernels::{ConvShape, scalar};
use crate::net::int8::Int8Net;
use crate::net::{Activation, AffineArgs, ConvArgs, LinearArgs, MulArgs, Net, NetKernels, Op, PoolArgs, Window};
use crate::shape::Shape;
use crate::stem::Stem;
use plan::Plan;
use std::sync::{Mutex, PoisonError};
use std::vec;
use std::vec::Vec;

mod plan;

/// Elements of a cache line.
const LINE: usize = 16;

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

    /// Whether several threads can share one picture.
    pub(super) const fn is_shared(&self) -> bool {
        matches!(self, Self::F32(..))
    }

    /// Features (`[n][output]`) of pictures (`[n][input]`), one after the other, each shared by the threads of a team.
    pub(super) fn run(&self, kernels: &Simd, lead: Lead<'_>, x: &[f32], out: &mut [f32]) -> Result<()> {
        let pictures = x.chunks_exact(self.input().len()).zip(out.chunks_exact_mut(self.output().len()));
        match self {
            Self::F32(net, prepared) => {
                let mut fast = prepared.kernels(kernels, lead);
                let mut arena = prepared.arena(prepared.plan.arena_len());
                for (x, out) in pictures {
                    prepared.plan.run(net, &mut fast, x, arena.get_mut(), out)?;
                }
                prepared.keep(arena);
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

/// The convolutions of a net that the fast kernels take, by the operation's number, and arenas from runs before.
#[derive(Debug)]
pub(crate) struct Prepared {
    convs: Vec<Option<PreparedConv>>,
    plan: Plan,
    arenas: Mutex<Vec<Aligned>>,
}

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
        let convs: Vec<_> = net.ops().map(prepared).collect();
        let plan = Plan::new(net, &convs);
        Self { convs, plan, arenas: Mutex::new(Vec::new()) }
    }

    /// The fast kernels for the net these were prepared from, each operation shared by the threads of a team.
    pub(crate) fn kernels<'s>(&'s self, kernels: &'s Simd, lead: Lead<'s>) -> Fast<'s> {
        Fast { kernels, convs: &self.convs, lead }
    }

    /// An arena of `len` elements: one that was kept, if there is one.
    fn arena(&self, len: usize) -> Aligned {
        let kept = self.arenas.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| Aligned::zeroed(len))
    }

    /// Keeps an arena for a later run.
    fn keep(&self, arena: Aligned) {
        self.arenas.lock().unwrap_or_else(PoisonError::into_inner).push(arena);
    }
}

/// The fast kernels, as a net calls them: one picture, convolutions prepared by the operation's number. What has rows, pixels or
/// elements that do not depend on one another is cut by them; global pooling is not.
pub(crate) struct Fast<'s> {
    kernels: &'s Simd,
    convs: &'s [Option<PreparedConv>],
    lead: Lead<'s>,
}

impl Fast<'_> {
    /// A sliding window, cut by rows of its output. `f` gets the window, and shapes and values of the rows read and written.
    fn slide(
        &mut self,
        a: PoolArgs,
        depth: usize,
        x: &[f32],
        y: &mut [f32],
        f: impl Fn(&PoolArgs, &[f32], &mut [f32]) + Sync,
    ) {
        let (row, from) = (a.y.w as usize * a.y.c as usize, a.x.w as usize * a.x.c as usize);
        let work = y.len() * depth * a.window.kernel[0] as usize * a.window.kernel[1] as usize;
        self.lead.split(y, row, work, |first, y| {
            let (stride, count) = (a.window.stride[0] as usize, y.len() / row);
            let padded = stride * first..stride * (first + count - 1) + a.window.kernel[0] as usize;
            let [top, left, bottom, right] = a.window.pad;
            let (rows, above) = inside(padded, top as usize, a.x.h as usize);
            let part = PoolArgs {
                x: Shape { h: rows.len() as u32, ..a.x },
                y: Shape { h: count as u32, ..a.y },
                window: Window { pad: [above as u32, left, bottom, right], ..a.window },
            };
            f(&part, &x[rows.start * from..rows.end * from], y);
        });
    }
}

/// Multiply-adds that a tap of a scalar kernel counts for.
const SCALAR: usize = 4;

impl NetKernels for Fast<'_> {
    fn conv(&mut self, op: usize, a: &ConvArgs<'_>, x: &[f32], y: &mut [f32]) {
        if let Some(conv) = self.convs.get(op).and_then(Option::as_ref) {
            self.kernels.conv_shared(&mut self.lead, conv, x, a.weight, a.bias, None, a.act, y);
            return;
        }
        let depth = SCALAR * (a.x.c / a.groups) as usize;
        self.slide(PoolArgs { x: a.x, y: a.y, window: a.window }, depth, x, y, |part, x, y| {
            scalar::conv(&ConvArgs { x: part.x, y: part.y, window: part.window, ..*a }, x, y);
        });
    }

    fn affine(&mut self, _: usize, a: &AffineArgs<'_>, x: &[f32], y: &mut [f32]) {
        let kernels = self.kernels;
        self.lead.split(y, a.channels, ELEMENT * x.len(), |first, y| {
            let x = &x[first * a.channels..][..y.len()];
            let fast = match (a.scale, a.shift) {
                (Some(scale), Some(shift)) => kernels.affine_picture(x, scale, shift, a.act, y),
                _ => false,
            };
            if !fast {
                scalar::affine(a, x, y);
            }
        });
    }

    fn add(&mut self, _: usize, act: Activation, a: &[f32], b: &[f32], y: &mut [f32]) {
        let kernels = self.kernels;
        self.lead.split(y, LINE, ELEMENT * a.len(), |first, y| {
            kernels.add_picture(act, &a[first * LINE..], &b[first * LINE..], y);
        });
    }

    fn mul(&mut self, _: usize, args: &MulArgs, a: &[f32], b: &[f32], y: &mut [f32]) {
        self.lead.split(y, args.channels, ELEMENT * a.len(), |first, y| {
            let at = first * args.channels;
            scalar::mul(args, &a[at..][..y.len()], if args.by_channel { b } else { &b[at..] }, y);
        });
    }

    fn concat(&mut self, _: usize, channels: [usize; 2], a: &[f32], b: &[f32], y: &mut [f32]) {
        let work = ELEMENT * y.len();
        self.lead.split(y, channels[0] + channels[1], work, |first, y| {
            scalar::concat(channels, &a[first * channels[0]..], &b[first * channels[1]..], y);
        });
    }

    fn max_pool(&mut self, _: usize, a: &PoolArgs, x: &[f32], y: &mut [f32]) {
        let (kernels, row) = (self.kernels, a.y.w as usize * a.y.c as usize);
        let work = y.len().saturating_mul(a.window.kernel[0] as usize * a.window.kernel[1] as usize);
        self.lead.split(y, row, work.max(ELEMENT * y.len()), |first, y| kernels.max_pool_rows(a, first, x, y));
    }

    fn avg_pool(&mut self, _: usize, a: &PoolArgs, count_pad: bool, x: &[f32], y: &mut [f32]) {
        self.slide(*a, SCALAR, x, y, |a, x, y| scalar::avg_pool(a, count_pad, x, y));
    }

    fn linear(&mut self, _: usize, a: &LinearArgs<'_>, x: &[f32], y: &mut [f32]) {
        let (kernels, all) = (self.kernels, y.len());
        // Weights are used once: what takes time is to fetch them.
        self.lead.split(y, 8 * LINE, ELEMENT * a.weight.len(), |first, y| {
            kernels.linear_columns(a, all, 8 * LINE * first, x, y);
        });
    }
}

#[cfg(test)]
mod tests;
