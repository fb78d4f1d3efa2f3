//! What lies in a block: one tenant's events that came in one commit, one after the other.
//!
//! | bytes | content |
//! | --- | --- |
//! | 16 | the event's id |
//! | 8 | its timestamp in ms since 1970, big-endian |
//! | 4 | length of its JSON, big-endian |
//! | | the JSON |

use bytes::Bytes;
use tsp_wire::RayId;

use crate::sink::Event;

/// Bytes of an event beside its JSON.
pub(crate) const HEAD_BYTES: usize = RayId::LEN + 8 + 4;

/// Appends one event.
pub(crate) fn push(block: &mut Vec<u8>, id: &str, timestamp_ms: i64, json: &[u8]) {
    let mut spelt = [b'A'; RayId::LEN];
    for (to, from) in spelt.iter_mut().zip(id.bytes()) {
        *to = from;
    }
    block.extend_from_slice(&spelt);
    block.extend_from_slice(&timestamp_ms.to_be_bytes());
    let length = u32::try_from(json.len()).unwrap_or(u32::MAX);
    block.extend_from_slice(&length.to_be_bytes());
    block.extend_from_slice(json);
}

/// The events of a block whose first has the sequence `first`. `None` if it is none.
pub(crate) fn read(block: Vec<u8>, first: u64, events: usize) -> Option<Vec<Event>> {
    let block = Bytes::from(block);
    let mut read = Vec::with_capacity(events.min(block.len() / HEAD_BYTES + 1));
    let mut at = 0;
    for sequence in (first..).take(events) {
        let rest = block.get(at..)?;
        let (id, rest) = rest.split_first_chunk::<{ RayId::LEN }>()?;
        let (timestamp_ms, rest) = rest.split_first_chunk::<8>()?;
        let (length, _) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let start = at + HEAD_BYTES;
        at = start.checked_add(length)?;
        if at > block.len() {
            return None;
        }
        read.push(Event {
            id: String::from_utf8(id.to_vec()).ok()?,
            sequence,
            timestamp_ms: i64::from_be_bytes(*timestamp_ms),
            json: block.slice(start..at),
        });
    }
    (at == block.len()).then_some(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_back_with_their_sequences() {
        let mut block = Vec::new();
        push(&mut block, "aaaaaaaaaaaaaaaa", -1, b"{}");
        push(&mut block, "bbbbbbbbbbbbbbbb", i64::MAX, b"");
        let events = read(block.clone(), 41, 2).unwrap();
        assert_eq!(events[0].id, "aaaaaaaaaaaaaaaa");
        assert_eq!((events[0].sequence, events[0].timestamp_ms), (41, -1));
        assert_eq!(events[0].json, "{}");
        assert_eq!(events[1].sequence, 42);
        assert_eq!(read(block.clone(), 41, 1), None);
        assert_eq!(read(block.clone(), 41, 3), None);
        for cut in 0..block.len() {
            assert_eq!(read(block[..cut].to_vec(), 41, 2), None, "{cut}");
        }
    }
}
