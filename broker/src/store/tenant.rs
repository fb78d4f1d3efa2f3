//! Tenants, tags and invitations.

use serde_json::json;
use sqlx::Row as _;
use tsp_wire::TenantId;

use super::{Change, Result, Store, StoreError, account::grouped, is_name};
use crate::model::{
    Invite, LoggingDoc, LoggingState, NewTenant, RotateSecret, RotationStep, TenantChange,
    TenantDoc,
};

/// How long an invitation can be answered, in seconds.
pub(crate) const INVITATION_S: i64 = 7 * 24 * 60 * 60;

/// How long after its last KMS config was deleted a tenant can be deleted, in seconds: longer than a proxy that is cut off may
/// hold the config.
const DELETE_AFTER_S: i64 = 36 * 60 * 60;

/// A tenant that a change is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TenantRow {
    pub(crate) number: i64,
    pub(crate) leasing_required: bool,
    pub(crate) claimed: bool,
    pub(crate) config_deleted: i64,
    /// Whether its organization has made a KMS config.
    pub(crate) has_own: bool,
}

impl TenantRow {
    /// Refuses what only a vendor does for a tenant that leaves its keys to the vendor.
    pub(crate) fn not_its_own(&self) -> Result<()> {
        if self.has_own {
            return Err(StoreError::Refused(
                "the tenant has KMS configs of its own, and says itself which ones serve it",
            ));
        }
        Ok(())
    }
}

impl Store {
    /// The vendor's tenants.
    pub(crate) async fn tenants(&self, vendor: i64) -> Result<Vec<TenantDoc>> {
        let mut tx = self.begin_reading().await?;
        let tags = sqlx::query_as(
            "SELECT tt.tenant, t.text FROM tenant_tags tt JOIN tags t ON t.id = tt.tag WHERE t.vendor = $1 ORDER BY t.text",
        )
        .bind(vendor)
        .fetch_all(&mut *tx)
        .await?;
        let mut tags = grouped::<i64, String>(tags);
        let rows = sqlx::query(
            "SELECT t.number, t.id, t.name, t.leasing_required, t.claimed, t.archived, t.created, \
             (SELECT COUNT(*) FROM invitations i WHERE i.tenant = t.number), COALESCE(o.name, ''), COALESCE(o.vendor_key, ''), \
             t.organization_signature, (SELECT COUNT(*) FROM kms_configs k WHERE k.vendor = t.organization) \
             FROM tenants t LEFT JOIN vendors o ON o.id = t.organization WHERE t.vendor = $1 ORDER BY t.number",
        )
        .bind(vendor)
        .fetch_all(&mut *tx)
        .await?;
        let mut docs = Vec::with_capacity(rows.len());
        for row in rows {
            let flag = |at: usize| row.try_get::<i64, _>(at).map(|flag| flag != 0);
            let claimed = flag(4)?;
            docs.push(TenantDoc {
                id: row.try_get(1)?,
                name: row.try_get(2)?,
                leasing_required: flag(3)?,
                invited: !claimed && flag(7)?,
                claimed,
                archived: flag(5)?,
                tags: tags.remove(&row.try_get(0)?).unwrap_or_default(),
                organization: row.try_get(8)?,
                organization_key: row.try_get(9)?,
                confirmed: !row.try_get::<&str, _>(10)?.is_empty(),
                own_kms: row.try_get(11)?,
                created: row.try_get(6)?,
            });
        }
        Ok(docs)
    }

    /// The tenant's logging configuration as it is.
    pub(crate) async fn logging_state(&self, vendor: i64, tenant: &str) -> Result<LoggingState> {
        let row: Option<(i64, i64)> = sqlx::query_as(
            "SELECT l.id, l.revision FROM logging_configs l JOIN tenants t ON t.number = l.tenant \
             WHERE t.vendor = $1 AND t.id = $2",
        )
        .bind(vendor)
        .bind(tenant)
        .fetch_optional(&self.pool)
        .await?;
        let (id, revision) = row.unwrap_or_default();
        Ok(LoggingState { id, revision })
    }
}

