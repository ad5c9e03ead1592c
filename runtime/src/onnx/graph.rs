//! A decoded and checked ONNX file.

use super::node::{bad, ints, label};
use super::{OnnxError, wire};
use crate::shape::Shape;
use alloc::collections::BTreeSet;
use prost::Message;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::prelude::v1::*;
use tract_onnx::pb;
use tract_onnx::pb::tensor_proto::{DataLocation, DataType};
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Dim;

/// The largest absolute value of a window attribute (kernel, stride, padding, dilation).
const MAX_WINDOW: i64 = 4096;
/// The most positions in one window.
const MAX_WINDOW_AREA: i64 = 1 << 24;
/// Nesting of control flow.
const MAX_DEPTH: u32 = 16;

/// An ONNX model with one picture input: decoded, checked, ready to be lowered or run.
#[derive(Clone, Debug)]
pub struct Model {
    proto: pb::ModelProto,
    input: String,
    shape: Shape,
    opset: i64,
    outputs: Vec<String>,
    /// Which node computes a tensor.
    producer: HashMap<String, usize>,
    /// Which initializer a name means.
    constant: HashMap<String, usize>,
}

impl Model {
    /// The longest file read, in bytes.
    pub const MAX_BYTES: u64 = 1 << 30;
    /// The largest height, width and channel count of the input.
    pub const MAX_SIDE: u32 = 4096;

    /// Reads and checks a file.
    ///
    /// # Errors
    /// The file cannot be read, or anything [`Model::from_bytes`] refuses.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, OnnxError> {
        use std::io::Read;
        let path = path.as_ref();
        let failed = |source| OnnxError::File { path: path.into(), source };
        let file = std::fs::File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        if length > Self::MAX_BYTES {
            return Err(OnnxError::TooLarge(length));
        }
        let mut bytes = Vec::new();
        file.take(Self::MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
        Self::from_bytes(&bytes)
    }

    /// Decodes and checks a file's bytes.
    ///
    /// # Errors
    /// The bytes do not decode; there is no graph; it has not exactly one input, of rank 4 (`[N, C, H, W]`, N free or 1)
    /// and `f32`; a tensor or a node is malformed, out of bounds, external or not finite; nodes are out of order.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, OnnxError> {
        if bytes.len() as u64 > Self::MAX_BYTES {
            return Err(OnnxError::TooLarge(bytes.len() as u64));
        }
        wire::check(bytes)?;
        let proto = pb::ModelProto::decode(bytes).map_err(|e| OnnxError::Undecodable(e.to_string()))?;
        let graph = proto.graph.as_ref().ok_or(OnnxError::NoGraph)?;
        let ours = |domain: &str| domain.is_empty() || domain == "ai.onnx";
        let opset = proto.opset_import.iter().find(|set| ours(&set.domain)).map_or(0, |set| set.version);

        let mut constant = HashMap::new();
        for (i, tensor) in graph.initializer.iter().enumerate() {
            constant.insert(tensor.name.clone(), i);
        }
        let (input, shape) = picture_input(graph, &constant)?;
        check_graph(graph, 0)?;

