//! Splunk, Datadog, Sumo Logic, webhooks and OpenTelemetry: simulators that check what the vendors document.

use std::time::Duration;

use aws_lc_rs::hmac;
use serde_json::{Value, json};
use tsp_logdriver::sink::{Failure, SinkKind};

use crate::{
    events, json_of, peers,
    sim::{Reply, Sim},
    sink, sink_at, text_of, word,
};

fn splunk(url: &str, more: Value) -> Value {
    let mut config = json!({"type": "SPLUNK", "hecUrl": url, "token": "t-0123"});
    config
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    config
}

/// Concatenated JSON objects, one by one.
fn objects(body: &[u8]) -> Vec<Value> {
    let all = serde_json::Deserializer::from_slice(body).into_iter();
    all.collect::<Result<_, _>>().unwrap()
}

#[tokio::test]
async fn splunk_gets_events_with_their_times() {
    let sim = Sim::start(|_, _| Reply::json(200, &json!({"text": "Success", "code": 0}))).await;
    let all = json!({"index": "security", "source": "tsp", "sourcetype": "_json"});
    // The whole address, as Splunk's pages show it, is the same as the short one.
    let url = format!("{}/services/collector/event", sim.url);
    let events = events(2);
    sink(&splunk(&url, all)).deliver(&events).await.unwrap();
    let seen = sim.only();
    assert_eq!(
        (seen.method.as_str(), seen.path.as_str()),
        ("POST", "/services/collector/event")
    );
    assert_eq!(seen.header("authorization"), "Splunk t-0123");
    assert_eq!(
        objects(&seen.body),
        [
            json!({"time": 1_700_000_000.123, "source": "tsp", "sourcetype": "_json", "index": "security", "event": json_of(&events[0])}),
            json!({"time": 1_700_000_001.123, "source": "tsp", "sourcetype": "_json", "index": "security", "event": json_of(&events[1])}),
        ]
    );
}

#[tokio::test]
async fn splunk_says_no_in_several_ways() {
    for (status, code, expected) in [
        (401, 2, "credentials"),
        (403, 4, "credentials"),
        (403, 1, "credentials"),
        (400, 7, "credentials"),
        (400, 10, "credentials"),
        (400, 14, "credentials"),
        (400, 6, "refused"),
        (400, 12, "refused"),
        (413, 27, "refused"),
        (500, 8, "later"),
        (503, 9, "later"),
        (404, 404, "credentials"),
    ] {
        let sim = Sim::start(move |_, _| {
            Reply::json(status, &json!({"text": "no", "code": code})).header("retry-after", "17")
        })
        .await;
        let outcome = sink(&splunk(&sim.url, json!({}))).deliver(&events(1)).await;
        assert_eq!(word(&outcome), expected, "{status} {code}: {outcome:?}");
        if let Err(Failure::Later { after, .. }) = outcome {
            assert_eq!(after, Some(Duration::from_secs(17)));
        }
    }
}

#[tokio::test]
async fn with_acknowledgement_events_are_delivered_when_they_are_indexed() {
    let sim = Sim::start(|seen, before| {
        if seen.header("x-splunk-request-channel").len() != 36 {
            return Reply::json(400, &json!({"text": "Data channel is missing", "code": 10}));
        }
        match (seen.path.as_str(), before) {
            ("/services/collector/event", 0) => {
                Reply::json(200, &json!({"text": "Success", "code": 0, "ackId": 7}))
            }
            ("/services/collector/ack", 1) => Reply::json(200, &json!({"acks": {"7": false}})),
            ("/services/collector/ack", 2) => Reply::json(200, &json!({"acks": {"7": true}})),
            _ => Reply::new(404, ""),
        }
    })
    .await;
    let config = splunk(&sim.url, json!({"acknowledge": true}));
    sink(&config).deliver(&events(1)).await.unwrap();
    let seen = sim.seen();
    assert_eq!(seen.len(), 3);
    assert_eq!(seen[1].json(), json!({"acks": [7]}));
    let channel = |n: usize| seen[n].header("x-splunk-request-channel").to_owned();
    assert!(channel(0) == channel(1) && channel(1) == channel(2));

    let without = Sim::start(|_, _| Reply::json(200, &json!({"text": "Success", "code": 0}))).await;
    let config = splunk(&without.url, json!({"acknowledge": true}));
    let outcome = sink(&config).deliver(&events(1)).await;
    assert_eq!(word(&outcome), "credentials", "{outcome:?}");
}

