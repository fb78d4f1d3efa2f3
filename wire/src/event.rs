//! Security events: what the proxy did with a tenant's keys, and what applications report. One line of JSON each.

use std::io::Write as _;

use time::OffsetDateTime;

use crate::{RayId, api::Metadata, json};

/// First byte of every message on the event socket; one event in JSON follows. A reader refuses other values.
pub const FRAME_VERSION: u8 = 1;

/// Name of the event that a wrap makes, also per item of a batch and for the second side of a rekey.
pub const DATA_ENCRYPT: &str = "DATA_ENCRYPT";

/// Name of the event that an unwrap makes, also per item of a batch and for the first side of a rekey.
pub const DATA_DECRYPT: &str = "DATA_DECRYPT";

/// The first millisecond of year 1 and the last of year 9999, which RFC 3339 ends with; since 1970.
const TIMESTAMP_MS: (i64, i64) = (-62_135_596_800_000, 253_402_300_799_999);

/// One thing that happened to a tenant's data.
#[derive(Clone, Debug)]
pub struct SecurityEvent<'a> {
    /// Whose audit trail it belongs to. Not always `metadata.tenant_id`: a rekey touches two tenants.
    pub tenant_id: &'a str,
    /// When it happened, in milliseconds since 1970. Written as the nearest time that RFC 3339 can spell.
    pub timestamp_ms: i64,
    /// Its name, such as [`DATA_ENCRYPT`].
    pub event: &'a str,
    /// Who did it; its tenant id is not used.
    pub metadata: &'a Metadata<'a>,
    /// The request that it came from.
    pub ray_id: RayId,
    /// Who says so.
    pub source: EventSource,
    /// How often it happened, from 1. More than once only where an application reports uses of a cached key.
    pub count: u64,
    /// Its place among all events of the proxy.
    pub sequence: Sequence,
}

/// Who saw an event happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventSource {
    /// The proxy, which did it.
    Tsp,
    /// An application, which told the proxy.
    App,
}

impl EventSource {
    /// The word in the event.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tsp => "tsp",
            Self::App => "app",
        }
    }
}

/// Numbers events so that a gap shows where one was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Random per process; 16 hexadecimal digits in the event.
    pub instance: u64,
    /// The shard that counts.
    pub shard: u16,
    /// Counts up by one per event of that shard.
    pub number: u64,
}

impl SecurityEvent<'_> {
    /// Appends the event as one line of JSON, without the line's end.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(br#"{"tenantId":"#);
        json::push_string(out, self.tenant_id);
        out.extend_from_slice(br#","timestamp":""#);
        push_timestamp(out, self.timestamp_ms);
        out.extend_from_slice(br#"","iclFields":{"event":"#);
        json::push_string(out, self.event);
        out.extend_from_slice(br#","requestingId":"#);
        json::push_string(out, self.metadata.requesting_id);
        for (name, value) in [
            ("dataLabel", self.metadata.data_label),
            ("sourceIp", self.metadata.source_ip),
            ("objectId", self.metadata.object_id),
            ("requestId", self.metadata.request_id),
        ] {
            if let Some(value) = value {
                out.push(b',');
                json::push_string(out, name);
                out.push(b':');
                json::push_string(out, value);
            }
        }
        out.extend_from_slice(br#","tspRayId":"#);
        json::push_string(out, self.ray_id.as_str());
        out.extend_from_slice(br#","source":"#);
        json::push_string(out, self.source.as_str());
        if self.count > 1 {
            // Writing to a Vec cannot fail, here and below.
            let _ = write!(out, r#","count":{}"#, self.count);
        }
        out.extend_from_slice(br#"},"customFields":{"#);
        for (index, (name, value)) in self.metadata.custom_fields.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            json::push_string(out, name);
            out.push(b':');
            json::push_string(out, value);
        }
        let Sequence {
            instance,
            shard,
            number,
        } = self.sequence;
        let _ = write!(
            out,
            r#"}},"sequence":{{"instance":"{instance:016x}","shard":{shard},"number":{number}}}}}"#
        );
    }
}

/// Appends RFC 3339 in UTC with milliseconds, such as `2023-11-14T22:13:20.000Z`.
fn push_timestamp(out: &mut Vec<u8>, timestamp_ms: i64) {
    let clamped = timestamp_ms.clamp(TIMESTAMP_MS.0, TIMESTAMP_MS.1);
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(clamped) * 1_000_000)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let _ = write!(
        out,
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        time.year(),
        u8::from(time.month()),
        time.day(),
        time.hour(),
        time.minute(),
        time.second(),
        time.millisecond(),
    );
}
