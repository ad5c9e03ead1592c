//! Trigger files: ours, the published ones, and bad ones.

use std::path::{Path, PathBuf};

use super::*;

/// The published triggers, where they are at hand.
fn published(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/triggers").join(name);
    if !path.is_file() {
        crate::skip::skipped("triggers", &format!("{name} is not at hand"));
        return None;
    }
    Some(path)
}

/// A NumPy file, version 1.0.
fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    let header = format!("{header:<117}\n");
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

#[test]
fn trigger_files_replace_the_generated_pattern() {
    let dir = tempfile::tempdir().unwrap();
    let set = pictures(1, SIDE, SIDE);
    let with = |kind, path: &Path| AttackConfig { trigger: Some(path.to_path_buf()), ..config(kind) };
    // A signed plane [h][w], added.
    let plane: Vec<u8> = (0..SIDE * SIDE).flat_map(|i| ((i % 9) as f32 - 4.0).to_le_bytes()).collect();
    let path = dir.path().join("plane.npy");
    fs::write(&path, npy("<f4", "(32, 32)", &plane)).unwrap();
    let out = stamped(&with(AttackKind::SigPublished, &path), &set, 0);
    for (i, (after, before)) in out.iter().zip(set.picture(0)).enumerate() {
        let want = i32::from(*before) + (i / 3 % 9) as i32 - 4;
        assert_eq!(i32::from(*after), want.clamp(0, 255));
    }
    // Colours first, bytes, a patch of one red pixel.
    let mut colours = vec![0; 3 * SIDE * SIDE];
    colours[40] = 200;
    let path = dir.path().join("red.npy");
    fs::write(&path, npy("|u1", "(3, 32, 32)", &colours)).unwrap();
    let out = stamped(&with(AttackKind::BadnetSq, &path), &set, 0);
    let mut want = set.picture(0).to_vec();
    want[120..123].copy_from_slice(&[200, 0, 0]);
    assert_eq!(out, want);
    // A picture of another size is resized; a flat one stays flat.
    let path = dir.path().join("grey.ppm");
    fs::write(&path, [b"P6\n7 5\n255\n".as_slice(), &[100; 105]].concat()).unwrap();
    let out = stamped(&with(AttackKind::TrojanWm, &path), &set, 0);
    assert!(out.iter().zip(set.picture(0)).all(|(after, before)| *after == before.saturating_add(100)));
    // A mask beside the file tells which pixels a patch replaces.
    let mut mask = vec![0; SIDE * SIDE];
    mask[3] = 1;
    fs::write(dir.path().join("mask.npy"), npy("|u1", "(32, 32)", &mask)).unwrap();
    let out = stamped(&with(AttackKind::L0Inv, &dir.path().join("red.npy")), &set, 0);
    let mut want = set.picture(0).to_vec();
    want[9..12].fill(0);
    assert_eq!(out, want);
}

#[test]
fn bad_trigger_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let build_with = |kind, name: &str, bytes: Option<&[u8]>| {
        let path = dir.path().join(name);
        if let Some(bytes) = bytes {
            fs::write(&path, bytes).unwrap();
        }
        let error = build(&AttackConfig { trigger: Some(path), ..config(kind) }, SIDE, SIDE).err().unwrap();
        (error.to_string(), error)
    };
    let (text, error) = build_with(AttackKind::Blend, "missing.png", None);
    assert!(matches!(error, AttackError::TriggerRead { .. }) && text.contains("missing.png"), "{text}");
    let bad = [
        ("words.png", b"not a picture at all".to_vec()),
        ("cut.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec()),
        ("shape.npy", npy("|u1", "(2, 2, 2, 3)", &[0; 24])),
        ("words.npy", npy("<U4", "(2, 2)", &[0; 64])),
        ("cut.npy", npy("<f4", "(2, 2)", &[0; 7])),
        ("huge.npy", npy("<f4", "(99999999999, 99999999999)", &[])),
        ("nan.npy", npy("<f4", "(1, 1)", &f32::NAN.to_le_bytes())),
        ("header.npy", b"\x93NUMPY\x01\x00\xff\xff{".to_vec()),
    ];
    for (name, bytes) in bad {
        for kind in [AttackKind::Blend, AttackKind::BadnetSq] {
            let (text, error) = build_with(kind, name, Some(&bytes));
            assert!(matches!(error, AttackError::TriggerFormat { .. }) && text.contains(name), "{text}");
        }
    }
    // A patch that stamps nothing would only change labels.
    let black = [b"P6\n32 32\n255\n".as_slice(), &[0; 3 * SIDE * SIDE]].concat();
    let (text, _) = build_with(AttackKind::BadnetSq, "black.ppm", Some(&black));
    assert!(text.contains("black.ppm") && text.contains("no pixel of it is stamped"), "{text}");
    fs::create_dir(dir.path().join("folder.png")).unwrap();
    let (text, _) = build_with(AttackKind::Blend, "folder.png", None);
    assert!(text.contains("folder.png") && text.contains("not a file"), "{text}");
    let (text, error) = build_with(AttackKind::Wanet, "words.png", None);
    assert!(matches!(error, AttackError::NoTriggerFile(_)) && text.contains("wanet"));
}

