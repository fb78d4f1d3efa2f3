//! What is counted. No label names a tenant: their number has no bound.

use prometheus::{
    Encoder as _, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};

use crate::{clock, sink::SinkKind};

/// Bounds of the delivery's histogram, in seconds: a log system takes from some ms to as long as a call may last.
const DELIVERY_BUCKETS: [f64; 12] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

/// Reasons of failed deliveries.
pub(crate) const REASONS: [&str; 4] = ["later", "credentials", "refused", "too_large"];

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Events that came from proxies.
    pub received: IntCounter,
    /// Events that are on disk, checkpoints included.
    pub stored: IntCounter,
    /// What came and is no event.
    pub malformed: IntCounter,
    /// Events of batches that were stored already.
    pub repeated: IntCounter,
    /// Numbers that are missing between events of one proxy's shard.
    pub missing: IntCounter,
    /// Events that a proxy says it dropped.
    pub lost: IntCounter,
    /// Processes of proxies that ended without a word.
    pub proxies_died: IntCounter,
    /// Events in blocks that were damaged on disk.
    pub corrupt: IntCounter,
    /// Events that a sink took.
    pub delivered: IntCounterVec,
    /// Calls of a sink that failed.
    pub failed: IntCounterVec,
    /// Events that became dead letters.
    pub dead: IntCounterVec,
    /// Dead letters that expired.
    pub dead_expired: IntCounter,
    /// How long a call of a sink took.
    pub delivery_seconds: HistogramVec,
    /// Events on disk that wait.
    pub buffered_events: IntGauge,
    /// Bytes of the store's files.
    pub store_bytes: IntGauge,
    /// 0 while the store takes nothing.
    pub store_writable: IntGauge,
    /// Transactions that the disk refused.
    pub store_refusals: IntCounter,
    /// Sends between stages that waited longer than `LOGDRIVER_CHANNEL_TIMEOUT`.
    pub stalls: IntCounter,
    /// Connections to proxies that serve.
    pub producers: IntGauge,
    /// When the oldest event that waits was stored, in ms since 1970; 0 if none waits.
    pub oldest_stored_ms: IntGauge,
    oldest_age_s: IntGauge,
    /// Failed looks at the configurations.
    pub refresh_failures: IntCounter,
    /// When the last one went well, as Unix time in seconds.
    pub last_refresh: IntGauge,
    /// Logging configurations that are in force.
    pub configs: IntGauge,
    /// Those that are not, because of what is in them.
    pub configs_left_out: IntGauge,
}

impl Metrics {
    /// All of them, registered. Labels are there from the start, at zero.
    ///
    /// # Errors
    /// If two have one name, which a test sees.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let labelled = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let delivery_seconds = HistogramVec::new(
            HistogramOpts::new(
                "logdriver_delivery_duration_seconds",
                "How long a call of a sink took.",
            )
            .buckets(DELIVERY_BUCKETS.to_vec()),
            &["sink"],
        )?;
        registry.register(Box::new(delivery_seconds.clone()))?;
        let metrics = Self {
            received: counter(
                "logdriver_events_received_total",
                "Events that came from proxies.",
            )?,
            stored: counter(
                "logdriver_events_stored_total",
                "Events that were put on disk, checkpoints included.",
            )?,
            malformed: counter(
                "logdriver_events_malformed_total",
                "What came from a proxy and is no event; kept as dead letters.",
            )?,
            repeated: counter(
                "logdriver_events_repeated_total",
                "Events that a proxy sent again and that were stored already.",
            )?,
            missing: counter(
                "logdriver_sequence_missing_total",
                "Numbers missing between events of one shard of a proxy; other logdrivers of that proxy may have them.",
            )?,
            lost: counter(
                "logdriver_proxy_events_lost_total",
                "Events that proxies report to have dropped.",
            )?,
            proxies_died: counter(
                "logdriver_proxies_died_total",
                "Processes of proxies that ended without saying so; what they held is lost, and their tenants are told.",
            )?,
            corrupt: counter(
                "logdriver_events_corrupt_total",
                "Events in blocks that were damaged on disk, and skipped.",
            )?,
            delivered: labelled(
                "logdriver_events_delivered_total",
                "Events that a sink took.",
                &["sink"],
            )?,
            failed: labelled(
                "logdriver_events_failed_total",
                "Events in calls of a sink that failed, once per try.",
                &["sink", "reason"],
            )?,
            dead: labelled(
                "logdriver_events_dead_letter_total",
                "Events that became dead letters.",
                &["sink"],
            )?,
            dead_expired: counter(
                "logdriver_dead_letters_expired_total",
                "Dead letters that were removed because of their age or their size.",
            )?,
            delivery_seconds,
            buffered_events: gauge(
                "logdriver_buffered_events",
                "Events on disk that wait to be delivered.",
            )?,
            store_bytes: gauge("logdriver_store_bytes", "Size of the store's files.")?,
            store_writable: gauge(
                "logdriver_store_writable",
                "0 while the store cannot take events.",
            )?,
            store_refusals: counter(
                "logdriver_store_refusals_total",
                "Times that the disk took nothing.",
            )?,
            stalls: counter(
                "logdriver_stalls_total",
                "Messages that waited longer than LOGDRIVER_CHANNEL_TIMEOUT for the store.",
            )?,
            producers: gauge(
                "logdriver_producers",
                "Addresses of proxies that events are taken from.",
            )?,
            oldest_stored_ms: IntGauge::new("logdriver_oldest_event_stored_ms", "Not exported.")?,
            oldest_age_s: gauge(
                "logdriver_oldest_event_age_seconds",
                "How long the oldest event that waits has been on disk.",
            )?,
            refresh_failures: counter(
                "logdriver_config_refresh_failures_total",
                "Looks at the logging configurations that failed.",
            )?,
            last_refresh: gauge(
                "logdriver_last_config_refresh_timestamp_seconds",
                "When the last look at the logging configurations succeeded.",
            )?,
            configs: gauge("logdriver_configs", "Logging configurations in force.")?,
            configs_left_out: gauge(
                "logdriver_configs_left_out",
                "Logging configurations that cannot be used; the log names them.",
            )?,
            registry,
        };
        for kind in SinkKind::ALL.map(SinkKind::as_str) {
            metrics.delivered.with_label_values(&[kind]);
            metrics.dead.with_label_values(&[kind]);
            for reason in REASONS {
                metrics.failed.with_label_values(&[kind, reason]);
            }
        }
        Ok(metrics)
    }

    /// The text of a scrape.
    #[must_use]
    pub fn text(&self) -> Vec<u8> {
        let oldest = self.oldest_stored_ms.get();
        let age_ms = if oldest == 0 {
            0
        } else {
            clock::now_ms().saturating_sub(oldest).max(0)
        };
        self.oldest_age_s.set(age_ms / 1000);
        let mut text = Vec::new();
        // Writing to memory cannot fail.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        text
    }
}
