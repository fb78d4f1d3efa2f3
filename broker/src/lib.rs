//! Configuration broker: keeps what admins sealed, hands it to the service accounts that may have it, and cannot read it.
//!
//! One program does both ends: `tsp-broker serve` is the service; every other command is an admin's, seals and opens on the
//! admin's machine, and speaks to the service over the admin API. `docs/broker.md` tells both protocols.
//!
//! What must stay true: nothing below [`serve`] ever has a key that opens an envelope. Only `cli` and `keys` do, and they run
//! where an admin sits.
#![forbid(unsafe_code)]

mod api;
pub mod bridge;
pub mod cli;
pub mod client;
mod clock;
mod keys;
pub mod mail;
mod metrics;
pub mod model;
pub mod serve;
mod store;
