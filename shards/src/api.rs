//! The HTTP API: route, API key, body; then one handler.
//!
//! The order of checks is part of the contract: API key, route, body, tenant, primary, EDEK, config, KMS.

mod batch;
mod body;
mod derive;
mod event;
mod rekey;
mod report;
mod unwrap;
mod wrap;

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Body as _, Incoming},
    header::{
        ALLOW, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, EXPECT, HeaderValue, RETRY_AFTER,
        USER_AGENT,
    },
    http::request::Parts,
};
use tokio::sync::oneshot;
use tsp_kms::KmsKind;
use tsp_rt::Rt;
use tsp_wire::{
    RayId, TspCode,
    api::{Metadata, SecretBuf, VOID},
};

pub(crate) use self::body::Body;

use crate::{
    buffers::Buffer,
    error::OpError,
    events::Reporter,
    keys::Caller,
    limits::RETRY_AFTER_S_MAX,
    metrics::Endpoint,
    shard::Core,
    snapshot::{Tenant, View},
};

/// What a handler gives back on success.
pub(crate) enum Answer {
    /// Status 200 with a body that holds keys.
    Keys(SecretBuf),
    /// Nothing to say: `null`, or no content for callers that would not read it.
    Done,
}

/// One request on its way through its handler.
pub(crate) struct Op<'a, R: Rt> {
    pub(crate) core: &'a Core<R>,
    pub(crate) view: &'a View,
    pub(crate) began: Instant,
    pub(crate) ray_id: RayId,
    pub(crate) caller: &'a Caller,
    /// The label of this request in the metrics; set when its tenant is known.
    pub(crate) kms_kind: &'a mut Option<KmsKind>,
}

impl<'a, R: Rt> Op<'a, R> {
    /// The tenant that the request names.
    pub(crate) fn tenant(&mut self, id: &str) -> Result<&'a Rc<Tenant>, OpError> {
        let tenant = self.other_tenant(id)?;
        *self.kms_kind = tenant.kms_kind();
        self.core.tracer.is_for(tenant);
        Ok(tenant)
    }

    /// A tenant that the request names besides its own. Whether there is one is not told to who may not act for it.
    pub(crate) fn other_tenant(&self, id: &str) -> Result<&'a Rc<Tenant>, OpError> {
        if !self.caller.may_act_for(id) {
            return Err(OpError::OutOfScope);
        }
        self.view.tenant(id).ok_or(OpError::UnknownTenant)
    }

    pub(crate) fn reporter<'r, 'm>(&self, metadata: &'r Metadata<'m>) -> Reporter<'r, 'm, R> {
        self.core.events.reporter(metadata, self.ray_id)
    }

    /// When this operation must have ended at the KMS.
    pub(crate) fn deadline(&self) -> Instant {
        self.core.rt.now() + self.core.limits.kms_operation_timeout
    }
}

/// Answers one request. Never fails: an error is an answer too.
pub(crate) async fn serve<R: Rt>(
    core: &Core<R>,
    request: Request<Incoming>,
    began: Instant,
) -> Response<Body> {
    let (mut head, body) = request.into_parts();
    let path = head.uri.path();
    if head.method == Method::GET && path == "/metrics" {
        return metrics(core).await;
    }
    // SDKs given a base URL that ends in a slash ask for `//api/1/…`.
    let route = route(path.trim_start_matches('/'));
    let endpoint = route.unwrap_or(Endpoint::Other);
    let java = is_java(&head.headers);
    core.metrics.request_begins(endpoint);
    let _inflight = Inflight { core, endpoint };
    let mut kms_kind = None;
    let recording = core.tracer.begin(&head.headers, endpoint, began);
    let result = match &recording {
        None => answer(core, (&head, body), route, began, &mut kms_kind).await,
        Some(recording) => {
            let work = answer(core, (&head, body), route, began, &mut kms_kind);
            recording.around(work).await
        }
    };
    let mut response = Response::new(Body::default());
    // The map has room already, and hyper takes it back for the next request's headers.
    head.headers.clear();
    *response.headers_mut() = head.headers;
    let outcome = match result {
        Ok(Answer::Keys(keys)) => {
            json(&mut response, 200, Body::keys(keys, &core.buffers));
            (200, None)
        }
        // Java's SDK never reads these answers, and a body it does not read would hold its connection for ever.
        Ok(Answer::Done) if java => {
            *response.status_mut() = StatusCode::NO_CONTENT;
            (204, None)
        }
        Ok(Answer::Done) => {
            json(&mut response, 200, Bytes::from_static(VOID).into());
            (200, None)
        }
        Err(why) => refuse(core, &why, java, &mut response),
    };
    core.metrics
        .request(endpoint, kms_kind, outcome, core.rt.now() - began);
    if let Some(recording) = recording {
        recording.answered(kms_kind, outcome);
    }
    response
}

