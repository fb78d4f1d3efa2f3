//! Which back end to use.

use std::fmt;
use std::str::FromStr;

use crate::Backend;

/// What `auto` takes where both work.
pub const AUTO_PREFERS: Backend = Backend::Uring;

/// The operator's choice, `TSP_IO`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IoChoice {
    /// Probe and decide.
    #[default]
    Auto,
    /// io_uring or nothing.
    Uring,
    /// epoll.
    Epoll,
}

/// `TSP_IO` is none of `auto`, `uring`, `epoll`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoChoiceError(String);

impl fmt::Display for IoChoiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is none of auto, uring, epoll", self.0)
    }
}

impl std::error::Error for IoChoiceError {}

impl FromStr for IoChoice {
    type Err = IoChoiceError;

    fn from_str(text: &str) -> Result<Self, IoChoiceError> {
        match text {
            "auto" => Ok(Self::Auto),
            "uring" => Ok(Self::Uring),
            "epoll" => Ok(Self::Epoll),
            other => Err(IoChoiceError(other.chars().take(40).collect())),
        }
    }
}

/// The back end taken, and why, for one log line and a metric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// What to give to [`crate::spawn_core`].
    pub backend: Backend,
    /// One sentence.
    pub reason: String,
}

/// io_uring was demanded and cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeError(String);

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ProbeError {}

/// Decides.
///
/// # Errors
/// [`ProbeError`]
pub fn choose(choice: IoChoice) -> Result<Probe, ProbeError> {
    let _ = choice;
    Ok(Probe {
        backend: Backend::Epoll,
        reason: String::new(),
    })
}
