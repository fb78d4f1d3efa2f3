//! Vendors, their admins, and sessions.

use serde_json::json;

use super::{Change, NAME_BYTES_MAX, Result, Store, StoreError, is_name, tenant::INVITATION_S};
use crate::{
    mail::{LINES_MAX, NEWS_S},
    model::{
        Accepted, AdminDoc, AdminKeys, ChangeDoc, Grant, InviteAdmin, NewOrganization,
        OrganizationKind, Role, SegmentDoc, Session,
    },
};

/// How long a session lasts, in seconds.
const SESSION_S: i64 = 8 * 60 * 60;

/// How long a failed login counts, in seconds.
const FAILURE_S: i64 = 15 * 60;

/// Failed logins of one admin that may count at a time. Guessing is hopeless in any case: a login needs a key of 256 bits.
const FAILURES_MAX: i64 = 20;

/// Who is asking.
#[derive(Clone, Debug)]
pub(crate) struct Admin {
    pub(crate) vendor: i64,
    pub(crate) email: String,
    pub(crate) role: Role,
    pub(crate) kind: OrganizationKind,
}

impl Admin {
    /// As the audit trail names them.
    pub(crate) fn actor(&self) -> String {
        format!("admin {}", self.email)
    }
}

/// What was done in an organization, for those of its admins who want to hear of it.
#[derive(Debug)]
pub(crate) struct News {
    pub(crate) organization: String,
    pub(crate) lines: Vec<ChangeDoc>,
    /// Lines beyond those.
    pub(crate) more: i64,
    /// Their addresses.
    pub(crate) admins: Vec<String>,
}

/// What a login is checked against.
#[derive(Debug)]
pub(crate) struct LoginState {
    pub(crate) admin: i64,
    /// Ed25519 public key, in base64.
    pub(crate) login_key: String,
    pub(crate) limited: bool,
}

impl Store {
    /// Stores a new vendor with its first admin.
    pub(crate) async fn create_vendor(&self, new: &NewOrganization, now: i64) -> Result<()> {
        let mut change = self
            .create_organization(new, OrganizationKind::Vendor, now)
            .await?;
        let tag = super::reserve(&mut change.tx, 1).await?;
        sqlx::query("INSERT INTO tags (id, vendor, text, is_default, created) VALUES ($1, $2, 'default', 1, $3)")
            .bind(tag)
            .bind(new.id)
            .bind(now)
            .execute(&mut *change.tx)
            .await?;
        change.tx.commit().await?;
        Ok(())
    }

