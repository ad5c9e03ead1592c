//! The kernels' source, and its compilation by NVRTC for one architecture, kept in the user's cache directory.

use super::backend::Kernel;
use crate::engine::{EngineError, Precision};
use cudarc::nvrtc::sys;
use std::ffi::CString;
use std::path::PathBuf;
use std::ptr::{null, null_mut};

/// All kernels, one translation unit.
pub(super) const SOURCE: &str = concat!(
    include_str!("kernels/common.cuh"),
    include_str!("kernels/picture.cu"),
    include_str!("kernels/conv.cu"),
    include_str!("kernels/weights.cu"),
    include_str!("kernels/tile.cu"),
    include_str!("kernels/tile_weights.cu"),
    include_str!("kernels/norm.cu"),
    include_str!("kernels/block.cu"),
    include_str!("kernels/tail.cu"),
    include_str!("kernels/loss.cu"),
    include_str!("kernels/feature.cu"),
);

/// Whether NVRTC can be loaded.
pub(super) fn present() -> bool {
    // SAFETY: loading the library runs its constructors, which have no requirements.
    unsafe { sys::is_culib_present() }
}

/// NVRTC's version; it must be present.
pub(super) fn version() -> Result<(i32, i32), EngineError> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both pointers are to integers that outlive the call.
    check("version", unsafe { sys::nvrtcVersion(&mut major, &mut minor) })?;
    Ok((major, minor))
}

fn check(what: &str, result: sys::nvrtcResult) -> Result<(), EngineError> {
    match result {
        sys::nvrtcResult::NVRTC_SUCCESS => Ok(()),
        other => Err(EngineError::Unavailable(format!("--device cuda: NVRTC ({what}) failed: {other:?}"))),
    }
}

/// A program of NVRTC, destroyed with it.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program was created and not destroyed yet; nothing uses it afterwards.
        let _ = unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
    }
}

/// The name that the kernels know a precision by.
pub(super) const fn defined(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "F32",
        Precision::Bf16 => "BF16",
    }
}

/// The kernels as a binary for an architecture such as `sm_90`.
pub(super) fn compile(architecture: &str, precision: Precision) -> Result<Vec<u8>, EngineError> {
    let text = |s: &str| CString::new(s).map_err(|e| EngineError::Failed(format!("kernels: {e}")));
    let (source, name) = (text(SOURCE)?, text("stemguard.cu")?);
    let options = [
        text(&format!("--gpu-architecture={architecture}"))?,
        text("--std=c++17")?,
        text(&format!("-D{}", defined(precision)))?,
    ];
    let options = options.each_ref().map(|o| o.as_ptr());
    let mut program = null_mut();
    // SAFETY: source and name are strings that outlive the program; no headers are given.
    check("program", unsafe {
        sys::nvrtcCreateProgram(&mut program, source.as_ptr(), name.as_ptr(), 0, null(), null())
    })?;
    let program = Program(program);
    // SAFETY: the options are as many strings as told.
    let compiled = unsafe { sys::nvrtcCompileProgram(program.0, options.len() as i32, options.as_ptr()) };
    if compiled != sys::nvrtcResult::NVRTC_SUCCESS {
        let mut len = 0;
        // SAFETY: the length is an integer that outlives the call.
        check("log", unsafe { sys::nvrtcGetProgramLogSize(program.0, &mut len) })?;
        let mut log = vec![0u8; len];
        // SAFETY: the log has room for as many bytes as the call before told.
        check("log", unsafe { sys::nvrtcGetProgramLog(program.0, log.as_mut_ptr().cast()) })?;
        let log = String::from_utf8_lossy(&log);
        let first = log.lines().find(|l| l.contains("error")).unwrap_or("no log");
        return Err(EngineError::Unavailable(format!(
            "--device cuda: kernels do not compile for {architecture}: {compiled:?}: {}",
            first.trim_end_matches('\0')
        )));
    }
    let mut len = 0;
    // SAFETY: the length is an integer that outlives the call.
    check("binary", unsafe { sys::nvrtcGetCUBINSize(program.0, &mut len) })?;
    let mut binary = vec![0u8; len];
    // SAFETY: the binary has room for as many bytes as the call before told.
    check("binary", unsafe { sys::nvrtcGetCUBIN(program.0, binary.as_mut_ptr().cast()) })?;
    Ok(binary)
}

/// Where the binary for an architecture and a precision is kept between runs; nowhere without a home.
pub(super) fn cached(architecture: &str, precision: Precision, version: (i32, i32)) -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache"));
    let dir = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|d| d.is_absolute()).or_else(home)?;
    let source = crate::trap::fingerprint(&SOURCE);
    let (precision, (major, minor)) = (defined(precision), version);
    Some(dir.join("stemguard").join(format!("kernels-{source}-{architecture}-{precision}-{major}.{minor}.cubin")))
}

/// Whether a binary names every kernel of a precision.
pub(super) fn whole(binary: &[u8], precision: Precision) -> bool {
    let has = |name: &str| binary.windows(name.len()).any(|w| w == name.as_bytes());
    binary.starts_with(b"\x7fELF") && Kernel::all(precision).all(|k| has(k.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_compiles() {
        if !present() {
            crate::skip::skipped("nvrtc", "libnvrtc is not on the loader's path");
            return;
        }
        for architecture in ["sm_80", "sm_90"] {
            for precision in [Precision::F32, Precision::Bf16] {
                let binary = compile(architecture, precision).expect("compiles");
                assert!(whole(&binary, precision), "{architecture}, {precision:?}: a kernel is missing");
            }
        }
        assert!(matches!(compile("sm_1", Precision::F32), Err(EngineError::Unavailable(_))));
    }
}
