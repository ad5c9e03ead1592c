//! Draws one sign: shapes as signed distances (negative inside), layers from back to front, then the camera.
//!
//! Coordinates: `x` right, `y` down, the shorter side of the picture spans -1..1. A plate's own frame is scaled so that
//! its outline lies about 1 from the middle. Colours are RGB, 0..=1.

use std::prelude::v1::*;

use super::super::rng::Draw;

type Point = [f32; 2];
type Colour = [f32; 3];

/// A straight stroke from a point to another.
type Segment = (Point, Point);

/// The outline of a sign.
#[derive(Clone, Copy)]
enum Plate {
    Circle,
    Triangle,
    Octagon,
    Diamond,
    Square,
}

/// The plate, glyph strokes and half stroke width of each class, in the order of the class names.
const DESIGNS: [(Plate, &[Segment], f32); 10] = [
    (
        Plate::Circle,
        &[([0.55, 0.0], [-0.55, 0.0]), ([-0.58, 0.0], [-0.12, -0.42]), ([-0.58, 0.0], [-0.12, 0.42])],
        0.12,
    ),
    (Plate::Circle, &[([-0.55, 0.0], [0.55, 0.0]), ([0.58, 0.0], [0.12, -0.42]), ([0.58, 0.0], [0.12, 0.42])], 0.12),
    (Plate::Circle, UP, 0.12),
    (Plate::Circle, &[([-0.35, -0.45], [0.35, -0.45]), ([0.35, -0.45], [-0.1, 0.5])], 0.12),
    (Plate::Triangle, &[([0.0, -0.4], [0.0, 0.08]), ([0.0, 0.36], [0.0, 0.38])], 0.12),
    (Plate::Triangle, &[([-0.27, -0.17], [0.27, 0.37]), ([-0.27, 0.37], [0.27, -0.17])], 0.1),
    (Plate::Octagon, &[([-0.5, 0.0], [0.5, 0.0])], 0.17),
    (Plate::Diamond, &[([-0.32, -0.32], [0.32, 0.32]), ([-0.32, 0.32], [0.32, -0.32])], 0.11),
    (Plate::Square, UP, 0.12),
    (
        Plate::Square,
        &[
            ([-0.34, -0.36], [-0.12, -0.52]),
            ([-0.12, -0.52], [0.16, -0.52]),
            ([0.16, -0.52], [0.34, -0.3]),
            ([0.34, -0.3], [-0.34, 0.5]),
            ([-0.34, 0.5], [0.38, 0.5]),
        ],
        0.11,
    ),
];

/// An arrow upwards.
const UP: &[Segment] = &[([0.0, 0.55], [0.0, -0.55]), ([0.0, -0.58], [-0.42, -0.12]), ([0.0, -0.58], [0.42, -0.12])];

impl Plate {
    /// The distance of a point of the plate's frame from its outline.
    fn distance(self, [x, y]: Point) -> f32 {
        match self {
            Self::Circle => libm::sqrtf(x * x + y * y) - 1.0,
            Self::Square => x.abs().max(y.abs()) - 0.85,
            Self::Diamond => (x.abs() + y.abs()) * std::f32::consts::FRAC_1_SQRT_2 - 0.78,
            Self::Octagon => {
                let (x, y) = (x.abs(), y.abs());
                x.max(y).max((x + y) * std::f32::consts::FRAC_1_SQRT_2) - 0.93
            }
            Self::Triangle => (0.866_025_4 * x.abs() - 0.5 * y).max(y) - 0.62,
        }
    }
}

/// The distance of a point from a stroke.
fn stroke(p: Point, (a, b): Segment, half_width: f32) -> f32 {
    let (along, from) = ([b[0] - a[0], b[1] - a[1]], [p[0] - a[0], p[1] - a[1]]);
    let length = along[0] * along[0] + along[1] * along[1];
    let t = ((from[0] * along[0] + from[1] * along[1]) / length.max(1e-6)).clamp(0.0, 1.0);
    let off = [from[0] - t * along[0], from[1] - t * along[1]];
    libm::sqrtf(off[0] * off[0] + off[1] * off[1]) - half_width
}

