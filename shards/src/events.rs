//! What an operation reports, and its hand-over to the event thread.
//!
//! Every event takes the next number of its shard's sequence when it gets its place in the queue, or is dropped: a loss shows
//! as a gap, and what is queued is in order. Nothing is built for an event that will be dropped. A full queue costs a request at
//! most the configured wait, once, however many events it has.
//!
//! What was dropped is counted by tenant ([`losses`]), and told by an event as soon as there is room: before anything that waits
//! for room, and otherwise by the shard's sweep. So it costs nothing while nothing is dropped.

mod losses;
mod queue;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, UNIX_EPOCH},
};

use tsp_rt::Rt;
use tsp_wire::{
    KmsConfigId, RayId, TenantId,
    api::{CustomFields, Metadata},
    event::{
        EventSource, FIRST_LOST_AT, LAST_LOST_AT, SecurityEvent, Sequence, TSP_EVENTS_ENDED,
        TSP_EVENTS_LOST, TSP_REQUESTING_ID, push_timestamp,
    },
};

use self::losses::{Loss, Losses};
pub use self::queue::{EventBatch, EventLane, EventQueue, EventReceiver, QueueFull, event_queue};
use crate::{
    limits::{EVENT_QUEUE_LOOK_INTERVAL, WARNING_INTERVAL},
    metrics::ShardMetrics,
};

/// Where events go and what happens when that is full.
#[derive(Clone, Debug)]
pub struct EventsConfig {
    /// Queue to the event thread.
    pub queue: EventQueue,
    /// Longest that a request waits for room in the queue.
    pub send_timeout: Duration,
    /// Whether an operation fails, with code 301, when its event finds no room. If not, the event is dropped.
    pub required: bool,
}

/// The shard's own part of [`EventsConfig`].
#[derive(Debug)]
struct Outlet {
    lane: EventLane,
    send_timeout: Duration,
    required: bool,
}

/// What one shard has to do with events.
#[derive(Debug)]
pub(crate) struct Events<R> {
    rt: R,
    outlet: Option<Outlet>,
    instance: u64,
    shard: u16,
    number: Cell<u64>,
    warned: Cell<Option<Instant>>,
    /// What was dropped and not yet told.
    losses: RefCell<Losses>,
    /// Whether there was no room for telling it: then it goes before what waits for room.
    overdue: Cell<bool>,
    metrics: Arc<ShardMetrics>,
}

/// What one request reports: shared by all its events.
#[derive(Debug)]
pub(crate) struct Reporter<'a, 'm, R> {
    events: Rc<Events<R>>,
    metadata: &'a Metadata<'m>,
    ray_id: RayId,
    /// When this request stops waiting for room; set at its first wait.
    patience_ends: Cell<Option<Instant>>,
}

/// What happened, for one event.
#[derive(Clone, Copy, Debug)]
struct What<'a> {
    tenant_id: &'a str,
    event: &'a str,
    timestamp_ms: i64,
    source: EventSource,
    count: u64,
}

/// An event that waits for room. It is lost when this is dropped: at the end of the request's patience, or of the request.
#[derive(Debug)]
struct Unsent<'a, R: Rt> {
    events: &'a Events<R>,
    what: &'a What<'a>,
    sent: bool,
}

impl<R: Rt> Drop for Unsent<'_, R> {
    fn drop(&mut self) {
        if !self.sent {
            self.events.lose(self.what.tenant_id);
        }
    }
}

/// The event found no room in time.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoRoom;

impl<R: Rt> Events<R> {
    pub(crate) fn new(
        rt: R,
        config: Option<EventsConfig>,
        instance: u64,
        shard: u16,
        metrics: Arc<ShardMetrics>,
    ) -> Self {
        let outlet = config.map(|config| Outlet {
            lane: config.queue.lane(),
            send_timeout: config.send_timeout,
            required: config.required,
        });
        Self {
            rt,
            outlet,
            instance,
            shard,
            number: Cell::new(0),
            warned: Cell::new(None),
            losses: RefCell::default(),
            overdue: Cell::new(false),
            metrics,
        }
    }

    pub(crate) fn reporter<'a, 'm>(
        self: &Rc<Self>,
        metadata: &'a Metadata<'m>,
        ray_id: RayId,
    ) -> Reporter<'a, 'm, R> {
        let events = Rc::clone(self);
        Reporter {
            events,
            metadata,
            ray_id,
            patience_ends: Cell::new(None),
        }
    }

    /// Tells what was dropped, as far as there is room. To be called now and then.
    pub(crate) fn tell_losses(&self) {
        let Some(outlet) = &self.outlet else { return };
        let mut losses = self.losses.borrow_mut();
        while let Some((tenant_id, loss)) = losses.next() {
            let offered = self.offer(outlet, |sequence, out| {
                self.write_loss(tenant_id, loss, sequence, out);
            });
            if offered.is_err() {
                break;
            }
            losses.told();
        }
        self.overdue.set(!losses.is_empty());
    }

