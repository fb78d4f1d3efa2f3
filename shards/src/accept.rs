//! Where clients come in: the listeners of one shard, and what is asked of a connection before it is served.

use std::{
    cell::Cell, future::Future as _, io, os::fd::OwnedFd, pin::pin, rc::Rc, sync::Arc, task::Poll,
    time::Instant,
};

use tokio::sync::Notify;
use tsp_rt::{Accepted, Credentials, Listener as _, Rt};

use crate::{
    balance::{Seat, Seating, Share},
    conn, handshake,
    limits::WARNING_INTERVAL,
    metrics::ClosedBy,
    peers::{Exchange, Peers},
    shard::Core,
};

/// Who may connect to a Unix socket, beyond what the permissions of its file say: processes that run as one of these
/// users, or with one of these groups as their effective one.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct UnixPeers {
    /// Users, by number.
    pub uids: Vec<u32>,
    /// Groups, by number.
    pub gids: Vec<u32>,
}

impl UnixPeers {
    fn allow(&self, peer: &Credentials) -> bool {
        self.uids.contains(&peer.uid) || self.gids.contains(&peer.gid)
    }
}

/// How clients come to a listener, and what is asked of them there.
#[derive(Clone, Debug)]
pub enum Way {
    /// TCP, in the clear, each shard with a listener of its own.
    Tcp,
    /// TLS over TCP, likewise.
    Tls,
    /// A Unix socket, in the clear, which one shard listens on for all. `None` lets in whom the file's permissions do.
    Unix(Option<Arc<UnixPeers>>),
}

/// One listener of a shard.
#[derive(Debug)]
pub struct Entrance<L> {
    /// Where connections come from.
    pub listener: L,
    /// What they are.
    pub way: Way,
}

impl Entrance<OwnedFd> {
    /// Makes the listener a core's own.
    ///
    /// # Errors
    /// As [`Rt::adopt`].
    pub fn adopt<R: Rt>(self, rt: &R) -> io::Result<Entrance<R::Listener>> {
        Ok(Entrance {
            listener: rt.adopt(self.listener)?,
            way: self.way,
        })
    }
}

/// A connection that another shard has accepted for this one.
#[derive(Debug)]
pub(crate) struct Fresh {
    accepted: Accepted,
    seat: Seat,
    /// Whether it speaks TLS.
    secure: bool,
}

/// What the accept loops of a shard and its main task tell each other.
#[derive(Default)]
pub(crate) struct Gate {
    closing: Cell<bool>,
    bell: Notify,
    loops: Cell<usize>,
    failed: Notify,
}

impl Gate {
    /// Tells the loops to take what waits already, and to end.
    pub(crate) fn close(&self) {
        self.closing.set(true);
        self.bell.notify_waiters();
    }

    /// Whether a loop still goes on.
    pub(crate) fn is_open(&self) -> bool {
        self.loops.get() > 0
    }

    /// Completes when a listener has failed.
    pub(crate) async fn failed(&self) {
        self.failed.notified().await;
    }
}

/// One accept loop among those of a [`Gate`].
struct Loop(Rc<Gate>);

impl Loop {
    fn among(gate: &Rc<Gate>) -> Self {
        gate.loops.set(gate.loops.get() + 1);
        Self(Rc::clone(gate))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.0.loops.set(self.0.loops.get().saturating_sub(1));
    }
}

/// Starts to serve the entrances, and what the other shards hand over.
pub(crate) fn start<R: Rt>(
    core: &Rc<Core<R>>,
    entrances: Vec<Entrance<R::Listener>>,
    exchange: Exchange<Fresh>,
) -> Rc<Gate> {
    let gate = Rc::<Gate>::default();
    let Exchange { peers, mut inbox } = exchange;
    let peers = Rc::new(peers);
    for Entrance { listener, way } in entrances {
        let porter = Porter {
            core: Rc::clone(core),
            peers: Rc::clone(&peers),
            way,
            warned: Cell::new(None),
        };
        let run = Loop::among(&gate);
        core.rt
            .spawn(async move { porter.accept(listener, run).await });
    }
    let core = Rc::clone(core);
    core.rt.clone().spawn(async move {
        while let Some(fresh) = inbox.recv().await {
            welcome(&core, fresh);
        }
    });
    gate
}

/// Lets connections in at one entrance.
struct Porter<R: Rt> {
    core: Rc<Core<R>>,
    peers: Rc<Peers<Fresh>>,
    way: Way,
    /// When it last told that somebody was turned away.
    warned: Cell<Option<Instant>>,
}

