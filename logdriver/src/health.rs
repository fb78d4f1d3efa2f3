//! Health and metrics: `/health`, `/live`, `/ready` and `/metrics`.
//!
//! `/live` is 200 while the process serves at all. `/health` and `/ready` are 500 while the store takes no events; `/ready`
//! is 500 too until the logging configurations have been read once.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::{net::TcpListener, sync::watch};

use crate::{config, metrics::Metrics, routes::Routes, serve::RunError};

/// Longest wait for each step of the one question of `tsp-logdriver health`.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// Largest answer to it, in bytes. It has a few hundred.
const ASK_BYTES_MAX: u64 = 16 * 1024;

/// What the answers come of.
#[derive(Clone, Debug)]
pub struct Health {
    /// All that is counted.
    pub metrics: Arc<Metrics>,
    /// `None` until the configurations have been read once.
    pub routes: watch::Receiver<Option<Arc<Routes>>>,
}

impl Health {
    fn has_store(&self) -> bool {
        self.metrics.store_writable.get() == 1
    }

    fn is_ready(&self) -> bool {
        self.has_store() && self.routes.borrow().is_some()
    }
}

/// Binds the listener.
///
/// # Errors
/// If the address cannot be had.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Answers until `stop` says so.
pub async fn serve(listener: TcpListener, health: Health, mut stop: watch::Receiver<bool>) {
    let router = Router::new()
        .route("/live", get(|| async { status(true, "") }))
        .route("/health", get(health_answer))
        .route("/ready", get(ready_answer))
        .route("/metrics", get(metrics_answer))
        .with_state(health);
    let served = axum::serve(listener, router).with_graceful_shutdown(async move {
        let _ = stop.wait_for(|stop| *stop).await;
    });
    if let Err(why) = served.await {
        tracing::error!("health is not served any more: {why}");
    }
}

fn status(good: bool, why: &'static str) -> (StatusCode, &'static str) {
    if good {
        (StatusCode::OK, "OK\n")
    } else {
        (StatusCode::INTERNAL_SERVER_ERROR, why)
    }
}

async fn health_answer(State(health): State<Health>) -> impl IntoResponse {
    status(health.has_store(), "the store takes no events\n")
}

async fn ready_answer(State(health): State<Health>) -> impl IntoResponse {
    let why = if health.has_store() {
        "no logging configurations yet\n"
    } else {
        "the store takes no events\n"
    };
    status(health.is_ready(), why)
}

async fn metrics_answer(State(health): State<Health>) -> impl IntoResponse {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (kind, health.metrics.text())
}

/// Asks the logdriver that serves with these variables whether it is ready, or lives: what an image without a shell has its
/// `HEALTHCHECK` from.
///
/// # Errors
/// [`RunError::NotReady`] if the answer is no, or there is none.
pub fn ask(get: &dyn Fn(&str) -> Option<String>, live: bool) -> Result<String, RunError> {
    let listener = config::health(get).map_err(RunError::Configuration)?;
    let ip = match listener.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    let address = SocketAddr::new(ip, listener.port());
    let path = if live { "/live" } else { "/ready" };
    let answer = one_request(address, path)
        .map_err(|why| RunError::NotReady(format!("no answer from {address}: {why}")))?;
    match answer {
        (200, body) => Ok(body),
        (status, body) => Err(RunError::NotReady(format!("{path} says {status}: {body}"))),
    }
}

fn one_request(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, ASK_TIMEOUT)?;
    stream.set_read_timeout(Some(ASK_TIMEOUT))?;
    stream.set_write_timeout(Some(ASK_TIMEOUT))?;
    let head = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ASK_BYTES_MAX).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    // "HTTP/1.1 200 OK"
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body);
    match (status, body) {
        (Some(status), Some(body)) => Ok((status, body.to_owned())),
        _ => Err(io::Error::other("it is no HTTP")),
    }
}
