use std::fs;
use std::path::Path;

use stemguard_runtime::data::Pictures;

use super::*;

mod files;

const SIDE: usize = 32;

/// Pictures of random bytes, labels 0..10 in turn.
fn pictures(count: usize, h: usize, w: usize) -> Pictures {
    let mut draw = Draw::new(77, Purpose::Sources);
    let pixels = (0..count * h * w * 3).map(|_| draw.byte()).collect();
    let labels = (0..count as u32).map(|i| i % 10).collect();
    let classes = (0..10).map(|class| class.to_string()).collect();
    Pictures { h, w, pixels, labels, classes, files: Vec::new() }
}

fn config(kind: AttackKind) -> AttackConfig {
    AttackConfig { kind, seed: 11, ..AttackConfig::default() }
}

fn stamped(config: &AttackConfig, set: &Pictures, index: usize) -> Vec<u8> {
    let attack = build(config, set.h, set.w).unwrap();
    let mut picture = set.picture(index).to_vec();
    attack.stamp(&mut picture, set.h, set.w, index as u64);
    picture
}

#[test]
fn the_clean_part_is_what_was_not_poisoned() {
    let set = pictures(200, SIDE, SIDE);
    let c = config(AttackKind::BadnetGrid);
    let attack = build(&c, SIDE, SIDE).unwrap();
    let (suspects, truth) = poison(set.clone(), &c, &*attack, None).unwrap();
    assert!(!truth.poisoned.is_empty());
    let (clean, nothing) = truth.clean_part(&suspects);
    assert_eq!((clean.len(), nothing.poisoned.len()), (200 - truth.poisoned.len(), 0));
    let left: Vec<usize> = (0..200).filter(|&i| !truth.is_poisoned(i as u32)).collect();
    assert_eq!(clean.pictures(), &set.subset(&left));
}

#[test]
fn names_go_both_ways() {
    for (place, info) in attacks().iter().enumerate() {
        assert_eq!(info.kind as usize, place);
        assert_eq!(info.name.parse::<AttackKind>().unwrap(), info.kind);
        assert_eq!(info.name.replace('-', "_").parse::<AttackKind>().unwrap(), info.kind);
        assert_eq!(info.kind.to_string(), info.name);
        let json = serde_json::to_string(&info.kind).unwrap();
        assert_eq!(json, format!("\"{}\"", info.name));
        assert_eq!(serde_json::from_str::<AttackKind>(&json).unwrap(), info.kind);
    }
    let error = "badnet".parse::<AttackKind>().unwrap_err().to_string();
    assert!(error.contains("'badnet'") && error.contains("badnet-grid"), "{error}");
    let parsed: AttackConfig = toml::from_str("kind = \"l2-inv\"\nrate = 0.05").unwrap();
    assert_eq!(parsed, AttackConfig { kind: AttackKind::L2Inv, rate: 0.05, ..AttackConfig::default() });
}

#[test]
fn patches_change_their_pixels_only() {
    let set = pictures(1, SIDE, SIDE);
    let grid = [[0, 0, 255], [0, 255, 0], [255, 0, 255]];
    let corner = |at: usize| if at < 3 { Some(at) } else { at.checked_sub(29) };
    let want = |kind, y: usize, x: usize| -> Option<u8> {
        match kind {
            AttackKind::BadnetSq => ((27..31).contains(&y) && (27..31).contains(&x)).then_some(255),
            AttackKind::BadnetGrid => (y >= 29 && x >= 29).then(|| grid[y - 29][x - 29]),
            AttackKind::Cl => Some(grid[corner(y)?][corner(x)?]),
            _ => None,
        }
    };
    for kind in [AttackKind::BadnetSq, AttackKind::BadnetGrid, AttackKind::Cl] {
        let out = stamped(&config(kind), &set, 0);
        for (i, (pixel, before)) in out.chunks_exact(3).zip(set.picture(0).chunks_exact(3)).enumerate() {
            match want(kind, i / SIDE, i % SIDE) {
                Some(value) => assert_eq!(pixel, [value; 3], "{kind} {i}"),
                None => assert_eq!(pixel, before, "{kind} {i}"),
            }
        }
    }
    for (kind, rows, cols) in [
        (AttackKind::L0Inv, 31..32, 23..32),
        (AttackKind::Trojan3x3, 25..28, 25..28),
        (AttackKind::Trojan8x8, 21..29, 21..29),
    ] {
        let out = stamped(&config(kind), &set, 0);
        let mut changed = 0;
        for (i, (pixel, before)) in out.chunks_exact(3).zip(set.picture(0).chunks_exact(3)).enumerate() {
            let inside = rows.contains(&(i / SIDE)) && cols.contains(&(i % SIDE));
            assert!(inside || pixel == before, "{kind} {i}");
            changed += usize::from(pixel != before);
            if inside && kind == AttackKind::L0Inv {
                assert!(pixel.iter().all(|v| *v == 0 || *v == 255));
            } else if inside {
                assert!(pixel.iter().zip(before).all(|(after, before)| after >= before));
            }
        }
        assert!(changed * 10 >= rows.len() * cols.len() * 8, "{kind} {changed}");
    }
}

