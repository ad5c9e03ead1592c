//! The linear head: features pooled over the map, standardised, one linear layer.
//!
//! Pooling keeps, for each channel, the mean of the positive part and the mean of the negative part: `2 c` values, against
//! `h w c` of the map. Parameters, in order: `weight [2c][classes], bias [classes]`, then the mean and the inverse deviation
//! (`[2c]` each) that standardise the pooled features.

use super::{Dropout, HeadModel, MOST_PARAMS, cross_entropy};
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::rng::Rng;
use crate::shape::Shape;
use crate::slices::{copy, cut, rows, rows_mut, split, split_mut, start, start_mut};

/// A linear head.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    features: Shape,
    classes: usize,
}

impl Linear {
    /// Pooled values of one picture.
    pub const fn width(&self) -> usize {
        2 * self.features.c as usize
    }

    /// Pools one feature map into `[2c]`.
    pub fn pool(&self, x: &[f32], pooled: &mut [f32]) {
        let c = self.features.c as usize;
        let (positive, negative) = split_mut(pooled, c);
        positive.fill(0.0);
        negative.fill(0.0);
        for x in rows(x, c) {
            for ((p, n), &v) in positive.iter_mut().zip(negative.iter_mut()).zip(x) {
                if v > 0.0 { *p += v } else { *n -= v }
            }
        }
        let pixels = (x.len() / c.max(1)) as f32;
        pooled.iter_mut().for_each(|v| *v /= pixels);
    }

    /// Pooled and standardised features of `n` pictures.
    fn enter(&self, n: usize, params: &[f32], x: &[f32], z: &mut [f32]) {
        let (width, len) = (self.width(), self.features.len());
        let (mean, inverse) = split(split(params, self.trained()).1, width);
        for (x, z) in rows(x, len).zip(rows_mut(z, width)).take(n) {
            self.pool(x, z);
            for ((z, &m), &s) in z.iter_mut().zip(mean).zip(inverse) {
                *z = (*z - m) * s;
            }
        }
    }

    fn logits(&self, params: &[f32], z: &[f32], logits: &mut [f32]) {
        let (weight, bias) = split(start(params, self.trained()), self.width() * self.classes);
        for (z, logits) in rows(z, self.width()).zip(rows_mut(logits, self.classes)) {
            copy(bias, logits);
            for (&v, w) in z.iter().zip(rows(weight, self.classes)) {
                for (l, &w) in logits.iter_mut().zip(w) {
                    *l += v * w;
                }
            }
        }
    }
}

impl HeadModel for Linear {
    // Where a program's sizes are constants, so is all that follows from them.
    #[inline(always)]
    fn new(features: Shape, classes: usize) -> Result<Self> {
        if classes == 0 || classes > Shape::MAX_SIDE as usize || !features.is_valid() {
            return Err(Error::BadSetting("number of classes or feature shape"));
        }
        // At least as many as there are (`artifact::head_params`).
        let c = features.c as usize;
        if (4 * c + 1).checked_mul(classes + 2).is_none_or(|most| most > MOST_PARAMS) {
            return Err(Error::BadSetting("number of the head's parameters"));
        }
        Ok(Self { features, classes })
    }

    fn features(&self) -> Shape {
        self.features
    }

    fn classes(&self) -> usize {
        self.classes
    }

    fn params(&self) -> usize {
        self.trained() + 2 * self.width()
    }

    fn trained(&self) -> usize {
        (self.width() + 1) * self.classes
    }

    fn training_len(&self, n: usize) -> usize {
        n * (self.width() + self.classes)
    }

    fn training_sums(&self) -> usize {
        0
    }

    fn inference_len(&self, n: usize) -> usize {
        n * self.width()
    }

    fn initialise(&self, _: &mut Rng, params: &mut [f32]) {
        let (width, trained) = (self.width(), self.trained());
        let (zeros, ones) = split_mut(params, trained + width);
        zeros.fill(0.0);
        ones.fill(1.0);
    }

    /// Running mean and variance (Welford); the variance becomes an inverse deviation when training starts to use it, so it is
    /// kept as such after every call.
    fn observe(&self, x: &[f32], n: usize, seen: usize, params: &mut [f32]) {
        let (width, len) = (self.width(), self.features.len());
        let (mean, inverse) = split_mut(split_mut(params, self.trained()).1, width);
        // Pool one channel of one picture at a time: no scratch is needed for what happens once.
        let c = (self.features.c as usize).max(1);
        for (i, (mean, inverse)) in mean.iter_mut().zip(inverse).enumerate() {
            let (channel, sign) = if i < c { (i, 1.0) } else { (i - c, -1.0) };
            let mut count = seen as f32;
            let mut m2 = if seen == 0 { 0.0 } else { (1.0 / (*inverse * *inverse) - VARIANCE_FLOOR) * count };
            for x in rows(x, len).take(n) {
                let sum: f32 = x.iter().skip(channel).step_by(c).map(|v| (v * sign).max(0.0)).sum();
                let v = sum / (len / c) as f32;
                count += 1.0;
                let before = v - *mean;
                *mean += before / count;
                m2 += before * (v - *mean);
            }
            *inverse = 1.0 / libm::sqrtf(m2.max(0.0) / count.max(1.0) + VARIANCE_FLOOR);
        }
    }

    fn gradient<K: Kernels + ?Sized>(
        &self,
        _: &K,
        n: usize,
        params: &mut [f32],
        x: &mut [f32],
        targets: &[f32],
        dropout: Dropout,
        grads: &mut [f32],
        scratch: &mut [f32],
        _: &mut [f64],
    ) -> f32 {
        let (width, classes) = (self.width(), self.classes);
        let rest = &mut &mut scratch[..];
        let (z, logits) = (cut(rest, n * width), cut(rest, n * classes));
        self.enter(n, params, x, z);
        dropout.apply(z);
        self.logits(params, z, logits);
        let loss = cross_entropy(classes, logits, start(targets, n * classes));
        let (dw, db) = split_mut(start_mut(grads, self.trained()), width * classes);
        dw.fill(0.0);
        db.fill(0.0);
        for (z, d) in rows(z, width).zip(rows(logits, classes)) {
            for (b, &d) in db.iter_mut().zip(d) {
                *b += d;
            }
            for (&v, dw) in z.iter().zip(rows_mut(dw, classes)) {
                for (dw, &d) in dw.iter_mut().zip(d) {
                    *dw += v * d;
                }
            }
        }
        loss
    }

    fn infer<K: Kernels + ?Sized>(
        &self,
        _: &K,
        n: usize,
        params: &[f32],
        x: &[f32],
        scratch: &mut [f32],
        logits: &mut [f32],
    ) {
        let z = start_mut(scratch, n * self.width());
        self.enter(n, params, x, z);
        self.logits(params, z, start_mut(logits, n * self.classes));
    }
}

/// Added to the variance of pooled features: a channel that never moves stays near zero.
const VARIANCE_FLOOR: f32 = 1e-6;
