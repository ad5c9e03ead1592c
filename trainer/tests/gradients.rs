//! Gradients against finite differences: every kind of layer through the tape, both losses, a whole network. The loss of a layer is
//! a random linear function of its output, summed in `f64`; differences are central.

use dfdx::prelude::*;
use stemguard_runtime::kernels::ConvShape;
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::layers::basic::BasicShape;
use stemguard_runtime::layers::front::FrontShape;
use stemguard_runtime::layers::pool_linear::PoolLinearShape;
use stemguard_runtime::layers::unit::UnitShape;
use stemguard_runtime::rng::Rng;
use stemguard_runtime::shape::Shape;
use stemguard_trainer::engine::{CpuEngine, Engine, Lesson, Objective, Optimizer};
use stemguard_trainer::model::{Architecture, TrapNet};
use stemguard_trainer::nn::layer::{Basic, Conv, ConvNorm, Front, Norm, PoolLinear, Squash};
use stemguard_trainer::nn::loss::{self, Reconstruction};
use stemguard_trainer::nn::{Batch, Buffers, Layer, Param, Sequence, Visit};

/// Relative to the largest entry of a tensor's gradient.
const TOLERANCE: f64 = 2e-2;
/// Entries smaller than this share of the largest gradient of all tensors count as this large: a bias in front of a batch norm
/// has no gradient, and its difference is rounding.
const FLOOR: f64 = 1e-2;
/// Half the distance of a difference. Where a kink of a ReLU or a max pool shows within it (the loss bends), a shorter one is taken.
const STEP: f32 = 5e-4;
/// How much longer it is where a tensor has no gradient: nothing bends there, and short steps magnify rounding.
const FLAT: f32 = 16.0;
/// Steps tried, each a quarter of the one before.
const TRIES: usize = 3;
/// Largest share of the entries looked at that may have a kink within every step.
const KINKS: f64 = 0.02;
/// Entries looked at, drawn at random, where a tensor has more.
const ENTRIES: usize = 40;
/// The same for a whole tensor.
const WHOLE_STEP: f64 = 2e-3;
/// Pictures in a batch.
const BATCH: usize = 4;

fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed, 11);
    (0..len).map(|_| 2.0 * rng.uniform() - 1.0).collect()
}

/// Draws every parameter anew: gamma around 1, the rest around 0.
struct Draw(u64);

impl Visit for Draw {
    fn param(&mut self, name: &str, p: &mut Param) {
        self.0 += 1;
        let (middle, spread) = match name {
            n if n.ends_with(".gamma") => (1.0, 0.3),
            n if n.ends_with(".weight") => (0.0, 0.4),
            _ => (0.0, 0.3),
        };
        let values: Vec<f32> = noise(p.shape().0, self.0).iter().map(|v| middle + spread * v).collect();
        p.copy_from(&values);
    }
    fn state(&mut self, _: &str, _: &mut Vec<f32>) {}
}

/// The gradient of every parameter, in the order of the visit.
struct Read<'a>(&'a Gradients<f32, Cpu>, Vec<(String, Vec<f32>)>);

impl Visit for Read<'_> {
    fn param(&mut self, name: &str, p: &mut Param) {
        self.1.push((name.to_owned(), self.0.get(p).as_vec()));
    }
    fn state(&mut self, _: &str, _: &mut Vec<f32>) {}
}

/// Moves one entry of one parameter, both by number.
struct Nudge {
    param: usize,
    entry: usize,
    by: f32,
}

impl Visit for Nudge {
    fn param(&mut self, _: &str, p: &mut Param) {
        if self.param == 0 {
            let mut values = p.as_vec();
            values[self.entry] += self.by;
            p.copy_from(&values);
        }
        self.param = self.param.wrapping_sub(1);
    }
    fn state(&mut self, _: &str, _: &mut Vec<f32>) {}
}

