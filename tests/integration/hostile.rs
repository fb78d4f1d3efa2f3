//! Requests that no good client sends. Each gets an error in JSON, or its connection is closed by a limit that the
//! metrics name; memory stays where it was, and the next good request works.

use std::{net::TcpStream, thread};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::support::{
    config::two_local_tenants,
    http::{Connection, Request},
    metadata, on_both,
    proxy::{API_KEY, Io, Proxy, Setup},
};

const MIB: usize = 1 << 20;

/// Connections held open at once in one test.
const IDLE_CONNECTIONS: usize = 5_000;

/// What the peak of resident memory may grow by, in KiB, while hostile requests of up to 17 MiB are refused one at a
/// time: a body up to the limit of 16 MiB, and half of that for what is read out of it.
const GROWTH_KIB_MAX: u64 = 24 * 1024;

/// What the peak may grow by, in KiB, when the same attack is repeated many times more: two bodies that the allocator has
/// not given back yet. A leak of one body per attack would be twelve times this.
const REPEATED_GROWTH_KIB_MAX: u64 = 32 * 1024;

/// Resident memory per idle connection, in KiB: hyper's read buffer and the connection's task.
const IDLE_CONNECTION_KIB_MAX: u64 = 32;

fn start(io: Io) -> Proxy {
    let proxy = Setup::serve(io, &two_local_tenants()).start();
    // What the first request of each kind allocates for good is not the hostile one's fault.
    for _ in 0..8 {
        assert_still_good(&proxy);
    }
    proxy
}

fn wrap() -> Request {
    Request::api("document/wrap", API_KEY, &metadata("acme"))
}

#[track_caller]
fn assert_still_good(proxy: &Proxy) {
    proxy.send(&wrap()).ok();
}

/// Runs `attack`, then checks memory and the next good request.
#[track_caller]
fn endures(io: Io, attack: impl FnOnce(&Proxy)) {
    let proxy = start(io);
    let before = proxy.memory_kib("VmHWM");
    attack(&proxy);
    assert_still_good(&proxy);
    let grown = proxy.memory_kib("VmHWM").saturating_sub(before);
    eprintln!("memory grew by {grown} KiB");
    assert!(grown < GROWTH_KIB_MAX, "memory grew by {grown} KiB");
}

/// Sends `request` piece by piece as long as the proxy takes it, and gives the answer if there is one.
fn push(proxy: &Proxy, bytes: &[u8]) -> Option<crate::support::http::Answer> {
    let mut connection = proxy.connect();
    for piece in bytes.chunks(64 * 1024) {
        if connection.send(piece).is_err() {
            break;
        }
    }
    connection.try_answer().ok()
}

#[track_caller]
fn assert_closed_by(proxy: &Proxy, limit: &str) {
    let closed = proxy
        .metrics()
        .count("tsp_connections_closed_total", &[("limit", limit)]);
    assert!(
        closed >= 1.0,
        "{limit} is not counted:\n{}",
        proxy.metrics().text()
    );
}

#[track_caller]
fn assert_refused_by(proxy: &Proxy, limit: &str) {
    let refused = proxy
        .metrics()
        .count("tsp_requests_refused_total", &[("limit", limit)]);
    assert!(
        refused >= 1.0,
        "{limit} is not counted:\n{}",
        proxy.metrics().text()
    );
}

