//! RSA keys that prove who we are: out of PEM, and into JSON Web Tokens (RFC 7519).

use aws_lc_rs::signature::{KeyPair as _, RsaKeyPair};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use jsonwebtoken::{EncodingKey, Header};
use serde::Serialize;
use tsp_wire::Secret;
use zeroize::Zeroizing;

/// Longest PEM text that is looked at, in bytes: a key of 8192 bits has about 6 KiB, and certificates may go before it.
const PEM_BYTES_MAX: usize = 64 * 1024;

/// An RSA private key of 2048 to 8192 bits.
#[derive(Debug)]
pub(crate) struct RsaKey(EncodingKey);

impl RsaKey {
    /// What a configuration must hold for [`RsaKey::from_pem`].
    pub(crate) const EXPECTED: &str = "an RSA private key of at least 2048 bits in PEM, without a password \
         (`BEGIN PRIVATE KEY` or `BEGIN RSA PRIVATE KEY`)";

    /// The first private key in a PEM text. Line ends may be escaped, as they are in JSON, and anything may stand around
    /// the sections (RFC 7468, section 2).
    ///
    /// `None` unless it is sound: all that can be said of it without asking anybody is checked here.
    pub(crate) fn from_pem(pem: &str) -> Option<Self> {
        let key = match pem_section(pem, "PRIVATE KEY") {
            Some(der) => EncodingKey::from_rsa_der(pkcs1_of(&der)?),
            None => EncodingKey::from_rsa_der(&pem_section(pem, "RSA PRIVATE KEY")?),
        };
        let key = Self(key);
        key.public_key().map(|_| key)
    }

    /// The public half, as DER of an `RSAPublicKey` (RFC 8017, appendix A.1.1).
    pub(crate) fn public_key(&self) -> Option<Vec<u8>> {
        let pair = RsaKeyPair::from_der(self.0.as_bytes()).ok()?;
        Some(pair.public_key().as_ref().to_vec())
    }

    /// A JSON Web Token. Takes about a millisecond: not to be done on a shard.
    ///
    /// `None` if the key cannot sign, which [`RsaKey::from_pem`] has ruled out.
    pub(crate) fn sign(&self, header: &Header, claims: &impl Serialize) -> Option<Secret<String>> {
        jsonwebtoken::encode(header, claims, &self.0)
            .ok()
            .map(Secret::new)
    }
}

/// The first section of `pem` with this label, decoded.
pub(crate) fn pem_section(pem: &str, label: &str) -> Option<Zeroizing<Vec<u8>>> {
    if pem.len() > PEM_BYTES_MAX {
        return None;
    }
    let (_, rest) = pem.split_once(&format!("-----BEGIN {label}-----"))?;
    let (body, _) = rest.split_once(&format!("-----END {label}-----"))?;
    let mut text = Zeroizing::new(String::with_capacity(body.len()));
    let mut chars = body.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' if matches!(chars.next(), Some('n' | 'r')) => {}
            '\\' => return None,
            white if white.is_ascii_whitespace() => {}
            digit => text.push(digit),
        }
    }
    let mut der = Zeroizing::new(Vec::with_capacity(base64::decoded_len_estimate(text.len())));
    BASE64.decode_vec(&*text, &mut der).ok()?;
    Some(der)
}

/// The `RSAPrivateKey` inside a `PrivateKeyInfo` (RFC 5208, section 5); `None` if a key of another kind is in it.
fn pkcs1_of(pkcs8: &[u8]) -> Option<&[u8]> {
    const SEQUENCE: u8 = 0x30;
    const INTEGER: u8 = 0x02;
    const OCTET_STRING: u8 = 0x04;
    /// `rsaEncryption`, 1.2.840.113549.1.1.1.
    const RSA: [u8; 11] = [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];

    let (info, _) = der_value(pkcs8, SEQUENCE)?;
    let (_version, rest) = der_value(info, INTEGER)?;
    let (algorithm, rest) = der_value(rest, SEQUENCE)?;
    let (key, _attributes) = der_value(rest, OCTET_STRING)?;
    algorithm.starts_with(&RSA).then_some(key)
}

