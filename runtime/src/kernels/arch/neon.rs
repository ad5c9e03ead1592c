//! 4 lanes: NEON.

use crate::kernels::vector::Vector;
use core::arch::aarch64::*;

/// Four `f32` in one register.
#[derive(Clone, Copy)]
pub(crate) struct F32x4(float32x4_t);

// SAFETY (all blocks below): the trait's contract gives the instruction set and valid pointers.
impl Vector for F32x4 {
    const LANES: usize = 4;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: see the note above the impl.
        unsafe { Self(vdupq_n_f32(x)) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: see the note above the impl.
        unsafe { Self(vld1q_f32(p)) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: see the note above the impl.
        unsafe { vst1q_f32(p, self.0) }
    }
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> Self {
        let mut part = [0.0f32; 4];
        // SAFETY: `n < 4` elements are valid at `p`.
        unsafe {
            core::ptr::copy_nonoverlapping(p, part.as_mut_ptr(), n);
            Self(vld1q_f32(part.as_ptr()))
        }
    }
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize) {
        let mut part = [0.0f32; 4];
        // SAFETY: `n < 4` elements are valid at `p`.
        unsafe {
            vst1q_f32(part.as_mut_ptr(), self.0);
            core::ptr::copy_nonoverlapping(part.as_ptr(), p, n);
        }
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: see the note above the impl.
        unsafe { Self(vfmaq_f32(c.0, self.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: see the note above the impl.
        unsafe { Self(vaddq_f32(self.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        // SAFETY: see the note above the impl.
        unsafe { Self(vsubq_f32(self.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: see the note above the impl.
        unsafe { Self(vmulq_f32(self.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        // SAFETY: see the note above the impl.
        unsafe { Self(vbslq_f32(vcgtq_f32(self.0, b.0), self.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn min(self, b: Self) -> Self {
        // SAFETY: see the note above the impl.
        unsafe { Self(vbslq_f32(vcltq_f32(self.0, b.0), self.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn where_positive(self, yes: Self, no: Self) -> Self {
        // SAFETY: see the note above the impl.
        unsafe { Self(vbslq_f32(vcgtzq_f32(self.0), yes.0, no.0)) }
    }
}
