//! A run directory: what was trained, on what, with what result.
//!
//! ```text
//! run.json                 configuration, counts, versions      stem.onnx, trapped.onnx (trained.onnx)   after the last epoch
//! split.json, truth.json   which pictures, which are poisoned   defended.sgm, defended.onnx   after `replace`
//! holdout.npz              the clean holdout                    results.json               figures, stage by stage
//! metrics.jsonl            a line an epoch                      report.html, report.json    after `report`
//! checkpoint.safetensors   to go on from
//! fitting.npy              how well each picture was fitted, epoch by epoch
//! guard.json               what the guard last made of each class   replacement.json     how the head was replaced
//! audit.csv, .json, .png   after `audit`, with tripwire.json
//! purified.sgm, purified.onnx, purified-stem.onnx, purify.json   after `purify`
//! purify/                  the rounds of `purify`, each with a checkpoint, and begun.json, its settings, until it is done
//! perturbed-*.npz          what attack `cl` made of its pictures
//! triggers.json            of a sweep's ceiling: what it makes of triggers that it has never met
//! ```

mod exchange;

pub use exchange::Exchange;

use crate::checkpoint::write_whole;
use crate::config::RunConfig;
use crate::engine::Losses;
use crate::error::Failure;
use crate::evaluate::{Alarms, Evaluation};
use crate::perturb;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use stemguard_runtime::files;

/// What `run.json` records.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The configuration.
    pub config: RunConfig,
    /// How many pictures.
    pub counts: Counts,
    /// Version of this tool.
    pub version: String,
    /// [`crate::prepare::Prepared::digest`] of its data; records of older versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// [`crate::prepare::Prepared::planted`] of its data, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planted: Option<String>,
    /// Instruction set, or [`CUDA`], or several with ` + ` between them: what, with the seed, decides the bits.
    pub kernels: String,
}

impl Record {
    /// Checks that data are those of the run.
    ///
    /// # Errors
    /// A sentence with the counts then and now.
    pub fn check_data(&self, counts: &Counts, data: Option<&str>, planted: Option<&str>) -> Result<(), String> {
        let told = |c: &Counts| {
            format!(
                "{} suspects, {} poisoned, {} in the holdout, {} to measure on",
                c.train, c.poisoned, c.holdout, c.test
            )
        };
        if self.counts != *counts {
            return Err(format!("its data have changed: {}, now {}", told(&self.counts), told(counts)));
        }
        let other = |old: &Option<String>, new: Option<&str>| old.as_deref().zip(new).is_some_and(|(a, b)| a != b);
        if other(&self.data, data) {
            return Err("its data have changed: other pictures or labels".into());
        }
        if other(&self.planted, planted) {
            return Err(
                "what is planted has changed: the trigger's file or the mask beside it, or what `cl` perturbed".into(),
            );
        }
        Ok(())
    }
}

/// What the [`Record::kernels`] of a run on a GPU begin with.
pub const CUDA: &str = "cuda";

/// Pictures by use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Suspect training pictures.
    pub train: usize,
    /// Of them, poisoned.
    pub poisoned: usize,
    /// Clean holdout pictures.
    pub holdout: usize,
    /// Clean test pictures.
    pub test: usize,
    /// Triggered test pictures.
    pub triggered: usize,
}

/// A line of `metrics.jsonl`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochLine {
    /// Epochs done, from 1.
    pub epoch: u32,
    /// Mean losses of the epoch.
    #[serde(flatten)]
    pub losses: Losses,
    /// Learning rate.
    pub rate: f64,
    /// Training pictures a second.
    pub pictures_per_second: f64,
    /// Pictures that the guard had unlearned in it, from its first verdict on.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub unlearned: Option<usize>,
    /// ACC, where it was measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub acc: Option<f64>,
    /// ASR, where it was measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub asr: Option<f64>,
}

/// `results.json`: figures by stage, in the order of the chain.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Stages.
    pub stages: Vec<StageResult>,
}

impl Results {
    /// Records a stage in its place in the chain.
    fn record(&mut self, stage: StageResult) {
        match self.stages.iter_mut().find(|s| s.name == stage.name) {
            Some(old) => *old = stage,
            None => self.stages.push(stage),
        }
        let order = ["trained", "ceiling", "control", "trapped", "defended", "purified"];
        self.stages.sort_by_key(|s| order.iter().position(|name| *name == s.name));
    }
}

