//! Tenants' log systems: one file each, and what they share.
//!
//! | kind | file | what counts as delivered |
//! | --- | --- | --- |
//! | `STDOUT` | [`stdout`] | a written line |
//! | `SPLUNK` | [`splunk`] | the collector's success, or with `acknowledge` the indexer's |
//! | `GCP` | [`gcp`] | the API's success, entry by entry |
//! | `DATADOG` | [`datadog`] | the intake's 202 |
//! | `SUMO_LOGIC` | [`sumo_logic`] | the source's 200 |
//! | `AZURE` | [`azure_monitor`] | the API's 204 |
//! | `CLOUDWATCH` | [`cloudwatch`] | the API's success, event by event |
//! | `OTLP` | [`otlp`] | the receiver's success, without rejected records |
//! | `WEBHOOK` | [`webhook`] | a 2xx |
//! | `SYSLOG` | [`syslog`] | all bytes taken until the collector closed |
//!
//! What must stay true: a sink keeps nothing between calls but a connection and a token. What it did not confirm is delivered
//! again, under the same id.

mod azure_monitor;
mod cloudwatch;
mod datadog;
mod gcp;
mod otlp;
mod splunk;
mod stdout;
mod sumo_logic;
mod syslog;
mod tokens;
mod webhook;

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tsp_kms::ConfigError;
use tsp_wire::logging::SinkConfig;

use crate::{
    outbound::{Outbound, PemError},
    sink::{Event, Failure, Sink},
};

pub use self::stdout::stdout;

/// A logging configuration of the right form that cannot be right all the same. Holds no value of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildError(String);

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BuildError {}

impl From<PemError> for BuildError {
    fn from(why: PemError) -> Self {
        Self(why.to_string())
    }
}

impl From<ConfigError> for BuildError {
    fn from(why: ConfigError) -> Self {
        Self(why.to_string())
    }
}

/// The sink that a configuration is of.
///
/// # Errors
/// [`BuildError`] if a key or a certificate in it is none.
pub fn build(config: &SinkConfig, outbound: &Outbound) -> Result<Arc<dyn Sink>, BuildError> {
    Ok(match config {
        SinkConfig::Stdout => stdout(),
        SinkConfig::Splunk(config) => Arc::new(splunk::Splunk::new(config, outbound)?),
        SinkConfig::Gcp(config) => Arc::new(gcp::Gcp::new(config, outbound)?),
        SinkConfig::Datadog(config) => Arc::new(datadog::Datadog::new(config, outbound)?),
        SinkConfig::SumoLogic(config) => Arc::new(sumo_logic::SumoLogic::new(config, outbound)?),
        SinkConfig::Azure(config) => Arc::new(azure_monitor::AzureMonitor::new(config, outbound)?),
        SinkConfig::CloudWatch(config) => Arc::new(cloudwatch::CloudWatch::new(config, outbound)?),
        SinkConfig::Otlp(config) => Arc::new(otlp::Otlp::new(config, outbound)?),
        SinkConfig::Webhook(config) => Arc::new(webhook::Webhook::new(config, outbound)?),
        SinkConfig::Syslog(config) => Arc::new(syslog::Syslog::new(config, outbound)?),
    })
}

/// An event's JSON, to be put into other JSON as it is.
fn raw(event: &Event) -> Result<&RawValue, Failure> {
    serde_json::from_slice(&event.json).map_err(|_| not_json())
}

/// An event's JSON, as text.
fn text(event: &Event) -> Result<&str, Failure> {
    std::str::from_utf8(&event.json).map_err(|_| not_json())
}

fn not_json() -> Failure {
    Failure::Refused {
        why: "an event that is no JSON".to_owned(),
    }
}

/// JSON of our own making.
fn to_json(value: &impl Serialize) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(value).map_err(|_| not_json())
}

/// The name of what happened; empty if there is none.
fn event_name(event: &Event) -> String {
    #[derive(Deserialize)]
    struct Named {
        #[serde(rename = "iclFields")]
        fields: Fields,
    }
    #[derive(Deserialize)]
    struct Fields {
        event: String,
    }
    let named: Option<Named> = serde_json::from_slice(&event.json).ok();
    named.map(|named| named.fields.event).unwrap_or_default()
}

/// When an event happened, as RFC 3339 has it.
fn rfc3339(event: &Event) -> String {
    let mut text = Vec::with_capacity(24);
    tsp_wire::event::push_timestamp(&mut text, event.timestamp_ms);
    String::from_utf8_lossy(&text).into_owned()
}
