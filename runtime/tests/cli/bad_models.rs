//! Models that must be refused.

use crate::support::{Folder, command, failed, noise, npy_f32, refused, reseal, run, small_defended, testdata};
use std::process::Stdio;
use stemguard_runtime::net::{Activation, Window};
use stemguard_runtime::onnx::OnnxBuilder;
use stemguard_runtime::shape::Shape;

/// A model of one input and what `body` adds behind it.
fn model(input: Shape, dims: &[usize], body: impl FnOnce(&mut OnnxBuilder) -> String) -> Vec<u8> {
    let mut b = OnnxBuilder::new();
    b.input("images", input);
    let last = body(&mut b);
    b.rename(&last, "out");
    b.output("out", dims);
    b.finish().unwrap()
}

fn square(k: u32) -> Window {
    Window { kernel: [k, k], stride: [1, 1], pad: [k / 2; 4] }
}

#[test]
fn usage_is_told_in_one_line() {
    refused(&["replace", "x.sgm"], &["--holdout <SPEC>", "--out <FILE>"]);
    refused(&["pack", "--nonsense"], &["--nonsense"]);
    refused(&["nonsense"], &["nonsense"]);
    refused(&["infer", "x.sgm"], &["PICTURE"]);
    refused(&["inspect", "x.sgm", "--threads", "1025"], &["--threads"]);
    refused(&["run", "x.sgm", "--input", "a", "--output", "b", "--backend", "cuda"], &["cuda", "--backend"]);
    for command in ["inspect", "pack", "run", "replace", "eval", "infer", "bench", "export"] {
        let ran = run(&[command, "--help"]);
        assert!(ran.code == 0 && ran.out.contains("Example") && ran.err.is_empty(), "{command}: {}", ran.err);
        // The paragraphs of its module, not its first line alone.
        assert!(ran.out.split("\n\n").nth(1).is_some_and(|p| !p.starts_with("Usage")), "{command}: {}", ran.out);
    }
}

#[test]
fn missing_and_foreign_files() {
    let folder = Folder::new();
    let empty = folder.put("empty.sgm", b"");
    let text = folder.put("text.onnx", "no model at all, but some text");
    let (missing, out) = (folder.at("missing.sgm"), folder.at("out.sgm"));
    for command in ["inspect", "bench"] {
        refused(&[command, &missing], &["missing.sgm", "No such file"]);
        refused(&[command, &empty], &["empty.sgm"]);
        refused(&[command, &text], &["text.onnx"]);
        refused(&[command, folder.path().to_str().unwrap()], &["directory"]);
    }
    refused(&["inspect", &testdata("stem.onnx"), "--at", "features_"], &["--at", "no tensor `features_`", "features"]);
    refused(&["pack", &testdata("stem.onnx"), "--at", "nowhere", "--out", &out], &["stem.onnx", "no tensor `nowhere`"]);
    refused(&["pack", &testdata("stem.onnx"), "--out", &folder.at("none/out.sgm")], &["none", "does not exist"]);
    refused(&["pack", &testdata("stem.onnx"), "--out", folder.path().to_str().unwrap()], &["is a folder"]);
    refused(&["pack", &testdata("stem.onnx"), "--out", &out, "--labels", &missing], &["missing.sgm"]);
    assert_eq!(folder.names(), ["empty.sgm", "text.onnx"]);
}

#[test]
fn one_flipped_bit_anywhere() {
    let folder = Folder::new();
    let good = small_defended();
    assert_eq!(run(&["inspect", &folder.put("good.sgm", &good)]).code, 0);
    let mut rng = stemguard_runtime::rng::Rng::new(1, 1);
    for i in 0..200 {
        // The header bit by bit, then anywhere.
        let bit = if i < 64 { 2 * i } else { rng.below(8 * good.len()) };
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let path = folder.put("flipped.sgm", &bytes);
        failed(&["inspect", &path], 2, &["flipped.sgm: "]);
    }
}

