//! Splunk's HTTP Event Collector (Splunk Enterprise, "Getting Data In": "Format events for HTTP Event Collector", "About HTTP
//! Event Collector Indexer Acknowledgment", "Troubleshoot HTTP Event Collector").
//!
//! A collector's success means that it took the events, not that they are indexed. With indexer acknowledgement it gives each
//! call a number, and says later whether that one is indexed; until it does, the events count as not delivered.

use std::{collections::HashMap, time::Duration};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep};
use tsp_wire::{Secret, logging};

use super::{BuildError, raw, to_json};
use crate::{
    outbound::{Answer, Call, Client, Outbound},
    sink::{Event, Failure, Limits, Sink, SinkKind},
};

/// Splunk Cloud takes 1 MB a call; an own Splunk takes more unless told otherwise. What surrounds an event fits beside.
const LIMITS: Limits = Limits {
    events_max: 1_000,
    bytes_max: 800_000,
    event_bytes_max: 800_000,
};

/// How long an acknowledgement is waited for; then the events are sent again. Splunk itself forgets unasked ones after ten
/// minutes.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(60);

/// First and longest pause between two questions for an acknowledgement.
const ASK_PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

pub(super) struct Splunk {
    client: Client,
    event_url: String,
    ack_url: String,
    authorization: Secret<String>,
    /// Names the sender to the acknowledgement; any GUID.
    channel: String,
    acknowledge: bool,
    index: Option<String>,
    source: Option<String>,
    sourcetype: Option<String>,
}

impl Splunk {
    pub(super) fn new(config: &logging::Splunk, outbound: &Outbound) -> Result<Self, BuildError> {
        let base = config.hec_url.trim_end_matches('/');
        // Some copy the whole address from Splunk's pages.
        let base = base.strip_suffix("/event").unwrap_or(base);
        let base = base.strip_suffix("/services/collector").unwrap_or(base);
        Ok(Self {
            client: outbound.client(config.ca_pem.as_deref())?,
            event_url: format!("{base}/services/collector/event"),
            ack_url: format!("{base}/services/collector/ack"),
            authorization: Secret::new(format!("Splunk {}", config.token.expose())),
            channel: channel()?,
            acknowledge: config.acknowledge,
            index: config.index.clone(),
            source: config.source.clone(),
            sourcetype: config.sourcetype.clone(),
        })
    }

    async fn post(&self, url: &str, body: Vec<u8>) -> Result<Answer, Failure> {
        let mut call = Call::post(url, "application/json", body)?
            .header("authorization", self.authorization.expose())?;
        if self.acknowledge {
            call = call.header("x-splunk-request-channel", &self.channel)?;
        }
        Ok(self.client.send(call).await?)
    }

    async fn send(&self, events: &[Event]) -> Result<(), Failure> {
        #[derive(Serialize)]
        struct Packed<'a> {
            time: f64,
            #[serde(skip_serializing_if = "Option::is_none")]
            source: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            sourcetype: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            index: Option<&'a str>,
            event: &'a RawValue,
        }
        let mut body = Vec::new();
        for event in events {
            let packed = Packed {
                time: seconds(event.timestamp_ms),
                source: self.source.as_deref(),
                sourcetype: self.sourcetype.as_deref(),
                index: self.index.as_deref(),
                event: raw(event)?,
            };
            body.append(&mut to_json(&packed)?);
        }
        let answer = self.post(&self.event_url, body).await?;
        judged(&answer)?;
        if !self.acknowledge {
            return Ok(());
        }
        #[derive(Deserialize)]
        struct Taken {
            #[serde(rename = "ackId")]
            ack_id: u64,
        }
        match serde_json::from_slice::<Taken>(&answer.body) {
            Ok(Taken { ack_id }) => self.acknowledged(ack_id).await,
            Err(_) => Err(Failure::Credentials {
                why: "the collector gives no ackId: its token has no indexer acknowledgement switched on, or `acknowledge` \
                      is to be false"
                    .to_owned(),
            }),
        }
    }

    /// Waits until the call with this number is indexed.
    async fn acknowledged(&self, ack_id: u64) -> Result<(), Failure> {
        #[derive(Deserialize)]
        struct Acks {
            acks: HashMap<String, bool>,
        }
        let question = to_json(&HashMap::from([("acks", [ack_id])]))?;
        let since = Instant::now();
        let (mut pause, longest) = ASK_PAUSE;
        loop {
            let answer = self.post(&self.ack_url, question.clone()).await?;
            judged(&answer)?;
            let acks: Option<Acks> = serde_json::from_slice(&answer.body).ok();
            let indexed = acks.and_then(|acks| acks.acks.get(&ack_id.to_string()).copied());
            if indexed == Some(true) {
                return Ok(());
            }
            if since.elapsed() + pause > ACKNOWLEDGED_WITHIN {
                return Err(Failure::Later {
                    after: None,
                    why: format!(
                        "taken, but not indexed within {} s",
                        ACKNOWLEDGED_WITHIN.as_secs()
                    ),
                });
            }
            sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }
}

/// Seconds since 1970, with milliseconds.
fn seconds(timestamp_ms: i64) -> f64 {
    timestamp_ms as f64 / 1000.0
}

/// A random GUID (RFC 9562, version 4).
fn channel() -> Result<String, BuildError> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes)
        .map_err(|_| BuildError("this machine has no random numbers".to_owned()))?;
    let number = u128::from_be_bytes(bytes);
    let number = number & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let text = format!("{number:032x}");
    let part = |from, to| text.get(from..to).unwrap_or_default().to_owned();
    let parts = [
        part(0, 8),
        part(8, 12),
        part(12, 16),
        part(16, 20),
        part(20, 32),
    ];
    Ok(parts.join("-"))
}

/// What an answer means. Some of Splunk's own codes come with status 400 and are nobody's bad event.
fn judged(answer: &Answer) -> Result<(), Failure> {
    /// Incorrect index; channel missing or unknown; acknowledgement disabled.
    const SET_UP: [u64; 4] = [7, 10, 11, 14];

    #[derive(Deserialize)]
    struct Said {
        code: u64,
    }
    if answer.status.as_u16() == 400
        && let Ok(Said { code }) = serde_json::from_slice(&answer.body)
        && SET_UP.contains(&code)
    {
        let why = answer.sentence();
        return Err(Failure::Credentials { why });
    }
    answer.judged()
}

impl Sink for Splunk {
    fn kind(&self) -> SinkKind {
        SinkKind::Splunk
    }

    fn limits(&self) -> Limits {
        LIMITS
    }

    fn deliver<'a>(&'a self, events: &'a [Event]) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(self.send(events))
    }
}
