//! Whole programs: a training step and a batch of answers, from pictures to update.

use super::args::*;
use super::backend::{Backend, Kernel, Region};
use super::builder::{Builder, Homes};
use super::layout::Layout;
use super::network::{self, Ends};
use crate::engine::{EngineError, Objective, Optimizer};
use crate::model::TrapNet;
use stemguard_runtime::shape::Shape;

/// How pictures are cropped on their way in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cut {
    /// Not at all, nor flipped.
    Whole,
    /// Shifted by up to so many pixels.
    Shifted(usize),
    /// A random part, resized.
    Resized,
}

/// Pictures on the device, and how a batch of them is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    /// `[pictures][h][w][c]`, bytes.
    pub(super) pixels: Region,
    /// What moves from step to step.
    pub(super) control: Region,
    /// The order of the pass; none: as they come.
    pub(super) order: Option<Region>,
    pub(super) cut: Cut,
    pub(super) flip: bool,
}

/// What a step reads and writes beside its source, a value for each picture (or step) of the pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Books {
    pub(super) labels: Region,
    pub(super) forget: Region,
    pub(super) fit: Region,
    /// `[steps][4]`
    pub(super) losses: Region,
}

/// Optimiser moments, as long as the parameters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moments {
    pub(super) first: Region,
    pub(super) second: Region,
}

/// The batch of a step: moves on to it, then makes its pictures.
pub(super) fn bring(b: &mut Builder<'_>, source: &Source, shape: Shape) -> Result<super::builder::Map, EngineError> {
    b.launch(Kernel::Begin, [1, 1, 1], &BeginArgs { control: source.control.address });
    let x = b.map(shape)?;
    let (crop, shift) = match source.cut {
        Cut::Whole => (0, 0),
        Cut::Shifted(by) => (1, by),
        Cut::Resized => (2, 0),
    };
    let args = PictureArgs {
        pixels: source.pixels.address,
        order: source.order.map_or(0, |o| o.address),
        control: source.control.address,
        x: x.at(),
        row: Divisor::new((shape.w * shape.c) as usize),
        pixel: Divisor::new(shape.c as usize),
        n: b.n as i32,
        h: shape.h as i32,
        w: shape.w as i32,
        crop,
        shift: shift as i32,
        flip: i32::from(source.flip),
    };
    let n = b.n;
    b.launch(Kernel::Pictures, [n, shape.len().div_ceil(1024), 1], &args);
    Ok(x)
}

/// A training step on batches of `n`.
#[allow(clippy::too_many_arguments)]
pub(super) fn step(
    device: &mut dyn Backend,
    layout: &Layout,
    net: &TrapNet,
    objective: &Objective,
    homes: Homes,
    moments: Moments,
    source: &Source,
    books: &Books,
    n: usize,
) -> Result<usize, EngineError> {
    let b = &mut Builder::new(device, layout, homes, n);
    let x = bring(b, source, net.input)?;
    let ce = b.take(n)?;
    let control = source.control.address;
    let ends = Ends {
        labels: books.labels.address,
        forget: books.forget.address,
        order: source.order.map_or(0, |o| o.address),
        control,
        ce: ce.address,
        fit: books.fit.address,
        ..Ends::default()
    };
    let (features, stem) = network::forward(b, "stem", &net.stem, x, true, &ends)?;
    let (_, head) = network::forward(b, "head", &net.head, features, true, &ends)?;
    let weights = objective.reconstruction;
    let mut metrics = MetricArgs {
        ce: ce.address,
        partial: 0,
        control,
        losses: books.losses.address,
        n: n as i32,
        len: 0,
        blocks: 0,
        mse: weights.mse,
        tv: weights.tv,
        _end: 0,
    };
    let mut decoder = None;
    if let Some(net) = &net.decoder {
        let (r, left) = network::forward(b, "decoder", net, features, true, &ends)?;
        let (d, len) = (b.map(r.shape)?, n * r.shape.len());
        let blocks = len.div_ceil(1024);
        let partial = b.take(2 * blocks)?;
        let args = LossArgs {
            r: r.at(),
            x: x.at(),
            d: d.at(),
            partial: partial.address,
            channels: Divisor::new(r.shape.c as usize),
            columns: Divisor::new(r.shape.w as usize),
            rows: Divisor::new(r.shape.h as usize),
            len: len as i32,
            blocks: blocks as i32,
            mse: weights.mse,
            tv: weights.tv,
        };
        b.launch(Kernel::Reconstruction, [blocks, 1, 1], &args);
        (metrics.partial, metrics.len, metrics.blocks) = (partial.address, len as i32, blocks as i32);
        decoder = Some((net, left, d));
    }
    b.launch(Kernel::Metrics, [1, 1, 1], &metrics);

    let unknown = || EngineError::Failed("a head without a tail".into());
    let of_head = network::backward(b, &net.head, head, None, true)?.ok_or_else(unknown)?;
    let dy = match decoder {
        Some((net, left, d)) => {
            let dy = network::decoder_backward(b, net, left, d, of_head.at())?;
            b.give(of_head.region);
            dy
        }
        None => of_head,
    };
    network::backward(b, &net.stem, stem, Some(dy), false)?;
    b.reduced()?;
    let (len, _) = layout.lens();
    let args = UpdateArgs {
        p: homes.params.address,
        g: homes.grads.address,
        first: moments.first.address,
        second: moments.second.address,
        control,
        len: len as i32,
        sgd: i32::from(objective.optimizer == Optimizer::Sgd),
        decay: objective.decay as f32,
        _end: 0,
    };
    b.launch(Kernel::Update, [len.div_ceil(256), 1, 1], &args);
    let launches = b.finish()?;
    // SAFETY: the builder fills in each kernel's own structure, with regions of this device that it sized by the same shapes
    // that the kernels are told; regions outlive their device's programs.
    unsafe { device.program(launches) }
}

/// Answers to batches of `n`, into `answers` by place.
#[allow(clippy::too_many_arguments)]
pub(super) fn answers(
    device: &mut dyn Backend,
    layout: &Layout,
    net: &TrapNet,
    homes: Homes,
    source: &Source,
    answers: Region,
    n: usize,
) -> Result<usize, EngineError> {
    let b = &mut Builder::new(device, layout, homes, n);
    let x = bring(b, source, net.input)?;
    let control = source.control.address;
    let ends = Ends { control, answers: answers.address, ..Ends::default() };
    let (features, _) = network::forward(b, "stem", &net.stem, x, false, &ends)?;
    network::forward(b, "head", &net.head, features, false, &ends)?;
    let launches = b.finish()?;
    // SAFETY: as for a step.
    unsafe { device.program(launches) }
}
