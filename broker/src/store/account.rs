//! Service accounts: who they are, what they may know, and the tenant secrets that they store.

use std::collections::{BTreeMap, HashMap, HashSet};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest as _, Sha256};
use sqlx::{Any, Row as _, Transaction};
use tsp_wire::{
    account::{
        Assignment, KmsConfig, LoggingConfig, RefusedSecret, SNAPSHOT_FORMAT, SecretOffer,
        SecretOutcome, Segment, SnapshotAnswer, Tenant, TenantSecret,
        signed::{InvitationKey, Signer},
    },
    api::SECRET_PATH_BYTES_MAX,
    derive::{RotationStatus, SecretType},
    edek::EncryptedDeks,
    envelope::Epoch,
};

use super::{Change, Result, Store, StoreError, is_name};
use crate::model::{AccountDoc, NewAccount, SecretDoc};

/// A service account, as a request's token is checked against.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    pub(crate) config: i64,
    pub(crate) vendor: i64,
    pub(crate) kind: String,
    /// Ed25519 public key, in base64.
    pub(crate) signing_key: String,
    pub(crate) revoked: bool,
}

impl Store {
    /// The account with this id, also if it is revoked.
    pub(crate) async fn account(&self, id: &str) -> Result<Option<Account>> {
        let row: Option<(i64, i64, String, String, i64)> = sqlx::query_as(
            "SELECT config, vendor, kind, signing_key, revoked FROM accounts WHERE id = $1",
        )
        .bind(id)
        .fetch_optional(&self.pool)
        .await?;
        Ok(
            row.map(|(config, vendor, kind, signing_key, revoked)| Account {
                config,
                vendor,
                kind,
                signing_key,
                revoked: revoked != 0,
            }),
        )
    }

    /// The vendor's version: that of what [`Store::snapshot`] gives.
    pub(crate) async fn version(&self, vendor: i64) -> Result<i64> {
        let row: Option<(i64,)> = sqlx::query_as("SELECT version FROM vendors WHERE id = $1")
            .bind(vendor)
            .fetch_optional(&self.pool)
            .await?;
        row.map(|(version,)| version)
            .ok_or(StoreError::NotFound("there is no such vendor"))
    }

    /// All that the account may know, at one version.
    pub(crate) async fn snapshot(&self, account: &Account) -> Result<SnapshotAnswer> {
        let mut tx = self.begin_reading().await?;
        let row = sqlx::query(
            "SELECT v.vendor_key, v.version, v.epoch, v.segment_public, v.segment_signature, a.sealed_key \
             FROM vendors v JOIN accounts a ON a.vendor = v.id WHERE a.config = $1",
        )
        .bind(account.config)
        .fetch_one(&mut *tx)
        .await?;
        let mut snapshot = SnapshotAnswer {
            format: SNAPSHOT_FORMAT,
            version: unsigned(row.try_get(1)?),
            vendor_key: bytes(row.try_get(0)?)?,
            segment: Segment {
                id: unsigned(account.vendor),
                epoch: epoch(row.try_get(2)?),
                public_key: bytes(row.try_get(3)?)?,
                signature: bytes(row.try_get(4)?)?,
                sealed_key: bytes(row.try_get(5)?)?,
            },
            kms_configs: Vec::new(),
            logging_configs: Vec::new(),
            tenants: Vec::new(),
            secrets: Vec::new(),
            signers: signers(&mut tx, account).await?,
        };
        let tenants = visible_tenants(&mut tx, account, &mut snapshot).await?;
        configs(&mut tx, account.vendor, &tenants, &mut snapshot).await?;
        let rows = sqlx::query(
            "SELECT s.id, s.tenant, s.type, s.path, s.status, s.edek FROM secrets s JOIN tenants t ON t.number = s.tenant \
             WHERE t.vendor = $1 ORDER BY s.id",
        )
        .bind(account.vendor)
        .fetch_all(&mut *tx)
        .await?;
        for row in rows {
            let Some(at) = tenants.get(&row.try_get::<i64, _>(1)?) else {
                continue;
            };
            let tenant = snapshot.tenants.get(*at).map(|tenant| tenant.id.clone());
            snapshot.secrets.push(TenantSecret {
                id: unsigned(row.try_get(0)?),
                tenant: tenant.unwrap_or_default(),
                secret_type: word(SecretType::from_text(row.try_get(2)?))?,
                path: row.try_get(3)?,
                status: word(RotationStatus::from_text(row.try_get(4)?))?,
                edek: bytes(row.try_get(5)?)?,
            });
        }
        Ok(snapshot)
    }

