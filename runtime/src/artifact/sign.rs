//! Signed artifacts: an artifact and a trailer of fixed size behind it, an Ed25519 signature (RFC 8032).
//!
//! ```text
//! 0       the artifact, as long as its header declares
//!         magic "\x93SGMSIG\n", 8 bytes
//!         version of the trailer, u32
//!         model version, u32
//!         key id, 8 bytes
//!         signature, 64 bytes
//! ```
//!
//! The signature covers everything before it: the trailer, the artifact's length and its SHA-256. [`verify`] parses the artifact
//! only once the signature holds. Signing needs no randomness. `spec/artifact.md` tells every byte.

#[cfg(all(test, feature = "std"))]
mod tests;

use super::{Artifact, declared_len, digest};
use crate::error::{Error, Result};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256};

/// Bytes of the trailer behind a signed artifact.
pub const TRAILER_LEN: usize = 88;
/// The first bytes of a trailer.
pub const TRAILER_MAGIC: [u8; 8] = *b"\x93SGMSIG\n";
/// The version of the trailer this build writes and reads.
const TRAILER_VERSION: u32 = 1;
/// Bytes of the trailer in front of the signature.
const CLAIM_LEN: usize = 24;
/// What a signature of a model begins with, so that one made for another purpose is never taken for it.
const DOMAIN: [u8; 32] = *b"stemguard signed model, ed25519\0";
/// Bytes that are signed.
const MESSAGE_LEN: usize = DOMAIN.len() + CLAIM_LEN + 8 + 32;

/// Which key: the first 8 bytes of the SHA-256 of the public key.
pub type KeyId = [u8; 8];

/// A public key: what a device holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// A key from its 32 bytes (RFC 8032, section 5.1.2). Errors: [`Error::BadKey`] where they are no point of the curve, or one
    /// of small order.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self> {
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| Error::BadKey)?;
        if key.is_weak() { Err(Error::BadKey) } else { Ok(Self(key)) }
    }

    /// The key's 32 bytes.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// Which key it is.
    pub fn id(&self) -> KeyId {
        let hash: [u8; 32] = Sha256::digest(self.0.as_bytes()).into();
        let [a, b, c, d, e, f, g, h, ..] = hash;
        [a, b, c, d, e, f, g, h]
    }
}

/// A private key: what signs.
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// The key of a seed, 32 bytes from a source of randomness that nobody can guess.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The seed.
    pub fn seed(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// Its public key.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }
}

/// What a trailer says of itself. Nothing of it is true before [`verify`] has said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The model version.
    pub model_version: u32,
    /// The key that is said to have signed.
    pub key: KeyId,
}

impl Claim {
    fn encode(&self) -> [u8; CLAIM_LEN] {
        let mut bytes = [0; CLAIM_LEN];
        let (magic, rest) = bytes.split_at_mut(TRAILER_MAGIC.len());
        let (version, rest) = rest.split_at_mut(4);
        let (model_version, key) = rest.split_at_mut(4);
        magic.copy_from_slice(&TRAILER_MAGIC);
        version.copy_from_slice(&TRAILER_VERSION.to_le_bytes());
        model_version.copy_from_slice(&self.model_version.to_le_bytes());
        key.copy_from_slice(&self.key);
        bytes
    }
}

/// A signed artifact taken apart; nothing is verified.
#[derive(Clone, Copy, Debug)]
struct Signed<'a> {
    artifact: &'a [u8],
    claim: Claim,
    signature: [u8; 64],
}

impl<'a> Signed<'a> {
    fn split(bytes: &'a [u8]) -> Result<Self> {
        let len = usize::try_from(declared_len(bytes)?).map_err(|_| Error::Truncated)?;
        let (artifact, trailer) = bytes.split_at_checked(len).ok_or(Error::Truncated)?;
        let Some((&magic, _)) = trailer.split_first_chunk::<8>() else { return Err(Error::Unsigned) };
        if magic != TRAILER_MAGIC {
            return Err(Error::Unsigned);
        }
        let (trailer, rest) = trailer.split_first_chunk::<TRAILER_LEN>().ok_or(Error::Truncated)?;
        if !rest.is_empty() {
            return Err(Error::WrongLength { needed: bytes.len() - rest.len(), given: bytes.len() });
        }
        let (front, signature) = trailer.split_last_chunk::<64>().ok_or(Error::Truncated)?;
        let &[_, _, _, _, _, _, _, _, v0, v1, v2, v3, m0, m1, m2, m3, ref key @ ..] = front else {
            return Err(Error::Truncated);
        };
        match u32::from_le_bytes([v0, v1, v2, v3]) {
            TRAILER_VERSION => {}
            other => return Err(Error::VersionFromTheFuture(u16::try_from(other).unwrap_or(u16::MAX))),
        }
        let key = key.try_into().map_err(|_| Error::Truncated)?;
        let claim = Claim { model_version: u32::from_le_bytes([m0, m1, m2, m3]), key };
        Ok(Self { artifact, claim, signature: *signature })
    }
}

