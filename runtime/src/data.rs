//! Reads data sets into memory: pictures as RGB bytes, labels as class numbers.
//!
//! ```text
//! "cifar10:DIR" -> Spec -> load -> DataSet { train, test }
//!                            \---> load_part -> Pictures -> write_npz
//! ```
//!
//! The readers agree on the order of pictures from run to run, check every length and label at the door, and refuse what
//! does not fit with a [`DataError`] that names the file and the place.
//!
//! CIFAR, and folders and GTSRB of PPM files that have the size wanted, need no other crate. The feature `data` adds PNG, JPEG,
//! resizing, npz and signs; without it, what needs them is refused by name.

use core::convert::Infallible;
use std::path::Path;
use std::prelude::v1::*;

use crate::error::Error;
use crate::session::to_f32;
use crate::shape::Shape;

mod cifar;
mod decode;
mod error;
mod folder;
mod gtsrb;
mod npy;
#[cfg(feature = "data")]
mod npz;
#[cfg(feature = "data")]
mod rng;
#[cfg(feature = "data")]
mod signs;
mod spec;
mod spread;

pub use decode::read_picture;
pub use error::DataError;
pub use npy::{Numbers, read_npy, read_npy_f32};
#[cfg(feature = "data")]
pub use npz::{write_npz, write_npz_split};
#[cfg(feature = "data")]
pub use signs::CLASSES as SIGN_CLASSES;
pub use spec::{KINDS, Part, SIGNS_DEFAULT, Source, Spec};
use spread::fill;
pub use spread::set_threads;

/// The longest picture side any reader accepts, in pixels.
pub const MAX_SIDE: usize = 4096;
/// The most bytes the pixels of one part may take: 8 GiB.
pub const MAX_BYTES: u64 = 8 << 30;
/// The most classes any reader accepts.
pub const MAX_CLASSES: usize = 1 << 16;
/// Height and width given to pictures that come in no size of their own.
const DEFAULT_SIZE: (usize, usize) = (32, 32);

/// Labelled pictures of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pictures {
    /// Rows of a picture.
    pub h: usize,
    /// Columns of a picture.
    pub w: usize,
    /// `[n][h][w][3]`, RGB, 0..=255.
    pub pixels: Vec<u8>,
    /// `[n]`, each below `classes.len()`.
    pub labels: Vec<u32>,
    /// The name of each class.
    pub classes: Vec<String>,
    /// Empty, or one name a picture.
    pub files: Vec<String>,
}

impl Pictures {
    /// The number of pictures.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no picture.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The shape of one picture, three channels.
    pub fn shape(&self) -> Shape {
        Shape::new(self.h as u32, self.w as u32, 3)
    }

    /// Bytes of one picture.
    fn step(&self) -> usize {
        self.h * self.w * 3
    }

    /// Picture `i`, `[h][w][3]`. Like a slice, it is for `i` below [`Pictures::len`] only.
    pub fn picture(&self, i: usize) -> &[u8] {
        &self.pixels[i * self.step()..(i + 1) * self.step()]
    }

    /// Picture `i`, `[h][w][3]`, to write to. Like a slice, it is for `i` below [`Pictures::len`] only.
    pub fn picture_mut(&mut self, i: usize) -> &mut [u8] {
        let step = self.step();
        &mut self.pixels[i * step..(i + 1) * step]
    }

    /// Hands each picture (`[h][w][3]`, with its number) to `one`, on all threads.
    pub fn for_each_mut(&mut self, one: impl Fn(usize, &mut [u8]) + Sync) {
        let step = self.step();
        let Ok(()) = fill(&mut self.pixels, step, |i, picture| {
            one(i, picture);
            Ok::<_, Infallible>(())
        });
    }

    /// The pictures at `indices`, in that order; each index is below [`Pictures::len`].
    pub fn subset(&self, indices: &[usize]) -> Self {
        let mut pixels = Vec::with_capacity(indices.len() * self.step());
        for &i in indices {
            pixels.extend_from_slice(self.picture(i));
        }
        let files = if self.files.is_empty() { &[][..] } else { indices };
        Self {
            h: self.h,
            w: self.w,
            pixels,
            labels: indices.iter().map(|&i| self.labels[i]).collect(),
            classes: self.classes.clone(),
            files: files.iter().map(|&i| self.files[i].clone()).collect(),
        }
    }

