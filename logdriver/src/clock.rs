//! The one place that reads clocks.

use std::time::{Instant, SystemTime};

/// Unix time in milliseconds, as this machine has it.
pub(crate) fn now_ms() -> i64 {
    let since = system().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    })
}

/// The wall clock.
pub(crate) fn system() -> SystemTime {
    #[expect(
        clippy::disallowed_methods,
        reason = "events are dated by the machine's time; no shard runs here"
    )]
    SystemTime::now()
}

/// The clock that never jumps.
pub(crate) fn monotonic() -> Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "waits are measured on it; no shard runs here"
    )]
    Instant::now()
}
