//! Logging configurations in the proxy's own TOML file: a tenant's `logging` table, in the form that is sealed for a broker.
//!
//! ```toml
//! [[tenant]]
//! id = "acme"
//! logging = { type = "SPLUNK", hecUrl = "https://…", token = { env = "ACME_HEC_TOKEN" } }
//! ```
//!
//! A secret may stand in a variable (`{ env = "…" }`) or in a file (`{ file = "…" }`, relative to this one), as everywhere
//! in that file. Everything else in it is the proxy's, and is not looked at.

use std::{
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde_json::{Map, Value as Json};
use sha2::{Digest as _, Sha256};
use toml::Value as Toml;
use tsp_wire::TenantId;
use zeroize::Zeroizing;

use super::Look;
use crate::routes::TenantConfig;

/// How often the file is looked at.
pub(super) const CHECK_EVERY: Duration = Duration::from_secs(1);

/// Largest file, in bytes, as the proxy has it; and largest file with one secret.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// How long an unchanged file is believed to be unchanged in what it names, too.
const REREAD_EVERY: Duration = Duration::from_secs(60);

/// Reads the file whenever it has changed, and now and then because of the files that it names.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    seen: Option<(SystemTime, u64)>,
    read: Option<std::time::Instant>,
    good: Option<[u8; 32]>,
}

impl FileSource {
    /// The file at `path`.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            seen: None,
            read: None,
            good: None,
        }
    }

    pub(super) fn look(&mut self) -> Result<Look, String> {
        let place = self.path.display().to_string();
        let metadata = fs::metadata(&self.path).map_err(|why| format!("{place}: {why}"))?;
        let seen = (
            metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            metadata.len(),
        );
        let now = crate::clock::monotonic();
        let fresh = self
            .read
            .is_some_and(|read| now.duration_since(read) < REREAD_EVERY);
        if self.seen == Some(seen) && fresh && self.good.is_some() {
            return Ok(Look::Same);
        }
        let text = read(&self.path, FILE_BYTES_MAX).map_err(|why| format!("{place}: {why}"))?;
        let tenants = tenants(&text, self.path.parent().unwrap_or(Path::new("")))
            .map_err(|why| format!("{place}: {why}"))?;
        (self.seen, self.read) = (Some(seen), Some(now));
        let mut digest = Sha256::new();
        for TenantConfig { tenant, logging } in &tenants {
            digest.update(tenant);
            match logging {
                None => digest.update(b"\0"),
                Some(Ok(json)) => digest.update(json.as_slice()),
                Some(Err(why)) => digest.update(why),
            }
        }
        let digest = digest.finalize().into();
        if self.good.replace(digest) == Some(digest) {
            return Ok(Look::Same);
        }
        Ok(Look::New(tenants))
    }
}

fn read(path: &Path, bytes_max: u64) -> Result<Zeroizing<String>, String> {
    let metadata = fs::metadata(path).map_err(|why| why.to_string())?;
    if !metadata.is_file() {
        return Err("is not a file".to_owned());
    }
    let mut text = Zeroizing::new(String::new());
    let file = File::open(path).map_err(|why| why.to_string())?;
    let read = file.take(bytes_max + 1).read_to_string(&mut text);
    read.map_err(|why| why.to_string())?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > bytes_max {
        return Err(format!("has more than {bytes_max} bytes"));
    }
    Ok(text)
}

/// The tenants of the file. Its form as a whole is the proxy's to judge; what is no tenant here is an error.
fn tenants(text: &str, folder: &Path) -> Result<Vec<TenantConfig>, String> {
    // The text of the error would quote the line, which may hold a secret.
    let document: toml::Table = toml::from_str(text).map_err(|why| {
        let at = why.span().map_or(0, |span| span.start);
        let line = text.get(..at).unwrap_or_default().matches('\n').count() + 1;
        format!("line {line}: {}", why.message())
    })?;
    let Some(list) = document.get("tenant") else {
        return Ok(Vec::new());
    };
    let list = list.as_array().ok_or("tenant is not a list of tables")?;
    let mut tenants = Vec::with_capacity(list.len());
    for (index, tenant) in list.iter().enumerate() {
        let id = tenant.get("id").and_then(Toml::as_str);
        let id = id.filter(|id| TenantId::is_valid(id));
        let id = id.ok_or_else(|| format!("tenant {}: it has no valid id", index + 1))?;
        let logging = tenant.get("logging").map(|logging| {
            let logging = logging.as_table().ok_or("logging is not a table")?;
            let json = object(logging, folder)?;
            let json = serde_json::to_vec(&json).map_err(|why| why.to_string())?;
            Ok(Zeroizing::new(json))
        });
        tenants.push(TenantConfig {
            tenant: id.to_owned(),
            logging,
        });
    }
    Ok(tenants)
}

