//! The admin API for what holds for the whole vendor.

use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::put};
use serde_json::json;

use super::{ApiError, Shared, json as read};
use crate::{model::VendorChange, store::Admin};

pub(super) fn routes() -> Router<Shared> {
    Router::new().route("/vendor", put(update))
}

async fn update(
    State(shared): State<Shared>,
    admin: Admin,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let VendorChange { leasing_required } = read(&body)?;
    let mut change = shared.change(&admin).await?;
    change.require_leasing(leasing_required).await?;
    let detail = json!({ "leasingRequired": leasing_required });
    change.commit("update", "vendor", &detail).await?;
    Ok(StatusCode::NO_CONTENT)
}
