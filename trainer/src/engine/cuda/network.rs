//! The network as launches: forward and backward pass of stem, head and decoder.

use super::args::{Entry, Gate, TailArgs};
use super::backend::{Kernel, Region};
use super::builder::{Builder, LANE_SUMS, Map, NormState, Product};
use super::layout::Span;
use crate::engine::EngineError;
use crate::nn::layer::Squash;
use crate::nn::{Layer, Sequence};
use bytemuck::Zeroable;
use dfdx::prelude::HasShape as _;
use stemguard_runtime::kernels::ConvShape;
use stemguard_runtime::layers::SLOPE;
use stemguard_runtime::layers::basic::BasicShape;
use stemguard_runtime::layers::front::FrontShape;
use stemguard_runtime::layers::unit::UnitShape;
use stemguard_runtime::shape::Shape;

/// What a layer's forward pass leaves for its backward pass.
pub(super) enum Left {
    /// A convolution or transposed convolution.
    Conv { name: String, x: Map },
    /// A residual unit: input, hidden map, states of both norms.
    Unit { name: String, x: Map, h: Map, first: Option<NormState>, second: NormState },
    /// The tail; its argument goes on. A ResNet's has no norm.
    Tail { name: String, x: Map, state: Option<NormState>, args: TailArgs },
    /// A ResNet's front: input, map and state of its norm, where the pool's values stood.
    Front { name: String, x: Map, h: Map, state: NormState, index: Option<Region> },
    /// A basic block: input, maps of both convolutions and of the skip's, with the states of their norms.
    Basic { name: String, x: Map, first: (Map, NormState), second: (Map, NormState), short: Option<(Map, NormState)> },
}

/// What the tail reads and writes outside the network.
#[derive(Clone, Copy, Default)]
pub(super) struct Ends {
    /// Labels, flags and order of the pass; labels are null in inference, the others where there are none.
    pub(super) labels: u64,
    pub(super) forget: u64,
    pub(super) order: u64,
    /// Mixed labels: those of the mates, the share that stays, smoothing.
    pub(super) soft: Option<(u64, u64, f32)>,
    pub(super) control: u64,
    /// Cross-entropy of the batch.
    pub(super) ce: u64,
    /// Log-odds and answers by place in the order.
    pub(super) fit: u64,
    pub(super) answers: u64,
}

/// Most channels and classes that the tail's kernel has room for.
const TAIL_MOST: usize = 1024;

fn refused(what: &str) -> EngineError {
    EngineError::Unavailable(format!("--device cuda: {what}; use --device cpu"))
}

/// The forward pass of a sequence; in training with batch statistics.
pub(super) fn forward(
    b: &mut Builder<'_>,
    prefix: &str,
    net: &Sequence,
    mut x: Map,
    training: bool,
    ends: &Ends,
) -> Result<(Map, Vec<Left>), EngineError> {
    let mut left = Vec::new();
    for (name, layer) in net.names.iter().zip(&net.layers) {
        let name = format!("{prefix}.{name}");
        let (y, l) = match layer {
            Layer::Conv { shape, .. } => {
                let spans = b.conv_spans(&name)?;
                let y =
                    b.product(&Product { sums: training, ..Product::forward(shape, x.at(), Entry::Plain, spans) })?;
                (y, Left::Conv { name, x })
            }
            Layer::Unit { shape, .. } => unit(b, name, shape, x, training)?,
            Layer::Tail { shape, bias, .. } => tail(b, name, *shape, bias.shape().0, true, x, training, ends)?,
            Layer::PoolLinear(p) => tail(b, name, p.shape.x, p.shape.linear.y.c as usize, false, x, training, ends)?,
            Layer::Front(f) => front(b, name, &f.shape, x, training)?,
            Layer::Basic(s) => basic(b, name, &s.shape, x, training)?,
            Layer::Deconv { shape, squash, .. } => {
                let [weight, bias] = b.conv_spans(&name)?;
                let squash = match squash {
                    Squash::Relu => 1,
                    Squash::Sigmoid => 2,
                };
                let p = Product::new(shape, true, x.at(), Entry::Plain, weight);
                (b.product(&Product { bias: Some(bias), squash, ..p })?, Left::Conv { name, x })
            }
        };
        if training {
            left.push(l);
        } else {
            b.give(x.region);
        }
        x = y;
    }
    Ok((x, left))
}

