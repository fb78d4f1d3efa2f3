//! The operations on tenants, their tags and their secrets.

use axum::{Json, http::StatusCode};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    Bridge, Told,
    call::{AssignmentsOf, Call, CreateTenant, UpdateTenant, WhichSecret},
    extract::{At, Body, Filter, MaybeBody, Refusal},
    query::{AssignmentQuery, NUMBERS_MAX, SecretQuery, TagQuery, TenantQuery},
    shapes::{
        Assignment, DeletedTenant, InvitedTenant, ListedSecret, NewTenantResponse, Page,
        SecretType, Tag, TagModification, Tenant, TenantSecret, UpdatedTenant,
    },
};
use crate::{
    model::{Invitation, RotationStep},
    store::is_email,
};

type Answer<T> = Result<Json<T>, Refusal>;

/// A new tenant, with the default tag.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct NewTenantV1 {
    /// The vendor's id of it
    id: String,
    /// For people
    name: String,
    /// Whom to invite
    tenant_admin_email: Option<String>,
}

/// A new tenant, with exactly the tags that are named.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct NewTenantV2 {
    /// The vendor's id of it
    id: String,
    /// For people
    name: String,
    /// Whom to invite
    tenant_admin_email: Option<String>,
    /// Numbers of its tags; none means that it reaches no proxy
    tags: Option<Vec<i64>>,
}

async fn create_tenant(bridge: &Bridge, new: CreateTenant) -> Answer<NewTenantResponse> {
    let (id, email) = (new.id.clone(), new.email.clone());
    if email.as_deref().is_some_and(|email| !is_email(email)) {
        let why = "that is no e-mail address";
        return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, why));
    }
    let told = Told::AS_UNPROCESSABLE;
    let mut tenant: Tenant = bridge.ask(Call::CreateTenant(new), told).await?;
    let (mut email_sent, mut invitation_link) = (false, None);
    if let Some(email) = email {
        (email_sent, invitation_link) = invitation(bridge, id, email).await?;
        tenant.invited = true;
    }
    Ok(Json(NewTenantResponse {
        tenant,
        email_sent,
        invitation_link,
    }))
}

/// Invites; gives whether a mail is on its way, and else the link to be handed over.
async fn invitation(
    bridge: &Bridge,
    tenant: String,
    email: String,
) -> Result<(bool, Option<String>), Refusal> {
    let call = Call::Invite { tenant, email };
    let invitation: Invitation = bridge.ask(call, Told::AS_UNPROCESSABLE).await?;
    let account = &bridge.inner.account;
    let link = format!(
        "{}/invitation#{}.{}",
        account.broker_url,
        invitation.token,
        account.vendor().fingerprint
    );
    Ok((invitation.mailed, Some(link).filter(|_| !invitation.mailed)))
}

/// Make a tenant with the tags that are named
#[utoipa::path(post, path = "/2/tenants", operation_id = "post-tenants-v2", tag = "Tenant",
    request_body = NewTenantV2, responses((status = 200, description = "The tenant", body = NewTenantResponse)))]
pub(super) async fn create_tenant_v2(
    bridge: Bridge,
    Body(new): Body<NewTenantV2>,
) -> Answer<NewTenantResponse> {
    let new = CreateTenant {
        id: new.id,
        name: new.name,
        email: new.tenant_admin_email,
        tags: Some(new.tags.unwrap_or_default()),
    };
    create_tenant(&bridge, new).await
}

/// Make a tenant with the default tag
#[utoipa::path(post, path = "/1/tenants", operation_id = "post-tenants-v1", tag = "Tenant",
    request_body = NewTenantV1, responses((status = 200, description = "The tenant", body = NewTenantResponse)))]
pub(super) async fn create_tenant_v1(
    bridge: Bridge,
    Body(new): Body<NewTenantV1>,
) -> Answer<NewTenantResponse> {
    let new = CreateTenant {
        id: new.id,
        name: new.name,
        email: new.tenant_admin_email,
        tags: None,
    };
    create_tenant(&bridge, new).await
}

/// List tenants
#[utoipa::path(get, path = "/1/tenants", operation_id = "get-tenants", tag = "Tenant",
    params(TenantQuery), responses((status = 200, description = "A page of them", body = Page<Tenant>)))]
pub(super) async fn tenants(
    bridge: Bridge,
    Filter(query): Filter<TenantQuery>,
) -> Answer<Page<Tenant>> {
    let page = bridge.ask(Call::Tenants(query), Told::USUALLY).await?;
    Ok(Json(page))
}

/// Look at a tenant
#[utoipa::path(get, path = "/1/tenants/{tenantId}", operation_id = "get-tenants-tenantId", tag = "Tenant",
    params(("tenantId" = String, Path, description = "The vendor's id of it")),
    responses((status = 200, description = "The tenant", body = Tenant)))]
pub(super) async fn tenant(bridge: Bridge, At(id): At<String>) -> Answer<Tenant> {
    Ok(Json(bridge.ask(Call::Tenant(id), Told::USUALLY).await?))
}

