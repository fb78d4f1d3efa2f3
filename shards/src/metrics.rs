//! What each shard counts, and the families that a scrape sees.
//!
//! A shard writes only its own numbers, with plain relaxed stores: no other core writes that cache line. A scrape adds
//! up all shards. Labels are closed enums, so that nothing a client sends can add a series; the client's own language
//! and version, which are text, share a fixed number of slots.

mod hub;
mod labels;

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tsp_kms::{KmsKind, KmsOperation};
use tsp_wire::TspCode;

pub use self::hub::MetricsHub;
pub(crate) use self::labels::{
    ClientHandshake, ClosedBy, Endpoint, Handshake, KeyOperation, KeyUse, KeysHeld, RefusedBy,
    SecretCreation,
};
use self::labels::{KMS_KINDS, KMS_OPERATIONS, KMS_STATUSES, OUTCOMES, kms_index};

/// Upper bounds of the duration histograms, in microseconds.
const BUCKETS_US: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

/// Distinct client languages and versions that are told apart per shard; the rest count as `other`.
const CLIENTS_MAX: usize = 32;

/// Longest language or version text that is taken as a label, in bytes.
const CLIENT_LABEL_BYTES_MAX: usize = 32;

/// Tenants whose saved KMS calls are told apart; the rest count as `other`. A series each, whatever the number of
/// tenants.
const METERED_TENANTS_MAX: usize = 64;

/// The tenants that are told apart, the same on every shard: first come, first served.
#[derive(Debug)]
pub(crate) struct TenantNames([OnceLock<Box<str>>; METERED_TENANTS_MAX]);

impl Default for TenantNames {
    fn default() -> Self {
        Self([const { OnceLock::new() }; METERED_TENANTS_MAX])
    }
}

/// A number that one core writes and any core reads.
#[derive(Debug, Default)]
struct Number(AtomicU64);

impl Number {
    fn add(&self, more: u64) {
        self.0
            .store(self.0.load(Relaxed).wrapping_add(more), Relaxed);
    }

    fn subtract(&self, less: u64) {
        self.0
            .store(self.0.load(Relaxed).saturating_sub(less), Relaxed);
    }

    fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// One series of a duration histogram: a count per bucket, one above all bounds, and the sum.
#[derive(Debug, Default)]
struct Durations {
    buckets: [Number; BUCKETS_US.len() + 1],
    sum_us: Number,
}

impl Durations {
    fn observe(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let index = BUCKETS_US
            .iter()
            .position(|bound| us <= *bound)
            .unwrap_or(BUCKETS_US.len());
        if let Some(bucket) = self.buckets.get(index) {
            bucket.add(1);
        }
        self.sum_us.add(us);
    }
}

/// Histograms by a fixed number of label combinations; a series takes memory once it has a value.
#[derive(Debug)]
struct Series(Box<[OnceLock<Box<Durations>>]>);

impl Series {
    fn new(len: usize) -> Self {
        Self((0..len).map(|_| OnceLock::new()).collect())
    }

    fn observe(&self, index: usize, took: Duration) {
        if let Some(series) = self.0.get(index) {
            series.get_or_init(Box::default).observe(took);
        }
    }