    /// Accounts of a vendor, revoked ones too.
    pub(crate) async fn accounts(&self, vendor: i64) -> Result<Vec<AccountDoc>> {
        let rows = sqlx::query(
            "SELECT config, id, name, kind, encryption_key, created, revoked FROM accounts WHERE vendor = $1 ORDER BY config",
        )
        .bind(vendor)
        .fetch_all(&self.pool)
        .await?;
        let tags: Vec<(i64, String)> = sqlx::query_as(
            "SELECT a.account, t.text FROM account_tags a JOIN tags t ON t.id = a.tag WHERE t.vendor = $1 ORDER BY t.text",
        )
        .bind(vendor)
        .fetch_all(&self.pool)
        .await?;
        let doc = |row: &sqlx::any::AnyRow| {
            let config = row.try_get(0)?;
            let own = tags.iter().filter(|(account, _)| *account == config);
            Ok(AccountDoc {
                config,
                id: row.try_get(1)?,
                name: row.try_get(2)?,
                kind: row.try_get(3)?,
                encryption_key: row.try_get(4)?,
                created: row.try_get(5)?,
                revoked: row.try_get(6)?,
                tags: own.map(|(_, text)| text.clone()).collect(),
            })
        };
        rows.iter().map(doc).collect()
    }

    /// Tenant secrets of a vendor: for the backup that is the vendor's duty.
    pub(crate) async fn secrets(&self, vendor: i64) -> Result<Vec<SecretDoc>> {
        let rows = sqlx::query(
            "SELECT s.id, t.id, s.type, s.path, s.status, s.kms, s.edek, s.created, s.changed FROM secrets s \
             JOIN tenants t ON t.number = s.tenant WHERE t.vendor = $1 ORDER BY s.id",
        )
        .bind(vendor)
        .fetch_all(&self.pool)
        .await?;
        let doc = |row: &sqlx::any::AnyRow| {
            Ok(SecretDoc {
                id: row.try_get(0)?,
                tenant: row.try_get(1)?,
                secret_type: row.try_get(2)?,
                path: row.try_get(3)?,
                status: row.try_get(4)?,
                kms: row.try_get(5)?,
                edek: row.try_get(6)?,
                created: row.try_get(7)?,
                changed: row.try_get(8)?,
            })
        };
        rows.iter().map(doc).collect()
    }

    /// Stores each offer unless its place has a current secret; one transaction for all.
    pub(crate) async fn create_secrets(
        &self,
        account: &Account,
        offers: &[SecretOffer],
        now: i64,
    ) -> Result<Vec<SecretOutcome>> {
        let actor = format!("account {}", account.config);
        let mut change = self.change(account.vendor, &actor, now).await?;
        let mut outcomes = Vec::with_capacity(offers.len());
        let mut created = Vec::new();
        for offer in offers {
            let outcome = change.create_secret(account, offer).await?;
            if let SecretOutcome::Created(secret) = &outcome {
                created.push(secret.id);
            }
            outcomes.push(outcome);
        }
        if !created.is_empty() {
            let detail = serde_json::json!({ "ids": created });
            change.commit("create", "tenant secrets", &detail).await?;
        }
        Ok(outcomes)
    }
}

