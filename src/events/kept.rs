//! The acknowledged mode: events are kept until a logdriver says that they are on its disk. `wire/src/event/take.rs` has the
//! question and the answer.
//!
//! What must stay true: a logdriver has at most one batch out, and gets the same one again until it says that it has it. Those
//! that are out count as held, so that the bound is for all together.

use std::{
    collections::HashMap,
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
    thread,
    time::Instant,
};

use anng::{Message, Socket, protocols::reqrep0::Rep0};
use crossbeam_channel::{Receiver, TryRecvError, after};
use tsp_shards::{EventBatch, EventReceiver};
use tsp_wire::event::{Take, Taken};

use super::{
    EventCounters, FLUSH_MAX, FLUSH_MAX_UNREAD, Held, IDLE_MAX, LINGER, count, current_thread_waker,
};

/// Most events of an answer, and the size in bytes beyond which batches are not joined into one. An answer costs a sync of the
/// logdriver's disk, which is worth some thousand events.
const ANSWER_EVENTS_MAX: usize = 2_048;
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// Questions by anybody after which a batch goes to another logdriver, if who has it asked none: some seconds at least, as
/// nobody asks more often than every few milliseconds.
const AWAY_AFTER_QUESTIONS: u64 = 1_000;

/// Logdrivers that are told of the end. A proxy has a few.
const CONSUMERS_MAX: usize = 256;

/// Keeps events.
pub(super) struct Keeper {
    queue: EventReceiver,
    held: Held,
    out: Vec<Batch>,
    /// Who asks.
    consumers: HashMap<u64, Consumer>,
    /// What shards said last; every consumer gets it.
    last_words: Option<EventBatch>,
    /// Most events here, those that are out included.
    high_water_mark: usize,
    stopped: Receiver<()>,
    deadline: Option<Receiver<Instant>>,
    counters: EventCounters,
    /// This process, so that numbers of another are not taken for its own.
    instance: u64,
    batches: u64,
    questions: u64,
    waker: Waker,
}

/// A logdriver.
#[derive(Default)]
struct Consumer {
    /// Its last question, counting all.
    asked: u64,
    /// Whether it was given what shards said last.
    told: bool,
}

/// Events that a logdriver was given.
struct Batch {
    consumer: u64,
    number: u64,
    events: EventBatch,
    /// The last question of its consumer, counting all.
    asked: u64,
}

impl Keeper {
    pub(super) fn new(
        queue: EventReceiver,
        high_water_mark: usize,
        stopped: Receiver<()>,
        counters: EventCounters,
        instance: u64,
    ) -> Self {
        Self {
            queue,
            held: Held::default(),
            out: Vec::new(),
            consumers: HashMap::new(),
            last_words: None,
            high_water_mark,
            stopped,
            deadline: None,
            counters,
            instance,
            batches: 0,
            questions: 0,
            waker: current_thread_waker(),
        }
    }

    pub(super) fn run(&mut self, socket: &Socket<Rep0>) {
        let mut context = socket.context();
        while !self.is_done() {
            let Some(asked) = self.wait(context.receive()) else {
                break;
            };
            let (question, responder) = match asked {
                Ok(asked) => asked,
                Err(error) => {
                    tracing::warn!(%error, "the event socket takes no questions");
                    thread::park_timeout(IDLE_MAX);
                    continue;
                }
            };
            let answer = match Take::from_bytes(question.as_slice()) {
                Some(take) => self.answer(take),
                // Of another version: it is told that nothing waits.
                None => self.empty(),
            };
            // Who asked may be gone; the batch stays out.
            let _ = self.wait(responder.reply(Message::from(answer.as_slice())));
        }
        let lost = self.held.events + self.out_events() + self.queue.len();
        self.counters.failed.inc_by(count(lost));
        let failed = self.counters.failed.get();
        if failed > 0 {
            tracing::warn!(
                events = failed,
                "security events were lost: no logdriver acknowledged them"
            );
        }
        if self.counters.pushed.get() > 0 {
            thread::park_timeout(LINGER);
        }
    }

