//! The whole way: an ONNX stem, an artifact, a new head, answers, and an ONNX file again.

use crate::support::{
    Folder, difference, done, noise, npy_f32, number, read_npy, refused, run, small_defended, testdata,
};

/// The largest relative difference allowed between two backends.
const TOLERANCE: f32 = 1e-4;

/// Logits of `model` for `x` on a backend.
fn logits(folder: &Folder, model: &str, x: &str, backend: &str) -> Vec<f32> {
    let y = folder.at("y.npy");
    done(&["run", model, "--input", x, "--output", &y, "--backend", backend]);
    let (shape, y) = read_npy(&y);
    assert_eq!((shape.len(), shape[0]), (2, 3));
    y
}

#[test]
fn inspect_tells_what_a_device_needs() {
    let folder = Folder::new();
    let model = folder.put("small.sgm", small_defended());
    let args = ["inspect", &model, "--target", "cortex-m", "--batch", "8", "--holdout-count", "20"];
    assert!(done(&args).contains("bytes on a Cortex-M: a bank of 20 pictures, steps of 8"));
    let told = done(&[&args[..], &["--json"]].concat());
    let (net, device) = told.split_once("\"cortex_m\":").unwrap();
    let bytes = |name: &str| number(device, name);
    assert_eq!(bytes("arena_bytes"), number(net, "arena_bytes"));
    assert_eq!(bytes("model_bytes"), small_defended().len() as f64);
    let three = ["arena_bytes", "head_bytes", "training_bytes"].map(bytes);
    assert_eq!(bytes("work_bytes"), three.into_iter().fold(0.0, f64::max));
    assert_eq!(bytes("order_bytes"), 160.0);
    assert!(bytes("bank_bytes") >= 20.0 * 4.0 && bytes("total_bytes") > bytes("work_bytes") + bytes("bank_bytes"));
    refused(&["inspect", &model, "--target", "cortex-z"], &["cortex-z"]);
}

#[test]
fn from_a_stem_to_a_defended_model_and_back_to_onnx() {
    let folder = Folder::new();
    let (stem, x) = (folder.at("stem.sgm"), folder.put("x.npy", npy_f32(&[3, 3, 32, 32], &noise(3 * 3072))));
    assert!(done(&["pack", &testdata("stem.onnx"), "--name", "wrn", "--out", &stem]).contains("8x8x64"));
    let told = done(&["inspect", &stem, "--batch", "16", "--holdout-count", "100"]);
    for word in
        ["name          wrn", "head          none", "conv", "arena", "a residual head", "batch 16, 100 pictures"]
    {
        assert!(told.contains(word), "{word}: {told}");
    }
    for (head, space, least) in [
        ("residual", "features", 0.2),
        ("residual", "mixed", 0.15),
        ("residual", "pictures", 0.15),
        ("linear", "features", 0.2),
    ] {
        let (defended, onnx) = (folder.at("defended.sgm"), folder.at("defended.onnx"));
        let flags = ["--head", head, "--space", space, "--epochs", "6", "--json"];
        let views = if space == "pictures" { &[][..] } else { &["--views", "2"][..] };
        let paths = ["replace", &stem, "--holdout", "signs:600", "--validate", "signs:600", "--out", &defended];
        let told = done(&[&paths[..], &flags[..], views].concat());
        assert_eq!(told.lines().count(), 1);
        let acc = number(&told, "acc");
        assert!(acc >= least && number(&told, "loss") > 0.0, "{head} {space}: {told}");

        let told = done(&["eval", &defended, "--data", "signs:600", "--json"]);
        assert_eq!((number(&told, "acc"), number(&told, "n")), (acc, 120.0));
        assert!(told.contains("\"per_class\":[") && told.contains("\"confusion\":[["), "{told}");
        assert!(done(&["eval", &defended, "--data", "signs:600", "--threads", "1"]).starts_with("ACC "));
        assert!(done(&["inspect", &defended]).contains(&format!("head          {head}, ")));

        assert!(done(&["export", &defended, "--out", &onnx]).contains("`logits`"));
        let wanted = logits(&folder, &defended, &x, "native");
        for (model, backend) in [(&defended, "tract"), (&onnx, "native"), (&onnx, "tract")] {
            let off = difference(&logits(&folder, model, &x, backend), &wanted);
            assert!(off <= TOLERANCE, "{head}: {model} on {backend}: {off}");
        }
        let told = done(&["eval", &onnx, "--data", "signs:600", "--json"]);
        assert!((number(&told, "acc") - acc).abs() < 0.02, "{told}");
    }
    assert_eq!(folder.names(), ["defended.onnx", "defended.sgm", "stem.sgm", "x.npy", "y.npy"]);
}

