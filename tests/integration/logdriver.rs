//! A proxy and a logdriver, whole: what is done at the one comes out of the other, once per event, in a chain.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    child,
    config::two_local_tenants,
    on_both,
    proxy::{Io, Proxy, Setup},
    request, text,
};

/// Longest wait for an event. Far beyond what a busy machine takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A logdriver that delivers to its own standard output.
struct Logdriver {
    child: Child,
    lines: Receiver<Value>,
}

impl Logdriver {
    fn start(proxy: &Proxy, scheme: &str, store: &TempDir) -> Self {
        let producer = proxy.event.expect("the event socket's address is told");
        let mut command = child::command(child::beside_tsp("tsp-logdriver"));
        command
            .env(
                "LOGDRIVER_EVENT_PRODUCER_URL",
                format!("{scheme}://{producer}"),
            )
            .env("LOGDRIVER_STORE", store.path())
            .env("LOGDRIVER_STORE_FREE_MIN", "0")
            .env("LOGDRIVER_BUFFER_POLL_INTERVAL", "20")
            .env("LOGDRIVER_HEALTH_BIND_ADDRESS", "127.0.0.1:0")
            .env("TSP_CONFIG_FILE", proxy.config_path())
            .stdout(Stdio::piped());
        let mut child = child::spawn(command);
        let out = child.stdout.take().expect("its output is piped");
        let (sender, lines) = channel();
        thread::spawn(move || {
            // A kill may cut the last line off.
            let lines = BufReader::new(out).lines().map_while(Result::ok);
            for line in lines.filter_map(|line| serde_json::from_str(&line).ok()) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// Takes events until those with these request ids were there.
    fn take_until(&self, wanted: &[&str]) -> Vec<Value> {
        let until = Instant::now() + PATIENCE;
        let mut events: Vec<Value> = Vec::new();
        let is_there = |events: &[Value], id: &&str| {
            let mut ids = events.iter().map(|event| &event["iclFields"]["requestId"]);
            ids.any(|known| known == *id)
        };
        while !wanted.iter().all(|id| is_there(&events, id)) {
            let left = until.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            let line = line.unwrap_or_else(|_| panic!("of {wanted:?} only {events:#?} came"));
            if line.get("service").is_none() {
                events.push(line);
            }
        }
        events
    }

    fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }
}

impl Drop for Logdriver {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn with_id(tenant: &str, id: &str, members: Value) -> Value {
    let mut body = request(tenant, members);
    body["iclFields"]["requestId"] = json!(id);
    body
}

/// One request of each kind, with ids that begin with `round`.
fn use_everything(proxy: &Proxy, round: &str) -> Vec<String> {
    let id = |number: u32| format!("{round}{number}");
    let wrapped = proxy
        .call("document/wrap", &with_id("acme", &id(1), json!({})))
        .ok();
    let edek = text(&wrapped, "edek");
    let unwrap = json!({ "encryptedDocumentKey": edek });
    proxy
        .call("document/unwrap", &with_id("acme", &id(2), unwrap))
        .ok();
    let rekey = json!({ "encryptedDocumentKey": edek, "newTenantId": "globex" });
    proxy
        .call("document/rekey", &with_id("acme", &id(3), rekey))
        .ok();
    let batch = json!({ "documentIds": ["a", "b"] });
    proxy
        .call("document/batch-wrap", &with_id("acme", &id(4), batch))
        .ok();
    let mut login = with_id("nobody", &id(5), json!({}));
    login["iclFields"]["event"] = json!("USER_LOGIN");
    proxy.call("event/security-event", &login).ok();
    (1..=5).map(id).collect()
}

/// What a use of everything leaves, without what differs from time to time.
fn kinds(events: &[Value], round: &str) -> BTreeMap<(String, String), usize> {
    let mut kinds = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for event in events {
        let fields = &event["iclFields"];
        // One that was delivered twice has the same id.
        let is_new = seen.insert(text(fields, "logdriverRayId").to_owned());
        if is_new
            && fields["requestId"]
                .as_str()
                .is_some_and(|id| id.starts_with(round))
        {
            assert_eq!(text(fields, "logdriverRayId").len(), 16, "{event}");
            assert_eq!(text(fields, "tspRayId").len(), 16, "{event}");
            let kind = (
                text(event, "tenantId").to_owned(),
                text(fields, "event").to_owned(),
            );
            *kinds.entry(kind).or_default() += 1;
        }
    }
    kinds
}

fn of_everything() -> BTreeMap<(String, String), usize> {
    let kind = |tenant: &str, event: &str| (tenant.to_owned(), event.to_owned());
    BTreeMap::from([
        (kind("acme", "DATA_ENCRYPT"), 3),
        (kind("acme", "DATA_DECRYPT"), 2),
        (kind("globex", "DATA_ENCRYPT"), 1),
        (kind("nobody", "USER_LOGIN"), 1),
    ])
}

/// The sequences of each tenant's chain, without repetition.
fn sequences(events: &[Value]) -> BTreeMap<String, BTreeSet<u64>> {
    let mut sequences: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for event in events {
        let sequence = event["chain"]["sequence"]
            .as_u64()
            .expect("each has its place");
        sequences
            .entry(text(event, "tenantId").to_owned())
            .or_default()
            .insert(sequence);
    }
    sequences
}

fn start(io: Io, acknowledged: bool) -> Proxy {
    Setup::serve(io, &two_local_tenants())
        .env(
            "TSP_EVENTS_ACKNOWLEDGED",
            if acknowledged { "true" } else { "false" },
        )
        .start()
}

fn all_of_it_comes_out(io: Io, acknowledged: bool) {
    let proxy = start(io, acknowledged);
    let store = TempDir::new().expect("a temporary folder can be made");
    let scheme = if acknowledged { "tcp+ack" } else { "tcp" };
    let logdriver = Logdriver::start(&proxy, scheme, &store);
    let ids = use_everything(&proxy, "a");
    let ids: Vec<_> = ids.iter().map(String::as_str).collect();
    let mut events = logdriver.take_until(&ids);
    // Those of one request come in one message, but perhaps not in one delivery.
    while kinds(&events, "a") != of_everything() {
        let more = logdriver.lines.recv_timeout(PATIENCE);
        let more = more.unwrap_or_else(|_| panic!("{events:#?}"));
        if more.get("service").is_none() {
            events.push(more);
        }
    }
    for (tenant, numbers) in sequences(&events) {
        let all = 1..=u64::try_from(numbers.len()).expect("few");
        assert_eq!(numbers, all.collect(), "{tenant}");
    }
}

on_both! {
    fn what_a_proxy_pushes_comes_out_of_a_logdriver(io) {
        all_of_it_comes_out(io, false);
    }

    fn what_a_proxy_keeps_until_it_is_acknowledged_comes_out_of_a_logdriver(io) {
        all_of_it_comes_out(io, true);
    }

    fn what_is_done_while_a_logdriver_lies_killed_comes_out_of_the_next(io) {
        let proxy = start(io, true);
        let store = TempDir::new().expect("a temporary folder can be made");
        let first = Logdriver::start(&proxy, "tcp+ack", &store);
        let ids = use_everything(&proxy, "a");
        let ids: Vec<_> = ids.iter().map(String::as_str).collect();
        let mut events = first.take_until(&ids);
        first.kill();
        let ids = use_everything(&proxy, "b");
        let ids: Vec<_> = ids.iter().map(String::as_str).collect();
        let second = Logdriver::start(&proxy, "tcp+ack", &store);
        events.extend(second.take_until(&ids));
        while ["a", "b"].iter().any(|round| kinds(&events, round) != of_everything()) {
            let more = second.lines.recv_timeout(PATIENCE);
            let more = more.unwrap_or_else(|_| panic!("{events:#?}"));
            if more.get("service").is_none() {
                events.push(more);
            }
        }
        for (tenant, numbers) in sequences(&events) {
            let all = 1..=u64::try_from(numbers.len()).expect("few");
            assert_eq!(numbers, all.collect(), "{tenant}");
        }
    }
}
