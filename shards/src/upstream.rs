//! Calls to the tenants' KMSs: per shard and endpoint a bounded pool of kept connections, deadlines, one retry.
//!
//! What must stay true:
//! - A call runs in its caller's task. When the caller goes away it goes on in one of its own, so that this costs no
//!   connection.
//! - A kept connection is looked at before it is used (closed, idle for too long, unread bytes), unless it was in use just
//!   now. One that dies all the same before its first answer byte is replaced by a fresh one at once, which does not count
//!   as a retry: every call we make is safe to repeat.
//! - Every wait ends by the operation's deadline.

mod dial;
mod error;
mod exchange;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fmt,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};

use tsp_kms::{
    Endpoint, HttpAnswer, HttpRequest, Kms, KmsError, KmsErrorKind, KmsOperation, RemoteKms, Retry,
    Session, Token, TokenCall,
};
use tsp_rt::{
    Rt, Staleness, Stream as _,
    tls::{ClientTls, MaybeTls},
};
use tsp_wire::destinations::{Destinations, Forbidden};

pub(crate) use self::{
    dial::{Dialer, client_tls, secure},
    error::CallError,
    exchange::{Answer, Unanswered, exchange},
};
use crate::{
    admission::TenantNumber,
    breaker::{Breaker, RetryBudget},
    buffers::Buffers,
    limits::{Limits, WARNING_INTERVAL},
    metrics::{RefusedBy, ShardMetrics},
    places::{Places, Turn},
    snapshot::{KmsHandle, KmsState, Tenant},
    tokens::Tokens,
    trace::{At, Tracer},
};

/// How long a resolved name is used: as long as the clouds' own records live at least.
const ADDRESS_LIFE: Duration = Duration::from_secs(30);

/// How long an endpoint's pool is kept after its last call: beyond its connections it knows TLS sessions to resume, and
/// whether nothing can be connected to. Servers take sessions back for hours; a pool without connections takes some KiB.
const POOL_LIFE: Duration = Duration::from_secs(3600);

/// Longest random pause before the retry of a call that failed in passing.
const TRANSIENT_PAUSE_MAX: Duration = Duration::from_millis(50);

/// Longest random pause before the retry of a throttled call that came without a hint.
const THROTTLED_PAUSE_MAX: Duration = Duration::from_secs(1);

/// What a call is doing while it has no connection.
const CONNECTING: &str = "connecting";

/// What a call was doing when the KMS itself was late.
const WAITING_FOR_ANSWER: &str = "waiting for the KMS";

/// A connection that was in use within this time is not looked at once more, which takes a system call: nobody closes what
/// has just answered, unless the answer says so. On a busy shard that is nearly all of them.
const LOOKED_AT_AFTER: Duration = Duration::from_millis(100);

/// All pools of one shard.
pub(crate) struct Upstream<R: Rt> {
    rt: R,
    tracer: Rc<Tracer<R>>,
    dialer: Dialer<R>,
    limits: Rc<Limits>,
    metrics: Arc<ShardMetrics>,
    /// For answers alone, so that all of them have the size of one.
    buffers: Buffers,
    pools: RefCell<HashMap<Endpoint, Rc<Pool<R>>>>,
}

impl<R: Rt> fmt::Debug for Upstream<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("pools", &self.pools.borrow().len())
            .finish()
    }
}

/// One operation at a KMS: for whom, with which key, how to ask, and how to read the answer.
pub(crate) struct Operation<'a, B, A> {
    pub(crate) tenant: &'a Tenant,
    pub(crate) config: &'a KmsHandle,
    pub(crate) kms: &'a Arc<Kms>,
    pub(crate) remote: &'a dyn RemoteKms,
    pub(crate) operation: KmsOperation,
    pub(crate) request: B,
    pub(crate) answer: A,
}

