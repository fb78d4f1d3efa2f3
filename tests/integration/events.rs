//! Security events on the PUSH socket: one for each thing done, with the caller's metadata, counted without a gap.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{
    config::two_local_tenants,
    events::EventPuller,
    metadata, on_both,
    proxy::{Io, Proxy, Setup},
    request, text,
};

fn start(io: Io) -> (Proxy, EventPuller) {
    let proxy = Setup::serve(io, &two_local_tenants()).start();
    let puller = EventPuller::connect(proxy.event.expect("the event socket's address is told"));
    (proxy, puller)
}

/// Metadata in which everything is set, with `request_id` to tell the events apart.
fn full_metadata(tenant: &str, request_id: &str, members: Value) -> Value {
    let mut body = request(tenant, members);
    body["iclFields"] = json!({
        "requestingId": "user", "dataLabel": "PII", "sourceIp": "192.0.2.7", "objectId": "object", "requestId": request_id
    });
    body["customFields"] = json!({ "a": "b" });
    body
}

/// Name, tenant and request id of an event.
fn who(event: &Value) -> (&str, &str, &str) {
    let fields = &event["iclFields"];
    (
        text(fields, "event"),
        text(event, "tenantId"),
        text(fields, "requestId"),
    )
}

on_both! {
    fn every_operation_and_every_posted_event_comes_out(io) {
        let (proxy, mut puller) = start(io);
        let wrapped = proxy.call("document/wrap", &full_metadata("acme", "1", json!({}))).ok();
        let edek = text(&wrapped, "edek");
        proxy.call("document/unwrap", &full_metadata("acme", "2", json!({ "encryptedDocumentKey": edek }))).ok();
        let rekey = json!({ "encryptedDocumentKey": edek, "newTenantId": "globex" });
        proxy.call("document/rekey", &full_metadata("acme", "3", rekey)).ok();
        let batch = proxy.call("document/batch-wrap", &full_metadata("acme", "4", json!({ "documentIds": ["a", "b"] }))).ok();
        let edeks = json!({ "a": batch["keys"]["a"]["edek"], "bad": "ZWRlaw==" });
        proxy.call("document/batch-unwrap", &full_metadata("acme", "5", json!({ "edeks": edeks }))).ok();
        let mut login = full_metadata("nobody", "6", json!({ "timestampMillis": 1_700_000_000_000_i64 }));
        login["iclFields"]["event"] = json!("USER_LOGIN");
        proxy.call("event/security-event", &login).ok();
        let backup = full_metadata("acme", "7", json!({ "event": "CREATE_BACKUP" }));
        proxy.call("event/security-event", &backup).ok();
        let report = json!({ "operations": { edek: { "wraps": 3, "unwraps": 2 } } });
        proxy.call("document/report-operations", &full_metadata("acme", "8", report)).ok();

        let events = puller.next_sorted(11);
        let seen: Vec<_> = events.iter().map(who).collect();
        assert_eq!(seen, [
            ("DATA_ENCRYPT", "acme", "1"),
            ("DATA_DECRYPT", "acme", "2"),
            ("DATA_DECRYPT", "acme", "3"),
            ("DATA_ENCRYPT", "globex", "3"),
            ("DATA_ENCRYPT", "acme", "4"),
            ("DATA_ENCRYPT", "acme", "4"),
            ("DATA_DECRYPT", "acme", "5"),
            ("USER_LOGIN", "nobody", "6"),
            ("PERIODIC_CREATE_BACKUP", "acme", "7"),
            ("DATA_DECRYPT", "acme", "8"),
            ("DATA_ENCRYPT", "acme", "8"),
        ]);
        for event in &events {
            let fields = &event["iclFields"];
            assert_eq!((text(fields, "requestingId"), text(fields, "dataLabel")), ("user", "PII"));
            assert_eq!((text(fields, "sourceIp"), text(fields, "objectId")), ("192.0.2.7", "object"));
            assert_eq!(event["customFields"], json!({ "a": "b" }));
            assert_eq!(text(fields, "tspRayId").len(), 16, "{event}");
            let posted = ["6", "7"].contains(&text(fields, "requestId"));
            assert_eq!(text(fields, "source"), if posted || text(fields, "requestId") == "8" { "app" } else { "tsp" }, "{event}");
            assert!(text(event, "timestamp").ends_with('Z'), "{event}");
        }
        assert_eq!(text(&events[7], "timestamp"), "2023-11-14T22:13:20.000Z");
        let keys = [text(&wrapped, "dek"), edek];
        assert!(!keys.iter().any(|key| json!(events).to_string().contains(key)), "an event holds a key");
    }

    fn a_failed_operation_is_no_event(io) {
        let (proxy, mut puller) = start(io);
        proxy.call("document/wrap", &full_metadata("nobody", "1", json!({}))).refused(422, 201);
        proxy.call("document/unwrap", &full_metadata("acme", "2", json!({ "encryptedDocumentKey": "ZWRlaw==" }))).refused(422, 203);
        proxy.call("document/wrap", &full_metadata("acme", "3", json!({}))).ok();
        assert_eq!(who(&puller.next()), ("DATA_ENCRYPT", "acme", "3"));
    }

    fn numbers_have_no_gap_so_that_a_loss_would_show(io) {
        let (proxy, mut puller) = start(io);
        for _ in 0..40 {
            proxy.call("document/wrap", &full_metadata("acme", "r", json!({}))).ok();
        }
        let events: Vec<_> = (0..40).map(|_| puller.next()).collect();
        let instances: BTreeSet<_> = events.iter().map(|event| event["sequence"]["instance"].to_string()).collect();
        assert_eq!(instances.len(), 1);
        for shard in 0..2 {
            let numbers: BTreeSet<_> =
                events.iter().filter(|event| event["sequence"]["shard"] == shard).filter_map(|event| event["sequence"]["number"].as_u64()).collect();
            let span = numbers.last().zip(numbers.first()).map_or(0, |(last, first)| last - first + 1);
            assert_eq!(span, numbers.len() as u64, "shard {shard} has a gap: {numbers:?}");
        }
    }

    fn without_a_logdriver_nothing_listens_and_nothing_waits(io) {
        let proxy = Setup::serve(io, &two_local_tenants()).env("TSP_ENABLE_LOGDRIVER_INTEGRATION", "false").start();
        assert_eq!(proxy.event, None);
        proxy.call("document/wrap", &metadata("acme")).ok();
        proxy.call("event/security-event", &request("acme", json!({ "event": "USER_LOGIN" }))).ok();
        assert_eq!(proxy.metrics().count("tsp_real_time_security_event_failures_total", &[]), 0.0);
    }

    fn an_event_that_nobody_takes_is_dropped_and_counted(io) {
        let proxy = full_queue(io, "false");
        for _ in 0..30 {
            proxy.call("document/wrap", &metadata("acme")).ok();
        }
        assert!(proxy.metrics().count("tsp_real_time_security_event_failures_total", &[]) >= 10.0);
    }

    fn in_strict_mode_an_event_that_nobody_takes_is_301(io) {
        let proxy = full_queue(io, "true");
        let answers: Vec<_> = (0..30).map(|_| proxy.call("document/wrap", &metadata("acme"))).collect();
        let last = answers.last().expect("there are thirty");
        last.refused(503, 301);
        proxy.call("event/security-event", &request("acme", json!({ "event": "USER_LOGIN" }))).refused(503, 301);
    }
}

/// A proxy that can hold only a few events, and nobody to take them.
fn full_queue(io: Io, required: &str) -> Proxy {
    Setup::serve(io, &two_local_tenants())
        .env("TSP_EVENT_LOG_CHANNEL_SIZE", "2")
        .env("TSP_SEND_HIGH_WATER_MARK", "2")
        .env("TSP_SEND_LOGGING_TIMEOUT_MS", "1")
        .env("TSP_EVENTS_REQUIRED", required)
        .start()
}
