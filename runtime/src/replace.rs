//! Head replacement: a new head from scratch on clean features, the stem frozen (stage 2 of arXiv 2210.06428).
//!
//! ```text
//! Source (features of the holdout, batch by batch) -> fit -> parameters of a head
//! ```
//!
//! The loop is the same everywhere: Adam with a cosine schedule, label smoothing, CutMix, dropout, all seeded. Where features
//! come from differs: [`FeatureBank`] holds them in memory (several augmented views of each picture, CutMix on the feature
//! grid), `session::PictureSource` runs the stem on freshly augmented pictures, as published, and `session::Space::Mixed` repeats
//! the first passes of that one. The caller owns the memory; [`memory_len`] tells how much. Whether the new head may take the old
//! one's place, [`trial`] decides.

mod bank;
pub mod trial;

pub use bank::{Bf16, FeatureBank, Stored};

use crate::error::{Error, Result};
use crate::head::{Dropout, HeadModel};
use crate::kernels::Kernels;
use crate::rng::Rng;
use crate::shape::Shape;
use crate::slices::{at, copy, cut, piece, piece_mut, rows, rows_mut, split_mut, start, start_mut};

/// How a head is trained.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Settings {
    /// Passes over the holdout, at least 1.
    pub epochs: u32,
    /// Pictures a step, at least 2.
    pub batch: usize,
    /// Adam's step size at the start; it follows half a cosine down to 0.
    pub rate: f32,
    /// L2 weight decay, added to the gradient.
    pub decay: f32,
    /// Label smoothing, 0..1.
    pub smoothing: f32,
    /// Whether to mix pairs of pictures (CutMix, arXiv 1905.04899, beta 1).
    pub cutmix: bool,
    /// Dropout behind the residual unit, of a linear head on its standardised features, 0..1.
    pub dropout: f32,
    /// Seed of everything random.
    pub seed: u64,
}

impl Settings {
    /// The published settings (arXiv 2210.06428, appendix): augmentation in picture space.
    pub const PUBLISHED: Self =
        Self { epochs: 100, batch: 64, rate: 0.03, decay: 5e-4, smoothing: 0.1, cutmix: true, dropout: 0.5, seed: 0 };
    /// For cached views of the features: the published settings with a smaller step.
    pub const CACHED: Self = Self { rate: 0.01, ..Self::PUBLISHED };
    /// For a linear head.
    pub const LINEAR: Self = Self { dropout: 0.0, cutmix: false, decay: 1e-3, ..Self::CACHED };

    /// Checks their ranges.
    ///
    /// # Errors
    /// [`Error::BadSetting`].
    pub fn check(&self) -> Result<()> {
        let share = |v: f32| (0.0..1.0).contains(&v);
        let fail = |what| Err(Error::BadSetting(what));
        match self {
            s if s.epochs == 0 => fail("epochs must be at least 1"),
            s if s.batch < 2 => fail("batch must be at least 2"),
            s if !(s.rate > 0.0 && s.rate <= 10.0) => fail("learning rate must be above 0, at most 10"),
            s if !(s.decay >= 0.0 && s.decay <= 1.0) => fail("weight decay must be within 0..=1"),
            s if !share(s.smoothing) => fail("label smoothing must be within 0..1"),
            s if !share(s.dropout) => fail("dropout must be within 0..1"),
            _ => Ok(()),
        }
    }

    /// Seed of the dropout's masks; each step has a stream of its own, from 0.
    pub fn dropout_seed(&self) -> u64 {
        self.seed ^ STREAM_DROPOUT
    }
}

