//! What a sweep file says, and the runs it stands for: every combination of attack, rate, seed and setting is a cell.

use super::ceiling;
use crate::attack::{AttackError, AttackKind, build, choose};
use crate::config::{Crop, Loss, RunConfig};
use crate::course;
use crate::defend::Replacement;
use crate::engine::Device;
use crate::error::Failure;
use crate::model::Architecture;
use crate::prepare::parts;
use crate::purify::{self, Mode, Purification};
use crate::run::RunDir;
use crate::trap::{network, rehearse};
use dfdx::prelude::Cpu;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use stemguard_runtime::data::Spec;
use stemguard_runtime::session::Space;

/// Directories are named by settings; file systems take 255 bytes, and something may come in front or behind.
const LONGEST_NAME: usize = 200;

/// A sweep file (TOML).
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Where it was read.
    #[serde(skip)]
    pub file: PathBuf,
    /// Data set.
    pub data: String,
    /// Where the holdout comes from, if not from the data.
    #[serde(default)]
    pub holdout_data: Option<String>,
    /// Picture size, rows and columns; as the data set has it by default.
    #[serde(default)]
    pub size: Option<(usize, usize)>,
    /// Attacks, at least one.
    pub attacks: Vec<AttackKind>,
    /// Poison rates.
    #[serde(default = "tenth")]
    pub rates: Vec<f64>,
    /// Seeds.
    #[serde(default = "zero")]
    pub seeds: Vec<u64>,
    /// Target class, 0 by default.
    #[serde(default)]
    pub target: u32,
    /// Trigger files by attack name.
    #[serde(default)]
    pub triggers: std::collections::BTreeMap<String, PathBuf>,
    /// Whether to train on the clean part alone too: the ceiling of what a defence reaches.
    #[serde(default)]
    pub ceiling: bool,
    /// What every setting changes in the published recipe, guarded, unless it says otherwise itself.
    #[serde(default)]
    pub base: Changes,
    /// Settings, by name, each a table of what differs from the base; none: the base itself.
    #[serde(default)]
    pub settings: std::collections::BTreeMap<String, Changes>,
}

fn tenth() -> Vec<f64> {
    vec![0.1]
}

fn zero() -> Vec<u64> {
    vec![0]
}

/// What a setting changes.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Changes {
    /// Passes over the data.
    pub epochs: Option<u32>,
    /// Epochs between measurements.
    pub every: Option<u32>,
    /// Pictures a step.
    pub batch: Option<usize>,
    /// Learning rate.
    #[serde(alias = "rate")]
    pub lr: Option<f64>,
    /// Share held out.
    pub holdout: Option<f64>,
    /// Weight of the reconstruction's mean squared error.
    pub mse: Option<f32>,
    /// Weight of its total variation.
    pub tv: Option<f32>,
    /// Network.
    pub architecture: Option<crate::model::Architecture>,
    /// How pictures are cropped.
    pub crop: Option<Crop>,
    /// What the trap minimises.
    pub loss: Option<Loss>,
    /// Epochs after which the guard judges first.
    pub guard: Option<u32>,
    /// Passes over the holdout when the head is replaced.
    pub replace_epochs: Option<u32>,
    /// Pictures a step of it.
    pub replace_batch: Option<usize>,
    /// Cached views of each holdout picture.
    pub views: Option<usize>,
    /// Whether the chain ends with purification, as it does by default, or with head replaced and suspects audited.
    pub purify: Option<bool>,
    /// Passes over the data of purification.
    pub purify_epochs: Option<u32>,
    /// What purification does with the accused.
    pub purify_mode: Option<Mode>,
    /// Most rounds of it.
    pub purify_rounds: Option<u32>,
    /// Share of the trusted pictures that purification inoculates.
    pub inoculate: Option<f32>,
}

/// A setting's table, each key in its one spelling.
fn spelled(table: &toml::Table) -> toml::Table {
    table.iter().map(|(key, value)| (if key == "rate" { "lr".into() } else { key.clone() }, value.clone())).collect()
}

