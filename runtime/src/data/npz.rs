//! NumPy `.npz` archives: read with `x_train`, `y_train`, `x_test`, `y_test` or with `x`, `y`; written either way.
//!
//! Pictures are `[n][h][w][3]`, `uint8`, or `float32` / `float64` within 0..=1. Labels are `[n]` of any integer type. An
//! optional array `classes` of strings names the classes; without it they are numbered up to the largest label.

use std::fs;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::prelude::v1::*;

use npyz::npz::{NpzArchive, NpzWriter};
use npyz::{DType, WriterBuilder};

use crate::files;

use super::npy::{Array, Header, float, integer, read_array};
use super::{DataError, MAX_CLASSES, MAX_SIDE, Part, Pictures};

/// Reads one part; with `x` and `y` the test part is empty.
pub(super) fn read(path: &Path, part: Part) -> Result<Pictures, DataError> {
    if !path.is_file() {
        return Err(DataError::Missing { path: path.to_path_buf(), what: "an .npz file" });
    }
    let file = fs::File::open(path).map_err(|error| DataError::Io { path: path.to_path_buf(), error })?;
    read_from(path, BufReader::new(file), part)
}

fn read_from<R: Read + io::Seek>(path: &Path, source: R, part: Part) -> Result<Pictures, DataError> {
    let zip = NpzArchive::new(source).map_err(|error| DataError::Io { path: path.to_path_buf(), error })?;
    let mut archive = Archive { path, zip };
    let split = ["x_train", "y_train", "x_test", "y_test"].iter().any(|name| archive.has(name));
    if let Some(name) = ["x", "y"].into_iter().find(|name| split && archive.has(name)) {
        return Err(archive.refuse(name, "beside arrays of a training or test part: which of them are meant?"));
    }
    let train: (Part, &str, &str) = if split { (Part::Train, "x_train", "y_train") } else { (Part::Train, "x", "y") };
    let named = if archive.has("classes") { Some(archive.names("classes")?) } else { None };
    let limit = named.as_ref().map_or(MAX_CLASSES, Vec::len);
    // Both parts' labels count for the number of classes.
    let (mut pictures, mut highest) = (Pictures::default(), None);
    for (this, x, y) in [train, (Part::Test, "x_test", "y_test")] {
        if !archive.has(x) && !archive.has(y) && (split || this == Part::Test) {
            continue;
        }
        let labels = archive.labels(y, limit)?;
        highest = highest.max(labels.iter().max().copied());
        if this == part {
            let (h, w, pixels) = archive.pictures(x, labels.len())?;
            pictures = Pictures { h, w, pixels, labels, ..Pictures::default() };
        }
    }
    pictures.classes = named.unwrap_or_else(|| (0..=highest.unwrap_or(0)).map(|c| c.to_string()).collect());
    Ok(pictures)
}

/// An open archive and the path its messages name.
struct Archive<'a, R: Read + io::Seek> {
    path: &'a Path,
    zip: NpzArchive<R>,
}