/// One thing before or behind the sign.
struct Layer {
    mark: Mark,
    colour: Colour,
    alpha: f32,
    /// The width over which its edge fades, at least a pixel when drawn.
    soft: f32,
}

enum Mark {
    Disc(Point, f32),
    /// Middle, half sides, cosine and sine of its turn.
    Block(Point, Point, Point),
    Stroke(Segment, f32),
}

impl Layer {
    fn over(&self, p: Point, pixel: f32, under: Colour) -> Colour {
        let distance = match self.mark {
            Mark::Disc(c, r) => stroke(p, (c, c), r),
            Mark::Block(c, half, [cos, sin]) => {
                let d = [p[0] - c[0], p[1] - c[1]];
                ((d[0] * cos + d[1] * sin).abs() - half[0]).max((d[1] * cos - d[0] * sin).abs() - half[1])
            }
            Mark::Stroke(segment, half_width) => stroke(p, segment, half_width),
        };
        mix(under, self.colour, self.alpha * (0.5 - distance / self.soft.max(pixel)).clamp(0.0, 1.0))
    }
}

fn mix(a: Colour, b: Colour, t: f32) -> Colour {
    std::array::from_fn(|k| a[k] + (b[k] - a[k]) * t)
}

fn luma(c: Colour) -> f32 {
    0.3 * c[0] + 0.59 * c[1] + 0.11 * c[2]
}

fn apart(a: Colour, b: Colour) -> f32 {
    (0..3).map(|k| (a[k] - b[k]).abs()).sum::<f32>() / 3.0
}

/// The first of a few random colours that passes, else the last resort.
fn colour(draw: &mut Draw, last_resort: Colour, passes: impl Fn(Colour) -> bool) -> Colour {
    let mut tries = (0..48).map(|_| std::array::from_fn(|_| draw.unit()));
    tries.find(|&c| passes(c)).unwrap_or(last_resort)
}

fn point(draw: &mut Draw, reach: f32) -> Point {
    [draw.range(-reach, reach), draw.range(-reach, reach)]
}

fn turn(draw: &mut Draw, limit: f32) -> Point {
    let angle = draw.range(-limit, limit);
    [libm::cosf(angle), libm::sinf(angle)]
}

/// Everything about one picture but its size.
pub(super) struct Scene {
    sky: [Colour; 2],
    /// The direction the background changes in.
    wind: Point,
    behind: Vec<Layer>,
    before: Vec<Layer>,
    sign: Sign,
    camera: Camera,
}

struct Sign {
    plate: Plate,
    glyph: &'static [Segment],
    half_width: f32,
    middle: Point,
    scale: f32,
    /// Cosine and sine of its turn.
    turn: Point,
    colour: Colour,
    border: Colour,
    border_width: f32,
    ink: Colour,
    /// Lighter above, darker below.
    shade: f32,
}

struct Camera {
    contrast: f32,
    brightness: f32,
    /// The share of each of the two neighbours, along either axis.
    blur: f32,
    noise: f32,
    noise_seed: u64,
}

impl Scene {
    /// Draws the scene of one class.
    pub(super) fn draw(label: u32, draw: &mut Draw) -> Self {
        let first: Colour = std::array::from_fn(|_| draw.range(0.05, 0.95));
        let second = mix(first, std::array::from_fn(|_| draw.unit()), draw.range(0.2, 0.7));
        let backdrop = mix(first, second, 0.5);
        let sign = Sign::draw(label, backdrop, draw);
        let behind = clutter(draw);
        let mut before = Vec::new();
        for _ in 0..2 {
            if draw.chance(0.35) {
                before.push(occluder(&sign, draw));
            }
        }
        Self {
            sky: [first, second],
            wind: turn(draw, std::f32::consts::PI),
            behind,
            before,
            sign,
            camera: Camera::draw(draw),
        }
    }

