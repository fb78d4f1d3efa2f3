//! What is asked of the proxy: named scenarios, each a fixed cycle of requests, with the answer that each must get.
//!
//! Bodies are made once, before the measurement, so that the generator spends its time on the wire. They look like those
//! of the published SDKs: about 300 bytes of metadata around what is asked.

use std::{collections::BTreeMap, fmt, sync::Arc};

use bytes::Bytes;
use clap::ValueEnum;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value, json};
use tsp_wire::edek;

/// Items in one request of [`Scenario::BatchWrap100`].
const BATCH_ITEMS: usize = 100;

/// EDEKs of each tenant that the unwraps go round.
pub const EDEKS_PER_TENANT: usize = 32;

/// Length of a DEK of 32 bytes in padded base64.
const DEK_BASE64_BYTES: usize = 44;

/// A named mix of requests. Tenants take turns in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Each request wraps one new DEK.
    Wrap,
    /// Each request unwraps one of some EDEKs that were wrapped beforehand.
    Unwrap,
    /// Each request wraps 100 new DEKs.
    #[value(name = "batch-wrap-100")]
    BatchWrap100,
    /// Of 100 requests 90 unwrap, 7 wrap, 2 post a security event and 1 wraps a batch of 100: keys are read far more
    /// often than made.
    Mixed,
    /// Each request posts one security event.
    SecurityEvent,
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wrap => "wrap",
            Self::Unwrap => "unwrap",
            Self::BatchWrap100 => "batch-wrap-100",
            Self::Mixed => "mixed",
            Self::SecurityEvent => "security-event",
        })
    }
}

/// The kinds of request that scenarios are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `document/wrap`.
    Wrap,
    /// `document/unwrap`.
    Unwrap,
    /// `document/batch-wrap`.
    BatchWrap,
    /// `event/security-event`.
    SecurityEvent,
}

impl Kind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 4] = [
        Self::Wrap,
        Self::Unwrap,
        Self::BatchWrap,
        Self::SecurityEvent,
    ];

    /// Its name in reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wrap => "wrap",
            Self::Unwrap => "unwrap",
            Self::BatchWrap => "batch-wrap",
            Self::SecurityEvent => "security-event",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Wrap => "/api/1/document/wrap",
            Self::Unwrap => "/api/1/document/unwrap",
            Self::BatchWrap => "/api/1/document/batch-wrap",
            Self::SecurityEvent => "/api/1/event/security-event",
        }
    }
}

/// One request, ready to be sent any number of times, and what its answer must look like.
#[derive(Clone, Debug)]
pub struct Call {
    /// Which kind it is.
    pub kind: Kind,
    /// Path of the endpoint.
    pub path: &'static str,
    /// The JSON body.
    pub body: Bytes,
    expect: Expect,
}

#[derive(Clone, Debug)]
enum Expect {
    /// A DEK and an EDEK.
    Wrapped,
    /// This DEK.
    Dek(Box<str>),
    /// So many keys, no failure.
    Batch(usize),
    /// `null`.
    Null,
}

/// A DEK and its EDEK, both in base64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrapped {
    /// The key.
    pub dek: String,
    /// The key, wrapped.
    pub edek: String,
}

#[derive(Deserialize)]
struct WrappedAnswer<'a> {
    dek: &'a str,
    edek: &'a str,
}

#[derive(Deserialize)]
struct UnwrappedAnswer<'a> {
    dek: &'a str,
}

#[derive(Deserialize)]
struct BatchAnswer<'a> {
    #[serde(borrow)]
    keys: BTreeMap<&'a str, WrappedAnswer<'a>>,
    #[serde(borrow)]
    failures: BTreeMap<&'a str, IgnoredAny>,
}

impl Call {
    /// Wraps one new DEK for `tenant`.
    #[must_use]
    pub fn wrap(tenant: &str) -> Self {
        Self::new(Kind::Wrap, metadata(tenant), Expect::Wrapped)
    }

    /// Unwraps an EDEK of `tenant`'s.
    #[must_use]
    pub fn unwrap(tenant: &str, wrapped: &Wrapped) -> Self {
        let mut body = metadata(tenant);
        body.insert("encryptedDocumentKey".to_owned(), json!(wrapped.edek));
        Self::new(Kind::Unwrap, body, Expect::Dek(wrapped.dek.as_str().into()))
    }

    /// Wraps a batch of new DEKs for `tenant`.
    #[must_use]
    pub fn batch_wrap(tenant: &str) -> Self {
        let mut body = metadata(tenant);
        let ids: Vec<_> = (0..BATCH_ITEMS)
            .map(|item| format!("document-{item:04}"))
            .collect();
        body.insert("documentIds".to_owned(), json!(ids));
        Self::new(Kind::BatchWrap, body, Expect::Batch(BATCH_ITEMS))
    }

