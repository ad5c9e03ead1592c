//! Runs a frozen stem and replaces the classification head on top of it.
//!
//! The data path, one module a step:
//!
//! ```text
//! model.onnx -> onnx (cut, lower) -> net -> artifact (.sgm)
//!                                     |       |
//!                      quantise (int8) +------+
//!                                             |
//! pictures   -> data -> CleanHoldout -> features -> replace -> head -> defended (stem + head)
//!                                                                         |
//!                                            metrics (ACC, ASR) <- infer -+-> onnx (export)
//! ```
//!
//! The core is `no_std` and needs no allocator: the caller owns every buffer, and each stage has a function that tells
//! the exact length it needs. On a device, [`slots`] keeps heads in flash, and [`replace::trial`] tests them; the feature `sign`
//! adds signed artifacts, without std too. Features add a shell around it: `std` (files, SIMD kernels, data sets of bytes and PPM),
//! `parallel` (threads over pictures), `onnx` (tract-onnx), `data` (PNG, JPEG, resizing, npz and procedural signs), `cli` (the
//! `stemguard` command).
//!
//! Layouts: pictures and features are NHWC, `f32`, row-major; pictures hold 0..=1 unless a stem says otherwise.

#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]

extern crate no_std_compat as std;

#[cfg(feature = "std")]
extern crate alloc;

#[cfg(feature = "std")]
pub mod data;
#[cfg(feature = "std")]
pub mod files;
#[cfg(feature = "onnx")]
pub mod onnx;
#[cfg(feature = "std")]
pub mod quantise;
#[cfg(feature = "std")]
pub mod session;
#[cfg(feature = "usage")]
pub mod usage;

pub mod artifact;
pub mod error;
pub mod footprint;
pub mod head;
pub mod kernels;
pub mod layers;
pub mod metrics;
pub mod net;
pub mod replace;
pub mod rng;
pub mod shape;
mod slices;
pub mod slots;
pub mod stem;
pub mod tripwire;
