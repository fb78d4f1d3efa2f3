//! The proxy's job the ordinary way: `document/wrap`, `document/unwrap` and the batches of both of its HTTP API on axum, with
//! the same EDEKs, so that either unwraps what the other has wrapped.

mod json;
mod keys;
mod metrics;

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::{
    Router,
    extract::{DefaultBodyLimit, FromRequestParts, State},
    http::{StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::ListenerExt as _,
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer};
use tokio::net::TcpListener;
use tsp_wire::{
    KmsConfigId, TspCode,
    edek::{self, EncryptedDeks},
};

use self::{
    json::{
        BatchAnswer, BatchUnwrapRequest, BatchWrapRequest, ErrorAnswer, OwnedUnwrapped,
        OwnedWrapped, UnwrapRequest, Unwrapped, WrapRequest, Wrapped,
    },
    keys::{Lease, LeasedKey, random},
    metrics::{Endpoint, Metrics, now},
};
use crate::{
    config::Config,
    kms::{AwsKms, KEY_BYTES, KmsFailure},
    shared::Shared,
    text::Text,
};

/// Longest body, in bytes: the proxy's own limit.
const BODY_BYTES_MAX: usize = 16 << 20;

/// Longest time for a request, its batch included: the proxy's own limit for a batch.
const REQUEST_MAX: Duration = Duration::from_secs(18);

/// Opened keys that are held per tenant; beyond that all go. The proxy's limit per core, which it keeps more finely.
const OPENED_MAX: usize = 4_096;

/// Everything that requests share.
pub struct Service {
    /// The `authorization` header that applications send.
    authorization: String,
    tenants: HashMap<String, Tenant>,
    metrics: Metrics,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("tenants", &self.tenants.len())
            .finish_non_exhaustive()
    }
}

struct Tenant {
    primary: Option<Arc<Key>>,
    keys: Vec<Arc<Key>>,
    lease: Shared<Option<Arc<Lease>>>,
    /// One lease is made at a time.
    leasing: tokio::sync::Mutex<()>,
    /// By what the KMS made of them.
    opened: Shared<HashMap<Vec<u8>, Arc<LeasedKey>>>,
}

/// A KMS config.
struct Key {
    id: KmsConfigId,
    leasing_allowed: bool,
    kms: AwsKms,
}

/// Why a request, or an item of a batch, failed.
#[derive(Debug)]
pub struct Failure {
    code: TspCode,
    message: String,
}

impl Failure {
    fn new(code: TspCode, message: impl fmt::Display) -> Self {
        Self {
            code,
            message: message.to_string(),
        }
    }

    fn of_kms(why: &KmsFailure, code: TspCode) -> Self {
        let code = match why {
            KmsFailure::Unreachable(_) => TspCode::KmsUnreachable,
            KmsFailure::Refused(_) | KmsFailure::Unusable => code,
        };
        Self::new(code, why)
    }
}

impl Serialize for Failure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let answer = ErrorAnswer {
            code: self.code.number(),
            message: &self.message,
        };
        answer.serialize(serializer)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code.http_status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, json(&self)).into_response()
    }
}

