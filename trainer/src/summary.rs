//! From run directories to a report: the stages side by side, curves, pictures, the configuration.

use crate::attack::attacks;
use crate::audit;
use crate::config::RunConfig;
use crate::engine::CpuEngine;
use crate::error::Failure;
use crate::evaluate::Evaluation;
use crate::imprint::Imprint;
use crate::prepare::{Prepared, reopen};
use crate::purify::PURIFIED;
use crate::report::{Attack, Counts, Curve, Picture, PictureRow, ReportData, Series, Stage};
use crate::run::{EpochLine, Record, RunDir, StageResult};
use crate::trap;
use stemguard_runtime::data::Pictures;
use stemguard_runtime::kernels::simd::Simd;
use stemguard_runtime::metrics::{argmax, der};

/// Test pictures shown.
const SHOWN: usize = 6;
/// Accused pictures shown.
const ACCUSED: usize = 12;

/// How the stages of `results.json` are called and explained on the page.
fn wording(stage: &str) -> (&str, &str) {
    match stage {
        "trained" => ("baseline", "Trained on the suspect data without a defence."),
        "ceiling" => ("ceiling", "Trained on the clean part of the suspect data alone: what no defence can know."),
        "trapped" => ("trapped", "Stage 1: stem, light head and reconstruction head; figures with the light head."),
        "control" => ("control", "A new head on the undefended stem: what replacing alone does."),
        "defended" => ("defended", "Stage 2: a new head on the trapped stem, from the clean holdout."),
        "purified" => ("purified", "What the audit accused is unlearned, from the trapped stem on, with a fresh head."),
        other => (other, ""),
    }
}

fn stage(name: &str, e: &Evaluation, seconds: f64, baseline: Option<&Evaluation>, attacked: bool) -> Stage {
    let (name, note) = wording(name);
    let seen = |v: f64| attacked.then_some(v);
    Stage {
        name: name.into(),
        note: note.into(),
        acc: e.acc,
        asr: seen(e.asr),
        ra: seen(e.ra),
        der: if name == "baseline" { None } else { baseline.and_then(|b| seen(der(b.acc, b.asr, e.acc, e.asr))) },
        chance: Some(e.chance),
        seconds: Some(seconds),
        confusion: Some(e.confusion.clone()),
        // The page leaves out what is no number.
        per_class: e.known_per_class().into_iter().map(|acc| acc.unwrap_or(f64::NAN)).collect(),
    }
}

fn curves(name: &str, lines: &[EpochLine]) -> Vec<Curve> {
    let series = |label: &str, value: &dyn Fn(&EpochLine) -> Option<f64>| Series {
        name: label.into(),
        points: lines.iter().filter_map(|l| Some((f64::from(l.epoch), value(l)?))).collect(),
    };
    let mut parts = vec![series("cross-entropy", &|l| Some(f64::from(l.losses.ce)))];
    if lines.iter().any(|l| l.losses.mse > 0.0) {
        parts.push(series("reconstruction, MSE", &|l| Some(f64::from(l.losses.mse))));
        parts.push(series("reconstruction, TV", &|l| Some(f64::from(l.losses.tv))));
    }
    let curve = |title: String, y_label: &str, percent, series| Curve {
        title,
        y_label: y_label.into(),
        percent,
        series,
        ..Curve::default()
    };
    let tested = vec![series("ACC", &|l| l.acc), series("ASR", &|l| l.asr)];
    let mut all = vec![
        curve(format!("{name}: training losses"), "loss", false, parts),
        curve(format!("{name}: test pictures"), "share", true, tested),
    ];
    if lines.iter().any(|l| l.unlearned.is_some()) {
        let accused = vec![series("accused by the guard", &|l| l.unlearned.map(|n| n as f64))];
        all.push(curve(format!("{name}: pictures unlearned"), "pictures", false, accused));
    }
    all
}

/// A few test pictures: clean, triggered, ten times the difference, and what the decoder makes of both.
fn pictures(data: &Prepared, engine: &mut CpuEngine) -> Result<Vec<PictureRow>, Failure> {
    let (clean, target) = (&data.test.clean, data.test.target);
    // Triggered pictures are the clean ones of other classes, in the same order.
    let sources: Vec<usize> = (0..clean.len()).filter(|&i| clean.labels[i] != target).collect();
    let step = (sources.len() / SHOWN).max(1);
    let mut rows = Vec::new();
    for (place, &i) in sources.iter().enumerate().step_by(step).take(SHOWN) {
        let (a, b) = (clean.picture(i), data.test.triggered.picture(place));
        let cell = |label: String, rgb: Vec<u8>| Picture { label, h: clean.h, w: clean.w, rgb };
        let as_f32 = |bytes: &[u8]| -> Vec<f32> { bytes.iter().map(|&v| f32::from(v) / 255.0).collect() };
        let difference = a.iter().zip(b).map(|(&a, &b)| (128 + 10 * (i32::from(b) - i32::from(a))).clamp(0, 255) as u8);
        let mut cells = Vec::new();
        let mut rebuilt = Vec::new();
        for (what, bytes) in [("clean", a), ("triggered", b)] {
            let x = as_f32(bytes);
            let answer = argmax(&engine.logits(&x));
            cells.push(cell(format!("{what}: {}", name_of(clean, answer)), bytes.to_vec()));
            if let Some(r) = engine.reconstruct(&x) {
                let rgb = r.iter().map(|v| (v.clamp(0.0, 1.0) * 255.0 + 0.5) as u8).collect();
                rebuilt.push(cell(format!("{what}, rebuilt"), rgb));
            }
        }
        cells.push(cell("difference x10".into(), difference.collect()));
        cells.extend(rebuilt);
        rows.push(PictureRow { caption: format!("true class: {}", name_of(clean, clean.labels[i] as usize)), cells });
    }
    Ok(rows)
}

