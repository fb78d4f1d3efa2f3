//! One tenant's way: wait for a batch that is full or old, read it, deliver it, settle it.

use std::time::{Duration, Instant};

use super::{Lane, Shared, backoff};
use crate::{
    clock,
    sink::{Event, Failure, Sink},
    store::{Batch, Gone},
};

/// How long a lane with nothing to do stays.
const IDLE: Duration = Duration::from_secs(30);

/// Bytes of a batch, whatever the sink would take.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes and events of a batch while the sink fails.
const PROBE_BYTES: usize = 64 * 1024;
const PROBE_EVENTS: usize = 100;

/// How soon a disk that did not give events back is asked again.
const DISK_PAUSE: Duration = Duration::from_secs(1);

/// How often it is looked whether events wait longer than they may that nobody is there for.
const HELD_PAUSE: Duration = Duration::from_secs(60);

/// What stands for the kind of a log system in metrics where there is none.
const HELD: &str = "held";

/// A sink that fails, or is none: since when, and how often in a row.
struct Trouble {
    since: Instant,
    failures: u32,
}

impl Trouble {
    fn begins() -> Self {
        Self {
            since: clock::monotonic(),
            failures: 0,
        }
    }
}

fn kind(sink: Option<&dyn Sink>) -> &'static str {
    sink.map_or(HELD, |sink| sink.kind().as_str())
}

/// Why a lane stops delivering for a while.
enum Pause {
    /// So long, or until the configuration changes.
    For(Duration),
    /// The process ends.
    Gone,
}

impl From<Gone> for Pause {
    fn from(Gone: Gone) -> Self {
        Self::Gone
    }
}

/// Delivers what the tenant has until there has been nothing for a while.
pub(super) async fn run(shared: &Shared, lane: &Lane) {
    let mut trouble: Option<Trouble> = None;
    let mut held = false;
    while !shared.stopping() && has_events(shared, lane).await {
        if trouble.is_none() {
            gather(shared, lane).await;
        }
        if shared.stopping() {
            break;
        }
        let mut routes = shared.routes.clone();
        routes.borrow_and_update();
        let sink = shared.sink(&lane.tenant).await;
        if held != sink.is_none() {
            held = sink.is_none();
            // A sink that is there again begins without a past.
            trouble = held.then(Trouble::begins);
        }
        let sink = sink.as_deref();
        let wait = match step(shared, lane, sink, trouble.as_ref()).await {
            Ok(()) => {
                if trouble.take().is_some() {
                    let sink = kind(sink);
                    tracing::info!(
                        tenant_id = &*lane.tenant,
                        sink,
                        "its log system takes events again"
                    );
                }
                continue;
            }
            Err(Pause::Gone) => break,
            Err(Pause::For(wait)) => wait,
        };
        let trouble = trouble.get_or_insert_with(Trouble::begins);
        trouble.failures = trouble.failures.saturating_add(1);
        let mut stop = shared.stop.clone();
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = routes.changed() => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }
}

/// Waits until there is something. `false` if there has been nothing for long.
async fn has_events(shared: &Shared, lane: &Lane) -> bool {
    let mut stop = shared.stop.clone();
    while lane.waiting() <= 0 {
        tokio::select! {
            () = lane.news.notified() => {}
            () = tokio::time::sleep(IDLE) => return false,
            _ = stop.wait_for(|stop| *stop) => return false,
        }
    }
    true
}

