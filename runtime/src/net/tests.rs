//! The builder and the scalar kernels against direct formulas and random nets; `check`: faults made on purpose.

mod check;

use super::*;
use crate::error::{Error, OpFault};
use crate::kernels::scalar;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use std::vec;
use std::vec::Vec;

/// Property-test cases: STEMGUARD_CASES, or `default`. They are the same on every run; PROPTEST_RNG_SEED draws others.
pub(crate) fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("STEMGUARD_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let settings = ProptestConfig::default();
    let rng_seed = match settings.rng_seed {
        RngSeed::Random => RngSeed::Fixed(0),
        asked => asked,
    };
    ProptestConfig { cases, rng_seed, failure_persistence: None, ..settings }
}

/// Numbers from a seed (splitmix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as usize % n.max(1)
    }

    fn within(&mut self, from: u32, to: u32) -> u32 {
        from + self.below((to - from + 1) as usize) as u32
    }

    pub(crate) fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.below(2001) as f32 / 1000.0 - 1.0).collect()
    }

    fn maybe(&mut self, n: usize) -> Option<Vec<f32>> {
        (self.below(2) == 0).then(|| self.floats(n))
    }

    fn act(&mut self) -> Activation {
        let all = [
            Activation::Relu,
            Activation::Relu6,
            Activation::Leaky(0.1),
            Activation::HardSwish,
            Activation::HardSigmoid,
            Activation::Sigmoid,
        ];
        // None half the time, so that there is something to fuse.
        all.get(self.below(12)).copied().unwrap_or(Activation::None)
    }

    /// A window that fits a picture of this shape.
    fn window(&mut self, x: Shape) -> Window {
        let kernel = [self.within(1, x.h.min(3)), self.within(1, x.w.min(3))];
        let stride = [self.within(1, 3), self.within(1, 3)];
        let mut pad = || [kernel[0], kernel[1]].map(|k| self.within(0, k - 1));
        let ([top, left], [bottom, right]) = (pad(), pad());
        Window { kernel, stride, pad: [top, left, bottom, right] }
    }
}

/// A random net and, beside it, every value computed in memory of its own, never reused.
pub(crate) struct Dag {
    pub(crate) builder: NetBuilder,
    pub(crate) values: Vec<(Value, Shape, Vec<f32>)>,
    pub(crate) input: Vec<f32>,
}

impl Dag {
    pub(crate) fn random(seed: u64, ops: usize) -> Self {
        let mut dice = Dice(seed);
        let shape = Shape::new(dice.within(1, 6), dice.within(1, 6), dice.within(1, 6));
        let input = dice.floats(shape.len());
        let mut builder = NetBuilder::new();
        let values = vec![(builder.input(shape), shape, input.clone())];
        let mut dag = Self { builder, values, input };
        for _ in 0..ops {
            dag.grow(&mut dice);
        }
        dag
    }

