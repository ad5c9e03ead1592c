//! Launches of convolutions in bf16: how a map is cut into tiles, what a tile sees of the map in front, and weights packed for the
//! tensor cores (kernels/tile.cu, kernels/tile_weights.cu).

use super::args::{Divisor, Packing, TileArgs, TileWeightArgs, Tiling, Weighing};
use super::axis::{Axis, block_width};
use super::backend::Kernel;
use super::builder::{Builder, Map, Product};
use crate::engine::EngineError;
use stemguard_runtime::kernels::ConvShape;
use stemguard_runtime::shape::Shape;

/// Outputs of a block of a product; pixels times channels that a block of a weight gradient takes up at a time.
const PIXELS_BY_CHANNELS: usize = 4096;
/// Bytes of a window in shared memory, at most.
const WINDOW: usize = 28_672;
/// Fragments of a block of a weight gradient: three for each of six warps.
const FRAGMENTS: usize = 18;
/// Blocks that a weight gradient is spread over, about: two for each multiprocessor of the larger GPUs. A constant: what is added in
/// which order does not depend on the device.
pub(super) const WEIGHT_BLOCKS: usize = 256;

/// A tile: so many pictures, rows and columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    pictures: usize,
    rows: usize,
    columns: usize,
}

impl Tile {
    /// The cheapest tile of at most `tall` pixels whose window has at most `fits`: pixels multiplied (all `tall` are) and twice those
    /// brought in, over all tiles.
    fn cheapest(
        n: usize,
        [rows, columns]: [usize; 2],
        tall: usize,
        stride: usize,
        taps: [usize; 2],
        fits: usize,
    ) -> Option<(usize, Self)> {
        let mut best: Option<(usize, Self)> = None;
        for across in 1..=columns.min(tall) {
            for down in 1..=rows.min(tall / across) {
                let whole = (down, across) == (rows, columns);
                for pictures in 1..=if whole { n.min(tall / (down * across)) } else { 1 } {
                    let seen = pictures * ((down - 1) * stride + taps[0]) * ((across - 1) * stride + taps[1]);
                    if seen > fits {
                        break;
                    }
                    let tiles = n.div_ceil(pictures) * rows.div_ceil(down) * columns.div_ceil(across);
                    let cost = tiles * (tall + 2 * seen);
                    if best.is_none_or(|(least, _)| cost < least) {
                        best = Some((cost, Self { pictures, rows: down, columns: across }));
                    }
                }
            }
        }
        best
    }
}

/// How a product goes over a map: tiles, and channels at a time.
struct Way {
    tiling: Tiling,
    chunk: usize,
    /// All tiles.
    tiles: usize,
}

/// Whether a map has so few channels that four taps make one step.
fn thin(c: usize) -> bool {
    c <= 4
}

