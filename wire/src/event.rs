//! Security events: what the proxy did with a tenant's keys, and what applications report. One line of JSON each.

mod take;

use time::OffsetDateTime;

pub use self::take::{Take, Taken};
use crate::{RayId, api::Metadata, json};

/// First byte of every message on the event socket; one event in JSON follows, or several, with a newline between two. A
/// reader splits there, and refuses other first bytes.
pub const FRAME_VERSION: u8 = 1;

/// Name of the event that a wrap makes, also per item of a batch and for the second side of a rekey.
pub const DATA_ENCRYPT: &str = "DATA_ENCRYPT";

/// Name of the event that an unwrap makes, also per item of a batch and for the first side of a rekey.
pub const DATA_DECRYPT: &str = "DATA_DECRYPT";

/// Name of the event that a derivation makes for each of its secret paths; its count is the number of derivation paths.
pub const DATA_DERIVE: &str = "DATA_DERIVE";

/// Name of the event that says that others of its tenant were dropped; its count is how many, its custom fields
/// [`FIRST_LOST_AT`] and [`LAST_LOST_AT`] when. Without a tenant it is about several.
pub const TSP_EVENTS_LOST: &str = "TSP_EVENTS_LOST";

/// Custom field of [`TSP_EVENTS_LOST`]: when the first of them was dropped, as a timestamp.
pub const FIRST_LOST_AT: &str = "firstLostAt";

/// Custom field of [`TSP_EVENTS_LOST`]: when the last of them was dropped.
pub const LAST_LOST_AT: &str = "lastLostAt";

/// Name of the last event of a shard that ends in order: who has seen it knows that none is missing at the end. It
/// belongs to no tenant.
pub const TSP_EVENTS_ENDED: &str = "TSP_EVENTS_ENDED";

/// What [`TSP_EVENTS_LOST`] and [`TSP_EVENTS_ENDED`] have for who asked: nobody but the proxy.
pub const TSP_REQUESTING_ID: &str = "tsp";

/// The first millisecond of year 1 and the last of year 9999, which RFC 3339 ends with; since 1970.
const TIMESTAMP_MS: (i64, i64) = (-62_135_596_800_000, 253_402_300_799_999);

