//! The trigger as far as the accused show it: how their pixels differ from those of pictures that nobody accuses.
//!
//! An attack that stamps all its pictures alike is, value by value, close to an affine map: a patch is a constant, a blend is a
//! lower contrast and a shift, an added pattern a shift. Quartiles tell the map without knowing which clean picture a poisoned
//! one was made from, and hardly mind that some of the accused are clean. Stamped on pictures that keep their labels, it teaches
//! a model to look past the trigger (the patching by unlearning of Neural Cleanse, Wang et al., IEEE S&P 2019, which searches
//! its trigger by optimisation instead). An attack that moves pixels about, as WaNet does, leaves no such map; what is found is
//! then close to the identity, and teaches nothing.

use stemguard_runtime::data::Pictures;

/// Fewer accused pictures of a class tell nothing.
const LEAST_PICTURES: usize = 30;
/// Values counted together: one cache line of each picture.
const BLOCK: usize = 64;
/// A span of clean values narrower than this, in levels of 256, tells no contrast.
const LEAST_SPAN: f32 = 4.0;
/// The most by which contrast grows.
const LARGEST_SCALE: f32 = 2.0;

/// A map of pictures, value by value: `scale * x + shift`, in levels 0..=255.
#[derive(Clone, Debug, PartialEq)]
pub struct Imprint {
    /// `[h][w][3]`, 0..=2.
    scale: Vec<f32>,
    /// `[h][w][3]`, levels.
    shift: Vec<f32>,
}

/// The quartiles of each value over some pictures, `[h][w][3]`.
fn quartiles(pictures: &Pictures, members: &[usize]) -> Vec<[f32; 3]> {
    let len = pictures.shape().len();
    let mut all = Vec::with_capacity(len);
    for first in (0..len).step_by(BLOCK) {
        let width = BLOCK.min(len - first);
        let mut counts = vec![[0u32; 256]; width];
        for &i in members {
            let values = &pictures.picture(i)[first..first + width];
            counts.iter_mut().zip(values).for_each(|(counts, &v)| counts[usize::from(v)] += 1);
        }
        all.extend(counts.iter().map(|counts| [0.25, 0.5, 0.75].map(|q| quantile(counts, q, members.len()))));
    }
    all
}

/// The level that a share `q` of `n` values lies below; a level holds its values spread evenly around it.
fn quantile(counts: &[u32; 256], q: f32, n: usize) -> f32 {
    let (wanted, mut below) = (q * n as f32, 0.0);
    for (level, &count) in counts.iter().enumerate() {
        let count = count as f32;
        if count > 0.0 && below + count >= wanted {
            return level as f32 - 0.5 + (wanted - below) / count;
        }
        below += count;
    }
    255.0
}

/// How far two sets of pictures lie apart: the mean square of the differences of their quartiles.
fn distance(a: &[[f32; 3]], b: &[[f32; 3]]) -> f32 {
    let apart = |(a, b): (&[f32; 3], &[f32; 3])| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
    a.iter().zip(b).map(apart).sum::<f32>() / a.len().max(1) as f32
}

impl Imprint {
    /// What the accused with the given label `class` show beside pictures that are not accused: those of other classes, or those
    /// of the same one (clean-label attacks), whichever are more like them. `None` where too few are accused, or not accused.
    pub fn of(suspects: &Pictures, accused: &[bool], class: u32) -> Option<Self> {
        let members = |of: bool, same: bool| -> Option<Vec<usize>> {
            let belongs = |&i: &usize| accused[i] == of && (suspects.labels[i] == class) == same;
            Some((0..suspects.len()).filter(belongs).collect()).filter(|m: &Vec<usize>| m.len() >= LEAST_PICTURES)
        };
        let stamped = quartiles(suspects, &members(true, true)?);
        let plain = [false, true].into_iter().filter_map(|same| Some(quartiles(suspects, &members(false, same)?)));
        let plain = plain.min_by(|a, b| distance(&stamped, a).total_cmp(&distance(&stamped, b)))?;
        let map = |(s, p): (&[f32; 3], &[f32; 3])| {
            let span = p[2] - p[0];
            let scale = if span < LEAST_SPAN { 1.0 } else { ((s[2] - s[0]) / span).clamp(0.0, LARGEST_SCALE) };
            (scale, s[1] - scale * p[1])
        };
        let (scale, shift) = stamped.iter().zip(&plain).map(map).unzip();
        Some(Self { scale, shift })
    }