/// Compares gradients with differences of `loss(tensor, entry, step)`, a random choice of entries each.
fn compare(what: &str, grads: &[(String, Vec<f32>)], step: f32, mut loss: impl FnMut(usize, usize, f32) -> f64) {
    let largest = |g: &[f32]| g.iter().fold(0.0f64, |m, &v| m.max(f64::from(v.abs())));
    let overall = grads.iter().map(|(_, g)| largest(g)).fold(0.0, f64::max);
    assert!(overall > 0.0 && overall.is_finite(), "{what}: no gradient");
    let (mut worst, mut seen, mut kinks) = (0.0f64, 0, 0);
    let middle = loss(0, 0, 0.0);
    for (number, (name, grad)) in grads.iter().enumerate() {
        let top = largest(grad).max(FLOOR * overall);
        let step = if largest(grad) < FLOOR * overall { FLAT * step } else { step };
        let mut entries: Vec<usize> = (0..grad.len()).collect();
        Rng::new(number as u64, 5).shuffle(&mut entries);
        for &i in entries.iter().take(ENTRIES) {
            seen += 1;
            let mut step = step;
            let mut agrees = false;
            for _ in 0..TRIES {
                let (up, down, width) = (loss(number, i, step), loss(number, i, -step), f64::from(2.0 * step));
                let difference = (up - down) / width;
                let error = (difference - f64::from(grad[i])).abs() / top;
                agrees = error <= TOLERANCE;
                if agrees {
                    worst = worst.max(error);
                    break;
                }
                // One kink within the step makes the difference wrong by at most this much; without one it is far smaller.
                let bend = (up - 2.0 * middle + down).abs() / width / top;
                assert!(
                    bend >= 0.5 * error,
                    "{what}, {name}[{i}]: {} where differences give {difference}; largest {top}",
                    grad[i]
                );
                step *= 0.25;
            }
            kinks += usize::from(!agrees);
        }
    }
    assert!(kinks as f64 <= KINKS * seen as f64, "{what}: kinks at {kinks} of {seen} entries");
    eprintln!("{what}: {worst:.1e} of {TOLERANCE:.0e}, kinks at {kinks} of {seen} entries");
}

/// Checks a layer with respect to its input and its parameters.
fn layer(what: &str, layer: Layer) {
    let dev = Cpu::default();
    let (k, buffers) = (Simd::new(1), Buffers::default());
    let len = layer.input_len();
    let mut net = Sequence { names: vec!["layer".into()], layers: vec![layer], input_gradient: true };
    net.visit("test", &mut Draw(100));
    let (x, out) = (noise(BATCH * len, 1), net.output().len());
    let r = noise(BATCH * out, 2);

    let input: Batch = dev.tensor_from_vec(x.clone(), (BATCH, len));
    let y = net.forward(&k, &buffers, input.leaky_trace()).expect("forward");
    let weights: Batch = dev.tensor_from_vec(r.clone(), (BATCH, out));
    let grads = (y * weights).sum::<Rank0, _>().backward();
    let mut read = Read(&grads, Vec::new());
    net.visit("test", &mut read);
    let mut all = read.1;
    all.push(("input".into(), grads.get(&input).as_vec()));
    let params = all.len() - 1;

    compare(what, &all, STEP, |tensor, entry, by| {
        let mut x = x.clone();
        if tensor == params {
            x[entry] += by;
        } else {
            net.visit("test", &mut Nudge { param: tensor, entry, by });
        }
        let y = net.forward(&k, &buffers, dev.tensor_from_vec(x, (BATCH, len))).expect("forward").as_vec();
        if tensor < params {
            net.visit("test", &mut Nudge { param: tensor, entry, by: -by });
        }
        y.iter().zip(&r).map(|(&y, &r)| f64::from(y) * f64::from(r)).sum()
    });
}

fn square(h: u32, w: u32, c: u32, cout: u32, k: u32, s: u32, p: u32) -> ConvShape {
    ConvShape::square(Shape::new(h, w, c), cout, k, s, p).expect("fits")
}

fn conv(s: &ConvShape, outputs: u32) -> Conv {
    Conv::new(&Cpu::default(), vec![0.0; s.weights()], vec![0.0; outputs as usize])
}

fn conv_norm(s: &ConvShape) -> ConvNorm {
    ConvNorm::new(&Cpu::default(), vec![0.0; s.weights()], s.y.c as usize)
}

fn unit(x: Shape, cout: u32, stride: u32, first_group: bool) -> Layer {
    let (shape, dev) = (UnitShape::new(x, cout, stride, first_group).expect("fits"), Cpu::default());
    Layer::Unit {
        norm1: shape.preact.then(|| Norm::new(&dev, x.c as usize)),
        conv1: conv(&shape.conv1, cout),
        norm2: Norm::new(&dev, cout as usize),
        conv2: conv(&shape.conv2, cout),
        short: shape.short.as_ref().map(|s| conv(s, cout)),
        shape,
    }
}

