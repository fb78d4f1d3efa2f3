//! What both real back ends do to sockets.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::{Accepted, NetError, Rt};

/// Tells whether an idle connection has gone bad, at the moment when it is asked.
///
/// A pooled connection whose far end has closed it looks well until someone reads. This looks without reading: it says
/// stale if the far end closed, if the connection failed, or if any byte waits (nothing was asked for, so it can only be a
/// close notification, an alert or a stray answer). Costs one system call that does not wait. The value outlives the
/// stream, and says stale once the stream is gone.
#[derive(Clone)]
pub struct Staleness(Inner);

#[derive(Clone)]
enum Inner {
    /// The descriptor, owned by the stream; `None` once the stream has closed it, since the number may be reused.
    Socket(Rc<Cell<Option<RawFd>>>),
    #[cfg(any(test, feature = "sim"))]
    Sim(Rc<dyn Fn() -> bool>),
}

impl Staleness {
    /// Whether the connection must not be used again.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        match &self.0 {
            Inner::Socket(fd) => fd.get().is_none_or(peek_says_stale),
            #[cfg(any(test, feature = "sim"))]
            Inner::Sim(ask) => ask(),
        }
    }

    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn sim(ask: impl Fn() -> bool + 'static) -> Self {
        Self(Inner::Sim(Rc::new(ask)))
    }
}

impl fmt::Debug for Staleness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staleness").finish_non_exhaustive()
    }
}

/// The stream's side of [`Staleness`]: forgets the descriptor when the stream is dropped.
///
/// Must be declared before the socket in the stream's struct, so that it is dropped first.
#[derive(Debug)]
pub(crate) struct Watch(Rc<Cell<Option<RawFd>>>);

impl Watch {
    pub(crate) fn new(socket: &impl AsRawFd) -> Self {
        Self(Rc::new(Cell::new(Some(socket.as_raw_fd()))))
    }

    pub(crate) fn staleness(&self) -> Staleness {
        Staleness(Inner::Socket(Rc::clone(&self.0)))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

fn peek_says_stale(fd: RawFd) -> bool {
    #[expect(
        unsafe_code,
        reason = "the descriptor is owned by a stream that is reached by other means"
    )]
    // SAFETY: `Watch` clears the number before the stream closes the descriptor, both on this thread, so it is open now.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let mut byte = [MaybeUninit::uninit()];
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    match SockRef::from(&fd).recv_with_flags(&mut byte, flags) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    }
}

/// Makes a listening socket ready for a core: accepting never waits, and what is accepted over TCP has `TCP_NODELAY` set,
/// since Linux lets accepted sockets inherit it.
pub(crate) fn prepare_listener(listener: OwnedFd) -> io::Result<Socket> {
    let socket = Socket::from(listener);
    socket.set_nonblocking(true)?;
    if socket.domain()? != Domain::UNIX {
        socket.set_tcp_nodelay(true)?;
    }
    Ok(socket)
}

/// How long a connection to a Unix socket whose backlog is full rests before it is tried again; the kernel offers no way
/// to be told.
const UNIX_CONNECT_PAUSE: Duration = Duration::from_millis(1);

/// Connects to a Unix socket without blocking.
pub(crate) async fn connect_unix<R: Rt>(
    rt: &R,
    path: &Path,
    timeout: Duration,
    nonblocking: bool,
) -> Result<Accepted, NetError> {
    let address = SockAddr::unix(path)?;
    let ends = rt.now() + timeout;
    loop {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&address) {
            Ok(()) => {
                socket.set_nonblocking(nonblocking)?;
                return Ok(Accepted::connected(socket));
            }
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.into()),
            Err(_) if rt.now() >= ends => return Err(NetError::Timeout),
            Err(_) => rt.sleep(UNIX_CONNECT_PAUSE).await,
        }
    }
}

/// The next connection that waits at `listener`, if one does.
pub(crate) fn try_take(listener: &Socket, nonblocking: bool) -> io::Result<Option<Accepted>> {
    loop {
        match Accepted::take(listener, nonblocking) {
            Ok(accepted) => return Ok(Some(accepted)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if accept_trouble(&error) == AcceptTrouble::Skip => {}
            Err(error) => return Err(error),
        }
    }
}

/// The address that `listener` listens on.
pub(crate) fn listens_on(listener: &Socket) -> io::Result<SocketAddr> {
    let address = listener.local_addr()?.as_socket();
    address.ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// What an accept loop does about an error of `accept`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum AcceptTrouble {
    /// The connection that waited is gone; take the next.
    Skip,
    /// Out of descriptors or memory: wait, then try again.
    BackOff,
    /// The listener is of no more use.
    Fatal,
}

/// Sorts an error of `accept(2)`. Linux passes errors of the connection itself through `accept`, as its manual says.
pub(crate) fn accept_trouble(error: &io::Error) -> AcceptTrouble {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => AcceptTrouble::BackOff,
        Some(
            libc::ECONNABORTED
            | libc::ECONNRESET
            | libc::EINTR
            | libc::EPROTO
            | libc::ENOPROTOOPT
            | libc::ENETDOWN
            | libc::ENETUNREACH
            | libc::EHOSTDOWN
            | libc::EHOSTUNREACH
            | libc::ENONET
            | libc::EOPNOTSUPP
            | libc::ETIMEDOUT
            | libc::EPERM,
        ) => AcceptTrouble::Skip,
        Some(_) | None => AcceptTrouble::Fatal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_errors_are_sorted_into_skip_wait_and_give_up() {
        let sort = |errno| accept_trouble(&io::Error::from_raw_os_error(errno));
        assert_eq!(sort(libc::ECONNABORTED), AcceptTrouble::Skip);
        assert_eq!(sort(libc::EMFILE), AcceptTrouble::BackOff);
        assert_eq!(sort(libc::ENFILE), AcceptTrouble::BackOff);
        assert_eq!(sort(libc::ENOMEM), AcceptTrouble::BackOff);
        assert_eq!(sort(libc::EBADF), AcceptTrouble::Fatal);
        assert_eq!(sort(libc::EINVAL), AcceptTrouble::Fatal);
    }
}
