//! Logging configurations from a configuration broker, sealed for this service account, by the same protocol as the proxy's:
//! `docs/broker.md`. The last state lies on disk, under the store's key, so that a start needs no broker.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, Uri, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tsp_wire::account::{
    SNAPSHOT_BYTES_MAX, SNAPSHOT_PATH, Seen, SnapshotAnswer, env::ServiceAccount, token,
};

use super::Look;
use crate::{clock, routes::TenantConfig, store::RootKey};

/// Longest time for a connection, and for all of a look. The largest snapshot takes 20 s at 100 Mbit/s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const LOOK_TIMEOUT: Duration = Duration::from_secs(60);

/// The file of the last state, in the store's folder.
const COPY: &str = "snapshot";
const COPY_LABEL: &[u8] = b"snapshot";

/// Longest that the copy serves, in ms: as the proxy's, it fails closed.
const COPY_AGE_MS_MAX: i64 = 24 * 60 * 60 * 1000;

/// Whom to trust, and how often to look.
#[derive(Debug)]
pub struct BrokerConfig {
    /// Who asks.
    pub account: Arc<ServiceAccount>,
    /// `TSP_BROKER_CA`: the PEM text of whom to trust instead of the public authorities.
    pub ca_pem: Option<Vec<u8>>,
    /// `LOGDRIVER_CONFIG_REFRESH_INTERVAL`.
    pub every: Duration,
    /// The store's folder.
    pub folder: PathBuf,
}

/// Asks a broker.
pub struct BrokerSource {
    account: Arc<ServiceAccount>,
    tls: Option<TlsConnector>,
    host: String,
    port: u16,
    authority: String,
    every: Duration,
    copy: PathBuf,
    key: RootKey,
    etag: Option<String>,
    seen: Seen,
    /// By the number of a logging configuration, so that none goes back to an older content.
    revisions: std::collections::HashMap<u64, u64>,
}

