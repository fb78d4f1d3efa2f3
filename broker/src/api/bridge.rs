//! The account API for vendor bridges: one signed call at a time, answered as the bridge's own callers see it.

use axum::{
    Json, Router,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::{HeaderMap, Method, Uri},
    response::{IntoResponse as _, Response},
    routing::post,
};
use serde::Serialize;
use serde_json::json;
use tsp_wire::account::token;

use super::{
    ApiError, Shared, account::authenticate, admin::check_kms, check_signature, json as read,
};
use crate::{
    bridge::{
        call::{self, Call, CreateTenant, UpdateTenant, WhichSecret},
        shapes::{DeletedAssignment, DeletedKmsConfig, DeletedTenant, TagFailure, TagModification},
    },
    clock,
    model::{AccountKind, Assign, AssignmentState, Invite, KmsDoc, NewTenant, RotationStep},
    store::{Account, Change, Store, StoreError, is_name},
};

pub(super) fn routes() -> Router<Shared> {
    Router::new().route(call::PATH, post(answer))
}

async fn answer(
    State(shared): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let body = body.map_err(|_| ApiError::TooLarge)?;
    let request = token::Request {
        method: method.as_str(),
        path: uri.path_and_query().map_or("", |path| path.as_str()),
        body: &body,
    };
    let account = authenticate(&shared, &headers, &request, AccountKind::Bridge).await?;
    let call::Request { requestor, call } = read(&body)?;
    if !is_name(&requestor) {
        let why = "the requestor is empty or too long";
        return Err(ApiError::Invalid(why.to_owned()));
    }
    let desk = Desk {
        shared: &shared,
        store: &shared.store,
        account: &account,
        requestor: &requestor,
    };
    Box::pin(desk.answer(call)).await
}

fn good(value: &impl Serialize) -> Result<Response, ApiError> {
    Ok(Json(value).into_response())
}

/// One bridge's call at work.
struct Desk<'a> {
    shared: &'a Shared,
    store: &'a Store,
    account: &'a Account,
    requestor: &'a str,
}

