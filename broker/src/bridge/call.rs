//! What the bridge asks the broker: one signed `POST` per call, answered with a shape of [`shapes`](super::shapes).

use serde::{Deserialize, Serialize};
use tsp_wire::account::signed::Signer;

use super::query::{AssignmentQuery, KmsConfigQuery, SecretQuery, TagQuery, TenantQuery};
use crate::model::{Assign, KmsDoc, RotationStep, SegmentDoc};

/// Where calls go.
pub(crate) const PATH: &str = "/account/1/bridge";

/// One call.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    /// For whom, as the bridge's caller says: for the audit trail.
    pub(crate) requestor: String,
    pub(crate) call: Call,
}

/// What is to be done.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Call {
    /// [`Sealing`]: what a configuration is sealed with, and a number for a new one.
    Sealing {
        reserve: bool,
    },
    Tenants(TenantQuery),
    Tenant(String),
    CreateTenant(CreateTenant),
    UpdateTenant(UpdateTenant),
    DeleteTenant(String),
    Invite {
        tenant: String,
        email: String,
    },
    KmsConfigs(KmsConfigQuery),
    KmsConfig(i64),
    CreateKmsConfig(KmsDoc),
    UpdateKmsConfig(KmsDoc),
    AllowLeasing {
        id: i64,
        allowed: bool,
    },
    DeleteKmsConfig(i64),
    Assignments {
        of: AssignmentsOf,
        query: AssignmentQuery,
    },
    Assignment {
        kms: i64,
        tenant: String,
    },
    CreateAssignment {
        kms: i64,
        tenant: String,
        assign: Assign,
    },
    UpdateAssignment {
        kms: i64,
        tenant: String,
        active: Option<bool>,
        primary: Option<bool>,
    },
    DeleteAssignment {
        kms: i64,
        tenant: String,
    },
    Tags(TagQuery),
    CreateTag(String),
    TagTenants {
        tag: i64,
        tenants: Vec<String>,
        add: bool,
    },
    Secrets(SecretQuery),
    Rotate {
        tenant: String,
        secret: WhichSecret,
        step: RotationStep,
    },
}

/// A new tenant.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CreateTenant {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) email: Option<String>,
    /// Numbers of its tags; `None` is the default tag.
    pub(crate) tags: Option<Vec<i64>>,
}

/// What of a tenant is to change.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct UpdateTenant {
    pub(crate) id: String,
    pub(crate) name: Option<String>,
    pub(crate) leasing_required: Option<bool>,
    pub(crate) tag_additions: Vec<i64>,
    pub(crate) tag_removals: Vec<i64>,
}

/// Whose assignments.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum AssignmentsOf {
    Tenant(String),
    Kms(i64),
}

/// Which tenant secret.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum WhichSecret {
    Id(i64),
    /// In the store's words.
    Path {
        secret_type: String,
        path: String,
    },
}

/// What the bridge seals with. It believes no more of it than the vendor has signed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Sealing {
    /// Ed25519, in base64.
    pub(crate) vendor_key: String,
    pub(crate) segment: SegmentDoc,
    /// Whom the vendor vouches for: its bridges.
    #[serde(default)]
    pub(crate) signers: Vec<Signer>,
    /// For a new object; 0 if none was asked for.
    pub(crate) number: i64,
}
