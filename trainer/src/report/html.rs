//! The page, section by section.

use super::{
    Attack, Counts, ReportData, matrix, picture, svg, table,
    text::{count, esc, known, percent, percent_or_none},
    verdict::{self, Span},
};

const STYLE: &str = include_str!("style.css");

/// The metrics: short name, full name, definition.
const GLOSSARY: [(&str, &str, &str); 5] = [
    ("ACC", "accuracy", "Clean test pictures given their true class, divided by all clean test pictures."),
    (
        "ASR",
        "attack success rate",
        "Triggered test pictures given the target class, divided by all triggered test pictures. Pictures of the target \
         class are left out.",
    ),
    (
        "RA",
        "robust accuracy",
        "Triggered test pictures still given their true class, divided by the same pictures as ASR.",
    ),
    (
        "DER",
        "defence effectiveness rating",
        "(max(0, \u{394}ASR) \u{2212} max(0, \u{394}ACC) + 1) / 2, where \u{394} is the figure of the baseline minus that of \
         the stage. 100% means that ASR fell from 100% to 0% at no loss of ACC; 50% means that nothing changed.",
    ),
    (
        "Chance",
        "clean pictures called the target",
        "Clean test pictures of other classes given the target class, divided by all of these. It is the ASR to expect of a \
         model on which the trigger has no effect.",
    ),
];

/// A section of the page: its anchor, heading and content.
struct Section {
    id: &'static str,
    heading: &'static str,
    body: String,
}

/// The whole document.
pub(super) fn page(data: &ReportData) -> String {
    let span = verdict::span(&data.stages);
    let sections: Vec<Section> = [
        ("stages", "Stages", stages(data, &span)),
        ("notes", "Notes", notes(&data.notes)),
        ("attack", "Attack and data", attack(data)),
        ("pictures", "Pictures", data.pictures.iter().map(picture::row).collect()),
        ("curves", "Curves", curves(data)),
        ("confusion", "Confusion", confusion(data)),
        ("classes", "ACC by class", table::classes(data, &span)),
        ("settings", "Settings", settings(&data.config)),
        ("glossary", "Glossary", glossary()),
    ]
    .into_iter()
    .filter(|(_, _, body)| !body.is_empty())
    .map(|(id, heading, body)| Section { id, heading, body })
    .collect();
    let title = if data.title.is_empty() { "Run report".to_owned() } else { esc(&data.title) };
    let links: String = sections.iter().map(|s| format!("<a href=\"#{}\">{}</a>", s.id, s.heading)).collect();
    let body: String = sections
        .iter()
        .map(|s| {
            let (id, heading) = (s.id, s.heading);
            format!(
                "<section id=\"{id}\" aria-labelledby=\"{id}-h\"><h2 id=\"{id}-h\">{heading}</h2>\n{}</section>\n",
                s.body
            )
        })
        .collect();
    let version = if data.version.is_empty() { String::new() } else { format!(" {}", esc(&data.version)) };
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light \
         dark\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<header>\n<p class=\"brand\">Stemguard \
         run report</p>\n<h1>{title}</h1>\n{}{}</header>\n<nav aria-label=\"Sections\">{links}</nav>\n<main>\n{body}</main>\n\
         <footer><p>Made by Stemguard{} from the figures in report.json. Method: Trap and Replace, arXiv \
         2210.06428.</p></footer>\n</body>\n</html>\n",
        origin(data),
        hero(data, &span),
        version
    )
}

/// Where the figures come from, in one line.
fn origin(data: &ReportData) -> String {
    let mut parts = Vec::new();
    if !data.created_from.is_empty() {
        parts.push(format!("run <b>{}</b>", esc(&data.created_from)));
    }
    parts.push(format!("seed <b>{}</b>", data.seed));
    if !data.attack.name.is_empty() {
        parts.push(format!("attack <b>{}</b>", esc(&data.attack.name)));
    }
    if !data.attack.target.is_empty() {
        parts.push(format!("target <b>{}</b>", esc(&data.attack.target)));
    }
    format!("<p class=\"origin\">{}</p>\n", parts.iter().map(|p| format!("<span>{p}</span>")).collect::<String>())
}

