//! An accepted socket before it belongs to a core: it may still go to another one.

use std::fmt;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd};

use socket2::{SockAddr, Socket};

#[cfg(any(test, feature = "sim"))]
use crate::sim::SimStream;
#[cfg(any(test, feature = "sim"))]
use crate::thread_bound::ThreadBound;

/// A connection that was accepted and that no core has registered yet. It can be sent to another core of the same back
/// end, which makes its stream with [`crate::Listener::open`]. Dropping it closes the connection.
pub struct Accepted {
    inner: Inner,
    peer: Option<SocketAddr>,
}

enum Inner {
    Socket(Socket),
    /// All cores of a simulation are one thread; taken out when it is opened.
    #[cfg(any(test, feature = "sim"))]
    Sim(ThreadBound<Option<SimStream>>),
}

/// Who made a connection to a Unix socket, as the kernel knows it from the moment of `connect`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// The process; 0 if it lives in another PID namespace.
    pub pid: i32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group; supplementary groups are not told.
    pub gid: u32,
}

impl Accepted {
    /// Takes the next connection that waits at `listener`, without waiting for one.
    pub(crate) fn take(listener: &Socket, nonblocking: bool) -> io::Result<Self> {
        let flags = libc::SOCK_CLOEXEC | if nonblocking { libc::SOCK_NONBLOCK } else { 0 };
        #[expect(
            unsafe_code,
            reason = "socket2 makes two more system calls for a non-blocking socket"
        )]
        // SAFETY: accept4 writes an address of at most `length` bytes to `storage` and its length to `length`. What it
        // returns, if it is no error, is a descriptor that nobody else owns.
        let (socket, peer) = unsafe {
            SockAddr::try_init(|storage, length| {
                match libc::accept4(listener.as_raw_fd(), storage.cast(), length, flags) {
                    -1 => Err(io::Error::last_os_error()),
                    fd => Ok(Socket::from_raw_fd(fd)),
                }
            })?
        };
        Ok(Self {
            inner: Inner::Socket(socket),
            peer: peer.as_socket(),
        })
    }

    /// The near end of a connection that was made here: it becomes a core's own in the same way.
    pub(crate) fn connected(socket: Socket) -> Self {
        Self {
            inner: Inner::Socket(socket),
            peer: None,
        }
    }

    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn sim(stream: SimStream, peer: SocketAddr) -> Self {
        Self {
            inner: Inner::Sim(ThreadBound::new(Some(stream))),
            peer: Some(peer),
        }
    }

    /// The far end's address; `None` on a Unix socket.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// Who connected, on a Unix socket.
    ///
    /// # Errors
    /// What the kernel says to `SO_PEERCRED`; in the simulation, that there is no such thing.
    pub fn credentials(&self) -> io::Result<Credentials> {
        match &self.inner {
            Inner::Socket(socket) => credentials(socket),
            #[cfg(any(test, feature = "sim"))]
            Inner::Sim(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// The socket; an error for one of the simulation.
    pub(crate) fn into_socket(self) -> io::Result<Socket> {
        match self.inner {
            Inner::Socket(socket) => Ok(socket),
            #[cfg(any(test, feature = "sim"))]
            Inner::Sim(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// The stream; an error for a real one.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn into_sim(self) -> io::Result<SimStream> {
        match self.inner {
            Inner::Sim(mut stream) => stream
                .get_mut()
                .take()
                .ok_or_else(|| io::ErrorKind::NotFound.into()),
            Inner::Socket(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl fmt::Debug for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accepted")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

fn credentials(socket: &Socket) -> io::Result<Credentials> {
    let mut told = MaybeUninit::<libc::ucred>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>()).unwrap_or(0);
    #[expect(unsafe_code, reason = "socket2 does not know SO_PEERCRED")]
    // SAFETY: the kernel writes at most `length` bytes, the size of `told`, which is valid whatever bytes it holds.
    let told = unsafe {
        let outcome = libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            told.as_mut_ptr().cast(),
            &raw mut length,
        );
        if outcome == -1 {
            return Err(io::Error::last_os_error());
        }
        told.assume_init()
    };
    Ok(Credentials {
        pid: told.pid,
        uid: told.uid,
        gid: told.gid,
    })
}
