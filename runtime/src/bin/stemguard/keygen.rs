//! `keygen`: a pair of keys.

use crate::fail::Fail;
use crate::files;
use crate::keys::{hex, private_text, public_text};
use crate::ui::{self, Common};
use serde::Serialize;
use std::path::PathBuf;
use stemguard_runtime::artifact::sign::SecretKey;

/// Make a pair of keys for signing models.
///
/// Writes an Ed25519 private key, which only its owner can read, and beside it the public key, FILE.pub, which devices hold. Both
/// are PEM, as OpenSSL reads them; the private key is not encrypted. Existing files are never overwritten.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  stemguard keygen --out model.key")]
pub(crate) struct Args {
    /// Where the private key goes; the public key goes to FILE.pub
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    common: Common,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    private: String,
    public: String,
    key_id: String,
    /// The 32 bytes a device holds, in hexadecimal.
    public_key: String,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<(), Fail> {
    let mut public = args.out.clone().into_os_string();
    public.push(".pub");
    let public = PathBuf::from(public);
    for path in [&args.out, &public] {
        files::check_output(path)?;
        if path.symlink_metadata().is_ok() {
            return Err(Fail::at(path, "exists already, and a key is never overwritten"));
        }
    }
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|e| Fail::Other(format!("no randomness from the system: {e}")))?;
    let key = SecretKey::from_seed(&seed);
    files::write_private(&args.out, private_text(&key).as_bytes())?;
    if let Err(fail) = files::write(&public, public_text(&key.public()).as_bytes()) {
        let _ = std::fs::remove_file(&args.out);
        return Err(fail);
    }
    let report = Report {
        private: args.out.display().to_string(),
        public: public.display().to_string(),
        key_id: hex(&key.public().id()),
        public_key: hex(&key.public().to_bytes()),
    };
    if args.common.json {
        return ui::json(&report);
    }
    ui::line(format_args!("{}: private key, to be kept secret", report.private))?;
    ui::line(format_args!("{}: public key {}, id {}", report.public, report.public_key, report.key_id))
}
