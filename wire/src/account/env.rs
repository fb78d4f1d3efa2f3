//! A service account as environment variables: the file that its maker hands over once.
//!
//! Names and encodings are those that existing manifests use; `CONFIG_BROKER_URL` is added to them.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use super::AccountId;
use crate::{
    ApiKey,
    envelope::{KEY_BYTES, PrivateKey, SigningKey, Vendor},
};

/// Where the broker is, without a path.
pub const CONFIG_BROKER_URL: &str = "CONFIG_BROKER_URL";
/// The account's id.
pub const SERVICE_ACCOUNT_ID: &str = "SERVICE_ACCOUNT_ID";
/// The number of this configuration of the account.
pub const SERVICE_CONFIG_ID: &str = "SERVICE_CONFIG_ID";
/// The number of the vendor's segment.
pub const SERVICE_SEGMENT_ID: &str = "SERVICE_SEGMENT_ID";
/// Base64 of the X25519 private key that opens the segment's key.
pub const SERVICE_ENCRYPTION_PRIVATE_KEY: &str = "SERVICE_ENCRYPTION_PRIVATE_KEY";
/// Base64 of the Ed25519 key pair that signs requests: seed, then public key.
pub const SERVICE_SIGNING_PRIVATE_KEY: &str = "SERVICE_SIGNING_PRIVATE_KEY";
/// What applications present to the proxy. The proxy reads it whatever its source of configurations is.
pub const API_KEY: &str = "API_KEY";

/// Longest URL of a broker, in bytes.
const URL_BYTES_MAX: usize = 1_024;

/// Base64 of a key pair has 88 characters; decoding needs room for a group more.
const KEY_BUFFER: usize = SigningKey::LEN + 4;

/// A service account, whole.
#[derive(Debug)]
pub struct ServiceAccount {
    /// Where the broker is: `http://` or `https://`, a host, perhaps a port, and no slash at the end.
    pub broker_url: String,
    /// Who it is.
    pub id: AccountId,
    /// The number of this configuration of it.
    pub config: u64,
    /// The number of the vendor's segment.
    pub segment: u64,
    /// Opens the segment's key.
    pub encryption_key: PrivateKey,
    /// Signs requests.
    pub signing_key: SigningKey,
}

/// A variable that is missing or malformed. Never holds its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvProblem {
    /// The variable.
    pub name: &'static str,
    /// What is wrong with it.
    pub why: &'static str,
}

impl fmt::Display for EnvProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.why)
    }
}

impl std::error::Error for EnvProblem {}

