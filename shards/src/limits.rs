//! The data plane's limits: each with its unit, its default and its reason.

use std::time::Duration;

/// Every bound that a shard holds itself to. The defaults are what `tsp` runs with.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest request body, in bytes. The largest batches the SDKs make are far below 1 MiB.
    pub body_bytes_max: usize,
    /// Request bodies held at one time by one shard, in bytes. Bounds memory whatever clients send.
    pub bodies_bytes_max: usize,
    /// Bytes of a refused body that are read and thrown away so that the client gets to see the refusal.
    pub refused_body_bytes_max: usize,
    /// Longest request head, in bytes. SDKs send below 1 KiB; proxies in between add cookies and traces.
    pub head_bytes_max: usize,
    /// Longest time for a request's head, from its first byte. Slow heads hold a connection for nothing.
    pub head_timeout: Duration,
    /// Longest time for a request's body, from the end of its head.
    pub body_timeout: Duration,
    /// Longest silence on a connection between requests. Above load balancers' usual 60 s, since two SDKs do not
    /// try again when a kept connection turns out to be closed.
    pub idle_timeout: Duration,
    /// Longest time for a client's TLS handshake. Its three messages take milliseconds.
    pub handshake_timeout: Duration,
    /// TLS handshakes that one shard has under way at a time, most of them waiting for their client. Each costs about
    /// 20 KiB; above this the newest is closed.
    pub handshakes_max: usize,
    /// Silence after which a connection rests, so that it costs 1 KiB instead of 20. Its next request takes one more system
    /// call.
    pub rest_after: Duration,
    /// Connections of one shard. Each costs about 20 KiB while it is used; above this the newest is closed.
    pub connections_max: usize,
    /// Requests that one shard works on at a time. More are told to come back.
    pub inflight_max: usize,
    /// Requests of one tenant that one shard works on at a time: a tenant whose KMS hangs leaves room for the others.
    pub tenant_inflight_max: usize,
    /// Items in one batch, or keys in one derivation. With ids of a few bytes the body limit alone would allow millions.
    pub batch_items_max: usize,
    /// Secret paths in one derivation. Each may cost two KMS calls, and one that has no secret gets one for ever.
    pub secret_paths_max: usize,
    /// KMS calls that one batch has under way at a time.
    pub batch_fanout_max: usize,
    /// Longest time for a whole batch: SDKs give up at 20 s.
    pub batch_timeout: Duration,
    /// Longest time for one operation at a KMS, retry included.
    pub kms_operation_timeout: Duration,
    /// Longest time for one attempt at a KMS: 10 to 100 times a usual answer.
    pub kms_attempt_timeout: Duration,
    /// Longest time to connect to a KMS, TLS included.
    pub kms_connect_timeout: Duration,
    /// Connections that one shard opens to one KMS endpoint.
    pub kms_connections_max: usize,
    /// Of those, the most that one tenant's operations use: a KMS that hangs for one leaves the rest to the others.
    pub kms_tenant_connections_max: usize,
    /// Operations that wait for one of those connections. More are refused at once.
    pub kms_waiters_max: usize,
    /// Longest idle time of a kept KMS connection: below what far ends and NAT gateways allow.
    pub kms_idle_timeout: Duration,
    /// Longest answer body of a KMS, in bytes. Real ones are below 4 KiB.
    pub kms_answer_bytes_max: usize,
    /// How long a key in memory is used before the KMS must have agreed to it again: how late a revocation at the KMS
    /// bites at most.
    pub lease_revalidate: Duration,
    /// How long a key in memory is used while the KMS cannot be asked, and how long one leased key wraps at all.
    pub lease_max_age: Duration,
    /// How long a key stays in memory that nobody uses.
    pub lease_idle: Duration,
    /// Wraps under one leased key, by all shards together. Its IVs are random, and NIST SP 800-38D, section 8.3, allows 2³²
    /// of those; the default is 4,096 times as careful and costs one KMS call per million documents.
    pub lease_wraps_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 16 << 20,
            bodies_bytes_max: 256 << 20,
            refused_body_bytes_max: 64 << 20,
            head_bytes_max: 64 << 10,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(120),
            rest_after: Duration::from_secs(2),
            handshake_timeout: Duration::from_secs(5),
            handshakes_max: 1_024,
            connections_max: 16_384,
            inflight_max: 4_096,
            tenant_inflight_max: 2_048,
            batch_items_max: 50_000,
            secret_paths_max: 1_000,
            batch_fanout_max: 64,
            batch_timeout: Duration::from_secs(18),
            kms_operation_timeout: Duration::from_secs(5),
            kms_attempt_timeout: Duration::from_millis(2_500),
            kms_connect_timeout: Duration::from_millis(1_500),
            kms_connections_max: 128,
            kms_tenant_connections_max: 64,
            kms_waiters_max: 8_192,
            kms_idle_timeout: Duration::from_secs(20),
            kms_answer_bytes_max: 64 << 10,
            lease_revalidate: Duration::from_secs(900),
            lease_max_age: Duration::from_secs(24 * 60 * 60),
            lease_idle: Duration::from_secs(60 * 60),
            lease_wraps_max: 1 << 20,
        }
    }
}

/// Opened keys that one shard holds. At about 1 KiB each, of which the shards share the larger part, 64 MiB.
pub(crate) const KEYS_MAX: usize = 1 << 16;

/// Opened keys of one tenant that one shard holds: a tenant's flood of EDEKs pushes out its own keys, not the others'.
pub(crate) const TENANT_KEYS_MAX: usize = 1 << 12;

/// Items of a batch that are worked on before other tasks of the shard get a turn. Ten local wraps take about 20 µs.
pub(crate) const BATCH_ITEMS_PER_TURN: usize = 16;

/// Keys that are derived before other tasks of the shard get a turn. One takes about 2 µs.
pub(crate) const DERIVED_KEYS_PER_TURN: usize = 32;

/// How often a shard looks for connections that are over their time.
pub(crate) const SWEEP_INTERVAL: Duration = Duration::from_millis(500);

/// Pause between looks at a full event queue: well below the default longest wait of 25 ms.
pub(crate) const EVENT_QUEUE_LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// Tenants whose dropped events one shard counts apart until it can tell of them. With the longest of names 350 KiB; all further
/// tenants share one count.
pub(crate) const LOST_EVENTS_TENANTS_MAX: usize = 1024;

/// Least time between two warnings of one kind.
pub(crate) const WARNING_INTERVAL: Duration = Duration::from_secs(10);

/// Longest `Retry-After` passed to a caller, in seconds: an hour-long hint is a KMS's mistake, not advice.
pub(crate) const RETRY_AFTER_S_MAX: u64 = 60;
