//! The command without ONNX and data sets.

use crate::support::{Folder, done, noise, npy_f32, read_npy, refused, small_defended};

#[test]
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

    let out = folder.at("out");
    let lacks = |args: &[&str]| refused(args, &["this build lacks"]);
    lacks(&["inspect", &folder.put("m.onnx", b"x")]);
    lacks(&["pack", "m.onnx", "--out", &out]);
    lacks(&["export", &model, "--out", &out]);
    lacks(&["eval", &model, "--data", "signs"]);
    lacks(&["replace", &model, "--holdout", "signs", "--out", &out]);
    lacks(&["run", &model, "--input", &x, "--output", &y, "--backend", "tract"]);
}
