//! `tsp-logdriver`: security events from the proxies onto disk, and from there to each tenant's own log system.
//!
//! | module | does |
//! | --- | --- |
//! | [`sink`] | what a tenant's log system is to the rest: takes events, or says why not |
//! | [`chain`], [`verify`] | the proof that a tenant has of its events, and its verification offline |
#![forbid(unsafe_code)]

pub mod chain;
pub mod sink;
pub mod verify;
