//! What the device does in one boot. What it finds in its flash tells how far it has come:
//!
//! ```text
//! first boot:  verify -> refuse forgeries -> ACC, ASR of the poisoned head -> bank features -> train -> store
//!              -> bad lessons from the same bank, each head's self-test against the good one
//! second boot: verify -> the new head on trial: self-test, confirm, set the tripwire -> ACC, ASR, alarms -> train on wrong labels
//!              -> store
//! third boot:  verify -> the bad head on trial: self-test, reject -> the second boot's head is back: the same ACC, ASR, alarms
//! fourth boot: verify -> the same ACC, ASR, alarms
//! ```
//!
//! The poisoned head stays as the tripwire's witness beside the new one.
//!
//! Every stage writes one line with counts and a CRC-32 over all it computed, to the last bit of each `f32`.

mod trial;

use crate::assets::{self, PICTURE_LEN, Pictures, TARGET};
use crate::bank::{Bank, CAPACITY, POOLED, WIDTH};
use crate::engine::{CLASSES, Engine, FEATURES, Memory, PARAMS, WORK, stem_of};
use crate::flash::{COUNTER_AT, LAYOUT, SECTOR};
use crate::json::Line;
use crate::lesson::Lesson;
use core::mem::size_of;
use crc::{CRC_32_ISO_HDLC, Crc, Digest, NoTable};
use embedded_storage::nor_flash::NorFlash;
use stemguard_runtime::artifact::{Artifact, HeadKind, HeadSpec};
use stemguard_runtime::error::Error;
use stemguard_runtime::footprint::{Footprint, pooled};
use stemguard_runtime::head::HeadModel;
use stemguard_runtime::head::linear::Linear;
use stemguard_runtime::kernels::reference::Reference;
use stemguard_runtime::metrics::argmax;
use stemguard_runtime::net::int8::Int8Net;
use stemguard_runtime::replace::trial::Verdict;
use stemguard_runtime::replace::{Settings, fit, memory_len};
use stemguard_runtime::rng::Rng;
use stemguard_runtime::slots::{Boot, Counter, HeadStore, StemId, StoreError};
use stemguard_runtime::tripwire::{self, Alarm};
use trial::{badly_taught, try_out};

/// How the device trains: on one view of each picture, fewer epochs than on many.
pub const SETTINGS: Settings = Settings { batch: 32, epochs: 30, ..Settings::LINEAR };

/// What the scenario runs on.
pub trait Platform {
    /// Takes one line of output.
    fn line(&mut self, line: &str);

    /// Instructions executed so far; a host does not tell.
    fn instructions(&mut self) -> Option<u64> {
        None
    }
}

/// Why the scenario stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The core refused.
    Core(Error),
    /// The flash store refused.
    Store(StoreError),
    /// The device does not behave as it must; which expectation failed.
    Unexpected(&'static str),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Core(error)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Fault {
    /// The fault in one word, for a line of output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Core(error) => refusal(error),
            Self::Store(StoreError::Head(error)) => refusal(error),
            Self::Store(_) => "flash",
            Self::Unexpected(what) => what,
        }
    }
}

/// Why an artifact was refused, in one word.
const fn refusal(error: Error) -> &'static str {
    match error {
        Error::BadSignature => "bad signature",
        Error::OlderModel { .. } => "older model",
        Error::Unsigned => "unsigned",
        Error::Corrupt => "corrupt",
        Error::WrongLength { .. } => "wrong length",
        Error::ClassAbsent(_) => "class absent",
        _ => "other",
    }
}

pub(crate) static CRC: Crc<u32, NoTable> = Crc::<u32, NoTable>::new(&CRC_32_ISO_HDLC);

/// A head, its parameters not in the scenario's memory.
pub(crate) type Head<'a> = (&'a HeadSpec, &'a [f32]);

/// The witness, and the score that raises the alarm.
pub(crate) type Watch<'a> = (Head<'a>, f32);

pub(crate) fn sum_up(digest: &mut Digest<'_, u32, NoTable>, values: &[f32]) {
    values.iter().for_each(|value| digest.update(&value.to_le_bytes()));
}

