//! What the hand-written JSON of answers and events shares.

/// Appends `text` as a JSON string, quotes and all.
pub(crate) fn push_string(out: &mut Vec<u8>, text: &str) {
    // Neither a `str` nor a `Vec` can make this fail.
    let _ = serde_json::to_writer(out, text);
}

/// How many bytes [`push_string`] appends for `text`.
pub(crate) fn string_bytes(text: &str) -> usize {
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0x00..=0x1f => 6,
        _ => 1,
    };
    text.bytes().map(escaped).sum::<usize>() + 2
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spelled(text: &str) -> String {
        let mut out = Vec::new();
        push_string(&mut out, text);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn strings_are_escaped_and_nothing_else_is() {
        assert_eq!(
            spelled("a/b \u{7f} é 😀 \u{2028}"),
            "\"a/b \u{7f} é 😀 \u{2028}\""
        );
        assert_eq!(spelled("\"\\\n\0\u{1b}"), r#""\"\\\n\u0000\u001b""#);
    }

    #[test]
    fn the_length_of_every_ascii_character_is_known() {
        for byte in 0..=0x7f_u8 {
            let text = char::from(byte).to_string();
            assert_eq!(string_bytes(&text), spelled(&text).len(), "{byte:#x}");
        }
    }

    proptest! {
        #[test]
        fn the_length_is_known_before_writing(text: String) {
            prop_assert_eq!(string_bytes(&text), spelled(&text).len());
        }
    }
}
