//! s

pub mod attack;
pub mod report;
pub mod split;
pub mod nn;
