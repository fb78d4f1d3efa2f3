//! The proof that a tenant has of its events: each is tied to all before it, and now and then the logdriver signs where the
//! chain stands.
//!
//! Per tenant and logdriver, events have places 1, 2, 3, …, and
//!
//! ```text
//! hash(n) = SHA-256("tsp-logdriver chain v1" ‖ hash(n-1) ‖ n as 8 bytes, big-endian ‖ SHA-256(canonical JSON of the event))
//! hash(0) = SHA-256("tsp-logdriver chain v1 start" ‖ logdriver's id as 8 bytes ‖ tenant's id)
//! ```
//!
//! The canonical JSON is the event without its member `chain`: members sorted by their names' bytes, no white space, strings
//! with JSON's shortest escapes, whole numbers without a fraction. So the proof survives a log system that orders members
//! anew, and there is one spelling of each event whoever spells it.
//!
//! What must stay true: the same event and the same place give the same hash in every version, for as long as a tenant may
//! keep its log.

mod canonical;

use std::{fmt, io::Write as _};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use tsp_wire::{
    envelope::{SigningKey, VerifyingKey},
    event::push_timestamp,
};

use self::canonical::{Object, integer};

/// Name of the event that tells where a chain stands.
pub const CHECKPOINT: &str = "LOGDRIVER_CHECKPOINT";

/// A logdriver, as chains name it: random, made with its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogdriverId(pub u64);

impl LogdriverId {
    /// The id that 16 hexadecimal digits spell.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let sound = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let id = sound.then(|| u64::from_str_radix(text, 16).ok());
        id.flatten().map(Self)
    }
}

impl fmt::Display for LogdriverId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// All events up to a place, in 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChainHash(pub [u8; 32]);

impl ChainHash {
    /// The hash that 64 hexadecimal digits spell.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }

    /// That of a tenant's chain before its first event.
    #[must_use]
    pub fn start(logdriver: LogdriverId, tenant: &str) -> Self {
        let hash = Sha256::new_with_prefix(b"tsp-logdriver chain v1 start")
            .chain_update(logdriver.0.to_be_bytes())
            .chain_update(tenant);
        Self(hash.finalize().into())
    }

    /// That after the event at `sequence`, whose canonical JSON has the hash `event`.
    fn after(&self, sequence: u64, event: &[u8; 32]) -> Self {
        let hash = Sha256::new_with_prefix(b"tsp-logdriver chain v1")
            .chain_update(self.0)
            .chain_update(sequence.to_be_bytes())
            .chain_update(event);
        Self(hash.finalize().into())
    }
}

impl fmt::Display for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; 64];
        // Twice as long, so it fits, and digits are text.
        let _ = hex::encode_to_slice(self.0, &mut digits);
        f.write_str(str::from_utf8(&digits).unwrap_or_default())
    }
}

impl fmt::Debug for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a tenant's chain stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The last place that is taken; 0 before the first event.
    pub sequence: u64,
    /// The hash at that place.
    pub hash: ChainHash,
}

impl Head {
    /// Before the first event.
    #[must_use]
    pub fn start(logdriver: LogdriverId, tenant: &str) -> Self {
        Self {
            sequence: 0,
            hash: ChainHash::start(logdriver, tenant),
        }
    }

    /// Gives the event in `json` the next place. Returns it with its link as the last member, `chain`.
    ///
    /// # Errors
    /// [`NotAnEvent`] if it is no JSON object, or has a link already; the head stays where it is then.
    pub fn append(&mut self, logdriver: LogdriverId, json: &[u8]) -> Result<Bytes, NotAnEvent> {
        let event: Object<'_> = serde_json::from_slice(json).map_err(|_| NotAnEvent)?;
        if event.is_empty() || event.has("chain") {
            return Err(NotAnEvent);
        }
        let body = json.trim_ascii_end();
        let body = body.strip_suffix(b"}").ok_or(NotAnEvent)?;
        let sequence = self.sequence + 1;
        let previous = self.hash;
        let hash = previous.after(sequence, &event_hash(&event));
        let mut chained = Vec::with_capacity(body.len() + LINK_BYTES_MAX);
        chained.extend_from_slice(body);
        // Writing to a Vec cannot fail.
        let _ = write!(
            chained,
            r#","chain":{{"logdriver":"{logdriver}","sequence":{sequence},"previous":"{previous}","hash":"{hash}"}}}}"#
        );
        *self = Self { sequence, hash };
        Ok(chained.into())
    }

