//! Tells the kernels whether the target has the DSP instructions of ARMv7E-M: stable compilers do not show that feature.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(cortex_m_dsp)");
    if std::env::var("TARGET").is_ok_and(|target| target.starts_with("thumbv7em")) {
        println!("cargo::rustc-cfg=cortex_m_dsp");
    }
}
