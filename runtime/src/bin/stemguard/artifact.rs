//! Reading a `.sgm` file, signed or not.

use crate::fail::Fail;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use stemguard_runtime::artifact::sign::{self, Claim, TRAILER_LEN};
use stemguard_runtime::artifact::{self, AlignedBytes, HEADER_LEN};
use stemguard_runtime::error::Error;

/// The largest artifact read, in bytes: 4 GiB.
const MAX_FILE: u64 = 4 << 30;

/// An artifact, not yet checked, and the trailer behind it, if there is one.
pub(crate) struct ArtifactFile {
    /// Artifact, trailer, zeros.
    bytes: AlignedBytes,
    /// Bytes of the artifact.
    len: usize,
    claim: Option<Claim>,
}

impl ArtifactFile {
    /// Reads a whole file.
    pub(crate) fn open(path: &Path) -> Result<Self, Fail> {
        let mut file = File::open(path).map_err(|e| Fail::at(path, e))?;
        let header = read_header(path, &mut file)?;
        Self::read(path, file, &header)
    }

    /// Reads the rest of a file behind its header. Memory is taken only for a length the file has, where it
    /// tells its length: a pipe does not.
    pub(crate) fn read(path: &Path, mut file: File, header: &[u8]) -> Result<Self, Fail> {
        let refuse = |e: Error| Fail::at(path, e);
        let system = |e: io::Error| Fail::at(path, e);
        let declared = artifact::declared_len(header).map_err(refuse)?;
        let meta = file.metadata().map_err(system)?;
        if meta.is_file() && meta.len() < declared {
            return Err(Fail::at(path, format!("truncated: {} bytes where {declared} are needed", meta.len())));
        }
        if declared > MAX_FILE {
            return Err(Fail::at(path, format!("an artifact of {declared} bytes is larger than 4 GiB")));
        }
        let len = declared as usize;
        // One byte more than a signed file has, to see that there is none.
        let mut bytes = AlignedBytes::zeroed(len + TRAILER_LEN + 1);
        bytes[..header.len()].copy_from_slice(header);
        let got = header.len() + fill(&mut file, &mut bytes[header.len()..]).map_err(system)?;
        if got < len {
            return Err(Fail::at(path, format!("truncated: {got} bytes where {declared} are needed")));
        }
        let claim = match sign::claim(&bytes[..got]) {
            _ if got == len => None,
            Ok(claim) => Some(claim),
            Err(Error::Unsigned | Error::Truncated | Error::WrongLength { .. }) => {
                let why = format!("bytes follow the {declared} bytes of the artifact and are no signature");
                return Err(Fail::at(path, why));
            }
            Err(e) => return Err(refuse(e)),
        };
        Ok(Self { bytes, len, claim })
    }

    /// The artifact.
    pub(crate) fn artifact(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The artifact with its trailer, if there is one.
    pub(crate) fn whole(&self) -> &[u8] {
        &self.bytes[..self.len + self.claim.map_or(0, |_| TRAILER_LEN)]
    }

    /// What the trailer says, unverified.
    pub(crate) const fn claim(&self) -> Option<Claim> {
        self.claim
    }
}

/// The first bytes of a file, as many as tell what it is; fewer where it has no more.
pub(crate) fn read_header(path: &Path, file: &mut File) -> Result<Vec<u8>, Fail> {
    let mut header = vec![0; HEADER_LEN];
    let got = fill(file, &mut header).map_err(|e| Fail::at(path, e))?;
    header.truncate(got);
    Ok(header)
}

/// Reads up to the end of the buffer or of the file; how many bytes there were.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}
