//! A contact sheet of the most suspicious pictures, rows of each class with accusations, the worst first; where nobody is accused, those
//! that the two heads disagree most on.

use super::Audit;
use crate::attack::sheet::paste;
use crate::error::Failure;
use image::{ImageFormat, Rgb, RgbImage};
use std::io::Cursor;
use stemguard_runtime::data::Pictures;

/// Pictures in a row, and rows of one class.
const ACROSS: usize = 16;
const DOWN: usize = 4;
/// Least side of a shown picture, in pixels; smaller ones are enlarged by a whole factor.
const LEAST_SIDE: usize = 64;
/// Pixels between pictures.
const GAP: usize = 4;
const PAPER: Rgb<u8> = Rgb([24, 24, 24]);

/// The sheet, as PNG.
///
/// # Errors
/// [`Failure::Other`] where it cannot be encoded.
pub(super) fn png(found: &Audit, suspects: &Pictures) -> Result<Vec<u8>, Failure> {
    let all = found.worst_first();
    let mut rows: Vec<Vec<usize>> = Vec::new();
    for class in found.verdict.classes.iter().filter(|c| c.accused > 0) {
        let of_class = |&i: &usize| suspects.labels[i] == class.class;
        let worst: Vec<usize> = all.iter().map(|&i| i as usize).filter(of_class).take(ACROSS * DOWN).collect();
        rows.extend(worst.chunks(ACROSS).map(<[usize]>::to_vec));
    }
    if rows.is_empty() {
        let disagreement = &found.signals.disagreement;
        let mut order: Vec<usize> = (0..suspects.len()).collect();
        order.sort_by(|&a, &b| disagreement[b].total_cmp(&disagreement[a]));
        rows.extend(order.chunks(ACROSS).take(DOWN).map(<[usize]>::to_vec));
    }
    let (h, w) = (suspects.h, suspects.w);
    let scale = LEAST_SIDE.div_ceil(h.min(w).max(1)).max(1);
    let (cell_h, cell_w) = (h * scale + GAP, w * scale + GAP);
    let size = ((ACROSS * cell_w + GAP) as u32, (rows.len() * cell_h + GAP) as u32);
    let mut sheet = RgbImage::from_pixel(size.0, size.1, PAPER);
    for (row, pictures) in rows.iter().enumerate() {
        for (column, &i) in pictures.iter().enumerate() {
            paste(&mut sheet, suspects.picture(i), w, scale, GAP + row * cell_h, GAP + column * cell_w);
        }
    }
    let mut bytes = Cursor::new(Vec::new());
    sheet.write_to(&mut bytes, ImageFormat::Png).map_err(|e| Failure::Other(format!("the contact sheet: {e}")))?;
    Ok(bytes.into_inner())
}
