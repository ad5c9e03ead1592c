//! Launches from shapes: grids, partial sums, buffers.

use super::args::*;
use super::backend::{Argument, Backend, Kernel, Launch, Region};
use super::layout::{Layout, Span};
use super::tiles::WEIGHT_BLOCKS;
use crate::engine::{EngineError, Precision};
use bytemuck::Pod;
use std::borrow::Cow;
use stemguard_runtime::kernels::ConvShape;
use stemguard_runtime::replace::Bf16;
use stemguard_runtime::shape::Shape;

/// The most values that a block of a launch takes.
const BLOCK: usize = 1024;
/// Blocks of a sum over channels, about.
const COLUMN_BLOCKS: usize = 1024;
/// Sums of a block that adds each in lanes.
pub(super) const LANE_SUMS: usize = 16;
/// So few partial sums are added by one thread.
const FEW_SPLITS: i32 = 16;

/// Where parameters, their gradients and running statistics stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Homes {
    pub(super) params: Region,
    pub(super) grads: Region,
    pub(super) statistics: Region,
}

/// Partial sums by channel that a convolution left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sums {
    pub(super) region: Region,
    pub(super) blocks: usize,
}

/// A map of the batch, of cells, and the sums over it where they were taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Map {
    pub(super) region: Region,
    pub(super) shape: Shape,
    pub(super) sums: Option<Sums>,
}

impl Map {
    pub(super) fn at(&self) -> u64 {
        self.region.address
    }
}

/// A batch norm's values: mean, variance, scale, shift.
#[derive(Clone, Copy, Debug)]
pub(super) struct NormState {
    region: Region,
    c: usize,
    /// Of the ReLU behind it, below 0.
    slope: f32,
}

impl NormState {
    /// Where scale and shift are.
    pub(super) fn affine(&self) -> u64 {
        self.region.address + 8 * self.c as u64
    }
    /// The norm and its leaky ReLU on the way in.
    pub(super) fn entry(&self) -> Entry {
        Entry::Norm(self.affine(), self.slope)
    }
    /// The slope of its leaky ReLU at `x`.
    pub(super) fn gate(&self, x: &Map) -> Gate {
        Gate::Leaky(x.at(), self.affine(), self.slope)
    }
}

/// A convolution, or the gradient with respect to its input.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product<'a> {
    pub(super) g: &'a ConvShape,
    /// Whether from `g.y` to `g.x`.
    pub(super) gradient: bool,
    pub(super) x: u64,
    pub(super) entry: Entry,
    pub(super) weight: Span,
    pub(super) bias: Option<Span>,
    pub(super) gate: Gate,
    pub(super) add: u64,
    /// 0: none; 1: ReLU; 2: sigmoid.
    pub(super) squash: i32,
    pub(super) sums: bool,
}

impl<'a> Product<'a> {
    pub(super) fn forward(g: &'a ConvShape, x: u64, entry: Entry, [weight, bias]: [Span; 2]) -> Self {
        Self { bias: Some(bias), ..Self::new(g, false, x, entry, weight) }
    }
    pub(super) fn gradient(g: &'a ConvShape, dy: u64, entry: Entry, weight: Span, gate: Gate) -> Self {
        Self { gate, ..Self::new(g, true, dy, entry, weight) }
    }
    pub(super) fn new(g: &'a ConvShape, gradient: bool, x: u64, entry: Entry, weight: Span) -> Self {
        Self { g, gradient, x, entry, weight, bias: None, gate: Gate::Open, add: 0, squash: 0, sums: false }
    }
    /// Of what it reads, and of what it writes.
    pub(super) fn shapes(&self) -> (Shape, Shape) {
        if self.gradient { (self.g.y, self.g.x) } else { (self.g.x, self.g.y) }
    }
}

/// Writes launches for batches of `n` pictures.
pub(super) struct Builder<'a> {
    pub(super) device: &'a mut dyn Backend,
    pub(super) layout: &'a Layout,
    pub(super) homes: Homes,
    precision: Precision,
    pub(super) n: usize,
    pub(super) launches: Vec<Launch>,
    /// Weights that the launches read packed.
    pub(super) packings: Vec<Packing>,
    /// Blocks that a weight gradient by tiles is spread over, about.
    pub(super) weight_blocks: usize,
    reductions: Vec<Reduction>,
    free: Vec<Region>,
}

pub(super) fn pixels(s: Shape) -> usize {
    s.h as usize * s.w as usize
}

/// By four channels at once.
pub(super) fn quads(s: Shape) -> Result<Divisor, EngineError> {
    if !s.c.is_multiple_of(4) {
        return Err(EngineError::Unavailable("--device cuda: channels are not a multiple of 4".into()));
    }
    Ok(Divisor::new(s.c as usize / 4))
}

