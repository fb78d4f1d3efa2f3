//! The operations on KMS configs and their assignments.

use axum::{Json, http::header, response::AppendHeaders};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    Bridge, Told,
    call::{AssignmentsOf, Call},
    extract::{At, Body, Filter, Refusal},
    query::{AssignmentQuery, KmsConfigQuery},
    seal::{KmsConfiguration, KmsConfigurationUpdate},
    shapes::{
        Assignment, DeletedAssignment, DeletedKmsConfig, KmsConfig, KmsConfigMeta, Page,
        SealedKmsConfig, StoredKmsConfig,
    },
};

type Answer<T> = Result<Json<T>, Refusal>;

/// How often a configuration is sealed anew because the segment's key or the config changed meanwhile.
const SEAL_TRIES: usize = 3;

/// List KMS configs
#[utoipa::path(get, path = "/1/kms/configs", operation_id = "get-kms-configs", tag = "KMS Configuration",
    params(KmsConfigQuery), responses((status = 200, description = "A page of them", body = Page<KmsConfigMeta>)))]
pub(super) async fn kms_configs(
    bridge: Bridge,
    Filter(query): Filter<KmsConfigQuery>,
) -> Answer<Page<KmsConfigMeta>> {
    let call = Call::KmsConfigs(query);
    Ok(Json(bridge.ask(call, Told::USUALLY).await?))
}

/// A new KMS config.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct NewKmsConfig {
    /// Its content, which is sealed
    config: KmsConfiguration,
    /// Whether proxies may lease keys from it
    leasing_allowed: Option<bool>,
}

/// Closes the connection with the answer, since its buffers have held credentials.
type Close = AppendHeaders<[(header::HeaderName, &'static str); 1]>;

type LastAnswer<T> = Result<(Close, Json<T>), Refusal>;

fn last<T>(answer: T) -> (Close, Json<T>) {
    let close = AppendHeaders([(header::CONNECTION, "close")]);
    (close, Json(answer))
}

/// Seal a KMS config and store it
#[utoipa::path(post, path = "/1/kms/configs", operation_id = "post-kms-configs", tag = "KMS Configuration",
    request_body = NewKmsConfig, responses((status = 200, description = "The config, sealed", body = SealedKmsConfig)))]
pub(super) async fn create_kms_config(
    bridge: Bridge,
    Body(new): Body<NewKmsConfig>,
) -> LastAnswer<SealedKmsConfig> {
    let leasing = new.leasing_allowed.unwrap_or_default();
    let mut refusal = Refusal::again();
    for _ in 0..SEAL_TRIES {
        let sealing = bridge.sealing(true).await?;
        let bench = bridge.bench(&sealing)?;
        let doc = bench.create(sealing.number, leasing, &new.config)?;
        match bridge.store_kms(Call::CreateKmsConfig(doc)).await? {
            Ok(stored) => return Ok(last(stored.into())),
            Err(why) => refusal = why,
        }
    }
    Err(refusal)
}

/// Look at a KMS config, without its credentials
#[utoipa::path(get, path = "/1/kms/configs/{kmsConfigId}", operation_id = "get-kms-configs-kmsConfigId", tag = "KMS Configuration",
    params(("kmsConfigId" = i64, Path, description = "Its number", minimum = 1)),
    responses((status = 200, description = "The config", body = KmsConfig)))]
pub(super) async fn kms_config(bridge: Bridge, At(id): At<i64>) -> Answer<KmsConfig> {
    let call = Call::KmsConfig(id);
    let stored: StoredKmsConfig = bridge.ask(call, Told::AS_UNPROCESSABLE).await?;
    Ok(Json(stored.into()))
}

/// What of a KMS config is to change; what is absent stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct KmsConfigUpdate {
    /// Other credentials for the same key
    config: Option<KmsConfigurationUpdate>,
    /// Whether proxies may lease keys from it
    leasing_allowed: Option<bool>,
}

/// Give a KMS config other credentials for the same key, or change whether proxies may lease keys from it
#[utoipa::path(put, path = "/1/kms/configs/{kmsConfigId}", operation_id = "put-kms-configs-kmsConfigId", tag = "KMS Configuration",
    params(("kmsConfigId" = i64, Path, description = "Its number", minimum = 1)), request_body = KmsConfigUpdate,
    responses((status = 200, description = "The config, sealed", body = SealedKmsConfig)))]
pub(super) async fn update_kms_config(
    bridge: Bridge,
    At(id): At<i64>,
    Body(wanted): Body<KmsConfigUpdate>,
) -> LastAnswer<SealedKmsConfig> {
    let told = Told::AS_UNPROCESSABLE;
    let mut refusal = Refusal::again();
    for _ in 0..SEAL_TRIES {
        let there: StoredKmsConfig = bridge.ask(Call::KmsConfig(id), told).await?;
        let allowed = wanted.leasing_allowed.unwrap_or(there.meta.leasing_allowed);
        let Some(config) = &wanted.config else {
            if wanted.leasing_allowed.is_none() {
                return Ok(last(there.into()));
            }
            let call = Call::AllowLeasing { id, allowed };
            let stored: StoredKmsConfig = bridge.ask(call, told).await?;
            return Ok(last(stored.into()));
        };
        let sealing = bridge.sealing(false).await?;
        let doc = bridge.bench(&sealing)?.update(&there, allowed, config)?;
        match bridge.store_kms(Call::UpdateKmsConfig(doc)).await? {
            Ok(stored) => return Ok(last(stored.into())),
            Err(why) => refusal = why,
        }
    }
    Err(refusal)
}

