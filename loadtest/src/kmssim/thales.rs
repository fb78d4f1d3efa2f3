//! Thales CipherTrust Manager: log-in, and the crypto API with AES keys.
//!
//! No public OpenAPI document exists; members and codes are those that public clients send and read.

mod error;
mod members;

use std::collections::HashMap;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::{Method, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    crypto::{Gcm, NONCE_BYTES, Seed, TAG_BYTES},
    exchange::{
        Denied, Failure, Operation, Refusal, Reply, Request, Verdict, json_object, percent_decoded,
    },
    sim::Context,
    token::Claims,
    world::{
        CredentialState, ENTRIES_MAX, ThalesDoc, ThalesKeyDoc, ThalesKeyState, ThalesUserDoc,
        ThalesVersionDoc, WorldError,
    },
};

pub(super) use self::members::{by_code, throttled};
use self::{error::*, members::*};

/// Kinds of our tokens.
const BEARER: &str = "thales";
const REFRESH: &str = "thales-refresh";
/// Bytes of plaintext in one call.
const PLAINTEXT_BYTES_MAX: usize = 64 * 1024;
/// Random bytes in one call.
const RANDOM_BYTES_MAX: usize = 1024;
/// Versions of one key.
const VERSIONS_MAX: usize = 10_000;
/// Bits of a key's usage mask.
const MAY_ENCRYPT: u32 = 4;
const MAY_DECRYPT: u32 = 8;
const ROOT: &str = "root";

/// A user.
#[derive(Debug)]
struct User {
    doc: ThalesUserDoc,
    /// How often its tokens were revoked.
    generation: u32,
}

/// A key with all its versions.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) doc: ThalesKeyDoc,
    pub(super) denied: Denied,
    /// One per version.
    materials: Vec<[u8; 32]>,
    seed: Seed,
}

impl Key {
    fn new(doc: &ThalesKeyDoc, seed: &Seed) -> Result<Self, WorldError> {
        let wrong = |why: &str| WorldError::new(format!("thales: key {}: {why}", doc.name));
        if doc.versions.is_empty() || doc.versions.len() > VERSIONS_MAX {
            return Err(wrong("it has no version, or too many"));
        }
        let materials = doc
            .versions
            .iter()
            .map(|version| match &version.material_hex {
                Some(text) => {
                    let mut material = [0; 32];
                    hex::decode_to_slice(text, &mut material)
                        .map(|()| material)
                        .map_err(|_| wrong("material_hex is not 32 bytes"))
                }
                None => Ok(material(seed, &version.id)),
            });
        Ok(Self {
            materials: materials.collect::<Result<_, _>>()?,
            doc: doc.clone(),
            denied: Denied::default(),
            seed: seed.clone(),
        })
    }

    /// From now on it encrypts with a new version.
    pub(super) fn rotate(&mut self, id: String) {
        if self.doc.versions.len() < VERSIONS_MAX {
            self.materials.push(material(&self.seed, &id));
            self.doc.versions.push(ThalesVersionDoc {
                id,
                state: ThalesKeyState::Active,
                material_hex: None,
            });
        }
    }

    /// Sets the state of all versions, or of one.
    pub(super) fn set_state(&mut self, version: Option<u32>, state: ThalesKeyState) {
        for (number, known) in (0..).zip(&mut self.doc.versions) {
            if version.is_none_or(|version| version == number) {
                known.state = state;
            }
        }
    }

    fn current(&self) -> usize {
        self.doc.versions.len().saturating_sub(1)
    }
}

fn material(seed: &Seed, version_id: &str) -> [u8; 32] {
    seed.derive(&[b"thales-key", version_id.as_bytes()])
}

/// A log-in.
#[derive(Deserialize, Default)]
#[serde(default)]
struct LogIn {
    grant_type: Option<String>,
    username: Option<String>,
    password: Option<String>,
    connection: Option<String>,
    /// Where the user was created.
    auth_domain: Option<String>,
    /// Where the token is to act.
    domain: Option<String>,
    refresh_token: Option<String>,
    /// Minutes.
    refresh_token_lifetime: Option<u64>,
    renew_refresh_token: bool,
}

/// A crypto call.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Crypto {
    id: String,
    r#type: Option<String>,
    plaintext: Option<String>,
    ciphertext: Option<String>,
    mode: Option<String>,
    aad: Option<String>,
    iv: Option<String>,
    tag: Option<String>,
    tag_length: Option<usize>,
    version: Option<i64>,
}

