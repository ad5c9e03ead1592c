//! How well each suspect picture is fitted, epoch by epoch: the probability of its given label, as the training step saw it
//! (augmented, batch statistics). Poison is fitted early: an audit reads that.
//!
//! Kept as `fitting.npy`, bytes of shape `[epochs][pictures]`, 255 for probability 1, written whole before each checkpoint.

use crate::checkpoint::write_whole;
use crate::error::Failure;
use npyz::WriterBuilder as _;
use std::path::Path;

/// The record of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    pictures: usize,
    /// `[epochs][pictures]`
    rows: Vec<u8>,
}

impl History {
    /// An empty record over so many pictures.
    pub fn new(pictures: usize) -> Self {
        Self { pictures, rows: Vec::new() }
    }

    /// Starts an epoch: pictures that it does not see keep the value of the last one, 0 in the first.
    pub fn begin_epoch(&mut self) {
        let last = self.rows.len().saturating_sub(self.pictures);
        if self.rows.is_empty() {
            self.rows.resize(self.pictures, 0);
        } else {
            self.rows.extend_from_within(last..);
        }
    }

    /// Takes in the probabilities (0..=1) of the pictures `chosen` in the epoch begun last.
    pub fn record(&mut self, chosen: &[u32], fit: &[f32]) {
        let at = self.rows.len().saturating_sub(self.pictures);
        let row = &mut self.rows[at..];
        for (&i, &p) in chosen.iter().zip(fit) {
            if let Some(to) = row.get_mut(i as usize) {
                *to = (p * 255.0).round() as u8;
            }
        }
    }

    /// Epochs recorded.
    pub fn epochs(&self) -> usize {
        self.rows.len() / self.pictures.max(1)
    }

    /// Mean probability of each picture over the first `epochs` epochs, 0..=1.
    pub fn mean(&self, epochs: usize) -> Vec<f32> {
        let epochs = epochs.min(self.epochs());
        let mut mean = vec![0.0f32; self.pictures];
        for row in self.rows.chunks_exact(self.pictures.max(1)).take(epochs) {
            mean.iter_mut().zip(row).for_each(|(m, &p)| *m += f32::from(p) / 255.0 / epochs as f32);
        }
        mean
    }

    /// Reads a record of at least `epochs` epochs over `pictures` pictures and keeps the first `epochs`.
    ///
    /// # Errors
    /// [`Failure::Input`] naming the file.
    pub fn read(path: &Path, pictures: usize, epochs: usize) -> Result<Self, Failure> {
        let bytes = std::fs::read(path).map_err(|e| Failure::file(path, format!("cannot be read: {e}")))?;
        let file = npyz::NpyFile::new(&bytes[..]).map_err(|e| Failure::file(path, e))?;
        let shape = file.shape().to_vec();
        if shape.len() != 2 || shape[1] != pictures as u64 || shape[0] < epochs as u64 {
            return Err(Failure::file(path, format!("has shape {shape:?}, not at least [{epochs}, {pictures}]")));
        }
        let mut rows: Vec<u8> = file.into_vec().map_err(|e| Failure::file(path, e))?;
        rows.truncate(epochs * pictures);
        Ok(Self { pictures, rows })
    }

    /// Writes the record, whole.
    ///
    /// # Errors
    /// [`Failure::Input`] naming the file.
    pub fn write(&self, path: &Path) -> Result<(), Failure> {
        let failed = |e: std::io::Error| Failure::file(path, format!("cannot be written: {e}"));
        let mut bytes = Vec::with_capacity(self.rows.len() + 128);
        let shape = [self.epochs() as u64, self.pictures as u64];
        let mut writer = npyz::WriteOptions::new()
            .default_dtype()
            .shape(&shape)
            .writer(&mut bytes)
            .begin_nd()
            .map_err(failed)?;
        writer.extend(self.rows.iter().copied()).map_err(failed)?;
        writer.finish().map_err(failed)?;
        write_whole(path, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_the_file_and_forgets_what_came_after_a_checkpoint() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("fitting.npy");
        let mut h = History::new(3);
        h.begin_epoch();
        h.record(&[2, 0], &[1.0, 0.5]);
        let first = h.clone();
        h.begin_epoch();
        h.record(&[1], &[0.2]);
        h.write(&path).expect("written");
        assert_eq!(History::read(&path, 3, 2).expect("read"), h);
        assert_eq!(History::read(&path, 3, 1).expect("read"), first);
        let mean = h.mean(2);
        assert!((mean[2] - 1.0).abs() < 1e-6 && (mean[1] - 0.1).abs() < 1e-6, "{mean:?}");
        assert_eq!(h.mean(1)[1], 0.0);
        for (pictures, epochs) in [(4, 1), (3, 3)] {
            let e = History::read(&path, pictures, epochs).expect_err("another shape").to_string();
            assert!(e.contains("fitting.npy") && e.contains("shape"), "{e}");
        }
        std::fs::write(&path, b"no array").expect("written");
        assert!(History::read(&path, 3, 1).is_err());
    }
}
