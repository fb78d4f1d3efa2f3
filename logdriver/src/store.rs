//! Events on disk, from the moment when they came until a tenant's log system has them.
//!
//! The store is SQLite, and this is why. It was asked for: an event counts as stored when a sync has put it on disk,
//! thousands per sync; a full disk fails a transaction whole and leaves the rest as it was; a process may be killed at any
//! instruction. SQLite's write-ahead log with `synchronous=FULL` promises exactly that, and its promise is tested more than
//! any other embedded store's (power cuts, full disks, failing reads); it is in the product already, with the broker. The
//! log-structured stores that were considered write faster, which is not what limits here: events of one tenant that come
//! in one commit become one row, so that a commit of a thousand events is a few hundred rows or fewer.
//!
//! One thread writes ([`writer`]), and gathers everything that waits into one transaction: events, what has been
//! delivered, dead letters, batches of proxies that are acknowledged. One thread reads ([`reader`]). Contents are encrypted
//! ([`seal`]); tenants' ids and counts are not.
//!
//! What must stay true:
//! - What [`Store::append`] confirmed survives the process, and the machine's power.
//! - A tenant's events have the sequences 1, 2, 3, … in the order in which they came, and no two the same.
//! - An event leaves the disk when it was delivered, or when its dead letter expired; nothing else takes it away.
//! - While the disk takes nothing, nothing is confirmed and nothing more is pulled; delivery goes on.

pub(crate) mod block;
mod dead;
mod incoming;
pub(crate) mod processes;
mod reader;
mod schema;
mod seal;
#[cfg(test)]
mod tests;
mod writer;

use std::{fmt, fs::File, io, path::PathBuf, sync::Arc};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tsp_wire::envelope::SigningKey;
use zeroize::Zeroizing;

use self::schema::Probe;
use crate::{metrics::Metrics, sink::Event};

pub use self::{
    dead::{DeadLetters, Letter},
    incoming::{EVENT_BYTES_MAX, Incoming, Number},
    processes::{SHARDS_MAX, Shard, Shards},
    reader::{Batch, Corrupt},
    seal::RootKey,
};

/// Settlements that wait for the writer. Each delivery waits for its own.
const SETTLES_WAITING_MAX: usize = 1024;

/// Reads that wait for the reader: one per lane.
const READS_WAITING_MAX: usize = 1024;

/// How a store is opened.
#[derive(Debug)]
pub struct StoreConfig {
    /// Where it lies.
    pub folder: PathBuf,
    /// The service account's key, if there is one.
    pub secret: Option<Zeroizing<Vec<u8>>>,
    /// Signs checkpoints; made for this store if there is no service account.
    pub signing: Option<SigningKey>,
    /// `LOGDRIVER_CHANNEL_CAPACITY`: messages that wait to be stored.
    pub capacity: usize,
    /// `LOGDRIVER_STORE_FREE_MIN`, in bytes: with less room on the disk nothing more is taken.
    pub free_bytes_min: u64,
}

/// Why a store cannot be opened.
#[derive(Debug)]
pub enum OpenError {
    /// Another process has it.
    Locked,
    /// Its file of the key is none.
    Key,
    /// It was written under another key.
    OtherKey,
    /// It was written by a newer version.
    Version(i64),
    /// The disk.
    Io(io::Error),
    /// The database.
    Database(rusqlite::Error),
}

impl OpenError {
    /// Whether waiting may help: the disk is full, say.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Io(_) | Self::Database(_))
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Locked => f.write_str("another logdriver uses this folder: each wants one of its own"),
            Self::Key => f.write_str("the file `key` in it is damaged: put it back from where the folder was copied"),
            Self::OtherKey => f.write_str(
                "it was written under another service account's key: start with that account until all is delivered, or \
                 give a new account an empty folder",
            ),
            Self::Version(version) => write!(
                f,
                "it was written by a newer version of this program (tables of version {version})"
            ),
            Self::Io(why) => write!(f, "{why}"),
            Self::Database(why) => write!(f, "{why}"),
        }
    }
}

impl std::error::Error for OpenError {}

impl From<rusqlite::Error> for OpenError {
    fn from(why: rusqlite::Error) -> Self {
        Self::Database(why)
    }
}

/// What is appended in one go, all or nothing.
#[derive(Debug, Default)]
pub struct Append {
    /// In the order in which they came.
    pub events: Vec<Incoming>,
    /// What came and is no event: it becomes a dead letter.
    pub strange: Vec<Bytes>,
    /// The proxy's batch, which is dropped if it is the last one that was stored of that proxy.
    pub batch: Option<ProxyBatch>,
    /// What these events tell of the shards that they come from.
    pub shards: Shards,
    /// Processes of proxies that ended without saying so: every tenant is told that was heard of while they lived.
    pub died: Vec<u64>,
    /// Told once all is on disk.
    pub done: Option<oneshot::Sender<()>>,
    /// Room in memory, given back with this.
    pub room: Option<OwnedSemaphorePermit>,
}

/// A batch that a proxy keeps until it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyBatch {
    /// The proxy's process.
    pub instance: u64,
    /// Counts up.
    pub number: u64,
}

