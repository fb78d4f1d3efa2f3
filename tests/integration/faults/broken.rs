//! What is at an address instead of a KMS.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use socket2::{Domain, SockRef, Socket, Type};
use tsp_loadtest::kmssim::{Authority, CertificateKind, Kmssim, Options, Sample, SampleShape};

use super::table::Broken;

/// A connection on the loopback is made at once, or not at all because the queue is full.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(200);

/// A host without an address; [`host_aliases`] sees to it.
const NAMELESS: &str = "tsp-nowhere";

/// What a process finds in the file that `HOSTALIASES` names: [`NAMELESS`] is another word for a name that cannot be, since
/// its label is too long. So the C library finds no address for it without asking a name server, which a test must not do.
pub(super) fn host_aliases() -> String {
    format!("{NAMELESS} {}.example\n", "n".repeat(64))
}

/// Something broken at an address of its own, for as long as this lives.
#[derive(Debug)]
pub(super) struct Site {
    /// `https://HOST:PORT`.
    pub(super) url: String,
    _held: Held,
}

#[derive(Debug)]
enum Held {
    Nothing,
    Socket(#[expect(dead_code, reason = "held open")] Socket),
    Full(
        #[expect(dead_code, reason = "held open")] Socket,
        #[expect(dead_code, reason = "held open")] Vec<TcpStream>,
    ),
    Listener(#[expect(dead_code, reason = "held open")] TcpListener),
    Simulator(#[expect(dead_code, reason = "runs until dropped")] Box<Kmssim>),
}

impl Site {
    /// `authority` is the one that the proxy trusts; `number` is this site's alone.
    pub(super) fn new(what: Broken, authority: &Authority, number: usize) -> Self {
        let (url, held) = match what {
            // A port of its own, so that nothing learnt of one such host is used for another.
            Broken::NoName => (
                format!("https://{NAMELESS}:{}", 1000 + number),
                Held::Nothing,
            ),
            Broken::Refuses => {
                let socket = bound();
                (url(&socket), Held::Socket(socket))
            }
            Broken::Vanishes => {
                let socket = bound();
                socket.listen(0).expect("it can listen");
                let queue = fill(address(&socket));
                (url(&socket), Held::Full(socket, queue))
            }
            Broken::IsSilent => {
                // The kernel makes the connections; nobody ever takes them.
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
                let port = listener.local_addr().expect("it is bound").port();
                (
                    format!("https://localhost:{port}"),
                    Held::Listener(listener),
                )
            }
            Broken::Cuts => serve(|mut stream| {
                // Not before the other side has seen that it is connected.
                let _ = stream.read(&mut [0; 16]);
                let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            }),
            Broken::Babbles => serve(|stream| say(stream, &b"neither TLS nor HTTP\r\n".repeat(20))),
            Broken::IsPlain => {
                serve(|stream| {
                    say(stream, b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                })
            }
            Broken::IsAStranger => simulator(None, CertificateKind::Good),
            Broken::HasAnotherName => simulator(Some(authority), CertificateKind::OtherNames),
            Broken::IsExpired => simulator(Some(authority), CertificateKind::Expired),
        };
        Self { url, _held: held }
    }
}

fn bound() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket can be made");
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    socket.bind(&any.into()).expect("a free port");
    socket
}

fn address(socket: &Socket) -> SocketAddr {
    let address = socket.local_addr().expect("it is bound").as_socket();
    address.expect("it is an IP socket")
}

fn url(socket: &Socket) -> String {
    format!("https://127.0.0.1:{}", address(socket).port())
}

/// Connections that nobody takes, until the kernel lets no more in.
fn fill(address: SocketAddr) -> Vec<TcpStream> {
    let connect = || TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).ok();
    std::iter::from_fn(connect).collect()
}

/// Does the same with every connection.
fn serve(answer: fn(TcpStream)) -> (String, Held) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    // Ends with the test's process.
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || answer(stream));
        }
    });
    (format!("https://localhost:{port}"), Held::Nothing)
}

/// Waits for the other side to begin, says `bytes`, and ends in order.
fn say(mut stream: TcpStream, bytes: &[u8]) {
    let mut buffer = [0; 4096];
    // Whatever fails is the proxy's end of the connection.
    let _ = stream.read(&mut buffer);
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    while let Ok(1..) = stream.read(&mut buffer) {}
}

fn simulator(authority: Option<&Authority>, certificate: CertificateKind) -> (String, Held) {
    let empty = SampleShape {
        tenants: 0,
        ..SampleShape::default()
    };
    let running = Kmssim::start(Options {
        authority: authority.cloned(),
        certificate,
        ..Options::on_loopback(Sample::new(&empty))
    });
    let running = running.expect("the simulator starts");
    (running.url(), Held::Simulator(Box::new(running)))
}
