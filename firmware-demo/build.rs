//! Draws the pictures that the image embeds, and hands the linker its script.

use std::path::PathBuf;
use std::{env, fs};
use stemguard_runtime::data::{LoadOptions, Part, Source, Spec, load_part};

/// Test pictures.
const TESTED: usize = 60;
/// Clean pictures that the device is given one at a time, with their labels.
const STREAMED: usize = 320;
/// Clean pictures that the self-test keeps.
const KEPT: usize = 200;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=memory.x");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    // All of the test part, which training never sees, and each picture once; a fifth as many as are asked for.
    let source = Source::Signs(5 * (TESTED + STREAMED + KEPT));
    let spec = Spec { source, part: Some(Part::Test) };
    let all = load_part(&spec, &LoadOptions::default(), Part::Test).expect("signs are drawn");
    let part = |from: usize, n: usize| all.subset(&(from..from + n).collect::<Vec<_>>());
    let sets =
        [("tested", part(0, TESTED)), ("streamed", part(TESTED, STREAMED)), ("kept", part(TESTED + STREAMED, KEPT))];
    for (name, set) in sets {
        let labels: Vec<u8> = set.labels.iter().map(|&label| label as u8).collect();
        fs::write(out.join(format!("{name}.pictures")), &set.pixels).expect("OUT_DIR can be written");
        fs::write(out.join(format!("{name}.labels")), labels).expect("OUT_DIR can be written");
    }
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none") {
        let mut regions = fs::read_to_string("memory.x").expect("memory.x is beside this file");
        if env::var_os("CARGO_FEATURE_RESIDUAL").is_some() {
            regions = regions.replace("LENGTH = 320K", "LENGTH = 4M");
        }
        fs::write(out.join("memory.x"), regions).expect("OUT_DIR can be written");
        // Names of interrupts, of which the image uses none.
        fs::write(out.join("device.x"), "").expect("OUT_DIR can be written");
        println!("cargo::rustc-link-search={}", out.display());
        println!("cargo::rustc-link-arg-bins=-Tlink.x");
        println!("cargo::rustc-link-arg-bins=--nmagic");
        // Relocations stay in the file, so that who calls what can be read from it; nothing of them is loaded.
        println!("cargo::rustc-link-arg-bins=--emit-relocs");
    }
}
