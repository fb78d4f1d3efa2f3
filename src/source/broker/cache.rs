//! The last snapshot on disk, so that a process can start while the broker is away.
//!
//! Credentials in it are as sealed as they came, and once more as they were opened, sealed with a key that comes of the
//! account's private one: opening them all again would take seconds. Who has that private key can open the first, too. The
//! rest, such as who has which KMS config, is what the broker said over TLS; on disk a keyed hash takes its place, with
//! another key of the same origin. So whoever can write the file can take it away or put an older one back, which its date
//! bounds, and can change nothing.
//!
//! | bytes | content |
//! | --- | --- |
//! | 8 | `TSPSNAP2` |
//! | 4 | length of the head, big-endian |
//! | | the head: JSON, [`Head`] |
//! | 32 | HMAC-SHA256 over all of the above |
//! | | the snapshot as it came |
//! | the rest | what was opened and proven of it: [`Memory::seal`] |

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tsp_wire::{
    Secret,
    account::{Memory, MemoryKey, SNAPSHOT_BYTES_MAX, env::ServiceAccount},
};

const MAGIC: &[u8; 8] = b"TSPSNAP2";
const MAC_BYTES: usize = 32;

/// Longest head, in bytes: an ETag and fixed members.
const HEAD_BYTES_MAX: usize = 4 << 10;

/// What its key is derived for.
const KEY_LABEL: &[u8] = b"tsp snapshot cache 1";

/// Only the owner may read the file.
const MODE: u32 = 0o600;

/// The date of a snapshot that the broker has confirmed is written again when it is older than this part of its life.
const REDATE_PART: u32 = 24;

/// How far a date may lie in the future: clocks are set.
const AHEAD_MAX: Duration = Duration::from_secs(60);

/// A file with one snapshot.
#[derive(Debug)]
pub(crate) struct Cache {
    path: PathBuf,
    account: String,
    config: u64,
    key: Secret<[u8; MAC_BYTES]>,
    /// Seals what was opened; without it that is not kept.
    memory_key: Option<MemoryKey>,
    age_max: Duration,
    /// Whether the file is left as it is.
    read_only: bool,
    /// The date in the file, if it has the state that is in force.
    dated: Option<SystemTime>,
}

/// What is said of the snapshot.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    account: String,
    config: u64,
    etag: String,
    gzip: bool,
    /// When the broker last said that this is the state, as Unix time in seconds.
    confirmed: u64,
    /// Of the snapshot.
    bytes: usize,
    /// Of the snapshot, and of all that follows it.
    sha256: String,
}

/// A snapshot that was on disk.
pub(crate) struct Cached {
    pub(crate) etag: String,
    pub(crate) confirmed: SystemTime,
    /// Whether it may be served with.
    pub(crate) young: bool,
    pub(crate) gzip: bool,
    pub(crate) body: Vec<u8>,
    pub(crate) memory: Memory,
}

impl Cache {
    /// The file at `path`, which serves for `age_max` after its date.
    pub(crate) fn new(path: PathBuf, account: &ServiceAccount, age_max: Duration) -> Self {
        let key = hmac(account.encryption_key.expose(), &[KEY_LABEL]);
        Self {
            path,
            account: account.id.to_string(),
            config: account.config,
            key: Secret::new(key),
            memory_key: MemoryKey::of(&account.encryption_key),
            age_max,
            read_only: false,
            dated: None,
        }
    }

    /// The same file for a command that looks at it once, whatever its age, and leaves it as it is.
    pub(crate) fn looked_at(self) -> Self {
        Self {
            age_max: Duration::MAX,
            read_only: true,
            ..self
        }
    }

    pub(crate) fn place(&self) -> String {
        self.path.display().to_string()
    }

