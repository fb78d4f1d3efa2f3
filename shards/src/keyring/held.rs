//! What one shard holds of a tenant's keys: which, since when they are proven, and when they must go.

use std::{
    cell::{Cell, RefCell},
    fmt,
    hint::black_box,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use aes_gcm::{Aes256Gcm, KeyInit as _};
use tsp_kms::Fingerprint;
use tsp_wire::{Dek, KmsConfigId, edek::LeasedForm};

use super::{ById, KeyId};
use crate::limits::{Limits, TENANT_KEYS_MAX};

/// How long after a question about a key the next one is asked, if it was left open.
pub(super) const ASK_PAUSE: Duration = Duration::from_secs(5);

/// How long a question that was left open excuses from waiting for the next one's answer: the pause, an operation's whole
/// time, and some more.
const EXCUSE: Duration = Duration::from_secs(12);

/// A key in memory. All shards share it: they read it, and it is wiped when the last of them drops it.
pub(crate) enum Key {
    /// Of AES-256-GCM, expanded: wraps and unwraps DEKs.
    Leased(Box<Aes256Gcm>),
    /// A tenant's secret, from which keys are derived.
    Secret(Dek),
}

/// What a key is for. A key that was opened for one purpose never serves another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To wrap and unwrap DEKs.
    Leased,
    /// To derive keys.
    Secret,
}

impl Key {
    pub(super) fn new(purpose: Purpose, key: Dek) -> Arc<Self> {
        Arc::new(match purpose {
            Purpose::Leased => Self::Leased(expand(&key)),
            Purpose::Secret => Self::Secret(key),
        })
    }

    /// The expanded key; `None` if it is for another purpose.
    pub(crate) fn cipher(&self) -> Option<&Aes256Gcm> {
        match self {
            Self::Leased(cipher) => Some(cipher),
            Self::Secret(_) => None,
        }
    }

    /// The secret; `None` if the key is for another purpose.
    pub(crate) fn secret(&self) -> Option<&Dek> {
        match self {
            Self::Leased(_) => None,
            Self::Secret(secret) => Some(secret),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(redacted)")
    }
}

/// Expands a key, and leaves no copy of the schedule, whose first part is the key itself, on the stack.
fn expand(key: &Dek) -> Box<Aes256Gcm> {
    #[inline(never)]
    fn on_the_stack(key: &Dek) -> Box<Aes256Gcm> {
        Box::new(Aes256Gcm::new(key.expose().into()))
    }
    /// Deeper than that reaches, in bytes.
    const DEPTH: usize = 8 << 10;
    let cipher = on_the_stack(key);
    wipe_the_stack::<DEPTH>();
    cipher
}

/// Overwrites what earlier calls left on the unused part of the stack, `DEPTH` bytes of it.
#[inline(never)]
fn wipe_the_stack<const DEPTH: usize>() {
    black_box(&mut [0u8; DEPTH]);
}

/// Wipes what the use of keys leaves on a shard's stack: with wide vectors AES keeps copies of its round keys there, until
/// another call happens to reach as deep. Done when keys have been dropped; takes some microseconds.
fn forget_uses() {
    /// Far deeper than any request's way from the executor down to AES, and a small part of a thread's 2 MiB.
    const DEPTH: usize = 256 << 10;
    wipe_the_stack::<DEPTH>();
}

/// How long keys are held: see [`Limits`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Lifetimes {
    pub(super) revalidate: Duration,
    /// Half of it: nothing is asked before.
    pub(super) young: Duration,
    pub(super) max_age: Duration,
    pub(super) idle: Duration,
}

impl Lifetimes {
    pub(super) fn of(limits: &Limits) -> Self {
        Self {
            revalidate: limits.lease_revalidate,
            young: limits.lease_revalidate / 2,
            max_age: limits.lease_max_age,
            idle: limits.lease_idle,
        }
    }
}

/// What may be done with a key now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Use it.
    Serve,
    /// Use it, and have the KMS asked meanwhile.
    ServeAndAsk,
    /// Have the KMS asked, and wait for what it says.
    AskAndWait,
    /// It is too old for any use.
    Over,
}

