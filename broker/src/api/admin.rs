//! The admin API: what the command line, and later the pages, ask for on an admin's behalf.

use axum::{
    Json, Router,
    body::Bytes,
    extract::{FromRequestParts, Path, Query, State},
    http::{HeaderMap, Method, StatusCode, request::Parts},
    routing::{delete, get, post, put},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::json;
use tsp_wire::{
    Secret,
    account::{AccountId, kms},
    envelope::{Epoch, PublicKey, SegmentKey, VerifyingKey},
};

use super::{
    ApiError, Shared, bearer, check_envelope, check_signature, json as read, key, token_hash,
};
use crate::{
    clock,
    model::{
        AccountDoc, Assign, ChangeDoc, Invitation, Invite, KmsDoc, KmsSummary, LoggingDoc,
        LoggingState, Login, Member, NewAccount, NewOrganization, NewTenant, OrganizationKind,
        Reserve, Reserved, Role, RotateSecret, Rotation, Sealed, SealedContent, SecretDoc,
        SegmentDoc, Session, TenantChange, TenantDoc,
    },
    store::{Admin, CHANGES_MAX},
};

/// How far an admin's clock may be off, in seconds.
const CLOCK_ERROR_S_MAX: i64 = 60;

/// Numbers that can be reserved at a time.
const RESERVE_MAX: i64 = 1_000;

pub(super) type Answer<T> = Result<Json<T>, ApiError>;

pub(super) fn routes() -> Router<Shared> {
    let admin = Router::new()
        .route("/numbers", post(reserve))
        .route("/vendors", post(create_vendor))
        .route("/login", post(login))
        .route("/logout", post(logout))
        .route("/accounts", get(accounts).post(create_account))
        .route("/accounts/{config}", delete(revoke_account))
        .route("/tenants", get(tenants).post(create_tenant))
        .route("/tenants/{id}", put(update_tenant).delete(delete_tenant))
        .route("/tenants/{id}/secrets/rotate", post(rotate_secret))
        .route("/tenants/{id}/archive", post(archive_tenant))
        .route("/tenants/{id}/invite", post(invite))
        .route(
            "/tenants/{id}/logging",
            get(logging).put(set_logging).delete(remove_logging),
        )
        .route("/kms", get(kms_configs).post(create_kms))
        .route(
            "/kms/{id}",
            get(kms_content).put(update_kms).delete(delete_kms),
        )
        .route("/kms/{id}/tenants/{tenant}", put(assign).delete(unassign))
        .route("/secrets", get(secrets))
        .route("/segment", get(sealed).post(rotate))
        .route("/changes", get(changes));
    Router::new().nest(
        "/admin/1",
        admin
            .merge(super::admins::routes())
            .merge(super::organization::routes())
            .merge(super::vendor::routes()),
    )
}

/// Whoever has a session, of any organization: an admin, or an auditor who only looks.
pub(super) struct InSession(pub(super) Admin);

impl FromRequestParts<Shared> for InSession {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, shared: &Shared) -> Result<Self, ApiError> {
        let token = bearer(&parts.headers).ok_or(ApiError::Unauthorized)?;
        let hash = token_hash(token);
        let admin = shared.store.session(&hash, clock::now_s()).await?;
        let admin = admin.ok_or(ApiError::Unauthorized)?;
        if admin.role == Role::Auditor && parts.method != Method::GET {
            return Err(AUDITOR);
        }
        Ok(Self(admin))
    }
}

const AUDITOR: ApiError = ApiError::Forbidden("an auditor changes nothing");

/// Whoever has a session of a vendor's.
impl FromRequestParts<Shared> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, shared: &Shared) -> Result<Self, ApiError> {
        let InSession(admin) = InSession::from_request_parts(parts, shared).await?;
        match admin.kind {
            OrganizationKind::Vendor => Ok(admin),
            OrganizationKind::Tenant => Err(ApiError::Forbidden("that is for a vendor's admins")),
        }
    }
}

/// Whether the caller knows the token that makes new vendors.
fn may_set_up(shared: &Shared, headers: &HeaderMap) -> bool {
    let presented = bearer(headers).map(|token| Secret::new(token.to_owned()));
    let expected = shared.setup_token.as_ref();
    presented
        .zip(expected)
        .is_some_and(|(presented, expected)| expected.same_as(&presented))
}

