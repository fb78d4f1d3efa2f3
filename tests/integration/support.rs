//! What the tests share: processes, a client, stand-ins, configuration files.

pub(crate) mod broker;
pub(crate) mod child;
pub(crate) mod config;
pub(crate) mod events;
pub(crate) mod fake_kms;
pub(crate) mod http;
pub(crate) mod kmssim;
pub(crate) mod log;
pub(crate) mod logdriver;
pub(crate) mod metrics;
pub(crate) mod peers;
pub(crate) mod proxy;

use std::{
    thread,
    time::{Duration, Instant},
};

use base64::Engine as _;
pub(crate) use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// Defines one test per back end: `name::on_epoll` and `name::on_uring`.
macro_rules! on_both {
    ($($(#[$attribute:meta])* fn $name:ident($io:ident) $body:block)+) => { $(
        mod $name {
            #[allow(unused_imports, reason = "most tests need something of their file")]
            use super::*;

            $(#[$attribute])*
            fn run($io: Io) $body

            #[test]
            fn on_epoll() {
                run(Io::Epoll);
            }

            #[test]
            fn on_uring() {
                if Io::Uring.is_usable() {
                    run(Io::Uring);
                }
            }
        }
    )+ };
}
pub(crate) use on_both;

/// Longest wait for what other threads or processes do. A busy machine with two cores has taken 20 s to start a process.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Asks until it `is_done`; not for ever, so that what never comes fails the test instead of stopping all of them.
#[track_caller]
pub(crate) fn until(what: &str, mut is_done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_done() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Metadata of `tenant`, with `members` added at the top level.
pub(crate) fn request(tenant: &str, members: Value) -> Value {
    let mut body =
        json!({ "tenantId": tenant, "iclFields": { "requestingId": "test" }, "customFields": {} });
    let Value::Object(members) = members else {
        panic!("{members} is no object")
    };
    body.as_object_mut().expect("it is one").extend(members);
    body
}

/// Just the metadata.
pub(crate) fn metadata(tenant: &str) -> Value {
    request(tenant, json!({}))
}

/// The text of a member that must be there.
#[track_caller]
pub(crate) fn text<'a>(object: &'a Value, member: &str) -> &'a str {
    object[member]
        .as_str()
        .unwrap_or_else(|| panic!("no {member} in {object}"))
}

#[track_caller]
pub(crate) fn base64(text: &str) -> Vec<u8> {
    STANDARD
        .decode(text)
        .unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

pub(crate) fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}
