//! Where traces go, and how many.

use std::path::Path;

use hyper::header::HeaderName;
use percent_encoding::percent_decode_str;
use tsp_wire::Secret;
use zeroize::Zeroizing;

use super::{Reader, Strings, Why, broker::is_this_machine};
use crate::{
    ask::{Credential, Target},
    source::broker::roots,
    traces::{PATH, TraceSettings},
};

const ENDPOINT: &str = "TSP_TRACE_ENDPOINT";
const CA: &str = "TSP_TRACE_CA";
const HEADERS: &str = "TSP_TRACE_HEADERS";
const SAMPLE: &str = "TSP_TRACE_SAMPLE";

/// `TSP_TRACE_SAMPLE` by default: one in a hundred shows what is slow, and costs next to nothing.
const SAMPLE_DEFAULT: f64 = 0.01;

/// Most headers of `TSP_TRACE_HEADERS`. Collectors ask for one or two.
const HEADERS_MAX: usize = 16;

impl<S: Strings> Reader<'_, S> {
    /// `None` switches tracing off.
    pub(super) fn traces(&mut self) -> Option<TraceSettings> {
        let collector = self.parse(ENDPOINT, |text| Target::new(text, PATH).map_err(Why::from));
        let roots = self.parse(CA, |path| roots(Path::new(path)).map_err(Why::from));
        let headers = self.trace_headers();
        let sample = self.parse(SAMPLE, |text| {
            let share = text.parse::<f64>().ok();
            share
                .filter(|share| (0.0..=1.0).contains(share))
                .ok_or(Why::from("is not a share from 0 to 1"))
        });
        let set = [
            (CA, roots.is_some()),
            (HEADERS, headers.is_some()),
            (SAMPLE, sample.is_some()),
        ];
        let Some(mut collector) = collector else {
            if !self.has_problem_with(ENDPOINT) {
                for (name, _) in set.into_iter().filter(|(_, is_set)| *is_set) {
                    self.warning(name, format!("does nothing, since {ENDPOINT} is not set"));
                }
            }
            return None;
        };
        if collector.is_plain() && roots.is_some() {
            self.warning(
                CA,
                format!("does nothing, since {ENDPOINT} is not https://"),
            );
        }
        if collector.is_plain() && headers.is_some() && !is_this_machine(collector.authority()) {
            let why = format!("goes to another machine in the clear: {ENDPOINT} is not https://");
            self.warning(HEADERS, why);
        }
        if let Some(roots) = roots {
            collector = collector.trusting(roots);
        }
        Some(TraceSettings {
            collector: collector.with_headers(headers.unwrap_or_default()),
            sample: sample.unwrap_or(SAMPLE_DEFAULT),
        })
    }

    /// As OpenTelemetry's own `OTEL_EXPORTER_OTLP_HEADERS`. They are credentials, and not shown.
    fn trace_headers(&mut self) -> Option<Vec<Credential>> {
        let text = Zeroizing::new(self.text(HEADERS)?);
        let headers: Option<Vec<_>> = text.split(',').map(header).collect();
        let headers = headers.filter(|headers| headers.len() <= HEADERS_MAX);
        if headers.is_none() {
            let why = format!(
                "is not NAME=VALUE with a comma between several, up to {HEADERS_MAX}, values percent-encoded, of headers that \
                 a request does not have by itself"
            );
            self.problem(HEADERS, why);
        }
        headers
    }
}

/// A header from `NAME=VALUE`.
fn header(text: &str) -> Option<Credential> {
    let (name, value) = text.split_once('=')?;
    let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
    let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
    Credential::new(name, Secret::new(value.into_owned()))
}
