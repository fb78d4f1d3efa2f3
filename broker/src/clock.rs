//! The one place that reads the clock.

use std::time::SystemTime;

/// Unix time in seconds.
pub(crate) fn now_s() -> i64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "tokens and records carry the machine's time; no shard runs here"
    )]
    let now = SystemTime::now();
    let since = now.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}
