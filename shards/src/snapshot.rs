//! Snapshots: validated once on the control core, then indexed by each shard for itself.
//!
//! What a shard holds cannot be wrong: [`Snapshot::from_doc`] leaves out, and names, whatever does not validate.

mod former;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap, HashSet, btree_map::Entry},
    rc::Rc,
    sync::Arc,
};

use tsp_kms::{CredentialId, Fingerprint, Kms, KmsKind, Session};
use tsp_rt::tls::ClientTls;
use tsp_wire::{
    KmsConfigId, SnapshotVersion, TenantId,
    snapshot::{KmsConfigDoc, KmsKeyDoc, SnapshotDoc, TenantDoc, TenantSecretDoc},
};

use crate::{
    admission::{TenantLoad, TenantNumber},
    breaker::{Breaker, RetryBudget},
    keyring::TenantKeys,
    metrics::ShardMetrics,
    secrets::SecretTable,
    shard::yield_now,
};

pub use former::FormerSnapshots;

/// All tenants, KMS configs and tenant secrets of one moment: validated, immutable, shared by all cores. A clone shares
/// them.
#[derive(Clone, Debug)]
pub struct Snapshot {
    version: SnapshotVersion,
    configs: Arc<Configs>,
    secrets: Arc<SecretTable>,
}

/// What changes when somebody edits a configuration, and not when a tenant secret is created.
#[derive(Debug)]
struct Configs {
    kms: BTreeMap<KmsConfigId, KmsConfig>,
    tenants: BTreeMap<TenantId, Vec<Assignment>>,
}

/// One KMS config.
#[derive(Debug)]
struct KmsConfig {
    /// `None` if it cannot be used, so that its operations can say so.
    kms: Option<Arc<Kms>>,
    leasing_allowed: bool,
    fingerprint: Fingerprint,
}

#[derive(Clone, Copy, Debug)]
struct Assignment {
    kms: KmsConfigId,
    active: bool,
    primary: bool,
}

/// A part of a configuration that was left out.
#[derive(Debug, PartialEq, Eq)]
pub struct Rejected {
    /// What was left out, such as `KMS config 41` or `tenant acme`.
    pub what: String,
    /// Why, in words for the operator; no secret is in it.
    pub why: String,
}

impl Snapshot {
    /// Validates `doc`. What does not validate is left out and named; the rest is served.
    ///
    /// `allow_local` permits the built-in local KMS, whose keys lie with the configuration.
    #[must_use]
    pub fn from_doc(doc: SnapshotDoc, allow_local: bool) -> (Self, Vec<Rejected>) {
        Self::following(None, doc, allow_local)
    }

