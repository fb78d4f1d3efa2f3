//! Tokens: those that the simulated services give out, and the assertions that clients sign to get them.
//!
//! All signatures are checked by `jsonwebtoken`. It reads the system's clock for times, so times are left to the callers,
//! who have the simulated clock.

use std::{collections::HashSet, fmt, time::Duration};

use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, dangerous::insecure_decode, decode,
    encode,
};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use super::crypto::Seed;

/// Longest token that is looked at, in bytes. Real ones stay below 4 KiB.
pub(crate) const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// What a token of ours says. One shape for all services; each leaves empty what it does not need.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Claims {
    /// Which service gave it, and what for.
    pub(crate) kind: String,
    /// Who got it.
    pub(crate) sub: String,
    pub(crate) iat: u64,
    pub(crate) exp: u64,
    /// How often the credential's tokens had been revoked by then.
    #[serde(rename = "gen")]
    pub(crate) generation: u32,
    /// What makes it differ from all others.
    pub(crate) jti: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) aud: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) scope: String,
    /// Azure: the directory.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) tid: String,
    /// Azure: claims that it was asked for with.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) claims: String,
    /// Thales: the domain in which it acts. AWS: the session's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) domain: String,
}

/// Makes and reads the tokens of one world.
pub(crate) struct Mint {
    encoding: EncodingKey,
    decoding: DecodingKey,
    validation: Validation,
}

impl Mint {
    pub(crate) fn new(seed: &Seed) -> Self {
        let secret = seed.derive(&[b"mint"]);
        Self {
            encoding: EncodingKey::from_secret(&secret),
            decoding: DecodingKey::from_secret(&secret),
            validation: signature_only(&[Algorithm::HS256]),
        }
    }

    pub(crate) fn issue(&self, claims: &Claims) -> String {
        #[expect(
            clippy::expect_used,
            reason = "plain claims become JSON and HMAC takes any input"
        )]
        encode(&Header::default(), claims, &self.encoding).expect("claims can be signed")
    }

    /// The claims of a token of ours; its times are the caller's to check. `None` for everything else.
    pub(crate) fn read(&self, kind: &str, token: &str) -> Option<Claims> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let claims = decode::<Claims>(token, &self.decoding, &self.validation)
            .ok()?
            .claims;
        (claims.kind == kind).then_some(claims)
    }
}

impl fmt::Debug for Mint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mint")
    }
}

/// One audience or several (RFC 7519, section 4.1.3).
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub(crate) enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Audience {
    /// Whether the only audience is one of `accepted`.
    pub(crate) fn is_one_of(&self, accepted: &[&str]) -> bool {
        let is_accepted = |audience: &str| accepted.contains(&audience);
        match self {
            Self::One(audience) => is_accepted(audience),
            Self::Several(audiences) => {
                matches!(audiences.as_slice(), [audience] if is_accepted(audience))
            }
        }
    }
}

/// What an assertion says (RFC 7523, section 3). All optional, so that it can be said what is missing.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct AssertionClaims {
    pub(crate) iss: Option<String>,
    pub(crate) sub: Option<String>,
    pub(crate) aud: Option<Audience>,
    pub(crate) scope: Option<String>,
    pub(crate) jti: Option<String>,
    #[serde(default, deserialize_with = "numeric_date")]
    pub(crate) iat: Option<u64>,
    #[serde(default, deserialize_with = "numeric_date")]
    pub(crate) exp: Option<u64>,
    #[serde(default, deserialize_with = "numeric_date")]
    pub(crate) nbf: Option<u64>,
}

/// Seconds since 1970, perhaps with a fraction (RFC 7519, section 2): azure-identity writes one.
fn numeric_date<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let Some(number) = Option::<serde_json::Number>::deserialize(deserializer)? else {
        return Ok(None);
    };
    if let Some(seconds) = number.as_u64() {
        return Ok(Some(seconds));
    }
    let seconds = number.as_f64().unwrap_or(-1.0);
    Duration::try_from_secs_f64(seconds)
        .map(|since_1970| Some(since_1970.as_secs()))
        .map_err(D::Error::custom)
}

/// An assertion whose signature was not yet checked: good only to find the key.
#[derive(Debug)]
pub(crate) struct Unverified {
    pub(crate) header: Header,
    pub(crate) claims: AssertionClaims,
}

/// Looks into an assertion. `None` if it is none, or signed with an algorithm that does not exist.
pub(crate) fn look_into(assertion: &str) -> Option<Unverified> {
    if assertion.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let data = insecure_decode::<AssertionClaims>(assertion).ok()?;
    Some(Unverified {
        header: data.header,
        claims: data.claims,
    })
}

/// Whether `assertion` was signed with the private half of `key`, by one of `algorithms`.
pub(crate) fn is_signed(assertion: &str, key: &DecodingKey, algorithms: &[Algorithm]) -> bool {
    decode::<AssertionClaims>(assertion, key, &signature_only(algorithms)).is_ok()
}

fn signature_only(algorithms: &[Algorithm]) -> Validation {
    Validation {
        algorithms: algorithms.to_vec(),
        required_spec_claims: HashSet::new(),
        validate_exp: false,
        validate_nbf: false,
        validate_aud: false,
        ..Validation::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_may_have_a_fraction_but_must_be_times() {
        let read =
            |json: &str| serde_json::from_str::<AssertionClaims>(json).map(|claims| claims.exp);
        assert_eq!(read(r#"{"exp":7}"#).unwrap(), Some(7));
        assert_eq!(
            read(r#"{"exp":1795827048.17085}"#).unwrap(),
            Some(1_795_827_048)
        );
        assert_eq!(read("{}").unwrap(), None);
        for wrong in [r#"{"exp":-1}"#, r#"{"exp":1e30}"#, r#"{"exp":"7"}"#] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_the_mint_that_made_a_token_reads_it_and_only_as_what_it_is() {
        let mint = Mint::new(&Seed::new(1));
        let claims = Claims {
            kind: "gcp".to_owned(),
            sub: "someone".to_owned(),
            ..Claims::default()
        };
        let token = mint.issue(&claims);
        assert_eq!(mint.read("gcp", &token), Some(claims));
        assert_eq!(mint.read("azure", &token), None);
        assert_eq!(Mint::new(&Seed::new(2)).read("gcp", &token), None);
        for garbage in ["", ".", "..", "a.b.c", &token[1..], &format!("{token}A")] {
            assert_eq!(mint.read("gcp", garbage), None, "{garbage}");
        }
    }
}
