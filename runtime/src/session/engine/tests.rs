//! Whole nets, each operation shared by threads: the bits of one thread.

use super::{Engine, Prepared};
use crate::kernels::simd::Simd;
use crate::kernels::team::Lead;
use crate::kernels::tests::noise;
use crate::net::tests::{Dag, Dice, cases};
use crate::net::{Activation, NetBuilder, OwnedNet, Scalar, Value, Window};
use crate::session::Session;
use crate::shape::Shape;
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};
use std::prelude::v1::*;
use std::vec;

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// One picture through the plan.
fn planned(net: &OwnedNet, prepared: &Prepared, k: &Simd, lead: Lead<'_>, x: &[f32]) -> Vec<f32> {
    let net = net.as_net();
    let (mut arena, mut y) = (vec![f32::NAN; prepared.plan.arena_len()], vec![f32::NAN; net.output().len()]);
    prepared.plan.run(&net, &mut prepared.kernels(k, lead), x, &mut arena, &mut y).unwrap();
    y
}

/// The same through scalar kernels, operation by operation.
fn oracle(net: &OwnedNet, x: &[f32]) -> Vec<f32> {
    let net = net.as_net();
    let (mut arena, mut y) = (vec![f32::NAN; net.arena_len()], vec![f32::NAN; net.output().len()]);
    net.run(&mut Scalar, x, &mut arena, &mut y).unwrap();
    y
}

#[test]
fn a_random_net_has_the_bits_of_one_thread() {
    let teams = [1, 2, 3, 4].map(Simd::new);
    let checked = |(seed, ops): (u64, usize)| {
        let dag = Dag::random(seed, ops);
        let (value, _, answer) = &dag.values[Dice(!seed).below(dag.values.len())];
        let net = dag.builder.clone().finish(*value).unwrap();
        let prepared = Prepared::new(&net.as_net(), &teams[0]);
        let want = planned(&net, &prepared, &teams[0], Lead::alone(), &dag.input);
        for k in &teams {
            let again = || planned(&net, &prepared, k, k.lead_parts(1), &dag.input);
            prop_assert!((0..4).all(|_| bits(&again()) == bits(&want)), "{k:?}");
        }
        // Rounding of any value on the way may show.
        let top = dag.values.iter().flat_map(|(_, _, v)| v).fold(1.0f32, |m, v| m.max(v.abs()));
        if top < 1e4 {
            let close = want.iter().zip(answer).all(|(y, w)| (y - w).abs() <= 1e-4 * top);
            prop_assert!(close && want.len() == answer.len(), "{want:?} where the oracle has {answer:?}");
        }
        Ok::<_, TestCaseError>(())
    };
    TestRunner::new(cases(300)).run(&(any::<u64>(), 1usize..40), checked).unwrap();
}

/// Adds layers with weights from a seed.
struct Layers(NetBuilder, u64);

impl Layers {
    fn noise(&mut self, len: usize, scale: f32) -> Vec<f32> {
        self.1 += 1;
        noise(len, self.1).iter().map(|v| v * scale).collect()
    }

    fn conv(&mut self, x: Value, side: u32, stride: u32, groups: u32, cout: u32, act: Activation) -> Value {
        let fan = side * side * self.0.shape(x).unwrap().c / groups;
        let weight = self.noise((fan * cout) as usize, (2.0 / fan as f32).sqrt());
        let bias = self.noise(cout as usize, 0.1);
        let window = Window { kernel: [side; 2], stride: [stride; 2], pad: [side / 2; 4] };
        self.0.conv(x, window, groups, weight, Some(bias), act).unwrap()
    }

    fn norm(&mut self, x: Value) -> Value {
        let c = self.0.shape(x).unwrap().c as usize;
        let (scale, shift) = (self.noise(c, 1.0), self.noise(c, 0.1));
        self.0.affine(x, Some(scale), Some(shift), Activation::Leaky(0.1)).unwrap()
    }
}

