//! The kernel as the proxy sees it: io_uring, epoll or a simulation behind one trait.
//!
//! Everything above this crate is written once, against [`Rt`]: a clock, timers, tasks, TCP streams that speak tokio's
//! plain `AsyncRead` and `AsyncWrite`, names, randomness. Three back ends implement it:
//!
//! | back end | built on | for |
//! | --- | --- | --- |
//! | [`Uring`] | glommio | kernels and containers that allow io_uring |
//! | [`Epoll`] | a tokio `current_thread` runtime | everywhere else, and the control core |
//! | `sim` (feature `sim`) | one thread, virtual time, a network in memory | deterministic tests |
//!
//! What holds for all of them:
//!
//! - A core is one thread. Its tasks never move, so they may hold `Rc` and `RefCell`. [`Rt::spawn`] queues a task; it
//!   never runs it before `spawn` returns.
//! - A panic in a task ends that task only; it is counted ([`task_panics`]) and logged.
//! - When the main future of a core ends, its other tasks are dropped, and with them their sockets close.
//! - Nothing here blocks a core: names are resolved on threads of their own, randomness needs no system call.
//! - Between cores only [`mailbox`] and tokio's runtime-neutral `sync` types may be used. Never `tokio::time`,
//!   `tokio::spawn`, `tokio::net` or anything of glommio.
//!
//! This is the only crate that names glommio, and the only one that may hold `unsafe`.

mod accepted;
mod cores;
mod epoll;
mod error;
mod guard;
mod hyper_rt;
mod limits;
mod listen;
pub mod mailbox;
mod offload;
mod probe;
mod random;
mod resolve;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod socket;
mod thread_bound;
pub mod tls;
mod uring;

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use tokio::io::{AsyncRead, AsyncWrite};

pub use accepted::{Accepted, Credentials};
pub use cores::{Backend, CoreEnd, CoreMain, CoreThread, run_here, spawn_core, spawn_core_watched};
pub use epoll::{Epoll, EpollListener, EpollSleep, EpollStream};
pub use error::{CertificateFault, NetError};
pub use guard::task_panics;
pub use hyper_rt::{HyperExecutor, HyperSleep, HyperTimer};
pub use limits::{LimitChange, LimitsRaised, raise_limits};
pub use listen::{
    ACCEPT_BACKOFF, BACKLOG, UNIX_PATH_BYTES_MAX, UnixPath, accept_backoffs, bind_reuseport,
    bind_unix,
};
pub use probe::{AUTO_PREFERS, IoChoice, IoChoiceError, Probe, ProbeError, choose};
pub use socket::Staleness;
pub use uring::ring::{RingFlag, ring_flag};
pub use uring::{Uring, UringListener, UringSleep, UringStream};

/// What a core asks of its kernel. One value per core; clones are handles to the same core.
///
/// None of the methods blocks. All of them must be called on the core's own thread, from inside its main future or one
/// of its tasks.
pub trait Rt: Clone + 'static {
    /// A listening socket of this back end.
    type Listener: Listener<Stream = Self::Stream>;
    /// A connection of this back end, over TCP or a Unix socket.
    type Stream: Stream;
    /// What [`Rt::sleep`] returns. Dropping it cancels the timer.
    type Sleep: Future<Output = ()> + Unpin + 'static;

    /// The monotonic clock.
    fn now(&self) -> Instant;

    /// The wall clock, for signatures and timestamps. It may jump.
    fn wall_now(&self) -> SystemTime;

    /// Completes `duration` from now, at the earliest; the time runs from this call, not from the first poll.
    fn sleep(&self, duration: Duration) -> Self::Sleep;

    /// Queues `task` on this core. It starts after the caller has yielded, never inside this call.
    ///
    /// A panic in it is caught, counted ([`task_panics`]) and logged; the core goes on. The task is dropped, unfinished,
    /// when the core's main future ends.
    fn spawn(&self, task: impl Future<Output = ()> + 'static);

    /// Makes a listening socket, of those that [`bind_reuseport`] and [`bind_unix`] make, this core's own.
    ///
    /// # Errors
    /// Whatever the kernel says to `fcntl` and to registering the socket.
    fn adopt(&self, listener: impl Into<OwnedFd>) -> io::Result<Self::Listener>;

    /// Opens a TCP connection, with `TCP_NODELAY` set.
    ///
    /// # Errors
    /// [`NetError::Timeout`] after `timeout`; [`NetError::Refused`], [`NetError::Unreachable`] and others as the kernel
    /// says.
    fn connect(
        &self,
        address: SocketAddr,
        timeout: Duration,
    ) -> impl Future<Output = Result<Self::Stream, NetError>>;

    /// Connects to a Unix socket.
    ///
    /// # Errors
    /// [`NetError::Timeout`] if its backlog stays full for `timeout`; otherwise what the kernel says, and that there are no
    /// such sockets on a back end without files.
    fn connect_unix(
        &self,
        path: &Path,
        timeout: Duration,
    ) -> impl Future<Output = Result<Self::Stream, NetError>> {
        let _ = (path, timeout);
        std::future::ready(Err(NetError::Io(io::ErrorKind::Unsupported)))
    }

    /// Looks a name up, off the core, on a few threads that all cores share. IP literals (an IPv6 one with or without its
    /// brackets) are answered at once.
    ///
    /// The answer has at least one address. There is no deadline in here: wrap it in [`timeout`].
    ///
    /// # Errors
    /// [`NetError::Unresolved`] if there is no such name; [`NetError::Exhausted`] if the resolver's queue is full.
    fn resolve(
        &self,
        host: &str,
        port: u16,
    ) -> impl Future<Output = Result<Vec<SocketAddr>, NetError>>;

    /// Fills `out` with random bytes fit for keys, without a system call.
    fn random(&self, out: &mut [u8]);

    /// Computes something that takes longer than a core may be held (100 µs), on a thread of its own that all cores
    /// share. It goes on if this future is dropped.
    ///
    /// # Errors
    /// [`NetError::Exhausted`] if the thread's queue is full, or if `work` panicked, which is counted and logged.
    fn offload<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = Result<T, NetError>> {
        offload::offload(work)
    }
}

