//! Quantised nets against real arithmetic: every operation by itself, and whole nets.

use super::lower::{finish, lower};
use super::observe::on_sums;
use super::range::{Histogram, covering};
use super::*;
use crate::kernels::simd::Simd;
use crate::net::int8::build::Int8Builder;
use crate::net::int8::{Finish, Int8Op, MAX_BIAS, Quant, ScalarInt8};
use crate::net::tests::{Dag, Dice, cases};
use crate::net::{Activation, Net, NetBuilder, OwnedNet, Place, Slot, Window};
use crate::session::Session;
use crate::shape::Shape;
use proptest::prelude::*;
use std::string::ToString;
use std::vec;
use std::vec::Vec;

fn kernels() -> Simd {
    Simd::new(1)
}

/// Pictures of 0..=1.
fn pictures(dice: &mut Dice, shape: Shape, n: usize) -> Vec<f32> {
    dice.floats(n * shape.len()).iter().map(|v| (v + 1.0) / 2.0).collect()
}

/// A random net; its output is the last value.
fn random_net(seed: u64, ops: usize) -> OwnedNet {
    let dag = Dag::random(seed, ops);
    let (last, ..) = *dag.values.last().unwrap();
    dag.builder.finish(last).unwrap()
}

/// The value of every operation of a net for one picture; the picture itself is value 0.
fn trace(net: &Int8Builder, picture: &[i8]) -> Vec<Vec<i8>> {
    let mut values = vec![picture.to_vec()];
    for n in 1..=net.ops().len() {
        let part = net.first(n).finish().unwrap();
        let part = part.as_net();
        let (mut arena, mut y) = (vec![99; part.arena_len()], vec![99; part.output().len()]);
        part.run(&mut ScalarInt8, picture, &mut arena, &mut y).unwrap();
        values.push(y);
    }
    values
}

