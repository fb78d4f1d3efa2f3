//! The server's side of TLS.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{Acceptor, NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::sign::SingleCertAndKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use sha2::{Digest as _, Sha256};
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor, server::StartHandshake};
use webpki::EndEntityCert;
use zeroize::Zeroizing;

use super::{ALPN_HTTP_1_1, PemError, TlsStream, certificates, provider};
use crate::{NetError, Staleness, Stream};

/// How long one key of [`Tickets`] makes tickets; it opens them for as long again.
pub const TICKET_KEY_LIFE: Duration = Duration::from_secs(6 * 60 * 60);

/// Names of clients that one server may list: they are compared with those of each client.
pub const CLIENT_NAMES_MAX: usize = 256;

/// How a server does TLS: its certificate and key, and whom it lets in. Clones share them.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    fingerprint: [u8; 32],
    expires_s: i64,
}

/// Which clients a server lets in: those that show a certificate.
#[derive(Clone, Debug, Default)]
pub struct ClientCertificates {
    /// The authorities that may have signed it, as PEM. No others are trusted.
    pub roots_pem: String,
    /// One of these must be among its DNS names or URIs (SPIFFE ids, say), letter for letter; if there are none, every
    /// certificate of the authorities will do.
    pub names: Vec<String>,
}

/// The keys of session tickets, changed every [`TICKET_KEY_LIFE`]. Clones share them, so that a session which one
/// configuration began is resumed under the next.
#[derive(Clone)]
pub struct Tickets(Arc<dyn ProducesTickets>);

impl Tickets {
    /// New keys.
    ///
    /// # Errors
    /// [`PemError::Refused`] if the kernel gives no randomness.
    pub fn new() -> Result<Self, PemError> {
        aws_lc_rs::Ticketer::new().map(Self).map_err(refused)
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

impl ServerTls {
    /// Serves the certificate chain in `chain_pem` (leaf first) with the private key in `key_pem`. No client certificates;
    /// TLS 1.2 and 1.3.
    ///
    /// # Errors
    /// [`PemError`] if either is missing or broken, or if they do not belong together.
    pub fn from_pem(chain_pem: &str, key_pem: &str) -> Result<Self, PemError> {
        let chain = certificates(chain_pem)?;
        let (fingerprint, expires_s) = (fingerprint(&chain), expires_s(&chain));
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|_| PemError::NoKey)?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(refused)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(refused)?;
        config.alpn_protocols = vec![ALPN_HTTP_1_1.to_vec()];
        Ok(Self {
            config: Arc::new(config),
            fingerprint,
            expires_s,
        })
    }

    /// Serves the certificate chain in `chain_pem` (leaf first) with the private key in `key_pem`, by TLS 1.3 alone, with the
    /// hybrid key exchange X25519MLKEM768 before all others.
    ///
    /// Without `clients`, sessions resume by `tickets`. With them they do not: what a ticket resumes is not asked again
    /// whether its certificate has ended or been replaced. Nothing is copied of the key but into the library's own memory,
    /// which it wipes.
    ///
    /// # Errors
    /// [`PemError`] if something is missing or broken, or if certificate and key do not belong together.
    pub fn strict(
        chain_pem: &str,
        key_pem: &[u8],
        clients: Option<&ClientCertificates>,
        tickets: &Tickets,
    ) -> Result<Self, PemError> {
        let chain = certificates(chain_pem)?;
        let (fingerprint, expires_s) = (fingerprint(&chain), expires_s(&chain));
        let key = {
            let der = private_key(key_pem)?;
            let der = PrivateKeyDer::try_from(der.as_slice()).map_err(|_| PemError::NoKey)?;
            aws_lc_rs::sign::any_supported_type(&der).map_err(|_| PemError::NoKey)?
        };
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match().map_err(refused)?;
        let builder = ServerConfig::builder_with_provider(hybrid_first())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(refused)?;
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => builder.with_client_cert_verifier(verifier(clients)?),
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![ALPN_HTTP_1_1.to_vec()];
        // A table of sessions would be one lock for all cores; tickets need none but their own.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        if clients.is_none() {
            config.ticketer = Arc::clone(&tickets.0);
        } else {
            config.send_tls13_tickets = 0;
        }
        Ok(Self {
            config: Arc::new(config),
            fingerprint,
            expires_s,
        })
    }
}

impl ServerTls {
    /// The SHA-256 of the certificate, in hexadecimal, as `openssl x509 -fingerprint -sha256` has it, less the colons.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let hex = self.fingerprint.iter().map(|byte| format!("{byte:02x}"));
        hex.collect()
    }

    /// When the certificate ends, in seconds since 1970; 0 if that cannot be read.
    #[must_use]
    pub fn expires_s(&self) -> i64 {
        self.expires_s
    }
}