impl ServiceAccount {
    /// Reads the account out of variables; `get` gives the value of one. White space around values does not matter.
    ///
    /// # Errors
    /// Everything that is missing or malformed.
    pub fn from_variables(
        mut get: impl FnMut(&'static str) -> Option<String>,
    ) -> Result<Self, Vec<EnvProblem>> {
        let mut problems = Vec::new();
        let mut read = Reader {
            get: &mut get,
            problems: &mut problems,
        };
        let broker_url = read.one(
            CONFIG_BROKER_URL,
            "must be http:// or https://, a host and perhaps a port, without path, query or user",
            url,
        );
        let id = read.one(
            SERVICE_ACCOUNT_ID,
            "must be 48 characters of URL-safe base64, as the broker's command line printed it",
            AccountId::from_text,
        );
        let number = "must be a number from 1 on";
        let config = read.one(SERVICE_CONFIG_ID, number, positive);
        let segment = read.one(SERVICE_SEGMENT_ID, number, positive);
        let encryption_key = read.one(
            SERVICE_ENCRYPTION_PRIVATE_KEY,
            "must be base64 of 32 bytes",
            |text| {
                PrivateKey::from_slice(decoded(text)?.get(..KEY_BYTES)?)
                    .filter(|_| text.len() == 44)
            },
        );
        let signing_key = read.one(
            SERVICE_SIGNING_PRIVATE_KEY,
            "must be base64 of the 64 bytes of an Ed25519 key pair: its seed, then the public key that goes with it",
            |text| SigningKey::from_slice(decoded(text)?.get(..SigningKey::LEN)?).filter(|_| text.len() == 88),
        );
        let all = (broker_url, id, config, segment, encryption_key, signing_key);
        let (
            Some(broker_url),
            Some(id),
            Some(config),
            Some(segment),
            Some(encryption_key),
            Some(signing_key),
        ) = all
        else {
            return Err(problems);
        };
        Ok(Self {
            broker_url,
            id,
            config,
            segment,
            encryption_key,
            signing_key,
        })
    }

    /// The vendor that the account belongs to.
    #[must_use]
    pub fn vendor(&self) -> Vendor {
        Vendor {
            segment: self.segment,
            fingerprint: self.id.vendor(),
        }
    }

    /// The file: one `NAME=value` a line, without quotes, as `docker run --env-file` and Kubernetes read it.
    #[must_use]
    pub fn to_file(&self, api_key: &ApiKey) -> Zeroizing<String> {
        let encryption_key = base64(self.encryption_key.expose());
        let signing_key = base64(self.signing_key.expose());
        let (config, segment) = (self.config.to_string(), self.segment.to_string());
        let (id, api_key) = (self.id.to_string(), api_key.expose());
        let lines = [
            (CONFIG_BROKER_URL, self.broker_url.as_str()),
            (SERVICE_ACCOUNT_ID, &id),
            (SERVICE_CONFIG_ID, &config),
            (SERVICE_SEGMENT_ID, &segment),
            (SERVICE_ENCRYPTION_PRIVATE_KEY, &encryption_key),
            (SERVICE_SIGNING_PRIVATE_KEY, &signing_key),
            (API_KEY, api_key),
        ];
        let bytes = lines
            .iter()
            .map(|(name, value)| name.len() + value.len() + 2)
            .sum();
        // Room for all of it, so that nothing is left behind by a reallocation.
        let mut file = Zeroizing::new(String::with_capacity(bytes));
        for (name, value) in lines {
            file.push_str(name);
            file.push('=');
            file.push_str(value);
            file.push('\n');
        }
        file
    }
}

/// Reads variables one after the other, and keeps what is wrong.
struct Reader<'a> {
    get: &'a mut dyn FnMut(&'static str) -> Option<String>,
    problems: &'a mut Vec<EnvProblem>,
}

impl Reader<'_> {
    fn one<T>(
        &mut self,
        name: &'static str,
        malformed: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let value = Zeroizing::new((self.get)(name).unwrap_or_default());
        let value = value.trim();
        let why = if value.is_empty() {
            "is missing"
        } else {
            malformed
        };
        let read = if value.is_empty() { None } else { read(value) };
        if read.is_none() {
            self.problems.push(EnvProblem { name, why });
        }
        read
    }
}

fn positive(text: &str) -> Option<u64> {
    // The stores of a broker count in 63 bits.
    let number = i64::try_from(text.parse::<u64>().ok()?).ok()?;
    u64::try_from(number).ok().filter(|number| *number > 0)
}

fn url(text: &str) -> Option<String> {
    let text = text.strip_suffix('/').unwrap_or(text);
    let authority = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"))?;
    let sound = !authority.is_empty()
        && text.len() <= URL_BYTES_MAX
        && authority
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !b"/?#@\\\"<>".contains(&byte));
    sound.then(|| text.to_owned())
}

fn decoded(text: &str) -> Option<Zeroizing<[u8; KEY_BUFFER]>> {
    let mut buffer = Zeroizing::new([0; KEY_BUFFER]);
    STANDARD.decode_slice(text, buffer.as_mut_slice()).ok()?;
    Some(buffer)
}

