//! The simulated KMSs over real sockets: TLS, the control API, and every way in which they can misbehave.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that fails may panic"
)]

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tsp_loadtest::kmssim::{ClientKey, Kmssim, Options, Provider, Rule, Sample, SampleShape};

/// How long a test waits for bytes: ample, since it ends as soon as they come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A simulator of its own per test, so that tests run side by side.
struct Bench {
    kmssim: Kmssim,
    plain: SocketAddr,
    sample: Sample,
}

impl Bench {
    /// Thales tenants only: theirs is the API that needs no signature.
    fn new() -> Self {
        let sample = Sample::new(&SampleShape {
            tenants: 2,
            providers: vec![Provider::Thales],
            ..SampleShape::default()
        });
        let kmssim = Kmssim::start(Options::on_loopback(sample.clone())).expect("it starts");
        let port = kmssim
            .plain_url()
            .unwrap()
            .rsplit(':')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        Self {
            kmssim,
            plain: SocketAddr::from(([127, 0, 0, 1], port)),
            sample,
        }
    }

    fn connect(&self) -> Connection {
        Connection::to(self.plain)
    }

    /// An order to the control API.
    #[track_caller]
    fn order(&self, method: &str, path: &str, body: Value) -> Value {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let mut connection = Connection::to(self.kmssim.control_address());
        let answer = connection
            .exchange(method, path, &[], &body)
            .expect("an answer");
        assert_eq!(answer.status, 200, "{method} {path}: {}", answer.body);
        serde_json::from_str(&answer.body).unwrap_or(Value::Null)
    }

    fn fault(&self, fault: Value) {
        self.order("POST", "/faults", fault);
    }

    fn log_in(&self, connection: &mut Connection) -> String {
        let ClientKey::Thales {
            username, password, ..
        } = &self.sample.clients[0].key
        else {
            panic!("a tenant of Thales")
        };
        let body = json!({ "username": username, "password": password }).to_string();
        let answer = connection
            .post("/api/v1/auth/tokens", "", &body)
            .expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.body);
        let answer: Value = serde_json::from_str(&answer.body).unwrap();
        answer["jwt"].as_str().unwrap().to_owned()
    }

    fn encrypt_body(&self) -> String {
        let ClientKey::Thales { key_id, .. } = &self.sample.clients[0].key else {
            panic!("a tenant of Thales")
        };
        json!({ "id": key_id, "plaintext": "AAEC" }).to_string()
    }

    fn encrypt(&self, connection: &mut Connection, jwt: &str) -> std::io::Result<Answer> {
        connection.post("/api/v1/crypto/encrypt", jwt, &self.encrypt_body())
    }
}

/// A client's connection, and what came of it that was not used yet.
struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Connection {
    fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    fn post(&mut self, path: &str, token: &str, body: &str) -> std::io::Result<Answer> {
        let bearer = format!("Bearer {token}");
        let headers = [
            ("content-type", "application/json"),
            ("accept", "application/json"),
            ("authorization", bearer.as_str()),
        ];
        self.exchange("POST", path, &headers, body)
    }

    fn exchange(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> std::io::Result<Answer> {
        self.send(method, path, headers, body)?;
        self.receive()
    }

    fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> std::io::Result<()> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("content-length: {}\r\n\r\n{body}", body.len()));
        self.stream.write_all(head.as_bytes())
    }

    fn more(&mut self) -> std::io::Result<()> {
        let mut bytes = [0; 16 * 1024];
        match self.stream.read(&mut bytes)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            length => {
                self.buffer.extend_from_slice(&bytes[..length]);
                Ok(())
            }
        }
    }

    fn receive(&mut self) -> std::io::Result<Answer> {
        let head_end = loop {
            if let Some(at) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            self.more()?;
        };
        let head = String::from_utf8_lossy(&self.buffer[..head_end]).to_lowercase();
        let length: usize = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |value| value.parse().unwrap());
        while self.buffer.len() < head_end + length {
            self.more()?;
        }
        let body = String::from_utf8_lossy(&self.buffer[head_end..head_end + length]).into_owned();
        self.buffer.drain(..head_end + length);
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Ok(Answer { status, head, body })
    }

    /// Everything up to the end, and how it ended.
    fn rest(&mut self) -> (Vec<u8>, Option<ErrorKind>) {
        loop {
            match self.more() {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                    return (std::mem::take(&mut self.buffer), None);
                }
                Err(error) => return (std::mem::take(&mut self.buffer), Some(error.kind())),
            }
        }
    }
}

