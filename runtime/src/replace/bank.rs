//! Features in memory, several views of each picture, and how their values are kept.

use super::{Source, draw_box, paste};
use crate::error::{Error, Result};
use crate::rng::Rng;
use crate::shape::Shape;
use crate::slices::{copy, piece, rows_mut};

/// How a feature is kept in memory.
pub trait Stored: Copy {
    /// Whether it is a number.
    fn is_finite(self) -> bool;
    /// Reads some; both slices have the same length.
    fn load(from: &[Self], to: &mut [f32]);
}

impl Stored for f32 {
    fn is_finite(self) -> bool {
        self.is_finite()
    }

    fn load(from: &[Self], to: &mut [f32]) {
        copy(from, to);
    }
}

/// The upper half of an `f32`, rounded to even: half the memory, at a relative error of up to 1/256.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bf16(u16);

impl Bf16 {
    /// Its bits.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Of such bits.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }
}

impl From<f32> for Bf16 {
    fn from(x: f32) -> Self {
        let bits = x.to_bits();
        if x.is_nan() {
            return Self((bits >> 16) as u16 | 0x40);
        }
        Self((bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16)
    }
}

impl From<Bf16> for f32 {
    fn from(x: Bf16) -> Self {
        Self::from_bits(u32::from(x.0) << 16)
    }
}

impl Stored for Bf16 {
    fn is_finite(self) -> bool {
        f32::from(self).is_finite()
    }

    fn load(from: &[Self], to: &mut [f32]) {
        to.iter_mut().zip(from).for_each(|(to, &x)| *to = x.into());
    }
}

/// Features in memory: `views` augmented versions of each of `labels.len()` pictures, the first one plain.
#[derive(Clone, Copy, Debug)]
pub struct FeatureBank<'a, T = f32> {
    features: &'a [T],
    labels: &'a [u32],
    shape: Shape,
    views: usize,
}

impl<'a, T: Stored> FeatureBank<'a, T> {
    /// A bank over `features` (`[views][labels.len()][shape]`).
    ///
    /// # Errors
    /// [`Error::WrongLength`], [`Error::NotFinite`].
    pub fn new(features: &'a [T], labels: &'a [u32], shape: Shape, views: usize) -> Result<Self> {
        let needed = views.saturating_mul(labels.len()).saturating_mul(shape.len());
        if features.len() != needed || views == 0 {
            return Err(Error::WrongLength { needed, given: features.len() });
        }
        if !features.iter().all(|v| v.is_finite()) {
            return Err(Error::NotFinite);
        }
        Ok(Self { features, labels, shape, views })
    }

    fn view(&self, view: usize, picture: usize) -> &'a [T] {
        let len = self.shape.len();
        piece(self.features, (view * self.labels.len() + picture) * len, len)
    }

    /// What is drawn for a picture: a view of it, and of its partner where it has one.
    pub(crate) fn draw(&self, picture: u32, partner: Option<u32>, rng: &mut Rng) -> Drawn<'a, T> {
        let own = self.view(rng.below(self.views), picture as usize);
        Drawn { own, partner: partner.map(|p| self.view(rng.below(self.views), p as usize)) }
    }
}

/// The features drawn for one place of a batch.
pub(crate) struct Drawn<'a, T> {
    own: &'a [T],
    partner: Option<&'a [T]>,
}

impl<T: Stored> Drawn<'_, T> {
    /// Writes them, the partner's box pasted in.
    pub(crate) fn load(&self, s: Shape, area: [usize; 4], x: &mut [f32]) {
        T::load(self.own, x);
        if let Some(partner) = self.partner {
            paste(s, area, partner, x);
        }
    }
}

impl<T: Stored> Source for FeatureBank<'_, T> {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn labels(&self) -> &[u32] {
        self.labels
    }

    fn plain(&mut self, first: usize, n: usize, x: &mut [f32]) {
        for (i, x) in rows_mut(x, self.shape.len()).take(n).enumerate() {
            T::load(self.view(0, first + i), x);
        }
    }

    fn batch(&mut self, batch: &[u32], mix: Option<&[u32]>, rng: &mut Rng, x: &mut [f32]) -> f32 {
        let (area, keep) = draw_box(self.shape, mix.is_some(), rng);
        for (i, (x, &picture)) in rows_mut(x, self.shape.len()).zip(batch).enumerate() {
            self.draw(picture, mix.and_then(|m| m.get(i)).copied(), rng).load(self.shape, area, x);
        }
        keep
    }
}