        let mut producer = HashMap::new();
        for (i, node) in graph.node.iter().enumerate() {
            for name in node.input.iter().filter(|name| !name.is_empty()) {
                if *name != input && !constant.contains_key(name) && !producer.contains_key(name) {
                    return Err(bad(node, format!("its input `{name}` is computed by no node before it")));
                }
            }
            for name in node.output.iter().filter(|name| !name.is_empty()) {
                if *name == input || constant.contains_key(name) || producer.insert(name.clone(), i).is_some() {
                    return Err(bad(node, format!("its output `{name}` is defined twice")));
                }
            }
        }
        let outputs: Vec<String> = graph.output.iter().map(|o| o.name.clone()).collect();
        if outputs.is_empty() {
            return Err(OnnxError::Graph("the graph has no output".into()));
        }
        if let Some(name) = outputs.iter().find(|name| !producer.contains_key(*name)) {
            return Err(OnnxError::Graph(format!("output `{name}` is computed by no node")));
        }
        Ok(Self { input, shape, opset, outputs, producer, constant, proto })
    }

    /// The input's name.
    pub fn input_name(&self) -> &str {
        &self.input
    }

    /// The input's shape, without the batch.
    pub fn input_shape(&self) -> Shape {
        self.shape
    }

    /// The outputs' names, in the file's order; at least one.
    pub fn output_names(&self) -> &[String] {
        &self.outputs
    }

    /// Whether the first output is what a `Softmax` gives, reshaped or not: probabilities, no logits.
    pub fn gives_probabilities(&self) -> bool {
        let by = |name: &str| self.producer.get(name).and_then(|&i| self.nodes().get(i));
        let mut node = self.outputs.first().and_then(|name| by(name));
        // Nodes read what nodes before them computed: this ends.
        while let Some(last) = node {
            match &*last.op_type {
                "Softmax" => return true,
                "Identity" | "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze" | "Cast" => {
                    node = last.input.first().and_then(|name| by(name));
                }
                _ => return false,
            }
        }
        false
    }

    /// The names of all tensors the nodes compute, in order: where a model can be cut.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.nodes().iter().flat_map(|node| &node.output).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// The version of the standard operator set; 0 if the file does not tell.
    pub fn opset(&self) -> i64 {
        self.opset
    }

    /// The name of the tool that wrote the file.
    pub fn producer_name(&self) -> &str {
        &self.proto.producer_name
    }

    /// The nodes, in order of computation.
    pub(super) fn nodes(&self) -> &[pb::NodeProto] {
        self.proto.graph.as_ref().map_or(&[], |graph| &graph.node)
    }

    /// The initializer of this name.
    pub(super) fn initializer(&self, name: &str) -> Option<&pb::TensorProto> {
        self.proto.graph.as_ref()?.initializer.get(*self.constant.get(name)?)
    }

    /// The tensor to compute, and the nodes that compute it from the input, in order.
    ///
    /// # Errors
    /// No tensor of the cut's name; no cut, and several outputs. Of `logits` and `alarm`, what a tripwire adds, the first is meant.
    pub(super) fn needed(&self, cut: Option<&str>) -> Result<(String, Vec<&pb::NodeProto>), OnnxError> {
        let target = match (cut, &*self.outputs) {
            (Some(name), _) => name,
            (None, [only]) => only,
            (None, [answer, score]) if answer == "logits" && score == "alarm" => answer,
            (None, several) => {
                let names = several.iter().take(8).map(String::as_str).collect::<Vec<_>>().join(", ");
                return Err(OnnxError::Graph(format!("the graph has several outputs: cut at one of {names}")));
            }
        };
        let Some(&last) = self.producer.get(target) else {
            return Err(OnnxError::UnknownTensor { name: target.into(), near: self.near(target) });
        };
        let nodes = self.nodes();
        let mut wanted = BTreeSet::from([last]);
        let mut open = vec![last];
        while let Some(i) = open.pop() {
            let mut names = Vec::new();
            names_read(&nodes[i], 0, &mut names);
            for name in names {
                if let Some(&from) = self.producer.get(name)
                    && from < i
                    && wanted.insert(from)
                {
                    open.push(from);
                }
            }
        }
        Ok((target.into(), wanted.into_iter().map(|i| &nodes[i]).collect()))
    }

    /// A file of its own that computes one tensor for one picture: only the nodes and weights it takes, batch 1.
    pub(super) fn subgraph(&self, cut: Option<&str>) -> Result<pb::ModelProto, OnnxError> {
        let (target, nodes) = self.needed(cut)?;
        let mut names = HashSet::new();
        for node in &nodes {
            let mut read = Vec::new();
            names_read(node, 0, &mut read);
            names.extend(read);
        }
        let full = self.proto.graph.as_ref().ok_or(OnnxError::NoGraph)?;
        let initializer = full.initializer.iter().filter(|t| names.contains(&*t.name)).cloned().collect();
        let Shape { h, w, c } = self.shape;
        let dims = [1, c, h, w].map(|side| Dim::DimValue(i64::from(side)));
        let output = pb::ValueInfoProto { name: target, ..Default::default() };
        let graph = pb::GraphProto {
            node: nodes.into_iter().cloned().collect(),
            name: full.name.clone(),
            initializer,
            input: vec![super::export::value_info(&self.input, dims)],
            output: vec![output],
            ..Default::default()
        };
        Ok(pb::ModelProto {
            ir_version: self.proto.ir_version,
            opset_import: self.proto.opset_import.clone(),
            graph: Some(graph),
            ..Default::default()
        })
    }

    /// Up to 8 tensor names that share most letter pairs with `name`, the nearest first.
    fn near(&self, name: &str) -> Vec<String> {
        let pairs = |s: &str| -> HashSet<(u8, u8)> {
            s.as_bytes().windows(2).map(|p| (p[0].to_ascii_lowercase(), p[1].to_ascii_lowercase())).collect()
        };
        let asked = pairs(name);
        let mut scored: Vec<(usize, &str)> = (self.tensor_names().take(100_000))
            .map(|other| {
                let has = pairs(other);
                (1000 * 2 * asked.intersection(&has).count() / (asked.len() + has.len()).max(1), other)
            })
            .filter(|&(score, _)| score >= 250)
            .collect();
        scored.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
        scored.into_iter().take(8).map(|(_, name)| name.into()).collect()
    }
}

