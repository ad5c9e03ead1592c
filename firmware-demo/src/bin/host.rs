//! The scenario as a program: `firmware-host FLASH` boots once over a flash image, a file that is made where there is none;
//! `firmware-host --cuts` cuts the power at every write and erasure of an update. Exit code 1 where anything is not as it must be.

use firmware_demo::cuts;
use firmware_demo::engine::Memory;
use firmware_demo::flash::{FLASH_LEN, Nor};
use firmware_demo::json::Line;
use firmware_demo::scenario::{Platform, boot};
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
                let line = Line::new("stage", "power cuts").number("survived", survived.into());
                print!("{}", line.number("tried", tried.into()).end());
                if survived == tried { ExitCode::SUCCESS } else { ExitCode::FAILURE }
            }
            Err(error) => fail(&error.to_string()),
        },
        Some(path) => run(path),
        None => fail("usage: firmware-host FLASH | --cuts"),
    }
}

fn run(path: &str) -> ExitCode {
    let mut bytes = fs::read(path).unwrap_or_else(|_| vec![0xff; FLASH_LEN]);
    let mut memory = Box::new(Memory::new());
    let outcome = boot(&mut Host, &mut memory, &mut Nor::new(&mut bytes));
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
