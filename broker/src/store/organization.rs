//! Tenants' own organizations: how they come to be, which vendors they serve, and their configurations for those.
//!
//! A change of an organization's that concerns a vendor is a change of both: one transaction, a line in both trails. The
//! organization is locked before the vendor, by every change that locks two.

use std::collections::BTreeMap;

use serde_json::json;
use sqlx::Row as _;

use super::{Change, Result, Store, StoreError, kms::NewAssignment};
use crate::model::{
    AcceptTenant, AssignOwn, AssignmentState, Invited, LinkAssignment, LinkDoc, LoggingDoc,
    LoggingState, OrganizationKind, SegmentDoc, Share, VendorDoc,
};

const GONE: StoreError = StoreError::NotFound("the invitation is over, or was answered");

/// What an invitation vouches for.
#[derive(Debug)]
pub(crate) struct InvitationKeys {
    pub(crate) vendor: i64,
    pub(crate) vendor_key: String,
    pub(crate) tenant: String,
    /// Ed25519 key of the invitation; empty if its link has none.
    pub(crate) key: String,
}

impl Store {
    /// What an invitation that is still open is to, and two new numbers for its answer.
    pub(crate) async fn open_invitation(&self, hash: &str, now: i64) -> Result<Invited> {
        let row = sqlx::query(
            "SELECT v.id, v.name, v.vendor_key, v.epoch, v.segment_public, v.segment_signature, t.id, t.name, i.email \
             FROM invitations i JOIN tenants t ON t.number = i.tenant JOIN vendors v ON v.id = t.vendor \
             WHERE i.hash = $1 AND i.expires > $2",
        )
        .bind(hash)
        .bind(now)
        .fetch_optional(&self.pool)
        .await?;
        let row = row.ok_or(GONE)?;
        Ok(Invited {
            vendor: vendor_doc(&row)?,
            tenant: row.try_get(6)?,
            tenant_name: row.try_get(7)?,
            email: row.try_get(8)?,
            first: self.reserve(2).await?,
        })
    }

    /// What an answer to the invitation is checked against.
    pub(crate) async fn invitation_keys(&self, hash: &str, now: i64) -> Result<InvitationKeys> {
        let row: Option<(i64, String, String, String)> = sqlx::query_as(
            "SELECT v.id, v.vendor_key, t.id, i.key FROM invitations i JOIN tenants t ON t.number = i.tenant \
             JOIN vendors v ON v.id = t.vendor WHERE i.hash = $1 AND i.expires > $2",
        )
        .bind(hash)
        .bind(now)
        .fetch_optional(&self.pool)
        .await?;
        let (vendor, vendor_key, tenant, key) = row.ok_or(GONE)?;
        Ok(InvitationKeys {
            vendor,
            vendor_key,
            tenant,
            key,
        })
    }

