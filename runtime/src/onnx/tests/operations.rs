//! One operation at a time, in the forms exporters write it: lowered against tract.

use super::*;
use crate::net::Window;
use crate::onnx::export::{int, ints, real};
use tract_onnx::pb;

const SHAPE: Shape = Shape::new(7, 10, 4);

/// Builds a graph over one input, lowers it, exports it again, and compares all with tract.
#[track_caller]
fn check(what: &str, build: impl FnOnce(&mut OnnxBuilder) -> String) {
    let mut builder = OnnxBuilder::new();
    builder.input("images", SHAPE);
    let name = build(&mut builder);
    builder.output(&name, &[]);
    let model = Model::from_bytes(&builder.finish().unwrap()).unwrap();
    let x: Vec<f32> = noise(SHAPE).iter().map(|v| v * 8.0 - 4.0).collect();
    let net = lower(&model, None).unwrap_or_else(|e| std::panic!("{what}: {e}"));
    let wanted = run_tract(&TractModel::new(&model, None).unwrap(), &x);
    near(what, &run_net(&net, &x), &wanted);
    near(what, &run_tract(&TractModel::new(&exported(&net), None).unwrap(), &x), &wanted);
}

fn text(name: &str, s: &str) -> pb::AttributeProto {
    let kind = pb::attribute_proto::AttributeType::String as i32;
    pb::AttributeProto { name: name.into(), r#type: kind, s: s.as_bytes().to_vec(), ..Default::default() }
}

fn weights(n: usize) -> Vec<f32> {
    noise(Shape::new(1, 1, n as u32)).iter().map(|v| v - 0.5).collect()
}

fn integers(b: &mut OnnxBuilder, list: &[i64]) -> String {
    let list = pb::AttributeProto {
        name: "value_ints".into(),
        r#type: pb::attribute_proto::AttributeType::Ints as i32,
        ints: list.to_vec(),
        ..Default::default()
    };
    b.node("Constant", vec![], vec![list])
}

#[test]
fn automatic_padding() {
    for mode in ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"] {
        for (kernel, stride) in [(3, 1), (3, 2), (4, 3), (2, 1)] {
            check(&format!("Conv {mode} {kernel} {stride}"), |b| {
                let w = b.constant(&[6, 4, kernel as usize, 3], &weights(6 * 4 * kernel as usize * 3));
                let attributes = vec![text("auto_pad", mode), ints("strides", [stride, 2])];
                b.node("Conv", vec!["images".into(), w], attributes)
            });
        }
    }
}

#[test]
fn groups_and_unequal_windows() {
    for groups in [1, 2, 4] {
        check(&format!("Conv in {groups} groups"), |b| {
            let window = Window { kernel: [2, 3], stride: [1, 2], pad: [0, 2, 1, 1] };
            let per = 4 / groups as usize;
            b.conv("images", &weights(8 * per * 6), [8, per, 2, 3], Some(&weights(8)), window, groups)
        });
    }
}

#[test]
fn pools() {
    let window = Window { kernel: [3, 2], stride: [2, 1], pad: [1, 0, 2, 1] };
    check("MaxPool", |b| b.max_pool("images", window));
    check("AveragePool", |b| b.average_pool("images", window, false));
    check("AveragePool with padding", |b| b.average_pool("images", window, true));
    check("GlobalMaxPool", |b| b.node("GlobalMaxPool", vec!["images".into()], vec![]));
    for keep in [0, 1] {
        check("ReduceMean", |b| {
            b.node("ReduceMean", vec!["images".into()], vec![ints("axes", [-1, 2]), int("keepdims", keep)])
        });
    }
    check("MaxPool rounding up where it makes no difference", |b| {
        let attributes = vec![ints("kernel_shape", [3, 2]), ints("strides", [2, 2]), int("ceil_mode", 1)];
        b.node("MaxPool", vec!["images".into()], attributes)
    });
}

#[test]
fn zeros_put_around() {
    let pads = [0, 0, 1, 0, 0, 0, 1, 2];
    check("Pad, Conv", |b| {
        let pads = integers(b, &pads);
        let x = b.node("Pad", vec!["images".into(), pads], vec![]);
        let window = Window { kernel: [3, 3], stride: [1, 1], pad: [0, 1, 1, 0] };
        b.conv(&x, &weights(5 * 4 * 9), [5, 4, 3, 3], None, window, 1)
    });
    check("Pad, AveragePool", |b| {
        let pads = integers(b, &pads);
        let x = b.node("Pad", vec!["images".into(), pads], vec![]);
        b.average_pool(&x, Window { kernel: [3, 3], stride: [1, 1], pad: [0; 4] }, false)
    });
    check("Pad, Conv with SAME padding", |b| {
        let pads = integers(b, &pads);
        let x = b.node("Pad", vec!["images".into(), pads], vec![]);
        let w = b.constant(&[6, 4, 5, 5], &weights(600));
        b.node("Conv", vec![x, w], vec![text("auto_pad", "SAME_UPPER"), ints("strides", [2, 2])])
    });
}

