//! Where traces go, and how many.

use super::{Reader, Strings, Why};
use crate::{
    ask::Target,
    traces::{PATH, TraceSettings},
};

const ENDPOINT: &str = "TSP_TRACE_ENDPOINT";
const SAMPLE: &str = "TSP_TRACE_SAMPLE";

/// `TSP_TRACE_SAMPLE` by default: one in a hundred shows what is slow, and costs next to nothing.
const SAMPLE_DEFAULT: f64 = 0.01;

impl<S: Strings> Reader<'_, S> {
    /// `None` switches tracing off.
    pub(super) fn traces(&mut self) -> Option<TraceSettings> {
        let collector = self.parse(ENDPOINT, |text| Target::new(text, PATH).map_err(Why::from));
        let sample = self.parse(SAMPLE, |text| {
            let share = text.parse::<f64>().ok();
            share
                .filter(|share| (0.0..=1.0).contains(share))
                .ok_or(Why::from("is not a share from 0 to 1"))
        });
        if sample.is_some() && collector.is_none() && !self.has_problem_with(ENDPOINT) {
            self.warning(SAMPLE, format!("does nothing, since {ENDPOINT} is not set"));
        }
        Some(TraceSettings {
            collector: collector?,
            sample: sample.unwrap_or(SAMPLE_DEFAULT),
        })
    }
}
