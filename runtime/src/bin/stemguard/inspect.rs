//! `inspect`: what a file holds and what it costs.

use crate::fail::Fail;
use crate::keys::hex;
use crate::model::{Loaded, head_name};
use crate::ui::{self, Common, grouped};
use serde::Serialize;
use std::path::PathBuf;
use stemguard_runtime::artifact::sign::Claim;
use stemguard_runtime::artifact::{ArtifactParts, HeadKind, HeadSpec, TripwireParts};
use stemguard_runtime::error::Result as CoreResult;
use stemguard_runtime::footprint::Footprint;
use stemguard_runtime::head::linear::Linear;
use stemguard_runtime::head::residual::Residual;
use stemguard_runtime::head::{self, HeadModel};
use stemguard_runtime::net::{Slot, Span};
use stemguard_runtime::replace;
use stemguard_runtime::session::bounds;
use stemguard_runtime::shape::Shape;
use stemguard_runtime::stem::Stem;

/// Classes that training memory is told for where a stem knows none.
const CLASSES: u32 = 10;

/// Tell what a .sgm or .onnx file holds and what it costs to run.
///
/// For an artifact: the operations, multiply-adds, and the exact bytes the core needs to run it and to train a head of either
/// kind; of a signature what it says, unverified. For an ONNX file: inputs, outputs, and whether it lowers to a native net, or why not.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    stemguard inspect defended.sgm\n  \
    stemguard inspect stem.sgm --batch 16 --holdout-count 200 --json\n  \
    stemguard inspect small.sgm --target cortex-m --batch 32 --holdout-count 256\n  \
    stemguard inspect model.onnx --tensors")]
pub(crate) struct Args {
    /// The file: .sgm or .onnx
    file: PathBuf,
    /// Cut an ONNX model at this tensor
    #[arg(long, value_name = "TENSOR")]
    at: Option<String>,
    /// List the tensors an ONNX model can be cut at
    #[arg(long)]
    tensors: bool,
    /// Training memory: pictures a step
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(2..=65536))]
    batch: u32,
    /// Training memory: pictures of the holdout
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    holdout_count: u32,
    /// Tell what the model takes of this kind of device, with a bank of --holdout-count pictures and steps of --batch
    #[arg(long, value_enum)]
    target: Option<Target>,
    #[command(flatten)]
    common: Common,
}

/// Devices that memory is told for.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Target {
    /// Cortex-M: one static memory that stem, heads and training share; no heap.
    CortexM,
}

/// Bytes on a device.
#[derive(Serialize)]
struct Device {
    /// Flash: the artifact.
    model_bytes: usize,
    picture_bytes: usize,
    map_bytes: usize,
    arena_bytes: usize,
    /// Inference of the model's head, or of its tripwire's witness where that takes more.
    head_bytes: usize,
    /// Training of a linear head.
    training_bytes: usize,
    /// The largest of arena, head and training.
    work_bytes: usize,
    bank_bytes: usize,
    order_bytes: usize,
    parameter_bytes: usize,
    /// Everything but the model.
    total_bytes: usize,
}

/// One operation.
#[derive(Serialize)]
struct Operation {
    number: usize,
    kind: &'static str,
    inputs: Vec<[u32; 3]>,
    output: [u32; 3],
    /// Elements in f32, bytes in int8.
    weights: u64,
    multiply_adds: u64,
}

/// A head in the file.
#[derive(Serialize)]
struct HeadReport {
    kind: &'static str,
    classes: u32,
    parameter_bytes: usize,
    scratch_bytes: usize,
}

/// A tripwire in the file.
#[derive(Serialize)]
struct TripwireReport {
    witness: HeadReport,
    threshold: f32,
    false_positive_rate: f32,
}

/// Bytes that training a head takes, beside the stem's arena and weights.
#[derive(Serialize)]
struct Training {
    kind: &'static str,
    /// `replace::memory_len`, 4 bytes each.
    memory_bytes: u64,
    /// Sums, 8 bytes each.
    sums_bytes: u64,
    /// Order of pictures, twice 4 bytes each.
    order_bytes: u64,
    /// The head's parameters.
    parameter_bytes: u64,
    /// One plain view of the holdout's features.
    features_bytes: u64,
}

/// A signature behind the artifact, unverified.
#[derive(Serialize)]
struct SignatureReport {
    key_id: String,
    model_version: u32,
}

