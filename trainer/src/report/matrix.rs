//! Confusion matrices as heat maps.

use super::{
    Stage,
    text::{class_name, count, esc, percent, short},
};

/// Up to this many classes the cells hold their counts and the rows their names.
const ROOMY: usize = 12;

/// More classes than this are not drawn.
const MOST: usize = 128;

/// How many of the largest confusions are listed.
const LISTED: usize = 5;

/// The heat map of one stage, nothing where the stage has no counts.
pub(super) fn figure(stage: &Stage, classes: &[String], target: Option<usize>) -> Option<String> {
    let counts = stage.confusion.as_deref()?;
    let n = counts.iter().map(Vec::len).max().unwrap_or(0).max(counts.len());
    if n == 0 {
        return None;
    }
    let name = esc(&stage.name);
    let drawing = if n <= MOST {
        draw(&stage.name, counts, n, classes, target)
    } else {
        format!("<p class=\"none\">{n} classes are too many to draw; the counts are in report.json.</p>")
    };
    Some(format!("<figure class=\"matrix\"><h3>{name}</h3>{drawing}{}</figure>\n", largest(counts, classes)))
}

/// The key to the colours of all matrices.
pub(super) fn key() -> String {
    let steps: String = [0.01f64, 0.05, 0.1, 0.25, 0.5, 1.0]
        .iter()
        .map(|share| {
            format!("<li><i style=\"opacity:{:.2}\" aria-hidden=\"true\"></i>{:.0}%</li>", heat(*share), share * 100.0)
        })
        .collect();
    format!("<ul class=\"heatkey\"><li>Share of the true class:</li>{steps}</ul>\n")
}

/// Opacity of a share of a row; the power keeps one percent visible.
fn heat(share: f64) -> f64 {
    share.clamp(0.0, 1.0).powf(0.4)
}

/// The colour of a count that can be read on such a cell, by day and by night.
fn tone(opacity: f64) -> &'static str {
    match opacity {
        ..0.57 => "",
        ..0.8 => " class=\"mid\"",
        _ => " class=\"on\"",
    }
}

fn draw(stage: &str, counts: &[Vec<u64>], n: usize, classes: &[String], target: Option<usize>) -> String {
    let roomy = n <= ROOMY;
    let cell = if roomy { 36 } else { (400 / n).clamp(4, 24) };
    let (left, top) = if roomy { (92, 78) } else { (34, 34) };
    let side = cell * n;
    let (w, h) = (left + side + 2, top + side + 2);
    let mut out = format!(
        "<svg class=\"heat\" viewBox=\"0 0 {w} {h}\" width=\"{w}\" height=\"{h}\" role=\"img\" aria-label=\"Confusion matrix \
         of {}, {n} classes; rows are true classes, columns are predicted classes.\">",
        esc(stage)
    );
    out += &format!("<rect class=\"field\" x=\"{left}\" y=\"{top}\" width=\"{side}\" height=\"{side}\"/>");
    out += &format!("<g transform=\"translate({left} {top})\">");
    for (row, cells) in counts.iter().enumerate() {
        let total: u64 = cells.iter().fold(0, |sum, c| sum.saturating_add(*c));
        for (column, hits) in cells.iter().enumerate().filter(|(_, c)| **c > 0) {
            let share = *hits as f64 / total as f64;
            let (x, y) = (column * cell, row * cell);
            out += &format!(
                "<rect x=\"{x}\" y=\"{y}\" width=\"{cell}\" height=\"{cell}\" opacity=\"{:.2}\"><title>{} \u{2192} {}: {} \
                 ({})</title></rect>",
                heat(share),
                esc(&class_name(classes, row)),
                esc(&class_name(classes, column)),
                count(*hits),
                percent(share)
            );
            if roomy {
                let tone = tone(heat(share));
                let (x, y) = (x + cell / 2, y + cell / 2 + 4);
                out += &format!("<text{tone} x=\"{x}\" y=\"{y}\">{}</text>", brief(*hits));
            }
        }
    }
    out += "</g>";
    let every = [1, 2, 5, 10, 20].into_iter().find(|every| every * cell >= 14).unwrap_or(20);
    for class in (0..n).step_by(every) {
        let middle = class * cell + cell / 2;
        let full = class_name(classes, class);
        let text = if roomy { short(&full, 12) } else { class.to_string() };
        let (text, full) = (esc(&text), esc(&full));
        out += &format!(
            "<text class=\"row\" x=\"{}\" y=\"{}\">{text}<title>{full}</title></text>",
            left - 6,
            top + middle + 4
        );
        let (x, y) = (left + middle + 4, top - 6);
        out += &format!(
            "<text class=\"col\" transform=\"translate({x} {y}) rotate(-90)\">{text}<title>{full}</title></text>"
        );
    }
    if let Some(class) = target.filter(|t| *t < n) {
        let x = left + class * cell;
        out += &format!("<rect class=\"target\" x=\"{x}\" y=\"{top}\" width=\"{cell}\" height=\"{side}\"/>");
    }
    out += "</svg>";
    out
}

/// A count that fits a cell.
fn brief(n: u64) -> String {
    if n < 10_000 { n.to_string() } else { format!("{}k", count(n / 1000)) }
}

/// The largest counts off the diagonal, in words.
fn largest(counts: &[Vec<u64>], classes: &[String]) -> String {
    let mut wrong: Vec<(u64, usize, usize)> = counts
        .iter()
        .enumerate()
        .flat_map(|(row, cells)| cells.iter().enumerate().map(move |(column, c)| (*c, row, column)))
        .filter(|(c, row, column)| *c > 0 && row != column)
        .collect();
    if wrong.is_empty() {
        return "<figcaption>No picture is confused.</figcaption>".to_owned();
    }
    wrong.sort_by_key(|(c, row, column)| (std::cmp::Reverse(*c), *row, *column));
    let items: String = wrong
        .iter()
        .take(LISTED)
        .map(|(c, row, column)| {
            let (truth, called) = (class_name(classes, *row), class_name(classes, *column));
            format!("<li>{} \u{2192} {} <b>{}</b></li>", esc(&truth), esc(&called), count(*c))
        })
        .collect();
    format!("<figcaption>Largest confusions, true \u{2192} predicted<ol>{items}</ol></figcaption>")
}
