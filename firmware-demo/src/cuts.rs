//! Power cuts: an update of the head cut short at every word written and every sector erased.

use crate::assets;
use crate::engine::{CLASSES, PARAMS};
use crate::flash::{FLASH_LEN, LAYOUT, Nor, Tear};
use std::vec;
use std::vec::Vec;
use stemguard_runtime::artifact::HeadKind;
use stemguard_runtime::error::Error;
use stemguard_runtime::rng::Rng;
use stemguard_runtime::slots::{Boot, HeadStore, StemId, StoreError};

/// The parameters of head number `n`, any numbers.
fn params(n: u64) -> Vec<f32> {
    let mut rng = Rng::new(n, 0);
    (0..PARAMS).map(|_| rng.normal()).collect()
}

/// Stores head number `n`, boots into its trial and confirms it.
fn update(flash: &mut Nor<'_>, id: StemId, n: u64) -> Result<(), StoreError> {
    let mut store = HeadStore::new_checked(flash, LAYOUT, id)?;
    store.store(HeadKind::Linear, CLASSES as u32, &params(n))?;
    store.boot()?;
    store.confirm_watched(n as f32).map(|_| ())
}

/// Boots: the head that runs, by its number, and whether it is on trial. `None` where it is neither of the two, whole,
/// or a confirmed head is without its threshold.
fn boot(bytes: &mut [u8], id: StemId, known: [u64; 2]) -> Option<(u64, bool)> {
    let mut flash = Nor::new(bytes);
    let mut store = HeadStore::new_checked(&mut flash, LAYOUT, id).ok()?;
    let (head, on_trial) = match store.boot().ok()? {
        Boot::Factory => return None,
        Boot::Confirmed(head) => (head, false),
        Boot::Trial { new, .. } => (new, true),
    };
    let mut held = vec![0.0; PARAMS];
    store.load(&head, &mut held).ok()?;
    let n = known.into_iter().find(|&n| params(n) == held)?;
    (store.threshold(&head) == (!on_trial).then_some(n as f32)).then_some((n, on_trial))
}

/// Cut points survived, and tried: after each the device must run the old head or the new one, whole, must keep running one of
/// them, and must take the next update.
///
/// # Errors
/// Those of the model and of a flash whose power stays on.
pub fn survive() -> Result<(u32, u32), StoreError> {
    let id = StemId::of(assets::unsigned()).map_err(|error: Error| StoreError::from(error))?;
    let mut start = vec![0xff; FLASH_LEN];
    update(&mut Nor::new(&mut start), id, 1)?;
    let mut whole = start.clone();
    let mut flash = Nor::new(&mut whole);
    update(&mut flash, id, 2)?;
    let (mut survived, mut tried) = (0, 0);
    for step in 0..flash.steps() {
        for tear in [Tear::Untouched, Tear::Half, Tear::Whole] {
            tried += 1;
            let mut bytes = start.clone();
            let mut flash = Nor::new(&mut bytes);
            flash.cut_after(step, tear);
            let was_cut = update(&mut flash, id, 2).is_err() && !flash.is_on();
            let first = boot(&mut bytes, id, [1, 2]);
            // A head on trial that nobody confirms is gone at the next boot; any other stays.
            let stays = first.map(|(n, on_trial)| (if on_trial { 1 } else { n }, false));
            let keeps = first.is_some() && boot(&mut bytes, id, [1, 2]) == stays;
            let goes_on = update(&mut Nor::new(&mut bytes), id, 3).is_ok();
            let serves = boot(&mut bytes, id, [3, 3]) == Some((3, false));
            survived += u32::from(was_cut && keeps && goes_on && serves);
        }
    }
    Ok((survived, tried))
}
