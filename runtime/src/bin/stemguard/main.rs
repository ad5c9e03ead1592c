//! The `stemguard` command: packs stems, replaces heads on clean pictures, runs, measures and exports defended models.
//!
//! ```text
//! model.onnx -> pack -> stem.sgm -> replace -> defended.sgm -> eval, infer, run, bench, export
//!                       keygen -> sign -> verify
//! ```
//!
//! One file a command. What a command prints goes to standard output; progress, notes and the one line that tells what is
//! wrong go to standard error. Exit codes: 0 done, 2 bad input, usage or a file that cannot be read or written, 1 anything else.

mod artifact;
mod bench;
mod eval;
mod export;
mod fail;
mod files;
mod infer;
mod inspect;
#[cfg(feature = "onnx")]
mod int8;
mod keygen;
mod keys;
mod model;
mod npy;
mod pack;
mod pictures;
mod replace;
mod run;
mod runner;
mod sign;
mod ui;
mod verify;

use clap::{Parser, Subcommand};
use fail::Fail;
use std::process::ExitCode;
use stemguard_runtime::usage;

/// The command line.
#[derive(Parser)]
#[command(
    name = "stemguard",
    version,
    about = "Replaces the head of a model trained on suspect data, and runs what comes out",
    after_help = "Exit codes: 0 done, 2 bad input, usage or a file that cannot be read or written, 1 anything else.\n\
                  An existing output file is replaced, in one step, once the new one is complete; keys are never overwritten.\n\
                  A signed .sgm file is read as any other: `verify` alone checks the signature.\n\n\
                  Example, from a trapped stem to a defended model:\n  \
                  stemguard pack stem.onnx --out stem.sgm\n  \
                  stemguard replace stem.sgm --holdout folder:clean --out defended.sgm\n  \
                  stemguard eval defended.sgm --data folder:test\n  \
                  stemguard infer defended.sgm photo.jpg",
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// The commands; what each does is told by its `Args`.
#[derive(Subcommand)]
enum Command {
    Inspect(inspect::Args),
    Pack(pack::Args),
    Run(run::Args),
    Replace(replace::Args),
    Eval(eval::Args),
    Infer(infer::Args),
    Bench(bench::Args),
    Export(export::Args),
    Keygen(keygen::Args),
    Sign(sign::Args),
    Verify(verify::Args),
}

impl Command {
    fn run(self) -> Result<(), Fail> {
        match self {
            Self::Inspect(args) => inspect::run(&args),
            Self::Pack(args) => pack::run(&args),
            Self::Run(args) => run::run(&args),
            Self::Replace(args) => replace::run(&args),
            Self::Eval(args) => eval::run(&args),
            Self::Infer(args) => infer::run(&args),
            Self::Bench(args) => bench::run(&args),
            Self::Export(args) => export::run(&args),
            Self::Keygen(args) => keygen::run(&args),
            Self::Sign(args) => sign::run(&args),
            Self::Verify(args) => verify::run(&args),
        }
    }
}

fn main() -> ExitCode {
    let outcome = match usage::parse::<Cli>() {
        Ok((cli, _)) => cli.command.run(),
        Err(why) => Err(Fail::input(why)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(fail) => fail.report(),
    }
}
