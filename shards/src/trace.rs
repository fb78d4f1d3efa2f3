//! Traces: which requests are recorded, what is recorded of them, and where it goes.
//!
//! Off unless the process has a collector; a request then pays a look at a field or two. A recorded request has a span of its
//! own and one for every attempt at a KMS that its own task makes; what other tasks do for several requests at once (leased
//! keys, tokens) belongs to none. Callers decide by W3C trace context (`traceparent`), for themselves; of requests without one
//! a share is taken at random. What was recorded goes into a bounded queue; what finds no room is dropped and counted, and
//! never waited for.
//!
//! What must stay true: of ids there are the tenant's and the KMS config's and no other, no text that a caller sent, and
//! nothing of a key. A KMS learns the trace's id only if it is the KMS of the tenant that the request names first.

use std::{
    cell::{Cell, RefCell},
    fmt,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};

use crossbeam_channel::Sender;
use hyper::{
    HeaderMap,
    header::{HeaderName, HeaderValue},
};
use prometheus::IntCounter;
use tsp_kms::{HttpRequest, KmsErrorKind, KmsKind, KmsOperation};
use tsp_rt::Rt;
use tsp_wire::{KmsConfigId, TenantId, TspCode};

use crate::{admission::TenantNumber, metrics::Endpoint, snapshot::Tenant};

/// Attempts at KMSs of one request that are recorded; the rest are only counted. A batch can have thousands, of which the first
/// show what is wrong.
const ATTEMPTS_MAX: usize = 32;

/// The header of W3C Trace Context.
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What came of an attempt whose request was given up before it had ended.
const GIVEN_UP: &str = "cancelled";

/// Where traces go, and how many of those that nobody decided about.
#[derive(Clone, Debug)]
pub struct TraceConfig {
    /// Takes what was recorded.
    pub queue: Sender<TracedRequest>,
    /// Of requests whose caller did not decide: the share that is recorded, from 0 to 1.
    pub sample: f64,
    /// Counts spans that found no room in the queue.
    pub dropped: IntCounter,
}

/// A request to the proxy, as it is told to a collector.
#[derive(Clone, Debug, PartialEq)]
pub struct TracedRequest {
    /// Of the whole trace; the caller's, if it sent one.
    pub trace_id: [u8; 16],
    /// Its own.
    pub span_id: [u8; 8],
    /// The caller's span, if it sent one.
    pub parent: Option<[u8; 8]>,
    /// When it began.
    pub began: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// Its path below `/api/1/`, or `other`.
    pub endpoint: &'static str,
    /// The tenant that it names, if there is such a tenant.
    pub tenant: Option<TenantId>,
    /// The kind of that tenant's primary KMS config.
    pub kms: Option<KmsKind>,
    /// The answer's HTTP status, and its code if it was an error. `None` if the caller went away before.
    pub answer: Option<(u16, Option<TspCode>)>,
    /// The first attempts at KMSs, in the order of their ends.
    pub attempts: Vec<TracedAttempt>,
    /// How many there were in all.
    pub attempts_all: usize,
}

impl TracedRequest {
    /// How many spans it is.
    #[must_use]
    pub fn spans(&self) -> usize {
        1 + self.attempts.len()
    }
}

/// An attempt at a KMS, as it is told to a collector.
#[derive(Clone, Debug, PartialEq)]
pub struct TracedAttempt {
    /// Its own.
    pub span_id: [u8; 8],
    /// When it began, with its wait for a connection.
    pub began: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// What was asked.
    pub operation: KmsOperation,
    /// The kind of KMS.
    pub kms: KmsKind,
    /// The tenant's KMS config.
    pub config: KmsConfigId,
    /// The endpoint's name or address, and its port.
    pub host: (String, u16),
    /// Whether it is the second try of one operation.
    pub again: bool,
    /// The answer's HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// What kept it from being of use.
    pub error: Option<&'static str>,
}

