//! All that one core owns: its tasks, its state, its control task.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Release},
        },
    },
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use crossbeam_channel::Sender;
use tokio::sync::oneshot;
use tsp_rt::{Rt, mailbox, tls::ServerTls};
use tsp_wire::{SnapshotVersion, TenantId, api::Parser, destinations::Destinations};

use crate::{
    accept::{self, Entrance, Fresh},
    admission::Admission,
    balance::Balance,
    buffers::Buffers,
    conn::Connections,
    events::{Events, EventsConfig},
    handshake::Handshakes,
    keyring::{self, Keyring},
    keys::{ApiKeys, KeysInForce},
    limits::{Limits, SWEEP_INTERVAL},
    metrics::{ShardMetrics, TenantNames},
    peers::Exchange,
    secrets::{Creation, Home, SecretOffer},
    snapshot::{Snapshot, SnapshotSlot},
    tokens::{self, Tokens},
    trace::{TraceConfig, Tracer},
    upstream::Upstream,
};

/// What a shard is told by the control core.
#[derive(Debug)]
pub(crate) enum Command {
    /// Whether the configurations are young enough to be used.
    Fresh(bool),
    /// Drop all keys of a tenant.
    Forget(Forget),
    /// Finish what is under way, take nothing new, end.
    Drain,
    /// End now.
    Close,
}

/// Drop all keys of a tenant, and say so.
#[derive(Debug)]
pub(crate) struct Forget {
    pub(crate) tenant: TenantId,
    /// Counts up with every such command of the process.
    pub(crate) generation: u64,
    pub(crate) done: oneshot::Sender<()>,
}

/// What a shard is made of.
#[derive(Debug)]
pub struct ShardParts {
    /// The API keys that applications may present.
    pub api_keys: Arc<ApiKeys>,
    /// The limits.
    pub limits: Limits,
    /// Where the KMSs' endpoints may lead to.
    pub destinations: Arc<Destinations>,
    /// Where security events go; `None` switches them off.
    pub events: Option<EventsConfig>,
    /// Asks the control core for the metrics text.
    pub scrape: Sender<oneshot::Sender<Bytes>>,
    /// Takes new tenant secrets to the control plane, which stores them.
    pub secrets: Sender<SecretOffer>,
    /// What entrances that speak TLS begin with.
    pub tls: Option<ServerTls>,
    /// Whether fresh connections go to a shard that holds fewer. Without, each is served by the shard that accepted it.
    pub balanced: bool,
    /// Where traces go; `None` switches them off.
    pub traces: Option<TraceConfig>,
    /// A random number of this process: tells its events' sequence from those of other processes.
    pub instance: u64,
}

/// The control core's ends of one shard's mailboxes.
#[derive(Debug)]
pub struct ShardControl {
    snapshots: mailbox::LatestSender<Arc<Snapshot>>,
    tls: mailbox::LatestSender<ServerTls>,
    api_keys: mailbox::LatestSender<Arc<ApiKeys>>,
    commands: mailbox::Sender<Command>,
    version: Arc<AtomicU64>,
    pub(crate) metrics: Arc<ShardMetrics>,
}

impl ShardControl {
    /// Hands `snapshot` to the shard. Never waits; a shard that is busy takes the newest when it comes to it.
    pub fn publish(&mut self, snapshot: &Arc<Snapshot>) {
        self.snapshots.publish(Arc::clone(snapshot));
    }

    /// Has new connections done with `tls`; those that stand keep what they have.
    pub fn renew_tls(&mut self, tls: &ServerTls) {
        self.tls.publish(tls.clone());
    }

    /// Accepts `api_keys` and no others from the next request on.
    pub fn renew_api_keys(&mut self, api_keys: &Arc<ApiKeys>) {
        self.api_keys.publish(Arc::clone(api_keys));
    }

    /// Whether what [`ShardControl::renew_tls`] gave last is in force.
    #[must_use]
    pub fn has_renewed_tls(&self) -> bool {
        self.tls.is_taken()
    }

    /// Whether what [`ShardControl::renew_api_keys`] gave last is in force.
    #[must_use]
    pub fn has_renewed_api_keys(&self) -> bool {
        self.api_keys.is_taken()
    }

    /// The snapshot that the shard works with; `None` before its first.
    #[must_use]
    pub fn snapshot_version(&self) -> Option<SnapshotVersion> {
        let number = self.version.load(Acquire);
        (number != NO_VERSION).then_some(SnapshotVersion(number))
    }

    /// Tells the shard whether the configurations are young enough. While they are not, it refuses key operations.
    pub fn set_fresh(&self, fresh: bool) {
        self.command(Command::Fresh(fresh));
    }

    /// Tells the shard to finish what is under way, take nothing new, and end.
    pub fn drain(&self) {
        self.command(Command::Drain);
    }

