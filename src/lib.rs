//! The control plane of the Tenant Security Proxy: one process, its configuration, its threads, its health.
//!
//! The data plane is `tsp_shards`; this crate starts it, feeds it with configurations, and stops it.
//!
//! | thread | does | module |
//! | --- | --- | --- |
//! | main, on the control core | publishing, health, metrics, drain | `control`, [`admin`] |
//! | one per shard, each on its core | requests | `tsp_shards` |
//! | `tsp-events` | security events out of the process | [`events`] |
//! | `tsp-log` | log lines out of the process | [`logs`] |
//! | `tsp-source` | looks at the configuration file and the tenant secrets, or asks the broker | [`source`] |
//! | `tsp-traces` | sends traces to a collector, if there is one | [`traces`] |
//! | `tsp-secrets` | stores new tenant secrets | `secrets` |
//! | `tsp-signals`, `tsp-watch` | wait for what cannot be awaited: signals, a thread's end, a scrape | `signals` |
#![forbid(unsafe_code)]

pub mod admin;
mod api_key;
mod ask;
pub mod config;
mod control;
pub mod cores;
mod dev_broker;
mod doctor;
pub mod events;
mod greeting;
mod health;
mod kms_calls;
pub mod logs;
pub mod metrics;
mod prepare;
mod recover;
mod secrets;
mod signals;
pub mod source;
mod top;
pub mod traces;

use std::{
    cell::RefCell, convert::Infallible, fmt, io, net::SocketAddr, path::PathBuf, rc::Rc, sync::Arc,
    thread,
};

use bytes::Bytes;
use crossbeam_channel::{Receiver, never, select};
use tokio::sync::oneshot;
use tsp_rt::{Backend, Probe, RingFlag, Rt as _, mailbox, tls::ServerTls};
use tsp_shards::{EventsConfig, Limits, ShardEnd, ShardSet, ShardsConfig, SpawnError, event_queue};

use crate::{
    admin::{Admin, Health},
    config::Problem,
    control::{COMMANDS_MAX, Command, Control, Published},
    cores::CorePlan,
    dev_broker::DevBroker,
    events::EventThread,
    greeting::Keys,
    logs::Logs,
    metrics::{ControlMetrics, KeyMetrics, Scrape},
    prepare::{First, Prepared},
    secrets::keeper,
    source::{dev, look},
    traces::TraceThread,
};

pub use self::{
    api_key::{ApiKeyOptions, create_api_key},
    doctor::{DoctorOptions, Doctored, doctor},
    health::{HealthOptions, health},
    recover::{RecoverOptions, recover},
    secrets::command::{SecretsAction, SecretsOptions, secrets},
    top::{TopOptions, URL as TOP_URL, top},
};

/// Scrapes on the API's port that wait for their text. A scraper asks every few seconds.
const SCRAPES_WAITING_MAX: usize = 16;

/// Why the process ends other than by a drain.
#[derive(Debug)]
pub enum RunError {
    /// The configuration is wrong; nothing was bound.
    Configuration(Vec<Problem>),
    /// An address cannot be listened on.
    Listen(String),
    /// Something inside failed.
    Internal(String),
    /// The doctor found KMS configs that do not work.
    Unhealthy {
        /// How many.
        unhealthy: usize,
        /// Of how many that were examined.
        of: usize,
    },
    /// The proxy that was asked is not ready, or not there.
    NotReady(String),
    /// Some of what was to be recovered could not be opened.
    Unrecovered {
        /// How many.
        failed: usize,
        /// Of how many.
        of: usize,
    },
}

impl RunError {
    /// The exit code that tells an orchestrator which of them it was, after BSD's `sysexits.h`.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Configuration(_) => 64,
            Self::Unhealthy { .. } | Self::NotReady(_) | Self::Unrecovered { .. } => 69,
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
                    write!(f, "{separator}tsp: {problem}")?;
                }
                Ok(())
            }
            Self::Listen(why) | Self::Internal(why) | Self::NotReady(why) => {
                write!(f, "tsp: {why}")
            }
            Self::Unhealthy { unhealthy, of } => {
                write!(f, "tsp: {unhealthy} of {of} KMS configs do not work")
            }
            Self::Unrecovered { failed, of } => {
                write!(f, "tsp: {failed} of {of} could not be opened")
            }
        }
    }
}

