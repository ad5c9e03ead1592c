//! Convolutions and their gradients by themselves, in both precisions, against the scalar oracle: whole numbers, small enough for
//! every sum to be exact.

use super::super::args::{Entry, Gate};
use super::super::builder::{Builder, Homes, Product, cells};
use super::super::layout::{Layout, Span};
use super::super::{Backend, Place, Region};
use crate::engine::Precision::{self, Bf16, F32};
use stemguard_runtime::kernels::reference::Reference;
use stemguard_runtime::kernels::{ConvShape, Kernels as _, OutputGradient};
use stemguard_runtime::replace::Bf16 as Half;
use stemguard_runtime::rng::Rng;
use stemguard_runtime::shape::Shape;

/// Pictures.
const N: usize = 3;

/// What is done to maps on their way into a convolution and out of it.
#[derive(Clone, Copy, Debug, Default)]
struct Around {
    /// The map enters through a norm and its ReLU, the gradient through a norm's backward pass.
    norms: bool,
    gate: Open,
    add: bool,
    /// A ReLU at the end.
    relu: bool,
}

/// Which gate.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Open {
    #[default]
    Always,
    Leaky,
    Rectified,
}

/// Of all ReLUs, below 0: whole, so that every value stays so.
const SLOPE: f32 = 2.0;

/// What a convolution reads, and what is asked of it.
struct Case {
    g: ConvShape,
    around: Around,
    x: Vec<f32>,
    /// The gradient of its output.
    y: Vec<f32>,
    w: Vec<f32>,
    bias: Vec<f32>,
    /// Scale and shift of the norm in front.
    norm: Vec<f32>,
    /// Coefficients of the backward pass of the norm behind, and its other map.
    back: Vec<f32>,
    other: Vec<f32>,
}

/// What stands beside a product's output: the gate's map, scale and shift, and the map that is added.
struct Beside {
    gate: Vec<f32>,
    gate_norm: Vec<f32>,
    add: Vec<f32>,
}

/// Small whole numbers.
fn whole(rng: &mut Rng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.below(7) as f32 - 3.0).collect()
}

/// What comes out.
struct Answers {
    /// The output, or the gradient of the input.
    map: Vec<f32>,
    /// The gradients of weights and bias.
    grads: Vec<f32>,
}

impl Case {
    fn new(g: ConvShape, around: Around) -> Self {
        let mut rng = Rng::new(5, 5);
        let mut whole = |len| whole(&mut rng, len);
        let (x, y, w, bias) = (whole(N * g.x.len()), whole(N * g.y.len()), whole(g.weights()), whole(g.y.c as usize));
        let (norm, back, other) = (whole(2 * g.x.c as usize), whole(3 * g.y.c as usize), whole(y.len()));
        Self { g, around, x, y, w, bias, norm, back, other }
    }

    fn beside(&self, to: Shape) -> Beside {
        let mut rng = Rng::new(7, 7);
        let mut whole = |len| whole(&mut rng, len);
        Beside { gate: whole(N * to.len()), gate_norm: whole(2 * to.c as usize), add: whole(N * to.len()) }
    }

    /// The map and the gradient as they enter.
    fn entered(&self) -> (Vec<f32>, Vec<f32>) {
        if !self.around.norms {
            return (self.x.clone(), self.y.clone());
        }
        let (ic, oc) = (self.g.x.c as usize, self.g.y.c as usize);
        let relu = |z: f32| if z > 0.0 { z } else { z * SLOPE };
        let x = self.x.iter().enumerate().map(|(i, v)| relu(v * self.norm[i % ic] + self.norm[ic + i % ic]));
        let k = |i: usize, which: usize| self.back[which * oc + i % oc];
        let y =
            self.y.iter().zip(&self.other).enumerate().map(|(i, (v, other))| k(i, 0) * v + k(i, 1) * other + k(i, 2));
        (x.collect(), y.collect())
    }

    /// A product's map on its way out.
    fn left(&self, map: &mut [f32], to: Shape) {
        let (beside, c) = (self.beside(to), to.c as usize);
        for (i, v) in map.iter_mut().enumerate() {
            let with = beside.gate[i];
            match self.around.gate {
                Open::Always => {}
                Open::Leaky if with * beside.gate_norm[i % c] + beside.gate_norm[c + i % c] > 0.0 => {}
                Open::Leaky => *v *= SLOPE,
                Open::Rectified => *v = if with > 0.0 { *v } else { 0.0 },
            }
            *v += if self.around.add { beside.add[i] } else { 0.0 };
            *v = if self.around.relu { v.max(0.0) } else { *v };
        }
    }

