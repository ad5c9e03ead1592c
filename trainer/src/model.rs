//! The networks: stem, classification head, reconstruction decoder.
//!
//! WideResNet as the published code wires it ([`crate::nn::layer::Layer::Unit`]), cut into stem and head at a *split*: 4 is after
//! group 2, 5 after the first unit of group 3, 6 after group 3. The decoder brings the stem's features back to the picture
//! through transposed convolutions (4x4, stride 2).

use crate::nn::layer::{Conv, Norm, Squash};
use crate::nn::{Layer, Sequence, Visit, param};
use dfdx::prelude::*;
use serde::{Deserialize, Serialize};
use stemguard_runtime::error::{Error, Result};
use stemguard_runtime::kernels::ConvShape;
use stemguard_runtime::layers::unit::UnitShape;
use stemguard_runtime::rng::Rng;
use stemguard_runtime::shape::Shape;

/// Which network, and where it is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Architecture {
    /// WideResNet depth: 16 or 28.
    pub depth: u32,
    /// Width factor, 1..=16.
    pub width: u32,
    /// 4, 5 or 6.
    pub split: u32,
}

impl Default for Architecture {
    fn default() -> Self {
        Self { depth: 16, width: 1, split: 5 }
    }
}

impl std::fmt::Display for Architecture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WRN-{}-{} split {}", self.depth, self.width, self.split)
    }
}

/// A stem with a light head and, for the trap, a decoder.
#[derive(Clone, Debug)]
pub struct TrapNet {
    /// Picture to features.
    pub stem: Sequence,
    /// Features to logits.
    pub head: Sequence,
    /// Features back to the picture; none in the undefended baseline.
    pub decoder: Option<Sequence>,
    /// One picture.
    pub input: Shape,
    /// Number of classes.
    pub classes: usize,
}

/// Draws initial values as PyTorch does for the published code.
struct Init<'a> {
    dev: &'a Cpu,
    rng: Rng,
}

impl Init<'_> {
    fn normal(&mut self, len: usize, deviation: f32) -> Vec<f32> {
        (0..len).map(|_| self.rng.normal() * deviation).collect()
    }

    fn uniform(&mut self, len: usize, bound: f32) -> Vec<f32> {
        (0..len).map(|_| (2.0 * self.rng.uniform() - 1.0) * bound).collect()
    }

    /// Kaiming normal, fan-out; the bias uniform within 1 / sqrt(fan-in).
    fn conv(&mut self, s: &ConvShape) -> Conv {
        let area = (s.window.kernel[0] * s.window.kernel[1]) as f32;
        let weight = self.normal(s.weights(), (2.0 / (area * s.y.c as f32)).sqrt());
        let bias = self.uniform(s.y.c as usize, 1.0 / (area * s.x.c as f32).sqrt());
        Conv::new(self.dev, weight, bias)
    }

    /// Uniform within 1 / sqrt(fan-in), where PyTorch counts the fan-in of a transposed convolution over its outputs.
    fn deconv(&mut self, s: &ConvShape) -> Conv {
        let bound = 1.0 / ((s.window.kernel[0] * s.window.kernel[1] * s.x.c) as f32).sqrt();
        let weight = self.uniform(s.weights(), bound);
        let bias = self.uniform(s.x.c as usize, bound);
        Conv::new(self.dev, weight, bias)
    }

    fn unit(&mut self, shape: UnitShape) -> Layer {
        let (cin, cmid) = (shape.x().c as usize, shape.conv1.y.c as usize);
        Layer::Unit {
            norm1: shape.preact.then(|| Norm::new(self.dev, cin)),
            conv1: self.conv(&shape.conv1),
            norm2: Norm::new(self.dev, cmid),
            conv2: self.conv(&shape.conv2),
            short: shape.short.as_ref().map(|s| self.conv(s)),
            shape,
        }
    }

    fn tail(&mut self, shape: Shape, classes: usize) -> Layer {
        let c = shape.c as usize;
        let deviation = (2.0 / (c + classes) as f32).sqrt();
        Layer::Tail {
            shape,
            norm: Norm::new(self.dev, c),
            weight: param(self.dev, self.normal(c * classes, deviation)),
            bias: param(self.dev, vec![0.0; classes]),
        }
    }
}