impl std::error::Error for RunError {}

/// Options of `tsp dev`. Each address is an IP or IP:PORT, as its environment variable takes it.
#[derive(Debug, Default)]
pub struct DevOptions {
    /// The API key; a new one is made otherwise.
    pub api_key: Option<String>,
    /// Listener of the client API.
    pub http: Option<String>,
    /// Listener of health and metrics.
    pub health: Option<String>,
    /// The event socket.
    pub event: Option<String>,
    /// Where to keep the keys; in memory otherwise.
    pub state: Option<PathBuf>,
    /// Whether the tenants come from a broker, which is started too.
    pub broker: bool,
}

/// Serves the tenants of `TSP_CONFIG_FILE`, or of a configuration broker, until a signal ends it.
///
/// # Errors
/// [`RunError`]
pub fn serve() -> Result<(), RunError> {
    let prepared = Prepared::serve(First::Later).map_err(RunError::Configuration)?;
    run(prepared, None)
}

/// Serves made-up tenants until a signal ends it.
///
/// # Errors
/// [`RunError`]
pub fn dev(options: &DevOptions) -> Result<(), RunError> {
    let (broker, account) = options
        .broker
        .then(DevBroker::start)
        .transpose()
        .map_err(|problem| RunError::Configuration(vec![problem]))?
        .unzip();
    let mut prepared = Prepared::dev(options, account).map_err(RunError::Configuration)?;
    let key = prepared.api_key.clone();
    let state = options.state.clone();
    if let Some(path) = &state
        && dev::state_is_open_to_others(path)
    {
        let why = format!(
            "{} can be read by others, and holds keys: chmod 600",
            path.display()
        );
        prepared.config.warnings.push(Problem::new("--state", why));
    }
    // Broker and logdriver end when this is over.
    let broker = Rc::new(RefCell::new(broker));
    let beside = Rc::clone(&broker);
    run(
        prepared,
        Some(Box::new(move |listening| {
            let keys = match (&mut *beside.borrow_mut(), state) {
                (Some(broker), _) => Keys::AtBroker {
                    url: broker.url().to_owned(),
                    program: broker.program().to_owned(),
                    variables: broker.variables(),
                    logdriver: listening
                        .event
                        .map(|events| broker.start_logdriver(health::reachable(events))),
                },
                (None, Some(path)) => Keys::In(path),
                (None, None) => Keys::InMemory,
            };
            let key = key.as_ref().map_or("", |key| key.expose());
            greeting::greet(listening, key, &keys);
        })),
    )
}

/// What [`check`] found.
#[derive(Debug)]
pub struct Checked {
    /// What would be served, for a person to read. `None` if nothing would.
    pub summary: Option<String>,
    /// Everything that is wrong, also what serving would only leave out.
    pub problems: Vec<Problem>,
}

/// Reads the whole configuration without serving.
#[must_use]
pub fn check() -> Checked {
    match Prepared::serve(First::Now) {
        Ok(prepared) => {
            let summary = Some(prepared.summary());
            Checked {
                summary,
                problems: prepared.left_out().to_vec(),
            }
        }
        Err(problems) => Checked {
            summary: None,
            problems,
        },
    }
}

/// Where the process listens.
#[derive(Clone, Debug)]
struct Listening {
    http: SocketAddr,
    /// The fingerprint of the certificate, if the API speaks TLS.
    certificate: Option<String>,
    unix: Option<PathBuf>,
    health: SocketAddr,
    event: Option<SocketAddr>,
}

/// What to do with the addresses once all shards serve.
type WhenListening = Box<dyn FnOnce(&Listening)>;

