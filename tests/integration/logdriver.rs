//! A proxy and a logdriver, whole: what is done at the one comes out of the other, once per event, in a chain.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::mpsc::{Receiver, channel},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    PATIENCE,
    broker::{Relay, Vendor, answer, local_content},
    config::two_local_tenants,
    logdriver::Logdriver,
    on_both,
    proxy::{Io, Proxy, Setup},
    request, text,
};

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
    let mut logdriver = Logdriver::start(&proxy, scheme, &store);
    let ids = use_everything(&proxy, "a");
    let ids: Vec<_> = ids.iter().map(String::as_str).collect();
    let mut events = logdriver.take_until(&ids);
    // Those of one request come in one message, but perhaps not in one delivery.
    while kinds(&events, "a") != of_everything() {
        events.push(logdriver.event());
    }
    for (tenant, numbers) in sequences(&events) {
        let all = 1..=u64::try_from(numbers.len()).expect("few");
        assert_eq!(numbers, all.collect(), "{tenant}");
    }
}

/// Webhooks for a tenant, in the test's hands: what was delivered to it.
fn webhook() -> (Relay, Receiver<Value>) {
    let (sender, events) = channel();
    let relay = Relay::start(Box::new(move |request| {
        let delivered: Vec<Value> = serde_json::from_slice(&request.body).expect("a list");
        for event in delivered {
            let _ = sender.send(event);
        }
        Some(answer(200, &[], b""))
    }));
    (relay, events)
}

#[test]
fn log_systems_come_sealed_from_the_broker_and_outlive_it() {
    let mut vendor = Vendor::new();
    for (number, tenant) in (1..).zip(["acme", "globex"]) {
        vendor.tenant(tenant, &local_content(number), &[]);
    }
    let (hook, delivered) = webhook();
    let secret = "0123456789abcdef0123456789abcdef";
    let content = json!({ "type": "WEBHOOK", "url": hook.url(), "hmacSecret": secret });
    vendor.logging("acme", &content);
    let setup = vendor.account().setup(Io::Epoll);
    let proxy = setup.env("TSP_ALLOW_LOCAL_KMS", "true").start();
    proxy.wait_for_ready(200);
    let wrap = |tenant: &str, id: &str| {
        let body = with_id(tenant, id, json!({}));
        proxy.call("document/wrap", &body).ok();
    };
    let next_of_acme = |id: &str| loop {
        let event = delivered.recv_timeout(PATIENCE).expect("it is delivered");
        assert_eq!(text(&event, "tenantId"), "acme");
        if event["iclFields"]["requestId"] == id {
            return;
        }
    };
    let store = TempDir::new().expect("a temporary folder can be made");
    let account = vendor.account();
    let mut logdriver = Logdriver::of(&account, &proxy, &store);
    wrap("acme", "a1");
    wrap("globex", "g1");
    next_of_acme("a1");
    // A tenant without a log system has the logdriver's own output, and nobody else's events are there.
    let own = logdriver.take_until(&["g1"]);
    assert!(
        own.iter().all(|event| event["tenantId"] == "globex"),
        "{own:?}"
    );

    // What it was told last serves without the broker, from its own disk.
    logdriver.kill();
    vendor.kill_broker();
    let mut logdriver = Logdriver::of(&account, &proxy, &store);
    wrap("acme", "a2");
    next_of_acme("a2");

    vendor.start_broker();
    vendor.admin(&["logging", "remove", "acme"]);
    logdriver.hang_up();
    logdriver.wait_for_metric("logdriver_configs", 0.0);
    wrap("acme", "a3");
    logdriver.take_until(&["a3"]);
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
        let mut first = Logdriver::start(&proxy, "tcp+ack", &store);
        let ids = use_everything(&proxy, "a");
        let ids: Vec<_> = ids.iter().map(String::as_str).collect();
        let mut events = first.take_until(&ids);
        first.kill();
        let ids = use_everything(&proxy, "b");
        let ids: Vec<_> = ids.iter().map(String::as_str).collect();
        let mut second = Logdriver::start(&proxy, "tcp+ack", &store);
        events.extend(second.take_until(&ids));
        while ["a", "b"].iter().any(|round| kinds(&events, round) != of_everything()) {
            events.push(second.event());
        }
        for (tenant, numbers) in sequences(&events) {
            let all = 1..=u64::try_from(numbers.len()).expect("few");
            assert_eq!(numbers, all.collect(), "{tenant}");
        }
    }
}