/// The forward pass of a residual unit; in training the sums over `x` are given back.
pub(super) fn unit(
    b: &mut Builder<'_>,
    name: String,
    s: &UnitShape,
    x: Map,
    training: bool,
) -> Result<(Map, Left), EngineError> {
    let first = if s.preact { Some(b.norm(&format!("{name}.bn1"), &x, SLOPE)?) } else { None };
    if !s.preact {
        b.give_sums(x.sums);
    }
    let entry = first.map_or(Entry::Plain, |f| f.entry());
    let spans = b.conv_spans(&format!("{name}.conv1"))?;
    let h = b.product(&Product { sums: training, ..Product::forward(&s.conv1, x.at(), entry, spans) })?;
    let second = b.norm(&format!("{name}.bn2"), &h, SLOPE)?;
    let skip = match &s.short {
        Some(short) => {
            let spans = b.conv_spans(&format!("{name}.short"))?;
            Some(b.product(&Product::forward(short, x.at(), entry, spans))?)
        }
        None => None,
    };
    let spans = b.conv_spans(&format!("{name}.conv2"))?;
    let add = skip.map_or(x.at(), |s| s.at());
    let p = Product { add, sums: training, ..Product::forward(&s.conv2, h.at(), second.entry(), spans) };
    let y = b.product(&p)?;
    if let Some(skip) = skip {
        b.give(skip.region);
    }
    if !training {
        b.give(h.region);
    }
    Ok((y, Left::Unit { name, x, h, first, second }))
}

/// A convolution without bias, and the norm and ReLU behind it.
fn normed_conv(
    b: &mut Builder<'_>,
    [conv, norm]: [&str; 2],
    g: &ConvShape,
    x: u64,
    entry: Entry,
    training: bool,
) -> Result<(Map, NormState), EngineError> {
    let weight = b.layout.param(&format!("{conv}.weight"))?;
    let h = b.product(&Product { sums: training, ..Product::new(g, false, x, entry, weight) })?;
    let state = b.norm(norm, &h, 0.0)?;
    Ok((h, state))
}

/// The gradient of such a convolution's weights and, where `to` asks for it, that with respect to what went in.
fn normed_conv_backward(
    b: &mut Builder<'_>,
    conv: &str,
    g: &ConvShape,
    (x, entry): (u64, Entry),
    (dy, arriving): (u64, Entry),
    to: Option<Product<'_>>,
) -> Result<Option<Map>, EngineError> {
    let weight = b.layout.param(&format!("{conv}.weight"))?;
    b.weights(g, (x, entry), (dy, arriving), weight, None)?;
    to.map(|p| b.product(&Product { x: dy, entry: arriving, weight, ..p })).transpose()
}

fn front(
    b: &mut Builder<'_>,
    name: String,
    s: &FrontShape,
    x: Map,
    training: bool,
) -> Result<(Map, Left), EngineError> {
    let names = [&*format!("{name}.conv1"), &*format!("{name}.bn1")];
    let (h, state) = normed_conv(b, names, &s.conv, x.at(), Entry::Plain, training)?;
    let (y, index) = match &s.pool {
        Some(pool) => {
            let (y, index) = b.pool(pool, &h, state)?;
            (y, Some(index))
        }
        None => (b.joined(&h, state, None)?, None),
    };
    if !training {
        b.give(h.region);
        index.into_iter().for_each(|i| b.give(i));
    }
    Ok((y, Left::Front { name, x, h, state, index }))
}

fn front_backward(
    b: &mut Builder<'_>,
    name: &str,
    s: &FrontShape,
    x: Map,
    (h, state): (Map, NormState),
    index: Option<Region>,
    dy: Map,
) -> Result<(), EngineError> {
    let dz = match s.pool.as_ref().zip(index) {
        Some((pool, index)) => b.pool_backward(pool, &h, state, index, &dy)?,
        None => dy,
    };
    let (sums, _) = b.joined_backward(&h, state, None, &dz)?;
    let k = b.norm_backward(&format!("{name}.bn1"), state, h.shape, sums)?;
    let arriving = Entry::Back(k.address, h.at());
    normed_conv_backward(b, &format!("{name}.conv1"), &s.conv, (x.at(), Entry::Plain), (dz.at(), arriving), None)?;
    Ok(())
}

