//! Many runs from one file: attacks x rates x seeds x settings, each through the whole chain.
//!
//! Every run has its own directory below the sweep's and goes on where it stopped; the table is made of what is done. What training
//! on the clean part alone reaches is the [`Ceiling`]; without an attack the baseline is its own. Cells that train alike and part
//! later share what one of them has trained (`share`).

mod ceiling;
mod jobs;
mod plan;
mod share;

pub use ceiling::Ceiling;
pub use jobs::{Job, Told, Worker, jobs, run};
pub use plan::{Cell, Changes, Plan};

use crate::attack::AttackKind;
use crate::audit;
use crate::defend::{EXAMINED, REPLACED};
use crate::error::Failure;
use crate::evaluate::{Alarms, Evaluation};
use crate::purify::PURIFIED;
use crate::run::RunDir;
use serde::Serialize;
use serde_json::Value;
use std::path::Path;
use stemguard_runtime::metrics::der;

/// Figures of one stage, fractions 0..=1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Stage {
    /// Clean test pictures given their true class.
    pub acc: f64,
    /// Triggered pictures given the target class.
    pub asr: f64,
    /// Triggered pictures given their true class.
    pub ra: f64,
    /// Clean pictures of other classes given the target class.
    pub chance: f64,
    /// Defence effectiveness rating against the undefended model.
    pub der: f64,
}

impl Stage {
    fn new(e: &Evaluation, undefended: &Evaluation) -> Self {
        let der = der(undefended.acc, undefended.asr, e.acc, e.asr);
        Self { acc: e.acc, asr: e.asr, ra: e.ra, chance: e.chance, der }
    }
}

/// What a tripwire says: triggered and clean test pictures that raise the alarm, and triggered ones that would, were it set on the clean
/// ones.
pub type AlarmRates = [Option<f64>; 3];

/// Figures of one cell.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Attack.
    pub attack: String,
    /// Poison rate.
    pub rate: f64,
    /// Setting.
    pub setting: String,
    /// Seed.
    pub seed: u64,
    /// Trained without a defence.
    pub undefended: Stage,
    /// The same with a new head.
    pub control: Stage,
    /// Trapped (and guarded, where the setting says so), with its own head.
    pub trapped: Stage,
    /// The same with a new head: without a guard, the published defence.
    pub replaced: Stage,
    /// The end of the chain; `None` where the setting ends before it.
    pub purified: Option<Stage>,
    /// Trained on the clean part alone, where it was.
    pub ceiling: Option<Ceiling>,
    /// Poisoned pictures that the audit accused; 0 without any.
    pub recall: f64,
    /// Clean pictures that it accused.
    pub false_positives: f64,
    /// Of the score of its verdict: the area under the curve, and the poisoned pictures found at 1 % false positives; without any
    /// poisoned picture, neither.
    pub verdict: Option<[f64; 2]>,
    /// The tripwire of the replaced model.
    pub tripwire: Option<AlarmRates>,
    /// That of the purified model.
    pub purified_tripwire: Option<AlarmRates>,
}

/// What the chain of a cell ended with.
struct Stages {
    /// Undefended, control, trapped, replaced.
    all: [Evaluation; 4],
    /// Purified, where the cell asks for it.
    purified: Option<Evaluation>,
    /// Of the replaced and the purified model.
    tripwires: [Option<Alarms>; 2],
}

/// The file of a cell's directory with what comes after training.
const AFTER: &str = "cell.json";

/// Whether `found` says everything that `asked` does; it may say more. A number that is no whole one was an `f32` on one side or both.
fn says(found: &Value, asked: &Value) -> bool {
    match (found, asked) {
        (Value::Object(found), Value::Object(asked)) => {
            asked.iter().all(|(key, asked)| found.get(key).is_some_and(|found| says(found, asked)))
        }
        (Value::Number(a), Value::Number(b)) if a.is_f64() && b.is_f64() => {
            a.as_f64().map(|v| v as f32) == b.as_f64().map(|v| v as f32)
        }
        _ => found == asked,
    }
}

/// Whether a JSON file of a run is there and says everything that `how` does.
fn is_of<T: Serialize>(dir: &RunDir, name: &str, how: &T) -> Result<bool, Failure> {
    let asked = serde_json::to_value(how).map_err(|e| Failure::Other(e.to_string()))?;
    Ok(dir.file(name).exists() && says(&dir.read_json(name)?, &asked))
}

