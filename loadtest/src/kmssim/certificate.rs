//! The simulator's own authority, and the certificate that makes it every host that the clouds' clients call.

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _,
};

/// AWS regions, from the endpoint rules of the SDKs. One wildcard per region stands for kms., kms-fips. and sts.
const AWS_REGIONS: [&str; 34] = [
    "af-south-1",
    "ap-east-1",
    "ap-northeast-1",
    "ap-northeast-2",
    "ap-northeast-3",
    "ap-south-1",
    "ap-south-2",
    "ap-southeast-1",
    "ap-southeast-2",
    "ap-southeast-3",
    "ap-southeast-4",
    "ap-southeast-5",
    "ap-southeast-7",
    "ca-central-1",
    "ca-west-1",
    "eu-central-1",
    "eu-central-2",
    "eu-north-1",
    "eu-south-1",
    "eu-south-2",
    "eu-west-1",
    "eu-west-2",
    "eu-west-3",
    "il-central-1",
    "me-central-1",
    "me-south-1",
    "mx-central-1",
    "sa-east-1",
    "us-east-1",
    "us-east-2",
    "us-gov-east-1",
    "us-gov-west-1",
    "us-west-1",
    "us-west-2",
];

/// Everybody else, and AWS outside its commercial partition.
const NAMES: [&str; 22] = [
    "localhost",
    "127.0.0.1",
    "::1",
    "*.amazonaws.com",
    "*.cn-north-1.amazonaws.com.cn",
    "*.cn-northwest-1.amazonaws.com.cn",
    "*.eusc-de-east-1.amazonaws.eu",
    "*.googleapis.com",
    "cloudkms.mtls.googleapis.com",
    "*.vault.azure.net",
    "*.managedhsm.azure.net",
    "login.microsoftonline.com",
    "*.vault.usgovcloudapi.net",
    "*.managedhsm.usgovcloudapi.net",
    "login.microsoftonline.us",
    "*.vault.azure.cn",
    "*.managedhsm.azure.cn",
    "login.chinacloudapi.cn",
    "login.partner.microsoftonline.cn",
    "login.microsoft.com",
    "ciphertrust",
    "*.ciphertrust.example",
];

/// What a client finds out about the simulator's certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CertificateKind {
    /// It is good.
    #[default]
    Good,
    /// It is for other hosts than the client calls.
    OtherNames,
    /// It has run out.
    Expired,
}

/// The name in a certificate for other hosts.
const OTHER_NAME: &str = "elsewhere.example";

/// An authority that signs the simulator's certificate, in PEM. Only one that this program made can be given again: its
/// certificate is not read, only its key is.
#[derive(Clone, Debug)]
pub struct Authority {
    /// Its certificate: what clients must trust.
    pub certificate_pem: String,
    /// Its private key.
    pub key_pem: String,
}

/// What the server shows, and how it proves that it is its own.
pub(crate) struct Issued {
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
    /// See [`Kmssim::spki_pin`](super::Kmssim::spki_pin).
    pub(crate) spki_pin: String,
}

impl Authority {
    /// Makes one.
    ///
    /// # Errors
    /// If the machine has no randomness.
    pub fn generate() -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate()?;
        Ok(Self {
            certificate_pem: Self::params().self_signed(&key)?.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    fn params() -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "kmssim TEST ONLY authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
    }

    /// A certificate for all the names (unless `kind` says otherwise), and its key.
    pub(crate) fn issue(
        &self,
        more_names: &[String],
        kind: CertificateKind,
    ) -> Result<Issued, rcgen::Error> {
        let issuer = Issuer::new(Self::params(), KeyPair::from_pem(&self.key_pem)?);
        let regional = AWS_REGIONS.iter().flat_map(|region| {
            [
                format!("*.{region}.amazonaws.com"),
                format!("*.{region}.api.aws"),
            ]
        });
        let names: Vec<_> = NAMES
            .iter()
            .map(|name| (*name).to_owned())
            .chain(regional)
            .chain(more_names.iter().cloned())
            .collect();
        let names = match kind {
            CertificateKind::Good | CertificateKind::Expired => names,
            CertificateKind::OtherNames => vec![OTHER_NAME.to_owned()],
        };
        let mut params = CertificateParams::new(names)?;
        if kind == CertificateKind::Expired {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "kmssim TEST ONLY");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?;
        let hash = digest(&SHA256, &key.subject_public_key_info());
        Ok(Issued {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            spki_pin: format!("sha256/{}", BASE64.encode(hash)),
        })
    }
}