    /// Likewise, and takes KMS configs that have not changed since `former` from there, ready as they are.
    #[must_use]
    pub fn following(
        former: Option<&Self>,
        doc: SnapshotDoc,
        allow_local: bool,
    ) -> (Self, Vec<Rejected>) {
        let mut rejected = Vec::new();
        let mut kms = BTreeMap::new();
        for config in doc.kms {
            let what = format!("KMS config {}", config.id);
            let Some(id) = KmsConfigId::new(config.id) else {
                let why = "the id must be a number from 1 to 2147483647".to_owned();
                rejected.push(Rejected { what, why });
                continue;
            };
            if kms.contains_key(&id) {
                let why = "another KMS config has the same id".to_owned();
                rejected.push(Rejected { what, why });
                continue;
            }
            let fingerprint = Fingerprint::of(&config);
            let same = former
                .and_then(|former| former.configs.kms.get(&id))
                .filter(|same| same.fingerprint == fingerprint)
                .and_then(|same| same.kms.clone());
            let usable = if matches!(config.key, KmsKeyDoc::Local { .. }) && !allow_local {
                Err("the local KMS is not allowed here; TSP_ALLOW_LOCAL_KMS=true permits it".into())
            } else if let Some(same) = same {
                Ok(same)
            } else {
                validate_kms(&config).map(Arc::new)
            };
            let usable = usable
                .map_err(|why| rejected.push(Rejected { what, why }))
                .ok();
            let config = KmsConfig {
                kms: usable,
                leasing_allowed: config.leasing_allowed,
                fingerprint,
            };
            kms.insert(id, config);
        }
        // What is wrong with them was told by whoever named them.
        for id in doc.unusable.into_iter().filter_map(KmsConfigId::new) {
            kms.entry(id).or_insert(KmsConfig {
                kms: None,
                leasing_allowed: false,
                fingerprint: Fingerprint::of_unusable(id),
            });
        }
        let mut tenants = BTreeMap::new();
        for tenant in doc.tenants {
            let sound = validate_tenant(&tenant, &kms).and_then(|(id, assignments)| match tenants
                .entry(id)
            {
                Entry::Vacant(entry) => Ok(entry.insert(assignments)),
                Entry::Occupied(_) => Err("another tenant has the same id".to_owned()),
            });
            if let Err(why) = sound {
                rejected.push(Rejected {
                    what: format!("tenant {:?}", tenant.id),
                    why,
                });
            }
        }
        let secrets = SecretTable::from_docs(&doc.secrets, &mut rejected);
        (
            Self {
                version: doc.version,
                configs: Arc::new(Configs { kms, tenants }),
                secrets: Arc::new(secrets),
            },
            rejected,
        )
    }

    /// The same tenants and KMS configs with other tenant secrets. Costs a shard nothing: its tables stay.
    #[must_use]
    pub fn with_secrets(
        &self,
        version: SnapshotVersion,
        secrets: &[TenantSecretDoc],
    ) -> (Self, Vec<Rejected>) {
        let mut rejected = Vec::new();
        let secrets = SecretTable::from_docs(secrets, &mut rejected);
        (
            Self {
                version,
                configs: Arc::clone(&self.configs),
                secrets: Arc::new(secrets),
            },
            rejected,
        )
    }

    /// The same tenant secrets with the tenants and KMS configs of `other`, and its version.
    #[must_use]
    pub fn with_configs_of(&self, other: &Self) -> Self {
        Self {
            version: other.version,
            configs: Arc::clone(&other.configs),
            secrets: Arc::clone(&self.secrets),
        }
    }

    /// The snapshot's place in the order of snapshots.
    #[must_use]
    pub fn version(&self) -> SnapshotVersion {
        self.version
    }

    /// Number of tenants served.
    #[must_use]
    pub fn tenant_count(&self) -> usize {
        self.configs.tenants.len()
    }

    /// Number of KMS configs, those that do not validate included.
    #[must_use]
    pub fn kms_config_count(&self) -> usize {
        self.configs.kms.len()
    }

    /// Number of tenant secrets, archived ones included.
    #[must_use]
    pub fn secret_count(&self) -> usize {
        self.secrets.count()
    }
}

/// Makes a KMS config ready for use.
///
/// # Errors
/// What cannot be right in it, in words for the operator; no secret is in them.
pub fn validate_kms(config: &KmsConfigDoc) -> Result<Kms, String> {
    if let Some(pem) = &config.ca_pem {
        ClientTls::with_roots_pem(pem).map_err(|why| format!("ca_file: {why}"))?;
    }
    Kms::from_doc(config).map_err(|why| why.to_string())
}

