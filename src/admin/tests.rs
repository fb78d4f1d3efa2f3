use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    thread,
};

use tracing_appender::non_blocking::NonBlocking;
use tsp_rt::{Backend, Probe};
use tsp_shards::{ApiKeys, Destinations, Limits, ShardSet, ShardsConfig};
use tsp_wire::ApiKey;

use super::*;
use crate::metrics::ControlMetrics;

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

const ADMIN_TOKEN: &str = "canary-admin-token";

/// What a process with one shard would tell.
pub(crate) fn scrape() -> (ShardSet, Arc<Scrape>) {
    let (asking, _asked) = crossbeam_channel::bounded(1);
    let (secrets, _) = crossbeam_channel::bounded(1);
    let shards = ShardSet::spawn(ShardsConfig {
        listen: ANY_PORT,
        tls: None,
        unix: None,
        backend: Backend::Epoll,
        cpus: vec![None],
        api_keys: Arc::new(ApiKeys::new(
            ApiKey::new("0123456789abcdef".to_owned()).unwrap(),
            None,
        )),
        limits: Limits::default(),
        destinations: Destinations::of_the_operators_endpoints(),
        events: None,
        scrape: asking,
        secrets,
        traces: None,
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
    let (shards, scrape) = scrape();
    let (_layer, log_filter) = LogFilter::new(crate::logs::filter(None).unwrap());
    let admin = Admin {
        log_filter,
        token: ApiKey::new(ADMIN_TOKEN.to_owned()),
        forgetter: shards.forgetter(),
    };
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
        rt.spawn(serve(rt.clone(), listener, Rc::new(health), scrape, admin));
        is_done.await
    })
    .unwrap();
    client.join().unwrap();
}

/// Status and body.
fn ask(stream: &mut TcpStream, request: &str) -> (u16, String) {
    let whole = format!("{request} HTTP/1.1\r\nhost: x\r\n\r\n");
    send(stream, &whole, request.starts_with("HEAD"))
}

/// Likewise for a request that is whole.
fn send(stream: &mut TcpStream, request: &str, is_head: bool) -> (u16, String) {
    stream.write_all(request.as_bytes()).unwrap();
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
    let length = if is_head {
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
fn a_tenants_keys_are_forgotten_for_whoever_has_the_token() {
    with_server(Health::starting(0), |address| {
        let mut stream = TcpStream::connect(address).unwrap();
        let mut ask = |request: &str, token: &str| {
            let request = format!("{request} HTTP/1.1\r\nauthorization: {token}\r\nx: y");
            ask(&mut stream, &request)
        };
        let (path, token) = (
            "/admin/tenants/acme%20%C3%A9/forget",
            format!("Bearer {ADMIN_TOKEN}"),
        );
        let (status, body) = ask(&format!("POST {path}"), &token);
        assert_eq!((status, body.contains("forgotten")), (200, true), "{body}");
        for wrong in ["", "Bearer canary-admin-tokem", "Basic x", ADMIN_TOKEN] {
            assert_eq!(ask(&format!("POST {path}"), wrong).0, 401);
        }
        assert_eq!(ask(&format!("GET {path}"), &token).0, 405);
        for unknown in [
            "/admin/",
            "/admin/tenants//forget",
            "/admin/tenants/%00/forget",
            "/admin/tenants/%ff/forget",
        ] {
            assert_eq!(ask(&format!("POST {unknown}"), &token).0, 404, "{unknown}");
        }
    });
}

#[test]
fn the_log_filter_is_told_and_changed_for_whoever_has_the_token() {
    with_server(Health::starting(0), |address| {
        let ask = |method: &str, token: &str, body: &str| {
            let length = body.len();
            let head =
                format!("{method} /admin/log-level HTTP/1.1\r\nauthorization: Bearer {token}");
            let request = format!("{head}\r\ncontent-length: {length}\r\nhost: x\r\n\r\n{body}");
            let mut stream = TcpStream::connect(address).unwrap();
            send(&mut stream, &request, false)
        };
        let (status, body) = ask("GET", ADMIN_TOKEN, "");
        assert!(status == 200 && body.contains("tsp::ops=warn"), "{body}");
        let (status, body) = ask("PUT", ADMIN_TOKEN, "debug,tsp_shards=trace\n");
        assert!(status == 200 && body.contains("tsp_shards=trace"), "{body}");
        assert!(ask("GET", ADMIN_TOKEN, "").1.contains("tsp_shards=trace"));
        for bad in ["", " ", "a=b=c", &"x".repeat(2_000)] {
            assert_eq!(ask("PUT", ADMIN_TOKEN, bad).0, 400);
        }
        assert_eq!(ask("POST", ADMIN_TOKEN, "debug").0, 405);
        assert_eq!(ask("PUT", "canary-admin-tokem", "debug").0, 401);
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
