//! The crypto keys of Cloud KMS.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::Method;
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::{Map, Value, json};

use super::{Account, Error, Gcp, Status, project_of};
use crate::kmssim::{
    crypto::{Gcm, NONCE_BYTES, Random, Seed, TAG_BYTES},
    exchange::{
        Denied, Failure, Operation, Refusal, Reply, Request, Verdict, json_object, percent_decoded,
    },
    sim::Context,
    world::{GcpKeyDoc, GcpProjectState, GcpVersionState, WorldError},
};

/// Bytes of plaintext and of additional data, each; for an HSM key together (Cloud KMS, quotas and limits).
const SOFTWARE_BYTES_MAX: usize = 64 * 1024;
const HSM_BYTES_MAX: usize = 8 * 1024;
/// Versions of one key.
const VERSIONS_MAX: usize = 10_000;

/// A crypto key and what its secrets are derived from.
#[derive(Debug)]
pub(in crate::kmssim) struct Key {
    pub(in crate::kmssim) doc: GcpKeyDoc,
    pub(in crate::kmssim) denied: Denied,
    seed: Seed,
    /// What ciphertexts name it by.
    handle: [u8; HANDLE_BYTES],
}

const HANDLE_BYTES: usize = 16;

/// What a ciphertext begins with; real ones do too.
const MAGIC: [u8; 3] = [0x0a, 0x24, 0x00];
const HEAD_BYTES: usize = MAGIC.len() + HANDLE_BYTES + 4;

/// A ciphertext, taken apart.
struct Sealed<'a> {
    handle: &'a [u8; HANDLE_BYTES],
    version: u32,
    head: &'a [u8],
    nonce: [u8; NONCE_BYTES],
    text: &'a [u8],
}

impl<'a> Sealed<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(HEAD_BYTES)?;
        let (handle, version) = head.strip_prefix(&MAGIC)?.split_first_chunk()?;
        let (nonce, text) = rest.split_first_chunk()?;
        Some(Self {
            handle,
            version: u32::from_be_bytes(version.try_into().ok()?),
            head,
            nonce: *nonce,
            text,
        })
    }
}

impl Key {
    pub(super) fn new(doc: &GcpKeyDoc, seed: &Seed) -> Result<Self, WorldError> {
        let parts: Vec<_> = doc.name.split('/').collect();
        let is_name = matches!(
            parts.as_slice(),
            [
                "projects",
                _,
                "locations",
                _,
                "keyRings",
                _,
                "cryptoKeys",
                _
            ]
        );
        if !is_name || parts.iter().any(|part| part.is_empty()) {
            return Err(WorldError::new(format!(
                "gcp: {:?} is no name of a crypto key",
                doc.name
            )));
        }
        if doc.versions.len() > VERSIONS_MAX {
            return Err(WorldError::new(format!(
                "gcp: {} has too many versions",
                doc.name
            )));
        }
        let handle = seed.derive(&[b"gcp-handle", doc.name.as_bytes()]);
        Ok(Self {
            doc: doc.clone(),
            denied: Denied::default(),
            seed: seed.clone(),
            handle: std::array::from_fn(|index| handle.get(index).copied().unwrap_or_default()),
        })
    }

    /// From now on it encrypts with a new version.
    pub(in crate::kmssim) fn rotate(&mut self) {
        if self.doc.versions.len() < VERSIONS_MAX {
            self.doc.versions.push(GcpVersionState::Enabled);
            self.doc.primary = u32::try_from(self.doc.versions.len()).unwrap_or(u32::MAX);
        }
    }

    /// Sets the state of all versions, or of one.
    pub(in crate::kmssim) fn set_state(&mut self, version: Option<u32>, state: GcpVersionState) {
        for (number, known) in (1..).zip(&mut self.doc.versions) {
            if version.is_none_or(|version| version == number) {
                *known = state;
            }
        }
    }

    fn state(&self, version: u32) -> Option<GcpVersionState> {
        let index = usize::try_from(version).ok()?.checked_sub(1)?;
        self.doc.versions.get(index).copied()
    }

    fn version_name(&self, version: u32) -> String {
        format!("{}/cryptoKeyVersions/{version}", self.doc.name)
    }

