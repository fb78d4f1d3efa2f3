//! Requests of the JSON API: their members, and what is said when they are not right.

use super::*;

/// An encryption context: compared exactly, in any order.
#[derive(Debug, Default, Deserialize)]
#[serde(transparent)]
pub(super) struct Context(BTreeMap<String, String>);

impl Context {
    /// The same bytes for the same pairs, whatever their order was.
    pub(super) fn canonical(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for text in self.0.iter().flat_map(|(key, value)| [key, value]) {
            out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
            out.extend_from_slice(text.as_bytes());
        }
        out
    }

    pub(super) fn check(self) -> Result<Self, Error> {
        let chars: usize = self
            .0
            .iter()
            .map(|(key, value)| key.len() + value.len() + 6)
            .sum();
        if chars > CONTEXT_CHARS_MAX {
            return Err(validation(
                "encryptionContext is longer than 8192 characters",
            ));
        }
        Ok(self)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Encrypt {
    pub(super) key_id: Option<String>,
    pub(super) plaintext: Option<Base64>,
    #[serde(default)]
    pub(super) encryption_context: Context,
    pub(super) encryption_algorithm: Option<String>,
    #[serde(default)]
    pub(super) dry_run: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Decrypt {
    pub(super) key_id: Option<String>,
    pub(super) ciphertext_blob: Option<Base64>,
    #[serde(default)]
    pub(super) encryption_context: Context,
    pub(super) encryption_algorithm: Option<String>,
    #[serde(default)]
    pub(super) dry_run: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct GenerateDataKey {
    pub(super) key_id: Option<String>,
    pub(super) key_spec: Option<String>,
    pub(super) number_of_bytes: Option<usize>,
    #[serde(default)]
    pub(super) encryption_context: Context,
    #[serde(default)]
    pub(super) dry_run: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ReEncrypt {
    pub(super) ciphertext_blob: Option<Base64>,
    pub(super) source_key_id: Option<String>,
    #[serde(default)]
    pub(super) source_encryption_context: Context,
    pub(super) destination_key_id: Option<String>,
    #[serde(default)]
    pub(super) destination_encryption_context: Context,
    #[serde(default)]
    pub(super) dry_run: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DescribeKey {
    pub(super) key_id: Option<String>,
}

/// Bytes in standard base64 with padding, and in nothing else.
pub(super) struct Base64(Vec<u8>);

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let bytes = BASE64.decode(text.as_bytes());
        bytes.map(Self).map_err(serde::de::Error::custom)
    }
}

pub(super) fn validation(message: &str) -> Error {
    Error::refused(
        Refusal::Parameter,
        "ValidationException",
        format!("1 validation error detected: {message}"),
    )
}

pub(super) fn missing(member: &str) -> Error {
    validation(&format!(
        "Value null at '{member}' failed to satisfy constraint: Member must not be null"
    ))
}

pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    json_object(body)
        .map_err(|error| Error::refused(Refusal::Protocol, "SerializationException", error))
}

pub(super) fn within(bytes: Option<Base64>, member: &str, max: usize) -> Result<Vec<u8>, Error> {
    let Base64(bytes) = bytes.ok_or_else(|| missing(member))?;
    if bytes.is_empty() || bytes.len() > max {
        return Err(validation(&format!(
            "Value at '{member}' failed to satisfy constraint: Member must have length from 1 to {max}"
        )));
    }
    Ok(bytes)
}

pub(super) fn check_algorithm(algorithm: Option<&str>) -> Result<(), Error> {
    match algorithm {
        None | Some(ALGORITHM) => Ok(()),
        Some(other) => Err(Error::refused(
            Refusal::Parameter,
            "InvalidKeyUsageException",
            format!("{other} is not an algorithm of this key"),
        )),
    }
}

pub(super) fn check_dry_run(dry_run: bool) -> Result<(), Error> {
    if dry_run {
        return Err(Error::new(
            Verdict::Answered,
            "DryRunOperationException",
            "The request would have succeeded, but the DryRun option is set.",
        ));
    }
    Ok(())
}

/// What `Decrypt` says when there is nothing to be said.
pub(super) fn does_not_decrypt() -> Error {
    Error::failed(Failure::Ciphertext, "InvalidCiphertextException", "")
}
