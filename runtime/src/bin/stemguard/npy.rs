//! NumPy `.npy` arrays of `f32`, in C order: what `run` reads and writes.

use crate::fail::Fail;
use npyz::WriterBuilder;
use std::fs::File;
use std::io;
use std::path::Path;
use stemguard_runtime::data::{Numbers, read_npy_f32};

/// Reads one array whose shape `accept` agrees to: its dimensions, and its elements, all finite, the last dimension running fastest.
pub(crate) fn read(
    path: &Path,
    accept: impl Fn(&[usize]) -> Result<(), String>,
) -> Result<(Vec<usize>, Vec<f32>), Fail> {
    let mut file = File::open(path).map_err(|e| Fail::at(path, e))?;
    let Numbers { shape, values, .. } = read_npy_f32(&mut file, &accept).map_err(|why| Fail::at(path, why))?;
    match values.iter().position(|v| !v.is_finite()) {
        Some(at) => Err(Fail::at(path, format!("element {at} is {}: pictures must be finite", values[at]))),
        None => Ok((shape, values)),
    }
}

/// The bytes of an array file.
pub(crate) fn encode(shape: &[usize], data: &[f32]) -> Result<Vec<u8>, Fail> {
    let failed = |e: io::Error| Fail::Other(format!("encoding the array: {e}"));
    let mut bytes = Vec::with_capacity(128 + 4 * data.len());
    let dims: Vec<u64> = shape.iter().map(|&side| side as u64).collect();
    let mut writer =
        npyz::WriteOptions::new().default_dtype().shape(&dims).writer(&mut bytes).begin_nd().map_err(failed)?;
    writer.extend(data.iter().copied()).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(bytes)
}
