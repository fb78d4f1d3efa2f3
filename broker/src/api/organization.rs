//! The admin API for tenants' own organizations: answering an invitation, and what serves the organization at its vendors.

use axum::{
    Json, Router,
    body::Bytes,
    extract::{FromRequestParts, Path, State},
    http::{HeaderMap, StatusCode, request::Parts},
    routing::{get, post, put},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;
use tsp_wire::{
    account::signed::Voucher,
    envelope::{Vendor, VerifyingKey},
};

use super::{
    ApiError, Shared,
    admin::{InSession, check_organization},
    bearer, check_envelope, check_signature, json as read, key, token_hash,
};
use crate::{
    clock,
    model::{
        AcceptTenant, AssignOwn, ConfirmTenant, Invited, LinkDoc, LoggingDoc, OpenInvitation,
        OrganizationKind, Role,
    },
    store::Admin,
};

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/invitations/open", post(open))
        .route("/invitations/accept", post(accept))
        .route("/tenants/{id}/confirm", post(confirm))
        .route("/links", get(links))
        .route(
            "/links/{vendor}/{tenant}/kms/{kms}",
            put(assign).delete(unassign),
        )
        .route(
            "/links/{vendor}/{tenant}/logging",
            put(set_logging).delete(remove_logging),
        )
}

/// Whoever has a session of a tenant's organization.
pub(super) struct TenantAdmin(Admin);

impl FromRequestParts<Shared> for TenantAdmin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, shared: &Shared) -> Result<Self, ApiError> {
        let InSession(admin) = InSession::from_request_parts(parts, shared).await?;
        match admin.kind {
            OrganizationKind::Tenant => Ok(Self(admin)),
            OrganizationKind::Vendor => Err(ApiError::Forbidden(
                "that is for the admins of a tenant's organization",
            )),
        }
    }
}

/// Whoever has the link's token, without a session.
async fn open(State(shared): State<Shared>, body: Bytes) -> Result<Json<Invited>, ApiError> {
    let OpenInvitation { token } = read(&body)?;
    let hash = token_hash(&token);
    let invited = shared.store.open_invitation(&hash, clock::now_s()).await?;
    Ok(Json(invited))
}

/// Whoever has the link's token; with a session, for the organization of that.
async fn accept(
    State(shared): State<Shared>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let answer: AcceptTenant = read(&body)?;
    let now = clock::now_s();
    let member = match bearer(&headers) {
        None => None,
        Some(token) => {
            let session = shared.store.session(&token_hash(token), now).await?;
            Some(session.ok_or(ApiError::Unauthorized)?)
        }
    };
    if let Some(admin) = &member {
        if admin.kind != OrganizationKind::Tenant {
            return Err(ApiError::Forbidden("a vendor is nobody's tenant"));
        }
        if admin.role == Role::Auditor {
            return Err(ApiError::Forbidden("an auditor changes nothing"));
        }
    }
    let organization_key = match (&answer.organization, &member) {
        (Some(new), _) => {
            check_organization(new)?;
            new.vendor_key.clone()
        }
        (None, Some(admin)) => shared.store.vendor_key(admin.vendor).await?,
        (None, None) => return Err(ApiError::Unauthorized),
    };
    let hash = token_hash(&answer.token);
    let invitation = shared.store.invitation_keys(&hash, now).await?;
    check_signature(&organization_key, &answer.link_signature)?;
    if !answer.voucher.is_empty() {
        // A proxy would not believe it, and it is better to hear of it now.
        let vendor = Vendor {
            segment: u64::try_from(invitation.vendor).unwrap_or_default(),
            fingerprint: VerifyingKey::from_bytes(key(&invitation.vendor_key)?).fingerprint(),
        };
        let signature = STANDARD.decode(&answer.voucher).unwrap_or_default();
        let by = VerifyingKey::from_bytes(key(&invitation.key)?);
        let organization = VerifyingKey::from_bytes(key(&organization_key)?);
        let voucher = Voucher::Organization(&invitation.tenant);
        if !voucher.is_signed(&by, vendor, &organization, &signature) {
            let why = "the organization's key is not signed by the invitation's";
            return Err(ApiError::Invalid(why.to_owned()));
        }
    }
    let member = member
        .as_ref()
        .map(|admin| (admin.vendor, admin.email.as_str()));
    shared
        .store
        .accept_tenant(&hash, &answer, member, now)
        .await?;
    Ok(StatusCode::CREATED)
}

/// A vendor's admin, who has heard which key is the organization's.
async fn confirm(
    State(shared): State<Shared>,
    admin: Admin,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let ConfirmTenant {
        organization_key,
        signature,
    } = read(&body)?;
    check_signature(&organization_key, &signature)?;
    let mut change = shared.change(&admin).await?;
    change
        .confirm_tenant(&id, &organization_key, &signature)
        .await?;
    let detail = json!({ "organizationKey": organization_key });
    change
        .commit("confirm", format!("tenant {id}"), &detail)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn links(
    State(shared): State<Shared>,
    TenantAdmin(admin): TenantAdmin,
) -> Result<Json<Vec<LinkDoc>>, ApiError> {
    Ok(Json(shared.store.links(admin.vendor).await?))
}

async fn assign(
    State(shared): State<Shared>,
    TenantAdmin(admin): TenantAdmin,
    Path((vendor, tenant, kms)): Path<(i64, String, i64)>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let wanted: AssignOwn = read(&body)?;
    if let Some(own) = &wanted.own {
        check_signature(&own.signer, &own.signature)?;
        check_envelope(&own.share.envelope, own.share.epoch)?;
    }
    let change = shared.change(&admin).await?;
    change.assign_own(kms, vendor, &tenant, &wanted).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn unassign(
    State(shared): State<Shared>,
    TenantAdmin(admin): TenantAdmin,
    Path((vendor, tenant, kms)): Path<(i64, String, i64)>,
) -> Result<StatusCode, ApiError> {
    let change = shared.change(&admin).await?;
    change.unassign_own(kms, vendor, &tenant).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn set_logging(
    State(shared): State<Shared>,
    TenantAdmin(admin): TenantAdmin,
    Path((vendor, tenant)): Path<(i64, String)>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let doc: LoggingDoc = read(&body)?;
    check_envelope(&doc.envelope, doc.epoch)?;
    log_own(&shared, &admin, vendor, &tenant, Some(&doc)).await
}

async fn remove_logging(
    State(shared): State<Shared>,
    TenantAdmin(admin): TenantAdmin,
    Path((vendor, tenant)): Path<(i64, String)>,
) -> Result<StatusCode, ApiError> {
    log_own(&shared, &admin, vendor, &tenant, None).await
}

async fn log_own(
    shared: &Shared,
    admin: &Admin,
    vendor: i64,
    tenant: &str,
    doc: Option<&LoggingDoc>,
) -> Result<StatusCode, ApiError> {
    let change = shared.change(admin).await?;
    change.log_own(vendor, tenant, doc).await?;
    Ok(StatusCode::NO_CONTENT)
}
