//! `stemguard-trainer`: plants backdoors, traps them, replaces heads, measures what is left.

#![forbid(unsafe_code)]

mod options;
mod ui;

mod train;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Trains image classifiers on data that cannot be trusted, and takes the backdoor out again.
///
/// Trap and Replace (arXiv 2210.06428): train a stem with a light head and a reconstruction head on suspect data, throw the light
/// head away, train a new one on a small clean holdout.
#[derive(Parser)]
#[command(name = "stemguard-trainer", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train the undefended baseline.
    Train(train::Args),
    /// Train with the reconstruction head: stage 1 of the defence.
    Trap(train::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Train(args) => train::run(&args, false),
        Command::Trap(args) => train::run(&args, true),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("stemguard-trainer: {e}");
            ExitCode::from(e.code())
        }
    }
}
