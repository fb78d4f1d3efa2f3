//! Log lines: one JSON object per line on standard output, in the fields of the existing product: `service`, `level`,
//! `timestamp` (RFC 3339, nanoseconds, UTC), `message` and the event's fields, such as `tenant_id`.
//!
//! Writing never blocks who logs: lines go through a bounded queue to a thread of their own, and are dropped when it is full.

use std::{
    fmt::{self, Write as _},
    io::{self, Write},
};

use serde_json::{Map, Value};
use time::OffsetDateTime;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Layer,
    layer::{Context, SubscriberExt as _},
    registry::{LookupSpan, Registry},
};

use crate::clock;

/// The filter when `RUST_LOG` is not set.
pub const DEFAULT_FILTER: &str = "info";

/// Added to every filter that does not name it: it warns whenever a socket is cut.
const QUIET_LIBRARY: &str = "anng";

/// Lines waiting for standard output. At about 300 bytes each they take 5 MB.
const LINES_WAITING_MAX: usize = 16_384;

/// Longest value of one field, in bytes.
const VALUE_BYTES_MAX: usize = 8 * 1024;

/// Reads a filter as `RUST_LOG` spells it; the default one for `None`.
///
/// # Errors
/// What is wrong with it.
pub fn filter(text: Option<&str>) -> Result<EnvFilter, String> {
    let text = text.unwrap_or(DEFAULT_FILTER);
    let quiet = if text.contains(QUIET_LIBRARY) {
        String::new()
    } else {
        format!(",{QUIET_LIBRARY}=error")
    };
    EnvFilter::builder()
        .parse(format!("{text}{quiet}"))
        .map_err(|error| format!("is not a log filter: {error}"))
}

/// Starts logging for the whole process. Dropping what it gives writes out what is waiting; `None` if logging was started
/// before.
#[must_use]
pub fn start(filter: EnvFilter) -> Option<WorkerGuard> {
    let (lines, worker) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(LINES_WAITING_MAX)
        .thread_name("log")
        .finish(io::stdout());
    let subscriber = Registry::default().with(filter).with(JsonLines(lines));
    tracing::subscriber::set_global_default(subscriber).ok()?;
    Some(worker)
}

/// Writes each event as one line.
struct JsonLines(NonBlocking);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for JsonLines {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let metadata = event.metadata();
        let mut fields = Fields(Map::new());
        event.record(&mut fields);
        let mut line = String::from("{\"service\":\"logdriver\"");
        let known = [
            ("level", Value::from(metadata.level().as_str())),
            (
                "timestamp",
                Value::from(timestamp(OffsetDateTime::from(clock::system()))),
            ),
            ("target", Value::from(metadata.target())),
        ];
        // Writing to a String cannot fail.
        for (name, value) in &known {
            let _ = write!(line, ",{}:{value}", Value::from(*name));
        }
        for (name, value) in &fields.0 {
            let reserved = known.iter().any(|(known, _)| known == name) || name == "service";
            let prefix = if reserved { "field_" } else { "" };
            let _ = write!(line, ",{}:{value}", Value::from(format!("{prefix}{name}")));
        }
        line.push_str("}\n");
        // The queue takes a line whole or drops and counts it.
        let _ = self.0.clone().write_all(line.as_bytes());
    }
}

fn timestamp(now: OffsetDateTime) -> String {
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}Z",
        now.year(),
        u8::from(now.month()),
        now.day(),
        now.hour(),
        now.minute(),
        now.second(),
        now.nanosecond()
    )
}

struct Fields(Map<String, Value>);

impl Fields {
    fn set(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        let cut = value.get(..value.floor_char_boundary(VALUE_BYTES_MAX));
        self.set(field, cut.unwrap_or_default());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}