/// Who calls, and where its token acts.
struct Caller {
    username: String,
    domain: String,
}

/// The appliance.
#[derive(Debug)]
pub(super) struct Thales {
    /// By domain and name.
    users: HashMap<(String, String), User>,
    keys: Vec<Key>,
    /// From domain and name to the key.
    by_name: HashMap<(String, String), usize>,
    /// From the id of a version to the key and the version.
    by_id: HashMap<String, (usize, usize)>,
    pub(super) licensed: bool,
    deactivated_decrypts: bool,
}

impl Thales {
    pub(super) fn new(doc: &ThalesDoc, seed: &Seed) -> Result<Self, WorldError> {
        if doc.users.len() + doc.keys.len() > ENTRIES_MAX {
            return Err(WorldError::new("thales: too many entries"));
        }
        let mut thales = Self {
            users: HashMap::new(),
            keys: Vec::new(),
            by_name: HashMap::new(),
            by_id: HashMap::new(),
            licensed: doc.licensed,
            deactivated_decrypts: doc.deactivated_decrypts,
        };
        for user in &doc.users {
            let id = (user.auth_domain.clone(), user.username.clone());
            let made = User {
                doc: user.clone(),
                generation: 0,
            };
            if thales.users.insert(id, made).is_some() {
                return Err(WorldError::new(format!(
                    "thales: user {} is there twice",
                    user.username
                )));
            }
        }
        for key in &doc.keys {
            let id = (key.domain.clone(), key.name.clone());
            if thales.by_name.insert(id, thales.keys.len()).is_some() {
                return Err(WorldError::new(format!(
                    "thales: key {} is there twice",
                    key.name
                )));
            }
            thales.keys.push(Key::new(key, seed)?);
        }
        thales.index();
        Ok(thales)
    }

    /// Rebuilds what finds keys by the ids of their versions.
    fn index(&mut self) {
        self.by_id.clear();
        for (at, key) in self.keys.iter().enumerate() {
            for (version, known) in key.doc.versions.iter().enumerate() {
                self.by_id.insert(known.id.clone(), (at, version));
            }
        }
    }

    /// Answers a request that was recognised as one for the appliance.
    pub(super) fn answer(&mut self, request: &Request, cx: &mut Context<'_>) -> Reply {
        let id = cx.random.uuid();
        let answered = self.dispatch(request, cx);
        answered.unwrap_or_else(|error| error.reply(&id))
    }

    fn dispatch(&self, request: &Request, cx: &mut Context<'_>) -> Result<Reply, Error> {
        let path = request.path().strip_prefix("/api/v1").unwrap_or_default();
        let path = path.strip_suffix('/').unwrap_or(path);
        let operation = match path {
            "/auth/tokens" => Operation::Token,
            "/crypto/encrypt" => Operation::Wrap,
            "/crypto/decrypt" => Operation::Unwrap,
            "/vault/random" => Operation::Random,
            other if other.starts_with("/vault/keys2/") => Operation::Lookup,
            _ => Operation::Other,
        };
        cx.subject.operation = Some(operation);
        let method = if matches!(operation, Operation::Random | Operation::Lookup) {
            Method::GET
        } else {
            Method::POST
        };
        if operation == Operation::Other || *request.method() != method {
            return Err(Error::refused(
                Refusal::Protocol,
                404,
                NOT_FOUND,
                "Resource not found",
            ));
        }
        let accept = request.header(header::ACCEPT).unwrap_or_default();
        if !["application/json", "application/*", "*/*"]
            .iter()
            .any(|taken| accept.contains(taken))
        {
            let message = "Accept header is invalid.";
            return Err(Error::refused(Refusal::Protocol, 400, BAD_REQUEST, message));
        }
        if method == Method::POST && request.media_type() != "application/json" {
            let message = "Content-Type header is invalid.";
            return Err(Error::refused(Refusal::Protocol, 400, BAD_REQUEST, message));
        }
        let answer = if operation == Operation::Token {
            self.log_in(parse(&request.body)?, cx)?
        } else {
            let caller = self.caller(request, cx)?;
            if operation == Operation::Wrap {
                self.encrypt(parse(&request.body)?, &caller, cx)?
            } else if operation == Operation::Unwrap {
                self.decrypt(parse(&request.body)?, &caller, cx)?
            } else if let Some(name) = path.strip_prefix("/vault/keys2/") {
                let name = percent_decoded(name).unwrap_or_default();
                let kind = request.query_value("type");
                self.describe(&name, kind.as_deref(), &caller, cx)?
            } else {
                random(request, cx)
            }
        };
        let body = answer.to_string();
        Ok(Reply::new(Verdict::Answered, 200, "application/json", body))
    }

