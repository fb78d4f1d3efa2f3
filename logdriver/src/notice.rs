//! What the logdriver itself has to tell tenants, beside checkpoints.

use serde_json::{Map, Value, json};
use tsp_wire::event::push_timestamp;

/// Name of the event that says that a proxy's process ended without saying so: what it had not handed over is lost.
pub const PROXY_DIED: &str = "LOGDRIVER_PROXY_DIED";

/// Custom field of [`PROXY_DIED`]: the process, as its events name it in `sequence.instance`.
pub const PROXY: &str = "proxy";

/// Custom field of [`PROXY_DIED`]: when the last event happened that came of it, of any tenant. What happened later at that
/// proxy is missing.
pub const LAST_EVENT_AT: &str = "lastEventAt";

/// The event that tells `tenant` of a death.
pub(crate) fn proxy_died(
    tenant: &str,
    instance: u64,
    last_event_ms: i64,
    now_ms: i64,
    ray_id: &str,
) -> Vec<u8> {
    let time = |at_ms| {
        let mut text = Vec::new();
        push_timestamp(&mut text, at_ms);
        String::from_utf8(text).unwrap_or_default()
    };
    let event = json!({
        "tenantId": tenant,
        "timestamp": time(now_ms),
        "iclFields": {
            "event": PROXY_DIED,
            "requestingId": "logdriver",
            "logdriverRayId": ray_id,
        },
        "customFields": {
            PROXY: format!("{instance:016x}"),
            LAST_EVENT_AT: time(last_event_ms),
        },
    });
    event.to_string().into_bytes()
}

/// What such an event says: the process, and the time of its last event. `None` if `event` is none.
#[must_use]
pub fn of_death(event: &Map<String, Value>) -> Option<(String, String)> {
    let name = event.get("iclFields")?.get("event")?;
    let fields = event.get("customFields")?;
    let text = |name| fields.get(name)?.as_str().map(str::to_owned);
    (name == PROXY_DIED).then_some((text(PROXY)?, text(LAST_EVENT_AT)?))
}