    /// Takes an invitation's answer, once: by a new organization, or by the one that `member` is an admin of (with its number
    /// and the admin's address).
    pub(crate) async fn accept_tenant(
        &self,
        hash: &str,
        answer: &AcceptTenant,
        member: Option<(i64, &str)>,
        now: i64,
    ) -> Result<()> {
        let row: Option<(i64, String)> = sqlx::query_as(
            "SELECT t.vendor, i.email FROM invitations i JOIN tenants t ON t.number = i.tenant \
             WHERE i.hash = $1 AND i.expires > $2",
        )
        .bind(hash)
        .bind(now)
        .fetch_optional(&self.pool)
        .await?;
        let (vendor, email) = row.ok_or(GONE)?;
        let mut change = match (&answer.organization, member) {
            (Some(new), None) => {
                if new.email != email {
                    return Err(StoreError::Refused("the invitation is to another address"));
                }
                let mut change = self
                    .create_organization(new, OrganizationKind::Tenant, now)
                    .await?;
                // The next line of the same trail.
                change.turn_to(new.id, &format!("admin {email}")).await?;
                change
            }
            (None, Some((organization, member))) => {
                if member != email {
                    return Err(StoreError::Refused("the invitation is to another address"));
                }
                let actor = format!("admin {member}");
                self.change(organization, &actor, now).await?
            }
            (Some(_), Some(_)) | (None, None) => {
                return Err(StoreError::Refused(
                    "an invitation is answered by a new organization, or by that of a session",
                ));
            }
        };
        let organization = change.vendor;
        let object = format!("vendor {vendor}");
        change.note("link", object, &json!({})).await?;
        change.turn_to(vendor, &format!("invited {email}")).await?;
        // Of two answers at a time the second finds nothing to delete.
        let invitation: Option<(i64, String, String)> = sqlx::query_as(
            "DELETE FROM invitations WHERE hash = $1 RETURNING tenant, key, signature",
        )
        .bind(hash)
        .fetch_optional(&mut *change.tx)
        .await?;
        let (tenant, key, signature) = invitation.ok_or(GONE)?;
        let (key, signature) = if answer.voucher.is_empty() {
            (String::new(), String::new())
        } else {
            (key, signature)
        };
        let (id,): (String,) = sqlx::query_as(
            "UPDATE tenants SET organization = $1, claimed = 1, invitation_key = $2, invitation_signature = $3, \
             organization_signature = $4, link_signature = $5, updated = $6 WHERE number = $7 AND claimed = 0 RETURNING id",
        )
        .bind(organization)
        .bind(key)
        .bind(signature)
        .bind(&answer.voucher)
        .bind(&answer.link_signature)
        .bind(now)
        .bind(tenant)
        .fetch_optional(&mut *change.tx)
        .await?
        .ok_or(GONE)?;
        let detail =
            json!({ "organization": organization, "confirmed": !answer.voucher.is_empty() });
        change
            .commit("accept", format!("tenant {id}"), &detail)
            .await?;
        Ok(())
    }

    /// The vendors that an organization is a tenant of.
    pub(crate) async fn links(&self, organization: i64) -> Result<Vec<LinkDoc>> {
        let mut tx = self.begin_reading().await?;
        let rows: Vec<(i64, i64, String, i64, i64, i64)> = sqlx::query_as(
            "SELECT a.tenant, a.kms, k.kind, k.vendor, a.active, a.is_primary FROM assignments a \
             JOIN kms_configs k ON k.id = a.kms JOIN tenants t ON t.number = a.tenant WHERE t.organization = $1 ORDER BY a.kms",
        )
        .bind(organization)
        .fetch_all(&mut *tx)
        .await?;
        let mut assignments: BTreeMap<i64, Vec<LinkAssignment>> = BTreeMap::new();
        for (tenant, kms, kind, owner, active, primary) in rows {
            assignments.entry(tenant).or_default().push(LinkAssignment {
                kms,
                kind,
                own: owner == organization,
                state: AssignmentState {
                    active: active != 0,
                    primary: primary != 0,
                },
            });
        }
        let rows = sqlx::query(
            "SELECT v.id, v.name, v.vendor_key, v.epoch, v.segment_public, v.segment_signature, t.number, t.id, t.name, \
             t.organization_signature, t.archived, t.leasing_required, t.link_signature, \
             COALESCE((SELECT l.id FROM logging_configs l WHERE l.tenant = t.number), 0), \
             COALESCE((SELECT l.revision FROM logging_configs l WHERE l.tenant = t.number), 0) \
             FROM tenants t JOIN vendors v ON v.id = t.vendor WHERE t.organization = $1 ORDER BY t.number",
        )
        .bind(organization)
        .fetch_all(&mut *tx)
        .await?;
        let link = |row: &sqlx::any::AnyRow| {
            let flag = |at: usize| row.try_get::<i64, _>(at).map(|flag| flag != 0);
            Ok(LinkDoc {
                vendor: vendor_doc(row)?,
                assignments: assignments.remove(&row.try_get(6)?).unwrap_or_default(),
                tenant: row.try_get(7)?,
                tenant_name: row.try_get(8)?,
                confirmed: !row.try_get::<&str, _>(9)?.is_empty(),
                archived: flag(10)?,
                leasing_required: flag(11)?,
                link_signature: row.try_get(12)?,
                logging: LoggingState {
                    id: row.try_get(13)?,
                    revision: row.try_get(14)?,
                },
            })
        };
        rows.iter().map(link).collect()
    }
}

