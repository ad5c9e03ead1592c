//! The command without ONNX, and with data sets of bytes and PPM alone.

use crate::support::{Folder, done, noise, npy_f32, read_npy, refused, small_defended};

#[test]
#[cfg_attr(any(feature = "onnx", feature = "data"), ignore = "needs a lean command line: STEMGUARD_COMMAND")]
fn artifacts_run_and_the_rest_is_told_to_be_missing() {
    let folder = Folder::new();
    let model = folder.put("small.sgm", small_defended());
    assert!(done(&["inspect", &model]).contains("linear, 3 classes"));
    let (x, y) = (folder.put("x.npy", npy_f32(&[2, 3, 8, 8], &noise(384))), folder.at("y.npy"));
    done(&["run", &model, "--input", &x, "--output", &y]);
    assert_eq!(read_npy(&y).0, [2, 3]);
    let picture = folder.put("x.ppm", [&b"P6\n# eight\n8 8\n255\n"[..], &[100; 192]].concat());
    assert!(done(&["infer", &model, &picture, "--top", "3"]).contains("yield"));
    refused(&["infer", &model, &folder.put("y.ppm", b"P6 9 9 255 ")], &["y.ppm", "9x9"]);

    let labels = ["pass", "stop", "yield"];
    for (i, label) in (0u8..24).zip(labels.iter().cycle()) {
        let pixels: Vec<u8> = (0..192u8).map(|k| k.wrapping_mul(3).wrapping_add(i * 10)).collect();
        folder.put(&format!("clean/{label}/{i}.ppm"), [&b"P6 8 8 255\n"[..], &pixels].concat());
    }
    let clean = format!("folder:{}", folder.at("clean"));
    assert!(done(&["eval", &model, "--data", &clean, "--json"]).contains("\"n\":24"));
    let renewed = folder.at("renewed.sgm");
    let settings = ["--head", "linear", "--batch", "8", "--epochs", "2"];
    done(&[&["replace", &model, "--holdout", &clean, "--out", &renewed], &settings[..]].concat());
    assert!(done(&["eval", &renewed, "--data", &clean]).contains("ACC"));
    folder.put("clean/pass/large.ppm", [&b"P6 9 9 255\n"[..], &[0; 243]].concat());
    refused(&["eval", &model, "--data", &clean], &["large.ppm", "does not resize"]);

    let out = folder.at("out");
    let lacks = |args: &[&str]| refused(args, &["this build lacks"]);
    lacks(&["inspect", &folder.put("m.onnx", b"x")]);
    lacks(&["pack", "m.onnx", "--out", &out]);
    lacks(&["export", &model, "--out", &out]);
    lacks(&["eval", &model, "--data", "signs"]);
    lacks(&["replace", &model, "--holdout", "signs", "--out", &out]);
    lacks(&["run", &model, "--input", &x, "--output", &y, "--backend", "tract"]);
}
