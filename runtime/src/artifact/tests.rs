//! Golden bytes, damage of every kind, and round trips.

mod int8;
mod watched;

use super::*;
use crate::kernels::isa::Isa;
use crate::kernels::simd::Simd;
use crate::net::tests::{Dag, Dice, cases};
use crate::net::{Activation, NetBuilder, Op, OwnedNet, Scalar, Window};
use crate::session::Session;
use proptest::prelude::*;
use std::string::String;
use std::sync::OnceLock;
use std::vec;
use std::vec::Vec;

/// The artifact of [`golden_net`] with a linear head, as `spec/artifact.md` annotates it.
const GOLDEN: &str = "
    93 53 47 4d 0d 0a 01 00 4c 00 00 00 2a 00 00 00
    04 74 69 6e 79 07 63 61 74 0a 64 6f 67 06 67 6f
    6c 64 65 6e 02 02 01 01 01 01 04 02 27 00 00 02
    02 01 02 00 02 02 01 02 02 01 01 00 00 01 01 01
    00 04 01 10 01 03 00 00 00 3f 07 02 00 02 02 01
    01 01 01 01 01 00 01 01 01 02 20 0a 00 00 00 00
    00 00 80 3f 00 00 00 40 00 00 40 40 00 00 80 40
    00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
    00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
    00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
    00 00 c0 c0 00 00 00 00 00 00 00 00 00 00 00 00
    00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
    00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
    00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
    00 00 00 3f 00 00 80 3e 00 00 00 40 00 00 80 40
    00 00 80 3f 00 00 80 bf 00 00 40 3f 00 00 40 bf
    00 00 00 3e 00 00 00 be 05 d4 c8 37
";

/// 2 x 2 x 1, one convolution, one global average pool.
fn golden_net() -> OwnedNet {
    let mut b = NetBuilder::new();
    let x = b.input(Shape::new(2, 2, 1));
    let window = Window { kernel: [2, 2], stride: [1, 1], pad: [0, 0, 1, 1] };
    let y = b.conv(x, window, 1, vec![1.0, 2.0, 3.0, 4.0], Some(vec![-6.0]), Activation::Leaky(0.5)).unwrap();
    let y = b.global_avg_pool(y).unwrap();
    b.finish(y).unwrap()
}

const GOLDEN_HEAD: [f32; 10] = [0.5, 0.25, 2.0, 4.0, 1.0, -1.0, 0.75, -0.75, 0.125, -0.125];

fn golden_parts(net: &OwnedNet) -> ArtifactParts<'_> {
    let head = HeadParts { kind: HeadKind::Linear, classes: 2, params: &GOLDEN_HEAD };
    ArtifactParts {
        name: "tiny",
        labels: "cat\ndog",
        provenance: "golden",
        stem: net.as_net().into(),
        head: Some(head),
        tripwire: None,
    }
}

pub(crate) fn golden() -> AlignedBytes {
    from_hex(GOLDEN)
}

fn from_hex(text: &str) -> AlignedBytes {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(core::str::from_utf8(pair).unwrap(), 16).unwrap();
    AlignedBytes::from(&digits.chunks(2).map(byte).collect::<Vec<u8>>()[..])
}

fn verdict(bytes: &[u8]) -> Result<()> {
    Artifact::new_checked(bytes).map(|_| ())
}

pub(crate) fn fix_crc(bytes: &mut [u8]) {
    let (body, crc) = bytes.split_at_mut(bytes.len() - CRC_LEN);
    crc.copy_from_slice(&CRC.checksum(body).to_le_bytes());
}

#[test]
fn writing_gives_the_golden_bytes() {
    let net = golden_net();
    let bytes = to_vec(&golden_parts(&net)).unwrap();
    assert_eq!(bytes, &golden()[..], "{}", hex_rows(&bytes));
    let mut roomy = [0xff; 1000];
    assert_eq!(write(&golden_parts(&net), &mut roomy), Ok(bytes.len()));
    assert_eq!(&roomy[..bytes.len()], bytes);
    let short = Err(Error::WrongLength { needed: bytes.len(), given: 10 });
    assert_eq!(write(&golden_parts(&net), &mut [0; 10]), short);
}

