//! Output files, whole or absent: written beside their place, flushed to the disk, then renamed there. A crash leaves the old file
//! or the new one, never a part.

use std::ffi::{OsStr, OsString};
use std::format;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::vec::Vec;

/// Writes a file. A link stays a link: what it names is replaced. A device or a pipe is written as it is.
///
/// # Errors
/// What the system says; nothing is left behind.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_by(path, |file| file.write_all(bytes))
}

/// As [`write()`], a new file that only its owner can read and write from its first byte on, where the system knows such files.
///
/// # Errors
/// As [`write()`].
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    write_as(path, &options, |file| file.write_all(bytes))
}

/// As [`write()`], what `fill` puts into the file.
///
/// # Errors
/// As [`write()`], and those of `fill`.
pub fn write_by(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    write_as(path, OpenOptions::new().write(true).create_new(true), fill)
}

/// Whether a file can be written, as far as that shows: one is, beside its place, empty, and removed. A device or a pipe is not touched.
///
/// # Errors
/// As [`write()`].
pub fn try_write(path: &Path) -> io::Result<()> {
    let (target, is_file) = target_of(path);
    if !is_file {
        return if target.is_dir() { Err(io::ErrorKind::IsADirectory.into()) } else { Ok(()) };
    }
    Beside::written(target, OpenOptions::new().write(true).create_new(true), |_| Ok(())).map(drop)
}

/// Whether this is the name of a file that was being written, beside its place, when a program was ended.
pub fn is_cut_short(name: &OsStr) -> bool {
    writer(name).is_some()
}

/// Which process wrote under such a name: `.NAME.PROCESS-NUMBER.part`.
fn writer(name: &OsStr) -> Option<u32> {
    let (of, last) = name.to_str()?.strip_prefix('.')?.strip_suffix(PART)?.rsplit_once('.')?;
    let (process, number) = last.split_once('-')?;
    number.parse::<u64>().ok().filter(|_| !of.is_empty()).and_then(|_| process.parse().ok())
}

/// Removes what programs that have ended since left half-written in a folder. Where the system does not tell which programs run,
/// nothing.
pub fn clear_cut_short(folder: &Path) {
    if !Path::new("/proc/self").exists() {
        return;
    }
    let ended = |process: u32| !Path::new(&format!("/proc/{process}")).exists();
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for left in entries.filter(|e| writer(&e.file_name()).is_some_and(ended)) {
        // It does no harm where it is.
        let _ = fs::remove_file(left.path());
    }
}

/// What the names of files end with while they are written; they begin with a point.
const PART: &str = ".part";

/// Files written so far: no two that are written at a time share a name.
static WRITTEN: AtomicU64 = AtomicU64::new(0);
/// Numbers after which a name that is taken is an error.
const TRIES: u64 = 1 << 20;

fn write_as(path: &Path, options: &OpenOptions, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let (target, is_file) = target_of(path);
    if !is_file {
        return OpenOptions::new().write(true).open(&target).and_then(|mut device| fill(&mut device));
    }
    Beside::written(target, options, fill)?.place()
}

/// A file whole on the disk beside its place. Dropped, it is gone.
struct Beside {
    target: PathBuf,
    part: PathBuf,
}

impl Beside {
    fn written(
        target: PathBuf,
        options: &OpenOptions,
        fill: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> io::Result<Self> {
        let Some(last) = target.file_name() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"));
        };
        // What is there under such a name is another program's, or was left by one of the same number.
        let (part, opened) = loop {
            let mut name = OsString::from(".");
            name.push(last);
            let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
            name.push(format!(".{}-{number}{PART}", std::process::id()));
            let part = target.with_file_name(name);
            match options.open(&part) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && number < TRIES => {}
                opened => break (part, opened?),
            }
        };
        // Who may read what was there may read what takes its place, and nobody else, from the first byte on.
        if let Ok(before) = fs::metadata(&target) {
            let _ = opened.set_permissions(before.permissions());
        }
        let (mut file, beside) = (opened, Self { target, part });
        fill(&mut file).and_then(|()| file.sync_all()).map(|()| beside)
    }

    fn place(self) -> io::Result<()> {
        fs::rename(&self.part, &self.target)?;
        // The new name is on the disk once the folder is. Not every file system can flush one.
        let _ = File::open(folder(&self.target)).and_then(|folder| folder.sync_all());
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Under this name there is nothing once it has its place; else the first error is the one to tell.
        let _ = fs::remove_file(&self.part);
    }
}

/// Files that take their places only once all of them are written: where a disk fills up, what was there before stays.
#[derive(Default)]
pub struct Together {
    files: Vec<Beside>,
}

