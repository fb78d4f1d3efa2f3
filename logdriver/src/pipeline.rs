//! From the disk to the tenants' log systems: a lane per tenant that has events.
//!
//! Lanes know nothing of each other, so a log system that is slow or dead delays its own tenant alone. What a lane has in
//! memory is the one batch that it delivers; all lanes together have a bound. While a log system fails, its lane has a small
//! batch, so that dead ones do not take that room from the others.
//!
//! What must stay true: an event is settled when its sink took it, or when its dead letter is on disk with it; a lane
//! delivers in order, and never two batches at a time.

mod backoff;
mod lane;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{Mutex, Notify, Semaphore, mpsc, watch},
    task::JoinSet,
};

use crate::{
    clock,
    metrics::Metrics,
    routes::{Route, Routes},
    sink::Sink,
    store::{Arrived, Store},
};

/// Bytes of all batches that lanes have in memory, in KiB.
const INFLIGHT_KIB_MAX: usize = 256 * 1024;

/// How often it is said that a tenant's events go to standard output.
const WARN_EVERY: Duration = Duration::from_secs(3600);

/// Tenants of whom it is remembered that this was said.
const WARNED_MAX: usize = 10_000;

/// What becomes of events of tenants without a logging configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// They go to standard output.
    Stdout,
    /// They wait until there is one.
    Hold,
}

/// How events are delivered.
#[derive(Clone, Debug)]
pub struct PipelineConfig {
    /// `LOGDRIVER_SINK_BATCH_SIZE`, in events.
    pub batch_events_max: usize,
    /// `LOGDRIVER_BUFFER_POLL_INTERVAL`: greatest age of a batch that is not full.
    pub batch_age_max: Duration,
    /// `LOGDRIVER_UNKNOWN_TENANT`.
    pub unknown: Unknown,
    /// How long a tenant's events wait while its log system does not take them, and how many bytes of them.
    pub retention: Retention,
}

/// How much a tenant's events may wait while they cannot be delivered. What is over becomes dead letters, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// `LOGDRIVER_RETENTION_DAYS`.
    pub age_max: Duration,
    /// `LOGDRIVER_RETENTION_BYTES`.
    pub bytes_max: i64,
    /// How long a log system must have failed, by a clock that does not jump, before age counts: so a wall clock that is set
    /// forward by a week buries nothing.
    pub patience: Duration,
}

/// What all lanes share.
struct Shared {
    store: Store,
    routes: watch::Receiver<Option<Arc<Routes>>>,
    config: PipelineConfig,
    metrics: Arc<Metrics>,
    inflight: Semaphore,
    stdout: Arc<dyn Sink>,
    warned: Mutex<HashMap<Arc<str>, Instant>>,
    stop: watch::Receiver<bool>,
}

/// A tenant with events on disk.
struct Lane {
    tenant: Arc<str>,
    /// Events and bytes that wait, by what the store told. Below zero while the lane is ahead of the news.
    events: AtomicI64,
    bytes: AtomicI64,
    news: Notify,
}

/// Delivers until `stop` says so. What is not delivered then stays on disk.
pub async fn run(
    store: Store,
    mut arrivals: mpsc::UnboundedReceiver<Vec<Arrived>>,
    routes: watch::Receiver<Option<Arc<Routes>>>,
    config: PipelineConfig,
    stdout: Arc<dyn Sink>,
    metrics: Arc<Metrics>,
    mut stop: watch::Receiver<bool>,
) {
    let shared = Arc::new(Shared {
        store,
        routes,
        config,
        metrics,
        inflight: Semaphore::new(INFLIGHT_KIB_MAX),
        stdout,
        warned: Mutex::new(HashMap::new()),
        stop: stop.clone(),
    });
    let mut lanes: HashMap<Arc<str>, Arc<Lane>> = HashMap::new();
    let mut tasks: JoinSet<Arc<str>> = JoinSet::new();
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            arrived = arrivals.recv() => match arrived {
                None => break,
                Some(arrived) => for Arrived { tenant, events, bytes } in arrived {
                    let lane = lanes.entry(Arc::clone(&tenant)).or_insert_with(|| {
                        let lane = Lane::new(tenant);
                        start(&shared, &lane, &mut tasks);
                        lane
                    });
                    lane.add(events, bytes);
                },
            },
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                let tenant = match ended {
                    Ok(tenant) => tenant,
                    Err(why) => {
                        // Its events are on disk; the next arrival of that tenant, or the next start, goes on with them.
                        tracing::error!("a lane died: {why}");
                        revive(&shared, &mut lanes, &mut tasks);
                        continue;
                    }
                };
                // It may have got news while it ended.
                match lanes.get(&tenant) {
                    Some(lane) if lane.waiting() > 0 => start(&shared, lane, &mut tasks),
                    Some(_) => drop(lanes.remove(&tenant)),
                    None => {}
                }
            }
        }
    }
    while tasks.join_next().await.is_some() {}
}

