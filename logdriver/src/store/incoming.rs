//! An event as a proxy sends it: what the store has to know of it, and how it becomes what is delivered.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny},
};
use sha2::{Digest as _, Sha256};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tsp_wire::{RayId, TenantId};

/// Largest event, in bytes. The proxy takes bodies of 1 MiB from applications; escapes of JSON may make them longer.
pub const EVENT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// In front of the members that say what happened; the event's id goes in there.
const FIELDS: &[u8] = br#""iclFields":{"#;

/// An event that is to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// Whose it is.
    pub tenant: String,
    /// When it happened, in ms since 1970.
    pub timestamp_ms: i64,
    /// Its number, if the proxy gave it one.
    pub sequence: Option<Number>,
    /// The line of JSON.
    json: Bytes,
    /// Where in it the members begin that say what happened.
    fields: usize,
}

/// Where an event stands among those of its proxy: no two events ever have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
pub struct Number {
    /// The proxy's process: 16 hexadecimal digits in the event.
    #[serde(deserialize_with = "instance")]
    pub instance: u64,
    /// Its shard.
    pub shard: u16,
    /// Counts up by one.
    pub number: u64,
}

fn instance<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    struct Digits<'a>(#[serde(borrow)] Cow<'a, str>);
    let Digits(digits) = Digits::deserialize(from)?;
    u64::from_str_radix(&digits, 16).map_err(D::Error::custom)
}

/// The id of what `parts` say under `label`, the same whenever it is made.
pub(crate) fn id(label: &[u8], parts: &[&[u8]]) -> RayId {
    let hash = Sha256::new_with_prefix(label);
    let hash = parts
        .iter()
        .fold(hash, |hash, part| hash.chain_update(part));
    let mut start = [0; 12];
    for (to, from) in start.iter_mut().zip(hash.finalize()) {
        *to = from;
    }
    RayId::from_random(start)
}

impl Number {
    /// The id that the event has in every log, whichever logdriver brings it there, and however often.
    pub(crate) fn id(self) -> RayId {
        id(
            b"tsp-logdriver ray id v1",
            &[
                &self.instance.to_be_bytes(),
                &self.shard.to_be_bytes(),
                &self.number.to_be_bytes(),
            ],
        )
    }
}

/// What an event must have to be one.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow, rename = "tenantId")]
    tenant_id: Cow<'a, str>,
    #[serde(borrow)]
    timestamp: Cow<'a, str>,
    #[serde(rename = "iclFields")]
    _fields: Fields,
    sequence: Option<Number>,
}

/// An object.
struct Fields;

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> serde::de::Visitor<'de> for Members {
            type Value = Fields;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut members: A,
            ) -> Result<Fields, A::Error> {
                while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Fields)
            }
        }
        from.deserialize_map(Members)
    }
}

impl Incoming {
    /// Reads one line. `None` if it is no event.
    #[must_use]
    pub fn read(json: Bytes) -> Option<Self> {
        if json.len() > EVENT_BYTES_MAX {
            return None;
        }
        let fields = memchr::memmem::find(&json, FIELDS)? + FIELDS.len();
        let head: Head<'_> = serde_json::from_slice(&json).ok()?;
        let known = head.tenant_id.is_empty() || TenantId::is_valid(&head.tenant_id);
        if !known {
            return None;
        }
        let timestamp = OffsetDateTime::parse(&head.timestamp, &Rfc3339).ok()?;
        let timestamp_ms = timestamp.unix_timestamp_nanos() / 1_000_000;
        let (tenant, sequence) = (head.tenant_id.into_owned(), head.sequence);
        Some(Self {
            tenant,
            timestamp_ms: i64::try_from(timestamp_ms).ok()?,
            sequence,
            json,
            fields,
        })
    }

    /// The line of JSON.
    #[must_use]
    pub fn json(&self) -> &Bytes {
        &self.json
    }

    /// The members that say what happened, the event's name first, and all that follows them.
    pub(crate) fn fields(&self) -> &[u8] {
        self.json.get(self.fields..).unwrap_or_default()
    }

    /// The event's JSON with the id that the logdriver gave it.
    pub(crate) fn with_id(&self, id: &str) -> Vec<u8> {
        let (before, after) = self.json.split_at(self.fields.min(self.json.len()));
        let mut with = Vec::with_capacity(self.json.len() + id.len() + 24);
        with.extend_from_slice(before);
        with.extend_from_slice(br#""logdriverRayId":""#);
        with.extend_from_slice(id.as_bytes());
        with.push(b'"');
        if !after.starts_with(b"}") {
            with.push(b',');
        }
        with.extend_from_slice(after);
        with
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: &str = concat!(
        r#"{"tenantId":"acme","timestamp":"2023-11-14T22:13:20.000Z","#,
        r#""iclFields":{"event":"DATA_ENCRYPT","requestingId":"svc"},"customFields":{},"#,
        r#""sequence":{"instance":"000000000000beef","shard":3,"number":17}}"#
    );

    fn read(json: &str) -> Option<Incoming> {
        Incoming::read(Bytes::copy_from_slice(json.as_bytes()))
    }

    #[test]
    fn an_event_is_read_and_gets_its_id() {
        let event = read(EVENT).unwrap();
        assert_eq!(event.tenant, "acme");
        assert_eq!(event.timestamp_ms, 1_700_000_000_000);
        let number = event.sequence.unwrap();
        let expected = Number {
            instance: 0xbeef,
            shard: 3,
            number: 17,
        };
        assert_eq!(number, expected);
        let with = event.with_id("abcdefghijklmnop");
        let parsed: serde_json::Value = serde_json::from_slice(&with).unwrap();
        assert_eq!(parsed["iclFields"]["logdriverRayId"], "abcdefghijklmnop");
        assert_eq!(parsed["iclFields"]["event"], "DATA_ENCRYPT");
        let bare = EVENT.replace(r#""event":"DATA_ENCRYPT","requestingId":"svc""#, "");
        let with = read(&bare).unwrap().with_id("abcdefghijklmnop");
        assert!(serde_json::from_slice::<serde_json::Value>(&with).is_ok());
    }

    #[test]
    fn what_is_no_event_is_told_apart() {
        for bad in [
            "",
            "{}",
            "[]",
            "null",
            &EVENT[1..],
            &EVENT.replace("acme", "a\\u0000"),
            &EVENT.replace("2023", "x"),
            &EVENT.replace("000000000000beef", "beet"),
            &EVENT.replace(r#""iclFields":{"#, r#""icl":{"#),
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
        // Losses of more tenants than a proxy remembers have none.
        assert!(read(&EVENT.replace("acme", "")).is_some());
    }

    #[test]
    fn an_event_has_the_same_id_at_every_logdriver() {
        let id = |json: &str| read(json).unwrap().sequence.unwrap().id();
        let first = id(EVENT);
        // As of the first version, for as long as a log system may be asked for it.
        assert_eq!(first.as_str(), "HfsVo60fAuyTJfSi");
        assert_eq!(id(&EVENT.replace("acme", "globex")), first);
        for other in [
            EVENT.replace("beef", "bee0"),
            EVENT.replace(r#""shard":3"#, r#""shard":4"#),
            EVENT.replace(":17", ":18"),
        ] {
            assert_ne!(id(&other), first);
        }
    }
}
