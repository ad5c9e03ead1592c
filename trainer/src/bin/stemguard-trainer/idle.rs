//! Options that the others leave without effect: who gives them expects one.

use crate::options::{PurifyOptions, ReplaceOptions};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command};
use stemguard_trainer::error::Failure;

/// Refuses those that wait for another option, or for another command.
///
/// # Errors
/// [`Failure::Input`] naming the option, and what it waits for.
pub(crate) fn refuse(matches: &ArgMatches) -> Result<(), Failure> {
    let Some((command, given)) = matches.subcommand() else { return Ok(()) };
    let is_given = |id: &str| {
        given.try_contains_id(id).is_ok_and(|there| there) && given.value_source(id) == Some(ValueSource::CommandLine)
    };
    let is = |id: &str, value: &str| {
        let raw = given.try_get_raw(id).ok().flatten();
        raw.is_some_and(|mut values| values.next().is_some_and(|v| v == value))
    };
    let first = |ids: &[&str], why: &str| match ids.iter().find(|id| is_given(id)) {
        Some(id) => Err(Failure::input(format!("--{}", id.replace('_', "-")), why)),
        None => Ok(()),
    };
    if command == "train" {
        first(&["purify"], "is for trap; a baseline is not defended")?;
        first(&["guard", "loss"], "is for trap; a baseline has no guard")?;
        first(&["mse", "tv"], "is for trap; a baseline reconstructs nothing")?;
    }
    if ["train", "trap"].contains(&command) {
        if !given.get_flag("purify") {
            let after = ReplaceOptions::augment_args(PurifyOptions::augment_args(Command::new("")));
            let after: Vec<&str> = after.get_arguments().map(|a| a.get_id().as_str()).collect();
            first(&after, "has an effect with --purify only")?;
        }
        if !is("crop", "shift") {
            first(&["shift"], "has an effect with --crop shift only")?;
        }
    }
    if is("space", "pictures") {
        first(&["views"], "has no effect with --space pictures, which caches none")?;
    }
    if command == "attacks" && !is_given("sheet") {
        first(&["data", "seed"], "has an effect with --sheet only")?;
    }
    Ok(())
}
