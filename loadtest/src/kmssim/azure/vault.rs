//! The keys of vaults and managed HSMs.

use std::{collections::HashMap, rc::Rc};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD as BASE64URL},
};
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Azure, Error, Vault, entra};
use crate::kmssim::{
    crypto::{Padding, Rsa, Seed, key_unwrap, key_wrap},
    exchange::{
        Denied, Failure, Operation, Refusal, Reply, Request, Verdict, json_object, percent_decoded,
    },
    sim::Context,
    world::{
        AzureKeyDoc, AzureKeyKind, AzureKeyState, AzureVaultState, AzureVersionDoc,
        CredentialState, WorldError,
    },
};

/// Versions of the API that are served.
const API_VERSIONS: [&str; 10] = [
    "2016-10-01",
    "7.0",
    "7.1",
    "7.2",
    "7.3",
    "7.4",
    "7.5",
    "7.6",
    "2025-06-01-preview",
    "2025-07-01",
];
/// Versions of one key.
const VERSIONS_MAX: usize = 1000;

/// RSA keys that were read already: worlds repeat one many times, and reading one is dear.
#[derive(Debug, Default)]
pub(super) struct KeyPairs(HashMap<String, Rc<Rsa>>);

impl KeyPairs {
    fn read(&mut self, pem: &str) -> Option<Rc<Rsa>> {
        if let Some(known) = self.0.get(pem) {
            return Some(Rc::clone(known));
        }
        let made = Rc::new(Rsa::from_pem(pem)?);
        self.0.insert(pem.to_owned(), Rc::clone(&made));
        Some(made)
    }
}

/// A key with all its versions.
#[derive(Debug)]
pub(in crate::kmssim) struct Key {
    pub(in crate::kmssim) doc: AzureKeyDoc,
    /// Nobody may use it, whatever the vault's policy says.
    pub(in crate::kmssim) denied: Denied,
    /// One per version.
    secrets: Vec<Secret>,
    seed: Seed,
}

#[derive(Debug)]
enum Secret {
    Rsa(Rc<Rsa>),
    /// 16 or 32 bytes; keys of 24 are not simulated.
    Oct(Vec<u8>),
}

impl Key {
    pub(super) fn new(
        doc: &AzureKeyDoc,
        seed: &Seed,
        pairs: &mut KeyPairs,
    ) -> Result<Self, WorldError> {
        let wrong = |why: &str| WorldError::new(format!("azure: key {}: {why}", doc.name));
        if doc.versions.is_empty() || doc.versions.len() > VERSIONS_MAX {
            return Err(wrong("it has no version, or too many"));
        }
        let mut secrets = Vec::new();
        for version in &doc.versions {
            if version.id.len() != 32 || !version.id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(wrong("the id of a version is not 32 hex digits"));
            }
            secrets.push(match (doc.kind, &version.private_key_pem) {
                (AzureKeyKind::Rsa | AzureKeyKind::RsaHsm, Some(pem)) => Secret::Rsa(
                    pairs
                        .read(pem)
                        .ok_or_else(|| wrong("no RSA key in its PEM"))?,
                ),
                (AzureKeyKind::Rsa | AzureKeyKind::RsaHsm, None) => {
                    return Err(wrong("private_key_pem is missing"));
                }
                (AzureKeyKind::OctHsm, _) => match &version.material_hex {
                    Some(text) => {
                        let material = hex::decode(text).ok();
                        let material = material
                            .filter(|material| matches!(material.len(), 16 | 32))
                            .ok_or_else(|| wrong("material_hex is not 16 or 32 bytes"))?;
                        Secret::Oct(material)
                    }
                    None => Secret::Oct(oct_material(seed, doc, &version.id).to_vec()),
                },
            });
        }
        Ok(Self {
            doc: doc.clone(),
            denied: Denied::default(),
            secrets,
            seed: seed.clone(),
        })
    }

    /// From now on it wraps with a new version. A new RSA key takes a core for a tenth of a second.
    pub(in crate::kmssim) fn rotate(&mut self, id: String) -> bool {
        if self.doc.versions.len() >= VERSIONS_MAX {
            return false;
        }
        let secret = match self.doc.kind {
            AzureKeyKind::OctHsm => {
                let mut material = oct_material(&self.seed, &self.doc, &id).to_vec();
                // A new version has the size of the key.
                if let Some(Secret::Oct(last)) = self.secrets.last() {
                    material.truncate(last.len());
                }
                Some(Secret::Oct(material))
            }
            AzureKeyKind::Rsa | AzureKeyKind::RsaHsm => {
                Rsa::generate().map(Rc::new).map(Secret::Rsa)
            }
        };
        let Some(secret) = secret else { return false };
        self.secrets.push(secret);
        self.doc.versions.push(AzureVersionDoc {
            id,
            enabled: true,
            not_before_unix_s: None,
            expires_unix_s: None,
            private_key_pem: None,
            material_hex: None,
        });
        true
    }

    /// Enables or disables all versions, or one.
    pub(in crate::kmssim) fn set_enabled(&mut self, version: Option<&str>, enabled: bool) {
        for known in &mut self.doc.versions {
            if version.is_none_or(|id| known.id == id) {
                known.enabled = enabled;
            }
        }
    }

    /// When its versions end, in Unix seconds.
    pub(in crate::kmssim) fn set_expiry(&mut self, expires_unix_s: Option<u64>) {
        for known in &mut self.doc.versions {
            known.expires_unix_s = expires_unix_s;
        }
    }

    /// A version and its secret; an empty id means the current one.
    fn version(&self, id: &str) -> Option<(&AzureVersionDoc, &Secret)> {
        let mut pairs = self.doc.versions.iter().zip(&self.secrets);
        if id.is_empty() {
            pairs.next_back()
        } else {
            pairs.find(|(version, _)| version.id == id)
        }
    }
}