fn vendor_doc(row: &sqlx::any::AnyRow) -> Result<VendorDoc> {
    Ok(VendorDoc {
        id: row.try_get(0)?,
        name: row.try_get(1)?,
        key: row.try_get(2)?,
        segment: SegmentDoc {
            epoch: u32::try_from(row.try_get::<i64, _>(3)?).unwrap_or_default(),
            public_key: row.try_get(4)?,
            signature: row.try_get(5)?,
        },
    })
}

impl Change {
    /// Vouches for the organization of a tenant.
    pub(crate) async fn confirm_tenant(
        &mut self,
        id: &str,
        organization_key: &str,
        signature: &str,
    ) -> Result<()> {
        let confirmed = sqlx::query(
            "UPDATE tenants SET invitation_key = '', invitation_signature = '', organization_signature = $1, updated = $2 \
             WHERE vendor = $3 AND id = $4 AND organization IN (SELECT id FROM vendors WHERE vendor_key = $5)",
        )
        .bind(signature)
        .bind(self.at)
        .bind(self.vendor)
        .bind(id)
        .bind(organization_key)
        .execute(&mut *self.tx)
        .await?;
        if confirmed.rows_affected() == 0 {
            return Err(StoreError::NotFound(
                "there is no such tenant with an organization that has this key",
            ));
        }
        Ok(())
    }

    /// Goes on as a change of the vendor's, for its tenant `id` that is this organization's. Gives the tenant's number.
    async fn turn_to_tenant(&mut self, vendor: i64, id: &str) -> Result<i64> {
        let organization = self.vendor;
        let actor = format!("{} of organization {organization}", self.actor);
        self.turn_to(vendor, &actor).await?;
        let row: Option<(i64, i64, String)> = sqlx::query_as(
            "SELECT number, archived, organization_signature FROM tenants WHERE vendor = $1 AND id = $2 AND organization = $3",
        )
        .bind(vendor)
        .bind(id)
        .bind(organization)
        .fetch_optional(&mut *self.tx)
        .await?;
        let (number, archived, confirmed) = row.ok_or(StoreError::NotFound(
            "the organization has no such tenant at this vendor",
        ))?;
        if archived != 0 {
            return Err(StoreError::Refused("the vendor archived the tenant"));
        }
        if confirmed.is_empty() {
            return Err(StoreError::Refused(
                "the vendor has not confirmed the organization: tell its admin the code that `tenant accept` printed",
            ));
        }
        Ok(number)
    }

    /// Assigns a KMS config of the organization's own to its tenant at a vendor, or changes how any is assigned there.
    pub(crate) async fn assign_own(
        mut self,
        kms: i64,
        vendor: i64,
        tenant: &str,
        wanted: &AssignOwn,
    ) -> Result<()> {
        let organization = self.vendor;
        let state = wanted.state;
        let detail = json!({ "tenant": tenant, "active": state.active, "primary": state.primary });
        let object = format!("kms {kms}");
        let there = json!({ "vendor": vendor, "tenant": tenant, "active": state.active, "primary": state.primary });
        self.note("assign", &object, &there).await?;
        let number = self.turn_to_tenant(vendor, tenant).await?;
        let config: Option<(i64, i64, i64)> = sqlx::query_as(
            "SELECT vendor, revision, leasing_allowed FROM kms_configs WHERE id = $1",
        )
        .bind(kms)
        .fetch_optional(&mut *self.tx)
        .await?;
        let elsewhere: Vec<(i64,)> =
            sqlx::query_as("SELECT tenant FROM assignments WHERE kms = $1 AND tenant <> $2")
                .bind(kms)
                .bind(number)
                .fetch_all(&mut *self.tx)
                .await?;
        match (config, &wanted.own) {
            (Some((owner, revision, leasing_allowed)), Some(own)) if owner == organization => {
                if !elsewhere.is_empty() {
                    return Err(StoreError::Refused(
                        "it is assigned to another tenant: take it away there first",
                    ));
                }
                self.check_epoch(own.share.epoch)?;
                if own.share.revision != revision {
                    return Err(StoreError::Conflict(
                        "somebody else changed the KMS config meanwhile",
                    ));
                }
                let new = NewAssignment {
                    signer: &own.signer,
                    signature: &own.signature,
                    envelope: &own.share.envelope,
                    leasing_allowed: leasing_allowed != 0,
                };
                let row = self.tenant(tenant).await?;
                self.write_assignment(kms, row, state, &new).await?;
            }
            (Some((owner, ..)), None) if owner == vendor => {
                self.change_assignment(kms, number, state).await?;
            }
            _ => return Err(StoreError::NotFound("there is no such KMS config")),
        }
        self.commit("assign", object, &detail).await.map(drop)
    }

