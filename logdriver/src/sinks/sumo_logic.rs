//! An HTTP source of Sumo Logic (Sumo Logic, "Upload Data to an HTTP Source"): one event a line.

use futures_util::future::BoxFuture;
use tsp_wire::{Secret, logging};

use super::BuildError;
use crate::{
    outbound::{Call, Client, Outbound},
    sink::{Event, Failure, Limits, Sink, SinkKind},
};

/// Sumo Logic asks for calls of at most 1 MB before compression, and cuts lines that are longer than 64 KB.
const LIMITS: Limits = Limits {
    events_max: 10_000,
    bytes_max: 1_000_000,
    event_bytes_max: 64_000,
};

pub(super) struct SumoLogic {
    client: Client,
    url: Secret<String>,
    headers: Vec<(&'static str, String)>,
}

impl SumoLogic {
    pub(super) fn new(
        config: &logging::SumoLogic,
        outbound: &Outbound,
    ) -> Result<Self, BuildError> {
        let headers = [
            ("x-sumo-category", &config.category),
            ("x-sumo-name", &config.name),
            ("x-sumo-host", &config.host),
        ];
        let headers = headers.into_iter();
        Ok(Self {
            client: outbound.client(config.ca_pem.as_deref())?,
            url: Secret::new(config.collector_url.expose().clone()),
            headers: headers
                .filter_map(|(name, value)| Some((name, value.clone()?)))
                .collect(),
        })
    }

    async fn send(&self, events: &[Event]) -> Result<(), Failure> {
        let mut lines = Vec::new();
        for event in events {
            lines.extend_from_slice(&event.json);
            lines.push(b'\n');
        }
        let mut call = Call::post(self.url.expose(), "application/json", lines)?.gzip();
        for (name, value) in &self.headers {
            call = call.header(name, value)?;
        }
        self.client.send(call).await?.judged()
    }
}

impl Sink for SumoLogic {
    fn kind(&self) -> SinkKind {
        SinkKind::SumoLogic
    }

    fn limits(&self) -> Limits {
        LIMITS
    }

    fn deliver<'a>(&'a self, events: &'a [Event]) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(self.send(events))
    }
}