/// One shard's traces.
pub(crate) struct Tracer<R: Rt> {
    rt: R,
    config: Option<TraceConfig>,
    /// The request whose task runs at the moment, if it is recorded.
    current: RefCell<Option<Rc<Trace<R>>>>,
}

impl<R: Rt> fmt::Debug for Tracer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracer")
            .field("on", &self.config.is_some())
            .finish_non_exhaustive()
    }
}

/// A request that is recorded.
struct Trace<R: Rt> {
    tracer: Rc<Tracer<R>>,
    trace_id: [u8; 16],
    span_id: [u8; 8],
    parent: Option<[u8; 8]>,
    began: (SystemTime, Instant),
    endpoint: Endpoint,
    tenant: RefCell<Option<(TenantNumber, TenantId)>>,
    attempts: RefCell<Vec<TracedAttempt>>,
    attempts_all: Cell<usize>,
}

/// A request's record, handed over when it is dropped: with an answer, or because the caller went away.
pub(crate) struct Recording<R: Rt> {
    trace: Rc<Trace<R>>,
    kms: Option<KmsKind>,
    answer: Option<(u16, Option<TspCode>)>,
}

/// An attempt at a KMS that is under way. Recorded when it is dropped.
pub(crate) struct Attempt<R: Rt> {
    trace: Rc<Trace<R>>,
    began: Instant,
    /// Whether the KMS may be told of the trace.
    told: bool,
    record: TracedAttempt,
}

/// What an attempt is at.
pub(crate) struct At<'a> {
    pub(crate) tenant: &'a Tenant,
    pub(crate) config: KmsConfigId,
    pub(crate) kms: KmsKind,
    pub(crate) operation: KmsOperation,
    pub(crate) host: (&'a str, u16),
    pub(crate) again: bool,
}

/// What a caller's `traceparent` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parent {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    sampled: bool,
}

impl<R: Rt> Tracer<R> {
    pub(crate) fn new(rt: R, config: Option<TraceConfig>) -> Self {
        Self {
            rt,
            config,
            current: RefCell::default(),
        }
    }

    /// Decides whether a request is recorded.
    pub(crate) fn begin(
        self: &Rc<Self>,
        headers: &HeaderMap,
        endpoint: Endpoint,
        began: Instant,
    ) -> Option<Recording<R>> {
        let config = self.config.as_ref()?;
        self.decide(config.sample, headers, endpoint, began)
    }

    #[cold]
    fn decide(
        self: &Rc<Self>,
        sample: f64,
        headers: &HeaderMap,
        endpoint: Endpoint,
        began: Instant,
    ) -> Option<Recording<R>> {
        let parent = headers.get(&TRACEPARENT).and_then(parent_of);
        let recorded = match parent {
            Some(parent) => parent.sampled,
            None => {
                let mut random = [0; 4];
                self.rt.random(&mut random);
                is_sampled(u32::from_le_bytes(random), sample)
            }
        };
        recorded.then(|| {
            let (now, wall) = (self.rt.now(), self.rt.wall_now());
            let since = now.saturating_duration_since(began);
            let trace = Trace {
                tracer: Rc::clone(self),
                trace_id: parent.map_or_else(|| self.id(), |parent| parent.trace_id),
                span_id: self.id(),
                parent: parent.map(|parent| parent.span_id),
                began: (wall.checked_sub(since).unwrap_or(wall), began),
                endpoint,
                tenant: RefCell::default(),
                attempts: RefCell::default(),
                attempts_all: Cell::new(0),
            };
            Recording {
                trace: Rc::new(trace),
                kms: None,
                answer: None,
            }
        })
    }

    /// Takes note of the tenant that the request names whose task runs.
    pub(crate) fn is_for(&self, tenant: &Tenant) {
        if let Some(trace) = &*self.current.borrow() {
            let named = (tenant.load.number, tenant.id.clone());
            trace.tenant.borrow_mut().get_or_insert(named);
        }
    }