/// Takes one value with this tag off the front of `der`: its content, and what follows it.
fn der_value(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = der.split_first_chunk()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => {
            let (&[length], rest) = rest.split_first_chunk()?;
            (usize::from(length), rest)
        }
        0x82 => {
            let (&length, rest) = rest.split_first_chunk()?;
            (usize::from(u16::from_be_bytes(length)), rest)
        }
        _ => return None,
    };
    (found == tag).then_some(())?;
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PEM: &str = include_str!("../tests/data/azure-TEST-ONLY-client-key.pem");

    /// The same key as PKCS #1.
    fn pkcs1_pem() -> String {
        let pkcs8 = pem_section(PEM, "PRIVATE KEY").unwrap();
        let der = BASE64.encode(pkcs1_of(&pkcs8).unwrap());
        format!("-----BEGIN RSA PRIVATE KEY-----\n{der}\n-----END RSA PRIVATE KEY-----\n")
    }

    #[test]
    fn a_key_is_found_however_its_lines_end_and_whatever_stands_around_it() {
        assert!(PEM.starts_with("# TEST ONLY"));
        let public = RsaKey::from_pem(PEM).unwrap().public_key();
        for pem in [
            PEM.replace('\n', "\r\n"),
            PEM.replace('\n', "\\n"),
            PEM.replace('\n', "\\r\\n"),
            PEM.replace('\n', "\n  "),
            format!("Bag Attributes\n{PEM}{PEM}"),
            pkcs1_pem(),
        ] {
            assert_eq!(
                RsaKey::from_pem(&pem).unwrap().public_key(),
                public,
                "{pem}"
            );
        }
    }

    #[test]
    fn what_is_no_sound_rsa_key_is_refused() {
        let cut = PEM.replacen("MIIEvAIBADAN", "MIIEvAIBADAO", 1);
        let wrong = [
            String::new(),
            PEM.replace("-----END", "-----"),
            PEM.replace("PRIVATE KEY", "PUBLIC KEY"),
            PEM.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"),
            PEM.replace("PRIVATE KEY", "EC PRIVATE KEY"),
            PEM.replace("PRIVATE KEY", "RSA PRIVATE KEY"),
            PEM.replacen("-----\nMII", "-----\nProc-Type: 4,ENCRYPTED\nMII", 1),
            PEM.replace('\n', "\\t"),
            " ".repeat(PEM_BYTES_MAX) + PEM,
            cut,
        ];
        for pem in wrong {
            assert!(RsaKey::from_pem(&pem).is_none(), "{pem}");
        }
    }

    #[test]
    fn a_key_signs_as_it_does_in_other_peoples_code() {
        // RS256 is the same every time, so signatures can be compared.
        let data = include_str!("../tests/data/azure-client-assertion.json");
        let data: serde_json::Value = serde_json::from_str(data).unwrap();
        let key = RsaKey::from_pem(PEM).unwrap();
        let cases = data["cases"].as_array().unwrap().iter();
        let mut count = 0;
        for case in cases.filter(|case| case["header"]["alg"] == "RS256") {
            let message = case["signing_input"].as_str().unwrap().as_bytes();
            let signature =
                jsonwebtoken::crypto::sign(message, &key.0, jsonwebtoken::Algorithm::RS256)
                    .unwrap();
            assert_eq!(signature, case["signature_b64url"].as_str().unwrap());
            count += 1;
        }
        assert_eq!(count, 2);
    }

    #[test]
    fn a_key_does_not_print_itself() {
        let text = format!("{:?}", RsaKey::from_pem(PEM).unwrap());
        assert!(text.contains("redacted") && text.len() < 100, "{text}");
    }

    proptest! {
        #[test]
        fn garbage_is_no_key_and_no_panic(der in prop::collection::vec(any::<u8>(), 0..64)) {
            let pem = format!("-----BEGIN PRIVATE KEY-----{}-----END PRIVATE KEY-----", BASE64.encode(&der));
            prop_assert!(RsaKey::from_pem(&pem).is_none());
            let _ = pkcs1_of(&der);
        }
    }
}