fn base64(key: &[u8]) -> Zeroizing<String> {
    Zeroizing::new(STANDARD.encode(key))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng as _;

    use super::*;

    fn account() -> ServiceAccount {
        let mut random = ChaCha20Rng::seed_from_u64(1);
        let vendor = SigningKey::generate(&mut random).unwrap();
        ServiceAccount {
            broker_url: "https://broker.example.com:8443".to_owned(),
            id: AccountId::new([1; 12], &vendor.verifying()),
            config: 12,
            segment: 3,
            encryption_key: PrivateKey::generate(&mut random),
            signing_key: SigningKey::generate(&mut random).unwrap(),
        }
    }

    fn variables(file: &str) -> HashMap<String, String> {
        let lines = file.lines().map(|line| line.split_once('=').unwrap());
        lines
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    #[test]
    fn an_account_is_read_back_from_its_file() {
        let account = account();
        let api_key = ApiKey::new("0WUaXesNgbTAuLwn".to_owned()).unwrap();
        let variables = variables(&account.to_file(&api_key));
        assert_eq!(variables.len(), 7);
        // As long as in the files that people have.
        let lengths = [
            (SERVICE_ACCOUNT_ID, 48),
            (SERVICE_ENCRYPTION_PRIVATE_KEY, 44),
            (SERVICE_SIGNING_PRIVATE_KEY, 88),
        ];
        for (name, length) in lengths {
            assert_eq!(variables[name].len(), length, "{name}");
        }
        let read =
            ServiceAccount::from_variables(|name| Some(format!(" {}\n", variables[name]))).unwrap();
        assert_eq!(
            (read.broker_url, read.id, read.config, read.segment),
            (
                account.broker_url,
                account.id,
                account.config,
                account.segment
            )
        );
        assert_eq!(
            read.encryption_key.expose(),
            account.encryption_key.expose()
        );
        assert_eq!(read.signing_key.expose(), account.signing_key.expose());
    }

    #[test]
    fn all_that_is_missing_is_told_at_once() {
        let problems = ServiceAccount::from_variables(|_| None).unwrap_err();
        assert_eq!(problems.len(), 6);
        assert!(problems.iter().all(|problem| problem.why == "is missing"));
    }

    #[test]
    fn all_that_is_malformed_is_told_at_once_without_its_value() {
        let file = account().to_file(&ApiKey::new("key".to_owned()).unwrap());
        let good = variables(&file);
        let signing = &good[SERVICE_SIGNING_PRIVATE_KEY];
        let swapped = format!("{}{}", &signing[44..86], &signing[..46]);
        let bad = [
            (CONFIG_BROKER_URL, "ftp://CANARY"),
            (SERVICE_ACCOUNT_ID, "CANARY"),
            (SERVICE_CONFIG_ID, "0"),
            (SERVICE_SEGMENT_ID, "9223372036854775808"),
            (SERVICE_ENCRYPTION_PRIVATE_KEY, signing.as_str()),
            (SERVICE_SIGNING_PRIVATE_KEY, swapped.as_str()),
        ];
        let values = HashMap::from(bad);
        let problems =
            ServiceAccount::from_variables(|name| Some(values[name].to_owned())).unwrap_err();
        let names: Vec<_> = problems.iter().map(|problem| problem.name).collect();
        assert_eq!(names, bad.map(|(name, _)| name));
        let printed = format!("{problems:?}");
        assert!(!printed.contains("CANARY") && !printed.contains(&signing[..40]));
    }

    #[test]
    fn the_broker_has_a_plain_url() {
        for (text, read) in [
            ("http://127.0.0.1:3000/", Some("http://127.0.0.1:3000")),
            ("https://[::1]:3000", Some("https://[::1]:3000")),
            ("https://b.example.com/path", None),
            ("https://user@b.example.com", None),
            ("https://b.example.com?q", None),
            ("b.example.com", None),
            ("https://", None),
        ] {
            assert_eq!(url(text).as_deref(), read, "{text}");
        }
    }
}
