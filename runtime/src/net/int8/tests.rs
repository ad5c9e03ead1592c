//! The integer kernels against their definitions, the fast ones against the scalar ones, and the check against faults.

use super::build::Int8Builder;
use super::*;
use crate::error::{Error, OpFault};
use crate::kernels::int8::{self, rescale};
use crate::kernels::int8_dsp::Dsp;
use crate::kernels::int8_host::{HostInt8, WideWeights};
use crate::kernels::isa::Isa;
use crate::net::Place;
use crate::net::tests::{Dice, cases};
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

impl Dice {
    fn bytes(&mut self, n: usize) -> Vec<i8> {
        (0..n).map(|_| self.below(256) as u8 as i8).collect()
    }

    fn number(&mut self, from: i64, to: i64) -> i64 {
        from + (self.below(1 << 31) as i64) % (to - from + 1)
    }

    /// Records as the check allows them, with sums of `terms` products rescaled to somewhere near 8 bits.
    fn records(&mut self, channels: u32, terms: u32) -> Vec<[i32; 3]> {
        let shift = i64::from((terms.ilog2() / 2 + 4).min(29));
        let mut one = || {
            let bias = self.number(-20_000, 20_000) as i32;
            [bias, self.number(1 << 30, (1 << 31) - 1) as i32, self.number(shift.max(1), shift + 1) as i32]
        };
        (0..channels).map(|_| one()).collect()
    }

    fn finish(&mut self) -> Finish {
        let slope = [Finish::NO_SLOPE, 6554, 0, self.below(1 << 16) as u32][self.below(4)];
        let (low, high) = [(-128, 127), (-100, 90), (3, 3)][self.below(3)];
        Finish { slope, zero: self.number(-128, 127) as i8, low, high }
    }
}

/// `v * multiplier / 2^(32 + shift)` to the nearest integer, halves up, as the specification defines it.
fn exact(v: i32, multiplier: i32, shift: i32) -> i64 {
    let (product, bits) = (i128::from(v) * i128::from(multiplier), 32 + shift);
    ((product + (1i128 << (bits - 1))) >> bits) as i64
}

/// The last step as the specification defines it.
fn finished(f: Finish, sum: i64, multiplier: i32, shift: i32) -> i8 {
    let sum = if sum < 0 { (sum * i64::from(f.slope) + 32_768).div_euclid(65_536) } else { sum };
    let q = exact(sum as i32, multiplier, shift) + i64::from(f.zero);
    q.clamp(f.low.into(), f.high.into()) as i8
}

#[test]
fn rescaling_rounds_halves_up() {
    // 2^30 / 2^33 is 1/8: eighths show every tie.
    for (v, wanted) in [(0, 0), (3, 0), (4, 1), (11, 1), (12, 2), (-4, 0), (-5, -1), (-12, -1), (-13, -2), (-20, -2)] {
        assert_eq!(rescale(v, 1 << 30, 1), wanted, "{v}");
    }
    for v in [i32::MIN, i32::MIN + 1, -1, 0, 1, i32::MAX] {
        for multiplier in [0, 1, (1 << 30) - 1, 1 << 30, i32::MAX] {
            for shift in 1..=30 {
                assert_eq!(
                    i64::from(rescale(v, multiplier, shift)),
                    exact(v, multiplier, shift),
                    "{v} {multiplier} {shift}"
                );
            }
        }
    }
}

#[test]
fn sums_end_in_a_clamp() {
    let plain = Finish::plain(0);
    // 2^31 / 2^34 is 1/8, all but.
    let eighth = |f: Finish, sum| f.apply(sum, i32::MAX, 3 - 1);
    assert_eq!((eighth(plain, 8 * 127 + 3), eighth(plain, 8 * 500), eighth(plain, i32::MAX)), (127, 127, 127));
    assert_eq!((eighth(plain, -8 * 128), eighth(plain, -8 * 129), eighth(plain, i32::MIN)), (-128, -128, -128));
    let relu = Finish { zero: -100, low: -100, ..plain };
    assert_eq!((eighth(relu, -1000), eighth(relu, 0), eighth(relu, 80)), (-100, -100, -90));
    let relu6 = Finish { high: -40, ..relu };
    assert_eq!((eighth(relu6, 479), eighth(relu6, 481), eighth(relu6, 5000)), (-40, -40, -40));
    // A tenth of the slope, the sum rounded first: -100 becomes -10, -45 becomes -4 (halves up), -46 -5.
    let leaky = Finish { slope: 6554, ..plain };
    assert_eq!((eighth(leaky, 100), eighth(leaky, -1000), eighth(leaky, -40_000)), (12, -12, -128));
    assert_eq!(Finish { slope: 0, ..plain }.apply(-50_000, i32::MAX, 1), 0);
}

