//! Figures and names as text.

/// Stands where a figure was not measured.
pub(super) const NONE: &str = "\u{2013}";

/// Escapes text for HTML, attributes included; control characters become U+FFFD.
pub(super) fn esc(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push('\u{FFFD}'),
            c => out.push(c),
        }
    }
    out
}

/// The first `most` characters of a text, the cut marked.
pub(super) fn short(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let cut: String = text.chars().take(most.saturating_sub(1)).collect();
    format!("{}\u{2026}", cut.trim_end())
}

/// The figure, where it was measured and is finite.
pub(super) fn known(value: Option<f64>) -> Option<f64> {
    value.filter(|v| v.is_finite())
}

/// A fraction in percent, one decimal.
pub(super) fn percent(fraction: f64) -> String {
    if fraction.is_finite() { format!("{:.1}%", clean(fraction * 100.0, 1)) } else { NONE.to_owned() }
}

/// A fraction in percent, where there is one.
pub(super) fn percent_or_none(fraction: Option<f64>) -> String {
    known(fraction).map_or_else(|| NONE.to_owned(), percent)
}

/// The difference of two fractions in percentage points, with its sign.
pub(super) fn points(difference: f64) -> String {
    if !difference.is_finite() {
        return NONE.to_owned();
    }
    let value = clean(difference * 100.0, 1);
    let sign = if value > 0.0 {
        "+"
    } else if value < 0.0 {
        "\u{2212}"
    } else {
        "\u{b1}"
    };
    format!("{sign}{:.1}", value.abs())
}

/// A value rounded to some decimals, never minus zero.
fn clean(value: f64, decimals: i32) -> f64 {
    let unit = 10f64.powi(decimals);
    (value * unit).round() / unit + 0.0
}

/// A whole number with its thousands set apart.
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A time in seconds, in the unit a reader expects.
pub(super) fn duration(seconds: Option<f64>) -> String {
    let Some(s) = known(seconds).filter(|s| *s >= 0.0) else {
        return NONE.to_owned();
    };
    // Hours of more than `u64` are not a case worth a branch: the conversion saturates.
    let whole = s.round() as u64;
    match whole {
        0..10 => format!("{s:.1} s"),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", count(whole / 3600), whole % 3600 / 60),
    }
}

/// The name of a class, its number where it has none.
pub(super) fn class_name(classes: &[String], class: usize) -> String {
    classes.get(class).filter(|name| !name.is_empty()).cloned().unwrap_or_else(|| format!("class {class}"))
}
