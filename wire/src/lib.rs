//! All that crosses a process boundary: requests and answers, EDEKs, security events, snapshots.
//!
//! No I/O and no clock in here: bytes in, values out, and back. Nothing in this crate panics on bytes from outside.
#![forbid(unsafe_code)]

mod code;
mod ids;
mod secret;

pub use code::TspCode;
pub use ids::{KmsConfigId, RayId, SnapshotVersion, TenantId};
pub use secret::{ApiKey, Dek, Secret};
