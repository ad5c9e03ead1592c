//! Heads and witnesses over one stem.

use super::replacement::{Repeated, SharedBank};
use super::*;
use crate::artifact::head_params;
use crate::net::{Activation, NetBuilder, OwnedNet, Window};
use crate::replace::{Bf16, FeatureBank, Progress, Settings, Source as _};
use crate::rng::Rng;
use crate::tripwire::Alarm;

/// More pictures than go through a head together.
const N: usize = HEAD_BATCH + 9;

fn random(n: usize, stream: u64) -> Vec<f32> {
    let mut rng = Rng::new(11, stream);
    (0..n).map(|_| rng.normal()).collect()
}

/// 6 x 5 x 3 to 6 x 5 x 4.
fn stem() -> OwnedNet {
    let mut b = NetBuilder::new();
    let x = b.input(Shape::new(6, 5, 3));
    let window = Window { kernel: [3, 3], stride: [1, 1], pad: [1; 4] };
    let y = b.conv(x, window, 1, random(9 * 3 * 4, 1), None, Activation::Relu).unwrap();
    b.finish(y).unwrap()
}

/// A head with parameters that nothing makes infinite: variances and deviations are positive.
fn head(kind: HeadKind, features: Shape, classes: u32, stream: u64) -> NewHead {
    let n = head_params(kind, features, classes);
    NewHead { kind, classes, params: random(n, stream).iter().map(|v| 0.1 + 0.3 * v.abs()).collect() }
}

