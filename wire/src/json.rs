//! What the hand-written JSON of answers and events shares.

/// Appends `text` as a JSON string, quotes and all.
pub(crate) fn push_string(out: &mut Vec<u8>, text: &str) {
    if has_escapes(text.as_bytes()) {
        // Neither a `str` nor a `Vec` can make this fail.
        let _ = serde_json::to_writer(out, text);
        return;
    }
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

/// Whether a byte of them must be escaped. Looks at eight at a time: most texts are short.
fn has_escapes(text: &[u8]) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    // Bytes without their high bit that are below `limit` lose it in the subtraction.
    let below = |word: u64, limit: u64| !((word | HIGH) - ONES * limit) & !word & HIGH;
    let is_one = |word: u64, byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    let escapes = |word| below(word, 0x20) | is_one(word, b'"') | is_one(word, b'\\') != 0;
    let (words, rest) = text.as_chunks::<8>();
    let mut last = [b' '; 8];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    words.iter().any(|word| escapes(u64::from_ne_bytes(*word))) || escapes(u64::from_ne_bytes(last))
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
        fn what_must_be_escaped_is_found_wherever_it_is(
            text in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let one_by_one = text.iter().any(|byte| *byte < 0x20 || b"\"\\".contains(byte));
            prop_assert_eq!(has_escapes(&text), one_by_one);
            // As a rule there is one among so many; so each alone, too.
            for byte in text {
                let alone = [b' ', byte, 0xff];
                prop_assert_eq!(has_escapes(&alone), byte < 0x20 || b"\"\\".contains(&byte));
            }
        }

        #[test]
        fn the_length_is_known_before_writing(text: String) {
            prop_assert_eq!(string_bytes(&text), spelled(&text).len());
        }
    }
}
