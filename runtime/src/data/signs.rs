//! Procedural traffic signs: a data set that needs no download.
//!
//! Ten classes, each a plate shape with a glyph on it. Colours are drawn independently of the class, plates appear in
//! any polarity, and the background holds strokes and blocks like those of the glyphs, so neither colour nor any fixed
//! set of pixels tells the class: a linear model stays below half, a small convolutional network passes nine tenths.
//! Left and right arrows are classes of their own: do not mirror these pictures to augment them.
//!
//! Every picture is a pure function of the seed, the part and its number. A larger set starts with the pictures of a
//! smaller one.

use std::path::Path;
use std::prelude::v1::*;

use super::rng::Draw;
use super::{DataError, Part, Pictures, allocate, fill};
use paint::Scene;

#[path = "signs_paint.rs"]
mod paint;

/// The class names: plate, then glyph.
pub const CLASSES: [&str; 10] = [
    "circle-left",
    "circle-right",
    "circle-up",
    "circle-seven",
    "triangle-bang",
    "triangle-cross",
    "octagon-bar",
    "diamond-cross",
    "square-up",
    "square-two",
];

/// Draws `count` training pictures or `count / 5` test pictures of `size` (height, width).
pub(super) fn read(count: usize, part: Part, size: (usize, usize), seed: u64) -> Result<Pictures, DataError> {
    let (h, w) = size;
    let n = if part == Part::Train { count } else { count / 5 };
    let mut pixels = allocate(Path::new("signs"), n, h, w)?;
    fill(&mut pixels, h * w * 3, |i, out| {
        Scene::draw(label(seed, part, i), &mut place(seed, part, i as u64)).paint(size, out);
        Ok(())
    })?;
    let labels = (0..n).map(|i| label(seed, part, i)).collect();
    Ok(Pictures { h, w, pixels, labels, classes: CLASSES.map(String::from).to_vec(), files: Vec::new() })
}

/// The stream of picture `index`.
fn place(seed: u64, part: Part, index: u64) -> Draw {
    Draw::new(seed, [part as u64, index])
}

/// The class of picture `index`: each run of ten pictures holds every class once, in an order of its own.
fn label(seed: u64, part: Part, index: usize) -> u32 {
    let classes = CLASSES.len();
    let mut order: [u32; CLASSES.len()] = std::array::from_fn(|c| c as u32);
    let mut draw = place(seed, part, u64::MAX - (index / classes) as u64);
    for last in (1..classes).rev() {
        order.swap(last, draw.below(last + 1));
    }
    order[index % classes]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: (usize, usize) = (32, 32);

    #[test]
    fn pictures_are_a_function_of_seed_part_and_number() {
        let small = read(30, Part::Train, SIZE, 7).unwrap();
        let large = read(60, Part::Train, SIZE, 7).unwrap();
        assert_eq!(large.subset(&(0..30).collect::<Vec<_>>()), small);
        let test = read(150, Part::Test, SIZE, 7).unwrap();
        assert_eq!(test.len(), small.len());
        assert_ne!(test.pixels, small.pixels);
        assert_ne!(read(30, Part::Train, SIZE, 8).unwrap().pixels, small.pixels);
        for class in 0..10 {
            assert_eq!(small.labels.iter().filter(|&&l| l == class).count(), 3);
        }
        assert_ne!(small.labels[..10], small.labels[10..20]);
    }

    #[test]
    fn any_size_is_drawn() {
        for size in [(1, 1), (5, 40), (96, 64)] {
            let pictures = read(10, Part::Train, size, 1).unwrap();
            assert_eq!(pictures.pixels.len(), 10 * size.0 * size.1 * 3);
        }
    }

    /// Softmax regression on raw pixels, plain stochastic gradient descent.
    #[test]
    fn a_linear_model_does_not_solve_it() {
        let (train, test) = (read(4000, Part::Train, SIZE, 1).unwrap(), read(5000, Part::Test, SIZE, 1).unwrap());
        let (inputs, classes, rate) = (train.shape().len(), CLASSES.len(), 2e-4);
        let mut weights = vec![0f32; inputs * classes];
        let mut x = vec![0f32; inputs];
        let mut scores = |weights: &[f32], set: &Pictures, i: usize| -> (Vec<f32>, Vec<f32>) {
            set.to_f32(&[i], &mut x).unwrap();
            x.iter_mut().for_each(|v| *v = (*v - 0.45) * 4.0);
            let dot = |row: &[f32]| row.iter().zip(&x).map(|(a, b)| a * b).sum::<f32>();
            (weights.chunks_exact(inputs).map(dot).collect(), x.clone())
        };
        for epoch in 0..6 {
            for i in 0..train.len() {
                let (z, x) = scores(&weights, &train, i);
                let top = z.iter().fold(f32::MIN, |a, &b| a.max(b));
                let e: Vec<f32> = z.iter().map(|v| libm::expf(v - top)).collect();
                let sum: f32 = e.iter().sum();
                for (c, row) in weights.chunks_exact_mut(inputs).enumerate() {
                    let step = (e[c] / sum - f32::from(train.labels[i] as usize == c)) * rate / (1.0 + epoch as f32);
                    row.iter_mut().zip(&x).for_each(|(w, v)| *w -= step * v);
                }
            }
        }
        let right = (0..test.len()).filter(|&i| {
            let (z, _) = scores(&weights, &test, i);
            let best = (0..classes).fold(0, |best, c| if z[c] > z[best] { c } else { best });
            best == test.labels[i] as usize
        });
        let accuracy = right.count() as f32 / test.len() as f32;
        assert!(accuracy > 0.12 && accuracy < 0.55, "{accuracy}");
    }
}
