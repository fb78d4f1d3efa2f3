//! The service's HTTP interfaces, and what they share: errors, limits, who is asking.

mod account;
mod admin;
mod admins;
mod bridge;
mod organization;
mod vendor;

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use sha2::{Digest as _, Sha256};
use tsp_wire::{
    Secret,
    account::{ErrorAnswer, ErrorCode, REQUEST_BYTES_MAX},
    envelope::{self, Epoch},
};

use crate::{
    clock,
    mail::{Mail, one_line, readable},
    metrics::{self, Metrics},
    model::{Invitation, Invite},
    store::{Admin, Change, Store, StoreError},
};

/// Longest body of an admin's request, in bytes: a rotation carries all envelopes of 100,000 KMS configs.
const ADMIN_BYTES_MAX: usize = 128 * 1024 * 1024;

/// Longest time for a request, whatever it does.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// What all handlers share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) store: Store,
    /// Who knows it may make a new vendor. Absent: nobody may.
    pub(crate) setup_token: Option<Arc<Secret<String>>>,
    /// Absent: no mail is sent.
    pub(crate) mail: Option<Mail>,
}

impl Shared {
    /// Begins a change that `admin` makes, now.
    pub(crate) async fn change(&self, admin: &Admin) -> Result<Change, StoreError> {
        let actor = admin.actor();
        self.store
            .change(admin.vendor, &actor, clock::now_s())
            .await
    }

    /// Mails the link of an invitation to whoever is invited, if mail is configured: to be answered by `command`. Gives whether
    /// the mail is on its way.
    pub(crate) async fn mail_invitation(
        &self,
        vendor: i64,
        invitation: &Invitation,
        email: &str,
        what: &str,
        command: &str,
    ) -> Result<bool, ApiError> {
        let Some(mail) = &self.mail else {
            return Ok(false);
        };
        let (name, vendor_key) = self.store.organization(vendor).await?;
        let fingerprint = envelope::VerifyingKey::from_bytes(key(&vendor_key)?).fingerprint();
        let link = mail.link(&invitation.token, &fingerprint.to_string());
        let (name, what) = (one_line(&name), one_line(what));
        let expires = readable(invitation.expires);
        let body = format!(
            "{name} invites you {what}.\n\n    tsp-broker {command} '{link}'\n\n\
             The link is good once, until {expires}. It came through the broker, which could have changed it: the command prints a \
             code,\nand {name} wants to hear it from you, by another way than this.\n"
        );
        Ok(mail.send(email, &format!("Invitation by {name}"), body))
    }
}

impl Shared {
    /// Invites a tenant's admin, in the place of an earlier invitation.
    pub(crate) async fn invite_tenant(
        &self,
        vendor: i64,
        actor: &str,
        id: &str,
        wanted: &Invite,
    ) -> Result<Invitation, ApiError> {
        let mut token = [0; 32];
        getrandom::fill(&mut token).map_err(|_| ApiError::Internal)?;
        let token = URL_SAFE_NO_PAD.encode(token);
        let mut change = self.store.change(vendor, actor, clock::now_s()).await?;
        let expires = change.invite(id, wanted, &token_hash(&token)).await?;
        let detail = serde_json::json!({ "email": wanted.email, "expires": expires });
        change
            .commit("invite", format!("tenant {id}"), &detail)
            .await?;
        let mut invitation = Invitation {
            token,
            expires,
            mailed: false,
        };
        let what = format!("to decide about the keys of its tenant {id}");
        invitation.mailed = self
            .mail_invitation(vendor, &invitation, &wanted.email, &what, "tenant accept")
            .await?;
        Ok(invitation)
    }
}

/// All routes.
pub(crate) fn router(shared: Shared, metrics: Metrics) -> Router {
    let scrape = axum::routing::get(metrics::scrape).with_state(metrics.clone());
    Router::new()
        .route("/live", axum::routing::get(|| async { "ok" }))
        .route("/health", axum::routing::get(health))
        .merge(
            account::routes()
                .merge(bridge::routes())
                .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX)),
        )
        .merge(admin::routes().layer(DefaultBodyLimit::max(ADMIN_BYTES_MAX)))
        .fallback(|| async { ApiError::NotFound("there is no such path") })
        .layer(middleware::from_fn(in_time))
        .layer(middleware::from_fn_with_state(metrics, metrics::count))
        .route("/metrics", scrape)
        .with_state(shared)
}