fn validate_tenant(
    tenant: &TenantDoc,
    kms: &BTreeMap<KmsConfigId, KmsConfig>,
) -> Result<(TenantId, Vec<Assignment>), String> {
    let id = TenantId::new(&tenant.id)
        .ok_or("the id must have 1 to 256 bytes and no control characters")?;
    let mut assignments = Vec::<Assignment>::with_capacity(tenant.assignments.len());
    for assignment in &tenant.assignments {
        let number = assignment.kms;
        let known = KmsConfigId::new(number).filter(|id| kms.contains_key(id));
        let config = known
            .ok_or_else(|| format!("it is assigned KMS config {number}, which does not exist"))?;
        if assignment.primary && !assignment.active {
            return Err(format!("KMS config {number} is primary but not active"));
        }
        if assignments.iter().any(|other| other.kms == config) {
            return Err(format!("KMS config {number} is assigned twice"));
        }
        if assignment.primary && assignments.iter().any(|other| other.primary) {
            return Err("more than one of its KMS configs is primary".into());
        }
        let (active, primary) = (assignment.active, assignment.primary);
        assignments.push(Assignment {
            kms: config,
            active,
            primary,
        });
    }
    Ok((id, assignments))
}

/// Entries of a new table that a shard makes before it looks after its requests again: a few hundred nanoseconds each.
const ENTRIES_AT_ONCE: usize = 256;

/// One shard's own tables, made from a [`Snapshot`]. An operation keeps one from its start to its end.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) version: SnapshotVersion,
    /// What the tables were made from.
    configs: Arc<Configs>,
    tables: Rc<Tables>,
    /// Shared by all cores: only its owners' count is ever written, and that when a snapshot comes or goes.
    pub(crate) secrets: Arc<SecretTable>,
}

/// Tenants and KMS configs, with this shard's own state for them.
#[derive(Debug)]
struct Tables {
    tenants: HashMap<TenantId, Rc<Tenant>>,
    kms: HashMap<KmsConfigId, Rc<KmsHandle>>,
    /// The number that the next new tenant gets.
    next_tenant: TenantNumber,
}

/// A tenant as a shard sees it.
#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) id: TenantId,
    pub(crate) load: TenantLoad,
    pub(crate) primary: Option<Rc<KmsHandle>>,
    /// Its keys in memory.
    pub(crate) keys: Rc<TenantKeys>,
    /// Its place in the count of saved KMS calls.
    meter: Cell<Option<usize>>,
    active: Vec<Rc<KmsHandle>>,
}

/// A KMS config as a shard sees it: the shared, immutable config and this shard's own state for it.
#[derive(Debug)]
pub(crate) struct KmsHandle {
    pub(crate) id: KmsConfigId,
    /// `None` if the config does not validate.
    pub(crate) kms: Option<Arc<Kms>>,
    /// Whether wraps may be done under a leased key.
    pub(crate) leasing_allowed: bool,
    /// Changes when the config is edited.
    pub(crate) fingerprint: Fingerprint,
    pub(crate) state: Rc<KmsState>,
}

/// What a shard remembers of a KMS config from snapshot to snapshot.
#[derive(Debug, Default)]
pub(crate) struct KmsState {
    /// Signing keys and the like.
    pub(crate) session: RefCell<Session>,
    pub(crate) retries: RetryBudget,
    /// Opens when this config's key is not served although its endpoint may well be.
    pub(crate) breaker: Breaker,
}

impl View {
    /// Builds this shard's tables, or takes those of `previous` if only secrets have changed. Lets others run now and then.
    async fn build(
        snapshot: &Snapshot,
        previous: Option<&Self>,
        keys_total: &Rc<Cell<usize>>,
    ) -> Self {
        let tables = match previous {
            Some(previous) if Arc::ptr_eq(&previous.configs, &snapshot.configs) => {
                Rc::clone(&previous.tables)
            }
            Some(_) | None => {
                let previous = previous.map(|view| &*view.tables);
                Rc::new(Tables::build(&snapshot.configs, previous, keys_total).await)
            }
        };
        Self {
            version: snapshot.version,
            configs: Arc::clone(&snapshot.configs),
            tables,
            secrets: Arc::clone(&snapshot.secrets),
        }
    }

