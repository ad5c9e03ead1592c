//! Models on a host: a stem or a whole artifact run with the fast kernels, pictures spread over threads, and the shell of head
//! replacement around the core's loop.

use crate::artifact::{ArtifactParts, HeadKind, HeadParts, HeadSpec, TripwireParts, head_params};
use crate::error::{Error, Result};
use crate::head;
use crate::kernels::simd::Simd;
use crate::kernels::team::Lead;
use crate::net::{Net, Span};
use crate::shape::Shape;
use crate::stem::Stem;
use crate::tripwire;
use engine::Engine;
use std::prelude::v1::*;
use std::vec;

pub mod bounds;
mod engine;
mod pictures;
mod replacement;
#[cfg(test)]
mod tests;

pub(crate) use engine::Prepared;
pub use pictures::{Augment, PictureSource, Varied};
pub use replacement::replace_head;

/// Bytes of pictures as 0..=1; as many as both slices hold.
pub fn to_f32(bytes: &[u8], to: &mut [f32]) {
    for (to, &from) in to.iter_mut().zip(bytes) {
        *to = f32::from(from) / 255.0;
    }
}

/// Pictures that go through a head together.
pub(crate) const HEAD_BATCH: usize = 64;

/// A head's sizes, its span counted from 0, and its parameters.
type Head<'a> = (HeadSpec, &'a [f32]);

/// A model on this host: a net, and a head on top of it or none; beside the head a tripwire or none.
#[derive(Debug)]
pub struct Session<'a> {
    stem: Engine<'a>,
    head: Option<Head<'a>>,
    witness: Option<Head<'a>>,
    threshold: Option<f32>,
    kernels: Simd,
}

impl<'a> Session<'a> {
    /// A session over a stem alone: its output is features.
    pub fn of_stem(stem: impl Into<Stem<'a>>, kernels: Simd) -> Self {
        Self { stem: Engine::new(stem.into(), &kernels), head: None, witness: None, threshold: None, kernels }
    }

    /// A session over a net alone: its output is what the net gives.
    pub fn of_net(net: Net<'a>, kernels: Simd) -> Self {
        Self::of_stem(net, kernels)
    }

    /// A session over an artifact: its output is logits with a head, features without.
    ///
    /// # Errors
    /// [`Error::HeadDoesNotFit`], [`Error::TripwireDoesNotFit`].
    pub fn of_artifact(parts: &ArtifactParts<'a>, kernels: Simd) -> Result<Self> {
        let features = parts.stem.output();
        let fitted = |h: HeadParts<'a>| -> Option<Head<'a>> {
            let needed = head_params(h.kind, features, h.classes);
            let span = Span { at: 0, len: u32::try_from(needed).ok()? };
            let spec = HeadSpec { kind: h.kind, features, classes: h.classes, span };
            (h.params.len() == needed).then_some((spec, h.params))
        };
        let head = parts.head.map(|h| fitted(h).ok_or(Error::HeadDoesNotFit)).transpose()?;
        let witness = match parts.tripwire {
            None => None,
            Some(tripwire) if head.is_none_or(|(spec, _)| spec.classes != tripwire.witness.classes) => {
                return Err(Error::TripwireDoesNotFit);
            }
            Some(tripwire) => Some(fitted(tripwire.witness).ok_or(Error::TripwireDoesNotFit)?),
        };
        let threshold = parts.tripwire.map(|tripwire| tripwire.threshold);
        Ok(Self { head, witness, threshold, ..Self::of_stem(parts.stem, kernels) })
    }

    /// The kernels in use.
    pub fn kernels(&self) -> &Simd {
        &self.kernels
    }

    /// Shape of one input.
    pub fn input(&self) -> Shape {
        self.stem.input()
    }

    /// Shape of one output.
    pub fn output(&self) -> Shape {
        match self.head {
            Some((spec, _)) => Shape::new(1, 1, spec.classes),
            None => self.stem.output(),
        }
    }

    /// The score above which its tripwire raises an alarm; `None` without a tripwire.
    pub fn threshold(&self) -> Option<f32> {
        self.threshold
    }

    /// Shape of one picture's features.
    pub fn features_shape(&self) -> Shape {
        self.stem.output()
    }

    /// Features (`[n][stem output]`) of the pictures `x` (`[n][input]`, NHWC). Neither `n` nor the number of threads changes a
    /// picture's features.
    ///
    /// # Errors
    /// [`Error::WrongLength`].
    pub fn features(&self, x: &[f32], out: &mut [f32]) -> Result<()> {
        let (len, to) = (self.stem.input().len(), self.stem.output().len());
        let n = x.len() / len;
        if x.len() != n * len || out.len() != n * to {
            return Err(Error::WrongLength { needed: n * to, given: out.len() });
        }
        // Pictures side by side use every thread fully; one picture shared by all does not, so it takes twice as many threads to pay.
        if self.stem.is_shared() && 2 * n <= self.kernels.threads() {
            return self.stem.run(&self.kernels, self.kernels.lead(), x, out);
        }
        let workers = (self.kernels.threads() * 4).min(n.max(1));
        let chunk = n.div_ceil(workers).max(1);
        let failed = std::sync::Mutex::new(None);
        self.kernels.for_each(x.chunks(chunk * len).zip(out.chunks_mut(chunk * to)).collect(), |(x, out)| {
            if let Err(e) = self.stem.run(&self.kernels, Lead::alone(), x, out) {
                *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(e);
            }
        });
        match failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }

