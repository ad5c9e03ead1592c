//! `sweep`: a grid of runs from a TOML file, one table.

use crate::options::{Output, Place};
use crate::ui;
use indicatif::{MultiProgress, ProgressBar};
use std::path::PathBuf;
use stemguard_runtime::kernels::simd::Simd;
use stemguard_trainer::checkpoint::write_whole;
use stemguard_trainer::error::Failure;
use stemguard_trainer::run::RunDir;
use stemguard_trainer::sweep::{self, Plan, Told, Worker, row, table};

/// Options of `sweep`.
#[derive(clap::Args)]
#[command(
    after_help = "Example file:\n  data = \"signs\"\n  attacks = [\"badnet-grid\", \"blend\"]\n  rates = [0.1]\n  \
    seeds = [0, 1, 2]\n  [settings.short]\n  epochs = 12\n  batch = 64\n\nKeys at the top: data, holdout_data, size, attacks, rates [0.1], seeds [0], target [0], ceiling [false], [triggers] (files, by attack). [base] holds what all settings have in common, [settings.NAME] what one changes: epochs, every, batch, lr, holdout, mse, tv, architecture (depth, width, split), crop, loss, guard, replace_epochs, replace_batch, views, purify, purify_epochs, purify_mode, purify_rounds, inoculate; each as the option of that name. `ceiling = true`: also a run on the clean part alone for each set of poisoned pictures, which is then shown the triggers. `purify = false`: the setting ends with the new head and the audit.\n\nRuns that train alike are trained once. A sweep goes on where it stopped; run the same command again. Where a run fails, those beside it are finished, and no other is begun."
)]
pub(crate) struct Args {
    /// Sweep file (TOML).
    plan: PathBuf,
    /// Directory to write: a directory a run, table.md and rows.jsonl.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Print the table of what is done; run and write nothing.
    #[arg(long)]
    table: bool,
    /// Runs at a time; they share the threads, and take all GPUs in turn.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: u16,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

/// Runs what is missing, then prints the table of what is done.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let plan = Plan::read(&args.plan)?;
    let cells = plan.cells()?;
    let devices = args.place.devices()?;
    let mut outcome = Ok(());
    if !args.table {
        let at_a_time = usize::from(args.jobs);
        let threads = (args.output.kernels().threads() / at_a_time).max(1);
        if RunDir::holds(&args.out) {
            return Err(Failure::file(&args.out, "holds a run: a sweep takes a directory of its own"));
        }
        plan.rehearse(&cells, &args.out, devices.first().copied().unwrap_or_default())?;
        std::fs::create_dir_all(&args.out).map_err(|e| Failure::file(&args.out, format!("cannot be made: {e}")))?;
        let workers: Vec<Worker> = devices
            .iter()
            .cycle()
            .take(at_a_time)
            .map(|&device| Worker { device, kernels: Simd::new(threads) })
            .collect();
        let jobs = sweep::jobs(&cells);
        let all = MultiProgress::new();
        let bars: Vec<ProgressBar> = workers.iter().map(|_| all.add(ui::bar(0, ""))).collect();
        outcome = sweep::run(&jobs, &args.out, &workers, &|worker, job, told| {
            let (Some(bar), Some(of)) = (bars.get(worker), jobs.get(job)) else { return };
            let which = format!("{}/{} {}", job + 1, jobs.len(), of.name());
            match told {
                Told::Stage(told) => ui::told(bar, &format!("{which} "), of.epochs(), &told),
                Told::Done(seconds) => all.suspend(|| ui::note(&format!("{which}: done in {seconds:.0} s"))),
            }
        });
        bars.iter().for_each(ProgressBar::finish_and_clear);
    }
    // A damaged cell does not hide the others.
    let mut rows = Vec::new();
    for cell in &cells {
        match row(cell, &args.out) {
            Ok(row) => rows.extend(row),
            Err(e) if outcome.is_ok() => outcome = Err(e),
            Err(e) if outcome.as_ref().is_err_and(|first| first.to_string() == e.to_string()) => {}
            Err(e) => ui::note(&e.to_string()),
        }
    }
    let text = table(&rows);
    let mut lines = String::new();
    for row in &rows {
        lines.push_str(&serde_json::to_string(row).map_err(|e| Failure::Other(e.to_string()))?);
        lines.push('\n');
    }
    // What was refused as another plan's leaves that plan's table.
    if !args.table && (outcome.is_ok() || !rows.is_empty()) {
        write_whole(&args.out.join("table.md"), text.as_bytes())?;
        write_whole(&args.out.join("rows.jsonl"), lines.as_bytes())?;
    }
    if args.output.json {
        rows.iter().try_for_each(ui::json)?
    } else {
        ui::say(text.trim_end())?
    }
    outcome
}