impl<R: Rt> Upstream<R> {
    pub(crate) fn new(
        rt: R,
        tracer: Rc<Tracer<R>>,
        limits: Rc<Limits>,
        metrics: Arc<ShardMetrics>,
        destinations: Arc<Destinations>,
    ) -> Self {
        Self {
            dialer: Dialer::new(rt.clone(), destinations),
            rt,
            tracer,
            limits,
            metrics,
            buffers: Buffers::default(),
            pools: RefCell::default(),
        }
    }

    /// Runs one operation at a KMS: one call, and one more where the error says that it may help and the config's
    /// budget for second tries allows it.
    ///
    /// # Errors
    /// What the last call met.
    pub(crate) async fn operate<T>(
        &self,
        tokens: &Rc<Tokens<R>>,
        operation: Operation<
            '_,
            impl Fn(Option<&Token>, &mut Session, SystemTime) -> Result<HttpRequest, KmsError>,
            impl Fn(&HttpAnswer<'_>) -> Result<T, KmsError>,
        >,
        deadline: Instant,
    ) -> Result<T, KmsError> {
        let deadline = deadline.min(self.rt.now() + self.limits.kms_operation_timeout);
        let state = &operation.config.state;
        let mut spent = None;
        loop {
            let token = tokens
                .get(operation.kms, operation.remote, deadline)
                .await?;
            let why = match self
                .attempt(&operation, token.as_deref(), spent.is_some(), deadline)
                .await
            {
                Ok(value) => {
                    state.retries.earn(spent);
                    return Ok(value);
                }
                Err(why) if spent.is_some() => return Err(why),
                Err(why) => why,
            };
            let (price, pause) = match why.retry() {
                Retry::No | Retry::Later { .. } => return Err(why),
                Retry::AfterNewToken => match &token {
                    Some(token) => {
                        tokens.refused(operation.remote, token, &why);
                        (0, Duration::ZERO)
                    }
                    None => return Err(why),
                },
                Retry::Transient => (
                    RetryBudget::TRANSIENT,
                    self.random_pause(TRANSIENT_PAUSE_MAX),
                ),
                Retry::Throttled { after } => {
                    let pause = after.unwrap_or_else(|| self.random_pause(THROTTLED_PAUSE_MAX));
                    (RetryBudget::THROTTLED, pause)
                }
                Retry::AfterClockRepair { .. } => {
                    if !state.session.borrow_mut().repair(&why) {
                        return Err(why);
                    }
                    (0, Duration::ZERO)
                }
            };
            let late = deadline.saturating_duration_since(self.rt.now()) <= pause;
            if late {
                return Err(why);
            }
            spent = state.retries.spend(price);
            if spent.is_none() {
                return Err(why);
            }
            if !pause.is_zero() {
                self.rt.sleep(pause).await;
            }
            self.metrics.kms_retry();
        }
    }

    async fn attempt<T>(
        &self,
        operation: &Operation<
            '_,
            impl Fn(Option<&Token>, &mut Session, SystemTime) -> Result<HttpRequest, KmsError>,
            impl Fn(&HttpAnswer<'_>) -> Result<T, KmsError>,
        >,
        token: Option<&Arc<Token>>,
        again: bool,
        deadline: Instant,
    ) -> Result<T, KmsError> {
        let (kind, which) = (operation.remote.kind(), operation.operation);
        let state = &operation.config.state;
        let began = self.rt.now();
        if !state.breaker.allows(began) {
            return Err(CallError::Down.to_kms_error(kind, which));
        }
        let request = {
            let mut session = state.session.borrow_mut();
            (operation.request)(
                token.map(|token| &**token),
                &mut session,
                self.rt.wall_now(),
            )?
        };
        let endpoint = operation.remote.endpoint();
        let recorded = self.tracer.attempt(|| At {
            tenant: operation.tenant,
            config: operation.config.id,
            kms: kind,
            operation: which,
            host: (&endpoint.host, endpoint.port),
            again,
        });
        let request = match &recorded {
            None => request,
            Some(recorded) => recorded.mark(request),
        };
        let tenant = operation.tenant.load.number;
        let is_probe = state.breaker.is_open();
        let gate = (!is_probe).then(|| Rc::clone(state));
        let called = self.call(tenant, endpoint, request, deadline, gate).await;
        let now = self.rt.now();
        let status = called.as_ref().ok().map(Answer::status);
        self.metrics.kms_request(which, kind, status, now - began);
        let result = match called {
            Ok(answer) => {
                let result = (operation.answer)(&answer.read());
                match &result {
                    Err(why) if why.kind() == KmsErrorKind::Unreachable => {
                        state.breaker.failed(now)
                    }
                    Ok(_) | Err(_) => state.breaker.succeeded(),
                }
                result
            }
            Err(why) => {
                if why.is_the_keys_own() {
                    state.breaker.failed(now);
                }
                Err(why.to_kms_error(kind, which))
            }
        };
        if let Some(recorded) = recorded {
            recorded.ended(status, result.as_ref().err().map(KmsError::kind));
        }
        result
    }

    /// Fetches a token of `remote`'s credential with `call`.
    ///
    /// # Errors
    /// What the token endpoint said, or that there was no answer.
    pub(crate) async fn token(
        &self,
        remote: &dyn RemoteKms,
        call: TokenCall,
        deadline: Instant,
    ) -> Result<Token, KmsError> {
        let (kind, which) = (remote.kind(), KmsOperation::Token);
        let began = self.rt.now();
        // For all tenants alike, so it counts as nobody's.
        let called = self
            .call(
                TenantNumber::NOBODY,
                &call.endpoint,
                call.request,
                deadline,
                None,
            )
            .await;
        let status = called.as_ref().ok().map(Answer::status);
        self.metrics
            .kms_request(which, kind, status, self.rt.now() - began);
        let answer = called.map_err(|why| why.to_kms_error(kind, which))?;
        remote.read_token(&answer.read(), self.rt.wall_now())
    }

    fn random_pause(&self, max: Duration) -> Duration {
        let mut random = [0; 4];
        self.rt.random(&mut random);
        max.mul_f64(f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX))
    }

    /// Calls an endpoint. A call that has to wait for a connection does not go out any more if the breaker of its key's
    /// config (`gate`) has opened by then: many wait when a key hangs, and each would only hang too.
    async fn call(
        &self,
        tenant: TenantNumber,
        endpoint: &Endpoint,
        request: HttpRequest,
        deadline: Instant,
        gate: Option<Rc<KmsState>>,
    ) -> Result<Answer, CallError> {
        let pool = self.pool(endpoint)?;
        let (metrics, limit) = (&self.metrics, RefusedBy::KmsWaitersMax);
        let turn = pool.places.take(tenant).map_err(|_| {
            metrics.refused(limit);
            CallError::TooManyWaiters
        })?;
        let exchange = async move { pool.exchange(turn, request, deadline, gate).await };
        SeenThrough::new(self.rt.clone(), exchange).await
    }

    fn pool(&self, endpoint: &Endpoint) -> Result<Rc<Pool<R>>, CallError> {
        let mut pools = self.pools.borrow_mut();
        let now = self.rt.now();
        if let Some(pool) = pools.get(endpoint) {
            pool.asked.set(now);
            return Ok(Rc::clone(pool));
        }
        let pool = Rc::new(Pool {
            rt: self.rt.clone(),
            tls: client_tls(endpoint)?,
            endpoint: endpoint.clone(),
            metrics: Arc::clone(&self.metrics),
            idle: RefCell::default(),
            places: Places::new(
                self.limits.kms_connections_max,
                self.limits.kms_tenant_connections_max,
                self.limits.kms_waiters_max,
            ),
            breaker: Breaker::default(),
            addresses: RefCell::default(),
            connects: Cell::new(0),
            asked: Cell::new(now),
            warned: Cell::new(None),
            dialer: self.dialer.clone(),
            limits: Rc::clone(&self.limits),
            buffers: self.buffers.clone(),
        });
        pools.insert(endpoint.clone(), Rc::clone(&pool));
        Ok(pool)
    }

    /// Closes the connections that have been idle, and forgets the pools that nobody has asked for long, so that endpoints
    /// no longer configured cost nothing.
    pub(crate) fn sweep(&self) {
        let now = self.rt.now();
        self.pools.borrow_mut().retain(|_, pool| {
            let mut idle = pool.idle.borrow_mut();
            idle.retain(|kept| now.duration_since(kept.since) < self.limits.kms_idle_timeout);
            let fresh = now.duration_since(pool.asked.get()) < POOL_LIFE;
            fresh || !idle.is_empty() || pool.places.in_use()
        });
    }
}

/// Work that comes to its end even if nobody waits for it any more: it then goes on in a task of its own.
struct SeenThrough<R: Rt, F: Future + 'static> {
    rt: R,
    /// Until it has ended.
    work: Option<Pin<Box<F>>>,
}

