//! All that one core owns: its accept loop, its control task, its state.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::{Pin, pin},
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
use hyper::header::HeaderValue;
use tokio::sync::{Notify, oneshot};
use tsp_rt::{Listener as _, Rt, mailbox};
use tsp_wire::{ApiKey, SnapshotVersion, TenantId, api::Parser};

use crate::{
    admission::Admission,
    conn::{self, Connections},
    destinations::Destinations,
    events::{Events, EventsConfig},
    keyring::{self, Keyring},
    limits::{Limits, SWEEP_INTERVAL},
    metrics::{ClosedBy, ShardMetrics, TenantNames},
    peers::Exchange,
    secrets::{Creation, Home, SecretOffer},
    snapshot::{Snapshot, SnapshotSlot},
    tokens::{self, Tokens},
    upstream::Upstream,
};

/// The API keys that applications may present: one, or two during a rotation.
#[derive(Debug)]
pub struct ApiKeys {
    first: ApiKey,
    second: Option<ApiKey>,
}

impl ApiKeys {
    /// Accepts `first`, and `second` if there is one.
    #[must_use]
    pub fn new(first: ApiKey, second: Option<ApiKey>) -> Self {
        Self { first, second }
    }

    /// Whether an `Authorization` header presents one of the keys. Looks at both, in constant time.
    pub(crate) fn allow(&self, header: Option<&HeaderValue>) -> bool {
        let Some(presented) = header.and_then(|value| value.as_bytes().strip_prefix(b"cmk "))
        else {
            return false;
        };
        let first = self.first.matches(presented);
        let second = self
            .second
            .as_ref()
            .is_some_and(|key| key.matches(presented));
        first | second
    }
}

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
    /// A random number of this process: tells its events' sequence from those of other processes.
    pub instance: u64,
}

/// The control core's ends of one shard's mailboxes.
#[derive(Debug)]
pub struct ShardControl {
    snapshots: mailbox::LatestSender<Arc<Snapshot>>,
    commands: mailbox::Sender<Command>,
    version: Arc<AtomicU64>,
    pub(crate) metrics: Arc<ShardMetrics>,
}

impl ShardControl {
    /// Hands `snapshot` to the shard. Never waits; a shard that is busy takes the newest when it comes to it.
    pub fn publish(&mut self, snapshot: &Arc<Snapshot>) {
        self.snapshots.publish(Arc::clone(snapshot));
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
    commands: mailbox::Receiver<Command>,
    metrics: Arc<ShardMetrics>,
    version: Arc<AtomicU64>,
    tokens: Exchange<tokens::Message>,
    keys: Exchange<keyring::Message>,
    home: Home,
}

/// The state that all tasks of one shard share. It never leaves its thread.
pub(crate) struct Core<R: Rt> {
    pub(crate) rt: R,
    pub(crate) limits: Rc<Limits>,
    pub(crate) api_keys: Arc<ApiKeys>,
    pub(crate) slot: SnapshotSlot,
    pub(crate) fresh: Cell<bool>,
    pub(crate) parser: RefCell<Parser>,
    pub(crate) bodies_bytes: Cell<usize>,
    pub(crate) admission: Admission,
    pub(crate) upstream: Rc<Upstream<R>>,
    pub(crate) tokens: Rc<Tokens<R>>,
    pub(crate) creation: Creation,
    pub(crate) keyring: Keyring,
    pub(crate) events: Rc<Events<R>>,
    pub(crate) connections: Rc<Connections>,
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
        let mut work = pin!(work);
        let mut late = None;
        std::future::poll_fn(|cx| {
            if let Poll::Ready(value) = work.as_mut().poll(cx) {
                return Poll::Ready(Some(value));
            }
            let late = late.get_or_insert_with(|| {
                self.rt
                    .sleep(deadline.saturating_duration_since(self.rt.now()))
            });
            Pin::new(late).poll(cx).map(|()| None)
        })
        .await
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
        let homes = Home::among(parts.len());
        let tenants = Arc::<TenantNames>::default();
        (0..)
            .zip(parts)
            .zip(tokens.into_iter().zip(keys).zip(homes))
            .map(|((index, parts), ((tokens, keys), home))| {
                let (snapshots_in, snapshots) = mailbox::latest();
                let (commands_in, commands) = mailbox::bounded(COMMANDS_MAX);
                let metrics = Arc::new(ShardMetrics::new(Arc::clone(&tenants)));
                let version = Arc::new(AtomicU64::new(NO_VERSION));
                let control = ShardControl {
                    snapshots: snapshots_in,
                    commands: commands_in,
                    metrics: Arc::clone(&metrics),
                    version: Arc::clone(&version),
                };
                (
                    Self {
                        index,
                        parts,
                        snapshots,
                        commands,
                        metrics,
                        version,
                        tokens,
                        keys,
                        home,
                    },
                    control,
                )
            })
            .collect()
    }

