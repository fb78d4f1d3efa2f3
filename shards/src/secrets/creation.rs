//! How a path gets its secret: made once per process, at the tenant's home shard, and stored where all proxies agree.
//!
//! Whoever needs a secret that no snapshot has asks the tenant's home by mailbox. The home makes 32 random bytes, has
//! the tenant's KMS wrap them, and offers the result to the control plane, which stores it unless the path has a current
//! secret by then, and answers with the one that counts: perhaps another proxy's. Until a snapshot brings it to every
//! shard, the home remembers it and answers who asks.

use std::{
    cell::RefCell,
    collections::HashMap,
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::Sender;
use tokio::sync::oneshot;
use tsp_rt::{Rt, mailbox};
use tsp_wire::{TenantId, derive::SecretType, edek, snapshot::TenantSecretDoc};

use super::TenantSecret;
use crate::{
    dek,
    error::OpError,
    metrics::{KeyOperation, SecretCreation},
    shard::Core,
    snapshot::View,
};

/// Askers that may wait at one home shard for its next turn. It has one in less than a millisecond; what does not fit is
/// told to come back.
const ASKS_MAX: usize = 4_096;

/// Longest wait for the control plane to store a secret: a hundred times what a slow disk takes. Whoever holds the lock
/// of a file of secrets for longer has stopped.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

/// Secrets that a home remembers at most. They are forgotten together then: the control plane would be asked again, and
/// answer the same.
const REMEMBERED_MAX: usize = 10_000;

/// How long the home remembers a secret that no snapshot brings.
const REMEMBERED: Duration = Duration::from_secs(60);

/// A new tenant secret, for the control plane to store unless its path has a current one by then.
#[derive(Debug)]
pub struct SecretOffer {
    /// Whose it is.
    pub tenant: TenantId,
    /// What keys are derived for.
    pub secret_type: SecretType,
    /// The path that chooses it.
    pub path: Box<str>,
    /// The secret as the tenant's KMS wrapped it: an EDEK, as bytes.
    pub edek: Vec<u8>,
    /// Takes the path's current secret once that is stored for good: this one, or the one that was there before.
    pub reply: oneshot::Sender<Result<TenantSecretDoc, SecretNotStored>>,
}

/// The control plane could not store a secret. Its log says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecretNotStored;

/// Why a tenant secret was not created.
#[derive(Clone, Debug)]
pub(crate) enum CreationError {
    /// The tenant's KMS or its configuration: the new secret could not be wrapped.
    Wrap(Arc<OpError>),
    /// Us, or the place where secrets are kept: it could not be stored.
    NotStored,
    /// Us: too many wait for the same.
    Busy,
    /// Us, or the place where secrets are kept: it took too long.
    Late,
}

impl fmt::Display for CreationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wrap(why) => write!(f, "{why}"),
            Self::NotStored => {
                f.write_str("the proxy could not store it; the proxy's log says why.")
            }
            Self::Busy => f.write_str("the proxy has too many of them under way; try again."),
            Self::Late => f.write_str("it was not stored in time; try again."),
        }
    }
}

/// Which secret is to be created.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    tenant: TenantId,
    secret_type: SecretType,
    path: Box<str>,
}

type Answer = Result<Arc<TenantSecret>, CreationError>;

/// What a shard asks a tenant's home.
#[derive(Debug)]
struct Ask {
    place: Place,
    reply: oneshot::Sender<Answer>,
}

/// One shard's ends of the mailboxes between all of them.
#[derive(Debug)]
pub(crate) struct Home {
    peers: Arc<[mailbox::Sender<Ask>]>,
    asks: mailbox::Receiver<Ask>,
}

impl Home {
    /// Mailboxes for `shards` shards.
    pub(crate) fn among(shards: usize) -> Vec<Self> {
        let (peers, asks): (Vec<_>, Vec<_>) =
            (0..shards).map(|_| mailbox::bounded(ASKS_MAX)).unzip();
        let peers: Arc<[_]> = peers.into();
        let home = |asks| Self {
            peers: Arc::clone(&peers),
            asks,
        };
        asks.into_iter().map(home).collect()
    }