/// When a KMS last did, with the tenant's key, what a held key stands for.
#[derive(Debug)]
pub(super) struct Proof {
    /// When that call began.
    at: Cell<Instant>,
    /// The KMS could not be asked just now: until then that is excuse enough.
    excused_until: Cell<Option<Instant>>,
    /// Nothing is asked before this.
    ask_at: Cell<Option<Instant>>,
    used: Cell<Instant>,
    /// Spreads the questions of a process over time: 0 to 255.
    spread: u8,
}

impl Proof {
    fn new(at: Instant, now: Instant, id: &KeyId) -> Self {
        Self {
            at: Cell::new(at),
            excused_until: Cell::new(None),
            ask_at: Cell::new(None),
            used: Cell::new(now),
            spread: id.spread(),
        }
    }

    /// The KMS did it again, by a call that began at `at`.
    pub(super) fn renew(&self, at: Instant) {
        self.at.set(self.at.get().max(at));
        self.excused_until.set(None);
        self.ask_at.set(None);
    }

    /// The KMS could not be asked.
    pub(super) fn left_open(&self, now: Instant) {
        self.excused_until.set(Some(now + EXCUSE));
        self.ask_at.set(Some(now + ASK_PAUSE));
    }

    pub(super) fn at(&self) -> Instant {
        self.at.get()
    }

    /// Decides about a use at `now`. Whoever gets [`Verdict::ServeAndAsk`] must ask; the next ones need not.
    pub(super) fn verdict(&self, now: Instant, lives: &Lifetimes) -> Verdict {
        self.used.set(now);
        let age = now.saturating_duration_since(self.at.get());
        if age >= lives.max_age {
            return Verdict::Over;
        }
        if age < lives.young {
            return Verdict::Serve;
        }
        // From five to six eighths of the time, so that the answer is there long before it is needed.
        let due = lives
            .revalidate
            .mul_f32(0.625 + f32::from(self.spread) / 2048.0);
        if age < due {
            return Verdict::Serve;
        }
        let excused = self.excused_until.get().is_some_and(|until| now < until);
        if age >= lives.revalidate && !excused {
            return Verdict::AskAndWait;
        }
        if self.ask_at.get().is_some_and(|at| now < at) {
            return Verdict::Serve;
        }
        self.ask_at.set(Some(now + ASK_PAUSE));
        Verdict::ServeAndAsk
    }

    /// Whether it need not be asked about yet.
    pub(super) fn is_good(&self, now: Instant, lives: &Lifetimes) -> bool {
        now.saturating_duration_since(self.at.get()) < lives.young
    }

    fn is_wanted(&self, now: Instant, lives: &Lifetimes) -> bool {
        now.saturating_duration_since(self.used.get()) < lives.idle
            && now.saturating_duration_since(self.at.get()) < lives.max_age
    }
}

/// A key that this shard holds, opened by the KMS.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) key: Arc<Key>,
    /// The config whose KMS opened it.
    pub(crate) config: KmsConfigId,
    pub(super) fingerprint: Fingerprint,
    pub(super) proof: Proof,
}

impl Held {
    pub(super) fn new(
        key: Arc<Key>,
        config: KmsConfigId,
        fingerprint: Fingerprint,
        id: &KeyId,
        (at, now): (Instant, Instant),
    ) -> Rc<Self> {
        Rc::new(Self {
            key,
            config,
            fingerprint,
            proof: Proof::new(at, now, id),
        })
    }
}

/// A leased key, as all shards share it.
#[derive(Debug)]
pub(crate) struct Lease {
    /// Its number in EDEKs. Says nothing: two proxies may choose the same.
    pub(super) number: i32,
    pub(super) config: KmsConfigId,
    pub(super) fingerprint: Fingerprint,
    pub(crate) key: Arc<Key>,
    pub(crate) form: LeasedForm,
    /// When its making began.
    pub(super) made: Instant,
}