/// The stages of a cell, if its chain is done.
fn stages(cell: &Cell, out: &Path) -> Result<Option<Stages>, Failure> {
    let mut both = Vec::new();
    let mut only_trained = true;
    for run in share::runs(cell) {
        let dir = RunDir { path: out.join(&cell.name).join(run.part) };
        RunDir::admits(&dir.path, &run.config, true)?;
        let stages = dir.results()?.stages;
        only_trained &= stages.iter().all(|s| s.name == run.stage);
        both.extend(stages);
    }
    // What came of other settings, or of a run laid in, is made again.
    let trap = RunDir { path: out.join(&cell.name).join("trap") };
    let baseline = RunDir { path: out.join(&cell.name).join("baseline") };
    let mut made_so = is_of(&baseline, REPLACED, &cell.replacement)? && is_of(&trap, REPLACED, &cell.replacement)?;
    if let Some(p) = &cell.purification {
        made_so &= is_of(&trap, PURIFIED, &serde_json::json!({ "purification": p }))?;
    }
    let kept = out.join(&cell.name).join(AFTER);
    // Until a head is replaced, another plan may still change how.
    if !only_trained && kept.exists() {
        let text = std::fs::read_to_string(&kept).map_err(|e| Failure::file(&kept, format!("cannot be read: {e}")))?;
        serde_json::from_str::<Value>(&text).map_err(|e| Failure::file(&kept, e))?;
        if text != cell.after()? {
            let why = "is of a plan that replaces or purifies otherwise; give the setting another name, or choose another --out";
            return Err(Failure::file(&kept, why));
        }
    }
    let find = |name: &str| both.iter().find(|s| s.name == name);
    let names = ["trained", "control", "trapped", "defended"];
    let all = names.map(|name| find(name).map(|s| s.evaluation.clone()));
    let [Some(trained), Some(control), Some(trapped), Some(replaced)] = all else { return Ok(None) };
    let last = if cell.purification.is_some() { find("purified") } else { None };
    let ended = match cell.purification {
        Some(_) => last.is_some(),
        // Older sweeps have purified every cell.
        None => find("purified").is_some() || trap.file(EXAMINED).exists(),
    };
    if !ended || !made_so || !trap.file("audit.json").exists() {
        return Ok(None);
    }
    let tripwires = [find("defended"), last].map(|stage| stage.and_then(|s| s.tripwire));
    let purified = last.map(|s| s.evaluation.clone());
    Ok(Some(Stages { all: [trained, control, trapped, replaced], purified, tripwires }))
}

/// The figures of a cell, if its chain is done; its ceiling where that is done too.
///
/// # Errors
/// [`Failure::Input`] naming a damaged file.
pub fn row(cell: &Cell, out: &Path) -> Result<Option<Row>, Failure> {
    let Some(Stages { all, purified, tripwires }) = stages(cell, out)? else { return Ok(None) };
    let figures = |e: &Evaluation| Stage::new(e, &all[0]);
    let ceiling = match cell.config.attack.kind {
        AttackKind::None => Some(Ceiling::of(&all[0])),
        _ => ceiling::figures(cell, out)?,
    };
    let trap = RunDir { path: out.join(&cell.name).join("trap") };
    let audit: audit::Summary = trap.read_json("audit.json")?;
    let measures = audit.measures.unwrap_or_else(|| audit::Measures {
        false_positives: audit.accused as f64 / audit.pictures.max(1) as f64,
        ..audit::Measures::default()
    });
    let [undefended, control, trapped, replaced] = all.each_ref().map(figures);
    let purified = purified.as_ref().map(figures);
    let [tripwire, purified_tripwire] =
        tripwires.map(|t| t.map(|a| [Some(a.true_positives), Some(a.false_positives), a.at_rate]));
    Ok(Some(Row {
        attack: cell.config.attack.kind.to_string(),
        rate: cell.config.attack.rate,
        setting: cell.setting.clone(),
        seed: cell.config.seed,
        undefended,
        control,
        trapped,
        replaced,
        purified,
        ceiling,
        recall: measures.recall,
        false_positives: measures.false_positives,
        verdict: measures.signals.last().map(|m| [m.auc, m.recall_at_1_percent]),
        tripwire,
        purified_tripwire,
    }))
}