#[test]
fn artifacts_that_lie() {
    let folder = Folder::new();
    let good = small_defended();
    for len in [1, 6, 15, 16, 40, good.len() / 2, good.len() - 1] {
        refused(&["inspect", &folder.put("cut.sgm", &good[..len])], &["cut.sgm: "]);
    }
    refused(&["inspect", &folder.put("long.sgm", [&good[..], b"x"].concat())], &["long.sgm: ", "bytes follow"]);

    let mut future = good.clone();
    future[6] = 5;
    reseal(&mut future);
    refused(&["inspect", &folder.put("future.sgm", &future)], &["version 5 is newer"]);
    for other in [2, 3, 4] {
        future[6] = other;
        reseal(&mut future);
        refused(&["inspect", &folder.put("future.sgm", &future)], &["manifest"]);
    }

    let mut huge = good.clone();
    huge[12..16].fill(0xff);
    refused(&["inspect", &folder.put("huge.sgm", &huge)], &["truncated"]);

    // The head is the manifest's end: kind 0, features 4x4x5, three classes.
    let spec = [1, 0, 4, 4, 5, 3];
    let at = good.windows(spec.len()).rposition(|w| w == spec).unwrap();
    for (byte, value) in [(5, 2), (5, 4), (4, 6), (1, 1)] {
        let mut unfit = good.clone();
        unfit[at + byte] = value;
        reseal(&mut unfit);
        let path = folder.put("unfit.sgm", &unfit);
        refused(&["infer", &path, "x.png"], &["unfit.sgm: ", "head does not fit"]);
    }

    let mut nan = good.clone();
    let at = good.len() - 4 - 8;
    nan[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    reseal(&mut nan);
    refused(&["eval", &folder.put("nan.sgm", &nan), "--data", "signs:10"], &["nan.sgm: ", "NaN"]);
}

#[test]
fn onnx_files_that_lie() {
    let folder = Folder::new();
    let out = folder.at("out.sgm");
    let good = std::fs::read(testdata("stem.onnx")).unwrap();
    for part in 1..20 {
        let path = folder.put("cut.onnx", &good[..good.len() * part / 20]);
        refused(&["pack", &path, "--out", &out], &["cut.onnx: "]);
    }
    // An operation nobody knows: neither the net nor tract.
    let mut unknown = good.clone();
    let name = b"LeakyRelu";
    for at in 0..unknown.len() - name.len() {
        if unknown[at..].starts_with(name) && unknown[at - 1] == name.len() as u8 {
            unknown[at..at + name.len()].copy_from_slice(b"BogusRelu");
        }
    }
    let unknown = folder.put("unknown.onnx", &unknown);
    refused(&["pack", &unknown, "--out", &out], &["unknown.onnx: ", "BogusRelu", "cannot be lowered"]);
    let x = folder.put("x.npy", npy_f32(&[1, 3, 32, 32], &noise(3072)));
    let y = folder.at("y.npy");
    refused(&["run", &unknown, "--input", &x, "--output", &y], &["unknown.onnx: ", "BogusRelu", "tract"]);
    let inspected = run(&["inspect", &unknown]);
    assert!(inspected.code == 0 && inspected.out.contains("lowers        no: "), "{}", inspected.out);

    let shape = Shape::new(8, 8, 3);
    let unfit = model(shape, &[4, 8, 8], |b| b.conv("images", &[0.5; 4 * 7 * 9], [4, 7, 3, 3], None, square(3), 1));
    refused(&["pack", &folder.put("unfit.onnx", unfit), "--out", &out], &["unfit.onnx: ", "Conv"]);
    let nan = model(shape, &[4, 8, 8], |b| b.conv("images", &[f32::NAN; 4 * 27], [4, 3, 3, 3], None, square(3), 1));
    refused(&["pack", &folder.put("nan.onnx", nan), "--out", &out], &["nan.onnx: ", "NaN"]);
    let wide = model(Shape::new(5000, 8, 3), &[3, 5000, 8], |b| b.activation("images", Activation::Relu));
    refused(&["inspect", &folder.put("wide.onnx", wide)], &["wide.onnx: ", "5000"]);
    assert!(!folder.names().iter().any(|name| name.contains("out") || name.contains("part")));
}

#[test]
fn absurd_sizes_are_refused_before_memory_is_taken() {
    let folder = Folder::new();
    let large = Shape::new(4096, 4096, 16);
    let slow = model(large, &[16, 4096, 4096], |b| {
        let weight = vec![0.01; 16 * 16 * 63 * 63];
        b.conv("images", &weight, [16, 16, 63, 63], None, square(63), 1)
    });
    let slow = folder.put("slow.onnx", slow);
    refused(&["bench", &slow, "--batch", "1"], &["slow.onnx: ", "multiply-adds"]);
    refused(&["pack", &slow, "--out", &folder.at("out.sgm")], &["slow.onnx: ", "multiply-adds"]);
    // Six values of 1 GiB at once.
    let wide = model(large, &[16, 4096, 4096], |b| {
        let values: Vec<String> = (1..7).map(|i| b.activation("images", Activation::Leaky(0.1 * i as f32))).collect();
        let mut sum = values[0].clone();
        for value in &values[1..] {
            sum = b.mul(&sum, value);
        }
        values.iter().fold(sum, |sum, value| b.add(&sum, value))
    });
    refused(&["bench", &folder.put("wide.onnx", wide), "--batch", "1"], &["wide.onnx: ", "arena"]);
}

#[test]
fn outputs_that_cannot_be_written() {
    let folder = Folder::new();
    let model = folder.put("small.sgm", small_defended());
    if std::path::Path::new("/dev/full").exists() {
        failed(&["export", &model, "--out", "/dev/full"], 2, &["/dev/full", "cannot be written"]);
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = command().args(["inspect", &model]).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8(output.stderr).unwrap().contains("standard output"));
    }
    // Nobody reads: quiet.
    let mut child = command().args(["inspect", &model]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &output.stderr[..]), (Some(0), &b""[..]));
    // An old output is replaced as a whole, and survives a refusal.
    let out = folder.put("out.onnx", b"old");
    refused(&["export", &folder.at("missing.sgm"), "--out", &out], &["missing.sgm"]);
    assert_eq!(std::fs::read(&out).unwrap(), b"old");
    assert_eq!(run(&["export", &model, "--out", &out]).code, 0);
    assert!(std::fs::read(&out).unwrap().len() > 100);
    assert_eq!(folder.names(), ["out.onnx", "small.sgm"]);
}
