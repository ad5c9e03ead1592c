//! What kernels take: the structures of `kernels/*.cu`, field by field, pointers as addresses.

use bytemuck::{Pod, Zeroable};

/// Declares such structures: all fields public, no padding (a `_end` field stands for C's).
macro_rules! arguments {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        pub(super) struct $name {
            $(pub(super) $field: $type,)*
        }

        const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$type>())*);

        // SAFETY: every field is a plain integer or float (or such a structure itself), for which all zeros is a value.
        unsafe impl Zeroable for $name {}
        // SAFETY: `repr(C)`, every bit pattern of every field is a value, and the assertion above shows that there is no padding.
        unsafe impl Pod for $name {}
    )*};
}

arguments! {
    /// What changes from step to step.
    Control {
        seed: u64, steps: u64, epoch: u32, step: u32, pictures: u32, rate: f32, first: f32, second: f32,
    }
    /// Division by a constant.
    Divisor { mul: u64, shift: u32, value: u32 }
    BeginArgs { control: u64 }
    PictureArgs {
        pixels: u64, order: u64, control: u64, x: u64, row: Divisor, pixel: Divisor,
        n: i32, h: i32, w: i32, crop: i32, shift: i32, flip: i32,
    }
    /// What products take and leave.
    Passing {
        x: u64, entry: u64, other: u64, bias: u64, gate: u64, gate_norm: u64, add: u64, y: u64, sums: u64,
        n: i32, ih: i32, iw: i32, ic: i32, oh: i32, ow: i32, oc: i32,
        entry_kind: i32, gate_kind: i32, squash: i32, blocks: i32, slope: f32,
    }
    ConvArgs {
        passing: Passing, w: u64, channels: Divisor, taps_x: [Divisor; 2], rows: [Divisor; 2], columns: [Divisor; 2],
        kh: i32, kw: i32, stride: i32, pad: i32,
    }
    /// What weight gradients take and leave.
    Weighing {
        x: u64, x_entry: u64, dy: u64, dy_entry: u64, dy_other: u64, partial: u64,
        n: i32, ih: i32, iw: i32, ic: i32, oh: i32, ow: i32, oc: i32, taps: i32, x_kind: i32, dy_kind: i32, bias: i32, slope: f32,
    }
    WeightArgs {
        weighing: Weighing, channels: Divisor, taps_x: Divisor, rows: Divisor, columns: Divisor,
        stride: i32, pad: i32, stretch: i32, _end: u32,
    }
    Tiling {
        width: Divisor, height: Divisor, across: Divisor, tiles: Divisor, seen_x: [Divisor; 2], seen_y: [Divisor; 2],
        origin_x: [i32; 2], origin_y: [i32; 2], pictures: i32, stride: i32, spread: i32, row: i32,
    }
    TileArgs {
        passing: Passing, w: u64, tiling: Tiling, taps_x: [i32; 2], taps_y: [i32; 2], packed: [i32; 4],
        rows: [i32; 2], columns: [i32; 2], step: i32, chunk: i32, deep: i32, columns8: i32,
    }
    Packing {
        w: u64, to: u64, ic: i32, oc: i32, kw: i32, gradient: i32, first_y: i32, first_x: i32, taps_y: i32, taps_x: i32,
        step: i32, inner: i32, columns8: i32, thin: i32, block: i32, words: i32,
    }
    PackArgs { all: u64, count: i32, _end: u32 }
    TileWeightArgs {
        weighing: Weighing, tiling: Tiling, taps_x: Divisor, chunk: i32, parts: i32, each: i32, all: i32,
    }
    Reduction { partial: u64, to: u64, splits: i32, len: i32, block: i32, _end: u32 }
    ReduceArgs { all: u64, count: i32, _end: u32 }
    ColumnArgs { x: u64, partial: u64, pixels: i32, c: i32, stretch: i32, _end: u32 }
    NormArgs {
        sums: u64, gamma: u64, beta: u64, mean: u64, var: u64, state: u64, dgamma: u64, dbeta: u64, k: u64,
        c: i32, blocks: i32, count: i32, _end: u32,
    }
    JoinArgs { dz: u64, x: u64, k: u64, add: u64, dx: u64, quads: Divisor, len: i32, _end: u32 }
    JoinedArgs {
        h: u64, norm: u64, skip: u64, skip_norm: u64, y: u64, sums: u64, skip_sums: u64, quads: Divisor,
        pixels: i32, stretch: i32, blocks: i32, len: i32,
    }
    PoolArgs {
        h: u64, norm: u64, y: u64, index: u64, dh: u64, channels: Divisor, rows: Divisor, columns: Divisor,
        ih: i32, iw: i32, oh: i32, ow: i32, kernel: i32, stride: i32, pad: i32, len: i32,
    }
    TailArgs {
        x: u64, norm: u64, k: u64, weight: u64, bias: u64, labels: u64, forget: u64, order: u64, mates: u64, keep: u64,
        control: u64, pooled: u64, logits: u64, dlogits: u64, dpooled: u64, ce: u64, fit: u64, answers: u64, dweight: u64, dbias: u64,
        sums: u64, dx: u64, n: i32, pixels: i32, c: i32, classes: i32, smoothing: f32, slope: f32,
    }
    LossArgs {
        r: u64, x: u64, d: u64, partial: u64, channels: Divisor, columns: Divisor, rows: Divisor,
        len: i32, blocks: i32, mse: f32, tv: f32,
    }
    MetricArgs {
        ce: u64, partial: u64, control: u64, losses: u64, n: i32, len: i32, blocks: i32, mse: f32, tv: f32, _end: u32,
    }
    StoreArgs { x: u64, bank: u64, place: u64, len: i32, round: i32 }
    GatherArgs {
        bank: u64, own: u64, mates: u64, boxes: u64, control: u64, x: u64, quads: Divisor, columns: Divisor,
        n: i32, len: i32,
    }
    DropoutArgs { x: u64, control: u64, quads: i32, cut: i32, keep: f32, _end: u32 }
    SumArgs { x: u64, sums: u64, pixels: i32, c: i32, stretch: i32, blocks: i32 }
    UpdateArgs {
        p: u64, g: u64, first: u64, second: u64, control: u64, len: i32, sgd: i32, decay: f32, _end: u32,
    }
}