#[tokio::test]
async fn datadog_gets_each_event_as_a_packed_message() {
    // The intake's own limits: 1,000 logs, 5 MB.
    let sim = Sim::start(|seen, _| {
        let logs = seen.json();
        if seen.header("dd-api-key") != "k-0123" {
            return Reply::json(403, &json!({"errors": [{"title": "Forbidden"}]}));
        }
        let fits =
            seen.body.len() <= 5_000_000 && logs.as_array().is_some_and(|logs| logs.len() <= 1000);
        Reply::json(if fits { 202 } else { 413 }, &json!({}))
    })
    .await;
    let mut config = json!({"type": "DATADOG", "site": "datadoghq.eu", "apiKey": "k-0123", "endpoint": sim.url,
        "service": "tsp", "tags": "env:prod"});
    let full = events(1000);
    sink(&config).deliver(&full).await.unwrap();
    let seen = sim.only();
    assert_eq!((seen.path.as_str(), seen.gzip), ("/api/v2/logs", true));
    assert_eq!(seen.header("content-type"), "application/json");
    let expected: Vec<_> = full
        .iter()
        .map(|event| json!({"ddsource": "tsp", "ddtags": "env:prod", "service": "tsp", "message": text_of(event)}))
        .collect();
    assert_eq!(seen.json(), Value::from(expected));
    config["apiKey"] = json!("wrong");
    assert_eq!(word(&sink(&config).deliver(&full).await), "credentials");
    assert_eq!(
        word(&sink(&config).deliver(&events(1001)).await),
        "credentials"
    );
}

#[tokio::test]
async fn sumo_logic_gets_lines() {
    let sim = Sim::start(|_, before| Reply::new(if before == 0 { 200 } else { 429 }, "")).await;
    let url = format!("{}/receiver/v1/http/secret==", sim.url);
    let config = json!({"type": "SUMO_LOGIC", "collectorUrl": url, "category": "prod/tsp", "name": "n", "host": "h"});
    let (events, sink) = (events(2), sink(&config));
    sink.deliver(&events).await.unwrap();
    let seen = sim.only();
    assert_eq!(
        (seen.path.as_str(), seen.gzip),
        ("/receiver/v1/http/secret==", true)
    );
    assert_eq!(
        seen.text(),
        format!("{}\n{}\n", text_of(&events[0]), text_of(&events[1]))
    );
    for (name, value) in [
        ("x-sumo-category", "prod/tsp"),
        ("x-sumo-name", "n"),
        ("x-sumo-host", "h"),
    ] {
        assert_eq!(seen.header(name), value);
    }
    let outcome = sink.deliver(&events).await;
    assert_eq!(word(&outcome), "later");
    assert!(!format!("{outcome:?}").contains("secret"), "{outcome:?}");
}

#[tokio::test]
async fn a_webhook_is_signed_over_time_and_body() {
    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    let sim = Sim::start(|_, _| Reply::new(204, "")).await;
    let config = json!({"type": "WEBHOOK", "url": format!("{}/in?x=1", sim.url), "hmacSecret": SECRET,
        "headers": {"Authorization": "Bearer b"}});
    let events = events(2);
    sink(&config).deliver(&events).await.unwrap();
    let seen = sim.only();
    assert_eq!(
        (seen.path.as_str(), seen.header("authorization")),
        ("/in?x=1", "Bearer b")
    );
    assert_eq!(
        seen.json(),
        json!([json_of(&events[0]), json_of(&events[1])])
    );
    let timestamp = seen.header("x-tsp-timestamp");
    assert!(timestamp.parse::<u64>().unwrap() > 1_700_000_000);
    // By another library than the sink's.
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let signed = [format!("v1:{timestamp}:").as_bytes(), &seen.body].concat();
    let signature = seen.header("x-tsp-signature").strip_prefix("v1=").unwrap();
    hmac::verify(&key, &signed, &hex::decode(signature).unwrap()).unwrap();
}

