//! A new head over a frozen stem: where its features come from on a host, and the memory that [`replace::fit`] asks for.

use super::{Augment, HEAD_BATCH, NewHead, PictureSource, Session, Space, Varied};
use crate::artifact::HeadKind;
use crate::error::{Error, Result};
use crate::head::HeadModel;
use crate::head::linear::Linear;
use crate::head::residual::Residual;
use crate::kernels::simd::Simd;
use crate::replace::{self, Bf16, FeatureBank, Progress, Settings, Source, Stored, draw_box};
use crate::rng::Rng;
use crate::shape::Shape;
use std::prelude::v1::*;
use std::vec;

/// Features in memory, loaded by all threads: what is drawn, and so every bit, is as [`FeatureBank`] alone draws it.
pub(super) struct SharedBank<'s> {
    pub(super) bank: FeatureBank<'s, Bf16>,
    pub(super) kernels: &'s Simd,
}

impl Source for SharedBank<'_> {
    fn shape(&self) -> Shape {
        self.bank.shape()
    }
    fn labels(&self) -> &[u32] {
        self.bank.labels()
    }
    fn plain(&mut self, first: usize, n: usize, x: &mut [f32]) {
        self.bank.plain(first, n, x);
    }
    fn batch(&mut self, batch: &[u32], mix: Option<&[u32]>, rng: &mut Rng, x: &mut [f32]) -> f32 {
        let shape = self.bank.shape();
        let (area, keep) = draw_box(shape, mix.is_some(), rng);
        let drawn: Vec<_> = batch
            .iter()
            .enumerate()
            .map(|(i, &picture)| self.bank.draw(picture, mix.and_then(|m| m.get(i)).copied(), rng))
            .collect();
        let parts = x.chunks_mut(LOADED * shape.len()).zip(drawn.chunks(LOADED)).collect();
        self.kernels.for_each(parts, |(x, drawn): (&mut [f32], &[_])| {
            x.chunks_exact_mut(shape.len()).zip(drawn).for_each(|(x, drawn)| drawn.load(shape, area, x));
        });
        keep
    }
}

/// Pictures whose features a thread loads at a time.
const LOADED: usize = 8;
/// Why views are refused.
const FEATURES_DO_NOT_FIT: Error = Error::BadSetting("views: their features do not fit in memory");

/// The first passes over augmented, mixed pictures, kept as features and repeated.
///
/// Each batch is kept with the share its pictures have of themselves and with the state of the random numbers behind it: who is
/// mixed with whom in the batch that follows depends on that.
pub(super) struct Repeated<'s, 'a> {
    pictures: PictureSource<'s, 'a>,
    passes: usize,
    features: Vec<Bf16>,
    batches: Vec<(f32, Rng)>,
    next: usize,
}

impl<'s, 'a> Repeated<'s, 'a> {
    /// So many passes, in batches of so many pictures.
    ///
    /// # Errors
    /// [`Error::BadSetting`] where their features do not fit in memory.
    pub(super) fn new(pictures: PictureSource<'s, 'a>, passes: usize, batch: usize) -> Result<Self> {
        let steps = passes.saturating_mul(pictures.labels().len() / batch.max(1));
        // Room for all at once: what grows is copied, and for a while there twice.
        let (mut features, mut batches) = (Vec::new(), Vec::new());
        let len = steps.saturating_mul(batch).saturating_mul(pictures.shape().len());
        features.try_reserve_exact(len).map_err(|_| FEATURES_DO_NOT_FIT)?;
        batches.try_reserve_exact(steps).map_err(|_| FEATURES_DO_NOT_FIT)?;
        Ok(Self { pictures, passes, features, batches, next: 0 })
    }
}

impl Source for Repeated<'_, '_> {
    fn shape(&self) -> Shape {
        self.pictures.shape()
    }
    fn labels(&self) -> &[u32] {
        self.pictures.labels()
    }
    fn plain(&mut self, first: usize, n: usize, x: &mut [f32]) {
        self.pictures.plain(first, n, x);
    }
    fn batch(&mut self, batch: &[u32], mix: Option<&[u32]>, rng: &mut Rng, x: &mut [f32]) -> f32 {
        let all = self.passes * (self.labels().len() / batch.len());
        if self.batches.len() < all {
            let keep = self.pictures.batch(batch, mix, rng, x);
            self.features.extend(x.iter().map(|&x| Bf16::from(x)));
            self.batches.push((keep, rng.clone()));
        }
        let (keep, after) = &self.batches[self.next];
        let part = LOADED * self.shape().len();
        let from = self.features[self.next * x.len()..][..x.len()].chunks(part);
        let parts = x.chunks_mut(part).zip(from).collect();
        self.pictures.stem.kernels.for_each(parts, |(x, from): (&mut [f32], &[_])| Bf16::load(from, x));
        rng.clone_from(after);
        self.next = (self.next + 1) % all;
        *keep
    }
    fn passes(&self) -> u32 {
        self.passes as u32
    }
}