impl Divisor {
    /// For dividends below 2^31; a value of 0 divides nothing.
    pub(super) fn new(value: usize) -> Self {
        let value = value as u32;
        if value == 0 {
            return Self::zeroed();
        }
        let shift = 31 + value.next_power_of_two().trailing_zeros();
        Self { mul: (1u64 << shift).div_ceil(u64::from(value)), shift, value }
    }
}

/// What of a kernel's entry is applied on the fly.
#[derive(Clone, Copy, Debug)]
pub(super) enum Entry {
    /// Nothing.
    Plain,
    /// `leaky(x * scale + shift)`: scale and shift at this address, the slope below 0.
    Norm(u64, f32),
    /// `k1 * x + k2 * other + k3`: the coefficients and the other map.
    Back(u64, u64),
}

impl Entry {
    /// Kind, coefficients, other map, as kernels take them.
    pub(super) fn parts(self) -> (i32, u64, u64) {
        match self {
            Self::Plain => (0, 0, 0),
            Self::Norm(at, _) => (1, at, 0),
            Self::Back(k, other) => (2, k, other),
        }
    }

    /// The slope below 0; none: there is no ReLU.
    pub(super) fn slope(self) -> Option<f32> {
        if let Self::Norm(_, slope) = self { Some(slope) } else { None }
    }
}

/// What multiplies a gradient on its way out.
#[derive(Clone, Copy, Debug)]
pub(super) enum Gate {
    /// Nothing.
    Open,
    /// The slope of the leaky ReLU behind a norm: the norm's input, its scale and shift, the slope below 0.
    Leaky(u64, u64, f32),
    /// 0 where this rectified map is 0.
    Rectified(u64),
}

impl Gate {
    /// Kind, map, scale and shift, as kernels take them.
    pub(super) fn parts(self) -> (i32, u64, u64) {
        match self {
            Self::Open => (0, 0, 0),
            Self::Leaky(x, norm, _) => (1, x, norm),
            Self::Rectified(y) => (2, y, 0),
        }
    }

    /// As [`Entry::slope`].
    pub(super) fn slope(self) -> Option<f32> {
        if let Self::Leaky(_, _, slope) = self { Some(slope) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divisors_divide() {
        for value in [1usize, 2, 3, 5, 7, 9, 16, 27, 31, 48, 640, 1000, 65_535, 65_536, (1 << 20) + 7, (1 << 31) - 1] {
            let d = Divisor::new(value);
            let value = value as u64;
            for n in [0, 1, 2, value - 1, value, value + 1, 2 * value - 1, 1_000_003, (1 << 31) - 2, (1 << 31) - 1] {
                let n = n.min((1 << 31) - 1);
                assert_eq!((u128::from(n) * u128::from(d.mul)) >> d.shift, u128::from(n / value), "{n} / {value}");
                assert!(u128::from(n) * u128::from(d.mul) < 1 << 64, "{n} / {value} overflows");
            }
        }
    }
}