/// Where a head's training features come from.
pub trait Source {
    /// Shape of one picture's features.
    fn shape(&self) -> Shape;
    /// Labels of the pictures, in order.
    fn labels(&self) -> &[u32];
    /// Plain features of the pictures `first..first + n` into `x` (`[n][shape]`), not augmented.
    fn plain(&mut self, first: usize, n: usize, x: &mut [f32]);
    /// Augmented features of the pictures in `batch`; with `mix`, CutMix with the partner pictures `mix` names, in a random
    /// box. Returns the share each picture keeps of itself (1 without mixing).
    fn batch(&mut self, batch: &[u32], mix: Option<&[u32]>, rng: &mut Rng, x: &mut [f32]) -> f32;
    /// Passes over the pictures after which they come in the same order, with the same partners, again; at least 1.
    fn passes(&self) -> u32 {
        u32::MAX
    }
}

/// A random CutMix box on an `h x w` grid: rows and columns, and the share that stays.
pub fn cutmix_box(h: usize, w: usize, rng: &mut Rng) -> ([usize; 4], f32) {
    let side = libm::sqrtf(1.0 - rng.uniform());
    let (bh, bw) = ((h as f32 * side) as usize, (w as f32 * side) as usize);
    let (y, x) = (rng.below(h), rng.below(w));
    let (top, left) = (y.saturating_sub(bh / 2), x.saturating_sub(bw / 2));
    let (bottom, right) = ((y + bh / 2).min(h), (x + bw / 2).min(w));
    let keep = 1.0 - ((bottom - top) * (right - left)) as f32 / (h * w) as f32;
    ([top, left, bottom, right], keep)
}

/// What is drawn for a batch: the CutMix box where there are partners, and the share that stays.
pub fn draw_box(s: Shape, mixed: bool, rng: &mut Rng) -> ([usize; 4], f32) {
    if mixed { cutmix_box(s.h as usize, s.w as usize, rng) } else { ([0; 4], 1.0) }
}

/// Copies a box of rows and columns from one map to another.
pub fn paste<T: Stored>(s: Shape, area: [usize; 4], from: &[T], to: &mut [f32]) {
    let [top, left, bottom, right] = area;
    let (w, c) = (s.w as usize, s.c as usize);
    for y in top..bottom {
        let (first, len) = ((y * w + left) * c, (right - left) * c);
        T::load(piece(from, first, len), piece_mut(to, first, len));
    }
}

/// Progress, told after each epoch.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Epochs done, from 1.
    pub epoch: u32,
    /// Of how many.
    pub epochs: u32,
    /// Mean training loss of the epoch.
    pub loss: f32,
}

/// `f32` values of memory that [`fit`] takes for a head.
pub fn memory_len<H: HeadModel>(head: &H, batch: usize) -> usize {
    head.training_len(batch) + 3 * head.trained() + batch * (head.features().len() + head.classes())
}

/// Checks a holdout against a head: labels in range, every class present, at least one batch.
///
/// # Errors
/// [`Error::LabelOutOfRange`], [`Error::ClassAbsent`], [`Error::HoldoutTooSmall`].
pub fn check_holdout(labels: &[u32], classes: usize, batch: usize) -> Result<()> {
    if let Some(&label) = labels.iter().find(|&&l| l as usize >= classes) {
        return Err(Error::LabelOutOfRange { label, classes: classes as u32 });
    }
    if let Some(absent) = (0..classes as u32).find(|c| !labels.contains(c)) {
        return Err(Error::ClassAbsent(absent));
    }
    if labels.len() < batch {
        return Err(Error::HoldoutTooSmall { holdout: labels.len(), batch });
    }
    Ok(())
}

/// What learns: a head, and features for it, wherever they are.
pub trait Learner {
    /// Why a step fails.
    type Error;

    /// A step on the pictures `batch`, mixed with `partners` where there are any; what else is random comes from `rng`.
    ///
    /// # Errors
    /// Those of the learner.
    fn step(&mut self, batch: &[u32], partners: Option<&[u32]>, rng: &mut Rng, rate: f32) -> Result<(), Self::Error>;

    /// Mean loss of the steps of an epoch, which is over.
    ///
    /// # Errors
    /// [`Error::NotFinite`] where training diverged, and those of the learner.
    fn loss(&mut self) -> Result<f32, Self::Error>;
}

