//! Tokens of Microsoft Entra ID: the client credentials grant of its v2.0 endpoint, with a client secret or with an
//! assertion that a certificate's key signs (Microsoft identity platform; RFC 6749, section 4.4; RFC 7523).

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use jsonwebtoken::{Algorithm, Header};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use tsp_wire::Secret;

use super::{KIND, api_name};
use crate::{
    CredentialId, Endpoint, HttpAnswer, KmsError, KmsErrorKind, KmsOperation, Signed, Token,
    TokenCall, TokenStep,
    class::{Class, Refusal},
    config::visible,
    form,
    json::{lent, text},
    rsa::{RsaKey, pem_section},
    session::Clock,
    text::Clean,
    token::{self, Renewal},
};

/// An application of a directory, and how it gets a token for vaults.
pub(crate) struct Entra {
    endpoint: Endpoint,
    path: String,
    /// The URL by which an assertion names the endpoint, and the endpoint knows itself.
    audience: String,
    client_id: String,
    scope: String,
    /// The directory.
    pub(super) tenant: String,
    proof: Proof,
    id: CredentialId,
}

/// How an application proves itself.
pub(super) enum Proof {
    Secret(Secret<String>),
    Certificate(Arc<Certificate>),
}

/// A certificate of the application, and its key.
pub(super) struct Certificate {
    key: RsaKey,
    /// SHA-256 of the certificate.
    thumbprint: [u8; 32],
}

impl Certificate {
    /// A PEM text with both in any order. The first certificate counts; those that issued it may follow.
    ///
    /// # Errors
    /// What is expected of the text.
    pub(super) fn from_pem(pem: &str) -> Result<Self, &'static str> {
        const NO_CERTIFICATE: &str = "a certificate in PEM (`BEGIN CERTIFICATE`), and its key";
        let der = pem_section(pem, "CERTIFICATE").ok_or(NO_CERTIFICATE)?;
        let key = RsaKey::from_pem(pem).ok_or(
            "a certificate and its RSA key of at least 2048 bits, in PEM without a password",
        )?;
        let thumbprint = Sha256::digest(&*der).into();
        let der = CertificateDer::from(der.as_slice());
        let certificate = webpki::EndEntityCert::try_from(&der).map_err(|_| NO_CERTIFICATE)?;
        let info = certificate.subject_public_key_info();
        match key.public_key() {
            Some(public) if info.ends_with(&public) => Ok(Self { key, thumbprint }),
            _ => Err(
                "a certificate and the key that belongs to it: these two do not belong together",
            ),
        }
    }

    /// `None` if the key cannot sign, which was ruled out when it was read.
    fn assertion(&self, claims: &Claims<'_>) -> Option<Secret<String>> {
        // As Microsoft's own library does where it has the certificate; without the padding that it adds, which RFC 7515
        // does not know.
        let mut header = Header::new(Algorithm::PS256);
        header.x5t_s256 = Some(BASE64URL.encode(self.thumbprint));
        self.key.sign(&header, claims)
    }
}

/// What an assertion says (RFC 7523, section 3).
#[derive(Serialize)]
struct Claims<'a> {
    aud: &'a str,
    iss: &'a str,
    sub: &'a str,
    exp: i64,
    iat: i64,
    jti: String,
}

/// How long an assertion is good, in seconds: what Microsoft's own library takes.
const ASSERTION_LIFE_S: i64 = 600;

/// When tokens are renewed that do not say when: up to ten minutes before their end, and five at the least.
const RENEWAL: Renewal = Renewal {
    first: Duration::from_secs(600),
    last: Duration::from_secs(300),
};

/// Longest token that is taken, in bytes: real ones stay below 4 KiB, and it travels in a header.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

impl Entra {
    pub(super) fn new(
        endpoint: Endpoint,
        tenant: &str,
        client_id: &str,
        scope: String,
        proof: Proof,
    ) -> Self {
        let path = format!("/{tenant}/oauth2/v2.0/token");
        let id = CredentialId::of(&[
            b"azure",
            endpoint.identity().as_bytes(),
            path.as_bytes(),
            client_id.as_bytes(),
            scope.as_bytes(),
            match &proof {
                Proof::Secret(_) => b"secret",
                Proof::Certificate(_) => b"certificate",
            },
            match &proof {
                Proof::Secret(secret) => secret.expose().as_bytes(),
                Proof::Certificate(certificate) => &certificate.thumbprint,
            },
        ]);
        Self {
            // Also where the endpoint is a simulator's without TLS: it is a name, not a way.
            audience: format!("https://{}{path}", endpoint.host_header()),
            endpoint,
            path,
            client_id: client_id.to_owned(),
            scope,
            tenant: tenant.to_owned(),
            proof,
            id,
        }
    }

    pub(super) fn id(&self) -> CredentialId {
        self.id
    }

