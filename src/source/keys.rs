//! The API keys that applications may present: those of the environment, and those that a file lists by digest.
//!
//! ```toml
//! version = 1
//! [keys]
//! billing = { sha256 = "9f86…" }
//! search = { sha256 = "2c26…", tenants = ["acme"], operations = ["document/unwrap"], expires = 2027-01-01T00:00:00Z }
//! ```
//!
//! One line a key, named by whoever uses it, so that a key can be appended with `>>` and no name is given twice. The file
//! holds no secret. It is one document with one author: any mistake makes all of it unusable, and the last good state stays
//! in force. No problem quotes a value: somebody may have put a key where its digest belongs.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use toml::{Table, Value};
use tsp_shards::{ApiKeys, HashedKey, KeyScope, KeyUses};
use tsp_wire::{ApiKey, TenantId};

use super::{Ask, Polled, file::Watch};
use crate::config::{PROBLEMS_MAX, Problem};

/// Largest file of API keys, in bytes.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Most keys in a file. Each has two series in the metrics.
pub(crate) const KEYS_MAX: usize = 256;

/// Longest name of a key, in bytes: it is a label in the metrics.
const LABEL_BYTES_MAX: usize = 64;

/// Most tenants that one key is limited to.
const TENANTS_MAX: usize = 10_000;

/// What `API_KEY_2` is called where keys are told apart. No key of a file may have this name.
pub(crate) const SECOND: &str = "API_KEY_2";

/// The members of a key.
const MEMBERS: [&str; 4] = ["sha256", "tenants", "operations", "expires"];

/// What is in force.
#[derive(Debug)]
pub(crate) struct Keys {
    pub(crate) api_keys: Arc<ApiKeys>,
    /// How many the file lists.
    pub(crate) listed: usize,
    /// By name: what counts when each is used. `API_KEY` is not among them.
    pub(crate) uses: Vec<(String, Arc<KeyUses>)>,
}

/// Looks at the file, and knows the keys of the environment.
#[derive(Debug)]
pub(crate) struct KeysSource {
    first: Option<Arc<ApiKey>>,
    second: Option<Arc<ApiKey>>,
    file: Option<(PathBuf, Watch)>,
    shards: usize,
    /// By name, so that a key that stays keeps its count.
    uses: BTreeMap<String, Arc<KeyUses>>,
    /// What the file's last good state listed.
    listed: Vec<Listed>,
    /// Something other than the file has changed.
    changed: bool,
}

/// A key as the file has it.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    label: String,
    digest: [u8; 32],
    expires: Option<SystemTime>,
    scope: Option<Arc<KeyScope>>,
}

impl KeysSource {
    /// Keys for so many shards: `API_KEY`, `API_KEY_2`, and those that the file lists.
    pub(crate) fn new(
        first: Option<Arc<ApiKey>>,
        second: Option<ApiKey>,
        file: Option<PathBuf>,
        shards: usize,
    ) -> Self {
        Self {
            first,
            second: second.map(Arc::new),
            file: file.map(|path| (path, Watch::default())),
            shards,
            uses: BTreeMap::new(),
            listed: Vec::new(),
            changed: true,
        }
    }

    /// Whether a file lists further keys.
    pub(crate) fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// Replaces `API_KEY` and `API_KEY_2`.
    pub(crate) fn give(&mut self, first: Option<ApiKey>, second: Option<ApiKey>) {
        let same = |old: &Option<Arc<ApiKey>>, new: &Option<ApiKey>| match (old, new) {
            (None, None) => true,
            (Some(old), Some(new)) => old.matches(new.expose().as_bytes()),
            (Some(_), None) | (None, Some(_)) => false,
        };
        self.changed |= !same(&self.first, &first) || !same(&self.second, &second);
        (self.first, self.second) = (first.map(Arc::new), second.map(Arc::new));
    }

