//! Traces: what a collector is told, and what it costs when there is none. What is sent is read by OpenTelemetry's own decoder.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Stdio,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    base64, child,
    config::{self, As, AwsKms, tenant, two_local_tenants},
    fake_kms::FakeKms,
    http::Request,
    metadata,
    metrics::Metrics,
    on_both,
    peers::{Certificates, make_certificates, source_folder, target_folder},
    proxy::{API_KEY, Io, Proxy, Setup},
    request, text,
};

/// Longest wait for spans that a test expects. They come within a second or so.
const SPANS_TIMEOUT: Duration = Duration::from_secs(60);

const CALLERS: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLERS_SPAN: &str = "00f067aa0ba902b7";

/// OTLP's numbers, as its decoder names them.
const SERVER: &str = "SPAN_KIND_SERVER";
const CLIENT: &str = "SPAN_KIND_CLIENT";
const FAILED: &str = "STATUS_CODE_ERROR";

/// A collector that answers everything with `answer`, a protobuf message, and hands each export to the test.
struct Collector {
    address: SocketAddr,
    exports: Receiver<Value>,
    /// The line `api-key` of each export's head, if it has one.
    credentials: Receiver<String>,
}

impl Collector {
    fn start(answer: &'static [u8]) -> Self {
        Self::behind(answer, |stream| stream)
    }

    /// The same behind TLS.
    fn start_tls(answer: &'static [u8], made: &Certificates) -> Self {
        let chain = CertificateDer::pem_file_iter(&made.certificate).expect("it was written");
        let chain = chain.map(|one| one.expect("PEM")).collect();
        let key = PrivateKeyDer::from_pem_file(&made.key).expect("it was written");
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("they go together");
        let config = Arc::new(config);
        Self::behind(answer, move |stream| {
            let tls = ServerConnection::new(Arc::clone(&config)).expect("a good configuration");
            StreamOwned::new(tls, stream)
        })
    }

    fn behind<S: Read + Write>(
        answer: &'static [u8],
        accept: impl Fn(TcpStream) -> S + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (sender, exports) = channel();
        let (credential, credentials) = channel();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut reader = BufReader::new(accept(stream));
                // Who does not trust us goes away.
                let Some(body) = read_export(&mut reader, &credential) else {
                    continue;
                };
                let _ = sender.send(decoded(&body));
                let length = answer.len();
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: {length}\r\n\r\n"
                );
                let whole = [head.as_bytes(), answer].concat();
                let stream = reader.get_mut();
                let _ = stream.write_all(&whole).and_then(|()| stream.flush());
            }
        });
        Self {
            address,
            exports,
            credentials,
        }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits for so many spans, the requests' own before those below them.
    #[track_caller]
    fn spans(&self, count: usize) -> Vec<Value> {
        let mut spans = Vec::new();
        while spans.len() < count {
            let export = self.exports.recv_timeout(SPANS_TIMEOUT);
            let export = export.unwrap_or_else(|_| panic!("only {spans:#?} came"));
            let resource = &export["resourceSpans"][0];
            let who = attribute(&resource["resource"], "service.name");
            assert_eq!(who["stringValue"], "tsp", "{export}");
            let found = resource["scopeSpans"][0]["spans"].as_array();
            spans.extend(found.expect("spans").iter().cloned());
        }
        assert_eq!(spans.len(), count, "{spans:#?}");
        spans
    }
}

/// `None` if nothing comes.
fn read_export(reader: &mut impl BufRead, credential: &Sender<String>) -> Option<Vec<u8>> {
    let mut line = || {
        let mut line = String::new();
        let read = reader.read_line(&mut line);
        read.is_ok_and(|bytes| bytes > 0)
            .then(|| line.trim_end().to_ascii_lowercase())
    };
    assert_eq!(line()?, "post /v1/traces http/1.1");
    let (mut length, mut kind) = (0, String::new());
    loop {
        match line()?.split_once(": ") {
            Some(("content-length", bytes)) => length = bytes.parse().expect("a number"),
            Some(("content-type", text)) => text.clone_into(&mut kind),
            // The test may not care.
            Some(("api-key", text)) => drop(credential.send(text.to_owned())),
            Some(_) => {}
            None => break,
        }
    }
    assert_eq!(kind, "application/x-protobuf");
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a body");
    Some(body)
}

