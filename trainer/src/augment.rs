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

    /// Pictures whose values are all different: the place of each in the set, modulo a prime.
    fn told_apart(n: usize, h: usize, w: usize) -> Pictures {
        let pixels = (0..n * h * w * 3).map(|i| (1 + i % 251) as u8).collect();
        Pictures { h, w, pixels, labels: vec![0; n], classes: vec!["a".into()], files: vec![] }
    }

    /// Picture `i` moved by so many rows and columns, zeros coming in, then mirrored.
    fn moved(p: &Pictures, i: usize, (dy, dx): (isize, isize), mirrored: bool) -> Vec<f32> {
        let value = |y: usize, x: usize, c: usize| {
            let x = if mirrored { p.w - 1 - x } else { x };
            let (y, x) = (y.checked_add_signed(dy)?, x.checked_add_signed(dx)?);
            (y < p.h && x < p.w).then(|| f32::from(p.picture(i)[(y * p.w + x) * 3 + c]) / 255.0)
        };
        let places = (0..p.h * p.w * 3).map(|at| (at / 3 / p.w, at / 3 % p.w, at % 3));
        places.map(|(y, x, c)| value(y, x, c).unwrap_or(0.0)).collect()
    }

    #[test]
    fn a_batch_holds_shifted_and_mirrored_pictures_and_nothing_else() {
        let (p, k) = (told_apart(5, 7, 6), Simd::new(2));
        let published = RunConfig::published("signs".into());
        for (crop, shift, flip) in [(Crop::Shift, 2, true), (Crop::Shift, 1, false), (Crop::None, 2, true)] {
            let c = RunConfig { crop, shift, flip, ..published.clone() };
            let reach = if crop == Crop::None { 0 } else { shift as isize };
            let every: Vec<_> = (-reach..=reach)
                .flat_map(|dy| (-reach..=reach).map(move |dx| (dy, dx)))
                .flat_map(|by| [(by, false), (by, true)])
                .filter(|&(_, mirrored)| flip || !mirrored)
                .collect();
            let mut drawn = vec![0; every.len()];
            let chosen = [3, 0, 4];
            for epoch in 0..400 {
                let got = batch(&k, &c, &p, epoch, &chosen);
                for (got, &i) in got.chunks_exact(p.shape().len()).zip(&chosen) {
                    let found = every.iter().position(|&(by, mirrored)| moved(&p, i as usize, by, mirrored) == got);
                    drawn[found.expect("a shifted picture")] += 1;
                }
            }
            // Each as often as the others: within five standard deviations of a Poisson count.
            let mean = 1200.0 / every.len() as f64;
            assert!(drawn.iter().all(|&n| (f64::from(n) - mean).abs() <= 5.0 * mean.sqrt()), "{crop:?} {drawn:?}");
        }
    }

    #[test]
    fn a_picture_is_varied_alike_in_any_batch_and_anew_in_another_epoch() {
        let (p, c) = (told_apart(5, 7, 6), RunConfig { shift: 3, ..RunConfig::published("signs".into()) });
        let len = p.shape().len();
        let whole = batch(&Simd::new(2), &c, &p, 4, &[0, 1, 2, 3, 4]);
        assert_eq!(batch(&Simd::new(1), &c, &p, 4, &[3]), whole[3 * len..4 * len]);
        assert_ne!(batch(&Simd::new(1), &c, &p, 5, &[0, 1, 2, 3, 4]), whole);
        let other = RunConfig { seed: c.seed + 1, ..c };
        assert_ne!(batch(&Simd::new(1), &other, &p, 4, &[0, 1, 2, 3, 4]), whole);
    }

    /// A picture that tells where each of its values was read: its column in the first channel, its row in the second.
    #[test]
    fn a_resized_crop_is_a_part_of_the_sizes_it_says() {
        let s = Shape::new(40, 40, 2);
        let x: Vec<f32> = (0..40 * 40).flat_map(|i| [(i % 40) as f32, (i / 40) as f32]).collect();
        let (mut mirrored, mut areas) = (0, Vec::new());
        for seed in 0..300 {
            let mut to = vec![f32::NAN; s.len()];
            resized_crop(s, &x, true, &mut Rng::new(seed, 0), &mut to);
            let at = |y: usize, i: usize, k: usize| to[(y * 40 + i) * 2 + k];
            // Linear between the middle columns, where no border is met: the slope is the size of the part over that of the picture.
            let across = (at(20, 24, 0) - at(20, 15, 0)) / 9.0;
            let down = (at(24, 20, 1) - at(15, 20, 1)) / 9.0;
            assert!(down > 0.0 && (at(20, 20, 0) - at(20, 19, 0) - across).abs() < 1e-4, "seed {seed}");
            assert!((0..40).all(|y| (at(y, 20, 0) - at(20, 20, 0)).abs() < 1e-4), "seed {seed}: rows alike");
            mirrored += usize::from(across < 0.0);
            let (area, ratio) = (across.abs() * down, across.abs() / down);
            assert!((0.0799..1.0001).contains(&area) && (0.749..1.334).contains(&ratio), "{seed}: {area} {ratio}");
            areas.push(area);
        }
        assert!((110..=190).contains(&mirrored), "{mirrored} of 300 mirrored");
        areas.sort_by(f32::total_cmp);
        assert!(areas[30] < 0.25 && areas[270] > 0.75, "{} to {}", areas[30], areas[270]);
    }
}
