//! Class folders of picture files.
//!
//! Two layouts: `DIR/train/CLASS/*` with `DIR/test/CLASS/*` (either may be absent), or `DIR/CLASS/*`, all training part.
//! Classes are the sorted folder names of both parts together; files are sorted by name within a class. Files that end
//! in none of [`EXTENSIONS`] and hidden entries are passed over.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::prelude::v1::*;

use super::{DataError, MAX_CLASSES, Part, Pictures, allocate, fill, read_picture};

/// Endings of the files taken for pictures, in any case. What a file holds is told from its first bytes.
const EXTENSIONS: [&str; 7] = ["png", "jpg", "jpeg", "ppm", "pgm", "pbm", "pnm"];

/// Reads one part, every picture resized to `size` (height, width). It is empty where the layout lacks it.
pub(super) fn read(dir: &Path, part: Part, size: (usize, usize)) -> Result<Pictures, DataError> {
    let top = folders(dir, "a folder of class folders")?;
    let sub = |name: &str| {
        let found = top.iter().find(|(n, _)| n == name);
        found.map_or(Ok(Vec::new()), |(_, path)| folders(path, "a folder of class folders"))
    };
    let (train, test) = (sub("train")?, sub("test")?);
    let (train, test) = if train.is_empty() && test.is_empty() { (top, Vec::new()) } else { (train, test) };
    let mut classes: Vec<String> = train.iter().chain(&test).map(|(name, _)| name.clone()).collect();
    classes.sort();
    classes.dedup();
    if classes.is_empty() {
        if pictures_in(dir)?.is_empty() {
            return Err(DataError::Empty { path: dir.to_path_buf() });
        }
        let what = "a folder of class folders, as its pictures lie in it directly";
        return Err(DataError::Missing { path: dir.to_path_buf(), what });
    }
    if classes.len() > MAX_CLASSES {
        let (label, classes) = (classes.len() as i128 - 1, MAX_CLASSES as u64);
        return Err(DataError::Label { path: dir.to_path_buf(), record: 0, label, classes });
    }
    let own = if part == Part::Train { train } else { test };
    let mut found = Vec::new();
    for (name, path) in &own {
        let label = classes.binary_search(name).unwrap_or_default() as u32;
        for (file, path) in pictures_in(path)? {
            found.push(Found { path, name: format!("{name}/{file}"), label });
        }
    }
    if found.is_empty() && !own.is_empty() {
        return Err(DataError::Empty { path: dir.to_path_buf() });
    }
    decode_all(dir, &found, size, classes)
}

/// One picture file.
pub(super) struct Found {
    /// Where it lies.
    pub(super) path: PathBuf,
    /// The name it is given in [`Pictures::files`].
    pub(super) name: String,
    /// Its class.
    pub(super) label: u32,
}

/// Decodes every file, resized to `size` (height, width), in the order given. `dir` is for messages about the whole.
pub(super) fn decode_all(
    dir: &Path,
    found: &[Found],
    size: (usize, usize),
    classes: Vec<String>,
) -> Result<Pictures, DataError> {
    let (h, w) = size;
    let mut pixels = allocate(dir, found.len(), h, w)?;
    fill(&mut pixels, h * w * 3, |i, out| read_picture(&found[i].path, size, out))?;
    let labels = found.iter().map(|f| f.label).collect();
    Ok(Pictures { h, w, pixels, labels, classes, files: found.iter().map(|f| f.name.clone()).collect() })
}

/// The entries of a folder by name, hidden ones left out, sorted.
fn entries(dir: &Path, what: &'static str) -> Result<Vec<(String, PathBuf)>, DataError> {
    if !dir.is_dir() {
        return Err(DataError::Missing { path: dir.to_path_buf(), what });
    }
    let failed = |error| DataError::Io { path: dir.to_path_buf(), error };
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // Two names that are not UTF-8 may look alike.
        let unreadable = |_| {
            let error = io::Error::new(io::ErrorKind::InvalidData, "its name is not UTF-8: rename it");
            DataError::Io { path: entry.path(), error }
        };
        let name = entry.file_name().into_string().map_err(unreadable)?;
        if !name.starts_with('.') {
            names.push((name, entry.path()));
        }
    }
    names.sort();
    Ok(names)
}

/// The folders inside a folder, sorted by name. `what` tells the message what `dir` should have been.
pub(super) fn folders(dir: &Path, what: &'static str) -> Result<Vec<(String, PathBuf)>, DataError> {
    let mut found = entries(dir, what)?;
    found.retain(|(_, path)| path.is_dir());
    Ok(found)
}

/// The picture files inside a folder, sorted by name.
pub(super) fn pictures_in(dir: &Path) -> Result<Vec<(String, PathBuf)>, DataError> {
    let known = |path: &Path| {
        let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        ending.is_some_and(|e| EXTENSIONS.contains(&e.as_str()))
    };
    let mut found = entries(dir, "a folder of pictures")?;
    // A link that leads nowhere stays: reading it tells. A pipe would never end.
    found.retain(|(_, path)| known(path) && fs::metadata(path).map_or(true, |data| data.is_file()));
    Ok(found)
}

#[cfg(all(test, feature = "data"))]
pub(super) mod tests {
    use super::*;
    use crate::data::{LoadOptions, Spec, load};

    /// A binary PPM of one colour.
    pub(crate) fn ppm(h: usize, w: usize, rgb: [u8; 3]) -> Vec<u8> {
        let head = format!("P6\n{w} {h}\n255\n").into_bytes();
        [head, rgb.repeat(h * w)].concat()
    }

    pub(crate) fn put(path: PathBuf, bytes: &[u8]) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn spec(dir: &Path) -> Spec {
        format!("folder:{}", dir.display()).parse().unwrap()
    }

