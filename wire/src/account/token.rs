//! Tokens that requests of a service account carry: a JSON Web Token (RFC 7519) per request, signed with Ed25519 (RFC 8037).
//!
//! A token is good for one request: it names method, path with query, and the body's SHA-256, lives a minute at most, and
//! its number is taken once. It travels as `Authorization: Bearer TOKEN`.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::AccountId;
use crate::envelope::{SigningKey, VerifyingKey};

/// Whom every token is for.
pub const AUDIENCE: &str = "tsp-broker";

/// Longest life of a token, in seconds.
pub const LIFE_S_MAX: i64 = 60;

/// How far the two clocks may differ, in seconds.
pub const CLOCK_ERROR_S_MAX: i64 = 60;

/// Longest token, in bytes: one of ours has under 700.
pub const TOKEN_BYTES_MAX: usize = 4_096;

/// Size of a token's own number, in bytes.
pub const ID_BYTES: usize = 16;

/// What a PKCS #8 file (RFC 8410) has in front of the 32 bytes of an Ed25519 seed.
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// The request that a token is for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// In upper case.
    pub method: &'a str,
    /// Path and query, as they are sent.
    pub path: &'a str,
    /// All of it, before any compression; empty if there is none.
    pub body: &'a [u8],
}

impl Request<'_> {
    fn body_sha256(&self) -> String {
        URL_SAFE_NO_PAD.encode(Sha256::digest(self.body))
    }
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    iat: i64,
    exp: i64,
    jti: String,
    method: String,
    url: String,
    body_sha256: String,
}

/// Makes the token for one request. `now_s` is Unix time in seconds, `id` is random. `None` never happens.
#[must_use]
pub fn sign(
    account: AccountId,
    key: &SigningKey,
    request: &Request<'_>,
    now_s: i64,
    id: [u8; ID_BYTES],
) -> Option<String> {
    let claims = Claims {
        iss: account.to_string(),
        aud: AUDIENCE.to_owned(),
        iat: now_s,
        exp: now_s.saturating_add(LIFE_S_MAX),
        jti: URL_SAFE_NO_PAD.encode(id),
        method: request.method.to_owned(),
        url: request.path.to_owned(),
        body_sha256: request.body_sha256(),
    };
    let mut pkcs8 = Zeroizing::new(Vec::with_capacity(PKCS8_PREFIX.len() + SigningKey::LEN / 2));
    pkcs8.extend(PKCS8_PREFIX);
    pkcs8.extend(key.seed());
    let key = EncodingKey::from_ed_der(&pkcs8);
    jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims, &key).ok()
}

/// The account that a token says it is of, so that its key can be looked up. Only [`verify`] proves it.
#[must_use]
pub fn issuer(token: &str) -> Option<AccountId> {
    if token.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    AccountId::from_text(&claims.iss)
}

/// A good token: its number is still to be taken, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The token's number.
    pub id: [u8; ID_BYTES],
    /// When it may be forgotten, as Unix time in seconds: from then on the token is too old.
    pub forget_s: i64,
}

/// Why a token is refused. For the log of the broker, not for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is no token of ours: too long, not a JSON Web Token, without a member, of another algorithm.
    Malformed,
    /// It is another account's.
    OtherAccount,
    /// It is for somebody else than a broker.
    OtherAudience,
    /// The signature is not the account's.
    Signature,
    /// Its time is over, or the account's clock is behind.
    TooOld,
    /// It was made in the future: the account's clock is ahead.
    FromTheFuture,
    /// It would live longer than a minute.
    TooLong,
    /// It is for another method.
    Method,
    /// It is for another path or query.
    Path,
    /// It is for another body.
    Body,
}

