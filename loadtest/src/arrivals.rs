//! When the requests of an open loop are due, counted from its start.

use std::time::Duration;

use clap::ValueEnum;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use rand_distr::{Distribution as _, Exp};
use serde::{Deserialize, Serialize};

/// How the arrivals of an open loop are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arrivals {
    /// At equal distances.
    #[default]
    Constant,
    /// As of many callers that do not know of each other: distances are exponential, so that some come close together.
    Poisson,
}

/// Requests at their rate, then a pause, and again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bursts {
    /// Requests between two pauses, over all lanes.
    pub requests: u64,
    /// Shortest pause.
    pub pause_min: Duration,
    /// Longest pause.
    pub pause_max: Duration,
}

impl Bursts {
    /// Pause number `index`. Pauses are spread evenly between the two bounds, however many there are, and each run has the
    /// same ones: steps of the golden ratio do that.
    fn pause(&self, index: u64) -> Duration {
        const STEP: f64 = 0.618_033_988_749_895;
        let spread = self.pause_max.saturating_sub(self.pause_min);
        self.pause_min + spread.mul_f64((index as f64 * STEP).fract())
    }
}

/// The times of one lane's requests, one after another.
#[derive(Debug)]
pub(crate) struct Schedule {
    rate: f64,
    /// Distances in seconds, if they are not all the same.
    distances: Option<(Exp<f64>, ChaCha20Rng)>,
    bursts: Option<Bursts>,
    issued: u64,
    /// Sum of the distances so far, in seconds.
    drawn_s: f64,
    paused: Duration,
}

impl Schedule {
    /// `rate` is per second and above zero. Each lane has its own `seed`: Poisson arrivals of lanes that do not know of
    /// each other are Poisson arrivals together.
    pub(crate) fn new(rate: f64, arrivals: Arrivals, bursts: Option<Bursts>, seed: u64) -> Self {
        let distances = match arrivals {
            Arrivals::Constant => None,
            Arrivals::Poisson => Exp::new(rate)
                .ok()
                .map(|distances| (distances, ChaCha20Rng::seed_from_u64(seed))),
        };
        Self {
            rate,
            distances,
            bursts,
            issued: 0,
            drawn_s: 0.0,
            paused: Duration::ZERO,
        }
    }

    /// When the next request is due.
    pub(crate) fn next(&mut self) -> Duration {
        if let Some(bursts) = self.bursts
            && self.issued > 0
            && self.issued.is_multiple_of(bursts.requests)
        {
            self.paused += bursts.pause(self.issued / bursts.requests);
        }
        let seconds = match &mut self.distances {
            // Not a sum: rounding would add up.
            None => self.issued as f64 / self.rate,
            Some((distances, random)) => {
                self.drawn_s += distances.sample(random);
                self.drawn_s
            }
        };
        self.issued += 1;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX / 2) + self.paused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_arrivals_keep_their_distance() {
        let mut schedule = Schedule::new(1_000.0, Arrivals::Constant, None, 1);
        let times: Vec<_> = (0..3).map(|_| schedule.next().as_micros()).collect();
        assert_eq!(times, [0, 1_000, 2_000]);
    }

    #[test]
    fn poisson_arrivals_have_exponential_distances_of_the_right_mean() {
        const COUNT: u32 = 20_000;
        let mut schedule = Schedule::new(500.0, Arrivals::Poisson, None, 7);
        let mut last = 0.0;
        let distances: Vec<_> = (0..COUNT)
            .map(|_| {
                let at = schedule.next().as_secs_f64();
                let distance = at - last;
                last = at;
                distance
            })
            .collect();
        let mean = distances.iter().sum::<f64>() / f64::from(COUNT);
        assert!((mean * 500.0 - 1.0).abs() < 0.03, "{mean}");
        // Of an exponential distribution 63.2 % are below the mean, and the deviation equals it.
        let below = distances.iter().filter(|d| **d < mean).count() as f64 / f64::from(COUNT);
        assert!((below - 0.632).abs() < 0.02, "{below}");
        let squares = distances.iter().map(|d| (d - mean).powi(2)).sum::<f64>();
        let deviation = (squares / f64::from(COUNT)).sqrt();
        assert!((deviation / mean - 1.0).abs() < 0.05, "{deviation}");
    }

    #[test]
    fn lanes_of_different_seeds_differ_and_the_same_seed_repeats() {
        let first = |seed| Schedule::new(10.0, Arrivals::Poisson, None, seed).next();
        assert_ne!(first(1), first(2));
        assert_eq!(first(1), first(1));
    }

    #[test]
    fn bursts_pause_between_their_bounds() {
        let bursts = Bursts {
            requests: 2,
            pause_min: Duration::from_millis(20),
            pause_max: Duration::from_millis(30),
        };
        let mut schedule = Schedule::new(1_000.0, Arrivals::Constant, Some(bursts), 1);
        let times: Vec<_> = (0..5).map(|_| schedule.next()).collect();
        assert_eq!(times[1], Duration::from_millis(1));
        for (before, after) in [(1, 2), (3, 4)] {
            let pause = times[after] - times[before] - Duration::from_millis(1);
            assert!(
                bursts.pause_min <= pause && pause <= bursts.pause_max,
                "{pause:?}"
            );
        }
    }
}
