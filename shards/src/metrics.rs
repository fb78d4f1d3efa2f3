//! What each shard counts, and the families that a scrape sees.
//!
//! A shard writes only its own numbers, with plain relaxed stores: no other core writes that cache line. A scrape adds
//! up all shards. Labels are closed enums, so that nothing a client sends can add a series; the client's own language
//! and version, which are text, share a fixed number of slots.

mod labels;

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};
use tsp_kms::{KmsKind, KmsOperation};
use tsp_wire::TspCode;

pub(crate) use labels::{ClosedBy, Endpoint, KeyOperation, RefusedBy, SecretCreation};
use labels::{KMS_KINDS, KMS_OPERATIONS, KMS_STATUSES, OUTCOMES, kms_index};

/// Upper bounds of the duration histograms, in microseconds.
const BUCKETS_US: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

/// Distinct client languages and versions that are told apart per shard; the rest count as `other`.
const CLIENTS_MAX: usize = 32;

/// Longest language or version text that is taken as a label, in bytes.
const CLIENT_LABEL_BYTES_MAX: usize = 32;

/// A number that one core writes and any core reads.
#[derive(Debug, Default)]
struct Number(AtomicU64);

impl Number {
    fn add(&self, more: u64) {
        self.0
            .store(self.0.load(Relaxed).wrapping_add(more), Relaxed);
    }

    fn subtract(&self, less: u64) {
        self.0
            .store(self.0.load(Relaxed).saturating_sub(less), Relaxed);
    }

    fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// One series of a duration histogram: a count per bucket, one above all bounds, and the sum.
#[derive(Debug, Default)]
struct Durations {
    buckets: [Number; BUCKETS_US.len() + 1],
    sum_us: Number,
}

impl Durations {
    fn observe(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let index = BUCKETS_US
            .iter()
            .position(|bound| us <= *bound)
            .unwrap_or(BUCKETS_US.len());
        if let Some(bucket) = self.buckets.get(index) {
            bucket.add(1);
        }
        self.sum_us.add(us);
    }
}

/// Histograms by a fixed number of label combinations; a series takes memory once it has a value.
#[derive(Debug)]
struct Series(Box<[OnceLock<Box<Durations>>]>);

impl Series {
    fn new(len: usize) -> Self {
        Self((0..len).map(|_| OnceLock::new()).collect())
    }

    fn observe(&self, index: usize, took: Duration) {
        if let Some(series) = self.0.get(index) {
            series.get_or_init(Box::default).observe(took);
        }
    }

    fn get(&self, index: usize) -> Option<&Durations> {
        self.0.get(index)?.get().map(|series| &**series)
    }
}

/// One client library, as its own headers name it.
#[derive(Debug)]
struct Client {
    language: Box<str>,
    version: Box<str>,
    requests: Number,
}

/// The numbers of one shard.
pub(crate) struct ShardMetrics {
    requests: Series,
    kms_requests: Series,
    inflight: [Number; Endpoint::ALL.len()],
    key_operations: [Number; KeyOperation::ALL.len()],
    secret_creations: [Number; SecretCreation::ALL.len()],
    closed: [Number; ClosedBy::ALL.len()],
    refused: [Number; RefusedBy::ALL.len()],
    connections: Number,
    event_failures: Number,
    events: Number,
    kms_retries: Number,
    kms_connects: Number,
    kms_stale: Number,
    kms_resent: Number,
    clients: Box<[OnceLock<Client>; CLIENTS_MAX]>,
    clients_other: Number,
}

impl fmt::Debug for ShardMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardMetrics").finish_non_exhaustive()
    }
}

impl ShardMetrics {
    pub(crate) fn new() -> Self {
        Self {
            requests: Series::new(Endpoint::ALL.len() * KMS_KINDS.len() * OUTCOMES.len()),
            kms_requests: Series::new(
                KMS_OPERATIONS.len() * KMS_KINDS.len() * (KMS_STATUSES.len() + 2),
            ),
            inflight: Default::default(),
            key_operations: Default::default(),
            secret_creations: Default::default(),
            closed: Default::default(),
            refused: Default::default(),
            connections: Number::default(),
            event_failures: Number::default(),
            events: Number::default(),
            kms_retries: Number::default(),
            kms_connects: Number::default(),
            kms_stale: Number::default(),
            kms_resent: Number::default(),
            clients: Box::new([const { OnceLock::new() }; CLIENTS_MAX]),
            clients_other: Number::default(),
        }
    }

