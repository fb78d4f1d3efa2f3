//! A tenant's log system, as the pipeline sees it: takes events, or says why not and what may help.

use std::{fmt, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;

/// One event as it is delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// 16 characters, made when the event was stored, the same in every retry (`iclFields.logdriverRayId`). Sinks use
    /// it as the id that de-duplicates.
    pub id: String,
    /// Its place in the tenant's chain, from 1.
    pub sequence: u64,
    /// When it happened (the JSON's `timestamp`), in milliseconds since 1970.
    pub timestamp_ms: i64,
    /// The event as delivered: one line of JSON, with `logdriverRayId` and `chain`.
    pub json: Bytes,
}

/// The most that one call of a sink takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Events in one call.
    pub events_max: usize,
    /// Bytes of all their JSON.
    pub bytes_max: usize,
    /// Bytes of one event's JSON. A larger one is a dead letter.
    pub event_bytes_max: usize,
}

/// Kinds of sinks: the label of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SinkKind {
    /// The logdriver's own standard output.
    Stdout,
    /// Splunk's HTTP Event Collector.
    Splunk,
    /// Google Cloud Logging.
    Gcp,
    /// Datadog's logs intake.
    Datadog,
    /// Sumo Logic's HTTP source.
    SumoLogic,
    /// Azure Monitor's Logs Ingestion API.
    AzureMonitor,
    /// AWS CloudWatch Logs.
    CloudWatch,
    /// OpenTelemetry over HTTP.
    Otlp,
    /// A generic HTTPS webhook.
    Webhook,
    /// Syslog over TLS.
    Syslog,
}

impl SinkKind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Stdout,
        Self::Splunk,
        Self::Gcp,
        Self::Datadog,
        Self::SumoLogic,
        Self::AzureMonitor,
        Self::CloudWatch,
        Self::Otlp,
        Self::Webhook,
        Self::Syslog,
    ];

    /// The label's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Splunk => "splunk",
            Self::Gcp => "gcp",
            Self::Datadog => "datadog",
            Self::SumoLogic => "sumo_logic",
            Self::AzureMonitor => "azure_monitor",
            Self::CloudWatch => "cloudwatch",
            Self::Otlp => "otlp",
            Self::Webhook => "webhook",
            Self::Syslog => "syslog",
        }
    }
}

impl fmt::Display for SinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A tenant's log system. One file each below `sinks/`.
pub trait Sink: Send + Sync {
    /// What it is.
    fn kind(&self) -> SinkKind;

    /// The most of one call; the pipeline cuts batches to it.
    fn limits(&self) -> Limits;

    /// Delivers all or nothing, unless the failure says otherwise. Bounded in time by itself.
    fn deliver<'a>(&'a self, events: &'a [Event]) -> BoxFuture<'a, Result<(), Failure>>;
}

/// Why a call did not deliver all. The texts are for the operator's log and hold no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Not now: network, 408, 429, 5xx.
    Later {
        /// When the sink says to come back.
        after: Option<Duration>,
        /// In words.
        why: String,
    },
    /// 401, 403 and the like: the tenant must mend the credential. Kept, and tried every five minutes.
    Credentials {
        /// In words.
        why: String,
    },
    /// 400, 413, 422: the call is refused. The pipeline splits it until the bad event is alone, which becomes a dead
    /// letter.
    Refused {
        /// In words.
        why: String,
    },
    /// These, by index, were refused, and all others taken.
    Some {
        /// Index and reason.
        refused: Vec<(usize, String)>,
    },
}
