//! The control plane of the Tenant Security Proxy.
#![forbid(unsafe_code)]

pub mod config;
pub mod cores;
pub mod events;
pub mod logs;
pub mod source;