    /// The event that says, signed by `key`, where the chain stands. It is appended like any other, and so vouches for all
    /// before it. `None` never happens.
    #[must_use]
    pub fn checkpoint(
        &self,
        logdriver: LogdriverId,
        tenant: &str,
        timestamp_ms: i64,
        ray_id: &str,
        key: &SigningKey,
    ) -> Option<Vec<u8>> {
        let statement = Checkpoint::statement(logdriver, tenant, self);
        let signature = BASE64.encode(key.sign(&statement)?);
        let public_key = BASE64.encode(key.verifying().as_bytes());
        let mut timestamp = Vec::new();
        push_timestamp(&mut timestamp, timestamp_ms);
        let mut out = Vec::new();
        let _ = write!(
            out,
            r#"{{"tenantId":{},"timestamp":"{}","iclFields":{{"event":"{CHECKPOINT}","requestingId":"logdriver","logdriverRayId":{}}},"customFields":{{}},"checkpoint":{{"logdriver":"{logdriver}","sequence":{},"hash":"{}","signature":"{signature}","publicKey":"{public_key}"}}}}"#,
            Value::from(tenant),
            String::from_utf8_lossy(&timestamp),
            Value::from(ray_id),
            self.sequence,
            self.hash,
        );
        Some(out)
    }
}

/// The most that a link adds to an event, in bytes: two hashes, an id, a number of 20 digits, and their names.
pub const LINK_BYTES_MAX: usize = 256;

const _: () = assert!(LINK_BYTES_MAX > 64 * 2 + 16 + 20 + 70);

/// What cannot have a place in a chain: no JSON object, an empty one, or one that has a link already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAnEvent;

impl fmt::Display for NotAnEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an event in JSON, or one that is in a chain already")
    }
}

impl std::error::Error for NotAnEvent {}

/// The link of a delivered event: its member `chain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Whose chain it is.
    pub logdriver: LogdriverId,
    /// Its place.
    pub sequence: u64,
    /// The hash of the place before.
    pub previous: ChainHash,
    /// The hash of this place.
    pub hash: ChainHash,
}

impl Link {
    /// Takes the link out of an event; `None` if there is none, or it is not in its form.
    pub fn take(event: &mut Map<String, Value>) -> Option<Self> {
        let link = event.remove("chain")?;
        let hash = |name| ChainHash::from_text(link.get(name)?.as_str()?);
        Some(Self {
            logdriver: LogdriverId::from_text(link.get("logdriver")?.as_str()?)?,
            sequence: whole(link.get("sequence")?)?,
            previous: hash("previous")?,
            hash: hash("hash")?,
        })
    }

    /// Whether `event`, whose link was taken out, is the one that was linked.
    #[must_use]
    pub fn fits(&self, event: &Map<String, Value>) -> bool {
        self.hash
            == self
                .previous
                .after(self.sequence, &event_hash(&event.into()))
    }
}

/// What a checkpoint says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Where the chain stood.
    pub head: Head,
    /// Whether one of the keys that were asked for has signed it.
    pub signed: bool,
}

impl Checkpoint {
    fn statement(logdriver: LogdriverId, tenant: &str, head: &Head) -> Vec<u8> {
        let mut statement = b"tsp-logdriver checkpoint v1".to_vec();
        statement.extend(logdriver.0.to_be_bytes());
        statement.extend((tenant.len() as u64).to_be_bytes());
        statement.extend(tenant.as_bytes());
        statement.extend(head.sequence.to_be_bytes());
        statement.extend(head.hash.0);
        statement
    }

    /// Reads the checkpoint that `event` is; `None` if it is none. The key in it is not believed: the signature must be by
    /// one of `keys`.
    #[must_use]
    pub fn read(tenant: &str, event: &Map<String, Value>, keys: &[VerifyingKey]) -> Option<Self> {
        let said = event.get("checkpoint")?;
        let text = |name| said.get(name).and_then(Value::as_str);
        let logdriver = LogdriverId::from_text(text("logdriver")?)?;
        let head = Head {
            sequence: whole(said.get("sequence")?)?,
            hash: ChainHash::from_text(text("hash")?)?,
        };
        let statement = Self::statement(logdriver, tenant, &head);
        let signature = BASE64.decode(text("signature")?).ok()?;
        let signed = keys.iter().any(|key| key.verifies(&statement, &signature));
        Some(Self { head, signed })
    }
}