    pub(crate) fn request_begins(&self, endpoint: Endpoint) {
        if let Some(inflight) = self.inflight.get(endpoint.index()) {
            inflight.add(1);
        }
    }

    pub(crate) fn request_ends(&self, endpoint: Endpoint) {
        if let Some(inflight) = self.inflight.get(endpoint.index()) {
            inflight.subtract(1);
        }
    }

    /// Counts an answered request.
    pub(crate) fn request(
        &self,
        endpoint: Endpoint,
        kms: Option<KmsKind>,
        outcome: (u16, Option<TspCode>),
        took: Duration,
    ) {
        let outcome = OUTCOMES.iter().position(|known| *known == outcome);
        debug_assert!(outcome.is_some(), "every outcome is in the list");
        if let Some(outcome) = outcome {
            let index =
                (endpoint.index() * KMS_KINDS.len() + kms_index(kms)) * OUTCOMES.len() + outcome;
            self.requests.observe(index, took);
        }
    }

    /// Counts one KMS call; `status` is `None` when no answer came.
    pub(crate) fn kms_request(
        &self,
        operation: KmsOperation,
        kms: KmsKind,
        status: Option<u16>,
        took: Duration,
    ) {
        let operation = match operation {
            KmsOperation::Wrap => 0,
            KmsOperation::Unwrap => 1,
            KmsOperation::Token => 2,
        };
        let status = match status {
            None => KMS_STATUSES.len(),
            Some(status) => KMS_STATUSES
                .iter()
                .position(|known| *known == status)
                .unwrap_or(KMS_STATUSES.len() + 1),
        };
        let index = (operation * KMS_KINDS.len() + kms_index(Some(kms))) * (KMS_STATUSES.len() + 2)
            + status;
        self.kms_requests.observe(index, took);
    }

    pub(crate) fn key_operation(&self, operation: KeyOperation) {
        self.key_operations(operation, 1);
    }

    pub(crate) fn key_operations(&self, operation: KeyOperation, count: usize) {
        if let Some(number) = self.key_operations.get(operation.index()) {
            number.add(u64::try_from(count).unwrap_or(u64::MAX));
        }
    }

    pub(crate) fn secret_creation(&self, outcome: SecretCreation) {
        if let Some(number) = self.secret_creations.get(outcome.index()) {
            number.add(1);
        }
    }

    pub(crate) fn closed(&self, reason: ClosedBy) {
        if let Some(number) = self.closed.get(reason.index()) {
            number.add(1);
        }
    }

    pub(crate) fn refused(&self, reason: RefusedBy) {
        if let Some(number) = self.refused.get(reason.index()) {
            number.add(1);
        }
    }

    pub(crate) fn connection_opened(&self) {
        self.connections.add(1);
    }

    pub(crate) fn connection_closed(&self) {
        self.connections.subtract(1);
    }

    pub(crate) fn event_failed(&self) {
        self.event_failures.add(1);
    }

    pub(crate) fn event_queued(&self) {
        self.events.add(1);
    }

    pub(crate) fn kms_retry(&self) {
        self.kms_retries.add(1);
    }

    pub(crate) fn kms_connected(&self) {
        self.kms_connects.add(1);
    }

    pub(crate) fn kms_stale_connection(&self) {
        self.kms_stale.add(1);
    }

    pub(crate) fn kms_resent(&self) {
        self.kms_resent.add(1);
    }

    /// Counts a request under the language and version that its client library names.
    pub(crate) fn client(&self, language: &str, version: &str) {
        let sound = |text: &str| {
            text.len() <= CLIENT_LABEL_BYTES_MAX && text.bytes().all(|b| b.is_ascii_graphic())
        };
        if sound(language) && sound(version) {
            for slot in self.clients.iter() {
                let client = slot.get_or_init(|| Client {
                    language: language.into(),
                    version: version.into(),
                    requests: Number::default(),
                });
                if &*client.language == language && &*client.version == version {
                    client.requests.add(1);
                    return;
                }
            }
        }
        self.clients_other.add(1);
    }
}