/// Starts logging and runs the process; a failure is logged, too.
fn run(prepared: Prepared, when_ready: Option<WhenListening>) -> Result<(), RunError> {
    // First of all, so that every thread that is not a shard's stays on the control core.
    let pinned = prepared.plan.pin_control_thread();
    let internal =
        |what: &str, why: &dyn fmt::Display| RunError::Internal(format!("{what}: {why}"));
    let filter = logs::filter(prepared.config.log_filter.as_deref())
        .map_err(|why| RunError::Configuration(vec![Problem::new("RUST_LOG", why)]))?;
    let logs = Logs::start(filter).map_err(|why| internal("logging cannot start", &why))?;
    if !pinned {
        tracing::warn!(
            core = prepared.plan.control_cpu_text(),
            "the control plane could not be pinned"
        );
    }
    let result = run_logged(prepared, when_ready, &logs);
    match &result {
        Ok(()) => {}
        Err(RunError::Listen(why)) => tracing::error!("{why}"),
        Err(error) => tracing::error!("the process cannot go on: {error}"),
    }
    result
}

fn run_logged(
    prepared: Prepared,
    when_ready: Option<WhenListening>,
    logs: &Logs,
) -> Result<(), RunError> {
    let Prepared {
        config,
        api_key: _,
        keys,
        plan,
        limits,
        probe,
        mut lookout,
        tls,
        store,
        first,
    } = prepared;
    for warning in &config.warnings {
        tracing::warn!(place = warning.place, "{warning}");
    }
    match &limits {
        Ok(limits) => {
            tracing::debug!("{limits}");
            if let Some(advice) = limits.advice(probe.backend) {
                tracing::warn!("{advice}");
            }
        }
        Err(error) => {
            tracing::warn!(%error, "the limits of open files and locked memory stay as they are");
        }
    }
    let internal =
        |what: &str, why: &dyn fmt::Display| RunError::Internal(format!("{what}: {why}"));
    let metrics =
        ControlMetrics::new(&probe).map_err(|why| internal("metrics cannot be made", &why))?;
    if let Some(tls) = &tls {
        metrics.certificate(tls);
    }
    let mut key_metrics = KeyMetrics::new(&metrics);
    key_metrics.follow(&keys);
    let mut instance = [0; 8];
    getrandom::fill(&mut instance).map_err(|why| internal("no random numbers", &why))?;

    let cannot_listen = |why: io::Error| {
        RunError::Listen(format!(
            "cannot listen for probes on {}: {why}",
            config.health
        ))
    };
    let health_listener = tsp_rt::bind_reuseport(config.health, 1)
        .map_err(cannot_listen)?
        .pop()
        .ok_or_else(|| cannot_listen(io::ErrorKind::Other.into()))?;
    let health_addr = health_listener.local_addr().map_err(cannot_listen)?;

    let events = config.events.as_ref().map(|settings| {
        let (queue, receiver) = event_queue(settings.channel_size);
        let config = EventsConfig {
            queue,
            send_timeout: settings.send_timeout,
            required: settings.required,
        };
        (config, settings, receiver)
    });
    let (events_config, event_thread) = match events {
        Some((config, settings, queue)) => (Some(config), Some((settings, queue))),
        None => (None, None),
    };
    let (scrape, scrapes) = crossbeam_channel::bounded(SCRAPES_WAITING_MAX);
    let (secrets, offers) = crossbeam_channel::bounded(keeper::OFFERS_MAX);
    let instance = u64::from_le_bytes(instance);
    let traces = config.traces.map(|settings| {
        let counters = metrics.tracing();
        TraceThread::start(settings, counters, instance)
    });
    let (trace_thread, traces) = traces
        .transpose()
        .map_err(|why| internal("a thread cannot be started", &why))?
        .unzip();
    let certificate = tls.as_ref().map(ServerTls::fingerprint);
    let unix = config.unix.as_ref().map(|unix| unix.path.clone());
    let shards = ShardSet::spawn(ShardsConfig {
        listen: config.http,
        tls,
        unix: config.unix,
        backend: probe.backend,
        cpus: plan.shard_cpus.clone(),
        api_keys: Arc::clone(&keys.api_keys),
        limits: Limits {
            lease_revalidate: config.lease_revalidate,
            lease_max_age: config.lease_max_age,
            ..Limits::default()
        },
        destinations: config.destinations,
        events: events_config,
        scrape,
        secrets,
        traces,
        instance,
    })
    .map_err(|error| match error {
        SpawnError::Bind(..) | SpawnError::BindUnix(..) => RunError::Listen(error.to_string()),
        SpawnError::Start(..) => RunError::Internal(error.to_string()),
    })?;

    // Only now: the shards' threads would have inherited it.
    if !plan.yield_to_shards() {
        tracing::warn!("the control plane could not be made nicer than the shards beside it");
    }
    let event_thread = event_thread
        .map(|(settings, queue)| {
            EventThread::start(settings, queue, instance, metrics.events.clone())
        })
        .transpose()
        .map_err(|error| RunError::Listen(error.to_string()))?;

    let (commander, commands) = mailbox::bounded(COMMANDS_MAX);
    signals::start(commander.clone())
        .map_err(|why| internal("signals cannot be waited for", &why))?;
    let scrape = Arc::new(Scrape {
        control: metrics.clone(),
        shards: Arc::clone(shards.metrics()),
        log_lines_dropped: logs.dropped(),
    });
    let events_alive = event_thread
        .as_ref()
        .map_or_else(never, |events| events.alive().clone());
    watch(
        Arc::clone(&scrape),
        scrapes,
        shards.ends().clone(),
        events_alive,
        commander.clone(),
    )
    .map_err(|why| internal("a thread cannot be started", &why))?;

    let broker = lookout.broker().map(str::to_owned);
    lookout.use_cores(&plan);
    let asks = look::start(lookout, commander.clone())
        .map_err(|why| internal("a thread cannot be started", &why))?;
    keeper::start(store, offers, commander.clone())
        .map_err(|why| internal("a thread cannot be started", &why))?;

    let listening = Listening {
        http: shards.local_addr(),
        certificate,
        unix,
        health: health_addr,
        event: event_thread.as_ref().map(EventThread::local_addr),
    };
    if let (Some(broker), None) = (broker, &first) {
        tell_wait(&listening, &broker);
    }
    let health = Rc::new(Health::starting(plan.shard_cpus.len()));
    let admin = Admin {
        token: config.admin_token,
        log_filter: logs.filter(),
        forgetter: shards.forgetter(),
    };
    let announce = Box::new(move |published: &Published| {
        tell_start(&listening, &plan, &probe, published);
        if let Some(when_ready) = when_ready {
            when_ready(&listening);
        }
    });
    let ended = tsp_rt::run_here(|rt| async move {
        let listener = rt.adopt(health_listener).map_err(|why| why.to_string())?;
        rt.spawn(admin::serve(
            rt.clone(),
            listener,
            Rc::clone(&health),
            scrape,
            admin,
        ));
        let control = Control {
            rt,
            asks,
            shards: Some(shards),
            events: event_thread,
            metrics,
            health,
            commands,
            commander,
            key_metrics,
            when_ready: Some(announce),
            age_max: config.config_age_max,
        };
        control.run(first).await
    });
    if let Some(traces) = trace_thread {
        traces.finish();
    }
    ended
        .map_err(|why| internal("the control core cannot start", &why))?
        .map_err(RunError::Internal)
}