impl Change {
    /// The numbers of the tags with these texts, made if they are not there; of the default tag if there are no texts.
    pub(crate) async fn tags(&mut self, texts: &[String]) -> Result<Vec<i64>> {
        if texts.is_empty() {
            let tags: Vec<(i64,)> =
                sqlx::query_as("SELECT id FROM tags WHERE vendor = $1 AND is_default = 1")
                    .bind(self.vendor)
                    .fetch_all(&mut *self.tx)
                    .await?;
            return Ok(tags.into_iter().map(|(id,)| id).collect());
        }
        let mut tags = Vec::with_capacity(texts.len());
        for text in texts {
            if !is_name(text) {
                return Err(StoreError::Refused("a tag's text is empty or too long"));
            }
            let id = super::reserve(&mut self.tx, 1).await?;
            // Updates nothing, but gives the number that is there.
            let (id,): (i64,) = sqlx::query_as(
                "INSERT INTO tags (id, vendor, text, is_default, created) VALUES ($1, $2, $3, 0, $4) \
                 ON CONFLICT (vendor, text) DO UPDATE SET text = excluded.text RETURNING id",
            )
            .bind(id)
            .bind(self.vendor)
            .bind(text)
            .bind(self.at)
            .fetch_one(&mut *self.tx)
            .await?;
            if !tags.contains(&id) {
                tags.push(id);
            }
        }
        Ok(tags)
    }

    /// Adds a tenant.
    pub(crate) async fn create_tenant(&mut self, new: &NewTenant) -> Result<()> {
        if !TenantId::is_valid(&new.id) {
            return Err(StoreError::Refused(
                "a tenant's id has 1 to 256 bytes without control characters",
            ));
        }
        if !is_name(&new.name) {
            return Err(StoreError::Refused("the name is empty or too long"));
        }
        let number = super::reserve(&mut self.tx, 1).await?;
        let added = sqlx::query(
            "INSERT INTO tenants (number, vendor, id, name, leasing_required, claimed, archived, config_deleted, created, updated, created_by) \
             SELECT $1, $2, $3, $4, leasing_required, 0, 0, 0, $5, $5, $6 FROM vendors WHERE id = $2 \
             ON CONFLICT (vendor, id) DO NOTHING",
        )
        .bind(number)
        .bind(self.vendor)
        .bind(&new.id)
        .bind(&new.name)
        .bind(self.at)
        .bind(self.actor.clone())
        .execute(&mut *self.tx)
        .await?;
        if added.rows_affected() == 0 {
            return Err(StoreError::Refused("there is a tenant with this id"));
        }
        let tags = match &new.tags {
            None => self.tags(&[]).await?,
            Some(texts) if texts.is_empty() => Vec::new(),
            Some(texts) => self.tags(texts).await?,
        };
        for tag in tags {
            sqlx::query("INSERT INTO tenant_tags (tenant, tag) VALUES ($1, $2)")
                .bind(number)
                .bind(tag)
                .execute(&mut *self.tx)
                .await?;
        }
        Ok(())
    }

    /// The tenant with this id.
    pub(crate) async fn tenant(&mut self, id: &str) -> Result<TenantRow> {
        let row: Option<(i64, i64, i64, i64, i64)> = sqlx::query_as(
            "SELECT number, leasing_required, claimed, config_deleted, \
             (SELECT COUNT(*) FROM kms_configs k WHERE k.vendor = tenants.organization) \
             FROM tenants WHERE vendor = $1 AND id = $2",
        )
        .bind(self.vendor)
        // PostgreSQL's text has no NUL, and no tenant's id has one.
        .bind(id.replace('\0', "\u{1}"))
        .fetch_optional(&mut *self.tx)
        .await?;
        let (number, leasing_required, claimed, config_deleted, own) =
            row.ok_or(StoreError::NotFound("there is no such tenant"))?;
        Ok(TenantRow {
            number,
            leasing_required: leasing_required != 0,
            claimed: claimed != 0,
            config_deleted,
            has_own: own > 0,
        })
    }

