//! What the hand-written JSON of answers and events shares.

/// Appends `text` as a JSON string, quotes and all.
pub(crate) fn push_string(out: &mut Vec<u8>, text: &str) {
    // Neither a `str` nor a `Vec` can make this fail.
    let _ = serde_json::to_writer(out, text);
}

/// The most bytes that [`push_string`] appends for `text`: `\u0000` is six bytes for one, and there are two quotes.
pub(crate) fn string_bytes_max(text: &str) -> usize {
    text.len().saturating_mul(6).saturating_add(2)
}
