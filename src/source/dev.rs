//! `tsp dev`: made-up tenants on the built-in local KMS, so that the first minute needs no configuration.
//!
//! The keys are random and live in memory, and so do the tenant secrets that they wrap: with the process goes every key,
//! and with the keys everything that was encrypted under them. `--state FILE` keeps them instead, in a file of the same format as any configuration file,
//! which can be edited while `tsp dev` runs, and served by `tsp` later.

use std::{
    fmt::Write as _,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use crossbeam_channel::Receiver;
use tsp_wire::{
    Secret,
    snapshot::{AssignmentDoc, KmsConfigDoc, KmsKeyDoc, TenantDoc, TenantSecretDoc},
};
use zeroize::Zeroizing;

use super::{Loaded, Polled};
use crate::{config::Problem, secrets::keeper::Memory};

/// Size of a LOCAL key, in bytes.
const KEY_BYTES: usize = 32;

/// Size of a generated API key before base64, in bytes. Some published SDKs accept exactly this size.
const API_KEY_BYTES: usize = 12;

/// Only the owner may read the state: it holds keys.
const STATE_MODE: u32 = 0o600;

/// Ids of the made-up KMS configs.
const CONFIGS: [i64; 5] = [1, 2, 3, 4, LEASED_CONFIG];

/// The one of them from which keys may be leased.
const LEASED_CONFIG: i64 = 5;

/// A made-up tenant, and its KMS configs: id, active, primary.
struct DevTenant {
    id: &'static str,
    assignments: &'static [(i64, bool, bool)],
}

const TENANTS: [DevTenant; 5] = [
    DevTenant {
        id: "tenant-a",
        assignments: &[(1, true, true)],
    },
    DevTenant {
        id: "tenant-b",
        assignments: &[(2, true, true)],
    },
    DevTenant {
        id: "tenant-no-primary",
        assignments: &[(3, true, false)],
    },
    // Another active config, so that the answer is "disabled" and not "no such tenant".
    DevTenant {
        id: "tenant-disabled",
        assignments: &[(1, false, false), (4, true, false)],
    },
    DevTenant {
        id: "tenant-leased",
        assignments: &[(LEASED_CONFIG, true, true)],
    },
];

/// The made-up tenants, with keys that nobody else has. Gives its state once; only their secrets grow in number.
#[derive(Debug)]
pub struct DevSource {
    state: Option<Box<Loaded>>,
    secrets: Vec<TenantSecretDoc>,
    /// Brings each new one once.
    created: Receiver<TenantSecretDoc>,
    store: Option<Memory>,
}

impl DevSource {
    /// Makes the tenants and their keys.
    ///
    /// # Errors
    /// If the kernel gives no random bytes.
    pub fn new() -> io::Result<Self> {
        let mut kms = Vec::with_capacity(CONFIGS.len());
        for id in CONFIGS {
            kms.push(KmsConfigDoc {
                id,
                leasing_allowed: id == LEASED_CONFIG,
                key: KmsKeyDoc::Local {
                    key: Secret::new(*random::<KEY_BYTES>()?),
                },
                endpoint: None,
                allow_insecure: false,
                ca_pem: None,
            });
        }
        let assignment = |&(kms, active, primary): &_| AssignmentDoc {
            kms,
            active,
            primary,
        };
        let tenants = TENANTS.iter().map(|tenant| TenantDoc {
            id: tenant.id.to_owned(),
            assignments: tenant.assignments.iter().map(assignment).collect(),
        });
        let loaded = Loaded {
            kms,
            tenants: tenants.collect(),
            unusable: Vec::new(),
            left_out: Vec::new(),
            allow_local: true,
            age: Duration::ZERO,
        };
        let (store, created) = Memory::new();
        Ok(Self {
            state: Some(Box::new(loaded)),
            secrets: Vec::new(),
            created,
            store: Some(store),
        })
    }

    /// The tenants at first, nothing new from then on.
    pub fn poll(&mut self) -> Polled<Loaded> {
        self.state.take().map_or(Polled::Same, Polled::New)
    }

    /// The secrets that the tenants have by now.
    pub fn poll_secrets(&mut self) -> Polled<Vec<TenantSecretDoc>> {
        let before = self.secrets.len();
        self.secrets.extend(self.created.try_iter());
        if self.secrets.len() == before {
            Polled::Same
        } else {
            Polled::New(Box::new(self.secrets.clone()))
        }
    }

    /// Where new secrets are to be stored; asked for once.
    pub(crate) fn store(&mut self) -> Option<Memory> {
        self.store.take()
    }
}

/// Ids of the made-up tenants.
pub fn tenant_ids() -> impl Iterator<Item = &'static str> {
    TENANTS.iter().map(|tenant| tenant.id)
}