    /// Posts a security event of `tenant`'s.
    #[must_use]
    pub fn security_event(tenant: &str) -> Self {
        let mut body = metadata(tenant);
        body.insert("timestampMillis".to_owned(), json!(1_700_000_000_000_i64));
        if let Some(Value::Object(fields)) = body.get_mut("iclFields") {
            fields.insert("event".to_owned(), json!("USER_LOGIN"));
        }
        Self::new(Kind::SecurityEvent, body, Expect::Null)
    }

    fn new(kind: Kind, body: Map<String, Value>, expect: Expect) -> Self {
        let body = Value::Object(body).to_string().into();
        Self {
            kind,
            path: kind.path(),
            body,
            expect,
        }
    }

    /// Whether the body of a 200 is an answer to this request. Ids of a batch are counted, not compared.
    #[must_use]
    pub fn is_answered_by(&self, body: &[u8]) -> bool {
        match &self.expect {
            Expect::Wrapped => serde_json::from_slice(body).is_ok_and(|answer| is_wrapped(&answer)),
            Expect::Dek(dek) => serde_json::from_slice(body)
                .is_ok_and(|answer: UnwrappedAnswer<'_>| answer.dek == &**dek),
            Expect::Batch(items) => {
                serde_json::from_slice(body).is_ok_and(|answer: BatchAnswer<'_>| {
                    answer.keys.len() == *items
                        && answer.keys.values().all(is_wrapped)
                        && answer.failures.is_empty()
                })
            }
            Expect::Null => body == b"null",
        }
    }
}

fn is_wrapped(answer: &WrappedAnswer<'_>) -> bool {
    answer.dek.len() == DEK_BASE64_BYTES && !answer.edek.is_empty()
}

impl Wrapped {
    /// Reads the answer to a wrap whole: also the EDEK, down to its protobuf.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub fn from_answer(body: &[u8]) -> Result<Self, String> {
        let answer: WrappedAnswer<'_> =
            serde_json::from_slice(body).map_err(|why| format!("no answer to a wrap: {why}"))?;
        if !is_wrapped(&answer) {
            return Err("a wrap was answered with a DEK or EDEK of a wrong size".to_owned());
        }
        edek::parse(answer.edek).map_err(|why| why.to_string())?;
        Ok(Self {
            dek: answer.dek.to_owned(),
            edek: answer.edek.to_owned(),
        })
    }
}

/// The metadata that every request has, as an SDK with all fields set sends it.
fn metadata(tenant: &str) -> Map<String, Value> {
    let body = json!({
        "tenantId": tenant,
        "iclFields": {
            "requestingId": "load-generator",
            "dataLabel": "medical-record",
            "sourceIp": "192.0.2.17",
            "objectId": "record-0000004711",
            "requestId": "7d3f1c52-90a4-4f0e-8a55-0d7d1a2b3c4d",
        },
        "customFields": { "region": "eu-central", "service": "loadgen" },
    });
    if let Value::Object(members) = body {
        members
    } else {
        Map::new()
    }
}

impl Scenario {
    /// Whether it needs EDEKs from before.
    #[must_use]
    pub fn unwraps(self) -> bool {
        matches!(self, Self::Unwrap | Self::Mixed)
    }

    /// The requests, in the order in which they are sent again and again. `edeks` holds what was wrapped for each of
    /// `tenants` beforehand, [`EDEKS_PER_TENANT`] each, if [`Scenario::unwraps`].
    #[must_use]
    pub fn calls(self, tenants: &[String], edeks: &[Vec<Wrapped>]) -> Arc<[Call]> {
        let each = |call: fn(&str) -> Call| tenants.iter().map(|tenant| call(tenant)).collect();
        let unwraps = || {
            (0..EDEKS_PER_TENANT).flat_map(move |item| {
                let pairs = tenants.iter().zip(edeks);
                pairs.filter_map(move |(tenant, edeks)| {
                    edeks.get(item).map(|wrapped| Call::unwrap(tenant, wrapped))
                })
            })
        };
        match self {
            Self::Wrap => each(Call::wrap),
            Self::Unwrap => unwraps().collect(),
            Self::BatchWrap100 => each(Call::batch_wrap),
            Self::SecurityEvent => each(Call::security_event),
            Self::Mixed => mixed(tenants, &unwraps().collect::<Vec<_>>()),
        }
    }
}