/// What of a tenant is to change; what is absent stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct TenantUpdate {
    /// For people
    name: Option<String>,
    /// Whether all its KMS configs must allow leasing
    key_leasing_required: Option<bool>,
    /// Numbers of tags to add
    tag_additions: Option<Vec<i64>>,
    /// Numbers of tags to take away
    tag_removals: Option<Vec<i64>>,
}

/// Change a tenant
#[utoipa::path(put, path = "/1/tenants/{tenantId}", operation_id = "put-tenants-tenantId", tag = "Tenant",
    params(("tenantId" = String, Path, description = "The vendor's id of it")), request_body = TenantUpdate,
    responses((status = 200, description = "The tenant as it is now", body = UpdatedTenant)))]
pub(super) async fn update_tenant(
    bridge: Bridge,
    At(id): At<String>,
    Body(wanted): Body<TenantUpdate>,
) -> Answer<UpdatedTenant> {
    let wanted = UpdateTenant {
        id,
        name: wanted.name,
        leasing_required: wanted.key_leasing_required,
        tag_additions: wanted.tag_additions.unwrap_or_default(),
        tag_removals: wanted.tag_removals.unwrap_or_default(),
    };
    let call = Call::UpdateTenant(wanted);
    let tenant: Tenant = bridge.ask(call, Told::AS_BAD_REQUEST).await?;
    Ok(Json(tenant.into()))
}

/// Delete a tenant that has not accepted, and has had no KMS config for 36 hours
#[utoipa::path(delete, path = "/1/tenants/{tenantId}", operation_id = "delete-tenants-tenantId", tag = "Tenant",
    params(("tenantId" = String, Path, description = "The vendor's id of it")),
    responses((status = 200, description = "It is gone", body = DeletedTenant)))]
pub(super) async fn delete_tenant(bridge: Bridge, At(id): At<String>) -> Answer<DeletedTenant> {
    let told = Told::AS_UNPROCESSABLE;
    Ok(Json(bridge.ask(Call::DeleteTenant(id), told).await?))
}

/// Whom to invite.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Invitee {
    /// The address
    tenant_admin_email: String,
}

/// Invite a tenant's admin, in the place of an earlier invitation
#[utoipa::path(post, path = "/1/tenants/{tenantId}/invite", operation_id = "post-tenants-tenantId-invite", tag = "Tenant",
    params(("tenantId" = String, Path, description = "The vendor's id of it")), request_body = Invitee,
    responses((status = 200, description = "The invitation", body = InvitedTenant)))]
pub(super) async fn invite(
    bridge: Bridge,
    At(id): At<String>,
    Body(invitee): Body<Invitee>,
) -> Answer<InvitedTenant> {
    let email = invitee.tenant_admin_email;
    let (_, invitation_link) = invitation(&bridge, id, email.clone()).await?;
    Ok(Json(InvitedTenant {
        invited_tenant_admin_email: email,
        invitation_link,
    }))
}

/// List a tenant's assignments
#[utoipa::path(get, path = "/1/tenants/{tenantId}/assignments", operation_id = "get-tenants-tenantId-assignments",
    tag = "Configuration Assignment", params(("tenantId" = String, Path, description = "The vendor's id of it"), AssignmentQuery),
    responses((status = 200, description = "A page of them", body = Page<Assignment>)))]
pub(super) async fn tenant_assignments(
    bridge: Bridge,
    At(id): At<String>,
    Filter(query): Filter<AssignmentQuery>,
) -> Answer<Page<Assignment>> {
    let of = AssignmentsOf::Tenant(id);
    let call = Call::Assignments { of, query };
    Ok(Json(bridge.ask(call, Told::USUALLY).await?))
}

/// Which tenant secrets.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(super) struct SecretFilter {
    /// Numbers of secrets
    #[schema(max_items = 1000)]
    ids: Option<Vec<i64>>,
    /// Numbers of tags
    #[schema(max_items = 1000)]
    tags: Option<Vec<i64>>,
}

/// List tenant secrets
#[utoipa::path(get, path = "/1/tenants/secrets", operation_id = "get-tenants-secrets", tag = "Tenant Secret",
    params(SecretQuery), request_body = Option<SecretFilter>,
    responses((status = 200, description = "A page of them", body = Page<ListedSecret>)))]
pub(super) async fn secrets(
    bridge: Bridge,
    Filter(mut query): Filter<SecretQuery>,
    MaybeBody(filter): MaybeBody<SecretFilter>,
) -> Answer<Page<ListedSecret>> {
    let too_many = |numbers: &Option<Vec<i64>>| {
        numbers
            .as_ref()
            .is_some_and(|numbers| numbers.len() > NUMBERS_MAX)
    };
    if too_many(&filter.ids) || too_many(&filter.tags) {
        let why = format!("there are more than {NUMBERS_MAX} numbers");
        return Err(Refusal::new(StatusCode::BAD_REQUEST, &why));
    }
    query.ids = filter.ids.or(query.ids);
    query.tags = filter.tags.or(query.tags);
    Ok(Json(bridge.ask(Call::Secrets(query), Told::USUALLY).await?))
}

