//! Writing ONNX: a builder of nodes, and a net's operations turned back into them.

use super::OnnxError;
use super::graph::Model;
use crate::net::{Activation, Net, Op, Place, Slot, Window};
use crate::shape::Shape;
use prost::Message;
use std::prelude::v1::*;
use tract_onnx::pb;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension::Value as Dim};

/// The operator set written.
const OPSET: i64 = 17;
/// The file format version written.
const IR_VERSION: i64 = 8;
/// The batch dimension's name.
const BATCH: &str = "N";

/// Collects the nodes and weights of one ONNX graph. Every method that adds a node returns its output's name.
///
/// Weights are in ONNX order. A weight whose length does not match its dimensions is reported by [`OnnxBuilder::finish`].
///
/// ```
/// use stemguard_runtime::onnx::{Model, OnnxBuilder};
/// use stemguard_runtime::shape::Shape;
///
/// let mut b = OnnxBuilder::new();
/// b.input("images", Shape::new(4, 4, 1));
/// let pooled = b.global_average_pool("images");
/// let flat = b.flatten(&pooled);
/// let logits = b.gemm(&flat, &[1.0, -1.0], 2, Some(&[0.5, 0.0]));
/// b.rename(&logits, "logits");
/// b.output("logits", &[2]);
/// let model = Model::from_bytes(&b.finish()?)?;
/// assert_eq!(model.output_names(), ["logits"]);
/// # Ok::<(), stemguard_runtime::onnx::OnnxError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct OnnxBuilder {
    graph: pb::GraphProto,
    count: usize,
    fault: Option<String>,
}

impl OnnxBuilder {
    /// No nodes yet.
    pub fn new() -> Self {
        let graph = pb::GraphProto { name: "stemguard".into(), ..Default::default() };
        Self { graph, count: 0, fault: None }
    }

    /// An input of dimensions `[N, C, H, W]`, `f32`, N free.
    pub fn input(&mut self, name: &str, shape: Shape) {
        let dims = [shape.c, shape.h, shape.w].map(|side| Dim::DimValue(side.into()));
        self.graph.input.push(value_info(name, [Dim::DimParam(BATCH.into())].into_iter().chain(dims)));
    }

    /// Names a tensor as output, of dimensions `[N]` and `dims`, `f32`.
    pub fn output(&mut self, name: &str, dims: &[usize]) {
        let dims = dims.iter().map(|&d| Dim::DimValue(d as i64));
        self.graph.output.push(value_info(name, [Dim::DimParam(BATCH.into())].into_iter().chain(dims)));
    }

    /// Renames a tensor wherever it is written or read.
    pub fn rename(&mut self, from: &str, to: &str) {
        for node in &mut self.graph.node {
            for name in node.output.iter_mut().chain(&mut node.input).filter(|name| *name == from) {
                *name = to.into();
            }
        }
    }

    /// A constant `f32` tensor.
    pub fn constant(&mut self, dims: &[usize], data: &[f32]) -> String {
        let name = self.fresh("w");
        if dims.iter().product::<usize>() != data.len() && self.fault.is_none() {
            self.fault = Some(format!("constant `{name}`: {} values for dimensions {dims:?}", data.len()));
        }
        self.graph.initializer.push(pb::TensorProto {
            dims: dims.iter().map(|&d| d as i64).collect(),
            data_type: DataType::Float as i32,
            raw_data: data.iter().flat_map(|v| v.to_le_bytes()).collect(),
            name: name.clone(),
            ..Default::default()
        });
        name
    }

    /// Convolution: weight `[cout][cin / groups][kh][kw]`, bias `[cout]`.
    pub fn conv(
        &mut self,
        x: &str,
        weight: &[f32],
        dims: [usize; 4],
        bias: Option<&[f32]>,
        window: Window,
        groups: u32,
    ) -> String {
        let mut inputs = vec![x.to_string(), self.constant(&dims, weight)];
        inputs.extend(bias.map(|bias| self.constant(&[dims[0]], bias)));
        let mut attributes = window_attributes(window);
        attributes.push(int("group", groups.into()));
        self.node("Conv", inputs, attributes)
    }

