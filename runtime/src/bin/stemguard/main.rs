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

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use fail::Fail;
use std::any::TypeId;
use std::process::ExitCode;

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
    let outcome = match parse() {
        Ok(cli) => cli.command.run(),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => error.exit(),
            _ => Err(usage(&error)),
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(fail) => fail.report(),
    }
}

/// The command line as it is meant; a number below 0 is one that is out of range, no option.
fn parse() -> Result<Cli, clap::Error> {
    let numbers = |arg: clap::Arg| {
        let of = arg.get_value_parser().type_id();
        let is_number = [
            TypeId::of::<u16>(),
            TypeId::of::<u32>(),
            TypeId::of::<u64>(),
            TypeId::of::<usize>(),
            TypeId::of::<f32>(),
            TypeId::of::<f64>(),
        ]
        .iter()
        .any(|number| of == *number);
        if is_number { arg.allow_negative_numbers(true) } else { arg }
    };
    let command = Cli::command().mut_subcommands(|command| command.mut_args(numbers));
    Cli::from_arg_matches(&command.try_get_matches()?)
}

/// The first paragraph of clap's message.
fn usage(error: &clap::Error) -> Fail {
    let text = error.to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    Fail::input(first.strip_prefix("error: ").unwrap_or(first))
}