/// What an 8-bit operation is to compute, in real numbers: inputs and weights dequantised, nothing rounded.
fn real(net: &Int8Builder, op: &Int8Op, values: &[Vec<i8>]) -> Vec<f64> {
    let input = |slot: Slot| {
        let Place::Arena(n) = slot.place else { panic!("a value of the builder") };
        let quant = net.value(n).1;
        let x: Vec<f64> = values[n as usize].iter().map(|&q| f64::from(quant.dequantise(q))).collect();
        (x, quant, slot.shape)
    };
    let Place::Arena(n) = op.output().place else { panic!("a value of the builder") };
    let to = net.value(n).1;
    let (shape, c) = (op.output().shape, op.output().shape.c as usize);
    let (first, second) = op.inputs();
    let (x, from, s) = input(first);
    // A real weight and a real bias from what is stored.
    let rows = |terms: usize| {
        let [Some(weight), Some(records)] = op.spans() else { panic!("an operation with weights") };
        let (weights, records) = net.numbers(weight, records);
        move |o: usize| {
            let [bias, multiplier, shift] = records[o];
            let unit = f64::from(multiplier) / (32.0 + f64::from(shift)).exp2() * f64::from(to.scale);
            let row: Vec<f64> =
                weights[o * terms..][..terms].iter().map(|&w| f64::from(w) * unit / f64::from(from.scale)).collect();
            let zeros: f64 = weights[o * terms..][..terms].iter().map(|&w| f64::from(w) * f64::from(from.zero)).sum();
            (row, (f64::from(bias) + zeros) * unit)
        }
    };
    let taps = |window: Window, pixel: usize| -> Vec<Option<usize>> {
        let (row, column) = (pixel / shape.w as usize, pixel % shape.w as usize);
        let cells = (0..window.kernel[0]).flat_map(|ky| (0..window.kernel[1]).map(move |kx| (ky, kx)));
        cells
            .map(|(ky, kx)| {
                let i = row as i64 * i64::from(window.stride[0]) + i64::from(ky) - i64::from(window.pad[0]);
                let j = column as i64 * i64::from(window.stride[1]) + i64::from(kx) - i64::from(window.pad[1]);
                let inside = i >= 0 && j >= 0 && i < i64::from(s.h) && j < i64::from(s.w);
                inside.then(|| (i * i64::from(s.w) + j) as usize)
            })
            .collect()
    };
    let each = |of: &dyn Fn(usize, usize) -> f64| -> Vec<f64> { (0..shape.len()).map(|i| of(i / c, i % c)).collect() };
    let mean = |of: Vec<f64>, count: usize| of.iter().sum::<f64>() / count as f64;
    match *op {
        Int8Op::Conv { window, groups, .. } => {
            let depth = (s.c / groups) as usize;
            let cells = (window.kernel[0] * window.kernel[1]) as usize;
            let row = rows(cells * depth);
            each(&|pixel, o| {
                let (weights, bias) = row(o);
                let group = o / (c / groups as usize) * depth;
                let products = taps(window, pixel).into_iter().enumerate().flat_map(|(tap, at)| {
                    (0..depth).map(move |i| (at.map(|at| at * s.c as usize + group + i), tap * depth + i))
                });
                bias + products.map(|(at, w)| at.map_or(0.0, |at| x[at]) * weights[w]).sum::<f64>()
            })
        }
        Int8Op::Linear { .. } => {
            let row = rows(x.len());
            each(&|_, o| {
                let (weights, bias) = row(o);
                bias + x.iter().zip(&weights).map(|(x, w)| x * w).sum::<f64>()
            })
        }
        Int8Op::Affine { .. } => {
            let row = rows(1);
            each(&|pixel, o| {
                let (weights, bias) = row(o);
                bias + x[pixel * c + o] * weights[0]
            })
        }
        Int8Op::Add { .. } => {
            let (b, ..) = input(second.unwrap());
            x.iter().zip(&b).map(|(a, b)| a + b).collect()
        }
        Int8Op::Mul { .. } => {
            let (b, ..) = input(second.unwrap());
            x.iter().zip(b.iter().cycle()).map(|(a, b)| a * b).collect()
        }
        Int8Op::Concat { .. } => {
            let (b, _, sb) = input(second.unwrap());
            let (ca, cb) = (s.c as usize, sb.c as usize);
            each(&|pixel, o| if o < ca { x[pixel * ca + o] } else { b[pixel * cb + o - ca] })
        }
        Int8Op::MaxPool { window, .. } => {
            each(&|pixel, o| taps(window, pixel).into_iter().flatten().map(|at| x[at * c + o]).fold(f64::MIN, f64::max))
        }
        Int8Op::AvgPool { window, count_pad, .. } => each(&|pixel, o| {
            let all = taps(window, pixel);
            let inside: Vec<f64> = all.iter().flatten().map(|at| x[at * c + o]).collect();
            let count = if count_pad { all.len() } else { inside.len() };
            mean(inside, count)
        }),
        Int8Op::GlobalAvgPool { .. } => {
            each(&|_, o| mean(x.iter().skip(o).step_by(c).copied().collect(), (s.h * s.w) as usize))
        }
        Int8Op::Table { .. } => x,
    }
}

/// What an operation may be off beside its rounding, in steps of its output: an addition's factors are whole numbers, of at most 20
/// bits, so that a value of far smaller steps than the other's is added by a coarse one.
fn coarseness(net: &Int8Builder, op: &Int8Op, to: Quant) -> f64 {
    let Int8Op::Add { a, b, factors, rescale, .. } = *op else { return 0.0 };
    let unit = f64::from(rescale.multiplier) / (32.0 + f64::from(rescale.shift)).exp2();
    let off = |(slot, factor): (Slot, i32)| {
        let Place::Arena(n) = slot.place else { panic!("a value of the builder") };
        255.0 * (f64::from(net.value(n).1.scale) / f64::from(to.scale) - f64::from(factor) * unit).abs()
    };
    [(a, factors[0]), (b, factors[1])].map(off).iter().sum()
}

/// The activation each 8-bit operation ends in.
fn activations(net: &Net<'_>, outputs: &[u32], n: usize) -> Vec<Activation> {
    let mut acts = vec![Activation::None; n];
    for (op, &value) in net.ops().zip(outputs) {
        acts[value as usize - 1] = op.activation().unwrap_or(Activation::None);
    }
    acts
}