/// Pixels of a block of a sum over channels, and how many blocks there are.
pub(super) fn stretches(pixels: usize) -> (usize, usize) {
    let stretch = pixels.div_ceil(COLUMN_BLOCKS);
    (stretch, pixels.div_ceil(stretch))
}

/// Gives each job of a table its first block, by how many each has; how many there are in all.
fn numbered<T>(jobs: &mut [T], of: impl Fn(&mut T) -> (&mut i32, usize)) -> usize {
    jobs.iter_mut().fold(0, |first, job| {
        let (block, count) = of(job);
        *block = first as i32;
        first + count
    })
}

impl<'a> Builder<'a> {
    pub(super) fn new(device: &'a mut dyn Backend, layout: &'a Layout, homes: Homes, n: usize) -> Self {
        let precision = device.precision();
        Self {
            device,
            layout,
            homes,
            precision,
            n,
            launches: Vec::new(),
            packings: Vec::new(),
            weight_blocks: WEIGHT_BLOCKS,
            reductions: Vec::new(),
            free: Vec::new(),
        }
    }

    /// Room for `len` values of 4 bytes: one given back, or new.
    pub(super) fn take(&mut self, len: usize) -> Result<Region, EngineError> {
        self.room(4 * len.max(1))
    }

    fn room(&mut self, bytes: usize) -> Result<Region, EngineError> {
        match self.free.iter().position(|r| r.bytes == bytes) {
            Some(i) => Ok(self.free.swap_remove(i)),
            None => self.device.allocate(bytes),
        }
    }

    /// Room that later launches may use.
    pub(super) fn give(&mut self, region: Region) {
        self.free.push(region);
    }

    /// Room for both sums of so many blocks.
    pub(super) fn sums(&mut self, c: usize, blocks: usize) -> Result<Sums, EngineError> {
        Ok(Sums { region: self.take(2 * c * blocks)?, blocks })
    }

    pub(super) fn give_sums(&mut self, sums: Option<Sums>) {
        if let Some(s) = sums {
            self.give(s.region);
        }
    }

    /// A map of the batch.
    pub(super) fn map(&mut self, shape: Shape) -> Result<Map, EngineError> {
        // The last block of a launch counts on beyond the end.
        let len = shape.len().checked_mul(self.n).filter(|&l| l <= i32::MAX as usize - BLOCK);
        let len = len.ok_or_else(|| {
            EngineError::Unavailable(format!("--batch {}: a map of {} values is too large", self.n, shape.len()))
        })?;
        Ok(Map { region: self.room(self.precision.cell() * len.max(1))?, shape, sums: None })
    }

    pub(super) fn launch<T: Pod>(&mut self, kernel: Kernel, grid: [usize; 3], args: &T) {
        let grid = grid.map(|v| v as u32);
        self.launches.push(Launch { kernel, grid, argument: Argument::of(args) });
    }

    pub(super) fn param(&self, span: Span) -> u64 {
        self.homes.params.address + 4 * span.first as u64
    }

    pub(super) fn grad(&self, span: Span) -> u64 {
        self.homes.grads.address + 4 * span.first as u64
    }

    /// Weight and bias of a convolution or linear layer.
    pub(super) fn conv_spans(&self, name: &str) -> Result<[Span; 2], EngineError> {
        Ok([self.layout.param(&format!("{name}.weight"))?, self.layout.param(&format!("{name}.bias"))?])
    }

    /// What a product takes and leaves: its output, and sums over so many blocks where they are asked for.
    pub(super) fn passing(&mut self, p: &Product<'_>, blocks: usize) -> Result<(Map, Passing), EngineError> {
        let (from, to) = p.shapes();
        let mut y = self.map(to)?;
        y.sums = if p.sums { Some(self.sums(to.c as usize, blocks)?) } else { None };
        let (entry_kind, entry, other) = p.entry.parts();
        let (gate_kind, gate, gate_norm) = p.gate.parts();
        let passing = Passing {
            x: p.x,
            entry,
            other,
            bias: p.bias.map_or(0, |b| self.param(b)),
            gate,
            gate_norm,
            add: p.add,
            y: y.at(),
            sums: y.sums.map_or(0, |s| s.region.address),
            n: self.n as i32,
            ih: from.h as i32,
            iw: from.w as i32,
            ic: from.c as i32,
            oh: to.h as i32,
            ow: to.w as i32,
            oc: to.c as i32,
            entry_kind,
            gate_kind,
            squash: p.squash,
            blocks: blocks as i32,
            slope: p.entry.slope().or(p.gate.slope()).unwrap_or_default(),
        };
        Ok((y, passing))
    }

