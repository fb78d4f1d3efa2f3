//! What the service counts, and the text of a scrape. Labels are routes, methods and statuses of our own: their number is bounded.

use std::time::Duration;

use axum::{
    extract::{MatchedPath, Request, State},
    http::header::CONTENT_TYPE,
    middleware::Next,
    response::{IntoResponse, Response},
};
use prometheus::{
    Encoder as _, HistogramOpts, HistogramVec, IntGaugeVec, Opts, Registry, TextEncoder,
};
use tokio::time::Instant;

/// Bounds of the buckets, in seconds: an unchanged snapshot takes a millisecond, a rotation of all envelopes many seconds.
const BUCKETS_S: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0,
];

/// Label of requests that no route takes.
const NO_ROUTE: &str = "none";

/// The service's numbers. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: HistogramVec,
}

impl Metrics {
    /// Everything at zero.
    ///
    /// # Errors
    /// If two families have one name, which a test rules out.
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let help = "Time to serve one request.";
        let options = HistogramOpts::new("broker_request_duration_seconds", help);
        let options = options.buckets(BUCKETS_S.to_vec());
        let requests = HistogramVec::new(options, &["route", "method", "http_code"])?;
        registry.register(Box::new(requests.clone()))?;
        let info = Opts::new("broker_info", "The program's version.");
        let info = IntGaugeVec::new(info, &["version"])?;
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        registry.register(Box::new(info))?;
        Ok(Self { registry, requests })
    }

    fn observe(&self, route: &str, method: &str, status: u16, taken: Duration) {
        let labels = [route, method, &status.to_string()];
        self.requests
            .with_label_values(&labels)
            .observe(taken.as_secs_f64());
    }

    fn text(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// Counts a request once it is answered. The answer to a scrape does not count itself.
pub(crate) async fn count(
    State(metrics): State<Metrics>,
    request: Request,
    next: Next,
) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let method = request.method().clone();
    let begun = Instant::now();
    let response = next.run(request).await;
    // A method that nobody knows is the caller's own invention, and would be a label of their choice.
    let (route, method) = route.as_ref().map_or((NO_ROUTE, NO_ROUTE), |route| {
        (route.as_str(), method.as_str())
    });
    let refused = response.status() == axum::http::StatusCode::METHOD_NOT_ALLOWED;
    let method = if refused { NO_ROUTE } else { method };
    metrics.observe(route, method, response.status().as_u16(), begun.elapsed());
    response
}

/// Answers a scrape.
pub(crate) async fn scrape(State(metrics): State<Metrics>) -> Response {
    match metrics.text() {
        Ok(text) => {
            let kind = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
            (kind, text).into_response()
        }
        Err(why) => {
            tracing::error!(error = %why, "the metrics cannot be written");
            axum::http::StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_by_route_method_and_status() {
        let metrics = Metrics::new().unwrap();
        metrics.observe("/account/1/snapshot", "GET", 304, Duration::from_millis(1));
        let text = String::from_utf8(metrics.text().unwrap()).unwrap();
        let line = r#"broker_request_duration_seconds_count{http_code="304",method="GET",route="/account/1/snapshot"} 1"#;
        assert!(text.contains(line), "{text}");
        assert!(text.contains("broker_info{version="), "{text}");
    }
}