    fn grow(&mut self, dice: &mut Dice) {
        let b = &mut self.builder;
        let pick = |dice: &mut Dice, from: &[(Value, Shape, Vec<f32>)]| {
            // Mostly recent values, so that nets grow deep as well as wide.
            let n = from.len();
            from[if dice.below(3) == 0 { dice.below(n) } else { n - 1 - dice.below(n.min(3)) }].clone()
        };
        let (v, s, x) = pick(dice, &self.values);
        let act = dice.act();
        let c = s.c as usize;
        let (value, y) = match dice.below(9) {
            0 | 1 => {
                let window = dice.window(s);
                let groups = [1, 1, s.c][dice.below(3)];
                let cout = groups * dice.within(1, if groups == 1 { 6 } else { 2 });
                let [h, w] = window.output(s.h, s.w).unwrap();
                let shape = Shape::new(h, w, cout);
                let fan = (window.kernel[0] * window.kernel[1] * s.c / groups) as usize;
                let weight: Vec<f32> =
                    dice.floats(fan * cout as usize).iter().map(|w| w / (fan as f32).sqrt()).collect();
                let bias = dice.maybe(cout as usize);
                let mut y = vec![0.0; shape.len()];
                let args = ConvArgs { x: s, y: shape, window, groups, weight: &weight, bias: bias.as_deref(), act };
                scalar::conv(&args, &x, &mut y);
                (b.conv(v, window, groups, weight, bias, act).unwrap(), y)
            }
            2 => {
                let (scale, shift) = (dice.maybe(c), dice.maybe(c));
                let mut y = vec![0.0; x.len()];
                let args = AffineArgs { channels: c, scale: scale.as_deref(), shift: shift.as_deref(), act };
                scalar::affine(&args, &x, &mut y);
                (b.affine(v, scale, shift, act).unwrap(), y)
            }
            3 => {
                let Some((v2, _, x2)) = self.values.iter().rev().find(|(id, shape, _)| *shape == s && *id != v) else {
                    return;
                };
                let mut y = vec![0.0; x.len()];
                scalar::add(act, &x, x2, &mut y);
                (b.add(v, *v2, act).unwrap(), y)
            }
            4 => {
                let fits = |shape: &Shape| *shape == s || *shape == Shape::new(1, 1, s.c);
                let Some((v2, s2, x2)) = self.values.iter().rev().find(|(_, shape, _)| fits(shape)) else { return };
                let mut y = vec![0.0; x.len()];
                scalar::mul(&MulArgs { channels: c, by_channel: *s2 != s, act }, &x, x2, &mut y);
                (b.mul(v, *v2, act).unwrap(), y)
            }
            5 => {
                let fits = |shape: &Shape| shape.h == s.h && shape.w == s.w && shape.c + s.c <= 24;
                let Some((v2, s2, x2)) = self.values.iter().find(|(_, shape, _)| fits(shape)) else { return };
                let mut y = vec![0.0; x.len() + x2.len()];
                scalar::concat([c, s2.c as usize], &x, x2, &mut y);
                (b.concat(v, *v2).unwrap(), y)
            }
            6 => {
                let window = dice.window(s);
                let [h, w] = window.output(s.h, s.w).unwrap();
                let args = PoolArgs { x: s, y: Shape::new(h, w, s.c), window };
                let mut y = vec![0.0; args.y.len()];
                if dice.below(2) == 0 {
                    scalar::max_pool(&args, &x, &mut y);
                    (b.max_pool(v, window).unwrap(), y)
                } else {
                    let count_pad = dice.below(2) == 0;
                    scalar::avg_pool(&args, count_pad, &x, &mut y);
                    (b.avg_pool(v, window, count_pad).unwrap(), y)
                }
            }
            7 => {
                let mut y = vec![0.0; c];
                scalar::global_avg_pool(&x, &mut y);
                (b.global_avg_pool(v).unwrap(), y)
            }
            _ => {
                let out = dice.within(1, 8) as usize;
                let weight: Vec<f32> = dice.floats(x.len() * out).iter().map(|w| w / (x.len() as f32).sqrt()).collect();
                let bias = dice.maybe(out);
                let mut y = vec![0.0; out];
                scalar::linear(&LinearArgs { weight: &weight, bias: bias.as_deref(), act }, &x, &mut y);
                (b.linear(v, weight, bias, act).unwrap(), y)
            }
        };
        // Products may grow without bound: such a value stays unread.
        if y.iter().all(|v| v.abs() < 100.0) {
            let shape = b.shape(value).unwrap();
            assert_eq!(shape.len(), y.len());
            self.values.push((value, shape, y));
        }
    }
}

fn run(net: &OwnedNet, input: &[f32]) -> Vec<f32> {
    let net = net.as_net();
    // Memory may hold anything before a run.
    let (mut arena, mut output) = (vec![f32::NAN; net.arena_len()], vec![f32::NAN; net.output().len()]);
    net.run(&mut Scalar, input, &mut arena, &mut output).unwrap();
    output
}

fn close(ours: &[f32], theirs: &[f32]) -> bool {
    const TOLERANCE: f32 = 1e-4;
    ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(a, b)| (a - b).abs() <= TOLERANCE * (1.0 + b.abs()))
}