    /// A convolution, a data gradient or a transposed convolution.
    pub(super) fn product(&mut self, p: &Product<'_>) -> Result<Map, EngineError> {
        let window = &p.g.window;
        let (stride, pad) = (window.stride[0], window.pad[0]);
        if stride > 2 || window.stride[1] != stride || window.pad.iter().any(|&v| v != pad) {
            return Err(EngineError::Unavailable("--device cuda: a convolution of another kind".into()));
        }
        match self.precision {
            Precision::F32 => self.plain_product(p),
            Precision::Bf16 => self.tile_product(p),
        }
    }

    /// The gradients of a convolution's weights and, where it has one, of the bias that stands behind them.
    pub(super) fn weights(
        &mut self,
        g: &ConvShape,
        (x, x_entry): (u64, Entry),
        (dy, dy_entry): (u64, Entry),
        weight: Span,
        bias: Option<Span>,
    ) -> Result<(), EngineError> {
        let len = weight.len + bias.map_or(0, |b| b.len);
        if bias.is_some_and(|b| b.first != weight.first + weight.len) {
            return Err(EngineError::Failed("a bias that does not stand behind its weights".into()));
        }
        if matches!(x_entry, Entry::Back(..)) {
            return Err(EngineError::Failed("a weight gradient's map that comes in as a gradient".into()));
        }
        let slope = x_entry.slope().unwrap_or_default();
        let (x_kind, x_entry, _) = x_entry.parts();
        let (dy_kind, dy_entry, dy_other) = dy_entry.parts();
        let weighing = Weighing {
            x,
            x_entry,
            dy,
            dy_entry,
            dy_other,
            partial: 0,
            n: self.n as i32,
            ih: g.x.h as i32,
            iw: g.x.w as i32,
            ic: g.x.c as i32,
            oh: g.y.h as i32,
            ow: g.y.w as i32,
            oc: g.y.c as i32,
            taps: g.window.kernel.iter().product::<u32>() as i32,
            x_kind,
            dy_kind,
            bias: i32::from(bias.is_some()),
            slope,
        };
        let to = self.grad(weight);
        match self.precision {
            Precision::F32 => self.plain_weights(g, weighing, to, len),
            Precision::Bf16 => self.tile_weights(g, weighing, to, len),
        }
    }

    /// Room for partial sums that are added into `to` before the parameters' update; where they are whole, `to` itself.
    pub(super) fn reduce(&mut self, to: u64, splits: usize, len: usize) -> Result<u64, EngineError> {
        if splits == 1 {
            return Ok(to);
        }
        let partial = self.take(splits * len)?.address;
        let (splits, len) = (splits as i32, len as i32);
        self.reductions.push(Reduction { partial, to, splits, len, block: 0, _end: 0 });
        Ok(partial)
    }

    /// Adds all partial sums that wait for it.
    pub(super) fn reduced(&mut self) -> Result<(), EngineError> {
        let mut jobs = std::mem::take(&mut self.reductions);
        let blocks = numbered(&mut jobs, |job| {
            let each = if job.splits <= FEW_SPLITS { 256 } else { LANE_SUMS };
            (&mut job.block, (job.len as usize).div_ceil(each))
        });
        if blocks > 0 {
            let args = ReduceArgs { all: self.table(&jobs)?, count: jobs.len() as i32, _end: 0 };
            self.launch(Kernel::Reduce, [blocks, 1, 1], &args);
        }
        Ok(())
    }

    /// What a program's kernels find where they are told.
    fn table<T: Pod>(&mut self, jobs: &[T]) -> Result<u64, EngineError> {
        let bytes: &[u8] = bytemuck::cast_slice(jobs);
        let region = self.device.allocate(bytes.len())?;
        self.device.write(region, bytes)?;
        Ok(region.address)
    }

    /// The launches written so far: first weights are packed for them, at the end what waits is added.
    pub(super) fn finish(&mut self) -> Result<Vec<Launch>, EngineError> {
        self.reduced()?;
        let mut jobs = std::mem::take(&mut self.packings);
        let launches = std::mem::take(&mut self.launches);
        let blocks = numbered(&mut jobs, |job| (&mut job.block, (job.words as usize).div_ceil(256)));
        if blocks > 0 {
            let args = PackArgs { all: self.table(&jobs)?, count: jobs.len() as i32, _end: 0 };
            self.launch(Kernel::Pack, [blocks, 1, 1], &args);
        }
        Ok(std::mem::take(&mut self.launches).into_iter().chain(launches).collect())
    }

