//! TLS over any [`Stream`], by rustls.
//!
//! One provider, aws-lc-rs, chosen explicitly; ALPN `http/1.1` only; sessions resume. TLS 1.2 and 1.3, but where
//! [`ServerTls::strict`] asks for 1.3.

mod pin;
mod server;

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub(crate) use self::pin::OtherKey;
use self::pin::PinnedVerifier;
pub use self::pin::SpkiPin;
pub use self::server::{
    CLIENT_NAMES_MAX, ClientCertificates, Hello, ServerTls, TICKET_KEY_LIFE, Tickets, accept,
};
use crate::{NetError, Staleness, Stream};

/// The only protocol that is offered in ALPN.
const ALPN_HTTP_1_1: &[u8] = b"http/1.1";

/// Sessions that are kept for resumption, per [`ClientTls`]: what rustls keeps for one server name, eight tickets of some
/// hundred bytes. A core makes one per endpoint, which has one name.
const SESSIONS_MAX: usize = 8;

/// Certificates that a PEM bundle may hold: the public set has about 150.
const PEM_CERTIFICATES_MAX: usize = 1000;

/// A PEM text that is of no use. The text of the error never holds any of the PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PemError {
    /// Not PEM, or cut off.
    Malformed,
    /// No certificate in it.
    NoCertificate,
    /// More certificates than any real bundle has (1000).
    TooMany,
    /// No private key in it, or one of a kind that is not supported.
    NoKey,
    /// rustls refuses it; the text says why.
    Refused(String),
}

impl fmt::Display for PemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => f.write_str("not well-formed PEM"),
            Self::NoCertificate => f.write_str("no certificate in the PEM text"),
            Self::TooMany => write!(f, "more than {PEM_CERTIFICATES_MAX} certificates"),
            Self::NoKey => f.write_str("no usable private key in the PEM text"),
            Self::Refused(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for PemError {}

/// How a client does TLS: whom it trusts, and the sessions it may resume. Clones share both.
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    usual: Arc<WebPkiServerVerifier>,
}

impl ClientTls {
    /// Trusts the public authorities (Mozilla's set, as of the `webpki-roots` crate), whatever the machine trusts.
    #[must_use]
    pub fn public() -> Self {
        // The whole set takes some 20 KiB: all that trust it share one.
        static PUBLIC: OnceLock<Arc<WebPkiServerVerifier>> = OnceLock::new();
        let usual = PUBLIC.get_or_init(|| {
            #[expect(clippy::expect_used, reason = "the public set is not empty")]
            verifier(webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect())
                .expect("a verifier for the public set")
        });
        Self::new(Arc::clone(usual))
    }

    /// Trusts the certificates in `pem`, and no others: a private authority replaces the public ones.
    ///
    /// # Errors
    /// [`PemError`] if there is no certificate in it or one is broken.
    pub fn with_roots_pem(pem: &str) -> Result<Self, PemError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(pem)? {
            roots
                .add(certificate)
                .map_err(|error| PemError::Refused(error.to_string()))?;
        }
        Ok(Self::new(verifier(roots)?))
    }

    /// Asks in addition that the far end's certificate hold the public key that `pin` is the hash of. Starts without
    /// sessions: those opened without the pin are not resumed.
    #[must_use]
    pub fn pinned(self, pin: SpkiPin) -> Self {
        let usual = self.usual;
        Self {
            config: client_config(Arc::new(PinnedVerifier {
                usual: Arc::clone(&usual),
                pin,
            })),
            usual,
        }
    }

    fn new(usual: Arc<WebPkiServerVerifier>) -> Self {
        Self {
            config: client_config(Arc::clone(&usual) as _),
            usual,
        }
    }
}

fn verifier(roots: RootCertStore) -> Result<Arc<WebPkiServerVerifier>, PemError> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| PemError::Refused(error.to_string()))
}

fn client_config(verifier: Arc<dyn ServerCertVerifier>) -> Arc<ClientConfig> {
    #[expect(
        clippy::expect_used,
        reason = "aws-lc-rs has ciphers for both of rustls' protocol versions"
    )]
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider serves the default versions")
        // What rustls calls dangerous is to choose the verifier; both that come here do all of rustls' own checks.
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_HTTP_1_1.to_vec()];
    config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
    Arc::new(config)
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let new = || Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Arc::clone(PROVIDER.get_or_init(new))
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        if found.len() == PEM_CERTIFICATES_MAX {
            return Err(PemError::TooMany);
        }
        found.push(certificate.map_err(|_| PemError::Malformed)?);
    }
    if found.is_empty() {
        Err(PemError::NoCertificate)
    } else {
        Ok(found)
    }
}

/// Does a client's handshake over `stream`. `server_name` is a DNS name or an IP address, checked against the certificate.
///
/// There is no deadline in here: wrap it in [`crate::timeout`].
///
/// # Errors
/// [`NetError::Certificate`] if the certificate is refused and [`NetError::Pin`] if it is good but for the pinned key, which
/// no retry changes; [`NetError::Reset`] if the far end cut the connection; [`NetError::Tls`] for the rest.
pub async fn connect<S: Stream>(
    stream: S,
    tls: &ClientTls,
    server_name: &str,
) -> Result<TlsStream<S>, NetError> {
    let name = ServerName::try_from(server_name.to_owned())
        .map_err(|_| NetError::Tls("not a server name".to_owned()))?;
    let staleness = stream.staleness();
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(&tls.config));
    let inner = connector.connect(name, stream).await?;
    Ok(TlsStream {
        inner: inner.into(),
        staleness,
    })
}

/// A connection inside TLS.
#[derive(Debug)]
pub struct TlsStream<S> {
    inner: tokio_rustls::TlsStream<S>,
    staleness: Staleness,
}

impl<S> TlsStream<S> {
    /// Whether the handshake resumed an earlier session.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        let (_, connection) = self.inner.get_ref();
        connection.handshake_kind() == Some(HandshakeKind::Resumed)
    }
}

impl<S: Stream> Stream for TlsStream<S> {
    fn staleness(&self) -> Staleness {
        self.staleness.clone()
    }
}

impl<S: Stream> AsyncRead for TlsStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

// `is_write_vectored` stays false on purpose: head and body go into one TLS record.
impl<S: Stream> AsyncWrite for TlsStream<S> {
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

/// A connection with or without TLS, for code that serves both.
#[derive(Debug)]
pub enum MaybeTls<S> {
    /// In the clear.
    Plain(S),
    /// Inside TLS. Boxed: it is twenty times the size of the other.
    Tls(Box<TlsStream<S>>),
}

impl<S> MaybeTls<S> {
    /// As [`TlsStream::is_resumed`]; `None` in the clear.
    #[must_use]
    pub fn is_resumed(&self) -> Option<bool> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => Some(stream.is_resumed()),
        }
    }
}

impl<S> From<TlsStream<S>> for MaybeTls<S> {
    fn from(stream: TlsStream<S>) -> Self {
        Self::Tls(Box::new(stream))
    }
}

impl<S: Stream> Stream for MaybeTls<S> {
    fn staleness(&self) -> Staleness {
        match self {
            Self::Plain(stream) => stream.staleness(),
            Self::Tls(stream) => stream.staleness(),
        }
    }
}

impl<S: Stream> AsyncRead for MaybeTls<S> {
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

impl<S: Stream> AsyncWrite for MaybeTls<S> {
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
