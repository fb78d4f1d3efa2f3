//! `tsp-logdriver`: security events from the proxies onto disk, and from there to each tenant's own log system.
//!
//! | module | does |
//! | --- | --- |
//! | [`sink`] | what a tenant's log system is to the rest: takes events, or says why not |
//! | [`sinks`] | each kind of log system, and the one guarded way out to them, [`outbound`] |
//! | [`chain`], [`verify`] | the proof that a tenant has of its events, and its verification offline |
#![forbid(unsafe_code)]

pub mod chain;
mod clock;
pub mod outbound;
pub mod sink;
pub mod sinks;
pub mod verify;