proptest! {
    #![proptest_config(cases(2000))]

    /// Dead code dropped, activations fused, scales folded, memory reused: nothing changes the result.
    #[test]
    fn a_random_net_computes_what_separate_memory_computes(seed: u64, ops in 1usize..40) {
        let dag = Dag::random(seed, ops);
        let (value, shape, expected) = &dag.values[Dice(!seed).below(dag.values.len())];
        let net = dag.builder.clone().finish(*value).unwrap();
        prop_assert_eq!(net.as_net().output(), *shape);
        prop_assert!(net.as_net().ops().count() == net.as_net().op_count() as usize);
        prop_assert!(close(&run(&net, &dag.input), expected), "{:?} {:?}", run(&net, &dag.input), expected);
    }

    /// No two values alive at once share an element, and none lies off the boundary.
    #[test]
    fn the_plan_keeps_live_values_apart(seed: u64, n in 1usize..60) {
        let mut dice = Dice(seed);
        let lives: Vec<plan::Life> = (0..n)
            .map(|first| plan::Life { first, last: first + dice.below(8), len: 1 + dice.below(100) })
            .collect();
        let at = plan::place(&lives);
        for i in 0..n {
            prop_assert_eq!(at[i] % 16, 0);
            for j in 0..i {
                let together = lives[i].first <= lives[j].last && lives[j].first <= lives[i].last;
                prop_assert!(!together || at[i] + lives[i].len <= at[j] || at[j] + lives[j].len <= at[i]);
            }
        }
    }

    /// Convolution and pooling by the formula, one output at a time, in `f64`.
    #[test]
    fn windows_follow_the_formula(seed: u64, groups in 1u32..4) {
        let mut dice = Dice(seed);
        let s = Shape::new(dice.within(1, 7), dice.within(1, 7), groups * dice.within(1, 3));
        let x = dice.floats(s.len());
        let window = dice.window(s);
        let [kh, kw] = window.kernel;
        let cout = groups * dice.within(1, 3);
        let group_in = s.c / groups;
        let weight = dice.floats((kh * kw * group_in * cout) as usize);
        let bias = dice.floats(cout as usize);
        let [h, w] = window.output(s.h, s.w).unwrap();
        let at = |i: i64, j: i64, c: u32| {
            let inside = i >= 0 && j >= 0 && i < i64::from(s.h) && j < i64::from(s.w);
            inside.then(|| f64::from(x[(i as usize * s.w as usize + j as usize) * s.c as usize + c as usize]))
        };
        let under = |row: u32, column: u32, c: u32| -> Vec<Option<f64>> {
            let cells = (0..kh).flat_map(|ky| (0..kw).map(move |kx| (ky, kx)));
            cells.map(|(ky, kx)| {
                let i = i64::from(row * window.stride[0] + ky) - i64::from(window.pad[0]);
                let j = i64::from(column * window.stride[1] + kx) - i64::from(window.pad[1]);
                at(i, j, c)
            }).collect()
        };
        let pixels = || (0..h).flat_map(|row| (0..w).map(move |column| (row, column)));

        let mut by_formula = Vec::new();
        for (row, column) in pixels() {
            for o in 0..cout {
                let mut sum = f64::from(bias[o as usize]);
                for i in 0..group_in {
                    let c = o / (cout / groups) * group_in + i;
                    for (tap, x) in under(row, column, c).iter().enumerate() {
                        let w = weight[(tap * group_in as usize + i as usize) * cout as usize + o as usize];
                        sum += f64::from(w) * x.unwrap_or(0.0);
                    }
                }
                by_formula.push(sum.max(0.0) as f32);
            }
        }
        let mut b = NetBuilder::new();
        let v = b.input(s);
        let v = b.conv(v, window, groups, weight.clone(), Some(bias.clone()), Activation::Relu).unwrap();
        prop_assert!(close(&run(&b.finish(v).unwrap(), &x), &by_formula));

        let cells = || pixels().flat_map(|(row, column)| (0..s.c).map(move |c| (row, column, c)));
        for mode in 0..3 {
            let by_formula: Vec<f32> = cells().map(|(row, column, c)| {
                let all = under(row, column, c);
                let real: Vec<f64> = all.iter().copied().flatten().collect();
                let sum: f64 = real.iter().sum();
                match mode {
                    0 => real.iter().copied().fold(f64::MIN, f64::max) as f32,
                    1 => (sum / all.len() as f64) as f32,
                    _ => (sum / real.len() as f64) as f32,
                }
            }).collect();
            let mut b = NetBuilder::new();
            let v = b.input(s);
            let v = if mode == 0 { b.max_pool(v, window) } else { b.avg_pool(v, window, mode == 1) }.unwrap();
            prop_assert!(close(&run(&b.finish(v).unwrap(), &x), &by_formula));
        }
    }
}