impl Service {
    /// What `config` says, for applications that know `api_key`.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub fn new(config: &Config, api_key: &str) -> Result<Arc<Self>, String> {
        let mut keys = HashMap::new();
        for kms in &config.kms {
            let id = KmsConfigId::new(kms.id).ok_or("a KMS config's id is from 1")?;
            let key = Key {
                id,
                leasing_allowed: kms.leasing_allowed,
                kms: AwsKms::new(kms)?,
            };
            keys.insert(kms.id, Arc::new(key));
        }
        let mut tenants = HashMap::new();
        for tenant in &config.tenant {
            let mut made = Tenant {
                primary: None,
                keys: Vec::new(),
                lease: Shared::default(),
                leasing: tokio::sync::Mutex::default(),
                opened: Shared::default(),
            };
            for assignment in &tenant.assignments {
                let key = keys
                    .get(&assignment.kms)
                    .ok_or_else(|| format!("{}: its KMS config is missing", tenant.id))?;
                made.keys.push(Arc::clone(key));
                if assignment.primary {
                    made.primary = Some(Arc::clone(key));
                }
            }
            tenants.insert(tenant.id.clone(), made);
        }
        Ok(Arc::new(Self {
            authorization: format!("cmk {api_key}"),
            tenants,
            metrics: Metrics::new().map_err(|why| why.to_string())?,
        }))
    }

    /// Serves on `listener` until the listener is of no more use.
    ///
    /// # Errors
    /// Whatever the listener says.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) -> std::io::Result<()> {
        let router = Router::new()
            .route("/api/1/document/wrap", post(wrap))
            .route("/api/1/document/unwrap", post(unwrap))
            .route("/api/1/document/batch-wrap", post(batch_wrap))
            .route("/api/1/document/batch-unwrap", post(batch_unwrap))
            .route("/metrics", get(metrics))
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .with_state(self);
        let listener = listener.tap_io(|stream| {
            // Not worth refusing a connection for.
            drop(stream.set_nodelay(true));
        });
        axum::serve(listener, router).await
    }

    /// Listens and serves in the background of the runtime that it is called on; gives the address.
    ///
    /// # Errors
    /// If `address` cannot be listened on.
    pub async fn start(self: Arc<Self>, address: SocketAddr) -> std::io::Result<SocketAddr> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        tokio::spawn(self.serve(listener));
        Ok(address)
    }

    fn tenant(&self, id: &Text<'_>) -> Result<&Tenant, Failure> {
        self.tenants.get(&*id.0).ok_or_else(|| {
            Failure::new(
                TspCode::UnknownTenantOrNoActiveKmsConfigurations,
                "there is no such tenant",
            )
        })
    }

    async fn wrap(&self, body: &[u8], began: Instant) -> Result<Response, Failure> {
        let request: WrapRequest<'_> = read(body)?;
        let tenant = self.tenant(&request.tenant_id)?;
        let mut dek = [0; KEY_BYTES];
        random(&mut dek);
        let edek = tenant.wrap(&dek, began).await?;
        let answer = Wrapped {
            dek: &BASE64.encode(dek),
            edek: &BASE64.encode(edek),
        };
        Ok(json(&answer))
    }

    async fn unwrap(&self, body: &[u8], began: Instant) -> Result<Response, Failure> {
        let request: UnwrapRequest<'_> = read(body)?;
        let tenant = self.tenant(&request.tenant_id)?;
        let dek = tenant
            .unwrap(&request.encrypted_document_key.0, began)
            .await?;
        let answer = Unwrapped {
            dek: &BASE64.encode(dek),
        };
        Ok(json(&answer))
    }

    async fn batch_wrap(&self, body: &[u8], began: Instant) -> Result<Response, Failure> {
        let request: BatchWrapRequest<'_> = read(body)?;
        let tenant = self.tenant(&request.tenant_id)?;
        let mut answer = BatchAnswer {
            keys: Vec::with_capacity(request.document_ids.len()),
            failures: Vec::new(),
        };
        for id in &request.document_ids {
            let mut dek = [0; KEY_BYTES];
            random(&mut dek);
            match tenant.wrap(&dek, began).await {
                Ok(edek) => {
                    let (dek, edek) = (BASE64.encode(dek), BASE64.encode(edek));
                    answer.keys.push((&*id.0, OwnedWrapped { dek, edek }));
                }
                Err(why) => answer.failures.push((&*id.0, why)),
            }
        }
        Ok(json(&answer))
    }

    async fn batch_unwrap(&self, body: &[u8], began: Instant) -> Result<Response, Failure> {
        let request: BatchUnwrapRequest<'_> = read(body)?;
        let tenant = self.tenant(&request.tenant_id)?;
        let mut answer = BatchAnswer {
            keys: Vec::with_capacity(request.edeks.0.len()),
            failures: Vec::new(),
        };
        for (id, edek) in &request.edeks.0 {
            match tenant.unwrap(edek, began).await {
                Ok(dek) => {
                    let dek = BASE64.encode(dek);
                    answer.keys.push((&**id, OwnedUnwrapped { dek }));
                }
                Err(why) => answer.failures.push((&**id, why)),
            }
        }
        Ok(json(&answer))
    }
}

