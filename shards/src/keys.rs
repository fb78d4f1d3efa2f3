//! Who may call: the API keys that applications present, and what each of them may do.
//!
//! `API_KEY` and `API_KEY_2` are compared as they are and may do everything. Any number of further keys is known by digest
//! alone; these can be limited to tenants and operations, and end at a time. A digest is only made of what is neither of the
//! two, so that they cost what they cost without a file.

use std::{
    cell::RefCell,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};

use hyper::header::HeaderValue;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tsp_wire::{ApiKey, TenantId};

use crate::metrics::Endpoint;

/// The API keys that applications may present.
#[derive(Debug)]
pub struct ApiKeys {
    first: Option<Arc<ApiKey>>,
    second: Option<(Arc<ApiKey>, Arc<KeyUses>)>,
    /// In the order of their digests.
    hashed: Box<[HashedKey]>,
}

impl ApiKeys {
    /// Accepts `first`, and `second` if there is one.
    #[must_use]
    pub fn new(first: ApiKey, second: Option<ApiKey>) -> Self {
        let second = second.map(|key| (Arc::new(key), Arc::new(KeyUses::new(1))));
        Self::of(Some(Arc::new(first)), second, Vec::new())
    }

    /// Accepts those that there are: `API_KEY`, `API_KEY_2`, and what is known by digest. Of two with one digest, either.
    #[must_use]
    pub fn of(
        first: Option<Arc<ApiKey>>,
        second: Option<(Arc<ApiKey>, Arc<KeyUses>)>,
        mut hashed: Vec<HashedKey>,
    ) -> Self {
        hashed.sort_unstable_by_key(|key| key.digest);
        Self {
            first,
            second,
            hashed: hashed.into(),
        }
    }

    /// The same, with nothing whose references two shards count.
    fn for_one_shard(&self) -> Self {
        let hashed = self.hashed.iter().map(|key| HashedKey {
            scope: key.scope.as_deref().cloned().map(Arc::new),
            ..key.clone()
        });
        Self {
            first: self.first.clone(),
            second: self.second.clone(),
            hashed: hashed.collect(),
        }
    }

    /// Who presents an `Authorization` header, if it holds one of the keys. Looks at both that are compared as they are,
    /// in constant time.
    pub(crate) fn caller(
        &self,
        header: Option<&HeaderValue>,
        shard: usize,
        now: impl FnOnce() -> SystemTime,
    ) -> Option<Caller> {
        let presented = header.and_then(|value| value.as_bytes().strip_prefix(b"cmk "))?;
        let first = self
            .first
            .as_ref()
            .is_some_and(|key| key.matches(presented));
        let second = self
            .second
            .as_ref()
            .filter(|(key, _)| key.matches(presented));
        if first {
            return Some(Caller { scope: None });
        }
        match second {
            Some((_, uses)) => {
                uses.note(shard, now());
                Some(Caller { scope: None })
            }
            None if self.hashed.is_empty() => None,
            None => self.hashed_caller(presented, shard, now()),
        }
    }

    /// Finds a key by its digest. How long the search takes tells something of the digest of what was presented, which whoever
    /// presented it knows; the end is compared in constant time all the same.
    #[cold]
    fn hashed_caller(&self, presented: &[u8], shard: usize, now: SystemTime) -> Option<Caller> {
        if presented.len() > ApiKey::BYTES_MAX {
            return None;
        }
        let digest: [u8; 32] = Sha256::digest(presented).into();
        let place = self
            .hashed
            .partition_point(|key| key.digest.get(..8) < digest.get(..8));
        let key = self
            .hashed
            .get(place..)?
            .iter()
            .take_while(|key| key.digest.get(..8) == digest.get(..8))
            .find(|key| bool::from(key.digest.ct_eq(&digest)))?;
        if key.expires.is_some_and(|expires| now >= expires) {
            return None;
        }
        key.uses.note(shard, now);
        Some(Caller {
            scope: key.scope.clone(),
        })
    }
}

/// A key that is known by its digest. It has to be random enough that nobody finds it by trying: what is not is not made
/// safe by a fast digest.
#[derive(Clone, Debug)]
pub struct HashedKey {
    /// The SHA-256 of the key.
    pub digest: [u8; 32],
    /// When it ends.
    pub expires: Option<SystemTime>,
    /// What it is limited to.
    pub scope: Option<Arc<KeyScope>>,
    /// Counts when it is used.
    pub uses: Arc<KeyUses>,
}

