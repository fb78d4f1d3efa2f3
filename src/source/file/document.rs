//! The form of the configuration file: walks the TOML by hand, so that all mistakes are found at once, each with its
//! line, and so that no message quotes a value. (An error of serde's would: "invalid type: string \"the secret\"".)

use std::{
    collections::{HashMap, HashSet},
    fmt,
    path::Path,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};
use tsp_wire::{
    KmsConfigId, Secret, TenantId,
    snapshot::{AssignmentDoc, KmsConfigDoc, KmsKeyDoc, TenantDoc},
};
use zeroize::Zeroizing;

use super::{super::Loaded, read::Files};
use crate::config::{PROBLEMS_MAX, Problem, Strings};

/// The one version of the file's format.
const FORMAT_VERSION: i64 = 1;

/// Kinds of KMS that the format knows but this version does not serve.
const LATER: [&str; 3] = ["GCP", "AZURE", "THALES"];

/// Size of a LOCAL key, in bytes.
const LOCAL_KEY_BYTES: usize = 32;

/// Reads the file and what it names.
///
/// # Errors
/// Everything that is wrong, if the file as a whole cannot be used.
pub(super) fn load<S: Strings>(files: &mut Files<'_, S>) -> Result<Loaded, Vec<Problem>> {
    let path = files.path();
    let text = files
        .config()
        .map_err(|why| vec![Problem::new(path.display().to_string(), why)])?;
    let (document, errors) = DeTable::parse_recoverable(&text);
    let mut form = Form {
        path,
        text: &text,
        problems: Vec::new(),
    };
    for error in errors {
        form.problem(
            error.span().map_or(0, |span| span.start),
            error.message().to_owned(),
        );
    }
    if !form.problems.is_empty() {
        return Err(form.into_problems());
    }

    let (kms, mut tenants) = form.document(&document);
    let mut left_out = Vec::new();
    let mut left_out_ids = HashSet::new();
    let mut loaded = Vec::with_capacity(kms.len());
    for raw in kms {
        let (at, id) = (raw.at, raw.id);
        match raw.resolve(files) {
            Ok(doc) => loaded.push(doc),
            Err(whys) => {
                left_out_ids.insert(id);
                let problem =
                    |why| Problem::new(form.place(at), format!("kms {id}: {why}; it is left out"));
                left_out.extend(whys.into_iter().map(problem));
            }
        }
    }
    // A tenant keeps what is left to it: a lost credential of its old KMS must not take the new one away.
    for tenant in &mut tenants {
        tenant
            .assignments
            .retain(|assignment| !left_out_ids.contains(&assignment.kms));
    }
    if form.problems.is_empty() && loaded.is_empty() && !left_out.is_empty() {
        // Serving nobody is not what the author of the file wants.
        form.problems.push(Problem::new(
            path.display().to_string(),
            "none of its KMS configs can be used",
        ));
    }
    if form.problems.is_empty() {
        return Ok(Loaded {
            kms: loaded,
            tenants,
            left_out,
        });
    }
    form.problems.extend(left_out);
    Err(form.into_problems())
}

/// The text, and what is wrong with its form.
struct Form<'a> {
    path: &'a Path,
    text: &'a str,
    problems: Vec<Problem>,
}

/// A table in the document: what to call it, where it starts, what is in it.
struct Table<'d> {
    what: String,
    at: usize,
    members: &'d DeTable<'d>,
}

/// A KMS config as the file has it, its form known to be good.
struct RawKms<'a> {
    id: i64,
    at: usize,
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