/// A leased key as one shard uses it.
#[derive(Debug)]
pub(crate) struct ShardLease {
    pub(crate) lease: Arc<Lease>,
    pub(super) proof: Proof,
    /// Wraps by this shard.
    wraps: Cell<u32>,
    renew_at: Cell<Option<Instant>>,
}

/// Whether a lease can be used for one more wrap, and whether a new one is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Young,
    Ageing,
    Over,
}

impl ShardLease {
    pub(super) fn new(lease: Arc<Lease>, id: &KeyId, (at, now): (Instant, Instant)) -> Rc<Self> {
        Rc::new(Self {
            lease,
            proof: Proof::new(at, now, id),
            wraps: Cell::new(0),
            renew_at: Cell::new(None),
        })
    }

    pub(super) fn life(&self, now: Instant, lives: &Lifetimes, wraps_max: u32) -> Life {
        let age = now.saturating_duration_since(self.lease.made);
        let wraps = self.wraps.get();
        if age >= lives.max_age || wraps >= wraps_max {
            Life::Over
        } else if age >= lives.max_age / 4 * 3 || wraps >= wraps_max / 4 * 3 {
            Life::Ageing
        } else {
            Life::Young
        }
    }

    /// Counts a wrap.
    pub(super) fn used(&self) {
        self.wraps.set(self.wraps.get().saturating_add(1));
    }

    /// Whether it is time to ask for the next one; says so once in a while.
    pub(super) fn asks_for_next(&self, now: Instant) -> bool {
        let due = self.renew_at.get().is_none_or(|at| now >= at);
        if due {
            self.renew_at.set(Some(now + ASK_PAUSE));
        }
        due
    }
}

/// The keys of one tenant on one shard. Outlives the snapshots.
///
/// Opened keys are in two generations: what was used lately, and what was used before. When the first is full it
/// becomes the second, and what is left of that is dropped. So a flood of keys that nobody asks for twice passes by
/// those in use, and no tenant's flood touches another tenant's keys.
#[derive(Debug)]
pub(crate) struct TenantKeys {
    tables: RefCell<Tables>,
    /// Opened keys of all tenants of the shard.
    total: Rc<Cell<usize>>,
}

#[derive(Debug, Default)]
struct Tables {
    young: ById<Rc<Held>>,
    old: ById<Rc<Held>>,
    /// One per config at most.
    leases: Vec<Rc<ShardLease>>,
}

impl Tables {
    fn rotate(&mut self, total: &Cell<usize>) {
        let young = std::mem::take(&mut self.young);
        let gone = std::mem::replace(&mut self.old, young);
        total.set(total.get().saturating_sub(gone.len()));
        if !gone.is_empty() {
            drop(gone);
            forget_uses();
        }
    }
}

impl TenantKeys {
    pub(crate) fn new(total: &Rc<Cell<usize>>) -> Rc<Self> {
        Rc::new(Self {
            tables: RefCell::default(),
            total: Rc::clone(total),
        })
    }

    pub(super) fn get(&self, id: &KeyId) -> Option<Rc<Held>> {
        let mut tables = self.tables.borrow_mut();
        if let Some(held) = tables.young.get(id) {
            return Some(Rc::clone(held));
        }
        let held = tables.old.remove(id)?;
        if tables.young.len() >= TENANT_KEYS_MAX / 2 {
            tables.rotate(&self.total);
        }
        tables.young.insert(*id, Rc::clone(&held));
        Some(held)
    }

    /// Takes a key in. Tells whether there was room: the shard's `total_max` is for all tenants.
    pub(super) fn insert(&self, id: KeyId, held: Rc<Held>, total_max: usize) -> bool {
        let mut tables = self.tables.borrow_mut();
        if tables.young.len() >= TENANT_KEYS_MAX / 2 || self.total.get() >= total_max {
            tables.rotate(&self.total);
        }
        if self.total.get() >= total_max {
            return false;
        }
        if tables.young.insert(id, held).is_none() {
            self.total.set(self.total.get() + 1);
        }
        true
    }