impl Change {
    async fn create_secret(
        &mut self,
        account: &Account,
        offer: &SecretOffer,
    ) -> Result<SecretOutcome> {
        let refused = |why| Ok(SecretOutcome::Refused(why));
        if offer.path.len() > SECRET_PATH_BYTES_MAX || offer.path.contains('\0') {
            return refused(RefusedSecret::InvalidPath);
        }
        let tenant: Option<(i64,)> = sqlx::query_as(
            "SELECT number FROM tenants WHERE vendor = $1 AND id = $2 AND archived = 0 AND number IN \
             (SELECT tt.tenant FROM tenant_tags tt JOIN account_tags at ON at.tag = tt.tag WHERE at.account = $3)",
        )
        .bind(self.vendor)
        // PostgreSQL's text has no NUL, and no tenant's id has one.
        .bind(offer.tenant.replace('\0', "\u{1}"))
        .bind(account.config)
        .fetch_optional(&mut *self.tx)
        .await?;
        let Some((tenant,)) = tenant else {
            return refused(RefusedSecret::UnknownTenant);
        };
        let there: Option<(i64, String)> = sqlx::query_as(
            "SELECT id, edek FROM secrets WHERE tenant = $1 AND type = $2 AND path = $3 AND status = 'current'",
        )
        .bind(tenant)
        .bind(offer.secret_type.as_str())
        .bind(&offer.path)
        .fetch_optional(&mut *self.tx)
        .await?;
        let secret = |id, edek| TenantSecret {
            id: unsigned(id),
            tenant: offer.tenant.clone(),
            secret_type: offer.secret_type,
            path: offer.path.clone(),
            status: RotationStatus::Current,
            edek,
        };
        if let Some((id, edek)) = there {
            return Ok(SecretOutcome::Existing(secret(id, bytes(edek)?)));
        }
        let kms = EncryptedDeks::from_bytes(&offer.edek).ok();
        let kms = kms.and_then(|edeks| Some(edeks.encrypted_deks.first()?.kms_config_id));
        let assigned: Option<(i64,)> =
            sqlx::query_as("SELECT kms FROM assignments WHERE tenant = $1 AND kms = $2")
                .bind(tenant)
                .bind(i64::from(kms.unwrap_or_default()))
                .fetch_optional(&mut *self.tx)
                .await?;
        let Some((kms,)) = assigned else {
            return refused(RefusedSecret::InvalidEdek);
        };
        loop {
            // Random, so that a number is not used twice either when an old backup is put back.
            let mut number = [0; 4];
            getrandom::fill(&mut number).map_err(|_| StoreError::Refused("no random bytes"))?;
            let id = i64::from(u32::from_le_bytes(number));
            let stored = sqlx::query(
                "INSERT INTO secrets (id, tenant, type, path, status, edek, kms, created, changed, fingerprint) \
                 VALUES ($1, $2, $3, $4, 'current', $5, $6, $7, $7, $8) ON CONFLICT (id) DO NOTHING",
            )
            .bind(id)
            .bind(tenant)
            .bind(offer.secret_type.as_str())
            .bind(&offer.path)
            .bind(STANDARD.encode(&offer.edek))
            .bind(kms)
            .bind(self.at)
            .bind(STANDARD.encode(Sha256::digest(&offer.edek)))
            .execute(&mut *self.tx)
            .await?;
            if id != 0 && stored.rows_affected() == 1 {
                return Ok(SecretOutcome::Created(secret(id, offer.edek.clone())));
            }
        }
    }

    /// Adds a service account.
    pub(crate) async fn create_account(&mut self, new: &NewAccount) -> Result<()> {
        if !is_name(&new.name) {
            return Err(StoreError::Refused("the name is empty or too long"));
        }
        self.check_epoch(new.epoch)?;
        let sealed = new.sealed_key.as_deref().unwrap_or_default();
        if sealed.is_empty() != (new.kind.as_str() == "bridge") {
            return Err(StoreError::Refused(
                "an account of a proxy has the segment's key, and a bridge has it not",
            ));
        }
        sqlx::query(
            "INSERT INTO accounts (config, vendor, id, name, kind, encryption_key, signing_key, sealed_key, certificate, created, revoked) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 0)",
        )
        .bind(new.config)
        .bind(self.vendor)
        .bind(&new.id)
        .bind(&new.name)
        .bind(new.kind.as_str())
        .bind(&new.encryption_key)
        .bind(&new.signing_key)
        .bind(sealed)
        .bind(&new.certificate)
        .bind(self.at)
        .execute(&mut *self.tx)
        .await?;
        for tag in self.tags(&new.tags).await? {
            sqlx::query("INSERT INTO account_tags (account, tag) VALUES ($1, $2)")
                .bind(new.config)
                .bind(tag)
                .execute(&mut *self.tx)
                .await?;
        }
        Ok(())
    }

