//! Constants, and the arithmetic exporters leave in a graph to compute shapes with.

use super::OnnxError;
use super::node::{attribute, bad, int, ints, unsupported};
use std::prelude::v1::*;
use tract_onnx::pb;
use tract_onnx::pb::tensor_proto::DataType;

/// The longest result of folding that is not a mere re-reading of its input.
const MAX_FOLDED: usize = 4096;

/// The elements of a constant, row-major.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Data {
    F(Vec<f32>),
    /// Integers and booleans.
    I(Vec<i64>),
}

/// A constant tensor.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Const {
    pub(super) dims: Vec<usize>,
    pub(super) data: Data,
}

impl Const {
    /// A list of integers.
    pub(super) fn list(data: Vec<i64>) -> Self {
        Self { dims: vec![data.len()], data: Data::I(data) }
    }

    /// Decodes a tensor that `Model::from_bytes` has checked.
    pub(super) fn decode(tensor: &pb::TensorProto) -> Result<Self, OnnxError> {
        let dims = tensor.dims.iter().map(|&d| usize::try_from(d).unwrap_or(0)).collect();
        let raw = &tensor.raw_data;
        let data = match DataType::try_from(tensor.data_type) {
            Ok(DataType::Float) if raw.is_empty() => Data::F(tensor.float_data.clone()),
            Ok(DataType::Float) => {
                Data::F(raw.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
            }
            Ok(DataType::Double) if raw.is_empty() => Data::F(tensor.double_data.iter().map(|&v| v as f32).collect()),
            Ok(DataType::Double) => Data::F(raw.chunks_exact(8).map(|b| f64::from_bits(le64(b)) as f32).collect()),
            Ok(DataType::Int64) if raw.is_empty() => Data::I(tensor.int64_data.clone()),
            Ok(DataType::Int64) => Data::I(raw.chunks_exact(8).map(|b| le64(b) as i64).collect()),
            Ok(DataType::Int32) if raw.is_empty() => Data::I(tensor.int32_data.iter().map(|&v| i64::from(v)).collect()),
            Ok(DataType::Int32) => {
                Data::I(raw.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]).into()).collect())
            }
            Ok(DataType::Bool) if raw.is_empty() => Data::I(tensor.int32_data.iter().map(|&v| v.into()).collect()),
            Ok(DataType::Bool) => Data::I(raw.iter().map(|&v| v.into()).collect()),
            other => {
                let name = other.map_or("an unknown type", |kind| kind.as_str_name());
                return Err(OnnxError::initializer(&tensor.name, format!("elements of type {name} are not lowered")));
            }
        };
        let this = Self { dims, data };
        match &this.data {
            Data::F(v) if v.iter().any(|v| !v.is_finite()) => Err(OnnxError::NotFinite { name: tensor.name.clone() }),
            _ => Ok(this),
        }
    }

    pub(super) fn len(&self) -> usize {
        match &self.data {
            Data::F(v) => v.len(),
            Data::I(v) => v.len(),
        }
    }

    /// The elements as floats, if they are.
    pub(super) fn floats(&self) -> Option<&[f32]> {
        match &self.data {
            Data::F(v) => Some(v),
            Data::I(_) => None,
        }
    }

    /// The elements as integers, if they are.
    pub(super) fn integers(&self) -> Option<&[i64]> {
        match &self.data {
            Data::I(v) => Some(v),
            Data::F(_) => None,
        }
    }

    /// The same elements at other positions: output element `i` is input element `from(i)`.
    fn gather(&self, dims: Vec<usize>, from: impl Iterator<Item = usize>) -> Self {
        let data = match &self.data {
            Data::F(v) => Data::F(from.filter_map(|i| v.get(i).copied()).collect()),
            Data::I(v) => Data::I(from.filter_map(|i| v.get(i).copied()).collect()),
        };
        Self { dims, data }
    }
}

fn le64(b: &[u8]) -> u64 {
    u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])
}

/// An axis counted from the front.
pub(super) fn axis(node: &pb::NodeProto, axis: i64, rank: usize) -> Result<usize, OnnxError> {
    let from_front = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(from_front)
        .ok()
        .filter(|&a| a < rank)
        .ok_or_else(|| bad(node, format!("axis {axis} of a tensor of rank {rank}")))
}

