//! A small vector of `f32`, the one abstraction the fast kernels are generic over.
//!
//! Instances live in `arch/`: 16 lanes (AVX-512), 8 lanes (AVX2 + FMA), 4 lanes (NEON), and a single `f32` for any other
//! processor. Every method is unsafe for one reason: it may only run where its instruction set exists; pointer arguments must
//! be valid for the lanes they name, without alignment.

/// `LANES` values of `f32`.
///
/// # Safety
/// Callers of any method guarantee that the processor has the instance's instruction set, and that pointers are valid for
/// `LANES` elements (`n < LANES` for the `_part` methods).
#[allow(clippy::missing_safety_doc)]
pub(crate) trait Vector: Copy {
    /// Values in one vector.
    const LANES: usize;
    /// All lanes equal to `x`.
    unsafe fn splat(x: f32) -> Self;
    /// `LANES` values from memory.
    unsafe fn load(p: *const f32) -> Self;
    /// `LANES` values to memory.
    unsafe fn store(self, p: *mut f32);
    /// The first `n` lanes from memory, the others zero.
    unsafe fn load_part(p: *const f32, n: usize) -> Self;
    /// The first `n` lanes to memory.
    unsafe fn store_part(self, p: *mut f32, n: usize);
    /// `self * b + c`, rounded once by the vectors, after each step by a single `f32`.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// `self + b`
    unsafe fn add(self, b: Self) -> Self;
    /// `self - b`
    unsafe fn sub(self, b: Self) -> Self;
    /// `self * b`
    unsafe fn mul(self, b: Self) -> Self;
    /// `self` where `self > b`, else `b`.
    unsafe fn max(self, b: Self) -> Self;
    /// `self` where `self < b`, else `b`.
    unsafe fn min(self, b: Self) -> Self;
    /// `yes` where `self > 0`, else `no`.
    unsafe fn where_positive(self, yes: Self, no: Self) -> Self;
    /// Asks for a cache line that is needed soon; any address will do.
    #[inline(always)]
    unsafe fn fetch(_: *const f32) {}
}

/// One vector from memory, or its first `n` lanes with the others zero.
///
/// # Safety
/// As for [`Vector::load`] and [`Vector::load_part`].
#[inline(always)]
pub(super) unsafe fn load<V: Vector, const PART: bool>(p: *const f32, n: usize) -> V {
    // SAFETY: the caller's promise.
    unsafe { if PART { V::load_part(p, n) } else { V::load(p) } }
}

/// One vector to memory, or its first `n` lanes.
///
/// # Safety
/// As for [`Vector::store`] and [`Vector::store_part`].
#[inline(always)]
pub(super) unsafe fn store<V: Vector, const PART: bool>(v: V, p: *mut f32, n: usize) {
    // SAFETY: the caller's promise.
    unsafe { if PART { v.store_part(p, n) } else { v.store(p) } }
}

/// `by_channel!(V, channels, |i, PART, n| { ... })` runs the block for each whole vector of channels, which starts at channel
/// `i` (`PART` is false), then for the `n` channels that are left (`PART` is true). The block is pasted twice, with `PART` a
/// constant: unlike a closure's, its code is sure to be compiled with the caller's target features.
macro_rules! by_channel {
    ($vector:ident, $channels:expr, |$i:ident, $part:ident, $n:ident| $block:block) => {{
        let mut $i = 0;
        while $i + $vector::LANES <= $channels {
            const $part: bool = false;
            let $n = 0;
            $block
            $i += $vector::LANES;
        }
        if $i < $channels {
            const $part: bool = true;
            let $n = $channels - $i;
            $block
        }
    }};
}
pub(super) use by_channel;

impl Vector for f32 {
    const LANES: usize = 1;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        x
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller vouches for the pointer.
        unsafe { p.read() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller vouches for the pointer.
        unsafe { p.write(self) }
    }
    #[inline(always)]
    unsafe fn load_part(_: *const f32, _: usize) -> Self {
        0.0
    }
    #[inline(always)]
    unsafe fn store_part(self, _: *mut f32, _: usize) {}
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        self * b + c
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        self + b
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        self - b
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        self * b
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        if self > b { self } else { b }
    }
    #[inline(always)]
    unsafe fn min(self, b: Self) -> Self {
        if self < b { self } else { b }
    }
    #[inline(always)]
    unsafe fn where_positive(self, yes: Self, no: Self) -> Self {
        if self > 0.0 { yes } else { no }
    }
}