    /// Revokes a service account: its tokens are refused from now on, and its copy of the segment's key is gone.
    pub(crate) async fn revoke_account(&mut self, config: i64) -> Result<()> {
        let revoked = sqlx::query(
            "UPDATE accounts SET revoked = $1, sealed_key = '' WHERE vendor = $2 AND config = $3 AND revoked = 0",
        )
        .bind(self.at)
        .bind(self.vendor)
        .bind(config)
        .execute(&mut *self.tx)
        .await?;
        if revoked.rows_affected() == 0 {
            return Err(StoreError::NotFound(
                "there is no such account, or it is revoked already",
            ));
        }
        Ok(())
    }
}

/// Fills in the tenants that share a tag with the account. Gives their places by number.
async fn visible_tenants(
    tx: &mut Transaction<'static, Any>,
    account: &Account,
    snapshot: &mut SnapshotAnswer,
) -> Result<HashMap<i64, usize>> {
    let mut tags: HashMap<i64, Vec<String>> = HashMap::new();
    let rows: Vec<(i64, String)> = sqlx::query_as(
        "SELECT tt.tenant, t.text FROM tenant_tags tt JOIN tags t ON t.id = tt.tag WHERE t.vendor = $1 ORDER BY t.text",
    )
    .bind(account.vendor)
    .fetch_all(&mut **tx)
    .await?;
    for (tenant, text) in rows {
        tags.entry(tenant).or_default().push(text);
    }
    let rows: Vec<(i64, String, i64)> = sqlx::query_as(
        "SELECT number, id, leasing_required FROM tenants WHERE vendor = $1 AND archived = 0 AND number IN \
         (SELECT tt.tenant FROM tenant_tags tt JOIN account_tags at ON at.tag = tt.tag WHERE at.account = $2) ORDER BY number",
    )
    .bind(account.vendor)
    .bind(account.config)
    .fetch_all(&mut **tx)
    .await?;
    let mut places = HashMap::with_capacity(rows.len());
    for (number, id, leasing_required) in rows {
        places.insert(number, snapshot.tenants.len());
        snapshot.tenants.push(Tenant {
            id,
            tags: tags.remove(&number).unwrap_or_default(),
            leasing_required: leasing_required != 0,
            assignments: Vec::new(),
            logging: None,
        });
    }
    Ok(places)
}

/// The vendor's bridges, those of revoked accounts too.
pub(super) async fn bridges(
    tx: &mut Transaction<'static, Any>,
    vendor: i64,
) -> Result<Vec<Signer>> {
    let bridges: Vec<(String, String)> = sqlx::query_as(
        "SELECT signing_key, certificate FROM accounts WHERE vendor = $1 AND kind = 'bridge' ORDER BY config",
    )
    .bind(vendor)
    .fetch_all(&mut **tx)
    .await?;
    let signer = |(key, signature)| {
        Ok(Signer {
            key: bytes(key)?,
            tenant: None,
            invitation: None,
            signature: bytes(signature)?,
        })
    };
    bridges.into_iter().map(signer).collect()
}

/// Whose signatures count besides the vendor's: those of its bridges (also of revoked ones: what they made goes on), and those of
/// tenants' organizations.
async fn signers(tx: &mut Transaction<'static, Any>, account: &Account) -> Result<Vec<Signer>> {
    let mut signers = bridges(tx, account.vendor).await?;
    let organizations: Vec<(String, String, String, String, String)> = sqlx::query_as(
        "SELECT t.id, o.vendor_key, t.organization_signature, t.invitation_key, t.invitation_signature FROM tenants t \
         JOIN vendors o ON o.id = t.organization WHERE t.vendor = $1 AND t.archived = 0 AND t.organization_signature <> '' \
         AND t.number IN (SELECT tt.tenant FROM tenant_tags tt JOIN account_tags at ON at.tag = tt.tag WHERE at.account = $2) \
         ORDER BY t.number",
    )
    .bind(account.vendor)
    .bind(account.config)
    .fetch_all(&mut **tx)
    .await?;
    for (tenant, key, signature, invitation_key, invitation_signature) in organizations {
        let invitation = if invitation_key.is_empty() {
            None
        } else {
            Some(InvitationKey {
                key: bytes(invitation_key)?,
                signature: bytes(invitation_signature)?,
            })
        };
        signers.push(Signer {
            key: bytes(key)?,
            tenant: Some(tenant),
            invitation,
            signature: bytes(signature)?,
        });
    }
    Ok(signers)
}

