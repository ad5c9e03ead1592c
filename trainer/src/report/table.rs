//! Tables: the stages side by side, and the accuracy of each class.

use super::{
    ReportData, Stage,
    text::{NONE, class_name, duration, esc, known, percent_or_none, points},
    verdict::Span,
};

/// More classes than this are set in two tables side by side.
const ONE_TABLE: usize = 16;

/// The stages side by side, each figure with a bar.
pub(super) fn summary(stages: &[Stage], span: &Span<'_>) -> String {
    let mut out = String::from(
        "<table class=\"stages\" role=\"table\"><caption class=\"sr\">Figures of every stage</caption><thead \
         role=\"rowgroup\"><tr role=\"row\"><th scope=\"col\" role=\"columnheader\">Stage</th>",
    );
    for (head, arrow) in [
        ("ACC", "\u{2191}"),
        ("ASR", "\u{2193}"),
        ("RA", "\u{2191}"),
        ("DER", "\u{2191}"),
        ("Chance", ""),
        ("Time", ""),
    ] {
        let arrow = match arrow {
            "" => String::new(),
            "\u{2191}" => format!(" <span class=\"dir\" title=\"higher is better\">{arrow}</span>"),
            _ => format!(" <span class=\"dir\" title=\"lower is better\">{arrow}</span>"),
        };
        out += &format!("<th scope=\"col\" role=\"columnheader\">{head}{arrow}</th>");
    }
    out += "</tr></thead><tbody role=\"rowgroup\">";
    for stage in stages {
        let last = span.after.is_some_and(|after| std::ptr::eq(after, stage));
        let class = if last { " class=\"last\"" } else { "" };
        let note = if stage.note.is_empty() { String::new() } else { format!("<small>{}</small>", esc(&stage.note)) };
        out += &format!(
            "<tr role=\"row\"{class}><th scope=\"row\" role=\"rowheader\">{}{note}</th>{}{}{}{}{}<td role=\"cell\" \
             data-l=\"Time\" class=\"num\">{}</td></tr>",
            esc(&stage.name),
            bar("ACC", "acc", Some(stage.acc), None),
            bar("ASR", "asr", stage.asr, stage.chance),
            bar("RA", "ra", stage.ra, None),
            bar("DER", "der", stage.der, None),
            bar("Chance", "chance", stage.chance, None),
            duration(stage.seconds),
        );
    }
    out += "</tbody></table>\n";
    out
}

/// A cell with its figure and a bar of the same length; a tick marks chance.
fn bar(label: &str, class: &str, value: Option<f64>, mark: Option<f64>) -> String {
    let Some(fraction) = known(value) else {
        return format!("<td role=\"cell\" data-l=\"{label}\" class=\"num\"><span class=\"v\">{NONE}</span></td>");
    };
    let width = |f: f64| f.clamp(0.0, 1.0) * 100.0;
    let mark = known(mark).map_or_else(String::new, |m| format!("<b style=\"left:{:.1}%\"></b>", width(m)));
    format!(
        "<td role=\"cell\" data-l=\"{label}\" class=\"num\"><span class=\"v\">{}</span><span class=\"bar {class}\" \
         aria-hidden=\"true\"><i style=\"width:{:.1}%\"></i>{mark}</span></td>",
        percent_or_none(value),
        width(fraction)
    )
}

/// The accuracy of each class in each stage that has it, each figure on a bar of its length; empty where none has.
pub(super) fn classes(data: &ReportData, span: &Span<'_>) -> String {
    let stages: Vec<&Stage> = data.stages.iter().filter(|s| !s.per_class.is_empty()).collect();
    let n = stages.iter().map(|s| s.per_class.len()).max().unwrap_or(0);
    if n == 0 {
        return String::new();
    }
    let half = if n > ONE_TABLE { n.div_ceil(2) } else { n };
    let tables: String =
        (0..n).step_by(half).map(|from| class_table(data, &stages, span, from..(from + half).min(n))).collect();
    format!("<div class=\"halves\">{tables}</div>\n")
}

fn class_table(data: &ReportData, stages: &[&Stage], span: &Span<'_>, classes: std::ops::Range<usize>) -> String {
    let change = span.before.zip(span.after).filter(|(b, a)| !b.per_class.is_empty() && !a.per_class.is_empty());
    let mut heads: String = stages.iter().map(|s| format!("<th scope=\"col\">{}</th>", esc(&s.name))).collect();
    if let Some((before, after)) = change {
        heads += &format!(
            "<th class=\"last\" scope=\"col\" title=\"{} minus {}, in points\"><abbr>Change</abbr></th>",
            esc(&after.name),
            esc(&before.name)
        );
    }
    let mut rows = String::new();
    for class in classes {
        let at = |s: &Stage| s.per_class.get(class).copied().filter(|v| v.is_finite());
        let cells: String = stages
            .iter()
            .map(|s| {
                let width = at(s).unwrap_or(0.0).clamp(0.0, 1.0);
                format!("<td style=\"--w:{width:.3}\">{}</td>", percent_or_none(at(s)))
            })
            .collect();
        let diff = change.map_or_else(String::new, |(before, after)| {
            let diff = at(before).zip(at(after)).map_or_else(|| NONE.to_owned(), |(b, a)| points(a - b));
            format!("<td class=\"diff\">{diff}</td>")
        });
        let name = class_name(&data.classes, class);
        let target = if name == data.attack.target { " <em>target</em>" } else { "" };
        rows += &format!(
            "<tr><th scope=\"row\"><span class=\"no\">{class}</span>{}{target}</th>{cells}{diff}</tr>",
            esc(&name)
        );
    }
    format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"ACC of each class\"><table class=\"classes\"><thead><tr><th \
         scope=\"col\">Class</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
}