    pub(super) fn remove(&self, id: &KeyId) {
        let mut tables = self.tables.borrow_mut();
        let young = tables.young.remove(id).is_some();
        let old = tables.old.remove(id).is_some();
        let gone = usize::from(young) + usize::from(old);
        self.total.set(self.total.get().saturating_sub(gone));
        forget_uses();
    }

    pub(super) fn lease(&self, config: KmsConfigId) -> Option<Rc<ShardLease>> {
        let tables = self.tables.borrow();
        let lease = tables
            .leases
            .iter()
            .find(|known| known.lease.config == config);
        lease.map(Rc::clone)
    }

    /// Takes a lease in, in place of the config's former one.
    pub(super) fn put_lease(&self, lease: Rc<ShardLease>) {
        let mut tables = self.tables.borrow_mut();
        let config = lease.lease.config;
        tables.leases.retain(|known| known.lease.config != config);
        tables.leases.push(lease);
        forget_uses();
    }

    /// Drops the config's lease, if it still has this number.
    pub(super) fn drop_lease(&self, config: KmsConfigId, number: i32) {
        self.tables
            .borrow_mut()
            .leases
            .retain(|known| known.lease.config != config || known.lease.number != number);
        forget_uses();
    }

    /// Drops what stems from configs that are no longer as they were. `keeps` is told config, fingerprint, and whether it
    /// is about a lease.
    pub(crate) fn retain(&self, keeps: impl Fn(KmsConfigId, Fingerprint, bool) -> bool) {
        self.retain_by(
            |held| keeps(held.config, held.fingerprint, false),
            |lease| keeps(lease.lease.config, lease.lease.fingerprint, true),
        );
    }

    /// Drops what nobody used for long, or what is too old for any use.
    pub(super) fn sweep(&self, now: Instant, lives: &Lifetimes) {
        self.retain_by(
            |held| held.proof.is_wanted(now, lives),
            |lease| {
                let age = now.saturating_duration_since(lease.lease.made);
                lease.proof.is_wanted(now, lives) && age < lives.max_age
            },
        );
    }

    /// Drops everything.
    pub(crate) fn clear(&self) {
        self.retain_by(|_| false, |_| false);
    }

    fn retain_by(&self, keeps: impl Fn(&Held) -> bool, keeps_lease: impl Fn(&ShardLease) -> bool) {
        let mut tables = self.tables.borrow_mut();
        let (before, leases) = (tables.young.len() + tables.old.len(), tables.leases.len());
        tables.young.retain(|_, held| keeps(held));
        tables.old.retain(|_, held| keeps(held));
        tables.leases.retain(|lease| keeps_lease(lease));
        let gone = before - tables.young.len() - tables.old.len();
        self.total.set(self.total.get().saturating_sub(gone));
        if gone > 0 || tables.leases.len() < leases {
            forget_uses();
        }
        if tables.young.is_empty() && tables.old.is_empty() {
            // Also the room that a flood has taken.
            *tables = Tables {
                leases: std::mem::take(&mut tables.leases),
                ..Tables::default()
            };
        }
    }

    /// Number of opened keys, and of leases.
    pub(super) fn len(&self) -> (usize, usize) {
        let tables = self.tables.borrow();
        (tables.young.len() + tables.old.len(), tables.leases.len())
    }
}

