//! Connections: TLS or plain, hyper for what is well formed, and scripts of bytes for what is not.
//!
//! Listening sockets have `SO_LINGER` zero, which accepted ones inherit: dropping a connection sends RST. So every orderly
//! end says its FIN first and waits for the client's, as good servers do anyway.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    convert::Infallible,
    future::{Future as _, pending, poll_fn},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tsp_rt::{Listener as _, Rt, Staleness, Stream, tls};

use super::{
    exchange::{Reply, Request},
    raw::{End, Script, Step},
    sim::{Accept, Answer, Sim},
};

/// Connections at once; more are turned away.
const CONNECTIONS_MAX: u64 = 20_000;
/// Bytes of a request's body. Real ones stay below 200 KiB (64 KiB of plaintext and of additional data, in base64).
const BODY_BYTES_MAX: usize = 1 << 20;
/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// How long a handshake may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// How long the body of a request may take.
const BODY_TIME_MAX: Duration = Duration::from_secs(30);
/// How long a misbehaving answer goes on, if the client does not give up before.
const SCRIPT_TIME_MAX: Duration = Duration::from_secs(600);
/// How long the client's FIN is waited for after ours.
const LINGER: Duration = Duration::from_secs(1);

/// What all connections share.
pub(crate) struct Service<R> {
    pub(crate) rt: R,
    pub(crate) sim: Rc<RefCell<Sim>>,
    /// Of all connections, by number.
    desks: RefCell<HashMap<u64, Rc<Desk>>>,
}

impl<R: Rt> Service<R> {
    pub(crate) fn new(rt: R, sim: Rc<RefCell<Sim>>) -> Rc<Self> {
        Rc::new(Self {
            rt,
            sim,
            desks: RefCell::default(),
        })
    }

    /// Closes connections: at once those that are idle, the others after their answer.
    pub(crate) fn close_connections(&self) {
        for desk in self.desks.borrow().values() {
            desk.told_to_close.set(true);
        }
        self.look_again();
    }

    /// Makes every connection look at its rules again.
    pub(crate) fn look_again(&self) {
        for desk in self.desks.borrow().values() {
            desk.wake();
        }
    }

    /// Accepts until the listener is of no more use.
    pub(crate) async fn listen(
        self: Rc<Self>,
        mut listener: R::Listener,
        tls: Option<tls::ServerTls>,
    ) {
        while let Ok((stream, _)) = listener.accept().await {
            let rules = {
                let mut sim = self.sim.borrow_mut();
                let connections = &mut sim.journal.connections;
                if connections.open >= CONNECTIONS_MAX {
                    connections.turned_away += 1;
                    continue;
                }
                connections.accepted += 1;
                connections.open += 1;
                sim.connection_rules
            };
            let open = Open::new(&self);
            let (service, tls) = (Rc::clone(&self), tls.clone());
            self.rt.spawn(async move {
                match rules.accept {
                    Accept::Serve => service.handshake(stream, tls, &open.desk).await,
                    how @ (Accept::Reset | Accept::Stall | Accept::Garbage) => {
                        service.turn_away(stream, how).await;
                    }
                }
            });
        }
    }

    async fn turn_away(&self, mut stream: R::Stream, how: Accept) {
        self.sim.borrow_mut().journal.connections.turned_away += 1;
        match how {
            // Dropping it does that.
            Accept::Serve | Accept::Reset => {}
            Accept::Stall => {
                let _ = tsp_rt::timeout(&self.rt, SCRIPT_TIME_MAX, discard(&mut stream)).await;
            }
            Accept::Garbage => {
                let noise = b"this is neither TLS nor HTTP\r\n\r\n".repeat(20);
                let _ = stream.write_all(&noise).await;
                self.close(stream).await;
            }
        }
    }

    async fn handshake(
        self: &Rc<Self>,
        stream: R::Stream,
        tls: Option<tls::ServerTls>,
        desk: &Rc<Desk>,
    ) {
        let muted = Rc::new(Cell::new(false));
        let stream = Mutable {
            stream,
            muted: Rc::clone(&muted),
        };
        let stream = match tls {
            None => tls::MaybeTls::Plain(stream),
            Some(tls) => {
                let accepted = tls::accept(stream, &tls);
                // On the heap: a handshake's future is large, and there are many connections.
                let shaken = Box::pin(tsp_rt::timeout(&self.rt, HANDSHAKE_MAX, accepted)).await;
                let mut sim = self.sim.borrow_mut();
                let connections = &mut sim.journal.connections;
                match shaken {
                    Ok(Ok(stream)) => {
                        connections.handshakes += 1;
                        connections.resumed += u64::from(stream.is_resumed());
                        tls::MaybeTls::from(stream)
                    }
                    Ok(Err(_)) | Err(_) => {
                        connections.handshakes_failed += 1;
                        return;
                    }
                }
            }
        };
        self.converse(stream, &muted, desk).await;
    }

