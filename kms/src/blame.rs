//! What is to blame for a failure, and what to do about it.

use crate::{KmsKind, KmsOperation};

/// What is most likely to blame for a failed operation.
///
/// The class of an error says what a program is to make of it; this says where a person is to look. So one class may have
/// several of these: a KMS is unreachable because its certificate has expired, or because it is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The credentials in the configuration.
    Credentials,
    /// What the credentials may do before any key is asked for: get a token, assume a role, act in a domain.
    Grant,
    /// The key, or a permission at it.
    Key,
    /// What was to be unwrapped.
    Edek,
    /// Whoever answers is not the KMS, or not the configured part of it.
    Endpoint,
    /// The endpoint leads to where the proxy may not connect.
    Address,
    /// Nobody that we trust vouches for the certificate.
    CertificateIssuer,
    /// The certificate is for another host.
    CertificateName,
    /// The certificate has run out, or is not good yet.
    CertificateTime,
    /// The certificate is good, but its public key is not the pinned one.
    Pin,
    /// The way to the KMS.
    Network,
    /// Something on the way alters what is sent.
    Alteration,
    /// The KMS does not understand a request that others do.
    Request,
    /// The KMS: it is slow or in trouble.
    Kms,
    /// The rate at which the account asks.
    Rate,
    /// The account at the KMS.
    Account,
    /// Our clock, or the KMS's.
    Clock,
    /// The proxy.
    Proxy,
}

impl Blame {
    /// What to do about it, in a sentence for whoever called the proxy.
    #[must_use]
    pub const fn advice(self, provider: KmsKind, operation: KmsOperation) -> &'static str {
        match self {
            Self::Credentials => "Check the credentials in the KMS config.",
            Self::Grant => {
                "Check the credentials in the KMS config, and what they are allowed to do at the KMS."
            }
            Self::Key if matches!(operation, KmsOperation::Unwrap) => {
                "Check that the KMS config names the key that made the EDEK, and the key's state and permissions at the KMS."
            }
            Self::Key => match provider {
                KmsKind::Aws => {
                    "Check key and region in the KMS config, and the key's state and permissions at the KMS."
                }
                KmsKind::Local | KmsKind::Gcp | KmsKind::Azure | KmsKind::Thales => {
                    "Check the key in the KMS config, and its state and permissions at the KMS."
                }
            },
            Self::Edek => "The EDEK was altered, or was made with another key.",
            Self::Endpoint => {
                "Check the endpoint in the KMS config: whoever answers there does not speak as this KMS does."
            }
            Self::Address => {
                "Check the endpoint in the KMS config; whoever runs the proxy can allow it."
            }
            Self::CertificateIssuer => {
                "Name the KMS's authority in ca_file if it is a private one; else find out who answers in its place."
            }
            Self::CertificateName => "Check the host of the endpoint in the KMS config.",
            Self::CertificateTime => {
                "The KMS's certificate must be renewed, or the proxy's clock is wrong."
            }
            Self::Pin => {
                "Compare spkiPin with the pin at the KMS itself; if that is another, find out who answers."
            }
            Self::Network => {
                "Check the endpoint in the KMS config, and the network between it and the proxy."
            }
            Self::Alteration => "Something between the proxy and the KMS alters data.",
            Self::Request => {
                "Something between the proxy and the KMS may alter requests; if not, please report this."
            }
            Self::Kms => "The KMS is slow or in trouble; try again later.",
            Self::Rate => "The KMS limits the account's rate; try again later.",
            Self::Account => "The owner of the account at the KMS must act.",
            Self::Clock => {
                "The proxy's clock and the KMS's disagree: set the proxy's by a time server."
            }
            Self::Proxy => "Please report this.",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_advice_is_one_sentence_or_two_that_say_what_to_do() {
        for blame in [
            Blame::Credentials,
            Blame::Grant,
            Blame::Key,
            Blame::Edek,
            Blame::Endpoint,
            Blame::Address,
            Blame::CertificateIssuer,
            Blame::CertificateName,
            Blame::CertificateTime,
            Blame::Pin,
            Blame::Network,
            Blame::Alteration,
            Blame::Request,
            Blame::Kms,
            Blame::Rate,
            Blame::Account,
            Blame::Clock,
            Blame::Proxy,
        ] {
            let advice = blame.advice(KmsKind::Aws, KmsOperation::Unwrap);
            assert!(advice.ends_with('.'), "{advice}");
            assert!((15..=120).contains(&advice.len()), "{advice}");
        }
    }
}
