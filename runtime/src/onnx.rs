//! ONNX in, ONNX out: the one door between this runtime and the tools that train models.
//!
//! ```text
//! bytes -> Model (checked) -> lower -> OwnedNet     what the net can express, cut at a named tensor
//!                          -> TractModel            everything else, on a host
//! Net   -> export_net -> OnnxBuilder -> bytes       back out, for any ONNX runtime
//! ```
//!
//! A [`Model`] holds a decoded and checked file: sizes, element counts and attribute ranges are bounded, every weight is
//! finite, and nodes come in order. Everything here answers a bad file with an [`OnnxError`]; tract's panics are caught.

mod constant;
mod elementwise;
pub mod export;
pub mod graph;
mod guard;
mod head;
pub mod lower;
mod node;
pub mod tract;
mod wire;

#[cfg(test)]
mod tests;

pub use export::{OnnxBuilder, export_net, merged};
pub use graph::Model;
pub use head::defended;
pub use lower::lower;
pub use tract::{TractModel, TractState};

use core::fmt;
use std::prelude::v1::*;

/// Why a model could not be read, lowered, run or written.
#[derive(Debug)]
#[non_exhaustive]
pub enum OnnxError {
    /// A file could not be read or written.
    File {
        /// Its path.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is larger than [`Model::MAX_BYTES`], or decoding it would take many times its length.
    TooLarge(u64),
    /// The bytes are not a protobuf message of the ONNX schema, or end too early.
    Undecodable(String),
    /// The file decodes but holds no graph: it is empty, or no ONNX model.
    NoGraph,
    /// The graph's inputs, outputs or order do not make a picture classifier.
    Graph(String),
    /// No tensor of this name is computed in the graph.
    UnknownTensor {
        /// The name asked for.
        name: String,
        /// Up to 8 names that look like it.
        near: Vec<String>,
    },
    /// A node cannot be expressed as a net operation.
    Unsupported {
        /// The node's name, or that of its first output.
        node: String,
        /// Its operation.
        op: String,
        /// What about it, and what to do.
        why: String,
    },
    /// A node contradicts the standard: a missing input or an attribute out of range.
    BadNode {
        /// The node's name, or that of its first output.
        node: String,
        /// Its operation.
        op: String,
        /// What is wrong.
        why: String,
    },
    /// A constant tensor is malformed: byte count, dimensions, kind of storage.
    Initializer {
        /// Its name.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// A constant tensor holds a NaN or an infinity.
    NotFinite {
        /// Its name.
        name: String,
    },
    /// The net refused an operation.
    Net {
        /// The node it came from.
        node: String,
        /// The net's reason.
        source: crate::net::BuildError,
    },
    /// Tract refused the model, or panicked on it.
    Tract(String),
}

impl OnnxError {
    pub(crate) fn initializer(name: &str, why: impl Into<String>) -> Self {
        Self::Initializer { name: name.into(), why: why.into() }
    }
}

impl fmt::Display for OnnxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, source } => write!(f, "{}: {source}", path.display()),
            Self::TooLarge(n) => write!(f, "an ONNX file of {n} bytes, or what it decodes to, is larger than allowed"),
            Self::Undecodable(why) => write!(f, "not an ONNX file, or cut short: {why}"),
            Self::NoGraph => f.write_str("the file holds no ONNX graph"),
            Self::Graph(why) => f.write_str(why),
            Self::UnknownTensor { name, near } if near.is_empty() => write!(f, "no tensor `{name}` in the graph"),
            Self::UnknownTensor { name, near } => {
                write!(f, "no tensor `{name}` in the graph; near it: {}", near.join(", "))
            }
            Self::Unsupported { node, op, why } => write!(f, "node `{node}` ({op}) cannot be lowered: {why}"),
            Self::BadNode { node, op, why } => write!(f, "node `{node}` ({op}): {why}"),
            Self::Initializer { name, why } => write!(f, "tensor `{name}`: {why}"),
            Self::NotFinite { name } => write!(f, "tensor `{name}` holds a NaN or an infinite value"),
            Self::Net { node, source } => write!(f, "node `{node}`: {source}"),
            Self::Tract(why) => write!(f, "tract: {why}"),
        }
    }
}

impl core::error::Error for OnnxError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::File { source, .. } => Some(source),
            Self::Net { source, .. } => Some(source),
            _ => None,
        }
    }
}
