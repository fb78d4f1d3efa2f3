//! A run cut into slices of time: what was answered in each, and how quickly.

use std::{io, time::Duration};

use hdrhistogram::Histogram;

/// Most slices of one run; what comes later is counted in the last.
const SLICES_MAX: usize = 1_000;

/// Digits that the latencies of a slice have; a run as a whole has one more.
const SLICE_DIGITS: u8 = 2;

/// What ended within one slice.
#[derive(Clone, Debug)]
pub struct Slice {
    /// Latencies of the right answers in microseconds.
    pub latency_us: Histogram<u64>,
    /// Requests that were not answered rightly.
    pub failed: u64,
}

/// Slices of one length, from the start of a run.
#[derive(Clone, Debug)]
pub struct Timeline {
    slice: Duration,
    latency_us_max: u64,
    slices: Vec<Slice>,
}

impl Timeline {
    /// An empty one. `slice` is the length of a slice; zero counts nothing.
    #[must_use]
    pub fn new(slice: Duration, latency_us_max: u64) -> Self {
        Self {
            slice,
            latency_us_max,
            slices: Vec::new(),
        }
    }

    /// The length of a slice.
    #[must_use]
    pub fn slice(&self) -> Duration {
        self.slice
    }

    /// The slices until the last in which anything ended.
    #[must_use]
    pub fn slices(&self) -> &[Slice] {
        &self.slices
    }

    /// Counts what ended `at` after the start: a right answer with its latency, or a failure.
    ///
    /// # Errors
    /// If a histogram cannot be made.
    pub(crate) fn count(&mut self, at: Duration, latency_us: Option<u64>) -> io::Result<()> {
        if self.slice.is_zero() {
            return Ok(());
        }
        let index = at.as_nanos() / self.slice.as_nanos().max(1);
        let index =
            usize::try_from(index).map_or(SLICES_MAX - 1, |index| index.min(SLICES_MAX - 1));
        self.grow_to(index + 1)?;
        if let Some(slice) = self.slices.get_mut(index) {
            match latency_us {
                Some(us) => slice.latency_us.saturating_record(us),
                None => slice.failed += 1,
            }
        }
        Ok(())
    }

    /// Adds what another lane counted in the same run.
    ///
    /// # Errors
    /// If a histogram cannot be made.
    pub(crate) fn add(&mut self, other: &Self) -> io::Result<()> {
        self.grow_to(other.slices.len())?;
        for (sum, more) in self.slices.iter_mut().zip(&other.slices) {
            sum.latency_us
                .add(&more.latency_us)
                .map_err(io::Error::other)?;
            sum.failed += more.failed;
        }
        Ok(())
    }

    fn grow_to(&mut self, slices: usize) -> io::Result<()> {
        while self.slices.len() < slices {
            let latency_us = Histogram::new_with_bounds(1, self.latency_us_max, SLICE_DIGITS);
            self.slices.push(Slice {
                latency_us: latency_us.map_err(io::Error::other)?,
                failed: 0,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_ends_is_counted_in_its_slice() {
        let mut timeline = Timeline::new(SECOND, 1_000_000);
        timeline.count(SECOND / 2, Some(100)).unwrap();
        timeline.count(SECOND * 2, Some(300)).unwrap();
        timeline.count(SECOND * 2, None).unwrap();
        let mut other = Timeline::new(SECOND, 1_000_000);
        other.count(SECOND * 3, Some(100)).unwrap();
        timeline.add(&other).unwrap();
        let slices = timeline.slices().iter();
        let counts: Vec<_> = slices.map(|s| (s.latency_us.len(), s.failed)).collect();
        assert_eq!(counts, [(1, 0), (0, 0), (1, 1), (1, 0)]);
    }

    #[test]
    fn it_never_grows_without_bound() {
        let mut timeline = Timeline::new(Duration::from_nanos(1), 1_000_000);
        timeline.count(Duration::MAX, None).unwrap();
        assert_eq!(timeline.slices().len(), SLICES_MAX);
        let mut none = Timeline::new(Duration::ZERO, 1_000_000);
        none.count(SECOND, None).unwrap();
        assert!(none.slices().is_empty());
    }
}
