//! `eval`: accuracy on a data set.

use crate::fail::Fail;
use crate::infer::classes_of;
use crate::model::Loaded;
use crate::pictures::check_channels;
use crate::runner::Runner;
use crate::ui::{self, Common};
use serde::Serialize;
use std::path::PathBuf;
use stemguard_runtime::data::{LoadOptions, Part, Pictures, Spec, load_part};
use stemguard_runtime::metrics::{Rate, argmax};
use stemguard_runtime::shape::Shape;

/// Measure accuracy on a data set.
///
/// Prints ACC (clean pictures given their true class), accuracy by class, and the confusion matrix: a row for each true
/// class, a column for each answer. With a tripwire: the share of pictures that raise its alarm. Pictures are resized to the
/// model's input. The test part is taken where the data set has one, unless its name ends in @train. Where both the model and the
/// data name their classes, names decide which is which; the data may then lack some, or have them in another order.
#[derive(clap::Args)]
#[command(
    after_help = "Data sets: cifar10:DIR, cifar100:DIR, gtsrb:DIR, folder:DIR, npz:FILE, signs[:N]; @train or @test \
    behind one picks a part.\n\n\
    Examples:\n  \
    stemguard eval defended.sgm --data cifar10:data/cifar10\n  \
    stemguard eval defended.sgm --data folder:pictures@train --json\n\n\
    JSON: {\"acc\", \"n\", \"per_class\", \"confusion\"}; fractions 0..1, rows of the confusion matrix sum to 1; a class \
    without pictures is null in per_class and zeros in confusion. With a tripwire also {\"alarm_rate\"}, 0..1."
)]
pub(crate) struct Args {
    /// The model: .sgm with a head, or an ONNX classifier
    model: PathBuf,
    /// The data set
    #[arg(long, value_name = "SPEC")]
    data: String,
    #[command(flatten)]
    common: Common,
}

/// Pictures that go through the model together.
const BATCH: usize = 256;
/// The most classes a confusion matrix is made for.
const MAX_CONFUSION: usize = 4096;

/// Parses a data set's name; `flag` is for the message.
pub(crate) fn parse(flag: &str, spec: &str) -> Result<Spec, Fail> {
    spec.parse().map_err(|e| Fail::input(format!("{flag}: {e}")))
}

/// Loads one part at the size of a model's input.
pub(crate) fn load(spec: &Spec, input: Shape, prefer: Part) -> Result<Pictures, Fail> {
    let options = LoadOptions { size: Some((input.h as usize, input.w as usize)), seed: 0 };
    Ok(load_part(spec, &options, prefer)?)
}

/// Loads pictures to measure a model on, numbered as it numbers its classes: by name; by place where one of them has no names.
pub(crate) fn measured(
    spec: &Spec,
    given: &str,
    input: Shape,
    names: &[&str],
    classes: usize,
) -> Result<Pictures, Fail> {
    let mut pictures = load(spec, input, Part::Test)?;
    pictures.number_as(names, "the model").map_err(|e| Fail::input(format!("{given}: {e}")))?;
    if let Some((i, label)) = pictures.labels.iter().enumerate().find(|(_, l)| **l as usize >= classes) {
        return Err(Fail::input(format!(
            "{given}: picture {i} has label {label}, and the model has {classes} classes"
        )));
    }
    if names.is_empty() && !pictures.numbered() && pictures.classes.len() != classes {
        let own = pictures.classes.len();
        ui::note(format!(
            "the model has {classes} classes without names, and {given} {own}: the first is taken for the first"
        ));
    }
    Ok(pictures)
}

/// Counts of answers on labelled pictures.
pub(crate) struct Score {
    all: Rate,
    by_class: Vec<Rate>,
    /// `[true class][answer]`; empty for very many classes.
    confusion: Vec<u64>,
    /// Pictures that raised the alarm; no cases without a tripwire.
    alarms: Rate,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    acc: f64,
    n: u64,
    per_class: Vec<Option<f64>>,
    confusion: Vec<Vec<f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alarm_rate: Option<f64>,
}

