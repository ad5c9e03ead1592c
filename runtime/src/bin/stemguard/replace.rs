//! `replace`: a new head on clean pictures.

use crate::eval::{self, Score};
use crate::fail::Fail;
use crate::files;
use crate::model::{Loaded, head_name};
use crate::pictures::check_channels;
use crate::runner::Runner;
use crate::ui::{self, Common};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;
use stemguard_runtime::artifact::{ArtifactParts, HeadKind, HeadParts, TripwireParts, to_vec};
use stemguard_runtime::data::{Part, Pictures, Source, Spec};
use stemguard_runtime::error::Error;
use stemguard_runtime::replace::{Settings, check_holdout};
use stemguard_runtime::session::{Augment, Session, Space, replace_head, set_tripwire};
use stemguard_runtime::shape::Shape;

/// Train a new head on clean pictures, the stem frozen.
///
/// Stage 2 of Trap and Replace (arXiv 2210.06428): any head the model had is dropped, and a new one is trained from scratch on
/// the holdout, pictures known to be clean. Every class must be there, and at least one batch. The result holds the stem, the
/// new head, and the class names of the holdout, in the model's order where they are the same.
///
/// Pictures are resized to the stem's input. While training, they are shifted and mirrored; mirroring is off for gtsrb and
/// signs, where it turns some classes into others.
///
/// With --keep-head the old head stays as the witness of a tripwire: `infer` tells how much surer it, which may have learnt a
/// backdoor, is of its answer than the new one. Where the model has a tripwire already, the witness stays who it was; without
/// --keep-head it goes. The alarm's threshold is set on the holdout. The classes are then the model's, matched by name.
#[derive(clap::Args)]
#[command(
    after_help = "Data sets: cifar10:DIR, cifar100:DIR, gtsrb:DIR, folder:DIR, npz:FILE, signs[:N]; @train or @test \
    behind one picks a part. The training part is taken for --holdout, the test part for --validate, where there is one.\n\n\
    Defaults: 100 epochs, batch 64, label smoothing 0.1. Residual head: weight decay 5e-4, dropout 0.5, CutMix, learning rate \
    0.01 in feature space, otherwise 0.03, as published. Linear head: learning rate 0.01, weight decay 1e-3, no \
    dropout, no CutMix.\n\n\
    Examples:\n  \
    stemguard replace stem.sgm --holdout folder:clean --out defended.sgm\n  \
    stemguard replace model.onnx --at /layer3/Add_output_0 --holdout cifar10:data@test --space pictures --out defended.sgm\n  \
    stemguard replace stem.sgm --holdout signs:600 --validate signs:600 --head linear --epochs 30 --out small.sgm\n  \
    stemguard replace defended.sgm --holdout folder:clean --keep-head --alarm-fpr 0.02 --out renewed.sgm"
)]
pub(crate) struct Args {
    /// The stem: .sgm, or .onnx
    stem: PathBuf,
    /// Cut an ONNX model at this tensor
    #[arg(long, value_name = "TENSOR")]
    at: Option<String>,
    /// Clean pictures
    #[arg(long, value_name = "SPEC")]
    holdout: String,
    /// Where the defended artifact goes
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Kind of head
    #[arg(long, value_enum, default_value = "residual")]
    head: Kind,
    /// Passes over the holdout
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    epochs: Option<u32>,
    /// Pictures a step
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    batch: Option<u32>,
    /// Learning rate at the start
    #[arg(long, value_name = "RATE", value_parser = ui::rate)]
    lr: Option<f32>,
    /// L2 weight decay
    #[arg(long, value_name = "DECAY", value_parser = ui::share)]
    weight_decay: Option<f32>,
    /// Label smoothing
    #[arg(long, value_name = "SHARE", value_parser = ui::part)]
    smoothing: Option<f32>,
    /// Dropout at the head
    #[arg(long, value_name = "SHARE", value_parser = ui::part)]
    dropout: Option<f32>,
    /// Do not mix pairs of pictures
    #[arg(long)]
    no_cutmix: bool,
    /// Seed of everything random in training
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Where pictures are varied and mixed
    #[arg(long, value_enum, default_value = "features")]
    space: SpaceChoice,
    /// Views of each picture that the stem sees; with --space pictures as many as epochs [default: 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    views: Option<u32>,
    /// Shift pictures by up to N pixels
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(0..=4096))]
    shift: u32,
    /// Do not mirror pictures (already off for gtsrb and signs)
    #[arg(long)]
    no_flip: bool,
    /// Keep the old head as the witness of a tripwire
    #[arg(long)]
    keep_head: bool,
    /// With --keep-head: share of the holdout that may raise the alarm, 0..1
    #[arg(long, value_name = "RATE", default_value_t = 0.01, requires = "keep_head", value_parser = ui::share)]
    alarm_fpr: f32,
    /// Measure ACC on this data set afterwards
    #[arg(long, value_name = "SPEC")]
    validate: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// A kind of head as a flag names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Pooled features and one linear layer: for microcontrollers
    Linear,
    /// The published light head
    Residual,
}

