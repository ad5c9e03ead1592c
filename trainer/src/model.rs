//! The networks: stem, classification head, reconstruction decoder.
//!
//! WideResNet as the published code wires it ([`crate::nn::layer::Layer::Unit`]), or ResNet-34 as torchvision does
//! ([`crate::nn::layer::Layer::Basic`]), cut into stem and head at a *split* ([`Architecture`]). The decoder brings the stem's
//! features back to the picture through transposed convolutions (4x4, stride 2).

mod architecture;

pub use architecture::{Architecture, Family};

use crate::nn::layer::{Basic, Conv, ConvNorm, Front, Norm, PoolLinear, Squash};
use crate::nn::{Layer, Sequence, Visit};
use dfdx::prelude::*;
use stemguard_runtime::error::{Error, Result};
use stemguard_runtime::kernels::ConvShape;
use stemguard_runtime::layers::basic::BasicShape;
use stemguard_runtime::layers::front::FrontShape;
use stemguard_runtime::layers::pool_linear::PoolLinearShape;
use stemguard_runtime::layers::unit::UnitShape;
use stemguard_runtime::rng::Rng;
use stemguard_runtime::shape::Shape;

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

    /// As [`Init::conv`], without bias.
    fn conv_norm(&mut self, s: &ConvShape) -> ConvNorm {
        let fan_out = (s.window.kernel[0] * s.window.kernel[1] * s.y.c) as f32;
        ConvNorm::new(self.dev, self.normal(s.weights(), (2.0 / fan_out).sqrt()), s.y.c as usize)
    }

    fn basic(&mut self, shape: BasicShape) -> Layer {
        Layer::Basic(Basic {
            first: self.conv_norm(&shape.conv1),
            second: self.conv_norm(&shape.conv2),
            short: shape.short.as_ref().map(|s| self.conv_norm(s)),
            shape,
        })
    }

    /// Xavier normal; no bias.
    fn linear(&mut self, c: usize, classes: usize) -> Conv {
        let deviation = (2.0 / (c + classes) as f32).sqrt();
        Conv::new(self.dev, self.normal(c * classes, deviation), vec![0.0; classes])
    }

    fn tail(&mut self, shape: Shape, classes: usize) -> Layer {
        let c = shape.c as usize;
        let Conv { weight, bias } = self.linear(c, classes);
        Layer::Tail { shape, norm: Norm::new(self.dev, c), weight, bias }
    }
}

impl TrapNet {
    /// Values that a training step keeps of each picture, at least.
    pub fn kept_len(&self) -> usize {
        self.stem.kept_len() + self.head.kept_len() + self.decoder.as_ref().map_or(0, Sequence::kept_len)
    }

    /// A network with initial weights drawn from `seed`.
    ///
    /// # Errors
    /// [`Error::BadSetting`] where the architecture or a size is out of range.
    pub fn new(a: Architecture, input: Shape, classes: usize, decoder: bool, seed: u64, dev: &Cpu) -> Result<Self> {
        if classes < 2 {
            return Err(Error::BadSetting("number of classes must be at least 2"));
        }
        a.check().map_err(Error::BadSetting)?;
        let mut init = Init { dev, rng: Rng::new(seed, INIT_STREAM) };
        let [stem, head] = match a.family() {
            Family::WideResNet => wide_resnet(&mut init, a, input, classes)?,
            Family::ResNet => resnet(&mut init, a, input, classes)?,
        };
        let (stem, head) = (stem.sequence(false), head.sequence(true));
        let decoder = if decoder { Some(Self::decoder(&mut init, stem.output(), input)?) } else { None };
        Ok(Self { stem, head, decoder, input, classes })
    }

