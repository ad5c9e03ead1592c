//! A stem: the frozen net that turns pictures into features, in `f32` or in 8 bits.

use crate::net::Net;
use crate::net::int8::Int8Net;
use crate::shape::Shape;

/// A checked stem of either precision.
#[derive(Clone, Copy, Debug)]
pub enum Stem<'a> {
    /// 32-bit floating point.
    F32(Net<'a>),
    /// 8-bit integers; pictures are quantised on the way in, features dequantised on the way out.
    Int8(Int8Net<'a>),
}

impl<'a> From<Net<'a>> for Stem<'a> {
    fn from(net: Net<'a>) -> Self {
        Self::F32(net)
    }
}

impl<'a> From<Int8Net<'a>> for Stem<'a> {
    fn from(net: Int8Net<'a>) -> Self {
        Self::Int8(net)
    }
}

impl<'a> Stem<'a> {
    /// The `f32` net, if it is one.
    pub const fn f32(&self) -> Option<Net<'a>> {
        match *self {
            Self::F32(net) => Some(net),
            Self::Int8(_) => None,
        }
    }

    /// The 8-bit net, if it is one.
    pub const fn int8(&self) -> Option<Int8Net<'a>> {
        match *self {
            Self::F32(_) => None,
            Self::Int8(net) => Some(net),
        }
    }

    /// The name flags and JSON use: `f32` or `int8`.
    pub const fn precision(&self) -> &'static str {
        match self {
            Self::F32(_) => "f32",
            Self::Int8(_) => "int8",
        }
    }

    /// Shape of the input picture.
    pub const fn input(&self) -> Shape {
        match self {
            Self::F32(net) => net.input(),
            Self::Int8(net) => net.input(),
        }
    }

    /// Shape of the features.
    pub const fn output(&self) -> Shape {
        match self {
            Self::F32(net) => net.output(),
            Self::Int8(net) => net.output(),
        }
    }

    /// Number of operations, at least 1.
    pub const fn op_count(&self) -> u32 {
        match self {
            Self::F32(net) => net.op_count(),
            Self::Int8(net) => net.op_count(),
        }
    }

    /// All weights, as they are stored.
    pub fn weights(&self) -> &'a [u8] {
        match self {
            Self::F32(net) => bytemuck::cast_slice(net.weights()),
            Self::Int8(net) => bytemuck::cast_slice(net.words()),
        }
    }

    /// Bytes of one element of a value: 4 or 1.
    pub const fn element(&self) -> usize {
        match self {
            Self::F32(_) => 4,
            Self::Int8(_) => 1,
        }
    }

    /// Bytes of the arena that one run needs, beside picture and features.
    pub const fn arena_bytes(&self) -> usize {
        match self {
            Self::F32(net) => net.arena_len().saturating_mul(4),
            Self::Int8(net) => net.arena_len(),
        }
    }

    /// Multiply-adds of the convolutions and linear layers for one picture.
    pub fn multiply_adds(&self) -> u64 {
        match self {
            Self::F32(net) => net.multiply_adds(),
            Self::Int8(net) => net.multiply_adds(),
        }
    }
}
