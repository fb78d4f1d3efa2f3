//! Answers, written by hand: their shape is fixed, and a serializer would not say how often it moves a secret.

use std::fmt;

use base64::{Engine as _, encoded_len, prelude::BASE64_STANDARD};
use zeroize::Zeroizing;

use crate::{Dek, TspCode, json};

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
    encoded_len(bytes.len(), true).unwrap_or(usize::MAX)
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