/// Waits until a batch is full, or its first event as old as it may be.
async fn gather(shared: &Shared, lane: &Lane) {
    let full = i64::try_from(shared.config.batch_events_max).unwrap_or(i64::MAX);
    let old = tokio::time::sleep(shared.config.batch_age_max);
    tokio::pin!(old);
    let mut stop = shared.stop.clone();
    while lane.waiting() < full {
        tokio::select! {
            () = lane.news.notified() => {}
            () = &mut old => break,
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
}

/// Reads a batch and delivers it. Without a sink it stays, unless it waits longer than it may.
async fn step(
    shared: &Shared,
    lane: &Lane,
    sink: Option<&dyn Sink>,
    trouble: Option<&Trouble>,
) -> Result<(), Pause> {
    let (events_max, bytes_max) = match trouble {
        None => (shared.config.batch_events_max, BATCH_BYTES_MAX),
        Some(_) => (PROBE_EVENTS, PROBE_BYTES),
    };
    let (events_max, bytes_max) = match sink.map(Sink::limits) {
        Some(limits) => (
            events_max.min(limits.events_max).max(1),
            bytes_max.min(limits.bytes_max),
        ),
        None => (events_max, bytes_max),
    };
    let expected = usize::try_from(lane.waiting_bytes()).unwrap_or(usize::MAX);
    let room = u32::try_from(expected.min(bytes_max) / 1024 + 1).unwrap_or(u32::MAX);
    let _room = shared.inflight.acquire_many(room).await;
    let before = (lane.waiting(), lane.waiting_bytes());
    let Batch {
        events,
        corrupt,
        stored_ms,
        failed,
    } = shared
        .store
        .read(&lane.tenant, events_max, bytes_max)
        .await?;
    // What the disk gave back is good, whatever it refused.
    let first = events.first().map(|event| event.sequence);
    let leading: Vec<_> = corrupt
        .iter()
        .filter(|block| first.is_none_or(|first| block.first < first))
        .copied()
        .collect();
    if let Some(last) = leading.iter().map(|block| block.last()).max() {
        let count = leading.iter().map(|block| block.events).sum::<u64>();
        shared
            .store
            .settle(&lane.tenant, last, Vec::new(), leading)
            .await?;
        lane.took(i64::try_from(count).unwrap_or(i64::MAX), 0);
        return Ok(());
    }
    if events.is_empty() {
        if failed {
            return Err(Pause::For(DISK_PAUSE));
        }
        // What was counted before the read is not there, so it was counted wrong.
        lane.took(before.0, before.1);
        return Ok(());
    }
    // A damaged block between them is met again as the first of the next read.
    let end = corrupt.first().map_or(u64::MAX, |block| block.first);
    let events: Vec<Event> = events
        .into_iter()
        .take_while(|event| event.sequence < end)
        .collect();
    if let Some(why) = overdue(shared, lane, trouble, stored_ms) {
        return bury(shared, lane, kind(sink), events, why).await;
    }
    let Some(sink) = sink else {
        return Err(Pause::For(HELD_PAUSE));
    };
    Delivery {
        shared,
        lane,
        sink,
        failures: trouble.map_or(0, |trouble| trouble.failures) + 1,
    }
    .deliver(&events)
    .await
}

/// Why a batch is not to wait any longer.
fn overdue(
    shared: &Shared,
    lane: &Lane,
    trouble: Option<&Trouble>,
    stored_ms: Option<i64>,
) -> Option<&'static str> {
    let retention = &shared.config.retention;
    let trouble = trouble?;
    if lane.waiting_bytes() > retention.bytes_max {
        return Some("more of the tenant's events wait than may");
    }
    let failing = clock::monotonic().duration_since(trouble.since);
    let age_ms = clock::now_ms().saturating_sub(stored_ms?);
    let age_max_ms = i64::try_from(retention.age_max.as_millis()).unwrap_or(i64::MAX);
    let old = failing >= retention.patience && age_ms > age_max_ms;
    old.then_some("it waited longer than events may")
}

async fn bury(
    shared: &Shared,
    lane: &Lane,
    sink: &'static str,
    events: Vec<Event>,
    why: &'static str,
) -> Result<(), Pause> {
    let Some(last) = events.last().map(|event| event.sequence) else {
        return Ok(());
    };
    tracing::warn!(
        tenant_id = &*lane.tenant,
        sink,
        events = events.len(),
        "undelivered events become dead letters: {why}"
    );
    let (count, bytes) = sizes(&events);
    let dead = events.into_iter().map(|event| (event, why.to_owned()));
    settle(shared, lane, sink, last, dead.collect(), (count, bytes)).await?;
    // The sink still fails, or is none; the wait goes on.
    Err(Pause::For(Duration::ZERO))
}

async fn settle(
    shared: &Shared,
    lane: &Lane,
    sink: &'static str,
    upto: u64,
    dead: Vec<(Event, String)>,
    (count, bytes): (i64, i64),
) -> Result<(), Gone> {
    let dead_count = u64::try_from(dead.len()).unwrap_or(u64::MAX);
    shared
        .store
        .settle(&lane.tenant, upto, dead, Vec::new())
        .await?;
    lane.took(count, bytes);
    let metrics = &shared.metrics;
    metrics.dead.with_label_values(&[sink]).inc_by(dead_count);
    let delivered = u64::try_from(count)
        .unwrap_or_default()
        .saturating_sub(dead_count);
    if delivered > 0 {
        metrics
            .delivered
            .with_label_values(&[sink])
            .inc_by(delivered);
    }
    Ok(())
}

fn sizes(events: &[Event]) -> (i64, i64) {
    let bytes: usize = events.iter().map(|event| event.json.len()).sum();
    let number = |size| i64::try_from(size).unwrap_or(i64::MAX);
    (number(events.len()), number(bytes))
}

/// A batch on its way.
struct Delivery<'a> {
    shared: &'a Shared,
    lane: &'a Lane,
    sink: &'a dyn Sink,
    /// In a row, this one included if it fails.
    failures: u32,
}