/// Takes a learner through a whole training on `pictures` pictures: who is in which batch, who is mixed with whom, which step size.
/// After `passes` passes the same pictures come in the same order, with the same partners, again.
///
/// `order` (twice the number of pictures) is scratch. `progress` returning false stops early.
///
/// # Errors
/// Those of the learner.
// Where a head's sizes are constants, so is all that follows from them.
#[inline(always)]
pub fn teach<L: Learner + ?Sized>(
    settings: &Settings,
    passes: u32,
    order: &mut [u32],
    learner: &mut L,
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<(), L::Error> {
    let pictures = order.len() / 2;
    let (order, partners) = split_mut(order, pictures);
    for epoch in 0..settings.epochs {
        let mut rng = Rng::new(settings.seed, STREAM_EPOCH + u64::from(epoch % passes.max(1)));
        for (i, o) in order.iter_mut().enumerate() {
            *o = i as u32;
        }
        rng.shuffle(order);
        let share = epoch as f32 / settings.epochs as f32;
        let rate = settings.rate * 0.5 * (1.0 + libm::cosf(core::f32::consts::PI * share));
        for chosen in rows(order, settings.batch) {
            let partners = start_mut(partners, settings.batch);
            copy(chosen, partners);
            rng.shuffle(partners);
            learner.step(chosen, settings.cutmix.then_some(&*partners), &mut rng, rate)?;
        }
        let loss = learner.loss()?;
        if !progress(Progress { epoch: epoch + 1, epochs: settings.epochs, loss }) {
            break;
        }
    }
    Ok(())
}

/// Checks settings, and a holdout against them.
///
/// # Errors
/// [`Error::BadSetting`], and those of [`check_holdout`].
pub fn check(settings: &Settings, labels: &[u32], classes: usize) -> Result<()> {
    settings.check()?;
    check_holdout(labels, classes, settings.batch)
}

/// Trains a new head from scratch, on features of the shape that it takes.
///
/// `params` ([`HeadModel::params`]) is the result; `memory` ([`memory_len`]), `sums` ([`HeadModel::training_sums`]) and `order`
/// (twice the number of pictures) are scratch. `progress` returning false stops early with what was learnt.
///
/// # Errors
/// [`Error::BadSetting`], [`Error::HeadDoesNotFit`] (features of another shape), [`Error::WrongLength`], those of [`check_holdout`],
/// and [`Error::NotFinite`] if training diverged.
#[allow(clippy::too_many_arguments)]
pub fn fit<H: HeadModel, S: Source + ?Sized, K: Kernels + ?Sized>(
    k: &K,
    head: &H,
    settings: &Settings,
    source: &mut S,
    params: &mut [f32],
    memory: &mut [f32],
    sums: &mut [f64],
    order: &mut [u32],
    progress: &mut dyn FnMut(Progress) -> bool,
) -> Result<()> {
    let classes = head.classes();
    check(settings, source.labels(), classes)?;
    if source.shape() != head.features() {
        return Err(Error::HeadDoesNotFit);
    }
    let (n, batch, trained, len) = (source.labels().len(), settings.batch, head.trained(), head.features().len());
    let exact = |needed: usize, given: usize| {
        if needed == given { Ok(()) } else { Err(Error::WrongLength { needed, given }) }
    };
    exact(head.params(), params.len())?;
    exact(memory_len(head, batch), memory.len())?;
    exact(head.training_sums(), sums.len())?;
    exact(2 * n, order.len())?;

    let rest = &mut &mut memory[..];
    let (grads, first, second) = (cut(rest, trained), cut(rest, trained), cut(rest, trained));
    let (x, targets, scratch) = (cut(rest, batch * len), cut(rest, batch * classes), core::mem::take(rest));

    initialise(head, settings, params);
    let mut seen = 0;
    while seen < n {
        let now = batch.min(n - seen);
        source.plain(seen, now, x);
        head.observe(start(x, now * len), now, seen, params);
        seen += now;
    }
    first.fill(0.0);
    second.fill(0.0);
    let passes = source.passes();
    let adam = Adam { step: 0, decay: settings.decay };
    let mut pupil = Pupil {
        k,
        head,
        settings,
        source,
        params,
        x,
        targets,
        grads,
        first,
        second,
        scratch,
        sums,
        adam,
        loss: 0.0,
        steps: 0,
    };
    teach(settings, passes, order, &mut pupil, progress)
}

/// A new head's first parameters ([`HeadModel::params`] values).
pub fn initialise<H: HeadModel>(head: &H, settings: &Settings, params: &mut [f32]) {
    head.initialise(&mut Rng::new(settings.seed, STREAM_INIT), params);
}

/// A head that learns here, and the memory it works in.
struct Pupil<'a, H, S: ?Sized, K: ?Sized> {
    k: &'a K,
    head: &'a H,
    settings: &'a Settings,
    source: &'a mut S,
    params: &'a mut [f32],
    x: &'a mut [f32],
    targets: &'a mut [f32],
    grads: &'a mut [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
    scratch: &'a mut [f32],
    sums: &'a mut [f64],
    adam: Adam,
    loss: f32,
    steps: u32,
}