/// A net, alone or in an artifact.
#[derive(Serialize)]
struct NetReport<'a> {
    name: &'a str,
    labels: Vec<&'a str>,
    provenance: &'a str,
    signature: Option<SignatureReport>,
    /// h, w, c
    input: [u32; 3],
    /// h, w, c
    features: [u32; 3],
    /// `f32` or `int8`
    precision: &'static str,
    operations: Vec<Operation>,
    multiply_adds: u64,
    weight_bytes: usize,
    arena_bytes: usize,
    /// One picture and its features, as the stem takes and gives them.
    input_bytes: usize,
    feature_bytes: usize,
    head: Option<HeadReport>,
    tripwire: Option<TripwireReport>,
    classes: u32,
    batch: u32,
    holdout_count: u32,
    training: Vec<Training>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cortex_m: Option<Device>,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<(), Fail> {
    let loaded = Loaded::open(&args.file, args.at.as_deref())?;
    #[cfg(feature = "onnx")]
    if let Some(file) = loaded.onnx() {
        return onnx::run(args, &loaded, file);
    }
    if args.tensors {
        return Err(Fail::at(&args.file, "has no tensors to cut at: --tensors is for an ONNX model"));
    }
    let parts = loaded.parts()?;
    let mut report = net_report(args, &parts)?;
    let told = |claim: Claim| SignatureReport { key_id: hex(&claim.key), model_version: claim.model_version };
    report.signature = loaded.claim().map(told);
    if args.common.json {
        return ui::json(&report);
    }
    print(&report)
}

const fn sides(s: Shape) -> [u32; 3] {
    [s.h, s.w, s.c]
}

fn net_report<'a>(args: &Args, parts: &ArtifactParts<'a>) -> Result<NetReport<'a>, Fail> {
    let stem = parts.stem;
    let refuse = |e: stemguard_runtime::error::Error| Fail::at(&args.file, e);
    let operations = match stem {
        Stem::F32(net) => {
            let of = net.ops().enumerate();
            of.map(|(i, op)| operation(i, op.name(), op.inputs(), op.output(), op.spans(), op.multiply_adds()))
                .collect()
        }
        Stem::Int8(net) => {
            let of = net.ops().enumerate();
            of.map(|(i, op)| operation(i, op.name(), op.inputs(), op.output(), op.spans(), op.multiply_adds()))
                .collect()
        }
    };
    let told = |spec: HeadSpec| -> Result<HeadReport, Fail> {
        Ok(HeadReport {
            kind: head_name(spec.kind),
            classes: spec.classes,
            parameter_bytes: 4 * spec.span.len as usize,
            scratch_bytes: 4 * head::inference_len(&spec, 1).map_err(refuse)?,
        })
    };
    let head = bounds::head_spec(parts).map(told).transpose()?;
    let witness = bounds::witness_spec(parts).map(told).transpose()?;
    let tripwire =
        witness.zip(parts.tripwire).map(|(witness, TripwireParts { threshold, false_positive_rate, .. })| {
            TripwireReport { witness, threshold, false_positive_rate }
        });
    let labels: Vec<&str> = parts.labels().collect();
    let classes = match (&head, labels.len()) {
        (Some(head), _) => head.classes,
        (None, 0) => CLASSES,
        (None, known) => known as u32,
    };
    let features = stem.output();
    let training = vec![
        training::<Linear>(HeadKind::Linear, args, features, classes).map_err(refuse)?,
        training::<Residual>(HeadKind::Residual, args, features, classes).map_err(refuse)?,
    ];
    Ok(NetReport {
        name: parts.name,
        labels,
        provenance: parts.provenance,
        signature: None,
        input: sides(stem.input()),
        features: sides(features),
        precision: stem.precision(),
        operations,
        multiply_adds: stem.multiply_adds(),
        weight_bytes: stem.weights().len(),
        arena_bytes: stem.arena_bytes(),
        input_bytes: stem.element() * stem.input().len(),
        feature_bytes: stem.element() * features.len(),
        head,
        tripwire,
        classes,
        batch: args.batch,
        holdout_count: args.holdout_count,
        training,
        cortex_m: args.target.map(|Target::CortexM| device(args, parts, classes)).transpose()?,
    })
}

