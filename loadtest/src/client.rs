//! One keep-alive connection to the proxy: hyper's client, with as little around it as can be.

use std::{
    fmt,
    future::{Future, poll_fn},
    net::SocketAddr,
    path::PathBuf,
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    HeaderMap, Request, StatusCode,
    client::conn::http1,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use tsp_rt::{
    NetError, Rt,
    tls::{self, ClientTls, MaybeTls},
};

use crate::{calls::Call, front::Transport};

/// Longest time to connect, and again for a TLS handshake. On loopback they take microseconds and milliseconds; beyond this
/// the far end's accept queue is full.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Whom to ask, and with which key.
#[derive(Clone, Debug)]
pub struct Target {
    address: Address,
    headers: HeaderMap,
    tls: Option<TlsTarget>,
}

#[derive(Clone, Debug)]
enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

#[derive(Clone, Debug)]
struct TlsTarget {
    client: ClientTls,
    server_name: String,
}

impl Target {
    /// The proxy at `address`. `host` is what the `host` header says; `None` if one of the two texts could not stand in
    /// a header.
    #[must_use]
    pub fn new(address: SocketAddr, host: &str, api_key: &str) -> Option<Self> {
        Self::at(Address::Tcp(address), host, api_key)
    }

    /// Likewise the proxy that listens on the Unix socket at `path`.
    #[must_use]
    pub fn unix(path: PathBuf, host: &str, api_key: &str) -> Option<Self> {
        Self::at(Address::Unix(path), host, api_key)
    }

    fn at(address: Address, host: &str, api_key: &str) -> Option<Self> {
        let mut authorization = HeaderValue::from_str(&format!("cmk {api_key}")).ok()?;
        authorization.set_sensitive(true);
        let mut headers = HeaderMap::with_capacity(4);
        headers.insert(HOST, HeaderValue::from_str(host).ok()?);
        headers.insert(AUTHORIZATION, authorization);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Some(Self {
            address,
            headers,
            tls: None,
        })
    }

    /// The same inside TLS, by the proxy or by whoever ends it before that. `server_name` is checked against the certificate.
    #[must_use]
    pub fn with_tls(mut self, client: ClientTls, server_name: &str) -> Self {
        let server_name = server_name.to_owned();
        self.tls = Some(TlsTarget {
            client,
            server_name,
        });
        self
    }

    /// How it is reached.
    #[must_use]
    pub fn transport(&self) -> Transport {
        match (&self.address, &self.tls) {
            (_, Some(_)) => Transport::Tls,
            (Address::Tcp(_), None) => Transport::Tcp,
            (Address::Unix(_), None) => Transport::Unix,
        }
    }

    async fn connect<R: Rt>(&self, rt: &R) -> Result<MaybeTls<R::Stream>, NetError> {
        let stream = match &self.address {
            Address::Tcp(address) => rt.connect(*address, CONNECT_TIMEOUT).await?,
            Address::Unix(path) => rt.connect_unix(path, CONNECT_TIMEOUT).await?,
        };
        match &self.tls {
            None => Ok(MaybeTls::Plain(stream)),
            Some(TlsTarget {
                client,
                server_name,
            }) => {
                let handshake = tls::connect(stream, client, server_name);
                let stream = tsp_rt::timeout(rt, CONNECT_TIMEOUT, handshake).await??;
                Ok(stream.into())
            }
        }
    }
}

/// Why a request was not answered as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// There is no connection.
    Connect(NetError),
    /// The connection broke before the whole answer was there.
    Broken(String),
    /// The answer's status is not 200; with the answer.
    Status(u16, String),
    /// The answer is 200, but not one to this request; with the answer's length in bytes, since it may hold a key.
    Shape(usize),
}

impl Failure {
    /// Names of the kinds of failure, in the order of [`Failure::index`].
    pub const KINDS: [&str; 4] = ["connect", "broken", "status", "shape"];

