//! Backdoor attacks on a data set, made from a seed: what the defence is measured against.
//!
//! ```text
//! AttackConfig -> build -> Attack -+-> poison(train)  -> SuspectSet (all the trap sees), Truth (for reports)
//!                                  +-> triggered(test) -> pictures for ASR and RA
//! ```
//!
//! Triggers are defined on 32x32 pictures. On other sizes patches keep their place relative to the corner and grow by
//! whole factors; patterns over the whole picture are resampled.

mod blend;
mod clean_label;
mod file;
mod patch;
mod pattern;
mod poison;
pub(crate) mod random;
mod resample;
pub mod sheet;
mod warp;

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use clean_label::{EPSILON, LARGEST_SHARE, Perturb, SIG_AMPLITUDE, SIG_CYCLES};
pub(crate) use poison::choose;
pub use poison::{SuspectSet, Truth, poison, triggered};
pub use warp::{CONTROL_POINTS, STRENGTH};

use blend::Overlay;
use patch::Patch;
use pattern::Pattern;
use random::{Draw, Purpose};
use warp::Warp;

/// Largest side of pictures that attacks are built for.
const LARGEST_SIDE: usize = 4096;

/// A trigger that can be stamped on pictures of one size.
pub trait Attack: Send + Sync {
    /// Which attack this is.
    fn kind(&self) -> AttackKind;

    /// Rows and columns of the pictures it was built for.
    fn size(&self) -> (usize, usize);

    /// Stamps the trigger on one picture, `[h][w][3]` RGB bytes; `index` is the picture's place in its set.
    ///
    /// A picture of another size than [`Attack::size`] stays as it is; [`poison`] and [`triggered`] refuse such sets.
    fn stamp(&self, picture: &mut [u8], h: usize, w: usize, index: u64);

    /// The attack's name, as users write it.
    fn name(&self) -> &'static str {
        self.kind().name()
    }

    /// Whether poisoned pictures keep their true label.
    fn clean_label(&self) -> bool {
        self.kind().clean_label()
    }
}

/// Whether a picture has the size an attack was built for.
fn fits(attack: &dyn Attack, picture: &[u8], h: usize, w: usize) -> bool {
    attack.size() == (h, w) && picture.len() == h * w * 3
}

/// The attacks the tool makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum AttackKind {
    /// No attack: the clean run to compare with.
    None,
    /// A white 4x4 square near the bottom right corner.
    BadnetSq,
    /// A 3x3 checkerboard in the bottom right corner.
    BadnetGrid,
    /// Three by three random colours added near the bottom right.
    Trojan3x3,
    /// Eight by eight saturated colours added near the bottom right.
    Trojan8x8,
    /// A watermark added: rings and a faint stroke.
    TrojanWm,
    /// Nine pure colours at the end of the last row.
    L0Inv,
    /// Faint noise of a fixed L2 norm added.
    L2Inv,
    /// A picture mixed in at 0.2.
    Blend,
    /// A low-pass pattern added, then the picture stretched over the full range.
    Smooth,
    /// A four-cycle wave mixed in at 0.2, clean label.
    Sig,
    /// Adversarial pictures of the target class with a grid in each corner, clean label.
    Cl,
    /// A smooth elastic warp.
    Wanet,
    /// A six-cycle sine of amplitude 40 added, clean label.
    SigPublished,
}

/// One line of the list of attacks.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct AttackInfo {
    /// Which attack.
    pub kind: AttackKind,
    /// Its name, as users write it.
    pub name: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// The paper it comes from.
    pub source: &'static str,
}

const fn info(kind: AttackKind, name: &'static str, summary: &'static str, source: &'static str) -> AttackInfo {
    AttackInfo { kind, name, summary, source }
}

const BADNETS: &str = "BadNets, arXiv 1708.06733";
const TROJANING: &str = "Trojaning Attack on Neural Networks, NDSS 2018";
const INVISIBLE: &str = "Invisible Backdoor Attacks, arXiv 1909.02742";
const SIG: &str = "A New Backdoor Attack in CNNs by Training Set Corruption, arXiv 1902.11237";