    /// Whether `other` has the same tenants and KMS configs.
    pub(crate) fn shares_tables(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.tables, &other.tables)
    }

    /// The credentials that the configs fetch tokens for.
    pub(crate) fn credentials(&self) -> HashSet<CredentialId> {
        self.tables.kms.values().filter_map(credential).collect()
    }

    /// The tenants, with or without an active config.
    pub(crate) fn tenants(&self) -> impl Iterator<Item = &Rc<Tenant>> {
        self.tables.tenants.values()
    }

    /// The tenant, if it is known.
    pub(crate) fn any_tenant(&self, id: &str) -> Option<&Rc<Tenant>> {
        self.tables.tenants.get(id)
    }

    /// The tenant, if it is known and has an active config.
    pub(crate) fn tenant(&self, id: &str) -> Option<&Rc<Tenant>> {
        self.tables
            .tenants
            .get(id)
            .filter(|tenant| !tenant.active.is_empty())
    }
}

impl Tables {
    /// Builds them; what `previous` knows of loads, sessions and keys goes on. Keys that stem from a config that is no longer
    /// active for their tenant, or was edited, are dropped. `keys_total` counts the opened keys of all tenants.
    ///
    /// What has not changed is shared with `previous`, so that there is little to make, and to free afterwards.
    async fn build(
        configs: &Configs,
        previous: Option<&Self>,
        keys_total: &Rc<Cell<usize>>,
    ) -> Self {
        let mut kms = HashMap::with_capacity(configs.kms.len());
        for (count, (id, config)) in configs.kms.iter().enumerate() {
            breathe(count).await;
            let before = previous.and_then(|tables| tables.kms.get(id));
            let handle = match before {
                Some(before) if before.is_made_from(config) => Rc::clone(before),
                Some(_) | None => Rc::new(KmsHandle {
                    id: *id,
                    kms: config.kms.clone(),
                    leasing_allowed: config.leasing_allowed,
                    fingerprint: config.fingerprint,
                    state: before.map_or_else(Rc::default, |before| Rc::clone(&before.state)),
                }),
            };
            kms.insert(*id, handle);
        }
        let mut next_tenant =
            previous.map_or_else(TenantNumber::default, |tables| tables.next_tenant);
        let mut tenants = HashMap::with_capacity(configs.tenants.len());
        for (count, (id, assignments)) in configs.tenants.iter().enumerate() {
            breathe(count).await;
            let handle = |a: &Assignment| kms.get(&a.kms).map(Rc::clone);
            let primary = assignments.iter().find(|a| a.primary).and_then(handle);
            let active = assignments.iter().filter(|a| a.active);
            let active: Vec<_> = active.filter_map(handle).collect();
            let before = previous.and_then(|tables| tables.tenants.get(id));
            let tenant = match before {
                Some(before) if before.has(primary.as_ref(), &active) => Rc::clone(before),
                Some(before) => Rc::new(Tenant {
                    id: id.clone(),
                    load: before.load.share(),
                    keys: Rc::clone(&before.keys),
                    meter: Cell::new(None),
                    primary,
                    active,
                }),
                None => {
                    let number = next_tenant;
                    next_tenant = TenantNumber(number.0 + 1);
                    Rc::new(Tenant {
                        id: id.clone(),
                        load: TenantLoad::new(number),
                        keys: TenantKeys::new(keys_total),
                        meter: Cell::new(None),
                        primary,
                        active,
                    })
                }
            };
            tenants.insert(id.clone(), tenant);
        }
        // In one go, right before the tables are used: what ran in between may have left keys of a config that goes.
        for tenant in tenants.values() {
            tenant.keys.retain(|config, fingerprint, lease| {
                let config = tenant.active(config.number());
                config.is_some_and(|config| {
                    config.fingerprint == fingerprint && (config.leasing_allowed || !lease)
                })
            });
        }
        // Operations that go on may hold the old view; its keys go now.
        let gone = previous.into_iter().flat_map(|tables| &tables.tenants);
        for (_, tenant) in gone.filter(|(id, _)| !tenants.contains_key(*id)) {
            tenant.keys.clear();
        }
        Self {
            tenants,
            kms,
            next_tenant,
        }
    }
}

