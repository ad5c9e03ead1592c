//! A new head over a frozen stem: where its features come from on a host, and the memory that [`replace::fit`] asks for.

use super::{Augment, HEAD_BATCH, NewHead, PictureSource, Session, Space};
use crate::artifact::HeadKind;
use crate::error::Result;
use crate::head::HeadModel;
use crate::head::linear::Linear;
use crate::head::residual::Residual;
use crate::kernels::simd::Simd;
use crate::replace::{self, Bf16, FeatureBank, Progress, Settings, Source};
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
        let (area, keep) = self.bank.draw_box(mix.is_some(), rng);
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

/// A source of features, either kind.
enum Either<'s, 'a> {
    Bank(SharedBank<'s>),
    Pictures(PictureSource<'s, 'a>),
}

impl Source for Either<'_, '_> {
    fn shape(&self) -> Shape {
        match self {
            Self::Bank(s) => s.shape(),
            Self::Pictures(s) => s.shape(),
        }
    }
    fn labels(&self) -> &[u32] {
        match self {
            Self::Bank(s) => s.labels(),
            Self::Pictures(s) => s.labels(),
        }
    }
    fn plain(&mut self, first: usize, n: usize, x: &mut [f32]) {
        match self {
            Self::Bank(s) => s.plain(first, n, x),
            Self::Pictures(s) => s.plain(first, n, x),
        }
    }
    fn batch(&mut self, batch: &[u32], mix: Option<&[u32]>, rng: &mut Rng, x: &mut [f32]) -> f32 {
        match self {
            Self::Bank(s) => s.batch(batch, mix, rng, x),
            Self::Pictures(s) => s.batch(batch, mix, rng, x),
        }
    }
}

/// Trains a new head on clean pictures (`[n][input]`, NHWC) over a frozen stem.
///
/// # Errors
/// Those of [`replace::fit`].
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
    replace::check_holdout(labels, classes, settings.batch)?;
    let shape = stem.features_shape();
    let mut bank = Vec::new();
    let mut source = match space {
        Space::Pictures => Either::Pictures(PictureSource::new(stem, pictures, labels, augment)?),
        Space::Features { views } => {
            let mut pictures = PictureSource::new(stem, pictures, labels, augment)?;
            // 2,500 pictures of a WideResNet in 8 views are 160 MB.
            bank = vec![Bf16::default(); views * labels.len() * shape.len()];
            let mut features = vec![0.0; HEAD_BATCH * shape.len()];
            let all: Vec<u32> = (0..labels.len() as u32).collect();
            for (view, bank) in bank.chunks_exact_mut(labels.len() * shape.len()).enumerate() {
                for (part, bank) in bank.chunks_mut(HEAD_BATCH * shape.len()).enumerate() {
                    let first = part * HEAD_BATCH;
                    let n = bank.len() / shape.len();
                    let x = &mut features[..bank.len()];
                    if view == 0 {
                        pictures.plain(first, n, x);
                    } else {
                        let mut rng = Rng::new(settings.seed, (view * labels.len() + first) as u64);
                        pictures.batch(&all[first..first + n], None, &mut rng, x);
                    }
                    bank.iter_mut().zip(x).for_each(|(to, &mut x)| *to = x.into());
                }
            }
            if let Some(e) = pictures.failed {
                return Err(e);
            }
            Either::Bank(SharedBank { bank: FeatureBank::new(&bank, labels, shape, views)?, kernels: &stem.kernels })
        }
    };
    let params = match kind {
        HeadKind::Linear => train::<Linear>(stem, shape, classes, settings, &mut source, progress)?,
        HeadKind::Residual => train::<Residual>(stem, shape, classes, settings, &mut source, progress)?,
    };
    if let Either::Pictures(PictureSource { failed: Some(e), .. }) = source {
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
    source: &mut Either<'_, '_>,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<Vec<f32>> {
    let head = H::new(shape, classes)?;
    let mut params = vec![0.0; head.params()];
    let mut memory = vec![0.0; replace::memory_len(&head, shape, classes, settings.batch)];
    let mut sums = vec![0.0; head.training_sums()];
    let mut order = vec![0; 2 * source.labels().len()];
    replace::fit(
        &stem.kernels,
        &head,
        classes,
        settings,
        source,
        &mut params,
        &mut memory,
        &mut sums,
        &mut order,
        progress,
    )?;
    Ok(params)
}