/// Makes the state file with new keys, unless it exists. One that exists is never written to: whatever is wrong with
/// it, its keys may be the only ones that open somebody's data.
///
/// The file appears whole or not at all, also when two processes make it at one time: the second finds the first's.
///
/// # Errors
/// If it can be neither made nor found.
pub fn ensure_state(path: &Path) -> Result<(), Problem> {
    let problem = |error: io::Error| {
        Problem::new(
            "--state",
            format!("{} cannot be made: {error}", path.display()),
        )
    };
    match fs::metadata(path) {
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(problem(error)),
    }
    let text = state_text().map_err(problem)?;
    create_whole(path, text.as_bytes()).map_err(problem)
}

/// Whether others than its owner may read the state file.
#[must_use]
pub fn state_is_open_to_others(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o077 != 0)
}

/// A new API key: base64 of 12 random bytes, 16 characters.
///
/// # Errors
/// If the kernel gives no random bytes.
pub fn new_api_key() -> io::Result<String> {
    Ok(STANDARD.encode(random::<API_KEY_BYTES>()?.as_slice()))
}

/// The state as a configuration file.
fn state_text() -> io::Result<Zeroizing<String>> {
    // Room for all of it, so that no copy with keys is left behind by a reallocation.
    let mut text = Zeroizing::new(String::with_capacity(4096));
    text.push_str("# Made by `tsp dev --state`. Whoever has this file can decrypt; whoever loses it cannot.\n");
    text.push_str("version = 1\n");
    let write = |result: std::fmt::Result| result.map_err(io::Error::other);
    for kms in CONFIGS {
        let key = Zeroizing::new(STANDARD.encode(random::<KEY_BYTES>()?.as_slice()));
        write(write!(
            text,
            "\n[[kms]]\nid = {kms}\ntype = \"LOCAL\"\nleasing_allowed = {}\ncredentials = {{ key = \"{}\" }}\n",
            kms == LEASED_CONFIG,
            key.as_str()
        ))?;
    }
    for DevTenant { id, assignments } in &TENANTS {
        write(write!(
            text,
            "\n[[tenant]]\nid = \"{id}\"\nassignments = [\n"
        ))?;
        for (kms, active, primary) in *assignments {
            write(writeln!(
                text,
                "    {{ kms = {kms}, active = {active}, primary = {primary} }},"
            ))?;
        }
        write(writeln!(text, "]"))?;
    }
    Ok(text)
}

/// Writes a new file under another name and links it into place, which fails if there is one: then that one stays.
fn create_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let mut draft_name = name.to_owned();
    draft_name.push(format!(".{:016x}.new", u64::from_le_bytes(*random::<8>()?)));
    let draft = Draft(directory.join(draft_name));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(STATE_MODE)
        .open(&draft.0)?;
    file.write_all(content)?;
    file.sync_all()?;
    match fs::hard_link(&draft.0, path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    drop(draft);
    // So that a crash of the machine right now does not lose the name.
    fs::File::open(directory)?.sync_all()
}

/// A file that is removed in the end, however that comes.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        // If it cannot be removed, it holds a copy of keys under its owner's eyes only.
        let _ = fs::remove_file(&self.0);
    }
}

