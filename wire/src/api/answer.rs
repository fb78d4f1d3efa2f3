//! Answers, written by hand: their shape is fixed, and a serializer would not say how often it moves a secret.

mod derived;

use std::fmt;

use base64::{Engine as _, encoded_len, prelude::BASE64_STANDARD};
use zeroize::Zeroizing;

use crate::{Dek, TspCode, json};

pub use derived::{DeriveAnswer, Derived, DerivedPath};

/// The body that says "done" where there is nothing to tell: exactly these four bytes, which some clients compare.
pub const VOID: &[u8] = b"null";

/// Text for an error that was given none; clients drop the code of an error without a message.
const MESSAGE_DEFAULT: &str = "The request failed.";

/// First guess at the bytes of one item in a batch answer: an id of 36 characters, a DEK, an EDEK of a cloud KMS.
const BATCH_ITEM_BYTES: usize = 384;

/// Most bytes that a batch answer reserves by that guess, before it knows.
const BATCH_GUESS_BYTES_MAX: usize = 4 << 20;

/// JSON that holds secrets. Never reallocated while it does: where it must move, the old bytes are wiped. Wiped when
/// dropped. `bytes::Bytes::from_owner` takes it as it is.
pub struct SecretBuf(Zeroizing<Vec<u8>>);

impl SecretBuf {
    fn with_capacity(bytes: usize) -> Self {
        Self(Zeroizing::new(Vec::with_capacity(bytes)))
    }

    /// Makes sure that `additional` bytes fit, moving to a larger buffer and wiping this one if they do not.
    fn make_room(&mut self, additional: usize) {
        if self.0.capacity() - self.0.len() < additional {
            let needed = self.0.len().saturating_add(additional);
            let mut larger = Self::with_capacity(needed.max(self.0.capacity().saturating_mul(2)));
            larger.0.extend_from_slice(&self.0);
            *self = larger;
        }
    }

    fn push(&mut self, text: &[u8]) {
        self.make_room(text.len());
        self.0.extend_from_slice(text);
    }

    fn push_string(&mut self, text: &str) {
        self.make_room(json::string_bytes(text));
        json::push_string(&mut self.0, text);
    }

    fn push_base64(&mut self, bytes: &[u8]) {
        let start = self.0.len();
        let encoded = base64_bytes(bytes);
        self.make_room(encoded);
        self.0.resize(start + encoded, 0);
        let space = self.0.get_mut(start..).unwrap_or_default();
        let written = BASE64_STANDARD.encode_slice(bytes, space);
        debug_assert_eq!(
            written,
            Ok(encoded),
            "the space is exactly what base64 takes"
        );
    }
}

impl AsRef<[u8]> for SecretBuf {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBuf({} bytes, redacted)", self.0.len())
    }
}

/// Length of padded base64; `usize::MAX`, which no buffer has room for, if that overflows.
fn base64_bytes(bytes: &[u8]) -> usize {
    base64_bytes_of(bytes.len())
}

/// The same of so many bytes.
fn base64_bytes_of(bytes: usize) -> usize {
    encoded_len(bytes, true).unwrap_or(usize::MAX)
}

/// Bytes of `{"dek":"…","edek":"…"}` for an EDEK.
fn wrapped_bytes(edek: &[u8]) -> usize {
    br#"{"dek":"","edek":""}"#.len() + DEK_BASE64_BYTES + base64_bytes(edek)
}

/// A DEK in padded base64: 44 characters.
const DEK_BASE64_BYTES: usize = Dek::LEN.div_ceil(3) * 4;