/// Lets the shard's other tasks run, once in a while.
async fn breathe(count: usize) {
    if count % ENTRIES_AT_ONCE == ENTRIES_AT_ONCE - 1 {
        yield_now().await;
    }
}

/// The credential that a config fetches tokens for, if it does.
fn credential(config: &Rc<KmsHandle>) -> Option<CredentialId> {
    match config.kms.as_deref()? {
        Kms::Local(_) => None,
        Kms::Remote(remote) => remote.credential(),
    }
}

impl KmsHandle {
    /// Whether it is what `config` makes.
    fn is_made_from(&self, config: &KmsConfig) -> bool {
        let same_kms = match (&self.kms, &config.kms) {
            (Some(own), Some(other)) => Arc::ptr_eq(own, other),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        same_kms
            && self.fingerprint == config.fingerprint
            && self.leasing_allowed == config.leasing_allowed
    }
}

impl Tenant {
    /// Whether these are its configs, the very same ones.
    fn has(&self, primary: Option<&Rc<KmsHandle>>, active: &[Rc<KmsHandle>]) -> bool {
        let same = |(own, other): (&Rc<KmsHandle>, &Rc<KmsHandle>)| Rc::ptr_eq(own, other);
        let same_primary = match (&self.primary, primary) {
            (Some(own), Some(other)) => same((own, other)),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        same_primary
            && self.active.len() == active.len()
            && self.active.iter().zip(active).all(same)
    }

    /// The credentials that its configs fetch tokens for.
    pub(crate) fn credentials(&self) -> HashSet<CredentialId> {
        self.active.iter().filter_map(credential).collect()
    }

    /// Counts an operation that a key in memory spared a KMS call.
    pub(crate) fn saved_a_call(&self, metrics: &ShardMetrics) {
        let place = self.meter.get().unwrap_or_else(|| {
            let place = metrics.meter(self.id.as_str());
            self.meter.set(Some(place));
            place
        });
        metrics.saved_a_call(place);
    }

    /// The active config with this number, primary or not.
    pub(crate) fn active(&self, number: i32) -> Option<&Rc<KmsHandle>> {
        self.active
            .iter()
            .find(|handle| handle.id.number() == number)
    }

    /// The kind of the primary config's KMS: the label of this tenant's requests.
    pub(crate) fn kms_kind(&self) -> Option<KmsKind> {
        self.primary.as_ref()?.kms.as_ref().map(|kms| kms.kind())
    }
}

/// The current [`View`] of a shard.
#[derive(Debug, Default)]
pub(crate) struct SnapshotSlot(RefCell<Option<Rc<View>>>);

impl SnapshotSlot {
    /// The current view; `None` before the first snapshot.
    pub(crate) fn load(&self) -> Option<Rc<View>> {
        self.0.borrow().clone()
    }

    /// Takes `snapshot` if it is newer than the current one; tells whether it was. One at a time: only its caller replaces
    /// the current one.
    pub(crate) async fn offer(&self, snapshot: &Snapshot, keys_total: &Rc<Cell<usize>>) -> bool {
        let current = self.load();
        if current
            .as_ref()
            .is_some_and(|view| view.version >= snapshot.version)
        {
            return false;
        }
        let next = Rc::new(View::build(snapshot, current.as_deref(), keys_total).await);
        self.0.replace(Some(next));
        true
    }

