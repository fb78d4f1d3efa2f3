//! Keys held in memory: leased keys, so that wraps and unwraps need no KMS call, and tenants' secrets.
//!
//! Every key came from the tenant's KMS, or was shown to it, and is held for as long as the KMS would still say yes:
//! - It is proven anew before `lease_revalidate` is over, in the background. When the KMS refuses, it is dropped on every
//!   shard. When the KMS cannot be asked it serves on, up to `lease_max_age` since the KMS last did what it stands for.
//! - A lease is proven by wrapping, an opened key by opening: one permission says nothing about the other.
//! - An edited, disabled or reassigned config takes its keys with it, at once; so does [`forget`].
//!
//! Asking the KMS is the business of the tenant's home shard ([`home`]), once for the whole process however many ask; what
//! comes of it goes to every shard. The warm path never leaves its shard and makes no call.

mod held;
mod home;
mod names;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fmt,
    hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;
use tsp_kms::{Blame, KmsError, KmsOperation, Retry};
use tsp_rt::{Rt, mailbox};
use tsp_wire::{KmsConfigId, TenantId};

pub(crate) use self::{
    held::{Held, Purpose, ShardLease, TenantKeys},
    home::Message,
};
use self::{
    held::{Key, Life, Lifetimes, Verdict},
    home::{Answer, Ask, Outcome, Want},
    names::Names,
};
use crate::{
    dek,
    error::OpError,
    limits::{KEYS_MAX, Limits},
    metrics::{KeyUse, KeysHeld, ShardMetrics},
    peers::{Exchange, Peers},
    shard::Core,
    snapshot::{KmsHandle, Tenant, View},
};

/// How often one operation asks a home whose answer came to nothing (a snapshot was swapped, a tenant forgotten) before
/// it goes to the KMS by itself.
const ASKS_MAX: usize = 3;

/// How long an answer may be on its way beyond the operation's deadline, by which the home has it.
const ANSWER_SLACK: Duration = Duration::from_millis(100);

/// How often keys that nobody uses are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Names a key that is held or asked for: a hash over what it is for, its tenant, and its wrapped form.
///
/// Never the number that an EDEK gives for its leased key: those are not unique.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyId([u8; 32]);

/// It is a hash already: tables take its first part as it is.
impl Hash for KeyId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        state.write_u64(u64::from_be_bytes([a, b, c, d, e, f, g, h]));
    }
}

/// A table by [`KeyId`].
type ById<T> = HashMap<KeyId, T, BuildHasherDefault<Unhashed>>;

/// Gives the number that it was given.
#[derive(Clone, Copy, Debug, Default)]
struct Unhashed(u64);

impl Hasher for Unhashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

impl KeyId {
    fn of(what: u8, tenant: &TenantId, parts: &[&[u8]]) -> Self {
        let tenant = tenant.as_str().as_bytes();
        let mut hash = Sha256::new();
        hash.update([what]);
        for part in std::iter::once(&tenant).chain(parts) {
            hash.update(part.len().to_be_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    fn opened(purpose: Purpose, tenant: &TenantId, sealed: &[u8]) -> Self {
        Self::of(purpose as u8, tenant, &[sealed])
    }

    /// Names the making of a lease (`number` 0), or its proof.
    fn lease(tenant: &TenantId, config: KmsConfigId, number: i32) -> Self {
        let (config, number) = (config.number().to_be_bytes(), number.to_be_bytes());
        Self::of(b'L', tenant, &[&config, &number])
    }

    fn spread(&self) -> u8 {
        let [first, ..] = self.0;
        first
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "KeyId({:08x})", u32::from_be_bytes([a, b, c, d]))
    }
}

/// What a waiting operation is told.
#[derive(Clone, Debug)]
enum Reply {
    /// Here is the key.
    Opened(Rc<Held>),
    /// The lease is there, or proven: look again.
    Leased,
    /// The KMS refuses.
    Refused(KmsError),
    /// The KMS could not be asked.
    Unavailable(KmsError),
    /// What came is of no use any more.
    Again,
    /// The home does not know the config as this operation does.
    ByYourself,
}

/// One shard's part of the keyring. The keys themselves are with their tenants ([`TenantKeys`]).
pub(crate) struct Keyring {
    peers: Peers<Message>,
    inbox: RefCell<Option<mailbox::Receiver<Message>>>,
    lives: Lifetimes,
    /// This shard's part of the wraps that one lease allows.
    wraps_max: u32,
    total: Rc<Cell<usize>>,
    names: RefCell<Names>,
    /// Answers to questions of an older generation are void.
    generation: Cell<u64>,
    waiting: RefCell<ById<Waiting>>,
    /// As home: what is being asked, and by which shards.
    flights: RefCell<ById<Vec<usize>>>,
}

/// Operations of this shard that wait for one answer.
#[derive(Debug)]
struct Waiting {
    /// Should the answer be lost, others ask again after this.
    until: Instant,
    operations: Vec<oneshot::Sender<Reply>>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring")
            .field("held", &self.total.get())
            .finish_non_exhaustive()
    }
}

impl Keyring {
    pub(crate) fn new(exchange: Exchange<Message>, limits: &Limits) -> Self {
        let Exchange { peers, inbox } = exchange;
        let shards = u32::try_from(peers.len()).unwrap_or(u32::MAX).max(1);
        Self {
            peers,
            inbox: RefCell::new(Some(inbox)),
            lives: Lifetimes::of(limits),
            wraps_max: (limits.lease_wraps_max / shards).max(1),
            total: Rc::default(),
            names: RefCell::new(Names::new()),
            generation: Cell::new(0),
            waiting: RefCell::default(),
            flights: RefCell::default(),
        }
    }