    /// Looks at the file, and reads it if it has changed or `ask` says so.
    pub(crate) fn poll(&mut self, ask: Ask, now: SystemTime) -> Polled<Keys> {
        let polled = match &mut self.file {
            None => Polled::Same,
            Some((path, watch)) => {
                watch.poll_file(path, FILE_BYTES_MAX, (ask, now), |text| match text {
                    Ok(text) => parse(path, &text),
                    Err(why) => Err(vec![Problem::new(path.display().to_string(), why)]),
                })
            }
        };
        match polled {
            Polled::New(listed) if listed.is_empty() && self.first.is_none() => {
                let path = self
                    .file
                    .as_ref()
                    .map(|(path, _)| path.display().to_string());
                let why = "lists no key, and API_KEY is not set: nobody could call";
                Polled::Failed(vec![Problem::new(path.unwrap_or_default(), why)])
            }
            Polled::New(listed) => {
                self.listed = *listed;
                Polled::New(Box::new(self.in_force()))
            }
            other if self.changed => match other {
                Polled::Failed(problems) => Polled::Failed(problems),
                Polled::Same | Polled::New(_) | Polled::StillFailed | Polled::NotAsked => {
                    Polled::New(Box::new(self.in_force()))
                }
            },
            Polled::Same => Polled::Same,
            Polled::Failed(problems) => Polled::Failed(problems),
            Polled::StillFailed => Polled::StillFailed,
            Polled::NotAsked => Polled::NotAsked,
        }
    }

    fn in_force(&mut self) -> Keys {
        self.changed = false;
        let shards = self.shards;
        let mut names: Vec<_> = self.listed.iter().map(|key| key.label.clone()).collect();
        names.extend(self.second.as_ref().map(|_| SECOND.to_owned()));
        self.uses.retain(|name, _| names.contains(name));
        let mut uses_of = |name: &str| {
            let uses = self.uses.entry(name.to_owned());
            Arc::clone(uses.or_insert_with(|| Arc::new(KeyUses::new(shards))))
        };
        let hashed = self.listed.iter().map(|key| HashedKey {
            digest: key.digest,
            expires: key.expires,
            scope: key.scope.clone(),
            uses: uses_of(&key.label),
        });
        let hashed: Vec<_> = hashed.collect();
        let second = self.second.clone().map(|key| (key, uses_of(SECOND)));
        Keys {
            listed: hashed.len(),
            api_keys: Arc::new(ApiKeys::of(self.first.clone(), second, hashed)),
            uses: self.uses.clone().into_iter().collect(),
        }
    }
}

/// Reads the file's text.
pub(crate) fn parse(path: &Path, text: &str) -> Result<Vec<Listed>, Vec<Problem>> {
    let place = path.display();
    let table: Table = text.parse().map_err(|why: toml::de::Error| {
        let before = why.span().and_then(|span| text.get(..span.start));
        let line = before.unwrap_or_default().matches('\n').count() + 1;
        vec![Problem::new(format!("{place}:{line}"), why.message())]
    })?;
    let mut problems = Vec::new();
    let mut problem = |what: &str, why: &str| {
        let place = match what {
            "" => place.to_string(),
            what => format!("{place}, {what}"),
        };
        problems.push(Problem::new(place, why));
    };
    if table.get("version").and_then(Value::as_integer) != Some(1) {
        problem("", "version = 1 is missing");
    }
    let others = table
        .keys()
        .filter(|name| !["version", "keys"].contains(&name.as_str()));
    if others.count() > 0 {
        problem(
            "",
            "has members other than version and keys; keys stand below [keys]",
        );
    }
    let empty = Table::new();
    let keys = match table.get("keys") {
        None => &empty,
        Some(Value::Table(keys)) => keys,
        Some(_) => {
            problem("", "keys is not a table");
            &empty
        }
    };
    if keys.len() > KEYS_MAX {
        problem("", &format!("lists more than {KEYS_MAX} keys"));
    }
    let mut listed: Vec<Listed> = Vec::new();
    for (label, value) in keys.iter().take(KEYS_MAX) {
        match key(label, value) {
            Ok(key) if listed.iter().any(|known| known.digest == key.digest) => {
                problem(&shown(label), "is the same key as another one");
            }
            Ok(key) => listed.push(key),
            Err(why) => problem(&shown(label), &why),
        }
    }
    if problems.is_empty() {
        return Ok(listed);
    }
    problems.truncate(PROBLEMS_MAX);
    Err(problems)
}

