//! Client connections: hyper on a watched stream, and the limits on their time.
//!
//! No timer runs per request. Each connection notes what it is doing and since when; one task per shard looks at all of
//! them twice a second and closes what is over its time.
//!
//! A connection that nobody has used for some seconds rests: hyper and its 16 KiB of buffers are given back, and only the
//! stream is kept, until its next byte comes.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::Future as _,
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use hyper::{
    Method,
    body::Incoming,
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
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
    /// Whether hyper has nothing left of the last request: its body was read to the end.
    whole: Cell<bool>,
    /// Whether something was written and not yet flushed.
    unsent: Cell<bool>,
    /// Whether it may rest.
    rest: Cell<bool>,
    /// Whether its next answer is its last.
    draining: Cell<bool>,
    /// Whether it goes if no request has come.
    leaving: Cell<bool>,
    closed: Cell<Option<ClosedBy>>,
    waker: RefCell<Option<Waker>>,
}

impl State {
    fn enter(&self, phase: Phase, now: Instant) {
        self.phase.set(phase);
        self.since.set(now);
        self.rest.set(false);
    }

    /// Whether nothing would be lost without hyper: between two requests, all read and all sent.
    fn rests(&self) -> bool {
        self.rest.get() && self.phase.get() == Phase::Idle && self.whole.get() && !self.unsent.get()
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
    leaving: Cell<bool>,
    metrics: Arc<ShardMetrics>,
}

impl Connections {
    pub(crate) fn new(metrics: Arc<ShardMetrics>) -> Self {
        Self {
            open: RefCell::default(),
            next: Cell::new(0),
            draining: Cell::new(false),
            leaving: Cell::new(false),
            metrics,
        }
    }

    /// Has every answer from now on be its connection's last, and say so. What has no request stays for the one that may be
    /// on its way, until [`Self::leave`].
    pub(crate) fn drain(&self) {
        self.draining.set(true);
        for state in self.open.borrow().values() {
            state.draining.set(true);
        }
    }

