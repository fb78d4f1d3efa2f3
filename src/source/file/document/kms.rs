//! One `[[kms]]` entry: its form, and then the credentials and certificates that it names.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tsp_wire::{
    KmsConfigId, Secret,
    snapshot::{KmsConfigDoc, KmsKeyDoc},
};
use zeroize::Zeroizing;

use super::{
    super::read::Files,
    form::{Credential, Form, Table},
};
use crate::config::Strings;

/// Kinds of KMS that the format knows but this version does not serve.
const LATER: [&str; 3] = ["GCP", "AZURE", "THALES"];

/// Size of a LOCAL key, in bytes.
const LOCAL_KEY_BYTES: usize = 32;

/// A KMS config as the file has it, its form known to be good.
pub(super) struct RawKms<'a> {
    pub(super) id: i64,
    pub(super) at: usize,
    leasing_allowed: bool,
    key: RawKey<'a>,
    endpoint: Option<&'a str>,
    allow_insecure: bool,
    ca_file: Option<&'a str>,
}

enum RawKey<'a> {
    Local {
        key: Credential<'a>,
    },
    Aws {
        key_id: &'a str,
        region: &'a str,
        access_key_id: Credential<'a>,
        secret_access_key: Credential<'a>,
        session_token: Option<Credential<'a>>,
    },
    Later {
        kind: &'static str,
    },
}

impl Form<'_> {
    pub(super) fn kms<'d>(&mut self, table: &Table<'d>) -> Option<RawKms<'d>> {
        const MEMBERS: [&str; 8] = [
            "id",
            "type",
            "leasing_allowed",
            "key_path",
            "credentials",
            "endpoint",
            "allow_insecure",
            "ca_file",
        ];
        self.only_members(table, &MEMBERS);
        let id = self.required(table, "id", Self::integer);
        if id.is_some_and(|id| KmsConfigId::new(id).is_none()) {
            self.problem(
                table.at,
                format!("{}: id is not a number from 1 to {}", table.what, i32::MAX),
            );
        }
        let kind = self.required(table, "type", Self::string);
        let leasing_allowed = self
            .optional(table, "leasing_allowed", Self::boolean)
            .unwrap_or(false);
        let endpoint = self.optional(table, "endpoint", Self::string);
        let allow_insecure = self
            .optional(table, "allow_insecure", Self::boolean)
            .unwrap_or(false);
        let ca_file = self.optional(table, "ca_file", Self::string);
        let key = match kind? {
            "AWS" => self.aws_key(table)?,
            "LOCAL" => {
                for member in ["endpoint", "allow_insecure", "ca_file"] {
                    if let Some((at, _)) = table.member(member) {
                        let why =
                            format!("{}: {member} has no meaning for a LOCAL key", table.what);
                        self.problem(at, why);
                    }
                }
                self.local_key(table)?
            }
            other => match LATER.into_iter().find(|kind| *kind == other) {
                Some(kind) => RawKey::Later { kind },
                None => {
                    let why = format!(
                        "{}: type is none of AWS, LOCAL, {}",
                        table.what,
                        LATER.join(", ")
                    );
                    self.problem(table.at, why);
                    return None;
                }
            },
        };
        Some(RawKms {
            id: id?,
            at: table.at,
            leasing_allowed,
            key,
            endpoint,
            allow_insecure,
            ca_file,
        })
    }

    fn aws_key<'d>(&mut self, table: &Table<'d>) -> Option<RawKey<'d>> {
        let path = self.required_table(table, "key_path", &["keyID", "region"]);
        let (key_id, region) = path.map_or((None, None), |path| {
            (
                self.required(&path, "keyID", Self::string),
                self.required(&path, "region", Self::string),
            )
        });
        let members = ["accessKeyId", "secretAccessKey", "sessionToken"];
        let credentials = self.required_table(table, "credentials", &members)?;
        let access_key_id = self.required(&credentials, "accessKeyId", Self::credential);
        let secret_access_key = self.required(&credentials, "secretAccessKey", Self::credential);
        let session_token = self.optional(&credentials, "sessionToken", Self::credential);
        Some(RawKey::Aws {
            key_id: key_id?,
            region: region?,
            access_key_id: access_key_id?,
            secret_access_key: secret_access_key?,
            session_token,
        })
    }

    fn local_key<'d>(&mut self, table: &Table<'d>) -> Option<RawKey<'d>> {
        if table.member("key_path").is_some() {
            self.required_table(table, "key_path", &[]);
        }
        let credentials = self.required_table(table, "credentials", &["key"])?;
        Some(RawKey::Local {
            key: self.required(&credentials, "key", Self::credential)?,
        })
    }
}

