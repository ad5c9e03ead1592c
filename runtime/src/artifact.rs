//! The `.sgm` artifact: a stem, and the head that goes with it, in one file that is checked once and read in place.
//!
//! ```text
//! 0       magic "\x93SGM\r\n", 6 bytes
//! 6       version, u16: 1 with a stem in f32, 2 with one in 8 bits; 3 and 4: the same with a tripwire
//! 8       manifest length M, u32 bytes
//! 12      weight count W, u32 elements
//! 16      manifest, M bytes of postcard
//! 16+M    zeros up to a multiple of 16
//!         weights, W little-endian 32-bit elements: the stem's, the head's, the witness's (both f32), with zeros between them
//!         up to multiples of 16 elements
//!         CRC-32 (ISO-HDLC) of all bytes before it, u32
//! ```
//!
//! Integers are little-endian. `spec/artifact.md` tells every byte. A signature lies behind the last of them (`sign`).

#[cfg(feature = "std")]
mod aligned;
#[cfg(feature = "sign")]
pub mod sign;
#[cfg(all(test, feature = "std"))]
pub(crate) mod tests;
mod write;

#[cfg(feature = "std")]
pub use aligned::AlignedBytes;
#[cfg(feature = "std")]
pub use write::to_vec;
pub use write::{encoded_len, write};

use crate::error::{Error, Result};
use crate::net::int8::{Int8Net, Int8Spec};
use crate::net::{Net, Span};
use crate::shape::Shape;
use crate::stem::Stem;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

#[cfg(target_endian = "big")]
compile_error!("weights are read in place and are little-endian");

/// The first bytes of every artifact.
pub const MAGIC: [u8; 6] = *b"\x93SGM\r\n";
/// The newest version this build reads.
pub const VERSION: u16 = INT8_WATCHED;
/// The version of an artifact whose stem is in `f32`.
const F32: u16 = 1;
/// The version of an artifact whose stem is in 8 bits.
const INT8: u16 = 2;
/// As [`F32`], with a tripwire.
const F32_WATCHED: u16 = 3;
/// As [`INT8`], with a tripwire.
const INT8_WATCHED: u16 = 4;
/// Bytes before the manifest: magic, version, two lengths.
pub const HEADER_LEN: usize = 16;
/// Bytes of the checksum at the end.
const CRC_LEN: usize = 4;
/// The whole file must begin on such a boundary, and so do its weights, in bytes.
const ALIGN: usize = 16;
/// The weights of a head begin at a multiple of this many elements: 64 bytes.
const HEAD_ALIGN: usize = 16;

pub(crate) static CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);

/// The kind of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HeadKind {
    /// Means and deviations of the feature maps, then one linear layer: for microcontrollers.
    Linear,
    /// A residual unit, batch norm, leaky ReLU, global average pool, linear layer: the paper's.
    Residual,
}

/// A head: its kind, its sizes and where its parameters lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadSpec {
    /// The kind.
    pub kind: HeadKind,
    /// The features it takes: the stem's output shape.
    pub features: Shape,
    /// Number of classes, at least 1.
    pub classes: u32,
    /// Its parameters, in elements of the artifact's weights.
    pub span: Span,
}

/// A tripwire: where the parameters of its witness lie, and when it raises an alarm.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TripwireSpec {
    /// The witness, a head over the same features with the same classes as the artifact's head.
    pub witness: HeadSpec,
    /// A score above it raises an alarm; finite.
    pub threshold: f32,
    /// The false-positive rate it was set for, 0..=1.
    pub false_positive_rate: f32,
}

/// Number of parameters of a head over `features` with `classes` classes, in `f32` elements. With `c` the feature channels:
/// linear, `2 * 2c` (mean and inverse deviation of `2c` pooled features) `+ 2c * classes + classes`; residual, `3 * 4c`
/// (batch norms) `+ 2 * (9 * c * c + c)` (convolutions) `+ c * classes + classes`.
// Once: its 64-bit products are long on a microcontroller.
#[inline(never)]
pub const fn head_params(kind: HeadKind, features: Shape, classes: u32) -> usize {
    let (c, classes) = (features.c as u64, classes as u64);
    let params = match kind {
        HeadKind::Linear => (4 * c).saturating_add((2 * c).saturating_mul(classes)).saturating_add(classes),
        HeadKind::Residual => (18 * c)
            .saturating_mul(c)
            .saturating_add(14 * c)
            .saturating_add(c.saturating_mul(classes))
            .saturating_add(classes),
    };
    if params > usize::MAX as u64 { usize::MAX } else { params as usize }
}