impl<R: Rt, F: Future + 'static> SeenThrough<R, F> {
    fn new(rt: R, work: F) -> Self {
        let work = Some(Box::pin(work));
        Self { rt, work }
    }
}

impl<R: Rt, F: Future + 'static> Future for SeenThrough<R, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Some(work) = &mut self.work else {
            // It has given its value, and may not be asked again.
            return Poll::Pending;
        };
        let polled = work.as_mut().poll(cx);
        if polled.is_ready() {
            self.work = None;
        }
        polled
    }
}

// The work is pinned where it lies, and nothing else is.
impl<R: Rt, F: Future + 'static> Unpin for SeenThrough<R, F> {}

impl<R: Rt, F: Future + 'static> Drop for SeenThrough<R, F> {
    fn drop(&mut self) {
        // A panic of the work itself comes by here, too; such work must not be polled again.
        if let Some(work) = self.work.take()
            && !std::thread::panicking()
        {
            self.rt.spawn(async move { drop(work.await) });
        }
    }
}

/// Connections to one endpoint, for one shard.
struct Pool<R: Rt> {
    rt: R,
    dialer: Dialer<R>,
    endpoint: Endpoint,
    tls: Option<ClientTls>,
    limits: Rc<Limits>,
    buffers: Buffers,
    metrics: Arc<ShardMetrics>,
    /// Last in, first out: the rest grow old and are closed.
    idle: RefCell<Vec<Kept<R>>>,
    places: Places,
    /// Opens when no connection can be made.
    breaker: Breaker,
    addresses: RefCell<Option<(Vec<SocketAddr>, Instant)>>,
    connects: Cell<usize>,
    /// When it was last asked for.
    asked: Cell<Instant>,
    /// When the operator was last told that the endpoint leads to where it may not.
    warned: Cell<Option<Instant>>,
}

