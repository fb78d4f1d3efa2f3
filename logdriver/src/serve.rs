//! The process: opens what it needs, starts its parts, waits for a signal, and stops them in the order in which events flow.

use std::{fmt, sync::Arc, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    time::timeout,
};
use tsp_wire::envelope::SigningKey;

use crate::{
    config::{Configurations, Problem, ProcessConfig},
    health::{self, Health},
    ingest, logs,
    metrics::Metrics,
    pipeline::{self, PipelineConfig},
    routes::Maker,
    sink::Sink,
    source::{
        self, Source,
        broker::{BrokerConfig, BrokerSource},
        file::FileSource,
    },
    store::{OpenError, Opened, Store, StoreConfig},
};

/// How long a drain may take: a call to a log system that has begun, and a commit. Kubernetes kills after 30 s by default.
const DRAIN_MAX: Duration = Duration::from_secs(20);

/// How soon a store that cannot be opened is tried again.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// Threads of the runtime: the store has its own, and the rest waits for networks.
const WORKERS: usize = 2;

/// Why the process ends other than by a drain.
#[derive(Debug)]
pub enum RunError {
    /// The configuration is wrong; nothing was bound.
    Configuration(Vec<Problem>),
    /// An address cannot be listened on.
    Listen(String),
    /// Something inside failed.
    Internal(String),
    /// Whom one asked says no, or nothing.
    NotReady(String),
}

impl RunError {
    /// The exit code that tells an orchestrator which of them it was, after BSD's `sysexits.h`.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Configuration(_) => 64,
            Self::NotReady(_) => 69,
            Self::Internal(_) => 70,
            Self::Listen(_) => 71,
        }
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configuration(problems) => {
                for (index, problem) in problems.iter().enumerate() {
                    let separator = if index == 0 { "" } else { "\n" };
                    write!(f, "{separator}tsp-logdriver: {problem}")?;
                }
                Ok(())
            }
            Self::Listen(why) | Self::Internal(why) | Self::NotReady(why) => {
                write!(f, "tsp-logdriver: {why}")
            }
        }
    }
}

impl std::error::Error for RunError {}

/// What makes sinks of configurations, and where events of tenants without one go.
pub struct Sinks {
    /// Makes them.
    pub make: Maker,
    /// The logdriver's own standard output.
    pub stdout: Arc<dyn Sink>,
}

impl fmt::Debug for Sinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sinks")
    }
}

/// Serves until a signal ends it.
///
/// # Errors
/// [`RunError`]
pub fn serve(config: ProcessConfig, sinks: Sinks) -> Result<(), RunError> {
    let _logs = logs::start(config.log_filter.clone());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .map_err(|why| RunError::Internal(why.to_string()))?;
    let served = runtime.block_on(run(config, sinks));
    // A call to a log system may hang; what it was about is on disk.
    runtime.shutdown_background();
    served
}