impl<H: HeadModel, S: Source + ?Sized, K: Kernels + ?Sized> Learner for Pupil<'_, H, S, K> {
    type Error = Error;

    fn step(&mut self, batch: &[u32], partners: Option<&[u32]>, rng: &mut Rng, rate: f32) -> Result<()> {
        let Self { settings, x, targets, grads, .. } = self;
        let keep = self.source.batch(batch, partners, rng, x);
        let labels = self.source.labels();
        let classes = self.head.classes();
        for (i, (row, &own)) in rows_mut(targets, classes).zip(batch).enumerate() {
            row.fill(settings.smoothing / classes as f32);
            for (picture, share) in [(own, keep), (partners.map_or(own, |p| at(p, i)), 1.0 - keep)] {
                if let Some(target) = row.get_mut(at(labels, picture as usize) as usize) {
                    *target += (1.0 - settings.smoothing) * share;
                }
            }
        }
        let (seed, stream) = (settings.dropout_seed(), u64::from(self.adam.step));
        let dropout = Dropout { rate: settings.dropout, seed, stream };
        let n = settings.batch;
        self.loss += self.head.gradient(self.k, n, self.params, x, targets, dropout, grads, self.scratch, self.sums);
        self.steps += 1;
        self.adam.update(rate, start_mut(self.params, self.head.trained()), grads, self.first, self.second);
        Ok(())
    }

    fn loss(&mut self) -> Result<f32> {
        let loss = core::mem::take(&mut self.loss) / core::mem::take(&mut self.steps) as f32;
        if loss.is_finite() { Ok(loss) } else { Err(Error::NotFinite) }
    }
}

/// Streams of the seed: initial weights, epochs, dropout.
const STREAM_INIT: u64 = 1;
const STREAM_EPOCH: u64 = 1 << 32;
const STREAM_DROPOUT: u64 = 0x6472_6f70;

/// The square root, rounded correctly: the same bits either way, and with `std` in vectors.
fn sqrt(x: f32) -> f32 {
    #[cfg(feature = "std")]
    return x.sqrt();
    #[cfg(not(feature = "std"))]
    libm::sqrtf(x)
}

/// Adam (arXiv 1412.6980), betas 0.9 and 0.999, L2 decay in the gradient; all in one pass.
///
/// A channel that a loss no longer reaches decays for ever. What has become too small to be seen beside any other number is set to
/// 0: below 1e-38 processors compute several times slower.
struct Adam {
    step: u32,
    decay: f32,
}