    /// The version can be used.
    fn check_version(&self, version: u32) -> Result<(), Error> {
        let name = self.version_name(version);
        match self.state(version) {
            Some(GcpVersionState::Enabled) => Ok(()),
            Some(state) => {
                let message = format!(
                    "{name} is not enabled, current state is: {}.",
                    state.as_str()
                );
                let violation = json!({
                    "@type": "type.googleapis.com/google.rpc.PreconditionFailure",
                    "violations": [{ "type": format!("KEY_{}", state.as_str()), "subject": name }],
                });
                let error = Error::failed(Failure::KeyState, Status::FailedPrecondition, message);
                Err(error.with_detail(violation))
            }
            None => {
                let message = format!("CryptoKeyVersion {name} not found.");
                Err(Error::failed(Failure::NotFound, Status::NotFound, message))
            }
        }
    }

    fn gcm(&self, version: u32) -> Gcm {
        let name = self.doc.name.as_bytes();
        Gcm::new(
            &self
                .seed
                .derive(&[b"gcp-key", name, &version.to_be_bytes()]),
        )
    }

    fn seal(&self, version: u32, aad: &[u8], plaintext: &[u8], random: &mut Random) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&self.handle);
        bytes.extend_from_slice(&version.to_be_bytes());
        let nonce: [u8; NONCE_BYTES] = random.bytes();
        let (text, tag) = self
            .gcm(version)
            .seal(nonce, &[&bytes, aad].concat(), plaintext);
        bytes.extend_from_slice(&nonce);
        bytes.extend_from_slice(&text);
        bytes.extend_from_slice(&tag);
        bytes
    }

    fn open(&self, sealed: &Sealed<'_>, aad: &[u8]) -> Option<Vec<u8>> {
        let (text, tag) = sealed
            .text
            .split_at_checked(sealed.text.len().checked_sub(TAG_BYTES)?)?;
        let aad = [sealed.head, aad].concat();
        self.gcm(sealed.version).open(sealed.nonce, &aad, text, tag)
    }

    /// As a name, or as the number that `enum-encoding=int` asks for.
    fn protection(&self, as_number: bool) -> Value {
        let number = match self.doc.protection.as_str() {
            "SOFTWARE" => 1,
            "HSM" => 2,
            "EXTERNAL" => 3,
            "EXTERNAL_VPC" => 4,
            _ => 0,
        };
        if as_number {
            number.into()
        } else {
            self.doc.protection.as_str().into()
        }
    }
}

/// What a path below `/v1/` names.
struct Target {
    key: String,
    version: Option<u32>,
    method: Option<Operation>,
}

impl Target {
    /// `None` if the path is none of the API's: its front end answers with a page then.
    fn parse(path: &str) -> Option<Self> {
        let path = path.strip_prefix("/v1/")?;
        let (name, method) = match path.rsplit_once(':') {
            Some((name, "encrypt")) => (name, Some(Operation::Wrap)),
            Some((name, "decrypt")) => (name, Some(Operation::Unwrap)),
            Some(_) => return None,
            None => (path, None),
        };
        let parts: Option<Vec<_>> = name.split('/').map(percent_decoded).collect();
        let parts = parts?;
        let (key, version) = match parts.split_at_checked(8)? {
            (key, []) => (key, None),
            (key, [versions, number]) if versions == "cryptoKeyVersions" => {
                (key, Some(number.parse().ok()?))
            }
            _ => return None,
        };
        let key = key.join("/");
        let is_key = key.starts_with("projects/") && key.contains("/cryptoKeys/");
        is_key.then_some(Self {
            key,
            version,
            method,
        })
    }
}

/// The request to encrypt or decrypt; unknown members are refused, as Google's parser does.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Crypto {
    plaintext: Bytes,
    ciphertext: Bytes,
    additional_authenticated_data: Bytes,
    plaintext_crc32c: Option<Crc>,
    ciphertext_crc32c: Option<Crc>,
    additional_authenticated_data_crc32c: Option<Crc>,
    /// Google's own client leaves it in the body or not, as its version goes; the path decides.
    #[serde(rename = "name")]
    _name: Option<String>,
}

