//! What can go wrong while a data set is read or written. Every message names the file and the place in it.

use std::fmt;
use std::path::PathBuf;
use std::prelude::v1::*;

use super::Part;

/// Why a data set was refused.
#[derive(Debug)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused a read or a write.
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A file or folder that must be there is not.
    Missing {
        /// The path looked for.
        path: PathBuf,
        /// What should have been there.
        what: &'static str,
    },
    /// The file ends before the data it announces does.
    Truncated {
        /// The file.
        path: PathBuf,
        /// The bytes it announces.
        needed: u64,
        /// The bytes it holds.
        found: u64,
    },
    /// The length of a file of fixed records is no multiple of the record.
    RecordLength {
        /// The file.
        path: PathBuf,
        /// Bytes of one record.
        record_bytes: u64,
        /// The incomplete record, from 0.
        record: u64,
        /// Bytes of the incomplete record.
        remainder: u64,
    },
    /// A label is negative or not below the number of classes.
    Label {
        /// The file.
        path: PathBuf,
        /// The record, row or array index, from 0.
        record: u64,
        /// The label found.
        label: i128,
        /// The number of classes, or the largest this build reads.
        classes: u64,
    },
    /// A file of class names holds the wrong number of them.
    Names {
        /// The file.
        path: PathBuf,
        /// Names found.
        found: usize,
        /// Classes of the data set.
        classes: usize,
    },
    /// No picture at all.
    Empty {
        /// The file or folder.
        path: PathBuf,
    },
    /// The part asked for does not exist in this source.
    NoPart {
        /// The specification as given.
        spec: String,
        /// The part asked for.
        part: Part,
    },
    /// A picture file does not decode.
    Picture {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        why: String,
    },
    /// What this build was compiled without.
    Lacks {
        /// The file or source.
        path: PathBuf,
        /// What it takes.
        what: &'static str,
    },
    /// A row of a table of labels is malformed.
    Table {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// An array of an `.npz` archive is missing or not what is expected.
    Array {
        /// The archive.
        path: PathBuf,
        /// The array's name.
        array: String,
        /// What is wrong with it.
        why: String,
    },
    /// The pictures would take more memory than the limit of 8 GiB, or than the machine has.
    TooLarge {
        /// The file or folder.
        path: PathBuf,
        /// Bytes the pixels would take.
        bytes: u64,
    },
    /// A picture side is outside `1..=4096`.
    Size {
        /// Rows asked for.
        h: usize,
        /// Columns asked for.
        w: usize,
    },
    /// Two sets of pictures differ in size or classes, so they do not concatenate.
    Mismatch(&'static str),
    /// A class name with a line break or another control character: they are kept as lines.
    ClassName {
        /// The source.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// The kind before the colon is not one of [`super::KINDS`].
    UnknownKind(String),
    /// A known kind with an argument that does not fit.
    BadSpec {
        /// The specification as given.
        spec: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl fmt::Display for DataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { path, error } => write!(f, "{}: {error}", path.display()),
            Self::Missing { path, what } if path.exists() => write!(f, "{}: not {what}", path.display()),
            Self::Missing { path, what } => write!(f, "{}: not found; expected {what}", path.display()),
            Self::Truncated { path, needed, found } => {
                write!(f, "{}: truncated: {found} bytes where {needed} are needed", path.display())
            }
            Self::RecordLength { path, record_bytes, record, remainder } => write!(
                f,
                "{}: the length is not a multiple of the {record_bytes}-byte record: record {record} has {remainder} bytes",
                path.display()
            ),
            Self::Label { path, record, label, classes } => {
                write!(f, "{}: record {record}: label {label} is not in 0..{classes}", path.display())
            }
            Self::Names { path, found, classes } => {
                write!(f, "{}: {found} class names for {classes} classes", path.display())
            }
            Self::Empty { path } => write!(f, "{}: no pictures", path.display()),
            Self::NoPart { spec, part } => write!(f, "{spec}: has no {part} part"),
            Self::Picture { path, why } => write!(f, "{}: not a readable picture: {why}", path.display()),
            Self::Lacks { path, what } => {
                write!(f, "{}: this build lacks {what}: compile it with the feature `data`", path.display())
            }
            Self::Table { path, line, why } => write!(f, "{}: line {line}: {why}", path.display()),
            Self::Array { path, array, why } => write!(f, "{}: array `{array}`: {why}", path.display()),
            Self::TooLarge { path, bytes } => {
                write!(f, "{}: the pictures take {bytes} bytes, more than the limit of 8 GiB", path.display())
            }
            Self::Size { h, w } => write!(f, "a picture size of {h}x{w} is outside 1..=4096 a side"),
            Self::Mismatch(why) => write!(f, "the pictures do not concatenate: {why}"),
            Self::ClassName { path, name } => {
                write!(f, "{}: a line break or another control character in the class name {name:?}", path.display())
            }
            Self::UnknownKind(kind) => {
                write!(f, "unknown data set kind `{kind}`; known kinds: {}", super::KINDS.join(", "))
            }
            Self::BadSpec { spec, why } => write!(f, "data set `{spec}`: {why}"),
        }
    }
}

impl std::error::Error for DataError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { error, .. } => Some(error),
            _ => None,
        }
    }
}