/// All names a node reads, those its control flow captures included.
fn names_read<'a>(node: &'a pb::NodeProto, depth: u32, names: &mut Vec<&'a str>) {
    names.extend(node.input.iter().map(String::as_str));
    if depth < MAX_DEPTH {
        for graph in node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)) {
            names.extend(graph.output.iter().map(|o| o.name.as_str()));
            graph.node.iter().for_each(|inner| names_read(inner, depth + 1, names));
        }
    }
}

/// The one input that is no initializer.
fn picture_input(graph: &pb::GraphProto, constant: &HashMap<String, usize>) -> Result<(String, Shape), OnnxError> {
    let mut inputs = graph.input.iter().filter(|input| !constant.contains_key(&input.name));
    let input = inputs.next().ok_or_else(|| OnnxError::Graph("the graph has no input".into()))?;
    if let Some(second) = inputs.next() {
        let why =
            format!("the graph has several inputs (`{}`, `{}`, ...) where one is needed", input.name, second.name);
        return Err(OnnxError::Graph(why));
    }
    let fail = |why: String| OnnxError::Graph(format!("input `{}`: {why}", input.name));
    let kind = input.r#type.as_ref().and_then(|t| t.value.as_ref());
    let Some(pb::type_proto::Value::TensorType(kind)) = kind else { return Err(fail("it has no tensor type".into())) };
    if kind.elem_type != DataType::Float as i32 {
        return Err(fail("its elements are not f32".into()));
    }
    let dims = kind.shape.as_ref().map_or(&[][..], |shape| &shape.dim);
    let [batch, c, h, w] = dims else {
        return Err(fail(format!("it has {} dimensions where [N, C, H, W] is needed", dims.len())));
    };
    if let Some(Dim::DimValue(n)) = batch.value
        && n > 1
    {
        return Err(fail(format!("its batch is fixed at {n}: export it with a free batch or with 1")));
    }
    let side = |dim: &pb::tensor_shape_proto::Dimension, name: &str| match dim.value {
        Some(Dim::DimValue(v)) if (1..=i64::from(Model::MAX_SIDE)).contains(&v) => Ok(v as u32),
        Some(Dim::DimValue(v)) => Err(fail(format!("its {name} is {v}, not in 1..={}", Model::MAX_SIDE))),
        _ => Err(fail(format!("its {name} is not a fixed number"))),
    };
    let shape = Shape::new(side(h, "height")?, side(w, "width")?, side(c, "channel count")?);
    match shape.is_valid() {
        true => Ok((input.name.clone(), shape)),
        false => Err(fail(format!("{} x {} x {} elements are too many", shape.h, shape.w, shape.c))),
    }
}

/// Checks every tensor and attribute of a graph, and of the graphs inside it.
fn check_graph(graph: &pb::GraphProto, depth: u32) -> Result<(), OnnxError> {
    if !graph.sparse_initializer.is_empty() {
        return Err(OnnxError::Graph("sparse initializers are not supported".into()));
    }
    graph.initializer.iter().try_for_each(check_tensor)?;
    for node in &graph.node {
        check_windows(node)?;
        check_permutation(node)?;
        for attribute in &node.attribute {
            for tensor in attribute.t.iter().chain(&attribute.tensors) {
                check_tensor(tensor).map_err(|e| match e {
                    OnnxError::Initializer { why, .. } => OnnxError::Initializer { name: label(node), why },
                    OnnxError::NotFinite { .. } => OnnxError::NotFinite { name: label(node) },
                    other => other,
                })?;
            }
            for inner in attribute.g.iter().chain(&attribute.graphs) {
                if depth == MAX_DEPTH {
                    return Err(bad(node, "control flow is nested too deeply"));
                }
                check_graph(inner, depth + 1)?;
            }
        }
    }
    Ok(())
}

