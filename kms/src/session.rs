//! What one shard remembers about one KMS config between calls.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::{KmsError, Retry, aws::SigningKey, thales::Login};

/// What one shard remembers about one KMS config between calls: derived keys, how far the clock is off, and how far the
/// way to a token has been gone.
///
/// Starts empty (`Session::default()`), stays small, and can be dropped at any time at the price of a few hashes. A
/// changed configuration may keep its session: whatever was derived from old credentials is derived anew.
#[derive(Debug, Default)]
pub struct Session {
    pub(crate) clock: Clock,
    pub(crate) signing_key: Option<SigningKey>,
    /// Whether Google has refused the tokens that the service account signs itself.
    pub(crate) own_tokens_refused: bool,
    pub(crate) login: Login,
}

impl Session {
    /// Mends what the error says can be mended, and tells whether one more try makes sense now.
    ///
    /// Mends the clock: the offset becomes the server's time less the time of the latest request made with this session,
    /// and later requests carry the corrected time. Requests that were in flight together fail together, so each of them
    /// gets its `true`; an error that comes although the clock is right already gets `false`.
    pub fn repair(&mut self, error: &KmsError) -> bool {
        match error.retry() {
            Retry::AfterClockRepair { server_time } => self.clock.repair(server_time),
            Retry::No
            | Retry::Transient
            | Retry::Throttled { .. }
            | Retry::Later { .. }
            | Retry::AfterNewToken => false,
        }
    }
}

/// Our clock as the server sees it.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    /// Seconds to add to our time to get the server's.
    offset_s: i64,
    /// Our time at the latest request, in Unix seconds.
    asked_at_s: Option<i64>,
    /// The server's time at the latest repair, in Unix seconds.
    repaired_at_s: Option<i64>,
}

impl Clock {
    /// An offset of up to this many seconds is left alone: it is within what every KMS tolerates, and `Date` headers and
    /// queues are no better than that.
    const TOLERANCE_S: i64 = 60;

    /// The largest offset that is believed, in seconds. A clock that is off by more than a day has other trouble first,
    /// and a server that lies must not get signatures for times to come.
    const OFFSET_MAX_S: i64 = 86_400;

    /// For how many seconds after a repair a failure may stem from a request made before it: longer than any attempt
    /// is allowed to take.
    const IN_FLIGHT_S: i64 = 10;

    /// The time to put into a request, in Unix seconds.
    pub(crate) fn correct(&mut self, now: SystemTime) -> i64 {
        let now_s = unix_seconds(now);
        self.asked_at_s = Some(now_s);
        (now_s + self.offset_s).clamp(0, UNIX_SECONDS_MAX)
    }

    /// Whether the clocks are further apart than is believed, so that nothing is learnt of it.
    pub(crate) fn is_beyond_repair(server_time: SystemTime, now: SystemTime) -> bool {
        (unix_seconds(server_time) - unix_seconds(now)).abs() > Self::OFFSET_MAX_S
    }

    /// Takes over the server's time from an answer that came just now.
    pub(crate) fn learn(&mut self, server_time: SystemTime, now: SystemTime) {
        self.asked_at_s = Some(unix_seconds(now));
        self.repair(server_time);
    }

    fn repair(&mut self, server_time: SystemTime) -> bool {
        let Some(asked_at_s) = self.asked_at_s else {
            return false;
        };
        let server_s = unix_seconds(server_time);
        let measured_s = server_s - asked_at_s;
        if measured_s.abs() > Self::OFFSET_MAX_S {
            return false;
        }
        // Also the way back: once our clock is right again, a remembered offset would be the fault.
        let offset_s = if measured_s.abs() > Self::TOLERANCE_S {
            measured_s
        } else {
            0
        };
        if (offset_s - self.offset_s).abs() > Self::TOLERANCE_S {
            self.offset_s = offset_s;
            self.repaired_at_s = Some(server_s);
            return true;
        }
        self.repaired_at_s
            .is_some_and(|at_s| (server_s - at_s).abs() <= Self::IN_FLIGHT_S)
    }
}

