//! Running the binary, and files for it to read.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use stemguard_runtime::artifact::{ArtifactParts, HeadKind, HeadParts, TripwireParts, head_params, to_vec};
use stemguard_runtime::net::{Activation, NetBuilder, OwnedNet, Window};
use stemguard_runtime::rng::Rng;
use stemguard_runtime::shape::Shape;

/// What a run of the command left behind.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// The binary, not yet run.
pub(crate) fn command() -> Command {
    match std::env::var_os("STEMGUARD_COMMAND") {
        Some(binary) => Command::new(binary),
        None => Command::new(env!("CARGO_BIN_EXE_stemguard")),
    }
}

/// Runs the binary.
pub(crate) fn run(args: &[&str]) -> Ran {
    let output = command().args(args).stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
}

/// Runs the binary, which must succeed; its standard output.
#[track_caller]
pub(crate) fn done(args: &[&str]) -> String {
    let ran = run(args);
    assert_eq!(ran.code, 0, "{args:?}: {}", ran.err);
    ran.out
}

/// Runs the binary, which must refuse: exit code 2, nothing on standard output, one line that holds all of `words`.
#[track_caller]
pub(crate) fn refused(args: &[&str], words: &[&str]) {
    failed(args, 2, words);
}

/// As [`refused`], with another exit code.
#[track_caller]
pub(crate) fn failed(args: &[&str], code: i32, words: &[&str]) {
    let ran = run(args);
    assert_eq!((ran.code, &ran.out[..]), (code, ""), "{args:?}: {}", ran.err);
    assert!(ran.err.starts_with("stemguard: ") && ran.err.ends_with('\n'), "{args:?}: {:?}", ran.err);
    assert_eq!(ran.err.lines().count(), 1, "{args:?}: {}", ran.err);
    for word in words {
        assert!(ran.err.contains(word), "{args:?}: `{word}` is not in: {}", ran.err);
    }
}

/// A file of the workspace's test data.
pub(crate) fn testdata(name: &str) -> String {
    format!("{}/../testdata/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A folder that goes away.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// A path in the folder, as text.
    pub(crate) fn at(&self, name: &str) -> String {
        self.path().join(name).to_str().unwrap().to_string()
    }

    /// Writes a file; its path.
    pub(crate) fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        self.at(name)
    }

    /// Names of the files there.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path()).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// A `.npy` file's bytes.
pub(crate) fn npy(kind: &str, shape: &[usize], data: &[u8]) -> Vec<u8> {
    let sides: Vec<String> = shape.iter().map(usize::to_string).collect();
    let mut header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({},), }}", sides.join(", "));
    while (header.len() + 11) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// A `.npy` file of `f32`.
pub(crate) fn npy_f32(shape: &[usize], data: &[f32]) -> Vec<u8> {
    let data: Vec<u8> = data.iter().flat_map(|v| v.to_le_bytes()).collect();
    npy("<f4", shape, &data)
}

/// The dimensions and elements of a `.npy` file of `f32`.
pub(crate) fn read_npy(path: impl Into<PathBuf>) -> (Vec<usize>, Vec<f32>) {
    let bytes = std::fs::read(path.into()).unwrap();
    let data = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = std::str::from_utf8(&bytes[10..data]).unwrap();
    assert!(header.contains("<f4"), "{header}");
    let shape = header.split_once('(').unwrap().1.split_once(')').unwrap().0;
    let shape = shape.split(',').filter_map(|side| side.trim().parse().ok()).collect();
    (shape, bytes[data..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

/// Reproducible noise in 0..1.
pub(crate) fn noise(n: usize) -> Vec<f32> {
    let mut rng = Rng::new(5, 5);
    (0..n).map(|_| rng.uniform()).collect()
}

/// The number behind a key of a JSON line.
pub(crate) fn number(json: &str, key: &str) -> f64 {
    let after = json.split_once(&format!("\"{key}\":")).unwrap_or_else(|| panic!("no {key} in {json}")).1;
    let end = after.find([',', '}', ']']).unwrap();
    after[..end].parse().unwrap_or_else(|_| panic!("{key} in {json}"))
}

/// max |a - b| / max |b|; infinite for a NaN on either side or different lengths.
pub(crate) fn difference(a: &[f32], b: &[f32]) -> f32 {
    if a.len() != b.len() || a.iter().chain(b).any(|v| !v.is_finite()) {
        return f32::INFINITY;
    }
    let off = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    off / b.iter().map(|b| b.abs()).fold(1e-6, f32::max)
}

/// A small stem: 8x8x3 to 4x4x5.
pub(crate) fn small_net() -> OwnedNet {
    let mut b = NetBuilder::new();
    let x = b.input(Shape::new(8, 8, 3));
    let window = Window { kernel: [3, 3], stride: [2, 2], pad: [1, 1, 1, 1] };
    let weight = noise(9 * 3 * 5).iter().map(|v| v - 0.5).collect();
    let y = b.conv(x, window, 1, weight, Some(noise(5)), Activation::Relu).unwrap();
    b.finish(y).unwrap()
}

/// A small defended artifact of three classes.
pub(crate) fn small_defended() -> Vec<u8> {
    small(None)
}

/// The same with a tripwire: the witness answers otherwise, the alarm is raised above `threshold`.
pub(crate) fn small_watched(threshold: f32) -> Vec<u8> {
    small(Some(threshold))
}

fn small(threshold: Option<f32>) -> Vec<u8> {
    let net = small_net();
    let params = noise(head_params(HeadKind::Linear, net.as_net().output(), 3));
    let turned: Vec<f32> = params.iter().map(|p| 1.0 - p).collect();
    let of = |params| HeadParts { kind: HeadKind::Linear, classes: 3, params };
    let tripwire =
        threshold.map(|threshold| TripwireParts { witness: of(&turned), threshold, false_positive_rate: 0.01 });
    let (head, name, labels, stem) = (Some(of(&params)), "small", "stop\nyield\npass", net.as_net().into());
    to_vec(&ArtifactParts { name, labels, provenance: "made by a test", stem, head, tripwire }).unwrap()
}

/// Writes the checksum anew, after a change.
pub(crate) fn reseal(bytes: &mut [u8]) {
    let (body, crc) = bytes.split_last_chunk_mut::<4>().unwrap();
    *crc = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC).checksum(body).to_le_bytes();
}