    fn get(&self, index: usize) -> Option<&Durations> {
        self.0.get(index)?.get().map(|series| &**series)
    }
}

/// One client library, as its own headers name it.
#[derive(Debug)]
struct Client {
    language: Box<str>,
    version: Box<str>,
    requests: Number,
}

/// The numbers of one shard.
pub(crate) struct ShardMetrics {
    requests: Series,
    kms_requests: Series,
    inflight: [Number; Endpoint::ALL.len()],
    key_operations: [Number; KeyOperation::ALL.len()],
    secret_creations: [Number; SecretCreation::ALL.len()],
    closed: [Number; ClosedBy::ALL.len()],
    refused: [Number; RefusedBy::ALL.len()],
    connections: Number,
    handed_over: Number,
    client_handshakes: [Number; ClientHandshake::ALL.len()],
    event_failures: Number,
    events: Number,
    kms_retries: Number,
    kms_connects: Number,
    kms_handshakes: [Number; Handshake::ALL.len()],
    kms_stale: Number,
    kms_resent: Number,
    key_uses: [Number; KeyUse::ALL.len()],
    keys_held: [Number; KeysHeld::ALL.len()],
    keys_not_kept: Number,
    tenants: Arc<TenantNames>,
    /// By place in `tenants`; the last is for the rest.
    saved: Box<[Number; METERED_TENANTS_MAX + 1]>,
    clients: Box<[OnceLock<Client>; CLIENTS_MAX]>,
    clients_other: Number,
}

impl fmt::Debug for ShardMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardMetrics").finish_non_exhaustive()
    }
}

impl ShardMetrics {
    pub(crate) fn new(tenants: Arc<TenantNames>) -> Self {
        Self {
            requests: Series::new(Endpoint::ALL.len() * KMS_KINDS.len() * OUTCOMES.len()),
            kms_requests: Series::new(
                KMS_OPERATIONS.len() * KMS_KINDS.len() * (KMS_STATUSES.len() + 2),
            ),
            inflight: Default::default(),
            key_operations: Default::default(),
            secret_creations: Default::default(),
            closed: Default::default(),
            refused: Default::default(),
            connections: Number::default(),
            handed_over: Number::default(),
            client_handshakes: Default::default(),
            event_failures: Number::default(),
            events: Number::default(),
            kms_retries: Number::default(),
            kms_connects: Number::default(),
            kms_handshakes: Default::default(),
            kms_stale: Number::default(),
            kms_resent: Number::default(),
            key_uses: Default::default(),
            keys_held: Default::default(),
            keys_not_kept: Number::default(),
            tenants,
            saved: Box::new([const { Number(AtomicU64::new(0)) }; METERED_TENANTS_MAX + 1]),
            clients: Box::new([const { OnceLock::new() }; CLIENTS_MAX]),
            clients_other: Number::default(),
        }
    }

    pub(crate) fn request_begins(&self, endpoint: Endpoint) {
        if let Some(inflight) = self.inflight.get(endpoint.index()) {
            inflight.add(1);
        }
    }

    pub(crate) fn request_ends(&self, endpoint: Endpoint) {
        if let Some(inflight) = self.inflight.get(endpoint.index()) {
            inflight.subtract(1);
        }
    }

    /// Counts an answered request.
    pub(crate) fn request(
        &self,
        endpoint: Endpoint,
        kms: Option<KmsKind>,
        outcome: (u16, Option<TspCode>),
        took: Duration,
    ) {
        let outcome = OUTCOMES.iter().position(|known| *known == outcome);
        debug_assert!(outcome.is_some(), "every outcome is in the list");
        if let Some(outcome) = outcome {
            let index =
                (endpoint.index() * KMS_KINDS.len() + kms_index(kms)) * OUTCOMES.len() + outcome;
            self.requests.observe(index, took);
        }
    }

    /// Counts one KMS call; `status` is `None` when no answer came.
    pub(crate) fn kms_request(
        &self,
        operation: KmsOperation,
        kms: KmsKind,
        status: Option<u16>,
        took: Duration,
    ) {
        let operation = match operation {
            KmsOperation::Wrap => 0,
            KmsOperation::Unwrap => 1,
            KmsOperation::Token => 2,
        };
        let status = match status {
            None => KMS_STATUSES.len(),
            Some(status) => KMS_STATUSES
                .iter()
                .position(|known| *known == status)
                .unwrap_or(KMS_STATUSES.len() + 1),
        };
        let index = (operation * KMS_KINDS.len() + kms_index(Some(kms))) * (KMS_STATUSES.len() + 2)
            + status;
        self.kms_requests.observe(index, took);
    }

    pub(crate) fn key_operation(&self, operation: KeyOperation) {
        self.key_operations(operation, 1);
    }