/// A connection between two calls.
struct Kept<R: Rt> {
    line: Line<R>,
    since: Instant,
}

/// A connection, and a look at its socket.
struct Line<R: Rt> {
    stream: MaybeTls<R::Stream>,
    staleness: Staleness,
}

impl<R: Rt> Pool<R> {
    async fn exchange(
        &self,
        turn: Turn,
        request: HttpRequest,
        deadline: Instant,
        gate: Option<Rc<KmsState>>,
    ) -> Result<Answer, CallError> {
        let _place = self
            .by(deadline, "waiting for a connection", turn.place())
            .await?
            .ok_or(CallError::Broken)?;
        if gate.is_some_and(|gate| gate.breaker.is_open()) {
            return Err(CallError::Down);
        }
        let attempt_ends = |now: Instant| deadline.min(now + self.limits.kms_attempt_timeout);
        let now = self.rt.now();
        if let Some(line) = self.kept(now) {
            match self
                .by(
                    attempt_ends(now),
                    WAITING_FOR_ANSWER,
                    self.send(line, &request),
                )
                .await?
            {
                Err(Unanswered {
                    why: CallError::CutOff,
                    before_first_byte: true,
                }) => self.metrics.kms_resent(),
                result => return result.map_err(|unanswered| unanswered.why),
            }
        }
        // In a place of its own: it is rare, and large, and would make every call's task as large.
        let line = Box::pin(self.connect(deadline)).await?;
        self.by(
            attempt_ends(self.rt.now()),
            WAITING_FOR_ANSWER,
            self.send(line, &request),
        )
        .await?
        .map_err(|unanswered| unanswered.why)
    }

