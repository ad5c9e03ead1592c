//! How well each suspect picture is fitted, epoch by epoch: the log-odds of its given label, as the training step saw it (augmented,
//! batch statistics). Poison is fitted in its own way: an audit reads that.
//!
//! Kept as `fitting.npy`, signed bytes of shape `[epochs][pictures]`, tenths of the natural log-odds within -12.7..=12.7, written
//! whole before each checkpoint.

use crate::checkpoint::write_whole;
use crate::error::Failure;
use npyz::WriterBuilder as _;
use std::path::Path;
use stemguard_runtime::data::{Numbers, read_npy};

/// The record of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    pictures: usize,
    /// `[epochs][pictures]`
    rows: Vec<i8>,
}

/// Parts of one that a byte counts.
const PARTS: f32 = 10.0;

impl History {
    /// An empty record over so many pictures.
    pub fn new(pictures: usize) -> Self {
        Self { pictures, rows: Vec::new() }
    }

    /// Starts an epoch: pictures that it does not see keep the value of the last one, even odds in the first.
    pub fn begin_epoch(&mut self) {
        let last = self.rows.len().saturating_sub(self.pictures);
        if self.rows.is_empty() {
            self.rows.resize(self.pictures, 0);
        } else {
            self.rows.extend_from_within(last..);
        }
    }

    /// Takes in the log-odds of the pictures `chosen` in the epoch begun last.
    pub fn record(&mut self, chosen: &[u32], fit: &[f32]) {
        let at = self.rows.len().saturating_sub(self.pictures);
        let row = &mut self.rows[at..];
        for (&i, &odds) in chosen.iter().zip(fit) {
            if let Some(to) = row.get_mut(i as usize) {
                *to = (odds * PARTS).round().clamp(-127.0, 127.0) as i8;
            }
        }
    }

    /// The record of the first `epochs` epochs alone.
    pub fn until(&self, epochs: usize) -> Self {
        Self { pictures: self.pictures, rows: self.rows[..epochs.min(self.epochs()) * self.pictures].to_vec() }
    }

    /// Epochs recorded.
    pub fn epochs(&self) -> usize {
        self.rows.len() / self.pictures.max(1)
    }

    /// Pictures recorded.
    pub fn pictures(&self) -> usize {
        self.pictures
    }

    /// Mean and standard deviation over these epochs (from 0) of the log-odds of each picture's label: what dataset cartography
    /// (arXiv 2009.10795) calls confidence and variability.
    pub fn log_odds(&self, epochs: std::ops::Range<usize>) -> (Vec<f32>, Vec<f32>) {
        let (mut mean, mut square) = (vec![0.0f32; self.pictures], vec![0.0f32; self.pictures]);
        let rows = self.rows.chunks_exact(self.pictures.max(1)).take(epochs.end).skip(epochs.start);
        let count = rows.len().max(1) as f32;
        for row in rows {
            for ((m, s), &tenths) in mean.iter_mut().zip(&mut square).zip(row) {
                let odds = f32::from(tenths) / PARTS;
                *m += odds / count;
                *s += odds * odds / count;
            }
        }
        square.iter_mut().zip(&mean).for_each(|(s, m)| *s = (*s - m * m).max(0.0).sqrt());
        (mean, square)
    }

    /// Reads a record of at least `epochs` epochs over `pictures` pictures and keeps the first `epochs`.
    ///
    /// # Errors
    /// [`Failure::Input`] naming the file.
    pub fn read(path: &Path, pictures: usize, epochs: usize) -> Result<Self, Failure> {
        let bytes = std::fs::read(path).map_err(|e| Failure::file(path, format!("cannot be read: {e}")))?;
        let Numbers { shape, fortran, descr, values } = read_npy(&bytes).map_err(|e| Failure::file(path, e))?;
        if !matches!(shape[..], [e, p] if e >= epochs && p == pictures) {
            return Err(Failure::file(path, format!("has shape {shape:?}, not at least [{epochs}, {pictures}]")));
        }
        if descr != "i1" || fortran {
            return Err(Failure::file(path, "is not of signed bytes, epoch by epoch"));
        }
        let rows = values.iter().take(epochs * pictures).map(|&v| v as i8).collect();
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
        let mut writer =
            npyz::WriteOptions::new().default_dtype().shape(&shape).writer(&mut bytes).begin_nd().map_err(failed)?;
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
        h.record(&[2, 0], &[40.0, 0.5]);
        let first = h.clone();
        h.begin_epoch();
        h.record(&[1], &[-3.0]);
        h.write(&path).expect("written");
        assert_eq!(History::read(&path, 3, 2).expect("read"), h);
        assert_eq!(History::read(&path, 3, 1).expect("read"), first);
        let (mean, swing) = h.log_odds(0..2);
        assert!((mean[2] - 12.7).abs() < 1e-4 && swing[2] < 1e-2, "{mean:?} {swing:?}");
        // Even odds, then -3.
        assert!((mean[1] + 1.5).abs() < 1e-4 && (swing[1] - 1.5).abs() < 1e-4, "{mean:?} {swing:?}");
        assert_eq!(h.log_odds(0..1).1, [0.0; 3]);
        for (pictures, epochs) in [(4, 1), (3, 3)] {
            let e = History::read(&path, pictures, epochs).expect_err("another shape").to_string();
            assert!(e.contains("fitting.npy") && e.contains("shape"), "{e}");
        }
        std::fs::write(&path, b"no array").expect("written");
        assert!(History::read(&path, 3, 1).is_err());
    }
}