impl Delivery<'_> {
    /// Delivers from the first to the last; what the sink refuses is halved until the bad event is alone.
    async fn deliver(&self, events: &[Event]) -> Result<(), Pause> {
        let limit = self.sink.limits().event_bytes_max;
        let mut parts = vec![events];
        while let Some(part) = parts.pop() {
            let [first, rest @ ..] = part else { continue };
            let large = part.iter().position(|event| event.json.len() > limit);
            match large {
                Some(0) => {
                    let why = format!("it is larger than the {limit} bytes that the sink takes");
                    self.refused(first, "too_large", why).await?;
                    parts.push(rest);
                    continue;
                }
                Some(at) => {
                    let (before, after) = part.split_at(at);
                    parts.push(after);
                    parts.push(before);
                    continue;
                }
                None => {}
            }
            match self.call(part).await {
                Ok(()) => self.settled(part, Vec::new()).await?,
                Err(Failure::Some { refused }) => {
                    self.count(refused.len(), "refused");
                    let dead = refused.into_iter().filter_map(|(index, why)| {
                        part.get(index).map(|event| (event.clone(), why))
                    });
                    self.settled(part, dead.collect()).await?;
                }
                Err(Failure::Refused { why }) if rest.is_empty() => {
                    self.refused(first, "refused", why).await?;
                }
                Err(Failure::Refused { why }) => {
                    self.count(part.len(), "refused");
                    tracing::info!(
                        tenant_id = &*self.lane.tenant,
                        sink = %self.sink.kind(),
                        events = part.len(),
                        "its log system refuses a batch, which is halved to find out why: {why}"
                    );
                    let (before, after) = part.split_at(part.len() / 2);
                    parts.push(after);
                    parts.push(before);
                }
                Err(Failure::Later { after, why }) => {
                    self.count(part.len(), "later");
                    let wait = backoff::wait(self.failures, after, backoff::random());
                    self.tell(part.len(), wait, &why);
                    return Err(Pause::For(wait));
                }
                Err(Failure::Credentials { why }) => {
                    self.count(part.len(), "credentials");
                    let wait = backoff::credentials_wait(backoff::random());
                    self.tell(part.len(), wait, &why);
                    return Err(Pause::For(wait));
                }
            }
        }
        Ok(())
    }

    async fn call(&self, events: &[Event]) -> Result<(), Failure> {
        let started = clock::monotonic();
        let called = self.sink.deliver(events).await;
        let took = clock::monotonic().duration_since(started).as_secs_f64();
        let kind = self.sink.kind().as_str();
        let durations = &self.shared.metrics.delivery_seconds;
        durations.with_label_values(&[kind]).observe(took);
        tracing::debug!(
            tenant_id = &*self.lane.tenant,
            sink = kind,
            events = events.len(),
            taken = called.is_ok(),
            "BATCH: {} events to {kind}",
            events.len()
        );
        called
    }

    async fn refused(&self, event: &Event, reason: &str, why: String) -> Result<(), Gone> {
        self.count(1, reason);
        tracing::warn!(
            tenant_id = &*self.lane.tenant,
            sink = %self.sink.kind(),
            event = event.id,
            "an event becomes a dead letter: {why}"
        );
        self.settled(std::slice::from_ref(event), vec![(event.clone(), why)])
            .await
    }

    async fn settled(&self, events: &[Event], dead: Vec<(Event, String)>) -> Result<(), Gone> {
        let Some(last) = events.last() else {
            return Ok(());
        };
        let Self {
            shared, lane, sink, ..
        } = *self;
        let sink = sink.kind().as_str();
        settle(shared, lane, sink, last.sequence, dead, sizes(events)).await
    }

    fn count(&self, events: usize, reason: &str) {
        let failed = &self.shared.metrics.failed;
        let kind = self.sink.kind().as_str();
        let events = u64::try_from(events).unwrap_or(u64::MAX);
        failed.with_label_values(&[kind, reason]).inc_by(events);
    }

    /// Once at the first failure, and then ever more rarely.
    fn tell(&self, events: usize, wait: Duration, why: &str) {
        if self.failures.is_power_of_two() {
            tracing::warn!(
                tenant_id = &*self.lane.tenant,
                sink = %self.sink.kind(),
                events,
                failures = self.failures,
                wait_s = wait.as_secs(),
                "its log system does not take events, which wait on disk: {why}"
            );
        }
    }
}
