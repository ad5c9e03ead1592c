//! Damaged and hostile files: always an answer, never a panic, a hang or a gigabyte.

use super::*;
use crate::net::tests::cases;
use proptest::prelude::*;
use prost::Message;
use std::time::{Duration, Instant};
use tract_onnx::pb;

/// The longest one damaged file may take, both ways together.
const DEADLINE: Duration = Duration::from_secs(30);

const NUMBERS: [i64; 14] = [-1, 0, 1, 2, 3, 4, 7, 16, 100, 4096, 1 << 20, 1 << 32, i64::MAX, i64::MIN];

const OPERATIONS: [&str; 28] = [
    "Conv",
    "ConvTranspose",
    "MaxPool",
    "AveragePool",
    "Gemm",
    "MatMul",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Pad",
    "Concat",
    "Slice",
    "Gather",
    "Transpose",
    "Expand",
    "Tile",
    "ConstantOfShape",
    "Range",
    "Resize",
    "Softmax",
    "TopK",
    "Split",
    "If",
    "Loop",
    "Scan",
    "OneHot",
    "BatchNormalization",
];

/// One change to a file.
#[derive(Clone, Debug)]
enum Damage {
    Byte(usize, u8),
    Truncate(usize),
    /// A number in an attribute's list, or its scalar.
    Attribute(usize, usize, usize, i64),
    DropAttribute(usize, usize),
    /// A node reads another tensor.
    Rewire(usize, usize, usize),
    Operation(usize, usize),
    DropNode(usize),
    /// A dimension of an initializer; the data follows if small.
    Dimension(usize, usize, i64, bool),
    InputDimension(usize, i64),
    /// The value of a small integer constant.
    Integer(usize, usize, i64),
}

fn damage() -> impl Strategy<Value = Damage> {
    let (n, v) = (any::<usize>(), (0..NUMBERS.len()).prop_map(|i| NUMBERS[i]));
    prop_oneof![
        4 => (n, any::<u8>()).prop_map(|(at, v)| Damage::Byte(at, v)),
        1 => n.prop_map(Damage::Truncate),
        4 => (n, n, n, v.clone()).prop_map(|(a, b, c, v)| Damage::Attribute(a, b, c, v)),
        1 => (n, n).prop_map(|(a, b)| Damage::DropAttribute(a, b)),
        3 => (n, n, n).prop_map(|(a, b, c)| Damage::Rewire(a, b, c)),
        3 => (n, 0..OPERATIONS.len()).prop_map(|(a, b)| Damage::Operation(a, b)),
        1 => n.prop_map(Damage::DropNode),
        3 => (n, n, v.clone(), any::<bool>()).prop_map(|(a, b, v, f)| Damage::Dimension(a, b, v, f)),
        2 => (1..4usize, v.clone()).prop_map(|(a, v)| Damage::InputDimension(a, v)),
        2 => (n, n, v).prop_map(|(a, b, v)| Damage::Integer(a, b, v)),
    ]
}

fn pick<T>(list: &mut [T], at: usize) -> Option<&mut T> {
    let n = list.len().max(1);
    list.get_mut(at % n)
}