proptest! {
    #![proptest_config(cases(600))]

    /// Dequantise, compute, quantise: the 8-bit answer is within one step, for every operation of random nets, but for what
    /// [`coarseness`] allows where two values of an addition have steps of very different sizes.
    #[test]
    fn every_operation_is_within_one_step_of_real_arithmetic(seed: u64, ops in 1usize..14) {
        let mut dice = Dice(!seed);
        let net = random_net(seed, ops);
        let net = net.as_net();
        let calibration = calibrate(&net, &kernels(), &pictures(&mut dice, net.input(), 4)).unwrap();
        let (small, outputs) = lower(&net, &calibration).unwrap();
        let acts = activations(&net, &outputs, small.ops().len());
        // Any bytes, not only those like the calibration pictures.
        let picture: Vec<i8> = (0..net.input().len()).map(|_| dice.below(256) as u8 as i8).collect();
        let values = trace(&small, &picture);
        for ((n, op), act) in small.ops().iter().enumerate().zip(acts) {
            let to = small.value(n as u32 + 1).1;
            let most = 1.0 + coarseness(&small, op, to);
            for (i, (wanted, &got)) in real(&small, op, &values).into_iter().zip(&values[n + 1]).enumerate() {
                let wanted = f64::from(act.apply(wanted as f32)) / f64::from(to.scale) + f64::from(to.zero);
                let wanted = wanted.clamp(-128.0, 127.0);
                prop_assert!((wanted - f64::from(got)).abs() <= most, "{op:?} {act:?} [{i}]: {got}, not {wanted}");
            }
        }
    }

    /// Stored weights and biases are the real ones, to half a step of their channel; the step is the largest weight's 127th,
    /// or what keeps the bias within half of the sums' range.
    #[test]
    fn weights_keep_seven_bits_a_channel(seed: u64, cout in 1u32..6, loud in 0usize..3) {
        let mut dice = Dice(seed);
        let (shape, window) = (Shape::new(3, 3, 2), Window { kernel: [3, 3], stride: [1, 1], pad: [1; 4] });
        let scales: Vec<f32> = (0..cout).map(|_| [1e-4, 1.0, 300.0][dice.below(3)]).collect();
        let weight: Vec<f32> = dice.floats(18 * cout as usize).iter().enumerate().map(|(i, w)| w * scales[i % cout as usize]).collect();
        let bias: Vec<f32> = dice.floats(cout as usize).iter().map(|b| b * [0.1, 1.0, 100.0][loud]).collect();
        let mut b = NetBuilder::new();
        let x = b.input(shape);
        let y = b.conv(x, window, 1, weight.clone(), Some(bias.clone()), Activation::None).unwrap();
        let net = b.finish(y).unwrap();
        let seen = calibrate(&net.as_net(), &kernels(), &pictures(&mut dice, shape, 4)).unwrap();
        let (small, _) = lower(&net.as_net(), &seen).unwrap();
        let Int8Op::Conv { weight: span, channels, .. } = small.ops()[0] else { panic!("a convolution") };
        let (weights, records) = small.numbers(span, channels);
        let to = small.value(1).1;
        for o in 0..cout as usize {
            let unit = f64::from(records[o][1]) / (32.0 + f64::from(records[o][2])).exp2() * f64::from(to.scale);
            let scale = unit / f64::from(Quant::PICTURE.scale);
            // The bias, without what the input's zero point adds to the sum.
            let zeros: f64 = weights[o * 18..][..18].iter().map(|&w| f64::from(w) * -128.0).sum();
            let off = (f64::from(records[o][0]) + zeros) * unit - f64::from(bias[o]);
            prop_assert!(off.abs() <= 0.5001 * unit + 1e-6 * f64::from(bias[o].abs()), "{off} {unit}");
            let largest = (0..18).map(|i| f64::from(weight[i * cout as usize + o].abs())).fold(0.0, f64::max);
            let fitting = 2.0 * f64::from(bias[o].abs()) / f64::from(MAX_BIAS - 1) / f64::from(Quant::PICTURE.scale);
            prop_assert!((scale / fitting.max(largest / 127.0) - 1.0).abs() < 1e-3, "{scale} {largest} {fitting}");
            for i in 0..18 {
                let off = f64::from(weights[o * 18 + i]) * scale - f64::from(weight[i * cout as usize + o]);
                prop_assert!(off.abs() <= 0.5001 * scale, "{off} {scale}");
            }
        }
    }
}

/// Features of both nets for the same pictures: energy over error, in decibels.
fn signal_to_error(net: &OwnedNet, seen: &[f32], x: &[f32]) -> f64 {
    let net = net.as_net();
    let small = quantise(&net, &calibrate(&net, &kernels(), seen).unwrap()).unwrap();
    let mut features = [0, 1].map(|_| vec![0.0; x.len() / net.input().len() * net.output().len()]);
    Session::of_net(net, kernels()).features(x, &mut features[0]).unwrap();
    Session::of_stem(small.as_net(), kernels()).features(x, &mut features[1]).unwrap();
    let (mut signal, mut error) = (1e-12, 1e-12);
    for (&a, &b) in features[0].iter().zip(&features[1]) {
        signal += f64::from(a).powi(2);
        error += f64::from(a - b).powi(2);
    }
    10.0 * (signal / error).log10()
}

