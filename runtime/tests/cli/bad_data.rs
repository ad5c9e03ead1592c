//! Data sets, arrays and settings that must be refused.

use crate::support::{Folder, done, noise, npy, npy_f32, refused, small_defended, testdata};
use stemguard_runtime::data::{Pictures, write_npz};

/// `n` pictures of side 8, picture `i` of class `i % used`, of the classes named.
fn pictures(n: usize, used: u32, names: &[&str]) -> Pictures {
    Pictures {
        h: 8,
        w: 8,
        pixels: (0..n * 192).map(|i| (i * 37 % 256) as u8).collect(),
        labels: (0..n as u32).map(|i| i % used).collect(),
        classes: names.iter().map(ToString::to_string).collect(),
        files: Vec::new(),
    }
}

/// Writes pictures; the data set's name.
fn npz(folder: &Folder, name: &str, pictures: &Pictures) -> String {
    write_npz(&folder.path().join(name), pictures).unwrap();
    format!("npz:{}", folder.at(name))
}

#[test]
fn data_sets_that_lie() {
    let folder = Folder::new();
    let stem = folder.put("stem.sgm", small_defended());
    let out = folder.at("out.sgm");
    let replace = |spec: &str, words: &[&str]| refused(&["replace", &stem, "--holdout", spec, "--out", &out], words);

    replace("imagenet:x", &["--holdout", "unknown data set kind `imagenet`", "cifar10:DIR"]);
    replace("signs:3", &["--holdout", "10..=1000000"]);
    replace(&format!("cifar10:{}", folder.at("nowhere")), &["nowhere", "not found"]);
    replace(&format!("npz:{}", folder.at("nowhere.npz")), &["nowhere.npz", "not found"]);
    let cifar = |file: &str, bytes: &[u8]| {
        folder.put("cifar/cifar-10-batches-bin/data_batch_1.bin", bytes);
        for i in 2..6 {
            folder.put(&format!("cifar/cifar-10-batches-bin/data_batch_{i}.bin"), vec![0; 3073]);
        }
        folder.put(&format!("cifar/cifar-10-batches-bin/{file}"), bytes);
        format!("cifar10:{}", folder.at("cifar"))
    };
    replace(&cifar("data_batch_3.bin", &[0; 3073 + 5]), &["data_batch_1.bin", "3073-byte record"]);
    replace(&cifar("data_batch_3.bin", &[10; 3073]), &["data_batch_1.bin", "label 10 is not in 0..10"]);
    let no_batch = cifar("data_batch_1.bin", &[0; 3073]);
    std::fs::remove_file(folder.path().join("cifar/cifar-10-batches-bin/data_batch_4.bin")).unwrap();
    replace(&no_batch, &["data_batch_4.bin"]);
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    replace(&format!("folder:{}", folder.at("empty")), &["empty", "no pictures"]);

    let names = ["stop", "yield", "pass"];
    replace(&npz(&folder, "few.npz", &pictures(60, 3, &names)), &["few.npz", "60 pictures", "batch of 64"]);
    replace(&npz(&folder, "absent.npz", &pictures(90, 2, &names)), &["absent.npz", "no picture of class 2 (`pass`)"]);
    replace(&npz(&folder, "one.npz", &pictures(90, 1, &names[..1])), &["one.npz", "there is one"]);
    let whole = npz(&folder, "whole.npz", &pictures(90, 3, &names));
    let bytes = std::fs::read(folder.path().join("whole.npz")).unwrap();
    folder.put("cut.npz", &bytes[..bytes.len() / 2]);
    replace(&format!("npz:{}", folder.at("cut.npz")), &["cut.npz"]);
    // What is read is not replaced.
    let file = folder.at("whole.npz");
    let kept = "is the pictures, which it would replace";
    refused(&["replace", &stem, "--holdout", &whole, "--out", &file], &["whole.npz", kept]);
    refused(&["replace", &stem, "--holdout", "signs:80", "--validate", &whole, "--out", &file], &["whole.npz", kept]);
    let model = folder.put("full.onnx", std::fs::read(testdata("full.onnx")).unwrap());
    refused(&["pack", &model, "--out", &model], &["full.onnx", "is the model, which it would replace"]);
    refused(&["pack", &model, "--int8", "--calibrate", &whole, "--out", &file], &["whole.npz", kept]);
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
    refused(
        &["replace", &stem, "--holdout", &whole, "--validate", &format!("{whole}@test"), "--out", &out],
        &["whole.npz", "no test part"],
    );
    // More classes than the model tells apart.
    let four = npz(&folder, "four.npz", &pictures(20, 4, &["0", "1", "2", "3"]));
    refused(&["eval", &stem, "--data", &four], &["four.npz", "4 classes are more than the 3 of the model"]);
    assert!(!folder.path().join("out.sgm").exists());
}