on_both! {
    fn no_key_a_wrong_key_and_wrong_routes(io) {
        endures(io, |proxy| {
            proxy.send(&wrap().without("Authorization")).refused(401, 101);
            proxy.send(&Request::api("document/wrap", "wrong", &metadata("acme"))).refused(401, 101);
            proxy.send(&wrap().path("/unknown")).refused(404, 102);
            let get = Request::new("GET", "/api/1/document/wrap").header("Authorization", &format!("cmk {API_KEY}"));
            proxy.send(&get).refused(405, 102);
            proxy.send(&wrap().body("")).refused(400, 102);
        });
    }

    fn a_body_of_17_mib_with_its_length_announced(io) {
        endures(io, |proxy| {
            let answer = push(proxy, &wrap().body(vec![b' '; 17 * MIB]).bytes());
            answer.expect("the refusal can be read").refused(413, 102);
            assert_refused_by(proxy, "body_bytes_max");
        });
    }

    fn a_body_of_17_mib_in_chunks(io) {
        endures(io, |proxy| {
            let answer = push(proxy, &wrap().body(vec![b' '; 17 * MIB]).chunked_bytes(MIB));
            answer.expect("the refusal can be read").refused(413, 102);
            assert_refused_by(proxy, "body_bytes_max");
        });
    }

    fn a_body_that_announces_more_than_there_is_memory(io) {
        endures(io, |proxy| {
            let head = String::from_utf8(wrap().body("").head_bytes()).expect("heads are ASCII");
            let announce = |bytes: u64| {
                let head = head.replace("Content-Length: 0", &format!("Content-Length: {bytes}"));
                let mut connection = proxy.connect();
                connection.send(head.as_bytes()).expect("it can be sent");
                connection.finish_sending();
                connection.answer()
            };
            announce(1 << 40).refused(413, 102);
            // No number of bytes at all for hyper, which keeps the highest ones for itself.
            assert_eq!(announce(u64::MAX).status, 431);
        });
    }

    fn broken_json(io) {
        endures(io, |proxy| {
            for body in ["{", "{\"tenantId\":", "\u{0}", "nul", "{\"a\":01}", "\"", "{\"tenantId\":\"\\ud800\"}", "[1,]"] {
                proxy.send(&wrap().body(body)).refused(400, 102);
            }
            let half = metadata("acme").to_string();
            for length in 0..half.len() {
                proxy.send(&wrap().body(&half.as_bytes()[..length])).refused(400, 102);
            }
        });
    }

    fn json_nested_ten_thousand_deep(io) {
        endures(io, |proxy| {
            for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
                let nest = format!("{}1{}", open.repeat(10_000), close.repeat(10_000));
                for body in [
                    nest.clone(),
                    open.repeat(10_000),
                    format!(r#"{{"tenantId":{nest},"iclFields":{{"requestingId":"u"}}}}"#),
                    format!(r#"{{"tenantId":"acme","iclFields":{{"requestingId":"u"}},"customFields":{nest}}}"#),
                ] {
                    proxy.send(&wrap().body(body)).refused(400, 102);
                }
                // In a member that nobody knows it is either skipped or refused, but nothing else.
                let body = format!(r#"{{"unknown":{nest},"tenantId":"acme","iclFields":{{"requestingId":"u"}}}}"#);
                let answer = proxy.send(&wrap().body(body));
                assert!([200, 400].contains(&answer.status), "{answer:?}");
            }
        });
    }

    fn a_tenant_id_of_a_megabyte(io) {
        endures(io, |proxy| {
            let long = "t".repeat(MIB);
            let answer = proxy.send(&Request::api("document/wrap", API_KEY, &metadata(&long)));
            assert!([(400, 102), (422, 201)].contains(&(answer.status, answer.json()["code"].as_u64().unwrap_or_default())), "{answer:?}");
            assert!(answer.body.len() < 4096, "the answer does not repeat it: {} bytes", answer.body.len());
        });
    }

    fn a_million_tiny_members(io) {
        endures(io, |proxy| {
            let zeros = format!("[{}0]", "0,".repeat(4 * MIB));
            let body = format!(r#"{{"tenantId":"acme","iclFields":{{"requestingId":"u"}},"documentIds":{zeros}}}"#);
            let answer = proxy.send(&Request::api("document/batch-wrap", API_KEY, &Value::Null).body(body));
            assert!([(400, 102), (413, 102)].contains(&(answer.status, answer.json()["code"].as_u64().unwrap_or_default())), "{answer:?}");
        });
    }

    fn more_items_than_one_batch_may_have(io) {
        endures(io, |proxy| {
            let ids: Vec<_> = (0..100_000).map(|n| n.to_string()).collect();
            let body = crate::support::request("acme", json!({ "documentIds": ids }));
            proxy.call("document/batch-wrap", &body).refused(413, 102);
            assert_refused_by(proxy, "batch_items_max");
        });
    }

    fn a_body_that_stops_half_way(io) {
        endures(io, |proxy| {
            // The client stays: a time limit ends it.
            let mut stalled = proxy.connect();
            stalled.send(&wrap().head_bytes()).expect("it can be sent");
            stalled.send(b"{\"tenantId\"").expect("it can be sent");
            // The client goes: nothing is left behind.
            let mut gone = proxy.connect();
            gone.send(&wrap().head_bytes()).expect("it can be sent");
            drop(gone);
            assert_still_good(proxy);
            let answer = stalled.answer();
            answer.refused(400, 102);
            assert_refused_by(proxy, "body_timeout");
        });
    }

    fn a_head_that_stops_half_way(io) {
        endures(io, |proxy| {
            let mut stalled = proxy.connect();
            stalled.send(b"POST /api/1/document/wrap HTTP/1.1\r\nHost: x\r\nX-Slow: ").expect("it can be sent");
            assert_still_good(proxy);
            assert!(stalled.is_ended_by_peer());
            assert_closed_by(proxy, "head_timeout");
        });
    }

    fn a_header_of_a_megabyte(io) {
        endures(io, |proxy| {
            let answer = push(proxy, &wrap().header("X-Long", &"h".repeat(MIB)).bytes());
            if let Some(answer) = answer {
                assert_eq!(answer.status, 431, "{answer:?}");
            }
            assert_closed_by(proxy, "head_bytes_max");
        });
    }

    fn ten_thousand_headers(io) {
        endures(io, |proxy| {
            let many = (0..10_000).fold(wrap(), |request, n| request.header(&format!("X-{n}"), "v"));
            if let Some(answer) = push(proxy, &many.bytes()) {
                assert!([400, 431].contains(&answer.status), "{answer:?}");
            }
        });
    }

    fn what_is_no_http_at_all(io) {
        endures(io, |proxy| {
            for bytes in [
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(),
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                b"\0\0\0\0\r\n\r\n",
                b"POST /api/1/document/wrap HTTP/9.9\r\n\r\n",
                b"POST /api/1/document/wrap HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
                b"POST /api/1/document/wrap HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
                b"POST /api/1/document/wrap HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
            ] {
                let mut connection = proxy.connect();
                connection.send(bytes).expect("it can be sent");
                connection.finish_sending();
                if let Ok(answer) = connection.try_answer() {
                    assert!((400..=505).contains(&answer.status), "{answer:?}");
                }
            }
        });
    }

    fn chunks_with_extensions_without_end(io) {
        endures(io, |proxy| {
            let mut bytes = b"POST /api/1/document/wrap HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            bytes.extend_from_slice(b"1;");
            bytes.resize(bytes.len() + 2 * MIB, b'e');
            if let Some(answer) = push(proxy, &bytes) {
                assert!((400..=431).contains(&answer.status), "{answer:?}");
            }
        });
    }

    fn the_same_attacks_again_and_again_leave_nothing_behind(io) {
        let proxy = start(io);
        let deep = "[".repeat(10_000);
        let attack = || {
            push(&proxy, &wrap().body(vec![b' '; 17 * MIB]).chunked_bytes(MIB));
            push(&proxy, &wrap().header("X-Long", &"h".repeat(MIB)).bytes());
            proxy.send(&wrap().body(deep.clone())).refused(400, 102);
            proxy.send(&Request::api("document/wrap", API_KEY, &metadata(&"t".repeat(MIB)))).refused(400, 102);
            proxy.send(&wrap().body(vec![b' '; 15 * MIB])).refused(400, 102);
            assert_still_good(&proxy);
        };
        // Both shards have met each kind by then, most likely.
        (0..8).for_each(|_| attack());
        let before = proxy.memory_kib("VmHWM");
        (0..24).for_each(|_| attack());
        let grown = proxy.memory_kib("VmHWM").saturating_sub(before);
        eprintln!("the peak grew by {grown} KiB");
        assert!(grown < REPEATED_GROWTH_KIB_MAX, "the peak grew by {grown} KiB");
    }

    fn five_thousand_idle_connections(io) {
        // One of the two at a time: each holds this many files here and there.
        static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        raise_open_files();
        let proxy = start(io);
        let before = proxy.memory_kib("VmRSS");
        let idle: Vec<_> = (0..IDLE_CONNECTIONS).map(|n| TcpStream::connect(proxy.http).unwrap_or_else(|why| panic!("number {n}: {why}"))).collect();
        for _ in 0..8 {
            assert_still_good(&proxy);
        }
        let open = proxy.metrics().count("tsp_connections", &[]);
        assert!(open >= 5_000.0, "{open} connections are open");
        let grown = proxy.memory_kib("VmRSS").saturating_sub(before);
        let per_connection = grown / IDLE_CONNECTIONS as u64;
        eprintln!("{per_connection} KiB per idle connection");
        assert!(per_connection < IDLE_CONNECTION_KIB_MAX, "{per_connection} KiB per idle connection");
        drop(idle);
        assert_still_good(&proxy);
    }

    fn clients_that_come_and_go_in_the_middle(io) {
        endures(io, |proxy| {
            let bytes = wrap().bytes();
            thread::scope(|scope| {
                for client in 0..4 {
                    let bytes = &bytes;
                    scope.spawn(move || {
                        for turn in 0..200 {
                            let Ok(mut connection) = Connection::try_open(proxy.http) else { continue };
                            // The proxy may have closed it already; that is the point.
                            let _ = connection.send(&bytes[..(client * 50 + turn) % bytes.len()]);
                        }
                    });
                }
            });
        });
    }
}

/// Lifts this process's soft limit on open files to the hard one.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    )
    .expect("the soft limit may rise to the hard one");
    let files = limit.maximum.unwrap_or(u64::MAX);
    let needed = IDLE_CONNECTIONS as u64 + 500;
    assert!(
        files > needed,
        "the hard limit on open files is {files}; this test needs {needed}"
    );
}