    /// These pictures, then those of `other`. File names are kept where both sides have them.
    ///
    /// # Errors
    /// [`DataError::Mismatch`] where picture sizes or class names differ.
    pub fn concat(mut self, other: &Self) -> Result<Self, DataError> {
        if (self.h, self.w) != (other.h, other.w) {
            return Err(DataError::Mismatch("picture sizes differ"));
        }
        if self.classes != other.classes {
            return Err(DataError::Mismatch("class names differ"));
        }
        let named = |p: &Self| p.files.len() == p.len();
        if named(&self) && named(other) {
            self.files.extend_from_slice(&other.files);
        } else {
            self.files.clear();
        }
        self.pixels.extend_from_slice(&other.pixels);
        self.labels.extend_from_slice(&other.labels);
        Ok(self)
    }

    /// Whether the classes have no names but their numbers.
    pub fn numbered(&self) -> bool {
        self.classes.iter().enumerate().all(|(i, name)| *name == i.to_string())
    }

    /// Numbers the labels as `names` does: by name, where every class with pictures is among `names` (numbers count without leading
    /// zeros), so that the set may have some of the classes alone, or another order. Where one side has no names, by place, and all
    /// stays as it is. Returns whether names decided. `whose` tells in messages whose names they are.
    ///
    /// # Errors
    /// A sentence on the class that is not among `names` or there twice, or that none is.
    pub fn number_as(&mut self, names: &[&str], whose: &str) -> Result<bool, String> {
        if names.is_empty() || self.classes.iter().map(String::as_str).eq(names.iter().copied()) {
            return Ok(!names.is_empty());
        }
        let mut used = vec![false; self.classes.len()];
        self.labels.iter().for_each(|&label| used.get_mut(label as usize).into_iter().for_each(|u| *u = true));
        let own: Vec<&str> = self.classes.iter().map(|class| bare(class)).collect();
        let others: Vec<&str> = names.iter().map(|name| bare(name)).collect();
        let all = |i: &usize| used.get(*i).copied().unwrap_or(false);
        let foreign = (0..own.len()).filter(all).find(|&i| !others.contains(&own[i]));
        if let Some(i) = foreign {
            let shared = own.iter().any(|class| others.contains(class));
            return match self.numbered() {
                true if self.classes.len() <= names.len() => Ok(false),
                true => Err(format!("{} classes are more than the {} of {whose}", own.len(), names.len())),
                false if shared => Err(format!("class `{}` is not among those of {whose}", self.classes[i])),
                false => Err(format!("none of its classes is among those of {whose}")),
            };
        }
        let twice = |list: &[&str], class: &str| list.iter().filter(|other| **other == class).count() > 1;
        if let Some(i) = (0..own.len()).filter(all).find(|&i| twice(&own, own[i]) || twice(&others, own[i])) {
            return Err(format!("the class name `{}` is there twice", self.classes[i]));
        }
        let place = |class: &&str| others.iter().position(|name| name == class).unwrap_or(0) as u32;
        let places: Vec<u32> = own.iter().map(place).collect();
        self.labels.iter_mut().for_each(|label| *label = places.get(*label as usize).copied().unwrap_or(*label));
        self.classes = names.iter().map(ToString::to_string).collect();
        Ok(true)
    }

    /// Writes the pictures at `indices` to `out`, `[indices.len()][h][w][3]`, as 0..=1; each index is below
    /// [`Pictures::len`].
    ///
    /// # Errors
    /// [`Error::WrongLength`] where `out` does not hold exactly these pictures; nothing is written then.
    pub fn to_f32(&self, indices: &[usize], out: &mut [f32]) -> Result<(), Error> {
        let needed = indices.len() * self.step();
        if out.len() != needed {
            return Err(Error::WrongLength { needed, given: out.len() });
        }
        for (&i, picture) in indices.iter().zip(out.chunks_exact_mut(self.step().max(1))) {
            to_f32(self.picture(i), picture);
        }
        Ok(())
    }

