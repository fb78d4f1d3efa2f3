//! The data plane: one shard per core. The door is [`ShardSet`].
//!
//! Every shard has its own listener on the same address (`SO_REUSEPORT`), its own tables of tenants and KMS configs, its
//! own KMS connection pools, random generator and metrics. A fresh connection may be handed to a shard that holds fewer;
//! from then on to its last answer it touches no other core: there is no lock and no atomic that two cores write on a
//! request's path. What reaches a shard from outside comes by mailbox.
#![forbid(unsafe_code)]

mod accept;
mod admission;
mod api;
mod balance;
#[cfg(feature = "bench")]
pub mod bench;
mod breaker;
mod buffers;
mod conn;
mod dek;
mod error;
mod events;
mod forget;
mod handshake;
mod keyring;
mod keys;
mod limits;
mod metrics;
mod peers;
mod places;
mod probe;
mod secrets;
mod shard;
mod snapshot;
mod tokens;
mod trace;
mod upstream;

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tokio::sync::oneshot;
use tsp_rt::{Backend, CoreEnd, CoreMain, CoreThread, Rt, UnixPath, tls::ServerTls};
use tsp_wire::SnapshotVersion;

pub use self::{
    accept::{Entrance, UnixPeers, Way},
    dek::open_with_leased_key,
    events::{
        EventBatch, EventLane, EventQueue, EventReceiver, EventsConfig, QueueFull, event_queue,
    },
    forget::{Forgetter, NotForgotten},
    keys::{ApiKeys, HashedKey, KeyScope, KeyUses},
    limits::Limits,
    metrics::MetricsHub,
    probe::{Open, Probe, ProbeError, ProbeFailure, Probed, Stage, Timing},
    secrets::{SecretNotStored, SecretOffer},
    shard::{Shard, ShardControl, ShardParts},
    snapshot::{FormerSnapshots, Rejected, Snapshot, validate_kms},
    trace::{TraceConfig, TracedAttempt, TracedRequest},
};
pub use tsp_wire::destinations::{AddressKind, Destinations, Forbidden};

/// What a set of shards is made of.
#[derive(Debug)]
pub struct ShardsConfig {
    /// Address of the API; port 0 takes a free one, the same for all shards.
    pub listen: SocketAddr,
    /// What the API's port speaks TLS with; `None` leaves it in the clear.
    pub tls: Option<ServerTls>,
    /// A Unix socket that serves the API as well, in the clear.
    pub unix: Option<UnixConfig>,
    /// What the shards run on.
    pub backend: Backend,
    /// One entry per shard: the CPU it is pinned to, or `None` to let it float.
    pub cpus: Vec<Option<usize>>,
    /// The API keys that applications may present.
    pub api_keys: Arc<ApiKeys>,
    /// The limits.
    pub limits: Limits,
    /// Where the KMSs' endpoints may lead to.
    pub destinations: Destinations,
    /// Where security events go; `None` switches them off.
    pub events: Option<EventsConfig>,
    /// Asks the control core for the metrics text, for `GET /metrics` on the API's port.
    pub scrape: Sender<oneshot::Sender<Bytes>>,
    /// Takes new tenant secrets to the control plane, which stores them.
    pub secrets: Sender<SecretOffer>,
    /// Where traces go; `None` switches them off.
    pub traces: Option<TraceConfig>,
    /// A random number of this process: tells its events' sequence from those of other processes.
    pub instance: u64,
}

/// All shards of a process. Dropping it ends them at once; [`ShardSet::drain`] lets them finish.
#[derive(Debug)]
pub struct ShardSet {
    local_addr: SocketAddr,
    threads: Vec<CoreThread>,
    controls: Vec<ShardControl>,
    metrics: Arc<MetricsHub>,
    ends: Receiver<ShardEnd>,
    /// Goes with the shards, or when they start to drain.
    unix: Option<UnixPath>,
}

/// A shard's executor ended.
#[derive(Debug)]
pub struct ShardEnd {
    /// Which shard, from 0.
    pub shard: usize,
    /// How.
    pub end: CoreEnd,
}

