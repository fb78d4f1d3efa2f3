//! The way out: every connection to what a tenant named is made here.
//!
//! Who writes a logging configuration chooses where this process connects to. So an address is judged after its name has been
//! looked up, each time that a connection is made (`tsp_wire::destinations`); no redirection is followed; and what is not
//! encrypted does not leave the operator's own networks. Every call has a deadline, and every answer a greatest size.
//!
//! HTTP/1.1, one connection per sink, kept while it is of use: a sink has one call at a time.

use std::{
    error::Error as StdError,
    fmt,
    io::{self, Write as _},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    HeaderMap, Method, Request, StatusCode, Uri,
    client::conn::http1::{self, SendRequest},
    header::{self, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::Mutex,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tsp_kms::{Endpoint, HttpAnswer, HttpRequest};
use tsp_wire::destinations::{AddressKind, Destinations};

use crate::{clock, sink::Failure};

/// Longest wait for a connection, with TLS, to one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest wait for an answer, from the call's beginning: log systems take their time under load.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;

/// Largest answer that is read, in bytes: an error per event of the largest call fits.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// How long an unused connection is trusted to be there still: shorter than what load balancers have.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// Most of what an answer says that is repeated in a sentence, in characters.
const QUOTE_CHARS_MAX: usize = 300;

/// Certificates of one PEM text.
const CERTIFICATES_MAX: usize = 512;

/// Where connections may lead, and what they have in common.
#[derive(Clone, Debug)]
pub struct Outbound {
    destinations: Arc<Destinations>,
}

impl Outbound {
    /// Connections to what `destinations` allows besides public addresses.
    #[must_use]
    pub fn new(destinations: Destinations) -> Self {
        Self {
            destinations: Arc::new(destinations),
        }
    }

    /// A client for one sink, which trusts the public authorities, or only those in `ca_pem`.
    pub(crate) fn client(&self, ca_pem: Option<&str>) -> Result<Client, PemError> {
        Ok(Client {
            outbound: self.clone(),
            tls: client_config(ca_pem, None)?,
            kept: Arc::new(Mutex::new(None)),
        })
    }

    /// Connects to `host`, and speaks TLS there.
    pub(crate) async fn connect_tls(
        &self,
        host: &str,
        port: u16,
        tls: &Arc<ClientConfig>,
    ) -> Result<TlsStream<TcpStream>, CallError> {
        match self.connect(host, port, Some(tls)).await? {
            MaybeTls::Tls(stream) => Ok(*stream),
            MaybeTls::Plain(_) => Err(CallError::Network("not encrypted".to_owned())),
        }
    }

    async fn connect(
        &self,
        host: &str,
        port: u16,
        tls: Option<&Arc<ClientConfig>>,
    ) -> Result<MaybeTls, CallError> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let addresses = resolve(host, port).await?;
        let mut last = CallError::Network("its name has no address".to_owned());
        for address in addresses {
            if let Err(why) = self.judge(address.ip(), tls.is_some()) {
                last = why;
                continue;
            }
            let way = async {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                let Some(tls) = tls else {
                    return Ok::<_, io::Error>(MaybeTls::Plain(stream));
                };
                let name = ServerName::try_from(host.to_owned()).map_err(|_| {
                    io::Error::other("its name is none that a certificate can have")
                })?;
                let connector = TlsConnector::from(Arc::clone(tls));
                let stream = connector.connect(name, stream).await?;
                Ok(MaybeTls::Tls(Box::new(stream)))
            };
            match timeout(CONNECT_TIMEOUT, way).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(why)) => last = CallError::Network(sentence(&why)),
                Err(_) => last = CallError::Late,
            }
        }
        Err(last)
    }

    fn judge(&self, address: IpAddr, encrypted: bool) -> Result<(), CallError> {
        self.destinations
            .check(address)
            .map_err(|forbidden| CallError::Forbidden(forbidden.kind))?;
        if !encrypted && AddressKind::of(address) == AddressKind::Public {
            return Err(CallError::InTheClear);
        }
        Ok(())
    }
}

