//! What running a model may take. An artifact of a few kilobytes can ask for terabytes: whoever runs one that comes from elsewhere asks
//! here first.

use super::HEAD_BATCH;
use crate::artifact::{ArtifactParts, HeadParts, HeadSpec};
use crate::head;
use crate::net::int8::Int8Op;
use crate::net::{Op, Slot, Span, Window};
use crate::stem::Stem;
use std::format;
use std::string::{String, ToString};

/// The most bytes of arena, or of memory for a head, a model may ask for: 4 GiB.
const MAX_MEMORY: u64 = 4 << 30;
/// The most multiply-adds, pooling counted too, one picture may take.
const MAX_WORK: u64 = 1_000_000_000_000;

/// Refuses a model that would take absurd memory or time.
///
/// # Errors
/// A sentence with what it would take.
pub fn check(parts: &ArtifactParts<'_>) -> Result<(), String> {
    let stem = parts.stem;
    let arena = stem.arena_bytes() as u64;
    if arena > MAX_MEMORY {
        return Err(format!("its arena of {arena} bytes is larger than 4 GiB"));
    }
    if let Stem::F32(net) = stem {
        // What the fast kernels copy a picture into.
        let padded = net.ops().map(|op| match op {
            Op::Conv { x, window: Window { pad: [top, left, bottom, right], .. }, .. } => {
                let (h, w) = (u64::from(x.shape.h) + u64::from(top) + u64::from(bottom), u64::from(x.shape.w));
                (4 * h).saturating_mul(w + u64::from(left) + u64::from(right)).saturating_mul(x.shape.c.into())
            }
            _ => 0,
        });
        let most = padded.max().unwrap_or(0);
        if most > MAX_MEMORY {
            return Err(format!("a convolution's padded picture of {most} bytes is larger than 4 GiB"));
        }
    }
    let work = work(&stem);
    if work > MAX_WORK {
        return Err(format!("{work} multiply-adds a picture are more than the limit of 10^12"));
    }
    for spec in [head_spec(parts), witness_spec(parts)].into_iter().flatten() {
        let scratch = head::inference_len(&spec, HEAD_BATCH).map_err(|e| e.to_string())?;
        let bytes = 4 * (scratch as u64 + (HEAD_BATCH * spec.features.len()) as u64);
        if bytes > MAX_MEMORY {
            return Err(format!("its head takes {bytes} bytes of memory, more than 4 GiB"));
        }
    }
    Ok(())
}

/// The head's kind and sizes; its parameters are counted from 0.
pub fn head_spec(parts: &ArtifactParts<'_>) -> Option<HeadSpec> {
    spec(parts, parts.head?)
}

/// The same of the tripwire's witness.
pub fn witness_spec(parts: &ArtifactParts<'_>) -> Option<HeadSpec> {
    spec(parts, parts.tripwire?.witness)
}

fn spec(parts: &ArtifactParts<'_>, head: HeadParts<'_>) -> Option<HeadSpec> {
    let span = Span { at: 0, len: u32::try_from(head.params.len()).ok()? };
    Some(HeadSpec { kind: head.kind, features: parts.stem.output(), classes: head.classes, span })
}

/// Multiply-adds of a stem, and the elements its pooling windows read.
fn work(stem: &Stem<'_>) -> u64 {
    let pooled = |y: Slot, window: Window| {
        (y.shape.len() as u64).saturating_mul(u64::from(window.kernel[0]) * u64::from(window.kernel[1]))
    };
    let all = stem.multiply_adds();
    match stem {
        Stem::F32(net) => net
            .ops()
            .map(|op| match op {
                Op::MaxPool { y, window, .. } | Op::AvgPool { y, window, .. } => pooled(y, window),
                _ => 0,
            })
            .fold(all, u64::saturating_add),
        Stem::Int8(net) => net
            .ops()
            .map(|op| match op {
                Int8Op::MaxPool { y, window, .. } | Int8Op::AvgPool { y, window, .. } => pooled(y, window),
                _ => 0,
            })
            .fold(all, u64::saturating_add),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::HeadKind;
    use crate::net::{Activation, NetBuilder, OwnedNet};
    use crate::shape::Shape;
    use std::vec;
    use std::vec::Vec;

    fn window(side: u32, stride: u32) -> Window {
        Window { kernel: [side; 2], stride: [stride; 2], pad: [0; 4] }
    }

    /// A convolution of single pixels, and a max pooling behind it.
    fn net(input: Shape, to: u32, stride: u32, pool: Window) -> OwnedNet {
        let mut b = NetBuilder::new();
        let x = b.input(input);
        let weight = vec![0.5; (input.c * to) as usize];
        let y = b.conv(x, window(1, stride), 1, weight, None, Activation::None).unwrap();
        let y = b.max_pool(y, pool).unwrap();
        b.finish(y).unwrap()
    }

    #[test]
    fn what_a_model_may_take_is_bounded() {
        let told = |net: &OwnedNet, head: Option<HeadKind>| {
            let head = head.map(|kind| HeadParts { kind, classes: 2, params: &[] });
            let stem = net.as_net().into();
            check(&ArtifactParts { name: "", labels: "", provenance: "", stem, head, tripwire: None })
        };
        let small = net(Shape::new(64, 64, 3), 8, 1, window(2, 2));
        assert_eq!(told(&small, Some(HeadKind::Residual)), Ok(()));
        let refused = |net: &OwnedNet, head, why: &str| {
            let told = told(net, head).unwrap_err();
            assert!(told.contains(why), "{told}");
        };
        // Five values of a GiB, each needed until the end.
        let mut b = NetBuilder::new();
        let x = b.input(Shape::new(8192, 8192, 1));
        let all: Vec<_> =
            (0..5).map(|_| b.conv(x, window(1, 1), 1, vec![0.5; 4], None, Activation::None).unwrap()).collect();
        let sum = all.into_iter().reduce(|a, y| b.add(a, y, Activation::None).unwrap()).unwrap();
        refused(&b.finish(sum).unwrap(), None, "its arena of ");
        // A picture of a GiB, 64 times as high with its padding.
        let mut b = NetBuilder::new();
        let x = b.input(Shape::new(2, 65_536, 2048));
        let tall = Window { kernel: [64, 1], stride: [1000; 2], pad: [63, 0, 63, 0] };
        let y = b.conv(x, tall, 1, vec![0.5; 64 * 2048], None, Activation::None).unwrap();
        refused(&b.finish(y).unwrap(), None, "a convolution's padded picture of 68719476736 bytes");
        refused(&net(Shape::new(8000, 8000, 1), 1, 1, window(200, 1)), None, "multiply-adds a picture are more than");
        let features = net(Shape::new(2048, 2048, 3), 8, 1, window(1, 1));
        assert_eq!(told(&features, None), Ok(()));
        refused(&features, Some(HeadKind::Linear), "its head takes ");
    }
}