/// Refuses a segment key that the vendor did not sign: nobody would use it, and it is better to hear of it now.
fn check_segment(vendor: i64, vendor_key: &str, segment: &SegmentDoc) -> Result<(), ApiError> {
    let signed = SegmentKey {
        segment: u64::try_from(vendor).unwrap_or_default(),
        epoch: Epoch(segment.epoch),
        public: PublicKey::from_bytes(key(&segment.public_key)?),
    };
    let signature = base64::engine::general_purpose::STANDARD
        .decode(&segment.signature)
        .unwrap_or_default();
    if signed.is_signed(&VerifyingKey::from_bytes(key(vendor_key)?), &signature) {
        Ok(())
    } else {
        let why = "the segment's key is not signed by the vendor's";
        Err(ApiError::Invalid(why.to_owned()))
    }
}

/// Refuses an organization whose keys do not belong together.
pub(super) fn check_organization(new: &NewOrganization) -> Result<(), ApiError> {
    check_segment(new.id, &new.vendor_key, &new.segment)?;
    key(&new.keys.login_key)?;
    key(&new.keys.public_key)?;
    check_envelope(&new.sealed_keys, new.segment.epoch)
}

async fn reserve(
    State(shared): State<Shared>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<Reserved> {
    if !may_set_up(&shared, &headers) {
        let token = bearer(&headers).ok_or(ApiError::Unauthorized)?;
        let session = shared
            .store
            .session(&token_hash(token), clock::now_s())
            .await?;
        match session.map(|admin| admin.role) {
            None => return Err(ApiError::Unauthorized),
            Some(Role::Auditor) => return Err(AUDITOR),
            Some(Role::Admin) => {}
        }
    }
    let Reserve { count } = read(&body)?;
    if !(1..=RESERVE_MAX).contains(&count) {
        let why = format!("1 to {RESERVE_MAX} numbers can be reserved");
        return Err(ApiError::Invalid(why));
    }
    let first = shared.store.reserve(count).await?;
    Ok(Json(Reserved { first }))
}

async fn create_vendor(
    State(shared): State<Shared>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    if !may_set_up(&shared, &headers) {
        tracing::warn!("a new vendor is refused: wrong setup token, or none is set");
        return Err(ApiError::Unauthorized);
    }
    let new: NewOrganization = read(&body)?;
    check_organization(&new)?;
    shared.store.create_vendor(&new, clock::now_s()).await?;
    tracing::info!(vendor = new.id, "a vendor was made");
    Ok(StatusCode::CREATED)
}

async fn login(State(shared): State<Shared>, body: Bytes) -> Answer<Session> {
    let login: Login = read(&body)?;
    let refused = |reason: &'static str| {
        tracing::warn!(vendor = login.vendor, reason, "a login is refused");
        ApiError::Unauthorized
    };
    let now = clock::now_s();
    let state = shared
        .store
        .login_state(login.vendor, &login.email, now)
        .await?;
    let state = state.ok_or_else(|| refused("unknown-admin"))?;
    if state.limited {
        return Err(refused("too-many-failures"));
    }
    let signature = base64::engine::general_purpose::STANDARD
        .decode(&login.signature)
        .unwrap_or_default();
    let login_key = VerifyingKey::from_bytes(key(&state.login_key)?);
    if !login_key.verifies(&login.statement(), &signature) {
        shared.store.login_failed(state.admin, now).await?;
        return Err(refused("signature"));
    }
    if login.at.abs_diff(now) > CLOCK_ERROR_S_MAX.unsigned_abs() {
        return Err(refused("clock"));
    }
    let once = format!("login-{}-{}", state.admin, token_hash(&login.id));
    let forget = login.at.saturating_add(2 * CLOCK_ERROR_S_MAX);
    if !shared.store.take_once(&once, forget).await? {
        return Err(refused("replayed"));
    }
    let mut token = [0; 32];
    getrandom::fill(&mut token).map_err(|_| ApiError::Internal)?;
    let token = URL_SAFE_NO_PAD.encode(token);
    let hash = token_hash(&token);
    let session = shared
        .store
        .create_session(state.admin, token, &hash, now)
        .await?;
    Ok(Json(session))
}

