//! Reading a node's attributes.

use super::OnnxError;
use std::prelude::v1::*;
use tract_onnx::pb;

/// A node's name, or that of its first output.
pub(super) fn label(node: &pb::NodeProto) -> String {
    match node.name.is_empty() {
        false => node.name.clone(),
        true => node.output.first().cloned().unwrap_or_default(),
    }
}

/// The node is legal, but a net has no operation for it.
pub(super) fn unsupported(node: &pb::NodeProto, why: impl Into<String>) -> OnnxError {
    OnnxError::Unsupported { node: label(node), op: node.op_type.clone(), why: why.into() }
}

/// The node contradicts the standard.
pub(super) fn bad(node: &pb::NodeProto, why: impl Into<String>) -> OnnxError {
    OnnxError::BadNode { node: label(node), op: node.op_type.clone(), why: why.into() }
}

/// The attribute of this name.
pub(super) fn attribute<'a>(node: &'a pb::NodeProto, name: &str) -> Option<&'a pb::AttributeProto> {
    node.attribute.iter().find(|a| a.name == name)
}

/// An integer attribute, or its default.
pub(super) fn int(node: &pb::NodeProto, name: &str, default: i64) -> i64 {
    attribute(node, name).map_or(default, |a| a.i)
}

/// A float attribute, or its default.
pub(super) fn float(node: &pb::NodeProto, name: &str, default: f32) -> f32 {
    attribute(node, name).map_or(default, |a| a.f)
}

/// A list attribute, if present and not empty.
pub(super) fn ints<'a>(node: &'a pb::NodeProto, name: &str) -> Option<&'a [i64]> {
    attribute(node, name).map(|a| &*a.ints).filter(|list| !list.is_empty())
}

/// A string attribute; empty when absent.
pub(super) fn text<'a>(node: &'a pb::NodeProto, name: &str) -> &'a [u8] {
    attribute(node, name).map_or(&[], |a| &a.s)
}

/// A list attribute of exactly `N` non-negative numbers, or its default.
pub(super) fn sides<const N: usize>(
    node: &pb::NodeProto,
    name: &str,
    default: Option<[u32; N]>,
) -> Result<[u32; N], OnnxError> {
    let Some(list) = ints(node, name) else {
        return default.ok_or_else(|| bad(node, format!("attribute `{name}` is missing")));
    };
    if list.len() != N {
        return Err(unsupported(node, format!("`{name}` has {} numbers where {N} are needed (2-D)", list.len())));
    }
    let mut out = [0; N];
    for (o, &v) in out.iter_mut().zip(list) {
        *o = u32::try_from(v).map_err(|_| unsupported(node, format!("`{name}` holds {v}")))?;
    }
    Ok(out)
}
