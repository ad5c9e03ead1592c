//! The choice of instruction set, made once at run time, and the table of kernels for each.

use super::image::{self, Correlation};
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
            if std::arch::is_x86_feature_detected!("avx512f") {
                return Self::Avx512;
            }
            if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                return Self::Avx2;
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

/// The kernels of one instruction set. All are unsafe: see the functions of the same names in [`image`].
#[allow(clippy::type_complexity)]
pub(crate) struct Table {
    pub(crate) correlate: unsafe fn(&Correlation, *const f32, *const f32, *const f32, *mut f32),
    pub(crate) outer_product: unsafe fn(&Correlation, *const f32, *const f32, *mut f32),
    pub(crate) depthwise: unsafe fn(&Correlation, *const f32, *const f32, *const f32, *mut f32),
    pub(crate) affine: unsafe fn(usize, usize, *const f32, *const f32, *const f32, f32, *mut f32),
    pub(crate) finish: unsafe fn(usize, usize, *mut f32, *const f32, *mut f32),
    pub(crate) grad_in: unsafe fn(usize, usize, *const f32, *const f32, *const f32, *mut f32, *mut f32),
    pub(crate) grad_out:
        unsafe fn(usize, usize, *mut f32, *const f32, *const f32, *const f32, *const f32, f32, *mut f32),
    pub(crate) norm_grad: unsafe fn(usize, usize, *const f32, *const f32, *const f32, *const f32, *mut f32),
    pub(crate) winograd_input: unsafe fn(&Grid, [usize; 3], *const f32, *mut f32),
    pub(crate) winograd_gradient: unsafe fn(&Grid, [usize; 3], *const f32, *mut f32),
    pub(crate) winograd_output: unsafe fn(&Grid, [usize; 3], *const f32, *const f32, *mut f32),
    pub(crate) winograd_filter: unsafe fn(usize, *const f32, *mut f32),
    pub(crate) winograd_filter_gradient: unsafe fn(usize, *const f32, *mut f32),
}

/// One table: every generic kernel instantiated for a vector type under its target features.
macro_rules! table {
    ($name:ident, $module:ident, $vector:ty, $p1:literal, $p2:literal, $($feature:literal)?) => {
        mod $module {
            use super::*;
            $(#[target_feature(enable = $feature)])?
            unsafe fn correlate(c: &Correlation, x: *const f32, w: *const f32, b: *const f32, y: *mut f32) {
                // SAFETY: passed on to the caller.
                unsafe { image::correlate::<$vector, $p1, $p2>(c, x, w, b, y) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn outer_product(c: &Correlation, x: *const f32, dy: *const f32, dw: *mut f32) {
                // SAFETY: passed on to the caller.
                unsafe { image::outer_product::<$vector, $p1, $p2>(c, x, dy, dw) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn depthwise(c: &Correlation, x: *const f32, w: *const f32, b: *const f32, y: *mut f32) {
                // SAFETY: passed on to the caller.
                unsafe { image::depthwise::<$vector>(c, x, w, b, y) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn affine(
                n: usize, c: usize, x: *const f32, a: *const f32, b: *const f32, slope: f32, to: *mut f32,
            ) {
                // SAFETY: passed on to the caller.
                unsafe { image::affine::<$vector>(n, c, x, a, b, slope, to) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn finish(n: usize, c: usize, y: *mut f32, add: *const f32, sums: *mut f32) {
                // SAFETY: passed on to the caller.
                unsafe { image::finish::<$vector>(n, c, y, add, sums) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn grad_in(
                n: usize, c: usize, dy: *const f32, x: *const f32, k: *const f32, to: *mut f32, sums: *mut f32,
            ) {
                // SAFETY: passed on to the caller.
                unsafe { image::grad_in::<$vector>(n, c, dy, x, k, to, sums) }
            }
            $(#[target_feature(enable = $feature)])?
            #[allow(clippy::too_many_arguments)]
            unsafe fn grad_out(
                n: usize, c: usize, dz: *mut f32, add: *const f32, x: *const f32, a: *const f32, b: *const f32,
                slope: f32, sums: *mut f32,
            ) {
                // SAFETY: passed on to the caller.
                unsafe { image::grad_out::<$vector>(n, c, dz, add, x, a, b, slope, sums) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn norm_grad(
                n: usize, c: usize, dz: *const f32, x: *const f32, k: *const f32, add: *const f32, dx: *mut f32,
            ) {
                // SAFETY: passed on to the caller.
                unsafe { image::norm_grad::<$vector>(n, c, dz, x, k, add, dx) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn winograd_input(g: &Grid, part: [usize; 3], x: *const f32, to: *mut f32) {
                // SAFETY: passed on to the caller.
                unsafe { winograd::input::<$vector>(g, part, x, to) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn winograd_gradient(g: &Grid, part: [usize; 3], x: *const f32, to: *mut f32) {
                // SAFETY: passed on to the caller.
                unsafe { winograd::gradient::<$vector>(g, part, x, to) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn winograd_output(g: &Grid, part: [usize; 3], m: *const f32, bias: *const f32, y: *mut f32) {
                // SAFETY: passed on to the caller.
                unsafe { winograd::output::<$vector>(g, part, m, bias, y) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn winograd_filter(n: usize, w: *const f32, to: *mut f32) {
                // SAFETY: passed on to the caller.
                unsafe { winograd::filter::<$vector>(n, w, to) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn winograd_filter_gradient(n: usize, du: *const f32, dw: *mut f32) {
                // SAFETY: passed on to the caller.
                unsafe { winograd::filter_gradient::<$vector>(n, du, dw) }
            }
            pub(super) static TABLE: Table = Table {
                correlate,
                outer_product,
                depthwise,
                affine,
                finish,
                grad_in,
                grad_out,
                norm_grad,
                winograd_input,
                winograd_gradient,
                winograd_output,
                winograd_filter,
                winograd_filter_gradient,
            };
        }
        use $module::TABLE as $name;
    };
}

#[cfg(target_arch = "x86_64")]
table!(AVX512, avx512, crate::kernels::arch::avx512::F32x16, 16, 8, "avx512f,avx2,fma");
#[cfg(target_arch = "x86_64")]
table!(AVX2, avx2, crate::kernels::arch::avx2::F32x8, 8, 4, "avx2,fma");
#[cfg(target_arch = "aarch64")]
table!(NEON, neon, crate::kernels::arch::neon::F32x4, 8, 8, "neon");
table!(PORTABLE, portable, f32, 4, 4,);

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