/// A source of features, of any space.
enum Features<'s, 'a> {
    Bank(SharedBank<'s>),
    Repeated(Repeated<'s, 'a>),
    Pictures(PictureSource<'s, 'a>),
}

impl Features<'_, '_> {
    fn source(&mut self) -> &mut dyn Source {
        match self {
            Self::Bank(s) => s,
            Self::Repeated(s) => s,
            Self::Pictures(s) => s,
        }
    }

    /// What the stem could not compute.
    fn failed(self) -> Option<Error> {
        match self {
            Self::Bank(_) => None,
            Self::Repeated(Repeated { pictures: s, .. }) | Self::Pictures(s) => s.failed,
        }
    }
}

/// Trains a new head on clean pictures (`[n][input]`, NHWC) over a frozen stem.
///
/// # Errors
/// Those of [`replace::fit`]; [`Error::BadSetting`] where the features of all views do not fit in memory.
#[allow(clippy::too_many_arguments)]
pub fn replace_head(
    stem: &Session<'_>,
    kind: HeadKind,
    classes: usize,
    pictures: &[f32],
    labels: &[u32],
    space: Space,
    augment: Augment,
    settings: &Settings,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<NewHead> {
    replace::check(settings, labels, classes)?;
    let shape = stem.features_shape();
    let mut bank = Vec::new();
    let mut source = match space {
        Space::Pictures => Features::Pictures(PictureSource::new(stem, pictures, labels, augment)?),
        Space::Mixed { views } => {
            let pictures = PictureSource::new(stem, pictures, labels, augment)?;
            Features::Repeated(Repeated::new(pictures, views.max(1), settings.batch)?)
        }
        Space::Features { views } => {
            let varied = Varied::new(stem.input(), pictures, labels, augment)?;
            // 2,500 pictures of a WideResNet in 8 views are 160 MB.
            let len = views.saturating_mul(labels.len()).saturating_mul(shape.len());
            bank.try_reserve_exact(len).map_err(|_| FEATURES_DO_NOT_FIT)?;
            bank.resize(len, Bf16::default());
            let mut features = vec![0.0; HEAD_BATCH * shape.len()];
            for (view, bank) in bank.chunks_exact_mut(labels.len() * shape.len()).enumerate() {
                varied.view(view, settings.seed, |first, pictures| {
                    let n = pictures.len() / stem.input().len();
                    let x = &mut features[..n * shape.len()];
                    stem.features(pictures, x)?;
                    let bank = &mut bank[first * shape.len()..][..x.len()];
                    bank.iter_mut().zip(x).for_each(|(to, &mut x)| *to = x.into());
                    Ok::<(), Error>(())
                })?;
            }
            Features::Bank(SharedBank { bank: FeatureBank::new(&bank, labels, shape, views)?, kernels: &stem.kernels })
        }
    };
    let params = match kind {
        HeadKind::Linear => train::<Linear>(stem, shape, classes, settings, source.source(), progress)?,
        HeadKind::Residual => train::<Residual>(stem, shape, classes, settings, source.source(), progress)?,
    };
    if let Some(e) = source.failed() {
        return Err(e);
    }
    drop(bank);
    Ok(NewHead { kind, classes: classes as u32, params })
}

fn train<H: HeadModel>(
    stem: &Session<'_>,
    shape: Shape,
    classes: usize,
    settings: &Settings,
    source: &mut dyn Source,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<Vec<f32>> {
    let head = H::new(shape, classes)?;
    let mut params = vec![0.0; head.params()];
    let mut memory = vec![0.0; replace::memory_len(&head, settings.batch)];
    let mut sums = vec![0.0; head.training_sums()];
    let mut order = vec![0; 2 * source.labels().len()];
    replace::fit(&stem.kernels, &head, settings, source, &mut params, &mut memory, &mut sums, &mut order, progress)?;
    Ok(params)
}
