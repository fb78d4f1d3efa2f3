//! What is said about a run: the two numbers that matter on the screen, the rest as JSON in a file.

use std::{fmt, time::Duration};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::{
    arrivals::Arrivals, calls::Kind, client::Failure, cpu::CpuTime, front::Transport,
    generator::Outcome, mix::Mix,
};

/// How the load was made.
#[derive(Clone, Debug, Serialize)]
pub struct Setup {
    /// What was asked, by weight.
    pub mix: String,
    /// How the proxy was reached.
    pub transport: Transport,
    /// Connections, over all lanes.
    pub connections: usize,
    /// Threads of the generator.
    pub lanes: usize,
    /// Requests per second of an open loop; `null` is a closed one.
    pub rate: Option<f64>,
    /// How an open loop's requests were spread.
    pub arrivals: Option<Arrivals>,
}

impl Setup {
    /// Names what was done.
    #[must_use]
    pub fn new(
        mix: &Mix,
        transport: Transport,
        connections: usize,
        lanes: usize,
        rate: Option<f64>,
        arrivals: Arrivals,
    ) -> Self {
        Self {
            mix: mix.to_string(),
            transport,
            connections,
            lanes,
            rate,
            arrivals: rate.map(|_| arrivals),
        }
    }
}

/// What came of a run. Serializes to the JSON of `--out`; displays as one line.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How the load was made.
    pub setup: Setup,
    /// Requests that were answered rightly.
    pub requests: u64,
    /// Requests that were not.
    pub failed: u64,
    /// The same, by kind of failure.
    pub failures: Vec<(&'static str, u64)>,
    /// The first failure, in words.
    pub first_failure: Option<String>,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// Right answers per second.
    pub requests_per_second: f64,
    /// Latencies of all right answers; in an open loop from the intended start.
    pub latency_us: Latency,
    /// The same, by kind of request.
    pub latency_us_by_kind: Vec<(&'static str, Latency)>,
    /// Open loop only: by how much the generator itself was late. If it is not small, the latencies are the generator's.
    pub generator_late_us: Option<Latency>,
    /// CPU time of the generator per request, in microseconds, if it was watched.
    pub generator_cpu_us_per_request: Option<f64>,
    /// CPU time of the server, if it was watched.
    pub server_cpu: Option<ServerCpu>,
}

/// Quantiles in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    /// Number of answers.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// The median.
    pub p50: u64,
    /// Nine of ten are below.
    pub p90: u64,
    /// 99 of 100 are below.
    pub p99: u64,
    /// 999 of 1,000 are below.
    pub p99_9: u64,
    /// The largest.
    pub max: u64,
}

impl Latency {
    /// The quantiles of a histogram in microseconds.
    #[must_use]
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self {
            count: histogram.len(),
            mean: histogram.mean(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: histogram.max(),
        }
    }
}

/// CPU time of the server during the run, user and system.
#[derive(Clone, Debug, Serialize)]
pub struct ServerCpu {
    /// Per request, over all threads of the process.
    pub us_per_request: f64,
    /// CPUs that it kept busy on average. With less than one per shard the shards had time to sleep, which costs extra.
    pub busy_cpus: f64,
    /// Per request, by the name of the thread.
    pub us_per_request_by_thread: Vec<(String, f64)>,
}

impl ServerCpu {
    /// The CPU time that a server used for so many requests, in so long.
    #[must_use]
    pub fn of(used: &CpuTime, requests: u64, took: Duration) -> Self {
        Self {
            us_per_request: us_per(used.total(), requests),
            busy_cpus: ratio(used.total().as_secs_f64(), took.as_secs_f64()),
            us_per_request_by_thread: used
                .threads()
                .map(|(name, time)| (name.to_owned(), us_per(time, requests)))
                .collect(),
        }
    }
}

/// Microseconds per request.
fn us_per(time: Duration, requests: u64) -> f64 {
    ratio(time.as_secs_f64() * 1e6, requests as f64)
}