    /// The same pictures at another size, by triangle filter.
    fn resized(mut self, path: &Path, size: Option<(usize, usize)>) -> Result<Self, DataError> {
        let (h, w) = size.unwrap_or((self.h, self.w));
        if (h, w) == (self.h, self.w) {
            return Ok(self);
        }
        let mut pixels = allocate(path, self.len(), h, w)?;
        fill(&mut pixels, h * w * 3, |i, out| decode::resize(path, self.picture(i), (self.h, self.w), (h, w), out))?;
        (self.h, self.w, self.pixels) = (h, w, pixels);
        Ok(self)
    }
}

/// A class name as names are compared: of a number, without leading zeros.
fn bare(name: &str) -> &str {
    let number = !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit());
    match name.trim_start_matches('0') {
        "" if number => "0",
        short if number => short,
        _ => name,
    }
}

/// The two parts of a data set. Either may be empty where the source has only the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataSet {
    /// The training pictures.
    pub train: Pictures,
    /// The test pictures; the same size and classes.
    pub test: Pictures,
}

/// How to load a data set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Height and width wanted, each within `1..=4096`. `None`: the size the source has, or 32x32 where its pictures
    /// come in no size of their own (folders, GTSRB, signs).
    pub size: Option<(usize, usize)>,
    /// The seed of `signs`; the other sources draw nothing.
    pub seed: u64,
}

/// Loads both parts of a data set, or the one its `@` names and nothing for the other.
///
/// # Errors
/// Any [`DataError`]; at least one part has a picture otherwise.
///
/// ```
/// use stemguard_runtime::data::{LoadOptions, load};
///
/// let set = load(&"signs:50".parse()?, &LoadOptions::default())?;
/// assert_eq!((set.train.len(), set.test.len()), (50, 10));
/// assert_eq!(set.train.picture(0).len(), 32 * 32 * 3);
/// # Ok::<(), stemguard_runtime::data::DataError>(())
/// ```
pub fn load(spec: &Spec, options: &LoadOptions) -> Result<DataSet, DataError> {
    let mut set = DataSet::default();
    match spec.part {
        Some(Part::Train) => set.train = load_part(spec, options, Part::Train)?,
        Some(Part::Test) => set.test = load_part(spec, options, Part::Test)?,
        None => {
            set.train = read(&spec.source, Part::Train, options)?;
            set.test = read(&spec.source, Part::Test, options)?;
            if set.train.is_empty() && set.test.is_empty() {
                return Err(DataError::Empty { path: place(&spec.source) });
            }
            let ((h, w), own) = ((set.train.h, set.train.w), (set.test.h, set.test.w));
            if !set.train.is_empty() && !set.test.is_empty() && (h, w) != own {
                // Only an archive of arrays has sizes of its own in either part.
                let why = format!("pictures of {}x{} where x_train has {h}x{w}", own.0, own.1);
                return Err(DataError::Array { path: place(&spec.source), array: "x_test".into(), why });
            }
        }
    }
    Ok(set)
}

/// Loads one part: the one the specification's `@` names; else `prefer`, or the other one where that is empty.
///
/// # Errors
/// Any [`DataError`]; the part has a picture otherwise.
pub fn load_part(spec: &Spec, options: &LoadOptions, prefer: Part) -> Result<Pictures, DataError> {
    let first = read(&spec.source, spec.part.unwrap_or(prefer), options)?;
    if !first.is_empty() {
        return Ok(first);
    }
    if let Some(part) = spec.part {
        return Err(DataError::NoPart { spec: spec.to_string(), part });
    }
    let other = if prefer == Part::Train { Part::Test } else { Part::Train };
    let second = read(&spec.source, other, options)?;
    if second.is_empty() { Err(DataError::Empty { path: place(&spec.source) }) } else { Ok(second) }
}

