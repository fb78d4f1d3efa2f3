//! Azure Monitor's Logs Ingestion API (Azure Monitor, "Logs Ingestion API in Azure Monitor", version 2023-01-01).
//!
//! A record has the columns `TimeGenerated` (datetime), `Id` (string), `Sequence` (long) and `Event` (dynamic), whatever an event
//! holds: so a data collection rule is made once and fits every event.

use futures_util::future::BoxFuture;
use serde::Serialize;
use serde_json::value::RawValue;
use tsp_kms::CloudLogs;
use tsp_wire::logging;

use super::{
    BuildError, raw, rfc3339, to_json,
    tokens::{Tokens, base_url, bearer},
};
use crate::{
    outbound::{Client, Outbound},
    sink::{Event, Failure, Limits, Sink, SinkKind},
};

/// The API takes 1 MB a call, and cuts a column's value at 64 KB.
const LIMITS: Limits = Limits {
    events_max: 1_000,
    bytes_max: 800_000,
    event_bytes_max: 60_000,
};

const API_VERSION: &str = "2023-01-01";

pub(super) struct AzureMonitor {
    client: Client,
    url: String,
    tokens: Tokens,
}

impl AzureMonitor {
    pub(super) fn new(config: &logging::Azure, outbound: &Outbound) -> Result<Self, BuildError> {
        let logs = CloudLogs::azure(config)?;
        let (rule, stream) = (&config.dcr_immutable_id, &config.stream_name);
        let base = base_url(logs.endpoint());
        Ok(Self {
            client: outbound.client(config.ca_pem.as_deref())?,
            url: format!(
                "{base}/dataCollectionRules/{rule}/streams/{stream}?api-version={API_VERSION}"
            ),
            tokens: Tokens::new(logs),
        })
    }

    async fn send(&self, events: &[Event]) -> Result<(), Failure> {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Record<'a> {
            time_generated: String,
            id: &'a str,
            sequence: u64,
            event: &'a RawValue,
        }
        fn record(event: &Event) -> Result<Record<'_>, Failure> {
            Ok(Record {
                time_generated: rfc3339(event),
                id: &event.id,
                sequence: event.sequence,
                event: raw(event)?,
            })
        }
        let records: Vec<_> = events.iter().map(record).collect::<Result<_, Failure>>()?;
        bearer(&self.tokens, &self.client, &self.url, to_json(&records)?)
            .await?
            .judged()
    }
}

impl Sink for AzureMonitor {
    fn kind(&self) -> SinkKind {
        SinkKind::AzureMonitor
    }

    fn limits(&self) -> Limits {
        LIMITS
    }

    fn deliver<'a>(&'a self, events: &'a [Event]) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(self.send(events))
    }
}