/// The bytes that are signed: the domain, the front of the trailer, the artifact's length and digest.
fn message(claim: &Claim, artifact_len: usize, digest: &[u8; 32]) -> [u8; MESSAGE_LEN] {
    let mut bytes = [0; MESSAGE_LEN];
    let (domain, rest) = bytes.split_at_mut(DOMAIN.len());
    let (front, rest) = rest.split_at_mut(CLAIM_LEN);
    let (len, hash) = rest.split_at_mut(8);
    domain.copy_from_slice(&DOMAIN);
    front.copy_from_slice(&claim.encode());
    len.copy_from_slice(&(artifact_len as u64).to_le_bytes());
    hash.copy_from_slice(digest);
    bytes
}

/// The length of the signed artifact that begins with `bytes`, trailer included, from the artifact's header (16 bytes) alone: how
/// much of a flash slot [`verify`] takes. Errors: those of [`declared_len`].
pub fn signed_len(bytes: &[u8]) -> Result<u64> {
    declared_len(bytes).map(|len| len.saturating_add(TRAILER_LEN as u64))
}

/// What the trailer of a signed artifact says, unverified.
///
/// Errors: those of [`declared_len`]; [`Error::Unsigned`], [`Error::Truncated`], [`Error::WrongLength`] (bytes after the end),
/// [`Error::VersionFromTheFuture`].
pub fn claim(bytes: &[u8]) -> Result<Claim> {
    Signed::split(bytes).map(|signed| signed.claim)
}

/// The trailer that signs an artifact as version `model_version` of its model. Errors: those of [`Artifact::new_checked`].
pub fn sign(artifact: &[u8], key: &SecretKey, model_version: u32) -> Result<[u8; TRAILER_LEN]> {
    Artifact::new_checked(artifact)?;
    let claim = Claim { model_version, key: key.public().id() };
    let signature = key.0.sign(&message(&claim, artifact.len(), &digest(artifact)));
    let mut trailer = [0; TRAILER_LEN];
    let (front, back) = trailer.split_at_mut(CLAIM_LEN);
    front.copy_from_slice(&claim.encode());
    back.copy_from_slice(&signature.to_bytes());
    Ok(trailer)
}

/// An artifact whose signature holds.
#[derive(Clone, Copy, Debug)]
pub struct Verified<'a> {
    artifact: Artifact<'a>,
    digest: [u8; 32],
    model_version: u32,
}

impl<'a> Verified<'a> {
    /// The artifact, checked.
    pub const fn artifact(&self) -> Artifact<'a> {
        self.artifact
    }

    /// SHA-256 of the artifact, the trailer not included.
    pub const fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The model version that was signed: what a device's counter ([`crate::slots::Counter`]) is raised to, once the model runs.
    pub const fn model_version(&self) -> u32 {
        self.model_version
    }
}

/// Checks a signed artifact: length and key id, the signature, the model version, and only then the artifact.
///
/// The signature is checked strictly: no second encoding of a signature and no key of small order passes.
///
/// Errors: those of [`claim`]; [`Error::OtherKey`]; [`Error::BadSignature`] where artifact or trailer were altered;
/// [`Error::OlderModel`] below `minimum_version`; those of [`Artifact::new_checked`].
pub fn verify<'a>(bytes: &'a [u8], key: &PublicKey, minimum_version: u32) -> Result<Verified<'a>> {
    let Signed { artifact, claim, signature } = Signed::split(bytes)?;
    if claim.key != key.id() {
        return Err(Error::OtherKey);
    }
    let digest = digest(artifact);
    let message = message(&claim, artifact.len(), &digest);
    key.0.verify_strict(&message, &Signature::from_bytes(&signature)).map_err(|_| Error::BadSignature)?;
    if claim.model_version < minimum_version {
        return Err(Error::OlderModel { version: claim.model_version, minimum: minimum_version });
    }
    Ok(Verified { artifact: Artifact::new_checked(artifact)?, digest, model_version: claim.model_version })
}
