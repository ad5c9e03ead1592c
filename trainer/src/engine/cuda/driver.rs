//! A GPU through the CUDA driver: memory, kernels, captured graphs. Libraries are looked for before cudarc loads them, which
//! panics where one is missing.

use super::backend::{Argument, Backend, Kernel, Launch, Region};
use super::compile;
use crate::engine::{EngineError, Precision};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaGraph, CudaSlice, CudaStream, DeviceRepr, DriverError, LaunchConfig, PushKernelArg,
    sys,
};
use cudarc::nvrtc::Ptx;
use std::sync::Arc;
use stemguard_runtime::files;

// SAFETY: `repr(C)`, its words first; a kernel reads from them as many bytes as its structure has.
unsafe impl DeviceRepr for Argument {}

/// Oldest driver, as its CUDA version.
const OLDEST: i32 = 12_000;

/// A GPU that the driver shows.
pub(super) struct Driver {
    precision: Precision,
    // Dropped in this order, when the device is done.
    graphs: Vec<CudaGraph>,
    /// By number; none of the other precision's.
    functions: Vec<Option<CudaFunction>>,
    memory: Vec<CudaSlice<u8>>,
    stream: Arc<CudaStream>,
}

fn unavailable(why: impl std::fmt::Display) -> EngineError {
    EngineError::Unavailable(format!("--device cuda: {why}"))
}

fn told(what: &str, e: DriverError) -> EngineError {
    let text = e.error_string().map_or_else(|_| format!("{:?}", e.0), |s| s.to_string_lossy().into_owned());
    EngineError::Failed(format!("CUDA engine: {what}: {text}"))
}

/// How many GPUs there are, with a driver and an NVRTC that fit each other.
pub(super) fn probe() -> Result<usize, EngineError> {
    // SAFETY: loading the library runs its constructors, which have no requirements.
    if !unsafe { sys::is_culib_present() } {
        return Err(unavailable("no NVIDIA driver found (libcuda)"));
    }
    let mut version = 0;
    // SAFETY: the version is an integer that outlives the call; every driver has the function.
    let asked = unsafe { sys::cuDriverGetVersion(&mut version) };
    if asked != sys::CUresult::CUDA_SUCCESS || version < OLDEST {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        return Err(unavailable(format!("the NVIDIA driver is too old (CUDA {major}.{minor}, 12.0 is needed)")));
    }
    match CudaContext::device_count() {
        Ok(0) | Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Err(unavailable("no NVIDIA GPU found")),
        Err(e) => Err(unavailable(told("start", e))),
        Ok(_) if !compile::present() => {
            Err(unavailable("libnvrtc not found: install CUDA's NVRTC, and add its folder to the loader's path"))
        }
        Ok(gpus) => {
            let (major, minor) = compile::version()?;
            if major > version / 1000 {
                return Err(unavailable(format!(
                    "NVRTC {major}.{minor} is newer than the driver (CUDA {}): install NVRTC {}",
                    version / 1000,
                    version / 1000
                )));
            }
            Ok(usize::try_from(gpus).unwrap_or_default())
        }
    }
}

impl Driver {
    /// A GPU with the kernels loaded, compiled unless an earlier run left them.
    pub(super) fn open(gpu: usize, precision: Precision) -> Result<Self, EngineError> {
        probe()?;
        let context = CudaContext::new(gpu).map_err(|e| unavailable(told("the GPU cannot be used", e)))?;
        let (major, minor) = context.compute_capability().map_err(|e| told("capability", e))?;
        if major < 8 {
            return Err(unavailable(format!("a GPU of compute capability {major}.{minor}; 8.0 is needed")));
        }
        // SAFETY: everything runs in one stream, in order.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(|e| told("stream", e))?;
        let architecture = format!("sm_{major}{minor}");
        let kept = compile::cached(&architecture, precision, compile::version()?);
        let left = kept.as_ref().and_then(|p| std::fs::read(p).ok()).filter(|b| compile::whole(b, precision));
        let binary = match left {
            Some(binary) => binary,
            None => {
                let binary = compile::compile(&architecture, precision)?;
                if let Some(path) = &kept {
                    // A cache that cannot be written costs time only.
                    let _ = path.parent().map(std::fs::create_dir_all);
                    let _ = files::write(path, &binary);
                }
                binary
            }
        };
        let module =
            context.load_module(Ptx::from_binary(binary)).map_err(|e| unavailable(told("kernels do not load", e)))?;
        let mut functions = vec![None; Kernel::ALL.len()];
        for k in Kernel::all(precision) {
            let function = module.load_function(k.name()).map_err(|e| told(k.name(), e))?;
            if let Some(place) = functions.get_mut(k as usize) {
                *place = Some(function);
            }
        }
        Ok(Self { precision, stream, functions, memory: Vec::new(), graphs: Vec::new() })
    }

