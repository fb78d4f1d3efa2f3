//! Exports as log systems make them: JSON lines or one JSON array, each event wrapped in whatever the log system adds.
//!
//! An event is found wherever it is: the record itself, a member of it at some depth (Google's `jsonPayload`, Splunk's `result`),
//! or JSON in a text (Splunk's `_raw`, CloudWatch's and Datadog's `message`, OpenTelemetry's `body`, a line of a syslog file).

use std::io::{self, BufRead};

use serde_json::{Map, Value};

/// Longest line, in bytes: an event has at most 1 MB, and some log systems spell it as a text within JSON.
const LINE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How deep an event may be wrapped.
const DEPTH_MAX: usize = 8;

/// Hands each record of `input` to `take`, with the number of its line, or of its place in an array.
pub(super) fn each(
    mut input: impl BufRead,
    mut take: impl FnMut(u64, Option<Map<String, Value>>),
) -> io::Result<()> {
    if first_byte(&mut input)? == Some(b'[') {
        return each_of_array(input, take);
    }
    let mut line = Vec::new();
    let mut number = 0;
    while read_line(&mut input, &mut line)? {
        number += 1;
        let text = line.trim_ascii();
        if !text.is_empty() {
            take(number, found_in_text(text, DEPTH_MAX));
        }
    }
    Ok(())
}

/// Reads elements one after the other, so that an export of many gigabytes needs no more memory than one of JSON lines.
fn each_of_array(
    input: impl BufRead,
    take: impl FnMut(u64, Option<Map<String, Value>>),
) -> io::Result<()> {
    struct Each<F>(F);

    impl<'de, F: FnMut(u64, Option<Map<String, Value>>)> serde::de::Visitor<'de> for Each<F> {
        type Value = ();

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an array")
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(mut self, mut all: A) -> Result<(), A::Error> {
            let mut number = 0;
            while let Some(value) = all.next_element::<Value>()? {
                number += 1;
                (self.0)(number, found_in(value, DEPTH_MAX));
            }
            Ok(())
        }
    }

    let mut json = serde_json::Deserializer::from_reader(input);
    serde::Deserializer::deserialize_seq(&mut json, Each(take)).map_err(io::Error::from)
}

/// The first byte that is no white space, left where it is.
fn first_byte(input: &mut impl BufRead) -> io::Result<Option<u8>> {
    loop {
        let buffer = input.fill_buf()?;
        if buffer.is_empty() {
            return Ok(None);
        }
        let blanks = buffer
            .iter()
            .take_while(|byte| byte.is_ascii_whitespace())
            .count();
        match buffer.get(blanks).copied() {
            Some(first) => return Ok(Some(first)),
            None => input.consume(blanks),
        }
    }
}

fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let limit = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX);
    let read = io::Read::take(&mut *input, limit).read_until(b'\n', line)?;
    if read == LINE_BYTES_MAX && line.last() != Some(&b'\n') {
        return Err(io::Error::other("a line is longer than 8 MiB"));
    }
    Ok(read > 0)
}

/// The event in a text that is JSON, or whose end is.
fn found_in_text(text: &[u8], depth: usize) -> Option<Map<String, Value>> {
    let start = text.iter().position(|byte| *byte == b'{')?;
    let value = serde_json::from_slice(text.get(start..)?).ok()?;
    found_in(value, depth)
}

fn found_in(value: Value, depth: usize) -> Option<Map<String, Value>> {
    let deeper = depth.checked_sub(1)?;
    match value {
        Value::Object(object)
            if object.contains_key("chain") && object.contains_key("tenantId") =>
        {
            Some(object)
        }
        Value::Object(object) => object
            .into_iter()
            .find_map(|(_, value)| found_in(value, deeper)),
        Value::Array(values) => values.into_iter().find_map(|value| found_in(value, deeper)),
        Value::String(text) if text.contains("\"chain\"") => found_in_text(text.as_bytes(), deeper),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}
