//! `infer`: classifies picture files.

use crate::fail::Fail;
use crate::model::Loaded;
use crate::pictures;
use crate::runner::Runner;
use crate::ui::{self, Common};
use serde::Serialize;
use std::path::PathBuf;
use stemguard_runtime::metrics::softmax;
use stemguard_runtime::tripwire::Alarm;

/// Pictures that go through the model together.
const BATCH: usize = 64;

/// Classify picture files.
///
/// PNG, JPEG and PPM files are resized to the model's input. Pictures are classified in order; the first unreadable one ends
/// the command. A model with a tripwire also tells how much surer its witness is of another answer, and whether that raises the
/// alarm: the picture may carry a trigger.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    stemguard infer defended.sgm photo.jpg\n  \
    stemguard infer defended.sgm --top 5 --json *.png\n\n\
    JSON: {\"picture\", \"top\"}, with a tripwire also {\"alarm\", \"alarm_raised\"}.")]
pub(crate) struct Args {
    /// The model: .sgm with a head, or an ONNX classifier
    model: PathBuf,
    /// Picture files
    #[arg(required = true, value_name = "PICTURE")]
    pictures: Vec<PathBuf>,
    /// How many classes to tell, the most probable first
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    top: u32,
    #[command(flatten)]
    common: Common,
}

/// What `--json` prints for one picture.
#[derive(Serialize)]
struct Report<'a> {
    picture: String,
    top: Vec<Answer<'a>>,
    /// The tripwire's score, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    alarm: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alarm_raised: Option<bool>,
}

/// One class and how probable it is.
#[derive(Serialize)]
struct Answer<'a> {
    class: usize,
    label: Option<&'a str>,
    probability: f32,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<(), Fail> {
    let model = Loaded::open(&args.model, None)?;
    let runner = Runner::best(&model, &args.common.kernels())?;
    let classes = classes_of(&model, &runner)?;
    #[cfg(feature = "onnx")]
    let done = model.onnx().is_some_and(|file| file.model.gives_probabilities());
    #[cfg(not(feature = "onnx"))]
    let done = false;
    let labels: Vec<&str> = model.parts().map(|parts| parts.labels().collect()).unwrap_or_default();
    let shape = runner.input();
    pictures::check_channels(&args.model, shape)?;
    for (part, files) in args.pictures.chunks(BATCH).enumerate() {
        let (mut x, mut readable) = (vec![0.0; files.len() * shape.len()], 0);
        let trouble: Result<(), Fail> = files.iter().zip(x.chunks_exact_mut(shape.len())).try_for_each(|(file, x)| {
            pictures::read(file, shape, x)?;
            readable += 1;
            Ok(())
        });
        x.truncate(readable * shape.len());
        if part == 0 {
            runner.tell_fallback(&model);
        }
        let mut logits = vec![0.0; readable * classes];
        let alarms = if x.is_empty() { Vec::new() } else { runner.watch(&x, &mut logits)? };
        for (i, (file, logits)) in files.iter().zip(logits.chunks_exact_mut(classes)).enumerate() {
            if logits.iter().any(|v| !v.is_finite()) {
                return Err(Fail::at(file, "the model's answer is not finite"));
            }
            if !done {
                softmax(logits);
            }
            let mut order: Vec<usize> = (0..classes).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
            let top = order.into_iter().take(args.top as usize);
            let top: Vec<Answer<'_>> = top
                .map(|class| Answer { class, label: labels.get(class).copied(), probability: logits[class] })
                .collect();
            print(args, file.display().to_string(), top, alarms.get(i))?;
        }
        trouble?;
    }
    Ok(())
}

fn print(args: &Args, picture: String, top: Vec<Answer<'_>>, alarm: Option<&Alarm>) -> Result<(), Fail> {
    if args.common.json {
        let (score, alarm_raised) = (alarm.map(|a| a.score), alarm.map(|a| a.raised));
        return ui::json(&Report { picture, top, alarm: score, alarm_raised });
    }
    let answers: Vec<String> = top
        .iter()
        .map(|a| match a.label {
            Some(label) => format!("{label} {:.4}", a.probability),
            None => format!("class {} {:.4}", a.class, a.probability),
        })
        .collect();
    let alarm = match alarm {
        None => String::new(),
        Some(a) => format!("; alarm {:.2}{}", a.score, if a.raised { ", raised" } else { "" }),
    };
    ui::line(format_args!("{picture}: {}{alarm}", answers.join(", ")))
}

/// The number of classes a model tells apart: an artifact needs a head, any output must be a vector.
pub(crate) fn classes_of(model: &Loaded, runner: &Runner<'_>) -> Result<usize, Fail> {
    let classes = runner.classes();
    #[cfg(feature = "onnx")]
    if model.onnx().is_some() {
        return classes.ok_or_else(|| Fail::at(model.path(), "its output is a feature map, no vector of logits"));
    }
    match model.parts()?.head {
        None => Err(Fail::at(model.path(), "holds a stem without a head: `stemguard replace` trains one")),
        Some(head) => Ok(classes.unwrap_or(head.classes as usize)),
    }
}
