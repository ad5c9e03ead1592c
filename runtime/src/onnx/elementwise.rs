//! Lowering of sums, products, normalisations and activations.

use super::OnnxError;
use super::constant::Const;
use super::lower::{Live, Lowering, Value};
use super::node::{bad, float, int, unsupported};
use crate::net::Activation;
use std::prelude::v1::*;
use tract_onnx::pb;

impl Lowering<'_> {
    /// act(x * scale + shift) by channel.
    fn affine(
        &mut self,
        node: &pb::NodeProto,
        x: Live,
        scale: Option<Vec<f32>>,
        shift: Option<Vec<f32>>,
        act: Activation,
    ) -> Result<Live, OnnxError> {
        if scale.iter().chain(&shift).flatten().any(|v| !v.is_finite()) {
            return Err(unsupported(node, "its constants become infinite"));
        }
        let id = self.builder.affine(x.id, scale, shift, act);
        Ok(Live { id: self.built(node, id)?, ..x })
    }

    pub(super) fn batch_norm(&mut self, node: &pb::NodeProto) -> Result<Live, OnnxError> {
        let x = self.live(node, 0)?;
        // Before opset 14 it is the outputs behind the first that tell.
        let more = node.output.iter().skip(1).any(|name| !name.is_empty());
        if int(node, "training_mode", 0) != 0 || more || int(node, "spatial", 1) != 1 {
            return Err(unsupported(node, "it is in training mode: export the model for inference"));
        }
        let shape = self.shape(x);
        if x.rank < 4 && shape.h * shape.w > 1 {
            return Err(unsupported(node, "it normalises a flattened feature map"));
        }
        let c = shape.c as usize;
        let (gamma, beta) = (self.vector(node, 1, c)?, self.vector(node, 2, c)?);
        let (mean, variance) = (self.vector(node, 3, c)?, self.vector(node, 4, c)?);
        let epsilon = f64::from(float(node, "epsilon", 1e-5));
        let wide = |list: &[f32], i: usize| f64::from(list[i]);
        let scale: Vec<f64> = (0..c).map(|i| wide(&gamma, i) / (wide(&variance, i) + epsilon).sqrt()).collect();
        let shift = (0..c).map(|i| (wide(&beta, i) - wide(&mean, i) * scale[i]) as f32).collect();
        let scale = scale.into_iter().map(|v| v as f32).collect();
        self.affine(node, x, Some(scale), Some(shift), Activation::None)
    }

    pub(super) fn binary(&mut self, node: &pb::NodeProto) -> Result<Live, OnnxError> {
        let mut sum = None;
        if node.op_type != "Sum" && node.input.len() != 2 {
            return Err(bad(node, "it needs two inputs"));
        }
        for i in 0..node.input.len() {
            let value = self.input(node, i)?.ok_or_else(|| bad(node, format!("its input {i} is missing")))?;
            if let Value::Live(_) = value {
                self.live(node, i)?;
            }
            sum = Some(match sum {
                None => value,
                Some(before) => Value::Live(self.pair(node, before, value)?),
            });
        }
        match sum {
            Some(Value::Live(live)) => Ok(live),
            _ => Err(unsupported(node, "all its inputs are constant")),
        }
    }

    fn pair(&mut self, node: &pb::NodeProto, a: Value, b: Value) -> Result<Live, OnnxError> {
        let op = &*node.op_type;
        match (a, b) {
            (Value::Live(x), Value::Const(c)) => {
                let v = self.by_channel(node, x, &c)?;
                let (scale, shift) = match op {
                    "Add" | "Sum" => (None, Some(v)),
                    "Sub" => (None, Some(v.into_iter().map(|v| -v).collect())),
                    "Mul" => (Some(v), None),
                    _ => (Some(v.into_iter().map(|v| 1.0 / v).collect()), None),
                };
                self.affine(node, x, scale, shift, Activation::None)
            }
            (Value::Const(c), Value::Live(x)) => {
                let v = self.by_channel(node, x, &c)?;
                let (scale, shift) = match op {
                    "Add" | "Sum" => (None, Some(v)),
                    "Sub" => (Some(vec![-1.0; v.len()]), Some(v)),
                    "Mul" => (Some(v), None),
                    _ => return Err(unsupported(node, "it divides a constant")),
                };
                self.affine(node, x, scale, shift, Activation::None)
            }
            (Value::Live(x), Value::Live(y)) => self.two(node, x, y),
            (Value::Const(_), Value::Const(_)) => Err(unsupported(node, "two constants among its inputs")),
        }
    }

    fn two(&mut self, node: &pb::NodeProto, x: Live, y: Live) -> Result<Live, OnnxError> {
        let (a, b) = (self.shape(x), self.shape(y));
        let scales = |many: crate::shape::Shape, one: crate::shape::Shape| one.h * one.w == 1 && many.c == one.c;
        if x.rank != y.rank || (x.rank < 4 && a != b) {
            return Err(unsupported(node, format!("values of rank {} and {}, {a:?} and {b:?}", x.rank, y.rank)));
        }
        let (id, of) = match &*node.op_type {
            "Mul" if a == b || scales(a, b) => (self.builder.mul(x.id, y.id, Activation::None), x),
            "Mul" if scales(b, a) => (self.builder.mul(y.id, x.id, Activation::None), y),
            "Add" | "Sum" if a == b => (self.builder.add(x.id, y.id, Activation::None), x),
            "Sub" if a == b => {
                let minus = self.affine(node, y, Some(vec![-1.0; b.c as usize]), None, Activation::None)?;
                (self.builder.add(x.id, minus.id, Activation::None), x)
            }
            _ => return Err(unsupported(node, format!("values of shapes {a:?} and {b:?}"))),
        };
        Ok(Live { id: self.built(node, id)?, ..of })
    }

    /// A constant beside a value, as one number a channel.
    fn by_channel(&self, node: &pb::NodeProto, x: Live, c: &Const) -> Result<Vec<f32>, OnnxError> {
        let list = c.floats().ok_or_else(|| unsupported(node, "a constant that is not f32"))?;
        let shape = self.shape(x);
        let channels = shape.c as usize;
        let lead = c.dims.iter().take_while(|&&d| d == 1).count();
        let tail = &c.dims[lead..];
        let fits = match x.rank {
            4 => tail == [channels, 1, 1],
            3 => tail == [channels, 1],
            _ => tail == [channels] && shape.h * shape.w == 1,
        };
        match list {
            [one] if c.dims.len() <= x.rank.into() => Ok(vec![*one; channels]),
            many if fits && c.dims.len() <= x.rank.into() => Ok(many.to_vec()),
            _ => {
                let why = format!(
                    "a constant of dimensions {:?} beside {channels} channels: only one number, or one a channel",
                    c.dims
                );
                Err(unsupported(node, why))
            }
        }
    }

    pub(super) fn activation(&mut self, node: &pb::NodeProto) -> Result<Live, OnnxError> {
        let close = |v: f32, to: f32| (v - to).abs() < 1e-6;
        let act = match &*node.op_type {
            "Relu" => Activation::Relu,
            "LeakyRelu" => Activation::Leaky(float(node, "alpha", 0.01)),
            "Sigmoid" => Activation::Sigmoid,
            "HardSwish" => Activation::HardSwish,
            "HardSigmoid" => {
                let (alpha, beta) = (float(node, "alpha", 0.2), float(node, "beta", 0.5));
                match close(alpha, 1.0 / 6.0) && close(beta, 0.5) {
                    true => Activation::HardSigmoid,
                    false => return Err(unsupported(node, format!("alpha {alpha} and beta {beta}: only 1/6 and 1/2"))),
                }
            }
            "PRelu" => {
                let slope = self.constant(node, 1)?;
                match slope.as_deref().and_then(Const::floats) {
                    Some([first, rest @ ..]) if rest.iter().all(|v| v == first) => Activation::Leaky(*first),
                    _ => return Err(unsupported(node, "slopes that differ by channel")),
                }
            }
            "Clip" => {
                let low = self.bound(node, 1, "min", f32::MIN)?;
                let high = self.bound(node, 2, "max", f32::MAX)?;
                match (low, high) {
                    (0.0, 6.0) => Activation::Relu6,
                    (0.0, f32::MAX) => Activation::Relu,
                    _ => return Err(unsupported(node, format!("bounds {low} and {high}: only 0 and 6"))),
                }
            }
            _ => {
                return Err(unsupported(
                    node,
                    "no net operation for it: cut before it, or run the model through tract",
                ));
            }
        };
        let x = self.live(node, 0)?;
        self.affine(node, x, None, None, act)
    }

    /// A bound of Clip: an input since opset 11, an attribute before.
    fn bound(&mut self, node: &pb::NodeProto, i: usize, name: &str, default: f32) -> Result<f32, OnnxError> {
        let Some(c) = self.constant(node, i)? else { return Ok(float(node, name, default)) };
        match c.floats() {
            Some([v]) => Ok(*v),
            _ => Err(unsupported(node, "a bound that is no single f32")),
        }
    }
}
