//! The tables, the lock on the folder, and how a connection is set up.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
    time::Duration,
};

use rusqlite::{Connection, OptionalExtension as _, params};
use rustix::io::Errno;
use zeroize::Zeroizing;

use super::{OpenError, seal::SALT_BYTES};

/// The file in the store's folder.
const DATABASE: &str = "events.sqlite";
const LOCK: &str = "lock";
const KEY: &str = "key";

/// Version of the tables, in SQLite's `user_version`.
const VERSION: i64 = 3;

/// Bytes of a page: blocks of a few events fit one, and a trickle does not write much more than it has.
const PAGE_BYTES: i64 = 8192;

/// Pages of the write-ahead log after which they are moved into the database file: 16 MiB.
const CHECKPOINT_PAGES: i64 = 2048;

/// How long a reader waits for the moment in which the log is reset.
const BUSY: Duration = Duration::from_secs(5);

const TABLES: &str = "
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE run (id INTEGER PRIMARY KEY, salt BLOB NOT NULL);
CREATE TABLE tenant (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    sequence INTEGER NOT NULL,
    hash BLOB NOT NULL,
    unchecked INTEGER NOT NULL,
    settled INTEGER NOT NULL
);
CREATE TABLE block (
    id INTEGER PRIMARY KEY,
    tenant INTEGER NOT NULL,
    first INTEGER NOT NULL,
    events INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    stored_ms INTEGER NOT NULL,
    run INTEGER NOT NULL,
    nonce INTEGER NOT NULL,
    content BLOB NOT NULL
);
CREATE INDEX block_of ON block (tenant, first, events, bytes, stored_ms);
CREATE TABLE dead (
    id INTEGER PRIMARY KEY,
    tenant INTEGER NOT NULL,
    first INTEGER NOT NULL,
    events INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    reason TEXT NOT NULL,
    run INTEGER NOT NULL,
    nonce INTEGER NOT NULL,
    content BLOB NOT NULL
);
CREATE INDEX dead_of ON dead (tenant, id);
CREATE TABLE producer (instance INTEGER PRIMARY KEY, batch INTEGER NOT NULL, at_ms INTEGER NOT NULL);
";

/// What version 2 adds: the number that each shard of a proxy's process gives next.
const TABLES_2: &str = "
CREATE TABLE shard (
    instance INTEGER NOT NULL,
    shard INTEGER NOT NULL,
    next INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    PRIMARY KEY (instance, shard)
) WITHOUT ROWID;
";

/// What version 3 adds: where a shard was heard, since when, its last event, and how it ended; and when a tenant was heard of.
const TABLES_3: &str = "
ALTER TABLE shard ADD COLUMN address TEXT NOT NULL DEFAULT '';
ALTER TABLE shard ADD COLUMN since_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE shard ADD COLUMN event_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE shard ADD COLUMN state INTEGER NOT NULL DEFAULT 1;
ALTER TABLE tenant ADD COLUMN heard_ms INTEGER NOT NULL DEFAULT 0;
";

/// Makes sure that no other process uses the folder. Given back when dropped.
pub(crate) fn lock(folder: &Path) -> Result<File, OpenError> {
    let path = folder.join(LOCK);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path);
    let file = file.map_err(OpenError::Io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked),
        Err(TryLockError::Error(why)) => Err(OpenError::Io(why)),
    }
}

/// Asks the store's file system whether it takes changes.
#[derive(Debug)]
pub(crate) struct Probe {
    file: File,
    bytes: u64,
}

impl Probe {
    /// Changes the size of `file`, which has no content, at each question.
    pub(crate) fn new(file: File) -> Self {
        Self { file, bytes: 0 }
    }