#[test]
fn overlays_stay_within_their_bounds() {
    let set = pictures(20, SIDE, SIDE);
    for i in 0..set.len() {
        let before = set.picture(i);
        for (kind, down, up) in [
            (AttackKind::Blend, 52, 51),
            (AttackKind::Sig, 52, 51),
            (AttackKind::SigPublished, 41, 40),
            (AttackKind::L2Inv, 0, 110),
        ] {
            for (a, b) in stamped(&config(kind), &set, i).iter().zip(before) {
                let change = i32::from(*a) - i32::from(*b);
                assert!((-down..=up).contains(&change), "{kind} {change}");
            }
        }
        let stretched = stamped(&config(AttackKind::Smooth), &set, i);
        assert_eq!((stretched.iter().min(), stretched.iter().max()), (Some(&0), Some(&255)));
    }
}

#[test]
fn generated_patterns_are_as_strong_as_the_published() {
    for seed in 0..5 {
        let of =
            |kind| Pattern::generate(kind, &mut Draw::new(seed, Purpose::Trigger(kind as u8)), SIDE, SIDE).unwrap();
        let norm = |values: &[f32]| values.iter().map(|v| v * v).sum::<f32>().sqrt();
        let total = |values: &[f32]| values.iter().sum::<f32>() / 3.0;
        let noise = of(AttackKind::L2Inv).values;
        assert!((norm(&noise) - 821.4).abs() < 5.0, "{}", norm(&noise));
        let zeros = noise.iter().filter(|v| **v < 0.5).count() as f32 / noise.len() as f32;
        assert!((0.35..0.52).contains(&zeros), "{zeros}");
        assert!(noise.iter().fold(0.0, |a: f32, b| a.max(*b)) < 110.0);
        // The sums over a colour of the published patterns: 1172, 8082, 9793.
        let sums =
            [AttackKind::Trojan3x3, AttackKind::Trojan8x8, AttackKind::TrojanWm].map(|kind| total(&of(kind).values));
        for (sum, published) in sums.iter().zip([1172.0, 8082.0, 9793.0]) {
            assert!((0.6..1.5).contains(&(sum / published)), "{sums:?}");
        }
        let bump = of(AttackKind::Smooth).values;
        let peak = bump.iter().fold(0.0, |a: f32, b| a.max(*b));
        assert!((49.0..=51.0).contains(&peak), "{peak}");
        let steps = bump.chunks_exact(SIDE * 3).flat_map(|row| row.windows(4).map(|p| (p[3] - p[0]).abs()));
        assert!(steps.fold(0.0, f32::max) <= 4.0);
    }
}

#[test]
fn a_warp_keeps_flat_pictures_and_moves_ramps_by_less_than_two_pixels() {
    let warp = build(&config(AttackKind::Wanet), SIDE, SIDE).unwrap();
    let mut flat = vec![99; SIDE * SIDE * 3];
    warp.stamp(&mut flat, SIDE, SIDE, 0);
    assert!(flat.iter().all(|v| *v == 99));
    let ramp: Vec<u8> = (0..SIDE * SIDE).flat_map(|i| [(i % SIDE * 8) as u8, (i / SIDE * 8) as u8, 0]).collect();
    let mut warped = ramp.clone();
    warp.stamp(&mut warped, SIDE, SIDE, 0);
    let moved: Vec<u8> = ramp.iter().zip(&warped).map(|(a, b)| a.abs_diff(*b)).collect();
    assert!(moved.iter().all(|v| *v <= 12), "{:?}", moved.iter().max());
    // The mean displacement is about a quarter of a pixel, that is 2 grey levels, over two of three colours.
    let mean = moved.iter().map(|v| f64::from(*v)).sum::<f64>() / (SIDE * SIDE * 2) as f64;
    assert!((0.5..4.0).contains(&mean), "{mean}");
}