impl Tenant {
    async fn wrap(&self, dek: &[u8; KEY_BYTES], began: Instant) -> Result<Vec<u8>, Failure> {
        let key = self
            .primary
            .as_ref()
            .ok_or_else(|| Failure::new(TspCode::NoPrimaryKmsConfiguration, "none is primary"))?;
        if key.leasing_allowed {
            let lease = match self.lease(began) {
                Some(lease) => lease,
                None => self.new_lease(key, began).await?,
            };
            return lease
                .wrap(dek)
                .ok_or_else(|| Failure::new(TspCode::UnknownError, "the key is none"));
        }
        let blob = key.wrap(dek).await?;
        Ok(edek::encode_unleased(key.id, &blob))
    }

    fn lease(&self, now: Instant) -> Option<Arc<Lease>> {
        let lease = self.lease.read();
        lease.as_ref().filter(|lease| lease.serves(now)).cloned()
    }

    async fn new_lease(&self, key: &Key, began: Instant) -> Result<Arc<Lease>, Failure> {
        let _one_at_a_time = self.leasing.lock().await;
        if let Some(made_meanwhile) = self.lease(began) {
            return Ok(made_meanwhile);
        }
        let mut bytes = [0; KEY_BYTES];
        random(&mut bytes);
        let blob = key.wrap(&bytes).await?;
        let wrapped = edek::encode_unleased(key.id, &blob);
        let made = Lease::new(&bytes, &wrapped, key.id, began)
            .map(Arc::new)
            .ok_or_else(|| Failure::new(TspCode::UnknownError, "the key is none"))?;
        *self.lease.write() = Some(Arc::clone(&made));
        Ok(made)
    }

    async fn unwrap(&self, text: &str, began: Instant) -> Result<[u8; KEY_BYTES], Failure> {
        let invalid = |why: &dyn fmt::Display| Failure::new(TspCode::InvalidProvidedEdek, why);
        let edeks = edek::parse(text).map_err(|why| invalid(&why))?;
        let (entry, key) = self.find(&edeks)?;
        if entry.leased_key_id == 0 {
            return key.unwrap(&entry.encrypted_dek_data).await;
        }
        let wrapped = &entry.encrypted_leased_key_data;
        let held = self.opened.read().get(wrapped).cloned();
        let leased = match held.filter(|held| held.serves(began)) {
            Some(held) => held,
            None => self.open(wrapped, began).await?,
        };
        leased
            .open(&entry.leased_key_iv, &entry.encrypted_dek_data)
            .ok_or_else(|| invalid(&"the EDEK does not open under its leased key"))
    }

    async fn open(&self, wrapped: &[u8], began: Instant) -> Result<Arc<LeasedKey>, Failure> {
        let edeks = EncryptedDeks::from_bytes(wrapped)
            .map_err(|why| Failure::new(TspCode::InvalidProvidedEdek, why))?;
        let (entry, key) = self.find(&edeks)?;
        let bytes = key.unwrap(&entry.encrypted_dek_data).await?;
        let opened = LeasedKey::new(&bytes, began)
            .map(Arc::new)
            .ok_or_else(|| Failure::new(TspCode::UnknownError, "the key is none"))?;
        let mut all = self.opened.write();
        if all.len() >= OPENED_MAX {
            all.clear();
        }
        all.insert(wrapped.to_vec(), Arc::clone(&opened));
        Ok(opened)
    }

