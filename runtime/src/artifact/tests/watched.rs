//! Artifacts with a tripwire: golden bytes, damage, what a tripwire must be.

use super::*;

/// The artifact of [`golden_net`] with a linear head and a tripwire, as `spec/artifact.md` annotates it.
const GOLDEN: &str = "
    93 53 47 4d 0d 0a 03 00 5b 00 00 00 3a 00 00 00
    04 74 69 6e 79 07 63 61 74 0a 64 6f 67 06 67 6f
    6c 64 65 6e 02 02 01 01 01 01 04 02 27 00 00 02
    02 01 02 00 02 02 01 02 02 01 01 00 00 01 01 01
    00 04 01 10 01 03 00 00 00 3f 07 02 00 02 02 01
    01 01 01 01 01 00 01 01 01 02 20 0a 00 01 01 01
    02 30 0a 00 00 c0 3f 0a d7 23 3c 00 00 00 00 00
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
    00 00 00 3e 00 00 00 be 00 00 00 00 00 00 00 00
    00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
    00 00 00 bf 00 00 80 3e 00 00 80 3f 00 00 80 40
    00 00 00 40 00 00 00 c0 00 00 40 bf 00 00 40 3f
    00 00 80 3e 00 00 80 be 5d c3 0d 61
";

const WITNESS: [f32; 10] = [-0.5, 0.25, 1.0, 4.0, 2.0, -2.0, -0.75, 0.75, 0.25, -0.25];

const TRIPWIRE: TripwireParts<'_> = TripwireParts {
    witness: HeadParts { kind: HeadKind::Linear, classes: 2, params: &WITNESS },
    threshold: 1.5,
    false_positive_rate: 0.01,
};

fn golden_watched(net: &OwnedNet) -> ArtifactParts<'_> {
    ArtifactParts { tripwire: Some(TRIPWIRE), ..golden_parts(net) }
}

/// The tripwire as a manifest holds it, the witness's parameters beginning at element `at`, below 128.
fn stored(at: u8) -> Vec<u8> {
    let numbers = [TRIPWIRE.threshold, TRIPWIRE.false_positive_rate].map(f32::to_le_bytes);
    [&[0, 1, 1, 1, 2, at, 10], numbers.as_flattened()].concat()
}

#[test]
fn writing_gives_the_golden_bytes() {
    let net = golden_net();
    let bytes = to_vec(&golden_watched(&net)).unwrap();
    assert_eq!(bytes, &from_hex(GOLDEN)[..], "{}", hex_rows(&bytes));
    assert_eq!(golden_dump(&specification(), "golden-tripwire"), bytes);
}

#[test]
fn a_stem_in_8_bits_gets_the_same_behind_its_head() {
    let net = int8::golden_net();
    let bytes = to_vec(&ArtifactParts { tripwire: Some(TRIPWIRE), ..int8::golden_parts(&net) }).unwrap();
    let plain = from_hex(int8::GOLDEN);
    let at = Layout::read(&plain).unwrap();
    let mut expected = plain[..HEADER_LEN + at.manifest as usize].to_vec();
    expected.extend(stored(32));
    let manifest = (expected.len() - HEADER_LEN) as u32;
    expected.resize(expected.len().next_multiple_of(ALIGN), 0);
    expected.extend(&plain[at.weights_at() as usize..plain.len() - CRC_LEN]);
    expected.extend([0; 4 * (32 - 26)]);
    expected.extend(WITNESS.iter().flat_map(|v| v.to_le_bytes()));
    expected[6] = 4;
    expected[8..12].copy_from_slice(&manifest.to_le_bytes());
    expected[12..16].copy_from_slice(&42u32.to_le_bytes());
    expected.extend([0; CRC_LEN]);
    fix_crc(&mut expected);
    assert_eq!(bytes, expected, "{}", hex_rows(&bytes));
    let bytes = AlignedBytes::from(&bytes[..]);
    let artifact = Artifact::new_checked(&bytes).unwrap();
    assert_eq!(artifact.stem().precision(), "int8");
    assert_eq!(artifact.witness_weights(), Some(&WITNESS[..]));
    assert_eq!(to_vec(&artifact.parts()).unwrap(), &bytes[..]);
}

#[test]
fn the_golden_bytes_read_back() {
    let bytes = from_hex(GOLDEN);
    let artifact = Artifact::new_checked(&bytes).unwrap();
    assert_eq!(declared_len(&bytes[..HEADER_LEN]), Ok(bytes.len() as u64));
    let features = Shape::new(1, 1, 1);
    let head = HeadSpec { kind: HeadKind::Linear, features, classes: 2, span: Span { at: 32, len: 10 } };
    let witness = HeadSpec { span: Span { at: 48, len: 10 }, ..head };
    assert_eq!(artifact.head(), Some(head));
    assert_eq!(artifact.tripwire(), Some(TripwireSpec { witness, threshold: 1.5, false_positive_rate: 0.01 }));
    assert_eq!(artifact.head_weights(), Some(&GOLDEN_HEAD[..]));
    assert_eq!(artifact.witness_weights(), Some(&WITNESS[..]));
    assert_eq!(OwnedNet::from(artifact.stem().f32().unwrap()), golden_net());
    assert_eq!(to_vec(&artifact.parts()).unwrap(), &bytes[..]);
    // Without its tripwire it is the file of version 1.
    assert_eq!(to_vec(&ArtifactParts { tripwire: None, ..artifact.parts() }).unwrap(), &golden()[..]);
}