/// Bytes in base64 of either alphabet, with padding or without (proto3 JSON).
#[derive(Default)]
struct Bytes(Vec<u8>);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let standard: String = text
            .trim_end_matches('=')
            .chars()
            .map(|c| match c {
                '-' => '+',
                '_' => '/',
                other => other,
            })
            .collect();
        let decoded = base64::engine::general_purpose::STANDARD_NO_PAD.decode(standard);
        decoded.map(Self).map_err(D::Error::custom)
    }
}

/// An int64 in proto3 JSON: a decimal string, or a number.
struct Crc(i64);

impl<'de> Deserialize<'de> for Crc {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => text.parse().map(Self).map_err(D::Error::custom),
            Value::Number(number) => number
                .as_i64()
                .map(Self)
                .ok_or_else(|| D::Error::custom("no int64")),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
                Err(D::Error::custom("neither string nor number"))
            }
        }
    }
}

fn crc(bytes: &[u8]) -> i64 {
    i64::from(crc32c::crc32c(bytes))
}

/// Checks a checksum that the client may have sent; tells whether it did.
fn check_crc(sent: Option<Crc>, bytes: &[u8], field: &str) -> Result<bool, Error> {
    match sent {
        None => Ok(false),
        Some(Crc(sent)) if sent == crc(bytes) => Ok(true),
        Some(_) => Err(invalid(
            Refusal::Parameter,
            format!(
                "The checksum in field {field}_crc32c did not match the data in field {field}."
            ),
        )),
    }
}

fn invalid(why: Refusal, message: impl Into<String>) -> Error {
    Error::refused(why, Status::InvalidArgument, message)
}

impl Gcp {
    pub(super) fn answer_kms(
        &self,
        request: &Request,
        cx: &mut Context<'_>,
    ) -> Result<Reply, Box<Reply>> {
        let target = Target::parse(request.path());
        let is_known = target.as_ref().is_some_and(|target| match target.method {
            Some(_) => *request.method() == Method::POST,
            None => *request.method() == Method::GET,
        });
        let Some(target) = target.filter(|_| is_known) else {
            return Err(Box::new(page_not_found()));
        };
        cx.subject.operation = Some(target.method.unwrap_or(Operation::Lookup));
        cx.subject.keys.push(target.key.clone());
        let answer = self
            .operate(request, &target, cx)
            .map_err(|error| Box::new(error.reply()))?;
        let body = answer.to_string();
        Ok(Reply::new(
            Verdict::Answered,
            200,
            "application/json; charset=UTF-8",
            body,
        ))
    }

    fn operate(
        &self,
        request: &Request,
        target: &Target,
        cx: &mut Context<'_>,
    ) -> Result<Value, Error> {
        let account = self.caller(request, cx)?;
        let as_number = check_query(request)?;
        self.check_project(project_of(&target.key))?;
        self.check_project(project_of_account(account))?;
        let key = self.key(&target.key, account, target.method)?;
        let Some(method) = target.method else {
            return Ok(describe(key, as_number));
        };
        if request.media_type() != "application/json" {
            return Err(invalid(
                Refusal::Protocol,
                "The content type is not application/json.",
            ));
        }
        let crypto: Crypto = json_object(&request.body).map_err(|error| {
            invalid(
                Refusal::Protocol,
                format!("Invalid JSON payload received. {error}"),
            )
        })?;
        if key.doc.purpose != "ENCRYPT_DECRYPT" {
            let message = format!(
                "{} has purpose {}, not ENCRYPT_DECRYPT.",
                key.doc.name, key.doc.purpose
            );
            return Err(Error::failed(
                Failure::KeyState,
                Status::FailedPrecondition,
                message,
            ));
        }
        if method == Operation::Wrap {
            encrypt(key, target.version, crypto, as_number, cx)
        } else {
            decrypt(key, target.version, crypto, as_number)
        }
    }

    fn check_project(&self, id: &str) -> Result<(), Error> {
        let (reason, message) = match self.projects.get(id).copied().unwrap_or_default() {
            GcpProjectState::Active => return Ok(()),
            GcpProjectState::BillingDisabled => (
                "BILLING_DISABLED",
                format!(
                    "This API method requires billing to be enabled. Please enable billing on project #{id}."
                ),
            ),
            GcpProjectState::Suspended => (
                "CONSUMER_SUSPENDED",
                format!("Permission denied: Consumer 'projects/{id}' has been suspended."),
            ),
            GcpProjectState::ServiceDisabled => (
                "SERVICE_DISABLED",
                format!(
                    "Cloud Key Management Service (KMS) API has not been used in project {id} before or it is disabled."
                ),
            ),
        };
        Err(Error::failed(Failure::Account, Status::PermissionDenied, message).because(reason))
    }

