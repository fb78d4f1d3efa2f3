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
//! cannot use) leaves out that entry and no other. All problems are told at once, with their lines, and none quotes a
//! value that could be a secret.

mod document;
mod read;

use std::{
    fs::Metadata,
    hash::{DefaultHasher, Hasher as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::{Ask, Polled};
use crate::config::{Environment, Problem, Strings};

/// A file changed less than this before it was read may change again without a visible trace, because the kernel's
/// timestamps are coarse. It is read once more when it has settled.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// Reads a TOML file whenever it, or a file that it names, has changed.
#[derive(Debug)]
pub struct FileSource<S = Environment> {
    path: PathBuf,
    strings: S,
    /// What the files looked like just before they were last read.
    seen: Option<Seen>,
    /// Digest of all content behind the state that was handed out last.
    good: Option<u64>,
    /// What was wrong, if the last attempt failed.
    failed: Option<Vec<Problem>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Seen {
    stamps: Vec<(PathBuf, Option<Stamp>)>,
    settled: bool,
}

/// What changes when a file does, also when it is replaced by a rename or behind a symbolic link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds since 1970 of the last change of content, and of content or metadata.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// `None` if the file cannot be found.
    fn of(path: &Path) -> Option<Self> {
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
            seen: None,
            good: None,
            failed: None,
        }
    }

    /// Looks at the files, and reads them if they have changed or `ask` says so.
    pub fn poll(&mut self, ask: Ask, now: SystemTime) -> Polled {
        let unchanged = self.seen.as_ref().is_some_and(|seen| {
            seen.settled
                && seen
                    .stamps
                    .iter()
                    .all(|(path, stamp)| *stamp == Stamp::of(path))
        });
        if unchanged && ask == Ask::IfChanged {
            return if self.failed.is_some() {
                Polled::StillFailed
            } else {
                Polled::Same
            };
        }
        self.read(ask, now)
    }

    fn read(&mut self, ask: Ask, now: SystemTime) -> Polled {
        let mut files = read::Files::new(&self.path, &self.strings);
        let loaded = document::load(&mut files);
        let digest = files.digest();
        let settled = files
            .stamps()
            .iter()
            .all(|(_, stamp)| stamp.as_ref().is_none_or(|stamp| stamp.has_settled(now)));
        self.seen = Some(Seen {
            stamps: files.into_stamps(),
            settled,
        });
        match loaded {
            Ok(loaded) => {
                self.failed = None;
                if self.good.replace(digest) == Some(digest) {
                    return Polled::Same;
                }
                Polled::New(Box::new(loaded))
            }
            Err(problems) => {
                // Read again only because it had not settled: nothing new to tell.
                if ask == Ask::IfChanged && self.failed.as_ref() == Some(&problems) {
                    return Polled::StillFailed;
                }
                self.failed = Some(problems.clone());
                Polled::Failed(problems)
            }
        }
    }
}

/// Digest of everything that went into a state, to tell a change from a touch. Not for secrets' sake: it stays here.
#[derive(Debug, Default)]
struct Digest(DefaultHasher);

impl Digest {
    fn add(&mut self, bytes: &[u8]) {
        self.0.write_usize(bytes.len());
        self.0.write(bytes);
    }

    fn finish(&self) -> u64 {
        self.0.finish()
    }
}

#[cfg(test)]
mod tests;