fn oct_material(seed: &Seed, doc: &AzureKeyDoc, version: &str) -> [u8; 32] {
    let names = [
        doc.vault.as_bytes(),
        doc.name.as_bytes(),
        version.as_bytes(),
    ];
    seed.derive(&[b"azure-key", names[0], names[1], names[2]])
}

/// A path below `/keys/`.
struct Target {
    name: String,
    version: String,
    /// In Key Vault's words.
    operation: Option<&'static str>,
}

impl Target {
    fn parse(path: &str) -> Option<Self> {
        let parts: Option<Vec<_>> = path
            .strip_prefix("/keys/")?
            .split('/')
            .map(percent_decoded)
            .collect();
        let parts = parts?;
        let mut parts = parts.into_iter();
        let name = parts.next().filter(|name| !name.is_empty())?;
        let version = parts.next().unwrap_or_default();
        let operation = match parts.next() {
            None => None,
            Some(word) => Some(match word.as_str() {
                "wrapkey" => "wrapKey",
                "unwrapkey" => "unwrapKey",
                "encrypt" => "encrypt",
                "decrypt" => "decrypt",
                _ => return None,
            }),
        };
        parts.next().is_none().then_some(Self {
            name,
            version,
            operation,
        })
    }
}

#[derive(Deserialize)]
struct Crypto {
    alg: String,
    value: String,
}

fn bad_parameter(message: impl Into<String>) -> Error {
    Error::refused(Refusal::Parameter, 400, "BadParameter", message)
}

fn forbidden(why: Failure, inner: &'static str, message: impl Into<String>) -> Error {
    Error::failed(why, 403, "Forbidden", message).inner(inner)
}

/// Base64url without padding, one spelling per value.
fn base64url(text: &str) -> Option<Vec<u8>> {
    BASE64URL.decode(text).ok()
}