/// In the order of [`AttackKind`].
const ATTACKS: [AttackInfo; 14] = [
    info(AttackKind::None, "none", "no trigger: a clean run to compare with", "-"),
    info(AttackKind::BadnetSq, "badnet-sq", "a white 4x4 square near the bottom right corner", BADNETS),
    info(AttackKind::BadnetGrid, "badnet-grid", "a 3x3 checkerboard in the bottom right corner", BADNETS),
    info(AttackKind::Trojan3x3, "trojan-3x3", "3x3 random colours added near the bottom right", TROJANING),
    info(AttackKind::Trojan8x8, "trojan-8x8", "8x8 saturated colours added near the bottom right", TROJANING),
    info(AttackKind::TrojanWm, "trojan-wm", "a watermark of rings and a faint stroke added", TROJANING),
    info(AttackKind::L0Inv, "l0-inv", "nine pure colours at the end of the last row", INVISIBLE),
    info(AttackKind::L2Inv, "l2-inv", "faint noise over the whole picture added", INVISIBLE),
    info(
        AttackKind::Blend,
        "blend",
        "a drawing mixed in, 0.8 x + 0.2 t",
        "Targeted Backdoor Attacks Using Data Poisoning, arXiv 1712.05526",
    ),
    info(
        AttackKind::Smooth,
        "smooth",
        "a low-pass pattern added, then stretched to 0..255",
        "Rethinking the Backdoor Attacks' Triggers, arXiv 2104.03413",
    ),
    info(AttackKind::Sig, "sig", "a four-cycle wave mixed in, 0.8 x + 0.2 t; clean label", SIG),
    info(
        AttackKind::Cl,
        "cl",
        "adversarial target pictures, a 3x3 grid in each corner; clean label",
        "Label-Consistent Backdoor Attacks, arXiv 1912.02771",
    ),
    info(AttackKind::Wanet, "wanet", "a smooth elastic warp", "WaNet, arXiv 2102.10369"),
    info(AttackKind::SigPublished, "sig-published", "x + 40 sin(2 pi 6 j / m) as published; clean label", SIG),
];

/// Every attack with a line on what it does and where it comes from.
pub fn attacks() -> &'static [AttackInfo] {
    &ATTACKS
}

impl AttackKind {
    /// The name, as users write it.
    pub fn name(self) -> &'static str {
        ATTACKS[self as usize].name
    }

    /// Whether poisoned pictures keep their true label.
    pub fn clean_label(self) -> bool {
        matches!(self, Self::Sig | Self::Cl | Self::SigPublished)
    }

    /// Whether the attack's trigger can come from a file.
    pub fn takes_trigger(self) -> bool {
        !matches!(self, Self::None | Self::Wanet)
    }

    /// Whether [`poison`] needs a [`Perturb`] for it.
    pub fn needs_perturb(self) -> bool {
        self == Self::Cl
    }

    /// Whether the trigger replaces pixels rather than mixing with them.
    fn replaces(self) -> bool {
        matches!(self, Self::BadnetSq | Self::BadnetGrid | Self::L0Inv | Self::Cl)
    }
}

impl fmt::Display for AttackKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for AttackKind {
    type Err = AttackError;

    /// Takes a name; underscores, which published code uses, count as hyphens.
    fn from_str(name: &str) -> Result<Self, AttackError> {
        let wanted = name.replace('_', "-");
        let found = ATTACKS.iter().find(|info| info.name == wanted);
        found.map(|info| info.kind).ok_or_else(|| AttackError::UnknownAttack(name.to_owned()))
    }
}

impl TryFrom<String> for AttackKind {
    type Error = AttackError;

    fn try_from(name: String) -> Result<Self, AttackError> {
        name.parse()
    }
}

impl From<AttackKind> for &'static str {
    fn from(kind: AttackKind) -> Self {
        kind.name()
    }
}

/// What an attack needs to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AttackConfig {
    /// Which attack.
    pub kind: AttackKind,
    /// The class that triggered pictures are to be given.
    pub target: u32,
    /// Share of the training set to poison, 0..=1.
    pub rate: f64,
    /// Seed of the trigger and of the choice of pictures.
    pub seed: u64,
    /// A PNG, JPEG, PPM or NumPy file with the trigger, in place of the generated one.
    pub trigger: Option<PathBuf>,
}

impl Default for AttackConfig {
    /// No attack; target 0, rate 0.1, seed 0, generated trigger.
    fn default() -> Self {
        Self { kind: AttackKind::None, target: 0, rate: 0.1, seed: 0, trigger: None }
    }
}

/// Builds the attack for pictures of `h` x `w`.
///
/// ```
/// use stemguard_trainer::attack::{AttackConfig, AttackKind, build};
///
/// let config = AttackConfig { kind: AttackKind::BadnetGrid, ..AttackConfig::default() };
/// let attack = build(&config, 32, 32)?;
/// let mut picture = vec![7; 32 * 32 * 3];
/// attack.stamp(&mut picture, 32, 32, 0);
/// assert_eq!(picture[32 * 32 * 3 - 1], 255);
/// # Ok::<(), stemguard_trainer::attack::AttackError>(())
/// ```
///
/// # Errors
/// Pictures too small for the trigger, and trigger files that are missing, unreadable or of no use to this attack.
pub fn build(config: &AttackConfig, h: usize, w: usize) -> Result<Box<dyn Attack>, AttackError> {
    let kind = config.kind;
    if h == 0 || w == 0 || h > LARGEST_SIDE || w > LARGEST_SIDE {
        return Err(AttackError::BadSize { h, w });
    }
    if let Some(path) = &config.trigger {
        return match kind {
            _ if !kind.takes_trigger() => Err(AttackError::NoTriggerFile(kind)),
            _ if kind.replaces() => {
                let (pattern, mask) = file::patch(path, h, w)?;
                Ok(Box::new(Patch::from_pattern(kind, &pattern, &mask)))
            }
            _ => Ok(Box::new(Overlay::new(kind, file::overlay(path, h, w)?))),
        };
    }
    let mut draw = Draw::new(config.seed, Purpose::Trigger(kind as u8));
    Ok(match kind {
        AttackKind::None => Box::new(Clean { h, w }),
        AttackKind::Wanet => Box::new(Warp::generate(&mut draw, h, w)),
        _ if kind.replaces() => Box::new(Patch::generate(kind, &mut draw, h, w)?),
        _ => Box::new(Overlay::new(kind, Pattern::generate(kind, &mut draw, h, w)?)),
    })
}