    fn log_in(&self, request: LogIn, cx: &mut Context<'_>) -> Result<Value, Error> {
        let (user, domain, old_refresh) = match request.grant_type.as_deref() {
            // Older clients leave it out.
            None | Some("password") => {
                let username = request.username.unwrap_or_default();
                cx.subject.caller.clone_from(&username);
                let auth_domain = named(request.auth_domain);
                let domain = request
                    .domain
                    .filter(|domain| !domain.is_empty())
                    .unwrap_or_else(|| auth_domain.clone());
                let connection = request
                    .connection
                    .unwrap_or_else(|| "local_account".to_owned());
                let user = self.users.get(&(auth_domain, username)).filter(|user| {
                    user.doc.connection == connection
                        && Some(&user.doc.password) == request.password.as_ref()
                });
                let wrong = "Wrong username or password.";
                let user = user
                    .ok_or_else(|| Error::refused(Refusal::Credential, 401, UNAUTHORIZED, wrong))?;
                (user, domain, None)
            }
            Some("refresh_token") => {
                let refresh = request.refresh_token.unwrap_or_default();
                let invalid = |verdict| Error::new(verdict, 401, UNAUTHORIZED, "Invalid token");
                let refused = || invalid(Verdict::Refused(Refusal::Token));
                let claims = cx.mint.read(REFRESH, &refresh).ok_or_else(refused)?;
                cx.subject.caller.clone_from(&claims.sub);
                if claims.exp <= cx.now_s {
                    return Err(refused());
                }
                let user = self.users.get(&(claims.aud.clone(), claims.sub.clone()));
                let user = user
                    .filter(|user| user.generation == claims.generation)
                    .ok_or_else(|| invalid(Verdict::Failed(Failure::Revoked)))?;
                // The same token stays good, unless the client asks for another.
                let kept = (!request.renew_refresh_token).then_some(refresh);
                (user, claims.domain, kept)
            }
            Some(other) => {
                let message = format!("grant_type {other} is not served here.");
                return Err(Error::refused(
                    Refusal::Parameter,
                    400,
                    INVALID_PARAM,
                    message,
                ));
            }
        };
        if user.doc.state != CredentialState::Active {
            let message = match user.doc.state {
                CredentialState::Disabled => "User account is locked.",
                CredentialState::Active | CredentialState::Revoked => "Wrong username or password.",
            };
            return Err(Error::failed(Failure::Revoked, 401, UNAUTHORIZED, message));
        }
        if domain != user.doc.auth_domain && !user.doc.domains.contains(&domain) {
            let message = format!("The user may not act in domain {domain}.");
            return Err(Error::failed(
                Failure::Permission,
                403,
                INSUFFICIENT,
                message,
            ));
        }
        let life_s = cx.lifetimes.thales_token_s;
        let claims = |kind: &str, exp: u64, jti: String| Claims {
            kind: kind.to_owned(),
            sub: user.doc.username.clone(),
            iat: cx.now_s,
            exp,
            generation: user.generation,
            jti,
            aud: user.doc.auth_domain.clone(),
            domain: domain.clone(),
            ..Claims::default()
        };
        let (first, second) = (cx.random.uuid(), cx.random.uuid());
        let jwt = cx.mint.issue(&claims(BEARER, cx.now_s + life_s, first));
        let refresh_s = request
            .refresh_token_lifetime
            .map(|minutes| minutes.saturating_mul(60));
        let refresh = old_refresh.unwrap_or_else(|| {
            // Without a lifetime it does not end.
            let exp = refresh_s.map_or(u64::MAX, |s| cx.now_s.saturating_add(s));
            cx.mint.issue(&claims(REFRESH, exp, second.clone()))
        });
        let mut answer = json!({
            "jwt": jwt,
            "duration": life_s,
            "token_type": "Bearer",
            "client_id": "8181a3e4-082e-4aaa-b985-5c35db15ffcd",
            "refresh_token_id": second,
            "refresh_token": refresh,
        });
        if let (Some(members), Some(seconds)) = (answer.as_object_mut(), refresh_s) {
            members.insert(
                "refresh_token_expires_in".to_owned(),
                seconds.saturating_sub(1).into(),
            );
        }
        Ok(answer)
    }

