//! What two heads on one stem know of every suspect picture.

use super::witnesses::Witnesses;
use crate::engine::{log_odds, probability};
use crate::error::Failure;
use crate::history::History;
use stemguard_runtime::data::Pictures;
use stemguard_runtime::metrics::argmax;
use stemguard_runtime::rng::Rng;

/// Pictures scored together.
const BATCH: usize = 250;
/// Clean pictures that each suspect one is mixed with.
const MIXES: usize = 2;
/// Stream of the seed for the choice of them.
const MIX: u64 = 0x6d69_7865;

/// The signals of some pictures, `[n]` each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Signals {
    /// Trapped head's log-odds of the given label: poison is fitted harder than anything else.
    pub confidence: Vec<f32>,
    /// Trapped minus new head's probability of the given label, -1..=1: the new head never saw the trigger.
    pub disagreement: Vec<f32>,
    /// Mean log-odds of the given label over the first half of the epochs, as training saw it: how soon it was fitted.
    pub early: Vec<f32>,
    /// The same over the second half.
    pub late: Vec<f32>,
    /// Standard deviation of the log-odds over all epochs: high where augmentation hides a trigger now and then.
    pub swing: Vec<f32>,
    /// New head's probability of the given label, 0..=1.
    pub new_probability: Vec<f32>,
    /// The new head's answer.
    pub new_label: Vec<u32>,
    /// Trapped head's mean probability of the given label on mixtures with clean pictures of other classes, 0..=1: a trigger
    /// survives what the picture does not (after STRIP, arXiv 1902.06531).
    pub survival: Vec<f32>,
}

impl Signals {
    /// What the course of training alone tells: early, late and swing. The other signals are level.
    pub fn of_history(history: &History) -> Self {
        let (half, all, n) = (history.epochs() / 2, history.epochs(), history.pictures());
        Self {
            confidence: vec![0.0; n],
            disagreement: vec![0.0; n],
            early: history.log_odds(0..half.max(1)).0,
            late: history.log_odds(half..all).0,
            swing: history.log_odds(0..all).1,
            new_probability: vec![0.0; n],
            new_label: Vec::new(),
            survival: vec![0.0; n],
        }
    }

    /// What `witnesses` know of `pictures`, which were fitted as `history` (of at least one epoch) tells; mixtures are made with
    /// pictures of `clean`, chosen from `seed`. `tell` hears of pictures done.
    ///
    /// # Errors
    /// [`Failure`] where a head does not fit the stem, or the history is of other pictures.
    pub(super) fn gather(
        witnesses: &mut Witnesses<'_>,
        pictures: &Pictures,
        clean: &Pictures,
        history: &History,
        seed: u64,
        tell: &mut dyn FnMut(usize),
    ) -> Result<Self, Failure> {
        let (len, classes) = (pictures.shape().len(), pictures.classes.len());
        if history.epochs() == 0 || history.pictures() != pictures.len() {
            return Err(Failure::input("fitting.npy", "is not of the pictures audited"));
        }
        let mut s = Self {
            confidence: Vec::new(),
            disagreement: Vec::new(),
            new_probability: Vec::new(),
            survival: Vec::new(),
            ..Self::of_history(history)
        };
        for first in (0..pictures.len()).step_by(BATCH) {
            let labels = &pictures.labels[first..(first + BATCH).min(pictures.len())];
            let n = labels.len();
            let pixels = &pictures.pixels[first * len..(first + n) * len];
            let [old, new] = witnesses.both(pixels)?;
            for ((&y, old), new) in labels.iter().zip(old.chunks_exact(classes)).zip(new.chunks_exact(classes)) {
                s.confidence.push(log_odds(old, y));
                s.new_label.push(argmax(new) as u32);
                s.disagreement.push(probability(old, y) - probability(new, y));
                s.new_probability.push(probability(new, y));
            }
            let mut survival = vec![0.0f32; n];
            for k in 0..MIXES {
                let mut mixed = pixels.to_vec();
                for (i, mixed) in mixed.chunks_exact_mut(len).enumerate() {
                    let other = partner(clean, labels[i], seed, (first + i) * MIXES + k);
                    mixed.iter_mut().zip(clean.picture(other)).for_each(|(to, &b)| *to = to.saturating_add(b));
                }
                let logits = witnesses.trapped(&mixed)?;
                for ((p, logits), &y) in survival.iter_mut().zip(logits.chunks_exact(classes)).zip(labels) {
                    *p += probability(logits, y) / MIXES as f32;
                }
            }
            s.survival.extend(survival);
            tell(first + n);
        }
        Ok(s)
    }
}

