//! Calls to the tenants' KMSs: per shard and endpoint a bounded pool of kept connections, deadlines, one retry.
//!
//! What must stay true:
//! - A call runs in a task of its own: a caller that goes away costs no connection.
//! - A kept connection is looked at before it is used (closed, idle for too long, unread bytes), unless it was in use just
//!   now. One that dies all the same before its first answer byte is replaced by a fresh one at once, which does not count
//!   as a retry: every call we make is safe to repeat.
//! - Every wait ends by the operation's deadline.

mod dial;
mod error;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fmt,
    future::Future,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    HeaderMap, Method, Request,
    body::{Body as _, Incoming},
    client::conn::http1::SendRequest,
};
use tokio::sync::oneshot;
use tsp_kms::{
    Endpoint, HttpAnswer, HttpRequest, Kms, KmsError, KmsErrorKind, KmsOperation, RemoteKms, Retry,
    Session, Token, TokenCall,
};
use tsp_rt::{
    Rt, Staleness, Stream as _,
    tls::{ClientTls, MaybeTls},
};
use zeroize::Zeroizing;

pub(crate) use self::{
    dial::{Dialer, client_tls, secure, speak_http},
    error::CallError,
};
use crate::{
    admission::TenantNumber,
    breaker::{Breaker, RetryBudget},
    destinations::{Destinations, Forbidden},
    limits::{Limits, WARNING_INTERVAL},
    metrics::{RefusedBy, ShardMetrics},
    places::{Places, Turn},
    snapshot::{KmsHandle, KmsState, Tenant},
    tokens::Tokens,
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

/// Longest wait for a connection to become ready again after its answer has been read.
const READY_WAIT_MAX: Duration = Duration::from_millis(100);

/// All pools of one shard.
pub(crate) struct Upstream<R: Rt> {
    rt: R,
    dialer: Dialer<R>,
    limits: Rc<Limits>,
    metrics: Arc<ShardMetrics>,
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
        limits: Rc<Limits>,
        metrics: Arc<ShardMetrics>,
        destinations: Arc<Destinations>,
    ) -> Self {
        Self {
            dialer: Dialer::new(rt.clone(), destinations),
            rt,
            limits,
            metrics,
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
            let why = match self.attempt(&operation, token.as_deref(), deadline).await {
                Ok(value) => {
                    state.retries.earn(spent);
                    return Ok(value);
                }
                Err(why) if spent.is_some() => return Err(why),
                Err(why) => why,
            };
            let (price, pause) = match why.retry() {
                Retry::No => return Err(why),
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
        let tenant = operation.tenant.load.number;
        let is_probe = state.breaker.is_open();
        let gate = (!is_probe).then(|| Rc::clone(state));
        let called = self
            .call(tenant, operation.remote.endpoint(), request, deadline, gate)
            .await;
        let now = self.rt.now();
        let status = called.as_ref().ok().map(|answer| answer.status);
        self.metrics.kms_request(which, kind, status, now - began);
        match called {
            Ok(answer) => {
                let result = (operation.answer)(&HttpAnswer {
                    status: answer.status,
                    headers: &answer.headers,
                    body: &answer.body,
                });
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
        }
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
        let status = called.as_ref().ok().map(|answer| answer.status);
        self.metrics
            .kms_request(which, kind, status, self.rt.now() - began);
        let answer = called.map_err(|why| why.to_kms_error(kind, which))?;
        let answer = HttpAnswer {
            status: answer.status,
            headers: &answer.headers,
            body: &answer.body,
        };
        remote.read_token(&answer, self.rt.wall_now())
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
        let (reply, answer) = oneshot::channel();
        self.rt.spawn(async move {
            // The caller may have gone; the connection is back in its pool then.
            drop(reply.send(pool.exchange(turn, request, deadline, gate).await));
        });
        // The sender is dropped without an answer only if the task panicked.
        answer.await.unwrap_or(Err(CallError::Broken))
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

/// What a KMS answered. The body may hold a key and is wiped.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Zeroizing<Vec<u8>>,
}

/// Connections to one endpoint, for one shard.
struct Pool<R: Rt> {
    rt: R,
    dialer: Dialer<R>,
    endpoint: Endpoint,
    tls: Option<ClientTls>,
    limits: Rc<Limits>,
    metrics: Arc<ShardMetrics>,
    /// Last in, first out: the rest grow old and are closed.
    idle: RefCell<Vec<Kept>>,
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
struct Kept {
    line: Line,
    since: Instant,
}

/// A connection: hyper's handle to send on it, and a look at its socket.
struct Line {
    sender: SendRequest<Full<Bytes>>,
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
        let request = Parts::new(request)?;
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
                    why: CallError::Http(_),
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
    fn kept(&self, now: Instant) -> Option<Line> {
        loop {
            let kept = self.idle.borrow_mut().pop()?;
            let idle = now.saturating_duration_since(kept.since);
            if idle >= self.limits.kms_idle_timeout {
                continue;
            }
            let stale = || idle > LOOKED_AT_AFTER && kept.line.staleness.is_stale();
            if kept.line.sender.is_ready() && !stale() {
                return Some(kept.line);
            }
            self.metrics.kms_stale_connection();
        }
    }

    async fn connect(&self, deadline: Instant) -> Result<Line, CallError> {
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
        let sender = speak_http(&self.rt, stream).await?;
        Ok(Line { sender, staleness })
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

    async fn send(&self, mut line: Line, request: &Parts) -> Result<Answer, Unanswered> {
        let sent = line.sender.send_request(request.to_hyper()).await;
        let response = sent.map_err(|why| Unanswered {
            why: CallError::Http(why),
            before_first_byte: true,
        })?;
        let after = |why| Unanswered {
            why,
            before_first_byte: false,
        };
        let (head, body) = response.into_parts();
        let body = read_body(body, self.limits.kms_answer_bytes_max)
            .await
            .map_err(after)?;
        // The connection becomes ready when its own task has run; one that does not is not kept.
        let ready = async { line.sender.ready().await.is_ok() };
        let since = self.rt.now();
        let ready = self.by(since + READY_WAIT_MAX, "", ready).await;
        if matches!(ready, Ok(true)) {
            self.idle.borrow_mut().push(Kept { line, since });
        }
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
        })
    }
}

/// An exchange that gave no whole answer.
struct Unanswered {
    why: CallError,
    before_first_byte: bool,
}

/// A request that can be sent twice. Its body may hold a key: it is wiped when the last copy goes.
pub(crate) struct Parts {
    path: hyper::Uri,
    headers: HeaderMap,
    body: Bytes,
}

impl Parts {
    pub(crate) fn new(request: HttpRequest) -> Result<Self, CallError> {
        let path = request.path.parse().map_err(|_| CallError::Broken)?;
        Ok(Self {
            path,
            headers: request.headers,
            body: Bytes::from_owner(request.body),
        })
    }

    pub(crate) fn to_hyper(&self) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.path.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }
}

pub(crate) async fn read_body(
    mut body: Incoming,
    bytes_max: usize,
) -> Result<Zeroizing<Vec<u8>>, CallError> {
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > bytes_max {
        return Err(CallError::AnswerTooLong);
    }
    // With its full size from the start the buffer never moves, and so leaves no copy behind.
    let chunked = body.size_hint().exact().is_none();
    let capacity = if chunked { bytes_max } else { announced };
    let mut whole = Zeroizing::new(Vec::with_capacity(capacity));
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(CallError::Http)?.into_data() {
            if whole.len() + data.len() > bytes_max {
                return Err(CallError::AnswerTooLong);
            }
            whole.extend_from_slice(&data);
        }
    }
    Ok(whole)
}