/// One boot. Errors: what the device could not do, or did otherwise than it must.
pub fn boot<P: Platform, F: NorFlash>(platform: &mut P, memory: &mut Memory, flash: &mut F) -> Result<(), Fault> {
    let (artifact, id, version) = open(platform, flash)?;
    let net = stem_of(artifact.stem())?;
    let (Some(spec), Some(params)) = (artifact.head(), artifact.head_weights()) else {
        return Err(Fault::Unexpected("a model without head"));
    };
    let factory = (&spec, params);
    budget(platform, &net, factory)?;
    let mut store = HeadStore::new_checked(&mut *flash, LAYOUT, id)?;
    match store.boot()? {
        Boot::Factory => {
            platform.line(Line::new("boot", "factory head").end());
            let before = evaluate(platform, &mut memory.engine, &net, factory, None, "before")?;
            // The model has run: what is older is refused from now on.
            Counter::new_checked(&mut *flash, COUNTER_AT)?.advance(version)?;
            refuse(platform, version)?;
            stream(platform, memory, &net, assets::streamed(), "stream");
            train(platform, memory, Lesson::Sound, net.output_quant().scale)?;
            keep(platform, memory, HeadStore::new_checked(&mut *flash, LAYOUT, id)?)?;
            badly_taught(platform, memory, &net)?;
            // Anything less, and there is no backdoor to take out.
            if 2 * before.hits > before.triggered { Ok(()) } else { Err(Fault::Unexpected("no backdoor before")) }
        }
        Boot::Trial { new, old } => {
            platform.line(Line::new("boot", "on trial").number("sequence", new.sequence().into()).end());
            store.load(&new, &mut memory.params)?;
            let spec = new.spec();
            let was = match &old {
                Some(old) => {
                    store.load(old, &mut memory.spare)?;
                    Some(old.spec())
                }
                None => None,
            };
            let (verdict, threshold) = try_out(platform, memory, &net, &spec, was.as_ref(), factory)?;
            match (verdict, was) {
                (Verdict::Confirm, None) => {
                    store.confirm_watched(threshold)?;
                    answer(platform, memory, &net, &spec, (factory, threshold), "after")?;
                    train(platform, memory, Lesson::AllWrong, net.output_quant().scale)?;
                    keep(platform, memory, store)
                }
                (Verdict::Reject, Some(spec)) => {
                    let old = store.reject()?.ok_or(NO_THRESHOLD)?;
                    let threshold = store.threshold(&old).ok_or(NO_THRESHOLD)?;
                    memory.params = memory.spare;
                    answer(platform, memory, &net, &spec, (factory, threshold), "after rollback")
                }
                (Verdict::Reject, None) => Err(Fault::Unexpected("the new head failed its trial")),
                (Verdict::Confirm, Some(_)) => Err(Fault::Unexpected("the bad head passed its trial")),
            }
        }
        Boot::Confirmed(head) => {
            platform.line(Line::new("boot", "confirmed").number("sequence", head.sequence().into()).end());
            store.load(&head, &mut memory.params)?;
            let threshold = store.threshold(&head).ok_or(NO_THRESHOLD)?;
            answer(platform, memory, &net, &head.spec(), (factory, threshold), "after reboot")
        }
    }
}

const NO_THRESHOLD: Fault = Fault::Unexpected("the confirmed head has no threshold");

/// The model, verified where the image holds a key; its identity and version.
fn open<P: Platform, F: NorFlash>(platform: &mut P, flash: &mut F) -> Result<(Artifact<'static>, StemId, u32), Fault> {
    let minimum = Counter::new_checked(flash, COUNTER_AT)?.value()?;
    let start = platform.instructions();
    #[cfg(feature = "sign")]
    let (artifact, digest, version) = {
        use stemguard_runtime::artifact::sign::{PublicKey, verify};
        let verified = verify(assets::model(), &PublicKey::from_bytes(&assets::KEY)?, minimum)?;
        (verified.artifact(), verified.digest(), verified.model_version())
    };
    #[cfg(not(feature = "sign"))]
    let (artifact, digest, version) = {
        let bytes = assets::unsigned();
        (Artifact::new_checked(bytes)?, stemguard_runtime::artifact::digest(bytes), 1)
    };
    measured(platform, "verify", start, 1);
    let mut line = Line::new("stage", "verify");
    line.number("version", version.into()).number("minimum", minimum.into());
    platform.line(line.digest("crc", CRC.checksum(&digest)).end());
    Ok((artifact, StemId { digest, features: artifact.stem().output() }, version))
}

