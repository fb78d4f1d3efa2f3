//! Health and metrics for probes and scrapers, on a listener of their own, served by the control core.
//!
//! | path | 200 | 500 |
//! | --- | --- | --- |
//! | `/live` | not shutting down | shutting down |
//! | `/ready`, `/health` | every shard has its configuration, and it is young enough | the body says why not |
//! | `/metrics` | the metrics | |

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    convert::Infallible,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tsp_rt::{HyperTimer, Listener, Rt};

use crate::{
    config::{HEALTH_CONNECTIONS_MAX, HEALTH_HEAD_TIMEOUT},
    metrics::Scrape,
};

/// Buffer of one connection, in bytes: room for a request head. hyper's minimum is 8 KiB.
const HEAD_BYTES_MAX: usize = 16 * 1024;

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
                "the configuration could not be refreshed for 24 hours",
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
) {
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
        let service = service_fn(move |request: Request<Incoming>| {
            let response = respond(request.method(), request.uri().path(), &health, &scrape);
            async move { Ok::<_, Infallible>(response) }
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
        let mut response = json(StatusCode::METHOD_NOT_ALLOWED, "not allowed", &["use GET"]);
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
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
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{Ipv4Addr, SocketAddr, TcpStream},
        thread,
    };

    use tracing_appender::non_blocking::NonBlocking;
    use tsp_rt::{Backend, Probe};
    use tsp_shards::{ApiKeys, Limits, ShardSet, ShardsConfig};
    use tsp_wire::ApiKey;

    use super::*;
    use crate::metrics::ControlMetrics;

    const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    fn scrape() -> (ShardSet, Arc<Scrape>) {
        let (asking, _asked) = crossbeam_channel::bounded(1);
        let shards = ShardSet::spawn(ShardsConfig {
            listen: ANY_PORT,
            backend: Backend::Epoll,
            cpus: vec![None],
            api_keys: ApiKeys::new(ApiKey::new("0123456789abcdef".to_owned()).unwrap(), None),
            limits: Limits::default(),
            events: None,
            scrape: asking,
            instance: 1,
        })
        .unwrap();
        let probe = Probe {
            backend: Backend::Epoll,
            reason: "a test".to_owned(),
        };
        let (lines, _worker) = NonBlocking::new(std::io::sink());
        let scrape = Scrape {
            control: ControlMetrics::new(&probe).unwrap(),
            shards: Arc::clone(shards.metrics()),
            log_lines_dropped: lines.error_counter(),
        };
        (shards, Arc::new(scrape))
    }

    /// Serves `health` while `client` runs on another thread.
    fn with_server(health: Health, client: impl FnOnce(SocketAddr) + Send + 'static) {
        let (_shards, scrape) = scrape();
        let listener = tsp_rt::bind_reuseport(ANY_PORT, 1).unwrap().pop().unwrap();
        let address = listener.local_addr().unwrap();
        let (done, is_done) = oneshot::channel();
        let client = thread::spawn(move || {
            client(address);
            done.send(()).unwrap();
        });
        // A client that fails drops its end.
        let _ = tsp_rt::run_here(|rt| async move {
            let listener = rt.adopt(listener).unwrap();
            rt.spawn(serve(rt.clone(), listener, Rc::new(health), scrape));
            is_done.await
        })
        .unwrap();
        client.join().unwrap();
    }

    /// Status and body.
    fn ask(stream: &mut TcpStream, request: &str) -> (u16, String) {
        stream
            .write_all(format!("{request} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
            .unwrap();
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length = if request.starts_with("HEAD") {
            0
        } else {
            length.unwrap().parse().unwrap()
        };
        let mut body = vec![0; length];
        stream.read_exact(&mut body).unwrap();
        (status, String::from_utf8(body).unwrap())
    }

    fn statuses(health: Health) -> Vec<u16> {
        let (sender, receiver) = crossbeam_channel::bounded(3);
        with_server(health, move |address| {
            let mut stream = TcpStream::connect(address).unwrap();
            for path in ["/live", "/ready", "/health"] {
                sender
                    .send(ask(&mut stream, &format!("GET {path}")).0)
                    .unwrap();
            }
        });
        receiver.iter().collect()
    }

    #[test]
    fn probes_see_the_life_of_the_process() {
        let health = Health::starting(2);
        assert_eq!(statuses(health), [200, 500, 500], "starting");
        let health = Health::starting(2);
        health.set_shards_waiting(0);
        assert_eq!(statuses(health), [200, 200, 200], "serving");
        let health = Health::starting(0);
        health.set_fresh(false);
        assert_eq!(statuses(health), [200, 500, 500], "stale");
        let health = Health::starting(0);
        health.drain();
        assert_eq!(statuses(health), [500, 500, 500], "draining");
    }

    #[test]
    fn the_body_says_why() {
        with_server(Health::starting(1), |address| {
            let mut stream = TcpStream::connect(address).unwrap();
            let (_, body) = ask(&mut stream, "GET /ready");
            let body: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!(body["status"], "not ready");
            assert!(body["reasons"][0].as_str().unwrap().starts_with("starting"));
        });
    }

    #[test]
    fn metrics_of_shards_and_control_plane_come_together() {
        with_server(Health::starting(0), |address| {
            let mut stream = TcpStream::connect(address).unwrap();
            let (status, text) = ask(&mut stream, "GET /metrics");
            assert_eq!(status, 200);
            let names: Vec<_> = text
                .lines()
                .filter_map(|line| line.strip_prefix("# TYPE "))
                .collect();
            assert!(names.is_sorted(), "{names:?}");
            for family in [
                "tsp_request_duration_seconds histogram",
                "tsp_kms_request_duration_seconds histogram",
                "tsp_requests_in_flight gauge",
                "tsp_key_operations_total counter",
                "tsp_kms_last_config_refresh_timestamp_seconds gauge",
                "tsp_real_time_security_event_failures_total counter",
                "tsp_config_refresh_failures_total counter",
            ] {
                assert_eq!(
                    names.iter().filter(|name| **name == family).count(),
                    1,
                    "{family}"
                );
            }
            let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
            let page = std::fs::read_to_string(page).unwrap();
            for name in names {
                let name = name.split(' ').next().unwrap();
                assert!(
                    page.contains(&format!("`{name}`")),
                    "docs/operations.md lacks {name}"
                );
            }
        });
    }

    #[test]
    fn other_paths_and_methods_are_refused() {
        with_server(Health::starting(0), |address| {
            let mut stream = TcpStream::connect(address).unwrap();
            assert_eq!(ask(&mut stream, "GET /").0, 404);
            assert_eq!(ask(&mut stream, "POST /ready").0, 405);
            assert_eq!(ask(&mut stream, "HEAD /ready"), (200, String::new()));
        });
    }

    #[test]
    fn idle_connections_never_keep_a_probe_out() {
        with_server(Health::starting(0), |address| {
            let mut idle: Vec<_> = (0..HEALTH_CONNECTIONS_MAX + 5)
                .map(|_| {
                    let mut stream = TcpStream::connect(address).unwrap();
                    assert_eq!(ask(&mut stream, "GET /live").0, 200);
                    stream
                })
                .collect();
            let mut byte = [0];
            for stream in idle.iter_mut().take(5) {
                assert_eq!(stream.read(&mut byte).unwrap(), 0, "the oldest are closed");
            }
            assert_eq!(ask(&mut idle[5], "GET /live").0, 200, "the others stay");
        });
    }
}