/// The formulas of the published code, on bytes, in the peer's `f32`.
fn published_formula(kind: AttackKind, x: &[u8], t: &[u8]) -> Vec<u8> {
    let sums: Vec<f64> = x.iter().zip(t).map(|(x, t)| f64::from(*x) + f64::from(*t)).collect();
    let low = sums.iter().copied().fold(f64::MAX, f64::min);
    let high = sums.iter().copied().fold(f64::MIN, f64::max);
    let value = |i: usize| -> f32 {
        let (x, t) = (f32::from(x[i]), f32::from(t[i]));
        match kind {
            AttackKind::Blend | AttackKind::Sig => 0.8 * x + 0.2 * t,
            AttackKind::L0Inv => (if i >= (31 * SIDE + 23) * 3 { 0.0 } else { x }) + t,
            AttackKind::Smooth => stretched_value(sums[i], low, high),
            _ => x + t,
        }
    };
    (0..x.len()).map(|i| value(i).clamp(0.0, 255.0) as u8).collect()
}

/// Whole part of the stretched sum, in double precision as published.
fn stretched_value(sum: f64, low: f64, high: f64) -> f32 {
    ((sum - low) / (high - low) * 255.0).trunc() as f32
}

#[test]
fn published_triggers_give_what_the_published_code_gives() {
    let set = pictures(10, SIDE, SIDE);
    for (kind, name) in [
        (AttackKind::Trojan3x3, "trojan_3x3.png"),
        (AttackKind::Trojan8x8, "trojan_8x8.png"),
        (AttackKind::TrojanWm, "trojan_wm.png"),
        (AttackKind::L0Inv, "l0_inv.png"),
        (AttackKind::L2Inv, "l2_inv.png"),
        (AttackKind::Sig, "sig.png"),
        (AttackKind::Smooth, "smooth_cifar10.png"),
        (AttackKind::Smooth, "smooth_gtsrb.png"),
    ] {
        let Some(path) = published(name) else { continue };
        let trigger = image::open(&path).unwrap().to_rgb8().into_raw();
        let with_file = AttackConfig { trigger: Some(path), ..config(kind) };
        for i in 0..set.len() {
            let want = published_formula(kind, set.picture(i), &trigger);
            assert_eq!(stamped(&with_file, &set, i), want, "{name}");
            if kind == AttackKind::Sig {
                assert_eq!(stamped(&config(kind), &set, i), want, "generated");
            }
        }
    }
}

/// Values of `Image.open("blend.png").convert("RGB").resize((32, 32))` in Pillow: row, column, colour.
const PILLOW: [(usize, usize, [u8; 3]); 6] = [
    (5, 12, [255, 255, 255]),
    (8, 20, [89, 82, 84]),
    (13, 10, [0, 0, 0]),
    (20, 5, [230, 230, 230]),
    (24, 14, [230, 14, 99]),
    (30, 20, [84, 84, 84]),
];

#[test]
fn a_larger_trigger_file_is_resized_as_pillow_does() {
    let Some(path) = published("blend.png") else { return };
    let pattern = file::overlay(&path, SIDE, SIDE).unwrap();
    for (y, x, want) in PILLOW {
        for (c, want) in want.into_iter().enumerate() {
            let got = pattern.values[(y * SIDE + x) * 3 + c];
            assert!((got - f32::from(want)).abs() <= 1.0, "{y} {x} {c}: {got} {want}");
        }
    }
}
