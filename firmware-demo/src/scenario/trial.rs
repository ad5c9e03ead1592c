//! Self-tests: a head just stored against the one before it, and badly taught heads against a good one.
//!
//! A new head is tested on pictures kept for that, beside the head it would replace; it is confirmed where it is not worse by more
//! than a margin. What the device is taught badly on purpose shows that the test refuses what it must.

use super::{Fault, Head, Platform, SETTINGS, STREAM_RESERVOIR, train};
use crate::assets;
use crate::engine::{CLASSES, FEATURES, Memory, OTHERS, PARAMS};
use crate::json::Line;
use crate::lesson::Lesson;
use heapless::Vec;
use stemguard_runtime::artifact::{HeadKind, HeadSpec};
use stemguard_runtime::error::Error;
use stemguard_runtime::kernels::reference::Reference;
use stemguard_runtime::metrics::argmax;
use stemguard_runtime::net::Span;
use stemguard_runtime::net::int8::Int8Net;
use stemguard_runtime::replace::trial::{self, Paired, SelfTest, Verdict};
use stemguard_runtime::rng::Rng;
use stemguard_runtime::tripwire;

/// The loss of accuracy accepted to be rid of the trapped head: a linear head on 256 pictures is weaker than a residual one on
/// thousands. From then on the core's own margin holds.
const MARGIN: f32 = 0.25;
/// The share of the kept pictures that may raise the alarm.
const ALARM_FPR: f32 = 0.01;
/// Kept pictures whose scores the tripwire is set on, at most.
const SCORES: usize = 256;
/// What the device is taught badly, one lesson after the other; the last one is refused before training.
const LESSONS: [Lesson; OTHERS + 1] = [Lesson::TenthWrong, Lesson::ClassRare, Lesson::Copies, Lesson::ClassMissing];

/// Teaches heads badly from the bank, and tests each against the head in `memory.params`, which stays: whatever the verdict leaves
/// running must not be worse than that.
pub(super) fn badly_taught<P: Platform>(platform: &mut P, memory: &mut Memory, net: &Int8Net<'_>) -> Result<(), Fault> {
    let quant = net.output_quant();
    memory.spare = memory.params;
    for (i, lesson) in LESSONS.into_iter().enumerate() {
        match (train(platform, memory, lesson, quant.scale), memory.others.get_mut(i)) {
            (Ok(()), Some(other)) => *other = memory.params,
            (Err(fault), None) if lesson == Lesson::ClassMissing => {
                platform.line(Line::new("refused", lesson.name()).text("why", fault.name()).end());
            }
            (Err(fault), _) => return Err(fault),
            (Ok(()), None) => return Err(Fault::Unexpected("a holdout without a class was taken")),
        }
    }
    memory.params = memory.spare;
    let Memory { engine, params, others, other_counts, .. } = memory;
    let spec = linear();
    let mut tests = others
        .each_ref()
        .into_iter()
        .zip(other_counts.iter_mut())
        .map(|(other, counts)| SelfTest::new(Some((&spec, &params[..])), (&spec, &other[..]), counts));
    let mut next = || tests.next().unwrap_or(Err(Error::Capacity));
    let mut tests: [SelfTest<'_>; OTHERS] = [next()?, next()?, next()?];
    for (picture, label) in assets::kept().iter() {
        engine.features(net, picture, false)?;
        let (x, scratch) = engine.dequantised(quant);
        for test in &mut tests {
            test.picture(&Reference, x, label, scratch, &mut [0.0; 2 * CLASSES])?;
        }
    }
    let verdicts = tests.each_ref().map(|test| test.verdict(trial::MARGIN));
    let (mut before, mut after) = (0, [0; OTHERS]);
    for (picture, label) in assets::tested().iter() {
        engine.features(net, picture, false)?;
        before += u64::from(argmax(&engine.logits(quant, (&spec, params))?) as u32 == label);
        for (right, other) in after.iter_mut().zip(&*others) {
            *right += u64::from(argmax(&engine.logits(quant, (&spec, other))?) as u32 == label);
        }
    }
    let allowed = (trial::MARGIN * assets::tested().len() as f32) as u64;
    for (((lesson, verdict), counts), right) in LESSONS.iter().zip(verdicts).zip(&*other_counts).zip(after) {
        let mut line = Line::new("stage", "badly taught");
        line.text("lesson", lesson.name());
        self_tested(&mut line, counts, verdict);
        platform.line(line.number("right_before", before).number("right", right).end());
        if verdict == Verdict::Confirm && right + allowed < before {
            return Err(Fault::Unexpected("a bad lesson made the device worse"));
        }
    }
    Ok(())
}

/// A linear head's sizes.
const fn linear() -> HeadSpec {
    let span = Span { at: 0, len: PARAMS as u32 };
    HeadSpec { kind: HeadKind::Linear, features: FEATURES, classes: CLASSES as u32, span }
}

/// Adds a self-test's counts and verdict to a line.
fn self_tested(line: &mut Line, counts: &[Paired], verdict: Verdict) {
    let (lost, gained) = counts.iter().fold((0, 0), |(lost, gained), c| (lost + c.lost, gained + c.gained));
    let word = if verdict == Verdict::Confirm { "confirm" } else { "reject" };
    line.number("lost", lost.into()).number("gained", gained.into()).text("verdict", word);
}

/// The self-test of the head in `memory.params` against the one in `memory.spare`, or the factory's; banks the kept pictures. Against
/// the factory's, which is the witness, it also gives the threshold of the tripwire.
pub(super) fn try_out<P: Platform>(
    platform: &mut P,
    memory: &mut Memory,
    net: &Int8Net<'_>,
    new: &HeadSpec,
    old: Option<&HeadSpec>,
    factory: Head<'_>,
) -> Result<(Verdict, f32), Fault> {
    let (quant, mut rng) = (net.output_quant(), Rng::new(SETTINGS.seed, STREAM_RESERVOIR));
    let Memory { engine, bank, params, spare, counts, .. } = memory;
    let margin = if old.is_some() { trial::MARGIN } else { MARGIN };
    let old = old.map_or(factory, |spec| (spec, &spare[..]));
    let mut test = SelfTest::new(Some(old), (new, &params[..]), counts)?;
    let (mut logits, mut scores) = ([0.0; 2 * CLASSES], Vec::<f32, SCORES>::new());
    bank.clear();
    for (picture, label) in assets::kept().iter() {
        engine.features(net, picture, false)?;
        bank.take(&engine.map, quant, label, &mut rng);
        let (x, scratch) = engine.dequantised(quant);
        test.picture(&Reference, x, label, scratch, &mut logits)?;
        let (witness, new) = logits.split_at(CLASSES);
        // What no number answers, the self-test counts as wrong; a threshold is not set by it.
        if let Ok(score) = tripwire::score(witness, new) {
            let _ = scores.push(score);
        }
    }
    let verdict = test.verdict(margin);
    // Without any score there is no verdict for the head either.
    let threshold = if scores.is_empty() { f32::MAX } else { tripwire::threshold(&scores, ALARM_FPR)? };
    let mut line = Line::new("stage", "self-test");
    line.number("kept", bank.len() as u64);
    self_tested(&mut line, counts, verdict);
    platform.line(line.digest("threshold", threshold.to_bits()).end());
    Ok((verdict, threshold))
}
