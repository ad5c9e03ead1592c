//! Many runs from one file: attacks x rates x seeds x settings, each through the whole chain.
//!
//! Every run has its own directory below the sweep's and goes on where it stopped; the table is made of what is done. What training
//! on the clean part alone reaches (the ceiling) depends on which pictures are poisoned, not on how: cells that poison the same ones
//! share one such run, and without an attack the baseline is its own ceiling.

mod jobs;
mod plan;

pub use jobs::{Job, Told, Worker, jobs, run};
pub use plan::{Cell, Changes, Plan};

use crate::attack::AttackKind;
use crate::audit;
use crate::error::Failure;
use crate::evaluate::{Alarms, Evaluation};
use crate::run::RunDir;
use serde::Serialize;
use std::path::Path;
use stemguard_runtime::metrics::der;

/// Figures of one cell, fractions 0..=1.
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
    /// ACC: undefended, control, trapped, replaced (the published defence), purified.
    pub acc: [f64; 5],
    /// ASR of the same.
    pub asr: [f64; 5],
    /// ACC of training on the clean part alone, where it was trained.
    pub ceiling: Option<f64>,
    /// Robust accuracy: replaced, purified.
    pub ra: [f64; 2],
    /// Defence effectiveness rating of the same.
    pub der: [f64; 2],
    /// Clean pictures of other classes given the target class by the purified model.
    pub chance: f64,
    /// Poisoned pictures that the audit accused; 0 without any.
    pub recall: f64,
    /// Clean pictures that it accused.
    pub false_positives: f64,
    /// Of the score of its verdict: the area under the curve, and the poisoned pictures found at 1 % false positives; without any
    /// poisoned picture, neither.
    pub verdict: Option<[f64; 2]>,
    /// Of the replaced model with its tripwire: triggered and clean test pictures that raise the alarm, and triggered ones that
    /// would, were it set on the clean ones.
    pub tripwire: Option<[Option<f64>; 3]>,
}

/// What the chain of a cell ended with.
struct Stages {
    /// Undefended, control, trapped, replaced, purified.
    all: [Evaluation; 5],
    tripwire: Option<Alarms>,
}

/// The stages of a cell, if its chain is done.
fn stages(cell: &Cell, out: &Path) -> Result<Option<Stages>, Failure> {
    let of = |part: &str| RunDir { path: out.join(&cell.name).join(part) }.results().map(|r| r.stages);
    let both = [of("baseline")?, of("trap")?].concat();
    let find = |name: &str| both.iter().find(|s| s.name == name);
    let names = ["trained", "control", "trapped", "defended", "purified"];
    let all = names.map(|name| find(name).map(|s| s.evaluation.clone()));
    let [Some(trained), Some(control), Some(trapped), Some(replaced), Some(purified)] = all else { return Ok(None) };
    let tripwire = find("defended").and_then(|s| s.tripwire);
    Ok(Some(Stages { all: [trained, control, trapped, replaced, purified], tripwire }))
}