#[test]
fn a_seed_makes_the_trigger() {
    let set = pictures(1, SIDE, SIDE);
    for info in attacks() {
        let first = config(info.kind);
        assert_eq!(stamped(&first, &set, 0), stamped(&first, &set, 0), "{}", info.name);
        let same = stamped(&first, &set, 0) == stamped(&AttackConfig { seed: 12, ..first }, &set, 0);
        let drawn = !matches!(
            info.kind,
            AttackKind::None
                | AttackKind::BadnetSq
                | AttackKind::BadnetGrid
                | AttackKind::Sig
                | AttackKind::SigPublished
                | AttackKind::Cl
        );
        assert_eq!(same, !drawn, "{}", info.name);
    }
}

#[test]
fn other_sizes_are_scaled_or_refused() {
    for (h, w) in [(64, 64), (48, 40), (100, 224), (28, 28)] {
        let set = pictures(1, h, w);
        for info in attacks() {
            let changed = stamped(&config(info.kind), &set, 0) != set.picture(0);
            assert_eq!(changed, info.kind != AttackKind::None, "{} {h}x{w}", info.name);
        }
    }
    let set = pictures(1, 64, 64);
    let out = stamped(&config(AttackKind::BadnetSq), &set, 0);
    let white = out.chunks_exact(3).enumerate().filter(|(_, p)| **p == [255; 3]).map(|(i, _)| (i / 64, i % 64));
    assert!(white.clone().filter(|(y, x)| (54..62).contains(y) && (54..62).contains(x)).count() == 64);
    assert!(matches!(build(&config(AttackKind::Cl), 2, 9), Err(AttackError::TooSmall { h: 2, w: 9, .. })));
    assert!(matches!(build(&config(AttackKind::Wanet), 0, 9), Err(AttackError::BadSize { .. })));
    for side in 1..8 {
        for info in attacks() {
            let set = pictures(1, side, side);
            if let Ok(attack) = build(&config(info.kind), side, side) {
                attack.stamp(&mut set.picture(0).to_vec(), side, side, 0);
                attack.stamp(&mut [1, 2, 3], side, side, 0);
            }
        }
    }
}

#[test]
fn poisoning_is_counted_and_kept_from_the_suspect_set() {
    let train = pictures(500, SIDE, SIDE);
    let config = AttackConfig { target: 3, rate: 0.29, ..config(AttackKind::BadnetGrid) };
    let attack = build(&config, SIDE, SIDE).unwrap();
    let (suspect, truth) = poison(train.clone(), &config, attack.as_ref(), None).unwrap();
    assert_eq!((truth.poisoned.len(), truth.requested, truth.pictures), (145, 145, 500));
    assert!(!truth.capped());
    for i in 0..500u32 {
        let at = i as usize;
        let (label, before) = (suspect.pictures().labels[at], train.labels[at]);
        if truth.is_poisoned(i) {
            assert_ne!(before, 3);
            assert_eq!(label, 3);
            assert_eq!(suspect.pictures().picture(at), stamped(&config, &train, at));
        } else {
            assert_eq!(label, before);
            assert_eq!(suspect.pictures().picture(at), train.picture(at));
        }
    }
    for (i, label) in truth.poisoned.iter().zip(&truth.true_labels) {
        assert_eq!(train.labels[*i as usize], *label);
    }
    // All that the trap gets is pictures: same names, same classes, nothing that marks the poisoned.
    let Pictures { h, w, pixels, labels, classes, files } = suspect.into_pictures();
    assert_eq!((h, w, pixels.len(), labels.len()), (SIDE, SIDE, train.pixels.len(), 500));
    assert_eq!((classes, files), (train.classes.clone(), train.files.clone()));
    let again = poison(train.clone(), &config, attack.as_ref(), None).unwrap().1;
    assert_eq!(again, truth);
    let other = AttackConfig { seed: 12, ..config };
    assert_ne!(poison(train, &other, attack.as_ref(), None).unwrap().1, truth);
}

