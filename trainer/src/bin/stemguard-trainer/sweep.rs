//! `sweep`: a grid of runs from a TOML file, one table.

use crate::options::{Output, Place};
use crate::ui;
use std::path::PathBuf;
use stemguard_trainer::chain::Told;
use stemguard_trainer::checkpoint::write_whole;
use stemguard_trainer::error::Failure;
use stemguard_trainer::sweep::{Plan, row, run_cell, table};
use stemguard_trainer::trap::Event;

/// Options of `sweep`.
#[derive(clap::Args)]
#[command(
    after_help = "Example file:\n  data = \"signs\"\n  attacks = [\"badnet-grid\", \"blend\"]\n  rates = [0.1]\n  \
    seeds = [0, 1, 2]\n  [settings.short]\n  epochs = 12\n  batch = 64\n\nWith `ceiling = true` at its top there is also a run on the clean part alone for each set of poisoned pictures. A sweep goes on where it stopped; run the same command again."
)]
pub(crate) struct Args {
    /// Sweep file (TOML).
    plan: PathBuf,
    /// Directory to write: a directory a run, table.md and rows.jsonl.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Print the table of what is done and run nothing.
    #[arg(long)]
    table: bool,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

/// Runs what is missing, then prints the table.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let plan = Plan::read(&args.plan)?;
    let cells = plan.cells()?;
    let (device, kernels) = (args.place.device()?, args.output.kernels());
    std::fs::create_dir_all(&args.out).map_err(|e| Failure::file(&args.out, format!("cannot be made: {e}")))?;
    let mut rows = Vec::new();
    for (i, cell) in cells.iter().enumerate() {
        if !args.table {
            let bar = ui::bar(0, &cell.name);
            run_cell(cell, &args.out, device, &kernels, &mut |told| match told {
                Told::Training(stage, Event::Step { epoch, done, of, losses }) => {
                    bar.set_length(of as u64);
                    bar.set_position(done as u64);
                    let (n, epochs) = (cells.len(), cell.config.epochs);
                    bar.set_message(format!(
                        "{}/{n} {} {stage} {epoch}/{epochs} loss {:.3}",
                        i + 1,
                        cell.name,
                        losses.total
                    ));
                }
                Told::Training(..) => {}
                Told::Replacing(stage, p) => {
                    bar.set_length(u64::from(p.epochs));
                    bar.set_position(u64::from(p.epoch));
                    bar.set_message(format!("{}/{} {} {stage}", i + 1, cells.len(), cell.name));
                }
                Told::Audited(done, of) => {
                    bar.set_length(of as u64);
                    bar.set_position(done as u64);
                    bar.set_message(format!("{}/{} {} audit", i + 1, cells.len(), cell.name));
                }
            })?;
            bar.finish_and_clear();
        }
        if let Some(row) = row(cell, &args.out)? {
            if args.output.json {
                ui::json(&row)?;
            }
            rows.push(row);
        }
    }
    let text = table(&rows);
    let mut lines = String::new();
    for row in &rows {
        lines.push_str(&serde_json::to_string(row).map_err(|e| Failure::Other(e.to_string()))?);
        lines.push('\n');
    }
    write_whole(&args.out.join("table.md"), text.as_bytes())?;
    write_whole(&args.out.join("rows.jsonl"), lines.as_bytes())?;
    if args.output.json { Ok(()) } else { ui::say(text.trim_end()) }
}
