//! Archives made by hand, good, bad and mutated.

use super::*;
use crate::data::{LoadOptions, Spec, load, load_part};
use crate::net::tests::cases;
use proptest::prelude::*;

/// A `.npy` member with any header.
fn npy(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
    let len = (header.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\x00", &len[..], header.as_bytes(), data].concat()
}

fn archive(members: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut writer = NpzWriter::new(io::Cursor::new(Vec::new()));
    for (name, bytes) in members {
        let options = default_options(NpzWriter::<io::Cursor<Vec<u8>>>::array::<u8>);
        writer.zip_writer().start_file(format!("{name}.npy"), options).unwrap();
        writer.zip_writer().write_all(bytes).unwrap();
    }
    writer.zip_writer().finish().unwrap().into_inner()
}

fn x(n: usize) -> Vec<u8> {
    let data: Vec<u8> = (0..n * 12).map(|k| k as u8).collect();
    npy("'|u1'", "False", &format!("({n}, 2, 2, 3)"), &data)
}

fn y(labels: &[u8]) -> Vec<u8> {
    npy("'|u1'", "False", &format!("({},)", labels.len()), labels)
}

fn parse(bytes: &[u8], part: Part) -> Result<Pictures, DataError> {
    read_from(Path::new("some.npz"), io::Cursor::new(bytes), part)
}

/// Both directions through files: names, labels and pixels survive.
#[test]
fn written_archives_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let set = load(&"signs:20".parse().unwrap(), &LoadOptions { size: Some((4, 5)), seed: 0 }).unwrap();
    let path = dir.path().join("holdout.npz");
    write_npz(&path, &set.train).unwrap();
    let first = fs::read(&path).unwrap();
    write_npz(&path, &set.train).unwrap();
    assert_eq!(fs::read(&path).unwrap(), first);
    let spec: Spec = format!("npz:{}", path.display()).parse().unwrap();
    let back = load(&spec, &LoadOptions::default()).unwrap();
    assert_eq!((&back.train, back.test.len()), (&set.train, 0));
    assert_eq!(load_part(&spec, &LoadOptions::default(), Part::Test).unwrap(), set.train);
    write_npz_split(&path, &set.train, &set.test).unwrap();
    assert_eq!(load(&spec, &LoadOptions::default()).unwrap(), set);
    write_npz_split(&path, &Pictures::default(), &set.test).unwrap();
    let back = load(&spec, &LoadOptions::default()).unwrap();
    assert_eq!((back.train.len(), &back.test), (0, &set.test));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let small = load(&spec, &LoadOptions { size: Some((2, 2)), seed: 0 }).unwrap();
    assert_eq!((small.test.h, small.test.pixels.len()), (2, set.test.len() * 12));
}

#[test]
fn writing_refuses_what_it_cannot_keep() {
    let path = Path::new("no/such/folder/a.npz");
    assert!(write_npz(path, &Pictures::default()).unwrap_err().to_string().contains("no pictures"));
    let set = load(&"signs:10".parse().unwrap(), &LoadOptions::default()).unwrap();
    assert!(write_npz(path, &set.train).unwrap_err().to_string().starts_with("no/such/folder/a.npz: "));
    let other = Pictures { classes: vec!["a".into()], ..set.test };
    assert!(matches!(write_npz_split(path, &set.train, &other), Err(DataError::Mismatch(_))));
}

#[test]
fn every_integer_type_is_a_label() {
    for (descr, data) in [
        ("'|i1'", vec![1, 3]),
        ("'<u2'", vec![1, 0, 3, 0]),
        ("'>i4'", vec![0, 0, 0, 1, 0, 0, 0, 3]),
        ("'<i8'", vec![1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]),
        ("\"<u8\"", vec![1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]),
    ] {
        let bytes = archive(&[("x", x(2)), ("y", npy(descr, "False", "(2,)", &data))]);
        let pictures = parse(&bytes, Part::Train).unwrap();
        assert_eq!((&pictures.labels[..], pictures.classes.len()), (&[1, 3][..], 4));
        assert_eq!(pictures.picture(1)[..3], [12, 13, 14]);
        assert!(parse(&bytes, Part::Test).unwrap().is_empty());
    }
}