#[test]
fn every_flipped_bit_and_every_truncation_is_caught() {
    flips_are_caught(from_hex(GOLDEN));
    truncations_are_caught(&from_hex(GOLDEN));
}

#[test]
fn a_resealed_file_is_still_checked() {
    let with = |at: usize, new: &[u8]| resealed(from_hex(GOLDEN), at, new);
    let unfit = Err(Error::TripwireDoesNotFit);
    let layout = Layout::read(&from_hex(GOLDEN)).unwrap();
    let (end, weights) = (HEADER_LEN + layout.manifest as usize, layout.weights_at() as usize);
    let tripwire = end - 15;
    assert_eq!(from_hex(GOLDEN)[tripwire..end], stored(48));
    assert_eq!(with(tripwire, &[1]), unfit, "another kind has other parameters");
    assert_eq!(with(tripwire, &[2]), Err(Error::BadManifest), "a kind that is none");
    assert_eq!(with(tripwire + 3, &[2]), unfit, "other features");
    assert_eq!(with(tripwire + 4, &[3]), unfit, "other classes");
    for at in [0, 16, 32, 47, 64] {
        assert_eq!(with(tripwire + 5, &[at]), unfit, "at {at}");
    }
    assert_eq!(with(tripwire + 6, &[9]), unfit, "a length");
    for bad in [f32::NAN, f32::INFINITY] {
        assert_eq!(with(tripwire + 7, &bad.to_le_bytes()), Err(Error::NotFinite), "a threshold");
        assert_eq!(with(tripwire + 11, &bad.to_le_bytes()), unfit, "a rate");
        assert_eq!(with(weights + 4 * 48, &bad.to_le_bytes()), Err(Error::NotFinite), "a parameter");
    }
    assert_eq!(with(tripwire + 11, &1.5f32.to_le_bytes()), unfit, "a rate");
    assert_eq!(with(weights + 4 * 45, &[1]), unfit, "zeros in front of the witness");
    assert_eq!(with(6, &[1]), Err(Error::BadManifest), "a version that knows none");
    assert_eq!(with(6, &[4]), Err(Error::BadManifest), "the other precision");
    // The head's option byte lies seven bytes and itself in front of the tripwire: without a head its bytes are too many.
    assert_eq!(with(tripwire - 8, &[0]), Err(Error::BadManifest));
}

#[test]
fn a_tripwire_without_a_head_is_refused() {
    let bytes = from_hex(GOLDEN);
    let layout = Layout::read(&bytes).unwrap();
    let tripwire = HEADER_LEN + layout.manifest as usize - 15;
    let mut without = bytes[..tripwire - 8].to_vec();
    without.push(0);
    without.extend(stored(48));
    let manifest = (without.len() - HEADER_LEN) as u32;
    without[8..12].copy_from_slice(&manifest.to_le_bytes());
    without.resize(without.len().next_multiple_of(ALIGN), 0);
    without.extend(&bytes[layout.weights_at() as usize..]);
    fix_crc(&mut without);
    assert_eq!(verdict(&AlignedBytes::from(&without[..])), Err(Error::TripwireDoesNotFit));

    let net = golden_net();
    let alone = ArtifactParts { head: None, ..golden_watched(&net) };
    assert_eq!(encoded_len(&alone), Err(Error::TripwireDoesNotFit));
}

#[test]
fn a_tripwire_must_fit() {
    let net = golden_net();
    let with = |tripwire| {
        let tripwire = Some(tripwire);
        encoded_len(&ArtifactParts { tripwire, ..golden_parts(&net) }).map(|_| ())
    };
    let witness = TRIPWIRE.witness;
    assert_eq!(with(TRIPWIRE), Ok(()));
    for (classes, params) in [(3, &[0.0; 15][..]), (2, &WITNESS[1..]), (0, &WITNESS[..4])] {
        let witness = HeadParts { classes, params, ..witness };
        assert_eq!(with(TripwireParts { witness, ..TRIPWIRE }), Err(Error::TripwireDoesNotFit));
    }
    let nan = HeadParts { params: &[f32::NAN; 10], ..witness };
    assert_eq!(with(TripwireParts { witness: nan, ..TRIPWIRE }), Err(Error::NotFinite));
    for threshold in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(with(TripwireParts { threshold, ..TRIPWIRE }), Err(Error::NotFinite));
    }
    for rate in [-0.1, 1.1, f32::NAN] {
        let bad = TripwireParts { false_positive_rate: rate, ..TRIPWIRE };
        assert_eq!(with(bad), Err(Error::TripwireDoesNotFit));
    }
    for edge in [0.0, 1.0] {
        assert_eq!(with(TripwireParts { false_positive_rate: edge, threshold: f32::MIN, ..TRIPWIRE }), Ok(()));
    }
}