    /// As the scalar kernels have it.
    fn expected(&self, gradient: bool) -> Answers {
        let (g, w) = (&self.g, &self.w[..]);
        let (x, dy) = &self.entered();
        let (mut y, mut dx, mut grads) = (vec![0.0; self.y.len()], vec![0.0; x.len()], vec![0.0; w.len()]);
        let mut db = vec![0.0; self.bias.len()];
        Reference.conv_forward(g, N, x, None, w, Some(&self.bias), None, &mut y, None);
        let dy = OutputGradient { dy, norm: None };
        Reference.conv_backward(g, N, x, None, w, dy, None, Some(&mut dx), &mut grads, &mut db, None);
        grads.extend(db);
        let (mut map, to) = if gradient { (dx, g.x) } else { (y, g.y) };
        self.left(&mut map, to);
        Answers { map, grads }
    }

    /// On the device. The sums that the product leaves are checked here; none: there is no such device.
    fn got(&self, place: Place, gradient: bool, precision: Precision) -> Option<Answers> {
        let (mut device, g) = (place.device(precision)?, &self.g);
        let mut region = |bytes: &[u8]| {
            let r = device.allocate(bytes.len()).expect("memory");
            device.write(r, bytes).expect("written");
            r
        };
        let (xs, ys) = (region(&cells(precision, &self.x)), region(&cells(precision, &self.y)));
        let params = region(bytemuck::cast_slice(&[&self.w[..], &self.bias].concat()));
        let grads = region(bytemuck::cast_slice(&vec![f32::NAN; g.weights() + g.y.c as usize]));
        let mut floats = |values: &[f32]| region(bytemuck::cast_slice(values)).address;
        let (norm, back) = (floats(&self.norm), floats(&self.back));
        let beside = self.beside(if gradient { g.x } else { g.y });
        let gate_norm = floats(&beside.gate_norm);
        let mut map = |values: &[f32]| region(&cells(precision, values)).address;
        let (other, gate, add) = (map(&self.other), map(&beside.gate), map(&beside.add));
        let (x_entry, y_entry) = match self.around.norms {
            false => (Entry::Plain, Entry::Plain),
            true => (Entry::Norm(norm, SLOPE), Entry::Back(back, other)),
        };
        let gate = match self.around.gate {
            Open::Always => Gate::Open,
            Open::Leaky => Gate::Leaky(gate, gate_norm, SLOPE),
            Open::Rectified => Gate::Rectified(gate),
        };
        let (layout, homes) = (Layout::default(), Homes { params, grads, statistics: grads });
        let spans = [Span { first: 0, len: g.weights() }, Span { first: g.weights(), len: g.y.c as usize }];
        let mut b = Builder::new(&mut *device, &layout, homes, N);
        let p = match gradient {
            false => Product::forward(g, xs.address, x_entry, spans),
            true => Product::gradient(g, ys.address, y_entry, spans[0], Gate::Open),
        };
        let (add, squash) = (if self.around.add { add } else { 0 }, i32::from(self.around.relu));
        let out = b.product(&Product { gate, add, squash, sums: true, ..p }).expect("launches");
        // Once as on a GPU, where each block has one of so few tiles, and once with many tiles a block.
        b.weight_blocks = if gradient { 2 } else { b.weight_blocks };
        b.weights(g, (xs.address, x_entry), (ys.address, y_entry), spans[0], Some(spans[1])).expect("launches");
        let launches = b.finish().expect("launches");
        // SAFETY: the builder's launches, over regions of the shapes it was told.
        let program = unsafe { device.program(launches) }.expect("a program");
        device.run(program).expect("runs");
        let map = values(&mut *device, out.region);
        let (c, left) = (out.shape.c as usize, out.sums.expect("sums"));
        let [sums, grads] = [left.region, grads].map(|r| {
            let mut values = vec![0.0f32; r.bytes / 4];
            device.read(r, 0, bytemuck::cast_slice_mut(&mut values)).expect("read");
            values
        });
        for (i, of_channel) in sums.chunks_exact(left.blocks).enumerate() {
            // Of the values, then of their squares, or of their products with what a norm behind the gate had.
            let by = if self.around.gate == Open::Leaky { &beside.gate } else { &map };
            let term = |(v, by): (&f32, &f32)| f64::from(*v) * if i < c { 1.0 } else { f64::from(*by) };
            let expected: f64 = map.iter().zip(by).skip(i % c).step_by(c).map(term).sum();
            let got: f64 = of_channel.iter().map(|&v| f64::from(v)).sum();
            assert!((got - expected).abs() <= 1e-5 * expected.abs(), "{g:?}: sum {i} is {got}, not {expected}");
        }
        Some(Answers { map, grads })
    }
}

