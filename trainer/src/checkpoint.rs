//! Checkpoints: everything a run needs to go on, in one safetensors file, replaced whole after every epoch.
//!
//! Names are those of [`crate::model::TrapNet::visit`]; optimiser moments carry the prefix `first.` or `second.`. The header's
//! metadata holds the epochs and steps done and the fingerprint of the run's configuration.

use crate::engine::State;
use crate::error::Failure;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;
use stemguard_runtime::files;

/// The file of a course's last checkpoint.
pub const CHECKPOINT: &str = "checkpoint.safetensors";

/// The metadata entry that tells how far a run is.
const PROGRESS: &str = "stemguard";

/// How far a run is.
#[derive(Serialize, Deserialize)]
struct Progress {
    epochs: u32,
    steps: u64,
    fingerprint: String,
}

/// Writes a file, whole or not at all.
///
/// # Errors
/// [`Failure::Input`] naming the file.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    files::write(path, bytes).map_err(|e| Failure::file(path, format!("cannot be written: {e}")))
}

/// Writes the state after `epochs` epochs of the run with this fingerprint.
///
/// # Errors
/// [`Failure::Input`] naming the file.
pub fn write(path: &Path, state: &State, epochs: u32, fingerprint: &str) -> Result<(), Failure> {
    let other = |e: safetensors::SafeTensorError| Failure::Other(format!("checkpoint: {e}"));
    let mut views = Vec::with_capacity(state.tensors.len());
    for (name, values) in &state.tensors {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        views.push((name.as_str(), TensorView::new(Dtype::F32, vec![values.len()], bytes).map_err(other)?));
    }
    // One entry: a map of several would be written in any order, and the same state would have other bytes.
    let progress = Progress { epochs, steps: state.steps, fingerprint: fingerprint.to_owned() };
    let text = serde_json::to_string(&progress).map_err(|e| Failure::Other(format!("checkpoint: {e}")))?;
    let metadata = HashMap::from([(PROGRESS.to_owned(), text)]);
    write_whole(path, &safetensors::serialize(views, Some(metadata)).map_err(other)?)
}

/// A checkpoint's bytes, and what it says of itself.
fn progress(path: &Path) -> Result<(Vec<u8>, Progress), Failure> {
    let bad = |why: String| Failure::file(path, why);
    let bytes = std::fs::read(path).map_err(|e| bad(format!("cannot be read: {e}")))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(format!("not a checkpoint: {e}")))?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let text = metadata.get(PROGRESS).ok_or_else(|| bad(format!("not a checkpoint: no '{PROGRESS}'")))?;
    let progress: Progress = serde_json::from_str(text).map_err(|e| bad(format!("'{PROGRESS}': {e}")))?;
    if i32::try_from(progress.steps).is_err() {
        return Err(bad(format!("'{PROGRESS}': {} steps are too many", progress.steps)));
    }
    Ok((bytes, progress))
}

/// Whether this is a checkpoint of a run with another fingerprint.
pub fn is_of_another(path: &Path, fingerprint: &str) -> bool {
    progress(path).is_ok_and(|(_, progress)| progress.fingerprint != fingerprint)
}

/// Reads a checkpoint of the run with this fingerprint: its state and the epochs done.
///
/// # Errors
/// [`Failure::Input`] naming the file: unreadable, damaged, or of another run.
pub fn read(path: &Path, fingerprint: &str) -> Result<(State, u32), Failure> {
    let bad = |why: String| Failure::file(path, why);
    let (bytes, progress) = progress(path)?;
    if progress.fingerprint != fingerprint {
        return Err(bad("belongs to a run with another configuration".into()));
    }
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| bad(format!("damaged: {e}")))?;
    let mut state = State { steps: progress.steps, ..State::default() };
    for (name, view) in tensors.tensors() {
        if view.dtype() != Dtype::F32 {
            return Err(bad(format!("tensor '{name}' is not f32")));
        }
        let values: Vec<f32> =
            view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        if !values.iter().all(|v| v.is_finite()) {
            return Err(bad(format!("tensor '{name}' holds a value that is not finite")));
        }
        state.tensors.insert(name, values);
    }
    Ok((state, progress.epochs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use stemguard_runtime::rng::Rng;

    fn kept() -> (tempfile::TempDir, std::path::PathBuf, State) {
        let home = tempfile::tempdir().expect("a directory");
        let mut state = State { steps: 7, ..State::default() };
        state.tensors.insert("stem.0.weight".into(), vec![0.5, -1.25, 3.0]);
        state.tensors.insert("first.stem.0.weight".into(), vec![1e-9; 3]);
        let path = home.path().join(CHECKPOINT);
        write(&path, &state, 3, "of this run").expect("written");
        (home, path, state)
    }

    #[test]
    fn a_checkpoint_reads_as_it_was_written() {
        let (_home, path, state) = kept();
        let (read, epochs) = read(&path, "of this run").expect("sound");
        assert_eq!((read.tensors, read.steps, epochs), (state.tensors, 7, 3));
        assert!(!is_of_another(&path, "of this run") && is_of_another(&path, "of that run"));
        assert!(super::read(&path, "of that run").expect_err("refused").to_string().contains("another configuration"));
    }

    #[test]
    fn damage_is_told_with_the_file() {
        let (_home, path, _) = kept();
        let whole = std::fs::read(&path).expect("bytes");
        let told = |bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("written");
            super::read(&path, "of this run").map_err(|e| e.to_string())
        };
        for len in 0..whole.len() {
            let why = told(&whole[..len]).expect_err("cut short");
            assert!(why.contains(CHECKPOINT), "{len}: {why}");
        }
        let mut rng = Rng::new(1, 2);
        for _ in 0..2000 {
            let mut bytes = whole.clone();
            let at = (rng.uniform() * bytes.len() as f32) as usize;
            bytes[at] ^= 1 << (rng.uniform() * 8.0) as u32;
            match told(&bytes) {
                Ok((state, _)) => assert!(state.tensors.values().flatten().all(|v| v.is_finite())),
                Err(why) => assert!(why.contains(CHECKPOINT), "{at}: {why}"),
            }
        }
        let mut endless = State { steps: u64::from(u32::MAX), ..State::default() };
        write(&path, &endless, 1, "of this run").expect("written");
        assert!(super::read(&path, "of this run").expect_err("refused").to_string().contains("too many"));
        endless.steps = 1;
        endless.tensors.insert("head".into(), vec![f32::NAN]);
        write(&path, &endless, 1, "of this run").expect("written");
        assert!(super::read(&path, "of this run").expect_err("refused").to_string().contains("'head' holds"));
    }
}