/// A listening socket that belongs to one core.
pub trait Listener: fmt::Debug + 'static {
    /// The connections it gives.
    type Stream;

    /// The next connection, not yet this core's own: [`Listener::open`] makes it that, here or on another core. Over TCP
    /// it has `TCP_NODELAY` set.
    ///
    /// Connections that died while they waited are skipped. When the process or the machine is out of descriptors or
    /// memory it waits [`ACCEPT_BACKOFF`], counts that in [`accept_backoffs`] and tries again, so an accept loop
    /// neither spins nor ends. Cancel safe: no connection is lost when the future is dropped.
    ///
    /// # Errors
    /// Only those after which this listener is of no more use.
    fn accept_socket(&mut self) -> impl Future<Output = io::Result<Accepted>>;

    /// A connection that waits already, if there is one; does not wait for one.
    ///
    /// A core that drains calls it until it says `None` before it drops the listener, because the kernel resets what
    /// still waits then.
    ///
    /// # Errors
    /// As [`Listener::accept_socket`], and also when out of descriptors.
    fn try_accept_socket(&mut self) -> io::Result<Option<Accepted>>;

    /// Makes a connection that this or another core's listener accepted the calling core's own.
    ///
    /// # Errors
    /// What the kernel says to registering the socket; the connection is closed then.
    fn open(accepted: Accepted) -> io::Result<Self::Stream>;

    /// The next connection, made this core's own, and its far end, which has no address on a Unix socket.
    ///
    /// # Errors
    /// As [`Listener::accept_socket`] and [`Listener::open`].
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Stream, Option<SocketAddr>)>> {
        async {
            let accepted = self.accept_socket().await?;
            let peer = accepted.peer();
            Ok((Self::open(accepted)?, peer))
        }
    }

    /// A connection that waits already, made this core's own.
    ///
    /// # Errors
    /// As [`Listener::try_accept_socket`] and [`Listener::open`].
    fn try_accept(&mut self) -> io::Result<Option<(Self::Stream, Option<SocketAddr>)>> {
        let Some(accepted) = self.try_accept_socket()? else {
            return Ok(None);
        };
        let peer = accepted.peer();
        Ok(Some((Self::open(accepted)?, peer)))
    }

    /// The address it listens on.
    ///
    /// # Errors
    /// Whatever the kernel says to `getsockname`; [`io::ErrorKind::Unsupported`] on a Unix socket, which has none.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// A connection. `shutdown` sends FIN after what was written; reading goes on.
pub trait Stream: AsyncRead + AsyncWrite + fmt::Debug + Unpin + 'static {
    /// Tells, at any later time, whether an idle connection has gone bad; see [`Staleness`].
    ///
    /// It stays valid when hyper owns the stream, which is the reason why it is a value of its own.
    fn staleness(&self) -> Staleness;

    /// Whether an idle connection must not be used again: the far end closed it, or sent what nobody asked for.
    fn is_stale(&self) -> bool {
        self.staleness().is_stale()
    }
}

/// Gives `future` up after `duration`.
///
/// # Errors
/// [`NetError::Timeout`] if it was not ready in time. It is polled once at least, even if `duration` is zero.
pub async fn timeout<R: Rt, T>(
    rt: &R,
    duration: Duration,
    future: impl Future<Output = T>,
) -> Result<T, NetError> {
    first_of(future, || rt.sleep(duration))
        .await
        .ok_or(NetError::Timeout)
}

/// Waits for `future`, but not beyond `deadline`: `None` if it was not ready by then. It is polled once at least. Where it is
/// ready at once, the clock is not asked and no timer is made.
pub async fn by<R: Rt, T>(rt: &R, deadline: Instant, future: impl Future<Output = T>) -> Option<T> {
    first_of(future, || {
        rt.sleep(deadline.saturating_duration_since(rt.now()))
    })
    .await
}

async fn first_of<T, S: Future<Output = ()> + Unpin>(
    future: impl Future<Output = T>,
    sleep: impl FnOnce() -> S,
) -> Option<T> {
    use std::task::Poll;

    let mut future = std::pin::pin!(future);
    let (mut sleep, mut asleep) = (Some(sleep), None);
    std::future::poll_fn(move |cx| {
        if let Poll::Ready(value) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(value));
        }
        if let Some(sleep) = sleep.take() {
            asleep = Some(sleep());
        }
        match &mut asleep {
            Some(asleep) => std::pin::Pin::new(asleep).poll(cx).map(|()| None),
            None => Poll::Pending,
        }
    })
    .await
}

/// Lets the core's other tasks run, then goes on. For loops that could be long.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(move |cx| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}
