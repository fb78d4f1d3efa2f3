//! The thread that writes. Everything that waits goes into one transaction, and is confirmed when that is on disk.

mod transaction;

use std::{
    collections::{HashMap, VecDeque},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rusqlite::Connection;
use tokio::{sync::mpsc, time::timeout_at};
use tsp_wire::{RayId, envelope::SigningKey};

use self::transaction::Done;
use super::{
    Append, Arrived, OpenError, RootKey, Settle, Shards,
    processes::{self, Died},
    schema::{self, Probe},
    seal::Sealer,
};
use crate::{
    chain::{ChainHash, Head, LogdriverId},
    clock,
    metrics::Metrics,
};

/// How long the writer gathers once something has come. Short against any sync of a disk, and long enough that a sync has
/// many events where many come.
const GATHER: Duration = Duration::from_millis(3);

/// Bytes and messages after which it gathers no more.
const COMMIT_BYTES_MAX: usize = 8 * 1024 * 1024;
const COMMIT_MESSAGES_MAX: usize = 1024;

/// How often it looks at the room on the disk and at checkpoints, with nothing else to do; and how soon it tries again
/// after the disk refused.
const TICK: Duration = Duration::from_secs(1);

/// Refusals after which the database is opened anew: a handle may be broken that a new one is not.
const REOPEN_AFTER: u32 = 5;

/// Events of a tenant after which its chain gets a checkpoint, and the longest that one is without.
const CHECKPOINT_EVENTS: u64 = 1_000;
const CHECKPOINT_AGE: Duration = Duration::from_secs(60);

/// Tenants whose chains are kept apart. What comes for more is stored without a tenant, as of one that nobody knows: a
/// client that makes names up must not fill the memory.
const TENANTS_MAX: usize = 1_000_000;

/// Tenants that a commit tells of a death: some MiB of events.
const TOLD_MAX: usize = 4_096;

/// How often dead letters that are too old are removed.
const EXPIRE_EVERY: Duration = Duration::from_secs(600);

pub(super) struct Writer {
    folder: PathBuf,
    probe: Probe,
    /// A sync cannot be believed: nothing is written or confirmed any more.
    broken: bool,
    connection: Connection,
    state: State,
    free_bytes_min: u64,
    arrive: mpsc::UnboundedSender<Vec<Arrived>>,
    metrics: Arc<Metrics>,
    refusals: u32,
    expired: Instant,
}

/// What the next event's place comes of.
struct State {
    sealer: Sealer,
    signing: SigningKey,
    logdriver: LogdriverId,
    tenants: HashMap<Arc<str>, Tenant>,
    /// The last batch that was stored, by proxy.
    producers: HashMap<u64, u64>,
    ids: Ids,
    /// Tenants with events since their last checkpoint, and since when.
    unchecked: HashMap<Arc<str>, Instant>,
    /// Processes that died, and who is still to be told.
    untold: VecDeque<Untold>,
}

/// A death, and the tenants that have not been told of it.
struct Untold {
    died: Died,
    tenants: Vec<Arc<str>>,
}

/// What is known of a tenant.
#[derive(Clone, Debug)]
struct Tenant {
    number: i64,
    head: Head,
    /// Events since its last checkpoint.
    unchecked: u64,
    /// When its last event of a proxy came, in ms since 1970.
    heard_ms: i64,
}

impl Writer {
    /// Gives what waits in the store, too, and what is known of proxies.
    pub(super) fn open(
        folder: &Path,
        probe: Probe,
        root: &RootKey,
        signing: Option<SigningKey>,
        free_bytes_min: u64,
        arrive: mpsc::UnboundedSender<Vec<Arrived>>,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, Vec<Arrived>, Shards), OpenError> {
        let connection = schema::writer(folder)?;
        let print = root.print();
        if schema::meta(&connection, "key", || Ok(print.to_vec()))? != print {
            return Err(OpenError::OtherKey);
        }
        let instance = schema::meta(&connection, "instance", || {
            Ok(schema::random::<8>()?.to_vec())
        })?;
        let instance = instance.as_slice().try_into().unwrap_or_default();
        let signing = match signing {
            Some(signing) => signing,
            None => own_signing_key(&connection, root)?,
        };
        tracing::info!(
            public_key = BASE64.encode(signing.verifying().as_bytes()),
            "checkpoints are signed; auditors verify them with this key"
        );
        let (run, salt) = schema::begin_run(&connection)?;
        let now = clock::monotonic();
        let (tenants, unchecked) = tenants(&connection, now)?;
        let producers = producers(&connection)?;
        let waiting = waiting(&connection)?;
        let shards = processes::shards(&connection)?;
        let died = processes::untold(&connection)?;
        let mut writer = Self {
            folder: folder.to_owned(),
            probe,
            broken: false,
            connection,
            state: State {
                sealer: Sealer::new(root, run, &salt),
                signing,
                logdriver: LogdriverId(u64::from_be_bytes(instance)),
                tenants,
                producers,
                ids: Ids::default(),
                unchecked,
                untold: VecDeque::new(),
            },
            free_bytes_min,
            arrive,
            metrics,
            refusals: 0,
            expired: now,
        };
        writer.state.tell_of(died);
        let buffered: i64 = waiting.iter().map(|tenant| tenant.events).sum();
        writer.metrics.buffered_events.set(buffered);
        writer.metrics.store_writable.set(1);
        writer.measure();
        Ok((writer, waiting, shards))
    }

    pub(super) fn instance(&self) -> u64 {
        self.state.logdriver.0
    }

    /// Serves until both doors are closed and everything is on disk.
    pub(super) fn run(mut self, appends: mpsc::Receiver<Append>, settles: mpsc::Receiver<Settle>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        match runtime {
            Ok(runtime) => runtime.block_on(self.serve(appends, settles)),
            Err(why) => tracing::error!("the store cannot be written: {why}"),
        }
    }

    async fn serve(
        &mut self,
        mut appends: mpsc::Receiver<Append>,
        mut settles: mpsc::Receiver<Settle>,
    ) {
        // What the disk refused stays in these until it does not.
        let (mut stored, mut settled) = (Vec::new(), Vec::new());
        let (mut appending, mut settling) = (true, true);
        loop {
            let stuck = !stored.is_empty() || !settled.is_empty();
            let telling = !self.state.untold.is_empty() && self.metrics.store_writable.get() != 0;
            if !(appending || settling || stuck || telling) {
                break;
            }
            let pause = if telling { Duration::ZERO } else { TICK };
            tokio::select! {
                settle = settles.recv(), if settling => match settle {
                    Some(settle) => settled.push(settle),
                    None => settling = false,
                },
                append = appends.recv(), if appending && !stuck => match append {
                    Some(append) => stored.push(append),
                    None => appending = false,
                },
                () = tokio::time::sleep(pause) => {}
            }
            if !stuck {
                let until = tokio::time::Instant::now() + GATHER;
                let mut bytes = size(&stored);
                while appending && bytes < COMMIT_BYTES_MAX && stored.len() < COMMIT_MESSAGES_MAX {
                    match timeout_at(until, appends.recv()).await {
                        Ok(Some(append)) => {
                            bytes += size(std::slice::from_ref(&append));
                            stored.push(append);
                        }
                        Ok(None) => appending = false,
                        Err(_) => break,
                    }
                }
            }
            while let Ok(settle) = settles.try_recv() {
                settled.push(settle);
            }
            self.turn(&mut stored, &mut settled);
        }
        self.measure();
        if let Err(why) = processes::leave(&self.connection) {
            self.refused(&why);
        }
        // So that the next start has nothing to recover; it can as well.
        let _ = self
            .connection
            .pragma_update(None, "wal_checkpoint", "TRUNCATE");
    }

    /// Writes what it can of both; what it cannot stays.
    fn turn(&mut self, stored: &mut Vec<Append>, settled: &mut Vec<Settle>) {
        if self.broken {
            self.stuck("its file system broke");
            return;
        }
        let has_room = self.has_room();
        let state = &self.state;
        if has_room && !(stored.is_empty() && state.untold.is_empty() && state.due().is_empty()) {
            match self.state.commit(&self.connection, stored, settled) {
                Ok(done) => {
                    self.finish(done, stored, settled);
                    return;
                }
                Err(why) => self.refused(&why),
            }
        }
        if !settled.is_empty() {
            // What was delivered makes room, so it goes first where there is none.
            match self.state.commit(&self.connection, &[], settled) {
                Ok(done) => self.finish(done, &mut Vec::new(), settled),
                Err(why) => self.refused(&why),
            }
        }
        if clock::monotonic().duration_since(self.expired) >= EXPIRE_EVERY {
            self.expired = clock::monotonic();
            match transaction::expire(&self.connection) {
                Ok(expired) => self.metrics.dead_expired.inc_by(expired),
                Err(why) => self.refused(&why),
            }
        }
        if stored.is_empty() && settled.is_empty() && has_room {
            self.well();
        }
        self.measure();
    }

    fn finish(&mut self, done: Done, stored: &mut Vec<Append>, settled: &mut Vec<Settle>) {
        if let Err(why) = self.probe.ask() {
            // What was written may be gone, so nothing that follows from it may be either.
            self.broken = true;
            self.stuck(&format!(
                "its file system broke while events were being stored ({why}); mend it, then start this process anew"
            ));
            return;
        }
        let now = clock::monotonic();
        for (name, tenant) in done.tenants {
            if tenant.unchecked > 0 {
                self.state.unchecked.entry(Arc::clone(&name)).or_insert(now);
            } else {
                self.state.unchecked.remove(&name);
            }
            self.state.tenants.insert(name, tenant);
        }
        self.state.producers.extend(done.producers);
        if let Some(untold) = self.state.untold.front_mut() {
            let rest = untold.tenants.len().saturating_sub(done.told);
            untold.tenants.truncate(rest);
        }
        if done.all_told {
            self.state.untold.pop_front();
        }
        self.state.tell_of(done.died);
        let metrics = &self.metrics;
        metrics.stored.inc_by(done.stored);
        metrics.repeated.inc_by(done.repeated);
        metrics.corrupt.inc_by(done.corrupt);
        metrics.malformed.inc_by(done.strange);
        let arrived: i64 = done.arrived.iter().map(|arrived| arrived.events).sum();
        metrics.buffered_events.add(arrived - done.gone);
        if !done.arrived.is_empty() {
            // Nobody listens any more at the end; the next start finds it on disk.
            let _ = self.arrive.send(done.arrived);
        }
        for append in stored.drain(..) {
            if let Some(told) = append.done {
                let _ = told.send(());
            }
        }
        for settle in settled.drain(..) {
            let _ = settle.done.send(());
        }
        self.well();
    }

    fn well(&mut self) {
        if self.metrics.store_writable.get() == 0 {
            tracing::info!("the store can be written again");
        }
        self.refusals = 0;
        self.metrics.store_writable.set(1);
    }

    fn refused(&mut self, why: &rusqlite::Error) {
        self.stuck(&why.to_string());
        self.refusals = self.refusals.saturating_add(1);
        if self.refusals >= REOPEN_AFTER {
            match schema::writer(&self.folder) {
                Ok(connection) => {
                    self.connection = connection;
                    self.refusals = 0;
                }
                Err(why) => tracing::warn!("the store cannot be opened anew: {why}"),
            }
        }
    }

    fn stuck(&self, why: &str) {
        if self.metrics.store_writable.get() != 0 {
            tracing::error!(
                folder = %self.folder.display(),
                "the store cannot be written, so no events are taken from the proxies until it can: {why}"
            );
        }
        self.metrics.store_writable.set(0);
        self.metrics.store_refusals.inc();
    }

    /// Whether there is room for more events. Not to be able to tell is no reason to stop.
    fn has_room(&self) -> bool {
        let Ok(disk) = rustix::fs::statvfs(&self.folder) else {
            return true;
        };
        let on_disk = disk.f_bavail.saturating_mul(disk.f_frsize);
        if on_disk >= self.free_bytes_min {
            return true;
        }
        let pages = |name| {
            let value: rusqlite::Result<i64> =
                self.connection
                    .pragma_query_value(None, name, |row| row.get(0));
            u64::try_from(value.unwrap_or_default()).unwrap_or_default()
        };
        let free = pages("freelist_count").saturating_mul(pages("page_size"));
        let has_room = on_disk.saturating_add(free) >= self.free_bytes_min;
        if !has_room {
            self.stuck("there is less room on its disk than LOGDRIVER_STORE_FREE_MIN");
        }
        has_room
    }

    fn measure(&self) {
        let bytes = ["events.sqlite", "events.sqlite-wal"].map(|name| {
            let file = std::fs::metadata(self.folder.join(name));
            file.map_or(0, |file| file.len())
        });
        let bytes = bytes.into_iter().sum::<u64>();
        let metrics = &self.metrics;
        metrics
            .store_bytes
            .set(i64::try_from(bytes).unwrap_or(i64::MAX));
        let oldest = self.connection.query_row(
            "SELECT min(stored_ms) FROM (SELECT stored_ms FROM block ORDER BY id LIMIT 1)",
            [],
            |row| row.get::<_, Option<i64>>(0),
        );
        if let Ok(oldest) = oldest {
            metrics.oldest_stored_ms.set(oldest.unwrap_or_default());
        }
    }
}

impl State {
    /// Has every tenant told that was heard of while those lived who died.
    fn tell_of(&mut self, died: Vec<Died>) {
        for died in died {
            let heard = self.tenants.iter().filter(|(name, tenant)| {
                // What belongs to nobody goes to nobody.
                tenant.heard_ms >= died.since_ms && !name.is_empty()
            });
            let tenants = heard.map(|(name, _)| Arc::clone(name)).collect();
            self.untold.push_back(Untold { died, tenants });
        }
    }

    /// Tenants whose chains are due for a checkpoint by age.
    fn due(&self) -> Vec<Arc<str>> {
        let now = clock::monotonic();
        let due = self
            .unchecked
            .iter()
            .filter(|(_, since)| now.duration_since(**since) >= CHECKPOINT_AGE);
        due.map(|(name, _)| Arc::clone(name)).collect()
    }
}

fn size(appends: &[Append]) -> usize {
    let of = |append: &Append| {
        let events = append.events.iter().map(|event| event.json().len());
        events.sum::<usize>() + append.strange.iter().map(bytes::Bytes::len).sum::<usize>()
    };
    appends.iter().map(of).sum()
}

/// The key that signs checkpoints where no service account has one. It lies in the store, encrypted.
fn own_signing_key(connection: &Connection, root: &RootKey) -> Result<SigningKey, OpenError> {
    let seed = schema::meta(connection, "signing", || {
        let seed = zeroize::Zeroizing::new(schema::random::<32>()?);
        root.wrap(b"signing key", seed.as_slice())
            .ok_or(OpenError::Key)
    })?;
    let seed = root.unwrap(b"signing key", &seed).ok_or(OpenError::Key)?;
    let seed: &[u8; 32] = seed.as_slice().try_into().map_err(|_| OpenError::Key)?;
    SigningKey::from_seed(seed).ok_or(OpenError::Key)
}

type Tenants = (HashMap<Arc<str>, Tenant>, HashMap<Arc<str>, Instant>);

fn tenants(connection: &Connection, now: Instant) -> Result<Tenants, OpenError> {
    let mut statement = connection
        .prepare("SELECT number, name, sequence, hash, unchecked, heard_ms FROM tenant")?;
    let mut rows = statement.query([])?;
    let (mut tenants, mut due) = (HashMap::new(), HashMap::new());
    while let Some(row) = rows.next()? {
        let name: Arc<str> = row.get::<_, String>(1)?.into();
        let hash: Vec<u8> = row.get(3)?;
        let unchecked = unsigned(row.get(4)?);
        let tenant = Tenant {
            number: row.get(0)?,
            head: Head {
                sequence: unsigned(row.get(2)?),
                hash: ChainHash(hash.try_into().unwrap_or_default()),
            },
            unchecked,
            heard_ms: row.get(5)?,
        };
        if unchecked > 0 {
            due.insert(Arc::clone(&name), now);
        }
        tenants.insert(name, tenant);
    }
    Ok((tenants, due))
}

fn producers(connection: &Connection) -> Result<HashMap<u64, u64>, OpenError> {
    let mut statement = connection.prepare("SELECT instance, batch FROM producer")?;
    let rows = statement.query_map([], |row| {
        Ok((
            row.get::<_, i64>(0)?.cast_unsigned(),
            row.get::<_, i64>(1)?.cast_unsigned(),
        ))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// What is not settled, by tenant.
fn waiting(connection: &Connection) -> Result<Vec<Arrived>, OpenError> {
    let mut statement = connection.prepare(
        "SELECT tenant.name, sum(min(events, first + events - 1 - settled)), sum(bytes) \
         FROM block INDEXED BY block_of JOIN tenant ON tenant.number = block.tenant \
         WHERE first + events > settled + 1 GROUP BY block.tenant",
    )?;
    let rows = statement.query_map([], |row| {
        Ok(Arrived {
            tenant: row.get::<_, String>(0)?.into(),
            events: row.get(1)?,
            bytes: row.get(2)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Makes ids out of the kernel's random bytes, many at a time.
#[derive(Default)]
struct Ids {
    pool: Vec<u8>,
}

impl Ids {
    const BYTES: usize = 12;
    const POOL: usize = 256 * Self::BYTES;

    /// `None` if the kernel has no random bytes.
    fn next(&mut self) -> Option<RayId> {
        if self.pool.len() < Self::BYTES {
            self.pool.resize(Self::POOL, 0);
            if getrandom::fill(&mut self.pool).is_err() {
                self.pool.clear();
                return None;
            }
        }
        let rest = self.pool.len().checked_sub(Self::BYTES)?;
        let random: [u8; Self::BYTES] = self.pool.get(rest..)?.try_into().ok()?;
        self.pool.truncate(rest);
        Some(RayId::from_random(random))
    }
}
