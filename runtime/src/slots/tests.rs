//! Records byte by byte, layouts that are refused, wear; power cuts are in [`cuts`].

mod counter;
mod cuts;
pub(crate) mod flash;

use super::*;
use crate::artifact::tests::{golden_dump, hex_rows};
use crate::artifact::{HeadSpec, head_params};
use crate::net::tests::cases;
use crate::rng::Rng;
use flash::Flash;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

/// Words of 4 bytes, sectors of 4 KiB.
type Plain = Flash<1, 4, 4096>;

const CLASSES: u32 = 3;

fn stem() -> StemId {
    StemId { digest: core::array::from_fn(|i| i as u8), features: Shape::new(2, 2, 5) }
}

/// The parameters of head number `n`.
fn params(n: u64) -> Vec<f32> {
    let mut rng = Rng::new(n, 1);
    (0..head_params(HeadKind::Linear, stem().features, CLASSES)).map(|_| rng.normal()).collect()
}

/// Slots side by side from the second sector on, the first being left alone.
fn layout<F: NorFlash>() -> Layout {
    let len = slot_len(params(0).len(), F::WRITE_SIZE, F::ERASE_SIZE) as u32;
    Layout { slots: [F::ERASE_SIZE as u32, F::ERASE_SIZE as u32 + len], len }
}

/// Sectors that [`layout`] takes.
fn sectors<F: NorFlash>() -> usize {
    1 + 2 * layout::<F>().len as usize / F::ERASE_SIZE
}

fn open<F: NorFlash>(flash: F) -> HeadStore<F> {
    HeadStore::new_checked(flash, layout::<F>(), stem()).unwrap()
}

fn load<F: NorFlash>(store: &mut HeadStore<F>, head: StoredHead) -> Vec<f32> {
    let mut to = vec![0.0; head.spec().span.len as usize];
    store.load(&head, &mut to).unwrap();
    to
}

/// Stores head number `n` and boots into its trial.
fn try_out<F: NorFlash>(store: &mut HeadStore<F>, n: u64) -> StoredHead {
    store.store(HeadKind::Linear, CLASSES, &params(n)).unwrap();
    let Ok(Boot::Trial { new, .. }) = store.boot() else { panic!("head {n} is not on trial") };
    assert_eq!(load(store, new), params(n));
    new
}

#[test]
fn a_head_is_tried_then_confirmed_or_rejected() {
    let mut store = open(Plain::new(sectors::<Plain>(), false, 0));
    assert_eq!(store.boot(), Ok(Boot::Factory));
    assert_eq!(store.confirm(), Err(StoreError::NotOnTrial));
    let first = try_out(&mut store, 1);
    assert_eq!(store.begin(HeadKind::Linear, CLASSES).err(), Some(StoreError::OnTrial));
    assert_eq!(store.confirm(), Ok(first));
    assert_eq!((store.confirm(), store.reject()), (Err(StoreError::NotOnTrial), Err(StoreError::NotOnTrial)));
    assert_eq!(store.boot(), Ok(Boot::Confirmed(first)));
    let features = stem().features;
    let span = crate::net::Span { at: 0, len: params(0).len() as u32 };
    assert_eq!(first.spec(), HeadSpec { kind: HeadKind::Linear, features, classes: CLASSES, span });

    // Rejected at once, and rejected by hanging: a boot without an answer.
    let second = try_out(&mut store, 2);
    assert_eq!(store.reject(), Ok(Some(first)));
    assert_eq!(store.slots(), [SlotState::Confirmed(first), SlotState::Rejected(second)]);
    assert_eq!(store.boot(), Ok(Boot::Confirmed(first)));
    let third = try_out(&mut store, 3);
    assert_eq!(store.slots()[1], SlotState::OnTrial(third));
    for _ in 0..3 {
        assert_eq!(store.boot(), Ok(Boot::Confirmed(first)));
    }
    assert_eq!((load(&mut store, first), store.in_use()), (params(1), Some(first)));
    assert_eq!((first.sequence(), second.sequence(), third.sequence()), (1, 2, 3));
}

