//! Reading one picture file to the size a model takes.

use crate::fail::Fail;
use std::path::Path;
use stemguard_runtime::session::to_f32;
use stemguard_runtime::shape::Shape;

/// The model must take three channels.
pub(crate) fn check_channels(model: &Path, shape: Shape) -> Result<(), Fail> {
    match shape.c {
        3 => Ok(()),
        c => Err(Fail::at(model, format!("it takes pictures of {c} channels where RGB has 3"))),
    }
}

/// Reads a picture file into `out` (`[h][w][3]`, 0..=1) as the data readers do.
pub(crate) fn read(path: &Path, shape: Shape, out: &mut [f32]) -> Result<(), Fail> {
    let mut pixels = vec![0; shape.len()];
    stemguard_runtime::data::read_picture(path, (shape.h as usize, shape.w as usize), &mut pixels)?;
    to_f32(&pixels, out);
    Ok(())
}