/// A name that may be anything, such as a key.
fn shown(label: &str) -> String {
    match check_label(label) {
        Ok(()) => format!("key {label}"),
        Err(_) => "a key".to_owned(),
    }
}

/// Whether a key can have this name.
pub(crate) fn check_label(label: &str) -> Result<(), &'static str> {
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if label.is_empty() || label.len() > LABEL_BYTES_MAX || !label.bytes().all(sound) {
        return Err("the name of a key has 1 to 64 letters, digits, - and _");
    }
    match label {
        SECOND => Err("is what the variable is called"),
        _ => Ok(()),
    }
}

fn key(label: &str, value: &Value) -> Result<Listed, String> {
    check_label(label)?;
    let table = value
        .as_table()
        .ok_or("is not a table such as { sha256 = \"…\" }")?;
    if table.keys().any(|name| !MEMBERS.contains(&name.as_str())) {
        return Err(format!("has members other than {}", MEMBERS.join(", ")));
    }
    let digest = table.get("sha256").and_then(Value::as_str);
    let digest = digest
        .and_then(from_hex)
        .ok_or("sha256 is not the 64 hexadecimal digits that `tsp api-key create` printed")?;
    let expires = match table.get("expires") {
        None => None,
        Some(value) => {
            Some(expiry(value).ok_or("expires is not a time such as 2027-01-01T00:00:00Z")?)
        }
    };
    let tenants = match table.get("tenants") {
        None => None,
        Some(value) => {
            let tenants = texts(value).filter(|ids| ids.len() <= TENANTS_MAX);
            let ids = tenants.and_then(|ids| ids.iter().map(|id| TenantId::new(id)).collect());
            let why = format!("tenants is not a list of one to {TENANTS_MAX} ids of tenants");
            Some(ids.ok_or(why)?)
        }
    };
    let operations = match table.get("operations") {
        None => None,
        Some(value) => Some(texts(value).ok_or_else(bad_operations)?),
    };
    let scope = if tenants.is_some() || operations.is_some() {
        let scope = KeyScope::new(tenants, operations.as_deref());
        Some(Arc::new(scope.map_err(|_| bad_operations())?))
    } else {
        None
    };
    Ok(Listed {
        label: label.to_owned(),
        digest,
        expires,
        scope,
    })
}

/// What operations have to be.
fn bad_operations() -> String {
    let all: Vec<_> = KeyScope::operations().collect();
    format!("operations is not a list of some of {}", all.join(", "))
}

/// The texts of a list that has some.
fn texts(value: &Value) -> Option<Vec<String>> {
    let all = value.as_array().filter(|list| !list.is_empty())?.iter();
    all.map(|text| text.as_str().map(str::to_owned)).collect()
}

fn expiry(value: &Value) -> Option<SystemTime> {
    moment(&value.as_datetime()?.to_string())
}