/// One stage's figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageResult {
    /// `trained` (undefended), `ceiling` (on the clean part alone), `trapped`, `control`, `defended`, `purified`.
    pub name: String,
    /// Its figures.
    pub evaluation: Evaluation,
    /// Those of its tripwire, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tripwire: Option<Alarms>,
    /// Seconds it took.
    pub seconds: f64,
}

/// The record of a run.
const RECORD: &str = "run.json";
/// Why a directory is refused.
const OTHER: &str = "already holds another run; choose another --out";

/// A run directory.
#[derive(Clone, Debug)]
pub struct RunDir {
    /// Where it is.
    pub path: PathBuf,
}

/// A run directory claimed by one command; it is free again when this is dropped, or the process ends.
#[derive(Debug)]
pub struct Claim(Option<std::fs::File>);

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(folder) = &self.0 {
            // Closing it would do, but for a process begun meanwhile that has not closed its copy yet.
            let _ = folder.unlock();
        }
    }
}

impl RunDir {
    /// A new run's directory, claimed; with `resume`, one that may hold the same run already.
    ///
    /// # Errors
    /// [`Failure::Input`] where the directory holds another run, or this one without `resume`, or another command has claimed it.
    pub fn create(path: &Path, record: &Record, resume: bool) -> Result<(Self, Claim), Failure> {
        let dir = Self { path: path.to_owned() };
        std::fs::create_dir_all(path).map_err(|e| Failure::file(path, format!("cannot be made: {e}")))?;
        let claim = dir.claim()?;
        if let Some(old) = Self::admits(path, &record.config, resume)? {
            let (data, planted) = (record.data.as_deref(), record.planted.as_deref());
            old.check_data(&record.counts, data, planted).map_err(|e| Failure::file(path, e))?;
            if old.kernels.split(" + ").all(|k| k != record.kernels) {
                // A change of device is asked for, and recorded; one of the instruction set comes unasked.
                if record.kernels.starts_with(CUDA) || old.kernels.contains(CUDA) {
                    let kernels = format!("{} + {}", old.kernels, record.kernels);
                    dir.write_json(RECORD, &Record { kernels, ..old })?;
                    return Ok((dir, claim));
                }
                return Err(Failure::file(
                    path,
                    format!("was started with {}, this is {}: the bits would differ", old.kernels, record.kernels),
                ));
            }
        } else {
            dir.write_json(RECORD, record)?;
        }
        Ok((dir, claim))
    }

    /// Whether a run may be written here: the record of the same run, to be continued with `resume`, or none, where there is no
    /// directory or an empty one.
    ///
    /// # Errors
    /// [`Failure::Input`] where the directory holds another run or anything else, or this run without `resume`.
    pub fn admits(path: &Path, config: &RunConfig, resume: bool) -> Result<Option<Record>, Failure> {
        let dir = Self { path: path.to_owned() };
        if Self::holds(path) {
            let old = dir.record()?;
            return match old.config == *config {
                true if resume => Ok(Some(old)),
                true => Err(Failure::file(path, "already holds this run; --resume continues it")),
                false => Err(Failure::file(path, OTHER)),
            };
        }
        // What was being written when a run was ended is nobody's.
        let own = |name: &OsStr| perturb::is_kept(name) || files::is_cut_short(name);
        let foreign = |e: std::fs::DirEntry| !own(&e.file_name());
        if std::fs::read_dir(path).is_ok_and(|d| d.flatten().any(foreign)) {
            return Err(Failure::file(path, "is not empty and holds no run; choose another --out"));
        }
        Ok(None)
    }

    /// Whether a directory holds a run.
    pub fn holds(path: &Path) -> bool {
        path.join(RECORD).is_file()
    }

    /// An existing run.
    ///
    /// # Errors
    /// [`Failure::Input`] where there is none.
    pub fn open(path: &Path) -> Result<(Self, Record), Failure> {
        let dir = Self { path: path.to_owned() };
        if !Self::holds(path) {
            return Err(Failure::file(path, "holds no run (no run.json)"));
        }
        let record = dir.record()?;
        Ok((dir, record))
    }

