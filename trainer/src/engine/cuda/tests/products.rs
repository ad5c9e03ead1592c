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

/// What a convolution reads, and what is asked of it.
struct Case {
    g: ConvShape,
    x: Vec<f32>,
    /// The gradient of its output.
    y: Vec<f32>,
    w: Vec<f32>,
    bias: Vec<f32>,
}

/// What comes out.
struct Answers {
    /// The output, or the gradient of the input.
    map: Vec<f32>,
    /// The gradients of weights and bias.
    grads: Vec<f32>,
}

impl Case {
    fn new(g: ConvShape) -> Self {
        let mut rng = Rng::new(5, 5);
        let mut whole = |len: usize| -> Vec<f32> { (0..len).map(|_| rng.below(7) as f32 - 3.0).collect() };
        let (x, y, w, bias) = (whole(N * g.x.len()), whole(N * g.y.len()), whole(g.weights()), whole(g.y.c as usize));
        Self { g, x, y, w, bias }
    }

    /// As the scalar kernels have it.
    fn expected(&self, gradient: bool) -> Answers {
        let (g, x, w) = (&self.g, &self.x[..], &self.w[..]);
        let (mut y, mut dx, mut grads) = (vec![0.0; self.y.len()], vec![0.0; x.len()], vec![0.0; w.len()]);
        let mut db = vec![0.0; self.bias.len()];
        Reference.conv_forward(g, N, x, None, w, Some(&self.bias), None, &mut y, None);
        let dy = OutputGradient { dy: &self.y, norm: None };
        Reference.conv_backward(g, N, x, None, w, dy, None, Some(&mut dx), &mut grads, &mut db, None);
        grads.extend(db);
        Answers { map: if gradient { dx } else { y }, grads }
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
        let (layout, homes) = (Layout::default(), Homes { params, grads, statistics: grads });
        let spans = [Span { first: 0, len: g.weights() }, Span { first: g.weights(), len: g.y.c as usize }];
        let mut b = Builder::new(&mut *device, &layout, homes, N);
        let p = match gradient {
            false => Product::forward(g, xs.address, Entry::Plain, spans),
            true => Product::gradient(g, ys.address, Entry::Plain, spans[0], Gate::Open),
        };
        let out = b.product(&Product { sums: true, ..p }).expect("launches");
        // Once as on a GPU, where each block has one of so few tiles, and once with many tiles a block.
        b.weight_blocks = if gradient { 2 } else { b.weight_blocks };
        b.weights(g, (xs.address, Entry::Plain), (ys.address, Entry::Plain), spans[0], Some(spans[1]))
            .expect("launches");
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
            let square = |v: f32| f64::from(v) * if i < c { 1.0 } else { f64::from(v) };
            let expected: f64 = map.iter().skip(i % c).step_by(c).map(|&v| square(v)).sum();
            let got: f64 = of_channel.iter().map(|&v| f64::from(v)).sum();
            assert!((got - expected).abs() <= 1e-5 * expected.abs(), "{g:?}: sum {i} is {got}, not {expected}");
        }
        Some(Answers { map, grads })
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
        let case = Case::new(g);
        for gradient in [false, true] {
            let expected = case.expected(gradient);
            assert!(expected.grads.iter().chain(&expected.map).all(|v| v.fract() == 0.0 && v.abs() < 16_777_216.0));
            // A map in bf16 keeps 8 bits of a sum; gradients of weights are f32.
            let kept: Vec<f32> = expected.map.iter().map(|&v| Half::from(v).into()).collect();
            for place in Place::ALL {
                for (precision, map) in [(F32, &expected.map), (Bf16, &kept)] {
                    let Some(got) = case.got(place, gradient, precision) else { continue };
                    assert!(&got.map == map, "{g:?} {precision:?} {place:?}, gradient: {gradient}");
                    assert!(got.grads == expected.grads, "{g:?} {precision:?} {place:?}, gradients of weights");
                }
            }
        }
    }
}
