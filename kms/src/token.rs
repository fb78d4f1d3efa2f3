//! Tokens: what some KMSs want before they take a request, and how to come by one.

use std::{fmt, time::SystemTime};

use sha2::{Digest as _, Sha256};
use tsp_wire::Secret;

use crate::{Endpoint, HttpRequest, KmsError};

/// Names a credential: a hash over all of its parts, secrets included.
///
/// Configs with equal credentials share their token; a changed credential never meets the old one's.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CredentialId([u8; 32]);

impl CredentialId {
    /// Hashes `parts`, each with its length before it, so that no two lists of parts look the same.
    pub(crate) fn of(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new_with_prefix(b"tsp credential v1");
        for part in parts {
            hash.update(part.len().to_be_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    /// A number that is the same for the same credential on every core: names its home.
    #[must_use]
    pub fn number(&self) -> u64 {
        let (first, _) = self.0.split_first_chunk().unwrap_or((&[0; 8], &[]));
        u64::from_be_bytes(*first)
    }
}

impl fmt::Debug for CredentialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CredentialId({:016x})", self.number())
    }
}

/// What a KMS takes as proof of a credential, for a while.
#[derive(Debug)]
pub struct Token {
    pub(crate) proof: Proof,
    /// What gets the next token without the credential's own secret.
    pub(crate) refresh: Option<Secret<String>>,
    pub(crate) renew_at: SystemTime,
    pub(crate) expires_at: SystemTime,
}

/// The kinds of proof.
#[derive(Debug)]
pub(crate) enum Proof {
    /// The whole value of an `Authorization` header.
    Header(Secret<String>),
    /// Keys of an AWS session.
    Aws {
        access_key_id: String,
        secret_access_key: Secret<String>,
        session_token: Secret<String>,
    },
}

impl Token {
    /// When to fetch the next one in the background. Until [`Token::expires_at`] this one serves.
    #[must_use]
    pub fn renew_at(&self) -> SystemTime {
        self.renew_at
    }

    /// When it is of no more use.
    #[must_use]
    pub fn expires_at(&self) -> SystemTime {
        self.expires_at
    }
}

/// How a token comes about.
pub enum TokenStep {
    /// By a call; its answer goes to [`RemoteKms::read_token`](crate::RemoteKms::read_token).
    Call(Box<TokenCall>),
    /// By computing for about a millisecond (an RSA signature), which is not to be done on a shard.
    Sign(Box<dyn FnOnce() -> Result<Signed, KmsError> + Send>),
}

/// What a [`TokenStep::Sign`] gives.
#[derive(Debug)]
pub enum Signed {
    /// The token itself.
    Token(Token),
    /// The call that fetches it.
    Call(Box<TokenCall>),
}

/// A call to a token endpoint.
#[derive(Debug)]
pub struct TokenCall {
    /// Where to connect.
    pub endpoint: Endpoint,
    /// What to send.
    pub request: HttpRequest,
}

impl fmt::Debug for TokenStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(call) => f.debug_tuple("Call").field(&call.endpoint).finish(),
            Self::Sign(_) => f.write_str("Sign"),
        }
    }
}

const _: () = {
    const fn shared<T: Send + Sync>() {}
    const fn sent<T: Send>() {}
    shared::<Token>();
    sent::<TokenStep>();
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_credential_do_not_run_into_each_other() {
        assert_ne!(
            CredentialId::of(&[b"ab", b"c"]),
            CredentialId::of(&[b"a", b"bc"])
        );
        assert_ne!(CredentialId::of(&[b"a"]), CredentialId::of(&[b"a", b""]));
        assert_eq!(
            CredentialId::of(&[b"a", b"b"]),
            CredentialId::of(&[b"a", b"b"])
        );
    }
}