    /// Waits for the socket, and meanwhile takes from the queue. `None` when it is time to end.
    fn wait<T>(&mut self, future: impl Future<Output = T>) -> Option<T> {
        let waker = self.waker.clone();
        let mut context = Context::from_waker(&waker);
        let mut future = pin!(future);
        loop {
            self.take_from_queue();
            if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                return Some(value);
            }
            if self.deadline.is_none() && self.stopped.try_recv() != Err(TryRecvError::Empty) {
                let is_read = self.counters.pushed.get() > 0;
                self.deadline = Some(after(if is_read { FLUSH_MAX } else { FLUSH_MAX_UNREAD }));
                // Whoever sends has ended before.
                self.last_words = self.queue.last_words();
            }
            let deadline = self.deadline.as_ref();
            if deadline.is_some_and(|deadline| deadline.try_recv().is_ok()) || self.is_done() {
                return None;
            }
            thread::park_timeout(IDLE_MAX);
        }
    }

    /// Whether it was told to stop, and nothing is left to hand over.
    fn is_done(&self) -> bool {
        self.deadline.is_some()
            && self.held.events == 0
            && self.out.is_empty()
            && self.queue.is_empty()
            && (self.last_words.is_none() || self.consumers.values().all(|who| who.told))
    }

    /// Takes note of who asks, and forgets who asks no more.
    fn follow(&mut self, consumer: u64) {
        let questions = self.questions;
        self.consumers
            .retain(|_, who| questions - who.asked <= AWAY_AFTER_QUESTIONS);
        if self.consumers.len() < CONSUMERS_MAX || self.consumers.contains_key(&consumer) {
            self.consumers.entry(consumer).or_default().asked = questions;
        }
    }

    fn answer(&mut self, take: Take) -> Vec<u8> {
        self.questions += 1;
        self.follow(take.consumer);
        let own = |batch: &Batch| batch.consumer == take.consumer;
        if let Some(at) = self.out.iter().position(own)
            && self
                .out
                .get(at)
                .is_some_and(|batch| batch.number == take.stored)
        {
            let batch = self.out.swap_remove(at);
            self.counters.pushed.inc_by(count(batch.events.events()));
            self.take_from_queue();
        }
        if !take.more {
            return self.empty();
        }
        let questions = self.questions;
        let away = |batch: &Batch| questions - batch.asked > AWAY_AFTER_QUESTIONS;
        let known = self.out.iter().position(own);
        let at = match known.or_else(|| self.out.iter().position(away)) {
            Some(at) => at,
            None => {
                let next = self.next_batch(take.consumer);
                let Some(batch) = next.or_else(|| self.last_batch(take.consumer)) else {
                    return self.empty();
                };
                self.out.push(batch);
                self.out.len() - 1
            }
        };
        let Some(batch) = self.out.get_mut(at) else {
            return self.empty();
        };
        (batch.consumer, batch.asked) = (take.consumer, questions);
        let head = Taken {
            instance: self.instance,
            batch: batch.number,
        };
        let mut answer = head.to_bytes().to_vec();
        // The version stands in the head.
        answer.extend_from_slice(batch.events.lines());
        answer
    }

    fn empty(&self) -> Vec<u8> {
        let head = Taken {
            instance: self.instance,
            batch: 0,
        };
        head.to_bytes().to_vec()
    }

    fn next_batch(&mut self, consumer: u64) -> Option<Batch> {
        let events = self.held.next(ANSWER_EVENTS_MAX, ANSWER_BYTES_MAX)?;
        Some(self.batch(consumer, events))
    }

    /// What shards said last, once for each.
    fn last_batch(&mut self, consumer: u64) -> Option<Batch> {
        let words = self.last_words.clone()?;
        let who = self.consumers.get_mut(&consumer)?;
        if std::mem::replace(&mut who.told, true) {
            return None;
        }
        Some(self.batch(consumer, words))
    }

    fn batch(&mut self, consumer: u64, events: EventBatch) -> Batch {
        self.batches += 1;
        Batch {
            consumer,
            number: self.batches,
            events,
            asked: self.questions,
        }
    }

    fn out_events(&self) -> usize {
        self.out.iter().map(|batch| batch.events.events()).sum()
    }

    fn take_from_queue(&mut self) {
        let out = self.out_events();
        let room = self.high_water_mark - self.held.events - out;
        self.held.take_from(&mut self.queue, room);
        let held = i64::try_from(self.held.events + out).unwrap_or(i64::MAX);
        self.counters.held.set(held);
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{IntCounter, IntGauge};
    use tsp_shards::event_queue;

    use super::*;

    fn keeper(events: usize, high_water_mark: usize) -> Keeper {
        let (queue, receiver) = event_queue(events);
        let lane = queue.lane();
        for number in 0..events {
            lane.push(|out| out.extend_from_slice(number.to_string().as_bytes()))
                .unwrap();
        }
        let (_stop, stopped) = crossbeam_channel::bounded(1);
        let counters = EventCounters {
            pushed: IntCounter::new("pushed", "pushed").unwrap(),
            failed: IntCounter::new("failed", "failed").unwrap(),
            held: IntGauge::new("held", "held").unwrap(),
        };
        let mut keeper = Keeper::new(receiver, high_water_mark, stopped, counters, 9);
        keeper.take_from_queue();
        keeper
    }

    fn ask(keeper: &mut Keeper, consumer: u64, stored: u64) -> (u64, String) {
        let answer = keeper.answer(Take {
            consumer,
            stored,
            more: true,
        });
        let (head, events) = Taken::from_bytes(&answer).unwrap();
        assert_eq!(head.instance, 9);
        (head.batch, String::from_utf8(events.to_vec()).unwrap())
    }

    #[test]
    fn a_batch_comes_again_until_it_is_acknowledged() {
        let mut keeper = keeper(3, 2);
        let first = (1, "0\n1".to_owned());
        assert_eq!(ask(&mut keeper, 1, 0), first);
        assert_eq!(ask(&mut keeper, 1, 0), first);
        // Another logdriver gets none of it; and nothing more is taken, since what is out is held.
        assert_eq!(ask(&mut keeper, 2, 0), (0, String::new()));
        assert_eq!(keeper.queue.len(), 1);
        assert_eq!(ask(&mut keeper, 1, 1), (2, "2".to_owned()));
        assert_eq!(keeper.counters.pushed.get(), 2);
        assert_eq!(ask(&mut keeper, 1, 2), (0, String::new()));
        assert_eq!((keeper.counters.pushed.get(), keeper.out_events()), (3, 0));
    }

    #[test]
    fn every_logdriver_is_told_of_the_end() {
        let mut keeper = keeper(1, 10);
        assert_eq!(ask(&mut keeper, 1, 0), (1, "0".to_owned()));
        assert_eq!(ask(&mut keeper, 2, 0).0, 0);
        let (queue, mut receiver) = event_queue(1);
        let lane = queue.lane();
        lane.push_last(|out| out.extend_from_slice(b"end")).unwrap();
        keeper.last_words = receiver.last_words();
        keeper.deadline = Some(after(FLUSH_MAX));
        assert_eq!(ask(&mut keeper, 2, 0), (2, "end".to_owned()));
        assert_eq!(ask(&mut keeper, 1, 1), (3, "end".to_owned()));
        assert_eq!(ask(&mut keeper, 2, 2).0, 0);
        assert!(!keeper.is_done(), "one has not acknowledged it");
        assert_eq!(ask(&mut keeper, 1, 3).0, 0);
        assert!(keeper.is_done());
        assert_eq!((keeper.counters.pushed.get(), keeper.out_events()), (1, 0));
    }

    #[test]
    fn a_batch_of_one_who_stays_away_goes_to_another() {
        let mut keeper = keeper(1, 10);
        assert_eq!(ask(&mut keeper, 1, 0).0, 1);
        for _ in 0..AWAY_AFTER_QUESTIONS {
            assert_eq!(ask(&mut keeper, 2, 0).0, 0);
        }
        assert_eq!(ask(&mut keeper, 2, 0), (1, "0".to_owned()));
        // The first one comes back, and is too late.
        assert_eq!(ask(&mut keeper, 1, 1).0, 0);
        assert_eq!(keeper.counters.pushed.get(), 0);
        assert_eq!(ask(&mut keeper, 2, 1).0, 0);
        assert_eq!(keeper.counters.pushed.get(), 1);
    }
}
