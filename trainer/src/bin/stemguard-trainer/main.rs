//! `stemguard-trainer`: plants backdoors, traps them, replaces heads, measures what is left.

#![forbid(unsafe_code)]

mod attacks;
mod audit;
mod demo;
mod eval;
mod export;
mod idle;
mod options;
mod purify;
mod replace;
mod report;
mod sweep;
mod train;
mod ui;

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use stemguard_runtime::usage;
use stemguard_trainer::error::Failure;

/// Trains image classifiers on data that cannot be trusted, and takes the backdoor out again.
///
/// Trap and Replace (arXiv 2210.06428): train a stem with a light head and a reconstruction head on suspect data, throw the light
/// head away, train a new one on a small clean holdout. Around it, a guard unlearns what it accuses while the trap trains, an audit
/// names the poisoned in the end, and purification unlearns them.
#[derive(Parser)]
#[command(name = "stemguard-trainer", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Plant a backdoor, trap it, replace the head, audit, purify; the control beside it. One table, a few minutes.
    Demo(demo::Args),
    /// Train the undefended baseline.
    Train(train::Args),
    /// Train with the reconstruction head: stage 1 of the defence.
    Trap(train::Args),
    /// Replace the head of a run on its clean holdout: stage 2.
    Replace(replace::Args),
    /// Name the target classes and the poisoned pictures of a run, its head as a witness. The head is replaced first, by the options
    /// below, and defended.sgm written anew; where somebody is accused, its tripwire is taught on what was found.
    Audit(audit::Args),
    /// Measure any packed model on a run's test pictures, clean and triggered.
    Eval(eval::Args),
    /// Audit a run, as `audit` does, then unlearn what is accused.
    Purify(purify::Args),
    /// Write one self-contained HTML page about a run.
    Report(report::Args),
    /// Run a grid of attacks, rates, seeds and settings from a TOML file; one table.
    Sweep(sweep::Args),
    /// Write a run's models as ONNX from its last checkpoint.
    Export(export::Args),
    /// List the attacks; draw how they look.
    Attacks(attacks::Args),
}

fn main() -> ExitCode {
    let (cli, matches) = match usage::parse::<Cli>() {
        Ok(parsed) => parsed,
        Err(why) => return failed(&Failure::Input(why)),
    };
    let result = idle::refuse(&matches).and_then(|()| match cli.command {
        Command::Demo(args) => demo::run(&args),
        Command::Train(args) => train::run(&args, false),
        Command::Trap(args) => train::run(&args, true),
        Command::Replace(args) => replace::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Purify(args) => purify::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Sweep(args) => sweep::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Attacks(args) => attacks::run(&args),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => failed(&e),
    }
}

/// One line of what went wrong, and the exit code.
fn failed(e: &Failure) -> ExitCode {
    ui::note(&format!("stemguard-trainer: {}", e.to_string().split_whitespace().collect::<Vec<_>>().join(" ")));
    ExitCode::from(e.code())
}