    /// Tells a draining shard to cut off what is left.
    pub fn close(&self) {
        self.command(Command::Close);
    }

    /// The way to give the shard commands.
    pub(crate) fn commander(&self) -> mailbox::Sender<Command> {
        self.commands.clone()
    }

    fn command(&self, command: Command) {
        // A full mailbox belongs to a shard that is stuck; a process that ends does so by its deadline all the same.
        drop(self.commands.send(command));
    }
}

/// The version number that stands for "none yet".
const NO_VERSION: u64 = u64::MAX;

/// Commands that wait at most: fresh or not, drain, close, and room for a refresh or two while the shard is busy.
const COMMANDS_MAX: usize = 16;

/// A shard that has not started: [`Shard::run`] takes it to its core.
#[derive(Debug)]
pub struct Shard {
    index: u16,
    parts: ShardParts,
    snapshots: mailbox::Receiver<Arc<Snapshot>>,
    tls: mailbox::Receiver<ServerTls>,
    api_keys: mailbox::Receiver<Arc<ApiKeys>>,
    commands: mailbox::Receiver<Command>,
    metrics: Arc<ShardMetrics>,
    version: Arc<AtomicU64>,
    tokens: Exchange<tokens::Message>,
    keys: Exchange<keyring::Message>,
    fresh: Exchange<Fresh>,
    balance: Balance,
    home: Home,
}

/// The state that all tasks of one shard share. It never leaves its thread.
pub(crate) struct Core<R: Rt> {
    pub(crate) rt: R,
    pub(crate) limits: Rc<Limits>,
    pub(crate) api_keys: KeysInForce,
    pub(crate) slot: SnapshotSlot,
    pub(crate) fresh: Cell<bool>,
    pub(crate) parser: RefCell<Parser>,
    pub(crate) bodies_bytes: Cell<usize>,
    pub(crate) buffers: Buffers,
    pub(crate) admission: Admission,
    pub(crate) upstream: Rc<Upstream<R>>,
    pub(crate) tokens: Rc<Tokens<R>>,
    pub(crate) creation: Creation,
    pub(crate) keyring: Keyring,
    pub(crate) events: Rc<Events<R>>,
    pub(crate) connections: Rc<Connections>,
    pub(crate) balance: Balance,
    pub(crate) handshakes: Handshakes,
    pub(crate) tracer: Rc<Tracer<R>>,
    pub(crate) metrics: Arc<ShardMetrics>,
    pub(crate) scrape: Sender<oneshot::Sender<Bytes>>,
}

impl<R: Rt> Core<R> {
    /// Runs `work`, but no longer than to `deadline`; `None` if it is not done by then. The timer is only made when
    /// there is something to wait for.
    pub(crate) async fn by<T>(
        &self,
        deadline: Instant,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        tsp_rt::by(&self.rt, deadline, work).await
    }
}