    /// The count of opened keys, which every tenant's table shares.
    pub(crate) fn total(&self) -> &Rc<Cell<usize>> {
        &self.total
    }

    fn home(&self, tenant: &TenantId) -> usize {
        // The same on every shard: this hasher has no seed.
        let mut hash = DefaultHasher::new();
        hash.write(tenant.as_str().as_bytes());
        self.peers.home(hash.finish())
    }

    /// Puts a question to the tenant's home. Tells whether there was room for it.
    fn ask(
        &self,
        id: KeyId,
        tenant: &TenantId,
        config: &KmsHandle,
        want: Want,
        deadline: Instant,
    ) -> bool {
        let ask = Ask {
            from: self.peers.index,
            id,
            tenant: tenant.clone(),
            config: config.id,
            fingerprint: config.fingerprint,
            deadline,
            want,
        };
        self.peers
            .send(self.home(tenant), Message::Ask(Box::new(ask)))
            .is_ok()
    }

    /// Puts a question to the tenant's home, unless it has been put, and waits for the answer.
    async fn ask_and_wait<R: Rt>(
        &self,
        core: &Core<R>,
        (id, tenant, config): (KeyId, &TenantId, &KmsHandle),
        want: impl FnOnce() -> Want,
        deadline: Instant,
    ) -> Reply {
        let now = core.rt.now();
        let (give, answer) = oneshot::channel();
        let asked = {
            let mut waiting = self.waiting.borrow_mut();
            match waiting.get_mut(&id).filter(|waiting| now < waiting.until) {
                Some(waiting) => {
                    waiting.operations.push(give);
                    true
                }
                None => {
                    // Those of a question whose answer was lost wait on for this one.
                    let entry = waiting.entry(id).or_insert_with(|| Waiting {
                        until: now,
                        operations: Vec::new(),
                    });
                    entry.until = deadline + ANSWER_SLACK;
                    entry.operations.push(give);
                    false
                }
            }
        };
        if !asked && !self.ask(id, tenant, config, want(), deadline) {
            self.tell(&id, &Reply::ByYourself);
        }
        match core.by(deadline + ANSWER_SLACK, answer).await {
            Some(Ok(reply)) => reply,
            Some(Err(_)) | None => {
                let (operation, retry) = (KmsOperation::Unwrap, Retry::No);
                let kind = config.kms.as_ref().map(|kms| kms.kind());
                kind.map_or(Reply::ByYourself, |kind| {
                    let why = "no answer came before the operation's deadline";
                    Reply::Unavailable(KmsError::unreachable(
                        kind,
                        operation,
                        retry,
                        Blame::Kms,
                        why,
                    ))
                })
            }
        }
    }

    fn tell(&self, id: &KeyId, reply: &Reply) {
        let waiting = self.waiting.borrow_mut().remove(id);
        for operation in waiting
            .map(|waiting| waiting.operations)
            .unwrap_or_default()
        {
            // Nobody may wait any more.
            let _gone = operation.send(reply.clone());
        }
    }