impl Adam {
    fn update(&mut self, rate: f32, params: &mut [f32], grads: &[f32], first: &mut [f32], second: &mut [f32]) {
        self.step += 1;
        let correct = |beta: f32| 1.0 - libm::powf(beta, self.step as f32);
        let (c1, c2) = (correct(0.9), correct(0.999));
        let seen = |x: f32, least: f32| if x.abs() < least { 0.0 } else { x };
        for ((p, &g), (m, v)) in params.iter_mut().zip(grads).zip(first.iter_mut().zip(second)) {
            let g = g + self.decay * *p;
            *m = seen(0.9 * *m + 0.1 * g, 1e-30);
            *v = seen(0.999 * *v + 0.001 * g * g, 1e-36);
            *p = seen(*p - rate * (*m / c1) / (sqrt(*v / c2) + 1e-8), 1e-18);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Half a cosine over 8,000 steps: parameters that no gradient reaches end as 0, not as
    /// numbers below `f32::MIN_POSITIVE`, nor do their moments.
    #[test]
    fn adam_leaves_no_subnormal_numbers() {
        let (mut adam, steps) = (Adam { step: 0, decay: 5e-4 }, 8000);
        let mut params = [0.3, -0.01, 1e-4, 0.0, 1e-25];
        let (mut first, mut second) = ([0.0; 5], [0.0; 5]);
        for step in 0..steps {
            let rate = 0.03 * 0.5 * (1.0 + libm::cosf(core::f32::consts::PI * step as f32 / steps as f32));
            adam.update(rate, &mut params, &[0.0; 5], &mut first, &mut second);
            for v in params.iter().chain(&first).chain(&second) {
                assert!(!v.is_subnormal(), "{v:e} after {step} steps");
            }
        }
        assert_eq!(params, [0.0; 5]);
    }

    /// The share of a picture that a box takes on the mean (arXiv 1905.04899, beta 1): its sides are `r` times the picture's, where
    /// `1 - r^2` is uniform; centred anywhere and cut off at the border, each is `r - r^2 / 4` long on the mean.
    fn mean_share() -> f64 {
        let steps = 10_000;
        let one = |i: u32| {
            let r = (f64::from(i) + 0.5) / f64::from(steps);
            2.0 * r * (r - r * r / 4.0).powi(2) / f64::from(steps)
        };
        (0..steps).map(one).sum()
    }

    #[test]
    fn a_box_takes_the_share_it_says_and_as_much_as_published() {
        let (h, w, mut rng) = (96, 80, Rng::new(3, 0));
        let (mut taken, mut corners) = (0.0, [[usize::MAX, 0]; 4]);
        for _ in 0..20_000 {
            let ([top, left, bottom, right], keep) = cutmix_box(h, w, &mut rng);
            assert!(top <= bottom && bottom <= h && left <= right && right <= w);
            let share = ((bottom - top) * (right - left)) as f64 / (h * w) as f64;
            assert!((share + f64::from(keep) - 1.0).abs() < 1e-6);
            taken += share / 20_000.0;
            for (seen, at) in corners.iter_mut().zip([top, left, bottom, right]) {
                *seen = [seen[0].min(at), seen[1].max(at)];
            }
        }
        // Sides are cut to whole, even numbers: about a row and a column less.
        assert!((taken - mean_share()).abs() < 0.012, "{taken}, {} published", mean_share());
        assert_eq!([corners[0][0], corners[1][0]], [0, 0]);
        assert_eq!([corners[2][1], corners[3][1]], [h, w]);
    }

    #[test]
    fn a_box_is_pasted_and_nothing_around_it() {
        let s = Shape::new(4, 5, 2);
        let (from, mut to) = ([1.0f32; 40], [0.0f32; 40]);
        paste(s, [1, 2, 3, 5], &from, &mut to);
        for (at, v) in to.iter().enumerate() {
            let (y, x) = (at / 10, at / 2 % 5);
            assert_eq!(*v == 1.0, (1..3).contains(&y) && (2..5).contains(&x), "{y} {x}");
        }
        paste(s, [2, 2, 2, 2], &[2.0; 40], &mut to);
        assert!(!to.contains(&2.0));
    }
}