async fn run(config: ProcessConfig, sinks: Sinks) -> Result<(), RunError> {
    let internal = |why: &dyn fmt::Display| RunError::Internal(why.to_string());
    let metrics = Arc::new(Metrics::new().map_err(|why| internal(&why))?);
    let mut ends = Signals::new().map_err(|why| internal(&why))?;
    let (stop, stopped) = watch::channel(false);
    let (drained, is_drained) = watch::channel(false);
    let (route, routes) = watch::channel(None);
    let (hurry, hurried) = mpsc::channel(1);

    let listener = health::bind(config.health).await;
    let listener = listener
        .map_err(|why| RunError::Listen(format!("cannot listen on {}: {why}", config.health)))?;
    let health_address = listener.local_addr().map_err(|why| internal(&why))?;
    let health = Health {
        metrics: Arc::clone(&metrics),
        routes: routes.clone(),
    };
    tokio::spawn(health::serve(listener, health, is_drained));

    let source = source(&config)?;
    let opening = open(&config, &metrics);
    let Opened {
        store,
        arrivals,
        shards,
        closed,
    } = tokio::select! {
        opened = opening => opened?,
        () = ends.end(&hurry) => return Ok(()),
    };
    tracing::info!(
        folder = %config.store.display(),
        health = %health_address,
        logdriver = format!("{:016x}", store.instance()),
        waiting = metrics.buffered_events.get(),
        "serving"
    );

    let looking = tokio::spawn(source::run(
        source,
        sinks.make,
        route,
        Arc::clone(&metrics),
        hurried,
        stopped.clone(),
    ));
    let pipeline = PipelineConfig {
        batch_events_max: config.batch_events_max,
        batch_age_max: config.batch_age_max,
        unknown: config.unknown,
        retention: config.retention,
    };
    let delivering = tokio::spawn(pipeline::run(
        store.clone(),
        arrivals,
        routes,
        pipeline,
        sinks.stdout,
        Arc::clone(&metrics),
        stopped.clone(),
    ));
    let taking = tokio::spawn(ingest::run(
        config.producers,
        store,
        shards,
        config.stall,
        Arc::clone(&metrics),
        stopped,
    ));

    ends.end(&hurry).await;
    tracing::info!("draining");
    stop.send_replace(true);
    let drain = async {
        let _ = taking.await;
        let _ = delivering.await;
        let _ = looking.await;
        closed.wait().await;
    };
    tokio::select! {
        drained = timeout(DRAIN_MAX, drain) => if drained.is_err() {
            tracing::warn!("not everything ended in time; what was confirmed is on disk");
        },
        () = ends.end(&hurry) => tracing::warn!("ended by a second signal"),
    }
    drained.send_replace(true);
    tracing::info!(waiting = metrics.buffered_events.get(), "ended");
    Ok(())
}

/// Opens the store; waits for a disk that is full or cannot be written.
async fn open(config: &ProcessConfig, metrics: &Arc<Metrics>) -> Result<Opened, RunError> {
    let mut told = false;
    loop {
        let store = StoreConfig {
            folder: config.store.clone(),
            secret: config.store_secret.clone(),
            signing: match &config.configurations {
                Configurations::Broker { account, .. } => {
                    SigningKey::from_slice(account.signing_key.expose())
                }
                Configurations::File(_) => None,
            },
            capacity: config.capacity,
            free_bytes_min: config.free_bytes_min,
        };
        match Store::open(store, metrics) {
            Ok(opened) => return Ok(opened),
            Err(why) if why.may_pass() => {
                if !told {
                    told = true;
                    tracing::error!(folder = %config.store.display(), "the store cannot be opened; trying until it can: {why}");
                }
                tokio::time::sleep(STORE_RETRY).await;
            }
            Err(
                why @ (OpenError::Locked
                | OpenError::Key
                | OpenError::OtherKey
                | OpenError::Version(_)),
            ) => {
                return Err(RunError::Configuration(vec![Problem {
                    place: format!("LOGDRIVER_STORE: {}", config.store.display()),
                    why: why.to_string(),
                }]));
            }
            Err(why) => return Err(RunError::Internal(why.to_string())),
        }
    }
}

fn source(config: &ProcessConfig) -> Result<Source, RunError> {
    match &config.configurations {
        Configurations::File(path) => Ok(Source::File(FileSource::new(path.clone()))),
        Configurations::Broker {
            account,
            ca_pem,
            every,
        } => {
            let broker = BrokerSource::new(BrokerConfig {
                account: Arc::clone(account),
                ca_pem: ca_pem.clone(),
                every: *every,
                folder: config.store.clone(),
            });
            let broker = broker.map_err(|why| {
                RunError::Configuration(vec![Problem {
                    place: "CONFIG_BROKER_URL or TSP_BROKER_CA".to_owned(),
                    why,
                }])
            })?;
            Ok(Source::Broker(Box::new(broker)))
        }
    }
}

/// SIGTERM and SIGINT end; SIGHUP has the configurations looked at.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn end(&mut self, hurry: &mpsc::Sender<()>) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hang_up.recv() => {
                    // One look that is due is enough.
                    let _ = hurry.try_send(());
                }
            }
        }
    }
}