#[test]
fn pictures_lose_nothing() {
    for byte in 0..=255u8 {
        let q = Quant::PICTURE.quantise(f32::from(byte) / 255.0);
        assert_eq!(i32::from(q), i32::from(byte) - 128);
    }
    let quant = Quant { scale: 0.5, zero: 10 };
    for (x, q) in
        [(0.0, 10), (0.24, 10), (0.25, 10), (0.75, 12), (-0.25, 10), (1e30, 127), (-1e30, -128), (f32::NAN, 10)]
    {
        assert_eq!(quant.quantise(x), q, "{x}");
    }
    assert_eq!((quant.quantise(f32::INFINITY), quant.quantise(f32::NEG_INFINITY)), (127, -128));
    assert_eq!((quant.dequantise(-128), quant.dequantise(10), quant.dequantise(127)), (-69.0, 0.0, 58.5));
    for cells in [1, 2, 3, 9, 64, 65, 65_535, 65_536] {
        assert!((255 * i64::from(cells)) << mean_shift(cells) < 1 << 30, "{cells}");
        assert!((255 * i64::from(cells)) << mean_shift(cells) >= 1 << 28, "{cells}");
    }
}

/// A net of one convolution, and its parts.
struct OneConv {
    net: OwnedInt8Net,
    x: Shape,
    y: Shape,
    window: Window,
    groups: u32,
    pad: i8,
    weight: Vec<i8>,
    records: Vec<[i32; 3]>,
    finish: Finish,
}

impl OneConv {
    fn random(dice: &mut Dice) -> Self {
        let side = |dice: &mut Dice| 1 + dice.below(9) as u32;
        let groups = [1, 1, 1, 2, 5][dice.below(5)];
        let (h, w, depth, of) = (side(dice), side(dice), side(dice), side(dice));
        let (x, cout) = (Shape::new(h, w, groups * depth), groups * of);
        let kernel = [1 + dice.below(h.min(4) as usize) as u32, 1 + dice.below(w.min(4) as usize) as u32];
        let mut below = |n: u32| dice.below(n as usize) as u32;
        let pad = [below(kernel[0]), below(kernel[1]), below(kernel[0]), below(kernel[1])];
        let window = Window { kernel, stride: [1 + below(3), 1 + below(3)], pad };
        let [h, w] = window.output(x.h, x.w).unwrap();
        let terms = kernel[0] * kernel[1] * depth;
        let (weight, pad) = (dice.bytes((terms * cout) as usize), dice.number(-128, 127) as i8);
        let (records, finish) = (dice.records(cout, terms), dice.finish());
        let mut b = Int8Builder::new(x, Quant::PICTURE);
        let y = Shape::new(h, w, cout);
        let (slot, spans) = (b.next(y), (b.weights(&weight), b.channels(&records)));
        let (from, quant) = b.value(0);
        let op = Int8Op::Conv { x: from, y: slot, window, groups, pad, weight: spans.0, channels: spans.1, finish };
        b.push(op, quant);
        Self { net: b.finish().unwrap(), x, y, window, groups, pad, weight, records, finish }
    }

    /// By the definition, one output at a time.
    fn by_formula(&self, x: &[i8]) -> Vec<i8> {
        let Self { x: s, y, window, groups, .. } = *self;
        let (depth, of) = (s.c / groups, y.c / groups);
        let mut out = Vec::new();
        for row in 0..y.h {
            for column in 0..y.w {
                for o in 0..y.c {
                    let [bias, multiplier, shift] = self.records[o as usize];
                    let mut sum = i64::from(bias);
                    for ky in 0..window.kernel[0] {
                        for kx in 0..window.kernel[1] {
                            let i = i64::from(row * window.stride[0] + ky) - i64::from(window.pad[0]);
                            let j = i64::from(column * window.stride[1] + kx) - i64::from(window.pad[1]);
                            let inside = (0..i64::from(s.h)).contains(&i) && (0..i64::from(s.w)).contains(&j);
                            for k in 0..depth {
                                let at = (i * i64::from(s.w) + j) * i64::from(s.c) + i64::from(o / of * depth + k);
                                let x = if inside { x[at as usize] } else { self.pad };
                                let w = ((o * window.kernel[0] + ky) * window.kernel[1] + kx) * depth + k;
                                sum += i64::from(x) * i64::from(self.weight[w as usize]);
                            }
                        }
                    }
                    out.push(finished(self.finish, sum, multiplier, shift));
                }
            }
        }
        out
    }
}

