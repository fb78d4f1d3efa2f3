//! Tags by their numbers, as a vendor bridge names them.

use super::{Change, Result, StoreError, is_name};
use crate::{
    bridge::{
        call::{UpdateTenant, WhichSecret},
        shapes::{Tag, Timestamp},
    },
    model::{AssignmentState, RotateSecret, RotationStep, TenantChange},
};

const NO_TAG: StoreError = StoreError::Refused("there is no such tag");

impl Change {
    /// Adds a tag that is not there yet.
    pub(crate) async fn create_tag(&mut self, text: &str) -> Result<Tag> {
        if !is_name(text) {
            return Err(StoreError::Refused("a tag's text is empty or too long"));
        }
        let id = super::reserve(&mut self.tx, 1).await?;
        let added = sqlx::query(
            "INSERT INTO tags (id, vendor, text, is_default, created) VALUES ($1, $2, $3, 0, $4) \
             ON CONFLICT (vendor, text) DO NOTHING",
        )
        .bind(id)
        .bind(self.vendor)
        .bind(text)
        .bind(self.at)
        .execute(&mut *self.tx)
        .await?;
        if added.rows_affected() == 0 {
            return Err(StoreError::Conflict("there is a tag with this text"));
        }
        Ok(Tag {
            id,
            tag_text: text.to_owned(),
            default: false,
            created: Timestamp(self.at),
        })
    }

    /// Makes sure that these are tags of the vendor's.
    pub(crate) async fn check_tags(&mut self, tags: &[i64]) -> Result<()> {
        for tag in tags {
            let there: Option<(i64,)> =
                sqlx::query_as("SELECT id FROM tags WHERE vendor = $1 AND id = $2")
                    .bind(self.vendor)
                    .bind(tag)
                    .fetch_optional(&mut *self.tx)
                    .await?;
            there.ok_or(NO_TAG)?;
        }
        Ok(())
    }

