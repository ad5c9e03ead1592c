//! Whether this machine has the memory that a training step takes: where it has not, systems end the program without a word.

use super::EngineError;
use crate::model::TrapNet;
use std::path::Path;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

/// Bytes that this machine, the control group that this program is in, or its limit of addresses (`ulimit -v`) has left; all there could
/// be where none of them tells.
fn left() -> u64 {
    free().min(addresses())
}

/// Of memory.
fn free() -> u64 {
    let all = System::new_with_specifics(RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram()));
    let free = all.available_memory();
    if all.total_memory() == 0 || free == 0 {
        return u64::MAX;
    }
    // What a group holds of files can be dropped: only the rest counts.
    all.cgroup_limits().map_or(free, |group| free.min(group.total_memory.saturating_sub(group.rss)))
}

/// Of addresses.
fn addresses() -> u64 {
    let number = |file: &str, name: &str| {
        let text = std::fs::read_to_string(Path::new("/proc/self").join(file)).ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok())
    };
    match (number("limits", "Max address space"), number("status", "VmSize:")) {
        (Some(limit), Some(mapped)) => limit.saturating_sub(1024 * mapped),
        _ => u64::MAX,
    }
}

/// Refuses a batch whose maps alone take more than there is.
///
/// # Errors
/// [`EngineError::Unavailable`] with both in it.
pub(crate) fn check(net: &TrapNet, batch: usize) -> Result<(), EngineError> {
    within(left(), net, batch)
}

fn within(left: u64, net: &TrapNet, batch: usize) -> Result<(), EngineError> {
    let takes = 4 * net.kept_len() as u64 * batch as u64;
    if takes <= left {
        return Ok(());
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    Err(EngineError::Unavailable(format!(
        "--batch: a step on {batch} pictures takes more than {} MiB of memory, of which {} MiB are free; lower it",
        mib(takes),
        mib(left)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{CpuEngine, Lesson, Objective, Optimizer};
    use crate::model::Architecture;
    use crate::nn::loss::Reconstruction;
    use dfdx::prelude::Cpu;
    use stemguard_runtime::kernels::simd::Simd;
    use stemguard_runtime::shape::Shape;

    /// What is said to be taken at least is taken, and most of what is.
    #[test]
    fn a_step_takes_what_is_said() {
        for (network, side) in [(Architecture::default(), 32), (Architecture::RESNET34, 64)] {
            let net =
                TrapNet::new(network, Shape::new(side, side, 3), 10, true, 0, &Cpu::default()).expect("a network");
            let (n, said) = (4, net.kept_len());
            let objective = Objective {
                reconstruction: Reconstruction { mse: 1.0, tv: 1.0 },
                optimizer: Optimizer::Sgd,
                decay: 0.0,
            };
            let mut engine = CpuEngine::new(net, objective, Simd::new(1), Cpu::default());
            let pictures = vec![0.5; n * engine.net.input.len()];
            engine.gradients(pictures, Lesson::learn(&vec![0; n])).expect("a step");
            let taken = engine.pooled_len() / n;
            assert!((said..=2 * said).contains(&taken), "{network}: {said} of {taken}");
            let left = 4 * (n * said) as u64;
            within(left, &engine.net, n).expect("fits");
            let refused = within(left - 1, &engine.net, n).expect_err("does not fit").to_string();
            assert!(refused.contains("--batch") && refused.contains("lower it"), "{refused}");
        }
    }
}