fn run(net: &OwnedInt8Net, kernels: &mut dyn Int8Kernels, x: &[i8]) -> Vec<i8> {
    let net = net.as_net();
    let (mut arena, mut y) = (vec![77; net.arena_len()], vec![77; net.output().len()]);
    net.run(kernels, x, &mut arena, &mut y).unwrap();
    y
}

proptest! {
    #![proptest_config(cases(2000))]

    /// Scalar, DSP and host kernels give the bits of the definition.
    #[test]
    fn convolutions_follow_the_definition_bit_by_bit(seed: u64) {
        let mut dice = Dice(seed);
        let conv = OneConv::random(&mut dice);
        let x = dice.bytes(conv.x.len());
        let wanted = conv.by_formula(&x);
        prop_assert_eq!(&run(&conv.net, &mut ScalarInt8, &x), &wanted, "scalar");
        prop_assert_eq!(&run(&conv.net, &mut Dsp, &x), &wanted, "dsp");
        for isa in Isa::available() {
            let weights = WideWeights::new(&conv.net.as_net(), isa);
            prop_assert_eq!(&run(&conv.net, &mut HostInt8::new(&weights), &x), &wanted, "{:?}", isa);
        }
    }

    #[test]
    fn linear_layers_follow_the_definition_bit_by_bit(seed: u64) {
        let mut dice = Dice(seed);
        let x = Shape::new(1 + dice.below(4) as u32, 1 + dice.below(4) as u32, 1 + dice.below(9) as u32);
        let (terms, out) = (x.len() as u32, 1 + dice.below(9) as u32);
        let (weight, records, finish) = (dice.bytes((terms * out) as usize), dice.records(out, terms), dice.finish());
        let mut b = Int8Builder::new(x, Quant::PICTURE);
        let (from, quant) = b.value(0);
        let (y, spans) = (b.next(Shape::new(1, 1, out)), (b.weights(&weight), b.channels(&records)));
        b.push(Int8Op::Linear { x: from, y, weight: spans.0, channels: spans.1, finish }, quant);
        let (net, input) = (b.finish().unwrap(), dice.bytes(x.len()));
        let of = |(row, &[bias, multiplier, shift]): (&[i8], &[i32; 3])| {
            let sum: i64 = row.iter().zip(&input).map(|(&w, &x)| i64::from(w) * i64::from(x)).sum();
            finished(finish, sum + i64::from(bias), multiplier, shift)
        };
        let wanted: Vec<i8> = weight.chunks(terms as usize).zip(&records).map(of).collect();
        prop_assert_eq!(&run(&net, &mut ScalarInt8, &input), &wanted);
        prop_assert_eq!(&run(&net, &mut Dsp, &input), &wanted);
        for isa in Isa::available() {
            let weights = WideWeights::new(&net.as_net(), isa);
            prop_assert_eq!(&run(&net, &mut HostInt8::new(&weights), &input), &wanted, "{:?}", isa);
        }
    }

    /// Sums at the edge of 32 bits: the largest fan-in, the largest bias, all signs alike.
    #[test]
    fn the_longest_sums_stay_within_32_bits(seed: u64) {
        let mut dice = Dice(seed);
        let (w, x) = ([-128, 127][dice.below(2)], [-128, 127][dice.below(2)]);
        let bias = [MAX_BIAS - 1, 1 - MAX_BIAS][dice.below(2)];
        let shape = Shape::new(1, 1, 1 << 16);
        let (multiplier, shift) = (1 << 30, [1, 21, 24, 30][dice.below(4)]);
        let mut b = Int8Builder::new(shape, Quant::PICTURE);
        let (from, quant) = b.value(0);
        let (y, spans) = (b.next(Shape::new(1, 1, 1)), (b.weights(&[w; 1 << 16]), b.channels(&[[bias, multiplier, shift]])));
        let finish = Finish::plain(0);
        b.push(Int8Op::Linear { x: from, y, weight: spans.0, channels: spans.1, finish }, quant);
        let net = b.finish().unwrap();
        let sum = (1 << 16) * i64::from(w) * i64::from(x) + i64::from(bias);
        let wanted = finished(finish, sum, multiplier, shift);
        prop_assert_eq!(run(&net, &mut ScalarInt8, &[x; 1 << 16]), [wanted]);
        prop_assert_eq!(run(&net, &mut Dsp, &[x; 1 << 16]), [wanted]);
        for isa in Isa::available() {
            let weights = WideWeights::new(&net.as_net(), isa);
            prop_assert_eq!(run(&net, &mut HostInt8::new(&weights), &[x; 1 << 16]), [wanted], "{:?}", isa);
        }
    }

    #[test]
    fn pools_follow_the_definition_bit_by_bit(seed: u64) {
        let mut dice = Dice(seed);
        let conv = OneConv::random(&mut dice);
        let (shape, window) = (conv.x, conv.window);
        let zeros = [dice.number(-128, 127) as i8, dice.number(-128, 127) as i8];
        let rescale = Rescale { multiplier: dice.number(1 << 30, (1 << 31) - 1) as i32, shift: dice.number(10, 22) as u8 };
        let mut b = Int8Builder::new(shape, Quant::PICTURE);
        let (x, quant) = b.value(0);
        let y = b.next(Shape::new(conv.y.h, conv.y.w, shape.c));
        let op = match dice.below(4) {
            0 => Int8Op::MaxPool { x, y, window },
            1 => Int8Op::GlobalAvgPool { x, y: b.next(Shape::new(1, 1, shape.c)), zeros, rescale },
            n => Int8Op::AvgPool { x, y, window, count_pad: n == 2, zeros, rescale },
        };
        b.push(op, quant);
        let input = dice.bytes(shape.len());
        prop_assert_eq!(run(&b.finish().unwrap(), &mut ScalarInt8, &input), pooled(&op, &input), "{:?}", op);
    }

    /// The other operations by their definitions.
    #[test]
    fn element_by_element(seed: u64) {
        let mut dice = Dice(seed);
        let (n, c) = (1 + dice.below(5), 1 + dice.below(5));
        let (a, b) = (dice.bytes(n * c), dice.bytes(n * c));
        let by = Rescale { multiplier: dice.number(0, (1 << 31) - 1) as i32, shift: dice.number(1, 30) as u8 };
        let (finish, zeros) = (dice.finish(), [dice.number(-128, 127) as i8, dice.number(-128, 127) as i8]);
        let end = |sum: i64| finished(finish, sum, by.multiplier, by.shift.into());
        let mut y = vec![0; n * c];

        let factors = [dice.number(0, 1 << 20) as i32, dice.number(0, 1 << 20) as i32];
        let bias = dice.number(1 - i64::from(MAX_BIAS), i64::from(MAX_BIAS) - 1) as i32;
        int8::add(factors, bias, by, &finish, &a, &b, &mut y);
        for ((&a, &b), &y) in a.iter().zip(&b).zip(&y) {
            let sum = i64::from(a) * i64::from(factors[0]) + i64::from(b) * i64::from(factors[1]) + i64::from(bias);
            prop_assert_eq!(y, end(sum));
        }
        for by_channel in [false, true] {
            let b = &b[..if by_channel { c } else { n * c }];
            int8::mul(c, zeros, by, &finish, &a, b, &mut y);
            for (i, (&a, &y)) in a.iter().zip(&y).enumerate() {
                let (a, b) = (i64::from(a) - i64::from(zeros[0]), i64::from(b[i % b.len()]) - i64::from(zeros[1]));
                prop_assert_eq!(y, end((a * b) << 12));
            }
        }
        let (weight, records) = (dice.bytes(c), dice.records(c as u32, 1));
        int8::affine(&weight, &records, &finish, &a, &mut y);
        for (i, (&x, &y)) in a.iter().zip(&y).enumerate() {
            let [bias, multiplier, shift] = records[i % c];
            prop_assert_eq!(y, finished(finish, i64::from(x) * i64::from(weight[i % c]) + i64::from(bias), multiplier, shift));
        }
        let (other, d) = (dice.bytes(n * (c + 1)), c + 1);
        let (mut joined, right) = (vec![0; n * (c + d)], Rescale { multiplier: by.multiplier / 3, ..by });
        int8::concat([c, d], zeros, [by, right], finish.zero, &a, &other, &mut joined);
        for (i, &y) in joined.iter().enumerate() {
            let (pixel, o) = (i / (c + d), i % (c + d));
            let (x, zero, by) = if o < c { (a[pixel * c + o], zeros[0], by) } else { (other[pixel * d + o - c], zeros[1], right) };
            let v = (i64::from(x) - i64::from(zero)) << 20;
            prop_assert_eq!(y, finished(Finish::plain(finish.zero), v, by.multiplier, by.shift.into()));
        }
        let table = dice.bytes(256);
        int8::table(&table, &a, &mut y);
        prop_assert!(a.iter().zip(&y).all(|(&x, &y)| y == table[(i32::from(x) + 128) as usize]));
    }
}