/// The axes a Squeeze, Unsqueeze or ReduceMean names, in its attribute or its second input.
pub(super) fn axes(node: &pb::NodeProto, input: Option<&Const>) -> Option<Vec<i64>> {
    let listed = input.and_then(Const::integers).or_else(|| ints(node, "axes"));
    listed.filter(|list| !list.is_empty()).map(<[i64]>::to_vec)
}

/// The dimensions Reshape, Flatten, Squeeze or Unsqueeze gives a tensor of dimensions `old`.
pub(super) fn reshaped(node: &pb::NodeProto, old: &[usize], second: Option<&Const>) -> Result<Vec<usize>, OnnxError> {
    let count: usize = old.iter().product();
    let rank = old.len();
    let dims = match &*node.op_type {
        "Flatten" => {
            let at = match int(node, "axis", 1) {
                all if all == rank as i64 => rank,
                other => axis(node, other, rank)?,
            };
            vec![old[..at].iter().product(), old[at..].iter().product()]
        }
        "Reshape" => {
            let target = second.and_then(Const::integers).or_else(|| ints(node, "shape"));
            let target = target.ok_or_else(|| unsupported(node, "its target shape is not constant"))?;
            let keep_zero = int(node, "allowzero", 0) != 0;
            let mut free = None;
            let mut dims = Vec::new();
            for (i, &d) in target.iter().enumerate() {
                dims.push(match d {
                    0 if !keep_zero => {
                        *old.get(i).ok_or_else(|| bad(node, "it copies a dimension that is not there"))?
                    }
                    -1 if free.replace(i).is_none() => 1,
                    d => usize::try_from(d).map_err(|_| bad(node, format!("a target dimension is {d}")))?,
                });
            }
            if let Some(i) = free {
                let rest = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).unwrap_or(0);
                dims[i] = count.checked_div(rest).unwrap_or(0);
            }
            dims
        }
        "Squeeze" => {
            let gone: Vec<usize> = match axes(node, second) {
                Some(list) => list.iter().map(|&a| axis(node, a, rank)).collect::<Result<_, _>>()?,
                None => (1..rank).filter(|&i| old[i] == 1).collect(),
            };
            if let Some(&i) = gone.iter().find(|&&i| old[i] != 1) {
                return Err(bad(node, format!("it drops axis {i} of size {}", old[i])));
            }
            (0..rank).filter(|i| !gone.contains(i)).map(|i| old[i]).collect()
        }
        _ => {
            let list = axes(node, second).ok_or_else(|| bad(node, "it names no axes"))?;
            let full = rank + list.len();
            let new: Vec<usize> = list.iter().map(|&a| axis(node, a, full)).collect::<Result<_, _>>()?;
            let mut rest = old.iter().copied();
            (0..full).map(|i| if new.contains(&i) { 1 } else { rest.next().unwrap_or(1) }).collect()
        }
    };
    match dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) {
        Some(n) if n == count => Ok(dims),
        _ => Err(bad(node, format!("{old:?} cannot become {dims:?}"))),
    }
}

