//! What a command fails with: one line, and an exit code.

use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

/// Why a command stopped.
#[derive(Debug)]
pub(crate) enum Fail {
    /// Bad input or usage: exit code 2.
    Input(String),
    /// Anything else: exit code 1.
    Other(String),
    /// Nobody reads standard output any more: no message, exit code 0.
    Pipe,
}

impl Fail {
    /// Bad input or usage; the text names the file or the flag.
    pub(crate) fn input(why: impl Display) -> Self {
        Self::Input(why.to_string())
    }

    /// Bad input, told as `PATH: why`.
    pub(crate) fn at(path: &Path, why: impl Display) -> Self {
        Self::Input(format!("{}: {why}", path.display()))
    }

    /// What this build was compiled without. A full build never fails this way.
    #[allow(dead_code)]
    pub(crate) fn lacks(what: &str, feature: &str) -> Self {
        Self::Input(format!("this build lacks {what}: compile it with the feature `{feature}`"))
    }

    /// Prints the line and gives the exit code.
    pub(crate) fn report(self) -> ExitCode {
        let (text, code) = match self {
            Self::Pipe => return ExitCode::SUCCESS,
            Self::Input(text) => (text, 2),
            Self::Other(text) => (text, 1),
        };
        let line: Vec<&str> = text.split_whitespace().collect();
        let _ = writeln!(io::stderr(), "stemguard: {}", line.join(" "));
        ExitCode::from(code)
    }
}

impl From<stemguard_runtime::data::DataError> for Fail {
    fn from(error: stemguard_runtime::data::DataError) -> Self {
        Self::input(error)
    }
}
