//! An admin's profile: a file with the secret key, which vendor at which broker it is for, and what was last seen of it.

use std::{
    fs::{self, OpenOptions},
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use tsp_wire::{
    Secret,
    envelope::{KEY_BYTES, VendorFingerprint},
};
use zeroize::{Zeroize as _, Zeroizing};

use crate::keys::PASSPHRASE_CHARS_MIN;

/// Where a passphrase may come from, for scripts.
const PASSPHRASE: &str = "BROKER_PASSPHRASE";

/// The file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Profile {
    pub(super) broker: String,
    pub(super) vendor: i64,
    /// Of the vendor's key: whatever the broker says, this is the vendor.
    pub(super) fingerprint: String,
    pub(super) email: String,
    secret_key: String,
    /// The last line of the audit trail that was checked.
    pub(super) audit_number: i64,
    pub(super) audit_hash: String,
}

impl Drop for Profile {
    fn drop(&mut self) {
        self.secret_key.zeroize();
    }
}

impl Profile {
    pub(super) fn new(
        broker: &str,
        vendor: i64,
        fingerprint: VendorFingerprint,
        email: &str,
        secret_key: &Secret<[u8; KEY_BYTES]>,
    ) -> Self {
        Self {
            broker: broker.trim_end_matches('/').to_owned(),
            vendor,
            fingerprint: fingerprint.to_string(),
            email: email.to_owned(),
            secret_key: STANDARD.encode(secret_key.expose()),
            audit_number: 0,
            audit_hash: String::new(),
        }
    }

    pub(super) fn load(path: &Path) -> Result<Self, String> {
        let text = fs::read(path)
            .map(Zeroizing::new)
            .map_err(|why| format!("the profile {} cannot be read: {why}", path.display()))?;
        serde_json::from_slice(&text)
            .map_err(|_| format!("{} is no profile of an admin", path.display()))
    }

    /// Writes a new file that only its owner can read; with `replace` in the place of the one that is there.
    pub(super) fn store(&self, path: &Path, replace: bool) -> Result<(), String> {
        let failed =
            |why: io::Error| format!("the profile {} cannot be written: {why}", path.display());
        let text = serde_json::to_vec_pretty(self).map(Zeroizing::new);
        let text = text.map_err(|why| failed(why.into()))?;
        let mut new = path.as_os_str().to_owned();
        if replace {
            new.push(".new");
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .create_new(!replace)
            .mode(0o600)
            .open(&new)
            .map_err(failed)?;
        file.write_all(&text).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        if replace {
            fs::rename(&new, path).map_err(failed)?;
        }
        Ok(())
    }

    pub(super) fn secret_key(&self) -> Option<Secret<[u8; KEY_BYTES]>> {
        let bytes = STANDARD.decode(self.secret_key.as_bytes()).ok();
        let bytes = Zeroizing::new(bytes?);
        Some(Secret::new(bytes.as_slice().try_into().ok()?))
    }
}

/// The passphrase, from the environment or from whoever sits at the terminal.
pub(super) fn passphrase() -> Result<Secret<String>, String> {
    let given = match std::env::var(PASSPHRASE) {
        Ok(text) => Zeroizing::new(text),
        Err(_) => ask().map_err(|why| format!("no passphrase: {why}; or set {PASSPHRASE}"))?,
    };
    if given.chars().count() < PASSPHRASE_CHARS_MIN {
        return Err(format!(
            "a passphrase has at least {PASSPHRASE_CHARS_MIN} characters"
        ));
    }
    Ok(Secret::new(given.as_str().to_owned()))
}

fn ask() -> io::Result<Zeroizing<String>> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(io::Error::other("standard input is no terminal"));
    }
    io::stderr().write_all(b"Passphrase: ")?;
    let before = rustix::termios::tcgetattr(&stdin)?;
    let mut silent = before.clone();
    silent.local_modes -= rustix::termios::LocalModes::ECHO;
    rustix::termios::tcsetattr(&stdin, rustix::termios::OptionalActions::Flush, &silent)?;
    let mut line = Zeroizing::new(String::with_capacity(256));
    let read = stdin.lock().read_line(&mut line);
    rustix::termios::tcsetattr(&stdin, rustix::termios::OptionalActions::Flush, &before)?;
    io::stderr().write_all(b"\n")?;
    read?;
    Ok(Zeroizing::new(
        line.trim_end_matches(['\r', '\n']).to_owned(),
    ))
}
