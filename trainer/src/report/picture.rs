//! Pictures: PNG inside the page, scaled up in whole steps.

use super::{Picture, PictureRow, text::esc};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use image::{ExtendedColorType, ImageEncoder as _, codecs::png::PngEncoder};

/// Longest side in CSS pixels a small picture is scaled up to.
const SIDE: usize = 160;

/// One row of pictures.
pub(super) fn row(row: &PictureRow) -> String {
    let cells: String = row.cells.iter().map(|cell| figure(cell, &row.caption)).collect();
    let caption =
        if row.caption.is_empty() { String::new() } else { format!("<h3 class=\"cap\">{}</h3>", esc(&row.caption)) };
    format!("<div class=\"prow\">{caption}<div class=\"pcells\">{cells}</div></div>\n")
}

fn figure(cell: &Picture, caption: &str) -> String {
    let label = esc(&cell.label);
    let shown = match data_uri(cell) {
        Some(uri) => {
            let scale = (SIDE / cell.w.max(cell.h)).max(1);
            let alt = match (caption.is_empty(), cell.label.is_empty()) {
                (true, _) => label.clone(),
                (false, true) => esc(caption),
                (false, false) => format!("{}: {label}", esc(caption)),
            };
            let (w, h) = (cell.w * scale, cell.h * scale);
            format!("<img src=\"{uri}\" alt=\"{alt}\" width=\"{w}\" height=\"{h}\">")
        }
        None => "<span class=\"nopic\">no picture</span>".to_owned(),
    };
    format!("<figure>{shown}<figcaption>{label}</figcaption></figure>")
}

/// The picture as a PNG `data:` address; nothing where its size and its bytes disagree.
fn data_uri(cell: &Picture) -> Option<String> {
    let bytes = cell.h.checked_mul(cell.w)?.checked_mul(3)?;
    if bytes == 0 || bytes != cell.rgb.len() {
        return None;
    }
    let (w, h) = (u32::try_from(cell.w).ok()?, u32::try_from(cell.h).ok()?);
    let mut png = Vec::new();
    PngEncoder::new(&mut png).write_image(&cell.rgb, w, h, ExtendedColorType::Rgb8).ok()?;
    Some(format!("data:image/png;base64,{}", STANDARD.encode(png)))
}
