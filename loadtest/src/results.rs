//! What came of a scenario: the few numbers that matter on the screen, everything as JSON.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use crate::{
    arrivals::Arrivals,
    calls::Kind,
    report::{Latency, Report, ServerCpu},
    scenario::StepsDoc,
    timeline::Timeline,
};

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// The scenario's name.
    pub scenario: String,
    /// What it shows.
    pub about: String,
    /// The scenario file.
    pub file: String,
    /// When it ended.
    pub ended: String,
    /// The machine, and its load before and after.
    pub machine: [String; 2],
    /// How proxy, KMSs and generator ran.
    pub stand: Facts,
    /// What each load saw.
    pub loads: Vec<LoadResult>,
    /// All loads together, and what they cost.
    pub total: Total,
    /// The same over time.
    pub intervals: Vec<Interval>,
    /// The steps, in the order in which they were made.
    pub steps: Vec<Step>,
    /// How steps were judged, if there were any.
    pub judged_by: Option<StepsDoc>,
    /// The highest rate that was served well.
    pub knee: Option<f64>,
}

/// How proxy, KMSs and generator ran.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    /// Shards of the proxy.
    pub shards: usize,
    /// Its I/O back end.
    pub io: String,
    /// The CPUs of its shards, if they were pinned.
    pub proxy_cpus: Option<Vec<usize>>,
    /// The CPUs of the loads, likewise.
    pub load_cpus: Vec<Option<usize>>,
    /// The CPU of the KMSs, likewise.
    pub kms_cpu: Option<usize>,
    /// From the start of the process until it said that it serves, in milliseconds.
    pub start_ms: f64,
    /// The most memory that the process held, in MiB.
    pub memory_mib: f64,
}

/// What one load saw.
#[derive(Clone, Debug, Serialize)]
pub struct LoadResult {
    /// Its name.
    pub name: String,
    /// Counts and latencies.
    #[serde(flatten)]
    pub report: Report,
    /// The same over time.
    pub timeline: Vec<Point>,
}

/// What one load saw in one slice of time.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Point {
    /// Middle of the slice, in seconds from the start.
    pub at_s: f64,
    /// Right answers per second.
    pub answered_per_second: f64,
    /// Failures per second.
    pub failed_per_second: f64,
    /// Latencies; `null` if nothing was answered.
    pub latency_us: Option<Latency>,
}

impl Point {
    /// A timeline that began `offset_s` after the start and lasted `lasted_s`. A last slice that is less than half full is
    /// left out: there is too little in it.
    pub(crate) fn all(
        timeline: &Timeline,
        offset_s: f64,
        lasted_s: f64,
    ) -> impl Iterator<Item = Self> {
        let slice_s = timeline.slice().as_secs_f64();
        let slices = timeline.slices().iter().enumerate();
        slices.filter_map(move |(index, slice)| {
            let begins_s = index as f64 * slice_s;
            let length_s = (lasted_s - begins_s).min(slice_s);
            (length_s >= slice_s / 2.0).then(|| Self {
                at_s: offset_s + begins_s + length_s / 2.0,
                answered_per_second: slice.latency_us.len() as f64 / length_s,
                failed_per_second: slice.failed as f64 / length_s,
                latency_us: (!slice.latency_us.is_empty()).then(|| Latency::of(&slice.latency_us)),
            })
        })
    }
}

/// What the whole run cost. An operation is one request, also if it is a batch.
#[derive(Clone, Debug, Serialize)]
pub struct Total {
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Operations that were answered rightly.
    pub answered: u64,
    /// Operations that were not.
    pub failed: u64,
    /// Of each kind, how many.
    pub answered_by_kind: BTreeMap<Kind, u64>,
    /// Keys that answers held, on average: more than one only with batches.
    pub keys_per_operation: f64,
    /// CPU time of the proxy.
    pub proxy_cpu: ServerCpu,
    /// CPU time of the generator per operation, in microseconds.
    pub generator_cpu_us_per_operation: f64,
    /// CPU time of the simulated KMSs per operation, in microseconds.
    pub kms_cpu_us_per_operation: f64,
    /// Calls to KMSs per operation, tokens and proofs of leases included.
    pub kms_calls_per_operation: f64,
    /// How many of each.
    pub kms_calls: BTreeMap<String, u64>,
}

