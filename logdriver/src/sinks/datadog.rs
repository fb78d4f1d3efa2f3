//! Datadog's logs intake (Datadog API Reference, "Send logs", v2).
//!
//! An event is the `message` of a log, as text: Datadog reads JSON there by itself, and it comes back out as it went in.

use futures_util::future::BoxFuture;
use serde::Serialize;
use tsp_wire::{Secret, logging};

use super::{BuildError, text, to_json};
use crate::{
    outbound::{Call, Client, Outbound},
    sink::{Event, Failure, Limits, Sink, SinkKind},
};

/// The intake takes 1,000 logs and 5 MB uncompressed; of one log it keeps 1 MB. Inside a JSON string an event may take twice
/// its size.
const LIMITS: Limits = Limits {
    events_max: 1_000,
    bytes_max: 2_000_000,
    event_bytes_max: 450_000,
};

pub(super) struct Datadog {
    client: Client,
    url: String,
    key: Secret<String>,
    service: Option<String>,
    tags: Option<String>,
}

impl Datadog {
    pub(super) fn new(config: &logging::Datadog, outbound: &Outbound) -> Result<Self, BuildError> {
        let base = config.endpoint.clone();
        let base = base.unwrap_or_else(|| format!("https://http-intake.logs.{}", config.site));
        Ok(Self {
            client: outbound.client(config.ca_pem.as_deref())?,
            url: format!("{}/api/v2/logs", base.trim_end_matches('/')),
            key: Secret::new(config.api_key.expose().clone()),
            service: config.service.clone(),
            tags: config.tags.clone(),
        })
    }

    async fn send(&self, events: &[Event]) -> Result<(), Failure> {
        #[derive(Serialize)]
        struct Log<'a> {
            ddsource: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            ddtags: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            service: Option<&'a str>,
            message: &'a str,
        }
        let log = |event| {
            Ok::<_, Failure>(Log {
                ddsource: "tsp",
                ddtags: self.tags.as_deref(),
                service: self.service.as_deref(),
                message: text(event)?,
            })
        };
        let logs: Vec<_> = events.iter().map(log).collect::<Result<_, _>>()?;
        let call = Call::post(&self.url, "application/json", to_json(&logs)?)?
            .gzip()
            .header("dd-api-key", self.key.expose())?;
        self.client.send(call).await?.judged()
    }
}

impl Sink for Datadog {
    fn kind(&self) -> SinkKind {
        SinkKind::Datadog
    }

    fn limits(&self) -> Limits {
        LIMITS
    }

    fn deliver<'a>(&'a self, events: &'a [Event]) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(self.send(events))
    }
}