    fn capture(&self, launches: &[Launch]) -> Result<Option<CudaGraph>, DriverError> {
        self.stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        let mut launched = Ok(());
        for l in launches {
            let Some(Some(function)) = self.functions.get(l.kernel as usize) else {
                launched = launched.and(Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND)));
                continue;
            };
            let [x, y, z] = l.grid;
            let config = LaunchConfig {
                grid_dim: (x, y, z),
                block_dim: (l.kernel.threads(self.precision), 1, 1),
                shared_mem_bytes: 0,
            };
            let mut builder = self.stream.launch_builder(function);
            builder.arg(&l.argument);
            // SAFETY: the caller of `program` answers for the argument; the block is what the kernel is compiled for.
            launched = launched.and(unsafe { builder.launch(config) }.map(|_| ()));
        }
        // A capture is ended even where a launch failed.
        let graph = self.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        launched.and(graph)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // What fails here has failed before, where it was told.
        let _ = self.stream.synchronize();
    }
}

impl Backend for Driver {
    fn precision(&self) -> Precision {
        self.precision
    }

    fn allocate(&mut self, bytes: usize) -> Result<Region, EngineError> {
        // SAFETY: whatever is in the memory is a byte.
        let memory = unsafe { self.stream.alloc::<u8>(bytes) }.map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let held: usize = self.memory.iter().map(CudaSlice::len).sum();
                let more = (held + bytes) >> 20;
                unavailable(format!("out of GPU memory (at least {more} MiB are needed); lower --batch"))
            }
            _ => told("memory", e),
        })?;
        let address = {
            use cudarc::driver::DevicePtr as _;
            memory.device_ptr(&self.stream).0
        };
        self.memory.push(memory);
        Ok(Region { address, bytes, index: self.memory.len() - 1 })
    }

    fn write(&mut self, to: Region, bytes: &[u8]) -> Result<(), EngineError> {
        let Some(memory) = self.memory.get_mut(to.index).filter(|m| m.len() >= bytes.len()) else {
            return Err(EngineError::Failed("CUDA engine: a copy past a region".into()));
        };
        // The bytes are the caller's again afterwards.
        let copied = self.stream.memcpy_htod(bytes, memory).and_then(|()| self.stream.synchronize());
        copied.map_err(|e| told("copy to the GPU", e))
    }

    fn read(&mut self, from: Region, first: usize, bytes: &mut [u8]) -> Result<(), EngineError> {
        let view = self.memory.get(from.index).and_then(|m| m.try_slice(first..first + bytes.len()));
        let Some(view) = view else {
            return Err(EngineError::Failed("CUDA engine: a copy past a region".into()));
        };
        let copied = self.stream.memcpy_dtoh(&view, bytes).and_then(|()| self.stream.synchronize());
        copied.map_err(|e| told("copy from the GPU", e))
    }

    unsafe fn program(&mut self, launches: Vec<Launch>) -> Result<usize, EngineError> {
        let graph = self.capture(&launches).map_err(|e| told("graph", e))?;
        self.graphs.push(graph.ok_or_else(|| EngineError::Failed("CUDA engine: an empty graph".into()))?);
        Ok(self.graphs.len() - 1)
    }

    fn run(&mut self, program: usize) -> Result<(), EngineError> {
        let Some(graph) = self.graphs.get(program) else {
            return Err(EngineError::Failed("CUDA engine: no such program".into()));
        };
        graph.launch().map_err(|e| told("step", e))
    }
}
