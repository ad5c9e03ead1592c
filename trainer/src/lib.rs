//! Trains image classifiers on data that cannot be trusted, and defends them: *Trap and Replace* (arXiv 2210.06428).
//!
//! ```text
//! data -> split -> CleanHoldout -----------------------------------------------+
//!           |                                                                  |
//!           +----> attack -> SuspectSet -> trap -> stem.onnx -> replace -> defended.sgm -> report
//!                     |             (model, nn, engine)                        |
//!                     +-> Truth, triggered test pictures -> evaluate ----------+
//! ```
//!
//! The guard of a [`course`] has what it accuses unlearned while the trap trains, [`audit`] names the poisoned in the end, [`purify`]
//! unlearns them, and [`chain`] runs all of it. The networks ([`model`]) are layers on dfdx's tape ([`nn`]) over the kernels of `stemguard-runtime`; an [`engine`] runs
//! their training steps. Replacing the head, evaluation of the defended model, artifacts and data readers are the runtime's.

pub mod attack;
pub mod audit;
pub mod augment;
pub mod chain;
pub mod checkpoint;
pub mod config;
pub mod course;
pub mod defend;
pub mod engine;
pub mod error;
pub mod evaluate;
pub mod export;
pub mod history;
pub mod imprint;
pub mod model;
pub mod nn;
pub mod packed;
pub mod perturb;
pub mod prepare;
pub mod purify;
pub mod report;
pub mod run;
#[cfg(test)]
mod skip;
pub mod split;
pub mod summary;
pub mod sweep;
pub mod trap;
