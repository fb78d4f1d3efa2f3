//! Log lines: one JSON object per line on standard output, in the fields of the existing product.
//!
//! `service`, `level`, `timestamp` (RFC 3339, microseconds, UTC), `message`; the fields of the event and of the
//! spans around it, such as `tenant_id` and `ray_id`; `contexts` (names of the spans, outermost first, joined by `;`)
//! and `name` (the innermost). Writing never blocks the thread that logs: lines go through a bounded queue to a
//! thread of their own, and are dropped and counted when it is full.

use std::{
    cell::RefCell,
    fmt::{self, Write as _},
    io::{self, BufWriter, Write},
    panic::{self, PanicHookInfo},
    time::SystemTime,
};

use time::OffsetDateTime;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
    subscriber::SetGlobalDefaultError,
};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Layer,
    layer::{Context, SubscriberExt as _},
    registry::{LookupSpan, Registry},
    reload,
};

/// The filter when `RUST_LOG` is not set: everything worth knowing, but no line per operation.
pub const DEFAULT_FILTER: &str = "info,tsp::ops=warn";

/// Added to every filter that does not name the crate: it warns whenever a send is given up at shutdown.
const QUIET_LIBRARY: &str = "anng";

/// Value of the field `service`.
const SERVICE: &str = "proxy";

/// Lines waiting for standard output. At about 300 bytes each they take 5 MB before lines are dropped.
const LINES_WAITING_MAX: usize = 16_384;

/// Longest value of one field, in bytes. What is longer is cut and marked.
const VALUE_BYTES_MAX: usize = 8 * 1024;

/// Buffer in front of standard output, in bytes, so that a burst of lines takes few system calls.
const OUT_BUFFER_BYTES: usize = 64 * 1024;

/// Longest panic message that is logged, in characters: enough for ours, little for anything that crept in.
const PANIC_CHARS_MAX: usize = 200;

/// Names that every line has by itself. A field of that name gets `field_` in front.
const RESERVED: [&str; 6] = [
    "service",
    "level",
    "timestamp",
    "target",
    "contexts",
    "name",
];

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

/// Keeps the log running. Dropping it writes out what is waiting.
#[derive(Debug)]
pub struct Logs {
    _worker: WorkerGuard,
    dropped: ErrorCounter,
    filter: LogFilter,
}

/// The filter in force, and the way to another one while the process runs. Lines that it leaves out cost as little as before.
#[derive(Clone, Debug)]
pub struct LogFilter(reload::Handle<EnvFilter, Registry>);

impl LogFilter {
    /// The filter's layer, and what changes it.
    pub(crate) fn new(filter: EnvFilter) -> (reload::Layer<EnvFilter, Registry>, Self) {
        let (layer, handle) = reload::Layer::new(filter);
        (layer, Self(handle))
    }

    /// Filters by `text` from now on, spelt as `RUST_LOG` is.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn set(&self, text: &str) -> Result<(), String> {
        let filter = filter(Some(text))?;
        self.0.reload(filter).map_err(|why| why.to_string())
    }

    /// The filter in force, as `RUST_LOG` would spell it.
    #[must_use]
    pub fn text(&self) -> String {
        self.0.with_current(ToString::to_string).unwrap_or_default()
    }
}

impl Logs {
    /// Starts logging for the whole process, on the calling thread's core, and logs panics too.
    ///
    /// # Errors
    /// If logging was started before.
    pub fn start(filter: EnvFilter) -> Result<Self, SetGlobalDefaultError> {
        let (lines, worker) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(LINES_WAITING_MAX)
            .thread_name("tsp-log")
            .finish(BufWriter::with_capacity(OUT_BUFFER_BYTES, io::stdout()));
        let dropped = lines.error_counter();
        let (layer, filter) = LogFilter::new(filter);
        tracing::subscriber::set_global_default(
            Registry::default().with(layer).with(JsonLines::new(lines)),
        )?;
        panic::set_hook(Box::new(log_panic));
        Ok(Self {
            _worker: worker,
            dropped,
            filter,
        })
    }

    /// The filter in force, to be changed.
    #[must_use]
    pub fn filter(&self) -> LogFilter {
        self.filter.clone()
    }

    /// Counts lines that were dropped because standard output was too slow.
    #[must_use]
    pub fn dropped(&self) -> ErrorCounter {
        self.dropped.clone()
    }
}

/// Logs a panic as one line. The message is ours or a library's; it is cut, in case it quotes what it should not.
fn log_panic(info: &PanicHookInfo<'_>) {
    let payload = info.payload();
    let text = payload
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)");
    let message: String = text
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(PANIC_CHARS_MAX)
        .collect();
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current()
        .name()
        .unwrap_or("unnamed")
        .to_owned();
    tracing::error!(target: "tsp::panic", location, thread, "panic: {message}");
}

/// Writes each event as one line.
struct JsonLines<W> {
    out: W,
    now: fn() -> SystemTime,
}

