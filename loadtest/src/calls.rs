//! Requests to the proxy, ready to be sent, and the answer that each must get.
//!
//! Bodies are made once, before the measurement, so that the generator spends its time on the wire. They look like those
//! of the published SDKs: about 300 bytes of metadata around what is asked.

use std::{collections::BTreeMap, fmt};

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::{Map, Value, json};
use tsp_wire::edek;

/// Length of a DEK of 32 bytes in padded base64.
const DEK_BASE64_BYTES: usize = 44;

/// Length of a derived key of 64 bytes in padded base64.
const DERIVED_BASE64_BYTES: usize = 88;

/// The kinds of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// `document/wrap`.
    Wrap,
    /// `document/unwrap`.
    Unwrap,
    /// `document/batch-wrap`.
    BatchWrap,
    /// `document/batch-unwrap`.
    BatchUnwrap,
    /// `document/rekey`, from one tenant to another.
    Rekey,
    /// `key/derive-with-secret-path`, one path.
    Derive,
    /// `event/security-event`.
    SecurityEvent,
}

impl Kind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::Wrap,
        Self::Unwrap,
        Self::BatchWrap,
        Self::BatchUnwrap,
        Self::Rekey,
        Self::Derive,
        Self::SecurityEvent,
    ];

    /// Its name in mixes and in reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wrap => "wrap",
            Self::Unwrap => "unwrap",
            Self::BatchWrap => "batch-wrap",
            Self::BatchUnwrap => "batch-unwrap",
            Self::Rekey => "rekey",
            Self::Derive => "derive",
            Self::SecurityEvent => "security-event",
        }
    }

    /// Whether it needs EDEKs from before.
    #[must_use]
    pub fn needs_edeks(self) -> bool {
        matches!(self, Self::Unwrap | Self::BatchUnwrap | Self::Rekey)
    }

    /// Keys in an answer, if a batch has `batch_items` items.
    #[must_use]
    pub fn keys(self, batch_items: usize) -> usize {
        match self {
            Self::Wrap | Self::Unwrap | Self::Rekey | Self::Derive => 1,
            Self::BatchWrap | Self::BatchUnwrap => batch_items,
            Self::SecurityEvent => 0,
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Wrap => "/api/1/document/wrap",
            Self::Unwrap => "/api/1/document/unwrap",
            Self::BatchWrap => "/api/1/document/batch-wrap",
            Self::BatchUnwrap => "/api/1/document/batch-unwrap",
            Self::Rekey => "/api/1/document/rekey",
            Self::Derive => "/api/1/key/derive-with-secret-path",
            Self::SecurityEvent => "/api/1/event/security-event",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
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
    /// This DEK, and an EDEK.
    Rewrapped(Box<str>),
    /// So many new keys, no failure.
    Batch(usize),
    /// These DEKs, in the order of their ids, no failure.
    Deks(Box<[Box<str>]>),
    /// One derived key.
    Derived,
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
#[serde(bound(deserialize = "K: Deserialize<'de>"))]
struct BatchAnswer<'a, K> {
    #[serde(borrow)]
    keys: BTreeMap<&'a str, K>,
    #[serde(borrow)]
    failures: BTreeMap<&'a str, IgnoredAny>,
}

#[derive(Deserialize)]
struct DerivedAnswer<'a> {
    #[serde(rename = "derivedKeys", borrow)]
    secret_paths: BTreeMap<&'a str, BTreeMap<&'a str, Vec<DerivedKey<'a>>>>,
}

