//! Whatever takes OpenTelemetry logs over HTTP, in protobuf (OpenTelemetry Protocol Specification 1.5, "OTLP/HTTP").
//!
//! An event is the body of a log record, as text, so that it comes back out as it went in.

use futures_util::future::BoxFuture;
use opentelemetry_proto::tonic::{
    collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse},
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber},
    resource::v1::Resource,
};
use prost::Message as _;
use tsp_wire::{Secret, logging};

use super::{BuildError, event_name, text};
use crate::{
    clock,
    outbound::{Answer, Call, Client, Outbound, quote},
    sink::{Event, Failure, Limits, Sink, SinkKind},
};

/// Collectors take 4 MB and more.
const LIMITS: Limits = Limits {
    events_max: 1_000,
    bytes_max: 3_000_000,
    event_bytes_max: 1_000_000,
};

pub(super) struct Otlp {
    client: Client,
    url: String,
    headers: Vec<(String, Secret<String>)>,
}

impl Otlp {
    pub(super) fn new(config: &logging::Otlp, outbound: &Outbound) -> Result<Self, BuildError> {
        let headers = config.headers.iter();
        Ok(Self {
            client: outbound.client(config.ca_pem.as_deref())?,
            url: config.url.clone(),
            headers: headers
                .map(|(name, value)| (name.clone(), Secret::new(value.expose().clone())))
                .collect(),
        })
    }

    async fn send(&self, events: &[Event]) -> Result<(), Failure> {
        let body = request(events)?.encode_to_vec();
        let mut call = Call::post(&self.url, "application/x-protobuf", body)?.gzip();
        for (name, value) in &self.headers {
            call = call.header(name, value.expose())?;
        }
        let answer = self.client.send(call).await?;
        answer.judged()?;
        partial(&answer)
    }
}

fn request(events: &[Event]) -> Result<ExportLogsServiceRequest, Failure> {
    let observed = nanoseconds(clock::now_ms());
    let record = |event| record(event, observed);
    Ok(ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            resource: Some(Resource {
                attributes: vec![attribute("service.name", "tenant-security-proxy")],
                ..Resource::default()
            }),
            scope_logs: vec![ScopeLogs {
                scope: Some(InstrumentationScope {
                    name: "tsp-logdriver".to_owned(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    ..InstrumentationScope::default()
                }),
                log_records: events.iter().map(record).collect::<Result<_, _>>()?,
                ..ScopeLogs::default()
            }],
            ..ResourceLogs::default()
        }],
    })
}

fn record(event: &Event, observed: u64) -> Result<LogRecord, Failure> {
    Ok(LogRecord {
        time_unix_nano: nanoseconds(event.timestamp_ms),
        observed_time_unix_nano: observed,
        severity_number: SeverityNumber::Info2.into(),
        severity_text: "NOTICE".to_owned(),
        body: Some(AnyValue {
            value: Some(Value::StringValue(text(event)?.to_owned())),
        }),
        attributes: vec![attribute("log.record.uid", &event.id)],
        event_name: event_name(event),
        ..LogRecord::default()
    })
}

fn attribute(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(Value::StringValue(value.to_owned())),
        }),
        ..KeyValue::default()
    }
}

/// Nanoseconds since 1970; 0, which means unknown, for a time before.
fn nanoseconds(timestamp_ms: i64) -> u64 {
    u64::try_from(timestamp_ms).map_or(0, |ms| ms.saturating_mul(1_000_000))
}

/// Whether all was taken. A receiver that takes a part says how many it did not, and not which. The protocol says not to send
/// such a call again; an event of an audit trail that is lost without its name is worse than one that comes twice under the
/// same id, so the call counts as refused, and is cut until the bad event is alone.
fn partial(answer: &Answer) -> Result<(), Failure> {
    let Ok(said) = ExportLogsServiceResponse::decode(&*answer.body) else {
        return Ok(());
    };
    match said.partial_success {
        Some(partial) if partial.rejected_log_records > 0 => Err(Failure::Refused {
            why: format!(
                "{} records rejected: {}",
                partial.rejected_log_records,
                quote(&partial.error_message)
            ),
        }),
        Some(_) | None => Ok(()),
    }
}

impl Sink for Otlp {
    fn kind(&self) -> SinkKind {
        SinkKind::Otlp
    }

    fn limits(&self) -> Limits {
        LIMITS
    }

    fn deliver<'a>(&'a self, events: &'a [Event]) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(self.send(events))
    }
}
