//! The documents of the admin API: JSON, members in camel case, bytes in base64.

mod organization;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::organization::{
    AcceptTenant, AssignOwn, ConfirmTenant, Invite, Invited, LinkAssignment, LinkDoc,
    NewOrganization, OpenInvitation, OrganizationKind, OwnAssignment, Share, VendorDoc,
};

/// Who may do what in an organization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Everything. All admins are equal.
    Admin,
    /// Looks, and changes nothing.
    Auditor,
}

impl Role {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Auditor => "auditor",
        }
    }
}

/// What kind of program a service account is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccountKind {
    /// A proxy, or a log driver: opens configurations.
    Tsp,
    /// A vendor bridge: manages tenants, and opens nothing.
    Bridge,
}

impl AccountKind {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Tsp => "tsp",
            Self::Bridge => "bridge",
        }
    }
}

/// The public half of an admin, and the private half as only the admin opens it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdminKeys {
    /// Ed25519 key that signs logins.
    pub login_key: String,
    /// X25519 key that the vendor's keys are sealed to.
    pub public_key: String,
    /// The X25519 private key, encrypted under what the passphrase and the admin's secret key make.
    pub vault: String,
}

/// A segment's key of one epoch, and for whom it is sealed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SegmentDoc {
    /// Which of its keys.
    pub epoch: u32,
    /// X25519 public key.
    pub public_key: String,
    /// The vendor's signature.
    pub signature: String,
}

/// How many numbers to reserve, for objects that are sealed before they are stored.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Reserve {
    /// 1 to 1,000.
    pub count: i64,
}

/// Reserved numbers: `first` and those after it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Reserved {
    /// The lowest.
    pub first: i64,
}

/// A signed login: good for one use within a minute.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Login {
    /// The vendor's number.
    pub vendor: i64,
    /// The admin's address.
    pub email: String,
    /// Unix time in seconds.
    pub at: i64,
    /// 16 random bytes.
    pub id: String,
    /// Over all above: [`Login::statement`].
    pub signature: String,
}

impl Login {
    /// What is signed.
    #[must_use]
    pub fn statement(&self) -> Vec<u8> {
        let Self {
            vendor,
            email,
            at,
            id,
            ..
        } = self;
        format!("tsp login 1\n{vendor}\n{at}\n{id}\n{email}").into_bytes()
    }
}

/// A session, and what the admin needs to work.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// For `Authorization: Bearer`.
    pub token: String,
    /// The admin's number.
    pub admin: i64,
    /// What the admin may do.
    pub role: Role,
    /// What the organization is.
    pub kind: OrganizationKind,
    /// The vendor's number, which is that of its segment.
    pub vendor: i64,
    /// The vendor's key.
    pub vendor_key: String,
    /// The current segment key.
    pub segment: SegmentDoc,
    /// [`AdminKeys::vault`].
    pub vault: String,
    /// The vendor's keys, sealed to this admin.
    pub sealed_keys: String,
}

/// A new service account.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewAccount {
    /// Its reserved number: `SERVICE_CONFIG_ID`.
    pub config: i64,
    /// `SERVICE_ACCOUNT_ID`.
    pub id: String,
    /// For people.
    pub name: String,
    /// What it is for.
    pub kind: AccountKind,
    /// X25519 public key.
    pub encryption_key: String,
    /// Ed25519 public key.
    pub signing_key: String,
    /// The segment's private key, sealed to the account. Only for proxies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_key: Option<String>,
    /// The vendor's word: that the encryption key is a member's, or that the signing key is a bridge's.
    pub certificate: String,
    /// The epoch of that key.
    pub epoch: u32,
    /// Texts of its tags; none means the default tag.
    #[serde(default)]
    pub tags: Vec<String>,
}

/// A service account as it is listed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AccountDoc {
    /// `SERVICE_CONFIG_ID`.
    pub config: i64,
    /// `SERVICE_ACCOUNT_ID`.
    pub id: String,
    /// For people.
    pub name: String,
    /// `tsp` or `bridge`.
    pub kind: String,
    /// X25519 public key.
    pub encryption_key: String,
    /// When it was made, as Unix time in seconds.
    pub created: i64,
    /// When it was revoked; 0 if it was not.
    pub revoked: i64,
    /// Its tags.
    pub tags: Vec<String>,
}

/// What holds for tenants that are made from now on.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VendorChange {
    /// Whether all their KMS configs must allow leasing.
    pub leasing_required: bool,
}