/// Where a credential is: in the file itself, in a variable, in another file.
#[derive(Clone, Copy)]
enum Credential<'a> {
    Inline(&'a str),
    Env(&'a str),
    File(&'a str),
}

impl<'a> Form<'a> {
    fn place(&self, at: usize) -> String {
        let before = self
            .text
            .as_bytes()
            .get(..at)
            .unwrap_or(self.text.as_bytes());
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        format!("{}:{line}", self.path.display())
    }

    fn problem(&mut self, at: usize, why: impl Into<String>) {
        // Beyond the bound it only matters that there are more.
        if self.problems.len() <= PROBLEMS_MAX {
            let place = self.place(at);
            self.problems.push(Problem::new(place, why));
        }
    }

    fn into_problems(mut self) -> Vec<Problem> {
        if self.problems.len() > PROBLEMS_MAX {
            self.problems.truncate(PROBLEMS_MAX);
            self.problems.push(Problem::new(
                self.path.display().to_string(),
                "has more problems",
            ));
        }
        self.problems
    }

    fn document<'d>(
        &mut self,
        document: &'d Spanned<DeTable<'d>>,
    ) -> (Vec<RawKms<'d>>, Vec<TenantDoc>) {
        let top = Table {
            what: "the file".to_owned(),
            at: 0,
            members: document.get_ref(),
        };
        self.only_members(&top, &["version", "kms", "tenant"]);
        if let Some(version) = self.required(&top, "version", Self::integer)
            && version != FORMAT_VERSION
        {
            let why = format!("version is {version}; this program reads version {FORMAT_VERSION}");
            self.problem(0, why);
        }

        let mut configs = HashMap::new();
        let mut kms = Vec::new();
        for table in self.tables(&top, "kms") {
            let raw = self.kms(&table);
            if let Some(id) = self.kms_id(&table, "id")
                && let Some(first) = configs.insert(id, table.at)
            {
                let first = self.place(first);
                self.problem(
                    table.at,
                    format!("kms {id} is there twice, first at {first}"),
                );
            }
            kms.extend(raw);
        }

        let mut ids = HashMap::new();
        let mut tenants = Vec::new();
        for table in self.tables(&top, "tenant") {
            let Some(tenant) = self.tenant(&table, &configs) else {
                continue;
            };
            if let Some(first) = ids.insert(tenant.id.clone(), table.at) {
                let first = self.place(first);
                self.problem(
                    table.at,
                    format!("{} is there twice, first at {first}", table.what),
                );
            }
            tenants.push(tenant);
        }
        (kms, tenants)
    }

    fn kms<'d>(&mut self, table: &Table<'d>) -> Option<RawKms<'d>> {
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

    fn tenant(&mut self, table: &Table<'_>, configs: &HashMap<i64, usize>) -> Option<TenantDoc> {
        self.only_members(table, &["id", "assignments"]);
        let id = self.required(table, "id", Self::string);
        if id.is_some_and(|id| !TenantId::is_valid(id)) {
            let max = TenantId::BYTES_MAX;
            let why = format!(
                "{}: id is not 1 to {max} bytes without control characters",
                table.what
            );
            self.problem(table.at, why);
        }
        let mut assignments: Vec<AssignmentDoc> = Vec::new();
        for table in self.tables(table, "assignments") {
            self.only_members(&table, &["kms", "active", "primary"]);
            let kms = self.kms_id(&table, "kms");
            let active = self
                .optional(&table, "active", Self::boolean)
                .unwrap_or(true);
            let primary = self
                .optional(&table, "primary", Self::boolean)
                .unwrap_or(false);
            if primary && !active {
                self.problem(
                    table.at,
                    format!("{}: a primary config must be active", table.what),
                );
            }
            let Some(kms) = kms else {
                self.required(&table, "kms", Self::integer);
                continue;
            };
            if !configs.contains_key(&kms) {
                self.problem(
                    table.at,
                    format!("{}: there is no [[kms]] with id {kms}", table.what),
                );
            }
            if assignments.iter().any(|other| other.kms == kms) {
                self.problem(
                    table.at,
                    format!("{}: kms {kms} is assigned twice", table.what),
                );
            }
            if primary && assignments.iter().any(|other| other.primary) {
                self.problem(
                    table.at,
                    format!("{}: only one config can be primary", table.what),
                );
            }
            assignments.push(AssignmentDoc {
                kms,
                active,
                primary,
            });
        }
        Some(TenantDoc {
            id: id?.to_owned(),
            assignments,
        })
    }

    /// The number in `member`, if there is one. Says nothing if there is not.
    fn kms_id(&mut self, table: &Table<'_>, member: &str) -> Option<i64> {
        integer(table.member(member)?.1)
    }

    fn only_members(&mut self, table: &Table<'_>, known: &[&str]) {
        for key in table.members.keys() {
            if known.contains(&key.get_ref().as_ref()) {
                continue;
            }
            let nearest = known
                .iter()
                .min_by_key(|known| strsim::damerau_levenshtein(known, key.get_ref()));
            let hint = nearest.map_or_else(String::new, |name| {
                format!("; the nearest known one is {name}")
            });
            let why = format!(
                "{}: {:?} is not known here{hint}",
                table.what,
                Short(key.get_ref())
            );
            self.problem(key.span().start, why);
        }
    }

    fn optional<'d, T>(
        &mut self,
        table: &Table<'d>,
        member: &str,
        read: impl FnOnce(&mut Self, &str, usize, &'d DeValue<'d>) -> Option<T>,
    ) -> Option<T> {
        let (at, value) = table.member(member)?;
        read(self, &format!("{}: {member}", table.what), at, value)
    }

    fn required<'d, T>(
        &mut self,
        table: &Table<'d>,
        member: &str,
        read: impl FnOnce(&mut Self, &str, usize, &'d DeValue<'d>) -> Option<T>,
    ) -> Option<T> {
        if table.member(member).is_none() {
            self.problem(table.at, format!("{}: {member} is missing", table.what));
        }
        self.optional(table, member, read)
    }

    fn required_table<'d>(
        &mut self,
        table: &Table<'d>,
        member: &str,
        known: &[&str],
    ) -> Option<Table<'d>> {
        let what = format!("{}: {member}", table.what);
        match table.member(member) {
            Some((at, DeValue::Table(members))) => {
                let table = Table { what, at, members };
                self.only_members(&table, known);
                Some(table)
            }
            Some((at, _)) => {
                self.problem(at, format!("{what} must be a table"));
                None
            }
            None => {
                self.problem(table.at, format!("{what} is missing"));
                None
            }
        }
    }

    /// All tables of an array, `[[member]]`. Nothing if it is not there.
    fn tables<'d>(&mut self, table: &Table<'d>, member: &str) -> Vec<Table<'d>> {
        let Some((at, value)) = table.member(member) else {
            return Vec::new();
        };
        let DeValue::Array(array) = value else {
            self.problem(
                at,
                format!("{}: {member} must be an array of tables", table.what),
            );
            return Vec::new();
        };
        let mut tables = Vec::with_capacity(array.len());
        for (index, item) in array.iter().enumerate() {
            let at = item.span().start;
            let DeValue::Table(members) = item.get_ref() else {
                self.problem(
                    at,
                    format!("{}: {member} must hold tables only", table.what),
                );
                continue;
            };
            let mut item = Table {
                what: String::new(),
                at,
                members,
            };
            let name = match item.member("id").map(|(_, value)| value) {
                Some(DeValue::String(id)) => format!("{:?}", Short(id)),
                Some(DeValue::Integer(id)) => Short(&id.to_string()).to_string(),
                _ => format!("number {}", index + 1),
            };
            item.what = match member {
                "assignments" => format!("{}: assignment {}", table.what, index + 1),
                _ => format!("{member} {name}"),
            };
            tables.push(item);
        }
        tables
    }

    fn string<'d>(&mut self, what: &str, at: usize, value: &'d DeValue<'d>) -> Option<&'d str> {
        let text = value.as_str().filter(|text| !text.is_empty());
        text.or_else(|| self.wrong(what, at, "must be a string, and not empty"))
    }

    fn boolean(&mut self, what: &str, at: usize, value: &DeValue<'_>) -> Option<bool> {
        value
            .as_bool()
            .or_else(|| self.wrong(what, at, "must be true or false"))
    }

    fn integer(&mut self, what: &str, at: usize, value: &DeValue<'_>) -> Option<i64> {
        integer(value).or_else(|| self.wrong(what, at, "must be a whole number"))
    }

    fn credential<'d>(
        &mut self,
        what: &str,
        at: usize,
        value: &'d DeValue<'d>,
    ) -> Option<Credential<'d>> {
        if let Some(text) = value.as_str().filter(|text| !text.is_empty()) {
            return Some(Credential::Inline(text));
        }
        if let DeValue::Table(members) = value
            && members.len() == 1
        {
            let table = Table {
                what: what.to_owned(),
                at,
                members,
            };
            if let Some((at, name)) = table.member("env") {
                return self.string(what, at, name).map(Credential::Env);
            }
            if let Some((at, path)) = table.member("file") {
                return self.string(what, at, path).map(Credential::File);
            }
        }
        self.wrong(
            what,
            at,
            "must be a string, { env = \"NAME\" } or { file = \"PATH\" }",
        )
    }

    fn wrong<T>(&mut self, what: &str, at: usize, why: &str) -> Option<T> {
        self.problem(at, format!("{what} {why}"));
        None
    }
}

impl<'d> Table<'d> {
    /// Where a member's value starts, and the value.
    fn member(&self, name: &str) -> Option<(usize, &'d DeValue<'d>)> {
        self.members
            .iter()
            .find(|(key, _)| key.get_ref() == name)
            .map(|(_, value)| (value.span().start, value.get_ref()))
    }
}

fn integer(value: &DeValue<'_>) -> Option<i64> {
    let DeValue::Integer(number) = value else {
        return None;
    };
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

/// The beginning of a name from the file, so that a message stays one short line.
struct Short<'a>(&'a str);

impl Short<'_> {
    const CHARS_MAX: usize = 64;

    fn cut(&self) -> String {
        let cut: String = self.0.chars().take(Self::CHARS_MAX).collect();
        let dots = if cut.len() < self.0.len() { "…" } else { "" };
        format!("{cut}{dots}")
    }
}

impl fmt::Debug for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.cut(), f)
    }
}

impl fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cut())
    }
}

impl RawKms<'_> {
    /// Fetches what the config names.
    ///
    /// # Errors
    /// All that cannot be had.
    fn resolve<S: Strings>(self, files: &mut Files<'_, S>) -> Result<KmsConfigDoc, Vec<String>> {
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