#[test]
fn the_golden_bytes_read_back() {
    let bytes = golden();
    let artifact = Artifact::new_checked(&bytes).unwrap();
    assert_eq!(declared_len(&bytes[..HEADER_LEN]), Ok(bytes.len() as u64));
    assert_eq!((artifact.name(), artifact.provenance()), ("tiny", "golden"));
    assert_eq!(artifact.labels().collect::<Vec<_>>(), ["cat", "dog"]);
    let features = Shape::new(1, 1, 1);
    let head = HeadSpec { kind: HeadKind::Linear, features, classes: 2, span: Span { at: 32, len: 10 } };
    assert_eq!(artifact.head(), Some(head));
    assert_eq!(artifact.head_weights(), Some(&GOLDEN_HEAD[..]));
    let stem = artifact.stem().f32().unwrap();
    assert_eq!(OwnedNet::from(stem), golden_net());
    let (mut arena, mut output) = ([0.0; 4], [0.0; 1]);
    stem.run(&mut Scalar, &[1.0, 2.0, 3.0, 4.0], &mut arena, &mut output).unwrap();
    assert_eq!(output, [9.0]);
    assert_eq!(to_vec(&artifact.parts()).unwrap(), &bytes[..]);
}

/// Bytes as digits, 16 a row.
pub(crate) fn hex_rows(bytes: &[u8]) -> String {
    let digits = |(i, byte): (usize, &u8)| std::format!("{}{byte:02x}", if i % 16 == 0 { '\n' } else { ' ' });
    bytes.iter().enumerate().map(digits).collect()
}

/// The bytes of an annotated dump in a specification: an offset, the bytes, two spaces, words.
pub(crate) fn golden_dump(text: &str, name: &str) -> Vec<u8> {
    let dump = text.split(&std::format!("```{name}\n")).nth(1).unwrap().split("```").next().unwrap();
    let mut bytes = Vec::new();
    for line in dump.lines().filter(|line| !line.is_empty()) {
        let (offset, rest) = line.split_once("  ").unwrap();
        assert_eq!(usize::from_str_radix(offset, 16).unwrap(), bytes.len(), "{line}");
        let row = rest.split("  ").next().unwrap();
        bytes.extend(row.split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap()));
    }
    bytes
}

/// The text of `spec/artifact.md`.
pub(crate) fn specification() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../spec/artifact.md")).unwrap()
}

#[test]
fn the_specification_shows_the_golden_bytes() {
    assert_eq!(golden_dump(&specification(), "golden"), &golden()[..]);
}

/// Fails where a flipped bit goes unnoticed.
fn flips_are_caught(mut bytes: AlignedBytes) {
    for bit in 0..8 * bytes.len() {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(verdict(&bytes).is_err(), "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    assert_eq!(verdict(&bytes), Ok(()));
}

/// Fails where a missing end goes unnoticed.
fn truncations_are_caught(bytes: &[u8]) {
    for len in 0..bytes.len() {
        assert_eq!(verdict(&bytes[..len]), Err(Error::Truncated), "{len} bytes");
    }
}

/// The verdict on `bytes` with others at `at`, and a checksum that fits.
fn resealed(mut bytes: AlignedBytes, at: usize, new: &[u8]) -> Result<()> {
    bytes[at..at + new.len()].copy_from_slice(new);
    fix_crc(&mut bytes);
    verdict(&bytes)
}

#[test]
fn every_flipped_bit_is_caught() {
    flips_are_caught(golden());
}

#[test]
fn every_truncation_and_every_addition_is_caught() {
    let bytes = golden();
    truncations_are_caught(&bytes);
    for more in [0, 0xff] {
        let longer = AlignedBytes::from(&[&bytes[..], &[more]].concat()[..]);
        assert_eq!(verdict(&longer), Err(Error::WrongLength { needed: bytes.len(), given: bytes.len() + 1 }));
    }
}

#[test]
fn other_files_are_told_apart() {
    let with = |at: usize, new: &[u8]| resealed(golden(), at, new);
    assert_eq!(with(0, b"ONNX"), Err(Error::NotAnArtifact));
    assert_eq!(with(6, &[2, 0]), Err(Error::BadManifest), "the other precision");
    assert_eq!(with(6, &[3, 0]), Err(Error::BadManifest), "a tripwire is missing");
    assert_eq!(with(6, &[5, 0]), Err(Error::VersionFromTheFuture(5)));
    assert_eq!(with(6, &[0xff, 0xff]), Err(Error::VersionFromTheFuture(0xffff)));
    assert_eq!(with(6, &[0, 0]), Err(Error::NotAnArtifact));
    assert_eq!(with(8, &[0xff; 4]), Err(Error::Truncated));
    assert_eq!(with(12, &[0xff; 4]), Err(Error::Truncated));
    let layout = Layout::read(&golden()).unwrap();
    assert_eq!(with(layout.weights_at() as usize - 1, &[1]), Err(Error::BadManifest), "padding");
    let (stem, head) = (layout.weights_at() as usize, layout.weights_at() as usize + 4 * 32);
    assert_eq!(with(stem, &f32::NAN.to_le_bytes()), Err(Error::NotFinite));
    assert_eq!(with(head, &f32::INFINITY.to_le_bytes()), Err(Error::NotFinite));
    let mut shifted = AlignedBytes::zeroed(golden().len() + 4);
    shifted[4..].copy_from_slice(&golden());
    assert_eq!(verdict(&shifted[4..]), Err(Error::Misaligned));
}

#[test]
fn a_head_must_fit() {
    let net = golden_net();
    let with = |classes, params: &[f32], labels| {
        let head = Some(HeadParts { kind: HeadKind::Linear, classes, params });
        encoded_len(&ArtifactParts { labels, head, ..golden_parts(&net) }).map(|_| ())
    };
    assert_eq!(with(2, &GOLDEN_HEAD, ""), Ok(()));
    assert_eq!(with(2, &GOLDEN_HEAD, "one"), Err(Error::HeadDoesNotFit));
    assert_eq!(with(2, &GOLDEN_HEAD[1..], ""), Err(Error::HeadDoesNotFit));
    assert_eq!(with(0, &GOLDEN_HEAD[..4], ""), Err(Error::HeadDoesNotFit));
    assert_eq!(with(2, &[f32::NAN; 10], ""), Err(Error::NotFinite));
    let wide = Shape::new(8, 8, 64);
    assert_eq!(head_params(HeadKind::Residual, wide, 10), 12 * 64 + 2 * (9 * 64 * 64 + 64) + 64 * 10 + 10);
    assert_eq!(head_params(HeadKind::Linear, wide, 10), 4 * 64 + 128 * 10 + 10);
    let most = Shape::new(1, 1, u32::MAX);
    assert_eq!(head_params(HeadKind::Residual, most, u32::MAX), usize::MAX);
}

#[test]
fn a_file_is_read_aligned() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &golden()[..]).unwrap();
    let bytes = AlignedBytes::from_file(file.path()).unwrap();
    assert_eq!(verdict(&bytes.clone()), Ok(()));
    assert_eq!(AlignedBytes::zeroed(0).len(), 0);
    assert!(AlignedBytes::from_file("/nonexistent.sgm").is_err());
}

