//! The CUDA engine: a whole training step as one captured graph of our own kernels, its maps and products in f32 or in bf16.
//! The CPU engine is its oracle.
//!
//! ```text
//! begin -> pictures -> stem -> head -> loss -+-> head backward -> decoder backward -> stem backward -> update
//!                        +---> decoder -> losses
//! ```
//!
//! Kernels are compiled at run time for the GPU at hand; building needs no toolkit, and starting looks for every library first.
//! Pictures go to the device once, as bytes; crops and flips happen there, from the same streams of the seed as on the CPU.
//! Norms and activations are applied by the convolutions on either side, which also leave the sums that norms need. All sums are
//! added in a fixed order, so that the same seed gives the same bits. The host waits only where it reads metrics.
//!
//! The same launches drive the same kernels built by a host compiler (`mirror`), which is how tests compare them with the CPU
//! engine where there is no GPU.
//!
//! `unsafe` lives below this module only.

mod args;
mod axis;
mod backend;
mod builder;
mod compile;
mod driver;
mod head;
mod join;
mod layout;
#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod mirror;
mod network;
#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod places;
mod plain;
mod plan;
#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests;
mod tiles;
mod witness;

pub use head::{CudaHead, Drawn, Sizes};
#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
pub(crate) use places::Place;
pub use witness::CudaWitnesses;

use super::{Engine, EngineError, Losses, Objective, Pass, Precision, State, StepReport};
use crate::config::{Crop, RunConfig};
use crate::model::TrapNet;
use args::Control;
use backend::{Backend, Region};
use builder::Homes;
use bytemuck::Zeroable;
use layout::{Layout, Stretches};
use plan::{Books, Cut, Moments, Source};
use stemguard_runtime::data::Pictures;

/// Steps between two looks at the losses.
const LOOK: usize = 64;
/// Pictures answered together, at most.
const ANSWERS: usize = 500;

/// How many GPUs can be used, at least one: driver, GPU and NVRTC are there and fit each other.
///
/// # Errors
/// [`EngineError::Unavailable`], in one line what is missing.
pub fn probe() -> Result<usize, EngineError> {
    driver::probe()
}

/// What a course's passes work on.
struct Held {
    source: Source,
    books: Books,
    program: usize,
    batch: usize,
    pictures: usize,
}

/// What answers work on.
struct Asked {
    source: Source,
    answers: Region,
    program: usize,
    batch: usize,
    room: usize,
}

/// A network and its optimiser's moments on a device.
pub struct CudaEngine {
    device: Box<dyn Backend>,
    net: TrapNet,
    objective: Objective,
    layout: Layout,
    homes: Homes,
    moments: Moments,
    held: Option<Held>,
    asked: Option<Asked>,
    steps: u64,
}

impl CudaEngine {
    /// An engine on GPU number `gpu`, from 0, for networks such as `net`; [`Engine::restore`] brings its values.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`] where there is no GPU that can be used.
    pub fn open(gpu: usize, net: &TrapNet, objective: Objective, precision: Precision) -> Result<Self, EngineError> {
        Self::on(Box::new(driver::Driver::open(gpu, precision)?), net, objective)
    }

    fn on(mut device: Box<dyn Backend>, net: &TrapNet, objective: Objective) -> Result<Self, EngineError> {
        let mut net = net.clone();
        let layout = Layout::of(&mut net);
        let (params, statistics) = layout.lens();
        let mut take = |len: usize| device.allocate(4 * len.max(1));
        let homes = Homes { params: take(params)?, grads: take(params)?, statistics: take(statistics)? };
        let moments = Moments { first: take(params)?, second: take(params)? };
        Ok(Self { device, net, objective, layout, homes, moments, held: None, asked: None, steps: 0 })
    }

    fn floats(&mut self, from: Region, first: usize, len: usize) -> Result<Vec<f32>, EngineError> {
        let mut values = vec![0.0f32; len];
        self.device.read(from, 4 * first, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }
}

/// Stream of the seed for what happens to pictures.
fn seed(c: &RunConfig) -> u64 {
    c.seed ^ crate::augment::PICTURE
}

impl Engine for CudaEngine {
    fn hold(&mut self, c: &RunConfig, pictures: &Pictures) -> Result<(), EngineError> {
        let cut = match c.crop {
            Crop::Shift => Cut::Shifted(c.shift),
            Crop::None => Cut::Shifted(0),
            Crop::Resized => Cut::Resized,
        };
        if self.held.is_some() || pictures.shape() != self.net.input || pictures.len() < c.batch {
            return Err(EngineError::Failed("CUDA engine: pictures of another course".into()));
        }
        let (device, n) = (&mut *self.device, pictures.len());
        let source = Source {
            pixels: device.allocate(pictures.pixels.len())?,
            control: device.allocate(size_of::<Control>())?,
            order: Some(device.allocate(4 * n)?),
            cut,
            flip: c.flip,
        };
        let books = Books {
            labels: device.allocate(4 * n)?,
            forget: device.allocate(n)?,
            fit: device.allocate(4 * n)?,
            losses: device.allocate(16 * (n / c.batch))?,
        };
        device.write(source.pixels, &pictures.pixels)?;
        device.write(books.labels, bytemuck::cast_slice(&pictures.labels))?;
        let (layout, net) = (&self.layout, &self.net);
        let (homes, moments) = (self.homes, self.moments);
        let program = plan::step(device, layout, net, &self.objective, homes, moments, &source, &books, c.batch)?;
        self.held = Some(Held { source, books, program, batch: c.batch, pictures: n });
        Ok(())
    }