fn push_wrapped(out: &mut SecretBuf, dek: &Dek, edek: &[u8]) {
    out.push(br#"{"dek":""#);
    out.push_base64(dek.expose());
    out.push(br#"","edek":""#);
    out.push_base64(edek);
    out.push(br#""}"#);
}

fn push_unwrapped(out: &mut SecretBuf, dek: &Dek) {
    out.push(br#"{"dek":""#);
    out.push_base64(dek.expose());
    out.push(br#""}"#);
}

/// The answer to a wrap or rekey: `{"dek":…,"edek":…}`, both in padded base64.
#[must_use]
pub fn wrapped(dek: &Dek, edek: &[u8]) -> SecretBuf {
    let capacity = wrapped_bytes(edek);
    let mut out = SecretBuf::with_capacity(capacity);
    push_wrapped(&mut out, dek, edek);
    debug_assert_eq!(out.0.len(), capacity, "computed up front");
    out
}

/// The answer to an unwrap: `{"dek":…}` in padded base64.
#[must_use]
pub fn unwrapped(dek: &Dek) -> SecretBuf {
    let capacity = br#"{"dek":""}"#.len() + DEK_BASE64_BYTES;
    let mut out = SecretBuf::with_capacity(capacity);
    push_unwrapped(&mut out, dek);
    debug_assert_eq!(out.0.len(), capacity, "computed up front");
    out
}

/// The answer to a batch, built item by item: `{"keys":{…},"failures":{…}}`, both always there.
///
/// Push every requested id exactly once, and no other: clients rely on it.
#[derive(Debug)]
pub struct BatchAnswer {
    /// The answer from its start to the end of the last key.
    keys: SecretBuf,
    /// The members of `failures`. No secrets.
    failures: Vec<u8>,
}

impl BatchAnswer {
    const START: &[u8] = br#"{"keys":{"#;
    const MIDDLE: &[u8] = br#"},"failures":{"#;
    const END: &[u8] = b"}}";

    /// An answer with room for about `items` items; it can take more.
    #[must_use]
    pub fn with_capacity(items: usize) -> Self {
        let guess = items
            .saturating_mul(BATCH_ITEM_BYTES)
            .min(BATCH_GUESS_BYTES_MAX);
        let mut keys = SecretBuf::with_capacity(Self::START.len() + guess + Self::MIDDLE.len());
        keys.push(Self::START);
        Self {
            keys,
            failures: Vec::new(),
        }
    }

    /// The item `id` of a batch wrap succeeded.
    pub fn push_wrapped(&mut self, id: &str, dek: &Dek, edek: &[u8]) {
        self.push_key_name(id, wrapped_bytes(edek));
        push_wrapped(&mut self.keys, dek, edek);
    }

    /// The item `id` of a batch unwrap succeeded.
    pub fn push_unwrapped(&mut self, id: &str, dek: &Dek) {
        self.push_key_name(id, br#"{"dek":""}"#.len() + DEK_BASE64_BYTES);
        push_unwrapped(&mut self.keys, dek);
    }

    /// The item `id` failed. The message is for the client.
    pub fn push_failure(&mut self, id: &str, code: TspCode, message: &str) {
        if !self.failures.is_empty() {
            self.failures.push(b',');
        }
        json::push_string(&mut self.failures, id);
        self.failures.push(b':');
        push_error(&mut self.failures, code, message);
    }

    /// The whole answer.
    #[must_use]
    pub fn finish(self) -> SecretBuf {
        let mut out = self.keys;
        out.make_room(Self::MIDDLE.len() + self.failures.len() + Self::END.len());
        out.push(Self::MIDDLE);
        out.push(&self.failures);
        out.push(Self::END);
        out
    }

    fn push_key_name(&mut self, id: &str, value_bytes: usize) {
        let first = self.keys.0.len() == Self::START.len();
        // At once, so that an item moves the buffer at most once.
        self.keys
            .make_room(json::string_bytes(id) + value_bytes + 2);
        if !first {
            self.keys.push(b",");
        }
        self.keys.push_string(id);
        self.keys.push(b":");
    }
}

fn push_error(out: &mut Vec<u8>, code: TspCode, message: &str) {
    let message = if message.is_empty() {
        MESSAGE_DEFAULT
    } else {
        message
    };
    out.extend_from_slice(br#"{"code":"#);
    out.extend_from_slice(code.number().to_string().as_bytes());
    out.extend_from_slice(br#","message":"#);
    json::push_string(out, message);
    out.push(b'}');
}

/// The body of every failure: `{"code":…,"message":…}`. The message is never empty and must name no secret.
#[must_use]
pub fn error(code: TspCode, message: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + 64);
    push_error(&mut out, code, message);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value as Json, json};

    use super::*;

    fn dek() -> Dek {
        Dek::from_slice(
            &BASE64_STANDARD
                .decode("r0QgDvzG+bVtsx0n3wEPmO/eUURXAdW5nASsbaIdmB8=")
                .unwrap(),
        )
        .unwrap()
    }

    fn text(answer: impl AsRef<[u8]>) -> String {
        String::from_utf8(answer.as_ref().to_vec()).unwrap()
    }

    fn parsed(answer: impl AsRef<[u8]>) -> Json {
        serde_json::from_slice(answer.as_ref()).unwrap()
    }

    #[test]
    fn a_wrap_is_answered_with_dek_and_edek() {
        let edek = "CkQKQExLVzFC1GHcTsaUu5xTCo64gXbPfnytck5kHVgAc3LVen9iLRnBlG9XFgaL8ntwr8g1WMZ0UOrD1qP3yd+4NXkQKQ==";
        let answer = wrapped(&dek(), &BASE64_STANDARD.decode(edek).unwrap());
        assert_eq!(
            text(answer),
            format!(r#"{{"dek":"r0QgDvzG+bVtsx0n3wEPmO/eUURXAdW5nASsbaIdmB8=","edek":"{edek}"}}"#)
        );
    }

    #[test]
    fn an_unwrap_is_answered_with_the_dek_only() {
        let answer = unwrapped(&dek());
        assert_eq!(
            text(answer),
            r#"{"dek":"r0QgDvzG+bVtsx0n3wEPmO/eUURXAdW5nASsbaIdmB8="}"#
        );
    }

    #[test]
    fn an_answer_with_a_key_has_exactly_the_size_that_was_computed() {
        let unwrapped = unwrapped(&dek());
        assert_eq!(unwrapped.0.capacity(), unwrapped.0.len());
        for edek_bytes in 0..600 {
            let wrapped = wrapped(&dek(), &vec![7; edek_bytes]);
            assert_eq!(wrapped.0.capacity(), wrapped.0.len());
        }
    }

    #[test]
    fn a_buffer_can_own_the_bytes_of_an_http_body() {
        fn owner<T: AsRef<[u8]> + Send + 'static>(owner: T) -> T {
            owner
        }
        assert_eq!(owner(unwrapped(&dek())).as_ref().len(), 54);
    }

    #[test]
    fn a_full_buffer_moves_whole() {
        let mut out = SecretBuf::with_capacity(3);
        for piece in ["abc", "", "d", "e\"", "fghijklmnopqrstuvwxyz"] {
            out.push(piece.as_bytes());
        }
        out.push_string("\u{1}\"");
        out.push_base64(b"xyz");
        assert_eq!(text(&out), r#"abcde"fghijklmnopqrstuvwxyz"\u0001\""eHl6"#);
    }

    #[test]
    fn a_buffer_does_not_print_what_it_holds() {
        assert_eq!(
            format!("{:?}", unwrapped(&dek())),
            "SecretBuf(54 bytes, redacted)"
        );
        let mut batch = BatchAnswer::with_capacity(1);
        batch.push_unwrapped("a", &dek());
        assert!(!format!("{batch:?}").contains("r0Qg"));
    }

    #[test]
    fn an_empty_batch_has_both_objects() {
        assert_eq!(
            text(BatchAnswer::with_capacity(0).finish()),
            r#"{"keys":{},"failures":{}}"#
        );
    }

    #[test]
    fn a_batch_tells_keys_from_failures_and_keeps_their_order() {
        let mut answer = BatchAnswer::with_capacity(3);
        answer.push_unwrapped("good", &dek());
        answer.push_failure("bad", TspCode::InvalidProvidedEdek, "no \"EDEK\"");
        answer.push_wrapped("a/ü\n", &dek(), b"\xff\xff\xff");
        answer.push_failure("", TspCode::KmsThrottled, "");
        assert_eq!(
            text(answer.finish()),
            concat!(
                r#"{"keys":{"good":{"dek":"r0QgDvzG+bVtsx0n3wEPmO/eUURXAdW5nASsbaIdmB8="},"#,
                r#""a/ü\n":{"dek":"r0QgDvzG+bVtsx0n3wEPmO/eUURXAdW5nASsbaIdmB8=","edek":"////"}},"#,
                r#""failures":{"bad":{"code":203,"message":"no \"EDEK\""},"#,
                r#""":{"code":209,"message":"The request failed."}}}"#
            )
        );
    }

    #[test]
    fn an_error_names_code_and_message() {
        assert_eq!(
            text(error(
                TspCode::Unauthorized,
                "API key missing or not recognized."
            )),
            r#"{"code":101,"message":"API key missing or not recognized."}"#
        );
        assert_eq!(
            text(error(TspCode::UnknownError, "")),
            r#"{"code":100,"message":"The request failed."}"#
        );
    }

    /// What a batch item becomes.
    #[derive(Clone, Debug)]
    enum Outcome {
        Wrapped(Vec<u8>),
        Unwrapped,
        Failed(String),
    }

    proptest! {
        #[test]
        fn every_id_of_a_batch_is_in_exactly_one_object_as_it_was(
            items in prop::collection::hash_map(
                any::<String>(),
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..500).prop_map(Outcome::Wrapped),
                    Just(Outcome::Unwrapped),
                    any::<String>().prop_map(Outcome::Failed),
                ],
                0..20,
            ),
            capacity in 0..30_usize,
        ) {
            let mut answer = BatchAnswer::with_capacity(capacity);
            let (mut keys, mut failures) = (Map::new(), Map::new());
            let dek_text = BASE64_STANDARD.encode(dek().expose());
            for (id, outcome) in items {
                match outcome {
                    Outcome::Wrapped(edek) => {
                        answer.push_wrapped(&id, &dek(), &edek);
                        keys.insert(id, json!({"dek": dek_text, "edek": BASE64_STANDARD.encode(edek)}));
                    }
                    Outcome::Unwrapped => {
                        answer.push_unwrapped(&id, &dek());
                        keys.insert(id, json!({"dek": dek_text}));
                    }
                    Outcome::Failed(message) => {
                        answer.push_failure(&id, TspCode::KmsUnreachable, &message);
                        let message = if message.is_empty() { MESSAGE_DEFAULT } else { &message };
                        failures.insert(id, json!({"code": 208, "message": message}));
                    }
                }
            }
            prop_assert_eq!(parsed(answer.finish()), json!({"keys": keys, "failures": failures}));
        }

        #[test]
        fn an_error_has_nothing_but_code_and_message(message: String) {
            for code in TspCode::ALL {
                let answer = parsed(error(code, &message));
                let shown = if message.is_empty() { MESSAGE_DEFAULT } else { &message };
                prop_assert_eq!(answer, json!({"code": code.number(), "message": shown}));
            }
        }
    }
}
