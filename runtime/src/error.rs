//! What can go wrong in the core, as small `Copy` enums: no strings, no allocation. The shell adds file names and context.

use core::fmt;

/// Why the core refused an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The bytes end before the structure they announce does.
    Truncated,
    /// The first bytes are not those of a `.sgm` artifact.
    NotAnArtifact,
    /// Written by a later version of the format than this build reads.
    VersionFromTheFuture(u16),
    /// The checksum does not match the bytes: at least one bit changed.
    Corrupt,
    /// The bytes do not lie on the 16-byte boundary the weights need.
    Misaligned,
    /// The manifest does not decode.
    BadManifest,
    /// Operation number `op` contradicts itself: shapes, windows, spans or order.
    BadOperation {
        /// Position in the operation list, from 0.
        op: u32,
        /// Which check failed.
        why: OpFault,
    },
    /// A weight or an input is NaN or infinite.
    NotFinite,
    /// A buffer handed in has the wrong length.
    WrongLength {
        /// The length the stage asks for, in elements; of a file, in bytes.
        needed: usize,
        /// The length it was given.
        given: usize,
    },
    /// A head's feature shape is not what the stem produces.
    HeadDoesNotFit,
    /// A tripwire without a head, one whose witness does not fit the features and classes of the head, or one whose rate is none.
    TripwireDoesNotFit,
    /// A label is not below the number of classes.
    LabelOutOfRange {
        /// The offending label.
        label: u32,
        /// The number of classes.
        classes: u32,
    },
    /// The holdout holds no picture of this class.
    ClassAbsent(u32),
    /// The holdout is smaller than one batch.
    HoldoutTooSmall {
        /// Pictures in the holdout.
        holdout: usize,
        /// Pictures in a batch.
        batch: usize,
    },
    /// A setting lies outside its documented range.
    BadSetting(&'static str),
    /// A fixed capacity of the core is too small for this model.
    Capacity,
    /// The artifact is not signed.
    Unsigned,
    /// Signed with another key than the one it is verified with.
    OtherKey,
    /// The signature does not hold: artifact or trailer were altered.
    BadSignature,
    /// The model is older than what is still accepted.
    OlderModel {
        /// The model's version.
        version: u32,
        /// The least accepted.
        minimum: u32,
    },
    /// The bytes are no public key, or one of small order.
    BadKey,
}

/// Which check an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpFault {
    /// A dimension is zero or too large.
    Dimension,
    /// The output shape does not follow from the inputs.
    Shape,
    /// A window, stride, pad or group count is out of range.
    Window,
    /// A weight span lies outside the weights or has the wrong length.
    Span,
    /// A slot lies outside the arena, overlaps another in use, or is read before it is written.
    Slot,
    /// An activation's parameter is not finite.
    Activation,
    /// A number of an 8-bit operation is out of range, or one of its sums could leave 32 bits.
    Number,
}

impl fmt::Display for OpFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dimension => "a dimension is zero or too large",
            Self::Shape => "the output shape does not follow from the inputs",
            Self::Window => "a window, stride, pad or group count is out of range",
            Self::Span => "a weight span is out of range",
            Self::Slot => "a slot is out of range, in use, or read before it is written",
            Self::Activation => "an activation parameter is not finite",
            Self::Number => "a number is out of range, or a sum could leave 32 bits",
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Truncated => f.write_str("the file ends too early"),
            Self::NotAnArtifact => f.write_str("not a .sgm artifact"),
            Self::VersionFromTheFuture(v) => write!(f, "format version {v} is newer than this build reads"),
            Self::Corrupt => f.write_str("the checksum does not match: the file is damaged"),
            Self::Misaligned => f.write_str("the bytes are not aligned to 16"),
            Self::BadManifest => f.write_str("the manifest does not decode"),
            Self::BadOperation { op, why } => write!(f, "operation {op}: {why}"),
            Self::NotFinite => f.write_str("a value is NaN or infinite"),
            Self::WrongLength { needed, given } => write!(f, "a length of {given} where {needed} is needed"),
            Self::HeadDoesNotFit => f.write_str("the head does not fit the stem's feature shape"),
            Self::TripwireDoesNotFit => f.write_str("the tripwire does not fit the head"),
            Self::LabelOutOfRange { label, classes } => write!(f, "label {label} is not below the {classes} classes"),
            Self::ClassAbsent(c) => write!(f, "no picture of class {c} in the holdout"),
            Self::HoldoutTooSmall { holdout, batch } => {
                write!(f, "a holdout of {holdout} pictures is smaller than one batch of {batch}")
            }
            Self::BadSetting(what) => write!(f, "setting out of range: {what}"),
            Self::Capacity => f.write_str("the model is larger than this build's fixed capacities"),
            Self::Unsigned => f.write_str("the artifact is not signed"),
            Self::OtherKey => f.write_str("signed with another key"),
            Self::BadSignature => f.write_str("the signature does not hold: artifact or trailer were altered"),
            Self::OlderModel { version, minimum } => {
                write!(f, "model version {version} is older than {minimum}, the least accepted")
            }
            Self::BadKey => f.write_str("not a public key"),
        }
    }
}

impl core::error::Error for Error {}

/// The core's result.
pub type Result<T, E = Error> = core::result::Result<T, E>;
