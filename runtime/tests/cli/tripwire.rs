//! The tripwire: kept with `replace`, told by the other commands, refused where it does not fit.

use crate::support::{Folder, done, failed, number, refused, reseal, small_defended, small_watched, testdata};
use stemguard_runtime::data::{LoadOptions, Part, Pictures, load_part, write_npz};

/// Pictures of side 8 of three classes, some of a tint of their own; the data set's name.
fn pictures(folder: &Folder, name: &str, n: usize, classes: &[&str]) -> String {
    let used = classes.len();
    let pixel = |i: usize| ((i * 37 % 190) + if i % 3 == i / 192 % used { 60 } else { 0 }) as u8;
    let pictures = Pictures {
        h: 8,
        w: 8,
        pixels: (0..n * 192).map(pixel).collect(),
        labels: (0..n).map(|i| (i % used) as u32).collect(),
        classes: classes.iter().map(ToString::to_string).collect(),
        files: Vec::new(),
    };
    write_npz(&folder.path().join(name), &pictures).unwrap();
    format!("npz:{}", folder.at(name))
}

const CLASSES: [&str; 3] = ["stop", "yield", "pass"];

#[test]
fn names_tell_which_class_is_which() {
    let folder = Folder::new();
    let model = folder.put("watched.sgm", small_watched(1.0));
    let eval = |data: &str| done(&["eval", &model, "--data", data, "--json"]);
    let told = eval(&pictures(&folder, "data.npz", 40, &CLASSES));
    // The same pictures under the same names, numbered otherwise: `stop` is 2 there, `yield` 0.
    let moved = pictures(&folder, "moved.npz", 40, &["yield", "pass", "stop"]);
    let mut set = load_part(&moved.parse().unwrap(), &LoadOptions::default(), Part::Test).unwrap();
    set.labels.iter_mut().for_each(|label| *label = (*label + 2) % 3);
    write_npz(&folder.path().join("moved.npz"), &set).unwrap();
    assert_eq!(eval(&moved), told);
    let foreign = pictures(&folder, "foreign.npz", 40, &["stop", "yield", "slow"]);
    refused(&["eval", &model, "--data", &foreign], &["foreign.npz", "`slow` is not among"]);
    // Before a head is trained: nothing is lost.
    let (data, out) = (pictures(&folder, "clean.npz", 90, &CLASSES), folder.at("out.sgm"));
    let args = ["replace", &model, "--holdout", &data, "--validate", &foreign, "--epochs", "100000", "--out", &out];
    refused(&args, &["foreign.npz", "`slow`"]);
    let other = pictures(&folder, "other.npz", 40, &["a", "b", "c"]);
    refused(&["eval", &model, "--data", &other], &["other.npz: none of its classes is among those of the model"]);
    // The old head goes on numbering its classes as it did, whatever the order of the holdout's.
    let keep = |data: &str, out: &str| {
        let flags = ["--keep-head", "--epochs", "3", "--batch", "16", "--head", "linear", "--json", "--out", out];
        number(&done(&[&["replace", &model, "--holdout", data][..], &flags[..]].concat()), "alarm_threshold")
    };
    let threshold = keep(&data, &out);
    let mut set = load_part(&data.parse().unwrap(), &LoadOptions::default(), Part::Train).unwrap();
    set.labels.iter_mut().for_each(|label| *label = (*label + 2) % 3);
    set.classes = ["yield", "pass", "stop"].map(String::from).to_vec();
    write_npz(&folder.path().join("turned.npz"), &set).unwrap();
    let turned = folder.at("turned.sgm");
    assert_eq!(keep(&format!("npz:{}", folder.at("turned.npz")), &turned), threshold);
    assert!(std::fs::read(&turned).unwrap() == std::fs::read(&out).unwrap());
    let args = ["replace", &model, "--holdout", &other, "--keep-head", "--batch", "16", "--out", &out];
    refused(&args, &["--keep-head: none of its classes"]);
}