#[tokio::test]
async fn otlp_is_what_others_read_as_log_records() {
    let sim = Sim::start(|seen, _| {
        let sound = seen.header("content-type") == "application/x-protobuf" && seen.gzip;
        Reply::new(if sound { 200 } else { 415 }, "")
    })
    .await;
    let config =
        json!({"type": "OTLP", "url": format!("{}/v1/logs", sim.url), "headers": {"api-key": "k"}});
    let events = events(2);
    sink(&config).deliver(&events).await.unwrap();
    let seen = sim.only();
    assert_eq!(
        (seen.path.as_str(), seen.header("api-key")),
        ("/v1/logs", "k")
    );
    let mut read = peers::otlp_as_json(&seen.body);
    let records = read["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
        .as_array_mut()
        .unwrap();
    for record in &mut *records {
        let observed = record
            .as_object_mut()
            .unwrap()
            .remove("observedTimeUnixNano")
            .unwrap();
        assert!(observed.as_str().unwrap().parse::<u64>().unwrap() > 1_700_000_000_000_000_000);
    }
    let record = |n: usize, time: &str| {
        json!({
            "timeUnixNano": time,
            "severityNumber": "SEVERITY_NUMBER_INFO2",
            "severityText": "NOTICE",
            "body": {"stringValue": text_of(&events[n])},
            "attributes": [{"key": "log.record.uid", "value": {"stringValue": events[n].id}}],
            "eventName": "DATA_ENCRYPT",
        })
    };
    assert_eq!(
        read,
        json!({"resourceLogs": [{
            "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "tenant-security-proxy"}}]},
            "scopeLogs": [{
                "scope": {"name": "tsp-logdriver", "version": env!("CARGO_PKG_VERSION")},
                "logRecords": [record(0, "1700000000123000000"), record(1, "1700000001123000000")],
            }],
        }]})
    );
}

#[tokio::test]
async fn otlp_records_that_are_rejected_without_their_names_are_refused() {
    // ExportLogsServiceResponse{partial_success{rejected_log_records: 1, error_message: "bad"}}, byte by byte.
    let partial = [0x0a, 7, 0x08, 1, 0x12, 3, b'b', b'a', b'd'];
    let sim = Sim::start(move |_, _| Reply::new(200, partial)).await;
    let outcome = sink(&json!({"type": "OTLP", "url": sim.url}))
        .deliver(&events(2))
        .await;
    let Err(Failure::Refused { why }) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(why, "1 records rejected: bad");
    // A warning alone is none.
    let warning = [0x0a, 5, 0x12, 3, b'b', b'a', b'd'];
    let sim = Sim::start(move |_, _| Reply::new(200, warning)).await;
    sink(&json!({"type": "OTLP", "url": sim.url}))
        .deliver(&events(2))
        .await
        .unwrap();
}

#[tokio::test]
async fn no_sink_reaches_a_private_address_unless_it_is_listed() {
    let sim = Sim::start(|_, _| Reply::new(200, "")).await;
    let port = sim.url.rsplit(':').next().unwrap().to_owned();
    let by_name = format!("http://localhost:{port}");
    let hmac = "0123456789abcdef0123456789abcdef";
    for config in [
        splunk(&by_name, json!({})),
        json!({"type": "DATADOG", "site": "x.example", "apiKey": "k", "endpoint": by_name}),
        json!({"type": "SUMO_LOGIC", "collectorUrl": by_name}),
        json!({"type": "OTLP", "url": by_name}),
        json!({"type": "WEBHOOK", "url": by_name, "hmacSecret": hmac}),
        json!({"type": "WEBHOOK", "url": "https://[::ffff:10.0.0.1]/", "hmacSecret": hmac}),
        json!({"type": "SYSLOG", "host": "localhost"}),
        json!({"type": "CLOUDWATCH", "region": "us-east-1", "logGroup": "g", "logStream": "s", "accessKeyId": "AKIA",
            "secretAccessKey": "s", "endpoint": by_name}),
    ] {
        let outcome = sink_at(&config, "").deliver(&events(1)).await;
        let Err(Failure::Credentials { why }) = outcome else {
            panic!("{config}: {outcome:?}");
        };
        assert!(why.contains("may not connect"), "{why}");
    }
    assert_eq!(sim.seen().len(), 0);
}

#[tokio::test]
async fn limits_leave_room_for_what_surrounds_events() {
    let kinds: Vec<_> = SinkKind::ALL.into_iter().map(SinkKind::as_str).collect();
    assert_eq!(kinds.len(), 10);
    let sim = Sim::start(|seen, _| {
        Reply::new(
            if seen.body.len() <= 1_000_000 {
                200
            } else {
                413
            },
            "",
        )
    })
    .await;
    // As many small events as a call may have.
    let sink = sink(&splunk(&sim.url, json!({"index": "i".repeat(100)})));
    let limits = sink.limits();
    let all = events(u64::try_from(limits.events_max).unwrap());
    let mut bytes = 0;
    let fit: Vec<_> = all
        .into_iter()
        .take_while(|event| {
            bytes += event.json.len();
            bytes <= limits.bytes_max
        })
        .collect();
    sink.deliver(&fit).await.unwrap();
}
