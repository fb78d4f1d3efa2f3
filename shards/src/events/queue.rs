//! The queue from the shards to the event thread: bounded by a number of events for all shards together.
//!
//! Every shard has a lane of its own: a slot with the events that gather, as the bytes that will travel. A shard takes it out,
//! writes one more behind, and puts it back; the event thread takes it away. So an event costs a shard its writing and three
//! atomics that hardly anybody else touches: no allocation, no place in a queue, nothing that is freed on another core, and
//! neither of the two ever waits for the other.
//!
//! What must stay true: what leaves a lane leaves it in the order in which it came. There is one slot, and it is taken whole.

use std::{
    cell::Cell,
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, unbounded};
use crossbeam_utils::{CachePadded, atomic::AtomicCell};
use tsp_wire::event::FRAME_VERSION;

/// What is in a shard's slot; nothing while the shard writes, or when the event thread took it.
#[derive(Default)]
struct Slot(CachePadded<AtomicCell<Option<Box<Gathering>>>>);

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").finish_non_exhaustive()
    }
}

/// Makes a queue for `capacity` events.
#[must_use]
pub fn event_queue(capacity: usize) -> (EventQueue, EventReceiver) {
    let events = Arc::default();
    // One message per shard, each.
    let (lanes, new_lanes) = unbounded();
    let (last_words, ended) = unbounded();
    let receiver = EventReceiver {
        events: Arc::clone(&events),
        new_lanes,
        ended,
        lanes: Vec::new(),
        first: 0,
    };
    let queue = EventQueue {
        capacity,
        events,
        lanes,
        last_words,
    };
    (queue, receiver)
}

/// The shards' side of the queue. Clones are the same queue.
#[derive(Clone, Debug)]
pub struct EventQueue {
    capacity: usize,
    /// Events that wait, and those that are being written.
    events: Arc<CachePadded<AtomicUsize>>,
    lanes: Sender<Arc<Slot>>,
    last_words: Sender<Vec<u8>>,
}

/// One shard's way into the queue.
#[derive(Debug)]
pub struct EventLane {
    queue: EventQueue,
    slot: Arc<Slot>,
    /// Size in bytes that what gathers had last: room for the next, so that it seldom grows.
    typical: Cell<usize>,
}

/// The event thread's side of the queue.
#[derive(Debug)]
pub struct EventReceiver {
    events: Arc<CachePadded<AtomicUsize>>,
    new_lanes: Receiver<Arc<Slot>>,
    ended: Receiver<Vec<u8>>,
    lanes: Vec<LaneEnd>,
    /// The lane that is emptied first the next time.
    first: usize,
}

#[derive(Debug)]
struct LaneEnd {
    slot: Arc<Slot>,
    /// Taken out of the slot, and not yet out of the queue.
    rest: VecDeque<EventBatch>,
}

/// There is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFull;

/// Events as they travel: the format's version, and the JSON of one or more with a line feed between.
#[derive(Clone, Debug)]
pub struct EventBatch {
    bytes: Bytes,
    events: usize,
}

/// Events that gather: batches, one behind the other.
#[derive(Debug, Default)]
struct Gathering {
    bytes: Vec<u8>,
    /// Size in bytes and events of those batches that take no further one.
    full: Vec<(usize, usize)>,
    /// Where the one begins that does, and events in it.
    start: usize,
    events: usize,
}

impl EventQueue {
    /// A lane for a shard more.
    #[must_use]
    pub fn lane(&self) -> EventLane {
        let slot = Arc::default();
        // Without a receiver nothing is ever taken, and the queue fills up.
        drop(self.lanes.send(Arc::clone(&slot)));
        EventLane {
            queue: self.clone(),
            slot,
            typical: Cell::new(0),
        }
    }
}

impl EventLane {
    /// Appends the event that `write` writes as JSON, without a line feed. Nothing is written when there is no room.
    ///
    /// # Errors
    /// [`QueueFull`]
    pub fn push(&self, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), QueueFull> {
        let EventQueue {
            capacity, events, ..
        } = &self.queue;
        // A count and no more: what is counted is handed over by the slot.
        if events.fetch_add(1, Relaxed) >= *capacity {
            events.fetch_sub(1, Relaxed);
            return Err(QueueFull);
        }
        let mut gathering = self.slot.0.take().unwrap_or_else(|| {
            Box::new(Gathering {
                bytes: Vec::with_capacity(self.typical.get()),
                ..Gathering::default()
            })
        });
        write(gathering.next_event());
        self.typical.set(gathering.bytes.len());
        self.slot.0.store(Some(gathering));
        Ok(())
    }

