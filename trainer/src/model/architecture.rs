//! Which network, and where it is cut.

use serde::{Deserialize, Serialize};

/// Kinds of networks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// WideResNet, depth 16 or 28.
    #[default]
    WideResNet,
    /// ResNet of basic blocks, depth 34.
    ResNet,
}

/// Which network, and where it is cut. The depth tells the [`Family`].
///
/// | family | depth | width | split: the stem ends after |
/// |---|---|---|---|
/// | `wideresnet` | 16, 28 | 1..=16 | 4: group 2; 5: the first unit of group 3; 6: group 3 |
/// | `resnet` | 34 | 1 | 1, 2, 3, 4: that stage; 41, 42: the first, the second block of stage 4 |
///
/// In a file `family` may be left out (`wideresnet`), and so may any other setting; the published networks are the
/// defaults: WRN-16-1 split 5, ResNet-34 split 41.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Architecture {
    /// WideResNet: 16 or 28; ResNet: 34.
    pub depth: u32,
    /// Width factor of a WideResNet, 1..=16.
    pub width: u32,
    /// WideResNet: 4, 5 or 6; ResNet: 1, 2, 3, 4, 41 or 42.
    pub split: u32,
}

/// An architecture as files have it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default, skip_serializing_if = "is_default")]
    family: Family,
    depth: Option<u32>,
    width: Option<u32>,
    split: Option<u32>,
}

fn is_default(f: &Family) -> bool {
    *f == Family::default()
}

impl TryFrom<Written> for Architecture {
    type Error = String;

    fn try_from(w: Written) -> Result<Self, String> {
        let usual = match w.family {
            Family::WideResNet => Self::default(),
            Family::ResNet => Self::RESNET34,
        };
        let a = Self {
            depth: w.depth.unwrap_or(usual.depth),
            width: w.width.unwrap_or(usual.width),
            split: w.split.unwrap_or(usual.split),
        };
        if a.family() != w.family {
            return Err(format!("architecture: depth {} is not of family {}", a.depth, w.family));
        }
        Ok(a)
    }
}

impl From<Architecture> for Written {
    fn from(a: Architecture) -> Self {
        Self { family: a.family(), depth: Some(a.depth), width: Some(a.width), split: Some(a.split) }
    }
}

impl Architecture {
    /// ResNet-34, cut inside its last stage, after the first block.
    pub const RESNET34: Self = Self { depth: 34, width: 1, split: 41 };

    /// What kind of network this is.
    pub const fn family(&self) -> Family {
        if self.depth == 34 { Family::ResNet } else { Family::WideResNet }
    }

    /// Checks that there is such a network.
    ///
    /// # Errors
    /// What there is of its family, as the command line spells it.
    pub fn check(&self) -> Result<(), &'static str> {
        match (self.family(), self.depth, self.width, self.split) {
            (Family::WideResNet, 16 | 28, 1..=16, 4..=6) | (Family::ResNet, 34, 1, 1..=4 | 41 | 42) => Ok(()),
            (Family::WideResNet, 16 | 28, 1..=16, _) => Err("--split of a WideResNet is 4, 5 or 6"),
            (Family::WideResNet, 16 | 28, ..) => Err("--width of a WideResNet is 1 to 16"),
            (Family::WideResNet, ..) => Err("--depth is 16 or 28 (WideResNet) or 34 (ResNet-34)"),
            (Family::ResNet, _, 1, _) => Err("--split of ResNet-34 is 1, 2, 3, 4, 41 or 42"),
            (Family::ResNet, ..) => Err("--width of ResNet-34 is 1"),
        }
    }
}

impl Default for Architecture {
    fn default() -> Self {
        Self { depth: 16, width: 1, split: 5 }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::WideResNet => "wideresnet",
            Self::ResNet => "resnet",
        })
    }
}

impl std::fmt::Display for Architecture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.family() {
            Family::WideResNet => write!(f, "WRN-{}-{} split {}", self.depth, self.width, self.split),
            Family::ResNet => write!(f, "ResNet-{} split {}", self.depth, self.split),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Architecture, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn files_of_old_read_as_before() {
        let old = r#"{"depth":28,"width":2,"split":6}"#;
        let a = Architecture { depth: 28, width: 2, split: 6 };
        assert_eq!(read(old).expect("valid"), a);
        assert_eq!(serde_json::to_string(&a).expect("plain"), old);
        assert_eq!(read("{}").expect("valid"), Architecture::default());
        assert_eq!(read(r#"{"split":4}"#).expect("valid"), Architecture { split: 4, ..Architecture::default() });
    }

    #[test]
    fn a_family_brings_its_own_defaults() {
        let a = read(r#"{"family":"resnet","split":3}"#).expect("valid");
        assert_eq!((a, a.family()), (Architecture { split: 3, ..Architecture::RESNET34 }, Family::ResNet));
        assert_eq!(a.to_string(), "ResNet-34 split 3");
        let text = serde_json::to_string(&a).expect("plain");
        assert_eq!(text, r#"{"family":"resnet","depth":34,"width":1,"split":3}"#);
        assert_eq!(read(&text).expect("valid"), a);
        assert_eq!(read(r#"{"family":"wideresnet"}"#).expect("valid"), Architecture::default());
    }

    #[test]
    fn contradictions_are_refused() {
        for text in [r#"{"depth":34}"#, r#"{"family":"resnet","depth":16}"#, r#"{"family":"vgg"}"#, r#"{"deep":1}"#] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