impl<R: Read + io::Seek> Archive<'_, R> {
    fn refuse(&self, array: &str, why: impl Into<String>) -> DataError {
        DataError::Array { path: self.path.to_path_buf(), array: array.to_string(), why: why.into() }
    }

    /// Reads one array whole, once `accept` has agreed to its header.
    fn array(&mut self, name: &str, accept: impl Fn(&Header) -> Result<(), String>) -> Result<Array, DataError> {
        if !self.has(name) {
            let why = format!("missing; expected x_train, y_train, x_test, y_test or x, y; found {}", self.found());
            return Err(self.refuse(name, why));
        }
        // `by_name` of the zip archive, not of the npz one: its header reader does not bound what it allocates.
        let outcome = match self.zip.zip_archive().by_name(&format!("{name}.npy")) {
            Ok(mut file) => read_array(&mut file, &accept),
            Err(error) => Err(error.to_string()),
        };
        outcome.map_err(|why| self.refuse(name, why))
    }

    /// Whether there is an array of this name.
    fn has(&self, name: &str) -> bool {
        self.zip.array_names().any(|n| n == name)
    }

    /// The names in the archive, for a message.
    fn found(&self) -> String {
        let mut names: Vec<&str> = self.zip.array_names().take(16).collect();
        names.sort_unstable();
        if names.is_empty() { "no array".into() } else { names.join(", ") }
    }

    /// Labels, each below `limit`.
    fn labels(&mut self, name: &str, limit: usize) -> Result<Vec<u32>, DataError> {
        let array = self.array(name, |header| match (header.kind, &header.shape[..]) {
            ('i' | 'u', [_]) => Ok(()),
            ('i' | 'u', shape) => Err(format!("labels of rank {} where rank 1 is needed", shape.len())),
            _ => Err(format!("labels of type `{}` where integers are needed", header.descr())),
        })?;
        let (size, signed, big) = (array.header.size, array.header.kind == 'i', array.header.big);
        let mut labels = Vec::with_capacity(array.data.len() / size);
        for (i, bytes) in array.data.chunks_exact(size).enumerate() {
            let label = integer(bytes, signed, big);
            match usize::try_from(label) {
                Ok(l) if l < limit => labels.push(l as u32),
                _ => {
                    let (path, record) = (self.path.to_path_buf(), i as u64);
                    return Err(DataError::Label { path, record, label, classes: limit as u64 });
                }
            }
        }
        Ok(labels)
    }

    /// Height, width and RGB bytes of `n` pictures.
    fn pictures(&mut self, name: &str, n: usize) -> Result<(usize, usize, Vec<u8>), DataError> {
        let array = self.array(name, |header| {
            if !matches!((header.kind, header.size), ('u', 1) | ('f', 4 | 8)) {
                return Err(format!("pictures of type `{}` where uint8 or float32 is needed", header.descr()));
            }
            let &[count, h, w, channels] = &header.shape[..] else {
                return Err(format!("pictures of rank {} where rank 4 (N, H, W, 3) is needed", header.shape.len()));
            };
            if channels != 3 {
                return Err(format!("{channels} channels last where 3 are needed (N, H, W, 3)"));
            }
            if header.fortran {
                return Err("Fortran order; store it in C order".into());
            }
            if [h, w].iter().any(|side| !(1..=MAX_SIDE as u64).contains(side)) {
                return Err(format!("a picture size of {h}x{w} is outside 1..=4096 a side"));
            }
            if count != n as u64 { Err(format!("{count} pictures for {n} labels")) } else { Ok(()) }
        })?;
        let (h, w) = (array.header.shape[1] as usize, array.header.shape[2] as usize);
        let pixels = if array.header.kind == 'u' { array.data } else { self.rounded(name, &array)? };
        Ok((h, w, pixels))
    }

    /// Floats of 0..=1 to the nearest byte.
    fn rounded(&self, name: &str, array: &Array) -> Result<Vec<u8>, DataError> {
        let (size, big) = (array.header.size, array.header.big);
        let mut pixels = Vec::with_capacity(array.data.len() / size);
        for (i, bytes) in array.data.chunks_exact(size).enumerate() {
            let value = float(bytes, big);
            if !(0.0..=1.0).contains(&value) {
                return Err(self.refuse(name, format!("element {i} is {value}, outside 0..=1")));
            }
            pixels.push((value * 255.0 + 0.5) as u8);
        }
        Ok(pixels)
    }

    /// An array of strings.
    fn names(&mut self, name: &str) -> Result<Vec<String>, DataError> {
        let array = self.array(name, |header| match (header.kind, &header.shape[..]) {
            ('U', [count]) if (1..=MAX_CLASSES as u64).contains(count) => Ok(()),
            ('U', _) => Err(format!("shape {:?} where one name a class is needed", header.shape)),
            _ => Err(format!("type `{}` where strings are needed", header.descr())),
        })?;
        let big = array.header.big;
        let one = |bytes: &[u8]| -> Option<String> {
            let codes = bytes.chunks_exact(4).map(|c| integer(c, false, big)).take_while(|&c| c != 0);
            codes.map(|c| u32::try_from(c).ok().and_then(char::from_u32)).collect()
        };
        let names: Option<Vec<String>> = array.data.chunks_exact(array.header.size).map(one).collect();
        names.ok_or_else(|| self.refuse(name, "not valid Unicode"))
    }
}

