//! A service account and the API keys that came with it, as a file: `NAME=value` lines, as the broker's command line printed
//! them. What is read from it is read again when it changes, so that both are rotated without a restart.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::SystemTime,
};

use tsp_wire::{
    ApiKey,
    account::env::{
        CONFIG_BROKER_URL, SERVICE_ACCOUNT_ID, SERVICE_CONFIG_ID, SERVICE_ENCRYPTION_PRIVATE_KEY,
        SERVICE_SEGMENT_ID, SERVICE_SIGNING_PRIVATE_KEY, ServiceAccount,
    },
};
use zeroize::Zeroizing;

use super::{Ask, Polled, file::Watch};
use crate::config::{CREDENTIAL_BYTES_MAX, NotUnicode, Problem, Strings};

/// The variable that names the file.
pub(crate) const FILE: &str = "TSP_SERVICE_ACCOUNT_FILE";

/// What is read from it; all else comes from the environment.
const NAMES: [&str; 8] = [
    CONFIG_BROKER_URL,
    SERVICE_ACCOUNT_ID,
    SERVICE_CONFIG_ID,
    SERVICE_SEGMENT_ID,
    SERVICE_ENCRYPTION_PRIVATE_KEY,
    SERVICE_SIGNING_PRIVATE_KEY,
    "API_KEY",
    "API_KEY_2",
];

/// The file's values.
#[derive(Debug, Default)]
pub(crate) struct EnvFile {
    path: PathBuf,
    values: BTreeMap<&'static str, Secret>,
}

type Secret = tsp_wire::Secret<String>;

impl EnvFile {
    /// Reads a file's text. A line is empty, a remark, or `NAME=value`.
    fn parse(path: &Path, text: &str) -> Result<Self, Vec<Problem>> {
        let mut file = Self {
            path: path.to_owned(),
            values: BTreeMap::new(),
        };
        let mut problems = Vec::new();
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let place = || format!("{}:{number}", path.display());
            let known = line.split_once('=').map(|(name, value)| {
                let name = name.trim();
                (NAMES.iter().find(|known| **known == name), value.trim())
            });
            match known {
                None => problems.push(Problem::new(place(), "is not NAME=value")),
                Some((None, _)) => {
                    let names = NAMES.join(", ");
                    let why = format!("has a name that is not read from this file: {names} are");
                    problems.push(Problem::new(place(), why));
                }
                Some((Some(name), value)) => {
                    let value = Secret::new(value.to_owned());
                    if file.values.insert(name, value).is_some() {
                        problems.push(Problem::new(place(), format!("{name} is there twice")));
                    }
                }
            }
        }
        if problems.is_empty() {
            Ok(file)
        } else {
            Err(problems)
        }
    }
}

/// A file's values before those of other strings. A name that the file has is not looked for elsewhere.
pub(crate) struct WithFile<'a, S> {
    pub(crate) file: &'a EnvFile,
    pub(crate) below: &'a S,
}

impl<S: Strings> Strings for WithFile<'_, S> {
    fn get(&self, name: &str) -> Result<Option<String>, NotUnicode> {
        match self.file.values.get(name) {
            Some(value) => Ok(Some(value.expose().clone())),
            None => self.below.get(name),
        }
    }

    fn names(&self) -> Vec<String> {
        self.below.names()
    }

    fn label(&self, name: &str) -> String {
        match self.file.values.get(name) {
            Some(_) => format!("{}: {name}", self.file.path.display()),
            None => self.below.label(name),
        }
    }
}

/// What a file comes to, together with the environment.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) api_key: Option<ApiKey>,
    pub(crate) api_key_2: Option<ApiKey>,
    /// If configurations come from a broker.
    pub(crate) account: Option<ServiceAccount>,
}