impl Refusal {
    /// A word for logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::OtherAccount => "other-account",
            Self::OtherAudience => "other-audience",
            Self::Signature => "signature",
            Self::TooOld => "too-old",
            Self::FromTheFuture => "from-the-future",
            Self::TooLong => "too-long",
            Self::Method => "method",
            Self::Path => "path",
            Self::Body => "body",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Checks a token of `account`, whose key is `key`, for `request` at `now_s`.
///
/// # Errors
/// The first reason to refuse it. The signature is checked before anything that it covers.
pub fn verify(
    token: &str,
    account: AccountId,
    key: &VerifyingKey,
    request: &Request<'_>,
    now_s: i64,
) -> Result<Verified, Refusal> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(Refusal::Malformed);
    }
    let mut validation = Validation::new(Algorithm::EdDSA);
    // Checked below, against the time that the caller knows.
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    let key = DecodingKey::from_ed_der(key.as_bytes());
    let claims = match jsonwebtoken::decode::<Claims>(token, &key, &validation) {
        Ok(data) => data.claims,
        Err(why) if *why.kind() == jsonwebtoken::errors::ErrorKind::InvalidSignature => {
            return Err(Refusal::Signature);
        }
        Err(_) => return Err(Refusal::Malformed),
    };
    if AccountId::from_text(&claims.iss) != Some(account) {
        return Err(Refusal::OtherAccount);
    }
    if claims.aud != AUDIENCE {
        return Err(Refusal::OtherAudience);
    }
    if claims.exp.saturating_sub(claims.iat) > LIFE_S_MAX {
        return Err(Refusal::TooLong);
    }
    if claims.iat > now_s.saturating_add(CLOCK_ERROR_S_MAX) {
        return Err(Refusal::FromTheFuture);
    }
    let forget_s = claims.exp.saturating_add(CLOCK_ERROR_S_MAX);
    if forget_s <= now_s {
        return Err(Refusal::TooOld);
    }
    if claims.method != request.method {
        return Err(Refusal::Method);
    }
    if claims.url != request.path {
        return Err(Refusal::Path);
    }
    if claims.body_sha256 != request.body_sha256() {
        return Err(Refusal::Body);
    }
    let id = URL_SAFE_NO_PAD.decode(&claims.jti).ok();
    let id = id.and_then(|id| id.try_into().ok());
    Ok(Verified {
        id: id.ok_or(Refusal::Malformed)?,
        forget_s,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng as _;

    use super::*;

    const NOW: i64 = 1_800_000_000;
    const REQUEST: Request<'_> = Request {
        method: "POST",
        path: "/account/1/secrets",
        body: b"{}",
    };

    fn account(seed: u64) -> (AccountId, SigningKey) {
        let mut random = ChaCha20Rng::seed_from_u64(seed);
        let key = SigningKey::generate(&mut random).unwrap();
        (AccountId::new([2; 12], &key.verifying()), key)
    }

    fn token() -> String {
        let (id, key) = account(1);
        sign(id, &key, &REQUEST, NOW, [5; ID_BYTES]).unwrap()
    }

    fn verified(token: &str, request: &Request<'_>, now_s: i64) -> Result<Verified, Refusal> {
        let (id, key) = account(1);
        verify(token, id, &key.verifying(), request, now_s)
    }

    /// A token with any claims, signed as it should be.
    fn with(change: impl FnOnce(&mut serde_json::Value)) -> String {
        let (id, key) = account(1);
        let mut claims = serde_json::json!({
            "iss": id.to_string(), "aud": AUDIENCE, "iat": NOW, "exp": NOW + 60,
            "jti": URL_SAFE_NO_PAD.encode([5; ID_BYTES]), "method": "POST", "url": REQUEST.path,
            "body_sha256": REQUEST.body_sha256(),
        });
        change(&mut claims);
        let signed = [
            serde_json::json!({ "alg": "EdDSA" }).to_string(),
            claims.to_string(),
        ]
        .map(|part| URL_SAFE_NO_PAD.encode(part))
        .join(".");
        let signature = key.sign(signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    #[test]
    fn a_token_is_good_for_its_request() {
        let good = Verified {
            id: [5; ID_BYTES],
            forget_s: NOW + 120,
        };
        let token = token();
        assert_eq!(issuer(&token), Some(account(1).0));
        for now in [NOW - 60, NOW, NOW + 119] {
            assert_eq!(verified(&token, &REQUEST, now), Ok(good), "{now}");
        }
        assert_eq!(verified(&with(|_| {}), &REQUEST, NOW), Ok(good));
    }

    #[test]
    fn each_way_to_be_wrong_has_its_own_reason() {
        let token = token();
        for (request, why) in [
            (
                Request {
                    method: "GET",
                    ..REQUEST
                },
                Refusal::Method,
            ),
            (
                Request {
                    path: "/account/1/secrets?x",
                    ..REQUEST
                },
                Refusal::Path,
            ),
            (
                Request {
                    body: b"{ }",
                    ..REQUEST
                },
                Refusal::Body,
            ),
        ] {
            assert_eq!(verified(&token, &request, NOW), Err(why));
        }
        assert_eq!(verified(&token, &REQUEST, NOW + 120), Err(Refusal::TooOld));
        assert_eq!(verified(&token, &REQUEST, NOW + 300), Err(Refusal::TooOld));
        let ahead = verified(&token, &REQUEST, NOW - 61);
        assert_eq!(ahead, Err(Refusal::FromTheFuture));

        let (id, key) = account(1);
        let (other_id, other_key) = account(2);
        let stranger = verify(&token, id, &other_key.verifying(), &REQUEST, NOW);
        assert_eq!(stranger, Err(Refusal::Signature));
        let other = verify(&token, other_id, &key.verifying(), &REQUEST, NOW);
        assert_eq!(other, Err(Refusal::OtherAccount));

        let long = with(|claims| claims["exp"] = (NOW + 61).into());
        assert_eq!(verified(&long, &REQUEST, NOW), Err(Refusal::TooLong));
        let elsewhere = with(|claims| claims["aud"] = "tsp".into());
        assert_eq!(
            verified(&elsewhere, &REQUEST, NOW),
            Err(Refusal::OtherAudience)
        );
        let extremes = with(|claims| {
            claims["iat"] = i64::MIN.into();
            claims["exp"] = i64::MAX.into();
        });
        assert_eq!(verified(&extremes, &REQUEST, NOW), Err(Refusal::TooLong));
        let without = with(|claims| claims["jti"] = "".into());
        assert_eq!(verified(&without, &REQUEST, NOW), Err(Refusal::Malformed));
    }

    #[test]
    fn no_other_algorithm_is_taken() {
        let claims = token().split('.').nth(1).unwrap().to_owned();
        for header in [r#"{"alg":"none"}"#, r#"{"alg":"HS256"}"#] {
            let token = format!("{}.{claims}.", URL_SAFE_NO_PAD.encode(header));
            assert_eq!(
                verified(&token, &REQUEST, NOW),
                Err(Refusal::Malformed),
                "{header}"
            );
        }
        let long = "a".repeat(TOKEN_BYTES_MAX + 1);
        assert_eq!(verified(&long, &REQUEST, NOW), Err(Refusal::Malformed));
        assert_eq!(issuer(&long), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_changed_character_is_refused(at: proptest::sample::Index, to in "[A-Za-z0-9_.-]") {
            let token = token();
            let at = at.index(token.len());
            let changed = format!("{}{to}{}", &token[..at], &token[at + 1..]);
            prop_assume!(changed != token);
            prop_assert!(verified(&changed, &REQUEST, NOW).is_err());
        }

        #[test]
        fn no_text_makes_it_panic(text: String) {
            prop_assert!(verified(&text, &REQUEST, NOW).is_err());
            let _ = issuer(&text);
        }
    }
}