#[test]
fn classes_count_over_both_parts() {
    let bytes = archive(&[("x_train", x(2)), ("y_train", y(&[0, 1])), ("x_test", x(1)), ("y_test", y(&[4]))]);
    assert_eq!(parse(&bytes, Part::Train).unwrap().classes.len(), 5);
    assert_eq!(parse(&bytes, Part::Test).unwrap().labels, [4]);
}

#[test]
fn floats_are_rounded_to_bytes() {
    let mut values = [0.0f32; 12];
    values[..4].copy_from_slice(&[1.0, 0.5, 0.001, 0.003]);
    let floats = |values: &[f32], descr: &str| -> Vec<u8> {
        let data: Vec<u8> =
            values.iter().flat_map(|v| if descr == "'<f4'" { v.to_le_bytes() } else { v.to_be_bytes() }).collect();
        archive(&[("x", npy(descr, "False", "(1, 2, 2, 3)", &data)), ("y", y(&[0]))])
    };
    for descr in ["'<f4'", "'>f4'"] {
        assert_eq!(parse(&floats(&values, descr), Part::Train).unwrap().pixels[..4], [255, 128, 0, 1]);
    }
    for bad in [f32::NAN, f32::INFINITY, 1.01, -0.1, 255.0] {
        values[7] = bad;
        let text = parse(&floats(&values, "'<f4'"), Part::Train).unwrap_err().to_string();
        assert!(text.contains("some.npz: array `x`: element 7 is"), "{text}");
    }
}

