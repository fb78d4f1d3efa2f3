//! Documents about tenants' own organizations.

use serde::{Deserialize, Serialize};

use super::{AdminKeys, AssignmentState, LoggingState, SegmentDoc};

/// What an organization is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OrganizationKind {
    /// Has tenants and service accounts.
    Vendor,
    /// Is a tenant of one vendor or several.
    Tenant,
}

impl OrganizationKind {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Vendor => "vendor",
            Self::Tenant => "tenant",
        }
    }
}

/// A new organization, its first admin and its first key.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewOrganization {
    /// A number that was reserved.
    pub id: i64,
    /// For people.
    pub name: String,
    /// Ed25519 public key.
    pub vendor_key: String,
    /// Epoch 1.
    pub segment: SegmentDoc,
    /// The first admin's reserved number.
    pub admin: i64,
    /// The first admin's address.
    pub email: String,
    /// The first admin's keys.
    pub keys: AdminKeys,
    /// The organization's keys, sealed to the first admin.
    pub sealed_keys: String,
    /// The organization's word that the first admin's public key is a member's.
    pub certificate: String,
}

/// Whom to invite, and the key of the invitation. Without one the vendor has to confirm who answered.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Invite {
    /// The address.
    pub email: String,
    /// Ed25519 public key, whose private half is in the link and nowhere else.
    #[serde(default)]
    pub key: String,
    /// The vendor's signature for it.
    #[serde(default)]
    pub signature: String,
}

/// What an invited person presents.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OpenInvitation {
    /// From the link.
    pub token: String,
}

/// What an invitation is to.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Invited {
    /// The vendor.
    pub vendor: VendorDoc,
    /// The vendor's id of the tenant.
    pub tenant: String,
    /// For people.
    pub tenant_name: String,
    /// The address that was invited.
    pub email: String,
    /// Two numbers for the answer: of a new organization, and of its first admin.
    pub first: i64,
}

/// A vendor, as a tenant's admin gets to know it. What counts is the fingerprint of its key, which the link has.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VendorDoc {
    /// Its number.
    pub id: i64,
    /// For people.
    pub name: String,
    /// Ed25519 public key.
    pub key: String,
    /// What is sealed for its proxies is sealed to this.
    pub segment: SegmentDoc,
}

/// An invitation's answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AcceptTenant {
    /// From the link.
    pub token: String,
    /// The organization that is made for it. Absent: the one of the session's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub organization: Option<NewOrganization>,
    /// The signature for the organization's key, by the invitation's; empty if the link had none.
    #[serde(default)]
    pub voucher: String,
    /// The organization's word that the vendor's key is this vendor's.
    pub link_signature: String,
}

/// The vendor's word for a tenant's organization, after its admin has heard which key is theirs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfirmTenant {
    /// The organization's key.
    pub organization_key: String,
    /// The signature for it.
    pub signature: String,
}

/// One vendor that an organization is a tenant of.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkDoc {
    /// The vendor.
    pub vendor: VendorDoc,
    /// The vendor's id of the tenant.
    pub tenant: String,
    /// For people.
    pub tenant_name: String,
    /// Whether the vendor vouches for the organization's key: without that no proxy believes it.
    pub confirmed: bool,
    /// Whether the vendor archived the tenant.
    pub archived: bool,
    /// Whether all KMS configs must allow leasing.
    pub leasing_required: bool,
    /// The organization's word that the vendor's key is this vendor's.
    pub link_signature: String,
    /// The KMS configs that serve it, also those of the vendor's.
    pub assignments: Vec<LinkAssignment>,
    /// Its logging configuration.
    pub logging: LoggingState,
}

/// A KMS config that serves a tenant.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LinkAssignment {
    /// Its number.
    pub kms: i64,
    /// The kind of KMS.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether the organization made it, or else the vendor.
    pub own: bool,
    /// How it is assigned.
    #[serde(flatten)]
    pub state: AssignmentState,
}

/// An assignment by a tenant's admin: of a config of its own with what the vendor's proxies open, of another one only how.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AssignOwn {
    /// How it is assigned.
    #[serde(flatten)]
    pub state: AssignmentState,
    /// Only for a config of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<OwnAssignment>,
}

/// A config of a tenant's own, for a vendor's proxies.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OwnAssignment {
    /// Ed25519 key of the organization.
    pub signer: String,
    /// Its signature under the assignment.
    pub signature: String,
    /// The content, sealed to the vendor's segment.
    pub share: Share,
}

/// The content of a tenant's KMS config, sealed to a vendor's segment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Share {
    /// The revision that it is.
    pub revision: i64,
    /// The epoch of the vendor's key.
    pub epoch: u32,
    /// The envelope.
    pub envelope: String,
}