#[derive(Deserialize)]
struct DerivedKey<'a> {
    #[serde(rename = "derivedKey")]
    key: &'a str,
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

    /// Wraps a batch of `items` new DEKs for `tenant`.
    #[must_use]
    pub fn batch_wrap(tenant: &str, items: usize) -> Self {
        let mut body = metadata(tenant);
        let ids: Vec<_> = (0..items).map(item_id).collect();
        body.insert("documentIds".to_owned(), json!(ids));
        Self::new(Kind::BatchWrap, body, Expect::Batch(items))
    }

    /// Unwraps a batch of `items` EDEKs of `tenant`'s, which are those of `wrapped` again and again.
    #[must_use]
    pub fn batch_unwrap(tenant: &str, wrapped: &[Wrapped], items: usize) -> Self {
        let mut body = metadata(tenant);
        let chosen = || wrapped.iter().cycle().take(items);
        let edeks = chosen()
            .enumerate()
            .map(|(item, wrapped)| (item_id(item), json!(wrapped.edek)));
        body.insert("edeks".to_owned(), Value::Object(edeks.collect()));
        let deks = chosen().map(|wrapped| wrapped.dek.as_str().into());
        Self::new(Kind::BatchUnwrap, body, Expect::Deks(deks.collect()))
    }

    /// Unwraps an EDEK of `tenant`'s and wraps its DEK for `new_tenant`.
    #[must_use]
    pub fn rekey(tenant: &str, wrapped: &Wrapped, new_tenant: &str) -> Self {
        let mut body = metadata(tenant);
        body.insert("encryptedDocumentKey".to_owned(), json!(wrapped.edek));
        body.insert("newTenantId".to_owned(), json!(new_tenant));
        let dek = wrapped.dek.as_str().into();
        Self::new(Kind::Rekey, body, Expect::Rewrapped(dek))
    }

    /// Derives one key from a secret of `tenant`'s, which the first such request makes.
    #[must_use]
    pub fn derive(tenant: &str) -> Self {
        let mut body = metadata(tenant);
        body.insert("derivationType".to_owned(), json!("sha512"));
        body.insert("secretType".to_owned(), json!("deterministic"));
        body.insert("paths".to_owned(), json!({ "patients": ["patients.name"] }));
        Self::new(Kind::Derive, body, Expect::Derived)
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
            Expect::Rewrapped(dek) => serde_json::from_slice(body)
                .is_ok_and(|answer: WrappedAnswer<'_>| answer.dek == &**dek && is_wrapped(&answer)),
            Expect::Batch(items) => serde_json::from_slice(body).is_ok_and(
                |answer: BatchAnswer<'_, WrappedAnswer<'_>>| {
                    answer.keys.len() == *items
                        && answer.keys.values().all(is_wrapped)
                        && answer.failures.is_empty()
                },
            ),
            Expect::Deks(deks) => serde_json::from_slice(body).is_ok_and(
                |answer: BatchAnswer<'_, UnwrappedAnswer<'_>>| {
                    let answered = answer.keys.values().map(|key| key.dek);
                    answered.eq(deks.iter().map(|dek| &**dek)) && answer.failures.is_empty()
                },
            ),
            Expect::Derived => {
                serde_json::from_slice(body).is_ok_and(|answer: DerivedAnswer<'_>| {
                    let mut keys = answer.secret_paths.values().flat_map(BTreeMap::values);
                    keys.any(|keys| {
                        keys.first()
                            .is_some_and(|first| first.key.len() == DERIVED_BASE64_BYTES)
                    })
                })
            }
            Expect::Null => body == b"null",
        }
    }
}

/// Ids of a batch, of which the order of the texts is that of the numbers.
fn item_id(item: usize) -> String {
    format!("document-{item:05}")
}

fn is_wrapped(answer: &WrappedAnswer<'_>) -> bool {
    answer.dek.len() == DEK_BASE64_BYTES && !answer.edek.is_empty()
}