/// Which tenant secret: by its number, or by type and path.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct RotationRequest {
    /// Its number
    id: Option<i64>,
    /// What its keys are for
    secret_type: Option<SecretType>,
    /// The path that chooses it
    secret_path: Option<String>,
}

async fn rotate(
    bridge: &Bridge,
    tenant: String,
    wanted: RotationRequest,
    step: RotationStep,
) -> Answer<TenantSecret> {
    let secret = match (wanted.id, wanted.secret_type, wanted.secret_path) {
        (Some(id), None, None) => WhichSecret::Id(id),
        (None, Some(secret_type), Some(path)) => WhichSecret::Path {
            secret_type: secret_type.as_str().to_owned(),
            path,
        },
        _ => {
            let why = "a secret is named by id, or by secretType and secretPath";
            return Err(Refusal::new(StatusCode::BAD_REQUEST, why));
        }
    };
    let call = Call::Rotate {
        tenant,
        secret,
        step,
    };
    Ok(Json(bridge.ask(call, Told::ROTATION).await?))
}

/// Begin the rotation of a tenant secret: the next derivation makes its successor
#[utoipa::path(post, path = "/1/tenants/{tenantId}/secrets/rotate/begin", operation_id = "post-secrets-rotate-begin",
    tag = "Tenant Secret", params(("tenantId" = String, Path, description = "The vendor's id of it")),
    request_body = RotationRequest, responses((status = 200, description = "The secret", body = TenantSecret)))]
pub(super) async fn begin_rotation(
    bridge: Bridge,
    At(tenant): At<String>,
    Body(wanted): Body<RotationRequest>,
) -> Answer<TenantSecret> {
    rotate(&bridge, tenant, wanted, RotationStep::Begin).await
}

/// End the rotation of a tenant secret: the old one's keys are not handed out any more
#[utoipa::path(post, path = "/1/tenants/{tenantId}/secrets/rotate/commit", operation_id = "post-secrets-rotate-commit",
    tag = "Tenant Secret", params(("tenantId" = String, Path, description = "The vendor's id of it")),
    request_body = RotationRequest, responses((status = 200, description = "The secret", body = TenantSecret)))]
pub(super) async fn commit_rotation(
    bridge: Bridge,
    At(tenant): At<String>,
    Body(wanted): Body<RotationRequest>,
) -> Answer<TenantSecret> {
    rotate(&bridge, tenant, wanted, RotationStep::Commit).await
}

/// List tags
#[utoipa::path(get, path = "/1/tags", operation_id = "get-tags", tag = "Tag",
    params(TagQuery), responses((status = 200, description = "A page of them", body = Page<Tag>)))]
pub(super) async fn tags(bridge: Bridge, Filter(query): Filter<TagQuery>) -> Answer<Page<Tag>> {
    Ok(Json(bridge.ask(Call::Tags(query), Told::USUALLY).await?))
}

/// A new tag.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct NewTag {
    /// For people; there is one tag of a text
    tag_text: String,
}

/// Make a tag
#[utoipa::path(post, path = "/1/tags", operation_id = "post-tags", tag = "Tag",
    request_body = NewTag, responses((status = 200, description = "The tag", body = Tag)))]
pub(super) async fn create_tag(bridge: Bridge, Body(new): Body<NewTag>) -> Answer<Tag> {
    let call = Call::CreateTag(new.tag_text);
    Ok(Json(bridge.ask(call, Told::AS_UNPROCESSABLE).await?))
}

/// Which tenants.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct TagTenants {
    /// The vendor's ids of them
    tenant_ids: Vec<String>,
}

/// Give tenants a tag
#[utoipa::path(post, path = "/1/tags/{tagId}/tenants", operation_id = "post-tags-tagId-tenants", tag = "Tag",
    params(("tagId" = i64, Path, description = "Its number", minimum = 1)), request_body = TagTenants,
    responses((status = 200, description = "What became of it", body = TagModification)))]
pub(super) async fn tag_tenants(
    bridge: Bridge,
    At(tag): At<i64>,
    Body(wanted): Body<TagTenants>,
) -> Answer<TagModification> {
    let call = Call::TagTenants {
        tag,
        tenants: wanted.tenant_ids,
        add: true,
    };
    Ok(Json(bridge.ask(call, Told::AS_BAD_REQUEST).await?))
}

/// Take a tag away from tenants; one that nothing uses any more is deleted
#[utoipa::path(delete, path = "/1/tags/{tagId}/tenants", operation_id = "delete-tags-tagId-tenants", tag = "Tag",
    params(("tagId" = i64, Path, description = "Its number", minimum = 1)), request_body = TagTenants,
    responses((status = 200, description = "What became of it", body = TagModification)))]
pub(super) async fn untag_tenants(
    bridge: Bridge,
    At(tag): At<i64>,
    Body(wanted): Body<TagTenants>,
) -> Answer<TagModification> {
    let call = Call::TagTenants {
        tag,
        tenants: wanted.tenant_ids,
        add: false,
    };
    Ok(Json(bridge.ask(call, Told::AS_BAD_REQUEST).await?))
}
