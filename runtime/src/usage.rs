//! Command lines as both commands read them: what is wrong with one is told in one line.

use clap::error::ErrorKind;
use clap::{Arg, ArgMatches, CommandFactory, FromArgMatches};
use core::any::TypeId;
use std::string::{String, ToString};

/// Reads the command line of this process. A number below 0 is an option's value that is out of range, and no option. Where help or the
/// version is asked for, or no command is given, that is printed, and the process ends.
///
/// # Errors
/// What is wrong, as [`told`] has it.
pub fn parse<C: CommandFactory + FromArgMatches>() -> Result<(C, ArgMatches), String> {
    let command = C::command().mut_subcommands(|command| command.mut_args(with_numbers));
    let parsed = command.try_get_matches().and_then(|matches| Ok((C::from_arg_matches(&matches)?, matches)));
    parsed.map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            error.exit()
        }
        _ => told(&error),
    })
}

fn with_numbers(arg: Arg) -> Arg {
    let value = arg.get_value_parser().type_id();
    let numbers = [
        TypeId::of::<u16>(),
        TypeId::of::<u32>(),
        TypeId::of::<u64>(),
        TypeId::of::<usize>(),
        TypeId::of::<f32>(),
        TypeId::of::<f64>(),
    ];
    let is_number = numbers.iter().any(|number| value == *number);
    if is_number { arg.allow_negative_numbers(true) } else { arg }
}

/// The first paragraph of clap's message.
pub fn told(error: &clap::Error) -> String {
    let text = error.to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    first.strip_prefix("error: ").unwrap_or(first).to_string()
}