    /// Whether it does. One that failed before a sync returned takes none any more, even where that sync said that all was well: ext4
    /// says so while it notes its first error, some milliseconds long, of what its journal has dropped.
    ///
    /// # Errors
    /// That it is read-only, or broken. Others, such as a full disk, say nothing of the sync.
    pub(crate) fn ask(&mut self) -> Result<(), Errno> {
        self.bytes ^= 1;
        match rustix::fs::ftruncate(&self.file, self.bytes) {
            Err(why @ (Errno::ROFS | Errno::IO)) => Err(why),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Makes the folder if it is not there.
pub(crate) fn folder(folder: &Path) -> Result<(), OpenError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(OpenError::Io)
}

/// The secret of a store without a service account: made at the first start, and kept beside the events. It keeps a copy
/// of the database alone from being read, and no more.
///
/// # Errors
/// [`OpenError`]
pub(crate) fn own_secret(folder: &Path) -> Result<Zeroizing<Vec<u8>>, OpenError> {
    let path = folder.join(KEY);
    let read = |path: &Path| {
        let mut secret = Zeroizing::new(Vec::new());
        File::open(path)?.take(64).read_to_end(&mut secret)?;
        Ok::<_, io::Error>(secret)
    };
    match read(&path) {
        Ok(secret) if secret.len() == 32 => return Ok(secret),
        Ok(_) => return Err(OpenError::Key),
        Err(why) if why.kind() == io::ErrorKind::NotFound => {}
        Err(why) => return Err(OpenError::Io(why)),
    }
    let mut secret = Zeroizing::new(vec![0; 32]);
    getrandom::fill(&mut secret).map_err(|why| OpenError::Io(io::Error::other(why)))?;
    let draft = folder.join("key.new");
    let write = || {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(&secret)?;
        file.sync_all()?;
        fs::rename(&draft, &path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(OpenError::Io)?;
    Ok(secret)
}

/// Opens the database for writing, and makes its tables if they are not there.
pub(crate) fn writer(folder: &Path) -> Result<Connection, OpenError> {
    let connection = Connection::open(folder.join(DATABASE))?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "page_size", PAGE_BYTES)?;
    // A commit is on disk when it returns: the log is synced with each.
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let missing = match version {
        0 => [TABLES, TABLES_2, TABLES_3].as_slice(),
        1 => &[TABLES_2, TABLES_3],
        2 => &[TABLES_3],
        VERSION => &[],
        other => return Err(OpenError::Version(other)),
    };
    if !missing.is_empty() {
        let transaction = connection.unchecked_transaction()?;
        for tables in missing {
            transaction.execute_batch(tables)?;
        }
        transaction.pragma_update(None, "user_version", VERSION)?;
        transaction.commit()?;
    }
    Ok(connection)
}

/// Opens the database for reading.
pub(crate) fn reader(folder: &Path) -> Result<Connection, OpenError> {
    let connection = Connection::open(folder.join(DATABASE))?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

/// The value of `name`; made by `make` if there is none.
pub(crate) fn meta(
    connection: &Connection,
    name: &str,
    make: impl FnOnce() -> Result<Vec<u8>, OpenError>,
) -> Result<Vec<u8>, OpenError> {
    let known = connection
        .query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| {
            row.get::<_, Vec<u8>>(0)
        })
        .optional()?;
    if let Some(known) = known {
        return Ok(known);
    }
    let value = make()?;
    let insert = "INSERT INTO meta (name, value) VALUES (?1, ?2)";
    connection.execute(insert, params![name, value])?;
    Ok(value)
}

/// Random bytes for salts and ids.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], OpenError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|why| OpenError::Io(io::Error::other(why)))?;
    Ok(bytes)
}

/// Begins a run: a number and a salt of its own.
pub(crate) fn begin_run(connection: &Connection) -> Result<(i64, [u8; SALT_BYTES]), OpenError> {
    let salt = random()?;
    let transaction = connection.unchecked_transaction()?;
    transaction.execute("INSERT INTO run (salt) VALUES (?1)", [salt.as_slice()])?;
    let run = transaction.last_insert_rowid();
    transaction.commit()?;
    Ok((run, salt))
}

/// Every run and its salt.
pub(crate) fn runs(connection: &Connection) -> Result<Vec<(i64, Vec<u8>)>, OpenError> {
    let mut statement = connection.prepare("SELECT id, salt FROM run")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
