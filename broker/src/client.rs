//! The far end of the broker's APIs: JSON over HTTP, for the command line and for a bridge.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, StatusCode, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as Pool, connect::HttpConnector},
    rt::TokioExecutor,
};
use rand_core::Rng as _;
use serde::{Serialize, de::DeserializeOwned};
use tsp_wire::{
    Secret,
    account::{ErrorAnswer, env::ServiceAccount, token},
};
use zeroize::Zeroizing;

use crate::{clock, keys::random};

/// Longest time for one request and its answer.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Largest answer, in bytes: all envelopes of a vendor.
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Why there is no good answer.
#[derive(Debug)]
pub enum ClientError {
    /// The URL is none, or plain HTTP to another machine.
    Url(String),
    /// No answer came.
    Network(String),
    /// The broker refused: its status and sentence.
    Refused(StatusCode, String),
    /// The answer is not what it should be.
    Malformed,
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(why) => f.write_str(why),
            Self::Network(why) => write!(f, "the broker does not answer: {why}"),
            Self::Refused(status, why) => {
                write!(f, "the broker refused ({}): {why}", status.as_u16())
            }
            Self::Malformed => f.write_str("the broker's answer is not what it should be"),
        }
    }
}

impl std::error::Error for ClientError {}

/// Asks one broker.
pub struct Client {
    base: String,
    pool: Pool<HttpsConnector<HttpConnector>, Full<Bytes>>,
    credential: Option<Credential>,
}

/// What a client proves itself with.
enum Credential {
    /// A session's token, or the setup token.
    Bearer(Secret<String>),
    /// Signs a token per request.
    Account(Arc<ServiceAccount>),
}

impl Credential {
    fn authorization(&self, method: &Method, path: &str, body: &[u8]) -> Option<Zeroizing<String>> {
        let token = match self {
            Self::Bearer(token) => {
                return Some(Zeroizing::new(format!("Bearer {}", token.expose())));
            }
            Self::Account(account) => {
                let request = token::Request {
                    method: method.as_str(),
                    path,
                    body,
                };
                let mut id = [0; token::ID_BYTES];
                random().fill_bytes(&mut id);
                token::sign(
                    account.id,
                    &account.signing_key,
                    &request,
                    clock::now_s(),
                    id,
                )?
            }
        };
        Some(Zeroizing::new(format!("Bearer {token}")))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.base)
    }
}

impl Client {
    /// For the broker at `base`, such as `https://broker.example.com`. Plain HTTP is for this machine alone, unless
    /// `allow_http`.
    ///
    /// # Errors
    /// [`ClientError::Url`].
    pub fn new(base: &str, allow_http: bool) -> Result<Self, ClientError> {
        let base = base.trim_end_matches('/');
        let wrong = |why: &str| Err(ClientError::Url(format!("{base}: {why}")));
        let Ok(uri) = base.parse::<hyper::Uri>() else {
            return wrong("that is no URL");
        };
        let host = uri.host().unwrap_or_default();
        let local = host == "localhost" || host == "[::1]" || host.starts_with("127.");
        match uri.scheme_str() {
            Some("https") => {}
            Some("http") if local || allow_http => {}
            Some("http") => return wrong("plain HTTP is for this machine alone; use https"),
            _ => return wrong("a URL begins with https://"),
        }
        let connector = HttpsConnectorBuilder::new()
            .with_webpki_roots()
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self {
            base: base.to_owned(),
            pool: Pool::builder(TokioExecutor::new()).build(connector),
            credential: None,
        })
    }

    /// Presents `token` from now on.
    pub fn authorize(&mut self, token: String) {
        self.credential = Some(Credential::Bearer(Secret::new(token)));
    }

    /// Signs requests as `account` from now on.
    pub fn sign_as(&mut self, account: Arc<ServiceAccount>) {
        self.credential = Some(Credential::Account(account));
    }

    /// `GET`s what is at `path`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let body = self.send(Method::GET, path, Bytes::new()).await?;
        serde_json::from_slice(&body).map_err(|_| ClientError::Malformed)
    }

    /// Sends `body`, and reads what is answered.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|_| ClientError::Malformed)?;
        let body = self.send(method, path, body.into()).await?;
        serde_json::from_slice(&body).map_err(|_| ClientError::Malformed)
    }

    /// Sends `body`, and wants no more than to hear that it was taken.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn tell(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<(), ClientError> {
        let body = serde_json::to_vec(body).map_err(|_| ClientError::Malformed)?;
        self.send(method, path, body.into()).await.map(drop)
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let authorization = self
            .credential
            .as_ref()
            .and_then(|credential| credential.authorization(&method, path, &body));
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(value) = authorization {
            request = request.header(header::AUTHORIZATION, value.as_str());
        }
        let request = request
            .body(Full::new(body))
            .map_err(|why| ClientError::Url(why.to_string()))?;
        let exchange = async {
            let answer = self
                .pool
                .request(request)
                .await
                .map_err(|why| ClientError::Network(sentence(&why)))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
                .collect()
                .await
                .map_err(|why| ClientError::Network(why.to_string()))?;
            Ok((status, body.to_bytes()))
        };
        let timeout = |_| ClientError::Network(format!("not within {} s", TIMEOUT.as_secs()));
        let (status, body) = tokio::time::timeout(TIMEOUT, exchange)
            .await
            .map_err(timeout)??;
        if status.is_success() {
            return Ok(body);
        }
        let why = serde_json::from_slice::<ErrorAnswer>(&body).map(|answer| answer.message);
        Err(ClientError::Refused(status, why.unwrap_or_default()))
    }
}

/// An error with all that caused it.
fn sentence(why: &dyn std::error::Error) -> String {
    let mut sentence = why.to_string();
    let mut cause = why.source();
    while let Some(next) = cause {
        sentence = format!("{sentence}: {next}");
        cause = next.source();
    }
    sentence
}