/// Where augmentation happens, as a flag names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum SpaceChoice {
    /// The features of a few views are kept, and mixed: fast
    Features,
    /// Pictures are mixed; the features of a few passes are kept, and repeated: fast, and nearly as published
    Mixed,
    /// Pictures are mixed, and go through the stem at every step: as published
    Pictures,
}

/// Views of each picture, unless asked for otherwise.
const VIEWS: u32 = 8;

/// The most bytes of pictures and cached features: 32 GiB.
const MAX_BYTES: u64 = 32 << 30;

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    head: &'static str,
    classes: usize,
    pictures: usize,
    epochs: u32,
    loss: f32,
    seconds: f64,
    pictures_per_second: f64,
    acc: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alarm_threshold: Option<f32>,
    out: String,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<(), Fail> {
    let holdout = eval::parse("--holdout", &args.holdout)?;
    let validate = args.validate.as_deref().map(|spec| eval::parse("--validate", spec)).transpose()?;
    let paths = [Some(&holdout), validate.as_ref()].into_iter().flatten().filter_map(|spec| spec.source.path());
    let inputs = paths.map(|path| (path, "the pictures")).chain([(args.stem.as_path(), "the model")]);
    files::check_apart(&args.out, &inputs.collect::<Vec<_>>())?;
    let (kind, settings) = settings(args);
    settings.check().map_err(Fail::input)?;
    if args.no_cutmix && kind == HeadKind::Linear {
        return Err(Fail::input("--no-cutmix: a linear head is trained without in any case"));
    }
    let space = space(args)?;
    let model = Loaded::open(&args.stem, args.at.as_deref())?;
    let parts = model.native()?;
    let input = parts.stem.input();
    check_channels(&args.stem, input)?;
    let kernels = args.common.kernels();

    let mut clean = eval::load(&holdout, input, Part::Train)?;
    number(args, &parts, &mut clean)?;
    let classes = clean.classes.len();
    check(args, &settings, &clean)?;
    let witness = witness(args, &parts, classes)?;
    let labels = labels(&parts, &clean);
    let names: Vec<&str> = labels.lines().collect();
    let measured = validate
        .as_ref()
        .zip(args.validate.as_deref())
        .map(|(spec, given)| eval::measured(spec, given, input, &names, classes))
        .transpose()?;

    let x = pictures(args, &clean, parts.stem.output(), kept(space))?;
    let augment = Augment { shift: args.shift as usize, flip: !args.no_flip && mirrors(&holdout) };
    let stem = Session::of_stem(parts.stem, kernels.clone());
    model.tell_whole();
    let (bar, start) = (ui::bar(settings.epochs.into(), "replace"), Instant::now());
    bar.tick();
    let mut loss = 0.0;
    let mut progress = |p: stemguard_runtime::replace::Progress| {
        loss = p.loss;
        bar.set_position(p.epoch.into());
        bar.set_message(format!("loss {:.4}", p.loss));
        true
    };
    let trained = replace_head(&stem, kind, classes, &x, &clean.labels, space, augment, &settings, &mut progress);
    bar.finish_and_clear();
    let new = trained.map_err(|e| match e {
        Error::NotFinite => Fail::at(
            &args.stem,
            "features or loss became NaN or infinite: lower --lr, or the stem does not suit these pictures",
        ),
        e => Fail::at(&args.stem, e),
    })?;
    let seconds = start.elapsed().as_secs_f64();

    let head = new.parts();
    let tripwire = witness
        .map(|witness| set_tripwire(parts.stem, head, witness, &x, args.alarm_fpr, &kernels))
        .transpose()
        .map_err(|e| Fail::at(&args.stem, format!("no tripwire: {e}")))?;
    let provenance = provenance(&parts, args, (&settings, space), &holdout, clean.len(), head_name(kind));
    let defended = ArtifactParts { labels: &labels, provenance: &provenance, head: Some(head), tripwire, ..parts };
    let acc = match (&measured, &args.validate) {
        (Some(pictures), Some(spec)) => {
            let session = Session::of_artifact(&defended, kernels).map_err(|e| Fail::at(&args.stem, e))?;
            Some(Score::of(&Runner::Native(Box::new(session)), classes, pictures, spec)?.acc())
        }
        _ => None,
    };
    let bytes = to_vec(&defended).map_err(|e| Fail::at(&args.stem, e))?;
    files::write(&args.out, &bytes)?;

    let done = Report {
        head: head_name(kind),
        classes,
        pictures: clean.len(),
        epochs: settings.epochs,
        loss,
        seconds,
        pictures_per_second: clean.len() as f64 * f64::from(settings.epochs) / seconds.max(1e-9),
        acc,
        alarm_threshold: tripwire.map(|tripwire| tripwire.threshold),
        out: args.out.display().to_string(),
    };
    tell(args, &done, tripwire)
}

