//! How long a lane waits after a failure.

use std::time::Duration;

/// Bound of the first wait, and of all: it doubles from one failure to the next. The wait is a random part of it, so that
/// lanes with one log system do not come back to it at one moment.
const WAIT_MIN: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(300);

/// How often a log system is tried that refuses the credential: its tenant will mend that.
const CREDENTIALS_WAIT: Duration = Duration::from_secs(300);

/// Longest wait that a log system can ask for. More would be a mistake of its.
const AFTER_MAX: Duration = Duration::from_secs(3600);

/// The wait after `failures` failures in a row, from 1, and what the log system asked for. `random` is anything.
pub(super) fn wait(failures: u32, after: Option<Duration>, random: u32) -> Duration {
    let bound = WAIT_MIN
        .saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(16)))
        .min(WAIT_MAX);
    let wait = part(bound, random);
    // What it asked for is the least; the random part keeps lanes apart there, too.
    after.map_or(wait, |after| after.min(AFTER_MAX) + wait.min(WAIT_MIN))
}

/// The wait after the credential was refused.
pub(super) fn credentials_wait(random: u32) -> Duration {
    CREDENTIALS_WAIT - part(CREDENTIALS_WAIT / 10, random)
}

fn part(whole: Duration, random: u32) -> Duration {
    whole.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// Anything. Without random bytes lanes are not spread, and all else works.
pub(super) fn random() -> u32 {
    let mut bytes = [0; 4];
    let _ = getrandom::fill(&mut bytes);
    u32::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_five_minutes_and_are_random_below() {
        let seconds = |failures, random| wait(failures, None, random).as_secs();
        let bounds: Vec<_> = (1..=11)
            .map(|failures| seconds(failures, u32::MAX))
            .collect();
        assert_eq!(bounds, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(seconds(u32::MAX, u32::MAX), 300);
        assert_eq!(wait(9, None, 0), Duration::ZERO);
        assert_eq!(seconds(9, u32::MAX / 2), 127);
    }

    #[test]
    fn a_log_system_is_not_asked_before_it_wants_to_be() {
        let minute = Duration::from_secs(60);
        for random in [0, 7, u32::MAX] {
            assert!(wait(1, Some(minute), random) >= minute);
            assert!(wait(20, Some(minute), random) <= minute + WAIT_MIN);
        }
        assert!(wait(1, Some(Duration::MAX), 0) <= AFTER_MAX);
    }
}
