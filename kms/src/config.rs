//! What is wrong with a KMS config.

use std::{borrow::Cow, fmt};

use tsp_wire::TspCode;

/// A KMS config that cannot be right, found out before any call. Whoever wrote the configuration can mend it.
///
/// Says which member it is and what is expected there. Never holds the value: it may be a secret in the wrong place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    member: &'static str,
    expected: Cow<'static, str>,
}

impl ConfigError {
    pub(crate) fn new(member: &'static str, expected: impl Into<Cow<'static, str>>) -> Self {
        Self {
            member,
            expected: expected.into(),
        }
    }

    /// The member of the configuration.
    #[must_use]
    pub fn member(&self) -> &'static str {
        self.member
    }

    /// What an operation answers that needs this configuration: 207.
    #[must_use]
    pub fn tsp_code(&self) -> TspCode {
        TspCode::KmsConfigurationInvalid
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` must be {}", self.member, self.expected)
    }
}

impl std::error::Error for ConfigError {}

/// Whether `text` is one to `bytes_max` visible ASCII characters: what can stand in a header and be signed as it is.
pub(crate) fn visible(text: &str, bytes_max: usize) -> bool {
    (1..=bytes_max).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}
