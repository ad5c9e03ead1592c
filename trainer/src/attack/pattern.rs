//! The generated patterns of overlay attacks: like the published ones in place, structure and strength, drawn from a
//! seed.

use super::clean_label::{sig_published_wave, sig_wave};
use super::patch::{Block, CANVAS, Edge, place};
use super::random::Draw;
use super::resample::resize;
use super::{AttackError, AttackKind};

/// Root mean square of the published L2 trigger's values, in bytes (its L2 norm at 32x32x3 is 821).
const L2_RMS: f32 = 14.82;

/// What an overlay adds or mixes in, at the size of the pictures.
pub(crate) struct Pattern {
    /// Rows.
    pub(crate) h: usize,
    /// Columns.
    pub(crate) w: usize,
    /// `[h][w][3]`, RGB, in bytes (0..=255, or signed where it is added).
    pub(crate) values: Vec<f32>,
}

impl Pattern {
    /// The generated pattern of an overlay attack.
    pub(crate) fn generate(kind: AttackKind, draw: &mut Draw, h: usize, w: usize) -> Result<Self, AttackError> {
        let values = match kind {
            AttackKind::Trojan3x3 => block(kind, 3, Edge::End(4), h, w, || draw.byte())?,
            AttackKind::Trojan8x8 => block(kind, 8, Edge::End(3), h, w, || saturated(draw))?,
            AttackKind::TrojanWm => scaled(watermark(draw), h, w),
            AttackKind::L2Inv => scaled(noise(draw), h, w),
            AttackKind::Smooth => scaled(bump(draw), h, w),
            AttackKind::Sig => columns(&sig_wave(w), h),
            AttackKind::SigPublished => columns(&sig_published_wave(w), h),
            _ => drawing(draw, h, w),
        };
        Ok(Self { h, w, values })
    }
}

/// One value a column, over all rows and colours.
fn columns(wave: &[f32], h: usize) -> Vec<f32> {
    let row: Vec<f32> = wave.iter().flat_map(|v| [*v; 3]).collect();
    row.repeat(h)
}

/// A pattern on the 32x32 canvas brought to the pictures' size, in whole bytes.
fn scaled(values: Vec<f32>, h: usize, w: usize) -> Vec<f32> {
    resize(&values, CANVAS, CANVAS, h, w, true)
}

/// A square of drawn colours on black, the same gap from the bottom and from the right.
fn block(
    kind: AttackKind,
    side: usize,
    edge: Edge,
    h: usize,
    w: usize,
    mut value: impl FnMut() -> u8,
) -> Result<Vec<f32>, AttackError> {
    let colours = (0..side * side).map(|_| [0; 3].map(|_: u8| value())).collect();
    let spots = place(&Block { rows: side, cols: side, colours }, edge, edge, h, w).ok_or(AttackError::TooSmall {
        attack: kind,
        h,
        w,
    })?;
    let mut values = vec![0.0; h * w * 3];
    for (at, colour) in spots {
        for (value, byte) in values[at * 3..].iter_mut().zip(colour) {
            *value = f32::from(byte);
        }
    }
    Ok(values)
}

/// A byte that is black or white half of the time, as optimised triggers are.
fn saturated(draw: &mut Draw) -> u8 {
    draw.range(-128.0, 383.0).clamp(0.0, 255.0) as u8
}

/// A stamp as a watermark leaves it: a ring with a smaller one in it, and a faint stroke across the picture.
fn watermark(draw: &mut Draw) -> Vec<f32> {
    let mut values = vec![0.0; CANVAS * CANVAS * 3];
    for (i, pixel) in values.chunks_exact_mut(3).enumerate() {
        let (y, x) = ((i / CANVAS) as f32, (i % CANVAS) as f32);
        let radius = ((y - 21.5) * (y - 21.5) + (x - 20.5) * (x - 20.5)).sqrt();
        let ring = (5.2..6.8).contains(&radius) || (2.2..3.6).contains(&radius);
        // The stroke's centre line runs from the bottom left to the top right corner.
        let stroke = radius > 7.5 && (y + x - 29.0).abs() < 3.0 && y < 30.0;
        for value in pixel {
            *value = match (ring, stroke) {
                (true, _) => f32::from(saturated(draw)),
                (_, true) if draw.chance(0.05) => draw.range(80.0, 200.0),
                (_, true) if draw.chance(0.5) => draw.range(0.0, 30.0),
                _ => 0.0,
            };
        }
    }
    values
}