/// What the parts take on a device.
fn device(args: &Args, parts: &ArtifactParts<'_>, classes: u32) -> Result<Device, Fail> {
    let refuse = |e: stemguard_runtime::error::Error| Fail::at(&args.file, e);
    let (bank, batch) = (args.holdout_count as usize, args.batch as usize);
    let heads: Vec<HeadSpec> = [bounds::head_spec(parts), bounds::witness_spec(parts)].into_iter().flatten().collect();
    let f = Footprint::of(&parts.stem, &heads, classes as usize, bank, batch).map_err(refuse)?;
    Ok(Device {
        model_bytes: stemguard_runtime::artifact::encoded_len(parts).map_err(refuse)?,
        picture_bytes: f.picture,
        map_bytes: f.map,
        arena_bytes: f.arena,
        head_bytes: f.head,
        training_bytes: f.training,
        work_bytes: f.work,
        bank_bytes: f.bank,
        order_bytes: f.order,
        parameter_bytes: f.parameters,
        total_bytes: f.total(),
    })
}

/// One line of the list.
fn operation(
    number: usize,
    kind: &'static str,
    (a, b): (Slot, Option<Slot>),
    output: Slot,
    spans: [Option<Span>; 2],
    multiply_adds: u64,
) -> Operation {
    Operation {
        number,
        kind,
        inputs: [Some(a), b].into_iter().flatten().map(|slot| sides(slot.shape)).collect(),
        output: sides(output.shape),
        weights: spans.into_iter().flatten().map(|span| u64::from(span.len)).sum(),
        multiply_adds,
    }
}

fn training<H: HeadModel>(kind: HeadKind, args: &Args, features: Shape, classes: u32) -> CoreResult<Training> {
    let (count, classes) = (u64::from(args.holdout_count), classes as usize);
    let head = H::new(features, classes)?;
    Ok(Training {
        kind: head_name(kind),
        memory_bytes: 4 * replace::memory_len(&head, args.batch as usize) as u64,
        sums_bytes: 8 * head.training_sums() as u64,
        order_bytes: 4 * 2 * count,
        parameter_bytes: 4 * head.params() as u64,
        features_bytes: 4 * count * features.len() as u64,
    })
}

fn by([h, w, c]: [u32; 3]) -> String {
    format!("{h}x{w}x{c}")
}

/// A text of a file on one line of a terminal.
fn shown(text: &str) -> String {
    let one = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(one).collect()
}

fn print(r: &NetReport<'_>) -> Result<(), Fail> {
    ui::line(format_args!("name          {}", shown(r.name)))?;
    if !r.labels.is_empty() {
        ui::line(format_args!("labels        {}", shown(&r.labels.join(", "))))?;
    }
    if !r.provenance.is_empty() {
        ui::line(format_args!("provenance    {}", shown(r.provenance)))?;
    }
    if let Some(SignatureReport { key_id, model_version }) = &r.signature {
        ui::line(format_args!("signature     key {key_id}, model version {model_version}, not verified"))?;
    }
    ui::line(format_args!("input         {}", by(r.input)))?;
    ui::line(format_args!("features      {}", by(r.features)))?;
    ui::line(format_args!("precision     {}", r.precision))?;
    match &r.head {
        None => ui::line("head          none")?,
        Some(head) => ui::line(format_args!("head          {}, {} classes", head.kind, head.classes))?,
    }
    if let Some(t) = &r.tripwire {
        let (kind, threshold, rate) = (t.witness.kind, t.threshold, t.false_positive_rate);
        ui::line(format_args!(
            "tripwire      {kind} witness, alarm above {threshold}, for a rate of {rate} on clean pictures"
        ))?;
    }
    ui::line(format_args!("work          {} multiply-adds a picture, without head", grouped(r.multiply_adds)))?;
    let row = |number: &str, kind: &str, inputs: &str, output: &str, weights: &str, work: &str| {
        ui::line(format!("{number:>4} {kind:15} {inputs:24} {output:14} {weights:>10} {work:>14}").trim_end())
    };
    ui::line("")?;
    let weights = if r.precision == "int8" { "bytes" } else { "weights" };
    row("op", "kind", "inputs", "output", weights, "multiply-adds")?;
    for op in &r.operations {
        let inputs: Vec<String> = op.inputs.iter().map(|&shape| by(shape)).collect();
        let (weights, work) = (grouped(op.weights), grouped(op.multiply_adds));
        row(&op.number.to_string(), op.kind, &inputs.join(" "), &by(op.output), &weights, &work)?;
    }
    ui::line("\nbytes to run one picture")?;
    let bytes = |what: &str, n: u64| ui::line(format_args!("  {what:20} {:>15}", grouped(n)));
    bytes("arena", r.arena_bytes as u64)?;
    bytes("weights", r.weight_bytes as u64)?;
    bytes("picture", r.input_bytes as u64)?;
    bytes("features", r.feature_bytes as u64)?;
    if let Some(head) = &r.head {
        bytes("head parameters", head.parameter_bytes as u64)?;
        bytes("head scratch", head.scratch_bytes as u64)?;
    }
    if let Some(TripwireReport { witness, .. }) = &r.tripwire {
        bytes("witness parameters", witness.parameter_bytes as u64)?;
        bytes("witness scratch", witness.scratch_bytes as u64)?;
    }
    let (batch, count, classes) = (r.batch, r.holdout_count, r.classes);
    for t in &r.training {
        let kind = t.kind;
        ui::line(format_args!("\nbytes to train a {kind} head: batch {batch}, {count} pictures, {classes} classes"))?;
        bytes("memory", t.memory_bytes)?;
        bytes("sums", t.sums_bytes)?;
        bytes("order", t.order_bytes)?;
        bytes("parameters", t.parameter_bytes)?;
        bytes("features, one view", t.features_bytes)?;
    }
    let Some(d) = &r.cortex_m else { return Ok(()) };
    ui::line(format_args!("\nbytes on a Cortex-M: a bank of {count} pictures, steps of {batch}, a linear head"))?;
    for (what, n) in [
        ("flash: model", d.model_bytes),
        ("picture", d.picture_bytes),
        ("features", d.map_bytes),
        ("arena", d.arena_bytes),
        ("head's inference", d.head_bytes),
        ("training", d.training_bytes),
        ("largest of the three", d.work_bytes),
        ("bank", d.bank_bytes),
        ("order of the bank", d.order_bytes),
        ("new head", d.parameter_bytes),
        ("RAM in all", d.total_bytes),
    ] {
        bytes(what, n as u64)?;
    }
    Ok(())
}

