//! Tripwires kept and sharpened, on networks that are hardly trained.

use super::*;
use crate::audit::Verdict;
use crate::engine::{CpuEngine, Objective, Optimizer};
use crate::model::Architecture;
use crate::nn::loss::Reconstruction;
use stemguard_runtime::rng::Rng;
use stemguard_runtime::shape::Shape;

fn trapped(split: u32, seed: u64) -> CpuEngine {
    let dev = dfdx::prelude::Cpu::default();
    let a = Architecture { split, ..Architecture::default() };
    let net = TrapNet::new(a, Shape::new(16, 16, 3), 3, true, seed, &dev).expect("valid");
    let objective =
        Objective { reconstruction: Reconstruction { mse: 1.0, tv: 1.0 }, optimizer: Optimizer::Adam, decay: 0.0 };
    CpuEngine::new(net, objective, Simd::new(1), dev)
}

fn pictures(n: usize, stream: u64) -> Pictures {
    let mut rng = Rng::new(3, stream);
    Pictures {
        h: 16,
        w: 16,
        pixels: (0..n * 768).map(|_| rng.below(256) as u8).collect(),
        labels: (0..n as u32).map(|i| i % 3).collect(),
        classes: ["a", "b", "c"].map(String::from).to_vec(),
        files: Vec::new(),
    }
}

#[test]
fn the_trapped_head_is_kept_as_a_tripwire_and_measured() {
    let kernels = Simd::new(1);
    let (mut engine, other) = (trapped(5, 7), trapped(5, 8));
    let clean = pictures(40, 1);
    let test = TestSet { clean: pictures(30, 2), triggered: pictures(20, 3), target: 0 };
    let x = to_f32(&clean);
    // A step, so that running statistics are not the initial ones.
    engine.step(x.clone(), crate::engine::Lesson::learn(&clean.labels), 0.01).expect("a step");
    let stem = onnx::lower(&Model::from_bytes(&export::stem(&engine.net).expect("a stem")).expect("ONNX"), None);
    let head = export::residual_head(&other.net).expect("the published head");
    let evaluation = Evaluation::default();
    let mut model = Defended { stem: stem.expect("a net"), head, evaluation, tripwire: None, seconds: 0.0 };
    let mut keep = |net: &TrapNet, rate| {
        model.tripwire = None;
        model.keep_trapped(net, &clean, &test, rate, &kernels).map(|()| model.tripwire.as_ref().map(|t| t.alarms))
    };
    let all = keep(&engine.net, 1.0).expect("kept").expect("a tripwire");
    assert_eq!((all.rate, all.true_positives, all.false_positives, all.at_rate), (1.0, 1.0, 1.0, Some(1.0)));
    let some = keep(&engine.net, 0.25).expect("kept").expect("a tripwire");
    assert!(some.threshold > all.threshold && (0.0..1.0).contains(&some.false_positives), "{some:?}");
    // The same head twice: the score is minus half the log-odds of its answer, of three classes at most half of ln 2.
    let none = keep(&other.net, 0.0).expect("kept").expect("a tripwire");
    assert!(none.threshold <= 0.5 * std::f32::consts::LN_2 + 1e-5 && none.threshold < some.threshold, "{none:?}");
    assert!(matches!(keep(&engine.net, 1.5), Err(Failure::Input(m)) if m.contains("false-positive rate")));
    assert_eq!(keep(&trapped(4, 7).net, 0.1).expect("left out"), None);
}

#[test]
fn the_stem_is_the_networks_whatever_its_file_holds() {
    let home = tempfile::tempdir().expect("a directory");
    let dir = RunDir { path: home.path().to_owned() };
    let (now, before) = (trapped(5, 7), trapped(5, 8));
    let file = || std::fs::read(dir.file("stem.onnx")).expect("a file");
    let weights = |net: &OwnedNet| net.as_net().weights().to_vec();
    let stem = packed_stem(&dir, &now.net).expect("a stem");
    let written = file();
    for left in [export::stem(&before.net).expect("a stem"), b"cut sh".to_vec()] {
        std::fs::write(dir.file("stem.onnx"), left).expect("written");
        assert!(weights(&packed_stem(&dir, &now.net).expect("a stem")) == weights(&stem));
        assert!(file() == written);
    }
    assert!(weights(&packed_stem(&dir, &before.net).expect("a stem")) != weights(&stem));
}

