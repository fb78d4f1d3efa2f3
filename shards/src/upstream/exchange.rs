//! One request and its answer over one connection: HTTP/1.1 as RFC 9112 has it, for POSTs with a body of known size.
//!
//! It runs where it is awaited, with no task between the caller and the socket. Head and body of the answer lie in one
//! buffer, which comes from the shard's own and is wiped before it goes back there.

use std::{fmt, ops::Range};

use httparse::{EMPTY_HEADER, Status};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tsp_kms::HttpAnswer;
use tsp_rt::Stream;
use zeroize::Zeroize as _;

use super::CallError;
use crate::buffers::Buffers;

/// Longest head of a KMS's answer, in bytes. Real ones are below 2 KiB.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Most headers in it. Real ones have a dozen.
const HEADERS_MAX: usize = 64;

/// Room for an answer at first, in bytes: all of a usual one, so that one read takes it.
const FIRST_BYTES: usize = 4 << 10;

/// Longest line that tells a chunk's size, in bytes: it is a number, and extensions that nobody uses.
const CHUNK_LINE_BYTES_MAX: usize = 1 << 10;

/// What a KMS answered. It may hold a key, and is wiped.
pub(crate) struct Answer {
    status: u16,
    input: Input,
    headers: Range<usize>,
    body: Range<usize>,
}

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    /// As a [`RemoteKms`](tsp_kms::RemoteKms) reads it.
    pub(crate) fn read(&self) -> HttpAnswer<'_> {
        HttpAnswer {
            status: self.status,
            headers: self.input.part(&self.headers),
            body: self.input.part(&self.body),
        }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("status", &self.status)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// An exchange that gave no whole answer.
pub(crate) struct Unanswered {
    pub(crate) why: CallError,
    /// Whether not one byte of an answer had come. Then the far end may have closed the connection before it saw the request.
    pub(crate) before_first_byte: bool,
}

/// Sends `request`, head and body, on `stream` and reads the answer, whose body may have `body_bytes_max` bytes. Tells
/// also whether the connection is good for another exchange.
pub(crate) async fn exchange(
    stream: &mut impl Stream,
    request: &[u8],
    buffers: &Buffers,
    body_bytes_max: usize,
) -> Result<(Answer, bool), Unanswered> {
    let sent = async {
        stream.write_all(request).await?;
        stream.flush().await
    };
    if sent.await.is_err() {
        return Err(Unanswered {
            why: CallError::CutOff,
            before_first_byte: true,
        });
    }
    let mut input = Input::new(buffers);
    match read(stream, &mut input, body_bytes_max).await {
        Ok(message) => {
            let (head, body) = (message.head, message.body);
            // What nobody asked for would pass as the answer to the next request.
            let reusable = head.reusable && message.end == input.bytes.len();
            let answer = Answer {
                status: head.status,
                headers: head.headers,
                input,
                body,
            };
            Ok((answer, reusable))
        }
        Err(why) => Err(Unanswered {
            why,
            before_first_byte: input.bytes.is_empty(),
        }),
    }
}

/// Where a whole message lies in its [`Input`].
struct Message {
    head: Head,
    body: Range<usize>,
    /// Where its last byte is.
    end: usize,
}

