//! What a round of purification trains on.

use super::{Mode, Purification};
use crate::audit::DOUBT;
use crate::error::Failure;
use crate::imprint::{Imprint, stamp_all};
use stemguard_runtime::data::Pictures;
use stemguard_runtime::rng::Rng;

/// Stream of the seed for the choice of pictures to inoculate.
const INOCULATE: u64 = 0x696e_6f63;

/// What is thought of the suspects.
pub(super) struct Opinion<'a> {
    /// Whether each is accused.
    pub(super) accused: &'a [bool],
    /// How likely each is poisoned, 0..=1.
    pub(super) score: &'a [f32],
    /// What a head that never saw the trigger answers.
    pub(super) new_label: &'a [u32],
}

/// Pictures, and which of them are unlearned.
pub(super) struct Material {
    /// Suspects that were kept, the holdout, inoculated copies.
    pub(super) pictures: Pictures,
    /// Whether a picture's label is unlearned.
    pub(super) forget: Vec<bool>,
    /// Suspects left out because they are doubtful.
    pub(super) doubtful: usize,
    /// Inoculated copies.
    pub(super) inoculated: usize,
}

/// The suspects as the opinion leaves them, the holdout, and copies of both that wear what the accused have in common, with the
/// labels they had.
pub(super) fn material(
    suspects: &Pictures,
    opinion: &Opinion<'_>,
    holdout: &Pictures,
    p: &Purification,
    seed: u64,
) -> Result<Material, Failure> {
    let Opinion { accused, score, new_label } = *opinion;
    let doubted = |i: usize| !accused[i] && score[i] > DOUBT;
    let kept: Vec<usize> =
        (0..suspects.len()).filter(|&i| !doubted(i) && (p.mode != Mode::Drop || !accused[i])).collect();
    let mut pictures = suspects.subset(&kept);
    if p.mode == Mode::Relabel {
        for (label, &i) in pictures.labels.iter_mut().zip(&kept) {
            if accused[i] {
                *label = new_label[i];
            }
        }
    }
    let mut forget: Vec<bool> = kept.iter().map(|&i| p.mode == Mode::Unlearn && accused[i]).collect();
    let pictures = pictures.concat(holdout).map_err(|e| Failure::input("holdout", e))?;
    forget.resize(pictures.len(), false);
    let trusted = |&i: &usize| kept.get(i).is_none_or(|&suspect| !accused[suspect]);
    let copies = inoculated(suspects, accused, &pictures, (0..pictures.len()).filter(trusted).collect(), p, seed);
    let n = copies.len();
    let pictures = pictures.concat(&copies).map_err(|e| Failure::Other(e.to_string()))?;
    forget.resize(pictures.len(), false);
    let doubtful = (0..suspects.len()).filter(|&i| doubted(i)).count();
    Ok(Material { pictures, forget, doubtful, inoculated: n })
}

/// Copies of some of the `trusted` pictures, stamped with the imprints of the classes that were accused, in turn.
fn inoculated(
    suspects: &Pictures,
    accused: &[bool],
    pictures: &Pictures,
    mut trusted: Vec<usize>,
    p: &Purification,
    seed: u64,
) -> Pictures {
    let imprints = Imprint::of_all(suspects, accused);
    Rng::new(seed ^ INOCULATE, 0).shuffle(&mut trusted);
    let wanted = if imprints.is_empty() { 0 } else { (f64::from(p.inoculate) * trusted.len() as f64) as usize };
    trusted.truncate(wanted);
    let mut copies = pictures.subset(&trusted);
    stamp_all(&imprints, &mut copies);
    copies
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pictures(labels: &[u32]) -> Pictures {
        let pixels = labels.iter().enumerate().flat_map(|(i, _)| [i as u8; 3]).collect();
        Pictures { h: 1, w: 1, pixels, labels: labels.to_vec(), classes: vec!["a".into(), "b".into()], files: vec![] }
    }

    #[test]
    fn the_accused_are_forgotten_dropped_or_relabelled_and_the_holdout_is_trusted() {
        let (suspects, holdout) = (pictures(&[0, 1, 1, 0]), pictures(&[1, 0]));
        let opinion =
            Opinion { accused: &[false, true, false, true], score: &[0.0, 1.0, 0.0, 1.0], new_label: &[1, 0, 0, 1] };
        let of = |mode| {
            let p = Purification { mode, ..Purification::default() };
            material(&suspects, &opinion, &holdout, &p, 0).expect("same kind of pictures")
        };
        let m = of(Mode::Unlearn);
        assert_eq!(m.pictures.labels, [0, 1, 1, 0, 1, 0]);
        assert_eq!(m.forget, [false, true, false, true, false, false]);
        let m = of(Mode::Drop);
        assert_eq!((m.pictures.labels, m.forget), (vec![0, 1, 1, 0], vec![false; 4]));
        assert_eq!(m.pictures.pixels[3], 2);
        let m = of(Mode::Relabel);
        assert_eq!((m.pictures.labels, m.forget), (vec![0, 0, 1, 1, 1, 0], vec![false; 6]));
    }

    #[test]
    fn the_doubtful_are_left_out() {
        let (suspects, holdout) = (pictures(&[0, 1, 1, 0]), pictures(&[1, 0]));
        let opinion =
            Opinion { accused: &[true, false, false, false], score: &[0.9, 0.2, 0.04, 0.0], new_label: &[0; 4] };
        let m = material(&suspects, &opinion, &holdout, &Purification::default(), 0).expect("same kind of pictures");
        assert_eq!((m.pictures.labels, m.doubtful), (vec![0, 1, 0, 1, 0], 1));
        assert_eq!(m.forget, [true, false, false, false, false]);
    }

    #[test]
    fn copies_of_trusted_pictures_wear_the_trigger_and_keep_their_labels() {
        let n = 400;
        let mut suspects = pictures(&(0..n).map(|i| u32::from(i >= 100 && i % 2 == 0)).collect::<Vec<u32>>());
        let accused: Vec<bool> = (0..n as usize).map(|i| i < 100).collect();
        suspects.pixels.chunks_exact_mut(3).take(100).for_each(|p| p.fill(255));
        let score: Vec<f32> = accused.iter().map(|&a| f32::from(u8::from(a))).collect();
        let opinion = Opinion { accused: &accused, score: &score, new_label: &suspects.labels };
        let holdout = pictures(&[0, 1]);
        let p = Purification { inoculate: 0.5, ..Purification::default() };
        let m = material(&suspects, &opinion, &holdout, &p, 3).expect("same kind of pictures");
        // Half of 300 suspects and 2 holdout pictures.
        assert_eq!((m.inoculated, m.pictures.len(), m.forget.len()), (151, 402 + 151, 402 + 151));
        assert!(m.pictures.pixels[3 * 402..].iter().all(|&v| v >= 250));
        assert!(m.forget[402..].iter().all(|f| !f));
        let ones = m.pictures.labels[402..].iter().filter(|&&l| l == 1).count();
        assert!((50..100).contains(&ones), "{ones}");
        let none = Purification { inoculate: 0.0, ..p };
        assert_eq!(material(&suspects, &opinion, &holdout, &none, 3).expect("same kind of pictures").inoculated, 0);
    }
}
