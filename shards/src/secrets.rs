//! Tenant secrets: the tables in a snapshot, and in [`creation`] how a path gets its first one.
//!
//! A table holds secrets as the tenant's KMS wrapped them. They are opened for an operation that derives keys from them,
//! and by nothing else.

mod creation;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Instant,
};

use tsp_rt::Rt;
use tsp_wire::{
    Dek, TenantId, TenantSecretId,
    derive::{RotationStatus, SecretType},
    edek::EncryptedDeks,
    snapshot::TenantSecretDoc,
};

use crate::{
    dek,
    error::OpError,
    keyring::{self, Purpose},
    shard::Core,
    snapshot::{Rejected, Tenant},
};

pub(crate) use creation::{Creation, CreationError, Home};
pub use creation::{SecretNotStored, SecretOffer};

/// One tenant secret, wrapped.
#[derive(Debug)]
pub(crate) struct TenantSecret {
    pub(crate) id: TenantSecretId,
    /// Its EDEK, serialized.
    pub(crate) sealed: Box<[u8]>,
}

impl TenantSecret {
    /// Checks what keys could not be derived without.
    fn from_doc(doc: &TenantSecretDoc) -> Result<Self, String> {
        let id =
            TenantSecretId::new(doc.id).ok_or("the id must be a number from 1 to 4294967295")?;
        EncryptedDeks::from_bytes(&doc.edek).map_err(|why| why.to_string())?;
        Ok(Self {
            id,
            sealed: doc.edek.as_slice().into(),
        })
    }
}

/// The secrets of one tenant, type and path that keys are derived from. Archived ones are not here.
#[derive(Debug, Default)]
pub(crate) struct PathSecrets {
    pub(crate) current: Option<Arc<TenantSecret>>,
    pub(crate) in_rotation: Option<Arc<TenantSecret>>,
}

/// The secrets of one tenant, by type and path.
type OfTenant = BTreeMap<SecretType, BTreeMap<Box<str>, PathSecrets>>;

/// All secrets of a snapshot. Shared by all cores, never changed.
#[derive(Debug, Default)]
pub(crate) struct SecretTable {
    tenants: BTreeMap<TenantId, OfTenant>,
    count: usize,
}

impl SecretTable {
    /// Builds the table. What does not validate is left out and named.
    pub(crate) fn from_docs(docs: &[TenantSecretDoc], rejected: &mut Vec<Rejected>) -> Self {
        let mut table = Self::default();
        let mut ids = HashSet::with_capacity(docs.len());
        for doc in docs {
            if let Err(why) = table.add(doc, &mut ids) {
                rejected.push(Rejected {
                    what: format!("secret {} of tenant {:?}", doc.id, doc.tenant),
                    why,
                });
            }
        }
        table
    }

    fn add(
        &mut self,
        doc: &TenantSecretDoc,
        ids: &mut HashSet<TenantSecretId>,
    ) -> Result<(), String> {
        let tenant = TenantId::new(&doc.tenant)
            .ok_or("the tenant's id must have 1 to 256 bytes and no control characters")?;
        let secret = TenantSecret::from_doc(doc)?;
        if !ids.insert(secret.id) {
            return Err("another secret has the same id".to_owned());
        }
        if doc.status == RotationStatus::Archived {
            self.count += 1;
            return Ok(());
        }
        let paths = self.tenants.entry(tenant).or_default();
        let paths = paths.entry(doc.secret_type).or_default();
        let path = paths.entry(doc.path.as_str().into()).or_default();
        let place = if doc.status == RotationStatus::Current {
            &mut path.current
        } else {
            &mut path.in_rotation
        };
        if let Some(first) = place {
            let (status, first) = (doc.status, first.id);
            return Err(format!("secret {first} of the same path is {status} too"));
        }
        *place = Some(Arc::new(secret));
        self.count += 1;
        Ok(())
    }

    /// The secrets of a path, if it has had one.
    pub(crate) fn path(
        &self,
        tenant: &TenantId,
        secret_type: SecretType,
        path: &str,
    ) -> Option<&PathSecrets> {
        self.tenants.get(tenant)?.get(&secret_type)?.get(path)
    }

    /// Number of secrets, archived ones included.
    pub(crate) fn count(&self) -> usize {
        self.count
    }
}

