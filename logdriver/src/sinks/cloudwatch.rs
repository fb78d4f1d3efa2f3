//! AWS CloudWatch Logs: `PutLogEvents` (Amazon CloudWatch Logs API Reference; protocol awsJson 1.1), signed as requests to AWS
//! KMS are.
//!
//! A call's events must be in the order of their times and within 24 hours, so a batch may take more than one call. The stream is
//! made when it is missing, if the credentials may.

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tsp_kms::{CloudLogs, Retry};
use tsp_wire::logging;

use super::{
    BuildError, text, to_json,
    tokens::{Tokens, failure_of},
};
use crate::{
    clock,
    outbound::{Answer, Client, Outbound},
    sink::{Event, Failure, Limits, Sink, SinkKind},
};

/// A call has at most 10,000 events and 1,048,576 bytes, for which each event counts 26 more than its own. One event may be
/// as large as a call (256 KB until 2025).
const LIMITS: Limits = Limits {
    events_max: 10_000,
    bytes_max: 1_048_576 - 26 * 10_000,
    event_bytes_max: 1_048_576 - 26 * 10_000,
};

/// The longest span of a call's times.
const SPAN_MS: i64 = 24 * 3600 * 1000;

/// Calls for one run of events: a repair of the clock, a new token, a stream to be made, and one to spare.
const TRIES_MAX: usize = 4;

pub(super) struct CloudWatch {
    client: Client,
    tokens: Tokens,
    group: String,
    stream: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Put<'a> {
    log_group_name: &'a str,
    log_stream_name: &'a str,
    log_events: Vec<Message<'a>>,
}

#[derive(Serialize)]
struct Message<'a> {
    timestamp: i64,
    message: &'a str,
}

impl CloudWatch {
    pub(super) fn new(
        config: &logging::CloudWatch,
        outbound: &Outbound,
    ) -> Result<Self, BuildError> {
        Ok(Self {
            client: outbound.client(config.ca_pem.as_deref())?,
            tokens: Tokens::new(CloudLogs::aws(config)?),
            group: config.log_group.clone(),
            stream: config.log_stream.clone(),
        })
    }

    async fn send(&self, events: &[Event]) -> Result<(), Failure> {
        let mut refused = Vec::new();
        for run in runs(events) {
            refused.extend(self.put(events, &run).await?);
        }
        if refused.is_empty() {
            return Ok(());
        }
        refused.sort_unstable();
        Err(Failure::Some { refused })
    }

    /// Puts the events at these places, which are in order. Returns the ones that were refused.
    async fn put(&self, events: &[Event], run: &[usize]) -> Result<Vec<(usize, String)>, Failure> {
        let message = |index: &usize| {
            let event = events.get(*index)?;
            Some(text(event).map(|message| Message {
                timestamp: time_of(event),
                message,
            }))
        };
        let body = to_json(&Put {
            log_group_name: &self.group,
            log_stream_name: &self.stream,
            log_events: run.iter().filter_map(message).collect::<Result<_, _>>()?,
        })?;
        let mut made = false;
        for _ in 0..TRIES_MAX {
            let answer = self.call("Logs_20140328.PutLogEvents", &body).await?;
            if answer.status.is_success() {
                return Ok(rejected(&answer, run));
            }
            match self.mend(&answer).await {
                Mended::Yes => {}
                Mended::NoStream if !made => {
                    made = true;
                    self.make_stream().await?;
                }
                Mended::NoStream => {
                    let why = answer.sentence();
                    return Err(Failure::Credentials { why });
                }
                Mended::No(failure) => return Err(failure),
            }
        }
        Err(Failure::Later {
            after: None,
            why: "refused although it was mended".to_owned(),
        })
    }

