//! Client connections: hyper on a watched stream, and the limits on their time.
//!
//! No timer runs per request. Each connection notes what it is doing and since when; one task per shard looks at all of
//! them twice a second and closes what is over its time.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::Future as _,
    io,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tsp_rt::{Rt, Stream};

use crate::{
    api,
    balance::Seat,
    limits::Limits,
    metrics::{ClosedBy, ShardMetrics},
    shard::Core,
};

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Between requests, or sending an answer.
    Idle,
    /// The first bytes of a head have come.
    Head,
    /// A request is being served; it has deadlines of its own.
    Busy,
}

/// What the shard knows of one connection.
#[derive(Debug)]
struct State {
    phase: Cell<Phase>,
    since: Cell<Instant>,
    draining: Cell<bool>,
    closed: Cell<Option<ClosedBy>>,
    waker: RefCell<Option<Waker>>,
}

impl State {
    fn enter(&self, phase: Phase, now: Instant) {
        self.phase.set(phase);
        self.since.set(now);
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Remembers whom to wake, without a clone where it is the same task as before.
    fn watch(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker
            .as_ref()
            .is_some_and(|known| known.will_wake(cx.waker()))
        {
            *waker = Some(cx.waker().clone());
        }
    }
}

/// All connections of one shard.
#[derive(Debug)]
pub(crate) struct Connections {
    open: RefCell<HashMap<u64, Rc<State>>>,
    next: Cell<u64>,
    draining: Cell<bool>,
    metrics: Arc<ShardMetrics>,
}

impl Connections {
    pub(crate) fn new(metrics: Arc<ShardMetrics>) -> Self {
        Self {
            open: RefCell::default(),
            next: Cell::new(0),
            draining: Cell::new(false),
            metrics,
        }
    }

    /// Finishes what is under way and closes the rest.
    pub(crate) fn drain(&self) {
        self.draining.set(true);
        for state in self.open.borrow().values() {
            state.draining.set(true);
            state.wake();
        }
    }

    /// Closes every connection, whatever it is doing.
    pub(crate) fn close_all(&self) {
        for state in self.open.borrow().values() {
            state.closed.set(Some(ClosedBy::DrainDeadline));
            state.wake();
        }
    }

    /// Closes the connections that are over their time.
    pub(crate) fn sweep(&self, now: Instant, limits: &Limits) {
        for state in self.open.borrow().values() {
            let (reason, max) = match state.phase.get() {
                Phase::Idle => (ClosedBy::IdleTimeout, limits.idle_timeout),
                Phase::Head => (ClosedBy::HeadTimeout, limits.head_timeout),
                Phase::Busy => continue,
            };
            if now.saturating_duration_since(state.since.get()) > max {
                state.closed.set(Some(reason));
                state.wake();
            }
        }
    }

    /// Takes a new connection into the books; it leaves them when the entry is dropped.
    pub(crate) fn register(self: &Rc<Self>, now: Instant, seat: Seat) -> Registered {
        let id = self.next.get();
        self.next.set(id.wrapping_add(1));
        let state = Rc::new(State {
            phase: Cell::new(Phase::Idle),
            since: Cell::new(now),
            draining: Cell::new(self.draining.get()),
            closed: Cell::new(None),
            waker: RefCell::default(),
        });
        self.open.borrow_mut().insert(id, Rc::clone(&state));
        self.metrics.connection_opened();
        Registered {
            connections: Rc::clone(self),
            id,
            state,
            _seat: seat,
        }
    }
}

/// A connection's entry; it goes when the connection's task does, also by a panic.
#[derive(Debug)]
pub(crate) struct Registered {
    connections: Rc<Connections>,
    id: u64,
    state: Rc<State>,
    _seat: Seat,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.connections.open.borrow_mut().remove(&self.id);
        self.connections.metrics.connection_closed();
    }
}

/// Serves one client connection to its end.
pub(crate) async fn serve<R: Rt, S: Stream>(core: Rc<Core<R>>, stream: S, entry: Registered) {
    let state = Rc::clone(&entry.state);
    let watched = Watched {
        stream,
        state: Rc::clone(&state),
        rt: core.rt.clone(),
    };
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let (core, state) = (Rc::clone(&core), Rc::clone(&state));
        async move {
            let began = core.rt.now();
            state.enter(Phase::Busy, began);
            let response = api::serve(&core, request, began).await;
            state.enter(Phase::Idle, core.rt.now());
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    // A client may close its sending side and still wait for the answer. There is no hyper timer: see the module's head.
    let connection = http1::Builder::new()
        .half_close(true)
        .header_read_timeout(None)
        .max_buf_size(core.limits.head_bytes_max)
        .serve_connection(TokioIo::new(watched), service);
    let mut connection = pin!(connection);
    let mut told_to_finish = false;
    let ended = std::future::poll_fn(|cx| {
        state.watch(cx);
        if let Some(reason) = state.closed.get() {
            return Poll::Ready(Err(reason));
        }
        if state.draining.get() && !told_to_finish {
            told_to_finish = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(cx).map(Ok)
    })
    .await;
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(why)) if why.is_parse_too_large() => core.metrics.closed(ClosedBy::HeadBytesMax),
        Ok(Err(why)) if why.is_parse() => core.metrics.closed(ClosedBy::BadHead),
        // The client went away in the middle; nobody is left to tell.
        Ok(Err(why)) => tracing::debug!(%why, "a client connection broke off"),
        Err(reason) => core.metrics.closed(reason),
    }
}

/// A client's stream that notes when a request's first byte comes.
struct Watched<R, S> {
    stream: S,
    state: Rc<State>,
    rt: R,
}

// Nothing in it is pinned in place: the stream is `Unpin` and the rest is only looked at.
impl<R, S> Unpin for Watched<R, S> {}

impl<R: Rt, S: Stream> AsyncRead for Watched<R, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before && self.state.phase.get() == Phase::Idle {
            self.state.enter(Phase::Head, self.rt.now());
        }
        read
    }
}

impl<R: Rt, S: Stream> AsyncWrite for Watched<R, S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
