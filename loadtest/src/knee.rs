//! The search for the knee: the highest rate that is served well.

use crate::scenario::StepsDoc;

/// Most steps: a factor of 1.05 gets from 1 to 10 million in 331, but nobody waits for that.
const STEPS_MAX: u32 = 60;

/// Lowest rate that is tried: below it a step has hardly a request.
const RATE_MIN: f64 = 1.0;

/// Which rate to try next, from what came of the ones before.
#[derive(Debug)]
pub(crate) struct Search {
    next: Option<f64>,
    passed: Option<f64>,
    not_passed: Option<f64>,
    factor: f64,
    halvings_left: u32,
    steps_left: u32,
}

impl Search {
    pub(crate) fn new(steps: &StepsDoc) -> Self {
        Self {
            next: Some(steps.from),
            passed: None,
            not_passed: None,
            factor: steps.factor,
            halvings_left: steps.halvings,
            steps_left: STEPS_MAX,
        }
    }

    /// The rate of the next step; `None` when the search is over.
    pub(crate) fn next(&self) -> Option<f64> {
        self.next
    }

    /// Takes what came of the step at the rate that [`Search::next`] named.
    pub(crate) fn tell(&mut self, passed: bool) {
        let Some(rate) = self.next.take() else {
            return;
        };
        let side = if passed {
            &mut self.passed
        } else {
            &mut self.not_passed
        };
        *side = Some(rate);
        self.steps_left -= 1;
        if self.steps_left == 0 {
            return;
        }
        self.next = match (self.passed, self.not_passed) {
            (_, None) => Some(rate * self.factor),
            (None, Some(_)) => Some(rate / self.factor).filter(|rate| *rate >= RATE_MIN),
            (Some(passed), Some(not_passed)) if self.halvings_left > 0 => {
                self.halvings_left -= 1;
                Some(f64::midpoint(passed, not_passed))
            }
            (Some(_), Some(_)) => None,
        };
    }

    /// The highest rate that was passed.
    pub(crate) fn knee(&self) -> Option<f64> {
        self.passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(capacity: f64, halvings: u32) -> (Vec<f64>, Option<f64>) {
        let mut search = Search::new(&StepsDoc {
            from: 1_000.0,
            factor: 2.0,
            seconds: 1.0,
            p99_ms_max: 1.0,
            halvings,
        });
        let mut rates = Vec::new();
        while let Some(rate) = search.next() {
            rates.push(rate);
            search.tell(rate <= capacity);
        }
        (rates, search.knee())
    }

    #[test]
    fn it_doubles_until_it_is_too_much_and_then_halves_the_gap() {
        let (rates, knee) = search(5_200.0, 3);
        assert_eq!(rates, [1e3, 2e3, 4e3, 8e3, 6e3, 5e3, 5.5e3]);
        assert_eq!(knee, Some(5_000.0));
    }

    #[test]
    fn it_goes_down_first_if_it_began_too_high() {
        let (rates, knee) = search(300.0, 1);
        assert_eq!(rates, [1_000.0, 500.0, 250.0, 375.0]);
        assert_eq!(knee, Some(250.0));
    }

    #[test]
    fn it_ends_whatever_happens() {
        let (rates, knee) = search(0.0, 3);
        assert_eq!((rates.len(), knee), (10, None));
        let (rates, knee) = search(f64::INFINITY, 3);
        assert_eq!(rates.len(), 60);
        assert_eq!(knee, rates.last().copied());
    }
}
