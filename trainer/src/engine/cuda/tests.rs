//! The engine on the mirror, and on a GPU where there is one, against the CPU engine: augmentation to the bit, gradients, optimiser
//! steps, answers, checkpoints.

mod products;

use super::args::Control;
use super::builder::{Builder, Homes};
use super::layout::Layout;
use super::plan::{Cut, Source, bring};
use super::{CudaEngine, Place};
use crate::augment;
use crate::checkpoint;
use crate::config::{Crop, RunConfig};
use crate::course::Course;
use crate::engine::Precision::{self, Bf16, F32};
use crate::engine::{CpuEngine, Engine, Lesson, Optimizer, Pass, State, StepReport};
use crate::evaluate::TestSet;
use crate::history::History;
use crate::model::{Architecture, TrapNet};
use crate::nn::{Param, Visit};
use crate::run::RunDir;
use bytemuck::Zeroable;
use dfdx::prelude::*;
use std::collections::BTreeMap;
use stemguard_runtime::data::Pictures;
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::rng::Rng;
use stemguard_runtime::shape::Shape;

/// Between gradients, relative to the largest entry of the tensor.
const GRADIENT: f32 = 1e-4;
/// Tensors whose largest gradient is below this share of the largest of all count as this large: a bias in front of a batch norm has
/// no gradient, and what is computed is rounding.
const FLOOR: f32 = 1e-2;
/// Between parameters, statistics and moments after some steps: the length of the difference, relative to that of the tensor. Adam's
/// first steps make a whole step of any gradient, rounding included; single entries therefore differ more.
const STATE: f32 = 1e-3;
/// Between all gradients in bf16 and in `f32`: the length of the difference, relative to theirs. A value keeps 8 bits.
const BF16_GRADIENT: f64 = 0.15;
/// Between losses of the first eight steps in bf16 and in `f32`, relative to the largest.
const BF16_LOSS: f32 = 0.01;
/// Between losses, and between log-odds.
const LOSS: f32 = 1e-4;

const CLASSES: usize = 5;
const BATCH: usize = 6;

fn pictures(n: usize, h: usize, w: usize) -> Pictures {
    let mut rng = Rng::new(n as u64, 3);
    Pictures {
        h,
        w,
        pixels: (0..n * h * w * 3).map(|_| rng.bits() as u8).collect(),
        labels: (0..n).map(|_| rng.below(CLASSES) as u32).collect(),
        classes: (0..CLASSES).map(|i| i.to_string()).collect(),
        files: Vec::new(),
    }
}

fn config(architecture: Architecture, trap: bool, optimizer: Optimizer) -> RunConfig {
    let rate = if optimizer == Optimizer::Sgd { 0.05 } else { 1e-3 };
    let recipe = RunConfig::published("signs".into());
    RunConfig { architecture, trap, optimizer, rate, batch: BATCH, shift: 2, flip: true, seed: 7, epochs: 2, ..recipe }
}

fn oracle(c: &RunConfig, p: &Pictures) -> CpuEngine {
    let dev = Cpu::default();
    let net = TrapNet::new(c.architecture, p.shape(), CLASSES, c.trap, c.seed, &dev).expect("a network");
    CpuEngine::new(net, c.objective(), Simd::new(1), dev)
}

fn there(place: Place, c: &RunConfig, cpu: &mut CpuEngine, precision: Precision) -> Option<CudaEngine> {
    let mut engine = CudaEngine::on(place.device(precision)?, &cpu.net, c.objective()).expect("an engine");
    engine.restore(&cpu.state().expect("a state")).expect("restored");
    Some(engine)
}

/// The largest difference, relative to the largest value; a NaN on either side is as large as can be.
fn difference(a: &[f32], b: &[f32], floor: f32) -> f32 {
    assert_eq!(a.len(), b.len());
    let top = b.iter().fold(floor, |m, v| m.max(v.abs()));
    a.iter()
        .zip(b)
        .fold(0.0, |m, (a, b)| if a.is_finite() && b.is_finite() { f32::max(m, (a - b).abs() / top) } else { f32::MAX })
}

