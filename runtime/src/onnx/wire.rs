//! Bounds what decoding will allocate, before it is decoded.
//!
//! Two bytes on the wire can become a `NodeProto` of some 200 bytes in memory, so a file's length alone bounds nothing.
//! This walks the message tree without building it and adds up the memory its parts will take.

use super::OnnxError;

/// The messages that nest; all others count as `Other`, by their length.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Other,
}

/// What a field of a message is, as far as memory goes.
enum Field {
    Message(Kind),
    Bytes,
    /// Packed numbers: one byte on the wire may become eight.
    Packed,
}

fn field(kind: Kind, tag: u64) -> Field {
    match (kind, tag) {
        (Kind::Model, 7) => Field::Message(Kind::Graph),
        (Kind::Graph, 1) => Field::Message(Kind::Node),
        (Kind::Graph, 5) => Field::Message(Kind::Tensor),
        (Kind::Node, 5) => Field::Message(Kind::Attribute),
        (Kind::Attribute, 5 | 10) => Field::Message(Kind::Tensor),
        (Kind::Attribute, 6 | 11) => Field::Message(Kind::Graph),
        (Kind::Model, 8 | 14 | 20 | 25) | (Kind::Graph, 11..=15) => Field::Message(Kind::Other),
        (Kind::Attribute, 14 | 15 | 22 | 23) | (Kind::Tensor, 3 | 13) => Field::Message(Kind::Other),
        (Kind::Attribute, 8) | (Kind::Tensor, 1 | 5 | 7 | 11) => Field::Packed,
        _ => Field::Bytes,
    }
}

/// Refuses a file whose decoded form would take more than 4 times its length plus 256 MiB. Malformed bytes pass: the
/// decoder stops at the same place and says why.
pub(super) fn check(bytes: &[u8]) -> Result<(), OnnxError> {
    let mut budget = bytes.len() as u64 * 4 + (256 << 20);
    match walk(bytes, Kind::Model, 0, &mut budget) {
        true => Ok(()),
        false => Err(OnnxError::TooLarge(bytes.len() as u64)),
    }
}

/// Takes the cost of one message from the budget; false when it is spent.
fn walk(mut bytes: &[u8], kind: Kind, depth: u32, budget: &mut u64) -> bool {
    while !bytes.is_empty() {
        let Some(key) = varint(&mut bytes) else { return true };
        let mut cost = 8;
        match key & 7 {
            0 => {
                if varint(&mut bytes).is_none() {
                    return true;
                }
            }
            1 | 5 => {
                let Some(rest) = bytes.get(if key & 7 == 1 { 8 } else { 4 }..) else { return true };
                bytes = rest;
            }
            2 => {
                let Some(length) = varint(&mut bytes) else { return true };
                let Some((inner, rest)) = usize::try_from(length).ok().and_then(|n| bytes.split_at_checked(n)) else {
                    return true;
                };
                bytes = rest;
                match field(kind, key >> 3) {
                    Field::Message(Kind::Other) => cost = 512 + 16 * length,
                    Field::Message(inner_kind) => {
                        cost = 512;
                        // The decoder refuses deeper nesting itself.
                        if depth < 128 && !walk(inner, inner_kind, depth + 1, budget) {
                            return false;
                        }
                    }
                    Field::Bytes => cost = 32 + length,
                    Field::Packed => cost = 8 * length,
                }
            }
            _ => return true,
        }
        match budget.checked_sub(cost) {
            Some(left) => *budget = left,
            None => return false,
        }
    }
    true
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
