//! Reading one picture file to the size a model takes.

use crate::fail::Fail;
use std::path::Path;
use stemguard_runtime::session::to_f32;
use stemguard_runtime::shape::Shape;

/// The longest side of a picture file, in pixels.
#[cfg(not(feature = "data"))]
const MAX_SIDE: u32 = 16_384;

/// The model must take three channels.
pub(crate) fn check_channels(model: &Path, shape: Shape) -> Result<(), Fail> {
    match shape.c {
        3 => Ok(()),
        c => Err(Fail::at(model, format!("it takes pictures of {c} channels where RGB has 3"))),
    }
}

/// Reads a PNG, JPEG or PNM file into `out` (`[h][w][3]`, 0..=1), resized to the shape as the data readers do.
#[cfg(feature = "data")]
pub(crate) fn read(path: &Path, shape: Shape, out: &mut [f32]) -> Result<(), Fail> {
    let mut pixels = vec![0; shape.len()];
    stemguard_runtime::data::read_picture(path, (shape.h as usize, shape.w as usize), &mut pixels)?;
    to_f32(&pixels, out);
    Ok(())
}

/// Reads a binary PPM file (P6, 8 bits) of exactly the shape into `out` (`[h][w][3]`, 0..=1): what this build knows.
#[cfg(not(feature = "data"))]
pub(crate) fn read(path: &Path, shape: Shape, out: &mut [f32]) -> Result<(), Fail> {
    use std::io::Read;
    let refuse = |why: &str| Fail::at(path, format!("not a readable picture: {why}"));
    let limit = u64::from(MAX_SIDE) * u64::from(MAX_SIDE) * 3;
    let (mut bytes, file) = (Vec::new(), std::fs::File::open(path).map_err(|e| Fail::at(path, e))?);
    file.take(limit).read_to_end(&mut bytes).map_err(|e| Fail::at(path, e))?;
    let Some(mut rest) = bytes.strip_prefix(b"P6") else {
        return Err(refuse("this build reads binary PPM (P6) only: compile it with the feature `data` for more"));
    };
    let mut numbers = [0u32; 3];
    for number in &mut numbers {
        rest = rest.trim_ascii_start();
        while let Some(comment) = rest.strip_prefix(b"#") {
            let end = comment.iter().position(|&b| b == b'\n').unwrap_or(comment.len());
            rest = comment[end..].trim_ascii_start();
        }
        let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        let text = std::str::from_utf8(&rest[..digits]).unwrap_or_default();
        *number = text.parse().map_err(|_| refuse("its header is malformed"))?;
        rest = &rest[digits..];
    }
    let [w, h, most] = numbers;
    if most != 255 {
        return Err(refuse("its largest value is not 255"));
    }
    if (h, w) != (shape.h, shape.w) {
        return Err(refuse(&format!("{w}x{h} where {}x{} is needed; this build does not resize", shape.w, shape.h)));
    }
    let pixels = rest.get(1..).filter(|pixels| pixels.len() >= out.len()).ok_or_else(|| refuse("truncated"))?;
    to_f32(pixels, out);
    Ok(())
}