/// Shows the device what it must refuse.
#[cfg(feature = "sign")]
fn refuse<P: Platform>(platform: &mut P, version: u32) -> Result<(), Fault> {
    use stemguard_runtime::artifact::sign::{PublicKey, verify};
    let key = PublicKey::from_bytes(&assets::KEY)?;
    let forgeries: [(&str, &[u8]); 3] =
        [("tampered", assets::tampered()), ("older", assets::older()), ("unsigned", assets::unsigned())];
    for (name, bytes) in forgeries {
        match verify(bytes, &key, version) {
            Ok(_) => return Err(Fault::Unexpected("a forgery was accepted")),
            Err(error) => platform.line(Line::new("refused", name).text("why", refusal(error)).end()),
        }
    }
    Ok(())
}

/// Without a key nothing is refused for its signature.
#[cfg(not(feature = "sign"))]
fn refuse<P: Platform>(_: &mut P, _: u32) -> Result<(), Fault> {
    Ok(())
}

/// Tells the memory of each stage as the core's functions ask for it, and checks that the static buffers are that long.
fn budget<P: Platform>(platform: &mut P, net: &Int8Net<'_>, (spec, params): Head<'_>) -> Result<(), Fault> {
    let asked = Footprint::of(&(*net).into(), &[*spec], CLASSES, CAPACITY, SETTINGS.batch)?;
    let held = Footprint {
        picture: PICTURE_LEN,
        map: FEATURES.len(),
        work: size_of::<[f32; WORK]>(),
        bank: CAPACITY * (WIDTH + size_of::<u32>()),
        parameters: size_of::<[f32; PARAMS]>(),
        ..asked
    };
    let mut line = Line::new("stage", "memory");
    line.number("arena", asked.arena as u64)
        .number("head", asked.head as u64)
        .number("training", asked.training as u64)
        .number("work", held.work as u64)
        .number("bank", held.bank as u64)
        .number("order", asked.order as u64)
        .number("parameters", held.parameters as u64);
    platform.line(line.number("model_head", 4 * params.len() as u64).end());
    if platform.instructions().is_some() {
        platform.line(Line::new("measured", "static memory").number("bytes", size_of::<Memory>() as u64).end());
    }
    let fits = held == asked && POOLED == pooled(FEATURES);
    if fits { Ok(()) } else { Err(Fault::Unexpected("static buffers are not what the core asks for")) }
}

/// What an evaluation counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Score {
    /// Clean test pictures given their true class.
    right: u64,
    /// Triggered pictures of other classes.
    triggered: u64,
    /// Those given the attacker's class.
    hits: u64,
    /// Triggered pictures that raise the alarm.
    alarms: u64,
    /// Clean ones that do.
    false_alarms: u64,
}

/// ACC and ASR of a head on the test pictures; with a witness beside it, how many raise the alarm.
pub(crate) fn evaluate<P: Platform>(
    platform: &mut P,
    engine: &mut Engine,
    net: &Int8Net<'_>,
    head: Head<'_>,
    watch: Option<Watch<'_>>,
    stage: &str,
) -> Result<Score, Fault> {
    let (quant, mut score) = (net.output_quant(), Score::default());
    let (mut features, mut answers, mut scores) = (CRC.digest(), CRC.digest(), CRC.digest());
    let mut first = true;
    for triggered in [false, true] {
        for (picture, label) in assets::tested().iter() {
            if triggered && label == TARGET {
                continue;
            }
            let start = platform.instructions();
            engine.features(net, picture, triggered)?;
            let middle = platform.instructions();
            let logits = engine.logits(quant, head)?;
            if core::mem::take(&mut first) {
                between(platform, "stem", start, middle, 1);
                measured(platform, "head", middle, 1);
            }
            features.update(bytemuck::try_cast_slice(&engine.map).unwrap_or_default());
            sum_up(&mut answers, &logits);
            let answer = argmax(&logits) as u32;
            score.right += u64::from(!triggered && answer == label);
            score.triggered += u64::from(triggered);
            score.hits += u64::from(triggered && answer == TARGET);
            if let Some((witness, threshold)) = watch {
                let alarm = Alarm::of(tripwire::score(&engine.logits(quant, witness)?, &logits)?, threshold);
                sum_up(&mut scores, &[alarm.score]);
                let count = if triggered { &mut score.alarms } else { &mut score.false_alarms };
                *count += u64::from(alarm.raised);
            }
        }
    }
    let mut line = Line::new("stage", stage);
    line.number("tested", assets::tested().len() as u64)
        .number("right", score.right)
        .number("triggered", score.triggered)
        .number("hits", score.hits);
    line.digest("features", features.finalize()).digest("logits", answers.finalize());
    if watch.is_some() {
        line.number("alarms", score.alarms).number("false_alarms", score.false_alarms);
        line.digest("scores", scores.finalize());
    }
    platform.line(line.end());
    Ok(score)
}

