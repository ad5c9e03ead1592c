//! How a data set is named on a command line or in a configuration: `KIND[:WHERE][@PART]`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::prelude::v1::*;
use std::str::FromStr;

use super::DataError;

/// The forms a [`Spec`] takes, for messages and help texts.
pub const KINDS: [&str; 6] = ["cifar10:DIR", "cifar100:DIR", "gtsrb:DIR", "folder:DIR", "npz:FILE", "signs[:N]"];

/// Training pictures of `signs` where the specification gives no number.
pub const SIGNS_DEFAULT: usize = 6000;

/// One part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The training pictures.
    Train,
    /// The test pictures.
    Test,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Test => "test",
        })
    }
}

/// Where pictures come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// `cifar10:DIR`, the official binary files: the folder itself, or one holding `cifar-10-batches-bin`.
    Cifar10(PathBuf),
    /// `cifar100:DIR`, the official binary files (fine labels): the folder itself, or one holding `cifar-100-binary`.
    Cifar100(PathBuf),
    /// `gtsrb:DIR`, the official layout: `Final_Training/Images/000xx/*.ppm`, `Final_Test/Images/*.ppm` and
    /// `GT-final_test.csv`. Pictures are used whole: region-of-interest columns are ignored.
    Gtsrb(PathBuf),
    /// `folder:DIR`, class folders of PNG, JPEG or PNM files: `DIR/train/CLASS/*` and `DIR/test/CLASS/*`, or
    /// `DIR/CLASS/*`, which is all training part.
    Folder(PathBuf),
    /// `npz:FILE`, arrays `x_train`, `y_train`, `x_test`, `y_test`, or `x`, `y`, which is all training part.
    Npz(PathBuf),
    /// `signs[:N]`, procedural traffic signs: `N` training pictures (10..=1,000,000) and `N / 5` test pictures.
    Signs(usize),
}

impl Source {
    /// The folder or file it reads.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Cifar10(path) | Self::Cifar100(path) | Self::Gtsrb(path) | Self::Folder(path) | Self::Npz(path) => {
                Some(path)
            }
            Self::Signs(_) => None,
        }
    }
}

/// A data set by name: a source and, after an `@`, the one part wanted.
///
/// ```
/// use stemguard_runtime::data::{Part, Source, Spec};
///
/// let spec: Spec = "signs:500@test".parse()?;
/// assert_eq!(spec, Spec { source: Source::Signs(500), part: Some(Part::Test) });
/// assert_eq!(spec.to_string(), "signs:500@test");
/// # Ok::<(), stemguard_runtime::data::DataError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// Where the pictures come from.
    pub source: Source,
    /// The only part wanted, or both.
    pub part: Option<Part>,
}

impl FromStr for Spec {
    type Err = DataError;

    /// Parses `KIND[:WHERE][@PART]`. No file is touched.
    ///
    /// # Errors
    /// [`DataError::UnknownKind`], [`DataError::BadSpec`].
    fn from_str(text: &str) -> Result<Self, DataError> {
        let bad = |why| DataError::BadSpec { spec: text.to_string(), why };
        let (body, part) = match (text.strip_suffix("@train"), text.strip_suffix("@test")) {
            (Some(body), _) => (body, Some(Part::Train)),
            (_, Some(body)) => (body, Some(Part::Test)),
            _ => (text, None),
        };
        let (kind, place) = body.split_once(':').map_or((body, None), |(kind, place)| (kind, Some(place)));
        let path = |why| place.filter(|p| !p.is_empty()).map(PathBuf::from).ok_or_else(|| bad(why));
        let source = match kind {
            "cifar10" => Source::Cifar10(path("a folder must follow the colon")?),
            "cifar100" => Source::Cifar100(path("a folder must follow the colon")?),
            "gtsrb" => Source::Gtsrb(path("a folder must follow the colon")?),
            "folder" => Source::Folder(path("a folder must follow the colon")?),
            "npz" => Source::Npz(path("a file must follow the colon")?),
            "signs" => {
                if place.is_some_and(|p| p.contains('@')) {
                    return Err(bad("the part behind an @ is train or test"));
                }
                let count = place.map_or(Ok(SIGNS_DEFAULT), str::parse);
                let count = count.ok().filter(|n| (10..=1_000_000).contains(n));
                Source::Signs(count.ok_or_else(|| bad("the number of pictures must be within 10..=1000000"))?)
            }
            _ => return Err(DataError::UnknownKind(kind.to_string())),
        };
        Ok(Self { source, part })
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Cifar10(dir) => write!(f, "cifar10:{}", dir.display())?,
            Source::Cifar100(dir) => write!(f, "cifar100:{}", dir.display())?,
            Source::Gtsrb(dir) => write!(f, "gtsrb:{}", dir.display())?,
            Source::Folder(dir) => write!(f, "folder:{}", dir.display())?,
            Source::Npz(file) => write!(f, "npz:{}", file.display())?,
            Source::Signs(count) => write!(f, "signs:{count}")?,
        }
        self.part.map_or(Ok(()), |part| write!(f, "@{part}"))
    }
}

#[cfg(all(test, feature = "data"))]
mod tests {
    use super::*;

    #[test]
    fn specifications_round_trip() {
        for text in ["cifar10:a", "cifar100:/b@train", "gtsrb:c d", "folder:e:f@test", "npz:g@h.npz", "signs:50@test"] {
            assert_eq!(text.parse::<Spec>().unwrap().to_string(), text);
        }
        assert_eq!("signs@train".parse::<Spec>().unwrap().to_string(), "signs:6000@train");
    }

    #[test]
    fn bad_specifications_say_why() {
        let message = |text: &str| text.parse::<Spec>().unwrap_err().to_string();
        let unknown = message("imagenet:x");
        assert!(unknown.contains("`imagenet`") && unknown.contains("cifar10:DIR") && unknown.contains("signs[:N]"));
        assert!(message("").contains("known kinds"));
        for text in ["signs:9", "signs:x", "signs:-3", "signs:", "signs:99999999999999999999999"] {
            assert!(message(text).contains("10..=1000000"), "{text}");
        }
        assert!(message("signs:300@foo").contains("train or test") && message("signs:@").contains("train or test"));
        for text in ["cifar10", "cifar10:", "gtsrb:@test", "folder:", "npz"] {
            assert!(message(text).contains("must follow the colon"), "{text}");
        }
    }
}