/// What became of some of a tenant's events.
#[derive(Debug)]
pub(crate) struct Settle {
    pub(crate) tenant: Arc<str>,
    /// Every event up to this sequence is delivered, or among the dead.
    pub(crate) upto: u64,
    /// Those that will not be delivered, and why.
    pub(crate) dead: Vec<(Event, String)>,
    /// Blocks that cannot be read.
    pub(crate) corrupt: Vec<Corrupt>,
    pub(crate) done: oneshot::Sender<()>,
}

/// Events that are newly on disk, or were there at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Whose.
    pub tenant: Arc<str>,
    /// How many.
    pub events: i64,
    /// Bytes of their JSON.
    pub bytes: i64,
}

/// The door to the store.
#[derive(Clone, Debug)]
pub struct Store {
    appends: mpsc::Sender<Append>,
    settles: mpsc::Sender<Settle>,
    reads: mpsc::Sender<reader::Read>,
    instance: u64,
}

/// A store that was opened.
#[derive(Debug)]
pub struct Opened {
    /// The door.
    pub store: Store,
    /// What waits and what comes, a message per commit. The writer never waits for who reads it: a message is small, and
    /// commits are some hundred a second at most.
    pub arrivals: mpsc::UnboundedReceiver<Vec<Arrived>>,
    /// What is known of proxies' processes: what comes next shows what was lost while nobody was there.
    pub shards: Shards,
    /// Ends when the store's threads have.
    pub closed: Closed,
}

/// Waits for the store's threads.
#[derive(Debug)]
pub struct Closed {
    writer: oneshot::Receiver<()>,
    reader: oneshot::Receiver<()>,
    _lock: File,
}

impl Closed {
    /// Waits until everything that was handed to the store is on disk and its threads have ended; to be called when all
    /// doors are dropped.
    pub async fn wait(self) {
        let _ = self.writer.await;
        let _ = self.reader.await;
    }
}

/// The store has ended: the process is about to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

impl Store {
    /// Opens the store in its folder, which is made if it is not there.
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn open(config: StoreConfig, metrics: &Arc<Metrics>) -> Result<Opened, OpenError> {
        schema::folder(&config.folder)?;
        let lock = schema::lock(&config.folder)?;
        let root = match &config.secret {
            Some(secret) => RootKey::derive(secret),
            None => RootKey::derive(&schema::own_secret(&config.folder)?),
        };
        let (append, appends) = mpsc::channel(config.capacity.max(1));
        let (settle, settles) = mpsc::channel(SETTLES_WAITING_MAX);
        let (read, reads) = mpsc::channel(READS_WAITING_MAX);
        let (arrive, arrivals) = mpsc::unbounded_channel();
        let free_bytes_min = config.free_bytes_min;
        let probe = Probe::new(lock.try_clone().map_err(OpenError::Io)?);
        let (writer, waiting, shards) = writer::Writer::open(
            &config.folder,
            probe,
            &root,
            config.signing,
            free_bytes_min,
            arrive.clone(),
            Arc::clone(metrics),
        )?;
        let instance = writer.instance();
        let reader = reader::Reader::open(&config.folder, &root)?;
        // The receiver is beside it.
        let _ = arrive.send(waiting);
        let (written, writer_ended) = oneshot::channel();
        let (was_read, reader_ended) = oneshot::channel();
        std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || {
                writer.run(appends, settles);
                drop(written);
            })
            .map_err(OpenError::Io)?;
        std::thread::Builder::new()
            .name("store-reader".to_owned())
            .spawn(move || {
                reader.run(reads);
                drop(was_read);
            })
            .map_err(OpenError::Io)?;
        Ok(Opened {
            store: Self {
                appends: append,
                settles: settle,
                reads: read,
                instance,
            },
            arrivals,
            shards,
            closed: Closed {
                writer: writer_ended,
                reader: reader_ended,
                _lock: lock,
            },
        })
    }

    /// Who this logdriver is: made with the store, and the same for as long as it lives.
    #[must_use]
    pub fn instance(&self) -> u64 {
        self.instance
    }

    /// Hands events to the writer; waits while too many wait already. They are on disk when `append.done` is told.
    ///
    /// # Errors
    /// [`Gone`]
    pub async fn append(&self, append: Append) -> Result<(), Gone> {
        self.appends.send(append).await.map_err(|_| Gone)
    }

    /// Reads the next of a tenant's events that are not settled, in their order.
    ///
    /// # Errors
    /// [`Gone`]
    pub async fn read(
        &self,
        tenant: &Arc<str>,
        events_max: usize,
        bytes_max: usize,
    ) -> Result<Batch, Gone> {
        let (answer, answered) = oneshot::channel();
        let read = reader::Read {
            tenant: Arc::clone(tenant),
            events_max,
            bytes_max,
            answer,
        };
        self.reads.send(read).await.map_err(|_| Gone)?;
        answered.await.map_err(|_| Gone)
    }

    /// Notes what became of a tenant's events; comes back when that is on disk.
    ///
    /// # Errors
    /// [`Gone`]
    pub async fn settle(
        &self,
        tenant: &Arc<str>,
        upto: u64,
        dead: Vec<(Event, String)>,
        corrupt: Vec<Corrupt>,
    ) -> Result<(), Gone> {
        let (done, settled) = oneshot::channel();
        let settle = Settle {
            tenant: Arc::clone(tenant),
            upto,
            dead,
            corrupt,
            done,
        };
        self.settles.send(settle).await.map_err(|_| Gone)?;
        settled.await.map_err(|_| Gone)
    }
}
