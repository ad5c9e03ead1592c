//! Random draws as a pure function of numbers handed in.

use rand_core::Rng as _;
use rand_pcg::Pcg32;

/// A stream of draws. Integer arithmetic and exact scaling only, so it is the same on every machine.
pub(super) struct Draw(Pcg32);

impl Draw {
    /// The stream of a seed and the place it is used at.
    pub(super) fn new(seed: u64, place: [u64; 2]) -> Self {
        let state = mix(mix(seed).wrapping_add(place[0]));
        Self(Pcg32::new(mix(state.wrapping_add(place[1])), place[1]))
    }

    /// Uniform in `0..1`, in steps of 2^-24.
    pub(super) fn unit(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 / (1 << 24) as f32
    }

    /// Uniform in `low..high`.
    pub(super) fn range(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// True with probability `p`.
    pub(super) fn chance(&mut self, p: f32) -> bool {
        self.unit() < p
    }

    /// Uniform in `0..n`; 0 where `n` is 0. The bias is below `n / 2^32`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.0.next_u32()) * n as u64) >> 32) as usize
    }

    /// Close to normal, mean 0 and deviation 1, within +-3.5: the sum of four uniform draws.
    pub(super) fn normal(&mut self) -> f32 {
        let bits = self.0.next_u64();
        let sum: i32 = (0..4).map(|k| (bits >> (16 * k)) as u16 as i32).sum();
        (sum - 2 * 65_535) as f32 * (1.732_050_8 / 65_536.0)
    }
}

/// The finaliser of SplitMix64.
fn mix(value: u64) -> u64 {
    let z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_have_the_moments_they_claim() {
        let mut draw = Draw::new(1, [2, 3]);
        let n = 100_000;
        let (mut mean, mut square, mut unit) = (0f64, 0f64, 0f64);
        for _ in 0..n {
            let x = f64::from(draw.normal());
            mean += x / n as f64;
            square += x * x / n as f64;
            unit += f64::from(draw.unit()) / n as f64;
            assert!(draw.below(7) < 7 && draw.below(0) == 0);
        }
        assert!(mean.abs() < 0.02 && (square - 1.0).abs() < 0.02 && (unit - 0.5).abs() < 0.01);
    }
}