/// One thing that happened to a tenant's data.
#[derive(Clone, Debug)]
pub struct SecurityEvent<'a, 'm> {
    /// Whose audit trail it belongs to. Not always `metadata.tenant_id`: a rekey touches two tenants.
    pub tenant_id: &'a str,
    /// When it happened, in milliseconds since 1970. Written as the nearest time that RFC 3339 can spell.
    pub timestamp_ms: i64,
    /// Its name, such as [`DATA_ENCRYPT`].
    pub event: &'a str,
    /// Who did it; its tenant id is not used.
    pub metadata: &'a Metadata<'m>,
    /// The request that it came from.
    pub ray_id: RayId,
    /// Who says so.
    pub source: EventSource,
    /// How often it happened, from 1. More than once only for a derivation, and where an application reports uses of a
    /// cached key.
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

impl SecurityEvent<'_, '_> {
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
        // Names and words of ours have nothing to escape.
        for (name, value) in [
            (&br#","dataLabel":"#[..], self.metadata.data_label),
            (br#","sourceIp":"#, self.metadata.source_ip),
            (br#","objectId":"#, self.metadata.object_id),
            (br#","requestId":"#, self.metadata.request_id),
        ] {
            if let Some(value) = value {
                out.extend_from_slice(name);
                json::push_string(out, value);
            }
        }
        out.extend_from_slice(br#","tspRayId":""#);
        out.extend_from_slice(self.ray_id.as_str().as_bytes());
        out.extend_from_slice(br#"","source":""#);
        out.extend_from_slice(self.source.as_str().as_bytes());
        out.push(b'"');
        if self.count > 1 {
            out.extend_from_slice(br#","count":"#);
            json::push_number(out, self.count);
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
        out.extend_from_slice(br#"},"sequence":{"instance":""#);
        push_hex(out, instance);
        out.extend_from_slice(br#"","shard":"#);
        json::push_number(out, u64::from(shard));
        out.extend_from_slice(br#","number":"#);
        json::push_number(out, number);
        out.extend_from_slice(b"}}");
    }
}

/// Appends RFC 3339 in UTC with milliseconds, such as `2023-11-14T22:13:20.000Z`.
pub fn push_timestamp(out: &mut Vec<u8>, timestamp_ms: i64) {
    let clamped = timestamp_ms.clamp(TIMESTAMP_MS.0, TIMESTAMP_MS.1);
    let time = OffsetDateTime::from_unix_timestamp(clamped.div_euclid(1000))
        .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (year, month, day) = time.to_calendar_date();
    let (hour, minute, second) = time.to_hms();
    // Digit by digit: this is half of what an event would cost with the machinery of `write!`.
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let values = [
        (3, u16::try_from(year).unwrap_or_default()),
        (6, u8::from(month).into()),
        (9, day.into()),
        (12, hour.into()),
        (15, minute.into()),
        (18, second.into()),
        (
            22,
            u16::try_from(clamped.rem_euclid(1000)).unwrap_or_default(),
        ),
    ];
    for (last, mut value) in values {
        for digit in text.iter_mut().take(last + 1).rev() {
            if value == 0 {
                break;
            }
            *digit += u8::try_from(value % 10).unwrap_or_default();
            value /= 10;
        }
    }
    out.extend_from_slice(&text);
}

/// Appends 16 hexadecimal digits.
fn push_hex(out: &mut Vec<u8>, value: u64) {
    let mut digits = [0; 16];
    for (place, digit) in (0..16).rev().zip(&mut digits) {
        let nibble = u8::try_from((value >> (4 * place)) & 0xf).unwrap_or_default();
        *digit = nibble + if nibble < 10 { b'0' } else { b'a' - 10 };
    }
    out.extend_from_slice(&digits);
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use proptest::prelude::*;
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::api::CustomFields;

    fn metadata() -> Metadata<'static> {
        Metadata {
            tenant_id: "not used",
            requesting_id: "svc",
            data_label: None,
            source_ip: None,
            object_id: None,
            request_id: None,
            custom_fields: CustomFields::new(),
        }
    }

    fn event<'a, 'm>(metadata: &'a Metadata<'m>) -> SecurityEvent<'a, 'm> {
        SecurityEvent {
            tenant_id: "acme",
            timestamp_ms: 1_700_000_000_000,
            event: DATA_ENCRYPT,
            metadata,
            ray_id: RayId::from_random(*b"hello, world"),
            source: EventSource::Tsp,
            count: 1,
            sequence: Sequence {
                instance: 0xbeef,
                shard: 3,
                number: 17,
            },
        }
    }

    fn written(event: &SecurityEvent<'_, '_>) -> String {
        let mut out = Vec::new();
        event.write_json(&mut out);
        String::from_utf8(out).unwrap()
    }

    fn timestamp(timestamp_ms: i64) -> String {
        let mut out = Vec::new();
        push_timestamp(&mut out, timestamp_ms);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_wrap_makes_an_event_without_the_fields_that_were_not_given() {
        assert_eq!(
            written(&event(&metadata())),
            concat!(
                r#"{"tenantId":"acme","timestamp":"2023-11-14T22:13:20.000Z","#,
                r#""iclFields":{"event":"DATA_ENCRYPT","requestingId":"svc","#,
                r#""tspRayId":"aGVsbG8sIHdvcmxk","source":"tsp"},"customFields":{},"#,
                r#""sequence":{"instance":"000000000000beef","shard":3,"number":17}}"#
            )
        );
    }

    #[test]
    fn an_event_carries_all_that_the_caller_gave() {
        let metadata = Metadata {
            data_label: Some("PII"),
            source_ip: Some("192.0.2.7"),
            object_id: Some("o/1"),
            request_id: Some("r-17"),
            custom_fields: [("a", Cow::Borrowed("1")), ("\"", Cow::Borrowed("é\n"))].into(),
            ..metadata()
        };
        let event = SecurityEvent {
            event: "USER_LOGIN",
            source: EventSource::App,
            ..event(&metadata)
        };
        let parsed: Json = serde_json::from_str(&written(&event)).unwrap();
        assert_eq!(
            parsed,
            json!({
                "tenantId": "acme",
                "timestamp": "2023-11-14T22:13:20.000Z",
                "iclFields": {
                    "event": "USER_LOGIN", "requestingId": "svc", "dataLabel": "PII",
                    "sourceIp": "192.0.2.7", "objectId": "o/1", "requestId": "r-17",
                    "tspRayId": "aGVsbG8sIHdvcmxk", "source": "app",
                },
                "customFields": {"a": "1", "\"": "é\n"},
                "sequence": {"instance": "000000000000beef", "shard": 3, "number": 17},
            })
        );
    }

    #[test]
    fn a_report_of_three_wraps_is_one_event_with_a_count() {
        let metadata = metadata();
        let event = SecurityEvent {
            count: 3,
            source: EventSource::App,
            ..event(&metadata)
        };
        let parsed: Json = serde_json::from_str(&written(&event)).unwrap();
        assert_eq!(parsed["iclFields"]["count"], json!(3));
    }

    #[test]
    fn timestamps_have_milliseconds_and_stay_within_four_digit_years() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(-1), "1969-12-31T23:59:59.999Z");
        assert_eq!(timestamp(951_782_400_007), "2000-02-29T00:00:00.007Z");
        // What the Go SDK sends for a time that was never set.
        assert_eq!(timestamp(-62_135_596_800_000), "0001-01-01T00:00:00.000Z");
        assert_eq!(timestamp(-62_135_596_800_001), "0001-01-01T00:00:00.000Z");
        assert_eq!(timestamp(253_402_300_799_999), "9999-12-31T23:59:59.999Z");
        assert_eq!(timestamp(253_402_300_800_000), "9999-12-31T23:59:59.999Z");
        assert_eq!(timestamp(i64::MIN), "0001-01-01T00:00:00.000Z");
        assert_eq!(timestamp(i64::MAX), "9999-12-31T23:59:59.999Z");
    }

    proptest! {
        #[test]
        fn every_event_is_one_line_of_json(
            tenant: String, name: String, requesting: String, label: Option<String>,
            custom: (String, String), timestamp_ms: i64, count: u64,
        ) {
            let metadata = Metadata {
                requesting_id: &requesting,
                data_label: label.as_deref(),
                custom_fields: [(&*custom.0, Cow::Borrowed(&*custom.1))].into_iter().collect(),
                ..metadata()
            };
            let event = SecurityEvent {
                tenant_id: &tenant, event: &name, timestamp_ms, count, ..event(&metadata)
            };
            let line = written(&event);
            prop_assert!(!line.contains('\n'));
            let parsed: Json = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(&parsed["tenantId"], &json!(tenant));
            prop_assert_eq!(&parsed["iclFields"]["event"], &json!(name));
            prop_assert_eq!(&parsed["iclFields"]["requestingId"], &json!(requesting));
            let label = label.clone().map(Json::from);
            prop_assert_eq!(parsed["iclFields"].get("dataLabel"), label.as_ref());
            prop_assert_eq!(&parsed["customFields"][&custom.0], &json!(custom.1));
            let count = (count > 1).then(|| Json::from(count));
            prop_assert_eq!(parsed["iclFields"].get("count"), count.as_ref());
        }

        #[test]
        fn timestamps_sort_like_the_times_they_spell(one: i64, other in -70_000_000_000_000..260_000_000_000_000_i64) {
            for (one, other) in [(one, other), (other, other + 1)] {
                let (earlier, later) = (one.min(other), one.max(other));
                prop_assert!(timestamp(earlier) <= timestamp(later));
                prop_assert_eq!(timestamp(earlier).len(), "0001-01-01T00:00:00.000Z".len());
            }
        }
    }
}
