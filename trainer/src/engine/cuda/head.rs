//! A new head over a frozen stem, on the device: a bank of features, and steps of the residual head on what is drawn from it.
//!
//! ```text
//! pictures (varied and mixed on the host) -> fill: stem -> store -> bank
//! draws of an epoch (on the host) -> step: gather -> unit -> dropout -> tail -> loss -> backward -> update
//! ```
//!
//! Everything random is drawn on the host, by the loop that draws for the CPU; only dropout, whose stream each thread enters at its own
//! place, is drawn on the device. The host waits once an epoch, for the losses.

use super::args::*;
use super::backend::{Backend, Kernel, Region};
use super::builder::{Builder, Homes, Map, cells};
use super::layout::Layout;
use super::network::{self, Ends, Left};
use super::{Moments, driver};
use crate::engine::{EngineError, Precision};
use crate::model::TrapNet;
use crate::nn::{Param, Visit};
use bytemuck::Zeroable;
use stemguard_runtime::head::residual::Residual;
use stemguard_runtime::head::{Dropout, HeadModel as _};
use stemguard_runtime::layers::unit::UnitShape;
use stemguard_runtime::replace::{Settings, initialise};
use stemguard_runtime::shape::Shape;

/// Pictures that go through the stem together.
const FILLED: usize = 64;

/// What is drawn for the steps of an epoch, by step and place.
#[derive(Clone, Debug, Default)]
pub struct Drawn {
    /// Rows of the bank.
    pub own: Vec<u32>,
    /// Rows whose box is pasted in.
    pub mates: Vec<u32>,
    /// Labels of both.
    pub labels: [Vec<u32>; 2],
    /// A box a step: top, left, bottom, right.
    pub boxes: Vec<u32>,
    /// A share a step that pictures keep of themselves.
    pub keep: Vec<f32>,
    /// Step size.
    pub rate: f32,
}

/// How large everything is.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Rows of the bank.
    pub rows: usize,
    /// Steps of an epoch.
    pub steps: usize,
    /// Whether features are kept rounded to bf16.
    pub rounded: bool,
}

/// Regions of what is drawn, in [`Drawn`]'s order.
#[derive(Clone, Copy, Debug)]
struct Tables {
    own: Region,
    mates: Region,
    labels: [Region; 2],
    boxes: Region,
    keep: Region,
}

/// A network's values, and places for them.
#[derive(Default)]
pub(super) struct Values {
    pub(super) layout: Layout,
    pub(super) params: Vec<f32>,
    pub(super) statistics: Vec<f32>,
}

impl Visit for Values {
    fn param(&mut self, name: &str, p: &mut Param) {
        let values = p.as_vec();
        self.layout.add_param(name, values.len());
        self.params.extend(values);
    }
    fn state(&mut self, name: &str, values: &mut Vec<f32>) {
        self.layout.add_statistic(name, values.len());
        self.statistics.extend(&*values);
    }
}

/// A head that learns on a device.
pub struct CudaHead {
    device: Box<dyn Backend>,
    features: Shape,
    input: usize,
    sizes: Sizes,
    settings: Settings,
    homes: Homes,
    /// Of the head, behind the stem's: first value and number, of parameters and of statistics.
    spans: [(usize, usize); 2],
    pictures: Region,
    place: Region,
    control: Region,
    tables: Tables,
    losses: Region,
    #[cfg(test)]
    bank: Region,
    fill: usize,
    step: usize,
    done: u64,
}

impl CudaHead {
    /// A fresh head over the stem of `net` on a GPU, its parameters those that the CPU begins with.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`] where there is no GPU that can be used, or a shape is not for it.
    pub fn open(
        gpu: usize,
        net: &TrapNet,
        settings: &Settings,
        sizes: Sizes,
        precision: Precision,
    ) -> Result<Self, EngineError> {
        Self::on(Box::new(driver::Driver::open(gpu, precision)?), net, settings, sizes)
    }