/// A head to be written: its parameters in the order its kind defines.
#[derive(Clone, Copy, Debug)]
pub struct HeadParts<'a> {
    /// The kind.
    pub kind: HeadKind,
    /// Number of classes, at least 1.
    pub classes: u32,
    /// [`head_params`] elements.
    pub params: &'a [f32],
}

/// A tripwire to be written.
#[derive(Clone, Copy, Debug)]
pub struct TripwireParts<'a> {
    /// The witness, with as many classes as the head.
    pub witness: HeadParts<'a>,
    /// A [`score`](crate::tripwire::score) above it raises an alarm; finite.
    pub threshold: f32,
    /// The false-positive rate it was set for, 0..=1.
    pub false_positive_rate: f32,
}

/// What an artifact holds: read from one with [`Artifact::parts`], written with [`write()`].
#[derive(Clone, Copy, Debug)]
pub struct ArtifactParts<'a> {
    /// Name of the model.
    pub name: &'a str,
    /// Class names in order, separated (not ended) by `\n`; empty: not known.
    pub labels: &'a str,
    /// Where the model comes from, free text.
    pub provenance: &'a str,
    /// The stem.
    pub stem: Stem<'a>,
    /// The head, if there is one.
    pub head: Option<HeadParts<'a>>,
    /// The tripwire, if there is one; only with a head.
    pub tripwire: Option<TripwireParts<'a>>,
}

impl<'a> ArtifactParts<'a> {
    /// The class names in order; none if not known.
    pub fn labels(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let known = if self.labels.is_empty() { None } else { Some(self.labels.split('\n')) };
        known.into_iter().flatten()
    }

    /// A head must have classes, the number of parameters its kind asks for, finite ones, and one label a class if labels
    /// are known; a tripwire a witness like that for as many classes, a finite threshold and a rate that is one.
    fn check_heads(&self) -> Result<()> {
        if let Some(head) = self.head {
            self.check_head(&head)?;
            if !self.labels.is_empty() && self.labels().count() != head.classes as usize {
                return Err(Error::HeadDoesNotFit);
            }
        }
        let Some(TripwireParts { witness, threshold, false_positive_rate }) = self.tripwire else { return Ok(()) };
        if self.head.is_none_or(|head| head.classes != witness.classes) || !(0.0..=1.0).contains(&false_positive_rate) {
            return Err(Error::TripwireDoesNotFit);
        }
        self.check_head(&witness).map_err(|e| if e == Error::NotFinite { e } else { Error::TripwireDoesNotFit })?;
        if threshold.is_finite() { Ok(()) } else { Err(Error::NotFinite) }
    }

    fn check_head(&self, head: &HeadParts<'_>) -> Result<()> {
        if !(1..=Shape::MAX_SIDE).contains(&head.classes)
            || head.params.len() != head_params(head.kind, self.stem.output(), head.classes)
        {
            return Err(Error::HeadDoesNotFit);
        }
        if head.params.iter().all(|p| p.is_finite()) { Ok(()) } else { Err(Error::NotFinite) }
    }
}

/// The manifest as it is stored, over a [`StemSpec`] or an [`Int8Spec`]; with a tripwire, a [`TripwireSpec`] follows it.
#[derive(Serialize, Deserialize)]
struct Manifest<'a, S> {
    name: &'a str,
    labels: &'a str,
    provenance: &'a str,
    stem: S,
    head: Option<HeadSpec>,
}

/// A stem in `f32` as it is stored.
#[derive(Serialize, Deserialize)]
struct StemSpec<'a> {
    input: Shape,
    features: Shape,
    arena_len: u32,
    op_count: u32,
    ops: &'a [u8],
}

/// The header: the version, and the two lengths, which fix every offset.
#[derive(Clone, Copy)]
struct Layout {
    version: u16,
    manifest: u32,
    weights: u32,
}

impl Layout {
    fn weights_at(self) -> u64 {
        (HEADER_LEN as u64 + u64::from(self.manifest)).next_multiple_of(ALIGN as u64)
    }

    fn total(self) -> u64 {
        self.weights_at() + 4 * u64::from(self.weights) + CRC_LEN as u64
    }