/// Writes pictures as arrays `x` (`uint8`, `[n][h][w][3]`), `y` (`int64`, `[n]`) and `classes` (strings).
///
/// The file is whole or absent ([`files`]), and its bytes are a function of the pictures alone.
///
/// # Errors
/// [`DataError::Io`], with an archive member beyond 4 GiB among the causes.
pub fn write_npz(path: &Path, pictures: &Pictures) -> Result<(), DataError> {
    write(path, &[("x", "y", pictures)])
}

/// Writes two parts as arrays `x_train`, `y_train`, `x_test`, `y_test` and `classes`, the class names of the first
/// part that is not empty. An empty part is left out. Otherwise as [`write_npz`].
///
/// # Errors
/// As [`write_npz`], and [`DataError::Mismatch`] where two parts differ in classes.
pub fn write_npz_split(path: &Path, train: &Pictures, test: &Pictures) -> Result<(), DataError> {
    if !train.is_empty() && !test.is_empty() && train.classes != test.classes {
        return Err(DataError::Mismatch("class names differ"));
    }
    let mut parts = vec![("x_train", "y_train", train), ("x_test", "y_test", test)];
    parts.retain(|(_, _, pictures)| !pictures.is_empty());
    write(path, &parts)
}

fn write(path: &Path, parts: &[(&str, &str, &Pictures)]) -> Result<(), DataError> {
    if parts.iter().all(|(_, _, pictures)| pictures.is_empty()) {
        return Err(DataError::Empty { path: path.to_path_buf() });
    }
    files::write_by(path, |file| write_to(file, parts))
        .map_err(|error| DataError::Io { path: path.to_path_buf(), error })
}

fn write_to(file: &mut fs::File, parts: &[(&str, &str, &Pictures)]) -> io::Result<()> {
    let mut archive = NpzWriter::new(BufWriter::new(file));
    for &(x, y, pictures) in parts {
        let shape = [pictures.len(), pictures.h, pictures.w, 3].map(|side| side as u64);
        member(&mut archive, x, "|u1", &shape, &pictures.pixels)?;
        let labels: Vec<u8> = pictures.labels.iter().flat_map(|&l| i64::from(l).to_le_bytes()).collect();
        member(&mut archive, y, "<i8", &shape[..1], &labels)?;
    }
    let classes = parts.first().map_or(&[][..], |(_, _, pictures)| &pictures.classes);
    if !classes.is_empty() {
        let width = classes.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(1);
        let padded = |name: &String| -> Vec<u8> {
            let codes = name.chars().map(u32::from).chain(std::iter::repeat(0)).take(width);
            codes.flat_map(u32::to_le_bytes).collect()
        };
        let text: Vec<u8> = classes.iter().flat_map(padded).collect();
        member(&mut archive, "classes", &format!("<U{width}"), &[classes.len() as u64], &text)?;
    }
    archive.zip_writer().finish()?.flush()
}

/// Adds one array whose elements are `data` already, in C order.
fn member<W: Write + io::Seek>(
    archive: &mut NpzWriter<W>,
    name: &str,
    descr: &str,
    shape: &[u64],
    data: &[u8],
) -> io::Result<()> {
    let invalid = |error: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidInput, error.to_string());
    let dtype = DType::new_scalar(descr.parse().map_err(|e| invalid(&e))?);
    // A fixed date, so the bytes depend on the pictures alone; a light compression, since noise gains nothing by more.
    let options = default_options(NpzWriter::<W>::array::<u8>)
        .last_modified_time(Default::default())
        .compression_level(Some(1))
        .large_file(data.len() as u64 > u64::from(u32::MAX) / 2);
    archive.array::<u8>(name, options)?.dtype(dtype).shape(shape).write_header_only()?;
    archive.zip_writer().write_all(data)
}

/// The default of a function's third argument: the archive library's options, whose type npyz does not re-export.
fn default_options<A, B, O: Default, R>(_: impl FnOnce(A, B, O) -> R) -> O {
    O::default()
}

#[cfg(test)]
#[path = "npz_tests.rs"]
pub(super) mod tests;