/// A new tenant.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewTenant {
    /// The vendor's id of it.
    pub id: String,
    /// For people.
    pub name: String,
    /// Texts of its tags. `None`: the default tag; empty: none, and so it reaches no proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<String>>,
}

/// A tenant as it is listed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantDoc {
    /// The vendor's id of it.
    pub id: String,
    /// For people.
    pub name: String,
    /// Whether all its KMS configs must allow leasing.
    pub leasing_required: bool,
    /// Whether it was invited and has not accepted.
    pub invited: bool,
    /// Whether it has accepted.
    pub claimed: bool,
    /// Whether it is archived.
    pub archived: bool,
    /// Its tags.
    pub tags: Vec<String>,
    /// The organization that accepted for it; empty if none did.
    pub organization: String,
    /// That organization's Ed25519 key.
    pub organization_key: String,
    /// Whether the vendor vouches for that key.
    pub confirmed: bool,
    /// KMS configs that the organization has made. If there is one, only the tenant changes its assignments.
    pub own_kms: i64,
    /// When it was made, as Unix time in seconds.
    pub created: i64,
}

/// A new KMS config, or new contents of one.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KmsDoc {
    /// Its reserved, permanent number.
    pub id: i64,
    /// The kind of KMS.
    #[serde(rename = "type")]
    pub kind: String,
    /// Which key of that KMS. Not secret, and never changes.
    pub key_path: serde_json::Value,
    /// Version of the content's schema.
    pub schema: u16,
    /// 1 for a new one; one more than before for new contents.
    pub revision: i64,
    /// The epoch that it is sealed for.
    pub epoch: u32,
    /// Whether proxies may lease keys from it.
    pub leasing_allowed: bool,
    /// The sealed content.
    pub envelope: String,
    /// Who says that this is its kind and key path. Absent from older programs.
    #[serde(default)]
    pub path: SignedPath,
    /// The same for the vendor whom a tenant's config is assigned to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<Share>,
}

/// A signature under a KMS config's kind and key path, for who cannot open its content. Empty if nobody signed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SignedPath {
    /// Ed25519 key of who signed, in base64.
    pub signer: String,
    /// The signature, in base64.
    pub signature: String,
}

/// A KMS config as it is listed, without its content.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KmsSummary {
    /// Its number.
    pub id: i64,
    /// The kind of KMS.
    #[serde(rename = "type")]
    pub kind: String,
    /// Which key of that KMS.
    pub key_path: serde_json::Value,
    /// Counts its contents.
    pub revision: i64,
    /// Whether proxies may lease keys from it.
    pub leasing_allowed: bool,
    /// The vendor whose tenants those are; 0 if there are none.
    pub vendor: i64,
    /// The tenants that it is assigned to, and how.
    pub tenants: BTreeMap<String, AssignmentState>,
    /// Tenant secrets that it wraps.
    pub secrets: i64,
    /// Who made it.
    pub created_by: String,
    /// When, as Unix time in seconds.
    pub created: i64,
    /// When it was changed last.
    pub updated: i64,
}

/// How a KMS config is assigned to a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignmentState {
    /// Whether it may be used at all.
    pub active: bool,
    /// Whether new data is encrypted with it.
    pub primary: bool,
}

/// An assignment to be made or changed, and the signature of who makes it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Assign {
    /// How it is assigned.
    #[serde(flatten)]
    pub state: AssignmentState,
    /// Ed25519 key of the signer.
    pub signer: String,
    /// The signature.
    pub signature: String,
}

/// A tenant's logging configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoggingDoc {
    /// Its number.
    pub id: i64,
    /// Version of the content's schema.
    pub schema: u16,
    /// Counts its contents.
    pub revision: i64,
    /// The epoch that it is sealed for.
    pub epoch: u32,
    /// The sealed content.
    pub envelope: String,
}

/// A tenant's logging configuration as it is, without its content; numbers are 0 if there is none.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct LoggingState {
    /// Its number.
    pub id: i64,
    /// Counts its contents.
    pub revision: i64,
}

/// Who holds the segment's key: the public key that it is sealed to, and the vendor's word for it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Member {
    /// X25519 public key.
    pub key: String,
    /// The vendor's signature, without which nobody gets the next key: the broker could have made the member up.
    pub certificate: String,
}