fn expires_s(chain: &[CertificateDer<'_>]) -> i64 {
    let leaf = chain
        .first()
        .and_then(|leaf| x509_parser::parse_x509_certificate(leaf).ok());
    leaf.map_or(0, |(_, leaf)| leaf.validity().not_after.timestamp())
}

fn fingerprint(chain: &[CertificateDer<'_>]) -> [u8; 32] {
    Sha256::digest(chain.first().map_or(&[][..], |leaf| leaf.as_ref())).into()
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

fn refused(error: impl fmt::Display) -> PemError {
    PemError::Refused(error.to_string())
}

fn hybrid_first() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![
        kx_group::X25519MLKEM768,
        kx_group::X25519,
        kx_group::SECP256R1,
        kx_group::SECP384R1,
    ];
    Arc::new(provider)
}

/// The first private key in `pem`. Done by hand, since whoever else reads PEM does not wipe what it read.
fn private_key(pem: &[u8]) -> Result<Zeroizing<Vec<u8>>, PemError> {
    const BEGIN: &[u8] = b"-----BEGIN ";
    const KEY: &[u8] = b"PRIVATE KEY-----";
    let mut lines = pem.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    lines
        .by_ref()
        .find(|line| line.starts_with(BEGIN) && line.ends_with(KEY))
        .ok_or(PemError::NoKey)?;
    let mut text = Zeroizing::new(Vec::with_capacity(pem.len()));
    for line in lines {
        if line.starts_with(b"-----END ") {
            let mut der = Zeroizing::new(vec![0; text.len()]);
            let length = BASE64
                .decode_slice(&*text, &mut der)
                .map_err(|_| PemError::Malformed)?;
            der.truncate(length);
            return Ok(der);
        }
        text.extend_from_slice(line);
    }
    Err(PemError::Malformed)
}

fn verifier(clients: &ClientCertificates) -> Result<Arc<dyn ClientCertVerifier>, PemError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&clients.roots_pem)? {
        roots.add(certificate).map_err(refused)?;
    }
    let usual = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(refused)?;
    if clients.names.len() > CLIENT_NAMES_MAX {
        return Err(PemError::Refused(format!(
            "more than {CLIENT_NAMES_MAX} names of clients"
        )));
    }
    Ok(Arc::new(NamedClients {
        usual,
        names: clients.names.clone(),
    }))
}

/// Asks what `usual` asks, and then for one of the names, if there are any.
#[derive(Debug)]
struct NamedClients {
    usual: Arc<dyn ClientCertVerifier>,
    names: Vec<String>,
}

impl NamedClients {
    fn is_allowed(&self, certificate: &CertificateDer<'_>) -> bool {
        if self.names.is_empty() {
            return true;
        }
        let Ok(certificate) = EndEntityCert::try_from(certificate) else {
            return false;
        };
        let listed = |name: &str| self.names.iter().any(|listed| listed == name);
        certificate.valid_dns_names().any(listed) || certificate.valid_uri_names().any(listed)
    }
}

impl ClientCertVerifier for NamedClients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.usual.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self
            .usual
            .verify_client_cert(end_entity, intermediates, now)?;
        if self.is_allowed(end_entity) {
            Ok(verified)
        } else {
            Err(CertificateError::NotValidForName.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

/// Does a server's handshake over `stream`. There is no deadline in here: wrap it in [`crate::timeout`].
///
/// # Errors
/// As [`super::connect`].
pub async fn accept<S: Stream>(stream: S, tls: &ServerTls) -> Result<TlsStream<S>, NetError> {
    let staleness = stream.staleness();
    let acceptor = TlsAcceptor::from(Arc::clone(&tls.config));
    let inner = acceptor.accept(stream).await?;
    Ok(TlsStream {
        inner: inner.into(),
        staleness,
    })
}

/// A client that has said hello. Up to here it has cost next to nothing; the first poll of [`Hello::accept`] signs.
pub struct Hello<S> {
    start: StartHandshake<S>,
    staleness: Staleness,
}

impl<S: Stream> Hello<S> {
    /// Reads what a client says first.
    ///
    /// # Errors
    /// As [`super::connect`].
    pub async fn read(stream: S) -> Result<Self, NetError> {
        let staleness = stream.staleness();
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        Ok(Self { start, staleness })
    }

    /// Does the rest of the handshake.
    ///
    /// # Errors
    /// As [`super::connect`].
    pub async fn accept(self, tls: &ServerTls) -> Result<TlsStream<S>, NetError> {
        let inner = self.start.into_stream(Arc::clone(&tls.config)).await?;
        Ok(TlsStream {
            inner: inner.into(),
            staleness: self.staleness,
        })
    }
}

impl<S> fmt::Debug for Hello<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hello").finish_non_exhaustive()
    }
}