/// One round of 100 requests per tenant, the rare ones spread evenly among the unwraps.
fn mixed(tenants: &[String], unwraps: &[Call]) -> Arc<[Call]> {
    let mut unwraps = unwraps.iter().cycle();
    let mut calls = Vec::with_capacity(100 * tenants.len());
    for place in 0..100 {
        for tenant in tenants {
            calls.extend(match place {
                50 => Some(Call::batch_wrap(tenant)),
                25 | 75 => Some(Call::security_event(tenant)),
                7 | 21 | 35 | 49 | 63 | 77 | 91 => Some(Call::wrap(tenant)),
                _ => unwraps.next().cloned(),
            });
        }
    }
    calls.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEK: &str = "r0QgDvzG+bVtsx0n3wEPmO/eUURXAdW5nASsbaIdmB8=";
    const EDEK: &str = "CkQKQExLVzFC1GHcTsaUu5xTCo64gXbPfnytck5kHVgAc3LVen9iLRnBlG9XFgaL8ntwr8g1WMZ0UOrD1qP3yd+4NXkQKQ==";

    fn tenants() -> Vec<String> {
        ["a", "b"].map(String::from).to_vec()
    }

    fn edeks() -> Vec<Vec<Wrapped>> {
        let one = Wrapped {
            dek: DEK.to_owned(),
            edek: EDEK.to_owned(),
        };
        vec![vec![one; EDEKS_PER_TENANT]; 2]
    }

    fn tenant_of(call: &Call) -> String {
        let body: Value = serde_json::from_slice(&call.body).unwrap();
        body["tenantId"].as_str().unwrap().to_owned()
    }

    #[test]
    fn tenants_take_turns_in_every_scenario() {
        for scenario in Scenario::value_variants() {
            let calls = scenario.calls(&tenants(), &edeks());
            assert!(!calls.is_empty(), "{scenario}");
            for pair in calls.chunks(2) {
                assert_eq!(
                    [tenant_of(&pair[0]), tenant_of(&pair[1])],
                    ["a", "b"],
                    "{scenario}"
                );
            }
        }
    }

    #[test]
    fn the_mix_is_what_its_description_says() {
        let calls = Scenario::Mixed.calls(&tenants(), &edeks());
        let count = |kind| calls.iter().filter(|call| call.kind == kind).count();
        assert_eq!(Kind::ALL.map(count), [14, 180, 2, 4]);
    }

    #[test]
    fn the_names_of_scenarios_are_those_of_the_command_line() {
        for scenario in Scenario::value_variants() {
            let name = scenario.to_possible_value().unwrap();
            assert_eq!(name.get_name(), scenario.to_string());
        }
    }

    #[test]
    fn only_the_right_answer_answers() {
        let wrap = Call::wrap("a");
        let wrapped = format!(r#"{{"dek":"{DEK}","edek":"{EDEK}"}}"#);
        assert!(wrap.is_answered_by(wrapped.as_bytes()));
        assert!(!wrap.is_answered_by(b"null"));
        assert!(!wrap.is_answered_by(br#"{"dek":"AAAA","edek":"AAAA"}"#));
        assert!(!wrap.is_answered_by(format!(r#"{{"dek":"{DEK}","edek":""}}"#).as_bytes()));

        let unwrap = Call::unwrap("a", &edeks()[0][0]);
        assert!(unwrap.is_answered_by(format!(r#"{{"dek":"{DEK}"}}"#).as_bytes()));
        assert!(
            !unwrap.is_answered_by(format!(r#"{{"dek":"{}"}}"#, DEK.to_lowercase()).as_bytes())
        );

        let event = Call::security_event("a");
        assert!(event.is_answered_by(b"null"));
        assert!(!event.is_answered_by(br#"{"code":301,"message":"full"}"#));
    }

    #[test]
    fn a_batch_is_answered_by_all_of_its_items() {
        let batch = Call::batch_wrap("a");
        let answer = |items: usize, failures: &str| {
            let keys: Vec<_> = (0..items)
                .map(|item| format!(r#""document-{item:04}":{{"dek":"{DEK}","edek":"{EDEK}"}}"#))
                .collect();
            format!(
                r#"{{"keys":{{{}}},"failures":{{{failures}}}}}"#,
                keys.join(",")
            )
        };
        assert!(batch.is_answered_by(answer(100, "").as_bytes()));
        assert!(!batch.is_answered_by(answer(99, "").as_bytes()));
        let failure = r#""document-0099":{"code":207,"message":"no"}"#;
        assert!(!batch.is_answered_by(answer(99, failure).as_bytes()));
    }

    #[test]
    fn an_edek_that_is_none_is_noticed() {
        let body = format!(r#"{{"dek":"{DEK}","edek":"AAAA"}}"#);
        assert!(Wrapped::from_answer(body.as_bytes()).is_err());
        let body = format!(r#"{{"dek":"{DEK}","edek":"{EDEK}"}}"#);
        assert_eq!(
            Wrapped::from_answer(body.as_bytes()),
            Ok(edeks()[0][0].clone())
        );
    }
}
