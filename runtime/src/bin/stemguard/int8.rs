//! `pack --int8`: a stem quantised on calibration pictures.

use crate::eval;
use crate::fail::Fail;
use crate::pack::{Args, Calibrated, write};
use crate::pictures::check_channels;
use std::path::Path;
use stemguard_runtime::artifact::ArtifactParts;
use stemguard_runtime::data::{Part, Spec};
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::net::Net;
use stemguard_runtime::quantise::{calibrate, quantise};
use stemguard_runtime::rng::Rng;
use stemguard_runtime::session::Session;
use stemguard_runtime::stem::Stem;

/// The most bytes of calibration pictures: 8 GiB.
const MAX_BYTES: u64 = 8 << 30;
/// Pictures that are compared together.
const BATCH: usize = 64;

/// Parses a data set's name.
pub(crate) fn parse(spec: &str) -> Result<Spec, Fail> {
    eval::parse("--calibrate", spec)
}

/// Quantises the stem of the parts, which were read from `model`, and writes the result.
pub(crate) fn pack(args: &Args, model: &Path, parts: &ArtifactParts<'_>, spec: &Spec) -> Result<(), Fail> {
    let Stem::F32(net) = parts.stem else { return Err(Fail::at(model, "its stem is int8 already")) };
    check_channels(model, net.input())?;
    let kernels = args.common.kernels();
    let pictures = pictures(args, &net, spec)?;
    let count = pictures.len() / net.input().len();
    let refuse = |e| Fail::at(model, format!("no int8 form: {e}"));
    let calibration = calibrate(&net, &kernels, &pictures).map_err(refuse)?;
    let small = quantise(&net, &calibration).map_err(refuse)?;
    let calibrated = Calibrated {
        pictures: count,
        signal_to_error_db: signal_to_error(&net, small.as_net().into(), &kernels, &pictures)
            .map_err(|e| Fail::at(model, e))?,
    };
    let name = spec.to_string();
    let note = format!("; int8, calibrated on {count} pictures ({})", name.split(':').next().unwrap_or_default());
    // The stem's story comes before its head's.
    let at = parts.provenance.find("; head: ").unwrap_or(parts.provenance.len());
    let (stem, head) = parts.provenance.split_at(at);
    let provenance = format!("{stem}{note}{head}");
    write(args, &ArtifactParts { stem: small.as_net().into(), provenance: &provenance, ..*parts }, Some(calibrated))
}

/// The calibration pictures, `[n][h][w][3]`, 0..=1: as many as asked for and there are, drawn from all of them.
fn pictures(args: &Args, net: &Net<'_>, spec: &Spec) -> Result<Vec<f32>, Fail> {
    let all = eval::load(spec, net.input(), Part::Train)?;
    let mut order: Vec<usize> = (0..all.len()).collect();
    Rng::new(0, 0).shuffle(&mut order);
    order.truncate(args.calibrate_count as usize);
    let bytes = 4 * order.len() as u64 * net.input().len() as u64;
    if bytes > MAX_BYTES {
        let why = format!("{} pictures take {bytes} bytes, more than 8 GiB", order.len());
        return Err(Fail::input(format!("--calibrate-count: {why}")));
    }
    let mut x = vec![0.0; order.len() * net.input().len()];
    all.to_f32(&order, &mut x).map_err(|e| Fail::Other(e.to_string()))?;
    Ok(x)
}

/// Energy of the features over that of what quantising changes in them, in decibels; at most 999.
fn signal_to_error(
    net: &Net<'_>,
    small: Stem<'_>,
    kernels: &Simd,
    pictures: &[f32],
) -> Result<f64, stemguard_runtime::error::Error> {
    let sessions = [Session::of_net(*net, kernels.clone()), Session::of_stem(small, kernels.clone())];
    let (mut signal, mut error) = (0.0f64, 0.0f64);
    for x in pictures.chunks(BATCH * net.input().len()) {
        let n = x.len() / net.input().len();
        let mut features = [vec![0.0; n * net.output().len()], vec![0.0; n * net.output().len()]];
        for (session, out) in sessions.iter().zip(&mut features) {
            session.features(x, out)?;
        }
        for (&a, &b) in features[0].iter().zip(&features[1]) {
            signal += f64::from(a).powi(2);
            error += (f64::from(a) - f64::from(b)).powi(2);
        }
    }
    Ok(if error > 0.0 && signal > 0.0 { (10.0 * (signal / error).log10()).min(999.0) } else { 999.0 })
}