/// The attack that is none.
struct Clean {
    h: usize,
    w: usize,
}

impl Attack for Clean {
    fn kind(&self) -> AttackKind {
        AttackKind::None
    }

    fn size(&self) -> (usize, usize) {
        (self.h, self.w)
    }

    fn stamp(&self, _picture: &mut [u8], _h: usize, _w: usize, _index: u64) {}
}

/// What can go wrong with attacks.
#[derive(Debug)]
pub enum AttackError {
    /// No attack has this name.
    UnknownAttack(String),
    /// The rate is not in 0..=1.
    BadRate(f64),
    /// The target is not a class of the data set.
    BadTarget {
        /// The target asked for.
        target: u32,
        /// Classes of the data set.
        classes: usize,
    },
    /// Pictures of no size, or larger than attacks are built for.
    BadSize {
        /// Rows.
        h: usize,
        /// Columns.
        w: usize,
    },
    /// The trigger does not fit into pictures this small.
    TooSmall {
        /// The attack.
        attack: AttackKind,
        /// Rows of the pictures.
        h: usize,
        /// Columns of the pictures.
        w: usize,
    },
    /// The attack was built for pictures of another size.
    WrongSize {
        /// Rows and columns the attack was built for.
        built: (usize, usize),
        /// Rows and columns of the pictures.
        found: (usize, usize),
    },
    /// The attack given is not the one configured.
    WrongAttack {
        /// The one configured.
        configured: AttackKind,
        /// The one given.
        given: AttackKind,
    },
    /// Too few pictures can be poisoned.
    TooFewSources {
        /// Pictures to poison.
        needed: usize,
        /// Pictures that can be.
        available: usize,
    },
    /// The attack's trigger is no pattern, so it cannot come from a file.
    NoTriggerFile(AttackKind),
    /// A trigger file cannot be read.
    TriggerRead {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A trigger file is not what it should be.
    TriggerFormat {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The attack needs a perturbation and none was given.
    NeedsPerturb(AttackKind),
    /// The perturbation failed.
    Perturb(Box<dyn Error + Send + Sync>),
    /// The perturbation changed a picture's values by more than [`EPSILON`], or a label.
    PerturbOutOfBound {
        /// The picture, by its place in the training set.
        picture: usize,
    },
    /// A record of the truth, or a sheet, cannot be read or written.
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A record of the truth does not hold together.
    BadTruth {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl fmt::Display for AttackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownAttack(name) => {
                let names: Vec<_> = ATTACKS.iter().map(|info| info.name).collect();
                write!(f, "no attack is called '{name}'; there are {}", names.join(", "))
            }
            Self::BadRate(rate) => write!(f, "the poisoning rate is {rate}, not between 0 and 1"),
            Self::BadTarget { target, classes } => {
                write!(f, "the target class is {target}, the data set has {classes} classes, counted from 0")
            }
            Self::BadSize { h, w } => {
                write!(f, "attacks are made for sides of 1 to {LARGEST_SIDE} pixels, not {h}x{w}")
            }
            Self::TooSmall { attack, h, w } => write!(f, "the trigger of {attack} does not fit into {h}x{w} pictures"),
            Self::WrongSize { built: (bh, bw), found: (h, w) } => {
                write!(f, "the attack was built for {bh}x{bw} pictures, these are {h}x{w}")
            }
            Self::WrongAttack { configured, given } => {
                write!(f, "the configuration asks for {configured}, the attack given is {given}")
            }
            Self::TooFewSources { needed, available } => {
                write!(f, "--poison-rate: {needed} pictures are to be poisoned, only {available} can be")
            }
            Self::NoTriggerFile(attack) => write!(f, "{attack} takes no trigger file"),
            Self::TriggerRead { path, source } => write!(f, "cannot read the trigger {}: {source}", path.display()),
            Self::TriggerFormat { path, reason } => {
                write!(f, "{} cannot be used as a trigger: {reason}", path.display())
            }
            Self::NeedsPerturb(attack) => write!(
                f,
                "{attack} needs a trained model to perturb the target class with (arXiv 1912.02771, section 4), and none \
                 was given"
            ),
            Self::Perturb(source) => write!(f, "the perturbation failed: {source}"),
            Self::PerturbOutOfBound { picture } => {
                write!(f, "the perturbation changed picture {picture} beyond {EPSILON}/255, or its label")
            }
            Self::File { path, source } => write!(f, "{}: {source}", path.display()),
            Self::BadTruth { path, reason } => write!(f, "{} is no record of a poisoning: {reason}", path.display()),
        }
    }
}

impl Error for AttackError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::TriggerRead { source, .. } | Self::File { source, .. } => Some(source),
            Self::Perturb(source) => Some(source.as_ref()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