/// Why the shards could not be started.
#[derive(Debug)]
pub enum SpawnError {
    /// The address cannot be listened on.
    Bind(SocketAddr, io::Error),
    /// The Unix socket cannot be listened on.
    BindUnix(PathBuf, io::Error),
    /// A shard's thread or its executor could not be made.
    Start(usize, io::Error),
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind(address, why) => write!(f, "cannot listen on {address}: {why}"),
            Self::BindUnix(path, why) => {
                let words = [
                    (io::ErrorKind::AddrInUse, "somebody listens there already"),
                    (
                        io::ErrorKind::AlreadyExists,
                        "something lies there that is no socket",
                    ),
                ];
                let in_words = words.iter().find(|(kind, _)| *kind == why.kind());
                write!(f, "cannot listen on {}: ", path.display())?;
                match in_words {
                    Some((_, words)) => f.write_str(words),
                    None => write!(f, "{why}"),
                }
            }
            Self::Start(shard, why) => write!(f, "cannot start shard {shard}: {why}"),
        }
    }
}

impl std::error::Error for SpawnError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Bind(_, why) | Self::BindUnix(_, why) | Self::Start(_, why) => Some(why),
        }
    }
}

/// How a drain went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every request was finished and every connection closed.
    Whole,
    /// The deadline cut the rest off.
    CutOff,
}

/// How long a shard may take to close its connections after the drain's deadline, before it is left behind.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

struct ShardMain {
    shard: Shard,
    entrances: Vec<Entrance<OwnedFd>>,
}

impl CoreMain for ShardMain {
    async fn run<R: Rt>(self, rt: R) {
        let entrances = self.entrances.into_iter();
        match entrances.map(|entrance| entrance.adopt(&rt)).collect() {
            Ok(entrances) => self.shard.run(rt, entrances).await,
            Err::<_, io::Error>(why) => tracing::error!(%why, "a shard cannot use its listener"),
        }
    }
}

/// A Unix socket to listen on.
#[derive(Clone, Debug)]
pub struct UnixConfig {
    /// Where its file is.
    pub path: PathBuf,
    /// The file's permissions.
    pub mode: u32,
    /// Who may connect, beyond what the permissions say; `None` leaves it at those.
    pub peers: Option<UnixPeers>,
}

impl ShardSet {
    /// Binds the API's address once per shard and starts the shards. They answer 503 until the first
    /// [`ShardSet::publish`].
    ///
    /// # Errors
    /// [`SpawnError`]; nothing is left running then.
    pub fn spawn(config: ShardsConfig) -> Result<Self, SpawnError> {
        let bind = |why| SpawnError::Bind(config.listen, why);
        let listeners = tsp_rt::bind_reuseport(config.listen, config.cpus.len()).map_err(bind)?;
        let first = listeners
            .first()
            .ok_or_else(|| bind(io::ErrorKind::InvalidInput.into()))?;
        let local_addr = first.local_addr().map_err(bind)?;
        let way = if config.tls.is_some() {
            Way::Tls
        } else {
            Way::Tcp
        };
        let tcp = |listener: TcpListener| Entrance {
            listener: OwnedFd::from(listener),
            way: way.clone(),
        };
        let mut entrances: Vec<_> = listeners.into_iter().map(|own| vec![tcp(own)]).collect();
        let mut unix = None;
        if let Some(UnixConfig { path, mode, peers }) = config.unix {
            let (listener, file) = tsp_rt::bind_unix(&path, mode)
                .map_err(|why| SpawnError::BindUnix(path.clone(), why))?;
            unix = Some(file);
            // One shard takes what comes there for all: if all waited, each connection would wake them all.
            if let Some(first) = entrances.first_mut() {
                first.push(Entrance {
                    listener,
                    way: Way::Unix(peers.map(Arc::new)),
                });
            }
        }
        let api_keys = config.api_keys;
        let (ended, ends) = crossbeam_channel::bounded(config.cpus.len());
        let mut threads = Vec::with_capacity(config.cpus.len());
        let mut controls = Vec::with_capacity(config.cpus.len());
        let destinations = Arc::new(config.destinations);
        let parts = config.cpus.iter().map(|_| ShardParts {
            api_keys: Arc::clone(&api_keys),
            limits: config.limits.clone(),
            destinations: Arc::clone(&destinations),
            events: config.events.clone(),
            scrape: config.scrape.clone(),
            secrets: config.secrets.clone(),
            tls: config.tls.clone(),
            balanced: true,
            traces: config.traces.clone(),
            instance: config.instance,
        });
        let shards = Shard::all(parts.collect());
        for (index, (((shard, control), cpu), entrances)) in shards
            .into_iter()
            .zip(config.cpus)
            .zip(entrances)
            .enumerate()
        {
            let ended = ended.clone();
            let thread = tsp_rt::spawn_core_watched(
                config.backend,
                &format!("tsp-shard-{index}"),
                cpu,
                ShardMain { shard, entrances },
                move |end| {
                    // There is room for every shard's end; nobody may be left to hear it.
                    drop(ended.try_send(ShardEnd {
                        shard: index,
                        end: end.clone(),
                    }));
                },
            );
            threads.push(thread.map_err(|why| SpawnError::Start(index, why))?);
            controls.push(control);
        }
        let metrics = MetricsHub::new(controls.iter().map(|control| Arc::clone(&control.metrics)));
        Ok(Self {
            local_addr,
            threads,
            controls,
            metrics: Arc::new(metrics),
            ends,
            unix,
        })
    }

