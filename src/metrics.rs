//! What the control plane counts, and the text of a scrape: its own families beside those of the shards.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use prometheus::{
    Encoder as _, IntCounter, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
    core::{Collector, Desc},
    proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};
use tracing_appender::non_blocking::ErrorCounter;
use tsp_rt::{Probe, tls::ServerTls};
use tsp_shards::{KeyUses, MetricsHub};

use crate::{events::EventCounters, source::keys::Keys, traces::TraceCounters};

/// Events that the event thread loses count in the same family as those that the shards could not hand over.
const EVENT_FAILURES: &str = "tsp_real_time_security_event_failures_total";

/// The control plane's own numbers. Clones share them.
#[derive(Clone, Debug)]
pub struct ControlMetrics {
    registry: Registry,
    certificate_expiry: IntGauge,
    /// Unix time, in seconds, of the last good look at the configuration.
    pub last_refresh: IntGauge,
    /// Failed looks at it.
    pub refresh_failures: IntCounter,
    /// Lowest version that any shard works with; 0 while one has none.
    pub config_version: IntGauge,
    /// Tenants in force.
    pub config_tenants: IntGauge,
    /// KMS configs in force.
    pub config_kms: IntGauge,
    /// Tenant secrets in force, archived ones included.
    pub config_secrets: IntGauge,
    /// Problems for which something was left out.
    pub config_left_out: IntGauge,
    /// New certificates of the client API that were taken.
    pub tls_reloads: IntCounter,
    /// Those that could not be.
    pub tls_reload_failures: IntCounter,
    /// New states of the file with the service account.
    pub account_reloads: IntCounter,
    /// Those that could not be used.
    pub account_reload_failures: IntCounter,
    /// New states of the keys that applications present.
    pub api_keys_reloads: IntCounter,
    /// Those that could not be used.
    pub api_keys_reload_failures: IntCounter,
    /// 1 when `/ready` says so.
    pub ready: IntGauge,
    /// The event thread's.
    pub events: EventCounters,
    /// The trace thread's; told once there is one.
    traces: TraceCounters,
}

impl ControlMetrics {
    /// Everything at zero.
    ///
    /// # Errors
    /// If two families have one name, which a test rules out.
    pub fn new(probe: &Probe) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let info = IntGaugeVec::new(
            Opts::new("tsp_info", "The program's version and its I/O back end."),
            &["version", "io", "io_reason"],
        )?;
        let labels = [
            env!("CARGO_PKG_VERSION"),
            probe.backend.as_str(),
            probe.reason.as_str(),
        ];
        info.with_label_values(&labels).set(1);
        registry.register(Box::new(info))?;
        // Registered with the first certificate: without one there is nothing to tell.
        let certificate_expiry = IntGauge::new(
            "tsp_tls_certificate_expiry_timestamp_seconds",
            "Unix time at which the certificate of the client API ends.",
        )?;
        Ok(Self {
            certificate_expiry,
            last_refresh: gauge(
                "tsp_kms_last_config_refresh_timestamp_seconds",
                "Unix time of the last good refresh of the configuration.",
            )?,
            refresh_failures: counter(
                "tsp_config_refresh_failures_total",
                "Failed refreshes of the configuration.",
            )?,
            config_version: gauge(
                "tsp_config_version",
                "Lowest version of the configuration that any shard works with.",
            )?,
            config_tenants: gauge("tsp_config_tenants", "Tenants in force.")?,
            config_kms: gauge("tsp_config_kms", "KMS configs in force.")?,
            config_secrets: gauge(
                "tsp_config_secrets",
                "Tenant secrets, archived ones included.",
            )?,
            config_left_out: gauge(
                "tsp_config_left_out",
                "Problems for which a part of the configuration was left out.",
            )?,
            tls_reloads: counter(
                "tsp_tls_reloads_total",
                "New certificates of the client API that were taken.",
            )?,
            tls_reload_failures: counter(
                "tsp_tls_reload_failures_total",
                "New certificates of the client API that could not be used.",
            )?,
            account_reloads: counter(
                "tsp_service_account_reloads_total",
                "New states of the file with the service account that were taken.",
            )?,
            account_reload_failures: counter(
                "tsp_service_account_reload_failures_total",
                "New states of the file with the service account that could not be used.",
            )?,
            api_keys_reloads: counter(
                "tsp_api_keys_reloads_total",
                "New states of the API keys that were taken.",
            )?,
            api_keys_reload_failures: counter(
                "tsp_api_keys_reload_failures_total",
                "New states of the API keys that could not be used.",
            )?,
            ready: gauge("tsp_ready", "Whether /ready answers 200.")?,
            events: EventCounters {
                pushed: counter(
                    "tsp_events_pushed_total",
                    "Security events given to the event socket.",
                )?,
                // Not registered: it is added to the shards' family of that name.
                failed: IntCounter::new(EVENT_FAILURES, "Security events lost.")?,
                held: gauge(
                    "tsp_events_held",
                    "Security events that wait for the event socket.",
                )?,
            },
            traces: TraceCounters {
                sent: IntCounter::new(
                    "tsp_trace_spans_sent_total",
                    "Spans that the trace collector has taken.",
                )?,
                dropped: IntCounter::new(
                    "tsp_trace_spans_dropped_total",
                    "Spans dropped because the trace collector was slow or away, or rejected them.",
                )?,
            },
            registry,
        })
    }

    /// Tells of traces from now on.
    pub(crate) fn tracing(&self) -> TraceCounters {
        for counter in [&self.traces.sent, &self.traces.dropped] {
            // There is nothing else of these names.
            drop(self.registry.register(Box::new(counter.clone())));
        }
        self.traces.clone()
    }

    /// Tells when the certificate that is in force ends.
    pub fn certificate(&self, tls: &ServerTls) {
        self.certificate_expiry.set(tls.expires_s());
        // Refused when it is there already.
        drop(
            self.registry
                .register(Box::new(self.certificate_expiry.clone())),
        );
    }
}

