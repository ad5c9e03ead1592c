//! `attacks`: which attacks there are, and how they look.

use crate::options::Output;
use crate::ui;
use std::path::PathBuf;
use stemguard_runtime::data::{LoadOptions, Part, Spec, load_part};
use stemguard_runtime::files;
use stemguard_trainer::attack::{Attack, AttackConfig, AttackKind, attacks, build, sheet};
use stemguard_trainer::error::Failure;

/// Options of `attacks`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Draw a contact sheet (PNG): clean, triggered and ten times the difference, a row an attack.
    #[arg(long, value_name = "FILE")]
    sheet: Option<PathBuf>,
    /// Pictures for the sheet.
    #[arg(long, default_value = "signs:50", value_name = "SPEC")]
    data: String,
    /// Seed of the triggers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    output: Output,
}

/// Lists, and draws where asked.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    for a in attacks() {
        if args.output.json {
            ui::json(&serde_json::json!({ "name": a.kind.name(), "summary": a.summary, "source": a.source,
                "clean_label": a.kind.clean_label() }))?;
        } else {
            ui::say(&format!("{:<14} {}\n{:14} {}", a.kind.name(), a.summary, "", a.source))?;
        }
    }
    let Some(path) = &args.sheet else { return Ok(()) };
    let spec: Spec = args.data.parse()?;
    if spec.source.path().is_some_and(|data| files::same(path, data)) {
        return Err(Failure::file(path, "holds the pictures, which it would replace"));
    }
    let pictures = load_part(&spec, &LoadOptions { size: None, seed: args.seed }, Part::Test)?;
    let mut built = Vec::new();
    for a in attacks().iter().filter(|a| a.kind != AttackKind::None) {
        let config = AttackConfig { kind: a.kind, seed: args.seed, ..AttackConfig::default() };
        built.push(build(&config, pictures.h, pictures.w)?);
    }
    let all: Vec<&dyn Attack> = built.iter().map(AsRef::as_ref).collect();
    let chosen: Vec<usize> = (0..pictures.len().min(4)).collect();
    sheet::write(path, &all, &pictures, &chosen).map_err(Failure::from)
}