#[test]
fn activations() {
    for (op, attributes) in [
        ("Relu", vec![]),
        ("LeakyRelu", vec![]),
        ("LeakyRelu", vec![real("alpha", 0.3)]),
        ("Sigmoid", vec![]),
        ("HardSwish", vec![]),
        ("HardSigmoid", vec![real("alpha", 1.0 / 6.0)]),
    ] {
        check(op, |b| b.node(op, vec!["images".into()], attributes));
    }
    check("Clip", |b| b.clip("images", 0.0, 6.0));
    check("Clip without a maximum", |b| {
        let low = b.constant(&[], &[0.0]);
        b.node("Clip", vec!["images".into(), low, String::new()], vec![])
    });
    check("PRelu", |b| {
        let slope = b.constant(&[4, 1, 1], &[0.2; 4]);
        b.node("PRelu", vec!["images".into(), slope], vec![])
    });
    check("hard swish, spelled out", |b| {
        let (three, six) = (b.constant(&[], &[3.0]), b.constant(&[1], &[6.0]));
        let x = b.add("images", &three);
        let x = b.clip(&x, 0.0, 6.0);
        let x = b.mul("images", &x);
        b.node("Div", vec![x, six], vec![])
    });
}

#[test]
fn arithmetic() {
    for op in ["Add", "Sub", "Mul", "Div"] {
        for (dims, len) in [(vec![], 1), (vec![1], 1), (vec![4, 1, 1], 4), (vec![1, 4, 1, 1], 4)] {
            check(&format!("{op} {dims:?}"), |b| {
                let c = b.constant(&dims, &weights(len));
                b.node(op, vec!["images".into(), c], vec![])
            });
            if op != "Div" {
                check(&format!("{dims:?} {op}"), |b| {
                    let c = b.constant(&dims, &weights(len));
                    b.node(op, vec![c, "images".into()], vec![])
                });
            }
        }
        if op != "Div" {
            check(&format!("{op} of two"), |b| {
                let y = b.activation("images", Activation::Relu);
                b.node(op, vec!["images".into(), y], vec![])
            });
        }
    }
    check("gate on the left", |b| {
        let gate = b.global_average_pool("images");
        let gate = b.activation(&gate, Activation::Sigmoid);
        b.mul(&gate, "images")
    });
    check("Sum of three", |b| {
        let y = b.activation("images", Activation::Relu);
        let c = b.constant(&[4, 1, 1], &weights(4));
        b.node("Sum", vec!["images".into(), c, y], vec![])
    });
    check("BatchNormalization", |b| {
        b.batch_norm("images", &weights(4), &weights(4), &weights(4), &[0.1, 0.5, 1.0, 2.0], 1e-3)
    });
    check("Concat of three", |b| {
        let y = b.activation("images", Activation::Relu);
        b.concat(&["images", &y, "images"])
    });
}

#[test]
fn matrices() {
    let all = SHAPE.len();
    for (start, end) in [(0, 1), (-4, -3), (-9, 1)] {
        check("Reshape by a part of the shape, Gemm", |b| {
            let first = b.node("Shape", vec!["images".into()], vec![int("start", start), int("end", end)]);
            let rest = integers(b, &[-1]);
            let target = b.node("Concat", vec![first, rest], vec![int("axis", 0)]);
            let x = b.node("Reshape", vec!["images".into(), target], vec![]);
            b.gemm(&x, &weights(all * 3), 3, None)
        });
    }
    check("Flatten, Gemm", |b| {
        let x = b.flatten("images");
        b.gemm(&x, &weights(all * 3), 3, Some(&[1.0, 2.0, 3.0]))
    });
    check("Gemm with alpha and beta, not transposed", |b| {
        let x = b.flatten("images");
        let (w, c) = (b.constant(&[all, 3], &weights(all * 3)), b.constant(&[1, 3], &[1.0, 2.0, 3.0]));
        b.node("Gemm", vec![x, w, c], vec![real("alpha", 0.5), real("beta", -2.0)])
    });
    check("MatMul, Add", |b| {
        let target = integers(b, &[0, -1]);
        let x = b.node("Reshape", vec!["images".into(), target], vec![]);
        let (w, c) = (b.constant(&[all, 3], &weights(all * 3)), b.constant(&[3], &[1.0, 2.0, 3.0]));
        let y = b.node("MatMul", vec![x, w], vec![]);
        b.add(&c, &y)
    });
    check("a transposed weight", |b| {
        let x = b.global_average_pool("images");
        let axes = integers(b, &[2, -1]);
        let x = b.node("Squeeze", vec![x, axes], vec![]);
        let w = b.constant(&[3, 4], &weights(12));
        let w = b.node("Transpose", vec![w], vec![ints("perm", [1, 0])]);
        b.node("MatMul", vec![x, w], vec![])
    });
    check("a gate by linear layers", |b| {
        let x = b.global_average_pool("images");
        let x = b.flatten(&x);
        let x = b.gemm(&x, &weights(16), 4, None);
        let x = b.activation(&x, Activation::Sigmoid);
        let x = b.unflatten(&x);
        b.mul("images", &x)
    });
}