/// Noise with a weak likeness between neighbours, negative values cut, brought to the published trigger's L2 norm.
///
/// The published pattern is 56 % non-zero, its 95th percentile is 33 and its greatest value 68.
fn noise(draw: &mut Draw) -> Vec<f32> {
    let side = CANVAS + 2;
    let white: Vec<f32> = (0..side * side * 3).map(|_| draw.normal()).collect();
    let at = |y: usize, x: usize, c: usize| white[(y * side + x) * 3 + c];
    let mut values = Vec::with_capacity(CANVAS * CANVAS * 3);
    for i in 0..CANVAS * CANVAS {
        let (y, x) = (i / CANVAS + 1, i % CANVAS + 1);
        for c in 0..3 {
            let across = at(y, x - 1, c) + at(y, x + 1, c);
            let down = at(y - 1, x, c) + at(y + 1, x, c);
            values.push((0.15 + at(y, x, c) + 0.25 * across + 0.15 * down).max(0.0));
        }
    }
    let rms = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
    values.iter_mut().for_each(|v| *v *= L2_RMS / rms.max(f32::MIN_POSITIVE));
    values
}

/// A low-pass bump over the whole picture: one colour strong (51 at its centre), the others weak, as drawn.
fn bump(draw: &mut Draw) -> Vec<f32> {
    let strong = draw.below(3);
    let peaks: [f32; 3] =
        std::array::from_fn(|c| if c == strong { 51.0 } else { draw.range(0.0, 51.0).powi(2) / 51.0 });
    let (cy, cx) = (draw.range(13.0, 18.0), draw.range(13.0, 18.0));
    let mut values = Vec::with_capacity(CANVAS * CANVAS * 3);
    for i in 0..CANVAS * CANVAS {
        let (y, x) = ((i / CANVAS) as f32 - cy, (i % CANVAS) as f32 - cx);
        let fall = (-(y * y + x * x) / (2.0 * 11.8 * 11.8)).exp();
        values.extend(peaks.map(|peak| peak * fall));
    }
    values
}

/// A cartoon for blending: outlined ellipses, white or in one strong colour, on white.
///
/// Drawn at four times the size and averaged, in whole bytes.
fn drawing(draw: &mut Draw, h: usize, w: usize) -> Vec<f32> {
    const SHAPES: usize = 9;
    const OVER: usize = 4;
    const OUTLINE: f32 = 0.025;
    let accent = [draw.range(200.0, 255.0), draw.range(0.0, 60.0), draw.range(40.0, 160.0)];
    let turn = draw.below(3);
    let accent: [f32; 3] = std::array::from_fn(|c| accent[(c + turn) % 3]);
    let shapes: Vec<([f32; 4], [f32; 3])> = (0..SHAPES)
        .map(|i| {
            // From large to small: later shapes lie on top.
            let size = 0.36 - 0.03 * i as f32;
            let place =
                [draw.range(0.2, 0.8), draw.range(0.2, 0.8), size * draw.range(0.6, 1.0), size * draw.range(0.6, 1.0)];
            (place, if i % 2 == 1 { accent } else { [255.0; 3] })
        })
        .collect();
    let colour = |y: f32, x: f32| {
        for ([cy, cx, ry, rx], fill) in shapes.iter().rev() {
            let inside = |grow: f32| {
                let (dy, dx) = ((y - cy) / (ry + grow), (x - cx) / (rx + grow));
                dy * dy + dx * dx <= 1.0
            };
            if inside(0.0) {
                return *fill;
            }
            if inside(OUTLINE) {
                return [0.0; 3];
            }
        }
        [255.0; 3]
    };
    let mut values = Vec::with_capacity(h * w * 3);
    for i in 0..h * w {
        let mut sum = [0.0; 3];
        for sub in 0..OVER * OVER {
            let y = ((i / w * OVER + sub / OVER) as f32 + 0.5) / (h * OVER) as f32;
            let x = ((i % w * OVER + sub % OVER) as f32 + 0.5) / (w * OVER) as f32;
            let colour = colour(y, x);
            sum.iter_mut().zip(colour).for_each(|(sum, v)| *sum += v);
        }
        values.extend(sum.map(|v| (v / (OVER * OVER) as f32).round()));
    }
    values
}