/// The addresses of a name; an address is its own.
async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, CallError> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let found = timeout(CONNECT_TIMEOUT, tokio::net::lookup_host((host, port))).await;
    match found {
        Ok(Ok(addresses)) => Ok(addresses.take(ADDRESSES_MAX).collect()),
        Ok(Err(why)) => Err(CallError::Network(format!("its name: {why}"))),
        Err(_) => Err(CallError::Late),
    }
}

/// A POST. Not to be printed: a URL may be a credential.
pub(crate) struct Call {
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
}

impl Call {
    /// A POST of `body` to `url`, which was checked with its configuration.
    pub(crate) fn post(
        url: &str,
        content_type: &'static str,
        body: Vec<u8>,
    ) -> Result<Self, Failure> {
        let uri = url.parse().map_err(|_| Failure::Credentials {
            why: "the URL in the logging configuration is none".to_owned(),
        })?;
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        Ok(Self {
            uri,
            headers,
            body: body.into(),
        })
    }

    /// The request that `kms` made for `endpoint`.
    fn of_kms(endpoint: &Endpoint, request: &HttpRequest) -> Option<Self> {
        let scheme = if endpoint.tls { "https" } else { "http" };
        let host = if endpoint.host.contains(':') {
            format!("[{}]", endpoint.host)
        } else {
            endpoint.host.clone()
        };
        let uri = format!("{scheme}://{host}:{}{}", endpoint.port, request.path());
        let mut headers = HeaderMap::new();
        for (name, value) in request
            .headers()
            .filter(|(name, _)| *name != "content-length")
        {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            headers.insert(name, secret_value(value)?);
        }
        Some(Self {
            uri: uri.parse().ok()?,
            headers,
            body: Bytes::copy_from_slice(request.body()),
        })
    }

    /// Adds a header, whose value no log will show.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Result<Self, Failure> {
        let unfit = || Failure::Credentials {
            why: "a header in the logging configuration cannot be sent".to_owned(),
        };
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| unfit())?;
        self.headers
            .insert(name, secret_value(value).ok_or_else(unfit)?);
        Ok(self)
    }

    /// Compresses the body.
    pub(crate) fn gzip(mut self) -> Self {
        let mut encoder =
            GzEncoder::new(Vec::with_capacity(self.body.len() / 4), Compression::fast());
        // A vector takes all that is written.
        let packed = encoder
            .write_all(&self.body)
            .and_then(|()| encoder.finish());
        if let Ok(packed) = packed {
            self.body = packed.into();
            let gzip = HeaderValue::from_static("gzip");
            self.headers.insert(header::CONTENT_ENCODING, gzip);
        }
        self
    }
}

fn secret_value(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// The headers as they came, for whoever reads them as bytes.
    fn header_lines(&self) -> Vec<u8> {
        let mut lines = Vec::new();
        for (name, value) in &self.headers {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                lines.extend_from_slice(part);
            }
        }
        lines
    }

    /// Lends it to `kms`.
    pub(crate) fn for_kms<T>(&self, read: impl FnOnce(&HttpAnswer<'_>) -> T) -> T {
        let headers = self.header_lines();
        read(&HttpAnswer {
            status: self.status.as_u16(),
            headers: &headers,
            body: &self.body,
        })
    }

    /// How long the far end wants us to wait.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.for_kms(|answer| answer.retry_after())
    }

    /// What a status means where the log system has no words of its own for it; success is `Ok`.
    pub(crate) fn judged(&self) -> Result<(), Failure> {
        let why = self.sentence();
        match self.status.as_u16() {
            200..=299 => Ok(()),
            408 | 425 | 429 | 500..=599 => Err(Failure::Later {
                after: self.retry_after(),
                why,
            }),
            // Nothing is wrong with the events: whoever set this up must mend the address or the credential.
            300..=399 | 401..=405 | 407 | 410 | 421 => Err(Failure::Credentials { why }),
            _ => Err(Failure::Refused { why }),
        }
    }

    /// The status, and what the far end says to it, cleaned.
    pub(crate) fn sentence(&self) -> String {
        let said = quote(&String::from_utf8_lossy(&self.body));
        let status = self.status.as_u16();
        let moved = if self.status.is_redirection() {
            " (redirections are not followed)"
        } else {
            ""
        };
        if said.is_empty() {
            format!("HTTP status {status}{moved}")
        } else {
            format!("HTTP status {status}{moved}: {said}")
        }
    }
}

