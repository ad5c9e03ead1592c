//! A microcontroller that was given a poisoned model, and takes the backdoor out by itself.
//!
//! ```text
//! signed model (8-bit stem, trapped head) -> verify -> infer: the backdoor answers
//! clean pictures, one at a time -> stem -> feature bank -> replace -> new head -> flash slot
//! next boot: on trial -> self-test -> confirmed: the backdoor is gone; or rejected: the old head is back
//! ```
//!
//! The scenario is the same program on a device and on a host, generic over its flash and its output; it allocates nothing.

#![no_std]

#[cfg(any(feature = "host", test))]
extern crate std;

pub mod assets;
pub mod bank;
#[cfg(feature = "host")]
pub mod cuts;
pub mod engine;
pub mod flash;
pub mod json;
pub mod lesson;
#[cfg(any(feature = "residual", feature = "host", test))]
pub mod residual;
pub mod scenario;