/// A time such as `2027-01-01T00:00:00Z`.
pub(crate) fn moment(text: &str) -> Option<SystemTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok().map(Into::into)
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if text.len() != 2 * digest.len() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (place, at) in digest.iter_mut().zip((0..text.len()).step_by(2)) {
        *place = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;

    const ONE: &str = "version = 1\n[keys]\n\
        billing = { sha256 = \"9F86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\" }\n";

    fn later() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40)
    }

    fn told(text: &str) -> Vec<String> {
        let problems = parse(Path::new("keys.toml"), text).unwrap_err();
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_key_has_a_digest_and_perhaps_a_scope_and_an_end() {
        let text = format!(
            "{ONE}search = {{ sha256 = \"{}\", tenants = [\"acme\"], operations = [\"document/unwrap\"], \
             expires = 2027-01-01T00:00:00+01:00 }}\n",
            "0".repeat(64)
        );
        let listed = parse(Path::new("keys.toml"), &text).unwrap();
        let [billing, search] = listed.as_slice() else {
            panic!("{listed:?}")
        };
        assert_eq!(
            (billing.label.as_str(), billing.digest[0]),
            ("billing", 0x9f)
        );
        assert!(billing.scope.is_none() && billing.expires.is_none());
        assert_eq!(search.expires, moment("2026-12-31T23:00:00Z"));
        assert!(search.scope.is_some() && search.expires.is_some());
    }

    #[test]
    fn every_mistake_is_told_and_no_value_is_quoted() {
        let digest = format!("sha256 = \"{}\"", "1".repeat(64));
        let text = format!(
            "version = 2\nother = 1\n[keys]\na = \"canary-key\"\nb = {{ sha256 = \"canary-key\" }}\n\
             c = {{ {digest}, tenants = [] }}\nd = {{ {digest}, operations = [\"canary-key\"] }}\n\
             e = {{ {digest}, expires = 2027-01-01 }}\nf = {{ {digest} }}\ng = {{ {digest} }}\n\
             h = {{ {digest}, canary-key = 1 }}\nAPI_KEY_2 = {{ {digest} }}\n\"canary key\" = 1\n"
        );
        let problems = told(&text);
        assert_eq!(problems.len(), 11, "{problems:#?}");
        assert!(!problems.concat().contains("canary"), "{problems:#?}");
        let syntax = told("version = 1\n[keys\nx = canary-key\n");
        assert!(syntax[0].starts_with("keys.toml:2: "), "{syntax:?}");
        assert!(!syntax.concat().contains("canary"), "{syntax:?}");
        assert_eq!(told("").len(), 1, "an empty file is a mistake");
        let many: String = (0..=KEYS_MAX)
            .map(|number| format!("k{number} = {{ sha256 = \"{number:064x}\" }}\n"))
            .collect();
        assert!(told(&format!("version = 1\n[keys]\n{many}"))[0].contains("more than 256"));
    }

    #[test]
    fn a_file_is_read_again_when_it_changes_and_a_bad_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        fs::write(&path, ONE).unwrap();
        let second = ApiKey::new("0123456789abcdef".to_owned());
        let mut source = KeysSource::new(None, second, Some(path.clone()), 1);
        let Polled::New(keys) = source.poll(Ask::Always, later()) else {
            panic!("the first state")
        };
        let names = |keys: &Keys| {
            let names = keys.uses.iter().map(|(name, _)| name.clone());
            names.collect::<Vec<_>>()
        };
        assert_eq!(
            (keys.listed, names(&keys)),
            (1, vec![SECOND.to_owned(), "billing".to_owned()])
        );
        assert!(matches!(source.poll(Ask::IfChanged, later()), Polled::Same));
        for bad in ["version = 1\n[keys]\n", "nonsense"] {
            fs::write(&path, bad).unwrap();
            let polled = source.poll(Ask::IfChanged, later());
            assert!(matches!(polled, Polled::Failed(_)), "{polled:?}");
        }
        fs::write(&path, ONE.replace("billing", "orders")).unwrap();
        source.give(ApiKey::new("first-0123456789".to_owned()), None);
        let Polled::New(keys) = source.poll(Ask::IfChanged, later()) else {
            panic!("a new state")
        };
        assert_eq!(names(&keys), ["orders"]);
        source.give(ApiKey::new("first-0123456789".to_owned()), None);
        assert!(matches!(source.poll(Ask::IfChanged, later()), Polled::Same));
    }
}
