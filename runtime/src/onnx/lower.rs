//! From ONNX nodes to net operations: layouts turned, windows made explicit, constants folded in.
//!
//! Values are NCHW in the file and `[h][w][c]` in the net. A flattened map keeps its `[h][w][c]` order inside: the rows of
//! the matrix that reads it are permuted instead. The batch is 1 throughout, so shape arithmetic folds to constants.

use super::constant::{self, Const};
use super::node::{bad, float, int, label, sides, text, unsupported};
use super::{Model, OnnxError};
use crate::net::{Activation, BuildError, NetBuilder, OwnedNet, Value as ValueId, Window};
use crate::shape::Shape;
use alloc::rc::Rc;
use std::collections::HashMap;
use std::prelude::v1::*;
use tract_onnx::pb;

/// Nesting of control flow with a constant condition.
const MAX_DEPTH: u32 = 8;

/// Lowers the part of a model that computes the tensor `cut` from the input; without a cut, the single output, or the answer
/// of a model with a tripwire.
///
/// The net's value is the tensor in `[h][w][c]` order. Batch norms and activations fold into the operations before them.
///
/// # Errors
/// The tensor is unknown, an operation on the way has no counterpart in a net ([`OnnxError::Unsupported`] names it), or a
/// node is malformed. What cannot be lowered can still run through [`super::TractModel`].
pub fn lower(model: &Model, cut: Option<&str>) -> Result<OwnedNet, OnnxError> {
    let (target, nodes) = model.needed(cut)?;
    let mut builder = NetBuilder::new();
    let id = builder.input(model.input_shape());
    let values = HashMap::from([(model.input_name().to_string(), Value::Live(Live { id, rank: 4, pad: [0; 4] }))]);
    let mut lowering = Lowering { model, builder, values };
    lowering.nodes(nodes.iter().copied(), 0)?;
    let Some(Value::Live(live)) = lowering.values.get(&target).cloned() else {
        return Err(OnnxError::Graph(format!("tensor `{target}` does not depend on the picture")));
    };
    let shape = lowering.shape(live);
    if live.pad != [0; 4] || (live.rank < 4 && shape.h * shape.w > 1) {
        let why = format!("tensor `{target}` is a padded or flattened feature map: cut at the tensor before it");
        return Err(OnnxError::Graph(why));
    }
    lowering.builder.finish(live.id).map_err(|source| OnnxError::Net { node: target, source })
}

/// A value that depends on the picture.
#[derive(Clone, Copy)]
pub(super) struct Live {
    pub(super) id: ValueId,
    /// Dimensions in the file: 4 `[1, c, h, w]`, 3 `[1, c, 1]`, 2 `[1, c * h * w]`.
    pub(super) rank: u8,
    /// Zeros around the map that the next window must add: above, left, below, right.
    pub(super) pad: [u32; 4],
}

/// What a tensor name stands for.
#[derive(Clone)]
pub(super) enum Value {
    Live(Live),
    Const(Rc<Const>),
}

pub(super) struct Lowering<'a> {
    model: &'a Model,
    pub(super) builder: NetBuilder,
    values: HashMap<String, Value>,
}