#[test]
fn a_sharpened_tripwire_finds_what_the_audit_accused() {
    let kernels = Simd::new(1);
    let engine = trapped(5, 7);
    let square = |pictures: &mut Pictures, first: usize| {
        for i in 0..pictures.len() {
            // The label is a colour.
            let label = pictures.labels[i] as usize;
            let picture = pictures.picture_mut(i);
            picture.iter_mut().skip(label).step_by(3).for_each(|v| *v |= 0x80);
            if i < first {
                continue;
            }
            (0..6).for_each(|row| picture[48 * row..][..18].fill(255));
            pictures.labels[i] = 0;
        }
    };
    let drawn = |n, stream, first| {
        let mut pictures = pictures(n, stream);
        square(&mut pictures, first);
        pictures
    };
    let (clean, suspects) = (drawn(100, 1, 100), drawn(400, 2, 300));
    let test = TestSet { clean: drawn(60, 4, 60), triggered: drawn(60, 3, 0), target: 0 };
    let mut how = Replacement::cached(false, 1);
    how.alarm_fpr = 0.05;
    how.settings.epochs = 20;
    let stem = onnx::lower(&Model::from_bytes(&export::stem(&engine.net).expect("a stem")).expect("ONNX"), None);
    let stem = Frozen { packed: stem.expect("a net"), device: Device::Cpu, net: &engine.net };
    let mut model = replace(stem, &clean, &test, &how, &kernels, &mut |_| true).expect("a head");
    let clear = Verdict { classes: Vec::new(), score: vec![0.0; 400], accused: vec![false; 400] };
    let base = Evidence {
        device: Device::Cpu,
        net: &engine.net,
        suspects: &suspects,
        verdict: &clear,
        holdout: &clean,
        test: &test,
        how: &how,
        kernels: &kernels,
    };
    let mut verdict = clear.clone();
    let sharpen = |model: &mut Defended, verdict: &Verdict| {
        model.sharpen(&Evidence { verdict, ..base }, &mut |_| true).expect("taught")
    };
    verdict.accused[300..].fill(true);
    verdict.score[300..].fill(1.0);
    assert_eq!(sharpen(&mut model, &verdict), None, "no tripwire to sharpen");
    model.keep_trapped(&engine.net, &clean, &test, how.alarm_fpr, &kernels).expect("kept");
    let before = model.tripwire.as_ref().map(|t| t.alarms).expect("a tripwire");
    verdict.accused[320..].fill(false);
    assert_eq!(sharpen(&mut model, &verdict), None, "too few accused");
    verdict.accused[300..].fill(true);
    let judged = sharpen(&mut model, &verdict).expect("taught");
    assert!(judged.taken() && judged.taught >= 0.9, "{judged:?}");
    let after = model.tripwire.as_ref().map(|t| t.alarms).expect("a tripwire");
    assert_eq!(before.rate, after.rate);
    // This stem is not trained, its head knows no trigger; the witness has seen what was accused.
    assert!(before.true_positives <= 0.5 && after.true_positives >= 0.95, "{before:?} {after:?}");
    assert!(after.false_positives <= 0.2, "{after:?}");
    // The same witness, without a trapped head to be held against.
    model.tripwire = None;
    let watch = |model: &mut Defended, verdict: &Verdict| {
        model.watch(&Evidence { verdict, ..base }, &mut |_| true).expect("taught")
    };
    assert_eq!(watch(&mut model, &verdict), Some(judged.taught));
    let watched = model.tripwire.as_ref().map(|t| t.alarms).expect("a tripwire");
    // Its threshold is nearer to the accused.
    assert!(watched.threshold > after.threshold && watched.false_positives <= after.false_positives, "{watched:?}");
    assert!(watched.true_positives >= 0.9 && watched.at_rate == after.at_rate, "{watched:?}");
    // Labels that say nothing teach nothing: what finds fewer than half is not kept.
    let mut mixed = clear.clone();
    (0..300).step_by(3).for_each(|i| (mixed.accused[i], mixed.score[i]) = (true, 1.0));
    model.tripwire = None;
    let found = watch(&mut model, &mixed).expect("accused");
    assert!(found < 0.5 && model.tripwire.is_none(), "{found}");
    model.keep_trapped(&engine.net, &clean, &test, how.alarm_fpr, &kernels).expect("kept");
    // Nobody is trusted: the other classes have no picture to teach.
    verdict.score.fill(1.0);
    assert_eq!(sharpen(&mut model, &verdict), None);
}