    /// Hands `snapshot` to every shard. Never waits; a shard that is busy takes the newest when it comes to it.
    pub fn publish(&mut self, snapshot: &Arc<Snapshot>) {
        for control in &mut self.controls {
            control.publish(snapshot);
        }
    }

    /// Has new connections done with `tls`; those that stand keep what they have.
    pub fn renew_tls(&mut self, tls: &ServerTls) {
        for control in &mut self.controls {
            control.renew_tls(tls);
        }
    }

    /// Accepts `api_keys` and no others, each shard within milliseconds. Requests under way are finished.
    pub fn renew_api_keys(&mut self, api_keys: &Arc<ApiKeys>) {
        for control in &mut self.controls {
            control.renew_api_keys(api_keys);
        }
    }

    /// Whether what [`ShardSet::renew_tls`] gave last is in force everywhere.
    #[must_use]
    pub fn has_renewed_tls(&self) -> bool {
        self.controls.iter().all(ShardControl::has_renewed_tls)
    }

    /// Whether what [`ShardSet::renew_api_keys`] gave last is in force everywhere.
    #[must_use]
    pub fn has_renewed_api_keys(&self) -> bool {
        self.controls.iter().all(ShardControl::has_renewed_api_keys)
    }

    /// Tells the shards whether the configurations are young enough. While they are not, key operations are refused.
    pub fn set_fresh(&self, fresh: bool) {
        self.controls
            .iter()
            .for_each(|control| control.set_fresh(fresh));
    }

    /// What drops a tenant's keys on all shards. Take one per process: it counts its calls.
    #[must_use]
    pub fn forgetter(&self) -> Forgetter {
        Forgetter::of(&self.controls)
    }

    /// The address that the shards listen on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The shards' metrics.
    #[must_use]
    pub fn metrics(&self) -> &Arc<MetricsHub> {
        &self.metrics
    }

    /// The snapshot that each shard works with; `None` before its first.
    #[must_use]
    pub fn snapshot_versions(&self) -> Vec<Option<SnapshotVersion>> {
        self.controls
            .iter()
            .map(ShardControl::snapshot_version)
            .collect()
    }

    /// Tells when a shard has ended. Before a drain that is a failure, and the process must not go on without it.
    #[must_use]
    pub fn ends(&self) -> &Receiver<ShardEnd> {
        &self.ends
    }

    /// Stops accepting, finishes the requests under way, closes the connections; what is left after `longest` is cut
    /// off.
    #[must_use]
    pub fn drain(mut self, longest: Duration) -> Drained {
        // Nobody should find it any more; whoever did is served.
        drop(self.unix.take());
        self.controls.iter().for_each(ShardControl::drain);
        if self.wait_for_ends(longest) {
            return Drained::Whole;
        }
        self.controls.iter().for_each(ShardControl::close);
        self.wait_for_ends(CLOSE_WAIT);
        Drained::CutOff
    }

    /// Whether all shards ended within `longest`.
    fn wait_for_ends(&self, longest: Duration) -> bool {
        let looks = longest.as_millis() / END_LOOK_INTERVAL.as_millis();
        for _ in 0..=looks {
            if self.threads.iter().all(CoreThread::is_finished) {
                return true;
            }
            match self.ends.recv_timeout(END_LOOK_INTERVAL) {
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                // Every shard has reported its end; what is left is a few instructions of its thread.
                Err(RecvTimeoutError::Disconnected) => return true,
            }
        }
        false
    }
}

/// How often a drain looks whether the last shard's thread has gone after its report.
const END_LOOK_INTERVAL: Duration = Duration::from_millis(5);