impl JsonLines<NonBlocking> {
    fn new(out: NonBlocking) -> Self {
        #[expect(clippy::disallowed_methods, reason = "a log line tells the real time")]
        Self {
            out,
            now: SystemTime::now,
        }
    }
}

/// A span's fields, as JSON, kept with the span.
struct SpanFields(Fields);

impl<S, W> Layer<S> for JsonLines<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: Write + Clone + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(SpanFields(fields));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(SpanFields(fields)) = span.extensions_mut().get_mut::<SpanFields>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        thread_local! {
            static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        LINE.with(|line| {
            // Busy only if logging logs, and then the inner line is the one to lose.
            let Ok(mut line) = line.try_borrow_mut() else {
                return;
            };
            line.clear();
            write_line(&mut line, (self.now)(), event, &context);
            // The queue takes a line whole or drops and counts it.
            let _ = self.out.clone().write_all(&line);
            line.shrink_to(VALUE_BYTES_MAX);
        });
    }
}

fn write_line<S>(line: &mut Vec<u8>, now: SystemTime, event: &Event<'_>, context: &Context<'_, S>)
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let metadata = event.metadata();
    let mut fields = Fields::default();
    event.record(&mut fields);

    line.extend_from_slice(b"{\"service\":");
    push_json(line, SERVICE);
    line.extend_from_slice(b",\"level\":");
    push_json(line, metadata.level().as_str());
    line.extend_from_slice(b",\"timestamp\":");
    push_json(line, &timestamp(now));
    line.extend_from_slice(b",\"target\":");
    push_json(line, metadata.target());

    let mut contexts = String::new();
    let mut name = None;
    if let Some(spans) = context.event_scope(event) {
        // From the innermost out: the inner value of a name wins, and the event's own wins over all.
        for span in spans {
            name = name.or(Some(span.name()));
            let outer_first = if contexts.is_empty() { "" } else { ";" };
            contexts.insert_str(0, outer_first);
            contexts.insert_str(0, span.name());
            if let Some(SpanFields(outer)) = span.extensions().get::<SpanFields>() {
                fields.add_missing(outer);
            }
        }
    }
    for (name, value) in &fields.0 {
        line.push(b',');
        if RESERVED.contains(name) {
            push_json(line, &format!("field_{name}"));
        } else {
            push_json(line, name);
        }
        line.push(b':');
        line.extend_from_slice(value);
    }
    if let Some(name) = name {
        line.extend_from_slice(b",\"contexts\":");
        push_json(line, &contexts);
        line.extend_from_slice(b",\"name\":");
        push_json(line, name);
    }
    line.extend_from_slice(b"}\n");
}

/// `2026-05-05T17:36:45.634142Z`.
fn timestamp(now: SystemTime) -> String {
    let now = OffsetDateTime::from(now);
    let (date, time) = (now.date(), now.time());
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second(),
        time.microsecond()
    )
}

/// Appends `text` as a JSON string.
fn push_json(line: &mut Vec<u8>, text: &str) {
    // Writing a string to memory cannot fail.
    let _ = serde_json::to_writer(line, text);
}

/// Names and JSON values, each name once, in the order of first mention.
#[derive(Debug, Default)]
struct Fields(Vec<(&'static str, Vec<u8>)>);

impl Fields {
    fn set(&mut self, field: &Field, json: Vec<u8>) {
        let name = field.name();
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, value)) => *value = json,
            None => self.0.push((name, json)),
        }
    }

    fn set_text(&mut self, field: &Field, text: &str) {
        let mut json = Vec::with_capacity(text.len().min(VALUE_BYTES_MAX) + 2);
        if text.len() <= VALUE_BYTES_MAX {
            push_json(&mut json, text);
        } else {
            let head = text
                .get(..text.floor_char_boundary(VALUE_BYTES_MAX))
                .unwrap_or_default();
            push_json(&mut json, &format!("{head}…"));
        }
        self.set(field, json);
    }

    fn add_missing(&mut self, outer: &Self) {
        for (name, value) in &outer.0 {
            if !self.0.iter().any(|(known, _)| known == name) {
                self.0.push((name, value.clone()));
            }
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.set_text(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value.to_string().into_bytes());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value.to_string().into_bytes());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value.to_string().into_bytes());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no infinities; serde_json writes null for them.
        self.set(
            field,
            serde_json::to_vec(&value).unwrap_or_else(|_| b"null".to_vec()),
        );
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = Bounded(String::new());
        // Only the bound makes it fail, and then what is there is enough.
        let _ = write!(text, "{value:?}");
        self.set_text(field, &text.0);
    }
}

/// Text that stops growing a little beyond [`VALUE_BYTES_MAX`].
struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        let room = (VALUE_BYTES_MAX + 1).saturating_sub(self.0.len());
        if piece.len() <= room {
            self.0.push_str(piece);
            return Ok(());
        }
        self.0.push_str(
            piece
                .get(..piece.ceil_char_boundary(room))
                .unwrap_or_default(),
        );
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests;
