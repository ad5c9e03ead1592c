//! A contact sheet of attacks: for each, some pictures clean, triggered, and ten times the difference.

use std::path::Path;

use image::{Rgb, RgbImage};
use stemguard_runtime::data::Pictures;
use stemguard_runtime::files;

use super::{Attack, AttackError};

/// Gain of the difference; no difference shows as mid grey.
const GAIN: i32 = 10;
/// Least side of a shown picture, in pixels; smaller ones are enlarged by a whole factor.
const LEAST_SIDE: usize = 64;
/// Gap between pictures, in pixels.
const GAP: usize = 4;
/// Enlargement of the letters.
const LETTER_SCALE: usize = 2;
/// Columns a letter takes, its gap included.
const LETTER_STEP: usize = 6 * LETTER_SCALE;
const PAPER: Rgb<u8> = Rgb([24, 24, 24]);
const INK: Rgb<u8> = Rgb([230, 230, 230]);

/// Draws the sheet: one row an attack, its name on the left, then for each picture at `picks` (places in `clean`;
/// those beyond it are left out) the clean one, the triggered one and `128 + 10 (triggered - clean)`, clipped.
///
/// An attack built for another size than the pictures' shows no difference.
pub fn draw(attacks: &[&dyn Attack], clean: &Pictures, picks: &[usize]) -> RgbImage {
    let picks: Vec<usize> = picks.iter().copied().filter(|i| *i < clean.len()).collect();
    let (h, w) = (clean.h, clean.w);
    let scale = LEAST_SIDE.div_ceil(h.min(w).max(1)).max(1);
    let longest = attacks.iter().map(|attack| attack.name().len()).max().unwrap_or(0);
    let margin = longest * LETTER_STEP + 2 * GAP;
    let (cell_h, cell_w) = (h * scale + GAP, w * scale + GAP);
    let width = margin + picks.len() * (3 * cell_w + GAP);
    let mut sheet = RgbImage::from_pixel(width as u32, (attacks.len() * cell_h + GAP) as u32, PAPER);
    for (row, attack) in attacks.iter().enumerate() {
        let top = GAP + row * cell_h;
        write_word(&mut sheet, attack.name(), top + (h * scale).saturating_sub(7 * LETTER_SCALE) / 2, GAP);
        for (k, &i) in picks.iter().enumerate() {
            let before = clean.picture(i);
            let mut after = before.to_vec();
            attack.stamp(&mut after, h, w, i as u64);
            let change = |(a, b): (&u8, &u8)| (128 + GAIN * (i32::from(*b) - i32::from(*a))).clamp(0, 255) as u8;
            let difference: Vec<u8> = before.iter().zip(&after).map(change).collect();
            let left = margin + k * (3 * cell_w + GAP);
            for (n, picture) in [before, &after, &difference].into_iter().enumerate() {
                paste(&mut sheet, picture, w, scale, top, left + n * cell_w);
            }
        }
    }
    sheet
}

/// Draws the sheet into a PNG file.
///
/// # Errors
/// [`AttackError::File`] where the file cannot be written.
pub fn write(path: &Path, attacks: &[&dyn Attack], clean: &Pictures, picks: &[usize]) -> Result<(), AttackError> {
    let failed = |source| AttackError::File { path: path.to_path_buf(), source };
    let mut png = std::io::Cursor::new(Vec::new());
    draw(attacks, clean, picks)
        .write_to(&mut png, image::ImageFormat::Png)
        .map_err(std::io::Error::other)
        .map_err(failed)?;
    files::write(path, png.get_ref()).map_err(failed)
}

/// Draws a picture (`[h][w][3]`), each of its pixels a square of `scale` pixels.
pub(crate) fn paste(sheet: &mut RgbImage, picture: &[u8], w: usize, scale: usize, top: usize, left: usize) {
    for (i, pixel) in picture.chunks_exact(3).enumerate() {
        let (y, x) = (top + i / w * scale, left + i % w * scale);
        fill(sheet, y, x, scale, Rgb([pixel[0], pixel[1], pixel[2]]));
    }
}

