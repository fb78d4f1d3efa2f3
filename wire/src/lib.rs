//! All that crosses a process boundary: requests and answers, EDEKs, security events, snapshots.
//!
//! No I/O and no clock in here: bytes in, values out, and back. Nothing in this crate panics on bytes from outside.
#![forbid(unsafe_code)]

pub mod account;
pub mod api;
mod base64;
mod code;
pub mod derive;
pub mod destinations;
pub mod edek;
pub mod envelope;
pub mod event;
mod ids;
mod json;
pub mod logging;
mod secret;
pub mod snapshot;

pub use code::TspCode;
pub use ids::{KmsConfigId, RayId, SnapshotVersion, TenantId, TenantSecretId};
pub use secret::{ApiKey, Dek, Secret};
