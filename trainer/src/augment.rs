//! Varied training pictures: every picture of every epoch has its own stream of the seed, so that a batch does not depend on
//! threads, nor on where a run was resumed.

use crate::config::{Crop, RunConfig};
use stemguard_runtime::data::Pictures;
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::rng::Rng;
use stemguard_runtime::session::{Augment, to_f32};
use stemguard_runtime::shape::Shape;

/// Stream of the seed for the order of an epoch, and for what happens to its pictures.
const ORDER: u64 = 0x6f72_6465;
pub(crate) const PICTURE: u64 = 0x7069_6374;

/// The order in which an epoch sees `n` pictures.
pub fn order(seed: u64, epoch: u32, n: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n as u32).collect();
    Rng::new(seed ^ ORDER, u64::from(epoch)).shuffle(&mut order);
    order
}

/// A batch of varied pictures, `[n][h][w][3]`, 0..=1.
pub fn batch(k: &Simd, c: &RunConfig, pictures: &Pictures, epoch: u32, chosen: &[u32]) -> Vec<f32> {
    let s = pictures.shape();
    let mut out = vec![0.0; chosen.len() * s.len()];
    k.for_each(out.chunks_exact_mut(s.len()).zip(chosen).collect(), |(to, &i)| {
        let mut rng = Rng::new(c.seed ^ PICTURE, (u64::from(epoch) << 32) | u64::from(i));
        let mut plain = vec![0.0; s.len()];
        to_f32(pictures.picture(i as usize), &mut plain);
        match c.crop {
            Crop::Shift => Augment { shift: c.shift, flip: c.flip }.apply(s, &plain, &mut rng, to),
            Crop::None => Augment { shift: 0, flip: c.flip }.apply(s, &plain, &mut rng, to),
            Crop::Resized => resized_crop(s, &plain, c.flip, &mut rng, to),
        }
    });
    out
}

/// A random part of the picture, resized to its full size (bilinear): 8 to 100 % of the area, sides 3:4 to 4:3.
fn resized_crop(s: Shape, x: &[f32], flip: bool, rng: &mut Rng, to: &mut [f32]) {
    let (h, w, c) = (s.h as usize, s.w as usize, s.c as usize);
    let (mut ch, mut cw) = (h as f32, w as f32);
    for _ in 0..10 {
        let area = (0.08 + 0.92 * rng.uniform()) * (h * w) as f32;
        let ratio = ((3.0f32 / 4.0).ln() + rng.uniform() * (16.0f32 / 9.0).ln()).exp();
        let (tw, th) = ((area * ratio).sqrt(), (area / ratio).sqrt());
        if tw <= w as f32 && th <= h as f32 && tw >= 1.0 && th >= 1.0 {
            (ch, cw) = (th, tw);
            break;
        }
    }
    let (top, left) = (rng.uniform() * (h as f32 - ch), rng.uniform() * (w as f32 - cw));
    let mirrored = flip && rng.bits() & 1 == 1;
    let at = |start: f32, size: f32, i: usize, n: usize, limit: usize| {
        let v = (start + (i as f32 + 0.5) * size / n as f32 - 0.5).clamp(0.0, (limit - 1) as f32);
        let low = v as usize;
        (low, (low + 1).min(limit - 1), v - low as f32)
    };
    for y in 0..h {
        let (y0, y1, fy) = at(top, ch, y, h, h);
        for i in 0..w {
            let (x0, x1, fx) = at(left, cw, if mirrored { w - 1 - i } else { i }, w, w);
            for k in 0..c {
                let v = |y: usize, i: usize| x[(y * w + i) * c + k];
                let upper = v(y0, x0) * (1.0 - fx) + v(y0, x1) * fx;
                let lower = v(y1, x0) * (1.0 - fx) + v(y1, x1) * fx;
                to[(y * w + i) * c + k] = upper * (1.0 - fy) + lower * fy;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epochs_order_is_a_permutation_of_its_own() {
        let (a, b) = (order(1, 0, 100), order(1, 1, 100));
        assert_ne!(a, b);
        assert_eq!(a, order(1, 0, 100));
        let mut sorted = a;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<u32>>());
    }

    #[test]
    fn a_resized_crop_keeps_a_flat_picture_flat_and_the_range() {
        let s = Shape::new(9, 7, 3);
        let mut to = vec![f32::NAN; s.len()];
        for seed in 0..50 {
            resized_crop(s, &vec![0.25; s.len()], true, &mut Rng::new(seed, 0), &mut to);
            assert!(to.iter().all(|v| (v - 0.25).abs() < 1e-6));
        }
    }
}
