//! Reading the configuration file and the files and variables that it names, within bounds, and remembering what was
//! read so that a change is noticed.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::{Digest, Stamp};
use crate::config::{CA_BYTES_MAX, CONFIG_BYTES_MAX, CREDENTIAL_BYTES_MAX, NotUnicode, Strings};

/// One look at the configuration file and its surroundings.
pub(super) struct Files<'a, S> {
    path: &'a Path,
    strings: &'a S,
    stamps: Vec<(PathBuf, Option<Stamp>)>,
    digest: Digest,
}

impl<'a, S: Strings> Files<'a, S> {
    pub(super) fn new(path: &'a Path, strings: &'a S) -> Self {
        Self {
            path,
            strings,
            stamps: Vec::new(),
            digest: Digest::default(),
        }
    }

    /// The configuration file's path, for messages.
    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    /// The configuration file's text.
    pub(super) fn config(&mut self) -> Result<Zeroizing<String>, String> {
        self.read(self.path, CONFIG_BYTES_MAX)
    }

    /// The one credential in the file at `path`, without the white space around it.
    pub(super) fn credential(&mut self, path: &str) -> Result<Zeroizing<String>, String> {
        let path = self.beside(path);
        let text = self.read(&path, CREDENTIAL_BYTES_MAX);
        let text = text.map_err(|why| format!("{} {why}", path.display()))?;
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Err(format!("{} is empty", path.display()));
        }
        Ok(Zeroizing::new(trimmed.to_owned()))
    }

    /// The certificates in the file at `path`.
    pub(super) fn certificates(&mut self, path: &str) -> Result<String, String> {
        let path = self.beside(path);
        let text = self.read(&path, CA_BYTES_MAX);
        text.map(|text| text.to_string())
            .map_err(|why| format!("{} {why}", path.display()))
    }

    /// The value of the environment variable `name`, without the white space around it.
    pub(super) fn variable(&self, name: &str) -> Result<Zeroizing<String>, String> {
        match self.strings.get(name) {
            Ok(value) => {
                let value = Zeroizing::new(value.unwrap_or_default());
                match value.trim() {
                    "" => Err(format!("the environment variable {name} is not set")),
                    trimmed => Ok(Zeroizing::new(trimmed.to_owned())),
                }
            }
            Err(NotUnicode) => Err(format!("the environment variable {name} is not UTF-8")),
        }
    }

    pub(super) fn into_stamps(self) -> Vec<(PathBuf, Option<Stamp>)> {
        self.stamps
    }

    pub(super) fn digest(&self) -> u64 {
        self.digest.finish()
    }

    /// A path in the configuration file is relative to that file.
    fn beside(&self, path: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }

    fn read(&mut self, path: &Path, bytes_max: u64) -> Result<Zeroizing<String>, String> {
        self.digest.add(path.as_os_str().as_encoded_bytes());
        read_noted(path, bytes_max, &mut self.digest, &mut self.stamps)
    }
}

/// The text of a file. What tells that it has changed goes to `digest` and `stamps`.
pub(in crate::source) fn read_noted(
    path: &Path,
    bytes_max: u64,
    digest: &mut Digest,
    stamps: &mut Vec<(PathBuf, Option<Stamp>)>,
) -> Result<Zeroizing<String>, String> {
    let read = read(path, bytes_max);
    let stamp = match &read {
        Ok((stamp, text)) => {
            digest.add(text.as_bytes());
            Some(*stamp)
        }
        Err(why) => {
            digest.add(why.as_bytes());
            Stamp::of(path)
        }
    };
    stamps.push((path.to_owned(), stamp));
    read.map(|(_, text)| text)
}

/// The stamp from before reading, so that a change during it is noticed later, and the text.
pub(in crate::source) fn read(
    path: &Path,
    bytes_max: u64,
) -> Result<(Stamp, Zeroizing<String>), String> {
    let cannot = |error: io::Error| format!("cannot be read: {error}");
    let metadata = std::fs::metadata(path).map_err(cannot)?;
    // Opening a pipe would wait for its other end.
    if !metadata.is_file() {
        return Err("is not a file".to_owned());
    }
    let too_large = || format!("has more than {bytes_max} bytes");
    if metadata.len() > bytes_max {
        return Err(too_large());
    }
    // Room for all of it and one more, so that nothing is left behind by a reallocation.
    let capacity = usize::try_from(metadata.len())
        .unwrap_or(0)
        .saturating_add(1);
    let mut bytes = Zeroizing::new(Vec::with_capacity(capacity));
    let file = File::open(path).map_err(cannot)?;
    file.take(bytes_max.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(cannot)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > bytes_max {
        return Err(too_large());
    }
    let text = String::from_utf8(std::mem::take(&mut *bytes)).map_err(|error| {
        drop(Zeroizing::new(error.into_bytes()));
        "is not UTF-8".to_owned()
    })?;
    Ok((Stamp::from_metadata(&metadata), Zeroizing::new(text)))
}