    pub(super) fn on(
        mut device: Box<dyn Backend>,
        net: &TrapNet,
        settings: &Settings,
        sizes: Sizes,
    ) -> Result<Self, EngineError> {
        let (features, classes, batch) = (net.stem.output(), net.classes, settings.batch);
        let wrong = |e: stemguard_runtime::error::Error| EngineError::Failed(format!("head: {e}"));
        if !features.c.is_multiple_of(4) {
            return Err(EngineError::Unavailable("--device cuda: channels are not a multiple of 4".into()));
        }
        let head = Residual::new(features, classes).map_err(wrong)?;
        let shape = UnitShape::new(features, features.c, 1, true).map_err(wrong)?;
        let mut values = Values::default();
        net.clone().stem.visit("stem", &mut values);
        let Values { mut layout, mut params, mut statistics } = values;
        let spans = [(params.len(), head.trained()), (statistics.len(), head.params() - head.trained())];
        place(&mut layout, features.c as usize, classes);
        if layout.lens() != (spans[0].0 + spans[0].1, spans[1].0 + spans[1].1) {
            return Err(EngineError::Failed("head: other parameters than the runtime's".into()));
        }
        let mut fresh = vec![0.0; head.params()];
        initialise(&head, settings, &mut fresh);
        let (trained, running) = fresh.split_at(head.trained());
        params.extend(trained);
        statistics.extend(running);

        let places = sizes.steps * batch;
        let mut take = |len: usize| device.allocate(4 * len.max(1));
        let homes =
            Homes { params: take(params.len())?, grads: take(params.len())?, statistics: take(statistics.len())? };
        let moments = Moments { first: take(trained.len())?, second: take(trained.len())? };
        let (place, control) = (take(2)?, take(size_of::<Control>() / 4)?);
        let tables = Tables {
            own: take(places)?,
            mates: take(places)?,
            labels: [take(places)?, take(places)?],
            boxes: take(4 * sizes.steps)?,
            keep: take(sizes.steps)?,
        };
        let losses = take(4 * sizes.steps)?;
        let cell = device.precision().cell();
        let pictures = device.allocate(cell * FILLED * net.input.len())?;
        let bank = device.allocate(cell * sizes.rows.max(1) * features.len())?;
        let none = vec![0.0f32; trained.len()];
        for (region, values) in
            [(homes.params, &params), (homes.statistics, &statistics), (moments.first, &none), (moments.second, &none)]
        {
            device.write(region, bytemuck::cast_slice(values))?;
        }

        let mut b = Builder::new(&mut *device, &layout, homes, FILLED);
        let x = Map { region: pictures, shape: net.input, sums: None };
        let (y, _) = network::forward(&mut b, "stem", &net.stem, x, false, &Ends::default())?;
        let args = StoreArgs {
            x: y.at(),
            bank: bank.address,
            place: place.address,
            len: features.len() as i32,
            round: i32::from(sizes.rounded),
        };
        b.launch(Kernel::Store, [FILLED, features.len().div_ceil(1024), 1], &args);
        let launches = b.finish()?;
        // SAFETY: the builder fills in each kernel's own structure, with regions of this device that it sized by the same shapes
        // that the kernels are told; `fill` stores no row past the bank.
        let fill = unsafe { device.program(launches) }?;

        let mut b = Builder::new(&mut *device, &layout, homes, batch);
        step(&mut b, &shape, classes, settings, bank, control, &tables, losses)?;
        b.reduced()?;
        let args = UpdateArgs {
            p: homes.params.address + 4 * spans[0].0 as u64,
            g: homes.grads.address + 4 * spans[0].0 as u64,
            first: moments.first.address,
            second: moments.second.address,
            control: control.address,
            len: spans[0].1 as i32,
            sgd: 0,
            decay: settings.decay,
            _end: 0,
        };
        b.launch(Kernel::Update, [spans[0].1.div_ceil(256), 1, 1], &args);
        let launches = b.finish()?;
        // SAFETY: as above; `learn` hands over no row past the bank and no label past the classes.
        let step = unsafe { device.program(launches) }?;
        let (input, settings) = (net.input.len(), *settings);
        Ok(Self {
            device,
            features,
            input,
            sizes,
            settings,
            homes,
            spans,
            pictures,
            place,
            control,
            tables,
            losses,
            #[cfg(test)]
            bank,
            fill,
            step,
            done: 0,
        })
    }