#[test]
fn every_command_tells_of_it() {
    let folder = Folder::new();
    let data = pictures(&folder, "data.npz", 40, &CLASSES);
    let picture = folder.put("x.ppm", [&b"P6\n8 8\n255\n"[..], &[100; 192]].concat());
    for (threshold, raised) in [(f32::MIN, true), (f32::MAX, false)] {
        let model = folder.put("watched.sgm", small_watched(threshold));
        let told = done(&["infer", &model, &picture, &picture, "--json"]);
        assert_eq!(told.lines().count(), 2);
        for line in told.lines() {
            assert!(
                number(line, "alarm").is_finite() && line.contains(&format!("\"alarm_raised\":{raised}")),
                "{line}"
            );
        }
        let told = done(&["infer", &model, &picture]);
        assert!(told.contains("; alarm ") && told.contains("raised") == raised, "{told}");
        let told = done(&["eval", &model, "--data", &data, "--json"]);
        assert_eq!(number(&told, "alarm_rate"), f64::from(u8::from(raised)), "{told}");
        let told = done(&["eval", &model, "--data", &data]);
        assert!(told.contains(if raised { "alarm 1.0000 (40 of 40)" } else { "alarm 0.0000 (0 of 40)" }), "{told}");
    }
    let model = folder.put("watched.sgm", small_watched(1.5));
    let told = done(&["inspect", &model]);
    assert!(told.contains("tripwire      linear witness, alarm above 1.5,"), "{told}");
    assert!(told.contains("witness parameters"), "{told}");
    let told = done(&["inspect", &model, "--json"]);
    assert!(told.contains("\"tripwire\":{\"witness\":{\"kind\":\"linear\",\"classes\":3,"), "{told}");
    assert_eq!(number(&told, "threshold"), 1.5);

    // The exported file answers like the artifact, and has the score as a second output.
    let onnx = folder.at("watched.onnx");
    let told = done(&["export", &model, "--out", &onnx]);
    assert!(told.contains("`logits`, and `alarm`, raised above 1.5"), "{told}");
    assert!(done(&["inspect", &onnx]).contains("onnx outputs  logits, alarm"));
    let acc = [&model, &onnx].map(|model| number(&done(&["eval", model, "--data", &data, "--json"]), "acc"));
    assert_eq!(acc[0], acc[1]);

    // Without a tripwire nothing is said of one.
    let plain = folder.put("plain.sgm", small_defended());
    for told in [
        done(&["infer", &plain, &picture, "--json"]),
        done(&["eval", &plain, "--data", &data, "--json"]),
        done(&["infer", &plain, &picture]),
        done(&["export", &plain, "--out", &onnx]),
    ] {
        assert!(!told.contains("alarm"), "{told}");
    }
    assert!(done(&["inspect", &plain, "--json"]).contains("\"tripwire\":null"));
}

#[test]
fn the_old_head_is_kept_and_the_threshold_set() {
    let folder = Folder::new();
    let clean = pictures(&folder, "clean.npz", 90, &CLASSES);
    let first = folder.put("first.sgm", small_defended());
    let replace = |from: &str, to: &str, flags: &[&str]| {
        let fixed = ["--epochs", "2", "--views", "2", "--json"];
        done(&[&["replace", from, "--holdout", &clean, "--out", to][..], &fixed, flags].concat())
    };
    let alarms = |model: &str| number(&done(&["eval", model, "--data", &clean, "--json"]), "alarm_rate");
    let second = folder.at("second.sgm");
    for (rate, most, least) in [("0", 0.0, 0.0), ("0.1", 0.1, 0.0), ("1", 1.0, 1.0)] {
        let told = replace(&first, &second, &["--keep-head", "--alarm-fpr", rate]);
        assert!(number(&told, "alarm_threshold").is_finite(), "{told}");
        assert!((least..=most).contains(&alarms(&second)), "{rate}: {}", alarms(&second));
    }
    replace(&first, &second, &["--keep-head"]);
    let told = done(&["inspect", &second, "--json"]);
    assert!(told.contains("\"head\":{\"kind\":\"residual\""), "{told}");
    assert!(told.contains("\"tripwire\":{\"witness\":{\"kind\":\"linear\"") && told.contains("0.01"), "{told}");
    assert!(told.contains("the old head kept as witness"), "{told}");

    // The witness stays who it was when the head is replaced again; without the flag it goes.
    let third = folder.at("third.sgm");
    replace(&second, &third, &["--keep-head", "--head", "linear"]);
    assert!(done(&["inspect", &third, "--json"]).contains("\"tripwire\":{\"witness\":{\"kind\":\"linear\""));
    let told = replace(&second, &third, &[]);
    assert!(!told.contains("alarm"), "{told}");
    assert!(done(&["inspect", &third, "--json"]).contains("\"tripwire\":null"));
    assert_eq!(std::fs::read(&third).unwrap()[6], 1, "the version of a file without a tripwire");
    assert_eq!(std::fs::read(&second).unwrap()[6], 3);
}

