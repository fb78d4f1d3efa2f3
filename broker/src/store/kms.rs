//! KMS configs and their assignments.

use std::collections::BTreeMap;

use serde_json::json;
use sqlx::Row as _;
use tsp_wire::KmsConfigId;

use super::{Change, Result, Store, StoreError, tenant::TenantRow};
use crate::model::{Assign, AssignmentState, KmsDoc, KmsSummary, SealedContent};

impl Store {
    /// The vendor's KMS configs, without their contents.
    pub(crate) async fn kms_configs(&self, vendor: i64) -> Result<Vec<KmsSummary>> {
        let mut tx = self.begin_reading().await?;
        let rows: Vec<(i64, i64, String, i64, i64)> = sqlx::query_as(
            "SELECT a.kms, t.vendor, t.id, a.active, a.is_primary FROM assignments a JOIN tenants t ON t.number = a.tenant \
             JOIN kms_configs k ON k.id = a.kms WHERE k.vendor = $1",
        )
        .bind(vendor)
        .fetch_all(&mut *tx)
        .await?;
        let mut tenants: BTreeMap<i64, (i64, BTreeMap<String, AssignmentState>)> = BTreeMap::new();
        for (kms, of, tenant, active, primary) in rows {
            let state = AssignmentState {
                active: active != 0,
                primary: primary != 0,
            };
            let served = tenants.entry(kms).or_default();
            served.0 = of;
            served.1.insert(tenant, state);
        }
        let rows = sqlx::query(
            "SELECT id, kind, key_path, revision, leasing_allowed, created_by, created, updated, \
             (SELECT COUNT(*) FROM secrets s WHERE s.kms = kms_configs.id) FROM kms_configs WHERE vendor = $1 ORDER BY id",
        )
        .bind(vendor)
        .fetch_all(&mut *tx)
        .await?;
        let mut configs = Vec::with_capacity(rows.len());
        for row in rows {
            let id = row.try_get(0)?;
            let (of, tenants) = tenants.remove(&id).unwrap_or_default();
            configs.push(KmsSummary {
                id,
                kind: row.try_get(1)?,
                key_path: serde_json::from_str(row.try_get(2)?).unwrap_or_default(),
                revision: row.try_get(3)?,
                leasing_allowed: row.try_get::<i64, _>(4)? != 0,
                vendor: of,
                tenants,
                secrets: row.try_get(8)?,
                created_by: row.try_get(5)?,
                created: row.try_get(6)?,
                updated: row.try_get(7)?,
            });
        }
        Ok(configs)
    }
}

/// What an assignment has besides its state.
#[derive(Debug)]
pub(super) struct NewAssignment<'a> {
    pub(super) signer: &'a str,
    pub(super) signature: &'a str,
    /// Of a tenant's own config, sealed to the vendor's segment; else empty.
    pub(super) envelope: &'a str,
    pub(super) leasing_allowed: bool,
}

impl Store {
    /// A KMS config as it is sealed to its own organization.
    pub(crate) async fn kms_content(&self, vendor: i64, id: i64) -> Result<SealedContent> {
        let row: Option<(i64, i64, String)> = sqlx::query_as(
            "SELECT content_schema, revision, envelope FROM kms_configs WHERE vendor = $1 AND id = $2",
        )
        .bind(vendor)
        .bind(id)
        .fetch_optional(&self.pool)
        .await?;
        let (schema, revision, envelope) =
            row.ok_or(StoreError::NotFound("there is no such KMS config"))?;
        Ok(SealedContent {
            schema: u16::try_from(schema).unwrap_or(u16::MAX),
            revision,
            envelope,
        })
    }
}

