//! The answer to a derivation, of which every size is known before its first byte is written.

use super::{SecretBuf, base64_bytes_of};
use crate::{
    TenantSecretId,
    derive::{DerivationType, DerivedKey},
    json,
};

/// A secret that keys are derived from, as the answer names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Derived {
    /// The secret's number.
    pub secret: TenantSecretId,
    /// Whether it is the current one, and not one in rotation.
    pub current: bool,
}

impl Derived {
    /// Bytes of one entry of a list: `{"derivedKey":"…","tenantSecretId":…,"current":…}`.
    fn bytes(self, derivation: DerivationType) -> usize {
        Self::START.len()
            + base64_bytes_of(derivation.key_bytes())
            + Self::SECRET.len()
            + digits(self.secret.number())
            + self.end().len()
    }

    const START: &[u8] = br#"{"derivedKey":""#;
    const SECRET: &[u8] = br#"","tenantSecretId":"#;

    fn end(self) -> &'static [u8] {
        if self.current {
            br#","current":true}"#
        } else {
            br#","current":false}"#
        }
    }
}

/// One secret path of an answer: what was asked for, and which secrets answer it.
#[derive(Clone, Copy, Debug)]
pub struct DerivedPath<'a> {
    /// The path that chooses the secrets. Each stands in an answer once.
    pub secret_path: &'a str,
    /// The paths to derive for, each once.
    pub derivation_paths: &'a [&'a str],
    /// The secrets: the current one first, then the one in rotation. None, if the tenant has none here.
    pub secrets: &'a [Derived],
}

impl DerivedPath<'_> {
    /// Bytes of `"<secret path>":{"<derivation path>":[…],…}`.
    fn bytes(&self, derivation: DerivationType) -> usize {
        let entries: usize = self.secrets.iter().map(|one| one.bytes(derivation)).sum();
        let list = b"[]".len() + entries + commas(self.secrets.len());
        let pairs: usize = self
            .derivation_paths
            .iter()
            .map(|path| json::string_bytes(path) + b":".len() + list)
            .sum();
        json::string_bytes(self.secret_path)
            + b":{}".len()
            + pairs
            + commas(self.derivation_paths.len())
    }
}

/// The answer to a derivation: `{"hasPrimaryConfig":…,"derivedKeys":{…}}`, written pair by pair.
///
/// Push every derivation path of every secret path, in the order that the answer was made with: the buffer has room for
/// exactly those.
#[derive(Debug)]
pub struct DeriveAnswer {
    out: SecretBuf,
    derivation: DerivationType,
    first_path: bool,
    first_pair: bool,
}

impl DeriveAnswer {
    const START: &[u8] = br#"{"hasPrimaryConfig":"#;
    const KEYS: &[u8] = br#","derivedKeys":{"#;
    const END: &[u8] = b"}}";

    /// An answer with room for exactly `paths`.
    #[must_use]
    pub fn new<'a>(
        has_primary_config: bool,
        derivation: DerivationType,
        paths: impl Iterator<Item = DerivedPath<'a>>,
    ) -> Self {
        let primary: &[u8] = if has_primary_config {
            b"true"
        } else {
            b"false"
        };
        let head = Self::START.len() + primary.len() + Self::KEYS.len();
        let (count, bytes) = paths.fold((0, 0_usize), |(count, bytes), path| {
            (count + 1, bytes.saturating_add(path.bytes(derivation)))
        });
        let mut out = SecretBuf::with_capacity(head + bytes + commas(count) + Self::END.len());
        out.push(Self::START);
        out.push(primary);
        out.push(Self::KEYS);
        Self {
            out,
            derivation,
            first_path: true,
            first_pair: true,
        }
    }

    /// Goes on to the next secret path.
    pub fn begin_path(&mut self, secret_path: &str) {
        if !self.first_path {
            self.out.push(b"},");
        }
        self.first_path = false;
        self.first_pair = true;
        self.out.push_string(secret_path);
        self.out.push(b":{");
    }

    /// Writes one pair: the key that `derive` makes of each of the path's secrets, given their positions.
    pub fn push_pair(
        &mut self,
        derivation_path: &str,
        secrets: &[Derived],
        derive: impl Fn(usize) -> Option<DerivedKey>,
    ) {
        if !self.first_pair {
            self.out.push(b",");
        }
        self.first_pair = false;
        self.out.push_string(derivation_path);
        self.out.push(b":[");
        for (position, derived) in secrets.iter().enumerate() {
            if position > 0 {
                self.out.push(b",");
            }
            self.out.push(Derived::START);
            if let Some(key) = derive(position) {
                debug_assert_eq!(key.expose().len(), self.derivation.key_bytes());
                self.out.push_base64(key.expose());
            }
            self.out.push(Derived::SECRET);
            self.out.push(derived.secret.to_string().as_bytes());
            self.out.push(derived.end());
        }
        self.out.push(b"]");
    }

    /// The whole answer.
    #[must_use]
    pub fn finish(self) -> SecretBuf {
        let mut out = self.out;
        if !self.first_path {
            out.push(b"}");
        }
        out.push(Self::END);
        debug_assert_eq!(out.0.len(), out.0.capacity(), "computed up front");
        out
    }
}