#[test]
fn it_serves_and_counts_tokens_and_refusals() {
    let bench = Bench::new();
    let mut connection = bench.connect();
    let jwt = bench.log_in(&mut connection);
    for _ in 0..3 {
        assert_eq!(bench.encrypt(&mut connection, &jwt).unwrap().status, 200);
    }
    assert_eq!(
        bench.order("GET", "/requests/refused", Value::Null),
        json!([])
    );
    assert_eq!(
        bench.encrypt(&mut connection, "forged").unwrap().status,
        401
    );
    let refused = bench.order("GET", "/requests/refused", Value::Null);
    assert_eq!(
        (&refused[0]["provider"], &refused[0]["operation"]),
        (&json!("thales"), &json!("wrap"))
    );
    assert_eq!(
        (&refused[0]["why"], &refused[0]["status"]),
        (&json!("token"), &json!(401))
    );
    let metrics = bench.order("GET", "/metrics", Value::Null);
    assert_eq!(metrics["tokens"], json!({ "thales:tenant-1": 1 }));
    let wraps = &metrics["providers"]["thales"]["wrap"];
    assert_eq!(
        (&wraps["requests"], &wraps["answered"], &wraps["refused"]),
        (&json!(4), &json!(3), &json!(1))
    );
    assert_eq!(metrics["connections"]["accepted"], 1);
    bench.order("POST", "/reset", Value::Null);
    let metrics = bench.order("GET", "/metrics", Value::Null);
    assert_eq!(metrics["totals"]["requests"], 0);
    // Tokens outlive a reset: their world is the same.
    assert_eq!(bench.encrypt(&mut connection, &jwt).unwrap().status, 200);
}