/// Delete a KMS config that is assigned to nobody, and the tenant secrets that only it opens
#[utoipa::path(delete, path = "/1/kms/configs/{kmsConfigId}", operation_id = "delete-kms-configs-kmsConfigId",
    tag = "KMS Configuration", params(("kmsConfigId" = i64, Path, description = "Its number", minimum = 1)),
    responses((status = 200, description = "It is gone", body = DeletedKmsConfig)))]
pub(super) async fn delete_kms_config(bridge: Bridge, At(id): At<i64>) -> Answer<DeletedKmsConfig> {
    let told = Told::AS_UNPROCESSABLE;
    Ok(Json(bridge.ask(Call::DeleteKmsConfig(id), told).await?))
}

/// List a KMS config's assignments
#[utoipa::path(get, path = "/1/kms/configs/{kmsConfigId}/assignments", operation_id = "get-kms-configs-kmsConfigId-assignments",
    tag = "Configuration Assignment", params(("kmsConfigId" = i64, Path, description = "Its number", minimum = 1), AssignmentQuery),
    responses((status = 200, description = "A page of them", body = Page<Assignment>)))]
pub(super) async fn kms_assignments(
    bridge: Bridge,
    At(id): At<i64>,
    Filter(query): Filter<AssignmentQuery>,
) -> Answer<Page<Assignment>> {
    let of = AssignmentsOf::Kms(id);
    let call = Call::Assignments { of, query };
    Ok(Json(bridge.ask(call, Told::USUALLY).await?))
}

/// Look at an assignment
#[utoipa::path(get, path = "/1/kms/configs/{kmsConfigId}/tenants/{tenantId}", operation_id = "get-assignment",
    tag = "Configuration Assignment", params(
        ("kmsConfigId" = i64, Path, description = "The KMS config's number", minimum = 1),
        ("tenantId" = String, Path, description = "The vendor's id of the tenant")),
    responses((status = 200, description = "The assignment", body = Assignment)))]
pub(super) async fn assignment(
    bridge: Bridge,
    At((kms, tenant)): At<(i64, String)>,
) -> Answer<Assignment> {
    let call = Call::Assignment { kms, tenant };
    Ok(Json(bridge.ask(call, Told::USUALLY).await?))
}

/// Assign a KMS config to a tenant: active, and not primary
#[utoipa::path(post, path = "/1/kms/configs/{kmsConfigId}/tenants/{tenantId}", operation_id = "post-assignment",
    tag = "Configuration Assignment", params(
        ("kmsConfigId" = i64, Path, description = "The KMS config's number", minimum = 1),
        ("tenantId" = String, Path, description = "The vendor's id of the tenant")),
    responses((status = 200, description = "The assignment", body = Assignment)))]
pub(super) async fn create_assignment(
    bridge: Bridge,
    At((kms, tenant)): At<(i64, String)>,
) -> Answer<Assignment> {
    let sealing = bridge.sealing(false).await?;
    let assign = bridge.bench(&sealing)?.assign(kms, &tenant)?;
    let call = Call::CreateAssignment {
        kms,
        tenant,
        assign,
    };
    Ok(Json(bridge.ask(call, Told::USUALLY).await?))
}

/// How a KMS config is to be assigned; what is absent stays.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct AssignmentUpdate {
    /// Whether it may be used at all
    active: Option<bool>,
    /// Whether new data is encrypted with it: it takes the present primary's place
    primary: Option<bool>,
}

/// Change how a KMS config is assigned to a tenant
#[utoipa::path(put, path = "/1/kms/configs/{kmsConfigId}/tenants/{tenantId}", operation_id = "put-assignment",
    tag = "Configuration Assignment", params(
        ("kmsConfigId" = i64, Path, description = "The KMS config's number", minimum = 1),
        ("tenantId" = String, Path, description = "The vendor's id of the tenant")),
    request_body = AssignmentUpdate, responses((status = 200, description = "The assignment", body = Assignment)))]
pub(super) async fn update_assignment(
    bridge: Bridge,
    At((kms, tenant)): At<(i64, String)>,
    Body(wanted): Body<AssignmentUpdate>,
) -> Answer<Assignment> {
    let call = Call::UpdateAssignment {
        kms,
        tenant,
        active: wanted.active,
        primary: wanted.primary,
    };
    Ok(Json(bridge.ask(call, Told::USUALLY).await?))
}

/// Take a KMS config away from a tenant
#[utoipa::path(delete, path = "/1/kms/configs/{kmsConfigId}/tenants/{tenantId}", operation_id = "delete-assignment",
    tag = "Configuration Assignment", params(
        ("kmsConfigId" = i64, Path, description = "The KMS config's number", minimum = 1),
        ("tenantId" = String, Path, description = "The vendor's id of the tenant")),
    responses((status = 200, description = "It is gone", body = DeletedAssignment)))]
pub(super) async fn delete_assignment(
    bridge: Bridge,
    At((kms, tenant)): At<(i64, String)>,
) -> Answer<DeletedAssignment> {
    let call = Call::DeleteAssignment { kms, tenant };
    Ok(Json(bridge.ask(call, Told::USUALLY).await?))
}