/// What a key may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyScope {
    /// In order; `None` for all.
    tenants: Option<Box<[TenantId]>>,
    operations: Option<Box<[Endpoint]>>,
}

impl KeyScope {
    /// Limits a key to `tenants`, if there are any, and to `operations`, if there are any: paths below `/api/1/`, such as
    /// `document/wrap`.
    ///
    /// # Errors
    /// The first of the operations that there is not.
    pub fn new<'a>(
        tenants: Option<Vec<TenantId>>,
        operations: Option<&'a [String]>,
    ) -> Result<Self, &'a str> {
        let known = |name: &'a String| {
            let mut endpoints = Endpoint::ALL.iter();
            endpoints
                .find(|endpoint| endpoint.as_str() == name && **endpoint != Endpoint::Other)
                .copied()
                .ok_or(name.as_str())
        };
        let operations = operations.map(|names| names.iter().map(known).collect());
        let tenants = tenants.map(|mut tenants| {
            tenants.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
            tenants.into_boxed_slice()
        });
        Ok(Self {
            tenants,
            operations: operations.transpose()?,
        })
    }

    /// The names of all operations.
    pub fn operations() -> impl Iterator<Item = &'static str> {
        let all = Endpoint::ALL.iter();
        all.filter(|endpoint| **endpoint != Endpoint::Other)
            .map(|endpoint| endpoint.as_str())
    }
}

/// When a key was used, and how often. One per name of a key; it outlives the states of a file.
pub struct KeyUses(Box<[Slot]>);

/// A shard's part, on a cache line that no other shard writes.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Slot {
    uses: AtomicU64,
    last_s: AtomicU64,
}

impl KeyUses {
    /// For so many shards.
    #[must_use]
    pub fn new(shards: usize) -> Self {
        Self((0..shards).map(|_| Slot::default()).collect())
    }

    /// How often, since the process began.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().map(|slot| slot.uses.load(Relaxed)).sum()
    }

    /// When last, in seconds since 1970; 0 for never since the process began.
    #[must_use]
    pub fn last_s(&self) -> u64 {
        let lasts = self.0.iter().map(|slot| slot.last_s.load(Relaxed));
        lasts.max().unwrap_or_default()
    }

    fn note(&self, shard: usize, now: SystemTime) {
        if let Some(slot) = self.0.get(shard) {
            let since = now.duration_since(SystemTime::UNIX_EPOCH);
            slot.last_s
                .store(since.unwrap_or_default().as_secs(), Relaxed);
            let uses = slot.uses.load(Relaxed);
            slot.uses.store(uses.wrapping_add(1), Relaxed);
        }
    }
}

impl fmt::Debug for KeyUses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyUses({})", self.count())
    }
}

/// Who presented a key that is known.
#[derive(Debug)]
pub(crate) struct Caller {
    scope: Option<Arc<KeyScope>>,
}

impl Caller {
    /// Whether the caller may ask for this operation at all.
    pub(crate) fn may_call(&self, endpoint: Endpoint) -> bool {
        let operations = self
            .scope
            .as_ref()
            .and_then(|scope| scope.operations.as_ref());
        operations.is_none_or(|operations| operations.contains(&endpoint))
    }

    /// Whether the caller may do so for this tenant, whether there is one or not.
    pub(crate) fn may_act_for(&self, tenant: &str) -> bool {
        let tenants = self.scope.as_ref().and_then(|scope| scope.tenants.as_ref());
        tenants.is_none_or(|tenants| {
            let found = tenants.binary_search_by(|known| known.as_str().cmp(tenant));
            found.is_ok()
        })
    }
}

/// What a shard accepts at present: a copy of its own, because each request counts a reference to its key's scope.
#[derive(Debug)]
pub(crate) struct KeysInForce {
    keys: RefCell<ApiKeys>,
    shard: usize,
}

impl KeysInForce {
    pub(crate) fn new(keys: &ApiKeys, shard: usize) -> Self {
        let keys = RefCell::new(keys.for_one_shard());
        Self { keys, shard }
    }

    pub(crate) fn renew(&self, keys: &ApiKeys) {
        *self.keys.borrow_mut() = keys.for_one_shard();
    }

