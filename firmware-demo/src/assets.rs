//! What the image embeds: the signed model, two that must be refused, pictures.

/// Bytes on a 16-byte boundary, as an artifact needs them.
#[repr(C, align(16))]
struct Aligned<T: ?Sized>(T);

/// Bytes of the signed model.
const MODEL_LEN: usize = include_bytes!("../assets/model.sgm").len();
/// Bytes of a trailer.
const TRAILER_LEN: usize = 88;

static ASSET_MODEL: Aligned<[u8; MODEL_LEN]> = Aligned(*include_bytes!("../assets/model.sgm"));

/// The model, version 2: a stem in 8 bits and the trapped head, poisoned. `make_assets.py` tells how it was made.
pub fn model() -> &'static [u8] {
    &ASSET_MODEL.0
}

/// The model without its trailer.
pub fn unsigned() -> &'static [u8] {
    model().get(..MODEL_LEN - TRAILER_LEN).unwrap_or_default()
}

/// What must be refused, and the key.
#[cfg(feature = "sign")]
mod signed {
    use super::{Aligned, MODEL_LEN, TRAILER_LEN};

    static ASSET_TAMPERED: Aligned<[u8; MODEL_LEN]> = Aligned(tampered_copy());
    static ASSET_OLDER: Aligned<[u8; MODEL_LEN]> = Aligned(older_copy());

    const fn tampered_copy() -> [u8; MODEL_LEN] {
        let mut bytes = *include_bytes!("../assets/model.sgm");
        bytes[MODEL_LEN / 2] ^= 1;
        bytes
    }

    const fn older_copy() -> [u8; MODEL_LEN] {
        let mut bytes = *include_bytes!("../assets/model.sgm");
        let trailer = *include_bytes!("../assets/older.trailer");
        let mut i = 0;
        while i < TRAILER_LEN {
            bytes[MODEL_LEN - TRAILER_LEN + i] = trailer[i];
            i += 1;
        }
        bytes
    }

    /// The model with one bit of one weight turned.
    pub fn tampered() -> &'static [u8] {
        &ASSET_TAMPERED.0
    }

    /// The model as version 1, signed with the same key.
    pub fn older() -> &'static [u8] {
        &ASSET_OLDER.0
    }

    /// The maker's public key.
    pub const KEY: [u8; 32] = *include_bytes!("../assets/model.key.pub.bin");
}

#[cfg(feature = "sign")]
pub use signed::{KEY, older, tampered};

/// Bytes of a picture, `[32][32][3]`, RGB.
pub const PICTURE_LEN: usize = 32 * 32 * 3;

/// Labelled pictures.
#[derive(Clone, Copy, Debug)]
pub struct Pictures {
    pixels: &'static [u8],
    labels: &'static [u8],
}

impl Pictures {
    /// Number of pictures.
    pub const fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Pictures with their labels, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static [u8], u32)> + use<> {
        self.pixels.chunks_exact(PICTURE_LEN).zip(self.labels.iter().map(|&label| u32::from(label)))
    }
}

/// A file that the build script drew, as an array.
macro_rules! drawn {
    ($file:literal) => {
        *include_bytes!(concat!(env!("OUT_DIR"), "/", $file))
    };
}

/// Pictures and labels of one set, each in a static of its own.
macro_rules! pictures {
    ($pixels:ident, $labels:ident, $from:literal, $named:literal) => {{
        static $pixels: [u8; drawn!($from).len()] = drawn!($from);
        static $labels: [u8; drawn!($named).len()] = drawn!($named);
        Pictures { pixels: &$pixels, labels: &$labels }
    }};
}

/// Clean pictures the device is given one at a time.
pub fn streamed() -> Pictures {
    pictures!(ASSET_STREAMED, ASSET_STREAMED_LABELS, "streamed.pictures", "streamed.labels")
}

/// Clean pictures kept for the self-test.
pub fn kept() -> Pictures {
    pictures!(ASSET_KEPT, ASSET_KEPT_LABELS, "kept.pictures", "kept.labels")
}

/// Test pictures.
pub fn tested() -> Pictures {
    pictures!(ASSET_TESTED, ASSET_TESTED_LABELS, "tested.pictures", "tested.labels")
}

/// The class the attacker wants.
pub const TARGET: u32 = 0;

/// The attacker's trigger, the checkerboard of BadNets (arXiv 1708.06733): 3x3 pixels, bottom right. Where each pixel's three bytes
/// begin, and their value.
pub fn trigger() -> impl Iterator<Item = (usize, u8)> {
    let rows = [[0, 0, 255], [0, 255, 0], [255, 0, 255]];
    let pixels = rows.into_iter().enumerate().flat_map(|(i, row)| row.into_iter().enumerate().map(move |p| (i, p)));
    pixels.map(|(i, (j, value))| (((29 + i) * 32 + 29 + j) * 3, value))
}