#[test]
fn rules_hold_from_the_start_and_again_after_a_reset() {
    let sample = Bench::new().sample;
    let throttle = r#"{"kind":"throttle","target":{"operation":"token"}}"#.to_owned();
    let options = Options {
        rules: vec![Rule::Fault(throttle)],
        ..Options::on_loopback(sample.clone())
    };
    let kmssim = Kmssim::start(options).expect("it starts");
    let mut control = Connection::to(kmssim.control_address());
    let mut faults = |method: &str, path: &str| {
        let answer = control.exchange(method, path, &[], "").unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
        let faults = control.exchange("GET", "/faults", &[], "").unwrap().body;
        serde_json::from_str::<Value>(&faults)
            .unwrap()
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!(faults("GET", "/health"), 1);
    assert_eq!(faults("DELETE", "/faults"), 0);
    assert_eq!(faults("POST", "/reset"), 1);
    let options = Options {
        rules: vec![Rule::Latency("{}".to_owned())],
        ..Options::on_loopback(sample)
    };
    let error = Kmssim::start(options).unwrap_err();
    assert!(error.to_string().contains("fixed_ms"), "{error}");
}

#[test]
fn a_restarted_simulator_opens_what_its_former_self_sealed() {
    let sealed = {
        let bench = Bench::new();
        let mut connection = bench.connect();
        let jwt = bench.log_in(&mut connection);
        let answer = bench.encrypt(&mut connection, &jwt).unwrap();
        serde_json::from_str::<Value>(&answer.body).unwrap()
    };
    let bench = Bench::new();
    let mut connection = bench.connect();
    let jwt = bench.log_in(&mut connection);
    let request = json!({ "id": sealed["id"], "ciphertext": sealed["ciphertext"], "tag": sealed["tag"],
        "iv": sealed["iv"], "version": sealed["version"] });
    let answer = connection
        .post("/api/v1/crypto/decrypt", &jwt, &request.to_string())
        .unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[test]
fn well_formed_faults_replace_the_answer_and_the_connection_stays() {
    let bench = Bench::new();
    let mut connection = bench.connect();
    let jwt = bench.log_in(&mut connection);
    let once = |mut fault: Value| {
        fault["count"] = 1.into();
        fault["target"] = json!({ "operation": "wrap", "key": "kek-tenant-1" });
        bench.fault(fault);
    };
    once(
        json!({ "kind": "status", "status": 503, "body": "{}", "headers": { "x-a": "b" }, "retry_after_s": 7 }),
    );
    let answer = bench.encrypt(&mut connection, &jwt).unwrap();
    assert_eq!(answer.status, 503);
    assert!(
        answer.head.contains("retry-after: 7\r\n") && answer.head.contains("x-a: b\r\n"),
        "{}",
        answer.head
    );
    once(json!({ "kind": "code", "code": "NCERRConflict", "message": "In so many words." }));
    let answer = bench.encrypt(&mut connection, &jwt).unwrap();
    assert_eq!(answer.status, 409);
    assert!(answer.body.contains("In so many words."), "{}", answer.body);
    once(json!({ "kind": "patch", "patch": { "tag": null, "mode": "cbc" } }));
    let answer = bench.encrypt(&mut connection, &jwt).unwrap();
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!((answer.status, &body["mode"]), (200, &json!("cbc")));
    assert!(
        body.get("tag").is_none() && body["ciphertext"].is_string(),
        "{body}"
    );
    once(json!({ "kind": "throttle", "retry_after_s": 3600 }));
    let answer = bench.encrypt(&mut connection, &jwt).unwrap();
    assert_eq!(answer.status, 429);
    assert!(answer.head.contains("retry-after: 3600\r\n"));
    once(json!({ "kind": "ok_error" }));
    let answer = bench.encrypt(&mut connection, &jwt).unwrap();
    assert_eq!(answer.status, 200);
    assert!(
        answer.body.contains("NCERRInternalServerError"),
        "{}",
        answer.body
    );
    once(json!({ "kind": "html" }));
    let answer = bench.encrypt(&mut connection, &jwt).unwrap();
    assert_eq!(answer.status, 502);
    assert!(answer.body.starts_with("<html>"));
    once(json!({ "kind": "status", "status": 204 }));
    assert_eq!(bench.encrypt(&mut connection, &jwt).unwrap().status, 204);
    assert_eq!(bench.encrypt(&mut connection, &jwt).unwrap().status, 200);
    once(json!({ "kind": "close" }));
    let answer = bench.encrypt(&mut connection, &jwt).unwrap();
    assert!(
        answer.head.contains("connection: close\r\n"),
        "{}",
        answer.head
    );
    assert_eq!(connection.rest(), (Vec::new(), None), "an orderly end");
    let faults = bench.order("GET", "/faults", Value::Null);
    assert!(
        faults
            .as_array()
            .unwrap()
            .iter()
            .all(|fault| fault["hits"] == 1),
        "{faults}"
    );
}

#[test]
fn broken_answers_break_as_they_are_told() {
    let bench = Bench::new();
    let jwt = bench.log_in(&mut bench.connect());
    let broken = |fault: Value| {
        bench.order("DELETE", "/faults", Value::Null);
        bench.fault(fault);
        let mut connection = bench.connect();
        let bearer = format!("Bearer {jwt}");
        let headers = [
            ("content-type", "application/json"),
            ("accept", "application/json"),
            ("authorization", bearer.as_str()),
        ];
        let body = bench.encrypt_body();
        connection
            .send("POST", "/api/v1/crypto/encrypt", &headers, &body)
            .unwrap();
        connection.rest()
    };
    let (bytes, end) = broken(json!({ "kind": "reset_before_head" }));
    assert_eq!((bytes.len(), end), (0, Some(ErrorKind::ConnectionReset)));
    let (bytes, end) = broken(json!({ "kind": "reset_after_head" }));
    // What was sent before a reset may be lost with it.
    assert!(
        bytes.is_empty() || bytes.ends_with(b"\r\n\r\n"),
        "{}",
        String::from_utf8_lossy(&bytes)
    );
    assert_eq!(end, Some(ErrorKind::ConnectionReset));
    let (bytes, end) = broken(json!({ "kind": "garbage", "bytes": 100 }));
    assert_eq!((bytes.len(), end), (100, None));
    let (bytes, end) = broken(json!({ "kind": "truncate" }));
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let announced: usize = head.rsplit(": ").next().unwrap().parse().unwrap();
    assert_eq!((body.len(), end), (announced / 2, None));
    let (bytes, end) = broken(json!({ "kind": "drip", "every_ms": 0 }));
    assert!(bytes.ends_with(b"}"), "{}", String::from_utf8_lossy(&bytes));
    assert_eq!(end, None);
    let (bytes, end) = broken(json!({ "kind": "huge", "bytes": 3_000_000 }));
    assert_eq!(end, None);
    assert!(
        (3_000_000..3_001_000).contains(&bytes.len()),
        "{}",
        bytes.len()
    );
    let (bytes, _) = broken(json!({ "kind": "header_flood", "bytes": 1_000_000 }));
    assert!(!bytes.windows(4).any(|four| four == b"\r\n\r\n"));
    assert!(bytes.len() >= 1_000_000);
}

#[test]
fn an_answer_without_end_goes_on_until_the_client_leaves() {
    let bench = Bench::new();
    let mut connection = bench.connect();
    let jwt = bench.log_in(&mut connection);
    bench.fault(json!({ "kind": "endless", "every_ms": 1 }));
    let bearer = format!("Bearer {jwt}");
    let headers = [
        ("content-type", "application/json"),
        ("accept", "application/json"),
        ("authorization", bearer.as_str()),
    ];
    connection
        .send(
            "POST",
            "/api/v1/crypto/encrypt",
            &headers,
            &bench.encrypt_body(),
        )
        .unwrap();
    while connection.buffer.len() < 2000 {
        connection.more().unwrap();
    }
    let text = String::from_utf8_lossy(&connection.buffer).into_owned();
    assert!(
        text.contains("transfer-encoding: chunked\r\n\r\n1\r\n \r\n1\r\n"),
        "{text}"
    );
    drop(connection);
    bench.order("DELETE", "/faults", Value::Null);
    until(|| bench.order("GET", "/metrics", Value::Null)["connections"]["open"] == 0);
}

#[test]
fn a_hanging_answer_holds_only_its_own_connection() {
    let bench = Bench::new();
    let mut connection = bench.connect();
    let jwt = bench.log_in(&mut connection);
    bench.fault(json!({ "kind": "hang", "count": 1 }));
    connection
        .stream
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let error = bench.encrypt(&mut connection, &jwt).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        "{error}"
    );
    assert_eq!(
        bench.encrypt(&mut bench.connect(), &jwt).unwrap().status,
        200
    );
}

#[test]
fn idle_connections_are_closed_after_their_time_or_at_once() {
    let bench = Bench::new();
    let mut connection = bench.connect();
    bench.log_in(&mut connection);
    bench.order("POST", "/connections", json!({ "idle_close_ms": 50 }));
    // The connection was idle before the rule came.
    assert_eq!(connection.rest(), (Vec::new(), None));
    bench.order("POST", "/connections", json!({}));
    let mut connection = bench.connect();
    bench.log_in(&mut connection);
    bench.order("POST", "/connections/close", Value::Null);
    assert_eq!(connection.rest(), (Vec::new(), None));
    let metrics = bench.order("GET", "/metrics", Value::Null);
    assert_eq!(metrics["connections"]["closed"], 2);
}

#[test]
fn connections_are_turned_away_as_told() {
    let bench = Bench::new();
    bench.order("POST", "/connections", json!({ "accept": "reset" }));
    let (bytes, end) = bench.connect().rest();
    assert_eq!((bytes.len(), end), (0, Some(ErrorKind::ConnectionReset)));
    bench.order("POST", "/connections", json!({ "accept": "garbage" }));
    let (bytes, end) = bench.connect().rest();
    assert!(bytes.starts_with(b"this is neither TLS nor HTTP") && end.is_none());
    bench.order("POST", "/connections", json!({ "accept": "serve" }));
    bench.log_in(&mut bench.connect());
}

#[test]
fn latency_and_quota_are_kept() {
    let bench = Bench::new();
    let mut connection = bench.connect();
    let jwt = bench.log_in(&mut connection);
    bench.order(
        "POST",
        "/latency",
        json!({ "target": { "operation": "wrap" }, "fixed_ms": 60 }),
    );
    #[expect(
        clippy::disallowed_methods,
        reason = "the time that passes is what is tested"
    )]
    let began = Instant::now();
    bench.encrypt(&mut connection, &jwt).unwrap();
    assert!(began.elapsed() >= Duration::from_millis(60));
    bench.order("DELETE", "/latency", Value::Null);
    bench.order("POST", "/quota", json!({ "per_second": 1 }));
    let statuses: Vec<_> = (0..50)
        .map(|_| bench.encrypt(&mut connection, &jwt).unwrap().status)
        .collect();
    assert!(statuses.contains(&429), "{statuses:?}");
    let metrics = bench.order("GET", "/metrics", Value::Null);
    assert_eq!(
        metrics["totals"]["refused"], 0,
        "over the quota is not the client's mistake"
    );
}