#[test]
fn a_net_by_hand() {
    let mut b = NetBuilder::new();
    let x = b.input(Shape::new(2, 2, 1));
    let window = Window { kernel: [2, 2], stride: [1, 1], pad: [0, 0, 1, 1] };
    let conv = b.conv(x, window, 1, vec![1.0, 2.0, 3.0, 4.0], Some(vec![-6.0]), Activation::Leaky(0.5)).unwrap();
    let doubled = b.affine(x, Some(vec![2.0]), Some(vec![1.0]), Activation::None).unwrap();
    let sum = b.add(conv, doubled, Activation::None).unwrap();
    let both = b.concat(sum, x).unwrap();
    let mean = b.global_avg_pool(both).unwrap();
    let scaled = b.mul(both, mean, Activation::None).unwrap();
    let out = b.linear(scaled, vec![1.0; 8], None, Activation::None).unwrap();
    let net = b.finish(out).unwrap();
    // x = [1 2; 3 4]; windows 1+4+9+16 = 30, 2+12 = 14, 3+8 = 11, 4; minus 6: 24, 8, 5, -2 -> -1.
    // Plus 2x + 1 = 3, 5, 7, 9: 27, 13, 12, 8; mean 15, and of x 2.5. Sum = 60 * 15 + 10 * 2.5.
    assert_eq!(run(&net, &[1.0, 2.0, 3.0, 4.0]), [925.0]);
    assert_eq!(net.as_net().multiply_adds(), 4 * 4 + 8);
}

#[test]
fn activations_by_hand() {
    let table = [
        (Activation::None, -2.0, -2.0),
        (Activation::Relu, -2.0, 0.0),
        (Activation::Relu6, 7.0, 6.0),
        (Activation::Leaky(0.1), -2.0, -0.2),
        (Activation::HardSwish, 3.0, 3.0),
        (Activation::HardSwish, -1.5, -0.375),
        (Activation::HardSigmoid, 0.0, 0.5),
        (Activation::HardSigmoid, -3.0, 0.0),
        (Activation::Sigmoid, 0.0, 0.5),
        (Activation::Sigmoid, -200.0, 0.0),
        (Activation::Sigmoid, 200.0, 1.0),
    ];
    for (act, x, y) in table {
        assert!((act.apply(x) - y).abs() < 1e-6, "{act:?} {x}");
    }
}

const PIXEL: Window = Window { kernel: [1, 1], stride: [1, 1], pad: [0; 4] };

#[test]
fn batch_norm_and_relu_fold_into_the_convolution() {
    let mut b = NetBuilder::new();
    let x = b.input(Shape::new(3, 3, 2));
    let v = b.conv(x, PIXEL, 1, vec![1.0, 2.0, 3.0, 4.0], None, Activation::None).unwrap();
    let v = b.affine(v, Some(vec![2.0, 10.0]), Some(vec![0.5, 0.25]), Activation::None).unwrap();
    let v = b.activation(v, Activation::None).unwrap();
    let v = b.activation(v, Activation::Relu).unwrap();
    let net = b.finish(v).unwrap();
    let ops: Vec<Op> = net.as_net().ops().collect();
    let [Op::Conv { weight, bias: Some(bias), act: Activation::Relu, .. }] = ops[..] else { panic!("{ops:?}") };
    assert_eq!(net.as_net().span(weight), [2.0, 20.0, 6.0, 40.0]);
    assert_eq!(net.as_net().span(bias), [0.5, 0.25]);
    assert_eq!(net.as_net().weights().len(), 32);
    assert_eq!(net.as_net().arena_len(), 0);
}

#[test]
fn a_value_with_two_readers_is_not_folded_away() {
    let mut b = NetBuilder::new();
    let x = b.input(Shape::new(1, 1, 1));
    let conv = b.conv(x, PIXEL, 1, vec![-1.0], None, Activation::None).unwrap();
    let relu = b.activation(conv, Activation::Relu).unwrap();
    let sum = b.add(conv, relu, Activation::None).unwrap();
    let unread = b.affine(sum, Some(vec![5.0]), None, Activation::None).unwrap();
    let net = b.clone().finish(sum).unwrap();
    assert_eq!(net.as_net().op_count(), 3);
    assert_eq!(run(&net, &[2.0]), [-2.0]);
    assert_eq!(run(&b.clone().finish(unread).unwrap(), &[2.0]), [-10.0]);
    // The input itself goes out through one copy.
    let net = b.finish(x).unwrap();
    assert_eq!((net.as_net().op_count(), run(&net, &[2.0])), (1, vec![2.0]));
}

