//! What the hand-written JSON of answers and events shares.

/// Appends `text` as a JSON string, quotes and all.
pub(crate) fn push_string(out: &mut Vec<u8>, text: &str) {
    // Without a way out of the loop, it looks at many bytes at a time.
    let escapes = text.bytes().fold(false, |found, byte| {
        found | (byte < 0x20) | (byte == b'"') | (byte == b'\\')
    });
    if escapes {
        // Neither a `str` nor a `Vec` can make this fail.
        let _ = serde_json::to_writer(out, text);
        return;
    }
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

/// Appends a number.
pub(crate) fn push_number(out: &mut Vec<u8>, number: u64) {
    // As above.
    let _ = serde_json::to_writer(out, &number);
}

/// Why JSON could not be read into one of our types, without any value of it: serde's own sentence may quote one, or a
/// name that is one. What is left names only our own members.
pub(crate) fn data_error(why: &serde_json::Error) -> String {
    let place = format!("line {}, column {}", why.line(), why.column());
    let sentence = why.to_string();
    let sentence = sentence.split(" at line ").next().unwrap_or_default();
    let known = match sentence.split_once(", expected ") {
        _ if sentence.starts_with("missing field `") => {
            sentence.replace("missing field", "missing member")
        }
        Some((unknown, expected)) if unknown.starts_with("unknown field `") => {
            format!("unknown member; expected {expected}")
        }
        _ if why.is_data() => "a member has not the type that it should have".to_owned(),
        _ => "not JSON".to_owned(),
    };
    format!("{known} ({place})")
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
