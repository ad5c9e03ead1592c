//! A head's gradients on the device, beside the runtime's.

use super::*;
use crate::engine::cuda::Place;
use crate::model::Architecture;
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::replace::paste;
use stemguard_runtime::rng::Rng;

const CLASSES: usize = 5;
const BATCH: usize = 6;

fn floats(head: &mut CudaHead, from: Region, len: usize) -> Vec<f32> {
    let mut values = vec![0.0f32; len];
    head.device.read(from, 0, bytemuck::cast_slice_mut(&mut values)).expect("read");
    values
}

/// The gradients of two steps, against those of the runtime's head on the same rows of the bank, mixed on the host.
#[test]
fn a_heads_gradients_are_the_runtimes() {
    Place::ALL.into_iter().for_each(gradients_at);
}

fn gradients_at(place: Place) {
    let input = Shape::new(16, 24, 3);
    let net = TrapNet::new(Architecture::default(), input, CLASSES, false, 3, &dfdx::prelude::Cpu::default());
    let net = net.expect("a network");
    let settings = Settings { batch: BATCH, dropout: 0.25, seed: 11, ..Settings::CACHED };
    let sizes = Sizes { rows: 9, steps: 2, rounded: false };
    let Some(mut head) = CudaHead::at(place, &net, &settings, sizes, Precision::F32) else { return };
    let mut rng = Rng::new(4, 4);
    let pictures: Vec<f32> = (0..9 * input.len()).map(|_| rng.uniform()).collect();
    head.fill(0, &pictures[..4 * input.len()]).expect("filled");
    head.fill(4, &pictures[4 * input.len()..]).expect("filled");
    assert!(head.fill(5, &pictures[4 * input.len()..]).is_err(), "past the bank");
    let s = head.features();
    let kept = head.bank;
    let bank = floats(&mut head, kept, 9 * s.len());
    let mut draw = |below: usize, n: usize| -> Vec<u32> { (0..n).map(|_| rng.below(below) as u32).collect() };
    let drawn = Drawn {
        own: draw(9, 2 * BATCH),
        mates: draw(9, 2 * BATCH),
        labels: [draw(CLASSES, 2 * BATCH), draw(CLASSES, 2 * BATCH)],
        boxes: vec![0, 0, 0, 0, 1, 2, 3, 5],
        keep: vec![1.0, 0.7],
        rate: 1e-9,
    };
    let (model, k) = (Residual::new(s, CLASSES).expect("a head"), Simd::new(1));
    let mut params = head.params().expect("parameters");
    let loss = head.learn(&drawn, CLASSES).expect("learnt");
    // The step size is next to nothing: the second step's gradients are those of the first parameters.
    let mut grads = vec![0.0; model.trained()];
    let mut losses = 0.0;
    for step in 0..2 {
        let (mut x, mut targets) = (vec![0.0; BATCH * s.len()], vec![0.02; BATCH * CLASSES]);
        let area = [0, 1, 2, 3].map(|i| drawn.boxes[4 * step + i] as usize);
        for i in 0..BATCH {
            let at = BATCH * step + i;
            let row = |r: u32| &bank[r as usize * s.len()..][..s.len()];
            let to = &mut x[i * s.len()..][..s.len()];
            to.copy_from_slice(row(drawn.own[at]));
            paste(s, area, row(drawn.mates[at]), to);
            let keep = drawn.keep[step];
            for (labels, share) in drawn.labels.iter().zip([keep, 1.0 - keep]) {
                targets[i * CLASSES + labels[at] as usize] += 0.9 * share;
            }
        }
        let dropout = Dropout { rate: 0.25, seed: settings.dropout_seed(), stream: step as u64 };
        let mut scratch = vec![0.0; model.training_len(BATCH)];
        let mut sums = vec![0.0; model.training_sums()];
        losses +=
            model.gradient(&k, BATCH, &mut params, &mut x, &targets, dropout, &mut grads, &mut scratch, &mut sums);
    }
    assert!((loss - losses / 2.0).abs() <= 1e-4 * loss, "{loss} where the runtime has {}", losses / 2.0);
    let (first, len) = head.spans[0];
    let kept = head.homes.grads;
    let all = floats(&mut head, kept, first + len);
    let top = grads.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let apart = all[first..].iter().zip(&grads).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / top;
    eprintln!("{place:?}, head: gradients {apart:.1e} apart");
    assert!(apart <= 1e-4 && all[first..][..grads.len()].iter().all(|v| v.is_finite()));
    // Running statistics moved twice on both sides.
    let moved = head.params().expect("parameters");
    let trained = model.trained();
    for (a, b) in moved[trained..].iter().zip(&params[trained..]) {
        assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{a} where the runtime has {b}");
    }
    let wrong = Drawn { own: vec![9; 2 * BATCH], ..drawn };
    assert!(head.learn(&wrong, CLASSES).is_err(), "a row past the bank");
}