/// Keeps the series of API keys to those that there are.
#[derive(Debug)]
pub(crate) struct KeyMetrics {
    registry: Registry,
    followed: Vec<UseOfKey>,
}

impl KeyMetrics {
    pub(crate) fn new(metrics: &ControlMetrics) -> Self {
        Self {
            registry: metrics.registry.clone(),
            followed: Vec::new(),
        }
    }

    /// Has these keys, and no others, in the next scrape.
    pub(crate) fn follow(&mut self, keys: &Keys) {
        for gone in self.followed.drain(..) {
            // Whatever is followed was registered.
            drop(self.registry.unregister(Box::new(gone)));
        }
        for (name, uses) in &keys.uses {
            match UseOfKey::new(name, uses) {
                Ok(followed) => {
                    if self.registry.register(Box::new(followed.clone())).is_ok() {
                        self.followed.push(followed);
                    }
                }
                Err(error) => tracing::error!(%error, name, "the uses of an API key are not told"),
            }
        }
    }
}

/// How often and when last an API key was used, with the name of the key.
#[derive(Clone, Debug)]
struct UseOfKey {
    name: String,
    uses: Arc<KeyUses>,
    count: Desc,
    last: Desc,
}

impl UseOfKey {
    fn new(name: &str, uses: &Arc<KeyUses>) -> Result<Self, prometheus::Error> {
        let desc = |family: &str, help: &str| {
            let labels = HashMap::from([("label".to_owned(), name.to_owned())]);
            Desc::new(family.to_owned(), help.to_owned(), Vec::new(), labels)
        };
        Ok(Self {
            name: name.to_owned(),
            uses: Arc::clone(uses),
            count: desc(
                "tsp_api_key_uses_total",
                "Requests that presented an API key other than API_KEY.",
            )?,
            last: desc(
                "tsp_api_key_last_used_timestamp_seconds",
                "Unix time of the last of them; 0 for none since the start.",
            )?,
        })
    }
}

impl Collector for UseOfKey {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.count, &self.last]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut label = LabelPair::default();
        label.set_name("label".to_owned());
        label.set_value(self.name.clone());
        let mut last = Metric::default();
        let mut gauge = Gauge::default();
        gauge.set_value(as_f64(self.uses.last_s()));
        last.set_gauge(gauge);
        let mut series = [
            (
                &self.count,
                MetricType::COUNTER,
                counter_metric(as_f64(self.uses.count())),
            ),
            (&self.last, MetricType::GAUGE, last),
        ];
        let families = series.iter_mut().map(|(desc, kind, metric)| {
            metric.set_label(vec![label.clone()]);
            let mut family = MetricFamily::default();
            family.set_name(desc.fq_name.clone());
            family.set_help(desc.help.clone());
            family.set_field_type(*kind);
            family.set_metric(vec![metric.clone()]);
            family
        });
        families.collect()
    }
}

/// Makes the text of a scrape, on any thread.
#[derive(Debug)]
pub struct Scrape {
    /// The control plane's numbers.
    pub control: ControlMetrics,
    /// The shards' numbers.
    pub shards: Arc<MetricsHub>,
    /// Log lines dropped.
    pub log_lines_dropped: ErrorCounter,
}

