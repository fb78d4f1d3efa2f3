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
}

impl<T> Receiver<T> {
    /// The next message, in the order sent; `None` once all senders are gone and the mailbox is empty.
    ///
    /// Cancel safe: a message is taken only when it is returned.
    pub async fn recv(&mut self) -> Option<T> {
        loop {
            if let Some(answer) = self.poll_queue() {
                return answer;
            }
            self.bell.arm();
            if let Some(answer) = self.poll_queue() {
                return answer;
            }
            self.bell.notify.notified().await;
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
