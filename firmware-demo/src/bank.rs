//! A bank of pooled features: a fixed number of pictures, one byte a value, filled one picture at a time.
//!
//! The linear head sees of a feature map the mean of the positive and of the negative part of each channel. Those means are
//! banked instead of the map: 128 bytes instead of 4,096 for 8 x 8 x 64. A mean of `m` steps of the stem's output scale, at most
//! 255, is kept as `round(16 sqrt(m))`: small means, which are most of them, keep their precision. Integers alone: host and
//! device bank the same bytes.

use crate::lesson::Taught;
use heapless::Vec;
use stemguard_runtime::net::int8::Quant;
use stemguard_runtime::replace::Source;
use stemguard_runtime::rng::Rng;
use stemguard_runtime::shape::Shape;

/// Channels of the features.
pub const CHANNELS: usize = 64;
/// Banked values of a picture.
pub const WIDTH: usize = 2 * CHANNELS;
/// Pictures a bank holds.
pub const CAPACITY: usize = 256;
/// The features as training sees them: a pixel of positive means and one of negative ones. A linear head over it has the
/// parameters of one over the whole map.
pub const POOLED: Shape = Shape::new(1, 2, CHANNELS as u32);

/// Up to [`CAPACITY`] pictures' pooled features and labels; a sample of all that came, each as likely as any other.
#[derive(Debug)]
pub struct Bank {
    pooled: Vec<[u8; WIDTH], CAPACITY>,
    labels: Vec<u32, CAPACITY>,
    seen: usize,
}

impl Default for Bank {
    fn default() -> Self {
        Self::new()
    }
}

impl Bank {
    /// An empty bank.
    pub const fn new() -> Self {
        Self { pooled: Vec::new(), labels: Vec::new(), seen: 0 }
    }

    /// Forgets all pictures.
    pub fn clear(&mut self) {
        self.pooled.clear();
        self.labels.clear();
        self.seen = 0;
    }

    /// Takes a picture's features in (`[h][w][64]`, values of `quant`): as they come while there is room, then by reservoir
    /// sampling (Vitter's algorithm R, ACM TOMS 11, 1985).
    pub fn take(&mut self, map: &[i8], quant: Quant, label: u32, rng: &mut Rng) {
        self.seen += 1;
        let row = pool(map, quant.zero);
        if self.labels.len() < CAPACITY {
            let _ = (self.pooled.push(row), self.labels.push(label));
            return;
        }
        let at = rng.below(self.seen);
        if let (Some(to), Some(name)) = (self.pooled.get_mut(at), self.labels.get_mut(at)) {
            *to = row;
            *name = label;
        }
    }

    /// Pictures held.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Pictures that came.
    pub const fn seen(&self) -> usize {
        self.seen
    }

    /// The banked bytes, picture by picture.
    pub fn rows(&self) -> impl Iterator<Item = &[u8; WIDTH]> {
        self.pooled.iter()
    }

    /// The labels, picture by picture.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// What is taught of the bank as training features, in the stem's output scale.
    pub fn source<'a>(&'a self, taught: &'a Taught, scale: f32) -> BankSource<'a> {
        BankSource { bank: self, taught, scale }
    }
}

/// `round(16 sqrt(mean))` of the positive and of the negative parts of each channel.
fn pool(map: &[i8], zero: i8) -> [u8; WIDTH] {
    let mut sums = [0u32; WIDTH];
    let (positive, negative) = sums.split_at_mut(CHANNELS);
    let mut pixels = 0;
    for pixel in map.chunks_exact(CHANNELS) {
        pixels += 1;
        for ((p, n), &q) in positive.iter_mut().zip(negative.iter_mut()).zip(pixel) {
            let v = i32::from(q) - i32::from(zero);
            *p += v.max(0) as u32;
            *n += (-v).max(0) as u32;
        }
    }
    sums.map(|sum| {
        // isqrt(4 x) is twice the root of x, rounded down; its half, rounded up, is the root to the nearest.
        let twice = (4 * 256 * sum / pixels.max(1)).isqrt();
        twice.div_ceil(2).min(255) as u8
    })
}