    /// Says the last that is to be said: what was dropped, and that nothing else is missing. It waits for room no longer than a
    /// request does.
    pub(crate) async fn end(&self) {
        let Some(outlet) = &self.outlet else { return };
        let ends = self.rt.now() + outlet.send_timeout;
        loop {
            self.tell_losses();
            let told = !self.overdue.get();
            let end = |out: &mut Vec<u8>| self.write_end(self.next(), out);
            if told && outlet.lane.push_last(end).is_ok() {
                self.metrics.event_queued();
                return;
            }
            let now = self.rt.now();
            if now >= ends {
                break;
            }
            let pause = EVENT_QUEUE_LOOK_INTERVAL.min(ends - now);
            self.rt.sleep(pause).await;
        }
        let events = self.losses.borrow().count();
        tracing::warn!(
            shard = self.shard,
            events,
            "the last word on security events found no room; so many were dropped and no event tells of them"
        );
    }

    /// Gives the queue the event that `write` writes, under the next number, which is returned. Nothing is written when there is
    /// no room.
    fn offer(
        &self,
        outlet: &Outlet,
        write: impl FnOnce(Sequence, &mut Vec<u8>),
    ) -> Result<u64, QueueFull> {
        let sequence = self.next();
        outlet.lane.push(|out| write(sequence, out))?;
        self.number.set(sequence.number.wrapping_add(1));
        self.metrics.event_queued();
        Ok(sequence.number)
    }

    fn next(&self) -> Sequence {
        Sequence {
            instance: self.instance,
            shard: self.shard,
            number: self.number.get(),
        }
    }

    /// An event of `tenant_id` is dropped, and its number with it.
    fn lose(&self, tenant_id: &str) {
        self.number.set(self.number.get().wrapping_add(1));
        self.metrics.event_failed();
        self.losses.borrow_mut().add(tenant_id, self.now_ms());
        self.warn_of_loss();
    }

    fn write_loss(&self, tenant_id: &str, loss: Loss, sequence: Sequence, out: &mut Vec<u8>) {
        let time = |at_ms| {
            let mut text = Vec::new();
            push_timestamp(&mut text, at_ms);
            String::from_utf8(text).unwrap_or_default().into()
        };
        let times = [
            (FIRST_LOST_AT, time(loss.first_ms)),
            (LAST_LOST_AT, time(loss.last_ms)),
        ];
        let what = What {
            tenant_id,
            event: TSP_EVENTS_LOST,
            timestamp_ms: loss.last_ms,
            source: EventSource::Tsp,
            count: loss.count,
        };
        self.write_own(what, times.into(), sequence, out);
    }

    fn write_end(&self, sequence: Sequence, out: &mut Vec<u8>) {
        let what = What {
            tenant_id: "",
            event: TSP_EVENTS_ENDED,
            timestamp_ms: self.now_ms(),
            source: EventSource::Tsp,
            count: 1,
        };
        self.write_own(what, CustomFields::new(), sequence, out);
    }

    /// An event that no request asked for.
    fn write_own<'a>(
        &self,
        what: What<'a>,
        custom_fields: CustomFields<'a>,
        sequence: Sequence,
        out: &mut Vec<u8>,
    ) {
        let metadata = Metadata {
            tenant_id: what.tenant_id,
            requesting_id: TSP_REQUESTING_ID,
            data_label: None,
            source_ip: None,
            object_id: None,
            request_id: None,
            custom_fields,
        };
        let mut random = [0; 12];
        self.rt.random(&mut random);
        write(&what, &metadata, RayId::from_random(random), sequence, out);
    }

    fn now_ms(&self) -> i64 {
        let now = self.rt.wall_now();
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }

    fn warn_of_loss(&self) {
        let now = self.rt.now();
        let due = self
            .warned
            .get()
            .is_none_or(|last| now.duration_since(last) >= WARNING_INTERVAL);
        if due {
            self.warned.set(Some(now));
            tracing::warn!(
                "security events are being dropped: the queue to the log-event driver is full; start one, \
                 or set TSP_ENABLE_LOGDRIVER_INTEGRATION=false"
            );
        }
    }
}

impl<R: Rt> Reporter<'_, '_, R> {
    /// Reports one wrap or unwrap that the proxy did for `tenant` with `config`.
    pub(crate) async fn operation(
        &self,
        tenant: &TenantId,
        config: KmsConfigId,
        event: &str,
    ) -> Result<(), NoRoom> {
        tracing::info!(
            target: "tsp::ops",
            tenant_id = %tenant,
            ray_id = %self.ray_id,
            kms_config_id = config.number(),
            "{event}"
        );
        self.unasked(tenant.as_str(), event, EventSource::Tsp, 1)
            .await
    }