/// The most suspicious pictures, and what the accused of each class show, stamped on clean pictures.
fn accused(data: &Prepared, found: &audit::Summary) -> Vec<PictureRow> {
    let (suspects, clean) = (data.suspect.pictures(), data.holdout.pictures());
    let places: Vec<usize> =
        found.accused_pictures.iter().map(|&i| i as usize).filter(|&i| i < suspects.len()).collect();
    let cell = |label: &str, rgb: &[u8]| Picture { label: label.into(), h: clean.h, w: clean.w, rgb: rgb.to_vec() };
    let mut rows = Vec::new();
    if !places.is_empty() {
        let cells = places.iter().take(ACCUSED);
        let cells = cells.map(|&i| cell(name_of(suspects, suspects.labels[i] as usize), suspects.picture(i))).collect();
        rows.push(PictureRow { caption: "the most suspicious, by their given labels".into(), cells });
    }
    let mut flags = vec![false; suspects.len()];
    places.iter().for_each(|&i| flags[i] = true);
    for class in found.classes.iter().filter(|c| c.suspected) {
        let Some(imprint) = Imprint::of(suspects, &flags, class.class) else { continue };
        let mut cells = Vec::new();
        for i in (0..clean.len()).step_by((clean.len() / SHOWN).max(1)).take(SHOWN) {
            let mut stamped = clean.picture(i).to_vec();
            imprint.stamp(&mut stamped);
            cells.push(cell("clean", clean.picture(i)));
            cells.push(cell("stamped", &stamped));
        }
        let name = name_of(suspects, class.class as usize);
        let caption = format!("what the accused of class {name} have in common, stamped on the holdout");
        rows.push(PictureRow { caption, cells });
    }
    rows
}

fn name_of(pictures: &Pictures, class: usize) -> &str {
    pictures.classes.get(class).map_or("?", String::as_str)
}

/// The stages and curves of the undefended run beside the one reported.
fn beside(dir: &RunDir, record: &Record) -> Result<(Vec<StageResult>, Vec<Curve>), Failure> {
    let c = &record.config;
    let (_, other) = RunDir::open(&dir.path)?;
    if other.config.trap {
        return Err(Failure::file(&dir.path, "is a trapped run; --baseline takes one that `train` wrote"));
    }
    let of = |c: &RunConfig| (c.attack.clone(), c.data.clone(), c.size, c.seed, c.holdout_data.clone());
    let same_share = c.holdout_data.is_some() || other.config.holdout == c.holdout;
    if of(&other.config) != of(c) || !same_share {
        return Err(Failure::file(&dir.path, "is of other data, attack, holdout or seed than the run reported"));
    }
    // A baseline may have been trained without the poisoned part.
    let (measured, own) = (other.counts, record.counts);
    if (measured.holdout, measured.test) != (own.holdout, own.test) {
        return Err(Failure::file(&dir.path, "is measured on other pictures than the run reported"));
    }
    let planted = record.planted.as_deref().filter(|_| !other.config.oracle);
    let same = other.check_data(&other.counts, record.data.as_deref(), planted);
    same.map_err(|why| Failure::file(&dir.path, format!("is not of the data of the run reported: {why}")))?;
    // A purified baseline is another defence, which is not compared with.
    let undefended = |s: &StageResult| ["trained", "ceiling", "control"].contains(&s.name.as_str());
    let stages = dir.results()?.stages.into_iter().filter(undefended).collect();
    Ok((stages, curves("baseline", &dir.metrics()?)))
}

