//! Stems in 8 bits: packed, inspected, run, given a head, measured; and what is refused.

use crate::support::{Folder, difference, done, noise, npy_f32, read_npy, refused, small_defended, testdata};
use stemguard_runtime::artifact::{AlignedBytes, Artifact};
use stemguard_runtime::net::Activation;
use stemguard_runtime::net::int8::ScalarInt8;
use stemguard_runtime::onnx::OnnxBuilder;
use stemguard_runtime::shape::Shape;

const CALIBRATE: [&str; 5] = ["--int8", "--calibrate", "signs:100", "--calibrate-count", "64"];

/// Packs a model in 8 bits; what was printed.
fn pack(model: &str, out: &str, more: &[&str]) -> String {
    done(&[&["pack", model, "--out", out][..], &CALIBRATE[..], more].concat())
}

/// A number from one line of JSON.
fn number(json: &str, key: &str) -> f64 {
    let rest = json.split_once(&format!("\"{key}\":")).unwrap_or_else(|| panic!("{key} in {json}")).1;
    rest.split([',', '}']).next().unwrap().parse().unwrap_or_else(|_| panic!("{key} in {json}"))
}

#[test]
fn an_int8_stem_takes_a_head_and_runs_everywhere() {
    let folder = Folder::new();
    let (stem, x, y) =
        (folder.at("stem.sgm"), folder.put("x.npy", npy_f32(&[2, 3, 32, 32], &noise(6144))), folder.at("y.npy"));
    let told = pack(&testdata("stem.onnx"), &stem, &["--json"]);
    assert!(told.contains("\"precision\":\"int8\"") && told.lines().count() == 1, "{told}");
    assert_eq!((number(&told, "arena_bytes"), number(&told, "calibration_pictures")), (49152.0, 64.0));
    assert!(number(&told, "signal_to_error_db") > 20.0, "{told}");
    // A byte a weight, and 12 for each channel.
    assert!((100_000.0..110_000.0).contains(&number(&told, "weight_bytes")), "{told}");
    let told = done(&["inspect", &stem]);
    for word in ["precision     int8", "calibrated on 64 pictures (signs)", "arena", "49,152", "features", "4,096"] {
        assert!(told.contains(word), "{word}: {told}");
    }
    let told = done(&["inspect", &stem, "--json"]);
    assert_eq!((number(&told, "feature_bytes"), number(&told, "input_bytes")), (4096.0, 3072.0));

    // The host's kernels give the core's bits.
    done(&["run", &stem, "--input", &x, "--output", &y]);
    let found = read_npy(&y).1;
    let bytes = AlignedBytes::from_file(&stem).unwrap();
    let net = Artifact::new_checked(&bytes).unwrap().stem().int8().unwrap();
    let (mut arena, mut features) = (vec![0; net.arena_len()], vec![0; net.output().len()]);
    for (chw, found) in noise(6144).chunks(3072).zip(found.chunks(4096)) {
        let picture: Vec<i8> = (0..3072).map(|i| net.input_quant().quantise(chw[i % 3 * 1024 + i / 3])).collect();
        net.run(&mut ScalarInt8, &picture, &mut arena, &mut features).unwrap();
        for (i, &q) in features.iter().enumerate() {
            assert_eq!(net.output_quant().dequantise(q).to_bits(), found[i % 64 * 64 + i / 64].to_bits(), "{i}");
        }
    }

    let defended = folder.at("defended.sgm");
    let flags = ["--head", "linear", "--views", "2", "--epochs", "6", "--json"];
    let paths = ["replace", &stem, "--holdout", "signs:600", "--validate", "signs:600", "--out", &defended];
    let acc = number(&done(&[&paths[..], &flags[..]].concat()), "acc");
    assert!(acc >= 0.2, "{acc}");
    assert_eq!(number(&done(&["eval", &defended, "--data", "signs:600", "--json"]), "acc"), acc);
    let picture = folder.put("x.ppm", [&b"P6\n32 32\n255\n"[..], &[100; 3072]].concat());
    assert!(done(&["infer", &defended, &picture]).starts_with(&picture));
    assert!(number(&done(&["bench", &defended, "--batch", "1", "--rounds", "2", "--json"]), "images_per_second") > 0.0);
    assert!(done(&["inspect", &defended]).contains("int8, calibrated on 64 pictures (signs); head: linear"));

    // 8 bits cannot go back, nor be halved again.
    let (out, f32_only) = (folder.at("out.onnx"), "int8 stem has no ONNX form");
    refused(&["export", &defended, "--out", &out], &["defended.sgm: ", f32_only]);
    refused(&["run", &defended, "--input", &x, "--output", &out, "--backend", "tract"], &["defended.sgm: ", f32_only]);
    refused(&[&["pack", &defended, "--out", &out][..], &CALIBRATE[..]].concat(), &["defended.sgm: ", "int8 already"]);
    refused(&["pack", &defended, "--out", &out], &["is an artifact already"]);
    assert_eq!(folder.names(), ["defended.sgm", "stem.sgm", "x.npy", "x.ppm", "y.npy"]);
}