/// The numbers of all shards, for the control core to read.
pub struct MetricsHub {
    shards: Box<[Arc<ShardMetrics>]>,
}

impl fmt::Debug for MetricsHub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsHub")
            .field("shards", &self.shards.len())
            .finish()
    }
}

impl MetricsHub {
    pub(crate) fn new(shards: impl IntoIterator<Item = Arc<ShardMetrics>>) -> Self {
        Self {
            shards: shards.into_iter().collect(),
        }
    }

    /// Every family that shards count, added up over the shards.
    #[must_use]
    pub fn families(&self) -> Vec<MetricFamily> {
        let requests = self.durations(
            "tsp_request_duration_seconds",
            "Time to serve one request, from its head to its answer.",
            |shard| &shard.requests,
            Endpoint::ALL.len() * KMS_KINDS.len() * OUTCOMES.len(),
            |index| {
                let (rest, outcome) = (index / OUTCOMES.len(), index % OUTCOMES.len());
                let (endpoint, kms) = (rest / KMS_KINDS.len(), rest % KMS_KINDS.len());
                let (status, code) = OUTCOMES.get(outcome).copied().unwrap_or((0, None));
                vec![
                    label(
                        "endpoint",
                        Endpoint::ALL.get(endpoint).map_or("", |e| e.as_str()),
                    ),
                    label("http_code", &status.to_string()),
                    label("kms_type", kms_label(kms)),
                    label(
                        "tsp_status_code",
                        &code.map_or(String::new(), |code| code.number().to_string()),
                    ),
                ]
            },
        );
        let statuses = KMS_STATUSES.len() + 2;
        let kms_requests = self.durations(
            "tsp_kms_request_duration_seconds",
            "Time of one call to a tenant's KMS.",
            |shard| &shard.kms_requests,
            KMS_OPERATIONS.len() * KMS_KINDS.len() * statuses,
            |index| {
                let (rest, status) = (index / statuses, index % statuses);
                let (operation, kms) = (rest / KMS_KINDS.len(), rest % KMS_KINDS.len());
                let status = match KMS_STATUSES.get(status) {
                    Some(status) => status.to_string(),
                    None if status == KMS_STATUSES.len() => "none".to_owned(),
                    None => "other".to_owned(),
                };
                vec![
                    label("http_code", &status),
                    label(
                        "kms_operation",
                        KMS_OPERATIONS.get(operation).map_or("", |o| o.as_str()),
                    ),
                    label("kms_type", kms_label(kms)),
                ]
            },
        );
        let counter = MetricType::COUNTER;
        let gauge = MetricType::GAUGE;
        vec![
            requests,
            kms_requests,
            family(
                "tsp_requests_in_flight",
                "Requests being served.",
                gauge,
                Endpoint::ALL.iter().map(|endpoint| {
                    let sum = self.sum(|s| s.inflight.get(endpoint.index()));
                    (vec![label("endpoint", endpoint.as_str())], sum)
                }),
            ),
            family(
                "tsp_key_operations_total",
                "Successful wraps and unwraps of DEKs, leased keys and tenant secrets; derived keys.",
                counter,
                KeyOperation::ALL.iter().map(|operation| {
                    let sum = self.sum(|s| s.key_operations.get(operation.index()));
                    (vec![label("operation", operation.as_str())], sum)
                }),
            ),
            family(
                "tsp_tenant_secret_creations_total",
                "Creations of tenant secrets; `found` is one that another proxy had created.",
                counter,
                SecretCreation::ALL.iter().map(|outcome| {
                    let sum = self.sum(|s| s.secret_creations.get(outcome.index()));
                    (vec![label("outcome", outcome.as_str())], sum)
                }),
            ),
            family(
                "tsp_real_time_security_event_failures_total",
                "Security events that could not be handed over and were dropped.",
                counter,
                [(vec![], self.sum(|s| Some(&s.event_failures)))],
            ),
            family(
                "tsp_real_time_security_events_total",
                "Security events handed over to the event thread.",
                counter,
                [(vec![], self.sum(|s| Some(&s.events)))],
            ),
            family(
                "tsp_connections",
                "Client connections, by shard: how evenly the kernel spreads them.",
                gauge,
                self.shards.iter().enumerate().map(|(index, shard)| {
                    (
                        vec![label("shard", &index.to_string())],
                        shard.connections.value(),
                    )
                }),
            ),
            family(
                "tsp_connections_closed_total",
                "Client connections closed by a limit, by the limit's name.",
                counter,
                ClosedBy::ALL.iter().map(|reason| {
                    let sum = self.sum(|s| s.closed.get(reason.index()));
                    (vec![label("limit", reason.as_str())], sum)
                }),
            ),
            family(
                "tsp_requests_refused_total",
                "Requests refused by a limit, by the limit's name.",
                counter,
                RefusedBy::ALL.iter().map(|reason| {
                    let sum = self.sum(|s| s.refused.get(reason.index()));
                    (vec![label("limit", reason.as_str())], sum)
                }),
            ),
            family(
                "tsp_kms_retries_total",
                "KMS calls tried a second time.",
                counter,
                [(vec![], self.sum(|s| Some(&s.kms_retries)))],
            ),
            family(
                "tsp_kms_connections_opened_total",
                "Connections opened to KMSs.",
                counter,
                [(vec![], self.sum(|s| Some(&s.kms_connects)))],
            ),
            family(
                "tsp_kms_connections_stale_total",
                "Kept KMS connections found closed by the far end, before a call or by one, which was then sent again.",
                counter,
                [
                    ("before_call", self.sum(|s| Some(&s.kms_stale))),
                    ("in_call", self.sum(|s| Some(&s.kms_resent))),
                ]
                .map(|(noticed, sum)| (vec![label("noticed", noticed)], sum)),
            ),
            family(
                "tsp_client_requests_total",
                "Requests by the client library's own language and version headers.",
                counter,
                self.clients(),
            ),
        ]
    }