/// Bounds the attributes that set window sizes, and so memory and time, and checks that their lengths agree.
fn check_windows(node: &pb::NodeProto) -> Result<(), OnnxError> {
    if node.op_type.contains("Conv") || node.op_type.ends_with("Pool") {
        let lengths = ["kernel_shape", "strides", "dilations"].map(|name| ints(node, name).map(<[i64]>::len));
        let pads = ints(node, "pads").map(<[i64]>::len);
        let sides = lengths.into_iter().chain([pads.map(|n| n / 2)]).flatten();
        if sides.clone().min() != sides.max() || pads.is_some_and(|n| n % 2 != 0) {
            return Err(bad(node, "`kernel_shape`, `strides`, `dilations` and `pads` differ in their dimensions"));
        }
    }
    for (name, least) in
        [("kernel_shape", 1), ("strides", 1), ("dilations", 1), ("pads", -MAX_WINDOW), ("output_padding", 0)]
    {
        let list = ints(node, name).unwrap_or(&[]);
        if let Some(v) = list.iter().find(|v| !(least..=MAX_WINDOW).contains(*v)) {
            return Err(bad(node, format!("`{name}` holds {v}, not in {least}..={MAX_WINDOW}")));
        }
        if name == "kernel_shape" && list.iter().fold(1i64, |n, &v| n.saturating_mul(v)) > MAX_WINDOW_AREA {
            return Err(bad(node, "its window is too large"));
        }
    }
    Ok(())
}

/// Checks that a Transpose names every axis once: tract follows the cycles of what it is given without end.
fn check_permutation(node: &pb::NodeProto) -> Result<(), OnnxError> {
    let mut axes = match &*node.op_type {
        "Transpose" => ints(node, "perm").unwrap_or(&[]).to_vec(),
        _ => return Ok(()),
    };
    axes.sort_unstable();
    match axes.iter().enumerate().all(|(i, &axis)| axis == i as i64) {
        true => Ok(()),
        false => Err(bad(node, "`perm` does not name every axis once")),
    }
}

/// Checks one constant: dimensions, byte or element count, storage, finiteness.
fn check_tensor(tensor: &pb::TensorProto) -> Result<(), OnnxError> {
    let fail = |why: String| OnnxError::initializer(&tensor.name, why);
    if tensor.data_location == Some(DataLocation::External as i32) || !tensor.external_data.is_empty() {
        return Err(fail("its data lies in another file: save the model as one file".into()));
    }
    // Without values, too, products of some of the dimensions are taken later.
    let (mut count, mut most) = (1u64, 1u64);
    for &dim in &tensor.dims {
        let dim = u64::try_from(dim).map_err(|_| fail(format!("a dimension is {dim}")))?;
        count = count.saturating_mul(dim);
        most = most.saturating_mul(dim.max(1));
        if most > Shape::MAX_LEN {
            return Err(fail(format!("dimensions {:?} are too large", tensor.dims)));
        }
    }
    let kind = DataType::try_from(tensor.data_type).unwrap_or(DataType::Undefined);
    let (size, listed) = match kind {
        DataType::Float => (4, tensor.float_data.len()),
        DataType::Double => (8, tensor.double_data.len()),
        DataType::Int64 | DataType::Uint64 => (8, tensor.int64_data.len().max(tensor.uint64_data.len())),
        DataType::Int32 | DataType::Uint32 => (4, tensor.int32_data.len().max(tensor.uint64_data.len())),
        DataType::Int8 | DataType::Uint8 | DataType::Bool => (1, tensor.int32_data.len()),
        DataType::Int16 | DataType::Uint16 | DataType::Float16 | DataType::Bfloat16 => (2, tensor.int32_data.len()),
        DataType::String => (0, tensor.string_data.len()),
        other => return Err(fail(format!("elements of type {} are not supported", other.as_str_name()))),
    };
    let raw = tensor.raw_data.len() as u64;
    if raw > 0 && raw != count * size {
        return Err(fail(format!("{raw} bytes where {:?} needs {}", tensor.dims, count * size)));
    }
    if raw == 0 && listed as u64 != count {
        return Err(fail(format!("{listed} values where {:?} needs {count}", tensor.dims)));
    }
    let wide = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
    let finite = match kind {
        DataType::Float => {
            tensor.float_data.iter().all(|v| v.is_finite())
                && tensor.raw_data.chunks_exact(4).all(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_finite())
        }
        DataType::Double => {
            // Raw exponents of all ones are infinities and NaNs.
            tensor.double_data.iter().all(|v| v.is_finite())
                && tensor.raw_data.chunks_exact(8).all(|b| wide(&b[6..]) & 0x7ff0 != 0x7ff0)
        }
        DataType::Float16 => tensor.raw_data.chunks_exact(2).all(|b| wide(b) & 0x7c00 != 0x7c00),
        DataType::Bfloat16 => tensor.raw_data.chunks_exact(2).all(|b| wide(b) & 0x7f80 != 0x7f80),
        _ => true,
    };
    match finite {
        true => Ok(()),
        false => Err(OnnxError::NotFinite { name: tensor.name.clone() }),
    }
}