impl Desk<'_> {
    /// As the audit trail names who is at work.
    fn actor(&self) -> String {
        format!("bridge {} for {}", self.account.config, self.requestor)
    }

    async fn change(&self) -> Result<Change, StoreError> {
        let (vendor, now) = (self.account.vendor, clock::now_s());
        self.store.change(vendor, &self.actor(), now).await
    }

    async fn answer(&self, call: Call) -> Result<Response, ApiError> {
        let (store, vendor) = (self.store, self.account.vendor);
        match call {
            Call::Sealing { reserve } => good(&store.sealing(vendor, reserve).await?),
            Call::Tenants(query) => good(&store.tenant_page(vendor, &query).await?),
            Call::Tenant(id) => good(&store.tenant(vendor, &id).await?),
            Call::CreateTenant(new) => self.create_tenant(new).await,
            Call::UpdateTenant(wanted) => self.update_tenant(wanted).await,
            Call::DeleteTenant(id) => self.delete_tenant(id).await,
            Call::Invite { tenant, email } => self.invite(&tenant, email).await,
            Call::KmsConfigs(query) => good(&store.kms_page(vendor, &query).await?),
            Call::KmsConfig(id) => good(&store.kms_config(vendor, id).await?),
            Call::CreateKmsConfig(doc) => self.create_kms(doc).await,
            Call::UpdateKmsConfig(doc) => self.update_kms(doc).await,
            Call::AllowLeasing { id, allowed } => self.allow_leasing(id, allowed).await,
            Call::DeleteKmsConfig(id) => {
                self.change().await?.delete_kms(id).await?;
                good(&DeletedKmsConfig { id })
            }
            Call::Assignments { of, query } => {
                good(&store.assignment_page(vendor, &of, &query).await?)
            }
            Call::Assignment { kms, tenant } => self.assignment(kms, &tenant).await,
            Call::CreateAssignment {
                kms,
                tenant,
                assign,
            } => self.create_assignment(kms, &tenant, assign).await,
            Call::UpdateAssignment {
                kms,
                tenant,
                active,
                primary,
            } => self.update_assignment(kms, &tenant, active, primary).await,
            Call::DeleteAssignment { kms, tenant } => self.delete_assignment(kms, tenant).await,
            Call::Tags(query) => good(&store.tag_page(vendor, &query).await?),
            Call::CreateTag(text) => {
                let mut change = self.change().await?;
                let tag = change.create_tag(&text).await?;
                let detail = json!({ "text": text });
                change
                    .commit("create", format!("tag {}", tag.id), &detail)
                    .await?;
                good(&tag)
            }
            Call::TagTenants { tag, tenants, add } => self.tag_tenants(tag, tenants, add).await,
            Call::Secrets(query) => good(&store.secret_page(vendor, &query).await?),
            Call::Rotate {
                tenant,
                secret,
                step,
            } => self.rotate(&tenant, &secret, step).await,
        }
    }

    async fn create_tenant(&self, new: CreateTenant) -> Result<Response, ApiError> {
        let mut change = self.change().await?;
        let tenant = NewTenant {
            id: new.id.clone(),
            name: new.name,
            // Those that are wanted follow by their numbers.
            tags: new.tags.as_ref().map(|_| Vec::new()),
        };
        change.create_tenant(&tenant).await?;
        if let Some(tags) = &new.tags {
            change.check_tags(tags).await?;
            for tag in tags {
                change.tag_tenant(*tag, &new.id).await?;
            }
        }
        let detail = json!({ "name": tenant.name, "tags": new.tags });
        change
            .commit("create", format!("tenant {}", new.id), &detail)
            .await?;
        good(&self.store.tenant(self.account.vendor, &new.id).await?)
    }

    async fn update_tenant(&self, wanted: UpdateTenant) -> Result<Response, ApiError> {
        let mut change = self.change().await?;
        change.change_tenant(&wanted).await?;
        change
            .commit("update", format!("tenant {}", wanted.id), &json!(wanted))
            .await?;
        good(&self.store.tenant(self.account.vendor, &wanted.id).await?)
    }

    async fn delete_tenant(&self, id: String) -> Result<Response, ApiError> {
        let mut change = self.change().await?;
        let tags = change.tags_of(&id).await?;
        change.delete_tenant(&id).await?;
        change.drop_unused(&tags).await?;
        change
            .commit("delete", format!("tenant {id}"), &json!({}))
            .await?;
        good(&DeletedTenant { id })
    }

    /// Without a key of the invitation's: the bridge cannot vouch for one, so the vendor confirms who answered.
    async fn invite(&self, tenant: &str, email: String) -> Result<Response, ApiError> {
        let invite = Invite {
            email,
            ..Invite::default()
        };
        let (vendor, actor) = (self.account.vendor, self.actor());
        let invitation = self.shared.invite_tenant(vendor, &actor, tenant, &invite);
        good(&invitation.await?)
    }

    async fn create_kms(&self, doc: KmsDoc) -> Result<Response, ApiError> {
        check_kms(&doc)?;
        let mut change = self.change().await?;
        change.create_kms(&doc).await?;
        let detail = json!({ "type": doc.kind, "leasingAllowed": doc.leasing_allowed });
        change
            .commit("create", format!("kms {}", doc.id), &detail)
            .await?;
        self.kms_config(doc.id).await
    }

    async fn update_kms(&self, doc: KmsDoc) -> Result<Response, ApiError> {
        check_kms(&doc)?;
        let mut change = self.change().await?;
        change.update_kms(&doc).await?;
        let detail = json!({ "revision": doc.revision, "leasingAllowed": doc.leasing_allowed });
        change
            .commit("update", format!("kms {}", doc.id), &detail)
            .await?;
        self.kms_config(doc.id).await
    }

    async fn allow_leasing(&self, id: i64, allowed: bool) -> Result<Response, ApiError> {
        let mut change = self.change().await?;
        change.allow_leasing(id, allowed).await?;
        let detail = json!({ "leasingAllowed": allowed });
        change
            .commit("update", format!("kms {id}"), &detail)
            .await?;
        self.kms_config(id).await
    }

    async fn kms_config(&self, id: i64) -> Result<Response, ApiError> {
        good(&self.store.kms_config(self.account.vendor, id).await?)
    }

    async fn assignment(&self, kms: i64, tenant: &str) -> Result<Response, ApiError> {
        let vendor = self.account.vendor;
        match self.store.assignment(vendor, kms, tenant).await? {
            Some(assignment) => good(&assignment),
            None => {
                self.check_ends(kms, tenant).await?;
                Err(ApiError::NotFound("it is not assigned to this tenant"))
            }
        }
    }

    /// That something is not assigned is another thing than that it is not there.
    async fn check_ends(&self, kms: i64, tenant: &str) -> Result<(), ApiError> {
        let vendor = self.account.vendor;
        let ends = match self.store.tenant(vendor, tenant).await {
            Ok(_) => self.store.kms_config(vendor, kms).await.map(drop),
            Err(why) => Err(why),
        };
        match ends {
            Err(StoreError::NotFound(why)) => Err(ApiError::Invalid(why.to_owned())),
            other => Ok(other?),
        }
    }

    async fn create_assignment(
        &self,
        kms: i64,
        tenant: &str,
        assign: Assign,
    ) -> Result<Response, ApiError> {
        check_signature(&assign.signer, &assign.signature)?;
        self.check_ends(kms, tenant).await?;
        let vendor = self.account.vendor;
        if self.store.assignment(vendor, kms, tenant).await?.is_some() {
            let why = "it is assigned to this tenant already";
            return Err(ApiError::Invalid(why.to_owned()));
        }
        let mut change = self.change().await?;
        change.assign(kms, tenant, &assign).await?;
        let state = assign.state;
        let detail = json!({ "tenant": tenant, "active": state.active, "primary": state.primary });
        change
            .commit("assign", format!("kms {kms}"), &detail)
            .await?;
        self.assignment(kms, tenant).await
    }

    async fn update_assignment(
        &self,
        kms: i64,
        tenant: &str,
        active: Option<bool>,
        primary: Option<bool>,
    ) -> Result<Response, ApiError> {
        self.check_ends(kms, tenant).await?;
        let mut change = self.change().await?;
        let state = change
            .reassign(kms, tenant, |there| AssignmentState {
                active: active.unwrap_or(there.active),
                // What is switched off cannot stay the primary, unless that is just what is asked for.
                primary: primary.unwrap_or(there.primary && active != Some(false)),
            })
            .await?;
        let detail = json!({ "tenant": tenant, "active": state.active, "primary": state.primary });
        change
            .commit("assign", format!("kms {kms}"), &detail)
            .await?;
        self.assignment(kms, tenant).await
    }

    async fn delete_assignment(&self, kms: i64, tenant: String) -> Result<Response, ApiError> {
        self.check_ends(kms, &tenant).await?;
        let mut change = self.change().await?;
        change.unassign(kms, &tenant).await?;
        let detail = json!({ "tenant": tenant });
        change
            .commit("unassign", format!("kms {kms}"), &detail)
            .await?;
        good(&DeletedAssignment {
            kms_config_id: kms,
            tenant_id: tenant,
        })
    }

    /// Does it wherever it can be done, and tells where it cannot.
    async fn tag_tenants(
        &self,
        tag: i64,
        tenants: Vec<String>,
        add: bool,
    ) -> Result<Response, ApiError> {
        let mut change = self.change().await?;
        change.check_tags(&[tag]).await?;
        let mut done = TagModification::default();
        for tenant in tenants {
            let changed = if add {
                change.tag_tenant(tag, &tenant).await
            } else {
                change.untag_tenant(tag, &tenant).await
            };
            match changed {
                Ok(()) => done.succeeded.push(tenant),
                Err(StoreError::NotFound(why)) => done.failed.push(TagFailure {
                    tenant_id: tenant,
                    message: why.to_owned(),
                }),
                Err(why) => return Err(why.into()),
            }
        }
        if !add {
            change.drop_unused(&[tag]).await?;
        }
        if !done.succeeded.is_empty() {
            let action = if add { "tag" } else { "untag" };
            let detail = json!({ "tenants": done.succeeded });
            change.commit(action, format!("tag {tag}"), &detail).await?;
        }
        good(&done)
    }

    async fn rotate(
        &self,
        tenant: &str,
        secret: &WhichSecret,
        step: RotationStep,
    ) -> Result<Response, ApiError> {
        let mut change = self.change().await?;
        let id = change.rotate_which(tenant, secret, step).await?;
        let detail = json!({ "tenant": tenant, "step": step });
        change
            .commit("rotate", format!("tenant secret {id}"), &detail)
            .await?;
        good(&self.store.tenant_secret(self.account.vendor, id).await?)
    }
}