impl Wrapped {
    /// Reads the answer to a batch wrap whole: also the EDEKs, down to their protobuf. In the order of the ids.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub fn from_batch_answer(body: &[u8]) -> Result<Vec<Self>, String> {
        let answer: BatchAnswer<'_, WrappedAnswer<'_>> = serde_json::from_slice(body)
            .map_err(|why| format!("no answer to a batch wrap: {why}"))?;
        answer.keys.values().map(Self::check).collect()
    }

    fn check(answer: &WrappedAnswer<'_>) -> Result<Self, String> {
        if !is_wrapped(answer) {
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

#[cfg(test)]
mod tests {
    use super::*;

    const DEK: &str = "r0QgDvzG+bVtsx0n3wEPmO/eUURXAdW5nASsbaIdmB8=";
    const EDEK: &str = "CkQKQExLVzFC1GHcTsaUu5xTCo64gXbPfnytck5kHVgAc3LVen9iLRnBlG9XFgaL8ntwr8g1WMZ0UOrD1qP3yd+4NXkQKQ==";

    fn wrapped() -> Wrapped {
        Wrapped {
            dek: DEK.to_owned(),
            edek: EDEK.to_owned(),
        }
    }

    #[test]
    fn only_the_right_answer_answers() {
        let wrap = Call::wrap("a");
        let answer = format!(r#"{{"dek":"{DEK}","edek":"{EDEK}"}}"#);
        assert!(wrap.is_answered_by(answer.as_bytes()));
        assert!(!wrap.is_answered_by(b"null"));
        assert!(!wrap.is_answered_by(br#"{"dek":"AAAA","edek":"AAAA"}"#));
        assert!(!wrap.is_answered_by(format!(r#"{{"dek":"{DEK}","edek":""}}"#).as_bytes()));

        let unwrap = Call::unwrap("a", &wrapped());
        assert!(unwrap.is_answered_by(format!(r#"{{"dek":"{DEK}"}}"#).as_bytes()));
        assert!(
            !unwrap.is_answered_by(format!(r#"{{"dek":"{}"}}"#, DEK.to_lowercase()).as_bytes())
        );

        let event = Call::security_event("a");
        assert!(event.is_answered_by(b"null"));
        assert!(!event.is_answered_by(br#"{"code":301,"message":"full"}"#));
    }

    fn batch_answer(items: usize, key: &str, failures: &str) -> String {
        let keys: Vec<_> = (0..items)
            .map(|item| format!(r#""{}":{key}"#, item_id(item)))
            .collect();
        format!(
            r#"{{"keys":{{{}}},"failures":{{{failures}}}}}"#,
            keys.join(",")
        )
    }

    #[test]
    fn a_batch_is_answered_by_all_of_its_items() {
        let wrapped = format!(r#"{{"dek":"{DEK}","edek":"{EDEK}"}}"#);
        let unwrapped = format!(r#"{{"dek":"{DEK}"}}"#);
        let calls = [
            (Call::batch_wrap("a", 100), wrapped),
            (Call::batch_unwrap("a", &[self::wrapped()], 100), unwrapped),
        ];
        for (call, key) in calls {
            let answers = |items, failures| {
                call.is_answered_by(batch_answer(items, &key, failures).as_bytes())
            };
            assert!(answers(100, ""));
            assert!(!answers(99, ""));
            assert!(!answers(
                99,
                r#""document-00099":{"code":207,"message":"no"}"#
            ));
        }
        let another = format!(r#"{{"dek":"{}"}}"#, DEK.to_lowercase());
        let call = Call::batch_unwrap("a", &[self::wrapped()], 3);
        assert!(!call.is_answered_by(batch_answer(3, &another, "").as_bytes()));
    }

    #[test]
    fn a_rekey_keeps_the_dek() {
        let rekey = Call::rekey("a", &wrapped(), "b");
        let answer = |dek: &str| format!(r#"{{"dek":"{dek}","edek":"{EDEK}"}}"#);
        assert!(rekey.is_answered_by(answer(DEK).as_bytes()));
        assert!(!rekey.is_answered_by(answer(&DEK.to_lowercase()).as_bytes()));
    }

    #[test]
    fn a_derivation_is_answered_by_a_key() {
        let derive = Call::derive("a");
        let answer = |keys: &str| {
            format!(
                r#"{{"hasPrimaryConfig":true,"derivedKeys":{{"patients":{{"patients.name":[{keys}]}}}}}}"#
            )
        };
        let key = "A".repeat(DERIVED_BASE64_BYTES);
        let key = format!(r#"{{"derivedKey":"{key}","tenantSecretId":1,"current":true}}"#);
        assert!(derive.is_answered_by(answer(&key).as_bytes()));
        assert!(!derive.is_answered_by(answer("").as_bytes()));
    }

    #[test]
    fn an_edek_that_is_none_is_noticed() {
        let answer =
            |edek: &str| batch_answer(1, &format!(r#"{{"dek":"{DEK}","edek":"{edek}"}}"#), "");
        assert!(Wrapped::from_batch_answer(answer("AAAA").as_bytes()).is_err());
        assert_eq!(
            Wrapped::from_batch_answer(answer(EDEK).as_bytes()),
            Ok(vec![wrapped()])
        );
    }
}
