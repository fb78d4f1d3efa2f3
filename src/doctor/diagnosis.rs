//! From what was met to what it means: what is wrong, whose it is, and what to do.

use std::time::{Duration, SystemTime};

use tsp_kms::{Blame, KmsError, KmsOperation};
use tsp_rt::{CertificateFault, NetError};
use tsp_shards::{ProbeError, ProbeFailure, Stage};

/// What is looked at, in this order. A failure leaves out what needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// The KMS's name has an address.
    Dns,
    /// It takes connections.
    Tcp,
    /// It is who it should be.
    Tls,
    /// Our clock is the KMS's.
    Clock,
    /// The credential is accepted.
    Credential,
    /// The key is there, can be used, and may be used.
    Key,
    /// A made-up value is wrapped.
    Wrap,
    /// It comes back.
    Unwrap,
}

impl Check {
    pub(crate) const ALL: [Self; 8] = [
        Self::Dns,
        Self::Tcp,
        Self::Tls,
        Self::Clock,
        Self::Credential,
        Self::Key,
        Self::Wrap,
        Self::Unwrap,
    ];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Credential => "credential",
            Self::Key => "key",
            Self::Wrap => "wrap",
            Self::Unwrap => "unwrap",
            Self::Clock => "clock",
        }
    }

    const fn of_stage(stage: Stage) -> Self {
        match stage {
            Stage::Resolve => Self::Dns,
            Stage::Connect => Self::Tcp,
            Stage::Tls => Self::Tls,
            Stage::Answer => Self::Wrap,
        }
    }
}

/// Who can mend it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// Whoever wrote the configuration file.
    Configuration,
    /// The owner of the key, at the KMS.
    KeyOwner,
    /// Whoever runs the network between.
    Network,
    /// Whoever runs the KMS.
    Kms,
    /// Whoever runs this machine.
    Machine,
}

impl Whose {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::KeyOwner => "key owner",
            Self::Network => "network",
            Self::Kms => "KMS",
            Self::Machine => "this machine",
        }
    }
}

/// A kind of failure.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Cause {
    /// For machines.
    pub(crate) name: &'static str,
    pub(crate) whose: Whose,
    pub(crate) remedy: &'static str,
}

/// One failure: of which kind, and what was met.
#[derive(Debug)]
pub(crate) struct Diagnosis {
    pub(crate) cause: &'static Cause,
    pub(crate) what: String,
}

macro_rules! causes {
    ($($name:ident: $label:literal, $whose:ident, $remedy:literal;)+) => {
        $(static $name: Cause = Cause { name: $label, whose: Whose::$whose, remedy: $remedy };)+
        /// All of them, for tests.
        #[cfg(test)]
        pub(crate) static CAUSES: &[&Cause] = &[$(&$name),+];
    };
}