/// A message with each option it names as the plan's key: here they have the same names, but for purification's.
fn key(message: &str) -> String {
    let word = |word: &str| {
        let Some(option) = word.strip_prefix("--") else { return word.to_owned() };
        let end = option.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(option.len());
        let (name, rest) = option.split_at(end);
        let name = match name {
            "mode" | "rounds" => format!("purify_{name}"),
            "poison-rate" => "rates".into(),
            name => name.replace('-', "_"),
        };
        format!("{name}{rest}")
    };
    message.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

impl Changes {
    /// What a setting's table says, and what the base's does that it leaves open; of an architecture likewise.
    fn merged(setting: &toml::Table, base: &toml::Table) -> Result<Self, String> {
        let mut all = spelled(base);
        let setting = spelled(setting);
        if setting.get("loss").and_then(toml::Value::as_str) == Some("published") {
            all.remove("guard");
        }
        for (key, value) in setting {
            match (all.get_mut(&key).and_then(toml::Value::as_table_mut), &value) {
                (Some(old), toml::Value::Table(new)) => old.extend(new.clone()),
                _ => drop(all.insert(key, value)),
            }
        }
        all.try_into().map_err(|e: toml::de::Error| e.to_string())
    }

    /// Changes a run's configuration.
    fn apply(&self, c: &mut RunConfig) -> Result<(), String> {
        c.epochs = self.epochs.unwrap_or(c.epochs);
        c.every = self.every.unwrap_or(c.every);
        c.batch = self.batch.unwrap_or(c.batch);
        c.rate = self.lr.unwrap_or(c.rate);
        c.holdout = self.holdout.unwrap_or(c.holdout);
        c.mse = self.mse.unwrap_or(c.mse);
        c.tv = self.tv.unwrap_or(c.tv);
        c.architecture = self.architecture.unwrap_or(c.architecture);
        c.crop = self.crop.unwrap_or(c.crop);
        c.guard = self.loss.unwrap_or_default().guard(self.guard, c.epochs)?;
        c.check().map_err(|e| key(&e))
    }

    /// How the trapped model is purified under this setting; `None` where it is not.
    fn purification(&self) -> Result<Option<Purification>, String> {
        let default = Purification::default();
        let mode = self.purify_mode.unwrap_or(default.mode);
        let purification = Purification {
            mode,
            epochs: self.purify_epochs.unwrap_or(default.epochs),
            rounds: self.purify_rounds.unwrap_or(mode.default_rounds()),
            inoculate: self.inoculate.unwrap_or(default.inoculate),
        };
        purification.check().map_err(|e| key(&e)).map(|()| self.purify.unwrap_or(true).then_some(purification))
    }

    /// How the head of a run is replaced under this setting.
    fn replacement(&self, c: &RunConfig) -> Result<Replacement, String> {
        if self.views.is_some_and(|views| !(1..=1024).contains(&views)) {
            return Err("views is not within 1..1024".into());
        }
        let mut how = Replacement::cached(c.flip, c.seed);
        how.settings.epochs = self.replace_epochs.unwrap_or(how.settings.epochs);
        how.settings.batch = self.replace_batch.unwrap_or(how.settings.batch);
        if let Some(views) = self.views {
            how.space = Space::Features { views };
        }
        how.settings.check().map_err(|e| format!("replace_batch, replace_epochs: {e}"))?;
        Ok(how)
    }
}

/// One run of a sweep: a cell of the grid.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Name of its directory.
    pub name: String,
    /// Name of the setting.
    pub setting: String,
    /// The trap run; the baseline is the same without the trap.
    pub config: RunConfig,
    /// What else is trained: the name of its directory, and the run.
    pub ceiling: Option<(String, RunConfig)>,
    /// How the head is replaced.
    pub replacement: Replacement,
    /// How the trapped model is purified; `None`: it is not.
    pub purification: Option<Purification>,
}

impl Cell {
    /// What comes after training, as its directory records it (`cell.json`): the runs below it record the training alone.
    pub(super) fn after(&self) -> Result<String, Failure> {
        #[derive(Serialize)]
        struct After<'a> {
            replacement: &'a Replacement,
            purification: &'a Option<Purification>,
        }
        serde_json::to_string_pretty(&After { replacement: &self.replacement, purification: &self.purification })
            .map(|text| text + "\n")
            .map_err(|e| Failure::Other(e.to_string()))
    }
}