fn basic(x: Shape, cout: u32, stride: u32) -> Layer {
    let shape = BasicShape::new(x, cout, stride).expect("fits");
    Layer::Basic(Basic {
        first: conv_norm(&shape.conv1),
        second: conv_norm(&shape.conv2),
        short: shape.short.as_ref().map(conv_norm),
        shape,
    })
}

fn front(shape: FrontShape) -> Layer {
    Layer::Front(Front { conv: conv_norm(&shape.conv), shape })
}

fn deconv(squash: Squash) -> Layer {
    let shape = square(6, 8, 3, 5, 4, 2, 1);
    Layer::Deconv { conv: conv(&shape, shape.x.c), shape, squash }
}

#[test]
fn convolution() {
    let shape = square(6, 5, 3, 4, 3, 1, 1);
    layer("convolution", Layer::Conv { conv: conv(&shape, 4), shape });
}

#[test]
fn units() {
    layer("unit, identity", unit(Shape::new(5, 6, 8), 8, 1, false));
    layer("unit, width changes, raw", unit(Shape::new(6, 6, 4), 8, 2, false));
    layer("unit, width changes, preact", unit(Shape::new(6, 5, 4), 8, 1, true));
}

#[test]
fn tail() {
    let dev = Cpu::default();
    let Conv { weight, bias } = Conv::new(&dev, vec![0.0; 8 * 5], vec![0.0; 5]);
    layer("tail", Layer::Tail { shape: Shape::new(4, 3, 8), norm: Norm::new(&dev, 8), weight, bias });
}

#[test]
fn deconvolutions() {
    layer("deconvolution, ReLU", deconv(Squash::Relu));
    layer("deconvolution, sigmoid", deconv(Squash::Sigmoid));
    let shape = square(6, 5, 3, 4, 3, 1, 1);
    layer("deconvolution, stride 1", Layer::Deconv { conv: conv(&shape, 3), shape, squash: Squash::Sigmoid });
}

#[test]
fn basic_blocks() {
    layer("basic block", basic(Shape::new(6, 5, 8), 8, 1));
    layer("basic block, shortcut", basic(Shape::new(6, 6, 4), 8, 2));
    layer("basic block, shortcut, stride 1", basic(Shape::new(5, 4, 4), 6, 1));
}

#[test]
fn fronts() {
    let (conv, pooled) = (square(8, 7, 3, 6, 3, 1, 1), square(12, 14, 3, 6, 7, 2, 3));
    layer("front", front(FrontShape { conv, pool: None }));
    let pool = square(pooled.y.h, pooled.y.w, 6, 6, 3, 2, 1);
    layer("front, pool", front(FrontShape { conv: pooled, pool: Some(pool) }));
}

#[test]
fn pool_linear() {
    let shape = PoolLinearShape::new(Shape::new(3, 4, 6), 5).expect("fits");
    layer("pool and linear", Layer::PoolLinear(PoolLinear { linear: conv(&shape.linear, 5), shape }));
}

#[test]
fn losses() {
    let dev = Cpu::default();
    let k = Simd::new(1);
    let (s, classes) = (Shape::new(4, 5, 3), 6);
    let (r, x) = (noise(BATCH * s.len(), 1), noise(BATCH * s.len(), 2));
    let weights = Reconstruction { mse: 10.0, tv: 1.0 };
    let run = |r: &[f32]| -> Batch { dev.tensor_from_vec(r.to_vec(), (BATCH, s.len())) };
    let input = run(&r);
    let (total, _) = loss::reconstruction(&k, s, input.leaky_trace(), &x, weights).expect("loss");
    let grads = vec![("reconstruction".to_owned(), total.backward().get(&input).as_vec())];
    // Quadratic: a wide step has no error of its own.
    compare("reconstruction loss", &grads, 0.1, |_, entry, by| {
        let mut r = r.clone();
        r[entry] += by;
        let (_, parts) = loss::reconstruction(&k, s, run(&r), &x, weights).expect("loss");
        f64::from(weights.mse) * f64::from(parts.mse) + f64::from(weights.tv) * f64::from(parts.tv)
    });

    let logits: Vec<f32> = noise(BATCH * classes, 3).iter().map(|v| 3.0 * v).collect();
    let labels: Vec<u32> = (0..BATCH as u32).map(|i| (i * 5) % classes as u32).collect();
    let run = |l: &[f32]| -> Batch { dev.tensor_from_vec(l.to_vec(), (BATCH, classes)) };
    let some: Vec<bool> = (0..BATCH).map(|i| i % 2 == 1).collect();
    for (name, forget) in [("cross-entropy", vec![]), ("unlearning", some), ("all unlearned", vec![true; BATCH])] {
        let input = run(&logits);
        let total = loss::classification(input.leaky_trace(), &labels, &forget).expect("loss");
        let grads = vec![("logits".to_owned(), total.backward().get(&input).as_vec())];
        compare(name, &grads, 0.05, |_, entry, by| {
            let mut l = logits.clone();
            l[entry] += by;
            f64::from(loss::classification(run(&l), &labels, &forget).expect("loss").as_vec()[0])
        });
    }
}

