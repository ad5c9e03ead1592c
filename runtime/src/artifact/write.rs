//! Writing an artifact into the caller's buffer.

use super::{
    ALIGN, ArtifactParts, CRC, CRC_LEN, HEAD_ALIGN, HEADER_LEN, HeadSpec, Layout, MAGIC, Manifest, StemSpec, VERSION,
};
use crate::error::{Error, Result};
use crate::net::Span;

/// The stored form of the parts: the manifest, and where the sections lie.
fn plan<'a>(parts: &ArtifactParts<'a>) -> Result<(Manifest<'a>, Layout)> {
    parts.check_head()?;
    let stem = parts.stem;
    let (mut count, mut head) = (stem.weights().len(), None);
    if let Some(h) = parts.head {
        let at = count.next_multiple_of(HEAD_ALIGN);
        let span = Span { at: small(at)?, len: small(h.params.len())? };
        head = Some(HeadSpec { kind: h.kind, features: stem.output(), classes: h.classes, span });
        count = at.checked_add(h.params.len()).ok_or(Error::Capacity)?;
    }
    let manifest = Manifest {
        name: parts.name,
        labels: parts.labels,
        provenance: parts.provenance,
        stem: StemSpec {
            input: stem.input(),
            features: stem.output(),
            arena_len: small(stem.arena_len())?,
            op_count: stem.op_count(),
            ops: stem.op_bytes(),
        },
        head,
    };
    let size = postcard::serialize_with_flavor::<_, _, usize>(&manifest, postcard::ser_flavors::Size::default())
        .map_err(|_| Error::BadManifest)?;
    Ok((manifest, Layout { manifest: small(size)?, weights: small(count)? }))
}

fn small(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::Capacity)
}

/// Bytes the artifact of these parts takes. Errors: [`Error::HeadDoesNotFit`], [`Error::NotFinite`], [`Error::Capacity`].
pub fn encoded_len(parts: &ArtifactParts<'_>) -> Result<usize> {
    let (_, layout) = plan(parts)?;
    usize::try_from(layout.total()).map_err(|_| Error::Capacity)
}

/// Writes the artifact to the front of `out` and returns its length in bytes, [`encoded_len`].
///
/// Errors: those of [`encoded_len`]; [`Error::WrongLength`] if `out` is shorter.
pub fn write(parts: &ArtifactParts<'_>, out: &mut [u8]) -> Result<usize> {
    let (manifest, layout) = plan(parts)?;
    let needed = usize::try_from(layout.total()).map_err(|_| Error::Capacity)?;
    let given = out.len();
    let out = out.get_mut(..needed).ok_or(Error::WrongLength { needed, given })?;
    out.fill(0);

    let weights_at = layout.weights_at() as usize;
    let (front, back) = out.split_at_mut(weights_at);
    let (header, body) = front.split_at_mut(HEADER_LEN);
    header[..6].copy_from_slice(&MAGIC);
    header[6..8].copy_from_slice(&VERSION.to_le_bytes());
    header[8..12].copy_from_slice(&layout.manifest.to_le_bytes());
    header[12..].copy_from_slice(&layout.weights.to_le_bytes());
    postcard::to_slice(&manifest, body).map_err(|_| Error::BadManifest)?;

    let stem: &[u8] = bytemuck::cast_slice(parts.stem.weights());
    back[..stem.len()].copy_from_slice(stem);
    if let (Some(spec), Some(head)) = (manifest.head, parts.head) {
        let params: &[u8] = bytemuck::cast_slice(head.params);
        back[4 * spec.span.at as usize..][..params.len()].copy_from_slice(params);
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