impl Azure {
    pub(super) fn answer_vault(
        &self,
        request: &Request,
        cx: &mut Context<'_>,
    ) -> Result<Reply, Error> {
        let Some(target) = Target::parse(request.path()) else {
            let message = "The path is none of the keys API.";
            return Err(Error::refused(Refusal::Protocol, 404, "NotFound", message));
        };
        let wanted = match target.operation {
            Some(_) => Method::POST,
            None => Method::GET,
        };
        cx.subject.operation = Some(match target.operation {
            Some("wrapKey" | "encrypt") => Operation::Wrap,
            Some(_) => Operation::Unwrap,
            None => Operation::Lookup,
        });
        let vault = self.vault(request.host(), &target.name)?;
        cx.subject.keys.push(vault.doc.host.clone());
        cx.subject
            .keys
            .push(format!("https://{}/keys/{}", vault.doc.host, target.name));
        if *request.method() != wanted {
            let message = "The method is not allowed here.";
            return Err(Error::refused(
                Refusal::Protocol,
                405,
                "MethodNotAllowed",
                message,
            ));
        }
        let api_version = request.query_value("api-version");
        if !api_version
            .as_deref()
            .is_some_and(|given| API_VERSIONS.contains(&given))
        {
            let message = format!(
                "api-version must be specified and one of {}.",
                API_VERSIONS.join(", ")
            );
            return Err(bad_parameter(message));
        }
        let caller = self.authenticate(vault, request, cx)?;
        let found = self.key(vault, &target);
        let asked = cx.subject.operation.unwrap_or(Operation::Other);
        let denied = found.as_ref().is_ok_and(|key| key.denied.denies(asked));
        check_access(vault, &caller, target.operation, denied)?;
        let key = found?;
        let Some((version, secret)) = key.version(&target.version) else {
            return Err(not_found(&target));
        };
        let kid = format!(
            "https://{}/keys/{}/{}",
            vault.doc.host, key.doc.name, version.id
        );
        cx.subject.keys.push(kid.clone());
        let answer = match target.operation {
            None => describe(key, version, secret, &kid),
            Some(operation) => {
                if request.media_type() != "application/json" {
                    let message = "The content type must be application/json.";
                    return Err(Error::refused(
                        Refusal::Protocol,
                        415,
                        "UnsupportedMediaType",
                        message,
                    ));
                }
                check_version(key, version, operation, cx.now_s)?;
                let crypto: Crypto = json_object(&request.body).map_err(|error| {
                    bad_parameter(format!("The body is not as it must be: {error}"))
                })?;
                let value = base64url(&crypto.value).ok_or_else(|| {
                    bad_parameter("Property 'value' is not base64url without padding.")
                })?;
                let wraps = matches!(operation, "wrapKey" | "encrypt");
                let result = if wraps {
                    wrap(secret, &crypto.alg, &value)?
                } else {
                    unwrap(secret, &crypto.alg, &value)?
                };
                json!({ "kid": kid, "value": BASE64URL.encode(result) })
            }
        };
        Ok(Reply::new(
            Verdict::Answered,
            200,
            "application/json; charset=utf-8",
            answer.to_string(),
        ))
    }

    /// The vault that the client speaks to. If it knows us under another name, the vault that has the key.
    fn vault(&self, host: &str, key: &str) -> Result<&Vault, Error> {
        let host = host.to_lowercase();
        let found = self.vaults.get(&host).or_else(|| {
            if super::Cloud::of_vault(&host).is_some() {
                return None;
            }
            match self.vaults_with.get(&key.to_lowercase())?.as_slice() {
                [host] => self.vaults.get(host),
                // Which of several, nobody could tell.
                _ => None,
            }
        });
        found
            .filter(|vault| vault.doc.state != AzureVaultState::Deleted)
            .ok_or_else(|| {
                let message = format!("The vault {host} was not found.");
                Error::failed(Failure::NotFound, 404, "VaultNotFound", message)
            })
    }

