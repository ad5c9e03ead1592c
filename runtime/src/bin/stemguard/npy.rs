//! NumPy `.npy` arrays of `f32`, in C order.

use crate::fail::Fail;
use npyz::WriterBuilder;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The longest header read, in bytes. NumPy writes about 128.
const MAX_HEADER: usize = 4096;
/// The most bytes one array may take: 8 GiB.
pub(crate) const MAX_BYTES: u64 = 8 << 30;

/// An array: its dimensions, and its elements, all finite, the last dimension running fastest.
pub(crate) struct Array {
    /// Dimensions.
    pub(crate) shape: Vec<usize>,
    /// Elements.
    pub(crate) data: Vec<f32>,
}

/// Reads one array whose shape `accept` agrees to.
pub(crate) fn read(path: &Path, accept: impl Fn(&[usize]) -> Result<(), String>) -> Result<Array, Fail> {
    let refuse = |why: String| Fail::at(path, why);
    let mut file = File::open(path).map_err(|e| Fail::at(path, e))?;
    let (shape, header_len) = header(&mut file).map_err(refuse)?;
    accept(&shape).map_err(refuse)?;
    let count = shape.iter().try_fold(4u64, |n, &side| n.checked_mul(side as u64)).filter(|&n| n <= MAX_BYTES);
    let bytes = count.ok_or_else(|| refuse(format!("an array of shape {shape:?} is larger than 8 GiB")))?;
    let cut = |found: u64| refuse(format!("truncated: {found} bytes of data where {bytes} are needed"));
    let meta = file.metadata().map_err(|e| Fail::at(path, e))?;
    if meta.is_file() && meta.len() < header_len + bytes {
        return Err(cut(meta.len().saturating_sub(header_len)));
    }
    let mut raw = Vec::new();
    file.take(bytes + 1).read_to_end(&mut raw).map_err(|e| Fail::at(path, e))?;
    if (raw.len() as u64) < bytes {
        return Err(cut(raw.len() as u64));
    }
    if raw.len() as u64 > bytes {
        return Err(refuse(format!("bytes follow the {bytes} bytes of data")));
    }
    let mut data = Vec::with_capacity(raw.len() / 4);
    for four in raw.chunks_exact(4) {
        let value = f32::from_le_bytes([four[0], four[1], four[2], four[3]]);
        if !value.is_finite() {
            return Err(refuse(format!("element {} is {value}: pictures must be finite", data.len())));
        }
        data.push(value);
    }
    Ok(Array { shape, data })
}

/// Reads the header: the shape, and the bytes up to the data.
fn header(file: &mut impl Read) -> Result<(Vec<usize>, u64), String> {
    let short = |e: io::Error| match e.kind() {
        io::ErrorKind::UnexpectedEof => "not a .npy file, or cut short".to_string(),
        _ => e.to_string(),
    };
    let mut start = [0; 8];
    file.read_exact(&mut start).map_err(short)?;
    if start[..6] != *b"\x93NUMPY" {
        return Err("not a .npy file".into());
    }
    let (length, width) = match start[6] {
        1 => {
            let mut length = [0; 2];
            file.read_exact(&mut length).map_err(short)?;
            (u32::from(u16::from_le_bytes(length)), 2)
        }
        2 | 3 => {
            let mut length = [0; 4];
            file.read_exact(&mut length).map_err(short)?;
            (u32::from_le_bytes(length), 4)
        }
        version => return Err(format!("version {version} of .npy is not known")),
    };
    if length as usize > MAX_HEADER {
        return Err(format!("a header of {length} bytes is too long"));
    }
    let mut text = vec![0; length as usize];
    file.read_exact(&mut text).map_err(short)?;
    let text = String::from_utf8_lossy(&text);
    let value = |key: &str| {
        let after = text.split_once(&format!("'{key}'")).and_then(|(_, rest)| rest.trim_start().strip_prefix(':'));
        after.map(str::trim_start).ok_or_else(|| format!("the header has no `{key}`"))
    };
    let kind = value("descr")?;
    let kind = kind.strip_prefix('\'').and_then(|k| k.split_once('\'')).map_or("a structure", |(kind, _)| kind);
    if kind != "<f4" {
        return Err(format!("elements of type `{kind}` where float32 (`<f4`) is needed"));
    }
    if !value("fortran_order")?.starts_with("False") {
        return Err("the array is in Fortran order; store it in C order".into());
    }
    let list = value("shape")?.strip_prefix('(').and_then(|s| s.split_once(')'));
    let (list, _) = list.ok_or("the header's shape is malformed")?;
    let sides = list.split(',').map(str::trim).filter(|side| !side.is_empty()).map(str::parse::<usize>);
    let shape =
        sides.collect::<Result<Vec<_>, _>>().map_err(|_| format!("the header's shape ({list}) is malformed"))?;
    Ok((shape, 8 + width + u64::from(length)))
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