    /// Gives a tenant a tag.
    pub(crate) async fn tag_tenant(&mut self, tag: i64, tenant: &str) -> Result<()> {
        let tenant = self.tenant(tenant).await?;
        sqlx::query(
            "INSERT INTO tenant_tags (tenant, tag) VALUES ($1, $2) ON CONFLICT (tenant, tag) DO NOTHING",
        )
        .bind(tenant.number)
        .bind(tag)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Takes a tag away from a tenant.
    pub(crate) async fn untag_tenant(&mut self, tag: i64, tenant: &str) -> Result<()> {
        let tenant = self.tenant(tenant).await?;
        sqlx::query("DELETE FROM tenant_tags WHERE tenant = $1 AND tag = $2")
            .bind(tenant.number)
            .bind(tag)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Deletes those of the vendor's tags that lost their last tenant and limit no account either. The default one stays, and so
    /// does one that was never used.
    pub(crate) async fn drop_unused(&mut self, tags: &[i64]) -> Result<()> {
        for tag in tags {
            sqlx::query(
                "DELETE FROM tags WHERE vendor = $1 AND id = $2 AND is_default = 0 \
                 AND NOT EXISTS (SELECT 1 FROM tenant_tags tt WHERE tt.tag = tags.id) \
                 AND NOT EXISTS (SELECT 1 FROM account_tags a WHERE a.tag = tags.id)",
            )
            .bind(self.vendor)
            .bind(tag)
            .execute(&mut *self.tx)
            .await?;
        }
        Ok(())
    }

    /// Numbers of a tenant's tags.
    pub(crate) async fn tags_of(&mut self, tenant: &str) -> Result<Vec<i64>> {
        let tenant = self.tenant(tenant).await?;
        let tags: Vec<(i64,)> = sqlx::query_as("SELECT tag FROM tenant_tags WHERE tenant = $1")
            .bind(tenant.number)
            .fetch_all(&mut *self.tx)
            .await?;
        Ok(tags.into_iter().map(|(tag,)| tag).collect())
    }

    /// Changes a tenant as a bridge wants it.
    pub(crate) async fn change_tenant(&mut self, wanted: &UpdateTenant) -> Result<()> {
        let change = TenantChange {
            name: wanted.name.clone(),
            leasing_required: wanted.leasing_required,
            ..TenantChange::default()
        };
        self.update_tenant(&wanted.id, &change).await?;
        self.check_tags(&wanted.tag_additions).await?;
        self.check_tags(&wanted.tag_removals).await?;
        for tag in &wanted.tag_additions {
            self.tag_tenant(*tag, &wanted.id).await?;
        }
        for tag in &wanted.tag_removals {
            self.untag_tenant(*tag, &wanted.id).await?;
        }
        self.drop_unused(&wanted.tag_removals).await
    }

    /// One step of a rotation. A secret that is named by its number must be the one whose turn it is.
    pub(crate) async fn rotate_which(
        &mut self,
        tenant: &str,
        secret: &WhichSecret,
        step: RotationStep,
    ) -> Result<i64> {
        let number = self.tenant(tenant).await?.number;
        let (secret_type, path) = match secret {
            WhichSecret::Path { secret_type, path } => (secret_type.clone(), path.clone()),
            WhichSecret::Id(id) => {
                let row: Option<(String, String)> =
                    sqlx::query_as("SELECT type, path FROM secrets WHERE tenant = $1 AND id = $2")
                        .bind(number)
                        .bind(id)
                        .fetch_optional(&mut *self.tx)
                        .await?;
                row.ok_or(StoreError::NotFound("there is no such tenant secret"))?
            }
        };
        let wanted = RotateSecret {
            secret_type,
            path,
            step,
        };
        let rotated = self.rotate_secret(tenant, &wanted).await?;
        match secret {
            WhichSecret::Id(id) if *id != rotated => Err(StoreError::Refused(
                "it is not this secret's turn: another one of its path is current, or in rotation",
            )),
            WhichSecret::Id(_) | WhichSecret::Path { .. } => Ok(rotated),
        }
    }

    /// Changes how a KMS config of the vendor's is assigned, as `change` makes it of how it is.
    pub(crate) async fn reassign(
        &mut self,
        kms: i64,
        tenant: &str,
        change: impl FnOnce(AssignmentState) -> AssignmentState,
    ) -> Result<AssignmentState> {
        self.kms_leasing(kms).await?;
        let tenant = self.tenant(tenant).await?;
        tenant.not_its_own()?;
        let there: Option<(i64, i64)> = sqlx::query_as(
            "SELECT active, is_primary FROM assignments WHERE tenant = $1 AND kms = $2",
        )
        .bind(tenant.number)
        .bind(kms)
        .fetch_optional(&mut *self.tx)
        .await?;
        let (active, primary) =
            there.ok_or(StoreError::NotFound("it is not assigned to this tenant"))?;
        let state = change(AssignmentState {
            active: active != 0,
            primary: primary != 0,
        });
        self.change_assignment(kms, tenant.number, state).await?;
        Ok(state)
    }

    /// Whether proxies may lease keys from a KMS config.
    pub(crate) async fn allow_leasing(&mut self, id: i64, allowed: bool) -> Result<()> {
        if !allowed {
            self.leasing_is_not_required(id).await?;
        }
        let changed = sqlx::query(
            "UPDATE kms_configs SET leasing_allowed = $1, updated = $2 WHERE vendor = $3 AND id = $4",
        )
        .bind(i64::from(allowed))
        .bind(self.at)
        .bind(self.vendor)
        .bind(id)
        .execute(&mut *self.tx)
        .await?;
        if changed.rows_affected() == 0 {
            return Err(StoreError::NotFound("there is no such KMS config"));
        }
        Ok(())
    }

    /// Whether tenants that are made from now on must have KMS configs that allow leasing.
    pub(crate) async fn require_leasing(&mut self, required: bool) -> Result<()> {
        sqlx::query("UPDATE vendors SET leasing_required = $1 WHERE id = $2")
            .bind(i64::from(required))
            .bind(self.vendor)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }
}
