//! The words of the table: how a fault is made, and what is expected of the proxy and of the doctor.
//!
//! The expectations follow the vendors' documents and the API's own list of codes, and were written before the answers
//! were seen. Where one of them is not met, the product is to be changed, or the document was read wrongly: then the reason
//! stands in the commit.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "most questions about how a fault is made are about one kind of it"
)]

use crate::support::kmssim::{ClientKey, Provider};
use tsp_loadtest::kmssim::WorldDoc;

/// One fault at one KMS.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    /// What is wrong, for people.
    pub(super) what: &'static str,
    pub(super) made: Made,
    /// Code of the answer; 200 if it is a success all the same.
    pub(super) code: u16,
    /// What the message must say, in any case of letters. `a|b` is one of them.
    pub(super) says: &'static [&'static str],
    /// What `tsp doctor` finds.
    pub(super) found: Finding,
    /// How the client proves itself: the other way asks a token endpoint.
    pub(super) proof: Proof,
    pub(super) tried: Tried,
}

/// How a fault is made. `key` and `credential` are those of the fault's own tenant.
#[derive(Clone, Copy, Debug)]
pub(super) enum Made {
    /// The configuration says something else: members of the config by their path. A number is written as one.
    Config(&'static [(&'static str, &'static str)]),
    /// The KMSs are set up differently.
    World(fn(&mut WorldDoc, &ClientKey)),
    /// What an owner did to the key.
    Key(&'static str),
    /// What an owner did to one operation on the key.
    KeyFor(&'static str, &'static str),
    /// What an owner did to the credential.
    Credential(&'static str),
    /// What an owner, or the provider, did to the account, project, vault.
    Account(&'static str),
    /// The KMS answers to an operation with this code and sentence of its own.
    Says(&'static str, &'static str, &'static str),
    /// The same with the status of a success.
    SaysOk(&'static str, &'static str, &'static str),
    /// It answers to an operation with this status, media type and body.
    Answers(&'static str, u16, &'static str, &'static str),
    /// It answers as it should, but for these members.
    Changes(&'static str, &'static str),
    /// It limits the rate of an operation; with the seconds that it asks to wait.
    Throttles(&'static str, Option<u32>),
    /// It does to an operation what the simulator calls so.
    Does(&'static str, &'static str),
    /// The endpoint is something broken.
    Endpoint(Broken),
    /// The token endpoint is.
    TokenEndpoint(Broken),
    /// Its clock is so many seconds ahead of ours.
    Ahead(i64),
    /// What is to be unwrapped was damaged where it was stored.
    Damaged,
    /// Two things at once.
    Both(&'static [Self; 2]),
}

/// What may be at an address instead of a KMS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// The name has no address.
    NoName,
    /// Nobody listens.
    Refuses,
    /// Packets vanish.
    Vanishes,
    /// It takes connections and says nothing.
    IsSilent,
    /// It cuts connections at once.
    Cuts,
    /// It says something that is no protocol.
    Babbles,
    /// It speaks HTTP without TLS.
    IsPlain,
    /// Its certificate is signed by somebody else.
    IsAStranger,
    /// Its certificate is for other hosts.
    HasAnotherName,
    /// Its certificate has run out.
    IsExpired,
}

/// How the client proves itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// AWS: a user's key. GCP: tokens that it signs itself. Azure: a secret. Thales: a password.
    Usual,
    /// AWS: a role. GCP: tokens from the endpoint. Azure: a certificate. Thales: a password.
    Other,
}

/// What is tried on the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tried {
    /// A wrap.
    Wrap,
    /// An unwrap of what was wrapped before the fault.
    Unwrap,
    /// A wrap, of which the fault strikes the first KMS call only.
    Once,
}

impl Fault {
    /// With the provider's other way to prove oneself.
    pub(super) const fn other_proof(self) -> Self {
        Self {
            proof: Proof::Other,
            ..self
        }
    }

    pub(super) const fn on_unwrap(self) -> Self {
        Self {
            tried: Tried::Unwrap,
            ..self
        }
    }

    pub(super) const fn once(self) -> Self {
        Self {
            tried: Tried::Once,
            ..self
        }
    }

    /// Whether an answer takes as long as the proxy ever waits for one.
    pub(super) fn is_slow(&self) -> bool {
        matches!(
            self.made,
            Made::Does(_, "hang" | "drip" | "endless")
                | Made::Endpoint(Broken::Vanishes | Broken::IsSilent)
        )
    }

    /// What the caller is told of the seconds that the KMS asked to wait. The proxy passes on a minute at most.
    pub(super) fn retry_after_s(&self) -> Option<u64> {
        match self.made {
            Made::Throttles(_, wait_s) => wait_s.map(|wait_s| u64::from(wait_s).min(60)),
            _ => None,
        }
    }

    /// HTTP status that goes with the code (`docs/api.md`).
    pub(super) fn status(&self) -> u16 {
        match self.code {
            200 => 200,
            204 | 205 | 208 => 502,
            209 => 429,
            206 | 207 | 210 => 422,
            other => panic!("{other} is no answer of a KMS"),
        }
    }
}

pub(super) const fn fault(
    what: &'static str,
    made: Made,
    code: u16,
    says: &'static [&'static str],
    found: Finding,
) -> Fault {
    Fault {
        what,
        made,
        code,
        says,
        found,
        proof: Proof::Usual,
        tried: Tried::Wrap,
    }
}

/// A fault of which the caller notices nothing.
pub(super) const fn healed(what: &'static str, made: Made, found: Finding) -> Fault {
    fault(what, made, 200, &[], found)
}

/// What `tsp doctor` is to find: the cause, whose it is, and what the remedy must say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finding {
    pub(super) cause: &'static str,
    pub(super) whose: &'static str,
    pub(super) remedy: &'static [&'static str],
}

const fn find(
    cause: &'static str,
    whose: &'static str,
    remedy: &'static [&'static str],
) -> Finding {
    Finding {
        cause,
        whose,
        remedy,
    }
}

const CONFIGURATION: &str = "configuration";
const KEY_OWNER: &str = "key owner";
const NETWORK: &str = "network";
const KMS: &str = "KMS";
const MACHINE: &str = "this machine";

/// Nothing is wrong, or nothing any more, or nothing that can be seen without the data.
pub(super) const WELL: Finding = find("", "", &[]);

// The way there.
pub(super) const NO_SUCH_NAME: Finding = find("no_such_name", CONFIGURATION, &["host"]);
pub(super) const CONNECTION_REFUSED: Finding = find("connection_refused", NETWORK, &["port"]);
pub(super) const TIMED_OUT: Finding = find("timed_out", NETWORK, &["firewall"]);
pub(super) const CONNECTION_CUT: Finding = find("connection_cut", NETWORK, &["way"]);
pub(super) const TLS_FAILED: Finding = find("tls_failed", NETWORK, &["tls"]);
pub(super) const CERTIFICATE_REFUSED: Finding =
    find("certificate_refused", CONFIGURATION, &["ca_file"]);
pub(super) const CERTIFICATE_NAME: Finding = find(
    "certificate_for_another_name",
    CONFIGURATION,
    &["endpoint", "name"],
);
pub(super) const CERTIFICATE_EXPIRED: Finding = find("certificate_expired", KMS, &["renew"]);
pub(super) const KEY_NOT_PINNED: Finding = find("key_not_pinned", CONFIGURATION, &["spkipin"]);
pub(super) const CLOCK_WRONG: Finding = find("clock_wrong", MACHINE, &["ntp"]);
pub(super) const DATA_ALTERED: Finding = find("data_altered", NETWORK, &["alters"]);
// The credential.
pub(super) const WRONG_SECRET: Finding = find("wrong_secret", CONFIGURATION, &["secret"]);
pub(super) const UNKNOWN_CREDENTIAL: Finding = find("unknown_credential", CONFIGURATION, &["id"]);
pub(super) const EXPIRED_CREDENTIAL: Finding =
    find("expired_credential", CONFIGURATION, &["new one"]);
pub(super) const CREDENTIAL_REFUSED: Finding =
    find("credential_refused", CONFIGURATION, &["credentials"]);
pub(super) const CREDENTIAL_NOT_ALLOWED: Finding =
    find("credential_not_allowed", KEY_OWNER, &["allow"]);
pub(super) const WRONG_REGION: Finding = find("wrong_region", CONFIGURATION, &["region"]);
pub(super) const WRONG_DIRECTORY: Finding = find("wrong_directory", CONFIGURATION, &["tenantguid"]);
// The key.
pub(super) const NO_SUCH_KEY: Finding = find("no_such_key", CONFIGURATION, &["key_path"]);
pub(super) const NO_PERMISSION: Finding = find("no_permission", KEY_OWNER, &["permission"]);
pub(super) const KEPT_OUT: Finding = find("kept_out", KEY_OWNER, &["firewall|perimeter"]);
pub(super) const KEY_DISABLED: Finding = find("key_disabled", KEY_OWNER, &["enable"]);
pub(super) const KEY_UNUSABLE: Finding = find("key_unusable", KEY_OWNER, &["type"]);
// The KMS.
pub(super) const API_NOT_ENABLED: Finding = find("api_not_enabled", KEY_OWNER, &["enable", "api"]);
pub(super) const ACCOUNT: Finding = find("account", KEY_OWNER, &["account"]);
pub(super) const THROTTLED: Finding = find("throttled", KEY_OWNER, &["quota"]);
pub(super) const NO_ANSWER: Finding = find("no_answer", KMS, &["status|logs"]);
pub(super) const KMS_IN_TROUBLE: Finding = find("kms_in_trouble", KMS, &["status|logs"]);
pub(super) const OPERATION_FAILED: Finding = find("operation_failed", KMS, &["report"]);
pub(super) const NOT_A_KMS: Finding = find("not_a_kms", CONFIGURATION, &["endpoint"]);

/// All of a provider's faults, in the order of the page.
pub(super) fn faults(provider: Provider) -> Vec<Fault> {
    let own = match provider {
        Provider::Aws => super::aws::FAULTS,
        Provider::Gcp => super::gcp::FAULTS,
        Provider::Azure => super::azure::FAULTS,
        Provider::Thales => super::thales::FAULTS,
    };
    own.iter()
        .chain(super::everywhere::FAULTS)
        .copied()
        .collect()
}