/// The stem of a WideResNet-16-1 (32x32x3 to 8x8x64), and behind it one of each operation that it has not.
fn net(all: bool) -> OwnedNet {
    let mut l = Layers(NetBuilder::new(), 0);
    let x = l.0.input(Shape::new(32, 32, 3));
    let mut x = l.conv(x, 3, 1, 1, 16, Activation::None);
    for (cout, stride) in [(16, 1), (16, 1), (32, 2), (32, 1), (64, 2)] {
        let a = l.norm(x);
        let h = l.conv(a, 3, stride, 1, cout, Activation::Leaky(0.1));
        let h = l.conv(h, 3, 1, 1, cout, Activation::None);
        let skip = if stride > 1 { l.conv(x, 1, stride, 1, cout, Activation::None) } else { x };
        x = l.0.add(h, skip, Activation::None).unwrap();
    }
    if all {
        let narrow = l.conv(x, 3, 1, 4, 64, Activation::Relu);
        let deep = l.conv(narrow, 3, 1, 64, 64, Activation::Relu6);
        let gate = l.0.global_avg_pool(deep).unwrap();
        let gate = l.conv(gate, 1, 1, 1, 64, Activation::HardSigmoid);
        let gated = l.0.mul(deep, gate, Activation::HardSwish).unwrap();
        let both = l.0.concat(gated, x).unwrap();
        let window = Window { kernel: [3, 2], stride: [1, 2], pad: [1, 0, 2, 1] };
        let most = l.0.max_pool(both, window).unwrap();
        let mean = l.0.avg_pool(most, window, false).unwrap();
        let weight = l.noise(l.0.shape(mean).unwrap().len() * 10, 0.1);
        x = l.0.linear(mean, weight, None, Activation::Sigmoid).unwrap();
    }
    l.0.finish(x).unwrap()
}

/// A MobileNetV2 unit is two steps, one with less memory than the net's own plan; a residual unit's sum goes with its convolution.
#[test]
fn units_are_planned_as_one() {
    let mut l = Layers(NetBuilder::new(), 0);
    let x = l.0.input(Shape::new(28, 30, 8));
    let wide = l.conv(x, 1, 1, 1, 48, Activation::Relu6);
    let deep = l.conv(wide, 3, 1, 48, 48, Activation::Relu6);
    let narrow = l.conv(deep, 1, 1, 1, 8, Activation::None);
    let unit = l.0.add(x, narrow, Activation::None).unwrap();
    let h = l.conv(unit, 3, 1, 1, 8, Activation::Relu);
    let h = l.conv(h, 3, 1, 1, 8, Activation::None);
    let y = l.0.add(h, unit, Activation::Relu).unwrap();
    let net = l.0.finish(y).unwrap();
    let k = Simd::new(2);
    let prepared = Prepared::new(&net.as_net(), &k);
    assert_eq!((net.as_net().op_count(), prepared.plan.steps()), (7, 4));
    assert!(prepared.plan.arena_len() < net.as_net().arena_len());
    let x = noise(net.as_net().input().len(), 9);
    let (got, want) = (planned(&net, &prepared, &k, k.lead_parts(1), &x), oracle(&net, &x));
    let top = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() <= 1e-5 * top));
}

#[test]
fn a_session_has_the_bits_of_one_thread() {
    for all in [false, true] {
        let net = net(all);
        let (len, to) = (net.as_net().input().len(), net.as_net().output().len());
        let x = noise(2 * len, 9);
        let mut want = vec![f32::NAN; 2 * to];
        Session::of_net(net.as_net(), Simd::new(1)).features(&x, &mut want).unwrap();
        assert!(want.iter().all(|v| v.is_finite()));
        for threads in 1..=4 {
            let session = Session::of_net(net.as_net(), Simd::new(threads));
            for n in [1, 2] {
                for _ in 0..50 {
                    let mut got = vec![f32::NAN; n * to];
                    session.features(&x[..n * len], &mut got).unwrap();
                    assert_eq!(bits(&got), bits(&want[..n * to]), "{n} on {threads} threads");
                }
            }
        }
    }
}

/// Several threads at once ask a session for one picture: one of them leads, the others work alone.
#[test]
fn callers_side_by_side_get_the_same_bits() {
    let net = net(true);
    let to = net.as_net().output().len();
    let x = noise(net.as_net().input().len(), 9);
    let session = Session::of_net(net.as_net(), Simd::new(2));
    let once = || {
        let mut y = vec![f32::NAN; to];
        session.features(&x, &mut y).unwrap();
        bits(&y)
    };
    let want = once();
    std::thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| (0..50).for_each(|_| assert_eq!(once(), want)));
        }
    });
}

/// Runs after the first take the arena of the one before.
#[test]
fn arenas_are_kept() {
    let (net, k) = (net(false), Simd::new(2));
    let (x, mut y) = (noise(net.as_net().input().len(), 9), vec![0.0; net.as_net().output().len()]);
    let engine = Engine::new(net.as_net().into(), &k);
    for _ in 0..3 {
        engine.run(&k, k.lead(), &x, &mut y).unwrap();
    }
    let Engine::F32(_, prepared) = engine else { unreachable!("a net in f32") };
    let arenas = prepared.arenas.into_inner().unwrap();
    assert_eq!(arenas.iter().map(|a| a.get().len()).collect::<Vec<_>>(), [prepared.plan.arena_len()]);
}