    /// The gradient of a bias from that of its map.
    pub(super) fn columns(&mut self, dz: &Map, bias: Span) -> Result<(), EngineError> {
        let (c, all) = (dz.shape.c as usize, self.n * pixels(dz.shape));
        let (stretch, blocks) = stretches(all);
        let args = ColumnArgs {
            x: dz.at(),
            partial: self.reduce(self.grad(bias), blocks, c)?,
            pixels: all as i32,
            c: c as i32,
            stretch: stretch as i32,
            _end: 0,
        };
        self.launch(Kernel::Columns, [blocks, 1, 1], &args);
        Ok(())
    }

    /// Takes the sums over a map that no convolution left.
    pub(super) fn summed(&mut self, x: &mut Map) -> Result<(), EngineError> {
        let (c, all) = (x.shape.c as usize, self.n * pixels(x.shape));
        let (stretch, blocks) = stretches(all);
        let sums = self.sums(c, blocks)?;
        let args = SumArgs {
            x: x.at(),
            sums: sums.region.address,
            pixels: all as i32,
            c: c as i32,
            stretch: stretch as i32,
            blocks: blocks as i32,
        };
        self.launch(Kernel::ChannelSums, [blocks, 1, 1], &args);
        self.give_sums(x.sums.replace(sums));
        Ok(())
    }

    fn norm_args(&self, name: &str, state: NormState) -> Result<NormArgs, EngineError> {
        let statistic = |what: &str| -> Result<u64, EngineError> {
            Ok(self.homes.statistics.address + 4 * self.layout.statistic(&format!("{name}.{what}"))?.first as u64)
        };
        let gamma = self.layout.param(&format!("{name}.gamma"))?;
        let beta = self.layout.param(&format!("{name}.beta"))?;
        Ok(NormArgs {
            sums: 0,
            gamma: self.param(gamma),
            beta: self.param(beta),
            mean: statistic("mean")?,
            var: statistic("var")?,
            state: state.region.address,
            dgamma: self.grad(gamma),
            dbeta: self.grad(beta),
            k: 0,
            c: state.c as i32,
            blocks: 0,
            count: 0,
            _end: 0,
        })
    }

    /// A norm over `x`, and the slope below 0 of the ReLU behind it: of the batch where sums were taken (which are given back), else of
    /// running statistics.
    pub(super) fn norm(&mut self, name: &str, x: &Map, slope: f32) -> Result<NormState, EngineError> {
        let c = x.shape.c as usize;
        let state = NormState { region: self.take(4 * c)?, c, slope };
        let mut args = self.norm_args(name, state)?;
        match x.sums {
            Some(sums) => {
                args.sums = sums.region.address;
                args.blocks = sums.blocks as i32;
                args.count = (self.n * pixels(x.shape)) as i32;
                self.launch(Kernel::NormForward, [c, 1, 1], &args);
                self.give(sums.region);
            }
            None => self.launch(Kernel::NormRunning, [c.div_ceil(128), 1, 1], &args),
        }
        Ok(state)
    }

    /// A norm's backward pass from the sums over its gradient, which are given back: the coefficients of the input gradient.
    pub(super) fn norm_backward(
        &mut self,
        name: &str,
        state: NormState,
        shape: Shape,
        sums: Sums,
    ) -> Result<Region, EngineError> {
        let k = self.take(3 * state.c)?;
        let args = NormArgs {
            sums: sums.region.address,
            blocks: sums.blocks as i32,
            count: (self.n * pixels(shape)) as i32,
            k: k.address,
            ..self.norm_args(name, state)?
        };
        self.launch(Kernel::NormBackward, [state.c, 1, 1], &args);
        self.give(sums.region);
        Ok(k)
    }

    /// `k1 * dz + k2 * x + k3 + add`, in place.
    pub(super) fn norm_gradient(&mut self, dz: &Map, x: &Map, k: Region, add: u64) -> Result<(), EngineError> {
        let (quads, len) = (quads(x.shape)?, self.n * x.shape.len() / 4);
        let args = JoinArgs { dz: dz.at(), x: x.at(), k: k.address, add, dx: dz.at(), quads, len: len as i32, _end: 0 };
        self.launch(Kernel::NormGradient, [len.div_ceil(256), 1, 1], &args);
        Ok(())
    }

    /// Values that stay as they are.
    pub(super) fn constant(&mut self, values: &[f32]) -> Result<u64, EngineError> {
        self.table(values)
    }
}

/// Values as cells of a map.
pub(super) fn cells(precision: Precision, values: &[f32]) -> Cow<'_, [u8]> {
    match precision {
        Precision::F32 => Cow::Borrowed(bytemuck::cast_slice(values)),
        Precision::Bf16 => values.iter().flat_map(|&v| Bf16::from(v).bits().to_ne_bytes()).collect(),
    }
}