/// All that is sealed to the segment, or holds its key. A rotation reads it with a [`Member`] for each holder, and writes it
/// with what is sealed to each.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sealed<H> {
    /// The state that this is. A rotation is refused if it is no longer the current one.
    pub version: i64,
    /// Accounts of proxies that are not revoked, by number.
    pub accounts: BTreeMap<i64, H>,
    /// Admins of the vendor, by number.
    pub admins: BTreeMap<i64, H>,
    /// KMS configs.
    pub kms: BTreeMap<i64, SealedContent>,
    /// Logging configurations.
    pub logging: BTreeMap<i64, SealedContent>,
}

/// One envelope.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SealedContent {
    /// Version of the content's schema.
    pub schema: u16,
    /// Counts its contents.
    pub revision: i64,
    /// The sealed content.
    pub envelope: String,
}

/// A new segment key, and all that is sealed for it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rotation {
    /// The new key.
    pub segment: SegmentDoc,
    /// Everything, sealed anew.
    pub sealed: Sealed<String>,
}

/// One line of the audit trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeDoc {
    /// Counts from 1. The state after it has this version.
    pub number: i64,
    /// Unix time in seconds.
    pub at: i64,
    /// Who did it.
    pub actor: String,
    /// What was done.
    pub action: String,
    /// To what.
    pub object: String,
    /// More about it, as JSON. Never a secret.
    pub detail: String,
    /// SHA-256 over all above and the hash of the line before, in hex.
    pub hash: String,
}

/// A tenant secret, wrapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretDoc {
    /// Its permanent number.
    pub id: i64,
    /// The tenant's id.
    pub tenant: String,
    /// What keys are derived for.
    #[serde(rename = "type")]
    pub secret_type: String,
    /// The path that chooses it.
    pub path: String,
    /// Where it is in its life.
    pub status: String,
    /// Number of the KMS config that wraps it.
    pub kms: i64,
    /// The EDEK.
    pub edek: String,
    /// When it was made, as Unix time in seconds.
    pub created: i64,
    /// When it came into its status.
    pub changed: i64,
}

/// An invitation's link, which is shown once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Invitation {
    /// What the invited person presents.
    pub token: String,
    /// Until when, as Unix time in seconds.
    pub expires: i64,
    /// Whether a mail is on its way.
    pub mailed: bool,
}

/// Whether an admin wants to hear by mail what is done in their organization.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Notify {
    /// Whether.
    pub notify: bool,
}

/// One step of the rotation of a tenant secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RotationStep {
    /// The current secret gives way to the one that the next derivation makes.
    Begin,
    /// The old secret's keys are not handed out any more.
    Commit,
}

/// Which tenant secret to rotate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RotateSecret {
    /// What keys are derived for.
    #[serde(rename = "type")]
    pub secret_type: String,
    /// The path that chooses it.
    pub path: String,
    /// What to do.
    pub step: RotationStep,
}

/// What of a tenant is to change; what is absent stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantChange {
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether all its KMS configs must allow leasing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leasing_required: Option<bool>,
    /// Texts of tags to add.
    #[serde(default)]
    pub tag_additions: Vec<String>,
    /// Texts of tags to take away.
    #[serde(default)]
    pub tag_removals: Vec<String>,
}

/// Whom to invite to the vendor's own organization.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InviteAdmin {
    /// The address.
    pub email: String,
    /// What they may do.
    pub role: Role,
}

/// An invited admin's answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AcceptAdmin {
    /// From the link.
    pub token: String,
    /// The new admin's keys.
    pub keys: AdminKeys,
}

/// Who the new admin is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Accepted {
    /// The vendor's number.
    pub vendor: i64,
    /// The address that was invited.
    pub email: String,
}

/// An admin as listed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdminDoc {
    /// The number.
    pub id: i64,
    /// The address.
    pub email: String,
    /// `admin` or `auditor`.
    pub role: String,
    /// X25519 public key; empty until the invitation was accepted.
    pub public_key: String,
    /// Whether the organization's keys are sealed to it.
    pub granted: bool,
    /// Whether they hear by mail what is done.
    pub notify: bool,
}

/// The vendor's keys for an admin who accepted.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Grant {
    /// The key that they are sealed to.
    pub public_key: String,
    /// The vendor's keys.
    pub sealed_keys: String,
    /// The vendor's word that the public key is a member's.
    pub certificate: String,
    /// The epoch of those keys.
    pub epoch: u32,
}
