//! [`Rt`] on a tokio `current_thread` runtime, one per core.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use socket2::Socket;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, LocalOptions};

use crate::guard::Guarded;
use crate::listen::{ACCEPT_BACKOFF, count_backoff};
use crate::random::CoreRandom;
use crate::socket::{
    AcceptTrouble, Watch, accept_trouble, connect_unix, listens_on, prepare_listener, try_take,
};
use crate::{Accepted, Listener, NetError, Rt, Staleness, Stream, resolve};

/// A core on tokio's readiness loop. Made by [`crate::spawn_core`] and [`crate::run_here`].
#[derive(Clone)]
pub struct Epoll {
    random: Rc<CoreRandom>,
}

impl fmt::Debug for Epoll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Epoll").finish_non_exhaustive()
    }
}

/// Makes the runtime, then runs `main` to its end; all other tasks are dropped with the runtime.
///
/// `started` is called once the runtime stands.
pub(crate) fn run<T, F: Future<Output = T>>(
    started: impl FnOnce(),
    main: impl FnOnce(Epoll) -> F,
) -> io::Result<T> {
    let rt = Epoll {
        random: Rc::new(CoreRandom::new()?),
    };
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())?;
    started();
    Ok(runtime.block_on(main(rt)))
}

impl Rt for Epoll {
    type Listener = EpollListener;
    type Stream = EpollStream;
    type Sleep = EpollSleep;

    #[expect(
        clippy::disallowed_methods,
        reason = "the seam is where the clock is read"
    )]
    fn now(&self) -> Instant {
        Instant::now()
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the seam is where the clock is read"
    )]
    fn wall_now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, duration: Duration) -> EpollSleep {
        EpollSleep(Box::pin(tokio::time::sleep(duration)))
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        drop(tokio::task::spawn_local(Guarded::new(task, ())));
    }

    fn adopt(&self, listener: impl Into<OwnedFd>) -> io::Result<EpollListener> {
        let listener = prepare_listener(listener.into())?;
        #[expect(unsafe_code, reason = "tokio cannot know what keeps a descriptor open")]
        // SAFETY: a `Socket` owns its descriptor, keeps it open and never changes it.
        let inner = unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE)? };
        Ok(EpollListener { inner })
    }

    async fn connect(
        &self,
        address: SocketAddr,
        timeout: Duration,
    ) -> Result<EpollStream, NetError> {
        let stream = crate::timeout(self, timeout, TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        Ok(EpollStream::new(stream))
    }

    async fn connect_unix(&self, path: &Path, timeout: Duration) -> Result<EpollStream, NetError> {
        let connected = connect_unix(self, path, timeout, true).await?;
        Ok(EpollListener::open(connected)?)
    }

    async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, NetError> {
        resolve::resolve(host, port).await
    }

    fn random(&self, out: &mut [u8]) {
        self.random.fill(out, self.now());
    }
}

/// What [`Epoll::sleep`](Rt::sleep) returns.
#[derive(Debug)]
pub struct EpollSleep(Pin<Box<tokio::time::Sleep>>);

impl Future for EpollSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

/// A listening socket on tokio.
#[derive(Debug)]
pub struct EpollListener {
    inner: AsyncFd<Socket>,
}

impl EpollListener {
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        loop {
            let mut ready = ready!(self.inner.poll_read_ready(cx))?;
            match ready.try_io(|listener| Accepted::take(listener.get_ref(), true)) {
                Ok(Err(error)) if accept_trouble(&error) == AcceptTrouble::Skip => {}
                Ok(other) => return Poll::Ready(other),
                Err(_nothing_waits) => {}
            }
        }
    }
}

impl Listener for EpollListener {
    type Stream = EpollStream;

    async fn accept_socket(&mut self) -> io::Result<Accepted> {
        loop {
            match poll_fn(|cx| self.poll_accept(cx)).await {
                Err(error) if accept_trouble(&error) == AcceptTrouble::BackOff => {
                    count_backoff(&error);
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
                other => return other,
            }
        }
    }

    fn try_accept_socket(&mut self) -> io::Result<Option<Accepted>> {
        try_take(self.inner.get_ref(), true)
    }

    // A Unix socket, too: what tokio's `TcpStream` does with a descriptor once it has it (`recv`, `send`, `shutdown`) is
    // the same for every stream socket, so one type serves both, without a branch per call.
    fn open(accepted: Accepted) -> io::Result<EpollStream> {
        let socket = std::net::TcpStream::from(accepted.into_socket()?);
        Ok(EpollStream::new(TcpStream::from_std(socket)?))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        listens_on(self.inner.get_ref())
    }
}

/// A connection on tokio.
#[derive(Debug)]
pub struct EpollStream {
    watch: Watch,
    inner: TcpStream,
}

impl EpollStream {
    fn new(inner: TcpStream) -> Self {
        Self {
            watch: Watch::new(&inner),
            inner,
        }
    }
}

impl Stream for EpollStream {
    fn staleness(&self) -> Staleness {
        self.watch.staleness()
    }
}

impl AsyncRead for EpollStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

// `is_write_vectored` stays false on purpose: hyper then sends head and body in one `send`.
impl AsyncWrite for EpollStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bind_reuseport, run_here};

    #[test]
    fn both_ends_have_nodelay() {
        run_here(async |rt| {
            let listener = bind_reuseport("127.0.0.1:0".parse().unwrap(), 1)
                .unwrap()
                .remove(0);
            let mut listener = rt.adopt(listener).unwrap();
            let address = listener.local_addr().unwrap();
            let near = rt.connect(address, Duration::from_secs(60)).await.unwrap();
            let (far, _) = listener.accept().await.unwrap();
            assert!(near.inner.nodelay().unwrap() && far.inner.nodelay().unwrap());
        })
        .unwrap();
    }
}
