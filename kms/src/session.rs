//! What one shard remembers about one KMS config between calls.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::{KmsError, Retry, aws::SigningKey};

/// What one shard remembers about one KMS config between calls: derived keys, and how far the clock is off.
///
/// Starts empty (`Session::default()`), stays small, and can be dropped at any time at the price of a few hashes. A
/// changed configuration may keep its session: whatever was derived from old credentials is derived anew.
#[derive(Debug, Default)]
pub struct Session {
    pub(crate) clock: Clock,
    pub(crate) signing_key: Option<SigningKey>,
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
            Retry::No | Retry::Transient | Retry::Throttled { .. } => false,
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

    /// The largest offset that is believed, in seconds. A clock that is off by more than a day has other trouble first, and a
    /// server that lies must not get signatures for times to come.
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