/// Nets of up to twelve operations drawn at random, products and tables among them; a constant output counts as well as any.
#[test]
fn random_nets_come_near_their_f32_form() {
    let mut found: Vec<f64> = (0..400)
        .map(|seed| {
            let mut dice = Dice(!seed);
            let net = random_net(seed, 1 + seed as usize % 12);
            let input = net.as_net().input();
            signal_to_error(&net, &pictures(&mut dice, input, 64), &pictures(&mut dice, input, 64))
        })
        .collect();
    found.sort_by(f64::total_cmp);
    assert!(found[200] > 33.0 && found[20] > 20.0 && found[4] > 10.0, "{:?}", &found[..201]);
}

/// A pre-activation residual net like a WideResNet's stem: norm and leaky ReLU before convolutions, sums after them.
#[test]
fn a_residual_net_comes_near_its_f32_form() {
    let mut dice = Dice(3);
    let mut b = NetBuilder::new();
    let square = Window { kernel: [3, 3], stride: [1, 1], pad: [1; 4] };
    let mut weight = |cin: usize, cout: usize| -> Vec<f32> {
        let size = (2.0 / (9 * cin) as f32).sqrt() * 1.7;
        dice.floats(9 * cin * cout).iter().map(|w| w * size).collect()
    };
    let x = b.input(Shape::new(12, 12, 3));
    let mut y = b.conv(x, square, 1, weight(3, 16), None, Activation::None).unwrap();
    for _ in 0..3 {
        let (scale, shift) = (vec![0.9; 16], (0..16).map(|c| 0.05 * c as f32 - 0.4).collect());
        let z = b.affine(y, Some(scale), Some(shift), Activation::Leaky(0.1)).unwrap();
        let z = b.conv(z, square, 1, weight(16, 16), Some(vec![0.1; 16]), Activation::Leaky(0.1)).unwrap();
        let z = b.conv(z, square, 1, weight(16, 16), None, Activation::None).unwrap();
        y = b.add(y, z, Activation::None).unwrap();
    }
    let net = b.finish(y).unwrap();
    let mut dice = Dice(4);
    let input = net.as_net().input();
    let found = signal_to_error(&net, &pictures(&mut dice, input, 64), &pictures(&mut dice, input, 64));
    assert!(found > 30.0, "{found}");
}

#[test]
fn what_has_no_int8_form_is_refused_by_name() {
    let refused = |net: OwnedNet, pictures: &[f32], words: &[&str]| {
        let net = net.as_net();
        let error = calibrate(&net, &kernels(), pictures).and_then(|seen| quantise(&net, &seen)).unwrap_err();
        assert!(words.iter().all(|word| error.to_string().contains(word)), "{error}");
    };
    let mut b = NetBuilder::new();
    let x = b.input(Shape::new(300, 300, 1));
    let y = b.linear(x, vec![1e-3; 90_000], None, Activation::None).unwrap();
    let linear = b.clone().finish(y).unwrap();
    refused(linear, &vec![0.5; 90_000], &["linear (operation 0)", "90000 elements", "65536"]);
    let y = b.global_avg_pool(x).unwrap();
    refused(b.finish(y).unwrap(), &vec![0.5; 90_000], &["global_avg_pool (operation 0)", "90000 elements"]);

    let mut b = NetBuilder::new();
    let x = b.input(Shape::new(1, 1, 1));
    let y = b.affine(x, Some(vec![3e38]), None, Activation::Relu).unwrap();
    let y = b.mul(y, y, Activation::None).unwrap();
    let net = b.finish(y).unwrap();
    refused(net.clone(), &[1.0], &["mul (operation 1)", "not finite"]);
    refused(net.clone(), &[], &["no picture"]);
    let mut b = NetBuilder::new();
    let x = b.input(Shape::new(1, 1, 2));
    let y = b.activation(x, Activation::Relu).unwrap();
    refused(b.finish(y).unwrap(), &[1.0], &["length of 1 where 2"]);
}

