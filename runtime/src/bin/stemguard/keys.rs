//! Key files: PEM, as OpenSSL reads and writes them (RFC 8410, RFC 7468).

use crate::fail::Fail;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use stemguard_runtime::artifact::sign::{PublicKey, SecretKey};

/// A kind of key file: what its lines begin and end with, and the DER in front of the 32 bytes of the key.
struct Kind {
    label: &'static str,
    der: &'static [u8],
}

const PRIVATE: Kind =
    Kind { label: "PRIVATE KEY", der: b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20" };
const PUBLIC: Kind = Kind { label: "PUBLIC KEY", der: b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00" };

/// The most bytes of a key file.
const MAX_FILE: u64 = 1 << 16;

impl Kind {
    fn write(&self, key: &[u8; 32]) -> String {
        let label = self.label;
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode([self.der, key].concat()))
    }

    fn read(&self, path: &Path) -> Result<[u8; 32], Fail> {
        let label = self.label;
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
        read.map_err(|e| Fail::at(path, e))?;
        let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
        let body = text.split_once(&begin).and_then(|(_, rest)| rest.split_once(&end)).map(|(body, _)| body);
        let body = body.ok_or_else(|| Fail::at(path, format!("holds no `{label}` in PEM")))?;
        let digits: String = body.split_whitespace().collect();
        let der = STANDARD.decode(digits).map_err(|e| Fail::at(path, format!("PEM: {e}")))?;
        let key = der.strip_prefix(self.der).and_then(|key| key.try_into().ok());
        key.ok_or_else(|| Fail::at(path, "holds no Ed25519 key as RFC 8410 writes it"))
    }
}

/// The text of a private key's file.
pub(crate) fn private_text(key: &SecretKey) -> String {
    PRIVATE.write(key.seed())
}

/// The text of a public key's file.
pub(crate) fn public_text(key: &PublicKey) -> String {
    PUBLIC.write(&key.to_bytes())
}

/// Reads a private key.
pub(crate) fn read_private(path: &Path) -> Result<SecretKey, Fail> {
    PRIVATE.read(path).map(|seed| SecretKey::from_seed(&seed))
}

/// Reads a public key.
pub(crate) fn read_public(path: &Path) -> Result<PublicKey, Fail> {
    PUBLIC.read(path).and_then(|key| PublicKey::from_bytes(&key).map_err(|e| Fail::at(path, e)))
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