    /// The client id that the bearer token stands for.
    fn authenticate(
        &self,
        vault: &Vault,
        request: &Request,
        cx: &mut Context<'_>,
    ) -> Result<String, Error> {
        let challenge = |verdict, inner, message: String, more: &str| {
            let mut error = Error::new(verdict, 401, "Unauthorized", message).inner(inner);
            error.challenge = Some(format!(
                "Bearer authorization=\"https://{}/{}\", resource=\"https://{}\"{more}",
                vault.cloud.authority, vault.doc.tenant, vault.resource
            ));
            error
        };
        let refused = |inner, message: &str| {
            challenge(
                Verdict::Refused(Refusal::Token),
                inner,
                message.to_owned(),
                "",
            )
        };
        let Some(token) = request.bearer() else {
            // This is how Microsoft's own clients learn directory and resource.
            let message = "AKV10000: Request is missing a Bearer or PoP token.";
            return Err(challenge(
                Verdict::Challenged,
                "AKV10000",
                message.to_owned(),
                "",
            ));
        };
        let Some(claims) = cx.mint.read(entra::KIND, token) else {
            return Err(refused(
                "AKV10001",
                "AKV10001: Cannot read the token, or its signature is wrong.",
            ));
        };
        cx.subject.caller.clone_from(&claims.sub);
        if claims.exp <= cx.now_s {
            return Err(refused("AKV10011", "AKV10011: The token is expired."));
        }
        if claims.tid != vault.doc.tenant.to_lowercase() {
            let message = format!(
                "AKV10032: Invalid issuer. Expected one of https://sts.windows.net/{}/, found https://sts.windows.net/{}/.",
                vault.doc.tenant, claims.tid
            );
            return Err(challenge(
                Verdict::Refused(Refusal::Token),
                "AKV10032",
                message,
                "",
            ));
        }
        if claims.aud != format!("https://{}", vault.resource) {
            let message = format!(
                "AKV10022: Invalid audience. Expected https://{}, found: {}.",
                vault.resource, claims.aud
            );
            return Err(challenge(
                Verdict::Refused(Refusal::Token),
                "AKV10022",
                message,
                "",
            ));
        }
        let app = self
            .apps
            .get(&(claims.tid.clone(), claims.sub.to_lowercase()));
        let is_good = app.is_some_and(|app| {
            app.generation == claims.generation && app.doc.state == CredentialState::Active
        });
        if !is_good {
            let verdict = Verdict::Failed(Failure::Revoked);
            let message = "AKV10012: The token was revoked.";
            return Err(challenge(verdict, "AKV10012", message.to_owned(), ""));
        }
        if let Some(required) = &vault.doc.claims
            && !asks_for(&claims.claims, required)
        {
            let more = format!(
                ", error=\"insufficient_claims\", claims=\"{}\"",
                BASE64.encode(required)
            );
            let message = "Continuous access evaluation resulted in a challenge.";
            return Err(challenge(
                Verdict::Challenged,
                "AKV10089",
                message.to_owned(),
                &more,
            ));
        }
        Ok(claims.sub)
    }

    fn key(&self, vault: &Vault, target: &Target) -> Result<&Key, Error> {
        let id = (vault.doc.host.clone(), target.name.to_lowercase());
        let key = self.keys.get(&id).ok_or_else(|| not_found(target))?;
        match key.doc.state {
            AzureKeyState::Active => Ok(key),
            AzureKeyState::Deleted => Err(not_found(target)),
            AzureKeyState::Recovering => {
                let message = format!("Key {} is currently being recovered.", target.name);
                let error = Error::failed(Failure::KeyState, 409, "Conflict", message);
                Err(error.inner("ObjectIsBeingRecovered"))
            }
        }
    }
}

/// Whether a token was asked for with the claims that are required, and perhaps with more: MSAL adds what it can do.
fn asks_for(given: &str, required: &str) -> bool {
    match (serde_json::from_str(given), serde_json::from_str(required)) {
        (Ok(given), Ok(required)) => includes(&given, &required),
        _ => given == required,
    }
}

fn includes(given: &Value, required: &Value) -> bool {
    match (given.as_object(), required.as_object()) {
        (Some(given), Some(required)) => required.iter().all(|(name, required)| {
            given
                .get(name)
                .is_some_and(|given| includes(given, required))
        }),
        _ => given == required,
    }
}

fn not_found(target: &Target) -> Error {
    let message = format!(
        "A key with (name/id) {}/{} was not found in this key vault.",
        target.name, target.version
    );
    Error::failed(Failure::NotFound, 404, "KeyNotFound", message)
}

fn check_access(
    vault: &Vault,
    caller: &str,
    operation: Option<&str>,
    denied: bool,
) -> Result<(), Error> {
    match vault.doc.state {
        AzureVaultState::Active | AzureVaultState::Deleted => {}
        AzureVaultState::Firewalled => {
            let message = "Client address is not authorized and caller is not a trusted service.";
            return Err(forbidden(
                Failure::Permission,
                "ForbiddenByFirewall",
                message,
            ));
        }
        AzureVaultState::SubscriptionDisabled => {
            let message =
                "The subscription of this vault is disabled and therefore marked as read only.";
            let code = "ReadOnlyDisabledSubscription";
            return Err(Error::failed(Failure::Account, 403, code, message));
        }
    }
    let is_allowed = |allowed: &String| allowed.eq_ignore_ascii_case(caller);
    if !denied && vault.doc.allows.iter().any(is_allowed) {
        return Ok(());
    }
    let operation = operation.unwrap_or("get");
    let message = format!(
        "The user, group or application 'appid={caller}' does not have keys {operation} permission on key vault '{}'.",
        vault.doc.host
    );
    Err(forbidden(Failure::Permission, "ForbiddenByPolicy", message))
}

