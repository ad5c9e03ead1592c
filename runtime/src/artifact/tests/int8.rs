//! Artifacts with a stem in 8 bits: golden bytes, damage, round trips.

use super::*;
use crate::net::int8::build::Int8Builder;
use crate::net::int8::{Finish, Int8Op, OwnedInt8Net, Quant, Rescale, ScalarInt8};
use crate::quantise::{calibrate, quantise};

/// The artifact of [`golden_net`] with a linear head, as `spec/artifact.md` annotates it.
pub(super) const GOLDEN: &str = "
    93 53 47 4d 0d 0a 02 00 5f 00 00 00 1a 00 00 00
    04 74 69 6e 79 07 63 61 74 0a 64 6f 67 06 67 6f
    6c 64 65 6e 02 02 01 01 01 01 81 80 80 3b 80 00
    00 80 3d e4 04 02 30 00 00 02 02 01 02 00 02 02
    01 02 02 01 01 00 00 01 01 01 80 00 04 10 0c 80
    80 02 e4 80 7f 07 02 00 02 02 01 01 01 01 01 e4
    e4 80 80 80 80 08 12 01 00 01 01 01 02 10 0a 00
    20 40 60 7f 00 00 00 00 00 00 00 00 00 00 00 00
    40 e0 ff ff 40 40 40 40 07 00 00 00 00 00 00 00
    00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
    00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
    00 00 00 3f 00 00 80 3e 00 00 00 40 00 00 80 40
    00 00 80 3f 00 00 80 bf 00 00 40 3f 00 00 40 bf
    00 00 00 3e 00 00 00 be 9e 6e 72 2c
";

/// 2 x 2 x 1, one convolution, one global average pool.
pub(super) fn golden_net() -> OwnedInt8Net {
    let shape = Shape::new(2, 2, 1);
    let mut b = Int8Builder::new(shape, Quant::PICTURE);
    let ((x, _), y) = (b.value(0), b.next(shape));
    let window = Window { kernel: [2, 2], stride: [1, 1], pad: [0, 0, 1, 1] };
    // Weights 1 to 4 in steps of 1/32, a bias of -6: 1 of a sum is 1 / (255 * 32), and the input's zero is -128.
    let weight = b.weights(&[32, 64, 96, 127]);
    let channels = b.channels(&[[128 * (32 + 64 + 96 + 127) - 6 * 255 * 32, 0x4040_4040, 7]]);
    let finish = Finish { slope: 1 << 15, zero: -28, low: -128, high: 127 };
    let quant = Quant { scale: 0.0625, zero: -28 };
    let conv = b.push(Int8Op::Conv { x, y, window, groups: 1, pad: -128, weight, channels, finish }, quant);
    let ((x, quant), y) = (b.value(conv), b.next(Shape::new(1, 1, 1)));
    let rescale = Rescale { multiplier: 1 << 30, shift: 18 };
    b.push(Int8Op::GlobalAvgPool { x, y, zeros: [-28, -28], rescale }, quant);
    b.finish().unwrap()
}

pub(super) fn golden_parts(net: &OwnedInt8Net) -> ArtifactParts<'_> {
    let head = HeadParts { kind: HeadKind::Linear, classes: 2, params: &GOLDEN_HEAD };
    let stem = net.as_net().into();
    ArtifactParts { name: "tiny", labels: "cat\ndog", provenance: "golden", stem, head: Some(head), tripwire: None }
}

#[test]
fn writing_gives_the_golden_bytes() {
    let net = golden_net();
    let bytes = to_vec(&golden_parts(&net)).unwrap();
    assert_eq!(bytes, &from_hex(GOLDEN)[..], "{}", hex_rows(&bytes));
    assert_eq!(golden_dump(&specification(), "golden-int8"), bytes);
}

#[test]
fn the_golden_bytes_read_back() {
    let bytes = from_hex(GOLDEN);
    let artifact = Artifact::new_checked(&bytes).unwrap();
    assert_eq!(declared_len(&bytes[..HEADER_LEN]), Ok(bytes.len() as u64));
    assert_eq!((artifact.name(), artifact.stem().precision()), ("tiny", "int8"));
    assert_eq!(artifact.head_weights(), Some(&GOLDEN_HEAD[..]));
    let stem = artifact.stem().int8().unwrap();
    assert_eq!(OwnedInt8Net::from(stem), golden_net());
    // 1, 2/3, 1/3, 0: windows 1 + 4/3 + 1 = 10/3, 2/3, 1/3, 0; minus 6, halved below 0.
    let picture = [127, 42, -43, -128];
    let (mut arena, mut features) = (vec![0; stem.arena_len()], [0; 1]);
    stem.run(&mut ScalarInt8, &picture, &mut arena, &mut features).unwrap();
    assert_eq!(arena[..4], [-49, -71, -73, -76]);
    assert_eq!(features, [-67]);
    assert_eq!(to_vec(&artifact.parts()).unwrap(), &bytes[..]);
}

