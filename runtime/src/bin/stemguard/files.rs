//! Output files: complete or absent.

use crate::fail::Fail;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Checks, before any work is done, that a file could be written there.
pub(crate) fn check_output(path: &Path) -> Result<(), Fail> {
    if path.is_dir() {
        return Err(Fail::at(path, "is a folder where an output file is wanted"));
    }
    if path.file_name().is_none() {
        return Err(Fail::at(path, "names no file"));
    }
    let folder = folder(path);
    match folder.is_dir() {
        true => Ok(()),
        false => Err(Fail::at(path, format!("the folder `{}` does not exist", folder.display()))),
    }
}

/// Writes a file beside its place, flushes it to the disk, then renames it there: a crash leaves the old file or the new one,
/// never a part. A device or a pipe is written as it is.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Fail> {
    write_as(path, bytes, OpenOptions::new().write(true).create(true).truncate(true))
}

/// As [`write()`], a new file that only its owner can read and write from its first byte on, where the system knows such files.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Fail> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    write_as(path, bytes, &options)
}

fn write_as(path: &Path, bytes: &[u8], options: &OpenOptions) -> Result<(), Fail> {
    check_output(path)?;
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::BrokenPipe => Fail::Pipe,
        _ => Fail::Other(format!("{}: cannot be written: {error}", path.display())),
    };
    // A link stays a link: what it names is replaced.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    if fs::metadata(&target).is_ok_and(|data| !data.is_file()) {
        let device = OpenOptions::new().write(true).open(&target);
        return device.and_then(|mut device| device.write_all(bytes)).map_err(failed);
    }
    let mut name = std::ffi::OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(format!(".{}.part", std::process::id()));
    let beside = target.with_file_name(name);
    let written = options.open(&beside).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, &target)
    });
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written.map_err(failed)?;
    // The new name is on the disk once the folder is. Not every file system can flush one.
    let _ = File::open(folder(&target)).and_then(|folder| folder.sync_all());
    Ok(())
}

/// The folder a file lies in.
fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}
