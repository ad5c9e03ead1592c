//! Output files: complete or absent.

use crate::fail::Fail;
use std::io;
use std::path::Path;
use stemguard_runtime::files::{self, folder, same};

/// Checks, before any work is done, that a file could be written there.
pub(crate) fn check_output(path: &Path) -> Result<(), Fail> {
    if path.is_dir() {
        return Err(Fail::at(path, "is a folder where an output file is wanted"));
    }
    if path.file_name().is_none() {
        return Err(Fail::at(path, "names no file"));
    }
    let folder = folder(path);
    if !folder.is_dir() {
        return Err(Fail::at(path, format!("the folder `{}` does not exist", folder.display())));
    }
    files::try_write(path).map_err(|e| failed(path, &e))
}

/// As [`check_output`], for a file that must not be one of those that are read: `what` tells what it is.
pub(crate) fn check_apart(path: &Path, inputs: &[(&Path, &str)]) -> Result<(), Fail> {
    check_output(path)?;
    match inputs.iter().find(|(input, _)| same(path, input)) {
        Some((_, what)) => Err(Fail::at(path, format!("is {what}, which it would replace"))),
        None => Ok(()),
    }
}

/// Writes a file, whole or not at all.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Fail> {
    files::write(path, bytes).map_err(|e| failed(path, &e))
}

/// As [`write()`], a new file that only its owner can read and write.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Fail> {
    files::write_private(path, bytes).map_err(|e| failed(path, &e))
}

fn failed(path: &Path, error: &io::Error) -> Fail {
    match error.kind() {
        // Only standard output may be left before its end.
        io::ErrorKind::BrokenPipe if path == Path::new("/dev/stdout") => Fail::Pipe,
        _ => Fail::at(path, format!("cannot be written: {error}")),
    }
}
