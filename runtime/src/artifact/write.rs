//! Writing an artifact into the caller's buffer.

use super::{
    ALIGN, ArtifactParts, CRC, CRC_LEN, F32, F32_WATCHED, HEAD_ALIGN, HEADER_LEN, HeadParts, HeadSpec, INT8, Layout,
    MAGIC, Manifest, StemSpec, TripwireParts, TripwireSpec,
};
use crate::error::{Error, Result};
use crate::net::{Net, Span};
use crate::stem::Stem;
use serde::Serialize;

/// Where the sections of the parts lie, and what is stored of head and tripwire.
struct Plan {
    head: Option<HeadSpec>,
    tripwire: Option<TripwireSpec>,
    layout: Layout,
}

impl Plan {
    fn new(parts: &ArtifactParts<'_>) -> Result<Self> {
        parts.check_heads()?;
        let stem = parts.stem;
        let mut count = stem.weights().len() / 4;
        let mut place = |head: HeadParts<'_>| -> Result<HeadSpec> {
            let at = count.next_multiple_of(HEAD_ALIGN);
            let span = Span { at: small(at)?, len: small(head.params.len())? };
            count = at.checked_add(head.params.len()).ok_or(Error::Capacity)?;
            Ok(HeadSpec { kind: head.kind, features: stem.output(), classes: head.classes, span })
        };
        let head = parts.head.map(&mut place).transpose()?;
        let tripwire = match parts.tripwire {
            None => None,
            Some(TripwireParts { witness, threshold, false_positive_rate }) => {
                Some(TripwireSpec { witness: place(witness)?, threshold, false_positive_rate })
            }
        };
        let (version, len) = match stem {
            Stem::F32(net) => (F32, size(&manifest(parts, head, f32_spec(&net)?))?),
            Stem::Int8(net) => (INT8, size(&manifest(parts, head, net.spec()))?),
        };
        let (version, len) = match &tripwire {
            None => (version, len),
            Some(spec) => (version + (F32_WATCHED - F32), len + size(spec)?),
        };
        Ok(Self { head, tripwire, layout: Layout { version, manifest: small(len)?, weights: small(count)? } })
    }
}

/// The manifest of the parts, without the tripwire.
fn manifest<'a, S>(parts: &ArtifactParts<'a>, head: Option<HeadSpec>, stem: S) -> Manifest<'a, S> {
    Manifest { name: parts.name, labels: parts.labels, provenance: parts.provenance, stem, head }
}

fn f32_spec<'a>(net: &Net<'a>) -> Result<StemSpec<'a>> {
    Ok(StemSpec {
        input: net.input(),
        features: net.output(),
        arena_len: small(net.arena_len())?,
        op_count: net.op_count(),
        ops: net.op_bytes(),
    })
}

/// Bytes of a manifest.
fn size(manifest: &impl Serialize) -> Result<usize> {
    postcard::serialize_with_flavor::<_, _, usize>(manifest, postcard::ser_flavors::Size::default())
        .map_err(|_| Error::BadManifest)
}

fn small(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::Capacity)
}

/// Bytes the artifact of these parts takes. Errors: [`Error::HeadDoesNotFit`], [`Error::TripwireDoesNotFit`], [`Error::NotFinite`],
/// [`Error::Capacity`].
pub fn encoded_len(parts: &ArtifactParts<'_>) -> Result<usize> {
    let layout = Plan::new(parts)?.layout;
    usize::try_from(layout.total()).map_err(|_| Error::Capacity)
}

/// Writes the artifact to the front of `out` and returns its length in bytes, [`encoded_len`].
///
/// Errors: those of [`encoded_len`]; [`Error::WrongLength`] if `out` is shorter.
pub fn write(parts: &ArtifactParts<'_>, out: &mut [u8]) -> Result<usize> {
    let Plan { head, tripwire, layout } = Plan::new(parts)?;
    let needed = usize::try_from(layout.total()).map_err(|_| Error::Capacity)?;
    let given = out.len();
    let out = out.get_mut(..needed).ok_or(Error::WrongLength { needed, given })?;
    out.fill(0);

    let weights_at = layout.weights_at() as usize;
    let (front, back) = out.split_at_mut(weights_at);
    let (header, body) = front.split_at_mut(HEADER_LEN);
    header[..6].copy_from_slice(&MAGIC);
    header[6..8].copy_from_slice(&layout.version.to_le_bytes());
    header[8..12].copy_from_slice(&layout.manifest.to_le_bytes());
    header[12..].copy_from_slice(&layout.weights.to_le_bytes());
    let written = match parts.stem {
        Stem::F32(net) => postcard::to_slice(&manifest(parts, head, f32_spec(&net)?), body),
        Stem::Int8(net) => postcard::to_slice(&manifest(parts, head, net.spec()), body),
    };
    let written = written.map_err(|_| Error::BadManifest)?.len();
    if let Some(spec) = &tripwire {
        postcard::to_slice(spec, &mut body[written..]).map_err(|_| Error::BadManifest)?;
    }

    let stem = parts.stem.weights();
    back[..stem.len()].copy_from_slice(stem);
    let mut place = |Span { at, .. }: Span, params: &[f32]| {
        let params: &[u8] = bytemuck::cast_slice(params);
        back[4 * at as usize..][..params.len()].copy_from_slice(params);
    };
    if let (Some(spec), Some(head)) = (head, parts.head) {
        place(spec.span, head.params);
    }
    if let (Some(spec), Some(tripwire)) = (tripwire, parts.tripwire) {
        place(spec.witness.span, tripwire.witness.params);
    }
    let (body, crc) = out.split_at_mut(needed - CRC_LEN);
    crc.copy_from_slice(&CRC.checksum(body).to_le_bytes());
    debug_assert!(weights_at.is_multiple_of(ALIGN));
    Ok(needed)
}

/// The artifact of these parts. Errors: those of [`encoded_len`].
#[cfg(feature = "std")]
pub fn to_vec(parts: &ArtifactParts<'_>) -> Result<std::vec::Vec<u8>> {
    let mut bytes = std::vec![0; encoded_len(parts)?];
    write(parts, &mut bytes)?;
    Ok(bytes)
}