    /// Outputs (`[n][output]`) of the pictures `x`: logits with a head, features without.
    ///
    /// # Errors
    /// [`Error::WrongLength`].
    pub fn infer(&self, x: &[f32], out: &mut [f32]) -> Result<()> {
        match &self.head {
            None => self.features(x, out),
            Some(head) => self.infer_heads(x, head, out, None),
        }
    }

    /// As [`Session::infer`], and the tripwire's score of each picture (`[n]`), in one pass through the stem.
    ///
    /// # Errors
    /// [`Error::WrongLength`], [`Error::TripwireDoesNotFit`] without a tripwire, [`Error::NotFinite`] where logits are not.
    pub fn infer_watched(&self, x: &[f32], out: &mut [f32], scores: &mut [f32]) -> Result<()> {
        let (Some(head), Some(witness)) = (&self.head, &self.witness) else { return Err(Error::TripwireDoesNotFit) };
        let n = x.len() / self.stem.input().len();
        if scores.len() != n {
            return Err(Error::WrongLength { needed: n, given: scores.len() });
        }
        self.infer_heads(x, head, out, Some((witness, scores)))
    }

    /// One pass through the stem, and each head on its features.
    fn infer_heads(
        &self,
        x: &[f32],
        (spec, params): &Head<'_>,
        out: &mut [f32],
        mut watched: Option<(&Head<'_>, &mut [f32])>,
    ) -> Result<()> {
        let (len, classes) = (self.stem.input().len(), spec.classes as usize);
        let n = x.len() / len;
        if x.len() != n * len {
            return Err(Error::WrongLength { needed: n * len, given: x.len() });
        }
        if out.len() != n * classes {
            return Err(Error::WrongLength { needed: n * classes, given: out.len() });
        }
        let most = n.clamp(1, HEAD_BATCH);
        let mut features = vec![0.0; most * spec.features.len()];
        let mut needed = head::inference_len(spec, most)?;
        if let Some(((witness, _), _)) = &watched {
            needed = needed.max(head::inference_len(witness, most)?);
        }
        let mut scratch = vec![0.0; needed];
        let mut second = vec![0.0; most * classes];
        for (part, (x, out)) in x.chunks(HEAD_BATCH * len).zip(out.chunks_mut(HEAD_BATCH * classes)).enumerate() {
            let n = x.len() / len;
            let features = &mut features[..n * spec.features.len()];
            self.features(x, features)?;
            head::infer(&self.kernels, spec, params, n, features, &mut scratch, out)?;
            let Some(((witness, params), scores)) = &mut watched else { continue };
            let second = &mut second[..n * classes];
            head::infer(&self.kernels, witness, params, n, features, &mut scratch, second)?;
            let rows = second.chunks_exact(classes).zip(out.chunks_exact(classes));
            for (score, (witness, new)) in scores[part * HEAD_BATCH..].iter_mut().zip(rows) {
                *score = tripwire::score(witness, new)?;
            }
        }
        Ok(())
    }
}

/// Where augmentation happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Space {
    /// The stem runs once on each of this many augmented views of every picture; CutMix on the feature grid.
    Features {
        /// Views of each picture, the first one plain; at least 1.
        views: usize,
    },
    /// The stem runs on this many passes of augmented pictures, mixed as published (CutMix before the stem); later epochs repeat
    /// their features.
    Mixed {
        /// Passes over the pictures; at least 1.
        views: usize,
    },
    /// The stem runs on every augmented batch, as published.
    Pictures,
}

/// A new head's parameters.
#[derive(Clone, Debug)]
pub struct NewHead {
    /// Its kind.
    pub kind: HeadKind,
    /// Number of classes.
    pub classes: u32,
    /// [`crate::artifact::head_params`] values.
    pub params: Vec<f32>,
}

impl NewHead {
    /// As an artifact takes it.
    pub fn parts(&self) -> HeadParts<'_> {
        HeadParts { kind: self.kind, classes: self.classes, params: &self.params }
    }
}

/// A tripwire over `stem`: `witness` beside the new `head`, its threshold set from clean pictures (`[n][input]`, NHWC) for a
/// false-positive rate, 0..=1.
///
/// # Errors
/// [`Error::HeadDoesNotFit`], [`Error::TripwireDoesNotFit`], and those of [`Session::infer_watched`] and
/// [`tripwire::threshold`].
pub fn set_tripwire<'a>(
    stem: Stem<'a>,
    head: HeadParts<'a>,
    witness: HeadParts<'a>,
    clean: &[f32],
    false_positive_rate: f32,
    kernels: &Simd,
) -> Result<TripwireParts<'a>> {
    let mut tripwire = TripwireParts { witness, threshold: 0.0, false_positive_rate };
    let (name, labels, provenance) = ("", "", "");
    let parts = ArtifactParts { name, labels, provenance, stem, head: Some(head), tripwire: Some(tripwire) };
    let session = Session::of_artifact(&parts, kernels.clone())?;
    let n = clean.len() / session.input().len();
    let (mut logits, mut scores) = (vec![0.0; n * head.classes as usize], vec![0.0; n]);
    session.infer_watched(clean, &mut logits, &mut scores)?;
    tripwire.threshold = tripwire::threshold(&scores, false_positive_rate)?;
    Ok(tripwire)
}