/// Reads one part; it is empty where the source has none.
fn read(source: &Source, part: Part, options: &LoadOptions) -> Result<Pictures, DataError> {
    if let Some((h, w)) = options.size
        && !([h, w].iter().all(|side| (1..=MAX_SIDE).contains(side)))
    {
        return Err(DataError::Size { h, w });
    }
    let size = options.size.unwrap_or(DEFAULT_SIZE);
    let pictures = match source {
        Source::Cifar10(dir) => cifar::read(dir, &cifar::CIFAR10, part)?.resized(dir, options.size),
        Source::Cifar100(dir) => cifar::read(dir, &cifar::CIFAR100, part)?.resized(dir, options.size),
        Source::Gtsrb(dir) => gtsrb::read(dir, part, size),
        Source::Folder(dir) => folder::read(dir, part, size),
        #[cfg(feature = "data")]
        Source::Npz(file) => npz::read(file, part)?.resized(file, options.size),
        #[cfg(feature = "data")]
        Source::Signs(count) => signs::read(*count, part, size, options.seed),
        #[cfg(not(feature = "data"))]
        Source::Npz(_) | Source::Signs(_) => {
            Err(DataError::Lacks { path: place(source), what: "this kind of data set" })
        }
    }?;
    match pictures.classes.iter().find(|name| name.contains(char::is_control)) {
        Some(name) => Err(DataError::ClassName { path: place(source), name: name.clone() }),
        None => Ok(pictures),
    }
}

/// The path an error about the whole source names.
fn place(source: &Source) -> std::path::PathBuf {
    match source {
        Source::Cifar10(path)
        | Source::Cifar100(path)
        | Source::Gtsrb(path)
        | Source::Folder(path)
        | Source::Npz(path) => path.clone(),
        Source::Signs(_) => "signs".into(),
    }
}

/// The bytes of `n` pictures, refused beyond [`MAX_BYTES`]. `path` is for the message.
fn checked_bytes(path: &Path, n: usize, h: usize, w: usize) -> Result<usize, DataError> {
    let bytes = (n as u64).saturating_mul(h as u64).saturating_mul(w as u64).saturating_mul(3);
    let len = usize::try_from(bytes).ok().filter(|_| bytes <= MAX_BYTES);
    len.ok_or_else(|| DataError::TooLarge { path: path.to_path_buf(), bytes })
}

/// Zeroed room for `n` pictures, refused beyond [`MAX_BYTES`] or what the machine has. `path` is for the message.
fn allocate(path: &Path, n: usize, h: usize, w: usize) -> Result<Vec<u8>, DataError> {
    let len = checked_bytes(path, n, h, w)?;
    let mut pixels = Vec::new();
    let too_large = |_| DataError::TooLarge { path: path.to_path_buf(), bytes: len as u64 };
    pixels.try_reserve_exact(len).map_err(too_large)?;
    pixels.resize(len, 0);
    Ok(pixels)
}

#[cfg(all(test, feature = "data"))]
mod tests {
    use super::*;

    /// `n` 2x2 pictures, picture `i` all `i`, label `i % 2`.
    fn tiny(n: usize) -> Pictures {
        Pictures {
            h: 2,
            w: 2,
            pixels: (0..n * 12).map(|k| (k / 12) as u8).collect(),
            labels: (0..n as u32).map(|i| i % 2).collect(),
            classes: vec!["even".into(), "odd".into()],
            files: (0..n).map(|i| format!("{i}.png")).collect(),
        }
    }

    #[test]
    fn pictures_are_picked_joined_and_converted() {
        let all = tiny(5);
        assert_eq!((all.len(), all.shape().len(), all.is_empty()), (5, 12, false));
        let some = all.subset(&[4, 1]);
        assert_eq!((some.picture(0)[0], some.labels[1], some.files[0].as_str()), (4, 1, "4.png"));
        let both = some.clone().concat(&all).unwrap();
        assert_eq!((both.len(), both.files.len(), both.picture(2)[11]), (7, 7, 0));
        let unnamed = Pictures { files: Vec::new(), ..all.clone() };
        assert!(both.clone().concat(&unnamed).unwrap().files.is_empty());
        assert!(both.clone().concat(&Pictures { h: 1, w: 4, ..tiny(1) }).is_err());
        assert!(both.clone().concat(&Pictures { classes: Vec::new(), ..tiny(1) }).is_err());
        let mut out = vec![9.0; 24];
        all.to_f32(&[3, 0], &mut out).unwrap();
        assert_eq!((out[0], out[23]), (3.0 / 255.0, 0.0));
        assert_eq!(all.to_f32(&[3], &mut out), Err(Error::WrongLength { needed: 12, given: 24 }));
        let mut changed = all;
        changed.picture_mut(1).fill(200);
        assert_eq!((changed.pixels[11], changed.pixels[12]), (0, 200));
        changed.for_each_mut(|i, picture| picture.fill(10 * i as u8));
        assert!(changed.pixels.iter().enumerate().all(|(at, &v)| usize::from(v) == at / 12 * 10));
    }

