//! AWS KMS as an ordinary client: hyper's pooled client, `serde_json`, AWS Signature Version 4.

use std::{fmt, sync::Arc, time::Duration};

use aws_lc_rs::{
    digest::{self, SHA256},
    hmac,
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, StatusCode, Uri, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{config::KmsConfig, shared::Shared, text::Text};

/// Bytes of a DEK, and of a leased key.
pub const KEY_BYTES: usize = 32;

/// Longest time for one call, connecting included: the proxy's own limit for an operation.
const CALL_MAX: Duration = Duration::from_secs(5);

/// Longest answer, in bytes: the proxy's own limit.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// How long an idle connection is kept: the proxy's own limit.
const IDLE_MAX: Duration = Duration::from_secs(20);

/// Idle connections that are kept per endpoint: more than there are requests at a time in any run.
const IDLE_CONNECTIONS_MAX: usize = 1024;

const CONTENT_TYPE: &str = "application/x-amz-json-1.1";

/// Why a KMS call failed.
#[derive(Debug)]
pub enum KmsFailure {
    /// There was no answer in time.
    Unreachable(String),
    /// It answered with an error.
    Refused(StatusCode),
    /// It answered something else than it should.
    Unusable,
}

impl fmt::Display for KmsFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => write!(f, "the KMS gave no answer: {why}"),
            Self::Refused(status) => write!(f, "the KMS answered {status}"),
            Self::Unusable => f.write_str("the KMS's answer cannot be used"),
        }
    }
}

/// One key at AWS KMS.
pub struct AwsKms {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    uri: Uri,
    host: String,
    key_id: String,
    region: String,
    access_key_id: String,
    secret: String,
    /// The key that signs, with the day that it is for.
    signing_key: Shared<Option<Arc<(String, hmac::Key)>>>,
}

impl fmt::Debug for AwsKms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwsKms")
            .field("uri", &self.uri)
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Encrypt<'a> {
    key_id: &'a str,
    plaintext: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Decrypt<'a> {
    ciphertext_blob: &'a str,
    key_id: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Encrypted<'a> {
    #[serde(borrow)]
    ciphertext_blob: Text<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Decrypted<'a> {
    #[serde(borrow)]
    plaintext: Text<'a>,
}

