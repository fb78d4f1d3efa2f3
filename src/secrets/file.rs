//! The file of tenant secrets: several proxies and `tsp secrets` share it, and a crash at any moment leaves it whole.
//!
//! Readers never wait. A writer holds an exclusive lock on a file of its own beside it (`flock`, which the kernel gives
//! back when the process dies), reads what there is, writes all of it to a new file, syncs that, renames it into place and
//! syncs the folder. So whoever reads sees the old state or the new one, and what was told to be stored is on the disk.
//!
//! It holds nothing that opens without the tenants' KMSs, and may be copied at any time. `docs/recovery.md` describes the
//! format for people who have the file and not this program:
//!
//! ```json
//! {"format":"tsp-tenant-secrets","version":1,"secrets":1,"sha256":"…"}
//! {"id":9001,"tenant":"acme","type":"deterministic","path":"customers","status":"current","created":"…","changed":"…","edek":"Ck…"}
//! ```

use std::{
    borrow::Cow,
    ffi::OsString,
    fmt::Write as _,
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tsp_wire::{
    TenantId, TenantSecretId,
    api::SECRET_PATH_BYTES_MAX,
    derive::{RotationStatus, SecretType},
    edek::EncryptedDeks,
};

use super::{Place, Record, Secrets};
use crate::config::{Problem, SECRETS_BYTES_MAX};

/// What the first line says that the file is.
const FORMAT: &str = "tsp-tenant-secrets";

/// The one version of the format.
const VERSION: u64 = 1;

/// Only the owner may read a new file. What is in it is wrapped, but no business of others.
const MODE: u32 = 0o600;

/// What the lock's file holds once secrets have been stored: from then on, a file of secrets that is not there is lost.
const MARK: &[u8] =
    b"Tenant secrets are kept beside this file. If they are gone, put a copy back.\n";

/// Where tenant secrets are kept. Nothing is open or locked between two calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SecretsFile {
    path: PathBuf,
}

impl SecretsFile {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes of the file; `None` if nothing was ever stored.
    ///
    /// # Errors
    /// What keeps it from being read, also that it has gone.
    pub(crate) fn read(&self) -> Result<Option<Vec<u8>>, Problem> {
        let read = || read_bounded(&self.path).map_err(|why| self.problem(why));
        if let Some(bytes) = read()? {
            return Ok(Some(bytes));
        }
        let lock = self.beside(".lock");
        if !fs::metadata(&lock).is_ok_and(|metadata| metadata.len() > 0) {
            return Ok(None);
        }
        // Perhaps the first secret was stored just now.
        if let Some(bytes) = read()? {
            return Ok(Some(bytes));
        }
        Err(self.problem(format!(
            "has gone, although tenant secrets were kept there: put a copy back; or, to begin anew and lose what was \
             encrypted with their keys, remove {}",
            lock.display()
        )))
    }

    /// All secrets as they are now.
    ///
    /// # Errors
    /// As [`SecretsFile::read`] and [`parse`].
    pub(crate) fn load(&self) -> Result<Secrets, Problem> {
        match self.read()? {
            None => Ok(Secrets::default()),
            Some(bytes) => parse(&bytes).map_err(|why| self.problem(why)),
        }
    }

    /// Lets `edit` change the secrets while nobody else can, and stores them for good if it says that it did.
    ///
    /// `wait` is called if another process has the lock, before waiting for it.
    ///
    /// # Errors
    /// What keeps them from being read or stored. They may be stored all the same if the disk failed at the very end.
    pub(crate) fn update<T>(
        &self,
        wait: impl FnOnce(&Path),
        edit: impl FnOnce(&mut Secrets) -> Result<(T, Edited), Problem>,
    ) -> Result<T, Problem> {
        let there = Self::new(self.real_path());
        let lock = there.lock(wait).map_err(|why| {
            self.problem(format!(
                "cannot be changed: its lock file cannot be locked: {why}"
            ))
        })?;
        let mut secrets = there.load()?;
        let (result, edited) = edit(&mut secrets)?;
        if edited == Edited::Yes {
            let bytes = render(secrets.records());
            if bytes.len() as u64 > SECRETS_BYTES_MAX {
                return Err(self.problem(format!("is full: it may have {SECRETS_BYTES_MAX} bytes")));
            }
            there
                .replace(&bytes, &lock)
                .map_err(|why| self.problem(format!("cannot be written: {why}")))?;
        }
        // Closing its file gives the lock back.
        drop(lock);
        Ok(result)
    }