#[test]
fn orders_that_make_no_sense_are_refused_with_a_reason() {
    let bench = Bench::new();
    for (method, path, body, status) in [
        ("POST", "/latency", r#"{"fixed_ms":-1}"#, 400),
        ("POST", "/faults", r#"{"kind":"sleepy"}"#, 400),
        ("POST", "/faults", r#"{"kind":"hang","percent":101}"#, 400),
        ("POST", "/faults", "not JSON", 400),
        (
            "POST",
            "/keys",
            r#"{"provider":"aws","key":"none","action":"disable"}"#,
            404,
        ),
        (
            "POST",
            "/credentials",
            r#"{"provider":"gcp","credential":"none","action":"revoke"}"#,
            404,
        ),
        (
            "POST",
            "/accounts",
            r#"{"provider":"aws","account":"1","action":"firewall"}"#,
            400,
        ),
        ("POST", "/lifetimes", r#"{"gcp_token_s":999999999999}"#, 400),
        ("POST", "/clock", r#"{"skew_s":1,"frozen_unix_s":1}"#, 400),
        ("PUT", "/world", r#"{"aws":{"keys":[{"arn":"x"}]}}"#, 400),
        ("DELETE", "/faults/99", "", 404),
        ("GET", "/nothing", "", 404),
    ] {
        let mut connection = Connection::to(bench.kmssim.control_address());
        let answer = connection.exchange(method, path, &[], body).unwrap();
        assert_eq!(
            answer.status, status,
            "{method} {path} {body}: {}",
            answer.body
        );
        assert!(answer.body.contains("error"), "{}", answer.body);
    }
    let mut connection = Connection::to(bench.kmssim.control_address());
    let help = connection.exchange("GET", "/", &[], "").unwrap().body;
    assert!(
        help.contains("/faults") && help.contains("header_flood"),
        "{help}"
    );
}

#[test]
fn keys_credentials_and_the_clock_obey_the_control_api() {
    let bench = Bench::new();
    let mut connection = bench.connect();
    let jwt = bench.log_in(&mut connection);
    let mut status = || bench.encrypt(&mut connection, &jwt).unwrap().status;
    let key = |action: &str| {
        bench.order(
            "POST",
            "/keys",
            json!({ "provider": "thales", "key": "kek-tenant-1", "action": action }),
        );
    };
    for (action, expected) in [
        ("disable", 409),
        ("enable", 200),
        ("delete", 409),
        ("recover", 200),
        ("deny", 403),
        ("allow", 200),
        ("rotate", 200),
    ] {
        key(action);
        assert_eq!(status(), expected, "{action}");
    }
    for (operation, expected) in [("unwrap", 200), ("wrap", 403)] {
        let order = json!({ "provider": "thales", "key": "kek-tenant-1", "action": "deny", "operation": operation });
        bench.order("POST", "/keys", order);
        assert_eq!(status(), expected, "{operation}");
    }
    key("allow");
    bench.order("POST", "/clock", json!({ "skew_s": 400 }));
    assert_eq!(status(), 401, "a token of five minutes");
    bench.order("POST", "/clock", json!({}));
    let order =
        json!({ "provider": "thales", "credential": "tenant-1", "action": "revoke_tokens" });
    bench.order("POST", "/credentials", order);
    assert_eq!(status(), 401);
}

#[test]
fn a_world_can_be_read_changed_and_loaded_again() {
    let bench = Bench::new();
    let mut world = bench.order("GET", "/world", Value::Null);
    assert_eq!(world["thales"]["users"].as_array().unwrap().len(), 2);
    world["thales"]["users"].as_array_mut().unwrap().remove(0);
    bench.order("PUT", "/world", world);
    let clients = bench.order("GET", "/clients", Value::Null);
    let (user, password) = (
        &clients[0]["key"]["username"],
        &clients[0]["key"]["password"],
    );
    let body = json!({ "username": user, "password": password }).to_string();
    let answer = bench
        .connect()
        .post("/api/v1/auth/tokens", "", &body)
        .unwrap();
    assert_eq!(answer.status, 401);
}

#[test]
fn garbage_never_stops_it() {
    let bench = Bench::new();
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"\r\n\r\n\r\n",
        b"POST /v1/projects/%ff%fe:encrypt HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\nx-amz-target: TrentService.Encrypt\r\nauthorization: AWS4-HMAC-SHA256 \
          Credential=////,SignedHeaders=;,Signature=\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
    ] {
        let mut connection = bench.connect();
        connection.stream.write_all(garbage).unwrap();
        connection.stream.shutdown(std::net::Shutdown::Write).unwrap();
        connection.rest();
    }
    bench.log_in(&mut bench.connect());
    assert_eq!(tsp_rt::task_panics(), 0);
}

#[test]
fn tls_is_served_under_the_names_of_all_clouds_and_sessions_resume() {
    let bench = Bench::new();
    let address = bench.kmssim.address();
    let pem = bench.kmssim.authority().certificate_pem.clone();
    let names = [
        "localhost",
        "127.0.0.1",
        "kms.us-east-1.amazonaws.com",
        "sts.eu-west-1.amazonaws.com",
        "kms.cn-north-1.amazonaws.com.cn",
        "cloudkms.googleapis.com",
        "oauth2.googleapis.com",
        "tsp-tenant-1.vault.azure.net",
        "x.managedhsm.azure.net",
        "login.microsoftonline.com",
        "x.vault.usgovcloudapi.net",
        "x.vault.azure.cn",
    ];
    tsp_rt::run_here(|rt| async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        use tsp_rt::Rt as _;
        let tls = tsp_rt::tls::ClientTls::with_roots_pem(&pem).expect("a certificate");
        for name in names {
            for resumed in [false, true] {
                let stream = rt.connect(address, PATIENCE).await.expect("it listens");
                let mut stream = tsp_rt::tls::connect(stream, &tls, name).await.expect(name);
                let request =
                    format!("GET /health HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n");
                stream.write_all(request.as_bytes()).await.unwrap();
                let mut answer = Vec::new();
                stream
                    .read_to_end(&mut answer)
                    .await
                    .expect("an orderly end");
                assert!(
                    answer.starts_with(b"HTTP/1.1 404"),
                    "{}",
                    String::from_utf8_lossy(&answer)
                );
                assert_eq!(stream.is_resumed(), resumed, "{name}");
            }
        }
        let stranger = rt.connect(address, PATIENCE).await.expect("it listens");
        assert!(
            tsp_rt::tls::connect(stranger, &tls, "example.com")
                .await
                .is_err()
        );
    })
    .unwrap();
}

/// Asks again until it is so.
#[track_caller]
fn until(mut so: impl FnMut() -> bool) {
    #[expect(clippy::disallowed_methods, reason = "a test must end")]
    let began = Instant::now();
    while !so() {
        assert!(began.elapsed() < PATIENCE, "it never came to be so");
        std::thread::yield_now();
    }
}
