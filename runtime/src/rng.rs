//! Seeded randomness: PCG-32 streams (O'Neill, HMC-CS-2014-0905), one for each purpose and position, so that any point of a
//! run can be reached again without replaying what came before.

use rand_core::Rng as _;
use rand_pcg::Pcg32;

/// A seeded stream of random numbers.
#[derive(Clone, Debug)]
pub struct Rng(Pcg32);

impl Rng {
    /// The stream numbered `stream` of `seed`.
    pub fn new(seed: u64, stream: u64) -> Self {
        // SplitMix64's finaliser spreads neighbouring seeds and streams (Steele, Lea, Flood, OOPSLA 2014).
        let mix = |mut z: u64| {
            z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        Self(Pcg32::new(mix(seed), mix(stream ^ seed.rotate_left(32))))
    }

    /// 32 random bits.
    pub fn bits(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// Uniform in `0..n`; 0 for `n` of 0. The bias is below `n / 2^32`.
    pub fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.bits()) * n as u64) >> 32) as usize
    }

    /// Uniform in 0..1, 24 bits.
    pub fn uniform(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / 16_777_216.0
    }

    /// Normal, mean 0, variance 1 (Box and Muller).
    pub fn normal(&mut self) -> f32 {
        let u = (self.bits() as f32 + 1.0) / 4_294_967_808.0;
        libm::sqrtf(-2.0 * libm::logf(u)) * libm::cosf(core::f32::consts::TAU * self.uniform())
    }

    /// Shuffles in place (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let chosen = self.below(i + 1);
            // The last of the first `i + 1` items with one of them.
            if let Some((last, others)) = items.get_mut(..=i).and_then(<[T]>::split_last_mut)
                && let Some(other) = others.get_mut(chosen)
            {
                core::mem::swap(last, other);
            }
        }
    }
}