    fn key(&self, name: &str, account: &Account, method: Option<Operation>) -> Result<&Key, Error> {
        let operation = method.unwrap_or(Operation::Lookup);
        let permission = match method {
            Some(Operation::Wrap) => "cloudkms.cryptoKeyVersions.useToEncrypt",
            Some(_) => "cloudkms.cryptoKeyVersions.useToDecrypt",
            None => "cloudkms.cryptoKeys.get",
        };
        let email = &account.doc.email;
        match self.keys.get(name) {
            Some(key) if key.doc.allows.contains(email) && !key.denied.denies(operation) => Ok(key),
            None if self.knows_project(email, project_of(name)) => {
                let message = format!("CryptoKey {name} not found.");
                Err(Error::failed(Failure::NotFound, Status::NotFound, message))
            }
            // By design the same for both.
            Some(_) | None => {
                let message = format!(
                    "Permission '{permission}' denied on resource '{name}' (or it may not exist)."
                );
                let error = Error::failed(Failure::Permission, Status::PermissionDenied, message);
                Err(error.because("IAM_PERMISSION_DENIED"))
            }
        }
    }

    /// Whether the account may use anything in the project, and so learn what is not there.
    fn knows_project(&self, email: &String, project: &str) -> bool {
        self.keys
            .values()
            .any(|key| project_of(&key.doc.name) == project && key.doc.allows.contains(email))
    }
}

fn project_of_account(account: &Account) -> &str {
    let domain = account.doc.email.split('@').nth(1).unwrap_or_default();
    domain.split('.').next().unwrap_or_default()
}

/// Query parameters of Google's own REST client are taken; others it does not send. Tells whether enums are numbers.
fn check_query(request: &Request) -> Result<bool, Error> {
    let mut as_number = false;
    for (name, value) in form_urlencoded::parse(request.query().as_bytes()) {
        match (name.as_ref(), value.as_ref()) {
            ("$alt" | "alt", "json") | ("prettyPrint", _) => {}
            ("$alt" | "alt", "json;enum-encoding=int") => as_number = true,
            (name, _) => {
                let message = format!("Invalid query parameter {name:?}.");
                return Err(invalid(Refusal::Protocol, message));
            }
        }
    }
    Ok(as_number)
}

fn check_size(key: &Key, text: &[u8], aad: &[u8]) -> Result<(), Error> {
    let fits = if key.doc.protection == "HSM" {
        text.len() + aad.len() <= HSM_BYTES_MAX
    } else {
        text.len() <= SOFTWARE_BYTES_MAX && aad.len() <= SOFTWARE_BYTES_MAX
    };
    if fits {
        return Ok(());
    }
    Err(invalid(
        Refusal::Parameter,
        "The plaintext or the additional authenticated data is too large.",
    ))
}

fn encrypt(
    key: &Key,
    version: Option<u32>,
    crypto: Crypto,
    as_number: bool,
    cx: &mut Context<'_>,
) -> Result<Value, Error> {
    let (plaintext, aad) = (crypto.plaintext.0, crypto.additional_authenticated_data.0);
    let text_verified = check_crc(crypto.plaintext_crc32c, &plaintext, "plaintext")?;
    let field = "additional_authenticated_data";
    let aad_verified = check_crc(crypto.additional_authenticated_data_crc32c, &aad, field)?;
    check_size(key, &plaintext, &aad)?;
    let version = version.unwrap_or(key.doc.primary);
    if version == 0 {
        let message = format!("{} has no primary version.", key.doc.name);
        return Err(Error::failed(
            Failure::KeyState,
            Status::FailedPrecondition,
            message,
        ));
    }
    key.check_version(version)?;
    let sealed = key.seal(version, &aad, &plaintext, cx.random);
    let mut answer = Map::new();
    answer.insert("name".to_owned(), key.version_name(version).into());
    answer.insert("ciphertext".to_owned(), BASE64.encode(&sealed).into());
    answer.insert(
        "ciphertextCrc32c".to_owned(),
        crc(&sealed).to_string().into(),
    );
    // False members are left out of proto3 JSON.
    if text_verified {
        answer.insert("verifiedPlaintextCrc32c".to_owned(), true.into());
    }
    if aad_verified {
        answer.insert(
            "verifiedAdditionalAuthenticatedDataCrc32c".to_owned(),
            true.into(),
        );
    }
    answer.insert("protectionLevel".to_owned(), key.protection(as_number));
    Ok(answer.into())
}