    /// As [`ApiKeys::caller`].
    pub(crate) fn caller(
        &self,
        header: Option<&HeaderValue>,
        now: impl FnOnce() -> SystemTime,
    ) -> Option<Caller> {
        self.keys.borrow().caller(header, self.shard, now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const GIVEN: &str = "given-0123456789";
    const LISTED: &str = "listed-0123456789";

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn hashed(key: &str, scope: Option<KeyScope>) -> HashedKey {
        HashedKey {
            digest: Sha256::digest(key).into(),
            expires: Some(at(1_000)),
            scope: scope.map(Arc::new),
            uses: Arc::new(KeyUses::new(2)),
        }
    }

    fn ask(keys: &ApiKeys, header: &str, now: SystemTime) -> Option<Caller> {
        keys.caller(Some(&HeaderValue::from_str(header).unwrap()), 1, || now)
    }

    #[test]
    fn a_listed_key_is_found_among_many_until_it_ends_and_its_uses_are_counted() {
        let mut all: Vec<_> = (0..200)
            .map(|number| hashed(&format!("another-{number}"), None))
            .collect();
        let key = hashed(LISTED, None);
        let uses = Arc::clone(&key.uses);
        all.insert(77, key);
        let first = ApiKey::new(GIVEN.to_owned()).map(Arc::new);
        let keys = ApiKeys::of(first, None, all);
        assert!(ask(&keys, &format!("cmk {GIVEN}"), at(5)).is_some());
        assert_eq!((uses.count(), uses.last_s()), (0, 0));
        assert!(ask(&keys, &format!("cmk {LISTED}"), at(5)).is_some());
        assert!(ask(&keys, &format!("cmk {LISTED}"), at(7)).is_some());
        assert_eq!((uses.count(), uses.last_s()), (2, 7));
        assert!(ask(&keys, &format!("cmk {LISTED}"), at(1_000)).is_none());
        let long = "x".repeat(ApiKey::BYTES_MAX + 1);
        for wrong in [
            "",
            "cmk ",
            LISTED,
            "cmk listed-012345678",
            &format!("cmk {long}"),
        ] {
            assert!(ask(&keys, wrong, at(5)).is_none(), "{wrong}");
        }
        assert!(keys.caller(None, 1, || at(5)).is_none());
    }

    #[test]
    fn without_a_key_that_is_given_only_the_listed_ones_count() {
        let keys = ApiKeys::of(None, None, vec![hashed(LISTED, None)]);
        assert!(ask(&keys, &format!("cmk {LISTED}"), at(5)).is_some());
        assert!(ask(&keys, &format!("cmk {GIVEN}"), at(5)).is_none());
    }

    #[test]
    fn a_scope_names_tenants_and_operations() {
        let tenants = ["globex", "acme"].map(|id| TenantId::new(id).unwrap());
        let operations = ["document/unwrap".to_owned()];
        let scope = KeyScope::new(Some(tenants.to_vec()), Some(&operations)).unwrap();
        let keys = ApiKeys::of(None, None, vec![hashed(LISTED, Some(scope))]);
        let caller = ask(&keys, &format!("cmk {LISTED}"), at(5)).unwrap();
        assert!(caller.may_act_for("acme") && caller.may_act_for("globex"));
        assert!(!caller.may_act_for("initech") && !caller.may_act_for(""));
        assert!(caller.may_call(Endpoint::Unwrap) && !caller.may_call(Endpoint::Wrap));
        for unknown in ["other", "wrap", ""] {
            let operations = [unknown.to_owned()];
            assert_eq!(KeyScope::new(None, Some(&operations)), Err(unknown));
        }
        assert_eq!(KeyScope::operations().count(), 8);
    }

    #[test]
    fn either_of_two_given_keys_is_accepted_and_a_switch_takes_effect() {
        let key = |text: &str| ApiKey::new(text.to_owned()).unwrap();
        let keys = ApiKeys::new(key("first-key"), Some(key("second-key")));
        let in_force = KeysInForce::new(&keys, 0);
        let ask = |text: &str| {
            let header = HeaderValue::from_str(text).unwrap();
            in_force.caller(Some(&header), || at(1)).is_some()
        };
        assert!(ask("cmk first-key") && ask("cmk second-key"));
        assert!(!ask("cmk third-key") && !ask("first-key"));
        in_force.renew(&ApiKeys::new(key("third-key"), None));
        assert!(ask("cmk third-key") && !ask("cmk second-key"));
    }
}