impl Way {
    /// Of at most `most` channels at a time, or 16.
    fn choose(
        n: usize,
        from: Shape,
        [y, x]: [Axis; 2],
        stride: usize,
        kernel: [usize; 2],
        tall: usize,
        most: usize,
    ) -> Result<Self, EngineError> {
        let c = from.c as usize;
        // Of single taps, those that the stride leaves out are not brought in.
        let (stride, spread) = if kernel == [1, 1] { (1, stride) } else { (stride, 1) };
        let deep = c.div_ceil(16) * 16;
        // Bytes of a pixel; those that are no power of two lie in different banks.
        let row = |chunk: usize| if thin(c) { 8 } else { 2 * chunk + 16 };
        let chunks: &[usize] = if thin(c) { &[16] } else { &[64, 32, 16] };
        let mut best: Option<(usize, usize, Tile)> = None;
        for &chunk in chunks.iter().filter(|&&chunk| deep.is_multiple_of(chunk) && chunk <= most.max(16)) {
            let fits = WINDOW / row(chunk);
            let found = Tile::cheapest(n, [y.count[0], x.count[0]], tall, stride, [y.most(), x.most()], fits);
            // Smaller chunks come with more barriers.
            let Some((cost, tile)) = found.map(|(cost, tile)| (cost + cost * 8 / chunk, tile)) else { continue };
            if best.is_none_or(|(least, ..)| cost < least) {
                best = Some((cost, chunk, tile));
            }
        }
        let (_, chunk, tile) =
            best.ok_or_else(|| EngineError::Unavailable("--device cuda: a convolution's kernel is too large".into()))?;
        let (across, down) = (x.count[0].div_ceil(tile.columns), y.count[0].div_ceil(tile.rows));
        let seen = |axis: &Axis, len: usize| axis.taps.map(|taps| Divisor::new((len - 1) * stride + taps.max(1)));
        let tiling = Tiling {
            width: Divisor::new(tile.columns),
            height: Divisor::new(tile.rows),
            across: Divisor::new(across),
            tiles: Divisor::new(across * down),
            seen_x: seen(&x, tile.columns),
            seen_y: seen(&y, tile.rows),
            origin_x: x.origin,
            origin_y: y.origin,
            pictures: tile.pictures as i32,
            stride: stride as i32,
            spread: spread as i32,
            row: row(chunk) as i32,
        };
        Ok(Self { tiling, chunk, tiles: n.div_ceil(tile.pictures) * across * down })
    }
}