    /// Takes in what a home has found out.
    fn learn<R: Rt>(&self, core: &Core<R>, answer: &Answer) {
        let id = &answer.id;
        let void = answer.generation < self.generation.get();
        let view = core.slot.load();
        let place = view.as_ref().and_then(|view| {
            let tenant = view.tenant(answer.tenant.as_str())?;
            let config = tenant.active(answer.config.number())?;
            (config.fingerprint == answer.fingerprint).then_some((tenant, config))
        });
        let reply = match (&answer.outcome, place) {
            (Outcome::ByYourself, _) => Reply::ByYourself,
            _ if void => Reply::Again,
            (Outcome::Refused(why), place) => {
                if let Some((tenant, _)) = place {
                    match answer.lease {
                        Some(number) => tenant.keys.drop_lease(answer.config, number),
                        None => tenant.keys.remove(id),
                    }
                }
                Reply::Refused(why.clone())
            }
            (Outcome::Unavailable(why), place) => {
                if let Some((tenant, config)) = place {
                    let now = core.rt.now();
                    match tenant
                        .keys
                        .lease(config.id)
                        .filter(|_| answer.lease.is_some())
                    {
                        Some(lease) => lease.proof.left_open(now),
                        None => {
                            if let Some(held) = tenant.keys.get(id) {
                                held.proof.left_open(now);
                            }
                        }
                    }
                }
                Reply::Unavailable(why.clone())
            }
            (Outcome::Opened(_) | Outcome::Leased(_) | Outcome::LeaseProven, None) => Reply::Again,
            (Outcome::Opened(key), Some((tenant, _))) => {
                Reply::Opened(self.take_in(core, tenant, answer, key))
            }
            (Outcome::Leased(lease), Some((tenant, config))) => {
                if config.leasing_allowed {
                    let times = (answer.at, core.rt.now());
                    let lease = ShardLease::new(Arc::clone(lease), id, times);
                    tenant.keys.put_lease(lease);
                }
                Reply::Leased
            }
            (Outcome::LeaseProven, Some((tenant, config))) => {
                let known = tenant.keys.lease(config.id);
                if let Some(lease) = known.filter(|known| Some(known.lease.number) == answer.lease)
                {
                    lease.proof.renew(answer.at);
                }
                Reply::Leased
            }
        };
        self.tell(id, &reply);
    }

    fn take_in<R: Rt>(
        &self,
        core: &Core<R>,
        tenant: &Tenant,
        answer: &Answer,
        key: &Arc<Key>,
    ) -> Rc<Held> {
        if let Some(held) = tenant.keys.get(&answer.id) {
            held.proof.renew(answer.at);
            return held;
        }
        let times = (answer.at, core.rt.now());
        let held = Held::new(
            Arc::clone(key),
            answer.config,
            answer.fingerprint,
            &answer.id,
            times,
        );
        if !tenant.keys.insert(answer.id, Rc::clone(&held), KEYS_MAX) {
            core.metrics.key_not_kept();
        }
        held
    }