/// What the proxy did between two looks at it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Interval {
    /// Its middle, in seconds from the start.
    pub at_s: f64,
    /// Its length in seconds.
    pub seconds: f64,
    /// Operations that ended.
    pub operations: u64,
    /// CPU time of the proxy per operation, in microseconds; `null` if none ended.
    pub cpu_us_per_operation: Option<f64>,
    /// Calls to KMSs per operation, likewise.
    pub kms_calls_per_operation: Option<f64>,
}

/// One step of a rising rate.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Step {
    /// Operations per second that were asked for.
    pub rate: f64,
    /// How they were spread.
    pub arrivals: Arrivals,
    /// Right answers per second.
    pub answered_per_second: f64,
    /// Operations that failed.
    pub failed: u64,
    /// Latencies from the intended start.
    pub latency_us: Latency,
    /// By how much requests were sent late; part of the latency.
    pub late_us: Latency,
    /// CPU time of the proxy per operation, in microseconds.
    pub cpu_us_per_operation: f64,
    /// CPUs that the proxy kept busy.
    pub busy_cpus: f64,
    /// Whether it was served well.
    pub passed: bool,
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Total {
            seconds,
            answered,
            failed,
            proxy_cpu,
            ..
        } = &self.total;
        let per_second = crate::report::ratio(*answered as f64, *seconds);
        writeln!(
            f,
            "{}: {per_second:.0} operations/s, {failed} of {} failed",
            self.scenario,
            answered + failed,
        )?;
        for load in &self.loads {
            let ms = |us: u64| us as f64 / 1e3;
            let Latency {
                p50, p99, p99_9, ..
            } = load.report.latency_us;
            write!(f, "latency")?;
            if self.loads.len() > 1 {
                write!(f, " of {:?}", load.name)?;
            }
            writeln!(
                f,
                ": p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms",
                ms(p50),
                ms(p99),
                ms(p99_9)
            )?;
            if let Some(late) = load
                .report
                .generator_late_us
                .filter(|late| late.p99 > p99 / 2)
            {
                let late = ms(late.p99);
                writeln!(
                    f,
                    "  beware: requests were sent late, p99 {late:.2} ms; their latency has that in it"
                )?;
            }
            if let Some(why) = &load.report.first_failure {
                writeln!(f, "  the first failure: {why}")?;
            }
        }
        write!(
            f,
            "cost: {:.1} µs CPU of the proxy per operation ({:.2} CPUs busy)",
            proxy_cpu.us_per_request, proxy_cpu.busy_cpus
        )?;
        if self.total.keys_per_operation > 1.0 {
            let per_key = proxy_cpu.us_per_request / self.total.keys_per_operation;
            write!(f, ", {per_key:.2} µs per key")?;
        }
        writeln!(
            f,
            ", {} KMS calls per operation",
            significant(self.total.kms_calls_per_operation)
        )?;
        match (self.knee, &self.judged_by) {
            (Some(rate), Some(by)) => writeln!(
                f,
                "knee: {rate:.0} operations/s at p99 below {} ms",
                by.p99_ms_max
            ),
            (None, Some(by)) => writeln!(
                f,
                "knee: none, no step had its p99 below {} ms",
                by.p99_ms_max
            ),
            (_, None) => Ok(()),
        }
    }
}

/// Two or three digits of a number that may be small.
pub(crate) fn significant(number: f64) -> String {
    match number {
        n if n >= 100.0 => format!("{n:.0}"),
        n if n >= 1.0 => format!("{n:.2}"),
        n if n >= 0.001 => format!("{n:.4}"),
        0.0 => "0".to_owned(),
        n => format!("{n:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_slice_counts_if_it_is_half_full() {
        let second = std::time::Duration::from_secs(1);
        let mut timeline = Timeline::new(second, 1_000_000);
        for at in [second / 2, second, second * 3 / 2] {
            timeline.count(at, Some(100)).unwrap();
        }
        let points = |lasted_s| -> Vec<_> {
            Point::all(&timeline, 10.0, lasted_s)
                .map(|point| (point.at_s, point.answered_per_second))
                .collect()
        };
        assert_eq!(points(2.0), [(10.5, 1.0), (11.5, 2.0)]);
        assert_eq!(points(1.5), [(10.5, 1.0), (11.25, 4.0)]);
        assert_eq!(points(1.4), [(10.5, 1.0)]);
    }

    #[test]
    fn small_numbers_keep_their_digits() {
        let shown = [123.4, 1.0, 0.0123, 0.00001234, 0.0].map(significant);
        assert_eq!(shown, ["123", "1.00", "0.0123", "1.2e-5", "0"]);
    }
}
