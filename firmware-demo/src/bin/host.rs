//! The scenario as a program: `firmware-host FLASH` boots once over a flash image, a file that is made where there is none;
//! `firmware-host --residual FLASH` likewise the one that trains the published head;
//! `firmware-host --cuts` cuts the power at every write and erasure of an update. Exit code 1 where anything is not as it must be.

use firmware_demo::cuts;
use firmware_demo::engine::Memory;
use firmware_demo::flash::{FLASH_LEN, Nor};
use firmware_demo::json::Line;
use firmware_demo::residual;
use firmware_demo::scenario::{Fault, Platform, boot};
use std::process::ExitCode;
use std::{env, fs};

/// Prints lines.
struct Host;

impl Platform for Host {
    fn line(&mut self, line: &str) {
        print!("{line}");
    }
}

fn main() -> ExitCode {
    match env::args().nth(1).as_deref() {
        Some("--cuts") => match cuts::survive() {
            Ok((survived, tried)) => {
                let mut line = Line::new("stage", "power cuts");
                line.number("survived", survived.into());
                print!("{}", line.number("tried", tried.into()).end());
                if survived == tried { ExitCode::SUCCESS } else { ExitCode::FAILURE }
            }
            Err(error) => fail(&error.to_string()),
        },
        Some("--residual") => match env::args().nth(2) {
            Some(path) => run(&path, residual::FLASH_LEN, |flash| {
                residual::boot(&mut Host, &mut Box::new(residual::Memory::new()), flash)
            }),
            None => fail(USAGE),
        },
        Some(path) => run(path, FLASH_LEN, |flash| boot(&mut Host, &mut Box::new(Memory::new()), flash)),
        None => fail(USAGE),
    }
}

const USAGE: &str = "usage: firmware-host FLASH | --residual FLASH | --cuts";

fn run(path: &str, len: usize, boot: impl FnOnce(&mut Nor<'_>) -> Result<(), Fault>) -> ExitCode {
    let mut bytes = fs::read(path).unwrap_or_else(|_| vec![0xff; len]);
    let outcome = boot(&mut Nor::new(&mut bytes));
    if let Err(fault) = outcome {
        print!("{}", Line::new("fault", fault.name()).end());
        return ExitCode::FAILURE;
    }
    match fs::write(path, &bytes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("{path}: {error}")),
    }
}

fn fail(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::FAILURE
}
