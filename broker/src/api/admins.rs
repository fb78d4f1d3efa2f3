//! The admin API for an organization's admins: invited, granted its keys, removed; and what they hear by mail.

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    routing::{delete, get, post, put},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::json;

use super::{
    ApiError, Shared,
    admin::{Answer, InSession},
    bearer, check_envelope, json as read, key, token_hash,
};
use crate::{
    clock,
    model::{AcceptAdmin, Accepted, AdminDoc, Grant, Invitation, InviteAdmin, Notify, Role},
};

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/admins", get(admins).post(invite_admin))
        .route("/admins/accept", post(accept_admin))
        .route("/admins/{id}", delete(remove_admin))
        .route("/admins/{id}/grant", post(grant_admin))
        .route("/notify", put(notify))
}

async fn admins(
    State(shared): State<Shared>,
    InSession(admin): InSession,
) -> Answer<Vec<AdminDoc>> {
    Ok(Json(shared.store.admins(admin.vendor).await?))
}

async fn invite_admin(
    State(shared): State<Shared>,
    InSession(admin): InSession,
    body: Bytes,
) -> Answer<Invitation> {
    let wanted: InviteAdmin = read(&body)?;
    let mut token = [0; 32];
    getrandom::fill(&mut token).map_err(|_| ApiError::Internal)?;
    let token = URL_SAFE_NO_PAD.encode(token);
    let mut change = shared.change(&admin).await?;
    let expires = change.invite_admin(&wanted, &token_hash(&token)).await?;
    let detail = json!({ "role": wanted.role, "expires": expires });
    change
        .commit("invite", format!("admin {}", wanted.email), &detail)
        .await?;
    let mut invitation = Invitation {
        token,
        expires,
        mailed: false,
    };
    let what = match wanted.role {
        Role::Admin => "to be one of its admins",
        Role::Auditor => "to be one of its auditors",
    };
    invitation.mailed = shared
        .mail_invitation(
            admin.vendor,
            &invitation,
            &wanted.email,
            what,
            "admin accept",
        )
        .await?;
    Ok(Json(invitation))
}

/// Whoever has the link's token, without a session.
async fn accept_admin(State(shared): State<Shared>, body: Bytes) -> Answer<Accepted> {
    let AcceptAdmin { token, keys } = read(&body)?;
    key(&keys.login_key)?;
    key(&keys.public_key)?;
    let hash = token_hash(&token);
    let accepted = shared
        .store
        .accept_admin(&hash, &keys, clock::now_s())
        .await?;
    Ok(Json(accepted))
}

async fn grant_admin(
    State(shared): State<Shared>,
    InSession(admin): InSession,
    Path(id): Path<i64>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let grant: Grant = read(&body)?;
    check_envelope(&grant.sealed_keys, grant.epoch)?;
    let mut change = shared.change(&admin).await?;
    change.grant_admin(id, &grant).await?;
    let detail = json!({ "publicKey": grant.public_key });
    change
        .commit("grant", format!("admin {id}"), &detail)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn remove_admin(
    State(shared): State<Shared>,
    InSession(admin): InSession,
    Path(id): Path<i64>,
) -> Result<StatusCode, ApiError> {
    let mut change = shared.change(&admin).await?;
    change.remove_admin(id).await?;
    change
        .commit("remove", format!("admin {id}"), &json!({}))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whoever has a session: an auditor wants to hear of changes, too.
async fn notify(
    State(shared): State<Shared>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let token = bearer(&headers).ok_or(ApiError::Unauthorized)?;
    let session = shared
        .store
        .session(&token_hash(token), clock::now_s())
        .await?;
    let admin = session.ok_or(ApiError::Unauthorized)?;
    let Notify { notify } = read(&body)?;
    shared.store.set_notify(&admin, notify).await?;
    Ok(StatusCode::NO_CONTENT)
}
