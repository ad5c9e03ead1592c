//! The report of one run: figures in, one self-contained HTML page out.
//!
//! [`ReportData`] holds everything the page shows and is plain serde data, so that a run keeps it as `report.json` and the
//! page can be made again later. [`render`] is pure; [`write`](fn@write) puts the page on disk in one rename.
//!
//! Rates (ACC, ASR, RA, DER, chance, poisoning rate) are fractions in `0.0..=1.0`; the page shows them in percent. A rate that
//! is not finite counts as not measured.

mod html;
mod matrix;
mod picture;
mod svg;
mod table;
#[cfg(test)]
mod tests;
mod text;
mod verdict;
mod wire;

use serde::{Deserialize, Serialize};
use std::{io, path::Path};

/// Everything the page of one run shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReportData {
    /// Heading of the page.
    pub title: String,
    /// Name of the run directory the figures come from.
    pub created_from: String,
    /// Version of the tool that made the run.
    pub version: String,
    /// Seed of the run.
    pub seed: u64,
    /// Settings as (key, value), in the order they are shown.
    pub config: Vec<(String, String)>,
    /// How many pictures each part of the run used.
    pub counts: Counts,
    /// The attack the data were poisoned with.
    pub attack: Attack,
    /// Measured stages, in the order they ran.
    pub stages: Vec<Stage>,
    /// Class names; a class without one is shown by its number.
    pub classes: Vec<String>,
    /// Line charts, in the order they are shown.
    pub curves: Vec<Curve>,
    /// Rows of pictures, in the order they are shown.
    pub pictures: Vec<PictureRow>,
    /// Remarks a reader of the figures has to know.
    pub notes: Vec<String>,
}

/// Numbers of pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Suspect training pictures.
    pub train: u64,
    /// Poisoned pictures among the training pictures.
    pub poisoned: u64,
    /// Clean holdout pictures.
    pub holdout: u64,
    /// Clean test pictures: what ACC is counted over.
    pub test: u64,
    /// Triggered test pictures of the classes that are not the target: what ASR and RA are counted over.
    pub triggered: u64,
}

/// The attack the data were poisoned with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attack {
    /// Short name, as on the command line.
    pub name: String,
    /// What it does to a picture, in a sentence.
    pub description: String,
    /// Where it was published, or the file the trigger came from.
    pub source: String,
    /// Name of the class the trigger asks for.
    pub target: String,
    /// Poisoned share of the training pictures, a fraction.
    #[serde(deserialize_with = "wire::real")]
    pub rate: f64,
}

/// The figures of one stage: `baseline`, `trapped`, `control`, `defended`, `purified`, `ceiling`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stage {
    /// Name of the stage.
    pub name: String,
    /// What the stage is, in a sentence.
    pub note: String,
    /// Accuracy on clean test pictures, a fraction.
    #[serde(deserialize_with = "wire::real")]
    pub acc: f64,
    /// Attack success rate over triggered pictures, a fraction.
    pub asr: Option<f64>,
    /// Triggered pictures still given their true class, a fraction.
    pub ra: Option<f64>,
    /// Defence effectiveness rating against the baseline, a fraction.
    pub der: Option<f64>,
    /// Clean pictures of other classes called the target, a fraction.
    pub chance: Option<f64>,
    /// Wall-clock time of the stage in seconds.
    pub seconds: Option<f64>,
    /// Counts on the clean test pictures: rows are true classes, columns predicted ones.
    pub confusion: Option<Vec<Vec<u64>>>,
    /// Accuracy of each class, fractions.
    #[serde(deserialize_with = "wire::reals")]
    pub per_class: Vec<f64>,
}

/// One line chart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Curve {
    /// Heading of the chart.
    pub title: String,
    /// What the x axis counts; `epoch` where empty.
    pub x_label: String,
    /// What the y axis measures.
    pub y_label: String,
    /// Whether the y values are fractions to be shown in percent.
    pub percent: bool,
    /// The lines.
    pub series: Vec<Series>,
}

/// One line of a chart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Series {
    /// Name shown in the legend and at the end of the line.
    pub name: String,
    /// Points `(x, y)` in the order of x; a point that is not finite leaves a gap.
    #[serde(deserialize_with = "wire::points")]
    pub points: Vec<(f64, f64)>,
}

/// One row of pictures, such as clean | triggered | 10x difference | reconstruction.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PictureRow {
    /// What the row shows.
    pub caption: String,
    /// The pictures, from left to right.
    pub cells: Vec<Picture>,
}

/// One picture.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Picture {
    /// What the picture is, such as the class a model gives it.
    pub label: String,
    /// Height in pixels.
    pub h: usize,
    /// Width in pixels.
    pub w: usize,
    /// `h * w * 3` bytes, rows from the top, red green blue; a base64 string in JSON.
    #[serde(with = "wire::bytes")]
    pub rgb: Vec<u8>,
}

/// Makes the page: one HTML document that loads nothing and runs nothing.
#[must_use]
pub fn render(data: &ReportData) -> String {
    html::page(data)
}

/// Writes the page to `path`: first beside it, then renamed over it, so that a reader never sees half a page.
///
/// # Errors
/// `InvalidInput` where `path` names no file; otherwise what the file system says.
pub fn write(path: &Path, data: &ReportData) -> io::Result<()> {
    stemguard_runtime::files::write(path, render(data).as_bytes())
}