fn basic(
    b: &mut Builder<'_>,
    name: String,
    s: &BasicShape,
    x: Map,
    training: bool,
) -> Result<(Map, Left), EngineError> {
    let of = |conv: &str, norm: &str| [format!("{name}.{conv}"), format!("{name}.{norm}")];
    let [conv, norm] = of("conv1", "bn1");
    let first = normed_conv(b, [&conv, &norm], &s.conv1, x.at(), Entry::Plain, training)?;
    let [conv, norm] = of("conv2", "bn2");
    let second = normed_conv(b, [&conv, &norm], &s.conv2, first.0.at(), first.1.entry(), training)?;
    let [conv, norm] = of("short", "bn_short");
    let short = match &s.short {
        Some(g) => Some(normed_conv(b, [&conv, &norm], g, x.at(), Entry::Plain, training)?),
        None => None,
    };
    let skip = short.as_ref().map_or((&x, None), |(h, state)| (h, Some(*state)));
    let y = b.joined(&second.0, second.1, Some(skip))?;
    if !training {
        for (h, _) in [first, second].into_iter().chain(short) {
            b.give(h.region);
        }
    }
    Ok((y, Left::Basic { name, x, first, second, short }))
}

/// The backward pass of a basic block; the gradient with respect to its input. `dy` is overwritten.
#[allow(clippy::too_many_arguments)]
fn basic_backward(
    b: &mut Builder<'_>,
    name: &str,
    s: &BasicShape,
    x: Map,
    first: (Map, NormState),
    second: (Map, NormState),
    short: Option<(&ConvShape, (Map, NormState))>,
    dy: Map,
) -> Result<Map, EngineError> {
    let untaken = || EngineError::Failed("sums that were not taken".into());
    // The weights' place is filled in where the product is asked for.
    let back = |g| Product::new(g, true, 0, Entry::Plain, Span { first: 0, len: 0 });
    let skip = short.as_ref().map_or((&x, None), |(_, (h, state))| (h, Some(*state)));
    let (sums, of_skip) = b.joined_backward(&second.0, second.1, Some(skip), &dy)?;
    let k2 = b.norm_backward(&format!("{name}.bn2"), second.1, second.0.shape, sums)?;
    let mut dskip = None;
    if let (Some((g, (h, state))), Some(sums)) = (short, of_skip) {
        let k = b.norm_backward(&format!("{name}.bn_short"), state, h.shape, sums)?;
        let (from, arriving) = ((x.at(), Entry::Plain), (dy.at(), Entry::Back(k.address, h.at())));
        dskip = normed_conv_backward(b, &format!("{name}.short"), g, from, arriving, Some(back(g)))?;
        b.give(k);
    }
    let (h, state) = &first;
    let (from, arriving) = ((h.at(), state.entry()), (dy.at(), Entry::Back(k2.address, second.0.at())));
    let to = Product { gate: state.gate(h), sums: true, ..back(&s.conv2) };
    let dh = normed_conv_backward(b, &format!("{name}.conv2"), &s.conv2, from, arriving, Some(to))?;
    let dh = dh.ok_or_else(untaken)?;
    let k1 = b.norm_backward(&format!("{name}.bn1"), *state, h.shape, dh.sums.ok_or_else(untaken)?)?;
    let arriving = (dh.at(), Entry::Back(k1.address, h.at()));
    let to = Product { add: dskip.map_or(dy.at(), |d| d.at()), ..back(&s.conv1) };
    let dx = normed_conv_backward(b, &format!("{name}.conv1"), &s.conv1, (x.at(), Entry::Plain), arriving, Some(to))?;
    for region in [k1, k2, dh.region].into_iter().chain(dskip.map(|d| d.region)) {
        b.give(region);
    }
    dx.ok_or_else(untaken)
}