    /// Keeps other commands from writing here as long as the claim is held, where the file system can.
    ///
    /// # Errors
    /// [`Failure::Input`] where another command has claimed it.
    pub fn claim(&self) -> Result<Claim, Failure> {
        let Ok(folder) = std::fs::File::open(&self.path) else { return Ok(Claim(None)) };
        match folder.try_lock() {
            Err(std::fs::TryLockError::WouldBlock) => {
                Err(Failure::file(&self.path, "another command is at work here; wait for it, or end it"))
            }
            // Not every file system can lock.
            Err(std::fs::TryLockError::Error(_)) => Ok(Claim(None)),
            Ok(()) => {
                files::clear_cut_short(&self.path);
                Ok(Claim(Some(folder)))
            }
        }
    }

    /// A file of the run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Checks that an output is none of the run's files but the one `own` that is made anew.
    ///
    /// # Errors
    /// [`Failure::Input`] naming the output.
    pub fn check_output(&self, path: &Path, own: &str) -> Result<(), Failure> {
        let files = std::fs::read_dir(&self.path).map_err(|e| Failure::file(&self.path, e))?;
        for file in files.flatten().filter(|file| file.file_name() != own) {
            if files::same(path, &file.path()) {
                return Err(Failure::file(path, "is a file of the run, which it would replace"));
            }
        }
        Ok(())
    }

    /// Where the pictures that `cl` made are kept: here, or beside, where two runs of one chain share them.
    pub fn kept(&self, c: &RunConfig) -> PathBuf {
        let name = perturb::kept_as(c);
        let beside = self.path.parent().filter(|p| p.join(&name).is_file());
        match beside {
            Some(p) if c.attack.kind.needs_perturb() && !self.file(&name).is_file() => p.to_owned(),
            _ => self.path.clone(),
        }
    }

    fn record(&self) -> Result<Record, Failure> {
        let record: Record = self.read_json(RECORD)?;
        record.config.check().map_err(|e| Failure::file(&self.file(RECORD), e))?;
        Ok(record)
    }

    /// Reads a JSON file of the run.
    ///
    /// # Errors
    /// [`Failure::Input`] naming the file.
    pub fn read_json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, Failure> {
        let path = self.file(name);
        let text = std::fs::read_to_string(&path).map_err(|e| Failure::file(&path, format!("cannot be read: {e}")))?;
        serde_json::from_str(&text).map_err(|e| Failure::file(&path, e))
    }

    /// Writes a JSON file of the run, whole.
    ///
    /// # Errors
    /// [`Failure::Input`] naming the file.
    pub fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<(), Failure> {
        write_whole(&self.file(name), &self.json(name, value)?)
    }

    /// What a JSON file of the run holds.
    fn json<T: Serialize>(&self, name: &str, value: &T) -> Result<Vec<u8>, Failure> {
        let mut text = serde_json::to_vec_pretty(value).map_err(|e| Failure::file(&self.file(name), e))?;
        text.push(b'\n');
        Ok(text)
    }

    /// The epochs recorded so far.
    ///
    /// # Errors
    /// [`Failure::Input`] naming the file.
    pub fn metrics(&self) -> Result<Vec<EpochLine>, Failure> {
        let path = self.file("metrics.jsonl");
        if !path.exists() {
            return Ok(Vec::new());
        }
        let text = std::fs::read_to_string(&path).map_err(|e| Failure::file(&path, e))?;
        let line = |text: &str| {
            let line: EpochLine = serde_json::from_str(text).map_err(|e| e.to_string())?;
            // Times are made of it.
            let speed = line.pictures_per_second;
            let timed = speed.is_finite() && speed > 0.0;
            if timed { Ok(line) } else { Err(format!("pictures_per_second is {speed}")) }
        };
        text.lines()
            .enumerate()
            .map(|(i, text)| line(text).map_err(|e| Failure::file(&path, format!("line {}: {e}", i + 1))))
            .collect()
    }

    /// Records the epochs, whole.
    ///
    /// # Errors
    /// [`Failure::Input`] naming the file.
    pub fn write_metrics(&self, lines: &[EpochLine]) -> Result<(), Failure> {
        let path = self.file("metrics.jsonl");
        let mut text = String::new();
        for line in lines {
            text.push_str(&serde_json::to_string(line).map_err(|e| Failure::file(&path, e))?);
            text.push('\n');
        }
        write_whole(&path, text.as_bytes())
    }

    /// The figures so far; none yet: empty.
    ///
    /// # Errors
    /// [`Failure::Input`] naming the file.
    pub fn results(&self) -> Result<Results, Failure> {
        if self.file("results.json").exists() { self.read_json("results.json") } else { Ok(Results::default()) }
    }

