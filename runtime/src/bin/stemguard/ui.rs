//! What commands share on the terminal: common flags, output, progress.

use crate::fail::Fail;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::fmt::Display;
use std::io::{self, Write};
use stemguard_runtime::data::set_threads;
use stemguard_runtime::kernels::simd::Simd;

/// Flags every command takes.
#[derive(clap::Args)]
pub(crate) struct Common {
    /// Print one JSON object a line instead of text
    #[arg(long)]
    pub(crate) json: bool,
    /// Threads to use; 0: one for each core
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=1024))]
    pub(crate) threads: u16,
}

impl Common {
    /// The fast kernels on the threads asked for.
    pub(crate) fn kernels(&self) -> Simd {
        let threads = usize::from(self.threads);
        set_threads(threads);
        Simd::new(threads)
    }
}

fn number(text: &str, range: &'static str, within: impl Fn(f32) -> bool) -> Result<f32, String> {
    let value: f32 = text.parse().map_err(|_| "not a number".to_owned())?;
    if within(value) { Ok(value) } else { Err(format!("not {range}")) }
}

/// A learning rate, as an option's value.
pub(crate) fn rate(text: &str) -> Result<f32, String> {
    number(text, "above 0 and at most 10", |v| v > 0.0 && v <= 10.0)
}

/// A share, all of it at most.
pub(crate) fn share(text: &str) -> Result<f32, String> {
    number(text, "within 0..1", |v| (0.0..=1.0).contains(&v))
}

/// A share of which something is left.
pub(crate) fn part(text: &str) -> Result<f32, String> {
    number(text, "at least 0 and below 1", |v| (0.0..1.0).contains(&v))
}

/// Prints one line of text to standard output.
pub(crate) fn line(text: impl Display) -> Result<(), Fail> {
    written(writeln!(io::stdout().lock(), "{text}"))
}

/// Prints one JSON object to standard output, on one line.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Fail> {
    let text = serde_json::to_string(value).map_err(|e| Fail::Other(format!("JSON: {e}")))?;
    line(text)
}

fn written(outcome: io::Result<()>) -> Result<(), Fail> {
    outcome.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Fail::Pipe,
        _ => Fail::Other(format!("standard output: {error}")),
    })
}

/// Tells something that is not the result, on standard error.
pub(crate) fn note(text: impl Display) {
    let text = text.to_string();
    let _ = writeln!(io::stderr(), "stemguard: {}", text.split_whitespace().collect::<Vec<_>>().join(" "));
}

/// A progress bar on standard error; nothing where that is no terminal.
pub(crate) fn bar(len: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(len), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} {eta} {msg}") {
        bar.set_style(style);
    }
    bar.set_prefix(what);
    bar
}

/// A number with thousands set apart.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
