//! Azure Key Vault and Managed HSM (REST), and Entra's token endpoint (OAuth 2.0 client credentials, v2).
//!
//! Shapes are those of the Key Vault REST API reference and of what Microsoft's own clients send and read.

mod entra;
mod vault;

use std::collections::HashMap;

use http::{HeaderName, header};
use serde_json::json;

use self::{entra::App, vault::Key};
use super::{
    crypto::Seed,
    exchange::{Failure, Operation, Refusal, Reply, Request, Verdict},
    sim::Context,
    world::{AzureDoc, AzureVaultDoc, AzureVaultState, CredentialState, ENTRIES_MAX, WorldError},
};

/// A national cloud: who gives tokens, and for which hosts.
#[derive(Debug)]
struct Cloud {
    authority: &'static str,
    vault: &'static str,
    hsm: &'static str,
}

/// All of them, from the Azure SDKs.
const CLOUDS: [Cloud; 3] = [
    Cloud {
        authority: "login.microsoftonline.com",
        vault: "vault.azure.net",
        hsm: "managedhsm.azure.net",
    },
    Cloud {
        authority: "login.microsoftonline.us",
        vault: "vault.usgovcloudapi.net",
        hsm: "managedhsm.usgovcloudapi.net",
    },
    Cloud {
        authority: "login.chinacloudapi.cn",
        vault: "vault.azure.cn",
        hsm: "managedhsm.azure.cn",
    },
];

impl Cloud {
    /// The cloud of a vault, and the resource that tokens for it name.
    fn of_vault(host: &str) -> Option<(&'static Self, &'static str)> {
        let (_, suffix) = host.split_once('.')?;
        CLOUDS.iter().find_map(|cloud| {
            [cloud.vault, cloud.hsm]
                .into_iter()
                .find(|known| *known == suffix)
                .map(|resource| (cloud, resource))
        })
    }
}

/// An error of a vault.
#[derive(Debug)]
struct Error {
    verdict: Verdict,
    status: u16,
    code: &'static str,
    inner: &'static str,
    message: String,
    /// `WWW-Authenticate`.
    challenge: Option<String>,
}

impl Error {
    fn new(verdict: Verdict, status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            verdict,
            status,
            code,
            inner: "",
            message: message.into(),
            challenge: None,
        }
    }

    fn refused(why: Refusal, status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Verdict::Refused(why), status, code, message)
    }

    fn failed(why: Failure, status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Verdict::Failed(why), status, code, message)
    }

    fn inner(mut self, code: &'static str) -> Self {
        self.inner = code;
        self
    }

    fn reply(self) -> Reply {
        let mut error = json!({ "code": self.code, "message": self.message });
        if let Some(members) = error.as_object_mut()
            && !self.inner.is_empty()
        {
            members.insert("innererror".to_owned(), json!({ "code": self.inner }));
        }
        let body = json!({ "error": error }).to_string();
        let mut reply = Reply::new(
            self.verdict,
            self.status,
            "application/json; charset=utf-8",
            body,
        );
        if let Some(challenge) = self.challenge {
            reply = reply.with(header::WWW_AUTHENTICATE, &challenge);
        }
        let code = if self.inner.is_empty() {
            self.code
        } else {
            self.inner
        };
        reply.because(code, self.message)
    }
}

/// A vault or a managed HSM.
#[derive(Debug)]
struct Vault {
    doc: AzureVaultDoc,
    cloud: &'static Cloud,
    /// What tokens for it name, without `https://`.
    resource: &'static str,
}

/// All of Azure.
#[derive(Debug)]
pub(super) struct Azure {
    /// By directory and client id, in lower case.
    apps: HashMap<(String, String), App>,
    /// By host.
    vaults: HashMap<String, Vault>,
    /// By host and name, in lower case: Key Vault takes names in any case.
    keys: HashMap<(String, String), Key>,
    /// From the name of a key to the hosts of the vaults that have one of that name.
    vaults_with: HashMap<String, Vec<String>>,
    replays: entra::Replays,
    pub(super) refuse_replays: bool,
}

impl Azure {
    pub(super) fn new(doc: &AzureDoc, seed: &Seed) -> Result<Self, WorldError> {
        if doc.apps.len() + doc.vaults.len() + doc.keys.len() > ENTRIES_MAX {
            return Err(WorldError::new("azure: too many entries"));
        }
        let mut azure = Self {
            apps: HashMap::new(),
            vaults: HashMap::new(),
            keys: HashMap::new(),
            vaults_with: HashMap::new(),
            replays: entra::Replays::default(),
            refuse_replays: doc.refuse_replays,
        };
        let mut certificates = entra::Certificates::default();
        for app in &doc.apps {
            let id = (app.tenant.to_lowercase(), app.client_id.to_lowercase());
            if azure
                .apps
                .insert(id, App::new(app, &mut certificates)?)
                .is_some()
            {
                return Err(WorldError::new(format!(
                    "azure: app {} is there twice",
                    app.client_id
                )));
            }
        }
        for vault in &doc.vaults {
            let Some((cloud, resource)) = Cloud::of_vault(&vault.host) else {
                return Err(WorldError::new(format!(
                    "azure: {:?} is no host of a vault",
                    vault.host
                )));
            };
            let made = Vault {
                doc: vault.clone(),
                cloud,
                resource,
            };
            if azure.vaults.insert(vault.host.clone(), made).is_some() {
                return Err(WorldError::new(format!(
                    "azure: {} is there twice",
                    vault.host
                )));
            }
        }
        let mut pairs = vault::KeyPairs::default();
        for key in &doc.keys {
            if !azure.vaults.contains_key(&key.vault) {
                return Err(WorldError::new(format!(
                    "azure: key {} is in no vault",
                    key.name
                )));
            }
            let id = (key.vault.clone(), key.name.to_lowercase());
            let hosts = azure.vaults_with.entry(id.1.clone()).or_default();
            hosts.push(id.0.clone());
            if azure
                .keys
                .insert(id, Key::new(key, seed, &mut pairs)?)
                .is_some()
            {
                return Err(WorldError::new(format!(
                    "azure: key {} is there twice",
                    key.name
                )));
            }
        }
        Ok(azure)
    }

