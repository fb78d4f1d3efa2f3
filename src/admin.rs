//! Health and metrics for probes and scrapers, on a listener of their own, served by the control core.
//!
//! | path | 200 | 500 |
//! | --- | --- | --- |
//! | `/live` | not shutting down | shutting down |
//! | `/ready`, `/health` | every shard has its configuration, and it is young enough | the body says why not |
//! | `/metrics` | the metrics | |
//!
//! With an admin token there are two commands. `POST /admin/tenants/{id}/forget` drops all keys that are held in memory for a
//! tenant, on every shard, and answers when that is done. `PUT /admin/log-level` takes a log filter, spelt as `RUST_LOG` is,
//! until the next start; `GET` tells the one in force.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    convert::Infallible,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use tokio::sync::oneshot;
use tsp_rt::{HyperTimer, Listener, Rt};
use tsp_shards::Forgetter;
use tsp_wire::{ApiKey, TenantId};

use crate::{
    config::{HEALTH_CONNECTIONS_MAX, HEALTH_HEAD_TIMEOUT},
    logs::LogFilter,
    metrics::Scrape,
};

/// Buffer of one connection, in bytes: room for a request head. hyper's minimum is 8 KiB.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Longest wait for all shards to drop a tenant's keys. It takes them a millisecond.
const FORGET_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest log filter, in bytes.
const LOG_FILTER_BYTES_MAX: usize = 1024;

/// The commands, and who may give them.
#[derive(Debug)]
pub struct Admin {
    /// What has to be presented; `None` switches the commands off.
    pub token: Option<ApiKey>,
    /// Drops a tenant's keys.
    pub forgetter: Forgetter,
    /// What log lines are written.
    pub log_filter: LogFilter,
}

/// The state that probes ask about. The control loop keeps it true.
#[derive(Debug)]
pub struct Health {
    draining: Cell<bool>,
    fresh: Cell<bool>,
    shards_waiting: Cell<usize>,
}

impl Health {
    /// Of a process whose `shards` have no configuration yet.
    #[must_use]
    pub fn starting(shards: usize) -> Self {
        Self {
            draining: Cell::new(false),
            fresh: Cell::new(true),
            shards_waiting: Cell::new(shards),
        }
    }

    /// The process shuts down. There is no way back.
    pub fn drain(&self) {
        self.draining.set(true);
    }

    /// Whether the configuration is young enough to serve with.
    pub fn set_fresh(&self, fresh: bool) {
        self.fresh.set(fresh);
    }

    /// How many shards have no configuration yet.
    pub fn set_shards_waiting(&self, shards: usize) {
        self.shards_waiting.set(shards);
    }

    /// Whether the process does not shut down.
    #[must_use]
    pub fn is_live(&self) -> bool {
        !self.draining.get()
    }

    /// Whether requests are served.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.reasons().is_empty()
    }

    /// Why requests are not served; nothing if they are.
    fn reasons(&self) -> Vec<&'static str> {
        let reasons = [
            (self.draining.get(), "shutting down"),
            (
                self.shards_waiting.get() > 0,
                "starting: not every shard has its configuration yet",
            ),
            (
                !self.fresh.get(),
                "the configuration could not be refreshed for too long",
            ),
        ];
        reasons
            .into_iter()
            .filter(|(holds, _)| *holds)
            .map(|(_, reason)| reason)
            .collect()
    }
}

/// Serves probes and scrapers for as long as the core lives.
pub async fn serve<R: Rt>(
    rt: R,
    mut listener: R::Listener,
    health: Rc<Health>,
    scrape: Arc<Scrape>,
    admin: Admin,
) {
    let admin = Rc::new(admin);
    let connections = Rc::new(Connections::default());
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::error!(%error, "the health listener failed; probes are no longer answered");
                return;
            }
        };
        let (health, scrape) = (Rc::clone(&health), Arc::clone(&scrape));
        let (admin, clock) = (Rc::clone(&admin), rt.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let (health, scrape) = (Rc::clone(&health), Arc::clone(&scrape));
            let (admin, clock) = (Rc::clone(&admin), clock.clone());
            async move {
                let (method, path) = (request.method(), request.uri().path());
                Ok::<_, Infallible>(match path.strip_prefix("/admin/").map(str::to_owned) {
                    Some(command) => admin.carry_out(&clock, &command, request).await,
                    None => respond(method, path, &health, &scrape),
                })
            }
        });
        let (place, mut evicted) = Connections::enter(&connections);
        let timer = HyperTimer::new(rt.clone());
        rt.spawn(async move {
            let connection = http1::Builder::new()
                .timer(timer)
                .header_read_timeout(HEALTH_HEAD_TIMEOUT)
                .max_buf_size(HEAD_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), service);
            let mut connection = pin!(connection);
            // Until the far end is done, or a newer connection needs the place. Errors are the far end's affair.
            std::future::poll_fn(|context| {
                if pin!(&mut evicted).poll(context).is_ready() {
                    return Poll::Ready(());
                }
                connection.as_mut().poll(context).map(drop)
            })
            .await;
            drop(place);
        });
    }
}

/// The open connections, oldest first. When there are too many the oldest goes, never the newest: whoever opens many
/// and sits on them must not keep a probe out, or the orchestrator would kill a healthy process.
#[derive(Debug, Default)]
struct Connections {
    next: Cell<u64>,
    open: RefCell<VecDeque<(u64, oneshot::Sender<Infallible>)>>,
}