/// The figures of a cell, if its chain is done; its ceiling where that is done too.
///
/// # Errors
/// [`Failure::Input`] naming a damaged file.
pub fn row(cell: &Cell, out: &Path) -> Result<Option<Row>, Failure> {
    let Some(Stages { all, tripwire }) = stages(cell, out)? else { return Ok(None) };
    let [trained, _, _, replaced, purified] = &all;
    let ideal = match &cell.ceiling {
        Some((name, _)) => {
            let stages = RunDir { path: out.join(name) }.results()?.stages;
            stages.into_iter().find(|s| s.name == "ceiling").map(|s| s.evaluation.acc)
        }
        None => (cell.config.attack.kind == AttackKind::None).then_some(trained.acc),
    };
    let trap = RunDir { path: out.join(&cell.name).join("trap") };
    let audit: audit::Summary = trap.read_json("audit.json")?;
    let measures = audit.measures.unwrap_or_else(|| audit::Measures {
        false_positives: audit.accused as f64 / audit.pictures.max(1) as f64,
        ..audit::Measures::default()
    });
    Ok(Some(Row {
        attack: cell.config.attack.kind.to_string(),
        rate: cell.config.attack.rate,
        setting: cell.setting.clone(),
        seed: cell.config.seed,
        acc: all.each_ref().map(|e| e.acc),
        asr: all.each_ref().map(|e| e.asr),
        ceiling: ideal,
        ra: [replaced, purified].map(|e| e.ra),
        der: [replaced, purified].map(|e| der(trained.acc, trained.asr, e.acc, e.asr)),
        chance: purified.chance,
        recall: measures.recall,
        false_positives: measures.false_positives,
        verdict: measures.signals.last().map(|m| [m.auc, m.recall_at_1_percent]),
        tripwire: tripwire.map(|a| [Some(a.true_positives), Some(a.false_positives), a.at_rate]),
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

/// The rows as a Markdown table: one line an attack, rate and setting, mean and spread over seeds, in percent.
pub fn table(rows: &[Row]) -> String {
    use std::fmt::Write as _;
    let mut text = String::from(
        "| attack | rate | setting | seeds | undefended ACC / ASR | control | trapped | \
         replaced: ACC / ASR / RA / DER | purified: ACC / ASR / RA / DER | chance, purified | ceiling ACC | poisoned accused | clean accused | audit AUC | recall at 1 % FPR | tripwire TPR / FPR / TPR at the rate |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
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
        let pair = |i: usize| format!("{} / {}", cell(&|r| r.acc[i]), cell(&|r| r.asr[i]));
        let four = |i: usize| format!("{} / {} / {}", pair(3 + i), cell(&|r| r.ra[i]), cell(&|r| r.der[i]));
        // What some runs do not have is left empty.
        let known = |value: &dyn Fn(&Row) -> Option<f64>| match group.iter().all(|r| value(r).is_some()) {
            true => cell(&|r| value(r).unwrap_or_default()),
            false => String::new(),
        };
        let alarms = [0, 1, 2].map(|i: usize| known(&|r| r.tripwire.and_then(|t| t[i])));
        let alarms: Vec<String> = alarms.into_iter().filter(|a| !a.is_empty()).collect();
        let alarms = alarms.join(" / ");
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            first.attack,
            first.rate,
            first.setting,
            group.len(),
            pair(0),
            pair(1),
            pair(2),
            four(0),
            four(1),
            cell(&|r| r.chance),
            known(&|r| r.ceiling),
            cell(&|r| r.recall),
            cell(&|r| r.false_positives),
            known(&|r| r.verdict.map(|v| v[0])),
            known(&|r| r.verdict.map(|v| v[1])),
            alarms
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_mean_and_spread_over_seeds() {
        let row = |seed, asr| Row {
            attack: "blend".into(),
            rate: 0.1,
            setting: "short".into(),
            seed,
            acc: [0.5; 5],
            asr: [1.0, 0.5, 1.0, 0.5, asr],
            ceiling: None,
            ra: [0.125, 0.25],
            der: [0.5, 0.75],
            chance: 0.02,
            recall: 0.9,
            false_positives: 0.01,
            verdict: None,
            tripwire: None,
        };
        let text = table(&[row(0, 0.1), row(1, 0.3)]);
        assert!(text.contains("| blend | 0.1 | short | 2 |"), "{text}");
        assert!(text.contains("| 50.0 ± 0.0 / 20.0 ± 14.1 / 25.0 ± 0.0 / 75.0 ± 0.0 |"), "{text}");
        assert!(
            text.contains("| 50.0 ± 0.0 / 50.0 ± 0.0 / 12.5 ± 0.0 / 50.0 ± 0.0 |") && text.ends_with("|  |  |  |\n"),
            "{text}"
        );
        let watched = |seed, caught, at| Row {
            verdict: Some([0.5, 0.25]),
            tripwire: Some([Some(caught), Some(0.01), at]),
            ..row(seed, 0.1)
        };
        let text = table(&[watched(0, 0.9, None), watched(1, 1.0, Some(1.0))]);
        assert!(text.ends_with("| 50.0 ± 0.0 | 25.0 ± 0.0 | 95.0 ± 7.1 / 1.0 ± 0.0 |\n"), "{text}");
        let text = table(&[watched(0, 0.9, Some(0.8))]);
        assert!(text.ends_with("| 90.0 / 1.0 / 80.0 |\n"), "{text}");
        let columns = |line: &str| line.matches('|').count();
        assert!(text.lines().all(|line| columns(line) == 17), "{text}");
        assert_eq!(mean_and_spread(&[3.0]), (3.0, 0.0));
    }
}