    /// That of every class of which some are accused and which shows one, in order.
    pub fn of_all(suspects: &Pictures, accused: &[bool]) -> Vec<(u32, Self)> {
        let named = |&class: &u32| suspects.labels.iter().zip(accused).any(|(&l, &a)| a && l == class);
        let classes = (0..suspects.classes.len() as u32).filter(named);
        classes.filter_map(|class| Some((class, Self::of(suspects, accused, class)?))).collect()
    }

    /// Stamps a picture, `[h][w][3]`; values are rounded and clipped to 0..=255.
    pub fn stamp(&self, picture: &mut [u8]) {
        for ((v, scale), shift) in picture.iter_mut().zip(&self.scale).zip(&self.shift) {
            *v = (scale * f32::from(*v) + shift).round().clamp(0.0, 255.0) as u8;
        }
    }
}

/// Stamps the pictures with the imprints in turn; the class of the imprint that each now wears.
pub fn stamp_all(imprints: &[(u32, Imprint)], pictures: &mut Pictures) -> Vec<u32> {
    let len = pictures.shape().len().max(1);
    let pairs = pictures.pixels.chunks_exact_mut(len).zip(imprints.iter().cycle());
    pairs
        .map(|(picture, (class, imprint))| {
            imprint.stamp(picture);
            *class
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use stemguard_runtime::rng::Rng;

    type Stamp = dyn Fn(&mut [u8]);

    /// Pictures of two pixels with labels 0..4 in turn; those below `poisoned` are stamped and labelled 0.
    fn suspects(n: usize, poisoned: usize, stamp: impl Fn(&mut [u8])) -> (Pictures, Vec<bool>) {
        let mut rng = Rng::new(5, 0);
        let mut pixels: Vec<u8> = (0..n * 6).map(|_| (128.0 + 40.0 * rng.normal()).clamp(0.0, 255.0) as u8).collect();
        pixels.chunks_exact_mut(6).take(poisoned).for_each(stamp);
        let labels = (0..n).map(|i| if i < poisoned { 0 } else { (i % 4) as u32 }).collect();
        let classes = ["a", "b", "c", "d"].map(String::from).to_vec();
        let accused = (0..n).map(|i| i < poisoned).collect();
        (Pictures { h: 1, w: 2, pixels, labels, classes, files: vec![] }, accused)
    }

    #[test]
    fn a_patch_a_blend_and_a_shift_are_read_off_the_accused() {
        let patch = |p: &mut [u8]| p[..3].fill(250);
        let blend = |p: &mut [u8]| p.iter_mut().for_each(|v| *v = (0.8 * f32::from(*v) + 0.2 * 255.0) as u8);
        let shift = |p: &mut [u8]| p[3..].iter_mut().for_each(|v| *v = v.saturating_add(20));
        for (number, stamp) in [&patch as &Stamp, &blend, &shift].into_iter().enumerate() {
            let (pictures, mut accused) = suspects(4000, 500, stamp);
            // A tenth of the poison is not accused, and as many clean pictures of its class are.
            (0..50).for_each(|i| accused[i] = false);
            (0..50).for_each(|i| accused[1000 + 4 * i] = true);
            let imprint = Imprint::of(&pictures, &accused, 0).expect("enough pictures");
            for level in [90u8, 128, 160] {
                let (mut found, mut exact) = ([level; 6], [level; 6]);
                imprint.stamp(&mut found);
                stamp(&mut exact);
                let off = found.iter().zip(exact).map(|(&a, b)| a.abs_diff(b)).max();
                assert!(off <= Some(9), "attack {number}, level {level}: {found:?} for {exact:?}");
            }
        }
    }

    #[test]
    fn too_few_pictures_show_nothing() {
        let (pictures, accused) = suspects(400, 29, |p| p.fill(0));
        assert_eq!(Imprint::of(&pictures, &accused, 0), None);
        assert_eq!(Imprint::of(&pictures, &vec![true; 400], 0), None);
        assert_eq!(Imprint::of(&pictures, &vec![false; 400], 0), None);
    }

    #[test]
    fn a_flat_background_keeps_its_contrast() {
        let (mut pictures, accused) = suspects(400, 100, |_| {});
        pictures.pixels.fill(7);
        let imprint = Imprint::of(&pictures, &accused, 0).expect("enough pictures");
        let mut picture = [0, 7, 50, 100, 200, 255];
        imprint.stamp(&mut picture);
        assert_eq!(picture, [0, 7, 50, 100, 200, 255]);
    }
}