causes! {
    NO_SUCH_NAME: "no_such_name", Configuration,
        "Check the spelling of the host, or of the region; then this machine's name servers.";
    FORBIDDEN: "address_not_allowed", Configuration,
        "If the KMS is meant to be there, let the proxy connect there: TSP_KMS_ALLOW_ADDRESSES. Else correct the endpoint, or ask who rules over its name.";
    REFUSED: "connection_refused", Network,
        "Nobody listens there. Check host and port of the endpoint, and that the KMS is running.";
    NO_WAY: "no_way", Network,
        "Let this machine reach that address: a route, a firewall, a security group, a private endpoint.";
    SLOW: "timed_out", Network,
        "Something on the way swallows the packets, usually a firewall; or the KMS is overloaded.";
    NO_ANSWER: "no_answer", Kms,
        "It takes connections and does not answer in time. Look at the KMS's status page or its logs, and try again.";
    CUT: "connection_cut", Network,
        "Something on the way, or the KMS, closes the connection. Is it TLS where the endpoint says http, or the other way?";
    EXHAUSTED: "out_of_resources", Machine,
        "This machine is out of file descriptors or local ports.";
    STRANGER: "certificate_refused", Configuration,
        "Whoever answers there is not proven to be this KMS. With a private authority, name it in ca_file; else find out who intercepts.";
    OTHER_NAME: "certificate_for_another_name", Configuration,
        "Whoever answers there proves to be another host. Check the host of the endpoint; a CipherTrust Manager may have another name, for serverName.";
    OUT_OF_TIME: "certificate_expired", Kms,
        "The KMS's certificate is out of its time. Have whoever runs the KMS renew it, if this machine's clock is right.";
    OTHER_KEY: "key_not_pinned", Configuration,
        "Compare the pin above with that of the KMS's own certificate, read at the KMS itself. If they agree, put it into spkiPin; else find out who intercepts.";
    NO_TLS: "tls_failed", Network,
        "No TLS could be agreed on. Check that the port speaks TLS 1.2 or 1.3, and that nothing on the way inspects it.";
    NOT_A_KMS: "not_a_kms", Configuration,
        "Whoever answers there does not speak as this KMS does. Check the endpoint; a proxy on the way may answer instead.";
    ALTERED: "data_altered", Network,
        "What arrives is not what was sent: something on the way alters data. Look for a proxy that inspects TLS; check the endpoint.";
    CLOCK: "clock_wrong", Machine,
        "Set this machine's clock by NTP. (If others agree with this clock, the KMS's is wrong.)";
    WRONG_SECRET: "wrong_secret", Configuration,
        "The credential is known, its secret is not the right one. Put the right one in, without blanks around or quotes inside.";
    UNKNOWN_CREDENTIAL: "unknown_credential", Configuration,
        "There is no such credential there, or no more. Check its id, and that it belongs to this account or directory.";
    EXPIRED_CREDENTIAL: "expired_credential", Configuration,
        "The credential has run out. Make a new one and put it in.";
    CREDENTIAL_REFUSED: "credential_refused", Configuration,
        "Check every member of credentials; ask the owner of the key whether the credential was disabled.";
    CREDENTIAL_NOT_ALLOWED: "credential_not_allowed", KeyOwner,
        "The credential may not ask for a token, or for this role, or is disabled. Allow it at the KMS: the role's trust policy, the application, the account, the user.";
    WRONG_REGION: "wrong_region", Configuration,
        "The region is not that of the endpoint, or is not switched on in the account. Correct region, endpoint or stsEndpoint, or switch it on.";
    WRONG_DIRECTORY: "wrong_directory", Configuration,
        "The vault trusts another directory than tenantGuid names. Put the vault's own in, and an application of that directory.";
    NO_PERMISSION: "no_permission", KeyOwner,
        "Give the credential the permission to encrypt (wrap) and decrypt (unwrap) with this key: key policy, IAM, role assignment.";
    KEPT_OUT: "kept_out", KeyOwner,
        "The KMS lets this address or network not in. Add it to the KMS's firewall or perimeter.";
    NO_SUCH_KEY: "no_such_key", Configuration,
        "There is no such key there. Check every member of key_path, the region and the account; perhaps it was deleted.";
    KEY_DISABLED: "key_disabled", KeyOwner,
        "The key is disabled, expired, waits for its deletion or lacks its material. Enable it, cancel the deletion, import the material again, connect its key store.";
    KEY_UNUSABLE: "key_unusable", KeyOwner,
        "The key cannot do what it should, or something about it is not allowed. Check its type, its state and its permissions.";
    API_NOT_ENABLED: "api_not_enabled", KeyOwner,
        "The project has not switched the KMS on. Enable the Cloud KMS API in the key's project and in the credential's.";
    THROTTLED: "throttled", KeyOwner,
        "The account's rate is used up. Ask the KMS for a higher quota, or find who else uses it.";
    ACCOUNT: "account", KeyOwner,
        "The account, project, subscription or licence at the KMS is suspended, unpaid or lacks the service.";
    KMS_DOWN: "kms_in_trouble", Kms,
        "The KMS answers that it cannot serve. Look at its status page or its logs, and try again.";
    REFUSED_OPERATION: "operation_failed", Kms,
        "The KMS did not do what it should with a good request. Check that the endpoint is this KMS; then report what stands above.";
    OTHER_VALUE: "another_value", Kms,
        "What came back is not what was wrapped. Do not use this config. Check who answers at the endpoint.";
}