/// Computes a node whose inputs are all constant.
///
/// # Errors
/// The operation is not among those exporters use to compute shapes and weights.
pub(super) fn fold(node: &pb::NodeProto, inputs: &[Option<&Const>]) -> Result<Const, OnnxError> {
    let input =
        |i: usize| inputs.get(i).copied().flatten().ok_or_else(|| bad(node, format!("input number {i} is missing")));
    match &*node.op_type {
        "Constant" => constant(node),
        "Identity" | "Dropout" => input(0).cloned(),
        "Cast" => {
            let x = input(0)?;
            let data = match (DataType::try_from(int(node, "to", 0) as i32), &x.data) {
                (Ok(DataType::Float), Data::I(v)) => Data::F(v.iter().map(|&v| v as f32).collect()),
                (Ok(DataType::Int64 | DataType::Int32), Data::F(v)) => Data::I(v.iter().map(|&v| v as i64).collect()),
                (Ok(DataType::Bool), Data::I(v)) => Data::I(v.iter().map(|&v| (v != 0).into()).collect()),
                (Ok(DataType::Float), Data::F(_)) | (Ok(DataType::Int64 | DataType::Int32), Data::I(_)) => {
                    x.data.clone()
                }
                _ => return Err(unsupported(node, "a cast between these types")),
            };
            Ok(Const { dims: x.dims.clone(), data })
        }
        "ConstantOfShape" => {
            let dims: Vec<usize> = (input(0)?.integers().unwrap_or(&[]).iter())
                .map(|&d| usize::try_from(d).map_err(|_| bad(node, format!("a dimension is {d}"))))
                .collect::<Result<_, _>>()?;
            let n = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= MAX_FOLDED);
            let n = n.ok_or_else(|| unsupported(node, "it makes a large constant"))?;
            let one = attribute(node, "value").and_then(|a| a.t.as_ref()).map(Const::decode).transpose()?;
            let data = match one.map(|c| c.data) {
                Some(Data::I(v)) => Data::I(vec![v.first().copied().unwrap_or(0); n]),
                Some(Data::F(v)) => Data::F(vec![v.first().copied().unwrap_or(0.0); n]),
                None => Data::F(vec![0.0; n]),
            };
            Ok(Const { dims, data })
        }
        "Concat" => {
            let mut all = Vec::new();
            for i in 0..inputs.len() {
                let part = input(i)?;
                let list = part.integers().filter(|_| part.dims.len() == 1);
                all.extend_from_slice(list.ok_or_else(|| unsupported(node, "it joins constants that are not lists"))?);
            }
            Ok(Const::list(all))
        }
        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => {
            let x = input(0)?;
            let dims = match &*node.op_type {
                // A list of one becomes a scalar.
                "Squeeze" if x.len() == 1 && x.dims.len() == 1 => vec![],
                _ => reshaped(node, &x.dims, inputs.get(1).copied().flatten())?,
            };
            Ok(Const { dims, data: x.data.clone() })
        }
        "Transpose" => transpose(node, input(0)?),
        "Slice" => slice(node, inputs),
        "Gather" => {
            let (x, at) = (input(0)?, input(1)?);
            let at_list = at.integers().filter(|_| x.dims.len() == 1 && int(node, "axis", 0) == 0);
            let at_list = at_list.ok_or_else(|| unsupported(node, "a gather from a constant that is not a list"))?;
            let from = at_list.iter().map(|&a| axis(node, a, x.len())).collect::<Result<Vec<_>, _>>()?;
            Ok(x.gather(at.dims.clone(), from.into_iter()))
        }
        "Equal" | "Add" | "Sub" | "Mul" | "Div" => integers(node, input(0)?, input(1)?),
        _ => Err(unsupported(node, "all its inputs are constant: simplify the model (constant folding) first")),
    }
}

fn constant(node: &pb::NodeProto) -> Result<Const, OnnxError> {
    let find = |name| attribute(node, name);
    let value = if let Some(t) = find("value").and_then(|a| a.t.as_ref()) {
        return Const::decode(t);
    } else if let Some(a) = find("value_float") {
        Const { dims: vec![], data: Data::F(vec![a.f]) }
    } else if let Some(a) = find("value_int") {
        Const { dims: vec![], data: Data::I(vec![a.i]) }
    } else if let Some(a) = find("value_floats") {
        Const { dims: vec![a.floats.len()], data: Data::F(a.floats.clone()) }
    } else if let Some(a) = find("value_ints") {
        Const::list(a.ints.clone())
    } else {
        return Err(unsupported(node, "a constant that is neither of numbers nor a tensor"));
    };
    match value.floats().is_some_and(|v| v.iter().any(|v| !v.is_finite())) {
        true => Err(OnnxError::NotFinite { name: node.output.first().cloned().unwrap_or_default() }),
        false => Ok(value),
    }
}