#[test]
fn every_flipped_bit_and_every_truncation_is_caught() {
    flips_are_caught(from_hex(GOLDEN));
    truncations_are_caught(&from_hex(GOLDEN));
}

#[test]
fn a_resealed_file_is_still_checked() {
    let with = |at: usize, new: &[u8]| resealed(from_hex(GOLDEN), at, new);
    let layout = Layout::read(&from_hex(GOLDEN)).unwrap();
    let (weights, head) = (layout.weights_at() as usize, layout.weights_at() as usize + 4 * 16);
    let number = Err(Error::BadOperation { op: 0, why: crate::error::OpFault::Number });
    assert_eq!(with(weights + 16, &(1i32 << 30).to_le_bytes()), number);
    assert_eq!(with(weights + 24, &[31]), number);
    assert_eq!(with(weights, &[0x80, 0xff, 0xc0, 0x7f]), Ok(()), "any byte is a weight");
    assert_eq!(with(head, &f32::NAN.to_le_bytes()), Err(Error::NotFinite));
    assert_eq!(with(6, &[1]), Err(Error::BadManifest), "the other precision");
}

/// An artifact around a random net in 8 bits, with or without a head.
fn random_artifact(seed: u64, ops: usize) -> Vec<u8> {
    let dag = Dag::random(seed, ops);
    let mut dice = Dice(!seed);
    let (value, shape, _) = dag.values[dice.below(dag.values.len())];
    let net = dag.builder.finish(value).unwrap();
    let seen = calibrate(&net.as_net(), &Simd::new(1), &dag.input).unwrap();
    let net = quantise(&net.as_net(), &seen).unwrap();
    let kind = [HeadKind::Linear, HeadKind::Residual][dice.below(2)];
    let params = dice.floats(head_params(kind, shape, 2));
    let head = (dice.below(2) == 0).then_some(HeadParts { kind, classes: 2, params: &params });
    let stem = net.as_net().into();
    random_tripwire(&mut dice, &ArtifactParts { name: "n", labels: "", provenance: "", stem, head, tripwire: None })
}

/// Steps a run takes, roughly.
fn steps(op: &Int8Op) -> u64 {
    let window = match *op {
        Int8Op::MaxPool { window, .. } | Int8Op::AvgPool { window, .. } => window.kernel,
        _ => [1, 1],
    };
    let (first, second) = op.inputs();
    let read = first.shape.len() + second.map_or(0, |s| s.shape.len());
    let written = op.output().shape.len() as u64 * u64::from(window[0]) * u64::from(window[1]);
    op.multiply_adds().saturating_add(read as u64).saturating_add(written)
}

proptest! {
    #![proptest_config(cases(1000))]

    #[test]
    fn writing_and_reading_are_inverse(seed: u64, ops in 1usize..10) {
        let bytes = AlignedBytes::from(&random_artifact(seed, ops)[..]);
        let artifact = Artifact::new_checked(&bytes).unwrap();
        prop_assert_eq!(&to_vec(&artifact.parts()).unwrap()[..], &bytes[..]);
    }

    /// Damage that the checksum cannot see is refused, or what is left runs to the end, the same on every kernel.
    #[test]
    fn a_changed_artifact_is_refused_or_runs(
        seed: u64,
        ops in 1usize..8,
        changes in prop::collection::vec((any::<usize>(), 0u8..8, any::<u8>()), 1..4),
    ) {
        let mut bytes = random_artifact(seed, ops);
        for (at, kind, number) in changes {
            mutate(&mut bytes, at, kind, number);
        }
        fix_crc(&mut bytes);
        let bytes = AlignedBytes::from(&bytes[..]);
        if let Ok(artifact) = Artifact::new_checked(&bytes)
            && let Some(net) = artifact.stem().int8()
        {
            let work = net.ops().map(|op| steps(&op)).fold(0, u64::saturating_add);
            if work < 10_000_000 && net.arena_len() < 10_000_000 {
                let (mut arena, mut input) = (vec![0; net.arena_len()], vec![100; net.input().len()]);
                let mut outputs = [vec![0; net.output().len()], vec![1; net.output().len()]];
                prop_assert_eq!(net.run(&mut ScalarInt8, &input, &mut arena, &mut outputs[0]), Ok(()));
                let dsp = &mut crate::kernels::int8_dsp::Dsp;
                prop_assert_eq!(net.run(dsp, &input, &mut arena, &mut outputs[1]), Ok(()));
                prop_assert_eq!(&outputs[0], &outputs[1]);
                // Through a session, from the picture that is quantised to what a picture of ones is.
                input.fill(net.input_quant().quantise(1.0));
                prop_assert_eq!(net.run(&mut ScalarInt8, &input, &mut arena, &mut outputs[0]), Ok(()));
                let once: Vec<f32> = outputs[0].iter().map(|&q| net.output_quant().dequantise(q)).collect();
                for features in everywhere(&artifact.parts()) {
                    prop_assert!(features.chunks_exact(once.len()).all(|f| f == once), "{features:?}, not {once:?}");
                }
            }
            to_vec(&artifact.parts()).unwrap();
        }
    }
}