    fn caller(&self, request: &Request, cx: &mut Context<'_>) -> Result<Caller, Error> {
        let refused = |message: String| Error::refused(Refusal::Token, 401, UNAUTHORIZED, message);
        let bearer = request
            .bearer()
            .ok_or_else(|| refused("Authorization header is missing.".to_owned()))?;
        let claims = cx
            .mint
            .read(BEARER, bearer)
            .ok_or_else(|| refused("Bearer token malformed".to_owned()))?;
        cx.subject.caller.clone_from(&claims.sub);
        if claims.exp <= cx.now_s {
            let late = cx.now_s - claims.exp;
            return Err(refused(format!(
                "Bearer token malformed: Token is expired by {late}s"
            )));
        }
        let user = self.users.get(&(claims.aud, claims.sub.clone()));
        let is_good = user.is_some_and(|user| {
            user.generation == claims.generation && user.doc.state == CredentialState::Active
        });
        if !is_good {
            let message = "Bearer token malformed: Token was revoked";
            return Err(Error::failed(Failure::Revoked, 401, UNAUTHORIZED, message));
        }
        if !self.licensed {
            let message = "License not installed for this feature.";
            return Err(Error::failed(Failure::Account, 403, INSUFFICIENT, message));
        }
        Ok(Caller {
            username: claims.sub,
            domain: claims.domain,
        })
    }

    /// The key, and the version if the name was a version's id.
    fn key(
        &self,
        id: &str,
        kind: Option<&str>,
        caller: &Caller,
        cx: &mut Context<'_>,
    ) -> Result<(&Key, Option<usize>), Error> {
        cx.subject.keys.push(id.to_owned());
        // A URI ends in the id.
        let id = match kind {
            Some("uri") => id.rsplit(':').next().unwrap_or(id),
            _ => id,
        };
        let by_name = || {
            let found = self.by_name.get(&(caller.domain.clone(), id.to_owned()))?;
            Some((*found, None))
        };
        let by_id = || {
            self.by_id
                .get(id)
                .map(|(at, version)| (*at, Some(*version)))
        };
        let found = match kind {
            Some("name") => by_name(),
            Some("id" | "uri") => by_id(),
            None => by_name().or_else(by_id),
            Some(other) => {
                let message = format!("type {other} is none of name, id, uri.");
                return Err(Error::refused(
                    Refusal::Parameter,
                    400,
                    INVALID_PARAM,
                    message,
                ));
            }
        };
        let found = found.and_then(|(at, version)| Some((self.keys.get(at)?, version)));
        // What one may not see looks as if it were not there.
        let found = found.filter(|(key, _)| {
            key.doc.domain == caller.domain
                && (key.doc.allows.is_empty() || key.doc.allows.contains(&caller.username))
        });
        match found {
            Some((key, version)) => {
                cx.subject.keys.push(key.doc.name.clone());
                let asked = cx.subject.operation.unwrap_or(Operation::Other);
                if key.denied.denies(asked) {
                    let message = "Insufficient permissions";
                    return Err(Error::failed(
                        Failure::Permission,
                        403,
                        INSUFFICIENT,
                        message,
                    ));
                }
                Ok((key, version))
            }
            None => Err(Error::failed(
                Failure::NotFound,
                404,
                NOT_FOUND,
                "Resource not found",
            )),
        }
    }

