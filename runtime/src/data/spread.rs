//! Work on many pictures, spread over threads of its own; where none can be started, the calling thread does it.

#[cfg(feature = "parallel")]
use rayon::{ThreadPool, ThreadPoolBuilder, prelude::*};
#[cfg(feature = "parallel")]
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

static THREADS: AtomicUsize = AtomicUsize::new(0);

/// How many threads read pictures and change them; 0: one for each core, as without this. What is said before the first picture holds;
/// without the feature `parallel` it is one.
pub fn set_threads(threads: usize) {
    THREADS.store(threads, Ordering::Relaxed);
}

/// The threads, begun with the first pictures.
#[cfg(feature = "parallel")]
fn pool() -> Option<&'static ThreadPool> {
    static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();
    let begin = || ThreadPoolBuilder::new().num_threads(THREADS.load(Ordering::Relaxed)).build().ok();
    POOL.get_or_init(begin).as_ref()
}

/// Fills each picture of `pixels` (`step` bytes each) by its number. The error returned is that of the lowest number that failed.
pub(super) fn fill<E, F>(pixels: &mut [u8], step: usize, one: F) -> Result<(), E>
where
    E: Send,
    F: Fn(usize, &mut [u8]) -> Result<(), E> + Sync,
{
    #[cfg(feature = "parallel")]
    if let Some(pool) = pool() {
        let pictures = pixels.par_chunks_exact_mut(step.max(1)).enumerate();
        let failure = pool.install(|| pictures.find_map_first(|(i, out)| one(i, out).err()));
        return failure.map_or(Ok(()), Err);
    }
    pixels.chunks_exact_mut(step.max(1)).enumerate().try_for_each(|(i, out)| one(i, out))
}