    fn sum(&self, number: impl for<'a> Fn(&'a ShardMetrics) -> Option<&'a Number>) -> u64 {
        self.shards
            .iter()
            .filter_map(|shard| number(shard))
            .map(Number::value)
            .sum()
    }

    fn clients(&self) -> Vec<(Vec<LabelPair>, u64)> {
        let mut sums = std::collections::BTreeMap::<(&str, &str), u64>::new();
        for client in self
            .shards
            .iter()
            .flat_map(|s| s.clients.iter().filter_map(OnceLock::get))
        {
            *sums
                .entry((&*client.language, &*client.version))
                .or_default() += client.requests.value();
        }
        *sums.entry(("other", "other")).or_default() += self.sum(|s| Some(&s.clients_other));
        sums.into_iter()
            .map(|((language, version), sum)| {
                (
                    vec![label("language", language), label("version", version)],
                    sum,
                )
            })
            .collect()
    }

    fn durations(
        &self,
        name: &str,
        help: &str,
        series: impl Fn(&ShardMetrics) -> &Series,
        len: usize,
        labels: impl Fn(usize) -> Vec<LabelPair>,
    ) -> MetricFamily {
        let mut metrics = Vec::new();
        for index in 0..len {
            let all: Vec<&Durations> = self
                .shards
                .iter()
                .filter_map(|shard| series(shard).get(index))
                .collect();
            if all.is_empty() {
                continue;
            }
            let sum = |pick: &dyn Fn(&Durations) -> u64| all.iter().map(|d| pick(d)).sum::<u64>();
            let mut cumulative = 0;
            let mut buckets = Vec::with_capacity(BUCKETS_US.len());
            for (at, bound) in BUCKETS_US.iter().enumerate() {
                cumulative += sum(&|d| d.buckets.get(at).map_or(0, Number::value));
                let mut bucket = Bucket::default();
                bucket.set_upper_bound(seconds(*bound));
                bucket.set_cumulative_count(cumulative);
                buckets.push(bucket);
            }
            cumulative += sum(&|d| d.buckets.last().map_or(0, Number::value));
            let mut histogram = Histogram::default();
            histogram.set_bucket(buckets);
            histogram.set_sample_count(cumulative);
            histogram.set_sample_sum(seconds(sum(&|d| d.sum_us.value())));
            let mut metric = Metric::default();
            metric.set_label(labels(index));
            metric.set_histogram(histogram);
            metrics.push(metric);
        }
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(metrics);
        family
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a metric may round; microseconds stay exact to 285 years"
)]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