/// Pools by their definitions: the largest; the mean of what is not padding, or of all cells.
fn pooled(op: &Int8Op, x: &[i8]) -> Vec<i8> {
    let (s, y) = (op.inputs().0.shape, op.output().shape);
    let (window, count_pad) = match *op {
        Int8Op::MaxPool { window, .. } => (window, false),
        Int8Op::AvgPool { window, count_pad, .. } => (window, count_pad),
        _ => (Window { kernel: [s.h, s.w], stride: [1, 1], pad: [0; 4] }, false),
    };
    let area = i64::from(window.kernel[0] * window.kernel[1]);
    let of = |i: u32| {
        let (row, column, channel) = (i / y.c / y.w, i / y.c % y.w, i % y.c);
        let cells = (0..window.kernel[0]).flat_map(|ky| (0..window.kernel[1]).map(move |kx| (ky, kx)));
        let inside: Vec<i64> = cells
            .filter_map(|(ky, kx)| {
                let i = (row * window.stride[0] + ky).checked_sub(window.pad[0]).filter(|&i| i < s.h)?;
                let j = (column * window.stride[1] + kx).checked_sub(window.pad[1]).filter(|&j| j < s.w)?;
                Some(i64::from(x[((i * s.w + j) * s.c + channel) as usize]))
            })
            .collect();
        let (zeros, by) = match *op {
            Int8Op::AvgPool { zeros, rescale, .. } | Int8Op::GlobalAvgPool { zeros, rescale, .. } => (zeros, rescale),
            _ => return inside.into_iter().max().unwrap() as i8,
        };
        let count = if count_pad { area } else { inside.len() as i64 };
        let sum: i64 = inside.iter().map(|x| x - i64::from(zeros[0])).sum();
        let left = 22 - (area as f64).log2().ceil() as u32;
        let mean = ((sum << left) + count / 2).div_euclid(count);
        finished(Finish::plain(zeros[1]), mean, by.multiplier, by.shift.into())
    };
    (0..y.len() as u32).map(of).collect()
}