/// Opens a tenant secret and hands it to `derive`. Takes no KMS call where the secret is in memory. Ends by `deadline`.
///
pub(crate) async fn open<R: Rt, T>(
    core: &Core<R>,
    tenant: &Tenant,
    secret: &TenantSecret,
    deadline: Instant,
    derive: impl FnOnce(&Dek) -> T,
) -> Result<T, OpError> {
    let times = (core.rt.now(), deadline);
    let edek = dek::read(tenant, &secret.sealed)?;
    if edek.entry.leased_key_id != 0 {
        // Under a leased key. We wrap none so, but who came from the original product may have some.
        return Ok(derive(&dek::unwrap(core, tenant, &edek, times).await?));
    }
    let held = keyring::open(core, tenant, Purpose::Secret, &secret.sealed, times).await?;
    let secret = held.key.secret().ok_or(OpError::InvalidLeasedEdek(
        "A tenant secret's EDEK holds a key for another purpose.",
    ))?;
    Ok(derive(secret))
}

#[cfg(test)]
mod tests {
    use tsp_wire::{KmsConfigId, edek};

    use super::*;

    fn doc(id: u64, tenant: &str, path: &str, status: RotationStatus) -> TenantSecretDoc {
        TenantSecretDoc {
            id,
            tenant: tenant.to_owned(),
            secret_type: SecretType::Search,
            path: path.to_owned(),
            status,
            edek: edek::encode_unleased(KmsConfigId::new(1).unwrap(), b"blob"),
        }
    }

    fn table(docs: &[TenantSecretDoc]) -> (SecretTable, Vec<String>) {
        let mut rejected = Vec::new();
        let table = SecretTable::from_docs(docs, &mut rejected);
        let whys = rejected.into_iter().map(|one| one.why).collect();
        (table, whys)
    }

    fn ids(table: &SecretTable, tenant: &str, path: &str) -> [Option<u32>; 2] {
        let tenant = TenantId::new(tenant).unwrap();
        let Some(path) = table.path(&tenant, SecretType::Search, path) else {
            return [None, None];
        };
        [&path.current, &path.in_rotation]
            .map(|secret| secret.as_ref().map(|secret| secret.id.number()))
    }

    #[test]
    fn each_path_has_its_current_secret_and_the_one_in_rotation() {
        use RotationStatus::{Archived, Current, InRotation};
        let (table, rejected) = table(&[
            doc(7, "acme", "", InRotation),
            doc(9, "acme", "", Current),
            doc(3, "acme", "", Archived),
            doc(4, "acme", "old", Archived),
            doc(u64::from(u32::MAX), "globex", "", Current),
        ]);
        assert!(rejected.is_empty(), "{rejected:?}");
        assert_eq!(ids(&table, "acme", ""), [Some(9), Some(7)]);
        assert_eq!(ids(&table, "acme", "old"), [None, None]);
        assert_eq!(ids(&table, "globex", ""), [Some(u32::MAX), None]);
        let acme = TenantId::new("acme").unwrap();
        assert!(table.path(&acme, SecretType::Vector, "").is_none());
        assert_eq!(table.count(), 5);
    }

    #[test]
    fn what_does_not_validate_is_left_out_and_named() {
        use RotationStatus::{Archived, Current};
        let mut broken = doc(8, "acme", "broken", Current);
        broken.edek.pop();
        let (table, whys) = table(&[
            doc(0, "acme", "", Current),
            doc(1 << 32, "acme", "", Current),
            doc(5, "", "", Current),
            broken,
            doc(6, "acme", "", Archived),
            doc(6, "acme", "", Current),
            doc(7, "acme", "p", Current),
            doc(9, "acme", "p", Current),
        ]);
        assert_eq!(whys.len(), 6, "{whys:?}");
        for (why, part) in whys.iter().zip([
            "1 to 4294967295",
            "1 to 4294967295",
            "tenant's id",
            "could not be decoded",
            "same id",
            "secret 7 of the same path is current too",
        ]) {
            assert!(why.contains(part), "{why}");
        }
        assert_eq!(table.count(), 2);
        assert_eq!(ids(&table, "acme", "p"), [Some(7), None]);
    }
}