impl Plan {
    /// Reads a sweep file.
    ///
    /// # Errors
    /// [`Failure::Input`] naming the file and what is wrong in it.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path).map_err(|e| Failure::file(path, format!("cannot be read: {e}")))?;
        let mut plan: Self = toml::from_str(&text)
            .map_err(|e| Failure::file(path, e.to_string().split_whitespace().collect::<Vec<_>>().join(" ")))?;
        plan.file = path.to_owned();
        plan.data.parse::<Spec>().map_err(|e| Failure::file(path, format!("data: {e}")))?;
        if let Some(data) = &plan.holdout_data {
            data.parse::<Spec>().map_err(|e| Failure::file(path, format!("holdout_data: {e}")))?;
        }
        let raw: toml::Table = toml::from_str(&text).map_err(|e| Failure::file(path, e))?;
        let table =
            |of: &toml::Table, key: &str| of.get(key).and_then(toml::Value::as_table).cloned().unwrap_or_default();
        let (base, settings) = (table(&raw, "base"), table(&raw, "settings"));
        for (name, changes) in &mut plan.settings {
            let own = table(&settings, name);
            *changes = Changes::merged(&own, &base)
                .map_err(|e| Failure::file(path, format!("setting '{name}': {}", e.trim_end())))?;
        }
        if let Some(rate) = plan.rates.iter().find(|rate| !(0.0..=1.0).contains(*rate)) {
            return Err(Failure::file(path, format!("rates: {rate} is not within 0..1")));
        }
        for (what, empty) in
            [("attacks", plan.attacks.is_empty()), ("rates", plan.rates.is_empty()), ("seeds", plan.seeds.is_empty())]
        {
            if empty {
                return Err(Failure::file(path, format!("'{what}' is empty")));
            }
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
        if let Some(name) = plan.settings.keys().find(|name| name.is_empty() || !name.chars().all(plain)) {
            let why =
                format!("setting {name:?}: a name is of letters, digits and -_.+, as directories are named by it");
            return Err(Failure::file(path, why));
        }
        // Names are spelled in two ways.
        for (name, trigger) in std::mem::take(&mut plan.triggers) {
            let kind: AttackKind = name.parse().map_err(|e| Failure::file(path, format!("triggers: {e}")))?;
            if !kind.takes_trigger() {
                return Err(Failure::file(path, format!("triggers: {}", AttackError::NoTriggerFile(kind))));
            }
            if plan.triggers.insert(kind.name().to_owned(), trigger).is_some() {
                return Err(Failure::file(path, format!("triggers: {kind} is given twice")));
            }
        }
        Ok(plan)
    }

