//! Google Cloud Logging: `entries:write` (Cloud Logging API v2, REST).
//!
//! The id of an event is its entry's `insertId`, so that what is sent twice is shown once. With `partialSuccess` the API writes
//! what it can, and names the entries that it cannot.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tsp_kms::CloudLogs;
use tsp_wire::logging;

use super::{
    BuildError, raw, rfc3339, to_json,
    tokens::{Tokens, base_url, bearer},
};
use crate::{
    outbound::{Answer, Client, Outbound, quote},
    sink::{Event, Failure, Limits, Sink, SinkKind},
};

/// The API takes 10 MB a call and 256 KB an entry, in a form of its own that may be somewhat larger than JSON.
const LIMITS: Limits = Limits {
    events_max: 1_000,
    bytes_max: 5_000_000,
    event_bytes_max: 200_000,
};

pub(super) struct Gcp {
    client: Client,
    url: String,
    tokens: Tokens,
    log_name: String,
}

impl Gcp {
    pub(super) fn new(config: &logging::Gcp, outbound: &Outbound) -> Result<Self, BuildError> {
        let logs = CloudLogs::google(config)?;
        let log_id = config.log_id.replace('/', "%2F");
        Ok(Self {
            client: outbound.client(config.ca_pem.as_deref())?,
            url: format!("{}/v2/entries:write", base_url(logs.endpoint())),
            tokens: Tokens::new(logs),
            log_name: format!("projects/{}/logs/{log_id}", config.project_id),
        })
    }

    async fn send(&self, events: &[Event]) -> Result<(), Failure> {
        fn entry(event: &Event) -> Result<Entry<'_>, Failure> {
            Ok(Entry {
                insert_id: &event.id,
                timestamp: rfc3339(event),
                severity: "NOTICE",
                json_payload: raw(event)?,
            })
        }
        let body = to_json(&Write {
            log_name: &self.log_name,
            resource: Resource { r#type: "global" },
            partial_success: true,
            entries: events.iter().map(entry).collect::<Result<_, Failure>>()?,
        })?;
        let answer = bearer(&self.tokens, &self.client, &self.url, body).await?;
        judged(&answer, events.len())
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Write<'a> {
    log_name: &'a str,
    resource: Resource,
    partial_success: bool,
    entries: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Resource {
    r#type: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    insert_id: &'a str,
    timestamp: String,
    severity: &'static str,
    json_payload: &'a RawValue,
}

/// What an answer means, entry by entry if it says so.
fn judged(answer: &Answer, events: usize) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Refused {
        error: Error,
    }
    #[derive(Deserialize)]
    struct Error {
        #[serde(default)]
        details: Vec<Detail>,
    }
    #[derive(Deserialize)]
    struct Detail {
        #[serde(default, rename = "logEntryErrors")]
        entries: BTreeMap<String, Status>,
    }
    #[derive(Deserialize)]
    struct Status {
        #[serde(default)]
        code: u32,
        #[serde(default)]
        message: String,
    }

    if answer.status.is_success() {
        return Ok(());
    }
    let errors: Vec<(usize, Status)> = serde_json::from_slice::<Refused>(&answer.body)
        .map(|refused| refused.error.details)
        .unwrap_or_default()
        .into_iter()
        .flat_map(|detail| detail.entries)
        .filter_map(|(index, status)| Some((index.parse().ok()?, status)))
        .filter(|(index, _)| *index < events)
        .collect();
    let any = |codes: &[u32]| {
        errors
            .iter()
            .any(|(_, status)| codes.contains(&status.code))
    };
    if errors.is_empty() {
        return answer.judged();
    }
    let why = answer.sentence();
    // Permission denied, unauthenticated; deadline, resources, internal, unavailable (google.rpc.Code).
    if any(&[7, 16]) {
        return Err(Failure::Credentials { why });
    }
    if any(&[4, 8, 13, 14]) {
        let after = answer.retry_after();
        return Err(Failure::Later { after, why });
    }
    let refused = errors.into_iter();
    Err(Failure::Some {
        refused: refused
            .map(|(index, status)| (index, quote(&status.message)))
            .collect(),
    })
}

impl Sink for Gcp {
    fn kind(&self) -> SinkKind {
        SinkKind::Gcp
    }

    fn limits(&self) -> Limits {
        LIMITS
    }

    fn deliver<'a>(&'a self, events: &'a [Event]) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(self.send(events))
    }
}
