//! The vendor bridge: the API with which a vendor's own programs manage tenants, KMS configs, assignments, tags and secrets.
//!
//! A process of its own, beside those programs. Callers hand it credentials of KMSs; it seals them before anything leaves the
//! process, and keeps them no longer than the request: [`seal`] has them in types that are wiped, the allocator wipes what
//! parsers leave, and a connection that brought some is closed with its answer. The broker is asked by one signed call per
//! step ([`call`]); it sees what a broker sees otherwise, and no credential.
//!
//! The code that answers is the one home of the API's description, `/openapi.json`.

mod api;
pub(crate) mod call;
mod configs;
mod extract;
pub(crate) mod query;
mod seal;
pub(crate) mod shapes;
mod tenants;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, MatchedPath, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::Response,
    routing::get,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hyper::Method;
use rand_core::Rng as _;
use serde::de::DeserializeOwned;
use tracing::Instrument as _;
use tsp_wire::{
    ApiKey,
    account::env::{API_KEY, ServiceAccount},
};

use self::{
    api::document,
    call::{Call, Sealing},
    extract::Refusal,
    seal::Bench,
    shapes::StoredKmsConfig,
};
use crate::{
    client::{Client, ClientError},
    keys::random,
    serve::{self, ServeError},
    store::is_name,
};

/// Largest body of a request, in bytes: a tag for ten thousand tenants, or any KMS config.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// What callers present themselves with: `vab:1:` and an API key.
const SCHEME: &str = "vab:1:";

/// The header that names the person or program on whose behalf a caller asks.
const REQUESTOR: &str = "icl-requestor-id";

const API_KEY_2: &str = "API_KEY_2";

/// How a bridge runs.
#[derive(Debug)]
pub struct Config {
    account: ServiceAccount,
    api_keys: Vec<ApiKey>,
    listen: SocketAddr,
    request_timeout: Duration,
    allow_http: bool,
}

impl Config {
    /// Reads the service account and the API keys out of variables.
    ///
    /// # Errors
    /// All that is missing or malformed, without any value.
    pub fn from_variables(
        listen: SocketAddr,
        request_timeout: Duration,
        allow_http: bool,
        get: impl Fn(&'static str) -> Option<String>,
    ) -> Result<Self, Vec<String>> {
        let account = ServiceAccount::from_variables(&get);
        let mut problems = Vec::new();
        let mut api_keys = Vec::new();
        for (name, required) in [(API_KEY, true), (API_KEY_2, false)] {
            let text = get(name).map(|text| text.trim().to_owned());
            match text.filter(|text| !text.is_empty()) {
                None if required => problems.push(format!("{name} is missing")),
                None => {}
                Some(text) => match ApiKey::new(text) {
                    Some(key) => api_keys.push(key),
                    None => problems.push(format!(
                        "{name} must have 1 to {} visible characters of ASCII",
                        ApiKey::BYTES_MAX
                    )),
                },
            }
        }
        match account {
            Ok(account) if problems.is_empty() => Ok(Self {
                account,
                api_keys,
                listen,
                request_timeout,
                allow_http,
            }),
            Ok(_) => Err(problems),
            Err(wrong) => {
                let wrong = wrong.iter().map(ToString::to_string);
                Err(wrong.chain(problems).collect())
            }
        }
    }
}

/// What all handlers share.
#[derive(Debug)]
struct Inner {
    account: Arc<ServiceAccount>,
    api_keys: Vec<ApiKey>,
    client: Client,
    request_timeout: Duration,
}

/// Runs a bridge until SIGTERM or SIGINT. `ready` hears where it listens.
///
/// # Errors
/// If the broker does not answer or is not the vendor's, or the address cannot be listened at.
pub async fn run(config: Config, ready: impl FnOnce(SocketAddr)) -> Result<(), ServeError> {
    let account = Arc::new(config.account);
    let mut client = Client::new(&account.broker_url, config.allow_http)
        .map_err(|why| ServeError(why.to_string()))?;
    client.sign_as(Arc::clone(&account));
    let inner = Arc::new(Inner {
        account,
        api_keys: config.api_keys,
        client,
        request_timeout: config.request_timeout,
    });
    let start = Bridge {
        inner: Arc::clone(&inner),
        requestor: "the bridge itself".to_owned(),
    };
    let sealing: Sealing = start
        .call(Call::Sealing { reserve: false })
        .await
        .map_err(|why| ServeError(why.to_string()))?;
    Bench::new(&inner.account, &sealing).map_err(|_| {
        ServeError("the broker's keys are not those of this account's vendor".to_owned())
    })?;
    serve::serve(config.listen, router(inner), ready).await
}

fn router(inner: Arc<Inner>) -> Router {
    let (api, document) = document().split_for_parts();
    let document = api::completed(document);
    let no_path = || async { Refusal::new(StatusCode::NOT_FOUND, "there is no such path") };
    let no_method = || async {
        let why = "there is no such method here";
        Refusal::new(StatusCode::METHOD_NOT_ALLOWED, why)
    };
    let api = api
        .fallback(no_path)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(Arc::clone(&inner), admit));
    Router::new()
        .route("/live", get(|| async { "ok" }))
        .route("/health", get(|| async { "ok" }))
        .route("/openapi.json", get(|| async { axum::Json(document) }))
        .nest("/api", api)
        .fallback(no_path)
        .with_state(inner)
}