/// Lets the shard's other tasks have a turn.
pub(crate) async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl Shard {
    /// Makes all shards of a process, one per `parts`, and the control core's ends of them.
    #[must_use]
    pub fn all(parts: Vec<ShardParts>) -> Vec<(Self, ShardControl)> {
        let tokens = Exchange::among(parts.len());
        let keys = Exchange::among(parts.len());
        let fresh = Exchange::among(parts.len());
        let balances = match parts.iter().all(|parts| parts.balanced) {
            true => Balance::among(parts.len()),
            false => parts.iter().flat_map(|_| Balance::among(1)).collect(),
        };
        let homes = Home::among(parts.len());
        let tenants = Arc::<TenantNames>::default();
        (0..)
            .zip(parts)
            .zip(tokens.into_iter().zip(keys).zip(homes))
            .zip(fresh.into_iter().zip(balances))
            .map(
                |(((index, parts), ((tokens, keys), home)), (fresh, balance))| {
                    let (snapshots_in, snapshots) = mailbox::latest();
                    let (tls_in, tls) = mailbox::latest();
                    let (api_keys_in, api_keys) = mailbox::latest();
                    let (commands_in, commands) = mailbox::bounded(COMMANDS_MAX);
                    let metrics = Arc::new(ShardMetrics::new(Arc::clone(&tenants)));
                    let version = Arc::new(AtomicU64::new(NO_VERSION));
                    let control = ShardControl {
                        snapshots: snapshots_in,
                        tls: tls_in,
                        api_keys: api_keys_in,
                        commands: commands_in,
                        metrics: Arc::clone(&metrics),
                        version: Arc::clone(&version),
                    };
                    (
                        Self {
                            index,
                            parts,
                            snapshots,
                            tls,
                            api_keys,
                            commands,
                            metrics,
                            version,
                            tokens,
                            keys,
                            fresh,
                            balance,
                            home,
                        },
                        control,
                    )
                },
            )
            .collect()
    }

    /// Serves the clients that come in at `entrances`, and those that other shards hand over, until told to end.
    pub async fn run<R: Rt>(self, rt: R, entrances: Vec<Entrance<R::Listener>>) {
        let Self {
            index,
            parts,
            mut snapshots,
            mut tls,
            mut api_keys,
            mut commands,
            metrics,
            version,
            tokens,
            keys,
            fresh,
            balance,
            home,
        } = self;
        let limits = Rc::new(parts.limits);
        let tracer = Rc::new(Tracer::new(rt.clone(), parts.traces));
        let upstream = Rc::new(Upstream::new(
            rt.clone(),
            Rc::clone(&tracer),
            Rc::clone(&limits),
            Arc::clone(&metrics),
            parts.destinations,
        ));
        let core = Rc::new(Core {
            tokens: Tokens::start(rt.clone(), Rc::clone(&upstream), tokens),
            keyring: Keyring::new(keys, &limits),
            upstream,
            creation: Creation::new(&home, parts.secrets),
            events: Rc::new(Events::new(
                rt.clone(),
                parts.events,
                parts.instance,
                index,
                Arc::clone(&metrics),
            )),
            admission: Admission::new(limits.inflight_max, limits.tenant_inflight_max),
            connections: Rc::new(Connections::new(Arc::clone(&metrics))),
            balance,
            handshakes: Handshakes::new(parts.tls),
            tracer,
            api_keys: KeysInForce::new(&parts.api_keys, usize::from(index)),
            slot: SnapshotSlot::default(),
            fresh: Cell::new(true),
            parser: RefCell::new(Parser::new()),
            bodies_bytes: Cell::new(0),
            buffers: Buffers::default(),
            scrape: parts.scrape,
            metrics,
            limits,
            rt,
        });
        let gate = accept::start(&core, entrances, fresh);
        core.rt.spawn(sweep(Rc::downgrade(&core)));
        core.rt.spawn(home.serve(Rc::clone(&core)));
        keyring::start(&core);
        let renewed = Rc::clone(&core);
        core.rt.spawn(async move {
            while let Some(tls) = tls.recv().await {
                renewed.handshakes.renew(tls);
            }
        });
        let renewed = Rc::clone(&core);
        core.rt.spawn(async move {
            while let Some(api_keys) = api_keys.recv().await {
                renewed.api_keys.renew(&api_keys);
            }
        });
        let slot = Rc::clone(&core);
        core.rt.spawn(async move {
            while let Some(snapshot) = snapshots.recv().await {
                let before = slot.slot.load();
                if slot.slot.offer(&snapshot, slot.keyring.total()).await {
                    if let Some(view) = slot.slot.load() {
                        if before.is_none_or(|before| !view.shares_tables(&before)) {
                            slot.tokens.retain(&view.credentials());
                        }
                        slot.creation.settle(&view, slot.rt.now());
                    }
                    let SnapshotVersion(number) = snapshot.version();
                    version.store(number, Release);
                }
            }
        });
        let mut failed = pin!(gate.failed());
        loop {
            let command = {
                let mut command = pin!(commands.recv());
                std::future::poll_fn(|cx| match failed.as_mut().poll(cx) {
                    Poll::Ready(()) => Poll::Ready(None),
                    Poll::Pending => command.as_mut().poll(cx),
                })
                .await
            };
            match command {
                Some(Command::Fresh(fresh)) => core.fresh.set(fresh),
                Some(Command::Forget(Forget {
                    tenant,
                    generation,
                    done,
                })) => keyring::forget(&core, &tenant, generation, done),
                Some(Command::Drain) => break,
                Some(Command::Close) | None => return,
            }
        }
        gate.close();
        core.balance.close();
        core.connections.drain();
        let patience = core.rt.now() + DRAIN_GRACE;
        while gate.is_open() || core.balance.own() > 0 {
            let now = core.rt.now();
            if now >= patience {
                core.connections.leave();
            }
            let pause = now + DRAIN_LOOK_INTERVAL;
            if let Some(Some(Command::Close) | None) = core.by(pause, commands.recv()).await {
                core.connections.close_all();
                yield_now().await;
                break;
            }
        }
        core.events.end().await;
    }
}

/// How often a draining shard looks whether its last connection has gone.
const DRAIN_LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// How long a draining shard leaves connections open that have no request, for one that was sent before its client could know.
/// Many times the way through a region; a drain of nothing but such connections takes as long.
const DRAIN_GRACE: Duration = Duration::from_millis(100);

async fn sweep<R: Rt>(core: std::rc::Weak<Core<R>>) {
    while let Some(core) = core.upgrade() {
        core.connections.sweep(core.rt.now(), &core.limits);
        core.upstream.sweep();
        core.events.tell_losses();
        let pause = core.rt.sleep(SWEEP_INTERVAL);
        drop(core);
        pause.await;
    }
}