    /// Transposed convolution: weight `[cin][cout][kh][kw]`, bias `[cout]`, `output_padding` rows below and columns right.
    pub fn conv_transpose(
        &mut self,
        x: &str,
        weight: &[f32],
        dims: [usize; 4],
        bias: Option<&[f32]>,
        window: Window,
        output_padding: [u32; 2],
    ) -> String {
        let mut inputs = vec![x.to_string(), self.constant(&dims, weight)];
        inputs.extend(bias.map(|bias| self.constant(&[dims[1]], bias)));
        let mut attributes = window_attributes(window);
        attributes.push(ints("output_padding", output_padding.map(i64::from)));
        self.node("ConvTranspose", inputs, attributes)
    }

    /// Batch normalisation in inference: (x - mean) / sqrt(variance + epsilon) * scale + shift, each `[c]`.
    pub fn batch_norm(
        &mut self,
        x: &str,
        scale: &[f32],
        shift: &[f32],
        mean: &[f32],
        variance: &[f32],
        epsilon: f32,
    ) -> String {
        let mut inputs = vec![x.to_string()];
        inputs.extend([scale, shift, mean, variance].map(|list| self.constant(&[list.len()], list)));
        self.node("BatchNormalization", inputs, vec![real("epsilon", epsilon)])
    }

    /// An activation; [`Activation::None`] adds no node and returns `x`.
    pub fn activation(&mut self, x: &str, act: Activation) -> String {
        let (op, attributes) = match act {
            Activation::None => return x.into(),
            Activation::Relu => ("Relu", vec![]),
            Activation::Relu6 => return self.clip(x, 0.0, 6.0),
            Activation::Leaky(slope) => ("LeakyRelu", vec![real("alpha", slope)]),
            Activation::HardSwish => ("HardSwish", vec![]),
            Activation::HardSigmoid => ("HardSigmoid", vec![real("alpha", 1.0 / 6.0), real("beta", 0.5)]),
            Activation::Sigmoid => ("Sigmoid", vec![]),
        };
        self.node(op, vec![x.into()], attributes)
    }

    /// min(max(x, low), high)
    pub fn clip(&mut self, x: &str, low: f32, high: f32) -> String {
        let inputs = vec![x.to_string(), self.constant(&[], &[low]), self.constant(&[], &[high])];
        self.node("Clip", inputs, vec![])
    }

    /// a + b
    pub fn add(&mut self, a: &str, b: &str) -> String {
        self.node("Add", vec![a.into(), b.into()], vec![])
    }

    /// a * b
    pub fn mul(&mut self, a: &str, b: &str) -> String {
        self.node("Mul", vec![a.into(), b.into()], vec![])
    }

    /// Side by side along channels.
    pub fn concat(&mut self, parts: &[&str]) -> String {
        self.node("Concat", parts.iter().map(|&p| p.into()).collect(), vec![int("axis", 1)])
    }

    /// The largest value in each window.
    pub fn max_pool(&mut self, x: &str, window: Window) -> String {
        self.node("MaxPool", vec![x.into()], window_attributes(window))
    }

    /// The mean of each window; `count_pad`: padding counts in the divisor.
    pub fn average_pool(&mut self, x: &str, window: Window, count_pad: bool) -> String {
        let mut attributes = window_attributes(window);
        attributes.push(int("count_include_pad", count_pad.into()));
        self.node("AveragePool", vec![x.into()], attributes)
    }

    /// The mean over rows and columns: `[N, C, 1, 1]`.
    pub fn global_average_pool(&mut self, x: &str) -> String {
        self.node("GlobalAveragePool", vec![x.into()], vec![])
    }

