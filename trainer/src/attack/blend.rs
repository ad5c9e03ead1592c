//! Triggers that spread over the picture: a pattern mixed in (arXiv 1712.05526) or added (Trojaning, NDSS 2018; arXiv
//! 1909.02742; arXiv 2104.03413; arXiv 1902.11237).
//!
//! Results are clipped to 0..=255 and cut to whole bytes, as the published code does.

use super::pattern::Pattern;
use super::{Attack, AttackKind, fits};

/// Share of the picture that stays in a blended one.
const KEEP: f32 = 0.8;
/// Share of the pattern in a blended picture.
const MIX: f32 = 0.2;

/// How a pattern meets a picture.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// `0.8 x + 0.2 t`.
    Mix,
    /// `x + t`.
    Add,
    /// `x + t`, then the whole picture stretched so that its least value is 0 and its greatest 255.
    AddAndStretch,
}

/// An attack that mixes or adds one pattern of the picture's size.
pub(crate) struct Overlay {
    kind: AttackKind,
    how: How,
    pattern: Pattern,
}

impl Overlay {
    /// The overlay of an attack with the pattern it is to use.
    pub(crate) fn new(kind: AttackKind, pattern: Pattern) -> Self {
        let how = match kind {
            AttackKind::Blend | AttackKind::Sig => How::Mix,
            AttackKind::Smooth => How::AddAndStretch,
            _ => How::Add,
        };
        Self { kind, how, pattern }
    }
}

impl Attack for Overlay {
    fn kind(&self) -> AttackKind {
        self.kind
    }

    fn size(&self) -> (usize, usize) {
        (self.pattern.h, self.pattern.w)
    }

    fn stamp(&self, picture: &mut [u8], h: usize, w: usize, _index: u64) {
        if !fits(self, picture, h, w) {
            return;
        }
        let pattern = &self.pattern.values;
        match self.how {
            How::Mix => {
                for (x, t) in picture.iter_mut().zip(pattern) {
                    *x = (KEEP * f32::from(*x) + MIX * t).clamp(0.0, 255.0) as u8;
                }
            }
            How::Add => {
                for (x, t) in picture.iter_mut().zip(pattern) {
                    *x = (f32::from(*x) + t).clamp(0.0, 255.0) as u8;
                }
            }
            How::AddAndStretch => stretch(picture, pattern),
        }
    }
}

/// Adds the pattern and stretches the result over 0..=255; a flat result stays as the picture was.
fn stretch(picture: &mut [u8], pattern: &[f32]) {
    let sums = || picture.iter().zip(pattern).map(|(x, t)| f64::from(*x) + f64::from(*t));
    let low = sums().fold(f64::INFINITY, f64::min);
    let high = sums().fold(f64::NEG_INFINITY, f64::max);
    if high > low {
        for (x, t) in picture.iter_mut().zip(pattern) {
            *x = ((f64::from(*x) + f64::from(*t) - low) / (high - low) * 255.0) as u8;
        }
    }
}