impl Together {
    /// Writes a file beside its place.
    ///
    /// # Errors
    /// As [`write()`]; also where it would take the place of a device or a pipe.
    pub fn add(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let (target, is_file) = target_of(path);
        if !is_file {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no file, and would be replaced by one"));
        }
        let options = &mut OpenOptions::new();
        options.write(true).create_new(true);
        self.files.push(Beside::written(target, options, |file| file.write_all(bytes))?);
        Ok(())
    }

    /// Gives each its place, in the order in which they were added.
    ///
    /// # Errors
    /// What the system says, with the path; those before it have their places, it and those behind it are gone.
    pub fn place(self) -> Result<(), (PathBuf, io::Error)> {
        self.files.into_iter().try_for_each(|file| {
            let target = file.target.clone();
            file.place().map_err(|e| (target, e))
        })
    }
}

/// What is written where this path is to be, and whether that is a file, there already or not yet.
fn target_of(path: &Path) -> (PathBuf, bool) {
    let target = fs::canonicalize(path).unwrap_or_else(|_| named_by(path));
    let is_file = fs::metadata(&target).map_or(true, |data| data.is_file());
    (target, is_file)
}

/// What a link that leads nowhere yet names; else the path itself.
fn named_by(path: &Path) -> PathBuf {
    match fs::read_link(path) {
        Ok(to) if to.is_absolute() => to,
        Ok(to) => folder(path).join(to),
        Err(_) => path.to_path_buf(),
    }
}

/// Whether both paths lead to one file that is there: what is written to one takes the other's place.
pub fn same(a: &Path, b: &Path) -> bool {
    let whole = |path: &Path| path.canonicalize().ok().filter(|path| path.is_file());
    whole(a).is_some_and(|a| whole(b) == Some(a))
}

/// The folder a file lies in.
pub fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write(&path, b"old").unwrap();
        let failed = write_by(&path, |file| {
            file.write_all(b"ne")?;
            Err(io::Error::other("no more"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "no more");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        write(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        for outcome in [write(&dir.path().join("no/such/folder"), b"x"), try_write(&dir.path().join("no/such/folder"))]
        {
            assert!(outcome.is_err());
        }
        assert!(write(Path::new("/"), b"x").is_err() && write(Path::new(""), b"x").is_err());
        assert!(try_write(dir.path()).is_err());
        try_write(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new", "it is only tried");
        try_write(&dir.path().join("b")).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn who_may_read_a_file_stays_so() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write(&path, b"old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn only_what_an_ended_program_left_half_written_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let ended = child.id();
        child.wait().unwrap();
        let (own, init) = (std::process::id(), 1);
        let name = |of: u32| format!(".a.b.{of}-7.part");
        let others = [
            name(own),
            name(init),
            ".mine.part".into(),
            format!("a.{ended}-7.part"),
            format!(".a.{ended}.part"),
            format!(".{ended}-7.part"),
            format!(".a.{ended}-7-8.part"),
        ];
        for file in others.iter().chain([&name(ended)]) {
            fs::write(dir.path().join(file), b"x").unwrap();
        }
        clear_cut_short(dir.path());
        assert!(!dir.path().join(name(ended)).exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), others.len());
    }

    #[test]
    fn files_written_together_take_no_place_before_all_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
        write(&a, b"old").unwrap();
        let mut both = Together::default();
        both.add(&a, b"new").unwrap();
        assert!(both.add(&dir.path().join("no/such/folder"), b"x").is_err());
        assert!(both.add(dir.path(), b"x").is_err());
        assert_eq!(fs::read(&a).unwrap(), b"old");
        drop(both);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
        let mut both = Together::default();
        both.add(&a, b"new").unwrap();
        both.add(&b, b"1").unwrap();
        both.add(&b, b"2").unwrap();
        assert!(!b.exists());
        both.place().unwrap();
        assert_eq!([fs::read(&a).unwrap(), fs::read(&b).unwrap()], [b"new".to_vec(), b"2".to_vec()]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_and_private_files_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (file, link, key) = (dir.path().join("file"), dir.path().join("link"), dir.path().join("key"));
        write(&file, b"1").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write(&link, b"2").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"2");
        // A link may come before what it names.
        let (early, late) = (dir.path().join("early"), dir.path().join("late"));
        std::os::unix::fs::symlink("late", &early).unwrap();
        write(&early, b"3").unwrap();
        assert!(fs::symlink_metadata(&early).unwrap().is_symlink());
        assert_eq!(fs::read(&late).unwrap(), b"3");
        write_private(&key, b"secret").unwrap();
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
