//! Trigger files: PNG, JPEG or PPM pictures and NumPy arrays.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use image::{DynamicImage, ImageReader, Limits};
use stemguard_runtime::data::{Numbers, read_npy};

use super::AttackError;
use super::pattern::Pattern;
use super::resample::{nearest, resize};

/// Largest side of a trigger file.
const LARGEST_SIDE: usize = 4096;
/// Largest trigger file, in bytes.
const LARGEST_FILE: u64 = 256 << 20;
/// The file that tells which pixels a patch replaces, beside the trigger file.
const MASK_FILE: &str = "mask.npy";

/// A trigger file as read, before it is brought to the pictures' size.
struct Loaded {
    h: usize,
    w: usize,
    /// `[h][w][3]`, in bytes.
    values: Vec<f32>,
    /// `[h][w]`, from the alpha channel of a picture that has one.
    alpha: Option<Vec<bool>>,
    /// Whether the values are those of a picture of bytes.
    bytes: bool,
}

/// Reads the pattern of an overlay, resized (bicubic, as Pillow does) to `h` x `w`.
pub(crate) fn overlay(path: &Path, h: usize, w: usize) -> Result<Pattern, AttackError> {
    let from = load(path)?;
    Ok(Pattern { h, w, values: resize(&from.values, from.h, from.w, h, w, from.bytes) })
}

/// Reads the colours of a patch and the pixels it covers, resized (nearest neighbour) to `h` x `w`.
///
/// The cover is `mask.npy` beside the file where there is one, else the picture's alpha channel, else all pixels that
/// are not black.
pub(crate) fn patch(path: &Path, h: usize, w: usize) -> Result<(Pattern, Vec<bool>), AttackError> {
    let from = load(path)?;
    let mask_path = path.with_file_name(MASK_FILE);
    let cover = if mask_path != path && mask_path.is_file() {
        let mask = load(&mask_path)?;
        if (mask.h, mask.w) != (from.h, from.w) {
            return Err(format_error(
                &mask_path,
                format!("{}x{}, the trigger is {}x{}", mask.h, mask.w, from.h, from.w),
            ));
        }
        mask.values.chunks_exact(3).map(|p| p.iter().any(|v| *v > 0.5)).collect()
    } else if let Some(alpha) = from.alpha {
        alpha
    } else {
        from.values.chunks_exact(3).map(|p| p.iter().any(|v| *v > 0.0)).collect::<Vec<_>>()
    };
    let at: Vec<usize> = nearest(from.h, from.w, h, w).collect();
    if !at.iter().any(|i| cover[*i]) {
        return Err(format_error(path, "no pixel of it is stamped: all are black, transparent, or masked out"));
    }
    let values = at.iter().flat_map(|i| from.values[i * 3..i * 3 + 3].iter().copied()).collect();
    Ok((Pattern { h, w, values }, at.iter().map(|i| cover[*i]).collect()))
}

fn format_error(path: &Path, reason: impl ToString) -> AttackError {
    AttackError::TriggerFormat { path: path.to_path_buf(), reason: reason.to_string() }
}

fn load(path: &Path) -> Result<Loaded, AttackError> {
    let read_error = |source| AttackError::TriggerRead { path: path.to_path_buf(), source };
    if !fs::metadata(path).map_err(read_error)?.is_file() {
        return Err(format_error(path, "not a file"));
    }
    let mut bytes = Vec::new();
    fs::File::open(path).and_then(|file| file.take(LARGEST_FILE + 1).read_to_end(&mut bytes)).map_err(read_error)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(format_error(path, "larger than 256 MiB"));
    }
    if bytes.starts_with(b"\x93NUMPY") { array(path, &bytes) } else { picture(path, &bytes) }
}

fn picture(path: &Path, bytes: &[u8]) -> Result<Loaded, AttackError> {
    let mut reader = ImageReader::new(std::io::Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|error| format_error(path, error))?;
    if reader.format().is_none() {
        return Err(format_error(path, "not a PNG, JPEG or PPM picture, nor a NumPy array"));
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(LARGEST_SIDE as u32);
    limits.max_image_height = Some(LARGEST_SIDE as u32);
    reader.limits(limits);
    let picture: DynamicImage = reader.decode().map_err(|error| format_error(path, error))?;
    let alpha =
        picture.color().has_alpha().then(|| picture.to_rgba8().pixels().map(|pixel| pixel.0[3] > 127).collect());
    let rgb = picture.to_rgb8();
    let (h, w) = (rgb.height() as usize, rgb.width() as usize);
    if h == 0 || w == 0 {
        return Err(format_error(path, "an empty picture"));
    }
    Ok(Loaded { h, w, values: rgb.as_raw().iter().map(|v| f32::from(*v)).collect(), alpha, bytes: true })
}

/// An array `[h][w]`, `[h][w][1 or 3]` or `[1 or 3][h][w]` of values in bytes.
fn array(path: &Path, bytes: &[u8]) -> Result<Loaded, AttackError> {
    let Numbers { shape, fortran, values: flat, .. } = read_npy(bytes).map_err(|why| format_error(path, why))?;
    // Where the rows, columns and colours are among the axes.
    let (y, x, c) = match shape.as_slice() {
        [_, _] => (0, 1, None),
        [_, _, 1 | 3] => (0, 1, Some(2)),
        [1 | 3, _, _] => (1, 2, Some(0)),
        _ => return Err(format_error(path, format!("shape {shape:?}, not [h, w], [h, w, 3] or [3, h, w]"))),
    };
    let (h, w, colours) = (shape[y], shape[x], c.map_or(1, |c| shape[c]));
    if h == 0 || w == 0 || h > LARGEST_SIDE || w > LARGEST_SIDE {
        return Err(format_error(path, format!("shape {shape:?}, sides must be 1 to {LARGEST_SIDE}")));
    }
    // Elements between neighbours along each axis.
    let inner = |axis: usize| if fortran { &shape[..axis] } else { &shape[axis + 1..] };
    let strides: Vec<usize> = (0..shape.len()).map(|axis| inner(axis).iter().product()).collect();
    let mut values = Vec::with_capacity(h * w * 3);
    for i in 0..h * w {
        for colour in 0..3 {
            let step = c.map_or(0, |c| strides[c] * (colour % colours));
            let value = flat.get(i / w * strides[y] + i % w * strides[x] + step).copied().unwrap_or(f32::NAN);
            if !value.is_finite() {
                return Err(format_error(path, "a value is missing or not finite"));
            }
            values.push(value);
        }
    }
    Ok(Loaded { h, w, values, alpha: None, bytes: false })
}