impl Scrape {
    /// All families in the Prometheus text format, sorted by name.
    #[must_use]
    pub fn text(&self) -> Bytes {
        let mut families = self.shards.families();
        add_to_counter(
            &mut families,
            EVENT_FAILURES,
            self.control.events.failed.get(),
        );
        families.extend(self.control.registry.gather());
        let dropped = u64::try_from(self.log_lines_dropped.dropped_lines()).unwrap_or(u64::MAX);
        families.extend([
            counter_family(
                "tsp_log_lines_dropped_total",
                "Log lines dropped because standard output was too slow.",
                dropped,
            ),
            counter_family(
                "tsp_task_panics_total",
                "Panics, each of which ended one connection.",
                tsp_rt::task_panics(),
            ),
            counter_family(
                "tsp_accept_backoffs_total",
                "Pauses in accepting for want of file descriptors or memory.",
                tsp_rt::accept_backoffs(),
            ),
        ]);
        families.sort_by(|a, b| a.name().cmp(b.name()));
        encode(&families)
    }
}

fn encode(families: &[MetricFamily]) -> Bytes {
    let mut text = Vec::new();
    for family in families {
        if family.get_metric().is_empty() {
            // The encoder refuses a family without a series; readers want to know that it exists.
            let kind = match family.get_field_type() {
                MetricType::COUNTER => "counter",
                MetricType::GAUGE => "gauge",
                MetricType::HISTOGRAM => "histogram",
                MetricType::SUMMARY => "summary",
                MetricType::UNTYPED => "untyped",
            };
            let (name, help) = (family.name(), family.help());
            text.extend(format!("# HELP {name} {help}\n# TYPE {name} {kind}\n").into_bytes());
            continue;
        }
        let before = text.len();
        if let Err(error) = TextEncoder::new().encode(std::slice::from_ref(family), &mut text) {
            tracing::error!(%error, family = family.name(), "a family of metrics cannot be written");
            text.truncate(before);
        }
    }
    text.into()
}

/// Adds `more` to the only series of a counter.
fn add_to_counter(families: &mut [MetricFamily], name: &str, more: u64) {
    let Some(family) = families.iter_mut().find(|family| family.name() == name) else {
        return;
    };
    let value = family
        .get_metric()
        .first()
        .map_or(0.0, |metric| metric.get_counter().get_value());
    family.set_metric(vec![counter_metric(value + as_f64(more))]);
}

fn counter_family(name: &str, help: &str, value: u64) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(MetricType::COUNTER);
    family.set_metric(vec![counter_metric(as_f64(value))]);
    family
}

fn counter_metric(value: f64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(value);
    let mut metric = Metric::default();
    metric.set_counter(counter);
    metric
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus counts in f64")]
fn as_f64(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use tsp_rt::Backend;

    use super::*;

    fn control() -> ControlMetrics {
        let reason = "it was \"asked\" for".to_owned();
        ControlMetrics::new(&Probe {
            backend: Backend::Epoll,
            reason,
        })
        .unwrap()
    }

    #[test]
    fn the_families_of_the_existing_product_are_there_with_their_types() {
        let control = control();
        control.last_refresh.set(7);
        let text = String::from_utf8(encode(&control.registry.gather()).to_vec()).unwrap();
        for line in [
            "# TYPE tsp_kms_last_config_refresh_timestamp_seconds gauge",
            "tsp_kms_last_config_refresh_timestamp_seconds 7",
            "# TYPE tsp_config_refresh_failures_total counter",
            "tsp_config_refresh_failures_total 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(
            text.contains("io=\"epoll\",io_reason=\"it was \\\"asked\\\" for\""),
            "{text}"
        );
    }

    #[test]
    fn lost_events_are_one_family_wherever_they_were_lost() {
        let mut families = vec![counter_family(EVENT_FAILURES, "help", 2)];
        add_to_counter(&mut families, EVENT_FAILURES, 3);
        let text = String::from_utf8(encode(&families).to_vec()).unwrap();
        assert!(text.ends_with(&format!("{EVENT_FAILURES} 5\n")), "{text}");
    }

    #[test]
    fn a_family_without_a_series_is_still_told() {
        let mut family = counter_family("tsp_x_total", "Some help.", 0);
        family.set_metric(Vec::new());
        let text = encode(&[family]);
        assert_eq!(
            text,
            "# HELP tsp_x_total Some help.\n# TYPE tsp_x_total counter\n"
        );
    }
}