impl Case {
    /// Compares both directions, in both precisions, everywhere.
    fn hold(&self) {
        let Self { g, around, .. } = self;
        for gradient in [false, true] {
            let expected = self.expected(gradient);
            assert!(expected.grads.iter().chain(&expected.map).all(|v| v.fract() == 0.0 && v.abs() < 16_777_216.0));
            // A map in bf16 keeps 8 bits of a sum; gradients of weights are f32.
            let kept: Vec<f32> = expected.map.iter().map(|&v| Half::from(v).into()).collect();
            for place in Place::ALL {
                for (precision, map) in [(F32, &expected.map), (Bf16, &kept)] {
                    let Some(got) = self.got(place, gradient, precision) else { continue };
                    let what = format!("{g:?} {around:?} {precision:?} {place:?}");
                    assert!(&got.map == map, "{what}, gradient: {gradient}");
                    assert!(got.grads == expected.grads, "{what}, gradients of weights");
                }
            }
        }
    }
}

/// Cells of a map as values.
fn values(device: &mut dyn Backend, map: Region) -> Vec<f32> {
    let mut bytes = vec![0u8; map.bytes];
    device.read(map, 0, &mut bytes).expect("read");
    match device.precision() {
        F32 => bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect(),
        Bf16 => bytes.chunks_exact(2).map(|b| Half::from_bits(bytemuck::pod_read_unaligned(b)).into()).collect(),
    }
}

#[test]
fn both_precisions_multiply_what_the_oracle_does() {
    // Those of the networks; then channels that fill no fragment, more than come at a time, kernels of many taps, several tiles, tiles
    // that reach beyond the map and beyond the batch.
    for (side, cin, cout, kernel, stride, pad) in [
        (8, 3, 16, 3, 1, 1),
        (8, 16, 32, 3, 2, 1),
        (6, 32, 64, 1, 2, 0),
        (6, 32, 128, 1, 2, 0),
        (6, 20, 70, 3, 1, 1),
        (8, 3, 33, 4, 2, 1),
        (5, 128, 16, 3, 1, 1),
        (6, 64, 24, 4, 2, 1),
        (13, 3, 64, 7, 2, 3),
        (33, 16, 16, 3, 1, 1),
        (17, 20, 33, 5, 1, 2),
        (4, 64, 64, 1, 1, 0),
    ] {
        let g = ConvShape::square(Shape::new(side, side + 2, cin), cout, kernel, stride, pad).expect("a shape");
        Case::new(g, Around::default()).hold();
    }
}

#[test]
fn maps_enter_and_leave_as_the_oracle_has_it() {
    // Channels by eight and by four, and ragged ones; steps of two.
    for (side, cin, cout, kernel, stride, pad) in
        [(9, 16, 16, 3, 1, 1), (8, 32, 64, 3, 2, 1), (6, 20, 70, 3, 1, 1), (6, 12, 33, 4, 2, 1), (8, 3, 20, 3, 1, 1)]
    {
        let g = ConvShape::square(Shape::new(side, side + 2, cin), cout, kernel, stride, pad).expect("a shape");
        for around in [
            Around { norms: true, ..Around::default() },
            Around { norms: true, gate: Open::Leaky, add: true, relu: false },
            Around { norms: false, gate: Open::Leaky, add: false, relu: true },
            Around { norms: true, gate: Open::Rectified, add: true, relu: true },
        ] {
            Case::new(g, around).hold();
        }
    }
}