    fn pass(
        &mut self,
        pass: &Pass<'_>,
        order: &[u32],
        tell: &mut dyn FnMut(&[u32], &StepReport) -> bool,
    ) -> Result<(), EngineError> {
        let held = self.held.as_ref().filter(|h| {
            let forget = pass.forget.is_empty() || pass.forget.len() == h.pictures;
            order.len() <= h.pictures && forget && pass.config.batch == h.batch && pass.pictures.len() == h.pictures
        });
        let Some(&Held { source, books, program, batch, pictures }) = held else {
            return Err(EngineError::Failed("CUDA engine: a pass over other pictures than it holds".into()));
        };
        if order.iter().any(|&i| i as usize >= pictures) {
            return Err(EngineError::Failed("CUDA engine: an order of other pictures".into()));
        }
        let control = Control {
            seed: seed(pass.config),
            steps: self.steps,
            epoch: pass.epoch,
            step: u32::MAX,
            pictures: pictures as u32,
            rate: pass.rate as f32,
            ..Control::zeroed()
        };
        let mut forget: Vec<u8> = pass.forget.iter().map(|&f| u8::from(f)).collect();
        forget.resize(pictures, 0);
        self.device.write(source.control, bytemuck::bytes_of(&control))?;
        self.device.write(source.order.unwrap_or(source.control), bytemuck::cast_slice(order))?;
        self.device.write(books.forget, &forget)?;
        let steps = order.len() / batch;
        for from in (0..steps).step_by(LOOK) {
            let to = (from + LOOK).min(steps);
            for _ in from..to {
                self.device.run(program)?;
            }
            self.steps += (to - from) as u64;
            let losses = self.floats(books.losses, 4 * from, 4 * (to - from))?;
            let fit = self.floats(books.fit, batch * from, batch * (to - from))?;
            let chosen = order[batch * from..].chunks_exact(batch);
            for ((l, fit), chosen) in losses.chunks_exact(4).zip(fit.chunks_exact(batch)).zip(chosen) {
                let losses = Losses { total: l[0], ce: l[1], mse: l[2], tv: l[3] };
                if !tell(chosen, &StepReport { losses, fit: fit.to_vec() }) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn answers(&mut self, pictures: &Pictures) -> Result<Vec<u32>, EngineError> {
        let n = pictures.len();
        if n == 0 {
            return Ok(Vec::new());
        }
        if pictures.shape() != self.net.input {
            return Err(EngineError::Failed("CUDA engine: pictures of another shape".into()));
        }
        let device = &mut *self.device;
        let asked = match self.asked.take().filter(|a| a.room >= n) {
            Some(asked) => asked,
            None => {
                let source = Source {
                    pixels: device.allocate(pictures.pixels.len())?,
                    control: device.allocate(size_of::<Control>())?,
                    order: None,
                    cut: Cut::Whole,
                    flip: false,
                };
                let (answers, batch) = (device.allocate(4 * n)?, n.min(ANSWERS));
                let (layout, net) = (&self.layout, &self.net);
                let program = plan::answers(device, layout, net, self.homes, &source, answers, batch)?;
                Asked { source, answers, program, batch, room: n }
            }
        };
        let control = Control { step: u32::MAX, pictures: n as u32, ..Control::zeroed() };
        device.write(asked.source.control, bytemuck::bytes_of(&control))?;
        device.write(asked.source.pixels, &pictures.pixels)?;
        for _ in 0..n.div_ceil(asked.batch) {
            device.run(asked.program)?;
        }
        let mut answers = vec![0u32; n];
        device.read(asked.answers, 0, bytemuck::cast_slice_mut(&mut answers))?;
        self.asked = Some(asked);
        Ok(answers)
    }

    fn state(&mut self) -> Result<State, EngineError> {
        let (params, statistics) = self.layout.lens();
        let stretches = Stretches {
            params: self.floats(self.homes.params, 0, params)?,
            first: self.floats(self.moments.first, 0, params)?,
            second: self.floats(self.moments.second, 0, params)?,
            statistics: self.floats(self.homes.statistics, 0, statistics)?,
        };
        Ok(self.layout.state(&stretches, self.steps))
    }

    fn restore(&mut self, state: &State) -> Result<(), EngineError> {
        let s = self.layout.stretches(state)?;
        for (region, values) in [
            (self.homes.params, &s.params),
            (self.moments.first, &s.first),
            (self.moments.second, &s.second),
            (self.homes.statistics, &s.statistics),
        ] {
            self.device.write(region, bytemuck::cast_slice(values))?;
        }
        self.steps = state.steps;
        Ok(())
    }
}