impl Score {
    /// Runs every picture; labels are below `classes`. `what` names the data in messages.
    pub(crate) fn of(runner: &Runner<'_>, classes: usize, pictures: &Pictures, what: &str) -> Result<Self, Fail> {
        let cells = if classes <= MAX_CONFUSION { classes * classes } else { 0 };
        let mut score = Self {
            all: Rate::default(),
            by_class: vec![Rate::default(); classes],
            confusion: vec![0; cells],
            alarms: Rate::default(),
        };
        let bar = ui::bar(pictures.len() as u64, "evaluate");
        let all: Vec<usize> = (0..pictures.len()).collect();
        for part in all.chunks(BATCH) {
            let mut x = vec![0.0; part.len() * pictures.shape().len()];
            let mut logits = vec![0.0; part.len() * classes];
            pictures.to_f32(part, &mut x).map_err(|e| Fail::Other(e.to_string()))?;
            let alarms = runner.watch(&x, &mut logits)?;
            alarms.iter().for_each(|alarm| score.alarms.count(alarm.raised));
            if logits.iter().any(|v| !v.is_finite()) {
                return Err(Fail::input(format!("{what}: the model's answers are not finite")));
            }
            for (&i, logits) in part.iter().zip(logits.chunks_exact(classes)) {
                score.count(pictures.labels[i] as usize, argmax(logits), classes);
            }
            bar.inc(part.len() as u64);
        }
        bar.finish_and_clear();
        Ok(score)
    }

    fn count(&mut self, truth: usize, answer: usize, classes: usize) {
        self.all.count(truth == answer);
        if let Some(class) = self.by_class.get_mut(truth) {
            class.count(truth == answer);
        }
        if let Some(cell) = self.confusion.get_mut(truth * classes + answer) {
            *cell += 1;
        }
    }

    /// Right answers out of all, 0..=1.
    pub(crate) fn acc(&self) -> f64 {
        self.all.fraction()
    }

    fn report(&self) -> Report {
        let classes = self.by_class.len();
        let row = |row: &[u64]| {
            let cases = row.iter().sum::<u64>().max(1);
            row.iter().map(|&n| n as f64 / cases as f64).collect()
        };
        Report {
            acc: self.acc(),
            n: self.all.cases,
            per_class: self.by_class.iter().map(|r| (r.cases > 0).then(|| r.fraction())).collect(),
            confusion: self.confusion.chunks_exact(classes).map(row).collect(),
            alarm_rate: (self.alarms.cases > 0).then(|| self.alarms.fraction()),
        }
    }

    fn print(&self, names: &[String]) -> Result<(), Fail> {
        ui::line(format_args!("ACC {:.4} ({} of {})", self.acc(), self.all.hits, self.all.cases))?;
        if self.alarms.cases > 0 {
            let Rate { hits, cases } = self.alarms;
            ui::line(format_args!("alarm {:.4} ({hits} of {cases})", self.alarms.fraction()))?;
        }
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        let classes = self.by_class.len();
        for (class, (rate, name)) in self.by_class.iter().zip(names).enumerate() {
            let share = if rate.cases == 0 { "     -".into() } else { format!("{:.4}", rate.fraction()) };
            ui::line(format_args!("{class:>5} {name:width$} {share} ({} of {})", rate.hits, rate.cases))?;
        }
        let cell = self.confusion.iter().max().map_or(1, |n| n.to_string().len()).max(classes.to_string().len());
        if !self.confusion.is_empty() {
            ui::line("confusion, rows true, columns answered:")?;
        }
        for (class, row) in self.confusion.chunks_exact(classes).enumerate() {
            let cells: Vec<String> = row.iter().map(|n| format!("{n:>cell$}")).collect();
            ui::line(format_args!("{class:>5} {}", cells.join(" ")))?;
        }
        Ok(())
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<(), Fail> {
    let spec = parse("--data", &args.data)?;
    let model = Loaded::open(&args.model, None)?;
    let runner = Runner::best(&model, &args.common.kernels())?;
    let classes = classes_of(&model, &runner)?;
    check_channels(&args.model, runner.input())?;
    let labels: Vec<&str> = model.parts().map(|parts| parts.labels().collect()).unwrap_or_default();
    let pictures = measured(&spec, &args.data, runner.input(), &labels, classes)?;
    let score = Score::of(&runner, classes, &pictures, &args.data)?;
    runner.tell_fallback(&model);
    if args.common.json {
        return ui::json(&score.report());
    }
    let name = |i: usize| labels.get(i).map(ToString::to_string).or_else(|| pictures.classes.get(i).cloned());
    let names: Vec<String> = (0..classes).map(|i| name(i).unwrap_or_default()).collect();
    score.print(&names)
}