/// Applies a change to the decoded graph; `None` if it does not apply.
fn apply(graph: &mut pb::GraphProto, damage: &Damage) -> Option<()> {
    match *damage {
        Damage::Byte(..) | Damage::Truncate(_) => {}
        Damage::Attribute(node, attribute, item, v) => {
            let attribute = pick(&mut pick(&mut graph.node, node)?.attribute, attribute)?;
            match pick(&mut attribute.ints, item) {
                Some(number) => *number = v,
                None => attribute.i = v,
            }
        }
        Damage::DropAttribute(node, attribute) => {
            let list = &mut pick(&mut graph.node, node)?.attribute;
            (!list.is_empty()).then(|| list.remove(attribute % list.len()))?;
        }
        Damage::Rewire(node, input, other) => {
            let names: Vec<String> = (graph.node.iter().flat_map(|n| n.output.clone()))
                .chain(graph.initializer.iter().map(|t| t.name.clone()))
                .collect();
            let node = node % graph.node.len().max(1);
            *pick(&mut graph.node.get_mut(node)?.input, input)? = names.get(other % names.len().max(1))?.clone();
        }
        Damage::Operation(node, op) => pick(&mut graph.node, node)?.op_type = OPERATIONS[op].into(),
        Damage::DropNode(node) => drop(graph.node.remove(node % graph.node.len())),
        Damage::Dimension(tensor, dim, v, follow) => {
            let tensor = pick(&mut graph.initializer, tensor)?;
            *pick(&mut tensor.dims, dim)? = v;
            let count = tensor.dims.iter().try_fold(1i64, |n, &d| n.checked_mul(d))?;
            if follow && (0..1 << 16).contains(&count) {
                tensor.raw_data.resize(count as usize * 4, 0);
            }
        }
        Damage::InputDimension(dim, v) => {
            let pb::type_proto::Value::TensorType(t) = graph.input[0].r#type.as_mut()?.value.as_mut()?;
            pick(&mut t.shape.as_mut()?.dim, dim)?.value = Some(pb::tensor_shape_proto::dimension::Value::DimValue(v));
        }
        Damage::Integer(node, item, v) => {
            let constants = graph.node.iter_mut().flat_map(|n| &mut n.attribute).filter_map(|a| a.t.as_mut());
            let mut constants: Vec<_> = constants.filter(|t| t.data_type == 7 && !t.raw_data.is_empty()).collect();
            let raw = &mut pick(&mut constants, node)?.raw_data;
            let item = item % (raw.len() / 8).max(1) * 8;
            raw.get_mut(item..item + 8)?.copy_from_slice(&v.to_le_bytes());
        }
    }
    Some(())
}

fn damaged(name: &str, list: &[Damage]) -> Vec<u8> {
    let mut proto = pb::ModelProto::decode(&*std::fs::read(testdata(name)).unwrap()).unwrap();
    for damage in list {
        apply(proto.graph.as_mut().unwrap(), damage);
    }
    let mut bytes = proto.encode_to_vec();
    for damage in list {
        match *damage {
            Damage::Byte(at, v) => {
                if let Some(byte) = pick(&mut bytes, at) {
                    *byte = v;
                }
            }
            Damage::Truncate(at) => bytes.truncate(at % (bytes.len() + 1)),
            _ => {}
        }
    }
    bytes
}

/// The most memory the process has held so far, in bytes; 0 where the system does not tell.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn damaged_files_are_answered(
        name in prop_oneof![Just("gemm.onnx"), Just("shapes.onnx"), Just("mobile.onnx"), Just("concat.onnx")],
        list in proptest::collection::vec(damage(), 1..4),
    ) {
        let bytes = damaged(name, &list);
        let start = Instant::now();
        if let Ok(model) = Model::from_bytes(&bytes) {
            let net = lower(&model, None);
            let tract = TractModel::new(&model, None);
            // What both accept, both compute alike; the size bounds the time.
            // A damaged byte may make a weight so large that rounding decides.
            let sane = !list.iter().any(|damage| matches!(damage, Damage::Byte(..)));
            if let (Ok(net), Ok(tract), true) = (&net, &tract, sane) {
                let small = net.as_net().multiply_adds() < 1 << 24 && model.input_shape().len() < 1 << 20;
                let x = noise(model.input_shape());
                let mut out = Vec::new();
                if small && tract.run(&x, &mut out).is_ok() && out.iter().all(|v| v.is_finite()) {
                    // Products of products magnify rounding: measure by how much.
                    let moved: Vec<f32> = x.iter().map(|v| v * (1.0 + 1e-6)).collect();
                    let allowed = 1e-3 + 100.0 * difference(&run_tract(tract, &moved), &out);
                    let lowered = run_net(net, &x);
                    // Tract may fold a value away before it overflows.
                    if lowered.iter().all(|v| v.is_finite()) {
                        let d = difference(&lowered, &out);
                        prop_assert!(d <= allowed, "{} apart, {} allowed", d, allowed);
                    }
                }
            }
        }
        prop_assert!(start.elapsed() < DEADLINE, "{:?}", start.elapsed());
        prop_assert!(peak() < 1 << 30, "{} bytes held", peak());
    }

    #[test]
    fn noise_is_answered(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        prop_assert!(Model::from_bytes(&bytes).is_err());
    }
}