impl AwsKms {
    /// A client with a pool of its own.
    ///
    /// # Errors
    /// A sentence about what is wrong with the config.
    pub fn new(config: &KmsConfig) -> Result<Self, String> {
        let failed = |why: &dyn fmt::Display| format!("KMS config {}: {why}", config.id);
        let mut roots = rustls::RootCertStore::empty();
        if let Some(file) = &config.ca_file {
            for certificate in CertificateDer::pem_file_iter(file).map_err(|why| failed(&why))? {
                roots
                    .add(certificate.map_err(|why| failed(&why))?)
                    .map_err(|why| failed(&why))?;
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|why| failed(&why))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .build(connector);
        let uri: Uri = config.endpoint.parse().map_err(|why| failed(&why))?;
        let host = uri
            .authority()
            .ok_or_else(|| failed(&"its endpoint names no host"))?
            .to_string();
        Ok(Self {
            client,
            uri,
            host,
            key_id: config.key_path.key_id.clone(),
            region: config.key_path.region.clone(),
            access_key_id: config.credentials.access_key_id.clone(),
            secret: config.credentials.secret_access_key.clone(),
            signing_key: Shared::new(None),
        })
    }

    /// Has the KMS encrypt a key.
    ///
    /// # Errors
    /// [`KmsFailure`].
    pub async fn encrypt(&self, key: &[u8; KEY_BYTES]) -> Result<Vec<u8>, KmsFailure> {
        let request = Encrypt {
            key_id: &self.key_id,
            plaintext: &BASE64.encode(key),
        };
        let answer = self.call("TrentService.Encrypt", &request).await?;
        let Encrypted { ciphertext_blob } =
            serde_json::from_slice(&answer).map_err(|_| KmsFailure::Unusable)?;
        BASE64
            .decode(&*ciphertext_blob.0)
            .map_err(|_| KmsFailure::Unusable)
    }

    /// Has the KMS decrypt what [`AwsKms::encrypt`] gave.
    ///
    /// # Errors
    /// [`KmsFailure`].
    pub async fn decrypt(&self, blob: &[u8]) -> Result<[u8; KEY_BYTES], KmsFailure> {
        let request = Decrypt {
            ciphertext_blob: &BASE64.encode(blob),
            key_id: &self.key_id,
        };
        let answer = self.call("TrentService.Decrypt", &request).await?;
        let Decrypted { plaintext } =
            serde_json::from_slice(&answer).map_err(|_| KmsFailure::Unusable)?;
        let mut key = [0; KEY_BYTES];
        match BASE64.decode_slice(&*plaintext.0, &mut key) {
            Ok(KEY_BYTES) => Ok(key),
            Ok(_) | Err(_) => Err(KmsFailure::Unusable),
        }
    }

    async fn call(&self, target: &'static str, body: &impl Serialize) -> Result<Bytes, KmsFailure> {
        let unreachable = |why: &dyn fmt::Display| KmsFailure::Unreachable(why.to_string());
        let body = serde_json::to_vec(body).map_err(|why| unreachable(&why))?;
        let request = self
            .signed(target, body, OffsetDateTime::now_utc())
            .map_err(|why| unreachable(&why))?;
        let exchange = async {
            let answer = self
                .client
                .request(request)
                .await
                .map_err(|why| unreachable(&why))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
                .collect()
                .await
                .map_err(|why| unreachable(&why))?;
            if status == StatusCode::OK {
                Ok(body.to_bytes())
            } else {
                Err(KmsFailure::Refused(status))
            }
        };
        tokio::time::timeout(CALL_MAX, exchange)
            .await
            .unwrap_or_else(|_| Err(unreachable(&"time is up")))
    }

    /// Signs as "Create a signed AWS API request" of the AWS IAM User Guide has it.
    fn signed(
        &self,
        target: &'static str,
        body: Vec<u8>,
        now: OffsetDateTime,
    ) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
        const SIGNED: &str = "content-type;host;x-amz-date;x-amz-target";
        let day = format!(
            "{:04}{:02}{:02}",
            now.year(),
            u8::from(now.month()),
            now.day()
        );
        let moment = format!(
            "{day}T{:02}{:02}{:02}Z",
            now.hour(),
            now.minute(),
            now.second()
        );
        let canonical = format!(
            "POST\n/\n\ncontent-type:{CONTENT_TYPE}\nhost:{}\nx-amz-date:{moment}\nx-amz-target:{target}\n\n{SIGNED}\n{}",
            self.host,
            hash(&body)
        );
        let scope = format!("{day}/{}/kms/aws4_request", self.region);
        let to_sign = format!(
            "AWS4-HMAC-SHA256\n{moment}\n{scope}\n{}",
            hash(canonical.as_bytes())
        );
        let key = self.signing_key(day);
        let signature = hex::encode(hmac::sign(&key.1, to_sign.as_bytes()));
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={SIGNED}, Signature={signature}",
            self.access_key_id
        );
        Request::post(self.uri.clone())
            .header(header::HOST, &self.host)
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, CONTENT_TYPE)
            .header("x-amz-date", moment)
            .header("x-amz-target", target)
            .header(header::AUTHORIZATION, authorization)
            .body(Full::new(body.into()))
    }

    fn signing_key(&self, day: String) -> Arc<(String, hmac::Key)> {
        if let Some(kept) = self.signing_key.read().as_ref()
            && kept.0 == day
        {
            return Arc::clone(kept);
        }
        let of = |key: &[u8], text: &str| {
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes())
        };
        let dated = of(format!("AWS4{}", self.secret).as_bytes(), &day);
        let service = of(of(dated.as_ref(), &self.region).as_ref(), "kms");
        let key = of(service.as_ref(), "aws4_request");
        let made = Arc::new((day, hmac::Key::new(hmac::HMAC_SHA256, key.as_ref())));
        *self.signing_key.write() = Some(Arc::clone(&made));
        made
    }
}

fn hash(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&SHA256, bytes))
}
