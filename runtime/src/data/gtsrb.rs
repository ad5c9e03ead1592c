//! The German traffic sign benchmark in its official layout.
//!
//! Training pictures lie in `Final_Training/Images/000xx`, the folder's number being the class. Test pictures lie in
//! `Final_Test/Images`; their classes come from `GT-final_test.csv`, `;` between columns, of which `Filename` and
//! `ClassId` are used. Pictures are used whole: the region-of-interest columns are ignored, as the borders they leave
//! out are about ten percent a side.

use std::fs;
use std::path::{Path, PathBuf};
use std::prelude::v1::*;

use super::folder::{Found, decode_all, folders, pictures_in};
use super::{DataError, MAX_CLASSES, Part, Pictures};

const TRAIN: &str = "Final_Training/Images";
const TEST: &str = "Final_Test/Images";
const TABLE: &str = "GT-final_test.csv";

/// Reads one part, every picture resized to `size` (height, width). It is empty where its folder is absent.
pub(super) fn read(dir: &Path, part: Part, size: (usize, usize)) -> Result<Pictures, DataError> {
    let inner = dir.join("GTSRB");
    let root = if inner.is_dir() { inner } else { dir.to_path_buf() };
    let (train, test) = (root.join(TRAIN), root.join(TEST));
    if !train.is_dir() && !test.is_dir() {
        return Err(DataError::Missing { path: train, what: "the folder of training classes" });
    }
    let classes = if train.is_dir() { class_folders(&train)? } else { Vec::new() };
    let rows = if test.is_dir() && (part == Part::Test || classes.is_empty()) { table(&root)? } else { Vec::new() };
    let count = match classes.iter().map(|(class, _)| class + 1).max() {
        Some(count) => count,
        None => rows.iter().map(|row| row.label + 1).max().unwrap_or(0),
    };
    let mut found = Vec::new();
    if part == Part::Train {
        for (label, folder) in &classes {
            for (file, path) in pictures_in(folder)? {
                found.push(Found { path, name: format!("{label:05}/{file}"), label: *label });
            }
        }
        if found.is_empty() && train.is_dir() {
            return Err(DataError::Empty { path: train });
        }
    } else {
        for (i, row) in rows.into_iter().enumerate() {
            if row.label >= count {
                let (label, classes) = (i128::from(row.label), u64::from(count));
                return Err(DataError::Label { path: test.join(row.file), record: i as u64, label, classes });
            }
            found.push(Found { path: test.join(&row.file), name: row.file, label: row.label });
        }
    }
    decode_all(&root, &found, size, (0..count).map(|c| c.to_string()).collect())
}

/// The class folders with their numbers, in order.
fn class_folders(train: &Path) -> Result<Vec<(u32, PathBuf)>, DataError> {
    let mut classes = Vec::new();
    for (name, path) in folders(train, "the folder of training classes")? {
        match name.parse::<u32>() {
            Ok(class) if (class as usize) < MAX_CLASSES => classes.push((class, path)),
            _ => return Err(DataError::Missing { path, what: "a folder named by its class number" }),
        }
    }
    classes.sort();
    if classes.is_empty() {
        return Err(DataError::Empty { path: train.to_path_buf() });
    }
    Ok(classes)
}

/// One row of the table of test labels.
struct Row {
    file: String,
    label: u32,
}

/// Reads the table from any of the three places it is found in.
fn table(root: &Path) -> Result<Vec<Row>, DataError> {
    let places = ["Final_Test", TEST, ""].map(|folder| root.join(folder).join(TABLE));
    let Some(path) = places.iter().find(|path| path.is_file()) else {
        return Err(DataError::Missing { path: places[0].clone(), what: "the table of test labels" });
    };
    let text = fs::read_to_string(path).map_err(|error| DataError::Io { path: path.clone(), error })?;
    parse_table(path, &text)
}

fn parse_table(path: &Path, text: &str) -> Result<Vec<Row>, DataError> {
    let bad = |line: usize, why: String| DataError::Table { path: path.to_path_buf(), line, why };
    let mut lines = text.lines().map(|line| line.trim_start_matches('\u{feff}').trim()).enumerate();
    let header: Vec<&str> = lines.next().map_or(Vec::new(), |(_, line)| line.split(';').collect());
    let column = |name: &str| {
        let place = header.iter().position(|h| h.trim().eq_ignore_ascii_case(name));
        place.ok_or_else(|| bad(1, format!("no column `{name}` (columns are separated by `;`)")))
    };
    let (file, class) = (column("Filename")?, column("ClassId")?);
    let mut rows = Vec::new();
    for (i, line) in lines.filter(|(_, line)| !line.is_empty()) {
        let cells: Vec<&str> = line.split(';').map(str::trim).collect();
        let (Some(&name), Some(&label)) = (cells.get(file), cells.get(class)) else {
            return Err(bad(i + 1, format!("{} columns where the header has {}", cells.len(), header.len())));
        };
        if name.is_empty() || name.contains(['/', '\\']) {
            return Err(bad(i + 1, format!("`{name}` is not a plain file name")));
        }
        let number = label.parse::<u32>().ok().filter(|&l| (l as usize) < MAX_CLASSES);
        let label = number.ok_or_else(|| bad(i + 1, format!("`{label}` is not a class number")))?;
        rows.push(Row { file: name.to_string(), label });
    }
    if rows.is_empty() {
        return Err(DataError::Empty { path: path.to_path_buf() });
    }
    Ok(rows)
}

