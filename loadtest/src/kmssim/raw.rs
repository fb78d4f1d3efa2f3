//! Answers that break off, never end, or are none: scripts of bytes for a connection that was taken from hyper.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};

use super::exchange::Reply;

/// Random bytes in place of an answer.
pub(crate) const GARBAGE_BYTES_MAX: usize = 1 << 20;
/// Bytes that a repeated step writes at a time.
const CHUNK_BYTES: usize = 16 * 1024;

/// What to do with a connection, in order.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) steps: Vec<Step>,
    pub(crate) end: End,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Writes.
    Write(Bytes),
    /// Writes byte by byte, with a pause after each.
    Drip { bytes: Bytes, every: Duration },
    /// Writes the same over and over, with a pause after each, up to a number of bytes.
    Repeat {
        bytes: Bytes,
        every: Duration,
        bytes_max: u64,
    },
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// In order.
    Close,
    /// FIN, but without TLS's good-bye.
    Cut,
    /// RST.
    Reset,
    /// Not, until the client gives up.
    Hang,
}

fn script(steps: Vec<Step>, end: End) -> Script {
    Script { steps, end }
}

pub(crate) fn hang() -> Script {
    script(Vec::new(), End::Hang)
}

pub(crate) fn reset() -> Script {
    script(Vec::new(), End::Reset)
}

pub(crate) fn garbage(bytes: Vec<u8>) -> Script {
    script(vec![Step::Write(bytes.into())], End::Close)
}

pub(crate) fn reset_after_head(reply: &Reply) -> Script {
    let head = head(reply, &[&content_length(reply)]);
    script(vec![Step::Write(head)], End::Reset)
}

/// The whole head, and half of what it announces.
pub(crate) fn truncated(reply: &Reply) -> Script {
    let half = reply.body.get(..reply.body.len() / 2).unwrap_or_default();
    let head = head(reply, &[&content_length(reply)]);
    let bytes = [head.as_ref(), half].concat();
    script(vec![Step::Write(bytes.into())], End::Cut)
}

pub(crate) fn drip(reply: &Reply, every: Duration) -> Script {
    let head = head(reply, &[&content_length(reply)]);
    let bytes = [head.as_ref(), &reply.body].concat().into();
    script(vec![Step::Drip { bytes, every }], End::Close)
}

pub(crate) fn huge(reply: &Reply, bytes_max: u64) -> Script {
    let head = head(reply, &[&format!("content-length: {bytes_max}")]);
    let bytes = Bytes::from(vec![b'a'; CHUNK_BYTES]);
    let every = Duration::ZERO;
    let body = Step::Repeat {
        bytes,
        every,
        bytes_max,
    };
    script(vec![Step::Write(head), body], End::Close)
}

pub(crate) fn endless(reply: &Reply, every: Duration) -> Script {
    let head = head(reply, &["transfer-encoding: chunked"]);
    // One blank, which is nothing in JSON.
    let bytes = Bytes::from_static(b"1\r\n \r\n");
    let body = Step::Repeat {
        bytes,
        every,
        bytes_max: u64::MAX,
    };
    script(vec![Step::Write(head), body], End::Close)
}

pub(crate) fn header_flood(reply: &Reply, bytes_max: u64) -> Script {
    let head = head(reply, &[]);
    // The head goes on instead of ending with its empty line.
    let begun = head.slice(..head.len().saturating_sub(2));
    let mut line = BytesMut::new();
    line.put_slice(b"x-flood: ");
    line.put_bytes(b'a', 1000);
    line.put_slice(b"\r\n");
    let flood = Step::Repeat {
        bytes: line.freeze(),
        every: Duration::ZERO,
        bytes_max,
    };
    script(vec![Step::Write(begun), flood], End::Close)
}

fn content_length(reply: &Reply) -> String {
    format!("content-length: {}", reply.body.len())
}

/// Status line and headers, with `more` lines, up to and with the empty line.
fn head(reply: &Reply, more: &[&str]) -> Bytes {
    let mut head = BytesMut::new();
    head.put_slice(format!("HTTP/1.1 {} \r\n", reply.status).as_bytes());
    for (name, value) in &reply.headers {
        head.put_slice(name.as_str().as_bytes());
        head.put_slice(b": ");
        head.put_slice(value.as_bytes());
        head.put_slice(b"\r\n");
    }
    for line in more {
        head.put_slice(line.as_bytes());
        head.put_slice(b"\r\n");
    }
    head.put_slice(b"\r\n");
    head.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmssim::exchange::Verdict;

    #[test]
    fn a_truncated_answer_announces_all_and_sends_half() {
        let reply = Reply::new(Verdict::Answered, 200, "application/json", "0123456789");
        let script = truncated(&reply);
        let Step::Write(bytes) = &script.steps[0] else {
            panic!("one write")
        };
        let text = std::str::from_utf8(bytes).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 \r\ncontent-type: application/json\r\n"));
        assert!(text.ends_with("content-length: 10\r\n\r\n01234"), "{text}");
        assert_eq!(script.end, End::Cut);
    }
}