async fn answer<R: Rt>(
    core: &Core<R>,
    (head, body): (&Parts, Incoming),
    route: Option<Endpoint>,
    began: Instant,
    kms_kind: &mut Option<KmsKind>,
) -> Result<Answer, OpError> {
    let headers = &head.headers;
    let caller = match check_head(core, head, route) {
        Ok(caller) => caller,
        Err(why) => {
            discard(core, headers, body, core.limits.head_bytes_max, began).await;
            return Err(why);
        }
    };
    let mut body = read_body(core, headers, body, began).await?;
    let bytes = body.bytes.as_mut_slice();
    let mut random = [0; 12];
    core.rt.random(&mut random);
    let ray_id = RayId::from_random(random);
    // These two need no configuration: an event of an unknown tenant is taken too.
    match route {
        Some(Endpoint::SecurityEvent) => {
            return event::security_event(core, &caller, ray_id, bytes).await;
        }
        Some(Endpoint::ReportOperations) => {
            return report::report_operations(core, &caller, ray_id, bytes).await;
        }
        _ => {}
    }
    if !core.fresh.get() {
        return Err(OpError::StaleConfigurations);
    }
    let view = core.slot.load().ok_or(OpError::NotReady)?;
    let op = Op {
        core,
        view: &view,
        began,
        ray_id,
        caller: &caller,
        kms_kind,
    };
    // The larger ones have a place of their own, so that the usual request is small.
    match route.unwrap_or(Endpoint::Other) {
        Endpoint::Wrap => wrap::wrap(op, bytes).await,
        Endpoint::Unwrap => unwrap::unwrap(op, bytes).await,
        Endpoint::BatchWrap => Box::pin(batch::batch_wrap(op, bytes)).await,
        Endpoint::BatchUnwrap => Box::pin(batch::batch_unwrap(op, bytes)).await,
        Endpoint::Rekey => Box::pin(rekey::rekey(op, bytes)).await,
        Endpoint::Derive => Box::pin(derive::derive(op, bytes)).await,
        Endpoint::SecurityEvent | Endpoint::ReportOperations | Endpoint::Other => {
            Err(OpError::UnknownPath)
        }
    }
}

/// All that can be said before the body is read.
fn check_head<R: Rt>(
    core: &Core<R>,
    head: &Parts,
    route: Option<Endpoint>,
) -> Result<Caller, OpError> {
    let headers = &head.headers;
    let caller = core
        .api_keys
        .caller(headers.get(AUTHORIZATION), || core.rt.wall_now())
        .ok_or(OpError::Unauthorized)?;
    count_client(core, headers);
    match route {
        None => Err(OpError::UnknownPath),
        Some(_) if head.method != Method::POST => Err(OpError::WrongMethod),
        Some(endpoint) if !caller.may_call(endpoint) => Err(OpError::OutOfScope),
        Some(_) if headers.contains_key(CONTENT_ENCODING) => Err(OpError::CompressedBody),
        Some(_) => Ok(caller),
    }
}

fn route(path: &str) -> Option<Endpoint> {
    Some(match path.strip_prefix("api/1/")? {
        "document/wrap" => Endpoint::Wrap,
        "document/unwrap" => Endpoint::Unwrap,
        "document/batch-wrap" => Endpoint::BatchWrap,
        "document/batch-unwrap" => Endpoint::BatchUnwrap,
        "document/rekey" => Endpoint::Rekey,
        "document/report-operations" => Endpoint::ReportOperations,
        "event/security-event" => Endpoint::SecurityEvent,
        "key/derive-with-secret-path" => Endpoint::Derive,
        _ => return None,
    })
}

/// Whether the caller is one of Java's SDKs, which leave some answers unread.
fn is_java(headers: &HeaderMap) -> bool {
    headers
        .get("x-icl-tsc-language")
        .is_some_and(|language| language == "java")
        || headers
            .get(USER_AGENT)
            .is_some_and(|agent| agent.as_bytes().starts_with(b"Google-HTTP-Java-Client"))
}

fn count_client<R: Rt>(core: &Core<R>, headers: &HeaderMap) {
    let text = |name| {
        headers
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
    };
    if let Some(language) = text("x-icl-tsc-language") {
        core.metrics
            .client(language, text("x-icl-tsc-version").unwrap_or("none"));
    }
}

struct Inflight<'a, R: Rt> {
    core: &'a Core<R>,
    endpoint: Endpoint,
}

impl<R: Rt> Drop for Inflight<'_, R> {
    fn drop(&mut self) {
        self.core.metrics.request_ends(self.endpoint);
    }
}

fn json(response: &mut Response<Body>, status: u16, body: Body) {
    *response.body_mut() = body;
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
}

type Outcome = (u16, Option<TspCode>);

