//! Mailboxes: how one core, or any thread, talks to another core. Bounded; sending never waits.
//!
//! [`bounded`] keeps every message until its capacity is reached, then refuses. [`latest`] keeps only the newest, for
//! state where the older is of no use.
//!
//! A sender wakes the receiving core at most once for each time the receiver went to sleep, however many messages it
//! sends. That is not only cheaper: glommio counts wakers of a task in 16 bits, and 32,768 wakes that a stalled core has
//! not yet looked at panic the thread that wakes.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{TryRecvError, TrySendError};
use tokio::sync::Notify;

use crate::yield_now;

/// Messages that a receiver takes in a row before it lets the core's other tasks run.
const BURST_MAX: u8 = 64;

/// A mailbox for up to `capacity` messages.
///
/// # Panics
/// If `capacity` is zero: nobody could ever send.
#[must_use]
pub fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    assert!(capacity > 0, "a mailbox holds one message at least");
    let (sender, receiver) = crossbeam_channel::bounded(capacity);
    let bell = Arc::new(Bell::default());
    (
        Sender {
            queue: Some(sender),
            bell: Arc::clone(&bell),
        },
        Receiver {
            queue: receiver,
            bell,
            burst: 0,
        },
    )
}

/// A mailbox that keeps only the newest message.
#[must_use]
pub fn latest<T>() -> (LatestSender<T>, Receiver<T>) {
    let (sender, receiver) = bounded(1);
    let stale = receiver.queue.clone();
    (LatestSender { sender, stale }, receiver)
}

/// Wakes the receiver, once per time it armed the bell.
#[derive(Default)]
struct Bell {
    /// Set by the receiver when it found nothing and is about to sleep.
    armed: AtomicBool,
    notify: Notify,
}

impl Bell {
    /// After something was put into the queue, or a sender went away.
    ///
    /// Both sides use read-modify-write on `armed`, so one comes first. If the receiver's `arm` does, this sees `true` and
    /// rings. If this does, the receiver's `arm` reads what this wrote, so that what was queued before is visible to the
    /// look into the queue that follows `arm`. Either way nothing is missed.
    fn ring(&self) {
        if self.armed.swap(false, Ordering::AcqRel) {
            // A permit is kept if the receiver is not yet waiting.
            self.notify.notify_one();
        }
    }

    fn arm(&self) {
        self.armed.swap(true, Ordering::AcqRel);
    }
}

/// The sending side of [`bounded`]; clones send to the same mailbox.
pub struct Sender<T> {
    /// `None` only while it is being dropped.
    queue: Option<crossbeam_channel::Sender<T>>,
    bell: Arc<Bell>,
}

/// Why a message was not taken; it is handed back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendError<T> {
    /// The mailbox is full. Shed and count; never wait for the other core.
    Full(T),
    /// The receiver is gone.
    Closed(T),
}

impl<T> Sender<T> {
    /// Puts a message into the mailbox, from any thread, without waiting.
    ///
    /// # Errors
    /// [`SendError`], with the message.
    pub fn send(&self, message: T) -> Result<(), SendError<T>> {
        let Some(queue) = &self.queue else {
            return Err(SendError::Closed(message));
        };
        match queue.try_send(message) {
            Ok(()) => {
                self.bell.ring();
                Ok(())
            }
            Err(TrySendError::Full(message)) => Err(SendError::Full(message)),
            Err(TrySendError::Disconnected(message)) => Err(SendError::Closed(message)),
        }
    }

    /// How many messages wait now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue
            .as_ref()
            .map_or(0, crossbeam_channel::Sender::len)
    }

    /// Whether no message waits now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            bell: Arc::clone(&self.bell),
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        // First out of the queue's count, then ring, so that the receiver that wakes sees who is left.
        self.queue = None;
        self.bell.ring();
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// The sending side of [`latest`].
pub struct LatestSender<T> {
    sender: Sender<T>,
    /// The receiver's end of the same queue, to take out what is outdated.
    stale: crossbeam_channel::Receiver<T>,
}

impl<T> LatestSender<T> {
    /// Puts a message into the mailbox in place of the one that waits there, which is returned.
    ///
    /// Takes `&mut self`, so there is one publisher and its last message is the newest.
    pub fn publish(&mut self, message: T) -> Option<T> {
        let mut replaced = None;
        let mut message = message;
        // Two rounds at most: only this sender fills the one place.
        loop {
            match self.sender.send(message) {
                Ok(()) => return replaced,
                Err(SendError::Full(back)) => {
                    message = back;
                    replaced = self.stale.try_recv().ok().or(replaced);
                }
                // Cannot be: `stale` keeps the queue open. The message is of no use to anyone then.
                Err(SendError::Closed(_)) => return replaced,
            }
        }
    }

    /// Whether the receiver has taken what was published last. What it does with it before it next lets other tasks of its
    /// core run is then done, as far as those tasks can tell.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        self.sender.is_empty()
    }
}

impl<T> fmt::Debug for LatestSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LatestSender").finish_non_exhaustive()
    }
}

/// The receiving side, for one task of one core, on any back end.
pub struct Receiver<T> {
    queue: crossbeam_channel::Receiver<T>,
    bell: Arc<Bell>,
    /// Messages taken since this last let other tasks run.
    burst: u8,
}