#[test]
fn a_threshold_lies_beside_its_head_whole_or_not_at_all() {
    let mut store = open(Plain::new(sectors::<Plain>(), false, 0));
    let first = try_out(&mut store, 1);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(store.confirm_watched(bad), Err(Error::NotFinite.into()));
    }
    assert_eq!((store.threshold(&first), store.confirm_watched(-2.5)), (None, Ok(first)));
    assert_eq!(store.confirm_watched(1.0), Err(StoreError::NotOnTrial));
    let second = try_out(&mut store, 2);
    store.confirm().unwrap();
    assert_eq!((store.threshold(&first), store.threshold(&second)), (Some(-2.5), None));
    // A third takes the first one's slot, and nothing of it stays.
    let third = try_out(&mut store, 3);
    assert_eq!((third.slot_at, store.threshold(&third)), (first.slot_at, None));
    store.confirm_watched(f32::MIN).unwrap();
    assert_eq!(store.threshold(&third), Some(f32::MIN));
    // Every bit of it counts.
    let mut flash = store.release();
    let at = 8 * (third.slot_at as usize + 76);
    for bit in at..at + 64 {
        flash.bytes[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(open(flash.clone()).threshold(&third), None);
        flash.bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn a_head_that_awaits_its_trial_is_replaced_by_a_later_one() {
    let mut store = open(Plain::new(sectors::<Plain>(), false, 0));
    store.store(HeadKind::Linear, CLASSES, &params(1)).unwrap();
    let second = store.store(HeadKind::Linear, CLASSES, &params(2)).unwrap();
    assert_eq!(store.slots(), [SlotState::Written(second), SlotState::Empty]);
    assert_eq!(store.boot(), Ok(Boot::Trial { new: second, old: None }));
    assert_eq!(store.reject(), Ok(None));
    assert_eq!(store.boot(), Ok(Boot::Factory));
}

#[test]
fn confirmed_updates_wear_both_slots_alike_and_each_update_erases_one() {
    type Small = Flash<1, 4, 256>;
    let mut store = open(Small::new(sectors::<Small>(), false, 0));
    let per_slot = layout::<Small>().len / 256;
    assert!(per_slot > 1);
    for n in 0..20 {
        let before: u32 = store.flash.0.erasures.iter().sum();
        try_out(&mut store, n);
        store.confirm().unwrap();
        assert_eq!(store.flash.0.erasures.iter().sum::<u32>(), before + per_slot);
    }
    let first = per_slot as usize;
    assert_eq!(store.flash.0.erasures, [&vec![0; 1][..], &vec![10; 2 * first]].concat());
    // A rejected head's slot is the one that is free: it is used again.
    for n in 20..23 {
        try_out(&mut store, n);
        store.reject().unwrap();
    }
    let flash = store.release();
    assert_eq!(flash.erasures, [&vec![0; 1][..], &vec![13; first], &vec![10; first]].concat());
    // Where no head was ever confirmed, rejected ones alternate.
    let mut store = open(Small::new(sectors::<Small>(), false, 0));
    for n in 0..6 {
        try_out(&mut store, n);
        store.reject().unwrap();
    }
    assert_eq!(store.release().erasures[1..], vec![3; 2 * first]);
}

#[test]
fn heads_of_another_stem_are_left_alone_until_their_slot_is_needed() {
    let mut store = open(Plain::new(sectors::<Plain>(), false, 0));
    let confirmed = |store: &mut HeadStore<Plain>, n| {
        try_out(store, n);
        store.confirm().unwrap()
    };
    confirmed(&mut store, 1);
    let second = confirmed(&mut store, 2);
    let other = StemId { digest: [7; 32], ..stem() };
    let mut store = HeadStore::new_checked(store.release(), layout::<Plain>(), other).unwrap();
    assert_eq!((store.slots(), store.boot()), ([SlotState::Foreign; 2], Ok(Boot::Factory)));
    let third = confirmed(&mut store, 3);
    assert_eq!((third.sequence(), store.slots()), (3, [SlotState::Confirmed(third), SlotState::Foreign]));
    // The old stem still finds its head.
    let mut store = open(store.release());
    assert_eq!(store.boot(), Ok(Boot::Confirmed(second)));
    // Same artifact, other features: another stem.
    let wider = StemId { features: Shape::new(2, 2, 6), ..stem() };
    let mut store = HeadStore::new_checked(store.release(), layout::<Plain>(), wider).unwrap();
    assert_eq!(store.boot(), Ok(Boot::Factory));
}

/// An erasure cut short may take back the marks of a head and leave the rest.
#[test]
fn a_head_older_than_the_one_in_use_never_comes_back() {
    let mut store = open(Plain::new(sectors::<Plain>(), false, 0));
    let heads = [1, 2].map(|n| {
        try_out(&mut store, n);
        store.confirm().unwrap()
    });
    let mut flash = store.release();
    flash.bytes[4096 + 64..4096 + 96].fill(0xff);
    let mut store = open(flash);
    assert_eq!(store.slots(), [SlotState::Written(heads[0]), SlotState::Confirmed(heads[1])]);
    for _ in 0..2 {
        assert_eq!(store.boot(), Ok(Boot::Confirmed(heads[1])));
    }
    assert_eq!((store.confirm(), store.reject()), (Err(StoreError::NotOnTrial), Err(StoreError::NotOnTrial)));
}

#[test]
fn layouts_and_heads_that_do_not_fit_are_refused() {
    let good = layout::<Plain>();
    let with = |layout| HeadStore::new_checked(Plain::new(3, false, 0), layout, stem()).err();
    assert_eq!(with(good), None);
    for bad in [
        Layout { slots: [0, 4096], len: 8192 },
        Layout { slots: [4096, 4096], ..good },
        Layout { slots: [4096, 12288], ..good },
        Layout { slots: [4096, 6144], ..good },
        Layout { slots: [0, 4096], len: 2048 },
        Layout { len: 0, ..good },
        Layout { slots: [0, 0xffff_f000], ..good },
    ] {
        assert!(matches!(with(bad), Some(StoreError::BadLayout(_))), "{bad:?}");
    }
    type Tiny = Flash<1, 4, 64>;
    let tiny = Layout { slots: [0, 64], len: 64 };
    let refused = HeadStore::new_checked(Tiny::new(4, false, 0), tiny, stem()).err();
    assert!(matches!(refused, Some(StoreError::BadLayout(_))), "{refused:?}");
    type Wide = Flash<1, 512, 4096>;
    let refused = HeadStore::new_checked(Wide::new(4, false, 0), good, stem()).err();
    assert!(matches!(refused, Some(StoreError::BadLayout(_))), "{refused:?}");

    let mut store = open(Plain::new(3, false, 0));
    let needed = record_len(head_params(HeadKind::Residual, stem().features, 1000), 4);
    let too_small = Some(StoreError::SlotTooSmall { needed, given: 4096 });
    assert_eq!(store.begin(HeadKind::Residual, 1000).err(), too_small);
    assert_eq!(store.begin(HeadKind::Linear, 0).err(), Some(Error::HeadDoesNotFit.into()));
    let all = params(1);
    let mut nan = all.clone();
    nan[3] = f32::NAN;
    assert_eq!(store.store(HeadKind::Linear, CLASSES, &nan), Err(Error::NotFinite.into()));
    let needed = all.len();
    let short = Error::WrongLength { needed, given: needed - 1 };
    assert_eq!(store.store(HeadKind::Linear, CLASSES, &all[1..]), Err(short.into()));
    let long = [&all[..], &[0.0]].concat();
    let error = Error::WrongLength { needed, given: needed + 1 };
    assert_eq!(store.store(HeadKind::Linear, CLASSES, &long), Err(error.into()));
    assert_eq!(store.boot(), Ok(Boot::Factory));
    // In pieces, one of them refused.
    let mut writer = store.begin(HeadKind::Linear, CLASSES).unwrap();
    writer.push(&all[..10]).unwrap();
    assert_eq!(writer.push(&nan[..10]), Err(Error::NotFinite.into()));
    all[10..].chunks(7).for_each(|piece| writer.push(piece).unwrap());
    let head = writer.finish().unwrap();
    assert_eq!(load(&mut store, head), all);
    let error = Error::WrongLength { needed, given: 1 };
    assert_eq!(store.load(&head, &mut [0.0]), Err(error.into()));
}

#[test]
fn a_slot_is_as_long_as_it_must_be() {
    let of = |params, write, erase| slot_len(params, write, erase);
    assert_eq!([of(1, 4, 4096), of(999, 4, 4096), of(1000, 4, 4096)], [4096, 4096, 8192]);
    assert_eq!([of(74_890, 8, 4096), of(10, 32, 64), of(10, 1, 1)], [74 * 4096, 256, 124]);
    assert_eq!(of(usize::MAX, 4, 4096), usize::MAX);
}

/// Every byte but those between the marks and the parameters counts.
#[test]
fn every_flipped_bit_of_a_record_is_caught() {
    let mut store = open(Plain::new(3, false, 0));
    let head = try_out(&mut store, 1);
    store.confirm().unwrap();
    let (at, end) = (4096, 4096 + record_len(params(0).len(), 4));
    let mut flash = store.release();
    for bit in 8 * at..8 * end {
        let byte = bit / 8 - at;
        if (64..96).contains(&byte) {
            continue;
        }
        flash.bytes[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(open(flash.clone()).slots()[0], SlotState::Empty, "bit {bit}");
        flash.bytes[bit / 8] ^= 1 << (bit % 8);
    }
    let mut store = open(flash);
    assert_eq!(store.boot(), Ok(Boot::Confirmed(head)));
    // A checksum does not make nonsense whole.
    let mut values = params(1);
    values[0] = f32::INFINITY;
    let mut crc = crate::artifact::CRC.digest();
    crc.update(&head.header.encode());
    let values: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    crc.update(&values);
    let mut flash = store.release();
    flash.bytes[at + 96..end].copy_from_slice(&[&values[..], &crc.finalize().to_le_bytes()].concat());
    assert_eq!(open(flash).boot(), Ok(Boot::Factory));
}

/// A head of any kind and size, in pieces of any length.
fn comes_back<F: NorFlash>(flash: F, kind: HeadKind, features: Shape, classes: u32, values: &[f32], piece: usize) {
    let stem = StemId { digest: [9; 32], features };
    let len = slot_len(values.len(), F::WRITE_SIZE, F::ERASE_SIZE) as u32;
    let layout = Layout { slots: [len, 0], len };
    let mut store = HeadStore::new_checked(flash, layout, stem).unwrap();
    let mut writer = store.begin(kind, classes).unwrap();
    values.chunks(piece).for_each(|piece| writer.push(piece).unwrap());
    let head = writer.finish().unwrap();
    assert_eq!(store.boot(), Ok(Boot::Trial { new: head, old: None }));
    assert_eq!((load(&mut store, head), head.spec().classes, head.params_at() % 16), (values.to_vec(), classes, 0));
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn whatever_is_stored_comes_back(
        seed: u64,
        residual: bool,
        (h, w, c) in (1u32..5, 1u32..5, 1u32..6),
        classes in 1u32..30,
        piece in 1usize..300,
    ) {
        let (kind, features) = ([HeadKind::Linear, HeadKind::Residual][usize::from(residual)], Shape::new(h, w, c));
        let mut rng = Rng::new(seed, 0);
        // Any finite bits.
        let finite = |bits: u32| f32::from_bits(if bits & 0x7f80_0000 == 0x7f80_0000 { bits ^ 0x4000_0000 } else { bits });
        let values: Vec<f32> = (0..head_params(kind, features, classes)).map(|_| finite(rng.bits())).collect();
        comes_back(Flash::<1, 1, 256>::new(40, false, 0), kind, features, classes, &values, piece);
        comes_back(Flash::<4, 8, 4096>::new(4, true, 0), kind, features, classes, &values, piece);
        comes_back(Flash::<1, 256, 512>::new(24, true, 0), kind, features, classes, &values, piece);
    }

    /// A header that lies under a good checksum gives a head that can be loaded, or none.
    #[test]
    fn a_lying_header_is_refused_or_loads(
        changes in prop::collection::vec((0usize..64, any::<u8>()), 1..6),
        marks in prop::collection::vec(prop::sample::select(vec![0x00u8, 0xff, 0x5a]), 12),
    ) {
        let mut store = open(Plain::new(3, false, 0));
        try_out(&mut store, 1);
        let mut flash = store.release();
        let slot = &mut flash.bytes[4096..8192];
        changes.iter().for_each(|&(at, byte)| slot[at] = byte);
        slot[64..76].copy_from_slice(&marks);
        let count = u32::from_le_bytes([slot[28], slot[29], slot[30], slot[31]]) as usize;
        let end = 96usize.saturating_add(count.saturating_mul(4));
        if end + 4 <= slot.len() {
            let mut crc = crate::artifact::CRC.digest();
            crc.update(&slot[..64]);
            crc.update(&slot[96..end]);
            let crc = crc.finalize();
            slot[end..end + 4].copy_from_slice(&crc.to_le_bytes());
        }
        let mut store = open(flash);
        match store.boot().unwrap() {
            Boot::Factory => {}
            Boot::Confirmed(head) | Boot::Trial { new: head, .. } => {
                prop_assert_eq!(head.spec().features, stem().features);
                prop_assert!(load(&mut store, head).iter().all(|v| v.is_finite()));
            }
        }
    }
}

/// The dump of `spec/flash.md`: an offset, the bytes, two spaces, words.
#[test]
fn the_specification_shows_the_bytes_of_a_record() {
    let stem = StemId { digest: core::array::from_fn(|i| i as u8), features: Shape::new(1, 1, 1) };
    let layout = Layout { slots: [0, 4096], len: 4096 };
    let mut store = HeadStore::new_checked(Plain::new(2, false, 0), layout, stem).unwrap();
    store.store(HeadKind::Linear, 1, &[0.5, -0.5, 1.0, 0.25, 2.0, 4.0, 8.0]).unwrap();
    store.boot().unwrap();
    store.confirm_watched(1.5).unwrap();
    let bytes = &store.flash.0.bytes[..record_len(7, 4)];
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../spec/flash.md")).unwrap();
    assert_eq!(golden_dump(&text, "golden"), bytes, "{}", hex_rows(bytes));
}
