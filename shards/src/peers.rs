//! How shards talk to each other about what is rare and dear: a token, a leased key. Each such thing has a home, the
//! shard that its hash names; there it is fetched once for the whole process, and sent to every shard's own table.

use std::{sync::Arc, time::Duration};

use tsp_rt::{Rt, mailbox};

/// Messages of one kind that one shard may have waiting from the others. Each shard asks once for each thing, so this is
/// more than any snapshot brings in one moment; what does not fit is asked for again.
const PEER_MESSAGES_MAX: usize = 4_096;

/// Pause before an answer is offered again to a shard whose mailbox is full, and how often.
const OFFER_PAUSE: Duration = Duration::from_millis(1);
const OFFERS_MAX: usize = 5_000;

/// One shard's ends of the mailboxes between all of them.
#[derive(Debug)]
pub(crate) struct Exchange<M> {
    pub(crate) peers: Peers<M>,
    pub(crate) inbox: mailbox::Receiver<M>,
}

/// One shard's ways to all shards, itself included.
#[derive(Debug)]
pub(crate) struct Peers<M> {
    /// The shard's own place among them.
    pub(crate) index: usize,
    senders: Arc<[mailbox::Sender<M>]>,
}

impl<M> Exchange<M> {
    /// Mailboxes for `shards` shards.
    pub(crate) fn among(shards: usize) -> Vec<Self> {
        let (senders, inboxes): (Vec<_>, Vec<_>) = (0..shards)
            .map(|_| mailbox::bounded(PEER_MESSAGES_MAX))
            .unzip();
        let senders: Arc<[_]> = senders.into();
        let exchange = |(index, inbox)| Self {
            peers: Peers {
                index,
                senders: Arc::clone(&senders),
            },
            inbox,
        };
        inboxes.into_iter().enumerate().map(exchange).collect()
    }
}

impl<M> Peers<M> {
    /// Number of shards.
    pub(crate) fn len(&self) -> usize {
        self.senders.len()
    }

    /// The home of what has `number`, a hash that is the same on every shard.
    pub(crate) fn home(&self, number: u64) -> usize {
        let shards = u64::try_from(self.senders.len()).unwrap_or(1).max(1);
        usize::try_from(number % shards).unwrap_or(0)
    }

    /// Puts a message into a shard's mailbox.
    ///
    /// # Errors
    /// The message, if there is no room now.
    pub(crate) fn send(&self, to: usize, message: M) -> Result<(), M> {
        let Some(peer) = self.senders.get(to) else {
            return Err(message);
        };
        peer.send(message).map_err(|why| match why {
            mailbox::SendError::Full(message) | mailbox::SendError::Closed(message) => message,
        })
    }

    /// Puts a message into a shard's mailbox, even if that takes a while: an answer that others wait for.
    pub(crate) async fn deliver<R: Rt>(&self, rt: &R, to: usize, mut message: M) {
        for _ in 0..OFFERS_MAX {
            match self.send(to, message) {
                Ok(()) => return,
                Err(back) => message = back,
            }
            rt.sleep(OFFER_PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tsp_rt::sim::Sim;

    use super::*;

    #[test]
    fn an_answer_waits_for_room_in_a_full_mailbox() {
        Sim::new(1).run(async |rt| {
            let mut exchanges = Exchange::among(2).into_iter();
            let (Some(from), Some(mut to)) = (exchanges.next(), exchanges.next()) else {
                panic!("two were asked for");
            };
            for number in 0..PEER_MESSAGES_MAX {
                from.peers.send(1, number).unwrap();
            }
            assert_eq!(from.peers.send(1, 7), Err(7));
            let sender = rt.clone();
            rt.spawn(async move {
                from.peers.deliver(&sender, 1, PEER_MESSAGES_MAX).await;
            });
            rt.sleep(OFFER_PAUSE * 10).await;
            for number in 0..=PEER_MESSAGES_MAX {
                assert_eq!(to.inbox.recv().await, Some(number));
            }
        });
    }
}