/// What somebody else says, fit for a log: one line, printable, bounded, and without anything that could be a credential.
pub(crate) fn quote(text: &str) -> String {
    /// Shortest run of letters and digits that could be a key or a token.
    const SUSPICIOUS: usize = 20;

    let shown = text.chars().take(QUOTE_CHARS_MAX);
    let plain: String = shown
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let words = plain.split_whitespace().map(|word| {
        let runs = word.split(|c: char| !c.is_ascii_alphanumeric());
        let suspicious = runs.into_iter().any(|run| {
            run.len() >= SUSPICIOUS
                && run.bytes().any(|byte| byte.is_ascii_digit())
                && run.bytes().any(|byte| byte.is_ascii_alphabetic())
        });
        if suspicious { "[…]" } else { word }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CallError {
    /// Whoever wrote the configuration, or rules over its name: it leads to where this process may not connect.
    Forbidden(AddressKind),
    /// A public address, without TLS.
    InTheClear,
    /// No connection, or one that broke.
    Network(String),
    /// Out of time.
    Late,
    /// An answer beyond all measure.
    TooLarge,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forbidden(kind) => write!(
                f,
                "the address leads to a {} address, to which this logdriver may not connect",
                kind.as_str()
            ),
            Self::InTheClear => f.write_str("without TLS nothing is sent to a public address"),
            Self::Network(why) => write!(f, "no connection: {why}"),
            Self::Late => write!(f, "no answer within {} s", CALL_TIMEOUT.as_secs()),
            Self::TooLarge => f.write_str("the answer is too large"),
        }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let why = error.to_string();
        match error {
            CallError::Forbidden(_) | CallError::InTheClear => Self::Credentials { why },
            CallError::Network(_) | CallError::Late | CallError::TooLarge => {
                Self::Later { after: None, why }
            }
        }
    }
}

/// The client of one sink. Clones share the connection.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    outbound: Outbound,
    tls: Arc<ClientConfig>,
    kept: Arc<Mutex<Option<Kept>>>,
}

/// A connection that may be of use again.
#[derive(Debug)]
struct Kept {
    origin: Origin,
    send: SendRequest<Full<Bytes>>,
    since: Instant,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    tls: bool,
    host: String,
    port: u16,
}

impl Origin {
    fn of(uri: &Uri) -> Option<Self> {
        let tls = uri.scheme_str()? == "https";
        Some(Self {
            tls,
            host: uri.host()?.to_owned(),
            port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
        })
    }
}

impl Client {
    /// Sends a call, and reads what is answered, whatever its status.
    pub(crate) async fn send(&self, call: Call) -> Result<Answer, CallError> {
        timeout(CALL_TIMEOUT, self.exchange(call))
            .await
            .unwrap_or(Err(CallError::Late))
    }

    /// The same for a request of `kms`' making.
    pub(crate) async fn send_for_kms(
        &self,
        endpoint: &Endpoint,
        request: &HttpRequest,
    ) -> Result<Answer, CallError> {
        let call = Call::of_kms(endpoint, request)
            .ok_or_else(|| CallError::Network("that is no request".to_owned()))?;
        self.send(call).await
    }

    async fn exchange(&self, call: Call) -> Result<Answer, CallError> {
        let origin = Origin::of(&call.uri)
            .ok_or_else(|| CallError::Network("the URL has no host".to_owned()))?;
        let mut kept = self.kept.lock().await;
        let fit = kept.take().filter(|kept| {
            kept.origin == origin && kept.since.elapsed() < IDLE_MAX && !kept.send.is_closed()
        });
        let reused = fit.is_some();
        let send = match fit {
            Some(kept) => kept.send,
            None => self.dial(&origin).await?,
        };
        let answered = Self::ask(send, &call).await;
        let (answer, send) = match answered {
            // The far end may have closed it in the same moment; what it has taken all the same, it gets twice.
            Err(CallError::Network(_)) if reused => {
                Self::ask(self.dial(&origin).await?, &call).await?
            }
            other => other?,
        };
        *kept = Some(Kept {
            origin,
            send,
            since: clock::monotonic(),
        });
        Ok(answer)
    }

