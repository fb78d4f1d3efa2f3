//! What every service counts: requests by outcome, and how long they took, with the handles taken once.

use std::time::{Duration, Instant};

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, TextEncoder,
};

/// All metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) wrap: Endpoint,
    pub(crate) unwrap: Endpoint,
    pub(crate) batch_wrap: Endpoint,
    pub(crate) batch_unwrap: Endpoint,
}

/// Those of one endpoint.
#[derive(Debug)]
pub(crate) struct Endpoint {
    answered: IntCounter,
    failed: IntCounter,
    seconds: Histogram,
}

impl Metrics {
    pub(crate) fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let requests = IntCounterVec::new(
            Opts::new("reference_requests_total", "Requests, by outcome"),
            &["endpoint", "outcome"],
        )?;
        let seconds = HistogramVec::new(
            HistogramOpts::new("reference_request_seconds", "Time to the answer"),
            &["endpoint"],
        )?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        let endpoint = |name: &str| Endpoint {
            answered: requests.with_label_values(&[name, "answered"]),
            failed: requests.with_label_values(&[name, "failed"]),
            seconds: seconds.with_label_values(&[name]),
        };
        Ok(Self {
            wrap: endpoint("wrap"),
            unwrap: endpoint("unwrap"),
            batch_wrap: endpoint("batch-wrap"),
            batch_unwrap: endpoint("batch-unwrap"),
            registry,
        })
    }

    pub(crate) fn text(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

impl Endpoint {
    pub(crate) fn count(&self, began: Instant, succeeded: bool) {
        let outcome = if succeeded {
            &self.answered
        } else {
            &self.failed
        };
        outcome.inc();
        let took: Duration = now() - began;
        self.seconds.observe(took.as_secs_f64());
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "no shard and no simulated time here"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}