#[test]
fn the_same_seed_gives_the_same_file() {
    let folder = Folder::new();
    let files: Vec<Vec<u8>> = [("a.sgm", "1", "7"), ("b.sgm", "2", "7"), ("c.sgm", "1", "8")]
        .into_iter()
        .map(|(name, threads, seed)| {
            let (out, stem) = (folder.at(name), testdata("stem.onnx"));
            let flags = ["--epochs", "1", "--views", "2", "--threads", threads, "--seed", seed];
            done(&[&["replace", &stem, "--holdout", "signs:80", "--out", &out][..], &flags[..]].concat());
            std::fs::read(&out).unwrap()
        })
        .collect();
    assert!(files[0] == files[1] && files[0] != files[2]);
}

#[test]
fn pictures_are_classified() {
    let folder = Folder::new();
    let model = folder.put("small.sgm", crate::support::small_defended());
    // 16x16 grey, larger than the input.
    let picture = folder.put("x.ppm", [&b"P6\n16 16\n255\n"[..], &[100; 768]].concat());
    let told = done(&["infer", &model, &picture, &picture, "--top", "3", "--json"]);
    assert_eq!(told.lines().count(), 2);
    for label in ["stop", "yield", "pass"] {
        assert!(told.contains(&format!("\"label\":\"{label}\"")), "{told}");
    }
    let one = done(&["infer", &model, &picture]);
    assert!(one.starts_with(&format!("{picture}: ")));
    // Those before an unreadable one are classified.
    let text = folder.put("text.png", "no picture");
    let ran = run(&["infer", &model, &picture, &text, &picture]);
    assert_eq!((ran.code, ran.out, ran.err.contains("text.png")), (2, one, true), "{}", ran.err);
}

#[test]
fn an_output_is_not_written_over_what_is_read() {
    let folder = Folder::new();
    let small = crate::support::small_defended();
    let (model, x) = (folder.put("small.sgm", &small), folder.put("x.npy", npy_f32(&[2, 3, 8, 8], &noise(384))));
    refused(&["export", &model, "--out", &model], &["small.sgm: is the model, which it would replace"]);
    for (out, what) in [(&model, "small.sgm: is the model"), (&x, "x.npy: is the input")] {
        refused(&["run", &model, "--input", &x, "--output", out], &[what]);
    }
    refused(&["inspect", &model, "--tensors"], &["small.sgm: ", "--tensors"]);
    assert_eq!(std::fs::read(&model).unwrap(), small);
}

#[test]
fn any_onnx_model_runs_and_says_on_what() {
    let folder = Folder::new();
    let (x, y) = (folder.put("x.npy", npy_f32(&[2, 3, 8, 8], &noise(384))), folder.at("y.npy"));
    let ran = run(&["run", &testdata("squeeze.onnx"), "--input", &x, "--output", &y]);
    assert!(ran.code == 0 && ran.err.contains("backend native: "), "{}", ran.err);
    assert_eq!(read_npy(&y).0, [2, 7]);
    let x = folder.put("x.npy", npy_f32(&[2, 3, 32, 32], &noise(6144)));
    let maps = ["native", "tract"].map(|backend| {
        let at = ["--at", "/3/Add_output_0", "--backend", backend];
        done(&[&["run", &testdata("stem.onnx"), "--input", &x, "--output", &y][..], &at[..]].concat());
        read_npy(&y)
    });
    assert!(maps[0].0.len() == 4 && maps[0].0 == maps[1].0);
    assert!(difference(&maps[0].1, &maps[1].1) <= TOLERANCE);

    let told = done(&["inspect", &testdata("full.onnx"), "--tensors"]);
    assert!(told.contains("lowers        yes") && told.contains("tensor        /stem/stem.5/Add_output_0"), "{told}");
    let told = done(&["inspect", &testdata("full.onnx"), "--json"]);
    assert!(told.contains("\"lowers\":true") && told.lines().count() == 1, "{told}");
}

#[test]
fn a_whole_classifier_taken_for_a_stem_is_told_of() {
    let folder = Folder::new();
    let (whole, out) = (testdata("full.onnx"), folder.at("out.sgm"));
    let ran = run(&["pack", &whole, "--out", &out]);
    assert!(
        ran.code == 0 && ran.err.contains("full.onnx: its last layer is dense") && ran.err.contains("--at"),
        "{}",
        ran.err
    );
    let ran = run(&["pack", &whole, "--at", "/stem/stem.5/Add_output_0", "--out", &out]);
    assert_eq!((ran.code, &ran.err[..]), (0, ""));
}

#[test]
fn bench_prints_a_line_a_case() {
    let flags = ["--batch", "1,2", "--threads", "1,2", "--backend", "native,tract", "--rounds", "2", "--json"];
    let told = done(&[&["bench", &testdata("stem.onnx")][..], &flags[..]].concat());
    assert_eq!(told.lines().count(), 8);
    for line in told.lines() {
        let keys = ["batch", "threads", "median_ms_per_image", "p95_ms_per_image", "images_per_second"];
        assert!(keys.iter().all(|key| number(line, key) > 0.0), "{line}");
        assert!(line.starts_with("{\"backend\":\"native\",") || line.starts_with("{\"backend\":\"tract\","), "{line}");
    }
    assert!(
        done(&["bench", &testdata("stem.onnx"), "--isa", "portable", "--batch", "1", "--rounds", "1"])
            .contains("native")
    );
}