#[test]
fn what_is_always_zero_stays_zero() {
    let mut b = NetBuilder::new();
    let x = b.input(Shape::new(2, 2, 1));
    let window = Window { kernel: [1, 1], stride: [1, 1], pad: [0; 4] };
    let y = b.conv(x, window, 1, vec![0.0, -1.0], None, Activation::Relu).unwrap();
    let z = b.add(y, y, Activation::Sigmoid).unwrap();
    let y = b.concat(y, z).unwrap();
    let net = b.finish(y).unwrap();
    let seen = calibrate(&net.as_net(), &kernels(), &[0.1, 0.5, 0.9, 1.0]).unwrap();
    let small = quantise(&net.as_net(), &seen).unwrap();
    let mut y = [9.0; 16];
    Session::of_stem(small.as_net(), kernels()).features(&[0.1, 0.5, 0.9, 1.0], &mut y).unwrap();
    for pixel in y.chunks(4) {
        assert!(pixel[..2] == [0.0, 0.0] && pixel[2..].iter().all(|v| (v - 0.5).abs() < 0.01), "{y:?}");
    }
}

#[test]
fn ranges_hold_zero_and_leave_lone_outliers_out() {
    let range = |x: &[f32]| {
        let mut histogram = Histogram::default();
        histogram.note(x);
        histogram.open();
        histogram.note(x);
        histogram.range()
    };
    assert_eq!(range(&[]), (0.0, 0.0));
    let (low, high) = range(&[1.0, 2.0, 3.0]);
    assert!(low == 0.0 && (2.9..=3.0).contains(&high), "{low} {high}");
    let mut x: Vec<f32> = (0..100_000).map(|i| (i % 1000) as f32 / 1000.0 - 0.5).collect();
    assert!(range(&x).0 > -0.51 && range(&x).1 > 0.45, "{:?}", range(&x));
    x.push(40.0);
    // The least of (40 - h)^2 + n (h / 255)^2 / 12 lies at h = 40 / (1 + n / (12 * 255^2)).
    let (n, found) = (100_000.0, range(&x).1);
    assert!((found - 40.0 / (1.0 + n / (12.0 * 255.0 * 255.0))).abs() < 0.5, "{found}");
    let quant = covering((-1.0, 2.0), 0.0);
    assert_eq!((quant.zero, quant.quantise(0.0), quant.dequantise(quant.zero)), (-43, -43, 0.0));
    assert_eq!((quant.quantise(-1.0), quant.quantise(2.0)), (-128, 127));
    assert_eq!(covering((0.0, 2.55), 0.0).zero, -128);
    assert_eq!(covering((0.0, 0.0), 0.0).scale, 1.0);
    assert_eq!(covering((-1.0, 1.0), 0.5).scale, 0.5);
}

#[test]
fn activations_on_sums_are_clamps_and_slopes() {
    let to = Quant { scale: 0.1, zero: -100 };
    let plain = Finish { slope: 1 << 16, zero: -100, low: -128, high: 127 };
    assert_eq!(finish(Activation::None, to), plain);
    assert_eq!(finish(Activation::Relu, to), Finish { low: -100, ..plain });
    assert_eq!(finish(Activation::Relu6, to), Finish { low: -100, high: -40, ..plain });
    assert_eq!(finish(Activation::Leaky(0.1), to), Finish { slope: 6554, ..plain });
    assert_eq!(finish(Activation::Leaky(1.0), to), plain);
}

#[test]
fn few_activations_are_tables() {
    for (act, table) in [
        (Activation::None, false),
        (Activation::Relu, false),
        (Activation::Relu6, false),
        (Activation::Leaky(0.1), false),
        (Activation::Leaky(-0.1), true),
        (Activation::Leaky(2.0), true),
        (Activation::HardSwish, true),
        (Activation::HardSigmoid, true),
        (Activation::Sigmoid, true),
    ] {
        assert_eq!(on_sums(act), !table, "{act:?}");
        let mut b = NetBuilder::new();
        let x = b.input(Shape::new(1, 1, 2));
        let y = b.affine(x, Some(vec![3.0, -2.0]), Some(vec![-1.0, 0.5]), act).unwrap();
        let net = b.finish(y).unwrap();
        let seen = calibrate(&net.as_net(), &kernels(), &[0.0, 0.2, 0.5, 0.7, 1.0, 1.0]).unwrap();
        let (small, _) = lower(&net.as_net(), &seen).unwrap();
        let kinds: Vec<&str> = small.ops().iter().map(Int8Op::name).collect();
        assert_eq!(kinds, if table { &["affine", "table"][..] } else { &["affine"] }, "{act:?}");
    }
}
