//! CIFAR-10 and CIFAR-100 in their official binary formats.
//!
//! A record is the label bytes (one; two for CIFAR-100: coarse, then fine, the one used) and a 32x32 picture as three
//! planes, red, green, blue. A batch file is a whole number of records.

use std::fs;
use std::path::{Path, PathBuf};
use std::prelude::v1::*;

use super::{DataError, Part, Pictures, checked_bytes};

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;

/// What tells the two formats apart.
pub(super) struct Format {
    /// The folder inside the official archive.
    folder: &'static str,
    train: &'static [&'static str],
    test: &'static [&'static str],
    /// The file of class names, one a line.
    names: &'static str,
    classes: usize,
    /// Label bytes before the pixels; the last one counts.
    label_bytes: usize,
}

/// CIFAR-10: records of 3073 bytes.
pub(super) const CIFAR10: Format = Format {
    folder: "cifar-10-batches-bin",
    train: &["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"],
    test: &["test_batch.bin"],
    names: "batches.meta.txt",
    classes: 10,
    label_bytes: 1,
};

/// CIFAR-100, fine labels: records of 3074 bytes.
pub(super) const CIFAR100: Format = Format {
    folder: "cifar-100-binary",
    train: &["train.bin"],
    test: &["test.bin"],
    names: "fine_label_names.txt",
    classes: 100,
    label_bytes: 2,
};

/// Reads one part. It is empty where none of its files is there but those of the other part are.
pub(super) fn read(dir: &Path, format: &Format, part: Part) -> Result<Pictures, DataError> {
    if !dir.is_dir() {
        return Err(DataError::Missing { path: dir.to_path_buf(), what: "a folder of CIFAR binary files" });
    }
    let inner = dir.join(format.folder);
    let dir = if inner.is_dir() { inner } else { dir.to_path_buf() };
    let (own, other) = match part {
        Part::Train => (format.train, format.test),
        Part::Test => (format.test, format.train),
    };
    let present = |names: &[&str]| names.iter().any(|name| dir.join(name).exists());
    let mut pictures = Pictures {
        h: SIDE,
        w: SIDE,
        classes: class_names(&dir.join(format.names), format.classes)?,
        ..Default::default()
    };
    if !present(own) && present(other) {
        return Ok(pictures);
    }
    let mut files: Vec<(PathBuf, usize)> = Vec::new();
    for name in own {
        let path = dir.join(name);
        if !path.is_file() {
            return Err(DataError::Missing { path, what: "a CIFAR batch file" });
        }
        let bytes = fs::metadata(&path).map_err(|error| DataError::Io { path: path.clone(), error })?.len();
        files.push((path, (bytes / (format.label_bytes + 3 * PLANE) as u64) as usize));
    }
    // Refused here, before anything of that size is read.
    checked_bytes(&dir, files.iter().map(|(_, records)| records).sum(), SIDE, SIDE)?;
    for (path, _) in files {
        let bytes = fs::read(&path).map_err(|error| DataError::Io { path: path.clone(), error })?;
        parse(&path, &bytes, format, &mut pictures)?;
    }
    Ok(pictures)
}

/// Appends the records of one batch file to `pictures`. `path` is for the messages.
fn parse(path: &Path, bytes: &[u8], format: &Format, pictures: &mut Pictures) -> Result<(), DataError> {
    let path = || path.to_path_buf();
    let size = format.label_bytes + 3 * PLANE;
    let (records, remainder) = (bytes.len() / size, bytes.len() % size);
    if remainder != 0 {
        return Err(DataError::RecordLength {
            path: path(),
            record_bytes: size as u64,
            record: records as u64,
            remainder: remainder as u64,
        });
    }
    if records == 0 {
        return Err(DataError::Empty { path: path() });
    }
    pictures.labels.reserve(records);
    pictures.pixels.reserve(records * 3 * PLANE);
    for (i, record) in bytes.chunks_exact(size).enumerate() {
        let (labels, planes) = record.split_at(format.label_bytes);
        let label = labels[format.label_bytes - 1];
        if usize::from(label) >= format.classes {
            let (record, label, classes) = (i as u64, i128::from(label), format.classes as u64);
            return Err(DataError::Label { path: path(), record, label, classes });
        }
        pictures.labels.push(u32::from(label));
        let (red, rest) = planes.split_at(PLANE);
        let (green, blue) = rest.split_at(PLANE);
        pictures.pixels.extend(red.iter().zip(green).zip(blue).flat_map(|((&r, &g), &b)| [r, g, b]));
    }
    Ok(())
}

/// The non-empty lines of the file of names, or numbers where there is no such file.
fn class_names(path: &Path, classes: usize) -> Result<Vec<String>, DataError> {
    if !path.is_file() {
        return Ok((0..classes).map(|c| c.to_string()).collect());
    }
    let text = fs::read_to_string(path).map_err(|error| DataError::Io { path: path.to_path_buf(), error })?;
    let names: Vec<String> = text.lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from).collect();
    if names.len() != classes {
        return Err(DataError::Names { path: path.to_path_buf(), found: names.len(), classes });
    }
    Ok(names)
}