fn close(what: &str, a: &State, b: &State) {
    assert_eq!(a.steps, b.steps, "{what}");
    assert!(a.tensors.keys().eq(b.tensors.keys()), "{what}: other tensors");
    let kind = |name: &str| ["first.", "second."].iter().position(|&p| name.starts_with(p)).map_or(0, |i| i + 1);
    let mut top = [0.0f32; 3];
    for (name, values) in &b.tensors {
        top[kind(name)] = values.iter().fold(top[kind(name)], |m, v| m.max(v.abs()));
    }
    // Moments of biases without a gradient are rounding, the second ones its squares.
    let floors = [1e-3, FLOOR * top[1], (FLOOR * FLOOR * top[2]).max(f32::MIN_POSITIVE)];
    let length = |v: &mut dyn Iterator<Item = f32>| v.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let mut worst = (0.0, "");
    for (name, a) in &a.tensors {
        let b = &b.tensors[name];
        assert_eq!(a.len(), b.len(), "{what}, {name}");
        let least = f64::from(floors[kind(name)]) * (b.len() as f64).sqrt();
        let d = length(&mut a.iter().zip(b).map(|(a, b)| a - b)) / length(&mut b.iter().copied()).max(least);
        // In front of a norm there is no gradient: Adam makes steps of rounding.
        let limit = f64::from(if name.ends_with(".conv1.bias") { 10.0 * STATE } else { STATE });
        assert!(d <= limit, "{what}, {name}: {d:.1e} apart");
        if d > worst.0 {
            worst = (d, name);
        }
    }
    eprintln!("{what}: states {:.1e} apart ({})", worst.0, worst.1);
}

struct Read<'a>(&'a Gradients<f32, Cpu>, BTreeMap<String, Vec<f32>>);

impl Visit for Read<'_> {
    fn param(&mut self, name: &str, p: &mut Param) {
        self.1.insert(name.to_owned(), self.0.get(p).as_vec());
    }
    fn state(&mut self, _: &str, _: &mut Vec<f32>) {}
}

/// One pass; the reports of its steps. From the second epoch on, a picture is left out, as a guard may.
fn pass(e: &mut dyn Engine, c: &RunConfig, p: &Pictures, forget: &[bool], epoch: u32, steps: usize) -> Vec<StepReport> {
    let rate = c.rate * c.schedule.factor(epoch, c.epochs);
    let mut order = augment::order(c.seed, epoch, p.len());
    order.retain(|&i| i > 0 || epoch == 0);
    let mut reports = Vec::new();
    e.pass(&Pass { config: c, pictures: p, forget, epoch, rate }, &order, &mut |chosen, report| {
        assert_eq!(chosen, &order[reports.len() * c.batch..][..c.batch]);
        reports.push(report.clone());
        reports.len() < steps
    })
    .expect("a pass");
    reports
}

#[test]
fn pictures_are_varied_as_on_the_cpu() {
    Place::ALL.into_iter().for_each(|place| {
        let Some(mut device) = place.device(F32) else { return };
        let (c, p, epoch) = (config(Architecture::default(), true, Optimizer::Adam), pictures(14, 12, 16), 3);
        let order = augment::order(c.seed, epoch, p.len());
        let mut net = oracle(&c, &p).net;
        let layout = Layout::of(&mut net);
        for (crop, cut) in
            [(Crop::Shift, Cut::Shifted(2)), (Crop::None, Cut::Shifted(0)), (Crop::Resized, Cut::Resized)]
        {
            let c = RunConfig { crop, ..c.clone() };
            let mut region = |bytes: &[u8]| {
                let r = device.allocate(bytes.len()).expect("memory");
                device.write(r, bytes).expect("written");
                r
            };
            let control =
                Control { seed: super::seed(&c), epoch, step: u32::MAX, pictures: p.len() as u32, ..Control::zeroed() };
            let source = Source {
                pixels: region(&p.pixels),
                control: region(bytemuck::bytes_of(&control)),
                order: Some(region(bytemuck::cast_slice(&order))),
                cut,
                flip: c.flip,
            };
            let nowhere = source.control;
            let homes = Homes { params: nowhere, grads: nowhere, statistics: nowhere };
            let mut b = Builder::new(&mut *device, &layout, homes, BATCH);
            let x = bring(&mut b, &source, p.shape()).expect("launches").region;
            let launches = b.finish().expect("launches");
            // SAFETY: the launches are those of a step's beginning.
            let program = unsafe { device.program(launches) }.expect("a program");
            for chosen in order.chunks_exact(BATCH) {
                device.run(program).expect("runs");
                let mut got = vec![0.0f32; BATCH * p.shape().len()];
                device.read(x, 0, bytemuck::cast_slice_mut(&mut got)).expect("read");
                let expected = augment::batch(&Simd::new(1), &c, &p, epoch, chosen);
                // A resized part's size goes through a logarithm, which is not the same everywhere.
                let apart = if crop == Crop::Resized { 1e-5 } else { 0.0 };
                assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= apart), "{crop:?}");
            }
        }
    });
}