    /// Finishes what is under way and closes the rest. More than the first call changes nothing.
    pub(crate) fn leave(&self) {
        if self.leaving.replace(true) {
            return;
        }
        for state in self.open.borrow().values() {
            state.leaving.set(true);
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
            let time = now.saturating_duration_since(state.since.get());
            if time > max {
                state.closed.set(Some(reason));
                state.wake();
            } else if time > limits.rest_after
                && reason == ClosedBy::IdleTimeout
                && !state.rest.replace(true)
            {
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
            whole: Cell::new(true),
            unsent: Cell::new(false),
            rest: Cell::new(false),
            draining: Cell::new(self.draining.get()),
            leaving: Cell::new(self.leaving.get()),
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
    let mut watched = Watched {
        stream,
        first: Bytes::new(),
        state: Rc::clone(&state),
        rt: core.rt.clone(),
    };
    let ended = loop {
        // In a place of its own, so that a connection at rest is small.
        match Box::pin(speak(&core, &state, watched)).await {
            Ok(Spoken::Over) => break Ok(()),
            Ok(Spoken::Resting(resting)) => watched = resting,
            Err(why) => break Err(why),
        }
        match wait(&state, &mut watched).await {
            Ok(true) => {}
            Ok(false) => {
                farewell(&mut watched).await;
                break Ok(());
            }
            Err(why) => break Err(Broken::Closed(why)),
        }
    };
    match ended {
        Ok(()) => {}
        Err(Broken::Http(why)) if why.is_parse_too_large() => {
            core.metrics.closed(ClosedBy::HeadBytesMax);
        }
        Err(Broken::Http(why)) if why.is_parse() => core.metrics.closed(ClosedBy::BadHead),
        // The client went away in the middle; nobody is left to tell.
        Err(Broken::Http(why)) => tracing::debug!(%why, "a client connection broke off"),
        Err(Broken::Closed(reason)) => core.metrics.closed(reason),
    }
}

/// How hyper's work on a connection ended.
enum Spoken<R, S> {
    /// With the connection.
    Over,
    /// Nothing is to be done until the next byte comes.
    Resting(Watched<R, S>),
}

enum Broken {
    Http(hyper::Error),
    Closed(ClosedBy),
}

/// Has hyper serve requests until the connection is over or may rest.
async fn speak<R: Rt, S: Stream>(
    core: &Rc<Core<R>>,
    state: &Rc<State>,
    watched: Watched<R, S>,
) -> Result<Spoken<R, S>, Broken> {
    let service = service_fn(|request: hyper::Request<Incoming>| async move {
        let began = core.rt.now();
        state.enter(Phase::Busy, began);
        let reads_all = request.method() == Method::POST;
        let mut response = api::serve(core, request, began).await;
        // What succeeds has read its request's body to the end. hyper closes a connection with an unread one by itself; that it
        // never rests is not left to that.
        state.whole.set(reads_all && response.status().is_success());
        state.enter(Phase::Idle, core.rt.now());
        if state.draining.get() {
            let headers = response.headers_mut();
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok::<_, std::convert::Infallible>(response)
    });
    // A client may close its sending side and still wait for the answer. There is no hyper timer: see the module's head.
    let mut connection = http1::Builder::new()
        .half_close(true)
        .header_read_timeout(None)
        .max_buf_size(core.limits.head_bytes_max)
        .serve_connection(TokioIo::new(watched), service);
    let mut told_to_finish = false;
    let rests = std::future::poll_fn(|cx| {
        state.watch(cx);
        if let Some(reason) = state.closed.get() {
            return Poll::Ready(Err(Broken::Closed(reason)));
        }
        let mut polled = Pin::new(&mut connection).poll(cx);
        // Not before a look at what has come: without a request hyper closes at once.
        if polled.is_pending() && state.leaving.get() && !told_to_finish {
            told_to_finish = true;
            Pin::new(&mut connection).graceful_shutdown();
            polled = Pin::new(&mut connection).poll(cx);
        }
        match polled {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(false)),
            Poll::Ready(Err(why)) => Poll::Ready(Err(Broken::Http(why))),
            Poll::Pending if state.rests() && !told_to_finish => Poll::Ready(Ok(true)),
            Poll::Pending => Poll::Pending,
        }
    })
    .await?;
    if !rests {
        return Ok(Spoken::Over);
    }
    let parts = connection.into_parts();
    let mut watched = parts.io.into_inner();
    // The beginning of a request that came with the one before.
    watched.first = parts.read_buf;
    Ok(Spoken::Resting(watched))
}

/// Waits for a resting connection's next byte. `false` if there will be none.
async fn wait<R: Rt, S: Stream>(
    state: &State,
    watched: &mut Watched<R, S>,
) -> Result<bool, ClosedBy> {
    if !watched.first.is_empty() {
        return Ok(true);
    }
    let mut byte = [0];
    let came = std::future::poll_fn(|cx| {
        state.watch(cx);
        if let Some(reason) = state.closed.get() {
            return Poll::Ready(Err(reason));
        }
        let mut buf = ReadBuf::new(&mut byte);
        match Pin::new(&mut watched.stream).poll_read(cx, &mut buf) {
            Poll::Ready(read) => Poll::Ready(Ok(read.is_ok() && !buf.filled().is_empty())),
            Poll::Pending if state.leaving.get() => Poll::Ready(Ok(false)),
            Poll::Pending => Poll::Pending,
        }
    })
    .await?;
    if came {
        watched.first = Bytes::copy_from_slice(&byte);
    }
    Ok(came)
}

/// Ends a resting connection as hyper does, without waiting for a client that reads nothing.
async fn farewell<R: Rt, S: Stream>(watched: &mut Watched<R, S>) {
    std::future::poll_fn(|cx| {
        drop(Pin::new(&mut watched.stream).poll_shutdown(cx));
        Poll::Ready(())
    })
    .await;
}

/// A client's stream that notes when a request's first byte comes.
struct Watched<R, S> {
    stream: S,
    /// Read already, and still to be given to hyper.
    first: Bytes,
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
        let read = if self.first.is_empty() {
            Pin::new(&mut self.stream).poll_read(cx, buf)
        } else {
            let length = self.first.len().min(buf.remaining());
            buf.put_slice(&self.first.split_to(length));
            Poll::Ready(Ok(()))
        };
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
        self.state.unsent.set(true);
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if flushed.is_ready() {
            self.state.unsent.set(false);
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