/// A clean picture of another class than `label` (any, where there is no other).
fn partner(clean: &Pictures, label: u32, seed: u64, stream: usize) -> usize {
    let mut rng = Rng::new(seed ^ MIX, stream as u64);
    let start = rng.below(clean.len());
    (0..clean.len()).map(|i| (start + i) % clean.len()).find(|&i| clean.labels[i] != label).unwrap_or(start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RunConfig;
    use crate::engine::{CpuEngine, Device};
    use crate::model::TrapNet;
    use dfdx::prelude::Cpu;
    use stemguard_runtime::artifact::{HeadKind, HeadSpec, head_params};
    use stemguard_runtime::head;
    use stemguard_runtime::kernels::simd::Simd;
    use stemguard_runtime::net::Span;
    use stemguard_runtime::session::NewHead;

    const CLASSES: usize = 3;

    /// Pictures of noise, 8 x 8.
    fn noise(n: usize, label: impl Fn(usize) -> u32, seed: u64) -> Pictures {
        let (h, w, mut rng) = (8, 8, Rng::new(seed, 0));
        let pixels = (0..n * h * w * 3).map(|_| rng.below(200) as u8).collect();
        let classes = ["a", "b", "c"].map(String::from).to_vec();
        Pictures { h, w, pixels, labels: (0..n).map(label).collect(), classes, files: vec![] }
    }

    fn softmax(logits: &[f32], label: u32) -> f64 {
        let e: Vec<f64> = logits.iter().map(|&z| f64::from(z).exp()).collect();
        e[label as usize] / e.iter().sum::<f64>()
    }

    /// More pictures than are scored together, each beside what the heads say of it alone.
    #[test]
    fn signals_are_what_the_heads_say_of_each_picture() {
        let n = BATCH + 5;
        let suspects = noise(n, |i| (i % 2) as u32, 1);
        // One picture of class 0 and one of class 2: class 0 is mixed with the second, others with either.
        let clean = noise(2, |i| 2 * i as u32, 2);
        let (c, dev, kernels) = (RunConfig::published("signs".into()), Cpu::default(), Simd::new(1));
        let net = TrapNet::new(c.architecture, suspects.shape(), CLASSES, false, 1, &dev).expect("a network");
        let mut engine = CpuEngine::new(net, c.objective(), kernels.clone(), dev);
        let features = engine.net.stem.output();
        let mut rng = Rng::new(3, 0);
        let params: Vec<f32> =
            (0..head_params(HeadKind::Linear, features, CLASSES as u32)).map(|_| rng.normal()).collect();
        let new = NewHead { kind: HeadKind::Linear, classes: CLASSES as u32, params };
        let mut history = History::new(n);
        let all: Vec<u32> = (0..n as u32).collect();
        for epoch in [1.0f32, 2.0, 4.0, 7.0] {
            history.begin_epoch();
            history.record(&all, &all.iter().map(|&i| epoch * if i == 3 { 1.0 } else { 0.1 }).collect::<Vec<f32>>());
        }
        let mut told = Vec::new();
        let mut witnesses = Witnesses::open(Device::Cpu, &mut engine, &new, &kernels).expect("witnesses");
        let s = Signals::gather(&mut witnesses, &suspects, &clean, &history, 9, &mut |done| told.push(done));
        let s = s.expect("signals");
        assert_eq!(told, [BATCH, n]);

        let spec = HeadSpec {
            kind: new.kind,
            features,
            classes: new.classes,
            span: Span { at: 0, len: new.params.len() as u32 },
        };
        let near =
            |a: f32, b: f64, what: &str, i: usize| assert!((f64::from(a) - b).abs() < 1e-4, "{what} {i}: {a} {b}");
        for i in (0..n).step_by(7).chain([n - 1]) {
            let (y, mut x) = (suspects.labels[i], vec![0.0; suspects.shape().len()]);
            stemguard_runtime::session::to_f32(suspects.picture(i), &mut x);
            let old = softmax(&engine.logits(&x), y);
            let mut scratch = vec![0.0; head::inference_len(&spec, 1).expect("a size")];
            let mut logits = vec![0.0; CLASSES];
            let map = engine.features(&x);
            head::infer(&kernels, &spec, &new.params, 1, &map, &mut scratch, &mut logits).expect("an answer");
            near(s.confidence[i], (old / (1.0 - old)).ln(), "confidence", i);
            near(s.new_probability[i], softmax(&logits, y), "the new head's probability", i);
            near(s.disagreement[i], old - softmax(&logits, y), "disagreement", i);
            assert!(logits.iter().all(|&z| z <= logits[s.new_label[i] as usize]), "{i}");
            if y == 0 {
                let mixed = suspects.picture(i).iter().zip(clean.picture(1)).map(|(&a, &b)| a.saturating_add(b));
                stemguard_runtime::session::to_f32(&mixed.collect::<Vec<u8>>(), &mut x);
                near(s.survival[i], softmax(&engine.logits(&x), y), "survival", i);
            }
        }
        // Halves of the epochs, and all of them: 1 and 2, 4 and 7, mean 3.5.
        assert_eq!((s.early[3], s.late[3]), (1.5, 5.5));
        near(s.swing[3], ((6.25 + 2.25 + 0.25 + 12.25) / 4.0f64).sqrt(), "swing", 3);
        near(s.early[0], 0.15, "early", 0);
    }

    #[test]
    fn a_history_of_other_pictures_is_refused() {
        let (suspects, kernels, dev) = (noise(4, |_| 0, 1), Simd::new(1), Cpu::default());
        let c = RunConfig::published("signs".into());
        let net = TrapNet::new(c.architecture, suspects.shape(), CLASSES, false, 1, &dev).expect("a network");
        let mut engine = CpuEngine::new(net, c.objective(), kernels.clone(), dev);
        let params = vec![0.0; head_params(HeadKind::Linear, engine.net.stem.output(), CLASSES as u32)];
        let new = NewHead { kind: HeadKind::Linear, classes: CLASSES as u32, params };
        let mut other = History::new(3);
        other.begin_epoch();
        for history in [other, History::new(4)] {
            let mut witnesses = Witnesses::open(Device::Cpu, &mut engine, &new, &kernels).expect("witnesses");
            let refused = Signals::gather(&mut witnesses, &suspects, &suspects, &history, 0, &mut |_| {});
            assert!(refused.expect_err("refused").to_string().contains("fitting.npy"));
        }
    }

    #[test]
    fn partners_are_of_another_class_and_drawn_from_all_of_them() {
        let clean = noise(30, |i| (i % 3) as u32, 4);
        let mut drawn = vec![0; 30];
        for stream in 0..2000 {
            drawn[partner(&clean, 1, 7, stream)] += 1;
        }
        assert!((0..30).all(|i| (drawn[i] > 0) == (clean.labels[i] != 1)), "{drawn:?}");
        // Where there is no other class, any.
        let same = noise(5, |_| 1, 4);
        assert!((0..20).map(|stream| partner(&same, 1, 7, stream)).any(|i| i != partner(&same, 1, 7, 0)));
    }
}