    /// Likewise, where there is nobody else to let run.
    #[cfg(any(test, feature = "bench"))]
    pub(crate) fn offer_alone(&self, snapshot: &Snapshot, keys_total: &Rc<Cell<usize>>) -> bool {
        use std::task::{Context, Poll, Waker};

        let mut offer = std::pin::pin!(self.offer(snapshot, keys_total));
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(taken) = offer.as_mut().poll(&mut context) {
                return taken;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tsp_wire::{
        Secret,
        derive::{RotationStatus, SecretType},
        edek,
        snapshot::AssignmentDoc,
    };

    use super::*;

    const CANARY: u8 = 0xC4;

    fn local(id: i64) -> KmsConfigDoc {
        KmsConfigDoc {
            id,
            leasing_allowed: false,
            key: KmsKeyDoc::Local {
                key: Secret::new([CANARY; 32]),
            },
            endpoint: None,
            allow_insecure: false,
            ca_pem: None,
        }
    }

    fn aws(id: i64, region: &str) -> KmsConfigDoc {
        let key = KmsKeyDoc::Aws {
            key_id: "alias/acme".into(),
            region: region.into(),
            access_key_id: "AKIDEXAMPLE".into(),
            secret_access_key: Secret::new("canary-secret".into()),
            session_token: Some(Secret::new("canary-token".into())),
            assume_role: None,
            sts_endpoint: None,
        };
        KmsConfigDoc { key, ..local(id) }
    }

    fn tenant(id: &str, assignments: &[(i64, bool, bool)]) -> TenantDoc {
        let assignments = assignments
            .iter()
            .map(|&(kms, active, primary)| AssignmentDoc {
                kms,
                active,
                primary,
            })
            .collect();
        TenantDoc {
            id: id.into(),
            assignments,
        }
    }

    fn doc(version: u64, kms: Vec<KmsConfigDoc>, tenants: Vec<TenantDoc>) -> SnapshotDoc {
        SnapshotDoc {
            version: SnapshotVersion(version),
            kms,
            unusable: Vec::new(),
            tenants,
            secrets: Vec::new(),
        }
    }

    fn view_of(snapshot: &Snapshot) -> Rc<View> {
        let slot = SnapshotSlot::default();
        assert!(slot.offer_alone(snapshot, &Rc::default()));
        slot.load().unwrap()
    }

    fn left_out(rejected: &[Rejected]) -> Vec<&str> {
        rejected
            .iter()
            .map(|rejected| rejected.what.as_str())
            .collect()
    }

    #[test]
    fn what_does_not_validate_is_left_out_and_named_and_the_rest_is_served() {
        let kms = vec![
            local(1),
            local(0),
            local(1),
            aws(2, "not a region"),
            aws(3, "eu-west-1"),
        ];
        let tenants = vec![
            tenant("good", &[(1, true, true), (3, true, false)]),
            tenant("", &[]),
            tenant("two primaries", &[(1, true, true), (3, true, true)]),
            tenant("primary but not active", &[(1, false, true)]),
            tenant("unknown config", &[(9, true, true)]),
            tenant("same config twice", &[(1, true, false), (1, true, true)]),
            tenant("good", &[(3, true, true)]),
            tenant("broken config", &[(2, true, true)]),
        ];
        let (snapshot, rejected) = Snapshot::from_doc(doc(7, kms, tenants), true);
        let named = [
            "KMS config 0",
            "KMS config 1",
            "KMS config 2",
            "tenant \"\"",
            "tenant \"two primaries\"",
            "tenant \"primary but not active\"",
            "tenant \"unknown config\"",
            "tenant \"same config twice\"",
            "tenant \"good\"",
        ];
        assert_eq!(left_out(&rejected), named);
        let view = view_of(&snapshot);
        let good = view.tenant("good").unwrap();
        assert_eq!(
            good.primary.as_ref().unwrap().id.number(),
            1,
            "the first of two stays"
        );
        assert!(good.active(3).is_some());
        assert!(view.tenant("two primaries").is_none());
        let broken = view.tenant("broken config").unwrap();
        assert!(
            broken.primary.as_ref().unwrap().kms.is_none(),
            "so that its operations say why"
        );
    }

    #[test]
    fn a_tenant_keeps_its_assignment_to_a_config_that_cannot_be_used() {
        let tenants = vec![tenant("t", &[(1, true, false), (2, true, true)])];
        let doc = SnapshotDoc {
            unusable: vec![2, 1, 0, -7],
            ..doc(1, vec![local(1)], tenants)
        };
        let (snapshot, rejected) = Snapshot::from_doc(doc, true);
        assert_eq!(rejected, [], "they were named by their source");
        let view = view_of(&snapshot);
        let tenant = view.tenant("t").unwrap();
        assert!(tenant.primary.as_ref().unwrap().kms.is_none());
        assert!(tenant.active(1).unwrap().kms.is_some());
    }

    #[test]
    fn the_local_kms_is_refused_where_it_is_not_allowed() {
        let (_, rejected) = Snapshot::from_doc(doc(1, vec![local(1)], vec![]), false);
        assert_eq!(left_out(&rejected), ["KMS config 1"]);
        assert!(rejected[0].why.contains("TSP_ALLOW_LOCAL_KMS"));
    }

    #[test]
    fn a_certificate_file_without_certificates_is_named() {
        let config = KmsConfigDoc {
            ca_pem: Some("nothing".into()),
            ..aws(1, "eu-west-1")
        };
        let (_, rejected) = Snapshot::from_doc(doc(1, vec![config], vec![]), true);
        assert!(rejected[0].why.starts_with("ca_file"), "{rejected:?}");
    }

    #[test]
    fn an_older_snapshot_is_ignored() {
        let total = &Rc::default();
        let slot = SnapshotSlot::default();
        let snapshot =
            |version, tenants| Snapshot::from_doc(doc(version, vec![local(1)], tenants), true).0;
        assert!(slot.offer_alone(&snapshot(2, vec![tenant("new", &[(1, true, true)])]), total));
        assert!(!slot.offer_alone(&snapshot(1, vec![]), total));
        assert!(!slot.offer_alone(&snapshot(2, vec![]), total));
        assert!(slot.load().unwrap().tenant("new").is_some());
    }

    #[test]
    fn load_and_sessions_outlive_a_snapshot_and_tenants_keep_their_numbers() {
        let slot = SnapshotSlot::default();
        let snapshot = |version, names: &[&str]| {
            let tenants = names
                .iter()
                .map(|name| tenant(name, &[(1, true, true)]))
                .collect();
            Snapshot::from_doc(doc(version, vec![aws(1, "eu-west-1")], tenants), true).0
        };
        slot.offer_alone(&snapshot(1, &["a", "b"]), &Rc::default());
        let before = slot.load().unwrap();
        slot.offer_alone(&snapshot(2, &["b", "c"]), &Rc::default());
        let after = slot.load().unwrap();
        let config = |view: &View| Rc::clone(view.tenant("b").unwrap().primary.as_ref().unwrap());
        assert!(Rc::ptr_eq(&config(&before).state, &config(&after).state));
        let number = |view: &View, id| view.tenant(id).unwrap().load.number;
        assert_eq!(number(&before, "b"), number(&after, "b"));
        let all = [
            number(&before, "a"),
            number(&before, "b"),
            number(&after, "c"),
        ];
        assert!(
            all[0] != all[1] && all[1] != all[2] && all[0] != all[2],
            "{all:?}"
        );
    }

    #[test]
    fn other_secrets_leave_the_tables_as_they_are() {
        let total = &Rc::default();
        let slot = SnapshotSlot::default();
        let tenants = vec![tenant("acme", &[(1, true, true)])];
        let (first, _) = Snapshot::from_doc(doc(1, vec![local(1)], tenants), true);
        let secret = |id| TenantSecretDoc {
            id,
            tenant: "acme".into(),
            secret_type: SecretType::Vector,
            path: "p".into(),
            status: RotationStatus::Current,
            edek: edek::encode_unleased(KmsConfigId::new(1).unwrap(), b"blob"),
        };
        let (second, rejected) = first.with_secrets(SnapshotVersion(2), &[secret(7)]);
        assert_eq!((rejected, second.secret_count()), (vec![], 1));
        slot.offer_alone(&first, total);
        let before = slot.load().unwrap();
        assert!(slot.offer_alone(&second, total));
        let after = slot.load().unwrap();
        assert!(Rc::ptr_eq(&before.tables, &after.tables));
        let acme = &after.tenant("acme").unwrap().id;
        let path = |view: &View| view.secrets.path(acme, SecretType::Vector, "p").is_some();
        assert_eq!((path(&before), path(&after)), (false, true));

        let (edited, _) = Snapshot::from_doc(doc(3, vec![local(2)], vec![]), true);
        assert!(slot.offer_alone(&second.with_configs_of(&edited), total));
        let edited = slot.load().unwrap();
        assert!(path(&edited) && edited.tenant("acme").is_none());
    }

    #[test]
    fn what_has_not_changed_is_not_made_again() {
        let tenants = || {
            vec![
                tenant("a", &[(1, true, true)]),
                tenant("b", &[(2, true, true)]),
                tenant("c", &[(1, true, true), (2, true, false)]),
            ]
        };
        let kms = |region| vec![aws(1, "eu-west-1"), aws(2, region)];
        let (first, _) = Snapshot::from_doc(doc(1, kms("eu-west-1"), tenants()), true);
        let edited = doc(2, kms("eu-west-2"), tenants());
        let (second, _) = Snapshot::following(Some(&first), edited, true);
        let slot = SnapshotSlot::default();
        assert!(slot.offer_alone(&first, &Rc::default()));
        let before = slot.load().unwrap();
        assert!(slot.offer_alone(&second, &Rc::default()));
        let after = slot.load().unwrap();
        let same = |name| {
            let of = |view: &View| Rc::clone(view.tenant(name).unwrap());
            Rc::ptr_eq(&of(&before), &of(&after))
        };
        assert_eq!(["a", "b", "c"].map(same), [true, false, false]);
        let config =
            |view: &View, number| Rc::clone(view.tenant("c").unwrap().active(number).unwrap());
        assert!(Rc::ptr_eq(&config(&before, 1), &config(&after, 1)));
        assert_ne!(
            config(&before, 2).fingerprint,
            config(&after, 2).fingerprint
        );

        // Whether keys may be leased from a config stands beside it.
        let mut leasing = doc(3, kms("eu-west-2"), tenants());
        leasing.kms[0].leasing_allowed = true;
        let (third, _) = Snapshot::following(Some(&second), leasing, true);
        assert!(slot.offer_alone(&third, &Rc::default()));
        let third = slot.load().unwrap();
        assert!(config(&third, 1).leasing_allowed && !config(&after, 1).leasing_allowed);
        assert!(Rc::ptr_eq(&config(&third, 2), &config(&after, 2)));
    }

    #[test]
    fn a_tenant_without_active_configs_is_as_good_as_unknown() {
        let tenants = vec![tenant("disabled", &[(1, false, false)])];
        let (snapshot, rejected) = Snapshot::from_doc(doc(1, vec![local(1)], tenants), true);
        assert_eq!(rejected, []);
        assert!(view_of(&snapshot).tenant("disabled").is_none());
    }

    #[test]
    fn no_secret_is_printed_with_a_snapshot() {
        let kms = vec![local(1), aws(2, "eu-west-1")];
        let (snapshot, _) =
            Snapshot::from_doc(doc(1, kms, vec![tenant("t", &[(1, true, true)])]), true);
        let printed = format!("{snapshot:?} {:?}", view_of(&snapshot));
        assert!(!printed.contains("canary"), "{printed}");
        assert!(!printed.contains(&CANARY.to_string()), "{printed}");
    }
}
