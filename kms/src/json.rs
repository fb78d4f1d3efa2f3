//! JSON with secrets in it: written into one buffer of the right size, and read where it lies.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD as BASE64URL},
};
use serde_json::value::RawValue;
use tsp_wire::Secret;
use zeroize::Zeroizing;

/// A member's value in a request body.
#[derive(Clone, Copy)]
pub(crate) enum Member<'a> {
    /// JSON as it is.
    Json(&'a str),
    /// Bytes, to be spelt in standard base64 with padding.
    Base64(&'a [u8]),
    /// Bytes, to be spelt in base64url without padding.
    Base64Url(&'a [u8]),
}

impl Member<'_> {
    fn json_bytes(self) -> usize {
        match self {
            Self::Json(json) => json.len(),
            Self::Base64(bytes) => bytes.len().div_ceil(3) * 4 + 2,
            Self::Base64Url(bytes) => (bytes.len() * 4).div_ceil(3) + 2,
        }
    }
}

/// A JSON object in a buffer that is allocated once, at its full size: what grows leaves its old self behind unwiped.
pub(crate) fn object(members: &[(&str, Member<'_>)]) -> Zeroizing<Vec<u8>> {
    // Per member two quotes, a colon, and the comma or brace before it; then the last brace.
    let size = members
        .iter()
        .map(|(name, value)| name.len() + value.json_bytes() + 4)
        .sum::<usize>()
        + 1;
    let mut body = Zeroizing::new(Vec::with_capacity(size));
    for (index, (name, value)) in members.iter().enumerate() {
        body.push(if index == 0 { b'{' } else { b',' });
        body.push(b'"');
        body.extend_from_slice(name.as_bytes());
        body.extend_from_slice(b"\":");
        let mut spell = |engine: &base64::engine::GeneralPurpose, bytes: &[u8]| {
            body.push(b'"');
            let start = body.len();
            // Less the quotes.
            body.resize(size.min(start + value.json_bytes() - 2), 0);
            if let Some(place) = body.get_mut(start..) {
                let written = engine.encode_slice(bytes, place);
                debug_assert_eq!(written, Ok(place.len()), "the size was computed for it");
            }
            body.push(b'"');
        };
        match value {
            Member::Json(json) => body.extend_from_slice(json.as_bytes()),
            Member::Base64(bytes) => spell(&BASE64, bytes),
            Member::Base64Url(bytes) => spell(&BASE64URL, bytes),
        }
    }
    body.push(b'}');
    assert_eq!(
        body.len(),
        size,
        "the buffer neither grew nor was too large"
    );
    body
}

/// A secret as a JSON string, with its quotes.
pub(crate) fn secret_string(secret: &str) -> Secret<String> {
    // A character takes six at most: `\u001f`.
    let mut json = String::with_capacity(secret.len() * 6 + 2);
    json.push('"');
    for char in secret.chars() {
        match char {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\u{0}'..='\u{1f}' => {
                const DIGITS: &[u8; 16] = b"0123456789abcdef";
                let digit = |at: u32| {
                    let digit = DIGITS.get((u32::from(char) >> at & 15) as usize);
                    digit.map_or('0', |digit| char::from(*digit))
                };
                json.push_str("\\u00");
                json.push(digit(4));
                json.push(digit(0));
            }
            other => json.push(other),
        }
    }
    json.push('"');
    Secret::new(json)
}

/// The text of a JSON string that needs no decoding, as it stands in the body; `None` for any other value.
///
/// Base64 and tokens need no escapes, and decoding one would leave a copy in memory that nobody wipes.
pub(crate) fn lent(value: &RawValue) -> Option<&str> {
    let text = value.get().strip_prefix('"')?.strip_suffix('"')?;
    (!text.contains('\\')).then_some(text)
}

/// The text of any JSON string but the empty one; other values count as absent. For what is no secret.
pub(crate) fn text(value: Option<&RawValue>) -> Option<String> {
    let text: String = serde_json::from_str(value?.get()).ok()?;
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn an_object_is_one_whatever_its_members() {
        let bytes = [0xfb, 0xff, 0xfe, 0x66];
        let body = object(&[
            ("a", Member::Json("7")),
            ("b", Member::Base64(&bytes)),
            ("c", Member::Base64Url(&bytes)),
            ("d", Member::Base64(&[])),
        ]);
        assert_eq!(
            String::from_utf8_lossy(&body),
            r#"{"a":7,"b":"+//+Zg==","c":"-__-Zg","d":""}"#
        );
        assert_eq!(body.capacity(), body.len());
    }

    #[test]
    fn only_a_plain_string_is_lent() {
        let raw = |json: &str| serde_json::from_str::<Box<RawValue>>(json).unwrap();
        assert_eq!(lent(&raw(r#""YWJj""#)), Some("YWJj"));
        for other in [r#""YW\u004aj""#, "7", "null", "[]", r#"{"a":"b"}"#] {
            assert_eq!(lent(&raw(other)), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn a_secret_survives_its_spelling(secret in "(.|[\\x00-\\x1f\"\\\\]){0,64}") {
            let json = secret_string(&secret);
            prop_assert_eq!(
                serde_json::from_str::<Value>(json.expose()).unwrap(),
                Value::from(secret)
            );
        }
    }
}
