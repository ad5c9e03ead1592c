//! `demo`: a backdoor planted, trapped, named and removed, on pictures the tool makes itself.

use crate::options::{Data, LossName, Output, PurifyOptions, Recipe, ReplaceOptions, config};
use crate::ui;
use clap::Parser;
use std::path::PathBuf;
use stemguard_runtime::usage;
use stemguard_trainer::chain::{DefendedFigures, Told, run as chain};
use stemguard_trainer::engine::Device;
use stemguard_trainer::error::Failure;
use stemguard_trainer::report::write;
use stemguard_trainer::run::RunDir;
use stemguard_trainer::summary::collect;
use stemguard_trainer::trap::Event;

/// Options of `demo`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Data set.
    #[arg(long, default_value = "signs", value_name = "SPEC")]
    data: String,
    /// Attack to plant.
    #[arg(long, default_value = "badnet-grid")]
    attack: String,
    /// Share of the training pictures to poison, 0..1.
    #[arg(long, default_value_t = 0.1, value_name = "SHARE")]
    poison_rate: f64,
    /// Share of the training pictures held out as clean, 0..1.
    #[arg(long, default_value_t = 0.05, value_name = "SHARE")]
    holdout: f64,
    /// Passes over the data of either training.
    #[arg(long, default_value_t = 10)]
    epochs: u32,
    /// What the trap minimises.
    #[arg(long, value_enum, default_value = "guarded")]
    loss: LossName,
    /// Seed of everything random.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Directory to write.
    #[arg(long, default_value = "runs/demo", value_name = "DIR")]
    out: PathBuf,
    /// Go on where the demo was interrupted.
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    output: Output,
}

/// The options of other commands, at their defaults.
#[derive(Parser)]
struct Defaults {
    #[command(flatten)]
    data: Data,
    #[command(flatten)]
    recipe: Recipe,
    #[command(flatten)]
    replace: ReplaceOptions,
    #[command(flatten)]
    purify: PurifyOptions,
}

/// Runs the chain and prints one table.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let text = |v: &dyn std::fmt::Display| v.to_string();
    let mut defaults = Defaults::try_parse_from([
        "demo".to_owned(),
        format!("--data={}", args.data),
        format!("--attack={}", args.attack),
        format!("--poison-rate={}", text(&args.poison_rate)),
        format!("--holdout={}", text(&args.holdout)),
        format!("--seed={}", args.seed),
        format!("--epochs={}", args.epochs),
        "--batch=64".to_owned(),
        // Signs are shifted and turned as they are made; a crop would cut the trigger off most of them.
        format!("--crop={}", if args.data.starts_with("signs") { "none" } else { "shift" }),
        "--every=5".to_owned(),
        // A holdout of a few hundred pictures: smaller steps, more of them, more views.
        "--replace-batch=32".to_owned(),
        "--replace-epochs=200".to_owned(),
        "--views=32".to_owned(),
    ])
    .map_err(|e| Failure::Input(usage::told(&e)))?;
    defaults.recipe.loss = args.loss;
    let config = config(&defaults.data, &defaults.recipe, true)?;
    let how = defaults.replace.replacement(config.flip, config.seed)?;
    let purification = defaults.purify.purification()?;
    let bar = ui::bar(0, "");
    let mut trouble = None;
    let summary = chain(
        &config,
        &how,
        &purification,
        &args.out,
        args.resume,
        Device::Cpu,
        &args.output.kernels(),
        &mut |told| match told {
            Told::Training(stage, Event::Epoch(line)) if args.output.json => {
                let line = serde_json::json!({ "stage": stage, "epoch": line.epoch, "loss": line.losses.total,
                "acc": line.acc, "asr": line.asr, "pictures_per_second": line.pictures_per_second });
                trouble = trouble.take().or(ui::json(&line).err());
            }
            told => {
                let purifies = matches!(told, Told::Training("purify", _));
                ui::told(&bar, "", if purifies { purification.epochs } else { config.epochs }, &told);
            }
        },
    )?;
    bar.finish_and_clear();
    if let Some(e) = trouble {
        return Err(e);
    }
    let (dir, record) = RunDir::open(&args.out.join("trap"))?;
    let (baseline, _) = RunDir::open(&args.out.join("baseline"))?;
    let data = collect(&dir, &record, Some(&baseline), &args.output.kernels())?;
    let page = args.out.join("report.html");
    write(&page, &data).map_err(|e| Failure::file(&page, e))?;
    if args.output.json {
        return ui::json(&summary);
    }
    let row = |name: &str, acc: f64, asr: f64, note: &str| {
        ui::say(&format!("{name:<42} {:>6.1} {:>6.1}   {note}", 100.0 * acc, 100.0 * asr))
    };
    ui::say(&format!("{:<42} {:>6} {:>6}", format!("{} with {}, %", args.data, args.attack), "ACC", "ASR"))?;
    row("undefended", summary.baseline.acc, summary.baseline.asr, "")?;
    row("control: head replaced, undefended stem", summary.control.acc, summary.control.asr, "")?;
    row("trapped, its own head", summary.trapped.acc, summary.trapped.asr, "")?;
    let note = |d: &DefendedFigures| {
        format!("chance {:.1}  RA {:.1}  DER {:.1}", 100.0 * d.chance, 100.0 * d.ra, 100.0 * d.der)
    };
    let (replaced, purified) = (&summary.replaced, &summary.defended);
    row("head replaced, trapped stem", replaced.acc, replaced.asr, &note(replaced))?;
    if let Some(alarms) = &summary.tripwire {
        ui::say(&format!("tripwire: {alarms}"))?;
    }
    let caught = summary.audit.measures.as_ref().map_or(String::new(), |m| {
        format!(": {:.1} % of the poisoned, {:.2} % of the clean", 100.0 * m.recall, 100.0 * m.false_positives)
    });
    ui::say(&format!("audit: {} of {} pictures accused{caught}", summary.audit.accused, summary.audit.pictures))?;
    if summary.audit.accused == 0 {
        ui::say(ui::NOBODY)?;
    }
    row("defended: the accused unlearned", purified.acc, purified.asr, &note(purified))?;
    ui::say(&format!("its tripwire: {}", summary.defended_tripwire))?;
    ui::say(&format!("{:.0} seconds; models in {}; report: {}", summary.seconds, args.out.display(), page.display()))
}