    /// Changes a tenant.
    pub(crate) async fn update_tenant(&mut self, id: &str, wanted: &TenantChange) -> Result<()> {
        let tenant = self.tenant(id).await?;
        if let Some(name) = &wanted.name {
            if !is_name(name) {
                return Err(StoreError::Refused("the name is empty or too long"));
            }
            sqlx::query("UPDATE tenants SET name = $1 WHERE number = $2")
                .bind(name)
                .bind(tenant.number)
                .execute(&mut *self.tx)
                .await?;
        }
        if let Some(required) = wanted.leasing_required {
            let (without,): (i64,) = sqlx::query_as(
                "SELECT COUNT(*) FROM assignments a JOIN kms_configs k ON k.id = a.kms \
                 WHERE a.tenant = $1 AND k.leasing_allowed = 0",
            )
            .bind(tenant.number)
            .fetch_one(&mut *self.tx)
            .await?;
            if required && without > 0 {
                return Err(StoreError::Refused(
                    "a KMS config of the tenant's does not allow leasing",
                ));
            }
            sqlx::query("UPDATE tenants SET leasing_required = $1 WHERE number = $2")
                .bind(i64::from(required))
                .bind(tenant.number)
                .execute(&mut *self.tx)
                .await?;
        }
        if !wanted.tag_additions.is_empty() {
            for tag in self.tags(&wanted.tag_additions).await? {
                sqlx::query("INSERT INTO tenant_tags (tenant, tag) VALUES ($1, $2) ON CONFLICT (tenant, tag) DO NOTHING")
                    .bind(tenant.number)
                    .bind(tag)
                    .execute(&mut *self.tx)
                    .await?;
            }
        }
        for text in &wanted.tag_removals {
            sqlx::query(
                "DELETE FROM tenant_tags WHERE tenant = $1 AND tag IN (SELECT id FROM tags WHERE vendor = $2 AND text = $3)",
            )
            .bind(tenant.number)
            .bind(self.vendor)
            .bind(text)
            .execute(&mut *self.tx)
            .await?;
        }
        sqlx::query("UPDATE tenants SET updated = $1 WHERE number = $2")
            .bind(self.at)
            .bind(tenant.number)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// One step of the rotation of a tenant secret. Gives its number.
    pub(crate) async fn rotate_secret(
        &mut self,
        tenant: &str,
        wanted: &RotateSecret,
    ) -> Result<i64> {
        let tenant = self.tenant(tenant).await?;
        let rows: Vec<(i64, String)> = sqlx::query_as(
            "SELECT id, status FROM secrets WHERE tenant = $1 AND type = $2 AND path = $3 AND status <> 'archived'",
        )
        .bind(tenant.number)
        .bind(&wanted.secret_type)
        .bind(wanted.path.replace('\0', "\u{1}"))
        .fetch_all(&mut *self.tx)
        .await?;
        let of = |status: &str| {
            let mut rows = rows.iter();
            rows.find(|(_, found)| found == status).map(|(id, _)| *id)
        };
        let (id, status) = match (wanted.step, of("current"), of("in-rotation")) {
            (RotationStep::Begin, Some(id), None) => (id, "in-rotation"),
            (RotationStep::Begin, None, None) => {
                return Err(StoreError::NotFound(
                    "there is no current secret, so there is nothing to rotate",
                ));
            }
            (RotationStep::Begin, _, Some(_)) => {
                return Err(StoreError::Refused(
                    "a rotation is under way already; commit that one first, when all its data is encrypted anew",
                ));
            }
            (RotationStep::Commit, Some(_), Some(id)) => (id, "archived"),
            (RotationStep::Commit, None, Some(_)) => {
                return Err(StoreError::Refused(
                    "there is no new current secret yet: no key was derived since the rotation began",
                ));
            }
            (RotationStep::Commit, _, None) => {
                return Err(StoreError::NotFound("no rotation is under way"));
            }
        };
        sqlx::query("UPDATE secrets SET status = $1, changed = $2 WHERE id = $3")
            .bind(status)
            .bind(self.at)
            .bind(id)
            .execute(&mut *self.tx)
            .await?;
        Ok(id)
    }

    /// Deletes a tenant that has never been claimed and has had no KMS config for long enough.
    pub(crate) async fn delete_tenant(&mut self, id: &str) -> Result<()> {
        let tenant = self.tenant(id).await?;
        if tenant.claimed {
            return Err(StoreError::Refused(
                "the tenant has claimed its account: it can be archived, not deleted",
            ));
        }
        let (configs,): (i64,) = sqlx::query_as(
            "SELECT (SELECT COUNT(*) FROM assignments WHERE tenant = $1) + (SELECT COUNT(*) FROM secrets WHERE tenant = $1)",
        )
        .bind(tenant.number)
        .fetch_one(&mut *self.tx)
        .await?;
        if configs > 0 {
            return Err(StoreError::Refused(
                "the tenant still has KMS configs assigned, or secrets",
            ));
        }
        if tenant.config_deleted > 0 && self.at < tenant.config_deleted + DELETE_AFTER_S {
            return Err(StoreError::Refused(
                "its last KMS config went less than 36 hours ago, and a proxy may still hold it",
            ));
        }
        for statement in [
            "DELETE FROM tenant_tags WHERE tenant = $1",
            "DELETE FROM invitations WHERE tenant = $1",
            "DELETE FROM logging_configs WHERE tenant = $1",
            "DELETE FROM tenants WHERE number = $1",
        ] {
            sqlx::query(statement)
                .bind(tenant.number)
                .execute(&mut *self.tx)
                .await?;
        }
        Ok(())
    }

    /// Archives a tenant: it reaches no proxy any more. There is no way back.
    pub(crate) async fn archive_tenant(&mut self, id: &str) -> Result<()> {
        let tenant = self.tenant(id).await?;
        sqlx::query("UPDATE tenants SET archived = 1, updated = $1 WHERE number = $2")
            .bind(self.at)
            .bind(tenant.number)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Stores an invitation in the place of earlier ones. Its link's token is known to the store by its hash.
    pub(crate) async fn invite(&mut self, id: &str, invite: &Invite, hash: &str) -> Result<i64> {
        if !super::admin::is_email(&invite.email) {
            return Err(StoreError::Refused("that is no e-mail address"));
        }
        let tenant = self.tenant(id).await?;
        if tenant.claimed {
            return Err(StoreError::Refused("the tenant has accepted already"));
        }
        sqlx::query("DELETE FROM invitations WHERE tenant = $1")
            .bind(tenant.number)
            .execute(&mut *self.tx)
            .await?;
        let expires = self.at.saturating_add(INVITATION_S);
        sqlx::query(
            "INSERT INTO invitations (hash, tenant, email, expires, key, signature) VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(hash)
        .bind(tenant.number)
        .bind(&invite.email)
        .bind(expires)
        .bind(&invite.key)
        .bind(&invite.signature)
        .execute(&mut *self.tx)
        .await?;
        Ok(expires)
    }

    /// The tenant's logging configuration as it is, for `owner` to change: one that the tenant made is the tenant's alone.
    async fn logging_of(&mut self, tenant: i64, owner: i64) -> Result<Option<(i64, i64)>> {
        let there: Option<(i64, i64, i64)> =
            sqlx::query_as("SELECT id, revision, owner FROM logging_configs WHERE tenant = $1")
                .bind(tenant)
                .fetch_optional(&mut *self.tx)
                .await?;
        if let Some((_, _, other)) = there
            && other != owner
            && owner == self.vendor
        {
            return Err(StoreError::Refused(
                "the tenant has made its logging configuration itself",
            ));
        }
        Ok(there.map(|(id, revision, _)| (id, revision)))
    }

    /// Takes a tenant's logging configuration away.
    pub(crate) async fn remove_logging(
        &mut self,
        tenant: &str,
        owner: i64,
    ) -> Result<serde_json::Value> {
        let tenant = self.tenant(tenant).await?;
        let there = self.logging_of(tenant.number, owner).await?;
        let (id, _) = there.ok_or(StoreError::NotFound("there is no logging configuration"))?;
        sqlx::query("DELETE FROM logging_configs WHERE tenant = $1")
            .bind(tenant.number)
            .execute(&mut *self.tx)
            .await?;
        Ok(json!({ "id": id }))
    }

    /// Sets a tenant's logging configuration, as `owner`: the vendor, or the tenant's organization.
    pub(crate) async fn set_logging(
        &mut self,
        tenant: &str,
        doc: &LoggingDoc,
        owner: i64,
    ) -> Result<serde_json::Value> {
        self.check_epoch(doc.epoch)?;
        let tenant = self.tenant(tenant).await?;
        let there = self.logging_of(tenant.number, owner).await?;
        let (id, revision) = there.unwrap_or((doc.id, 0));
        if doc.id != id || doc.revision != revision + 1 {
            return Err(StoreError::Conflict(
                "somebody else changed the logging configuration meanwhile",
            ));
        }
        sqlx::query(
            "INSERT INTO logging_configs (id, tenant, content_schema, revision, envelope, updated, owner) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (id) DO UPDATE SET content_schema = excluded.content_schema, \
             revision = excluded.revision, envelope = excluded.envelope, updated = excluded.updated, owner = excluded.owner",
        )
        .bind(doc.id)
        .bind(tenant.number)
        .bind(i64::from(doc.schema))
        .bind(doc.revision)
        .bind(&doc.envelope)
        .bind(self.at)
        .bind(owner)
        .execute(&mut *self.tx)
        .await?;
        Ok(json!({ "id": doc.id, "revision": doc.revision }))
    }
}
