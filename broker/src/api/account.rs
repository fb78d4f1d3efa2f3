//! The account API: proxies and log drivers, each request proven by a token of its own.

use std::io::Write as _;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use flate2::{Compression, write::GzEncoder};
use tsp_wire::account::{
    AccountId, SECRETS_MAX, SECRETS_PATH, SNAPSHOT_PATH, SecretsAnswer, SecretsRequest,
    token::{self, Request},
};

use super::{ApiError, Shared, bearer, json, key};
use crate::{clock, model::AccountKind, store::Account};

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route(SNAPSHOT_PATH, get(snapshot))
        .route(SECRETS_PATH, post(secrets))
}

/// Why a request was refused. Goes to the log; the answer is the same for all.
#[derive(Clone, Copy, Debug)]
enum Refused {
    NoToken,
    NoIssuer,
    UnknownAccount,
    Revoked,
    WrongKind,
    Replayed,
    Token(token::Refusal),
}

impl Refused {
    fn as_str(self) -> &'static str {
        match self {
            Self::NoToken => "no-token",
            Self::NoIssuer => "malformed",
            Self::UnknownAccount => "unknown-account",
            Self::Revoked => "revoked",
            Self::WrongKind => "wrong-kind",
            Self::Replayed => "replayed",
            Self::Token(why) => why.as_str(),
        }
    }
}

/// Whose request it is. A token's number is taken only once all else about it is good.
pub(super) async fn authenticate(
    shared: &Shared,
    headers: &HeaderMap,
    request: &Request<'_>,
    kind: AccountKind,
) -> Result<Account, ApiError> {
    let refused = |account: Option<AccountId>, why: Refused| {
        let account = account.map(|id| id.to_string()).unwrap_or_default();
        tracing::warn!(
            account,
            reason = why.as_str(),
            path = request.path,
            "a request of a service account is refused"
        );
        ApiError::Unauthorized
    };
    let token = bearer(headers).ok_or_else(|| refused(None, Refused::NoToken))?;
    let id = token::issuer(token).ok_or_else(|| refused(None, Refused::NoIssuer))?;
    let account = shared.store.account(&id.to_string()).await?;
    let account = account.ok_or_else(|| refused(Some(id), Refused::UnknownAccount))?;
    let verifying = tsp_wire::envelope::VerifyingKey::from_bytes(key(&account.signing_key)?);
    let now = clock::now_s();
    let verified = token::verify(token, id, &verifying, request, now)
        .map_err(|why| refused(Some(id), Refused::Token(why)))?;
    if account.revoked {
        return Err(refused(Some(id), Refused::Revoked));
    }
    if account.kind != kind.as_str() {
        return Err(refused(Some(id), Refused::WrongKind));
    }
    let number: String = verified
        .id
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let number = format!("{}-{number}", account.config);
    if !shared.store.take_once(&number, verified.forget_s).await? {
        return Err(refused(Some(id), Refused::Replayed));
    }
    Ok(account)
}

async fn snapshot(
    State(shared): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let request = Request {
        method: method.as_str(),
        path: uri.path_and_query().map_or("", |path| path.as_str()),
        body: b"",
    };
    let account = authenticate(&shared, &headers, &request, AccountKind::Tsp).await?;
    let version = shared.store.version(account.vendor).await?;
    let etag = |version: u64| format!("\"{}-{}-{version}\"", account.vendor, account.config);
    let known = headers.get_all(header::IF_NONE_MATCH);
    let current = etag(u64::try_from(version).unwrap_or_default());
    if known
        .iter()
        .any(|known| known.as_bytes() == current.as_bytes())
    {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, current)]).into_response());
    }
    let snapshot = shared.store.snapshot(&account).await?;
    let etag = etag(snapshot.version);
    let gzip = headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| coding.split(';').next().map(str::trim) == Some("gzip"));
    // Megabytes of base64: off the threads that answer others.
    let body = tokio::task::spawn_blocking(move || {
        if gzip {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            serde_json::to_writer(&mut encoder, &snapshot).ok()?;
            encoder.flush().ok()?;
            encoder.finish().ok()
        } else {
            serde_json::to_vec(&snapshot).ok()
        }
    })
    .await;
    let body = body.ok().flatten().ok_or(ApiError::Internal)?;
    let mut response = (
        [
            (header::CONTENT_TYPE, "application/json"),
            (header::VARY, "accept-encoding"),
        ],
        [(header::ETAG, etag)],
        body,
    )
        .into_response();
    if gzip {
        let gzip = HeaderValue::from_static("gzip");
        response
            .headers_mut()
            .insert(header::CONTENT_ENCODING, gzip);
    }
    Ok(response)
}

async fn secrets(
    State(shared): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<SecretsAnswer>, ApiError> {
    let body = body.map_err(|_| ApiError::TooLarge)?;
    let request = Request {
        method: method.as_str(),
        path: uri.path_and_query().map_or("", |path| path.as_str()),
        body: &body,
    };
    let account = authenticate(&shared, &headers, &request, AccountKind::Tsp).await?;
    let offers: SecretsRequest = json(&body)?;
    if offers.secrets.len() > SECRETS_MAX {
        let why = format!("there are more than {SECRETS_MAX} secrets");
        return Err(ApiError::Invalid(why));
    }
    let now = clock::now_s();
    let secrets = shared
        .store
        .create_secrets(&account, &offers.secrets, now)
        .await?;
    Ok(Json(SecretsAnswer { secrets }))
}