#[test]
fn bad_arrays_are_named() {
    let message = |members: &[(&str, Vec<u8>)]| parse(&archive(members), Part::Train).unwrap_err().to_string();
    let with_x = |x: Vec<u8>| message(&[("x", x), ("y", y(&[0]))]);
    let with_y = |y: Vec<u8>| message(&[("x", x(1)), ("y", y)]);
    let pixels = [0; 12];
    for (text, expect) in [
        (
            message(&[("data", x(1))]),
            "array `y`: missing; expected x_train, y_train, x_test, y_test or x, y; found data",
        ),
        (message(&[("y", y(&[0]))]), "array `x`: missing"),
        (message(&[("x_train", x(1)), ("x_test", x(1)), ("y_test", y(&[0]))]), "array `y_train`: missing"),
        (message(&[]), "found no array"),
        (message(&[("x", x(1)), ("y", y(&[0])), ("x_test", x(1)), ("y_test", y(&[0]))]), "array `x`: beside arrays of"),
        (with_x(x(2)), "array `x`: 2 pictures for 1 labels"),
        (with_x(npy("'<i4'", "False", "(1, 2, 2, 3)", &[0; 48])), "type `i4` where uint8"),
        (with_x(npy("'|u1'", "False", "(1, 12)", &pixels)), "rank 2 where rank 4"),
        (with_x(npy("'|u1'", "False", "(1, 3, 2, 2)", &pixels)), "2 channels last"),
        (with_x(npy("'|u1'", "True", "(1, 2, 2, 3)", &pixels)), "Fortran order"),
        (with_x(npy("'|u1'", "False", "(1, 0, 2, 3)", &[])), "outside 1..=4096"),
        (with_x(npy("'|u1'", "False", "(1, 2, 2, 3)", &pixels[1..])), "truncated: 11 bytes where 12"),
        (with_x(npy("'|u1'", "False", "(1, 2, 2, 3)", &[0; 13])), "longer than its header"),
        (with_x(npy("'|u1'", "False", "(4294967295, 4294967295, 4294967295, 3)", &pixels)), "8 GiB"),
        (with_x(npy("'|u1'", "False", "(3000000000, 1, 1, 3)", &pixels)), "8 GiB"),
        (with_x(b"not an array".to_vec()), "not a NumPy array"),
        (with_x(b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec()), "a header of 4294967295 bytes"),
        (with_x(b"\x93NUMPY\x09\x00\x00\x00".to_vec()), "format version 9"),
        (with_x(npy("[('a', '|u1')]", "False", "(1, 2, 2, 3)", &pixels)), "header does not parse"),
        (with_y(npy("'|O'", "False", "(1,)", &[0; 9])), "type `object` where integers"),
        (with_y(npy("'<f4'", "False", "(1,)", &[0; 4])), "type `f4` where integers"),
        (with_y(npy("'|u1'", "False", "(1, 1)", &[0])), "rank 2 where rank 1"),
        (with_y(npy("'|i1'", "False", "(1,)", &[0xFE])), "some.npz: record 0: label -2 is not in 0..65536"),
        (with_y(npy("'<u8'", "False", "(1,)", &[0xFF; 8])), "label 18446744073709551615"),
        (
            message(&[("x", x(1)), ("y", y(&[1])), ("classes", npy("'<U1'", "False", "(1,)", b"a\0\0\0"))]),
            "label 1 is not in 0..1",
        ),
        (
            message(&[("x", x(1)), ("y", y(&[0])), ("classes", npy("'<U1'", "False", "(1,)", &[0xFF; 4]))]),
            "not valid Unicode",
        ),
    ] {
        assert!(text.contains(expect), "{text}");
    }
    let missing = load(&"npz:none.npz".parse().unwrap(), &LoadOptions::default()).unwrap_err().to_string();
    assert!(missing.contains("none.npz: not found"), "{missing}");
    let whole = archive(&[("x", x(1)), ("y", y(&[0]))]);
    for cut in [0, 10, whole.len() / 2, whole.len() - 1] {
        assert!(parse(&whole[..cut], Part::Train).unwrap_err().to_string().starts_with("some.npz: "));
    }
}

#[test]
fn a_damaged_pixel_fails_the_checksum() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.npz");
    let set = load(&"signs:10".parse().unwrap(), &LoadOptions::default()).unwrap();
    write_npz(&path, &set.train).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    assert!(parse(&bytes, Part::Train).is_err());
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn mutated_archives_never_panic(
        cut in 0usize..1200,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
    ) {
        let mut bytes = archive(&[("x", x(2)), ("y", y(&[0, 1]))]);
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.max(bytes.len().saturating_sub(64)));
        let _ = parse(&bytes, Part::Train);
    }

    /// Mutations inside the members, with the archive around them sound.
    #[test]
    fn mutated_members_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        labels in any::<bool>(),
        cut in 0usize..128,
    ) {
        let (mut x, mut y) = (x(2), y(&[0, 1]));
        let member = if labels { &mut y } else { &mut x };
        for (at, value) in edits {
            let at = at.index(member.len());
            member[at] = value;
        }
        member.truncate(member.len() - cut.saturating_sub(64).min(member.len()));
        if let Ok(pictures) = parse(&archive(&[("x", x), ("y", y)]), Part::Train) {
            prop_assert_eq!(pictures.pixels.len(), pictures.len() * pictures.h * pictures.w * 3);
            prop_assert!(pictures.labels.iter().all(|&l| (l as usize) < pictures.classes.len()));
        }
    }

    #[test]
    fn any_header_text_never_panics(text in "\\{('(descr|fortran_order|shape)': ?('[<>|=][a-zA-Z][0-9]{0,3}'|True|False|\\([0-9, ]{0,30}\\)|é), ?){0,4}\\}") {
        if let Some(header) = Header::parse(&text) {
            prop_assert!(header.size >= 1);
            let _ = (header.bytes(), header.descr());
        }
    }
}