impl TrapNet {
    /// A network with initial weights drawn from `seed`.
    ///
    /// # Errors
    /// [`Error::BadSetting`] where the architecture or a size is out of range.
    pub fn new(a: Architecture, input: Shape, classes: usize, decoder: bool, seed: u64, dev: &Cpu) -> Result<Self> {
        if !matches!(a.depth, 16 | 28) || !matches!(a.split, 4..=6) || !(1..=16).contains(&a.width) {
            return Err(Error::BadSetting("architecture: depth 16 or 28, width 1..=16, split 4, 5 or 6"));
        }
        if classes < 2 {
            return Err(Error::BadSetting("number of classes must be at least 2"));
        }
        if !input.h.is_multiple_of(4) || !input.w.is_multiple_of(4) {
            return Err(Error::BadSetting("picture sides must be multiples of 4"));
        }
        let units = ((a.depth - 4) / 6) as usize;
        let in_stem = match a.split {
            4 => 2 * units,
            5 => 2 * units + 1,
            _ => 3 * units,
        };
        let mut init = Init { dev, rng: Rng::new(seed, INIT_STREAM) };
        let first = ConvShape::square(input, 16, 3, 1, 1)?;
        let mut stem = Parts::default();
        stem.push("0", Layer::Conv { conv: init.conv(&first), shape: first });
        let mut head = Parts::default();
        let mut at = first.y;
        for i in 0..3 * units {
            let group = i / units;
            let stride = if group > 0 && i % units == 0 { 2 } else { 1 };
            let shape = UnitShape::new(at, (16 * a.width) << group, stride, group == 0)?;
            at = shape.y();
            let layer = init.unit(shape);
            if i < in_stem {
                stem.push(&format!("{}", i + 1), layer);
            } else {
                head.push(&format!("unit{}", i - in_stem), layer);
            }
        }
        head.push("tail", init.tail(at, classes));
        let stem = stem.sequence(false);
        let decoder = if decoder { Some(Self::decoder(&mut init, stem.output(), input)?) } else { None };
        Ok(Self { stem, head: head.sequence(true), decoder, input, classes })
    }

    /// Transposed convolutions until the size of the picture is reached, half the width each time, the last one to its channels.
    fn decoder(init: &mut Init<'_>, features: Shape, input: Shape) -> Result<Sequence> {
        let mut parts = Parts::default();
        let mut at = features;
        let mut width = 32.max(features.c / 2);
        let mut number = 0;
        while at.h < input.h {
            let last = at.h * 2 == input.h;
            let y = Shape::new(at.h * 2, at.w * 2, if last { input.c } else { width });
            let shape = ConvShape::square(y, at.c, 4, 2, 1)?;
            let squash = if last { Squash::Sigmoid } else { Squash::Relu };
            parts.push(&format!("{number}"), Layer::Deconv { conv: init.deconv(&shape), shape, squash });
            at = y;
            width = 32.max(width / 2);
            number += 1;
        }
        Ok(parts.sequence(true))
    }

    /// Shows every parameter and state to `v`.
    pub fn visit(&mut self, v: &mut dyn Visit) {
        self.stem.visit("stem", v);
        self.head.visit("head", v);
        if let Some(decoder) = &mut self.decoder {
            decoder.visit("decoder", v);
        }
    }
}

/// Stream of the seed for initial weights.
const INIT_STREAM: u64 = 0x696e_6974;

#[derive(Default)]
struct Parts {
    names: Vec<String>,
    layers: Vec<Layer>,
}

impl Parts {
    fn push(&mut self, name: &str, layer: Layer) {
        self.names.push(name.to_owned());
        self.layers.push(layer);
    }

    fn sequence(self, input_gradient: bool) -> Sequence {
        Sequence { names: self.names, layers: self.layers, input_gradient }
    }
}