    /// Begins a change with a new organization and its first admin.
    pub(super) async fn create_organization(
        &self,
        new: &NewOrganization,
        kind: OrganizationKind,
        now: i64,
    ) -> Result<Change> {
        if !is_name(&new.name) || !is_email(&new.email) {
            return Err(StoreError::Refused(
                "a name and an e-mail address are needed",
            ));
        }
        if new.segment.epoch != 1 {
            return Err(StoreError::Refused("an organization begins with epoch 1"));
        }
        let mut tx = self.begin().await?;
        sqlx::query(
            "INSERT INTO vendors (id, kind, name, vendor_key, version, chain, epoch, segment_public, segment_signature, leasing_required) \
             VALUES ($1, $2, $3, $4, 0, '', 1, $5, $6, 0)",
        )
        .bind(new.id)
        .bind(kind.as_str())
        .bind(&new.name)
        .bind(&new.vendor_key)
        .bind(&new.segment.public_key)
        .bind(&new.segment.signature)
        .execute(&mut *tx)
        .await?;
        sqlx::query(
            "INSERT INTO admins (id, vendor, email, role, login_key, public_key, vault, sealed_keys, certificate, created) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .bind(new.admin)
        .bind(new.id)
        .bind(&new.email)
        .bind(Role::Admin.as_str())
        .bind(&new.keys.login_key)
        .bind(&new.keys.public_key)
        .bind(&new.keys.vault)
        .bind(&new.sealed_keys)
        .bind(&new.certificate)
        .bind(now)
        .execute(&mut *tx)
        .await?;
        let actor = format!("admin {}", new.email);
        let mut change = Change::begin(tx, new.id, &actor, now).await?;
        let detail = json!({ "name": new.name });
        change.note("create", kind.as_str(), &detail).await?;
        Ok(change)
    }

    /// What a login of this admin is checked against.
    pub(crate) async fn login_state(
        &self,
        vendor: i64,
        email: &str,
        now: i64,
    ) -> Result<Option<LoginState>> {
        if !is_email(email) {
            return Ok(None);
        }
        let row: Option<(i64, String, i64)> = sqlx::query_as(
            "SELECT a.id, a.login_key, (SELECT COUNT(*) FROM login_failures f WHERE f.admin = a.id AND f.forget > $3) \
             FROM admins a WHERE a.vendor = $1 AND a.email = $2",
        )
        .bind(vendor)
        .bind(email)
        .bind(now)
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|(admin, login_key, failures)| LoginState {
            admin,
            login_key,
            limited: failures >= FAILURES_MAX,
        }))
    }

    /// Notes that a login of this admin failed.
    pub(crate) async fn login_failed(&self, admin: i64, now: i64) -> Result<()> {
        sqlx::query("INSERT INTO login_failures (admin, forget) VALUES ($1, $2)")
            .bind(admin)
            .bind(now.saturating_add(FAILURE_S))
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Stores a session, of which the caller knows the token and the store its hash.
    pub(crate) async fn create_session(
        &self,
        admin: i64,
        token: String,
        hash: &str,
        now: i64,
    ) -> Result<Session> {
        sqlx::query("INSERT INTO sessions (hash, admin, expires) VALUES ($1, $2, $3)")
            .bind(hash)
            .bind(admin)
            .bind(now.saturating_add(SESSION_S))
            .execute(&self.pool)
            .await?;
        type Row = (
            i64,
            String,
            String,
            String,
            String,
            String,
            i64,
            String,
            String,
        );
        let row: Row = sqlx::query_as(
            "SELECT a.vendor, a.role, v.kind, a.vault, a.sealed_keys, v.vendor_key, v.epoch, v.segment_public, v.segment_signature \
             FROM admins a JOIN vendors v ON v.id = a.vendor WHERE a.id = $1",
        )
        .bind(admin)
        .fetch_one(&self.pool)
        .await?;
        let (vendor, role, kind, vault, sealed_keys, vendor_key, epoch, public_key, signature) =
            row;
        Ok(Session {
            token,
            admin,
            role: role_of(&role),
            kind: kind_of(&kind),
            vendor,
            vendor_key,
            segment: SegmentDoc {
                epoch: u32::try_from(epoch).unwrap_or_default(),
                public_key,
                signature,
            },
            vault,
            sealed_keys,
        })
    }

    /// Who has the session.
    pub(crate) async fn session(&self, hash: &str, now: i64) -> Result<Option<Admin>> {
        let row: Option<(i64, String, String, String)> = sqlx::query_as(
            "SELECT a.vendor, a.email, a.role, v.kind FROM sessions s JOIN admins a ON a.id = s.admin \
             JOIN vendors v ON v.id = a.vendor WHERE s.hash = $1 AND s.expires > $2",
        )
        .bind(hash)
        .bind(now)
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|(vendor, email, role, kind)| Admin {
            vendor,
            email,
            role: role_of(&role),
            kind: kind_of(&kind),
        }))
    }

    /// The vendor's key, in base64.
    pub(crate) async fn vendor_key(&self, vendor: i64) -> Result<String> {
        let (key,): (String,) = sqlx::query_as("SELECT vendor_key FROM vendors WHERE id = $1")
            .bind(vendor)
            .fetch_one(&self.pool)
            .await?;
        Ok(key)
    }

    /// Ends a session.
    pub(crate) async fn end_session(&self, hash: &str) -> Result<()> {
        sqlx::query("DELETE FROM sessions WHERE hash = $1")
            .bind(hash)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

impl Store {
    /// The vendor's admins and auditors.
    pub(crate) async fn admins(&self, vendor: i64) -> Result<Vec<AdminDoc>> {
        type Row = (i64, String, String, String, String, i64);
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT id, email, role, public_key, sealed_keys, notify FROM admins WHERE vendor = $1 ORDER BY id",
        )
        .bind(vendor)
        .fetch_all(&self.pool)
        .await?;
        let doc = |(id, email, role, public_key, sealed_keys, notify): Row| AdminDoc {
            id,
            email,
            role,
            public_key,
            granted: !sealed_keys.is_empty(),
            notify: notify != 0,
        };
        Ok(rows.into_iter().map(doc).collect())
    }

    /// Says whether an admin wants to hear by mail of changes.
    pub(crate) async fn set_notify(&self, admin: &Admin, notify: bool) -> Result<()> {
        sqlx::query("UPDATE admins SET notify = $1 WHERE vendor = $2 AND email = $3")
            .bind(i64::from(notify))
            .bind(admin.vendor)
            .bind(&admin.email)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// What was done since it was last asked, in each organization where somebody wants to hear of it. Of several replicas one
    /// gets it, once.
    pub(crate) async fn take_news(&self, now: i64) -> Result<Vec<News>> {
        let changed: Vec<(i64, String, i64, i64)> = sqlx::query_as(
            "SELECT id, name, notified, version FROM vendors WHERE version > notified ORDER BY id",
        )
        .fetch_all(&self.pool)
        .await?;
        let mut all = Vec::new();
        for (vendor, organization, before, until) in changed {
            let taken =
                sqlx::query("UPDATE vendors SET notified = $1 WHERE id = $2 AND notified = $3")
                    .bind(until)
                    .bind(vendor)
                    .bind(before)
                    .execute(&self.pool)
                    .await?;
            let admins: Vec<(String,)> = sqlx::query_as(
                "SELECT email FROM admins WHERE vendor = $1 AND notify = 1 ORDER BY id",
            )
            .bind(vendor)
            .fetch_all(&self.pool)
            .await?;
            if taken.rows_affected() == 0 || admins.is_empty() {
                continue;
            }
            let mut lines = self.changes(vendor, before, LINES_MAX).await?;
            lines.retain(|line| line.number <= until && line.at > now - NEWS_S);
            let Some(last) = lines.last() else {
                continue;
            };
            all.push(News {
                organization,
                more: until - last.number,
                lines,
                admins: admins.into_iter().map(|(email,)| email).collect(),
            });
        }
        Ok(all)
    }

    /// An organization's name and key.
    pub(crate) async fn organization(&self, id: i64) -> Result<(String, String)> {
        let row = sqlx::query_as("SELECT name, vendor_key FROM vendors WHERE id = $1")
            .bind(id)
            .fetch_one(&self.pool)
            .await?;
        Ok(row)
    }

    /// Takes an invitation's answer: once, within its time.
    pub(crate) async fn accept_admin(
        &self,
        hash: &str,
        keys: &AdminKeys,
        now: i64,
    ) -> Result<Accepted> {
        let row: Option<(i64, String)> = sqlx::query_as(
            "SELECT vendor, email FROM admin_invitations WHERE hash = $1 AND expires > $2",
        )
        .bind(hash)
        .bind(now)
        .fetch_optional(&self.pool)
        .await?;
        let gone = StoreError::NotFound("the invitation is over, or was answered");
        let Some((vendor, email)) = row else {
            return Err(gone);
        };
        let mut change = self
            .change(vendor, &format!("invited {email}"), now)
            .await?;
        // Of two answers at a time the second finds nothing to delete.
        let role: Option<(String,)> =
            sqlx::query_as("DELETE FROM admin_invitations WHERE hash = $1 RETURNING role")
                .bind(hash)
                .fetch_optional(&mut *change.tx)
                .await?;
        let Some((role,)) = role else {
            return Err(gone);
        };
        let id = super::reserve(&mut change.tx, 1).await?;
        sqlx::query(
            "INSERT INTO admins (id, vendor, email, role, login_key, public_key, vault, sealed_keys, certificate, created) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, '', '', $8)",
        )
        .bind(id)
        .bind(vendor)
        .bind(&email)
        .bind(&role)
        .bind(&keys.login_key)
        .bind(&keys.public_key)
        .bind(&keys.vault)
        .bind(now)
        .execute(&mut *change.tx)
        .await?;
        change
            .commit("accept", format!("admin {email}"), &json!({ "role": role }))
            .await?;
        Ok(Accepted { vendor, email })
    }
}

impl Change {
    /// Stores an invitation to the vendor's organization, in the place of an earlier one to the same address.
    pub(crate) async fn invite_admin(&mut self, invite: &InviteAdmin, hash: &str) -> Result<i64> {
        if !is_email(&invite.email) {
            return Err(StoreError::Refused("that is no e-mail address"));
        }
        let there: Option<(i64,)> =
            sqlx::query_as("SELECT id FROM admins WHERE vendor = $1 AND email = $2")
                .bind(self.vendor)
                .bind(&invite.email)
                .fetch_optional(&mut *self.tx)
                .await?;
        if there.is_some() {
            return Err(StoreError::Refused("there is an admin with this address"));
        }
        sqlx::query("DELETE FROM admin_invitations WHERE vendor = $1 AND email = $2")
            .bind(self.vendor)
            .bind(&invite.email)
            .execute(&mut *self.tx)
            .await?;
        let expires = self.at.saturating_add(INVITATION_S);
        sqlx::query(
            "INSERT INTO admin_invitations (hash, vendor, email, role, expires) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(hash)
        .bind(self.vendor)
        .bind(&invite.email)
        .bind(invite.role.as_str())
        .bind(expires)
        .execute(&mut *self.tx)
        .await?;
        Ok(expires)
    }

    /// Gives an admin who accepted the vendor's keys.
    pub(crate) async fn grant_admin(&mut self, id: i64, grant: &Grant) -> Result<()> {
        self.check_epoch(grant.epoch)?;
        let granted = sqlx::query(
            "UPDATE admins SET sealed_keys = $1, certificate = $2 WHERE vendor = $3 AND id = $4 AND role = 'admin' \
             AND public_key = $5",
        )
        .bind(&grant.sealed_keys)
        .bind(&grant.certificate)
        .bind(self.vendor)
        .bind(id)
        .bind(&grant.public_key)
        .execute(&mut *self.tx)
        .await?;
        if granted.rows_affected() == 0 {
            return Err(StoreError::NotFound("there is no such admin with this key"));
        }
        Ok(())
    }

    /// Removes an admin and ends their sessions. The last one with the vendor's keys stays.
    pub(crate) async fn remove_admin(&mut self, id: i64) -> Result<()> {
        let (others,): (i64,) = sqlx::query_as(
            "SELECT COUNT(*) FROM admins WHERE vendor = $1 AND id <> $2 AND role = 'admin' AND sealed_keys <> ''",
        )
        .bind(self.vendor)
        .bind(id)
        .fetch_one(&mut *self.tx)
        .await?;
        if others == 0 {
            return Err(StoreError::Refused(
                "nobody else has the vendor's keys: grant them to another admin first",
            ));
        }
        for statement in [
            "DELETE FROM sessions WHERE admin IN (SELECT id FROM admins WHERE vendor = $1 AND id = $2)",
            "DELETE FROM login_failures WHERE admin IN (SELECT id FROM admins WHERE vendor = $1 AND id = $2)",
            "DELETE FROM admins WHERE vendor = $1 AND id = $2",
        ] {
            sqlx::query(statement)
                .bind(self.vendor)
                .bind(id)
                .execute(&mut *self.tx)
                .await?;
        }
        Ok(())
    }
}

/// What is not known may do the least.
fn role_of(text: &str) -> Role {
    if text == Role::Admin.as_str() {
        Role::Admin
    } else {
        Role::Auditor
    }
}

/// What is not known is a tenant's, which may do less.
fn kind_of(text: &str) -> OrganizationKind {
    if text == OrganizationKind::Vendor.as_str() {
        OrganizationKind::Vendor
    } else {
        OrganizationKind::Tenant
    }
}

/// Whether `text` can be an address: good enough to tell a typing error; only a mail that arrives tells more.
pub(crate) fn is_email(text: &str) -> bool {
    let sound = text
        .bytes()
        .all(|byte| byte.is_ascii_graphic() || byte >= 0x80);
    text.len() <= NAME_BYTES_MAX
        && sound
        && text
            .split_once('@')
            .is_some_and(|(local, domain)| !local.is_empty() && !domain.is_empty())
}