/// Fills in the configurations of those tenants.
async fn configs(
    tx: &mut Transaction<'static, Any>,
    vendor: i64,
    places: &HashMap<i64, usize>,
    snapshot: &mut SnapshotAnswer,
) -> Result<()> {
    let rows: Vec<(i64, i64, i64, i64, String, String)> = sqlx::query_as(
        "SELECT a.tenant, a.kms, a.active, a.is_primary, a.signer, a.signature FROM assignments a \
         JOIN tenants t ON t.number = a.tenant WHERE t.vendor = $1 ORDER BY a.tenant, a.kms",
    )
    .bind(vendor)
    .fetch_all(&mut **tx)
    .await?;
    let mut used = HashSet::new();
    for (tenant, kms, active, primary, signer, signature) in rows {
        let tenant = places
            .get(&tenant)
            .and_then(|at| snapshot.tenants.get_mut(*at));
        if let Some(tenant) = tenant {
            used.insert(kms);
            tenant.assignments.push(Assignment {
                kms: unsigned(kms),
                active: active != 0,
                primary: primary != 0,
                signer: bytes(signer)?,
                signature: bytes(signature)?,
            });
        }
    }
    // A tenant's own config is sealed to the vendor beside its assignment; in its own place it is sealed to the tenant.
    let rows: Vec<(i64, i64, i64, i64, String)> = sqlx::query_as(
        "SELECT id, content_schema, revision, leasing_allowed, envelope FROM kms_configs WHERE vendor = $1 UNION ALL \
         SELECT k.id, k.content_schema, k.revision, k.leasing_allowed, a.envelope FROM assignments a \
         JOIN kms_configs k ON k.id = a.kms JOIN tenants t ON t.number = a.tenant \
         WHERE t.vendor = $1 AND a.envelope <> '' ORDER BY 1",
    )
    .bind(vendor)
    .fetch_all(&mut **tx)
    .await?;
    for (id, schema, revision, leasing_allowed, envelope) in rows {
        if used.contains(&id) {
            snapshot.kms_configs.push(KmsConfig {
                id: unsigned(id),
                schema: u16::try_from(schema).unwrap_or(u16::MAX),
                revision: unsigned(revision),
                leasing_allowed: leasing_allowed != 0,
                envelope: bytes(envelope)?,
            });
        }
    }
    let rows: Vec<(i64, i64, i64, i64, String)> = sqlx::query_as(
        "SELECT l.id, l.tenant, l.content_schema, l.revision, l.envelope FROM logging_configs l \
         JOIN tenants t ON t.number = l.tenant WHERE t.vendor = $1 ORDER BY l.id",
    )
    .bind(vendor)
    .fetch_all(&mut **tx)
    .await?;
    for (id, tenant, schema, revision, envelope) in rows {
        let tenant = places
            .get(&tenant)
            .and_then(|at| snapshot.tenants.get_mut(*at));
        if let Some(tenant) = tenant {
            tenant.logging = Some(unsigned(id));
            snapshot.logging_configs.push(LoggingConfig {
                id: unsigned(id),
                schema: u16::try_from(schema).unwrap_or(u16::MAX),
                revision: unsigned(revision),
                envelope: bytes(envelope)?,
            });
        }
    }
    Ok(())
}

/// What only a damaged database has.
const DAMAGED: StoreError = StoreError::Refused("the database holds what was never stored");

fn bytes(base64: String) -> Result<Vec<u8>> {
    STANDARD.decode(base64).map_err(|_| DAMAGED)
}

fn word<T>(known: Option<T>) -> Result<T> {
    known.ok_or(DAMAGED)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

fn epoch(number: i64) -> Epoch {
    Epoch(u32::try_from(number).unwrap_or_default())
}

/// Groups a listing by its first column.
pub(super) fn grouped<K: Ord, V>(rows: Vec<(K, V)>) -> BTreeMap<K, Vec<V>> {
    let mut groups: BTreeMap<K, Vec<V>> = BTreeMap::new();
    for (key, value) in rows {
        groups.entry(key).or_default().push(value);
    }
    groups
}