#[cfg(feature = "onnx")]
mod onnx {
    use super::{Args, NetReport, net_report, print, sides};
    use crate::fail::Fail;
    use crate::model::{Loaded, OnnxFile};
    use crate::ui;
    use serde::Serialize;

    /// An ONNX file.
    #[derive(Serialize)]
    struct Report<'a> {
        producer: &'a str,
        opset: i64,
        input: &'a str,
        /// h, w, c
        input_shape: [u32; 3],
        outputs: &'a [String],
        /// How many tensors the nodes compute.
        computed: usize,
        /// Whether the native backend runs it.
        lowers: bool,
        why_not: Option<String>,
        net: Option<NetReport<'a>>,
        tensors: Option<Vec<&'a str>>,
    }

    /// Tells about an ONNX file.
    pub(super) fn run(args: &Args, loaded: &Loaded, file: &OnnxFile) -> Result<(), Fail> {
        let parts = loaded.parts().ok();
        let model = &file.model;
        if let Some(why) = loaded.why_not_native().filter(|_| args.target.is_some()) {
            return Err(Fail::at(&args.file, format!("cannot run on such a device: {why}")));
        }
        let report = Report {
            producer: model.producer_name(),
            opset: model.opset(),
            input: model.input_name(),
            input_shape: sides(model.input_shape()),
            outputs: model.output_names(),
            computed: model.tensor_names().count(),
            lowers: parts.is_some(),
            why_not: loaded.why_not_native(),
            net: parts.as_ref().map(|parts| net_report(args, parts)).transpose()?,
            tensors: args.tensors.then(|| model.tensor_names().collect()),
        };
        if args.common.json {
            return ui::json(&report);
        }
        let [h, w, c] = report.input_shape;
        ui::line(format_args!("producer      {}, opset {}", report.producer, report.opset))?;
        ui::line(format_args!("onnx input    {} [N, {c}, {h}, {w}]", report.input))?;
        ui::line(format_args!("onnx outputs  {}", report.outputs.join(", ")))?;
        ui::line(format_args!("computed      {} tensors", report.computed))?;
        match &report.why_not {
            None => ui::line("lowers        yes")?,
            Some(why) => ui::line(format_args!("lowers        no: {why}"))?,
        }
        report.tensors.iter().flatten().try_for_each(|name| ui::line(format_args!("tensor        {name}")))?;
        report.net.as_ref().map_or(Ok(()), print)
    }
}