    /// Records a stage's figures, replacing those of an earlier stage of the same name.
    ///
    /// # Errors
    /// [`Failure::Input`] naming the file.
    pub fn record_stage(&self, stage: StageResult) -> Result<(), Failure> {
        let mut results = self.results()?;
        results.record(stage);
        self.write_json("results.json", &results)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_cut_short_while_its_first_file_was_written_can_begin_again() {
        let home = tempfile::tempdir().expect("a directory");
        let config = RunConfig::published("signs".into());
        std::fs::write(home.path().join(".run.json.123-0.part"), "{").expect("written");
        assert!(RunDir::admits(home.path(), &config, true).expect("admitted").is_none());
        std::fs::write(home.path().join("notes.part"), "mine").expect("written");
        assert!(RunDir::admits(home.path(), &config, true).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_run_is_written_by_one_command_at_a_time() {
        let home = tempfile::tempdir().expect("a directory");
        let dir = RunDir { path: home.path().to_owned() };
        let first = dir.claim().expect("free");
        assert!(dir.claim().expect_err("refused").to_string().contains("another command is at work"));
        drop(first);
        dir.claim().expect("free again");
        // What cannot be locked is not.
        RunDir { path: home.path().join("none") }.claim().expect("nothing to claim");
    }

    #[test]
    fn a_run_does_not_go_on_with_other_data() {
        let home = tempfile::tempdir().expect("a directory");
        let record = |holdout, data: Option<&str>| Record {
            config: RunConfig::published("signs".into()),
            counts: Counts { holdout, ..Counts::default() },
            version: "1".into(),
            data: data.map(str::to_owned),
            planted: data.map(|d| format!("{d} planted")),
            kernels: "avx2".into(),
        };
        let resume = |holdout, data| RunDir::create(home.path(), &record(holdout, data), true);
        resume(60, Some("0123")).expect("new");
        resume(60, Some("0123")).expect("the same");
        let refused = |holdout, data| resume(holdout, data).expect_err("refused").to_string();
        assert!(refused(80, Some("0123")).contains("60 in the holdout, 0 to measure on, now"));
        assert!(refused(60, Some("4567")).contains("other pictures"));
        // What older versions did not record is not held against a run.
        resume(60, None).expect("the same");
    }

    #[test]
    fn an_epoch_of_no_speed_is_refused() {
        let home = tempfile::tempdir().expect("a directory");
        let dir = RunDir { path: home.path().to_owned() };
        let line = |epoch, pictures_per_second| EpochLine {
            epoch,
            losses: Losses::default(),
            rate: 0.1,
            pictures_per_second,
            unlearned: None,
            acc: None,
            asr: None,
        };
        dir.write_metrics(&[line(1, 100.0), line(2, 50.0)]).expect("written");
        assert_eq!(dir.metrics().expect("read").len(), 2);
        for speed in [0.0, -1.0] {
            dir.write_metrics(&[line(1, 100.0), line(2, speed)]).expect("written");
            assert!(dir.metrics().expect_err("refused").to_string().contains("line 2: pictures_per_second is"));
        }
    }

    #[test]
    fn figures_are_read_as_they_were_written() {
        // Shares of a test set, and rates of a schedule: numbers of 16 and 17 digits.
        let values: Vec<f64> = (0..12630u32).map(|k| f64::from(k) / 12630.0).collect();
        let text = serde_json::to_string(&values).expect("JSON");
        assert_eq!(serde_json::from_str::<Vec<f64>>(&text).expect("numbers"), values);
    }

    #[test]
    fn a_change_of_device_is_recorded_and_one_of_the_instruction_set_refused() {
        let home = tempfile::tempdir().expect("a directory");
        let record = |kernels: &str| Record {
            config: RunConfig::published("signs".into()),
            counts: Counts::default(),
            version: "1".into(),
            data: None,
            planted: None,
            kernels: kernels.into(),
        };
        let resume = |kernels| RunDir::create(home.path(), &record(kernels), true);
        let kept = || RunDir::open(home.path()).expect("a run").1.kernels;
        resume("avx2").expect("new");
        assert!(resume("avx512").expect_err("refused").to_string().contains("was started with avx2"));
        resume("avx2").expect("the same");
        resume(CUDA).expect("on a GPU");
        assert_eq!(kept(), "avx2 + cuda");
        resume("avx2").expect("and back");
        assert_eq!(kept(), "avx2 + cuda");
        resume("cuda bf16").expect("in bf16");
        assert_eq!(kept(), "avx2 + cuda + cuda bf16");
    }
}
