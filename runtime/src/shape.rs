//! The shape of one picture or feature map.

use serde::{Deserialize, Serialize};

/// Height, width and channels of one picture or feature map, stored as `[h][w][c]`. A plain vector is `1 x 1 x c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Rows.
    pub h: u32,
    /// Columns.
    pub w: u32,
    /// Channels.
    pub c: u32,
}

impl Shape {
    /// The largest side or channel count the core accepts; it keeps every product below 2^63.
    pub const MAX_SIDE: u32 = 1 << 16;
    /// The largest number of elements of one value.
    pub const MAX_LEN: u64 = 1 << 28;

    /// A shape of `h` rows, `w` columns and `c` channels.
    pub const fn new(h: u32, w: u32, c: u32) -> Self {
        Self { h, w, c }
    }

    /// Elements of one picture. Only meaningful for a shape that [`Shape::is_valid`].
    pub const fn len(&self) -> usize {
        self.h as usize * self.w as usize * self.c as usize
    }

    /// Never true for a valid shape; here because `len` is.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every side within `1..=MAX_SIDE` and the product within `MAX_LEN`.
    pub const fn is_valid(&self) -> bool {
        self.h >= 1
            && self.w >= 1
            && self.c >= 1
            && self.h <= Self::MAX_SIDE
            && self.w <= Self::MAX_SIDE
            && self.c <= Self::MAX_SIDE
            && self.h as u64 * self.w as u64 * self.c as u64 <= Self::MAX_LEN
    }
}
