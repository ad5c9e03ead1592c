//! Options that the others leave without effect are refused: who gives them expects one.

use crate::options::{PurifyOptions, ReplaceOptions};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command};
use stemguard_trainer::error::Failure;

/// Of what is trained without a trap: options of its losses.
const TRAP: [&str; 3] = ["mse", "tv", "loss"];

/// Of the listing without a sheet.
const SHEET: [&str; 2] = ["data", "seed"];

/// Looks through what was given to a command.
///
/// # Errors
/// [`Failure::Input`] naming the option, and what it waits for.
pub(crate) fn refuse(matches: &ArgMatches) -> Result<(), Failure> {
    let Some((command, given)) = matches.subcommand() else { return Ok(()) };
    let is_given = |id: &str| {
        given.try_contains_id(id).is_ok_and(|there| there) && given.value_source(id) == Some(ValueSource::CommandLine)
    };
    let first = |ids: &[String], why: &str| match ids.iter().find(|id| is_given(id)) {
        Some(id) => Err(Failure::input(format!("--{}", id.replace('_', "-")), why)),
        None => Ok(()),
    };
    let of = |options: Command| options.get_arguments().map(|a| a.get_id().to_string()).collect::<Vec<_>>();
    if ["train", "trap"].contains(&command) && !given.get_flag("purify") {
        let after = ReplaceOptions::augment_args(PurifyOptions::augment_args(Command::new("")));
        first(&of(after), "has an effect with --purify only")?;
    }
    if command == "train" {
        first(&TRAP.map(str::to_owned), "is for trap; a baseline has no reconstruction and no guard")?;
    }
    if command == "attacks" && !is_given("sheet") {
        first(&SHEET.map(str::to_owned), "has an effect with --sheet only")?;
    }
    Ok(())
}