/// Who is asking, if they may: they present an API key, and say for whom.
fn requestor_of(inner: &Inner, headers: &HeaderMap) -> Result<String, Refusal> {
    let presented = headers.get(header::AUTHORIZATION);
    let key = presented
        .map(header::HeaderValue::as_bytes)
        .and_then(|value| value.strip_prefix(SCHEME.as_bytes()));
    // Both are compared, so that the time does not tell which one it was.
    let good = key.is_some_and(|key| {
        let matches = inner.api_keys.iter().map(|own| own.matches(key));
        matches.fold(false, |good, this| good | this)
    });
    if !good {
        return Err(Refusal::new(StatusCode::UNAUTHORIZED, "not authorized"));
    }
    let requestor = headers.get(REQUESTOR);
    let requestor = requestor.and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
    requestor
        .filter(|requestor| is_name(requestor))
        .map(str::to_owned)
        .ok_or_else(|| {
            let why = format!("the header {REQUESTOR} is missing, empty or too long");
            Refusal::new(StatusCode::BAD_REQUEST, &why)
        })
}

/// Lets in who may come in, ends what takes too long, and logs each request in a line.
async fn admit(State(inner): State<Arc<Inner>>, mut request: Request, next: Next) -> Response {
    let mut ray = [0; 12];
    random().fill_bytes(&mut ray);
    let path = request.extensions().get::<MatchedPath>();
    let span = tracing::info_span!(
        "request",
        ray_id = URL_SAFE_NO_PAD.encode(ray),
        method = request.method().as_str(),
        matched_path = path.map_or("", MatchedPath::as_str),
    );
    let started = now();
    let answered = async {
        let requestor = match requestor_of(&inner, request.headers()) {
            Ok(requestor) => requestor,
            Err(refusal) => return axum::response::IntoResponse::into_response(refusal),
        };
        let bridge = Bridge {
            inner: Arc::clone(&inner),
            requestor,
        };
        request.extensions_mut().insert(bridge);
        match tokio::time::timeout(inner.request_timeout, next.run(request)).await {
            Ok(response) => response,
            Err(_) => axum::response::IntoResponse::into_response(Refusal::new(
                StatusCode::GATEWAY_TIMEOUT,
                "it took too long, and was given up",
            )),
        }
    };
    async {
        let mut response = answered.await;
        let no_store = header::HeaderValue::from_static("no-store");
        response
            .headers_mut()
            .insert(header::CACHE_CONTROL, no_store);
        let status = response.status().as_u16();
        let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(status, ms, "answered");
        response
    }
    .instrument(span)
    .await
}