    /// Transposed convolutions until the size of the picture is reached, half the width each time, the last one to its channels;
    /// a single one of stride 1 where the features have that size already.
    fn decoder(init: &mut Init<'_>, features: Shape, input: Shape) -> Result<Sequence> {
        let mut parts = Parts::default();
        let mut push = |shape: ConvShape, squash: Squash| {
            let name = format!("{}", parts.layers.len());
            parts.push(&name, Layer::Deconv { conv: init.deconv(&shape), shape, squash });
        };
        let mut at = features;
        let mut width = 32.max(features.c / 2);
        if at.h == input.h {
            push(ConvShape::square(input, at.c, 3, 1, 1)?, Squash::Sigmoid);
        }
        while at.h < input.h {
            let last = at.h * 2 == input.h;
            let y = Shape::new(at.h * 2, at.w * 2, if last { input.c } else { width });
            push(ConvShape::square(y, at.c, 4, 2, 1)?, if last { Squash::Sigmoid } else { Squash::Relu });
            at = y;
            width = 32.max(width / 2);
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

/// Stem and head of a WideResNet: a convolution, three groups of units (strides 1, 2, 2), the tail.
fn wide_resnet(init: &mut Init<'_>, a: Architecture, input: Shape, classes: usize) -> Result<[Parts; 2]> {
    if !input.h.is_multiple_of(4) || !input.w.is_multiple_of(4) {
        return Err(Error::BadSetting("picture sides must be multiples of 4"));
    }
    let units = ((a.depth - 4) / 6) as usize;
    let in_stem = match a.split {
        4 => 2 * units,
        5 => 2 * units + 1,
        _ => 3 * units,
    };
    let first = ConvShape::square(input, 16, 3, 1, 1)?;
    let [mut stem, mut head] = <[Parts; 2]>::default();
    stem.push("0", Layer::Conv { conv: init.conv(&first), shape: first });
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
    Ok([stem, head])
}

/// Stem and head of a ResNet-34: the front, four stages of basic blocks (strides 1, 2, 2, 2), pool and linear layer.
fn resnet(init: &mut Init<'_>, a: Architecture, input: Shape, classes: usize) -> Result<[Parts; 2]> {
    const STAGES: [usize; 4] = [3, 4, 6, 3];
    let (stage, blocks) = match a.split {
        stage @ 1..=4 => (stage as usize, STAGES[stage as usize - 1]),
        41 => (4, 1),
        _ => (4, 2),
    };
    let in_stem = STAGES[..stage - 1].iter().sum::<usize>() + blocks;
    let front = FrontShape::new(input, 64)?;
    let stride = if front.pool.is_some() { 4 << (stage - 1) } else { 1 << (stage - 1) };
    if !input.h.is_multiple_of(stride) || !input.w.is_multiple_of(stride) {
        return Err(Error::BadSetting(
            "picture sides must be multiples of the stem's total stride (1, 2, 4, 8 by stage; x4 from 64 pixels on)",
        ));
    }
    let [mut stem, mut head] = <[Parts; 2]>::default();
    let mut at = front.y();
    stem.push("0", Layer::Front(Front { conv: init.conv_norm(&front.conv), shape: front }));
    let mut number = 0;
    for (stage, blocks) in STAGES.into_iter().enumerate() {
        for block in 0..blocks {
            let shape = BasicShape::new(at, 64 << stage, if stage > 0 && block == 0 { 2 } else { 1 })?;
            at = shape.y();
            let layer = init.basic(shape);
            if number < in_stem {
                stem.push(&format!("{}", number + 1), layer);
            } else {
                head.push(&format!("block{}", number - in_stem), layer);
            }
            number += 1;
        }
    }
    let shape = PoolLinearShape::new(at, classes as u32)?;
    let linear = init.linear(at.c as usize, classes);
    head.push("tail", Layer::PoolLinear(PoolLinear { shape, linear }));
    Ok([stem, head])
}

#[cfg(test)]
impl TrapNet {
    /// A ResNet small enough for tests of other engines: front and two blocks, the second strided, in the stem, one in the head.
    pub(crate) fn small_resnet(input: Shape, classes: usize, decoder: bool, seed: u64, dev: &Cpu) -> Result<Self> {
        let init = &mut Init { dev, rng: Rng::new(seed, INIT_STREAM) };
        let [mut stem, mut head] = <[Parts; 2]>::default();
        let front = FrontShape::new(input, 8)?;
        let first = BasicShape::new(front.y(), 8, 1)?;
        let second = BasicShape::new(first.y(), 12, 2)?;
        let third = BasicShape::new(second.y(), 12, 1)?;
        let shape = PoolLinearShape::new(third.y(), classes as u32)?;
        stem.push("0", Layer::Front(Front { conv: init.conv_norm(&front.conv), shape: front }));
        stem.push("1", init.basic(first));
        stem.push("2", init.basic(second));
        head.push("block0", init.basic(third));
        let linear = init.linear(third.y().c as usize, classes);
        head.push("tail", Layer::PoolLinear(PoolLinear { shape, linear }));
        let (stem, head) = (stem.sequence(false), head.sequence(true));
        let decoder = if decoder { Some(Self::decoder(init, stem.output(), input)?) } else { None };
        Ok(Self { stem, head, decoder, input, classes })
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