    /// Serves the shards that ask for secrets of the tenants whose home this is.
    pub(crate) async fn serve<R: Rt>(self, core: Rc<Core<R>>) {
        let mut asks = self.asks;
        while let Some(ask) = asks.recv().await {
            asked(&core, ask);
        }
    }
}

/// One shard's part in creating secrets: it asks for all tenants, and creates for those whose home it is.
pub(crate) struct Creation {
    homes: Arc<[mailbox::Sender<Ask>]>,
    offers: Sender<SecretOffer>,
    /// Who waits for what is being created here.
    under_way: RefCell<HashMap<Place, Vec<oneshot::Sender<Answer>>>>,
    /// What was created here and is in no snapshot yet, and when.
    created: RefCell<HashMap<Place, (Arc<TenantSecret>, Instant)>>,
}

impl fmt::Debug for Creation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Creation")
            .field("under_way", &self.under_way.borrow().len())
            .finish_non_exhaustive()
    }
}

impl Creation {
    pub(crate) fn new(home: &Home, offers: Sender<SecretOffer>) -> Self {
        Self {
            homes: Arc::clone(&home.peers),
            offers,
            under_way: RefCell::default(),
            created: RefCell::default(),
        }
    }

    /// The current secret of a path for which `core`'s snapshot has none: created if it must be. Ends by `deadline`.
    ///
    /// # Errors
    /// Why there is still none.
    pub(crate) async fn current<R: Rt>(
        core: &Core<R>,
        tenant: &TenantId,
        secret_type: SecretType,
        path: &str,
        deadline: Instant,
    ) -> Result<Arc<TenantSecret>, CreationError> {
        let (reply, answer) = oneshot::channel();
        let place = Place {
            tenant: tenant.clone(),
            secret_type,
            path: path.into(),
        };
        let homes = &core.creation.homes;
        homes
            .get(home_of(tenant, homes.len()))
            .and_then(|home| home.send(Ask { place, reply }).ok())
            .ok_or(CreationError::Busy)?;
        match core.by(deadline, answer).await {
            Some(Ok(answer)) => answer,
            // Its task died, or nobody answered.
            Some(Err(_)) | None => Err(CreationError::Late),
        }
    }

    /// Forgets what `view` has by now.
    pub(crate) fn settle(&self, view: &View, now: Instant) {
        self.created.borrow_mut().retain(|place, (secret, since)| {
            let known = view
                .secrets
                .path(&place.tenant, place.secret_type, &place.path);
            let known = known
                .into_iter()
                .flat_map(|path| [&path.current, &path.in_rotation])
                .flatten()
                .any(|known| known.id == secret.id);
            !known && now.saturating_duration_since(*since) < REMEMBERED
        });
    }
}

/// The shard that creates `tenant`'s secrets.
fn home_of(tenant: &TenantId, shards: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    tenant.hash(&mut hasher);
    let shards = u64::try_from(shards).unwrap_or(1).max(1);
    usize::try_from(hasher.finish() % shards).unwrap_or(0)
}

/// As the tenant's home: answers, or lets the asker wait for what is under way or begins now.
fn asked<R: Rt>(core: &Rc<Core<R>>, ask: Ask) {
    let Ask { place, reply } = ask;
    if let Some(secret) = known(core, &place) {
        // Who asked may have left.
        drop(reply.send(Ok(secret)));
        return;
    }
    let mut under_way = core.creation.under_way.borrow_mut();
    if let Some(waiters) = under_way.get_mut(&place) {
        waiters.push(reply);
        return;
    }
    under_way.insert(place.clone(), vec![reply]);
    drop(under_way);
    let core = Rc::clone(core);
    core.rt.clone().spawn(async move {
        let under_way = UnderWay {
            creation: &core.creation,
            place: &place,
        };
        let answer = create(&core, &place).await;
        match &answer {
            Ok((secret, how)) => {
                core.metrics.secret_creation(*how);
                let remembered = (Arc::clone(secret), core.rt.now());
                let mut created = core.creation.created.borrow_mut();
                if created.len() >= REMEMBERED_MAX {
                    created.clear();
                }
                created.insert(place.clone(), remembered);
            }
            Err(why) => {
                core.metrics.secret_creation(SecretCreation::Failed);
                tracing::warn!(
                    tenant_id = %place.tenant,
                    secret_type = %place.secret_type,
                    "a tenant secret could not be created: {why}"
                );
            }
        }
        under_way.end(&answer.map(|(secret, _)| secret));
    });
}