async fn logout(State(shared): State<Shared>, headers: HeaderMap) -> Result<StatusCode, ApiError> {
    let token = bearer(&headers).ok_or(ApiError::Unauthorized)?;
    shared.store.end_session(&token_hash(token)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn accounts(State(shared): State<Shared>, admin: Admin) -> Answer<Vec<AccountDoc>> {
    Ok(Json(shared.store.accounts(admin.vendor).await?))
}

async fn create_account(
    State(shared): State<Shared>,
    admin: Admin,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let new: NewAccount = read(&body)?;
    key(&new.encryption_key)?;
    key(&new.signing_key)?;
    if let Some(sealed) = &new.sealed_key {
        check_envelope(sealed, new.epoch)?;
    }
    if AccountId::from_text(&new.id).is_none() {
        return Err(ApiError::Invalid("that is no id of an account".to_owned()));
    }
    let mut change = shared.change(&admin).await?;
    change.create_account(&new).await?;
    let detail = json!({ "id": new.id, "name": new.name, "kind": new.kind, "tags": new.tags });
    let object = format!("account {}", new.config);
    change.commit("create", object, &detail).await?;
    Ok(StatusCode::CREATED)
}

async fn revoke_account(
    State(shared): State<Shared>,
    admin: Admin,
    Path(config): Path<i64>,
) -> Result<StatusCode, ApiError> {
    let mut change = shared.change(&admin).await?;
    change.revoke_account(config).await?;
    change
        .commit("revoke", format!("account {config}"), &json!({}))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn tenants(State(shared): State<Shared>, admin: Admin) -> Answer<Vec<TenantDoc>> {
    Ok(Json(shared.store.tenants(admin.vendor).await?))
}

async fn create_tenant(
    State(shared): State<Shared>,
    admin: Admin,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let new: NewTenant = read(&body)?;
    let mut change = shared.change(&admin).await?;
    change.create_tenant(&new).await?;
    let detail = json!({ "name": new.name, "tags": new.tags });
    let object = format!("tenant {}", new.id);
    change.commit("create", object, &detail).await?;
    Ok(StatusCode::CREATED)
}

async fn delete_tenant(
    State(shared): State<Shared>,
    admin: Admin,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let mut change = shared.change(&admin).await?;
    change.delete_tenant(&id).await?;
    change
        .commit("delete", format!("tenant {id}"), &json!({}))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn update_tenant(
    State(shared): State<Shared>,
    admin: Admin,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let wanted: TenantChange = read(&body)?;
    let mut change = shared.change(&admin).await?;
    change.update_tenant(&id, &wanted).await?;
    change
        .commit("update", format!("tenant {id}"), &json!(wanted))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn rotate_secret(
    State(shared): State<Shared>,
    admin: Admin,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let wanted: RotateSecret = read(&body)?;
    let mut change = shared.change(&admin).await?;
    let secret = change.rotate_secret(&id, &wanted).await?;
    let detail = json!({ "tenant": id, "step": wanted.step });
    change
        .commit("rotate", format!("tenant secret {secret}"), &detail)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn archive_tenant(
    State(shared): State<Shared>,
    admin: Admin,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let mut change = shared.change(&admin).await?;
    change.archive_tenant(&id).await?;
    change
        .commit("archive", format!("tenant {id}"), &json!({}))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn invite(
    State(shared): State<Shared>,
    admin: Admin,
    Path(id): Path<String>,
    body: Bytes,
) -> Answer<Invitation> {
    let wanted: Invite = read(&body)?;
    if !wanted.key.is_empty() {
        check_signature(&wanted.key, &wanted.signature)?;
    }
    let invitation = shared
        .invite_tenant(admin.vendor, &admin.actor(), &id, &wanted)
        .await?;
    Ok(Json(invitation))
}

async fn logging(
    State(shared): State<Shared>,
    admin: Admin,
    Path(id): Path<String>,
) -> Answer<LoggingState> {
    Ok(Json(shared.store.logging_state(admin.vendor, &id).await?))
}

async fn set_logging(
    State(shared): State<Shared>,
    admin: Admin,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let doc: LoggingDoc = read(&body)?;
    check_envelope(&doc.envelope, doc.epoch)?;
    let mut change = shared.change(&admin).await?;
    let detail = change.set_logging(&id, &doc, admin.vendor).await?;
    change
        .commit("set logging", format!("tenant {id}"), &detail)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn remove_logging(
    State(shared): State<Shared>,
    admin: Admin,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let mut change = shared.change(&admin).await?;
    let detail = change.remove_logging(&id, admin.vendor).await?;
    change
        .commit("remove logging", format!("tenant {id}"), &detail)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn kms_content(
    State(shared): State<Shared>,
    InSession(admin): InSession,
    Path(id): Path<i64>,
) -> Answer<SealedContent> {
    Ok(Json(shared.store.kms_content(admin.vendor, id).await?))
}

async fn kms_configs(
    State(shared): State<Shared>,
    InSession(admin): InSession,
) -> Answer<Vec<KmsSummary>> {
    Ok(Json(shared.store.kms_configs(admin.vendor).await?))
}

pub(super) fn check_kms(doc: &KmsDoc) -> Result<(), ApiError> {
    if !kms::TYPES.contains(&doc.kind.as_str()) {
        return Err(ApiError::Invalid("that is no type of KMS".to_owned()));
    }
    check_envelope(&doc.envelope, doc.epoch)
}

async fn create_kms(
    State(shared): State<Shared>,
    InSession(admin): InSession,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let doc: KmsDoc = read(&body)?;
    check_kms(&doc)?;
    let mut change = shared.change(&admin).await?;
    change.create_kms(&doc).await?;
    let detail = json!({ "type": doc.kind, "leasingAllowed": doc.leasing_allowed });
    change
        .commit("create", format!("kms {}", doc.id), &detail)
        .await?;
    Ok(StatusCode::CREATED)
}

async fn update_kms(
    State(shared): State<Shared>,
    InSession(admin): InSession,
    Path(id): Path<i64>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let doc: KmsDoc = read(&body)?;
    if doc.id != id {
        let why = "the body is of another KMS config than the path";
        return Err(ApiError::Invalid(why.to_owned()));
    }
    check_kms(&doc)?;
    if let Some(share) = &doc.share {
        check_envelope(&share.envelope, share.epoch)?;
    }
    let mut change = shared.change(&admin).await?;
    change.update_kms(&doc).await?;
    let detail = json!({ "revision": doc.revision, "leasingAllowed": doc.leasing_allowed });
    if admin.kind == OrganizationKind::Tenant {
        change.commit_own(id, doc.share.as_ref(), &detail).await?;
    } else {
        change
            .commit("update", format!("kms {id}"), &detail)
            .await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn delete_kms(
    State(shared): State<Shared>,
    InSession(admin): InSession,
    Path(id): Path<i64>,
) -> Result<StatusCode, ApiError> {
    let change = shared.change(&admin).await?;
    change.delete_kms(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn assign(
    State(shared): State<Shared>,
    admin: Admin,
    Path((kms, tenant)): Path<(i64, String)>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let wanted: Assign = read(&body)?;
    check_signature(&wanted.signer, &wanted.signature)?;
    let mut change = shared.change(&admin).await?;
    change.assign(kms, &tenant, &wanted).await?;
    let state = wanted.state;
    let detail = json!({ "tenant": tenant, "active": state.active, "primary": state.primary });
    change
        .commit("assign", format!("kms {kms}"), &detail)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn unassign(
    State(shared): State<Shared>,
    admin: Admin,
    Path((kms, tenant)): Path<(i64, String)>,
) -> Result<StatusCode, ApiError> {
    let mut change = shared.change(&admin).await?;
    change.unassign(kms, &tenant).await?;
    let detail = json!({ "tenant": tenant });
    change
        .commit("unassign", format!("kms {kms}"), &detail)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn secrets(State(shared): State<Shared>, admin: Admin) -> Answer<Vec<SecretDoc>> {
    Ok(Json(shared.store.secrets(admin.vendor).await?))
}

async fn sealed(
    State(shared): State<Shared>,
    InSession(admin): InSession,
) -> Answer<Sealed<Member>> {
    Ok(Json(shared.store.sealed(admin.vendor).await?))
}

async fn rotate(
    State(shared): State<Shared>,
    InSession(admin): InSession,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let rotation: Rotation = read(&body)?;
    let epoch = rotation.segment.epoch;
    let sealed = &rotation.sealed;
    let keys = sealed.accounts.values().chain(sealed.admins.values());
    let contents = sealed.kms.values().chain(sealed.logging.values());
    for envelope in keys.chain(contents.map(|content| &content.envelope)) {
        check_envelope(envelope, epoch)?;
    }
    let vendor_key = shared.store.vendor_key(admin.vendor).await?;
    check_segment(admin.vendor, &vendor_key, &rotation.segment)?;
    let mut change = shared.change(&admin).await?;
    change.rotate(&rotation).await?;
    let detail = json!({ "epoch": epoch });
    change.commit("rotate", "segment", &detail).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct After {
    #[serde(default)]
    after: i64,
}

async fn changes(
    State(shared): State<Shared>,
    InSession(admin): InSession,
    Query(After { after }): Query<After>,
) -> Answer<Vec<ChangeDoc>> {
    Ok(Json(
        shared
            .store
            .changes(admin.vendor, after, CHANGES_MAX)
            .await?,
    ))
}
