//! The scalar reference of every forward kernel: one picture, NHWC, plain loops. The fast kernels are tested against it, and
//! targets without SIMD run it.
//!
//! Sums run in a fixed order in `f32`, so that a result is the same on every machine. Slices must have the lengths the
//! arguments tell; a shorter one panics.

use crate::net::{Activation, AffineArgs, ConvArgs, LinearArgs, MulArgs, PoolArgs, cells_on_map};

impl Activation {
    /// The activation of one element.
    #[inline]
    pub fn apply(self, x: f32) -> f32 {
        match self {
            Self::None => x,
            Self::Relu => x.max(0.0),
            Self::Relu6 => x.clamp(0.0, 6.0),
            Self::Leaky(slope) => {
                if x > 0.0 {
                    x
                } else {
                    slope * x
                }
            }
            Self::HardSwish => x * hard_sigmoid(x),
            Self::HardSigmoid => hard_sigmoid(x),
            Self::Sigmoid => 1.0 / (1.0 + libm::expf(-x)),
        }
    }
}

fn hard_sigmoid(x: f32) -> f32 {
    (x / 6.0 + 0.5).clamp(0.0, 1.0)
}

/// Applies an activation in place.
pub(super) fn activate(act: Activation, y: &mut [f32]) {
    if act != Activation::None {
        y.iter_mut().for_each(|y| *y = act.apply(*y));
    }
}

/// The pairs (position in the kernel, position in the input) of output position `out` that do not fall on padding.
fn taps(out: usize, kernel: u32, stride: u32, pad: u32, side: u32) -> impl Iterator<Item = (usize, usize)> {
    cells_on_map(out, kernel, stride, pad, side).map(move |k| (k, out * stride as usize + k - pad as usize))
}

/// act(sum over the window of x * weight + bias). `x`: `[h][w][cin]`, `y`: `[h'][w'][cout]`.
pub fn conv(args: &ConvArgs<'_>, x: &[f32], y: &mut [f32]) {
    let [kernel_h, kernel_w] = args.window.kernel;
    let [stride_h, stride_w] = args.window.stride;
    let [top, left, _, _] = args.window.pad;
    let (cin, cout, groups) = (args.x.c as usize, args.y.c as usize, args.groups as usize);
    // Channels of one group, in and out.
    let (group_in, group_out) = (cin / groups, cout / groups);
    for (pixel, y) in y.chunks_exact_mut(cout).enumerate() {
        let (row, column) = (pixel / args.y.w as usize, pixel % args.y.w as usize);
        match args.bias {
            Some(bias) => y.copy_from_slice(bias),
            None => y.fill(0.0),
        }
        for (ky, i) in taps(row, kernel_h, stride_h, top, args.x.h) {
            for (kx, j) in taps(column, kernel_w, stride_w, left, args.x.w) {
                let x = &x[(i * args.x.w as usize + j) * cin..][..cin];
                let weight = &args.weight[(ky * kernel_w as usize + kx) * group_in * cout..][..group_in * cout];
                for (channel, weight) in weight.chunks_exact(cout).enumerate() {
                    for (group, y) in y.chunks_exact_mut(group_out).enumerate() {
                        let x = x[group * group_in + channel];
                        for (y, w) in y.iter_mut().zip(&weight[group * group_out..]) {
                            *y += x * w;
                        }
                    }
                }
            }
        }
        activate(args.act, y);
    }
}

/// act(x * scale + shift), by channel. `x` and `y`: `[pixels][channels]`.
pub fn affine(args: &AffineArgs<'_>, x: &[f32], y: &mut [f32]) {
    for (x, y) in x.chunks_exact(args.channels).zip(y.chunks_exact_mut(args.channels)) {
        y.copy_from_slice(x);
        if let Some(scale) = args.scale {
            y.iter_mut().zip(scale).for_each(|(y, s)| *y *= s);
        }
        if let Some(shift) = args.shift {
            y.iter_mut().zip(shift).for_each(|(y, s)| *y += s);
        }
        activate(args.act, y);
    }
}

/// act(a + b), element by element, equal lengths.
pub fn add(act: Activation, a: &[f32], b: &[f32], y: &mut [f32]) {
    for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
        *y = act.apply(a + b);
    }
}