    fn problem(&self, why: impl Into<String>) -> Problem {
        Problem::new(self.path.display().to_string(), why)
    }

    /// Behind all symbolic links, so that all who use the file lock the same lock, and a link stays one.
    fn real_path(&self) -> PathBuf {
        fs::canonicalize(&self.path).unwrap_or_else(|_| {
            let folder = fs::canonicalize(folder_of(&self.path)).ok();
            let name = self.path.file_name();
            folder
                .zip(name)
                .map_or_else(|| self.path.clone(), |(folder, name)| folder.join(name))
        })
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(suffix);
        PathBuf::from(name)
    }

    fn lock(&self, wait: impl FnOnce(&Path)) -> io::Result<File> {
        let path = self.beside(".lock");
        let mut wait = Some(wait);
        loop {
            let file = OpenOptions::new()
                .read(true)
                .append(true)
                .create(true)
                .mode(MODE)
                .open(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(fs::TryLockError::Error(why)) => return Err(why),
                Err(fs::TryLockError::WouldBlock) => {
                    if let Some(wait) = wait.take() {
                        wait(&path);
                    }
                    file.lock()?;
                }
            }
            // If somebody removed the file meanwhile, this lock is one that nobody else will ever ask for.
            let locked = file.metadata()?;
            let there = match fs::metadata(&path) {
                Ok(there) => (there.dev(), there.ino()) == (locked.dev(), locked.ino()),
                Err(why) if why.kind() == io::ErrorKind::NotFound => false,
                Err(why) => return Err(why),
            };
            if there {
                return Ok(file);
            }
        }
    }

    fn replace(&self, bytes: &[u8], mut lock: &File) -> io::Result<()> {
        let new = self.beside(".new");
        // What a writer left behind that died. There is only one, since it held the lock.
        match fs::remove_file(&new) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
            Ok(()) | Err(_) => {}
        }
        let mode = fs::metadata(&self.path).map_or(MODE, |metadata| metadata.mode() & 0o777);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(MODE)
            .open(&new)?;
        file.write_all(bytes)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        if lock.metadata()?.len() == 0 {
            lock.write_all(MARK)?;
            lock.sync_all()?;
        }
        File::open(folder_of(&self.path))?.sync_all()
    }
}

/// Whether an edit changed anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edited {
    Yes,
    No,
}

fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// The content; `None` if there is no such file.
fn read_bounded(path: &Path) -> Result<Option<Vec<u8>>, String> {
    let cannot = |why: io::Error| format!("cannot be read: {why}");
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(why) => return Err(cannot(why)),
    };
    // Opening a pipe would wait for its other end.
    if !metadata.is_file() {
        return Err("is not a file".to_owned());
    }
    let mut bytes = Vec::new();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(why) => return Err(cannot(why)),
    };
    file.take(SECRETS_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(cannot)?;
    if bytes.len() as u64 > SECRETS_BYTES_MAX {
        return Err(format!("has more than {SECRETS_BYTES_MAX} bytes"));
    }
    Ok(Some(bytes))
}

/// The file's content for `records`.
pub(crate) fn render<'a>(records: impl IntoIterator<Item = &'a Record>) -> Vec<u8> {
    let mut lines = String::new();
    let mut secrets = 0;
    for record in records {
        secrets += 1;
        push_line(&mut lines, record);
    }
    let sha256 = sha256(lines.as_bytes());
    let head = format!(
        r#"{{"format":"{FORMAT}","version":{VERSION},"secrets":{secrets},"sha256":"{sha256}"}}"#
    );
    format!("{head}\n{lines}").into_bytes()
}

fn push_line(lines: &mut String, record: &Record) {
    let text = |text: &str| Value::from(text).to_string();
    let Record {
        id,
        place,
        status,
        created,
        changed,
        edek,
    } = record;
    let (tenant, path) = (text(&place.tenant), text(&place.path));
    let (secret_type, edek) = (place.secret_type, BASE64.encode(edek));
    let (created, changed) = (rfc3339(*created), rfc3339(*changed));
    // Writing to a string cannot fail.
    let _ = writeln!(
        lines,
        r#"{{"id":{id},"tenant":{tenant},"type":"{secret_type}","path":{path},"status":"{status}","created":"{created}","changed":"{changed}","edek":"{edek}"}}"#
    );
}

