//! The check at the door, against lists of operations with faults made on purpose.

use super::*;

fn slot(place: Place) -> Slot {
    Slot { place, shape: S }
}

fn copy(from: Place, to: Place) -> Op {
    Op::MaxPool { x: slot(from), y: slot(to), window: PIXEL }
}

fn add(a: Place, b: Place, to: Place) -> Op {
    Op::Add { a: slot(a), b: slot(b), y: slot(to), act: Activation::None }
}

fn checked(ops: &[Op], arena: usize, weights: &[f32]) -> crate::error::Result<()> {
    let bytes = ops.iter().fold(Vec::new(), |bytes, op| postcard::to_extend(op, bytes).unwrap());
    Net::new_checked(S, S, arena, ops.len() as u32, &bytes, weights).map(|_| ())
}

fn refused(op: u32, why: OpFault) -> crate::error::Result<()> {
    Err(Error::BadOperation { op, why })
}

#[test]
fn the_check_follows_memory() {
    use Place::{Arena, Input, Output};
    let slot_of = |op| refused(op, OpFault::Slot);
    assert_eq!(checked(&[copy(Input, Output)], 0, &[]), Ok(()));
    assert_eq!(checked(&[copy(Input, Arena(0)), copy(Arena(0), Output)], 4, &[]), Ok(()));
    // In use, beside one another, then read.
    let two = [copy(Input, Arena(0)), copy(Arena(0), Arena(4)), add(Arena(0), Arena(4), Output)];
    assert_eq!(checked(&two, 8, &[]), Ok(()));
    // Overwritten in part.
    let over = [copy(Input, Arena(0)), copy(Input, Arena(3)), add(Arena(0), Arena(3), Output)];
    assert_eq!(checked(&over, 7, &[]), slot_of(2));
    // Written over its own input, exactly or in part.
    assert_eq!(checked(&[copy(Input, Arena(0)), copy(Arena(0), Arena(0)), copy(Arena(0), Output)], 4, &[]), slot_of(1));
    assert_eq!(checked(&[copy(Input, Arena(0)), copy(Arena(0), Arena(2)), copy(Arena(2), Output)], 6, &[]), slot_of(1));
    // Read before it is written, or elsewhere than where it was.
    assert_eq!(checked(&[copy(Arena(0), Output)], 4, &[]), slot_of(0));
    assert_eq!(checked(&[copy(Input, Arena(0)), copy(Arena(1), Output)], 5, &[]), slot_of(1));
    // Outside the arena; an arena larger than needed.
    assert_eq!(checked(&[copy(Input, Arena(1)), copy(Arena(1), Output)], 4, &[]), slot_of(0));
    assert_eq!(checked(&[copy(Input, Arena(u32::MAX)), copy(Arena(u32::MAX), Output)], 4, &[]), slot_of(0));
    let long = Err(Error::WrongLength { needed: 4, given: 5 });
    assert_eq!(checked(&[copy(Input, Arena(0)), copy(Arena(0), Output)], 5, &[]), long);
    // The output: read, written early, never written; the input: written.
    assert_eq!(checked(&[copy(Output, Output)], 0, &[]), slot_of(0));
    assert_eq!(checked(&[copy(Input, Output), copy(Input, Output)], 0, &[]), slot_of(0));
    assert_eq!(checked(&[copy(Input, Arena(0))], 4, &[]), slot_of(0));
    assert_eq!(checked(&[copy(Input, Input)], 0, &[]), slot_of(0));
    assert_eq!(checked(&[], 0, &[]), slot_of(0));
    // The input read, or the output written, with another shape.
    let tall = |place| Slot { place, shape: Shape::new(4, 1, 1) };
    assert_eq!(checked(&[Op::MaxPool { x: tall(Input), y: tall(Output), window: PIXEL }], 0, &[]), slot_of(0));
    let y = Slot { place: Output, shape: Shape::new(1, 1, 1) };
    assert_eq!(checked(&[Op::GlobalAvgPool { x: slot(Input), y }], 0, &[]), refused(0, OpFault::Shape));
}

#[test]
fn the_check_reads_every_field() {
    let (x, y) = (slot(Place::Input), slot(Place::Output));
    let span = |at, len| Span { at, len };
    let conv = |window, groups, weight, bias, act| Op::Conv { x, y, window, groups, weight, bias, act };
    let none = Activation::None;
    let one = |op, weights: &[f32]| checked(&[op], 0, weights);
    assert_eq!(one(conv(PIXEL, 1, span(0, 1), Some(span(1, 1)), none), &[1.0; 2]), Ok(()));
    assert_eq!(one(conv(PIXEL, 1, span(2, 1), None, none), &[1.0; 2]), refused(0, OpFault::Span));
    assert_eq!(one(conv(PIXEL, 1, span(u32::MAX, 1), None, none), &[1.0; 2]), refused(0, OpFault::Span));
    assert_eq!(one(conv(PIXEL, 1, span(0, 2), None, none), &[1.0; 2]), refused(0, OpFault::Span));
    assert_eq!(one(conv(PIXEL, 1, span(0, 1), Some(span(0, 2)), none), &[1.0; 2]), refused(0, OpFault::Span));
    assert_eq!(one(conv(PIXEL, 0, span(0, 1), None, none), &[1.0]), refused(0, OpFault::Window));
    assert_eq!(one(conv(PIXEL, 2, span(0, 1), None, none), &[1.0]), refused(0, OpFault::Window));
    let leaky = Activation::Leaky(f32::INFINITY);
    assert_eq!(one(conv(PIXEL, 1, span(0, 1), None, leaky), &[1.0]), refused(0, OpFault::Activation));
    for weight in [f32::NAN, f32::NEG_INFINITY] {
        assert_eq!(one(conv(PIXEL, 1, span(0, 1), None, none), &[weight]), Err(Error::NotFinite));
    }
    let huge = u32::MAX;
    for window in [
        Window { kernel: [0, 1], ..PIXEL },
        Window { stride: [1, 0], ..PIXEL },
        Window { kernel: [huge; 2], pad: [huge - 1; 4], ..PIXEL },
        Window { pad: [1, 0, 0, 0], ..PIXEL },
        Window { kernel: [3, 3], ..PIXEL },
    ] {
        assert_eq!(one(Op::MaxPool { x, y, window }, &[]), refused(0, OpFault::Window), "{window:?}");
    }
    let flat = Slot { shape: Shape::new(0, 2, 1), ..x };
    assert_eq!(one(Op::GlobalAvgPool { x: flat, y }, &[]), refused(0, OpFault::Dimension));
    let bytes = postcard::to_extend(&copy(Place::Input, Place::Output), Vec::new()).unwrap();
    for end in 0..bytes.len() {
        assert_eq!(Net::new_checked(S, S, 0, 1, &bytes[..end], &[]).map(|_| ()), Err(Error::BadManifest));
    }
    let longer = [&bytes[..], &[0]].concat();
    assert_eq!(Net::new_checked(S, S, 0, 1, &longer, &[]).map(|_| ()), Err(Error::BadManifest));
}
