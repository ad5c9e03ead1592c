//! The choice of instruction set, made once at run time, and the table of kernels for each.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use super::arch;
use super::image::{self, Correlation, Exit, Taps};
use super::pixelwise;
use super::winograd::{self, Grid};

/// An instruction set the fast kernels exist for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isa {
    /// 16 lanes.
    Avx512,
    /// 8 lanes.
    Avx2,
    /// 4 lanes.
    Neon,
    /// One lane: any processor.
    Portable,
}

impl Isa {
    /// The widest instruction set this processor has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            // The kernels of both are compiled for these two.
            if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                return if std::arch::is_x86_feature_detected!("avx512f") { Self::Avx512 } else { Self::Avx2 };
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            return Self::Neon;
        }
        Self::Portable
    }

    /// Every instruction set this processor has, the widest first.
    pub fn available() -> impl Iterator<Item = Self> {
        let best = Self::detect();
        [Self::Avx512, Self::Avx2, Self::Neon, Self::Portable].into_iter().filter(move |isa| match isa {
            Self::Avx512 => best == Self::Avx512,
            Self::Avx2 => matches!(best, Self::Avx512 | Self::Avx2),
            Self::Neon => best == Self::Neon,
            Self::Portable => true,
        })
    }

    /// Values of one vector.
    pub(crate) const fn lanes(self) -> usize {
        match self {
            Self::Avx512 => 16,
            Self::Avx2 => 8,
            Self::Neon => 4,
            Self::Portable => 1,
        }
    }

    /// The name scripts see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Neon => "neon",
            Self::Portable => "portable",
        }
    }
}

/// From one list of kernels, `fn name(arguments) = generic function;`: the type of a table, and the macro `instantiate`, which
/// compiles them all for a vector type `V` under its target features. `P1` to `P4`: pixels that go
/// with one to four vectors.
macro_rules! kernels {
    ($(fn $name:ident($($argument:ident: $type:ty),*) = $kernel:path;)*) => {
        /// The kernels of one instruction set. All are unsafe: see the generic functions they are made from.
        pub(crate) struct Table {
            $(pub(crate) $name: unsafe fn($($type),*),)*
        }

        macro_rules! instantiate {
            ($table:ident, $module:ident, $vector:ty, $p1:literal, $p2:literal, $p3:literal, $p4:literal, $features:meta) => {
                mod $module {
                    use super::*;
                    type V = $vector;
                    const P1: usize = $p1;
                    const P2: usize = $p2;
                    const P3: usize = $p3;
                    const P4: usize = $p4;
                    $(
                        #[$features]
                        #[allow(clippy::too_many_arguments)]
                        unsafe fn $name($($argument: $type),*) {
                            // SAFETY: passed on to the caller.
                            unsafe { $kernel($($argument),*) }
                        }
                    )*
                    pub(super) static TABLE: Table = Table { $($name),* };
                }
                use $module::TABLE as $table;
            };
        }
    };
}

kernels! {
    fn correlate(c: &Correlation, x: *const f32, w: *const f32, b: *const f32, e: &Exit, y: *mut f32)
        = image::correlate::<V, P1, P2, P3, P4>;
    fn outer_product(c: &Correlation, x: *const f32, dy: *const f32, dw: *mut f32) = image::outer_product::<V, P1, P2>;
    fn depthwise(
        c: &Correlation, t: &Taps, x: *const f32, w: *const f32, b: *const f32, e: &Exit, y: *mut f32
    ) = image::depthwise::<V>;
    fn largest(c: &Correlation, x_col: usize, x: *const f32, y: *mut f32) = image::largest::<V>;
    fn linear(n: usize, columns: usize, x: *const f32, w: *const f32, w_row: usize, e: &Exit, y: *mut f32)
        = image::linear::<V>;
    fn add(n: usize, a: *const f32, e: &Exit, y: *mut f32) = pixelwise::add::<V>;
    fn affine(n: usize, c: usize, x: *const f32, a: *const f32, b: *const f32, slope: f32, to: *mut f32)
        = pixelwise::affine::<V>;
    fn finish(n: usize, c: usize, y: *mut f32, add: *const f32, sums: *mut f32) = pixelwise::finish::<V>;
    fn grad_in(n: usize, c: usize, dy: *const f32, x: *const f32, k: *const f32, to: *mut f32, sums: *mut f32)
        = pixelwise::grad_in::<V>;
    fn grad_out(
        n: usize, c: usize, dz: *mut f32, add: *const f32, x: *const f32, a: *const f32, b: *const f32, slope: f32,
        sums: *mut f32
    ) = pixelwise::grad_out::<V>;
    fn norm_grad(n: usize, c: usize, dz: *const f32, x: *const f32, k: *const f32, add: *const f32, dx: *mut f32)
        = pixelwise::norm_grad::<V>;
    fn winograd_input(g: &Grid, part: [usize; 3], x: *const f32, to: *mut f32) = winograd::input::<V>;
    fn winograd_gradient(g: &Grid, part: [usize; 3], x: *const f32, to: *mut f32) = winograd::gradient::<V>;
    fn winograd_output(g: &Grid, part: [usize; 3], m: *const f32, b: *const f32, e: &Exit, y: *mut f32)
        = winograd::output::<V>;
    fn winograd_input_small(g: &Grid, part: [usize; 3], x: *const f32, to: *mut f32) = winograd::input_small::<V>;
    fn winograd_output_small(g: &Grid, part: [usize; 3], m: *const f32, b: *const f32, e: &Exit, y: *mut f32)
        = winograd::output_small::<V>;
    fn winograd_filter_small(n: usize, w: *const f32, to: *mut f32) = winograd::filter_small::<V>;
    fn winograd_filter(n: usize, w: *const f32, to: *mut f32) = winograd::filter::<V>;
    fn winograd_filter_gradient(n: usize, plane: usize, du: *const f32, dw: *mut f32) = winograd::filter_gradient::<V>;
}

#[cfg(target_arch = "x86_64")]
instantiate!(AVX512, avx512, arch::avx512::F32x16, 16, 8, 8, 6, target_feature(enable = "avx512f,avx2,fma"));
#[cfg(target_arch = "x86_64")]
instantiate!(AVX2, avx2, arch::avx2::F32x8, 8, 6, 4, 2, target_feature(enable = "avx2,fma"));
#[cfg(target_arch = "aarch64")]
instantiate!(NEON, neon, arch::neon::F32x4, 8, 8, 8, 6, target_feature(enable = "neon"));
// No feature to enable; never inlined, as the others, which are reached by pointer.
instantiate!(PORTABLE, portable, f32, 4, 4, 4, 2, inline(never));

/// The kernels of an instruction set this processor has.
pub(crate) fn table(isa: Isa) -> &'static Table {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => &AVX512,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => &AVX2,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => &NEON,
        _ => &PORTABLE,
    }
}