/// An export as Google's protobuf reads it by OpenTelemetry's own definitions.
fn decoded(export: &[u8]) -> Value {
    let mut command = child::command(target_folder().join("peers/bin/python"));
    command
        .arg(source_folder().join("tests/peers/otlp_read.py"))
        .arg("traces")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = child::spawn(command);
    let mut input = child.stdin.take().expect("it is a pipe");
    input.write_all(export).expect("it reads");
    drop(input);
    let output = child.wait_with_output().expect("it ends");
    assert!(
        output.status.success(),
        "run ./x setup if packages are missing"
    );
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn attribute<'a>(of: &'a Value, key: &str) -> &'a Value {
    let attributes = of["attributes"].as_array().expect("a list");
    let found = attributes.iter().find(|attribute| attribute["key"] == key);
    found.map_or(&Value::Null, |attribute| &attribute["value"])
}

fn told(of: &Value, key: &str) -> String {
    let value = attribute(of, key);
    let told = value["stringValue"].as_str().or(value["intValue"].as_str());
    told.unwrap_or_default().to_owned()
}

/// An id, in the digits of a `traceparent`.
fn id(span: &Value, member: &str) -> String {
    let bytes = base64(text(span, member));
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A request of a caller that decided.
fn part_of_a_trace(flags: &str, request: Request) -> Request {
    let traceparent = format!("00-{CALLERS}-{CALLERS_SPAN}-{flags}");
    request.header("traceparent", &traceparent)
}

fn wrap(key: &str) -> Request {
    Request::api("document/wrap", key, &metadata("acme"))
}

/// `acme` and `globex` at a KMS in the test's hands.
fn start(io: Io, collector: &str, sample: &str) -> (Proxy, FakeKms) {
    let kms = FakeKms::asking();
    let file = config::file(&[
        AwsKms::unchecked(1, &kms.url()).toml(),
        AwsKms::unchecked(2, &kms.url()).toml(),
        tenant("acme", &[(1, As::Primary)]),
        tenant("globex", &[(2, As::Primary)]),
    ]);
    let setup = Setup::serve(io, &file)
        .env("TSP_TRACE_ENDPOINT", collector)
        .env("TSP_TRACE_SAMPLE", sample);
    (setup.start(), kms)
}

/// Sends a request whose KMS calls are answered well; gives the answer and what the calls carried.
fn ask(
    proxy: &Proxy,
    kms: &FakeKms,
    request: &Request,
    calls: usize,
) -> (Value, Vec<Option<String>>) {
    thread::scope(|scope| {
        let asked = scope.spawn(|| proxy.send(request));
        let carried = (0..calls).map(|_| {
            let call = kms.next_call();
            let carried = call.traceparent.clone();
            call.succeed();
            carried
        });
        let carried = carried.collect();
        (asked.join().expect("it was asked").ok(), carried)
    })
}

on_both! {
    fn a_callers_trace_goes_on_to_the_kms_and_to_the_collector(io) {
        let collector = Collector::start(b"");
        let (proxy, kms) = start(io, &collector.url(), "0");
        // None of these is recorded: one caller says no, one has no key, and of the rest none is taken.
        assert_eq!(ask(&proxy, &kms, &part_of_a_trace("00", wrap(API_KEY)), 1).1, [None]);
        proxy.send(&part_of_a_trace("01", wrap("wrong"))).refused(401, 101);
        assert_eq!(ask(&proxy, &kms, &wrap(API_KEY), 1).1, [None]);
        let (wrapped, carried) = ask(&proxy, &kms, &part_of_a_trace("01", wrap(API_KEY)), 1);

        let spans = collector.spans(2);
        let [request, attempt] = spans.as_slice() else { panic!("{spans:#?}") };
        assert_eq!((text(request, "name"), text(request, "kind")), ("POST /api/1/document/wrap", SERVER));
        assert_eq!((id(request, "traceId"), id(request, "parentSpanId")), (CALLERS.into(), CALLERS_SPAN.into()));
        let about = ["http.route", "http.response.status_code", "tsp.tenant_id", "tsp.kms_type", "tsp.kms_attempts", "error.type"];
        assert_eq!(about.map(|key| told(request, key)), ["/api/1/document/wrap", "200", "acme", "AWS", "1", ""]);
        assert_eq!((text(attempt, "name"), text(attempt, "kind")), ("AWS wrap", CLIENT));
        assert_eq!((id(attempt, "traceId"), id(attempt, "parentSpanId")), (CALLERS.into(), id(request, "spanId")));
        let about = ["server.address", "http.response.status_code", "tsp.kms_config_id", "http.request.resend_count", "error.type"];
        assert_eq!(about.map(|key| told(attempt, key)), ["127.0.0.1", "200", "1", "", ""]);
        let during = |span: &Value| ["startTimeUnixNano", "endTimeUnixNano"].map(|at| text(span, at).parse::<u64>().expect("a number"));
        let ([began, ended], [asked, answered]) = (during(request), during(attempt));
        // The two clocks may be a little apart.
        assert!(began <= asked + 1_000_000 && asked <= answered && answered <= ended + 1_000_000, "{spans:#?}");
        assert_eq!(carried, [Some(format!("00-{CALLERS}-{}-01", id(attempt, "spanId")))]);

        // A rekey tells the other tenant's KMS nothing.
        let rekey = request_to_rekey(text(&wrapped, "edek"));
        let (_, carried) = ask(&proxy, &kms, &part_of_a_trace("01", rekey), 2);
        let spans = collector.spans(3);
        assert_eq!(told(&spans[0], "tsp.kms_attempts"), "2");
        assert_eq!([1, 2].map(|at| told(&spans[at], "tsp.kms_config_id")), ["1", "2"]);
        assert_eq!(carried, [Some(format!("00-{CALLERS}-{}-01", id(&spans[1], "spanId"))), None]);
    }

    fn a_failure_and_its_second_try_are_told(io) {
        let collector = Collector::start(b"");
        let (proxy, kms) = start(io, &collector.url(), "1");
        let refused = thread::scope(|scope| {
            let asked = scope.spawn(|| proxy.send(&wrap(API_KEY)));
            for _ in 0..2 {
                kms.next_call().answer(500, &json!({ "__type": "KMSInternalException" }));
            }
            asked.join().expect("it was asked")
        });
        let spans = collector.spans(3);
        assert_eq!(told(&spans[0], "http.response.status_code"), refused.status.to_string());
        assert_eq!(told(&spans[0], "tsp.status_code"), refused.json()["code"].to_string());
        assert!(spans[0].get("parentSpanId").is_none(), "{spans:#?}");
        for (attempt, count) in spans[1..].iter().zip(["", "1"]) {
            let about = ["http.response.status_code", "error.type", "http.request.resend_count"];
            assert_eq!(about.map(|key| told(attempt, key)), ["500", "unreachable", count]);
            assert_eq!(attempt["status"]["code"], FAILED);
        }
    }

    fn what_was_recorded_last_is_sent_before_the_end(io) {
        let collector = Collector::start(b"");
        let proxy = local(io, &collector.url());
        proxy.call("document/wrap", &metadata("acme")).ok();
        proxy.signal(Signal::TERM);
        assert_eq!(proxy.wait_for_end().code, Some(0));
        assert_eq!(told(&collector.spans(1)[0], "tsp.tenant_id"), "acme");
    }

    fn of_ids_there_is_the_tenants_and_no_other_text(io) {
        let collector = Collector::start(b"");
        let proxy = local(io, &collector.url());
        let canary = "canary-of-a-caller";
        let mut body = request("acme", json!({}));
        for member in ["requestingId", "objectId", "sourceIp", "requestId", "dataLabel"] {
            body["iclFields"][member] = json!(canary);
        }
        body["customFields"] = json!({ "note": canary });
        proxy.call("document/wrap", &body).ok();
        proxy.call("document/wrap", &metadata(canary)).refused(422, 201);
        proxy.send(&Request::api(canary, API_KEY, &json!({}))).refused(404, 102);
        let spans = collector.spans(3);
        let all = json!(spans).to_string();
        assert!(!all.contains(canary) && !all.contains(API_KEY), "{all}");
    }

    fn spans_that_a_collector_rejects_are_counted(io) {
        // partial_success { rejected_spans: 1, error_message: "full" }
        let collector = Collector::start(b"\x0a\x08\x08\x01\x12\x04full");
        let proxy = local(io, &collector.url());
        proxy.call("document/wrap", &metadata("acme")).ok();
        collector.spans(1);
        proxy.log.wait_json(0, "a line about it", |line| line["why"] == "full");
        assert_eq!(counted(&proxy, 1.0), 0.0);
    }

    fn a_collector_of_a_private_authority_gets_its_credential(io) {
        let folder = TempDir::new().expect("a temporary folder can be made");
        let made = make_certificates(&folder);
        let collector = Collector::start_tls(b"", &made);
        let url = format!("https://{}", collector.address);
        let start = |ca: &str| {
            let setup = Setup::serve(io, &two_local_tenants()).env("TSP_TRACE_ENDPOINT", &url).env("TSP_TRACE_CA", ca);
            setup.env("TSP_TRACE_SAMPLE", "1").env("TSP_TRACE_HEADERS", "API-Key=made%2Cup").start()
        };
        let proxy = start(made.ca.to_str().expect("UTF-8"));
        proxy.call("document/wrap", &metadata("acme")).ok();
        assert_eq!(told(&collector.spans(1)[0], "tsp.tenant_id"), "acme");
        assert_eq!(collector.credentials.recv_timeout(SPANS_TIMEOUT).as_deref(), Ok("made,up"));
        assert!(!proxy.log.text().contains("made,up"));
        // A certificate that no public authority signed is nobody's whose traces are to be had.
        let proxy = start("");
        proxy.call("document/wrap", &metadata("acme")).ok();
        assert_eq!(counted(&proxy, 1.0), 0.0);
        assert!(collector.credentials.try_recv().is_err());
    }

    fn without_a_collector_spans_are_dropped_and_requests_are_not(io) {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let dead = free.local_addr().expect("it is bound");
        drop(free);
        let proxy = local(io, &format!("http://{dead}"));
        for _ in 0..20 {
            proxy.call("document/wrap", &metadata("acme")).ok();
        }
        proxy.log.wait_json(0, "a line about it", |line| {
            line["message"].as_str().is_some_and(|text| text.contains("traces are dropped"))
        });
        assert_eq!(counted(&proxy, 20.0), 0.0);
    }

    fn a_collector_that_never_answers_holds_nobody_up(io) {
        let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = silent.local_addr().expect("it is bound");
        let proxy = local(io, &format!("http://{address}"));
        // More than may wait: the thread has the first of them, and waits for the collector.
        let mut connection = proxy.connect();
        for _ in 0..5_000 {
            connection.ask(&wrap(API_KEY)).ok();
        }
        counted(&proxy, 1.0);
    }
}

fn request_to_rekey(edek: &str) -> Request {
    let body = request(
        "acme",
        json!({ "encryptedDocumentKey": edek, "newTenantId": "globex" }),
    );
    Request::api("document/rekey", API_KEY, &body)
}

/// Two tenants with local keys, all of whose requests are recorded.
fn local(io: Io, collector: &str) -> Proxy {
    Setup::serve(io, &two_local_tenants())
        .env("TSP_TRACE_ENDPOINT", collector)
        .env("TSP_TRACE_SAMPLE", "1")
        .start()
}

/// Waits until so many spans are counted as dropped; gives those that were sent.
#[track_caller]
fn counted(proxy: &Proxy, dropped: f64) -> f64 {
    let deadline = Instant::now() + SPANS_TIMEOUT;
    loop {
        let metrics = Metrics::read(proxy.health);
        if metrics.count("tsp_trace_spans_dropped_total", &[]) >= dropped {
            return metrics.count("tsp_trace_spans_sent_total", &[]);
        }
        assert!(Instant::now() < deadline, "{}", metrics.text());
    }
}