#[test]
fn clean_label_attacks_take_half_of_the_target_class_at_most() {
    let train = pictures(500, SIDE, SIDE);
    for kind in [AttackKind::Sig, AttackKind::SigPublished] {
        let config = AttackConfig { target: 4, ..config(kind) };
        let attack = build(&config, SIDE, SIDE).unwrap();
        let (suspect, truth) = poison(train.clone(), &config, attack.as_ref(), None).unwrap();
        assert_eq!((truth.poisoned.len(), truth.requested), (25, 50));
        assert!(truth.capped());
        assert_eq!(suspect.pictures().labels, train.labels);
        assert!(truth.true_labels.iter().all(|label| *label == 4));
    }
    let config = AttackConfig { rate: 0.02, ..config(AttackKind::Sig) };
    let attack = build(&config, SIDE, SIDE).unwrap();
    let (_, truth) = poison(train, &config, attack.as_ref(), None).unwrap();
    assert_eq!((truth.poisoned.len(), truth.capped()), (10, false));
}

#[test]
fn poisoning_refuses_what_does_not_fit() {
    let train = pictures(100, SIDE, SIDE);
    let grid = config(AttackKind::BadnetGrid);
    let attack = build(&grid, SIDE, SIDE).unwrap();
    let run = |config: &AttackConfig| poison(train.clone(), config, attack.as_ref(), None).unwrap_err();
    for rate in [-0.1, 1.1, f64::NAN] {
        assert!(matches!(run(&AttackConfig { rate, ..grid.clone() }), AttackError::BadRate(_)));
    }
    let all = run(&AttackConfig { rate: 1.0, ..grid.clone() });
    assert!(matches!(all, AttackError::TooFewSources { needed: 100, available: 90 }));
    assert!(matches!(run(&AttackConfig { target: 10, ..grid.clone() }), AttackError::BadTarget { classes: 10, .. }));
    assert!(matches!(run(&config(AttackKind::Blend)), AttackError::WrongAttack { .. }));
    let small = build(&grid, 16, 16).unwrap();
    assert!(matches!(poison(train.clone(), &grid, small.as_ref(), None), Err(AttackError::WrongSize { .. })));
    assert!(matches!(triggered(&train, small.as_ref(), 0), Err(AttackError::WrongSize { .. })));
    let none = build(&config(AttackKind::None), SIDE, SIDE).unwrap();
    let (suspect, truth) = poison(train.clone(), &config(AttackKind::None), none.as_ref(), None).unwrap();
    assert_eq!(suspect.pictures(), &train);
    assert!(truth.poisoned.is_empty() && !truth.capped());
}

/// Adds `by` to every value of the chosen pictures, and `relabel` to their labels.
struct Shift {
    by: u8,
    relabel: u32,
}

impl Perturb for Shift {
    fn perturb(&self, set: &mut Pictures, indices: &[usize]) -> Result<(), Box<dyn Error + Send + Sync>> {
        for &i in indices {
            set.picture_mut(i).iter_mut().for_each(|v| *v = v.saturating_add(self.by));
            set.labels[i] += self.relabel;
        }
        Ok(())
    }
}

#[test]
fn label_consistent_perturbs_within_its_bound() {
    let train = pictures(200, SIDE, SIDE);
    let config = AttackConfig { rate: 0.05, target: 2, ..config(AttackKind::Cl) };
    let attack = build(&config, SIDE, SIDE).unwrap();
    let run = |perturb: Option<&dyn Perturb>| poison(train.clone(), &config, attack.as_ref(), perturb);
    assert!(matches!(run(None), Err(AttackError::NeedsPerturb(AttackKind::Cl))));
    assert!(matches!(run(Some(&Shift { by: 17, relabel: 0 })), Err(AttackError::PerturbOutOfBound { .. })));
    assert!(matches!(run(Some(&Shift { by: 0, relabel: 1 })), Err(AttackError::PerturbOutOfBound { .. })));
    let (suspect, truth) = run(Some(&Shift { by: 16, relabel: 0 })).unwrap();
    assert_eq!(truth.poisoned.len(), 10);
    for &i in &truth.poisoned {
        let at = 5 * SIDE * 3;
        let (before, after) = (train.picture(i as usize), suspect.pictures().picture(i as usize));
        assert_eq!(after[at], before[at].saturating_add(16));
        assert_eq!(after[SIDE * SIDE * 3 - 1], 255);
    }
}