fn kms_label(index: usize) -> &'static str {
    KMS_KINDS
        .get(index)
        .copied()
        .flatten()
        .map_or("NONE", KmsKind::as_str)
}

fn label(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

#[expect(clippy::cast_precision_loss, reason = "a metric may round above 2^53")]
fn family(
    name: &str,
    help: &str,
    kind: MetricType,
    values: impl IntoIterator<Item = (Vec<LabelPair>, u64)>,
) -> MetricFamily {
    let metrics = values
        .into_iter()
        .map(|(labels, value)| {
            let mut metric = Metric::default();
            metric.set_label(labels);
            if kind == MetricType::COUNTER {
                let mut counter = Counter::default();
                counter.set_value(value as f64);
                metric.set_counter(counter);
            } else {
                let mut gauge = Gauge::default();
                gauge.set_value(value as f64);
                metric.set_gauge(gauge);
            }
            metric
        })
        .collect();
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

#[cfg(test)]
mod tests {
    use prometheus::Encoder as _;

    use super::*;

    fn text(hub: &MetricsHub) -> String {
        let mut out = Vec::new();
        prometheus::TextEncoder::new()
            .encode(
                &hub.families()
                    .into_iter()
                    .filter(|f| !f.get_metric().is_empty())
                    .collect::<Vec<_>>(),
                &mut out,
            )
            .unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_scrape_adds_up_the_shards() {
        let shards = [Arc::new(ShardMetrics::new()), Arc::new(ShardMetrics::new())];
        let hub = MetricsHub::new(shards.clone());
        for shard in &shards {
            shard.request(
                Endpoint::Wrap,
                Some(KmsKind::Aws),
                (200, None),
                Duration::from_micros(700),
            );
            shard.key_operation(KeyOperation::Wrap);
            shard.client("java", "8.1.1");
        }
        let denied = TspCode::KmsAuthorizationFailed;
        let took = Duration::from_secs(60);
        shards[0].request(
            Endpoint::Wrap,
            Some(KmsKind::Aws),
            (422, Some(denied)),
            took,
        );
        let text = text(&hub);
        for line in [
            r#"tsp_request_duration_seconds_bucket{endpoint="document/wrap",http_code="200",kms_type="AWS",tsp_status_code="",le="0.0005"} 0"#,
            r#"tsp_request_duration_seconds_bucket{endpoint="document/wrap",http_code="200",kms_type="AWS",tsp_status_code="",le="0.001"} 2"#,
            r#"tsp_request_duration_seconds_count{endpoint="document/wrap",http_code="200",kms_type="AWS",tsp_status_code=""} 2"#,
            r#"tsp_request_duration_seconds_bucket{endpoint="document/wrap",http_code="422",kms_type="AWS",tsp_status_code="206",le="+Inf"} 1"#,
            r#"tsp_key_operations_total{operation="wrap"} 2"#,
            r#"tsp_client_requests_total{language="java",version="8.1.1"} 2"#,
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn every_error_response_has_a_series() {
        for code in TspCode::ALL {
            assert!(
                OUTCOMES.contains(&(code.http_status(), Some(code))),
                "{code:?}"
            );
        }
        let mut seen = OUTCOMES.to_vec();
        seen.sort_by_key(|(status, code)| (*status, code.map(TspCode::number)));
        seen.dedup();
        assert_eq!(seen.len(), OUTCOMES.len());
    }

    #[test]
    fn hostile_client_headers_cannot_add_series_without_end() {
        let shard = Arc::new(ShardMetrics::new());
        for version in 0..10_000 {
            shard.client("node", &version.to_string());
        }
        shard.client("node\n", "1");
        shard.client(&"x".repeat(33), "1");
        let hub = MetricsHub::new([shard]);
        assert_eq!(hub.clients().len(), CLIENTS_MAX + 1);
        assert_eq!(
            hub.sum(|s| Some(&s.clients_other)),
            10_000 - CLIENTS_MAX as u64 + 2
        );
    }
}