    fn encrypt(
        &self,
        request: Crypto,
        caller: &Caller,
        cx: &mut Context<'_>,
    ) -> Result<Value, Error> {
        let (key, by_id) = self.key(&request.id, request.r#type.as_deref(), caller, cx)?;
        check_mode(request.mode.as_deref())?;
        let plaintext = required(request.plaintext.as_deref(), "plaintext")?;
        if plaintext.len() > PLAINTEXT_BYTES_MAX {
            return Err(Error::refused(
                Refusal::Parameter,
                400,
                INVALID_PARAM,
                "plaintext is too long.",
            ));
        }
        let aad = optional(request.aad.as_deref(), "aad")?;
        if request.tag_length.is_some_and(|length| length != TAG_BYTES) {
            let message = "Only tags of 16 bytes are served here.";
            return Err(Error::refused(
                Refusal::Parameter,
                400,
                INVALID_PARAM,
                message,
            ));
        }
        let nonce = match optional(request.iv.as_deref(), "iv")? {
            Some(iv) => nonce(&iv)?,
            None => cx.random.bytes(),
        };
        let at = version(key, request.version, by_id)?.unwrap_or_else(|| key.current());
        let (known, material) = at_version(key, at)?;
        check_usage(key, MAY_ENCRYPT, "encrypt")?;
        if known.state != ThalesKeyState::Active {
            return Err(wrong_state(known.state));
        }
        let (text, tag) =
            Gcm::new(material).seal(nonce, aad.as_deref().unwrap_or_default(), &plaintext);
        Ok(json!({
            "ciphertext": BASE64.encode(text),
            "tag": BASE64.encode(tag),
            "id": known.id,
            "version": at,
            "mode": "gcm",
            "iv": BASE64.encode(nonce),
        }))
    }

    fn decrypt(
        &self,
        request: Crypto,
        caller: &Caller,
        cx: &mut Context<'_>,
    ) -> Result<Value, Error> {
        let (key, by_id) = self.key(&request.id, request.r#type.as_deref(), caller, cx)?;
        check_mode(request.mode.as_deref())?;
        let ciphertext = required(request.ciphertext.as_deref(), "ciphertext")?;
        let tag = required(request.tag.as_deref(), "tag")?;
        let nonce = nonce(&required(request.iv.as_deref(), "iv")?)?;
        let aad = optional(request.aad.as_deref(), "aad")?;
        let at = version(key, request.version, by_id)?.unwrap_or_else(|| key.current());
        let (known, material) = at_version(key, at)?;
        check_usage(key, MAY_DECRYPT, "decrypt")?;
        let decrypts = match known.state {
            ThalesKeyState::Active => true,
            ThalesKeyState::Deactivated | ThalesKeyState::Compromised => self.deactivated_decrypts,
            ThalesKeyState::PreActive | ThalesKeyState::Destroyed => false,
        };
        if !decrypts {
            return Err(wrong_state(known.state));
        }
        let opened =
            Gcm::new(material).open(nonce, aad.as_deref().unwrap_or_default(), &ciphertext, &tag);
        let plaintext = opened.ok_or_else(|| {
            let message = "Cryptographic operation failed in cipher operation";
            Error::failed(Failure::Ciphertext, 400, CRYPTO_FAILED, message)
        })?;
        Ok(json!({ "plaintext": BASE64.encode(plaintext) }))
    }

    fn describe(
        &self,
        name: &str,
        kind: Option<&str>,
        caller: &Caller,
        cx: &mut Context<'_>,
    ) -> Result<Value, Error> {
        let (key, by_id) = self.key(name, kind, caller, cx)?;
        let at = by_id.unwrap_or_else(|| key.current());
        let (known, _) = at_version(key, at)?;
        Ok(json!({
            "id": known.id,
            "name": key.doc.name,
            "version": at,
            "state": known.state.as_str(),
            "usageMask": key.doc.usage_mask,
            "algorithm": "AES",
            "size": 256,
            "objectType": "Symmetric Key",
            "unexportable": true,
        }))
    }

    pub(super) fn set_credential(&mut self, username: &str, state: CredentialState) -> bool {
        let mut found = false;
        for user in self.users_named(username) {
            user.doc.state = state;
            found = true;
        }
        found
    }

    pub(super) fn revoke_tokens(&mut self, username: &str) -> bool {
        let mut found = false;
        for user in self.users_named(username) {
            user.generation += 1;
            found = true;
        }
        found
    }

    fn users_named(&mut self, username: &str) -> impl Iterator<Item = &mut User> {
        self.users
            .values_mut()
            .filter(move |user| user.doc.username == username)
    }

    /// Does something to each key that `name` means: its name or the id of one of its versions.
    pub(super) fn change_keys(&mut self, name: &str, mut change: impl FnMut(&mut Key)) -> usize {
        let by_id = self.by_id.get(name).map(|(at, _)| *at);
        let mut found = 0;
        for (at, key) in self.keys.iter_mut().enumerate() {
            if key.doc.name == name || by_id == Some(at) {
                change(key);
                found += 1;
            }
        }
        self.index();
        found
    }
}

#[cfg(test)]
mod tests;
