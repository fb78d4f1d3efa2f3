//! How requests are read, and refusals told.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use serde::de::DeserializeOwned;
use utoipa::IntoParams;

use super::{Bridge, Inner, seal::SealError, shapes::ErrorResponse};

/// Longest name of a member that is quoted in the log, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// Members that nobody reads which are told of per request.
const UNKNOWN_MAX: usize = 16;

/// A request that is not granted.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    message: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, message: &str) -> Self {
        Self {
            status,
            message: message.to_owned(),
        }
    }

    /// Something else changes the same thing again and again.
    pub(super) fn again() -> Self {
        let why = "somebody else changes it at the same time; try again";
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, why)
    }

    fn bad(message: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = ErrorResponse {
            message: self.message,
            status_code: self.status.as_u16(),
        };
        (self.status, Json(body)).into_response()
    }
}

impl From<SealError> for Refusal {
    fn from(why: SealError) -> Self {
        match why {
            SealError::Refused(why) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, &why),
            SealError::NotTheVendors => {
                tracing::error!("the broker's keys are not those of this account's vendor");
                let why = "the broker does not answer as it should";
                Self::new(StatusCode::BAD_GATEWAY, why)
            }
        }
    }
}

impl FromRequestParts<Arc<Inner>> for Bridge {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Inner>) -> Result<Self, Refusal> {
        let bridge = parts.extensions.get::<Self>();
        bridge
            .cloned()
            .ok_or_else(|| Refusal::new(StatusCode::UNAUTHORIZED, "not authorized"))
    }
}

fn warn_of(unknown: &[String], place: &'static str) {
    for name in unknown.iter().take(UNKNOWN_MAX) {
        let name: String = name.chars().take(NAME_BYTES_MAX).collect();
        tracing::warn!(name, place, "nobody reads this member");
    }
}

/// What is in a path.
pub(super) struct At<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<Inner>> for At<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, inner: &Arc<Inner>) -> Result<Self, Refusal> {
        let path = Path::from_request_parts(parts, inner).await;
        let Path(values) = path.map_err(|_| {
            Refusal::bad("the path does not name what it should: numbers are from 1 on")
        })?;
        Ok(Self(values))
    }
}

/// What is after the question mark.
pub(super) struct Filter<T>(pub(super) T);

impl<T: DeserializeOwned + IntoParams> FromRequestParts<Arc<Inner>> for Filter<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, inner: &Arc<Inner>) -> Result<Self, Refusal> {
        let Query(filter) = Query::from_request_parts(parts, inner)
            .await
            .map_err(|_| Refusal::bad("what is after the question mark is not as it should be"))?;
        if let Ok(Query(pairs)) = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri) {
            let known = T::into_params(|| None);
            let unknown: Vec<_> = pairs
                .into_iter()
                .map(|(name, _)| name)
                .filter(|name| !known.iter().any(|known| known.name == *name))
                .collect();
            warn_of(&unknown, "query");
        }
        Ok(Self(filter))
    }
}

/// A body of JSON.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Arc<Inner>> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, inner: &Arc<Inner>) -> Result<Self, Refusal> {
        let body = bytes(request, inner).await?;
        read(&body).map(Self)
    }
}

/// A body that may be left out.
pub(super) struct MaybeBody<T>(pub(super) T);

impl<T: DeserializeOwned + Default> FromRequest<Arc<Inner>> for MaybeBody<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, inner: &Arc<Inner>) -> Result<Self, Refusal> {
        let body = bytes(request, inner).await?;
        if body.is_empty() || body.trim_ascii() == b"null" {
            return Ok(Self(T::default()));
        }
        read(&body).map(Self)
    }
}

async fn bytes(request: Request, inner: &Arc<Inner>) -> Result<Bytes, Refusal> {
    let body = Bytes::from_request(request, inner).await;
    body.map_err(|why| Refusal::new(why.status(), "the body is too large, or did not arrive"))
}

/// Reads JSON without quoting any of it: it may be a credential.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    // Serde would take an array for the members in their order.
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(Refusal::bad("the body is not an object of JSON"));
    }
    let mut unknown = Vec::new();
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_ignored::deserialize(&mut json, |path| {
        if unknown.len() < UNKNOWN_MAX {
            unknown.push(path.to_string());
        }
    });
    let value = value.and_then(|value| json.end().map(|()| value));
    let value = value.map_err(|why| {
        let (line, column) = (why.line(), why.column());
        Refusal::bad(&format!(
            "the body is not as it should be at line {line}, column {column}"
        ))
    })?;
    warn_of(&unknown, "body");
    Ok(value)
}