/// A time as the file and `tsp secrets` spell it.
pub(crate) fn rfc3339(time: OffsetDateTime) -> String {
    // Only years beyond 9999 cannot be spelt.
    time.format(&Rfc3339).unwrap_or_default()
}

fn sha256(bytes: &[u8]) -> String {
    let mut hex = String::with_capacity(64);
    for byte in Sha256::digest(bytes) {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// Reads the file's content, and checks that it is whole and breaks no rule.
///
/// # Errors
/// What is wrong, and in which line. Such a file must not be written over: the secret that cannot be read may be the only
/// one that opens somebody's data.
pub(crate) fn parse(bytes: &[u8]) -> Result<Secrets, String> {
    let text = str::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())?;
    let (head, lines) = text
        .split_once('\n')
        .ok_or("is damaged: its first line has no end")?;
    let count = check_head(head, lines)?;
    let mut secrets = Secrets::default();
    for (index, line) in lines.lines().enumerate() {
        let in_line = |why: String| format!("line {}: {why}", index + 2);
        let record = read_line(line).map_err(in_line)?;
        secrets
            .add(record)
            .map_err(|why| in_line(why.to_string()))?;
    }
    let found = secrets.records().len();
    if u64::try_from(found).ok() != Some(count) {
        return Err(format!(
            "is damaged: its first line says {count} secrets, and there are {found}"
        ));
    }
    Ok(secrets)
}

/// Checks the first line, and gives the number of secrets.
fn check_head(head: &str, lines: &str) -> Result<u64, String> {
    let head: Value =
        serde_json::from_str(head).map_err(|why| format!("line 1: not JSON: {why}"))?;
    if head.get("format").and_then(Value::as_str) != Some(FORMAT) {
        return Err(format!(
            "is no file of tenant secrets: line 1 has no format {FORMAT:?}"
        ));
    }
    let version = head.get("version").and_then(Value::as_u64);
    if version != Some(VERSION) {
        return Err(format!(
            "is not of format version {VERSION}; a newer program wrote it"
        ));
    }
    if head.get("sha256").and_then(Value::as_str) != Some(&sha256(lines.as_bytes())) {
        return Err(
            "is damaged or was edited: what follows line 1 has another SHA-256 than line 1 says"
                .to_owned(),
        );
    }
    let count = head.get("secrets").and_then(Value::as_u64);
    count.ok_or_else(|| "line 1: secrets is not a number".to_owned())
}

/// One line, as it is spelt. Members that are not known would get lost when the file is written again, so there are none.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    id: u64,
    #[serde(borrow)]
    tenant: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    secret_type: Cow<'a, str>,
    #[serde(borrow)]
    path: Cow<'a, str>,
    #[serde(borrow)]
    status: Cow<'a, str>,
    #[serde(borrow)]
    created: Cow<'a, str>,
    #[serde(borrow)]
    changed: Cow<'a, str>,
    #[serde(borrow)]
    edek: Cow<'a, str>,
}

fn read_line(line: &str) -> Result<Record, String> {
    let line: Line<'_> = serde_json::from_str(line).map_err(|why| why.to_string())?;
    let wrong = |name: &str, text: &str| format!("{name} cannot be {text:?}");
    let time = |name: &str, text: &str| {
        OffsetDateTime::parse(text, &Rfc3339).map_err(|_| wrong(name, text))
    };
    if !TenantId::is_valid(&line.tenant) {
        return Err(wrong("tenant", &line.tenant));
    }
    if line.path.len() > SECRET_PATH_BYTES_MAX {
        return Err(wrong("path", &line.path));
    }
    let edek = BASE64.decode(&*line.edek).ok();
    let edek = edek.filter(|edek| EncryptedDeks::from_bytes(edek).is_ok());
    let id = TenantSecretId::new(line.id);
    let secret_type = SecretType::from_text(&line.secret_type);
    let status = RotationStatus::from_text(&line.status);
    Ok(Record {
        id: id.ok_or_else(|| wrong("id", &line.id.to_string()))?,
        place: Place {
            tenant: line.tenant.into_owned(),
            secret_type: secret_type.ok_or_else(|| wrong("type", &line.secret_type))?,
            path: line.path.into_owned(),
        },
        status: status.ok_or_else(|| wrong("status", &line.status))?,
        created: time("created", &line.created)?,
        changed: time("changed", &line.changed)?,
        edek: edek.ok_or_else(|| wrong("edek", &line.edek))?,
    })
}

#[cfg(test)]
mod tests;
