//! The trace thread: takes what shards recorded, and sends it to an OpenTelemetry collector by OTLP over HTTP, as protobuf.
//!
//! A collector that is slow or away costs nobody anything: its queue is bounded, what finds no room is dropped and counted, and
//! after a failure everything is dropped until it is time to try again.
//!
//! What must stay true: the thread waits on the queue for the first request of a message alone. A sleeper must be woken by who
//! has something for it, which costs the shard more than the record itself; so it looks for the others by its own clock.

mod otlp;

use std::{
    convert::Infallible,
    io, thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use crossbeam_channel::{Receiver, TryRecvError, bounded};
use prometheus::IntCounter;
use prost::Message as _;
use tsp_shards::{TraceConfig, TracedRequest};

use self::otlp::{Export, Exported, Resource};
use crate::ask::{Question, Target};

/// Recorded requests that wait for the thread: a second of 1 % of 200,000 a second, for while the collector is asked. At about 0.5 KiB each 1 MiB, and at most
/// 20 MiB where all of them are batches with as many attempts at KMSs as are recorded.
const REQUESTS_WAITING_MAX: usize = 2_048;

/// Spans in one message to the collector, but for those of the last request. With some 300 bytes each it stays far below the
/// 20 MiB that collectors take.
const SPANS_MAX: usize = 2_048;

/// How long the first of a message waits for others.
const WAIT: Duration = Duration::from_secs(1);

/// How often the thread looks for those. The queue has room for what 200,000 requests a second bring meanwhile, even if all are
/// recorded; and the process's end waits no longer for it.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Longest time for a message to the collector.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long nothing is sent after a failure: at first, and doubled up to at most.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How long the process's end waits for what was recorded last.
const FLUSH_MAX: Duration = Duration::from_secs(2);

/// Largest answer of a collector, in bytes. It says next to nothing.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Longest piece of a collector's answer that is repeated in the log, in characters.
const SHOWN_CHARS_MAX: usize = 200;

/// Where a collector takes traces if its URL has no path (OTLP 1.0, section "OTLP/HTTP Request").
pub(crate) const PATH: &str = "/v1/traces";

/// Where traces go, and how many.
#[derive(Clone, Debug)]
pub struct TraceSettings {
    /// `TSP_TRACE_ENDPOINT`, `TSP_TRACE_CA` and `TSP_TRACE_HEADERS`.
    pub(crate) collector: Target,
    /// `TSP_TRACE_SAMPLE`.
    pub sample: f64,
}

/// What is told of traces.
#[derive(Clone, Debug)]
pub struct TraceCounters {
    /// Spans that a collector has taken.
    pub sent: IntCounter,
    /// Spans that found no room, no collector, or a collector that did not want them.
    pub dropped: IntCounter,
}

/// The thread.
#[derive(Debug)]
pub(crate) struct TraceThread {
    ended: Receiver<Infallible>,
}

impl TraceThread {
    /// Starts it, on the calling thread's core. It ends when the shards have, which are given the configuration.
    pub(crate) fn start(
        settings: TraceSettings,
        counters: TraceCounters,
        instance: u64,
    ) -> io::Result<(Self, TraceConfig)> {
        let (queue, requests) = bounded(REQUESTS_WAITING_MAX);
        let (pulse, ended) = bounded(0);
        let config = TraceConfig {
            queue,
            sample: settings.sample,
            dropped: counters.dropped.clone(),
        };
        let exporter = Exporter {
            collector: settings.collector,
            counters,
            resource: Resource::of(instance),
            pause: PAUSE.0,
            silent_until: None,
            failed: false,
        };
        thread::Builder::new()
            .name("tsp-traces".to_owned())
            .spawn(move || {
                // Goes with the thread.
                let _pulse = pulse;
                exporter.run(&requests);
            })?;
        Ok((Self { ended }, config))
    }

    /// Waits, but not for long, until all is sent that the shards recorded before they ended.
    pub(crate) fn finish(self) {
        // Nothing is ever sent there.
        let _ = self.ended.recv_timeout(FLUSH_MAX);
    }
}

struct Exporter {
    collector: Target,
    counters: TraceCounters,
    resource: Resource,
    pause: Duration,
    /// Nothing is sent before.
    silent_until: Option<Instant>,
    /// Whether the last message failed, which has been told.
    failed: bool,
}

impl Exporter {
    fn run(mut self, requests: &Receiver<TracedRequest>) {
        while let Ok(first) = requests.recv() {
            let full_at = monotonic() + WAIT;
            let mut spans = first.spans();
            let mut message = vec![first];
            while spans < SPANS_MAX {
                match requests.try_recv() {
                    Ok(request) => {
                        spans += request.spans();
                        message.push(request);
                    }
                    Err(TryRecvError::Empty) if monotonic() < full_at => {
                        thread::park_timeout(LOOK_INTERVAL);
                    }
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                }
            }
            self.send(&message, u64::try_from(spans).unwrap_or(u64::MAX));
        }
    }

    fn send(&mut self, message: &[TracedRequest], spans: u64) {
        if self.silent_until.is_some_and(|until| monotonic() < until) {
            self.counters.dropped.inc_by(spans);
            return;
        }
        let export = Export::new(&self.resource, message).encode_to_vec();
        let question = Question {
            body: Some(("application/x-protobuf", Bytes::from(export))),
            timeout: TIMEOUT,
            answer_bytes_max: ANSWER_BYTES_MAX,
        };
        let collector = &self.collector;
        let sent = tsp_rt::run_here(|rt| async move { collector.ask(&rt, &question).await });
        match sent.unwrap_or_else(|why| Err(why.to_string())) {
            Ok(answer) => self.sent(answer, spans),
            Err(why) => {
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!("traces are dropped until the collector takes them: {why}");
                }
                self.counters.dropped.inc_by(spans);
                self.silent_until = Some(monotonic() + self.pause);
                self.pause = (self.pause * 2).min(PAUSE.1);
            }
        }
    }

    fn sent(&mut self, answer: Bytes, spans: u64) {
        (self.pause, self.silent_until) = (PAUSE.0, None);
        // An answer that cannot be read is of status 200 all the same.
        let answer = Exported::decode(answer).unwrap_or_default();
        let Some((rejected, why)) = answer.rejected() else {
            if std::mem::take(&mut self.failed) {
                tracing::info!("the trace collector takes traces again");
            }
            self.counters.sent.inc_by(spans);
            return;
        };
        let rejected = rejected.min(spans);
        self.counters.sent.inc_by(spans - rejected);
        self.counters.dropped.inc_by(rejected);
        if !std::mem::replace(&mut self.failed, true) {
            let why: String = why.chars().take(SHOWN_CHARS_MAX).collect();
            tracing::warn!(rejected, why, "the trace collector rejects spans");
        }
    }
}

fn monotonic() -> Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "a thread of the control plane, on which no core runs"
    )]
    Instant::now()
}