/// Codes of the KMSs, words of the sentence that comes with them (none if it does not matter), and what both say more exactly
/// than the blame does. The first that fits counts.
#[rustfmt::skip]
static CODES: &[(&str, &str, &Cause)] = &[
    // AWS KMS and STS.
    ("InvalidSignatureException", "valid region", &WRONG_REGION),
    ("InvalidSignatureException", "", &WRONG_SECRET),
    ("SignatureDoesNotMatch", "valid region", &WRONG_REGION),
    ("SignatureDoesNotMatch", "", &WRONG_SECRET),
    ("UnrecognizedClientException", "", &UNKNOWN_CREDENTIAL),
    ("InvalidClientTokenId", "", &UNKNOWN_CREDENTIAL),
    ("InvalidAccessKeyId", "", &UNKNOWN_CREDENTIAL),
    ("ExpiredToken", "", &EXPIRED_CREDENTIAL),
    ("ExpiredTokenException", "", &EXPIRED_CREDENTIAL),
    ("ValidationError", "", &CREDENTIAL_REFUSED),
    ("RegionDisabledException", "", &WRONG_REGION),
    ("AccessDeniedException", "", &NO_PERMISSION),
    ("AccessDenied", "", &NO_PERMISSION),
    ("NotAuthorized", "", &NO_PERMISSION),
    ("NotFoundException", "", &NO_SUCH_KEY),
    ("InvalidArnException", "", &NO_SUCH_KEY),
    ("DisabledException", "", &KEY_DISABLED),
    ("KMSInvalidStateException", "", &KEY_DISABLED),
    // Google.
    ("ACCOUNT_STATE_INVALID", "", &CREDENTIAL_NOT_ALLOWED),
    ("disabled_client", "", &CREDENTIAL_NOT_ALLOWED),
    ("unauthorized_client", "", &CREDENTIAL_NOT_ALLOWED),
    ("access_denied", "", &CREDENTIAL_NOT_ALLOWED),
    ("deleted_client", "", &UNKNOWN_CREDENTIAL),
    ("invalid_grant", "account not found", &UNKNOWN_CREDENTIAL),
    ("invalid_grant", "signature", &WRONG_SECRET),
    ("PERMISSION_DENIED", "", &NO_PERMISSION),
    ("IAM_PERMISSION_DENIED", "", &NO_PERMISSION),
    ("USER_PROJECT_DENIED", "", &NO_PERMISSION),
    ("SECURITY_POLICY_VIOLATED", "", &KEPT_OUT),
    ("LOCATION_POLICY_VIOLATED", "", &KEPT_OUT),
    ("LOCATION_ORG_POLICY_VIOLATED", "", &KEPT_OUT),
    ("LOCATION_TAX_POLICY_VIOLATED", "", &KEPT_OUT),
    ("ORG_RESTRICTION_VIOLATION", "", &KEPT_OUT),
    ("SERVICE_DISABLED", "", &API_NOT_ENABLED),
    ("NOT_FOUND", "", &NO_SUCH_KEY),
    ("CONSUMER_INVALID", "", &NO_SUCH_KEY),
    ("FAILED_PRECONDITION", "not enabled", &KEY_DISABLED),
    ("KEY_DISABLED", "", &KEY_DISABLED),
    ("KEY_DESTROYED", "", &KEY_DISABLED),
    ("KEY_DESTROY_SCHEDULED", "", &KEY_DISABLED),
    ("KEY_PENDING_GENERATION", "", &KEY_DISABLED),
    ("KEY_PENDING_IMPORT", "", &KEY_DISABLED),
    // Azure, and Entra.
    ("AADSTS7000215", "", &WRONG_SECRET),
    ("AADSTS7000222", "", &EXPIRED_CREDENTIAL),
    ("AADSTS700027", "", &WRONG_SECRET),
    ("AADSTS700030", "", &WRONG_SECRET),
    ("AADSTS700016", "", &UNKNOWN_CREDENTIAL),
    ("AADSTS90002", "", &UNKNOWN_CREDENTIAL),
    ("AADSTS7000112", "", &CREDENTIAL_NOT_ALLOWED),
    ("AADSTS7000110", "", &CREDENTIAL_NOT_ALLOWED),
    ("AADSTS53003", "", &CREDENTIAL_NOT_ALLOWED),
    ("AADSTS530003", "", &CREDENTIAL_NOT_ALLOWED),
    ("AADSTS50105", "", &CREDENTIAL_NOT_ALLOWED),
    ("AKV10032", "", &WRONG_DIRECTORY),
    ("Unauthorized", "tenantguid", &WRONG_DIRECTORY),
    ("ForbiddenByRbac", "", &NO_PERMISSION),
    ("ForbiddenByPolicy", "", &NO_PERMISSION),
    ("ForbiddenByFirewall", "", &KEPT_OUT),
    ("ForbiddenByConnection", "", &KEPT_OUT),
    ("KeyNotFound", "", &NO_SUCH_KEY),
    ("VaultNotFound", "", &NO_SUCH_KEY),
    ("KeyDisabled", "", &KEY_DISABLED),
    ("KeyExpired", "", &KEY_DISABLED),
    ("KeyNotYetValid", "", &KEY_DISABLED),
    // Thales.
    ("NCERRInsufficientPermissions", "", &NO_PERMISSION),
    ("NCERRResourceNotFound", "", &NO_SUCH_KEY),
    ("NCERRConflict", "usage", &KEY_UNUSABLE),
    ("NCERRConflict", "", &KEY_DISABLED),
];