    /// Goes through all that its cells could stumble over but training, with the data as each of them takes them apart: before hours
    /// are spent on those that stand. What is trained below `out` must be of the same data.
    ///
    /// # Errors
    /// [`Failure::Input`] naming the plan, the cell, and the key or file.
    pub fn rehearse(&self, cells: &[Cell], out: &Path, device: Device) -> Result<(), Failure> {
        let told = |cell: &Cell, e: Failure| match e {
            Failure::Input(why) => Failure::file(&self.file, format!("{}: {}", cell.name, key(&why))),
            other => other,
        };
        // Before pictures of that size are made.
        let mut tried: Vec<(Architecture, usize)> = Vec::new();
        for cell in cells {
            let (architecture, batch) = (cell.config.architecture, cell.config.batch);
            if !tried.contains(&(architecture, batch)) {
                rehearse(&cell.config, device).map_err(|e| told(cell, e))?;
                tried.push((architecture, batch));
            }
        }
        // Taken apart once for all cells that set aside the same pictures.
        let same = |a: &RunConfig, b: &RunConfig| (a.holdout.to_bits(), a.seed) == (b.holdout.to_bits(), b.seed);
        let mut left: Vec<&Cell> = cells.iter().collect();
        // All have pictures of one size, and the same classes.
        let mut built: Vec<Architecture> = Vec::new();
        while let Some(&first) = left.first() {
            let parts = parts(&first.config).map_err(|e| told(first, e))?;
            let (suspects, holdout, digest) = (&parts.rest, parts.holdout.pictures(), parts.digest());
            let begun = |cell: &Cell| -> Result<(), Failure> {
                let own = ["baseline", "trap"].map(|part| out.join(&cell.name).join(part));
                let runs = own.into_iter().chain(cell.ceiling.iter().map(|(name, _)| out.join(name)));
                for path in runs.filter(|path| RunDir::holds(path)) {
                    let (dir, record) = RunDir::open(&path)?;
                    let known = record.check_data(&record.counts, Some(&digest), None);
                    known.map_err(|why| Failure::file(&dir.path, why))?;
                }
                Ok(())
            };
            let mut each = |cell: &Cell| {
                let architecture = cell.config.architecture;
                if !built.contains(&architecture) {
                    network(&cell.config, suspects, true, &Cpu::default())?;
                    built.push(architecture);
                }
                build(&cell.config.attack, suspects.h, suspects.w)?;
                choose(suspects, &cell.config.attack)?;
                course::check(&cell.config, suspects)?;
                cell.replacement.check(holdout)?;
                if let Some(p) = &cell.purification {
                    let trap = RunDir { path: out.join(&cell.name).join("trap") };
                    purify::admits(&trap, p, &cell.replacement, true)?;
                }
                begun(cell)
            };
            let (here, others): (Vec<&Cell>, _) = left.into_iter().partition(|cell| same(&cell.config, &first.config));
            here.iter().try_for_each(|cell| each(cell).map_err(|e| told(cell, e)))?;
            left = others;
        }
        Ok(())
    }

    /// The grid, in the order of the file.
    ///
    /// # Errors
    /// [`Failure::Input`] where a combination is out of range.
    pub fn cells(&self) -> Result<Vec<Cell>, Failure> {
        let alone = if self.base == Changes::default() { "default" } else { "base" };
        let none = std::collections::BTreeMap::from([(alone.to_owned(), self.base.clone())]);
        let settings = if self.settings.is_empty() { &none } else { &self.settings };
        let (mut cells, mut names) = (Vec::new(), std::collections::BTreeSet::new());
        let mut ceilings: Vec<(String, RunConfig)> = Vec::new();
        for &kind in &self.attacks {
            // Without an attack there is no rate.
            let rates = if kind == AttackKind::None { &self.rates[..self.rates.len().min(1)] } else { &self.rates[..] };
            for &rate in rates {
                for (setting, changes) in settings {
                    for &seed in &self.seeds {
                        let mut c = RunConfig::published(self.data.clone());
                        c.attack.kind = kind;
                        c.attack.target = self.target;
                        c.attack.rate = rate;
                        c.attack.seed = seed;
                        c.attack.trigger = self.triggers.get(kind.name()).cloned();
                        c.seed = seed;
                        c.holdout_data = self.holdout_data.clone();
                        c.size = self.size;
                        let refuse = |e| Failure::file(&self.file, format!("setting '{setting}': {e}"));
                        changes.apply(&mut c).map_err(refuse)?;
                        let purification = changes.purification().map_err(refuse)?;
                        let replacement = changes.replacement(&c).map_err(refuse)?;
                        let name = format!("{kind}-{rate}-{setting}-{seed}");
                        if name.len() > LONGEST_NAME {
                            return Err(refuse(format!("its directory's name has more than {LONGEST_NAME} bytes")));
                        }
                        if !names.insert(name.clone()) {
                            return Err(Failure::file(&self.file, format!("{name}: is asked for twice")));
                        }
                        // One for all settings that would train it alike.
                        let ceiling = self.ceiling.then(|| ceiling::run(&c, setting)).flatten().map(|new| {
                            if let Some(old) = ceilings.iter().find(|old| old.1 == new.1) {
                                return old.clone();
                            }
                            ceilings.push(new.clone());
                            new
                        });
                        cells.push(Cell {
                            name,
                            setting: setting.clone(),
                            ceiling,
                            config: c,
                            replacement,
                            purification,
                        });
                    }
                }
            }
        }
        Ok(cells)
    }
}

#[cfg(test)]
mod tests;