impl<T> Receiver<T> {
    /// The next message, in the order sent; `None` once all senders are gone and the mailbox is empty.
    ///
    /// Cancel safe: a message is taken only when it is returned. Lets the core's other tasks run now and then, even if a
    /// message always waits.
    pub async fn recv(&mut self) -> Option<T> {
        if self.burst == BURST_MAX {
            // First, so that a caller that keeps cancelling gets on too.
            self.burst = 0;
            yield_now().await;
        }
        self.burst += 1;
        loop {
            if let Some(answer) = self.poll_queue() {
                return answer;
            }
            self.bell.arm();
            if let Some(answer) = self.poll_queue() {
                return answer;
            }
            self.bell.notify.notified().await;
            self.burst = 0;
        }
    }

    /// A message that waits already, without waiting for one.
    pub fn try_recv(&mut self) -> Option<T> {
        self.queue.try_recv().ok()
    }

    /// `Some` if there is something to say: a message, or that there will be none.
    #[expect(
        clippy::option_option,
        reason = "the outer says whether to wait, the inner is the answer"
    )]
    fn poll_queue(&mut self) -> Option<Option<T>> {
        match self.queue.try_recv() {
            Ok(message) => Some(Some(message)),
            Err(TryRecvError::Disconnected) => Some(None),
            Err(TryRecvError::Empty) => None,
        }
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver")
            .field("len", &self.queue.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::sync::atomic::AtomicUsize;
    use std::task::{Context, Poll, Wake, Waker};

    use super::*;

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn messages_come_in_order_and_then_the_end() {
        let (sender, mut receiver) = bounded(3);
        let second = sender.clone();
        assert!(sender.is_empty());
        sender.send(1).unwrap();
        second.send(2).unwrap();
        assert_eq!(sender.len(), 2);
        drop((sender, second));
        crate::run_here(async |_| {
            assert_eq!(receiver.recv().await, Some(1));
            assert_eq!(receiver.recv().await, Some(2));
            assert_eq!(receiver.recv().await, None);
            assert_eq!(receiver.recv().await, None);
        })
        .unwrap();
    }

    #[test]
    fn a_full_or_closed_mailbox_hands_the_message_back() {
        let (sender, receiver) = bounded(1);
        sender.send("a").unwrap();
        assert_eq!(sender.send("b"), Err(SendError::Full("b")));
        drop(receiver);
        assert_eq!(sender.send("c"), Err(SendError::Closed("c")));
    }

    #[test]
    fn the_newest_replaces_what_waits() {
        let (mut sender, mut receiver) = latest();
        assert!(sender.is_taken(), "nothing was published");
        assert_eq!(sender.publish(1), None);
        assert_eq!(sender.publish(2), Some(1));
        assert_eq!(sender.publish(3), Some(2));
        assert!(!sender.is_taken());
        assert_eq!(receiver.try_recv(), Some(3));
        assert!(sender.is_taken());
        assert_eq!(receiver.try_recv(), None);
        assert_eq!(sender.publish(4), None);
        drop(sender);
        crate::run_here(async |_| {
            assert_eq!(receiver.recv().await, Some(4));
            assert_eq!(receiver.recv().await, None);
        })
        .unwrap();
    }

    #[test]
    fn a_receiver_is_woken_once_however_many_messages_come() {
        let (sender, mut receiver) = bounded(1000);
        let counter = Arc::new(Counter::default());
        let waker = Waker::from(Arc::clone(&counter));
        let mut context = Context::from_waker(&waker);
        {
            let mut waits = pin!(receiver.recv());
            assert!(waits.as_mut().poll(&mut context).is_pending());
            for n in 0..1000 {
                sender.send(n).unwrap();
            }
            assert_eq!(counter.0.load(Ordering::SeqCst), 1);
            assert_eq!(waits.as_mut().poll(&mut context), Poll::Ready(Some(0)));
        }
        for n in 1..1000 {
            assert_eq!(receiver.try_recv(), Some(n));
        }
        assert_eq!(counter.0.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_cancelled_wait_loses_no_message_and_no_wake() {
        let (sender, mut receiver) = bounded(8);
        let counter = Arc::new(Counter::default());
        let waker = Waker::from(Arc::clone(&counter));
        let mut context = Context::from_waker(&waker);
        assert!(pin!(receiver.recv()).poll(&mut context).is_pending());
        // Nobody waits any more, but the bell is armed.
        sender.send(7).unwrap();
        assert_eq!(
            pin!(receiver.recv()).poll(&mut context),
            Poll::Ready(Some(7))
        );
        let mut waits = pin!(receiver.recv());
        // The permit of the bell that rang for nobody may let it look once more; it must end up waiting.
        assert!(waits.as_mut().poll(&mut context).is_pending());
        let before = counter.0.load(Ordering::SeqCst);
        sender.send(8).unwrap();
        assert_eq!(counter.0.load(Ordering::SeqCst), before + 1);
        assert_eq!(waits.as_mut().poll(&mut context), Poll::Ready(Some(8)));
    }

    #[test]
    fn the_last_sender_that_goes_wakes_the_receiver() {
        let (sender, mut receiver) = bounded::<u8>(1);
        let counter = Arc::new(Counter::default());
        let waker = Waker::from(Arc::clone(&counter));
        let mut context = Context::from_waker(&waker);
        let mut waits = pin!(receiver.recv());
        assert!(waits.as_mut().poll(&mut context).is_pending());
        drop(sender);
        assert_eq!(counter.0.load(Ordering::SeqCst), 1);
        assert_eq!(waits.as_mut().poll(&mut context), Poll::Ready(None));
    }
}