/// A bank's features for [`stemguard_runtime::replace::fit`], of shape [`POOLED`].
#[derive(Clone, Copy, Debug)]
pub struct BankSource<'a> {
    bank: &'a Bank,
    taught: &'a Taught,
    scale: f32,
}

impl BankSource<'_> {
    fn fill(&self, picture: usize, x: &mut [f32]) {
        let number = self.taught.pictures.get(picture);
        let Some(row) = number.and_then(|&i| self.bank.pooled.get(i as usize)) else { return };
        for (i, (x, &k)) in x.iter_mut().zip(row).enumerate() {
            // Pooling divides by the two pixels.
            let mean = 2.0 * (u32::from(k) * u32::from(k)) as f32 / 256.0 * self.scale;
            *x = if i < CHANNELS { mean } else { -mean };
        }
    }
}

impl Source for BankSource<'_> {
    fn shape(&self) -> Shape {
        POOLED
    }

    fn labels(&self) -> &[u32] {
        &self.taught.labels
    }

    fn plain(&mut self, first: usize, n: usize, x: &mut [f32]) {
        x.chunks_exact_mut(WIDTH).take(n).enumerate().for_each(|(i, x)| self.fill(first + i, x));
    }

    fn batch(&mut self, batch: &[u32], _: Option<&[u32]>, _: &mut Rng, x: &mut [f32]) -> f32 {
        x.chunks_exact_mut(WIDTH).zip(batch).for_each(|(x, &picture)| self.fill(picture as usize, x));
        1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lesson::Lesson;
    use stemguard_runtime::head::HeadModel;
    use stemguard_runtime::head::linear::Linear;

    const MAP: Shape = Shape::new(8, 8, CHANNELS as u32);
    const QUANT: Quant = Quant { scale: 0.03, zero: -11 };

    fn map(rng: &mut Rng) -> [i8; 64 * CHANNELS] {
        core::array::from_fn(|_| ((rng.normal() * 20.0) as i32 + i32::from(QUANT.zero)).clamp(-128, 127) as i8)
    }

    #[test]
    fn a_banked_picture_pools_as_its_map_does() {
        let (mut rng, mut bank) = (Rng::new(1, 0), Bank::new());
        let map = map(&mut rng);
        bank.take(&map, QUANT, 3, &mut rng);
        let real = map.map(|q| QUANT.dequantise(q));
        let (mut want, mut x, mut got) = ([0.0; WIDTH], [0.0; WIDTH], [0.0; WIDTH]);
        Linear::new(MAP, 10).unwrap().pool(&real, &mut want);
        let mut taught = Taught::new();
        taught.take(&bank, Lesson::Sound);
        bank.source(&taught, QUANT.scale).plain(0, 1, &mut x);
        Linear::new(POOLED, 10).unwrap().pool(&x, &mut got);
        // Half a step of 16 sqrt(mean), mean in steps of the scale, squared back.
        for (got, want) in got.into_iter().zip(want) {
            let root = (want / QUANT.scale).sqrt();
            let bound = QUANT.scale * (root / 16.0 + 1.0 / 1024.0) + 1e-6;
            assert!((got - want).abs() <= bound, "{got} and {want}");
        }
    }

    #[test]
    fn the_largest_mean_fits_a_byte() {
        assert_eq!(pool(&[127; 64 * CHANNELS], -128)[..CHANNELS], [255; CHANNELS]);
        assert_eq!(pool(&[-128; 64 * CHANNELS], 127)[CHANNELS..], [255; CHANNELS]);
        assert_eq!(pool(&[5; 64 * CHANNELS], 5), [0; WIDTH]);
    }

    #[test]
    fn a_full_bank_keeps_a_fair_sample() {
        let (mut rng, mut bank, map) = (Rng::new(2, 0), Bank::new(), [0; 64 * CHANNELS]);
        for label in 0..2 * CAPACITY as u32 {
            bank.take(&map, QUANT, label, &mut rng);
        }
        let late = bank.labels.iter().filter(|&&label| label >= CAPACITY as u32).count();
        assert_eq!((bank.len(), bank.seen()), (CAPACITY, 2 * CAPACITY));
        // Binomial-like around half, a deviation of about 6.
        assert!((100..156).contains(&late), "{late}");
    }
}