/// The forward pass of the classifier's end, with a norm in front or none.
#[allow(clippy::too_many_arguments)]
pub(super) fn tail(
    b: &mut Builder<'_>,
    name: String,
    s: Shape,
    classes: usize,
    normed: bool,
    x: Map,
    training: bool,
    ends: &Ends,
) -> Result<(Map, Left), EngineError> {
    let (n, c) = (b.n, s.c as usize);
    if c > TAIL_MOST || classes > TAIL_MOST {
        return Err(refused("more than 1024 classes or channels at the end"));
    }
    let state = if normed { Some(b.norm(&format!("{name}.bn"), &x, SLOPE)?) } else { None };
    let norm = match state {
        Some(state) => state.affine(),
        None => {
            b.give_sums(x.sums);
            b.constant(&[vec![1.0; c], vec![0.0; c]].concat())?
        }
    };
    let [weight, bias] = b.conv_spans(&format!("{name}.fc"))?;
    let logits = Map { region: b.take(n * classes)?, shape: Shape::new(1, 1, classes as u32), sums: None };
    let (mates, keep, smoothing) = ends.soft.unwrap_or_default();
    let mut args = TailArgs {
        x: x.at(),
        norm,
        weight: b.param(weight),
        bias: b.param(bias),
        labels: if training { ends.labels } else { 0 },
        forget: ends.forget,
        order: ends.order,
        mates,
        keep,
        control: ends.control,
        pooled: b.take(n * c)?.address,
        logits: logits.at(),
        ce: ends.ce,
        fit: ends.fit,
        answers: ends.answers,
        n: n as i32,
        pixels: (s.h * s.w) as i32,
        c: c as i32,
        classes: classes as i32,
        smoothing,
        slope: if normed { SLOPE } else { 1.0 },
        ..TailArgs::zeroed()
    };
    if training {
        args.dlogits = b.take(n * classes)?.address;
        args.dpooled = b.take(n * c)?.address;
        args.dweight = b.grad(weight);
        args.dbias = b.grad(bias);
    }
    b.launch(Kernel::TailForward, [n, 1, 1], &args);
    Ok((logits, Left::Tail { name, x, state, args }))
}

/// The backward pass of a stem or head from `dy` (none: the tail makes it) to the gradient of its input, which is the last one
/// unless it is `wanted`.
pub(super) fn backward(
    b: &mut Builder<'_>,
    net: &Sequence,
    left: Vec<Left>,
    mut dy: Option<Map>,
    wanted: bool,
) -> Result<Option<Map>, EngineError> {
    for (i, (layer, left)) in net.layers.iter().zip(left).enumerate().rev() {
        let next = match (layer, left, dy) {
            (Layer::Tail { .. } | Layer::PoolLinear(_), Left::Tail { name, x, state, args }, None) => {
                Some(tail_backward(b, &name, x, state, args)?)
            }
            (Layer::Basic(s), Left::Basic { name, x, first, second, short }, Some(dy)) => {
                let short = s.shape.short.as_ref().zip(short);
                Some(basic_backward(b, &name, &s.shape, x, first, second, short, dy)?)
            }
            (Layer::Front(f), Left::Front { name, x, h, state, index }, Some(dy)) if i == 0 && !wanted => {
                front_backward(b, &name, &f.shape, x, (h, state), index, dy)?;
                None
            }
            (Layer::Unit { shape, .. }, Left::Unit { name, x, h, first, second }, Some(dy)) => {
                Some(unit_backward(b, &name, shape, [x, h], first, second, dy)?)
            }
            (Layer::Conv { shape, .. }, Left::Conv { name, x }, Some(dy)) if i == 0 && !wanted => {
                let [weight, bias] = b.conv_spans(&name)?;
                b.weights(shape, (x.at(), Entry::Plain), (dy.at(), Entry::Plain), weight, Some(bias))?;
                None
            }
            _ => return Err(EngineError::Failed("layers in another order than the engine knows".into())),
        };
        if let Some(dy) = dy {
            b.give(dy.region);
        }
        dy = next;
    }
    Ok(dy)
}

