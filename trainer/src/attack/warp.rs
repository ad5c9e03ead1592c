//! WaNet: a smooth elastic warp as the trigger (arXiv 2102.10369, section 3.2).

use super::random::Draw;
use super::resample::upsample_grid;
use super::{Attack, AttackKind, fits};

/// Control points along each side of the warping field (the paper's `k`).
pub const CONTROL_POINTS: usize = 4;
/// Strength of the warp (the paper's `s`): the mean displacement is about `s / 2` pixels.
pub const STRENGTH: f32 = 0.5;

/// One warped pixel: four source pixels (indices in `[h][w]`) and their bilinear weights.
struct Tap {
    at: [usize; 4],
    weight: [f32; 4],
}

/// The warping attack.
pub(crate) struct Warp {
    h: usize,
    w: usize,
    taps: Vec<Tap>,
}

impl Warp {
    /// Draws the control grid (uniform in -1..1, divided by its mean magnitude) and lays out the sampling.
    pub(crate) fn generate(draw: &mut Draw, h: usize, w: usize) -> Self {
        let points = CONTROL_POINTS * CONTROL_POINTS;
        let mut grid: Vec<f32> = (0..2 * points).map(|_| draw.range(-1.0, 1.0)).collect();
        let magnitude = grid.iter().map(|v| v.abs()).sum::<f32>() / grid.len() as f32;
        grid.iter_mut().for_each(|v| *v /= magnitude.max(f32::MIN_POSITIVE));
        let along_x = upsample_grid(&grid[..points], CONTROL_POINTS, h, w);
        let along_y = upsample_grid(&grid[points..], CONTROL_POINTS, h, w);
        let taps = (0..h * w)
            .map(|i| {
                let (y, y_next, fy) = source(i / w, along_y[i], h);
                let (x, x_next, fx) = source(i % w, along_x[i], w);
                Tap {
                    at: [y * w + x, y * w + x_next, y_next * w + x, y_next * w + x_next],
                    weight: [(1.0 - fy) * (1.0 - fx), (1.0 - fy) * fx, fy * (1.0 - fx), fy * fx],
                }
            })
            .collect();
        Self { h, w, taps }
    }
}

/// Where position `i` of an axis of `n` pixels is read: the two neighbours and the share of the second.
///
/// Displacements are in the field's units, -1..1 over the axis, divided by the side and clamped to the picture.
fn source(i: usize, noise: f32, n: usize) -> (usize, usize, f32) {
    let last = (n - 1) as f32;
    let at = (i as f32 + STRENGTH * noise / n as f32 * last / 2.0).clamp(0.0, last);
    let first = at.floor() as usize;
    (first, (first + 1).min(n - 1), at - at.floor())
}

impl Attack for Warp {
    fn kind(&self) -> AttackKind {
        AttackKind::Wanet
    }

    fn size(&self) -> (usize, usize) {
        (self.h, self.w)
    }

    fn stamp(&self, picture: &mut [u8], h: usize, w: usize, _index: u64) {
        if !fits(self, picture, h, w) {
            return;
        }
        let clean = picture.to_vec();
        for (out, tap) in picture.chunks_exact_mut(3).zip(&self.taps) {
            for (c, out) in out.iter_mut().enumerate() {
                let taps = tap.at.iter().zip(&tap.weight);
                *out = taps.map(|(at, weight)| weight * f32::from(clean[at * 3 + c])).sum::<f32>().round() as u8;
            }
        }
    }
}