    /// Answers a request that was recognised as one for Azure.
    pub(super) fn answer(&mut self, request: &Request, cx: &mut Context<'_>) -> Reply {
        let id = cx.random.uuid();
        let reply = match entra::Path::parse(request.path()) {
            Some(path) => self.answer_entra(&path, request, cx),
            None => self
                .answer_vault(request, cx)
                .unwrap_or_else(|error| error.reply()),
        };
        reply.with(HeaderName::from_static("x-ms-request-id"), &id)
    }

    pub(super) fn set_credential(&mut self, client_id: &str, state: CredentialState) -> bool {
        let mut found = false;
        for app in self
            .apps
            .values_mut()
            .filter(|app| app.doc.client_id == client_id)
        {
            app.doc.state = state;
            found = true;
        }
        found
    }

    pub(super) fn revoke_tokens(&mut self, client_id: &str) -> bool {
        let mut found = false;
        for app in self
            .apps
            .values_mut()
            .filter(|app| app.doc.client_id == client_id)
        {
            app.generation += 1;
            found = true;
        }
        found
    }

    pub(super) fn set_vault(&mut self, name: &str, state: AzureVaultState) -> bool {
        let mut found = false;
        for vault in self.vaults_named(name) {
            vault.doc.state = state;
            found = true;
        }
        found
    }

    /// From now on tokens must have been asked for with these claims.
    pub(super) fn set_claims(&mut self, name: &str, claims: Option<&str>) -> bool {
        let mut found = false;
        for vault in self.vaults_named(name) {
            vault.doc.claims = claims.map(str::to_owned);
            found = true;
        }
        found
    }

    fn vaults_named(&mut self, name: &str) -> impl Iterator<Item = &mut Vault> {
        self.vaults.values_mut().filter(move |vault| {
            vault.doc.host == name || vault.doc.host.split('.').next() == Some(name)
        })
    }

    /// The keys that `name` means: a key's name, a vault, or `vault/name`.
    pub(super) fn keys_named(&mut self, name: &str) -> impl Iterator<Item = &mut Key> {
        self.keys.values_mut().filter(move |key| {
            let vault = key.doc.vault.as_str();
            let short = vault.split('.').next().unwrap_or_default();
            let in_vault = |vault: &str| {
                name.strip_prefix(vault).is_some_and(|rest| {
                    rest.is_empty() || rest.strip_prefix('/') == Some(&key.doc.name)
                })
            };
            key.doc.name == name || in_vault(vault) || in_vault(short)
        })
    }
}

/// Over the quota, of a vault or of a directory.
pub(super) fn throttled(operation: Operation, retry_after_s: Option<f64>) -> Reply {
    let verdict = Verdict::Failed(Failure::Throttled);
    let reply = if operation == Operation::Token {
        entra::error(
            verdict,
            429,
            "temporarily_unavailable",
            90_055,
            "The tenant is throttled.",
        )
    } else {
        let message = "Request was not processed because too many requests were received. \
                       Reason: VaultRequestTypeLimitReached";
        Error::new(verdict, 429, "Throttled", message).reply()
    };
    match retry_after_s {
        Some(seconds) => reply.with(header::RETRY_AFTER, &format!("{:.0}", seconds.ceil())),
        None => reply,
    }
}

/// An error by its code, for faults: a vault's code or inner code, or the number of an AADSTS code.
pub(super) fn by_code(operation: Operation, code: &str, message: &str) -> Reply {
    let verdict = Verdict::Answered;
    if operation == Operation::Token {
        let number = code.trim_start_matches("AADSTS").parse().unwrap_or(0);
        let (status, error) = match number {
            50_196 | 90_055 => (429, "temporarily_unavailable"),
            90_033 => (503, "temporarily_unavailable"),
            7_000_215 | 7_000_222 | 7_000_216 => (401, "invalid_client"),
            _ => (400, "invalid_request"),
        };
        return entra::error(verdict, status, error, number, message);
    }
    let (status, outer) = match code {
        "Unauthorized" => (401, code),
        "KeyNotFound" | "VaultNotFound" | "SubscriptionNotFound" => (404, code),
        "BadParameter" => (400, code),
        "Conflict" => (409, code),
        "Throttled" => (429, code),
        "InternalServerError" => (500, code),
        "ServiceUnavailable" => (503, code),
        _ => (403, "Forbidden"),
    };
    let mut error = json!({ "code": outer, "message": message });
    if let Some(members) = error.as_object_mut()
        && outer != code
    {
        members.insert("innererror".to_owned(), json!({ "code": code }));
    }
    let body = json!({ "error": error }).to_string();
    Reply::new(verdict, status, "application/json; charset=utf-8", body).because(code, message)
}

#[cfg(test)]
mod tests;