    pub(crate) fn step(
        self: &Arc<Self>,
        refused: Option<&KmsError>,
        clock: &mut Clock,
        now: SystemTime,
    ) -> TokenStep {
        let asked_at_s = clock.correct(now);
        let claims = refused.and_then(KmsError::claims).map(str::to_owned);
        match &self.proof {
            Proof::Secret(secret) => {
                let proof = [("client_secret", secret.expose().as_str())];
                TokenStep::Call(Box::new(self.call(&proof, claims.as_deref())))
            }
            Proof::Certificate(certificate) => {
                let (entra, certificate) = (Arc::clone(self), Arc::clone(certificate));
                let jti = self.jti(now);
                TokenStep::Sign(Box::new(move || {
                    entra.call_with(&certificate, asked_at_s, jti, claims.as_deref())
                }))
            }
        }
    }

    fn call_with(
        &self,
        certificate: &Certificate,
        iat: i64,
        jti: String,
        claims: Option<&str>,
    ) -> Result<Signed, KmsError> {
        let said = Claims {
            aud: &self.audience,
            iss: &self.client_id,
            sub: &self.client_id,
            exp: iat + ASSERTION_LIFE_S,
            iat,
            jti,
        };
        let Some(assertion) = certificate.assertion(&said) else {
            return Err(KmsError::new(
                KmsErrorKind::Authorization,
                KIND,
                KmsOperation::Token,
                Clean::ours("the certificate's key cannot sign"),
            ));
        };
        let proof = [
            (
                "client_assertion_type",
                "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            ),
            ("client_assertion", assertion.expose().as_str()),
        ];
        Ok(Signed::Call(Box::new(self.call(&proof, claims))))
    }

    /// An id that no other assertion has. Nothing here is random, so it is a hash over who, when, and how many before: two
    /// processes would have to ask for the same application in the same nanosecond.
    fn jti(&self, now: SystemTime) -> String {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let hash = Sha256::new_with_prefix(b"tsp jti v1")
            .chain_update(self.id.number().to_be_bytes())
            .chain_update(since.as_nanos().to_be_bytes())
            .chain_update(count.to_be_bytes())
            .finalize();
        // Half of it is as much as a UUID has.
        let (half, _) = hash.split_at(16);
        hex::encode(half)
    }

    /// The call that gives the token, for a proof that is ready. `claims` is what the token must claim besides, as JSON.
    fn call(&self, proof: &[(&str, &str)], claims: Option<&str>) -> TokenCall {
        let mut fields = Vec::with_capacity(6);
        fields.push(("client_id", self.client_id.as_str()));
        fields.extend_from_slice(proof);
        fields.push(("grant_type", "client_credentials"));
        fields.push(("scope", &self.scope));
        fields.extend(claims.map(|claims| ("claims", claims)));
        TokenCall {
            endpoint: self.endpoint.clone(),
            request: form::post(&self.endpoint, &self.path, &fields),
        }
    }

    pub(crate) fn read(&self, answer: &HttpAnswer<'_>, now: SystemTime) -> Result<Token, KmsError> {
        #[derive(Deserialize)]
        struct Granted<'a> {
            #[serde(borrow)]
            access_token: Option<&'a RawValue>,
            #[serde(borrow)]
            token_type: Option<&'a RawValue>,
            #[serde(borrow)]
            expires_in: Option<&'a RawValue>,
            #[serde(borrow)]
            refresh_in: Option<&'a RawValue>,
        }

        if answer.status != 200 {
            return Err(refusal(answer));
        }
        let Ok(granted) = serde_json::from_slice::<Granted<'_>>(answer.body) else {
            return Err(unusable(answer, "its answer is not the JSON of a token"));
        };
        let bearer =
            text(granted.token_type).is_some_and(|kind| kind.eq_ignore_ascii_case("bearer"));
        if !bearer {
            return Err(unusable(answer, "its token is not a bearer token"));
        }
        let token = granted
            .access_token
            .and_then(lent)
            .filter(|token| visible(token, TOKEN_BYTES_MAX))
            .ok_or_else(|| unusable(answer, "its answer holds no token"))?;
        let life = seconds(granted.expires_in)
            .ok_or_else(|| unusable(answer, "its token does not say how long it lives"))?;
        let renewal = match seconds(granted.refresh_in) {
            Some(after) if after < life => Renewal {
                first: life - after,
                last: life - after,
            },
            _ => RENEWAL,
        };
        let proof = token::Proof::bearer(token);
        Ok(Token::new(proof, self.id, now, life, &renewal))
    }
}

impl fmt::Debug for Entra {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entra")
            .field("endpoint", &self.endpoint)
            .field("tenant", &self.tenant)
            .field("client_id", &self.client_id)
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}

