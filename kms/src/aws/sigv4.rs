//! AWS Signature Version 4 (AWS General Reference, "Create a signed AWS API request") for POSTs to `/` without a query,
//! which is all that KMS and STS need.
//!
//! The canonical request goes straight into the hash, and the signing key is kept for its day: that is a fifth of the work
//! of the general-purpose path in `aws-sigv4`, which the tests use as the oracle. The cryptography is that crate's.

use std::{
    fmt,
    time::{Duration, UNIX_EPOCH},
};

use aws_sigv4::sign::v4::{calculate_signature, generate_signing_key};
use sha2::{Digest as _, Sha256};
use tsp_wire::Secret;

use crate::CredentialId;

/// A header to sign: its name in lower case, and its value.
pub(super) type Header<'a> = (&'a str, &'a str);

/// Credentials, and the region and service they sign for.
pub(crate) struct Signer {
    access_key_id: String,
    secret_access_key: Secret<String>,
    session_token: Option<Secret<String>>,
    region: String,
    service: &'static str,
    fingerprint: Fingerprint,
}

impl Signer {
    pub(super) fn new(
        access_key_id: String,
        secret_access_key: Secret<String>,
        session_token: Option<Secret<String>>,
        region: String,
        service: &'static str,
    ) -> Self {
        let fingerprint = Fingerprint::of([secret_access_key.expose(), &region, service]);
        Self {
            access_key_id,
            secret_access_key,
            session_token,
            region,
            service,
            fingerprint,
        }
    }

    pub(super) fn region(&self) -> &str {
        &self.region
    }

    /// Names these credentials, and `more` that goes with them.
    pub(super) fn credential(&self, more: &[&[u8]]) -> CredentialId {
        let own: [&[u8]; 4] = [
            self.access_key_id.as_bytes(),
            self.secret_access_key.expose().as_bytes(),
            self.session_token().unwrap_or_default().as_bytes(),
            self.region.as_bytes(),
        ];
        CredentialId::of(&[own.as_slice(), more].concat())
    }

    pub(super) fn session_token(&self) -> Option<&str> {
        self.session_token
            .as_ref()
            .map(|token| token.expose().as_str())
    }