async fn read(
    stream: &mut impl Stream,
    input: &mut Input,
    body_bytes_max: usize,
) -> Result<Message, CallError> {
    let mut start = 0;
    input.more_of_the_head(stream).await?;
    let head = loop {
        let Some(head) = Head::read(input.from(start), start)? else {
            // No KMS has a head like this, so that it is none of HTTP as far as we are concerned.
            if input.bytes.len() > HEAD_BYTES_MAX {
                return Err(CallError::NotHttp);
            }
            input.more_of_the_head(stream).await?;
            continue;
        };
        if head.end > HEAD_BYTES_MAX {
            return Err(CallError::NotHttp);
        }
        match head.status {
            // Nothing was asked for that would be answered by another protocol.
            101 => return Err(CallError::NotHttp),
            // On the way to the answer (RFC 9110, section 15.2). All of them count towards the longest head.
            100..=199 => start = head.end,
            _ => break head,
        }
    };
    let (body, end) = match head.framing {
        Framing::Empty => (head.end..head.end, head.end),
        Framing::Sized(bytes) => {
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            if bytes > body_bytes_max {
                return Err(CallError::AnswerTooLong);
            }
            let end = head.end + bytes;
            input.make_room(end);
            while input.bytes.len() < end {
                input.more(stream).await?;
            }
            (head.end..end, end)
        }
        Framing::Chunked => input.chunks(stream, head.end, body_bytes_max).await?,
        Framing::ToTheEnd => {
            while input.some_more(stream).await? {
                if input.bytes.len() - head.end > body_bytes_max {
                    return Err(CallError::AnswerTooLong);
                }
            }
            let end = input.bytes.len();
            (head.end..end, end)
        }
    };
    Ok(Message { head, body, end })
}

/// What the head of an answer says.
struct Head {
    status: u16,
    framing: Framing,
    /// Whether the far end keeps the connection.
    reusable: bool,
    /// Where the header lines are.
    headers: Range<usize>,
    /// Where the body begins.
    end: usize,
}

/// How long a body is (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Empty,
    Sized(u64),
    Chunked,
    /// Until the connection is closed.
    ToTheEnd,
}