#[cfg(all(test, feature = "data"))]
mod tests {
    use super::super::folder::tests::{ppm, put};
    use super::*;
    use crate::data::{LoadOptions, Spec, load, load_part};

    const CSV: &str = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n00000.ppm;5;5;1;1;4;4;2\n\
                       00001.ppm;5;5;1;1;4;4;0\n";

    fn layout(csv: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (class, n) in [(0, 1), (2, 2)] {
            for i in 0..n {
                put(dir.path().join(format!("{TRAIN}/{class:05}/{i:05}.ppm")), &ppm(5, 7, [class as u8, i, 9]));
            }
            put(dir.path().join(format!("{TRAIN}/{class:05}/GT-{class:05}.csv")), b"Filename;ClassId\n");
        }
        for i in 0..2 {
            put(dir.path().join(format!("{TEST}/{i:05}.ppm")), &ppm(4, 4, [7, 7, i]));
        }
        put(dir.path().join("Final_Test").join(TABLE), csv.as_bytes());
        dir
    }

    fn spec(dir: &Path) -> Spec {
        format!("gtsrb:{}", dir.display()).parse().unwrap()
    }

    fn message(dir: &Path) -> String {
        load(&spec(dir), &LoadOptions::default()).unwrap_err().to_string()
    }

    #[test]
    fn reads_the_official_layout() {
        let dir = layout(CSV);
        let set = load(&spec(dir.path()), &LoadOptions { size: Some((6, 6)), seed: 0 }).unwrap();
        assert_eq!((&set.train.labels[..], &set.test.labels[..]), (&[0, 2, 2][..], &[2, 0][..]));
        assert_eq!(set.train.classes, ["0", "1", "2"]);
        assert_eq!(set.train.classes, set.test.classes);
        assert_eq!(set.train.files[2], "00002/00001.ppm");
        assert_eq!((set.train.picture(2)[..3].to_vec(), set.test.picture(1)[2]), (vec![2, 1, 9], 1));
        fs::remove_dir_all(dir.path().join("Final_Training")).unwrap();
        let test = load_part(&spec(dir.path()), &LoadOptions::default(), Part::Train).unwrap();
        assert_eq!((test.labels, test.classes.len(), test.h), (vec![2, 0], 3, 32));
    }

    #[test]
    fn bad_layouts_are_named() {
        assert!(message(Path::new("nowhere")).contains("Final_Training"));
        for (csv, expect) in [
            ("", "no column `Filename`"),
            ("Filename,ClassId\n", "no column `Filename`"),
            ("Filename;Class\n", "no column `ClassId`"),
            ("Filename;ClassId\n", "no pictures"),
            ("Filename;ClassId\n00000.ppm\n", "line 2: 1 columns"),
            ("Filename;ClassId\n00000.ppm;0\n\n../x.ppm;0\n", "line 4: `../x.ppm` is not a plain file name"),
            ("Filename;ClassId\n00000.ppm;-1\n", "line 2: `-1` is not a class number"),
            ("Filename;ClassId\n00001.ppm;0\n00000.ppm;3\n", "record 1: label 3 is not in 0..3"),
            ("Filename;ClassId\n9.ppm;0\n", "9.ppm"),
        ] {
            let text = message(layout(csv).path());
            assert!(text.contains(expect), "{text}");
        }
        let dir = layout(CSV);
        fs::remove_file(dir.path().join("Final_Test").join(TABLE)).unwrap();
        assert!(message(dir.path()).contains("table of test labels"));
        let dir = layout(CSV);
        fs::create_dir(dir.path().join(TRAIN).join("stop")).unwrap();
        assert!(message(dir.path()).contains("stop: not a folder named by its class number"));
        let dir = layout(CSV);
        put(dir.path().join(TEST).join("00001.ppm"), b"P6\n4 4\n255\nshort");
        assert!(message(dir.path()).contains("00001.ppm: not a readable picture"));
    }
}