/// What the audit of a run found, in sentences, and the accused; `stages` are those of the run.
fn audited(run: &RunDir, data: &Prepared, stages: &[StageResult]) -> Result<(Vec<String>, Vec<PictureRow>), Failure> {
    let found: audit::Summary = run.read_json("audit.json")?;
    let named: Vec<String> = found
        .classes
        .iter()
        .filter(|c| c.suspected)
        .map(|c| {
            format!("{} ({} accused, p {:.0e})", name_of(&data.test.clean, c.class as usize), c.accused, c.p_value)
        })
        .collect();
    let mut notes = vec![if named.is_empty() {
        "The audit names no target class and accuses nobody.".into()
    } else {
        format!("The audit names {}: {} of {} pictures.", named.join(", "), found.accused, found.pictures)
    }];
    let purified = stages.iter().any(|s| s.name == "purified");
    let of: Option<PurifiedOf> = if purified { Some(run.read_json(PURIFIED)?) } else { None };
    if of.and_then(|of| of.audit).is_some_and(|mark| mark != found.mark()) {
        notes.push("The run was audited again since it was purified: the purified model is of another verdict.".into());
    }
    if let Some(m) = &found.measures {
        notes.push(format!(
            "Against the truth, it accused {:.1} % of the poisoned and {:.2} % of the clean pictures.",
            100.0 * m.recall,
            100.0 * m.false_positives
        ));
    }
    Ok((notes, accused(data, &found)))
}

/// The settings of a run as the page lists them.
fn settings(record: &Record) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = match serde_json::to_value(&record.config) {
        Ok(serde_json::Value::Object(map)) => map.into_iter().map(|(k, v)| (k, plain(&v))).collect(),
        _ => Vec::new(),
    };
    all.push(("kernels".into(), record.kernels.clone()));
    if record.config.holdout_data.is_some() {
        all.retain(|(key, _)| key != "holdout");
    }
    all
}

/// The report of a run, with the stages of an undefended `baseline` run beside it where there is one.
///
/// # Errors
/// [`Failure::Input`] naming the file, or where the two runs are not of the same data and attack.
pub fn collect(
    run: &RunDir,
    record: &Record,
    baseline: Option<&RunDir>,
    kernels: &Simd,
) -> Result<ReportData, Failure> {
    let (c, counts) = (&record.config, record.counts);
    let data = reopen(run, record, kernels)?;
    let (mut all, mut shown) = match baseline {
        Some(dir) => beside(dir, record)?,
        None => (Vec::new(), Vec::new()),
    };
    all.extend(run.results()?.stages);
    // That of the baseline comes first.
    let truth = all.iter().find(|s| s.name == "trained").map(|s| s.evaluation.clone());
    let lines = run.metrics()?;
    shown.extend(curves(if c.trap { "trap" } else { "training" }, &lines));
    let attacked = c.attack.kind != crate::attack::AttackKind::None;
    let (mut engine, epochs) = trap::restore(run, record, &data, kernels)?;
    let info = attacks().iter().find(|a| a.kind == c.attack.kind);
    let mut notes = Vec::new();
    if epochs < c.epochs {
        notes.push(format!("The run is unfinished: {epochs} of {} epochs.", c.epochs));
    }
    if data.truth.capped() {
        notes.push(format!(
            "The rate asked for {} poisoned pictures; the target class allows {}.",
            data.truth.requested,
            data.truth.poisoned.len()
        ));
    }
    if let Some(n) = lines.last().and_then(|l| l.unlearned) {
        notes.push(format!("In the last epoch, {n} pictures that the guard accused were unlearned."));
    }
    let mut rows = pictures(&data, &mut engine)?;
    if run.file("audit.json").exists() {
        let (said, accused) = audited(run, &data, &all)?;
        notes.extend(said);
        rows.extend(accused);
    }
    let watched = all.iter().filter_map(|s| Some((wording(&s.name).0, s.tripwire?)));
    notes.extend(watched.map(|(name, alarms)| format!("The tripwire of the {name} model: {alarms}.")));
    let defence = if c.trap { "Trap and replace" } else { "No defence" };
    Ok(ReportData {
        title: format!("{defence} against {} on {}", c.attack.kind, c.data),
        created_from: run.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
        version: record.version.clone(),
        seed: c.seed,
        config: settings(record),
        counts: Counts {
            train: counts.train as u64,
            poisoned: counts.poisoned as u64,
            holdout: counts.holdout as u64,
            test: counts.test as u64,
            triggered: counts.triggered as u64,
        },
        attack: Attack {
            name: c.attack.kind.to_string(),
            description: info.map(|i| i.summary.to_owned()).unwrap_or_default(),
            source: info.map(|i| i.source.to_owned()).unwrap_or_default(),
            target: name_of(&data.test.clean, c.attack.target as usize).to_owned(),
            rate: c.attack.rate,
        },
        stages: all.iter().map(|s| stage(&s.name, &s.evaluation, s.seconds, truth.as_ref(), attacked)).collect(),
        classes: data.test.clean.classes.clone(),
        curves: shown,
        pictures: rows,
        notes,
    })
}

/// Of `purify.json`: the audit that it went by; records of older versions have none.
#[derive(serde::Deserialize)]
struct PurifiedOf {
    audit: Option<String>,
}

/// A setting as a person reads it.
fn plain(v: &serde_json::Value) -> String {
    match v {
        serde_json::Value::String(s) => s.clone(),
        serde_json::Value::Null => "-".into(),
        serde_json::Value::Object(map) => {
            map.iter().map(|(k, v)| format!("{k} {}", plain(v))).collect::<Vec<_>>().join(", ")
        }
        serde_json::Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(" x "),
        other => other.to_string(),
    }
}