    /// Paints the scene as `[h][w][3]` bytes of `size` (height, width).
    pub(super) fn paint(&self, (h, w): (usize, usize), out: &mut [u8]) {
        let pixel = 2.0 / h.min(w).max(1) as f32;
        let mut picture: Vec<Colour> = Vec::with_capacity(h * w);
        for row in 0..h {
            for column in 0..w {
                let p = [(column as f32 + 0.5 - w as f32 / 2.0) * pixel, (row as f32 + 0.5 - h as f32 / 2.0) * pixel];
                let t = 0.5 + 0.4 * (p[0] * self.wind[0] + p[1] * self.wind[1]);
                let sky = mix(self.sky[0], self.sky[1], t.clamp(0.0, 1.0));
                let under = self.behind.iter().fold(sky, |under, layer| layer.over(p, pixel, under));
                let with_sign = self.sign.over(p, pixel, under);
                picture.push(self.before.iter().fold(with_sign, |under, layer| layer.over(p, pixel, under)));
            }
        }
        self.camera.take(&picture, w, out);
    }
}

impl Sign {
    fn draw(label: u32, backdrop: Colour, draw: &mut Draw) -> Self {
        let (plate, glyph, half_width) = DESIGNS[label as usize % DESIGNS.len()];
        let light = draw.chance(0.7);
        let (white, black) = ([1.0; 3], [0.0; 3]);
        let face = colour(draw, if light { white } else { black }, |c| {
            let l = luma(c);
            if light { l > 0.55 } else { l < 0.4 }
        });
        let against = if luma(face) > 0.5 { black } else { white };
        let ink = colour(draw, against, |c| (luma(c) - luma(face)).abs() > 0.26);
        let border = colour(draw, against, |c| apart(c, backdrop) > 0.3 && apart(c, face) > 0.2);
        let scale = draw.range(0.55, 0.95);
        // A small sign has room to move.
        let room = (1.0 - scale).max(0.05) * 0.9;
        Self {
            plate,
            glyph,
            half_width: half_width * draw.range(0.85, 1.25),
            middle: point(draw, room),
            scale,
            turn: turn(draw, 20f32.to_radians()),
            colour: face,
            border,
            border_width: draw.range(0.08, 0.2),
            ink,
            shade: draw.range(-0.15, 0.15),
        }
    }

    /// The sign over a pixel, 3x3 samples.
    fn over(&self, p: Point, pixel: f32, under: Colour) -> Colour {
        if self.plate.distance(self.frame(p)) > 1.5 * pixel / self.scale {
            return under;
        }
        let mut sum = [0.0; 3];
        for (i, j) in (0..9).map(|k| (k % 3, k / 3)) {
            let sample = [p[0] + (i as f32 - 1.0) * pixel / 3.0, p[1] + (j as f32 - 1.0) * pixel / 3.0];
            let c = self.at(self.frame(sample)).unwrap_or(under);
            sum = std::array::from_fn(|k| sum[k] + c[k] / 9.0);
        }
        sum
    }

    /// A point of the picture in the plate's own frame.
    fn frame(&self, p: Point) -> Point {
        let d = [(p[0] - self.middle[0]) / self.scale, (p[1] - self.middle[1]) / self.scale];
        [d[0] * self.turn[0] + d[1] * self.turn[1], d[1] * self.turn[0] - d[0] * self.turn[1]]
    }

    /// The colour at a point of the plate's frame, or none outside it.
    fn at(&self, q: Point) -> Option<Colour> {
        let distance = self.plate.distance(q);
        if distance > 0.0 {
            return None;
        }
        let base = if distance > -self.border_width {
            self.border
        } else if self.glyph.iter().any(|&segment| stroke(q, segment, self.half_width) < 0.0) {
            self.ink
        } else {
            self.colour
        };
        Some(base.map(|c| c + self.shade * q[1]))
    }
}

