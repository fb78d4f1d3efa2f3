//! Every kind of sink, against what takes its calls: the exact JSON that arrives, and what a sink makes of every answer.
//!
//! Against real peers, as far as they can be had: CloudWatch Logs is moto, which checks every signature and policy; syslog is
//! rsyslog with TLS; OpenTelemetry's messages are decoded by Google's protobuf in Python. All others are simulators here, which
//! check what the vendor documents: authentication, encoding, sizes, partial success. What the real peers need, `./x setup`
//! installs; without it the tests that need it fail and say so.

#![expect(
    clippy::disallowed_types,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "tests panic to fail, and simulators share what they have seen; no shard runs here"
)]

mod clouds;
mod cloudwatch;
mod end_to_end;
mod peers;
mod sim;
mod syslog;
mod vendors;

use std::{
    process::{Child, Command},
    sync::Arc,
};

use bytes::Bytes;
use serde_json::{Value, json};
use tsp_logdriver::{
    outbound::Outbound,
    sink::{Event, Failure, Sink},
    sinks::build,
};
use tsp_wire::{destinations::Destinations, logging::SinkConfig};

/// The sink of a configuration, which may connect to this machine.
fn sink(config: &Value) -> Arc<dyn Sink> {
    sink_at(config, "loopback")
}

fn sink_at(config: &Value, allowed: &str) -> Arc<dyn Sink> {
    let destinations = if allowed.is_empty() {
        Destinations::of_tenants_endpoints()
    } else {
        Destinations::parse(allowed).unwrap()
    };
    let config = SinkConfig::parse(&serde_json::to_vec(config).unwrap()).unwrap();
    build(&config, &Outbound::new(destinations)).unwrap()
}

/// When the first event happened: 2023-11-14T22:13:20.123Z.
const TIME_MS: i64 = 1_700_000_000_123;

/// Events one second apart, as the pipeline delivers them.
fn events(count: u64) -> Vec<Event> {
    events_at(TIME_MS, count)
}

fn events_at(time_ms: i64, count: u64) -> Vec<Event> {
    (1..=count)
        .map(|sequence| event_at(time_ms, sequence))
        .collect()
}

fn event_at(time_ms: i64, sequence: u64) -> Event {
    let id = format!("ray-{sequence:012}");
    let json = json!({
        "tenantId": "acme",
        "timestamp": "2023-11-14T22:13:20.123Z",
        "iclFields": {"event": "DATA_ENCRYPT", "requestingId": "svc \"é\" \\", "logdriverRayId": id},
        "customFields": {"b": "2", "a": "1"},
        "chain": {"logdriver": "00000000000000ff", "sequence": sequence, "previous": "00", "hash": "11"},
    });
    Event {
        id,
        sequence,
        timestamp_ms: time_ms + (i64::try_from(sequence).unwrap() - 1) * 1000,
        json: Bytes::from(json.to_string()),
    }
}

/// An event's JSON, as the receiver should have it.
fn json_of(event: &Event) -> Value {
    serde_json::from_slice(&event.json).unwrap()
}

fn text_of(event: &Event) -> String {
    String::from_utf8(event.json.to_vec()).unwrap()
}

/// What may be compared of a failure, for tables of answers.
fn word(outcome: &Result<(), Failure>) -> &'static str {
    match outcome {
        Ok(()) => "delivered",
        Err(Failure::Later { .. }) => "later",
        Err(Failure::Credentials { .. }) => "credentials",
        Err(Failure::Refused { .. }) => "refused",
        Err(Failure::Some { .. }) => "some",
    }
}

/// A child process that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A command that the kernel kills when the thread that spawned it ends.
fn child_command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}