impl Connections {
    /// A place for one more, and what ends when it is taken away.
    fn enter(this: &Rc<Self>) -> (Place, oneshot::Receiver<Infallible>) {
        let number = this.next.get();
        this.next.set(number.wrapping_add(1));
        let (keeper, evicted) = oneshot::channel();
        let mut open = this.open.borrow_mut();
        if open.len() >= HEALTH_CONNECTIONS_MAX {
            open.pop_front();
        }
        open.push_back((number, keeper));
        (
            Place {
                number,
                connections: Rc::clone(this),
            },
            evicted,
        )
    }
}

/// One connection's entry in the list, for as long as it is open.
struct Place {
    number: u64,
    connections: Rc<Connections>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections
            .open
            .borrow_mut()
            .retain(|(number, _)| *number != self.number);
    }
}

fn respond(method: &Method, path: &str, health: &Health, scrape: &Scrape) -> Response<Full<Bytes>> {
    if !["/live", "/ready", "/health", "/metrics"].contains(&path) {
        return json(
            StatusCode::NOT_FOUND,
            "not found",
            &["there are /live, /ready, /health and /metrics"],
        );
    }
    if ![Method::GET, Method::HEAD].contains(method) {
        return not_allowed("use GET", "GET, HEAD");
    }
    match path {
        "/metrics" => {
            let mut response = Response::new(Full::new(scrape.text()));
            let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        "/live" if health.is_live() => json(StatusCode::OK, "ok", &[]),
        "/live" => json(
            StatusCode::INTERNAL_SERVER_ERROR,
            "not live",
            &["shutting down"],
        ),
        _ => match health.reasons().as_slice() {
            [] => json(StatusCode::OK, "ok", &[]),
            reasons => json(StatusCode::INTERNAL_SERVER_ERROR, "not ready", reasons),
        },
    }
}

impl Admin {
    /// Carries out what stands behind `/admin/`.
    async fn carry_out<R: Rt>(
        &self,
        rt: &R,
        command: &str,
        request: Request<Incoming>,
    ) -> Response<Full<Bytes>> {
        let Some(token) = &self.token else {
            let why = "the admin API is off; TSP_ADMIN_TOKEN switches it on";
            return json(StatusCode::NOT_FOUND, "not found", &[why]);
        };
        let presented = request.headers().get(AUTHORIZATION);
        let presented = presented.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        if !presented.is_some_and(|presented| token.matches(presented)) {
            let why = "present the admin token: `Authorization: Bearer TOKEN`";
            return json(StatusCode::UNAUTHORIZED, "unauthorized", &[why]);
        }
        if command == "log-level" {
            return self.log_level(rt, request).await;
        }
        let tenant = command
            .strip_prefix("tenants/")
            .and_then(|rest| rest.strip_suffix("/forget"))
            .and_then(|id| percent_decode_str(id).decode_utf8().ok())
            .and_then(|id| TenantId::new(&id));
        let Some(tenant) = tenant else {
            let why = "there are POST /admin/tenants/{id}/forget, with the id percent-encoded, and GET and PUT \
                       /admin/log-level";
            return json(StatusCode::NOT_FOUND, "not found", &[why]);
        };
        if request.method() != Method::POST {
            return not_allowed("use POST", "POST");
        }
        let forgotten = self.forgetter.forget(&tenant);
        match tsp_rt::timeout(rt, FORGET_TIMEOUT, forgotten).await {
            Ok(Ok(shards)) => {
                tracing::warn!(
                    tenant = tenant.as_str(),
                    shards,
                    "the admin API had all keys of a tenant dropped"
                );
                json(StatusCode::OK, "forgotten", &[])
            }
            Ok(Err(_)) | Err(_) => {
                tracing::error!(
                    tenant = tenant.as_str(),
                    "not every shard confirmed that it dropped the keys of a tenant"
                );
                let why = "a shard did not confirm it in time; try again";
                json(StatusCode::SERVICE_UNAVAILABLE, "not forgotten", &[why])
            }
        }
    }

    /// Tells the log filter in force, or takes another one until the next start.
    async fn log_level<R: Rt>(&self, rt: &R, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let told = |filter: &LogFilter| json(StatusCode::OK, &filter.text(), &[]);
        match *request.method() {
            Method::GET => return told(&self.log_filter),
            Method::PUT => {}
            _ => return not_allowed("use GET or PUT", "GET, PUT"),
        }
        let body = Limited::new(request.into_body(), LOG_FILTER_BYTES_MAX).collect();
        let text = match tsp_rt::timeout(rt, FORGET_TIMEOUT, body).await {
            Ok(Ok(body)) => String::from_utf8(body.to_bytes().to_vec()).unwrap_or_default(),
            Ok(Err(_)) | Err(_) => String::new(),
        };
        let text = text.trim();
        if text.is_empty() {
            let why =
                "send a filter as RUST_LOG spells it, such as `debug` or `info,tsp_shards=debug`";
            return json(StatusCode::BAD_REQUEST, "bad request", &[why]);
        }
        match self.log_filter.set(text) {
            Ok(()) => {
                tracing::warn!(
                    filter = self.log_filter.text(),
                    "the admin API set the log filter"
                );
                told(&self.log_filter)
            }
            Err(why) => json(StatusCode::BAD_REQUEST, "bad request", &[&why]),
        }
    }
}

fn not_allowed(why: &str, allowed: &'static str) -> Response<Full<Bytes>> {
    let mut response = json(StatusCode::METHOD_NOT_ALLOWED, "not allowed", &[why]);
    let headers = response.headers_mut();
    headers.insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

fn json(status: StatusCode, text: &str, reasons: &[&str]) -> Response<Full<Bytes>> {
    let body = serde_json::json!({ "status": text, "reasons": reasons });
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
pub(crate) mod tests;