fn transpose(node: &pb::NodeProto, x: &Const) -> Result<Const, OnnxError> {
    let rank = x.dims.len();
    let perm: Vec<usize> = match ints(node, "perm") {
        Some(list) => list.iter().map(|&a| axis(node, a, rank)).collect::<Result<_, _>>()?,
        None => (0..rank).rev().collect(),
    };
    if perm.len() != rank || (0..rank).any(|i| !perm.contains(&i)) {
        return Err(bad(node, format!("`perm` is {perm:?} for rank {rank}")));
    }
    let stride = |a: usize| x.dims[a + 1..].iter().product::<usize>();
    let dims: Vec<usize> = perm.iter().map(|&a| x.dims[a]).collect();
    let strides: Vec<usize> = perm.iter().map(|&a| stride(a)).collect();
    let from = (0..x.len()).map(|mut i| {
        let mut at = 0;
        for (&d, &s) in dims.iter().zip(&strides).rev() {
            at += i % d.max(1) * s;
            i /= d.max(1);
        }
        at
    });
    let out = x.gather(Vec::new(), from);
    Ok(Const { dims, ..out })
}

fn slice(node: &pb::NodeProto, inputs: &[Option<&Const>]) -> Result<Const, OnnxError> {
    let several = || unsupported(node, "a slice over several axes of a constant");
    // As an input or, before opset 10, as an attribute.
    let one = |i: usize, name: &str| {
        let input = inputs.get(i).copied().flatten().map(|c| c.integers().unwrap_or_default());
        match input.or_else(|| ints(node, name)) {
            Some([v]) => Ok(Some(*v)),
            Some(_) => Err(several()),
            None => Ok(None),
        }
    };
    let x = inputs.first().copied().flatten().ok_or_else(|| bad(node, "its input is missing"))?;
    let (Some(start), Some(end)) = (one(1, "starts")?, one(2, "ends")?) else {
        return Err(bad(node, "where it starts or ends is missing"));
    };
    let a = axis(node, one(3, "axes")?.unwrap_or(0), x.dims.len())?;
    let step = one(4, "steps")?.unwrap_or(1);
    let n = x.dims[a] as i64;
    let clamp = |v: i64, low: i64, high: i64| if v < 0 { v.saturating_add(n) } else { v }.clamp(low, high);
    let picked: Vec<usize> = match step {
        1 => (clamp(start, 0, n)..clamp(end, 0, n)).map(|i| i as usize).collect(),
        -1 => (clamp(end, -1, n - 1) + 1..clamp(start, -1, n - 1) + 1).rev().map(|i| i as usize).collect(),
        _ => return Err(unsupported(node, format!("a slice of a constant with step {step}"))),
    };
    let (outer, inner): (usize, usize) = (x.dims[..a].iter().product(), x.dims[a + 1..].iter().product());
    let mut dims = x.dims.clone();
    dims[a] = picked.len();
    let n = n as usize;
    let from = (0..outer).flat_map(|o| picked.iter().map(move |&p| (o * n + p) * inner));
    Ok(x.gather(dims, from.flat_map(|at| at..at + inner)))
}

/// Arithmetic on shapes: elements in pairs, or a list and a single number.
fn integers(node: &pb::NodeProto, a: &Const, b: &Const) -> Result<Const, OnnxError> {
    let (Some(x), Some(y)) = (a.integers(), b.integers()) else {
        return Err(unsupported(node, "arithmetic on float constants: simplify the model (constant folding) first"));
    };
    if x.is_empty() || y.is_empty() || (x.len() != y.len() && x.len() != 1 && y.len() != 1) {
        return Err(unsupported(node, "arithmetic on constants of different lengths"));
    }
    let n = x.len().max(y.len());
    let pairs = (0..n).map(|i| (x[i % x.len()], y[i % y.len()]));
    let result = pairs.map(|(x, y)| match &*node.op_type {
        "Equal" => Some((x == y).into()),
        "Add" => x.checked_add(y),
        "Sub" => x.checked_sub(y),
        "Mul" => x.checked_mul(y),
        _ => x.checked_div(y),
    });
    let data = result.collect::<Option<Vec<i64>>>().ok_or_else(|| bad(node, "its constants overflow"))?;
    let dims = if a.len() == n { a.dims.clone() } else { b.dims.clone() };
    Ok(Const { dims, data: Data::I(data) })
}