    /// As [`CudaHead::open`], somewhere; none where there is no such device.
    #[cfg(all(test, target_os = "linux", target_env = "gnu"))]
    pub(crate) fn at(
        place: super::Place,
        net: &TrapNet,
        settings: &Settings,
        sizes: Sizes,
        precision: Precision,
    ) -> Option<Self> {
        Some(Self::on(place.device(precision)?, net, settings, sizes).expect("a head"))
    }

    /// Shape of one picture's features.
    pub fn features(&self) -> Shape {
        self.features
    }

    /// Puts the features of pictures (`[n][input]`) into the bank, from row `first` on.
    ///
    /// # Errors
    /// [`EngineError::Failed`] where they do not fit, or the device fails.
    pub fn fill(&mut self, first: usize, pictures: &[f32]) -> Result<(), EngineError> {
        let n = pictures.len() / self.input;
        if pictures.len() != n * self.input || first + n > self.sizes.rows {
            return Err(EngineError::Failed("CUDA engine: features past the bank".into()));
        }
        for (i, part) in pictures.chunks(FILLED * self.input).enumerate() {
            let place = [(first + FILLED * i) as u32, (part.len() / self.input) as u32];
            self.device.write(self.pictures, &cells(self.device.precision(), part))?;
            self.device.write(self.place, bytemuck::cast_slice(&place))?;
            self.device.run(self.fill)?;
        }
        Ok(())
    }

    /// Steps on what was drawn for an epoch; their mean loss.
    ///
    /// # Errors
    /// [`EngineError::Failed`] where draws do not fit, or the device fails.
    pub fn learn(&mut self, drawn: &Drawn, classes: usize) -> Result<f32, EngineError> {
        let (steps, batch) = (drawn.keep.len(), self.settings.batch);
        let whole = |v: &[u32], each: usize| v.len() == each * steps;
        let rows = [&drawn.own, &drawn.mates];
        let fits = steps > 0
            && steps <= self.sizes.steps
            && rows.iter().all(|v| whole(v, batch) && v.iter().all(|&r| (r as usize) < self.sizes.rows))
            && drawn.labels.iter().all(|v| whole(v, batch) && v.iter().all(|&l| (l as usize) < classes))
            && whole(&drawn.boxes, 4);
        if !fits {
            return Err(EngineError::Failed("CUDA engine: draws of another training".into()));
        }
        let control = Control {
            seed: self.settings.dropout_seed(),
            steps: self.done,
            step: u32::MAX,
            pictures: (steps * batch) as u32,
            rate: drawn.rate,
            ..Control::zeroed()
        };
        let t = self.tables;
        for (region, bytes) in [
            (self.control, bytemuck::bytes_of(&control)),
            (t.own, bytemuck::cast_slice(&drawn.own)),
            (t.mates, bytemuck::cast_slice(&drawn.mates)),
            (t.labels[0], bytemuck::cast_slice(&drawn.labels[0])),
            (t.labels[1], bytemuck::cast_slice(&drawn.labels[1])),
            (t.boxes, bytemuck::cast_slice(&drawn.boxes)),
            (t.keep, bytemuck::cast_slice(&drawn.keep)),
        ] {
            self.device.write(region, bytes)?;
        }
        for _ in 0..steps {
            self.device.run(self.step)?;
        }
        self.done += steps as u64;
        let mut losses = vec![0.0f32; 4 * steps];
        self.device.read(self.losses, 0, bytemuck::cast_slice_mut(&mut losses))?;
        Ok(losses.iter().step_by(4).sum::<f32>() / steps as f32)
    }

    /// The head's parameters, as the runtime has them.
    ///
    /// # Errors
    /// [`EngineError::Failed`] where the device fails.
    pub fn params(&mut self) -> Result<Vec<f32>, EngineError> {
        let mut all = Vec::new();
        for (region, (first, len)) in [self.homes.params, self.homes.statistics].into_iter().zip(self.spans) {
            let mut values = vec![0.0f32; len];
            self.device.read(region, 4 * first, bytemuck::cast_slice_mut(&mut values))?;
            all.extend(values);
        }
        Ok(all)
    }
}