fn now() -> Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "how long a request took goes to the log; no shard runs here"
    )]
    Instant::now()
}

/// How what the broker refuses is told, which the public product does differently from operation to operation.
#[derive(Clone, Copy, Debug)]
struct Told {
    not_found: StatusCode,
    refused: StatusCode,
}

impl Told {
    const USUALLY: Self = Self {
        not_found: StatusCode::NOT_FOUND,
        refused: StatusCode::BAD_REQUEST,
    };
    const AS_BAD_REQUEST: Self = Self {
        not_found: StatusCode::BAD_REQUEST,
        refused: StatusCode::BAD_REQUEST,
    };
    const AS_UNPROCESSABLE: Self = Self {
        not_found: StatusCode::UNPROCESSABLE_ENTITY,
        refused: StatusCode::UNPROCESSABLE_ENTITY,
    };
    const ROTATION: Self = Self {
        not_found: StatusCode::NOT_FOUND,
        refused: StatusCode::UNPROCESSABLE_ENTITY,
    };

    fn refusal(self, why: ClientError) -> Refusal {
        let ClientError::Refused(status, message) = why else {
            tracing::error!(error = %why, "the broker cannot be asked");
            let why = "the broker does not answer as it should";
            return Refusal::new(StatusCode::BAD_GATEWAY, why);
        };
        match status {
            StatusCode::NOT_FOUND => Refusal::new(self.not_found, &message),
            StatusCode::BAD_REQUEST => Refusal::new(self.refused, &message),
            StatusCode::CONFLICT => Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, &message),
            StatusCode::PAYLOAD_TOO_LARGE => Refusal::new(status, &message),
            StatusCode::UNAUTHORIZED => {
                tracing::error!("the broker refuses this bridge's account");
                let why = "the broker refuses this bridge";
                Refusal::new(StatusCode::BAD_GATEWAY, why)
            }
            other => {
                tracing::error!(status = other.as_u16(), message, "the broker failed");
                Refusal::new(StatusCode::BAD_GATEWAY, "the broker failed")
            }
        }
    }
}

/// The broker, asked for one caller.
#[derive(Clone, Debug)]
struct Bridge {
    inner: Arc<Inner>,
    requestor: String,
}

impl Bridge {
    async fn call<T: DeserializeOwned>(&self, call: Call) -> Result<T, ClientError> {
        let request = call::Request {
            requestor: self.requestor.clone(),
            call,
        };
        let client = &self.inner.client;
        client.ask(Method::POST, call::PATH, &request).await
    }

    async fn ask<T: DeserializeOwned>(&self, call: Call, told: Told) -> Result<T, Refusal> {
        self.call(call).await.map_err(|why| told.refusal(why))
    }

    /// What the vendor's configurations are sealed with.
    async fn sealing(&self, reserve: bool) -> Result<Sealing, Refusal> {
        self.ask(Call::Sealing { reserve }, Told::USUALLY).await
    }

    /// Stores what was sealed. Inside, it is refused because something changed meanwhile: to be sealed anew.
    async fn store_kms(&self, call: Call) -> Result<Result<StoredKmsConfig, Refusal>, Refusal> {
        let told = Told::AS_UNPROCESSABLE;
        match self.call(call).await {
            Ok(stored) => Ok(Ok(stored)),
            Err(ClientError::Refused(StatusCode::CONFLICT, _)) => Ok(Err(Refusal::again())),
            Err(why) => Err(told.refusal(why)),
        }
    }

    fn bench(&self, sealing: &Sealing) -> Result<Bench<'_>, Refusal> {
        Ok(Bench::new(&self.inner.account, sealing)?)
    }
}
