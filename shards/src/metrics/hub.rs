//! The families that a scrape sees: the shards' numbers, added up.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};
use tsp_kms::KmsKind;

use super::{
    BUCKETS_US, Durations, METERED_TENANTS_MAX, Number, Series, ShardMetrics,
    labels::{
        ClientHandshake, ClosedBy, Endpoint, Handshake, KMS_KINDS, KMS_OPERATIONS, KMS_STATUSES,
        KeyOperation, KeyUse, KeysHeld, OUTCOMES, RefusedBy, SecretCreation,
    },
};

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
                "Client connections, by shard: how evenly they are spread.",
                gauge,
                self.shards.iter().enumerate().map(|(index, shard)| {
                    (
                        vec![label("shard", &index.to_string())],
                        shard.connections.value(),
                    )
                }),
            ),
            family(
                "tsp_connections_handed_over_total",
                "Fresh client connections that a shard gave to one that held fewer.",
                counter,
                [(vec![], self.sum(|s| Some(&s.handed_over)))],
            ),
            family(
                "tsp_tls_handshakes_total",
                "TLS handshakes with clients: full, resuming an earlier session, or failed.",
                counter,
                ClientHandshake::ALL.iter().map(|outcome| {
                    let sum = self.sum(|s| s.client_handshakes.get(outcome.index()));
                    (vec![label("handshake", outcome.as_str())], sum)
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
                "tsp_kms_tls_handshakes_total",
                "TLS handshakes with KMSs, full or resuming an earlier session.",
                counter,
                Handshake::ALL.iter().map(|handshake| {
                    let sum = self.sum(|s| s.kms_handshakes.get(handshake.index()));
                    (vec![label("handshake", handshake.as_str())], sum)
                }),
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
                "tsp_held_keys",
                "Keys in memory, added up over the shards: leases to wrap under, and opened keys.",
                gauge,
                KeysHeld::ALL.iter().map(|which| {
                    let sum = self.sum(|s| s.keys_held.get(which.index()));
                    (vec![label("kind", which.as_str())], sum)
                }),
            ),
            family(
                "tsp_held_key_uses_total",
                "Operations that needed a leased key or a secret, and whether it was in memory.",
                counter,
                KeyUse::ALL.iter().map(|what| {
                    let sum = self.sum(|s| s.key_uses.get(what.index()));
                    let labels = vec![label("kind", what.as_str()), label("result", what.result())];
                    (labels, sum)
                }),
            ),
            family(
                "tsp_held_keys_refused_total",
                "Opened keys that were not kept because the shard holds as many as it may.",
                counter,
                [(vec![], self.sum(|s| Some(&s.keys_not_kept)))],
            ),
            family(
                "tsp_kms_calls_saved_total",
                "KMS calls that keys in memory made unnecessary, for the first 64 tenants, and without a name for all others.",
                counter,
                self.saved(),
            ),
            family(
                "tsp_client_requests_total",
                "Requests by the client library's own language and version headers.",
                counter,
                self.clients(),
            ),
        ]
    }

    pub(super) fn sum(
        &self,
        number: impl for<'a> Fn(&'a ShardMetrics) -> Option<&'a Number>,
    ) -> u64 {
        self.shards
            .iter()
            .filter_map(|shard| number(shard))
            .map(Number::value)
            .sum()
    }

    fn saved(&self) -> Vec<(Vec<LabelPair>, u64)> {
        let names = self.shards.first().map(|shard| &shard.tenants.0);
        let names = names.into_iter().flatten().map_while(OnceLock::get);
        let named = names.enumerate().map(|(place, name)| (place, &**name));
        named
            .chain([(METERED_TENANTS_MAX, "")])
            .map(|(place, name)| {
                let sum = self.sum(|s| s.saved.get(place));
                (vec![label("tenant", name)], sum)
            })
            .collect()
    }

    pub(super) fn clients(&self) -> Vec<(Vec<LabelPair>, u64)> {
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
