//! Files and operations that must be refused, by name.

use super::*;
use crate::onnx::export::{int, ints};
use prost::Message;
use tract_onnx::pb;
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Dim;

/// The `gemm` model, changed, then read.
fn changed(change: impl FnOnce(&mut pb::GraphProto)) -> Result<Model, OnnxError> {
    let bytes = std::fs::read(testdata("gemm.onnx")).unwrap();
    let mut proto = pb::ModelProto::decode(&*bytes).unwrap();
    change(proto.graph.as_mut().unwrap());
    Model::from_bytes(&proto.encode_to_vec())
}

#[track_caller]
fn says<T>(result: Result<T, OnnxError>, words: &[&str]) {
    let text = match result {
        Ok(_) => std::panic!("accepted; expected {words:?}"),
        Err(error) => error.to_string(),
    };
    for word in words {
        assert!(text.contains(word), "`{text}` does not say `{word}`");
    }
}

fn dim(graph: &mut pb::GraphProto, i: usize, value: Option<Dim>) {
    let Some(pb::type_proto::Value::TensorType(t)) = &mut graph.input[0].r#type.as_mut().unwrap().value else {
        std::panic!()
    };
    t.shape.as_mut().unwrap().dim[i].value = value;
}

#[test]
fn bytes_that_are_no_model() {
    says(Model::from_bytes(b"not a model"), &["not an ONNX file"]);
    says(Model::from_bytes(b""), &["no ONNX graph"]);
    let bytes = std::fs::read(testdata("gemm.onnx")).unwrap();
    says(Model::from_bytes(&bytes[..bytes.len() / 2]), &["cut short"]);
    says(Model::from_file(testdata("absent.onnx")), &["absent.onnx"]);
    // Two bytes a node.
    let nodes = [0x0a, 0x00].repeat(2_000_000);
    let mut bomb = vec![0x3a];
    prost::encoding::encode_varint(nodes.len() as u64, &mut bomb);
    bomb.extend(nodes);
    says(Model::from_bytes(&bomb), &["larger than allowed"]);
}