impl Report {
    /// Puts it together. `server` and `generator` are CPU times used during the run.
    #[must_use]
    pub fn new(
        setup: Setup,
        outcome: &Outcome,
        server: Option<&CpuTime>,
        generator: Option<Duration>,
    ) -> Self {
        let took = outcome.ended - outcome.began;
        let sent = outcome.answered() + outcome.failed();
        let per_request = |time| us_per(time, sent);
        let by_kind = Kind::ALL.iter().zip(&outcome.latency_us);
        let late = &outcome.late_us;
        Self {
            requests: outcome.answered(),
            failed: outcome.failed(),
            failures: Failure::KINDS.into_iter().zip(outcome.failures).collect(),
            first_failure: outcome.first_failure.as_ref().map(ToString::to_string),
            seconds: took.as_secs_f64(),
            requests_per_second: ratio(outcome.answered() as f64, took.as_secs_f64()),
            latency_us: Latency::of(&outcome.all_latencies_us()),
            latency_us_by_kind: by_kind
                .filter(|(_, histogram)| !histogram.is_empty())
                .map(|(kind, histogram)| (kind.as_str(), Latency::of(histogram)))
                .collect(),
            generator_late_us: setup.rate.map(|_| Latency::of(late)),
            generator_cpu_us_per_request: generator.map(per_request),
            server_cpu: server.map(|server| ServerCpu::of(server, sent, took)),
            setup,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.server_cpu {
            Some(cpu) => write!(f, "{:.2} µs CPU per request", cpu.us_per_request)?,
            None => write!(f, "{:.0} requests/s", self.requests_per_second)?,
        }
        write!(f, ", p99 {:.3} ms", self.latency_us.p99 as f64 / 1e3)?;
        if let (true, Some(first)) = (self.failed > 0, &self.first_failure) {
            let all = self.requests + self.failed;
            write!(
                f,
                "; {} of {all} requests FAILED, the first: {first}",
                self.failed
            )?;
        }
        Ok(())
    }
}

/// `a / b`, or 0 where there is nothing to divide by.
pub(crate) fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

/// The middle of some figures, and how far they spread.
///
/// Quartiles rather than extremes: on a shared machine the extremes are somebody else's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// A quarter of the figures is below.
    pub lower: f64,
    /// Half of the figures is below.
    pub median: f64,
    /// Three quarters of the figures are below.
    pub upper: f64,
}

impl Spread {
    /// The spread of `figures`; `None` if there are none. Between two figures it interpolates.
    #[must_use]
    pub fn of(figures: &[f64]) -> Option<Self> {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        // Quarters of the way from the first figure to the last: which figure it falls on, and how far beyond it.
        let at = |quarters: usize| {
            let (index, beyond) = (last * quarters / 4, last * quarters % 4);
            let below = sorted.get(index)?;
            let above = sorted.get(index + 1).unwrap_or(below);
            Some(below + (above - below) * beyond as f64 / 4.0)
        };
        Some(Self {
            lower: at(1)?,
            median: at(2)?,
            upper: at(3)?,
        })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(2);
        let Self {
            lower,
            median,
            upper,
        } = self;
        write!(f, "{median:.digits$} ({lower:.digits$}–{upper:.digits$})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_of_an_odd_and_an_even_number_of_figures() {
        let spread = |lower, median, upper| {
            Some(Spread {
                lower,
                median,
                upper,
            })
        };
        assert_eq!(
            Spread::of(&[5.0, 1.0, 2.0, 4.0, 3.0]),
            spread(2.0, 3.0, 4.0)
        );
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]), spread(1.75, 2.5, 3.25));
        assert_eq!(Spread::of(&[7.0]), spread(7.0, 7.0, 7.0));
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn a_spread_is_shown_with_its_median_first() {
        let spread = Spread {
            lower: 1.0,
            median: 2.25,
            upper: 3.0,
        };
        assert_eq!(format!("{spread}"), "2.25 (1.00–3.00)");
        assert_eq!(format!("{spread:.1}"), "2.2 (1.0–3.0)");
    }
}