/// Without anything to forget the operation of our own gives dfdx's cross-entropy, and what is forgotten is `-log(1 - p)`.
#[test]
fn unlearning_is_the_loss_it_says() {
    let dev = Cpu::default();
    let logits = [2.0f32, -1.0, 0.5, 0.1, 0.2, 3.0];
    let run = || -> Batch { dev.tensor_from_vec(logits.to_vec(), (2, 3)) };
    let value = |forget: &[bool]| loss::classification(run(), &[0, 2], forget).expect("loss").as_vec()[0];
    let p = |row: &[f32], label: usize| row[label].exp() / row.iter().map(|z| z.exp()).sum::<f32>();
    let (first, second) = (p(&logits[..3], 0), p(&logits[3..], 2));
    assert!((value(&[]) - value(&[false, false])).abs() < 1e-6);
    assert!((value(&[false, true]) - (-first.ln() - (1.0 - second + 1e-4).ln()) / 2.0).abs() < 1e-5);
}

/// Stem, head, decoder and both losses together, over the smallest WideResNet: along the gradient of each tensor as a whole, as single
/// entries of a deep network move the loss less than rounding does.
#[test]
fn whole_network() {
    let dev = Cpu::default();
    let net = TrapNet::new(Architecture::default(), Shape::new(16, 16, 3), 4, true, 3, &dev).expect("valid");
    let objective =
        Objective { reconstruction: Reconstruction { mse: 10.0, tv: 1.0 }, optimizer: Optimizer::Adam, decay: 0.0 };
    let mut engine = CpuEngine::new(net, objective, Simd::new(2), dev);
    let x: Vec<f32> = noise(2 * BATCH * 16 * 16 * 3, 1).iter().map(|v| 0.5 + 0.5 * v).collect();
    let labels = [0, 1, 2, 3, 3, 2, 1, 0];
    let (_, grads) = engine.gradients(x.clone(), Lesson::learn(&labels)).expect("gradients");
    let mut read = Read(&grads, Vec::new());
    engine.net.visit(&mut read);
    let grads = read.1;
    let before = engine.state().expect("a state");
    let mut worst = 0.0f64;
    for (name, grad) in &grads {
        let norm = grad.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        let mut loss = |by: f64| {
            let mut state = before.clone();
            let values = state.tensors.get_mut(name).expect("present");
            values.iter_mut().zip(grad).for_each(|(v, &g)| *v += (by * f64::from(g) / norm) as f32);
            engine.restore(&state).expect("same shapes");
            f64::from(engine.gradients(x.clone(), Lesson::learn(&labels)).expect("gradients").0.losses.total)
        };
        // A bias in front of a batch norm has no gradient, and nothing else is without one.
        let normed = name.ends_with(".conv1.bias") || name == "head.unit0.conv2.bias";
        assert_eq!(norm < 1e-4, normed, "{name}: {norm}");
        if normed {
            continue;
        }
        let difference = (loss(WHOLE_STEP) - loss(-WHOLE_STEP)) / (2.0 * WHOLE_STEP);
        let error = (difference - norm).abs() / norm.max(0.1);
        assert!(error <= TOLERANCE, "{name}: {norm} where differences give {difference}");
        worst = worst.max(error);
    }
    assert!(worst > 0.0, "no gradient");
    eprintln!("whole network: {worst:.1e} of {TOLERANCE:.0e}");
}