    /// Reads the header: magic, then version, then lengths.
    fn read(bytes: &[u8]) -> Result<Self> {
        if !bytes.iter().zip(&MAGIC).all(|(a, b)| a == b) {
            return Err(Error::NotAnArtifact);
        }
        let (header, _) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(Error::Truncated)?;
        let &[_, _, _, _, _, _, v0, v1, m0, m1, m2, m3, w0, w1, w2, w3] = header;
        let version = match u16::from_le_bytes([v0, v1]) {
            0 => return Err(Error::NotAnArtifact),
            known @ F32..=VERSION => known,
            later => return Err(Error::VersionFromTheFuture(later)),
        };
        let (manifest, weights) = (u32::from_le_bytes([m0, m1, m2, m3]), u32::from_le_bytes([w0, w1, w2, w3]));
        Ok(Self { version, manifest, weights })
    }
}

/// The length of the artifact that begins with `bytes`, in bytes, from its header (16 bytes) alone; the rest is not looked at.
///
/// Errors: [`Error::NotAnArtifact`], [`Error::VersionFromTheFuture`], [`Error::Truncated`].
pub fn declared_len(bytes: &[u8]) -> Result<u64> {
    Layout::read(bytes).map(Layout::total)
}

/// SHA-256 of an artifact's bytes, a trailer not included: what a signature covers, and what a stored head names its stem by.
pub fn digest(artifact: &[u8]) -> [u8; 32] {
    Sha256::digest(artifact).into()
}

/// A checked artifact, read in place: it borrows the bytes.
#[derive(Clone, Copy, Debug)]
pub struct Artifact<'a> {
    parts: ArtifactParts<'a>,
    head: Option<HeadSpec>,
    tripwire: Option<TripwireSpec>,
}

