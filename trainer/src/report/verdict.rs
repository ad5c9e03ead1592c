//! What the figures say, in sentences computed from them.

use super::{
    ReportData, Stage,
    text::{count, known, percent, points},
};

/// Differences below this, in fractions, round to nothing on the page.
const SAME: f64 = 0.0005;

/// An attack that lifts ASR by less than this over chance has hardly taken hold.
const WEAK: f64 = 0.10;

/// The stage the comparison starts from and the one it ends at.
pub(super) struct Span<'a> {
    /// The undefended stage.
    pub(super) before: Option<&'a Stage>,
    /// The last defence.
    pub(super) after: Option<&'a Stage>,
}

/// Picks the stages to compare: `baseline` (else the first) and `purified` or `defended` (else the last).
pub(super) fn span(stages: &[Stage]) -> Span<'_> {
    let named = |name: &str| stages.iter().find(|s| s.name.trim().eq_ignore_ascii_case(name));
    let before = named("baseline").or(stages.first());
    let after = named("purified").or_else(|| named("defended")).or(stages.last());
    match (before, after) {
        (Some(b), Some(a)) if std::ptr::eq(b, a) => Span { before: None, after },
        _ => Span { before, after },
    }
}

/// The sentence at the top of the page.
pub(super) fn headline(span: &Span<'_>) -> String {
    let Some(after) = span.after else {
        return "No stage has been measured.".to_owned();
    };
    let to = known(after.asr);
    let from = span.before.and_then(|b| known(b.asr).map(|asr| (b, asr)));
    let main = match (from, to) {
        (Some((before, a)), Some(b)) if (a - b).abs() < SAME => {
            format!("ASR stayed at {} from {} to {}", percent(a), before.name, after.name)
        }
        (Some((before, a)), Some(b)) => {
            let verb = if b < a { "fell" } else { "rose" };
            format!("ASR {verb} from {} ({}) to {} ({})", percent(a), before.name, percent(b), after.name)
        }
        (None, Some(b)) => format!("ASR is {} ({})", percent(b), after.name),
        (_, None) if after.acc.is_finite() => {
            return format!("ACC is {} ({}); ASR was not measured.", percent(after.acc), after.name);
        }
        (_, None) => return format!("Neither ACC nor ASR was measured ({}).", after.name),
    };
    match known(after.chance) {
        Some(chance) => format!("{main}; chance is {}.", percent(chance)),
        None => format!("{main}."),
    }
}

/// The sentences below the headline.
pub(super) fn sentences(data: &ReportData, span: &Span<'_>) -> Vec<String> {
    let Some(after) = span.after else {
        return Vec::new();
    };
    let mut said = Vec::new();
    if let Some(asr) = known(after.asr) {
        if let Some(chance) = known(after.chance) {
            let side = if asr - chance < 0.0 { "below" } else { "above" };
            let gap = percent((asr - chance).abs()).replace('%', " points");
            said.push(format!(
                "The final ASR is {gap} {side} chance, which is how often the same model calls clean pictures of other \
                 classes the target."
            ));
        }
        if let Some((low, high)) = interval(asr, data.counts.triggered) {
            said.push(format!(
                "Over {} triggered pictures its 95% interval is {} to {}.",
                count(data.counts.triggered),
                percent(low),
                percent(high)
            ));
        }
    }
    if let Some(before) = span.before.filter(|b| b.acc.is_finite() && after.acc.is_finite()) {
        let change = points(after.acc - before.acc);
        let (from, to) = (percent(before.acc), percent(after.acc));
        said.push(format!("ACC went from {from} to {to} ({change} points)."));
    }
    let control = data.stages.iter().find(|s| s.name.trim().eq_ignore_ascii_case("control"));
    if let Some(asr) = control.filter(|c| !std::ptr::eq(*c, after)).and_then(|c| known(c.asr)) {
        said.push(format!("The control, a new head on the undefended stem, has an ASR of {}.", percent(asr)));
    }
    if let Some(before) = span.before
        && let Some(asr) = known(before.asr)
        && asr - known(before.chance).unwrap_or(0.0) < WEAK
    {
        said.push(format!(
            "The attack hardly took hold in {} (ASR {}), so this run says little about the defence.",
            before.name,
            percent(asr)
        ));
    }
    said
}

/// The 95% Wilson interval of a rate counted over `n` pictures.
fn interval(rate: f64, n: u64) -> Option<(f64, f64)> {
    if n == 0 || !(0.0..=1.0).contains(&rate) {
        return None;
    }
    let (n, z) = (n as f64, 1.96f64);
    let scale = 1.0 + z * z / n;
    let centre = (rate + z * z / (2.0 * n)) / scale;
    let half = z * (rate * (1.0 - rate) / n + z * z / (4.0 * n * n)).sqrt() / scale;
    Some(((centre - half).max(0.0), (centre + half).min(1.0)))
}

#[cfg(test)]
mod tests {
    use super::interval;

    #[test]
    fn interval_matches_known_values() {
        // 10 of 100: 0.0552 to 0.1744.
        let (low, high) = interval(0.1, 100).unwrap();
        assert!((low - 0.0552).abs() < 1e-4 && (high - 0.1744).abs() < 1e-4, "{low} {high}");
        assert_eq!(interval(0.5, 0), None);
        assert_eq!(interval(f64::NAN, 10), None);
    }
}
