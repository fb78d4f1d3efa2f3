//! `tsp secrets`: what an operator does with tenant secrets while proxies run.
//!
//! It works on the file that the proxies share, under the same lock. They see a change within a second.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde_json::{Value, json};
use time::OffsetDateTime;
use tsp_wire::derive::{RotationStatus, SecretType};

use super::{
    Place, Record, Refusal, Secrets,
    file::{Edited, SecretsFile, render, rfc3339},
};
use crate::{
    RunError,
    config::Problem,
    source::file::{config_file, secrets_file_of},
};

/// What `tsp secrets` is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretsAction {
    /// Shows them.
    List,
    /// Begins to replace a current secret.
    RotateBegin,
    /// Ends that.
    RotateCommit,
    /// Writes a backup.
    Export,
}

/// Options of `tsp secrets`.
#[derive(Debug)]
pub struct SecretsOptions {
    /// What to do.
    pub action: SecretsAction,
    /// The configuration file; else the one that `TSP_CONFIG_FILE` names.
    pub config: Option<PathBuf>,
    /// Only this tenant's.
    pub tenant: Option<String>,
    /// Only those of this path.
    pub path: Option<String>,
    /// Only those of this type: `search`, `deterministic` or `vector`.
    pub secret_type: Option<String>,
    /// Report in JSON.
    pub json: bool,
}

/// Does what `options` say, and gives what to print on standard output.
///
/// # Errors
/// [`RunError::Configuration`], if it cannot be done.
pub fn secrets(options: &SecretsOptions) -> Result<String, RunError> {
    run(options).map_err(RunError::Configuration)
}

fn run(options: &SecretsOptions) -> Result<String, Vec<Problem>> {
    let file = secrets_file_of(&config_file(options.config.as_deref())?)?;
    let wanted = Wanted::new(options)?;
    match options.action {
        SecretsAction::List => {
            let secrets = file.load().map_err(|problem| vec![problem])?;
            let records: Vec<_> = wanted.of(&secrets).collect();
            Ok(if options.json {
                let records: Vec<_> = records.into_iter().map(to_json).collect();
                format!("{:#}\n", Value::from(records))
            } else {
                table(&records)
            })
        }
        SecretsAction::Export => {
            let secrets = file.load().map_err(|problem| vec![problem])?;
            String::from_utf8(render(wanted.of(&secrets)))
                .map_err(|why| vec![Problem::new("export", why.to_string())])
        }
        SecretsAction::RotateBegin => rotate(&file, &wanted, options, Secrets::begin_rotation),
        SecretsAction::RotateCommit => rotate(&file, &wanted, options, Secrets::commit_rotation),
    }
}

/// Which secrets the options choose.
struct Wanted {
    tenant: Option<String>,
    path: Option<String>,
    secret_type: Option<SecretType>,
}

impl Wanted {
    fn new(options: &SecretsOptions) -> Result<Self, Vec<Problem>> {
        let secret_type = options.secret_type.as_deref().map(|text| {
            SecretType::from_text(text).ok_or_else(|| {
                let why = format!("{text:?} is none of search, deterministic and vector");
                vec![Problem::new("--type", why)]
            })
        });
        Ok(Self {
            tenant: options.tenant.clone(),
            path: options.path.clone(),
            secret_type: secret_type.transpose()?,
        })
    }

    fn of<'a>(&'a self, secrets: &'a Secrets) -> impl Iterator<Item = &'a Record> {
        fn fits<T: PartialEq>(wanted: Option<&T>, found: &T) -> bool {
            wanted.is_none_or(|wanted| wanted == found)
        }
        secrets.records().iter().filter(|record| {
            fits(self.tenant.as_ref(), &record.place.tenant)
                && fits(self.path.as_ref(), &record.place.path)
                && fits(self.secret_type.as_ref(), &record.place.secret_type)
        })
    }

    /// The one place that they choose.
    fn place(&self, secrets: &Secrets) -> Result<Place, String> {
        let mut places: Vec<_> = self.of(secrets).map(|record| &record.place).collect();
        places.sort_by_key(|place| place.secret_type);
        places.dedup();
        match places.as_slice() {
            [place] => Ok((*place).clone()),
            [] => Err("no such tenant secret; `tsp secrets list` shows those there are".to_owned()),
            [_, ..] => {
                Err("it has secrets of more than one type: say which with --type".to_owned())
            }
        }
    }
}

type Rotation = fn(&mut Secrets, &Place, OffsetDateTime) -> Result<Record, Refusal>;