    #[test]
    fn classes_are_numbered_by_their_names() {
        // Three pictures, labels 0, 1, 0.
        let number = |classes: &[&str], names: &[&str]| {
            let mut set = Pictures { classes: classes.iter().map(ToString::to_string).collect(), ..tiny(3) };
            set.number_as(names, "it").map(|by_name| (by_name, set.labels))
        };
        let refused = |classes: &[&str], names: &[&str]| number(classes, names).unwrap_err();
        let (by_name, by_place) = (|a, b| Ok((true, vec![a, b, a])), Ok((false, vec![0, 1, 0])));
        let names = ["cat", "odd", "even"];
        assert_eq!(number(&["even", "odd"], &names), by_name(2, 1));
        assert_eq!(refused(&["odd", "dog"], &names), "class `dog` is not among those of it");
        assert_eq!(refused(&["dog", "fox"], &names), "none of its classes is among those of it");
        // A class without pictures is nobody's.
        assert_eq!(number(&["odd", "cat", "dog"], &names), by_name(1, 0));
        // Numbers are names where the other side has them, in whatever order and width.
        assert_eq!(number(&["0", "1"], &["1", "0"]), by_name(1, 0));
        assert_eq!(number(&["0", "1", "2"], &["0", "1", "10", "2"]), by_name(0, 1));
        assert_eq!(number(&["00002", "00000"], &["0", "1", "2"]), by_name(2, 0));
        assert_eq!(number(&["0", "1"], &names), by_place);
        assert_eq!(number(&["even", "odd"], &[]), by_place);
        assert_eq!(refused(&["0", "1", "2"], &["cat", "odd"]), "3 classes are more than the 2 of it");
        assert_eq!(refused(&["even", "odd"], &["0", "1"]), "none of its classes is among those of it");
        assert_eq!(number(&["crane", "crane"], &["crane", "crane"]), by_name(0, 1));
        assert_eq!(refused(&["crane", "fox"], &["fox", "crane", "crane"]), "the class name `crane` is there twice");
        assert_eq!(refused(&["crane", "crane"], &["fox", "crane"]), "the class name `crane` is there twice");
    }

    #[test]
    fn resizing_keeps_flat_pictures_flat() {
        let large = tiny(3).resized(Path::new("x"), Some((5, 3))).unwrap();
        assert_eq!((large.h, large.w, large.pixels.len()), (5, 3, 3 * 45));
        assert!(large.picture(2).iter().all(|&v| v == 2));
    }

    #[test]
    fn sizes_and_memory_are_bounded() {
        let spec: Spec = "signs:10".parse().unwrap();
        for size in [(0, 32), (32, 4097)] {
            let error = load(&spec, &LoadOptions { size: Some(size), seed: 0 }).unwrap_err();
            assert!(matches!(error, DataError::Size { .. }), "{error}");
        }
        let spec: Spec = "signs:1000000".parse().unwrap();
        let error = load(&spec, &LoadOptions { size: Some((4096, 4096)), seed: 0 }).unwrap_err();
        assert!(error.to_string().contains("8 GiB"), "{error}");
    }

    #[test]
    fn parts_are_chosen() {
        let options = LoadOptions { size: Some((8, 12)), seed: 3 };
        let set = load(&"signs:20".parse().unwrap(), &options).unwrap();
        assert_eq!((set.train.len(), set.test.len(), set.test.h, set.test.w), (20, 4, 8, 12));
        let test_only = load(&"signs:20@test".parse().unwrap(), &options).unwrap();
        assert_eq!((test_only.train.len(), &test_only.test), (0, &set.test));
        let pick = |text: &str, prefer| load_part(&text.parse().unwrap(), &options, prefer).unwrap();
        assert_eq!(pick("signs:20", Part::Test), set.test);
        assert_eq!(pick("signs:20@train", Part::Test), set.train);
    }
}