impl RawKms<'_> {
    /// Fetches what the config names.
    ///
    /// # Errors
    /// All that cannot be had.
    pub(super) fn resolve<S: Strings>(
        self,
        files: &mut Files<'_, S>,
    ) -> Result<KmsConfigDoc, Vec<String>> {
        let mut whys = Vec::new();
        let ca_pem = self.ca_file.and_then(|path| {
            files
                .certificates(path)
                .map_err(|why| whys.push(format!("ca_file: {why}")))
                .ok()
        });
        let key = self.key.resolve(files, &mut whys);
        let Some(key) = key.filter(|_| whys.is_empty()) else {
            return Err(whys);
        };
        Ok(KmsConfigDoc {
            id: self.id,
            leasing_allowed: self.leasing_allowed,
            key,
            endpoint: self.endpoint.map(str::to_owned),
            allow_insecure: self.allow_insecure,
            ca_pem,
        })
    }
}

impl RawKey<'_> {
    /// `None` if something was added to `whys`.
    fn resolve<S: Strings>(
        self,
        files: &mut Files<'_, S>,
        whys: &mut Vec<String>,
    ) -> Option<KmsKeyDoc> {
        let mut fetch = |credential: Credential<'_>, name: &str| {
            credential
                .fetch(files)
                .map_err(|why| whys.push(format!("credentials: {name}: {why}")))
                .ok()
        };
        match self {
            Self::Local { key } => {
                let text = fetch(key, "key")?;
                let key = local_key(&text);
                if key.is_none() {
                    whys.push(format!(
                        "credentials: key is not base64 of {LOCAL_KEY_BYTES} bytes"
                    ));
                }
                Some(KmsKeyDoc::Local { key: key? })
            }
            Self::Aws {
                key_id,
                region,
                access_key_id,
                secret_access_key,
                session_token,
            } => {
                let access_key_id = fetch(access_key_id, "accessKeyId");
                let secret_access_key = fetch(secret_access_key, "secretAccessKey");
                let session_token = session_token.map(|token| fetch(token, "sessionToken"));
                Some(KmsKeyDoc::Aws {
                    key_id: key_id.to_owned(),
                    region: region.to_owned(),
                    access_key_id: access_key_id?.to_string(),
                    secret_access_key: secret(secret_access_key?),
                    session_token: match session_token {
                        Some(token) => Some(secret(token?)),
                        None => None,
                    },
                    assume_role: None,
                    sts_endpoint: None,
                })
            }
            Self::Later { kind } => {
                whys.push(format!("type {kind} is not available in this version"));
                None
            }
        }
    }
}

impl Credential<'_> {
    fn fetch<S: Strings>(self, files: &mut Files<'_, S>) -> Result<Zeroizing<String>, String> {
        match self {
            Self::Inline(text) => Ok(Zeroizing::new(text.to_owned())),
            Self::Env(name) => files.variable(name),
            Self::File(path) => files.credential(path),
        }
    }
}

fn secret(mut text: Zeroizing<String>) -> Secret<String> {
    Secret::new(std::mem::take(&mut *text))
}

fn local_key(text: &str) -> Option<Secret<[u8; LOCAL_KEY_BYTES]>> {
    // Base64 decodes in groups, so the buffer has room for a little more than a key.
    let mut buffer = Zeroizing::new([0u8; LOCAL_KEY_BYTES + 4]);
    let bytes = STANDARD.decode_slice(text, buffer.as_mut_slice()).ok()?;
    let key: Zeroizing<[u8; LOCAL_KEY_BYTES]> =
        Zeroizing::new(buffer.get(..bytes)?.try_into().ok()?);
    Some(Secret::new(*key))
}