#[test]
fn part_of_a_picture_and_bad_settings_are_refused() {
    let net = stem();
    let (stem, kernels): (Stem<'_>, _) = (net.as_net().into(), Simd::new(1));
    let new = head(HeadKind::Linear, stem.output(), 3, 3);
    let (name, labels, provenance, head) = ("", "", "", Some(new.parts()));
    let parts = ArtifactParts { name, labels, provenance, stem, head, tripwire: None };
    let session = Session::of_artifact(&parts, kernels.clone()).unwrap();
    for whole in [0, 1, HEAD_BATCH, HEAD_BATCH + 1] {
        let x = random(whole * 90 + 7, 2);
        let refused = session.infer(&x, &mut vec![0.0; 3 * whole]);
        assert_eq!(refused, Err(Error::WrongLength { needed: whole * 90, given: whole * 90 + 7 }));
    }
    // Before any feature is computed: there are more views than memory could hold.
    let settings = Settings { batch: 0, ..Settings::PUBLISHED };
    let space = Space::Features { views: usize::MAX };
    let augment = Augment { shift: 0, flip: false };
    let never = &mut |_: Progress| unreachable!("trained");
    let refused = replace_head(&session, HeadKind::Linear, 0, &[], &[], space, augment, &settings, never);
    assert!(matches!(refused, Err(Error::BadSetting(_))), "{:?}", refused.err());
}

#[test]
fn a_watched_answer_is_the_answer_and_the_score_of_both_heads() {
    let net = stem();
    let (stem, kernels): (Stem<'_>, _) = (net.as_net().into(), Simd::new(1));
    let x = random(N * 90, 2);
    for (first, second) in [(HeadKind::Linear, HeadKind::Residual), (HeadKind::Residual, HeadKind::Linear)] {
        let (new, old) = (head(first, stem.output(), 3, 3), head(second, stem.output(), 3, 4));
        let mut alone = [(); 2].map(|()| vec![0.0; N * 3]);
        for (head, out) in [&new, &old].into_iter().zip(&mut alone) {
            let (name, labels, provenance, head) = ("", "", "", Some(head.parts()));
            let parts = ArtifactParts { name, labels, provenance, stem, head, tripwire: None };
            Session::of_artifact(&parts, kernels.clone()).unwrap().infer(&x, out).unwrap();
        }
        let rate = 0.1;
        let tripwire = set_tripwire(stem, new.parts(), old.parts(), &x, rate, &kernels).unwrap();
        assert_eq!(tripwire.false_positive_rate, rate);
        let (name, labels, provenance, head) = ("", "", "", Some(new.parts()));
        let parts = ArtifactParts { name, labels, provenance, stem, head, tripwire: Some(tripwire) };
        let watched = Session::of_artifact(&parts, kernels.clone()).unwrap();
        assert_eq!(watched.threshold(), Some(tripwire.threshold));
        let (mut logits, mut scores) = (vec![0.0; N * 3], vec![0.0; N]);
        watched.infer_watched(&x, &mut logits, &mut scores).unwrap();
        assert_eq!(logits, alone[0]);
        for (i, &score) in scores.iter().enumerate() {
            let [new, old] = [0, 1].map(|head: usize| &alone[head][3 * i..][..3]);
            assert_eq!(tripwire::score(old, new), Ok(score), "picture {i}");
        }
        let raised = scores.iter().filter(|&&s| Alarm::of(s, tripwire.threshold).raised).count();
        assert_eq!(raised, (rate * N as f32) as usize, "scores are all different");
        let mut plain = vec![0.0; N * 3];
        watched.infer(&x, &mut plain).unwrap();
        assert_eq!(plain, logits);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let net = stem();
    let (stem, kernels): (Stem<'_>, _) = (net.as_net().into(), Simd::new(1));
    let new = head(HeadKind::Linear, stem.output(), 3, 1);
    let x = random(2 * 90, 2);
    let set = |witness: HeadParts<'_>, rate| set_tripwire(stem, new.parts(), witness, &x, rate, &kernels).map(|_| ());
    assert_eq!(set(new.parts(), 0.5), Ok(()));
    assert_eq!(set(head(HeadKind::Linear, stem.output(), 4, 1).parts(), 0.5), Err(Error::TripwireDoesNotFit));
    assert_eq!(set(HeadParts { params: &new.params[1..], ..new.parts() }, 0.5), Err(Error::TripwireDoesNotFit));
    assert_eq!(set(new.parts(), 1.5), Err(Error::BadSetting("false-positive rate")));
    let nan = vec![f32::NAN; new.params.len()];
    assert_eq!(set(HeadParts { params: &nan, ..new.parts() }, 0.5), Err(Error::NotFinite));
    assert_eq!(
        set_tripwire(stem, new.parts(), new.parts(), &[], 0.5, &kernels).map(|_| ()),
        Err(Error::WrongLength { needed: 1, given: 0 })
    );

    let (name, labels, provenance, head) = ("", "", "", Some(new.parts()));
    let parts = ArtifactParts { name, labels, provenance, stem, head, tripwire: None };
    let session = Session::of_artifact(&parts, kernels.clone()).unwrap();
    let (mut logits, mut scores) = ([0.0; 6], [0.0; 2]);
    assert_eq!(session.infer_watched(&x, &mut logits, &mut scores), Err(Error::TripwireDoesNotFit));
    assert_eq!(session.threshold(), None);
    let witness = new.parts();
    let tripwire = Some(TripwireParts { witness, threshold: 0.0, false_positive_rate: 0.0 });
    let watched = Session::of_artifact(&ArtifactParts { tripwire, ..parts }, kernels.clone()).unwrap();
    let wrong = Err(Error::WrongLength { needed: 2, given: 1 });
    assert_eq!(watched.infer_watched(&x, &mut logits, &mut scores[..1]), wrong);
    let wrong = Err(Error::WrongLength { needed: 6, given: 5 });
    assert_eq!(watched.infer_watched(&x, &mut logits[..5], &mut scores), wrong);
    let alone = Session::of_artifact(&ArtifactParts { head: None, tripwire, ..parts }, kernels);
    assert_eq!(alone.err(), Some(Error::TripwireDoesNotFit));
}

#[test]
fn a_bank_loaded_by_all_threads_is_the_bank() {
    let (n, views, shape) = (40, 3, Shape::new(4, 5, 6));
    let features: Vec<Bf16> = random(views * n * shape.len(), 7).into_iter().map(Bf16::from).collect();
    let labels = vec![0; n];
    let batch: Vec<u32> = (0..27).map(|i| i * 13 % 40).collect();
    let partners: Vec<u32> = (0..27).map(|i| i * 7 % 40).collect();
    for (mix, threads) in [(None, 1), (None, 3), (Some(&partners[..]), 1), (Some(&partners[..]), 3)] {
        let kernels = Simd::new(threads);
        let mut bank = FeatureBank::new(&features, &labels, shape, views).unwrap();
        let mut shared = SharedBank { bank, kernels: &kernels };
        let (mut one, mut other) = (Rng::new(5, 1), Rng::new(5, 1));
        for _ in 0..20 {
            let (mut x, mut y) = (vec![0.0; batch.len() * shape.len()], vec![1.0; batch.len() * shape.len()]);
            let kept = bank.batch(&batch, mix, &mut one, &mut x);
            assert_eq!((shared.batch(&batch, mix, &mut other, &mut y), y), (kept, x));
        }
    }
}

#[test]
fn repeated_passes_are_the_first_ones_again() {
    let (n, passes, size, threads) = (30, 2, 13, 3);
    let net = stem();
    let stem = Session::of_stem(net.as_net(), Simd::new(threads));
    let (x, labels) = (random(n * 90, 3), vec![0; n]);
    let augment = Augment { shift: 1, flip: true };
    let mut fresh = PictureSource::new(&stem, &x, &labels, augment).unwrap();
    let source = || PictureSource::new(&stem, &x, &labels, augment).unwrap();
    assert!(Repeated::new(source(), usize::MAX, size).is_err());
    let mut repeated = Repeated::new(source(), passes, size).unwrap();
    assert_eq!((repeated.passes(), fresh.passes()), (passes as u32, u32::MAX));
    let order: Vec<u32> = (0..n as u32).map(|i| i * 7 % n as u32).collect();
    let mut first = Vec::new();
    for epoch in 0..3 * passes {
        let mut one = Rng::new(5, (epoch % passes) as u64);
        for chosen in order.chunks_exact(size) {
            let mut partners = chosen.to_vec();
            one.shuffle(&mut partners);
            let mut other = one.clone();
            let len = size * stem.features_shape().len();
            let (mut x, mut y) = (vec![0.0; len], vec![1.0; len]);
            let kept = fresh.batch(chosen, Some(&partners), &mut one, &mut x);
            assert_eq!(repeated.batch(chosen, Some(&partners), &mut other, &mut y), kept);
            assert_eq!(one.bits(), other.bits(), "what is drawn next, epoch {epoch}");
            x.iter_mut().for_each(|x| *x = Bf16::from(*x).into());
            assert_eq!(x, y, "epoch {epoch}");
            first.push(y);
        }
    }
    assert_ne!(first[0], first[2], "passes differ");
}