    /// The number of its kind.
    #[must_use]
    pub fn index(&self) -> usize {
        match self {
            Self::Connect(_) => 0,
            Self::Broken(_) => 1,
            Self::Status(..) => 2,
            Self::Shape(_) => 3,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(why) => write!(f, "no connection: {why}"),
            Self::Broken(why) => write!(f, "the connection broke: {why}"),
            Self::Status(status, body) => write!(f, "status {status}: {body}"),
            Self::Shape(bytes) => write!(f, "status 200 with {bytes} bytes that are no answer"),
        }
    }
}

/// Longest piece of an error answer that is kept, in bytes.
const SHOWN_BYTES_MAX: usize = 200;

/// One connection, made when it is first needed, and made anew after it broke.
pub struct Client<R: Rt> {
    rt: R,
    target: Target,
    link: Option<Link<R>>,
}

type Connection<R> = http1::Connection<TokioIo<MaybeTls<<R as Rt>::Stream>>, Full<Bytes>>;

struct Link<R: Rt> {
    sender: http1::SendRequest<Full<Bytes>>,
    connection: Pin<Box<Connection<R>>>,
}

impl<R: Rt> fmt::Debug for Client<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("target", &self.target.address)
            .finish_non_exhaustive()
    }
}

impl<R: Rt> Client<R> {
    /// A client that is not connected yet.
    pub fn new(rt: R, target: Target) -> Self {
        Self {
            rt,
            target,
            link: None,
        }
    }

    /// Connects, unless it is connected.
    ///
    /// # Errors
    /// [`Failure::Connect`] or [`Failure::Broken`].
    pub async fn connect(&mut self) -> Result<(), Failure> {
        if self.link.is_none() {
            let stream = self.target.connect(&self.rt).await;
            let io = TokioIo::new(stream.map_err(Failure::Connect)?);
            let (sender, connection) = http1::handshake(io).await.map_err(|why| broken(&why))?;
            self.link = Some(Link {
                sender,
                connection: Box::pin(connection),
            });
        }
        Ok(())
    }

    /// Sends `call` and gives the body of its answer, which is a right one.
    ///
    /// # Errors
    /// [`Failure`]; the next call has a new connection if this one broke.
    pub async fn call(&mut self, call: &Call) -> Result<Bytes, Failure> {
        self.connect().await?;
        let (status, body) = match &mut self.link {
            Some(link) => exchange(link, request(&self.target, call)).await,
            None => Err(Failure::Connect(NetError::Refused)),
        }
        .inspect_err(|_| self.link = None)?;
        if status != StatusCode::OK {
            let shown = body.get(..SHOWN_BYTES_MAX).unwrap_or(&body);
            return Err(Failure::Status(
                status.as_u16(),
                String::from_utf8_lossy(shown).into(),
            ));
        }
        if !call.is_answered_by(&body) {
            return Err(Failure::Shape(body.len()));
        }
        Ok(body)
    }
}

fn broken(why: &hyper::Error) -> Failure {
    Failure::Broken(why.to_string())
}

fn request(target: &Target, call: &Call) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(call.body.clone()));
    *request.method_mut() = hyper::Method::POST;
    *request.uri_mut() = hyper::Uri::from_static(call.path);
    *request.headers_mut() = target.headers.clone();
    request
}

/// Sends a request and reads the whole answer.
///
/// The connection has no task of its own but is polled here, which saves two wake-ups per request.
async fn exchange<R: Rt>(
    link: &mut Link<R>,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), Failure> {
    let Link { sender, connection } = link;
    let mut answer = pin!(async {
        sender.ready().await?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        Ok::<_, hyper::Error>((status, response.into_body().collect().await?.to_bytes()))
    });
    poll_fn(|cx| {
        if let Poll::Ready(answered) = answer.as_mut().poll(cx) {
            return Poll::Ready(answered.map_err(|why| broken(&why)));
        }
        // A connection that has ended must not be polled again; whatever it had, it has handed over.
        let ended = connection.as_mut().poll(cx).is_ready();
        let answered = answer.as_mut().poll(cx).map_err(|why| broken(&why));
        if ended && answered.is_pending() {
            return Poll::Ready(Err(Failure::Broken("the server closed it".to_owned())));
        }
        answered
    })
    .await
}