async fn health(State(shared): State<Shared>) -> Result<&'static str, ApiError> {
    shared.store.ping().await?;
    Ok("ok")
}

async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(mut response) => {
            let headers = response.headers_mut();
            let no_store = header::HeaderValue::from_static("no-store");
            headers.entry(header::CACHE_CONTROL).or_insert(no_store);
            response
        }
        Err(_) => ApiError::Unavailable.into_response(),
    }
}

/// What goes wrong, as it is answered.
#[derive(Debug)]
pub(crate) enum ApiError {
    /// 401. Why is in the log.
    Unauthorized,
    /// 403: the role, or the kind of organization, does not allow it.
    Forbidden(&'static str),
    /// 400, with a sentence of ours.
    Invalid(String),
    /// 404.
    NotFound(&'static str),
    /// 409.
    Conflict(&'static str),
    /// 413.
    TooLarge,
    /// 500. Why is in the log.
    Internal,
    /// 503.
    Unavailable,
}

impl From<StoreError> for ApiError {
    fn from(why: StoreError) -> Self {
        match why {
            StoreError::Database(sqlx::Error::PoolTimedOut) => Self::Unavailable,
            StoreError::Database(why) => {
                tracing::error!(error = %why, "the database failed");
                Self::Internal
            }
            StoreError::NotFound(why) => Self::NotFound(why),
            StoreError::Refused(why) => Self::Invalid(why.to_owned()),
            StoreError::Conflict(why) => Self::Conflict(why),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, error, message) = match self {
            Self::Unauthorized => (
                StatusCode::UNAUTHORIZED,
                ErrorCode::Unauthorized,
                "not authorized".to_owned(),
            ),
            Self::Forbidden(why) => (
                StatusCode::FORBIDDEN,
                ErrorCode::Unauthorized,
                why.to_owned(),
            ),
            Self::Invalid(why) => (StatusCode::BAD_REQUEST, ErrorCode::Invalid, why),
            Self::NotFound(why) => (StatusCode::NOT_FOUND, ErrorCode::NotFound, why.to_owned()),
            Self::Conflict(why) => (StatusCode::CONFLICT, ErrorCode::Invalid, why.to_owned()),
            Self::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                ErrorCode::TooLarge,
                "the body is too large".to_owned(),
            ),
            Self::Internal => (
                StatusCode::INTERNAL_SERVER_ERROR,
                ErrorCode::Internal,
                "the broker failed; its log tells more".to_owned(),
            ),
            Self::Unavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                ErrorCode::Unavailable,
                "the broker is busy; try again".to_owned(),
            ),
        };
        (status, Json(ErrorAnswer { error, message })).into_response()
    }
}

/// The token in `Authorization: Bearer`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(token.trim())
}

/// What the store knows a session's or an invitation's token by.
fn token_hash(token: &str) -> String {
    STANDARD.encode(Sha256::digest(token))
}

/// Reads JSON without quoting any of it.
fn json<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|why| {
        let (line, column) = (why.line(), why.column());
        ApiError::Invalid(format!(
            "the body is not as it should be at line {line}, column {column}"
        ))
    })
}

/// The 32 bytes of a key in base64.
fn key(text: &str) -> Result<[u8; envelope::KEY_BYTES], ApiError> {
    let bytes = STANDARD.decode(text).ok();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| ApiError::Invalid("a key is not base64 of 32 bytes".to_owned()))
}

/// Refuses what cannot be a signature with its key. Whether it is good is for who uses what is signed to say.
fn check_signature(signer: &str, signature: &str) -> Result<(), ApiError> {
    key(signer)?;
    let bytes = STANDARD.decode(signature).unwrap_or_default();
    if bytes.len() == envelope::SIGNATURE_BYTES {
        Ok(())
    } else {
        let why = "a signature is not base64 of 64 bytes";
        Err(ApiError::Invalid(why.to_owned()))
    }
}

/// Refuses what cannot be an envelope of `epoch`. What is in it only its readers can tell.
fn check_envelope(text: &str, epoch: u32) -> Result<(), ApiError> {
    let bytes = STANDARD.decode(text).ok();
    if bytes.and_then(|bytes| envelope::epoch_of(&bytes).ok()) == Some(Epoch(epoch)) {
        Ok(())
    } else {
        let why = format!("an envelope is not base64 of one of epoch {epoch}");
        Err(ApiError::Invalid(why))
    }
}