    async fn dial(&self, origin: &Origin) -> Result<SendRequest<Full<Bytes>>, CallError> {
        let tls = origin.tls.then_some(&self.tls);
        let stream = self
            .outbound
            .connect(&origin.host, origin.port, tls)
            .await?;
        let (send, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|why| CallError::Network(sentence(&why)))?;
        // Ends when `send` is dropped, or the far end closes.
        tokio::spawn(connection);
        Ok(send)
    }

    async fn ask(
        mut send: SendRequest<Full<Bytes>>,
        call: &Call,
    ) -> Result<(Answer, SendRequest<Full<Bytes>>), CallError> {
        let network = |why: hyper::Error| CallError::Network(sentence(&why));
        let path = call.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .body(Full::new(call.body.clone()))
            .map_err(|_| CallError::Network("that is no request".to_owned()))?;
        *request.headers_mut() = call.headers.clone();
        if let Some(authority) = call.uri.authority() {
            let host = HeaderValue::from_str(host_header(&call.uri, authority.as_str()))
                .map_err(|_| CallError::Network("that is no host".to_owned()))?;
            request.headers_mut().insert(header::HOST, host);
        }
        let agent = HeaderValue::from_static(concat!("tsp-logdriver/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(header::USER_AGENT, agent);
        send.ready().await.map_err(network)?;
        let answer = send.send_request(request).await.map_err(network)?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|why| {
                if why.is::<http_body_util::LengthLimitError>() {
                    CallError::TooLarge
                } else {
                    CallError::Network(sentence(&*why))
                }
            })?;
        let answer = Answer {
            status: head.status,
            headers: head.headers,
            body: body.to_bytes(),
        };
        Ok((answer, send))
    }
}

/// The `host` header: with the port unless it is the scheme's own.
fn host_header<'a>(uri: &Uri, authority: &'a str) -> &'a str {
    match (uri.scheme_str(), uri.port_u16()) {
        (Some("https"), Some(443)) | (Some("http"), Some(80)) => authority
            .rsplit_once(':')
            .map_or(authority, |(host, _)| host),
        _ => authority,
    }
}

/// A connection with or without TLS.
enum MaybeTls {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for MaybeTls {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for MaybeTls {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// What is wrong with a PEM text of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PemError(&'static str);

impl fmt::Display for PemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for PemError {}

/// How to speak TLS: with whom to trust, and a certificate to show if there is one.
pub(crate) fn client_config(
    ca_pem: Option<&str>,
    own_pem: Option<&str>,
) -> Result<Arc<ClientConfig>, PemError> {
    static PUBLIC: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if ca_pem.is_none() && own_pem.is_none() {
        if let Some(config) = PUBLIC.get() {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(make_config(None, None)?);
        return Ok(Arc::clone(PUBLIC.get_or_init(|| config)));
    }
    make_config(ca_pem, own_pem).map(Arc::new)
}

fn make_config(ca_pem: Option<&str>, own_pem: Option<&str>) -> Result<ClientConfig, PemError> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let provider = PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    let roots = match ca_pem {
        None => webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect(),
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(pem)? {
                roots
                    .add(certificate)
                    .map_err(|_| PemError("`caPem` holds a certificate that cannot be trusted"))?;
            }
            roots
        }
    };
    let builder = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(|_| PemError("TLS is not to be had"))?
        .with_root_certificates(roots);
    let Some(pem) = own_pem else {
        return Ok(builder.with_no_client_auth());
    };
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| PemError("`clientCertificate` holds no private key"))?;
    builder
        .with_client_auth_cert(certificates(pem)?, key)
        .map_err(|_| PemError("`clientCertificate` holds no certificate that fits its key"))
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .take(CERTIFICATES_MAX)
        .collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(PemError("a PEM text holds no certificate, or a broken one")),
    }
}

/// An error with all that caused it, cleaned.
fn sentence(why: &(dyn StdError + 'static)) -> String {
    let mut sentence = why.to_string();
    let mut cause = why.source();
    while let Some(next) = cause {
        sentence = format!("{sentence}: {next}");
        cause = next.source();
    }
    quote(&sentence)
}

#[cfg(test)]
mod tests;