fn fill(sheet: &mut RgbImage, top: usize, left: usize, side: usize, colour: Rgb<u8>) {
    for y in top..top + side {
        for x in left..left + side {
            if let Some(pixel) = sheet.get_pixel_mut_checked(x as u32, y as u32) {
                *pixel = colour;
            }
        }
    }
}

fn write_word(sheet: &mut RgbImage, word: &str, top: usize, left: usize) {
    for (n, letter) in word.bytes().enumerate() {
        for (x, column) in glyph(letter).into_iter().enumerate() {
            for y in (0..8).filter(|y| column >> y & 1 == 1) {
                let left = left + n * LETTER_STEP + x * LETTER_SCALE;
                fill(sheet, top + y * LETTER_SCALE, left, LETTER_SCALE, INK);
            }
        }
    }
}

/// A letter as five columns from the left, the lowest bit on top; letters the names do not use are blank.
fn glyph(letter: u8) -> [u8; 5] {
    const DIGITS: [[u8; 5]; 10] = [
        [0x3e, 0x51, 0x49, 0x45, 0x3e],
        [0x00, 0x42, 0x7f, 0x40, 0x00],
        [0x42, 0x61, 0x51, 0x49, 0x46],
        [0x21, 0x41, 0x45, 0x4b, 0x31],
        [0x18, 0x14, 0x12, 0x7f, 0x10],
        [0x27, 0x45, 0x45, 0x45, 0x39],
        [0x3c, 0x4a, 0x49, 0x49, 0x30],
        [0x01, 0x71, 0x09, 0x05, 0x03],
        [0x36, 0x49, 0x49, 0x49, 0x36],
        [0x06, 0x49, 0x49, 0x29, 0x1e],
    ];
    const LETTERS: [[u8; 5]; 26] = [
        [0x20, 0x54, 0x54, 0x54, 0x78],
        [0x7f, 0x48, 0x44, 0x44, 0x38],
        [0x38, 0x44, 0x44, 0x44, 0x20],
        [0x38, 0x44, 0x44, 0x48, 0x7f],
        [0x38, 0x54, 0x54, 0x54, 0x18],
        [0x08, 0x7e, 0x09, 0x01, 0x02],
        [0x0c, 0x52, 0x52, 0x52, 0x3e],
        [0x7f, 0x08, 0x04, 0x04, 0x78],
        [0x00, 0x44, 0x7d, 0x40, 0x00],
        [0x20, 0x40, 0x44, 0x3d, 0x00],
        [0x7f, 0x10, 0x28, 0x44, 0x00],
        [0x00, 0x41, 0x7f, 0x40, 0x00],
        [0x7c, 0x04, 0x18, 0x04, 0x78],
        [0x7c, 0x08, 0x04, 0x04, 0x78],
        [0x38, 0x44, 0x44, 0x44, 0x38],
        [0x7c, 0x14, 0x14, 0x14, 0x08],
        [0x08, 0x14, 0x14, 0x18, 0x7c],
        [0x7c, 0x08, 0x04, 0x04, 0x08],
        [0x48, 0x54, 0x54, 0x54, 0x20],
        [0x04, 0x3f, 0x44, 0x40, 0x20],
        [0x3c, 0x40, 0x40, 0x20, 0x7c],
        [0x1c, 0x20, 0x40, 0x20, 0x1c],
        [0x3c, 0x40, 0x30, 0x40, 0x3c],
        [0x44, 0x28, 0x10, 0x28, 0x44],
        [0x0c, 0x50, 0x50, 0x50, 0x3c],
        [0x44, 0x64, 0x54, 0x4c, 0x44],
    ];
    match letter {
        b'0'..=b'9' => DIGITS[usize::from(letter - b'0')],
        b'a'..=b'z' => LETTERS[usize::from(letter - b'a')],
        b'-' => [0x08; 5],
        _ => [0; 5],
    }
}