    pub(crate) fn key_operations(&self, operation: KeyOperation, count: usize) {
        if let Some(number) = self.key_operations.get(operation.index()) {
            number.add(u64::try_from(count).unwrap_or(u64::MAX));
        }
    }

    pub(crate) fn secret_creation(&self, outcome: SecretCreation) {
        if let Some(number) = self.secret_creations.get(outcome.index()) {
            number.add(1);
        }
    }

    pub(crate) fn closed(&self, reason: ClosedBy) {
        if let Some(number) = self.closed.get(reason.index()) {
            number.add(1);
        }
    }

    pub(crate) fn refused(&self, reason: RefusedBy) {
        if let Some(number) = self.refused.get(reason.index()) {
            number.add(1);
        }
    }

    pub(crate) fn connection_opened(&self) {
        self.connections.add(1);
    }

    pub(crate) fn connection_closed(&self) {
        self.connections.subtract(1);
    }

    pub(crate) fn client_handshake(&self, outcome: ClientHandshake) {
        if let Some(number) = self.client_handshakes.get(outcome.index()) {
            number.add(1);
        }
    }

    pub(crate) fn handed_over(&self) {
        self.handed_over.add(1);
    }

    pub(crate) fn event_failed(&self) {
        self.event_failures.add(1);
    }

    pub(crate) fn event_queued(&self) {
        self.events.add(1);
    }

    pub(crate) fn kms_retry(&self) {
        self.kms_retries.add(1);
    }

    /// Counts an opened connection; `resumed` tells what its handshake was, if it has TLS.
    pub(crate) fn kms_connected(&self, resumed: Option<bool>) {
        self.kms_connects.add(1);
        let handshake = match resumed {
            None => return,
            Some(false) => Handshake::Full,
            Some(true) => Handshake::Resumed,
        };
        if let Some(number) = self.kms_handshakes.get(handshake.index()) {
            number.add(1);
        }
    }

    pub(crate) fn kms_stale_connection(&self) {
        self.kms_stale.add(1);
    }

    pub(crate) fn kms_resent(&self) {
        self.kms_resent.add(1);
    }

    pub(crate) fn key_use(&self, what: KeyUse) {
        if let Some(number) = self.key_uses.get(what.index()) {
            number.add(1);
        }
    }

    /// Sets how many keys the shard holds.
    pub(crate) fn keys_held(&self, which: KeysHeld, count: usize) {
        if let Some(number) = self.keys_held.get(which.index()) {
            number
                .0
                .store(u64::try_from(count).unwrap_or(u64::MAX), Relaxed);
        }
    }

    pub(crate) fn key_not_kept(&self) {
        self.keys_not_kept.add(1);
    }

    /// The place of a tenant among those that are told apart.
    pub(crate) fn meter(&self, tenant: &str) -> usize {
        let TenantNames(names) = &*self.tenants;
        let place = names
            .iter()
            .position(|name| &**name.get_or_init(|| tenant.into()) == tenant);
        place.unwrap_or(METERED_TENANTS_MAX)
    }

    /// Counts a KMS call that the tenant at this place was spared.
    pub(crate) fn saved_a_call(&self, place: usize) {
        if let Some(number) = self.saved.get(place) {
            number.add(1);
        }
    }

    /// Counts a request under the language and version that its client library names.
    pub(crate) fn client(&self, language: &str, version: &str) {
        let sound = |text: &str| {
            text.len() <= CLIENT_LABEL_BYTES_MAX && text.bytes().all(|b| b.is_ascii_graphic())
        };
        if sound(language) && sound(version) {
            for slot in self.clients.iter() {
                let client = slot.get_or_init(|| Client {
                    language: language.into(),
                    version: version.into(),
                    requests: Number::default(),
                });
                if &*client.language == language && &*client.version == version {
                    client.requests.add(1);
                    return;
                }
            }
        }
        self.clients_other.add(1);
    }
}

#[cfg(test)]
mod tests;