/// The last second of the year 9999, beyond which no date format in use goes. Also keeps sums of times in range.
pub(crate) const UNIX_SECONDS_MAX: i64 = 253_402_300_799;

/// Whole seconds since 1970, cut to what dates can express.
pub(crate) fn unix_seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs())
        .unwrap_or(UNIX_SECONDS_MAX)
        .min(UNIX_SECONDS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KmsErrorKind, KmsKind, KmsOperation, text::Clean};

    fn at(unix_s: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(unix_s)
    }

    fn skewed(server_s: u64) -> KmsError {
        let (kind, operation) = (KmsErrorKind::Authorization, KmsOperation::Wrap);
        KmsError::new(kind, KmsKind::Aws, operation, Clean::ours("too late")).with_retry(
            Retry::AfterClockRepair {
                server_time: at(server_s),
            },
        )
    }

    const NOON: u64 = 1_768_478_400;

    #[test]
    fn a_repaired_clock_says_the_servers_time() {
        for server_s in [NOON + 361, NOON - 361] {
            let mut session = Session::default();
            assert_eq!(session.clock.correct(at(NOON)), NOON as i64);
            assert!(session.repair(&skewed(server_s)));
            assert_eq!(session.clock.correct(at(NOON)), server_s as i64);
        }
    }

    #[test]
    fn requests_that_were_in_flight_together_may_all_try_again() {
        let mut session = Session::default();
        session.clock.correct(at(NOON));
        assert!(session.repair(&skewed(NOON + 600)));
        assert!(session.repair(&skewed(NOON + 601)));
        assert!(session.repair(&skewed(NOON + 610)));
        // Later it is not the clock any more.
        session.clock.correct(at(NOON + 100));
        assert!(!session.repair(&skewed(NOON + 700)));
    }

    #[test]
    fn a_small_difference_is_left_alone() {
        for server_s in [NOON - 60, NOON, NOON + 60] {
            let mut session = Session::default();
            session.clock.correct(at(NOON));
            assert!(!session.repair(&skewed(server_s)));
            assert_eq!(session.clock.correct(at(NOON)), NOON as i64);
        }
    }

    #[test]
    fn a_clock_that_was_set_right_is_followed() {
        let mut session = Session::default();
        session.clock.correct(at(NOON));
        assert!(session.repair(&skewed(NOON + 600)));
        // Ten minutes later by our clock, an hour by the server's: somebody moved ours.
        session.clock.correct(at(NOON + 3600));
        assert!(session.repair(&skewed(NOON + 3601)));
        assert_eq!(session.clock.correct(at(NOON + 3602)), NOON as i64 + 3602);
    }

    #[test]
    fn a_server_that_is_off_by_more_than_a_day_is_not_believed() {
        for server_s in [0, NOON - 86_401, NOON + 86_401, 1 << 40] {
            let mut session = Session::default();
            session.clock.correct(at(NOON));
            assert!(!session.repair(&skewed(server_s)));
            assert_eq!(session.clock.correct(at(NOON)), NOON as i64);
        }
    }

    #[test]
    fn the_time_of_an_answer_can_be_learnt_without_a_request() {
        let mut clock = Clock::default();
        clock.learn(at(NOON + 600), at(NOON));
        assert_eq!(clock.correct(at(NOON)), NOON as i64 + 600);
        clock.learn(at(NOON + 601), at(NOON));
        assert_eq!(clock.correct(at(NOON)), NOON as i64 + 600);
        clock.learn(at(NOON + 100), at(NOON + 99));
        assert_eq!(clock.correct(at(NOON)), NOON as i64);
    }

    #[test]
    fn nothing_is_repaired_before_a_request_or_by_another_error() {
        let mut session = Session::default();
        assert!(!session.repair(&skewed(NOON)));
        session.clock.correct(at(NOON));
        for retry in [
            Retry::No,
            Retry::Transient,
            Retry::Throttled { after: None },
            Retry::Later {
                after: Duration::from_secs(1),
            },
            Retry::AfterNewToken,
        ] {
            assert!(!session.repair(&skewed(NOON + 600).with_retry(retry)));
        }
    }
}