    /// An attempt at a KMS, if the request that it is for is recorded.
    ///
    /// In a place of its own, so that a call that is not recorded needs no room for it.
    pub(crate) fn attempt<'a>(&self, at: impl FnOnce() -> At<'a>) -> Option<Box<Attempt<R>>> {
        let trace = Rc::clone(self.current.borrow().as_ref()?);
        let At {
            tenant,
            config,
            kms,
            operation,
            host: (host, port),
            again,
        } = at();
        let told = match &*trace.tenant.borrow() {
            Some((number, _)) => *number == tenant.load.number,
            None => false,
        };
        Some(Box::new(Attempt {
            began: self.rt.now(),
            told,
            record: TracedAttempt {
                span_id: self.id(),
                began: self.rt.wall_now(),
                took: Duration::ZERO,
                operation,
                kms,
                config,
                host: (host.to_owned(), port),
                again,
                status: None,
                error: Some(GIVEN_UP),
            },
            trace,
        }))
    }

    /// Random, and not all zeros, which means none.
    fn id<const N: usize>(&self) -> [u8; N] {
        let mut id = [0; N];
        self.rt.random(&mut id);
        if let Some(last) = id.last_mut() {
            *last |= 1;
        }
        id
    }
}

impl<R: Rt> Recording<R> {
    /// Does the request's work: what it asks of KMSs in its own task belongs to its trace.
    pub(crate) fn around<F: Future>(&self, work: F) -> Around<R, F> {
        Around {
            trace: Rc::clone(&self.trace),
            work: Box::pin(work),
        }
    }

    /// Hands over what was recorded of a request that has its answer.
    pub(crate) fn answered(mut self, kms: Option<KmsKind>, answer: (u16, Option<TspCode>)) {
        self.kms = kms;
        self.answer = Some(answer);
    }
}

impl<R: Rt> Drop for Recording<R> {
    fn drop(&mut self) {
        let trace = &*self.trace;
        let Some(config) = &trace.tracer.config else {
            return;
        };
        // Who has no API key decides nothing.
        if trace.parent.is_some() && matches!(self.answer, Some((401, _))) {
            return;
        }
        let (began, began_at) = trace.began;
        let record = TracedRequest {
            trace_id: trace.trace_id,
            span_id: trace.span_id,
            parent: trace.parent,
            began,
            took: trace.tracer.rt.now().saturating_duration_since(began_at),
            endpoint: trace.endpoint.as_str(),
            tenant: trace.tenant.take().map(|(_, id)| id),
            kms: self.kms,
            answer: self.answer,
            attempts: trace.attempts.take(),
            attempts_all: trace.attempts_all.get(),
        };
        let spans = record.spans();
        if config.queue.try_send(record).is_err() {
            let spans = u64::try_from(spans).unwrap_or(u64::MAX);
            config.dropped.inc_by(spans);
        }
    }
}

impl<R: Rt> Attempt<R> {
    /// The request to the KMS, which says whose part it is if the KMS may know.
    pub(crate) fn mark(&self, request: HttpRequest) -> HttpRequest {
        if !self.told {
            return request;
        }
        let text = traceparent(&self.trace.trace_id, &self.record.span_id);
        request.with_unsigned(TRACEPARENT.as_str(), &text)
    }

    /// Takes note of how it ended.
    pub(crate) fn ended(mut self, status: Option<u16>, error: Option<KmsErrorKind>) {
        self.record.status = status;
        self.record.error = error.map(KmsErrorKind::as_str);
    }
}

impl<R: Rt> Drop for Attempt<R> {
    fn drop(&mut self) {
        let trace = &*self.trace;
        trace.attempts_all.set(trace.attempts_all.get() + 1);
        let mut attempts = trace.attempts.borrow_mut();
        if attempts.len() < ATTEMPTS_MAX {
            let now = trace.tracer.rt.now();
            let mut record = self.record.clone();
            record.took = now.saturating_duration_since(self.began);
            attempts.push(record);
        }
    }
}

/// The work of a request that is recorded.
pub(crate) struct Around<R: Rt, F> {
    trace: Rc<Trace<R>>,
    work: Pin<Box<F>>,
}