/// The commas between so many items.
fn commas(items: usize) -> usize {
    items.saturating_sub(1)
}

/// Decimal digits of a number.
fn digits(number: u32) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value as Json, json};

    use super::*;
    use crate::{Dek, derive::Deriver};

    fn secret(number: u32, current: bool) -> Derived {
        Derived {
            secret: TenantSecretId::new(number.into()).unwrap(),
            current,
        }
    }

    fn deriver(number: u32, derivation: DerivationType) -> Deriver {
        let secret = Dek::fill_with(|bytes| {
            bytes.fill(7);
            bytes[..4].copy_from_slice(&number.to_be_bytes());
        });
        Deriver::new(&secret, "acme", derivation)
    }

    fn written(
        has_primary: bool,
        derivation: DerivationType,
        paths: &[(String, Vec<String>, Vec<Derived>)],
    ) -> SecretBuf {
        let names: Vec<Vec<&str>> = paths
            .iter()
            .map(|(_, names, _)| names.iter().map(String::as_str).collect())
            .collect();
        let sizes = paths
            .iter()
            .zip(&names)
            .map(|((secret_path, _, secrets), names)| DerivedPath {
                secret_path,
                derivation_paths: names,
                secrets,
            });
        let mut answer = DeriveAnswer::new(has_primary, derivation, sizes);
        for (secret_path, names, secrets) in paths {
            answer.begin_path(secret_path);
            for name in names {
                answer.push_pair(name, secrets, |position| {
                    Some(deriver(secrets[position].secret.number(), derivation).derive(name))
                });
            }
        }
        answer.finish()
    }

    #[test]
    fn digits_are_counted() {
        for (number, count) in [(0, 1), (9, 1), (10, 2), (4_294_967_295, 10)] {
            assert_eq!(digits(number), count, "{number}");
        }
    }

    #[test]
    fn nothing_asked_for_is_answered_with_an_object() {
        let answer = written(false, DerivationType::Sha512, &[]);
        assert_eq!(
            answer.as_ref(),
            br#"{"hasPrimaryConfig":false,"derivedKeys":{}}"#
        );
        let nothing = [
            ("p".to_owned(), vec![], vec![]),
            (String::new(), vec!["d".to_owned()], vec![]),
        ];
        assert_eq!(
            written(true, DerivationType::Sha512, &nothing).as_ref(),
            br#"{"hasPrimaryConfig":true,"derivedKeys":{"p":{},"":{"d":[]}}}"#
        );
    }

    #[test]
    fn an_answer_prints_no_key() {
        let paths = [("p".to_owned(), vec!["d".to_owned()], vec![secret(1, true)])];
        let printed = format!("{:?}", written(true, DerivationType::Sha512, &paths));
        assert!(printed.ends_with("bytes, redacted)"), "{printed}");
    }

    proptest! {
        #[test]
        fn every_pair_is_there_and_the_buffer_never_moves(
            has_primary: bool,
            sha512: bool,
            paths in prop::collection::btree_map(
                any::<String>(),
                (
                    prop::collection::btree_set(any::<String>(), 0..5),
                    prop::collection::vec((1..=u32::MAX, any::<bool>()), 0..3),
                ),
                0..5,
            ),
        ) {
            let derivation = if sha512 { DerivationType::Sha512 } else { DerivationType::Sha256 };
            let paths: Vec<(String, Vec<String>, Vec<Derived>)> = paths
                .into_iter()
                .map(|(path, (names, secrets))| (
                    path,
                    names.into_iter().collect(),
                    secrets.into_iter().map(|(number, current)| secret(number, current)).collect(),
                ))
                .collect();
            let answer = written(has_primary, derivation, &paths);
            prop_assert_eq!(answer.0.capacity(), answer.0.len());
            let mut expected = Map::new();
            for (path, names, secrets) in &paths {
                let mut pairs = Map::new();
                for name in names {
                    let list: Vec<Json> = secrets.iter().map(|one| {
                        let number = one.secret.number();
                        let key = deriver(number, derivation).derive(name);
                        json!({
                            "derivedKey": ::base64::Engine::encode(&::base64::prelude::BASE64_STANDARD, key.expose()),
                            "tenantSecretId": number,
                            "current": one.current,
                        })
                    }).collect();
                    pairs.insert(name.clone(), list.into());
                }
                expected.insert(path.clone(), pairs.into());
            }
            let parsed: Json = serde_json::from_slice(answer.as_ref()).unwrap();
            prop_assert_eq!(parsed, json!({"hasPrimaryConfig": has_primary, "derivedKeys": expected}));
        }
    }
}