fn start(shared: &Arc<Shared>, lane: &Arc<Lane>, tasks: &mut JoinSet<Arc<str>>) {
    let (shared, lane) = (Arc::clone(shared), Arc::clone(lane));
    tasks.spawn(async move {
        lane::run(&shared, &lane).await;
        Arc::clone(&lane.tenant)
    });
}

/// Which lane it was nobody knows, so all that have no task get one: those whose count of owners is the map's own.
fn revive(
    shared: &Arc<Shared>,
    lanes: &mut HashMap<Arc<str>, Arc<Lane>>,
    tasks: &mut JoinSet<Arc<str>>,
) {
    for lane in lanes.values() {
        if Arc::strong_count(lane) == 1 {
            start(shared, lane, tasks);
        }
    }
}

impl Lane {
    fn new(tenant: Arc<str>) -> Arc<Self> {
        Arc::new(Self {
            tenant,
            events: AtomicI64::new(0),
            bytes: AtomicI64::new(0),
            news: Notify::new(),
        })
    }

    fn add(&self, events: i64, bytes: i64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.events.fetch_add(events, Ordering::Relaxed);
        self.news.notify_one();
    }

    fn waiting(&self) -> i64 {
        self.events.load(Ordering::Relaxed)
    }

    fn waiting_bytes(&self) -> i64 {
        self.bytes.load(Ordering::Relaxed).max(0)
    }

    fn took(&self, events: i64, bytes: i64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.events.fetch_sub(events, Ordering::Relaxed);
    }
}

impl Shared {
    fn stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// Where a tenant's events go now; `None` if they are to wait.
    async fn sink(&self, tenant: &Arc<str>) -> Option<Arc<dyn Sink>> {
        let (route, known) = {
            let routes = self.routes.borrow();
            // Before the first state is there nobody knows whose a tenant's events are.
            let routes = routes.as_ref()?;
            (routes.of(tenant), routes.knows(tenant))
        };
        match (route, self.config.unknown) {
            (Route::Sink(sink), _) => Some(sink),
            (Route::Held, _) | (Route::None, Unknown::Hold) => None,
            (Route::None, Unknown::Stdout) => {
                self.warn_of_stdout(tenant, known).await;
                Some(Arc::clone(&self.stdout))
            }
        }
    }

    async fn warn_of_stdout(&self, tenant: &Arc<str>, known: bool) {
        let now = clock::monotonic();
        let mut warned = self.warned.lock().await;
        if warned
            .get(tenant)
            .is_some_and(|last| now.duration_since(*last) < WARN_EVERY)
        {
            return;
        }
        if warned.len() >= WARNED_MAX {
            warned.clear();
        }
        warned.insert(Arc::clone(tenant), now);
        let which = if known {
            "has no logging configuration"
        } else {
            "is unknown"
        };
        tracing::warn!(
            tenant_id = &**tenant,
            "the tenant {which}, so its events go to the stdout logger; said once an hour. \
             LOGDRIVER_UNKNOWN_TENANT=hold keeps them instead"
        );
    }
}