    /// `[N, C, H, W]` to `[N, C * H * W]`.
    pub fn flatten(&mut self, x: &str) -> String {
        self.node("Flatten", vec![x.into()], vec![int("axis", 1)])
    }

    /// `[N, C]` to `[N, C, 1, 1]`.
    pub fn unflatten(&mut self, x: &str) -> String {
        let axes = self.integers(&[2], &[2, 3]);
        self.node("Unsqueeze", vec![x.into(), axes], vec![])
    }

    /// x weight^T + bias of `[N, in]`: weight `[out][in]`, bias `[out]`.
    pub fn gemm(&mut self, x: &str, weight: &[f32], outputs: usize, bias: Option<&[f32]>) -> String {
        let inputs = weight.len().checked_div(outputs).unwrap_or(0);
        let mut names = vec![x.to_string(), self.constant(&[outputs, inputs], weight)];
        names.extend(bias.map(|bias| self.constant(&[outputs], bias)));
        self.node("Gemm", names, vec![int("transB", 1)])
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// A constant's length does not match its dimensions, or the file exceeds [`Model::MAX_BYTES`].
    pub fn finish(self) -> Result<Vec<u8>, OnnxError> {
        if let Some(fault) = self.fault {
            return Err(OnnxError::Graph(fault));
        }
        let model = pb::ModelProto {
            ir_version: IR_VERSION,
            opset_import: vec![pb::OperatorSetIdProto { domain: String::new(), version: OPSET }],
            producer_name: "stemguard".into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            graph: Some(self.graph),
            ..Default::default()
        };
        match model.encoded_len() as u64 {
            n if n > Model::MAX_BYTES => Err(OnnxError::TooLarge(n)),
            _ => Ok(model.encode_to_vec()),
        }
    }

    pub(super) fn node(&mut self, op: &str, input: Vec<String>, attribute: Vec<pb::AttributeProto>) -> String {
        let name = self.fresh(op);
        self.graph.node.push(pb::NodeProto {
            input,
            output: vec![name.clone()],
            name: name.clone(),
            op_type: op.into(),
            attribute,
            ..Default::default()
        });
        name
    }

    /// A constant of whole numbers.
    pub(super) fn integers(&mut self, dims: &[usize], data: &[i64]) -> String {
        let name = self.fresh("integers");
        self.graph.initializer.push(pb::TensorProto {
            dims: dims.iter().map(|&d| d as i64).collect(),
            data_type: DataType::Int64 as i32,
            raw_data: data.iter().flat_map(|v| v.to_le_bytes()).collect(),
            name: name.clone(),
            ..Default::default()
        });
        name
    }

    fn fresh(&mut self, kind: &str) -> String {
        self.count += 1;
        format!("{kind}_{}", self.count)
    }
}

/// Adds a net's operations to a graph; `input` names the tensor it reads, `[N, C, H, W]`. Returns the output's name and its
/// dimensions without the batch: `[C, H, W]`, or `[C]` where a linear layer makes it.
///
/// # Errors
/// The net reads a value nothing wrote, which a checked net never does.
pub fn export_net(net: &Net<'_>, builder: &mut OnnxBuilder, input: &str) -> Result<(String, Vec<usize>), OnnxError> {
    let picture = Written { name: input.into(), flat: false };
    let mut export = Export { net: *net, builder, written: vec![(Place::Input, picture)] };
    for op in net.ops() {
        let value = export.op(&op)?;
        let place = op.output().place;
        export.written.retain(|(p, _)| *p != place);
        export.written.push((place, value));
    }
    let last = export.written.pop().ok_or(OnnxError::NoGraph)?.1;
    let Shape { h, w, c } = net.output();
    let dims = if last.flat { vec![c as usize] } else { vec![c as usize, h as usize, w as usize] };
    Ok((last.name, dims))
}

/// One file of a stem and what follows it: input `images`, the stem's output `features`, and the final `logits`, which
/// `head` adds to the graph and returns with their number.
///
/// # Errors
/// Those of [`export_net`] and [`OnnxBuilder::finish`].
pub fn merged(
    stem: &Net<'_>,
    head: impl FnOnce(&mut OnnxBuilder, &str) -> (String, usize),
) -> Result<Vec<u8>, OnnxError> {
    let mut builder = OnnxBuilder::new();
    builder.input("images", stem.input());
    let (features, _) = export_net(stem, &mut builder, "images")?;
    builder.rename(&features, "features");
    let (logits, classes) = head(&mut builder, "features");
    builder.rename(&logits, "logits");
    builder.output("logits", &[classes]);
    builder.finish()
}

/// A tensor an operation of the net has written.
#[derive(Clone)]
struct Written {
    name: String,
    /// `[N, C]` rather than `[N, C, 1, 1]`.
    flat: bool,
}

struct Export<'a> {
    net: Net<'a>,
    builder: &'a mut OnnxBuilder,
    written: Vec<(Place, Written)>,
}