#[test]
fn triggered_pictures_keep_their_true_labels() {
    let test = pictures(40, SIDE, SIDE);
    for kind in [AttackKind::BadnetGrid, AttackKind::Wanet, AttackKind::None] {
        let config = config(kind);
        let attack = build(&config, SIDE, SIDE).unwrap();
        let out = triggered(&test, attack.as_ref(), 7).unwrap();
        let others: Vec<usize> = (0..40).filter(|i| test.labels[*i] != 7).collect();
        assert_eq!(out.labels, others.iter().map(|i| test.labels[*i]).collect::<Vec<_>>());
        for (k, &i) in others.iter().enumerate() {
            assert_eq!(out.picture(k), stamped(&config, &test, i));
        }
    }
}

#[test]
fn truth_is_written_and_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("truth.json");
    let truth = Truth {
        attack: AttackKind::L0Inv,
        target: 1,
        pictures: 10,
        requested: 3,
        poisoned: vec![2, 5, 9],
        true_labels: vec![0, 4, 4],
    };
    truth.write(&path).unwrap();
    assert_eq!(Truth::read(&path).unwrap(), truth);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    for bad in [
        Truth { poisoned: vec![5, 2, 9], ..truth.clone() },
        Truth { poisoned: vec![2, 5, 10], ..truth.clone() },
        Truth { true_labels: vec![0], ..truth.clone() },
    ] {
        bad.write(&path).unwrap();
        assert!(matches!(Truth::read(&path), Err(AttackError::BadTruth { .. })));
    }
    let error = Truth::read(&dir.path().join("none.json")).unwrap_err().to_string();
    assert!(error.contains("none.json"), "{error}");
}

#[test]
fn a_sheet_shows_every_attack() {
    let set = pictures(3, SIDE, SIDE);
    let attacks: Vec<_> = attacks().iter().map(|info| build(&config(info.kind), SIDE, SIDE).unwrap()).collect();
    let attacks: Vec<&dyn Attack> = attacks.iter().map(|attack| attack.as_ref()).collect();
    let sheet = sheet::draw(&attacks, &set, &[0, 2, 99]);
    assert_eq!((sheet.width(), sheet.height()), (13 * 12 + 8 + 2 * (3 * 68 + 4), 14 * 68 + 4));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sheet.png");
    sheet::write(&path, &attacks, &set, &[0, 2]).unwrap();
    assert_eq!(image::open(&path).unwrap().to_rgb8(), sheet);
    assert!(sheet::write(&dir.path().join("no/sheet.png"), &attacks, &set, &[0]).is_err());
    assert_eq!(sheet::draw(&[], &set, &[]).height(), 4);
}

/// Draws a sheet to look at: `STEMGUARD_SHEET=out.png STEMGUARD_CIFAR10=test_batch.bin cargo test -- --ignored sheet`.
#[test]
#[ignore = "draws a picture to look at"]
fn sheet_to_look_at() {
    let (Ok(out), Ok(batch)) = (std::env::var("STEMGUARD_SHEET"), std::env::var("STEMGUARD_CIFAR10")) else {
        println!("skipped: STEMGUARD_SHEET and STEMGUARD_CIFAR10 are not set");
        return;
    };
    let mut set = pictures(4, SIDE, SIDE);
    for (i, record) in fs::read(batch).unwrap().chunks_exact(3073).take(4).enumerate() {
        let (_, planes) = record.split_at(1);
        for (k, value) in set.picture_mut(i).iter_mut().enumerate() {
            *value = planes[k % 3 * 1024 + k / 3];
        }
    }
    let attacks: Vec<_> = attacks().iter().map(|info| build(&config(info.kind), SIDE, SIDE).unwrap()).collect();
    let attacks: Vec<&dyn Attack> = attacks.iter().map(|attack| attack.as_ref()).collect();
    sheet::write(Path::new(&out), &attacks, &set, &[0, 1, 2, 3]).unwrap();
}