/// The line that tells where probes are answered while the first configuration is still to come.
fn tell_wait(listening: &Listening, broker: &str) {
    tracing::info!(
        http = %listening.http,
        health = %listening.health,
        event = listening.event.map(tracing::field::display),
        broker,
        "waiting for the configuration broker"
    );
}

/// The one line that tells how the process runs.
fn tell_start(listening: &Listening, plan: &CorePlan, probe: &Probe, published: &Published) {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        io = probe.backend.as_str(),
        io_reason = probe.reason,
        shards = plan.shard_cpus.len(),
        shard_cpus = plan.shard_cpus_text(),
        control_cpu = plan.control_cpu_text(),
        http = %listening.http,
        certificate = listening.certificate,
        unix = listening.unix.as_deref().map(|path| tracing::field::display(path.display())),
        health = %listening.health,
        event = listening.event.map(tracing::field::display),
        tenants = published.tenants,
        kms_configs = published.kms_configs,
        left_out = published.left_out,
        "serving"
    );
    if probe.backend == Backend::Uring && tsp_rt::ring_flag() != RingFlag::Set {
        tracing::warn!(
            "io_uring costs more than it should: {}",
            tsp_rt::ring_flag()
        );
    }
}

/// Waits, on a thread of its own, for what the control core's executor cannot await: a shard's request for the text
/// of a scrape, a shard's end, the event thread's end.
fn watch(
    scrape: Arc<Scrape>,
    mut scrapes: Receiver<oneshot::Sender<Bytes>>,
    ends: Receiver<ShardEnd>,
    mut events_alive: Receiver<Infallible>,
    commander: mailbox::Sender<Command>,
) -> io::Result<()> {
    thread::Builder::new()
        .name("tsp-watch".to_owned())
        .spawn(move || {
            loop {
                select! {
                    recv(scrapes) -> asked => match asked {
                        // The shard may have given up waiting.
                        Ok(asked) => drop(asked.send(scrape.text())),
                        // The last shard is ending; how it ends is still to come.
                        Err(_) => scrapes = never(),
                    },
                    recv(ends) -> end => match end {
                        Ok(end) => drop(commander.send(Command::ShardEnded(end))),
                        Err(_) => break,
                    },
                    recv(events_alive) -> _ => {
                        events_alive = never();
                        drop(commander.send(Command::EventsEnded));
                    },
                }
            }
        })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tsp_rt::CoreEnd;

    use super::*;

    fn wait_for(commands: &mut mailbox::Receiver<Command>) -> Command {
        loop {
            match commands.try_recv() {
                Some(command) => return command,
                None => thread::yield_now(),
            }
        }
    }

    #[test]
    fn the_end_of_a_shard_or_of_the_event_thread_is_heard() {
        let (_shards, scrape) = admin::tests::scrape();
        let (asking, scrapes) = crossbeam_channel::bounded(1);
        let (ended, ends) = crossbeam_channel::bounded(1);
        let (pulse, events_alive) = crossbeam_channel::bounded(1);
        let (commander, mut commands) = mailbox::bounded(COMMANDS_MAX);
        // A shard that dies lets go of its scrapes first.
        drop(asking);
        watch(scrape, scrapes, ends, events_alive, commander).unwrap();
        drop(pulse);
        assert!(matches!(wait_for(&mut commands), Command::EventsEnded));
        let end = CoreEnd::Died("a test".to_owned());
        ended.send(ShardEnd { shard: 3, end }).unwrap();
        let command = wait_for(&mut commands);
        assert!(matches!(
            command,
            Command::ShardEnded(ShardEnd { shard: 3, .. })
        ));
    }

    #[test]
    fn each_failure_has_its_exit_code() {
        let problems = vec![
            Problem::new("A", "is wrong"),
            Problem::new("B", "is missing"),
        ];
        let wrong = RunError::Configuration(problems);
        assert_eq!(wrong.to_string(), "tsp: A: is wrong\ntsp: B: is missing");
        let codes = [
            wrong,
            RunError::Unhealthy {
                unhealthy: 1,
                of: 2,
            },
            RunError::NotReady(String::new()),
            RunError::Unrecovered { failed: 1, of: 2 },
            RunError::Internal(String::new()),
            RunError::Listen(String::new()),
        ];
        assert_eq!(
            codes.map(|error| error.exit_code()),
            [64, 69, 69, 69, 70, 71]
        );
    }
}
