//! What a model takes of a microcontroller's memory, known before anything is flashed.
//!
//! ```text
//! picture -> stem (arena) -> map -> head (map as f32, scratch) -> answer
//!                             +-> pooled -> bank -> training of a linear head -> parameters
//! ```
//!
//! Arena, inference of a head and training are never needed at once and share one [`work`](Footprint::work). What is banked is the
//! map's pooled form: a linear head sees no more of it than the mean of the positive and of the negative part of each channel.

use crate::artifact::HeadSpec;
use crate::error::Result;
use crate::head::linear::Linear;
use crate::head::{self, HeadModel};
use crate::replace;
use crate::shape::Shape;
use crate::stem::Stem;

/// Bytes by use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// The picture as the stem takes it.
    pub picture: usize,
    /// Its features as the stem gives them.
    pub map: usize,
    /// The stem's arena.
    pub arena: usize,
    /// Inference of the model's own head (without one, of a linear head): the map in `f32` and scratch.
    pub head: usize,
    /// Training of a linear head on banked pictures.
    pub training: usize,
    /// The largest of arena, head and training.
    pub work: usize,
    /// The bank: a byte a pooled value and a label of 4 bytes for each picture.
    pub bank: usize,
    /// The order of banked pictures in training.
    pub order: usize,
    /// Parameters of a linear head.
    pub parameters: usize,
}

/// A bank's pictures as training sees them: a pixel of positive means and one of negative ones. A linear head over them has the
/// parameters of one over the whole map.
pub const fn pooled(features: Shape) -> Shape {
    Shape::new(1, 2, features.c)
}

impl Footprint {
    /// Of a stem and its heads (its own and a tripwire's witness, which take turns; none: a linear one), a bank of `capacity` pictures and training steps of `batch` pictures.
    ///
    /// # Errors
    /// As [`HeadModel::new`].
    pub fn of(stem: &Stem<'_>, heads: &[HeadSpec], classes: usize, capacity: usize, batch: usize) -> Result<Self> {
        let features = stem.output();
        let linear = Linear::new(features, classes)?;
        let mut scratch = if heads.is_empty() { linear.inference_len(1) } else { 0 };
        for spec in heads {
            scratch = scratch.max(head::inference_len(spec, 1)?);
        }
        let pooled = pooled(features);
        let training = 4 * replace::memory_len(&Linear::new(pooled, classes)?, batch);
        let (arena, head) = (stem.arena_bytes(), 4 * (features.len() + scratch));
        Ok(Self {
            picture: stem.element() * stem.input().len(),
            map: stem.element() * features.len(),
            arena,
            head,
            training,
            work: arena.max(head).max(training).next_multiple_of(4),
            bank: capacity * (pooled.len() + 4),
            order: 2 * 4 * capacity,
            parameters: 4 * linear.params(),
        })
    }

    /// All of it, the work shared.
    pub const fn total(&self) -> usize {
        self.picture + self.map + self.work + self.bank + self.order + self.parameters
    }
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;
    use crate::artifact::tests::golden;
    use crate::artifact::{Artifact, HeadKind};
    use crate::net::Span;

    #[test]
    fn every_part_is_what_the_core_asks_for() {
        let bytes = golden();
        let artifact = Artifact::new_checked(&bytes).unwrap();
        let stem = artifact.stem();
        let features = stem.output();
        let f = Footprint::of(&stem, &[], 3, 100, 8).unwrap();
        assert_eq!(f.picture, 4 * stem.input().len());
        assert_eq!(f.arena, stem.arena_bytes());
        assert_eq!(f.bank, 100 * (2 * features.c as usize + 4));
        assert_eq!(f.work, f.arena.max(f.head).max(f.training));
        assert_eq!(f.parameters, 4 * crate::artifact::head_params(HeadKind::Linear, features, 3));
        assert_eq!(f.total(), f.picture + f.map + f.work + f.bank + f.order + f.parameters);
        let params = crate::artifact::head_params(HeadKind::Residual, features, 3);
        let span = Span { at: 0, len: params as u32 };
        let spec = HeadSpec { kind: HeadKind::Residual, features, classes: 3, span };
        let small = HeadSpec { kind: HeadKind::Linear, ..spec };
        let of = |heads: &[HeadSpec]| Footprint::of(&stem, heads, 3, 100, 8).unwrap().head;
        assert!(of(&[spec]) > f.head && of(&[small]) == f.head);
        // A witness takes its turn.
        assert!(of(&[small, spec]) == of(&[spec]) && of(&[spec, small]) == of(&[spec]));
        assert!(Footprint::of(&stem, &[], 0, 100, 8).is_err());
    }
}
