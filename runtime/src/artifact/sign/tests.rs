//! Golden bytes, every flipped bit, other keys, older versions, artifacts that lie under a good signature.

use super::*;
use crate::artifact::AlignedBytes;
use crate::artifact::tests::{fix_crc, golden, golden_dump, hex_rows, random_artifact, specification};
use crate::net::tests::cases;
use proptest::prelude::*;

/// The seed and the public key of RFC 8032, section 7.1, test 1.
const SEED: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
const PUBLIC: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

fn hex(digits: &str) -> [u8; 32] {
    core::array::from_fn(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap())
}

fn key() -> SecretKey {
    SecretKey::from_seed(&hex(SEED))
}

/// An artifact and its trailer.
fn signed(artifact: &[u8], key: &SecretKey, version: u32) -> AlignedBytes {
    let trailer = sign(&AlignedBytes::from(artifact), key, version).unwrap();
    AlignedBytes::from(&[artifact, &trailer].concat()[..])
}

/// A trailer over bytes that no check has seen.
fn sign_blindly(artifact: &[u8]) -> AlignedBytes {
    let claim = Claim { model_version: 1, key: key().public().id() };
    let signature = key().0.sign(&message(&claim, artifact.len(), &digest(artifact))).to_bytes();
    AlignedBytes::from(&[artifact, &claim.encode(), &signature].concat()[..])
}

fn verdict(bytes: &[u8], minimum: u32) -> Result<u32> {
    verify(bytes, &key().public(), minimum).map(|verified| verified.model_version())
}

#[test]
fn the_specification_shows_the_trailer() {
    assert_eq!(key().public().to_bytes(), hex(PUBLIC));
    let bytes = signed(&golden(), &key(), 7);
    let trailer = &bytes[golden().len()..];
    assert_eq!(golden_dump(&specification(), "trailer"), trailer, "{}", hex_rows(trailer));
}

#[test]
fn a_signed_artifact_is_verified_then_parsed() {
    let bytes = signed(&golden(), &key(), 7);
    assert_eq!(signed_len(&bytes[..16]), Ok(bytes.len() as u64));
    let verified = verify(&bytes, &key().public(), 7).unwrap();
    assert_eq!((verified.artifact().name(), verified.model_version()), ("tiny", 7));
    assert_eq!(verified.digest(), digest(&golden()));
    assert_eq!(claim(&bytes), Ok(Claim { model_version: 7, key: key().public().id() }));
    for minimum in [0, 6, 7] {
        assert_eq!(verdict(&bytes, minimum), Ok(7));
    }
    for minimum in [8, u32::MAX] {
        assert_eq!(verdict(&bytes, minimum), Err(Error::OlderModel { version: 7, minimum }));
    }
    let other = SecretKey::from_seed(&[1; 32]).public();
    assert_eq!(verify(&bytes, &other, 0).err(), Some(Error::OtherKey));
    // The other key's id does not make the signature its own.
    let mut forged = bytes.clone();
    forged[golden().len() + 16..][..8].copy_from_slice(&other.id());
    assert_eq!(verify(&forged, &other, 0).err(), Some(Error::BadSignature));
    // An artifact alone stays one, and is unsigned.
    assert_eq!(verdict(&golden(), 0), Err(Error::Unsigned));
    assert!(Artifact::new_checked(&golden()).is_ok() && Artifact::new_checked(&bytes).is_err());
    assert_eq!(PublicKey::from_bytes(&hex(PUBLIC)), Ok(key().public()));
    // Of small order; no point at all.
    assert_eq!(PublicKey::from_bytes(&[0; 32]), Err(Error::BadKey));
    let mut none = [0; 32];
    none[0] = 2;
    assert_eq!(PublicKey::from_bytes(&none), Err(Error::BadKey));
}