#[test]
fn a_chain_needs_two_buffers() {
    let mut b = NetBuilder::new();
    let mut v = b.input(Shape::new(4, 4, 4));
    for _ in 0..10 {
        v = b.max_pool(v, PIXEL).unwrap();
    }
    assert_eq!(b.finish(v).unwrap().as_net().arena_len(), 128);
}

#[test]
fn too_many_values_at_once_are_refused() {
    let mut b = NetBuilder::new();
    let x = b.input(Shape::new(1, 1, 1));
    let values: Vec<Value> = (0..70).map(|_| b.max_pool(x, PIXEL).unwrap()).collect();
    let sum = values.iter().fold(x, |sum, v| b.add(sum, *v, Activation::None).unwrap());
    assert_eq!(b.finish(sum).unwrap_err().error, Error::Capacity);
}

#[test]
fn the_builder_names_the_operation() {
    let mut b = NetBuilder::new();
    let x = b.input(Shape::new(2, 2, 2));
    let y = b.global_avg_pool(x).unwrap();
    let e = b.add(x, y, Activation::None).unwrap_err();
    assert_eq!(e, BuildError { op: 1, kind: "add", error: Error::BadOperation { op: 1, why: OpFault::Shape } });
    assert_eq!(std::format!("{e}"), "add (operation 1): the output shape does not follow from the inputs");
    let why = |r: core::result::Result<Value, BuildError>| match r.unwrap_err().error {
        Error::BadOperation { why, .. } => Some(why),
        _ => None,
    };
    assert_eq!(why(b.conv(x, PIXEL, 1, vec![0.0; 3], None, Activation::None)), Some(OpFault::Span));
    assert_eq!(why(b.conv(x, PIXEL, 0, vec![0.0; 4], None, Activation::None)), Some(OpFault::Span));
    assert_eq!(why(b.conv(x, PIXEL, 1, vec![], None, Activation::None)), Some(OpFault::Dimension));
    assert_eq!(why(b.linear(x, vec![0.0; 8], Some(vec![0.0; 2]), Activation::None)), Some(OpFault::Span));
    assert_eq!(why(b.activation(x, Activation::Leaky(f32::NAN))), Some(OpFault::Activation));
    let wide = Window { kernel: [3, 3], ..PIXEL };
    assert_eq!(why(b.max_pool(x, wide)), Some(OpFault::Window));
    assert_eq!(
        b.affine(x, Some(vec![f32::INFINITY, 1.0]), None, Activation::None).unwrap_err().error,
        Error::NotFinite
    );
    let mut other = b.clone();
    let foreign = other.global_avg_pool(y).unwrap();
    assert_eq!(why(b.max_pool(foreign, PIXEL)), Some(OpFault::Slot));
    assert!(NetBuilder::new().finish(x).is_err());
    b.input(Shape::new(1, 1, 1));
    assert!(b.finish(y).is_err());
}

const S: Shape = Shape::new(2, 2, 1);

#[test]
fn a_run_refuses_wrong_lengths() {
    let mut b = NetBuilder::new();
    let x = b.input(S);
    let v = b.max_pool(x, PIXEL).unwrap();
    let v = b.max_pool(v, PIXEL).unwrap();
    let net = b.finish(v).unwrap();
    let run = |input: usize, arena: usize, output: usize| {
        net.as_net().run(&mut Scalar, &vec![0.0; input], &mut vec![0.0; arena], &mut vec![0.0; output])
    };
    assert_eq!(run(4, 4, 4), Ok(()));
    assert_eq!(run(4, 9, 4), Ok(()));
    assert_eq!(run(3, 4, 4), Err(Error::WrongLength { needed: 4, given: 3 }));
    assert_eq!(run(4, 3, 4), Err(Error::WrongLength { needed: 4, given: 3 }));
    assert_eq!(run(4, 4, 5), Err(Error::WrongLength { needed: 4, given: 5 }));
}