fn refuse<R: Rt>(
    core: &Core<R>,
    why: &OpError,
    java: bool,
    response: &mut Response<Body>,
) -> Outcome {
    let error = why.response();
    if let Some(limit) = error.limit {
        core.metrics.refused(limit);
    }
    // Java's SDK does not read a 401.
    let body = match java && error.status == 401 {
        true => Bytes::new(),
        false => tsp_wire::api::error(error.code, &error.message).into(),
    };
    json(response, error.status, body.into());
    if let Some(after) = error.retry_after {
        let seconds = after.as_secs().clamp(1, RETRY_AFTER_S_MAX);
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if matches!(why, OpError::WrongMethod) {
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("POST"));
    }
    (error.status, Some(error.code))
}

/// Longest wait for the control core to render the metrics.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(5);

/// `GET /metrics`: the control core renders the text, so that a scrape costs this shard nothing.
async fn metrics<R: Rt>(core: &Core<R>) -> Response<Body> {
    let (reply, text) = oneshot::channel();
    // A full queue drops the reply's sender, and the wait ends at once.
    drop(core.scrape.try_send(reply));
    match core.by(core.rt.now() + SCRAPE_TIMEOUT, text).await {
        Some(Ok(text)) => {
            let mut response = Response::new(text.into());
            let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        _ => {
            let message = "The control core is busy; scrape again.";
            let body = Bytes::from(tsp_wire::api::error(TspCode::UnknownError, message));
            let mut response = Response::new(Body::default());
            json(&mut response, 503, body.into());
            response
        }
    }
}

/// A request's body, and its share of the shard's memory for bodies.
struct BodyBytes<'a, R: Rt> {
    bytes: Buffer<'a>,
    held: usize,
    core: &'a Core<R>,
}

impl<R: Rt> BodyBytes<'_, R> {
    fn hold(&mut self, more: usize) -> Result<(), OpError> {
        let bodies = self.core.bodies_bytes.get() + more;
        if bodies > self.core.limits.bodies_bytes_max {
            return Err(OpError::TooManyBodies);
        }
        self.core.bodies_bytes.set(bodies);
        self.held += more;
        Ok(())
    }
}

impl<R: Rt> Drop for BodyBytes<'_, R> {
    fn drop(&mut self) {
        self.core
            .bodies_bytes
            .set(self.core.bodies_bytes.get().saturating_sub(self.held));
    }
}

/// Bytes of a body up to which its buffer doubles when it is full. Beyond, it takes the longest body's address space at
/// once, of which only what arrives becomes memory: a copy for each doubling would be memory, of the old size and the new.
const BODY_DOUBLED_MAX: usize = 1 << 20;

async fn read_body<'a, R: Rt>(
    core: &'a Core<R>,
    headers: &HeaderMap,
    mut incoming: Incoming,
    began: Instant,
) -> Result<BodyBytes<'a, R>, OpError> {
    let bytes_max = core.limits.body_bytes_max;
    let announced = usize::try_from(incoming.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > bytes_max {
        let thrown_away_max = core.limits.refused_body_bytes_max;
        discard(core, headers, incoming, thrown_away_max, began).await;
        return Err(OpError::BodyTooLong(bytes_max));
    }
    let mut body = BodyBytes {
        bytes: core.buffers.take(),
        held: 0,
        core,
    };
    // Nothing is set aside for bytes that were only announced, above what one read brings anyway.
    body.bytes
        .reserve_exact(announced.min(core.limits.head_bytes_max));
    let read = async {
        while let Some(frame) = incoming.frame().await {
            let Ok(data) = frame.map_err(|_| OpError::BodyCutOff)?.into_data() else {
                continue;
            };
            if body.bytes.len() + data.len() > bytes_max {
                throw_away(&mut incoming, core.limits.refused_body_bytes_max).await;
                return Err(OpError::BodyTooLong(bytes_max));
            }
            body.hold(data.len())?;
            let (length, room) = (body.bytes.len(), body.bytes.capacity());
            if length >= BODY_DOUBLED_MAX && length + data.len() > room {
                body.bytes.reserve_exact(bytes_max - length);
            }
            body.bytes.extend_from_slice(&data);
        }
        Ok(())
    };
    match core.by(began + core.limits.body_timeout, read).await {
        Some(result) => result.map(|()| body),
        None => Err(OpError::BodyTooSlow(core.limits.body_timeout)),
    }
}

/// Reads a refused request's body and throws it away, so that the client sees the refusal and not a reset; not if the
/// client waits for a `100 Continue` that will not come.
async fn discard<R: Rt>(
    core: &Core<R>,
    headers: &HeaderMap,
    mut body: Incoming,
    bytes_max: usize,
    began: Instant,
) {
    if !headers.contains_key(EXPECT) && !body.is_end_stream() {
        core.by(
            began + core.limits.body_timeout,
            throw_away(&mut body, bytes_max),
        )
        .await;
    }
}

async fn throw_away(body: &mut Incoming, bytes_max: usize) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > bytes_max {
            break;
        }
    }
}
