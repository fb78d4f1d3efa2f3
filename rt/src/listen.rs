//! Listening sockets, made on the main thread: one per core on one port, or one at a path.

mod unix;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

pub use self::unix::{UNIX_PATH_BYTES_MAX, UnixPath, bind_unix};

/// Connections that may wait to be accepted, per listener. The kernel cuts it to `net.core.somaxconn` (4096 by default).
pub const BACKLOG: i32 = 4096;

/// How long `accept` rests when the process is out of descriptors or memory: long enough to cost nothing, short enough
/// that clients do not notice once connections close.
pub const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// How often the port is tried, and the pause between: one second in all. A process that used io_uring keeps its port for
/// up to 0.2 s after it was killed, because the kernel takes rings down in the background.
const BIND_ATTEMPTS: u32 = 50;
const BIND_PAUSE: Duration = Duration::from_millis(20);

static ACCEPT_BACKOFFS: AtomicU64 = AtomicU64::new(0);

/// How often `accept` had to rest for want of descriptors or memory, on all cores of this process.
#[must_use]
pub fn accept_backoffs() -> u64 {
    ACCEPT_BACKOFFS.load(Ordering::Relaxed)
}

/// Counts one rest and logs it.
pub(crate) fn count_backoff(error: &io::Error) {
    // One line per rest would be ten a second and core; powers of two tell the beginning and the extent.
    let count = ACCEPT_BACKOFFS.fetch_add(1, Ordering::Relaxed) + 1;
    if count.is_power_of_two() {
        tracing::warn!(count, "accept rests for {ACCEPT_BACKOFF:?}: {error}");
    }
}

/// Binds `count` listening sockets to one address, for the kernel to spread connections over (`SO_REUSEPORT`).
///
/// Port 0 means one free port for all. `SO_REUSEADDR` is set, the backlog is [`BACKLOG`], an unspecified IPv6 address
/// also takes IPv4. Blocks for up to one second if the port is taken; call it on the main thread only.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] if another socket listens there, even one that would share the port: two proxies that
/// steal each other's connections is never what was meant. Otherwise what the kernel says.
pub fn bind_reuseport(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    persist(|| bind_all(address, count))
}

/// Tries to bind for about a second while the address is in use.
fn persist<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let mut attempt = 1;
    loop {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempt < BIND_ATTEMPTS => {
                attempt += 1;
                #[expect(
                    clippy::disallowed_methods,
                    reason = "the main thread waits for the port; no core runs yet"
                )]
                std::thread::sleep(BIND_PAUSE);
            }
            result => return result,
        }
    }
}

fn bind_all(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    if address.port() != 0 {
        // Without SO_REUSEPORT the kernel refuses a port on which any other socket listens.
        drop(bound(address, false)?);
    }
    let mut address = address;
    let mut listeners = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = bound(address, true)?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from(socket);
        if address.port() == 0 {
            address.set_port(listener.local_addr()?.port());
        }
        listeners.push(listener);
    }
    Ok(listeners)
}

fn bound(address: SocketAddr, reuse_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    if let IpAddr::V6(ip) = address.ip()
        && ip.is_unspecified()
    {
        socket.set_only_v6(false)?;
    }
    socket.bind(&SockAddr::from(address))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    #[test]
    fn all_listeners_share_one_free_port() {
        let listeners = bind_reuseport(ANY_PORT, 3).unwrap();
        let address = listeners[0].local_addr().unwrap();
        assert_ne!(address.port(), 0);
        assert!(listeners.iter().all(|l| l.local_addr().unwrap() == address));
        TcpStream::connect(address).unwrap();
    }

    #[test]
    fn a_port_that_someone_listens_on_is_refused_even_if_they_would_share_it() {
        let theirs = bind_reuseport(ANY_PORT, 1).unwrap();
        let address = theirs[0].local_addr().unwrap();
        let error = bind_reuseport(address, 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_port_that_becomes_free_within_a_second_is_taken() {
        let theirs = bind_reuseport(ANY_PORT, 1).unwrap();
        let address = theirs[0].local_addr().unwrap();
        let binder = std::thread::spawn(move || bind_reuseport(address, 1));
        drop(theirs);
        binder.join().unwrap().unwrap();
    }

    #[test]
    fn a_listener_for_any_ipv6_address_takes_ipv4_too() {
        let any = SocketAddr::new(IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED), 0);
        let Ok(listeners) = bind_reuseport(any, 1) else {
            eprintln!("skipped: this machine has no IPv6");
            return;
        };
        let port = listeners[0].local_addr().unwrap().port();
        TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port)).unwrap();
    }
}
