//! Large buffers that go round: what a step needs, the next step needs again.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// A pool of buffers by length.
#[derive(Clone, Debug, Default)]
pub struct Buffers(Arc<Mutex<HashMap<usize, Vec<Vec<f32>>>>>);

impl Buffers {
    /// A buffer of `len` values, whatever they are.
    pub fn take(&self, len: usize) -> Buffer {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let values = free.get_mut(&len).and_then(Vec::pop).unwrap_or_else(|| vec![0.0; len]);
        Buffer { values, home: self.clone() }
    }
}

#[cfg(test)]
impl Buffers {
    /// Values of all buffers that are back.
    pub(crate) fn pooled_len(&self) -> usize {
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.iter().map(|(len, all)| len * all.len()).sum()
    }
}

/// A buffer that returns to its pool.
#[derive(Debug)]
pub struct Buffer {
    values: Vec<f32>,
    home: Buffers,
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.values
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.values);
        let mut free = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.entry(values.len()).or_default().push(values);
    }
}