impl std::fmt::Debug for BrokerSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BrokerSource({})", self.account.broker_url)
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl BrokerSource {
    /// # Errors
    /// What is wrong with the URL or the certificates, in words.
    pub fn new(config: BrokerConfig) -> Result<Self, String> {
        let BrokerConfig {
            account,
            ca_pem,
            every,
            folder,
        } = config;
        let uri: Uri = account.broker_url.parse().map_err(|_| "is no URL")?;
        let authority = uri.authority().ok_or("has no host")?.to_string();
        let https = uri.scheme_str() == Some("https");
        let host = uri.host().unwrap_or_default();
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        let tls = https.then(|| connector(ca_pem.as_deref())).transpose()?;
        let key = RootKey::derive(account.encryption_key.expose());
        Ok(Self {
            account,
            tls,
            host,
            port,
            authority,
            every,
            copy: folder.join(COPY),
            key,
            etag: None,
            seen: Seen::default(),
            revisions: std::collections::HashMap::new(),
        })
    }

    pub(super) fn every(&self) -> Duration {
        self.every
    }

    pub(super) async fn look(&mut self) -> Result<Look, String> {
        let url = self.account.broker_url.clone();
        let fetched = timeout(LOOK_TIMEOUT, self.fetch()).await;
        let fetched = fetched.unwrap_or_else(|_| {
            Err(format!(
                "no whole answer within {} s",
                LOOK_TIMEOUT.as_secs()
            ))
        });
        let fetched = fetched.map_err(|why| format!("{url}: {why}"))?;
        let Some((etag, body)) = fetched else {
            self.keep(None);
            return Ok(Look::Same);
        };
        let tenants = self.open(&body).map_err(|why| format!("{url}: {why}"))?;
        self.etag = etag;
        self.keep(Some(&body));
        Ok(Look::New(tenants))
    }

    /// The state on disk, if it may still serve.
    pub(super) fn reserve(&mut self) -> Option<Vec<TenantConfig>> {
        let sealed = fs::read(&self.copy).ok()?;
        let Some(copy) = self.key.unwrap(COPY_LABEL, &sealed) else {
            tracing::warn!(
                "the copy of the configurations on disk is another account's, or damaged"
            );
            return None;
        };
        let (confirmed, rest) = copy.split_first_chunk::<8>()?;
        let age_ms = clock::now_ms().saturating_sub(i64::from_be_bytes(*confirmed));
        let tenants = match self.open(rest) {
            Ok(tenants) => tenants,
            Err(why) => {
                tracing::warn!("the copy of the configurations on disk is not used: {why}");
                return None;
            }
        };
        // Even one that is too old tells what a broker must not go behind.
        (0..COPY_AGE_MS_MAX).contains(&age_ms).then_some(tenants)
    }

    /// Makes sure of a snapshot, and opens the logging configurations in it.
    fn open(&mut self, json: &[u8]) -> Result<Vec<TenantConfig>, String> {
        let snapshot = SnapshotAnswer::from_json(json).map_err(|why| why.to_string())?;
        let segment = snapshot
            .open(&self.account)
            .map_err(|why| why.to_string())?;
        self.seen
            .advance(&snapshot)
            .map_err(|why| why.to_string())?;
        for config in &snapshot.logging_configs {
            let seen = self.revisions.get(&config.id).copied().unwrap_or_default();
            if config.revision < seen {
                return Err(format!(
                    "it is older than the last one: logging configuration {}: revision {} after {seen}",
                    config.id, config.revision
                ));
            }
        }
        let configs: std::collections::HashMap<_, _> = snapshot
            .logging_configs
            .iter()
            .map(|config| (config.id, config))
            .collect();
        self.revisions
            .extend(configs.values().map(|config| (config.id, config.revision)));
        let tenant = |tenant: &tsp_wire::account::Tenant| TenantConfig {
            tenant: tenant.id.clone(),
            logging: tenant.logging.map(|number| match configs.get(&number) {
                Some(config) => segment
                    .logging_config(&tenant.id, config)
                    .map_err(|why| why.to_string()),
                None => Err(format!("logging configuration {number} is not there")),
            }),
        };
        Ok(snapshot.tenants.iter().map(tenant).collect())
    }

    /// Writes the state that is in force to the disk, or dates it anew. That it cannot is told and changes nothing.
    fn keep(&self, body: Option<&[u8]>) {
        let known;
        let body = match body {
            Some(body) => body,
            None => {
                let sealed = fs::read(&self.copy).unwrap_or_default();
                let Some(copy) = self.key.unwrap(COPY_LABEL, &sealed) else {
                    return;
                };
                known = copy;
                known.get(8..).unwrap_or_default()
            }
        };
        let plain = [clock::now_ms().to_be_bytes().as_slice(), body].concat();
        let write = || {
            let sealed = self.key.wrap(COPY_LABEL, &plain);
            let sealed = sealed.ok_or_else(|| std::io::Error::other("no random bytes"))?;
            let draft = self.copy.with_extension("new");
            let mut file = fs::OpenOptions::new()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(&draft)?;
            file.write_all(&sealed)?;
            file.sync_all()?;
            fs::rename(&draft, &self.copy)
        };
        if let Err(why) = write() {
            tracing::warn!(
                "the copy of the configurations cannot be written, so the last one stays: {why}"
            );
        }
    }

    /// Asks. `None` if the state is the one that is known.
    async fn fetch(&self) -> Result<Option<(Option<String>, Vec<u8>)>, String> {
        let connected = timeout(CONNECT_TIMEOUT, self.connect()).await;
        let stream = connected.map_err(|_| "no connection in time".to_owned())??;
        let text = |why: hyper::Error| why.to_string();
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
        // What breaks the connection is told to the call that is on it.
        tokio::spawn(async move { drop(connection.await) });
        let answer = sender.send_request(self.request()?).await.map_err(text)?;
        let (head, body) = answer.into_parts();
        match head.status {
            StatusCode::NOT_MODIFIED if self.etag.is_some() => return Ok(None),
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED => {
                return Err("the broker refuses the service account: it was revoked, or is of another broker, or this \
                            machine's clock is wrong; the broker's log has the reason"
                    .to_owned());
            }
            other => return Err(format!("the broker answers {}", other.as_u16())),
        }
        let header = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
        let gzip = header(header::CONTENT_ENCODING) == Some("gzip");
        let etag = header(header::ETAG).map(str::to_owned);
        let body = Limited::new(body, SNAPSHOT_BYTES_MAX).collect().await;
        let body = body.map_err(|why| why.to_string())?.to_bytes();
        let body = if gzip { unzip(&body)? } else { body.to_vec() };
        Ok(Some((etag, body)))
    }

    fn request(&self) -> Result<Request<Empty<Bytes>>, String> {
        let mut id = [0; token::ID_BYTES];
        getrandom::fill(&mut id).map_err(|why| why.to_string())?;
        let signed = token::Request {
            method: "GET",
            path: SNAPSHOT_PATH,
            body: b"",
        };
        let account = &self.account;
        let now_s = clock::now_ms() / 1000;
        let token = token::sign(account.id, &account.signing_key, &signed, now_s, id)
            .ok_or("no token can be signed")?;
        let mut request = Request::get(SNAPSHOT_PATH)
            .header(header::HOST, &self.authority)
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header(header::ACCEPT_ENCODING, "gzip");
        if let Some(etag) = &self.etag {
            request = request.header(header::IF_NONE_MATCH, etag);
        }
        request.body(Empty::new()).map_err(|why| why.to_string())
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, String> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await;
        let stream = stream.map_err(|why| format!("the broker cannot be reached: {why}"))?;
        let Some(tls) = &self.tls else {
            return Ok(Box::new(stream));
        };
        let name = ServerName::try_from(self.host.clone()).map_err(|why| why.to_string())?;
        let stream = tls.connect(name, stream).await;
        Ok(Box::new(stream.map_err(|why| why.to_string())?))
    }
}

fn connector(ca_pem: Option<&[u8]>) -> Result<TlsConnector, String> {
    let mut roots = RootCertStore::empty();
    match ca_pem {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|why| why.to_string())?;
                roots.add(certificate).map_err(|why| why.to_string())?;
            }
            if roots.is_empty() {
                return Err("has no certificate".to_owned());
            }
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|why| why.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Decompresses, within the bound.
fn unzip(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut plain = Vec::new();
    let bound = u64::try_from(SNAPSHOT_BYTES_MAX).unwrap_or(u64::MAX);
    MultiGzDecoder::new(bytes)
        .take(bound.saturating_add(1))
        .read_to_end(&mut plain)
        .map_err(|_| "the answer cannot be decompressed")?;
    if plain.len() > SNAPSHOT_BYTES_MAX {
        return Err("the answer is too large".to_owned());
    }
    Ok(plain)
}
