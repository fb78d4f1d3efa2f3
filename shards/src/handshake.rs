//! TLS handshakes with clients, so that they starve nobody.
//!
//! A handshake costs a shard as much as a hundred requests. So only so many may be under way at a time, each has a
//! deadline, and of those whose turn has come to be signed one is signed in each turn of the core: between two of them
//! every request that is ready gets on.

use std::{
    cell::{Cell, RefCell},
    future::Future as _,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    task::Poll,
    time::Instant,
};

use tokio::sync::Semaphore;
use tsp_rt::{
    NetError, Rt, Stream,
    tls::{Hello, ServerTls, TlsStream},
};

use crate::{
    limits::WARNING_INTERVAL,
    metrics::{ClientHandshake, ClosedBy},
    shard::{Core, yield_now},
};

/// The handshakes of one shard, and what they are done with.
#[derive(Debug)]
pub(crate) struct Handshakes {
    tls: RefCell<Option<ServerTls>>,
    under_way: Rc<Cell<usize>>,
    /// Whose turn it is to be signed; first come, first served.
    turn: Semaphore,
    /// When it was last told that one failed.
    warned: Cell<Option<Instant>>,
}

/// A place among the handshakes under way; given back on drop.
#[derive(Debug)]
pub(crate) struct Place(Rc<Cell<usize>>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl Handshakes {
    pub(crate) fn new(tls: Option<ServerTls>) -> Self {
        Self {
            tls: RefCell::new(tls),
            under_way: Rc::default(),
            turn: Semaphore::new(1),
            warned: Cell::new(None),
        }
    }

    /// What handshakes are done with from now on. Connections that stand keep what they have.
    pub(crate) fn renew(&self, tls: ServerTls) {
        let former = self.tls.replace(Some(tls));
        drop(former);
    }

    /// A place for one more, if fewer than `max` are under way.
    pub(crate) fn begin(&self, max: usize) -> Option<Place> {
        let now = self.under_way.get();
        (now < max).then(|| {
            self.under_way.set(now + 1);
            Place(Rc::clone(&self.under_way))
        })
    }
}

/// Does the handshake; `None` if it failed, which is counted.
pub(crate) async fn shake_hands<R: Rt>(
    core: &Core<R>,
    stream: R::Stream,
    peer: Option<SocketAddr>,
) -> Option<TlsStream<R::Stream>> {
    let deadline = core.rt.now() + core.limits.handshake_timeout;
    match core.by(deadline, secured(core, stream)).await {
        Some(Ok(stream)) => {
            core.metrics.client_handshake(if stream.is_resumed() {
                ClientHandshake::Resumed
            } else {
                ClientHandshake::Full
            });
            Some(stream)
        }
        Some(Err(why)) => {
            core.metrics.client_handshake(ClientHandshake::Failed);
            tell(core, peer, &why);
            None
        }
        None => {
            core.metrics.closed(ClosedBy::HandshakeTimeout);
            None
        }
    }
}

async fn secured<R: Rt, S: Stream>(core: &Core<R>, stream: S) -> Result<TlsStream<S>, NetError> {
    let hello = Hello::read(stream).await?;
    let own = &core.handshakes;
    // It is never closed, so there is a turn for everybody.
    let turn = own.turn.acquire().await;
    let Some(tls) = own.tls.borrow().clone() else {
        return Err(NetError::Tls("no certificate".to_owned()));
    };
    let mut handshake = pin!(hello.accept(&tls));
    let signed = std::future::poll_fn(|cx| Poll::Ready(handshake.as_mut().poll(cx))).await;
    yield_now().await;
    drop(turn);
    match signed {
        Poll::Ready(done) => done,
        Poll::Pending => handshake.await,
    }
}

/// Tells of a failed handshake now and then: a wrong certificate is a fault that somebody looks for, and a scanner's
/// noise is not worth a line each.
fn tell<R: Rt>(core: &Core<R>, peer: Option<SocketAddr>, why: &NetError) {
    let now = core.rt.now();
    let warned = &core.handshakes.warned;
    let due = |last| now.duration_since(last) >= WARNING_INTERVAL;
    // Who hangs up before the end is a health check more often than a client.
    if *why != NetError::Reset && warned.get().is_none_or(due) {
        warned.set(Some(now));
        tracing::warn!(
            peer = peer.map(tracing::field::display),
            %why,
            "a TLS handshake with a client failed"
        );
    }
}
