//! What a convolution is along rows or columns, whichever way it is computed, and how its output channels are cut into blocks.

/// A convolution along one axis, by phase: a data gradient has one for each remainder of its stride, a convolution one in all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    /// Pixels of the output.
    pub(super) count: [usize; 2],
    /// Taps of the kernel.
    pub(super) taps: [usize; 2],
    /// The first of them in the kernel.
    pub(super) first: [usize; 2],
    /// What the first tap of the first pixel sees.
    pub(super) origin: [i32; 2],
}

impl Axis {
    pub(super) fn of(gradient: bool, len: usize, kernel: usize, stride: usize, pad: usize) -> Self {
        if !gradient {
            return Self { count: [len; 2], taps: [kernel; 2], first: [0; 2], origin: [-(pad as i32); 2] };
        }
        let phase = |i: usize| i.min(stride - 1);
        let first = [0, 1].map(|i| (phase(i) + pad) % stride);
        let taps = first.map(|f| kernel.saturating_sub(f).div_ceil(stride));
        Self {
            count: [0, 1].map(|i| len.saturating_sub(phase(i)).div_ceil(stride)),
            taps,
            first,
            // Taps run backwards: the last one sees the first pixel.
            origin: [0, 1].map(|i| ((phase(i) + pad - first[i]) / stride) as i32 - taps[i] as i32 + 1),
        }
    }

    /// Taps of the phase that has the most, at least one.
    pub(super) fn most(&self) -> usize {
        self.taps[0].max(self.taps[1]).max(1)
    }
}

/// Output channels of a block: the fewest of 16, 32 and 64 that hold all, or 64.
pub(super) fn block_width(channels: usize) -> usize {
    match channels {
        0..=16 => 16,
        17..=32 => 32,
        _ => 64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_have_all_taps_and_pixels() {
        for (len, kernel, stride, pad) in [(8, 3, 1, 1), (7, 3, 2, 1), (8, 4, 2, 1), (9, 1, 2, 0), (12, 7, 2, 3)] {
            let a = Axis::of(true, len, kernel, stride, pad);
            assert_eq!(a.taps[..stride].iter().sum::<usize>(), kernel);
            assert_eq!(a.count[..stride].iter().sum::<usize>(), len);
            for (phase, pixel) in (0..stride).flat_map(|p| (0..a.count[p]).map(move |i| (p, i))) {
                for tap in 0..a.taps[phase] {
                    // Output pixel o is seen by input pixel i through tap k where o = i * stride + k - pad.
                    let k = a.first[phase] + (a.taps[phase] - 1 - tap) * stride;
                    let i = a.origin[phase] + (pixel + tap) as i32;
                    assert_eq!(i * stride as i32 + k as i32 - pad as i32, (pixel * stride + phase) as i32);
                }
            }
        }
    }
}