/// The gradients of a first step on both: the largest difference of an entry, relative to the largest of its tensor, and the length of
/// the difference of all, relative to theirs. The CPU engine's running statistics have moved afterwards, and on the device everything.
fn gradients(
    what: &str,
    c: &RunConfig,
    p: &Pictures,
    forget: &[bool],
    cpu: &mut CpuEngine,
    cuda: &mut CudaEngine,
) -> (f32, f64) {
    let order = augment::order(c.seed, 0, p.len());
    let chosen = &order[..c.batch];
    let labels: Vec<u32> = chosen.iter().map(|&i| p.labels[i as usize]).collect();
    let flags: Vec<bool> = chosen.iter().filter_map(|&i| forget.get(i as usize).copied()).collect();
    let x = augment::batch(&Simd::new(1), c, p, 0, chosen);
    let (_, grads) = cpu.gradients(x, Lesson { labels: &labels, forget: &flags }).expect("gradients");
    let mut read = Read(&grads, BTreeMap::new());
    cpu.net.visit(&mut read);
    let (source, books, program) = cuda.held.as_ref().map(|h| (h.source, h.books, h.program)).expect("held");
    let control = Control { seed: super::seed(c), step: u32::MAX, pictures: p.len() as u32, ..Control::zeroed() };
    let mut flags: Vec<u8> = forget.iter().map(|&f| u8::from(f)).collect();
    flags.resize(p.len(), 0);
    for (region, bytes) in [
        (source.control, bytemuck::bytes_of(&control)),
        (source.order.expect("an order"), bytemuck::cast_slice(&order)),
        (books.forget, &flags),
    ] {
        cuda.device.write(region, bytes).expect("written");
    }
    cuda.device.run(program).expect("runs");
    let largest = read.1.values().flatten().fold(0.0f32, |m, v| m.max(v.abs()));
    let (len, _) = cuda.layout.lens();
    let all = cuda.floats(cuda.homes.grads, 0, len).expect("read");
    let mut worst = (0.0, String::new());
    let (mut apart, mut length) = (0.0, 0.0);
    for (name, expected) in &read.1 {
        let span = cuda.layout.param(name).expect("a parameter");
        let got = &all[span.first..][..span.len];
        let d = difference(got, expected, FLOOR * largest);
        apart += got.iter().zip(expected).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        length += expected.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
        if d > worst.0 {
            worst = (d, name.clone());
        }
    }
    let apart = (apart / length).sqrt();
    eprintln!("{what}: gradients {:.1e} apart ({}), {apart:.1e} together", worst.0, worst.1);
    (worst.0, apart)
}

/// Gradients of a first step, then two passes of two steps, then answers.
fn compare(place: Place, what: &str, c: &RunConfig, h: usize, w: usize, forget: &[bool]) {
    compare_with(place, what, c, h, w, forget, oracle(c, &pictures(14, h, w)));
}

fn compare_with(place: Place, what: &str, c: &RunConfig, h: usize, w: usize, forget: &[bool], mut cpu: CpuEngine) {
    let p = pictures(14, h, w);
    let Some(mut cuda) = there(place, c, &mut cpu, F32) else { return };
    let start = cpu.state().expect("a state");
    cuda.hold(c, &p).expect("held");
    let (worst, _) = gradients(what, c, &p, forget, &mut cpu, &mut cuda);
    assert!(worst <= GRADIENT, "{what}");
    cuda.restore(&start).expect("restored");
    cpu.restore(&start).expect("restored");
    for epoch in 0..2 {
        let a = pass(&mut cuda, c, &p, forget, epoch, 2);
        let b = pass(&mut cpu, c, &p, forget, epoch, 2);
        assert_eq!((a.len(), b.len()), (2, 2));
        for (a, b) in a.iter().zip(&b) {
            let all = |r: &StepReport| [r.losses.total, r.losses.ce, r.losses.mse, r.losses.tv];
            assert!(difference(&all(a), &all(b), 1.0) <= LOSS, "{what}: {a:?} where the CPU gives {b:?}");
            assert!(difference(&a.fit, &b.fit, 1.0) <= LOSS, "{what}: {a:?} where the CPU gives {b:?}");
        }
        let (a, b) = (cuda.state().expect("a state"), cpu.state().expect("a state"));
        close(&format!("{what}, after {} steps", 2 * (epoch + 1)), &a, &b);
    }
    let test = pictures(9, h, w);
    assert_eq!(cuda.answers(&test).expect("answers"), cpu.answers(&test).expect("answers"), "{what}");
    // Fewer pictures than before, then more.
    for n in [4, 20] {
        let test = pictures(n, h, w);
        assert_eq!(cuda.answers(&test).expect("answers"), cpu.answers(&test).expect("answers"), "{what}");
    }
}