/// The backward pass of the tail.
pub(super) fn tail_backward(
    b: &mut Builder<'_>,
    name: &str,
    x: Map,
    state: Option<NormState>,
    mut args: TailArgs,
) -> Result<Map, EngineError> {
    let (n, c) = (b.n, x.shape.c as usize);
    b.launch(Kernel::TailWeights, [((c + 1) * args.classes as usize).div_ceil(LANE_SUMS), 1, 1], &args);
    let Some(state) = state else {
        let dx = b.map(x.shape)?;
        args.k = b.constant(&[vec![1.0; c], vec![0.0; 2 * c]].concat())?;
        args.dx = dx.at();
        b.launch(Kernel::TailGradient, [n, x.shape.len().div_ceil(256), 1], &args);
        return Ok(dx);
    };
    let sums = b.sums(c, n)?;
    args.sums = sums.region.address;
    b.launch(Kernel::TailSums, [n, 1, 1], &args);
    let k = b.norm_backward(&format!("{name}.bn"), state, x.shape, sums)?;
    let dx = b.map(x.shape)?;
    (args.k, args.dx) = (k.address, dx.at());
    b.launch(Kernel::TailGradient, [n, x.shape.len().div_ceil(256), 1], &args);
    b.give(k);
    Ok(dx)
}

/// The backward pass of a residual unit; the gradient with respect to its input.
pub(super) fn unit_backward(
    b: &mut Builder<'_>,
    name: &str,
    s: &UnitShape,
    [x, h]: [Map; 2],
    first: Option<NormState>,
    second: NormState,
    dy: Map,
) -> Result<Map, EngineError> {
    let summed = |m: &Map| m.sums.ok_or_else(|| EngineError::Failed("sums that were not taken".into()));
    let [w1, b1] = b.conv_spans(&format!("{name}.conv1"))?;
    let [w2, b2] = b.conv_spans(&format!("{name}.conv2"))?;
    let p = Product::gradient(&s.conv2, dy.at(), Entry::Plain, w2, second.gate(&h));
    let dh = b.product(&Product { sums: true, ..p })?;
    b.weights(&s.conv2, (h.at(), second.entry()), (dy.at(), Entry::Plain), w2, Some(b2))?;
    let k2 = b.norm_backward(&format!("{name}.bn2"), second, s.conv1.y, summed(&dh)?)?;

    let (entry, gate) = first.map_or((Entry::Plain, Gate::Open), |f| (f.entry(), f.gate(&x)));
    let mut dskip = None;
    if let Some(short) = &s.short {
        let [weight, bias] = b.conv_spans(&format!("{name}.short"))?;
        dskip = Some(b.product(&Product::gradient(short, dy.at(), Entry::Plain, weight, gate))?);
        b.weights(short, (x.at(), entry), (dy.at(), Entry::Plain), weight, Some(bias))?;
    }
    let arriving = Entry::Back(k2.address, h.at());
    let p = Product::gradient(&s.conv1, dh.at(), arriving, w1, gate);
    let dx = b.product(&Product { add: dskip.map_or(0, |d| d.at()), sums: first.is_some(), ..p })?;
    b.weights(&s.conv1, (x.at(), entry), (dh.at(), arriving), w1, Some(b1))?;
    if let Some(first) = first {
        let k1 = b.norm_backward(&format!("{name}.bn1"), first, s.x(), summed(&dx)?)?;
        b.norm_gradient(&dx, &x, k1, if s.short.is_none() { dy.at() } else { 0 })?;
        b.give(k1);
    }
    b.give(dh.region);
    b.give(k2);
    if let Some(d) = dskip {
        b.give(d.region);
    }
    Ok(Map { sums: None, ..dx })
}

/// The backward pass of a decoder from the gradient in front of its last squashing; `add` is added to that of the features.
pub(super) fn decoder_backward(
    b: &mut Builder<'_>,
    net: &Sequence,
    left: Vec<Left>,
    mut dz: Map,
    add: u64,
) -> Result<Map, EngineError> {
    for (i, (layer, left)) in net.layers.iter().zip(left).enumerate().rev() {
        let (Layer::Deconv { shape, .. }, Left::Conv { name, x }) = (layer, left) else {
            return Err(EngineError::Failed("a decoder of other layers than the engine knows".into()));
        };
        let [weight, bias] = b.conv_spans(&name)?;
        b.columns(&dz, bias)?;
        b.weights(shape, (dz.at(), Entry::Plain), (x.at(), Entry::Plain), weight, None)?;
        let p = Product::new(shape, false, dz.at(), Entry::Plain, weight);
        // What comes in is a rectified map, but for the features.
        let p = if i == 0 { Product { add, ..p } } else { Product { gate: Gate::Rectified(x.at()), ..p } };
        let dx = b.product(&p)?;
        b.give(dz.region);
        dz = dx;
    }
    Ok(dz)
}