    /// The first entry that names a key of the tenant's, and that key.
    fn find<'a>(
        &self,
        edeks: &'a EncryptedDeks,
    ) -> Result<(&'a edek::EncryptedDek, &Key), Failure> {
        edeks
            .encrypted_deks
            .iter()
            .find_map(|entry| {
                let mut keys = self.keys.iter();
                let key = keys.find(|key| key.id.number() == entry.kms_config_id)?;
                Some((entry, &**key))
            })
            .ok_or_else(|| {
                let why = "the EDEK names no KMS config of the tenant's";
                Failure::new(TspCode::KmsConfigurationDisabled, why)
            })
    }
}

impl Key {
    async fn wrap(&self, key: &[u8; KEY_BYTES]) -> Result<Vec<u8>, Failure> {
        let blob = self.kms.encrypt(key).await;
        blob.map_err(|why| Failure::of_kms(&why, TspCode::KmsWrapFailed))
    }

    async fn unwrap(&self, blob: &[u8]) -> Result<[u8; KEY_BYTES], Failure> {
        let key = self.kms.decrypt(blob).await;
        key.map_err(|why| Failure::of_kms(&why, TspCode::KmsUnwrapFailed))
    }
}

/// Proof that the request came with the API key.
struct Authorized;

impl FromRequestParts<Arc<Service>> for Authorized {
    type Rejection = Failure;

    async fn from_request_parts(
        parts: &mut Parts,
        service: &Arc<Service>,
    ) -> Result<Self, Failure> {
        let presented = parts.headers.get(header::AUTHORIZATION);
        let presented = presented.map_or(&b""[..], |value| value.as_bytes());
        verify_slices_are_equal(presented, service.authorization.as_bytes())
            .map(|()| Self)
            .map_err(|_| Failure::new(TspCode::Unauthorized, "the API key is missing or wrong"))
    }
}

async fn wrap(
    State(service): State<Arc<Service>>,
    _: Authorized,
    body: Bytes,
) -> Result<Response, Failure> {
    let began = now();
    watched(&service.metrics.wrap, began, service.wrap(&body, began)).await
}

async fn unwrap(
    State(service): State<Arc<Service>>,
    _: Authorized,
    body: Bytes,
) -> Result<Response, Failure> {
    let began = now();
    watched(&service.metrics.unwrap, began, service.unwrap(&body, began)).await
}

async fn batch_wrap(
    State(service): State<Arc<Service>>,
    _: Authorized,
    body: Bytes,
) -> Result<Response, Failure> {
    let began = now();
    let work = service.batch_wrap(&body, began);
    watched(&service.metrics.batch_wrap, began, work).await
}

async fn batch_unwrap(
    State(service): State<Arc<Service>>,
    _: Authorized,
    body: Bytes,
) -> Result<Response, Failure> {
    let began = now();
    let work = service.batch_unwrap(&body, began);
    watched(&service.metrics.batch_unwrap, began, work).await
}

async fn metrics(State(service): State<Arc<Service>>) -> Result<String, Failure> {
    let text = service.metrics.text();
    text.map_err(|why| Failure::new(TspCode::UnknownError, why))
}

/// Counts what came of `work`, which has until its time is up.
async fn watched(
    endpoint: &Endpoint,
    began: Instant,
    work: impl Future<Output = Result<Response, Failure>>,
) -> Result<Response, Failure> {
    let result = tokio::time::timeout(REQUEST_MAX, work)
        .await
        .unwrap_or_else(|_| Err(Failure::new(TspCode::KmsUnreachable, "time is up")));
    endpoint.count(began, result.is_ok());
    result
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|why| Failure::new(TspCode::InvalidRequest, why))
}

/// An answer of 200 unless its status is changed afterwards.
fn json(answer: &impl Serialize) -> Response {
    match serde_json::to_vec(answer) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
