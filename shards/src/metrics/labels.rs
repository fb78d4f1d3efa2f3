//! The labels of this crate's metrics: closed enums, so that nothing a client sends can add a series.

use tsp_kms::{KmsKind, KmsOperation};
use tsp_wire::TspCode;

use crate::keyring::Purpose;

/// HTTP statuses of KMS answers that are told apart; the rest count as `other`, no answer at all as `none`.
pub(super) const KMS_STATUSES: [u16; 14] = [
    200, 400, 401, 403, 404, 405, 409, 412, 422, 429, 500, 502, 503, 504,
];

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($variant:ident => $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name { $($variant),+ }

        impl $name {
            pub(crate) const ALL: &'static [Self] = &[$(Self::$variant),+];

            pub(crate) const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            pub(super) const fn index(self) -> usize { self as usize }
        }
    };
}

labels! {
    /// The route of a request.
    Endpoint {
        Wrap => "document/wrap",
        Unwrap => "document/unwrap",
        BatchWrap => "document/batch-wrap",
        BatchUnwrap => "document/batch-unwrap",
        Rekey => "document/rekey",
        ReportOperations => "document/report-operations",
        SecurityEvent => "event/security-event",
        Derive => "key/derive-with-secret-path",
        Other => "other",
    }
}

labels! {
    /// Which successful cryptographic operation.
    KeyOperation {
        Wrap => "wrap",
        Unwrap => "unwrap",
        LeasedKeyWrap => "leased_key_wrap",
        LeasedKeyUnwrap => "leased_key_unwrap",
        SecretWrap => "tenant_secret_wrap",
        SecretUnwrap => "tenant_secret_unwrap",
        Derive => "derive",
    }
}

labels! {
    /// Whether a key was in memory when it was needed.
    KeyUse {
        LeaseHit => "lease",
        LeaseMiss => "lease",
        OpenedHit => "unwrap",
        OpenedMiss => "unwrap",
        SecretHit => "secret",
        SecretMiss => "secret",
    }
}

impl KeyUse {
    pub(crate) const fn hit(purpose: Purpose) -> Self {
        match purpose {
            Purpose::Leased => Self::OpenedHit,
            Purpose::Secret => Self::SecretHit,
        }
    }

    pub(crate) const fn miss(purpose: Purpose) -> Self {
        match purpose {
            Purpose::Leased => Self::OpenedMiss,
            Purpose::Secret => Self::SecretMiss,
        }
    }

    pub(super) const fn result(self) -> &'static str {
        match self {
            Self::LeaseHit | Self::OpenedHit | Self::SecretHit => "hit",
            Self::LeaseMiss | Self::OpenedMiss | Self::SecretMiss => "miss",
        }
    }
}

labels! {
    /// Which keys are in memory.
    KeysHeld {
        Leases => "lease",
        Opened => "opened",
    }
}

labels! {
    /// What came of the creation of a tenant secret.
    SecretCreation {
        Created => "created",
        Found => "found",
        Failed => "failed",
    }
}

labels! {
    /// What a TLS handshake with a KMS was.
    Handshake {
        Full => "full",
        Resumed => "resumed",
    }
}

labels! {
    /// What a TLS handshake with a client came to.
    ClientHandshake {
        Full => "full",
        Resumed => "resumed",
        Failed => "failed",
    }
}

labels! {
    /// Why a client's connection was closed by us.
    ClosedBy {
        ConnectionsMax => "connections_max",
        PeerNotAllowed => "peer_not_allowed",
        HandshakesMax => "handshakes_max",
        HandshakeTimeout => "handshake_timeout",
        HeadBytesMax => "head_bytes_max",
        HeadTimeout => "head_timeout",
        IdleTimeout => "idle_timeout",
        DrainDeadline => "drain_deadline",
        BadHead => "bad_head",
    }
}

labels! {
    /// Why a request was refused before it was looked at.
    RefusedBy {
        BodyBytesMax => "body_bytes_max",
        BodiesBytesMax => "bodies_bytes_max",
        BodyTimeout => "body_timeout",
        BatchItemsMax => "batch_items_max",
        SecretPathsMax => "secret_paths_max",
        InflightMax => "inflight_max",
        TenantInflightMax => "tenant_inflight_max",
        KmsWaitersMax => "kms_waiters_max",
    }
}

/// The KMS kind of a request's tenant, or none.
pub(super) const KMS_KINDS: [Option<KmsKind>; 6] = [
    None,
    Some(KmsKind::Aws),
    Some(KmsKind::Gcp),
    Some(KmsKind::Azure),
    Some(KmsKind::Thales),
    Some(KmsKind::Local),
];

pub(super) const fn kms_index(kind: Option<KmsKind>) -> usize {
    match kind {
        None => 0,
        Some(KmsKind::Aws) => 1,
        Some(KmsKind::Gcp) => 2,
        Some(KmsKind::Azure) => 3,
        Some(KmsKind::Thales) => 4,
        Some(KmsKind::Local) => 5,
    }
}

pub(super) const KMS_OPERATIONS: [KmsOperation; 3] = [
    KmsOperation::Wrap,
    KmsOperation::Unwrap,
    KmsOperation::Token,
];

/// Every pair of HTTP status and TSP code that an answer can have.
#[expect(
    clippy::indexing_slicing,
    reason = "evaluated by the compiler, which refuses a bad index"
)]
pub(super) const OUTCOMES: [(u16, Option<TspCode>); 24] = {
    let mut all = [(200, None); 24];
    all[1] = (204, None);
    let mut i = 0;
    while i < TspCode::ALL.len() {
        all[2 + i] = (TspCode::ALL[i].http_status(), Some(TspCode::ALL[i]));
        i += 1;
    }
    let mut other = [404, 405, 413, 415].as_slice();
    let mut at = 2 + TspCode::ALL.len();
    while let [status, rest @ ..] = other {
        all[at] = (*status, Some(TspCode::InvalidRequest));
        at += 1;
        other = rest;
    }
    all[at] = (503, Some(TspCode::UnknownError));
    // No room to wait for the KMS.
    all[at + 1] = (503, Some(TspCode::KmsUnreachable));
    all
};
