//! Work on many pictures, spread over threads of its own; where none can be started, the calling thread does it.

#[cfg(feature = "parallel")]
use rayon::{ThreadPool, ThreadPoolBuilder, prelude::*};
#[cfg(feature = "parallel")]
use std::sync::OnceLock;

#[cfg(feature = "parallel")]
static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();

/// How many threads read pictures and change them; 0: one for each core, as without this. What is said first in a process holds;
/// without the feature `parallel` it is one.
pub fn set_threads(threads: usize) {
    #[cfg(feature = "parallel")]
    POOL.get_or_init(|| ThreadPoolBuilder::new().num_threads(threads).build().ok());
    #[cfg(not(feature = "parallel"))]
    let _ = threads;
}

/// Fills each picture of `pixels` (`step` bytes each) by its number. The error returned is that of the lowest number that failed.
pub(super) fn fill<E, F>(pixels: &mut [u8], step: usize, one: F) -> Result<(), E>
where
    E: Send,
    F: Fn(usize, &mut [u8]) -> Result<(), E> + Sync,
{
    #[cfg(feature = "parallel")]
    {
        set_threads(0);
        if let Some(pool) = POOL.get().and_then(Option::as_ref) {
            let pictures = pixels.par_chunks_exact_mut(step.max(1)).enumerate();
            let failure = pool.install(|| pictures.find_map_first(|(i, out)| one(i, out).err()));
            return failure.map_or(Ok(()), Err);
        }
    }
    pixels.chunks_exact_mut(step.max(1)).enumerate().try_for_each(|(i, out)| one(i, out))
}