#[test]
fn the_trap_trains_as_on_the_cpu() {
    Place::ALL.into_iter().for_each(|place| {
        let c = config(Architecture::default(), true, Optimizer::Adam);
        compare(place, "WRN-16-1, trap, Adam", &c, 12, 16, &[]);
    });
}

#[test]
fn a_wide_baseline_trains_as_on_the_cpu() {
    Place::ALL.into_iter().for_each(|place| {
        let a = Architecture { depth: 16, width: 2, split: 4 };
        let forget: Vec<bool> = (0..14).map(|i| i % 3 == 0).collect();
        compare(place, "WRN-16-2, no decoder, SGD", &config(a, false, Optimizer::Sgd), 8, 8, &forget);
    });
}

/// The CPU's engine with a small ResNet for square pictures.
fn resnet(c: &RunConfig, side: u32) -> CpuEngine {
    let dev = Cpu::default();
    let net = TrapNet::small_resnet(Shape::new(side, side, 3), CLASSES, c.trap, c.seed, &dev).expect("a network");
    CpuEngine::new(net, c.objective(), Simd::new(1), dev)
}

#[test]
fn a_resnet_trains_as_on_the_cpu() {
    Place::ALL.into_iter().for_each(|place| {
        for (what, side, trap, optimizer) in [
            ("ResNet, trap, Adam", 16, true, Optimizer::Adam),
            ("ResNet with a max pool, no decoder, SGD", 64, false, Optimizer::Sgd),
        ] {
            let c = config(Architecture::RESNET34, trap, optimizer);
            compare_with(place, what, &c, side, side, &[], resnet(&c, side as u32));
        }
    });
}

/// Gradients of a first step in bf16, then the losses of four passes.
fn near(place: Place, what: &str, c: &RunConfig, p: &Pictures, mut cpu: CpuEngine) {
    let Some(mut cuda) = there(place, c, &mut cpu, Bf16) else { return };
    cuda.hold(c, p).expect("held");
    let start = cpu.state().expect("a state");
    let (_, together) = gradients(what, c, p, &[], &mut cpu, &mut cuda);
    assert!(together <= BF16_GRADIENT, "{what}");
    cuda.restore(&start).expect("restored");
    cpu.restore(&start).expect("restored");
    for epoch in 0..4 {
        let (a, b) = (pass(&mut cuda, c, p, &[], epoch, 2), pass(&mut cpu, c, p, &[], epoch, 2));
        for (a, b) in a.iter().zip(&b) {
            let all = |r: &StepReport| [r.losses.total, r.losses.ce, r.losses.mse, r.losses.tv];
            let apart = difference(&all(a), &all(b), 0.0);
            eprintln!("{what}, epoch {epoch}: losses {apart:.1e} apart");
            assert!(apart <= BF16_LOSS, "{what}: {a:?} where the CPU gives {b:?}");
        }
    }
}

#[test]
fn bf16_is_near() {
    Place::ALL.into_iter().for_each(|place| {
        let (c, p) = (config(Architecture::default(), true, Optimizer::Adam), pictures(14, 12, 16));
        near(place, "WRN-16-1, trap, bf16", &c, &p, oracle(&c, &p));
        for (what, side, trap, optimizer) in [
            ("ResNet, trap, bf16", 16, true, Optimizer::Adam),
            ("ResNet with a max pool, bf16", 64, false, Optimizer::Sgd),
        ] {
            let c = config(Architecture::RESNET34, trap, optimizer);
            near(place, what, &c, &pictures(14, side, side), resnet(&c, side as u32));
        }
    });
}

#[test]
fn results_do_not_depend_on_the_order_of_threads() {
    Place::ALL.into_iter().for_each(|place| {
        let (c, p) =
            (config(Architecture { split: 6, ..Architecture::default() }, true, Optimizer::Adam), pictures(7, 8, 8));
        let run = |precision, place| {
            let mut cuda = there(place, &c, &mut oracle(&c, &p), precision)?;
            cuda.hold(&c, &p).expect("held");
            let reports = pass(&mut cuda, &c, &p, &[], 0, 1);
            Some((reports, cuda.state().expect("a state"), cuda.answers(&p).expect("answers")))
        };
        for precision in [F32, Bf16] {
            assert_eq!(run(precision, place), run(precision, place.again()), "{precision:?}");
        }
    });
}

