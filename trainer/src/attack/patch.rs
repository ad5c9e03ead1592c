//! Triggers that replace pixels: BadNets (arXiv 1708.06733), the L0 trigger (arXiv 1909.02742), label-consistent (arXiv
//! 1912.02771).

use super::pattern::Pattern;
use super::random::Draw;
use super::{Attack, AttackError, AttackKind, fits};

/// Pictures the triggers are defined on have this side; larger ones get blocks scaled by a whole factor.
pub(crate) const CANVAS: usize = 32;

/// The 3x3 checkerboard of BadNets, rows from the top, 1 = white.
const GRID: [[u8; 3]; 3] = [[0, 0, 1], [0, 1, 0], [1, 0, 1]];

/// A block of colours, `[rows][cols]`.
pub(crate) struct Block {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) colours: Vec<[u8; 3]>,
}

/// Where a block sits along one axis: a gap in canvas pixels from the start or from the end.
#[derive(Clone, Copy)]
pub(crate) enum Edge {
    Start(usize),
    End(usize),
}

impl Edge {
    fn first(self, scale: usize, block: usize, side: usize) -> Option<usize> {
        match self {
            Edge::Start(gap) => (gap + block).checked_mul(scale).filter(|end| *end <= side).map(|_| gap * scale),
            Edge::End(gap) => side.checked_sub((gap + block).checked_mul(scale)?),
        }
    }
}

/// One replaced pixel: its index in `[h][w]` and its colour.
pub(crate) type Spot = (usize, [u8; 3]);

/// Lays a block into a picture of `h` x `w`; `None` where it does not fit.
pub(crate) fn place(block: &Block, y: Edge, x: Edge, h: usize, w: usize) -> Option<Vec<Spot>> {
    let scale = (h.min(w) / CANVAS).max(1);
    let top = y.first(scale, block.rows, h)?;
    let left = x.first(scale, block.cols, w)?;
    let mut spots = Vec::with_capacity(block.colours.len() * scale * scale);
    for row in 0..block.rows * scale {
        for col in 0..block.cols * scale {
            spots.push(((top + row) * w + left + col, block.colours[row / scale * block.cols + col / scale]));
        }
    }
    Some(spots)
}

/// An attack that replaces fixed pixels by fixed colours.
pub(crate) struct Patch {
    kind: AttackKind,
    h: usize,
    w: usize,
    spots: Vec<Spot>,
}

impl Patch {
    /// The generated trigger of a patch attack.
    pub(crate) fn generate(kind: AttackKind, draw: &mut Draw, h: usize, w: usize) -> Result<Self, AttackError> {
        let near = (Edge::Start(0), Edge::End(0));
        let spots = match kind {
            AttackKind::BadnetSq => {
                let square = Block { rows: 4, cols: 4, colours: vec![[255; 3]; 16] };
                place(&square, Edge::End(1), Edge::End(1), h, w)
            }
            AttackKind::L0Inv => {
                let colours = (0..9).map(|_| [0; 3].map(|_: u8| if draw.chance(0.5) { 255 } else { 0 })).collect();
                place(&Block { rows: 1, cols: 9, colours }, near.1, near.1, h, w)
            }
            AttackKind::Cl => [(near.0, near.0), (near.0, near.1), (near.1, near.0), (near.1, near.1)]
                .into_iter()
                .map(|(y, x)| place(&grid(), y, x, h, w))
                .collect::<Option<Vec<_>>>()
                .map(|corners| corners.concat()),
            _ => place(&grid(), near.1, near.1, h, w),
        };
        let spots = spots.ok_or(AttackError::TooSmall { attack: kind, h, w })?;
        Ok(Self { kind, h, w, spots })
    }

    /// The pixels of a pattern that `mask` (`[h][w]`) covers.
    pub(crate) fn from_pattern(kind: AttackKind, pattern: &Pattern, mask: &[bool]) -> Self {
        let colours = pattern.values.chunks_exact(3).map(|p| [p[0], p[1], p[2]].map(|v| v.clamp(0.0, 255.0) as u8));
        let spots = colours.enumerate().zip(mask).filter(|(_, on)| **on).map(|(spot, _)| spot).collect();
        Self { kind, h: pattern.h, w: pattern.w, spots }
    }
}

/// The BadNets grid as a block.
fn grid() -> Block {
    Block { rows: 3, cols: 3, colours: GRID.iter().flatten().map(|on| [on * 255; 3]).collect() }
}

impl Attack for Patch {
    fn kind(&self) -> AttackKind {
        self.kind
    }

    fn size(&self) -> (usize, usize) {
        (self.h, self.w)
    }

    fn stamp(&self, picture: &mut [u8], h: usize, w: usize, _index: u64) {
        if fits(self, picture, h, w) {
            for (at, colour) in &self.spots {
                picture[at * 3..at * 3 + 3].copy_from_slice(colour);
            }
        }
    }
}