pub(crate) fn random<const N: usize>() -> io::Result<Zeroizing<[u8; N]>> {
    let mut bytes = Zeroizing::new([0; N]);
    getrandom::fill(bytes.as_mut_slice()).map_err(io::Error::other)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, thread, time::SystemTime};

    use super::*;
    use crate::{
        config::tests::Map,
        source::{Ask, file::FileSource},
    };

    fn load(path: &Path) -> Loaded {
        let mut source = FileSource::new(path.to_owned(), Map::default());
        match source.poll(Ask::IfChanged, SystemTime::UNIX_EPOCH) {
            Polled::New(loaded) => *loaded,
            other @ (Polled::Same | Polled::Failed(_) | Polled::StillFailed | Polled::NotAsked) => {
                panic!("{other:?}")
            }
        }
    }

    fn keys(loaded: &Loaded) -> Vec<[u8; 32]> {
        let key = |config: &KmsConfigDoc| {
            let KmsKeyDoc::Local { key } = &config.key else {
                panic!("not local: {config:?}")
            };
            *key.expose()
        };
        loaded.kms.iter().map(key).collect()
    }

    #[test]
    fn the_tenants_show_every_state_of_a_kms_config() {
        let mut source = DevSource::new().unwrap();
        let Polled::New(loaded) = source.poll() else {
            panic!("no tenants")
        };
        let ids: Vec<_> = loaded
            .tenants
            .iter()
            .map(|tenant| tenant.id.as_str())
            .collect();
        assert_eq!(
            ids,
            [
                "tenant-a",
                "tenant-b",
                "tenant-no-primary",
                "tenant-disabled",
                "tenant-leased"
            ]
        );
        let keys = keys(&loaded);
        assert!(
            keys.iter()
                .all(|key| keys.iter().filter(|other| *other == key).count() == 1)
        );
        assert!(matches!(source.poll(), Polled::Same));
        assert!(matches!(source.poll_secrets(), Polled::Same));
    }

    #[test]
    fn the_state_file_is_a_configuration_file_that_only_its_owner_reads() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.toml");
        ensure_state(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(!state_is_open_to_others(&path));
        assert_eq!(
            fs::read_dir(directory.path()).unwrap().count(),
            1,
            "no draft is left"
        );

        let loaded = load(&path);
        assert_eq!(loaded.tenants.len(), TENANTS.len());
        let Polled::New(fresh) = DevSource::new().unwrap().poll() else {
            panic!("no tenants")
        };
        for (kept, fresh) in loaded.tenants.iter().zip(&fresh.tenants) {
            assert_eq!(format!("{kept:?}"), format!("{fresh:?}"));
        }

        ensure_state(&path).unwrap();
        assert_eq!(
            keys(&load(&path)),
            keys(&loaded),
            "a second start keeps the keys"
        );
    }

    #[test]
    fn a_state_file_that_exists_is_never_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.toml");
        fs::write(&path, "not toml at all").unwrap();
        ensure_state(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "not toml at all");
        assert!(ensure_state(&directory.path().join("missing/state.toml")).is_err());
    }

    #[test]
    fn processes_that_race_for_the_state_file_agree_on_its_keys() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.toml");
        thread::scope(|scope| {
            let racers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        ensure_state(&path).unwrap();
                        keys(&load(&path))
                    })
                })
                .collect();
            let mut seen: Vec<_> = racers
                .into_iter()
                .map(|racer| racer.join().unwrap())
                .collect();
            seen.dedup();
            assert_eq!(seen.len(), 1);
        });
    }

    #[test]
    fn a_generated_api_key_has_16_characters() {
        let key = new_api_key().unwrap();
        assert_eq!(key.len(), 16);
        assert_eq!(STANDARD.decode(&key).unwrap().len(), 12);
        assert!(tsp_wire::ApiKey::new(key).is_some());
    }
}