impl Diagnosis {
    /// Of a stage that failed on the way to `host`.
    pub(crate) fn of_probe(failure: &ProbeFailure, host: &str) -> (Check, Self) {
        let cause = match &failure.why {
            ProbeError::Net(why) => match why {
                NetError::Unresolved => &NO_SUCH_NAME,
                NetError::Refused => &REFUSED,
                NetError::Unreachable => &NO_WAY,
                NetError::Timeout if failure.stage == Stage::Answer => &NO_ANSWER,
                NetError::Timeout => &SLOW,
                NetError::Exhausted => &EXHAUSTED,
                NetError::Certificate(fault, _) => match fault {
                    CertificateFault::Name => &OTHER_NAME,
                    CertificateFault::Time => &OUT_OF_TIME,
                    CertificateFault::Issuer => &STRANGER,
                },
                NetError::Pin(_) => &OTHER_KEY,
                NetError::Tls(_) => &NO_TLS,
                NetError::Reset | NetError::Io(_) => &CUT,
            },
            ProbeError::Forbidden(_) => &FORBIDDEN,
            ProbeError::CutOff => &CUT,
            ProbeError::NotHttp | ProbeError::TooLong => &NOT_A_KMS,
            ProbeError::Roots => &STRANGER,
        };
        let what = format!("{host}: {}", failure.why);
        (Check::of_stage(failure.stage), Self { cause, what })
    }

    /// Of what the KMS said.
    pub(crate) fn of_kms(why: &KmsError) -> (Check, Self) {
        let own = match why.operation() {
            KmsOperation::Wrap => Check::Wrap,
            KmsOperation::Unwrap => Check::Unwrap,
            KmsOperation::Token => Check::Credential,
        };
        let (check, usual) = match why.blame() {
            Blame::Clock => (Check::Clock, &CLOCK),
            Blame::Credentials => (Check::Credential, &CREDENTIAL_REFUSED),
            Blame::Grant => (Check::Credential, &CREDENTIAL_NOT_ALLOWED),
            Blame::Key => (Check::Key, &KEY_UNUSABLE),
            Blame::Rate => (own, &THROTTLED),
            Blame::Account => (own, &ACCOUNT),
            Blame::Kms => (own, &KMS_DOWN),
            Blame::Endpoint => (own, &NOT_A_KMS),
            Blame::Alteration => (own, &ALTERED),
            Blame::Edek | Blame::Request | Blame::Proxy => (own, &REFUSED_OPERATION),
            // What is wrong on the way is found by going it, not by what anybody says.
            Blame::Address => (own, &FORBIDDEN),
            Blame::CertificateIssuer => (own, &STRANGER),
            Blame::CertificateName => (own, &OTHER_NAME),
            Blame::CertificateTime => (own, &OUT_OF_TIME),
            Blame::Pin => (own, &OTHER_KEY),
            Blame::Network => (own, &CUT),
        };
        let sentence = why.sentence().to_lowercase();
        let exact = CODES
            .iter()
            .find(|(code, words, _)| why.code() == Some(code) && sentence.contains(words))
            .map(|(_, _, cause)| *cause);
        let cause = match (check, exact) {
            // A role that may not be assumed is no permission at the key.
            (Check::Credential, Some(cause)) if *cause == NO_PERMISSION => &CREDENTIAL_NOT_ALLOWED,
            (Check::Credential, Some(cause)) if cause.is_about_credentials() => cause,
            (Check::Key, Some(cause)) if !cause.is_about_credentials() => cause,
            _ => usual,
        };
        let what = why.to_string();
        // A permission to decrypt can be missing where that to encrypt is there.
        let check = if why.operation() == KmsOperation::Unwrap && check == Check::Key {
            Check::Unwrap
        } else {
            check
        };
        (check, Self { cause, what })
    }

    /// Of a clock that is off by more than the proxy leaves alone.
    pub(crate) fn of_clock(ours: SystemTime, theirs: SystemTime) -> Option<Self> {
        let (off, way) = match ours.duration_since(theirs) {
            Ok(ahead) => (ahead, "ahead of"),
            Err(behind) => (behind.duration(), "behind"),
        };
        (off > CLOCK_TOLERANCE).then(|| Self {
            cause: &CLOCK,
            what: format!(
                "this machine's clock is {} s {way} the KMS's",
                off.as_secs()
            ),
        })
    }

    /// Of an unwrap that gave something else than was wrapped.
    pub(crate) fn of_another_value() -> Self {
        Self {
            cause: &OTHER_VALUE,
            what: "the unwrapped value is not the one that was wrapped".to_owned(),
        }
    }
}

/// Above this a clock is wrong. It is what the proxy itself leaves alone.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

impl Cause {
    fn is_about_credentials(&self) -> bool {
        [
            &WRONG_SECRET,
            &UNKNOWN_CREDENTIAL,
            &EXPIRED_CREDENTIAL,
            &CREDENTIAL_REFUSED,
            &CREDENTIAL_NOT_ALLOWED,
            &WRONG_REGION,
            &WRONG_DIRECTORY,
        ]
        .contains(&self)
    }
}
