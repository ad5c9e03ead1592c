//! What a user sees while a command works: progress on a terminal, lines or JSON on standard output.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::borrow::Cow;
use std::io::Write as _;
use std::path::Path;
use stemguard_runtime::replace::Progress;
use stemguard_trainer::chain::Told;
use stemguard_trainer::error::Failure;
use stemguard_trainer::trap::Event;

/// A progress bar on standard error; nothing where that is no terminal.
pub(crate) fn bar(length: u64, what: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr_with_hz(8));
    if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:32}] {pos}/{len} {elapsed_precise} eta {eta_precise}")
    {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(what.to_owned());
    bar
}

/// Tells where the work stands: `done` of `of`.
pub(crate) fn stands(bar: &ProgressBar, done: usize, of: usize, what: impl Into<Cow<'static, str>>) {
    bar.set_length(of as u64);
    bar.set_position(done as u64);
    bar.set_message(what);
}

/// Tells where the training of a new head stands.
pub(crate) fn learns(bar: &ProgressBar, what: &str, at: &Progress) {
    stands(bar, at.epoch as usize, at.epochs as usize, format!("{what}: loss {:.3}", at.loss));
}

/// Tells where a chain stands, behind `which` chain it is; of its training, so many epochs.
pub(crate) fn told(bar: &ProgressBar, which: &str, epochs: u32, told: &Told<'_>) {
    match told {
        Told::Training(stage, Event::Step { epoch, done, of, losses }) => {
            stands(bar, *done, *of, format!("{which}{stage}: epoch {epoch}/{epochs} loss {:.3}", losses.total));
        }
        Told::Training(..) => {}
        Told::Replacing(stage, at) => learns(bar, &format!("{which}{stage}"), at),
        Told::Pictures(what, done, of) => stands(bar, *done, *of, format!("{which}{what}")),
    }
}

/// What a purified model is where nobody was accused.
pub(crate) const NOBODY: &str = "nobody is accused, so that nothing was unlearned: a backdoor that the audit did not find is still learnt (in \
     defended.sgm the head alone is new)";

/// A line on standard output; a closed pipe ends the output quietly, and nothing else: what was begun is finished.
pub(crate) fn say(text: &str) -> Result<(), Failure> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(e) => Err(Failure::Other(format!("standard output: {e}"))),
        Ok(()) => Ok(()),
    }
}

/// A line on standard error, where nobody parses it; lost where it cannot be written.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A path as text, also where it is not Unicode.
pub(crate) fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// A JSON object as one line on standard output.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<(), Failure> {
    say(&serde_json::to_string(value).map_err(|e| Failure::Other(e.to_string()))?)
}