    /// Reports that the proxy derived keys for `count` paths from `tenant`'s secrets of one secret path.
    pub(crate) async fn derivation(
        &self,
        tenant: &TenantId,
        event: &str,
        count: usize,
    ) -> Result<(), NoRoom> {
        tracing::info!(
            target: "tsp::ops",
            tenant_id = %tenant,
            ray_id = %self.ray_id,
            count,
            "{event}"
        );
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.unasked(tenant.as_str(), event, EventSource::Tsp, count)
            .await
    }

    /// Reports `count` operations that a client says it did by itself: the application's word, not the proxy's.
    pub(crate) async fn reported(&self, event: &str, count: u64) -> Result<(), NoRoom> {
        self.unasked(self.metadata.tenant_id, event, EventSource::App, count)
            .await
    }

    /// Hands on an event of the application's. Fails if there is no room.
    pub(crate) async fn application(
        &self,
        event: &str,
        timestamp_ms: Option<i64>,
    ) -> Result<(), NoRoom> {
        let what = What {
            tenant_id: self.metadata.tenant_id,
            event,
            timestamp_ms: timestamp_ms.unwrap_or_else(|| self.events.now_ms()),
            source: EventSource::App,
            count: 1,
        };
        let (tenant_id, ray_id) = (what.tenant_id, self.ray_id);
        tracing::info!(target: "tsp::ops", tenant_id, %ray_id, "Security Event Received");
        let sent = self.send(&what).await;
        if tracing::enabled!(target: "tsp::ops", tracing::Level::INFO) {
            let mut sequence = self.events.next();
            // Of an event that was lost just now, the number is the one before the next.
            sequence.number = *sent.as_ref().unwrap_or(&sequence.number.wrapping_sub(1));
            let mut json = Vec::new();
            write(&what, self.metadata, ray_id, sequence, &mut json);
            let json = String::from_utf8_lossy(&json);
            tracing::info!(target: "tsp::ops", tenant_id, %ray_id, "{json}");
        }
        sent.map(|_| ())
    }

    /// Sends an event that nobody asked for: losing it fails the request only where events are required.
    async fn unasked(
        &self,
        tenant_id: &str,
        event: &str,
        source: EventSource,
        count: u64,
    ) -> Result<(), NoRoom> {
        let Some(outlet) = &self.events.outlet else {
            return Ok(());
        };
        let what = What {
            tenant_id,
            event,
            timestamp_ms: self.events.now_ms(),
            source,
            count,
        };
        match self.send(&what).await {
            Err(no_room) if outlet.required => Err(no_room),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Hands an event over; its number comes back.
    async fn send(&self, what: &What<'_>) -> Result<u64, NoRoom> {
        let Some(outlet) = &self.events.outlet else {
            return Ok(self.events.number.get());
        };
        match self.offer(outlet, what) {
            Ok(number) => Ok(number),
            Err(QueueFull) => self.send_late(outlet, what).await,
        }
    }

    /// Likewise, when there was no room: waits for it as long as the request's patience lasts.
    async fn send_late(&self, outlet: &Outlet, what: &What<'_>) -> Result<u64, NoRoom> {
        let events = &*self.events;
        let mut unsent = Unsent {
            events,
            what,
            sent: false,
        };
        loop {
            let now = events.rt.now();
            let ends = self
                .patience_ends
                .get()
                .unwrap_or(now + outlet.send_timeout);
            self.patience_ends.set(Some(ends));
            if now >= ends {
                return Err(NoRoom);
            }
            let pause = EVENT_QUEUE_LOOK_INTERVAL.min(ends - now);
            events.rt.sleep(pause).await;
            if events.overdue.get() {
                events.tell_losses();
            }
            if let Ok(number) = self.offer(outlet, what) {
                unsent.sent = true;
                return Ok(number);
            }
        }
    }

    fn offer(&self, outlet: &Outlet, what: &What<'_>) -> Result<u64, QueueFull> {
        self.events.offer(outlet, |sequence, out| {
            write(what, self.metadata, self.ray_id, sequence, out);
        })
    }
}

/// Writes one event.
fn write(
    what: &What<'_>,
    metadata: &Metadata<'_>,
    ray_id: RayId,
    sequence: Sequence,
    out: &mut Vec<u8>,
) {
    SecurityEvent {
        tenant_id: what.tenant_id,
        timestamp_ms: what.timestamp_ms,
        event: what.event,
        metadata,
        ray_id,
        source: what.source,
        count: what.count,
        sequence,
    }
    .write_json(out);
}