    /// Appends the shard's last event, and leaves it for everybody: see [`EventReceiver::last_words`].
    ///
    /// # Errors
    /// [`QueueFull`]
    pub fn push_last(&self, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), QueueFull> {
        let mut event = Vec::new();
        write(&mut event);
        self.push(|out| out.extend_from_slice(&event))?;
        // Without a receiver nobody is told anything.
        drop(self.queue.last_words.send(event));
        Ok(())
    }
}

impl EventReceiver {
    /// How many events wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.events.load(Relaxed)
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The last events of the shards that have ended, once more: they are for everybody who takes events, not for one alone.
    /// So they count as none. `None` if no shard has ended, or when they were given.
    pub fn last_words(&mut self) -> Option<EventBatch> {
        let events = self.ended.try_iter().map(|event| {
            let bytes = [&[FRAME_VERSION], event.as_slice()].concat().into();
            EventBatch { bytes, events: 0 }
        });
        EventBatch::joined(events.collect())
    }

    /// Takes up to `events_max` events, those of one shard in order, and appends them to `to`; how many is returned.
    pub fn take(&mut self, events_max: usize, to: &mut VecDeque<EventBatch>) -> usize {
        let new = self.new_lanes.try_iter().map(|slot| LaneEnd {
            slot,
            rest: VecDeque::new(),
        });
        self.lanes.extend(new);
        // Not always the same one first: where there is room for some only, each gets its turn.
        self.first = (self.first + 1) % self.lanes.len().max(1);
        let first = self.first.min(self.lanes.len());
        let (before, from) = self.lanes.split_at_mut(first);
        let mut room = events_max;
        for lane in from.iter_mut().chain(before) {
            lane.empty_slot();
            while let Some(batch) = lane.next(room) {
                room -= batch.events;
                to.push_back(batch);
            }
        }
        let taken = events_max - room;
        self.events.fetch_sub(taken, Relaxed);
        taken
    }
}

impl LaneEnd {
    /// Even when there is no room: what gathers in the slot is one piece of memory, and must not grow for long.
    fn empty_slot(&mut self) {
        let Some(gathering) = self.slot.0.take() else {
            return;
        };
        let Gathering {
            mut bytes,
            full,
            start,
            events,
        } = *gathering;
        if bytes.capacity() / 2 > bytes.len() {
            // It may be kept for long.
            bytes.shrink_to_fit();
        }
        let last = (bytes.len() - start, events);
        let mut bytes = Bytes::from(bytes);
        for (size, events) in full.into_iter().chain([last]) {
            let bytes = bytes.split_to(size);
            self.rest.push_back(EventBatch { bytes, events });
        }
    }

    /// The oldest batch, or as many of its events as there is room for.
    fn next(&mut self, room: usize) -> Option<EventBatch> {
        let oldest = self.rest.front_mut()?;
        if room == 0 {
            return None;
        }
        if oldest.events > room {
            return Some(oldest.split_off_front(room));
        }
        self.rest.pop_front()
    }
}

impl Gathering {
    /// Where the next event is to be written.
    fn next_event(&mut self) -> &mut Vec<u8> {
        let size = self.bytes.len() - self.start;
        if self.events >= EventBatch::EVENTS_MAX || size >= EventBatch::BYTES_FULL {
            self.full.push((size, self.events));
            (self.start, self.events) = (self.bytes.len(), 0);
        }
        let first = self.events == 0;
        self.bytes.push(if first { FRAME_VERSION } else { b'\n' });
        self.events += 1;
        &mut self.bytes
    }
}

impl EventBatch {
    /// Most events in one. Enough to make a message's own cost disappear, little enough that a lost message is a small loss.
    pub const EVENTS_MAX: usize = 1024;

    /// The size in bytes beyond which no further event is added to one.
    pub const BYTES_FULL: usize = 256 * 1024;

    /// How many events it is; none if they were counted before.
    #[must_use]
    pub fn events(&self) -> usize {
        self.events
    }

    /// All of it, version and events.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The events alone.
    #[must_use]
    pub fn lines(&self) -> &[u8] {
        // All are of one version.
        self.bytes.get(1..).unwrap_or_default()
    }