/// Tells what was done.
fn tell(args: &Args, done: &Report, tripwire: Option<TripwireParts<'_>>) -> Result<(), Fail> {
    if args.common.json {
        return ui::json(done);
    }
    let Report { head, classes, pictures, epochs, loss, seconds, pictures_per_second, acc, out, .. } = done;
    ui::line(format_args!("{out}: {head} head, {classes} classes, {pictures} pictures, {epochs} epochs"))?;
    ui::line(format_args!("loss {loss:.4}, {seconds:.1} s, {pictures_per_second:.0} pictures/s"))?;
    if let Some(tripwire) = tripwire {
        let (kind, rate) = (head_name(tripwire.witness.kind), tripwire.false_positive_rate);
        ui::line(format_args!(
            "tripwire: {kind} witness, alarm above {}, for a rate of {rate} on clean pictures",
            tripwire.threshold
        ))?;
    }
    acc.map_or(Ok(()), |acc| ui::line(format_args!("ACC {acc:.4} on {}", args.validate.as_deref().unwrap_or_default())))
}

/// The settings asked for, on top of the defaults of the head and the space.
fn settings(args: &Args) -> (HeadKind, Settings) {
    let (kind, base) = match (args.head, args.space) {
        (Kind::Linear, _) => (HeadKind::Linear, Settings::LINEAR),
        (Kind::Residual, SpaceChoice::Features) => (HeadKind::Residual, Settings::CACHED),
        (Kind::Residual, SpaceChoice::Mixed | SpaceChoice::Pictures) => (HeadKind::Residual, Settings::PUBLISHED),
    };
    let settings = Settings {
        epochs: args.epochs.unwrap_or(base.epochs),
        batch: args.batch.map_or(base.batch, |n| n as usize),
        rate: args.lr.unwrap_or(base.rate),
        decay: args.weight_decay.unwrap_or(base.decay),
        smoothing: args.smoothing.unwrap_or(base.smoothing),
        cutmix: base.cutmix && !args.no_cutmix,
        dropout: args.dropout.unwrap_or(base.dropout),
        seed: args.seed,
    };
    (kind, settings)
}

/// Where pictures are varied, and how many views of each are kept.
fn space(args: &Args) -> Result<Space, Fail> {
    let views = args.views.unwrap_or(VIEWS) as usize;
    match args.space {
        SpaceChoice::Features => Ok(Space::Features { views }),
        SpaceChoice::Mixed => Ok(Space::Mixed { views }),
        SpaceChoice::Pictures if args.views.is_some() => {
            Err(Fail::input("--views: with --space pictures each epoch sees a new one"))
        }
        SpaceChoice::Pictures => Ok(Space::Pictures),
    }
}

/// Views of each picture whose features are kept.
fn kept(space: Space) -> usize {
    match space {
        Space::Features { views } | Space::Mixed { views } => views,
        Space::Pictures => 0,
    }
}

/// Whether mirroring leaves the classes of a data set what they are.
fn mirrors(spec: &Spec) -> bool {
    !matches!(spec.source, Source::Gtsrb(_) | Source::Signs(_))
}