impl<'a> Artifact<'a> {
    /// Checks a whole artifact: magic, version, lengths, alignment to 16 bytes, CRC, manifest, net, finite weights, that the head
    /// fits the stem and the tripwire the head, in this order.
    ///
    /// Errors: [`Error::NotAnArtifact`], [`Error::VersionFromTheFuture`], [`Error::Truncated`], [`Error::WrongLength`]
    /// (bytes after the end), [`Error::Misaligned`], [`Error::Corrupt`], [`Error::BadManifest`], those of
    /// [`Net::new_checked`] or [`Int8Net::new_checked`], [`Error::HeadDoesNotFit`], [`Error::TripwireDoesNotFit`],
    /// [`Error::NotFinite`].
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self> {
        let layout = Layout::read(bytes)?;
        let total = usize::try_from(layout.total()).map_err(|_| Error::Truncated)?;
        if bytes.len() < total {
            return Err(Error::Truncated);
        }
        if bytes.len() > total {
            return Err(Error::WrongLength { needed: total, given: bytes.len() });
        }
        if bytes.as_ptr().align_offset(ALIGN) != 0 {
            return Err(Error::Misaligned);
        }
        let (body, crc) = bytes.split_last_chunk::<CRC_LEN>().ok_or(Error::Truncated)?;
        if CRC.checksum(body) != u32::from_le_bytes(*crc) {
            return Err(Error::Corrupt);
        }
        let (front, weights) = body.split_at_checked(layout.weights_at() as usize).ok_or(Error::Truncated)?;
        let weights: &[f32] = bytemuck::try_cast_slice(weights).map_err(|_| Error::Misaligned)?;
        let (manifest, padding) = front
            .get(HEADER_LEN..)
            .and_then(|front| front.split_at_checked(layout.manifest as usize))
            .ok_or(Error::Truncated)?;
        if padding.iter().any(|&byte| byte != 0) {
            return Err(Error::BadManifest);
        }
        let watched = layout.version >= F32_WATCHED;
        if matches!(layout.version, F32 | F32_WATCHED) {
            return Self::assemble(
                manifest,
                watched,
                weights,
                |StemSpec { input, features, arena_len, op_count, ops }, weights| {
                    Net::new_checked(input, features, arena_len as usize, op_count, ops, weights).map(Stem::F32)
                },
            );
        }
        Self::assemble(manifest, watched, weights, |spec: Int8Spec<'a>, weights| {
            let words = bytemuck::try_cast_slice(weights).map_err(|_| Error::Misaligned)?;
            Int8Net::new_checked(spec, words).map(Stem::Int8)
        })
    }

    /// Decodes the manifest and checks what it says against itself and the weights.
    fn assemble<S: Deserialize<'a>>(
        manifest: &'a [u8],
        watched: bool,
        weights: &'a [f32],
        stem_of: impl FnOnce(S, &'a [f32]) -> Result<Stem<'a>>,
    ) -> Result<Self> {
        let (manifest, mut rest) =
            postcard::take_from_bytes::<Manifest<'a, S>>(manifest).map_err(|_| Error::BadManifest)?;
        let Manifest { name, labels, provenance, stem, head } = manifest;
        let mut tripwire = None;
        if watched {
            let (spec, behind) = postcard::take_from_bytes::<TripwireSpec>(rest).map_err(|_| Error::BadManifest)?;
            (tripwire, rest) = (Some(spec), behind);
        }
        if !rest.is_empty() {
            return Err(Error::BadManifest);
        }
        let (weights, witness) = match (tripwire, head) {
            (None, _) => (weights, None),
            (Some(_), None) => return Err(Error::TripwireDoesNotFit),
            (Some(TripwireSpec { witness, .. }), Some(HeadSpec { span: Span { at, len }, .. })) => {
                let (before, params) = last(weights, witness.span).ok_or(Error::TripwireDoesNotFit)?;
                let end = (at as usize).checked_add(len as usize).ok_or(Error::TripwireDoesNotFit)?;
                // Between head and witness lie zeros.
                let (before, between) = before.split_at_checked(end).ok_or(Error::TripwireDoesNotFit)?;
                if between.len() >= HEAD_ALIGN || between.iter().any(|v| v.to_bits() != 0) {
                    return Err(Error::TripwireDoesNotFit);
                }
                (before, Some(params))
            }
        };
        let (of_stem, params) = match head {
            None => (weights, None),
            Some(head) => {
                let (of_stem, params) = last(weights, head.span).ok_or(Error::HeadDoesNotFit)?;
                (of_stem, Some(params))
            }
        };
        let stem = stem_of(stem, of_stem)?;
        if head.is_some_and(|head| head.features != stem.output()) {
            return Err(Error::HeadDoesNotFit);
        }
        if tripwire.is_some_and(|tripwire| tripwire.witness.features != stem.output()) {
            return Err(Error::TripwireDoesNotFit);
        }
        let parts_of = |spec: HeadSpec, params| HeadParts { kind: spec.kind, classes: spec.classes, params };
        let parts_of_head = head.zip(params).map(|(head, params)| parts_of(head, params));
        let parts_of_tripwire = tripwire.zip(witness).map(|(tripwire, params)| TripwireParts {
            witness: parts_of(tripwire.witness, params),
            threshold: tripwire.threshold,
            false_positive_rate: tripwire.false_positive_rate,
        });
        let parts = ArtifactParts { name, labels, provenance, stem, head: parts_of_head, tripwire: parts_of_tripwire };
        parts.check_heads()?;
        Ok(Self { parts, head, tripwire })
    }

    /// Everything the artifact holds, as [`write()`] takes it: change a part and write it again.
    pub const fn parts(&self) -> ArtifactParts<'a> {
        self.parts
    }

    /// Name of the model.
    pub const fn name(&self) -> &'a str {
        self.parts.name
    }

    /// The class names in order; none if not known.
    pub fn labels(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.parts.labels()
    }

    /// Where the model comes from, free text.
    pub const fn provenance(&self) -> &'a str {
        self.parts.provenance
    }

    /// The stem, ready to run.
    pub const fn stem(&self) -> Stem<'a> {
        self.parts.stem
    }

    /// The head's kind and sizes, if there is a head.
    pub const fn head(&self) -> Option<HeadSpec> {
        self.head
    }

    /// The head's parameters, [`head_params`] elements, if there is a head.
    pub fn head_weights(&self) -> Option<&'a [f32]> {
        self.parts.head.map(|head| head.params)
    }

    /// The tripwire's witness and threshold, if there is a tripwire.
    pub const fn tripwire(&self) -> Option<TripwireSpec> {
        self.tripwire
    }

    /// The parameters of the tripwire's witness, [`head_params`] elements, if there is a tripwire.
    pub fn witness_weights(&self) -> Option<&'a [f32]> {
        self.parts.tripwire.map(|tripwire| tripwire.witness.params)
    }
}

/// Cuts a head's span, which ends where the weights end and begins on its boundary, off them.
fn last(weights: &[f32], span: Span) -> Option<(&[f32], &[f32])> {
    let cut = weights.split_at_checked(span.at as usize);
    cut.filter(|(before, params)| params.len() == span.len as usize && before.len().is_multiple_of(HEAD_ALIGN))
}
