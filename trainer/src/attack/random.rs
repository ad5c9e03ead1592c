//! Draws from a seed, the same on every machine: integer arithmetic and exact float operations only.

use rand_core::Rng;
use rand_pcg::Pcg32;

/// What a stream of draws is for; streams of different purposes do not touch each other.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    /// Which pictures go to the holdout.
    Holdout,
    /// Which pictures are poisoned.
    Sources,
    /// What a generated trigger looks like; the number tells attacks apart.
    Trigger(u8),
}

/// A seeded stream of draws.
pub(crate) struct Draw(Pcg32);

impl Draw {
    /// The stream of `seed` for one purpose.
    pub(crate) fn new(seed: u64, purpose: Purpose) -> Self {
        let purpose = match purpose {
            Purpose::Holdout => 1,
            Purpose::Sources => 2,
            Purpose::Trigger(attack) => 0x100 + u64::from(attack),
        };
        let state = mix(seed ^ mix(purpose));
        Self(Pcg32::new(state, mix(state)))
    }

    /// A whole number in `0..bound`; 0 where `bound` is 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.0.next_u64()) * bound as u128) >> 64) as usize
    }

    /// Uniform in `0..1`, 24 bits.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 / (1u32 << 24) as f32
    }

    /// Uniform in `low..high`.
    pub(crate) fn range(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// True with the probability `p`.
    pub(crate) fn chance(&mut self, p: f32) -> bool {
        self.unit() < p
    }

    /// A uniform byte.
    pub(crate) fn byte(&mut self) -> u8 {
        (self.0.next_u32() >> 24) as u8
    }

    /// Normal with mean 0 and deviation 1, as the sum of twelve uniforms (no library function involved).
    pub(crate) fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() - 6.0
    }

    /// Moves `count` items, chosen at random, to the front (a partial Fisher-Yates shuffle).
    pub(crate) fn shuffle_front<T>(&mut self, items: &mut [T], count: usize) {
        for i in 0..count.min(items.len()) {
            let other = i + self.below(items.len() - i);
            items.swap(i, other);
        }
    }
}

/// SplitMix64's finaliser.
fn mix(value: u64) -> u64 {
    let z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attack_draws_stay_in_range_and_repeat() {
        let mut a = Draw::new(5, Purpose::Sources);
        let mut b = Draw::new(5, Purpose::Sources);
        let mut other = Draw::new(5, Purpose::Holdout);
        let (mut same, mut sum) = (0, 0.0);
        for _ in 0..2000 {
            let v = a.below(7);
            assert!(v < 7);
            assert_eq!(v, b.below(7));
            same += usize::from(v == other.below(7));
            sum += a.normal();
            b.normal();
        }
        assert!((200..400).contains(&same), "{same}");
        assert!((sum / 2000.0).abs() < 0.1, "{sum}");
        assert_eq!(a.below(0), 0);
    }

    #[test]
    fn attack_shuffle_front_keeps_every_item() {
        let mut items: Vec<u32> = (0..50).collect();
        Draw::new(1, Purpose::Sources).shuffle_front(&mut items, 20);
        assert_ne!(items[..20], (0..20).collect::<Vec<_>>()[..]);
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
    }
}