/// Places for a residual head's parameters, in the runtime's order.
pub(super) fn place(layout: &mut Layout, c: usize, classes: usize) {
    for (norm, conv) in [("unit.bn1", "unit.conv1"), ("unit.bn2", "unit.conv2")] {
        layout.add_param(&format!("new.{norm}.gamma"), c);
        layout.add_param(&format!("new.{norm}.beta"), c);
        layout.add_param(&format!("new.{conv}.weight"), 9 * c * c);
        layout.add_param(&format!("new.{conv}.bias"), c);
    }
    layout.add_param("new.tail.bn.gamma", c);
    layout.add_param("new.tail.bn.beta", c);
    layout.add_param("new.tail.fc.weight", c * classes);
    layout.add_param("new.tail.fc.bias", classes);
    for norm in ["unit.bn1", "unit.bn2", "tail.bn"] {
        layout.add_statistic(&format!("new.{norm}.mean"), c);
        layout.add_statistic(&format!("new.{norm}.var"), c);
    }
}

/// A step but for its update.
#[allow(clippy::too_many_arguments)]
fn step(
    b: &mut Builder<'_>,
    shape: &UnitShape,
    classes: usize,
    settings: &Settings,
    bank: Region,
    control: Region,
    tables: &Tables,
    losses: Region,
) -> Result<(), EngineError> {
    let (n, s) = (b.n, shape.x());
    b.launch(Kernel::Begin, [1, 1, 1], &BeginArgs { control: control.address });
    let mut x = b.map(s)?;
    let args = GatherArgs {
        bank: bank.address,
        own: tables.own.address,
        mates: tables.mates.address,
        boxes: tables.boxes.address,
        control: control.address,
        x: x.at(),
        quads: Divisor::new(s.c as usize / 4),
        columns: Divisor::new(s.w as usize),
        n: n as i32,
        len: s.len() as i32,
    };
    b.launch(Kernel::Gather, [n, s.len().div_ceil(1024), 1], &args);
    b.summed(&mut x)?;
    let (mut y, unit) = network::unit(b, "new.unit".into(), shape, x, true)?;
    // Every step has a stream of its own, which the device knows.
    let dropped = Dropout { rate: settings.dropout, ..Dropout::NONE }.cut();
    let drop = |b: &mut Builder<'_>, m: &Map, (cut, keep): (u8, f32)| {
        let quads = n * m.shape.len() / 4;
        let args =
            DropoutArgs { x: m.at(), control: control.address, quads: quads as i32, cut: cut.into(), keep, _end: 0 };
        b.launch(Kernel::Dropout, [quads.div_ceil(256), 1, 1], &args);
    };
    if let Some(dropped) = dropped {
        drop(b, &y, dropped);
        b.summed(&mut y)?;
    }
    let ce = b.take(n)?;
    let ends = Ends {
        labels: tables.labels[0].address,
        soft: Some((tables.labels[1].address, tables.keep.address, settings.smoothing)),
        control: control.address,
        ce: ce.address,
        ..Ends::default()
    };
    let (_, tail) = network::tail(b, "new.tail".into(), shape.y(), classes, true, y, true, &ends)?;
    let metrics = MetricArgs {
        ce: ce.address,
        control: control.address,
        losses: losses.address,
        n: n as i32,
        ..MetricArgs::zeroed()
    };
    b.launch(Kernel::Metrics, [1, 1, 1], &metrics);
    let (Left::Tail { name, x, state, args }, Left::Unit { name: unit, x: of_unit, h, first, second }) = (tail, unit)
    else {
        return Err(EngineError::Failed("head: other layers than were asked for".into()));
    };
    let dy = network::tail_backward(b, &name, x, state, args)?;
    if let Some(dropped) = dropped {
        drop(b, &dy, dropped);
    }
    network::unit_backward(b, &unit, shape, [of_unit, h], first, second, dy)?;
    Ok(())
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests;
