//! A stage's files replaced as one: all are written beside their places before any of those there is touched, so that a disk that fills
//! up loses nothing. Then the stage's figures are withdrawn, what is of no use any more is removed, each file takes its place, and the
//! new figures are recorded. Whenever that is cut short, a run that has a stage's figures has the files they are of.

use super::{RunDir, StageResult};
use crate::error::Failure;
use serde::Serialize;
use std::path::{Path, PathBuf};
use stemguard_runtime::files::Together;

/// Files of a stage, on their way to their places.
pub struct Exchange<'a> {
    dir: &'a RunDir,
    files: Together,
    gone: Vec<PathBuf>,
}

fn unwritten(path: &Path, e: impl std::fmt::Display) -> Failure {
    Failure::file(path, format!("cannot be written: {e}"))
}

impl<'a> Exchange<'a> {
    /// Nothing yet.
    pub fn new(dir: &'a RunDir) -> Self {
        Self { dir, files: Together::default(), gone: Vec::new() }
    }

    /// A file.
    ///
    /// # Errors
    /// [`Failure::Input`] naming the file.
    pub fn put(&mut self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let path = self.dir.file(name);
        // It takes the place of what would go.
        self.gone.retain(|gone| *gone != path);
        self.files.add(&path, bytes).map_err(|e| unwritten(&path, e))
    }

    /// A JSON file.
    ///
    /// # Errors
    /// [`Failure::Input`] naming the file.
    pub fn put_json<T: Serialize>(&mut self, name: &str, value: &T) -> Result<(), Failure> {
        self.put(name, &self.dir.json(name, value)?)
    }

    /// A file of before that goes, unless another is put in its place later.
    pub fn remove(&mut self, name: &str) {
        self.gone.push(self.dir.file(name));
    }

    /// Makes the exchange, and records the stage's figures.
    ///
    /// # Errors
    /// [`Failure::Input`] naming the file.
    pub fn make(mut self, stage: StageResult) -> Result<(), Failure> {
        const RESULTS: &str = "results.json";
        let mut results = self.dir.results()?;
        let before = results.stages.len();
        results.stages.retain(|old| old.name != stage.name);
        let mut first = Together::default();
        if results.stages.len() < before {
            let path = self.dir.file(RESULTS);
            first.add(&path, &self.dir.json(RESULTS, &results)?).map_err(|e| unwritten(&path, e))?;
        }
        results.record(stage);
        self.put_json(RESULTS, &results)?;
        let Self { files, gone, .. } = self;
        first.place().map_err(|(path, e)| unwritten(&path, e))?;
        for path in gone.iter().filter(|path| path.exists()) {
            std::fs::remove_file(path).map_err(|e| Failure::file(path, format!("cannot be removed: {e}")))?;
        }
        files.place().map_err(|(path, e)| unwritten(&path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::Evaluation;

    fn stage(name: &str, seconds: f64) -> StageResult {
        StageResult { name: name.into(), evaluation: Evaluation::default(), tripwire: None, seconds }
    }

    #[test]
    fn what_was_there_stays_until_everything_is_written() {
        let home = tempfile::tempdir().expect("a directory");
        let dir = RunDir { path: home.path().to_owned() };
        dir.record_stage(stage("trapped", 1.0)).expect("written");
        dir.record_stage(stage("defended", 2.0)).expect("written");
        for name in ["defended.sgm", "audit.json", "audit.csv"] {
            std::fs::write(dir.file(name), "old").expect("written");
        }
        let read = |name: &str| std::fs::read_to_string(dir.file(name)).ok();
        let seconds = || dir.results().expect("readable").stages.iter().map(|s| s.seconds).collect::<Vec<_>>();
        let begin = || {
            let mut new = Exchange::new(&dir);
            new.put("defended.sgm", b"new").expect("written");
            new.remove("audit.json");
            new.remove("audit.csv");
            new
        };
        // The disk is full, as it were: the last of the files cannot be written.
        let mut new = begin();
        let refused = new.put("no/such/folder", b"x").expect_err("refused").to_string();
        assert!(refused.contains("folder: cannot be written"), "{refused}");
        drop(new);
        for name in ["defended.sgm", "audit.json", "audit.csv"] {
            assert_eq!(read(name).as_deref(), Some("old"), "{name}");
        }
        assert_eq!((seconds(), std::fs::read_dir(home.path()).expect("listed").count()), (vec![1.0, 2.0], 4));
        // A file that goes and comes again is the new one.
        let mut new = begin();
        new.put_json("audit.json", &7).expect("written");
        assert_eq!((read("defended.sgm").as_deref(), read("audit.json").as_deref()), (Some("old"), Some("old")));
        new.make(stage("defended", 3.0)).expect("made");
        assert_eq!((read("defended.sgm").as_deref(), read("audit.json").as_deref()), (Some("new"), Some("7\n")));
        assert_eq!((read("audit.csv"), seconds()), (None, vec![1.0, 3.0]));
        assert_eq!(std::fs::read_dir(home.path()).expect("listed").count(), 3);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_that_would_go_stays_where_a_file_comes_in_its_place() {
        let home = tempfile::tempdir().expect("a directory");
        let dir = RunDir { path: home.path().to_owned() };
        let kept = home.path().join("kept");
        std::fs::write(&kept, "old").expect("written");
        std::os::unix::fs::symlink(&kept, dir.file("audit.json")).expect("linked");
        let mut new = Exchange::new(&dir);
        new.remove("audit.json");
        new.put("audit.json", b"new").expect("written");
        new.make(stage("defended", 1.0)).expect("made");
        assert_eq!(std::fs::read_to_string(dir.file("audit.json")).expect("read"), "new");
        assert_eq!(std::fs::read_to_string(kept).expect("read"), "new");
    }

    #[test]
    fn an_exchange_cut_short_has_no_figures() {
        let home = tempfile::tempdir().expect("a directory");
        let dir = RunDir { path: home.path().to_owned() };
        dir.record_stage(stage("defended", 2.0)).expect("written");
        // What is to go is a folder: the exchange stops between the old figures and the new ones.
        std::fs::create_dir_all(dir.file("audit.csv")).expect("made");
        let mut new = Exchange::new(&dir);
        new.put("defended.sgm", b"new").expect("written");
        new.remove("audit.csv");
        assert!(
            new.make(stage("defended", 3.0)).expect_err("refused").to_string().contains("audit.csv: cannot be removed")
        );
        assert!(dir.results().expect("readable").stages.is_empty() && !dir.file("defended.sgm").exists());
    }
}