    /// The events of all of them; `None` if there is none.
    #[must_use]
    pub fn joined(mut batches: Vec<Self>) -> Option<Self> {
        if batches.len() < 2 {
            return batches.pop();
        }
        let size = batches.iter().map(|batch| batch.bytes.len()).sum();
        let mut bytes = Vec::with_capacity(size);
        for batch in &batches {
            let first = bytes.is_empty();
            bytes.push(if first { FRAME_VERSION } else { b'\n' });
            bytes.extend_from_slice(batch.lines());
        }
        Some(Self {
            bytes: bytes.into(),
            events: batches.iter().map(|batch| batch.events).sum(),
        })
    }

    /// Takes the first `events` of them away, which are fewer than all.
    fn split_off_front(&mut self, events: usize) -> Self {
        // JSON has no line feed of its own.
        let mut ends = memchr::memchr_iter(b'\n', &self.bytes);
        let end = ends.nth(events - 1).unwrap_or(self.bytes.len());
        let bytes = self.bytes.split_to(end);
        let rest = self.bytes.get(1..).unwrap_or_default();
        self.bytes = [&[FRAME_VERSION], rest].concat().into();
        self.events -= events;
        Self { bytes, events }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn push(lane: &EventLane, event: &str) -> Result<(), QueueFull> {
        lane.push(|out| out.extend_from_slice(event.as_bytes()))
    }

    fn taken(queue: &mut EventReceiver, events_max: usize) -> Vec<(usize, String)> {
        let mut batches = VecDeque::new();
        let taken = queue.take(events_max, &mut batches);
        let all: Vec<_> = batches
            .iter()
            .map(|batch| {
                assert_eq!(batch.bytes()[0], FRAME_VERSION);
                let lines = String::from_utf8(batch.lines().to_vec()).unwrap();
                (batch.events(), lines)
            })
            .collect();
        assert_eq!(taken, all.iter().map(|(events, _)| events).sum::<usize>());
        all
    }

    fn one(events: usize, lines: &str) -> (usize, String) {
        (events, lines.to_owned())
    }

    #[test]
    fn lanes_share_the_room_and_take_turns() {
        let (queue, mut receiver) = event_queue(5);
        let lanes = [queue.lane(), queue.lane()];
        for event in ["1", "2", "3"] {
            push(&lanes[0], event).unwrap();
        }
        for event in ["a", "b"] {
            push(&lanes[1], event).unwrap();
        }
        for lane in &lanes {
            let never = lane.push(|_| unreachable!("nothing is written without room"));
            assert_eq!(never, Err(QueueFull));
        }
        assert_eq!(taken(&mut receiver, 1), [one(1, "a")]);
        assert_eq!(taken(&mut receiver, 2), [one(2, "1\n2")]);
        // What was taken out of the slot still waits.
        assert_eq!(receiver.len(), 2);
        push(&lanes[0], "4").unwrap();
        assert_eq!(taken(&mut receiver, 0), []);
        let rest = [one(1, "3"), one(1, "4"), one(1, "b")];
        assert_eq!(taken(&mut receiver, 9), rest);
        assert!(receiver.is_empty() && taken(&mut receiver, 9).is_empty());
    }

    #[test]
    fn a_full_batch_takes_no_further_event() {
        let (queue, mut receiver) = event_queue(10_000);
        let lane = queue.lane();
        for _ in 0..=EventBatch::EVENTS_MAX {
            push(&lane, "1").unwrap();
        }
        let half = "x".repeat(EventBatch::BYTES_FULL / 2);
        for _ in 0..3 {
            push(&lane, &half).unwrap();
        }
        let events: Vec<_> = taken(&mut receiver, usize::MAX)
            .iter()
            .map(|(events, _)| *events)
            .collect();
        assert_eq!(events, [EventBatch::EVENTS_MAX, 3, 1]);
    }

    #[test]
    fn what_is_taken_meanwhile_comes_whole_and_in_order() {
        const EVENTS: usize = 100_000;
        let (queue, mut receiver) = event_queue(1_000);
        let lanes = [queue.lane(), queue.lane()];
        thread::scope(|scope| {
            for lane in lanes {
                scope.spawn(move || {
                    for event in 0..EVENTS {
                        while push(&lane, &event.to_string()).is_err() {
                            thread::yield_now();
                        }
                    }
                });
            }
            let mut next = [0; 2];
            while next != [EVENTS; 2] {
                assert!(receiver.len() <= 1_000 + next.len());
                for (_, lines) in taken(&mut receiver, 700) {
                    for line in lines.split('\n') {
                        let event: usize = line.parse().unwrap();
                        let lane = next.iter().position(|next| *next == event);
                        next[lane.unwrap()] += 1;
                    }
                }
            }
        });
    }
}