/// A net of a convolution, an addition and a pooling, as it is stored.
fn sample() -> (Int8Builder, Shape) {
    let shape = Shape::new(2, 2, 1);
    let mut b = Int8Builder::new(shape, Quant::PICTURE);
    let (x, quant) = b.value(0);
    let window = Window { kernel: [1, 1], stride: [1, 1], pad: [0; 4] };
    let (y, weight, channels) = (b.next(shape), b.weights(&[5]), b.channels(&[[1, 1 << 30, 7]]));
    let finish = Finish::plain(0);
    let conv = b.push(Int8Op::Conv { x, y, window, groups: 1, pad: 0, weight, channels, finish }, quant);
    let ((a, _), y) = (b.value(conv), b.next(shape));
    let rescale = Rescale { multiplier: 1 << 30, shift: 20 };
    let sum = b.push(Int8Op::Add { a, b: a, y, factors: [1 << 20; 2], bias: 0, rescale, finish }, quant);
    let ((x, _), y) = (b.value(sum), b.next(Shape::new(1, 1, 1)));
    b.push(Int8Op::GlobalAvgPool { x, y, zeros: [0; 2], rescale }, quant);
    (b, shape)
}

#[test]
fn numbers_out_of_range_are_refused() {
    let refused = |wanted: Error, change: &dyn Fn(&mut Vec<Int8Op>, &mut Vec<i32>)| {
        let good = sample().0.finish().unwrap();
        let net = good.as_net();
        let (mut ops, mut words): (Vec<Int8Op>, Vec<i32>) = (net.ops().collect(), net.words().to_vec());
        change(&mut ops, &mut words);
        let bytes = ops.iter().fold(Vec::new(), |bytes, op| postcard::to_extend(op, bytes).unwrap());
        let verdict = Int8Net::new_checked(Int8Spec { ops: &bytes, ..net.spec() }, &words);
        assert_eq!(verdict.map(|_| ()), Err(wanted));
    };
    let number = |op| Error::BadOperation { op, why: OpFault::Number };
    // The record lies in words 4..7, behind the weight and its padding.
    for (word, value) in [(4, MAX_BIAS), (4, -MAX_BIAS), (4, i32::MIN), (5, -1), (6, 0), (6, 31), (6, -1)] {
        refused(number(0), &|_, words| words[word] = value);
    }
    let finish = |ops: &mut Vec<Int8Op>, new: Finish| {
        if let Int8Op::Conv { finish, .. } = &mut ops[0] {
            *finish = new;
        }
    };
    refused(number(0), &|ops, _| finish(ops, Finish { slope: 65_537, ..Finish::plain(0) }));
    refused(number(0), &|ops, _| finish(ops, Finish { low: 1, high: 0, ..Finish::plain(0) }));
    let add = |ops: &mut Vec<Int8Op>, new: [i32; 2], start: i32, by: Rescale| {
        if let Int8Op::Add { factors, bias, rescale, .. } = &mut ops[1] {
            (*factors, *bias, *rescale) = (new, start, by);
        }
    };
    let by = Rescale { multiplier: 1, shift: 1 };
    refused(number(1), &|ops, _| add(ops, [(1 << 20) + 1, 0], 0, by));
    refused(number(1), &|ops, _| add(ops, [0, -1], 0, by));
    refused(number(1), &|ops, _| add(ops, [0, 0], MAX_BIAS, by));
    refused(number(1), &|ops, _| add(ops, [0, 0], 0, Rescale { shift: 0, ..by }));
    refused(number(1), &|ops, _| add(ops, [0, 0], 0, Rescale { shift: 31, ..by }));
    refused(number(1), &|ops, _| add(ops, [0, 0], 0, Rescale { multiplier: -1, ..by }));
    let span = Error::BadOperation { op: 0, why: OpFault::Span };
    for (at, len) in [(17, 12), (56, 12), (u32::MAX - 3, 12), (16, 8), (16, 16)] {
        refused(span, &|ops, _| {
            if let Int8Op::Conv { channels, .. } = &mut ops[0] {
                *channels = Span { at, len };
            }
        });
    }
    refused(Error::BadOperation { op: 2, why: OpFault::Slot }, &|ops, _| {
        if let Int8Op::GlobalAvgPool { x, .. } = &mut ops[2] {
            x.place = Place::Arena(1000);
        }
    });
}

