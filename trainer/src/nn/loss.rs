//! The losses of the trap stage (arXiv 2210.06428, section 3): cross-entropy, and on the reconstruction mean squared error
//! plus total variation. Cross-entropy is dfdx's; the two on the reconstruction are one operation on the tape, and so is the
//! classification loss that forgets what an audit accused.

use super::Batch;
use dfdx::prelude::*;
use stemguard_runtime::shape::Shape;

/// A loss on the tape.
pub type Loss<T> = Tensor<Rank0, f32, Cpu, T>;

/// The parts of the reconstruction loss, unweighted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reconstruction {
    /// Mean squared error over all elements.
    pub mse: f32,
    /// Squared differences of neighbours, down and across, over the number of elements.
    pub tv: f32,
}

/// Total variation of one picture and, added to `d`, its gradient times `weight`.
fn total_variation(s: Shape, r: &[f32], weight: f32, d: &mut [f32]) -> f64 {
    let (w, c) = (s.w as usize, s.c as usize);
    let row = w * c;
    let mut sum = 0.0f64;
    let pair = |i: usize, j: usize, d: &mut [f32]| {
        let t = r[i] - r[j];
        d[i] += 2.0 * weight * t;
        d[j] -= 2.0 * weight * t;
        t * t
    };
    for y in 0..s.h as usize {
        let mut line = 0.0f32;
        for i in y * row..(y + 1) * row {
            if i + c < (y + 1) * row {
                line += pair(i + c, i, d);
            }
            if i + row < r.len() {
                line += pair(i + row, i, d);
            }
        }
        sum += f64::from(line);
    }
    sum
}

/// `weights.mse * MSE(r, x) + weights.tv * TV(r)` of `n` pictures of shape `s`, and its parts.
///
/// # Errors
/// dfdx's, when memory runs out.
pub fn reconstruction<T: Tape<f32, Cpu>>(
    k: &stemguard_runtime::kernels::simd::Simd,
    s: Shape,
    r: Batch<T>,
    x: &[f32],
    weights: Reconstruction,
) -> Result<(Loss<T>, Reconstruction), CpuError> {
    let (r, mut tape) = r.split_tape();
    let &(n, each) = r.shape();
    let mut values = vec![0.0; n * each];
    r.copy_into(&mut values);
    let (count, len) = (values.len() as f32, s.len());
    let mut d = vec![0.0f32; values.len()];
    let mut parts = vec![[0.0f64; 2]; values.len() / len];
    let items: Vec<_> = d.chunks_mut(len).zip(parts.iter_mut()).enumerate().collect();
    k.for_each(items, |(i, (d, parts))| {
        let (r, x) = (&values[i * len..][..len], &x[i * len..][..len]);
        let mut sum = 0.0f32;
        for ((&r, &x), d) in r.iter().zip(x).zip(d.iter_mut()) {
            let e = r - x;
            *d = 2.0 * weights.mse * e / count;
            sum += e * e;
        }
        *parts = [f64::from(sum), total_variation(s, r, weights.tv / count, d)];
    });
    let total = |i: usize| (parts.iter().map(|p| p[i]).sum::<f64>() / f64::from(count)) as f32;
    let parts = Reconstruction { mse: total(0), tv: total(1) };
    let loss = r.device().try_tensor_from_vec(vec![weights.mse * parts.mse + weights.tv * parts.tv], ())?;
    let (ghost, input) = (loss.ghost(), r.ghost());
    tape.add_backward_op(move |grads| {
        let g = grads.get_or_alloc_mut(&ghost)?.first().copied().unwrap_or(0.0);
        for (to, d) in grads.get_or_alloc_mut(&input)?.iter_mut().zip(d) {
            *to += g * d;
        }
        Ok(())
    });
    Ok((loss.put_tape(tape), parts))
}

/// Kept away from 0 in the logarithm of [`unlearning`].
const FLOOR: f32 = 1e-4;

/// The mean over a batch of `-log p` of each picture's label, or, where `forget` says so, of `-log(1 - p + 1e-4)`: the label is
/// unlearned. `forget` may be empty: nothing is.
///
/// # Errors
/// dfdx's, when memory runs out.
pub fn classification<T: Tape<f32, Cpu>>(
    logits: Batch<T>,
    labels: &[u32],
    forget: &[bool],
) -> Result<Loss<T>, CpuError> {
    let classes = logits.shape().1;
    let mut targets = vec![0.0; labels.len() * classes];
    for (row, &label) in targets.chunks_exact_mut(classes).zip(labels) {
        row[label as usize] = 1.0;
    }
    if forget.iter().any(|&f| f) {
        return unlearning(logits, labels, forget);
    }
    let targets = logits.device().try_tensor_from_vec(targets, *logits.shape())?;
    Ok(cross_entropy_with_logits_loss(logits, targets))
}

/// [`classification`] with something to forget: one operation on the tape.
fn unlearning<T: Tape<f32, Cpu>>(logits: Batch<T>, labels: &[u32], forget: &[bool]) -> Result<Loss<T>, CpuError> {
    let (logits, mut tape) = logits.split_tape();
    let (n, classes) = *logits.shape();
    let mut d = logits.as_vec();
    let mut sum = 0.0f64;
    for ((z, &label), &forget) in d.chunks_exact_mut(classes).zip(labels).zip(forget) {
        let top = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f32 = z.iter().map(|z| (z - top).exp()).sum();
        let log_p = z[label as usize] - top - total.ln();
        let p = log_p.exp();
        // dL/dz_j = scale * (p_j - [j is the label])
        let (loss, scale) = if forget {
            let rest = 1.0 - p + FLOOR;
            (-rest.ln(), -p / rest)
        } else {
            (-log_p, 1.0)
        };
        sum += f64::from(loss);
        z.iter_mut().for_each(|z| *z = scale * (*z - top).exp() / total / n as f32);
        z[label as usize] -= scale / n as f32;
    }
    let loss = logits.device().try_tensor_from_vec(vec![(sum / n as f64) as f32], ())?;
    let (ghost, input) = (loss.ghost(), logits.ghost());
    tape.add_backward_op(move |grads| {
        let g = grads.get_or_alloc_mut(&ghost)?.first().copied().unwrap_or(0.0);
        for (to, d) in grads.get_or_alloc_mut(&input)?.iter_mut().zip(d) {
            *to += g * d;
        }
        Ok(())
    });
    Ok(loss.put_tape(tape))
}