impl Export<'_> {
    fn op(&mut self, op: &Op) -> Result<Written, OnnxError> {
        let map = |name| Written { name, flat: false };
        let (value, act) = match *op {
            Op::Conv { x, window, groups, weight, bias, act, y } => {
                let x_name = self.map(x)?;
                let (cout, area) = (y.shape.c as usize, (window.kernel[0] * window.kernel[1]) as usize);
                let per_group = (x.shape.c / groups.max(1)) as usize;
                let w = self.net.span(weight);
                let mut turned = Vec::with_capacity(w.len());
                for o in 0..cout {
                    for i in 0..per_group {
                        turned.extend((0..area).filter_map(|k| w.get((k * per_group + i) * cout + o)));
                    }
                }
                let dims = [cout, per_group, window.kernel[0] as usize, window.kernel[1] as usize];
                let bias = bias.map(|span| self.net.span(span));
                (map(self.builder.conv(&x_name, &turned, dims, bias, window, groups)), act)
            }
            Op::Affine { x, scale, shift, act, .. } => {
                let value = self.read(x)?;
                let span = |span: Option<_>| span.map(|span| self.net.span(span));
                let (scale, shift) = (span(scale), span(shift));
                let idle = (scale, shift, act) == (None, None, Activation::None);
                (self.affine(value, x.shape.c as usize, scale, shift, idle), act)
            }
            Op::Add { a, b, act, .. } => {
                let (a, b, flat) = self.both(a, b)?;
                (Written { name: self.builder.add(&a, &b), flat }, act)
            }
            Op::Mul { a, b, act, .. } => {
                let (a, b, flat) = self.both(a, b)?;
                (Written { name: self.builder.mul(&a, &b), flat }, act)
            }
            Op::Concat { a, b, .. } => {
                let (a, b, flat) = self.both(a, b)?;
                (Written { name: self.builder.concat(&[&a, &b]), flat }, Activation::None)
            }
            Op::MaxPool { x, window, .. } => {
                let x = self.map(x)?;
                (map(self.builder.max_pool(&x, window)), Activation::None)
            }
            Op::AvgPool { x, window, count_pad, .. } => {
                let x = self.map(x)?;
                (map(self.builder.average_pool(&x, window, count_pad)), Activation::None)
            }
            Op::GlobalAvgPool { x, .. } => {
                let x = self.map(x)?;
                (map(self.builder.global_average_pool(&x)), Activation::None)
            }
            Op::Linear { x, y, weight, bias, act } => {
                let value = self.read(x)?;
                let flat = if value.flat { value.name } else { self.builder.flatten(&value.name) };
                let (outputs, w) = (y.shape.c as usize, self.net.span(weight));
                let (area, channels) = ((x.shape.h * x.shape.w) as usize, x.shape.c as usize);
                let mut turned = Vec::with_capacity(w.len());
                // Column `c * area + pixel` of the file is row `pixel * channels + c` of the net.
                for o in 0..outputs {
                    for c in 0..channels {
                        turned.extend((0..area).filter_map(|p| w.get((p * channels + c) * outputs + o)));
                    }
                }
                let bias = bias.map(|span| self.net.span(span));
                (Written { name: self.builder.gemm(&flat, &turned, outputs, bias), flat: true }, act)
            }
        };
        Ok(Written { name: self.builder.activation(&value.name, act), ..value })
    }

    fn affine(
        &mut self,
        x: Written,
        channels: usize,
        scale: Option<&[f32]>,
        shift: Option<&[f32]>,
        idle: bool,
    ) -> Written {
        if let (Some(scale), Some(shift), false) = (scale, shift, x.flat) {
            let (zero, one) = (vec![0.0; channels], vec![1.0; channels]);
            return Written { name: self.builder.batch_norm(&x.name, scale, shift, &zero, &one, 0.0), flat: false };
        }
        let dims: &[usize] = if x.flat { &[channels] } else { &[channels, 1, 1] };
        let mut name = x.name;
        if let Some(scale) = scale {
            let scale = self.builder.constant(dims, scale);
            name = self.builder.mul(&name, &scale);
        }
        if let Some(shift) = shift {
            let shift = self.builder.constant(dims, shift);
            name = self.builder.add(&name, &shift);
        }
        if idle {
            name = self.builder.node("Identity", vec![name], vec![]);
        }
        Written { name, flat: x.flat }
    }

    fn read(&self, slot: Slot) -> Result<Written, OnnxError> {
        let found = self.written.iter().find(|(place, _)| *place == slot.place);
        found.map(|(_, value)| value.clone()).ok_or_else(|| OnnxError::Graph("the net reads an unwritten value".into()))
    }

    /// A value as `[N, C, H, W]`.
    fn map(&mut self, slot: Slot) -> Result<String, OnnxError> {
        let value = self.read(slot)?;
        Ok(if value.flat { self.builder.unflatten(&value.name) } else { value.name })
    }

    /// Two values in the same rank, and whether that is `[N, C]`.
    fn both(&mut self, a: Slot, b: Slot) -> Result<(String, String, bool), OnnxError> {
        let (x, y) = (self.read(a)?, self.read(b)?);
        match x.flat && y.flat {
            true => Ok((x.name, y.name, true)),
            false => Ok((self.map(a)?, self.map(b)?, false)),
        }
    }
}

