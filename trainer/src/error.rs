//! What a command failed with: one line, and whether the user's input was at fault.

use std::fmt;

/// A failure of the trainer.
#[derive(Debug)]
pub enum Failure {
    /// Bad input or usage: exit code 2. The text names the file or flag and what is wrong.
    Input(String),
    /// Anything else: exit code 1.
    Other(String),
}

impl Failure {
    /// Bad input, with what it was about in front.
    pub fn input(about: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::Input(format!("{about}: {why}"))
    }

    /// A file that cannot be read or written.
    pub fn file(path: &std::path::Path, why: impl fmt::Display) -> Self {
        Self::Input(format!("{}: {why}", path.display()))
    }

    /// Process exit code.
    pub const fn code(&self) -> u8 {
        match self {
            Self::Input(_) => 2,
            Self::Other(_) => 1,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input(m) | Self::Other(m) => f.write_str(m),
        }
    }
}

impl std::error::Error for Failure {}

impl From<crate::engine::EngineError> for Failure {
    fn from(e: crate::engine::EngineError) -> Self {
        match e {
            crate::engine::EngineError::Unavailable(m) => Self::Input(m),
            crate::engine::EngineError::Failed(m) => Self::Other(m),
        }
    }
}

macro_rules! input_errors {
    ($($t:ty),*) => {$(
        impl From<$t> for Failure {
            fn from(e: $t) -> Self {
                Self::Input(e.to_string())
            }
        }
    )*};
}

input_errors!(
    crate::attack::AttackError,
    crate::split::SplitError,
    stemguard_runtime::data::DataError,
    stemguard_runtime::error::Error
);