    async fn make_stream(&self) -> Result<(), Failure> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Create<'a> {
            log_group_name: &'a str,
            log_stream_name: &'a str,
        }
        let body = to_json(&Create {
            log_group_name: &self.group,
            log_stream_name: &self.stream,
        })?;
        let answer = self.call("Logs_20140328.CreateLogStream", &body).await?;
        let there = code_of(&answer) == "ResourceAlreadyExistsException";
        if answer.status.is_success() || there {
            return Ok(());
        }
        match self.mend(&answer).await {
            Mended::Yes => Ok(()),
            Mended::NoStream => Err(Failure::Credentials {
                why: answer.sentence(),
            }),
            Mended::No(failure) => Err(failure),
        }
    }

    async fn call(&self, target: &'static str, body: &[u8]) -> Result<Answer, Failure> {
        let token = self.tokens.token(&self.client).await?;
        let logs = &self.tokens.logs;
        let request = self
            .tokens
            .with_session(|session| {
                logs.aws_request(target, body, token.as_deref(), session, clock::system())
            })
            .await
            .map_err(|why| failure_of(&why))?;
        Ok(self.client.send_for_kms(logs.endpoint(), &request).await?)
    }

    /// Mends what a refusal says can be mended, or says what it means.
    async fn mend(&self, answer: &Answer) -> Mended {
        match code_of(answer).as_str() {
            "ResourceNotFoundException" => return Mended::NoStream,
            "InvalidParameterException" | "InvalidSequenceTokenException" => {
                let why = answer.sentence();
                return Mended::No(Failure::Refused { why });
            }
            _ => {}
        }
        let Some(error) = answer.for_kms(|answer| self.tokens.logs.aws_refusal(answer)) else {
            return Mended::No(Failure::Later {
                after: None,
                why: answer.sentence(),
            });
        };
        if error.retry() == Retry::AfterNewToken {
            self.tokens.forget().await;
            return Mended::Yes;
        }
        if self
            .tokens
            .with_session(|session| session.repair(&error))
            .await
        {
            return Mended::Yes;
        }
        Mended::No(failure_of(&error))
    }
}

enum Mended {
    Yes,
    /// The group or the stream is not there.
    NoStream,
    No(Failure),
}

/// The API takes no time before 1970.
fn time_of(event: &Event) -> i64 {
    event.timestamp_ms.max(0)
}

/// The places of events in the order of their times, cut where a call's span would be too long.
fn runs(events: &[Event]) -> Vec<Vec<usize>> {
    let mut order: Vec<(i64, usize)> = events.iter().map(time_of).zip(0..).collect();
    order.sort_unstable();
    let mut runs: Vec<Vec<usize>> = Vec::new();
    let mut first = i64::MIN;
    for (time, index) in order {
        match runs.last_mut() {
            Some(run) if time.saturating_sub(first) < SPAN_MS => run.push(index),
            Some(_) | None => {
                first = time;
                runs.push(vec![index]);
            }
        }
    }
    runs
}

/// The exception's name, without what surrounds it.
fn code_of(answer: &Answer) -> String {
    #[derive(Deserialize)]
    struct Said {
        #[serde(rename = "__type")]
        code: String,
    }
    let Ok(Said { code }) = serde_json::from_slice(&answer.body) else {
        return String::new();
    };
    code.rsplit('#').next().unwrap_or_default().to_owned()
}

/// The events that a successful call did not take: those at the ends of the order that are too old or too new.
fn rejected(answer: &Answer, run: &[usize]) -> Vec<(usize, String)> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Taken {
        rejected_log_events_info: Option<Rejected>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Rejected {
        too_new_log_event_start_index: Option<usize>,
        too_old_log_event_end_index: Option<usize>,
        expired_log_event_end_index: Option<usize>,
    }
    let taken: Option<Taken> = serde_json::from_slice(&answer.body).ok();
    let Some(info) = taken.and_then(|taken| taken.rejected_log_events_info) else {
        return Vec::new();
    };
    let (too_old, expired) = (
        info.too_old_log_event_end_index.unwrap_or(0),
        info.expired_log_event_end_index.unwrap_or(0),
    );
    let too_new = info.too_new_log_event_start_index.unwrap_or(usize::MAX);
    let why = |place: usize| {
        if place < too_old {
            Some("more than 14 days old")
        } else if place < expired {
            Some("older than the log group keeps events")
        } else if place >= too_new {
            Some("more than 2 hours in the future")
        } else {
            None
        }
    };
    let places = run.iter().enumerate();
    places
        .filter_map(|(place, index)| Some((*index, why(place)?.to_owned())))
        .collect()
}

impl Sink for CloudWatch {
    fn kind(&self) -> SinkKind {
        SinkKind::CloudWatch
    }

    fn limits(&self) -> Limits {
        LIMITS
    }

    fn deliver<'a>(&'a self, events: &'a [Event]) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(self.send(events))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_batch_is_ordered_by_time_and_cut_into_days() {
        let events: Vec<_> = [SPAN_MS, 5, SPAN_MS + 5, -7, SPAN_MS - 1]
            .into_iter()
            .map(|timestamp_ms| Event {
                id: String::new(),
                sequence: 1,
                timestamp_ms,
                json: Bytes::new(),
            })
            .collect();
        assert_eq!(runs(&events), [vec![3, 1, 4], vec![0, 2]]);
        assert_eq!(runs(&[]), Vec::<Vec<usize>>::new());
    }
}