fn rotate(
    file: &SecretsFile,
    wanted: &Wanted,
    options: &SecretsOptions,
    rotation: Rotation,
) -> Result<String, Vec<Problem>> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the times in the file are the machine's"
    )]
    let now = OffsetDateTime::from(SystemTime::now());
    let waits = |lock: &Path| {
        let lock = lock.display();
        eprintln!("tsp: another process has {lock} locked; waiting for it");
    };
    let what = || {
        let tenant = wanted.tenant.as_deref().unwrap_or_default();
        let path = wanted.path.as_deref().unwrap_or_default();
        format!("tenant {tenant:?}, path {path:?}")
    };
    let rotated = file.update(waits, |secrets| {
        let problem = |why| Problem::new(what(), why);
        let place = wanted.place(secrets).map_err(problem)?;
        let rotated = rotation(secrets, &place, now).map_err(|why| problem(why.to_string()))?;
        Ok((rotated, Edited::Yes))
    });
    let rotated = rotated.map_err(|problem| vec![problem])?;
    if options.json {
        return Ok(format!("{:#}\n", to_json(&rotated)));
    }
    let Record {
        id, place, status, ..
    } = &rotated;
    let next = match status {
        RotationStatus::InRotation => {
            "The next derivation for this path makes the new current secret. Let the application encrypt anew what the \
             old one encrypted, then commit."
        }
        RotationStatus::Archived | RotationStatus::Current => {
            "Its keys are not handed out any more. It is kept, for data that was overlooked: see docs/recovery.md."
        }
    };
    Ok(format!("secret {id} ({place}) is {status} now. {next}\n"))
}

/// Everything but the wrapped secret.
fn to_json(record: &Record) -> Value {
    json!({
        "id": record.id.number(),
        "tenant": record.place.tenant,
        "type": record.place.secret_type.as_str(),
        "path": record.place.path,
        "status": record.status.as_str(),
        "kms": record.kms(),
        "created": rfc3339(record.created),
        "changed": rfc3339(record.changed),
    })
}

const COLUMNS: [&str; 8] = [
    "id", "tenant", "type", "path", "status", "kms", "created", "changed",
];

