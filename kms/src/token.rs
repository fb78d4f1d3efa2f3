//! Tokens: what some KMSs want before they take a request, and how to come by one.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use sha2::{Digest as _, Sha256};
use tsp_wire::Secret;

use crate::{Endpoint, HttpRequest, KmsError, aws::Signer};

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

    /// A part of `whole` that is the same for the same credential, and spread evenly over all of them.
    fn share_of(&self, whole: Duration) -> Duration {
        // Other bytes than those that name the home.
        let [_, _, _, _, _, _, _, _, a, b, ..] = self.0;
        whole * u32::from(u16::from_be_bytes([a, b])) / u32::from(u16::MAX)
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
    Aws(Signer),
}

impl Proof {
    /// A bearer token (RFC 6750, section 2.1).
    pub(crate) fn bearer(token: &str) -> Self {
        let mut header = String::with_capacity("Bearer ".len() + token.len());
        header.push_str("Bearer ");
        header.push_str(token);
        Self::Header(Secret::new(header))
    }
}

/// When tokens of a kind are renewed: between `first` and `last` before their end. Where in between, the credential
/// decides, so that tokens which were fetched together are not renewed together.
pub(crate) struct Renewal {
    pub(crate) first: Duration,
    pub(crate) last: Duration,
}

impl Token {
    /// Longest life that is believed: no KMS gives a token for more than a day and a half.
    pub(crate) const LIFE_MAX: Duration = Duration::from_secs(36 * 3600);

    /// How long before its end a token counts as expired: longer than any attempt is allowed to take, so that none
    /// expires on the way.
    const IN_FLIGHT: Duration = Duration::from_secs(10);

    /// A token that was given out at `now` for `life`. It is renewed at half its life at the earliest, however short
    /// that is.
    pub(crate) fn new(
        proof: Proof,
        id: CredentialId,
        now: SystemTime,
        life: Duration,
        renewal: &Renewal,
    ) -> Self {
        let life = life.min(Self::LIFE_MAX);
        let ahead = renewal.last + id.share_of(renewal.first.saturating_sub(renewal.last));
        let after = life.saturating_sub(ahead).max(life / 2);
        let at = |after| now.checked_add(after).unwrap_or(now);
        Self {
            proof,
            refresh: None,
            renew_at: at(after),
            expires_at: at(life - Self::IN_FLIGHT.min(life / 4)),
        }
    }

    /// Keeps what gets the next token without the credential's own secret.
    pub(crate) fn with_refresh(self, refresh: Option<Secret<String>>) -> Self {
        Self { refresh, ..self }
    }

    /// The value of the `Authorization` header, if this is the proof that is wanted.
    #[must_use]
    pub fn header(&self) -> Option<&str> {
        match &self.proof {
            Proof::Header(header) => Some(header.expose()),
            Proof::Aws(_) => None,
        }
    }

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

    const RENEWAL: Renewal = Renewal {
        first: Duration::from_secs(900),
        last: Duration::from_secs(600),
    };

    /// When a token of this life is renewed and over, in seconds after it was given out.
    fn times(number: u64, life_s: u64) -> (u64, u64) {
        let id = CredentialId::of(&[&number.to_be_bytes()]);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_768_472_130);
        let life = Duration::from_secs(life_s);
        let token = Token::new(Proof::bearer("t"), id, now, life, &RENEWAL);
        let after = |time: SystemTime| time.duration_since(now).unwrap().as_secs();
        (after(token.renew_at()), after(token.expires_at()))
    }

    #[test]
    fn renewals_are_spread_over_their_window_and_stay_where_they_are() {
        let all: Vec<_> = (0..1000).map(|number| times(number, 3600).0).collect();
        assert!(all.iter().all(|after| (2700..=3000).contains(after)));
        for part in 0..10_u64 {
            let part = 2700 + part * 30..2730 + part * 30;
            let count = all.iter().filter(|after| part.contains(after)).count();
            assert!((50..150).contains(&count), "{part:?}: {count}");
        }
        assert_eq!(times(7, 3600), times(7, 3600));
    }

    #[test]
    fn however_short_a_life_a_token_is_used_for_half_of_it() {
        for (life_s, renew, over) in [(900, 450, 890), (60, 30, 50), (1, 0, 0), (0, 0, 0)] {
            assert_eq!(times(1, life_s), (renew, over), "{life_s}");
        }
        let day_and_a_half = times(1, 36 * 3600);
        assert_eq!(times(1, u64::MAX), day_and_a_half);
    }

    #[test]
    fn a_time_that_cannot_be_told_is_no_reason_to_panic() {
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(i64::MAX as u64);
        let id = CredentialId::of(&[]);
        let token = Token::new(
            Proof::bearer("t"),
            id,
            end,
            Duration::from_secs(3600),
            &RENEWAL,
        );
        assert_eq!((token.renew_at(), token.expires_at()), (end, end));
    }

    #[test]
    fn a_token_does_not_print_itself() {
        let id = CredentialId::of(&[b"x"]);
        let now = SystemTime::UNIX_EPOCH;
        let token = Token::new(
            Proof::bearer("canary"),
            id,
            now,
            Duration::from_secs(1),
            &RENEWAL,
        )
        .with_refresh(Some(Secret::new("canary".to_owned())));
        assert_eq!(token.header(), Some("Bearer canary"));
        assert!(!format!("{token:?} {token:#?}").contains("canary"));
    }
}
