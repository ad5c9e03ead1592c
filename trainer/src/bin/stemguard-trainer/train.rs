//! `train` and `trap`.

use crate::options::{Data, LossName, Output, Place, PurifyOptions, Recipe, ReplaceOptions, config};
use crate::ui;
use std::path::PathBuf;
use stemguard_runtime::kernels::simd::Simd;
use stemguard_trainer::chain::{Told, finish};
use stemguard_trainer::config::RunConfig;
use stemguard_trainer::defend::Replacement;
use stemguard_trainer::engine::Device;
use stemguard_trainer::error::Failure;
use stemguard_trainer::evaluate::Evaluation;
use stemguard_trainer::prepare::{Prepared, prepare};
use stemguard_trainer::purify::{self, Purification};
use stemguard_trainer::run::RunDir;
use stemguard_trainer::trap::{Event, Trained, rehearse, train};

/// Options of `train` and `trap`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    data: Data,
    #[command(flatten)]
    recipe: Recipe,
    /// Run directory to write.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// After the trap: replace the head, audit, purify (`trap` only).
    #[arg(long)]
    purify: bool,
    #[command(flatten, next_help_heading = "With --purify")]
    how: PurifyOptions,
    #[command(flatten, next_help_heading = "With --purify")]
    replace: ReplaceOptions,
    /// Go on where this run was interrupted; the result has the same bits as an unbroken run.
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

/// Trains, telling every epoch.
pub(crate) fn run(args: &Args, trap: bool) -> Result<(), Failure> {
    let config = config(&args.data, &args.recipe, trap)?;
    let (purification, how) = (args.how.purification()?, args.replace.replacement(config.flip, config.seed)?);
    let (device, kernels) = (args.place.device()?, args.output.kernels());
    RunDir::admits(&args.out, &config, args.resume)?;
    if args.purify {
        purify::admits(&RunDir { path: args.out.clone() }, &purification, &how, args.resume)?;
    }
    if trap && args.recipe.loss == LossName::Guarded && config.guard.is_none() {
        ui::note(&format!("{} epochs leave none after a guard: the published loss is minimised", config.epochs));
    }
    rehearse(&config, device)?;
    let bar = ui::bar(0, "");
    let data = prepare(&config, &kernels, Some(&args.out), &mut |done, of| {
        ui::stands(&bar, done, of, "perturb");
    })?;
    bar.finish_and_clear();
    let counts = data.counts();
    ui::note(&format!(
        "{} suspects, {} in the holdout, {} to measure on, {} classes",
        counts.train,
        counts.holdout,
        counts.test,
        data.holdout.pictures().classes.len()
    ));
    match how.check(data.holdout.pictures()) {
        Err(e) if args.purify => return Err(e),
        // It can be told when the head is replaced.
        Err(e) => ui::note(&e.to_string()),
        Ok(()) => {}
    }
    let bar = ui::bar(0, "epoch 1");
    let mut trouble = None;
    let trained = train(&config, &data, &args.out, args.resume, device, &kernels, &mut |event| match event {
        Event::Step { epoch, done, of, losses } => {
            ui::stands(&bar, done, of, format!("epoch {epoch}/{} loss {:.3}", config.epochs, losses.total));
        }
        event => bar.suspend(|| trouble = trouble.take().or(line(&event, args.output.json).err())),
    })?;
    bar.finish_and_clear();
    if let Some(e) = trouble {
        return Err(e);
    }
    let e = &trained.evaluation;
    if args.output.json {
        ui::json(
            &serde_json::json!({ "run": ui::shown(&args.out), "acc": e.acc, "asr": e.asr, "ra": e.ra, "chance": e.chance }),
        )
    } else {
        ui::say(&format!("{}: ACC {:.1} %, ASR {:.1} %", args.out.display(), 100.0 * e.acc, 100.0 * e.asr))
    }?;
    if args.purify { defend(args, &config, &data, trained, &purification, &how, device, &kernels) } else { Ok(()) }
}

/// Tells of an epoch, or of the guard's verdict after it.
fn line(event: &Event<'_>, json: bool) -> Result<(), Failure> {
    match event {
        Event::Step { .. } => Ok(()),
        Event::Guard(verdict) => {
            let accused = verdict.accused.iter().filter(|&&a| a).count();
            if json {
                return ui::json(&serde_json::json!({ "guard": verdict.classes, "accused": accused }));
            }
            let named: Vec<String> =
                verdict.classes.iter().filter(|c| c.suspected).map(|c| c.class.to_string()).collect();
            let named = if named.is_empty() { "none".to_owned() } else { named.join(", ") };
            ui::say(&format!("guard: {accused} pictures accused; target classes: {named}"))
        }
        Event::Epoch(line) if json => ui::json(line),
        Event::Epoch(line) => {
            let percent = |what, v: Option<f64>| v.map_or(String::new(), |v| format!("  {what} {:5.1}", 100.0 * v));
            let unlearned = line.unlearned.map_or(String::new(), |n| format!("  unlearned {n}"));
            ui::say(&format!(
                "epoch {:3}  loss {:.4} (ce {:.4} mse {:.5} tv {:.5})  {:.0} pictures/s{unlearned}{}{}",
                line.epoch,
                line.losses.total,
                line.losses.ce,
                line.losses.mse,
                line.losses.tv,
                line.pictures_per_second,
                percent("ACC", line.acc),
                percent("ASR", line.asr)
            ))
        }
    }
}

/// What comes after the trap, with --purify.
#[allow(clippy::too_many_arguments)]
fn defend(
    args: &Args,
    config: &RunConfig,
    data: &Prepared,
    mut trained: Trained,
    purification: &Purification,
    how: &Replacement,
    device: Device,
    kernels: &Simd,
) -> Result<(), Failure> {
    let bar = ui::bar(0, "replace");
    let (dir, engine) = (&trained.dir, &mut trained.engine);
    let tell = &mut |told: Told<'_>| ui::told(&bar, "", purification.epochs, &told);
    let end = finish(dir, config, data, engine, how, purification, args.resume, device, kernels, tell)?;
    bar.finish_and_clear();
    if args.output.json {
        return ui::json(
            &serde_json::json!({ "replaced": end.replaced, "tripwire": end.tripwire, "audit": end.audit, "purified": end.purified,
                "purified_tripwire": end.watch }),
        );
    }
    let line = |what: &str, e: &Evaluation| {
        let [acc, asr, chance, ra] = [e.acc, e.asr, e.chance, e.ra].map(|v| 100.0 * v);
        ui::say(&format!("{what}: ACC {acc:.1} %, ASR {asr:.1} % (chance {chance:.1}), RA {ra:.1} %"))
    };
    line("replaced", &end.replaced)?;
    if let Some(alarms) = end.tripwire {
        ui::say(&format!("tripwire: {alarms}"))?;
    }
    ui::say(&format!("audit: {} of {} pictures accused", end.audit.accused, end.audit.pictures))?;
    line("purified", &end.purified)?;
    if end.audit.accused == 0 {
        ui::say(ui::NOBODY)?;
    }
    ui::say(&format!("its tripwire: {}", end.watch))
}