fn table(records: &[&Record]) -> String {
    if records.is_empty() {
        return "no tenant secrets\n".to_owned();
    }
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    rows.extend(records.iter().map(|record| {
        let kms = record
            .kms()
            .map_or_else(|| "?".to_owned(), |id| id.to_string());
        [
            record.id.to_string(),
            record.place.tenant.escape_debug().to_string(),
            record.place.secret_type.to_string(),
            // In quotes, since it may be empty.
            format!("{:?}", record.place.path),
            record.status.to_string(),
            kms,
            rfc3339(record.created),
            rfc3339(record.changed),
        ]
    }));
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..COLUMNS.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a string cannot fail, here and below.
            let _ = write!(line, "{cell:width$}  ");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::secrets::{
        Taken,
        file::parse,
        tests::{at, offer},
    };

    struct Kept {
        folder: TempDir,
    }

    impl Kept {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::write(
                folder.path().join("tenants.toml"),
                "version = 1\nsecrets_file = \"kept\"\n",
            )
            .unwrap();
            Self { folder }
        }

        fn file(&self) -> SecretsFile {
            SecretsFile::new(self.folder.path().join("kept"))
        }

        /// As a derivation does, at a whole second.
        fn create(&self, tenant: &str, secret_type: SecretType, path: &str) -> u64 {
            let (mut offer, _) = offer(tenant, path, b"blob");
            offer.secret_type = secret_type;
            let created = self.file().update(
                |_| panic!("nobody has it locked"),
                |secrets| {
                    let (doc, how) = secrets.take(&offer, at(1_700_000_000)).unwrap();
                    assert_eq!(how, Taken::New);
                    Ok((doc.id, Edited::Yes))
                },
            );
            created.unwrap()
        }

        fn run(&self, action: SecretsAction, words: [Option<&str>; 3]) -> Result<String, String> {
            self.run_with(action, words, false)
        }

        fn run_with(
            &self,
            action: SecretsAction,
            [tenant, path, secret_type]: [Option<&str>; 3],
            json: bool,
        ) -> Result<String, String> {
            let options = SecretsOptions {
                action,
                config: Some(self.folder.path().join("tenants.toml")),
                tenant: tenant.map(str::to_owned),
                path: path.map(str::to_owned),
                secret_type: secret_type.map(str::to_owned),
                json,
            };
            secrets(&options).map_err(|why| why.to_string())
        }
    }

    #[test]
    fn a_list_shows_what_there_is() {
        use SecretType::{Deterministic, Vector};
        let kept = Kept::new();
        let list = |words| kept.run(SecretsAction::List, words).unwrap();
        assert_eq!(list([None; 3]), "no tenant secrets\n");
        let first = kept.create("acme", Deterministic, "customers");
        let second = kept.create("globex", Vector, "");
        kept.create("globex", Vector, "\u{7} é");
        let text = list([None; 3]);
        let rows: Vec<Vec<_>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let time = "2023-11-14T22:13:20Z";
        assert_eq!(rows[0], COLUMNS);
        let (first, second) = (first.to_string(), second.to_string());
        assert_eq!(
            rows[1],
            [
                &first,
                "acme",
                "deterministic",
                "\"customers\"",
                "current",
                "41",
                time,
                time
            ]
        );
        assert_eq!(
            rows[2],
            [
                &second, "globex", "vector", "\"\"", "current", "41", time, time
            ]
        );
        assert!(text.contains(r#""\u{7} é""#), "{text}");
        assert_eq!(list([Some("acme"), None, None]).lines().count(), 2);
        assert_eq!(list([None, Some(""), None]).lines().count(), 2);
        assert_eq!(list([None, None, Some("search")]), "no tenant secrets\n");
        let json = kept.run_with(SecretsAction::List, [Some("acme"), None, None], true);
        let json: Value = serde_json::from_str(&json.unwrap()).unwrap();
        assert_eq!(
            json,
            json!([{
                "id": first.parse::<u64>().unwrap(), "tenant": "acme", "type": "deterministic", "path": "customers",
                "status": "current", "kms": 41, "created": time, "changed": time,
            }])
        );
        let wrong = kept.run(SecretsAction::List, [None, None, Some("Vector")]);
        assert!(wrong.unwrap_err().contains("--type"));
    }

    #[test]
    fn a_rotation_goes_its_way_and_no_other() {
        use SecretsAction::{RotateBegin, RotateCommit};
        let kept = Kept::new();
        let customers = [Some("acme"), Some("customers"), None];
        let nothing = kept.run(RotateBegin, customers).unwrap_err();
        assert!(nothing.contains("no such tenant secret"), "{nothing}");
        let old = kept.create("acme", SecretType::Deterministic, "customers");
        let begun = kept.run(RotateBegin, customers).unwrap();
        assert!(
            begun.starts_with(&format!(
                "secret {old} (tenant \"acme\", deterministic, path \"customers\") is in-rotation now."
            )),
            "{begun}"
        );
        let again = kept.run(RotateBegin, customers).unwrap_err();
        assert!(again.contains("in rotation already"), "{again}");
        let early = kept.run(RotateCommit, customers).unwrap_err();
        assert!(early.contains("no new current secret"), "{early}");

        let new = kept.create("acme", SecretType::Deterministic, "customers");
        assert_ne!(old, new);
        let committed = kept.run_with(RotateCommit, customers, true).unwrap();
        let committed: Value = serde_json::from_str(&committed).unwrap();
        assert_eq!(
            (&committed["id"], &committed["status"]),
            (&json!(old), &json!("archived"))
        );
        let again = kept.run(RotateCommit, customers).unwrap_err();
        assert!(again.contains("no rotation is under way"), "{again}");

        kept.create("acme", SecretType::Vector, "customers");
        let which = kept.run(RotateBegin, customers).unwrap_err();
        assert!(which.contains("--type"), "{which}");
        let vector = [Some("acme"), Some("customers"), Some("vector")];
        assert!(kept.run(RotateBegin, vector).is_ok());
    }

    #[test]
    fn an_export_is_a_file_of_secrets_itself() {
        let kept = Kept::new();
        kept.create("acme", SecretType::Search, "");
        kept.create("globex", SecretType::Search, "");
        let all = kept.run(SecretsAction::Export, [None; 3]).unwrap();
        assert_eq!(all.as_bytes(), fs::read(kept.file().path()).unwrap());
        let acme = kept.run(SecretsAction::Export, [Some("acme"), None, None]);
        let acme = parse(acme.unwrap().as_bytes()).unwrap();
        let [one] = acme.records() else {
            panic!("{acme:?}")
        };
        assert_eq!(one.place.tenant, "acme");
    }

    #[test]
    fn what_is_said_of_kmss_does_not_matter_and_what_is_wrong_does() {
        let kept = Kept::new();
        let config = kept.folder.path().join("tenants.toml");
        fs::write(&config, "version = 1\nkms = 3\n").unwrap();
        assert!(kept.run(SecretsAction::List, [None; 3]).is_ok());
        for (text, why) in [
            ("version = ", "tenants.toml"),
            ("secrets_file = 3", "secrets_file"),
            ("secrets_file = \"\"", "not empty"),
        ] {
            fs::write(&config, text).unwrap();
            let found = kept.run(SecretsAction::List, [None; 3]).unwrap_err();
            assert!(found.contains(why), "{found}");
        }
    }
}