/// An artifact around a random net, with or without a head.
pub(crate) fn random_artifact(seed: u64, ops: usize) -> Vec<u8> {
    let dag = Dag::random(seed, ops);
    let mut dice = Dice(!seed);
    let (value, shape, _) = dag.values[dice.below(dag.values.len())];
    let net = dag.builder.finish(value).unwrap();
    let kind = [HeadKind::Linear, HeadKind::Residual][dice.below(2)];
    let classes = 1 + dice.below(3) as u32;
    let params = dice.floats(head_params(kind, shape, classes));
    let head = (dice.below(2) == 0).then_some(HeadParts { kind, classes, params: &params });
    let labels = if dice.below(2) == 0 { "" } else { ["a", "a\nb", "a\nb\nc"][classes as usize - 1] };
    let stem = net.as_net().into();
    random_tripwire(&mut dice, &ArtifactParts { name: "n", labels, provenance: "", stem, head, tripwire: None })
}

/// The artifact of the parts, where they have a head in half of the cases with a tripwire.
fn random_tripwire(dice: &mut Dice, parts: &ArtifactParts<'_>) -> Vec<u8> {
    let Some(head) = parts.head.filter(|_| dice.below(2) == 0) else { return to_vec(parts).unwrap() };
    let kind = [HeadKind::Linear, HeadKind::Residual][dice.below(2)];
    let params = dice.floats(head_params(kind, parts.stem.output(), head.classes));
    let witness = HeadParts { kind, classes: head.classes, params: &params };
    let tripwire = TripwireParts { witness, threshold: dice.floats(1)[0], false_positive_rate: 0.05 };
    to_vec(&ArtifactParts { tripwire: Some(tripwire), ..*parts }).unwrap()
}