impl<R: Rt, F: Future> Future for Around<R, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        /// Puts things back, after a panic too.
        struct Turn<'a, R: Rt>(&'a Tracer<R>);
        impl<R: Rt> Drop for Turn<'_, R> {
            fn drop(&mut self) {
                self.0.current.replace(None);
            }
        }
        let this = &mut *self;
        let tracer = &this.trace.tracer;
        tracer.current.replace(Some(Rc::clone(&this.trace)));
        let _turn = Turn(tracer);
        this.work.as_mut().poll(cx)
    }
}

// The work is pinned where it lies, and nothing else is.
impl<R: Rt, F> Unpin for Around<R, F> {}

/// Whether a request is among the `sample`, by a random number of its own.
fn is_sampled(random: u32, sample: f64) -> bool {
    f64::from(random) < sample * (f64::from(u32::MAX) + 1.0)
}

/// Reads version 00 of a `traceparent`; of a later one what is the same (W3C Trace Context, section 3.2).
fn parent_of(header: &HeaderValue) -> Option<Parent> {
    let mut parts = header.as_bytes().splitn(5, |byte| *byte == b'-');
    let version: [u8; 1] = from_hex(parts.next()?)?;
    let (trace_id, span_id) = (from_hex(parts.next()?)?, from_hex(parts.next()?)?);
    let [flags]: [u8; 1] = from_hex(parts.next()?)?;
    let more = parts.next().is_some();
    let sound =
        version != [0xff] && !(version == [0] && more) && trace_id != [0; 16] && span_id != [0; 8];
    sound.then_some(Parent {
        trace_id,
        span_id,
        sampled: flags & 1 == 1,
    })
}

/// Lower-case digits, as the specification wants them.
fn from_hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() != 2 * N {
        return None;
    }
    let half = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_chunks::<2>().0) {
        let [high, low] = *pair;
        *byte = (half(high)? << 4) | half(low)?;
    }
    Some(bytes)
}

fn traceparent(trace_id: &[u8; 16], span_id: &[u8; 8]) -> String {
    let mut text = String::with_capacity(55);
    text.push_str("00-");
    push_hex(&mut text, trace_id);
    text.push('-');
    push_hex(&mut text, span_id);
    text.push_str("-01");
    text
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    let digit = |half: u8| char::from_digit(u32::from(half), 16).unwrap_or('0');
    for byte in bytes {
        text.push(digit(byte >> 4));
        text.push(digit(byte & 15));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<Parent> {
        HeaderValue::from_str(text)
            .ok()
            .and_then(|header| parent_of(&header))
    }

    #[test]
    fn a_traceparent_is_read_as_the_specification_says() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let span = "00f067aa0ba902b7";
        let parent = read(&format!("00-{trace}-{span}-01")).unwrap();
        let written = traceparent(&parent.trace_id, &parent.span_id);
        assert_eq!(written, format!("00-{trace}-{span}-01"));
        assert!(parent.sampled);
        assert!(!read(&format!("00-{trace}-{span}-02")).unwrap().sampled);
        assert!(read(&format!("01-{trace}-{span}-01-more")).is_some());
        let zeros = "0".repeat(32);
        for wrong in [
            format!("ff-{trace}-{span}-01"),
            format!("00-{trace}-{span}-01-more"),
            format!("00-{zeros}-{span}-01"),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{}-{span}-01", trace.to_uppercase()),
            format!("00-{trace}-{span}"),
            format!("00-{trace}-{span}-1"),
            "é".to_owned(),
            "-".repeat(8_000),
            String::new(),
        ] {
            assert_eq!(read(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_share_of_none_takes_none_and_one_of_all_takes_all() {
        for random in [0, 1, u32::MAX / 2, u32::MAX] {
            assert!(!is_sampled(random, 0.0));
            assert!(is_sampled(random, 1.0));
            assert_eq!(is_sampled(random, 0.5), random < 1 << 31);
        }
    }
}