impl Given {
    /// Reads and checks it all. `broker` says whether an account is wanted.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub(crate) fn new(strings: &impl Strings, broker: bool) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let text = |name: &str| {
            let value = Zeroizing::new(strings.get(name).ok().flatten().unwrap_or_default());
            Some(value.trim().to_owned()).filter(|value| !value.is_empty())
        };
        let mut key = |name: &str| {
            let key = ApiKey::new(text(name)?);
            if key.is_none() {
                let why = "must be visible ASCII characters, no spaces";
                problems.push(Problem::new(strings.label(name), why));
            }
            key
        };
        let (api_key, api_key_2) = (key("API_KEY"), key("API_KEY_2"));
        let account = broker.then(|| ServiceAccount::from_variables(text));
        let account = account.transpose().unwrap_or_else(|wrong| {
            let wrong = wrong.into_iter();
            problems.extend(wrong.map(|wrong| Problem::new(strings.label(wrong.name), wrong.why)));
            None
        });
        if problems.is_empty() {
            Ok(Self {
                api_key,
                api_key_2,
                account,
            })
        } else {
            Err(problems)
        }
    }
}

/// Looks at the file.
#[derive(Debug)]
pub(crate) struct AccountSource {
    path: PathBuf,
    watch: Watch,
}

impl AccountSource {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            watch: Watch::default(),
        }
    }

    /// The one that [`FILE`] names among `strings`, if it does.
    pub(crate) fn named(strings: &impl Strings) -> Option<Self> {
        let named = strings.get(FILE).ok().flatten()?;
        let named = named.trim();
        (!named.is_empty()).then(|| Self::new(PathBuf::from(named)))
    }

    /// Looks at the file, and reads it if it has changed or `ask` says so.
    pub(crate) fn poll(&mut self, ask: Ask, now: SystemTime) -> Polled<EnvFile> {
        let path = &self.path;
        let when = (ask, now);
        self.watch
            .poll_file(path, CREDENTIAL_BYTES_MAX, when, |text| match text {
                Ok(text) => EnvFile::parse(path, &text),
                Err(why) => {
                    let why = format!("{} {why}", path.display());
                    Err(vec![Problem::new(FILE, why)])
                }
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::Map;

    fn parse(text: &str) -> Result<EnvFile, Vec<Problem>> {
        EnvFile::parse(Path::new("tsp.env"), text)
    }

    #[test]
    fn the_file_comes_before_the_environment_for_what_it_has() {
        let file =
            parse("# made today\n\nAPI_KEY= first-0123456789 \nSERVICE_CONFIG_ID=7\n").unwrap();
        let below = Map::of(&[("API_KEY", "other-key"), ("API_KEY_2", "second-0123456789")]);
        let strings = WithFile {
            file: &file,
            below: &below,
        };
        let given = Given::new(&strings, false).unwrap();
        assert_eq!(given.api_key.unwrap().expose(), "first-0123456789");
        assert_eq!(given.api_key_2.unwrap().expose(), "second-0123456789");
        assert_eq!(strings.label("API_KEY"), "tsp.env: API_KEY");
        assert_eq!(strings.label("API_KEY_2"), "API_KEY_2");
        let problems = Given::new(&strings, true).unwrap_err();
        assert_eq!(problems.len(), 5, "{problems:?}");
    }

    #[test]
    fn every_mistake_has_its_line_and_no_value_is_quoted() {
        let problems = parse("API_KEY=a\ncanary\nAPI_KEY=b\nTSP_IO=canary\n").unwrap_err();
        let told: Vec<_> = problems.iter().map(ToString::to_string).collect();
        let places: Vec<_> = problems.iter().map(|problem| &*problem.place).collect();
        assert_eq!(places, ["tsp.env:2", "tsp.env:3", "tsp.env:4"]);
        assert!(!told.concat().contains("canary"), "{told:?}");
        let bad = parse("API_KEY=two words\n").unwrap();
        let strings = WithFile {
            file: &bad,
            below: &Map::default(),
        };
        let problems = Given::new(&strings, false).unwrap_err();
        assert_eq!(problems[0].place, "tsp.env: API_KEY");
    }
}
