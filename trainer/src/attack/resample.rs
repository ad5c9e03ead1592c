//! Bicubic resampling: Pillow's for patterns of another size, PyTorch's for a warp's control grid.

/// The cubic convolution kernel (Keys, 1981) with the slope parameter `a`, zero beyond 2.
fn cubic(a: f32, x: f32) -> f32 {
    let x = x.abs();
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}

/// The first source position and the weights (they sum to 1) of one target position.
struct Window {
    first: usize,
    weights: Vec<f32>,
}

/// Pillow's BICUBIC (a = -0.5): the kernel widens when shrinking, and is cut and renormalised at the border.
fn windows(from: usize, to: usize) -> Vec<Window> {
    let scale = from as f32 / to as f32;
    let wide = scale.max(1.0);
    (0..to)
        .map(|i| {
            let centre = (i as f32 + 0.5) * scale;
            let first = (centre - 2.0 * wide + 0.5).max(0.0) as usize;
            let last = ((centre + 2.0 * wide + 0.5) as usize).min(from);
            let mut weights: Vec<f32> = (first..last).map(|x| cubic(-0.5, (x as f32 - centre + 0.5) / wide)).collect();
            let sum: f32 = weights.iter().sum();
            weights.iter_mut().for_each(|weight| *weight /= sum);
            Window { first, weights }
        })
        .collect()
}

/// Resizes `[h][w][3]` values to `[to_h][to_w][3]`.
///
/// `bytes` rounds and clips to 0..=255 after each of the two passes, as a picture of bytes is resized in Pillow.
pub(crate) fn resize(values: &[f32], h: usize, w: usize, to_h: usize, to_w: usize, bytes: bool) -> Vec<f32> {
    if (h, w) == (to_h, to_w) {
        return values.to_vec();
    }
    let settle = |v: f32| if bytes { (v + 0.5).floor().clamp(0.0, 255.0) } else { v };
    let mut wide = Vec::with_capacity(h * to_w * 3);
    let columns = windows(w, to_w);
    for row in values.chunks_exact(w * 3) {
        for window in &columns {
            for c in 0..3 {
                let taps = window.weights.iter().enumerate();
                wide.push(settle(taps.map(|(i, weight)| weight * row[(window.first + i) * 3 + c]).sum()));
            }
        }
    }
    let mut out = Vec::with_capacity(to_h * to_w * 3);
    for window in windows(h, to_h) {
        for x in 0..to_w * 3 {
            let taps = window.weights.iter().enumerate();
            out.push(settle(taps.map(|(i, weight)| weight * wide[(window.first + i) * to_w * 3 + x]).sum()));
        }
    }
    out
}

/// The source position of `[to_h][to_w]` positions of a picture `[h][w]`, nearest neighbour.
pub(crate) fn nearest(h: usize, w: usize, to_h: usize, to_w: usize) -> impl Iterator<Item = usize> {
    (0..to_h).flat_map(move |y| (0..to_w).map(move |x| (2 * y + 1) * h / (2 * to_h) * w + (2 * x + 1) * w / (2 * to_w)))
}

/// Upsamples a square `[k][k]` grid to `[h][w]`: PyTorch's bicubic (a = -0.75) with corners aligned.
pub(crate) fn upsample_grid(grid: &[f32], k: usize, h: usize, w: usize) -> Vec<f32> {
    let taps = |i: usize, n: usize| {
        let at = if n > 1 { i as f32 * (k - 1) as f32 / (n - 1) as f32 } else { 0.0 };
        let floor = at.floor();
        [-1i32, 0, 1, 2].map(|d| {
            let index = (floor as i32 + d).clamp(0, k as i32 - 1) as usize;
            (index, cubic(-0.75, at - floor - d as f32))
        })
    };
    let columns: Vec<_> = (0..w).map(|x| taps(x, w)).collect();
    (0..h)
        .flat_map(|y| {
            let rows = taps(y, h);
            columns.iter().map(move |columns| {
                rows.iter().map(|(r, a)| columns.iter().map(|(c, b)| a * b * grid[r * k + c]).sum::<f32>()).sum::<f32>()
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attack_resize_keeps_flat_pictures_flat() {
        let flat = vec![37.0; 7 * 5 * 3];
        for (h, w) in [(3, 2), (20, 31), (7, 9)] {
            let out = resize(&flat, 7, 5, h, w, true);
            assert_eq!(out, vec![37.0; h * w * 3]);
        }
    }

    #[test]
    fn attack_upsampling_meets_the_corners() {
        let grid: Vec<f32> = (0..16).map(|i| (i * i) as f32).collect();
        let out = upsample_grid(&grid, 4, 32, 20);
        for (at, want) in [(0, 0.0), (19, 9.0), (31 * 20, 144.0), (31 * 20 + 19, 225.0)] {
            assert!((out[at] - want).abs() < 1e-3, "{} {want}", out[at]);
        }
        assert_eq!(upsample_grid(&grid, 4, 1, 1), vec![0.0]);
    }

    #[test]
    fn attack_nearest_is_the_identity_at_its_own_size() {
        assert_eq!(nearest(4, 6, 4, 6).collect::<Vec<_>>(), (0..24).collect::<Vec<_>>());
        assert_eq!(nearest(2, 2, 4, 4).nth(15), Some(3));
    }
}