    fn message(dir: &Path) -> String {
        load(&spec(dir), &LoadOptions::default()).unwrap_err().to_string()
    }

    /// Opening a pipe that nobody writes to would wait for ever.
    #[cfg(unix)]
    #[test]
    fn only_files_are_taken_for_pictures() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path().join("dog/a.ppm"), &ppm(32, 32, [1, 2, 3]));
        let pipe = dir.path().join("dog/b.ppm");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert_eq!(pictures_in(&dir.path().join("dog")).unwrap().len(), 1);
    }

    #[test]
    fn reads_a_flat_folder_in_order() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path().join("dog/b.ppm"), &ppm(4, 6, [9, 8, 7]));
        put(dir.path().join("dog/a.PPM"), &ppm(32, 32, [1, 2, 3]));
        put(dir.path().join("dog/notes.txt"), b"no picture");
        put(dir.path().join("cat/.hidden.ppm"), b"no picture");
        put(dir.path().join("readme.md"), b"no picture");
        let red = image::RgbImage::from_pixel(7, 5, image::Rgb([255, 0, 0]));
        red.save(dir.path().join("cat/x.png")).unwrap();
        red.save(dir.path().join("cat/y.jpg")).unwrap();
        let set = load(&spec(dir.path()), &LoadOptions::default()).unwrap();
        assert!(set.test.is_empty());
        assert_eq!(set.train.classes, ["cat", "dog"]);
        assert_eq!(set.train.labels, [0, 0, 1, 1]);
        assert_eq!(set.train.files, ["cat/x.png", "cat/y.jpg", "dog/a.PPM", "dog/b.ppm"]);
        assert_eq!((set.train.h, set.train.w), (32, 32));
        assert_eq!(set.train.picture(0)[..3], [255, 0, 0]);
        assert!(set.train.picture(1)[0] > 250 && set.train.picture(1)[1] < 5);
        assert_eq!(set.train.picture(3)[3069..], [9, 8, 7]);
    }

    #[test]
    fn reads_a_split_folder_with_classes_of_both_parts() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path().join("train/b/0.ppm"), &ppm(3, 3, [0, 0, 0]));
        put(dir.path().join("test/a/0.ppm"), &ppm(3, 3, [5, 5, 5]));
        put(dir.path().join("test/b/0.ppm"), &ppm(2, 2, [6, 6, 6]));
        let set = load(&spec(dir.path()), &LoadOptions { size: Some((3, 4)), seed: 0 }).unwrap();
        assert_eq!((set.train.labels, set.test.labels), (vec![1], vec![0, 1]));
        assert_eq!((set.test.classes, set.train.pixels.len()), (vec!["a".to_string(), "b".to_string()], 36));
    }

    #[test]
    fn a_class_may_be_called_train() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path().join("train/0.ppm"), &ppm(3, 3, [0, 0, 0]));
        put(dir.path().join("ship/0.ppm"), &ppm(3, 3, [0, 0, 0]));
        assert_eq!(load(&spec(dir.path()), &LoadOptions::default()).unwrap().train.classes, ["ship", "train"]);
    }

    #[cfg(unix)]
    #[test]
    fn names_that_are_no_text_and_links_to_nowhere_are_named() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path().join("cat/0.ppm"), &ppm(2, 2, [1, 2, 3]));
        let link = dir.path().join("cat/1.ppm");
        std::os::unix::fs::symlink(dir.path().join("gone.ppm"), &link).unwrap();
        assert!(message(dir.path()).contains("1.ppm"));
        fs::remove_file(&link).unwrap();
        assert_eq!(load(&spec(dir.path()), &LoadOptions::default()).unwrap().train.len(), 1);
        for name in [b"\xb9\xb7", b"\xbc\xa6"] {
            let name = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name);
            put(dir.path().join(name).join("0.ppm"), &ppm(2, 2, [1, 2, 3]));
        }
        assert!(message(dir.path()).contains("not UTF-8"));
    }

    #[test]
    fn bad_folders_are_named() {
        assert!(message(Path::new("no/such")).contains("no/such: not found"));
        let dir = tempfile::tempdir().unwrap();
        assert!(message(dir.path()).contains("no pictures"));
        put(dir.path().join("0.ppm"), &ppm(2, 2, [1, 2, 3]));
        assert!(message(dir.path()).contains("not a folder of class folders"));
        fs::create_dir(dir.path().join("cat")).unwrap();
        assert!(message(dir.path()).contains("no pictures"));
        // What is missing of a JPEG would be grey.
        let noise = image::RgbImage::from_fn(40, 40, |x, y| image::Rgb([(x * y) as u8, (7 * x) as u8, (x ^ y) as u8]));
        noise.save(dir.path().join("cat/cut.jpg")).unwrap();
        let jpeg = fs::read(dir.path().join("cat/cut.jpg")).unwrap();
        assert_eq!(load(&spec(dir.path()), &LoadOptions::default()).unwrap().train.len(), 1);
        for len in [3, jpeg.len() / 2, jpeg.len() - 2, jpeg.len() - 1] {
            put(dir.path().join("cat/cut.jpg"), &jpeg[..len]);
            assert!(message(dir.path()).contains("cut.jpg: not a readable picture: truncated"), "{len} bytes");
        }
        fs::remove_file(dir.path().join("cat/cut.jpg")).unwrap();
        let whole = ppm(8, 8, [1, 2, 3]);
        for bytes in [&whole[..100], b"P6\n99999 1\n255\n", b"P6 0 0 255\n", b"", b"GIF89a......"] {
            put(dir.path().join("cat/bad.ppm"), bytes);
            let text = message(dir.path());
            assert!(text.contains("bad.ppm: not a readable picture"), "{text}");
        }
    }
}