#[cfg(all(test, feature = "data"))]
mod tests {
    use super::*;
    use crate::data::{LoadOptions, Spec, load, load_part};
    use crate::net::tests::cases;
    use proptest::prelude::*;

    fn record(labels: &[u8], rgb: [u8; 3]) -> Vec<u8> {
        let planes = rgb.iter().flat_map(|&v| vec![v; PLANE]);
        labels.iter().copied().chain(planes).collect()
    }

    fn batch() -> Vec<u8> {
        [record(&[3], [1, 2, 3]), record(&[9], [4, 5, 6])].concat()
    }

    fn cifar10() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("cifar-10-batches-bin");
        fs::create_dir(&inner).unwrap();
        for name in CIFAR10.train.iter().chain(CIFAR10.test) {
            fs::write(inner.join(name), batch()).unwrap();
        }
        dir
    }

    fn spec(kind: &str, dir: &Path) -> Spec {
        format!("{kind}:{}", dir.display()).parse().unwrap()
    }

    fn message(dir: &Path) -> String {
        load(&spec("cifar10", dir), &LoadOptions::default()).unwrap_err().to_string()
    }

    #[test]
    fn reads_cifar10() {
        let dir = cifar10();
        let set = load(&spec("cifar10", dir.path()), &LoadOptions::default()).unwrap();
        assert_eq!((set.train.len(), set.test.len()), (10, 2));
        assert_eq!(set.test.labels, [3, 9]);
        assert_eq!(set.test.picture(1)[..6], [4, 5, 6, 4, 5, 6]);
        assert_eq!(set.train.classes[9], "9");
        let inner = dir.path().join(CIFAR10.folder);
        fs::write(inner.join(CIFAR10.names), "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n").unwrap();
        let options = LoadOptions { size: Some((16, 8)), seed: 0 };
        let test = load_part(&spec("cifar10", &inner), &options, Part::Test).unwrap();
        assert_eq!((test.h, test.w, test.classes[9].as_str()), (16, 8, "j"));
        assert_eq!(test.picture(0)[..3], [1, 2, 3]);
    }

    #[test]
    fn reads_cifar100_with_one_part() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("test.bin"), record(&[19, 99], [7, 8, 9])).unwrap();
        let set = load(&spec("cifar100", dir.path()), &LoadOptions::default()).unwrap();
        assert_eq!((set.train.len(), &set.test.labels[..], set.test.classes.len()), (0, &[99][..], 100));
        assert_eq!(load_part(&spec("cifar100", dir.path()), &LoadOptions::default(), Part::Train).unwrap(), set.test);
        let only = Spec { part: Some(Part::Train), ..spec("cifar100", dir.path()) };
        let error = load(&only, &LoadOptions::default()).unwrap_err().to_string();
        assert!(error.contains("no train part"), "{error}");
    }

    #[test]
    fn bad_files_are_named() {
        assert!(message(Path::new("no/such/folder")).contains("no/such/folder: not found"));
        let dir = cifar10();
        let batch3 = dir.path().join(CIFAR10.folder).join("data_batch_3.bin");
        let path = batch3.display().to_string();
        fs::write(&batch3, &batch()[..3073 + 40]).unwrap();
        let text = message(dir.path());
        assert!(text.starts_with(&path) && text.contains("record 1 has 40 bytes") && text.contains("3073"), "{text}");
        fs::write(&batch3, [batch(), record(&[10], [0; 3])].concat()).unwrap();
        let text = message(dir.path());
        assert!(text.starts_with(&path) && text.contains("record 2: label 10 is not in 0..10"), "{text}");
        fs::write(&batch3, []).unwrap();
        assert!(message(dir.path()).contains("no pictures"));
        fs::remove_file(&batch3).unwrap();
        assert!(message(dir.path()).contains("data_batch_3.bin: not found"));
        fs::write(&batch3, batch()).unwrap();
        fs::write(dir.path().join(CIFAR10.folder).join(CIFAR10.names), "cat\ndog\n").unwrap();
        assert!(message(dir.path()).contains("2 class names for 10 classes"));
        let empty = tempfile::tempdir().unwrap();
        assert!(message(empty.path()).contains("data_batch_1.bin: not found"));
    }

    proptest! {
        #![proptest_config(cases(300))]
        #[test]
        fn mutated_bytes_never_panic(
            // Two records, one, or part of one; labels are hit as often as pixels.
            cut in prop_oneof![8 => Just(6146usize), 4 => Just(3073), 1 => 0usize..6147],
            edits in prop::collection::vec((prop_oneof![Just(0usize), Just(3073), 0usize..6146], 0u8..14), 0..4),
        ) {
            let mut bytes = batch();
            for (at, value) in edits {
                bytes[at] = value;
            }
            bytes.truncate(cut);
            let mut pictures = Pictures { h: SIDE, w: SIDE, ..Default::default() };
            if parse(Path::new("x"), &bytes, &CIFAR10, &mut pictures).is_ok() {
                prop_assert_eq!(pictures.pixels.len(), pictures.len() * 3 * PLANE);
                prop_assert!(pictures.labels.iter().all(|&l| l < 10));
                prop_assert_eq!(pictures.len(), cut / 3073);
            }
        }
    }
}
