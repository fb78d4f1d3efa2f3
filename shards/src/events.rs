//! What an operation reports, and its hand-over to the event thread.
//!
//! Every event takes the next number of its shard's sequence, also one that is dropped: a loss shows as a gap. Nothing
//! is built for an event that will be dropped. A full queue costs a request at most the configured wait, once, however
//! many events it has.

use std::{
    cell::Cell,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, UNIX_EPOCH},
};

use crossbeam_channel::{Sender, TrySendError};
use tsp_rt::Rt;
use tsp_wire::{
    KmsConfigId, RayId, TenantId,
    api::Metadata,
    event::{EventSource, FRAME_VERSION, SecurityEvent, Sequence},
};

use crate::{
    limits::{EVENT_QUEUE_LOOK_INTERVAL, WARNING_INTERVAL},
    metrics::ShardMetrics,
};

/// Room for a usual event, in bytes, so that writing it allocates once.
const FRAME_BYTES_TYPICAL: usize = 512;

/// Where events go and what happens when that is full.
#[derive(Clone, Debug)]
pub struct EventsConfig {
    /// Queue to the event thread. One item is one frame: the format version byte and one event's JSON.
    pub queue: Sender<Vec<u8>>,
    /// Longest that a request waits for room in the queue.
    pub send_timeout: Duration,
    /// Whether an operation fails, with code 301, when its event finds no room. If not, the event is dropped.
    pub required: bool,
}

/// One shard's end of the event queue.
#[derive(Debug)]
pub(crate) struct Events<R> {
    rt: R,
    config: Option<EventsConfig>,
    instance: u64,
    shard: u16,
    number: Cell<u64>,
    warned: Cell<Option<Instant>>,
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
        let (number, warned) = (Cell::new(0), Cell::new(None));
        Self {
            rt,
            config,
            instance,
            shard,
            number,
            warned,
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
        let timestamp_ms = timestamp_ms.unwrap_or_else(|| self.now_ms());
        let tenant_id = self.metadata.tenant_id;
        let ray_id = self.ray_id;
        tracing::info!(target: "tsp::ops", tenant_id, %ray_id, "Security Event Received");
        if tracing::enabled!(target: "tsp::ops", tracing::Level::INFO) {
            let (source, number) = (EventSource::App, self.events.number.get());
            let frame = self.frame(tenant_id, event, timestamp_ms, source, 1, number);
            let json = String::from_utf8_lossy(frame.get(1..).unwrap_or_default());
            tracing::info!(target: "tsp::ops", tenant_id, %ray_id, "{json}");
        }
        self.send(tenant_id, event, timestamp_ms, EventSource::App, 1)
            .await
    }

    /// Sends an event that nobody asked for: losing it fails the request only where events are required.
    async fn unasked(
        &self,
        tenant_id: &str,
        event: &str,
        source: EventSource,
        count: u64,
    ) -> Result<(), NoRoom> {
        let Some(config) = &self.events.config else {
            return Ok(());
        };
        let sent = self
            .send(tenant_id, event, self.now_ms(), source, count)
            .await;
        if config.required { sent } else { Ok(()) }
    }

    fn now_ms(&self) -> i64 {
        let now = self
            .events
            .rt
            .wall_now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
    }

    fn frame(
        &self,
        tenant_id: &str,
        event: &str,
        timestamp_ms: i64,
        source: EventSource,
        count: u64,
        number: u64,
    ) -> Vec<u8> {
        let (instance, shard) = (self.events.instance, self.events.shard);
        let mut frame = Vec::with_capacity(FRAME_BYTES_TYPICAL);
        frame.push(FRAME_VERSION);
        SecurityEvent {
            tenant_id,
            timestamp_ms,
            event,
            metadata: self.metadata,
            ray_id: self.ray_id,
            source,
            count,
            sequence: Sequence {
                instance,
                shard,
                number,
            },
        }
        .write_json(&mut frame);
        frame
    }

    async fn send(
        &self,
        tenant_id: &str,
        event: &str,
        timestamp_ms: i64,
        source: EventSource,
        count: u64,
    ) -> Result<(), NoRoom> {
        let events = &self.events;
        let Some(config) = &events.config else {
            return Ok(());
        };
        let number = events.number.get();
        events.number.set(number.wrapping_add(1));
        loop {
            if !config.queue.is_full() {
                let frame = self.frame(tenant_id, event, timestamp_ms, source, count, number);
                match config.queue.try_send(frame) {
                    Ok(()) => {
                        events.metrics.event_queued();
                        return Ok(());
                    }
                    Err(TrySendError::Disconnected(_)) => break,
                    // Another shard took the last place.
                    Err(TrySendError::Full(_)) => {}
                }
            }
            let now = events.rt.now();
            let ends = self
                .patience_ends
                .get()
                .unwrap_or(now + config.send_timeout);
            self.patience_ends.set(Some(ends));
            if now >= ends {
                break;
            }
            events
                .rt
                .sleep(EVENT_QUEUE_LOOK_INTERVAL.min(ends - now))
                .await;
        }
        events.metrics.event_failed();
        events.warn_of_loss();
        Err(NoRoom)
    }
}