impl Builder<'_> {
    /// [`Builder::product`] in bf16.
    pub(super) fn tile_product(&mut self, p: &Product<'_>) -> Result<Map, EngineError> {
        let (from, to) = p.shapes();
        let window = &p.g.window;
        let [kh, kw] = window.kernel.map(|v| v as usize);
        let (stride, pad) = (window.stride[0] as usize, window.pad[0] as usize);
        let (step, inside) = if p.gradient { (stride, 1) } else { (1, stride) };
        let along = |len: u32, kernel: usize| Axis::of(p.gradient, len as usize, kernel, stride, pad);
        let axes @ [down, across] = [along(to.h, kh), along(to.w, kw)];
        let (ic, oc) = (from.c as usize, to.c as usize);
        let side = block_width(oc);
        let tall = PIXELS_BY_CHANNELS / side;
        let Way { tiling, chunk, tiles } = Way::choose(self.n, from, axes, inside, [kh, kw], tall, 64)?;
        let (deep, columns8) = (ic.div_ceil(16), oc.div_ceil(side) * side / 8);

        let mut packed = [0; 4];
        let mut jobs = Vec::new();
        let mut words = 0;
        for (phase, start) in packed.iter_mut().enumerate().take(step * step) {
            let (py, px) = (phase / step, phase % step);
            let (taps_y, taps_x) = (down.taps[py], across.taps[px]);
            let taps = taps_y * taps_x;
            // And one that is fetched ahead, but not multiplied.
            let steps = if thin(ic) { taps.div_ceil(4) } else { taps * deep } + 1;
            let len = steps * columns8 * 64;
            *start = words as i32;
            jobs.push((
                words,
                Packing {
                    w: self.param(p.weight),
                    to: 0,
                    ic: ic as i32,
                    oc: oc as i32,
                    kw: kw as i32,
                    gradient: i32::from(p.gradient),
                    first_y: down.first[py] as i32,
                    first_x: across.first[px] as i32,
                    taps_y: taps_y as i32,
                    taps_x: taps_x as i32,
                    step: step as i32,
                    inner: (chunk / 16) as i32,
                    columns8: columns8 as i32,
                    thin: i32::from(thin(ic)),
                    block: 0,
                    words: len as i32,
                },
            ));
            words += len;
        }
        let room = self.device.allocate(4 * words)?;
        self.packings.extend(jobs.into_iter().map(|(at, job)| Packing { to: room.address + 4 * at as u64, ..job }));

        let grid = [tiles, oc.div_ceil(side), step * step];
        let (y, passing) = self.passing(p, grid[0] * grid[2])?;
        let ints = |v: [usize; 2]| v.map(|v| v as i32);
        let args = TileArgs {
            passing,
            w: room.address,
            tiling,
            taps_x: ints(across.taps),
            taps_y: ints(down.taps),
            packed,
            rows: ints(down.count),
            columns: ints(across.count),
            step: step as i32,
            chunk: chunk as i32,
            deep: deep as i32,
            columns8: columns8 as i32,
        };
        let kernel = match (thin(ic), side) {
            (false, 16) => Kernel::Tile16,
            (false, 32) => Kernel::Tile32,
            (false, _) => Kernel::Tile64,
            (true, 16) => Kernel::Thin16,
            (true, 32) => Kernel::Thin32,
            (true, _) => Kernel::Thin64,
        };
        self.launch(kernel, grid, &args);
        Ok(y)
    }

    /// [`Builder::weights`] in bf16, `len` values into `to`.
    pub(super) fn tile_weights(
        &mut self,
        g: &ConvShape,
        weighing: Weighing,
        to: u64,
        len: usize,
    ) -> Result<(), EngineError> {
        let (ic, oc) = (g.x.c as usize, g.y.c as usize);
        let [kh, kw] = g.window.kernel.map(|v| v as usize);
        let (stride, pad) = (g.window.stride[0] as usize, g.window.pad[0] as usize);
        let side = block_width(oc).min(32);
        let tall = PIXELS_BY_CHANNELS / side;
        // What a block brings it multiplies: no more channels than it has fragments for, where they can be divided so.
        let taps = kh * kw;
        let axes = [Axis::of(false, g.y.h as usize, kh, stride, pad), Axis::of(false, g.y.w as usize, kw, stride, pad)];
        let Way { tiling, chunk, tiles } =
            Way::choose(self.n, g.x, axes, stride, [kh, kw], tall, 16 * (FRAGMENTS / taps))?;
        let (fragments, chunks) =
            if thin(ic) { (taps.div_ceil(4), 1) } else { (taps * chunk / 16, ic.div_ceil(16) * 16 / chunk) };
        let parts = fragments.div_ceil(FRAGMENTS);
        let [across, down] = [chunks * parts, oc.div_ceil(side)];
        let each = tiles.div_ceil((self.weight_blocks / (across * down)).clamp(1, tiles));
        let splits = tiles.div_ceil(each);
        let args = TileWeightArgs {
            weighing: Weighing { partial: self.reduce(to, splits, len)?, ..weighing },
            tiling,
            taps_x: Divisor::new(kw),
            chunk: chunk as i32,
            parts: parts as i32,
            each: each as i32,
            all: tiles as i32,
        };
        let kernel = match (thin(ic), side) {
            (false, 16) => Kernel::TileWeights16,
            (false, _) => Kernel::TileWeights32,
            (true, 16) => Kernel::ThinWeights16,
            (true, _) => Kernel::ThinWeights32,
        };
        self.launch(kernel, [across, down, splits], &args);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_maps_and_fit() {
        for (n, side, tall, stride, taps, fits) in [
            (256, 32, 256, 1, 3, 597),
            (256, 8, 64, 1, 3, 199),
            (128, 56, 64, 1, 3, 199),
            (3, 7, 64, 2, 7, 3584),
            (1, 1, 64, 1, 1, 60),
        ] {
            let (cost, tile) = Tile::cheapest(n, [side; 2], tall, stride, [taps; 2], fits).expect("a tile");
            let seen = |len: usize| (len - 1) * stride + taps;
            assert!(tile.pictures * tile.rows * tile.columns <= tall && tile.rows <= side && tile.columns <= side);
            assert!(tile.pictures * seen(tile.rows) * seen(tile.columns) <= fits, "{tile:?}");
            // At least a third of what is multiplied is asked for, where a map has as much.
            let tiles = cost / (tall + 2 * tile.pictures * seen(tile.rows) * seen(tile.columns));
            assert!(tall * tiles <= 3 * (n * side * side).max(tall), "{tile:?}");
        }
        assert_eq!(Tile::cheapest(1, [4, 4], 64, 1, [9, 9], 80), None);
    }
}