    /// Serves clients of `listener` until told to end.
    pub async fn run<R: Rt>(self, rt: R, listener: R::Listener) {
        let Self {
            index,
            parts,
            mut snapshots,
            mut commands,
            metrics,
            version,
            tokens,
            keys,
            home,
        } = self;
        let limits = Rc::new(parts.limits);
        let upstream = Rc::new(Upstream::new(
            rt.clone(),
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
            api_keys: parts.api_keys,
            slot: SnapshotSlot::default(),
            fresh: Cell::new(true),
            parser: RefCell::new(Parser::new()),
            bodies_bytes: Cell::new(0),
            scrape: parts.scrape,
            metrics,
            limits,
            rt,
        });
        let (closing, failed) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let (stop, fail) = (Rc::clone(&closing), Rc::clone(&failed));
        core.rt
            .spawn(accept(Rc::clone(&core), listener, stop, fail));
        core.rt.spawn(sweep(Rc::downgrade(&core)));
        core.rt.spawn(home.serve(Rc::clone(&core)));
        keyring::start(&core);
        let slot = Rc::clone(&core);
        core.rt.spawn(async move {
            while let Some(snapshot) = snapshots.recv().await {
                let before = slot.slot.load();
                if slot.slot.offer(&snapshot, slot.keyring.total()) {
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
        let mut failed = pin!(failed.notified());
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
        closing.notify_one();
        core.connections.drain();
        while core.connections.count() > 0 {
            let pause = core.rt.now() + DRAIN_LOOK_INTERVAL;
            if let Some(Some(Command::Close) | None) = core.by(pause, commands.recv()).await {
                core.connections.close_all();
                yield_now().await;
                break;
            }
        }
    }
}

/// How often a draining shard looks whether its last connection has gone.
const DRAIN_LOOK_INTERVAL: Duration = Duration::from_millis(10);

async fn accept<R: Rt>(
    core: Rc<Core<R>>,
    mut listener: R::Listener,
    closing: Rc<Notify>,
    failed: Rc<Notify>,
) {
    let mut closing = pin!(closing.notified());
    let mut draining = false;
    loop {
        let accepted = {
            let mut accept = pin!(listener.accept());
            std::future::poll_fn(|cx| {
                if draining || closing.as_mut().poll(cx).is_ready() {
                    draining = true;
                    return Poll::Ready(None);
                }
                accept.as_mut().poll(cx).map(Some)
            })
            .await
        };
        let accepted = match accepted {
            Some(accepted) => accepted,
            // The kernel resets what still waits when the listener goes, so that is served first.
            None => match listener.try_accept() {
                Ok(Some(waiting)) => Ok(waiting),
                Ok(None) | Err(_) => return,
            },
        };
        match accepted {
            Ok((stream, _)) if core.connections.count() < core.limits.connections_max => {
                let entry = core.connections.register(core.rt.now());
                core.rt.spawn(conn::serve(Rc::clone(&core), stream, entry));
            }
            Ok(_) => core.metrics.closed(ClosedBy::ConnectionsMax),
            // The listener has waited already where that helps. A shard that cannot accept is no shard: end it all.
            Err(why) => {
                tracing::error!(%why, "the listener failed");
                failed.notify_one();
                return;
            }
        }
    }
}

async fn sweep<R: Rt>(core: std::rc::Weak<Core<R>>) {
    while let Some(core) = core.upgrade() {
        core.connections.sweep(core.rt.now(), &core.limits);
        core.upstream.sweep();
        let pause = core.rt.sleep(SWEEP_INTERVAL);
        drop(core);
        pause.await;
    }
}