/// The description of an `f32` tensor.
pub(super) fn value_info(name: &str, dims: impl IntoIterator<Item = Dim>) -> pb::ValueInfoProto {
    let dim = dims.into_iter().map(|value| Dimension { value: Some(value), ..Default::default() }).collect();
    let tensor =
        pb::type_proto::Tensor { elem_type: DataType::Float as i32, shape: Some(pb::TensorShapeProto { dim }) };
    let kind = pb::TypeProto { value: Some(pb::type_proto::Value::TensorType(tensor)), ..Default::default() };
    pb::ValueInfoProto { name: name.into(), r#type: Some(kind), ..Default::default() }
}

fn window_attributes(window: Window) -> Vec<pb::AttributeProto> {
    vec![
        ints("kernel_shape", window.kernel.map(i64::from)),
        ints("strides", window.stride.map(i64::from)),
        ints("pads", window.pad.map(i64::from)),
    ]
}

pub(super) fn int(name: &str, i: i64) -> pb::AttributeProto {
    pb::AttributeProto { name: name.into(), r#type: AttributeType::Int as i32, i, ..Default::default() }
}

pub(super) fn ints(name: &str, list: impl Into<Vec<i64>>) -> pb::AttributeProto {
    let (name, ints) = (name.into(), list.into());
    pb::AttributeProto { name, r#type: AttributeType::Ints as i32, ints, ..Default::default() }
}

pub(super) fn real(name: &str, f: f32) -> pb::AttributeProto {
    pb::AttributeProto { name: name.into(), r#type: AttributeType::Float as i32, f, ..Default::default() }
}
