//! One `[[kms]]` entry: its form, and then the credentials and certificates that it names.

mod keys;

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

/// Members that every kind of KMS has.
const COMMON: [&str; 5] = ["id", "type", "leasing_allowed", "key_path", "credentials"];

/// Members that every kind has that is asked over the network.
const REMOTE: [&str; 3] = ["endpoint", "allow_insecure", "ca_file"];

/// A kind of KMS: its name, the members of an entry that only it has, and who reads its key.
struct Kind {
    name: &'static str,
    remote: bool,
    own: &'static [&'static str],
    read: for<'d> fn(&mut Form<'_>, &Table<'d>) -> Option<RawKey<'d>>,
}

const KINDS: [Kind; 5] = [
    Kind {
        name: "AWS",
        remote: true,
        own: &["stsEndpoint"],
        read: keys::aws,
    },
    Kind {
        name: "LOCAL",
        remote: false,
        own: &[],
        read: keys::local,
    },
    Kind {
        name: "GCP",
        remote: true,
        own: &["tokenKind", "tokenEndpoint"],
        read: keys::gcp,
    },
    Kind {
        name: "AZURE",
        remote: true,
        own: &["algorithm", "authority"],
        read: keys::azure,
    },
    Kind {
        name: "THALES",
        remote: true,
        own: &["serverName", "spkiPin"],
        read: keys::thales,
    },
];

impl Kind {
    fn has(&self, member: &str) -> bool {
        COMMON.contains(&member)
            || self.own.contains(&member)
            || (self.remote && REMOTE.contains(&member))
    }
}

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

/// A key whose form is good: fetches its credentials, and is `None` if one of them cannot be had.
type RawKey<'a> = Box<dyn FnOnce(&mut Fetch<'_>) -> Option<KmsKeyDoc> + 'a>;

/// A credential, and the name of the member that it stands in.
#[derive(Clone, Copy)]
struct Named<'a> {
    name: &'static str,
    credential: Credential<'a>,
}

/// Gets credentials from where the file says they are, and keeps what went wrong.
struct Fetch<'f> {
    fetch: &'f mut dyn FnMut(Credential<'_>) -> Result<Zeroizing<String>, String>,
    whys: Vec<String>,
}

impl Fetch<'_> {
    fn secret(&mut self, named: Named<'_>) -> Option<Secret<String>> {
        let mut text = self.raw(named)?;
        Some(Secret::new(std::mem::take(&mut *text)))
    }

    /// What stands among the credentials but is not secret.
    fn text(&mut self, named: Named<'_>) -> Option<String> {
        Some(self.raw(named)?.to_string())
    }

    fn raw(&mut self, Named { name, credential }: Named<'_>) -> Option<Zeroizing<String>> {
        (self.fetch)(credential)
            .map_err(|why| self.whys.push(format!("credentials: {name}: {why}")))
            .ok()
    }
}

impl Form<'_> {
    pub(super) fn kms<'d>(&mut self, table: &Table<'d>) -> Option<RawKms<'d>> {
        let mut known = [COMMON.as_slice(), &REMOTE].concat();
        known.extend(KINDS.iter().flat_map(|kind| kind.own));
        self.only_members(table, &known);
        let id = self.required(table, "id", Self::integer);
        if id.is_some_and(|id| KmsConfigId::new(id).is_none()) {
            self.problem(
                table.at,
                format!("{}: id is not a number from 1 to {}", table.what, i32::MAX),
            );
        }
        let name = self.required(table, "type", Self::string);
        let leasing_allowed = self
            .optional(table, "leasing_allowed", Self::boolean)
            .unwrap_or(false);
        let endpoint = self.optional(table, "endpoint", Self::string);
        let allow_insecure = self
            .optional(table, "allow_insecure", Self::boolean)
            .unwrap_or(false);
        let ca_file = self.optional(table, "ca_file", Self::string);
        let name = name?;
        let Some(kind) = KINDS.iter().find(|kind| kind.name == name) else {
            let names = KINDS.map(|kind| kind.name).join(", ");
            let why = format!("{}: type is none of {names}", table.what);
            self.problem(table.at, why);
            return None;
        };
        for member in known.into_iter().filter(|member| !kind.has(member)) {
            if let Some((at, _)) = table.member(member) {
                let why = format!("{}: {member} has no meaning with type {name}", table.what);
                self.problem(at, why);
            }
        }
        let key = (kind.read)(self, table)?;
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

    fn required_credential<'d>(
        &mut self,
        table: &Table<'d>,
        name: &'static str,
    ) -> Option<Named<'d>> {
        let credential = self.required(table, name, Self::credential)?;
        Some(Named { name, credential })
    }

    fn optional_credential<'d>(
        &mut self,
        table: &Table<'d>,
        name: &'static str,
    ) -> Option<Named<'d>> {
        let credential = self.optional(table, name, Self::credential)?;
        Some(Named { name, credential })
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
        let mut fetch = Fetch {
            fetch: &mut |credential| credential.fetch(files),
            whys,
        };
        let key = (self.key)(&mut fetch);
        let whys = fetch.whys;
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

impl Credential<'_> {
    fn fetch<S: Strings>(self, files: &mut Files<'_, S>) -> Result<Zeroizing<String>, String> {
        match self {
            Self::Inline(text) => Ok(Zeroizing::new(text.to_owned())),
            Self::Env(name) => files.variable(name),
            Self::File(path) => files.credential(path),
        }
    }
}
