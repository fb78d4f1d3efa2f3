//! Answers that were made beforehand, over hyper on one thread: the ceiling, and the KMS behind all contestants.
//!
//! On the proxy's own routes the answer depends on the path alone, so that the same server stands for a proxy (the
//! ceiling) and for what lies behind a bare proxy, which passes the client's request on as it is. At `/` it is an AWS KMS as
//! cheap as can be: it believes everybody, and its blob is a filler followed by the key, so that what it encrypted it can
//! decrypt, by copying 44 characters either way.

use std::{
    collections::BTreeMap, convert::Infallible, fmt, net::SocketAddr, sync::Arc, time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
    rt::{Read, Write},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tsp_wire::{
    KmsConfigId,
    edek::{self, LeasedForm},
};

use crate::kms::KEY_BYTES;

/// Longest body, in bytes.
const BODY_BYTES_MAX: usize = 1 << 20;

/// A key of 32 bytes in base64, in characters.
const KEY_CHARS: usize = 44;

/// What stands before the key in a blob, in bytes: a multiple of 3, so that base64 of the whole is that of the parts, and
/// with the key as long as a blob of AWS KMS.
const FILLER_BYTES: usize = 153;

/// What is asked for in the head of a KMS request.
const TARGET: &str = "x-amz-target";

/// A server with fixed answers.
pub struct Fixed {
    wrapped: Bytes,
    unwrapped: Bytes,
    filler: String,
    delay: Option<Duration>,
    tls: Option<TlsAcceptor>,
}

impl fmt::Debug for Fixed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fixed")
            .field("delay", &self.delay)
            .finish_non_exhaustive()
    }
}