impl Head {
    /// Reads the head that begins with `bytes`, which lie at `start` of the input; `None` if there must be more of it.
    fn read(bytes: &[u8], start: usize) -> Result<Option<Self>, CallError> {
        let mut headers = [EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let length = match response.parse(bytes) {
            Ok(Status::Complete(length)) => length,
            Ok(Status::Partial) => return Ok(None),
            Err(_) => return Err(CallError::NotHttp),
        };
        let first_line = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(0) + 1;
        let status = response.code.unwrap_or_default();
        let (mut sized, mut coded, mut chunked) = (None, false, false);
        let (mut close, mut keep) = (false, false);
        for header in response.headers.iter() {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            if is("content-length") {
                let bytes = number(header.value).ok_or(CallError::NotHttp)?;
                if sized.is_some_and(|sized| sized != bytes) {
                    return Err(CallError::NotHttp);
                }
                sized = Some(bytes);
            } else if is("transfer-encoding") {
                coded = true;
                // Only the last coding tells where the body ends; one before it would have to be undone, too.
                chunked = header.value.trim_ascii().eq_ignore_ascii_case(b"chunked") && !chunked;
            } else if is("connection") {
                for option in header.value.split(|byte| *byte == b',') {
                    let option = option.trim_ascii();
                    close |= option.eq_ignore_ascii_case(b"close");
                    keep |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
        }
        let framing = match (status, coded, sized) {
            (100..=199 | 204 | 304, _, _) => Framing::Empty,
            (_, true, _) if chunked => Framing::Chunked,
            (_, true, _) => return Err(CallError::NotHttp),
            (_, false, Some(bytes)) => Framing::Sized(bytes),
            (_, false, None) => Framing::ToTheEnd,
        };
        // A message with both kinds of length may have passed something that reads it otherwise.
        let clear = !(coded && sized.is_some()) && framing != Framing::ToTheEnd;
        let kept = if response.version == Some(1) {
            !close
        } else {
            keep && !close && !coded
        };
        Ok(Some(Self {
            status,
            framing,
            reusable: clear && kept,
            headers: start + first_line.min(length)..start + length,
            end: start + length,
        }))
    }
}

/// A decimal number of nothing but digits.
fn number(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text.trim_ascii()).ok()?;
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

/// The bytes of an answer, as far as they have come.
struct Input {
    bytes: Vec<u8>,
    home: Buffers,
}

impl Input {
    fn new(buffers: &Buffers) -> Self {
        let mut bytes = buffers.take_bytes();
        bytes.reserve_exact(FIRST_BYTES);
        Self {
            bytes,
            home: buffers.clone(),
        }
    }

    fn from(&self, start: usize) -> &[u8] {
        self.bytes.get(start..).unwrap_or_default()
    }

    fn part(&self, range: &Range<usize>) -> &[u8] {
        self.bytes.get(range.clone()).unwrap_or_default()
    }

    /// Waits for more bytes; there must be some.
    async fn more(&mut self, stream: &mut impl Stream) -> Result<(), CallError> {
        if self.some_more(stream).await? {
            Ok(())
        } else {
            Err(CallError::CutOff)
        }
    }

    /// Waits for more bytes; of a long head until there is another line, so that nobody has it read byte by byte. What is
    /// not HTTP shows in its first bytes.
    async fn more_of_the_head(&mut self, stream: &mut impl Stream) -> Result<(), CallError> {
        loop {
            let known = self.bytes.len();
            self.more(stream).await?;
            let len = self.bytes.len();
            if len <= FIRST_BYTES || len > HEAD_BYTES_MAX || self.from(known).contains(&b'\n') {
                return Ok(());
            }
        }
    }

    /// Waits for more bytes; false at their end.
    async fn some_more(&mut self, stream: &mut impl Stream) -> Result<bool, CallError> {
        if self.bytes.len() == self.bytes.capacity() {
            self.make_room(self.bytes.len() * 2);
        }
        match stream.read_buf(&mut self.bytes).await {
            Ok(count) => Ok(count > 0),
            Err(_) => Err(CallError::CutOff),
        }
    }

    /// Makes sure that `bytes` bytes fit in all, moving to a larger buffer and wiping this one if they do not.
    fn make_room(&mut self, bytes: usize) {
        if self.bytes.capacity() < bytes {
            let mut larger = Vec::with_capacity(bytes);
            larger.extend_from_slice(&self.bytes);
            self.bytes.zeroize();
            self.bytes = larger;
        }
    }

    /// Reads a chunked body that begins at `start`, and moves its chunks together. Gives where it is, and where the
    /// message ends.
    async fn chunks(
        &mut self,
        stream: &mut impl Stream,
        start: usize,
        body_bytes_max: usize,
    ) -> Result<(Range<usize>, usize), CallError> {
        let (mut body_end, mut at) = (start, start);
        // What tells the sizes takes less than the body, unless somebody plays with us.
        let most = start + 2 * body_bytes_max;
        loop {
            if at > most {
                return Err(CallError::AnswerTooLong);
            }
            let (line, size) = loop {
                match httparse::parse_chunk_size(self.from(at)) {
                    Ok(Status::Complete(found)) => break found,
                    Ok(Status::Partial) if self.from(at).len() <= CHUNK_LINE_BYTES_MAX => {
                        self.more(stream).await?;
                    }
                    Ok(Status::Partial) | Err(_) => return Err(CallError::NotHttp),
                }
            };
            at += line;
            if size == 0 {
                break;
            }
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            if size > body_bytes_max - (body_end - start) {
                return Err(CallError::AnswerTooLong);
            }
            // The chunk, and the line end after it.
            while self.from(at).len() < size + 2 {
                self.more(stream).await?;
            }
            if self.part(&(at + size..at + size + 2)) != b"\r\n" {
                return Err(CallError::NotHttp);
            }
            self.bytes.copy_within(at..at + size, body_end);
            body_end += size;
            at += size + 2;
        }
        // Trailers, which say nothing to us, up to an empty line.
        let trailers = at;
        loop {
            let rest = self.from(at);
            match rest.iter().position(|byte| *byte == b'\n') {
                Some(0) => return Ok((start..body_end, at + 1)),
                Some(1) if rest.starts_with(b"\r") => return Ok((start..body_end, at + 2)),
                Some(line) => at += line + 1,
                None if self.bytes.len() - trailers > HEAD_BYTES_MAX => {
                    return Err(CallError::AnswerTooLong);
                }
                None => self.more(stream).await?,
            }
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        // Nothing was ever removed from it, so nothing lies beyond its end.
        self.bytes.as_mut_slice().zeroize();
        self.home.give(std::mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests;