#[test]
fn settings_out_of_range() {
    let folder = Folder::new();
    let (stem, out) = (folder.put("stem.sgm", small_defended()), folder.at("out.sgm"));
    // Settings are looked at before any file.
    let missing = folder.at("missing.sgm");
    for (flag, value, word) in [
        ("--epochs", "0", "not in 1.."),
        ("--batch", "1", "not in 2.."),
        ("--batch", "-8", "not in 2.."),
        ("--lr", "0", "above 0 and at most 10"),
        ("--lr", "-0.1", "above 0 and at most 10"),
        ("--lr", "NaN", "above 0 and at most 10"),
        ("--weight-decay", "2", "within 0..1"),
        ("--smoothing", "1", "below 1"),
        ("--dropout", "much", "not a number"),
        ("--views", "0", "1..=1024"),
        ("--head", "round", "round"),
    ] {
        refused(&["replace", &missing, "--holdout", "signs:80", "--out", &out, flag, value], &[flag, word]);
    }
    let pictures = ["replace", &missing, "--holdout", "signs:80", "--out", &out, "--space", "pictures"];
    refused(&[&pictures[..], &["--views", "8"]].concat(), &["--views: with --space pictures"]);
    let into = folder.at("none/out.sgm");
    refused(&["replace", &stem, "--holdout", "signs:80", "--out", &into], &["does not exist"]);
    assert_eq!(folder.names(), ["stem.sgm"]);
}

#[test]
fn arrays_that_lie() {
    let folder = Folder::new();
    let (model, y) = (folder.put("small.sgm", small_defended()), folder.at("y.npy"));
    let run = |name: &str, bytes: Vec<u8>, words: &[&str]| {
        let x = folder.put(name, bytes);
        refused(&["run", &model, "--input", &x, "--output", &y], &[&[name][..], words].concat());
    };
    let x = noise(2 * 192);
    let good = npy_f32(&[2, 3, 8, 8], &x);
    run("f8.npy", npy("<f8", &[2, 3, 8, 8], &[0; 16 * 192]), &["`f8`", "float32"]);
    run("rank.npy", npy_f32(&[2, 192], &x), &["rank 2", "[N, 3, 8, 8]"]);
    run("shape.npy", npy_f32(&[2, 8, 8, 3], &x), &["[2, 8, 8, 3]", "[N, 3, 8, 8]"]);
    run("none.npy", npy_f32(&[0, 3, 8, 8], &[]), &["no pictures"]);
    run("cut.npy", good[..good.len() - 1].to_vec(), &["truncated"]);
    run("header.npy", good[..20].to_vec(), &["cut short"]);
    run("long.npy", [&good[..], b"x"].concat(), &["longer"]);
    run("huge.npy", npy("<f4", &[1 << 40, 3, 8, 8], &[]), &["8 GiB"]);
    run("text.npy", b"some text, no array".to_vec(), &["not a NumPy array"]);
    let mut nan = x.clone();
    nan[7] = f32::NAN;
    run("nan.npy", npy_f32(&[2, 3, 8, 8], &nan), &["element 7", "NaN"]);
    let at = good.windows(5).position(|w| w == b"False").unwrap();
    let mut fortran = good.clone();
    fortran[at..at + 5].copy_from_slice(b"True ");
    run("fortran.npy", fortran, &["Fortran"]);
    assert!(!folder.path().join("y.npy").exists());
    done(&["run", &model, "--input", &folder.put("good.npy", good), "--output", &y]);
}

#[test]
fn pictures_and_models_that_do_not_go_together() {
    let folder = Folder::new();
    let model = folder.put("small.sgm", small_defended());
    let text = folder.put("text.png", "no picture");
    refused(&["infer", &model, &text], &["text.png", "not a readable picture"]);
    refused(&["infer", &model, &folder.at("missing.png")], &["missing.png"]);
    let stem = folder.at("stem.sgm");
    done(&["pack", &testdata("stem.onnx"), "--out", &stem]);
    refused(&["infer", &stem, &text], &["stem.sgm", "without a head"]);
    refused(&["eval", &stem, "--data", "signs:10"], &["stem.sgm", "without a head"]);
    refused(&["eval", &testdata("stem.onnx"), "--data", "signs:10"], &["stem.onnx", "feature map"]);
    refused(&["pack", &stem, "--out", &folder.at("again.sgm")], &["an artifact already"]);
    refused(&["export", &testdata("stem.onnx"), "--out", &folder.at("x.onnx")], &["an ONNX file already"]);
    refused(&["inspect", &stem, "--at", "features"], &["`--at`"]);
}