/// What lies behind the sign: soft blobs, blocks, strokes and a piece of some glyph.
fn clutter(draw: &mut Draw) -> Vec<Layer> {
    let mut layers = Vec::new();
    for _ in 0..2 + draw.below(3) {
        let mark = Mark::Disc(point(draw, 1.2), draw.range(0.15, 0.7));
        layers.push(Layer { mark, colour: any(draw), alpha: draw.range(0.3, 0.9), soft: draw.range(0.05, 0.6) });
    }
    for _ in 0..1 + draw.below(3) {
        let half = [draw.range(0.1, 0.5), draw.range(0.1, 0.5)];
        let mark = Mark::Block(point(draw, 1.1), half, turn(draw, std::f32::consts::PI));
        layers.push(Layer { mark, colour: any(draw), alpha: draw.range(0.4, 1.0), soft: 0.0 });
    }
    for _ in 0..1 + draw.below(3) {
        let mark = Mark::Stroke((point(draw, 1.2), point(draw, 1.2)), draw.range(0.02, 0.1));
        layers.push(Layer { mark, colour: any(draw), alpha: draw.range(0.5, 1.0), soft: 0.0 });
    }
    let (_, glyph, half_width) = DESIGNS[draw.below(DESIGNS.len())];
    let (middle, scale, ink) = (point(draw, 1.0), draw.range(0.4, 0.8), any(draw));
    for &(a, b) in glyph.iter().take(2) {
        let to = |p: Point| [middle[0] + p[0] * scale, middle[1] + p[1] * scale];
        layers.push(Layer {
            mark: Mark::Stroke((to(a), to(b)), half_width * scale),
            colour: ink,
            alpha: 1.0,
            soft: 0.0,
        });
    }
    layers
}

/// A bar or a blob over a part of the sign.
fn occluder(sign: &Sign, draw: &mut Draw) -> Layer {
    let off = point(draw, 0.8 * sign.scale);
    let middle = [sign.middle[0] + off[0], sign.middle[1] + off[1]];
    let mark = if draw.chance(0.5) {
        Mark::Disc(middle, draw.range(0.1, 0.3))
    } else {
        let [cos, sin] = turn(draw, std::f32::consts::PI);
        let end = |t: f32| [middle[0] + t * cos, middle[1] + t * sin];
        Mark::Stroke((end(-draw.range(0.2, 1.5)), end(draw.range(0.2, 1.5))), draw.range(0.04, 0.12))
    };
    Layer { mark, colour: any(draw), alpha: 1.0, soft: 0.0 }
}

fn any(draw: &mut Draw) -> Colour {
    std::array::from_fn(|_| draw.unit())
}

impl Camera {
    fn draw(draw: &mut Draw) -> Self {
        let noise_seed = u64::from((draw.unit() * (1 << 24) as f32) as u32);
        Self {
            contrast: draw.range(0.45, 1.1),
            brightness: draw.range(-0.15, 0.15),
            blur: draw.range(-0.1, 0.25).max(0.0),
            noise: draw.range(0.0, 0.06),
            noise_seed,
        }
    }

    /// Blur, contrast and noise, then bytes.
    fn take(&self, picture: &[Colour], w: usize, out: &mut [u8]) {
        let blurred = self.smooth(&self.smooth(picture, w, 1), w, w);
        let mut draw = Draw::new(self.noise_seed, [0, 0]);
        for (bytes, colour) in out.chunks_exact_mut(3).zip(&blurred) {
            for (byte, &value) in bytes.iter_mut().zip(colour) {
                let seen = (value - 0.5) * self.contrast + 0.5 + self.brightness + self.noise * draw.normal();
                *byte = (seen.clamp(0.0, 1.0) * 255.0 + 0.5) as u8;
            }
        }
    }

    /// Three taps along a row (`step` 1) or a column (`step` `w`); the edge repeats.
    fn smooth(&self, picture: &[Colour], w: usize, step: usize) -> Vec<Colour> {
        let n = picture.len();
        let one = |i: usize| {
            let (first, last) =
                if step == 1 { (i.is_multiple_of(w), (i + 1).is_multiple_of(w)) } else { (i < w, i + w >= n) };
            let before = picture[if first { i } else { i - step }];
            let after = picture[if last { i } else { i + step }];
            let side: Colour = std::array::from_fn(|k| (before[k] + after[k]) / 2.0);
            mix(picture[i], side, 2.0 * self.blur)
        };
        (0..n).map(one).collect()
    }
}
