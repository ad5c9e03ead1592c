//! The kernels on the host: the same source, built by g++ behind `kernels/mirror.hpp`, driven by the same launches. For tests.

use super::backend::{Backend, Kernel, Launch, Region};
use super::compile::{SOURCE, defined};
use crate::engine::{EngineError, Precision};
use libloading::Library;
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

/// `name(argument, its bytes, grid, threads, falling) -> 0`
type Entry = unsafe extern "C" fn(*const u64, u32, *const u32, u32, i32) -> i32;

/// The kernels as one library.
struct Built {
    _library: Library,
    /// By number; none of the other precision's.
    entries: Vec<Option<Entry>>,
}

/// Kernels keep their shared memory and places in statics: one launch at a time.
static TURN: Mutex<()> = Mutex::new(());
/// In `f32`, and in bf16.
static BUILT: [OnceLock<Option<Built>>; 2] = [OnceLock::new(), OnceLock::new()];

/// Bytes in front of and behind every region, which nobody may touch.
const GUARD: usize = 256;
/// What fresh memory and guards are filled with: NaN as floats.
const FILL: u8 = 0xff;

fn build(precision: Precision) -> Option<Built> {
    if Command::new("g++").arg("--version").output().is_err() {
        return None;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (source, library) = (dir.path().join("kernels.cpp"), dir.path().join("kernels.so"));
    std::fs::write(&source, [include_str!("kernels/mirror.hpp"), SOURCE].concat()).expect("written");
    let flags = [
        "-std=c++20",
        "-O2",
        "-U_FORTIFY_SOURCE",
        "-fno-strict-aliasing",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fPIC",
        "-shared",
        "-o",
    ];
    // As NVRTC does, sums take products in unrounded, where this machine can.
    #[cfg(target_arch = "x86_64")]
    let fused = if std::arch::is_x86_feature_detected!("fma") { &["-mfma", "-ffp-contract=fast"][..] } else { &[] };
    #[cfg(not(target_arch = "x86_64"))]
    let fused = &["-ffp-contract=fast"][..];
    let built = Command::new("g++")
        .arg(format!("-D{}", defined(precision)))
        .args(fused)
        .args(flags)
        .arg(&library)
        .arg(&source)
        .output()
        .expect("g++ runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    // SAFETY: the library was just built from the kernels and has no constructors beyond the C++ library's own.
    let library = unsafe { Library::new(&library) }.expect("loads");
    let entry = |k: Kernel| {
        // SAFETY: `mirror.hpp` defines each kernel's entry with this signature.
        *unsafe { library.get::<Entry>(k.name().as_bytes()) }.expect("every kernel has an entry")
    };
    let mut entries = vec![None; Kernel::ALL.len()];
    Kernel::all(precision).for_each(|k| entries[k as usize] = Some(entry(k)));
    Some(Built { _library: library, entries })
}

/// A device of host memory.
pub(super) struct Mirror {
    precision: Precision,
    built: &'static Built,
    /// Regions with their guards, and their bytes without.
    memory: Vec<(Vec<u128>, usize)>,
    programs: Vec<Vec<Launch>>,
    /// Whether threads and blocks run in falling order.
    pub(super) falling: bool,
}

impl Mirror {
    /// None where there is no g++, which is told.
    pub(super) fn new(precision: Precision) -> Option<Self> {
        let built = BUILT[precision as usize].get_or_init(|| build(precision)).as_ref();
        if built.is_none() {
            crate::skip::skipped("g++", "there is no g++");
        }
        Some(Self { precision, built: built?, memory: Vec::new(), programs: Vec::new(), falling: false })
    }

    fn bytes(&mut self, region: Region) -> &mut [u8] {
        let all: &mut [u8] = bytemuck::cast_slice_mut(&mut self.memory[region.index].0);
        &mut all[GUARD..][..region.bytes]
    }

    fn check(&self, l: &Launch) {
        for (words, bytes) in &self.memory {
            let all: &[u8] = bytemuck::cast_slice(words);
            let untouched = |bytes: &[u8]| bytes.iter().all(|&b| b == FILL);
            assert!(untouched(&all[..GUARD]) && untouched(&all[GUARD + bytes..]), "{:?} left a region", l.kernel);
        }
    }
}

impl Backend for Mirror {
    fn precision(&self) -> Precision {
        self.precision
    }

    fn allocate(&mut self, bytes: usize) -> Result<Region, EngineError> {
        let words = bytes.div_ceil(16) + 2 * GUARD / 16;
        self.memory.push((vec![u128::from_ne_bytes([FILL; 16]); words], bytes));
        let index = self.memory.len() - 1;
        Ok(Region { address: self.memory[index].0.as_mut_ptr() as u64 + GUARD as u64, bytes, index })
    }

    fn write(&mut self, to: Region, bytes: &[u8]) -> Result<(), EngineError> {
        self.bytes(to)[..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn read(&mut self, from: Region, first: usize, bytes: &mut [u8]) -> Result<(), EngineError> {
        bytes.copy_from_slice(&self.bytes(from)[first..][..bytes.len()]);
        Ok(())
    }

    unsafe fn program(&mut self, launches: Vec<Launch>) -> Result<usize, EngineError> {
        self.programs.push(launches);
        Ok(self.programs.len() - 1)
    }

    fn run(&mut self, program: usize) -> Result<(), EngineError> {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        for l in &self.programs[program] {
            let entry = self.built.entries[l.kernel as usize].expect("a kernel of this precision");
            let (argument, bytes) = (l.argument.words().as_ptr(), l.argument.bytes() as u32);
            // SAFETY: the caller of `program` answers for the argument; the entry refuses one of another size.
            let answer = unsafe {
                entry(argument, bytes, l.grid.as_ptr(), l.kernel.threads(self.precision), i32::from(self.falling))
            };
            assert_eq!(answer, 0, "{:?}: 1 is another number of threads, 2 another structure", l.kernel);
            self.check(l);
        }
        Ok(())
    }
}