/// The verdict: one sentence, four figures, and what qualifies them.
fn hero(data: &ReportData, span: &Span<'_>) -> String {
    let said = verdict::sentences(data, span).iter().map(|s| esc(s)).collect::<Vec<_>>().join(" ");
    let said = if said.is_empty() { said } else { format!("<p class=\"said\">{said}</p>") };
    let pair = |class: &str, name: &str, full: &str, value: fn(&super::Stage) -> Option<f64>| {
        let to = known(span.after.and_then(value))?;
        let from = span.before.and_then(value).and_then(|v| known(Some(v)));
        let from = from.map_or_else(String::new, |v| {
            format!("<span class=\"from\">{}</span><span class=\"to\" aria-label=\"to\">\u{2192}</span>", percent(v))
        });
        Some(format!(
            "<div class=\"tile {class}\"><dt>{name} <span>{full}</span></dt><dd>{from}<b>{}</b></dd></div>",
            percent(to)
        ))
    };
    let tiles: String = [
        pair("asr", "ASR", "attack success", |s| s.asr),
        pair("acc", "ACC", "clean accuracy", |s| Some(s.acc)),
        pair("ra", "RA", "true class kept", |s| s.ra),
        known(span.after.and_then(|s| s.der)).map(|der| {
            format!(
                "<div class=\"tile der\"><dt>DER <span>defence rating</span></dt><dd><b>{}</b></dd></div>",
                percent(der)
            )
        }),
    ]
    .into_iter()
    .flatten()
    .collect();
    let tiles = if tiles.is_empty() { tiles } else { format!("<dl class=\"tiles\">{tiles}</dl>\n") };
    format!("<p class=\"verdict\">{}</p>\n{tiles}{said}\n", esc(&verdict::headline(span)))
}

fn stages(data: &ReportData, span: &Span<'_>) -> String {
    if data.stages.is_empty() {
        return "<p class=\"none\">No stage has been measured.</p>\n".to_owned();
    }
    let mark = if data.stages.iter().any(|s| known(s.asr).is_some() && known(s.chance).is_some()) {
        " The mark on an ASR bar is chance."
    } else {
        ""
    };
    format!(
        "<p class=\"lede\">Bars run from 0% to 100%; arrows say which way is better.{mark}</p>\n{}",
        table::summary(&data.stages, span)
    )
}

fn notes(notes: &[String]) -> String {
    if notes.is_empty() {
        return String::new();
    }
    let items: String = notes.iter().map(|n| format!("<li>{}</li>", esc(n))).collect();
    format!("<ul class=\"notes\">{items}</ul>\n")
}

fn attack(data: &ReportData) -> String {
    let (attack, counts) = (&data.attack, &data.counts);
    if *attack == Attack::default() && *counts == Counts::default() {
        return String::new();
    }
    let describe = if attack.description.is_empty() {
        String::new()
    } else {
        format!("<p class=\"lede\">{}</p>\n", esc(&attack.description))
    };
    let mut facts: Vec<(&str, String)> =
        [("Attack", &attack.name), ("Source", &attack.source), ("Target class", &attack.target)]
            .into_iter()
            .filter(|(_, text)| !text.is_empty())
            .map(|(name, text)| (name, esc(text)))
            .collect();
    if !attack.name.is_empty() {
        facts.push(("Poisoning rate", percent_or_none(Some(attack.rate))));
    }
    facts.extend([
        ("Training pictures", count(counts.train)),
        ("of them poisoned", count(counts.poisoned)),
        ("Clean holdout", count(counts.holdout)),
        ("Test pictures", count(counts.test)),
        ("Triggered test pictures", count(counts.triggered)),
    ]);
    let facts: String =
        facts.iter().map(|(name, value)| format!("<div><dt>{name}</dt><dd>{value}</dd></div>")).collect();
    format!("{describe}<dl class=\"facts\">{facts}</dl>\n")
}

fn curves(data: &ReportData) -> String {
    if data.curves.is_empty() {
        return String::new();
    }
    format!("<div class=\"charts\">\n{}</div>\n", data.curves.iter().map(svg::chart).collect::<String>())
}

fn confusion(data: &ReportData) -> String {
    let target = data.classes.iter().position(|name| !name.is_empty() && *name == data.attack.target);
    let maps: String = data.stages.iter().filter_map(|s| matrix::figure(s, &data.classes, target)).collect();
    if maps.is_empty() {
        return maps;
    }
    let outline = if target.is_some() { " The outlined column is the target class." } else { "" };
    format!(
        "<p class=\"lede\">Clean test pictures: rows are true classes, columns are predicted classes.{outline}</p>\n{}<div \
         class=\"matrices\">\n{maps}</div>\n",
        matrix::key()
    )
}

fn settings(config: &[(String, String)]) -> String {
    if config.is_empty() {
        return String::new();
    }
    let rows: String = config
        .iter()
        .map(|(key, value)| format!("<tr><th scope=\"row\">{}</th><td>{}</td></tr>", esc(key), esc(value)))
        .collect();
    format!(
        "<table class=\"settings\"><caption class=\"sr\">Settings of the run</caption><tbody>{rows}</tbody></table>\n"
    )
}

fn glossary() -> String {
    let entries: String = GLOSSARY
        .iter()
        .map(|(name, full, text)| format!("<div><dt>{name} <span>{full}</span></dt><dd>{text}</dd></div>"))
        .collect();
    format!("<dl class=\"glossary\">{entries}</dl>\n")
}