/// Mean and sample standard deviation; the deviation of one value is 0.
pub fn mean_and_spread(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n.max(1.0);
    if values.len() < 2 {
        return (mean, 0.0);
    }
    (mean, (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt())
}

/// What the columns of the table are called.
const COLUMNS: [&str; 16] = [
    "attack",
    "rate",
    "setting",
    "seeds",
    "undefended: ACC / ASR / RA",
    "control: ACC / ASR / RA / DER",
    "trapped: ACC / ASR / RA / DER",
    "replaced: ACC / ASR / RA / DER",
    "purified: ACC / ASR / RA / DER",
    "chance, purified",
    "ceiling: ACC / ASR / RA",
    "accused: poisoned / clean",
    "audit AUC",
    "recall at 1 % FPR",
    "tripwire: TPR / FPR / TPR at the rate",
    "the same, purified",
];

/// The rows as a Markdown table: one line an attack, rate and setting, mean and spread over seeds, in percent.
pub fn table(rows: &[Row]) -> String {
    use std::fmt::Write as _;
    let mut text = format!("| {} |\n|{}\n", COLUMNS.join(" | "), "---|".repeat(COLUMNS.len()));
    let mut groups: Vec<Vec<&Row>> = Vec::new();
    for row in rows {
        let key = |r: &Row| (r.attack.clone(), r.rate.to_bits(), r.setting.clone());
        match groups.iter_mut().find(|g| g.first().is_some_and(|r| key(r) == key(row))) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    for group in groups {
        let Some(first) = group.first() else { continue };
        let cell = |value: &dyn Fn(&Row) -> f64| {
            let values: Vec<f64> = group.iter().map(|r| 100.0 * value(r)).collect();
            let (mean, spread) = mean_and_spread(&values);
            if values.len() > 1 { format!("{mean:.1} ± {spread:.1}") } else { format!("{mean:.1}") }
        };
        // What some runs do not have is left empty.
        let known = |value: &dyn Fn(&Row) -> Option<f64>| match group.iter().all(|r| value(r).is_some()) {
            true => cell(&|r| value(r).unwrap_or_default()),
            false => String::new(),
        };
        let joined = |cells: Vec<String>| -> String {
            cells.into_iter().filter(|c| !c.is_empty()).collect::<Vec<_>>().join(" / ")
        };
        let figures = |stage: &dyn Fn(&Row) -> Option<Stage>, der: bool| {
            let parts: [fn(&Stage) -> f64; 4] = [|s| s.acc, |s| s.asr, |s| s.ra, |s| s.der];
            let parts = parts.iter().take(if der { 4 } else { 3 });
            joined(parts.map(|part| known(&|r| stage(r).as_ref().map(part))).collect())
        };
        let alarms = |tripwire: &dyn Fn(&Row) -> Option<AlarmRates>| {
            joined([0, 1, 2].map(|i: usize| known(&|r| tripwire(r).and_then(|t| t[i]))).into())
        };
        let cells = [
            first.attack.clone(),
            first.rate.to_string(),
            first.setting.clone(),
            group.len().to_string(),
            figures(&|r| Some(r.undefended), false),
            figures(&|r| Some(r.control), true),
            figures(&|r| Some(r.trapped), true),
            figures(&|r| Some(r.replaced), true),
            figures(&|r| r.purified, true),
            known(&|r| r.purified.map(|p| p.chance)),
            joined(vec![
                known(&|r| r.ceiling.map(|c| c.acc)),
                known(&|r| r.ceiling.and_then(|c| c.asr)),
                known(&|r| r.ceiling.and_then(|c| c.ra)),
            ]),
            joined(vec![cell(&|r| r.recall), cell(&|r| r.false_positives)]),
            known(&|r| r.verdict.map(|v| v[0])),
            known(&|r| r.verdict.map(|v| v[1])),
            alarms(&|r| r.tripwire),
            alarms(&|r| r.purified_tripwire),
        ];
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_may_be_corrected_until_a_head_was_replaced_by_it() {
        let home = tempfile::tempdir().expect("a directory");
        let file = home.path().join("plan.toml");
        std::fs::write(&file, "data = 'signs:400'\nattacks = ['blend']\n").expect("written");
        let cells = Plan::read(&file).and_then(|p| p.cells()).expect("cells");
        let own = home.path().join(&cells[0].name);
        std::fs::create_dir_all(own.join("baseline")).expect("made");
        std::fs::write(own.join(AFTER), "{}\n").expect("written");
        assert!(stages(&cells[0], home.path()).expect("nothing is replaced").is_none());
        let dir = RunDir { path: own.join("baseline") };
        let stage = |name: &str| {
            let evaluation = Evaluation::default();
            crate::run::StageResult { name: name.into(), evaluation, tripwire: None, seconds: 1.0 }
        };
        let config = cells[0].config.undefended();
        let counts = crate::run::Counts::default();
        let record = crate::run::Record {
            config,
            counts,
            version: "1".into(),
            data: None,
            planted: None,
            kernels: "avx2".into(),
        };
        dir.write_json("run.json", &record).expect("written");
        dir.record_stage(stage("trained")).expect("written");
        assert!(stages(&cells[0], home.path()).expect("nothing is replaced").is_none());
        dir.record_stage(stage("control")).expect("written");
        assert!(stages(&cells[0], home.path()).is_err());
        std::fs::write(own.join(AFTER), cells[0].after().expect("JSON")).expect("written");
        assert!(stages(&cells[0], home.path()).expect("its own").is_none());
    }

    #[test]
    fn what_was_made_otherwise_is_told_from_the_files() {
        let home = tempfile::tempdir().expect("a directory");
        let file = home.path().join("plan.toml");
        std::fs::write(&file, "data = 'signs:400'\nattacks = ['blend']\n").expect("written");
        let cell = Plan::read(&file).and_then(|p| p.cells()).expect("cells").remove(0);
        let dir = RunDir { path: home.path().to_owned() };
        let is_its = || is_of(&dir, REPLACED, &cell.replacement).expect("readable");
        assert!(!is_its(), "nothing is there");
        dir.write_json(REPLACED, &cell.replacement).expect("written");
        assert!(is_its());
        let mut other = cell.replacement;
        other.alarm_fpr = 0.02;
        dir.write_json(REPLACED, &other).expect("written");
        assert!(!is_its());
        // More than is asked for does no harm.
        let p = crate::purify::Purification { inoculate: 0.3, ..cell.purification.expect("by default") };
        let of = |p: &crate::purify::Purification| {
            is_of(&dir, PURIFIED, &serde_json::json!({ "purification": p })).expect("readable")
        };
        dir.write_json(PURIFIED, &serde_json::json!({ "purification": p, "rounds": [] })).expect("written");
        assert!(of(&p));
        // Its numbers may be written as shorter ones of half the width.
        let text = serde_json::to_string(&p).expect("JSON");
        std::fs::write(dir.file(PURIFIED), format!("{{\"purification\": {text}, \"rounds\": []}}")).expect("written");
        assert!(of(&p) && !of(&crate::purify::Purification { epochs: p.epochs + 1, ..p }));
        assert!(!of(&crate::purify::Purification { inoculate: 0.31, ..p }));
    }

    #[test]
    fn the_table_has_mean_and_spread_over_seeds() {
        let stage = |acc, asr, ra, der| Stage { acc, asr, ra, chance: 0.02, der };
        let row = |seed, asr| Row {
            attack: "blend".into(),
            rate: 0.1,
            setting: "short".into(),
            seed,
            undefended: stage(0.5, 1.0, 0.0, 0.5),
            control: stage(0.5, 0.5, 0.5, 0.75),
            trapped: stage(0.5, 1.0, 0.0, 0.5),
            replaced: stage(0.5, 0.5, 0.125, 0.5),
            purified: Some(stage(0.5, asr, 0.25, 0.75)),
            ceiling: None,
            recall: 0.9,
            false_positives: 0.01,
            verdict: None,
            tripwire: None,
            purified_tripwire: None,
        };
        let text = table(&[row(0, 0.1), row(1, 0.3)]);
        assert!(text.contains("| blend | 0.1 | short | 2 | 50.0 ± 0.0 / 100.0 ± 0.0 / 0.0 ± 0.0 |"), "{text}");
        assert!(text.contains("| 50.0 ± 0.0 / 20.0 ± 14.1 / 25.0 ± 0.0 / 75.0 ± 0.0 | 2.0 ± 0.0 |  |"), "{text}");
        assert!(
            text.contains("| 50.0 ± 0.0 / 50.0 ± 0.0 / 12.5 ± 0.0 / 50.0 ± 0.0 |") && text.ends_with("|  |  |  |  |\n"),
            "{text}"
        );
        let watched = |seed, caught, at| Row {
            ceiling: Some(Ceiling { acc: 0.75, asr: Some(0.0625), ra: at, chance: 0.02 }),
            verdict: Some([0.5, 0.25]),
            tripwire: Some([Some(caught), Some(0.01), at]),
            purified_tripwire: Some([Some(0.5), Some(0.01), Some(0.5)]),
            ..row(seed, 0.1)
        };
        let text = table(&[watched(0, 0.9, None), watched(1, 1.0, Some(1.0))]);
        assert!(text.contains("| 50.0 ± 0.0 | 25.0 ± 0.0 | 95.0 ± 7.1 / 1.0 ± 0.0 | 50.0 ± 0.0 /"), "{text}");
        let text = table(&[watched(0, 0.9, Some(0.8))]);
        assert!(text.ends_with("| 90.0 / 1.0 / 80.0 | 50.0 / 1.0 / 50.0 |\n"), "{text}");
        assert!(text.contains("| 2.0 | 75.0 / 6.2 / 80.0 | 90.0 / 1.0 |"), "{text}");
        let text = table(&[Row { purified: None, ..row(0, 0.1) }]);
        assert!(text.contains("| 50.0 / 50.0 / 12.5 / 50.0 |  |  |  | 90.0 / 1.0 |"), "{text}");
        let columns = |line: &str| line.matches('|').count();
        assert!(text.lines().all(|line| columns(line) == 1 + COLUMNS.len()), "{text}");
        assert_eq!(mean_and_spread(&[3.0]), (3.0, 0.0));
    }
}