fn object(table: &toml::Table, folder: &Path) -> Result<Map<String, Json>, String> {
    let member = |(name, value): (&String, &Toml)| {
        let value = json(value, folder).map_err(|why| format!("{name}: {why}"))?;
        Ok((name.clone(), value))
    };
    table.iter().map(member).collect()
}

fn json(value: &Toml, folder: &Path) -> Result<Json, String> {
    Ok(match value {
        Toml::String(text) => Json::from(text.as_str()),
        Toml::Integer(number) => Json::from(*number),
        Toml::Float(number) => Json::from(*number),
        Toml::Boolean(value) => Json::from(*value),
        Toml::Datetime(time) => Json::from(time.to_string()),
        Toml::Array(values) => {
            let values = values.iter().map(|value| json(value, folder));
            Json::Array(values.collect::<Result<_, _>>()?)
        }
        Toml::Table(table) => match elsewhere(table) {
            Some(Elsewhere::Env(name)) => {
                let value = std::env::var(name).unwrap_or_default();
                match value.trim() {
                    "" => return Err(format!("the environment variable {name} is not set")),
                    value => Json::from(value),
                }
            }
            Some(Elsewhere::File(path)) => {
                let path = folder.join(path);
                let text = read(&path, SECRET_BYTES_MAX);
                let text = text.map_err(|why| format!("{} {why}", path.display()))?;
                Json::from(text.trim())
            }
            None => Json::Object(object(table, folder)?),
        },
    })
}

/// Where a value is that does not stand in the file itself.
enum Elsewhere<'a> {
    Env(&'a str),
    File(&'a str),
}

fn elsewhere(table: &toml::Table) -> Option<Elsewhere<'_>> {
    let mut members = table.iter();
    let (Some((name, Toml::String(value))), None) = (members.next(), members.next()) else {
        return None;
    };
    match name.as_str() {
        "env" => Some(Elsewhere::Env(value)),
        "file" => Some(Elsewhere::File(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenants_logging_table_becomes_the_json_of_a_configuration() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("token"), " canary \n").unwrap();
        let text = r#"
            version = 1
            [[tenant]]
            id = "acme"
            assignments = [ { kms = 1 } ]
            logging = { type = "SPLUNK", token = { file = "token" }, headers = { a = "b" }, tls = true, n = [1] }
            [[tenant]]
            id = "globex"
            [[tenant]]
            id = "initech"
            logging = { type = "SPLUNK", token = { file = "nowhere" } }
        "#;
        let tenants = tenants(text, folder.path()).unwrap();
        let json: Json =
            serde_json::from_slice(tenants[0].logging.as_ref().unwrap().as_ref().unwrap()).unwrap();
        let expected = serde_json::json!({
            "type": "SPLUNK", "token": "canary", "headers": {"a": "b"}, "tls": true, "n": [1],
        });
        assert_eq!(json, expected);
        assert!(tenants[1].logging.is_none());
        let why = tenants[2].logging.as_ref().unwrap().as_ref().unwrap_err();
        assert!(
            why.starts_with("token: ") && why.contains("nowhere"),
            "{why}"
        );
    }

    #[test]
    fn a_change_is_noticed_and_a_mistake_quotes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tenants.toml");
        let mut source = FileSource::new(path.clone());
        assert!(source.look().is_err());
        fs::write(&path, "[[tenant]]\nid = \"a\"\n").unwrap();
        assert!(matches!(source.look(), Ok(Look::New(tenants)) if tenants.len() == 1));
        assert!(matches!(source.look(), Ok(Look::Same)));
        fs::write(
            &path,
            "[[tenant]]\nid = \"a\"\nlogging = { token = \"canary\" ",
        )
        .unwrap();
        let why = source.look().unwrap_err();
        assert!(!why.contains("canary"), "{why}");
        fs::write(&path, "[[tenant]]\nid = \"a\"\n[[tenant]]\nid = \"b\"\n").unwrap();
        assert!(matches!(source.look(), Ok(Look::New(tenants)) if tenants.len() == 2));
    }
}