impl<R: Rt> Porter<R> {
    async fn accept(self, mut listener: R::Listener, run: Loop) {
        let Loop(gate) = &run;
        let mut closing = pin!(gate.bell.notified());
        let mut draining = false;
        loop {
            let accepted = {
                let mut accept = pin!(listener.accept_socket());
                std::future::poll_fn(|cx| {
                    draining |= gate.closing.get() || closing.as_mut().poll(cx).is_ready();
                    if draining {
                        return Poll::Ready(None);
                    }
                    accept.as_mut().poll(cx).map(Some)
                })
                .await
            };
            let accepted = match accepted {
                Some(accepted) => accepted,
                // The kernel resets what still waits when the listener goes, so that is served first.
                None => match listener.try_accept_socket() {
                    Ok(Some(waiting)) => Ok(waiting),
                    Ok(None) | Err(_) => return,
                },
            };
            match accepted {
                Ok(accepted) => self.let_in(accepted, draining),
                // The listener has waited already where that helps. A shard that cannot accept is no shard: end it all.
                Err(why) => {
                    tracing::error!(%why, "the listener failed");
                    gate.failed.notify_one();
                    return;
                }
            }
        }
    }

    fn let_in(&self, accepted: Accepted, draining: bool) {
        let core = &self.core;
        let (share, secure) = match &self.way {
            Way::Tcp => (Share::Own, false),
            Way::Tls => (Share::Own, true),
            Way::Unix(peers) => {
                if let Some(peers) = peers
                    && !self.is_allowed(&accepted, peers)
                {
                    core.metrics.closed(ClosedBy::PeerNotAllowed);
                    return;
                }
                (Share::Everyones, false)
            }
        };
        let max = core.limits.connections_max;
        let seating = if draining && core.balance.own() < max {
            Seating::Here(core.balance.seat_here())
        } else {
            core.balance.seat(share, max)
        };
        let fresh = |seat| Fresh {
            accepted,
            seat,
            secure,
        };
        match seating {
            Seating::Here(seat) => welcome(core, fresh(seat)),
            Seating::There(shard, seat) => match self.peers.send(shard, fresh(seat)) {
                Ok(()) => core.metrics.handed_over(),
                // Its mailbox is full: it is busier than its connections tell.
                Err(mut fresh) => {
                    fresh.seat = core.balance.seat_here();
                    welcome(core, fresh);
                }
            },
            Seating::Full => core.metrics.closed(ClosedBy::ConnectionsMax),
        }
    }

    fn is_allowed(&self, accepted: &Accepted, peers: &UnixPeers) -> bool {
        let peer = accepted.credentials();
        if peer.as_ref().is_ok_and(|peer| peers.allow(peer)) {
            return true;
        }
        let now = self.core.rt.now();
        let due = |last| now.duration_since(last) >= WARNING_INTERVAL;
        if self.warned.get().is_none_or(due) {
            self.warned.set(Some(now));
            match peer {
                Ok(Credentials { pid, uid, gid }) => tracing::warn!(
                    pid,
                    uid,
                    gid,
                    "turned away from the Unix socket: neither user nor group is among those allowed"
                ),
                Err(why) => tracing::warn!(
                    %why,
                    "turned away from the Unix socket: the kernel does not tell who it was"
                ),
            }
        }
        false
    }
}

/// Serves a connection on this shard.
fn welcome<R: Rt>(core: &Rc<Core<R>>, fresh: Fresh) {
    let Fresh {
        accepted,
        seat,
        secure,
    } = fresh;
    let peer = accepted.peer();
    let stream = match R::Listener::open(accepted) {
        Ok(stream) => stream,
        Err(why) => {
            tracing::warn!(%why, "an accepted connection could not be registered");
            return;
        }
    };
    let entry = core.connections.register(core.rt.now(), seat);
    if !secure {
        core.rt.spawn(conn::serve(Rc::clone(core), stream, entry));
        return;
    }
    let Some(place) = core.handshakes.begin(core.limits.handshakes_max) else {
        core.metrics.closed(ClosedBy::HandshakesMax);
        return;
    };
    let core = Rc::clone(core);
    core.rt.clone().spawn(async move {
        let shaken = handshake::shake_hands(&core, stream, peer).await;
        drop(place);
        if let Some(stream) = shaken {
            conn::serve(core, stream, entry).await;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_allowed_by_its_user_or_its_group() {
        let peers = UnixPeers {
            uids: vec![1000],
            gids: vec![50],
        };
        let allowed = |uid, gid| peers.allow(&Credentials { pid: 1, uid, gid });
        assert!(allowed(1000, 7) && allowed(7, 50));
        assert!(!allowed(50, 1000) && !allowed(0, 0));
    }
}
