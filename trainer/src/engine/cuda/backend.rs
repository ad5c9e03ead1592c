//! What the engine asks of a device: memory, copies, and programs, which are kernels one after the other.

use crate::engine::{EngineError, Precision};
use bytemuck::Pod;

/// A stretch of device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    /// Where it is, for kernels.
    pub(super) address: u64,
    /// Bytes.
    pub(super) bytes: usize,
    /// Which allocation of its device.
    pub(super) index: usize,
}

/// Words of the largest kernel argument.
const WORDS: usize = 48;

/// A kernel's argument.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
pub(super) struct Argument {
    words: [u64; WORDS],
    bytes: usize,
}

impl Argument {
    /// Of a structure of at most 384 bytes.
    pub(super) fn of<T: Pod>(value: &T) -> Self {
        const { assert!(size_of::<T>() <= 8 * WORDS) };
        let mut words = [0; WORDS];
        bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..size_of::<T>()].copy_from_slice(bytemuck::bytes_of(value));
        Self { words, bytes: size_of::<T>() }
    }

    /// Where it stands.
    #[cfg(test)]
    pub(super) fn words(&self) -> &[u64; WORDS] {
        &self.words
    }

    /// Bytes of the structure.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// One launch of a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Launch {
    /// Which.
    pub(super) kernel: Kernel,
    /// Blocks.
    pub(super) grid: [u32; 3],
    /// Its argument.
    pub(super) argument: Argument,
}

/// Declares the kernels with their threads a block, in `f32` and in bf16 where that differs; 0: there is none.
macro_rules! kernels {
    ($($kernel:ident $name:literal $threads:tt),* $(,)?) => {
        /// A kernel.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Kernel {
            $(#[doc = $name] $kernel,)*
        }

        impl Kernel {
            /// All of them, in order.
            pub(super) const ALL: &[Self] = &[$(Self::$kernel,)*];

            /// Those of a precision.
            pub(super) fn all(precision: Precision) -> impl Iterator<Item = Self> {
                Self::ALL.iter().copied().filter(move |k| k.threads(precision) > 0)
            }

            /// Its name in the source.
            pub(super) const fn name(self) -> &'static str {
                match self {
                    $(Self::$kernel => $name,)*
                }
            }

            /// Threads of a block.
            pub(super) const fn threads(self, precision: Precision) -> u32 {
                let (plain, half) = match self {
                    $(Self::$kernel => kernels!(@ $threads),)*
                };
                match precision {
                    Precision::F32 => plain,
                    Precision::Bf16 => half,
                }
            }
        }
    };
    (@ ($plain:literal, $half:literal)) => { ($plain, $half) };
    (@ $threads:literal) => { ($threads, $threads) };
}

kernels! {
    Begin "begin" 1, Pictures "pictures" 256,
    Conv16 "conv_16" (128, 0), Conv32 "conv_32" (128, 0), Conv64 "conv_64" (128, 0),
    Gradient16 "gradient_16" (128, 0), Gradient32 "gradient_32" (128, 0), Gradient64 "gradient_64" (128, 0),
    Weights16 "weights_16" (144, 0), Weights32 "weights_32" (144, 0), Weights64 "weights_64" (144, 0),
    Pack "pack" (0, 256),
    Tile16 "tile_16" (0, 128), Tile32 "tile_32" (0, 128), Tile64 "tile_64" (0, 128),
    Thin16 "thin_16" (0, 128), Thin32 "thin_32" (0, 128), Thin64 "thin_64" (0, 128),
    TileWeights16 "tile_weights_16" (0, 192), TileWeights32 "tile_weights_32" (0, 192),
    ThinWeights16 "thin_weights_16" (0, 192), ThinWeights32 "thin_weights_32" (0, 192),
    Reduce "reduce" 256, Columns "columns" 128,
    NormForward "norm_forward" 256, NormRunning "norm_running" 128, NormBackward "norm_backward" 256,
    NormGradient "norm_gradient" 256,
    JoinedForward "joined_forward" 256, JoinedBackward "joined_backward" 128,
    PoolForward "pool_forward" 256, PoolBackward "pool_backward" 256,
    TailForward "tail_forward" 256, TailWeights "tail_weights" 256, TailSums "tail_sums" 128,
    TailGradient "tail_gradient" 256,
    Reconstruction "reconstruction" 256, Metrics "metrics" 256, Update "update" 256,
    Store "store" 256, Gather "gather" 256, Dropout "dropout" 256, ChannelSums "channel_sums" 128,
}

/// A device with the kernels of one precision. Work happens in the order it is asked for; reads wait for it.
pub(super) trait Backend {
    /// Of the kernels: what the cells of maps are.
    fn precision(&self) -> Precision;

    /// Memory for `bytes`, whatever is in it.
    fn allocate(&mut self, bytes: usize) -> Result<Region, EngineError>;

    /// Copies to the start of a region.
    fn write(&mut self, to: Region, bytes: &[u8]) -> Result<(), EngineError>;

    /// Copies from a region, from byte `first` on.
    fn read(&mut self, from: Region, first: usize, bytes: &mut [u8]) -> Result<(), EngineError>;

    /// Makes a program of launches; its number.
    ///
    /// # Safety
    /// Every argument must be its kernel's structure, and every address in it that of a region of this device which holds all
    /// that the kernel reads or writes there.
    unsafe fn program(&mut self, launches: Vec<Launch>) -> Result<usize, EngineError>;

    /// Runs a program.
    fn run(&mut self, program: usize) -> Result<(), EngineError>;
}