    /// The value of the `authorization` header for a POST of `body` to `/`.
    ///
    /// `headers` are sorted by name; the absent ones are skipped. `cached` keeps the signing key for the next call.
    pub(super) fn sign(
        &self,
        headers: &[Option<Header<'_>>],
        body: &[u8],
        stamp: &Stamp,
        cached: &mut Option<SigningKey>,
    ) -> String {
        let mut hash = Sha256::new();
        canonical_request(headers, body, |bytes| hash.update(bytes));
        let text = self.string_to_sign(stamp, &hex(hash.finalize().into()));
        let key = SigningKey::cached(cached, self, stamp);
        let signature = calculate_signature(key.secret.expose(), text.as_bytes());

        let mut out = String::with_capacity(256);
        out.push_str("AWS4-HMAC-SHA256 Credential=");
        out.push_str(&self.access_key_id);
        out.push('/');
        self.push_scope(&mut out, stamp);
        out.push_str(", SignedHeaders=");
        signed_names(headers, |text| out.push_str(text));
        out.push_str(", Signature=");
        out.push_str(&signature);
        out
    }

    fn string_to_sign(&self, stamp: &Stamp, hash: &Hex) -> String {
        let mut text = String::with_capacity(192);
        text.push_str("AWS4-HMAC-SHA256\n");
        text.push_str(stamp.time());
        text.push('\n');
        self.push_scope(&mut text, stamp);
        text.push('\n');
        text.push_str(as_str(hash));
        text
    }

    fn push_scope(&self, out: &mut String, stamp: &Stamp) {
        for part in [stamp.day(), &self.region, self.service] {
            out.push_str(part);
            out.push('/');
        }
        out.push_str("aws4_request");
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("access_key_id", &self.access_key_id)
            .field("region", &self.region)
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}

/// Feeds the canonical request to `put`, piece by piece.
fn canonical_request(headers: &[Option<Header<'_>>], body: &[u8], mut put: impl FnMut(&[u8])) {
    // Method, path, and an empty query.
    put(b"POST\n/\n\n");
    for (name, value) in headers.iter().flatten() {
        put(name.as_bytes());
        put(b":");
        // Outer blanks do not count and inner runs of them count as one.
        for (index, word) in value.split(' ').filter(|word| !word.is_empty()).enumerate() {
            if index > 0 {
                put(b" ");
            }
            put(word.as_bytes());
        }
        put(b"\n");
    }
    put(b"\n");
    signed_names(headers, |text| put(text.as_bytes()));
    put(b"\n");
    put(&hex(Sha256::digest(body).into()));
}

/// Feeds the names of the signed headers to `put`, with semicolons between them.
fn signed_names(headers: &[Option<Header<'_>>], mut put: impl FnMut(&str)) {
    for (index, (name, _)) in headers.iter().flatten().enumerate() {
        if index > 0 {
            put(";");
        }
        put(name);
    }
}

/// A moment as signatures spell it: `YYYYMMDD'T'HHMMSS'Z'`, in UTC.
pub(super) struct Stamp {
    unix_s: u64,
    text: [u8; Self::LEN],
}

impl Stamp {
    const LEN: usize = 16;

    /// Spells a time that is in the years 1970 to 9999, in Unix seconds; another is cut to them.
    pub(super) fn new(unix_s: i64) -> Self {
        let unix_s = unix_s.clamp(0, crate::session::UNIX_SECONDS_MAX);
        let time = time::OffsetDateTime::from_unix_timestamp(unix_s)
            .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
        let mut text = *b"00000000T000000Z";
        let year = time.year().unsigned_abs();
        let fields = [
            (0, year / 100),
            (2, year % 100),
            (4, u32::from(u8::from(time.month()))),
            (6, time.day().into()),
            (9, time.hour().into()),
            (11, time.minute().into()),
            (13, time.second().into()),
        ];
        for (start, number) in fields {
            if let Some([tens, ones]) = text.get_mut(start..start + 2) {
                *tens = digit(number / 10);
                *ones = digit(number);
            }
        }
        Self {
            unix_s: unix_s.unsigned_abs(),
            text,
        }
    }

    /// `YYYYMMDD'T'HHMMSS'Z'`.
    pub(super) fn time(&self) -> &str {
        as_str(&self.text)
    }

    /// `YYYYMMDD`.
    fn day(&self) -> &str {
        self.time().get(..8).unwrap_or_default()
    }

    /// Days since 1970.
    fn day_number(&self) -> u64 {
        self.unix_s / 86_400
    }
}

fn digit(number: u32) -> u8 {
    // Below ten, so the cast is whole.
    b'0' + u8::try_from(number % 10).unwrap_or_default()
}

/// The signing key of one day, region and service.
pub(crate) struct SigningKey {
    secret: Secret<[u8; 32]>,
    day_number: u64,
    fingerprint: Fingerprint,
}

impl SigningKey {
    /// The key in `cached` if it is the right one, else a new one, left there.
    fn cached<'a>(cached: &'a mut Option<Self>, signer: &Signer, stamp: &Stamp) -> &'a Self {
        let fits = cached.as_ref().is_some_and(|key| {
            key.day_number == stamp.day_number() && key.fingerprint == signer.fingerprint
        });
        if !fits {
            *cached = None;
        }
        cached.get_or_insert_with(|| Self::derive(signer, stamp))
    }

    fn derive(signer: &Signer, stamp: &Stamp) -> Self {
        let time = UNIX_EPOCH + Duration::from_secs(stamp.unix_s);
        let key = generate_signing_key(
            signer.secret_access_key.expose(),
            time,
            &signer.region,
            signer.service,
        );
        #[expect(clippy::expect_used, reason = "HMAC-SHA256 gives 32 bytes")]
        let secret = key.as_ref().try_into().expect("32 bytes");
        Self {
            secret: Secret::new(secret),
            day_number: stamp.day_number(),
            fingerprint: signer.fingerprint,
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("day_number", &self.day_number)
            .finish_non_exhaustive()
    }
}

/// Tells which secret, region and service a signing key was derived from, without holding the secret.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Fingerprint([u8; 32]);

impl Fingerprint {
    fn of(parts: [&str; 3]) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"tsp-kms signing key 1");
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }
}

type Hex = [u8; 64];

fn hex(hash: [u8; 32]) -> Hex {
    let mut text = [b'0'; 64];
    // Cannot fail: 64 is twice 32.
    let _ = hex::encode_to_slice(hash, &mut text);
    text
}

fn as_str(ascii: &[u8]) -> &str {
    std::str::from_utf8(ascii).unwrap_or_default()
}

#[cfg(test)]
mod tests;
