//! When to stop asking: a breaker for what is down, and a budget for second tries.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

/// Failures in a row that open a breaker.
const FAILURES_MAX: u32 = 5;

/// How long a breaker stays open at first; doubled each time a probe fails.
const OPEN_FIRST: Duration = Duration::from_secs(1);

/// Longest time a breaker stays open before the next probe: how late a recovery is noticed at worst.
const OPEN_LONGEST: Duration = Duration::from_secs(30);

/// Opens after [`FAILURES_MAX`] failures in a row, then lets one call through per interval until one succeeds.
///
/// A dead KMS must not hold operations in flight until their deadlines, nor be flooded when it comes back.
#[derive(Debug)]
pub(crate) struct Breaker(Cell<State>);

#[derive(Clone, Copy, Debug)]
enum State {
    Closed {
        failures: u32,
    },
    Open {
        /// When the next probe may go.
        until: Instant,
        /// How long the breaker is open for.
        interval: Duration,
        /// Whether a probe is under way.
        probing: bool,
    },
}

impl Default for Breaker {
    fn default() -> Self {
        Self(Cell::new(State::Closed { failures: 0 }))
    }
}

impl Breaker {
    /// Whether a call may go now. The first one after the interval is the probe; the others wait for what it brings.
    pub(crate) fn allows(&self, now: Instant) -> bool {
        match self.0.get() {
            State::Closed { .. } => true,
            State::Open { until, .. } if now < until => false,
            State::Open { interval, .. } => {
                self.0.set(State::Open {
                    until: now + interval,
                    interval,
                    probing: true,
                });
                true
            }
        }
    }

    /// Whether it is open. A call that [`Breaker::allows`] let through all the same is the probe.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.0.get(), State::Open { .. })
    }

    /// The far end answered, whatever it said.
    pub(crate) fn succeeded(&self) {
        self.0.set(State::Closed { failures: 0 });
    }

    /// The far end could not be reached or did not answer.
    pub(crate) fn failed(&self, now: Instant) {
        let open = |interval| State::Open {
            until: now + interval,
            interval,
            probing: false,
        };
        self.0.set(match self.0.get() {
            State::Closed { failures } if failures + 1 < FAILURES_MAX => State::Closed {
                failures: failures + 1,
            },
            State::Closed { .. } => open(OPEN_FIRST),
            State::Open {
                interval,
                probing: true,
                ..
            } => open((interval * 2).min(OPEN_LONGEST)),
            // A call from before it opened: that it failed too is no news.
            open => open,
        });
    }
}

/// Second tries that one KMS config may still have: enough for passing trouble, too few to double a failing KMS's load.
#[derive(Debug)]
pub(crate) struct RetryBudget(Cell<u32>);

impl Default for RetryBudget {
    fn default() -> Self {
        Self(Cell::new(Self::FULL))
    }
}

/// What a second try cost; given back if it succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spent(u32);

impl RetryBudget {
    /// A full budget.
    const FULL: u32 = 100;
    /// Price of a second try after a failure.
    pub(crate) const TRANSIENT: u32 = 14;
    /// Price of a second try after throttling.
    pub(crate) const THROTTLED: u32 = 5;

    /// Pays for a second try, if there is enough left.
    pub(crate) fn spend(&self, price: u32) -> Option<Spent> {
        let left = self.0.get().checked_sub(price)?;
        self.0.set(left);
        Some(Spent(price))
    }

    /// An operation succeeded: at its first try that earns one, at its second what that had cost.
    pub(crate) fn earn(&self, spent: Option<Spent>) {
        let earned = spent.map_or(1, |Spent(price)| price);
        self.0.set((self.0.get() + earned).min(Self::FULL));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(
        clippy::disallowed_methods,
        reason = "any instant serves as the zero of a test"
    )]
    fn zero() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_breaker_opens_after_five_failures_in_a_row_and_lets_one_probe_through_at_a_time() {
        let (breaker, start) = (Breaker::default(), zero());
        let at = |ms| start + Duration::from_millis(ms);
        for _ in 0..4 {
            breaker.failed(at(0));
        }
        breaker.succeeded();
        for _ in 0..5 {
            assert!(breaker.allows(at(0)));
            breaker.failed(at(0));
        }
        assert!(!breaker.allows(at(999)));
        assert!(breaker.allows(at(1_000)), "the probe");
        assert!(!breaker.allows(at(1_001)), "only one");
        breaker.failed(at(1_500));
        assert!(!breaker.allows(at(3_499)), "twice as long");
        assert!(breaker.allows(at(3_500)));
        breaker.succeeded();
        assert!(breaker.allows(at(3_501)));
    }

    #[test]
    fn calls_from_before_it_opened_do_not_keep_a_breaker_open_for_longer() {
        let (breaker, start) = (Breaker::default(), zero());
        for _ in 0..500 {
            breaker.failed(start);
        }
        assert!(breaker.allows(start + OPEN_FIRST));
    }

    #[test]
    fn a_breaker_asks_again_after_half_a_minute_at_the_latest() {
        let (breaker, mut now) = (Breaker::default(), zero());
        for _ in 0..50 {
            while !breaker.allows(now) {
                now += Duration::from_millis(500);
            }
            breaker.failed(now);
        }
        assert!(breaker.allows(now + OPEN_LONGEST));
    }

    #[test]
    fn the_retry_budget_runs_dry_and_fills_with_successes() {
        let budget = RetryBudget::default();
        let spent: Vec<_> = (0..8)
            .filter_map(|_| budget.spend(RetryBudget::TRANSIENT))
            .collect();
        assert_eq!(spent.len(), 7, "7 times 14 is 98");
        assert_eq!(budget.spend(RetryBudget::THROTTLED), None);
        budget.earn(spent.first().copied());
        assert!(budget.spend(RetryBudget::TRANSIENT).is_some());
        for _ in 0..1_000 {
            budget.earn(None);
        }
        assert_eq!(budget.0.get(), RetryBudget::FULL);
    }
}