    /// Takes any KMS config away from the organization's tenant at a vendor.
    pub(crate) async fn unassign_own(mut self, kms: i64, vendor: i64, tenant: &str) -> Result<()> {
        let object = format!("kms {kms}");
        let there = json!({ "vendor": vendor, "tenant": tenant });
        self.note("unassign", &object, &there).await?;
        let number = self.turn_to_tenant(vendor, tenant).await?;
        self.delete_assignment(kms, number).await?;
        let detail = json!({ "tenant": tenant });
        self.commit("unassign", object, &detail).await.map(drop)
    }

    /// Puts new contents beside the assignment of a config of the organization's own, after the config itself was changed.
    pub(crate) async fn commit_own(
        mut self,
        kms: i64,
        share: Option<&Share>,
        detail: &serde_json::Value,
    ) -> Result<()> {
        let object = format!("kms {kms}");
        let assigned: Option<(i64, i64, String)> = sqlx::query_as(
            "SELECT t.number, t.vendor, t.id FROM assignments a JOIN tenants t ON t.number = a.tenant WHERE a.kms = $1",
        )
        .bind(kms)
        .fetch_optional(&mut *self.tx)
        .await?;
        match (assigned, share) {
            (None, None) => self.commit("update", object, detail).await.map(drop),
            (Some((tenant, vendor, id)), Some(share)) => {
                self.note("update", &object, detail).await?;
                let actor = format!("{} of organization {}", self.actor, self.vendor);
                self.turn_to(vendor, &actor).await?;
                self.check_epoch(share.epoch)?;
                sqlx::query(
                    "UPDATE assignments SET envelope = $1, updated = $2 WHERE kms = $3 AND tenant = $4",
                )
                .bind(&share.envelope)
                .bind(self.at)
                .bind(kms)
                .bind(tenant)
                .execute(&mut *self.tx)
                .await?;
                let detail = json!({ "tenant": id, "revision": share.revision });
                self.commit("update", object, &detail).await.map(drop)
            }
            (Some(_), None) | (None, Some(_)) => Err(StoreError::Conflict(
                "somebody else assigned the KMS config, or took it away, meanwhile",
            )),
        }
    }

    /// Sets the logging configuration of the organization's tenant at a vendor, or takes it away.
    pub(crate) async fn log_own(
        mut self,
        vendor: i64,
        tenant: &str,
        doc: Option<&LoggingDoc>,
    ) -> Result<()> {
        let organization = self.vendor;
        let object = format!("tenant {tenant}");
        let action = if doc.is_some() {
            "set logging"
        } else {
            "remove logging"
        };
        let detail = json!({ "vendor": vendor });
        self.note(action, &object, &detail).await?;
        self.turn_to_tenant(vendor, tenant).await?;
        let detail = match doc {
            Some(doc) => self.set_logging(tenant, doc, organization).await?,
            None => self.remove_logging(tenant, organization).await?,
        };
        self.commit(action, object, &detail).await.map(drop)
    }
}