    /// Drops what nobody used for long, or what is too old.
    pub(crate) fn sweep(&self, view: &View, metrics: &ShardMetrics, now: Instant) {
        let mut leases = 0;
        for tenant in view.tenants() {
            tenant.keys.sweep(now, &self.lives);
            leases += tenant.keys.len().1;
        }
        self.waiting.borrow_mut().retain(|_, waiting| {
            waiting
                .operations
                .retain(|operation| !operation.is_closed());
            !waiting.operations.is_empty()
        });
        metrics.keys_held(KeysHeld::Opened, self.total.get());
        metrics.keys_held(KeysHeld::Leases, leases);
    }
}

/// The shard's tasks: reads what the other shards write, and sweeps.
pub(crate) fn start<R: Rt>(core: &Rc<Core<R>>) {
    if let Some(mut inbox) = core.keyring.inbox.take() {
        let core = Rc::clone(core);
        let rt = core.rt.clone();
        rt.spawn(async move {
            while let Some(message) = inbox.recv().await {
                match message {
                    Message::Ask(ask) => home::asked(&core, *ask),
                    Message::Answer(answer) => core.keyring.learn(&core, &answer),
                    // All that was in the mailbox before it has been dealt with.
                    Message::Flush(done) => drop(done.send(())),
                }
            }
        });
    }
    let weak = Rc::downgrade(core);
    core.rt.spawn(async move {
        while let Some(core) = weak.upgrade() {
            if let Some(view) = core.slot.load() {
                core.keyring.sweep(&view, &core.metrics, core.rt.now());
            }
            let pause = core.rt.sleep(SWEEP_INTERVAL);
            drop(core);
            pause.await;
        }
    });
}

/// Drops all keys of a tenant on this shard, and makes void what is being asked. `done` hears of it when nothing from
/// before can come in any more.
pub(crate) fn forget<R: Rt>(
    core: &Rc<Core<R>>,
    tenant: &TenantId,
    generation: u64,
    done: oneshot::Sender<()>,
) {
    let keyring = &core.keyring;
    keyring
        .generation
        .set(keyring.generation.get().max(generation));
    if let Some(view) = core.slot.load()
        && let Some(tenant) = view.any_tenant(tenant.as_str())
    {
        tenant.keys.clear();
        core.tokens.forget(&tenant.credentials());
    }
    let core = Rc::clone(core);
    let rt = core.rt.clone();
    rt.spawn(async move {
        let peers = &core.keyring.peers;
        let flush = Message::Flush(done);
        peers.deliver(&core.rt, peers.index, flush).await;
    });
}

/// The key that `sealed`, a serialized EDEK of the tenant's, holds: from memory, or opened by the tenant's KMS. `now` may
/// be a moment old: a batch reads the clock once for several items.
///
/// # Errors
/// What the KMS says to it, or why `sealed` is none of the tenant's.
pub(crate) async fn open<R: Rt>(
    core: &Core<R>,
    tenant: &Tenant,
    purpose: Purpose,
    sealed: &[u8],
    (now, deadline): (Instant, Instant),
) -> Result<Rc<Held>, OpError> {
    let keyring = &core.keyring;
    let id = keyring.names.borrow_mut().of(purpose, &tenant.id, sealed);
    if let Some(held) = tenant.keys.get(&id) {
        let verdict = held.proof.verdict(now, &keyring.lives);
        if verdict == Verdict::ServeAndAsk {
            let (config, blob) = parts(tenant, sealed)?;
            let want = Want::Open(purpose, blob.into());
            keyring.ask(
                id,
                &tenant.id,
                config,
                want,
                now + core.limits.kms_operation_timeout,
            );
        }
        match verdict {
            Verdict::Serve | Verdict::ServeAndAsk => {
                core.metrics.key_use(KeyUse::hit(purpose));
                tenant.saved_a_call(&core.metrics);
                return Ok(held);
            }
            Verdict::AskAndWait => {}
            Verdict::Over => tenant.keys.remove(&id),
        }
    }
    // In a place of its own, so that what is held costs a request no room for what is not.
    Box::pin(fetch(core, tenant, purpose, (id, sealed), deadline)).await
}

/// Has the tenant's KMS open a key that is not held, or not for much longer.
async fn fetch<R: Rt>(
    core: &Core<R>,
    tenant: &Tenant,
    purpose: Purpose,
    (id, sealed): (KeyId, &[u8]),
    deadline: Instant,
) -> Result<Rc<Held>, OpError> {
    let keyring = &core.keyring;
    core.metrics.key_use(KeyUse::miss(purpose));
    let (config, blob) = parts(tenant, sealed)?;
    if config.kms.is_none() {
        return Err(OpError::KmsConfigBroken(config.id));
    }
    for _ in 0..ASKS_MAX {
        let want = || Want::Open(purpose, blob.into());
        let question = (id, &tenant.id, &**config);
        match keyring.ask_and_wait(core, question, want, deadline).await {
            Reply::Opened(held) => return Ok(held),
            Reply::Refused(why) => return Err(why.into()),
            Reply::Unavailable(why) => {
                // What the KMS opened before goes on to its longest age.
                let held = tenant.keys.get(&id);
                return held
                    .filter(|held| {
                        held.proof.verdict(core.rt.now(), &keyring.lives) != Verdict::Over
                    })
                    .ok_or_else(|| why.into());
            }
            Reply::Leased | Reply::Again => {}
            Reply::ByYourself => break,
        }
    }
    let at = core.rt.now();
    let key = dek::unwrap_key(core, tenant, config, blob, deadline).await?;
    let times = (at, core.rt.now());
    let key = Key::new(purpose, key);
    Ok(Held::new(key, config.id, config.fingerprint, &id, times))
}

/// The config that wrapped a key, and the blob that it made of it.
fn parts<'a>(
    tenant: &'a Tenant,
    sealed: &'a [u8],
) -> Result<(&'a Rc<KmsHandle>, &'a [u8]), OpError> {
    let edek =
        dek::read(tenant, sealed).map_err(|why| match matches!(why, OpError::InvalidEdek(_)) {
            true => OpError::InvalidLeasedEdek("Provided EDEK is leased, but holds no leased key."),
            false => why,
        })?;
    Ok((edek.config, edek.entry.encrypted_dek_data))
}

