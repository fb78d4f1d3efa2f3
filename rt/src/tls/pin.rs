//! A pin on the far end's public key, asked for after all that is asked without one.

use std::fmt;
use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// The SHA-256 hash of a certificate's `SubjectPublicKeyInfo` (RFC 7469, section 2.4). Displays as `sha256/` and base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpkiPin(pub [u8; 32]);

impl fmt::Display for SpkiPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256/{}", BASE64.encode(self.0))
    }
}

impl SpkiPin {
    fn of(certificate: &CertificateDer<'_>) -> Result<Self, rustls::Error> {
        let key = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
        Ok(Self(Sha256::digest(&key).into()))
    }
}

/// A certificate that is good but for its key. Travels through rustls as an error of another kind.
#[derive(Debug)]
pub(crate) struct OtherKey(pub(crate) SpkiPin);

impl fmt::Display for OtherKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its public key is another: {}", self.0)
    }
}

impl std::error::Error for OtherKey {}

impl OtherKey {
    /// The error that this one travels as.
    fn into_rustls(self) -> rustls::Error {
        CertificateError::Other(OtherError(Arc::new(self))).into()
    }

    /// The key that was met, if `error` is one of these.
    pub(crate) fn in_rustls(error: &rustls::Error) -> Option<SpkiPin> {
        let rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) = error
        else {
            return None;
        };
        inner.downcast_ref::<Self>().map(|other| other.0)
    }
}

/// Asks what `usual` asks, and then for the key. A resumed session asks neither again: it was opened by both.
#[derive(Debug)]
pub(super) struct PinnedVerifier {
    pub(super) usual: Arc<WebPkiServerVerifier>,
    pub(super) pin: SpkiPin,
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.usual.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )?;
        let met = SpkiPin::of(end_entity)?;
        if bool::from(met.0.ct_eq(&self.pin.0)) {
            Ok(verified)
        } else {
            Err(OtherKey(met).into_rustls())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        self.usual.root_hint_subjects()
    }
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::pem::PemObject as _;

    use super::*;

    #[test]
    fn a_pin_is_what_openssl_makes_of_a_certificate() {
        // openssl x509 -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64
        const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----
MIIBeTCCASGgAwIBAgIUKLFcoY3dcVVjp89N/KT4U40rHDkwCgYIKoZIzj0EAwIw
EzERMA8GA1UEAwwIcGluLnRlc3QwHhcNMjYxMTI4MDMxNDQxWhcNMzYxMTI1MDMx
NDQxWjATMREwDwYDVQQDDAhwaW4udGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEH
A0IABEg/j2VixDtdb2Kdfj0iiTDo20OmwOvtGfiOgRwbf4ORH2nLCBcajM5ICSZh
7mw0apDS+tyNKofmiQN9jjQ/8/ejUzBRMB0GA1UdDgQWBBTXWXoOEz0tu4OcrBhH
e3NK1gOCizAfBgNVHSMEGDAWgBTXWXoOEz0tu4OcrBhHe3NK1gOCizAPBgNVHRMB
Af8EBTADAQH/MAoGCCqGSM49BAMCA0YAMEMCH2V+0pN4hBcorEhblcctMBxaSPl0
aDRSsJrKev5dNLgCIFw4rnwvLJPXsXwNA7oYOiuRlCvp12KP6TChpS7ppvBE
-----END CERTIFICATE-----
";
        let certificate = CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap();
        let pin = SpkiPin::of(&certificate).unwrap();
        assert_eq!(
            pin.to_string(),
            "sha256/HdRTA/wb2UCf10K7CcFNxTzmEhpEgRPGSVtyhH0BIwA="
        );
        assert!(SpkiPin::of(&CertificateDer::from(vec![0x30, 0])).is_err());
    }
}