#[test]
fn scales_and_frames_are_checked() {
    let good = sample().0.finish().unwrap();
    let (net, spec) = (good.as_net(), good.as_net().spec());
    let verdict = |spec: Int8Spec<'_>| Int8Net::new_checked(spec, net.words()).map(|_| ());
    assert_eq!(verdict(spec), Ok(()));
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let quant = Quant { scale, zero: 0 };
        assert_eq!(verdict(Int8Spec { input_quant: quant, ..spec }), Err(Error::NotFinite));
        assert_eq!(verdict(Int8Spec { output_quant: quant, ..spec }), Err(Error::NotFinite));
    }
    let arena = Err(Error::WrongLength { needed: spec.arena_len as usize, given: spec.arena_len as usize + 1 });
    assert_eq!(verdict(Int8Spec { arena_len: spec.arena_len + 1, ..spec }), arena);
    assert_eq!(verdict(Int8Spec { op_count: 2, ..spec }), Err(Error::BadOperation { op: 1, why: OpFault::Slot }));
    assert!(verdict(Int8Spec { ops: &spec.ops[1..], ..spec }).is_err());
    let (mut arena, mut y) = (vec![0; net.arena_len()], [0; 1]);
    let x = [10, 20, 30, 40];
    assert_eq!(net.run(&mut ScalarInt8, &x[..3], &mut arena, &mut y), Err(Error::WrongLength { needed: 4, given: 3 }));
    let short = Err(Error::WrongLength { needed: net.arena_len(), given: net.arena_len() - 1 });
    assert_eq!(net.run(&mut ScalarInt8, &x, &mut arena[1..], &mut y), short);
    assert_eq!(net.run(&mut ScalarInt8, &x, &mut arena, &mut y), Ok(()));
    assert_eq!(OwnedInt8Net::from(net), good);
}
