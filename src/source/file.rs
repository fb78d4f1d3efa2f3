//! Snapshots from a TOML file, with the files of credentials and certificates that it names.
//!
//! ```toml
//! version = 1
//!
//! [[kms]]
//! id = 41
//! type = "AWS"
//! leasing_allowed = false
//! key_path = { keyID = "alias/acme", region = "us-east-1" }
//! credentials = { accessKeyId = "AKIA…", secretAccessKey = { env = "ACME_SECRET" } }
//!
//! [[tenant]]
//! id = "acme"
//! assignments = [ { kms = 41, primary = true } ]
//! ```
//!
//! Two kinds of problems. The file is one document with one author: a mistake in its form (syntax, a wrong type, an
//! unknown or missing member, two of the same id, a reference to nothing) makes the whole file unusable, and the last
//! good state stays. What its surroundings do to one entry (a credential that is not there, a KMS that this version
//! cannot use) leaves out that entry and no other; its operations fail and say that it is not valid. All problems are told at once, with their lines, and none quotes a
//! value that could be a secret.
//!
//! Tenant secrets lie in a file of their own, which the proxy writes: beside this one, or where its `secrets_file` says.
//! It is watched likewise, and by itself: a mistake in one keeps no change of the other from being taken.

mod document;
mod read;