#[test]
fn every_flipped_bit_and_every_truncation_is_refused() {
    let good = signed(&golden(), &key(), 7);
    let mut bytes = good.clone();
    for bit in 0..8 * bytes.len() {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(verdict(&bytes, 0).is_err(), "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    assert_eq!(verdict(&bytes, 0), Ok(7));
    for len in 0..good.len() {
        let unsigned = (golden().len()..golden().len() + 8).contains(&len);
        let expected = if unsigned { Error::Unsigned } else { Error::Truncated };
        assert_eq!(verdict(&good[..len], 0), Err(expected), "{len} bytes");
    }
    let longer = AlignedBytes::from(&[&good[..], &[0]].concat()[..]);
    assert_eq!(verdict(&longer, 0), Err(Error::WrongLength { needed: good.len(), given: good.len() + 1 }));
    // A second encoding of the signature: the group order added to S.
    let order = [0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14];
    let order = u128::from_le_bytes(order);
    let at = good.len() - 32;
    let half = |at: usize| u128::from_le_bytes(good[at..at + 16].try_into().unwrap());
    let (low, carry) = half(at).overflowing_add(order);
    let high = half(at + 16) + u128::from(carry) + (1 << 124);
    let mut malleable = good.clone();
    malleable[at..at + 16].copy_from_slice(&low.to_le_bytes());
    malleable[at + 16..].copy_from_slice(&high.to_le_bytes());
    assert_eq!(verdict(&malleable, 0), Err(Error::BadSignature));
    let mut future = good.clone();
    future[golden().len() + 8] = 2;
    assert_eq!(verdict(&future, 0), Err(Error::VersionFromTheFuture(2)));
}

#[test]
fn a_signature_does_not_replace_the_checks() {
    let mut lying = golden();
    // The convolution's kernel: 2 x 2 becomes 3 x 2.
    lying[0x37] = 3;
    fix_crc(&mut lying);
    assert!(matches!(verdict(&sign_blindly(&lying), 0), Err(Error::BadOperation { .. })));
    assert!(matches!(sign(&lying, &key(), 1), Err(Error::BadOperation { .. })));
    let mut damaged = golden();
    damaged[0x60] ^= 1;
    assert_eq!(verdict(&sign_blindly(&damaged), 0), Err(Error::Corrupt));
    assert_eq!(verdict(&sign_blindly(&golden()), 0), Ok(1));
}

proptest! {
    #![proptest_config(cases(300))]

    /// Whatever is changed, nothing panics and nothing but the signed bytes passes.
    #[test]
    fn a_changed_signed_artifact_never_verifies(
        seed: u64,
        ops in 1usize..8,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..5), 1..4),
    ) {
        let good = signed(&random_artifact(seed, ops), &key(), 3);
        prop_assert_eq!(verdict(&good, 3), Ok(3));
        let mut bytes = good.to_vec();
        for (at, byte, kind) in changes {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes[at] ^= 1 << (byte % 8),
                2 => bytes.insert(at, byte),
                3 if bytes.len() > 1 => drop(bytes.remove(at)),
                _ => bytes.truncate(at.max(1)),
            }
        }
        let bytes = AlignedBytes::from(&bytes[..]);
        prop_assert_eq!(verdict(&bytes, 0).is_ok(), bytes[..] == good[..]);
    }

    /// A changed artifact with a new checksum, so that only the signature tells.
    #[test]
    fn a_resealed_artifact_never_verifies(seed: u64, at: prop::sample::Index, bit in 0u8..8) {
        let artifact = random_artifact(seed, 4);
        let good = signed(&artifact, &key(), 3);
        let mut changed = artifact.clone();
        let at = at.index(changed.len() - 4);
        changed[at] ^= 1 << bit;
        fix_crc(&mut changed);
        let bytes = AlignedBytes::from(&[&changed[..], &good[artifact.len()..]].concat()[..]);
        prop_assert!(verdict(&bytes, 0).is_err());
    }

    #[test]
    fn noise_never_verifies(mut bytes in prop::collection::vec(any::<u8>(), 0..400), front in 0usize..24) {
        let good = signed(&golden(), &key(), 3);
        let front = front.min(bytes.len());
        bytes[..front].copy_from_slice(&good[..front]);
        prop_assert!(verdict(&AlignedBytes::from(&bytes[..]), 0).is_err());
    }
}