#[test]
fn a_run_begun_on_the_device_goes_on_on_the_cpu() {
    Place::ALL.into_iter().for_each(|place| {
        let (c, p) = (config(Architecture::default(), true, Optimizer::Adam), pictures(14, 8, 8));
        let mut cpu = oracle(&c, &p);
        let Some(mut cuda) = there(place, &c, &mut cpu, F32) else { return };
        cuda.hold(&c, &p).expect("held");
        assert_eq!(pass(&mut cuda, &c, &p, &[], 0, 2).len(), 2);
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("checkpoint.safetensors");
        checkpoint::write(&path, &cuda.state().expect("a state"), 1, "x").expect("written");
        let (state, epochs) = checkpoint::read(&path, "x").expect("read");
        assert_eq!((epochs, state.steps), (1, 2));
        cpu.restore(&state).expect("restored");
        let (a, b) = (pass(&mut cuda, &c, &p, &[], 1, 2), pass(&mut cpu, &c, &p, &[], 1, 2));
        assert!(difference(&[a[1].losses.total], &[b[1].losses.total], 1.0) <= LOSS);
        close("gone on with", &cuda.state().expect("a state"), &cpu.state().expect("a state"));
        // And back.
        cuda.restore(&cpu.state().expect("a state")).expect("restored");
        assert_eq!(cuda.state().expect("a state"), cpu.state().expect("a state"));
    });
}

#[test]
fn a_course_on_the_device_is_that_of_the_cpu() {
    Place::ALL.into_iter().for_each(|place| {
        let (c, p) = (config(Architecture::default(), true, Optimizer::Adam), pictures(12, 8, 8));
        let c = RunConfig { every: 1, ..c };
        let test = TestSet { clean: pictures(10, 8, 8), triggered: pictures(5, 8, 8), target: 1 };
        let mut cpu = oracle(&c, &p);
        let Some(mut cuda) = there(place, &c, &mut cpu, F32) else { return };
        let homes = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
        let [ours, theirs] = homes.each_ref().map(|h| RunDir { path: h.path().to_owned() });
        let course = |dir| Course { config: &c, pictures: &p, forget: &[], clean: &[], dir, fingerprint: "x" };
        let a = course(&ours).run(&mut cuda, 0, &test, &mut |_| {}).expect("a course");
        let b = course(&theirs).run(&mut cpu, 0, &test, &mut |_| {}).expect("a course");
        assert_eq!(a, b);
        let lines = [&ours, &theirs].map(|d| d.metrics().expect("metrics"));
        for (a, b) in lines[0].iter().zip(&lines[1]) {
            assert_eq!((a.epoch, a.acc, a.asr), (b.epoch, b.acc, b.asr));
            assert!(difference(&[a.losses.total], &[b.losses.total], 1.0) <= LOSS);
        }
        assert_eq!((lines[0].len(), lines[1].len()), (2, 2));
        // Kept in tenths.
        let fit = [&ours, &theirs]
            .map(|d| History::read(&d.file("fitting.npy"), p.len(), 2).expect("fitting").log_odds(0..2).0);
        assert!(fit[0].iter().zip(&fit[1]).all(|(a, b)| (a - b).abs() <= 0.1));
        assert_eq!(course(&ours).resume(&mut cpu).expect("a checkpoint"), 2);
    });
}

#[test]
fn what_the_device_does_not_run_is_refused() {
    Place::ALL.into_iter().for_each(|place| {
        let p = pictures(8, 8, 8);
        let c = config(Architecture::default(), true, Optimizer::Sgd);
        let mut cpu = oracle(&c, &p);
        let Some(mut cuda) = there(place, &c, &mut cpu, F32) else { return };
        let other = cuda.hold(&c, &pictures(8, 12, 8)).expect_err("refused").to_string();
        assert!(other.contains("pictures of another course"), "{other}");
        let state = State { steps: 1, ..State::default() };
        assert!(cuda.restore(&state).expect_err("refused").to_string().contains("is missing"));
        let other = RunConfig { batch: 4, ..c };
        let whole = Pass { config: &other, pictures: &p, forget: &[], epoch: 0, rate: 0.1 };
        assert!(cuda.pass(&whole, &[0, 1, 2, 3], &mut |_, _| true).is_err(), "nothing is held");
    });
}