#[test]
fn an_artifact_keeps_its_head() {
    let folder = Folder::new();
    let (model, small) = (folder.put("small.sgm", small_defended()), folder.at("int8.sgm"));
    assert!(pack(&model, &small, &["--threads", "1"]).contains("int8: weights"));
    let told = done(&["inspect", &small]);
    assert!(told.contains("linear, 3 classes") && told.contains("labels        stop, yield, pass"), "{told}");
    let (x, y) = (folder.put("x.npy", npy_f32(&[3, 3, 8, 8], &noise(576))), folder.at("y.npy"));
    let logits = [&model, &small].map(|model| {
        done(&["run", model, "--input", &x, "--output", &y]);
        read_npy(&y).1
    });
    let off = difference(&logits[1], &logits[0]);
    assert!(off > 0.0 && off < 0.05, "{off}");
    // The same pictures, the same file.
    let first = std::fs::read(&small).unwrap();
    pack(&model, &small, &["--threads", "2"]);
    assert!(std::fs::read(&small).unwrap() == first);
    let two = folder.put("two.txt", "stop\ngo");
    let args = ["pack", &model, "--out", &small, "--labels", &two];
    refused(&[&args[..], &CALIBRATE[..]].concat(), &["--labels", "2 class names", "3 classes"]);
}

#[test]
fn what_cannot_be_quantised_is_refused() {
    let folder = Folder::new();
    let (stem, out) = (testdata("stem.onnx"), folder.at("out.sgm"));
    let pack = |more: &[&str], words: &[&str]| refused(&[&["pack", &stem, "--out", &out][..], more].concat(), words);
    pack(&["--int8"], &["--calibrate <SPEC>"]);
    pack(&["--calibrate", "signs:100"], &["--int8"]);
    pack(&["--int8", "--calibrate", "imagenet:x"], &["--calibrate", "unknown data set kind `imagenet`"]);
    pack(&["--int8", "--calibrate", "folder:nowhere"], &["nowhere"]);
    pack(&["--int8", "--calibrate", "signs:100", "--calibrate-count", "0"], &["--calibrate-count"]);

    // An operation with sums that 32 bits cannot hold, and one that gives infinities.
    let model = |input: Shape, body: &dyn Fn(&mut OnnxBuilder) -> (String, Vec<usize>)| {
        let mut b = OnnxBuilder::new();
        b.input("images", input);
        let (last, dims) = body(&mut b);
        b.rename(&last, "out");
        b.output("out", &dims);
        b.finish().unwrap()
    };
    let wide = model(Shape::new(160, 160, 3), &|b| {
        let flat = b.flatten("images");
        (b.gemm(&flat, &vec![1e-3; 2 * 76_800], 2, None), vec![2])
    });
    let wide = folder.put("wide.onnx", wide);
    let words = ["wide.onnx: ", "no int8 form", "linear (operation 0)", "76800"];
    refused(&[&["pack", &wide, "--out", &out][..], &CALIBRATE[..]].concat(), &words);
    let hot = model(Shape::new(4, 4, 3), &|b| {
        let flat = b.flatten("images");
        let y = b.gemm(&flat, &[3e38; 48], 1, None);
        (b.mul(&y, &y), vec![1])
    });
    let hot = folder.put("hot.onnx", hot);
    refused(
        &[&["pack", &hot, "--out", &out][..], &CALIBRATE[..]].concat(),
        &["hot.onnx: ", "linear (operation 0)", "not finite"],
    );
    let grey = model(Shape::new(8, 8, 1), &|b| (b.activation("images", Activation::Relu), vec![1, 8, 8]));
    let grey = folder.put("grey.onnx", grey);
    refused(&[&["pack", &grey, "--out", &out][..], &CALIBRATE[..]].concat(), &["grey.onnx: ", "channel"]);
    assert_eq!(folder.names(), ["grey.onnx", "hot.onnx", "wide.onnx"]);
}

#[test]
fn one_flipped_bit_anywhere() {
    let folder = Folder::new();
    let (model, small) = (folder.put("small.sgm", small_defended()), folder.at("int8.sgm"));
    pack(&model, &small, &[]);
    let good = std::fs::read(&small).unwrap();
    let mut rng = stemguard_runtime::rng::Rng::new(2, 2);
    for i in 0..60 {
        let bit = if i < 32 { 4 * i } else { rng.below(8 * good.len()) };
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        refused(&["inspect", &folder.put("flipped.sgm", &bytes)], &["flipped.sgm: "]);
    }
    for len in [7, 16, good.len() / 2, good.len() - 1] {
        refused(&["inspect", &folder.put("cut.sgm", &good[..len])], &["cut.sgm: "]);
    }
}