/// The lease under which to wrap for the tenant now. `None` if this one operation must ask the KMS by itself.
///
/// # Errors
/// What the KMS says to a new lease, or to the one there is.
pub(crate) async fn lease<R: Rt>(
    core: &Core<R>,
    tenant: &Tenant,
    config: &KmsHandle,
    deadline: Instant,
) -> Result<Option<Rc<ShardLease>>, OpError> {
    let keyring = &core.keyring;
    let mut hit = true;
    for _ in 0..ASKS_MAX {
        let now = core.rt.now();
        let known = tenant.keys.lease(config.id);
        let known = known.filter(|lease| lease.lease.fingerprint == config.fingerprint);
        let life = known
            .as_ref()
            .map(|lease| lease.life(now, &keyring.lives, keyring.wraps_max));
        let (number, wait) = match (&known, life) {
            (None, _) | (Some(_), None | Some(Life::Over)) => {
                (known.map_or(0, |lease| lease.lease.number), Wait::ForNew)
            }
            (Some(lease), Some(life)) => {
                let number = lease.lease.number;
                let background = now + core.limits.kms_operation_timeout;
                if life == Life::Ageing && lease.asks_for_next(now) {
                    let id = KeyId::lease(&tenant.id, config.id, 0);
                    keyring.ask(
                        id,
                        &tenant.id,
                        config,
                        Want::Lease { not: number },
                        background,
                    );
                }
                let verdict = lease.proof.verdict(now, &keyring.lives);
                if verdict == Verdict::ServeAndAsk {
                    let id = KeyId::lease(&tenant.id, config.id, number);
                    keyring.ask(id, &tenant.id, config, Want::Proof(number), background);
                }
                match verdict {
                    Verdict::Serve | Verdict::ServeAndAsk => {
                        return Ok(Some(serve(core, tenant, lease, hit)));
                    }
                    Verdict::AskAndWait => (number, Wait::ForProof),
                    Verdict::Over => {
                        tenant.keys.drop_lease(config.id, number);
                        (number, Wait::ForNew)
                    }
                }
            }
        };
        if hit {
            core.metrics.key_use(KeyUse::LeaseMiss);
        }
        hit = false;
        let (id, want) = match wait {
            Wait::ForNew => (0, Want::Lease { not: number }),
            Wait::ForProof => (number, Want::Proof(number)),
        };
        let id = KeyId::lease(&tenant.id, config.id, id);
        let question = (id, &tenant.id, config);
        let asking = keyring.ask_and_wait(core, question, || want, deadline);
        match Box::pin(asking).await {
            Reply::Leased | Reply::Again | Reply::Opened(_) => {}
            Reply::Refused(why) => return Err(why.into()),
            Reply::Unavailable(why) => {
                let now = core.rt.now();
                let usable = |lease: &Rc<ShardLease>| {
                    lease.proof.verdict(now, &keyring.lives) != Verdict::Over
                        && lease.life(now, &keyring.lives, keyring.wraps_max) != Life::Over
                };
                return match tenant.keys.lease(config.id).filter(usable) {
                    Some(lease) => Ok(Some(serve(core, tenant, &lease, false))),
                    None => Err(why.into()),
                };
            }
            Reply::ByYourself => return Ok(None),
        }
    }
    Ok(None)
}

enum Wait {
    ForNew,
    ForProof,
}

fn serve<R: Rt>(
    core: &Core<R>,
    tenant: &Tenant,
    lease: &Rc<ShardLease>,
    hit: bool,
) -> Rc<ShardLease> {
    lease.used();
    if hit {
        core.metrics.key_use(KeyUse::LeaseHit);
        tenant.saved_a_call(&core.metrics);
    }
    Rc::clone(lease)
}