impl Change {
    /// Adds a KMS config.
    pub(crate) async fn create_kms(&mut self, doc: &KmsDoc) -> Result<()> {
        self.check_epoch(doc.epoch)?;
        if doc.revision != 1 || KmsConfigId::new(doc.id).is_none() {
            return Err(StoreError::Refused(
                "a new KMS config has revision 1 and a number that was reserved for it",
            ));
        }
        sqlx::query(
            "INSERT INTO kms_configs \
             (id, vendor, kind, key_path, content_schema, revision, leasing_allowed, envelope, created_by, created, updated, \
             path_signer, path_signature) \
             VALUES ($1, $2, $3, $4, $5, 1, $6, $7, $8, $9, $9, $10, $11)",
        )
        .bind(doc.id)
        .bind(self.vendor)
        .bind(&doc.kind)
        .bind(doc.key_path.to_string())
        .bind(i64::from(doc.schema))
        .bind(i64::from(doc.leasing_allowed))
        .bind(&doc.envelope)
        .bind(self.actor.clone())
        .bind(self.at)
        .bind(&doc.path.signer)
        .bind(&doc.path.signature)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Gives a KMS config new contents: other credentials for the same key.
    pub(crate) async fn update_kms(&mut self, doc: &KmsDoc) -> Result<()> {
        self.check_epoch(doc.epoch)?;
        let row: Option<(String, String, i64)> = sqlx::query_as(
            "SELECT kind, key_path, revision FROM kms_configs WHERE vendor = $1 AND id = $2",
        )
        .bind(self.vendor)
        .bind(doc.id)
        .fetch_optional(&mut *self.tx)
        .await?;
        let (kind, key_path, revision) =
            row.ok_or(StoreError::NotFound("there is no such KMS config"))?;
        let key_path: serde_json::Value = serde_json::from_str(&key_path).unwrap_or_default();
        if kind != doc.kind || key_path != doc.key_path {
            return Err(StoreError::Refused(
                "type and key path of a KMS config never change: what was encrypted with it needs that key",
            ));
        }
        if doc.revision != revision + 1 {
            return Err(StoreError::Conflict(
                "somebody else changed the KMS config meanwhile",
            ));
        }
        if !doc.leasing_allowed {
            self.leasing_is_not_required(doc.id).await?;
        }
        sqlx::query(
            "UPDATE kms_configs SET content_schema = $1, revision = $2, leasing_allowed = $3, envelope = $4, updated = $5, \
             path_signer = $7, path_signature = $8 WHERE id = $6",
        )
        .bind(i64::from(doc.schema))
        .bind(doc.revision)
        .bind(i64::from(doc.leasing_allowed))
        .bind(&doc.envelope)
        .bind(self.at)
        .bind(doc.id)
        .bind(&doc.path.signer)
        .bind(&doc.path.signature)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    pub(super) async fn leasing_is_not_required(&mut self, kms: i64) -> Result<()> {
        let (required,): (i64,) = sqlx::query_as(
            "SELECT COUNT(*) FROM assignments a JOIN tenants t ON t.number = a.tenant \
             WHERE a.kms = $1 AND t.leasing_required = 1",
        )
        .bind(kms)
        .fetch_one(&mut *self.tx)
        .await?;
        if required > 0 {
            return Err(StoreError::Refused(
                "a tenant that it is assigned to requires leasing",
            ));
        }
        Ok(())
    }

    /// Deletes a KMS config that is assigned to nobody, and the tenant secrets that only it opens.
    pub(crate) async fn delete_kms(mut self, id: i64) -> Result<()> {
        self.kms_leasing(id).await?;
        let (assignments,): (i64,) =
            sqlx::query_as("SELECT COUNT(*) FROM assignments WHERE kms = $1")
                .bind(id)
                .fetch_one(&mut *self.tx)
                .await?;
        if assignments > 0 {
            return Err(StoreError::Refused("it is still assigned to tenants"));
        }
        // A tenant's config may have been of use at several vendors, one after the other.
        let vendors: Vec<(i64,)> = sqlx::query_as(
            "SELECT DISTINCT t.vendor FROM secrets s JOIN tenants t ON t.number = s.tenant \
             WHERE s.kms = $1 AND t.vendor <> $2 ORDER BY t.vendor",
        )
        .bind(id)
        .bind(self.vendor)
        .fetch_all(&mut *self.tx)
        .await?;
        let secrets = sqlx::query("DELETE FROM secrets WHERE kms = $1")
            .bind(id)
            .execute(&mut *self.tx)
            .await?;
        sqlx::query("DELETE FROM kms_configs WHERE id = $1")
            .bind(id)
            .execute(&mut *self.tx)
            .await?;
        let (object, detail) = (
            format!("kms {id}"),
            json!({ "secrets": secrets.rows_affected() }),
        );
        self.note("delete", &object, &detail).await?;
        let actor = format!("{} of organization {}", self.actor, self.vendor);
        for (vendor,) in vendors {
            self.turn_to(vendor, &actor).await?;
            self.note("delete", &object, &json!({})).await?;
        }
        Ok(self.tx.commit().await?)
    }

    /// Whether the KMS config allows leasing.
    pub(super) async fn kms_leasing(&mut self, id: i64) -> Result<bool> {
        let row: Option<(i64,)> =
            sqlx::query_as("SELECT leasing_allowed FROM kms_configs WHERE vendor = $1 AND id = $2")
                .bind(self.vendor)
                .bind(id)
                .fetch_optional(&mut *self.tx)
                .await?;
        row.map(|(leasing,)| leasing != 0)
            .ok_or(StoreError::NotFound("there is no such KMS config"))
    }

    /// Assigns a KMS config to a tenant, or changes how it is assigned. A new primary takes the place of the old one.
    pub(crate) async fn assign(&mut self, kms: i64, tenant: &str, wanted: &Assign) -> Result<()> {
        let leasing_allowed = self.kms_leasing(kms).await?;
        let tenant = self.tenant(tenant).await?;
        tenant.not_its_own()?;
        let new = NewAssignment {
            signer: &wanted.signer,
            signature: &wanted.signature,
            envelope: "",
            leasing_allowed,
        };
        self.write_assignment(kms, tenant, wanted.state, &new).await
    }

    /// Stores an assignment, or changes it.
    pub(super) async fn write_assignment(
        &mut self,
        kms: i64,
        tenant: TenantRow,
        state: AssignmentState,
        new: &NewAssignment<'_>,
    ) -> Result<()> {
        if tenant.leasing_required && !new.leasing_allowed {
            return Err(StoreError::Refused(
                "the tenant requires leasing, and the KMS config does not allow it",
            ));
        }
        self.make_room(kms, tenant.number, state).await?;
        sqlx::query(
            "INSERT INTO assignments \
             (tenant, kms, active, is_primary, created_by, created, updated, signer, signature, envelope) \
             VALUES ($1, $2, $3, $4, $5, $6, $6, $7, $8, $9) ON CONFLICT (tenant, kms) DO UPDATE SET active = excluded.active, \
             is_primary = excluded.is_primary, updated = excluded.updated, signer = excluded.signer, \
             signature = excluded.signature, envelope = excluded.envelope",
        )
        .bind(tenant.number)
        .bind(kms)
        .bind(i64::from(state.active))
        .bind(i64::from(state.primary))
        .bind(self.actor.clone())
        .bind(self.at)
        .bind(new.signer)
        .bind(new.signature)
        .bind(new.envelope)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Changes how a KMS config is assigned.
    pub(super) async fn change_assignment(
        &mut self,
        kms: i64,
        tenant: i64,
        state: AssignmentState,
    ) -> Result<()> {
        self.make_room(kms, tenant, state).await?;
        let changed = sqlx::query(
            "UPDATE assignments SET active = $1, is_primary = $2, updated = $3 WHERE tenant = $4 AND kms = $5",
        )
        .bind(i64::from(state.active))
        .bind(i64::from(state.primary))
        .bind(self.at)
        .bind(tenant)
        .bind(kms)
        .execute(&mut *self.tx)
        .await?;
        if changed.rows_affected() == 0 {
            return Err(StoreError::NotFound("it is not assigned to this tenant"));
        }
        Ok(())
    }

    /// Takes the primary's place, if `state` is to have it.
    async fn make_room(&mut self, kms: i64, tenant: i64, state: AssignmentState) -> Result<()> {
        if state.primary && !state.active {
            return Err(StoreError::Refused(
                "only an active assignment can be primary",
            ));
        }
        if state.primary {
            sqlx::query(
                "UPDATE assignments SET is_primary = 0, updated = $1 WHERE tenant = $2 AND is_primary = 1 AND kms <> $3",
            )
            .bind(self.at)
            .bind(tenant)
            .bind(kms)
            .execute(&mut *self.tx)
            .await?;
        }
        Ok(())
    }

    /// Takes an assignment away.
    pub(crate) async fn unassign(&mut self, kms: i64, tenant: &str) -> Result<()> {
        let tenant = self.tenant(tenant).await?;
        tenant.not_its_own()?;
        self.delete_assignment(kms, tenant.number).await
    }

    /// Takes an assignment away from the tenant with this number.
    pub(super) async fn delete_assignment(&mut self, kms: i64, tenant: i64) -> Result<()> {
        let gone = sqlx::query("DELETE FROM assignments WHERE tenant = $1 AND kms = $2")
            .bind(tenant)
            .bind(kms)
            .execute(&mut *self.tx)
            .await?;
        if gone.rows_affected() == 0 {
            return Err(StoreError::NotFound("it is not assigned to this tenant"));
        }
        sqlx::query("UPDATE tenants SET config_deleted = $1 WHERE number = $2")
            .bind(self.at)
            .bind(tenant)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }
}