/// The place's current secret, if it is in this shard's snapshot, which may be newer than the asker's, or was created
/// here a moment ago.
fn known<R: Rt>(core: &Core<R>, place: &Place) -> Option<Arc<TenantSecret>> {
    let view = core.slot.load();
    let in_view = view.as_ref().and_then(|view| {
        let path = &place.path;
        let path = view.secrets.path(&place.tenant, place.secret_type, path)?;
        path.current.clone()
    });
    in_view.or_else(|| {
        let created = core.creation.created.borrow();
        let (secret, since) = created.get(place)?;
        let age = core.rt.now().saturating_duration_since(*since);
        (age < REMEMBERED).then(|| Arc::clone(secret))
    })
}

/// A creation under way. However it ends, the next ask begins a new one.
struct UnderWay<'a> {
    creation: &'a Creation,
    place: &'a Place,
}

impl UnderWay<'_> {
    fn end(self, answer: &Answer) {
        let waiters = self.creation.under_way.borrow_mut().remove(self.place);
        for waiter in waiters.into_iter().flatten() {
            drop(waiter.send(answer.clone()));
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        // Those who wait hear that nobody will answer.
        self.creation.under_way.borrow_mut().remove(self.place);
    }
}

async fn create<R: Rt>(
    core: &Rc<Core<R>>,
    place: &Place,
) -> Result<(Arc<TenantSecret>, SecretCreation), CreationError> {
    let wrap = |why: OpError| CreationError::Wrap(Arc::new(why));
    let view = core.slot.load().ok_or_else(|| wrap(OpError::NotReady))?;
    let tenant = view
        .tenant(place.tenant.as_str())
        .ok_or_else(|| wrap(OpError::UnknownTenant))?;
    let config = dek::primary(tenant).map_err(wrap)?;
    let deadline = core.rt.now() + core.limits.kms_operation_timeout;
    let blob = {
        let secret = dek::generate(&core.rt);
        let wrapped = dek::wrap_key(core, tenant, config, &secret, deadline).await;
        wrapped.map_err(wrap)?
    };
    core.metrics.key_operation(KeyOperation::SecretWrap);
    let edek = edek::encode_unleased(config.id, &blob);
    let (reply, stored) = oneshot::channel();
    let offer = SecretOffer {
        tenant: place.tenant.clone(),
        secret_type: place.secret_type,
        path: place.path.clone(),
        edek: edek.clone(),
        reply,
    };
    let offered = core.creation.offers.try_send(offer);
    offered.map_err(|_| CreationError::Busy)?;
    let stored = match core.by(core.rt.now() + STORE_TIMEOUT, stored).await {
        Some(Ok(stored)) => stored.map_err(|SecretNotStored| CreationError::NotStored)?,
        Some(Err(_)) => return Err(CreationError::NotStored),
        None => return Err(CreationError::Late),
    };
    let secret = TenantSecret::from_doc(&stored).map_err(|why| {
        tracing::error!("tenant secret {} cannot be used: {why}", stored.id);
        CreationError::NotStored
    })?;
    let how = if stored.edek == edek {
        tracing::info!(
            tenant_id = %place.tenant,
            secret_type = %place.secret_type,
            tenant_secret_id = secret.id.number(),
            kms_config_id = config.id.number(),
            "tenant secret created"
        );
        SecretCreation::Created
    } else {
        SecretCreation::Found
    };
    Ok((Arc::new(secret), how))
}
