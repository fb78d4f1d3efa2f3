//! `tsp api-key create`: a new key for an application, and its line for the file of keys.

use std::{io, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use sha2::{Digest as _, Sha256};
use toml::Value;
use zeroize::Zeroizing;

use crate::{RunError, config::Problem, source::keys};

/// Random bytes of a key. As base64 they have no padding.
const KEY_BYTES: usize = 24;

/// Options of `tsp api-key create`.
#[derive(Debug, Default)]
pub struct ApiKeyOptions {
    /// What the key is called.
    pub label: String,
    /// The tenants that it is limited to; none for no limit.
    pub tenants: Vec<String>,
    /// The operations that it is limited to, likewise.
    pub operations: Vec<String>,
    /// When it ends, as RFC 3339 has it.
    pub expires: Option<String>,
}

/// Makes a key. Gives what to print: the key, which is nowhere else, and below it the line for the file.
///
/// # Errors
/// [`RunError::Configuration`] if a file with such a line could not be used; [`RunError::Internal`] without randomness.
pub fn create_api_key(options: &ApiKeyOptions) -> Result<Zeroizing<String>, RunError> {
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    getrandom::fill(bytes.as_mut_slice())
        .map_err(|why| RunError::Internal(io::Error::from(why).to_string()))?;
    let key = Zeroizing::new(BASE64.encode(bytes.as_slice()));
    let line = line(options, &key).map_err(RunError::Configuration)?;
    Ok(Zeroizing::new(format!("{}\n{line}\n", *key)))
}

fn line(options: &ApiKeyOptions, key: &str) -> Result<String, Vec<Problem>> {
    let ApiKeyOptions {
        label,
        tenants,
        operations,
        expires,
    } = options;
    keys::check_label(label).map_err(|why| vec![Problem::new("--label", why)])?;
    let digest = Sha256::digest(key.as_bytes());
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut line = format!("{label} = {{ sha256 = \"{digest}\"");
    for (member, texts) in [("tenants", tenants), ("operations", operations)] {
        if !texts.is_empty() {
            let list = Value::Array(texts.iter().cloned().map(Value::String).collect());
            line.push_str(&format!(", {member} = {list}"));
        }
    }
    if let Some(expires) = expires {
        if keys::moment(expires).is_none() {
            let why = "is not a time such as 2027-01-01T00:00:00Z";
            return Err(vec![Problem::new("--expires", why)]);
        }
        line.push_str(&format!(", expires = {expires}"));
    }
    line.push_str(" }");
    let file = format!("version = 1\n[keys]\n{line}\n");
    keys::parse(Path::new("the new line"), &file)?;
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_with_a_line_that_a_file_takes() {
        let options = ApiKeyOptions {
            label: "billing-2026".to_owned(),
            tenants: vec!["ac\"me".to_owned(), "globex".to_owned()],
            operations: vec!["document/unwrap".to_owned()],
            expires: Some("2027-01-01T00:00:00Z".to_owned()),
        };
        let printed = create_api_key(&options).unwrap();
        let (key, line) = printed.split_once('\n').unwrap();
        assert_eq!(BASE64.decode(key).unwrap().len(), KEY_BYTES);
        assert!(line.starts_with("billing-2026 = { sha256 = \""), "{line}");
        assert!(!line.contains(key), "{line}");
        assert_ne!(*create_api_key(&options).unwrap(), *printed);
    }

    #[test]
    fn what_a_file_would_not_take_is_refused() {
        let good = || ApiKeyOptions {
            label: "x".to_owned(),
            ..ApiKeyOptions::default()
        };
        let refused = |options: ApiKeyOptions| {
            matches!(create_api_key(&options), Err(RunError::Configuration(_)))
        };
        assert!(!refused(good()));
        for label in ["", "two words", "API_KEY_2", "a\nb"] {
            assert!(refused(ApiKeyOptions {
                label: label.to_owned(),
                ..good()
            }));
        }
        assert!(refused(ApiKeyOptions {
            operations: vec!["wrap".to_owned()],
            ..good()
        }));
        assert!(refused(ApiKeyOptions {
            tenants: vec![String::new()],
            ..good()
        }));
        assert!(refused(ApiKeyOptions {
            expires: Some("tomorrow".to_owned()),
            ..good()
        }));
    }
}