/// What must hold of the holdout before anything is computed; a class is told by its name.
fn check(args: &Args, settings: &Settings, clean: &Pictures) -> Result<(), Fail> {
    if clean.classes.len() < 2 {
        return Err(Fail::input(format!("--holdout {}: a head tells classes apart, and there is one", args.holdout)));
    }
    check_holdout(&clean.labels, clean.classes.len(), settings.batch).map_err(|e| match e {
        Error::ClassAbsent(class) => {
            let name = clean.classes.get(class as usize).map_or("", |name| name);
            Fail::input(format!("--holdout {}: no picture of class {class} (`{name}`)", args.holdout))
        }
        e => Fail::input(format!("--holdout {}: {e}", args.holdout)),
    })
}

/// Numbers the classes of the holdout as the model does, where they are the same; where the old head stays, they must be.
fn number(args: &Args, parts: &ArtifactParts<'_>, clean: &mut Pictures) -> Result<(), Fail> {
    let names: Vec<&str> = parts.labels().collect();
    let mut matched = Pictures { labels: clean.labels.clone(), classes: clean.classes.clone(), ..Pictures::default() };
    match matched.number_as(&names, "the model") {
        Err(why) if args.keep_head => Err(Fail::input(format!("--holdout {}: --keep-head: {why}", args.holdout))),
        Ok(true) if args.keep_head || names.len() == clean.classes.len() => {
            (clean.labels, clean.classes) = (matched.labels, matched.classes);
            Ok(())
        }
        // Other classes than before: those of the holdout.
        _ => Ok(()),
    }
}

/// The head to keep, if one is asked for: the witness the model has, else its head.
fn witness<'a>(args: &Args, parts: &ArtifactParts<'a>, classes: usize) -> Result<Option<HeadParts<'a>>, Fail> {
    if !args.keep_head {
        return Ok(None);
    }
    let Some(old) = parts.tripwire.map(|tripwire| tripwire.witness).or(parts.head) else {
        return Err(Fail::at(&args.stem, "--keep-head: it holds a stem without a head"));
    };
    if old.classes as usize != classes {
        let why = format!("--keep-head: its head has {} classes, and the holdout {classes}", old.classes);
        return Err(Fail::at(&args.stem, why));
    }
    Ok(Some(old))
}

/// The class names as an artifact keeps them. Where the data set only numbers its classes, those of the stem stay.
fn labels(parts: &ArtifactParts<'_>, clean: &Pictures) -> String {
    if clean.numbered() && parts.labels().count() == clean.classes.len() {
        return parts.labels.to_string();
    }
    clean.classes.join("\n")
}

/// The holdout as `[n][h][w][3]`, 0..=1, if it and its features fit.
fn pictures(args: &Args, clean: &Pictures, features: Shape, views: usize) -> Result<Vec<f32>, Fail> {
    let (n, len) = (clean.len() as u64, clean.shape().len());
    let bytes = n * (4 * len as u64 + 2 * (views * features.len()) as u64);
    if bytes > MAX_BYTES {
        let why = format!("pictures and {views} views of features take {bytes} bytes, more than 32 GiB");
        return Err(Fail::input(format!("--holdout {}: {why}: fewer --views, or --space pictures", args.holdout)));
    }
    let all: Vec<usize> = (0..clean.len()).collect();
    let mut x = vec![0.0; clean.len() * len];
    clean.to_f32(&all, &mut x).map_err(|e| Fail::Other(e.to_string()))?;
    Ok(x)
}

/// How the head came about; the same run gives the same text.
fn provenance(
    parts: &ArtifactParts<'_>,
    args: &Args,
    (settings, space): (&Settings, Space),
    holdout: &Spec,
    n: usize,
    head: &str,
) -> String {
    let kind = holdout.to_string();
    let kind = kind.split(':').next().unwrap_or_default();
    let space = match space {
        Space::Features { views } => format!("{views} cached views"),
        Space::Mixed { views } => format!("{views} cached passes"),
        Space::Pictures => "fresh views".into(),
    };
    let stem = parts.provenance.split("; head: ").next().unwrap_or_default();
    let kept = if args.keep_head { ", the old head kept as witness" } else { "" };
    format!(
        "{stem}; head: {head}, {n} clean pictures ({kind}), {} epochs of batch {}, {space}, seed {}{kept}",
        settings.epochs, settings.batch, settings.seed
    )
}
