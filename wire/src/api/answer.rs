//! Answers, written by hand: their shape is fixed, and a serializer would not say how often it moves a secret.

mod derived;

use std::fmt;

use base64::{Engine as _, encoded_len};
use zeroize::{Zeroize as _, Zeroizing};

use crate::{Dek, TspCode, base64::BASE64, json};

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

    /// An answer in memory that has been used before.
    fn in_memory(mut memory: Vec<u8>) -> Self {
        memory.clear();
        Self(Zeroizing::new(memory))
    }

    /// Wipes the answer and gives its memory for another one; this one is empty then.
    #[must_use]
    pub fn take_wiped(&mut self) -> Vec<u8> {
        // Nothing was ever removed from it, so nothing lies beyond its end.
        self.0.as_mut_slice().zeroize();
        self.0.clear();
        std::mem::take(&mut self.0)
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

    /// Has `write` append up to `bytes` bytes, for which it makes room at once.
    fn append(&mut self, bytes: usize, write: impl FnOnce(&mut Vec<u8>)) {
        self.make_room(bytes);
        let room = self.0.capacity();
        write(&mut self.0);
        debug_assert_eq!(self.0.capacity(), room, "{bytes} bytes were promised");
    }

    fn push(&mut self, text: &[u8]) {
        self.append(text.len(), |out| out.extend_from_slice(text));
    }

    fn push_string(&mut self, text: &str) {
        self.append(json::string_bytes(text), |out| json::push_string(out, text));
    }

    fn push_base64(&mut self, bytes: &[u8]) {
        self.append(base64_bytes(bytes), |out| push_base64(out, bytes));
    }
}

fn push_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    let start = out.len();
    let encoded = base64_bytes(bytes);
    out.resize(start + encoded, 0);
    let space = out.get_mut(start..).unwrap_or_default();
    let written = BASE64.encode_slice(bytes, space);
    debug_assert_eq!(
        written,
        Ok(encoded),
        "the space is exactly what base64 takes"
    );
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

fn push_wrapped(out: &mut Vec<u8>, dek: &Dek, edek: &[u8]) {
    out.extend_from_slice(br#"{"dek":""#);
    push_base64(out, dek.expose());
    out.extend_from_slice(br#"","edek":""#);
    push_base64(out, edek);
    out.extend_from_slice(br#""}"#);
}

/// Bytes of `{"dek":"…"}`.
const UNWRAPPED_BYTES: usize = br#"{"dek":""}"#.len() + DEK_BASE64_BYTES;

fn push_unwrapped(out: &mut Vec<u8>, dek: &Dek) {
    out.extend_from_slice(br#"{"dek":""#);
    push_base64(out, dek.expose());
    out.extend_from_slice(br#""}"#);
}

/// The answer to a wrap or rekey: `{"dek":…,"edek":…}`, both in padded base64. Uses `memory` if it is large enough; what it
/// held is gone.
#[must_use]
pub fn wrapped(memory: Vec<u8>, dek: &Dek, edek: &[u8]) -> SecretBuf {
    let mut out = SecretBuf::in_memory(memory);
    out.append(wrapped_bytes(edek), |out| push_wrapped(out, dek, edek));
    out
}

/// The answer to an unwrap: `{"dek":…}` in padded base64. Uses `memory` as [`wrapped`] does.
#[must_use]
pub fn unwrapped(memory: Vec<u8>, dek: &Dek) -> SecretBuf {
    let mut out = SecretBuf::in_memory(memory);
    out.append(UNWRAPPED_BYTES, |out| push_unwrapped(out, dek));
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
        self.push_key(id, wrapped_bytes(edek), |out| push_wrapped(out, dek, edek));
    }

    /// The item `id` of a batch unwrap succeeded.
    pub fn push_unwrapped(&mut self, id: &str, dek: &Dek) {
        self.push_key(id, UNWRAPPED_BYTES, |out| push_unwrapped(out, dek));
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

    /// Makes room for all of an item at once, so that it moves the buffer at most once.
    fn push_key(&mut self, id: &str, value_bytes: usize, value: impl FnOnce(&mut Vec<u8>)) {
        let first = self.keys.0.len() == Self::START.len();
        let bytes = json::string_bytes(id) + value_bytes + 2;
        self.keys.append(bytes, |out| {
            if !first {
                out.push(b',');
            }
            json::push_string(out, id);
            out.push(b':');
            value(out);
        });
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
    use base64::prelude::BASE64_STANDARD;
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
        let answer = wrapped(Vec::new(), &dek(), &BASE64_STANDARD.decode(edek).unwrap());
        assert_eq!(
            text(answer),
            format!(r#"{{"dek":"r0QgDvzG+bVtsx0n3wEPmO/eUURXAdW5nASsbaIdmB8=","edek":"{edek}"}}"#)
        );
    }

    #[test]
    fn an_unwrap_is_answered_with_the_dek_only() {
        let answer = unwrapped(Vec::new(), &dek());
        assert_eq!(
            text(answer),
            r#"{"dek":"r0QgDvzG+bVtsx0n3wEPmO/eUURXAdW5nASsbaIdmB8="}"#
        );
    }

    #[test]
    fn an_answer_with_a_key_has_exactly_the_size_that_was_computed() {
        let unwrapped = unwrapped(Vec::new(), &dek());
        assert_eq!(unwrapped.0.capacity(), unwrapped.0.len());
        for edek_bytes in 0..600 {
            let wrapped = wrapped(Vec::new(), &dek(), &vec![7; edek_bytes]);
            assert_eq!(wrapped.0.capacity(), wrapped.0.len());
        }
    }

    #[test]
    fn a_buffer_can_own_the_bytes_of_an_http_body() {
        fn owner<T: AsRef<[u8]> + Send + 'static>(owner: T) -> T {
            owner
        }
        assert_eq!(owner(unwrapped(Vec::new(), &dek())).as_ref().len(), 54);
    }

    #[test]
    fn memory_is_wiped_before_it_is_used_again() {
        let mut answer = unwrapped(Vec::new(), &dek());
        let (place, length) = (answer.0.as_ptr(), answer.0.len());
        let mut memory = answer.take_wiped();
        assert!(memory.is_empty() && answer.as_ref().is_empty());
        memory.resize(length, 1);
        assert_eq!(memory.as_ptr(), place);
        let again = unwrapped(memory, &dek());
        assert_eq!(again.0.as_ptr(), place);
        assert_eq!(text(again), text(unwrapped(Vec::new(), &dek())));
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
            format!("{:?}", unwrapped(Vec::new(), &dek())),
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
