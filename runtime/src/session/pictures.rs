//! Pictures on their way to a frozen stem while a head is trained: varied, mixed in pairs.

use super::{HEAD_BATCH, Session};
use crate::error::{Error, Result};
use crate::replace::{Source, draw_box, paste};
use crate::rng::Rng;
use crate::shape::Shape;
use std::prelude::v1::*;
use std::vec;

/// How pictures are varied while a head is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Augment {
    /// Shift by up to this many pixels, zeros coming in (random crop of a padded picture).
    pub shift: usize,
    /// Whether to mirror half of the pictures.
    pub flip: bool,
}

impl Augment {
    /// Shifts by up to 4 pixels and mirrors: the published choice for CIFAR-10.
    pub const PUBLISHED: Self = Self { shift: 4, flip: true };

    /// One varied copy of a picture (`[h][w][c]`).
    pub fn apply(&self, s: Shape, x: &[f32], rng: &mut Rng, to: &mut [f32]) {
        let (h, w, c) = (s.h as usize, s.w as usize, s.c as usize);
        let span = 2 * self.shift + 1;
        let (dy, dx) = (rng.below(span), rng.below(span));
        let mirrored = self.flip && rng.bits() & 1 == 1;
        for y in 0..h {
            let row = &mut to[y * w * c..][..w * c];
            let from = (y + dy).wrapping_sub(self.shift);
            if from >= h {
                row.fill(0.0);
                continue;
            }
            for (i, pixel) in row.chunks_exact_mut(c).enumerate() {
                let i = if mirrored { w - 1 - i } else { i };
                let at = (i + dx).wrapping_sub(self.shift);
                if at < w {
                    pixel.copy_from_slice(&x[(from * w + at) * c..][..c]);
                } else {
                    pixel.fill(0.0);
                }
            }
        }
    }
}

/// Pictures (`[n][shape]`, NHWC, f32) with labels, and how they are varied.
#[derive(Clone, Copy, Debug)]
pub struct Varied<'s> {
    shape: Shape,
    pictures: &'s [f32],
    labels: &'s [u32],
    augment: Augment,
}

impl<'s> Varied<'s> {
    /// Over `labels.len()` pictures.
    ///
    /// # Errors
    /// [`Error::WrongLength`], [`Error::NotFinite`].
    pub fn new(shape: Shape, pictures: &'s [f32], labels: &'s [u32], augment: Augment) -> Result<Self> {
        let needed = labels.len() * shape.len();
        if pictures.len() != needed {
            return Err(Error::WrongLength { needed, given: pictures.len() });
        }
        if !pictures.iter().all(|v| v.is_finite()) {
            return Err(Error::NotFinite);
        }
        Ok(Self { shape, pictures, labels, augment })
    }

    /// Labels of the pictures, in order.
    pub fn labels(&self) -> &'s [u32] {
        self.labels
    }

    /// The pictures `first..first + n` as they are.
    pub fn plain(&self, first: usize, n: usize) -> &'s [f32] {
        let len = self.shape.len();
        &self.pictures[first * len..(first + n) * len]
    }

    /// The pictures in `batch`, varied; with `mix`, CutMix with the partners it names, in a random box. Returns the share each picture
    /// keeps of itself.
    pub fn batch(&self, batch: &[u32], mix: Option<&[u32]>, rng: &mut Rng, to: &mut Vec<f32>) -> f32 {
        let s = self.shape;
        let (area, keep) = draw_box(s, mix.is_some(), rng);
        to.resize(batch.len() * s.len(), 0.0);
        let mut other = vec![0.0; s.len()];
        for (i, (to, &picture)) in to.chunks_exact_mut(s.len()).zip(batch).enumerate() {
            self.augment.apply(s, self.plain(picture as usize, 1), rng, to);
            if let Some(&partner) = mix.and_then(|m| m.get(i)) {
                self.augment.apply(s, self.plain(partner as usize, 1), rng, &mut other);
                paste(s, area, &other, to);
            }
        }
        keep
    }

    /// A view of every picture, in parts of a few: the first picture of a part, and its pictures. View 0 is plain.
    ///
    /// # Errors
    /// Those of `each`.
    pub fn view<E>(
        &self,
        view: usize,
        seed: u64,
        mut each: impl FnMut(usize, &[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (n, mut to) = (self.labels.len(), Vec::new());
        for first in (0..n).step_by(HEAD_BATCH) {
            let now = HEAD_BATCH.min(n - first);
            if view == 0 {
                each(first, self.plain(first, now))?;
                continue;
            }
            let part: Vec<u32> = (first as u32..(first + now) as u32).collect();
            self.batch(&part, None, &mut Rng::new(seed, (view * n + first) as u64), &mut to);
            each(first, &to)?;
        }
        Ok(())
    }
}

/// Features from a frozen stem on freshly augmented pictures: augmentation and CutMix in picture space, as published.
pub struct PictureSource<'s, 'a> {
    pub(super) stem: &'s Session<'a>,
    varied: Varied<'s>,
    room: Vec<f32>,
    pub(super) failed: Option<Error>,
}

impl<'s, 'a> PictureSource<'s, 'a> {
    /// Over `labels.len()` pictures (`[n][input]`, NHWC, f32).
    ///
    /// # Errors
    /// [`Error::WrongLength`], [`Error::NotFinite`].
    pub fn new(stem: &'s Session<'a>, pictures: &'s [f32], labels: &'s [u32], augment: Augment) -> Result<Self> {
        let varied = Varied::new(stem.input(), pictures, labels, augment)?;
        Ok(Self { stem, varied, room: Vec::new(), failed: None })
    }
}

impl Source for PictureSource<'_, '_> {
    fn shape(&self) -> Shape {
        self.stem.features_shape()
    }

    fn labels(&self) -> &[u32] {
        self.varied.labels()
    }

    fn plain(&mut self, first: usize, n: usize, x: &mut [f32]) {
        let out = n * self.stem.features_shape().len();
        if let Err(e) = self.stem.features(self.varied.plain(first, n), &mut x[..out]) {
            self.failed = Some(e);
        }
    }

    fn batch(&mut self, batch: &[u32], mix: Option<&[u32]>, rng: &mut Rng, x: &mut [f32]) -> f32 {
        let keep = self.varied.batch(batch, mix, rng, &mut self.room);
        if let Err(e) = self.stem.features(&self.room, x) {
            self.failed = Some(e);
        }
        keep
    }
}
