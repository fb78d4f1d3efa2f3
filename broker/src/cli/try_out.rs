//! `tsp-broker try-out`: a made-up vendor, by the commands that its admin would give. For `tsp dev --broker`, deploy/compose.yaml
//! and whoever wants to look around.

use std::{
    ffi::OsStr,
    fs::OpenOptions,
    io::{ErrorKind, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::Args;
use rand_core::Rng as _;
use zeroize::Zeroizing;

use super::commands::Done;
use crate::keys::random;

/// The made-up tenants, each with a LOCAL KMS config of its own; keys may be leased from the last one.
const TENANTS: [(&str, bool); 3] = [
    ("tenant-a", false),
    ("tenant-b", false),
    ("tenant-leased", true),
];

/// The proxy's service account, as a file of variables.
const PROXY: &str = "proxy.env";

/// The logdriver's. The last file to be written: with it, all is there.
const LOGDRIVER: &str = "logdriver.env";

/// Size of a LOCAL key, in bytes.
const KEY_BYTES: usize = 32;

#[derive(Args)]
pub(super) struct TryOut {
    /// Where the admin's profile and the service accounts' variables go: admin.json, proxy.env, logdriver.env
    #[arg(long)]
    folder: PathBuf,
    /// The broker's URL
    #[arg(long, env = "CONFIG_BROKER_URL")]
    broker: String,
}

/// Makes everything, unless it is there. `BROKER_PASSPHRASE` and `BROKER_SETUP_TOKEN` stand in the environment, as for
/// every admin.
pub(super) fn try_out(wanted: &TryOut) -> Done {
    let TryOut { folder, broker } = wanted;
    if folder.join(LOGDRIVER).exists() {
        return Ok(());
    }
    let admin = |arguments: &[&str], input: &[u8]| command(folder, arguments, input);
    let who = ["--name", "Made-up vendor", "--email", "you@vendor.example"];
    admin(&[&["init", "--broker", broker], &who[..]].concat(), b"")?;
    for (tenant, leasing) in TENANTS {
        admin(&["tenant", "create", tenant], b"")?;
        let leasing: &[&str] = if leasing { &["--leasing"] } else { &[] };
        let create = [&["kms", "create", "--file", "-"], leasing].concat();
        let number = admin(&create, local_key().as_bytes())?;
        let assign = ["kms", "assign", number.trim(), tenant, "--primary"];
        admin(&assign, b"")?;
    }
    for (name, file) in [("proxy", PROXY), ("logdriver", LOGDRIVER)] {
        let variables = admin(&["service-account", "create", "--name", name], b"")?;
        write_secret(&folder.join(file), variables.as_bytes())?;
    }
    Ok(())
}

/// A new LOCAL key, as an admin's file.
fn local_key() -> Zeroizing<String> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    random().fill_bytes(key.as_mut_slice());
    let text = Zeroizing::new(STANDARD.encode(key.as_slice()));
    let file = format!(r#"{{"type":"LOCAL","credentials":{{"key":"{}"}}}}"#, *text);
    Zeroizing::new(file)
}

/// What a command of this program prints, given by the vendor's admin.
fn command(folder: &Path, arguments: &[&str], input: &[u8]) -> Done<Zeroizing<String>> {
    let spoken = || format!("`tsp-broker {}`", arguments.join(" "));
    let failed = |why: std::io::Error| format!("{}: {why}", spoken());
    let program = std::env::current_exe().map_err(failed)?;
    let mut child = Command::new(program)
        .args(arguments)
        .env("BROKER_PROFILE", folder.join("admin.json"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input) {
            // It reads no more than it wants, and says why it failed if it did.
            Err(why) if why.kind() == ErrorKind::BrokenPipe => {}
            written => written.map_err(failed)?,
        }
    }
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{}: {}", spoken(), why.trim_end()));
    }
    String::from_utf8(output.stdout)
        .map(Zeroizing::new)
        .map_err(|_| format!("{} prints no text", spoken()))
}

/// Writes a file that only its owner can read, whole or not at all.
fn write_secret(path: &Path, content: &[u8]) -> Done {
    let failed = |why: std::io::Error| format!("{} cannot be written: {why}", path.display());
    let mut name = path.file_name().unwrap_or(OsStr::new("file")).to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&new).map_err(failed)?;
    file.write_all(content).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    std::fs::rename(&new, path).map_err(failed)
}