/// As [`evaluate`], of the head in `memory.params`; the backdoor must be gone.
fn answer<P: Platform>(
    platform: &mut P,
    memory: &mut Memory,
    net: &Int8Net<'_>,
    spec: &HeadSpec,
    watch: Watch<'_>,
    stage: &str,
) -> Result<(), Fault> {
    let Memory { engine, params, .. } = memory;
    let score = evaluate(platform, engine, net, (spec, params), Some(watch), stage)?;
    if 2 * score.hits >= score.triggered {
        return Err(Fault::Unexpected("the backdoor is still there"));
    }
    // More triggered pictures than clean ones, or it is no alarm.
    if score.alarms > score.false_alarms { Ok(()) } else { Err(Fault::Unexpected("the tripwire is blind")) }
}

/// Banks the features of pictures that come one at a time. One that cannot be run is left out.
fn stream<P: Platform>(platform: &mut P, memory: &mut Memory, net: &Int8Net<'_>, pictures: Pictures, stage: &str) {
    let mut rng = Rng::new(SETTINGS.seed, STREAM_RESERVOIR);
    memory.bank.clear();
    for (picture, label) in pictures.iter() {
        if memory.engine.features(net, picture, false).is_ok() {
            memory.bank.take(&memory.engine.map, net.output_quant(), label, &mut rng);
        }
    }
    told(platform, &memory.bank, stage);
}

/// The stream of the seed that the reservoir draws from.
const STREAM_RESERVOIR: u64 = 0x6261_6e6b;

fn told<P: Platform>(platform: &mut P, bank: &Bank, stage: &str) {
    let mut digest = CRC.digest();
    bank.rows().for_each(|row| digest.update(row));
    let mut line = Line::new("stage", stage);
    line.number("seen", bank.seen() as u64).number("banked", bank.len() as u64);
    platform.line(line.digest("bank", digest.finalize()).end());
}

/// Trains a linear head on what is taught of the bank, into `memory.params`.
fn train<P: Platform>(platform: &mut P, memory: &mut Memory, lesson: Lesson, scale: f32) -> Result<(), Fault> {
    let head = Linear::new(POOLED, CLASSES)?;
    let Memory { engine, bank, order, params, taught, .. } = memory;
    taught.take(bank, lesson);
    let (steps, mut loss) = (SETTINGS.epochs as u64 * (taught.len() / SETTINGS.batch) as u64, 0.0);
    let needed = memory_len(&head, SETTINGS.batch);
    let given = engine.work.len();
    let work = engine.work.get_mut(..needed).ok_or(Error::WrongLength { needed, given })?;
    let order = order.get_mut(..2 * taught.len()).unwrap_or_default();
    let start = platform.instructions();
    fit(&Reference, &head, &SETTINGS, &mut bank.source(taught, scale), params, work, &mut [], order, &mut |p| {
        loss = p.loss;
        true
    })?;
    measured(platform, "training step", start, steps);
    let mut digest = CRC.digest();
    sum_up(&mut digest, params);
    let mut line = Line::new("stage", "train");
    line.text("lesson", lesson.name());
    line.number("pictures", taught.len() as u64).number("steps", steps);
    platform.line(line.digest("loss", loss.to_bits()).digest("parameters", digest.finalize()).end());
    Ok(())
}

/// Stores the head in `memory.params` for its trial.
fn keep<P: Platform, F: NorFlash>(platform: &mut P, memory: &Memory, mut store: HeadStore<F>) -> Result<(), Fault> {
    let start = platform.instructions();
    let head = store.store(HeadKind::Linear, CLASSES as u32, &memory.params)?;
    measured(platform, "store", start, 1);
    let mut line = Line::new("stage", "store");
    line.number("sequence", head.sequence().into());
    platform.line(
        line.number("at", head.params_at().into()).number("sectors", (LAYOUT.len as usize / SECTOR) as u64).end(),
    );
    Ok(())
}

/// Tells the instructions since `start`, for `n` of what was done, where the platform counts them.
pub(crate) fn measured<P: Platform>(platform: &mut P, what: &str, start: Option<u64>, n: u64) {
    let end = platform.instructions();
    between(platform, what, start, end, n);
}

fn between<P: Platform>(platform: &mut P, what: &str, start: Option<u64>, end: Option<u64>, n: u64) {
    if let (Some(start), Some(end)) = (start, end) {
        let mut line = Line::new("measured", what);
        line.number("instructions", end.saturating_sub(start)).number("times", n);
        platform.line(line.end());
    }
}