#[test]
fn inputs_that_are_no_picture() {
    says(changed(|g| g.input.clear()), &["no input"]);
    says(changed(|g| g.input.push(pb::ValueInfoProto { name: "mask".into(), ..g.input[0].clone() })), &["mask"]);
    says(changed(|g| g.input[0].r#type = None), &["images", "no tensor type"]);
    says(changed(|g| dim(g, 2, None)), &["images", "height is not a fixed number"]);
    says(changed(|g| dim(g, 3, Some(Dim::DimParam("W".into())))), &["width is not a fixed number"]);
    says(changed(|g| dim(g, 1, Some(Dim::DimValue(0)))), &["channel count is 0"]);
    says(changed(|g| dim(g, 1, Some(Dim::DimValue(i64::MAX)))), &["channel count", "4096"]);
    says(changed(|g| (1..4).for_each(|i| dim(g, i, Some(Dim::DimValue(4096))))), &["too many"]);
    says(changed(|g| dim(g, 0, Some(Dim::DimValue(8)))), &["batch is fixed at 8"]);
    for free in [None, Some(Dim::DimValue(-1)), Some(Dim::DimValue(1)), Some(Dim::DimParam("batch".into()))] {
        let model = changed(|g| dim(g, 0, free)).unwrap();
        lower(&model, None).unwrap();
        TractModel::new(&model, None).unwrap();
    }
}

#[test]
fn weights_that_are_no_numbers() {
    let name = changed(|_| ()).unwrap().nodes()[2].input[1].clone();
    let weight = |change: fn(&mut pb::TensorProto)| {
        changed(|g| change(g.initializer.iter_mut().find(|t| t.name == name).unwrap()))
    };
    says(weight(|t| t.raw_data[..4].copy_from_slice(&f32::NAN.to_le_bytes())), &[&name, "NaN"]);
    says(weight(|t| t.raw_data[..4].copy_from_slice(&f32::INFINITY.to_le_bytes())), &[&name, "infinite"]);
    says(weight(|t| t.raw_data.truncate(3)), &[&name, "bytes where"]);
    says(weight(|t| t.dims[0] = -1), &[&name, "-1"]);
    says(weight(|t| t.dims[0] = i64::MAX), &[&name, "too large"]);
    says(weight(|t| t.dims = vec![0, 1 << 28, 1 << 28, 1 << 28]), &[&name, "too large"]);
    says(weight(|t| t.data_location = Some(1)), &[&name, "another file"]);
    says(weight(|t| t.data_type = 14), &[&name, "COMPLEX64"]);
    says(weight(|t| t.raw_data.clear()), &[&name, "0 values"]);
}

#[test]
fn graphs_out_of_order() {
    says(changed(|g| g.node.swap(0, 1)), &["computed by no node before it"]);
    says(changed(|g| g.node.truncate(3)), &["logits", "computed by no node"]);
    says(changed(|g| g.output.clear()), &["no output"]);
    says(changed(|g| g.node[1].output = g.node[0].output.clone()), &["defined twice"]);
    let several =
        changed(|g| g.output.push(pb::ValueInfoProto { name: g.node[2].output[0].clone(), ..Default::default() }));
    says(lower(several.as_ref().unwrap(), None), &["several outputs", "logits"]);
    lower(&several.unwrap(), Some("logits")).unwrap();
}

#[test]
fn unknown_tensors_list_near_names() {
    let model = model("stem");
    says(lower(&model, Some("/3/Add_output")), &["`/3/Add_output`", "/3/Add_output_0"]);
    says(TractModel::new(&model, Some("zzzzqqqq")), &["no tensor `zzzzqqqq`"]);
}

#[test]
fn operations_without_a_counterpart() {
    let with = |op: &str, attributes: Vec<pb::AttributeProto>| {
        let mut b = OnnxBuilder::new();
        b.input("images", Shape::new(8, 8, 3));
        let x = b.activation("images", Activation::Relu);
        let y = b.node(op, vec![x], attributes);
        b.output(&y, &[]);
        Model::from_bytes(&b.finish().unwrap()).unwrap()
    };
    let exp = with("Exp", vec![]);
    says(lower(&exp, None), &["Exp_2", "(Exp)", "tract"]);
    assert_eq!(TractModel::new(&exp, None).unwrap().output_dims(), [1, 3, 8, 8]);
    says(lower(&with("Softmax", vec![]), None), &["cut at its input `Relu_1`"]);
    says(lower(&with("Nonsense", vec![]), None), &["(Nonsense)"]);
    says(TractModel::new(&with("Nonsense", vec![]), None), &["tract"]);
    says(lower(&with("Flatten", vec![]), None), &["flattened"]);
    let dilated = vec![ints("kernel_shape", [2, 2]), ints("dilations", [2, 2])];
    says(lower(&with("MaxPool", dilated), None), &["dilations"]);
    let up = vec![ints("kernel_shape", [3, 3]), ints("strides", [2, 2]), int("ceil_mode", 1)];
    says(lower(&with("MaxPool", up), None), &["ceil_mode"]);
    says(lower(&with("HardSigmoid", vec![]), None), &["alpha 0.2"]);
}

#[test]
fn a_builder_reports_wrong_lengths() {
    let mut b = OnnxBuilder::new();
    b.input("images", Shape::new(1, 1, 2));
    let x = b.flatten("images");
    let y = b.gemm(&x, &[1.0; 5], 2, None);
    b.output(&y, &[2]);
    says(b.finish(), &["5 values"]);
}

#[test]
fn operations_that_ask_for_gigabytes() {
    let integers = |list: &[i64]| {
        let list = pb::TensorProto {
            dims: vec![list.len() as i64],
            data_type: 7,
            int64_data: list.to_vec(),
            ..Default::default()
        };
        vec![pb::AttributeProto { name: "value".into(), r#type: 4, t: Some(list), ..Default::default() }]
    };
    let shape = [1, 3, 1 << 20, 1 << 20];
    for (op, list, live) in [
        ("Expand", &shape[..], true),
        ("Expand", &shape, false),
        ("Tile", &shape, false),
        ("ConstantOfShape", &shape, false),
        ("Pad", &[0, 0, 1 << 20, 1 << 20, 0, 0, 0, 0], false),
    ] {
        let mut b = OnnxBuilder::new();
        b.input("images", Shape::new(8, 8, 3));
        // Computed, so that no look at the file alone finds it.
        let to = b.node("Constant", vec![], integers(list));
        let to = b.node("Identity", vec![to], vec![]);
        let x = if live { b.global_average_pool("images") } else { b.constant(&[1, 3, 1, 1], &[0.5; 3]) };
        let inputs = if op == "ConstantOfShape" { vec![to] } else { vec![x, to] };
        let y = b.node(op, inputs, vec![]);
        let pooled = b.global_average_pool("images");
        let y = b.add(&pooled, &y);
        b.output(&y, &[]);
        let model = Model::from_bytes(&b.finish().unwrap()).unwrap();
        says(TractModel::new(&model, None), &["too large"]);
        assert!(lower(&model, None).is_err());
    }
}

#[test]
fn bounds_that_are_no_single_number() {
    let mut b = OnnxBuilder::new();
    b.input("images", Shape::new(8, 8, 3));
    let (low, high) = (b.constant(&[], &[0.0]), b.constant(&[2], &[6.0, 7.0]));
    let y = b.node("Clip", vec!["images".into(), low, high], vec![]);
    b.output(&y, &[3, 8, 8]);
    let model = Model::from_bytes(&b.finish().unwrap()).unwrap();
    says(lower(&model, None), &["(Clip)", "no single f32"]);
}

/// Tract reads past the end of a shape of rank 1 here, unless it is checked first.
#[test]
fn ranks_tract_does_not_check() {
    for (op, rank1) in [("BatchNormalization", true), ("Conv", true), ("MaxPool", true), ("AveragePool", false)] {
        let mut b = OnnxBuilder::new();
        b.input("images", Shape::new(8, 8, 3));
        let four = [0.5; 4];
        let x = b.constant(if rank1 { &[4] } else { &[2, 2] }, &four);
        let y = match op {
            "BatchNormalization" => b.batch_norm(&x, &four, &four, &four, &four, 1e-5),
            "Conv" => {
                let w = b.constant(&[4, 1, 1, 1], &four);
                b.node("Conv", vec![x, w], vec![])
            }
            _ => b.node(op, vec![x], vec![ints("kernel_shape", [1, 1])]),
        };
        let y = b.node("Concat", vec![y.clone(), y], vec![int("axis", 0)]);
        let pooled = b.global_average_pool("images");
        let y = b.add(&pooled, &y);
        b.output(&y, &[]);
        let model = Model::from_bytes(&b.finish().unwrap()).unwrap();
        says(TractModel::new(&model, None), &["an input of rank"]);
        says(lower(&model, None), &["constant"]);
    }
}

#[test]
fn window_attributes_of_different_lengths() {
    says(
        changed(|g| {
            let node = g.node.iter_mut().find(|n| n.op_type == "MaxPool").unwrap();
            node.attribute.iter_mut().find(|a| a.name == "strides").unwrap().ints.pop();
        }),
        &["differ in their dimensions"],
    );
}

#[test]
fn permutations_that_are_none() {
    for (perm, words) in [(vec![0, 0, 2, 3], "every axis once"), (vec![1, 0], "rank 4 where 2")] {
        let mut b = OnnxBuilder::new();
        b.input("images", Shape::new(8, 8, 3));
        let y = b.node("Transpose", vec!["images".into()], vec![ints("perm", perm)]);
        b.output(&y, &[]);
        let planned = Model::from_bytes(&b.finish().unwrap()).and_then(|model| TractModel::new(&model, None));
        says(planned, &[words]);
    }
}

#[test]
fn training_that_only_its_outputs_tell() {
    let mut b = OnnxBuilder::new();
    b.input("images", Shape::new(4, 4, 2));
    let y = b.batch_norm("images", &[1.0; 2], &[0.0; 2], &[0.0; 2], &[1.0; 2], 1e-5);
    b.output(&y, &[]);
    let mut proto = pb::ModelProto::decode(&*b.finish().unwrap()).unwrap();
    let mut lowered = |outputs: &[&str]| {
        let node = &mut proto.graph.as_mut().unwrap().node[0];
        node.output.truncate(1);
        node.output.extend(outputs.iter().map(ToString::to_string));
        lower(&Model::from_bytes(&proto.encode_to_vec()).unwrap(), None)
    };
    assert!(lowered(&[]).is_ok() && lowered(&["", ""]).is_ok());
    says(lowered(&["mean", "variance"]), &["training mode"]);
}

#[test]
fn a_slice_over_several_axes_told_by_attributes() {
    let lowered = |axes: &[i64]| {
        let mut b = OnnxBuilder::new();
        b.input("images", Shape::new(6, 6, 2));
        let weight = b.constant(&[3, 2, 3, 3], &[0.5; 54]);
        let list = |v: i64| vec![v; axes.len()];
        let attributes = vec![ints("starts", list(0)), ints("ends", list(2)), ints("axes", axes)];
        let weight = b.node("Slice", vec![weight], attributes);
        let y = b.node("Conv", vec!["images".into(), weight], vec![]);
        b.output(&y, &[]);
        lower(&Model::from_bytes(&b.finish().unwrap()).unwrap(), None)
    };
    assert_eq!(lowered(&[2]).unwrap().as_net().output(), Shape::new(5, 4, 3));
    says(lowered(&[2, 3]), &["several axes"]);
}

#[test]
fn probabilities_are_told_from_logits() {
    let model = |after: &[&str]| {
        let mut b = OnnxBuilder::new();
        b.input("images", Shape::new(1, 1, 4));
        let mut y = b.flatten("images");
        for op in after {
            y = b.node(op, vec![y], vec![]);
        }
        b.output(&y, &[]);
        Model::from_bytes(&b.finish().unwrap()).unwrap().gives_probabilities()
    };
    assert!(model(&["Softmax"]) && model(&["Softmax", "Identity", "Flatten"]));
    assert!(!model(&[]) && !model(&["Softmax", "Log"]) && !model(&["LogSoftmax"]));
}