use std::{
    fs::Metadata,
    hash::{DefaultHasher, Hasher as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tsp_wire::snapshot::TenantSecretDoc;
use zeroize::Zeroizing;

pub(super) use self::read::{read, read_noted};
use super::{Ask, Loaded, Polled};
use crate::{
    config::{Environment, Problem, Strings},
    secrets::file::{self as secrets_file, SecretsFile},
};

/// A file changed less than this before it was read may change again without a visible trace, because the kernel's
/// timestamps are coarse. It is read once more when it has settled.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// Reads a TOML file whenever it, or a file that it names, has changed.
#[derive(Debug)]
pub struct FileSource<S = Environment> {
    path: PathBuf,
    strings: S,
    configs: Watch,
    /// Where the tenant secrets lie; known once the configuration file has been read.
    secrets_file: Option<SecretsFile>,
    secrets: Watch,
}

/// What is known of some files that belong together.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// What the files looked like just before they were last read.
    seen: Option<Seen>,
    /// Digest of all content behind the state that was handed out last.
    good: Option<u64>,
    /// What was wrong, if the last attempt failed.
    failed: Option<Vec<Problem>>,
}

/// What came of reading them.
pub(super) struct Reading<F> {
    pub(super) stamps: Vec<(PathBuf, Option<Stamp>)>,
    pub(super) digest: u64,
    /// Makes the state of what was read; not asked if the digest is that of the last one.
    pub(super) state: F,
}

#[derive(Debug, PartialEq, Eq)]
struct Seen {
    stamps: Vec<(PathBuf, Option<Stamp>)>,
    settled: bool,
}

/// What changes when a file does, also when it is replaced by a rename or behind a symbolic link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds since 1970 of the last change of content, and of content or metadata.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// `None` if the file cannot be found.
    pub(super) fn of(path: &Path) -> Option<Self> {
        std::fs::metadata(path)
            .ok()
            .map(|metadata| Self::from_metadata(&metadata))
    }

    fn from_metadata(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    fn has_settled(&self, now: SystemTime) -> bool {
        let now = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let settled = now.saturating_sub(SETTLED_AFTER).as_secs();
        self.changed.0 < i64::try_from(settled).unwrap_or(i64::MAX)
    }
}

impl<S: Strings> FileSource<S> {
    /// A source that reads `path`; `strings` answers `{ env = "…" }`.
    pub fn new(path: PathBuf, strings: S) -> Self {
        Self {
            path,
            strings,
            configs: Watch::default(),
            secrets_file: None,
            secrets: Watch::default(),
        }
    }

    /// Looks at the files, and reads them if they have changed or `ask` says so.
    pub fn poll(&mut self, ask: Ask, now: SystemTime) -> Polled<Loaded> {
        self.configs.poll(ask, now, || {
            let mut files = read::Files::new(&self.path, &self.strings);
            let result = document::load(&mut files).and_then(|(loaded, secrets_file)| {
                let file = SecretsFile::new(secrets_path(&self.path, secrets_file.as_deref()));
                let known = self.secrets_file.get_or_insert_with(|| file.clone());
                if *known == file {
                    return Ok(loaded);
                }
                let why = format!(
                    "secrets_file has changed from {}; that takes a restart",
                    known.path().display()
                );
                Err(vec![Problem::new(self.path.display().to_string(), why)])
            });
            Reading {
                digest: files.digest(),
                stamps: files.into_stamps(),
                state: || result,
            }
        })
    }

    /// Likewise for the tenant secrets, once [`FileSource::poll`] knows where they are.
    pub fn poll_secrets(&mut self, ask: Ask, now: SystemTime) -> Polled<Vec<TenantSecretDoc>> {
        let Some(file) = &self.secrets_file else {
            return Polled::Same;
        };
        self.secrets.poll(ask, now, || {
            let stamps = vec![(file.path().to_owned(), Stamp::of(file.path()))];
            let read = file.read();
            let mut digest = Digest::default();
            match &read {
                Ok(Some(bytes)) => digest.add(bytes),
                Ok(None) => {}
                Err(problem) => digest.add(problem.why.as_bytes()),
            }
            Reading {
                stamps,
                digest: digest.finish(),
                state: || {
                    let secrets = match read.map_err(|problem| vec![problem])? {
                        Some(bytes) => secrets_file::parse(&bytes),
                        None => return Ok(Vec::new()),
                    };
                    let problem = |why| Problem::new(file.path().display().to_string(), why);
                    Ok(secrets.map_err(|why| vec![problem(why)])?.to_docs())
                },
            }
        })
    }

    /// Where the tenant secrets lie, once [`FileSource::poll`] knows it.
    pub(crate) fn secrets_file(&self) -> Option<&SecretsFile> {
        self.secrets_file.as_ref()
    }
}

/// The configuration file that a command works with.
///
/// # Errors
/// If none is named.
pub(crate) fn config_file(named: Option<&Path>) -> Result<PathBuf, Vec<Problem>> {
    named_file(named).ok_or_else(|| {
        let why = "not set; --config FILE does as well";
        vec![Problem::new("TSP_CONFIG_FILE", why)]
    })
}

/// Likewise; `None` if none is named.
pub(super) fn named_file(named: Option<&Path>) -> Option<PathBuf> {
    let variable = || {
        let named = Environment.get("TSP_CONFIG_FILE").ok().flatten();
        named.map(|name| PathBuf::from(name.trim()))
    };
    let path = named.map(Path::to_owned).or_else(variable);
    path.filter(|path| !path.as_os_str().is_empty())
}

/// The file of tenant secrets that goes with the configuration file at `config`.
///
/// # Errors
/// What keeps the configuration file from being read. What it says of KMSs does not matter here.
pub(crate) fn secrets_file_of(config: &Path) -> Result<SecretsFile, Vec<Problem>> {
    let mut files = read::Files::new(config, &Environment);
    let named = document::secrets_file(&mut files)?;
    Ok(SecretsFile::new(secrets_path(config, named.as_deref())))
}

/// `named`, relative to the configuration file; else beside it, with an ending of its own.
fn secrets_path(config: &Path, named: Option<&str>) -> PathBuf {
    match named {
        Some(named) => config.parent().unwrap_or(Path::new("")).join(named),
        None => config.with_extension("secrets.jsonl"),
    }
}

impl Watch {
    /// Reads if anything has changed, or if `ask` says so.
    pub(super) fn poll<T, F: FnOnce() -> Result<T, Vec<Problem>>>(
        &mut self,
        ask: Ask,
        now: SystemTime,
        read: impl FnOnce() -> Reading<F>,
    ) -> Polled<T> {
        let unchanged = self.seen.as_ref().is_some_and(|seen| {
            seen.settled
                && seen
                    .stamps
                    .iter()
                    .all(|(path, stamp)| *stamp == Stamp::of(path))
        });
        if unchanged && !ask.is_thorough() {
            return if self.failed.is_some() {
                Polled::StillFailed
            } else {
                Polled::Same
            };
        }
        let Reading {
            stamps,
            digest,
            state,
        } = read();
        let settled = stamps
            .iter()
            .all(|(_, stamp)| stamp.as_ref().is_none_or(|stamp| stamp.has_settled(now)));
        self.seen = Some(Seen { stamps, settled });
        if self.failed.is_none() && self.good == Some(digest) {
            return Polled::Same;
        }
        match state() {
            Ok(state) => {
                self.failed = None;
                if self.good.replace(digest) == Some(digest) {
                    return Polled::Same;
                }
                Polled::New(Box::new(state))
            }
            Err(problems) => {
                // Read again only because it had not settled: nothing new to tell.
                if !ask.is_thorough() && self.failed.as_ref() == Some(&problems) {
                    return Polled::StillFailed;
                }
                self.failed = Some(problems.clone());
                Polled::Failed(problems)
            }
        }
    }

    /// Likewise of the one file at `path`, of so many bytes at most. `state` gets its text, or why it cannot be read.
    pub(super) fn poll_file<T>(
        &mut self,
        path: &Path,
        bytes_max: u64,
        (ask, now): (Ask, SystemTime),
        state: impl FnOnce(Result<Zeroizing<String>, String>) -> Result<T, Vec<Problem>>,
    ) -> Polled<T> {
        self.poll(ask, now, || {
            let (mut digest, mut stamps) = (Digest::default(), Vec::new());
            let text = read_noted(path, bytes_max, &mut digest, &mut stamps);
            Reading {
                stamps,
                digest: digest.finish(),
                state: || state(text),
            }
        })
    }
}

/// Digest of everything that went into a state, to tell a change from a touch. Not for secrets' sake: it stays here.
#[derive(Debug, Default)]
pub(super) struct Digest(DefaultHasher);

impl Digest {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.0.write_usize(bytes.len());
        self.0.write(bytes);
    }

    pub(super) fn finish(&self) -> u64 {
        self.0.finish()
    }
}

#[cfg(test)]
mod tests;
