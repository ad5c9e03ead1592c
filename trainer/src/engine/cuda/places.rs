//! Where the engine's tests run: on the mirror, and on the first GPU of a machine that has one. The same cases, the same limits.

use super::backend::Backend;
use super::driver::{Driver, probe};
use super::mirror::Mirror;
use crate::engine::Precision;

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Threads in rising, or in falling order.
    Mirror {
        falling: bool,
    },
    Gpu,
}

impl Place {
    /// One of each.
    pub(crate) const ALL: [Self; 2] = [Self::Mirror { falling: false }, Self::Gpu];

    /// Where the same bits are to come out again.
    pub(crate) fn again(self) -> Self {
        match self {
            Self::Mirror { falling } => Self::Mirror { falling: !falling },
            Self::Gpu => Self::Gpu,
        }
    }

    /// A device of the kind; where there is none, that is told.
    pub(super) fn device(self, precision: Precision) -> Option<Box<dyn Backend>> {
        match self {
            Self::Mirror { falling } => {
                let mut device = Mirror::new(precision)?;
                device.falling = falling;
                Some(Box::new(device))
            }
            Self::Gpu => match probe() {
                // Whatever else fails on a machine with a GPU is a failure.
                Ok(_) => Some(Box::new(Driver::open(0, precision).expect("a GPU that is there works"))),
                Err(e) => {
                    crate::skip::skipped("gpu", &e.to_string());
                    None
                }
            },
        }
    }
}