/// Whole seconds, from a number or, as older endpoints have it, a string. None is as good as absent.
fn seconds(value: Option<&RawValue>) -> Option<Duration> {
    let seconds: u64 = value?.get().trim_matches('"').parse().ok()?;
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

/// Entra said yes, or somebody did in its place, but what came cannot be used.
fn unusable(answer: &HttpAnswer<'_>, why: &'static str) -> KmsError {
    KmsError::unusable(KIND, KmsOperation::Token, why)
        .with_request_id(answer.header(REQUEST_ID).and_then(Clean::request_id))
}

const REQUEST_ID: &str = "x-ms-request-id";

/// Entra, or something on the way, said no.
fn refusal(answer: &HttpAnswer<'_>) -> KmsError {
    #[derive(Default, Deserialize)]
    struct Failure<'a> {
        #[serde(borrow)]
        error: Option<&'a RawValue>,
        #[serde(borrow)]
        error_description: Option<&'a RawValue>,
        #[serde(borrow)]
        error_codes: Option<&'a RawValue>,
        #[serde(borrow)]
        trace_id: Option<&'a RawValue>,
    }

    let failure: Failure<'_> = serde_json::from_slice(answer.body).unwrap_or_default();
    let word = text(failure.error).unwrap_or_default();
    let description = text(failure.error_description).unwrap_or_default();
    let trace_id = text(failure.trace_id);
    let listed = failure
        .error_codes
        .and_then(|codes| serde_json::from_str::<Vec<u32>>(codes.get()).ok())
        .and_then(|codes| codes.first().copied());
    let (written, sentence) = said(&description);
    let number = listed.or(written);
    let by_number = CODES.iter().find(|(known, _)| Some(*known) == number);
    let by_word = WORDS.iter().find(|(known, _)| *known == word);
    let class = by_number
        .map(|(_, class)| *class)
        .or(by_word.map(|(_, class)| *class))
        .unwrap_or(Class::of_status(answer.status));
    Refusal {
        provider: KIND,
        operation: KmsOperation::Token,
        class,
        api_name: api_name(KmsOperation::Token),
        code: match number {
            Some(number) => Some(Clean::code(&format!("AADSTS{number}"))),
            None => Clean::code(&word).non_empty(),
        },
        message: sentence,
        request_id: trace_id.as_deref().or(answer.header(REQUEST_ID)),
        retry_after: answer.retry_after(),
    }
    .into_error(answer)
}

/// The number of an error, and its sentence, out of "AADSTS7000215: Invalid client secret provided. … Trace ID: …".
fn said(description: &str) -> (Option<u32>, &str) {
    let (number, sentence) = match description.strip_prefix("AADSTS") {
        None => (None, description),
        Some(rest) => match rest.split_once(':') {
            None => (rest.trim().parse().ok(), ""),
            Some((number, sentence)) => (number.parse().ok(), sentence),
        },
    };
    let sentence = sentence
        .find("Trace ID:")
        .map_or(sentence, |end| sentence.get(..end).unwrap_or_default());
    (number, sentence.trim())
}

/// The numbers of errors that a client credentials grant is known to meet (Microsoft Entra authentication and
/// authorization error codes).
const CODES: &[(u32, Class)] = &[
    // The secret is wrong; it is expired; there is no assertion; its signature or certificate is unknown; no certificate
    // is registered.
    (7_000_215, Class::Credentials),
    (7_000_222, Class::Credentials),
    (7_000_216, Class::Credentials),
    (700_027, Class::Credentials),
    (700_030, Class::Credentials),
    // The assertion is out of its time.
    (700_024, Class::Clock),
    // The application, the directory, the resource or the scope is unknown.
    (700_016, Class::Configuration),
    (90_002, Class::Configuration),
    (900_023, Class::Configuration),
    (500_011, Class::Configuration),
    (70_011, Class::Configuration),
    (7_000_229, Class::Configuration),
    // The application is disabled; conditional access; it is not assigned.
    (7_000_112, Class::Credentials),
    (7_000_110, Class::Credentials),
    (53_003, Class::Credentials),
    (530_003, Class::Credentials),
    (50_105, Class::Credentials),
    // A loop; the directory is throttled.
    (50_196, Class::Throttled),
    (90_055, Class::Throttled),
    // Passing trouble.
    (90_033, Class::Trouble),
    (50_097, Class::Trouble),
];

/// What OAuth's own words mean where there is no number that we know. What is not here goes by the status.
const WORDS: &[(&str, Class)] = &[
    ("temporarily_unavailable", Class::Throttled),
    ("server_error", Class::Trouble),
    ("invalid_client", Class::Credentials),
    ("unauthorized_client", Class::Credentials),
    ("invalid_scope", Class::Configuration),
    ("invalid_resource", Class::Configuration),
];

#[cfg(test)]
mod tests;