impl Fixed {
    /// Answers as large as the proxy's: with EDEKs under a leased key if `leased`, else with what the KMS here makes. Each
    /// comes after `delay`.
    #[must_use]
    pub fn new(leased: bool, delay: Option<Duration>) -> Self {
        // Like AWS's, it begins with a version that no reader takes for something else.
        let filler = BASE64.encode([[1].as_slice(), &[0x42; FILLER_BYTES - 1]].concat());
        let key = BASE64.encode([0; KEY_BYTES]);
        let blob = [[1].as_slice(), &[0x42; FILLER_BYTES - 1], &[0; KEY_BYTES]].concat();
        let edek = KmsConfigId::new(1).map_or_else(Vec::new, |id| {
            let unleased = edek::encode_unleased(id, &blob);
            if !leased {
                return unleased;
            }
            let form = LeasedForm::new(id, 1, &unleased);
            let (iv, data) = ([7; LeasedForm::IV_BYTES], [7; LeasedForm::DATA_BYTES]);
            let mut edek = Vec::new();
            form.write(&mut edek, &iv, &data);
            edek
        });
        let edek = BASE64.encode(edek);
        Self {
            wrapped: format!(r#"{{"dek":"{key}","edek":"{edek}"}}"#).into(),
            unwrapped: format!(r#"{{"dek":"{key}"}}"#).into(),
            filler,
            delay,
            tls: None,
        }
    }

    /// Serves TLS from now on, as `localhost` and `127.0.0.1`, and gives the certificate of the authority that clients must
    /// trust, in PEM.
    ///
    /// # Errors
    /// A sentence about what could not be made.
    pub fn with_tls(mut self) -> Result<(Self, String), String> {
        let (authority, certificate, key) = certificate().map_err(|why| why.to_string())?;
        let certificates = CertificateDer::pem_slice_iter(certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|why| why.to_string())?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|why| why.to_string())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder
                    .with_no_client_auth()
                    .with_single_cert(certificates, key)
            })
            .map_err(|why| why.to_string())?;
        self.tls = Some(Arc::new(config).into());
        Ok((self, authority))
    }

    /// Listens and serves in the background of the runtime that it is called on; gives the address.
    ///
    /// # Errors
    /// If `address` cannot be listened on.
    pub async fn start(self, address: SocketAddr) -> std::io::Result<SocketAddr> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let this = Arc::new(self);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&this).converse(stream));
            }
        });
        Ok(address)
    }

    async fn converse(self: Arc<Self>, stream: TcpStream) {
        // Not worth refusing a connection for.
        drop(stream.set_nodelay(true));
        match &self.tls {
            None => self.answer_all(TokioIo::new(stream)).await,
            Some(tls) => {
                if let Ok(stream) = tls.accept(stream).await {
                    self.answer_all(TokioIo::new(stream)).await;
                }
            }
        }
    }

    async fn answer_all(&self, io: impl Read + Write + Unpin) {
        let service = service_fn(async |request| Ok::<_, Infallible>(self.answer(request).await));
        // However it ends: the client sees it, and counts it.
        drop(http1::Builder::new().serve_connection(io, service).await);
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let Ok(body) = Limited::new(body, BODY_BYTES_MAX).collect().await else {
            return refusal();
        };
        if let Some(delay) = self.delay {
            tokio::time::sleep(delay).await;
        }
        let body = match head.uri.path() {
            "/api/1/document/wrap" => Some(self.wrapped.clone()),
            "/api/1/document/unwrap" => Some(self.unwrapped.clone()),
            "/api/1/document/batch-wrap" => self.batch_wrapped(&body.to_bytes()),
            "/" => {
                let target = head.headers.get(TARGET).map(HeaderValue::as_bytes);
                self.kms(target, &body.to_bytes())
            }
            _ => None,
        };
        body.map_or_else(refusal, |body| {
            let mut response = Response::new(Full::new(body));
            let json = HeaderValue::from_static("application/json");
            response.headers_mut().insert(CONTENT_TYPE, json);
            response
        })
    }

    /// The same answer for each document. This is how generators get their EDEKs, before they measure.
    fn batch_wrapped(&self, body: &[u8]) -> Option<Bytes> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Batch {
            document_ids: Vec<String>,
        }

        let wrapped = RawValue::from_string(String::from_utf8(self.wrapped.to_vec()).ok()?).ok()?;
        let Batch { document_ids } = serde_json::from_slice(body).ok()?;
        let keys: BTreeMap<_, _> = document_ids.iter().map(|id| (id, &wrapped)).collect();
        let keys = serde_json::to_string(&keys).ok()?;
        Some(format!(r#"{{"keys":{keys},"failures":{{}}}}"#).into())
    }

    /// The part of AWS KMS that proxies use.
    fn kms(&self, target: Option<&[u8]>, body: &[u8]) -> Option<Bytes> {
        const KEY_ID: &str =
            "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
        const ALGORITHM: &str = "SYMMETRIC_DEFAULT";
        let body = std::str::from_utf8(body).ok()?;
        let answer = match target? {
            b"TrentService.Encrypt" => format!(
                r#"{{"CiphertextBlob":"{}{}","EncryptionAlgorithm":"{ALGORITHM}","KeyId":"{KEY_ID}"}}"#,
                self.filler,
                member(body, r#""Plaintext":""#)?
            ),
            b"TrentService.Decrypt" => {
                let blob = member(body, r#""CiphertextBlob":""#)?;
                let key = blob.get(blob.len().checked_sub(KEY_CHARS)?..)?;
                format!(
                    r#"{{"EncryptionAlgorithm":"{ALGORITHM}","KeyId":"{KEY_ID}","Plaintext":"{key}"}}"#
                )
            }
            _ => return None,
        };
        Some(answer.into())
    }
}

/// The text of a member, up to the next quotation mark: base64 has none.
fn member<'a>(body: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = body.split_once(name)?;
    let (text, _) = rest.split_once('"')?;
    Some(text)
}

fn refusal() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response
}

/// An authority, a certificate of its, and the certificate's key; all in PEM.
fn certificate() -> Result<(String, String, String), rcgen::Error> {
    let authority_key = KeyPair::generate()?;
    let mut authority = CertificateParams::default();
    authority
        .distinguished_name
        .push(DnType::CommonName, "reference TEST ONLY authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority_pem = authority.self_signed(&authority_key)?.pem();
    let issuer = Issuer::new(authority, authority_key);

    let key = KeyPair::generate()?;
    let names = ["localhost", "127.0.0.1"].map(String::from);
    let mut params = CertificateParams::new(names)?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &issuer)?;
    Ok((authority_pem, certificate.pem(), key.serialize_pem()))
}