fn decrypt(
    key: &Key,
    version: Option<u32>,
    crypto: Crypto,
    as_number: bool,
) -> Result<Value, Error> {
    if version.is_some() {
        return Err(invalid(
            Refusal::Protocol,
            "Decrypt takes a CryptoKey, not a version.",
        ));
    }
    let (ciphertext, aad) = (crypto.ciphertext.0, crypto.additional_authenticated_data.0);
    check_crc(crypto.ciphertext_crc32c, &ciphertext, "ciphertext")?;
    let field = "additional_authenticated_data";
    check_crc(crypto.additional_authenticated_data_crc32c, &aad, field)?;
    let does_not_decrypt =
        |message: &str| Error::failed(Failure::Ciphertext, Status::InvalidArgument, message);
    let sealed = Sealed::parse(&ciphertext)
        .ok_or_else(|| does_not_decrypt("Decryption failed: the ciphertext is invalid."))?;
    let verify_name = "Decryption failed: verify that 'name' refers to the correct CryptoKey.";
    if *sealed.handle != key.handle || key.state(sealed.version).is_none() {
        return Err(does_not_decrypt(verify_name));
    }
    key.check_version(sealed.version)?;
    let plaintext = key
        .open(&sealed, &aad)
        .ok_or_else(|| does_not_decrypt("Decryption failed: the ciphertext is invalid."))?;
    let mut answer = Map::new();
    // Empty and false members are left out of proto3 JSON.
    if !plaintext.is_empty() {
        answer.insert("plaintext".to_owned(), BASE64.encode(&plaintext).into());
    }
    answer.insert(
        "plaintextCrc32c".to_owned(),
        crc(&plaintext).to_string().into(),
    );
    if sealed.version == key.doc.primary {
        answer.insert("usedPrimary".to_owned(), true.into());
    }
    answer.insert("protectionLevel".to_owned(), key.protection(as_number));
    Ok(answer.into())
}

fn describe(key: &Key, as_number: bool) -> Value {
    let number = |name: &str, number: i32| {
        if as_number {
            number.into()
        } else {
            Value::from(name)
        }
    };
    let mut answer = json!({
        "name": key.doc.name,
        "purpose": number(&key.doc.purpose, if key.doc.purpose == "ENCRYPT_DECRYPT" { 1 } else { 5 }),
        "versionTemplate": {
            "protectionLevel": key.protection(as_number),
            "algorithm": number("GOOGLE_SYMMETRIC_ENCRYPTION", 1),
        },
    });
    if let (Some(members), Some(state)) = (answer.as_object_mut(), key.state(key.doc.primary)) {
        let state_number = match state {
            GcpVersionState::PendingGeneration => 5,
            GcpVersionState::Enabled => 1,
            GcpVersionState::Disabled => 2,
            GcpVersionState::Destroyed => 3,
            GcpVersionState::DestroyScheduled => 4,
        };
        let primary = json!({
            "name": key.version_name(key.doc.primary),
            "state": number(state.as_str(), state_number),
            "protectionLevel": key.protection(as_number),
            "algorithm": number("GOOGLE_SYMMETRIC_ENCRYPTION", 1),
        });
        members.insert("primary".to_owned(), primary);
    }
    answer
}

/// What Google's front end says to a path that it does not know.
fn page_not_found() -> Reply {
    let body = "<!DOCTYPE html>\n<html lang=en>\n<title>Error 404 (Not Found)!!1</title>\n\
                <p>The requested URL was not found on this server. <ins>That is all we know.</ins>\n";
    Reply::new(
        Verdict::Refused(Refusal::Protocol),
        404,
        "text/html; charset=UTF-8",
        body,
    )
    .because("404", "not a path of the API")
}