/// A change to an artifact: where, which of the kinds below, and a number for it.
fn mutate(bytes: &mut Vec<u8>, at: usize, kind: u8, number: u8) {
    let Ok(layout) = Layout::read(bytes) else { return };
    let manifest = HEADER_LEN..HEADER_LEN + layout.manifest as usize;
    if bytes.len() < manifest.end || manifest.is_empty() {
        return;
    }
    let inside = manifest.start + at % manifest.len();
    match kind {
        0 => bytes[inside] ^= 1 << (number % 8),
        1 => bytes[inside] = number,
        2 => bytes[inside] = bytes[inside].wrapping_add(1),
        3 => bytes[inside] = bytes[inside].wrapping_sub(1),
        4 => bytes[inside] = bytes[manifest.start + number as usize % manifest.len()],
        5 => {
            let i = at % bytes.len();
            bytes[i] = number;
        }
        // The manifest shorter or longer by a byte, everything after it moved to where it belongs.
        _ => {
            let mut new = bytes[..manifest.end].to_vec();
            if kind == 6 {
                new.remove(inside);
            } else {
                new.insert(inside, number);
            }
            let len = (new.len() - HEADER_LEN) as u32;
            new[8..12].copy_from_slice(&len.to_le_bytes());
            new.resize(new.len().next_multiple_of(ALIGN), 0);
            // Earlier changes may have moved the weights behind the end.
            new.extend_from_slice(bytes.get(layout.weights_at() as usize..).unwrap_or_default());
            *bytes = new;
        }
    }
}

/// Steps a run takes, roughly: a changed window or shape may ask for more than a test has time for.
fn steps(net: &Net<'_>) -> u64 {
    let of = |op: Op| {
        let window = match op {
            Op::MaxPool { window, .. } | Op::AvgPool { window, .. } => window.kernel,
            _ => [1, 1],
        };
        let (first, second) = op.inputs();
        let read = first.shape.len() + second.map_or(0, |s| s.shape.len());
        read as u64 + op.output().shape.len() as u64 * u64::from(window[0]) * u64::from(window[1])
    };
    net.ops().map(of).fold(net.multiply_adds(), u64::saturating_add)
}

/// Features of three pictures of ones by a session over a model, on every instruction set this processor has; its heads answer, too.
fn everywhere(parts: &ArtifactParts<'_>) -> Vec<Vec<f32>> {
    static TEAMS: OnceLock<Vec<Simd>> = OnceLock::new();
    let teams = TEAMS.get_or_init(|| Isa::available().map(|isa| Simd::with_isa(isa, 2).unwrap()).collect());
    let one = |k: &Simd| {
        let session = Session::of_artifact(parts, k.clone()).unwrap();
        let x = vec![1.0; 3 * session.input().len()];
        let mut features = vec![f32::NAN; 3 * session.features_shape().len()];
        session.features(&x, &mut features).unwrap();
        let mut answers = vec![0.0; 3 * session.output().len()];
        session.infer(&x, &mut answers).unwrap();
        if session.threshold().is_some() {
            let watched = session.infer_watched(&x, &mut answers, &mut [0.0; 3]);
            assert!(matches!(watched, Ok(()) | Err(Error::NotFinite)), "{watched:?}");
        }
        features
    };
    teams.iter().map(one).collect()
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn writing_and_reading_are_inverse(seed: u64, ops in 1usize..20) {
        let bytes = AlignedBytes::from(&random_artifact(seed, ops)[..]);
        let artifact = Artifact::new_checked(&bytes).unwrap();
        prop_assert_eq!(&to_vec(&artifact.parts()).unwrap()[..], &bytes[..]);
    }

    /// Damage that the checksum cannot see is refused, or what is left runs to the end.
    #[test]
    fn a_changed_artifact_is_refused_or_runs(
        seed: u64,
        ops in 1usize..12,
        changes in prop::collection::vec((any::<usize>(), 0u8..8, any::<u8>()), 1..4),
    ) {
        let mut bytes = random_artifact(seed, ops);
        for (at, kind, number) in changes {
            mutate(&mut bytes, at, kind, number);
        }
        fix_crc(&mut bytes);
        let bytes = AlignedBytes::from(&bytes[..]);
        if let Ok(artifact) = Artifact::new_checked(&bytes) {
            let net = artifact.stem().f32().unwrap();
            if steps(&net) < 10_000_000 && net.arena_len() < 10_000_000 {
                let mut arena = vec![0.0; net.arena_len()];
                let mut output = vec![0.0; net.output().len()];
                let input = vec![1.0; net.input().len()];
                prop_assert_eq!(net.run(&mut Scalar, &input, &mut arena, &mut output), Ok(()));
                everywhere(&artifact.parts());
            }
            to_vec(&artifact.parts()).unwrap();
        }
    }

    #[test]
    fn noise_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for version in [F32, INT8, F32_WATCHED, INT8_WATCHED] {
            let mut framed = [&MAGIC[..], &version.to_le_bytes(), &bytes].concat();
            framed.resize(framed.len().max(HEADER_LEN + CRC_LEN), 0);
            fix_crc(&mut framed);
            prop_assert!(verdict(&AlignedBytes::from(&framed[..])).is_err());
        }
    }
}