    /// Waits for `work`, but no longer than to `deadline`.
    async fn by<T>(
        &self,
        deadline: Instant,
        what: &'static str,
        work: impl Future<Output = T>,
    ) -> Result<T, CallError> {
        tsp_rt::by(&self.rt, deadline, work)
            .await
            .ok_or(CallError::Late(what))
    }

    /// The most recently used connection that is still good.
    fn kept(&self, now: Instant) -> Option<Line<R>> {
        loop {
            let kept = self.idle.borrow_mut().pop()?;
            let idle = now.saturating_duration_since(kept.since);
            if idle >= self.limits.kms_idle_timeout {
                continue;
            }
            if idle <= LOOKED_AT_AFTER || !kept.line.staleness.is_stale() {
                return Some(kept.line);
            }
            self.metrics.kms_stale_connection();
        }
    }

    async fn connect(&self, deadline: Instant) -> Result<Line<R>, CallError> {
        let now = self.rt.now();
        if !self.breaker.allows(now) {
            return Err(CallError::Down);
        }
        let deadline = deadline.min(now + self.limits.kms_connect_timeout);
        let connected = self
            .by(deadline, CONNECTING, self.connect_to_any(deadline))
            .await;
        match &connected {
            Ok(Ok(_)) => self.breaker.succeeded(),
            // Nobody was asked, so nothing is known to be down.
            Ok(Err(CallError::Forbidden(why))) => self.warn_of(why),
            Ok(Err(_)) | Err(_) => {
                self.breaker.failed(self.rt.now());
                // The name may have moved.
                self.addresses.replace(None);
            }
        }
        let stream = connected??;
        let staleness = stream.staleness();
        self.metrics.kms_connected(stream.is_resumed());
        Ok(Line { stream, staleness })
    }

    /// Tells the operator, who may want to allow it or to know who tried it. The caller is not told the address.
    fn warn_of(&self, forbidden: &Forbidden) {
        let now = self.rt.now();
        let told = self.warned.get();
        if told.is_none_or(|told| now.duration_since(told) >= WARNING_INTERVAL) {
            self.warned.set(Some(now));
            let (host, address) = (&self.endpoint.host, forbidden.address);
            tracing::warn!(%host, %address, "{forbidden}; TSP_KMS_ALLOW_ADDRESSES decides");
        }
    }

    async fn connect_to_any(&self, deadline: Instant) -> Result<MaybeTls<R::Stream>, CallError> {
        let addresses = self.resolve().await?;
        let first = self.connects.get();
        self.connects.set(first.wrapping_add(1));
        let stream = self.dialer.connect(&addresses, first, deadline).await?;
        Ok(secure(stream, self.tls.as_ref(), &self.endpoint).await?)
    }

    async fn resolve(&self) -> Result<Vec<SocketAddr>, CallError> {
        let now = self.rt.now();
        if let Some((addresses, since)) = &*self.addresses.borrow()
            && now.duration_since(*since) < ADDRESS_LIFE
        {
            return Ok(addresses.clone());
        }
        let addresses = self.dialer.resolve(&self.endpoint).await?;
        self.addresses.replace(Some((addresses.clone(), now)));
        Ok(addresses)
    }

    async fn send(&self, mut line: Line<R>, request: &HttpRequest) -> Result<Answer, Unanswered> {
        let bytes_max = self.limits.kms_answer_bytes_max;
        let exchanged = exchange(&mut line.stream, request.bytes(), &self.buffers, bytes_max).await;
        let (answer, reusable) = exchanged?;
        if reusable {
            let since = self.rt.now();
            self.idle.borrow_mut().push(Kept { line, since });
        }
        Ok(answer)
    }
}