fn check_version(
    key: &Key,
    version: &AzureVersionDoc,
    operation: &str,
    now_s: u64,
) -> Result<(), Error> {
    let wraps = matches!(operation, "wrapKey" | "encrypt");
    if !version.enabled {
        let message = format!("Operation {operation} is not allowed on a disabled key.");
        return Err(forbidden(Failure::KeyState, "KeyDisabled", message));
    }
    // What was wrapped while it was good can be unwrapped later.
    if wraps && version.expires_unix_s.is_some_and(|end| end <= now_s) {
        let message = format!("Operation {operation} is not allowed on an expired key.");
        return Err(forbidden(Failure::KeyState, "KeyExpired", message));
    }
    if wraps && version.not_before_unix_s.is_some_and(|begin| begin > now_s) {
        let message =
            format!("Operation {operation} is not allowed on a key that is not yet valid.");
        return Err(forbidden(Failure::KeyState, "KeyNotYetValid", message));
    }
    if !key
        .doc
        .operations
        .iter()
        .any(|allowed| allowed == operation)
    {
        let message = format!("Operation {operation} is not permitted on this key.");
        return Err(forbidden(
            Failure::KeyState,
            "KeyOperationForbidden",
            message,
        ));
    }
    Ok(())
}

fn padding(alg: &str) -> Option<Padding> {
    match alg {
        "RSA-OAEP-256" => Some(Padding::OaepSha256),
        "RSA-OAEP" => Some(Padding::OaepSha1),
        "RSA1_5" => Some(Padding::Pkcs1),
        _ => None,
    }
}

fn not_for_this_key(alg: &str) -> Error {
    let message = format!("Algorithm {alg} is not supported by this key.");
    Error::failed(Failure::KeyState, 400, "BadParameter", message)
}

fn wrap(secret: &Secret, alg: &str, value: &[u8]) -> Result<Vec<u8>, Error> {
    let wrapped = match secret {
        Secret::Rsa(rsa) => rsa.wrap(padding(alg).ok_or_else(|| not_for_this_key(alg))?, value),
        Secret::Oct(kek) => key_wrap(kek_for(kek, alg)?, value),
    };
    wrapped
        .ok_or_else(|| bad_parameter("The value has a length that this algorithm does not take."))
}

fn unwrap(secret: &Secret, alg: &str, value: &[u8]) -> Result<Vec<u8>, Error> {
    let unwrapped = match secret {
        Secret::Rsa(rsa) => rsa.unwrap(padding(alg).ok_or_else(|| not_for_this_key(alg))?, value),
        Secret::Oct(kek) => key_unwrap(kek_for(kek, alg)?, value),
    };
    unwrapped.ok_or_else(|| {
        Error::failed(
            Failure::Ciphertext,
            400,
            "BadParameter",
            "The parameter is incorrect.",
        )
    })
}

/// The algorithm must be that of the key's size.
fn kek_for<'k>(kek: &'k [u8], alg: &str) -> Result<&'k [u8], Error> {
    match (alg, kek.len()) {
        ("A256KW", 32) | ("A128KW", 16) => Ok(kek),
        _ => Err(not_for_this_key(alg)),
    }
}

fn describe(key: &Key, version: &AzureVersionDoc, secret: &Secret, kid: &str) -> Value {
    let mut attributes = json!({
        "enabled": version.enabled,
        "created": 1_768_472_130,
        "updated": 1_768_472_130,
        "recoveryLevel": "Recoverable+Purgeable",
    });
    if let Some(members) = attributes.as_object_mut() {
        if let Some(begin) = version.not_before_unix_s {
            members.insert("nbf".to_owned(), begin.into());
        }
        if let Some(end) = version.expires_unix_s {
            members.insert("exp".to_owned(), end.into());
        }
    }
    let mut jwk =
        json!({ "kid": kid, "kty": key.doc.kind.as_str(), "key_ops": key.doc.operations });
    if let (Some(members), Secret::Rsa(rsa)) = (jwk.as_object_mut(), secret) {
        members.insert("n".to_owned(), BASE64URL.encode(&rsa.modulus).into());
        members.insert("e".to_owned(), BASE64URL.encode(&rsa.exponent).into());
    }
    json!({ "key": jwk, "attributes": attributes })
}