/// act(a * b). `a` and `y`: `[pixels][channels]`; `b`: the same, or `[channels]`.
pub fn mul(args: &MulArgs, a: &[f32], b: &[f32], y: &mut [f32]) {
    for (pixel, (a, y)) in a.chunks_exact(args.channels).zip(y.chunks_exact_mut(args.channels)).enumerate() {
        let b = if args.by_channel { b } else { &b[pixel * args.channels..] };
        for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
            *y = args.act.apply(a * b);
        }
    }
}

/// `a` and `b` side by side along channels. `a`: `[pixels][channels[0]]`, `b`: `[pixels][channels[1]]`.
pub fn concat(channels: [usize; 2], a: &[f32], b: &[f32], y: &mut [f32]) {
    let pixels = a.chunks_exact(channels[0]).zip(b.chunks_exact(channels[1]));
    for (y, (a, b)) in y.chunks_exact_mut(channels[0] + channels[1]).zip(pixels) {
        let (left, right) = y.split_at_mut(channels[0]);
        left.copy_from_slice(a);
        right.copy_from_slice(b);
    }
}

/// Folds every window with `each`, from `initial` on, padding left out.
fn pool(args: &PoolArgs, x: &[f32], y: &mut [f32], initial: f32, each: impl Fn(&mut f32, f32)) {
    let channels = args.x.c as usize;
    let [kernel_h, kernel_w] = args.window.kernel;
    let [stride_h, stride_w] = args.window.stride;
    let [top, left, _, _] = args.window.pad;
    for (pixel, y) in y.chunks_exact_mut(channels).enumerate() {
        let (row, column) = (pixel / args.y.w as usize, pixel % args.y.w as usize);
        y.fill(initial);
        for (_, i) in taps(row, kernel_h, stride_h, top, args.x.h) {
            for (_, j) in taps(column, kernel_w, stride_w, left, args.x.w) {
                let x = &x[(i * args.x.w as usize + j) * channels..][..channels];
                y.iter_mut().zip(x).for_each(|(y, x)| each(y, *x));
            }
        }
    }
}

/// The largest value in each window; padding never wins. `x`: `[h][w][c]`, `y`: `[h'][w'][c]`.
pub fn max_pool(args: &PoolArgs, x: &[f32], y: &mut [f32]) {
    pool(args, x, y, f32::NEG_INFINITY, |y, x| *y = y.max(x));
}

/// The mean of each window, over the kernel's area if `count_pad`, else over the pixels that are not padding. `x`:
/// `[h][w][c]`, `y`: `[h'][w'][c]`.
pub fn avg_pool(args: &PoolArgs, count_pad: bool, x: &[f32], y: &mut [f32]) {
    pool(args, x, y, 0.0, |y, x| *y += x);
    let [kernel_h, kernel_w] = args.window.kernel;
    let [stride_h, stride_w] = args.window.stride;
    let [top, left, _, _] = args.window.pad;
    for (pixel, y) in y.chunks_exact_mut(args.y.c as usize).enumerate() {
        let (row, column) = (pixel / args.y.w as usize, pixel % args.y.w as usize);
        let count = if count_pad {
            kernel_h as f32 * kernel_w as f32
        } else {
            let rows = taps(row, kernel_h, stride_h, top, args.x.h).count();
            (rows * taps(column, kernel_w, stride_w, left, args.x.w).count()) as f32
        };
        y.iter_mut().for_each(|y| *y /= count);
    }
}

/// The mean over all pixels. `x`: `[pixels][c]`, `y`: `[c]`.
pub fn global_avg_pool(x: &[f32], y: &mut [f32]) {
    let channels = y.len();
    y.fill(0.0);
    for x in x.chunks_exact(channels) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
    }
    let pixels = (x.len() / channels) as f32;
    y.iter_mut().for_each(|y| *y /= pixels);
}

/// act(x^T weight + bias). `x`: `[in]`, `weight`: `[in][out]`, `y`: `[out]`.
pub fn linear(args: &LinearArgs<'_>, x: &[f32], y: &mut [f32]) {
    match args.bias {
        Some(bias) => y.copy_from_slice(bias),
        None => y.fill(0.0),
    }
    for (x, row) in x.iter().zip(args.weight.chunks_exact(y.len())) {
        y.iter_mut().zip(row).for_each(|(y, w)| *y += x * w);
    }
    activate(args.act, y);
}
