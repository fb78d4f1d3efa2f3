//! OTLP's messages for traces, as far as they are written and read here: `opentelemetry/proto/trace/v1/trace.proto` and
//! `collector/trace/v1/trace_service.proto`, whose numbers they have. OpenTelemetry's own crate would bring its SDK along; a test
//! has its own decoder read what is written.

use std::time::{Duration, SystemTime};

use prost::{Message, Oneof};
use tsp_shards::{TracedAttempt, TracedRequest};

/// Who did it, a request's own span.
const SERVER: i32 = 2;
/// Who asked somebody else.
const CLIENT: i32 = 3;
/// The status of a span that failed.
const ERROR: i32 = 2;

/// What a request whose caller went away came to.
const CALLER_GONE: &str = "cancelled";

/// A request to export spans.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Export {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

/// Who tells.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<Attribute>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "3")]
    code: i32,
}

/// `KeyValue`.
#[derive(Clone, PartialEq, Message)]
struct Attribute {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(oneof = "Value", tags = "1, 3")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Value {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(int64, tag = "3")]
    Number(i64),
}

/// A collector's answer.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Exported {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected_spans: i64,
    #[prost(string, tag = "2")]
    error_message: String,
}

impl Export {
    pub(crate) fn new(resource: &Resource, requests: &[TracedRequest]) -> Self {
        let scope = Scope {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let spans = requests.iter().flat_map(|request| {
            let attempts = request.attempts.iter();
            let attempts = attempts.map(|attempt| Span::of_attempt(request, attempt));
            std::iter::once(Span::of_request(request)).chain(attempts)
        });
        Self {
            resource_spans: vec![ResourceSpans {
                resource: Some(resource.clone()),
                scope_spans: vec![ScopeSpans {
                    scope: Some(scope),
                    spans: spans.collect(),
                }],
            }],
        }
    }
}

impl Resource {
    /// One proxy.
    pub(crate) fn of(instance: u64) -> Self {
        Self {
            attributes: vec![
                text("service.name", "tsp"),
                text("service.version", env!("CARGO_PKG_VERSION")),
                text("service.instance.id", &format!("{instance:016x}")),
            ],
        }
    }
}

impl Exported {
    /// How many of the spans the collector did not want, and why; `None` if it took all.
    pub(crate) fn rejected(self) -> Option<(u64, String)> {
        let partial = self.partial_success?;
        let spans = u64::try_from(partial.rejected_spans).unwrap_or(0);
        (spans > 0).then_some((spans, partial.error_message))
    }
}

impl Span {
    fn of_request(request: &TracedRequest) -> Self {
        let route = format!("/api/1/{}", request.endpoint);
        let mut attributes = vec![
            text("http.request.method", "POST"),
            text("http.route", &route),
            number("tsp.kms_attempts", request.attempts_all),
        ];
        let tenant = request.tenant.as_ref();
        attributes.extend(tenant.map(|tenant| text("tsp.tenant_id", tenant.as_str())));
        attributes.extend(request.kms.map(|kms| text("tsp.kms_type", kms.as_str())));
        let failed = match request.answer {
            None => {
                attributes.push(text("error.type", CALLER_GONE));
                true
            }
            Some((status, code)) => {
                attributes.push(number("http.response.status_code", status));
                attributes.extend(code.map(|code| number("tsp.status_code", code.number())));
                let failed = status >= 500;
                if failed {
                    attributes.push(text("error.type", &status.to_string()));
                }
                failed
            }
        };
        Self {
            trace_id: request.trace_id.to_vec(),
            span_id: request.span_id.to_vec(),
            parent_span_id: request.parent.map(Vec::from).unwrap_or_default(),
            name: format!("POST {route}"),
            kind: SERVER,
            attributes,
            ..Self::during(request.began, request.took, failed)
        }
    }

    fn of_attempt(request: &TracedRequest, attempt: &TracedAttempt) -> Self {
        let (host, port) = &attempt.host;
        let mut attributes = vec![
            text("http.request.method", "POST"),
            text("server.address", host),
            number("server.port", *port),
            text("tsp.kms_type", attempt.kms.as_str()),
            text("tsp.kms_operation", attempt.operation.as_str()),
            number("tsp.kms_config_id", attempt.config.number()),
        ];
        let status = attempt.status;
        attributes.extend(status.map(|status| number("http.response.status_code", status)));
        if attempt.again {
            attributes.push(number("http.request.resend_count", 1));
        }
        attributes.extend(attempt.error.map(|error| text("error.type", error)));
        Self {
            trace_id: request.trace_id.to_vec(),
            span_id: attempt.span_id.to_vec(),
            parent_span_id: request.span_id.to_vec(),
            name: format!("{} {}", attempt.kms.as_str(), attempt.operation.as_str()),
            kind: CLIENT,
            attributes,
            ..Self::during(attempt.began, attempt.took, attempt.error.is_some())
        }
    }

    fn during(began: SystemTime, took: Duration, failed: bool) -> Self {
        let start = nanos(began);
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        Self {
            start_time_unix_nano: start,
            end_time_unix_nano: start.saturating_add(took),
            status: failed.then_some(Status { code: ERROR }),
            ..Self::default()
        }
    }
}

fn text(key: &str, value: &str) -> Attribute {
    attribute(key, Value::Text(value.to_owned()))
}

fn number(key: &str, value: impl TryInto<i64>) -> Attribute {
    attribute(key, Value::Number(value.try_into().unwrap_or(i64::MAX)))
}

fn attribute(key: &str, value: Value) -> Attribute {
    Attribute {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
    }
}

fn nanos(time: SystemTime) -> u64 {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