    /// What is in the file; `None` if there is none.
    ///
    /// # Errors
    /// Why it is not to be used, in words for the operator.
    pub(crate) fn load(&mut self, now: SystemTime) -> Result<Option<Cached>, String> {
        let bytes = match read(&self.path) {
            Ok(bytes) => bytes,
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(why) => return Err(format!("it cannot be read: {why}")),
        };
        let Verified { head, body, opened } = self.verified(&bytes)?;
        let confirmed = SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(head.confirmed))
            .ok_or("its date is none")?;
        if confirmed > now + AHEAD_MAX {
            return Err("its date is in the future: a clock was set back".to_owned());
        }
        let young = now.duration_since(confirmed).unwrap_or_default() < self.age_max;
        if young {
            self.dated = Some(confirmed);
        }
        // Without it, all is opened anew.
        let key = self.memory_key.as_ref();
        let memory = key.and_then(|key| Memory::unseal(key, opened));
        Ok(Some(Cached {
            etag: head.etag,
            confirmed,
            young,
            gzip: head.gzip,
            body: body.to_vec(),
            memory: memory.unwrap_or_default(),
        }))
    }

    fn verified<'a>(&self, bytes: &'a [u8]) -> Result<Verified<'a>, String> {
        let parts = || {
            let rest = bytes.strip_prefix(MAGIC)?;
            let (length, rest) = rest.split_first_chunk::<4>()?;
            let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
            let (head, rest) = rest.split_at_checked(length)?;
            let (mac, body) = rest.split_first_chunk::<MAC_BYTES>()?;
            let signed = bytes.get(..MAGIC.len() + 4 + length)?;
            Some((head, signed, mac, body))
        };
        let none = "it is no copy of a snapshot, or cut off";
        let (head, signed, mac, body) = parts().ok_or(none)?;
        let head = serde_json::from_slice::<Head>(head);
        if let Ok(head) = &head
            && (head.account != self.account || head.config != self.config)
        {
            return Err("it is another service account's".to_owned());
        }
        let mut expected = keyed(self.key.expose());
        expected.update(signed);
        let changed = "it was changed, or is another service account's";
        expected.verify_slice(mac).map_err(|_| changed)?;
        let head = head.map_err(|_| none)?;
        let parts = body.split_at_checked(head.bytes);
        let (body, opened) = parts.ok_or(changed)?;
        if head.sha256 != digest([body, opened]) {
            return Err(changed.to_owned());
        }
        Ok(Verified { head, body, opened })
    }

    /// Writes a new state, with what was opened of it. That it cannot be written is told and changes nothing else.
    pub(crate) fn store(
        &mut self,
        etag: &str,
        now: SystemTime,
        gzip: bool,
        body: &[u8],
        memory: &Memory,
    ) {
        if self.read_only {
            return;
        }
        let key = self.memory_key.as_ref();
        let opened = key.and_then(|key| memory.seal(key)).unwrap_or_default();
        self.store_sealed(etag, now, gzip, [body, &opened]);
    }

    fn store_sealed(&mut self, etag: &str, now: SystemTime, gzip: bool, parts: [&[u8]; 2]) {
        let confirmed = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let head = Head {
            account: self.account.clone(),
            config: self.config,
            etag: etag.to_owned(),
            gzip,
            confirmed: confirmed.as_secs(),
            bytes: parts[0].len(),
            sha256: digest(parts),
        };
        match self.write(&head, parts) {
            Ok(()) => self.dated = Some(now),
            Err(why) => {
                self.dated = None;
                tracing::warn!(
                    place = self.place(),
                    "the copy on disk cannot be written, so the last one stays: {why}"
                );
            }
        }
    }

    /// Dates the state that is in the file anew, now and then, if it is that of `etag`: the one that the broker confirmed.
    /// Where that could not be written, an older one is there, and grows old.
    pub(crate) fn confirmed(&mut self, etag: &str, now: SystemTime) {
        let old = |dated: SystemTime| {
            now.duration_since(dated).unwrap_or_default() >= self.age_max / REDATE_PART
        };
        if !self.dated.is_none_or(old) {
            return;
        }
        let Ok(bytes) = read(&self.path) else { return };
        match self.verified(&bytes) {
            Ok(Verified { head, .. }) if head.etag != etag => {}
            Ok(Verified { head, body, opened }) => {
                self.store_sealed(etag, now, head.gzip, [body, opened]);
            }
            Err(why) => {
                tracing::warn!(
                    place = self.place(),
                    "the copy on disk is no good any more: {why}"
                );
            }
        }
    }

    fn write(&self, head: &Head, [body, opened]: [&[u8]; 2]) -> io::Result<()> {
        let head = serde_json::to_vec(head)?;
        let length = u32::try_from(head.len()).map_err(io::Error::other)?;
        if head.len() > HEAD_BYTES_MAX {
            return Err(io::Error::other("the broker's ETag is too long"));
        }
        let length = length.to_be_bytes();
        let mac = hmac(self.key.expose(), &[MAGIC, &length, &head]);
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let mut draft = self.path.as_os_str().to_owned();
        draft.push(format!(".{:016x}.new", u64::from_le_bytes(random)));
        let draft = PathBuf::from(draft);
        let written = (|| {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(MODE)
                .open(&draft)?;
            for part in [MAGIC.as_slice(), &length, &head, &mac, body, opened] {
                file.write_all(part)?;
            }
            file.sync_all()?;
            fs::rename(&draft, &self.path)
        })();
        if written.is_err() {
            // If it is not there, nothing is left behind.
            let _ = fs::remove_file(&draft);
            return written;
        }
        let folder = self.path.parent();
        let folder = folder.filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}

/// The parts of a good file.
struct Verified<'a> {
    head: Head,
    body: &'a [u8],
    /// As [`Memory::seal`] sealed it.
    opened: &'a [u8],
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    // What was opened is smaller than what it was sealed in.
    let bound = 2 * SNAPSHOT_BYTES_MAX + HEAD_BYTES_MAX + MAGIC.len() + 4 + MAC_BYTES;
    let bound = u64::try_from(bound).unwrap_or(u64::MAX);
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut bytes = Vec::new();
    file.take(bound + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > bound {
        return Err(io::Error::other("it is too large"));
    }
    Ok(bytes)
}

#[expect(clippy::expect_used, reason = "HMAC takes keys of every length")]
fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("a key of any length")
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; MAC_BYTES] {
    let mut mac = keyed(key);
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

fn digest(parts: [&[u8]; 2]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let hash = parts.into_iter().fold(Sha256::new(), Sha256::chain_update);
    STANDARD.encode(hash.finalize())
}

#[cfg(test)]
mod tests;
