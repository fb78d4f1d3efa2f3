//! How a logdriver takes events that the proxy keeps until they are on a disk: a question and an answer on the event socket.
//!
//! | question, bytes | content |
//! | --- | --- |
//! | 1 | [`super::FRAME_VERSION`] |
//! | 1 | 1 if a batch is wanted, 0 to acknowledge alone |
//! | 8 | who asks: the same number for as long as the logdriver's store lives, big-endian |
//! | 8 | the batch that is on its disk, big-endian; 0 for none |
//!
//! | answer, bytes | content |
//! | --- | --- |
//! | 1 | [`super::FRAME_VERSION`] |
//! | 8 | the proxy's process, as its events name it, big-endian |
//! | 8 | the batch, big-endian; 0 if nothing waits |
//! | | its events, one JSON a line |
//!
//! A batch that was handed out and not acknowledged comes again to who had it, with the same number and content; if they do
//! not come back, to another.

use super::FRAME_VERSION;

/// A logdriver's question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Take {
    /// Who asks.
    pub consumer: u64,
    /// The batch that is on its disk; 0 for none.
    pub stored: u64,
    /// Whether it wants another.
    pub more: bool,
}

impl Take {
    /// Size of the question, in bytes.
    pub const LEN: usize = 18;

    /// The question as it travels.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let head = [FRAME_VERSION, u8::from(self.more)];
        let numbers = [self.consumer, self.stored];
        let all = head
            .into_iter()
            .chain(numbers.into_iter().flat_map(u64::to_be_bytes));
        let mut bytes = [0; Self::LEN];
        for (to, from) in bytes.iter_mut().zip(all) {
            *to = from;
        }
        bytes
    }

    /// Reads a question; `None` if it is none of this version.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_first_chunk::<2>()?;
        let (consumer, rest) = rest.split_first_chunk::<8>()?;
        let (stored, rest) = rest.split_first_chunk::<8>()?;
        let [FRAME_VERSION, more @ (0 | 1)] = *head else {
            return None;
        };
        rest.is_empty().then_some(Self {
            consumer: u64::from_be_bytes(*consumer),
            stored: u64::from_be_bytes(*stored),
            more: more == 1,
        })
    }
}

/// The head of a proxy's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The proxy's process: the `instance` of its events' [`super::Sequence`].
    pub instance: u64,
    /// The batch; 0 if nothing waits.
    pub batch: u64,
}

impl Taken {
    /// Size of the head, in bytes; the events follow.
    pub const LEN: usize = 17;

    /// The head as it travels.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let numbers = [self.instance, self.batch];
        let all =
            std::iter::once(FRAME_VERSION).chain(numbers.into_iter().flat_map(u64::to_be_bytes));
        let mut bytes = [0; Self::LEN];
        for (to, from) in bytes.iter_mut().zip(all) {
            *to = from;
        }
        bytes
    }

    /// Reads an answer: its head, and its events' lines. `None` if it is none of this version.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (version, rest) = bytes.split_first()?;
        let (instance, rest) = rest.split_first_chunk::<8>()?;
        let (batch, events) = rest.split_first_chunk::<8>()?;
        let head = Self {
            instance: u64::from_be_bytes(*instance),
            batch: u64::from_be_bytes(*batch),
        };
        (*version == FRAME_VERSION).then_some((head, events))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_and_an_answer_come_back() {
        let take = Take {
            consumer: 0x0102_0304_0506_0708,
            stored: 7,
            more: true,
        };
        let bytes = take.to_bytes();
        assert_eq!(
            bytes,
            *b"\x01\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\0\x07"
        );
        assert_eq!(Take::from_bytes(&bytes), Some(take));
        for bad in [&bytes[1..], &[bytes.as_slice(), b"x"].concat(), b""] {
            assert_eq!(Take::from_bytes(bad), None);
        }
        let taken = Taken {
            instance: 5,
            batch: 9,
        };
        let answer = [taken.to_bytes().as_slice(), b"{}\n{}"].concat();
        assert_eq!(
            Taken::from_bytes(&answer),
            Some((taken, b"{}\n{}".as_slice()))
        );
        assert_eq!(Taken::from_bytes(&answer[..16]), None);
    }
}
