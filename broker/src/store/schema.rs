//! The tables, and how they came to be. `vendors` has every organization, a tenant's own too (`kind`): all that they share, such as
//! admins, KMS configs and an audit trail, names it `vendor`. A migration that has been released is never edited; another one follows.

use sqlx::AssertSqlSafe;

use super::{Result, Store, StoreError};

/// Each brings the schema one version up. Statements end with `;` at the end of a line.
const MIGRATIONS: [&str; 3] = ["
CREATE TABLE numbers (next BIGINT NOT NULL);
INSERT INTO numbers (next) VALUES (1);
CREATE TABLE vendors (
    id BIGINT PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, vendor_key TEXT NOT NULL, version BIGINT NOT NULL, chain TEXT NOT NULL,
    epoch BIGINT NOT NULL, segment_public TEXT NOT NULL, segment_signature TEXT NOT NULL, leasing_required BIGINT NOT NULL,
    notified BIGINT NOT NULL DEFAULT 0);
CREATE TABLE admins (
    id BIGINT PRIMARY KEY, vendor BIGINT NOT NULL REFERENCES vendors (id), email TEXT NOT NULL, role TEXT NOT NULL,
    login_key TEXT NOT NULL, public_key TEXT NOT NULL, vault TEXT NOT NULL, sealed_keys TEXT NOT NULL, certificate TEXT NOT NULL,
    notify BIGINT NOT NULL DEFAULT 0, created BIGINT NOT NULL,
    UNIQUE (vendor, email));
CREATE TABLE sessions (hash TEXT PRIMARY KEY, admin BIGINT NOT NULL REFERENCES admins (id), expires BIGINT NOT NULL);
CREATE TABLE taken (id TEXT PRIMARY KEY, forget BIGINT NOT NULL);
CREATE TABLE login_failures (admin BIGINT NOT NULL REFERENCES admins (id), forget BIGINT NOT NULL);
CREATE TABLE tags (
    id BIGINT PRIMARY KEY, vendor BIGINT NOT NULL REFERENCES vendors (id), text TEXT NOT NULL, is_default BIGINT NOT NULL,
    created BIGINT NOT NULL, UNIQUE (vendor, text));
CREATE TABLE accounts (
    config BIGINT PRIMARY KEY, vendor BIGINT NOT NULL REFERENCES vendors (id), id TEXT NOT NULL UNIQUE, name TEXT NOT NULL,
    kind TEXT NOT NULL, encryption_key TEXT NOT NULL, signing_key TEXT NOT NULL, sealed_key TEXT NOT NULL,
    certificate TEXT NOT NULL, created BIGINT NOT NULL, revoked BIGINT NOT NULL);
CREATE TABLE account_tags (
    account BIGINT NOT NULL REFERENCES accounts (config), tag BIGINT NOT NULL REFERENCES tags (id),
    PRIMARY KEY (account, tag));
CREATE TABLE tenants (
    number BIGINT PRIMARY KEY, vendor BIGINT NOT NULL REFERENCES vendors (id), id TEXT NOT NULL, name TEXT NOT NULL,
    leasing_required BIGINT NOT NULL, claimed BIGINT NOT NULL, archived BIGINT NOT NULL, config_deleted BIGINT NOT NULL,
    organization BIGINT REFERENCES vendors (id), invitation_key TEXT NOT NULL DEFAULT '',
    invitation_signature TEXT NOT NULL DEFAULT '', organization_signature TEXT NOT NULL DEFAULT '',
    link_signature TEXT NOT NULL DEFAULT '',
    created_by TEXT NOT NULL, created BIGINT NOT NULL, updated BIGINT NOT NULL, UNIQUE (vendor, id));
CREATE TABLE tenant_tags (
    tenant BIGINT NOT NULL REFERENCES tenants (number), tag BIGINT NOT NULL REFERENCES tags (id),
    PRIMARY KEY (tenant, tag));
CREATE TABLE invitations (
    hash TEXT PRIMARY KEY, tenant BIGINT NOT NULL REFERENCES tenants (number), email TEXT NOT NULL, expires BIGINT NOT NULL,
    key TEXT NOT NULL DEFAULT '', signature TEXT NOT NULL DEFAULT '');
CREATE TABLE admin_invitations (
    hash TEXT PRIMARY KEY, vendor BIGINT NOT NULL REFERENCES vendors (id), email TEXT NOT NULL, role TEXT NOT NULL,
    expires BIGINT NOT NULL);
CREATE TABLE kms_configs (
    id BIGINT PRIMARY KEY, vendor BIGINT NOT NULL REFERENCES vendors (id), kind TEXT NOT NULL, key_path TEXT NOT NULL,
    content_schema BIGINT NOT NULL, revision BIGINT NOT NULL, leasing_allowed BIGINT NOT NULL, envelope TEXT NOT NULL,
    created_by TEXT NOT NULL, created BIGINT NOT NULL, updated BIGINT NOT NULL);
CREATE TABLE assignments (
    tenant BIGINT NOT NULL REFERENCES tenants (number), kms BIGINT NOT NULL REFERENCES kms_configs (id),
    active BIGINT NOT NULL, is_primary BIGINT NOT NULL, created_by TEXT NOT NULL, created BIGINT NOT NULL,
    updated BIGINT NOT NULL, signer TEXT NOT NULL, signature TEXT NOT NULL, envelope TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (tenant, kms));
CREATE UNIQUE INDEX one_primary ON assignments (tenant) WHERE is_primary = 1;
CREATE TABLE logging_configs (
    id BIGINT PRIMARY KEY, tenant BIGINT NOT NULL UNIQUE REFERENCES tenants (number), content_schema BIGINT NOT NULL,
    revision BIGINT NOT NULL, envelope TEXT NOT NULL, owner BIGINT NOT NULL REFERENCES vendors (id), updated BIGINT NOT NULL);
CREATE TABLE secrets (
    id BIGINT PRIMARY KEY, tenant BIGINT NOT NULL REFERENCES tenants (number), type TEXT NOT NULL, path TEXT NOT NULL,
    status TEXT NOT NULL, edek TEXT NOT NULL, fingerprint TEXT NOT NULL, kms BIGINT NOT NULL REFERENCES kms_configs (id),
    created BIGINT NOT NULL,
    changed BIGINT NOT NULL);
CREATE UNIQUE INDEX one_current ON secrets (tenant, type, path) WHERE status = 'current';
CREATE UNIQUE INDEX one_in_rotation ON secrets (tenant, type, path) WHERE status = 'in-rotation';
CREATE TABLE changes (
    vendor BIGINT NOT NULL REFERENCES vendors (id), number BIGINT NOT NULL, at BIGINT NOT NULL, actor TEXT NOT NULL,
    action TEXT NOT NULL, object TEXT NOT NULL, detail TEXT NOT NULL, hash TEXT NOT NULL, PRIMARY KEY (vendor, number));
", "
ALTER TABLE kms_configs ADD COLUMN path_signer TEXT NOT NULL DEFAULT '';
ALTER TABLE kms_configs ADD COLUMN path_signature TEXT NOT NULL DEFAULT '';
", "
CREATE INDEX admin_invitations_vendor ON admin_invitations (vendor);
CREATE INDEX assignments_kms ON assignments (kms);
CREATE INDEX accounts_vendor ON accounts (vendor);
CREATE INDEX account_tags_tag ON account_tags (tag);
CREATE INDEX invitations_tenant ON invitations (tenant);
CREATE INDEX kms_configs_vendor ON kms_configs (vendor);
CREATE INDEX logging_configs_owner ON logging_configs (owner);
CREATE INDEX login_failures_admin ON login_failures (admin);
CREATE INDEX login_failures_forget ON login_failures (forget);
CREATE INDEX secrets_kms ON secrets (kms);
CREATE INDEX secrets_tenant ON secrets (tenant);
CREATE INDEX sessions_admin ON sessions (admin);
CREATE INDEX sessions_expires ON sessions (expires);
CREATE INDEX taken_forget ON taken (forget);
CREATE INDEX tenant_tags_tag ON tenant_tags (tag);
CREATE INDEX tenants_organization ON tenants (organization);
"];

/// Brings the schema up to date. Two replicas that start at a time do it one after the other.
pub(super) async fn migrate(store: &Store) -> Result<()> {
    let mut tx = store.begin().await?;
    if !store.sqlite {
        // Only this transaction's: given back at its end.
        sqlx::query("SELECT pg_advisory_xact_lock(7777)")
            .execute(&mut *tx)
            .await?;
    }
    sqlx::query("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)")
        .execute(&mut *tx)
        .await?;
    let version: Option<(i64,)> = sqlx::query_as("SELECT version FROM schema_version")
        .fetch_optional(&mut *tx)
        .await?;
    let version = version.map_or(0, |(version,)| version);
    let done = usize::try_from(version).unwrap_or(usize::MAX);
    let Some(new) = MIGRATIONS.get(done..) else {
        return Err(StoreError::Refused(
            "the database is of a newer version of this program",
        ));
    };
    for statement in new
        .iter()
        .flat_map(|migration| migration.split_terminator(";\n"))
    {
        sqlx::query(AssertSqlSafe(statement))
            .execute(&mut *tx)
            .await?;
    }
    if !new.is_empty() {
        sqlx::query("DELETE FROM schema_version")
            .execute(&mut *tx)
            .await?;
        sqlx::query("INSERT INTO schema_version (version) VALUES ($1)")
            .bind(i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX))
            .execute(&mut *tx)
            .await?;
    }
    tx.commit().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_column_refers_to_is_found_by_an_index_from_both_ends() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/broker.db", folder.path().display());
        let store = Store::open(&url).await.unwrap();
        let scanned: Vec<(String, String)> = sqlx::query_as(
            "SELECT m.name, f.\"from\" FROM sqlite_master m JOIN pragma_foreign_key_list(m.name) f WHERE m.type = 'table' \
             AND NOT EXISTS (SELECT 1 FROM pragma_index_list(m.name) i JOIN pragma_index_info(i.name) c \
             WHERE c.seqno = 0 AND i.partial = 0 AND c.name = f.\"from\")",
        )
        .fetch_all(&store.pool)
        .await
        .unwrap();
        assert_eq!(scanned, [], "each change would read all of these tables");
    }
}