impl Lowering<'_> {
    fn nodes<'n>(&mut self, nodes: impl Iterator<Item = &'n pb::NodeProto>, depth: u32) -> Result<(), OnnxError> {
        for node in nodes {
            if !matches!(&*node.domain, "" | "ai.onnx") {
                return Err(unsupported(node, format!("it is of the domain `{}`", node.domain)));
            }
            let name = node.output.first().ok_or_else(|| bad(node, "it has no output"))?;
            if node.op_type == "If" {
                self.branch(node, depth)?;
            } else {
                let value = self.node(node)?;
                self.values.insert(name.clone(), value);
            }
        }
        Ok(())
    }

    /// An `If` whose condition is constant is the branch it takes.
    fn branch(&mut self, node: &pb::NodeProto, depth: u32) -> Result<(), OnnxError> {
        let condition = self.constant(node, 0)?;
        let taken = match condition.as_deref().and_then(Const::integers) {
            Some(&[0]) => "else_branch",
            Some(&[_]) => "then_branch",
            _ => return Err(unsupported(node, "its condition is not constant")),
        };
        if depth == MAX_DEPTH {
            return Err(unsupported(node, "control flow is nested too deeply"));
        }
        let graph = super::node::attribute(node, taken).and_then(|a| a.g.as_ref());
        let graph = graph.ok_or_else(|| bad(node, format!("it has no `{taken}`")))?;
        for tensor in &graph.initializer {
            self.values.insert(tensor.name.clone(), Value::Const(Rc::new(Const::decode(tensor)?)));
        }
        self.nodes(graph.node.iter(), depth + 1)?;
        for (inner, outer) in graph.output.iter().zip(&node.output) {
            let value = self.named(node, &inner.name)?;
            self.values.insert(outer.clone(), value);
        }
        Ok(())
    }

    fn node(&mut self, node: &pb::NodeProto) -> Result<Value, OnnxError> {
        let inputs = (0..node.input.len()).map(|i| self.input(node, i)).collect::<Result<Vec<_>, _>>()?;
        let all_constant = inputs.iter().flatten().all(|v| matches!(v, Value::Const(_)));
        if all_constant {
            let constants: Vec<Option<&Const>> = (inputs.iter())
                .map(|v| match v {
                    Some(Value::Const(c)) => Some(&**c),
                    _ => None,
                })
                .collect();
            return Ok(Value::Const(Rc::new(constant::fold(node, &constants)?)));
        }
        Ok(Value::Live(match &*node.op_type {
            "Shape" => {
                let x = self.any(node, 0)?;
                let dims = self.dims(x);
                // From opset 15 on it may be a part of them.
                let place =
                    |v: i64| (if v < 0 { v.saturating_add(dims.len() as i64) } else { v }).clamp(0, dims.len() as i64);
                let (first, last) = (place(int(node, "start", 0)) as usize, place(int(node, "end", i64::MAX)) as usize);
                let part = dims.get(first..last).unwrap_or_default();
                return Ok(Value::Const(Rc::new(Const::list(part.iter().map(|&d| d as i64).collect()))));
            }
            "Conv" => self.conv(node)?,
            "MaxPool" | "AveragePool" | "GlobalMaxPool" | "GlobalAveragePool" | "ReduceMean" => self.pool(node)?,
            "Gemm" | "MatMul" => self.linear(node)?,
            "BatchNormalization" => self.batch_norm(node)?,
            "Add" | "Sub" | "Mul" | "Div" | "Sum" => self.binary(node)?,
            "Concat" => self.concat(node)?,
            "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze" => self.view(node)?,
            "Pad" => self.pad(node)?,
            "Identity" => self.any(node, 0)?,
            "Dropout" => match self.constant(node, 2)?.as_deref().map(Const::integers) {
                None | Some(Some(&[0])) => self.any(node, 0)?,
                Some(_) => return Err(unsupported(node, "it is in training mode: export the model for inference")),
            },
            "Cast" if int(node, "to", 0) == pb::tensor_proto::DataType::Float as i64 => self.any(node, 0)?,
            "Cast" => return Err(unsupported(node, "values other than f32")),
            "Softmax" | "LogSoftmax" => {
                let before = node.input.first().map_or("", String::as_str);
                return Err(unsupported(node, format!("probabilities are not needed: cut at its input `{before}`")));
            }
            _ => self.activation(node)?,
        }))
    }

    /// Input number `i`: `None` if absent.
    pub(super) fn input(&mut self, node: &pb::NodeProto, i: usize) -> Result<Option<Value>, OnnxError> {
        match node.input.get(i) {
            Some(name) if !name.is_empty() => self.named(node, name).map(Some),
            _ => Ok(None),
        }
    }

    fn named(&mut self, node: &pb::NodeProto, name: &str) -> Result<Value, OnnxError> {
        if let Some(value) = self.values.get(name) {
            return Ok(value.clone());
        }
        let tensor = self.model.initializer(name);
        let tensor = tensor.ok_or_else(|| unsupported(node, format!("it reads `{name}`, which is no first output")))?;
        let value = Value::Const(Rc::new(Const::decode(tensor)?));
        self.values.insert(name.into(), value.clone());
        Ok(value)
    }

    /// Input number `i`, which depends on the picture; padding around it may be pending.
    fn any(&mut self, node: &pb::NodeProto, i: usize) -> Result<Live, OnnxError> {
        match self.input(node, i)? {
            Some(Value::Live(live)) => Ok(live),
            Some(Value::Const(_)) => Err(unsupported(node, format!("its input {i} is constant"))),
            None => Err(bad(node, format!("its input {i} is missing"))),
        }
    }

    /// Input number `i`, which depends on the picture.
    pub(super) fn live(&mut self, node: &pb::NodeProto, i: usize) -> Result<Live, OnnxError> {
        match self.any(node, i)? {
            live if live.pad == [0; 4] => Ok(live),
            _ => Err(unsupported(node, "it follows a Pad; only a convolution or average pooling can take one in")),
        }
    }

    /// Input number `i`, a feature map of rank 4.
    fn map(&mut self, node: &pb::NodeProto, i: usize) -> Result<(Live, Shape), OnnxError> {
        let live = self.any(node, i)?;
        match live.rank {
            4 => Ok((live, self.shape(live))),
            rank => Err(unsupported(node, format!("its input has rank {rank}, not [N, C, H, W]"))),
        }
    }

    /// Input number `i`, if it is there and constant.
    pub(super) fn constant(&mut self, node: &pb::NodeProto, i: usize) -> Result<Option<Rc<Const>>, OnnxError> {
        match self.input(node, i)? {
            None => Ok(None),
            Some(Value::Const(c)) => Ok(Some(c)),
            Some(Value::Live(_)) => Err(unsupported(node, format!("its input {i} is not constant"))),
        }
    }

    /// Input number `i`, constant floats of length `len`.
    pub(super) fn vector(&mut self, node: &pb::NodeProto, i: usize, len: usize) -> Result<Vec<f32>, OnnxError> {
        let c = self.constant(node, i)?.ok_or_else(|| bad(node, format!("its input {i} is missing")))?;
        let list = c.floats().ok_or_else(|| unsupported(node, format!("its input {i} is not f32")))?;
        match list.len() == len {
            true => Ok(list.to_vec()),
            false => Err(bad(node, format!("its input {i} holds {} values where {len} are needed", list.len()))),
        }
    }

    /// The shape of a value in the net.
    pub(super) fn shape(&self, live: Live) -> Shape {
        self.builder.shape(live.id).unwrap_or(Shape::new(1, 1, 1))
    }

    /// The dimensions a value has in the file.
    fn dims(&self, live: Live) -> Vec<usize> {
        let s = self.shape(live);
        let [top, left, bottom, right] = live.pad;
        let (h, w, c) = (s.h + top + bottom, s.w + left + right, s.c);
        match live.rank {
            4 => vec![1, c as usize, h as usize, w as usize],
            3 => vec![1, c as usize, 1],
            _ => vec![1, s.len()],
        }
    }

    /// Turns the net's refusal into an error that names the node.
    pub(super) fn built(&self, node: &pb::NodeProto, id: Result<ValueId, BuildError>) -> Result<ValueId, OnnxError> {
        id.map_err(|source| OnnxError::Net { node: label(node), source })
    }

    fn conv(&mut self, node: &pb::NodeProto) -> Result<Live, OnnxError> {
        let (x, shape) = self.map(node, 0)?;
        let weight = self.constant(node, 1)?.ok_or_else(|| bad(node, "it has no weight"))?;
        let (&[cout, per_group, kh, kw], Some(w)) = (&*weight.dims, weight.floats()) else {
            return Err(unsupported(node, format!("a weight of dimensions {:?}: only 2-D, f32", weight.dims)));
        };
        let groups = int(node, "group", 1);
        let channels = i64::try_from(per_group).ok().and_then(|c| c.checked_mul(groups));
        if groups < 1 || channels != Some(i64::from(shape.c)) || cout as i64 % groups != 0 || w.is_empty() {
            let why = format!("a weight {:?} in {groups} groups over {} channels", weight.dims, shape.c);
            return Err(bad(node, why));
        }
        if kh as i64 > 4096 || kw as i64 > 4096 {
            return Err(unsupported(node, format!("a kernel of {kh} x {kw}")));
        }
        let kernel = [kh as u32, kw as u32];
        if sides(node, "kernel_shape", Some(kernel))? != kernel {
            return Err(bad(node, "`kernel_shape` does not match the weight"));
        }
        if sides(node, "dilations", Some([1, 1]))? != [1, 1] {
            return Err(unsupported(node, "dilations other than 1"));
        }
        let window = self.window(node, x, shape, kernel)?;
        // [cout][cin / g][kh][kw] -> [kh][kw][cin / g][cout]
        let area = kh * kw;
        let mut turned = vec![0.0; w.len()];
        for (o, of_output) in w.chunks_exact(per_group * area).enumerate() {
            for (i, of_input) in of_output.chunks_exact(area).enumerate() {
                for (k, &v) in of_input.iter().enumerate() {
                    turned[(k * per_group + i) * cout + o] = v;
                }
            }
        }
        let bias = match self.input(node, 2)? {
            Some(_) => Some(self.vector(node, 2, cout)?),
            None => None,
        };
        let id = self.builder.conv(x.id, window, groups as u32, turned, bias, Activation::None);
        Ok(Live { id: self.built(node, id)?, rank: 4, pad: [0; 4] })
    }

    /// The window of a convolution or pooling, its padding made explicit.
    fn window(&self, node: &pb::NodeProto, x: Live, shape: Shape, kernel: [u32; 2]) -> Result<Window, OnnxError> {
        let stride = sides(node, "strides", Some([1, 1]))?;
        let mut pad = match text(node, "auto_pad") {
            b"" | b"NOTSET" => sides(node, "pads", Some([0; 4]))?,
            b"VALID" => [0; 4],
            same @ (b"SAME_UPPER" | b"SAME_LOWER") => {
                let mut pad = [0; 4];
                let [top, left, bottom, right] = x.pad;
                for (i, side) in [shape.h + top + bottom, shape.w + left + right].into_iter().enumerate() {
                    let out = side.div_ceil(stride[i].max(1));
                    let total = ((out - 1) * stride[i] + kernel[i]).saturating_sub(side);
                    let small = total / 2;
                    let (first, last) =
                        if same == b"SAME_UPPER" { (small, total - small) } else { (total - small, small) };
                    (pad[i], pad[i + 2]) = (first, last);
                }
                pad
            }
            other => return Err(bad(node, format!("`auto_pad` is {}", String::from_utf8_lossy(other)))),
        };
        pad.iter_mut().zip(x.pad).for_each(|(p, pending)| *p += pending);
        Ok(Window { kernel, stride, pad })
    }

    fn pool(&mut self, node: &pb::NodeProto) -> Result<Live, OnnxError> {
        let (x, shape) = self.map(node, 0)?;
        let whole = Window { kernel: [shape.h, shape.w], stride: [1, 1], pad: [0; 4] };
        if !matches!(&*node.op_type, "MaxPool" | "AveragePool") {
            self.live(node, 0)?;
        }
        let (id, rank) = match &*node.op_type {
            "GlobalAveragePool" => (self.builder.global_avg_pool(x.id), 4),
            "GlobalMaxPool" => (self.builder.max_pool(x.id, whole), 4),
            "ReduceMean" => {
                let second = self.constant(node, 1)?;
                let mut over = constant::axes(node, second.as_deref()).unwrap_or_default();
                over.iter_mut().for_each(|a| *a += if *a < 0 { 4 } else { 0 });
                over.sort_unstable();
                if over != [2, 3] {
                    return Err(unsupported(node, "a mean over anything but rows and columns together"));
                }
                (self.builder.global_avg_pool(x.id), if int(node, "keepdims", 1) == 0 { 2 } else { 4 })
            }
            kind => {
                let kernel = sides(node, "kernel_shape", None)?;
                if sides(node, "dilations", Some([1, 1]))? != [1, 1] {
                    return Err(unsupported(node, "dilations other than 1"));
                }
                let window = self.window(node, x, shape, kernel)?;
                let Window { pad: [top, left, bottom, right], stride, .. } = window;
                let (rows, columns) = (shape.h + top + bottom, shape.w + left + right);
                // Rounding up only differs where the last window does not end at the border.
                let even = |side: u32, i: usize| side.checked_sub(kernel[i]).is_some_and(|r| r % stride[i].max(1) == 0);
                if int(node, "ceil_mode", 0) != 0 && !(even(rows, 0) && even(columns, 1)) {
                    return Err(unsupported(node, "`ceil_mode` 1"));
                }
                let count_pad = int(node, "count_include_pad", 0) != 0;
                let own = window.pad != x.pad;
                let padded = x.pad != [0; 4];
                match kind {
                    "MaxPool" if padded => return Err(unsupported(node, "it follows a Pad with zeros")),
                    "MaxPool" => (self.builder.max_pool(x.id, window), 4),
                    _ if padded && own && !count_pad => return Err(unsupported(node, "it follows a Pad")),
                    _ => (self.builder.avg_pool(x.id, window, count_pad || padded), 4),
                }
            }
        };
        Ok(Live { id: self.built(node, id)?, rank, pad: [0; 4] })
    }

    fn linear(&mut self, node: &pb::NodeProto) -> Result<Live, OnnxError> {
        let x = self.live(node, 0)?;
        let shape = self.shape(x);
        let weight = self.constant(node, 1)?.ok_or_else(|| bad(node, "it has no second matrix"))?;
        let (&[rows, columns], Some(w), 2) = (&*weight.dims, weight.floats(), x.rank) else {
            return Err(unsupported(node, "only [N, in] by a constant matrix"));
        };
        let gemm = node.op_type == "Gemm";
        if gemm && int(node, "transA", 0) != 0 {
            return Err(unsupported(node, "`transA` 1"));
        }
        let turned = gemm && int(node, "transB", 0) != 0;
        let (inputs, outputs) = if turned { (columns, rows) } else { (rows, columns) };
        if inputs != shape.len() || outputs == 0 {
            return Err(bad(node, format!("a matrix {:?} over {} values", weight.dims, shape.len())));
        }
        let alpha = if gemm { float(node, "alpha", 1.0) } else { 1.0 };
        let (area, channels) = ((shape.h * shape.w) as usize, shape.c as usize);
        let mut matrix = Vec::with_capacity(w.len());
        // Row `pixel * channels + c` of the net is row `c * area + pixel` of the file.
        for pixel in 0..area {
            for row in (0..channels).map(|c| c * area + pixel) {
                matrix.extend(
                    (0..outputs).map(|o| alpha * w[if turned { o * columns + row } else { row * columns + o }]),
                );
            }
        }
        let bias = match if gemm { self.constant(node, 2)? } else { None } {
            Some(c) => {
                let list = c.floats().ok_or_else(|| unsupported(node, "a bias that is not f32"))?;
                let beta = float(node, "beta", 1.0);
                match list {
                    [one] => Some(vec![beta * one; outputs]),
                    many if many.len() == outputs && c.dims.last() == Some(&outputs) => {
                        Some(many.iter().map(|v| beta * v).collect())
                    }
                    _ => return Err(unsupported(node, format!("a bias of dimensions {:?}", c.dims))),
                }
            }
            None => None,
        };
        let id = self.builder.linear(x.id, matrix, bias, Activation::None);
        Ok(Live { id: self.built(node, id)?, rank: 2, pad: [0; 4] })
    }

    fn concat(&mut self, node: &pb::NodeProto) -> Result<Live, OnnxError> {
        let mut joined = self.live(node, 0)?;
        for i in 1..node.input.len() {
            let next = self.live(node, i)?;
            let (a, b) = (self.shape(joined), self.shape(next));
            if joined.rank != next.rank || (joined.rank < 4 && (a.h * a.w > 1 || b.h * b.w > 1)) {
                return Err(unsupported(node, "it joins flattened feature maps"));
            }
            let id = self.builder.concat(joined.id, next.id);
            joined.id = self.built(node, id)?;
        }
        match constant::axis(node, int(node, "axis", 1), joined.rank.into())? {
            1 => Ok(joined),
            _ => Err(unsupported(node, "it joins along anything but channels")),
        }
    }

    /// Flatten and its kin: the elements stay, the dimensions change.
    fn view(&mut self, node: &pb::NodeProto) -> Result<Live, OnnxError> {
        let x = self.live(node, 0)?;
        let second = self.constant(node, 1)?;
        let dims = constant::reshaped(node, &self.dims(x), second.as_deref())?;
        let s = self.shape(x);
        let (h, w, c) = (s.h as usize, s.w as usize, s.c as usize);
        let rank = match *dims {
            [1, c2, h2, w2] if [c2, h2, w2] == [c, h, w] => 4,
            [1, c2, 1] if c2 == s.len() && h * w == 1 => 3,
            [1, n] if n == s.len() => 2,
            _ => return Err(unsupported(node, format!("it makes {dims:?} of a {c} x {h} x {w} map"))),
        };
        Ok(Live { rank, ..x })
    }

    fn pad(&mut self, node: &pb::NodeProto) -> Result<Live, OnnxError> {
        let (x, _) = self.map(node, 0)?;
        if !matches!(text(node, "mode"), b"" | b"constant") {
            return Err(unsupported(node, "it pads with something other than a constant"));
        }
        let value = self.constant(node, 2)?;
        let zero = match value.as_deref() {
            Some(c) => matches!(c.floats(), Some([0.0])),
            None => float(node, "value", 0.0) == 0.0,
        };
        if !zero || self.input(node, 3)?.is_some() {
            return Err(unsupported(node, "it pads with something other than zeros, or on chosen axes"));
        }
        let listed = self.constant(node, 1)?;
        let listed = listed.as_deref().and_then(Const::integers).or_else(|| super::node::ints(node, "pads"));
        let Some(&[0, 0, top, left, 0, 0, bottom, right]) = listed else {
            return Err(unsupported(node, "it pads other axes than rows and columns"));
        };
        let mut pad = x.pad;
        for (p, v) in pad.iter_mut().zip([top, left, bottom, right]) {
            match u32::try_from(v) {
                Ok(v) if v <= 4096 && *p <= 4096 => *p += v,
                _ => return Err(unsupported(node, format!("padding by {v}"))),
            }
        }
        Ok(Live { pad, ..x })
    }
}