#[test]
fn what_cannot_be_kept_is_refused() {
    let folder = Folder::new();
    let (model, out) = (folder.put("small.sgm", small_defended()), folder.at("out.sgm"));
    let clean = pictures(&folder, "clean.npz", 90, &CLASSES);
    let keep = |model: &str, holdout: &str, flags: &[&str], words: &[&str]| {
        refused(&[&["replace", model, "--holdout", holdout, "--out", &out][..], flags].concat(), words);
    };
    keep(&model, &clean, &["--alarm-fpr", "0.1"], &["--keep-head"]);
    for rate in ["1.5", "NaN", "inf"] {
        keep(&model, &clean, &["--keep-head", "--alarm-fpr", rate], &["--alarm-fpr", "0..1"]);
    }
    keep(&model, &clean, &["--keep-head", "--alarm-fpr", "often"], &["--alarm-fpr", "often"]);
    let four = pictures(&folder, "four.npz", 90, &["0", "1", "2", "3"]);
    keep(&model, &four, &["--keep-head"], &["four.npz", "4 classes are more than the 3 of the model"]);
    keep(&testdata("stem.onnx"), "signs:600", &["--keep-head"], &["stem.onnx", "--keep-head", "without a head"]);
    assert!(!folder.path().join("out.sgm").exists());
}

#[test]
fn tripwires_that_lie() {
    let folder = Folder::new();
    let good = small_watched(1.5);
    let numbers = [1.5f32, 0.01].map(f32::to_le_bytes);
    let threshold = good.windows(8).position(|w| w == numbers.as_flattened()).unwrap();
    // In front of it the witness: kind 0, features 4x4x5, three classes, then where its parameters lie.
    let witness = threshold - 8;
    assert_eq!(good[witness..witness + 5], [0, 4, 4, 5, 3]);
    let with = |at: usize, new: &[u8], words: &[&str]| {
        let mut bytes = good.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        reseal(&mut bytes);
        refused(&["inspect", &folder.put("bad.sgm", &bytes)], &[&["bad.sgm: "][..], words].concat());
    };
    for (byte, value) in [(0, 1), (3, 6), (4, 2), (4, 4), (5, 0xd0), (7, 52)] {
        with(witness + byte, &[value], &["tripwire does not fit"]);
    }
    with(threshold, &f32::NAN.to_le_bytes(), &["NaN"]);
    with(threshold + 4, &2f32.to_le_bytes(), &["tripwire does not fit"]);
    with(good.len() - 8, &f32::INFINITY.to_le_bytes(), &["NaN"]);
    with(6, &[1], &["manifest"]);
    with(6, &[4], &["bad.sgm"]);
    let mut rng = stemguard_runtime::rng::Rng::new(1, 2);
    for _ in 0..50 {
        let (bit, mut bytes) = (rng.below(8 * good.len()), good.clone());
        bytes[bit / 8] ^= 1 << (bit % 8);
        failed(&["inspect", &folder.put("flipped.sgm", &bytes)], 2, &["flipped.sgm: "]);
    }
}