    /// Requests and answers, until one side has had enough.
    async fn converse(self: &Rc<Self>, stream: impl Stream, muted: &Cell<bool>, desk: &Rc<Desk>) {
        let service = service_fn(|request: hyper::Request<Incoming>| {
            let (service, desk) = (Rc::clone(self), Rc::clone(desk));
            // Boxed, because hyper gives a connection back only if nothing in it is pinned in place.
            Box::pin(async move { Ok::<_, Infallible>(service.answer(request, &desk).await) })
        });
        let mut connection = http1::Builder::new()
            .half_close(true)
            .header_read_timeout(None)
            .max_buf_size(HEAD_BYTES_MAX)
            .auto_date_header(false)
            .serve_connection(TokioIo::new(stream), service);
        let mut idle_timer: Option<Pin<Box<R::Sleep>>> = None;
        let mut closing = false;
        let script = poll_fn(|cx| {
            desk.watch(cx);
            if let Some(script) = desk.script.take() {
                return Poll::Ready(Some(script));
            }
            if let Poll::Ready(done) = connection.poll_without_shutdown(cx) {
                // What a client did wrong is its own affair.
                drop(done);
                return Poll::Ready(None);
            }
            if desk.script.borrow().is_some() {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let told = desk.told_to_close.get() && !desk.busy.get();
            let idle_too_long = self.is_idle_too_long(desk, &mut idle_timer, cx);
            if (told || idle_too_long) && !closing {
                closing = true;
                self.sim.borrow_mut().journal.connections.closed += 1;
                Pin::new(&mut connection).graceful_shutdown();
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        })
        .await;
        let stream = connection.into_parts().io.into_inner();
        match script {
            None => self.close(stream).await,
            Some(script) => self.perform(script, stream, muted).await,
        }
    }

    /// Whether the connection is over its idle time; sees to it that the question is asked again then.
    fn is_idle_too_long(
        &self,
        desk: &Desk,
        timer: &mut Option<Pin<Box<R::Sleep>>>,
        cx: &mut Context<'_>,
    ) -> bool {
        let Some(ms) = self.sim.borrow().connection_rules.idle_close_ms else {
            return false;
        };
        if desk.busy.get() {
            return false;
        }
        let max = Duration::from_millis(ms);
        loop {
            let idle = self
                .rt
                .now()
                .saturating_duration_since(desk.idle_since.get());
            let Some(left) = max.checked_sub(idle).filter(|left| !left.is_zero()) else {
                return true;
            };
            let sleep = timer.get_or_insert_with(|| Box::pin(self.rt.sleep(left)));
            if sleep.as_mut().poll(cx).is_pending() {
                return false;
            }
            *timer = None;
        }
    }

    async fn answer(
        &self,
        request: hyper::Request<Incoming>,
        desk: &Desk,
    ) -> Response<Full<Bytes>> {
        desk.busy.set(true);
        let arrived = self.rt.now();
        let (parts, body) = request.into_parts();
        let body = Limited::new(body, BODY_BYTES_MAX).collect();
        let response = match tsp_rt::timeout(&self.rt, BODY_TIME_MAX, body).await {
            Ok(Ok(body)) => {
                let request = Request {
                    parts,
                    body: body.to_bytes(),
                };
                let plan = self
                    .sim
                    .borrow_mut()
                    .serve(&request, self.rt.wall_now(), arrived);
                let spent = self.rt.now().saturating_duration_since(arrived);
                if let Some(left) = plan.delay.checked_sub(spent).filter(|left| !left.is_zero()) {
                    self.rt.sleep(left).await;
                }
                match plan.answer {
                    Answer::Http(reply) => response(reply),
                    Answer::Raw(script) => {
                        desk.hand_over(script);
                        // The connection is taken from hyper now.
                        pending().await
                    }
                }
            }
            Ok(Err(_)) | Err(_) => {
                let mut response = Response::new(Full::default());
                *response.status_mut() = http::StatusCode::PAYLOAD_TOO_LARGE;
                response
            }
        };
        desk.busy.set(false);
        desk.idle_since.set(self.rt.now());
        response
    }

    async fn perform(&self, script: Script, mut stream: impl Stream, muted: &Cell<bool>) {
        let written = write(&self.rt, script.steps, &mut stream);
        let written = Box::pin(tsp_rt::timeout(&self.rt, SCRIPT_TIME_MAX, written)).await;
        if !matches!(written, Ok(Ok(()))) {
            return;
        }
        match script.end {
            End::Close => self.close(stream).await,
            End::Cut => {
                muted.set(true);
                self.close(stream).await;
            }
            // Dropping it does that.
            End::Reset => {}
            End::Hang => {
                let _ = tsp_rt::timeout(&self.rt, SCRIPT_TIME_MAX, discard(&mut stream)).await;
            }
        }
    }

    /// Says FIN, and waits for the client's.
    async fn close(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let close = async {
            if stream.shutdown().await.is_ok() {
                discard(&mut stream).await;
            }
        };
        let _ = tsp_rt::timeout(&self.rt, LINGER, close).await;
    }
}

/// Keeps a connection in the books for as long as it lives.
struct Open<R: Rt> {
    service: Rc<Service<R>>,
    number: u64,
    desk: Rc<Desk>,
}

impl<R: Rt> Open<R> {
    fn new(service: &Rc<Service<R>>) -> Self {
        let desk = Rc::new(Desk {
            busy: Cell::new(false),
            idle_since: Cell::new(service.rt.now()),
            told_to_close: Cell::new(false),
            script: RefCell::new(None),
            waker: RefCell::new(None),
        });
        let number = service.sim.borrow().journal.connections.accepted;
        service.desks.borrow_mut().insert(number, Rc::clone(&desk));
        Self {
            service: Rc::clone(service),
            number,
            desk,
        }
    }
}

impl<R: Rt> Drop for Open<R> {
    fn drop(&mut self) {
        self.service.desks.borrow_mut().remove(&self.number);
        let mut sim = self.service.sim.borrow_mut();
        let open = &mut sim.journal.connections.open;
        *open = open.saturating_sub(1);
    }
}

/// Where a connection's parts meet: hyper's service, the task that drives hyper, and whoever gives orders.
struct Desk {
    /// A request is being served.
    busy: Cell<bool>,
    idle_since: Cell<Instant>,
    told_to_close: Cell<bool>,
    /// What to do with the connection instead of an answer.
    script: RefCell<Option<Script>>,
    waker: RefCell<Option<Waker>>,
}

impl Desk {
    fn watch(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker
            .as_ref()
            .is_some_and(|known| known.will_wake(cx.waker()))
        {
            *waker = Some(cx.waker().clone());
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn hand_over(&self, script: Script) {
        *self.script.borrow_mut() = Some(script);
        self.wake();
    }
}

fn response(reply: Reply) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(reply.body)));
    *response.status_mut() =
        http::StatusCode::from_u16(reply.status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    *response.headers_mut() = reply.headers;
    response
}

async fn write(rt: &impl Rt, steps: Vec<Step>, stream: &mut impl Stream) -> io::Result<()> {
    for step in steps {
        match step {
            Step::Write(bytes) => stream.write_all(&bytes).await?,
            Step::Drip { bytes, every } => {
                for byte in bytes {
                    stream.write_all(&[byte]).await?;
                    stream.flush().await?;
                    rt.sleep(every).await;
                }
            }
            Step::Repeat {
                bytes,
                every,
                bytes_max,
            } => {
                let mut left = bytes_max;
                while left > 0 {
                    let length =
                        usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
                    stream
                        .write_all(bytes.get(..length).unwrap_or(&bytes))
                        .await?;
                    left = left.saturating_sub(u64::try_from(length).unwrap_or(u64::MAX));
                    if every.is_zero() {
                        tsp_rt::yield_now().await;
                    } else {
                        stream.flush().await?;
                        rt.sleep(every).await;
                    }
                }
            }
        }
        stream.flush().await?;
    }
    Ok(())
}

/// Reads to the end, or to the error, whatever comes.
async fn discard(stream: &mut (impl AsyncRead + Unpin)) {
    let mut buffer = vec![0; 4096];
    while let Ok(1..) = stream.read(&mut buffer).await {}
}

/// A stream whose sending side can be muted: from then on nothing leaves but the FIN.
#[derive(Debug)]
struct Mutable<S> {
    stream: S,
    muted: Rc<Cell<bool>>,
}

impl<S: Stream> Stream for Mutable<S> {
    fn staleness(&self) -> Staleness {
        self.stream.staleness()
    }
}

impl<S: Stream> AsyncRead for Mutable<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: Stream> AsyncWrite for Mutable<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.muted.get() {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