impl Drop for TenantKeys {
    fn drop(&mut self) {
        let (held, _) = self.len();
        self.total.set(self.total.get().saturating_sub(held));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tsp_kms::Fingerprint;
    use tsp_wire::{
        Secret, TenantId,
        snapshot::{KmsConfigDoc, KmsKeyDoc},
    };

    use super::*;

    #[expect(
        clippy::disallowed_methods,
        reason = "an instant cannot be made otherwise"
    )]
    fn start() -> Instant {
        Instant::now()
    }

    fn id(number: usize) -> KeyId {
        let tenant = TenantId::new("acme").unwrap();
        KeyId::opened(Purpose::Leased, &tenant, &number.to_be_bytes())
    }

    fn fingerprint() -> Fingerprint {
        let key = KmsKeyDoc::Local {
            key: Secret::new([7; 32]),
        };
        Fingerprint::of(&KmsConfigDoc {
            id: 1,
            leasing_allowed: true,
            key,
            endpoint: None,
            allow_insecure: false,
            ca_pem: None,
        })
    }

    fn held(number: usize, now: Instant) -> Rc<Held> {
        let key = Key::new(Purpose::Secret, Dek::fill_with(|key| key.fill(1)));
        let config = KmsConfigId::new(1).unwrap();
        Held::new(key, config, fingerprint(), &id(number), (now, now))
    }

    fn table() -> (Rc<Cell<usize>>, Rc<TenantKeys>) {
        let total = Rc::default();
        let keys = TenantKeys::new(&total);
        (total, keys)
    }

    #[test]
    fn a_flood_stays_within_the_tenants_bound_and_leaves_what_is_in_use() {
        let (now, (total, keys)) = (start(), table());
        assert!(keys.insert(id(0), held(0, now), usize::MAX));
        for number in 1..20 * TENANT_KEYS_MAX {
            assert!(keys.insert(id(number), held(number, now), usize::MAX));
            if number % 100 == 0 {
                assert!(keys.get(&id(0)).is_some(), "after {number} others");
            }
            assert!(keys.len().0 <= TENANT_KEYS_MAX);
            assert_eq!(total.get(), keys.len().0);
        }
        assert!(keys.get(&id(1)).is_none());
        drop(keys);
        assert_eq!(total.get(), 0);
    }

    #[test]
    fn at_the_shards_bound_a_tenant_makes_room_with_its_own_keys_only() {
        let now = start();
        let total = Rc::default();
        let (first, second) = (TenantKeys::new(&total), TenantKeys::new(&total));
        for number in 0..10 {
            assert!(first.insert(id(number), held(number, now), 10));
        }
        assert!(
            !second.insert(id(10), held(10, now), 10),
            "there is no room"
        );
        assert_eq!(first.len().0, 10);
        // The first makes room: what it used before goes at the second try.
        first.insert(id(10), held(10, now), 10);
        assert!(first.insert(id(11), held(11, now), 10));
        assert!(total.get() <= 10);
    }

    proptest! {
        #[test]
        fn the_total_is_what_the_tables_hold(steps in prop::collection::vec((0..4u8, 0..50usize), 0..300)) {
            let (now, (total, keys)) = (start(), table());
            for (what, number) in steps {
                match what {
                    0 => drop(keys.insert(id(number), held(number, now), 30)),
                    1 => keys.remove(&id(number)),
                    2 => drop(keys.get(&id(number))),
                    _ => keys.retain(|_, _, _| number % 7 != 0),
                }
                prop_assert_eq!(total.get(), keys.len().0);
                prop_assert!(total.get() <= 30);
            }
        }

        #[test]
        fn no_verdict_serves_beyond_a_bound(ages in prop::collection::vec((0..2_000u64, any::<bool>()), 1..40), spread: u8) {
            let lives = Lifetimes {
                revalidate: Duration::from_secs(100),
                young: Duration::from_secs(50),
                max_age: Duration::from_secs(1_000),
                idle: Duration::from_secs(500),
            };
            let began = start();
            let mut one = id(0);
            one.0[0] = spread;
            let proof = Proof::new(began, began, &one);
            let mut now = began;
            let mut left_open_at = None;
            for (pause, open) in ages {
                now += Duration::from_millis(pause * 20);
                let verdict = proof.verdict(now, &lives);
                let age = now - began;
                let excused = left_open_at.is_some_and(|at| now - at < EXCUSE);
                let serves = matches!(verdict, Verdict::Serve | Verdict::ServeAndAsk);
                prop_assert_eq!(verdict == Verdict::Over, age >= lives.max_age);
                if serves {
                    prop_assert!(age < lives.revalidate || excused);
                } else if verdict == Verdict::AskAndWait {
                    prop_assert!(age >= lives.revalidate);
                }
                if open {
                    proof.left_open(now);
                    left_open_at = Some(now);
                }
            }
        }
    }
}