/// A whole number, also if a log system made a fraction or a text of it.
fn whole(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => match number.as_u64() {
            Some(whole) => Some(whole),
            None => integer(number.as_f64()?)?.try_into().ok(),
        },
        Value::String(text) => text.parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

fn event_hash(event: &Object<'_>) -> [u8; 32] {
    let mut canonical = Vec::with_capacity(CANONICAL_USUAL);
    event.push(&mut canonical);
    Sha256::digest(&canonical).into()
}

/// Bytes of an event's canonical JSON, as a rule at most.
const CANONICAL_USUAL: usize = 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const LOGDRIVER: LogdriverId = LogdriverId(0xbeef);

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32]).unwrap()
    }

    fn object(json: &[u8]) -> Map<String, Value> {
        serde_json::from_slice(json).unwrap()
    }

    #[test]
    fn a_link_is_the_last_member_and_the_rest_stays_byte_for_byte() {
        let mut head = Head::start(LOGDRIVER, "acme");
        let json = br#"{"tenantId":"acme", "b":1,"a":"\u00e9"}"#;
        let first = head.append(LOGDRIVER, json).unwrap();
        assert_eq!(head.sequence, 1);
        let start = ChainHash::start(LOGDRIVER, "acme");
        let expected = format!(
            r#"{{"tenantId":"acme", "b":1,"a":"\u00e9","chain":{{"logdriver":"000000000000beef","sequence":1,"previous":"{start}","hash":"{}"}}}}"#,
            head.hash
        );
        assert_eq!(std::str::from_utf8(&first).unwrap(), expected);
    }

    /// Written out once, so that no later version hashes another way.
    #[test]
    fn hashes_are_those_of_the_first_version() {
        let mut head = Head::start(LOGDRIVER, "acme");
        head.append(LOGDRIVER, br#"{"tenantId":"acme","n":1.0}"#)
            .unwrap();
        head.append(LOGDRIVER, br#"{"tenantId":"acme","n":2}"#)
            .unwrap();
        let by_hand = |previous: [u8; 32], number: u64, canonical: &str| -> [u8; 32] {
            let mut bytes = b"tsp-logdriver chain v1".to_vec();
            bytes.extend(previous);
            bytes.extend(number.to_be_bytes());
            bytes.extend(Sha256::digest(canonical));
            Sha256::digest(bytes).into()
        };
        let start = Sha256::digest(b"tsp-logdriver chain v1 start\0\0\0\0\0\0\xbe\xefacme").into();
        let first = by_hand(start, 1, r#"{"n":1,"tenantId":"acme"}"#);
        let second = by_hand(first, 2, r#"{"n":2,"tenantId":"acme"}"#);
        assert_eq!(head.hash.0, second);
    }

    #[test]
    fn what_is_no_event_gets_no_place() {
        let mut head = Head::start(LOGDRIVER, "acme");
        let before = head;
        for json in ["", "7", "{}", "[]", "{\"a\":1", r#"{"a":1,"chain":{}}"#] {
            assert_eq!(head.append(LOGDRIVER, json.as_bytes()), Err(NotAnEvent));
        }
        assert_eq!(head, before);
    }

    #[test]
    fn a_checkpoint_counts_under_the_key_that_was_asked_for_alone() {
        let mut head = Head::start(LOGDRIVER, "acme");
        head.append(LOGDRIVER, br#"{"a":1}"#).unwrap();
        let json = head
            .checkpoint(LOGDRIVER, "acme", 1_700_000_000_000, "ray", &key(1))
            .unwrap();
        let event = object(&json);
        assert_eq!(event["iclFields"]["event"], CHECKPOINT);
        assert_eq!(event["timestamp"], "2023-11-14T22:13:20.000Z");
        let read = |tenant: &str, event: &Map<String, Value>, seed| {
            Checkpoint::read(tenant, event, &[key(seed).verifying()]).unwrap()
        };
        let good = read("acme", &event, 1);
        assert_eq!((good.head, good.signed), (head, true));
        assert!(!read("acme", &event, 2).signed);
        assert!(!read("evil", &event, 1).signed);
        for (name, value) in [
            ("sequence", json!(2)),
            ("hash", json!("00".repeat(32))),
            ("logdriver", json!("00000000000000ff")),
        ] {
            let mut other = event.clone();
            other["checkpoint"][name] = value;
            assert!(!read("acme", &other, 1).signed, "{name}");
        }
        let mut chained = head;
        assert!(chained.append(LOGDRIVER, &json).is_ok());
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            // Of such fractions no reader and no writer loses anything.
            any::<i32>().prop_map(|quarters| Value::from(f64::from(quarters) / 4.0)),
            ".{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(".{0,6}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_was_linked_fits_and_what_was_changed_does_not(
            events in prop::collection::vec(prop::collection::btree_map("[a-b]{1,3}", any_value(), 1..5), 1..6),
            changed: prop::sample::Index,
        ) {
            let mut head = Head::start(LOGDRIVER, "acme");
            let mut previous = head.hash;
            for event in &events {
                let json = serde_json::to_vec(event).unwrap();
                let chained = head.append(LOGDRIVER, &json).unwrap();
                prop_assert!(chained.len() <= json.len() + LINK_BYTES_MAX);
                let mut read = object(&chained);
                let link = Link::take(&mut read).unwrap();
                prop_assert_eq!((link.sequence, link.previous), (head.sequence, previous));
                prop_assert!(link.fits(&read));
                // A log system that spells it its own way.
                let pretty = serde_json::to_string_pretty(&read).unwrap();
                prop_assert!(link.fits(&object(pretty.as_bytes())));
                let name = read.keys().nth(changed.index(read.len())).unwrap().clone();
                let mut other = read.clone();
                other.insert(name.clone(), json!({"was": read[&name]}));
                prop_assert!(!link.fits(&other));
                let moved = Link { sequence: link.sequence + 1, ..link };
                prop_assert!(!moved.fits(&read));
                previous = link.hash;
            }
        }
    }
}
