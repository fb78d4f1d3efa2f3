//! Doors to the steps of a request that only a shard takes, so that `bench` can measure each alone. Feature `bench`.

use std::{
    cell::Cell,
    fmt,
    rc::Rc,
    time::{Duration, SystemTime},
};

use aes_gcm::{Aes256Gcm, KeyInit as _};
use hyper::header::HeaderValue;
use tsp_kms::KmsKind;
use tsp_wire::{Dek, KmsConfigId, edek::LeasedForm};

use crate::{
    ApiKeys, Limits, Snapshot,
    admission::{Admission, TenantLoad, TenantNumber},
    dek::{open_leased, seal_leased},
    metrics::{Endpoint, KeyOperation, ShardMetrics, TenantNames},
    places::{Places, Turn},
    snapshot::SnapshotSlot,
};

/// Whether a request's `Authorization` presents one of the keys.
#[must_use]
pub fn allows(keys: &ApiKeys, authorization: Option<&HeaderValue>) -> bool {
    keys.caller(authorization, 0, || SystemTime::UNIX_EPOCH)
        .is_some()
}

/// A leased key in memory, with the EDEK that has its gaps filled for every wrap.
pub struct Lease {
    cipher: Aes256Gcm,
    form: LeasedForm,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lease(redacted)")
    }
}

impl Lease {
    /// Under `key`, which its KMS config has wrapped to `wrapped`.
    #[must_use]
    pub fn new(key: &Dek, config: KmsConfigId, wrapped: &[u8]) -> Self {
        Self {
            cipher: Aes256Gcm::new(key.expose().into()),
            form: LeasedForm::new(config, 1, wrapped),
        }
    }

    /// The EDEK of `dek`.
    #[must_use]
    pub fn wrap(&self, dek: &Dek, iv: &[u8; LeasedForm::IV_BYTES]) -> Option<Vec<u8>> {
        let data = seal_leased(&self.cipher, iv, dek)?;
        let mut edek = Vec::new();
        self.form.write(&mut edek, iv, &data);
        Some(edek)
    }

    /// The DEK of an EDEK's parts.
    ///
    /// # Errors
    /// What does not fit, in words.
    pub fn unwrap(&self, iv: &[u8], data: &[u8]) -> Result<Dek, &'static str> {
        open_leased(&self.cipher, iv, data)
    }
}

/// A shard's tables.
#[derive(Debug, Default)]
pub struct Tables(SnapshotSlot);

impl Tables {
    /// Those of `snapshot`.
    #[must_use]
    pub fn new(snapshot: &Snapshot) -> Self {
        let slot = SnapshotSlot::default();
        slot.offer_alone(snapshot, &Rc::new(Cell::new(0)));
        Self(slot)
    }

    /// The primary KMS config of a tenant, found as a wrap finds it.
    #[must_use]
    pub fn primary(&self, tenant: &str) -> Option<KmsConfigId> {
        let view = self.0.load()?;
        let primary = view.tenant(tenant)?.primary.as_ref()?;
        Some(primary.id)
    }
}

/// Places among a shard's requests, and among its connections to a KMS.
#[derive(Debug)]
pub struct Pools {
    admission: Admission,
    load: TenantLoad,
    places: Places,
}

impl Default for Pools {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            admission: Admission::new(limits.inflight_max, limits.tenant_inflight_max),
            load: TenantLoad::new(TenantNumber(1)),
            places: Places::new(
                limits.kms_connections_max,
                limits.kms_tenant_connections_max,
                limits.kms_waiters_max,
            ),
        }
    }
}

impl Pools {
    /// Takes a request's place and gives it back; tells whether there was one.
    #[must_use]
    pub fn admit(&self) -> bool {
        self.admission.admit(&self.load).is_ok()
    }

    /// Takes a connection's place and gives it back; tells whether there was one.
    #[must_use]
    pub fn connection(&self) -> bool {
        let taken = self.places.take(self.load.number);
        matches!(taken, Ok(Turn::Now(_)))
    }
}

/// A shard's metrics.
#[derive(Debug)]
pub struct Metrics(ShardMetrics);

impl Default for Metrics {
    fn default() -> Self {
        Self(ShardMetrics::new(TenantNames::default().into()))
    }
}

impl Metrics {
    /// All that a wrap counts.
    pub fn count_a_wrap(&self) {
        let took = Duration::from_micros(40);
        self.0.request_begins(Endpoint::Wrap);
        self.0.key_operation(KeyOperation::Wrap);
        self.0.request_ends(Endpoint::Wrap);
        self.0
            .request(Endpoint::Wrap, Some(KmsKind::Local), (200, None), took);
    }
}
